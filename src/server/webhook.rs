//! The registry's own word that something changed: a signed hint to ask it now. What the hint says decides nothing.
//!
//! MLflow signs `id.timestamp.body` with HMAC-SHA-256 and sends the same id again when it is not answered well.

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use hyper::body::Body;
use jiff::Timestamp;
use parking_lot::Mutex;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use sha2::Sha256;

use super::body::{self, BoxError};
use super::error::ApiError;
use super::routes::{Answer, Room, json_answer};

/// The largest hint, in bytes. MLflow's are below one thousand but for a version's description.
const MAX_BODY: usize = 64 << 10;

/// How far a hint's time may be from ours, as MLflow advises.
const WINDOW: Duration = Duration::from_mins(5);

/// Ids remembered. Only signed hints get in; of more than these in a window the oldest is forgotten, and a hint sent
/// twice costs one poll.
const IDS_KEPT: usize = 1024;

/// The longest id that is one, in bytes; MLflow's have 36.
const MAX_ID: usize = 128;

/// Knows which hints are the registry's.
#[derive(Debug)]
pub struct Webhook {
    key: Hmac<Sha256>,
    /// The ids of good hints, the newest last.
    seen: Mutex<VecDeque<(Timestamp, String)>>,
}

/// What a hint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hint {
    New,
    Again,
    /// Not signed with our secret, or too old, or too new.
    Foreign,
}

impl Webhook {
    /// For hints signed with `secret`.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "it cannot")]
    pub fn new(secret: &SecretString) -> Self {
        let key = Hmac::new_from_slice(secret.expose_secret().as_bytes()).expect("HMAC takes a key of any length");
        Self { key, seen: Mutex::new(VecDeque::new()) }
    }

    fn check(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Hint {
        let header = |name: &str| headers.get(name)?.to_str().ok();
        let signed = || -> Option<(&str, &str, Vec<u8>)> {
            let signature = header("x-mlflow-signature")?.strip_prefix("v1,")?;
            let id = header("x-mlflow-delivery-id").filter(|id| id.len() <= MAX_ID)?;
            Some((id, header("x-mlflow-timestamp")?, BASE64.decode(signature).ok()?))
        };
        let Some((id, time, signature)) = signed() else { return Hint::Foreign };
        let mut mac = self.key.clone();
        for part in [id.as_bytes(), b".", time.as_bytes(), b".", body] {
            mac.update(part);
        }
        // Takes the same time whatever is wrong.
        let is_ours = mac.verify_slice(&signature).is_ok();
        let fresh = time.parse().ok().and_then(|time| Timestamp::from_second(time).ok());
        let fresh = fresh.is_some_and(|time| now.duration_since(time).unsigned_abs() <= WINDOW);
        if !is_ours || !fresh {
            return Hint::Foreign;
        }
        self.remember(id, now)
    }

    fn remember(&self, id: &str, now: Timestamp) -> Hint {
        let mut seen = self.seen.lock();
        // Twice the window: a hint may be from the future of our clock.
        while seen.front().is_some_and(|(at, _)| now.duration_since(*at).unsigned_abs() > 2 * WINDOW) {
            seen.pop_front();
        }
        if seen.iter().any(|(_, before)| before == id) {
            return Hint::Again;
        }
        if seen.len() == IDS_KEPT {
            seen.pop_front();
        }
        seen.push_back((now, id.to_owned()));
        Hint::New
    }
}

/// `POST /admin/registry-webhook`. Answers at once; the poll comes after.
pub(super) async fn hint<B>(room: &Room, head: &Parts, body: B) -> Result<Answer, ApiError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let webhook = room.state.webhook.as_ref().ok_or_else(ApiError::no_route)?;
    let body = body::read(body, MAX_BODY, room.config.body_timeout).await?;
    let hint = webhook.check(&head.headers, &body, room.state.clock.now());
    match hint {
        Hint::Foreign => return Err(ApiError::not_signed()),
        Hint::New => room.state.orders.hint(),
        Hint::Again => {}
    }
    let mut answer = json_answer(&json!({ "status": if hint == Hint::New { "accepted" } else { "known" } }));
    *answer.status_mut() = StatusCode::ACCEPTED;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn signed(secret: &str, id: &str, time: &str, body: &[u8]) -> HeaderMap {
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(&[id.as_bytes(), b".", time.as_bytes(), b".", body].concat());
        let signature = format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()));
        let lines = [("x-mlflow-delivery-id", id), ("x-mlflow-timestamp", time), ("x-mlflow-signature", &signature)];
        lines.into_iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn webhook() -> Webhook {
        Webhook::new(&"secret".into())
    }

    #[track_caller]
    fn check(headers: &HeaderMap, body: &[u8], now: i64, expect: Hint) {
        assert_eq!(webhook().check(headers, body, at(now)), expect);
    }

    #[test]
    fn only_what_is_signed_with_the_secret_and_fresh_is_a_hint() {
        let good = signed("secret", "8ec861f7", "1000", b"{}");
        check(&good, b"{}", 1000, Hint::New);
        check(&good, b"{} ", 1000, Hint::Foreign);
        check(&signed("other", "8ec861f7", "1000", b"{}"), b"{}", 1000, Hint::Foreign);
        check(&good, b"{}", 1300, Hint::New);
        check(&good, b"{}", 1301, Hint::Foreign);
        check(&good, b"{}", 700, Hint::New);
        check(&good, b"{}", 699, Hint::Foreign);
        check(&signed("secret", &"i".repeat(129), "1000", b"{}"), b"{}", 1000, Hint::Foreign);
        check(&signed("secret", "8ec861f7", "soon", b"{}"), b"{}", 1000, Hint::Foreign);
        for missing in ["x-mlflow-signature", "x-mlflow-delivery-id", "x-mlflow-timestamp"] {
            let mut headers = good.clone();
            headers.remove(missing);
            check(&headers, b"{}", 1000, Hint::Foreign);
        }
        for wrong in ["v1,", "v1,AAAA", "v2,AAAA", "not base64"] {
            let mut headers = good.clone();
            headers.insert("x-mlflow-signature", wrong.parse().unwrap());
            check(&headers, b"{}", 1000, Hint::Foreign);
        }
    }

    #[test]
    fn an_id_counts_once_for_as_long_as_its_signature_is_good() {
        let webhook = webhook();
        let first = signed("secret", "one", "1000", b"{}");
        assert_eq!(webhook.check(&first, b"{}", at(1000)), Hint::New);
        assert_eq!(webhook.check(&first, b"{}", at(1300)), Hint::Again);
        assert_eq!(webhook.check(&signed("secret", "two", "1000", b"{}"), b"{}", at(1000)), Hint::New);
        for id in 0..2000 {
            webhook.check(&signed("secret", &format!("{id}"), "1000", b""), b"", at(1000));
        }
        assert_eq!(webhook.seen.lock().len(), IDS_KEPT);
        assert_eq!(webhook.check(&signed("secret", "late", "2000", b""), b"", at(2000)), Hint::New);
        assert_eq!(webhook.seen.lock().len(), 1);
    }
}
