//! `POST /feedback`: what came true, by request id; and `GET /admin/models/{name}/accuracy`: how right each version was.
//!
//! A label that fits is answered with 202 when it is on the disk. What is wrong with others is told label by label; only
//! where none is left to keep is the whole request a 422. Another caller's request is answered as one that is not
//! remembered.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use hyper::body::Body;
use serde::Deserialize;
use serde_json::{Value, json};

use super::State;
use super::body::{self, BoxError};
use super::error::ApiError;
use super::head;
use super::infer::{authenticate, limited, overlooked};
use super::routes::{Answer, Journal, Room, json_answer};
use crate::feedback::{Batch, Label, Outcome, Problem, Said};
use crate::model::features::{FieldError, excerpt};

/// Mistakes that are told; as for features.
const ERRORS_MAX: usize = 10;

/// Bytes of a class's name.
const TEXT_MAX: usize = 256;

/// Letters of what was found, in an error.
const FOUND_MAX: usize = 64;

/// One member of the body, or all of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    request_id: String,
    #[serde(default)]
    row: u32,
    label: Option<Value>,
    /// One a row, from row 0; null where it is not known yet.
    labels: Option<Vec<Value>>,
    model: Option<String>,
}

/// What was read of a body.
#[derive(Debug, Default)]
struct Read {
    labels: Vec<Label>,
    errors: Vec<FieldError>,
}

/// `POST /feedback`.
pub(super) async fn take<B>(room: &Room, head: &Parts, body: B, journal: &mut Journal) -> Result<Answer, ApiError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let caller = authenticate(room, head, journal)?;
    let max_labels = room.state.feedback.max_labels().ok_or_else(ApiError::no_feedback)?;
    caller.may_label_any()?;
    head::check_media_type(&head.headers)?;
    let _in_flight = room.state.traffic.enter(room.config.max_in_flight).ok_or_else(ApiError::overloaded)?;
    // Labels are not charged, but no faster than the plan's rate.
    let exceeded = limited(room, &caller, room.state.quota.take_token(&caller, room.state.clock.now()).await)?;
    overlooked(room, &caller, exceeded);
    let body = body::read(body, room.config.max_body, room.config.body_timeout).await?;
    let Read { labels, mut errors } = read(&body, max_labels)?;
    journal.rows = labels.len();
    let batch = Batch {
        account: Arc::clone(&caller.account),
        key_id: Arc::clone(&caller.key_id),
        may_label: Arc::new(move |model| caller.may_label(model)),
        labels: labels.clone(),
    };
    let outcomes = if labels.is_empty() { Vec::new() } else { room.state.feedback.label(batch).await? };
    errors.extend(labels.iter().zip(&outcomes).filter_map(|(label, outcome)| error_of(label, outcome)));
    if !errors.is_empty() && outcomes.iter().all(|outcome| matches!(outcome, Outcome::Refused(_))) {
        return Err(ApiError::no_label_fits(errors, ERRORS_MAX));
    }
    Ok(receipt(&outcomes, &errors))
}

fn receipt(outcomes: &[Outcome], errors: &[FieldError]) -> Answer {
    let count = |wanted: &Outcome| outcomes.iter().filter(|outcome| *outcome == wanted).count();
    let refused = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Refused(_))).count();
    let listed: Vec<_> = errors.iter().take(ERRORS_MAX).map(listed).collect();
    let mut answer = json_answer(&json!({
        "accepted": outcomes.len() - refused,
        "matched": count(&Outcome::Matched),
        "changed": count(&Outcome::Changed),
        "duplicate": count(&Outcome::Duplicate),
        "unknown": count(&Outcome::Unknown),
        "refused": errors.len(),
        "errors": listed,
    }));
    *answer.status_mut() = StatusCode::ACCEPTED;
    answer
}

fn listed(error: &FieldError) -> Value {
    let FieldError { row, feature, expected, found } = error;
    json!({ "row": row, "feature": feature, "expected": expected, "found": found })
}

/// The labels in a body: an object, or a list of such.
fn read(body: &[u8], max_labels: usize) -> Result<Read, ApiError> {
    let is_list = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let items: serde_json::Result<Vec<Item>> =
        if is_list { serde_json::from_slice(body) } else { serde_json::from_slice(body).map(|item| vec![item]) };
    let items = items.map_err(|error| ApiError::malformed_json(error.to_string()))?;
    let labels: usize = items.iter().map(|item| item.labels.as_ref().map_or(1, Vec::len)).sum();
    if labels > max_labels {
        return Err(ApiError::too_many_labels(max_labels));
    }
    let mut read = Read::default();
    for item in items {
        read.item(item);
    }
    Ok(read)
}

impl Read {
    fn item(&mut self, item: Item) {
        let Item { request_id, row, label, labels, model } = item;
        if !head::is_request_id(request_id.as_bytes()) {
            return self.mistake(row, "request_id", "the X-Request-Id of an answer", &request_id);
        }
        match (label, labels) {
            (Some(value), None) => self.label(&request_id, row, model.as_deref(), &value),
            (None, Some(values)) => {
                for (row, value) in (row..).zip(&values) {
                    if !value.is_null() {
                        self.label(&request_id, row, model.as_deref(), value);
                    }
                }
            }
            (None, None) => self.mistake(row, "label", "a class or a number, or `labels` for several rows", "nothing"),
            (Some(_), Some(_)) => self.mistake(row, "labels", "either this or `label`", "both"),
        }
    }

    fn label(&mut self, request_id: &str, row: u32, model: Option<&str>, value: &Value) {
        let said = match value {
            Value::Number(number) => number.as_f64().filter(|number| number.is_finite()).map(Said::Number),
            Value::String(text) if text.len() <= TEXT_MAX => Some(Said::Text(text.as_str().into())),
            _ => None,
        };
        match said {
            Some(said) => {
                self.labels.push(Label { request_id: request_id.into(), row, model: model.map(Into::into), said });
            }
            None => self.mistake(row, "label", "a number, or the name of a class", &value.to_string()),
        }
    }

    fn mistake(&mut self, row: u32, field: &str, expected: &str, found: &str) {
        self.errors.push(error(row, field, expected, found));
    }
}

fn error(row: u32, field: &str, expected: &str, found: &str) -> FieldError {
    FieldError {
        row: row as usize,
        feature: field.to_owned(),
        expected: expected.to_owned(),
        found: excerpt(found, FOUND_MAX),
    }
}

fn error_of(label: &Label, outcome: &Outcome) -> Option<FieldError> {
    let Outcome::Refused(problem) = outcome else { return None };
    let said = label.said.to_string();
    let (row, model) = (label.row, label.model.as_deref());
    Some(match problem {
        Problem::NoSuchRow { rows } => {
            error(row, "row", &format!("a row of `{}`, which had {rows}", label.request_id), &row.to_string())
        }
        Problem::NotAClass { classes } => {
            error(row, "label", &format!("one of {}", excerpt(&classes.join(", "), 256)), &said)
        }
        Problem::NotANumber => error(row, "label", "a number", &said),
        Problem::WhichModel => {
            error(row, "model", "the `model`, because requests of several have this id", model.unwrap_or("nothing"))
        }
        Problem::OutOfScope => {
            error(row, "request_id", "an answer of a model that the key may label", &label.request_id)
        }
    })
}

/// `GET /admin/models/{name}/accuracy`.
pub(super) fn accuracy(state: &State, name: &str) -> Result<Answer, ApiError> {
    let entry =
        state.models.snapshot().iter().find(|(known, _)| known.as_str() == name).map(|(known, _)| known.clone());
    let model = entry.ok_or_else(|| ApiError::not_served(&crate::model::NotServed::Unknown, state.poll_interval))?;
    let report = state.feedback.report(&model).ok_or_else(ApiError::no_feedback)?;
    Ok(json_answer(&json!(report)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The labels of a body as `id row said`, or the fields that are wrong.
    #[track_caller]
    fn check(body: &str, expected: &[&str], wrong: &[&str]) {
        let Read { labels, errors } = read(body.as_bytes(), 4).unwrap();
        let labels: Vec<_> =
            labels.iter().map(|label| format!("{} {} {}", label.request_id, label.row, label.said)).collect();
        let errors: Vec<_> = errors.iter().map(|error| &*error.feature).collect();
        assert_eq!((labels, errors), (expected.iter().map(ToString::to_string).collect(), wrong.to_vec()));
    }

    #[test]
    fn a_body_is_one_answer_or_a_list_of_them() {
        check(r#"{"request_id":"a","label":"Good"}"#, &["a 0 Good"], &[]);
        check(r#"{"request_id":"a","row":3,"label":2}"#, &["a 3 2"], &[]);
        check(r#"{"request_id":"a","labels":["x",null,2.5]}"#, &["a 0 x", "a 2 2.5"], &[]);
        check(
            r#" [{"request_id":"a","label":1},{"request_id":"b","model":"m","label":-1}]"#,
            &["a 0 1", "b 0 -1"],
            &[],
        );
        check("[]", &[], &[]);
    }

    #[test]
    fn what_is_no_label_is_named() {
        check(r#"{"request_id":"a"}"#, &[], &["label"]);
        check(r#"{"request_id":"a","label":1,"labels":[1]}"#, &[], &["labels"]);
        check(r#"[{"request_id":"a b","label":1},{"request_id":"a","label":1}]"#, &["a 0 1"], &["request_id"]);
        check(r#"{"request_id":"a","labels":[true,[1],{},"x"]}"#, &["a 3 x"], &["label", "label", "label"]);
        check(&format!(r#"{{"request_id":"a","label":"{}"}}"#, "x".repeat(257)), &[], &["label"]);
    }

    #[test]
    fn a_body_that_is_none_is_refused_whole() {
        for body in
            ["", "{}", "[", "7", r#"{"request_id":"a","label":1,"more":2}"#, r#"{"request_id":"a","row":-1,"label":1}"#]
        {
            assert!(read(body.as_bytes(), 4).is_err(), "{body}");
        }
        assert!(read(br#"{"request_id":"a","labels":[1,1,1,1,1]}"#, 4).is_err());
    }
}
