//! The `[keys]` section: whose keys they are, and where the pepper is.

use std::path::PathBuf;

use super::reader::Section;
use super::value::path;
use crate::auth::SharedStore;
use crate::quota::Location;

/// What is said of keys.
pub(super) struct Keys {
    pub(super) pepper: PathBuf,
    /// Where they are shared, if they are.
    pub(super) shared: Option<SharedStore>,
}

/// Keys are shared where the use of them is counted.
pub(super) fn read(mut s: Section<'_>, pepper: PathBuf, usage: &Location) -> Keys {
    let pepper = s.optional("pepper_file", path).unwrap_or(pepper);
    let is_shared = s.switch("shared");
    let shared = match usage {
        Location::Redis(redis) if is_shared => Some(SharedStore {
            url: redis.url.clone(),
            password: redis.password.clone(),
            namespace: redis.namespace.clone(),
        }),
        Location::File(_) if is_shared => {
            s.mistake("shared", "expected a Redis in `quota.store` with it, which is where the keys are shared");
            None
        }
        Location::Redis(_) | Location::File(_) => None,
    };
    s.finish();
    Keys { pepper, shared }
}
