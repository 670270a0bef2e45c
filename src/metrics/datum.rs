//! One line of measurements as `PutMetricData` takes it, inside the limits of its reference.

use std::borrow::Cow;

use aws_sdk_cloudwatch::primitives::DateTime;
use aws_sdk_cloudwatch::types::{Dimension, MetricDatum, StandardUnit};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

use super::histogram::{Point, float};
use super::series::Series;
use crate::model::Digest;

/// Values of one datum at most (`PutMetricData`, `Values`).
const VALUES_MAX: usize = 150;

/// Letters of a dimension's value at most.
const TEXT_MAX: usize = 1024;

/// Bytes of one value and its count in CBOR: two doubles with their marks.
const POINT_BYTES: usize = 18;

/// Bytes of a datum's keys, time stamp, unit and list heads in CBOR, rounded up.
const DATUM_BYTES: usize = 160;

/// Bytes of a dimension's keys and list heads in CBOR, rounded up.
const DIMENSION_BYTES: usize = 24;

/// What is not sent as it is: control characters, and the sign that marks what was encoded. `utf8_percent_encode`
/// adds all that is not ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// As [`ENCODED`], for a text that would be blank otherwise.
const ENCODED_BLANK: &AsciiSet = &ENCODED.add(b' ');

/// The measurements of one series in one minute. Never empty.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) series: Series,
    pub(super) points: Vec<Point>,
}

impl Line {
    /// Into how many datums it goes.
    pub(super) fn datums(&self) -> usize {
        self.points.len().div_ceil(VALUES_MAX)
    }

    /// How long its datums are in CBOR at most.
    pub(super) fn wire_bytes(&self) -> usize {
        let dimensions: usize =
            dimensions(&self.series).iter().map(|(name, value)| DIMENSION_BYTES + name.len() + value.len()).sum();
        self.datums() * (DATUM_BYTES + self.series.name().len() + dimensions) + self.points.len() * POINT_BYTES
    }

    /// How much memory it takes, about.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.points.len() * size_of::<Point>()
    }

    /// Its datums, measured at `at`.
    pub(super) fn to_datums(&self, at: Timestamp) -> impl Iterator<Item = MetricDatum> {
        let dimensions: Vec<Dimension> = dimensions(&self.series)
            .into_iter()
            .map(|(name, value)| Dimension::builder().name(name).value(value).build())
            .collect();
        self.points.chunks(VALUES_MAX).map(move |points| {
            MetricDatum::builder()
                .metric_name(self.series.name())
                .set_dimensions(Some(dimensions.clone()))
                .timestamp(DateTime::from_secs(at.as_second()))
                .set_values(Some(points.iter().map(|point| point.value).collect()))
                .set_counts(Some(points.iter().map(|point| float(point.count)).collect()))
                .unit(unit(&self.series))
                .storage_resolution(60)
                .build()
        })
    }
}

fn unit(series: &Series) -> StandardUnit {
    match series {
        Series::Latency(_) => StandardUnit::Milliseconds,
        Series::Prediction(_)
        | Series::FeatureValue(_)
        | Series::Psi(_)
        | Series::FeatureDrift(_)
        | Series::MaxPsi(_) => StandardUnit::None,
        Series::Requests(_)
        | Series::Errors(_)
        | Series::PredictionClass { .. }
        | Series::FeatureMissing(_)
        | Series::FeatureUnseen(_)
        | Series::FeatureCategory { .. }
        | Series::DriftedFeatures(_)
        | Series::SampleRows(_)
        | Series::Refused
        | Series::Throttled { .. }
        | Series::QuotaExceeded { .. }
        | Series::VersionsServed(_)
        | Series::VersionsRefused(_)
        | Series::Rollbacks(_) => StandardUnit::Count,
    }
}

fn dimensions(series: &Series) -> Vec<(&'static str, String)> {
    let texts = series.dimensions().into_iter();
    texts.map(|(name, text)| (name, dimension_text(&text))).collect()
}

/// `text` as the value of a dimension: ASCII, not blank, 1 to 1,024 letters. What is not ASCII is percent-encoded, so
/// that people can read it back; what is too long ends in the first digits of its SHA-256, to stay distinct.
fn dimension_text(text: &str) -> String {
    let set = if text.trim_matches(' ').is_empty() { ENCODED_BLANK } else { ENCODED };
    let encoded: Cow<'_, str> = utf8_percent_encode(text, set).into();
    match encoded.len() {
        0 => super::vocabulary::EMPTY.to_owned(),
        1..=TEXT_MAX => encoded.into_owned(),
        _ => shortened(&encoded),
    }
}

fn shortened(encoded: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(encoded).into();
    let digits = format!("~{:.16}", Digest(digest).hex());
    format!("{}{digits}", &encoded[..TEXT_MAX - digits.len()])
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(dimension_text(text), expected);
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
        assert_eq!(dimension_text(&a).len(), TEXT_MAX);
        assert_ne!(dimension_text(&a), dimension_text(&b));
        check(&"a".repeat(TEXT_MAX), &"a".repeat(TEXT_MAX));
    }

    proptest! {
        #[test]
        fn any_text_fits_a_dimension(text in ".{0,600}") {
            let sent = dimension_text(&text);
            prop_assert!((1..=TEXT_MAX).contains(&sent.len()));
            prop_assert!(sent.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            prop_assert!(!sent.trim().is_empty());
        }

        #[test]
        fn a_text_can_be_read_back(text in ".{1,80}") {
            let sent = dimension_text(&text);
            let back = percent_decode_str(&sent).decode_utf8().unwrap();
            prop_assert_eq!(back, text);
        }
    }
}
