//! The one place where an error becomes an HTTP answer: its status, its code, its words.
//!
//! Every domain error has one `From` here, a match without a wildcard, so that a new variant is a compile error in the
//! file that must decide. What a caller reads holds no path, no stack and nothing of another caller; the source goes to
//! the log under the request id.

use std::any::Any;
use std::borrow::Cow;
use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::Full;
use serde::Serialize;

use super::wire::WireError;
use super::{ErrorStyle, ratelimit};
use crate::auth::AuthError;
use crate::feedback::NotTaken;
use crate::model::features::FieldError;
use crate::model::orders::Refused;
use crate::model::session::Stage;
use crate::model::{InvalidInput, NotServed, PredictError};
use crate::quota::{Refusal, Standing};

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// What went wrong, in the word that callers, dashboards and `docs/errors.md` share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The body is not JSON, or is too deep, or names a field twice.
    MalformedJson,
    /// HTTP-level nonsense: header values, framing, a key in the address.
    MalformedRequest,
    /// No key, or not one of ours, or no longer.
    Unauthenticated,
    /// A good key that may not do this.
    Forbidden,
    /// No such route or model.
    NotFound,
    /// A route that has other methods.
    MethodNotAllowed,
    /// The body came too slowly.
    RequestTimeout,
    /// An operator's order that cannot be followed as things are.
    Conflict,
    /// Too many bytes, rows or cells.
    PayloadTooLarge,
    /// Not JSON by its own account, or compressed.
    UnsupportedMediaType,
    /// JSON that does not fit the model.
    InvalidInput,
    /// The first request with this idempotency key has no answer yet.
    IdempotencyInProgress,
    /// The idempotency key was used with another body.
    IdempotencyMismatch,
    /// Too many keys that are none.
    AuthThrottled,
    /// Faster than the plan allows.
    RateLimited,
    /// More than the plan allows.
    QuotaExceeded,
    /// Too many header fields, or too many bytes of them.
    HeadersTooLarge,
    /// Our fault.
    Internal,
    /// The model answered something that is no number.
    ModelOutputInvalid,
    /// More requests than can be answered at one time.
    Overloaded,
    /// No version is loaded yet.
    ModelNotReady,
    /// The version the caller stays on is not loaded.
    PinnedVersionUnavailable,
    /// Use cannot be recorded, so it cannot be allowed.
    QuotaUnavailable,
    /// The process is on its way out.
    ShuttingDown,
    /// Not answered in time.
    DeadlineExceeded,
}

/// One row of the catalogue.
struct Entry {
    name: &'static str,
    status: StatusCode,
    title: &'static str,
    retryable: bool,
}

impl Code {
    /// Every code, in the order of the catalogue.
    pub const ALL: [Self; 25] = [
        Self::MalformedJson,
        Self::MalformedRequest,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::Conflict,
        Self::PayloadTooLarge,
        Self::UnsupportedMediaType,
        Self::InvalidInput,
        Self::IdempotencyInProgress,
        Self::IdempotencyMismatch,
        Self::AuthThrottled,
        Self::RateLimited,
        Self::QuotaExceeded,
        Self::HeadersTooLarge,
        Self::Internal,
        Self::ModelOutputInvalid,
        Self::Overloaded,
        Self::ModelNotReady,
        Self::PinnedVersionUnavailable,
        Self::QuotaUnavailable,
        Self::ShuttingDown,
        Self::DeadlineExceeded,
    ];

    const fn entry(self) -> Entry {
        let (name, status, title, retryable) = match self {
            Self::MalformedJson => ("malformed_json", 400, "The body is not well-formed JSON", false),
            Self::MalformedRequest => ("malformed_request", 400, "The request is not well-formed", false),
            Self::Unauthenticated => ("unauthenticated", 401, "A valid API key is needed", false),
            Self::Forbidden => ("forbidden", 403, "The API key does not allow this", false),
            Self::NotFound => ("not_found", 404, "There is nothing here", false),
            Self::MethodNotAllowed => ("method_not_allowed", 405, "The route has other methods", false),
            Self::RequestTimeout => ("request_timeout", 408, "The request came too slowly", true),
            Self::Conflict => ("conflict", 409, "The order cannot be followed as things are", false),
            Self::PayloadTooLarge => ("payload_too_large", 413, "The request is too large", false),
            Self::UnsupportedMediaType => ("unsupported_media_type", 415, "The body's type is not supported", false),
            Self::InvalidInput => ("invalid_input", 422, "The input does not fit the model", false),
            Self::IdempotencyInProgress => {
                ("idempotency_in_progress", 409, "The first request of this name is under way", true)
            }
            Self::IdempotencyMismatch => ("idempotency_mismatch", 422, "The name stands for another request", false),
            Self::AuthThrottled => ("auth_throttled", 429, "Too many keys were not valid", true),
            Self::RateLimited => ("rate_limited", 429, "Requests come faster than the plan allows", true),
            Self::QuotaExceeded => ("quota_exceeded", 429, "More than the plan's quota allows", true),
            Self::HeadersTooLarge => ("headers_too_large", 431, "The request's headers are too large", false),
            Self::Internal => ("internal", 500, "The gateway failed", true),
            Self::ModelOutputInvalid => ("model_output_invalid", 500, "The model's answer is not usable", false),
            Self::Overloaded => ("overloaded", 503, "The gateway is busy", true),
            Self::ModelNotReady => ("model_not_ready", 503, "No version of the model is loaded yet", true),
            Self::PinnedVersionUnavailable => {
                ("pinned_version_unavailable", 503, "The version this caller stays on is not loaded", true)
            }
            Self::QuotaUnavailable => ("quota_unavailable", 503, "Use cannot be recorded at the moment", true),
            Self::ShuttingDown => ("shutting_down", 503, "The gateway is shutting down", true),
            Self::DeadlineExceeded => ("deadline_exceeded", 504, "The answer took too long", true),
        };
        let Ok(status) = StatusCode::from_u16(status) else { panic!("every status above is a legal one") };
        Entry { name, status, title, retryable }
    }

    /// The word itself, as callers read it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.entry().name
    }

    /// The HTTP status that goes with it.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        self.entry().status
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        self.entry().retryable
    }

    /// Whether an operator should look: something of ours failed, and not merely for want of room or time.
    pub(super) const fn is_fault(self) -> bool {
        matches!(self, Self::Internal | Self::ModelOutputInvalid | Self::QuotaUnavailable)
    }

    /// The problem type. Where IANA has registered one, that one.
    fn type_uri(self) -> Cow<'static, str> {
        match self {
            Self::RateLimited | Self::QuotaExceeded => {
                "https://iana.org/assignments/http-problem-types#quota-exceeded".into()
            }
            Self::Overloaded => "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity".into(),
            other => format!("urn:modelgate:error:{}", other.as_str()).into(),
        }
    }

    /// Whether what follows on the connection cannot be trusted, or is not wanted.
    const fn closes(self) -> bool {
        matches!(self, Self::MalformedRequest | Self::RequestTimeout | Self::HeadersTooLarge | Self::ShuttingDown)
    }
}

/// What API Gateway would have answered.
struct Gateway {
    status: StatusCode,
    /// `None` where it has no words of its own, because a handler behind it would have answered.
    message: Option<&'static str>,
    /// `x-amzn-ErrorType`
    error_type: Option<&'static str>,
}

impl Code {
    /// The headers of a problem.
    fn write_headers(self, headers: &mut HeaderMap) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self == Self::Unauthenticated {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
    }

    /// The same in API Gateway's words.
    const fn gateway(self) -> Gateway {
        let (status, message, error_type) = match self {
            Self::Unauthenticated | Self::Forbidden => (StatusCode::FORBIDDEN, "Forbidden", Some("ForbiddenException")),
            Self::NotFound | Self::MethodNotAllowed => {
                let error_type = Some("MissingAuthenticationTokenException");
                (StatusCode::FORBIDDEN, "Missing Authentication Token", error_type)
            }
            Self::RateLimited | Self::AuthThrottled => {
                (StatusCode::TOO_MANY_REQUESTS, "Too Many Requests", Some("TooManyRequestsException"))
            }
            Self::QuotaExceeded => (StatusCode::TOO_MANY_REQUESTS, "Limit Exceeded", Some("LimitExceededException")),
            Self::PayloadTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "Request Too Long", Some("BadRequestException")),
            Self::DeadlineExceeded => {
                let error_type = Some("InternalServerErrorException");
                (StatusCode::GATEWAY_TIMEOUT, "Endpoint request timed out", error_type)
            }
            Self::Internal | Self::ModelOutputInvalid => {
                let error_type = Some("InternalServerErrorException");
                (StatusCode::INTERNAL_SERVER_ERROR, "Internal server error", error_type)
            }
            Self::MalformedJson
            | Self::MalformedRequest
            | Self::RequestTimeout
            | Self::UnsupportedMediaType
            | Self::InvalidInput
            | Self::Conflict
            | Self::IdempotencyInProgress
            | Self::IdempotencyMismatch
            | Self::HeadersTooLarge
            | Self::Overloaded
            | Self::ModelNotReady
            | Self::PinnedVersionUnavailable
            | Self::QuotaUnavailable
            | Self::ShuttingDown => return Gateway { status: self.status(), message: None, error_type: None },
        };
        Gateway { status, message: Some(message), error_type }
    }
}

impl Gateway {
    fn write_headers(&self, headers: &mut HeaderMap) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(error_type) = self.error_type {
            headers.insert(ERROR_TYPE, HeaderValue::from_static(error_type));
        }
    }
}

/// An error on its way to a caller.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) code: Code,
    /// For the caller.
    detail: Cow<'static, str>,
    /// For the log.
    source: Option<Box<dyn Error + Send + Sync>>,
    about: About,
}

/// What an error says beside its words.
#[derive(Debug)]
enum About {
    Nothing,
    /// The fields that do not fit.
    Fields(Vec<FieldError>),
    /// Where the caller stands with its plan, the violated limit first, and when to come back.
    Plan(Vec<Standing>, Duration),
    /// When to come back.
    RetryAfter(Duration),
    /// Come back soon, but not all at once: 1 to 5 seconds.
    RetrySoon,
    /// The methods a route has.
    Allow(&'static str),
    /// What a body may be.
    Accept,
    /// Where the time went.
    Stage(&'static str),
    /// What is served, for `/readyz`.
    Models(serde_json::Value),
}

/// RFC 9457, with our own members.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: Cow<'static, str>,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    request_id: &'a str,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<Vec<Field<'a>>>,
    #[serde(rename = "violated-policies", skip_serializing_if = "Option::is_none")]
    violated_policies: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<&'a serde_json::Value>,
}

/// What API Gateway, or a handler behind it, says of an error.
#[derive(Serialize)]
struct GatewayBody<'a> {
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<Vec<Field<'a>>>,
}

/// One mistake of `invalid_input`.
#[derive(Serialize)]
struct Field<'a> {
    row: usize,
    feature: &'a str,
    expected: &'a str,
    found: &'a str,
}

impl ApiError {
    fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), source: None, about: About::Nothing }
    }

    fn about(mut self, about: About) -> Self {
        self.about = about;
        self
    }

    fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(super) fn malformed_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::MalformedRequest, detail)
    }

    pub(super) fn no_route() -> Self {
        Self::new(Code::NotFound, "there is no such route")
    }

    pub(super) fn method_not_allowed(allow: &'static str) -> Self {
        Self::new(Code::MethodNotAllowed, format!("this route has {allow}")).about(About::Allow(allow))
    }

    pub(super) fn unsupported_media_type(detail: &'static str) -> Self {
        Self::new(Code::UnsupportedMediaType, detail).about(About::Accept)
    }

    /// A hint that is not the registry's.
    pub(super) fn not_signed() -> Self {
        Self::new(Code::Unauthenticated, "the hint is not signed with our secret, or is not of these five minutes")
    }

    /// An operator's order that is not followed.
    pub(super) fn order_refused(refused: &Refused) -> Self {
        let code = match refused {
            Refused::Unknown => Code::NotFound,
            Refused::NothingBefore | Refused::NotPinned | Refused::NotServed(_) => Code::Conflict,
            Refused::Busy => return Self::new(Code::Overloaded, refused.to_string()).about(About::RetrySoon),
            Refused::Unreadable => return Self::internal(refused.clone()),
        };
        Self::new(code, refused.to_string())
    }

    /// Where labels are not taken.
    pub(super) fn no_feedback() -> Self {
        Self::new(Code::NotFound, "this gateway takes no labels: it has no [feedback] in its configuration")
    }

    pub(super) fn malformed_json(detail: String) -> Self {
        Self::new(Code::MalformedJson, detail)
    }

    pub(super) fn too_many_labels(max: usize) -> Self {
        Self::new(Code::PayloadTooLarge, format!("a request may have {max} labels"))
    }

    /// Labels of which none can be kept.
    pub(super) fn no_label_fits(mut errors: Vec<FieldError>, listed: usize) -> Self {
        errors.truncate(listed);
        Self::new(Code::InvalidInput, "none of the labels can be kept; the first mistakes are listed")
            .about(About::Fields(errors))
    }

    pub(super) fn headers_too_large(detail: String) -> Self {
        Self::new(Code::HeadersTooLarge, detail)
    }

    pub(super) fn body_too_large(max_bytes: usize) -> Self {
        Self::new(Code::PayloadTooLarge, format!("a body may have {max_bytes} bytes"))
    }

    pub(super) fn body_too_slow() -> Self {
        Self::new(Code::RequestTimeout, "the body did not arrive in time")
    }

    pub(super) fn broken_body(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::malformed_request("the body breaks off, or is not framed as its headers say").caused_by(source)
    }

    pub(super) fn idempotency_in_progress() -> Self {
        Self::new(Code::IdempotencyInProgress, "the first request with this Idempotency-Key has no answer yet")
            .about(About::RetryAfter(Duration::from_secs(1)))
    }

    pub(super) fn idempotency_mismatch() -> Self {
        Self::new(Code::IdempotencyMismatch, "this Idempotency-Key was used with another body")
    }

    pub(super) fn overloaded() -> Self {
        Self::new(Code::Overloaded, "as many predictions are under way as can be").about(About::RetrySoon)
    }

    pub(super) fn deadline_exceeded(stage: &'static str) -> Self {
        Self::new(Code::DeadlineExceeded, "the answer was not ready in time").about(About::Stage(stage))
    }

    /// `/readyz` on the way out.
    pub(super) fn draining(models: serde_json::Value) -> Self {
        Self::new(Code::ShuttingDown, "the gateway takes no more work").about(About::Models(models))
    }

    /// `/readyz` before every model has a version.
    pub(super) fn not_complete(models: serde_json::Value) -> Self {
        Self::new(Code::ModelNotReady, "not every model has a version that answers").about(About::Models(models))
    }

    /// A handler that panicked with `payload`.
    pub(super) fn panicked(payload: &(dyn Any + Send)) -> Self {
        let said = payload.downcast_ref::<&str>().copied();
        let said = said.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words");
        Self::internal(format!("panic: {said}"))
    }

    /// What the log should know and the caller should not.
    pub(super) fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }

    fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Code::Internal, "the failure is logged under the request id").caused_by(source)
    }

    fn output_invalid(what: &'static str, source: PredictError) -> Self {
        Self::new(Code::ModelOutputInvalid, format!("the model answered with {what}")).caused_by(source)
    }

    /// Tells what to say while a model has no version: come back after the next look at the registry.
    pub(super) fn not_served(error: &NotServed, poll_interval: Duration) -> Self {
        match error {
            NotServed::Unknown => Self::new(Code::NotFound, "there is no such model"),
            NotServed::NotReady => Self::new(Code::ModelNotReady, "no version of the model is loaded yet")
                .about(About::RetryAfter(poll_interval)),
            NotServed::NotHeld(target) => Self::new(
                Code::PinnedVersionUnavailable,
                format!("the key or its plan stays on {target} of this model, which is not loaded"),
            )
            .about(About::RetryAfter(poll_interval)),
            NotServed::Ambiguous => {
                Self::new(Code::NotFound, "there is more than one model: use /models/{name}/predict")
            }
        }
    }

    /// The status it is answered with.
    pub(super) fn status(&self, style: ErrorStyle) -> StatusCode {
        match style {
            ErrorStyle::Problem => self.code.status(),
            ErrorStyle::ApiGateway => self.code.gateway().status,
        }
    }

    /// The answer. `jitter` is any number; it spreads out those who come back soon.
    pub(super) fn into_response(self, style: ErrorStyle, request_id: &str, jitter: u8) -> Response<Full<Bytes>> {
        let body = match style {
            ErrorStyle::Problem => serde_json::to_vec(&self.problem(request_id)),
            ErrorStyle::ApiGateway => serde_json::to_vec(&self.gateway_body()),
        };
        let mut response = Response::new(Full::new(body.expect("strings and numbers always serialise").into()));
        *response.status_mut() = self.status(style);
        let headers = response.headers_mut();
        match style {
            ErrorStyle::Problem => self.code.write_headers(headers),
            ErrorStyle::ApiGateway => self.code.gateway().write_headers(headers),
        }
        if self.code.closes() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.about.write_headers(headers, jitter);
        response
    }

    fn problem<'a>(&'a self, request_id: &'a str) -> Problem<'a> {
        let Entry { name, status, title, retryable } = self.code.entry();
        let mut problem = Problem {
            r#type: self.code.type_uri(),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            code: name,
            request_id,
            retryable,
            errors: None,
            violated_policies: None,
            models: None,
        };
        match &self.about {
            About::Fields(errors) => problem.errors = Some(errors.iter().map(Field::of).collect()),
            About::Plan(standing, _) => problem.violated_policies = standing.first().map(|first| [first.name]),
            About::Models(models) => problem.models = Some(models),
            About::Nothing
            | About::RetryAfter(_)
            | About::RetrySoon
            | About::Allow(_)
            | About::Accept
            | About::Stage(_) => (),
        }
        problem
    }

    fn gateway_body(&self) -> GatewayBody<'_> {
        let errors = match &self.about {
            About::Fields(errors) => Some(errors.iter().map(Field::of).collect()),
            _ => None,
        };
        GatewayBody { message: self.code.gateway().message.unwrap_or(&self.detail), errors }
    }
}

impl About {
    fn write_headers(&self, headers: &mut HeaderMap, jitter: u8) {
        match self {
            Self::Nothing | Self::Fields(_) | Self::Models(_) => (),
            Self::Plan(standing, retry_after) => {
                ratelimit::Headers::of(standing).insert_into(headers);
                headers.insert(RETRY_AFTER, whole_seconds(*retry_after).into());
            }
            Self::RetryAfter(wait) => {
                headers.insert(RETRY_AFTER, whole_seconds(*wait).into());
            }
            Self::RetrySoon => {
                headers.insert(RETRY_AFTER, u64::from(1 + jitter % 5).into());
            }
            Self::Allow(methods) => {
                headers.insert(ALLOW, HeaderValue::from_static(methods));
            }
            Self::Accept => {
                headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            }
            Self::Stage(stage) => {
                headers.insert(HeaderName::from_static("modelgate-stage"), HeaderValue::from_static(stage));
            }
        }
    }
}

impl<'a> Field<'a> {
    fn of(error: &'a FieldError) -> Self {
        Self { row: error.row, feature: &error.feature, expected: &error.expected, found: &error.found }
    }
}

/// Rounded up: a caller that comes back on the second is not too early. Never zero.
pub(super) fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        match error {
            // One text for both: guessing is not helped.
            AuthError::Missing | AuthError::Unknown => {
                Self::new(Code::Unauthenticated, "send a valid API key as x-api-key or Authorization: Bearer")
            }
            AuthError::Ambiguous => Self::malformed_request("two different API keys were sent"),
            AuthError::NotAllowed | AuthError::OutOfScope | AuthError::Disabled => {
                Self::new(Code::Forbidden, error.to_string())
            }
            AuthError::Throttled { retry_after } => {
                Self::new(Code::AuthThrottled, error.to_string()).about(About::RetryAfter(retry_after))
            }
        }
    }
}

impl From<WireError> for ApiError {
    fn from(error: WireError) -> Self {
        let code = match error {
            WireError::Malformed { .. } | WireError::TooDeep { .. } => Code::MalformedJson,
            WireError::NoRows => Code::InvalidInput,
            WireError::TooManyRows { .. } => Code::PayloadTooLarge,
        };
        Self::new(code, error.to_string())
    }
}

impl From<InvalidInput> for ApiError {
    fn from(error: InvalidInput) -> Self {
        let InvalidInput { errors, total } = error;
        let fields = if total == 1 { "1 field does" } else { &format!("{total} fields do") };
        let listed = if total > errors.len() { &format!("; the first {} are listed", errors.len()) } else { "" };
        let detail = format!("{fields} not fit the model{listed}");
        Self::new(Code::InvalidInput, detail).about(About::Fields(errors))
    }
}

impl From<Refusal> for ApiError {
    fn from(error: Refusal) -> Self {
        let detail = error.to_string();
        match error {
            Refusal::Throttled { standing, retry_after } | Refusal::Busy { standing, retry_after } => {
                Self::new(Code::RateLimited, detail).about(About::Plan(standing, retry_after))
            }
            Refusal::Exhausted { standing, retry_after } | Refusal::TooLarge { standing, retry_after } => {
                Self::new(Code::QuotaExceeded, detail).about(About::Plan(standing, retry_after))
            }
            Refusal::NoPlan => Self::new(Code::Forbidden, detail),
            Refusal::StoreDown => Self::new(Code::QuotaUnavailable, detail).about(About::RetrySoon),
        }
    }
}

impl From<NotTaken> for ApiError {
    fn from(error: NotTaken) -> Self {
        Self::new(Code::Overloaded, error.to_string()).about(About::RetrySoon)
    }
}

impl From<PredictError> for ApiError {
    fn from(error: PredictError) -> Self {
        match error {
            PredictError::Runtime(_) => Self::internal(error),
            PredictError::NotFinite => Self::output_invalid("a value that is not finite", error),
            PredictError::Answer(_) => Self::output_invalid("something else than it was loaded with", error),
            PredictError::Input(error) => error.into(),
            PredictError::DeadlineExceeded { stage } => Self::deadline_exceeded(match stage {
                Stage::Queue => "queue",
                Stage::Run => "run",
            }),
            PredictError::Overloaded => Self::overloaded(),
        }
    }
}

#[cfg(test)]
mod tests;
