//! The control plane: asks the registry which version is wanted, loads it aside, publishes it, lets the old one go.
//!
//! Nothing here is on a request's path. Absence is never an instruction: a registry that is down, slow, lying or empty
//! changes nothing about what is served.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use jiff::Timestamp;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::drift::Drift;
use crate::model::features::Settings;
use crate::model::orders::{Answer, Event, Inbox, Kind, Operator, Refused};
use crate::model::outputs::Decision;
use crate::model::runtime::Runtime;
use crate::model::{Identity, Model, ModelName, Publisher, Status, Trial, Version};
use crate::registry::cache::Cache;
use crate::registry::{Fetched, Found, Registry, RegistryError, Select};

pub mod admission;
mod example;
pub mod history;
pub mod judge;
mod loader;
mod orders;
pub mod policy;
mod trial;

use admission::{Admission, Candidate, Outcome, Rung, Verdict};
use history::{History, Stance};
use judge::Rollout;
pub use loader::Unfit;
use policy::{Action, Failed, View};

/// Models asked about at one time.
const QUESTIONS_AT_ONCE: usize = 8;

/// How often versions on trial are judged, and those that were replaced are looked at until their last request has left.
const PULSE: Duration = Duration::from_millis(500);

/// The shortest pause between two polls that hints can bring about.
const SHORTEST_POLL_PAUSE: Duration = Duration::from_secs(1);

/// Outcomes that wait to be written to the registry. One more, and the oldest is left out: the history has it.
const TAGS_WAITING: usize = 64;

/// The longest pause between polls while the registry fails.
const LONGEST_POLL_PAUSE: Duration = Duration::from_mins(5);

/// How the control plane goes about it.
#[derive(Clone, Debug)]
pub struct Config {
    /// How often the registry is asked.
    pub poll_interval: Duration,
    /// Session slots per version: runs at one time.
    pub slots: usize,
    /// What a version must prove before it serves.
    pub admission: admission::Config,
    /// The models to serve.
    pub models: Vec<ModelConfig>,
    /// Whether what became of a version is written to the registry, as its tags.
    pub write_back: bool,
}

/// One `[[model]]` of the configuration.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The name in URLs, metrics and samples.
    pub name: ModelName,
    /// The registry's name for it.
    pub registered_model: String,
    /// Which version.
    pub select: Select,
    /// How callers write its features.
    pub features: Settings,
    /// How outputs become predictions; what is unset here may come from the version's tags.
    pub decision: Decision,
    /// How a new version comes to serve.
    pub rollout: Rollout,
}

/// What one round did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Versions that were published.
    pub switched: Vec<(ModelName, Version)>,
    /// Versions that were found unfit.
    pub refused: Vec<(ModelName, Version)>,
    /// Models the registry gave no usable answer for.
    pub unanswered: usize,
    /// How long the registry asked us to wait.
    pub wait: Option<Duration>,
}

/// What a manager works with.
#[derive(Debug)]
pub struct Parts {
    /// Whom it asks.
    pub registry: Registry,
    /// Where fetched versions are.
    pub cache: Cache,
    /// What loads them.
    pub runtime: Runtime,
    /// Where they are published.
    pub publisher: Publisher,
    /// What watches the drift of what is published.
    pub drift: Drift,
    /// What operators ask.
    pub inbox: Inbox,
    /// What is remembered.
    pub history: History,
    /// What time it is.
    pub clock: Clock,
}

/// Follows the registry. One per process.
#[derive(Debug)]
pub struct Manager {
    registry: Registry,
    cache: Cache,
    admission: Admission,
    publisher: Publisher,
    inbox: Inbox,
    history: History,
    clock: Clock,
    poll_interval: Duration,
    write_back: bool,
    models: Vec<Followed>,
    retired: Vec<Arc<Model>>,
    drift: Drift,
    /// Outcomes to be written to the registry.
    tags: VecDeque<Tagged>,
    /// An operator waits for a version that has to be fetched.
    wished: Arc<Notify>,
    pulse: Interval,
}

/// What is known of one model between rounds.
#[derive(Debug)]
struct Followed {
    config: ModelConfig,
    /// What the registry wanted when it last said so.
    wanted: Option<Found>,
    serving: Option<Loaded>,
    /// The version before, ready to answer again.
    previous: Option<Loaded>,
    trial: Option<OnTrial>,
    refused: Option<(Found, String)>,
    failed: Option<Failed>,
    verdict: Option<(Version, Arc<Verdict>)>,
    silent_since: Option<Timestamp>,
    settled_until: Option<Timestamp>,
    stance: Stance,
    wish: Option<Wish>,
}

/// A version that can answer, and where it came from.
#[derive(Clone, Debug)]
struct Loaded {
    found: Found,
    fetched: Fetched,
    model: Arc<Model>,
}

/// Something on trial: a challenger, or else the serving version, which is watched.
#[derive(Debug)]
struct OnTrial {
    trial: Arc<Trial>,
    challenger: Option<Loaded>,
    /// The step of the rollout.
    step: usize,
    since: Instant,
}

/// A version an operator waits for.
#[derive(Debug)]
struct Wish {
    version: Version,
    pin: bool,
    by: Operator,
    reply: oneshot::Sender<Answer>,
}

/// What became of a version, for the registry.
#[derive(Clone, Debug)]
struct Tagged {
    found: Found,
    status: &'static str,
    reason: String,
}

/// What makes a version be brought.
#[derive(Clone, Debug)]
enum Cause {
    /// The registry wants it.
    Registry,
    /// It was last good, and the registry has not been asked.
    LastGood,
    /// An operator wants it.
    Operator(Operator),
    /// It proved itself in a trial, with these figures.
    Trial(String),
}

impl Cause {
    fn who(&self) -> String {
        match self {
            Self::Registry => "registry".to_owned(),
            Self::LastGood => "start".to_owned(),
            Self::Operator(by) => by.who.clone(),
            Self::Trial(_) => "rollout".to_owned(),
        }
    }

    fn why(&self, found: &Found) -> String {
        match (self, &found.alias) {
            (Self::Registry, Some(alias)) => format!("the registry's alias {alias} points at it"),
            (Self::Registry, None) => "the registry has it as the version to serve".to_owned(),
            (Self::LastGood, _) => "it was last good".to_owned(),
            (Self::Operator(by), _) => by.why.clone(),
            (Self::Trial(_), _) => "it passed every step".to_owned(),
        }
    }

    fn verdict(&self) -> Option<String> {
        if let Self::Trial(verdict) = self { Some(verdict.clone()) } else { None }
    }
}

/// Loads a version that was served before, beside the gateway, to ask it once more.
///
/// # Errors
/// When its files are no longer fit to serve.
pub async fn reopen(
    runtime: Runtime,
    name: ModelName,
    features: Settings,
    decision: Decision,
    found: Found,
    fetched: Fetched,
) -> Result<Model, Unfit> {
    let parts = loader::Parts {
        id: Identity::new(name, found.version, fetched.digest, found.alias.clone()),
        folder: fetched.folder,
        features,
        decision: decision.or(Decision::from_tags(&found.tags)?),
        slots: 1,
    };
    let (model, _) = loader::on_deep_stack(move || loader::load(&runtime, parts)).await??;
    Ok(model)
}

impl Manager {
    /// A manager that has not asked anything yet. What an earlier process settled about a model holds.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub fn new(parts: Parts, config: Config) -> rusqlite::Result<Self> {
        let Parts { registry, cache, runtime, publisher, drift, inbox, history, clock } = parts;
        let admission = Admission::new(config.admission, runtime, Some(cache.clone()), config.slots);
        let follow = |model: ModelConfig| history.stance(&model.name).map(|stance| Followed::new(model, stance));
        let models = config.models.into_iter().map(follow).collect::<Result<_, _>>()?;
        let mut pulse = tokio::time::interval(PULSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            registry,
            cache,
            admission,
            publisher,
            inbox,
            history,
            clock,
            poll_interval: config.poll_interval,
            write_back: config.write_back,
            models,
            retired: Vec::new(),
            drift,
            tags: VecDeque::new(),
            wished: Arc::new(Notify::new()),
            pulse,
        })
    }

    /// Serves, for each model, the version that was last good, from disk and without the registry.
    pub async fn open_last_good(&mut self) {
        for index in 0..self.models.len() {
            let name = self.models[index].config.name.clone();
            let cache = self.cache.clone();
            let look_up = move || cache.last_good(&name);
            let Ok(Some((found, fetched))) = tokio::task::spawn_blocking(look_up).await else { continue };
            // Another registered model under the same name is another model: its last good version is not ours.
            if found.registered_model != self.models[index].config.registered_model {
                continue;
            }
            match self.admit(index, &found, fetched, true).await {
                Ok(candidate) => self.switch(index, candidate, Cause::LastGood).await,
                Err(rung) => self.refuse(index, &found, None, &rung.detail, &mut Round::default()).await,
            }
            self.report(index);
        }
    }

    /// One round: asks about every model, and serves what is newly wanted and fit. Orders are followed meanwhile.
    pub async fn reconcile_once(&mut self, now: Timestamp) -> Round {
        self.reap();
        let mut round = Round::default();
        for index in 0..self.models.len() {
            self.fulfil(index, now, &mut round).await;
        }
        let questions = self.ask();
        for (index, answer) in self.attend(questions).await.into_iter().enumerate() {
            self.reconcile(index, answer, now, &mut round).await;
        }
        self.write_tags().await;
        round
    }

    /// What the registry says of each model, in the order of the models.
    fn ask(&self) -> impl Future<Output = Vec<Result<Found, RegistryError>>> + use<> {
        let ask = |model: &Followed| {
            let (registry, select) = (self.registry.clone(), model.select());
            let registered_model = model.config.registered_model.clone();
            async move { registry.resolve(&registered_model, &select).await }
        };
        let questions: Vec<_> = self.models.iter().map(ask).collect();
        stream::iter(questions).buffered(QUESTIONS_AT_ONCE).collect()
    }

    async fn reconcile(
        &mut self,
        index: usize,
        answer: Result<Found, RegistryError>,
        now: Timestamp,
        round: &mut Round,
    ) {
        let model = &mut self.models[index];
        let wanted = match answer {
            Ok(found) => {
                let forgotten = model.heard(&found, now);
                if forgotten {
                    self.settle(index).await;
                }
                Some(found)
            }
            Err(error) => {
                round.unanswered += 1;
                round.wait = round.wait.max(wait_asked_for(&error));
                model.not_heard(&error, now);
                None
            }
        };
        let action = policy::next_action(&self.models[index].view(wanted.as_ref(), now));
        match action {
            Action::Keep => {}
            Action::Withdraw => self.withdraw(index, "the registry wants another version").await,
            Action::Load(version) => {
                let version = version.clone();
                // What came of it is in the history, and in the status.
                let _ = self.bring(index, &version, Cause::Registry, now, round).await;
            }
        }
        self.report(index);
    }

    /// Downloads, loads and publishes `found`, or puts it on trial, or remembers why not.
    async fn bring(
        &mut self,
        index: usize,
        found: &Found,
        cause: Cause,
        now: Timestamp,
        round: &mut Round,
    ) -> Result<(), Refused> {
        let name = self.models[index].config.name.clone();
        if let Some(resident) = self.models[index].resident(found) {
            self.switch(index, resident, cause).await;
            round.switched.push((name, found.version));
            return Ok(());
        }
        info!(model.name = %name, model.version = %found.version, "fetching `{name}` version {}", found.version);
        let (registry, cache, wanted) = (self.registry.clone(), self.cache.clone(), found.clone());
        let fetched = match self.attend(async move { registry.fetch(&wanted, &cache).await }).await {
            Ok(fetched) => fetched,
            Err(RegistryError::BadArtifacts(reason)) => {
                self.refuse(index, found, None, &reason, round).await;
                return Err(Refused::NotServed(reason));
            }
            Err(error) => {
                self.fail(index, found, &format!("cannot be fetched: {error}"), now);
                return Err(Refused::NotServed(error.to_string()));
            }
        };
        if matches!(cause, Cause::Registry) && self.has_moved(index, found).await {
            info!(model.name = %name, model.version = %found.version, "`{name}` moved on while version {} was fetched", found.version);
            return Ok(());
        }
        let digest = fetched.digest.to_string();
        let barred = self.models[index].stance.bars(found, Some(&digest)).map(|barred| barred.why.clone());
        if let (Some(why), Cause::Registry) = (barred, &cause) {
            let reason = format!("it has the bytes of a version that was rolled back: {why}");
            self.refuse(index, found, Some(digest), &reason, round).await;
            return Err(Refused::NotServed(reason));
        }
        match self.admit(index, found, fetched, false).await {
            Ok(candidate) => self.introduce(index, candidate, cause, round).await,
            Err(rung) if rung.outcome == Outcome::Undecided => {
                let reason = format!("cannot be tried: {}", rung.detail);
                self.fail(index, found, &reason, now);
                Err(Refused::NotServed(format!("version {} {reason}", found.version)))
            }
            Err(rung) => {
                self.refuse(index, found, Some(digest), &rung.detail, round).await;
                Err(Refused::NotServed(format!("version {} was refused: {}", found.version, rung.detail)))
            }
        }
    }

    /// Whether the registry positively wants another version by now.
    async fn has_moved(&mut self, index: usize, found: &Found) -> bool {
        let model = &self.models[index];
        let (registry, select) = (self.registry.clone(), model.select());
        let registered_model = model.config.registered_model.clone();
        let now_wanted = self.attend(async move { registry.resolve(&registered_model, &select).await }).await;
        now_wanted.is_ok_and(|wanted| !policy::is_same(&wanted, found))
    }

    /// Lets a version prove itself; returns it loaded, or the rung where it stopped.
    async fn admit(&mut self, index: usize, found: &Found, fetched: Fetched, has_served: bool) -> Result<Loaded, Rung> {
        let config = self.models[index].config.clone();
        let (admission, serving) = (self.admission.clone(), self.publisher.serving(&config.name));
        let name = config.name.clone();
        let (asked, files) = (found.clone(), fetched.clone());
        let climb = async move {
            let candidate = Candidate { config: &config, found: &asked, fetched: &files, serving, has_served };
            admission.admit(candidate).await
        };
        let (verdict, model) = self.attend(climb).await;
        for rung in &verdict.rungs {
            debug!(model.name = %name, model.version = %found.version, rung = ?rung.name, outcome = ?rung.outcome, took_ms = rung.took_ms, "{}", rung.detail);
        }
        let stopped = verdict.stopped_at().cloned();
        self.models[index].verdict = Some((found.version, Arc::new(verdict)));
        match (model, stopped) {
            (Some(model), None) => {
                self.drift.watch(&model, &fetched.folder).await;
                Ok(Loaded { found: found.clone(), fetched, model: Arc::new(model) })
            }
            (_, Some(rung)) => Err(rung),
            (None, None) => unreachable!("a version that stops nowhere comes back loaded"),
        }
    }

    /// Publishes a loaded version, in the manner the configuration asks for.
    async fn introduce(
        &mut self,
        index: usize,
        candidate: Loaded,
        cause: Cause,
        round: &mut Round,
    ) -> Result<(), Refused> {
        let followed = &self.models[index];
        if matches!(cause, Cause::Registry) && followed.wants_trial() {
            return self.try_out(index, candidate, round).await;
        }
        round.switched.push((followed.config.name.clone(), candidate.found.version));
        self.switch(index, candidate, cause).await;
        Ok(())
    }

    /// Publishes a version: one store. What served before stays ready, and what was ready before that is let go.
    async fn switch(&mut self, index: usize, candidate: Loaded, cause: Cause) {
        let left = self.exchange(index, candidate.clone());
        let from = left.as_ref().map(|left| left.found.version);
        let followed = &mut self.models[index];
        let before = std::mem::replace(&mut followed.previous, left);
        self.retire(before);
        let Loaded { found, fetched, .. } = candidate;
        let followed = &mut self.models[index];
        followed.refused = None;
        followed.failed = None;
        let replaced = from.is_some();
        followed.settled_until = replaced.then(|| self.clock.now() + followed.config.rollout.dwell);
        self.watch(index);
        self.report(index);
        let name = self.models[index].config.name.clone();
        if matches!(cause, Cause::LastGood) {
            info!(model.name = %name, model.version = %found.version, digest = %fetched.digest, "serving `{name}` version {} from the cache until the registry answers", found.version);
            return;
        }
        self.remember(&name, &found, &fetched).await;
        let event = Event {
            from,
            to: Some(found.version),
            digest: Some(fetched.digest.to_string()),
            verdict: cause.verdict(),
            ..self.event(Kind::Served, found.version, cause.who(), cause.why(&found))
        };
        self.note(index, event, &found, "served").await;
    }

    /// Puts `candidate` in the place of what serves, and returns that. Ends what was on trial.
    fn exchange(&mut self, index: usize, candidate: Loaded) -> Option<Loaded> {
        self.publisher.serve(Arc::clone(&candidate.model));
        let followed = &mut self.models[index];
        let challenger = followed.trial.take().and_then(|ended| ended.challenger);
        // Whoever comes to serve may have been the challenger, or the version before.
        let other = |one: &Loaded| !Arc::ptr_eq(&one.model, &candidate.model);
        let let_go = challenger.filter(other);
        followed.previous = followed.previous.take().filter(other);
        let left = followed.serving.replace(candidate);
        self.retire(let_go);
        left
    }

    /// Lets a version go once its last request has left.
    fn retire(&mut self, candidate: Option<Loaded>) {
        self.retired.extend(candidate.map(|candidate| candidate.model));
    }

    /// Notes a version as last good, on disk.
    async fn remember(&self, name: &ModelName, found: &Found, fetched: &Fetched) {
        let (cache, name, found, fetched) = (self.cache.clone(), name.clone(), found.clone(), fetched.clone());
        let remember = move || {
            if let Err(error) = cache.remember(&name, &found, &fetched) {
                warn!(model.name = %name, "cannot note version {} as last good: {error}", found.version);
            }
        };
        aside(remember).await;
    }

    async fn refuse(&mut self, index: usize, found: &Found, digest: Option<String>, reason: &str, round: &mut Round) {
        let followed = &mut self.models[index];
        let name = followed.config.name.clone();
        warn!(model.name = %name, model.version = %found.version, "refused `{name}` version {}: {reason}", found.version);
        round.refused.push((name, found.version));
        followed.refused = Some((found.clone(), reason.to_owned()));
        let event =
            Event { digest, ..self.event(Kind::Refused, found.version, "admission".to_owned(), reason.to_owned()) };
        self.note(index, event, found, "refused").await;
    }

    fn fail(&mut self, index: usize, found: &Found, why: &str, now: Timestamp) {
        let followed = &mut self.models[index];
        let failed = policy::failed_again(followed.failed.take(), found, now);
        let name = &followed.config.name;
        warn!(model.name = %name, model.version = %found.version, attempts = failed.attempts,
            "`{name}` version {} {why}; trying again at {}", found.version, failed.retry_at);
        followed.failed = Some(failed);
    }

    fn event(&self, event: Kind, version: Version, who: String, why: String) -> Event {
        Event { time: self.clock.now(), event, version, digest: None, from: None, to: None, who, why, verdict: None }
    }

    /// Keeps an event: one line in the log, one in the history, and for the registry's tags what became of the version.
    async fn note(&mut self, index: usize, event: Event, found: &Found, status: &'static str) {
        let name = self.models[index].config.name.clone();
        log(&name, &event);
        if self.write_back {
            if self.tags.len() == TAGS_WAITING {
                self.tags.pop_front();
            }
            self.tags.push_back(Tagged { found: found.clone(), status, reason: event.why.clone() });
        }
        let history = self.history.clone();
        let record = move || {
            if let Err(error) = history.record(&name, &event) {
                warn!(model.name = %name, "cannot note in the history that version {} was {}: {error}", event.version, event.event);
            }
        };
        aside(record).await;
    }

    /// Keeps on disk what is settled about a model.
    async fn settle(&self, index: usize) {
        let followed = &self.models[index];
        let (name, stance) = (followed.config.name.clone(), followed.stance.clone());
        let history = self.history.clone();
        let settle = move || {
            if let Err(error) = history.settle(&name, &stance) {
                warn!(model.name = %name, "cannot keep what is pinned and barred of `{name}`; a restart forgets it: {error}");
            }
        };
        aside(settle).await;
    }

    /// Tells the registry what became of versions. It may know better than to let us: then the log says so.
    async fn write_tags(&mut self) {
        while let Some(Tagged { found, status, reason }) = self.tags.pop_front() {
            let registry = self.registry.clone();
            let version = found.version;
            let tags = [("modelgate.status", status.to_owned()), ("modelgate.reason", reason)];
            let write = async move {
                for (key, value) in tags {
                    registry.tag(&found, key, &value).await?;
                }
                Ok::<_, RegistryError>(())
            };
            if let Err(error) = self.attend(write).await {
                warn!(model.version = %version, "cannot write to the registry that version {version} was {status}: {error}");
            }
        }
    }

    /// Publishes what callers and operators may know of a model.
    fn report(&mut self, index: usize) {
        let followed = &self.models[index];
        let status = Status {
            aspired: followed.wanted.as_ref().map(|found| found.version),
            trouble: followed.trouble(),
            stale_since: followed.silent_since,
            verdict: followed.verdict.clone(),
            pinned: followed.stance.pin.map(Version),
            previous: followed.previous.as_ref().map(|candidate| candidate.found.version),
            quarantined: followed.stance.barred.iter().map(|barred| barred.mark.version()).collect(),
        };
        self.publisher.report(&followed.config.name, status);
    }

    /// Frees the versions whose last request has left. Never a request frees one.
    fn reap(&mut self) {
        let (free, busy) = self.retired.drain(..).partition(Model::is_unused);
        self.retired = busy;
        let free: Vec<Arc<Model>> = free;
        if !free.is_empty() {
            // Destroying sessions takes milliseconds; not on an async worker.
            tokio::task::spawn_blocking(move || Model::free(free));
        }
    }

    /// Waits for `work`, which is not ours to hurry, and follows orders and judges trials meanwhile.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                Some(order) = self.inbox.queue.recv() => self.obey(order).await,
                _ = self.pulse.tick() => {
                    self.reap();
                    self.judge_all().await;
                }
            }
        }
    }

    /// Follows the registry until `stop`; `seed` is for the jitter.
    pub async fn run(mut self, seed: u64, stop: CancellationToken) {
        let mut jitter = fastrand::Rng::with_seed(seed);
        let mut silent_rounds = 0;
        loop {
            let now = self.clock.now();
            let round = tokio::select! {
                round = self.reconcile_once(now) => round,
                () = stop.cancelled() => return,
            };
            silent_rounds = if round.unanswered == self.models.len() { silent_rounds + 1 } else { 0 };
            let pause = pause_before_next(self.poll_interval, silent_rounds, round.wait, jitter.f64());
            let rest = rest(pause, Arc::clone(&self.inbox.hint), Arc::clone(&self.wished));
            tokio::select! {
                () = self.attend(rest) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Returns after `pause`, or when an operator waits, or soon after a hint.
async fn rest(pause: Duration, hint: Arc<Notify>, wished: Arc<Notify>) {
    let hinted = async {
        tokio::time::sleep(SHORTEST_POLL_PAUSE).await;
        hint.notified().await;
    };
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = hinted => {}
        () = wished.notified() => {}
    }
}

/// Does what blocks, and waits for it.
async fn aside(work: impl FnOnce() + Send + 'static) {
    // It has nothing to return, and a panic in it is on standard error.
    let _ = tokio::task::spawn_blocking(work).await;
}

/// The audit line: one for each thing that happens to a version.
fn log(name: &ModelName, event: &Event) {
    macro_rules! line {
        ($text:expr) => {
            info!(
                model.name = %name,
                model.version = %event.version,
                digest = event.digest,
                event = event.event.as_str(),
                from = event.from.map(|version| version.0),
                to = event.to.map(|version| version.0),
                who = event.who,
                why = event.why,
                verdict = event.verdict,
                "{}", $text
            )
        };
    }
    match event.event {
        Kind::Served => line!(format_args!("now serving `{name}` version {}", event.version)),
        kind => line!(format_args!("`{name}` version {} was {kind}", event.version)),
    }
}

impl Followed {
    fn new(config: ModelConfig, stance: Stance) -> Self {
        Self {
            config,
            wanted: None,
            serving: None,
            previous: None,
            trial: None,
            refused: None,
            failed: None,
            verdict: None,
            silent_since: None,
            settled_until: None,
            stance,
            wish: None,
        }
    }

    /// What to ask the registry for.
    fn select(&self) -> Select {
        self.stance.pin.map_or_else(|| self.config.select.clone(), |version| Select::Version(Version(version)))
    }

    fn view<'a>(&'a self, wanted: Option<&'a Found>, now: Timestamp) -> View<'a> {
        let set_aside = |found: &Found| self.stance.set_aside.as_ref().is_some_and(|mark| mark.is(found));
        View {
            now,
            wanted,
            serving: self.serving.as_ref().map(|candidate| &candidate.found),
            refused: self.refused.as_ref().map(|(found, _)| found),
            failed: self.failed.as_ref(),
            challenger: self.challenger().map(|candidate| &candidate.found),
            barred: wanted.is_some_and(|found| set_aside(found) || self.stance.bars(found, None).is_some()),
            settled_until: self.settled_until,
        }
    }

    fn challenger(&self) -> Option<&Loaded> {
        self.trial.as_ref()?.challenger.as_ref()
    }

    /// The version `found`, if it is loaded and could answer at once.
    fn resident(&self, found: &Found) -> Option<Loaded> {
        let loaded = [self.previous.as_ref(), self.challenger()];
        loaded.into_iter().flatten().find(|candidate| policy::is_same(&candidate.found, found)).cloned()
    }

    /// Notes what the registry wants; says whether a version that was set aside is forgotten by that.
    fn heard(&mut self, found: &Found, now: Timestamp) -> bool {
        if let Some(since) = self.silent_since.take() {
            let name = &self.config.name;
            info!(model.name = %name, "the registry answers for `{name}` again after {} s", now.as_second() - since.as_second());
        }
        self.wanted = Some(found.clone());
        // While a version is pinned the registry is asked for that one, which says nothing about what it wants.
        self.stance.pin.is_none() && self.stance.set_aside.take_if(|mark| !mark.is(found)).is_some()
    }

    /// Says once that the registry fell silent, not at every round.
    fn not_heard(&mut self, error: &RegistryError, now: Timestamp) {
        if self.silent_since.is_none() {
            let name = &self.config.name;
            let meanwhile = if self.serving.is_some() { "what is served stays" } else { "nothing is served yet" };
            warn!(model.name = %name, "no version of `{name}` from the registry: {error}; {meanwhile}");
            self.silent_since = Some(now);
        }
    }

    fn trouble(&self) -> Option<String> {
        let barred = self.wanted.as_ref().and_then(|wanted| self.stance.bars(wanted, None));
        match (&self.refused, &self.failed, barred) {
            (_, _, Some(barred)) => Some(format!("version {} was rolled back: {}", barred.mark.version(), barred.why)),
            (Some((found, reason)), _, None) => Some(format!("version {} was refused: {reason}", found.version)),
            (None, Some(failed), None) => Some(format!(
                "version {} cannot be fetched or tried, {} attempts so far",
                failed.found.version, failed.attempts
            )),
            (None, None, None) if self.silent_since.is_some() => Some("the registry gives no answer".to_owned()),
            (None, None, None) => None,
        }
    }
}

/// The pause before the next round: the poll interval, doubled for each round that found the registry silent, five
/// minutes at most, never less than the registry asked for, ±20 % so that gateways do not ask in step.
fn pause_before_next(interval: Duration, silent_rounds: u32, asked: Option<Duration>, chance: f64) -> Duration {
    let longest = LONGEST_POLL_PAUSE.max(interval);
    let pause = interval.saturating_mul(1 << silent_rounds.min(10)).min(longest);
    pause.mul_f64(0.8 + 0.4 * chance).max(asked.unwrap_or_default().min(longest))
}

fn wait_asked_for(error: &RegistryError) -> Option<Duration> {
    if let RegistryError::Busy { retry_after } = error { *retry_after } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_poll_slows_down_while_the_registry_is_silent_and_heeds_what_it_asks() {
        let poll = |rounds, asked, chance| pause_before_next(Duration::from_secs(30), rounds, asked, chance).as_secs();
        assert_eq!(poll(0, None, 0.5), 30);
        assert_eq!(poll(0, None, 0.0), 24);
        assert_eq!(poll(0, None, 1.0), 36);
        assert_eq!(poll(1, None, 0.5), 60);
        assert_eq!(poll(99, None, 0.5), 300);
        assert_eq!(poll(0, Some(Duration::from_mins(2)), 0.5), 120);
        assert_eq!(poll(0, Some(Duration::from_hours(24)), 0.5), 300, "a registry cannot silence us for a day");
    }
}
