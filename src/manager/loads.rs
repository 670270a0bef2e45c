//! Versions on their way here. Each is fetched and admitted in a future of its own, beside the others; meanwhile polls,
//! orders and rollbacks go on. What came of it is acted upon when it is here, in [`Manager::finish`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tracing::{debug, info};

use super::admission::{Admission, Candidate, Check, Outcome, Rung, Verdict};
use super::history::Stance;
use super::{Cause, Loaded, Manager, ModelConfig, policy};
use crate::drift::Drift;
use crate::model::held::Target;
use crate::model::loading::Loading;
use crate::model::{Model, Models, Version};
use crate::registry::cache::Cache;
use crate::registry::{Fetched, Found, Registry, RegistryError, Select};

/// Versions that are fetched and admitted at one time. Each takes a download and a process of its own: more would take the
/// processor from one another and from requests. One more waits; there is at most one for each [`Seat`].
pub(super) const LOADS_AT_ONCE: usize = 4;

/// What a version is brought for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seat {
    /// To serve, by the way of the model's rollout.
    Serving,
    /// To answer the callers who stay on it.
    Held(Target),
}

/// Where a version is to be had.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The registry has named it.
    Found(Found),
    /// The registry is to be asked for it.
    Numbered(Version),
    /// It was loaded in an earlier run of the gateway.
    Cached(Found, Fetched),
}

/// A version to bring.
#[derive(Clone, Debug)]
pub(super) struct Errand {
    /// Of which model.
    pub(super) index: usize,
    pub(super) seat: Seat,
    pub(super) cause: Cause,
    pub(super) source: Source,
}

/// What came of an [`Errand`].
#[derive(Debug)]
pub(super) struct Brought {
    pub(super) index: usize,
    pub(super) seat: Seat,
    pub(super) cause: Cause,
    /// Which version it was, where that was found out.
    pub(super) found: Option<Found>,
    /// The rungs it climbed, if it got so far.
    pub(super) verdict: Option<Verdict>,
    pub(super) end: Result<Loaded, Missed>,
}

/// Why a version is not here.
#[derive(Clone, Debug)]
pub(super) enum Missed {
    /// The registry does not say which it is.
    Unknown(String),
    /// The registry wants another one by now.
    MovedOn,
    /// It is not fit.
    Refused(Ground),
    /// It cannot be had for now.
    Failed(String),
    /// It is here and cannot be tried for now.
    Untried(String),
}

/// Why a version is not fit.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) reason: String,
    /// Its bytes, where they were seen.
    pub(super) digest: Option<String>,
    /// The bytes of the version it was compared with, where that is why.
    pub(super) beside: Option<String>,
}

impl Ground {
    /// The files are no version's.
    fn files(reason: String) -> Self {
        Self { reason, digest: None, beside: None }
    }
}

/// All that bringing one version takes, so that it needs nothing of the manager.
struct Carrier {
    registry: Registry,
    cache: Cache,
    admission: Admission,
    drift: Drift,
    models: Models,
    config: ModelConfig,
    select: Select,
    stance: Stance,
    rules: Arc<str>,
    seat: Seat,
    cause: Cause,
    /// What the callers of a held version have now.
    held: Option<Arc<Model>>,
    /// How far the version is.
    loading: Arc<Loading>,
}

impl Manager {
    /// Begins to bring a version. The caller has seen that nothing else is on its way to that seat.
    pub(super) fn begin(&mut self, errand: Errand) {
        let Errand { index, seat, cause, source } = errand;
        let loading = Arc::new(Loading::new(self.clock.now()));
        let followed = &mut self.models[index];
        let held = followed.mark_loading(&seat);
        if seat == Seat::Serving {
            followed.loading = Some(Arc::clone(&loading));
        }
        let carrier = Carrier {
            registry: self.registry.clone(),
            cache: self.cache.clone(),
            admission: self.admission.clone(),
            drift: self.drift.clone(),
            models: self.publisher.models(),
            config: followed.config.clone(),
            select: followed.select(),
            stance: followed.stance.clone(),
            rules: Arc::clone(&followed.rules),
            seat,
            cause,
            held,
            loading,
        };
        let places = Arc::clone(&self.places);
        self.loads.push(carrier.carry(index, source, places).boxed());
        self.report(index);
    }
}

impl Carrier {
    async fn carry(self, index: usize, source: Source, places: Arc<Semaphore>) -> Brought {
        let _place = places.acquire().await.expect("the semaphore is never closed");
        let (mut found, mut verdict) = (None, None);
        let end = self.bring(source, &mut found, &mut verdict).await;
        let Self { seat, cause, .. } = self;
        Brought { index, seat, cause, found, verdict, end }
    }

    async fn bring(
        &self,
        source: Source,
        known: &mut Option<Found>,
        verdict: &mut Option<Verdict>,
    ) -> Result<Loaded, Missed> {
        let (found, fetched, has_served) = match source {
            Source::Cached(found, fetched) => (found, fetched, true),
            Source::Found(found) => {
                *known = Some(found.clone());
                let fetched = self.fetch(&found).await?;
                (found, fetched, false)
            }
            Source::Numbered(version) => {
                let found = self.registry.resolve(&self.config.registered_model, &Select::Version(version)).await;
                let found = found.map_err(|error| Missed::Unknown(error.to_string()))?;
                *known = Some(found.clone());
                let fetched = self.fetch(&found).await?;
                (found, fetched, false)
            }
        };
        *known = Some(found.clone());
        self.loading.is_here(found.version);
        self.admit(found, fetched, has_served, verdict).await
    }

    async fn fetch(&self, found: &Found) -> Result<Fetched, Missed> {
        let name = &self.config.name;
        info!(model.name = %name, model.version = %found.version, "fetching `{name}` version {}", found.version);
        self.loading.begin(found.version);
        let fetched = self.registry.fetch(found, &self.cache, &self.loading).await.map_err(|error| match error {
            RegistryError::BadArtifacts(reason) => Missed::Refused(Ground::files(reason)),
            error => Missed::Failed(format!("cannot be fetched: {error}")),
        })?;
        if matches!(self.cause, Cause::Registry) {
            self.check_wanted(found).await?;
            self.check_bytes(found, &fetched)?;
        }
        Ok(fetched)
    }

    /// A download takes a while: the registry may positively want another version by now.
    async fn check_wanted(&self, found: &Found) -> Result<(), Missed> {
        if self.seat != Seat::Serving {
            return Ok(());
        }
        let wanted = self.registry.resolve(&self.config.registered_model, &self.select).await;
        if wanted.is_ok_and(|wanted| !policy::is_same(&wanted, found)) { Err(Missed::MovedOn) } else { Ok(()) }
    }

    /// Bytes that were rolled back or refused are no better under another number.
    fn check_bytes(&self, found: &Found, fetched: &Fetched) -> Result<(), Missed> {
        let digest = fetched.digest.to_string();
        let beside = self.predecessor().map(|model| model.id().digest.to_string());
        let ground = |reason| Ground { reason, digest: Some(digest.clone()), beside: None };
        if let Some(barred) = self.stance.bars(found, Some(&digest)) {
            let reason = format!("it has the bytes of a version that was rolled back: {}", barred.why);
            return Err(Missed::Refused(ground(reason)));
        }
        match self.stance.refuses(found, Some(&digest), &self.rules, beside.as_deref()) {
            Some(refusal) => Err(Missed::Refused(Ground {
                beside: refusal.beside.clone(),
                ..ground(format!(
                    "it has the bytes of version {}, which was refused: {}",
                    refusal.mark.version(),
                    refusal.why
                ))
            })),
            None => Ok(()),
        }
    }

    /// The version whose callers the new one would answer.
    fn predecessor(&self) -> Option<Arc<Model>> {
        match self.seat {
            Seat::Serving => self.models.get(self.config.name.as_str()).ok(),
            Seat::Held(_) => self.held.clone(),
        }
    }

    /// Lets the version prove itself.
    async fn admit(
        &self,
        found: Found,
        fetched: Fetched,
        has_served: bool,
        told: &mut Option<Verdict>,
    ) -> Result<Loaded, Missed> {
        let serving = self.predecessor();
        let beside = serving.as_ref().map(|model| model.id().digest.to_string());
        let candidate = Candidate { config: &self.config, found: &found, fetched: &fetched, serving, has_served };
        let (verdict, model) = self.admission.admit(candidate).await;
        for rung in &verdict.rungs {
            debug!(model.name = %self.config.name, model.version = %found.version, rung = ?rung.name, outcome = ?rung.outcome, took_ms = rung.took_ms, "{}", rung.detail);
        }
        let stopped = verdict.stopped_at().cloned();
        *told = Some(verdict);
        match (model, stopped) {
            (Some(model), None) => {
                self.drift.watch(&model, &fetched.folder).await;
                Ok(Loaded { found, fetched, model: Arc::new(model) })
            }
            (_, Some(rung)) => {
                // What reading a strange file took, which may be much. Nothing else hangs on when it is given back.
                drop(spawn_blocking(glibc_trim::trim));
                Err(missed(rung, &fetched, beside))
            }
            (None, None) => unreachable!("a version that stops nowhere comes back loaded"),
        }
    }
}

impl Missed {
    /// The longest pause before the next try.
    pub(super) fn longest_pause(&self) -> Duration {
        if let Self::Untried(_) = self { policy::LONGEST_PAUSE_UNTRIED } else { policy::LONGEST_PAUSE }
    }
}

/// What a rung where a version stopped means for it.
fn missed(rung: Rung, fetched: &Fetched, beside: Option<String>) -> Missed {
    if rung.outcome == Outcome::Undecided {
        return Missed::Untried(format!("is undecided: {}", rung.detail));
    }
    let compared = matches!(rung.name, Check::Signature | Check::Replay);
    let beside = beside.filter(|_| compared);
    Missed::Refused(Ground { reason: rung.detail, digest: Some(fetched.digest.to_string()), beside })
}
