//! Logs to standard error, traces to OTLP where the standard variables name a collector.

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
