//! Drift: whether the rows a version is asked still look like those it was made of.
//!
//! Each version has a baseline of its own and a window of its own, so a swap is no drift. The baseline comes with the
//! version, or is made of the first rows it is asked. Observing is a side door of the request path: it adds to counters
//! and cannot fail. Whoever asks gets scores with their sample sizes, and what chance alone would make of them.
//! Windows and live baselines outlast a restart in a file, as they were when it was last written.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;

use self::baseline::{Baseline, BaselineError, Subject};
use self::builder::Builder;
use self::learner::{Late, Learner};
use self::report::{Judge, Report, Source};
use self::state::{Saved, SavedSubject, State};
use self::window::{Counted, Layout, Window};
use crate::model::features::Feature;
use crate::model::signature::Kind;
use crate::model::{Features, Identity, Inputs, Model, ModelSet, Outputs};

mod axis;
pub mod baseline;
mod builder;
mod chi_square;
mod learner;
pub mod report;
mod scores;
mod state;
mod statistics;
pub mod table;
mod window;

/// How drift is looked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// How far back a window looks.
    pub window: Duration,
    /// The PSI from which a feature has drifted, unless chance alone would make more; and the measure of how much one
    /// category must grow.
    pub threshold: f64,
    /// Below so many rows there is no verdict.
    pub min_rows: u64,
    /// Of how many live rows a baseline is made, where the version has none.
    pub baseline_rows: u64,
    /// Whether callers are counted apart, too.
    pub by_key: bool,
}

/// Features of one version that are watched at most: the bound of what a version's counters take.
const FEATURES_MAX: usize = 1024;

/// Bins of a baseline that is made of live rows. A thousand rows are fifty in each.
const LIVE_BINS: usize = 20;

/// The drift of everything that is served. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drift(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Config,
    /// The versions in memory: as many as the manager holds.
    watched: ArcSwap<Vec<Arc<Watched>>>,
    /// Held by whoever changes the list.
    changes: Mutex<()>,
    /// What outlasts a restart, if anything does.
    state: Option<State>,
    /// Features whose values may not be on the disk.
    withheld: Vec<String>,
}

/// One version.
#[derive(Debug)]
struct Watched {
    id: Weak<Identity>,
    trouble: Vec<String>,
    /// Whether its baseline is made of values that may not be on the disk.
    is_private: bool,
    phase: ArcSwap<Phase>,
}

/// What a version is compared with, and what it was asked since that is known.
#[derive(Debug)]
struct Phase {
    /// By position in the version's features.
    features: Vec<Option<Known>>,
    prediction: Option<Known>,
    score: Option<Known>,
    window: Window,
    /// Until the first rows have made a baseline of what none was stored for.
    learner: Option<Mutex<Learner>>,
}

/// A part of a baseline and where it is from.
#[derive(Clone, Debug)]
struct Known {
    subject: Subject,
    source: Source,
}

impl Drift {
    /// Watches nothing yet, and forgets at a restart.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self(Arc::new(Shared {
            config,
            watched: ArcSwap::default(),
            changes: Mutex::new(()),
            state: None,
            withheld: Vec::new(),
        }))
    }

    /// As [`new`](Self::new), with what an earlier process [saved](Self::save_once) in `file`. One that cannot be used is
    /// set aside, which is logged. A version that learns a baseline of the features `withheld`, by the model's or the callers'
    /// name for them, is not saved: its edges and categories are their values.
    #[must_use]
    pub fn open(config: Config, file: PathBuf, withheld: Vec<String>) -> Self {
        let state = Some(State::open(file));
        Self(Arc::new(Shared { config, watched: ArcSwap::default(), changes: Mutex::new(()), state, withheld }))
    }

    /// Writes down what there is to know at `now`, and waits until it is on the disk. A failure is logged, and costs what
    /// was counted since the last time, should the process end.
    pub async fn save_once(&self, now: Timestamp) {
        let drift = self.clone();
        let saving = tokio::task::spawn_blocking(move || {
            if let Some(state) = &drift.0.state {
                drift.settle_once(now);
                state.save(drift.0.watched.load().iter().filter_map(|watched| watched.saved()).collect());
            }
        });
        // A writer that broke has said so in the panic hook; the next one tries again.
        _ = saving.await;
    }

    /// Watches `model` from now on, against the baseline in its `folder` if there is one.
    pub async fn watch(&self, model: &Model, folder: &Path) {
        let folder = folder.to_owned();
        let found = tokio::task::spawn_blocking(move || Baseline::find(&folder)).await;
        // A reader that broke has found nothing, and the panic hook has said so.
        self.watch_parts(model.id(), model.features(), found.unwrap_or(Ok(None)));
    }

    /// As [`watch`](Self::watch), of a model taken apart.
    pub fn watch_parts(&self, id: &Arc<Identity>, features: &Features, found: Result<Option<Baseline>, BaselineError>) {
        let saved = self.0.state.as_ref().and_then(|state| state.claim(id));
        let watched = Arc::new(Watched::new(id, features.list(), found, saved, &self.0));
        for trouble in &watched.trouble {
            tracing::warn!(model.name = %id.name, model.version = %id.version, "drift of `{}` version {}: {trouble}", id.name, id.version);
        }
        let _changing = self.0.changes.lock();
        let mut list = Vec::clone(&self.0.watched.load());
        list.retain(|watched| watched.id.strong_count() > 0 && !watched.is_of(id));
        list.push(watched);
        self.0.watched.store(Arc::new(list));
    }

    /// One answered request of the caller `key`.
    pub fn observe(&self, model: &Model, inputs: &Inputs, outputs: &Outputs, key: &Arc<str>) {
        self.observe_parts(model.id(), inputs, outputs, key);
    }

    /// As [`observe`](Self::observe), of a model taken apart.
    pub fn observe_parts(&self, id: &Arc<Identity>, inputs: &Inputs, outputs: &Outputs, key: &Arc<str>) {
        let all = self.0.watched.load();
        let Some(watched) = all.iter().find(|watched| watched.is_of(id)) else { return };
        let phase = watched.phase.load();
        phase.window.add(inputs, outputs, key);
        if let Some(learner) = &phase.learner
            && !learner.lock().add(inputs, outputs, key)
        {
            // Its baseline was made in this very moment.
            watched.phase.load().window.add(inputs, outputs, key);
        }
    }

    /// Moves what was counted into the windows, and makes the baselines whose rows are complete. Call it a few times in
    /// each twelfth of a window, that rows are counted in the right one.
    pub fn settle_once(&self, now: Timestamp) {
        for watched in self.0.watched.load().iter() {
            let phase = watched.phase.load();
            phase.window.settle(now);
            let Some(learner) = &phase.learner else { continue };
            let complete = learner.lock().take();
            if let Some(learned) = complete {
                watched.follow(learner, phase.after(learned, &self.0.config));
            }
        }
    }

    /// The drift of one version; nothing if it is not watched.
    #[must_use]
    pub fn report(&self, id: &Arc<Identity>, now: Timestamp) -> Option<Report> {
        let watched = self.find(id)?;
        let phase = watched.phase.load();
        let counted = phase.window.counted(now);
        Some(self.report_of(id, &watched, &phase, &counted))
    }

    /// The same by caller: those of the last while, 32 at most. Nothing, if callers are not counted apart.
    #[must_use]
    pub fn report_by_key(&self, id: &Arc<Identity>, now: Timestamp) -> Option<Vec<(Arc<str>, Report)>> {
        let watched = self.find(id)?;
        let phase = watched.phase.load();
        let by_key = phase.window.counted_by_key(now)?;
        Some(by_key.into_iter().map(|(key, counted)| (key, self.report_of(id, &watched, &phase, &counted))).collect())
    }

    /// The drift of every version that is served.
    #[must_use]
    pub fn reports(&self, served: &ModelSet, now: Timestamp) -> Vec<Report> {
        let models = served.iter().filter_map(|(_, entry)| entry.serving.as_ref());
        models.filter_map(|model| self.report(model.id(), now)).collect()
    }

    fn find(&self, id: &Arc<Identity>) -> Option<Arc<Watched>> {
        self.0.watched.load().iter().find(|watched| watched.is_of(id)).cloned()
    }

    fn report_of(&self, id: &Arc<Identity>, watched: &Watched, phase: &Phase, counted: &Counted) -> Report {
        let config = &self.0.config;
        let known = phase.features.iter().flatten().chain(&phase.prediction).chain(&phase.score);
        let mut judge = Judge::new(config, known.clone().count());
        let window = &phase.window;
        let mut score = |known: &Option<Known>, observed: Option<&[u64]>| {
            let Known { subject, source } = known.as_ref()?;
            Some(judge.score(subject, *source, observed?))
        };
        let features = phase.features.iter().enumerate();
        let features = features.filter_map(|(at, known)| score(known, window.feature(at, counted))).collect();
        let (baseline, baseline_rows) = phase.source();
        Report {
            id: Arc::clone(id),
            model: id.name.to_string(),
            version: id.version.to_string(),
            rows: counted.rows(),
            window_seconds: config.window.as_secs(),
            min_rows: config.min_rows,
            baseline,
            baseline_rows,
            trouble: watched.trouble.clone(),
            memory_bytes: window.memory_bytes(),
            features,
            prediction: score(&phase.prediction, window.prediction(counted)),
            score: score(&phase.score, window.score(counted)),
        }
    }
}

impl Watched {
    fn new(
        id: &Arc<Identity>,
        features: &[Feature],
        found: Result<Option<Baseline>, BaselineError>,
        saved: Option<Saved>,
        shared: &Shared,
    ) -> Self {
        let Shared { config, withheld, .. } = shared;
        let mut trouble = Vec::new();
        let baseline = found.unwrap_or_else(|error| {
            trouble.push(format!("{error}; the first rows are the baseline instead"));
            None
        });
        if features.len() > FEATURES_MAX {
            trouble.push(format!("only the first {FEATURES_MAX} of {} features are watched", features.len()));
        }
        let features = &features[..features.len().min(FEATURES_MAX)];
        let mut phase = Phase::new(features, &baseline.unwrap_or_default(), config, &mut trouble);
        let is_withheld =
            |feature: &Feature| withheld.iter().any(|name| **name == *feature.name || **name == *feature.field);
        let mut learned = features.iter().zip(&phase.features).filter(|(_, known)| known.is_none());
        let is_private = learned.any(|(feature, _)| is_withheld(feature));
        if let Some(saved) = saved {
            phase = phase.restored(features, saved, config);
        }
        Self { id: Arc::downgrade(id), trouble, is_private, phase: ArcSwap::from_pointee(phase) }
    }

    /// Goes on with `next`, the baseline that `learner` made.
    fn follow(&self, learner: &Mutex<Learner>, next: Phase) {
        let next = Arc::new(next);
        self.phase.store(Arc::clone(&next));
        // Only now: a request that finds it closed then finds the next phase.
        for Late { inputs, outputs, key, first } in learner.lock().close() {
            next.window.add_from(first, &inputs, &outputs, &key);
        }
    }

    /// What another process needs to go on; nothing of a version that is gone, or whose baseline may not be on the disk.
    fn saved(&self) -> Option<Saved> {
        let id = self.id.upgrade().filter(|_| !self.is_private)?;
        let phase = self.phase.load();
        let learner = phase.learner.as_ref().and_then(|learner| learner.lock().saved());
        Some(Saved::of(&id, phase.learner.is_none(), phase.saved(), phase.window.saved(), learner))
    }

    /// Whether this is that very identity, not merely an equal one.
    fn is_of(&self, id: &Arc<Identity>) -> bool {
        std::ptr::eq(self.id.as_ptr(), Arc::as_ptr(id))
    }
}

impl Phase {
    /// The first: what the version came with, and a learner for the rest.
    fn new(features: &[Feature], baseline: &Baseline, config: &Config, trouble: &mut Vec<String>) -> Self {
        let by_name = baseline.by_name();
        let stored = |feature: &Feature| {
            let subject = baseline.subject_of(feature, &by_name)?;
            let fits = subject.is_of(feature.kind);
            if !fits {
                trouble.push(format!(
                    "the baseline has `{}` as another type; its first rows are its baseline instead",
                    feature.name
                ));
            }
            fits.then_some(subject)
        };
        let known: Vec<Option<Known>> = features.iter().map(stored).map(|subject| subject.map(Known::stored)).collect();
        let prediction = baseline.prediction.clone().map(Known::stored);
        let score = baseline.score.clone().map(Known::stored);
        let builder = |(feature, known): (&Feature, &Option<Known>)| {
            let empty = if feature.kind == Kind::Text { Builder::of_texts() } else { Builder::default() };
            known.is_none().then(|| (Arc::clone(&feature.name), empty))
        };
        let learner = Learner::new(
            config.baseline_rows,
            features.iter().zip(&known).map(builder).collect(),
            prediction.is_none(),
            // A model whose predictions are known and have no score has none.
            score.is_none() && prediction.is_none(),
        );
        Self::of(known, prediction, score, learner, config)
    }

    /// The next: what was known, and what was learned.
    fn after(&self, learned: learner::Learned, config: &Config) -> Self {
        let either = |known: &Option<Known>, learned: Option<Subject>| {
            known.clone().or(learned.map(|subject| Known { subject, source: Source::Live }))
        };
        let features = self.features.iter().zip(learned.features).map(|(known, learned)| either(known, learned));
        let (prediction, score) = (either(&self.prediction, learned.prediction), either(&self.score, learned.score));
        Self::of(features.collect(), prediction, score, None, config)
    }

    /// As an earlier process left it, if that compared with the same baseline; else as it is.
    fn restored(self, features: &[Feature], saved: Saved, config: &Config) -> Self {
        let Saved { is_learned, subjects, window, learner, .. } = saved;
        let Some(learned) = self.learned_before(features, subjects) else { return self };
        let mut restored = if is_learned { self.after(learned, config) } else { self };
        restored.window.restore(window);
        if let (Some(ours), Some(learner)) = (&mut restored.learner, learner) {
            ours.get_mut().restore(learner);
        }
        restored
    }

    /// What an earlier process learned, if all that it did not learn is as it is here.
    fn learned_before(&self, features: &[Feature], saved: Vec<Option<SavedSubject>>) -> Option<learner::Learned> {
        let ours = self.saved();
        if ours.len() != saved.len() {
            return None;
        }
        let learned = |(ours, saved): (Option<SavedSubject>, Option<SavedSubject>)| match (ours, saved) {
            (None, Some(saved)) => saved.live().map(Some),
            (ours, saved) => (ours == saved).then_some(None),
        };
        let mut learned: Vec<Option<Subject>> = ours.into_iter().zip(saved).map(learned).collect::<Option<_>>()?;
        let (score, prediction) = (learned.pop()?, learned.pop()?);
        let is_same = |(feature, subject): (&Feature, &Option<Subject>)| {
            subject.as_ref().is_none_or(|subject| subject.name == feature.name && subject.is_of(feature.kind))
        };
        let is_same = features.iter().zip(&learned).all(is_same);
        is_same.then_some(learner::Learned { features: learned, prediction, score })
    }

    /// What is known, in the order of [`Saved::subjects`].
    fn saved(&self) -> Vec<Option<SavedSubject>> {
        let all = self.features.iter().chain([&self.prediction, &self.score]);
        let saved = |known: &Known| SavedSubject::of(&known.subject, known.source == Source::Live);
        all.map(|known| known.as_ref().map(saved)).collect()
    }

    fn of(
        features: Vec<Option<Known>>,
        prediction: Option<Known>,
        score: Option<Known>,
        learner: Option<Learner>,
        config: &Config,
    ) -> Self {
        let axis = |known: &Option<Known>| known.as_ref().map(|known| known.subject.axis.clone());
        let layout = Layout::new(features.iter().map(axis).collect(), axis(&prediction), axis(&score));
        let window = Window::new(layout, config.window, config.by_key);
        Self { features, prediction, score, window, learner: learner.map(Mutex::new) }
    }

    /// What the features are compared with, and how many rows that has.
    fn source(&self) -> (Source, u64) {
        let known = || self.features.iter().flatten().chain(&self.prediction);
        let stored = known().filter(|known| known.source == Source::Stored);
        match (stored.map(|known| known.subject.rows()).max(), &self.learner) {
            (Some(rows), _) => (Source::Stored, rows),
            (None, Some(learner)) => (Source::Learning, learner.lock().rows()),
            (None, None) => (Source::Live, known().map(|known| known.subject.rows()).max().unwrap_or(0)),
        }
    }
}

impl Known {
    fn stored(subject: Subject) -> Self {
        Self { subject, source: Source::Stored }
    }
}

#[cfg(test)]
mod tests;
