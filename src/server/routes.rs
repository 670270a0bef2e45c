//! Which request goes where, and what every answer has: a name, a log line, a count, and an end even if its handler
//! panics.
//!
//! One function wraps all routes, so that a request costs no boxed future and no clone on its way to its handler.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Body;
use serde_json::json;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::admin::{self, Verb};
use super::body::BoxError;
use super::error::ApiError;
use super::head::{self, Entropy, REQUEST_ID, RequestId};
use super::replay::Replays;
use super::{Config, ErrorStyle, State, Traffic, feedback, infer, operator, ratelimit, webhook};
use crate::auth::Caller;
use crate::model::Model;

pub(super) const MODEL: HeaderName = HeaderName::from_static("modelgate-model");
const QUOTA: HeaderName = HeaderName::from_static("modelgate-quota");
const AMZN_REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// An answer, whole in memory.
pub(super) type Answer = Response<Full<Bytes>>;

/// One address's routes and everything they need. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Router(Arc<Room>);

/// What the handlers of one address share.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) state: State,
    pub(super) config: Config,
    pub(super) entropy: Entropy,
    pub(super) replays: Replays,
    face: Face,
}

/// Who an address is for.
#[derive(Clone, Copy, Debug)]
enum Face {
    Callers,
    Operators,
}

/// The data address's routes, for a listener of ours or for Lambda.
#[must_use]
pub fn data_router(state: State, config: &Config) -> Router {
    Router::new(Face::Callers, state, config)
}

/// The admin address's routes.
#[must_use]
pub fn admin_router(state: State, config: &Config) -> Router {
    Router::new(Face::Operators, state, config)
}

impl Router {
    fn new(face: Face, state: State, config: &Config) -> Self {
        let entropy = Entropy::new(state.seed);
        Self(Arc::new(Room { state, config: config.clone(), entropy, replays: Replays::default(), face }))
    }

    pub(super) fn traffic(&self) -> &Traffic {
        &self.0.state.traffic
    }

    /// Answers `request`. Never fails and never panics: whatever happens is an answer.
    pub async fn answer<B>(&self, request: Request<B>) -> Answer
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        self.answer_to(request, None).await
    }

    /// As [`answer`](Self::answer), for a request whose connection comes from the address `peer`.
    pub(super) async fn answer_to<B>(&self, request: Request<B>, peer: Option<IpAddr>) -> Answer
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let room = &*self.0;
        let (head, body) = request.into_parts();
        let mut journal = Journal::open(room, &head, peer);
        let span = room.span(&head, &journal);
        let handled = AssertUnwindSafe(room.handle(&head, body, &mut journal)).catch_unwind().instrument(span).await;
        let result = handled.unwrap_or_else(|panic| {
            room.state.traffic.0.panics.fetch_add(1, Ordering::Relaxed);
            Err(ApiError::panicked(&*panic))
        });
        journal.close(room, &head.method, result)
    }
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route<'path> {
    /// One model's prediction, or the only model's.
    Predict(Option<&'path str>),
    Usage,
    Feedback,
    Live,
    Ready,
    Metrics,
    Models,
    /// One model's drift.
    Drift(&'path str),
    /// How right one model's versions were.
    Accuracy(&'path str),
    Use,
    Keys,
    /// What an operator orders of one model.
    Order(Verb, &'path str),
    Webhook,
}

/// What is asked about the model of `/admin/models/{name}/…`.
fn question(path: &str) -> Option<Route<'_>> {
    let (name, what) = path.strip_prefix("/admin/models/")?.split_once('/')?;
    let route = match what {
        "drift" => Route::Drift(name),
        "accuracy" => Route::Accuracy(name),
        _ => return None,
    };
    (!name.is_empty()).then_some(route)
}

impl<'path> Route<'path> {
    fn find(face: Face, path: &'path str) -> Option<Self> {
        match (face, path) {
            (_, "/livez") => Some(Self::Live),
            (_, "/readyz") => Some(Self::Ready),
            (Face::Callers, "/predict") => Some(Self::Predict(None)),
            (Face::Callers, "/usage") => Some(Self::Usage),
            (Face::Callers, "/feedback") => Some(Self::Feedback),
            (Face::Callers, path) => {
                let name = path.strip_prefix("/models/")?.strip_suffix("/predict")?;
                (!name.is_empty() && !name.contains('/')).then_some(Self::Predict(Some(name)))
            }
            (Face::Operators, "/metrics") => Some(Self::Metrics),
            (Face::Operators, "/admin/models") => Some(Self::Models),
            (Face::Operators, "/admin/usage") => Some(Self::Use),
            (Face::Operators, "/admin/keys") => Some(Self::Keys),
            (Face::Operators, "/admin/registry-webhook") => Some(Self::Webhook),
            (Face::Operators, path) => {
                question(path).or_else(|| Verb::find(path).map(|(verb, name)| Self::Order(verb, name)))
            }
        }
    }

    /// The route as written in the documentation: in logs, the caller's own text has no place.
    const fn pattern(self) -> &'static str {
        match self {
            Self::Predict(None) => "/predict",
            Self::Predict(Some(_)) => "/models/{name}/predict",
            Self::Usage => "/usage",
            Self::Feedback => "/feedback",
            Self::Live => "/livez",
            Self::Ready => "/readyz",
            Self::Metrics => "/metrics",
            Self::Models => "/admin/models",
            Self::Drift(_) => "/admin/models/{name}/drift",
            Self::Accuracy(_) => "/admin/models/{name}/accuracy",
            Self::Use => "/admin/usage",
            Self::Keys => "/admin/keys",
            Self::Order(verb, _) => verb.pattern(),
            Self::Webhook => "/admin/registry-webhook",
        }
    }

    fn check_method(self, method: &Method) -> Result<(), ApiError> {
        match self {
            Self::Predict(_)
            | Self::Feedback
            | Self::Order(Verb::Promote | Verb::RollBack | Verb::Pin | Verb::Unpin, _)
            | Self::Webhook => {
                if method == Method::POST {
                    Ok(())
                } else {
                    Err(ApiError::method_not_allowed("POST"))
                }
            }
            _ if method == Method::GET || method == Method::HEAD => Ok(()),
            _ => Err(ApiError::method_not_allowed("GET, HEAD")),
        }
    }
}

impl Room {
    async fn handle<B>(&self, head: &Parts, body: B, journal: &mut Journal) -> Result<Answer, ApiError>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        head::check(head, &self.config)?;
        let route = Route::find(self.face, head.uri.path()).ok_or_else(ApiError::no_route)?;
        journal.route = route.pattern();
        route.check_method(&head.method)?;
        match route {
            Route::Predict(name) => infer::predict(self, name, head, body, journal).await,
            Route::Usage => infer::usage(self, head, journal).await,
            Route::Feedback => feedback::take(self, head, body, journal).await,
            Route::Live => Ok(json_answer(&json!({ "status": "live" }))),
            Route::Ready => operator::ready(&self.state),
            Route::Metrics => Ok(operator::metrics(&self.state)),
            Route::Models => Ok(operator::models(&self.state)),
            Route::Drift(name) => operator::drift(&self.state, name, head.uri.query()),
            Route::Accuracy(name) => feedback::accuracy(&self.state, name),
            Route::Use => Ok(operator::usage(&self.state)),
            Route::Keys => Ok(operator::keys(&self.state)),
            Route::Order(verb, name) => admin::order(self, verb, name, head, body).await,
            Route::Webhook => webhook::hint(self, head, body).await,
        }
    }

    /// API Gateway's clients are at the data address.
    const fn error_style(&self) -> ErrorStyle {
        match self.face {
            Face::Callers => self.config.error_style,
            Face::Operators => ErrorStyle::Problem,
        }
    }

    /// A span where traces go somewhere, and nothing at all where they do not.
    fn span(&self, head: &Parts, journal: &Journal) -> tracing::Span {
        let Some(trace_parent) = self.state.trace_parent else { return tracing::Span::none() };
        let span = tracing::info_span!("predict", request_id = journal.id.as_str());
        trace_parent(&head.headers, &span);
        span
    }
}

/// What is known of a request so far: for its answer's headers and its log line.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) id: RequestId,
    pub(super) started: Instant,
    pub(super) route: &'static str,
    /// The other end of the connection, where that is known.
    pub(super) peer: Option<IpAddr>,
    pub(super) caller: Option<Arc<Caller>>,
    pub(super) model: Option<Arc<Model>>,
    pub(super) rows: usize,
    pub(super) rate_limit: Option<ratelimit::Headers>,
    /// Whether the quota's store could not be asked.
    pub(super) quota_is_degraded: bool,
}

impl Journal {
    fn open(room: &Room, head: &Parts, peer: Option<IpAddr>) -> Self {
        Self {
            id: RequestId::of(&head.headers, room.state.clock.now(), &room.entropy),
            started: Instant::now(),
            route: "none",
            peer,
            caller: None,
            model: None,
            rows: 0,
            rate_limit: None,
            quota_is_degraded: false,
        }
    }

    /// Counts and logs what happened, and makes it an answer.
    fn close(mut self, room: &Room, method: &Method, result: Result<Answer, ApiError>) -> Answer {
        let took = self.started.elapsed();
        let mut answer = match result {
            Ok(answer) => {
                self.log_answer(method, answer.status().as_u16(), took);
                answer
            }
            Err(error) => {
                let style = room.error_style();
                self.log_error(method, &error, style, took);
                room.state.metrics.failed(
                    self.model.as_deref(),
                    error.code.as_str(),
                    error.code.status().as_u16(),
                    took,
                );
                let answer = error.into_response(style, self.id.as_str(), room.entropy.draw().u8(..));
                self.tell_standing(room, &answer);
                answer
            }
        };
        self.write_headers(room, &mut answer);
        answer
    }

    /// An answer to a caller says where it stands, also where the request never got to the plan.
    fn tell_standing(&mut self, room: &Room, answer: &Answer) {
        if let (Some(caller), None, false) =
            (&self.caller, &self.rate_limit, ratelimit::Headers::are_in(answer.headers()))
        {
            let standing = room.state.quota.standing(caller, room.state.clock.now());
            self.rate_limit = Some(ratelimit::Headers::of(&standing));
        }
    }

    fn key_id(&self) -> Option<&str> {
        self.caller.as_ref().map(|caller| &*caller.key_id)
    }

    fn write_headers(self, room: &Room, answer: &mut Answer) {
        let headers = answer.headers_mut();
        headers.insert(REQUEST_ID, self.id.header());
        if room.error_style() == ErrorStyle::ApiGateway {
            headers.insert(AMZN_REQUEST_ID, self.id.header());
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(model) = &self.model {
            headers.insert(MODEL, model.id().header().clone());
        }
        if let Some(rate_limit) = self.rate_limit {
            rate_limit.insert_into(headers);
        }
        if self.quota_is_degraded {
            headers.insert(QUOTA, HeaderValue::from_static("degraded"));
        }
    }

    fn log_answer(&self, method: &Method, status: u16, took: Duration) {
        tracing::debug!(
            request_id = self.id.as_str(),
            %method,
            route = self.route,
            status,
            model = self.model.as_ref().map(|model| model.id().name.as_str()),
            version = self.model.as_ref().map(|model| model.id().version.0),
            key_id = self.key_id(),
            rows = self.rows,
            latency_ms = millis(took),
            "answered"
        );
    }

    /// Refusals are the callers' news, or are expected under load: an operator is not called for them. What is our
    /// fault is logged with its source.
    fn log_error(&self, method: &Method, error: &ApiError, style: ErrorStyle, took: Duration) {
        macro_rules! line {
            ($level:ident, $text:literal) => {
                tracing::$level!(
                    request_id = self.id.as_str(),
                    %method,
                    route = self.route,
                    status = error.status(style).as_u16(),
                    code = error.code.as_str(),
                    model = self.model.as_ref().map(|model| model.id().name.as_str()),
                    version = self.model.as_ref().map(|model| model.id().version.0),
                    key_id = self.key_id(),
                    rows = self.rows,
                    latency_ms = millis(took),
                    error = error.source(),
                    $text
                )
            };
        }
        if error.code.is_fault() { line!(error, "failed") } else { line!(debug, "refused") }
    }
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

/// A JSON answer, for routes that are not in a hurry.
pub(super) fn json_answer(value: &serde_json::Value) -> Answer {
    body_of("application/json", value.to_string().into())
}

/// A good answer.
pub(super) fn body_of(media_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(face: Face, path: &str, expect: Option<Route<'_>>) {
        assert_eq!(Route::find(face, path), expect, "{face:?} {path}");
    }

    #[test]
    fn a_path_has_one_meaning_or_none() {
        check(Face::Callers, "/predict", Some(Route::Predict(None)));
        check(Face::Callers, "/models/credit-score/predict", Some(Route::Predict(Some("credit-score"))));
        check(Face::Callers, "/models//predict", None);
        check(Face::Callers, "/models/predict", None);
        check(Face::Callers, "/models/a/b/predict", None);
        check(Face::Callers, "/predict/", None);
        check(Face::Callers, "//predict", None);
        check(Face::Callers, "/metrics", None);
        check(Face::Callers, "/admin/models", None);
        check(Face::Operators, "/metrics", Some(Route::Metrics));
        check(Face::Operators, "/predict", None);
        check(Face::Operators, "/admin/models/m/drift", Some(Route::Drift("m")));
        check(Face::Operators, "/admin/models//drift", None);
        check(Face::Operators, "/admin/models/a/b/drift", None);
        check(Face::Callers, "/admin/models/m/drift", None);
        check(Face::Operators, "/admin/models/m/accuracy", Some(Route::Accuracy("m")));
        check(Face::Operators, "/admin/models//accuracy", None);
        check(Face::Callers, "/feedback", Some(Route::Feedback));
        check(Face::Operators, "/feedback", None);
        check(Face::Operators, "/livez", Some(Route::Live));
        check(Face::Operators, "/admin/models/sum/pin", Some(Route::Order(Verb::Pin, "sum")));
        check(Face::Operators, "/admin/models//pin", None);
        check(Face::Operators, "/admin/models/sum/delete", None);
        check(Face::Callers, "/admin/models/sum/pin", None);
        check(Face::Callers, "/admin/registry-webhook", None);
    }
}
