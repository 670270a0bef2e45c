//! One value as a caller wrote it → one [`Cell`], or what belongs there instead.
//!
//! Nothing is rounded, wrapped or guessed without a word: 3.5 is no whole number, 3000000000 does not fit 32 bits,
//! `true` is not 1.

use super::super::signature::Kind;
use super::{Cell, Raw, TEXT_MAX_BYTES};

const BOOLEAN: &str = "true or false";
const WHOLE: &str = "a whole number";
const WHOLE_32: &str = "a whole number from -2147483648 to 2147483647";
const WHOLE_64: &str = "a whole number of 64 bits, in plain digits";
const NUMBER: &str = "a number";
const FINITE: &str = "a finite number";
const FINITE_32: &str = "a number that fits a 32-bit float";
const TEXT: &str = "text";
const SHORT_TEXT: &str = "text of at most 4096 bytes";
const _: () = assert!(TEXT_MAX_BYTES == 4096, "SHORT_TEXT says so");

/// From here on a float has lost the digits that would tell whether the caller wrote this whole number or its neighbour.
const FLOAT_EXACT_BELOW: f64 = 9_007_199_254_740_992.0;

/// What belongs where a value of `kind` is asked for, in words for the caller.
pub(super) fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Boolean => BOOLEAN,
        Kind::Integer | Kind::Long => WHOLE,
        Kind::Float | Kind::Double => NUMBER,
        Kind::Text => TEXT,
    }
}

/// The cell for `value`; with `coerce`, text that says a number or a boolean counts as one.
///
/// # Errors
/// With what belongs there.
pub(super) fn cell(kind: Kind, value: Raw<'_>, coerce: bool) -> Result<Cell, &'static str> {
    match kind {
        Kind::Boolean => boolean(value, coerce).map(Cell::Boolean),
        Kind::Integer => integer(number_in(value, coerce)).map(Cell::Integer),
        Kind::Long => whole(number_in(value, coerce)).map(Cell::Integer),
        Kind::Float => float(number_in(value, coerce)).map(Cell::Float),
        Kind::Double => number(number_in(value, coerce)).map(Cell::Float),
        Kind::Text => text(value).map(|text| Cell::Text(text.into())),
    }
}

fn boolean(value: Raw<'_>, coerce: bool) -> Result<bool, &'static str> {
    match value {
        Raw::Boolean(value) => Ok(value),
        Raw::Text("true") if coerce => Ok(true),
        Raw::Text("false") if coerce => Ok(false),
        _ => Err(BOOLEAN),
    }
}

fn integer(value: Raw<'_>) -> Result<i64, &'static str> {
    match whole(value) {
        Ok(value) if i32::try_from(value).is_ok() => Ok(value),
        Ok(_) | Err(WHOLE_64) => Err(WHOLE_32),
        Err(expected) => Err(expected),
    }
}

fn whole(value: Raw<'_>) -> Result<i64, &'static str> {
    match value {
        Raw::Integer(value) => Ok(value),
        Raw::Unsigned(_) => Err(WHOLE_64),
        Raw::Float(value) if value.fract() != 0.0 => Err(WHOLE),
        #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
        Raw::Float(value) if value.abs() < FLOAT_EXACT_BELOW => Ok(value as i64),
        Raw::Float(value) if value.is_finite() => Err(WHOLE_64),
        Raw::Float(_) | Raw::NotFinite(_) | Raw::Null | Raw::Boolean(_) | Raw::Text(_) | Raw::Nested(_) => Err(WHOLE),
    }
}

fn float(value: Raw<'_>) -> Result<f64, &'static str> {
    let value = number(value)?;
    #[expect(clippy::cast_possible_truncation, reason = "whether it overflows is the question")]
    let fits = (value as f32).is_finite();
    if fits { Ok(value) } else { Err(FINITE_32) }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a float column takes the nearest float, as it does of any decimal number"
)]
fn number(value: Raw<'_>) -> Result<f64, &'static str> {
    match value {
        Raw::Integer(value) => Ok(value as f64),
        Raw::Unsigned(value) => Ok(value as f64),
        Raw::Float(value) if value.is_finite() => Ok(value),
        Raw::Float(_) | Raw::NotFinite(_) => Err(FINITE),
        Raw::Null | Raw::Boolean(_) | Raw::Text(_) | Raw::Nested(_) => Err(NUMBER),
    }
}

/// A text, if it is one and short enough.
pub(super) fn text(value: Raw<'_>) -> Result<&str, &'static str> {
    match value {
        Raw::Text(text) if text.len() <= TEXT_MAX_BYTES => Ok(text),
        Raw::Text(_) => Err(SHORT_TEXT),
        Raw::Null
        | Raw::Boolean(_)
        | Raw::Integer(_)
        | Raw::Unsigned(_)
        | Raw::Float(_)
        | Raw::NotFinite(_)
        | Raw::Nested(_) => Err(TEXT),
    }
}

/// The number a text says, where that counts.
fn number_in(value: Raw<'_>, coerce: bool) -> Raw<'_> {
    let Raw::Text(text) = value else { return value };
    if !coerce {
        return value;
    }
    if let Ok(whole) = text.parse() {
        return Raw::Integer(whole);
    }
    text.parse().map_or(value, Raw::Float)
}

/// What was found, in at most 64 characters.
pub(super) fn found(value: Raw<'_>) -> String {
    match value {
        Raw::Null => "null".to_owned(),
        Raw::Boolean(value) => value.to_string(),
        Raw::Integer(value) => value.to_string(),
        Raw::Unsigned(value) => value.to_string(),
        // Debug writes 1e300 with its exponent; Display writes 301 digits.
        Raw::Float(value) => format!("{value:?}"),
        Raw::NotFinite(text) => excerpt(text, 64),
        Raw::Text(text) => format!("\"{}\"", excerpt(text, 62)),
        Raw::Nested(what) => what.to_owned(),
    }
}

/// The first `max` characters of `text`, the last of them `…` if there are more.
pub(crate) fn excerpt(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some(_) => text.chars().take(max.saturating_sub(1)).chain(['…']).collect(),
    }
}
