//! Answers on their way to be remembered, and how a remembered one is written: the prediction of each row, and the
//! probability of each class for the log loss.
//!
//! ```text
//! answer  u8 0 for numbers, 1 for classes; u16 probabilities a row; one row after the other
//! row     f64, or u16 the class's place among the names (0xffff: u16 length and text); that many f32
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;
use jiff::Timestamp;
use tokio::sync::Notify;

use crate::model::{Identity, Outcomes, Outputs, Value};

/// Answers and rows that wait at most; what comes after is not remembered, and counted. An answer is a reference to
/// outputs that the request made anyway.
const ANSWERS: usize = 8192;
const ROWS: usize = 65_536;

/// Of a model with more classes no probabilities are remembered, and there is no log loss.
const CLASSES_MAX: usize = 64;

/// A class that is not among the names.
const UNLISTED: u16 = u16::MAX;

/// An answer that was given.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The id the caller was given.
    pub request_id: Box<str>,
    /// Whose request it was.
    pub account: Arc<str>,
    /// When it was answered.
    pub time: Timestamp,
    /// Which version answered.
    pub model: Arc<Identity>,
    /// What its predictions can say.
    pub outcomes: Arc<Outcomes>,
    /// What it answered.
    pub outputs: Outputs,
}

/// Between the request path and the keeper.
#[derive(Debug)]
pub(super) struct Queue {
    answers: ArrayQueue<Answered>,
    rows: AtomicUsize,
    /// Rows that found no room.
    pub(super) dropped: AtomicU64,
    pub(super) half_full: Notify,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            answers: ArrayQueue::new(ANSWERS),
            rows: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            half_full: Notify::new(),
        }
    }

    /// Never waits; takes no lock.
    pub(super) fn offer(&self, answered: Answered) {
        let rows = answered.outputs.predictions().len();
        let before = self.rows.fetch_add(rows, Ordering::Relaxed);
        if before + rows > ROWS || self.answers.push(answered).is_err() {
            self.rows.fetch_sub(rows, Ordering::Relaxed);
            self.dropped.fetch_add(rows as u64, Ordering::Relaxed);
        }
        if self.answers.len() > ANSWERS / 2 || before + rows > ROWS / 2 {
            self.half_full.notify_one();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// All that waits now, the oldest first.
    pub(super) fn drain(&self) -> Vec<Answered> {
        let mut answers = Vec::new();
        while answers.len() < ANSWERS
            && let Some(answered) = self.answers.pop()
        {
            self.rows.fetch_sub(answered.outputs.predictions().len(), Ordering::Relaxed);
            answers.push(answered);
        }
        answers
    }
}

/// One row as it is remembered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Remembered {
    pub(super) prediction: Predicted,
    /// In the order of the names; empty where the model has none, or too many.
    pub(super) probabilities: Vec<f32>,
}

/// What was predicted.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Predicted {
    Number(f64),
    /// As the model writes it.
    Class(String),
}

/// Writes the rows of an answer.
pub(super) fn encode(outcomes: &Outcomes, outputs: &Outputs) -> Vec<u8> {
    let names = match outcomes {
        Outcomes::Numbers => &[][..],
        Outcomes::Classes { names, .. } => &names[..],
    };
    let width = if names.len() <= CLASSES_MAX && !outputs.predictions().is_empty() {
        outputs.probabilities(0).len()
    } else {
        0
    };
    let mut out = vec![u8::from(*outcomes != Outcomes::Numbers)];
    put(&mut out, width);
    for (row, prediction) in outputs.predictions().iter().enumerate() {
        match (&prediction.value, outcomes) {
            (Value::Number(number), Outcomes::Numbers) => out.extend_from_slice(&number.to_le_bytes()),
            (value, _) => put_class(&mut out, &value.class_text(), names),
        }
        outputs.probabilities(row)[..width].iter().for_each(|share| out.extend_from_slice(&share.to_le_bytes()));
    }
    out
}

/// Places and lengths are written in 16 bits.
fn put(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(&u16::try_from(number).unwrap_or(UNLISTED).to_le_bytes());
}

fn put_class(out: &mut Vec<u8>, class: &str, names: &[(String, Arc<str>)]) {
    let place = names.iter().position(|(written, _)| written == class).filter(|place| *place < usize::from(UNLISTED));
    put(out, place.unwrap_or(usize::from(UNLISTED)));
    if place.is_none() {
        let class = &class.as_bytes()[..class.len().min(usize::from(UNLISTED))];
        put(out, class.len());
        out.extend_from_slice(class);
    }
}

/// How many rows an answer has, and the one at `row` if there is one; `None` when the bytes are not an answer.
pub(super) fn decode(bytes: &[u8], outcomes: &Outcomes, row: usize) -> Option<(usize, Option<Remembered>)> {
    let mut cursor = Cursor(bytes);
    let is_classes = cursor.array::<1>()? == [1];
    let width = usize::from(cursor.number()?);
    let mut rows = 0;
    let mut found = None;
    while !cursor.0.is_empty() {
        let prediction = if is_classes {
            Predicted::Class(cursor.class(outcomes)?)
        } else {
            Predicted::Number(f64::from_le_bytes(cursor.array()?))
        };
        let probabilities = (0..width).map(|_| cursor.array().map(f32::from_le_bytes)).collect::<Option<_>>()?;
        if rows == row {
            found = Some(Remembered { prediction, probabilities });
        }
        rows += 1;
    }
    Some((rows, found))
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn number(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn class(&mut self, outcomes: &Outcomes) -> Option<String> {
        let place = self.number()?;
        if place != UNLISTED {
            let Outcomes::Classes { names, .. } = outcomes else { return None };
            return names.get(usize::from(place)).map(|(written, _)| written.clone());
        }
        let length = usize::from(self.number()?);
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Prediction;

    fn classes(are_all: bool) -> Outcomes {
        let names = [("0", "Poor"), ("1", "Good")].map(|(class, name)| (class.to_owned(), name.into()));
        Outcomes::Classes { names: names.into(), are_all }
    }

    fn prediction(value: Value) -> Prediction {
        Prediction { value, label: None, score: None }
    }

    #[track_caller]
    fn check(outcomes: &Outcomes, outputs: &Outputs, row: usize, expected: Remembered) {
        let bytes = encode(outcomes, outputs);
        assert_eq!(decode(&bytes, outcomes, row), Some((outputs.predictions().len(), Some(expected))));
    }

    #[test]
    fn an_answer_is_read_back_row_by_row() {
        let values = [1, 0].map(|class| prediction(Value::Integer(class))).to_vec();
        let outputs = Outputs::new(values, ["Poor".into(), "Good".into()].into(), vec![0.25, 0.75, 0.5, 0.5]);
        let class = |class: &str, shares: &[f32]| Remembered {
            prediction: Predicted::Class(class.to_owned()),
            probabilities: shares.to_vec(),
        };
        check(&classes(true), &outputs, 0, class("1", &[0.25, 0.75]));
        check(&classes(true), &outputs, 1, class("0", &[0.5, 0.5]));
        let bytes = encode(&classes(true), &outputs);
        assert_eq!((bytes.len(), decode(&bytes, &classes(true), 2)), (3 + 2 * 10, Some((2, None))));
        let named = Outputs::new(vec![prediction(Value::Text("Fair".into()))], Arc::default(), Vec::new());
        check(&classes(false), &named, 0, class("Fair", &[]));
        let number = Outputs::new(vec![prediction(Value::Number(2.5))], Arc::default(), Vec::new());
        let expected = Remembered { prediction: Predicted::Number(2.5), probabilities: Vec::new() };
        check(&Outcomes::Numbers, &number, 0, expected);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..64), row in 0..4_usize) {
            decode(&bytes, &classes(false), row);
            decode(&bytes, &Outcomes::Numbers, row);
        }
    }

    fn answered(rows: usize) -> Answered {
        let outputs = Outputs::new(vec![prediction(Value::Number(1.0)); rows], Arc::default(), Vec::new());
        let id = Identity::new("m".parse().unwrap(), crate::model::Version(1), crate::model::Digest([0; 32]), None);
        Answered {
            request_id: "r".into(),
            account: "a".into(),
            time: Timestamp::UNIX_EPOCH,
            model: Arc::new(id),
            outcomes: Arc::new(Outcomes::Numbers),
            outputs,
        }
    }

    #[test]
    fn a_full_queue_drops_the_newest_and_counts_its_rows() {
        let queue = Queue::new();
        (0..70).for_each(|_| queue.offer(answered(1000)));
        assert_eq!((queue.drain().len(), queue.dropped.load(Ordering::Relaxed)), (65, 5000));
        (0..=ANSWERS).for_each(|_| queue.offer(answered(1)));
        assert_eq!((queue.drain().len(), queue.dropped.load(Ordering::Relaxed)), (ANSWERS, 5001));
        assert!(queue.is_empty());
    }
}
