//! Samples of what was asked and answered, for drift and for replay.
//!
//! [`Capture::offer`] is a side door of the request path: the sampler decides before the record is built, a full queue
//! drops the newest and counts it. A writer appends accepted records to [`spool`] segments on disk; closed segments become
//! Parquet objects in a [`sink`]. `sampled = stored + dropped + failed`, always.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::model::{Features, Identity, Inputs, Outputs};

pub mod parquet;
pub mod sink;
pub mod spool;

/// What is kept, and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects go.
    pub sink: sink::Config,
    /// The share of requests that is kept.
    pub rate: SamplingRate,
    /// A segment is closed at this many rows…
    pub flush_rows: NonZeroU32,
    /// …or at this age.
    pub flush_age: Duration,
    /// Features whose values are never written.
    pub redact: Vec<String>,
    /// Where segments wait: `<data_dir>/spool`.
    pub spool: PathBuf,
    /// The disk the spool may take; above it the newest are dropped and counted.
    pub spool_max_bytes: u64,
}

/// A share of requests, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingRate(f64);

impl SamplingRate {
    /// All of them.
    pub const ALL: Self = Self(1.0);

    /// A share, if it is one.
    #[must_use]
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    /// The share.
    #[must_use]
    pub fn get(self) -> f64 {
        self.0
    }
}

/// One request and its answer.
#[derive(Clone, Debug)]
pub struct Record {
    /// The id the caller was given.
    pub request_id: Arc<str>,
    /// When it was answered.
    pub time: Timestamp,
    /// Which version answered.
    pub model: Arc<Identity>,
    /// The features' names and types.
    pub features: Arc<Features>,
    /// The public id of the caller's key.
    pub key_id: Arc<str>,
    /// What was asked.
    pub inputs: Inputs,
    /// What was answered.
    pub outputs: Outputs,
}

/// Rows counted since the process began; a request of ten rows counts ten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Chosen by the sampler.
    pub sampled: u64,
    /// In an object in the sink.
    pub stored: u64,
    /// Dropped because the queue was full.
    pub dropped_queue_full: u64,
    /// Dropped because the spool had its fill of the disk.
    pub dropped_spool_full: u64,
    /// Lost for another reason, each of which was logged.
    pub failed: u64,
    /// On their way: in the queue or the spool.
    pub pending: u64,
}

/// The request path's end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Capture {}

/// The other end: owns the spool and the sink.
#[derive(Debug)]
pub struct Writer {}

/// What one flush did, in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Rows that reached the sink.
    pub stored: u64,
    /// Rows that wait for another try.
    pub waiting: u64,
    /// Objects written.
    pub objects: u64,
}

/// What keeps the spool from being opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the sample spool in `{path}`")]
pub struct OpenError {
    /// The folder.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

impl Capture {
    /// A capture that keeps nothing and costs nothing.
    #[must_use]
    pub fn off() -> Self {
        todo!()
    }

    /// Offers a request; `record` is built only if the sampler chose it and there is room.
    pub fn offer(&self, rows: usize, record: impl FnOnce() -> Record) {
        todo!()
    }

    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        todo!()
    }
}

/// The two ends of capture; `seed` is for the sampler. Segments an earlier process left are taken up again.
///
/// # Errors
/// When the spool's folder cannot be used.
pub fn open(config: Config, sink: sink::Sink, seed: u64) -> Result<(Capture, Writer), OpenError> {
    todo!()
}

impl Writer {
    /// Waits until there is something to spool, spools it (fsynced), and says how many rows; `None` once every
    /// [`Capture`] is gone and the queue is empty.
    pub async fn spool_once(&mut self) -> Option<u64> {
        todo!()
    }

    /// Closes the open segment if it is full or old (or `all`), and sends closed segments to the sink.
    pub async fn flush_once(&mut self, now: Timestamp, all: bool) -> Flushed {
        todo!()
    }
}
