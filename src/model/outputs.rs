//! What a model answered, in the words callers read: prediction, label, score, probabilities.

use std::sync::Arc;

/// How raw outputs become a prediction: from the configuration, else from the version's tags.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// Class as the model writes it → label as people read it (`"0"` → `"Poor"`).
    pub labels: std::collections::BTreeMap<String, String>,
    /// What the score decides, where something other than the model does.
    pub rule: Rule,
}

/// What the score decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Rule {
    /// Nothing: the model's own class stands.
    #[default]
    Model,
    /// Two classes: the positive one at or above this score.
    Threshold(f64),
    /// Named bands of the score, ascending: each holds scores below its upper edge and at or above the one before.
    Bands {
        /// `(label, upper edge)`, ascending.
        below: Vec<(Arc<str>, f64)>,
        /// The label of all that is higher.
        top: Arc<str>,
    },
}

/// The prediction itself, as the model's type has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A class number.
    Integer(i64),
    /// A class name.
    Text(Arc<str>),
    /// A regression's value. Finite.
    Number(f64),
}

/// The answer for one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// What the model predicts.
    pub value: Value,
    /// What people call it: from the labels, or the band.
    pub label: Option<Arc<str>>,
    /// Two classes: the probability of the positive one. More: of the predicted one. A regression has none.
    pub score: Option<f64>,
}

/// The answers for all rows, in order. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outputs(Arc<Table>);

#[derive(Debug)]
struct Table {
    predictions: Box<[Prediction]>,
    classes: Arc<[Arc<str>]>,
    /// Row after row, one per class; empty for a regression.
    probabilities: Box<[f32]>,
}

impl Outputs {
    /// Answers with their probabilities (row after row, one per class, or none at all).
    #[must_use]
    pub fn new(predictions: Vec<Prediction>, classes: Arc<[Arc<str>]>, probabilities: Vec<f32>) -> Self {
        debug_assert!(probabilities.is_empty() || probabilities.len() == predictions.len() * classes.len());
        Self(Arc::new(Table { predictions: predictions.into(), classes, probabilities: probabilities.into() }))
    }

    /// The answers in the order of the rows.
    #[must_use]
    pub fn predictions(&self) -> &[Prediction] {
        &self.0.predictions
    }

    /// The classes by their labels, in the model's order; empty for a regression.
    #[must_use]
    pub fn classes(&self) -> &[Arc<str>] {
        &self.0.classes
    }

    /// One row's probability per class, in the order of [`classes`](Self::classes); empty for a regression.
    #[must_use]
    pub fn probabilities(&self, row: usize) -> &[f32] {
        let width = if self.0.probabilities.is_empty() { 0 } else { self.0.classes.len() };
        &self.0.probabilities[row * width..][..width]
    }
}
