//! CloudWatch through its logs: lines in the embedded metric format, which CloudWatch Logs turns into the same metrics
//! that `PutMetricData` makes.
//!
//! A line is one JSON object about the series that share their dimensions. Its limits are those of the format's
//! specification: 100 metrics, and 100 values of each. A line is kept to 256 KB, which every edition of the
//! specification allows; the present one allows 1 MB.
//!
//! Whoever reads the lines may be slow: they are written by a thread of their own ([`Writer`]), and a flush waits for
//! it. What is measured meanwhile goes out with the next flush.

use std::collections::BTreeMap;
use std::io;

use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};

use super::datum::Line;
use super::flusher::Answer;
use super::histogram::{Point, float};
use super::queue::Batch;
use super::text::{dimensions, metric_name};

/// Metrics of one line at most.
const METRICS_MAX: usize = 100;

/// Values of one metric at most.
const VALUES_MAX: usize = 100;

/// Bytes of one line at most, less those of its braces, namespace and dimensions.
const LINE_MAX_BYTES: usize = 240_000;

/// Bytes of a metric's definition, its marks and its statistics, rounded up.
const METRIC_BYTES: usize = 240;

/// Bytes of one value and its count, in as many digits as they can have.
const POINT_BYTES: usize = 48;

/// Where lines are handed in. One batch waits at most.
#[derive(Debug)]
pub struct Out(mpsc::Sender<Order>);

/// Writes the lines that are handed in. Run it on a thread of its own.
#[derive(Debug)]
pub struct Writer<W> {
    orders: mpsc::Receiver<Order>,
    to: W,
}

#[derive(Debug)]
struct Order {
    lines: String,
    done: oneshot::Sender<io::Result<()>>,
}

/// Lines go from the first to the second, which writes them `to` somewhere.
#[must_use]
pub fn channel<W: io::Write>(to: W) -> (Out, Writer<W>) {
    let (sender, orders) = mpsc::channel(1);
    (Out(sender), Writer { orders, to })
}

impl<W: io::Write> Writer<W> {
    /// Writes until the other end is gone.
    pub fn run(mut self) {
        while let Some(Order { lines, done }) = self.orders.blocking_recv() {
            let written = self.to.write_all(lines.as_bytes()).and_then(|()| self.to.flush());
            // Nobody waits for it where the process is on its way out.
            let _ = done.send(written);
        }
    }
}

impl Out {
    /// Hands `lines` in and waits until they are written.
    pub(super) async fn write(&self, lines: String) -> Answer {
        let (done, written) = oneshot::channel();
        let sent = self.0.send(Order { lines, done }).await;
        match (sent, written.await) {
            (Ok(()), Ok(Ok(()))) => Answer::Received,
            (Ok(()), Ok(Err(error))) => Answer::Failed(error.to_string()),
            _ => Answer::Failed("the thread that writes is gone".to_owned()),
        }
    }
}

/// Some values of one series.
struct Part<'b> {
    line: &'b Line,
    points: &'b [Point],
}

/// A batch as lines.
pub(super) fn lines(batch: &Batch, namespace: &str) -> String {
    let mut by_dimensions: BTreeMap<Vec<(&'static str, String)>, Vec<&Line>> = BTreeMap::new();
    for line in &batch.lines {
        by_dimensions.entry(dimensions(&line.series)).or_default().push(line);
    }
    let mut text = String::new();
    for (dimensions, lines) in &by_dimensions {
        for parts in documents(lines) {
            text.push_str(&document(&parts, dimensions, namespace, batch).to_string());
            text.push('\n');
        }
    }
    text
}

/// Cuts `lines` into what fits a document each. A metric has one place in a document, so that one with many values is in
/// several.
fn documents<'b>(lines: &[&'b Line]) -> Vec<Vec<Part<'b>>> {
    let mut documents = Vec::new();
    for turn in 0.. {
        let mut parts = lines.iter().filter_map(|line| Part::of(line, turn)).peekable();
        if parts.peek().is_none() {
            break;
        }
        while parts.peek().is_some() {
            documents.push(document_of(&mut parts));
        }
    }
    documents
}

/// As many of `parts` as fit one document: at least one.
fn document_of<'b>(parts: &mut std::iter::Peekable<impl Iterator<Item = Part<'b>>>) -> Vec<Part<'b>> {
    let (mut metrics, mut bytes) = (0, 0);
    let mut document = Vec::new();
    while let Some(part) = parts.next_if(|part| {
        metrics += 1;
        bytes += part.bytes();
        metrics <= METRICS_MAX && bytes <= LINE_MAX_BYTES
    }) {
        document.push(part);
    }
    document
}

impl<'b> Part<'b> {
    /// The values of `line` whose turn it is.
    fn of(line: &'b Line, turn: usize) -> Option<Self> {
        line.points.chunks(VALUES_MAX).nth(turn).map(|points| Self { line, points })
    }

    fn bytes(&self) -> usize {
        METRIC_BYTES + 2 * metric_name(&self.line.series).len() + self.points.len() * POINT_BYTES
    }

    fn definition(&self) -> Value {
        let series = &self.line.series;
        json!({ "Name": metric_name(series), "Unit": series.unit().as_str(), "StorageResolution": 60 })
    }

    /// Values with their counts, and the statistics that stand beside them.
    fn values(&self) -> Value {
        let points = self.points;
        let sum: f64 = points.iter().map(|point| point.value * float(point.count)).sum();
        json!({
            "Values": points.iter().map(|point| point.value).collect::<Vec<_>>(),
            "Counts": points.iter().map(|point| point.count).collect::<Vec<_>>(),
            "Min": points.first().map(|point| point.value),
            "Max": points.last().map(|point| point.value),
            "Count": points.iter().map(|point| point.count).sum::<u64>(),
            "Sum": sum,
        })
    }
}

fn document(parts: &[Part<'_>], dimensions: &[(&'static str, String)], namespace: &str, batch: &Batch) -> Value {
    let names: Vec<&str> = dimensions.iter().map(|(name, _)| *name).collect();
    let definitions: Vec<Value> = parts.iter().map(Part::definition).collect();
    let directive = json!({ "Namespace": namespace, "Dimensions": [names], "Metrics": definitions });
    let at = batch.span.minute().as_millisecond();
    let mut root = Map::new();
    root.insert("_aws".to_owned(), json!({ "Timestamp": at, "CloudWatchMetrics": [directive] }));
    root.extend(dimensions.iter().map(|(name, value)| ((*name).to_owned(), json!(value))));
    root.extend(parts.iter().map(|part| (metric_name(&part.line.series).into_owned(), part.values())));
    Value::Object(root)
}
