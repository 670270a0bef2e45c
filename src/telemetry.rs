//! Logs to standard error, traces to OTLP where the standard variables name a collector.
//!
//! Without a collector nothing of OpenTelemetry is installed and a span costs what the log filter makes of it.

use std::io::{self, IsTerminal};
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// How long a stop waits for the collector to take the last spans.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// How the process tells what it does.
#[derive(Clone, Debug)]
pub struct Config {
    /// The shape of a log line.
    pub format: LogFormat,
    /// A `tracing` filter, as `RUST_LOG` has it.
    pub filter: String,
    /// Where traces go, from `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_EXPORTER_OTLP_ENDPOINT`; nowhere if unset.
    pub otlp: Option<Otlp>,
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where traces go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Otlp {
    /// The collector's traces endpoint.
    pub endpoint: String,
    /// The service's name in traces.
    pub service_name: String,
}

/// Why there are no logs or traces.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is none.
    #[error("the log filter cannot be used")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The exporter cannot be made.
    #[error("traces cannot be sent")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// There is one already.
    #[error("logs are already set up in this process")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Keeps traces flowing; dropped, it sends the last of them. Drop it outside of the asynchronous runtime.
#[derive(Debug)]
#[must_use = "traces end when this is dropped"]
pub struct Guard(Option<SdkTracerProvider>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(FLUSH_TIMEOUT)
        {
            warn!(%error, "the last traces may be lost: {error}");
        }
    }
}

/// Sets up logs and traces for the process. Call it once, outside of the asynchronous runtime, with a TLS provider
/// installed.
///
/// # Errors
/// When one of them cannot be set up.
pub fn init(config: &Config) -> Result<Guard, TelemetryError> {
    let (subscriber, guard) = subscriber(config, io::stderr)?;
    subscriber.try_init()?;
    Ok(guard)
}

fn subscriber<W>(config: &Config, log: W) -> Result<(impl Subscriber + Send + Sync + use<W>, Guard), TelemetryError>
where
    W: for<'w> fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let provider = config.otlp.as_ref().map(provider).transpose()?;
    // Traces have a filter of their own: a quiet log is no reason for an empty trace.
    let traces = provider.as_ref().map(|provider| {
        let ours = Targets::new().with_target("modelgate", LevelFilter::INFO);
        tracing_opentelemetry::layer().with_tracer(provider.tracer("modelgate")).with_filter(ours)
    });
    let logs = lines(config.format, log).with_filter(EnvFilter::try_new(&config.filter)?);
    Ok((tracing_subscriber::registry().with(logs).with(traces), Guard(provider)))
}

fn lines<S, W>(format: LogFormat, log: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_writer(log);
    match format {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        // Left alone, the layer colours unless NO_COLOR asks it not to.
        LogFormat::Text if io::stderr().is_terminal() => layer.boxed(),
        LogFormat::Text => layer.with_ansi(false).boxed(),
    }
}

/// Sends spans in batches from a thread of its own, with a blocking client: the asynchronous one has no runtime there.
fn provider(otlp: &Otlp) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&otlp.endpoint)
        .build()?;
    let resource = Resource::builder().with_service_name(otlp.service_name.clone()).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// Gives `span` the parent that a W3C `traceparent` among `headers` names; for where traces are on. Call it before the
/// span is entered.
pub fn follow(span: &Span, headers: &HeaderMap) {
    if !headers.contains_key("traceparent") {
        return;
    }
    let context = TraceContextPropagator::new().extract(&Headers(headers));
    if context.span().span_context().is_valid() {
        // Fails only where no traces are collected, and then there is nothing to be part of.
        let _ = span.set_parent(context);
    }
}

struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::body::Bytes;
    use axum::extract::State;
    use axum::routing::post;
    use tokio::net::TcpListener;
    use tracing::{info, info_span};

    use super::*;

    /// A collector that keeps the bytes it is sent.
    struct Collector {
        endpoint: String,
        received: Arc<Mutex<Vec<u8>>>,
        _runtime: tokio::runtime::Runtime,
    }

    impl Collector {
        fn start() -> Self {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let received = Arc::new(Mutex::new(Vec::new()));
            let keep = |State(received): State<Arc<Mutex<Vec<u8>>>>, body: Bytes| async move {
                received.lock().unwrap().extend_from_slice(&body);
            };
            let router = axum::Router::new().route("/v1/traces", post(keep)).with_state(Arc::clone(&received));
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
            runtime.spawn(async move { axum::serve(listener, router).await });
            Self { endpoint, received, _runtime: runtime }
        }

        fn has(&self, bytes: &[u8]) -> bool {
            self.received.lock().unwrap().windows(bytes.len()).any(|window| window == bytes)
        }
    }

    /// A log that can be read.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// Runs `work` with telemetry as configured, and returns the log.
    fn with(config: &Config, work: impl FnOnce()) -> String {
        let log = Log::default();
        let writer = log.clone();
        let (subscriber, guard) = subscriber(config, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, work);
        drop(guard);
        log.text()
    }

    fn config(format: LogFormat, filter: &str, otlp: Option<&Collector>) -> Config {
        let otlp = otlp.map(|to| Otlp { endpoint: to.endpoint.clone(), service_name: "gate-of-test".to_owned() });
        Config { format, filter: filter.to_owned(), otlp }
    }

    #[test]
    fn spans_reach_the_collector_even_when_the_log_is_quiet() {
        let collector = Collector::start();
        with(&config(LogFormat::Text, "off", Some(&collector)), || {
            info_span!("weigh-the-evidence").in_scope(|| ());
        });
        assert!(collector.has(b"gate-of-test"), "the service's name is missing");
        assert!(collector.has(b"weigh-the-evidence"), "the span's name is missing");
    }

    #[test]
    fn a_callers_trace_goes_on() {
        let collector = Collector::start();
        let mut headers = HeaderMap::new();
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        headers.insert("traceparent", parent.parse().unwrap());
        with(&config(LogFormat::Text, "off", Some(&collector)), || {
            let span = info_span!("follower");
            follow(&span, &headers);
            span.in_scope(|| ());
        });
        let trace_id = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
        assert!(collector.has(&trace_id), "the span is in another trace");
    }

    #[test]
    fn a_callers_nonsense_is_no_parent_and_no_failure() {
        for nonsense in ["", "00", "00-0-0-0", "00-00000000000000000000000000000000-0000000000000000-01"] {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", nonsense.parse().unwrap());
            with(&config(LogFormat::Text, "info", None), || follow(&info_span!("orphan"), &headers));
        }
    }

    #[test]
    fn a_log_line_is_text_or_json() {
        let text = with(&config(LogFormat::Text, "info", None), || info!(rows = 3, "it rains"));
        assert!(text.contains("it rains rows=3"), "{text}");
        let json = with(&config(LogFormat::Json, "info", None), || info!(rows = 3, "it rains"));
        let line: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&line["message"], &line["rows"]), (&"it rains".into(), &3.into()));
    }

    #[test]
    fn the_filter_decides_what_is_logged() {
        let log = with(&config(LogFormat::Text, "warn", None), || info!("it rains"));
        assert_eq!(log, "");
    }
}
