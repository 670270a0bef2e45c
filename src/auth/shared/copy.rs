//! The copy of the shared keys in a data directory: kept as they are, changed with them, put back when they are lost.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rusqlite::{Connection, Row, Transaction, params};

use super::super::store::{self, Edit, StoredKey};
use super::super::{ApiKeys, KeyId, StoreError, pins};
use super::link::{Position, Publication, State};
use super::record::Record;
use super::{CopyHealth, SharedError, Sharing};

/// How often it is written down that a copy is still as the store has it.
const NOTE_INTERVAL: Duration = Duration::from_mins(1);

/// So many bytes are the same by chance in none of all the changes there will ever be.
const STAMP_BYTES: usize = 12;

/// Which of two versions of a key is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The one in the data directory.
    Here,
    /// The one in the store.
    Store,
}

/// What putting keys into the store did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Nothing: they were there, and the copy is as the store has them.
    Nothing {
        /// How many keys that are.
        keys: usize,
    },
    /// The keys of the data directory and of the store are now in both.
    Together {
        /// How many keys that are.
        keys: usize,
        /// How many of them were in the store before.
        there: usize,
        /// Records in the store that could not be read and are no more.
        unreadable: usize,
    },
}

/// Where the copy stands, as its own store has it.
struct Copy {
    at: Position,
    heard: Option<Timestamp>,
}

/// What came over the wire.
struct Fetched {
    state: State,
    /// Every field that was asked for.
    fields: Vec<String>,
    records: Vec<Record>,
    unreadable: Vec<String>,
    is_whole: bool,
}

/// What the store has, to be put together with what is here.
#[derive(Default)]
struct Theirs {
    at: Position,
    /// How many changes are in `records`.
    generation: i64,
    records: Vec<Record>,
    /// Those that could not be read.
    unreadable: usize,
}

impl ApiKeys {
    /// Takes over what changed in the store that gateways share; says whether anything did. Without a change it is one
    /// question, of a second at most; without a shared store it is nothing. On failure the copy stays as it is.
    ///
    /// # Errors
    /// When the store cannot be asked, or what it has is not to be taken.
    pub fn sync_once(&self, now: Timestamp) -> Result<bool, StoreError> {
        let Some(sharing) = &self.sharing else { return Ok(false) };
        let outcome = self.sync(sharing);
        self.note(sharing, outcome.as_ref().err(), now)?;
        outcome
    }

    /// The first look at the shared store, for a gateway that starts: a store that cannot be asked is no reason not to,
    /// as long as there are keys here. Says whether the copy is as the store has it.
    ///
    /// # Errors
    /// When there are no keys to start with, or they do not belong to those in the store.
    pub fn sync_at_start(&self, now: Timestamp) -> Result<bool, StoreError> {
        match self.sync_once(now) {
            Ok(_) => Ok(true),
            Err(error @ StoreError::Shared(SharedError::WrongPepper { .. } | SharedError::Unshared)) => Err(error),
            Err(error) if self.has_copy()? => {
                tracing::warn!("{}", self.age_of_copy(&error));
                Ok(false)
            }
            Err(error) => Err(SharedError::NoCopy(Box::new(error)).into()),
        }
    }

    /// What there is to say of a copy that could not be brought up to date.
    #[must_use]
    pub fn age_of_copy(&self, trouble: &StoreError) -> String {
        let heard = self.copy_health().and_then(|health| health.heard);
        let age = heard.map_or_else(
            || "the keys of this data directory, which were never shared, serve on".to_owned(),
            |heard| format!("the copy of the shared keys of {heard} serves on"),
        );
        format!("{age}: {}", whole_text(trouble))
    }

    /// How it stands with the copy; `None` where keys are not shared.
    #[must_use]
    pub fn copy_health(&self) -> Option<CopyHealth> {
        self.sharing.as_ref().map(|sharing| sharing.health.lock().clone())
    }

    /// Puts the keys of this data directory into the shared store, beside those that are there, and takes those over.
    /// Where they are there already, nothing changes.
    ///
    /// # Errors
    /// When keys of both differ and `keep` does not say which are right, or the store cannot be used.
    pub fn share(&self, keep: Option<Keep>) -> Result<Put, StoreError> {
        let Some(sharing) = &self.sharing else { return Ok(Put::Nothing { keys: self.list()?.len() }) };
        match self.sync(sharing) {
            Ok(_) => Ok(Put::Nothing { keys: self.list()?.len() }),
            Err(StoreError::Shared(
                SharedError::Absent
                | SharedError::Unshared
                | SharedError::Behind { .. }
                | SharedError::Incomplete { .. },
            )) => self.put_together(sharing, keep),
            Err(error) => Err(error),
        }
    }

    /// Before a change: the copy is as the store has it.
    pub(in super::super) fn catch_up(&self) -> Result<(), StoreError> {
        self.sharing.as_ref().map_or(Ok(()), |sharing| self.sync(sharing).map(drop))
    }

    /// Writes to the shared store what `edit` touched. False where somebody else did since the copy was made.
    pub(in super::super) fn publish(&self, edit: &Edit<'_>) -> Result<bool, StoreError> {
        let Some(sharing) = &self.sharing else {
            // These keys go their own way from here on.
            edit.execute("UPDATE keyring SET shared_stamp = NULL", [])?;
            return Ok(true);
        };
        let expected = Copy::read(edit)?.at;
        let generation = expected.generation + 1;
        let (keys, accounts) = edit.touched();
        let mut records = Vec::with_capacity(keys.len() + accounts.len());
        for id in keys {
            records.extend(store::key(edit, id)?.map(|key| Record::Key(Box::new(key))));
        }
        for account in accounts {
            records.push(Record::Pins(KeyId::clone(account), pins::of_account(edit, account)?));
        }
        let publication = self.publication(expected, generation, false, &records);
        if !sharing.link.lock().publish(&publication)? {
            return Ok(false);
        }
        set_position(edit, &publication.becomes)?;
        readable(edit, publication.records.iter().map(|(field, _)| field))?;
        Ok(true)
    }

    /// What is to be written so that `records` lead from `expected` to the generation after it.
    fn publication(&self, expected: Position, generation: i64, is_whole: bool, records: &[Record]) -> Publication {
        let records: Vec<_> = records.iter().map(|record| (record.field(), record.value(&self.pepper))).collect();
        let becomes = Position { stamp: self.stamp(&expected, generation, &records), generation };
        Publication { expected, becomes, is_whole, records, pepper: self.pepper_text() }
    }

    /// Of all that led to this generation: two writers on two halves of a store that was torn apart make different ones.
    fn stamp(&self, before: &Position, generation: i64, records: &[(String, String)]) -> String {
        let mut text = format!("modelgate change {} {generation}\n", before.stamp);
        for seal in records.iter().filter_map(|(_, value)| value.split(' ').next()) {
            text.push_str(seal);
        }
        STANDARD.encode(&self.pepper.digest(&text)[..STAMP_BYTES])
    }

    fn pepper_text(&self) -> String {
        STANDARD.encode(self.pepper.fingerprint())
    }

    /// Whether there is anything to answer callers with.
    fn has_copy(&self) -> Result<bool, StoreError> {
        let store = self.store.lock();
        Ok(!Copy::read(&store.db)?.at.stamp.is_empty() || store::has_keys(&store.db)?)
    }

    fn sync(&self, sharing: &Sharing) -> Result<bool, StoreError> {
        let (here, has_keys) = {
            let store = self.store.lock();
            (Copy::read(&store.db)?.at, store::has_keys(&store.db)?)
        };
        let state = sharing.link.lock().state(here.generation)?.ok_or(SharedError::Absent)?;
        self.check_pepper(sharing, &state)?;
        let state = state.complete()?;
        let Some(since) = since(&here, has_keys, &state)? else { return Ok(false) };
        let fetched = self.fetch(sharing, since)?;
        let mut store = self.store.lock();
        let tx = store::write(&mut store.db)?;
        if Copy::read(&tx)?.at != here {
            // Another process on this directory was faster; what it did not see is for the next time.
            return Ok(false);
        }
        take_over(&tx, fetched)?;
        tx.commit()?;
        self.reload(&mut store)?;
        Ok(true)
    }

    fn check_pepper(&self, sharing: &Sharing, state: &State) -> Result<(), SharedError> {
        if state.pepper == self.pepper_text() {
            return Ok(());
        }
        Err(SharedError::WrongPepper { path: sharing.pepper.clone() })
    }

    fn fetch(&self, sharing: &Sharing, since: Since) -> Result<Fetched, StoreError> {
        let mut link = sharing.link.lock();
        let (after, is_whole) = match since {
            Since::Generation(generation) => (Some(generation), false),
            Since::Ever => (None, true),
        };
        let (state, fields) = link.changes(after)?;
        self.check_pepper(sharing, &state)?;
        let values = link.records(&fields)?;
        let (mut records, mut unreadable) = (Vec::new(), Vec::new());
        for (field, value) in fields.iter().zip(values) {
            match value.and_then(|value| Record::read(field, &value, &self.pepper)) {
                Some(record) => records.push(record),
                None => unreadable.push(field.clone()),
            }
        }
        if !unreadable.is_empty() {
            tracing::error!(
                "records of the shared keys cannot be read and are left out: {}",
                super::shown(&unreadable)
            );
        }
        Ok(Fetched { state, fields, records, unreadable, is_whole })
    }

    /// Notes how it stands with the copy after a look at the store.
    fn note(&self, sharing: &Sharing, trouble: Option<&StoreError>, now: Timestamp) -> Result<(), StoreError> {
        let store = self.store.lock();
        let Copy { at, heard: written } = Copy::read(&store.db)?;
        let unreadable: i64 = store.db.query_one("SELECT count(*) FROM unreadable", [], |row| row.get(0))?;
        let is_due = written.is_none_or(|written| now.duration_since(written).unsigned_abs() >= NOTE_INTERVAL);
        if trouble.is_none() && is_due {
            store.db.execute("UPDATE keyring SET heard = ?", [now.as_millisecond()])?;
        }
        let mut health = sharing.health.lock();
        *health = CopyHealth {
            generation: at.generation,
            heard: if trouble.is_none() { Some(now) } else { health.heard.or(written) },
            unreadable: unreadable.unsigned_abs(),
            trouble: trouble.map(whole_text),
        };
        Ok(())
    }

    fn put_together(&self, sharing: &Sharing, keep: Option<Keep>) -> Result<Put, StoreError> {
        let Theirs { at: expected, generation, records: theirs, unreadable } = self.theirs(sharing)?;
        let mut store = self.store.lock();
        let tx = store::write(&mut store.db)?;
        let here = Copy::read(&tx)?.at;
        let before = theirs.iter().filter(|record| matches!(record, Record::Key(_))).count();
        let records = self.merged(ours(&tx)?, theirs, keep)?;
        let generation = here.generation.max(generation) + 1;
        let publication = self.publication(expected, generation, true, &records);
        if !sharing.link.lock().publish(&publication)? {
            return Err(SharedError::Busy.into());
        }
        let fields = publication.records.into_iter().map(|(field, _)| field).collect::<BTreeSet<_>>();
        let keys = records.iter().filter(|record| matches!(record, Record::Key(_))).count();
        remove_others(&tx, &fields)?;
        put_all(&tx, records)?;
        tx.execute("DELETE FROM unreadable", [])?;
        set_position(&tx, &publication.becomes)?;
        tx.commit()?;
        self.reload(&mut store)?;
        Ok(Put::Together { keys, there: before, unreadable })
    }

    /// What there is in the store to be put together with. What has lost a part is nothing.
    fn theirs(&self, sharing: &Sharing) -> Result<Theirs, StoreError> {
        let Some(state) = sharing.link.lock().state(0)? else { return Ok(Theirs::default()) };
        self.check_pepper(sharing, &state)?;
        let at = state.at.clone();
        if state.complete().is_err() {
            return Ok(Theirs { at, ..Theirs::default() });
        }
        let Fetched { state, records, unreadable, .. } = self.fetch(sharing, Since::Ever)?;
        Ok(Theirs { generation: state.at.generation, at: state.at, records, unreadable: unreadable.len() })
    }

    /// The records of both, once each.
    fn merged(&self, ours: Vec<Record>, theirs: Vec<Record>, keep: Option<Keep>) -> Result<Vec<Record>, SharedError> {
        // A key that was imported here and there has two ids.
        let mut by_hash: HashMap<_, _> =
            theirs.iter().filter_map(|record| Some((*hash(record)?, record.field()))).collect();
        let mut merged: BTreeMap<_, _> = theirs.into_iter().map(|record| (record.field(), record)).collect();
        let mut conflicts = Vec::new();
        for record in ours {
            let field = record.field();
            let twin = hash(&record).and_then(|hash| by_hash.remove(hash)).unwrap_or_else(|| field.clone());
            let differs = merged
                .get(&twin)
                .is_some_and(|theirs| twin != field || theirs.value(&self.pepper) != record.value(&self.pepper));
            match keep {
                None if differs => conflicts.push(field.split(':').nth(1).unwrap_or_default().to_owned()),
                Some(Keep::Store) if differs => {}
                None | Some(_) => {
                    merged.remove(&twin);
                    merged.insert(field, record);
                }
            }
        }
        if conflicts.is_empty() {
            Ok(merged.into_values().collect())
        } else {
            conflicts.sort();
            conflicts.dedup();
            Err(SharedError::Conflicts { ids: conflicts })
        }
    }
}

/// What the copy has not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    Generation(i64),
    /// Nothing of it is of use.
    Ever,
}

/// What a copy that stands `here` has to take over from a store in `state`; `None`: nothing.
fn since(here: &Position, has_keys: bool, state: &State) -> Result<Option<Since>, SharedError> {
    if here.stamp.is_empty() {
        return if has_keys { Err(SharedError::Unshared) } else { Ok(Some(Since::Ever)) };
    }
    let behind = SharedError::Behind { there: state.at.generation, here: here.generation };
    match (here.generation.cmp(&state.at.generation), &state.stamp_then) {
        (Ordering::Greater, _) => Err(behind),
        (Ordering::Less, None) => Ok(Some(Since::Ever)),
        (_, Some(stamp)) if *stamp != here.stamp => Err(behind),
        (Ordering::Less, Some(_)) => Ok(Some(Since::Generation(here.generation))),
        (Ordering::Equal, _) if state.at == *here => Ok(None),
        (Ordering::Equal, _) => Err(behind),
    }
}

fn hash(record: &Record) -> Option<&[u8; 32]> {
    if let Record::Key(key) = record { Some(&key.hash) } else { None }
}

/// Every record of the data directory.
fn ours(tx: &Transaction<'_>) -> Result<Vec<Record>, StoreError> {
    let keys = store::keys(tx)?.into_iter().map(|key| Record::Key(Box::new(key)));
    let pins = pins::read(tx)?.into_iter().map(|(account, pins)| Record::Pins(account, pins));
    Ok(keys.chain(pins).collect())
}

fn take_over(tx: &Transaction<'_>, fetched: Fetched) -> Result<(), StoreError> {
    let Fetched { state, fields, records, unreadable, is_whole } = fetched;
    if is_whole {
        tx.execute("DELETE FROM unreadable", [])?;
        remove_others(tx, &fields.iter().cloned().collect())?;
    }
    readable(tx, fields.iter())?;
    for field in unreadable {
        tx.execute("INSERT INTO unreadable VALUES (?)", [field])?;
    }
    put_all(tx, records)?;
    store::next_generation(tx)?;
    Ok(set_position(tx, &state.at)?)
}

/// Writes records as they are there. The oldest key comes first, so that `keys list` has it first everywhere.
fn put_all(tx: &Transaction<'_>, mut records: Vec<Record>) -> rusqlite::Result<()> {
    records.sort_by_key(|record| match record {
        Record::Key(key) => key.record.created,
        Record::Pins(..) => Timestamp::MAX,
    });
    for record in records {
        match record {
            Record::Key(key) => put_key(tx, &key)?,
            Record::Pins(account, pinned) => {
                tx.prepare("DELETE FROM pins WHERE account = ?")?.execute([&*account])?;
                for pin in &pinned {
                    pins::put(tx, &account, pin)?;
                }
            }
        }
    }
    Ok(())
}

fn put_key(tx: &Transaction<'_>, StoredKey { record, hash }: &StoredKey) -> rusqlite::Result<()> {
    // The same key under another id is one that was imported twice; there is one of it now.
    tx.prepare("DELETE FROM keys WHERE hash = ? AND id <> ?")?.execute(params![hash, &*record.id])?;
    match store::key(tx, &record.id)? {
        Some(_) => store::update(tx, record),
        None => store::insert(tx, record, hash),
    }
}

/// Removes what is not among `fields`.
fn remove_others(tx: &Transaction<'_>, fields: &BTreeSet<String>) -> Result<(), StoreError> {
    for record in ours(tx)?.into_iter().filter(|record| !fields.contains(&record.field())) {
        match record {
            Record::Key(key) => tx.execute("DELETE FROM keys WHERE id = ?", [&*key.record.id])?,
            Record::Pins(account, _) => tx.execute("DELETE FROM pins WHERE account = ?", [&*account])?,
        };
    }
    Ok(())
}

fn readable<'f>(tx: &Transaction<'_>, fields: impl Iterator<Item = &'f String>) -> rusqlite::Result<()> {
    let mut statement = tx.prepare("DELETE FROM unreadable WHERE field = ?")?;
    for field in fields {
        statement.execute([field])?;
    }
    Ok(())
}

impl Copy {
    fn read(db: &Connection) -> rusqlite::Result<Self> {
        db.query_one("SELECT shared_stamp, shared_generation, heard FROM keyring", [], Self::of)
    }

    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        let stamp = row.get::<_, Option<String>>(0)?.unwrap_or_default();
        let heard = row.get::<_, Option<i64>>(2)?.map(|at| store::timestamp(2, at)).transpose()?;
        Ok(Self { at: Position { stamp, generation: row.get(1)? }, heard })
    }
}

fn set_position(tx: &Transaction<'_>, Position { stamp, generation }: &Position) -> rusqlite::Result<()> {
    tx.execute("UPDATE keyring SET shared_stamp = ?, shared_generation = ?", params![stamp, generation])?;
    Ok(())
}

/// An error with its causes, on one line.
fn whole_text(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        write!(text, ": {error}").expect("a String takes every write");
        cause = error.source();
    }
    text
}
