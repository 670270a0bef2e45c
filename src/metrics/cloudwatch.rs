//! CloudWatch: what was gathered, once a minute, inside every limit of `PutMetricData`.

use std::time::Duration;

use jiff::Timestamp;

use super::Metrics;

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The CloudWatch namespace.
    pub namespace: String,
    /// How often.
    pub interval: Duration,
}

/// What one flush did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Datums sent.
    pub datums: usize,
    /// Calls that were made.
    pub calls: usize,
    /// Datums kept for next time, because a call failed.
    pub kept: usize,
    /// Datums given up, because they were kept too long.
    pub dropped: usize,
}

/// Sends measurements. One per process.
#[derive(Debug)]
pub struct Flusher {}

impl Flusher {
    /// A flusher of `metrics`.
    #[must_use]
    pub fn new(metrics: Metrics, client: aws_sdk_cloudwatch::Client, config: Config) -> Self {
        todo!()
    }

    /// Sends what was gathered since last time, and what could not be sent then.
    pub async fn flush_once(&mut self, now: Timestamp) -> Flushed {
        todo!()
    }
}
