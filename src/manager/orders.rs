//! What operators ask, done: at once where the version is loaded, else as soon as it is here.

use tracing::warn;

use super::history::Mark;
use super::loads::{Errand, Seat, Source};
use super::{Cause, Followed, Loaded, Manager, Wish};
use crate::model::Version;
use crate::model::orders::{Answer, Ask, Done, Event, Kind, Operator, Order, Refused};
use crate::registry::Found;

impl Manager {
    /// Follows one order, or lays it down until its version is here.
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

    fn tell_history(&self, index: usize) -> impl Future<Output = Answer> + use<> {
        let (history, name) = (self.history.clone(), self.models[index].config.name.clone());
        let read = tokio::task::spawn_blocking(move || history.events(&name));
        async move {
            match read.await {
                Ok(Ok(events)) => Ok(Done::History(events)),
                Ok(Err(error)) => {
                    warn!("the history cannot be read: {error}");
                    Err(Refused::Unreadable)
                }
                Err(_stopping) => Err(Refused::Unreadable),
            }
        }
    }

    /// Serves the version of `wish` if it is loaded; else it is brought, after what is on its way already.
    async fn choose(&mut self, index: usize, wish: Wish) {
        let followed = &mut self.models[index];
        let Some(candidate) = followed.loaded(wish.version) else {
            if followed.wish.is_some() {
                // Whoever asked may have gone.
                let _ = wish.reply.send(Err(Refused::Busy));
            } else {
                followed.wish = Some(wish);
                self.bring_wished(index);
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

    /// Begins to bring the version an operator waits for, if one does and nothing else is on its way.
    fn bring_wished(&mut self, index: usize) {
        let followed = &self.models[index];
        let Some(wish) = followed.wish.as_ref().filter(|_| !followed.is_loading) else { return };
        let (cause, source) = (Cause::Operator(wish.by.clone()), Source::Numbered(wish.version));
        self.begin(Errand { index, seat: Seat::Serving, cause, source });
    }

    /// Tells an operator who waits what came of the version, once it is the one that arrived; if it is another, the
    /// operator's is next.
    pub(super) async fn answer_wish(
        &mut self,
        index: usize,
        cause: &Cause,
        found: Option<Found>,
        from: Option<Version>,
        arrived: Result<(), Refused>,
    ) {
        let Some(wish) = self.models[index].wish.take() else { return };
        match (cause, arrived, found) {
            (Cause::Operator(_), Ok(()), Some(found)) => self.chosen(index, &found, from, wish).await,
            // Whoever asked may have gone.
            (Cause::Operator(_), Err(refused), _) => drop(wish.reply.send(Err(refused))),
            _ => self.choose(index, wish).await,
        }
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
        self.news.notify_one();
        Ok(Done::Serving { version, from: None })
    }
}

impl Followed {
    pub(super) fn serving_version(&self) -> Option<Version> {
        self.serving.as_ref().map(|serving| serving.found.version)
    }

    /// The version of that number, if it is loaded.
    fn loaded(&self, version: Version) -> Option<Loaded> {
        self.all_loaded().find(|candidate| candidate.found.version == version).cloned()
    }
}
