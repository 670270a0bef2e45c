//! A loaded model version: its features, its session slots, its answers.
//!
//! `Session::run` takes `&mut self`, so a version has N slots, each owned by one run at a time. A run that is known to
//! be short happens where it is asked for; a long one moves to a blocking thread, where its deadline can end it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use ort::session::{RunOptions, Session};
use ort::value::Outlet;
use tokio::time::{Instant, timeout_at};

use super::Identity;
use super::features::{self, Features, FeaturesError, Inputs, InvalidInput, Raw, Target};
use super::onnx_file::{NotOnnx, OnnxFile};
use super::outputs::{Decider, Decision, DecisionError, Outcomes, Outputs};
use super::recent::Recent;
use super::runtime::Runtime;
use super::signature::{Kind, Signature, Tensor};

mod answers;
mod pool;
mod tensors;

use answers::Reader;
use pool::{Lease, Row, Slot, Slots};
use tensors::Feed;

/// A run expected to take longer than this leaves the thread that serves requests.
const INLINE_MAX: Duration = Duration::from_millis(1);

/// How often each slot is run before its version is published: the first runs allocate.
const WARM_UP_RUNS: usize = 3;

/// Everything needed to load a version.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Which version it is.
    pub id: Identity,
    /// The ONNX file.
    pub onnx: PathBuf,
    /// The registry's signature; without one the graph's own inputs are the signature.
    pub signature: Option<Signature>,
    /// How callers write its features.
    pub features: features::Settings,
    /// How outputs become predictions.
    pub decision: Decision,
    /// Session slots: runs at one time. At least one is made.
    pub slots: usize,
}

/// A model version that can answer.
#[derive(Debug)]
pub struct Model {
    id: Arc<Identity>,
    features: Arc<Features>,
    outcomes: Arc<Outcomes>,
    engine: Arc<Engine>,
    slots: Arc<Slots>,
    /// What a row costs in a run, in nanoseconds, as the warm-up measured it.
    row_nanos: AtomicU64,
    recent: Recent,
}

/// Why a version cannot be loaded. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the model file")]
    Unreadable(#[source] std::io::Error),
    /// The file is something else.
    #[error("the model file is not ONNX: {0}")]
    NotOnnx(#[from] NotOnnx),
    /// The weights are in another file, which is not read.
    #[error(
        "the model keeps weights in another file: log it with mlflow.onnx.log_model(…, save_as_external_data=False)"
    )]
    ExternalData,
    /// ONNX Runtime cannot make a session of it.
    #[error(
        "ONNX Runtime {version} refuses the model: {reason}; if it is newer than that, export it with a lower \
         target_opset"
    )]
    Rejected {
        /// The library's version.
        version: String,
        /// What it says.
        reason: String,
    },
    /// The settings do not fit the signature.
    #[error(transparent)]
    Features(#[from] FeaturesError),
    /// The decision does not fit the outputs.
    #[error(transparent)]
    Decision(#[from] DecisionError),
    /// An input of a type that is not fed.
    #[error(
        "the graph's input `{input}` is {found}; inputs can be tensors of float32, float64, int64, int32, bool or string \
         whose first dimension is the rows: cast it inside of the graph"
    )]
    InputType {
        /// The input.
        input: String,
        /// What it is.
        found: String,
    },
    /// A graph for a fixed number of rows.
    #[error("the graph's input `{input}` takes exactly {rows} rows: export it with a dynamic first dimension (axis)")]
    FixedRows {
        /// The input.
        input: String,
        /// How many.
        rows: i64,
    },
    /// No column for an input of the graph.
    #[error(
        "no column of the signature feeds the graph's input `{input}`: log the model with the signature it was exported for"
    )]
    Unfed {
        /// The input.
        input: String,
    },
    /// No input of the graph for a column.
    #[error("no input of the graph takes the column `{column}`: log the model with the signature it was exported for")]
    Untaken {
        /// The column.
        column: String,
    },
    /// An input takes another number of values a row than the signature has for it.
    #[error("the graph's input `{input}` takes {takes}, and the signature has {columns} values a row for it")]
    Width {
        /// The input.
        input: String,
        /// Its shape.
        takes: String,
        /// How many values the signature has for it.
        columns: usize,
    },
    /// A column of a type that the graph's input cannot hold.
    #[error(
        "the column `{column}` does not fit the graph's input `{input}`, which takes {takes}: correct the signature"
    )]
    Type {
        /// The column.
        column: String,
        /// The input.
        input: String,
        /// Its type.
        takes: &'static str,
    },
    /// An optional column of a type that has no value for "missing".
    #[error(
        "the optional column `{feature}` goes into {takes}, which has no gaps: give it a default in the configuration"
    )]
    NoGap {
        /// The column.
        feature: String,
        /// The input's type.
        takes: &'static str,
    },
    /// Outputs that are not understood.
    #[error(
        "the graph's outputs are {found}; they can be a class (int64 or string), with or without scores (float or \
         ZipMap), or one float tensor"
    )]
    Outputs {
        /// Names and types.
        found: String,
    },
    /// A number of scores that differs from the number of classes.
    #[error("the graph gives {columns} scores for {classes} classes; export it with probabilities")]
    Scores {
        /// Scores a row.
        columns: usize,
        /// Classes.
        classes: usize,
    },
    /// Scores whose classes have no names.
    #[error("the graph does not name the classes of its scores: export it with ZipMap (the default of skl2onnx)")]
    UnnamedClasses,
}

impl LoadError {
    fn outputs(outputs: &[Outlet]) -> Self {
        let outputs = outputs.iter().map(|output| format!("`{}`: {}", output.name(), output.dtype()));
        Self::Outputs { found: outputs.collect::<Vec<_>>().join(", ") }
    }
}

/// Why a loaded model gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// ONNX Runtime reported an error.
    #[error("the model failed: {0}")]
    Runtime(String),
    /// The model answered with something that is no number.
    #[error("the model answered with a value that is not finite")]
    NotFinite,
    /// The model answered in another shape than it was loaded with.
    #[error("the model answered with {0}")]
    Answer(String),
    /// A value fits the signature, and not the type the graph has for it: a double beyond 32 bits, a text with a NUL.
    #[error(transparent)]
    Input(#[from] InvalidInput),
    /// All slots are busy and the line for them is full.
    #[error("all sessions are busy")]
    Overloaded,
    /// The deadline passed.
    #[error("the deadline passed while {stage}")]
    DeadlineExceeded {
        /// What it passed during.
        stage: Stage,
    },
}

impl PredictError {
    fn runtime(error: impl std::fmt::Display) -> Self {
        Self::Runtime(error.to_string())
    }
}

/// Where the time went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for a session.
    Queue,
    /// In the model.
    Run,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Queue => "waiting for a session",
            Self::Run => "the model ran",
        })
    }
}

impl Model {
    /// Loads a version. Blocking and possibly long: call it on a thread with a deep stack.
    ///
    /// # Errors
    /// When the version cannot be served, with what to do about it.
    pub fn load(runtime: &Runtime, spec: Spec) -> Result<Self, LoadError> {
        // All sessions are made of the same bytes, whatever happens to the file.
        let onnx = std::fs::read(&spec.onnx).map_err(LoadError::Unreadable)?;
        let file = OnnxFile::read(&onnx)?;
        if file.external_data {
            return Err(LoadError::ExternalData);
        }
        let open = || runtime.session(&onnx).map_err(|error| rejected(runtime, &error));
        let first = open()?;
        let signature = spec.signature.map_or_else(|| tensors::signature_of(first.inputs()), Ok)?;
        let features = Features::new(&signature, spec.features)?;
        let feed = Feed::new(first.inputs(), &signature, &features)?;
        let (reader, form) = Reader::new(first.outputs(), file.classes, spec.decision.labels.len())?;
        let decider = Decider::new(form, spec.decision)?;

        let slot = |session: Session| -> Result<Slot, LoadError> {
            let row = feed.blank().map_err(|error| rejected(runtime, &error))?;
            Ok(Slot { session, row: Row(row) })
        };
        let mut slots = vec![slot(first)?];
        for _ in 1..spec.slots {
            slots.push(slot(open()?)?);
        }
        Ok(Self {
            id: Arc::new(spec.id),
            features: Arc::new(features),
            outcomes: Arc::new(decider.outcomes()),
            engine: Arc::new(Engine { feed, reader, decider }),
            slots: Slots::new(slots),
            row_nanos: AtomicU64::new(u64::MAX),
            recent: Recent::default(),
        })
    }

    /// Which version this is.
    #[must_use]
    pub fn id(&self) -> &Arc<Identity> {
        &self.id
    }

    /// What callers may send.
    #[must_use]
    pub fn features(&self) -> &Arc<Features> {
        &self.features
    }

    /// What its predictions can say.
    #[must_use]
    pub fn outcomes(&self) -> &Arc<Outcomes> {
        &self.outcomes
    }

    /// Answers every row, in order. Waits for a session until `deadline`, behind a bounded number of others. A long run
    /// that passes the deadline, or whose caller goes away, is ended.
    ///
    /// # Errors
    /// When the model fails, answers something that is no answer, or there is no session or no time for it.
    pub async fn predict(&self, inputs: &Inputs, deadline: Instant) -> Result<Outputs, PredictError> {
        self.predict_timed(inputs, deadline).await.0
    }

    /// As [`predict`](Self::predict), and what the run took: nothing of the wait for a session is in it.
    pub(super) async fn predict_timed(
        &self,
        inputs: &Inputs,
        deadline: Instant,
    ) -> (Result<Outputs, PredictError>, Duration) {
        let (answer, took) = self.replay_timed(inputs, deadline).await;
        if answer.is_ok() {
            self.recent.offer(inputs);
        }
        (answer, took)
    }

    /// As [`predict`](Self::predict), for rows that nobody waits for: they are not remembered.
    ///
    /// # Errors
    /// As [`predict`](Self::predict).
    pub async fn replay(&self, inputs: &Inputs, deadline: Instant) -> Result<Outputs, PredictError> {
        self.replay_timed(inputs, deadline).await.0
    }

    /// As [`replay`](Self::replay), and what the run took.
    pub(super) async fn replay_timed(
        &self,
        inputs: &Inputs,
        deadline: Instant,
    ) -> (Result<Outputs, PredictError>, Duration) {
        if inputs.rows() == 0 {
            return (Ok(self.engine.decider.nothing()), Duration::ZERO);
        }
        let expected = self.expected(inputs.rows());
        let mut lease = match self.slots.acquire(expected, deadline).await {
            Ok(lease) => lease,
            Err(error) => return (Err(error), Duration::ZERO),
        };
        let start = Instant::now();
        let answer = if expected <= INLINE_MAX {
            self.engine.run(&mut lease, inputs, None)
        } else {
            self.run_aside(lease, inputs.clone(), deadline).await
        };
        (answer, start.elapsed())
    }

    /// Some of the requests answered lately, the oldest first: at most [`RECENT_MAX_ROWS`](super::RECENT_MAX_ROWS) rows.
    #[must_use]
    pub fn recent(&self) -> Vec<Inputs> {
        self.recent.requests()
    }

    /// Takes over what its predecessor answered lately, so that the next version finds rows to be tried on.
    pub fn remember(&self, requests: impl IntoIterator<Item = Inputs>) {
        self.recent.keep(requests);
    }

    /// Whether `model` is all that holds this version: no request has it, and no run that outlived its request. A version
    /// that is no longer published stays unused once it is.
    #[must_use]
    pub fn is_unused(model: &Arc<Self>) -> bool {
        if Arc::strong_count(model) != 1 {
            return false;
        }
        // Whoever let the version go took its lease before: that is seen by now, on every processor.
        fence(Ordering::Acquire);
        Arc::strong_count(&model.slots) == 1
    }

    /// Destroys versions and gives their memory back to the system. Blocking, and too long for a thread that serves.
    pub fn free(models: Vec<Arc<Self>>) {
        drop(models);
        glibc_trim::trim();
    }

    /// How long a run of so many rows is expected to take; very long before the warm-up has measured it.
    fn expected(&self, rows: usize) -> Duration {
        let rows = u64::try_from(rows).unwrap_or(u64::MAX);
        Duration::from_nanos(self.row_nanos.load(Ordering::Relaxed).saturating_mul(rows))
    }

    /// Runs on a blocking thread. There are never more of them than slots, because each holds one.
    async fn run_aside(&self, mut lease: Lease, inputs: Inputs, deadline: Instant) -> Result<Outputs, PredictError> {
        let options = Arc::new(RunOptions::new().map_err(PredictError::runtime)?);
        let _end = EndOnDrop(Arc::clone(&options));
        let engine = Arc::clone(&self.engine);
        let run = tokio::task::spawn_blocking(move || engine.run(&mut lease, &inputs, Some(&options)));
        match timeout_at(deadline, run).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(failed)) => Err(PredictError::Runtime(failed.to_string())),
            Err(_) => Err(PredictError::DeadlineExceeded { stage: Stage::Run }),
        }
    }

    /// Runs every idle slot a few times with `inputs`, or with a made-up row where there are none; blocking, and what a
    /// new version does before it is published. Returns the answers to `inputs`. A made-up row only has to run: what is
    /// answered to nonsense says nothing about the model.
    ///
    /// # Errors
    /// As [`predict`](Self::predict), without its deadline.
    pub fn warm_up(&self, inputs: Option<&Inputs>) -> Result<Option<Outputs>, PredictError> {
        let row = match inputs.filter(|inputs| inputs.rows() > 0) {
            Some(inputs) => inputs.clone(),
            None => self.made_up()?,
        };
        let mut answer = None;
        // Held together, so that no slot is taken twice.
        let leases: Vec<Lease> = std::iter::from_fn(|| self.slots.try_acquire()).collect();
        for mut lease in leases {
            for _ in 0..WARM_UP_RUNS {
                let start = Instant::now();
                let found = self.engine.run(&mut lease, &row, None);
                self.note_cost(start.elapsed(), row.rows());
                answer = match (found, inputs) {
                    (Ok(found), Some(_)) => Some(found),
                    (Ok(_) | Err(PredictError::NotFinite), None) => None,
                    (Err(error), _) => return Err(error),
                };
            }
        }
        Ok(answer)
    }

    /// Remembers the lowest cost seen: the first runs allocate, and any may have been interrupted.
    fn note_cost(&self, took: Duration, rows: usize) {
        let nanos = took.as_nanos() / rows.max(1) as u128;
        self.row_nanos.fetch_min(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A row of defaults, zeros and empty texts; of a one-hot group, the first category.
    fn made_up(&self) -> Result<Inputs, InvalidInput> {
        let mut rows = self.features.rows();
        rows.begin();
        for feature in self.features.list() {
            if feature.default.is_some() {
                continue;
            }
            let value = match (&feature.target, feature.kind) {
                (Target::OneHot(categories), _) => Raw::Text(categories.first().map_or("", |(category, _)| category)),
                (_, Kind::Boolean) => Raw::Boolean(false),
                (_, Kind::Integer | Kind::Long) => Raw::Integer(0),
                (_, Kind::Float | Kind::Double) => Raw::Float(0.0),
                (_, Kind::Text) => Raw::Text(""),
            };
            rows.set(&feature.field, value);
        }
        rows.end();
        rows.finish()
    }
}

fn rejected(runtime: &Runtime, error: &ort::Error) -> LoadError {
    LoadError::Rejected { version: runtime.version().to_owned(), reason: error.to_string() }
}

/// What all slots of a version share: how cells go in and answers come out.
#[derive(Debug)]
struct Engine {
    feed: Feed,
    reader: Reader,
    decider: Decider,
}

impl Engine {
    fn run(&self, slot: &mut Slot, inputs: &Inputs, options: Option<&RunOptions>) -> Result<Outputs, PredictError> {
        let many;
        let tensors = if inputs.rows() == 1 {
            self.feed.fill(&mut slot.row.0, inputs)?;
            slot.row.0.as_slice()
        } else {
            many = self.feed.tensors(inputs)?;
            many.as_slice()
        };
        let outputs = match options {
            Some(options) => slot.session.run_with_options(tensors, options),
            None => slot.session.run(tensors),
        };
        let outputs = outputs.map_err(PredictError::runtime)?;
        let raw = self.reader.read(&outputs)?;
        self.decider.decide(raw, inputs.rows())
    }
}

/// Ends a run when the request that wanted it is gone. Ends nothing when the run is over.
struct EndOnDrop(Arc<RunOptions>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if let Err(error) = self.0.terminate() {
            tracing::warn!(%error, "cannot end a run that nobody waits for");
        }
    }
}

#[cfg(test)]
mod schedules;
#[cfg(test)]
mod tests;
