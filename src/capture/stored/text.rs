//! A request in the formats of text: CSV with a header, and JSON lines in SageMaker's form. What they hold has no types;
//! values are texts here, and whoever knows the model knows what they are.

use serde::Deserialize;

use super::{Row, Stored};
use crate::model::{Cell, Prediction, Value};

/// A field; `None` where there is nothing, which is not the empty text `""`.
type Field = Option<String>;

/// The request in a CSV object, if it is there.
pub(super) fn read_csv(key: &str, text: &str, request_id: &str) -> Result<Option<Stored>, String> {
    // A file of many samples is only taken apart where it can hold this one.
    if !text.contains(request_id) {
        return Ok(None);
    }
    let mut records = records(text)?.into_iter();
    let header: Vec<String> = records.next().unwrap_or_default().into_iter().map(Option::unwrap_or_default).collect();
    let place = |name: &str| {
        header.iter().position(|column| column == name).ok_or_else(|| format!("it has no column `{name}`"))
    };
    let id = place("request_id")?;
    let is_it = |record: &Vec<Field>| record.get(id).and_then(Option::as_deref) == Some(request_id);
    let lines: Vec<Vec<Field>> = records.skip_while(|record| !is_it(record)).take_while(is_it).collect();
    let Some(first) = lines.first() else { return Ok(None) };
    let [model, version, digest] = ["model_name", "model_version", "model_digest"].map(|name| {
        let field = place(name).map(|place| first.get(place).cloned().flatten());
        field.map(Option::unwrap_or_default)
    });
    let all = |prefix: &str| -> Vec<usize> {
        let is_one = |(_, name): &(usize, &String)| name.starts_with(prefix);
        header.iter().enumerate().filter(is_one).map(|(place, _)| place).collect()
    };
    let (features, classes) = (all("feature_"), all("probability_"));
    let (prediction, label, score) = (place("prediction")?, place("label")?, place("score")?);
    let row = |line: &Vec<Field>| {
        let field = |place: usize| line.get(place).cloned().flatten();
        let shares =
            classes.iter().filter_map(|place| field(*place)).map(|share| share.parse().ok()).collect::<Option<_>>();
        Some(Row {
            cells: features.iter().map(|place| cell(field(*place))).collect(),
            prediction: Prediction {
                value: Value::Text(field(prediction)?.into()),
                label: field(label).map(Into::into),
                score: field(score).map(|score| score.parse().ok()).unwrap_or_default(),
            },
            probabilities: shares?,
        })
    };
    let rows =
        lines.iter().map(row).collect::<Option<_>>().ok_or("a row has no prediction, or one that is no number")?;
    let names =
        |places: &[usize], prefix: &str| places.iter().map(|place| header[*place][prefix.len()..].to_owned()).collect();
    let stored = stored(key, &model?, &version?, &digest?, rows)?;
    Ok(Some(Stored {
        features: names(&features, "feature_"),
        classes: names(&classes, "probability_"),
        has_scores: true,
        ..stored
    }))
}

/// One line, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    capture_data: CaptureData,
    event_metadata: EventMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CaptureData {
    endpoint_input: Payload,
    endpoint_output: Payload,
}

#[derive(Deserialize)]
struct Payload {
    data: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EventMetadata {
    event_id: String,
    custom_attributes: Vec<String>,
}

/// The request in an object of JSON lines, if it is there.
pub(super) fn read_jsonl(key: &str, text: &str, request_id: &str) -> Result<Option<Stored>, String> {
    for line in text.lines().filter(|line| line.contains(request_id)) {
        let event: Event = serde_json::from_str(line).map_err(|error| error.to_string())?;
        if event.event_metadata.event_id != request_id {
            continue;
        }
        let attribute = |name: &str| {
            let found = event
                .event_metadata
                .custom_attributes
                .iter()
                .find_map(|text| text.strip_prefix(name)?.strip_prefix('='));
            found.ok_or_else(|| format!("a line has no custom attribute `{name}`"))
        };
        let model = key.split('/').next().unwrap_or_default();
        let CaptureData { endpoint_input, endpoint_output } = &event.capture_data;
        let (inputs, outputs) = (records(&endpoint_input.data)?, records(&endpoint_output.data)?);
        if inputs.len() != outputs.len() {
            return Err("a line has not as many answers as rows".to_owned());
        }
        let rows = inputs.into_iter().zip(outputs).map(|(asked, answered)| row(asked, answered)).collect::<Option<_>>();
        let rows = rows.ok_or("a line has an answer that is none")?;
        return stored(key, model, attribute("model_version")?, attribute("model_digest")?, rows).map(Some);
    }
    Ok(None)
}

/// A row as JSON lines have it: the features; the prediction, and then the probabilities.
fn row(asked: Vec<Field>, answered: Vec<Field>) -> Option<Row> {
    let mut answered = answered.into_iter();
    Some(Row {
        cells: asked.into_iter().map(cell).collect(),
        prediction: Prediction { value: Value::Text(answered.next()??.into()), label: None, score: None },
        probabilities: answered.map(|share| share?.parse().ok()).collect::<Option<_>>()?,
    })
}

fn cell(field: Field) -> Cell {
    field.map_or(Cell::Missing, |text| Cell::Text(text.into()))
}

fn stored(key: &str, model: &str, version: &str, digest: &str, rows: Vec<Row>) -> Result<Stored, String> {
    let wrong = |what: &str| format!("its {what} is not one");
    Ok(Stored {
        key: key.to_owned(),
        model: model.parse().map_err(|_| wrong("model's name"))?,
        version: version.parse().map_err(|_| wrong("version"))?,
        digest: digest.strip_prefix("sha-256:").and_then(|hex| hex.parse().ok()).ok_or_else(|| wrong("digest"))?,
        features: Vec::new(),
        protected: Vec::new(),
        classes: Vec::new(),
        has_types: false,
        has_scores: false,
        rows,
    })
}

/// The records of RFC 4180 in `text`; a line end at its end begins no other.
fn records(text: &str) -> Result<Vec<Vec<Field>>, String> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let (mut records, mut record) = (Vec::new(), Vec::new());
    let mut rest = text;
    loop {
        let (field, after) = field(rest)?;
        record.push(field);
        rest = match after.chars().next() {
            None => {
                records.push(record);
                return Ok(records);
            }
            Some(',') => &after[1..],
            Some('\n') => {
                records.push(std::mem::take(&mut record));
                &after[1..]
            }
            Some(_) => return Err("something follows a closing quote".to_owned()),
        };
    }
}

/// The field at the start, and what follows it.
fn field(text: &str) -> Result<(Field, &str), String> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', '\n']).unwrap_or(text.len());
        let (field, rest) = text.split_at(end);
        return Ok(((!field.is_empty()).then(|| field.to_owned()), rest));
    };
    let (mut value, mut rest) = (String::new(), quoted);
    loop {
        let (piece, after) = rest.split_once('"').ok_or("a quote is not closed")?;
        value.push_str(piece);
        match after.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                rest = more;
            }
            None => return Ok((Some(value), after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::jsonl::tests::example;
    use super::super::super::{csv, jsonl};
    use super::*;

    /// The rows of the example as text has them.
    fn check(stored: &Stored) {
        assert_eq!((stored.model.as_str(), stored.version.0, stored.digest.0), ("credit-score", 3, [7; 32]));
        let text = |text: &str| Cell::Text(text.into());
        assert_eq!(stored.rows[0].cells, [text("40.5"), text("Doctor, \"MD\""), text("true")]);
        assert_eq!(stored.rows[1].cells, [Cell::Missing, text(""), Cell::Missing]);
        assert_eq!(stored.rows[0].probabilities, [0.25, 0.75]);
        let values: Vec<_> = stored.rows.iter().map(|row| row.prediction.value.to_string()).collect();
        assert_eq!(values, ["1", "0"]);
        assert!(!stored.has_types);
    }

    #[test]
    fn a_request_is_read_back_from_text() {
        let mut contents = example();
        let mut other = contents.samples[0].clone();
        other.request_id = "r11".into();
        contents.samples.insert(0, other);
        let text = csv::encode(&contents);
        let stored = read_csv("k.csv", &text, "r1").unwrap().unwrap();
        check(&stored);
        assert_eq!((stored.features.len(), &stored.classes[..]), (3, &["Poor".to_owned(), "Good".to_owned()][..]));
        assert_eq!(stored.rows[0].prediction.label.as_deref(), Some("Good"));
        assert_eq!(read_csv("k.csv", &text, "r").unwrap(), None);
        let text = jsonl::encode(&contents).unwrap();
        check(&read_jsonl("credit-score/3/2025/12/01/12/a.jsonl", &text, "r1").unwrap().unwrap());
        assert_eq!(read_jsonl("credit-score/3/2025/12/01/12/a.jsonl", &text, "1").unwrap(), None);
    }

    #[test]
    fn what_is_no_object_of_samples_is_an_error() {
        assert!(read_csv("k.csv", "id,row\nr1,0\n", "r1").is_err());
        assert!(read_csv("k.csv", "request_id,\"row\nr1,0\n", "r1").is_err());
        assert!(read_jsonl("m/3/a.jsonl", "{\"r1\":1}\n", "r1").is_err());
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[a\",\n]{0,30}") {
            drop(records(&text));
        }
    }
}
