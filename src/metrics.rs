//! Measurements of requests, features and predictions, aggregated in the process.
//!
//! Observing is a side door of the request path: it does not wait, cannot fail, and what it must refuse (a series over
//! the cap) it counts. [`cloudwatch`] sends what was gathered once a minute; [`prometheus`] shows the totals.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{Inputs, Model, Outputs};

pub mod cloudwatch;
pub mod prometheus;

/// What is kept, and how much of it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Distinct series (name and labels) at most; what is above is counted in `modelgate_series_refused_total`.
    pub max_series: NonZeroUsize,
    /// Categories kept per text feature; the rest are counted as `__other__`.
    pub max_categories: NonZeroUsize,
}

/// The measurements of one process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<()>);

/// One family of outside figures to show at `/metrics` beside our own (queue lengths, counters of other modules).
#[derive(Clone, Debug)]
pub struct Family {
    /// The metric's name, without a `_total` suffix.
    pub name: &'static str,
    /// One line for people.
    pub help: &'static str,
    /// Whether it only grows.
    pub counter: bool,
    /// Label values and the figure.
    pub samples: Vec<(Vec<(&'static str, String)>, f64)>,
}

impl Metrics {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        todo!()
    }

    /// One answered request: every feature of every row, every prediction, and how long it took.
    pub fn observe(&self, model: &Model, inputs: &Inputs, outputs: &Outputs, took: Duration) {
        todo!()
    }

    /// One request that got an error; `code` is the error's code as the caller saw it, `model` is given where one was
    /// found (its name as configured, never the caller's text).
    pub fn failed(&self, model: Option<&Model>, code: &'static str, status: u16, took: Duration) {
        todo!()
    }

    /// The Prometheus page: our own totals, then `outside`.
    #[must_use]
    pub fn render(&self, outside: &[Family]) -> String {
        todo!()
    }
}
