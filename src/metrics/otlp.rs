//! An OpenTelemetry collector, by OTLP over HTTP with protobuf.
//!
//! Counts are delta sums, what has a spread is a delta exponential histogram, and what stands until the next look is a
//! gauge. Names and labels are those of CloudWatch in OpenTelemetry's letters: `FeatureValue` of `Feature` is
//! `modelgate.feature_value` of `feature`.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, exponential_histogram_data_point::Buckets, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use url::Url;

use super::Mode;
use super::datum::Line;
use super::flusher::Answer;
use super::histogram::{Point, float};
use super::queue::{Batch, Span};
use super::series::{Kind, Unit};

/// Where it goes.
#[derive(Clone, Debug)]
pub struct Config {
    /// The collector's endpoint for metrics.
    pub endpoint: Url,
    /// Sent with every call, for collectors that ask who is there.
    pub headers: HeaderMap,
    /// The service's name.
    pub service_name: String,
    /// How often.
    pub interval: Duration,
    /// What is sent.
    pub mode: Mode,
}

/// The longest a call may take, with everything; the limit that OpenTelemetry's own exporters have.
const CALL_MAX: Duration = Duration::from_secs(10);

/// No more of an answer is read.
const ANSWER_MAX_BYTES: usize = 64 << 10;

/// The scale of a histogram before it is made coarser: 32 buckets an octave, as those that were measured in.
const SCALE: i32 = 5;

/// Buckets on either side of zero at most; collectors keep 160 by default.
const BUCKETS_MAX: i64 = 160;

/// Sends a collector no metrics at all, to see whether it takes them.
///
/// # Errors
/// What it says, or why it cannot be asked.
pub async fn look(client: reqwest::Client, config: Config) -> Result<(), String> {
    // A message without fields is empty.
    match Exporter::new(client, config).call(Vec::new()).await {
        Answer::Received | Answer::ReceivedBut(..) => Ok(()),
        Answer::Invalid(wrong) | Answer::Failed(wrong) => Err(wrong),
    }
}

/// Sends batches to a collector.
#[derive(Debug)]
pub(super) struct Exporter {
    client: reqwest::Client,
    config: Config,
}

impl Exporter {
    pub(super) fn new(client: reqwest::Client, config: Config) -> Self {
        Self { client, config }
    }

    /// Sends one batch.
    pub(super) async fn send(&self, batch: &Batch) -> Answer {
        self.call(request(batch, &self.config.service_name).encode_to_vec()).await
    }

    async fn call(&self, body: Vec<u8>) -> Answer {
        let call = self
            .client
            .post(self.config.endpoint.clone())
            .headers(self.config.headers.clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .timeout(CALL_MAX)
            .body(body);
        match call.send().await {
            Ok(response) => answer_of(response).await,
            Err(error) => Answer::Failed(chain(&error.without_url())),
        }
    }
}

async fn answer_of(mut response: reqwest::Response) -> Answer {
    let status = response.status();
    let mut body = Vec::new();
    while let Ok(Some(part)) = response.chunk().await {
        if body.len() + part.len() > ANSWER_MAX_BYTES {
            break;
        }
        body.extend_from_slice(&part);
    }
    if status.is_success() {
        return received(&body);
    }
    if is_invalid(status) { Answer::Invalid(status.to_string()) } else { Answer::Failed(status.to_string()) }
}

/// A collector that took only a part says so in the answer. One that answers something else took everything.
fn received(body: &[u8]) -> Answer {
    let partly = ExportMetricsServiceResponse::decode(body).ok().and_then(|answer| answer.partial_success);
    match partly {
        Some(partly) if partly.rejected_data_points > 0 => Answer::ReceivedBut(
            usize::try_from(partly.rejected_data_points).unwrap_or(usize::MAX),
            partly.error_message,
        ),
        _ => Answer::Received,
    }
}

/// Whether the fault lies in the call. All else may pass: the collector is down, or busy, or its credentials are renewed.
fn is_invalid(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::UNPROCESSABLE_ENTITY
    )
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes: Vec<_> = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    causes.join(": ")
}

fn request(batch: &Batch, service_name: &str) -> ExportMetricsServiceRequest {
    let resource = Resource { attributes: vec![label("service.name", service_name.to_owned())], ..Resource::default() };
    let scope = InstrumentationScope {
        name: "modelgate".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let metrics = metrics(batch);
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, schema_url: String::new() }];
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics { resource: Some(resource), scope_metrics, schema_url: String::new() }],
    }
}

/// Every metric once, with a point for each of its series.
fn metrics(batch: &Batch) -> Vec<Metric> {
    let mut by_name: BTreeMap<String, Vec<&Line>> = BTreeMap::new();
    for line in &batch.lines {
        by_name.entry(metric_name(&line.series.name())).or_default().push(line);
    }
    by_name.into_iter().filter_map(|(name, lines)| metric(name, &lines, batch.span)).collect()
}

fn metric(name: String, lines: &[&Line], span: Span) -> Option<Metric> {
    let series = &lines.first()?.series;
    let unit = match series.unit() {
        Unit::Milliseconds => "ms",
        Unit::Count | Unit::None => "1",
    };
    let delta = AggregationTemporality::Delta.into();
    let data = match series.kind() {
        Kind::Count => metric::Data::Sum(Sum {
            data_points: lines.iter().map(|line| count(line, span)).collect(),
            aggregation_temporality: delta,
            is_monotonic: true,
        }),
        Kind::Distribution => metric::Data::ExponentialHistogram(ExponentialHistogram {
            data_points: lines.iter().map(|line| distribution(line, span)).collect(),
            aggregation_temporality: delta,
        }),
        Kind::Level => metric::Data::Gauge(Gauge { data_points: lines.iter().map(|line| level(line, span)).collect() }),
    };
    Some(Metric { name, unit: unit.to_owned(), data: Some(data), ..Metric::default() })
}

fn count(line: &Line, span: Span) -> NumberDataPoint {
    number(line, span, total(&line.points).1)
}

/// Where several looks were added up in an outage, their mean.
fn level(line: &Line, span: Span) -> NumberDataPoint {
    let (count, sum) = total(&line.points);
    number(line, span, sum / float(count))
}

fn number(line: &Line, span: Span, value: f64) -> NumberDataPoint {
    NumberDataPoint {
        attributes: labels(line),
        start_time_unix_nano: nanoseconds(span.since),
        time_unix_nano: nanoseconds(span.until),
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    }
}

fn distribution(line: &Line, span: Span) -> ExponentialHistogramDataPoint {
    let (count, sum) = total(&line.points);
    let side = |sign: f64| -> Vec<Place> {
        let points = line.points.iter().filter(|point| point.value * sign > 0.0);
        points.map(|point| Place { index: index(point.value.abs()), count: point.count }).collect()
    };
    let (positive, negative) = (side(1.0), side(-1.0));
    let coarser = coarser(&positive).max(coarser(&negative));
    let zero = line.points.iter().filter(|point| point.value == 0.0).map(|point| point.count).sum();
    ExponentialHistogramDataPoint {
        attributes: labels(line),
        start_time_unix_nano: nanoseconds(span.since),
        time_unix_nano: nanoseconds(span.until),
        count,
        sum: Some(sum),
        scale: SCALE - coarser,
        zero_count: zero,
        positive: Some(buckets(&positive, coarser)),
        negative: Some(buckets(&negative, coarser)),
        min: line.points.first().map(|point| point.value),
        max: line.points.last().map(|point| point.value),
        ..ExponentialHistogramDataPoint::default()
    }
}

/// So many values in a bucket.
struct Place {
    index: i32,
    count: u64,
}

/// The bucket of `value` at [`SCALE`]: bucket i holds what is above 2^(i/32), to 2^((i+1)/32) inclusive.
#[expect(clippy::cast_possible_truncation, reason = "an exponent has four digits")]
fn index(value: f64) -> i32 {
    (value.log2() * f64::from(1 << SCALE)).ceil() as i32 - 1
}

/// How many times neighbours must be joined two by two for the buckets to be few enough.
fn coarser(places: &[Place]) -> i32 {
    let indices = || places.iter().map(|place| i64::from(place.index));
    let (Some(low), Some(high)) = (indices().min(), indices().max()) else { return 0 };
    let fits = |by: &i32| (high >> by) - (low >> by) < BUCKETS_MAX;
    (0..i64::BITS.cast_signed()).find(fits).expect("shifted far enough, all buckets are one of two")
}

fn buckets(places: &[Place], coarser: i32) -> Buckets {
    let indices = || places.iter().map(|place| place.index >> coarser);
    let (Some(offset), Some(last)) = (indices().min(), indices().max()) else { return Buckets::default() };
    let slot = |index: i32| usize::try_from(index - offset).unwrap_or_default();
    let mut bucket_counts = vec![0; slot(last) + 1];
    for place in places {
        bucket_counts[slot(place.index >> coarser)] += place.count;
    }
    Buckets { offset, bucket_counts }
}

fn total(points: &[Point]) -> (u64, f64) {
    points.iter().fold((0, 0.0), |(count, sum), point| (count + point.count, sum + point.value * float(point.count)))
}

fn labels(line: &Line) -> Vec<KeyValue> {
    line.series.dimensions().into_iter().map(|(name, value)| label(&snake_case(name), value)).collect()
}

fn label(name: &str, value: String) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value)) };
    KeyValue { key: name.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn metric_name(name: &str) -> String {
    format!("modelgate.{}", snake_case(name))
}

/// `MaxPSI` → `max_psi`.
fn snake_case(name: &str) -> String {
    let mut text = String::new();
    let mut before = '_';
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && before.is_ascii_lowercase() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
        before = letter;
    }
    text
}

fn nanoseconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_nanosecond()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_in_opentelemetrys_letters() {
        for (ours, theirs) in
            [("MaxPSI", "max_psi"), ("PSI", "psi"), ("FeatureValue", "feature_value"), ("Model", "model")]
        {
            assert_eq!(snake_case(ours), theirs);
        }
    }

    #[test]
    fn an_edge_belongs_to_the_bucket_below_it() {
        assert_eq!([0.5, 1.0, 1.01, 2.0].map(index), [-33, -1, 0, 31]);
    }

    proptest! {
        #[test]
        fn every_value_lies_in_its_bucket_and_none_is_lost(
            values in prop::collection::vec(prop::num::f64::NORMAL.prop_map(f64::abs), 1..50),
        ) {
            let places: Vec<_> = values.iter().map(|value| Place { index: index(*value), count: 1 }).collect();
            let coarser = coarser(&places);
            let buckets = buckets(&places, coarser);
            prop_assert!(i64::try_from(buckets.bucket_counts.len()).unwrap() <= BUCKETS_MAX);
            prop_assert_eq!(buckets.bucket_counts.iter().sum::<u64>(), values.len() as u64);
            for value in values {
                let edge = |index: i32| f64::from(index) * 2f64.powi(coarser - SCALE);
                let at = index(value) >> coarser;
                // The logarithm is rounded; an edge may be off by its last digits.
                prop_assert!(value.log2() > edge(at) - 1e-9 && value.log2() <= edge(at + 1) + 1e-9);
            }
        }
    }
}
