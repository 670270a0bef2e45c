//! API key → [`Caller`]. Keys are kept as keyed hashes; the key itself is shown once and never again.

//!
//! The store is one SQLite file that other processes may write (`modelgate keys`); requests look at a copy in memory.

mod key;
mod pepper;
mod private;
pub(crate) mod store;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use jiff::Timestamp;
use parking_lot::Mutex;
use rusqlite::Connection;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

use pepper::{Digest, Pepper};
use store::StoredKey;

/// The name of a usage plan, as in `[plans.<name>]`.
pub type PlanName = Arc<str>;

/// The public part of a key: safe in logs, metrics and samples.
pub type KeyId = Arc<str>;

/// Fills a slice with bytes that nobody can guess: `&mut getrandom::fill` outside tests.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<(), getrandom::Error>;

/// Characters in a key's name.
const NAME_MAX_CHARS: usize = 200;

/// Where keys live and what plans allow.
#[derive(Clone, Debug)]
pub struct Config {
    /// The SQLite file; made when absent.
    pub store: PathBuf,
    /// The file that holds the pepper, outside the store's own file; made when absent, readable by the owner only.
    pub pepper: PathBuf,
    /// What each configured plan's callers may use.
    pub plans: BTreeMap<PlanName, Access>,
}

/// Which models a plan's callers may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// All of them.
    All,
    /// These.
    Only(BTreeSet<String>),
}

/// Who sent a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The key's public id.
    pub key_id: KeyId,
    /// The name given when the key was made.
    pub name: Arc<str>,
    /// The plan the key is on.
    pub plan: PlanName,
    access: Access,
}

/// A key as its owner may see it.
#[derive(Clone, Debug)]
pub struct KeyRecord {
    /// The public id.
    pub id: KeyId,
    /// The name given when it was made.
    pub name: String,
    /// The plan.
    pub plan: String,
    /// When it was made.
    pub created: Timestamp,
    /// When it stops working, if it does.
    pub expires: Option<Timestamp>,
    /// When it was revoked, if it was.
    pub revoked: Option<Timestamp>,
}

/// Why a request has no caller.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No key was sent.
    #[error("no API key was sent")]
    Missing,
    /// The key is not one of ours, or no longer. Which of the two is not told.
    #[error("the API key is not valid")]
    Unknown,
    /// Two different keys in one request.
    #[error("two different API keys were sent")]
    Ambiguous,
    /// The key's plan does not allow it.
    #[error("the key's plan does not allow this model")]
    NotAllowed,
}

/// What went wrong with the key store. The messages of what only an operator can mend say how.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("the key store cannot be used")]
    Sqlite(#[from] rusqlite::Error),
    /// The store, the pepper, or their directory.
    #[error("`{path}` cannot be used")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not the store it was.
    #[error(
        "the key store `{path}` is damaged: {reason}; stop every gateway on it and put back a backup of it \
         (deleting it instead would end every key and forget all use)"
    )]
    Damaged {
        /// The store.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A later version of this program has changed the store.
    #[error("the key store `{path}` has schema {found} and this version knows {known}: run the newer version")]
    Newer {
        /// The store.
        path: PathBuf,
        /// Its schema.
        found: i32,
        /// Ours.
        known: i32,
    },
    /// Others may read or change a secret file.
    #[error("`{path}` is open to others (mode {mode:03o}): run `chmod 600` on it")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There are keys, but not what their hashes were made with.
    #[error("the store has keys and the pepper `{path}` they were made with is gone: put back a backup of it")]
    PepperMissing {
        /// Where it was.
        path: PathBuf,
    },
    /// There are keys, and they were made with another pepper.
    #[error("the pepper `{path}` is not the one the store's keys were made with: put back a backup of that one")]
    PepperChanged {
        /// The pepper.
        path: PathBuf,
    },
    /// The pepper was cut, or is something else.
    #[error("the pepper `{path}` has {found} bytes instead of 32: put back a backup of it")]
    PepperLength {
        /// The pepper.
        path: PathBuf,
        /// Its length in bytes.
        found: usize,
    },
    /// The system has no random bytes.
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
    /// A key that is not there.
    #[error("there is no key `{0}`")]
    NoSuchKey(String),
    /// A plan that is not configured.
    #[error("there is no plan `{plan}`; configured are: {}", listed(known))]
    UnknownPlan {
        /// What was asked for.
        plan: String,
        /// What there is.
        known: Vec<PlanName>,
    },
    /// A name nobody could read back.
    #[error("a key's name is 1 to {NAME_MAX_CHARS} characters without control characters")]
    BadName,
}

fn listed(plans: &[PlanName]) -> String {
    if plans.is_empty() { "none".to_owned() } else { plans.join(", ") }
}

impl Caller {
    /// Whether this caller may use `model`.
    ///
    /// # Errors
    /// When its plan does not name it.
    pub fn may_use(&self, model: &str) -> Result<(), AuthError> {
        match &self.access {
            Access::All => Ok(()),
            Access::Only(models) if models.contains(model) => Ok(()),
            Access::Only(_) => Err(AuthError::NotAllowed),
        }
    }
}

/// Every key, in memory, as the store last had them.
pub struct ApiKeys {
    plans: BTreeMap<PlanName, Access>,
    pepper: Pepper,
    live: ArcSwap<LiveKeys>,
    store: Mutex<Store>,
}

/// Keys that are not revoked, by id.
type LiveKeys = HashMap<key::Id, LiveKey, RandomState>;

struct LiveKey {
    hash: Digest,
    expires: Option<Timestamp>,
    /// Made once, so that a request clones a pointer.
    caller: Arc<Caller>,
}

/// The store's file, and how far it has been read.
struct Store {
    db: Connection,
    data_version: i64,
    generation: i64,
}

impl ApiKeys {
    /// Opens the store and reads every key. Makes the store when it is absent, and the pepper while there are no keys.
    ///
    /// # Errors
    /// When the store or the pepper cannot be used. A damaged store is never taken for an empty one.
    pub fn open(config: Config, random: Random<'_>) -> Result<Self, StoreError> {
        let mut db = store::open(&config.store)?;
        let pepper = open_pepper(&mut db, &config.pepper, random)?;
        // No generation is negative: the first look reads everything.
        let store = Store { db, data_version: 0, generation: -1 };
        let keys = Self { plans: config.plans, pepper, live: ArcSwap::default(), store: Mutex::new(store) };
        keys.reload(&mut keys.store.lock())?;
        Ok(keys)
    }

    /// The caller who holds `key`. Touches neither disk nor lock, and allocates nothing.
    ///
    /// Whether the id or the secret was wrong is told neither by the answer nor by the time it takes.
    ///
    /// # Errors
    /// When it is not a key of ours, or no longer.
    pub fn authenticate(&self, key: &str, now: Timestamp) -> Result<Arc<Caller>, AuthError> {
        let id = key::parse(key).ok_or(AuthError::Unknown)?;
        let hash = self.pepper.digest(key);
        let live = self.live.load();
        let found = live.get(&id);
        let expected = found.map_or(&[0; 32], |key| &key.hash);
        let matches = bool::from(hash.ct_eq(expected));
        match found {
            Some(key) if matches && key.expires.is_none_or(|end| now < end) => Ok(Arc::clone(&key.caller)),
            _ => Err(AuthError::Unknown),
        }
    }

    /// Makes a key; the secret is returned once and stored nowhere. Times are kept to the millisecond.
    ///
    /// # Errors
    /// When the name or the plan will not do, or the store cannot be written.
    pub fn create(
        &self,
        name: &str,
        plan: &str,
        expires: Option<Timestamp>,
        now: Timestamp,
        random: Random<'_>,
    ) -> Result<(KeyRecord, SecretString), StoreError> {
        check_name(name)?;
        if !self.plans.contains_key(plan) {
            return Err(StoreError::UnknownPlan { plan: plan.to_owned(), known: self.plans.keys().cloned().collect() });
        }
        let (id, secret) = key::generate(random)?;
        let hash = self.pepper.digest(secret.expose_secret());
        let record = KeyRecord {
            id: key::id_text(&id).into(),
            name: name.to_owned(),
            plan: plan.to_owned(),
            created: to_millisecond(now),
            expires: expires.map(to_millisecond),
            revoked: None,
        };
        let mut store = self.store.lock();
        let tx = store::write(&mut store.db)?;
        store::insert(&tx, &record, &hash)?;
        tx.commit()?;
        self.reload(&mut store)?;
        Ok((record, secret))
    }

    /// Every key, oldest first, revoked ones included.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let keys = store::keys(&self.store.lock().db)?;
        Ok(keys.into_iter().map(|key| key.record).collect())
    }

    /// Ends a key, given by its id. A key that was revoked before keeps its date. Gateways on this store notice at
    /// their next [`refresh_once`](Self::refresh_once).
    ///
    /// # Errors
    /// When there is no such key, or the store cannot be written.
    pub fn revoke(&self, id: &str, now: Timestamp) -> Result<KeyRecord, StoreError> {
        // Who gives the whole key means its id; the error must not show the secret.
        let Some(id) = key::parse(id).or_else(|| key::parse_id(id)) else {
            return Err(StoreError::NoSuchKey(id.chars().take(10).collect()));
        };
        let id = key::id_text(&id);
        let mut store = self.store.lock();
        let tx = store::write(&mut store.db)?;
        store::revoke(&tx, id, now)?;
        let revoked = store::key(&tx, id)?.ok_or_else(|| StoreError::NoSuchKey(id.to_owned()))?;
        tx.commit()?;
        self.reload(&mut store)?;
        Ok(revoked.record)
    }

    /// Reads the keys again if another process changed them; says whether it did. The last good set stays on failure.
    /// Without a change it costs one look at shared memory.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn refresh_once(&self) -> Result<bool, StoreError> {
        let mut store = self.store.lock();
        if store::data_version(&store.db)? == store.data_version {
            return Ok(false);
        }
        self.reload(&mut store)
    }

    /// Takes over the store's keys if they are not the ones last read; says whether it did.
    fn reload(&self, store: &mut Store) -> Result<bool, StoreError> {
        // Read first: what changes after this line shows at the next look.
        let data_version = store::data_version(&store.db)?;
        // One transaction, so that the generation and the keys belong together.
        let tx = store.db.transaction()?;
        let generation = store::generation(&tx)?;
        // Quota writes to the same file far more often than keys change.
        let changed = generation != store.generation;
        if changed {
            let live = store::keys(&tx)?.into_iter().filter_map(|key| self.live_key(key)).collect();
            self.live.store(Arc::new(live));
        }
        tx.commit()?;
        store.data_version = data_version;
        store.generation = generation;
        Ok(changed)
    }

    fn live_key(&self, StoredKey { record, hash }: StoredKey) -> Option<(key::Id, LiveKey)> {
        if record.revoked.is_some() {
            return None;
        }
        // What is no id can be no caller's: `key::parse` never yields it.
        let id = key::parse_id(&record.id)?;
        let access = self.plans.get(record.plan.as_str()).cloned().unwrap_or_else(|| {
            tracing::warn!(
                key.id = &*record.id,
                plan = record.plan,
                "key `{}` may use no model: its plan `{}` is not configured",
                record.id,
                record.plan
            );
            Access::Only(BTreeSet::new())
        });
        let caller = Caller { key_id: record.id, name: record.name.into(), plan: record.plan.into(), access };
        Some((id, LiveKey { hash, expires: record.expires, caller: Arc::new(caller) }))
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys").field("live", &self.live.load().len()).finish_non_exhaustive()
    }
}

/// The pepper that belongs to the store's keys.
fn open_pepper(db: &mut Connection, path: &Path, random: Random<'_>) -> Result<Pepper, StoreError> {
    // Held to the end, so that of two processes that start on an empty store one makes the pepper and one reads it.
    let tx = store::write(db)?;
    let has_keys = store::has_keys(&tx)?;
    let pepper = match Pepper::read(path)? {
        Some(pepper) => pepper,
        None if has_keys => return Err(StoreError::PepperMissing { path: path.to_owned() }),
        None => Pepper::create(path, random)?,
    };
    let fingerprint = pepper.fingerprint();
    if store::pepper(&tx)? != Some(fingerprint) {
        if has_keys {
            return Err(StoreError::PepperChanged { path: path.to_owned() });
        }
        store::set_pepper(&tx, &fingerprint)?;
    }
    tx.commit()?;
    Ok(pepper)
}

fn check_name(name: &str) -> Result<(), StoreError> {
    let fits = (1..=NAME_MAX_CHARS).contains(&name.chars().count());
    if fits && !name.chars().any(char::is_control) { Ok(()) } else { Err(StoreError::BadName) }
}

/// What the store keeps of a time.
fn to_millisecond(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).expect("a millisecond of a timestamp is a timestamp")
}
