//! What can be said of a version's rows: the scores of each feature, what they would be by chance, and a verdict.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use super::axis::{Axis, MISSING};
use super::baseline::Subject;
use super::{Config, scores};
use crate::model::Identity;

/// Drift of one version in its window.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which version.
    #[serde(skip)]
    pub id: Arc<Identity>,
    /// The model's name.
    pub model: String,
    /// The registry's version number.
    pub version: String,
    /// Rows in the window.
    pub rows: u64,
    /// How far back it looks, in seconds.
    pub window_seconds: u64,
    /// Below so many rows there is no verdict.
    pub min_rows: u64,
    /// What the window is compared with.
    pub baseline: Source,
    /// Rows of the baseline; of one that is being made, so far.
    pub baseline_rows: u64,
    /// Why the version's own baseline is not used, or not for every feature.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trouble: Vec<String>,
    /// Bytes of counters this version holds at most.
    pub memory_bytes: usize,
    /// The features in the model's order.
    pub features: Vec<Score>,
    /// The class the model predicts, or a regression's value.
    pub prediction: Option<Score>,
    /// The score, where the model gives one.
    pub score: Option<Score>,
}

/// Where a baseline comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The version's own file.
    Stored,
    /// The first rows the version was asked.
    Live,
    /// Those rows are still being gathered.
    Learning,
}

/// How far one feature is from its baseline.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    /// The feature's name in the model.
    pub name: String,
    /// What it is compared with.
    pub baseline: Source,
    /// Rows in the window.
    pub rows: u64,
    /// Rows of the baseline.
    pub baseline_rows: u64,
    /// Population stability index over all places, the missing and unseen among them.
    pub psi: f64,
    /// What the PSI must exceed to be called drift: the configured threshold, or chance if that is more.
    pub threshold: f64,
    /// What the PSI of an unchanged population exceeds once in twenty windows, in any feature. So do all that are called
    /// so of their score.
    pub by_chance: f64,
    /// Jensen-Shannon distance, base 2, over the same places.
    pub js: f64,
    /// The same of this.
    pub js_by_chance: f64,
    /// Numbers: the largest difference between the cumulative distributions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ks: Option<f64>,
    /// The same of this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ks_by_chance: Option<f64>,
    /// Texts: the largest difference between two shares.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linf: Option<f64>,
    /// The same of this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linf_by_chance: Option<f64>,
    /// That difference less what samples of these sizes differ by anyway.
    pub robust: f64,
    /// Rows without a value.
    pub missing: Shares,
    /// Texts: rows with none of the baseline's categories.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unseen: Option<Shares>,
    /// Numbers: rows below or above all of the baseline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_of_range: Option<Shares>,
    /// The place that changed most, where that alone is drift.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
    /// The verdict in words.
    pub verdict: Verdict,
    /// The verdict; none where there is not enough data.
    pub drifted: Option<bool>,
}

/// A share of the rows, and how much more that is than in the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shares {
    /// How many rows of the window.
    pub rows: u64,
    /// Their share.
    pub share: f64,
    /// In the window less in the baseline.
    pub delta: f64,
    /// What that difference of an unchanged population exceeds once in twenty windows, either way, in any feature.
    pub by_chance: f64,
}

/// A category, or another place of one meaning, whose share has changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Moved {
    /// The category, `missing`, `unseen` or `out of range`.
    pub what: String,
    /// Its share in the window.
    pub share: f64,
    /// Its share in the baseline.
    pub before: f64,
}

/// What is made of a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// The PSI is more than the threshold, and than chance; or a category has moved.
    #[serde(rename = "drifted")]
    Drifted,
    /// Not more.
    #[serde(rename = "stable")]
    Stable,
    /// Too few rows, here or in the baseline.
    #[serde(rename = "not enough data")]
    NotEnoughData,
}

/// A category has moved when its share has grown by the threshold times this, or shrunk as much: at the usual threshold
/// of 0.1 by half, so that one that doubles is beyond doubt. The PSI hardly sees that: 0.08 for a doubled tenth.
const GROWTH: f64 = 5.0;

/// And when that is the threshold times this of all rows: at the usual threshold one row in a hundred.
const ROWS: f64 = 0.1;

/// There are two ways to drift, and each has half of the chance of a false alarm.
const WAYS: f64 = 2.0;

/// Scores subjects of one version, which share one chance of a false alarm.
pub(super) struct Judge<'c> {
    config: &'c Config,
    /// The chance of a false alarm that is left to each.
    tail: f64,
    /// The points of chance by number of places, each made once: those that are told, and those for the verdict.
    points: HashMap<u32, [f64; 2]>,
}

impl<'c> Judge<'c> {
    /// A judge of `subjects` features and predictions.
    pub(super) fn new(config: &'c Config, subjects: usize) -> Self {
        Self { config, tail: scores::tail(subjects), points: HashMap::new() }
    }

    /// Compares `observed` rows by place with the baseline's.
    pub(super) fn score(&mut self, subject: &Subject, source: Source, observed: &[u64]) -> Score {
        let sides = Sides::of(subject, observed);
        let psi = scores::psi(sides.expected, observed);
        let [by_chance, mark] = self.by_chance(&sides);
        let threshold = self.config.threshold.max(mark);
        let moved = self.moved(&subject.axis, &sides);
        let enough = sides.n.min(sides.m) >= self.config.min_rows;
        let verdict = match (enough, psi > threshold || moved.is_some()) {
            (false, _) => Verdict::NotEnoughData,
            (true, true) => Verdict::Drifted,
            (true, false) => Verdict::Stable,
        };
        let tail = self.tail;
        let last = observed.len() - 1;
        let (values, live_values) = (&sides.expected[1..], &observed[1..]);
        let (value_rows, live_rows) = (scores::total(values), scores::total(live_values));
        let is_number = matches!(subject.axis, Axis::Numbers(_));
        let (difference, difference_by_chance) = if is_number {
            let chance = scores::kolmogorov_smirnov_by_chance(live_rows, value_rows, tail);
            (scores::kolmogorov_smirnov(values, live_values), chance)
        } else {
            let chance = scores::l_infinity_by_chance(values, live_values, tail);
            (scores::l_infinity(values, live_values), chance)
        };
        Score {
            name: subject.name.to_string(),
            baseline: source,
            rows: sides.n,
            baseline_rows: sides.m,
            psi,
            threshold,
            by_chance,
            js: scores::jensen_shannon(sides.expected, observed),
            js_by_chance: scores::jensen_shannon_at(by_chance),
            ks: is_number.then_some(difference),
            ks_by_chance: is_number.then_some(difference_by_chance),
            linf: (!is_number).then_some(difference),
            linf_by_chance: (!is_number).then_some(difference_by_chance),
            robust: scores::robust(difference, live_rows, value_rows),
            missing: sides.shares(MISSING, tail),
            unseen: (!is_number).then(|| sides.shares(last, tail)),
            out_of_range: is_number.then(|| sides.out_of_range(tail)),
            moved: moved.filter(|_| enough),
            verdict,
            drifted: (verdict != Verdict::NotEnoughData).then_some(verdict == Verdict::Drifted),
        }
    }

    /// The place of one meaning that changed most, if it changed enough and more than chance makes.
    fn moved(&self, axis: &Axis, sides: &Sides<'_>) -> Option<Moved> {
        let classes = axis.classes();
        let last = sides.observed.len() - 1;
        // With them "missing", and "unseen" or "out of range".
        let tail = self.tail / WAYS / scores::float(classes.len() as u64 + 2);
        let beyond = match axis {
            Axis::Texts(_) => sides.shares(last, tail),
            Axis::Numbers(_) => sides.out_of_range(tail),
        };
        let all = classes.chain([MISSING]).map(|place| (place, sides.shares(place, tail))).chain([(last, beyond)]);
        let has_moved = |(_, shares): &(usize, Shares)| self.has_moved(*shares);
        let (place, most) = all.filter(has_moved).max_by(|(_, a), (_, b)| a.delta.abs().total_cmp(&b.delta.abs()))?;
        Some(Moved { what: axis.name_of(place), share: most.share, before: most.share - most.delta })
    }

    fn has_moved(&self, shares: Shares) -> bool {
        let Shares { share, delta, by_chance, .. } = shares;
        let (before, growth) = (share - delta, 1.0 + GROWTH * self.config.threshold);
        let is_other = share >= growth * before || before >= growth * share;
        is_other && delta.abs() >= ROWS * self.config.threshold && delta.abs() > by_chance
    }

    /// What the PSI comes to by chance: once in twenty windows, and with the chance that is left to the verdict.
    fn by_chance(&mut self, sides: &Sides<'_>) -> [f64; 2] {
        let tail = self.tail;
        let places = scores::occupied(sides.expected, sides.observed);
        let points = self.points.entry(places);
        let points = points.or_insert_with(|| [tail, tail / WAYS].map(|tail| scores::chance_point(places, tail)));
        points.map(|point| scores::psi_by_chance(sides.n, sides.m, places, point))
    }
}

/// Rows by place in the baseline and in the window, and how many they are.
struct Sides<'c> {
    expected: &'c [u64],
    observed: &'c [u64],
    m: u64,
    n: u64,
}

impl<'c> Sides<'c> {
    fn of(subject: &'c Subject, observed: &'c [u64]) -> Self {
        let expected = &subject.counts[..];
        Self { expected, observed, m: scores::total(expected), n: scores::total(observed) }
    }

    fn shares(&self, place: usize, tail: f64) -> Shares {
        let (e, o) = (self.expected[place], self.observed[place]);
        self.shares_of(e, o, scores::share_by_chance((o, self.n), (e, self.m), tail))
    }

    /// Below all bins and above: the baseline has no row there, because its own rows made the bins.
    fn out_of_range(&self, tail: f64) -> Shares {
        let last = self.observed.len() - 1;
        let beyond = |counts: &[u64]| counts[1] + counts[last];
        let values = |rows: u64, counts: &[u64]| rows - counts[MISSING];
        let (n, m) = (values(self.n, self.observed), values(self.m, self.expected));
        let chance = scores::out_of_range_by_chance(n, m, tail);
        self.shares_of(beyond(self.expected), beyond(self.observed), chance)
    }

    fn shares_of(&self, e: u64, o: u64, by_chance: f64) -> Shares {
        let share = scores::share(o, self.n);
        Shares { rows: o, share, delta: share - scores::share(e, self.m), by_chance }
    }
}
