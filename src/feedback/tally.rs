//! How predictions compare with what came true: sums that labels are added to, and taken from when they are corrected.
//! Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Classes that are told apart, predicted and true ones each; the rest are [`OTHER`]. A table of all is 4 KB of figures.
const CLASSES_MAX: usize = 64;

/// The classes that have no place of their own.
pub const OTHER: &str = "__other__";

/// The least probability a true class counts with: the model was sure of another, and one row must not outweigh all.
const LEAST_PROBABILITY: f64 = 1e-15;

/// One prediction beside what came true.
#[derive(Clone, Debug, PartialEq)]
pub enum Compared {
    /// Two classes by their names, and the probability the model gave to the true one, where it gives any.
    Classes {
        /// What was predicted.
        predicted: String,
        /// What came true.
        actual: String,
        /// The probability of the true class.
        probability: Option<f32>,
    },
    /// Two numbers.
    Numbers {
        /// What was predicted.
        predicted: f64,
        /// What came true.
        actual: f64,
    },
}

/// Sums over labelled rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    rows: u64,
    correct: u64,
    /// Predicted class → true class → rows.
    confusion: BTreeMap<String, BTreeMap<String, u64>>,
    log_loss: f64,
    log_loss_rows: u64,
    error: f64,
    absolute_error: f64,
    squared_error: f64,
    is_numbers: bool,
}

/// What sums come down to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Rows whose label came.
    pub labelled_rows: u64,
    /// The share of rows whose class was right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// The mean of −ln of the probability of the true class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_loss: Option<f64>,
    /// The mean distance from the true number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mae: Option<f64>,
    /// The root of the mean squared distance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rmse: Option<f64>,
    /// The mean of predicted less true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bias: Option<f64>,
}

/// One cell of the confusion table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// The class that was predicted.
    pub predicted: String,
    /// The class that came true.
    pub actual: String,
    /// How many rows.
    pub rows: u64,
}

impl Tally {
    /// Adds a labelled row.
    pub fn add(&mut self, row: &Compared) {
        self.rows += 1;
        match row {
            Compared::Classes { predicted, actual, probability } => {
                self.correct += u64::from(predicted == actual);
                *self.cell(predicted, actual) += 1;
                if let Some(probability) = probability {
                    self.log_loss_rows += 1;
                    self.log_loss += log_loss(*probability);
                }
            }
            Compared::Numbers { predicted, actual } => {
                self.is_numbers = true;
                self.add_error(predicted - actual, 1.0);
            }
        }
    }

    /// Takes a row away that was added.
    pub fn remove(&mut self, row: &Compared) {
        self.rows = self.rows.saturating_sub(1);
        match row {
            Compared::Classes { predicted, actual, probability } => {
                self.correct = self.correct.saturating_sub(u64::from(predicted == actual));
                let cell = self.cell(predicted, actual);
                *cell = cell.saturating_sub(1);
                if let Some(probability) = probability {
                    self.log_loss_rows = self.log_loss_rows.saturating_sub(1);
                    self.log_loss -= log_loss(*probability);
                }
            }
            Compared::Numbers { predicted, actual } => self.add_error(predicted - actual, -1.0),
        }
    }

    fn add_error(&mut self, error: f64, sign: f64) {
        self.error += sign * error;
        self.absolute_error += sign * error.abs();
        self.squared_error += sign * error * error;
    }

    /// The count of a pair. A class that has no place yet gets one while there is room.
    fn cell(&mut self, predicted: &str, actual: &str) -> &mut u64 {
        let has_room = self.confusion.contains_key(predicted) || self.confusion.len() < CLASSES_MAX;
        let row = self.confusion.entry(if has_room { predicted } else { OTHER }.to_owned()).or_default();
        let has_room = row.contains_key(actual) || row.len() < CLASSES_MAX;
        row.entry(if has_room { actual } else { OTHER }.to_owned()).or_default()
    }

    /// Adds all of another's rows.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.correct += other.correct;
        for (predicted, row) in &other.confusion {
            for (actual, rows) in row {
                *self.cell(predicted, actual) += rows;
            }
        }
        self.log_loss += other.log_loss;
        self.log_loss_rows += other.log_loss_rows;
        self.error += other.error;
        self.absolute_error += other.absolute_error;
        self.squared_error += other.squared_error;
        self.is_numbers |= other.is_numbers;
    }

    /// The figures.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let number = |sum: f64| self.is_numbers.then(|| mean(sum, self.rows)).flatten();
        #[expect(clippy::cast_precision_loss, reason = "rows stay far below 2^52")]
        let accuracy = if self.is_numbers { None } else { mean(self.correct as f64, self.rows) };
        Figures {
            labelled_rows: self.rows,
            accuracy,
            log_loss: mean(self.log_loss, self.log_loss_rows),
            mae: number(self.absolute_error),
            rmse: number(self.squared_error).map(|square| square.max(0.0).sqrt()),
            bias: number(self.error),
        }
    }

    /// The pairs that came, by predicted and then by true class.
    #[must_use]
    pub fn confusion(&self) -> Vec<Confusion> {
        let pair = |predicted: &String, actual: &String, rows: u64| Confusion {
            predicted: predicted.clone(),
            actual: actual.clone(),
            rows,
        };
        let rows = self.confusion.iter().flat_map(|(predicted, row)| row.iter().map(move |cell| (predicted, cell)));
        rows.filter(|(_, (_, rows))| **rows > 0)
            .map(|(predicted, (actual, rows))| pair(predicted, actual, *rows))
            .collect()
    }
}

fn log_loss(probability: f32) -> f64 {
    -f64::from(probability).clamp(LEAST_PROBABILITY, 1.0).ln()
}

#[expect(clippy::cast_precision_loss, reason = "rows stay far below 2^52")]
fn mean(sum: f64, rows: u64) -> Option<f64> {
    (rows > 0).then(|| sum / rows as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn classes(predicted: &str, actual: &str, probability: Option<f32>) -> Compared {
        Compared::Classes { predicted: predicted.to_owned(), actual: actual.to_owned(), probability }
    }

    fn tally(rows: &[Compared]) -> Tally {
        let mut tally = Tally::default();
        for row in rows {
            tally.add(row);
        }
        tally
    }

    #[test]
    fn classes_have_an_accuracy_a_table_and_a_log_loss() {
        let rows = [
            classes("Good", "Good", Some(0.5)),
            classes("Good", "Poor", Some(0.25)),
            classes("Poor", "Poor", None),
            classes("Good", "Poor", Some(0.0)),
        ];
        let tally = tally(&rows);
        let figures = tally.figures();
        let expected = (0.5_f64.ln() + 0.25_f64.ln() + 1e-15_f64.ln()) / -3.0;
        assert_eq!((figures.labelled_rows, figures.accuracy, figures.mae), (4, Some(0.5), None));
        assert!((figures.log_loss.unwrap() - expected).abs() < 1e-12);
        let cell = |predicted: &str, actual: &str, rows| Confusion {
            predicted: predicted.to_owned(),
            actual: actual.to_owned(),
            rows,
        };
        assert_eq!(tally.confusion(), [cell("Good", "Good", 1), cell("Good", "Poor", 2), cell("Poor", "Poor", 1)]);
    }

    #[test]
    fn numbers_have_errors() {
        let row = |predicted, actual| Compared::Numbers { predicted, actual };
        let figures = tally(&[row(3.0, 1.0), row(1.0, 2.0)]).figures();
        assert_eq!((figures.mae, figures.bias, figures.rmse), (Some(1.5), Some(0.5), Some(2.5_f64.sqrt())));
        assert_eq!((figures.labelled_rows, figures.accuracy), (2, None));
    }

    #[test]
    fn nothing_has_no_figures() {
        assert_eq!(Tally::default().figures(), Figures::default());
    }

    #[test]
    fn classes_without_a_place_are_counted_together() {
        let rows: Vec<_> = (0..200).map(|n| classes(&n.to_string(), &n.to_string(), None)).collect();
        let mut tally = tally(&rows);
        let names = tally.confusion();
        assert_eq!(names.iter().map(|cell| cell.rows).sum::<u64>(), 200);
        assert!(names.len() <= 2 * CLASSES_MAX + 1 && names.iter().any(|cell| cell.predicted == OTHER));
        for row in &rows {
            tally.remove(row);
        }
        assert_eq!((tally.confusion(), tally.figures().labelled_rows), (Vec::new(), 0));
    }

    proptest! {
        #[test]
        fn what_is_corrected_is_as_if_it_had_never_been(rows in prop::collection::vec((0..5_u8, 0..5_u8, 0.0..1.0_f32), 1..50)) {
            let row = |(predicted, actual, probability): &(u8, u8, f32)|
                classes(&predicted.to_string(), &actual.to_string(), Some(*probability));
            let rows: Vec<_> = rows.iter().map(row).collect();
            let (kept, corrected) = rows.split_at(rows.len() / 2);
            let mut all = tally(&rows);
            for row in corrected {
                all.remove(row);
            }
            let expected = tally(kept);
            prop_assert_eq!(all.confusion(), expected.confusion());
            let (all, expected) = (all.figures(), expected.figures());
            prop_assert_eq!((all.labelled_rows, all.accuracy), (expected.labelled_rows, expected.accuracy));
            let close = |one: Option<f64>, other: Option<f64>| (one.unwrap_or(0.0) - other.unwrap_or(0.0)).abs() < 1e-6;
            prop_assert!(close(all.log_loss, expected.log_loss));
        }
    }
}
