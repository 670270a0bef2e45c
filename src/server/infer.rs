//! A prediction, from a checked head to an answer; and what the caller has used so far.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use hyper::body::Body;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::body::{self, BoxError};
use super::error::{ApiError, Code, whole_seconds};
use super::replay::Begin;
use super::routes::{Answer, Journal, MODEL, Room, body_of, json_answer};
use super::{head, ratelimit, wire};
use crate::auth::{Caller, Pin, PinTo};
use crate::capture::{Failure, Record};
use crate::feedback::Answered;
use crate::metrics::PlanLimit;
use crate::model::session::Stage;
use crate::model::{Inputs, Model, Outputs, PredictError, Route, Target, Version};
use crate::quota::{self, Charge, Enforcement, Exceeded, Limit, Period, Refusal, Standing, Throttle, Unit, Usage};

/// `POST /predict` and `POST /models/{name}/predict`. What can be refused without the body is.
pub(super) async fn predict<B>(
    room: &Room,
    name: Option<&str>,
    head: &Parts,
    body: B,
    journal: &mut Journal,
) -> Result<Answer, ApiError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let caller = authenticate(room, head, journal)?;
    let _place = enter(room, &caller)?;
    head::check_media_type(&head.headers)?;
    let time = head::time_allowed(&head.headers, room.config.deadline)?;
    let _in_flight = room.state.traffic.enter(room.config.max_in_flight).ok_or_else(ApiError::overloaded)?;
    let route = find(room, name, &caller, journal)?;
    let body = body::read(body, room.config.max_body, room.config.body_timeout).await?;
    let deadline = Instant::now() + time;
    let model = route.model();
    let ticket = match room.replays.begin(&head.headers, &caller.account, model.id().name.as_str(), &body)? {
        Begin::Again(answer) => return Ok(again(answer, room, &caller, journal)),
        Begin::First(ticket) => Some(ticket),
        Begin::Nameless => None,
    };
    let answer = infer(room, &caller, &route, &body, deadline, journal).await;
    let answer = answer.inspect_err(|error| keep_failed(room, &caller, model, &body, journal, error))?;
    if let Some(ticket) = ticket {
        ticket.keep(&with_model(answer.clone(), model));
    }
    Ok(answer)
}

/// Offers a request that failed to capture. What was refused for the caller's plan was not looked at, and is not kept.
fn keep_failed(room: &Room, caller: &Caller, model: &Model, body: &[u8], journal: &Journal, error: &ApiError) {
    if matches!(error.code, Code::RateLimited | Code::QuotaExceeded | Code::QuotaUnavailable) {
        return;
    }
    room.state.capture.offer_failed(&model.id().name, || Failure {
        request_id: journal.id.as_str(),
        time: room.state.clock.now(),
        model: model.id(),
        features: model.features(),
        key_id: &caller.key_id,
        code: error.code.as_str(),
        status: error.code.status().as_u16(),
        body,
    });
}

/// The caller's place among its predictions under way.
fn enter(room: &Room, caller: &Caller) -> Result<quota::Place, ApiError> {
    let place = limited(room, caller, room.state.quota.enter(caller, room.state.clock.now()))?;
    overlooked(room, caller, place.exceeded());
    Ok(place)
}

/// An answer that was given before: it names the version that gave it, and nothing is charged or measured for it.
fn again(answer: Answer, room: &Room, caller: &Caller, journal: &mut Journal) -> Answer {
    journal.model = None;
    let standing = room.state.quota.standing(caller, room.state.clock.now());
    journal.rate_limit = Some(ratelimit::Headers::of(&standing));
    answer
}

fn with_model(mut answer: Answer, model: &Model) -> Answer {
    answer.headers_mut().insert(MODEL, model.id().header().clone());
    answer
}

/// Counts a limit that was passed.
pub(super) fn limited<T>(room: &Room, caller: &Caller, result: Result<T, Refusal>) -> Result<T, ApiError> {
    result.map_err(|refusal| {
        overlooked(room, caller, refusal.exceeded());
        refusal.into()
    })
}

/// Counts limits that were passed, though nobody was refused.
pub(super) fn overlooked(room: &Room, caller: &Caller, exceeded: impl IntoIterator<Item = Exceeded>) {
    for exceeded in exceeded {
        let limit = match exceeded {
            Exceeded::Throttle => PlanLimit::Throttle,
            Exceeded::Quota => PlanLimit::Quota,
        };
        room.state.metrics.limit_passed(&caller.plan, limit);
    }
}

/// From a whole body to an answer. One version answers all of it.
async fn infer(
    room: &Room,
    caller: &Caller,
    route: &Route,
    body: &[u8],
    deadline: Instant,
    journal: &mut Journal,
) -> Result<Answer, ApiError> {
    let Room { state, config, .. } = room;
    let model = route.model();
    let limits = wire::Limits { depth: config.max_depth, rows: config.max_rows, ..wire::Limits::default() };

    let (shape, inputs) = match read(model, body, &limits) {
        Ok(read) => read,
        // Reading is work too: a body that is none takes a token of the rate, and nothing of the quota.
        Err(error) => {
            let exceeded = state.quota.take_token(caller, state.clock.now()).await;
            let exceeded = limited(room, caller, exceeded)?;
            overlooked(room, caller, exceeded);
            return Err(error);
        }
    };
    journal.rows = inputs.rows();
    let charge = state.quota.reserve(caller, inputs.rows() as u64, state.clock.now());
    let charge = timeout_at(deadline, charge).await.map_err(|_elapsed| ApiError::deadline_exceeded("quota"))?;
    journal.quota_is_degraded =
        charge.as_ref().map_or_else(|refusal| matches!(refusal, Refusal::StoreDown), Charge::is_degraded);
    let charge = limited(room, caller, charge)?;
    overlooked(room, caller, charge.exceeded());
    journal.rate_limit = Some(ratelimit::Headers::of(charge.standing()));

    let outputs = route.predict(&inputs, deadline).await;
    // A run that was cut short is paid for: given back, a short deadline would be a way to have the model work for free.
    if matches!(outputs, Ok(_) | Err(PredictError::DeadlineExceeded { stage: Stage::Run })) {
        charge.commit();
        state.quota.tally(caller, model.id().name.as_str(), inputs.rows() as u64);
    }
    let outputs = outputs?;

    let answer = wire::write(shape, journal.id.as_str(), model.id(), &outputs);
    state.metrics.observe(model, &inputs, &outputs, journal.started.elapsed());
    state.drift.observe(model, &inputs, &outputs, &caller.key_id);
    state.shadow.offer(route, &caller.key_id, &inputs, &outputs);
    state.feedback.answered(|| answered(room, caller, model, &outputs, journal));
    state.capture.offer(&model.id().name, inputs.rows(), || record(room, caller, model, &inputs, &outputs, journal));
    Ok(body_of("application/json", answer.into()))
}

fn read(model: &Model, body: &[u8], limits: &wire::Limits) -> Result<(wire::Shape, Inputs), ApiError> {
    let mut rows = model.features().rows();
    let shape = wire::read(body, &mut rows, limits)?;
    Ok((shape, rows.finish()?))
}

/// `GET /usage`.
pub(super) async fn usage(room: &Room, head: &Parts, journal: &mut Journal) -> Result<Answer, ApiError> {
    let caller = authenticate(room, head, journal)?;
    caller.may_read_usage()?;
    let usage = room.state.quota.usage(&caller, room.state.clock.now()).await?;
    journal.rate_limit = Some(ratelimit::Headers::of(&usage.standing));
    journal.quota_is_degraded = usage.is_degraded;
    let pins: Vec<_> = room.state.keys.pins_of(&caller, room.state.clock.now()).map(pin_report).collect();
    Ok(json_answer(&usage_report(&caller, &usage, &pins)))
}

fn pin_report(pin: &Pin) -> serde_json::Value {
    json!({ "model": &*pin.model, "to": pin.to.to_string(), "until": pin.until.to_string() })
}

impl From<&PinTo> for Target {
    fn from(to: &PinTo) -> Self {
        match to {
            PinTo::Version(version) => Self::Version(Version(*version)),
            PinTo::Alias(alias) => Self::Alias(Arc::clone(alias)),
        }
    }
}

pub(super) fn authenticate(room: &Room, head: &Parts, journal: &mut Journal) -> Result<Arc<Caller>, ApiError> {
    let key = head::api_key(&head.headers)?;
    let (keys, now) = (&room.state.keys, room.state.clock.now());
    let caller = match journal.peer {
        Some(address) => keys.admit(key, address, now),
        None => keys.authenticate(key, now),
    }?;
    journal.caller = Some(Arc::clone(&caller));
    Ok(caller)
}

/// The one look at what is published. Whoever holds the answer stays with that version to the end.
fn find(room: &Room, name: Option<&str>, caller: &Caller, journal: &mut Journal) -> Result<Route, ApiError> {
    let (keys, now) = (&room.state.keys, room.state.clock.now());
    let stays = |model: &str| keys.pin_of(caller, model, now).map(Target::from);
    let found = room.state.models.route(name, &caller.key_id, stays);
    let route = found.map_err(|error| ApiError::not_served(&error, room.state.poll_interval))?;
    caller.may_use(route.model().id().name.as_str())?;
    journal.model = Some(Arc::clone(route.model()));
    Ok(route)
}

fn record(
    room: &Room,
    caller: &Caller,
    model: &Model,
    inputs: &Inputs,
    outputs: &Outputs,
    journal: &Journal,
) -> Record {
    Record {
        request_id: journal.id.as_str().into(),
        time: room.state.clock.now(),
        model: Arc::clone(model.id()),
        features: Arc::clone(model.features()),
        key_id: Arc::clone(&caller.key_id),
        inputs: inputs.clone(),
        outputs: outputs.clone(),
    }
}

fn answered(room: &Room, caller: &Caller, model: &Model, outputs: &Outputs, journal: &Journal) -> Answered {
    Answered {
        request_id: journal.id.as_str().into(),
        account: Arc::clone(&caller.account),
        time: room.state.clock.now(),
        model: Arc::clone(model.id()),
        outcomes: Arc::clone(model.outcomes()),
        outputs: outputs.clone(),
    }
}

fn usage_report(caller: &Caller, usage: &Usage, pins: &[serde_json::Value]) -> serde_json::Value {
    let quota = usage.quota.map(|Limit { amount, period }| {
        json!({ "amount": amount, "period": period_name(period), "resets_at": usage.resets_at.map(|at| at.to_string()) })
    });
    let limits: Vec<_> = usage.standing.iter().map(limit_report).collect();
    json!({
        "key_id": &*caller.key_id,
        "name": &*caller.name,
        "plan": &*caller.plan,
        "unit": match usage.unit { Unit::Rows => "rows", Unit::Requests => "requests" },
        "used": usage.used,
        "quota": quota,
        "throttle": usage.throttle.map(|Throttle { rate, burst }| json!({ "rate": rate, "burst": burst })),
        "concurrency": usage.concurrency,
        "enforced": usage.enforcement == Enforcement::Enforced,
        "limits": limits,
        "pins": pins,
    })
}

pub(super) fn limit_report(standing: &Standing) -> serde_json::Value {
    json!({
        "name": standing.name,
        "limit": standing.limit,
        "remaining": standing.remaining,
        "window_seconds": whole_seconds(standing.window),
        "resets_in_seconds": whole_seconds(standing.resets_in),
    })
}

const fn period_name(period: Period) -> &'static str {
    match period {
        Period::Day => "day",
        Period::Week => "week",
        Period::Month => "month",
    }
}
