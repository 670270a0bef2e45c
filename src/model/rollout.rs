//! A version on trial, as the data plane sees it: who answers a request, what is compared, and how each side did.
//!
//! Where nothing is on trial a request pays one look at an empty option. Otherwise it is routed by a rule that is part
//! of the snapshot it took, so that no two looks can disagree.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::outputs::{Outputs, Prediction, Value};
use super::session::{Model, PredictError, Stage};
use super::{Inputs, ModelName};

/// A part of all callers or requests, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Share(f64);

impl Share {
    /// All of them.
    pub const ALL: Self = Self(1.0);

    /// `share` of them, if it is from 0 to 1.
    #[must_use]
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    /// The number, 0 to 1.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }

    /// Whether the key `key_id` is among this share of the callers of `model`. The same for as long as the share does not
    /// shrink, in every process: a caller does not go back and forth between two versions.
    #[must_use]
    pub fn holds(self, model: &ModelName, key_id: &str) -> bool {
        place_of(model, key_id) < self.0
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0 * 100.0)
    }
}

/// Where a key stands among the callers of a model: evenly spread from 0 to below 1.
fn place_of(model: &ModelName, key_id: &str) -> f64 {
    let mut hasher = Sha256::new();
    hasher.update(model.as_str());
    // No name and no key holds it, so that no two pairs run together.
    hasher.update([0]);
    hasher.update(key_id);
    let [a, b, c, d, ..]: [u8; 32] = hasher.finalize().into();
    f64::from(u32::from_be_bytes([a, b, c, d])) / (f64::from(u32::MAX) + 1.0)
}

/// What happens to requests while something is on trial.
#[derive(Clone, Debug)]
pub enum Rule {
    /// The serving version answers and is watched.
    Watch {
        /// The version before, which answers some of the same rows after it, for its pace: only what runs at the same time
        /// on the same machine can be compared. Unset where it takes other rows.
        before: Option<Arc<Model>>,
    },
    /// This share of the callers is answered by the challenger.
    Canary {
        /// Who may come to serve.
        challenger: Arc<Model>,
        /// How many callers it answers.
        share: Share,
    },
    /// The serving version answers; the challenger answers the same rows after it, and nobody is told.
    Shadow {
        /// Who may come to serve.
        challenger: Arc<Model>,
        /// How many callers' rows it is given.
        share: Share,
        /// Numbers no further apart than this part of the larger are the same answer.
        tolerance: f64,
    },
}

/// Of the requests to a watched version, one in so many is answered by the version before, too.
pub const EVERY: u64 = 4;

/// Something on trial and how it goes. A new step of a rollout is a new trial.
#[derive(Debug)]
pub struct Trial {
    rule: Rule,
    /// How the serving version does.
    pub serving: Tally,
    /// How the challenger does; of a shadow also what was compared.
    pub challenger: Tally,
    /// How the version before a watched one does.
    pub before: Tally,
    /// Requests that might have been answered by the version before, too.
    seen: AtomicU64,
}

impl Trial {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(rule: Rule) -> Self {
        let [serving, challenger, before] = [(); 3].map(|()| Tally::default());
        Self { rule, serving, challenger, before, seen: AtomicU64::new(0) }
    }

    /// Who answers what.
    #[must_use]
    pub fn rule(&self) -> &Rule {
        &self.rule
    }

    /// Whoever is to be judged: the challenger, or the serving version where it is merely watched.
    #[must_use]
    pub fn judged(&self) -> Counts {
        match self.rule {
            Rule::Watch { .. } => self.serving.counts(),
            Rule::Canary { .. } | Rule::Shadow { .. } => self.challenger.counts(),
        }
    }

    /// Counts a request that was not answered a second time for want of room.
    pub(super) fn shed(&self) {
        match self.rule {
            Rule::Watch { .. } => self.before.shed(),
            Rule::Canary { .. } | Rule::Shadow { .. } => self.challenger.shed(),
        }
    }
}

/// How one side of a trial does. Counts requests, and of comparisons the rows.
#[derive(Debug, Default)]
pub struct Tally {
    answered: AtomicU64,
    failed: AtomicU64,
    not_finite: AtomicU64,
    nanos: AtomicU64,
    /// Squares of microseconds. There is room for 180,000 runs of ten seconds.
    squares: AtomicU64,
    compared: AtomicU64,
    disagreed: AtomicU64,
    shed: AtomicU64,
}

impl Tally {
    /// Counts what came of a request. What is the caller's fault, or for want of room, says nothing about a version.
    pub fn note(&self, answer: Result<(), &PredictError>, took: Duration) {
        let counter = match answer {
            Ok(()) => &self.answered,
            Err(PredictError::NotFinite) => &self.not_finite,
            Err(
                PredictError::Runtime(_)
                | PredictError::Answer(_)
                | PredictError::DeadlineExceeded { stage: Stage::Run },
            ) => &self.failed,
            Err(
                PredictError::Input(_)
                | PredictError::Overloaded
                | PredictError::DeadlineExceeded { stage: Stage::Queue },
            ) => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.squares.fetch_add(micros.saturating_mul(micros), Ordering::Relaxed);
    }

    /// Counts rows that two versions answered, and those they answered differently.
    fn compare(&self, rows: usize, disagreed: usize) {
        self.compared.fetch_add(rows as u64, Ordering::Relaxed);
        self.disagreed.fetch_add(disagreed as u64, Ordering::Relaxed);
    }

    /// Counts a request that was not compared for want of room.
    fn shed(&self) {
        self.shed.fetch_add(1, Ordering::Relaxed);
    }

    /// The figures now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            answered: read(&self.answered),
            failed: read(&self.failed),
            not_finite: read(&self.not_finite),
            time: Duration::from_nanos(read(&self.nanos)),
            squares: read(&self.squares),
            compared: read(&self.compared),
            disagreed: read(&self.disagreed),
            shed: read(&self.shed),
        }
    }
}

/// The figures of a [`Tally`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests the version failed, or was too slow for.
    pub failed: u64,
    /// Requests it answered with something that is no number.
    pub not_finite: u64,
    /// What all of these took together.
    pub time: Duration,
    /// The sum of the squares of what each took, in microseconds squared.
    pub squares: u64,
    /// Rows that both versions answered.
    pub compared: u64,
    /// Rows of these that they answered differently.
    pub disagreed: u64,
    /// Requests that were not compared because the line was full.
    pub shed: u64,
}

impl Counts {
    /// Requests that say something about the version.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.answered + self.failed + self.not_finite
    }

    /// The part of the requests that failed.
    #[must_use]
    pub fn failed_rate(&self) -> f64 {
        rate(self.failed, self.requests())
    }

    /// The part of the requests that were answered with something that is no number.
    #[must_use]
    pub fn not_finite_rate(&self) -> f64 {
        rate(self.not_finite, self.requests())
    }

    /// The part of the compared rows that were answered differently.
    #[must_use]
    pub fn disagreement(&self) -> f64 {
        rate(self.disagreed, self.compared)
    }

    /// What a request took, in the mean; zero where there was none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        self.time.checked_div(u32::try_from(self.requests()).unwrap_or(u32::MAX)).unwrap_or_default()
    }

    /// How far [`mean`](Self::mean) may be off by chance: its standard error. One run that the machine held up for long
    /// moves the mean, and this as far.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52, and squares need no more digits")]
    pub fn mean_error(&self) -> Duration {
        let requests = self.requests().max(1) as f64;
        let mean = self.mean().as_secs_f64() * 1e6;
        let variance = (self.squares as f64 / requests - mean * mean).max(0.0);
        Duration::from_secs_f64((variance / requests).sqrt() / 1e6)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failed, not_finite, compared, disagreed, shed, .. } = self;
        write!(f, "{} requests, {failed} failed, {not_finite} not finite", self.requests())?;
        write!(f, ", {:.3} ms in the mean", self.mean().as_secs_f64() * 1000.0)?;
        if compared + shed > 0 {
            write!(f, ", {disagreed} of {compared} rows answered differently, {shed} requests not compared")?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
fn rate(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 }
}

/// Who answers one request. Taken once; holds its version to the end of the request.
#[derive(Clone, Debug)]
pub struct Route {
    model: Arc<Model>,
    watched: Option<Watched>,
}

#[derive(Clone, Debug)]
struct Watched {
    trial: Arc<Trial>,
    as_challenger: bool,
}

impl Route {
    /// The answer of `serving` to a request of `key_id`, or of who is on trial beside it.
    pub(super) fn find(serving: &Arc<Model>, trial: Option<&Arc<Trial>>, key_id: &str) -> Self {
        let Some(trial) = trial else { return Self { model: Arc::clone(serving), watched: None } };
        let canary = match &trial.rule {
            Rule::Canary { challenger, share } => share.holds(&serving.id().name, key_id).then_some(challenger),
            Rule::Watch { .. } | Rule::Shadow { .. } => None,
        };
        let watched = Some(Watched { trial: Arc::clone(trial), as_challenger: canary.is_some() });
        Self { model: Arc::clone(canary.unwrap_or(serving)), watched }
    }

    /// The answer of a version to a caller who stays on it; `trial` is what it is the serving version of, if it is.
    pub(super) fn held(model: &Arc<Model>, trial: Option<&Arc<Trial>>) -> Self {
        let watched = trial.map(|trial| Watched { trial: Arc::clone(trial), as_challenger: false });
        Self { model: Arc::clone(model), watched }
    }

    /// The version that answers.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// As [`Model::predict`], and counts how it went if somebody watches.
    ///
    /// # Errors
    /// As [`Model::predict`].
    pub async fn predict(&self, inputs: &Inputs, deadline: Instant) -> Result<Outputs, PredictError> {
        let Some(watched) = &self.watched else { return self.model.predict(inputs, deadline).await };
        let (answer, took) = self.model.predict_timed(inputs, deadline).await;
        watched.tally().note(answer.as_ref().map(drop), took);
        answer
    }

    /// The trial in which another version is to answer the rows of `key_id` after the caller has its answer.
    pub(super) fn shadowed(&self, key_id: &str) -> Option<&Arc<Trial>> {
        let trial = &self.watched.as_ref()?.trial;
        let is_wanted = match &trial.rule {
            Rule::Shadow { share, .. } => share.holds(&self.model.id().name, key_id),
            Rule::Watch { before } => {
                before.is_some() && trial.seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(EVERY)
            }
            Rule::Canary { .. } => false,
        };
        is_wanted.then_some(trial)
    }
}

impl Watched {
    fn tally(&self) -> &Tally {
        if self.as_challenger { &self.trial.challenger } else { &self.trial.serving }
    }
}

impl Trial {
    /// Has the other version answer rows that the serving version answered with `told`, and compares.
    pub(super) async fn compare(&self, inputs: &Inputs, told: &Outputs, deadline: Instant) {
        let (challenger, tolerance) = match &self.rule {
            Rule::Shadow { challenger, tolerance, .. } => (challenger, tolerance),
            Rule::Watch { before: Some(before) } => {
                let (answer, took) = before.replay_timed(inputs, deadline).await;
                return self.before.note(answer.as_ref().map(drop), took);
            }
            Rule::Watch { before: None } | Rule::Canary { .. } => return,
        };
        let (answer, took) = challenger.predict_timed(inputs, deadline).await;
        self.challenger.note(answer.as_ref().map(drop), took);
        if let Ok(found) = answer {
            let pairs = told.predictions().iter().zip(found.predictions());
            let disagreed = pairs.filter(|(told, found)| !agree(told, found, *tolerance)).count();
            self.challenger.compare(inputs.rows(), disagreed);
        }
    }
}

/// Whether a caller would read the same in both: the same label where there are labels, else the same class, or numbers
/// no further apart than `tolerance` of the larger.
fn agree(one: &Prediction, other: &Prediction, tolerance: f64) -> bool {
    if let (Some(one), Some(other)) = (&one.label, &other.label) {
        return one == other;
    }
    match (&one.value, &other.value) {
        (Value::Number(one), Value::Number(other)) => (one - other).abs() <= tolerance * one.abs().max(other.abs()),
        (one, other) => one == other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> ModelName {
        "credit-score".parse().unwrap()
    }

    #[test]
    fn a_share_of_many_keys_is_that_share() {
        let keys = (0..10_000).map(|key| format!("key{key}"));
        let share = Share::new(0.2).unwrap();
        let held = keys.filter(|key| share.holds(&name(), key)).count();
        assert!((1850..=2150).contains(&held), "{held} of 10000");
    }

    #[test]
    fn another_model_has_other_callers_first() {
        let share = Share::new(0.5).unwrap();
        let other: ModelName = "churn".parse().unwrap();
        let differs = |key: &String| share.holds(&name(), key) != share.holds(&other, key);
        assert!((0..100).map(|key| format!("key{key}")).filter(differs).count() > 20);
    }

    #[test]
    fn the_ends_are_nobody_and_everybody() {
        assert!(!Share::new(0.0).unwrap().holds(&name(), "a"));
        assert!(Share::ALL.holds(&name(), "a"));
        assert_eq!(Share::new(1.01), None);
        assert_eq!(Share::new(f64::NAN), None);
    }

    fn number(value: f64) -> Prediction {
        Prediction { value: Value::Number(value), label: None, score: None }
    }

    fn class(value: i64, label: Option<&str>) -> Prediction {
        Prediction { value: Value::Integer(value), label: label.map(Into::into), score: Some(0.5) }
    }

    #[test]
    fn versions_agree_when_a_caller_would_read_the_same() {
        assert!(agree(&number(100.0), &number(95.0), 0.05));
        assert!(!agree(&number(100.0), &number(94.0), 0.05));
        assert!(agree(&number(0.0), &number(0.0), 0.0));
        assert!(agree(&class(1, None), &class(1, None), 0.0));
        assert!(!agree(&class(1, None), &class(2, None), 1.0));
        assert!(agree(&class(1, Some("Good")), &class(7, Some("Good")), 0.0));
        assert!(!agree(&class(1, Some("Good")), &class(1, Some("Poor")), 0.0));
    }

    #[test]
    fn what_is_not_the_versions_fault_is_not_counted_against_it() {
        let tally = Tally::default();
        let took = Duration::from_millis(2);
        tally.note(Ok(()), took);
        tally.note(Err(&PredictError::NotFinite), took);
        tally.note(Err(&PredictError::Runtime("node 3".into())), took);
        tally.note(Err(&PredictError::DeadlineExceeded { stage: Stage::Run }), took);
        tally.note(Err(&PredictError::DeadlineExceeded { stage: Stage::Queue }), took);
        tally.note(Err(&PredictError::Overloaded), took);
        let counts = tally.counts();
        assert_eq!((counts.requests(), counts.failed, counts.not_finite), (4, 2, 1));
        assert_eq!(counts.mean(), took);
        assert!((counts.failed_rate() - 0.5).abs() < 1e-9);
    }

    proptest! {
        /// Who is once in stays in while the share grows.
        #[test]
        fn callers_stay_with_the_challenger_as_its_share_grows(key in "[a-z0-9]{1,20}", a in 0.0..=1.0, b in 0.0..=1.0) {
            let (small, large) = if a <= b { (a, b) } else { (b, a) };
            let holds = |share| Share::new(share).unwrap().holds(&name(), &key);
            prop_assert!(!holds(small) || holds(large));
        }
    }
}
