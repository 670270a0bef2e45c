//! What operators order: promote, roll back, pin, unpin, and the history of a model. Every order goes to the control plane
//! and waits for its answer; nothing is decided here.
//!
//! The admin address asks for no key, so a page in an operator's browser must not be able to give orders: each needs the
//! header `X-Modelgate-Admin`, which a page of another origin cannot send without a permission that is never given.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use http::request::Parts;
use hyper::body::Body;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::body::{self, BoxError};
use super::error::ApiError;
use super::head;
use super::routes::{Answer, Room, json_answer};
use crate::model::Version;
use crate::model::orders::{Ask, Done, Operator, Refused};

const GUARD: HeaderName = HeaderName::from_static("x-modelgate-admin");

/// The largest body of an order, in bytes.
const MAX_BODY: usize = 16 << 10;

/// How long an answer is waited for. A version that takes longer to fetch and load is served all the same.
const PATIENCE: Duration = Duration::from_mins(5);

/// What can be ordered, as the last part of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    History,
    Promote,
    RollBack,
    Pin,
    Unpin,
}

impl Verb {
    /// The verb and the model in `/admin/models/{name}/{verb}`.
    pub(super) fn find(path: &str) -> Option<(Self, &str)> {
        let (name, verb) = path.strip_prefix("/admin/models/")?.split_once('/')?;
        let verb = match verb {
            "history" => Self::History,
            "promote" => Self::Promote,
            "rollback" => Self::RollBack,
            "pin" => Self::Pin,
            "unpin" => Self::Unpin,
            _ => return None,
        };
        (!name.is_empty()).then_some((verb, name))
    }

    pub(super) const fn pattern(self) -> &'static str {
        match self {
            Self::History => "/admin/models/{name}/history",
            Self::Promote => "/admin/models/{name}/promote",
            Self::RollBack => "/admin/models/{name}/rollback",
            Self::Pin => "/admin/models/{name}/pin",
            Self::Unpin => "/admin/models/{name}/unpin",
        }
    }
}

/// The body of an order; every member may be left out but the version, where one is chosen.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Particulars {
    #[serde(default, deserialize_with = "version")]
    version: Option<Version>,
    by: Option<String>,
    reason: Option<String>,
}

/// Follows one order.
pub(super) async fn order<B>(room: &Room, verb: Verb, name: &str, head: &Parts, body: B) -> Result<Answer, ApiError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let order = if verb == Verb::History { Particulars::default() } else { read(room, head, body).await? };
    let model = name.parse().map_err(|_| ApiError::order_refused(&Refused::Unknown))?;
    let chosen = || order.version.ok_or_else(|| ApiError::malformed_request("say which `version`, such as \"3\""));
    let ask = match verb {
        Verb::History => Ask::History,
        Verb::Promote => Ask::Promote(chosen()?),
        Verb::RollBack => Ask::RollBack,
        Verb::Pin => Ask::Pin(chosen()?),
        Verb::Unpin => Ask::Unpin,
    };
    let by = Operator::new(order.by.as_deref(), order.reason.as_deref());
    let answer = timeout(PATIENCE, room.state.orders.give(model, ask, by)).await;
    let answer = answer.map_err(|_elapsed| ApiError::deadline_exceeded("order"))?;
    let done = answer.map_err(|refused| ApiError::order_refused(&refused))?;
    Ok(json_answer(&report(name, &done)))
}

async fn read<B>(room: &Room, head: &Parts, body: B) -> Result<Particulars, ApiError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    if !head.headers.contains_key(GUARD) {
        return Err(ApiError::malformed_request("orders need the header `X-Modelgate-Admin: 1`"));
    }
    head::check_media_type(&head.headers)?;
    let body = body::read(body, MAX_BODY, room.config.body_timeout).await?;
    if body.is_empty() {
        return Ok(Particulars::default());
    }
    serde_json::from_slice(&body)
        .map_err(|error| ApiError::malformed_request(format!("the order is not readable: {error}")))
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Version>, D::Error> {
    let text = match Value::deserialize(deserializer)? {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        _ => return Err(D::Error::custom("expected a version such as \"3\"")),
    };
    text.parse().map(Some).map_err(|_| D::Error::custom("expected a version such as \"3\""))
}

fn report(model: &str, done: &Done) -> Value {
    match done {
        Done::Serving { version, from } => json!({
            "model": model,
            "version": version.to_string(),
            "from": from.map(|from| from.to_string()),
        }),
        Done::History(events) => json!({ "model": model, "history": events }),
    }
}
