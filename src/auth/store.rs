//! The embedded database that keys and use live in: one SQLite file.
//!
//! What is damaged, foreign or newer than this program is refused. It is never taken for empty: an empty key store
//! turns every caller away, and an empty usage store gives every quota out again.

use std::collections::BTreeSet;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, Transaction, TransactionBehavior, params};

use super::pepper::Digest;
use super::{KeyId, KeyRecord, StoreError, private};

/// `mgat`: tells our files from other SQLite files.
const APPLICATION_ID: i32 = 0x6d67_6174;
const SCHEMA_VERSION: i32 = 4;

/// How long one process waits for another's write.
const BUSY_TIMEOUT: Duration = Duration::from_millis(250);

/// `keyring` has one row: `generation` counts changes to `keys`, `pepper` tells whether the pepper is still the same.
/// `usage.given` is what was given out of a key's quota in a window, used or leased; `usage.key_id` is the account, the
/// first of the keys that replaced each other. Kept as version 1 made it: [`UPGRADES`] bring every store to the present.
const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    BEGIN;
    CREATE TABLE keys (
        serial INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        plan TEXT NOT NULL,
        hash BLOB NOT NULL CHECK (length(hash) = 32),
        created INTEGER NOT NULL,
        expires INTEGER,
        revoked INTEGER
    ) STRICT;
    CREATE TABLE keyring (generation INTEGER NOT NULL, pepper BLOB) STRICT;
    INSERT INTO keyring VALUES (0, NULL);
    CREATE TABLE usage (
        key_id TEXT NOT NULL,
        period TEXT NOT NULL,
        window INTEGER NOT NULL,
        given INTEGER NOT NULL CHECK (given >= 0),
        PRIMARY KEY (key_id, period)
    ) STRICT, WITHOUT ROWID;
    PRAGMA application_id = 0x6d676174;
    PRAGMA user_version = 1;
    COMMIT;";

/// What brings a store from version 1 to 2, from 2 to 3, and so on.
const UPGRADES: [&str; 3] = [ROTATION, PINS, SHARING];

/// `account` is the first of a row of keys that replaced each other, whose quota they share.
/// `imported` keys have no id in their text and are found by their hash.
const ROTATION: &str = "
    ALTER TABLE keys ADD COLUMN account TEXT;
    ALTER TABLE keys ADD COLUMN replaced_by TEXT;
    ALTER TABLE keys ADD COLUMN disabled INTEGER;
    ALTER TABLE keys ADD COLUMN scopes TEXT NOT NULL DEFAULT '';
    ALTER TABLE keys ADD COLUMN imported INTEGER NOT NULL DEFAULT 0;
    UPDATE keys SET account = id;
    CREATE UNIQUE INDEX keys_by_hash ON keys (hash);
    PRAGMA user_version = 2;";

/// Versions that keys stay on, by account: those that replace each other stay on the same.
const PINS: &str = "
    CREATE TABLE pins (
        account TEXT NOT NULL,
        model TEXT NOT NULL,
        target TEXT NOT NULL,
        until INTEGER NOT NULL,
        PRIMARY KEY (account, model)
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 3;";

/// Where the keys are a copy of those that gateways share: of which, and since when nothing else was heard. `unreadable`
/// are records of the shared store that are not in the copy, or not as they are there.
const SHARING: &str = "
    ALTER TABLE keyring ADD COLUMN shared_stamp TEXT;
    ALTER TABLE keyring ADD COLUMN shared_generation INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE keyring ADD COLUMN heard INTEGER;
    CREATE TABLE unreadable (field TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 4;";

/// One row of `keys`.
#[derive(Debug)]
pub(super) struct StoredKey {
    pub(super) record: KeyRecord,
    pub(super) hash: Digest,
}

/// Opens the store at `path`; makes it when there is none.
///
/// # Errors
/// When it cannot be used: see [`StoreError`].
pub(crate) fn open(path: &Path) -> Result<Connection, StoreError> {
    if !path.try_exists().map_err(|source| StoreError::Io { path: path.to_owned(), source })? {
        create(path)?;
    }
    private::refuse_exposed(path)?;
    connect(path).and_then(checked).map_err(|fault| fault.at(path))
}

fn checked(mut db: Connection) -> Result<Connection, Fault> {
    check(&db)?;
    upgrade(&mut db)?;
    Ok(db)
}

fn upgrade(db: &mut Connection) -> Result<(), Fault> {
    if version(db)? == SCHEMA_VERSION {
        return Ok(());
    }
    let tx = write(db)?;
    // Looked at again: another process may have been faster.
    let done = usize::try_from(version(&tx)?).unwrap_or(1).saturating_sub(1);
    for upgrade in UPGRADES.iter().skip(done) {
        tx.execute_batch(upgrade)?;
    }
    Ok(tx.commit()?)
}

fn version(db: &Connection) -> rusqlite::Result<i32> {
    db.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Makes an empty store, complete before it has its name: a file that is there is never half made.
fn create(path: &Path) -> Result<(), StoreError> {
    let log = sibling(path, "-wal");
    // Looked at in this order: another process may have made the store a moment ago.
    if log.exists() && !path.exists() {
        let reason = format!("the file is gone while its log `{}` is there", log.display());
        return Err(StoreError::Damaged { path: path.to_owned(), reason });
    }
    let failed = |source| StoreError::Io { path: path.to_owned(), source };
    let draft = private::draft(path).map_err(failed)?;
    let db = connect(draft.path()).map_err(|fault| fault.at(path))?;
    db.execute_batch(SCHEMA)?;
    db.execute_batch(&UPGRADES.concat())?;
    db.close().map_err(|(_, error)| error)?;
    private::publish(draft, path).map_err(failed)
}

fn connect(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    // A quota that forgets a charge when the power goes would give it out twice.
    db.pragma_update(None, "synchronous", "FULL")?;
    Ok(db)
}

fn check(db: &Connection) -> Result<(), Fault> {
    let application: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if application != APPLICATION_ID {
        return Err(Fault::Damaged("it is not a modelgate store".to_owned()));
    }
    let found = version(db)?;
    if found > SCHEMA_VERSION {
        return Err(Fault::Newer(found));
    }
    let verdict: String = db.pragma_query_value(None, "quick_check", |row| row.get(0))?;
    if verdict != "ok" {
        return Err(Fault::Damaged(verdict));
    }
    Ok(())
}

/// What is wrong with a file, before it is said which.
enum Fault {
    Damaged(String),
    Newer(i32),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Self::Damaged(error.to_string()),
            _ => Self::Sqlite(error),
        }
    }
}

impl Fault {
    fn at(self, path: &Path) -> StoreError {
        let path = path.to_owned();
        match self {
            Self::Damaged(reason) => StoreError::Damaged { path, reason },
            Self::Newer(found) => StoreError::Newer { path, found, known: SCHEMA_VERSION },
            Self::Sqlite(error) => StoreError::Sqlite(error),
        }
    }
}

/// A transaction that has the right to write from its first statement on, so that it cannot fail half-way for want of it.
pub(crate) fn write(db: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    db.transaction_with_behavior(TransactionBehavior::Immediate)
}

/// A number that changes when another connection has changed the file. Costs no disk access.
pub(super) fn data_version(db: &Connection) -> rusqlite::Result<i64> {
    db.pragma_query_value(None, "data_version", |row| row.get(0))
}

/// How often the keys were changed since the store was made.
pub(super) fn generation(db: &Connection) -> rusqlite::Result<i64> {
    db.query_one("SELECT generation FROM keyring", [], |row| row.get(0))
}

/// The fingerprint of the pepper that the keys were made with.
pub(super) fn pepper(db: &Connection) -> rusqlite::Result<Option<Digest>> {
    db.query_one("SELECT pepper FROM keyring", [], |row| row.get(0))
}

pub(super) fn set_pepper(tx: &Transaction<'_>, fingerprint: &Digest) -> rusqlite::Result<()> {
    tx.execute("UPDATE keyring SET pepper = ?", params![fingerprint])?;
    Ok(())
}

/// Whether there is any key, revoked ones included.
pub(super) fn has_keys(db: &Connection) -> rusqlite::Result<bool> {
    db.query_one("SELECT EXISTS (SELECT 1 FROM keys)", [], |row| row.get(0))
}

const COLUMNS: &str =
    "id, name, plan, created, expires, revoked, hash, account, replaced_by, disabled, scopes, imported";

/// Every key, oldest first.
pub(super) fn keys(db: &Connection) -> rusqlite::Result<Vec<StoredKey>> {
    let mut statement = db.prepare(&format!("SELECT {COLUMNS} FROM keys ORDER BY serial"))?;
    let rows = statement.query_map([], read_key)?;
    rows.collect()
}

/// The key with this id.
pub(super) fn key(db: &Connection, id: &str) -> rusqlite::Result<Option<StoredKey>> {
    let mut statement = db.prepare(&format!("SELECT {COLUMNS} FROM keys WHERE id = ?"))?;
    let mut rows = statement.query_map([id], read_key)?;
    rows.next().transpose()
}

/// The key with this hash.
pub(super) fn key_by_hash(db: &Connection, hash: &Digest) -> rusqlite::Result<Option<StoredKey>> {
    let mut statement = db.prepare(&format!("SELECT {COLUMNS} FROM keys WHERE hash = ?"))?;
    let mut rows = statement.query_map([hash], read_key)?;
    rows.next().transpose()
}

/// A change of keys under way, and what it has touched so far.
pub(super) struct Edit<'db> {
    tx: Transaction<'db>,
    keys: BTreeSet<KeyId>,
    /// Accounts whose pins were touched.
    pins: BTreeSet<KeyId>,
}

impl<'db> Edit<'db> {
    pub(super) fn begin(db: &'db mut Connection) -> rusqlite::Result<Self> {
        Ok(Self { tx: write(db)?, keys: BTreeSet::new(), pins: BTreeSet::new() })
    }

    pub(super) fn insert(&mut self, record: &KeyRecord, hash: &Digest) -> rusqlite::Result<()> {
        self.keys.insert(KeyId::clone(&record.id));
        insert(&self.tx, record, hash)
    }

    pub(super) fn update(&mut self, record: &KeyRecord) -> rusqlite::Result<()> {
        self.keys.insert(KeyId::clone(&record.id));
        update(&self.tx, record)
    }

    /// To be called when pins of `account` were changed.
    pub(super) fn touched_pins(&mut self, account: &KeyId) -> rusqlite::Result<()> {
        self.pins.insert(KeyId::clone(account));
        next_generation(&self.tx)
    }

    /// The keys that were made or changed, and the accounts whose pins were.
    pub(super) fn touched(&self) -> (&BTreeSet<KeyId>, &BTreeSet<KeyId>) {
        (&self.keys, &self.pins)
    }

    pub(super) fn commit(self) -> rusqlite::Result<()> {
        self.tx.commit()
    }
}

impl<'db> Deref for Edit<'db> {
    type Target = Transaction<'db>;

    fn deref(&self) -> &Self::Target {
        &self.tx
    }
}

pub(super) fn insert(tx: &Transaction<'_>, record: &KeyRecord, hash: &Digest) -> rusqlite::Result<()> {
    let mut statement = tx.prepare(
        "INSERT INTO keys (id, name, plan, hash, created, expires, revoked, account, replaced_by, disabled, scopes, imported)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    statement.execute(params![
        &*record.id,
        record.name,
        record.plan,
        hash,
        record.created.as_millisecond(),
        record.expires.map(Timestamp::as_millisecond),
        record.revoked.map(Timestamp::as_millisecond),
        &*record.account,
        record.replaced_by.as_deref(),
        record.disabled.map(Timestamp::as_millisecond),
        record.scopes.to_string(),
        record.imported,
    ])?;
    next_generation(tx)
}

/// Writes all of a key that can change.
pub(super) fn update(tx: &Transaction<'_>, record: &KeyRecord) -> rusqlite::Result<()> {
    let mut statement = tx.prepare(
        "UPDATE keys SET name = ?, plan = ?, expires = ?, revoked = ?, replaced_by = ?, disabled = ?, scopes = ?
         WHERE id = ?",
    )?;
    statement.execute(params![
        record.name,
        record.plan,
        record.expires.map(Timestamp::as_millisecond),
        record.revoked.map(Timestamp::as_millisecond),
        record.replaced_by.as_deref(),
        record.disabled.map(Timestamp::as_millisecond),
        record.scopes.to_string(),
        &*record.id,
    ])?;
    next_generation(tx)
}

pub(super) fn next_generation(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    tx.prepare("UPDATE keyring SET generation = generation + 1")?.execute([])?;
    Ok(())
}

fn read_key(row: &Row<'_>) -> rusqlite::Result<StoredKey> {
    let text = |column| row.get::<_, String>(column);
    let time = |column| row.get::<_, Option<i64>>(column)?.map(|at| timestamp(column, at)).transpose();
    let scopes = text(10)?;
    let record = KeyRecord {
        id: text(0)?.into(),
        name: text(1)?,
        plan: text(2)?,
        created: timestamp(3, row.get(3)?)?,
        expires: time(4)?,
        revoked: time(5)?,
        account: text(7)?.into(),
        replaced_by: row.get::<_, Option<String>>(8)?.map(Into::into),
        disabled: time(9)?,
        scopes: scopes.parse().map_err(|error| invalid_text(10, error))?,
        imported: row.get(11)?,
    };
    Ok(StoredKey { record, hash: row.get(6)? })
}

pub(super) fn invalid_text(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

pub(super) fn timestamp(column: usize, millis: i64) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(millis).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, millis))
}

/// The file that SQLite keeps beside `path` under this ending.
fn sibling(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
