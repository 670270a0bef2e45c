//! What operators and load balancers ask: is it ready, what does it serve, how is it doing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::error::ApiError;
use super::infer::limit_report;
use super::routes::{Answer, body_of, json_answer};
use super::{State, Traffic, versions};
use crate::auth::CopyHealth;
use crate::drift::report::Report;
use crate::metrics::{Family, Sample, prometheus};
use crate::model::loading::Loading;
use crate::model::rollout::{Counts, Rule};
use crate::model::{Entry, Held, ModelName, ModelSet, NotServed, Trial};
use crate::quota::{Health, Use};
use crate::{capture, feedback};

/// `GET /readyz`: whether to send us requests, and what they would be answered with.
pub(super) fn ready(state: &State) -> Result<Answer, ApiError> {
    let set = state.models.snapshot();
    let models = models_report(&set);
    if state.readiness.is_draining() {
        Err(ApiError::draining(models))
    } else if !set.is_complete() {
        Err(ApiError::not_complete(models))
    } else {
        Ok(json_answer(&json!({ "status": "ready", "models": models })))
    }
}

/// `GET /admin/models`.
pub(super) fn models(state: &State) -> Answer {
    json_answer(&json!({
        "onnxruntime": &*state.runtime_version,
        "draining": state.readiness.is_draining(),
        "models": state.models.snapshot().iter().map(|(name, entry)| detailed_report(name, entry)).collect::<Value>(),
    }))
}

/// `GET /admin/models/{name}/drift`: the scores of the version that answers; with `?by=key` those of each caller, too.
pub(super) fn drift(state: &State, name: &str, query: Option<&str>) -> Result<Answer, ApiError> {
    let (drift, now) = (&state.drift, state.clock.now());
    let not_served = |error| ApiError::not_served(&error, state.poll_interval);
    let model = state.models.get(name).map_err(not_served)?;
    let report = drift.report(model.id(), now).ok_or_else(|| not_served(NotServed::NotReady))?;
    let mut answer = json!(report);
    if query.is_some_and(|query| query.split('&').any(|pair| pair == "by=key")) {
        // Null where `drift.by_key` is off.
        answer["by_key"] = json!(drift.report_by_key(model.id(), now).map(callers_report));
    }
    Ok(json_answer(&answer))
}

fn callers_report(callers: Vec<(Arc<str>, Report)>) -> Vec<Value> {
    callers.into_iter().map(|(key, report)| json!({ "key_id": &*key, "rows": report.rows, "features": report.features, "prediction": report.prediction, "score": report.score })).collect()
}

/// `GET /admin/usage`: what every key was used for since the gateway started, and where its account stands.
pub(super) fn usage(state: &State) -> Answer {
    let keys: Vec<_> = state.quota.uses(state.clock.now()).iter().map(key_report).collect();
    json_answer(&json!({ "keys": keys }))
}

fn key_report(used: &Use) -> Value {
    let models: Vec<_> = used
        .models
        .iter()
        .map(|model| json!({ "model": &*model.name, "requests": model.requests, "rows": model.rows }))
        .collect();
    json!({
        "key_id": &*used.caller.key_id,
        "account": &*used.caller.account,
        "name": &*used.caller.name,
        "plan": &*used.caller.plan,
        "models": models,
        "limits": used.standing.iter().map(limit_report).collect::<Vec<_>>(),
    })
}

/// `GET /admin/keys`: how many there are, and where they are shared how old this gateway's copy of them is.
pub(super) fn keys(state: &State) -> Answer {
    let now = state.clock.now();
    let copy = state.keys.copy_health().map(|health| {
        json!({
            "generation": health.generation,
            "heard": health.heard.map(|heard| heard.to_string()),
            "age_seconds": copy_age(&health, now),
            "unreadable": health.unreadable,
            "trouble": health.trouble,
        })
    });
    json_answer(&json!({ "keys": state.keys.len(), "shared": copy }))
}

/// Seconds since the copy was last known to be what the shared store has.
fn copy_age(health: &CopyHealth, now: Timestamp) -> Option<i64> {
    health.heard.map(|heard| now.duration_since(heard).as_secs().max(0))
}

/// `GET /metrics`.
pub(super) fn metrics(state: &State) -> Answer {
    let mut outside = Vec::from(traffic_families(&state.traffic));
    outside.extend(versions::families(&state.models.snapshot(), state.clock.now()));
    outside.extend(capture_families(&state.capture.counts()));
    outside.extend(state.feedback.counts().iter().flat_map(feedback_families));
    outside.extend(state.quota.shared_store().iter().flat_map(quota_families));
    outside.extend(state.keys.copy_health().iter().flat_map(|health| copy_families(health, state.clock.now())));
    body_of(prometheus::CONTENT_TYPE, state.metrics.render(&outside).into())
}

fn models_report(set: &ModelSet) -> Value {
    set.iter().map(|(name, entry)| model_report(name, entry)).collect()
}

/// With what came of the version that asked to serve last; for operators only, because reasons may name files.
fn detailed_report(name: &ModelName, entry: &Entry) -> Value {
    let mut report = model_report(name, entry);
    report["loading"] = json!(entry.status.loading.as_deref().map(loading_report));
    if let Some((version, verdict)) = &entry.status.verdict {
        report["verdict"] = json!({ "version": version.to_string(), "rungs": verdict.rungs });
    }
    report
}

fn model_report(name: &ModelName, Entry { serving, trial, held, status }: &Entry) -> Value {
    let id = serving.as_ref().map(|model| model.id());
    json!({
        "name": name.as_str(),
        "status": if id.is_some() { "serving" } else { "waiting" },
        "version": id.map(|id| id.version.to_string()),
        "digest": id.map(|id| id.digest.to_string()),
        "alias": id.and_then(|id| id.alias.as_deref()),
        "aspired": status.aspired.map(|version| version.to_string()),
        "trouble": status.trouble,
        "stale_since": status.stale_since.map(|since| since.to_string()),
        "pinned": status.pinned.map(|version| version.to_string()),
        "previous": status.previous.map(|version| version.to_string()),
        "quarantined": status.quarantined.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "held": held.iter().map(held_report).collect::<Vec<_>>(),
        "trial": trial.as_deref().map(trial_report),
    })
}

fn loading_report(loading: &Loading) -> Value {
    json!({
        "version": loading.version().map(|version| version.to_string()),
        "step": loading.step().as_str(),
        "bytes": loading.bytes(),
        "total": loading.total(),
        "since": loading.since.to_string(),
    })
}

fn held_report(held: &Held) -> Value {
    let id = held.model.as_ref().map(|model| model.id());
    json!({
        "to": held.target.to_string(),
        "version": id.map(|id| id.version.to_string()),
        "digest": id.map(|id| id.digest.to_string()),
        "trouble": held.trouble,
    })
}

fn trial_report(trial: &Trial) -> Value {
    let (strategy, challenger, share) = match trial.rule() {
        Rule::Watch { .. } => ("watch", None, None),
        Rule::Canary { challenger, share } => ("canary", Some(challenger), Some(share)),
        Rule::Shadow { challenger, share, .. } => ("shadow", Some(challenger), Some(share)),
    };
    json!({
        "strategy": strategy,
        "version": challenger.map(|model| model.id().version.to_string()),
        "share": share.map(|share| share.get()),
        "serving": counts_report(&trial.serving.counts()),
        "challenger": challenger.map(|_| counts_report(&trial.challenger.counts())),
        "before": challenger.is_none().then(|| counts_report(&trial.before.counts())),
    })
}

fn counts_report(counts: &Counts) -> Value {
    json!({
        "requests": counts.requests(),
        "failed": counts.failed,
        "not_finite": counts.not_finite,
        "mean_ms": counts.mean().as_secs_f64() * 1000.0,
        "compared_rows": counts.compared,
        "disagreed_rows": counts.disagreed,
        "shed": counts.shed,
    })
}

fn traffic_families(Traffic(counts): &Traffic) -> [Family; 4] {
    let connections = counts.connections.load(Ordering::Relaxed) as u64;
    let in_flight = counts.in_flight.load(Ordering::Relaxed) as u64;
    let (refused, panics) = (counts.connections_refused.load(Ordering::Relaxed), counts.panics.load(Ordering::Relaxed));
    [
        Family::gauge("modelgate_connections", "Connections now", alone(connections)),
        Family::counter(
            "modelgate_connections_refused",
            "Connections closed at once, because there were too many",
            alone(refused),
        ),
        Family::gauge("modelgate_predictions_in_flight", "Predictions now", alone(in_flight)),
        Family::counter("modelgate_panics", "Requests whose handler panicked", alone(panics)),
    ]
}

fn capture_families(counts: &capture::Counts) -> [Family; 2] {
    let outcomes = by_outcome([
        ("sampled", counts.sampled),
        ("stored", counts.stored),
        ("dropped_queue_full", counts.dropped_queue_full),
        ("dropped_spool_full", counts.dropped_spool_full),
        ("failed", counts.failed),
    ]);
    [
        Family::counter(
            "modelgate_capture_rows",
            "Rows of samples by what became of them; sampled counts them all, the pending ones too",
            outcomes,
        ),
        Family::gauge("modelgate_capture_pending_rows", "Rows of samples on their way", alone(counts.pending)),
    ]
}

fn feedback_families(counts: &feedback::Counts) -> [Family; 5] {
    let outcomes = by_outcome([
        ("matched", counts.matched),
        ("changed", counts.changed),
        ("duplicate", counts.duplicate),
        ("unknown", counts.unknown),
        ("refused", counts.refused),
    ]);
    [
        Family::counter(
            "modelgate_feedback_labels",
            "Labels by what became of them; refused ones had a mistake",
            outcomes,
        ),
        Family::counter("modelgate_feedback_stored", "Labels that are in the sink", alone(counts.stored)),
        Family::gauge("modelgate_feedback_pending", "Labels that wait for the sink", alone(counts.pending)),
        Family::counter(
            "modelgate_feedback_rows_dropped",
            "Rows that were not remembered for their labels",
            alone(counts.rows_dropped),
        ),
        Family::counter(
            "modelgate_feedback_answers_forgotten",
            "Answers forgotten for age or room",
            alone(counts.answers_forgotten),
        ),
    ]
}

fn quota_families(health: &Health) -> [Family; 4] {
    let answered = health.calls.saturating_sub(health.failures);
    [
        Family::gauge(
            "modelgate_quota_store_up",
            "Whether requests are let through to the shared quota store",
            alone(health.is_up.into()),
        ),
        Family::counter(
            "modelgate_quota_store_calls",
            "Round trips to the shared quota store",
            by_outcome([("answered", answered), ("failed", health.failures)]),
        ),
        Family::counter(
            "modelgate_quota_degraded",
            "Charges decided without the shared quota store, because it could not be asked",
            by_outcome([("lent", health.lent), ("refused", health.refused)]),
        ),
        Family::counter(
            "modelgate_quota_lent_units",
            "Rows or requests that were lent because the shared quota store could not be asked",
            alone(health.lent_units),
        ),
    ]
}

fn copy_families(health: &CopyHealth, now: Timestamp) -> [Family; 4] {
    let age = copy_age(health, now).map(|age| alone(age.unsigned_abs())).unwrap_or_default();
    [
        Family::gauge(
            "modelgate_keys_in_step",
            "Whether the keys were what the shared store has at the last look",
            alone(health.trouble.is_none().into()),
        ),
        Family::gauge(
            "modelgate_keys_copy_age_seconds",
            "Since the keys were last known to be those of the store",
            age,
        ),
        Family::gauge(
            "modelgate_keys_generation",
            "Changes of the shared keys that are in the copy",
            alone(health.generation.unsigned_abs()),
        ),
        Family::gauge(
            "modelgate_keys_unreadable_records",
            "Records of the shared keys that could not be read",
            alone(health.unreadable),
        ),
    ]
}

/// A figure of the whole process.
fn alone(count: u64) -> Vec<Sample> {
    vec![(Vec::new(), figure(count))]
}

fn by_outcome<const N: usize>(counts: [(&str, u64); N]) -> Vec<Sample> {
    counts.map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], figure(count))).into()
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub(super) fn figure(count: u64) -> f64 {
    count as f64
}
