//! The data plane over HTTP: our own accept loops, limits, routes, and the one place where errors become answers.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::HeaderMap;

use crate::auth::ApiKeys;
use crate::capture::Capture;
use crate::clock::Clock;
use crate::drift::Drift;
use crate::feedback::Feedback;
use crate::metrics::Metrics;
use crate::model::Models;
use crate::model::orders::Orders;
use crate::model::shadow::Shadow;
use crate::quota::Quota;

mod admin;
mod body;
mod connections;
pub mod error;
mod feedback;
mod head;
mod infer;
mod operator;
mod ratelimit;
mod replay;
mod routes;
mod versions;
mod watch;
mod webhook;
pub mod wire;

pub use connections::serve;
pub use routes::{Router, admin_router, data_router};
pub use webhook::Webhook;

/// Addresses and limits. Each limit is the last value that passes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where callers connect.
    pub listen: SocketAddr,
    /// Where operators connect.
    pub admin_listen: SocketAddr,
    /// How errors are written at the data address.
    pub error_style: ErrorStyle,
    /// The largest body, in bytes.
    pub max_body: usize,
    /// The longest an answer may take once the request is read.
    pub deadline: Duration,
    /// Rows in one request.
    pub max_rows: usize,
    /// Nesting of a JSON body.
    pub max_depth: usize,
    /// Bytes of one request's target, header names and header values.
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

/// How errors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorStyle {
    /// `application/problem+json`.
    #[default]
    Problem,
    /// Status, body and `x-amzn-ErrorType` as API Gateway has them.
    ApiGateway,
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
    /// Where challengers answer too.
    pub shadow: Shadow,
    /// Where operators' orders go.
    pub orders: Orders,
    /// Who may hint that the registry has news; without it nobody.
    pub webhook: Option<Arc<Webhook>>,
    /// What is measured.
    pub metrics: Metrics,
    /// Whether rows look like those the models were made of.
    pub drift: Drift,
    /// What is kept.
    pub capture: Capture,
    /// What came true.
    pub feedback: Feedback,
    /// Whether to send us more.
    pub readiness: Readiness,
    /// What time it is.
    pub clock: Clock,
    /// What `Retry-After` says while a model has no version yet: the registry's poll interval.
    pub poll_interval: Duration,
    /// ONNX Runtime's version, for the admin address.
    pub runtime_version: Arc<str>,
    /// What is under way.
    pub traffic: Traffic,
    /// Where randomness begins: request ids and the spread of `Retry-After`. Another one for each process.
    pub seed: u64,
    /// Gives a span the parent its request names, where traces are sent somewhere.
    pub trace_parent: Option<TraceParent>,
}

/// Makes `span` a child of the span that a request's headers name.
pub type TraceParent = fn(headers: &HeaderMap, span: &tracing::Span);

/// What is under way on all addresses, counted as it happens. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Traffic(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Connections now.
    connections: AtomicUsize,
    /// Connections closed at once, because there were too many.
    connections_refused: AtomicU64,
    /// Predictions now.
    in_flight: AtomicUsize,
    /// Handlers that panicked.
    panics: AtomicU64,
}

impl Traffic {
    /// A place among the predictions under way, if fewer than `max` are.
    fn enter(&self, max: NonZeroUsize) -> Option<InFlight> {
        let one_more = |now: usize| (now < max.get()).then_some(now + 1);
        let entered = self.0.in_flight.fetch_update(Ordering::AcqRel, Ordering::Relaxed, one_more);
        entered.is_ok().then(|| InFlight(self.clone()))
    }
}

/// One prediction under way, until it is dropped.
#[derive(Debug)]
struct InFlight(Traffic);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
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
