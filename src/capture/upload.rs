//! From closed segments to objects: what to send, when to try again, what to delete.
//!
//! A segment is deleted only after the sink has confirmed its object. A crash in between sends the same rows under the
//! same key again, which the sink then already has. Rows come twice only if a segment was damaged on the disk in just
//! that moment, or if the disk failed a write and the gateway could not cut the segment: its last batch then stands in
//! two.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Mutex as Turn;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use crate::model::Digest;

use super::disk::Disk;
use super::manifest::{Ledger, Listed};
use super::queue::Queue;
use super::segment::{self, Header, Schema, ValueKind};
use super::sink::{PutError, Sink};
use super::spool::{self, Closed, Spool};
use super::{Flushed, Format, blocking, csv, jsonl, parquet};

/// Waits between two tries of a sink that is down, doubled from the first to the last.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_LAST: Duration = Duration::from_mins(5);

/// Sends segments to the sink, four at a time.
#[derive(Debug)]
pub(super) struct Uploader {
    sink: Sink,
    format: Format,
    disk: Arc<dyn Disk>,
    spool: Arc<Mutex<Spool>>,
    queue: Arc<Queue>,
    health: Health,
    ledger: Mutex<Ledger>,
    /// Held while a segment is converted, which takes some ten times its size: one at a time keeps up with any sink, and
    /// four would take the memory of four.
    conversion: Turn<()>,
}

/// Segments to be sent in one go, and what came of them.
#[derive(Debug)]
struct Round {
    left: VecDeque<Closed>,
    flushed: Flushed,
    failure: Option<SendError>,
}

/// A segment ready for the sink.
struct Object {
    body: Vec<u8>,
    listed: Listed,
}

/// Why a segment still waits.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Put(#[from] PutError),
    #[error("samples are in the sink, but their segment cannot be deleted: {0}")]
    Delete(io::Error),
}

/// Why a segment will never be an object.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("it is damaged")]
    Damaged,
    #[error("it does not become Parquet: {0}")]
    Parquet(#[from] ::parquet::errors::ParquetError),
    #[error("it does not become JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("its conversion panicked")]
    Panicked,
}

impl Uploader {
    pub(super) fn new(
        sink: Sink,
        format: Format,
        disk: Arc<dyn Disk>,
        spool: Arc<Mutex<Spool>>,
        queue: Arc<Queue>,
        seed: u64,
    ) -> Self {
        let ledger = Mutex::new(Ledger::new(seed));
        Self { sink, format, disk, spool, queue, health: Health::new(seed), ledger, conversion: Turn::default() }
    }

    /// Closes what is due and sends what is closed. May be dropped half-way: what is not settled is sent again.
    pub(super) async fn flush(&mut self, now: Timestamp, all: bool) -> Flushed {
        let closed = self.with_spool(move |spool, _| {
            spool.close_due(now, all);
            spool.closed().to_vec()
        });
        for segment in closed.await.into_iter().filter(|segment| segment.rows.is_none()) {
            self.recover(segment).await;
        }
        let mut flushed = Flushed::default();
        if all || self.health.is_due(now) {
            flushed = self.send_all(now).await;
        }
        if flushed.objects > 0 {
            self.list(now).await;
        }
        flushed.waiting =
            self.with_spool(|spool, _| spool.closed().iter().filter_map(|segment| segment.rows).sum()).await;
        flushed
    }

    /// Counts what an earlier process left in a segment.
    async fn recover(&self, segment: Closed) {
        let survey = {
            let (disk, segment) = (Arc::clone(&self.disk), segment.clone());
            blocking(move || {
                let id = spool::id_in_name(&segment.path).unwrap_or_default();
                // What was written and never synced may be in it. It is kept, so that a loss of power, which may bring
                // the file back, brings back these very rows.
                _ = disk.sync(&segment.path);
                spool::read(&*disk, &segment).map(|bytes| segment::survey(&bytes, id))
            })
        };
        let survey = match survey.await {
            Ok(survey) => survey,
            Err(error) => return self.give_up(&segment, error.into()).await,
        };
        self.with_spool(move |spool, queue| {
            if spool.set_rows(&segment.path, survey.whole) {
                queue.tally.recovered(survey);
                info!(rows = survey.whole, damaged = survey.damaged, "taking up samples that an earlier process left");
            }
        })
        .await;
    }

    /// Sends what is closed until all is sent or something fails.
    async fn send_all(&mut self, now: Timestamp) -> Flushed {
        let left = self.with_spool(|spool, _| spool.closed().to_vec()).await.into();
        let round = Mutex::new(Round { left, flushed: Flushed::default(), failure: None });
        if self.health.is_down() {
            self.send_next(&round).await; // one to see whether the sink is back
        }
        let work = || async { while self.send_next(&round).await {} };
        tokio::join!(work(), work(), work(), work());
        let Round { flushed, failure, .. } = round.into_inner();
        match failure {
            Some(failure) => self.health.failed(&failure, now),
            None if flushed.objects > 0 => self.health.succeeded(),
            None => (),
        }
        flushed
    }

    /// Writes down what was sent. What cannot be written now is written with the next objects.
    async fn list(&self, now: Timestamp) {
        let Some(manifest) = self.ledger.lock().manifest(now, self.queue.tally.counts()) else { return };
        let put = Box::pin(self.sink.put(&manifest.key, manifest.body)).await;
        self.ledger.lock().settle(&manifest.lists, put);
    }

    /// Sends one segment; `false` when there is none left to send in this round.
    async fn send_next(&self, round: &Mutex<Round>) -> bool {
        let Some(segment) = round.lock().next() else { return false };
        let sent = match self.prepare(&segment).await {
            Ok(object) => self.send(&segment, object).await,
            Err(unusable) => {
                self.give_up(&segment, unusable).await;
                return true;
            }
        };
        if sent.is_err() {
            self.with_spool(move |spool, _| spool.put_last(&segment.path)).await;
        }
        round.lock().note(sent);
        true
    }

    /// Reads a segment and makes its object.
    async fn prepare(&self, segment: &Closed) -> Result<Object, Unusable> {
        let (disk, segment, format) = (Arc::clone(&self.disk), segment.clone(), self.format);
        let _turn = self.conversion.lock().await;
        let object = spawn_blocking(move || object_of(spool::read(&*disk, &segment)?, format));
        object.await.unwrap_or(Err(Unusable::Panicked))
    }

    /// Puts an object, and then deletes its segment. Gives back the rows.
    async fn send(&self, segment: &Closed, object: Object) -> Result<u64, SendError> {
        // Boxed, because the SDK's future takes ten kilobytes and four of these run at a time.
        Box::pin(self.sink.put(&object.listed.key, object.body)).await?;
        let (path, rows) = (Arc::clone(&segment.path), object.listed.rows);
        self.ledger.lock().note(object.listed);
        self.with_spool(move |spool, queue| {
            if let Some(segment) = spool.remove(&path).map_err(SendError::Delete)? {
                settle(queue, &segment, rows);
            }
            Ok(rows)
        })
        .await
    }

    /// Counts a segment as lost. Its file is deleted if nothing in it can be read, else left for the next process: a
    /// disk or a gateway that does better may still deliver it.
    async fn give_up(&self, segment: &Closed, reason: Unusable) {
        let path = Arc::clone(&segment.path);
        self.with_spool(move |spool, queue| {
            let removed = match reason {
                Unusable::Damaged => spool.remove(&path).unwrap_or_else(|_| spool.forget(&path)),
                Unusable::Read(_) | Unusable::Parquet(_) | Unusable::Json(_) | Unusable::Panicked => {
                    spool.forget(&path)
                }
            };
            if let Some(segment) = removed {
                error!(segment = %path.display(), "a segment of samples is lost: {reason}");
                settle(queue, &segment, 0);
            }
        })
        .await;
    }

    async fn with_spool<T: Send + 'static>(&self, work: impl FnOnce(&mut Spool, &Queue) -> T + Send + 'static) -> T {
        let (spool, queue) = (Arc::clone(&self.spool), Arc::clone(&self.queue));
        blocking(move || work(&mut spool.lock(), &queue)).await
    }
}

impl Round {
    /// The oldest segment, unless something has failed.
    fn next(&mut self) -> Option<Closed> {
        self.failure.is_none().then(|| self.left.pop_front()).flatten()
    }

    fn note(&mut self, sent: Result<u64, SendError>) {
        match sent {
            Ok(rows) => {
                self.flushed.stored += rows;
                self.flushed.objects += 1;
            }
            Err(error) => _ = self.failure.get_or_insert(error),
        }
    }
}

/// Counts a segment that left the spool: `stored` of its rows are in the sink, the rest was damaged.
fn settle(queue: &Queue, segment: &Closed, stored: u64) {
    let rows = segment.rows.unwrap_or(stored);
    let lost = rows.saturating_sub(stored);
    if lost > 0 {
        warn!(segment = %segment.path.display(), rows = lost, "{lost} rows of a damaged segment of samples are lost");
    }
    queue.tally.settled(rows - lost, lost);
}

fn object_of(bytes: Vec<u8>, format: Format) -> Result<Object, Unusable> {
    let contents = segment::read(&bytes).ok_or(Unusable::Damaged)?;
    if contents.samples.is_empty() {
        return Err(Unusable::Damaged);
    }
    let digest = segment::digest(&bytes).ok_or(Unusable::Damaged)?;
    let key = object_key(&contents.header, digest, format).ok_or(Unusable::Damaged)?;
    drop(bytes); // not held beside the object
    let body = match format {
        Format::Parquet => parquet::encode(&contents)?,
        Format::Jsonl => jsonl::encode(&contents)?.into_bytes(),
        Format::Csv => csv::encode(&contents).into_bytes(),
    };
    Ok(Object { listed: Listed::of(key, contents.rows(), &body), body })
}

/// `model=<name>/version=<version>/date=<YYYY-MM-DD>/hour=<HH>/<digest>.parquet`, by the hour of the samples; or
/// `<name>/<version>/<YYYY>/<MM>/<DD>/<HH>/<digest>.jsonl`, where SageMaker's tools look for an endpoint and its variant.
/// The digest is half of the segment's, so that the same segment always has the same key, also if a loss of power brought
/// it back with something behind what was accepted.
fn object_key(header: &Header, digest: Digest, format: Format) -> Option<String> {
    let hour = Timestamp::from_second(header.hour.checked_mul(3600)?).ok()?;
    let mut name = digest.hex();
    name.truncate(32);
    let Schema { model, version, .. } = &header.schema;
    let partition = hour.strftime("date=%Y-%m-%d/hour=%H");
    // As no reader of the samples expects: their columns are others.
    let above = if header.schema.prediction == ValueKind::Nothing { "_failed/" } else { "" };
    Some(match format {
        Format::Parquet => format!("{above}model={model}/version={version}/{partition}/{name}.parquet"),
        Format::Csv => format!("{above}model={model}/version={version}/{partition}/{name}.csv"),
        Format::Jsonl => format!("{above}{model}/{version}/{}/{name}.jsonl", hour.strftime("%Y/%m/%d/%H")),
    })
}

/// Whether the sink works, and when to ask it again if not.
#[derive(Debug)]
struct Health {
    down: Option<Down>,
    jitter: fastrand::Rng,
}

#[derive(Clone, Copy, Debug)]
struct Down {
    denied: bool,
    since: Timestamp,
    tries: u32,
    wait: Duration,
}

impl Health {
    fn new(seed: u64) -> Self {
        Self { down: None, jitter: fastrand::Rng::with_seed(seed) }
    }

    fn is_down(&self) -> bool {
        self.down.is_some()
    }

    /// A clock that was set back makes it due too.
    fn is_due(&self, now: Timestamp) -> bool {
        self.down.is_none_or(|down| now.duration_since(down.since).unsigned_abs() >= down.wait)
    }

    fn succeeded(&mut self) {
        if self.down.take().is_some() {
            info!("the sink takes samples again");
        }
    }

    fn failed(&mut self, failure: &SendError, now: Timestamp) {
        let denied = matches!(failure, SendError::Put(PutError::Denied(_)));
        if self.down.is_none_or(|down| down.denied != denied) {
            warn!("samples wait in the spool: {failure}");
        }
        let tries = self.down.map_or(0, |down| down.tries);
        let wait = if denied { BACKOFF_LAST } else { self.backoff(tries) };
        self.down = Some(Down { denied, since: now, tries: tries + 1, wait });
    }

    /// From half the wait to all of it, so that many gateways do not come back at once.
    fn backoff(&mut self, tries: u32) -> Duration {
        let wait = BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(tries)).min(BACKOFF_LAST);
        wait.mul_f64(0.5 + self.jitter.f64() / 2.0)
    }
}

#[cfg(test)]
mod tests;
