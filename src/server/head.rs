//! A request's head, before anything is done for it: is it one message and not two, is it small enough, whose key is
//! it, how long may it take, what is its name.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::{Uri, Version};
use jiff::Timestamp;

use super::Config;
use super::error::ApiError;
use crate::auth::AuthError;

/// The header an answer names its request by.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("request-timeout-ms");

/// Parameters that look like an attempt to send a key where every proxy on the way writes it into its log.
const KEY_PARAMETERS: [&str; 6] = ["api_key", "api-key", "apikey", "x-api-key", "x_api_key", "access_token"];

/// Refuses what is too large, and what two readers could read as two different requests.
pub(super) fn check(head: &Parts, config: &Config) -> Result<(), ApiError> {
    check_size(head, config)?;
    check_framing(head)?;
    check_query(&head.uri)
}

fn check_size(head: &Parts, config: &Config) -> Result<(), ApiError> {
    let count = head.headers.len();
    if count > config.max_headers {
        return Err(ApiError::headers_too_large(format!("a request may have {} header fields", config.max_headers)));
    }
    let fields: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if fields + target > config.max_header_bytes {
        let detail = format!("target and headers may have {} bytes", config.max_header_bytes);
        return Err(ApiError::headers_too_large(detail));
    }
    Ok(())
}

/// What hyper lets through although proxies differ about it.
fn check_framing(head: &Parts) -> Result<(), ApiError> {
    // CGI and WSGI read `a_b` and `a-b` as one field; whoever stands in front of us may have checked the other one.
    if head.headers.keys().any(|name| name.as_str().contains('_')) {
        return Err(ApiError::malformed_request("a header's name holds an underscore"));
    }
    // With a coding before `chunked` the body is not the bytes we would read.
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => (),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => (),
        (Some(_), _) => return Err(ApiError::malformed_request("Transfer-Encoding may be `chunked`, once")),
    }
    match head.headers.get_all(HOST).iter().count() {
        0 if head.version == Version::HTTP_11 => Err(ApiError::malformed_request("the Host header is missing")),
        0 | 1 => Ok(()),
        _ => Err(ApiError::malformed_request("more than one Host header")),
    }
}

fn check_query(uri: &Uri) -> Result<(), ApiError> {
    let Some(query) = uri.query() else { return Ok(()) };
    let names = query.split(['&', ';']).map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name));
    if names.into_iter().any(|name| KEY_PARAMETERS.iter().any(|key| name.eq_ignore_ascii_case(key))) {
        let detail = "send the API key as a header: an address ends up in logs, so consider this key leaked";
        return Err(ApiError::malformed_request(detail));
    }
    Ok(())
}

/// Refuses a body that is not plain JSON by its own account.
pub(super) fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let plain = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(CONTENT_ENCODING).iter().all(plain) {
        return Err(ApiError::unsupported_media_type("send the body without a Content-Encoding"));
    }
    if !headers.get_all(CONTENT_TYPE).iter().all(is_json) {
        return Err(ApiError::unsupported_media_type("send the body as Content-Type: application/json"));
    }
    Ok(())
}

fn is_json(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return false };
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// The key a request was sent with, from `x-api-key` or `Authorization: Bearer`; as often as it likes, but always the
/// same one.
pub(super) fn api_key(headers: &HeaderMap) -> Result<&str, AuthError> {
    let plain = headers.get_all(API_KEY).iter().map(HeaderValue::as_bytes);
    let mut keys = plain.chain(headers.get_all(AUTHORIZATION).iter().filter_map(bearer));
    let key = keys.next().ok_or(AuthError::Missing)?;
    if keys.any(|other| other != key) {
        return Err(AuthError::Ambiguous);
    }
    str::from_utf8(key).map_err(|_| AuthError::Unknown)
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, key) = value.as_bytes().split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// How long the answer may take: `most`, or less if the caller says so.
pub(super) fn time_allowed(headers: &HeaderMap, most: Duration) -> Result<Duration, ApiError> {
    let Some(value) = headers.get(REQUEST_TIMEOUT) else { return Ok(most) };
    let millis = value.to_str().ok().and_then(|text| text.parse().ok()).filter(|millis| *millis > 0);
    let millis =
        millis.ok_or_else(|| ApiError::malformed_request("Request-Timeout-Ms is a whole number above zero"))?;
    Ok(most.min(Duration::from_millis(millis)))
}

/// What a request is called, in its answer, the log and the samples: as the caller named it, or a UUID of version 7.
#[derive(Clone, Debug)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    pub(super) fn of(headers: &HeaderMap, now: Timestamp, entropy: &Entropy) -> Self {
        let given = headers.get(REQUEST_ID).filter(|value| is_request_id(value.as_bytes()));
        Self(given.cloned().unwrap_or_else(|| uuid(now, entropy)))
    }

    pub(super) fn as_str(&self) -> &str {
        self.0.to_str().expect("both kinds are visible ASCII")
    }

    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// Whether a text can be a request's id.
pub(super) fn is_request_id(text: &[u8]) -> bool {
    (1..=128).contains(&text.len())
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn uuid(now: Timestamp, entropy: &Entropy) -> HeaderValue {
    let mut random = [0; 10];
    entropy.draw().fill(&mut random);
    let millis = u64::try_from(now.as_millisecond()).unwrap_or(0);
    let id = uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
    let mut text = uuid::Uuid::encode_buffer();
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)).expect("hexadecimal digits and hyphens")
}

/// Randomness for names and jitter, never for secrets: one seed per process, one draw per use.
#[derive(Debug)]
pub(super) struct Entropy {
    seed: u64,
    drawn: AtomicU64,
}

impl Entropy {
    pub(super) const fn new(seed: u64) -> Self {
        Self { seed, drawn: AtomicU64::new(0) }
    }

    /// A generator of its own for each use: no lock, and no two alike.
    pub(super) fn draw(&self) -> fastrand::Rng {
        // The odd constant is 2^64 over the golden ratio: neighbouring draws land far apart.
        let step = self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        fastrand::Rng::with_seed(self.seed.wrapping_add(step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(pair).collect()
    }

    fn check_key(lines: &[(&'static str, &str)], expect: Result<&str, AuthError>) {
        assert_eq!((lines, api_key(&headers(lines))), (lines, expect));
    }

    #[test]
    fn a_key_comes_in_either_header_and_always_the_same() {
        check_key(&[], Err(AuthError::Missing));
        check_key(&[("x-api-key", "k")], Ok("k"));
        check_key(&[("authorization", "Bearer k")], Ok("k"));
        check_key(&[("authorization", "bearer  k ")], Ok("k"));
        check_key(&[("authorization", "Basic dTpw")], Err(AuthError::Missing));
        check_key(&[("authorization", "Basic dTpw"), ("x-api-key", "k")], Ok("k"));
        check_key(&[("authorization", "Bearer k"), ("x-api-key", "k")], Ok("k"));
        check_key(&[("x-api-key", "k"), ("x-api-key", "k")], Ok("k"));
        check_key(&[("authorization", "Bearer k"), ("x-api-key", "l")], Err(AuthError::Ambiguous));
        check_key(&[("x-api-key", "k"), ("x-api-key", "l")], Err(AuthError::Ambiguous));
    }

    fn check_time(value: Option<&str>, expect: Option<u64>) {
        let headers = headers(&value.map(|value| ("request-timeout-ms", value)).into_iter().collect::<Vec<_>>());
        let allowed = time_allowed(&headers, Duration::from_secs(10)).ok();
        assert_eq!(allowed, expect.map(Duration::from_millis), "{value:?}");
    }

    #[test]
    fn a_caller_may_lower_the_deadline_and_never_raise_it() {
        check_time(None, Some(10_000));
        check_time(Some("250"), Some(250));
        check_time(Some("10001"), Some(10_000));
        check_time(Some("18446744073709551615"), Some(10_000));
        check_time(Some("0"), None);
        check_time(Some("-1"), None);
        check_time(Some("1.5"), None);
        check_time(Some("soon"), None);
    }

    fn check_media(lines: &[(&'static str, &str)], good: bool) {
        assert_eq!(check_media_type(&headers(lines)).is_ok(), good, "{lines:?}");
    }

    #[test]
    fn a_body_is_plain_json_or_says_nothing() {
        check_media(&[], true);
        check_media(&[("content-type", "application/json")], true);
        check_media(&[("content-type", "Application/JSON; charset=utf-8")], true);
        check_media(&[("content-type", "application/vnd.x+json")], true);
        check_media(&[("content-encoding", "identity")], true);
        check_media(&[("content-type", "text/plain")], false);
        check_media(&[("content-type", "image/x+json")], false);
        check_media(&[("content-type", "application/json"), ("content-type", "text/csv")], false);
        check_media(&[("content-encoding", "gzip")], false);
        check_media(&[("content-encoding", "identity, gzip")], false);
    }

    fn check_id(given: Option<&str>, kept: bool) {
        let headers = headers(&given.map(|given| ("x-request-id", given)).into_iter().collect::<Vec<_>>());
        let id = RequestId::of(&headers, Timestamp::UNIX_EPOCH, &Entropy::new(7));
        assert_eq!(Some(id.as_str()) == given, kept, "{given:?}");
        assert!(is_request_id(id.as_str().as_bytes()));
    }

    #[test]
    fn a_request_keeps_its_name_if_it_is_a_decent_one() {
        check_id(None, false);
        check_id(Some("order-66_b.2"), true);
        check_id(Some(""), false);
        check_id(Some("two words"), false);
        check_id(Some("\"quoted\""), false);
        check_id(Some(&"a".repeat(128)), true);
        check_id(Some(&"a".repeat(129)), false);
    }

    #[test]
    fn made_names_are_version_7_in_order_of_time_and_all_different() {
        let entropy = Entropy::new(1);
        let name = |second| {
            let now = Timestamp::from_second(second).unwrap();
            RequestId::of(&HeaderMap::new(), now, &entropy).as_str().to_owned()
        };
        let names: Vec<String> = (1_700_000_000..1_700_001_000).map(name).collect();
        assert!(names.is_sorted_by(|a, b| a < b));
        assert!(names.iter().all(|name| name.as_bytes()[14] == b'7'));
        assert_ne!(name(5), name(5));
    }

    #[test]
    fn a_key_in_the_address_is_refused_however_it_is_spelt() {
        for bad in ["/?api_key=k", "/?a=1&X-API-Key=k", "/?a;apikey=k", "/?access_token"] {
            assert!(check_query(&bad.parse().unwrap()).is_err(), "{bad}");
        }
        for good in ["/", "/?a=api_key", "/?keys=1"] {
            assert!(check_query(&good.parse().unwrap()).is_ok(), "{good}");
        }
    }
}
