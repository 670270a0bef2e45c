//! What happened to every version, and what must not be forgotten by a restart: which versions are barred, which one is
//! pinned. One SQLite file.
//!
//! Of each model the newest [`EVENTS_KEPT`] events and the newest [`BARS_KEPT`] barred versions are kept.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use serde::{Deserialize, Serialize};

use super::policy;
use crate::model::orders::{Event, Kind};
use crate::model::{ModelName, Version};
use crate::registry::Found;

/// Events kept of each model; a model with a new version every hour fills them in six weeks.
const EVENTS_KEPT: u32 = 1000;

/// Barred versions kept of each model.
const BARS_KEPT: usize = 100;

/// Refused versions kept of each model.
const REFUSALS_KEPT: usize = 100;

/// How long a write waits for another process that reads.
const LOCK_WAIT: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS event (
        id INTEGER PRIMARY KEY, model TEXT NOT NULL, time INTEGER NOT NULL, kind TEXT NOT NULL, version INTEGER NOT NULL,
        digest TEXT, from_version INTEGER, to_version INTEGER, who TEXT NOT NULL, why TEXT NOT NULL, verdict TEXT
    ) STRICT;
    CREATE INDEX IF NOT EXISTS event_of_model ON event (model, id);
    CREATE TABLE IF NOT EXISTS stance (model TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
";

/// The file. Cheap to clone; its functions block.
#[derive(Clone, Debug)]
pub struct History(Arc<Mutex<Connection>>);

/// What is settled about one model beside what the registry says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Stance {
    /// The version that stays until told otherwise.
    pub(super) pin: Option<u64>,
    /// What the registry wanted when an operator chose otherwise.
    pub(super) set_aside: Option<Mark>,
    /// Versions that were rolled back, the newest last.
    pub(super) barred: Vec<Barred>,
    /// Versions that were found unfit, the newest last.
    #[serde(default)]
    pub(super) refused: Vec<Refusal>,
    /// What is held for callers who stay on it.
    #[serde(default)]
    pub(super) held: Vec<HeldNote>,
}

/// A version that was found unfit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) mark: Mark,
    /// Its bytes, where they were seen.
    pub(super) digest: Option<String>,
    pub(super) why: String,
    /// What it was judged by. Under other rules it may be fit.
    pub(super) rules: String,
    /// The bytes of the version it was compared with, where that is why. Beside another it may be fit.
    pub(super) beside: Option<String>,
}

/// A version that is held for callers who stay on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct HeldNote {
    /// What they stay on, as text.
    pub(super) target: String,
    pub(super) mark: Mark,
    /// Its bytes, in hexadecimal digits.
    pub(super) digest: String,
}

/// A version that is not served again by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Barred {
    pub(super) mark: Mark,
    /// Its bytes: under another number they are no better.
    pub(super) digest: String,
    pub(super) why: String,
}

/// What makes a version itself, to be recognized after a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Mark {
    registered_model: String,
    version: u64,
    source: String,
    created: i64,
    tags: BTreeMap<String, String>,
}

impl Mark {
    pub(super) fn of(found: &Found) -> Self {
        let Found { registered_model, version, source, created, tags, .. } = found.clone();
        Self { registered_model, version: version.0, source, created, tags }
    }

    pub(super) fn is(&self, found: &Found) -> bool {
        policy::is_same(&self.found(), found)
    }

    /// The version, found under no alias.
    pub(super) fn found(&self) -> Found {
        let Self { registered_model, version, source, created, tags } = self.clone();
        Found { registered_model, version: Version(version), alias: None, source, created, tags }
    }

    pub(super) fn version(&self) -> Version {
        Version(self.version)
    }
}

impl Stance {
    /// Why `found`, or the bytes `digest`, are barred; `None` when they are not.
    pub(super) fn bars(&self, found: &Found, digest: Option<&str>) -> Option<&Barred> {
        self.barred.iter().find(|barred| barred.mark.is(found) || Some(barred.digest.as_str()) == digest)
    }

    /// Bars a version; of too many the oldest is forgotten.
    pub(super) fn bar(&mut self, barred: Barred) {
        self.barred.retain(|before| before.mark != barred.mark);
        self.barred.push(barred);
        let too_many = self.barred.len().saturating_sub(BARS_KEPT);
        self.barred.drain(..too_many);
    }

    /// Why `found`, or the bytes `digest`, would be refused again by `rules` beside the version with the bytes `beside`;
    /// `None` if nothing is known against it.
    pub(super) fn refuses(
        &self,
        found: &Found,
        digest: Option<&str>,
        rules: &str,
        beside: Option<&str>,
    ) -> Option<&Refusal> {
        self.refused.iter().find(|refusal| {
            let holds = refusal.rules == rules && (refusal.beside.is_none() || refusal.beside.as_deref() == beside);
            // Tags say how outputs are read: the same bytes with other tags are another version.
            let same_bytes = digest.is_some()
                && refusal.digest.as_deref() == digest
                && policy::is_read_alike(&refusal.mark.tags, &found.tags);
            holds && (refusal.mark.is(found) || same_bytes)
        })
    }

    /// Keeps a refusal; of too many the oldest is forgotten.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.refused.retain(|before| before.mark != refusal.mark);
        self.refused.push(refusal);
        let too_many = self.refused.len().saturating_sub(REFUSALS_KEPT);
        self.refused.drain(..too_many);
    }

    /// Lets `found` in again.
    pub(super) fn pardon(&mut self, found: &Found, digest: Option<&str>) {
        self.barred.retain(|barred| !barred.mark.is(found) && Some(barred.digest.as_str()) != digest);
        self.refused
            .retain(|refusal| !refusal.mark.is(found) && (digest.is_none() || refusal.digest.as_deref() != digest));
    }
}

impl History {
    /// Opens the file, making it where there is none.
    ///
    /// # Errors
    /// When it cannot be opened or is no such file.
    pub fn open(path: &Path) -> rusqlite::Result<Self> {
        let db = Connection::open(path)?;
        db.busy_timeout(LOCK_WAIT)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.execute_batch(SCHEMA)?;
        Ok(Self(Arc::new(Mutex::new(db))))
    }

    /// Adds `event`, and forgets what is too old.
    pub(super) fn record(&self, model: &ModelName, event: &Event) -> rusqlite::Result<()> {
        let number = |version: Version| i64::try_from(version.0).unwrap_or(i64::MAX);
        let db = self.0.lock();
        db.prepare(
            "INSERT INTO event (model, time, kind, version, digest, from_version, to_version, who, why, verdict)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            model.as_str(),
            event.time.as_millisecond(),
            event.event.as_str(),
            number(event.version),
            event.digest,
            event.from.map(number),
            event.to.map(number),
            event.who,
            event.why,
            event.verdict,
        ])?;
        db.prepare(
            "DELETE FROM event WHERE model = ?1 AND id <=
             (SELECT id FROM event WHERE model = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        )?
        .execute(params![model.as_str(), EVENTS_KEPT])?;
        Ok(())
    }

    /// What happened to `model`, newest first.
    pub(super) fn events(&self, model: &ModelName) -> rusqlite::Result<Vec<Event>> {
        let db = self.0.lock();
        let mut query = db.prepare(
            "SELECT time, kind, version, digest, from_version, to_version, who, why, verdict
             FROM event WHERE model = ?1 ORDER BY id DESC",
        )?;
        let events = query.query_map([model.as_str()], event)?;
        events.collect()
    }

    /// What is settled about `model`.
    pub(super) fn stance(&self, model: &ModelName) -> rusqlite::Result<Stance> {
        let db = self.0.lock();
        let body = db.query_row("SELECT body FROM stance WHERE model = ?1", [model.as_str()], |row| row.get(0));
        let body: Option<String> = body.optional()?;
        let read = |body: String| serde_json::from_str(&body).map_err(|error| wrong(0, error));
        body.map(read).transpose().map(Option::unwrap_or_default)
    }

    /// Settles it.
    pub(super) fn settle(&self, model: &ModelName, stance: &Stance) -> rusqlite::Result<()> {
        let body = serde_json::to_string(stance).map_err(|error| wrong(0, error))?;
        let sql = "INSERT INTO stance (model, body) VALUES (?1, ?2) ON CONFLICT (model) DO UPDATE SET body = ?2";
        self.0.lock().execute(sql, params![model.as_str(), body]).map(drop)
    }
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    let number = |number: i64| Version(number.unsigned_abs());
    let kind: String = row.get(1)?;
    Ok(Event {
        time: Timestamp::from_millisecond(row.get(0)?).map_err(|error| wrong(0, error))?,
        event: Kind::of(&kind).ok_or_else(|| wrong(1, format!("`{kind}` is no kind of event")))?,
        version: number(row.get(2)?),
        digest: row.get(3)?,
        from: row.get::<_, Option<i64>>(4)?.map(number),
        to: row.get::<_, Option<i64>>(5)?.map(number),
        who: row.get(6)?,
        why: row.get(7)?,
        verdict: row.get(8)?,
    })
}

fn wrong(column: usize, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ModelName {
        "credit-score".parse().unwrap()
    }

    fn found(version: u64) -> Found {
        Found {
            registered_model: "credit".into(),
            version: Version(version),
            alias: Some("champion".into()),
            source: format!("models:/m-{version}"),
            created: 1,
            tags: BTreeMap::new(),
        }
    }

    fn barred(version: u64) -> Barred {
        Barred { mark: Mark::of(&found(version)), digest: format!("d{version}"), why: "answers nothing".into() }
    }

    fn refusal(version: u64, beside: Option<&str>) -> Refusal {
        Refusal {
            mark: Mark::of(&found(version)),
            digest: Some(format!("d{version}")),
            why: "it crashed".into(),
            rules: "r1".into(),
            beside: beside.map(str::to_owned),
        }
    }

    fn served(version: u64) -> Event {
        Event {
            time: Timestamp::from_second(1000).unwrap(),
            event: Kind::Served,
            version: Version(version),
            digest: Some("sha-256:00".into()),
            from: Some(Version(1)),
            to: Some(Version(version)),
            who: "registry".into(),
            why: "the alias says so".into(),
            verdict: None,
        }
    }

    #[test]
    fn what_was_noted_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.db");
        let held = HeldNote { target: "alias:stable".into(), mark: Mark::of(&found(1)), digest: "d1".into() };
        let stance = Stance {
            pin: Some(3),
            set_aside: Some(Mark::of(&found(4))),
            barred: vec![barred(2)],
            refused: vec![refusal(5, None)],
            held: vec![held],
        };
        let history = History::open(&path).unwrap();
        history.record(&name(), &served(2)).unwrap();
        history.record(&name(), &served(3)).unwrap();
        history.settle(&name(), &stance).unwrap();
        drop(history);
        let history = History::open(&path).unwrap();
        assert_eq!(history.events(&name()).unwrap(), [served(3), served(2)]);
        assert_eq!(history.stance(&name()).unwrap(), stance);
        assert_eq!(history.stance(&"other".parse().unwrap()).unwrap(), Stance::default());
    }

    #[test]
    fn only_the_newest_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(&folder.path().join("history.db")).unwrap();
        history.0.lock().pragma_update(None, "synchronous", "OFF").unwrap();
        for version in 1..=u64::from(EVENTS_KEPT) + 3 {
            history.record(&name(), &served(version)).unwrap();
        }
        let events = history.events(&name()).unwrap();
        assert_eq!((events.len(), events.last().unwrap().version), (EVENTS_KEPT as usize, Version(4)));
        let mut stance = Stance::default();
        (1..=BARS_KEPT as u64 + 1).for_each(|version| stance.bar(barred(version)));
        assert_eq!((stance.barred.len(), stance.barred[0].mark.version()), (BARS_KEPT, Version(2)));
    }

    #[test]
    fn a_barred_version_is_known_by_itself_and_by_its_bytes() {
        let mut stance = Stance::default();
        stance.bar(barred(2));
        stance.bar(barred(2));
        assert_eq!(stance.barred.len(), 1);
        assert!(stance.bars(&found(2), None).is_some());
        assert!(stance.bars(&found(3), Some("d2")).is_some());
        assert!(stance.bars(&found(3), Some("d3")).is_none());
        stance.pardon(&found(3), Some("d2"));
        assert_eq!(stance, Stance::default());
    }

    #[test]
    fn a_refusal_holds_for_the_version_and_its_bytes_until_what_it_was_judged_by_changes() {
        let mut stance = Stance::default();
        stance.refuse(refusal(2, None));
        let knows = |found: &Found, digest, rules| stance.refuses(found, digest, rules, Some("any")).is_some();
        assert!(knows(&found(2), None, "r1"));
        assert!(knows(&found(3), Some("d2"), "r1"), "the same bytes under another number");
        assert!(!knows(&found(3), Some("d3"), "r1"));
        assert!(!knows(&found(2), None, "r2"), "other rules");
        let mut other_tags = found(3);
        other_tags.tags.insert("modelgate.threshold".into(), "0.4".into());
        assert!(!knows(&other_tags, Some("d2"), "r1"), "read in another way");
    }

    #[test]
    fn what_was_refused_beside_one_version_may_be_fit_beside_another() {
        let mut stance = Stance::default();
        stance.refuse(refusal(2, Some("d1")));
        assert!(stance.refuses(&found(2), None, "r1", Some("d1")).is_some());
        assert!(stance.refuses(&found(2), None, "r1", Some("d9")).is_none());
        assert!(stance.refuses(&found(2), None, "r1", None).is_none());
    }

    #[test]
    fn refusals_are_bounded_and_pardoned() {
        let mut stance = Stance::default();
        (1..=REFUSALS_KEPT as u64 + 1).for_each(|version| stance.refuse(refusal(version, None)));
        stance.refuse(refusal(REFUSALS_KEPT as u64 + 1, None));
        assert_eq!((stance.refused.len(), stance.refused[0].mark.version()), (REFUSALS_KEPT, Version(2)));
        stance.pardon(&found(2), None);
        stance.pardon(&found(999), Some("d3"));
        assert_eq!(stance.refused[0].mark.version(), Version(4));
    }

    #[test]
    fn what_an_older_gateway_settled_is_still_read() {
        let stance: Stance = serde_json::from_str(r#"{"pin":3,"set_aside":null,"barred":[]}"#).unwrap();
        assert_eq!(stance, Stance { pin: Some(3), ..Stance::default() });
    }
}
