//! Between the request path and the writer: the sampler, the bounded queue, and the counts of both ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;
use tokio::sync::Notify;

use crate::model::{Cell, ModelName, Prediction};

use super::segment::Survey;
use super::spool::Appended;
use super::{Counts, Record, SamplingRate};

/// Holds 4096 records, 65,536 rows and 64 MiB, whichever is reached first; what comes after is dropped and counted.
/// The rows and bytes are bounded because a record may have a thousand rows of long texts.
const RECORDS: usize = 4096;
const ROWS: usize = 65_536;
const BYTES: usize = 64 << 20;

/// A batch ends here, so that it and its encoding stay small beside the queue.
const BATCH_BYTES: usize = 16 << 20;

/// The queue, and what is known of what passed through it.
#[derive(Debug)]
pub(super) struct Queue {
    sampler: Sampler,
    records: ArrayQueue<Queued>,
    rows: AtomicUsize,
    bytes: AtomicUsize,
    ended: AtomicBool,
    offered: Notify,
    pub(super) tally: Tally,
}

#[derive(Debug)]
struct Queued {
    record: Record,
    rows: usize,
    bytes: usize,
}

impl Queue {
    pub(super) fn new(rate: SamplingRate, rates: BTreeMap<ModelName, SamplingRate>, seed: u64) -> Self {
        Self {
            sampler: Sampler { rate, rates, state: AtomicU64::new(seed) },
            records: ArrayQueue::new(RECORDS),
            rows: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            offered: Notify::new(),
            tally: Tally::default(),
        }
    }

    /// Never waits: takes no lock, and does no more than a few atomic additions beside `record`.
    pub(super) fn offer(&self, model: &ModelName, rows: usize, record: impl FnOnce() -> Record) {
        if !self.sampler.takes(model) {
            return;
        }
        if self.rows.load(Ordering::Relaxed).saturating_add(rows) > ROWS {
            return self.tally.refused(rows as u64);
        }
        let record = record();
        self.enqueue(Queued { rows: record.rows(), bytes: weight(&record), record });
    }

    fn enqueue(&self, queued: Queued) {
        let rows = queued.rows as u64;
        // Counted before the writer can see it, so that the count never runs below zero.
        add(&self.tally.pending, rows);
        if self.push(queued) {
            add(&self.tally.sampled, rows);
            self.offered.notify_one();
        } else {
            subtract(&self.tally.pending, rows);
            self.tally.refused(rows);
        }
    }

    /// Whether there was room.
    fn push(&self, queued: Queued) -> bool {
        let (rows, bytes) = (queued.rows, queued.bytes);
        let rows_before = self.rows.fetch_add(rows, Ordering::Relaxed);
        let bytes_before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = rows_before.saturating_add(rows) <= ROWS && bytes_before.saturating_add(bytes) <= BYTES;
        let pushed = fits && self.records.push(queued).is_ok();
        if !pushed {
            self.release(rows, bytes);
        }
        pushed
    }

    fn release(&self, rows: usize, bytes: usize) {
        self.rows.fetch_sub(rows, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns once there is something in the queue, with `true`; or once it is empty for good, with `false`.
    pub(super) async fn ready(&self) -> bool {
        loop {
            // Asked first: what was offered before the end is then seen.
            let ended = self.ended.load(Ordering::Acquire);
            if !self.records.is_empty() {
                return true;
            }
            if ended {
                return false;
            }
            self.offered.notified().await;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Takes the oldest records, as many as make a batch.
    pub(super) fn batch(&self) -> Vec<Record> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < RECORDS && bytes < BATCH_BYTES {
            let Some(queued) = self.records.pop() else { break };
            self.release(queued.rows, queued.bytes);
            bytes += queued.bytes;
            batch.push(queued.record);
        }
        batch
    }

    /// Nothing is offered any more.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.offered.notify_one();
    }
}

/// What a record takes in memory, roughly: its cells, their texts, and the answers.
fn weight(record: &Record) -> usize {
    let rows = record.rows();
    let cells = (0..rows).flat_map(|row| record.inputs.row(row));
    let text = |cell: &Cell| if let Cell::Text(text) = cell { text.len() } else { 0 };
    let inputs: usize = cells.map(|cell| size_of::<Cell>() + text(cell)).sum();
    let outputs = rows * (size_of::<Prediction>() + size_of_val(record.outputs.probabilities(0)));
    size_of::<Record>() + inputs + outputs
}

/// Chooses a share of the requests.
#[derive(Debug)]
struct Sampler {
    rate: SamplingRate,
    /// In place of `rate`, for single models.
    rates: BTreeMap<ModelName, SamplingRate>,
    state: AtomicU64,
}

impl Sampler {
    fn takes(&self, model: &ModelName) -> bool {
        let share = self.rates.get(model).unwrap_or(&self.rate).get();
        // All and none need no random number.
        share >= 1.0 || (share > 0.0 && self.random() < share)
    }

    /// From 0 to below 1: splitmix64, whose state is a counter and so needs no more than an atomic addition.
    fn random(&self) -> f64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut bits = self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        #[expect(clippy::cast_precision_loss, reason = "53 bits are what a double holds")]
        let numerator = (bits >> 11) as f64;
        numerator * (f64::EPSILON / 2.0)
    }
}

/// The counts, as both ends add to them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    sampled: AtomicU64,
    stored: AtomicU64,
    dropped_queue_full: AtomicU64,
    dropped_spool_full: AtomicU64,
    failed: AtomicU64,
    pending: AtomicU64,
}

impl Tally {
    /// The queue was full.
    fn refused(&self, rows: u64) {
        add(&self.sampled, rows);
        add(&self.dropped_queue_full, rows);
    }

    /// A batch left the queue: what was accepted is still pending, the rest is not.
    pub(super) fn spooled(&self, appended: Appended) {
        add(&self.dropped_spool_full, appended.no_room);
        add(&self.failed, appended.failed);
        subtract(&self.pending, appended.no_room + appended.failed);
    }

    /// Rows that an earlier process left: some can be read, some not.
    pub(super) fn recovered(&self, survey: Survey) {
        add(&self.sampled, survey.whole.saturating_add(survey.damaged));
        add(&self.pending, survey.whole);
        add(&self.failed, survey.damaged);
    }

    /// A segment left the spool.
    pub(super) fn settled(&self, stored: u64, failed: u64) {
        add(&self.stored, stored);
        add(&self.failed, failed);
        subtract(&self.pending, stored + failed);
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            sampled: self.sampled.load(Ordering::Relaxed),
            stored: self.stored.load(Ordering::Relaxed),
            dropped_queue_full: self.dropped_queue_full.load(Ordering::Relaxed),
            dropped_spool_full: self.dropped_spool_full.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            pending: self.pending.load(Ordering::Relaxed),
        }
    }
}

fn add(count: &AtomicU64, rows: u64) {
    count.fetch_add(rows, Ordering::Relaxed);
}

fn subtract(count: &AtomicU64, rows: u64) {
    count.fetch_sub(rows, Ordering::Relaxed);
}
