//! Files read back with the reader of the `parquet` crate.

use ::parquet::basic::ConvertedType;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;
use bytes::Bytes;

use crate::capture::protect::Protection;
use crate::capture::segment::{self, Header};
use crate::model::Prediction;

use super::*;

fn feature(name: &str, kind: Kind) -> segment::Column {
    segment::Column { name: name.into(), kind, protection: Protection::Keep }
}

fn contents(features: Vec<segment::Column>, prediction: ValueKind, classes: &[&str], rows: Vec<Row>) -> Contents {
    let schema = Schema {
        model: "credit-score".parse().unwrap(),
        version: 3,
        digest: [7; 32],
        prediction,
        features,
        classes: classes.iter().map(|class| Arc::from(*class)).collect(),
    };
    let sample = Sample { request_id: "r1".into(), time: 1_764_590_400_123, key_id: "k1".into(), rows };
    Contents { header: Header { id: 1, hour: 490_164, schema }, samples: vec![sample] }
}

fn row(cells: Vec<Cell>, value: Value, score: Option<f64>, probabilities: Vec<f32>) -> Row {
    let label = score.map(|_| "Good".into());
    Row { cells, prediction: Prediction { value, label, score }, probabilities }
}

fn reader(contents: &Contents) -> SerializedFileReader<Bytes> {
    SerializedFileReader::new(encode(contents).unwrap().into()).unwrap()
}

/// Writes `contents`, reads it back, and checks every column of every line.
#[track_caller]
fn check_lines(contents: &Contents, expected: &[&[(&str, Field)]]) {
    let lines: Vec<_> = reader(contents).get_row_iter(None).unwrap().map(Result::unwrap).collect();
    let lines: Vec<Vec<_>> = lines
        .iter()
        .map(|line| line.get_column_iter().map(|(name, field)| (name.as_str(), field.clone())).collect())
        .collect();
    assert_eq!(lines, expected);
}

fn words(text: &str) -> Field {
    Field::Str(text.to_owned())
}

#[test]
fn a_classification_is_read_back_in_the_documented_order() {
    let kinds = [Kind::Double, Kind::Float, Kind::Integer, Kind::Long, Kind::Boolean, Kind::Text];
    let features = "abcdef".chars().zip(kinds).map(|(name, kind)| feature(&name.to_string(), kind)).collect();
    let cells = vec![
        Cell::Float(0.1),
        Cell::Float(-2.5),
        Cell::Integer(-7),
        Cell::Integer(i64::MAX),
        Cell::Boolean(true),
        Cell::Text("Zürich".into()),
    ];
    let full = row(cells, Value::Integer(2), Some(0.875), vec![0.125, 0.875]);
    let empty = row(vec![Cell::Missing; 6], Value::Integer(0), None, Vec::new());
    let fixed = |index| {
        [
            ("request_id", words("r1")),
            ("row", Field::Int(index)),
            ("time", Field::TimestampMillis(1_764_590_400_123)),
            ("model_name", words("credit-score")),
            ("model_version", Field::Long(3)),
            ("model_digest", words(&format!("sha-256:{}", "07".repeat(32)))),
            ("key_id", words("k1")),
        ]
    };
    let first = [
        ("feature_a", Field::Double(0.1)),
        ("feature_b", Field::Double(-2.5)),
        ("feature_c", Field::Long(-7)),
        ("feature_d", Field::Long(i64::MAX)),
        ("feature_e", Field::Bool(true)),
        ("feature_f", words("Zürich")),
        ("prediction", Field::Long(2)),
        ("label", words("Good")),
        ("score", Field::Double(0.875)),
        ("probability_Poor", Field::Float(0.125)),
        ("probability_Good", Field::Float(0.875)),
    ];
    let second = first.clone().map(|(name, _)| (name, if name == "prediction" { Field::Long(0) } else { Field::Null }));
    let contents = contents(features, ValueKind::Integer, &["Poor", "Good"], vec![full, empty]);
    let lines = [[&fixed(0)[..], &first].concat(), [&fixed(1)[..], &second].concat()];
    check_lines(&contents, &[&lines[0], &lines[1]]);
}

/// Writes one answer and checks how its prediction is read.
#[track_caller]
fn check_prediction(kind: ValueKind, value: Value, expected: &Field) {
    let contents = contents(Vec::new(), kind, &[], vec![row(Vec::new(), value, None, Vec::new())]);
    let line = reader(&contents).get_row_iter(None).unwrap().next().unwrap().unwrap();
    let (_, found) = line.get_column_iter().find(|(name, _)| *name == "prediction").unwrap();
    assert_eq!(found, expected);
}

#[test]
fn predictions_have_the_type_of_the_model() {
    check_prediction(ValueKind::Integer, Value::Integer(-1), &Field::Long(-1));
    check_prediction(ValueKind::Number, Value::Number(2.5), &Field::Double(2.5));
    check_prediction(ValueKind::Text, Value::Text("Poor".into()), &words("Poor"));
    check_prediction(ValueKind::Text, Value::Integer(1), &Field::Null);
}

#[test]
fn names_that_differ_in_case_only_get_a_number() {
    let names = ["Age", "age", "AGE", "age_2", "ÄGE", "äge"];
    let features = names.map(|name| feature(name, Kind::Double)).into();
    let contents = contents(features, ValueKind::Number, &["a", "A"], Vec::new());
    let found: Vec<_> = columns(&contents.header.schema).into_iter().map(|column| column.name).skip(7).collect();
    let expected = [
        "feature_Age",
        "feature_age_2",
        "feature_AGE_3",
        "feature_age_2_2",
        "feature_ÄGE",
        "feature_äge_2",
        "prediction",
        "label",
        "score",
        "probability_a",
        "probability_A_2",
    ];
    assert_eq!(found, expected);
}

#[test]
fn the_file_says_what_it_is() {
    let contents = contents(vec![feature("a.b \"c\"", Kind::Text)], ValueKind::Number, &[], Vec::new());
    let reader = reader(&contents);
    let metadata = reader.metadata().file_metadata();
    let entries = metadata.key_value_metadata().unwrap().iter();
    let entries: Vec<_> = entries.map(|entry| (entry.key.as_str(), entry.value.as_deref().unwrap())).collect();
    let digest = format!("sha-256:{}", "07".repeat(32));
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(entries, [("modelgate.schema", "1"), ("modelgate.digest", &*digest), ("modelgate.gateway", version)]);
    let columns = metadata.schema_descr();
    assert_eq!(columns.column(0).converted_type(), ConvertedType::UTF8);
    assert_eq!(columns.column(2).converted_type(), ConvertedType::TIMESTAMP_MILLIS);
}
