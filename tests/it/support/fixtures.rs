//! The models under tests/fixtures: loaded, and their rows as callers send them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use modelgate::model::features::{Features, Raw, Settings};
use modelgate::model::outputs::Decision;
use modelgate::model::runtime::Runtime;
use modelgate::model::signature::Signature;
use modelgate::model::{Digest, Identity, Inputs, InvalidInput, LoadError, Model, Spec, Version};
use serde_json::Value;
use tokio::time::Instant;

/// The folder of a fixture, laid out as a version in the registry.
pub(crate) fn folder(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind)
}

/// The signature in a fixture's `MLmodel` file.
pub(crate) fn signature(kind: &str) -> Signature {
    let text = std::fs::read_to_string(folder(kind).join("MLmodel")).unwrap();
    let file: Value = serde_saphyr::from_str(&text).unwrap();
    Signature::parse(file["signature"]["inputs"].as_str().unwrap()).unwrap()
}

/// Everything to load a fixture with, as the configuration's defaults have it.
pub(crate) fn spec(kind: &str) -> Spec {
    let one_hot = if kind == "one-hot" { vec!["Occupation".to_owned()] } else { Vec::new() };
    Spec {
        id: Identity::new(kind.parse().unwrap(), Version(1), Digest([7; 32]), None),
        onnx: folder(kind).join("model.onnx"),
        signature: Some(signature(kind)),
        features: Settings { coerce: true, one_hot, ..Settings::default() },
        decision: Decision::default(),
        slots: 2,
    }
}

/// Loads what `spec` says.
pub(crate) fn load(spec: Spec) -> Result<Model, LoadError> {
    Model::load(&Runtime::load(None).unwrap(), spec)
}

/// A loaded fixture.
pub(crate) fn model(kind: &str) -> Model {
    load(spec(kind)).unwrap()
}

/// Far enough away for any test.
pub(crate) fn later() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

/// `rows` of JSON values, each in the order of `columns`, read against the features.
pub(crate) fn inputs(features: &Features, columns: &[Arc<str>], rows: &[Vec<Value>]) -> Result<Inputs, InvalidInput> {
    let mut reader = features.rows();
    for row in rows {
        reader.begin();
        for (column, value) in columns.iter().zip(row) {
            reader.set(column, raw(value));
        }
        reader.end();
    }
    reader.finish()
}

fn raw(value: &Value) -> Raw<'_> {
    match value {
        Value::Null => Raw::Null,
        Value::Bool(value) => Raw::Boolean(*value),
        Value::Number(number) => number.as_i64().map_or_else(|| Raw::Float(number.as_f64().unwrap()), Raw::Integer),
        Value::String(text) => Raw::Text(text),
        Value::Array(_) => Raw::Nested("a list"),
        Value::Object(_) => Raw::Nested("an object"),
    }
}

/// The fixture `sum` with another base: its answers are `base` plus the sum of a row.
pub(crate) fn sum_model(base: f32) -> Vec<u8> {
    const WRITTEN: f32 = 12345.0;
    let mut bytes = std::fs::read(folder("sum").join("model.onnx")).unwrap();
    let at = bytes.windows(4).position(|window| window == WRITTEN.to_le_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(&base.to_le_bytes());
    bytes
}

/// The files of such a version, as [`Server::register`](super::mlflow::Server::register) takes them.
pub(crate) fn sum_files(base: f32) -> Vec<(&'static str, Vec<u8>)> {
    let read = |name: &str| std::fs::read(folder("sum").join(name)).unwrap();
    vec![
        ("MLmodel", read("MLmodel")),
        ("model.onnx", sum_model(base)),
        ("serving_input_example.json", read("serving_input_example.json")),
    ]
}

/// Bytes that are the same nowhere twice, so that a wrong piece shows.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

/// A fixture's rows as JSON objects, and Python's answers to them.
pub(crate) struct Expected(Value);

/// What `scripts/make-models.py` wrote beside a fixture.
pub(crate) fn expected(kind: &str) -> Expected {
    Expected(serde_json::from_slice(&std::fs::read(folder(kind).join("expected.json")).unwrap()).unwrap())
}

impl Expected {
    /// The rows as callers send them.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Value> {
        let columns = self.0["columns"].as_array().unwrap();
        let names = columns.iter().map(|name| name.as_str().unwrap().to_owned());
        let row = move |row: &Value| names.clone().zip(row.as_array().unwrap().iter().cloned()).collect();
        self.0["rows"].as_array().unwrap().iter().map(row)
    }

    /// `found` is the JSON answer to row `row`: the same class, every number to 1e-6.
    #[track_caller]
    pub(crate) fn assert_row(&self, row: usize, found: &Value) {
        let prediction = &self.0["predictions"][row];
        match (prediction.as_f64(), found["prediction"].as_f64()) {
            (Some(expected), Some(found)) => {
                assert!((expected - found).abs() <= 1e-6 * expected.abs().max(1.0), "row {row}");
            }
            _ => assert_eq!(&found["prediction"], prediction, "row {row}"),
        }
        let Some(classes) = self.0["classes"].as_array() else { return };
        for (class, expected) in classes.iter().zip(self.0["probabilities"][row].as_array().unwrap()) {
            let name = class.as_str().map_or_else(|| class.to_string(), str::to_owned);
            let found =
                found["probabilities"][&name].as_f64().unwrap_or_else(|| panic!("row {row}: no `{name}` in {found}"));
            assert!(
                (expected.as_f64().unwrap() - found).abs() <= 1e-6,
                "row {row}, class {name}: {found} for {expected}"
            );
        }
    }
}
