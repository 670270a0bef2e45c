//! Where a caller stands with its limits, and why it is refused.

use std::num::NonZeroU32;
use std::ops::Deref;
use std::time::Duration;

use jiff::Timestamp;

use super::store::Down;
use super::{Enforcement, Limit, Throttle, Unit};

/// Where a caller stands with one limit; what `RateLimit` headers and `GET /usage` are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `rate`, `concurrency`, or the period's name (`day`, `week`, `month`).
    pub name: &'static str,
    /// What is allowed: the burst, predictions at one time, or the amount of a period.
    pub limit: u64,
    /// The window: how long a full burst takes to come back, or the length of the period; none for what is allowed at
    /// one time.
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
    /// As many at one time as the plan allows.
    #[error("as many of the plan's predictions are under way as may be at one time")]
    Busy {
        /// Where the caller stands, the violated limit first.
        standing: Vec<Standing>,
        /// When it may try again.
        retry_after: Duration,
    },
    /// Too much.
    #[error("{}", exhausted(standing))]
    Exhausted {
        /// Where the caller stands, the violated limit first.
        standing: Vec<Standing>,
        /// When it may try again.
        retry_after: Duration,
    },
    /// More rows in one request than the plan's whole quota.
    #[error("the request has more rows than the plan's whole quota: send fewer at a time")]
    TooLarge {
        /// Where the caller stands, as far as it is known without the store.
        standing: Vec<Standing>,
        /// Until the period ends; the same request is refused then too.
        retry_after: Duration,
    },
    /// The key's plan is not configured.
    #[error("the key's plan is not configured")]
    NoPlan,
    /// Use cannot be recorded, so it cannot be allowed.
    #[error("use cannot be recorded at the moment")]
    StoreDown,
}

/// How much there is for a smaller request.
fn exhausted(standing: &[Standing]) -> String {
    match standing.first().map_or(0, |quota| quota.remaining) {
        0 => "the plan's quota is used up".to_owned(),
        left => format!("of the plan's quota {left} rows are left, fewer than the request has"),
    }
}

/// The kind of limit that was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exceeded {
    /// The rate, or what is allowed at one time.
    Throttle,
    /// The amount of a period.
    Quota,
}

impl Refusal {
    /// The kind of limit, if the refusal is the caller's own doing.
    #[must_use]
    pub fn exceeded(&self) -> Option<Exceeded> {
        match self {
            Self::Throttled { .. } | Self::Busy { .. } => Some(Exceeded::Throttle),
            Self::Exhausted { .. } | Self::TooLarge { .. } => Some(Exceeded::Quota),
            Self::NoPlan | Self::StoreDown => None,
        }
    }

    /// Where the caller stands with the limit that was passed, as far as that is known.
    pub(super) fn violated(&self) -> Option<Standing> {
        match self {
            Self::Throttled { standing, .. } | Self::Busy { standing, .. } | Self::Exhausted { standing, .. } => {
                standing.first().copied()
            }
            // The rate comes first where the period was never asked about.
            Self::TooLarge { standing, .. } => standing.iter().find(|one| one.name != "rate").copied(),
            Self::NoPlan | Self::StoreDown => None,
        }
    }
}

impl From<Down> for Refusal {
    fn from(Down: Down) -> Self {
        Self::StoreDown
    }
}

/// A caller's own plan, used and left.
#[derive(Clone, Debug)]
pub struct Usage {
    /// What is counted.
    pub unit: Unit,
    /// Used in this period; nothing is counted for a plan without a quota. `None` while the store cannot be asked and
    /// nothing is known here.
    pub used: Option<u64>,
    /// The period's amount, if there is one.
    pub quota: Option<Limit>,
    /// When the period ends, if there is one and it is known.
    pub resets_at: Option<Timestamp>,
    /// The throttle, if there is one.
    pub throttle: Option<Throttle>,
    /// Predictions at one time, if they are limited.
    pub concurrency: Option<NonZeroU32>,
    /// Whether who passes a limit is refused.
    pub enforcement: Enforcement,
    /// Every limit that is known and where the caller stands.
    pub standing: Vec<Standing>,
    /// Whether the store could not be asked, so that others may know more.
    pub is_degraded: bool,
}

/// At most one standing per kind of limit, without an allocation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standings {
    all: [Standing; 2],
    count: usize,
}

impl From<[Option<Standing>; 2]> for Standings {
    fn from(standings: [Option<Standing>; 2]) -> Self {
        const NONE: Standing =
            Standing { name: "", limit: 0, window: Duration::ZERO, remaining: 0, resets_in: Duration::ZERO };
        let mut all = [NONE; 2];
        let mut count = 0;
        for standing in standings.into_iter().flatten() {
            all[count] = standing;
            count += 1;
        }
        Self { all, count }
    }
}

impl Deref for Standings {
    type Target = [Standing];

    fn deref(&self) -> &[Standing] {
        &self.all[..self.count]
    }
}
