//! The control plane: asks the registry which version is wanted, loads it aside, publishes it, lets the old one go.
//!
//! Nothing here is on a request's path. Absence is never an instruction: a registry that is down, slow, lying or empty
//! changes nothing about what is served.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::drift::Drift;
use crate::metrics::{Metrics, VersionEvent};
use crate::model::features::Settings;
use crate::model::held::{Listener, Target};
use crate::model::loading::Loading;
use crate::model::orders::{Answer, Event, Inbox, Kind, Operator, Order, Refused};
use crate::model::outputs::Decision;
use crate::model::runtime::Runtime;
use crate::model::{Identity, Model, ModelName, Publisher, Status, Trial, Version, VersionTally};
use crate::registry::cache::Cache;
use crate::registry::{Fetched, Found, Registry, RegistryError, Select};

pub mod admission;
mod example;
mod held;
pub mod history;
pub mod judge;
mod loader;
mod loads;
mod orders;
pub mod policy;
mod trial;

use admission::{Admission, Outcome, Verdict};
use held::Held;
use history::{History, Mark, Refusal, Stance};
use judge::Rollout;
pub use loader::Unfit;
use loads::{Brought, Errand, Ground, Missed, Seat, Source};
use policy::{Action, Failed, View};

/// How often versions on trial are judged, and those that were replaced are looked at until their last request has left.
const PULSE: Duration = Duration::from_millis(500);

// A version that was replaced goes within a second of its last request: when it left, a look may just have been over.
const _: () = assert!(PULSE.as_millis() <= 500);

/// The shortest pause between two polls that hints can bring about.
const SHORTEST_POLL_PAUSE: Duration = Duration::from_secs(1);

/// Outcomes that wait to be written to the registry. One more, and the oldest is left out: the history has it.
const TAGS_WAITING: usize = 64;

/// The longest a registry can make us wait by asking for it.
const LONGEST_POLL_PAUSE: Duration = Duration::from_mins(5);

/// The longest pause between polls while the registry fails: how late its return is noticed.
const LONGEST_SILENT_PAUSE: Duration = Duration::from_mins(1);

/// The first pause after a silent round while a model has no version yet: registry and gateway may start together.
const FIRST_PAUSE_WHEN_EMPTY: Duration = Duration::from_secs(1);

/// How long the log rests before it tells of a registry that fell silent again.
const SILENCE_UNTOLD: Duration = Duration::from_mins(2);

/// How often the log tells of a registry that is still silent.
const SILENCE_RETOLD: Duration = Duration::from_hours(1);

/// How the control plane goes about it.
#[derive(Clone, Debug)]
pub struct Config {
    /// How often the registry is asked.
    pub poll_interval: Duration,
    /// Session slots per version: runs at one time.
    pub slots: usize,
    /// Versions of one model that are held at most for callers who stay on them.
    pub max_held: usize,
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

/// What one round found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
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
    /// Where what happens to versions is counted.
    pub metrics: Metrics,
    /// What operators ask.
    pub inbox: Inbox,
    /// What callers stay on.
    pub stays: Listener,
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
    metrics: Metrics,
    /// Outcomes to be written to the registry.
    tags: VecDeque<Tagged>,
    /// Versions on their way here, and the places for those that are worked at.
    loads: FuturesUnordered<BoxFuture<'static, Brought>>,
    places: Arc<Semaphore>,
    /// What callers stay on.
    stays: Listener,
    has_heard_who_stays: bool,
    max_held: usize,
    /// It is worth asking the registry now.
    news: Arc<Notify>,
    pulse: Interval,
}

/// What happens by itself.
enum Happening {
    /// An operator orders something.
    Order(Order),
    /// A version is here, or will not be.
    Arrival(Box<Brought>),
    /// It is time to judge.
    Pulse,
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
    /// The versions that callers stay on.
    held: Vec<Held>,
    /// Whether a version is on its way here to serve.
    is_loading: bool,
    /// How far that one is.
    loading: Option<Arc<Loading>>,
    /// What versions are admitted by: a refusal holds as long as this is the same.
    rules: Arc<str>,
    failed: Option<Failed>,
    verdict: Option<(Version, Arc<Verdict>)>,
    tally: VersionTally,
    silent_since: Option<Timestamp>,
    /// What came instead of the last answer.
    silence: String,
    /// When the log last told of that.
    silence_told: Option<Timestamp>,
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
        let Parts { registry, cache, runtime, publisher, drift, metrics, inbox, stays, history, clock } = parts;
        let admission = Admission::new(config.admission, runtime, Some(cache.clone()), config.slots);
        let follow = |model: ModelConfig| {
            let rules = admission.rules(&model);
            history.stance(&model.name).map(|stance| Followed::new(model, rules, stance))
        };
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
            metrics,
            tags: VecDeque::new(),
            loads: FuturesUnordered::new(),
            places: Arc::new(Semaphore::new(loads::LOADS_AT_ONCE)),
            stays,
            has_heard_who_stays: false,
            max_held: config.max_held,
            news: Arc::new(Notify::new()),
            pulse,
        })
    }

    /// Serves, for each model, the version that was last good, from disk and without the registry; and so for the versions
    /// that callers stay on. Returns when all of them are here, or cannot be.
    pub async fn open_last_good(&mut self) {
        self.hear_who_stays();
        for index in 0..self.models.len() {
            let name = self.models[index].config.name.clone();
            let cache = self.cache.clone();
            let look_up = move || cache.last_good(&name);
            if let Ok(Some((found, fetched))) = tokio::task::spawn_blocking(look_up).await
                // Another registered model under the same name is another model: its last good version is not ours.
                && found.registered_model == self.models[index].config.registered_model
            {
                let source = Source::Cached(found, fetched);
                self.begin(Errand { index, seat: Seat::Serving, cause: Cause::LastGood, source });
            }
            self.open_held(index).await;
        }
        while !self.loads.is_empty() {
            let what = self.happening().await;
            self.deal(what).await;
        }
    }

    /// One round: asks about every model, and begins to bring what is newly wanted. What was begun is finished as it
    /// arrives, in this round or later; orders are followed meanwhile.
    pub async fn reconcile_once(&mut self, now: Timestamp) -> Round {
        self.reap();
        self.hear_who_stays();
        let mut round = Round::default();
        let held = self.held_to_ask();
        let questions = self.ask(&held);
        let mut answers = self.attend(questions).await.into_iter();
        for (index, answer) in answers.by_ref().take(self.models.len()).enumerate().collect::<Vec<_>>() {
            self.reconcile(index, answer, now, &mut round).await;
        }
        for ((index, target, _), answer) in held.into_iter().zip(answers) {
            self.hold(index, &target, answer, now).await;
        }
        self.write_tags().await;
        round
    }

    /// What the registry says of each model, and then of what is held of them, in their order: one question for all.
    fn ask(&self, held: &[(usize, Target, Select)]) -> impl Future<Output = Vec<Result<Found, RegistryError>>> + use<> {
        let name = |index: usize| self.models[index].config.registered_model.clone();
        let to_serve = self.models.iter().enumerate().map(|(index, model)| (name(index), model.select()));
        let to_hold = held.iter().map(|(index, _, select)| (name(*index), select.clone()));
        let wanted: Vec<_> = to_serve.chain(to_hold).collect();
        let registry = self.registry.clone();
        async move { registry.resolve_all(&wanted).await }
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
                self.bring(index, version).await;
            }
        }
        self.report(index);
    }

    /// Serves the version the registry wants at once if it is loaded; else it is begun to be brought.
    async fn bring(&mut self, index: usize, found: Found) {
        if let Some(resident) = self.models[index].resident(&found) {
            return self.switch(index, resident, Cause::Registry).await;
        }
        let source = Source::Found(found);
        self.begin(Errand { index, seat: Seat::Serving, cause: Cause::Registry, source });
    }

    /// Acts upon what came of bringing a version.
    async fn finish(&mut self, brought: Brought) {
        let Brought { index, seat, cause, found, verdict, end } = brought;
        if let (Some(found), Some(verdict)) = (&found, verdict) {
            self.models[index].keep_verdict(found, verdict);
        }
        match seat {
            Seat::Serving => {
                self.models[index].is_loading = false;
                self.models[index].loading = None;
                let from = self.models[index].serving_version();
                let arrived = self.arrive(index, &cause, found.as_ref(), end).await;
                self.answer_wish(index, &cause, found, from, arrived).await;
            }
            Seat::Held(target) => self.finish_held(index, &target, found.as_ref(), end).await,
        }
        self.share(index);
        self.report(index);
        self.tidy_cache().await;
    }

    /// Removes from the disk what nobody needs, once no version is on its way here: what is fetched is in nobody's hands yet.
    async fn tidy_cache(&mut self) {
        if !self.loads.is_empty() {
            return;
        }
        let keep: Vec<_> =
            self.models.iter().flat_map(Followed::residents).map(|loaded| loaded.fetched.digest).collect();
        let cache = self.cache.clone();
        aside(move || {
            if let Err(error) = cache.retain(&keep) {
                warn!("cannot remove old versions from the cache: {error}");
            }
        })
        .await;
    }

    /// A version that was brought to serve is here, or is not.
    async fn arrive(
        &mut self,
        index: usize,
        cause: &Cause,
        found: Option<&Found>,
        end: Result<Loaded, Missed>,
    ) -> Result<(), Refused> {
        let missed = match end {
            Ok(candidate) => return self.introduce(index, candidate, cause.clone()).await,
            Err(missed) => missed,
        };
        let Some(found) = found else { return Err(missed.told(None)) };
        let refused = missed.told(Some(found.version));
        match missed {
            Missed::MovedOn => self.passed_over(index, found),
            Missed::Refused(ground) => self.refuse(index, found, ground).await,
            Missed::Failed(ref why) | Missed::Untried(ref why) | Missed::Unknown(ref why) => {
                self.fail(index, found, why, missed.longest_pause());
            }
        }
        Err(refused)
    }

    fn passed_over(&self, index: usize, found: &Found) {
        let name = &self.models[index].config.name;
        info!(model.name = %name, model.version = %found.version, "version {} of `{name}` is no longer wanted now that it is here", found.version);
    }

    /// Publishes a loaded version, in the manner the configuration asks for.
    async fn introduce(&mut self, index: usize, candidate: Loaded, cause: Cause) -> Result<(), Refused> {
        let followed = &self.models[index];
        if matches!(cause, Cause::Registry) {
            if !followed.still_wants(&candidate.found) {
                self.passed_over(index, &candidate.found);
                self.retire(Some(candidate));
                return Ok(());
            }
            if followed.wants_trial() {
                return self.try_out(index, candidate).await;
            }
        }
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
    fn remember(&self, name: &ModelName, found: &Found, fetched: &Fetched) -> impl Future<Output = ()> + use<> {
        let (cache, name, found, fetched) = (self.cache.clone(), name.clone(), found.clone(), fetched.clone());
        let remember = move || {
            if let Err(error) = cache.remember(&name, &found, &fetched) {
                warn!(model.name = %name, "cannot note version {} as last good: {error}", found.version);
            }
        };
        aside(remember)
    }

    /// Keeps that a version is not fit, also for the next run of the gateway.
    async fn refuse(&mut self, index: usize, found: &Found, ground: Ground) {
        let Ground { reason, digest, beside } = ground;
        let followed = &mut self.models[index];
        let name = &followed.config.name;
        warn!(model.name = %name, model.version = %found.version, "refused `{name}` version {}: {reason}", found.version);
        let rules = followed.rules.to_string();
        let refusal = Refusal { mark: Mark::of(found), digest: digest.clone(), why: reason.clone(), rules, beside };
        followed.stance.refuse(refusal);
        self.settle(index).await;
        let event = Event { digest, ..self.event(Kind::Refused, found.version, "admission".to_owned(), reason) };
        self.note(index, event, found, "refused").await;
    }

    fn fail(&mut self, index: usize, found: &Found, why: &str, longest: Duration) {
        let now = self.clock.now();
        let followed = &mut self.models[index];
        let failed = policy::failed_again(followed.failed.take(), found, why, now, longest);
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
        *self.models[index].tally.events.entry(event.event).or_default() += 1;
        self.count(&name, event.event);
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

    /// Counts for CloudWatch what an operator may want an alarm for.
    fn count(&self, name: &ModelName, event: Kind) {
        let event = match event {
            Kind::Refused => VersionEvent::Refused,
            Kind::RolledBack => VersionEvent::RolledBack,
            Kind::Served | Kind::Tried | Kind::Kept | Kind::Withdrawn | Kind::Held | Kind::Pinned | Kind::Unpinned => {
                return;
            }
        };
        self.metrics.version_event(name, event);
    }

    /// Keeps on disk what is settled about a model.
    fn settle(&self, index: usize) -> impl Future<Output = ()> + use<> {
        let followed = &self.models[index];
        let (name, stance) = (followed.config.name.clone(), followed.stance.clone());
        let history = self.history.clone();
        let settle = move || {
            if let Err(error) = history.settle(&name, &stance) {
                warn!(model.name = %name, "cannot keep what is pinned and barred of `{name}`; a restart forgets it: {error}");
            }
        };
        aside(settle)
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
            loading: followed.loading.clone(),
            verdict: followed.verdict.clone(),
            tally: followed.tally.clone(),
            pinned: followed.stance.pin.map(Version),
            previous: followed.previous.as_ref().map(|candidate| candidate.found.version),
            quarantined: followed.stance.barred.iter().map(|barred| barred.mark.version()).collect(),
        };
        let held = followed.held.iter().map(Held::published).collect();
        self.publisher.report(&followed.config.name, status, held);
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

    /// Waits for `work`, which is not ours to hurry, and meanwhile finishes loads, follows orders and judges trials.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                what = self.happening() => self.deal(what).await,
            }
        }
    }

    /// The next thing that happens by itself. May be asked and given up at any time: nothing is lost by it.
    async fn happening(&mut self) -> Happening {
        tokio::select! {
            Some(order) = self.inbox.queue.recv() => Happening::Order(order),
            Some(brought) = self.loads.next() => Happening::Arrival(Box::new(brought)),
            _ = self.pulse.tick() => Happening::Pulse,
        }
    }

    async fn deal(&mut self, what: Happening) {
        match what {
            Happening::Order(order) => self.obey(order).await,
            Happening::Arrival(brought) => self.finish(*brought).await,
            Happening::Pulse => {
                self.reap();
                self.judge_all().await;
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
            let is_complete = self.models.iter().all(|model| model.serving.is_some());
            let pause = pause_before_next(self.poll_interval, silent_rounds, is_complete, round.wait, jitter.f64());
            let rest = rest(pause, Arc::clone(&self.inbox.hint), Arc::clone(&self.news), self.stays.clone());
            tokio::select! {
                () = self.attend(rest) => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

/// Returns after `pause`, or when there is news, or soon after a hint.
async fn rest(pause: Duration, hint: Arc<Notify>, news: Arc<Notify>, mut stays: Listener) {
    let hinted = async {
        tokio::time::sleep(SHORTEST_POLL_PAUSE).await;
        hint.notified().await;
    };
    let others_stay = async {
        if stays.changed().await.is_err() {
            // Whoever told us is gone; the process stops.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = hinted => {}
        () = news.notified() => {}
        () = others_stay => {}
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
    fn new(config: ModelConfig, rules: Arc<str>, stance: Stance) -> Self {
        Self {
            config,
            rules,
            held: Vec::new(),
            is_loading: false,
            loading: None,
            wanted: None,
            serving: None,
            previous: None,
            trial: None,
            failed: None,
            verdict: None,
            tally: VersionTally::default(),
            silent_since: None,
            silence: String::new(),
            silence_told: None,
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
        View {
            now,
            wanted,
            serving: self.serving.as_ref().map(|candidate| &candidate.found),
            refused: wanted.filter(|found| self.refusal_of(found).is_some()),
            failed: self.failed.as_ref(),
            challenger: self.challenger().map(|candidate| &candidate.found),
            barred: wanted.is_some_and(|found| self.keeps_out(found)),
            settled_until: self.settled_until,
            is_loading: self.is_loading,
        }
    }

    /// Whether `found` was rolled back, or set aside by an operator.
    fn keeps_out(&self, found: &Found) -> bool {
        let set_aside = self.stance.set_aside.as_ref().is_some_and(|mark| mark.is(found));
        set_aside || self.stance.bars(found, None).is_some()
    }

    /// Why `found` was refused, if it was, and would be again.
    fn refusal_of(&self, found: &Found) -> Option<&Refusal> {
        let serving = self.serving.as_ref().map(|serving| serving.fetched.digest.to_string());
        self.stance.refuses(found, None, &self.rules, serving.as_deref())
    }

    /// Whether a version that was brought because the registry wanted it may come to serve now that it is here: an
    /// operator may have chosen otherwise meanwhile, and the registry may want again what serves.
    fn still_wants(&self, found: &Found) -> bool {
        let pinned_to_another = self.stance.pin.is_some_and(|pin| pin != found.version.0);
        let serves =
            |wanted: &Found| self.serving.as_ref().is_some_and(|serving| policy::is_same(&serving.found, wanted));
        let taken_back = self.wanted.as_ref().is_some_and(|wanted| serves(wanted) && !policy::is_same(wanted, found));
        !(pinned_to_another || taken_back || self.wish.is_some() || self.keeps_out(found))
    }

    /// Keeps what came of a version that asked to serve.
    fn keep_verdict(&mut self, found: &Found, verdict: Verdict) {
        let count = match verdict.stopped_at().map(|rung| rung.outcome) {
            None => &mut self.tally.admitted,
            Some(Outcome::Undecided) => &mut self.tally.undecided,
            Some(_) => &mut self.tally.refused,
        };
        *count += 1;
        self.verdict = Some((found.version, Arc::new(verdict)));
    }

    fn challenger(&self) -> Option<&Loaded> {
        self.trial.as_ref()?.challenger.as_ref()
    }

    /// Every version of it that is in memory.
    fn residents(&self) -> impl Iterator<Item = &Loaded> {
        let seats = [self.serving.as_ref(), self.previous.as_ref(), self.challenger()];
        seats.into_iter().flatten().chain(self.held.iter().filter_map(Held::loaded))
    }

    /// The version `found`, if it is loaded and could answer at once.
    fn resident(&self, found: &Found) -> Option<Loaded> {
        let loaded = [self.previous.as_ref(), self.challenger()];
        loaded.into_iter().flatten().find(|candidate| policy::is_same(&candidate.found, found)).cloned()
    }

    /// Notes what the registry wants; says whether a version that was set aside is forgotten by that.
    fn heard(&mut self, found: &Found, now: Timestamp) -> bool {
        let since = self.silent_since.take();
        // Of a silence that was not told, its end is not told either.
        if let Some(since) = since.filter(|since| self.silence_told >= Some(*since)) {
            let name = &self.config.name;
            info!(model.name = %name, "the registry answers for `{name}` again after {} s", now.as_second() - since.as_second());
        }
        self.wanted = Some(found.clone());
        // While a version is pinned the registry is asked for that one, which says nothing about what it wants.
        self.stance.pin.is_none() && self.stance.set_aside.take_if(|mark| !mark.is(found)).is_some()
    }

    /// Tells that the registry is silent: when it falls silent, and then once in a while, not at every round.
    fn not_heard(&mut self, error: &RegistryError, now: Timestamp) {
        self.silence = error.to_string();
        let since = *self.silent_since.get_or_insert(now);
        let is_told = self.silence_told >= Some(since);
        let rest = if is_told { SILENCE_RETOLD } else { SILENCE_UNTOLD };
        if self.silence_told.is_some_and(|told| now < told + rest) {
            return;
        }
        self.silence_told = Some(now);
        let name = &self.config.name;
        let still =
            if is_told { format!(" for {} min now", now.duration_since(since).as_mins()) } else { String::new() };
        let meanwhile = self.serving.as_ref().map_or_else(
            || "nothing is served yet".to_owned(),
            |serving| format!("version {} stays in service", serving.found.version),
        );
        warn!(model.name = %name, "no version of `{name}` from the registry{still}: {error}; {meanwhile}");
    }

    fn trouble(&self) -> Option<String> {
        let barred = self.wanted.as_ref().and_then(|wanted| self.stance.bars(wanted, None));
        let refused = self.wanted.as_ref().and_then(|wanted| self.refusal_of(wanted));
        match (refused, &self.failed, barred) {
            (_, _, Some(barred)) => Some(format!("version {} was rolled back: {}", barred.mark.version(), barred.why)),
            (Some(refusal), _, None) => {
                Some(format!("version {} was refused: {}", refusal.mark.version(), refusal.why))
            }
            (None, Some(failed), None) => Some(format!(
                "version {} {}; attempts so far: {}, the next at {}",
                failed.found.version, failed.why, failed.attempts, failed.retry_at
            )),
            (None, None, None) if self.silent_since.is_some() => {
                Some(format!("the registry gives no version to serve: {}", self.silence))
            }
            (None, None, None) => None,
        }
    }
}

/// The pause before the next round: the poll interval, doubled for each round that found the registry silent up to a
/// minute, from a second on while a model has no version; never less than the registry asked for, up to five minutes;
/// ±20 % so that gateways do not ask in step.
fn pause_before_next(
    interval: Duration,
    silent_rounds: u32,
    is_complete: bool,
    asked: Option<Duration>,
    chance: f64,
) -> Duration {
    let doublings = silent_rounds.min(10);
    let pause = match doublings.checked_sub(1).filter(|_| !is_complete) {
        Some(doublings) => FIRST_PAUSE_WHEN_EMPTY.min(interval).saturating_mul(1 << doublings),
        None => interval.saturating_mul(1 << doublings),
    };
    let pause = pause.min(LONGEST_SILENT_PAUSE.max(interval)).mul_f64(0.8 + 0.4 * chance);
    pause.max(asked.unwrap_or_default().min(LONGEST_POLL_PAUSE.max(interval)))
}

fn wait_asked_for(error: &RegistryError) -> Option<Duration> {
    if let RegistryError::Busy { retry_after } = error { *retry_after } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_poll_slows_down_while_the_registry_is_silent_and_heeds_what_it_asks() {
        let pause = |rounds, is_complete, asked, chance| {
            pause_before_next(Duration::from_secs(30), rounds, is_complete, asked, chance).as_secs()
        };
        let poll = |rounds, asked, chance| pause(rounds, true, asked, chance);
        assert_eq!(poll(0, None, 0.5), 30);
        assert_eq!(poll(0, None, 0.0), 24);
        assert_eq!(poll(0, None, 1.0), 36);
        assert_eq!([1, 2, 99].map(|rounds| poll(rounds, None, 0.5)), [60, 60, 60]);
        let until_there_is_a_version: Vec<_> = (0..9).map(|rounds| pause(rounds, false, None, 0.5)).collect();
        assert_eq!(until_there_is_a_version, [30, 1, 2, 4, 8, 16, 32, 60, 60]);
        let rare = pause_before_next(Duration::from_hours(1), 9, true, None, 0.5);
        assert_eq!(rare, Duration::from_hours(1), "no rarer than was wished");
        assert_eq!(poll(0, Some(Duration::from_mins(2)), 0.5), 120);
        assert_eq!(poll(0, Some(Duration::from_hours(24)), 0.5), 300, "a registry cannot silence us for a day");
    }
}
