//! Samples of what was asked and answered, for drift and for replay.
//!
//! [`Capture::offer`] is a side door of the request path: the sampler decides before the record is built, a full queue
//! drops the newest and counts it. A [`Writer`] appends records to [`spool`] segments on disk, and there they are
//! accepted: an accepted sample survives a kill of the process. Closed segments become Parquet objects in a [`sink`].
//! At any quiet moment `sampled = stored + dropped + failed + pending`, and a [manifest] beside the objects says so after every
//! flush that wrote any.
//!
//! [manifest]: manifest

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use self::disk::{Disk, Local};
use self::failed::Recorder;
use self::protect::{Policy, Random, Secret};
use self::queue::Queue;
use self::spool::{Appended, Spool};
use self::upload::Uploader;
use crate::model::{Features, Identity, Inputs, ModelName, Outputs};

pub(crate) mod csv;
pub mod disk;
mod failed;
mod jsonl;
mod manifest;
pub mod parquet;
pub mod protect;
mod queue;
pub mod segment;
pub mod sink;
pub mod spool;
pub mod stored;
mod upload;

pub use self::failed::Failure;

/// What is kept, and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects go.
    pub sink: sink::Config,
    /// What objects hold.
    pub format: Format,
    /// The share of requests that is kept.
    pub rate: SamplingRate,
    /// The same for single models, in place of `rate`.
    pub rates: BTreeMap<ModelName, SamplingRate>,
    /// Whether requests that failed are kept too, in samples of their own.
    pub failed: bool,
    /// A segment is closed at this many rows…
    pub flush_rows: NonZeroU32,
    /// …or at this age.
    pub flush_age: Duration,
    /// Features whose values are not written as they came.
    pub protect: Policy,
    /// The secret of hashes: `<data_dir>/capture-secret`. Made when a feature is hashed for the first time.
    pub secret: PathBuf,
    /// Where segments wait: `<data_dir>/spool`.
    pub spool: PathBuf,
    /// The disk the spool may take; above it the newest are dropped and counted.
    pub spool_max_bytes: u64,
}

/// What objects hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One Parquet file: see [`parquet`].
    #[default]
    Parquet,
    /// SageMaker's data capture, one request a line.
    Jsonl,
    /// The columns of the Parquet file as text, with a header.
    Csv,
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

/// One request and its answer; without any prediction, one that failed.
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

impl Record {
    /// How many rows have been asked and answered.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self.outputs.predictions().len() {
            0 => self.inputs.rows(),
            answered => self.inputs.rows().min(answered),
        }
    }
}

/// Rows counted since the process began; a request of ten rows counts ten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Chosen by the sampler, or found in the spool after an earlier process.
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

/// The request path's end. Cheap to clone; the queue ends with the last clone.
#[derive(Clone, Debug)]
pub struct Capture(Option<Arc<Door>>);

/// What the clones of a [`Capture`] share.
#[derive(Debug)]
struct Door {
    queue: Arc<Queue>,
    /// There where failures are kept.
    failures: Option<Recorder>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.queue.end();
    }
}

/// The other end: owns the spool and the sink.
///
/// Its steps may be dropped half-way, as a `select!` does: nothing is lost or counted twice. To stop in order, drop every
/// [`Capture`], call [`spool_once`](Self::spool_once) until it says `None`, then [`flush_once`](Self::flush_once) with
/// `all`.
#[derive(Debug)]
pub struct Writer {
    spooler: Spooler,
    uploader: Uploader,
}

/// Brings records from the queue to the disk.
#[derive(Debug)]
struct Spooler {
    queue: Arc<Queue>,
    spool: Arc<Mutex<Spool>>,
    /// The batch of a step that was dropped half-way: the next step says what became of it.
    under_way: Option<JoinHandle<Appended>>,
}

/// What one flush did, in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Rows that reached the sink.
    pub stored: u64,
    /// Rows that wait for another try.
    pub waiting: u64,
    /// Objects written.
    pub objects: u64,
    /// Rows accepted meanwhile, because spooling goes on.
    pub accepted: u64,
}

/// What keeps capture from being opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The spool's folder cannot be used.
    #[error("cannot open the sample spool in `{path}`")]
    Spool {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The secret of hashes cannot be made or read.
    #[error("cannot open the secret of hashed features in `{path}`")]
    Secret {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The two ends of capture; `random` is for the secret of hashes, `seed` for the sampler, the names of segments and the
/// jitter of tries. Segments that an earlier process left are listed here, and read by the first
/// [`flush_once`](Writer::flush_once).
///
/// # Errors
/// When the spool's folder or the secret cannot be used.
pub fn open(config: Config, sink: sink::Sink, random: Random<'_>, seed: u64) -> Result<(Capture, Writer), OpenError> {
    open_on(Arc::new(Local), config, sink, random, seed)
}

/// As [`open`], with the spool on `disk`.
fn open_on(
    disk: Arc<dyn Disk>,
    config: Config,
    sink: sink::Sink,
    random: Random<'_>,
    seed: u64,
) -> Result<(Capture, Writer), OpenError> {
    let mut seeds = fastrand::Rng::with_seed(seed);
    let secret = secret(&config, random)?;
    let failures = config.failed.then(|| Recorder::new(config.protect.clone(), secret.clone()));
    let spool = Spool::open(Arc::clone(&disk), &config, secret, seeds.u64(..));
    let spool = spool.map_err(|source| OpenError::Spool { path: config.spool, source })?;
    let spool = Arc::new(Mutex::new(spool));
    let queue = Arc::new(Queue::new(config.rate, config.rates, seeds.u64(..)));
    let spooler = Spooler { queue: Arc::clone(&queue), spool: Arc::clone(&spool), under_way: None };
    let uploader = Uploader::new(sink, config.format, disk, spool, Arc::clone(&queue), seeds.u64(..));
    Ok((Capture(Some(Arc::new(Door { queue, failures }))), Writer { spooler, uploader }))
}

/// The secret, where a feature is hashed.
fn secret(config: &Config, random: Random<'_>) -> Result<Option<Secret>, OpenError> {
    if config.protect.hash.is_empty() {
        return Ok(None);
    }
    let opened = Secret::open(&config.secret, random);
    opened.map(Some).map_err(|source| OpenError::Secret { path: config.secret.clone(), source })
}

impl Capture {
    /// A capture that keeps nothing and costs nothing.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// Offers a request of `rows` rows that `model` answered; `record` is built only if the sampler chose it and there
    /// is room.
    pub fn offer(&self, model: &ModelName, rows: usize, record: impl FnOnce() -> Record) {
        if let Some(Door { queue, .. }) = self.0.as_deref() {
            queue.offer(model, rows, record);
        }
    }

    /// Offers a request that failed. It counts as one row, whatever it asked for.
    pub fn offer_failed<'a>(&self, model: &ModelName, failure: impl FnOnce() -> Failure<'a>) {
        if let Some(Door { queue, failures: Some(recorder) }) = self.0.as_deref() {
            queue.offer(model, 1, || recorder.record(&failure()));
        }
    }

    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.as_deref().map(|door| door.queue.tally.counts()).unwrap_or_default()
    }
}

impl Writer {
    /// Waits until there is something to spool, spools a batch of it, and says how many rows were accepted: written and
    /// fsynced. `None` once every [`Capture`] is gone and the queue is empty.
    pub async fn spool_once(&mut self) -> Option<u64> {
        self.spooler.step().await
    }

    /// Closes the open segments that are full or old (or `all`, after spooling what is in the queue), and sends closed
    /// segments to the sink. A sink that is down is asked again when its wait is over, or if `all`. Goes on spooling
    /// while it waits for the sink.
    pub async fn flush_once(&mut self, now: Timestamp, all: bool) -> Flushed {
        let mut accepted = 0;
        while all && self.spooler.has_work() {
            accepted += self.spooler.batch().await;
        }
        let Self { spooler, uploader } = self;
        let mut flushing = pin!(uploader.flush(now, all));
        loop {
            tokio::select! {
                flushed = &mut flushing => return Flushed { accepted, ..flushed },
                Some(rows) = spooler.step() => accepted += rows,
            }
        }
    }

    /// The counts so far, for when every [`Capture`] is gone.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.spooler.queue.tally.counts()
    }
}

impl Spooler {
    fn has_work(&self) -> bool {
        self.under_way.is_some() || !self.queue.is_empty()
    }

    async fn step(&mut self) -> Option<u64> {
        if self.under_way.is_some() || self.queue.ready().await { Some(self.batch().await) } else { None }
    }

    /// Spools one batch and counts it. The work goes on if nobody waits for it any more.
    async fn batch(&mut self) -> u64 {
        let appending = self.under_way.get_or_insert_with(|| {
            let (queue, spool) = (Arc::clone(&self.queue), Arc::clone(&self.spool));
            spawn_blocking(move || {
                let mut spool = spool.lock();
                let appended = spool.append(queue.batch());
                queue.tally.spooled(appended);
                appended
            })
        });
        let appended = finished(appending).await;
        self.under_way = None;
        appended.accepted
    }
}

/// Does `work` on a thread that may block. A panic goes on in the caller.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    finished(&mut spawn_blocking(work)).await
}

/// What such a thread came to.
async fn finished<T>(work: &mut JoinHandle<T>) -> T {
    match work.await.map_err(JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime is going down, and this future with it.
        Err(Err(_)) => std::future::pending().await,
    }
}

#[cfg(test)]
mod crashes;
#[cfg(test)]
mod tests;
