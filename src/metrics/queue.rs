//! Measurements that a sink has not received yet, cut into batches of one call each.
//!
//! A batch keeps the time it was gathered in until it is received or an hour old; then it is dropped. When the queue
//! takes more memory than [`MEMORY_MAX_BYTES`], the oldest minute is added to the next one: totals stay whole, and
//! only their place in time gets coarser. Pure: no call is made here.

use std::collections::{HashMap, VecDeque};
use std::mem;

use jiff::{SignedDuration, Timestamp};

use super::datum::Line;
use super::delivery::Pending;
use super::histogram::Histogram;
use super::series::Series;

/// Datums of one call at most (`PutMetricData`; the other sinks have no limit, or a wider one).
const DATUMS_MAX: usize = 1000;

/// Bytes of one call at most. The limit is 1 MB, taken to mean before compression; the rest is the call's own.
const CALL_MAX_BYTES: usize = 900_000;

/// How much is kept through an outage.
const MEMORY_MAX_BYTES: usize = 16 << 20;

/// How long something is kept. Older figures help nobody who looks at a dashboard.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(1);

/// Batches by age, the oldest first. Never holds much more than [`MEMORY_MAX_BYTES`] or one minute's measurements,
/// whichever is more.
#[derive(Debug)]
pub(super) struct Queue {
    batches: VecDeque<Batch>,
    /// When the last push was, or when measuring began.
    since: Timestamp,
}

/// What goes into one call.
#[derive(Debug)]
pub(super) struct Batch {
    /// When its measurements began and ended.
    pub(super) span: Span,
    pub(super) lines: Vec<Line>,
}

/// A stretch of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
}

impl Queue {
    /// Nothing yet; measuring begins `now`.
    pub(super) fn new(now: Timestamp) -> Self {
        Self { batches: VecDeque::new(), since: now }
    }

    /// Takes in what was gathered since the last push.
    pub(super) fn push(&mut self, now: Timestamp, gathered: Pending) {
        let lines = gathered.into_iter().map(|(series, values)| Line { series, points: values.points() });
        self.batches.extend(batches(Span { since: self.since, until: now }, lines));
        self.since = now;
        while self.memory_bytes() > MEMORY_MAX_BYTES && self.merge_oldest() {}
    }

    /// The batch at `place`, counted from the oldest.
    pub(super) fn get(&self, place: usize) -> Option<&Batch> {
        self.batches.get(place)
    }

    /// Takes the batch at `place` out; says how many datums it had.
    pub(super) fn remove(&mut self, place: usize) -> usize {
        self.batches.remove(place).map_or(0, |batch| batch.datums())
    }

    /// Drops what is too old; says how many datums that were.
    pub(super) fn expire(&mut self, now: Timestamp) -> usize {
        let before = self.datums();
        self.batches.retain(|batch| now.duration_since(batch.span.until) <= AGE_MAX);
        before - self.datums()
    }

    /// All datums that wait.
    pub(super) fn datums(&self) -> usize {
        self.batches.iter().map(Batch::datums).sum()
    }

    fn memory_bytes(&self) -> usize {
        self.batches.iter().flat_map(|batch| &batch.lines).map(Line::memory_bytes).sum()
    }

    /// Adds the oldest push to the next one. False when there is no other.
    fn merge_oldest(&mut self) -> bool {
        let Some(oldest) = self.batches.front().map(|batch| batch.span) else { return false };
        let Some(next) = self.batches.iter().map(|batch| batch.span).find(|span| *span != oldest) else { return false };
        let merging = |batch: &Batch| [oldest, next].contains(&batch.span);
        let (merging, rest): (VecDeque<Batch>, VecDeque<Batch>) =
            mem::take(&mut self.batches).into_iter().partition(merging);
        let both = Span { since: oldest.since, until: next.until };
        self.batches = batches(both, merge(merging)).chain(rest).collect();
        true
    }
}

impl Span {
    /// The minute it ends in, which is what CloudWatch keeps.
    pub(super) fn minute(self) -> Timestamp {
        let second = self.until.as_second();
        Timestamp::from_second(second - second.rem_euclid(60)).unwrap_or(self.until)
    }
}

impl Batch {
    /// How many datums it goes into.
    pub(super) fn datums(&self) -> usize {
        self.lines.iter().map(Line::datums).sum()
    }
}

/// The lines of several batches, each series once.
fn merge(batches: VecDeque<Batch>) -> impl Iterator<Item = Line> {
    let mut merged: HashMap<Series, Histogram> = HashMap::new();
    for line in batches.into_iter().flat_map(|batch| batch.lines) {
        let values = merged.entry(line.series).or_default();
        line.points.iter().for_each(|point| values.add(point.value, point.count));
    }
    merged.into_iter().map(|(series, values)| Line { series, points: values.points() })
}

/// Cuts `lines` into batches that fit a call. A line always does: it has two datums at most.
fn batches(span: Span, lines: impl Iterator<Item = Line>) -> impl Iterator<Item = Batch> {
    let mut lines = lines.peekable();
    std::iter::from_fn(move || {
        let (mut datums, mut bytes) = (0, 0);
        let mut batch = Vec::new();
        while let Some(line) = lines.next_if(|line| {
            datums += line.datums();
            bytes += line.wire_bytes();
            datums <= DATUMS_MAX && bytes <= CALL_MAX_BYTES
        }) {
            batch.push(line);
        }
        (!batch.is_empty()).then_some(Batch { span, lines: batch })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::histogram::float;
    use crate::metrics::series::FeatureOf;

    fn minute(number: i64) -> Timestamp {
        Timestamp::from_second(number * 60).unwrap()
    }

    fn series(number: usize) -> Series {
        Series::FeatureValue(FeatureOf { model: "m".parse().unwrap(), feature: format!("f{number}").into() })
    }

    /// `width` series of `values` distinct values each.
    fn gathered(width: usize, values: u32) -> HashMap<Series, Histogram> {
        let mut histogram = Histogram::default();
        (0..values).for_each(|step| histogram.add(1.05f64.powi(step.cast_signed()), 1));
        (0..width).map(|number| (series(number), histogram.clone())).collect()
    }

    fn sum(queue: &Queue) -> f64 {
        let lines = queue.batches.iter().flat_map(|batch| &batch.lines);
        lines.flat_map(|line| &line.points).map(|point| point.value * float(point.count)).sum()
    }

    fn check_cut(width: usize, values: u32, calls: usize) {
        let mut queue = Queue::new(minute(0));
        queue.push(minute(1), gathered(width, values));
        assert_eq!(queue.batches.len(), calls);
        for batch in &queue.batches {
            assert!(batch.datums() <= DATUMS_MAX);
            assert!(batch.lines.iter().map(Line::wire_bytes).sum::<usize>() <= CALL_MAX_BYTES);
        }
        assert_eq!(queue.batches.iter().map(|batch| batch.lines.len()).sum::<usize>(), width);
    }

    #[test]
    fn minutes_are_cut_by_count_and_by_size() {
        check_cut(0, 0, 0);
        check_cut(1000, 1, 1);
        check_cut(1001, 1, 2);
        check_cut(1000, 150, 4);
        check_cut(300, 300, 2);
    }

    #[test]
    fn an_outage_of_any_length_takes_bounded_memory_and_loses_nothing_for_an_hour() {
        let mut queue = Queue::new(minute(0));
        let one = gathered(500, 200);
        let in_one: f64 = one.values().map(|values| values.total().1).sum();
        for number in 1..=60 {
            queue.push(minute(number), one.clone());
            assert_eq!(queue.expire(minute(number)), 0);
            assert!(queue.memory_bytes() <= MEMORY_MAX_BYTES);
        }
        assert!((sum(&queue) / (60.0 * in_one) - 1.0).abs() < 1e-9);
        let ats: Vec<Timestamp> = queue.batches.iter().map(|batch| batch.span.until).collect();
        assert!(ats.is_sorted());
        // Minutes that were added up are one stretch of time, from the first to the last of them.
        assert_eq!(queue.batches.front().map(|batch| batch.span.since), Some(minute(0)));
        let spans: Vec<Span> = queue.batches.iter().map(|batch| batch.span).collect();
        assert!(spans.windows(2).all(|two| two[0] == two[1] || two[0].until == two[1].since));
        assert_eq!(ats.last(), Some(&minute(60)));
    }

    #[test]
    fn what_is_over_an_hour_old_is_dropped() {
        let mut queue = Queue::new(minute(0));
        queue.push(minute(0), gathered(3, 151));
        queue.push(minute(1), gathered(1, 1));
        assert_eq!(queue.expire(minute(60)), 0);
        assert_eq!(queue.expire(minute(61)), 6);
        assert_eq!(queue.datums(), 1);
    }
}
