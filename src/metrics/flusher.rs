//! Sends what was gathered, at every flush, to one sink; what fails is kept for an hour and sent again.
//!
//! The number of calls depends on the number of series, never on the traffic: a series is sent as the values that came
//! and how often each did. What is sent again keeps the time it was measured at.
//!
//! Delivery is at least once. A call whose answer is lost may have been received and is made again, so its figures
//! may be counted twice; no sink has means to tell. A call that is refused as invalid is not repeated.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::delivery::{Delivery, OverVersions, Place};
use super::queue::{Batch, Queue};
use super::{Metrics, cloudwatch, emf, otlp};

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

/// A flush begins no call after this long, so that it ends before the next one is due.
const FLUSH_MAX: Duration = Duration::from_secs(40);

/// A flush ends when this many calls in a row have failed: the others would, too.
const FAILURES_MAX: usize = 3;

/// Sends measurements. One per sink.
#[derive(Debug)]
pub struct Flusher {
    metrics: Metrics,
    place: Place,
    sink: Sink,
    queue: Queue,
    /// Whether the last call failed, to say so once and not every minute.
    is_failing: bool,
}

#[derive(Debug)]
enum Sink {
    CloudWatch { client: aws_sdk_cloudwatch::Client, namespace: String },
    Emf { out: emf::Out, namespace: String },
    Otlp(Box<otlp::Exporter>),
}

/// What became of a call.
pub(super) enum Answer {
    Received,
    /// All but so many datums, for this reason.
    ReceivedBut(usize, String),
    /// Nothing wrong with the call: try again later.
    Failed(String),
    /// The call itself is wrong, and will be every time.
    Invalid(String),
}

impl Flusher {
    /// A flusher of `metrics` by `PutMetricData`. They keep their measurements for it from `now` on.
    #[must_use]
    pub fn to_cloudwatch(
        metrics: Metrics,
        client: aws_sdk_cloudwatch::Client,
        to: cloudwatch::Config,
        now: Timestamp,
    ) -> Self {
        let place = metrics.start_delivery(Delivery::new("cloudwatch", to.mode, OverVersions::Sent));
        Self::new(metrics, place, Sink::CloudWatch { client, namespace: to.namespace }, now)
    }

    /// A flusher of `metrics` in lines of the embedded metric format. They keep their measurements for it from `now` on.
    #[must_use]
    pub fn to_emf(metrics: Metrics, out: emf::Out, to: cloudwatch::Config, now: Timestamp) -> Self {
        let place = metrics.start_delivery(Delivery::new("emf", to.mode, OverVersions::Sent));
        Self::new(metrics, place, Sink::Emf { out, namespace: to.namespace }, now)
    }

    /// A flusher of `metrics` to an OpenTelemetry collector. They keep their measurements for it from `now` on.
    #[must_use]
    pub fn to_otlp(metrics: Metrics, client: reqwest::Client, to: otlp::Config, now: Timestamp) -> Self {
        let place = metrics.start_delivery(Delivery::new("otlp", to.mode.clone(), OverVersions::LeftOut));
        Self::new(metrics, place, Sink::Otlp(Box::new(otlp::Exporter::new(client, to))), now)
    }

    fn new(metrics: Metrics, place: Place, sink: Sink, now: Timestamp) -> Self {
        Self { metrics, place, sink, queue: Queue::new(now), is_failing: false }
    }

    /// Sends what was gathered since last time, and what could not be sent then. May be given up at any time:
    /// nothing is forgotten before the sink has confirmed it.
    pub async fn flush_once(&mut self, now: Timestamp) -> Flushed {
        self.queue.push(now, self.metrics.take_pending(self.place));
        let mut flushed = Flushed { dropped: self.expire(now), ..Flushed::default() };

        let end = Instant::now() + FLUSH_MAX;
        let (mut place, mut failures) = (0, 0);
        while failures < FAILURES_MAX && Instant::now() < end {
            let Some(batch) = self.queue.get(place) else { break };
            let answer = self.sink.send(batch).await;
            flushed.calls += 1;
            self.log(&answer);
            match answer {
                Answer::Received => {
                    flushed.datums += self.queue.remove(place);
                    failures = 0;
                }
                Answer::ReceivedBut(refused, _) => {
                    let datums = self.queue.remove(place);
                    let refused = refused.min(datums);
                    flushed.datums += datums - refused;
                    flushed.dropped += refused;
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
        self.metrics.delivered(self.place, &flushed);
        flushed
    }

    fn expire(&mut self, now: Timestamp) -> usize {
        let dropped = self.queue.expire(now);
        if dropped > 0 {
            let sink = self.sink.name();
            tracing::warn!(sink, dropped, "dropped {dropped} datums that {sink} did not take for an hour");
        }
        dropped
    }

    fn log(&mut self, answer: &Answer) {
        let sink = self.sink.name();
        match answer {
            Answer::Received if self.is_failing => {
                tracing::info!(sink, "{sink} receives metrics again");
                self.is_failing = false;
            }
            Answer::Failed(reason) if !self.is_failing => {
                tracing::warn!(sink, "{sink} does not receive metrics, which are kept for an hour: {reason}");
                self.is_failing = true;
            }
            Answer::ReceivedBut(refused, reason) => {
                tracing::error!(sink, refused, "{sink} refused {refused} datums, which are dropped: {reason}");
            }
            Answer::Invalid(reason) => {
                tracing::error!(sink, "{sink} refused a batch of metrics, which is dropped: {reason}");
            }
            Answer::Received | Answer::Failed(_) => (),
        }
    }
}

impl Sink {
    fn name(&self) -> &'static str {
        match self {
            Self::CloudWatch { .. } => "CloudWatch",
            Self::Emf { .. } => "standard output",
            Self::Otlp(_) => "the OTLP collector",
        }
    }

    async fn send(&self, batch: &Batch) -> Answer {
        match self {
            Self::CloudWatch { client, namespace } => cloudwatch::put(client, namespace, batch).await,
            Self::Emf { out, namespace } => out.write(emf::lines(batch, namespace)).await,
            Self::Otlp(exporter) => exporter.send(batch).await,
        }
    }
}
