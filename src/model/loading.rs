//! A version on its way: what operators see while it is brought here and tried.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use jiff::Timestamp;

use super::Version;

/// One version on its way. Whoever brings it writes, whoever reports reads; the figures need not agree to the byte.
/// The default is one that nobody looks at.
#[derive(Debug, Default)]
pub struct Loading {
    /// When it was begun.
    pub since: Timestamp,
    /// Its number; 0 as long as only an alias is known.
    version: AtomicU64,
    is_here: AtomicBool,
    bytes: AtomicU64,
    total: AtomicU64,
}

/// What happens to a version on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its files are fetched.
    Fetching,
    /// Its files are here, and it has to prove itself.
    Admission,
}

impl Step {
    /// The step's name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fetching => "fetching",
            Self::Admission => "admission",
        }
    }
}

impl Loading {
    /// A version of which nothing is here yet.
    #[must_use]
    pub fn new(since: Timestamp) -> Self {
        Self { since, ..Self::default() }
    }

    /// Notes which version it is.
    pub fn begin(&self, version: Version) {
        self.version.store(version.0, Ordering::Relaxed);
    }

    /// Notes how many bytes all its files have together.
    pub fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Notes how many bytes are here. A download that starts again makes it fewer.
    pub fn has(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Notes which version it is, and that all its files are here.
    pub fn is_here(&self, version: Version) {
        self.begin(version);
        self.is_here.store(true, Ordering::Relaxed);
    }

    /// Which version it is, once that is known.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        Some(Version(self.version.load(Ordering::Relaxed))).filter(|version| version.0 > 0)
    }

    /// What happens to it.
    #[must_use]
    pub fn step(&self) -> Step {
        if self.is_here.load(Ordering::Relaxed) { Step::Admission } else { Step::Fetching }
    }

    /// How many bytes are here.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many bytes all its files have together, where the registry lists them.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        Some(self.total.load(Ordering::Relaxed)).filter(|total| *total > 0)
    }
}
