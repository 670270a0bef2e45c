//! Keys that several gateways share: records in a Redis, of which each gateway has a copy in its own store.
//!
//! No request asks Redis. A gateway asks once a second where the keys stand, fetches what changed into its store, and
//! serves from there whatever becomes of Redis. A change is made on an up-to-date copy and published before it is
//! committed there, if nobody else published meanwhile; so no change is lost, and none is half made.
//!
//! Four names hold it all: `<namespace>:keys` is a hash of records, `<namespace>:keys:changes` orders its fields by the
//! generation they were last written in, `<namespace>:keys:stamps` has a stamp for each of the last generations, and
//! `<namespace>:keys:state` is `<stamp> <generation> <records> <pepper>`. The generation counts changes, also over a copy
//! that is put into the store as a whole; a stamp is a keyed hash of the changes up to it. So a store that went back in
//! time, or whose halves were written apart from each other, is known for what it is, and not believed.

mod copy;
mod link;
mod record;

use std::path::PathBuf;

use jiff::Timestamp;
use parking_lot::Mutex;
use redis::{Client, IntoConnectionInfo as _, RedisError, RedisResult};
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

pub use copy::{Keep, Put};
use link::Link;

/// A Redis in which gateways share their keys.
#[derive(Clone, Debug)]
pub struct SharedStore {
    /// `redis://host:6379/0`, or `rediss:` for TLS; a user and a password may be in it.
    pub url: Url,
    /// Goes over the password in `url`.
    pub password: Option<SecretString>,
    /// Begins every name in it.
    pub namespace: String,
}

/// How it stands with the copy of the shared keys.
#[derive(Clone, Debug, Default)]
pub struct CopyHealth {
    /// How many changes are in it.
    pub generation: i64,
    /// When it was last known to be what the store has. Kept to a minute over a restart.
    pub heard: Option<Timestamp>,
    /// Records of the store that could not be read: of these keys the copy has what it had before, or nothing.
    pub unreadable: u64,
    /// Why the last look at the store came to nothing.
    pub trouble: Option<String>,
}

/// What is wrong with the shared keys. The messages say what to do.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// Its address is none.
    #[error("the address of the store of shared keys cannot be used")]
    Address(#[source] RedisError),
    /// No answer, or none that is of use.
    #[error("the store of shared keys cannot be asked, and no key be changed without it: {0}")]
    Unreachable(String),
    /// The answer to a change got lost.
    #[error(
        "the store of shared keys did not answer: whether the change was made is not known; look with `keys list` and \
         make it again if it was not ({0})"
    )]
    Uncertain(String),
    /// Nobody has put keys there, or it has lost them.
    #[error(
        "there are no shared keys in the store: run `modelgate keys share` once, on the data directory whose keys \
         are to be there (after a loss, the one with the highest generation: GET /admin/keys)"
    )]
    Absent,
    /// Where the keys stand is not what was written there.
    #[error(
        "the state of the shared keys is not readable: delete `{name}` in the store and run `modelgate keys share` on \
         the data directory with the highest generation (GET /admin/keys)"
    )]
    Unintelligible {
        /// What holds it.
        name: String,
    },
    /// Records are gone.
    #[error(
        "the store has {found} of {expected} shared keys' records, so none is taken: run `modelgate keys share` to put \
         this copy back"
    )]
    Incomplete {
        /// How many there are.
        found: u64,
        /// How many there should be.
        expected: u64,
    },
    /// The store went back in time, or somebody put an old copy into it.
    #[error(
        "the shared keys (generation {there}) lack changes that are in this copy (generation {here}), so they are not \
         taken: run `modelgate keys share` on this data directory to put them back"
    )]
    Behind {
        /// The store's generation.
        there: i64,
        /// The copy's generation.
        here: i64,
    },
    /// Hashes here and there cannot be compared.
    #[error(
        "the pepper `{path}` is not the one the shared keys were made with: give every gateway that shares them the \
         same one (keys.pepper_file)"
    )]
    WrongPepper {
        /// The pepper.
        path: PathBuf,
    },
    /// Keys of a data directory that would be gone.
    #[error(
        "this data directory has keys that were not shared: run `modelgate keys share` on it, which puts them beside \
         those in the store"
    )]
    Unshared,
    /// Nothing to answer callers with.
    #[error("there is no copy of the shared keys here yet, and without one every caller would be refused")]
    NoCopy(#[source] Box<super::StoreError>),
    /// Others changed keys faster, again and again.
    #[error("others change keys all the time: try again")]
    Busy,
    /// More than Redis takes at once.
    #[error("{0} keys at once are more than the store takes; {MAX_RECORDS} can be shared or imported at once")]
    TooMany(usize),
    /// What differs cannot be brought together without a decision.
    #[error(
        "these keys are not the same here and in the store: {}; say which are right with --keep here or --keep store",
        shown(ids)
    )]
    Conflicts {
        /// Their ids as they are here.
        ids: Vec<String>,
    },
}

/// What went wrong, in words; the system's own for an answer that does not come are none.
fn reason(error: &RedisError) -> String {
    if error.is_timeout() { "it does not answer in time".to_owned() } else { error.to_string() }
}

/// Records that go to the store at once: Redis takes about a million arguments, two for each.
const MAX_RECORDS: usize = 500_000;

/// A few of `ids`, and how many more there are.
fn shown(ids: &[String]) -> String {
    let few = ids.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
    if ids.len() > 10 { format!("{few} and {} more", ids.len() - 10) } else { few }
}

/// What the keys of one data directory have to do with the shared ones.
pub(super) struct Sharing {
    link: Mutex<Link>,
    /// For messages.
    pepper: PathBuf,
    health: Mutex<CopyHealth>,
}

impl Sharing {
    pub(super) fn new(store: &SharedStore, pepper: PathBuf) -> Result<Self, SharedError> {
        let link = Link::new(store).map_err(SharedError::Address)?;
        Ok(Self { link: Mutex::new(link), pepper, health: Mutex::default() })
    }
}

/// A client of the Redis at `url`; `password` goes over one in it.
///
/// # Errors
/// When it is no address of a Redis.
pub(crate) fn client(url: &Url, password: Option<&SecretString>) -> RedisResult<Client> {
    let info = url.as_str().into_connection_info()?;
    let mut settings = info.redis_settings().clone();
    if let Some(password) = password {
        settings = settings.set_password(password.expose_secret());
    }
    Client::open(info.set_redis_settings(settings))
}
