//! A CloudWatch that speaks Smithy RPC v2 CBOR, knows `PutMetricData`, `PutDashboard` and `PutMetricAlarm`, and refuses
//! what AWS refuses.
//!
//! The limits are those of the API reference. What is accepted is recorded, datum by datum.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_cloudwatch::config::timeout::TimeoutConfig;
use aws_sdk_cloudwatch::config::{BehaviorVersion, Credentials, Region, SharedCredentialsProvider};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use ciborium::Value;
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinSet;

use super::listener;
use super::panel::{self, Alarm};

/// What the fake does with the next calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Takes what AWS would take.
    #[default]
    Ok,
    /// 400 `ThrottlingException`.
    Throttle,
    /// 500 `InternalServiceFault`.
    Fault,
    /// Never answers.
    Silent,
    /// Breaks the connection in the middle of the answer.
    Drop,
    /// Throttles every other call.
    Flaky,
    /// 400 `InvalidParameterValue`, whatever was sent.
    Refuse,
    /// 403 `AccessDenied`, as to an identity that may not.
    Deny,
}

/// A metric's name and its dimensions in the order they came.
pub(crate) type Key = (String, Vec<(String, String)>);

/// One accepted datum.
#[derive(Clone, Debug)]
pub(crate) struct Datum {
    pub(crate) namespace: String,
    pub(crate) key: Key,
    pub(crate) at: Timestamp,
    pub(crate) unit: String,
    /// Values with their counts.
    pub(crate) values: Vec<(f64, f64)>,
}

/// AWS's code and a sentence.
pub(crate) type Refusal = (&'static str, String);

/// The fake. Dropping it closes its port.
pub(crate) struct CloudWatch {
    endpoint: String,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

#[derive(Default)]
struct Shared(Mutex<Recorded>);

#[derive(Default)]
struct Recorded {
    mode: Mode,
    now: Timestamp,
    calls: usize,
    largest_bytes: usize,
    datums: Vec<Datum>,
    refusals: Vec<Refusal>,
    dashboards: BTreeMap<String, String>,
    alarms: BTreeMap<String, Alarm>,
}

impl CloudWatch {
    /// A fake that takes everything, at the moment `now`.
    pub(crate) async fn start(now: Timestamp) -> Self {
        let shared = Arc::new(Shared::default());
        shared.with(|recorded| recorded.now = now);
        let router = Router::new()
            .route("/service/GraniteServiceVersion20100801/operation/PutMetricData", post(put_metric_data))
            .route("/service/GraniteServiceVersion20100801/operation/PutDashboard", post(put_dashboard))
            .route("/service/GraniteServiceVersion20100801/operation/PutMetricAlarm", post(put_metric_alarm))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&shared));
        let (endpoint, server) = listener::serve(router).await;
        Self { endpoint, shared, _server: server }
    }

    /// Where it listens: the value for `AWS_ENDPOINT_URL_CLOUDWATCH`.
    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The gateway's own client, pointed here.
    pub(crate) fn client(&self) -> aws_sdk_cloudwatch::Client {
        let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
        let sdk = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .endpoint_url(self.endpoint())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .build();
        modelgate::metrics::cloudwatch::client(&sdk)
    }

    /// As [`client`](Self::client), with less patience.
    pub(crate) fn hasty_client(&self, patience: Duration) -> aws_sdk_cloudwatch::Client {
        let limit = TimeoutConfig::builder().operation_timeout(patience).build();
        let config = self.client().config().to_builder().timeout_config(limit).build();
        aws_sdk_cloudwatch::Client::from_conf(config)
    }

    /// What it does from now on.
    pub(crate) fn set_mode(&self, mode: Mode) {
        self.shared.with(|recorded| recorded.mode = mode);
    }

    /// What time it is for it: time stamps are judged by this.
    pub(crate) fn set_now(&self, now: Timestamp) {
        self.shared.with(|recorded| recorded.now = now);
    }

    /// Calls so far, in any mode.
    pub(crate) fn calls(&self) -> usize {
        self.shared.with(|recorded| recorded.calls)
    }

    /// The longest body so far, uncompressed.
    pub(crate) fn largest_bytes(&self) -> usize {
        self.shared.with(|recorded| recorded.largest_bytes)
    }

    /// Every accepted datum.
    pub(crate) fn datums(&self) -> Vec<Datum> {
        self.shared.with(|recorded| recorded.datums.clone())
    }

    /// Every call that broke a limit.
    pub(crate) fn refusals(&self) -> Vec<Refusal> {
        self.shared.with(|recorded| recorded.refusals.clone())
    }

    /// The bodies of all dashboards, by name.
    pub(crate) fn dashboards(&self) -> BTreeMap<String, String> {
        self.shared.with(|recorded| recorded.dashboards.clone())
    }

    /// Every alarm.
    pub(crate) fn alarms(&self) -> Vec<Alarm> {
        self.shared.with(|recorded| recorded.alarms.values().cloned().collect())
    }

    /// Sample count and sum of each metric with its dimensions.
    pub(crate) fn totals(&self) -> BTreeMap<Key, (f64, f64)> {
        totals(&self.datums())
    }
}

/// Sample count and sum of each metric with its dimensions.
pub(crate) fn totals(datums: &[Datum]) -> BTreeMap<Key, (f64, f64)> {
    let mut totals = BTreeMap::new();
    for datum in datums {
        let total: &mut (f64, f64) = totals.entry(datum.key.clone()).or_default();
        for (value, count) in &datum.values {
            total.0 += count;
            total.1 += value * count;
        }
    }
    totals
}

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Recorded) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn put_metric_data(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let mode = shared.with(|recorded| {
        recorded.calls += 1;
        match recorded.mode {
            Mode::Flaky if recorded.calls % 2 == 1 => Mode::Throttle,
            mode => mode,
        }
    });
    match mode {
        Mode::Ok | Mode::Flaky => match shared.with(|recorded| take(recorded, &headers, &body)) {
            Ok(()) => answer(StatusCode::OK, None, &Value::Map(Vec::new())),
            Err((code, message)) => error(StatusCode::BAD_REQUEST, code, &message),
        },
        Mode::Throttle => error(StatusCode::BAD_REQUEST, "Throttling", "Rate exceeded"),
        Mode::Fault => error(StatusCode::INTERNAL_SERVER_ERROR, "InternalServiceFault", "unwell"),
        Mode::Refuse => error(StatusCode::BAD_REQUEST, "InvalidParameterValue", "not today"),
        Mode::Deny => {
            error(StatusCode::FORBIDDEN, "AccessDenied", "not authorized to perform: cloudwatch:PutMetricData")
        }
        Mode::Silent => std::future::pending().await,
        Mode::Drop => Body::from_stream(futures_util::stream::iter([
            Ok(Bytes::from_static(b"\xa1")),
            Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
        ]))
        .into_response(),
    }
}

async fn put_dashboard(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let taken = read_signed(&headers, &body).and_then(|call| {
        let (name, body) = (text(&call, "DashboardName")?, text(&call, "DashboardBody")?);
        panel::check_body(&body).map_err(|wrong| ("DashboardInvalidInputError", wrong))?;
        shared.with(|recorded| recorded.dashboards.insert(name, body));
        Ok(())
    });
    answered(taken)
}

async fn put_metric_alarm(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let taken = read_signed(&headers, &body).and_then(|call| {
        let alarm = read_alarm(&call)?;
        panel::check_alarm(&alarm).map_err(invalid)?;
        shared.with(|recorded| recorded.alarms.insert(alarm.name.clone(), alarm));
        Ok(())
    });
    answered(taken)
}

fn read_signed(headers: &HeaderMap, body: &[u8]) -> Result<Value, Refusal> {
    check_headers(headers)?;
    let plain = inflate(headers, body)?;
    ciborium::from_reader(&*plain).map_err(|error| invalid(format!("CBOR: {error}")))
}

fn read_alarm(call: &Value) -> Result<Alarm, Refusal> {
    let whole = |name: &str| -> Result<i64, Refusal> {
        let number = required(call, name)?.as_integer().and_then(|number| i64::try_from(number).ok());
        number.ok_or_else(|| invalid(format!("{name} is no whole number")))
    };
    if member(call, "Statistic").is_some() == member(call, "ExtendedStatistic").is_some() {
        return Err(("InvalidParameterCombination", "one of Statistic and ExtendedStatistic".into()));
    }
    number(required(call, "Threshold")?)?;
    Ok(Alarm {
        name: text(call, "AlarmName")?,
        namespace: text(call, "Namespace")?,
        metric: text(call, "MetricName")?,
        dimensions: read_dimensions(call)?,
        statistic: text(call, "Statistic").or_else(|_| text(call, "ExtendedStatistic"))?,
        period: whole("Period")?,
        periods: whole("EvaluationPeriods")?,
        missing: text(call, "TreatMissingData")?,
        operator: text(call, "ComparisonOperator")?,
        actions: list(call, "AlarmActions").map_or(0, <[Value]>::len),
    })
}

fn answered(taken: Result<(), Refusal>) -> Response {
    match taken {
        Ok(()) => answer(StatusCode::OK, None, &Value::Map(Vec::new())),
        Err((code, message)) => error(StatusCode::BAD_REQUEST, code, &message),
    }
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    let exception = if ["InternalServiceFault", "DashboardInvalidInputError"].contains(&code) {
        code.to_owned()
    } else {
        format!("{code}Exception")
    };
    let member = |name: &str, text: String| (Value::Text(name.into()), Value::Text(text));
    let body = Value::Map(vec![
        member("__type", format!("com.amazonaws.cloudwatch#{exception}")),
        member("message", message.to_owned()),
    ]);
    let fault = if status.is_server_error() { "Receiver" } else { "Sender" };
    answer(status, Some(format!("{code};{fault}")), &body)
}

fn answer(status: StatusCode, query_error: Option<String>, body: &Value) -> Response {
    let mut bytes = Vec::new();
    ciborium::into_writer(body, &mut bytes).unwrap();
    let mut response = (status, bytes).into_response();
    let headers = response.headers_mut();
    headers.insert("smithy-protocol", "rpc-v2-cbor".parse().unwrap());
    headers.insert("content-type", "application/cbor".parse().unwrap());
    if let Some(query_error) = query_error {
        headers.insert("x-amzn-query-error", query_error.parse().unwrap());
    }
    response
}

/// Records the call, or says what is wrong with it.
fn take(recorded: &mut Recorded, headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
    let taken = check_headers(headers).and_then(|()| {
        let plain = inflate(headers, body)?;
        recorded.largest_bytes = recorded.largest_bytes.max(plain.len());
        read_call(&plain, recorded.now)
    });
    match taken {
        Ok(datums) => {
            recorded.datums.extend(datums);
            Ok(())
        }
        Err(refusal) => {
            recorded.refusals.push(refusal.clone());
            Err(refusal)
        }
    }
}

fn check_headers(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if text("smithy-protocol") != "rpc-v2-cbor" || text("content-type") != "application/cbor" {
        return Err(("UnknownOperation", "not Smithy RPC v2 CBOR".into()));
    }
    let signature = text("authorization");
    let is_signed = signature.starts_with("AWS4-HMAC-SHA256 Credential=")
        && signature.contains("/monitoring/aws4_request")
        && signature.contains("Signature=")
        && !text("x-amz-date").is_empty();
    if is_signed { Ok(()) } else { Err(("MissingAuthenticationToken", "the call is not signed".into())) }
}

fn inflate(headers: &HeaderMap, body: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut plain = Vec::new();
    if headers.get("content-encoding").is_some_and(|encoding| encoding == "gzip") {
        let read = flate2::read::GzDecoder::new(body).read_to_end(&mut plain);
        read.map_err(|error| invalid(format!("gzip: {error}")))?;
    } else {
        plain.extend_from_slice(body);
    }
    // Not said whether before or after gzip: the stricter reading.
    ensure(plain.len() <= 1_000_000, || format!("{} bytes", plain.len()))?;
    Ok(plain)
}

fn read_call(plain: &[u8], now: Timestamp) -> Result<Vec<Datum>, Refusal> {
    let call: Value = ciborium::from_reader(plain).map_err(|error| invalid(format!("CBOR: {error}")))?;
    let namespace = text(&call, "Namespace")?;
    check_name(&namespace, "Namespace", 255)?;
    ensure(!namespace.starts_with("AWS/"), || "the namespace is reserved".into())?;
    let data = list(&call, "MetricData")?;
    ensure(data.len() <= 1000, || format!("{} metrics", data.len()))?;
    data.iter().map(|datum| read_datum(datum, &namespace, now)).collect()
}

fn read_datum(datum: &Value, namespace: &str, now: Timestamp) -> Result<Datum, Refusal> {
    let name = text(datum, "MetricName")?;
    check_name(&name, "MetricName", 255)?;
    let at = read_timestamp(datum)?;
    let age = now.duration_since(at);
    ensure(age <= SignedDuration::from_hours(14 * 24), || format!("{at} is too old"))?;
    ensure(age >= SignedDuration::from_hours(-2), || format!("{at} is in the future"))?;
    if let Some(resolution) = member(datum, "StorageResolution") {
        let seconds = resolution.as_integer().map(i128::from);
        ensure(matches!(seconds, Some(1 | 60)), || "StorageResolution".into())?;
    }
    let unit = text(datum, "Unit")?;
    let known = ["Seconds", "Microseconds", "Milliseconds", "Percent", "Count", "Count/Second", "None"];
    ensure(known.contains(&unit.as_str()), || format!("unit {unit}"))?;
    let key = (name, read_dimensions(datum)?);
    Ok(Datum { namespace: namespace.to_owned(), key, at, unit, values: read_values(datum)? })
}

fn read_timestamp(datum: &Value) -> Result<Timestamp, Refusal> {
    let Some(Value::Tag(1, seconds)) = member(datum, "Timestamp") else {
        return Err(invalid("Timestamp is no time".into()));
    };
    let seconds = number(seconds)?;
    let at = SignedDuration::try_from_secs_f64(seconds).ok().and_then(|since| Timestamp::from_duration(since).ok());
    at.ok_or_else(|| invalid("Timestamp is out of range".into()))
}

fn read_dimensions(datum: &Value) -> Result<Vec<(String, String)>, Refusal> {
    let dimensions = if member(datum, "Dimensions").is_some() { list(datum, "Dimensions")? } else { &[] };
    ensure(dimensions.len() <= 30, || format!("{} dimensions", dimensions.len()))?;
    let mut read: Vec<(String, String)> = Vec::new();
    for dimension in dimensions {
        let (name, value) = (text(dimension, "Name")?, text(dimension, "Value")?);
        check_name(&name, "dimension name", 255)?;
        check_text(&value, "dimension value", 1024)?;
        ensure(read.iter().all(|(known, _)| *known != name), || format!("dimension {name} twice"))?;
        read.push((name, value));
    }
    Ok(read)
}

fn read_values(datum: &Value) -> Result<Vec<(f64, f64)>, Refusal> {
    let forms = ["Value", "Values", "StatisticValues"];
    let given = forms.iter().filter(|form| member(datum, form).is_some()).count();
    if given != 1 {
        return Err(("InvalidParameterCombination", format!("{given} of {forms:?} are given")));
    }
    let values = match member(datum, "Value") {
        Some(value) => vec![number(value)?],
        None => list(datum, "Values")?.iter().map(number).collect::<Result<_, _>>()?,
    };
    ensure(!values.is_empty() && values.len() <= 150, || format!("{} values", values.len()))?;
    for (place, value) in values.iter().enumerate() {
        ensure(value.is_finite() && value.abs() <= 2f64.powi(360), || format!("value {value}"))?;
        ensure(!values[..place].contains(value), || format!("value {value} twice"))?;
    }
    let counts = match member(datum, "Counts") {
        Some(_) => list(datum, "Counts")?.iter().map(number).collect::<Result<_, _>>()?,
        None => vec![1.0; values.len()],
    };
    ensure(counts.len() == values.len(), || format!("{} counts for {} values", counts.len(), values.len()))?;
    ensure(counts.iter().all(|count| count.is_finite() && *count > 0.0), || "a count is not positive".into())?;
    Ok(values.into_iter().zip(counts).collect())
}

fn check_name(name: &str, what: &str, max: usize) -> Result<(), Refusal> {
    ensure(!name.starts_with(':'), || format!("{what} starts with a colon"))?;
    check_text(name, what, max)
}

fn check_text(text: &str, what: &str, max: usize) -> Result<(), Refusal> {
    ensure((1..=max).contains(&text.len()), || format!("{what} has {} letters", text.len()))?;
    ensure(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), || format!("{what} is not plain ASCII"))?;
    ensure(!text.trim().is_empty(), || format!("{what} is blank"))
}

fn ensure(is_so: bool, message: impl FnOnce() -> String) -> Result<(), Refusal> {
    if is_so { Ok(()) } else { Err(invalid(message())) }
}

fn invalid(message: String) -> Refusal {
    ("InvalidParameterValue", message)
}

fn member<'v>(of: &'v Value, name: &str) -> Option<&'v Value> {
    let Value::Map(members) = of else { return None };
    members.iter().find(|(key, _)| key.as_text() == Some(name)).map(|(_, value)| value)
}

fn required<'v>(of: &'v Value, name: &str) -> Result<&'v Value, Refusal> {
    member(of, name).ok_or_else(|| ("MissingRequiredParameter", format!("{name} is missing")))
}

fn text(of: &Value, name: &str) -> Result<String, Refusal> {
    let value = required(of, name)?;
    value.as_text().map(str::to_owned).ok_or_else(|| invalid(format!("{name} is no text")))
}

fn list<'v>(of: &'v Value, name: &str) -> Result<&'v [Value], Refusal> {
    let value = required(of, name)?;
    value.as_array().map(Vec::as_slice).ok_or_else(|| invalid(format!("{name} is no list")))
}

fn number(value: &Value) -> Result<f64, Refusal> {
    #[expect(clippy::cast_precision_loss, reason = "epoch seconds and small counts")]
    let whole = value.as_integer().and_then(|whole| i64::try_from(whole).ok()).map(|whole| whole as f64);
    value.as_float().or(whole).ok_or_else(|| invalid("not a number".into()))
}
