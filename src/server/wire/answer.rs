//! The answer body of our own face, written straight from the model's outputs.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use super::Shape;
use crate::model::{Identity, Outputs, Value};

/// The answer to a body of `shape`: `request_id`, `model` and `version` once, then the one prediction, or
/// `predictions` in the order of the rows. What a model does not give (label, score, probabilities) is left out.
#[must_use]
#[expect(clippy::missing_panics_doc, reason = "it does not panic")]
pub fn write(shape: Shape, request_id: &str, model: &Identity, outputs: &Outputs) -> Vec<u8> {
    let rows = outputs.predictions().len();
    let mut body = Vec::with_capacity(128 + rows * (64 + 24 * outputs.classes().len()));
    serde_json::to_writer(&mut body, &Answer { shape, request_id, model, outputs })
        .expect("memory takes all that is written, and every key is text");
    body
}

struct Answer<'a> {
    shape: Shape,
    request_id: &'a str,
    model: &'a Identity,
    outputs: &'a Outputs,
}

impl Serialize for Answer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("request_id", self.request_id)?;
        map.serialize_entry("model", self.model.name.as_str())?;
        map.serialize_entry("version", &**self.model.version_text())?;
        match self.shape {
            Shape::One => Row { outputs: self.outputs, row: 0 }.members(&mut map)?,
            Shape::Many => map.serialize_entry("predictions", &Rows(self.outputs))?,
        }
        map.end()
    }
}

struct Rows<'a>(&'a Outputs);

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rows = self.0.predictions().len();
        let mut seq = serializer.serialize_seq(Some(rows))?;
        for row in 0..rows {
            seq.serialize_element(&Row { outputs: self.0, row })?;
        }
        seq.end()
    }
}

struct Row<'a> {
    outputs: &'a Outputs,
    row: usize,
}

impl Row<'_> {
    fn members<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        let prediction = &self.outputs.predictions()[self.row];
        match &prediction.value {
            Value::Integer(class) => map.serialize_entry("prediction", class)?,
            Value::Text(class) => map.serialize_entry("prediction", &**class)?,
            Value::Number(number) => map.serialize_entry("prediction", number)?,
        }
        if let Some(label) = &prediction.label {
            map.serialize_entry("label", &**label)?;
        }
        if let Some(score) = prediction.score {
            map.serialize_entry("score", &Score(score))?;
        }
        let probabilities = self.outputs.probabilities(self.row);
        if !probabilities.is_empty() {
            map.serialize_entry("probabilities", &Probabilities { outputs: self.outputs, probabilities })?;
        }
        Ok(())
    }
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.members(&mut map)?;
        map.end()
    }
}

/// A score is one of the probabilities, and those are 32-bit: written with their digits it reads 0.87, not
/// 0.8700000047683716.
struct Score(f64);

impl Serialize for Score {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[expect(clippy::cast_possible_truncation, reason = "what the cast loses is looked at")]
        let short = self.0 as f32;
        #[expect(clippy::float_cmp, reason = "the same bits or not")]
        if f64::from(short) == self.0 { serializer.serialize_f32(short) } else { serializer.serialize_f64(self.0) }
    }
}

struct Probabilities<'a> {
    outputs: &'a Outputs,
    probabilities: &'a [f32],
}

impl Serialize for Probabilities<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let classes = self.outputs.classes().iter().map(|class| &**class);
        serializer.collect_map(classes.zip(self.probabilities))
    }
}
