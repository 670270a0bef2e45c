//! `RateLimit` and `RateLimit-Policy`: where a caller stands, as structured fields (RFC 8941), after
//! draft-ietf-httpapi-ratelimit-headers.

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::error::whole_seconds;
use crate::quota::Standing;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// No answer speaks of more limits than this.
const MOST: usize = 2;

/// Both values, ready to send.
#[derive(Debug)]
pub(super) struct Headers {
    policy: HeaderValue,
    limit: HeaderValue,
}

impl Headers {
    /// `"day";q=10000;w=86400` and `"day";r=9412;t=40211`, for the first two limits.
    pub(super) fn of(standing: &[Standing]) -> Self {
        let mut policy = BytesMut::with_capacity(64);
        let mut limit = BytesMut::with_capacity(64);
        for one in standing.iter().take(MOST) {
            item(&mut policy, one.name, ('q', one.limit));
            if one.window.is_zero() {
                policy.extend_from_slice(b";qu=\"concurrent-requests\"");
            } else {
                parameter(&mut policy, ('w', whole_seconds(one.window)));
            }
            item(&mut limit, one.name, ('r', one.remaining));
            parameter(&mut limit, ('t', whole_seconds(one.resets_in)));
        }
        Self { policy: value(policy.freeze()), limit: value(limit.freeze()) }
    }

    /// Whether `headers` say where the caller stands.
    pub(super) fn are_in(headers: &HeaderMap) -> bool {
        headers.contains_key(RATE_LIMIT)
    }

    pub(super) fn insert_into(self, headers: &mut HeaderMap) {
        // A plan without limits has nothing to say, and an empty list is written by leaving the field out.
        if !self.limit.is_empty() {
            headers.insert(RATE_LIMIT_POLICY, self.policy);
            headers.insert(RATE_LIMIT, self.limit);
        }
    }
}

fn item(list: &mut BytesMut, name: &str, first: (char, u64)) {
    let separator = if list.is_empty() { "" } else { ", " };
    write!(list, "{separator}\"{name}\"").expect("a buffer in memory takes every write");
    parameter(list, first);
}

fn parameter(list: &mut BytesMut, (name, number): (char, u64)) {
    write!(list, ";{name}={}", integer(number)).expect("a buffer in memory takes every write");
}

/// RFC 8941 allows an integer 15 digits.
fn integer(number: u64) -> u64 {
    number.min(999_999_999_999_999)
}

fn value(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).expect("names of limits and digits are legal header text")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn standing(name: &'static str, limit: u64, window: u64, remaining: u64, resets_in_millis: u64) -> Standing {
        let window = Duration::from_secs(window);
        Standing { name, limit, window, remaining, resets_in: Duration::from_millis(resets_in_millis) }
    }

    fn check(standing: &[Standing], policy: Option<&str>, limit: Option<&str>) {
        let mut headers = HeaderMap::new();
        Headers::of(standing).insert_into(&mut headers);
        let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap());
        assert_eq!((text(&RATE_LIMIT_POLICY), text(&RATE_LIMIT)), (policy, limit));
    }

    #[test]
    fn two_limits_are_told_in_their_order() {
        check(
            &[standing("rate", 100, 2, 0, 20), standing("day", 10_000, 86_400, 9_412, 40_211_000)],
            Some(r#""rate";q=100;w=2, "day";q=10000;w=86400"#),
            Some(r#""rate";r=0;t=1, "day";r=9412;t=40211"#),
        );
    }

    #[test]
    fn what_is_allowed_at_one_time_has_no_window() {
        check(
            &[standing("concurrency", 64, 0, 0, 1000)],
            Some(r#""concurrency";q=64;qu="concurrent-requests""#),
            Some(r#""concurrency";r=0;t=1"#),
        );
    }

    #[test]
    fn no_limit_is_told_by_silence() {
        check(&[], None, None);
    }

    #[test]
    fn an_integer_has_at_most_fifteen_digits() {
        check(
            &[standing("day", u64::MAX, 86_400, u64::MAX, 1)],
            Some(r#""day";q=999999999999999;w=86400"#),
            Some(r#""day";r=999999999999999;t=1"#),
        );
    }
}
