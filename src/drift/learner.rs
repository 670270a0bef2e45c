//! A baseline in the making: the first rows of a version that came without one.

use std::sync::Arc;

use super::LIVE_BINS;
use super::baseline::Subject;
use super::builder::Builder;
use super::window::nearest;
use crate::model::features::{Cell, Inputs};
use crate::model::outputs::{Outputs, Prediction, Value};

/// Gathers values until it has enough rows. What it holds is bounded by these, and by the length of a category.
#[derive(Debug)]
pub(super) struct Learner {
    rows: u64,
    rows_max: u64,
    /// By position in the version's features; nothing where the baseline is known.
    features: Vec<Option<(Arc<str>, Builder)>>,
    prediction: Option<Builder>,
    score: Option<Builder>,
    taken: bool,
}

/// What the rows came to. Nothing for what had no value.
#[derive(Debug)]
pub(super) struct Learned {
    pub(super) features: Vec<Option<Subject>>,
    pub(super) prediction: Option<Subject>,
    pub(super) score: Option<Subject>,
}

impl Learner {
    /// A learner of what is asked for, of `rows_max` rows; none if nothing is.
    pub(super) fn new(
        rows_max: u64,
        features: Vec<Option<(Arc<str>, Builder)>>,
        prediction: bool,
        score: bool,
    ) -> Option<Self> {
        let wanted = prediction || score || features.iter().any(Option::is_some);
        let of = |wanted: bool| wanted.then(Builder::default);
        let (prediction, score) = (of(prediction), of(score));
        wanted.then_some(Self { rows: 0, rows_max, features, prediction, score, taken: false })
    }

    /// How many rows it has.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes a request's rows, as many as are still wanted.
    pub(super) fn add(&mut self, inputs: &Inputs, outputs: &Outputs) {
        for (row, prediction) in (0..inputs.rows()).zip(outputs.predictions()) {
            if self.rows >= self.rows_max {
                return;
            }
            self.rows += 1;
            for (feature, cell) in self.features.iter_mut().zip(inputs.row(row)) {
                if let Some((_, builder)) = feature {
                    add_cell(builder, cell);
                }
            }
            self.add_prediction(prediction);
        }
    }

    fn add_prediction(&mut self, prediction: &Prediction) {
        if let Some(builder) = &mut self.prediction {
            add_value(builder, &prediction.value);
        }
        if let (Some(builder), Some(score)) = (&mut self.score, prediction.score) {
            builder.add_number(score);
        }
    }

    /// What was learned, once, when there are enough rows.
    pub(super) fn take(&mut self) -> Option<Learned> {
        if self.rows < self.rows_max || self.taken {
            return None;
        }
        self.taken = true;
        let build = |(name, builder): (Arc<str>, Builder)| builder.build(name, LIVE_BINS);
        Some(Learned {
            features: std::mem::take(&mut self.features).into_iter().map(|feature| feature.and_then(build)).collect(),
            prediction: self.prediction.take().and_then(|builder| builder.build(PREDICTION.into(), LIVE_BINS)),
            score: self.score.take().and_then(|builder| builder.build(SCORE.into(), LIVE_BINS)),
        })
    }
}

/// The name of the predictions among the features.
pub(super) const PREDICTION: &str = "prediction";

/// The name of their scores.
pub(super) const SCORE: &str = "score";

fn add_cell(builder: &mut Builder, cell: &Cell) {
    match cell {
        Cell::Missing => builder.add_missing(),
        Cell::Boolean(value) => builder.add_number(f64::from(u8::from(*value))),
        Cell::Integer(value) => builder.add_number(nearest(*value)),
        Cell::Float(value) => builder.add_number(*value),
        Cell::Text(text) => builder.add_text(text),
    }
}

/// Adds a prediction: classes by their names, whatever people call them.
pub(super) fn add_value(builder: &mut Builder, value: &Value) {
    match value {
        Value::Integer(class) => builder.add_text(&class.to_string()),
        Value::Text(class) => builder.add_text(class),
        Value::Number(number) => builder.add_number(*number),
    }
}
