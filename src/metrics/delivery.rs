//! What one sink is still to be told, and which series it is told of.

use std::collections::{BTreeMap, HashMap};

use super::flusher::Flushed;
use super::histogram::Histogram;
use super::sagemaker;
use super::series::Series;
use crate::model::ModelName;

/// What is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Every series.
    #[default]
    Full,
    /// Six of each model, whatever its features and versions.
    Lean,
    /// Those six, and each feature under the names that SageMaker's Model Monitor gave them.
    SageMaker {
        /// The monitoring schedule that a model's alarms name; unset, the model's own name.
        schedules: BTreeMap<ModelName, String>,
    },
}

/// What becomes of a model's own series where those of its versions go out as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OverVersions {
    /// They go out beside them: CloudWatch has alarms on them, and adds nothing up by itself.
    Sent,
    /// They stay here: the sink adds up what shares a name, and would count everything twice.
    LeftOut,
}

/// What was measured and not yet handed to a flusher. Bounded like the totals.
pub(super) type Pending = HashMap<Series, Histogram>;

/// Which delivery: its place among all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place(pub(super) usize);

/// What concerns one sink alone.
#[derive(Debug)]
pub(super) struct Delivery {
    sink: &'static str,
    mode: Mode,
    totals: OverVersions,
    pending: Pending,
    /// What all flushes did; `kept` as it was after the last.
    flushed: Flushed,
}

impl Delivery {
    /// Nothing measured yet for `sink`.
    pub(super) fn new(sink: &'static str, mode: Mode, totals: OverVersions) -> Self {
        Self { sink, mode, totals, pending: Pending::new(), flushed: Flushed::default() }
    }

    /// Keeps measurements, as far as the mode sends them.
    pub(super) fn keep(&mut self, series: &Series, values: &Histogram) {
        let mut keep = |series, values: &Histogram| self.pending.entry(series).or_default().merge(values);
        match &self.mode {
            Mode::Full if self.totals == OverVersions::LeftOut && series.is_over_versions() => (),
            Mode::Full => keep(series.clone(), values),
            _ if series.is_lean() => keep(series.clone(), values),
            Mode::Lean => (),
            Mode::SageMaker { schedules } => {
                for (series, values) in sagemaker::of(series, values, schedules) {
                    keep(series, &values);
                }
            }
        }
    }

    /// What was measured since last time, with the drift and accuracy there are now.
    pub(super) fn take(&mut self, standing: &BTreeMap<Series, f64>) -> Pending {
        for (series, figure) in standing {
            self.keep(series, &Histogram::of(*figure, 1));
        }
        std::mem::take(&mut self.pending)
    }

    /// Notes what a flush did.
    pub(super) fn note(&mut self, flushed: &Flushed) {
        self.flushed.datums += flushed.datums;
        self.flushed.calls += flushed.calls;
        self.flushed.dropped += flushed.dropped;
        self.flushed.kept = flushed.kept;
    }

    /// The sink, and what all flushes did.
    pub(super) fn so_far(&self) -> (&'static str, Flushed) {
        (self.sink, self.flushed.clone())
    }
}
