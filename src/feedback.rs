//! What came true: labels that callers send, minutes to weeks after the answer, by request id.
//!
//! [`Feedback::answered`] is a side door of the request path: what was predicted goes through a bounded queue to the
//! [`Keeper`], which remembers it in a file for as long and in as many bytes as the configuration allows. A label is
//! compared with what is remembered, which gives the live accuracy of each version, and waits in the same file until the
//! [`Sender`] has put it into the sink beside the samples. [`Feedback::label`] returns when the label is on the disk: an
//! accepted label survives a kill of the process.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use self::answers::Queue;
use self::store::{Limits, Store};
use self::tally::{Confusion, Figures, Tally};
use crate::capture::Format;
use crate::capture::sink::{PutError, Sink};
use crate::model::{Identity, ModelName};

mod answers;
mod objects;
mod store;
pub mod tally;

pub use self::answers::Answered;

/// Requests with labels that wait for the keeper at most; above it the answer is a quick 503.
const BATCHES_MAX: usize = 64;

/// How often answers are written where no label hurries them. What a kill takes with it is no older.
const REMEMBER_INTERVAL: Duration = Duration::from_secs(1);

/// The wait after the sink failed.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// How much is remembered, and what becomes of labels.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long after its answer a label can be told to be right or wrong.
    pub age: Duration,
    /// The bytes that remembered answers may take.
    pub max_bytes: u64,
    /// Labels in one request.
    pub max_labels: usize,
    /// The file: `<data_dir>/feedback.db`.
    pub file: PathBuf,
    /// How objects of labels are made; without it labels tell the accuracy and go nowhere.
    pub objects: Option<Objects>,
}

/// How objects of labels are made: as those of samples are.
#[derive(Clone, Copy, Debug)]
pub struct Objects {
    /// What they hold.
    pub format: Format,
    /// Labels in one at most.
    pub flush_rows: u32,
    /// How long a label waits for others.
    pub flush_age: Duration,
}

/// What a caller says came true.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Said {
    /// A number, or a class that is one. Finite.
    Number(f64),
    /// A class.
    Text(Box<str>),
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// One label as a caller sends it.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// The id of the answer.
    pub request_id: Box<str>,
    /// The row of the request, from 0.
    pub row: u32,
    /// The model, for a caller that gives the same id to requests of several.
    pub model: Option<Box<str>>,
    /// What came true.
    pub said: Said,
}

/// Whether the key may label answers of a model.
pub type MayLabel = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The labels of one request, and who sends them.
pub struct Batch {
    /// Whose requests may be labelled: its own.
    pub account: Arc<str>,
    /// The public id of the key.
    pub key_id: Arc<str>,
    /// Which models' answers the key may label.
    pub may_label: MayLabel,
    /// In the order they count in.
    pub labels: Vec<Label>,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("account", &self.account).field("labels", &self.labels).finish_non_exhaustive()
    }
}

/// What became of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was compared with its prediction.
    Matched,
    /// The row had another label; this one counts from now on.
    Changed,
    /// The row has this label already.
    Duplicate,
    /// No answer of this caller with the id is remembered. The label is kept all the same.
    Unknown,
    /// It is not kept.
    Refused(Problem),
}

/// Why a label is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The request had fewer rows.
    NoSuchRow {
        /// So many.
        rows: usize,
    },
    /// The model has no such class.
    NotAClass {
        /// It has these.
        classes: Vec<Arc<str>>,
    },
    /// The model predicts numbers.
    NotANumber,
    /// Requests of several models have the id.
    WhichModel,
    /// The key's scopes do not name the model.
    OutOfScope,
}

/// What became of a batch.
#[derive(Debug)]
enum Kept {
    /// One outcome a label.
    All(Vec<Outcome>),
    /// Too many labels wait for the sink.
    NoRoom,
}

/// Why labels were not taken. Each passes by itself or with an operator's help; the caller keeps the labels until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// Too many requests at one time.
    #[error("too many labels come at one time")]
    Busy,
    /// The sink was away for too long.
    #[error("too many labels wait for the sink")]
    NoRoom,
    /// The file cannot be written.
    #[error("labels cannot be written to the disk")]
    Disk,
}

/// Labels and answers counted since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Compared with their predictions.
    pub matched: u64,
    /// In the place of another.
    pub changed: u64,
    /// Sent again.
    pub duplicate: u64,
    /// Without an answer that is remembered.
    pub unknown: u64,
    /// Not kept.
    pub refused: u64,
    /// Labels that are in the sink.
    pub stored: u64,
    /// Labels that wait for it.
    pub pending: u64,
    /// Rows that were not remembered, because the queue was full or the disk failed.
    pub rows_dropped: u64,
    /// Answers that were forgotten for age or room.
    pub answers_forgotten: u64,
}

#[derive(Debug, Default)]
struct Tallied {
    matched: AtomicU64,
    changed: AtomicU64,
    duplicate: AtomicU64,
    unknown: AtomicU64,
    refused: AtomicU64,
    stored: AtomicU64,
    answers_forgotten: AtomicU64,
}

impl Tallied {
    fn note(&self, outcome: &Outcome) {
        let count = match outcome {
            Outcome::Matched => &self.matched,
            Outcome::Changed => &self.changed,
            Outcome::Duplicate => &self.duplicate,
            Outcome::Unknown => &self.unknown,
            Outcome::Refused(_) => &self.refused,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// The request path's end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Feedback(Option<Arc<Desk>>);

/// What the clones of a [`Feedback`] share with the keeper.
#[derive(Debug)]
struct Desk {
    queue: Arc<Queue>,
    batches: mpsc::Sender<Asked>,
    store: Arc<Mutex<Store>>,
    tallied: Arc<Tallied>,
    max_labels: usize,
    age: Duration,
}

/// A batch, and where its answer is waited for.
#[derive(Debug)]
struct Asked {
    batch: Batch,
    answer: oneshot::Sender<Result<Vec<Outcome>, NotTaken>>,
}

/// Writes answers and labels to the file. Its steps may be dropped half-way: what was not answered was not accepted.
#[derive(Debug)]
pub struct Keeper {
    queue: Arc<Queue>,
    batches: mpsc::Receiver<Asked>,
    store: Arc<Mutex<Store>>,
    tallied: Arc<Tallied>,
    is_failing: bool,
}

/// Puts labels into the sink.
#[derive(Debug)]
pub struct Sender {
    store: Arc<Mutex<Store>>,
    tallied: Arc<Tallied>,
    sink: Sink,
    objects: Objects,
    down_since: Option<Timestamp>,
}

/// The accuracy of a model's versions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The model.
    pub model: String,
    /// How long answers are remembered: the days that the figures are of.
    pub age_seconds: u64,
    /// The newest version first.
    pub versions: Vec<VersionReport>,
}

/// The accuracy of one version.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VersionReport {
    /// The registry's version number.
    pub version: String,
    /// The digest of its files.
    pub digest: String,
    /// Of all days.
    #[serde(flatten)]
    pub figures: Figures,
    /// Which classes were taken for which; empty for numbers.
    pub confusion: Vec<Confusion>,
    /// Each day on which it answered rows whose label came, the oldest first.
    pub days: Vec<DayReport>,
}

/// The accuracy of what was answered on one day.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DayReport {
    /// The day, UTC.
    pub date: String,
    /// Its figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Why the file cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the file of labels `{path}`")]
pub struct OpenError {
    path: PathBuf,
    #[source]
    source: rusqlite::Error,
}

/// The ends of feedback; the sender is there where labels have somewhere to go.
///
/// # Errors
/// When the file cannot be opened.
pub fn open(config: Config, sink: Option<Sink>) -> Result<(Feedback, Keeper, Option<Sender>), OpenError> {
    let limits =
        Limits { age: config.age, max_bytes: config.max_bytes, sends: config.objects.is_some() && sink.is_some() };
    let store = Store::open(&config.file, limits);
    let store = store.map_err(|source| OpenError { path: config.file, source })?;
    let (store, tallied) = (Arc::new(Mutex::new(store)), Arc::new(Tallied::default()));
    let queue = Arc::new(Queue::new());
    let (batches, asked) = mpsc::channel(BATCHES_MAX);
    let desk = Desk {
        queue: Arc::clone(&queue),
        batches,
        store: Arc::clone(&store),
        tallied: Arc::clone(&tallied),
        max_labels: config.max_labels,
        age: config.age,
    };
    let sender = config.objects.zip(sink).map(|(objects, sink)| Sender {
        store: Arc::clone(&store),
        tallied: Arc::clone(&tallied),
        sink,
        objects,
        down_since: None,
    });
    let keeper = Keeper { queue, batches: asked, store, tallied, is_failing: false };
    Ok((Feedback(Some(Arc::new(desk))), keeper, sender))
}

impl Feedback {
    /// Feedback that takes nothing and costs nothing.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    /// How many labels one request may have; `None` where labels are not taken.
    #[must_use]
    pub fn max_labels(&self) -> Option<usize> {
        self.0.as_ref().map(|desk| desk.max_labels)
    }

    /// Has an answer remembered, if there is room for it.
    pub fn answered(&self, answered: impl FnOnce() -> Answered) {
        if let Some(desk) = &self.0 {
            desk.queue.offer(answered());
        }
    }

    /// Takes the labels of a request. When this returns they are on the disk; one outcome a label, in order.
    ///
    /// # Errors
    /// When none of them was taken.
    pub async fn label(&self, batch: Batch) -> Result<Vec<Outcome>, NotTaken> {
        let Some(desk) = &self.0 else { return Err(NotTaken::Busy) };
        let (answer, answered) = oneshot::channel();
        desk.batches.try_send(Asked { batch, answer }).map_err(|_full| NotTaken::Busy)?;
        // The keeper is gone only when the process is on its way out.
        answered.await.unwrap_or(Err(NotTaken::Busy))
    }

    /// The accuracy of a model's versions; `None` where labels are not taken.
    #[must_use]
    pub fn report(&self, model: &ModelName) -> Option<Report> {
        let desk = self.0.as_ref()?;
        let mut versions = desk.store.lock().tallies(model.as_str());
        versions.sort_by_key(|(known, _)| std::cmp::Reverse(known.version));
        let report = |(known, days): &(Arc<store::Known>, store::Days)| VersionReport {
            version: known.version.to_string(),
            digest: known.digest.to_string(),
            figures: sum(days.values()).figures(),
            confusion: sum(days.values()).confusion(),
            days: days.iter().map(|(day, tally)| DayReport { date: date(*day), figures: tally.figures() }).collect(),
        };
        let versions = versions.iter().map(report).collect();
        Some(Report { model: model.to_string(), age_seconds: desk.age.as_secs(), versions })
    }

    /// The figures of one version; `None` while no label of it has come.
    #[must_use]
    pub fn figures(&self, id: &Identity) -> Option<Figures> {
        let versions = self.0.as_ref()?.store.lock().tallies(id.name.as_str());
        let is_it = |known: &store::Known| known.version == id.version && known.digest == id.digest;
        let days: Vec<_> = versions.into_iter().filter(|(known, _)| is_it(known)).flat_map(|(_, days)| days).collect();
        (!days.is_empty()).then(|| sum(days.iter().map(|(_, tally)| tally)).figures())
    }

    /// The counts so far; `None` where labels are not taken.
    #[must_use]
    pub fn counts(&self) -> Option<Counts> {
        let Desk { queue, store, tallied, .. } = &**self.0.as_ref()?;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Some(Counts {
            matched: count(&tallied.matched),
            changed: count(&tallied.changed),
            duplicate: count(&tallied.duplicate),
            unknown: count(&tallied.unknown),
            refused: count(&tallied.refused),
            stored: count(&tallied.stored),
            pending: store.lock().waiting(),
            rows_dropped: count(&queue.dropped),
            answers_forgotten: count(&tallied.answers_forgotten),
        })
    }
}

fn sum<'a>(tallies: impl Iterator<Item = &'a Arc<Tally>>) -> Tally {
    tallies.fold(Tally::default(), |mut sum, tally| {
        sum.merge(tally);
        sum
    })
}

/// `YYYY-MM-DD`, of days since 1970.
fn date(day: i64) -> String {
    let midnight = Timestamp::from_second(day.saturating_mul(24 * 3600));
    midnight.map(|time| time.strftime("%Y-%m-%d").to_string()).unwrap_or_default()
}

impl Keeper {
    /// Waits until there is something to keep, a label or enough answers or an interval, and keeps it; `now` is asked
    /// when there is. `false` once every [`Feedback`] is gone.
    pub async fn keep_once(&mut self, now: impl Fn() -> Timestamp) -> bool {
        let queue = Arc::clone(&self.queue);
        let mut asked = Vec::new();
        tokio::select! {
            received = self.batches.recv_many(&mut asked, BATCHES_MAX) => if received == 0 { return false },
            () = queue.half_full.notified() => (),
            () = tokio::time::sleep(REMEMBER_INTERVAL) => (),
        }
        self.keep(asked, now()).await;
        true
    }

    /// Keeps all that waits now.
    pub async fn keep_all(&mut self, now: Timestamp) {
        let mut asked = Vec::new();
        while let Ok(one) = self.batches.try_recv() {
            asked.push(one);
        }
        self.keep(asked, now).await;
    }

    /// One commit. Answers first: a label may follow its answer at once.
    async fn keep(&mut self, asked: Vec<Asked>, now: Timestamp) {
        if asked.is_empty() && self.queue.is_empty() {
            return;
        }
        let (queue, store, tallied) = (Arc::clone(&self.queue), Arc::clone(&self.store), Arc::clone(&self.tallied));
        let kept = spawn_blocking(move || keep(&queue, &store, &tallied, asked, now)).await;
        match kept.unwrap_or_else(|panic| Err(panic.to_string())) {
            Ok(()) => self.is_failing = false,
            Err(problem) if !self.is_failing => {
                error!("labels and answers cannot be kept, callers are asked to come again: {problem}");
                self.is_failing = true;
            }
            Err(_) => (),
        }
    }
}

fn keep(
    queue: &Queue,
    store: &Mutex<Store>,
    tallied: &Tallied,
    asked: Vec<Asked>,
    now: Timestamp,
) -> Result<(), String> {
    let answers = queue.drain();
    let (batches, waiting): (Vec<Batch>, Vec<_>) = asked.into_iter().map(|asked| (asked.batch, asked.answer)).unzip();
    let step = match store.lock().keep(&answers, &batches, now) {
        Ok(step) => step,
        Err(error) => {
            let rows: usize = answers.iter().map(|answered| answered.outputs.predictions().len()).sum();
            queue.dropped.fetch_add(rows as u64, Ordering::Relaxed);
            // Whoever does not wait any more needs no answer.
            for waiting in waiting {
                _ = waiting.send(Err(NotTaken::Disk));
            }
            return Err(error.to_string());
        }
    };
    tallied.answers_forgotten.fetch_add(step.forgotten, Ordering::Relaxed);
    for (kept, waiting) in step.kept.into_iter().zip(waiting) {
        let answer = match kept {
            Kept::All(outcomes) => {
                for outcome in &outcomes {
                    tallied.note(outcome);
                }
                Ok(outcomes)
            }
            Kept::NoRoom => Err(NotTaken::NoRoom),
        };
        _ = waiting.send(answer);
    }
    Ok(())
}

/// What keeps labels from the sink.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Put(#[from] PutError),
    #[error("their file cannot be read or written: {0}")]
    Store(#[from] rusqlite::Error),
    #[error(transparent)]
    Encode(#[from] objects::EncodeError),
    #[error("the conversion panicked")]
    Panicked,
}

impl Sender {
    /// Sends the labels that have waited long enough or are many enough, or `all` of them; returns how many are in the
    /// sink now. After a failure it rests, unless `all` are to be sent. May be dropped half-way: what is sent again has
    /// the same name.
    pub async fn flush_once(&mut self, now: Timestamp, all: bool) -> u64 {
        // A clock that was set back ends the rest, too.
        let rests = |since: Timestamp| now.duration_since(since).unsigned_abs() < RETRY_AFTER;
        if !all && self.down_since.is_some_and(rests) {
            return 0;
        }
        let mut stored = 0;
        match self.flush(now, all, &mut stored).await {
            Ok(()) => {
                if self.down_since.take().is_some() {
                    info!("the sink takes labels again");
                }
            }
            Err(error) => {
                if self.down_since.is_none() {
                    warn!("labels wait for the sink: {error}");
                }
                self.down_since = Some(now);
            }
        }
        stored
    }

    async fn flush(&self, now: Timestamp, all: bool, stored: &mut u64) -> Result<(), SendError> {
        let Objects { flush_rows, flush_age, format } = self.objects;
        let age = if all { Duration::ZERO } else { flush_age };
        let before = now.checked_sub(age).unwrap_or(Timestamp::MIN);
        while self.with_store(move |store| store.bundle(flush_rows, before)).await? {}
        let mut last = 0;
        loop {
            let labels = self.with_store(move |store| store.object_after(last)).await?;
            let Some(object) = labels.first().map(|label| label.id) else { return Ok(()) };
            let encoded = spawn_blocking(move || objects::encode(&labels, format)).await;
            let (key, body) = encoded.map_err(|_panic| SendError::Panicked)??;
            // On the heap: the SDK's future takes ten kilobytes.
            Box::pin(self.sink.put(&key, body)).await?;
            let sent = self.with_store(move |store| store.sent(object)).await?;
            self.tallied.stored.fetch_add(sent, Ordering::Relaxed);
            *stored += sent;
            last = object;
        }
    }

    async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, SendError> {
        let store = Arc::clone(&self.store);
        let done = spawn_blocking(move || work(&mut store.lock())).await;
        done.map_err(|_panic| SendError::Panicked)?.map_err(SendError::from)
    }
}

#[cfg(test)]
mod tests;
