//! A collector of metrics by OTLP over HTTP that takes what the protocol and its data model allow and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, ExponentialHistogramDataPoint, Metric, NumberDataPoint, metric, number_data_point,
};
use prost::Message;
use tokio::task::JoinSet;

use super::cloudwatch::Key;
use super::listener;

/// What the collector does with the next calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Takes what the protocol allows.
    #[default]
    Ok,
    /// 503.
    Busy,
    /// 503 to every other call.
    Flaky,
    /// 401.
    Unknown,
    /// Says that it refused two points.
    Partly,
}

/// What a point measures.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Measured {
    /// A delta sum.
    Count(f64),
    /// A delta histogram: count and sum.
    Distribution(u64, f64),
    /// A gauge.
    Level(f64),
}

/// One accepted point.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) key: Key,
    pub(crate) unit: String,
    /// Nanoseconds of its begin and end.
    pub(crate) span: (u64, u64),
    pub(crate) measured: Measured,
}

/// The fake. Dropping it closes its port.
pub(crate) struct Collector {
    endpoint: String,
    shared: Arc<Mutex<Recorded>>,
    _server: JoinSet<()>,
}

#[derive(Default)]
struct Recorded {
    mode: Mode,
    calls: usize,
    points: Vec<Point>,
    refusals: Vec<String>,
    headers: Vec<HeaderMap>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Mutex::new(Recorded::default()));
        let router = Router::new()
            .route("/v1/metrics", post(export))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&shared));
        let (endpoint, server) = listener::serve(router).await;
        Self { endpoint, shared, _server: server }
    }

    /// The base address: the value for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.with(|recorded| recorded.mode = mode);
    }

    pub(crate) fn calls(&self) -> usize {
        self.with(|recorded| recorded.calls)
    }

    pub(crate) fn points(&self) -> Vec<Point> {
        self.with(|recorded| recorded.points.clone())
    }

    pub(crate) fn refusals(&self) -> Vec<String> {
        self.with(|recorded| recorded.refusals.clone())
    }

    pub(crate) fn headers(&self) -> Vec<HeaderMap> {
        self.with(|recorded| recorded.headers.clone())
    }

    /// What counts and histograms come to, by name and labels: the sum of a count, count and sum of a histogram.
    pub(crate) fn totals(&self) -> BTreeMap<Key, (u64, f64)> {
        let mut totals = BTreeMap::new();
        for point in self.points() {
            let total: &mut (u64, f64) = totals.entry(point.key).or_default();
            match point.measured {
                Measured::Count(sum) => total.1 += sum,
                Measured::Distribution(count, sum) => {
                    total.0 += count;
                    total.1 += sum;
                }
                Measured::Level(_) => {}
            }
        }
        totals
    }

    fn with<T>(&self, work: impl FnOnce(&mut Recorded) -> T) -> T {
        work(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn export(State(shared): State<Arc<Mutex<Recorded>>>, headers: HeaderMap, body: Bytes) -> Response {
    let mut recorded = shared.lock().unwrap_or_else(PoisonError::into_inner);
    recorded.calls += 1;
    recorded.headers.push(headers.clone());
    match recorded.mode {
        Mode::Busy => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Mode::Flaky if recorded.calls % 2 == 1 => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Mode::Unknown => return StatusCode::UNAUTHORIZED.into_response(),
        Mode::Ok | Mode::Flaky | Mode::Partly => {}
    }
    match read(&headers, &body) {
        Ok(points) => recorded.points.extend(points),
        Err(wrong) => {
            recorded.refusals.push(wrong);
            return StatusCode::BAD_REQUEST.into_response();
        }
    }
    let refused = || ExportMetricsPartialSuccess { rejected_data_points: 2, error_message: "too dear".into() };
    let partial_success = (recorded.mode == Mode::Partly).then(refused);
    let answer = ExportMetricsServiceResponse { partial_success }.encode_to_vec();
    ([(header::CONTENT_TYPE, "application/x-protobuf")], answer).into_response()
}

fn read(headers: &HeaderMap, body: &[u8]) -> Result<Vec<Point>, String> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    ensure(kind == Some("application/x-protobuf"), || format!("content type {kind:?}"))?;
    let request = ExportMetricsServiceRequest::decode(body).map_err(|error| error.to_string())?;
    // What the message type does not know would be lost on the way back.
    ensure(request.encoded_len() == body.len(), || "bytes that are no field".into())?;
    let mut points = Vec::new();
    for resource in request.resource_metrics {
        let labels = resource.resource.map(|resource| read_labels(&resource.attributes)).transpose()?;
        ensure(labels.is_some_and(|labels| labels.iter().any(|(name, _)| name == "service.name")), || {
            "no name".into()
        })?;
        for scope in resource.scope_metrics {
            let mut names = BTreeSet::new();
            for metric in scope.metrics {
                ensure(names.insert(metric.name.clone()), || format!("{} comes twice", metric.name))?;
                points.extend(read_metric(metric)?);
            }
        }
    }
    Ok(points)
}

fn read_metric(metric: Metric) -> Result<Vec<Point>, String> {
    let Metric { name, unit, data, .. } = metric;
    let well_named = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() <= 255
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-/".contains(&byte));
    ensure(well_named, || format!("the name {name:?}"))?;
    let point = |span, attributes: &[KeyValue], measured| {
        let (since, until) = span;
        ensure(since > 0 && since <= until, || format!("{name} from {since} to {until}"))?;
        Ok(Point { key: (name.clone(), read_labels(attributes)?), unit: unit.clone(), span, measured })
    };
    let number = |at: &NumberDataPoint| match at.value {
        Some(number_data_point::Value::AsDouble(value)) if value.is_finite() => Ok(value),
        ref other => Err(format!("{name} has the value {other:?}")),
    };
    let span = |at: &NumberDataPoint| (at.start_time_unix_nano, at.time_unix_nano);
    let is_delta = |temporality| temporality == i32::from(AggregationTemporality::Delta);
    let points: Vec<Point> = match data {
        Some(metric::Data::Sum(sum)) => {
            ensure(is_delta(sum.aggregation_temporality) && sum.is_monotonic, || format!("{name} is no delta"))?;
            let read = |at: &NumberDataPoint| {
                let value = number(at)?;
                ensure(value >= 0.0, || format!("{name} falls"))?;
                point(span(at), &at.attributes, Measured::Count(value))
            };
            sum.data_points.iter().map(read).collect::<Result<_, String>>()?
        }
        Some(metric::Data::Gauge(gauge)) => {
            let read = |at: &NumberDataPoint| point(span(at), &at.attributes, Measured::Level(number(at)?));
            gauge.data_points.iter().map(read).collect::<Result<_, String>>()?
        }
        Some(metric::Data::ExponentialHistogram(histogram)) => {
            ensure(is_delta(histogram.aggregation_temporality), || format!("{name} is no delta"))?;
            let read = |at: &ExponentialHistogramDataPoint| {
                let span = (at.start_time_unix_nano, at.time_unix_nano);
                point(span, &at.attributes, read_histogram(at).map_err(|wrong| format!("{name}: {wrong}"))?)
            };
            histogram.data_points.iter().map(read).collect::<Result<_, String>>()?
        }
        other => return Err(format!("{name} is {other:?}")),
    };
    let distinct: BTreeSet<_> = points.iter().map(|point| &point.key).collect();
    ensure(!points.is_empty() && distinct.len() == points.len(), || format!("{name} has points of the same labels"))?;
    Ok(points)
}

/// The buckets hold as many as the count says, and their sum lies within what their edges allow.
fn read_histogram(at: &ExponentialHistogramDataPoint) -> Result<Measured, String> {
    ensure((-10..=20).contains(&at.scale), || format!("scale {}", at.scale))?;
    let (mut count, mut least, mut most) = (at.zero_count, 0.0, 0.0);
    for (side, sign) in [(&at.positive, 1.0), (&at.negative, -1.0)] {
        let Some(side) = side else { continue };
        ensure(side.bucket_counts.len() <= 160, || format!("{} buckets", side.bucket_counts.len()))?;
        for (place, held) in (side.offset..).zip(&side.bucket_counts) {
            let edge = |place: i32| 2f64.powf(f64::from(place) * 2f64.powi(-at.scale));
            #[expect(clippy::cast_precision_loss, reason = "tests count little")]
            let (low, high) = (sign * edge(place) * *held as f64, sign * edge(place + 1) * *held as f64);
            least += low.min(high);
            most += low.max(high);
            count += held;
        }
    }
    ensure(count == at.count, || format!("{count} in buckets, {} in all", at.count))?;
    let sum = at.sum.ok_or("no sum")?;
    let slack = 1e-9 * (least.abs() + most.abs());
    ensure(sum >= least - slack && sum <= most + slack, || format!("{sum} is not from {least} to {most}"))?;
    let (min, max) = (at.min.ok_or("no min")?, at.max.ok_or("no max")?);
    ensure(min <= max, || format!("from {min} to {max}"))?;
    Ok(Measured::Distribution(at.count, sum))
}

fn read_labels(labels: &[KeyValue]) -> Result<Vec<(String, String)>, String> {
    ensure(labels.len() <= 128, || format!("{} labels", labels.len()))?;
    let read = |label: &KeyValue| match label.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) if !label.key.is_empty() => Ok((label.key.clone(), text.clone())),
        other => Err(format!("the label {} is {other:?}", label.key)),
    };
    let labels: Vec<(String, String)> = labels.iter().map(read).collect::<Result<_, String>>()?;
    let distinct: BTreeSet<_> = labels.iter().map(|(name, _)| name).collect();
    ensure(distinct.len() == labels.len(), || "a label comes twice".into())?;
    Ok(labels)
}

fn ensure(is_so: bool, wrong: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(wrong()) }
}
