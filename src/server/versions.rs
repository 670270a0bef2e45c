//! The versions of every model as figures for `/metrics`: what serves, what is on trial and how it does, what happened.

use jiff::Timestamp;

use super::operator::figure;
use crate::metrics::{Family, Sample};
use crate::model::orders::Kind;
use crate::model::rollout::{Counts, Rule, Share};
use crate::model::{Entry, Model, ModelName, ModelSet, Trial};

/// One look at what is published.
pub(super) fn families(set: &ModelSet, now: Timestamp) -> Vec<Family> {
    let each = |figure: fn(&Entry) -> f64| -> Vec<Sample> {
        set.iter().map(|(name, entry)| (vec![of(name)], figure(entry))).collect()
    };
    let all = |samples: fn(&ModelName, &Entry) -> Vec<Sample>| -> Vec<Sample> {
        set.iter().flat_map(|(name, entry)| samples(name, entry)).collect()
    };
    vec![
        Family::gauge("modelgate_serving_version", "The number of the version that answers", all(serving)),
        Family::gauge(
            "modelgate_registry_silent_seconds",
            "How long the registry has given no answer",
            silent(set, now),
        ),
        Family::gauge("modelgate_barred_versions", "Versions that were rolled back and stay out", each(barred)),
        Family::gauge("modelgate_held_versions", "Versions that are loaded for callers who stay on them", each(held)),
        Family::counter("modelgate_version_events", "What happened to versions", all(events)),
        Family::counter("modelgate_admissions", "Versions that asked to serve, by what came of it", all(admissions)),
        Family::gauge("modelgate_trial_share", "The share of the callers that a version on trial has", all(share)),
        Family::gauge("modelgate_trial_requests", "Requests of the trial's present step", all(requests)),
        Family::gauge("modelgate_trial_mean_seconds", "What a run took in the trial's present step", all(mean)),
        Family::gauge("modelgate_trial_rows", "Rows that two versions answered in the trial's present step", all(rows)),
    ]
}

fn of(name: &ModelName) -> (&'static str, String) {
    ("model", name.to_string())
}

fn serving(name: &ModelName, entry: &Entry) -> Vec<Sample> {
    entry.serving.iter().map(|model| (vec![of(name)], figure(model.id().version.0))).collect()
}

fn silent(set: &ModelSet, now: Timestamp) -> Vec<Sample> {
    let seconds = |since: Timestamp| now.duration_since(since).as_secs_f64().max(0.0);
    set.iter().map(|(name, entry)| (vec![of(name)], entry.status.stale_since.map_or(0.0, seconds))).collect()
}

fn barred(entry: &Entry) -> f64 {
    figure(entry.status.quarantined.len() as u64)
}

fn held(entry: &Entry) -> f64 {
    figure(entry.held.iter().filter(|held| held.model.is_some()).count() as u64)
}

fn events(name: &ModelName, entry: &Entry) -> Vec<Sample> {
    let count = |kind: Kind| entry.status.tally.events.get(&kind).copied().unwrap_or_default();
    Kind::ALL.map(|kind| (vec![of(name), ("event", kind.as_str().to_owned())], figure(count(kind)))).into()
}

fn admissions(name: &ModelName, entry: &Entry) -> Vec<Sample> {
    let tally = &entry.status.tally;
    let outcomes = [("admitted", tally.admitted), ("refused", tally.refused), ("undecided", tally.undecided)];
    outcomes.map(|(outcome, count)| (vec![of(name), ("outcome", outcome.to_owned())], figure(count))).into()
}

/// One version of a trial: its part in it, and how it does.
struct Side<'a> {
    role: &'static str,
    model: &'a Model,
    counts: Counts,
}

/// The versions that take part in what is on trial.
fn sides<'a>(serving: Option<&'a Model>, trial: &'a Trial) -> Vec<Side<'a>> {
    let serving = serving.map(|model| Side { role: "serving", model, counts: trial.serving.counts() });
    let other = match trial.rule() {
        Rule::Watch { before } => {
            before.as_deref().map(|model| Side { role: "before", model, counts: trial.before.counts() })
        }
        Rule::Canary { challenger, .. } | Rule::Shadow { challenger, .. } => {
            Some(Side { role: "challenger", model: challenger, counts: trial.challenger.counts() })
        }
    };
    serving.into_iter().chain(other).collect()
}

/// Figures of one side, by outcome where there are several.
type Figures = Vec<(Option<&'static str>, f64)>;

/// `figures` of each version of what is on trial of a model, if anything is.
fn of_sides(name: &ModelName, entry: &Entry, figures: fn(&Counts) -> Figures) -> Vec<Sample> {
    let Some(trial) = &entry.trial else { return Vec::new() };
    let mut all = Vec::new();
    for Side { role, model, counts } in sides(entry.serving.as_deref(), trial) {
        for (outcome, figure) in figures(&counts) {
            let mut labels = vec![of(name), ("version", model.id().version.to_string()), ("role", role.to_owned())];
            labels.extend(outcome.map(|outcome| ("outcome", outcome.to_owned())));
            all.push((labels, figure));
        }
    }
    all
}

fn share(name: &ModelName, entry: &Entry) -> Vec<Sample> {
    let Some(trial) = &entry.trial else { return Vec::new() };
    let (strategy, model, share) = match trial.rule() {
        Rule::Watch { .. } => ("watch", entry.serving.as_ref(), Share::ALL),
        Rule::Canary { challenger, share } => ("canary", Some(challenger), *share),
        Rule::Shadow { challenger, share, .. } => ("shadow", Some(challenger), *share),
    };
    let version = model.map_or_else(String::new, |model| model.id().version.to_string());
    vec![(vec![of(name), ("version", version), ("strategy", strategy.to_owned())], share.get())]
}

fn requests(name: &ModelName, entry: &Entry) -> Vec<Sample> {
    of_sides(name, entry, |counts| {
        vec![
            (Some("answered"), figure(counts.answered)),
            (Some("failed"), figure(counts.failed)),
            (Some("not_finite"), figure(counts.not_finite)),
            (Some("shed"), figure(counts.shed)),
        ]
    })
}

fn mean(name: &ModelName, entry: &Entry) -> Vec<Sample> {
    of_sides(name, entry, |counts| vec![(None, counts.mean().as_secs_f64())])
}

fn rows(name: &ModelName, entry: &Entry) -> Vec<Sample> {
    let Some(trial) = entry.trial.as_ref().filter(|trial| matches!(trial.rule(), Rule::Shadow { .. })) else {
        return Vec::new();
    };
    let counts = trial.challenger.counts();
    let outcomes = [("compared", counts.compared), ("disagreed", counts.disagreed)];
    outcomes.map(|(outcome, count)| (vec![of(name), ("outcome", outcome.to_owned())], figure(count))).into()
}
