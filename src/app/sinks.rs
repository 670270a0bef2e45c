//! Where measurements go besides Prometheus: builds a flusher for each sink of the configuration.

use std::io;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;

use super::{Aws, http_client};
use crate::config::Sinks;
use crate::metrics::{Flusher, Metrics, cloudwatch, emf};
use crate::task;

/// The stack of the thread that writes lines to standard output.
const WRITER_STACK_BYTES: usize = 256 << 10;

/// A task's name, how often it flushes, and what it flushes with.
type Delivery = (&'static str, Duration, Flusher);

/// A flusher of `metrics` for each of `sinks`.
pub(super) async fn open(sinks: Sinks, metrics: &Metrics, aws: &Aws, now: Timestamp) -> anyhow::Result<Vec<Delivery>> {
    let mut deliveries = Vec::new();
    if let Some(to) = sinks.cloudwatch {
        let client = cloudwatch::client(aws.config().await);
        let interval = to.interval;
        deliveries.push(("cloudwatch", interval, Flusher::to_cloudwatch(metrics.clone(), client, to, now)));
    }
    if let Some(to) = sinks.emf {
        let (out, writer) = emf::channel(io::stdout());
        // It waits for whoever reads, perhaps for ever, which no task may.
        task::thread("emf-writer", WRITER_STACK_BYTES, move || writer.run()).context("cannot start a thread")?;
        deliveries.push(("emf", to.interval, Flusher::to_emf(metrics.clone(), out, to, now)));
    }
    if let Some(to) = sinks.otlp {
        deliveries.push(("otlp", to.interval, Flusher::to_otlp(metrics.clone(), http_client(None)?, to, now)));
    }
    Ok(deliveries)
}
