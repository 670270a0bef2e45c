//! From values to bins: what makes a baseline, of training data or of the first live rows.
//!
//! Numbers with few distinct values get a bin for each; others get bins that hold equal shares of them. Texts get a
//! place for each of the most frequent.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

use super::axis::{Axis, BINS_MAX, CATEGORY_MAX_BYTES, MISSING};
use super::baseline::Subject;

/// Distinct texts that are told apart while a baseline is made; those met later are counted together.
const TEXTS_MAX: usize = 10_000;

/// What has been seen of one feature, or of the predictions. Holds every number that was added: who adds limits how many.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Builder {
    missing: u64,
    values: Values,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Values {
    #[default]
    None,
    Numbers(Vec<f64>),
    Texts {
        counts: HashMap<Arc<str>, u64, RandomState>,
        others: u64,
    },
}

impl Builder {
    /// A feature of texts, before its first value.
    pub(super) fn of_texts() -> Self {
        Self { missing: 0, values: Values::Texts { counts: HashMap::default(), others: 0 } }
    }

    /// A row without a value.
    pub(super) fn add_missing(&mut self) {
        self.missing += 1;
    }

    /// A number. What is not finite is no number, and among texts there are none.
    pub(super) fn add_number(&mut self, value: f64) {
        if let Values::None = self.values {
            self.values = Values::Numbers(Vec::new());
        }
        if let Values::Numbers(numbers) = &mut self.values
            && value.is_finite()
        {
            numbers.push(value);
        }
    }

    /// A text. Among numbers there are none.
    pub(super) fn add_text(&mut self, text: &str) {
        if let Values::None = self.values {
            *self = Self { missing: self.missing, ..Self::of_texts() };
        }
        let Values::Texts { counts, others } = &mut self.values else { return };
        if let Some(count) = counts.get_mut(text) {
            *count += 1;
        } else if counts.len() < TEXTS_MAX && text.len() <= CATEGORY_MAX_BYTES {
            counts.insert(text.into(), 1);
        } else {
            *others += 1;
        }
    }

    /// Whether it was made for texts.
    pub(super) fn is_of_texts(&self) -> bool {
        matches!(self.values, Values::Texts { .. })
    }

    /// How many values it holds.
    pub(super) fn len(&self) -> usize {
        match &self.values {
            Values::None => 0,
            Values::Numbers(numbers) => numbers.len(),
            Values::Texts { counts, .. } => counts.len(),
        }
    }

    /// The same, in an order that does not tell which values came together in a row.
    pub(super) fn sorted(mut self) -> Self {
        if let Values::Numbers(numbers) = &mut self.values {
            numbers.sort_unstable_by(f64::total_cmp);
        }
        self
    }

    /// What was seen, in `bins` bins at most. Nothing, if no value was.
    pub(super) fn build(self, name: Arc<str>, bins: usize) -> Option<Subject> {
        let bins = bins.clamp(1, BINS_MAX);
        match self.values {
            Values::None => None,
            Values::Numbers(numbers) => numbers_in_bins(name, numbers, self.missing, bins),
            Values::Texts { counts, others } => texts_by_count(name, counts, others, self.missing),
        }
    }
}

fn numbers_in_bins(name: Arc<str>, mut numbers: Vec<f64>, missing: u64, bins: usize) -> Option<Subject> {
    numbers.sort_unstable_by(f64::total_cmp);
    let axis = Axis::numbers(edges(&numbers, bins)?)?;
    let mut counts = vec![0; axis.places()];
    counts[MISSING] = missing;
    for number in numbers {
        counts[axis.place_of_number(number)] += 1;
    }
    Some(Subject { name, axis, counts })
}

/// Edges of `bins` bins at most over `sorted` values.
fn edges(sorted: &[f64], bins: usize) -> Option<Vec<f64>> {
    let (first, last) = (*sorted.first()?, *sorted.last()?);
    let mut distinct: Vec<f64> = Vec::with_capacity(bins + 1);
    for value in sorted {
        if distinct.last() != Some(value) {
            distinct.push(*value);
        }
        if distinct.len() > bins {
            break;
        }
    }
    let mut edges = if distinct.len() <= bins {
        distinct
    } else {
        let quantile = |bin: usize| sorted[bin * sorted.len() / bins];
        let mut lower: Vec<f64> = std::iter::once(first).chain((1..bins).map(quantile)).collect();
        lower.dedup();
        lower
    };
    edges.push(last);
    Some(edges)
}

fn texts_by_count(
    name: Arc<str>,
    counts: HashMap<Arc<str>, u64, RandomState>,
    others: u64,
    missing: u64,
) -> Option<Subject> {
    let mut by_count: Vec<(Arc<str>, u64)> = counts.into_iter().collect();
    by_count.sort_unstable_by(|(a, many), (b, more)| more.cmp(many).then_with(|| a.cmp(b)));
    let rest = by_count.split_off(by_count.len().min(BINS_MAX));
    Subject::of_categories(name, by_count, others + rest.iter().map(|(_, count)| count).sum::<u64>(), missing)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn built(values: &[f64], bins: usize) -> (Vec<f64>, Vec<u64>) {
        let mut builder = Builder::default();
        for value in values {
            builder.add_number(*value);
        }
        let subject = builder.build("x".into(), bins).unwrap();
        let Axis::Numbers(edges) = subject.axis else { panic!("texts") };
        (edges.into(), subject.counts)
    }

    #[test]
    fn few_distinct_values_are_bins_of_their_own() {
        let (edges, counts) = built(&[3.0, 1.0, 1.0, 0.0, 3.0, 3.0], 20);
        assert_eq!(edges, [0.0, 1.0, 3.0, 3.0]);
        assert_eq!(counts, [0, 0, 1, 2, 3, 0]);
    }

    #[test]
    fn many_distinct_values_get_equal_shares() {
        let values: Vec<f64> = (0..1000).map(f64::from).collect();
        let (edges, counts) = built(&values, 10);
        assert_eq!(edges.len(), 11);
        assert_eq!(counts[2..12], [100; 10]);
    }

    #[test]
    fn a_heap_of_one_value_is_one_bin() {
        let mut values = vec![0.0; 900];
        values.extend((1..=100).map(f64::from));
        let (edges, counts) = built(&values, 10);
        assert_eq!((edges[0], counts[2]), (0.0, 900));
        assert_eq!(counts.iter().sum::<u64>(), 1000);
        assert_eq!(built(&[7.0; 5], 10), (vec![7.0, 7.0], vec![0, 0, 5, 0]));
    }

    #[test]
    fn rare_texts_are_counted_together() {
        let mut builder = Builder::default();
        for number in 0..60 {
            (0..=number).for_each(|_| builder.add_text(&number.to_string()));
        }
        builder.add_text(&"long".repeat(100));
        builder.add_missing();
        let subject = builder.build("x".into(), 20).unwrap();
        let Axis::Texts(categories) = &subject.axis else { panic!("numbers") };
        assert_eq!((categories.names().len(), &*categories.names()[0]), (BINS_MAX, "59"));
        assert_eq!((subject.counts[0], subject.counts[BINS_MAX + 1]), (1, (1..=10).sum::<u64>() + 1));
    }

    #[test]
    fn nothing_makes_no_bins() {
        let mut builder = Builder::default();
        builder.add_missing();
        assert!(builder.clone().build("x".into(), 20).is_none());
        builder.add_number(f64::NAN);
        assert!(builder.build("x".into(), 20).is_none());
    }

    proptest! {
        #[test]
        fn every_value_is_in_a_bin(values in proptest::collection::vec(-1e9..1e9_f64, 1..400), bins in 1_usize..60) {
            let (edges, counts) = built(&values, bins);
            prop_assert!(edges.len() <= bins.min(BINS_MAX) + 1);
            prop_assert_eq!(counts[1] + counts[counts.len() - 1], 0);
            prop_assert_eq!(counts.iter().sum::<u64>(), values.len() as u64);
        }
    }
}
