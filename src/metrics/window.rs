//! What happened to one version since somebody last looked.
//!
//! The request path writes here, under the lock of its stripe, and makes nothing new but the first time it meets a
//! bucket or a category.

use std::sync::Arc;
use std::time::Duration;

use super::histogram::Histogram;
use super::series::{FeatureOf, Scope, Series};
use super::vocabulary::{Categories, Subject, Vocabularies};
use crate::model::Identity;
use crate::model::features::{Cell, Feature, Features, Inputs, Target};
use crate::model::outputs::{Outputs, Prediction, Value};
use crate::model::signature::Kind;

/// The code under which answered requests are counted beside the errors' codes.
pub(super) const OK: &str = "ok";

/// Upper edges of the duration buckets Prometheus sees, in seconds: 100 µs to 10 s.
pub(super) const DURATION_EDGES: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Measurements of one version.
#[derive(Debug)]
pub(super) struct Window {
    id: Arc<Identity>,
    codes: Codes,
    errors: u64,
    latency: Histogram,
    durations: Durations,
    predictions: Histogram,
    classes: Categories,
    features: Vec<FeatureWindow>,
}

/// Measurements of one feature, by what its cells hold.
#[derive(Debug)]
struct FeatureWindow {
    name: Arc<str>,
    /// Whether only gaps are counted: one value of one row would stand there in the clear.
    is_withheld: bool,
    values: Histogram,
    /// Only of features that are texts.
    categories: Option<Categories>,
    missing: u64,
    unseen: u64,
}

/// What a [`Window`] comes down to.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) id: Arc<Identity>,
    /// Requests by the code their callers saw.
    pub(super) codes: Codes,
    /// Prometheus's view of the latency.
    pub(super) durations: Durations,
    /// Every series that had a measurement, with all of them. None is empty.
    pub(super) series: Vec<(Series, Histogram)>,
}

impl Window {
    /// Nothing has happened yet to the version `id`, which has these `features`; of those that are `withheld`, by their own
    /// name or the callers', no value is measured.
    pub(super) fn new(
        id: &Arc<Identity>,
        features: &Features,
        vocabularies: &Vocabularies,
        withheld: &[String],
    ) -> Self {
        Self {
            id: Arc::clone(id),
            codes: Codes::default(),
            errors: 0,
            latency: Histogram::default(),
            durations: Durations::default(),
            predictions: Histogram::default(),
            classes: Categories::open(vocabularies.of(id, Subject::Class)),
            features: features
                .list()
                .iter()
                .map(|feature| FeatureWindow::new(id, feature, vocabularies, withheld))
                .collect(),
        }
    }

    /// Whether this is the window of that very identity, not merely of an equal one.
    pub(super) fn is_of(&self, id: &Arc<Identity>) -> bool {
        Arc::ptr_eq(&self.id, id)
    }

    /// Counts a request by how it ended and how long it took.
    pub(super) fn request(&mut self, code: &'static str, is_error: bool, took: Duration) {
        self.codes.add(code);
        self.errors += u64::from(is_error);
        self.latency.add(took.as_secs_f64() * 1e3, 1);
        self.durations.add(took);
    }

    /// Measures every feature of every row.
    pub(super) fn inputs(&mut self, inputs: &Inputs) {
        for row in 0..inputs.rows() {
            for (feature, cell) in self.features.iter_mut().zip(inputs.row(row)) {
                feature.cell(cell);
            }
        }
        for &(_, feature) in inputs.unseen() {
            if let Some(feature) = self.features.get_mut(feature) {
                feature.unseen += 1;
            }
        }
    }

    /// Measures every prediction.
    pub(super) fn outputs(&mut self, outputs: &Outputs) {
        for prediction in outputs.predictions() {
            self.prediction(prediction);
        }
    }

    fn prediction(&mut self, prediction: &Prediction) {
        match (prediction.score, &prediction.value) {
            (Some(score), _) => self.predictions.add(score, 1),
            (None, Value::Number(value)) => self.predictions.add(*value, 1),
            (None, Value::Integer(_) | Value::Text(_)) => (),
        }
        match (&prediction.label, &prediction.value) {
            (Some(label), _) => self.classes.add(label),
            (None, Value::Text(class)) => self.classes.add(class),
            (None, Value::Integer(class)) => self.classes.add(Digits::new().of(*class)),
            (None, Value::Number(_)) => (),
        }
    }

    /// The measurements by series.
    pub(super) fn into_measured(self) -> Measured {
        let requests = self.codes.total();
        let mut errors = Histogram::of(0.0, requests - self.errors);
        errors.add(1.0, self.errors);

        let mut series = Vec::new();
        for scope in Scope::both(&self.id) {
            series.push((Series::Requests(scope.clone()), Histogram::of(1.0, requests)));
            series.push((Series::Errors(scope.clone()), errors.clone()));
            series.push((Series::Latency(scope.clone()), self.latency.clone()));
            series.push((Series::Prediction(scope), self.predictions.clone()));
        }
        for (class, count) in self.classes.into_counts() {
            let model = self.id.name.clone();
            series.push((Series::PredictionClass { model, class }, Histogram::of(1.0, count)));
        }
        for feature in self.features {
            let of = FeatureOf { model: self.id.name.clone(), feature: Arc::clone(&feature.name) };
            feature.into_series(of, &mut series);
        }
        series.retain(|(_, values)| !values.is_empty());
        Measured { id: self.id, codes: self.codes, durations: self.durations, series }
    }
}

impl FeatureWindow {
    fn new(id: &Arc<Identity>, feature: &Feature, vocabularies: &Vocabularies, withheld: &[String]) -> Self {
        let is_withheld = withheld.iter().any(|name| **name == *feature.name || **name == *feature.field);
        let categories = (feature.kind == Kind::Text && !is_withheld).then(|| {
            let vocabulary = vocabularies.of(id, Subject::Feature(Arc::clone(&feature.name)));
            match &feature.target {
                Target::Column(_) => Categories::open(vocabulary),
                Target::OneHot(columns) => Categories::closed(vocabulary, columns.iter().map(|(name, _)| &**name)),
            }
        });
        Self {
            name: Arc::clone(&feature.name),
            is_withheld,
            values: Histogram::default(),
            categories,
            missing: 0,
            unseen: 0,
        }
    }

    fn cell(&mut self, cell: &Cell) {
        match cell {
            Cell::Missing => self.missing += 1,
            _ if self.is_withheld => (),
            Cell::Boolean(value) => self.values.add(f64::from(u8::from(*value)), 1),
            Cell::Integer(value) => self.values.add(nearest(*value), 1),
            Cell::Float(value) => self.values.add(*value, 1),
            Cell::Text(text) => {
                if let Some(categories) = &mut self.categories {
                    categories.add(text);
                }
            }
        }
    }

    fn into_series(self, of: FeatureOf, series: &mut Vec<(Series, Histogram)>) {
        for (category, count) in self.categories.into_iter().flat_map(Categories::into_counts) {
            series.push((Series::FeatureCategory { of: of.clone(), category }, Histogram::of(1.0, count)));
        }
        series.push((Series::FeatureValue(of.clone()), self.values));
        series.push((Series::FeatureMissing(of.clone()), Histogram::of(1.0, self.missing)));
        series.push((Series::FeatureUnseen(of), Histogram::of(1.0, self.unseen)));
    }
}

/// Counts by error code. Codes are words of this program, so there are few.
#[derive(Clone, Debug, Default)]
pub(super) struct Codes(Vec<(&'static str, u64)>);

impl Codes {
    /// Counts `code` once.
    pub(super) fn add(&mut self, code: &'static str) {
        match self.0.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => *count += 1,
            None => self.0.push((code, 1)),
        }
    }

    /// Each code with its count.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().copied()
    }

    fn total(&self) -> u64 {
        self.iter().map(|(_, count)| count).sum()
    }
}

/// Durations in the buckets of [`DURATION_EDGES`], the last one for what is longer.
#[derive(Clone, Debug, Default)]
pub(super) struct Durations {
    counts: [u64; DURATION_EDGES.len() + 1],
    sum: Duration,
}

impl Durations {
    fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.counts[DURATION_EDGES.partition_point(|edge| *edge < seconds)] += 1;
        self.sum = self.sum.saturating_add(took);
    }

    /// Adds everything `other` holds.
    pub(super) fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(here, there)| *here += there);
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// Each bucket's upper edge in seconds with the count of that bucket alone; the last edge is infinite.
    pub(super) fn buckets(&self) -> Vec<(f64, u64)> {
        DURATION_EDGES.into_iter().chain([f64::INFINITY]).zip(self.counts).collect()
    }

    /// How many, and their sum in seconds.
    pub(super) fn total(&self) -> (u64, f64) {
        (self.counts.iter().sum(), self.sum.as_secs_f64())
    }
}

/// The digits of a class number, written without making a `String` for each prediction.
struct Digits([u8; Self::LONGEST]);

impl Digits {
    /// `i64::MIN` has 19 digits and a sign.
    const LONGEST: usize = 20;

    fn new() -> Self {
        Self([0; Self::LONGEST])
    }

    fn of(&mut self, number: i64) -> &str {
        let mut at = Self::LONGEST;
        let mut rest = number.unsigned_abs();
        loop {
            at -= 1;
            self.0[at] = b'0' + u8::try_from(rest % 10).expect("a remainder of ten is below ten");
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            at -= 1;
            self.0[at] = b'-';
        }
        std::str::from_utf8(&self.0[at..]).expect("only digits and a sign were written")
    }
}

/// The float nearest to a whole number.
#[expect(clippy::cast_precision_loss, reason = "CloudWatch and Prometheus know no wider number")]
fn nearest(value: i64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_numbers_are_written_as_people_write_them() {
        for number in [0, 7, -1, 1_234_567_890, i64::MIN, i64::MAX] {
            assert_eq!(Digits::new().of(number), number.to_string());
        }
    }

    #[test]
    fn a_duration_on_an_edge_belongs_below_it() {
        let mut durations = Durations::default();
        for micros in [1, 100, 101, 10_000_000, 10_000_001] {
            durations.add(Duration::from_micros(micros));
        }
        let counts: Vec<u64> = durations.buckets().into_iter().map(|(_, count)| count).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(durations.total().0, 5);
    }
}
