//! API key → [`Caller`]. Keys are kept as keyed hashes; the key itself is shown once and never again.
//!
//! The store is one SQLite file that other processes may write (`modelgate keys`); requests look at a copy in memory.

mod attempts;
mod import;
mod key;
mod lifecycle;
mod live;
mod pepper;
mod pins;
mod private;
mod scope;
pub(crate) mod shared;
pub(crate) mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;
use rusqlite::Connection;

use attempts::{Attempts, Subject};
use live::{LiveKey, LiveKeys, Refused};
use pepper::Pepper;
use shared::Sharing;

pub use import::{ImportError, Imported, Mistake, Plans};
pub use key::well_formed_id;
pub use lifecycle::NewKey;
pub use pins::{NoPin, Pin, PinTo, PlanPins, moment};
pub use scope::{NoScope, Scope, Scopes};
pub use shared::{CopyHealth, Keep, Put, SharedError, SharedStore};

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
    /// What its use is counted under: the id of the first of the keys that replaced each other, so that a rotation
    /// opens no second quota.
    pub account: KeyId,
    access: Access,
    scopes: Scopes,
    pins: Vec<Pin>,
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
    /// What its use is counted under: its own id, or that of the first key it replaces.
    pub account: KeyId,
    /// The key that was made in its place, if one was.
    pub replaced_by: Option<KeyId>,
    /// Since when it is disabled, if it is.
    pub disabled: Option<Timestamp>,
    /// What it may do, of what the plan allows.
    pub scopes: Scopes,
    /// Whether it was made elsewhere and has a form of its own.
    pub imported: bool,
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
    /// The plan may allow it, the key's scopes do not.
    #[error("the key's scopes do not allow this")]
    OutOfScope,
    /// The key is right, and switched off.
    #[error("the key is disabled")]
    Disabled,
    /// Too many keys that are none, from this address or under this key id.
    #[error("too many attempts with keys that are not valid")]
    Throttled {
        /// When the next attempt counts.
        retry_after: Duration,
    },
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
    /// A key that has ended cannot be changed.
    #[error("the key `{0}` has ended: make a new one with `keys create`")]
    Ended(KeyId),
    /// A key has one successor.
    #[error("the key `{id}` was replaced by `{by}`: rotate that one")]
    Replaced {
        /// The key.
        id: KeyId,
        /// Its successor.
        by: KeyId,
    },
    /// A pin that would hold for nobody.
    #[error("the date {0} is past: give one to come")]
    PinIsPast(Timestamp),
    /// Every version that callers stay on takes memory.
    #[error(
        "no more than {room} versions of `{model}` are held for callers who stay, and these are: {held}; unpin one of them, or \
         raise engine.max_held"
    )]
    NoRoomForPin {
        /// The model.
        model: String,
        /// How many there may be.
        room: usize,
        /// What callers stay on already.
        held: String,
    },
    /// Nothing to undo.
    #[error("the key `{id}` is not pinned to a version of `{model}`")]
    NotPinned {
        /// The key.
        id: KeyId,
        /// The model.
        model: String,
    },
    /// Keys from elsewhere that cannot be taken over.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Gateways that share keys share a pepper, which none of them may make for itself.
    #[error(
        "there is no pepper `{path}`: give it the one of the gateways that share the keys; for keys that are new \
         everywhere, make one: `(umask 077; head -c 32 /dev/urandom > {path})`"
    )]
    NoPepper {
        /// Where it is expected.
        path: PathBuf,
    },
    /// Keys that several gateways share.
    #[error(transparent)]
    Shared(#[from] SharedError),
}

fn listed(plans: &[PlanName]) -> String {
    if plans.is_empty() { "none".to_owned() } else { plans.join(", ") }
}

impl Caller {
    /// Whether this caller may use `model`.
    ///
    /// # Errors
    /// When its plan or its scopes do not name it.
    pub fn may_use(&self, model: &str) -> Result<(), AuthError> {
        match &self.access {
            Access::Only(models) if !models.contains(model) => Err(AuthError::NotAllowed),
            Access::All | Access::Only(_) if self.scopes.predict(model) => Ok(()),
            Access::All | Access::Only(_) => Err(AuthError::OutOfScope),
        }
    }

    /// Whether this caller may label answers of `model`.
    #[must_use]
    pub fn may_label(&self, model: &str) -> bool {
        let in_plan = match &self.access {
            Access::All => true,
            Access::Only(models) => models.contains(model),
        };
        in_plan && self.scopes.label(model)
    }

    /// Whether this caller may label any answers.
    ///
    /// # Errors
    /// When its scopes do not name it.
    pub fn may_label_any(&self) -> Result<(), AuthError> {
        if self.scopes.label_any() { Ok(()) } else { Err(AuthError::OutOfScope) }
    }

    /// Whether this caller may read its own usage.
    ///
    /// # Errors
    /// When its scopes do not name it.
    pub fn may_read_usage(&self) -> Result<(), AuthError> {
        if self.scopes.read_usage() { Ok(()) } else { Err(AuthError::OutOfScope) }
    }
}

/// Every key, in memory, as the store last had them.
pub struct ApiKeys {
    plans: BTreeMap<PlanName, Access>,
    plan_pins: PlanPins,
    pepper: Pepper,
    live: ArcSwap<LiveKeys>,
    attempts: Attempts,
    store: Mutex<Store>,
    /// Unset: these keys are of this data directory alone.
    sharing: Option<Sharing>,
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
        Self::open_with(config, Some(random), None)
    }

    /// Opens a copy of keys that gateways share, which makes no pepper. It is as it was left, until it is
    /// [brought up to date](Self::sync_once).
    ///
    /// # Errors
    /// As `open`, and when there is no pepper or the shared store's address is none.
    pub fn open_shared(config: Config, shared: &SharedStore) -> Result<Self, StoreError> {
        let sharing = Sharing::new(shared, config.pepper.clone())?;
        Self::open_with(config, None, Some(sharing))
    }

    fn open_with(config: Config, random: Option<Random<'_>>, sharing: Option<Sharing>) -> Result<Self, StoreError> {
        let mut db = store::open(&config.store)?;
        let pepper = open_pepper(&mut db, &config.pepper, random)?;
        // No generation is negative: the first look reads everything.
        let store = Store { db, data_version: 0, generation: -1 };
        let keys = Self {
            plans: config.plans,
            plan_pins: PlanPins::new(),
            pepper,
            live: ArcSwap::default(),
            attempts: Attempts::new(),
            store: Mutex::new(store),
            sharing,
        };
        keys.reload(&mut keys.store.lock())?;
        Ok(keys)
    }

    /// The caller who holds `key`. Touches neither disk nor lock, and allocates nothing.
    ///
    /// Whether the id or the secret was wrong is told neither by the answer nor by the time it takes.
    ///
    /// # Errors
    /// When it is not a key of ours, or no longer, or disabled.
    pub fn authenticate(&self, key: &str, now: Timestamp) -> Result<Arc<Caller>, AuthError> {
        let caller = self.verify(&self.live.load(), key, now).map(|key| Arc::clone(&key.caller))?;
        Ok(caller)
    }

    /// As [`authenticate`](Self::authenticate), for a request from `address`: ten attempts in a row that fail, and the
    /// address waits a minute. Attempts under one key id are counted as well, whatever addresses they come from.
    ///
    /// Whoever has the right key is let in from any other address, so that guessing at a key shuts nobody out; and from
    /// this one too if it used the key before, so that behind a load balancer, where all have one address, one cannot
    /// shut out the others. A key that has ended is refused and not counted: a program that was left behind by a
    /// rotation guesses at nothing.
    ///
    /// # Errors
    /// As `authenticate`, and when the address or the key id has failed too often.
    pub fn admit(&self, key: &str, address: IpAddr, now: Timestamp) -> Result<Arc<Caller>, AuthError> {
        let live = self.live.load();
        let from = self.attempts.address(address);
        let verified = self.verify(&live, key, now);
        if let Some(retry_after) = self.attempts.wait(from) {
            let known = verified.ok().filter(|key| key.is_known_at(from));
            return known.map(|key| Arc::clone(&key.caller)).ok_or(AuthError::Throttled { retry_after });
        }
        match verified {
            Ok(key) => {
                key.note_address(from);
                Ok(Arc::clone(&key.caller))
            }
            Err(Refused::Unknown) => Err(self.failed(key, from)),
            Err(refused @ (Refused::Ended | Refused::Disabled)) => Err(refused.into()),
        }
    }

    /// Counts a failed attempt and says what its answer is.
    fn failed(&self, key: &str, from: Subject) -> AuthError {
        let of_address = self.attempts.failed(from);
        let of_key = key::parse(key).and_then(|id| self.attempts.failed(self.attempts.key(&id)));
        match of_address.max(of_key) {
            Some(retry_after) => AuthError::Throttled { retry_after },
            None => AuthError::Unknown,
        }
    }

    fn verify<'l>(&self, live: &'l LiveKeys, key: &str, now: Timestamp) -> Result<&'l LiveKey, Refused> {
        let has_form = key::parse(key).is_some() || (live.has_imported && import::is_key(key));
        if !has_form {
            return Err(Refused::Unknown);
        }
        live.find(&self.pepper.digest(key), now)
    }

    /// How many keys there are, those that have ended included.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nobody asks whether there is none")]
    pub fn len(&self) -> usize {
        self.live.load().len()
    }

    /// Every key, oldest first, revoked ones included.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let keys = store::keys(&self.store.lock().db)?;
        Ok(keys.into_iter().map(|key| key.record).collect())
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
            let live = LiveKeys::new(store::keys(&tx)?, &self.plans, &pins::read(&tx)?, &self.live.load());
            self.live.store(Arc::new(live));
            // Who was told that a key is none before it was read here is not made to wait for it.
            self.attempts.forgive();
        }
        tx.commit()?;
        store.data_version = data_version;
        store.generation = generation;
        Ok(changed)
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKeys").field("live", &self.live.load().len()).finish_non_exhaustive()
    }
}

/// The pepper that belongs to the store's keys; made where there is `random`.
fn open_pepper(db: &mut Connection, path: &Path, random: Option<Random<'_>>) -> Result<Pepper, StoreError> {
    // Held to the end, so that of two processes that start on an empty store one makes the pepper and one reads it.
    let tx = store::write(db)?;
    let has_keys = store::has_keys(&tx)?;
    let pepper = match Pepper::read(path)? {
        Some(pepper) => pepper,
        None if has_keys => return Err(StoreError::PepperMissing { path: path.to_owned() }),
        None => match random {
            Some(random) => Pepper::create(path, random)?,
            None => return Err(StoreError::NoPepper { path: path.to_owned() }),
        },
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
