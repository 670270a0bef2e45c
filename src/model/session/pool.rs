//! The session slots of a version: as many runs at one time as there are slots, and a bounded line for them.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use ort::session::{Session, SessionInputValue};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::{PredictError, Stage};

/// How many may always wait for each slot, however long their runs are.
const WAITING_PER_SLOT: usize = 4;

/// How long the runs of a longer line may take for each slot, at the pace of the warm-up: a caller would rather wait so
/// long than ask again. The requests that may be under way at all bound the line, too.
const LONGEST_LINE: Duration = Duration::from_millis(100);

/// A session, and the tensors for one row that it is run with.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) session: Session,
    pub(super) row: Row,
}

/// The tensors for one row, in the order of the graph's inputs.
pub(super) struct Row(pub(super) Vec<SessionInputValue<'static>>);

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Row").field(&self.0.len()).finish()
    }
}

/// All slots of a version.
#[derive(Debug)]
pub(super) struct Slots {
    idle: ArrayQueue<Slot>,
    /// One permit for each slot in `idle`.
    permits: Semaphore,
    waiting: AtomicUsize,
    /// Nanoseconds that their runs are expected to take together.
    waiting_nanos: AtomicU64,
}

impl Slots {
    pub(super) fn new(slots: Vec<Slot>) -> Arc<Self> {
        let idle = ArrayQueue::new(slots.len().max(1));
        let permits = Semaphore::new(slots.len());
        for slot in slots {
            assert!(idle.push(slot).is_ok(), "the queue has room for every slot");
        }
        Arc::new(Self { idle, permits, waiting: AtomicUsize::new(0), waiting_nanos: AtomicU64::new(0) })
    }

    /// A slot for a run that is expected to take `run`, waiting for one until `deadline`. For each slot
    /// [`WAITING_PER_SLOT`] may wait, and more as long as all of them together take no longer than [`LONGEST_LINE`].
    pub(super) async fn acquire(self: &Arc<Self>, run: Duration, deadline: Instant) -> Result<Lease, PredictError> {
        if let Some(lease) = self.try_acquire() {
            return Ok(lease);
        }
        let _place = self.stand_in_line(run)?;
        let acquired = timeout_at(deadline, self.permits.acquire()).await;
        let permit = acquired.map_err(|_| PredictError::DeadlineExceeded { stage: Stage::Queue })?;
        permit.expect("the semaphore is never closed").forget();
        Ok(self.lease())
    }

    /// A slot, if one is idle.
    pub(super) fn try_acquire(self: &Arc<Self>) -> Option<Lease> {
        self.permits.try_acquire().ok()?.forget();
        Some(self.lease())
    }

    /// The slot that belongs to a permit just taken.
    fn lease(self: &Arc<Self>) -> Lease {
        let slot = self.idle.pop().expect("there is a permit for each idle slot, and slots come back before permits");
        Lease { slot: Some(slot), slots: Arc::clone(self) }
    }

    fn stand_in_line(&self, run: Duration) -> Result<Place<'_>, PredictError> {
        // One that takes longer fills a line by itself.
        let nanos = nanos(run.min(LONGEST_LINE));
        let slots = self.idle.capacity();
        let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
        let work = self.waiting_nanos.fetch_add(nanos, Ordering::Relaxed) + nanos;
        let place = Place { slots: self, nanos };
        let is_short = work <= nanos_of_line(slots);
        if is_short || ahead < WAITING_PER_SLOT * slots { Ok(place) } else { Err(PredictError::Overloaded) }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What the runs of the longest line may take.
fn nanos_of_line(slots: usize) -> u64 {
    nanos(LONGEST_LINE).saturating_mul(slots as u64)
}

/// A place in the line for slots, given up when dropped.
struct Place<'s> {
    slots: &'s Slots,
    nanos: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.slots.waiting.fetch_sub(1, Ordering::Relaxed);
        self.slots.waiting_nanos.fetch_sub(self.nanos, Ordering::Relaxed);
    }
}

/// A slot for the time of a run. It goes back when this is dropped, also by a panic or a cancelled request.
#[derive(Debug)]
pub(super) struct Lease {
    slot: Option<Slot>,
    slots: Arc<Slots>,
}

const HELD: &str = "a lease holds its slot until it is dropped";

impl Deref for Lease {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        self.slot.as_ref().expect(HELD)
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Slot {
        self.slot.as_mut().expect(HELD)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            // The queue has a place for every slot, so this cannot fail. First the slot, then the permit for it.
            let _ = self.slots.idle.push(slot);
            self.slots.permits.add_permits(1);
        }
    }
}
