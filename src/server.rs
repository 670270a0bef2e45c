//! The data plane over HTTP: our own accept loops, limits, routes, and the one place where errors become answers.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::auth::ApiKeys;
use crate::capture::Capture;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::model::Models;
use crate::quota::Quota;

/// Addresses and limits. Each limit is the last value that passes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where callers connect.
    pub listen: SocketAddr,
    /// Where operators connect.
    pub admin_listen: SocketAddr,
    /// The largest body, in bytes.
    pub max_body: usize,
    /// The longest a request may take once its headers are read.
    pub deadline: Duration,
    /// Rows in one request.
    pub max_rows: usize,
    /// Nesting of a JSON body.
    pub max_depth: usize,
    /// Header bytes of one request.
    pub max_header_bytes: usize,
    /// Header fields of one request.
    pub max_headers: usize,
    /// The longest a caller may take to send its headers.
    pub header_timeout: Duration,
    /// The longest a caller may take to send its body.
    pub body_timeout: Duration,
    /// The longest a connection may stay without a request.
    pub idle_timeout: Duration,
    /// Connections at one time.
    pub max_connections: NonZeroUsize,
    /// Connections of one address at one time.
    pub max_connections_per_address: NonZeroUsize,
    /// Streams of one HTTP/2 connection at one time.
    pub max_streams: NonZeroU32,
    /// Predictions at one time; above it the answer is a quick 503.
    pub max_in_flight: NonZeroUsize,
    /// On a stop: how long `/readyz` says no before the listeners close, for load balancers to notice.
    pub drain_delay: Duration,
    /// On a stop: how long requests under way may take to finish.
    pub grace: Duration,
}

/// What a handler may touch. Cloning is a handful of reference counts.
#[derive(Clone, Debug)]
pub struct State {
    /// Who may ask.
    pub keys: Arc<ApiKeys>,
    /// How much they may ask.
    pub quota: Arc<Quota>,
    /// Who answers.
    pub models: Models,
    /// What is measured.
    pub metrics: Metrics,
    /// What is kept.
    pub capture: Capture,
    /// Whether to send us more.
    pub readiness: Readiness,
    /// What time it is.
    pub clock: Clock,
    /// What `Retry-After` says while a model has no version yet: the registry's poll interval.
    pub poll_interval: Duration,
    /// ONNX Runtime's version, for the admin address.
    pub runtime_version: Arc<str>,
}

/// Whether the process wants more requests. Says yes until it is told to drain.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// From now on, no.
    pub fn drain(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the process is on its way out.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The data address's routes, for a listener of ours or for Lambda.
#[must_use]
pub fn data_router(state: State, config: &Config) -> axum::Router {
    todo!()
}

/// The admin address's routes.
#[must_use]
pub fn admin_router(state: State) -> axum::Router {
    todo!()
}

/// Accepts on `listener` until `stop`, then lets requests under way finish within the grace time.
pub async fn serve(listener: TcpListener, router: axum::Router, config: Config, stop: CancellationToken) {
    todo!()
}
