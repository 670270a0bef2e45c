//! Versions that are held loaded for callers who stay on them while others move on, and who asks for which.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Model, Version};

/// What a caller stays on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A version by its number.
    Version(Version),
    /// Whatever an alias points at.
    Alias(Arc<str>),
}

/// As in `version:3` and `alias:stable`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version:{version}"),
            Self::Alias(alias) => write!(f, "alias:{alias}"),
        }
    }
}

/// One held version, as it is published.
#[derive(Clone, Debug)]
pub struct Held {
    /// What callers stay on.
    pub target: Target,
    /// What answers them; `None` until it is loaded.
    pub model: Option<Arc<Model>>,
    /// Why it is not loaded, or why the alias's new version is not; for operators.
    pub trouble: Option<String>,
}

/// What callers of each model stay on: no target twice, those that matter most first.
pub type Asked = BTreeMap<String, Vec<Target>>;

/// Where it is told what callers stay on.
pub type Teller = watch::Sender<Asked>;

/// Where it is heard.
pub type Listener = watch::Receiver<Asked>;

/// Both ends, with nobody staying on anything.
#[must_use]
pub fn line() -> (Teller, Listener) {
    watch::channel(Asked::new())
}
