//! Requests that failed, as samples of their own: the error the caller saw, and what was asked as far as it may be kept.
//!
//! Of a body that is JSON the features the model knows are kept, by its names for them and protected as in every sample; of
//! names it does not know nothing is, because no rule can be for them. A body that is not JSON, or long, leaves its length.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::Record;
use super::protect::{Policy, Secret};
use crate::model::features::{Feature, Raw, Settings};
use crate::model::signature::{Column, Kind, Signature};
use crate::model::{Cell, Features, Identity, Outputs};

/// Longer bodies are not looked into: it happens while the caller waits for its error.
const BODY_MAX: usize = 64 << 10;

/// Rows of a body that are kept…
const ROWS_MAX: usize = 10;

/// …and bytes of them as JSON.
const INPUT_MAX: usize = 8 << 10;

/// The columns of such samples, in the order of the cells.
const COLUMNS: [(&str, Kind); 4] =
    [("error_code", Kind::Text), ("error_status", Kind::Long), ("body_bytes", Kind::Long), ("input", Kind::Text)];

/// A request that failed after a version was found for it.
#[derive(Debug)]
pub struct Failure<'a> {
    /// The id the caller was given.
    pub request_id: &'a str,
    /// When it failed.
    pub time: Timestamp,
    /// Which version was asked.
    pub model: &'a Arc<Identity>,
    /// What callers may send to it.
    pub features: &'a Features,
    /// The public id of the caller's key.
    pub key_id: &'a Arc<str>,
    /// The error's code.
    pub code: &'static str,
    /// The error's status.
    pub status: u16,
    /// What was sent.
    pub body: &'a [u8],
}

/// Makes records of failures.
#[derive(Debug)]
pub(super) struct Recorder {
    protect: Policy,
    secret: Option<Secret>,
    columns: Arc<Features>,
}

impl Recorder {
    pub(super) fn new(protect: Policy, secret: Option<Secret>) -> Self {
        let column = |(name, kind): (&str, Kind)| Column { name: name.into(), kind, required: false };
        let signature = Signature::Columns(COLUMNS.map(column).into());
        let columns = Features::new(&signature, Settings::default());
        let columns = Arc::new(columns.expect("four names that differ, without settings, are features"));
        Self { protect, secret, columns }
    }

    /// A record without an answer, whose only row is the failure.
    pub(super) fn record(&self, failure: &Failure<'_>) -> Record {
        let input = self.input(failure.features, failure.body);
        let mut rows = self.columns.rows();
        rows.begin();
        let values = [
            Raw::Text(failure.code),
            Raw::Integer(failure.status.into()),
            Raw::Integer(i64::try_from(failure.body.len()).unwrap_or(i64::MAX)),
            input.as_deref().map_or(Raw::Null, Raw::Text),
        ];
        for ((name, _), value) in COLUMNS.into_iter().zip(values) {
            rows.set(name, value);
        }
        rows.end();
        Record {
            request_id: failure.request_id.into(),
            time: failure.time,
            model: Arc::clone(failure.model),
            features: Arc::clone(&self.columns),
            key_id: Arc::clone(failure.key_id),
            inputs: rows.finish().expect("each value is of its column's type"),
            outputs: Outputs::new(Vec::new(), Arc::default(), Vec::new()),
        }
    }

    /// The first rows of a body as JSON, protected; `None` where there is nothing to keep.
    fn input(&self, features: &Features, body: &[u8]) -> Option<String> {
        let body: Value = (body.len() <= BODY_MAX).then(|| serde_json::from_slice(body).ok()).flatten()?;
        let rows = match body.get("data").unwrap_or(&body) {
            Value::Array(rows) => &rows[..],
            row => std::slice::from_ref(row),
        };
        let mut kept = String::new();
        for row in rows.iter().take(ROWS_MAX).filter_map(Value::as_object) {
            let row = Value::Object(self.row(features, row)).to_string();
            if kept.len() + row.len() + 2 > INPUT_MAX {
                break;
            }
            kept.push(if kept.is_empty() { '[' } else { ',' });
            kept.push_str(&row);
        }
        (!kept.is_empty()).then(|| kept + "]")
    }

    fn row(&self, features: &Features, row: &Map<String, Value>) -> Map<String, Value> {
        let kept = |feature: &Feature| {
            let value = row.get(&*feature.field).or_else(|| row.get(&*feature.name))?;
            let cell = self.protect.of(feature).apply(&feature.name, &cell(value)?, self.secret.as_ref()).into_owned();
            Some((feature.name.to_string(), json(cell)))
        };
        features.list().iter().filter_map(kept).collect()
    }
}

/// A value as a cell; what is nested is none.
fn cell(value: &Value) -> Option<Cell> {
    Some(match value {
        Value::Null => Cell::Missing,
        Value::Bool(value) => Cell::Boolean(*value),
        Value::Number(number) => {
            number.as_i64().map_or_else(|| number.as_f64().map(Cell::Float), |n| Some(Cell::Integer(n)))?
        }
        Value::String(text) => Cell::Text(text.as_str().into()),
        Value::Array(_) | Value::Object(_) => return None,
    })
}

fn json(cell: Cell) -> Value {
    match cell {
        Cell::Missing => Value::Null,
        Cell::Boolean(value) => value.into(),
        Cell::Integer(value) => value.into(),
        Cell::Float(value) => value.into(),
        Cell::Text(text) => Value::String(text.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features() -> Features {
        let column = |name: &str, kind| Column { name: name.into(), kind, required: true };
        let columns = [("Age", Kind::Long), ("SSN", Kind::Text), ("Name", Kind::Text), ("Income", Kind::Double)];
        let rename = [("idade".to_owned(), "Age".to_owned())].into();
        let signature = Signature::Columns(columns.map(|(name, kind)| column(name, kind)).into());
        Features::new(&signature, Settings { rename, ..Settings::default() }).unwrap()
    }

    fn recorder() -> Recorder {
        let protect = Policy {
            redact: vec!["SSN".to_owned()],
            hash: vec!["Name".to_owned()],
            bucket: [("Income".to_owned(), 1000.0)].into(),
        };
        Recorder::new(protect, Some(Secret::of(&[1; 32])))
    }

    #[track_caller]
    fn check(body: &str, expected: Option<&str>) {
        assert_eq!(recorder().input(&features(), body.as_bytes()).as_deref(), expected, "{body}");
    }

    #[test]
    fn known_features_are_kept_by_the_models_names_and_no_others() {
        check(r#"{"idade":"old","more":1}"#, Some(r#"[{"Age":"old"}]"#));
        check(r#"{"data":[{"Age":4.5},{"Age":null},7]}"#, Some(r#"[{"Age":4.5},{"Age":null}]"#));
        check(r#"{"data":{"Age":[1],"Income":1999}}"#, Some(r#"[{"Income":1000}]"#));
        check("{", None);
        check("[]", None);
        check("7", None);
    }

    #[test]
    fn what_is_protected_is_protected_here_too() {
        let body = r#"{"SSN":"123-45","Name":"Ada","Income":"12345 a year"}"#;
        let kept = recorder().input(&features(), body.as_bytes()).unwrap();
        let kept: Value = serde_json::from_str(&kept).unwrap();
        assert_eq!((&kept[0]["SSN"], &kept[0]["Income"]), (&Value::Null, &Value::Null));
        assert_eq!(kept[0]["Name"].as_str().map(str::len), Some(32));
    }

    #[test]
    fn little_is_kept_of_a_long_body() {
        let row = format!(r#"{{"Age":"{}"}}"#, "x".repeat(3000));
        let rows = |count| format!("[{}]", vec![row.clone(); count].join(","));
        let kept = recorder().input(&features(), rows(9).as_bytes()).unwrap();
        assert!(kept.len() <= INPUT_MAX && kept.matches("Age").count() == 2, "{}", kept.len());
        check(&rows(40), None);
        let small = format!("[{}]", vec![r#"{"Age":1}"#; 30].join(","));
        assert_eq!(recorder().input(&features(), small.as_bytes()).unwrap().matches("Age").count(), ROWS_MAX);
    }
}
