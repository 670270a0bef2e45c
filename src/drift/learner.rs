//! A baseline in the making: the first rows of a version that came without one.
//!
//! Rows that come after the last of these and before the baseline is made wait here, and are counted once it is.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::LIVE_BINS;
use super::baseline::Subject;
use super::builder::Builder;
use super::window::nearest;
use crate::model::features::{Cell, Inputs};
use crate::model::outputs::{Outputs, Prediction, Value};

/// What requests may take that wait for the baseline; those that come after are not counted. A baseline is made every few
/// seconds.
const LATE_MAX_BYTES: usize = 16 << 20;

/// A learner of more values is not saved, because they would be written once a minute.
const SAVED_VALUES_MAX: usize = 1 << 20;

/// Gathers values until it has enough rows. What it holds is bounded by these, and by the length of a category.
#[derive(Debug)]
pub(super) struct Learner {
    rows: u64,
    rows_max: u64,
    /// By position in the version's features; nothing where the baseline is known.
    features: Vec<Feature>,
    prediction: Option<Builder>,
    score: Option<Builder>,
    taken: bool,
    late: Vec<Late>,
    late_bytes: usize,
    is_closed: bool,
}

/// A feature by its name and what was seen of it; nothing where its baseline is known.
type Feature = Option<(Arc<str>, Builder)>;

/// A request that came when there were enough rows already.
#[derive(Debug)]
pub(super) struct Late {
    pub(super) inputs: Inputs,
    pub(super) outputs: Outputs,
    pub(super) key: Arc<str>,
    /// The rows before were still learned.
    pub(super) first: usize,
}

/// A learner as it outlasts a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedLearner {
    rows: u64,
    features: Vec<Feature>,
    prediction: Option<Builder>,
    score: Option<Builder>,
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
    pub(super) fn new(rows_max: u64, features: Vec<Feature>, prediction: bool, score: bool) -> Option<Self> {
        let wanted = prediction || score || features.iter().any(Option::is_some);
        let of = |wanted: bool| wanted.then(Builder::default);
        let (prediction, score) = (of(prediction), of(score));
        wanted.then_some(Self {
            rows: 0,
            rows_max,
            features,
            prediction,
            score,
            taken: false,
            late: Vec::new(),
            late_bytes: 0,
            is_closed: false,
        })
    }

    /// How many rows it has.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes a request of the caller `key`: rows that are still wanted are learned, others wait. `false` once it is
    /// [closed](Self::close).
    pub(super) fn add(&mut self, inputs: &Inputs, outputs: &Outputs, key: &Arc<str>) -> bool {
        if self.is_closed {
            return false;
        }
        let first = self.learn(inputs, outputs);
        if first < inputs.rows() && self.late_bytes < LATE_MAX_BYTES {
            self.late_bytes += weight(inputs);
            self.late.push(Late { inputs: inputs.clone(), outputs: outputs.clone(), key: Arc::clone(key), first });
        }
        true
    }

    /// Learns as many rows as are still wanted, and says how many that were.
    fn learn(&mut self, inputs: &Inputs, outputs: &Outputs) -> usize {
        for (at, prediction) in (0..inputs.rows()).zip(outputs.predictions()) {
            if self.rows >= self.rows_max {
                return at;
            }
            self.rows += 1;
            for (feature, cell) in self.features.iter_mut().zip(inputs.row(at)) {
                if let Some((_, builder)) = feature {
                    add_cell(builder, cell);
                }
            }
            self.add_prediction(prediction);
        }
        inputs.rows()
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

    /// Takes nothing more, and gives what waits to whoever has the baseline.
    pub(super) fn close(&mut self) -> Vec<Late> {
        self.is_closed = true;
        std::mem::take(&mut self.late)
    }

    /// What another process needs to go on; nothing if that is too much, or all is learned.
    pub(super) fn saved(&self) -> Option<SavedLearner> {
        let builders = self.features.iter().flatten().map(|(_, builder)| builder);
        let values: usize = builders.chain(&self.prediction).chain(&self.score).map(Builder::len).sum();
        if self.taken || values > SAVED_VALUES_MAX {
            return None;
        }
        let sorted = |builder: &Option<Builder>| builder.clone().map(Builder::sorted);
        let feature = |(name, builder): &(Arc<str>, Builder)| (Arc::clone(name), builder.clone().sorted());
        Some(SavedLearner {
            rows: self.rows,
            features: self.features.iter().map(|known| known.as_ref().map(feature)).collect(),
            prediction: sorted(&self.prediction),
            score: sorted(&self.score),
        })
    }

    /// Goes on where another process ended, if that learned the same.
    pub(super) fn restore(&mut self, saved: SavedLearner) {
        let SavedLearner { rows, features, prediction, score } = saved;
        let is_same = |(ours, saved): (&Feature, &Feature)| match (ours, saved) {
            (Some((name, ours)), Some((saved_name, saved))) => {
                name == saved_name && ours.is_of_texts() == saved.is_of_texts()
            }
            (ours, saved) => ours.is_none() && saved.is_none(),
        };
        if self.features.len() == features.len()
            && self.features.iter().zip(&features).all(is_same)
            && self.prediction.is_some() == prediction.is_some()
            && self.score.is_some() == score.is_some()
        {
            (self.rows, self.features, self.prediction, self.score) = (rows, features, prediction, score);
        }
    }
}

/// What a request takes in memory, roughly.
fn weight(inputs: &Inputs) -> usize {
    let text = |cell: &Cell| if let Cell::Text(text) = cell { text.len() } else { 0 };
    let cells = (0..inputs.rows()).flat_map(|row| inputs.row(row));
    size_of::<Late>() + cells.map(|cell| size_of::<Cell>() + text(cell)).sum::<usize>()
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
