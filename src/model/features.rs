//! From what a caller wrote to what a model takes, one cell at a time, in one pass.
//!
//! A wire reader walks its format and calls [`Rows::set`] with each name and value it meets. Here names are found,
//! values checked and coerced, gaps filled, and every mistake kept under the caller's own name for the field.
//! [`Inputs`] cannot exist unless they fit the features, so nothing after this checks shapes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::signature::{Kind, Signature};

/// One value of one row.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Optional and not given.
    Missing,
    /// A boolean feature.
    Boolean(bool),
    /// An integer feature, within its width.
    Integer(i64),
    /// A float feature, finite in its width.
    Float(f64),
    /// A text feature.
    Text(Arc<str>),
}

/// What a caller may send for one feature: a column of the signature, or a group of its one-hot columns.
#[derive(Clone, Debug)]
pub struct Feature {
    /// The model's name for it: in metrics, samples and drift.
    pub name: Arc<str>,
    /// The caller's name for it: in requests and error texts. The same unless renamed.
    pub field: Arc<str>,
    /// What a value must be.
    pub kind: Kind,
    /// Whether a row must have it.
    pub required: bool,
    /// What stands in for it when it is absent or null.
    pub default: Option<Cell>,
    /// Where it goes.
    pub target: Target,
}

/// Where a feature's cell goes in the model's columns.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// One column of the signature, by position.
    Column(usize),
    /// One-hot columns by category, by position; the one that matches is 1, the others 0.
    OneHot(Vec<(Arc<str>, usize)>),
}

/// How a model's callers write its features; from the configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Accept `"40"` for a number.
    pub coerce: bool,
    /// Caller's name → signature's name.
    pub rename: BTreeMap<String, String>,
    /// Signature's (or group's) name → value when absent.
    pub default: BTreeMap<String, DefaultValue>,
    /// Features whose columns `<name>_<category>` stand in the signature.
    pub one_hot: Vec<String>,
    /// What to do with a category none of the one-hot columns has.
    pub unseen: Unseen,
}

/// A default as the configuration can write it.
#[derive(Clone, Debug, PartialEq)]
pub enum DefaultValue {
    /// `true` or `false`.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// A text.
    Text(String),
}

/// What to do with an unseen category.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unseen {
    /// Fill no column, and count it.
    #[default]
    Count,
    /// Refuse the row.
    Refuse,
}

/// The features of one model version.
#[derive(Clone, Debug)]
pub struct Features {
    // private: list, caller-name index, settings
}

/// A value as a wire format can carry it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Raw<'a> {
    /// JSON's `null`.
    Null,
    /// A boolean.
    Boolean(bool),
    /// A whole number that fits.
    Integer(i64),
    /// A whole number above `i64::MAX`.
    Unsigned(u64),
    /// Any other number. Not necessarily finite: some formats can write NaN.
    Float(f64),
    /// A number too large for 64 bits, or not a number, as the caller wrote it (`1e400`, `NaN`).
    NotFinite(&'a str),
    /// Text.
    Text(&'a str),
    /// A list or an object where one value belongs: its name for the error text.
    Nested(&'static str),
}

/// What is wrong with one field of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The row, from 0.
    pub row: usize,
    /// The caller's own name for the field.
    pub feature: String,
    /// What belongs there.
    pub expected: String,
    /// What was found there. Never longer than 64 characters.
    pub found: String,
}

/// Rows that do not fit the features.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{total} of the fields do not fit the model")]
pub struct InvalidInput {
    /// The first ten mistakes.
    pub errors: Vec<FieldError>,
    /// How many there are in all.
    pub total: usize,
}

/// The longest text a feature may hold, in bytes (facts: 4 KiB).
pub const TEXT_MAX_BYTES: usize = 4096;

impl Features {
    /// Brings signature and settings together.
    ///
    /// # Errors
    /// When the settings name what the signature does not have.
    pub fn new(signature: &Signature, settings: Settings) -> Result<Self, FeaturesError> {
        todo!()
    }

    /// Every feature, in the order of [`Inputs::row`].
    #[must_use]
    pub fn list(&self) -> &[Feature] {
        todo!()
    }

    /// A reader of rows.
    #[must_use]
    pub fn rows(&self) -> Rows<'_> {
        todo!()
    }
}

/// Settings that do not fit the signature.
#[derive(Debug, thiserror::Error)]
pub enum FeaturesError {
    /// A setting names a column the signature does not have.
    #[error("`{setting}` names `{column}`, which is not in the signature")]
    NoSuchColumn {
        /// The setting's key.
        setting: &'static str,
        /// The name it gave.
        column: String,
    },
    /// A default is not of its column's type.
    #[error("the default of `{column}` is not {expected}")]
    WrongDefault {
        /// The column.
        column: String,
        /// What it must be.
        expected: &'static str,
    },
    /// Two features would have one name.
    #[error("two features are called `{0}`")]
    Twice(String),
}

/// Rows being read. Call [`begin`](Self::begin), [`set`](Self::set) for each field, [`end`](Self::end), per row; then
/// [`finish`](Self::finish).
#[derive(Debug)]
pub struct Rows<'f> {
    features: &'f Features,
}

impl Rows<'_> {
    /// Opens the next row.
    pub fn begin(&mut self) {
        todo!()
    }

    /// Takes one field of the open row. Mistakes are kept for [`finish`](Self::finish).
    pub fn set(&mut self, field: &str, value: Raw<'_>) {
        todo!()
    }

    /// Closes the open row: fills gaps, notes what is missing.
    pub fn end(&mut self) {
        todo!()
    }

    /// How many rows were opened.
    #[must_use]
    pub fn len(&self) -> usize {
        todo!()
    }

    /// The rows, if every one of them fits.
    ///
    /// # Errors
    /// With the first ten mistakes and the count of all.
    pub fn finish(self) -> Result<Inputs, InvalidInput> {
        todo!()
    }
}

/// Rows that fit a model's features. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inputs(Arc<Table>);

#[derive(Debug)]
struct Table {
    width: usize,
    /// Row after row, each `width` cells in the order of [`Features::list`].
    cells: Box<[Cell]>,
}

impl Inputs {
    /// How many rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.0.cells.len().checked_div(self.0.width).unwrap_or(0)
    }

    /// One row, in the order of [`Features::list`].
    #[must_use]
    pub fn row(&self, row: usize) -> &[Cell] {
        &self.0.cells[row * self.0.width..][..self.0.width]
    }
}
