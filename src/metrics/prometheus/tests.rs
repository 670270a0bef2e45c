//! The page is what its content type says, and every figure is on it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use super::super::{Config, Metrics};
use super::*;
use crate::model::features::{Features, Raw, Settings};
use crate::model::outputs::{Outputs, Prediction, Value};
use crate::model::signature::{Column, Kind, Signature};
use crate::model::{Digest, Identity, Version};

/// Every sample of a page by its name and labels as written. Panics where the page is not what [`CONTENT_TYPE`] says.
fn parse(page: &str) -> BTreeMap<String, f64> {
    let body = page.strip_suffix("# EOF\n").expect("ends with EOF");
    let (mut samples, mut families, mut open) = (BTreeMap::new(), BTreeSet::new(), String::new());
    for line in body.lines() {
        if let Some(meta) = line.strip_prefix("# ") {
            let (keyword, rest) = meta.split_once(' ').expect("a keyword");
            let (family, text) = rest.split_once(' ').expect("a family");
            match keyword {
                "HELP" => assert!(families.insert(family.to_owned()), "{family} comes twice"),
                "TYPE" => assert!(["counter", "gauge", "histogram"].contains(&text) && families.contains(family)),
                _ => panic!("unknown keyword in {line}"),
            }
            family.clone_into(&mut open);
        } else {
            let (name, figure) = parse_sample(line);
            assert!(name.starts_with(&open), "{line} stands in {open}");
            assert_eq!(samples.insert(name, figure), None, "{line} comes twice");
        }
    }
    samples
}

/// `name{label="value",…} figure`, the values with `\\`, `\"` and `\n` only.
fn parse_sample(line: &str) -> (String, f64) {
    let name_end = line.find(['{', ' ']).expect("an end of the name");
    assert!(line[..name_end].chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
    let mut rest = &line[name_end..];
    if let Some(labels) = rest.strip_prefix('{') {
        rest = skip_labels(labels);
    }
    let figure = rest.strip_prefix(' ').expect("one space").parse().expect("a figure");
    (line[..line.len() - rest.len()].to_owned(), figure)
}

fn skip_labels(mut rest: &str) -> &str {
    while !rest.starts_with('}') {
        let (name, value) = rest.split_once("=\"").expect("a label");
        assert!(name.chars().all(|c| c.is_ascii_lowercase()), "{name}");
        rest = skip_value(value);
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    &rest[1..]
}

fn skip_value(text: &str) -> &str {
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return &text[at + 1..],
            '\\' => assert!(matches!(letters.next(), Some((_, '\\' | '"' | 'n')))),
            _ => (),
        }
    }
    panic!("no end of {text}");
}

fn metrics() -> Metrics {
    let max = |number| NonZeroUsize::new(number).unwrap();
    Metrics::new(Config { max_series: max(500), max_categories: max(10) })
}

/// One request of a model with one text feature.
fn observe(metrics: &Metrics, feature: &str, text: &str, class: &str) {
    let column = Column { name: feature.into(), kind: Kind::Text, required: true };
    let features = Features::new(&Signature::Columns(vec![column]), Settings::default()).unwrap();
    let mut rows = features.rows();
    rows.begin();
    rows.set(feature, Raw::Text(text));
    rows.end();
    let prediction = Prediction { value: Value::Text(class.into()), label: None, score: Some(-0.5) };
    let outputs = Outputs::new(vec![prediction], Arc::new([]), vec![]);
    let id = Arc::new(Identity::new("m".parse().unwrap(), Version(3), Digest([0; 32]), None));
    let took = Duration::from_millis(3);
    metrics.observe_parts(&id, &features, &rows.finish().unwrap(), &outputs, took);
}

#[test]
fn every_figure_is_on_the_page() {
    let metrics = metrics();
    observe(&metrics, "job", "Doctor", "good");
    observe(&metrics, "job", "Doctor", "good");
    metrics.failed(None, "model_not_found", 404, Duration::ZERO);
    let samples = parse(&metrics.render(&[]));
    for (name, figure) in [
        (r#"modelgate_requests_total{model="m",version="3",code="ok"}"#, 2.0),
        (r#"modelgate_requests_total{model="",version="",code="model_not_found"}"#, 1.0),
        (r#"modelgate_request_duration_seconds_bucket{le="0.0025",model="m",version="3"}"#, 0.0),
        (r#"modelgate_request_duration_seconds_bucket{le="0.005",model="m",version="3"}"#, 2.0),
        (r#"modelgate_request_duration_seconds_bucket{le="+Inf",model="m",version="3"}"#, 2.0),
        (r#"modelgate_request_duration_seconds_count{model="m",version="3"}"#, 2.0),
        (r#"modelgate_predictions_total{model="m",class="good"}"#, 2.0),
        (r#"modelgate_prediction_score_sum{model="m",version="3"}"#, -1.0),
        (r#"modelgate_prediction_score_count{model="m",version="3"}"#, 2.0),
        (r#"modelgate_feature_category_total{model="m",feature="job",category="Doctor"}"#, 2.0),
        ("modelgate_series_refused_total{}", 0.0),
    ] {
        assert_eq!(samples.get(name), Some(&figure), "{name} of {samples:#?}");
    }
}

#[test]
fn looking_twice_changes_nothing() {
    let metrics = metrics();
    observe(&metrics, "job", "Doctor", "good");
    assert_eq!(metrics.render(&[]), metrics.render(&[]));
}

#[test]
fn hostile_texts_cannot_leave_their_label() {
    let metrics = metrics();
    let hostile = "\"} 1\nmodelgate_requests_total{model=\"forged\\\"} 9 ü";
    observe(&metrics, hostile, hostile, hostile);
    let page = metrics.render(&[]);
    let quoted = hostile.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
    let samples = parse(&page);
    assert!(samples.keys().all(|name| !name.contains("model=\"forged")));
    let name = format!(r#"modelgate_feature_category_total{{model="m",feature="{quoted}",category="{quoted}"}}"#);
    assert_eq!(samples.get(&name), Some(&1.0));
}

#[test]
fn outside_figures_stand_beside_our_own() {
    let page = metrics().render(&[Family {
        name: "modelgate_capture_dropped",
        help: "Samples dropped",
        counter: true,
        samples: vec![(vec![("reason", "full".to_owned())], 4.0)],
    }]);
    let samples = parse(&page);
    assert_eq!(samples.get(r#"modelgate_capture_dropped_total{reason="full"}"#), Some(&4.0));
}
