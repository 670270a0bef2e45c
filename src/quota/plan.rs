//! What a plan allows: how fast, how much, how many at one time.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

/// What callers on a plan may use. By default as much as they like, counted in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Plan {
    /// How fast; `None` is as fast as the gateway can.
    pub throttle: Option<Throttle>,
    /// How much; `None` is without end.
    pub quota: Option<Limit>,
    /// How long after midnight UTC, Monday or the first the quota's periods begin; less than 28 days.
    pub offset: Duration,
    /// What is counted.
    pub unit: Unit,
    /// Predictions of one account at one time; `None` is as many as the gateway can.
    pub concurrency: Option<NonZeroU32>,
    /// Whether who passes a limit is refused.
    pub enforcement: Enforcement,
}

/// What happens to who passes a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// It is refused.
    #[default]
    Enforced,
    /// It is admitted, and what would have been refused is counted. The quota counts up to its amount and no further.
    DryRun,
}

/// A rate with a burst. Both count requests, whatever their rows.
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
    /// The period, in UTC; the plan's offset shifts it.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Rows that were scored.
    #[default]
    Rows,
    /// Requests, whatever their rows.
    Requests,
}

impl Unit {
    /// What a request of `rows` counts.
    pub(super) fn of(self, rows: u64) -> u64 {
        match self {
            Self::Rows => rows,
            Self::Requests => 1,
        }
    }
}
