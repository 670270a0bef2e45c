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
    /// What the PSI of an unchanged population exceeds once in twenty windows, over all features.
    pub by_chance: f64,
    /// Jensen-Shannon distance, base 2, over the same places.
    pub js: f64,
    /// Numbers: the largest difference between the cumulative distributions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ks: Option<f64>,
    /// Texts: the largest difference between two shares.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linf: Option<f64>,
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
    /// The verdict in words.
    pub verdict: Verdict,
    /// The verdict; none where there is not enough data.
    pub drifted: Option<bool>,
}

/// A share of the rows, and how much more that is than in the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shares {
    /// In the window.
    pub share: f64,
    /// In the window less in the baseline.
    pub delta: f64,
}

/// What is made of a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// More than the threshold, and than chance.
    #[serde(rename = "drifted")]
    Drifted,
    /// Not more.
    #[serde(rename = "stable")]
    Stable,
    /// Too few rows, here or in the baseline.
    #[serde(rename = "not enough data")]
    NotEnoughData,
}

/// Scores subjects of one version, which share one chance of a false alarm.
pub(super) struct Judge<'c> {
    config: &'c Config,
    subjects: usize,
    /// The points of chance by number of places, each made once.
    points: HashMap<u32, f64>,
}

impl<'c> Judge<'c> {
    /// A judge of `subjects` features and predictions.
    pub(super) fn new(config: &'c Config, subjects: usize) -> Self {
        Self { config, subjects, points: HashMap::new() }
    }

    /// Compares `observed` rows by place with the baseline's.
    pub(super) fn score(&mut self, subject: &Subject, source: Source, observed: &[u64]) -> Score {
        let expected = &subject.counts[..];
        let (rows, baseline_rows) = (scores::total(observed), scores::total(expected));
        let psi = scores::psi(expected, observed);
        let by_chance = self.by_chance(rows, baseline_rows, scores::occupied(expected, observed));
        let threshold = self.config.threshold.max(by_chance);
        let enough = rows.min(baseline_rows) >= self.config.min_rows;
        let verdict = match (enough, psi > threshold) {
            (false, _) => Verdict::NotEnoughData,
            (true, true) => Verdict::Drifted,
            (true, false) => Verdict::Stable,
        };
        let shares = |of: &dyn Fn(&[u64]) -> u64| Shares::of(of(expected), baseline_rows, of(observed), rows);
        let last = expected.len() - 1;
        let (values, live_values) = (&expected[1..], &observed[1..]);
        let is_number = matches!(subject.axis, Axis::Numbers(_));
        let difference = if is_number { scores::kolmogorov_smirnov } else { scores::l_infinity };
        let difference = difference(values, live_values);
        Score {
            name: subject.name.to_string(),
            baseline: source,
            rows,
            baseline_rows,
            psi,
            threshold,
            by_chance,
            js: scores::jensen_shannon(expected, observed),
            ks: is_number.then_some(difference),
            linf: (!is_number).then_some(difference),
            robust: scores::robust(difference, scores::total(live_values), scores::total(values)),
            missing: shares(&|counts| counts[MISSING]),
            unseen: (!is_number).then(|| shares(&|counts| counts[last])),
            out_of_range: is_number.then(|| shares(&|counts| counts[1] + counts[last])),
            verdict,
            drifted: (verdict != Verdict::NotEnoughData).then_some(verdict == Verdict::Drifted),
        }
    }

    fn by_chance(&mut self, rows: u64, baseline_rows: u64, places: u32) -> f64 {
        let subjects = self.subjects;
        let point = self.points.entry(places).or_insert_with(|| scores::chance_point(places, subjects));
        scores::by_chance(rows, baseline_rows, *point)
    }
}

impl Shares {
    fn of(expected: u64, baseline_rows: u64, observed: u64, rows: u64) -> Self {
        let share = scores::share(observed, rows);
        Self { share, delta: share - scores::share(expected, baseline_rows) }
    }
}
