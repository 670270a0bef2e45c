//! What was answered, what came true, and the labels that are not in the sink yet: one SQLite file, whose every commit is
//! on the disk when it returns.
//!
//! Answers are forgotten by age and by the bytes they take, the oldest first; a label whose answer is forgotten is still
//! kept and sent, it only tells nothing of accuracy. A label leaves the file when it is in the sink.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::answers::{self, Answered, Predicted, Remembered};
use super::tally::{Compared, Tally};
use super::{Batch, Kept, Label, Outcome, Problem, Said};
use crate::model::{Digest, ModelName, Outcomes, Version};

/// How long a write waits for somebody who looks into the file with a tool.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// What an answer takes in the file beside its rows, its id (twice, because of the index) and its account.
const ANSWER_BYTES: usize = 96;

/// Labels that wait for the sink at most. Above it none is taken, so that what was taken is never dropped.
const WAITING_MAX: u64 = 1_000_000;

/// Answers forgotten in one step.
const FORGET_STEP: u32 = 1000;

const DAY_MS: i64 = 24 * 3600 * 1000;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS version (
        id INTEGER PRIMARY KEY, model TEXT NOT NULL, number INTEGER NOT NULL, digest TEXT NOT NULL, outcomes TEXT NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS answer (
        id INTEGER PRIMARY KEY, account TEXT NOT NULL, request_id TEXT NOT NULL, version INTEGER NOT NULL,
        time INTEGER NOT NULL, bytes INTEGER NOT NULL, body BLOB NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS answer_of_request ON answer (request_id, account);
    CREATE TABLE IF NOT EXISTS truth (
        answer INTEGER NOT NULL REFERENCES answer (id) ON DELETE CASCADE, row INTEGER NOT NULL, said TEXT NOT NULL,
        PRIMARY KEY (answer, row)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS tally (
        version INTEGER NOT NULL, day INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (version, day)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS label (
        id INTEGER PRIMARY KEY, time INTEGER NOT NULL, request_id TEXT NOT NULL, row INTEGER NOT NULL,
        key_id TEXT NOT NULL, version INTEGER, class TEXT, name TEXT, number REAL, object INTEGER
    ) STRICT;
    CREATE INDEX IF NOT EXISTS label_of_object ON label (object, id);
    DELETE FROM version WHERE id NOT IN (SELECT version FROM answer) AND id NOT IN (SELECT version FROM tally)
        AND id NOT IN (SELECT version FROM label WHERE version IS NOT NULL);
";

/// The file, and what of it is in memory.
#[derive(Debug)]
pub(super) struct Store {
    db: Connection,
    memory: Memory,
    limits: Limits,
}

/// How much is remembered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Answers and figures of days older than this are forgotten.
    pub(super) age: Duration,
    /// Bytes of answers.
    pub(super) max_bytes: u64,
    /// Whether labels go to a sink; if not they need not wait.
    pub(super) sends: bool,
}

/// What follows from the file. Changed only after the file is.
#[derive(Clone, Debug, Default)]
struct Memory {
    /// As many as have answers, labels or figures in the file.
    versions: Vec<Arc<Known>>,
    /// By version and day. Shared with the copy that a commit is written from.
    tallies: BTreeMap<(i64, i64), Arc<Tally>>,
    answer_bytes: u64,
    waiting: u64,
}

/// The figures of each day, by the days since 1970.
pub(super) type Days = BTreeMap<i64, Arc<Tally>>;

/// A version that answered.
#[derive(Debug)]
pub(super) struct Known {
    id: i64,
    pub(super) model: ModelName,
    pub(super) version: Version,
    pub(super) digest: Digest,
    outcomes: Outcomes,
}

/// A label on its way to the sink.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) id: i64,
    /// When it came, in milliseconds since 1970.
    pub(super) time: i64,
    pub(super) request_id: String,
    pub(super) row: u32,
    pub(super) key_id: String,
    /// None where the request is not remembered.
    pub(super) version: Option<Arc<Known>>,
    /// The class as the model writes it.
    pub(super) class: Option<String>,
    /// What people call it; for a request that is not remembered, what the caller said.
    pub(super) name: Option<String>,
    /// A number that came true.
    pub(super) number: Option<f64>,
}

/// The answers to a step's batches, and how many answers were forgotten.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) kept: Vec<Kept>,
    pub(super) forgotten: u64,
}

/// A truth as it is compared and written.
struct Truth {
    class: Option<String>,
    name: Option<String>,
    number: Option<f64>,
    compared: Compared,
}

/// An answer as it is found again.
struct Found {
    answer: i64,
    version: Arc<Known>,
    day: i64,
    body: Vec<u8>,
}

impl Store {
    /// Opens the file, making it where there is none.
    pub(super) fn open(path: &Path, limits: Limits) -> rusqlite::Result<Self> {
        let db = Connection::open(path)?;
        db.busy_timeout(LOCK_WAIT)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        // In a write-ahead log only this syncs every commit.
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "foreign_keys", true)?;
        db.execute_batch(SCHEMA)?;
        let memory = Memory::read(&db)?;
        Ok(Self { db, memory, limits })
    }

    /// Remembers `answers`, and takes the labels of `batches` in their order, in one commit: when this returns, all of it
    /// is on the disk, or nothing.
    pub(super) fn keep(&mut self, answers: &[Answered], batches: &[Batch], now: Timestamp) -> rusqlite::Result<Step> {
        let tx = self.db.transaction()?;
        let mut pen =
            Pen { tx: &tx, memory: self.memory.clone(), touched: BTreeSet::new(), now, sends: self.limits.sends };
        pen.remember(answers)?;
        let kept = batches.iter().map(|batch| pen.take(batch)).collect::<rusqlite::Result<_>>()?;
        let forgotten = pen.forget(self.limits)?;
        pen.write_tallies()?;
        let memory = pen.memory;
        tx.commit()?;
        self.memory = memory;
        Ok(Step { kept, forgotten })
    }

    /// The figures of each day of a model's versions, by version.
    pub(super) fn tallies(&self, model: &str) -> Vec<(Arc<Known>, Days)> {
        let of_version = |known: &Arc<Known>| {
            let days = self.memory.tallies.range((known.id, i64::MIN)..=(known.id, i64::MAX));
            (Arc::clone(known), days.map(|((_, day), tally)| (*day, Arc::clone(tally))).collect::<Days>())
        };
        let versions = self.memory.versions.iter().filter(|known| known.model.as_str() == model);
        versions.map(of_version).filter(|(_, days)| !days.is_empty()).collect()
    }

    /// Labels that wait for the sink.
    pub(super) fn waiting(&self) -> u64 {
        self.memory.waiting
    }

    /// Gives labels that belong together, came in the same hour and have no object yet to one: at most `rows`, and only
    /// where there are so many or one came before `before`. Says whether there may be more.
    pub(super) fn bundle(&mut self, rows: u32, before: Timestamp) -> rusqlite::Result<bool> {
        let tx = self.db.transaction()?;
        let oldest = tx
            .prepare(
                "SELECT id, version, time / 3600000, time <= ?1 OR
                 (SELECT count(*) FROM (SELECT 1 FROM label WHERE object IS NULL LIMIT ?2)) >= ?2
             FROM label WHERE object IS NULL ORDER BY id LIMIT 1",
            )?
            .query_row(params![before.as_millisecond(), rows], |row| {
                Ok((
                    row.get::<_, i64>(0)?,
                    row.get::<_, Option<i64>>(1)?,
                    row.get::<_, i64>(2)?,
                    row.get::<_, bool>(3)?,
                ))
            });
        let Some((object, version, hour, true)) = oldest.optional()? else { return Ok(false) };
        // An object has the number of its first label, which no other has as long as that one is there.
        tx.prepare(
            "UPDATE label SET object = ?1 WHERE id IN (SELECT id FROM label
                 WHERE object IS NULL AND version IS ?2 AND time / 3600000 = ?3 ORDER BY id LIMIT ?4)",
        )?
        .execute(params![object, version, hour, rows])?;
        tx.commit()?;
        Ok(true)
    }

    /// The labels of the oldest object that is not in the sink, after `object`.
    pub(super) fn object_after(&self, object: i64) -> rusqlite::Result<Vec<Waiting>> {
        let mut query = self.db.prepare(
            "SELECT id, time, request_id, row, key_id, version, class, name, number FROM label
             WHERE object = (SELECT min(object) FROM label WHERE object > ?1) ORDER BY id",
        )?;
        let labels = query.query_map([object], |row| self.memory.waiting_label(row))?;
        labels.collect()
    }

    /// Lets go of labels that are in the sink: those of the object that begins with the label `object`.
    pub(super) fn sent(&mut self, object: i64) -> rusqlite::Result<u64> {
        let gone = self.db.prepare("DELETE FROM label WHERE object = ?1")?.execute([object])? as u64;
        self.memory.waiting = self.memory.waiting.saturating_sub(gone);
        Ok(gone)
    }
}

impl Memory {
    fn read(db: &Connection) -> rusqlite::Result<Self> {
        let versions = db
            .prepare("SELECT id, model, number, digest, outcomes FROM version")?
            .query_map([], known)?
            .collect::<rusqlite::Result<_>>()?;
        let tallies = db
            .prepare("SELECT version, day, body FROM tally")?
            .query_map([], |row| {
                let body: String = row.get(2)?;
                let tally = serde_json::from_str(&body).map_err(|error| wrong(2, error))?;
                Ok(((row.get(0)?, row.get(1)?), Arc::new(tally)))
            })?
            .collect::<rusqlite::Result<_>>()?;
        let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs);
        Ok(Self {
            versions,
            tallies,
            answer_bytes: number("SELECT coalesce(sum(bytes), 0) FROM answer")?,
            waiting: number("SELECT count(*) FROM label")?,
        })
    }

    fn known(&self, id: i64) -> Option<Arc<Known>> {
        self.versions.iter().find(|known| known.id == id).cloned()
    }

    fn waiting_label(&self, row: &Row<'_>) -> rusqlite::Result<Waiting> {
        Ok(Waiting {
            id: row.get(0)?,
            time: row.get(1)?,
            request_id: row.get(2)?,
            row: row.get(3)?,
            key_id: row.get(4)?,
            version: row.get::<_, Option<i64>>(5)?.and_then(|id| self.known(id)),
            class: row.get(6)?,
            name: row.get(7)?,
            number: row.get(8)?,
        })
    }
}

fn known(row: &Row<'_>) -> rusqlite::Result<Arc<Known>> {
    let (model, digest, outcomes): (String, String, String) = (row.get(1)?, row.get(3)?, row.get(4)?);
    Ok(Arc::new(Known {
        id: row.get(0)?,
        model: model.parse().map_err(|error| wrong(1, error))?,
        version: Version(row.get::<_, i64>(2)?.cast_unsigned()),
        digest: digest.parse().map_err(|error| wrong(3, error))?,
        outcomes: serde_json::from_str(&outcomes).map_err(|error| wrong(4, error))?,
    }))
}

fn wrong(column: usize, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into())
}

/// One commit as it is written.
struct Pen<'a> {
    tx: &'a Transaction<'a>,
    memory: Memory,
    /// The tallies that changed.
    touched: BTreeSet<(i64, i64)>,
    now: Timestamp,
    sends: bool,
}

impl Pen<'_> {
    fn remember(&mut self, answers: &[Answered]) -> rusqlite::Result<()> {
        let mut insert = self.tx.prepare(
            "INSERT INTO answer (account, request_id, version, time, bytes, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        for answered in answers {
            let version = self.version_of(answered)?;
            let body = answers::encode(&answered.outcomes, &answered.outputs);
            let bytes = body.len() + 2 * (answered.request_id.len() + answered.account.len()) + ANSWER_BYTES;
            self.memory.answer_bytes += bytes as u64;
            let (time, bytes) = (answered.time.as_millisecond(), i64::try_from(bytes).unwrap_or(i64::MAX));
            insert.execute(params![&*answered.account, &*answered.request_id, version, time, bytes, body])?;
        }
        Ok(())
    }

    /// The number of the answer's version in the file.
    fn version_of(&mut self, answered: &Answered) -> rusqlite::Result<i64> {
        let (model, outcomes) = (&answered.model, &*answered.outcomes);
        let is_it = |known: &&Arc<Known>| {
            known.digest == model.digest
                && known.version == model.version
                && known.model == model.name
                && known.outcomes == *outcomes
        };
        if let Some(known) = self.memory.versions.iter().find(is_it) {
            return Ok(known.id);
        }
        let text = serde_json::to_string(outcomes).map_err(|error| wrong(4, error))?;
        let sql = "INSERT INTO version (model, number, digest, outcomes) VALUES (?1, ?2, ?3, ?4)";
        self.tx.prepare(sql)?.execute(params![
            model.name.as_str(),
            model.version.0.cast_signed(),
            model.digest.hex(),
            text
        ])?;
        let id = self.tx.last_insert_rowid();
        self.memory.versions.push(Arc::new(Known {
            id,
            model: model.name.clone(),
            version: model.version,
            digest: model.digest,
            outcomes: outcomes.clone(),
        }));
        Ok(id)
    }

    fn take(&mut self, batch: &Batch) -> rusqlite::Result<Kept> {
        if self.memory.waiting.saturating_add(batch.labels.len() as u64) > WAITING_MAX {
            return Ok(Kept::NoRoom);
        }
        batch.labels.iter().map(|label| self.label(batch, label)).collect::<rusqlite::Result<_>>().map(Kept::All)
    }

    fn label(&mut self, batch: &Batch, label: &Label) -> rusqlite::Result<Outcome> {
        let found = match self.find(batch, label)? {
            Ok(Some(found)) => found,
            Ok(None) => return self.keep_unmatched(batch, label),
            Err(problem) => return Ok(Outcome::Refused(problem)),
        };
        if !(batch.may_label)(found.version.model.as_str()) {
            return Ok(Outcome::Refused(Problem::OutOfScope));
        }
        let outcomes = &found.version.outcomes;
        let remembered = match answers::decode(&found.body, outcomes, label.row as usize) {
            Some((_, Some(remembered))) => remembered,
            Some((rows, None)) => return Ok(Outcome::Refused(Problem::NoSuchRow { rows })),
            None => return Err(wrong(5, "a remembered answer cannot be read")),
        };
        match truth(outcomes, &remembered, &label.said) {
            Ok(truth) => self.compare(batch, label, &found, &remembered, &truth),
            Err(problem) => Ok(Outcome::Refused(problem)),
        }
    }

    /// The newest answer of the caller's own to the request.
    fn find(&self, batch: &Batch, label: &Label) -> rusqlite::Result<Result<Option<Found>, Problem>> {
        let mut query = self.tx.prepare(
            "SELECT id, version, time, body FROM answer WHERE request_id = ?1 AND account = ?2 ORDER BY id DESC",
        )?;
        let mut rows = query.query(params![&*label.request_id, &*batch.account])?;
        let mut newest: Option<Found> = None;
        while let Some(row) = rows.next()? {
            let Some(version) = self.memory.known(row.get(1)?) else { continue };
            if label.model.as_deref().is_some_and(|model| model != version.model.as_str()) {
                continue;
            }
            match &newest {
                None => {
                    let day = row.get::<_, i64>(2)?.div_euclid(DAY_MS);
                    newest = Some(Found { answer: row.get(0)?, version, day, body: row.get(3)? });
                }
                Some(found) if found.version.model != version.model => return Ok(Err(Problem::WhichModel)),
                Some(_) => (),
            }
        }
        Ok(Ok(newest))
    }

    fn compare(
        &mut self,
        batch: &Batch,
        label: &Label,
        found: &Found,
        remembered: &Remembered,
        new: &Truth,
    ) -> rusqlite::Result<Outcome> {
        let said = serde_json::to_string(&label.said).map_err(|error| wrong(2, error))?;
        let before = self
            .tx
            .prepare("SELECT said FROM truth WHERE answer = ?1 AND row = ?2")?
            .query_row(params![found.answer, label.row], |row| row.get::<_, String>(0))
            .optional()?;
        let before = before
            .map(|said: String| serde_json::from_str::<Said>(&said))
            .transpose()
            .map_err(|error| wrong(0, error))?;
        let before = before.and_then(|said| truth(&found.version.outcomes, remembered, &said).ok());
        if before.as_ref().is_some_and(|before| before.compared == new.compared) {
            return Ok(Outcome::Duplicate);
        }
        let at = (found.version.id, found.day);
        let tally = Arc::make_mut(self.memory.tallies.entry(at).or_default());
        if let Some(before) = &before {
            tally.remove(&before.compared);
        }
        tally.add(&new.compared);
        self.touched.insert(at);
        let sql = "INSERT INTO truth (answer, row, said) VALUES (?1, ?2, ?3) ON CONFLICT (answer, row) DO UPDATE SET said = ?3";
        self.tx.prepare(sql)?.execute(params![found.answer, label.row, said])?;
        let Truth { class, name, number, .. } = new;
        self.insert(batch, label, Some(found.version.id), class.as_deref(), name.as_deref(), *number)?;
        Ok(if before.is_some() { Outcome::Changed } else { Outcome::Matched })
    }

    /// What another gateway answered, or this one has forgotten, is for whoever joins the files.
    fn keep_unmatched(&mut self, batch: &Batch, label: &Label) -> rusqlite::Result<Outcome> {
        let (name, number) = match &label.said {
            Said::Text(text) => (Some(&**text), None),
            Said::Number(number) => (None, Some(*number)),
        };
        self.insert(batch, label, None, None, name, number)?;
        Ok(Outcome::Unknown)
    }

    fn insert(
        &mut self,
        batch: &Batch,
        label: &Label,
        version: Option<i64>,
        class: Option<&str>,
        name: Option<&str>,
        number: Option<f64>,
    ) -> rusqlite::Result<()> {
        if !self.sends {
            return Ok(());
        }
        let sql = "INSERT INTO label (time, request_id, row, key_id, version, class, name, number)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let time = self.now.as_millisecond();
        self.tx.prepare(sql)?.execute(params![
            time,
            &*label.request_id,
            label.row,
            &*batch.key_id,
            version,
            class,
            name,
            number
        ])?;
        self.memory.waiting += 1;
        Ok(())
    }

    /// Forgets answers that are too old or too many, the oldest first, and the figures of days that are too old.
    fn forget(&mut self, limits: Limits) -> rusqlite::Result<u64> {
        let age = i64::try_from(limits.age.as_millis()).unwrap_or(i64::MAX);
        let cutoff = self.now.as_millisecond().saturating_sub(age);
        let mut forgotten = 0;
        loop {
            let step = self.forget_step(cutoff, limits.max_bytes)?;
            forgotten += step;
            if step < u64::from(FORGET_STEP) {
                break;
            }
        }
        let first_day = cutoff.div_euclid(DAY_MS);
        if self.memory.tallies.keys().any(|(_, day)| *day < first_day) {
            self.memory.tallies.retain(|(_, day), _| *day >= first_day);
            self.tx.execute("DELETE FROM tally WHERE day < ?1", [first_day])?;
        }
        Ok(forgotten)
    }

    fn forget_step(&mut self, cutoff: i64, max_bytes: u64) -> rusqlite::Result<u64> {
        let mut query = self.tx.prepare("SELECT id, time, bytes FROM answer ORDER BY id LIMIT ?1")?;
        let mut rows = query.query([FORGET_STEP])?;
        let (mut last, mut count) = (None, 0);
        while let Some(row) = rows.next()? {
            if row.get::<_, i64>(1)? >= cutoff && self.memory.answer_bytes <= max_bytes {
                break;
            }
            self.memory.answer_bytes = self.memory.answer_bytes.saturating_sub(row.get::<_, i64>(2)?.unsigned_abs());
            last = Some(row.get::<_, i64>(0)?);
            count += 1;
        }
        if let Some(last) = last {
            self.tx.prepare("DELETE FROM answer WHERE id <= ?1")?.execute([last])?;
        }
        Ok(count)
    }

    fn write_tallies(&self) -> rusqlite::Result<()> {
        for at in &self.touched {
            let Some(tally) = self.memory.tallies.get(at) else { continue };
            let body = serde_json::to_string(&**tally).map_err(|error| wrong(2, error))?;
            let sql = "INSERT INTO tally (version, day, body) VALUES (?1, ?2, ?3)
                       ON CONFLICT (version, day) DO UPDATE SET body = ?3";
            self.tx.prepare(sql)?.execute(params![at.0, at.1, body])?;
        }
        Ok(())
    }
}

/// What a caller's word means for a row that was answered.
fn truth(outcomes: &Outcomes, remembered: &Remembered, said: &Said) -> Result<Truth, Problem> {
    match (&remembered.prediction, outcomes) {
        (Predicted::Number(predicted), _) => match said {
            Said::Number(actual) => Ok(Truth {
                class: None,
                name: None,
                number: Some(*actual),
                compared: Compared::Numbers { predicted: *predicted, actual: *actual },
            }),
            Said::Text(_) => Err(Problem::NotANumber),
        },
        (Predicted::Class(predicted), Outcomes::Classes { names, are_all }) => {
            let said = said.to_string();
            // As the model writes it goes first: a label may be another class's number.
            let place = names.iter().position(|(class, _)| *class == said);
            let place = place.or_else(|| names.iter().position(|(_, name)| **name == *said));
            if place.is_none() && *are_all {
                return Err(Problem::NotAClass { classes: names.iter().map(|(_, name)| Arc::clone(name)).collect() });
            }
            let (class, name) = place.map_or((&*said, &*said), |place| (&*names[place].0, &*names[place].1));
            Ok(Truth {
                class: Some(class.to_owned()),
                name: Some(name.to_owned()),
                number: None,
                compared: Compared::Classes {
                    predicted: outcomes.name_of(predicted).to_owned(),
                    actual: name.to_owned(),
                    probability: place.and_then(|place| remembered.probabilities.get(place).copied()),
                },
            })
        }
        (Predicted::Class(_), Outcomes::Numbers) => Err(Problem::NotANumber),
    }
}

#[cfg(test)]
mod tests;
