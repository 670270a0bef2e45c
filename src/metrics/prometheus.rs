//! The text Prometheus reads: the totals since the process began.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::flusher::Flushed;
use super::histogram::float;
use super::series::{Scope, Series};
use super::totals::{Total, Totals};
use super::{Family, Labels, Sample};

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
    let sums = |is_meant: fn(&Series) -> bool| each(totals, is_meant, |total| total.sum);
    let counts = |is_meant: fn(&Series) -> bool| each(totals, is_meant, |total| float(total.count));
    let limits = |is_meant: fn(&Series) -> bool| -> Vec<Sample> {
        let meant = totals.limits().iter().filter(|(series, _)| is_meant(series));
        meant.map(|(series, count)| (labels(series), float(*count))).collect()
    };
    let class = |series: &Series| matches!(series, Series::PredictionClass { .. });
    let value = |series: &Series| matches!(series, Series::FeatureValue(_));
    vec![
        Family::counter("modelgate_requests", "Requests by the code their callers saw", answers(totals)),
        Family::counter(
            "modelgate_switches",
            "Times a version came to serve in place of another",
            sums(|series| matches!(series, Series::Switched(_))),
        ),
        Family::counter("modelgate_predictions", "Predictions by class", sums(class)),
        Family::gauge("modelgate_prediction_score_sum", "Sum of scores or predicted values", sums(is_score)),
        Family::gauge("modelgate_prediction_score_count", "Number of scores or predicted values", counts(is_score)),
        Family::gauge("modelgate_feature_value_sum", "Sum of a feature's values", sums(value)),
        Family::gauge("modelgate_feature_value_count", "Number of a feature's values", counts(value)),
        Family::counter(
            "modelgate_feature_missing",
            "Rows without a value for a feature",
            sums(|series| matches!(series, Series::FeatureMissing(_))),
        ),
        Family::counter(
            "modelgate_feature_unseen",
            "Rows with a category the model has no column for",
            sums(|series| matches!(series, Series::FeatureUnseen(_))),
        ),
        Family::counter(
            "modelgate_feature_category",
            "Rows by the text of a feature",
            sums(|series| matches!(series, Series::FeatureCategory { .. })),
        ),
        Family::counter(
            "modelgate_throttled",
            "Requests above a plan's rate or concurrency",
            limits(|series| matches!(series, Series::Throttled { .. })),
        ),
        Family::counter(
            "modelgate_quota_exceeded",
            "Requests above a plan's quota",
            limits(|series| matches!(series, Series::QuotaExceeded { .. })),
        ),
        Family::counter(
            "modelgate_series_refused",
            "Measurements whose series found no room under the cap",
            vec![(Vec::new(), float(totals.refused()))],
        ),
    ]
}

/// The score of a version; the model's own is what they make together, and Prometheus can add up by itself.
fn is_score(series: &Series) -> bool {
    matches!(series, Series::Prediction(Scope { version: Some(_), .. }))
}

/// The figures of the series that are meant.
fn each(totals: &Totals, is_meant: fn(&Series) -> bool, figure: fn(Total) -> f64) -> Vec<Sample> {
    let meant = totals.series().filter(|(series, _)| is_meant(series));
    meant.map(|(series, total)| (labels(series), figure(total))).collect()
}

/// Drift and accuracy as they were last seen.
fn standing_families(standing: &BTreeMap<Series, f64>) -> Vec<Family> {
    let gauge = |name, help, is_meant: fn(&Series) -> bool| {
        let meant = standing.iter().filter(|(series, _)| is_meant(series));
        Family::gauge(name, help, meant.map(|(series, figure)| (labels(series), *figure)).collect())
    };
    vec![
        gauge("modelgate_feature_psi", "Population stability index of a feature", |series| {
            matches!(series, Series::Psi(_))
        }),
        gauge("modelgate_feature_drift", "Largest difference from the baseline, less chance", |series| {
            matches!(series, Series::FeatureDrift(_))
        }),
        gauge("modelgate_drifted_features", "Features that have drifted", |series| {
            matches!(series, Series::DriftedFeatures(_))
        }),
        gauge("modelgate_max_psi", "Largest PSI of a feature with enough rows", |series| {
            matches!(series, Series::MaxPsi(_))
        }),
        gauge("modelgate_drift_rows", "Rows that drift is computed of", |series| {
            matches!(series, Series::SampleRows(_))
        }),
        gauge("modelgate_accuracy", "Share of labelled rows whose class was right", |series| {
            matches!(series, Series::Accuracy(_))
        }),
        gauge("modelgate_rmse", "Root of the mean squared error of labelled rows", |series| {
            matches!(series, Series::Rmse(_))
        }),
        gauge("modelgate_labelled_rows", "Remembered rows whose label came", |series| {
            matches!(series, Series::LabelledRows(_))
        }),
    ]
}

/// A series' dimensions, named as Prometheus names labels.
fn labels(series: &Series) -> Labels {
    let name = |dimension| match dimension {
        "Model" => "model",
        "Version" => "version",
        "Class" => "class",
        "Feature" => "feature",
        "Category" => "category",
        "Plan" => "plan",
        other => other,
    };
    series.dimensions().into_iter().map(|(dimension, text)| (name(dimension), text)).collect()
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
        Family::counter("modelgate_sink_datums", "Datums a sink received", each(|flushed| flushed.datums)),
        Family::counter("modelgate_sink_calls", "Calls made to a sink", each(|flushed| flushed.calls)),
        Family::counter("modelgate_sink_dropped", "Datums given up", each(|flushed| flushed.dropped)),
        Family::gauge("modelgate_sink_kept", "Datums that wait for the next flush", each(|flushed| flushed.kept)),
    ]
}

fn answers(totals: &Totals) -> Vec<Sample> {
    let sample = |((scope, code), count): (&(Option<Scope>, &'static str), &u64)| {
        let mut labels = scope.as_ref().map_or_else(no_scope_labels, scope_labels);
        labels.push(("code", (*code).to_owned()));
        (labels, float(*count))
    };
    totals.answers().iter().map(sample).collect()
}

fn scope_labels(scope: &Scope) -> Labels {
    let version = scope.version.map(|version| version.to_string()).unwrap_or_default();
    vec![("model", scope.model.to_string()), ("version", version)]
}

fn no_scope_labels() -> Labels {
    vec![("model", String::new()), ("version", String::new())]
}

#[cfg(test)]
mod tests;
