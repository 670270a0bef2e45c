//! Throttle and quota per key: charged before the work is done, given back when it was not.
//!
//! The throttle is a GCRA per key in memory. The quota counts rows (or requests) in a calendar period of UTC; the store
//! holds, ahead of time, a ceiling no admitted request can pass, so that a crash never lets a caller have more than the
//! limit.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use crate::auth::{Caller, PlanName};

/// Plans, and where use is kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// The SQLite file; the one the keys are in.
    pub store: PathBuf,
    /// Every plan by name.
    pub plans: BTreeMap<PlanName, Plan>,
}

/// What callers on a plan may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// How fast; `None` is as fast as the gateway can.
    pub throttle: Option<Throttle>,
    /// How much; `None` is without end.
    pub quota: Option<Limit>,
    /// What is counted.
    pub unit: Unit,
}

/// A rate with a burst, in requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttle {
    /// Requests a second, above zero.
    pub rate: f64,
    /// Requests at once, at least one.
    pub burst: u32,
}

/// An amount per calendar period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Rows or requests.
    pub amount: NonZeroU64,
    /// The period, in UTC.
    pub period: Period,
}

/// A calendar period in UTC. Weeks begin on Monday.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// Midnight to midnight.
    Day,
    /// Monday to Monday.
    Week,
    /// The first to the first.
    Month,
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Rows that were scored.
    Rows,
    /// Requests, whatever their rows.
    Requests,
}

/// Where a caller stands with one limit; what `RateLimit` headers and `GET /usage` are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `rate`, or the period's name (`day`, `week`, `month`).
    pub name: &'static str,
    /// What is allowed: the burst, or the amount of a period.
    pub limit: u64,
    /// The window: how long a full burst takes to come back, or the length of the period.
    pub window: Duration,
    /// What is left.
    pub remaining: u64,
    /// Until there is more.
    pub resets_in: Duration,
}

/// Why a request is not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too fast.
    #[error("the plan's rate is used up for now")]
    Throttled {
        /// Where the caller stands, the violated limit first.
        standing: Vec<Standing>,
        /// When it may try again.
        retry_after: Duration,
    },
    /// Too much.
    #[error("the plan's quota is used up")]
    Exhausted {
        /// Where the caller stands, the violated limit first.
        standing: Vec<Standing>,
        /// When it may try again.
        retry_after: Duration,
    },
    /// More rows in one request than the limit could ever admit.
    #[error("the request has more rows than are left of the plan's quota")]
    TooLarge {
        /// Where the caller stands.
        standing: Vec<Standing>,
        /// Until the period ends.
        retry_after: Duration,
    },
    /// The key's plan is not configured.
    #[error("the key's plan is not configured")]
    NoPlan,
    /// Use cannot be recorded, so it cannot be allowed.
    #[error("use cannot be recorded at the moment")]
    StoreDown,
}

/// A caller's own plan, used and left.
#[derive(Clone, Debug)]
pub struct Usage {
    /// What is counted.
    pub unit: Unit,
    /// Used in this period.
    pub used: u64,
    /// The period's amount, if there is one.
    pub quota: Option<Limit>,
    /// When the period ends, if there is one.
    pub resets_at: Option<Timestamp>,
    /// The throttle, if there is one.
    pub throttle: Option<Throttle>,
    /// Every limit and where the caller stands.
    pub standing: Vec<Standing>,
}

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
#[error("the usage store cannot be used")]
pub struct StoreError(#[from] rusqlite::Error);

/// Every caller's use.
#[derive(Debug)]
pub struct Quota {}

/// What one settlement did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Counters written.
    pub counters: usize,
}

impl Quota {
    /// Opens the store.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn open(config: Config) -> Result<Self, StoreError> {
        todo!()
    }

    /// Takes `rows` from what `caller` may use. Given back when the charge is dropped without
    /// [`commit`](Charge::commit).
    ///
    /// # Errors
    /// When it is too fast, too much, or cannot be recorded.
    pub async fn reserve(&self, caller: &Caller, rows: u64, now: Timestamp) -> Result<Charge, Refusal> {
        todo!()
    }

    /// Where `caller` stands, charging nothing.
    ///
    /// # Errors
    /// When its plan is not configured, or its use cannot be read.
    pub async fn usage(&self, caller: &Caller, now: Timestamp) -> Result<Usage, Refusal> {
        todo!()
    }

    /// Writes what was used since last time.
    ///
    /// # Errors
    /// When the store cannot be written; nothing is forgotten then.
    pub async fn settle_once(&self, now: Timestamp) -> Result<Settled, StoreError> {
        todo!()
    }
}

/// A reservation. Dropped without [`commit`](Self::commit), it is given back.
#[derive(Debug)]
#[must_use = "a charge that is dropped is given back"]
pub struct Charge {}

impl Charge {
    /// Where the caller stands after this charge.
    #[must_use]
    pub fn standing(&self) -> &[Standing] {
        todo!()
    }

    /// Keeps the charge.
    pub fn commit(self) {
        todo!()
    }
}
