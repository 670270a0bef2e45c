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
use super::flusher::Flushed;
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
    flushed: &[(&'static str, Flushed)],
    outside: &[Family],
) -> String {
    let mut registry = Registry::default();
    let families = [own(&totals), standing_families(standing), delivery(flushed), outside.to_vec()].concat();
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
        counter("modelgate_switches", "Times a version came to serve in place of another", each(totals, switched)),
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

/// What was sent, by sink.
fn delivery(flushed: &[(&'static str, Flushed)]) -> Vec<Family> {
    let each = |figure: fn(&Flushed) -> usize| -> Vec<Sample> {
        let sample = |(sink, flushed): &(&'static str, Flushed)| {
            (vec![("sink", (*sink).to_owned())], float(figure(flushed) as u64))
        };
        flushed.iter().map(sample).collect()
    };
    vec![
        counter("modelgate_sink_datums", "Datums a sink received", each(|flushed| flushed.datums)),
        counter("modelgate_sink_calls", "Calls made to a sink", each(|flushed| flushed.calls)),
        counter("modelgate_sink_dropped", "Datums given up", each(|flushed| flushed.dropped)),
        gauge("modelgate_sink_kept", "Datums that wait for the next flush", each(|flushed| flushed.kept)),
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

fn switched(series: &Series, total: Total) -> Option<Sample> {
    if let Series::Switched(scope) = series { Some((scope_labels(scope), total.sum)) } else { None }
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
mod tests;
