//! The control plane: asks the registry which version is wanted, loads it aside, publishes it, lets the old one go.
//!
//! Nothing here is on a request's path. Absence is never an instruction: a registry that is down, slow, lying or empty
//! changes nothing about what is served.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::drift::Drift;
use crate::model::features::Settings;
use crate::model::outputs::Decision;
use crate::model::runtime::Runtime;
use crate::model::{Model, ModelName, Publisher, Status, Version};
use crate::registry::cache::Cache;
use crate::registry::{Fetched, Found, Registry, RegistryError, Select};

mod example;
mod loader;
pub mod policy;

pub use loader::Unfit;
use policy::{Action, Failed, View};

/// Models asked about at one time.
const QUESTIONS_AT_ONCE: usize = 8;

/// How often a version that was replaced is looked at until its last request has left.
const REAP_INTERVAL: Duration = Duration::from_millis(500);

/// The longest pause between polls while the registry fails.
const LONGEST_POLL_PAUSE: Duration = Duration::from_mins(5);

/// How the control plane goes about it.
#[derive(Clone, Debug)]
pub struct Config {
    /// How often the registry is asked.
    pub poll_interval: Duration,
    /// Session slots per version: runs at one time.
    pub slots: usize,
    /// The models to serve.
    pub models: Vec<ModelConfig>,
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

/// Follows the registry. One per process.
#[derive(Debug)]
pub struct Manager {
    registry: Registry,
    cache: Cache,
    runtime: Runtime,
    publisher: Publisher,
    poll_interval: Duration,
    slots: usize,
    models: Vec<Followed>,
    retired: Vec<Arc<Model>>,
    drift: Drift,
}

/// What is known of one model between rounds.
#[derive(Debug)]
struct Followed {
    config: ModelConfig,
    serving: Option<Found>,
    refused: Option<(Found, String)>,
    failed: Option<Failed>,
    silent_since: Option<Timestamp>,
}

/// How a version came to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Registry,
    LastGood,
}

/// Loads a version that was served before, beside the gateway, to ask it once more.
///
/// # Errors
/// When its files are no longer fit to serve.
pub async fn reopen(runtime: Runtime, config: ModelConfig, found: Found, fetched: Fetched) -> Result<Model, Unfit> {
    loader::load(runtime, config, 1, found, fetched).await
}

impl Manager {
    /// A manager that has not asked anything yet.
    #[must_use]
    pub fn new(
        registry: Registry,
        cache: Cache,
        runtime: Runtime,
        publisher: Publisher,
        drift: Drift,
        config: Config,
    ) -> Self {
        let models = config.models.into_iter().map(Followed::new).collect();
        Self {
            registry,
            cache,
            runtime,
            publisher,
            poll_interval: config.poll_interval,
            slots: config.slots,
            models,
            retired: Vec::new(),
            drift,
        }
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
            if let Err(unfit) = self.try_version(index, &found, fetched, Origin::LastGood).await {
                self.refuse(index, &found, &whole_reason(&unfit), &mut Round::default());
            }
        }
    }

    /// One round: asks about every model, and serves what is newly wanted and fit.
    pub async fn reconcile_once(&mut self, now: Timestamp) -> Round {
        self.reap();
        let mut round = Round::default();
        for (index, answer) in self.ask().await.into_iter().enumerate() {
            self.reconcile(index, answer, now, &mut round).await;
        }
        round
    }

    /// What the registry says of each model, in the order of the models.
    async fn ask(&self) -> Vec<Result<Found, RegistryError>> {
        let mut questions = Vec::with_capacity(self.models.len());
        for Followed { config, .. } in &self.models {
            questions.push(self.registry.resolve(&config.registered_model, &config.select));
        }
        stream::iter(questions).buffered(QUESTIONS_AT_ONCE).collect().await
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
                model.heard(now);
                Some(found)
            }
            Err(error) => {
                round.unanswered += 1;
                round.wait = round.wait.max(wait_asked_for(&error));
                model.not_heard(&error, now);
                None
            }
        };
        let action = policy::next_action(&model.view(wanted.as_ref(), now));
        if let Action::Load(version) = action {
            let version = version.clone();
            self.bring(index, &version, now, round).await;
        }
        self.report(index, wanted.as_ref());
    }

    /// Downloads, loads and publishes `found`, or remembers why not.
    async fn bring(&mut self, index: usize, found: &Found, now: Timestamp, round: &mut Round) {
        let config = self.models[index].config.clone();
        info!(model.name = %config.name, model.version = %found.version, "fetching `{}` version {}", config.name, found.version);
        let fetched = match self.registry.fetch(found, &self.cache).await {
            Ok(fetched) => fetched,
            Err(RegistryError::BadArtifacts(reason)) => return self.refuse(index, found, &reason, round),
            Err(error) => return self.fail(index, found, &error, now),
        };
        if self.has_moved(index, found).await {
            info!(model.name = %config.name, model.version = %found.version, "`{}` moved on while version {} was fetched", config.name, found.version);
            return;
        }
        match self.try_version(index, found, fetched, Origin::Registry).await {
            Ok(()) => round.switched.push((config.name, found.version)),
            Err(unfit) => self.refuse(index, found, &whole_reason(&unfit), round),
        }
    }

    /// Whether the registry positively wants another version by now.
    async fn has_moved(&self, index: usize, found: &Found) -> bool {
        let config = &self.models[index].config;
        let now_wanted = self.registry.resolve(&config.registered_model, &config.select).await;
        now_wanted.is_ok_and(|wanted| !policy::is_same(&wanted, found))
    }

    /// Loads `fetched`, and publishes it if it is fit.
    async fn try_version(
        &mut self,
        index: usize,
        found: &Found,
        fetched: Fetched,
        origin: Origin,
    ) -> Result<(), Unfit> {
        let config = self.models[index].config.clone();
        let model = loader::load(self.runtime.clone(), config, self.slots, found.clone(), fetched.clone()).await?;
        self.drift.watch(&model, &fetched.folder).await;
        self.publish(index, found, &fetched, model, origin);
        Ok(())
    }

    fn publish(&mut self, index: usize, found: &Found, fetched: &Fetched, model: Model, origin: Origin) {
        let name = model.id().name.clone();
        if let Some(replaced) = self.publisher.serve(Arc::new(model)) {
            self.retired.push(replaced);
        }
        match origin {
            Origin::Registry => {
                info!(model.name = %name, model.version = %found.version, digest = %fetched.digest, "now serving `{name}` version {}", found.version);
                if let Err(error) = self.cache.remember(&name, found, fetched) {
                    warn!(model.name = %name, "cannot note version {} as last good: {error}", found.version);
                }
            }
            Origin::LastGood => {
                info!(model.name = %name, model.version = %found.version, digest = %fetched.digest, "serving `{name}` version {} from the cache until the registry answers", found.version);
            }
        }
        let followed = &mut self.models[index];
        followed.serving = Some(found.clone());
        followed.refused = None;
        followed.failed = None;
    }

    fn refuse(&mut self, index: usize, found: &Found, reason: &str, round: &mut Round) {
        let followed = &mut self.models[index];
        let name = &followed.config.name;
        warn!(model.name = %name, model.version = %found.version, "refused `{name}` version {}: {reason}", found.version);
        round.refused.push((name.clone(), found.version));
        followed.refused = Some((found.clone(), reason.to_owned()));
    }

    fn fail(&mut self, index: usize, found: &Found, error: &RegistryError, now: Timestamp) {
        let followed = &mut self.models[index];
        let failed = policy::failed_again(followed.failed.take(), found, now);
        let name = &followed.config.name;
        warn!(model.name = %name, model.version = %found.version, attempts = failed.attempts,
            "cannot fetch `{name}` version {}: {error}; trying again at {}", found.version, failed.retry_at);
        followed.failed = Some(failed);
    }

    /// Publishes what callers and operators may know of a model.
    fn report(&mut self, index: usize, wanted: Option<&Found>) {
        let followed = &self.models[index];
        let before = self.publisher.status(&followed.config.name);
        let status = Status {
            aspired: wanted.map(|found| found.version).or(before.aspired),
            trouble: followed.trouble().or(if wanted.is_none() { before.trouble } else { None }),
            stale_since: followed.silent_since,
        };
        self.publisher.report(&followed.config.name, status);
    }

    /// Frees the versions whose last request has left. Never a request frees one.
    fn reap(&mut self) {
        let (free, busy) = self.retired.drain(..).partition(|model| Arc::strong_count(model) == 1);
        self.retired = busy;
        let free: Vec<Arc<Model>> = free;
        if !free.is_empty() {
            // Destroying sessions takes milliseconds; not on an async worker.
            tokio::task::spawn_blocking(move || drop(free));
        }
    }

    /// Follows the registry until `stop`; `seed` is for the jitter.
    pub async fn run(mut self, clock: Clock, seed: u64, stop: CancellationToken) {
        let mut jitter = fastrand::Rng::with_seed(seed);
        let mut silent_rounds = 0;
        loop {
            let round = tokio::select! {
                round = self.reconcile_once(clock.now()) => round,
                () = stop.cancelled() => return,
            };
            silent_rounds = if round.unanswered == self.models.len() { silent_rounds + 1 } else { 0 };
            let pause = pause_before_next(self.poll_interval, silent_rounds, round.wait, jitter.f64());
            if self.rest(pause, &stop).await.is_break() {
                return;
            }
        }
    }

    /// Waits for `pause`, freeing retired versions meanwhile; breaks when it is time to stop.
    async fn rest(&mut self, pause: Duration, stop: &CancellationToken) -> std::ops::ControlFlow<()> {
        let end = tokio::time::sleep(pause);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return std::ops::ControlFlow::Continue(()),
                () = stop.cancelled() => return std::ops::ControlFlow::Break(()),
                () = tokio::time::sleep(REAP_INTERVAL), if !self.retired.is_empty() => self.reap(),
            }
        }
    }
}

impl Followed {
    fn new(config: ModelConfig) -> Self {
        Self { config, serving: None, refused: None, failed: None, silent_since: None }
    }

    fn view<'a>(&'a self, wanted: Option<&'a Found>, now: Timestamp) -> View<'a> {
        View {
            now,
            wanted,
            serving: self.serving.as_ref(),
            refused: self.refused.as_ref().map(|(found, _)| found),
            failed: self.failed.as_ref(),
        }
    }

    fn heard(&mut self, now: Timestamp) {
        if let Some(since) = self.silent_since.take() {
            let name = &self.config.name;
            info!(model.name = %name, "the registry answers for `{name}` again after {} s", now.as_second() - since.as_second());
        }
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
        match (&self.refused, &self.failed) {
            (Some((found, reason)), _) => Some(format!("version {} was refused: {reason}", found.version)),
            (None, Some(failed)) => {
                Some(format!("version {} cannot be fetched, tried {} times", failed.found.version, failed.attempts))
            }
            (None, None) if self.silent_since.is_some() => Some("the registry gives no answer".to_owned()),
            (None, None) => None,
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

/// An error and everything that led to it, on one line.
fn whole_reason(error: &Unfit) -> String {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
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
