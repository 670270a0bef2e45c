//! Where a value is counted: frozen bin edges or categories, and the places beside them.
//!
//! The places of numbers are: missing, below all bins, the bins, above all bins. Those of texts: missing, the categories,
//! all others. "Missing" comes first in both.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::RandomState;

/// Bins of one feature at most, and categories of one.
pub(super) const BINS_MAX: usize = 50;

/// The longest text that can be a category, in bytes.
pub(super) const CATEGORY_MAX_BYTES: usize = 256;

/// The place of what is not there.
pub(super) const MISSING: usize = 0;

/// The places values of one subject can have.
#[derive(Clone, Debug)]
pub(super) enum Axis {
    /// Ascending edges, one more than bins. A bin holds its lower edge and not its upper one, the last one both. Only the
    /// last two may be equal: a bin of one value.
    Numbers(Box<[f64]>),
    /// Categories by name.
    Texts(Categories),
}

/// Named places.
#[derive(Clone, Debug)]
pub(super) struct Categories {
    names: Box<[Arc<str>]>,
    by_name: HashMap<Arc<str>, usize, RandomState>,
    /// The names that are whole numbers: classes of most classifiers, found without writing their digits.
    by_number: HashMap<i64, usize, RandomState>,
}

impl Axis {
    /// Bins between `edges`, if they are edges of bins.
    pub(super) fn numbers(edges: Vec<f64>) -> Option<Self> {
        let finite = edges.iter().all(|edge| edge.is_finite());
        let bins = edges.len().checked_sub(1)?;
        let (last, rest) = edges.split_last()?;
        let ascending = rest.is_sorted_by(|one, next| one < next) && rest.last().is_some_and(|edge| edge <= last);
        (finite && ascending && (1..=BINS_MAX).contains(&bins)).then(|| Self::Numbers(edges.into()))
    }

    /// Categories of these `names`, if they can be.
    pub(super) fn texts(names: Vec<Arc<str>>) -> Option<Self> {
        let short = names.iter().all(|name| name.len() <= CATEGORY_MAX_BYTES);
        let by_name: HashMap<_, _, _> = names.iter().cloned().zip(MISSING + 1..).collect();
        let by_number = names.iter().zip(MISSING + 1..).filter_map(|(name, place)| Some((whole(name)?, place)));
        let by_number = by_number.collect();
        let distinct = by_name.len() == names.len();
        (short && distinct && names.len() <= BINS_MAX).then(|| {
            let names = names.into();
            Self::Texts(Categories { names, by_name, by_number })
        })
    }

    /// How many places there are.
    pub(super) fn places(&self) -> usize {
        match self {
            Self::Numbers(edges) => edges.len() + 2,
            Self::Texts(categories) => categories.names.len() + 2,
        }
    }

    /// The places that stand for one value each, and so for a class of something: categories; and the bins of whole
    /// numbers of which there are no more than bins, whose last edge comes twice. What the first and last of them are is
    /// in the range; empty where there are none.
    pub(super) fn classes(&self) -> Range<usize> {
        match self {
            Self::Texts(categories) => MISSING + 1..MISSING + 1 + categories.names.len(),
            Self::Numbers(edges) => {
                let is_whole = edges.iter().all(|edge| edge.fract() == 0.0);
                let is_heaped = matches!(&edges[..], [.., one, last] if one >= last);
                if is_whole && is_heaped { MISSING + 2..self.last() } else { 0..0 }
            }
        }
    }

    /// What people call a place.
    pub(super) fn name_of(&self, place: usize) -> String {
        match self {
            _ if place == MISSING => "missing".to_owned(),
            Self::Texts(categories) => {
                categories.names.get(place - 1).map_or_else(|| "unseen".to_owned(), ToString::to_string)
            }
            Self::Numbers(_) if place == MISSING + 1 || place == self.last() => "out of range".to_owned(),
            Self::Numbers(edges) => edges[place - 2].to_string(),
        }
    }

    /// Where a number is counted: a category may be one by its digits.
    pub(super) fn place_of_number(&self, value: f64) -> usize {
        let Self::Numbers(edges) = self else { return self.last() };
        let bins = edges.len() - 1;
        if value < edges[0] {
            MISSING + 1
        } else if value > edges[bins] {
            self.last()
        } else {
            MISSING + 2 + edges[1..bins].partition_point(|edge| *edge <= value)
        }
    }

    /// Where a text is counted.
    pub(super) fn place_of_text(&self, text: &str) -> usize {
        let Self::Texts(categories) = self else { return self.last() };
        categories.by_name.get(text).copied().unwrap_or_else(|| self.last())
    }

    /// Where a class number is counted.
    pub(super) fn place_of_class(&self, class: i64) -> usize {
        let Self::Texts(categories) = self else { return self.last() };
        categories.by_number.get(&class).copied().unwrap_or_else(|| self.last())
    }

    /// The place above all bins, or of all other texts.
    fn last(&self) -> usize {
        self.places() - 1
    }
}

impl Categories {
    /// The names in the order of their places.
    pub(super) fn names(&self) -> &[Arc<str>] {
        &self.names
    }
}

/// The whole number that is written exactly like `name`.
fn whole(name: &str) -> Option<i64> {
    name.parse::<i64>().ok().filter(|number| number.to_string() == name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check_number(edges: &[f64], value: f64, place: usize) {
        assert_eq!(Axis::numbers(edges.to_vec()).unwrap().place_of_number(value), place, "{value} in {edges:?}");
    }

    #[test]
    fn an_edge_belongs_to_the_bin_above_it_and_the_last_to_the_last() {
        let edges = [0.0, 1.0, 2.0];
        for (value, place) in [(-0.1, 1), (0.0, 2), (0.9, 2), (1.0, 3), (2.0, 3), (2.1, 4), (f64::MAX, 4)] {
            check_number(&edges, value, place);
        }
    }

    #[test]
    fn a_bin_can_be_one_value() {
        for (value, place) in [(0.0, 1), (1.0, 2), (3.0, 3), (3.5, 4)] {
            check_number(&[1.0, 3.0, 3.0], value, place);
        }
        for (value, place) in [(6.9, 1), (7.0, 2), (7.1, 3)] {
            check_number(&[7.0, 7.0], value, place);
        }
    }

    #[test]
    fn what_are_no_edges_make_no_axis() {
        let many: Vec<f64> = (0..52).map(f64::from).collect();
        let bad = [&[][..], &[1.0], &[2.0, 1.0], &[1.0, 1.0, 2.0], &[1.0, 2.0, 2.0, 2.0], &[f64::NAN, 1.0], &many];
        for edges in bad {
            assert!(Axis::numbers(edges.to_vec()).is_none(), "{edges:?}");
        }
        assert!(Axis::numbers(vec![0.0, f64::INFINITY]).is_none());
    }

    #[test]
    fn texts_and_class_numbers_find_their_names() {
        let axis = Axis::texts(["1", "02", "Doctor"].map(Arc::from).to_vec()).unwrap();
        assert_eq!(axis.places(), 5);
        assert_eq!((axis.place_of_text("Doctor"), axis.place_of_text("doctor")), (3, 4));
        assert_eq!((axis.place_of_class(1), axis.place_of_class(2)), (1, 4));
        assert_eq!(axis.place_of_number(1.0), 4);
        assert!(Axis::texts(["a", "a"].map(Arc::from).to_vec()).is_none());
        assert!(Axis::texts(vec!["x".repeat(257).into()]).is_none());
    }

    #[test]
    fn places_of_one_value_are_classes_and_have_names() {
        let jobs = Axis::texts(["Doctor", "Lawyer"].map(Arc::from).to_vec()).unwrap();
        assert_eq!(jobs.classes(), 1..3);
        assert_eq!([0, 1, 2, 3].map(|place| jobs.name_of(place)), ["missing", "Doctor", "Lawyer", "unseen"]);
        let codes = Axis::numbers(vec![1.0, 2.0, 5.0, 5.0]).unwrap();
        assert_eq!(codes.classes(), 2..5);
        assert_eq!([1, 2, 4, 5].map(|place| codes.name_of(place)), ["out of range", "1", "5", "out of range"]);
        assert!(Axis::numbers(vec![1.0, 2.0, 5.0]).unwrap().classes().is_empty());
        assert!(Axis::numbers(vec![0.5, 1.5, 1.5]).unwrap().classes().is_empty());
    }

    proptest! {
        #[test]
        fn every_number_has_one_place(mut edges in proptest::collection::vec(-1e3..1e3_f64, 2..40), value in -2e3..2e3_f64) {
            edges.sort_by(f64::total_cmp);
            edges.dedup();
            let Some(axis) = Axis::numbers(edges.clone()) else { return Ok(()) };
            let place = axis.place_of_number(value);
            prop_assert!((1..axis.places()).contains(&place));
            if (2..axis.places() - 1).contains(&place) {
                prop_assert!(edges[place - 2] <= value && value <= edges[place - 1]);
            }
        }
    }
}
