//! API key → [`Caller`]. Keys are kept as keyed hashes; the key itself is shown once and never again.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use secrecy::SecretString;

/// The name of a usage plan, as in `[plans.<name>]`.
pub type PlanName = Arc<str>;

/// The public part of a key: safe in logs, metrics and samples.
pub type KeyId = Arc<str>;

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

/// What went wrong with the key store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite said no.
    #[error("the key store cannot be used")]
    Sqlite(#[from] rusqlite::Error),
    /// The pepper's file.
    #[error("the pepper file cannot be used")]
    Pepper(#[source] std::io::Error),
    /// A key that is not there.
    #[error("there is no key `{0}`")]
    NoSuchKey(String),
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
#[derive(Debug)]
pub struct ApiKeys {}

impl ApiKeys {
    /// Opens the store and reads every key.
    ///
    /// # Errors
    /// When the store or the pepper cannot be used. A damaged store is never taken for an empty one.
    pub fn open(config: Config) -> Result<Self, StoreError> {
        todo!()
    }

    /// The caller who holds `key`. Touches neither disk nor lock.
    ///
    /// # Errors
    /// When it is not a key of ours, or no longer.
    pub fn authenticate(&self, key: &str, now: Timestamp) -> Result<Caller, AuthError> {
        todo!()
    }

    /// Makes a key; the secret is returned once and stored nowhere.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn create(
        &self,
        name: &str,
        plan: &str,
        expires: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(KeyRecord, SecretString), StoreError> {
        todo!()
    }

    /// Every key, oldest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<KeyRecord>, StoreError> {
        todo!()
    }

    /// Ends a key. Gateways on this store notice within a second.
    ///
    /// # Errors
    /// When there is no such key, or the store cannot be written.
    pub fn revoke(&self, id: &str, now: Timestamp) -> Result<KeyRecord, StoreError> {
        todo!()
    }

    /// Reads the keys again if another process changed them; says whether it did. The last good set stays on failure.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn refresh_once(&self) -> Result<bool, StoreError> {
        todo!()
    }
}
