//! A segment in the form of SageMaker's data capture: one JSON object a line, one line a request.
//!
//! The request's rows are lines of CSV: the features in the model's order on the way in, the prediction and then the
//! probability of each class on the way out. Of a request that failed the input is JSON, and the output the error. Ground truth is joined by `eventId`, which is the request id.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;

use crate::model::{Cell, Digest};

use super::csv::{put_cell, put_number, put_value};
use super::segment::{Contents, Row, Sample, Schema, ValueKind};

/// One line, with its members in the order of the documented form.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    capture_data: CaptureData,
    event_metadata: EventMetadata,
    event_version: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CaptureData {
    endpoint_input: Payload,
    endpoint_output: Payload,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Payload {
    observed_content_type: &'static str,
    mode: &'static str,
    data: String,
    encoding: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventMetadata {
    event_id: String,
    custom_attributes: [String; 3],
    inference_time: String,
}

/// Writes a segment as JSON lines.
///
/// # Errors
/// When JSON cannot hold it.
pub(super) fn encode(contents: &Contents) -> serde_json::Result<String> {
    let mut out = String::new();
    for sample in &contents.samples {
        out.push_str(&serde_json::to_string(&Event::of(&contents.header.schema, sample))?);
        out.push('\n');
    }
    Ok(out)
}

impl Event {
    fn of(schema: &Schema, sample: &Sample) -> Self {
        let custom_attributes = [
            format!("key_id={}", sample.key_id),
            format!("model_version={}", schema.version),
            format!("model_digest={}", Digest(schema.digest)),
        ];
        Self {
            capture_data: CaptureData::of(schema, sample),
            event_metadata: EventMetadata {
                event_id: sample.request_id.to_string(),
                custom_attributes,
                inference_time: time(sample.time),
            },
            event_version: "0",
        }
    }
}

impl CaptureData {
    fn of(schema: &Schema, sample: &Sample) -> Self {
        match (&sample.rows[..], schema.prediction) {
            ([row], ValueKind::Nothing) => Self::of_failure(row),
            _ => Self::of_answer(sample),
        }
    }

    fn of_answer(sample: &Sample) -> Self {
        Self {
            endpoint_input: Payload {
                observed_content_type: "text/csv",
                mode: "INPUT",
                data: table(sample, put_features),
                encoding: "CSV",
            },
            endpoint_output: Payload {
                observed_content_type: "text/csv; charset=utf-8",
                mode: "OUTPUT",
                data: table(sample, put_answer),
                encoding: "CSV",
            },
        }
    }

    /// The cells are those of [`failed`](super::failed): code, status, length and input.
    fn of_failure(row: &Row) -> Self {
        let text = |index: usize| match row.cells.get(index) {
            Some(Cell::Text(text)) => text.to_string(),
            _ => String::new(),
        };
        let mut error = text(0);
        error.push(',');
        put_cell(&mut error, row.cells.get(1).unwrap_or(&Cell::Missing));
        Self {
            endpoint_input: Payload {
                observed_content_type: "application/json",
                mode: "INPUT",
                data: text(3),
                encoding: "JSON",
            },
            endpoint_output: Payload {
                observed_content_type: "text/csv; charset=utf-8",
                mode: "OUTPUT",
                data: error,
                encoding: "CSV",
            },
        }
    }
}

/// The sample's rows, a line each, without an end to the last.
fn table(sample: &Sample, put: impl Fn(&mut String, &Row)) -> String {
    let mut out = String::new();
    for (index, row) in sample.rows.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        put(&mut out, row);
    }
    out
}

fn put_features(out: &mut String, row: &Row) {
    for (index, cell) in row.cells.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        put_cell(out, cell);
    }
}

fn put_answer(out: &mut String, row: &Row) {
    put_value(out, &row.prediction.value);
    for probability in &row.probabilities {
        out.push(',');
        put_number(out, probability);
    }
}

fn time(millisecond: i64) -> String {
    let mut text = String::new();
    if let Ok(time) = Timestamp::from_millisecond(millisecond) {
        write!(text, "{}", time.strftime("%Y-%m-%dT%H:%M:%SZ")).expect("a String takes all that is written");
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::capture::protect::Protection;
    use crate::capture::segment::{Column, Header};
    use crate::model::signature::Kind;
    use crate::model::{Prediction, Value};

    /// A request of two rows, the second as empty as can be.
    pub(in crate::capture) fn example() -> Contents {
        let features = [("Age", Kind::Double), ("Job, \"held\"", Kind::Text), ("Member", Kind::Boolean)];
        let column = |(name, kind): (&str, _)| Column { name: name.into(), kind, protection: Protection::Keep };
        let schema = Schema {
            model: "credit-score".parse().unwrap(),
            version: 3,
            digest: [7; 32],
            prediction: ValueKind::Integer,
            features: features.map(column).into(),
            classes: vec!["Poor".into(), "Good".into()],
        };
        let row = |cells, value, label: Option<&str>, score, probabilities| Row {
            cells,
            prediction: Prediction { value: Value::Integer(value), label: label.map(Arc::from), score },
            probabilities,
        };
        let full = vec![Cell::Float(40.5), Cell::Text("Doctor, \"MD\"".into()), Cell::Boolean(true)];
        let empty = vec![Cell::Missing, Cell::Text("".into()), Cell::Missing];
        let rows =
            vec![row(full, 1, Some("Good"), Some(0.75), vec![0.25, 0.75]), row(empty, 0, None, None, Vec::new())];
        let sample = Sample { request_id: "r1".into(), time: 1_764_590_400_123, key_id: "k1".into(), rows };
        Contents { header: Header { id: 1, hour: 490_164, schema }, samples: vec![sample] }
    }

    #[test]
    fn a_line_is_byte_for_byte_the_documented_form() {
        let digest = "07".repeat(32);
        let expected = format!(
            concat!(
                r#"{{"captureData":{{"endpointInput":{{"observedContentType":"text/csv","mode":"INPUT","#,
                r#""data":"40.5,\"Doctor, \"\"MD\"\"\",true\n,\"\",","encoding":"CSV"}},"#,
                r#""endpointOutput":{{"observedContentType":"text/csv; charset=utf-8","mode":"OUTPUT","#,
                r#""data":"1,0.25,0.75\n0","encoding":"CSV"}}}},"#,
                r#""eventMetadata":{{"eventId":"r1","#,
                r#""customAttributes":["key_id=k1","model_version=3","model_digest=sha-256:{digest}"],"#,
                r#""inferenceTime":"2025-12-01T12:00:00Z"}},"eventVersion":"0"}}"#,
                "\n"
            ),
            digest = digest
        );
        assert_eq!(encode(&example()).unwrap(), expected);
    }
}
