//! A version's signature: which columns go in, of which type. Pure: text in, [`Signature`] or a reason out.
//!
//! MLflow keeps it as JSON text inside the `MLmodel` YAML, all columns or all tensors.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::features::excerpt;

/// Values in one row at most, counting every element of a tensor.
pub const FEATURES_MAX: usize = 4096;

/// The longest name of a column or tensor, in bytes. Names go into error texts, metrics and samples.
const NAME_MAX_BYTES: usize = 256;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
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
    /// A tensor whose shape is not rows of something.
    #[error("tensor `{name}` has the shape {found}; the first dimension must be -1, which is the rows")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape as written.
        found: String,
    },
    /// Two inputs have one name.
    #[error("two inputs are called `{0}`")]
    Twice(String),
    /// Several inputs, and one of them without a name.
    #[error("an input has no name; only a single one may have none")]
    Unnamed,
    /// A name too long to show.
    #[error("the name of input `{0}` is longer than {NAME_MAX_BYTES} bytes")]
    LongName(String),
    /// Columns beside tensors.
    #[error("the signature has both columns and tensors")]
    Mixed,
    /// No inputs at all.
    #[error("the signature has no inputs")]
    Empty,
    /// More than [`FEATURES_MAX`].
    #[error("the signature has {0} values in a row; at most {FEATURES_MAX} can be served")]
    TooMany(usize),
}

impl Signature {
    /// Reads the JSON text of `signature.inputs` in an `MLmodel` file.
    ///
    /// # Errors
    /// When it is not such a text or names a type that cannot be served.
    pub fn parse(inputs: &str) -> Result<Self, SignatureError> {
        let entries: Vec<Entry> = serde_json::from_str(inputs)
            .map_err(|error| SignatureError::Unreadable(excerpt(&error.to_string(), 200)))?;
        check_count(entries.len())?;
        let named = names(&entries)?.into_iter().zip(&entries);
        match entries.iter().filter(|entry| entry.kind == "tensor").count() {
            0 => named.map(|(name, entry)| column(name, entry)).collect::<Result<_, _>>().map(Self::Columns),
            count if count == entries.len() => {
                let tensors: Vec<_> = named.map(|(name, entry)| tensor(name, entry)).collect::<Result<_, _>>()?;
                check_count(tensors.iter().map(Tensor::width).fold(0, usize::saturating_add))?;
                Ok(Self::Tensors(tensors))
            }
            _ => Err(SignatureError::Mixed),
        }
    }
}

impl Tensor {
    /// Elements in one row; a dimension of any size counts once.
    pub(super) fn width(&self) -> usize {
        self.shape.iter().map(|size| size.unwrap_or(1)).fold(1, usize::saturating_mul)
    }
}

/// One input as MLflow writes it. Other members (`items`, `properties`) belong to types that are refused by name.
#[derive(Deserialize)]
struct Entry {
    name: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    required: Option<bool>,
    /// What MLflow wrote before it had `required`.
    optional: Option<bool>,
    #[serde(rename = "tensor-spec")]
    tensor: Option<TensorSpec>,
}

#[derive(Deserialize)]
struct TensorSpec {
    dtype: String,
    shape: Vec<i64>,
}

fn check_count(count: usize) -> Result<(), SignatureError> {
    match count {
        0 => Err(SignatureError::Empty),
        1..=FEATURES_MAX => Ok(()),
        _ => Err(SignatureError::TooMany(count)),
    }
}

fn names(entries: &[Entry]) -> Result<Vec<Arc<str>>, SignatureError> {
    let mut taken = HashSet::new();
    entries
        .iter()
        .map(|entry| {
            let name = match &entry.name {
                Some(name) => name.as_str(),
                None if entries.len() == 1 => "input",
                None => return Err(SignatureError::Unnamed),
            };
            if name.len() > NAME_MAX_BYTES {
                return Err(SignatureError::LongName(excerpt(name, 64)));
            }
            if !taken.insert(name) {
                return Err(SignatureError::Twice(name.to_owned()));
            }
            Ok(Arc::from(name))
        })
        .collect()
}

fn column(name: Arc<str>, entry: &Entry) -> Result<Column, SignatureError> {
    let kind = match entry.kind.as_str() {
        "boolean" => Kind::Boolean,
        "integer" => Kind::Integer,
        "long" => Kind::Long,
        "float" => Kind::Float,
        "double" => Kind::Double,
        "string" => Kind::Text,
        other => return Err(unsupported(&name, other)),
    };
    let required = entry.required.or(entry.optional.map(|optional| !optional)).unwrap_or(true);
    Ok(Column { name, kind, required })
}

fn tensor(name: Arc<str>, entry: &Entry) -> Result<Tensor, SignatureError> {
    let Some(spec) = &entry.tensor else {
        return Err(SignatureError::Unreadable(format!("tensor `{name}` has no `tensor-spec`")));
    };
    let kind = match spec.dtype.as_str() {
        "bool" => Kind::Boolean,
        "int32" => Kind::Integer,
        "int64" => Kind::Long,
        "float32" => Kind::Float,
        "float64" => Kind::Double,
        "str" | "object" => Kind::Text,
        other => return Err(unsupported(&name, other)),
    };
    let Some(shape) = row_shape(&spec.shape) else {
        return Err(SignatureError::Shape { name: name.to_string(), found: excerpt(&format!("{:?}", spec.shape), 64) });
    };
    Ok(Tensor { name, kind, shape })
}

/// The dimensions after the rows; nothing if the first is not the rows, or another is no size.
fn row_shape(shape: &[i64]) -> Option<Vec<Option<usize>>> {
    let (&-1, rest) = shape.split_first()? else { return None };
    rest.iter()
        .map(|&size| match size {
            -1 => Some(None),
            size => usize::try_from(size).ok().filter(|&size| size > 0).map(Some),
        })
        .collect()
}

fn unsupported(name: &str, found: &str) -> SignatureError {
    SignatureError::Unsupported { name: name.to_owned(), found: excerpt(found, 64) }
}

#[cfg(test)]
mod tests;
