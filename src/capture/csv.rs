//! A segment as CSV: the columns of the [Parquet file](super::parquet) in the same order, with a header.
//!
//! As RFC 4180 has it, but for line ends of one byte. What is missing is empty, and an empty text is `""`. Numbers have as
//! many digits as it takes to read the same number again; times are UTC with milliseconds.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::model::{Cell, Digest, Value};

use super::parquet::{Line, Source, columns, lines};
use super::segment::{Contents, Schema};

/// Writes a segment as CSV.
pub(super) fn encode(contents: &Contents) -> String {
    let schema = &contents.header.schema;
    let columns = columns(schema);
    let mut out = String::new();
    put_line(&mut out, &columns, |out, column| put_text(out, &column.name));
    for line in lines(contents) {
        put_line(&mut out, &columns, |out, column| put(out, schema, column.source, &line));
    }
    out
}

fn put_line<T>(out: &mut String, fields: &[T], put: impl Fn(&mut String, &T)) {
    for (index, field) in fields.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        put(out, field);
    }
    out.push('\n');
}

fn put(out: &mut String, schema: &Schema, source: Source, line: &Line<'_>) {
    let prediction = &line.row.prediction;
    match source {
        Source::RequestId => put_text(out, &line.sample.request_id),
        Source::Row => put_number(out, line.index),
        Source::Time => out.push_str(&time(line.sample.time)),
        Source::ModelName => put_text(out, schema.model.as_str()),
        Source::ModelVersion => put_number(out, schema.version),
        Source::ModelDigest => put_number(out, Digest(schema.digest)),
        Source::KeyId => put_text(out, &line.sample.key_id),
        Source::Feature(index, _) => put_cell(out, line.row.cells.get(index).unwrap_or(&Cell::Missing)),
        Source::Prediction(_) => put_value(out, &prediction.value),
        Source::Label => prediction.label.iter().for_each(|label| put_text(out, label)),
        Source::Score => prediction.score.iter().for_each(|score| put_number(out, score)),
        Source::Probability(index) => {
            line.row.probabilities.get(index).iter().for_each(|share| put_number(out, share));
        }
    }
}

fn time(millisecond: i64) -> String {
    let time = Timestamp::from_millisecond(millisecond);
    time.map(|time| time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()).unwrap_or_default()
}

/// Appends a cell as one field.
pub(super) fn put_cell(out: &mut String, cell: &Cell) {
    match cell {
        Cell::Missing => (),
        Cell::Boolean(value) => put_number(out, value),
        Cell::Integer(value) => put_number(out, value),
        Cell::Float(value) => put_number(out, value),
        Cell::Text(text) => put_text(out, text),
    }
}

/// Appends a prediction as one field.
pub(super) fn put_value(out: &mut String, value: &Value) {
    match value {
        Value::Integer(value) => put_number(out, value),
        Value::Number(value) => put_number(out, value),
        Value::Text(text) => put_text(out, text),
    }
}

/// Appends what has no comma, quote or line end in it.
pub(super) fn put_number(out: &mut String, number: impl std::fmt::Display) {
    write!(out, "{number}").expect("a String takes all that is written");
}

/// Appends a text, in quotes where it needs them.
pub(crate) fn put_text(out: &mut String, text: &str) {
    if text.is_empty() || text.contains(['"', ',', '\n', '\r']) || text.trim() != text {
        put_number(out, format_args!("\"{}\"", text.replace('"', "\"\"")));
    } else {
        out.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::super::jsonl::tests::example;
    use super::*;

    #[test]
    fn every_column_of_the_table_is_there_and_texts_are_quoted_where_they_need_it() {
        let expected = concat!(
            "request_id,row,time,model_name,model_version,model_digest,key_id,feature_Age,\"feature_Job, \"\"held\"\"\",",
            "feature_Member,prediction,label,score,probability_Poor,probability_Good\n",
            "r1,0,2025-12-01T12:00:00.123Z,credit-score,3,sha-256:",
            "0707070707070707070707070707070707070707070707070707070707070707,k1,",
            "40.5,\"Doctor, \"\"MD\"\"\",true,1,Good,0.75,0.25,0.75\n",
            "r1,1,2025-12-01T12:00:00.123Z,credit-score,3,sha-256:",
            "0707070707070707070707070707070707070707070707070707070707070707,k1,",
            ",\"\",,0,,,,\n",
        );
        assert_eq!(encode(&example()), expected);
    }
}
