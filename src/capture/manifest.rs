//! What was written, written down: `_manifest/date=<YYYY-MM-DD>/<digest>.json`, after the objects it lists.
//!
//! ```json
//! {"gateway":"5f…","time":"2025-12-01T12:00:00Z",
//!  "objects":[{"key":"model=…/….parquet","rows":10000,"bytes":214733,"sha256":"9c…"}],"unlisted":0,
//!  "counts":{"sampled":10005,"stored":10000,"dropped_queue_full":0,"dropped_spool_full":0,"failed":0,"pending":5}}
//! ```
//!
//! Counts are rows since the process began, and `gateway` names that process. There is at most one manifest a flush, and
//! none for a flush that wrote nothing. A process that is killed between an object and its manifest leaves the object
//! unlisted. The folder begins with an underscore, so that Athena, Spark and pyarrow do not read it as samples.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tracing::warn;

use crate::model::Digest;

use super::Counts;
use super::sink::PutError;

/// Objects that wait for a manifest, at most; above it the newest is left out and counted as unlisted.
const WAITING_MAX: usize = 4096;

/// One object as a manifest lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Listed {
    pub(super) key: String,
    pub(super) rows: u64,
    bytes: usize,
    /// In hexadecimal digits.
    sha256: String,
}

impl Listed {
    pub(super) fn of(key: String, rows: u64, body: &[u8]) -> Self {
        Self { key, rows, bytes: body.len(), sha256: sha256(body) }
    }
}

fn sha256(bytes: &[u8]) -> String {
    Digest(Sha256::digest(bytes).into()).hex()
}

/// Which objects are not yet listed.
#[derive(Debug)]
pub(super) struct Ledger {
    gateway: String,
    /// By key, because an object whose segment could not be deleted is sent again.
    waiting: BTreeMap<String, Listed>,
    unlisted: u64,
    is_failing: bool,
}

/// A manifest ready for the sink.
pub(super) struct Manifest {
    pub(super) key: String,
    pub(super) body: Vec<u8>,
    /// The keys of the objects in it.
    pub(super) lists: Vec<String>,
}

/// What a manifest holds.
#[derive(Serialize)]
struct Page<'a> {
    gateway: &'a str,
    time: String,
    objects: Vec<&'a Listed>,
    unlisted: u64,
    counts: Counts,
}

impl Ledger {
    /// Nothing was written yet by the process that has this `seed`.
    pub(super) fn new(seed: u64) -> Self {
        Self { gateway: format!("{seed:016x}"), waiting: BTreeMap::new(), unlisted: 0, is_failing: false }
    }

    /// Notes an object that is in the sink.
    pub(super) fn note(&mut self, object: Listed) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.insert(object.key.clone(), object);
        } else {
            self.unlisted += 1;
        }
    }

    /// The manifest of all that is not yet listed; `None` when there is nothing.
    pub(super) fn manifest(&self, now: Timestamp, counts: Counts) -> Option<Manifest> {
        if self.waiting.is_empty() {
            return None;
        }
        let (gateway, unlisted) = (&*self.gateway, self.unlisted);
        let objects = self.waiting.values().collect();
        let page = Page { gateway, time: now.to_string(), objects, unlisted, counts };
        let body = serde_json::to_vec(&page).ok()?;
        let mut name = sha256(&body);
        name.truncate(32);
        let key = format!("_manifest/{}/{name}.json", now.strftime("date=%Y-%m-%d"));
        Some(Manifest { key, body, lists: self.waiting.keys().cloned().collect() })
    }

    /// Strikes out what a manifest listed, if the sink has it.
    pub(super) fn settle(&mut self, lists: &[String], put: Result<(), PutError>) {
        match put {
            Ok(()) => {
                // In order, as they came out of the map.
                self.waiting.retain(|key, _| lists.binary_search(key).is_err());
                self.is_failing = false;
            }
            Err(error) if !self.is_failing => {
                warn!("samples are stored, but not their manifest, which comes with the next: {error}");
                self.is_failing = true;
            }
            Err(_) => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(objects: usize) -> Ledger {
        let mut ledger = Ledger::new(7);
        for index in 0..objects {
            ledger.note(Listed::of(format!("k{index:05}"), 10, b"abc"));
        }
        ledger
    }

    fn manifest(ledger: &Ledger) -> Option<Manifest> {
        ledger
            .manifest("2025-12-01T12:00:00Z".parse().unwrap(), Counts { sampled: 20, stored: 20, ..Counts::default() })
    }

    #[test]
    fn a_manifest_lists_what_was_written_and_tells_the_counts() {
        let made = manifest(&ledger(1)).unwrap();
        let expected = concat!(
            r#"{"gateway":"0000000000000007","time":"2025-12-01T12:00:00Z","objects":[{"key":"k00000","rows":10,"bytes":3,"#,
            r#""sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}],"unlisted":0,"counts":"#,
            r#"{"sampled":20,"stored":20,"dropped_queue_full":0,"dropped_spool_full":0,"failed":0,"pending":0}}"#,
        );
        assert_eq!(std::str::from_utf8(&made.body).unwrap(), expected);
        assert_eq!(made.key, format!("_manifest/date=2025-12-01/{}.json", &sha256(&made.body)[..32]));
    }

    #[test]
    fn what_could_not_be_listed_is_listed_next_and_nothing_twice() {
        let mut ledger = ledger(2);
        let first = manifest(&ledger).unwrap();
        ledger.settle(&first.lists, Err(PutError::Denied("no".to_owned())));
        ledger.note(Listed::of("k00001".to_owned(), 10, b"abc"));
        let second = manifest(&ledger).unwrap();
        assert_eq!(second.lists, ["k00000", "k00001"]);
        ledger.note(Listed::of("k00002".to_owned(), 10, b"abc"));
        ledger.settle(&second.lists, Ok(()));
        assert_eq!(manifest(&ledger).unwrap().lists, ["k00002"]);
        ledger.settle(&["k00002".to_owned()], Ok(()));
        assert!(manifest(&ledger).is_none());
    }

    #[test]
    fn a_sink_that_refuses_manifests_for_ever_costs_no_more_memory() {
        let ledger = ledger(WAITING_MAX + 3);
        assert_eq!((ledger.waiting.len(), ledger.unlisted), (WAITING_MAX, 3));
    }
}
