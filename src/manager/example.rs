//! The input example a version was logged with, as rows of its features: what warms it up.
//!
//! Examples are written in MLflow's scoring form under the signature's own names, so they go around renames and one-hot
//! groups. An example that cannot be read is no fault of the version: it is warmed with made-up rows then.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value};

use crate::model::features::{Feature, Raw, Rows, Target};
use crate::model::{Features, Inputs};

/// No larger example is read.
const MAX_BYTES: u64 = 4 << 20;

/// No more rows of it are used.
const MAX_ROWS: usize = 64;

/// The example in `file`, if it fits `features`.
pub(super) fn read(file: &Path, features: &Features) -> Option<Inputs> {
    let bytes = std::fs::metadata(file).ok()?.len();
    if bytes > MAX_BYTES {
        return None;
    }
    let example: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let mut rows = features.rows();
    for record in records(&example)?.iter().take(MAX_ROWS) {
        rows.begin();
        for feature in features.list() {
            take(&mut rows, feature, record);
        }
        rows.end();
    }
    rows.finish().ok().filter(|inputs| inputs.rows() > 0)
}

/// The example's rows, each by the signature's names.
fn records(example: &Value) -> Option<Vec<Map<String, Value>>> {
    if let Some(frame) = example.get("dataframe_split") {
        let columns: Vec<&str> = frame.get("columns")?.as_array()?.iter().map(Value::as_str).collect::<Option<_>>()?;
        let rows = frame.get("data")?.as_array()?;
        return rows.iter().map(|row| Some(named(columns.iter().copied(), row.as_array()?))).collect();
    }
    if let Some(rows) = example.get("dataframe_records").or_else(|| example.get("instances")) {
        return rows.as_array()?.iter().map(|row| row.as_object().cloned()).collect();
    }
    let columns = example.get("inputs")?.as_object()?;
    let rows = columns.values().filter_map(Value::as_array).map(Vec::len).min()?;
    Some(
        (0..rows).map(|row| columns.iter().flat_map(|(name, values)| elements(name, &values[row])).collect()).collect(),
    )
}

fn named<'a>(names: impl Iterator<Item = &'a str>, values: &[Value]) -> Map<String, Value> {
    names.map(str::to_owned).zip(values.iter().cloned()).collect()
}

/// One tensor's part of a row: its single value, or its elements under the names the features give them.
fn elements(tensor: &str, value: &Value) -> Vec<(String, Value)> {
    match value.as_array() {
        Some(elements) if elements.len() > 1 => {
            elements.iter().enumerate().map(|(i, element)| (format!("{tensor}_{i}"), element.clone())).collect()
        }
        Some(elements) => elements.iter().map(|element| (tensor.to_owned(), element.clone())).collect(),
        None => vec![(tensor.to_owned(), value.clone())],
    }
}

fn take(rows: &mut Rows<'_>, feature: &Feature, record: &Map<String, Value>) {
    match &feature.target {
        Target::Column(_) => {
            if let Some(value) = record.get(&*feature.name) {
                rows.set(&feature.field, raw(value));
            }
        }
        Target::OneHot(categories) => {
            let is_set = |category: &str| {
                let column: Cow<'_, str> = format!("{}_{category}", feature.name).into();
                record.get(&*column).is_some_and(|value| value.as_f64() == Some(1.0) || value.as_bool() == Some(true))
            };
            if let Some((category, _)) = categories.iter().find(|(category, _)| is_set(category)) {
                rows.set(&feature.field, Raw::Text(category));
            }
        }
    }
}

fn raw(value: &Value) -> Raw<'_> {
    match value {
        Value::Null => Raw::Null,
        Value::Bool(value) => Raw::Boolean(*value),
        Value::String(text) => Raw::Text(text),
        Value::Array(_) => Raw::Nested("a list"),
        Value::Object(_) => Raw::Nested("an object"),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(integer), _, _) => Raw::Integer(integer),
            (None, Some(unsigned), _) => Raw::Unsigned(unsigned),
            (None, None, float) => Raw::Float(float.unwrap_or(f64::NAN)),
        },
    }
}
