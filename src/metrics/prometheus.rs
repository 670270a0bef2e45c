//! The text Prometheus reads: the totals since the process began.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::Family;
use super::cloudwatch::Flushed;
use super::histogram::float;
use super::series::{FeatureOf, Scope, Series};
use super::totals::{Total, Totals};
use crate::model::ModelName;

/// What the page is written in, for its `Content-Type`.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The page.
pub(super) fn page(
    totals: Totals,
    standing: &BTreeMap<Series, f64>,
    flushed: Option<&Flushed>,
    outside: &[Family],
) -> String {
    let mut registry = Registry::default();
    let families =
        [own(&totals), standing_families(standing), flushed.map(delivery).unwrap_or_default(), outside.to_vec()]
            .concat();
    registry.register_collector(Box::new(Page { totals, families }));
    let mut page = String::new();
    encode(&mut page, &registry).expect("writing to a String does not fail");
    page
}

#[derive(Debug)]
struct Page {
    totals: Totals,
    families: Vec<Family>,
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        encode_durations(&mut encoder, &self.totals)?;
        self.families.iter().try_for_each(|family| encode_family(&mut encoder, family))
    }
}

fn encode_durations(encoder: &mut DescriptorEncoder<'_>, totals: &Totals) -> fmt::Result {
    let name = "modelgate_request_duration_seconds";
    let mut metric = encoder.encode_descriptor(name, "How long requests took", None, MetricType::Histogram)?;
    for (scope, durations) in totals.durations() {
        let (count, sum) = durations.total();
        let labels = scope_labels(scope);
        metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &durations.buckets(), None)?;
    }
    Ok(())
}

fn encode_family(encoder: &mut DescriptorEncoder<'_>, family: &Family) -> fmt::Result {
    let kind = if family.counter { MetricType::Counter } else { MetricType::Gauge };
    let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
    for (labels, figure) in &family.samples {
        let mut sample = metric.encode_family(labels)?;
        if family.counter {
            sample.encode_counter::<NoLabelSet, _, f64>(figure, None)?;
        } else {
            sample.encode_gauge(figure)?;
        }
    }
    Ok(())
}

/// Our own figures. Sums that can fall, because values can be negative, are gauges, and so are the counts beside them.
fn own(totals: &Totals) -> Vec<Family> {
    vec![
        counter("modelgate_requests", "Requests by the code their callers saw", answers(totals)),
        counter("modelgate_predictions", "Predictions by class", each(totals, class)),
        gauge("modelgate_prediction_score_sum", "Sum of scores or predicted values", each(totals, score_sum)),
        gauge("modelgate_prediction_score_count", "Number of scores or predicted values", each(totals, score_count)),
        gauge("modelgate_feature_value_sum", "Sum of a feature's values", each(totals, value_sum)),
        gauge("modelgate_feature_value_count", "Number of a feature's values", each(totals, value_count)),
        counter("modelgate_feature_missing", "Rows without a value for a feature", each(totals, missing)),
        counter("modelgate_feature_unseen", "Rows with a category the model has no column for", each(totals, unseen)),
        counter("modelgate_feature_category", "Rows by the text of a feature", each(totals, category)),
        counter("modelgate_throttled", "Requests above a plan's rate or concurrency", each_limit(totals, throttled)),
        counter("modelgate_quota_exceeded", "Requests above a plan's quota", each_limit(totals, quota_exceeded)),
        counter(
            "modelgate_series_refused",
            "Measurements whose series found no room under the cap",
            vec![(Vec::new(), float(totals.refused()))],
        ),
    ]
}

/// Drift and accuracy as they were last seen.
fn standing_families(standing: &BTreeMap<Series, f64>) -> Vec<Family> {
    let each = |labels: fn(&Series) -> Option<Labels>| -> Vec<Sample> {
        standing.iter().filter_map(|(series, figure)| Some((labels(series)?, *figure))).collect()
    };
    vec![
        gauge("modelgate_feature_psi", "Population stability index of a feature", each(psi_labels)),
        gauge("modelgate_feature_drift", "Largest difference from the baseline, less chance", each(difference_labels)),
        gauge("modelgate_drifted_features", "Features that have drifted", each(drifted_labels)),
        gauge("modelgate_max_psi", "Largest PSI of a feature with enough rows", each(max_psi_labels)),
        gauge("modelgate_drift_rows", "Rows that drift is computed of", each(sample_rows_labels)),
        gauge("modelgate_accuracy", "Share of labelled rows whose class was right", each(accuracy_labels)),
        gauge("modelgate_rmse", "Root of the mean squared error of labelled rows", each(rmse_labels)),
        gauge("modelgate_labelled_rows", "Remembered rows whose label came", each(labelled_rows_labels)),
    ]
}

fn psi_labels(series: &Series) -> Option<Labels> {
    if let Series::Psi(of) = series { Some(feature_labels(of)) } else { None }
}

fn difference_labels(series: &Series) -> Option<Labels> {
    if let Series::FeatureDrift(of) = series { Some(feature_labels(of)) } else { None }
}

fn drifted_labels(series: &Series) -> Option<Labels> {
    if let Series::DriftedFeatures(model) = series { Some(model_label(model)) } else { None }
}

fn max_psi_labels(series: &Series) -> Option<Labels> {
    if let Series::MaxPsi(model) = series { Some(model_label(model)) } else { None }
}

fn sample_rows_labels(series: &Series) -> Option<Labels> {
    if let Series::SampleRows(model) = series { Some(model_label(model)) } else { None }
}

fn accuracy_labels(series: &Series) -> Option<Labels> {
    if let Series::Accuracy(scope) = series { Some(scope_labels(scope)) } else { None }
}

fn rmse_labels(series: &Series) -> Option<Labels> {
    if let Series::Rmse(scope) = series { Some(scope_labels(scope)) } else { None }
}

fn labelled_rows_labels(series: &Series) -> Option<Labels> {
    if let Series::LabelledRows(scope) = series { Some(scope_labels(scope)) } else { None }
}

fn model_label(model: &ModelName) -> Vec<(&'static str, String)> {
    vec![("model", model.to_string())]
}

/// What was sent to CloudWatch, where anything is.
fn delivery(flushed: &Flushed) -> Vec<Family> {
    let one = |figure: usize| vec![(Vec::new(), float(figure as u64))];
    vec![
        counter("modelgate_cloudwatch_datums", "Datums CloudWatch received", one(flushed.datums)),
        counter("modelgate_cloudwatch_calls", "Calls made to CloudWatch", one(flushed.calls)),
        counter("modelgate_cloudwatch_dropped", "Datums given up", one(flushed.dropped)),
        gauge("modelgate_cloudwatch_kept", "Datums that wait for the next flush", one(flushed.kept)),
    ]
}

/// A label set.
type Labels = Vec<(&'static str, String)>;

/// A label set and its figure.
type Sample = (Labels, f64);

fn counter(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Family {
    Family { name, help, counter: true, samples }
}

fn gauge(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Family {
    Family { name, help, counter: false, samples }
}

fn answers(totals: &Totals) -> Vec<Sample> {
    let sample = |((scope, code), count): (&(Option<Scope>, &'static str), &u64)| {
        let mut labels = scope.as_ref().map_or_else(no_scope_labels, scope_labels);
        labels.push(("code", (*code).to_owned()));
        (labels, float(*count))
    };
    totals.answers().iter().map(sample).collect()
}

/// The samples that `pick` makes of the series it knows.
fn each(totals: &Totals, pick: fn(&Series, Total) -> Option<Sample>) -> Vec<Sample> {
    totals.series().filter_map(|(series, total)| pick(series, total)).collect()
}

fn each_limit(totals: &Totals, pick: fn(&Series) -> Option<&Arc<str>>) -> Vec<Sample> {
    let sample =
        |(series, count): (&Series, &u64)| pick(series).map(|plan| (vec![("plan", plan.to_string())], float(*count)));
    totals.limits().iter().filter_map(sample).collect()
}

fn throttled(series: &Series) -> Option<&Arc<str>> {
    if let Series::Throttled { plan } = series { Some(plan) } else { None }
}

fn quota_exceeded(series: &Series) -> Option<&Arc<str>> {
    if let Series::QuotaExceeded { plan } = series { Some(plan) } else { None }
}

fn class(series: &Series, total: Total) -> Option<Sample> {
    let Series::PredictionClass { model, class } = series else { return None };
    Some((vec![("model", model.to_string()), ("class", class.to_string())], total.sum))
}

fn score_sum(series: &Series, total: Total) -> Option<Sample> {
    // The model's own sum is the sum over its versions, which Prometheus can make itself.
    let Series::Prediction(scope @ Scope { version: Some(_), .. }) = series else { return None };
    Some((scope_labels(scope), total.sum))
}

fn score_count(series: &Series, total: Total) -> Option<Sample> {
    score_sum(series, total).map(|(labels, _)| (labels, float(total.count)))
}

fn value_sum(series: &Series, total: Total) -> Option<Sample> {
    let Series::FeatureValue(of) = series else { return None };
    Some((feature_labels(of), total.sum))
}

fn value_count(series: &Series, total: Total) -> Option<Sample> {
    value_sum(series, total).map(|(labels, _)| (labels, float(total.count)))
}

fn missing(series: &Series, total: Total) -> Option<Sample> {
    let Series::FeatureMissing(of) = series else { return None };
    Some((feature_labels(of), total.sum))
}

fn unseen(series: &Series, total: Total) -> Option<Sample> {
    let Series::FeatureUnseen(of) = series else { return None };
    Some((feature_labels(of), total.sum))
}

fn category(series: &Series, total: Total) -> Option<Sample> {
    let Series::FeatureCategory { of, category } = series else { return None };
    let mut labels = feature_labels(of);
    labels.push(("category", category.to_string()));
    Some((labels, total.sum))
}

fn scope_labels(scope: &Scope) -> Vec<(&'static str, String)> {
    let version = scope.version.map(|version| version.to_string()).unwrap_or_default();
    vec![("model", scope.model.to_string()), ("version", version)]
}

fn no_scope_labels() -> Vec<(&'static str, String)> {
    vec![("model", String::new()), ("version", String::new())]
}

fn feature_labels(of: &FeatureOf) -> Vec<(&'static str, String)> {
    vec![("model", of.model.to_string()), ("feature", of.feature.to_string())]
}

#[cfg(test)]
mod tests {
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
}
