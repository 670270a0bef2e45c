//! Names as CloudWatch takes them, by every way into it.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

use super::series::Series;
use super::vocabulary::EMPTY;
use crate::model::Digest;

/// Letters of a dimension's value at most.
const VALUE_MAX: usize = 1024;

/// Letters of a metric's name at most.
const NAME_MAX: usize = 255;

/// What is not sent as it is: control characters, and the sign that marks what was encoded. `utf8_percent_encode`
/// adds all that is not ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// As [`ENCODED`], for a text that would be blank otherwise.
const ENCODED_BLANK: &AsciiSet = &ENCODED.add(b' ');

/// The dimensions of `series`.
pub(super) fn dimensions(series: &Series) -> Vec<(&'static str, String)> {
    let texts = series.dimensions().into_iter();
    texts.map(|(name, text)| (name, plain(&text, VALUE_MAX))).collect()
}

/// The name of its metric.
pub(super) fn metric_name(series: &Series) -> Cow<'static, str> {
    match series.name() {
        Cow::Borrowed(ours) => Cow::Borrowed(ours),
        Cow::Owned(with_feature) => Cow::Owned(plain(&with_feature, NAME_MAX)),
    }
}

/// `text` in ASCII, not blank, of 1 to `max` letters. What is not ASCII is percent-encoded, so that people can read it
/// back; what is too long ends in the first digits of its SHA-256, to stay distinct.
fn plain(text: &str, max: usize) -> String {
    let set = if text.trim_matches(' ').is_empty() { ENCODED_BLANK } else { ENCODED };
    let encoded: Cow<'_, str> = utf8_percent_encode(text, set).into();
    match encoded.len() {
        0 => EMPTY.to_owned(),
        length if length <= max => encoded.into_owned(),
        _ => shortened(&encoded, max),
    }
}

fn shortened(encoded: &str, max: usize) -> String {
    let digest: [u8; 32] = Sha256::digest(encoded).into();
    let digits = format!("~{:.16}", Digest(digest).hex());
    format!("{}{digits}", &encoded[..max - digits.len()])
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(plain(text, VALUE_MAX), expected);
    }

    #[test]
    fn plain_texts_stay_as_they_are() {
        check("Annual Income (US$) ~/:", "Annual Income (US$) ~/:");
    }

    #[test]
    fn other_letters_are_percent_encoded() {
        check("descrição", "descri%C3%A7%C3%A3o");
        check("50 %\n", "50 %25%0A");
    }

    #[test]
    fn nothing_is_blank() {
        check("  ", "%20%20");
        check("", "__empty__");
    }

    #[test]
    fn long_texts_stay_distinct() {
        let (a, b) = ("a".repeat(5000), "a".repeat(5001));
        assert_eq!(plain(&a, VALUE_MAX).len(), VALUE_MAX);
        assert_ne!(plain(&a, VALUE_MAX), plain(&b, VALUE_MAX));
        check(&"a".repeat(VALUE_MAX), &"a".repeat(VALUE_MAX));
    }

    proptest! {
        #[test]
        fn any_text_fits_a_dimension(text in ".{0,600}") {
            let sent = plain(&text, VALUE_MAX);
            prop_assert!((1..=VALUE_MAX).contains(&sent.len()));
            prop_assert!(sent.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            prop_assert!(!sent.trim().is_empty());
        }

        #[test]
        fn a_text_can_be_read_back(text in ".{1,80}") {
            let sent = plain(&text, VALUE_MAX);
            let back = percent_decode_str(&sent).decode_utf8().unwrap();
            prop_assert_eq!(back, text);
        }
    }
}
