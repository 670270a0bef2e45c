//! Versions on trial: put there, judged at every pulse, moved on, or rolled back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::history::{Barred, Mark};
use super::judge::{self, Step, Strategy, Verdict, View};
use super::loads::Ground;
use super::{Cause, Followed, Loaded, Manager, OnTrial};
use crate::model::Trial;
use crate::model::orders::{Answer, Done, Event, Kind, Operator, Refused};
use crate::model::rollout::Rule;

impl Followed {
    /// Whether a version the registry wants has to prove itself before it serves.
    pub(super) fn wants_trial(&self) -> bool {
        self.serving.is_some() && self.config.rollout.strategy != Strategy::Immediate
    }

    /// What of a trial is judged, and by what.
    fn judged<'a>(&'a self, on_trial: &OnTrial) -> View<'a> {
        let rollout = &self.config.rollout;
        let challenged = on_trial.challenger.is_some();
        let step = rollout.steps.get(on_trial.step).filter(|_| challenged);
        View {
            elapsed: on_trial.since.elapsed(),
            time: step.map_or(rollout.watch, |step| step.time),
            judged: on_trial.trial.judged(),
            beside: challenged.then(|| on_trial.trial.serving.counts()),
            before: (!challenged).then(|| on_trial.trial.before.counts()),
            limits: &rollout.limits,
        }
    }

    fn rule(&self, challenger: &Loaded, step: Step) -> Rule {
        let rollout = &self.config.rollout;
        let challenger = Arc::clone(&challenger.model);
        match rollout.strategy {
            Strategy::Shadow => Rule::Shadow { challenger, share: step.share, tolerance: rollout.limits.tolerance },
            Strategy::Canary | Strategy::Immediate => Rule::Canary { challenger, share: step.share },
        }
    }

    /// Whether rows read for the serving version can be given to `other` as they are.
    fn takes_the_same_rows(&self, other: &Loaded) -> bool {
        let Some(serving) = &self.serving else { return false };
        let key = |candidate: &Loaded| -> Vec<_> {
            let features = candidate.model.features().list().iter();
            features.map(|feature| (feature.name.clone(), feature.kind, feature.target.clone())).collect()
        };
        key(serving) == key(other)
    }
}

impl Manager {
    /// Puts a loaded version on trial, in place of another that may be.
    pub(super) async fn try_out(&mut self, index: usize, candidate: Loaded) -> Result<(), Refused> {
        let followed = &self.models[index];
        if followed.config.rollout.strategy == Strategy::Shadow && !followed.takes_the_same_rows(&candidate) {
            let reason = "it takes other features than the serving version, so it cannot shadow it: promote it by hand, or \
                          use the strategy \"canary\"";
            let beside = followed.serving.as_ref().map(|serving| serving.fetched.digest.to_string());
            let digest = Some(candidate.fetched.digest.to_string());
            self.refuse(index, &candidate.found, Ground { reason: reason.to_owned(), digest, beside }).await;
            self.retire(Some(candidate));
            return Err(Refused::NotServed(reason.to_owned()));
        }
        self.withdraw(index, "a newer version takes its place").await;
        self.step(index, candidate, 0, None).await;
        Ok(())
    }

    /// Begins a step of a rollout, after one that went as `verdict` says.
    async fn step(&mut self, index: usize, candidate: Loaded, number: usize, verdict: Option<String>) {
        let followed = &mut self.models[index];
        let Some(step) = followed.config.rollout.steps.get(number).copied() else {
            return self.switch(index, candidate, Cause::Trial(verdict.unwrap_or_default())).await;
        };
        let trial = Arc::new(Trial::new(followed.rule(&candidate, step)));
        self.publisher.put_on_trial(&followed.config.name, Some(Arc::clone(&trial)));
        let Loaded { found, fetched, .. } = candidate.clone();
        followed.trial = Some(OnTrial { trial, challenger: Some(candidate), step: number, since: Instant::now() });
        followed.failed = None;
        let serving = followed.serving.as_ref().map(|serving| serving.found.version);
        let why =
            format!("step {} of {}: {} of the callers", number + 1, followed.config.rollout.steps.len(), step.share);
        let event = Event {
            digest: Some(fetched.digest.to_string()),
            from: serving,
            to: serving,
            verdict,
            ..self.event(Kind::Tried, found.version, "rollout".to_owned(), why)
        };
        self.note(index, event, &found, "on trial").await;
    }

    /// Watches what has just come to serve, if there is a way back.
    pub(super) fn watch(&mut self, index: usize) {
        let followed = &mut self.models[index];
        let Some(previous) = followed.previous.as_ref().filter(|_| followed.config.rollout.watch > Duration::ZERO)
        else {
            return;
        };
        let before = followed.takes_the_same_rows(previous).then(|| Arc::clone(&previous.model));
        let trial = Arc::new(Trial::new(Rule::Watch { before }));
        self.publisher.put_on_trial(&followed.config.name, Some(Arc::clone(&trial)));
        followed.trial = Some(OnTrial { trial, challenger: None, step: 0, since: Instant::now() });
    }

    /// Ends what is on trial without a verdict.
    fn end_trial(&mut self, index: usize) -> Option<OnTrial> {
        let followed = &mut self.models[index];
        let ended = followed.trial.take()?;
        self.publisher.put_on_trial(&followed.config.name, None);
        Some(ended)
    }

    /// Puts a challenger off trial, for a reason that is not its own. A watch goes on.
    pub(super) async fn withdraw(&mut self, index: usize, why: &str) {
        if self.models[index].challenger().is_none() {
            return;
        }
        let Some(OnTrial { trial, challenger: Some(challenger), .. }) = self.end_trial(index) else { return };
        let event = Event {
            digest: Some(challenger.fetched.digest.to_string()),
            verdict: Some(trial.judged().to_string()),
            ..self.event(Kind::Withdrawn, challenger.found.version, "rollout".to_owned(), why.to_owned())
        };
        let found = challenger.found.clone();
        self.retire(Some(challenger));
        self.note(index, event, &found, "withdrawn").await;
    }

    /// Judges everything that is on trial.
    pub(super) async fn judge_all(&mut self) {
        for index in 0..self.models.len() {
            let followed = &self.models[index];
            let Some(on_trial) = &followed.trial else { continue };
            let counts = on_trial.trial.judged().to_string();
            match judge::verdict(&followed.judged(on_trial)) {
                Verdict::Wait => continue,
                Verdict::Pass => self.pass(index, counts).await,
                Verdict::Fail(breach) => {
                    let by = Operator { who: "rollout".to_owned(), why: breach.to_string() };
                    // There is a way back wherever something is on trial.
                    let _ = self.roll_back(index, by, Some(counts)).await;
                }
            }
            self.report(index);
        }
    }

    /// What was on trial went well.
    async fn pass(&mut self, index: usize, verdict: String) {
        let Some(OnTrial { challenger, step, .. }) = self.end_trial(index) else { return };
        if let Some(challenger) = challenger {
            return self.step(index, challenger, step + 1, Some(verdict)).await;
        }
        let Some(Loaded { found, fetched, .. }) = self.models[index].serving.clone() else { return };
        let why = "it was watched after it came to serve".to_owned();
        let event = Event {
            digest: Some(fetched.digest.to_string()),
            verdict: Some(verdict),
            ..self.event(Kind::Kept, found.version, "rollout".to_owned(), why)
        };
        self.note(index, event, &found, "serving").await;
    }

    /// Leaves the challenger, or else the serving version for the one before, and bars it. The way back is one store; what
    /// must last is written after it.
    pub(super) async fn roll_back(&mut self, index: usize, by: Operator, verdict: Option<String>) -> Answer {
        let (left, back) = self.step_back(index)?;
        let followed = &mut self.models[index];
        let Operator { who, why } = by;
        let digest = left.fetched.digest.to_string();
        followed.stance.bar(Barred { mark: Mark::of(&left.found), digest: digest.clone(), why: why.clone() });
        // Pinned, it would be wanted again.
        followed.stance.pin.take_if(|pin| *pin == left.found.version.0);
        followed.settled_until = Some(self.clock.now() + followed.config.rollout.dwell);
        let name = followed.config.name.clone();
        self.report(index);
        self.settle(index).await;
        self.remember(&name, &back.found, &back.fetched).await;
        let (version, from) = (back.found.version, left.found.version);
        let event = Event {
            digest: Some(digest),
            from: Some(from),
            to: Some(version),
            verdict,
            ..self.event(Kind::RolledBack, from, who, why)
        };
        let found = left.found.clone();
        self.retire(Some(left));
        self.note(index, event, &found, "rolled back").await;
        Ok(Done::Serving { version, from: Some(from) })
    }

    /// Publishes the version before, or ends the challenger's trial. Returns who is left and who answers.
    fn step_back(&mut self, index: usize) -> Result<(Loaded, Loaded), Refused> {
        if self.models[index].challenger().is_some() {
            let challenger = self.end_trial(index).and_then(|ended| ended.challenger);
            let serving = self.models[index].serving.clone();
            return challenger.zip(serving).ok_or(Refused::NothingBefore);
        }
        let back = self.models[index].previous.take().ok_or(Refused::NothingBefore)?;
        let left = self.exchange(index, back.clone()).ok_or(Refused::NothingBefore)?;
        Ok((left, back))
    }
}
