//! A request as the objects of a sink have it, in any of the formats: found by its id, read back row by row.
//!
//! Objects are looked at one after the other, newest day first, so a search should name the model and the day: a
//! partition is skipped without being opened.

use std::sync::Arc;

use bytes::Bytes;
use jiff::civil::Date;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::{Field, Row as Line};
use parquet::schema::types::Type;

use crate::model::{Cell, Digest, ModelName, Prediction, Value, Version};

use super::parquet::PROTECTED;
use super::segment::Row;
use super::sink::{ReadError, Sink};

mod text;

/// A search opens this many objects at most.
const OBJECTS_MAX: usize = 10_000;

/// What to look for, and where.
#[derive(Clone, Debug)]
pub struct Search {
    /// The id the caller was given.
    pub request_id: String,
    /// Only samples of this model.
    pub model: Option<ModelName>,
    /// Only samples of these days; all if empty.
    pub dates: Vec<Date>,
}

/// A request and its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The object it was found in.
    pub key: String,
    /// The model that answered…
    pub model: ModelName,
    /// …in this version…
    pub version: Version,
    /// …which has these bytes.
    pub digest: Digest,
    /// The model's names of the features, in the order of the cells. Of names that differ in case only, all but the first
    /// have a number behind them.
    pub features: Vec<String>,
    /// Features whose values are not what was asked, and what was done to them: `SSN was left out`. Only Parquet tells.
    pub protected: Vec<String>,
    /// The labels of the classes, in the order of the probabilities.
    pub classes: Vec<String>,
    /// Whether cells and predictions have their types; if not they are texts.
    pub has_types: bool,
    /// Whether scores were stored, where there are any.
    pub has_scores: bool,
    /// What was asked and answered.
    pub rows: Vec<Row>,
}

/// Why nothing was found.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The sink does not answer.
    #[error(transparent)]
    Sink(#[from] ReadError),
    /// There is no such row.
    #[error(
        "no sample of request `{request_id}` in {objects} objects; it may not have been sampled or flushed, or lie under \
         another model or day"
    )]
    NotFound {
        /// The id.
        request_id: String,
        /// How many objects were opened.
        objects: usize,
    },
    /// Too much to look at.
    #[error("{0} objects may hold the sample, more than {OBJECTS_MAX}: name its model and its day")]
    TooMany(usize),
    /// An object that is not what a gateway writes.
    #[error("`{key}` is not an object of samples: {reason}")]
    Unreadable {
        /// The object.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

impl Search {
    /// Looks for the request.
    ///
    /// # Errors
    /// When it is not there, or what is there cannot be read.
    pub async fn run(&self, sink: &Sink) -> Result<Stored, SearchError> {
        let mut keys = Vec::new();
        // JSON lines lie in folders of other names.
        match &self.model {
            Some(model) => {
                keys.extend(sink.list(&format!("model={model}/")).await?);
                keys.extend(sink.list(&format!("{model}/")).await?);
            }
            None => keys.extend(sink.list("").await?),
        }
        keys.retain(|key| self.may_be_in(key));
        if keys.len() > OBJECTS_MAX {
            return Err(SearchError::TooMany(keys.len()));
        }
        keys.sort_by_key(|key| std::cmp::Reverse(date_of(key)));
        for key in &keys {
            let object = sink.get(key).await?;
            let found = match extension(key) {
                "parquet" => read(key, object, &self.request_id),
                "csv" => utf8(&object).and_then(|object| text::read_csv(key, object, &self.request_id)),
                _ => utf8(&object).and_then(|object| text::read_jsonl(key, object, &self.request_id)),
            };
            let unreadable = |reason| SearchError::Unreadable { key: key.clone(), reason };
            if let Some(stored) = found.map_err(unreadable)? {
                return Ok(stored);
            }
        }
        Err(SearchError::NotFound { request_id: self.request_id.clone(), objects: keys.len() })
    }

    fn may_be_in(&self, key: &str) -> bool {
        let is_ours = match extension(key) {
            "parquet" | "csv" => key.starts_with("model="),
            "jsonl" => !key.starts_with('_'),
            _ => false,
        };
        is_ours && (self.dates.is_empty() || date_of(key).is_some_and(|date| self.dates.contains(&date)))
    }
}

fn extension(key: &str) -> &str {
    key.rsplit_once('.').map_or("", |(_, extension)| extension)
}

/// The day in `…/date=<YYYY-MM-DD>/…`, or in `<name>/<version>/<YYYY>/<MM>/<DD>/…`.
fn date_of(key: &str) -> Option<Date> {
    if let Some(date) = partition(key, "date") {
        return date.parse().ok();
    }
    let [year, month, day] = key.split('/').skip(2).take(3).collect::<Vec<_>>().try_into().ok()?;
    format!("{year}-{month}-{day}").parse().ok()
}

fn utf8(object: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(object).map_err(said)
}

/// The value of `name` in `…/<name>=<value>/…`.
fn partition<'k>(key: &'k str, name: &str) -> Option<&'k str> {
    key.split('/').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

/// The request in an object, if it is there. Only the column of ids is read until then.
fn read(key: &str, object: Bytes, request_id: &str) -> Result<Option<Stored>, String> {
    let reader = SerializedFileReader::new(object).map_err(said)?;
    let file = reader.metadata().file_metadata();
    let ids = file.schema().get_fields().first().ok_or("it has no columns")?;
    let ids = Type::group_type_builder("sample").with_fields(vec![Arc::clone(ids)]).build().map_err(said)?;
    let mut ids = reader.get_row_iter(Some(ids)).map_err(said)?;
    let is_it = |line: &Line| line.get_column_iter().next().is_some_and(|(_, id)| is_text(id, request_id));
    let Some(first) = ids.position(|line| line.as_ref().is_ok_and(is_it)) else { return Ok(None) };

    let lines = reader.get_row_iter(None).map_err(said)?.skip(first);
    let lines: Result<Vec<Line>, _> = lines.take_while(|line| line.as_ref().is_ok_and(is_it)).collect();
    let metadata = file.key_value_metadata().into_iter().flatten();
    let protected = metadata.filter_map(|entry| {
        Some(format!("{} was {}", entry.key.strip_prefix(PROTECTED)?, done_to(entry.value.as_deref())))
    });
    let protected = protected.collect();
    let stored = stored(key, protected, &lines.map_err(said)?);
    stored.map(Some).ok_or_else(|| "its columns are not those of samples".to_owned())
}

/// What a protection does to a value.
fn done_to(protection: Option<&str>) -> &'static str {
    match protection {
        Some("hash") => "hashed",
        Some("bucket") => "rounded",
        _ => "left out",
    }
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn is_text(field: &Field, expected: &str) -> bool {
    matches!(field, Field::Str(text) if text == expected)
}

fn stored(key: &str, protected: Vec<String>, lines: &[Line]) -> Option<Stored> {
    let columns: Vec<(&String, &Field)> = lines.first()?.get_column_iter().collect();
    let fixed = |name: &str| columns.iter().find(|(column, _)| *column == name).map(|(_, field)| *field);
    let names = |prefix: &str| -> Vec<String> {
        columns.iter().filter_map(|(name, _)| name.strip_prefix(prefix)).map(str::to_owned).collect()
    };
    let (Field::Str(model), Field::Long(version)) = (fixed("model_name")?, fixed("model_version")?) else {
        return None;
    };
    let Field::Str(digest) = fixed("model_digest")? else { return None };
    Some(Stored {
        key: key.to_owned(),
        model: model.parse().ok()?,
        version: Version(version.cast_unsigned()),
        digest: digest.strip_prefix("sha-256:")?.parse().ok()?,
        features: names("feature_"),
        protected,
        classes: names("probability_"),
        has_types: true,
        has_scores: true,
        rows: lines.iter().map(row).collect::<Option<_>>()?,
    })
}

fn row(line: &Line) -> Option<Row> {
    let mut row = Row {
        cells: Vec::new(),
        prediction: Prediction { value: Value::Integer(0), label: None, score: None },
        probabilities: Vec::new(),
    };
    for (name, field) in line.get_column_iter() {
        match (name.as_str(), field) {
            ("prediction", field) => row.prediction.value = value(field)?,
            ("label", Field::Str(label)) => row.prediction.label = Some(label.as_str().into()),
            ("score", Field::Double(score)) => row.prediction.score = Some(*score),
            (name, Field::Float(share)) if name.starts_with("probability_") => row.probabilities.push(*share),
            (name, field) if name.starts_with("feature_") => row.cells.push(cell(field)?),
            _ => (),
        }
    }
    Some(row)
}

fn cell(field: &Field) -> Option<Cell> {
    Some(match field {
        Field::Null => Cell::Missing,
        Field::Bool(value) => Cell::Boolean(*value),
        Field::Long(value) => Cell::Integer(*value),
        Field::Double(value) => Cell::Float(*value),
        Field::Str(text) => Cell::Text(text.as_str().into()),
        _ => return None,
    })
}

fn value(field: &Field) -> Option<Value> {
    Some(match field {
        Field::Long(value) => Value::Integer(*value),
        Field::Double(value) => Value::Number(*value),
        Field::Str(text) => Value::Text(text.as_str().into()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::jsonl::tests::example;
    use super::super::parquet::encode;
    use super::super::protect::Protection;
    use super::*;

    #[test]
    fn a_request_is_read_back_as_it_was_written() {
        let mut contents = example();
        let mut other = contents.samples[0].clone();
        other.request_id = "r0".into();
        contents.samples.insert(0, other);
        contents.header.schema.features[0].protection = Protection::Bucket(0.5);
        let object = Bytes::from(encode(&contents).unwrap());
        let found = read("key", object.clone(), "r1").unwrap().unwrap();
        assert_eq!(found.rows, contents.samples[1].rows);
        assert_eq!((found.model.as_str(), found.version, found.digest), ("credit-score", Version(3), Digest([7; 32])));
        assert_eq!(found.features, ["Age", "Job, \"held\"", "Member"]);
        assert_eq!(
            (found.protected, found.classes),
            (vec!["Age was rounded".into()], vec!["Poor".into(), "Good".into()])
        );
        assert_eq!(read("key", object, "r").unwrap(), None);
    }

    #[test]
    fn what_is_no_parquet_file_is_an_error() {
        assert!(read("key", Bytes::from_static(b"{}"), "r").is_err());
    }

    #[track_caller]
    fn check(key: &str, dates: &[&str], expected: bool) {
        let dates = dates.iter().map(|date| date.parse().unwrap()).collect();
        let search = Search { request_id: "r".to_owned(), model: None, dates };
        assert_eq!(search.may_be_in(key), expected, "{key}");
    }

    #[test]
    fn only_partitions_of_the_day_are_opened() {
        let key = "model=m/version=3/date=2025-12-01/hour=12/a.parquet";
        check(key, &[], true);
        check(key, &["2025-12-01"], true);
        check(key, &["2025-11-30", "2025-12-02"], false);
        check("model=m/version=3/date=2025-12-01/hour=12/a.csv", &["2025-12-01"], true);
        check("m/3/2025/12/01/12/a.jsonl", &["2025-12-01"], true);
        check("m/3/2025/12/01/12/a.jsonl", &["2025-12-02"], false);
        check("_labels/m/3/2025/12/01/12/a.jsonl", &[], false);
        check("_labels/model=m/version=3/date=2025-12-01/hour=12/a.parquet", &[], false);
        check("_manifest/date=2025-12-01/a.json", &[], false);
    }
}
