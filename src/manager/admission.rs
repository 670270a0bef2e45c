//! What a version must prove before it may serve: a ladder of checks, each with its verdict kept.
//!
//! A version that fails a rung is refused, with the rung and the reason, and climbs no further. The rungs that could
//! hurt come late, and first in a process of their own. See docs/admission.md.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::ModelConfig;
use super::loader::{self, Parts};
use crate::model::outputs::Decision;
use crate::model::runtime::Runtime;
pub use crate::model::verdict::{Check, Outcome, Rung, Verdict};
use crate::model::{Digest, Identity, Model, scan};
use crate::registry::cache::{Cache, Pin};
use crate::registry::mlmodel::MlModel;
use crate::registry::{Fetched, Found};

pub mod confine;
pub mod probe;
mod replay;
mod signature;

use probe::{Ended, Report};
use signature::Taken;

/// The longest the static scan may take.
const SCAN_TIME: Duration = Duration::from_secs(2);

/// What a version must keep to.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether a version is tried in a process of its own before it is loaded here.
    pub probe: bool,
    /// This program, which is started as `<program> probe` to try a version.
    pub program: PathBuf,
    /// The environment of that process. Nothing else of ours is passed on, so that it holds no secret.
    pub environment: Vec<(String, String)>,
    /// Address space, in bytes, that the process may take besides four times the model file.
    pub max_load_memory: u64,
    /// Processor time it may take; counted in whole seconds.
    pub max_load_cpu: Duration,
    /// Time it may take.
    pub max_load_wall: Duration,
    /// Rows that were answered lately and are answered again by the new version; 0 leaves the rung out.
    pub replay_rows: usize,
    /// The largest share of those rows that may be answered differently, 0 to 1.
    pub max_disagreement: f64,
    /// How many times as long a row may take.
    pub max_latency_ratio: f64,
    /// How far the distribution of the answers may move, 0 to 1.
    pub max_shift: f64,
    /// What to do with a version that no longer takes what its predecessor took.
    pub signature_change: SignatureChange,
}

/// What to do with a version that no longer takes what its predecessor took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureChange {
    /// Refuse it.
    Refuse,
    /// Let it pass.
    Allow,
}

/// What a rung found: how to go on, or why not to.
type Finding<T = ()> = Result<Pass<T>, Stop>;

struct Pass<T> {
    value: T,
    outcome: Outcome,
    detail: String,
}

enum Stop {
    Refused(String),
    Undecided(String),
}

/// Adds a rung to `verdict`; returns what to go on with.
fn note<T>(verdict: &mut Verdict, name: Check, since: Instant, found: Finding<T>) -> Option<T> {
    let took_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (outcome, detail, value) = match found {
        Ok(Pass { value, detail, outcome }) => (outcome, detail, Some(value)),
        Err(Stop::Refused(reason)) => (Outcome::Refused, reason, None),
        Err(Stop::Undecided(reason)) => (Outcome::Undecided, reason, None),
    };
    verdict.rungs.push(Rung { name, outcome, detail, took_ms });
    value
}

#[expect(clippy::unnecessary_wraps, reason = "a finding, as the rungs return it")]
fn passed<T>(value: T, detail: impl Into<String>) -> Finding<T> {
    Ok(Pass { value, outcome: Outcome::Passed, detail: detail.into() })
}

#[expect(clippy::unnecessary_wraps, reason = "a finding, as the rungs return it")]
fn skipped(why: impl Into<String>) -> Finding {
    Ok(Pass { value: (), outcome: Outcome::Skipped, detail: why.into() })
}

/// A version that asks to serve.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// The model it is a version of.
    pub config: &'a ModelConfig,
    /// What the registry says of it.
    pub found: &'a Found,
    /// Its files.
    pub fetched: &'a Fetched,
    /// What it would replace.
    pub serving: Option<Arc<Model>>,
    /// Whether these very files have served before, in an earlier run of the gateway. They are not tried in a process
    /// of their own again: a gateway that starts while its registry is down must be ready soon.
    pub has_served: bool,
}

/// Admits versions. Needs no running gateway.
#[derive(Clone, Debug)]
pub struct Admission {
    config: Config,
    runtime: Runtime,
    pins: Option<Cache>,
    slots: usize,
}

impl Admission {
    /// An admission that gives versions `slots` slots; without `pins` the digest is not compared with an earlier one.
    #[must_use]
    pub fn new(config: Config, runtime: Runtime, pins: Option<Cache>, slots: usize) -> Self {
        Self { config, runtime, pins, slots }
    }

    /// What versions of `model` are judged by: while this is the same, so is the verdict on the same bytes. Changes with
    /// every limit and setting that bears on it, the ONNX Runtime, and this program.
    #[must_use]
    pub(super) fn rules(&self, model: &ModelConfig) -> Arc<str> {
        // Where this program lies, and where libraries do, makes no version better.
        let limits = Config { program: PathBuf::new(), environment: Vec::new(), ..self.config.clone() };
        let judged_by = (limits, &model.features, &model.decision, self.runtime.version(), env!("CARGO_PKG_VERSION"));
        Digest(Sha256::digest(format!("{judged_by:?}")).into()).hex().into()
    }

    /// Lets `candidate` climb. A version that reaches the top comes back loaded and warm.
    pub async fn admit(&self, candidate: Candidate<'_>) -> (Verdict, Option<Model>) {
        let mut verdict = Verdict::default();
        let model = self.climb(&candidate, &mut verdict).await;
        (verdict, model)
    }

    async fn climb(&self, candidate: &Candidate<'_>, verdict: &mut Verdict) -> Option<Model> {
        let start = Instant::now();
        note(verdict, Check::Digest, start, self.check_digest(candidate).await)?;
        let start = Instant::now();
        let scanned = note(verdict, Check::Scan, start, check_file(candidate).await)?;
        let is_new = !candidate.has_served;
        if is_new && self.config.probe {
            self.try_aside(candidate, &scanned, verdict).await?;
        }
        let start = Instant::now();
        let model = note(verdict, Check::WarmUp, start, self.warm_up(candidate, scanned.decision).await)?;
        if is_new && !self.config.probe {
            self.check_signature(candidate, &signature::taken_by(model.features()), verdict)?;
        }
        let start = Instant::now();
        let replayed = replay::check(&self.config, candidate.serving.as_deref(), &model).await;
        note(verdict, Check::Replay, start, replayed)?;
        Some(model)
    }

    /// The rungs that a process of its own climbs for the version.
    async fn try_aside(&self, candidate: &Candidate<'_>, scanned: &Scanned, verdict: &mut Verdict) -> Option<()> {
        let start = Instant::now();
        let report = note(verdict, Check::Probe, start, self.probe(candidate, scanned).await)?;
        self.check_signature(candidate, &report.features, verdict)?;
        note(verdict, Check::Example, Instant::now(), check_example(&report))
    }

    fn check_signature(&self, candidate: &Candidate<'_>, takes: &[Taken], verdict: &mut Verdict) -> Option<()> {
        let start = Instant::now();
        let serving = candidate.serving.as_ref().map(|model| model.features().as_ref());
        note(verdict, Check::Signature, start, signature::check(serving, takes, self.config.signature_change))
    }

    async fn check_digest(&self, candidate: &Candidate<'_>) -> Finding {
        let Some(pins) = self.pins.clone() else { return skipped("no data directory to compare with") };
        let (found, digest) = (candidate.found.clone(), candidate.fetched.digest);
        match tokio::task::spawn_blocking(move || pins.pin(&found, &digest)).await {
            Ok(Ok(Pin::New)) => passed((), format!("{digest}, seen for the first time")),
            Ok(Ok(Pin::Same)) => passed((), format!("{digest}, as before")),
            Ok(Ok(Pin::Other(first))) => Err(Stop::Refused(format!(
                "its bytes changed: they are {digest} and were {first} when this version was first seen; register the \
                 new files as a new version"
            ))),
            Ok(Err(error)) => {
                Err(Stop::Undecided(format!("cannot compare its digest with the one first seen: {error}")))
            }
            Err(error) => Err(Stop::Undecided(error.to_string())),
        }
    }

    async fn probe(&self, candidate: &Candidate<'_>, scanned: &Scanned) -> Finding<Report> {
        let request = probe::Request {
            folder: candidate.fetched.folder.clone(),
            library: self.runtime.library().to_path_buf(),
            features: candidate.config.features.clone(),
            decision: scanned.decision.clone(),
            max_memory: scanned.file_bytes.saturating_mul(4).saturating_add(self.config.max_load_memory),
            max_cpu_seconds: self.config.max_load_cpu.as_secs().max(1),
        };
        let ended = probe::run(&self.config.program, &self.config.environment, &request, self.config.max_load_wall);
        match ended.await {
            Ended::Answered(report) => {
                let (took, peak, confined) = (report.took_ms, report.peak_bytes >> 20, &report.confined);
                let detail = format!("loads and runs in {took} ms, with {peak} MiB; {confined}");
                passed(report, detail)
            }
            Ended::Unfit(reason) => Err(Stop::Refused(reason)),
            Ended::Died(how) => Err(Stop::Refused(format!("the process that tried it {how}"))),
            Ended::Broken(reason) => Err(Stop::Undecided(format!("it could not be tried: {reason}"))),
        }
    }

    async fn warm_up(&self, candidate: &Candidate<'_>, decision: Decision) -> Finding<Model> {
        let Candidate { config, found, fetched, .. } = candidate;
        let parts = Parts {
            id: Identity::new(config.name.clone(), found.version, fetched.digest, found.alias.clone()),
            folder: fetched.folder.clone(),
            features: config.features.clone(),
            decision,
            slots: self.slots,
        };
        let runtime = self.runtime.clone();
        match loader::on_deep_stack(move || loader::load(&runtime, parts)).await {
            Ok(Ok((model, _))) => passed(model, format!("every slot runs, {} of them", self.slots)),
            Ok(Err(unfit)) => Err(Stop::Refused(whole_reason(&unfit))),
            Err(broke) => Err(Stop::Undecided(broke.to_string())),
        }
    }
}

/// What the static rung learns on its way.
struct Scanned {
    decision: Decision,
    file_bytes: u64,
}

/// The static rung: the files are a model's, its tags are readable, its graph keeps the rules.
async fn check_file(candidate: &Candidate<'_>) -> Finding<Scanned> {
    let (folder, tags) = (candidate.fetched.folder.clone(), candidate.found.tags.clone());
    let configured = candidate.config.decision.clone();
    let scanned = tokio::task::spawn_blocking(move || {
        let mlmodel = MlModel::read(&folder).map_err(|error| Stop::Refused(error.to_string()))?;
        let tagged = Decision::from_tags(&tags).map_err(|error| Stop::Refused(error.to_string()))?;
        let bytes = std::fs::read(folder.join(&mlmodel.onnx));
        let bytes = bytes.map_err(|error| Stop::Undecided(format!("cannot read the model file: {error}")))?;
        match scan::scan(&bytes, Instant::now() + SCAN_TIME) {
            Ok(()) => {
                let scanned = Scanned { decision: configured.or(tagged), file_bytes: bytes.len() as u64 };
                passed(scanned, format!("{} bytes keep every rule", bytes.len()))
            }
            Err(refusal) => Err(Stop::Refused(refusal.to_string())),
        }
    });
    scanned.await.unwrap_or_else(|error| Err(Stop::Undecided(error.to_string())))
}

fn check_example(report: &Report) -> Finding {
    match &report.answers {
        None => skipped("the version was logged without an input example; a made-up row ran"),
        Some(answers) => passed((), format!("{} rows, finite; the first: {}", report.rows, answers.join(", "))),
    }
}

/// An error and everything that led to it, on one line.
pub(super) fn whole_reason(error: &dyn std::error::Error) -> String {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !reason.contains(&text) {
            reason.push_str(": ");
            reason.push_str(&text);
        }
        source = cause.source();
    }
    reason
}
