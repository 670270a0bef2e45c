//! Rows being read: the part that runs for every request.
//!
//! A request costs one allocation for its cells and one for each free text; everything else is looked up. Callers
//! mostly send the fields in one order, so the next feature is tried before the map.

use std::sync::Arc;

use super::super::signature::FEATURES_MAX;
use super::{
    Categories, Cell, Feature, Features, FieldError, Inputs, InvalidInput, Raw, Table, Unseen, suggest, value,
};

/// Mistakes that are kept with their text; of the others only the count.
pub const ERRORS_KEPT: usize = 10;

/// The longest name of a field in an error text, in characters.
const FIELD_MAX_CHARS: usize = 64;

/// Rows being read. Call [`begin`](Self::begin), [`set`](Self::set) for each field, [`end`](Self::end), per row; then
/// [`finish`](Self::finish). How many rows may be read is for the caller to limit; the cells of rows that follow a
/// mistake are not kept.
///
/// The value of a field that [`list`](Self::list) knows may also come as a list: [`set_element`](Self::set_element) for
/// each of its values, then [`end_list`](Self::end_list).
#[derive(Debug)]
pub struct Rows<'f> {
    features: &'f Features,
    cells: Vec<Cell>,
    unseen: Vec<(usize, usize)>,
    opened: usize,
    is_open: bool,
    /// Where the open row begins in `cells`.
    start: usize,
    /// The feature that comes next if the caller keeps to the model's order.
    next: usize,
    /// One bit for each feature of the open row that was given.
    given: [u64; FEATURES_MAX / 64],
    given_count: usize,
    errors: Vec<FieldError>,
    errors_total: usize,
}

/// A field that may be sent as a list of values: a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List {
    pub(super) first: usize,
    pub(super) len: usize,
}

impl<'f> Rows<'f> {
    pub(super) fn new(features: &'f Features) -> Self {
        Self {
            features,
            // Most requests are one row.
            cells: Vec::with_capacity(features.list.len()),
            unseen: Vec::new(),
            opened: 0,
            is_open: false,
            start: 0,
            next: 0,
            given: [0; FEATURES_MAX / 64],
            given_count: 0,
            errors: Vec::new(),
            errors_total: 0,
        }
    }

    /// The features the rows are read for.
    #[must_use]
    pub fn features(&self) -> &'f Features {
        self.features
    }

    /// How many rows were opened.
    #[must_use]
    pub fn len(&self) -> usize {
        self.opened
    }

    /// Whether no row was opened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.opened == 0
    }

    /// Whether a mistake was found so far.
    #[must_use]
    pub fn has_mistakes(&self) -> bool {
        self.errors_total > 0
    }

    /// Opens the next row.
    pub fn begin(&mut self) {
        let width = self.features.list.len();
        self.opened += 1;
        self.is_open = true;
        self.start = self.cells.len();
        self.cells.resize(self.start + width, Cell::Missing);
        self.next = 0;
        self.given[..width.div_ceil(64)].fill(0);
        self.given_count = 0;
    }

    /// Takes one field of the open row. Mistakes are kept for [`finish`](Self::finish).
    pub fn set(&mut self, field: &str, value: Raw<'_>) {
        let features = self.features;
        let expected_next = features.list.get(self.next).is_some_and(|feature| *feature.field == *field);
        if expected_next {
            self.fill(self.next, value);
        } else if let Some(&index) = features.by_field.get(field) {
            self.fill(index, value);
        } else {
            self.refuse(field, || (no_such_field(field, features), value::found(value)));
        }
    }

    /// The list that may be sent as the value of `field`: a tensor whose rows have several values, or one in brackets.
    #[must_use]
    pub fn list(&self, field: &str) -> Option<List> {
        self.features.lists.iter().find(|(name, _)| **name == *field).map(|&(_, list)| list)
    }

    /// Takes one value of a list in the open row. Values after the last are left for [`end_list`](Self::end_list) to
    /// count.
    pub fn set_element(&mut self, list: List, position: usize, value: Raw<'_>) {
        if position < list.len {
            self.fill(list.first + position, value);
        }
    }

    /// Closes the list that came as the value of `field` and had `count` values.
    pub fn end_list(&mut self, field: &str, list: List, count: usize) {
        if count == list.len {
            return;
        }
        self.refuse(field, || (format!("a list of {}", list.len), format!("a list of {count}")));
        // One mistake is enough: what the list lacks is not missing as well.
        for index in list.first..list.first + list.len {
            self.mark(index);
        }
    }

    /// Closes the open row: fills gaps, notes what is missing.
    pub fn end(&mut self) {
        self.is_open = false;
        if self.given_count < self.features.list.len() {
            self.fill_gaps();
        }
        if self.has_mistakes() {
            self.cells.truncate(self.start);
        }
    }

    /// The rows, if every one of them fits. After a mistake the last row may be left open: what it lacks is then not
    /// counted as missing.
    ///
    /// # Errors
    /// With the first ten mistakes and the count of all.
    pub fn finish(mut self) -> Result<Inputs, InvalidInput> {
        if self.is_open && !self.has_mistakes() {
            self.end();
        }
        if self.has_mistakes() {
            return Err(InvalidInput { errors: self.errors, total: self.errors_total });
        }
        Ok(Inputs(Arc::new(Table {
            width: self.features.list.len(),
            cells: self.cells.into_boxed_slice(),
            unseen: self.unseen.into_boxed_slice(),
        })))
    }

    fn fill(&mut self, index: usize, value: Raw<'_>) {
        let feature = &self.features.list[index];
        self.next = index + 1;
        if !self.mark(index) {
            return self.refuse(&feature.field, || ("one value".to_owned(), "the field twice".to_owned()));
        }
        match self.cell(index, feature, value) {
            Ok(cell) => self.cells[self.start + index] = cell,
            Err(expected) => self.refuse(&feature.field, || (expected.in_words(), value::found(value))),
        }
    }

    /// Notes that a feature was given. False if it was before.
    fn mark(&mut self, index: usize) -> bool {
        let bit = 1 << (index % 64);
        let word = &mut self.given[index / 64];
        let first_time = *word & bit == 0;
        *word |= bit;
        self.given_count += usize::from(first_time);
        first_time
    }

    fn cell(&mut self, index: usize, feature: &Feature, value: Raw<'_>) -> Result<Cell, Expected<'f>> {
        match (value, &self.features.categories[index]) {
            (Raw::Null, _) => gap(feature).ok_or(Expected::Value(value::expected(feature.kind))),
            (_, None) => value::cell(feature.kind, value, self.features.coerce).map_err(Expected::Value),
            (_, Some(categories)) => {
                let text = value::text(value).map_err(Expected::Value)?;
                match (categories.get(text), self.features.unseen) {
                    (Some(category), _) => Ok(Cell::Text(Arc::clone(category))),
                    (None, Unseen::Refuse) => Err(Expected::Category(categories)),
                    (None, Unseen::Count) => {
                        self.unseen.push((self.opened - 1, index));
                        Ok(Cell::Text(text.into()))
                    }
                }
            }
        }
    }

    fn fill_gaps(&mut self) {
        for (index, feature) in self.features.list.iter().enumerate() {
            if self.given[index / 64] & (1 << (index % 64)) != 0 {
                continue;
            }
            match gap(feature) {
                Some(cell) => self.cells[self.start + index] = cell,
                None => {
                    self.refuse(&feature.field, || (value::expected(feature.kind).to_owned(), "nothing".to_owned()));
                }
            }
        }
    }

    /// Counts a mistake in the open row; the words, what was expected and what was found, are made for the first ten.
    fn refuse(&mut self, field: &str, words: impl FnOnce() -> (String, String)) {
        self.errors_total += 1;
        if self.errors.len() < ERRORS_KEPT {
            let (expected, found) = words();
            let feature = value::excerpt(field, FIELD_MAX_CHARS);
            self.errors.push(FieldError { row: self.opened - 1, feature, expected, found });
        }
    }
}

/// What belongs where something else was found.
enum Expected<'f> {
    Value(&'static str),
    Category(&'f Categories),
}

impl Expected<'_> {
    fn in_words(&self) -> String {
        match self {
            Self::Value(words) => (*words).to_owned(),
            Self::Category(categories) => one_of(categories),
        }
    }
}

/// The first of the categories, for people to see what kind of thing they are.
fn one_of(categories: &Categories) -> String {
    const SHOWN: usize = 10;
    let mut names: Vec<_> = categories.iter().map(|category| value::excerpt(category, 32)).collect();
    names.sort_unstable();
    let more = if names.len() > SHOWN { ", …" } else { "" };
    names.truncate(SHOWN);
    format!("one of {}{more}", names.join(", "))
}

/// What a row has for a feature that was not given: nothing at all if it must be.
fn gap(feature: &Feature) -> Option<Cell> {
    match &feature.default {
        Some(default) => Some(default.clone()),
        None if feature.required => None,
        None => Some(Cell::Missing),
    }
}

fn no_such_field(field: &str, features: &Features) -> String {
    match suggest::nearest(field, &features.list) {
        Some(nearest) => format!("no such field; did you mean `{nearest}`?"),
        None => "no such field".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Settings, Signature};
    use super::*;
    use crate::model::signature::{Column, Kind};

    #[test]
    fn no_cells_are_kept_after_a_mistake() {
        let column = Column { name: "a".into(), kind: Kind::Long, required: false };
        let features = Features::new(&Signature::Columns(vec![column]), Settings::default()).unwrap();
        let mut rows = features.rows();
        for value in [Raw::Integer(1), Raw::Boolean(true), Raw::Integer(1), Raw::Integer(1)] {
            rows.begin();
            rows.set("a", value);
            rows.end();
        }
        assert_eq!((rows.len(), rows.cells.len()), (4, 1));
    }

    #[test]
    fn a_row_left_open_is_no_way_around_the_rules() {
        let column = Column { name: "a".into(), kind: Kind::Long, required: true };
        let features = Features::new(&Signature::Columns(vec![column]), Settings::default()).unwrap();
        let mut rows = features.rows();
        rows.begin();
        assert_eq!(rows.finish().unwrap_err().total, 1);
    }
}
