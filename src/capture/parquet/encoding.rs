//! How a column's values are written before they are compressed: what makes a file small.
//!
//! A dictionary is best where values come again. Where they hardly do it costs a number for each row beside the value, a
//! seventh of the whole file for a table of prices and shares. Only encodings are taken that Athena and Spark read, which is
//! why numbers are not split into streams of bytes.

use std::collections::HashSet;

use foldhash::fast::RandomState;
use parquet::basic::Encoding;

use crate::model::Cell;
use crate::model::signature::Kind;

use super::super::segment::{Contents, ValueKind};
use super::{Line, Source, lines};

/// Lines that are looked at to see whether values come again.
const LINES: usize = 4096;

/// The encoding in place of a dictionary; none where a dictionary is best.
pub(super) fn of(source: Source, contents: &Contents) -> Option<Encoding> {
    match source {
        Source::RequestId => Some(Encoding::DELTA_BYTE_ARRAY),
        Source::Time => Some(Encoding::DELTA_BINARY_PACKED),
        Source::Feature(index, kind) => {
            hardly_repeats(contents, |line| bits(line.row.cells.get(index)?)).then(|| encoding_of(kind))
        }
        Source::Prediction(ValueKind::Number) | Source::Score | Source::Probability(_) => Some(Encoding::PLAIN),
        Source::Row
        | Source::ModelName
        | Source::ModelVersion
        | Source::ModelDigest
        | Source::KeyId
        | Source::Label
        | Source::Prediction(ValueKind::Integer | ValueKind::Text | ValueKind::Nothing) => None,
    }
}

fn encoding_of(kind: Kind) -> Encoding {
    match kind {
        Kind::Integer | Kind::Long => Encoding::DELTA_BINARY_PACKED,
        Kind::Text => Encoding::DELTA_LENGTH_BYTE_ARRAY,
        // Prices of two digits have bytes that come again in the same order, which compression finds by itself.
        Kind::Float | Kind::Double | Kind::Boolean => Encoding::PLAIN,
    }
}

/// Whether more than half of the values are met for the first time.
fn hardly_repeats(contents: &Contents, bits: impl Fn(&Line<'_>) -> Option<u64>) -> bool {
    let mut values = 0_usize;
    let mut distinct = HashSet::with_hasher(RandomState::default());
    for value in lines(contents).take(LINES).filter_map(|line| bits(&line)) {
        values += 1;
        distinct.insert(value);
    }
    distinct.len() * 2 > values
}

/// What tells a value from others; nothing where it is missing.
fn bits(cell: &Cell) -> Option<u64> {
    match cell {
        Cell::Missing => None,
        Cell::Boolean(value) => Some(u64::from(*value)),
        Cell::Integer(value) => Some(value.cast_unsigned()),
        Cell::Float(value) => Some(value.to_bits()),
        Cell::Text(text) => Some(u64::from(crc32fast::hash(text.as_bytes()))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::jsonl::tests::example;
    use super::*;

    #[track_caller]
    fn check(value: impl Fn(u32) -> Cell, kind: Kind, expected: Option<Encoding>) {
        let mut contents = example();
        let line = contents.samples[0].rows[0].clone();
        let row = |number| {
            let mut row = line.clone();
            row.cells[0] = value(number);
            row
        };
        contents.samples[0].rows = (0..1000).map(row).collect();
        assert_eq!(of(Source::Feature(0, kind), &contents), expected);
    }

    #[test]
    fn values_that_come_again_have_a_dictionary_and_others_none() {
        let float = |number: u32| Cell::Float(f64::from(number));
        check(float, Kind::Double, Some(Encoding::PLAIN));
        check(|number| float(number % 400), Kind::Double, None);
        check(|number| Cell::Integer(number.into()), Kind::Long, Some(Encoding::DELTA_BINARY_PACKED));
        let text = |number: u32| Cell::Text(number.to_string().into());
        check(text, Kind::Text, Some(Encoding::DELTA_LENGTH_BYTE_ARRAY));
        check(|number| text(number % 7), Kind::Text, None);
        check(|_| Cell::Missing, Kind::Text, None);
    }
}
