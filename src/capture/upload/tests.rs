//! When a sink is asked again, and what objects are called.

use crate::capture::tests::{noon, version};

use super::super::protect::Policy;
use super::super::segment::ValueKind;
use super::*;

fn unavailable() -> SendError {
    PutError::Unavailable("no route".to_owned()).into()
}

#[test]
fn the_waits_double_from_a_second_to_five_minutes() {
    let mut health = Health::new(1);
    assert!(health.is_due(noon()));
    for most in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300] {
        health.failed(&unavailable(), noon());
        assert!(!health.is_due(noon()));
        assert!(!health.is_due(noon() + Duration::from_millis(most * 500 - 1)), "earlier than half of {most} s");
        assert!(health.is_due(noon() + Duration::from_secs(most)), "later than {most} s");
    }
    health.succeeded();
    assert!(health.is_due(noon()));
    health.failed(&unavailable(), noon());
    assert!(health.is_due(noon() + Duration::from_secs(1)));
}

#[test]
fn a_refusal_waits_five_minutes_at_once() {
    let mut health = Health::new(1);
    health.failed(&PutError::Denied("AccessDenied".to_owned()).into(), noon());
    assert!(!health.is_due(noon() + Duration::from_secs(299)));
    assert!(health.is_due(noon() + Duration::from_mins(5)));
}

#[test]
fn a_clock_that_was_set_back_does_not_keep_the_sink_waiting() {
    let mut health = Health::new(1);
    health.failed(&unavailable(), noon());
    assert!(health.is_due(noon() - Duration::from_hours(1)));
}

#[test]
fn keys_tell_the_model_the_version_the_hour_and_the_content() {
    let schema = Schema {
        model: "credit-score".parse().unwrap(),
        version: 3,
        digest: [7; 32],
        prediction: ValueKind::Integer,
        features: Vec::new(),
        classes: Vec::new(),
    };
    let header = Header { id: 1, hour: noon().as_second() / 3600 - 5, schema };
    let key = |format| object_key(&header, Digest([0xab; 32]), format).unwrap();
    let expected = "model=credit-score/version=3/date=2025-12-01/hour=07/abababababababababababababababab.parquet";
    assert_eq!(key(Format::Parquet), expected);
    let csv = key(Format::Csv);
    assert_eq!(csv, expected.replace(".parquet", ".csv"));
    assert_eq!(key(Format::Jsonl), "credit-score/3/2025/12/01/07/abababababababababababababababab.jsonl");
    for hour in [i64::MAX, i64::MAX / 3600] {
        assert_eq!(object_key(&Header { hour, ..header.clone() }, Digest([0; 32]), Format::Parquet), None);
    }
}

/// A loss of power may bring a segment back that was sent, with a part behind it that was never accepted.
#[test]
fn what_is_behind_the_last_whole_sample_changes_no_key() {
    let record = version(3).record("r", 2, "Doctor", noon());
    let header = Header { id: 7, hour: noon().as_second() / 3600, schema: Schema::of(&record, &Policy::default()) };
    let mut bytes = Vec::new();
    header.encode(&mut bytes);
    header.encode_record(0, &record, None, &mut bytes);
    let accepted = bytes.len();
    header.encode_record(2, &record, None, &mut bytes);
    let key = |end: usize| object_of(bytes[..end].to_vec(), Format::Csv).unwrap().listed.key;
    assert!((accepted..bytes.len()).all(|end| key(end) == key(accepted)));
    assert_ne!(key(bytes.len()), key(accepted));
}
