//! One function for each section of `default.toml`, except the models.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use tracing_subscriber::EnvFilter;
use url::Url;

use super::layer::{Origin, Value, mask_url};
use super::reader::Section;
use super::value::{
    Parsed, SECOND, Wrong, address, boolean, duration, finite, list, map, number, path, size, text, text_as, texts,
    whole, word,
};
use super::{Purpose, pins, variable};
use crate::auth::{Access, PlanName, PlanPins};
use crate::capture::protect::Policy;
use crate::capture::{Format, SamplingRate};
use crate::manager::ModelConfig;
use crate::manager::admission::{self, SignatureChange};
use crate::model::{ModelName, RECENT_MAX_ROWS};
use crate::quota::{Enforcement, Limit, OFFSET_MAX, Period, Plan, Throttle, Unit};
use crate::registry::Credentials;
use crate::server::ErrorStyle;
use crate::telemetry::LogFormat;
use crate::{capture, drift, feedback, registry, server, telemetry};

pub(super) const HOUR: Duration = Duration::from_hours(1);

/// A count from one to a million: enough for every limit that is a number of things.
pub(super) fn count<T: TryFrom<u64>>() -> impl Fn(&Value) -> Parsed<T> {
    whole(1..=1_000_000)
}

pub(super) fn server(mut s: Section<'_>) -> server::Config {
    let time = || duration(SECOND..=HOUR);
    let pause = || duration(Duration::ZERO..=HOUR);
    let styles = [("problem", ErrorStyle::Problem), ("api-gateway", ErrorStyle::ApiGateway)];
    let config = server::Config {
        listen: s.defaulted("listen", address),
        admin_listen: s.defaulted("admin_listen", address),
        error_style: s.defaulted("error_style", word(&styles, &[])),
        max_body: s.defaulted("max_body", size(ByteSize::kib(1)..=ByteSize::gib(1))),
        deadline: s.defaulted("deadline", time()),
        max_rows: s.defaulted("max_rows", count()),
        // Reading JSON deeper than this could overflow a thread's stack.
        max_depth: s.defaulted("max_depth", whole(3..=127)),
        max_header_bytes: s.defaulted("max_header_bytes", size(ByteSize::kib(8)..=ByteSize::mib(1))),
        max_headers: s.defaulted("max_headers", whole(16..=1024)),
        header_timeout: s.defaulted("header_timeout", time()),
        body_timeout: s.defaulted("body_timeout", time()),
        idle_timeout: s.defaulted("idle_timeout", time()),
        max_connections: non_zero(s.defaulted("max_connections", count())),
        max_connections_per_address: non_zero(s.defaulted("max_connections_per_address", count())),
        max_streams: NonZeroU32::new(s.defaulted("max_streams", whole(1..=65_535))).unwrap_or(NonZeroU32::MIN),
        max_in_flight: non_zero(s.defaulted("max_in_flight", count())),
        drain_delay: s.defaulted("drain_delay", pause()),
        grace: s.defaulted("grace", pause()),
    };
    check_addresses(&mut s, config.listen, config.admin_listen);
    s.finish();
    config
}

/// Whoever reaches the admin address may use it: it asks for no key.
fn check_addresses(s: &mut Section<'_>, listen: SocketAddr, admin: SocketAddr) {
    if !admin.ip().to_canonical().is_loopback() {
        let text = format!(
            "found {admin}, expected an address of this machine only, such as \"127.0.0.1:8081\": the admin address asks for no key"
        );
        s.mistake("admin_listen", &text);
    }
    if admin == listen && admin.port() != 0 {
        s.mistake("admin_listen", "expected another address than `server.listen`");
    }
}

/// What [`count`] read, in the type that says so.
pub(super) fn non_zero(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN)
}

/// What every version is loaded with, and how many are.
pub(super) struct Engine {
    pub(super) slots: usize,
    pub(super) max_held: usize,
}

pub(super) fn engine(mut s: Section<'_>, processors: NonZeroUsize) -> Engine {
    let default = Value::Integer(i64::try_from(processors.get()).map_or(1, |processors| processors.min(1024)));
    let engine =
        Engine { slots: s.or("slots", default, whole(1..=1024)), max_held: s.defaulted("max_held", whole(0..=64)) };
    s.finish();
    engine
}

const FOLDERS: &str = "a list of folders in S3, such as [\"s3://bucket/folder\"]";

enum Location {
    Server(Url),
    Directory(PathBuf),
}

/// Where versions come from, how often to look, and what else passes between the registry and us.
pub(super) struct Registry {
    pub(super) config: registry::Config,
    pub(super) poll_interval: Duration,
    pub(super) write_back: bool,
    pub(super) webhook_secret: Option<SecretString>,
}

pub(super) fn registry(mut s: Section<'_>) -> Registry {
    let location = s.defaulted("uri", text_as("\"http://…\", \"https://…\" or \"file:directory\"", location));
    let poll_interval = s.defaulted("poll_interval", duration(SECOND * 5..=HOUR * 24));
    let timeout = s.defaulted("timeout", duration(SECOND..=HOUR));
    let max_bytes = s.defaulted("max_bytes", size(ByteSize::kib(1)..=ByteSize::tib(1)));
    let given = credentials(&mut s);
    let workspace = s.optional("workspace", text);
    let ca_file = s.optional("ca_file", path);
    let write_back = s.switch("write_back");
    let webhook_secret = secret(&mut s, "webhook_secret", "webhook_secret_file");
    let artifact_roots =
        s.optional("artifact_roots", list(FOLDERS, text_as("s3://bucket/folder", |text| text.parse().ok())));
    let artifact_roots = artifact_roots.unwrap_or_default();
    let s3_endpoint = s.optional("s3_endpoint", text_as("\"http://…\" or \"https://…\"", endpoint));
    s.finish();
    let config = match location {
        Location::Directory(root) => registry::Config::Directory(root),
        Location::Server(mut uri) => {
            let in_uri = take_credentials(&mut uri);
            let credentials = if matches!(given, Credentials::None) { in_uri } else { given };
            registry::Config::Mlflow(Box::new(registry::Mlflow {
                uri,
                credentials,
                timeout,
                workspace,
                max_bytes,
                ca_file,
                artifact_roots,
                s3_endpoint,
            }))
        }
    };
    Registry { config, poll_interval, write_back, webhook_secret }
}

fn location(text: &str) -> Option<Location> {
    if let Some(root) = directory(text) {
        return Some(Location::Directory(root));
    }
    let url = Url::parse(text).ok()?;
    let plain = matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none();
    plain.then_some(Location::Server(url))
}

fn endpoint(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"))
}

/// The directory in `file:directory` or `file:///directory`.
fn directory(text: &str) -> Option<PathBuf> {
    let path = text.strip_prefix("file:")?;
    let path = if path.starts_with("///") { &path[2..] } else { path };
    (!path.is_empty() && !path.starts_with("//")).then(|| path.into())
}

/// As MLflow has it: a name with a password before a token.
fn credentials(s: &mut Section<'_>) -> Credentials {
    let username = s.optional("username", text);
    let password = secret(s, "password", "password_file");
    let token = secret(s, "token", "token_file");
    check_pair(s);
    match (username, password, token) {
        (Some(username), Some(password), _) => Credentials::Basic { username, password },
        (_, _, Some(token)) => Credentials::Bearer(token),
        _ => Credentials::None,
    }
}

/// Half of a name and password is a mistake, unless there is a token to do without them.
fn check_pair(s: &mut Section<'_>) {
    let has_token = s.has("token") || s.has("token_file");
    let password = ["password", "password_file"].into_iter().find(|key| s.has(key));
    match (s.has("username"), password) {
        (true, None) if !has_token => s.mistake("username", "expected a `password` or `password_file` with it"),
        (false, Some(key)) if !has_token => s.mistake(key, "expected a `username` with it"),
        _ => (),
    }
}

/// The secret at `key`, or in the file at `file_key`.
pub(super) fn secret(s: &mut Section<'_>, key: &'static str, file_key: &'static str) -> Option<SecretString> {
    let written = s.secret(key);
    let file = s.optional(file_key, path);
    if s.has(key) && s.has(file_key) {
        s.mistake(file_key, &format!("expected either this or `{key}`, not both"));
    }
    let from_file = file.and_then(|file| match read_secret(&file) {
        Ok(secret) => Some(secret),
        Err(problem) => {
            s.mistake(file_key, &format!("cannot read `{}`: {problem}", file.display()));
            None
        }
    });
    written.or(from_file).map(SecretString::from)
}

fn read_secret(file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err("it is empty".to_owned()),
        secret => Ok(secret.to_owned()),
    }
}

/// Moves the user and password out of `https://user:password@host`, where error texts and logs could show them.
fn take_credentials(uri: &mut Url) -> Credentials {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (username, password) = (decoded(uri.username()), uri.password().map(decoded));
    // Only URLs without a host refuse this, and http URLs have one.
    let _ = uri.set_username("");
    let _ = uri.set_password(None);
    match password {
        Some(password) => Credentials::Basic { username, password: password.into() },
        None => Credentials::None,
    }
}

/// Variables that say where shared libraries lie: all that a process which tries a model is given of the environment.
const LIBRARY_VARIABLES: [&str; 2] = ["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"];

pub(super) fn admission(mut s: Section<'_>, env: &[(String, String)]) -> admission::Config {
    let environment = LIBRARY_VARIABLES
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), variable(env, name)?.to_owned())))
        .collect();
    let changes = [("refuse", SignatureChange::Refuse), ("allow", SignatureChange::Allow)];
    let config = admission::Config {
        probe: s.switch("probe"),
        // Where the system does not say, no version can be tried, and each says so.
        program: std::env::current_exe().unwrap_or_default(),
        environment,
        max_load_memory: s.defaulted("max_load_memory", size(ByteSize::mib(256)..=ByteSize::tib(1))),
        max_load_cpu: s.defaulted("max_load_cpu", duration(SECOND..=HOUR)),
        max_load_wall: s.defaulted("max_load_wall", duration(SECOND..=HOUR)),
        replay_rows: s.defaulted("replay_rows", whole(0..=RECENT_MAX_ROWS as u64)),
        max_disagreement: s.defaulted("max_disagreement", number(0.0..=1.0)),
        max_latency_ratio: s.defaulted("max_latency_ratio", number(1.0..=1e6)),
        max_shift: s.defaulted("max_shift", number(0.0..=1.0)),
        signature_change: s.defaulted("signature_change", word(&changes, &[])),
    };
    s.finish();
    config
}

/// Every plan, as the modules that need it see it.
pub(super) struct Plans {
    pub(super) access: BTreeMap<PlanName, Access>,
    pub(super) limits: BTreeMap<PlanName, Plan>,
    pub(super) pins: PlanPins,
}

/// The plan there is when none is written, so that a gateway without a file can have keys.
const DEFAULT_PLAN: &str = "default";

pub(super) fn plans(root: &mut Section<'_>, models: &[ModelConfig], purpose: Purpose, max_held: usize) -> Plans {
    let mut plans = Plans { access: BTreeMap::new(), limits: BTreeMap::new(), pins: PlanPins::new() };
    for name in root.names("plans") {
        let mut s = root.named("plans", &name);
        if !is_plan_name(&name) {
            s.refuse("expected a plan's name of 1 to 64 of A-Z a-z 0-9 _ -");
        }
        let name = PlanName::from(name);
        plans.limits.insert(name.clone(), limits(&mut s));
        let pins = pins::read(&mut s, models, purpose, max_held, &plans.pins);
        plans.pins.insert(name.clone(), pins);
        plans.access.insert(name, access(&mut s, models, purpose));
        s.finish();
    }
    if plans.limits.is_empty() {
        plans.limits.insert(DEFAULT_PLAN.into(), Plan::default());
        plans.access.insert(DEFAULT_PLAN.into(), Access::All);
        root.show_default(&format!("plans.{DEFAULT_PLAN}"));
    }
    plans
}

fn is_plan_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

fn limits(s: &mut Section<'_>) -> Plan {
    let rate = s.optional("rate", number(0.001..=1e6));
    let burst = s.optional("burst", count());
    let quota = s.optional("quota", whole::<u64>(1..=i64::MAX.unsigned_abs()));
    let period = [("day", Period::Day), ("week", Period::Week), ("month", Period::Month)];
    let period = s.defaulted("period", word(&period, &[]));
    let offset = s.optional("offset", duration(Duration::ZERO..=OFFSET_MAX)).unwrap_or_default();
    let unit = s.defaulted("unit", word(&[("rows", Unit::Rows), ("requests", Unit::Requests)], &[]));
    let concurrency = s.optional("concurrency", count());
    let enforced = s.defaulted("enforce", boolean);
    if burst.is_some() && !s.has("rate") {
        s.mistake("burst", "expected a `rate` with it");
    }
    if s.has("offset") && !s.has("quota") {
        s.mistake("offset", "expected a `quota` with it");
    }
    Plan {
        throttle: rate.map(|rate| Throttle { rate, burst: burst.unwrap_or_else(|| one_second_of(rate)) }),
        quota: quota.and_then(NonZeroU64::new).map(|amount| Limit { amount, period }),
        offset,
        unit,
        concurrency: concurrency.and_then(NonZeroU32::new),
        enforcement: if enforced { Enforcement::Enforced } else { Enforcement::DryRun },
    }
}

/// The requests of one second, at least one.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is above zero, a million at most")]
fn one_second_of(rate: f64) -> u32 {
    rate.ceil() as u32
}

fn access(s: &mut Section<'_>, models: &[ModelConfig], purpose: Purpose) -> Access {
    let Some(allowed) = s.optional("models", texts) else { return Access::All };
    if allowed.is_empty() {
        s.mistake("models", "found an empty list, expected a model (leave the key out to allow all)");
    }
    let known = |name: &str| models.iter().any(|model| model.name.as_str() == name);
    for unknown in allowed.iter().filter(|name| purpose == Purpose::Serve && !known(name)) {
        s.mistake("models", &format!("there is no [[model]] with the name {unknown:?}"));
    }
    Access::Only(BTreeSet::from_iter(allowed))
}

/// How drift is looked for.
pub(super) fn drift(mut s: Section<'_>) -> drift::Config {
    let config = drift::Config {
        window: s.defaulted("window", duration(SECOND * 60..=HOUR * 24 * 7)),
        threshold: s.defaulted("threshold", number(0.001..=10.0)),
        min_rows: s.defaulted("min_rows", whole(20..=1_000_000)),
        baseline_rows: s.defaulted("baseline_rows", whole(20..=10_000)),
        by_key: s.switch("by_key"),
    };
    if config.baseline_rows < config.min_rows {
        s.mistake("baseline_rows", "expected at least `min_rows`: with fewer there would never be a verdict");
    }
    s.finish();
    config
}

pub(super) fn capture(
    mut s: Section<'_>,
    data_dir: &Path,
    rates: BTreeMap<ModelName, SamplingRate>,
) -> Option<capture::Config> {
    let sink = s.required(
        "sink",
        text_as("\"s3://bucket/prefix\" (3 to 63 of a-z 0-9 . - for the bucket) or \"file:directory\"", sink),
    );
    let formats = [("parquet", Format::Parquet), ("jsonl", Format::Jsonl), ("csv", Format::Csv)];
    let format = s.defaulted("format", word(&formats, &[]));
    let rate = SamplingRate::new(s.defaulted("rate", number(0.0..=1.0)));
    let failed = s.switch("failed");
    let protect = protect(&mut s);
    let spool_max_bytes = s.defaulted("spool_max", size(ByteSize::mib(1)..=ByteSize::tib(1)));
    let mut flush = s.section("flush");
    let flush_rows = NonZeroU32::new(flush.defaulted("rows", count()));
    let flush_age = flush.defaulted("age", duration(SECOND..=HOUR * 24));
    flush.finish();
    s.finish();
    Some(capture::Config {
        sink: sink?,
        format,
        rate: rate?,
        rates,
        failed,
        flush_rows: flush_rows?,
        flush_age,
        protect,
        secret: data_dir.join("capture-secret"),
        spool: data_dir.join("spool"),
        spool_max_bytes,
    })
}

/// Whether labels are taken, and how long their answers are remembered. Objects of labels are made as those of samples.
pub(super) fn feedback(mut s: Section<'_>, data_dir: &Path, samples: Option<&capture::Config>) -> feedback::Config {
    let config = feedback::Config {
        age: s.defaulted("age", duration(HOUR..=HOUR * 24 * 366)),
        max_bytes: s.defaulted("max_size", size(ByteSize::mib(1)..=ByteSize::tib(1))),
        max_labels: s.defaulted("max_labels", count()),
        file: data_dir.join("feedback.db"),
        objects: samples.map(|samples| feedback::Objects {
            format: samples.format,
            flush_rows: samples.flush_rows.get(),
            flush_age: samples.flush_age,
        }),
    };
    s.finish();
    config
}

/// A feature under two rules is a mistake: whoever wrote it expected either.
fn protect(s: &mut Section<'_>) -> Policy {
    let redact = s.optional("redact", texts).unwrap_or_default();
    let hash = s.optional("hash", texts).unwrap_or_default();
    let width = |value: &Value| {
        let wrong = || Wrong::expected("a number above 0");
        finite(value).filter(|width| *width > 0.0).ok_or_else(wrong)
    };
    let expected = "a table of numbers above 0, such as { Income = 1000 }";
    let bucket = s.optional("bucket", map(expected, width)).unwrap_or_default();
    for name in hash.iter().filter(|name| redact.contains(name)) {
        s.mistake("hash", &format!("{name:?} is in `redact` too, expected one of them"));
    }
    for name in bucket.keys().filter(|name| redact.contains(name) || hash.contains(name)) {
        s.mistake("bucket", &format!("{name:?} is in `redact` or `hash` too, expected one of them"));
    }
    Policy { redact, hash, bucket }
}

/// A place for samples, as the configuration writes it.
pub(super) fn sink(text: &str) -> Option<capture::sink::Config> {
    if let Some(path) = directory(text) {
        return Some(capture::sink::Config::Directory(path));
    }
    let (bucket, prefix) = text.strip_prefix("s3://")?.split_once('/').unwrap_or((&text[5..], ""));
    let prefix = prefix.trim_matches('/');
    let legal = is_bucket_name(bucket) && !prefix.contains("//") && !prefix.contains(char::is_control);
    legal.then(|| capture::sink::Config::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

/// S3's rules for a bucket's name, as far as letters go.
fn is_bucket_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
    (3..=63).contains(&name.len()) && name.bytes().all(legal) && !name.starts_with(['.', '-'])
}

pub(super) fn telemetry(mut s: Section<'_>, env: &[(String, String)]) -> telemetry::Config {
    let filter = |text: &str| EnvFilter::try_new(text).ok().map(|_| text.to_owned());
    let config = telemetry::Config {
        format: s.defaulted("log_format", word(&[("text", LogFormat::Text), ("json", LogFormat::Json)], &[])),
        filter: s.defaulted("log_filter", text_as("a log filter, such as \"info,modelgate=debug\"", filter)),
        otlp: otlp(&mut s, env),
    };
    s.finish();
    config
}

/// Where traces go, as OpenTelemetry's variables say. The exporter reads the rest of them (headers, time-out) itself.
fn otlp(s: &mut Section<'_>, env: &[(String, String)]) -> Option<telemetry::Otlp> {
    let endpoint = otlp_endpoint(s, env, &TRACES)?;
    Some(telemetry::Otlp { endpoint: endpoint.into(), service_name: otlp_service_name(env) })
}

/// The name in traces and metrics.
pub(super) fn otlp_service_name(env: &[(String, String)]) -> String {
    variable(env, "OTEL_SERVICE_NAME").unwrap_or("modelgate").to_owned()
}

/// What one kind of telemetry is called, by people, in an address and in OpenTelemetry's variables.
pub(super) struct Signal {
    pub(super) name: &'static str,
    pub(super) endpoint: &'static str,
    pub(super) protocol: &'static str,
}

const TRACES: Signal = Signal {
    name: "traces",
    endpoint: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
};

/// Where OpenTelemetry's variables want `signal`: the variable for all signals is a base address.
pub(super) fn otlp_endpoint(s: &mut Section<'_>, env: &[(String, String)], signal: &Signal) -> Option<Url> {
    let all = "OTEL_EXPORTER_OTLP_ENDPOINT";
    let exact = variable(env, signal.endpoint).map(|endpoint| (signal.endpoint, endpoint.to_owned()));
    let base = || Some((all, format!("{}/v1/{}", variable(env, all)?.trim_end_matches('/'), signal.name)));
    let (name, endpoint) = exact.or_else(base)?;
    let origin = Origin::Variable(name.to_owned());
    let Some(url) = collector(&endpoint) else {
        s.mistake_at(origin, "expected the address of a collector, such as \"http://localhost:4318\"");
        return None;
    };
    check_otlp_protocol(s, env, signal);
    s.note(format!("# {} to {}", signal.name, mask_url(&endpoint)), &origin);
    Some(url)
}

/// The address of a collector.
pub(super) fn collector(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"))
}

/// We speak one of OpenTelemetry's protocols.
fn check_otlp_protocol(s: &mut Section<'_>, env: &[(String, String)], signal: &Signal) {
    for name in ["OTEL_EXPORTER_OTLP_PROTOCOL", signal.protocol] {
        if let Some(protocol) = variable(env, name).filter(|protocol| *protocol != "http/protobuf") {
            let text = format!("found {protocol:?}, expected \"http/protobuf\" (most collectors take it on port 4318)");
            s.mistake_at(Origin::Variable(name.to_owned()), &text);
        }
    }
}
