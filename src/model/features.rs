//! From what a caller wrote to what a model takes, one cell at a time, in one pass.
//!
//! A wire reader walks its format and calls [`Rows::set`] with each name and value it meets. Here names are found,
//! values checked and coerced, gaps filled, and every mistake kept under the caller's own name for the field.
//! [`Inputs`] cannot exist unless they fit the features, so nothing after this checks shapes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

use super::signature::{FEATURES_MAX, Kind, Signature};

mod build;
mod rows;
mod suggest;
mod value;

pub use rows::{ERRORS_KEPT, List, Rows};
pub(crate) use value::excerpt;

/// One value of one row.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// Optional and not given.
    Missing,
    /// A boolean feature.
    Boolean(bool),
    /// An integer feature, within its width.
    Integer(i64),
    /// A float feature as the caller wrote it. Finite in its width too: for [`Kind::Float`], as an `f32`.
    Float(f64),
    /// A text feature.
    Text(Arc<str>),
}

/// What a caller may send for one feature: a column of the signature, one element of a tensor, or a group of one-hot
/// columns.
#[derive(Clone, Debug)]
pub struct Feature {
    /// The model's name for it: in metrics, samples and drift.
    pub name: Arc<str>,
    /// The caller's name for it: in requests and error texts. The same unless renamed.
    pub field: Arc<str>,
    /// What a value must be.
    pub kind: Kind,
    /// Whether a row must have it: it is neither optional nor has a default.
    pub required: bool,
    /// What stands in for it when it is absent or null.
    pub default: Option<Cell>,
    /// Where it goes.
    pub target: Target,
}

/// Where a feature's cell goes in the model's columns.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// One column of the signature, by position; of tensors, the position of the element when each tensor's elements
    /// follow those of the tensor before.
    Column(usize),
    /// One-hot columns by category, by position; the one that matches is 1, the others 0.
    OneHot(Vec<(Arc<str>, usize)>),
}

/// How a model's callers write its features; from the configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// Names for the elements of the signature's one tensor, in order; exports of gradient boosting models lose them.
    /// Without them the elements are called `<tensor>_0`, `<tensor>_1` and so on.
    pub columns: Vec<String>,
}

/// A default as the configuration can write it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    list: Box<[Feature]>,
    /// Caller's name → place in `list`.
    by_field: HashMap<Arc<str>, usize, RandomState>,
    /// The categories of each feature that is a one-hot group.
    categories: Box<[Option<Categories>]>,
    lists: Box<[(Arc<str>, List)]>,
    columns: usize,
    coerce: bool,
    unseen: Unseen,
}

type Categories = HashSet<Arc<str>, RandomState>;

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

/// A cell that was read before, to be read again.
impl<'c> From<&'c Cell> for Raw<'c> {
    fn from(cell: &'c Cell) -> Self {
        match cell {
            Cell::Missing => Self::Null,
            Cell::Boolean(value) => Self::Boolean(*value),
            Cell::Integer(value) => Self::Integer(*value),
            Cell::Float(value) => Self::Float(*value),
            Cell::Text(text) => Self::Text(text),
        }
    }
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
    /// What was found there. Never longer than 64 characters, like [`feature`](Self::feature).
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

/// The longest text a feature may hold, in bytes. No category or code comes near it, and it bounds what samples and
/// error texts have to carry.
pub const TEXT_MAX_BYTES: usize = 4096;

impl Features {
    /// Brings signature and settings together.
    ///
    /// # Errors
    /// When the settings name what the signature does not have, or a tensor is not rows of single values.
    pub fn new(signature: &Signature, settings: Settings) -> Result<Self, FeaturesError> {
        build::features(signature, settings)
    }

    /// Every feature, in the order of [`Inputs::row`].
    #[must_use]
    pub fn list(&self) -> &[Feature] {
        &self.list
    }

    /// How many columns the model takes: what the positions in [`Target`] stay below.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Whether callers have a feature of this name.
    #[must_use]
    pub fn has(&self, field: &str) -> bool {
        self.by_field.contains_key(field)
    }

    /// A reader of rows.
    #[must_use]
    pub fn rows(&self) -> Rows<'_> {
        Rows::new(self)
    }
}

/// Settings that do not fit the signature.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
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
    /// Two of the callers' names stand for one column.
    #[error("`rename` gives `{0}` a second name")]
    RenamedTwice(String),
    /// A column of a one-hot group cannot hold 0 or 1.
    #[error("`one_hot` takes in column `{0}`, which holds text and not 0 or 1")]
    NotOneHot(String),
    /// A tensor of matrices.
    #[error("tensor `{tensor}` has {dimensions} dimensions; rows of one value or of several can be served")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// How many, the rows included.
        dimensions: usize,
    },
    /// A tensor whose rows may be of any length.
    #[error("tensor `{0}` does not say how many values a row has: name them in `columns`")]
    NoWidth(String),
    /// Not as many names as elements.
    #[error("`columns` has {given} names for the {wanted} values of tensor `{tensor}`")]
    WrongColumns {
        /// The tensor.
        tensor: String,
        /// Names in the settings.
        given: usize,
        /// Elements in a row.
        wanted: usize,
    },
    /// Names for the elements of a tensor, and not exactly one tensor.
    #[error("`columns` names the values of a single tensor, and the signature is not a single tensor")]
    NotOneTensor,
    /// Nothing goes into the model.
    #[error("the signature has no inputs")]
    Empty,
    /// More than [`FEATURES_MAX`].
    #[error("the signature has {0} values in a row; at most {FEATURES_MAX} can be served")]
    TooMany(usize),
}

/// Rows that fit a model's features. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inputs(Arc<Table>);

#[derive(Debug)]
struct Table {
    /// Never 0: [`FeaturesError::Empty`].
    width: usize,
    /// Row after row, each `width` cells in the order of [`Features::list`].
    cells: Box<[Cell]>,
    /// Row and feature of every category that no column stands for, in that order.
    unseen: Box<[(usize, usize)]>,
}

impl Inputs {
    /// How many rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.0.cells.len() / self.0.width
    }

    /// One row, in the order of [`Features::list`].
    #[must_use]
    pub fn row(&self, row: usize) -> &[Cell] {
        &self.0.cells[row * self.0.width..][..self.0.width]
    }

    /// Row and feature (by position in [`Features::list`]) of every cell whose category no one-hot column stands for.
    /// Defaults are not among them: nobody sent those.
    #[must_use]
    pub fn unseen(&self) -> &[(usize, usize)] {
        &self.0.unseen
    }
}

#[cfg(test)]
mod tests;
