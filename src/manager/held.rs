//! Versions that are held loaded for callers who stay on them while others move on.
//!
//! A version that is held by its number is a person's word: it is admitted, and then it stays, even if it was rolled back
//! elsewhere. One that is held by an alias follows that alias, each new version by the same admission, compared with the
//! one before it. Nobody answers in the place of a version that cannot be held.

use std::sync::Arc;

use jiff::Timestamp;
use tracing::{info, warn};

use super::history::{HeldNote, Mark, Refusal};
use super::loads::{Errand, Ground, Missed, Seat, Source};
use super::policy::{self, Action, Failed, View};
use super::{Cause, Followed, Loaded, Manager};
use crate::model::held::{self, Target};
use crate::model::orders::{Event, Kind};
use crate::model::{Model, Version};
use crate::registry::{Found, RegistryError, Select};

/// A version, or an alias, that callers stay on.
#[derive(Debug)]
pub(super) struct Held {
    target: Target,
    loaded: Option<Loaded>,
    failed: Option<Failed>,
    is_loading: bool,
    trouble: Option<String>,
}

impl Held {
    fn new(target: Target) -> Self {
        Self { target, loaded: None, failed: None, is_loading: false, trouble: None }
    }

    pub(super) fn published(&self) -> held::Held {
        let model = self.loaded.as_ref().map(|loaded| Arc::clone(&loaded.model));
        held::Held { target: self.target.clone(), model, trouble: self.trouble.clone() }
    }

    pub(super) fn loaded(&self) -> Option<&Loaded> {
        self.loaded.as_ref()
    }

    /// What to ask the registry for; `None` where there is nothing more to learn, because a number does not move.
    fn select(&self) -> Option<Select> {
        match &self.target {
            Target::Version(_) if self.loaded.is_some() => None,
            Target::Version(version) => Some(Select::Version(*version)),
            Target::Alias(alias) => Some(Select::Alias(alias.to_string())),
        }
    }

    /// A number is a person's word; an alias may point at what was rolled back.
    fn heeds_bars(&self) -> bool {
        matches!(self.target, Target::Alias(_))
    }
}

impl Followed {
    fn seat(&self, target: &Target) -> Option<&Held> {
        self.held.iter().find(|held| held.target == *target)
    }

    fn seat_mut(&mut self, target: &Target) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| held.target == *target)
    }

    /// Notes that a version is on its way to `seat`; returns what is held there now.
    pub(super) fn mark_loading(&mut self, seat: &Seat) -> Option<Arc<Model>> {
        match seat {
            Seat::Serving => {
                self.is_loading = true;
                None
            }
            Seat::Held(target) => {
                let held = self.seat_mut(target)?;
                held.is_loading = true;
                held.loaded.as_ref().map(|loaded| Arc::clone(&loaded.model))
            }
        }
    }

    /// Every version of the model that is loaded.
    pub(super) fn all_loaded(&self) -> impl Iterator<Item = &Loaded> {
        let held = self.held.iter().filter_map(Held::loaded);
        [self.serving.as_ref(), self.challenger(), self.previous.as_ref()].into_iter().flatten().chain(held)
    }

    /// Why `found` would be refused at the seat of `held`.
    fn refusal_at(&self, held: &Held, found: &Found) -> Option<&Refusal> {
        let beside = held.loaded.as_ref().map(|loaded| loaded.fetched.digest.to_string());
        self.stance.refuses(found, None, &self.rules, beside.as_deref())
    }

    /// What is to be found again after a restart.
    fn note_held(&mut self) {
        let note = |held: &Held| {
            let Loaded { found, fetched, .. } = held.loaded.as_ref()?;
            Some(HeldNote { target: held.target.to_string(), mark: Mark::of(found), digest: fetched.digest.hex() })
        };
        self.stance.held = self.held.iter().filter_map(note).collect();
    }
}

impl Manager {
    /// Takes over what callers stay on by now: makes seats for what is new, as far as there is room, and lets go what
    /// nobody stays on any more.
    pub(super) fn hear_who_stays(&mut self) {
        if !self.stays.has_changed().unwrap_or(false) && self.has_heard_who_stays {
            return;
        }
        self.has_heard_who_stays = true;
        let asked = self.stays.borrow_and_update().clone();
        for index in 0..self.models.len() {
            let asked = asked.get(self.models[index].config.name.as_str()).map_or(&[][..], Vec::as_slice);
            self.seat_those(index, asked);
            self.report(index);
        }
    }

    fn seat_those(&mut self, index: usize, asked: &[Target]) {
        let followed = &mut self.models[index];
        let (stay, go): (Vec<_>, Vec<_>) = followed.held.drain(..).partition(|held| asked.contains(&held.target));
        followed.held = stay;
        for target in asked {
            if followed.seat(target).is_some() {
                continue;
            }
            if followed.held.len() < self.max_held {
                followed.held.push(Held::new(target.clone()));
            } else {
                let name = &followed.config.name;
                warn!(model.name = %name, "no room to hold {target} of `{name}` for those who stay on it: {} are held already (engine.max_held)", self.max_held);
            }
        }
        for held in go {
            info!(model.name = %self.models[index].config.name, "nobody stays on {} any more", held.target);
            self.retire(held.loaded);
        }
    }

    /// Opens, from the cache and without the registry, the versions that were held when the gateway stopped.
    pub(super) async fn open_held(&mut self, index: usize) {
        for note in self.models[index].stance.held.clone() {
            let seat = self.models[index].held.iter().find(|held| held.target.to_string() == note.target);
            let Some(target) = seat.map(|held| held.target.clone()) else { continue };
            let cache = self.cache.clone();
            let look_up = move || cache.get(&note.digest.parse().ok()?);
            if let Ok(Some(fetched)) = tokio::task::spawn_blocking(look_up).await {
                let alias = if let Target::Alias(alias) = &target { Some(Arc::clone(alias)) } else { None };
                let found = Found { alias, ..note.mark.found() };
                let source = Source::Cached(found, fetched);
                self.begin(Errand { index, seat: Seat::Held(target), cause: Cause::LastGood, source });
            }
        }
    }

    /// What is held and may have moved: of which model, for whom, and what to ask.
    pub(super) fn held_to_ask(&self) -> Vec<(usize, Target, Select)> {
        let of = |(index, followed): (usize, &Followed)| {
            let settled = followed.held.iter().filter(|held| !held.is_loading);
            let asked = settled.filter_map(|held| Some((index, held.target.clone(), held.select()?)));
            asked.collect::<Vec<_>>()
        };
        self.models.iter().enumerate().flat_map(of).collect()
    }

    /// Acts upon what the registry says of what is held for those who stay on `target`.
    pub(super) async fn hold(
        &mut self,
        index: usize,
        target: &Target,
        answer: Result<Found, RegistryError>,
        now: Timestamp,
    ) {
        let followed = &mut self.models[index];
        let found = match (answer, followed.seat_mut(target)) {
            (_, None) => return,
            (Ok(found), Some(_)) => found,
            (Err(error), Some(held)) => {
                // Absence is never an instruction: what is held stays.
                held.trouble = Some(error.to_string());
                return self.report(index);
            }
        };
        let Some(held) = followed.seat(target) else { return };
        let refusal = followed.refusal_at(held, &found).map(|refusal| refusal.why.clone());
        let barred = held.heeds_bars() && followed.stance.bars(&found, None).is_some();
        let view = View {
            now,
            wanted: Some(&found),
            serving: held.loaded.as_ref().map(|loaded| &loaded.found),
            refused: refusal.as_ref().map(|_| &found),
            failed: held.failed.as_ref(),
            challenger: None,
            barred,
            settled_until: None,
            is_loading: held.is_loading,
        };
        let is_wanted = matches!(policy::next_action(&view), Action::Load(_));
        let resident = followed.all_loaded().find(|loaded| policy::is_same(&loaded.found, &found)).cloned();
        match resident {
            Some(resident) if is_wanted => self.seat(index, target, resident).await,
            None if is_wanted => {
                let source = Source::Found(found);
                self.begin(Errand { index, seat: Seat::Held(target.clone()), cause: Cause::Registry, source });
            }
            _ => {
                let trouble = refusal.map(|why| format!("version {} was refused: {why}", found.version));
                let barred = barred.then(|| format!("version {} was rolled back", found.version));
                if let (Some(trouble), Some(held)) = (trouble.or(barred), self.models[index].seat_mut(target)) {
                    held.trouble = Some(trouble);
                }
            }
        }
        self.report(index);
    }

    /// A version that was brought for those who stay on `target` is here, or is not.
    pub(super) async fn finish_held(
        &mut self,
        index: usize,
        target: &Target,
        found: Option<&Found>,
        end: Result<Loaded, Missed>,
    ) {
        let now = self.clock.now();
        let Some(held) = self.models[index].seat_mut(target) else {
            // Nobody stays on it any more.
            return self.retire(end.ok());
        };
        held.is_loading = false;
        let missed = match end {
            Ok(loaded) => return self.seat(index, target, loaded).await,
            Err(missed) => missed,
        };
        let trouble = missed.told(found.map(|found| found.version)).to_string();
        held.trouble = Some(trouble.clone());
        match (missed, found) {
            (Missed::Refused(ground), Some(found)) => self.refuse(index, found, ground).await,
            (missed, Some(found)) => {
                let failed = policy::failed_again(held.failed.take(), found, &trouble, now, missed.longest_pause());
                held.failed = Some(failed);
            }
            (_, None) => {}
        }
    }

    /// A version that was brought twice, to serve and to be held, is kept once.
    pub(super) fn share(&mut self, index: usize) {
        let followed = &mut self.models[index];
        let Some(serving) = followed.serving.clone() else { return };
        let doubles = followed.held.iter_mut().filter_map(|held| {
            let is_double = |loaded: &&mut Loaded| {
                policy::is_same(&loaded.found, &serving.found) && !Arc::ptr_eq(&loaded.model, &serving.model)
            };
            let loaded = held.loaded.as_mut().filter(is_double)?;
            Some(std::mem::replace(loaded, serving.clone()))
        });
        let doubles: Vec<_> = doubles.collect();
        for double in doubles {
            self.retire(Some(double));
        }
    }

    /// From now on `loaded` answers those who stay on `target`.
    async fn seat(&mut self, index: usize, target: &Target, loaded: Loaded) {
        let Loaded { found, fetched, .. } = loaded.clone();
        let followed = &mut self.models[index];
        let Some(held) = followed.seat_mut(target) else { return self.retire(Some(loaded)) };
        let left = held.loaded.replace(loaded);
        held.failed = None;
        held.trouble = None;
        followed.note_held();
        let from = left.as_ref().map(|left| left.found.version);
        self.retire(left);
        self.report(index);
        self.settle(index).await;
        let event = Event {
            digest: Some(fetched.digest.to_string()),
            from,
            to: Some(found.version),
            ..self.event(Kind::Held, found.version, "callers".to_owned(), format!("callers stay on {target}"))
        };
        self.note(index, event, &found, "held").await;
    }
}

impl Ground {
    fn told(&self, version: Option<Version>) -> String {
        match version {
            Some(version) => format!("version {version} was refused: {}", self.reason),
            None => self.reason.clone(),
        }
    }
}

impl Missed {
    /// What whoever wants the version is told.
    pub(super) fn told(&self, version: Option<Version>) -> crate::model::orders::Refused {
        crate::model::orders::Refused::NotServed(match (self, version) {
            (Self::Refused(ground), version) => ground.told(version),
            (Self::Failed(why) | Self::Untried(why), Some(version)) => format!("version {version} {why}"),
            (Self::Failed(why) | Self::Untried(why) | Self::Unknown(why), _) => why.clone(),
            (Self::MovedOn, _) => "the registry wants another version by now".to_owned(),
        })
    }
}
