//! A version's signature: which columns go in, of which type. Pure: text in, [`Signature`] or a reason out.
//!
//! MLflow keeps it as JSON text inside the `MLmodel` YAML, all columns or all tensors.

use std::sync::Arc;

/// What goes into a model, as its registry tells it.
#[derive(Clone, Debug, PartialEq)]
pub enum Signature {
    /// Named columns of one value a row, in the order of the signature.
    Columns(Vec<Column>),
    /// Named tensors; the first dimension is the rows.
    Tensors(Vec<Tensor>),
}

/// One column of a [`Signature`].
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// The column's name; a single unnamed column is called `input`.
    pub name: Arc<str>,
    /// What a value must be.
    pub kind: Kind,
    /// Whether a row must have it. A column logged with a gap is optional.
    pub required: bool,
}

/// The type of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Boolean,
    /// A 32-bit integer (MLflow `integer`).
    Integer,
    /// A 64-bit integer (MLflow `long`).
    Long,
    /// A 32-bit float: finite in 32 bits.
    Float,
    /// A 64-bit float.
    Double,
    /// Text.
    Text,
}

/// One tensor of a [`Signature`].
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The tensor's name, `input` where the registry has none.
    pub name: Arc<str>,
    /// What an element must be.
    pub kind: Kind,
    /// Dimensions after the first, which is the rows. Empty for one value a row; `None` where any size is allowed.
    pub shape: Vec<Option<usize>>,
}

/// Why a signature cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// The text is not the JSON MLflow writes.
    #[error("the signature is not readable: {0}")]
    Unreadable(String),
    /// A column or tensor is of a type the gateway has no place for.
    #[error("input `{name}` is of type `{found}`, which cannot be served")]
    Unsupported {
        /// The column or tensor.
        name: String,
        /// Its type as written.
        found: String,
    },
}

impl Signature {
    /// Reads the JSON text of `signature.inputs` in an MLmodel file.
    ///
    /// # Errors
    /// When it is not such a text or names a type that cannot be served.
    pub fn parse(inputs: &str) -> Result<Self, SignatureError> {
        todo!()
    }
}
