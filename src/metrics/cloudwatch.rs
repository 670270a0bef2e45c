//! CloudWatch: what was gathered, once a minute, inside every limit of `PutMetricData`.
//!
//! The number of calls depends on the number of series, never on the traffic: a series is sent as the values that came
//! and how often each did. A call that fails is made again at the next flush, with the same time stamp.
//!
//! Delivery is at least once. A call whose answer is lost may have been received and is made again, so its figures
//! may be counted twice; CloudWatch has no means to tell. A call that is refused as invalid is not repeated.

use std::time::Duration;

use aws_sdk_cloudwatch::config::retry::RetryConfig;
use aws_sdk_cloudwatch::config::timeout::TimeoutConfig;
use aws_sdk_cloudwatch::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_cloudwatch::operation::put_metric_data::PutMetricDataError;
use jiff::Timestamp;
use tokio::time::Instant;

use super::Metrics;
use super::queue::{Batch, Queue};

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The CloudWatch namespace.
    pub namespace: String,
    /// How often.
    pub interval: Duration,
    /// What is sent.
    pub mode: Mode,
}

/// What is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Every series.
    #[default]
    Full,
    /// Six of each model, whatever its features and versions.
    Lean,
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
    /// Datums given up, because they were kept too long or refused as invalid.
    pub dropped: usize,
}

/// The longest a call may take, with everything.
const CALL_MAX: Duration = Duration::from_secs(10);

/// A flush begins no call after this long, so that it ends before the next one is due.
const FLUSH_MAX: Duration = Duration::from_secs(40);

/// A flush ends when this many calls in a row have failed: the others would, too.
const FAILURES_MAX: usize = 3;

/// A client with our manners: one attempt a call, because the next flush is the next attempt, and a time limit.
#[must_use]
pub fn client(sdk: &aws_config::SdkConfig) -> aws_sdk_cloudwatch::Client {
    let config = aws_sdk_cloudwatch::config::Builder::from(sdk)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_timeout(CALL_MAX).build())
        .build();
    aws_sdk_cloudwatch::Client::from_conf(config)
}

/// Sends measurements. One per process.
#[derive(Debug)]
pub struct Flusher {
    metrics: Metrics,
    client: aws_sdk_cloudwatch::Client,
    config: Config,
    queue: Queue,
    /// Whether the last call failed, to say so once and not every minute.
    is_failing: bool,
}

/// What became of a call.
enum Answer {
    Received,
    /// Nothing wrong with the call: try again later.
    Failed(String),
    /// The call itself is wrong, and will be every time.
    Invalid(String),
}

impl Flusher {
    /// A flusher of `metrics`, which keep their measurements for it from now on.
    #[must_use]
    pub fn new(metrics: Metrics, client: aws_sdk_cloudwatch::Client, config: Config) -> Self {
        metrics.start_delivery(config.mode);
        Self { metrics, client, config, queue: Queue::default(), is_failing: false }
    }

    /// Sends what was gathered since last time, and what could not be sent then. May be given up at any time:
    /// nothing is forgotten before CloudWatch has confirmed it.
    pub async fn flush_once(&mut self, now: Timestamp) -> Flushed {
        self.queue.push(minute_of(now), self.metrics.take_pending());
        let mut flushed = Flushed { dropped: self.expire(now), ..Flushed::default() };

        let end = Instant::now() + FLUSH_MAX;
        let (mut place, mut failures) = (0, 0);
        while failures < FAILURES_MAX && Instant::now() < end {
            let Some(batch) = self.queue.get(place) else { break };
            let answer = self.put(batch).await;
            flushed.calls += 1;
            self.log(&answer);
            match answer {
                Answer::Received => {
                    flushed.datums += self.queue.remove(place);
                    failures = 0;
                }
                Answer::Invalid(_) => flushed.dropped += self.queue.remove(place),
                Answer::Failed(_) => {
                    place += 1;
                    failures += 1;
                }
            }
        }
        flushed.kept = self.queue.datums();
        self.metrics.delivered(&flushed);
        flushed
    }

    fn expire(&mut self, now: Timestamp) -> usize {
        let dropped = self.queue.expire(now);
        if dropped > 0 {
            tracing::warn!(dropped, "dropped {dropped} CloudWatch datums that could not be sent for an hour");
        }
        dropped
    }

    async fn put(&self, batch: &Batch) -> Answer {
        let datums = batch.lines.iter().flat_map(|line| line.to_datums(batch.at)).collect();
        let call = self.client.put_metric_data().namespace(&self.config.namespace).set_metric_data(Some(datums));
        match call.send().await {
            Ok(_) => Answer::Received,
            Err(error) => Answer::of(&error),
        }
    }

    fn log(&mut self, answer: &Answer) {
        match answer {
            Answer::Received if self.is_failing => {
                tracing::info!("CloudWatch receives metrics again");
                self.is_failing = false;
            }
            Answer::Failed(reason) if !self.is_failing => {
                tracing::warn!("CloudWatch does not receive metrics, which are kept for an hour: {reason}");
                self.is_failing = true;
            }
            Answer::Invalid(reason) => {
                tracing::error!("CloudWatch refused a batch of metrics, which is dropped: {reason}");
            }
            Answer::Received | Answer::Failed(_) => (),
        }
    }
}

impl Answer {
    fn of(error: &SdkError<PutMetricDataError>) -> Self {
        let reason = DisplayErrorContext(error).to_string();
        if is_invalid(error) { Self::Invalid(reason) } else { Self::Failed(reason) }
    }
}

/// Whether the fault lies in the call, by the codes CloudWatch has for that. All else may pass: throttling, faults of
/// the service or the network, and credentials, which somebody will renew.
fn is_invalid(error: &SdkError<PutMetricDataError>) -> bool {
    const CODES: [&str; 5] = [
        "InvalidParameterValue",
        "InvalidParameterCombination",
        "MissingParameter",
        "MissingRequiredParameter",
        "ValidationError",
    ];
    const TOO_LARGE: u16 = 413;
    let code = error.code().map(|code| code.strip_suffix("Exception").unwrap_or(code));
    let status = error.raw_response().map(|response| response.status().as_u16());
    code.is_some_and(|code| CODES.contains(&code)) || status == Some(TOO_LARGE)
}

/// The minute `now` lies in.
fn minute_of(now: Timestamp) -> Timestamp {
    let second = now.as_second();
    Timestamp::from_second(second - second.rem_euclid(60)).unwrap_or(now)
}
