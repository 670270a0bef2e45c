//! What the replay lets pass, and what it refuses.

use super::*;
use crate::manager::admission::SignatureChange;
use crate::model::features::{Raw, Settings};
use crate::model::signature::Signature;

fn config() -> Config {
    Config {
        probe: true,
        program: "modelgate".into(),
        environment: Vec::new(),
        max_load_memory: 1 << 30,
        max_load_cpu: Duration::from_secs(30),
        max_load_wall: Duration::from_mins(1),
        replay_rows: 256,
        max_disagreement: 0.5,
        max_latency_ratio: 3.0,
        max_shift: 0.3,
        signature_change: SignatureChange::Refuse,
    }
}

#[test]
fn the_newest_rows_are_replayed_and_no_more_than_configured() {
    let signature = Signature::parse(r#"[{"name": "x", "type": "double"}]"#).unwrap();
    let features = Features::new(&signature, Settings::default()).unwrap();
    let request = |rows: u32| {
        let mut inputs = features.rows();
        for row in 0..rows {
            inputs.begin();
            inputs.set("x", Raw::Float(row.into()));
            inputs.end();
        }
        inputs.finish().unwrap()
    };
    let kept = |rows| newest([10, 20, 30].map(request).into(), rows).iter().map(Inputs::rows).collect::<Vec<_>>();
    assert_eq!(kept(60), [10, 20, 30]);
    assert_eq!(kept(59), [20, 30]);
    assert_eq!(kept(49), [30]);
    assert_eq!(kept(29), [0; 0], "a request is not cut");
}

fn classes(pairs: &[(i64, i64)]) -> Comparison {
    let pairs = pairs.iter().map(|(before, after)| (Value::Integer(*before), Value::Integer(*after))).collect();
    Comparison { pairs, ..Comparison::default() }
}

fn numbers(count: u32, after: impl Fn(f64) -> f64) -> Comparison {
    let pairs = (0..count).map(f64::from).map(|before| (Value::Number(before), Value::Number(after(before))));
    Comparison { pairs: pairs.collect(), ..Comparison::default() }
}

#[track_caller]
fn check_refused(comparison: &Comparison, expected: Option<&str>) {
    match (judge(comparison, &config()), expected) {
        (Err(Stop::Refused(reason)), Some(expected)) => assert!(reason.contains(expected), "{reason}"),
        (Ok(pass), None) => assert!(!pass.detail.is_empty()),
        (Err(Stop::Refused(reason) | Stop::Undecided(reason)), _) => panic!("{reason}"),
        (Ok(pass), Some(_)) => panic!("admitted: {}", pass.detail),
    }
}

#[test]
fn a_version_may_change_its_mind_within_limits() {
    let mut pairs = vec![(0, 0); 60];
    pairs.extend([(1, 0), (0, 1)].repeat(20));
    check_refused(&classes(&pairs), None);
    pairs.extend([(1, 0), (0, 1)].repeat(20));
    check_refused(&classes(&pairs), Some("max_disagreement"));
}

#[test]
fn a_version_that_answers_with_one_class_only_has_shifted() {
    let pairs: Vec<_> = (0..100).map(|row| (i64::from(row < 40), 0)).collect();
    check_refused(&classes(&pairs), Some("max_shift"));
}

#[test]
fn numbers_disagree_when_they_are_far_off_for_their_spread() {
    check_refused(&numbers(100, |number| number * 1.01), None);
    check_refused(&numbers(100, |number| number + 20.0), None);
    check_refused(&numbers(100, |number| number + 31.0), Some("max_disagreement"));
    check_refused(&numbers(100, |number| (number + 25.0).max(60.0)), Some("max_shift"));
}

#[test]
fn a_version_is_too_slow_only_if_that_can_be_felt() {
    let slow = |micros: u64| Comparison {
        serving_times: vec![Duration::from_micros(10); 3],
        new_times: vec![Duration::from_micros(micros); 3],
        ..classes(&[(0, 0); 100])
    };
    check_refused(&slow(900), None);
    check_refused(&slow(1100), Some("max_latency_ratio"));
}

#[test]
fn rows_that_are_no_longer_answered_refuse_and_few_rows_say_nothing() {
    let mut comparison = classes(&[(0, 1); MIN_ROWS - 1]);
    let pass = judge(&comparison, &config()).ok().unwrap();
    assert!(pass.detail.starts_with("not enough rows"), "{}", pass.detail);
    comparison.fail(1, "the model answered with a value that is not finite".into());
    check_refused(&comparison, Some("1 of 32 rows"));
}

#[test]
fn shifts_are_between_nothing_and_everything() {
    assert!(shift(&classes(&[(0, 0), (1, 1)]).pairs).abs() < 1e-9);
    assert!((shift(&classes(&[(0, 1), (0, 1)]).pairs) - 1.0).abs() < 1e-9);
    assert!(shift(&numbers(50, |number| number).pairs).abs() < 1e-9);
    assert!((shift(&numbers(50, |number| number + 1e3).pairs) - 1.0).abs() < 1e-9);
}
