//! `Idempotency-Key`: a prediction that is asked for again under the same name is answered again, not run again.
//!
//! Kept are answers that were given: what was refused or failed may be tried again under its name. They are kept in
//! this process, for a day, in [`MAX_BYTES`] at most: where that is full the oldest answer makes room, and one account
//! has no more than [`MAX_BYTES_PER_ACCOUNT`] of it, so that it pushes out its own first. A retry whose first
//! answer is gone is run, and charged, like any other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::body::Body as _;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::error::ApiError;
use super::routes::Answer;
use crate::auth::KeyId;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Characters of a name.
const NAME_MAX: usize = 255;

/// How long an answer is kept.
const KEPT_FOR: Duration = Duration::from_hours(24);

/// What all answers may take.
const MAX_BYTES: usize = 64 << 20;

/// What the answers to one account may take.
const MAX_BYTES_PER_ACCOUNT: usize = 16 << 20;

/// What an answer takes beside its body and its names, about.
const OVERHEAD_BYTES: usize = 1024;

/// Every answer that can be given again. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Replays(Arc<Mutex<Shelf>>);

/// What a name stands for: nobody else's request, and no other model's.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Id {
    account: KeyId,
    model: Box<str>,
    name: Box<str>,
}

type BodyDigest = [u8; 32];

#[derive(Debug, Default)]
struct Shelf {
    entries: HashMap<Arc<Id>, Entry, RandomState>,
    /// Kept answers, oldest first.
    order: BTreeMap<u64, Arc<Id>>,
    accounts: HashMap<KeyId, Share, RandomState>,
    bytes: usize,
    next: u64,
}

/// What is kept for one account.
#[derive(Debug, Default)]
struct Share {
    order: BTreeSet<u64>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    body: BodyDigest,
    /// `None` while the first request is under way. As many as there are predictions.
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    answer: Answer,
    at: Instant,
    bytes: usize,
    serial: u64,
}

/// What to do about a request.
#[derive(Debug)]
pub(super) enum Begin {
    /// Run it; it has no name.
    Nameless,
    /// Run it, and [keep](Ticket::keep) its answer.
    First(Ticket),
    /// This was its answer.
    Again(Answer),
}

impl Replays {
    /// Looks for the answer to `body`, which `account` sent to `model` under the name in `headers`.
    ///
    /// # Errors
    /// When the name will not do, stands for another body, or its first request has no answer yet.
    pub(super) fn begin(
        &self,
        headers: &HeaderMap,
        account: &KeyId,
        model: &str,
        body: &[u8],
    ) -> Result<Begin, ApiError> {
        let Some(name) = name(headers)? else { return Ok(Begin::Nameless) };
        let id = Arc::new(Id { account: Arc::clone(account), model: model.into(), name: name.into() });
        let body = Sha256::digest(body).into();
        let mut book = self.0.lock();
        book.forget_old(Instant::now());
        match book.entries.get(&id) {
            Some(entry) if entry.body != body => Err(ApiError::idempotency_mismatch()),
            Some(Entry { kept: None, .. }) => Err(ApiError::idempotency_in_progress()),
            Some(Entry { kept: Some(kept), .. }) => {
                let mut answer = kept.answer.clone();
                answer.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
                Ok(Begin::Again(answer))
            }
            None => {
                book.entries.insert(Arc::clone(&id), Entry { body, kept: None });
                Ok(Begin::First(Ticket { replays: self.clone(), id }))
            }
        }
    }
}

/// The name in `headers`, if there is one.
fn name(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut names = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(name) = names.next() else { return Ok(None) };
    let name = name.to_str().ok().filter(|name| (1..=NAME_MAX).contains(&name.len()) && names.next().is_none());
    name.map(Some).ok_or_else(|| ApiError::malformed_request("Idempotency-Key is 1 to 255 ASCII characters, once"))
}

/// The right to answer under a name. Dropped without an answer, the name is free again.
#[derive(Debug)]
pub(super) struct Ticket {
    replays: Replays,
    id: Arc<Id>,
}

impl Ticket {
    /// Keeps `answer` for those who ask again.
    pub(super) fn keep(self, answer: &Answer) {
        let mut book = self.replays.0.lock();
        book.keep(&self.id, answer.clone(), Instant::now());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut book = self.replays.0.lock();
        if book.entries.get(&self.id).is_some_and(|entry| entry.kept.is_none()) {
            book.entries.remove(&self.id);
        }
    }
}

impl Shelf {
    fn keep(&mut self, id: &Arc<Id>, answer: Answer, at: Instant) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        let body = usize::try_from(answer.body().size_hint().lower()).unwrap_or(usize::MAX);
        let bytes = body.saturating_add(id.name.len() + id.model.len() + OVERHEAD_BYTES);
        let serial = self.next;
        self.next += 1;
        entry.kept = Some(Kept { answer, at, bytes, serial });
        self.order.insert(serial, Arc::clone(id));
        let share = self.accounts.entry(Arc::clone(&id.account)).or_default();
        share.order.insert(serial);
        share.bytes = share.bytes.saturating_add(bytes);
        self.bytes = self.bytes.saturating_add(bytes);
        self.make_room(&id.account);
    }

    fn make_room(&mut self, account: &KeyId) {
        while let Some(share) = self.accounts.get(account).filter(|share| share.bytes > MAX_BYTES_PER_ACCOUNT) {
            let Some(oldest) = share.order.first().copied() else { break };
            self.forget(oldest);
        }
        while self.bytes > MAX_BYTES {
            let Some((&oldest, _)) = self.order.first_key_value() else { break };
            self.forget(oldest);
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((&oldest, id)) = self.order.first_key_value() {
            let kept = self.entries.get(id).and_then(|entry| entry.kept.as_ref());
            if kept.is_some_and(|kept| now < kept.at + KEPT_FOR) {
                break;
            }
            self.forget(oldest);
        }
    }

    fn forget(&mut self, serial: u64) {
        let Some(id) = self.order.remove(&serial) else { return };
        let Some(kept) = self.entries.remove(&id).and_then(|entry| entry.kept) else { return };
        debug_assert_eq!(kept.serial, serial, "a name has one answer");
        self.bytes -= kept.bytes;
        if let Some(share) = self.accounts.get_mut(&id.account) {
            share.order.remove(&serial);
            share.bytes -= kept.bytes;
            if share.order.is_empty() {
                self.accounts.remove(&id.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;

    use super::super::error::Code;
    use super::*;

    fn begin(replays: &Replays, account: &str, name: &str, body: &str) -> Result<Begin, Code> {
        let headers = HeaderMap::from_iter([(IDEMPOTENCY_KEY, HeaderValue::from_str(name).unwrap())]);
        replays.begin(&headers, &account.into(), "m", body.as_bytes()).map_err(|error| error.code)
    }

    fn answer(bytes: usize) -> Answer {
        Answer::new(Full::new(Bytes::from(vec![b'x'; bytes])))
    }

    /// Asks and answers at once; says whether it was an answer given before.
    fn ask(replays: &Replays, account: &str, name: &str, bytes: usize) -> bool {
        match begin(replays, account, name, "body").unwrap() {
            Begin::First(ticket) => ticket.keep(&answer(bytes)),
            Begin::Again(again) => return again.headers()[REPLAYED] == "true",
            Begin::Nameless => panic!("it has a name"),
        }
        false
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_given_again_for_a_day() {
        let replays = Replays::default();
        assert!(!ask(&replays, "a", "n", 1));
        assert!(ask(&replays, "a", "n", 1));
        assert!(!ask(&replays, "b", "n", 1), "a name is its account's own");
        tokio::time::advance(Duration::from_secs(24 * 3600 - 1)).await;
        assert!(ask(&replays, "a", "n", 1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!ask(&replays, "a", "n", 1));
    }

    #[test]
    fn a_name_stands_for_one_body_and_one_request_at_a_time() {
        let replays = Replays::default();
        let first = begin(&replays, "a", "n", "body").unwrap();
        assert_eq!(begin(&replays, "a", "n", "body").unwrap_err(), Code::IdempotencyInProgress);
        assert_eq!(begin(&replays, "a", "n", "other").unwrap_err(), Code::IdempotencyMismatch);
        drop(first);
        assert!(!ask(&replays, "a", "n", 1), "what has no answer may be tried again");
        assert_eq!(begin(&replays, "a", "n", "other").unwrap_err(), Code::IdempotencyMismatch);
    }

    #[test]
    fn names_have_a_length() {
        let replays = Replays::default();
        assert!(begin(&replays, "a", &"n".repeat(255), "").is_ok());
        assert_eq!(begin(&replays, "a", &"n".repeat(256), "").unwrap_err(), Code::MalformedRequest);
        assert_eq!(begin(&replays, "a", "", "").unwrap_err(), Code::MalformedRequest);
    }

    #[test]
    fn who_keeps_much_pushes_out_its_own_answers() {
        let replays = Replays::default();
        ask(&replays, "quiet", "n", 1);
        for number in 0..100 {
            ask(&replays, "loud", &number.to_string(), 1 << 20);
        }
        assert!(ask(&replays, "quiet", "n", 1));
        assert!(!ask(&replays, "loud", "0", 1) && ask(&replays, "loud", "99", 1));
        assert!(replays.0.lock().bytes <= MAX_BYTES_PER_ACCOUNT + (2 << 20));
    }

    #[test]
    fn memory_is_bounded_whatever_is_kept() {
        let replays = Replays::default();
        for number in 0..500 {
            ask(&replays, &number.to_string(), "n", 1 << 20);
        }
        ask(&replays, "huge", "n", MAX_BYTES + 1);
        let book = replays.0.lock();
        assert!(book.bytes <= MAX_BYTES);
        assert_eq!(book.entries.len(), book.order.len());
        assert_eq!(book.accounts.values().map(|share| share.bytes).sum::<usize>(), book.bytes);
    }
}
