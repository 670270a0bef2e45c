//! What operators ask, done: at once where the version is loaded, else in the next round, which begins at once.

use jiff::Timestamp;
use tracing::warn;

use super::history::Mark;
use super::{Cause, Followed, Loaded, Manager, Round, Wish};
use crate::model::Version;
use crate::model::orders::{Answer, Ask, Done, Event, Kind, Operator, Order, Refused};
use crate::registry::{Found, Select};

impl Manager {
    /// Follows one order, or lays it down for the next round.
    pub(super) async fn obey(&mut self, order: Order) {
        let Order { model, ask, by, reply } = order;
        let index = self.models.iter().position(|followed| followed.config.name == model);
        let answer = match (index, ask) {
            (None, _) => Err(Refused::Unknown),
            (Some(index), Ask::History) => self.tell_history(index).await,
            (Some(index), Ask::RollBack) => self.roll_back(index, by, None).await,
            (Some(index), Ask::Unpin) => self.unpin(index, by).await,
            (Some(index), Ask::Promote(version)) => {
                return self.choose(index, Wish { version, pin: false, by, reply }).await;
            }
            (Some(index), Ask::Pin(version)) => {
                return self.choose(index, Wish { version, pin: true, by, reply }).await;
            }
        };
        // Whoever asked may have gone.
        let _ = reply.send(answer);
    }

    async fn tell_history(&self, index: usize) -> Answer {
        let (history, name) = (self.history.clone(), self.models[index].config.name.clone());
        let read = tokio::task::spawn_blocking(move || history.events(&name)).await;
        match read {
            Ok(Ok(events)) => Ok(Done::History(events)),
            Ok(Err(error)) => {
                warn!("the history cannot be read: {error}");
                Err(Refused::Unreadable)
            }
            Err(_stopping) => Err(Refused::Unreadable),
        }
    }

    /// Serves the version of `wish` if it is loaded; else the next round, which is woken, brings it.
    async fn choose(&mut self, index: usize, wish: Wish) {
        let followed = &mut self.models[index];
        let Some(candidate) = followed.loaded(wish.version) else {
            if followed.wish.is_some() {
                // Whoever asked may have gone.
                let _ = wish.reply.send(Err(Refused::Busy));
            } else {
                followed.wish = Some(wish);
                self.wished.notify_one();
            }
            return;
        };
        let from = followed.serving_version();
        let found = candidate.found.clone();
        if from == Some(found.version) {
            self.withdraw(index, "an operator chose the serving version").await;
        } else {
            self.switch(index, candidate, Cause::Operator(wish.by.clone())).await;
        }
        self.chosen(index, &found, from, wish).await;
    }

    /// Brings the version an operator waits for, if one does.
    pub(super) async fn fulfil(&mut self, index: usize, now: Timestamp, round: &mut Round) {
        let Some(wish) = self.models[index].wish.take() else { return };
        // The registry may have brought it meanwhile.
        if self.models[index].loaded(wish.version).is_some() {
            return self.choose(index, wish).await;
        }
        let from = self.models[index].serving_version();
        match self.bring_wished(index, &wish, now, round).await {
            Ok(found) => self.chosen(index, &found, from, wish).await,
            // Whoever asked may have gone.
            Err(refused) => drop(wish.reply.send(Err(refused))),
        }
    }

    async fn bring_wished(
        &mut self,
        index: usize,
        wish: &Wish,
        now: Timestamp,
        round: &mut Round,
    ) -> Result<Found, Refused> {
        let registry = self.registry.clone();
        let (registered_model, select) =
            (self.models[index].config.registered_model.clone(), Select::Version(wish.version));
        let found = self.attend(async move { registry.resolve(&registered_model, &select).await }).await;
        let found = found.map_err(|error| Refused::NotServed(error.to_string()))?;
        self.bring(index, &found, Cause::Operator(wish.by.clone()), now, round).await?;
        Ok(found)
    }

    /// Keeps an operator's choice: it is pardoned, and pinned or else put above what the registry wants now. A model that
    /// is pinned stays pinned, to the new choice.
    async fn chosen(&mut self, index: usize, found: &Found, from: Option<Version>, wish: Wish) {
        let Wish { version, pin, by, reply } = wish;
        let followed = &mut self.models[index];
        let digest = followed.serving.as_ref().map(|serving| serving.fetched.digest.to_string());
        followed.stance.pardon(found, digest.as_deref());
        if pin || followed.stance.pin.is_some() {
            followed.stance.pin = Some(version.0);
        } else {
            let mark = followed.wanted.as_ref().map(Mark::of);
            followed.stance.set_aside = mark.filter(|mark| !mark.is(found));
        }
        self.settle(index).await;
        if pin {
            let event = Event { digest, from, to: Some(version), ..self.event(Kind::Pinned, version, by.who, by.why) };
            self.note(index, event, found, "serving").await;
        }
        self.report(index);
        // Whoever asked may have gone.
        let _ = reply.send(Ok(Done::Serving { version, from: from.filter(|from| *from != version) }));
    }

    async fn unpin(&mut self, index: usize, by: Operator) -> Answer {
        let followed = &mut self.models[index];
        let (Some(pinned), Some(serving)) = (followed.stance.pin.take(), followed.serving.clone()) else {
            return Err(Refused::NotPinned);
        };
        let version = serving.found.version;
        self.settle(index).await;
        let event = self.event(Kind::Unpinned, Version(pinned), by.who, by.why);
        self.note(index, event, &serving.found, "serving").await;
        self.report(index);
        self.wished.notify_one();
        Ok(Done::Serving { version, from: None })
    }
}

impl Followed {
    fn serving_version(&self) -> Option<Version> {
        self.serving.as_ref().map(|serving| serving.found.version)
    }

    /// The version of that number, if it is loaded.
    fn loaded(&self, version: Version) -> Option<Loaded> {
        let loaded = [self.serving.as_ref(), self.challenger(), self.previous.as_ref()];
        loaded.into_iter().flatten().find(|candidate| candidate.found.version == version).cloned()
    }
}
