//! Everything since the process began, and the cap on how many series there may be.
//!
//! A version that is no longer loaded keeps its place until another series needs it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::histogram::Histogram;
use super::series::{Scope, Series};
use super::window::{Codes, Durations};
use crate::model::Identity;

/// Requests by model version (or none) and by the code their callers saw.
pub(super) type Answers = BTreeMap<(Option<Scope>, &'static str), u64>;

/// Counts and sums by series.
#[derive(Clone, Debug)]
pub(super) struct Totals {
    max_series: usize,
    series: BTreeMap<Series, Kept>,
    answers: Answers,
    durations: BTreeMap<Scope, Durations>,
    refused: u64,
    /// How often the limits of plans were passed. The configuration bounds them, so they are not under the cap.
    limits: BTreeMap<Series, u64>,
}

#[derive(Clone, Debug)]
struct Kept {
    total: Total,
    /// The version it was last measured of. When that is gone, so may the series be.
    holder: Weak<Identity>,
}

/// How many values were measured, and their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Total {
    pub(super) count: u64,
    pub(super) sum: f64,
}

impl Totals {
    /// Nothing yet. `SeriesRefused` has one of the `max_series` places from the start, to be able to tell.
    pub(super) fn new(max_series: usize) -> Self {
        Self {
            max_series,
            series: BTreeMap::new(),
            answers: Answers::new(),
            durations: BTreeMap::new(),
            refused: 0,
            limits: BTreeMap::new(),
        }
    }

    /// Adds what was measured of `series` while `id` answered, and says whether there was room for it.
    pub(super) fn add(&mut self, id: &Arc<Identity>, series: &Series, values: &Histogram) -> bool {
        let (count, sum) = values.total();
        if !self.series.contains_key(series) && self.is_full() {
            self.refused += count;
            return false;
        }
        let kept =
            self.series.entry(series.clone()).or_insert_with(|| Kept { total: Total::default(), holder: Weak::new() });
        kept.total.count += count;
        kept.total.sum += sum;
        kept.holder = Arc::downgrade(id);
        true
    }

    /// Adds the requests and durations of a version whose series [have room](Self::add).
    pub(super) fn add_version(&mut self, id: &Identity, codes: &Codes, durations: &Durations) {
        let scope = Scope::version(id);
        if self.series.contains_key(&Series::Requests(scope.clone())) {
            self.add_answers(Some(&scope), codes);
            self.durations.entry(scope).or_default().merge(durations);
        }
    }

    /// Adds requests that ended before a model was found.
    pub(super) fn add_unmodelled(&mut self, codes: &Codes) {
        self.add_answers(None, codes);
    }

    /// Adds requests that passed a limit of a plan.
    pub(super) fn add_limit(&mut self, series: Series, count: u64) {
        *self.limits.entry(series).or_default() += count;
    }

    /// How often the limits of plans were passed.
    pub(super) fn limits(&self) -> &BTreeMap<Series, u64> {
        &self.limits
    }

    /// Forgets the series of versions that are no longer loaded, if there is no room for others.
    pub(super) fn make_room(&mut self) {
        if self.is_full() {
            self.series.retain(|_, kept| kept.holder.strong_count() > 0);
            let series = &self.series;
            let is_kept = |scope: &Scope| series.contains_key(&Series::Requests(scope.clone()));
            self.durations.retain(|scope, _| is_kept(scope));
            self.answers.retain(|(scope, _), _| scope.as_ref().is_none_or(is_kept));
        }
    }

    /// Measurements that found no room so far.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    /// Every series with its total, in a fixed order.
    pub(super) fn series(&self) -> impl Iterator<Item = (&Series, Total)> {
        self.series.iter().map(|(series, kept)| (series, kept.total))
    }

    /// Requests by version and code.
    pub(super) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// How long the requests of each version took.
    pub(super) fn durations(&self) -> impl Iterator<Item = (&Scope, &Durations)> {
        self.durations.iter()
    }

    fn is_full(&self) -> bool {
        self.series.len() + 1 >= self.max_series
    }

    fn add_answers(&mut self, scope: Option<&Scope>, codes: &Codes) {
        for (code, count) in codes.iter() {
            *self.answers.entry((scope.cloned(), code)).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Digest, Version};

    fn identity(version: u64) -> Arc<Identity> {
        Arc::new(Identity::new("m".parse().unwrap(), Version(version), Digest([0; 32]), None))
    }

    fn measure(totals: &mut Totals, id: &Arc<Identity>) -> bool {
        totals.add(id, &Series::Requests(Scope::version(id)), &Histogram::of(1.0, 2))
    }

    #[test]
    fn a_series_over_the_cap_is_refused_and_counted_and_the_others_go_on() {
        let mut totals = Totals::new(3);
        let ids = [1, 2, 3].map(identity);
        assert_eq!(ids.each_ref().map(|id| measure(&mut totals, id)), [true, true, false]);
        assert_eq!(totals.refused(), 2);
        totals.make_room();
        assert_eq!(ids.each_ref().map(|id| measure(&mut totals, id)), [true, true, false]);
    }

    #[test]
    fn a_version_that_is_gone_makes_room_for_the_next() {
        let mut totals = Totals::new(3);
        for version in 0..100 {
            totals.make_room();
            let id = identity(version);
            assert!(measure(&mut totals, &id));
            totals.add_version(&id, &Codes::default(), &Durations::default());
        }
        assert_eq!((totals.refused(), totals.series().count(), totals.durations().count()), (0, 2, 2));
    }
}
