//! Rows of the last while, by place: where the request path writes, and the slots the counts are moved to.
//!
//! Threads add to stripes, as in the metrics, so that they rarely meet at a lock. Whoever looks, and a step every few
//! seconds, empties the stripes into the slot of the present moment. Slots older than the window are let go.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

use super::axis::{Axis, MISSING};
use super::state::SavedWindow;
use crate::model::features::{Cell, Inputs};
use crate::model::outputs::{Outputs, Prediction, Value};

/// Sub-windows of a window: it slides in steps of a twelfth.
const SLOTS: u32 = 12;

/// Stripes at most: more would be memory without use.
const STRIPES_MAX: usize = 16;

/// Callers that are counted apart at most; a new one takes the place of the one that was silent longest.
const KEYS_MAX: usize = 32;

/// Where the rows themselves are counted, before all places.
const ROWS: usize = 0;

/// The rows, then rows by place of every subject, one subject after the other.
type Counts = Box<[u32]>;

/// Where the subjects' places are.
#[derive(Debug)]
pub(super) struct Layout {
    features: Box<[Option<Place>]>,
    prediction: Option<Place>,
    score: Option<Place>,
    places: usize,
}

#[derive(Debug)]
struct Place {
    axis: Axis,
    first: usize,
}

/// What a version was asked in the last while.
#[derive(Debug)]
pub(super) struct Window {
    layout: Layout,
    slot: Duration,
    stripes: Box<[Stripe]>,
    ring: Mutex<Ring>,
    by_key: Option<Mutex<Vec<KeyWindow>>>,
}

/// One place to write. Aligned so that two threads on two stripes do not share a cache line.
#[derive(Debug)]
#[repr(align(128))]
struct Stripe(Mutex<Counts>);

/// Slots by their number, ascending.
#[derive(Debug, Default)]
struct Ring(VecDeque<(i64, Counts)>);

#[derive(Debug)]
struct KeyWindow {
    key: Arc<str>,
    fresh: Counts,
    ring: Ring,
    /// The number of the request that was its last.
    used: u64,
}

/// What was counted in a window.
#[derive(Clone, Debug)]
pub(super) struct Counted(Box<[u64]>);

impl Layout {
    /// Places for the features in their order, the predictions and their scores; `None` is not counted.
    pub(super) fn new(features: Vec<Option<Axis>>, prediction: Option<Axis>, score: Option<Axis>) -> Self {
        let mut places = ROWS + 1;
        let mut place = |axis: Option<Axis>| {
            let axis = axis?;
            let first = places;
            places += axis.places();
            Some(Place { axis, first })
        };
        let features = features.into_iter().map(&mut place).collect();
        let (prediction, score) = (place(prediction), place(score));
        Self { features, prediction, score, places }
    }

    fn blank(&self) -> Counts {
        vec![0; self.places].into()
    }

    /// Counts the rows from `first` on.
    fn add(&self, counts: &mut Counts, inputs: &Inputs, outputs: &Outputs, first: usize) {
        count(counts, ROWS, u32::try_from(inputs.rows().saturating_sub(first)).unwrap_or(u32::MAX));
        for row in first..inputs.rows() {
            for (place, cell) in self.features.iter().zip(inputs.row(row)) {
                if let Some(place) = place {
                    count(counts, place.first + place.of_cell(cell), 1);
                }
            }
        }
        for prediction in outputs.predictions().iter().skip(first) {
            if let Some(place) = &self.prediction
                && let Some(at) = place.of_value(&prediction.value)
            {
                count(counts, place.first + at, 1);
            }
            if let Some(place) = &self.score {
                count(counts, place.first + place.of_score(prediction), 1);
            }
        }
    }
}

fn count(counts: &mut Counts, at: usize, more: u32) {
    counts[at] = counts[at].saturating_add(more);
}

impl Place {
    fn of_cell(&self, cell: &Cell) -> usize {
        match cell {
            Cell::Missing => MISSING,
            Cell::Boolean(value) => self.axis.place_of_number(f64::from(u8::from(*value))),
            Cell::Integer(value) => self.axis.place_of_number(nearest(*value)),
            Cell::Float(value) => self.axis.place_of_number(*value),
            Cell::Text(text) => self.axis.place_of_text(text),
        }
    }

    /// Nowhere, if the baseline is of numbers and these are classes, or the other way round.
    fn of_value(&self, value: &Value) -> Option<usize> {
        match (value, &self.axis) {
            (Value::Integer(class), Axis::Texts(_)) => Some(self.axis.place_of_class(*class)),
            (Value::Text(class), Axis::Texts(_)) => Some(self.axis.place_of_text(class)),
            (Value::Number(number), Axis::Numbers(_)) => Some(self.axis.place_of_number(*number)),
            (Value::Integer(_) | Value::Text(_), Axis::Numbers(_)) | (Value::Number(_), Axis::Texts(_)) => None,
        }
    }

    fn of_score(&self, prediction: &Prediction) -> usize {
        prediction.score.map_or(MISSING, |score| self.axis.place_of_number(score))
    }

    fn slice<'c>(&self, counted: &'c Counted) -> &'c [u64] {
        &counted.0[self.first..][..self.axis.places()]
    }
}

impl Counted {
    /// How many rows.
    pub(super) fn rows(&self) -> u64 {
        self.0[ROWS]
    }
}

impl Window {
    /// Nothing counted yet. `length` is how far back it looks; `by_key` whether callers are counted apart, too.
    pub(super) fn new(layout: Layout, length: Duration, by_key: bool) -> Self {
        // Twice the threads that can run, so that two of them seldom share a stripe.
        let stripes = (2 * thread::available_parallelism().map_or(1, usize::from)).min(STRIPES_MAX);
        Self {
            stripes: (0..stripes).map(|_| Stripe(Mutex::new(layout.blank()))).collect(),
            slot: length / SLOTS,
            ring: Mutex::default(),
            by_key: by_key.then(Mutex::default),
            layout,
        }
    }

    /// Counts a request: the part that runs for every one. Allocates nothing, except for a caller that is new.
    pub(super) fn add(&self, inputs: &Inputs, outputs: &Outputs, key: &Arc<str>) {
        self.add_from(0, inputs, outputs, key);
    }

    /// Counts the rows of a request from `first` on.
    pub(super) fn add_from(&self, first: usize, inputs: &Inputs, outputs: &Outputs, key: &Arc<str>) {
        let stripe = &self.stripes[TURN.with(|turn| *turn) % self.stripes.len()];
        self.layout.add(&mut stripe.0.lock(), inputs, outputs, first);
        if let Some(by_key) = &self.by_key {
            let mut keys = by_key.lock();
            let window = KeyWindow::of(&mut keys, key, || self.layout.blank());
            self.layout.add(&mut window.fresh, inputs, outputs, first);
        }
    }

    /// Moves what was counted to the slot of `now`, and lets go of slots that are too old.
    pub(super) fn settle(&self, now: Timestamp) {
        let slot = self.slot_of(now);
        let mut ring = self.ring.lock();
        ring.make_room(slot);
        for stripe in &self.stripes {
            ring.take(slot, &mut stripe.0.lock());
        }
        drop(ring);
        if let Some(by_key) = &self.by_key {
            let mut keys = by_key.lock();
            for key in keys.iter_mut() {
                key.ring.make_room(slot);
                key.ring.take(slot, &mut key.fresh);
            }
            keys.retain(|key| !key.ring.0.is_empty());
        }
    }

    /// What was counted in the window that ends now.
    pub(super) fn counted(&self, now: Timestamp) -> Counted {
        self.settle(now);
        self.ring.lock().sum(self.layout.places)
    }

    /// The same by caller; nothing where callers are not counted apart.
    pub(super) fn counted_by_key(&self, now: Timestamp) -> Option<Vec<(Arc<str>, Counted)>> {
        self.settle(now);
        let keys = self.by_key.as_ref()?.lock();
        Some(keys.iter().map(|key| (Arc::clone(&key.key), key.ring.sum(self.layout.places))).collect())
    }

    /// Rows by place of the feature at `position`, where it is counted.
    pub(super) fn feature<'c>(&self, position: usize, counted: &'c Counted) -> Option<&'c [u64]> {
        self.layout.features[position].as_ref().map(|place| place.slice(counted))
    }

    /// Rows by place of the predictions, where they are counted.
    pub(super) fn prediction<'c>(&self, counted: &'c Counted) -> Option<&'c [u64]> {
        self.layout.prediction.as_ref().map(|place| place.slice(counted))
    }

    /// Rows by place of the scores, where they are counted.
    pub(super) fn score<'c>(&self, counted: &'c Counted) -> Option<&'c [u64]> {
        self.layout.score.as_ref().map(|place| place.slice(counted))
    }

    /// Bytes of counters at most, when every slot is in use and nobody is counted apart.
    pub(super) fn memory_bytes(&self) -> usize {
        (self.stripes.len() + SLOTS as usize) * self.layout.places * size_of::<u32>()
    }

    /// What is in the slots, for another process. Callers are not in it.
    pub(super) fn saved(&self) -> SavedWindow {
        let slots = self.ring.lock().0.iter().map(|(number, counts)| (*number, counts.to_vec())).collect();
        SavedWindow { slot_millis: self.slot_millis().cast_unsigned(), slots }
    }

    /// Takes up what another process has counted, if it counted in the same manner.
    pub(super) fn restore(&self, saved: SavedWindow) {
        let fits = |(_, counts): &(i64, Vec<u32>)| counts.len() == self.layout.places;
        if saved.slot_millis == self.slot_millis().cast_unsigned() && saved.slots.iter().all(fits) {
            let slots = saved.slots.into_iter().take(SLOTS as usize);
            *self.ring.lock() = Ring(slots.map(|(number, counts)| (number, counts.into())).collect());
        }
    }

    fn slot_of(&self, now: Timestamp) -> i64 {
        now.as_millisecond().div_euclid(self.slot_millis())
    }

    fn slot_millis(&self) -> i64 {
        i64::try_from(self.slot.as_millis()).unwrap_or(i64::MAX).max(1)
    }
}

impl KeyWindow {
    /// The window of `key`, made if need be.
    fn of<'k>(keys: &'k mut Vec<Self>, key: &Arc<str>, blank: impl FnOnce() -> Counts) -> &'k mut Self {
        let used = keys.iter().map(|window| window.used).max().map_or(0, |last| last + 1);
        let at = keys.iter().position(|window| window.key == *key).unwrap_or_else(|| {
            if keys.len() >= KEYS_MAX
                && let Some(oldest) = (0..keys.len()).min_by_key(|at| keys[*at].used)
            {
                keys.swap_remove(oldest);
            }
            keys.push(Self { key: Arc::clone(key), fresh: blank(), ring: Ring::default(), used });
            keys.len() - 1
        });
        keys[at].used = used;
        &mut keys[at]
    }
}

impl Ring {
    /// Lets go of what is older than a window that ends in `slot`. After a clock went back, of nothing.
    fn make_room(&mut self, slot: i64) {
        while self.0.front().is_some_and(|(number, _)| *number <= slot - i64::from(SLOTS)) {
            self.0.pop_front();
        }
    }

    /// Moves `fresh` into `slot`, or into the newest if the clock went back.
    fn take(&mut self, slot: i64, fresh: &mut Counts) {
        if fresh.iter().all(|count| *count == 0) {
            return;
        }
        match self.0.back_mut() {
            Some((number, counts)) if *number >= slot => {
                counts.iter_mut().zip(&**fresh).for_each(|(here, more)| *here = here.saturating_add(*more));
            }
            _ => self.0.push_back((slot, fresh.clone())),
        }
        fresh.fill(0);
    }

    fn sum(&self, places: usize) -> Counted {
        let mut sum = vec![0; places];
        for (_, counts) in &self.0 {
            sum.iter_mut().zip(counts).for_each(|(here, more)| *here += u64::from(*more));
        }
        Counted(sum.into())
    }
}

/// The float nearest to a whole number.
#[expect(clippy::cast_precision_loss, reason = "bins are edges between floats")]
pub(super) fn nearest(value: i64) -> f64 {
    value as f64
}

/// Counts the threads that ever wrote.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// This thread's number: neighbours in time get neighbouring stripes.
    static TURN: usize = THREADS.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::features::{Raw, Settings};
    use crate::model::signature::{Column, Kind, Signature};
    use crate::model::{Features, Prediction};

    fn features() -> Features {
        let column = Column { name: "x".into(), kind: Kind::Double, required: false };
        Features::new(&Signature::Columns(vec![column]), Settings::default()).unwrap()
    }

    fn row(value: Option<f64>) -> (Inputs, Outputs) {
        let features = features();
        let mut rows = features.rows();
        rows.begin();
        if let Some(value) = value {
            rows.set("x", Raw::Float(value));
        }
        rows.end();
        let prediction = Prediction { value: Value::Integer(1), label: None, score: Some(0.5) };
        (rows.finish().unwrap(), Outputs::new(vec![prediction], Arc::new([]), vec![]))
    }

    fn window(by_key: bool) -> Window {
        let numbers = || Axis::numbers(vec![0.0, 1.0]);
        let layout = Layout::new(vec![numbers()], Axis::texts(vec!["0".into(), "1".into()]), numbers());
        Window::new(layout, Duration::from_hours(1), by_key)
    }

    fn minute(minute: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + 60 * minute).unwrap()
    }

    fn add(window: &Window, value: Option<f64>, key: &str) {
        let (inputs, outputs) = row(value);
        window.add(&inputs, &outputs, &key.into());
    }

    #[test]
    fn every_value_is_counted_in_its_place() {
        let window = window(false);
        for value in [None, Some(-1.0), Some(0.5), Some(0.5), Some(2.0)] {
            add(&window, value, "k");
        }
        let counted = window.counted(minute(0));
        assert_eq!(window.feature(0, &counted), Some(&[1, 1, 2, 1][..]));
        assert_eq!(window.prediction(&counted), Some(&[0, 0, 5, 0][..]));
        assert_eq!(window.score(&counted), Some(&[0, 0, 5, 0][..]));
        assert!(window.counted_by_key(minute(0)).is_none());
    }

    #[test]
    fn an_hour_later_the_window_is_empty_and_slides_until_then() {
        let window = window(false);
        let rows = |now| window.feature(0, &window.counted(now)).unwrap().iter().sum::<u64>();
        for at in [0, 30] {
            add(&window, Some(0.5), "k");
            window.settle(minute(at));
        }
        assert_eq!([0, 54, 60, 84, 90].map(|at| rows(minute(at))), [2, 2, 1, 1, 0]);
    }

    #[test]
    fn a_clock_that_goes_back_loses_nothing() {
        let window = window(false);
        for at in [100, 0, 100] {
            add(&window, Some(0.5), "k");
            window.settle(minute(at));
        }
        assert_eq!(window.feature(0, &window.counted(minute(100))).unwrap().iter().sum::<u64>(), 3);
    }

    #[test]
    fn callers_are_counted_apart_and_the_silent_one_makes_room() {
        let window = window(true);
        for number in 0..=KEYS_MAX {
            add(&window, Some(0.5), &format!("k{number}"));
            add(&window, Some(0.5), "busy");
        }
        let keys = window.counted_by_key(minute(0)).unwrap();
        assert_eq!(keys.len(), KEYS_MAX);
        let rows = |name: &str| {
            let found = keys.iter().find(|(key, _)| &**key == name);
            found.map(|(_, counted)| window.feature(0, counted).unwrap().iter().sum::<u64>())
        };
        assert_eq!((rows("busy"), rows("k0"), rows("k32")), (Some(33), None, Some(1)));
        assert!(window.counted_by_key(minute(61)).unwrap().is_empty());
    }

    #[test]
    fn threads_lose_no_row() {
        let window = window(false);
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| (0..500).for_each(|_| add(&window, Some(0.5), "k")));
            }
            (0..50).for_each(|_| window.settle(minute(0)));
        });
        assert_eq!(window.feature(0, &window.counted(minute(0))), Some(&[0, 0, 4000, 0][..]));
    }
}
