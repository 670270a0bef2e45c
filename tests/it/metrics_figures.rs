//! What observing costs on the request path:
//! `cargo test --release --test it what_observing_a_request_costs -- --ignored --nocapture --test-threads 1`
#![expect(clippy::cast_precision_loss, reason = "figures have few digits")]

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use modelgate::capture::sink::Sink;
use modelgate::capture::{self, Capture, Record, Writer};
use modelgate::drift::Drift;
use modelgate::metrics::Metrics;
use modelgate::model::features::{Raw, Settings};
use modelgate::model::signature::{Kind, Signature};
use modelgate::model::{Digest, Features, Identity, Inputs, Outputs, Prediction, Value, Version};
use rustix::time::{ClockId, clock_gettime};

use super::support::fixtures;
use super::support::site::Site;

/// Requests that are made ready ahead, and asked again and again.
const READY: usize = 500;

/// How often all of them are asked.
const ROUNDS: usize = 100;

/// The side doors of a gateway, as they stand open to one version.
struct Doors {
    metrics: Metrics,
    drift: Drift,
    capture: Capture,
    writer: Writer,
    id: Arc<Identity>,
    features: Arc<Features>,
}

impl Doors {
    fn open(site: &Site) -> Self {
        let config = site.config();
        let sink = Sink::directory(site.folder().join("samples"));
        let (capture, writer) = capture::open(config.capture.unwrap(), sink, &mut getrandom::fill, 7).unwrap();
        let features = Features::new(&fixtures::signature("pipeline"), Settings::default()).unwrap();
        let id = Arc::new(Identity::new("pipeline".parse().unwrap(), Version(1), Digest([0; 32]), None));
        let drift = Drift::new(config.drift);
        drift.watch_parts(&id, &features, Ok(None));
        Self { metrics: Metrics::new(config.metrics), drift, capture, writer, id, features: Arc::new(features) }
    }

    /// One row of every feature, and an answer.
    fn request(&self, random: &mut fastrand::Rng) -> (Inputs, Outputs) {
        let mut row = self.features.rows();
        row.begin();
        for feature in self.features.list() {
            let text = ["Lawyer", "Doctor", "Teacher", "Engineer"][random.usize(0..4)];
            let value = match feature.kind {
                Kind::Text => Raw::Text(text),
                Kind::Boolean => Raw::Boolean(random.bool()),
                Kind::Long | Kind::Integer => Raw::Integer(random.i64(0..100)),
                Kind::Double | Kind::Float => Raw::Float(random.f64() * 10f64.powi(random.i32(0..5))),
            };
            row.set(&feature.name, value);
        }
        row.end();
        let class = ["Good", "Poor", "Standard"][random.usize(0..3)];
        let value = Prediction { value: Value::Text(class.into()), label: None, score: Some(random.f64()) };
        let classes: Arc<[Arc<str>]> = ["Good", "Poor", "Standard"].map(Arc::from).into();
        (row.finish().unwrap(), Outputs::new(vec![value], classes, vec![0.1, 0.2, 0.7]))
    }

    fn measure(&self, (inputs, outputs): &(Inputs, Outputs)) {
        self.metrics.observe_parts(&self.id, &self.features, inputs, outputs, Duration::from_micros(300));
    }

    fn watch(&self, (inputs, outputs): &(Inputs, Outputs)) {
        self.drift.observe_parts(&self.id, inputs, outputs, &"key".into());
    }

    fn sample(&self, (inputs, outputs): &(Inputs, Outputs)) {
        self.capture.offer(&self.id.name, inputs.rows(), || Record {
            request_id: "019ad9c4-7b80-7c1e-9e70-3f2a5d1c8b46".into(),
            time: Timestamp::UNIX_EPOCH,
            model: Arc::clone(&self.id),
            features: Arc::clone(&self.features),
            key_id: "key".into(),
            inputs: inputs.clone(),
            outputs: outputs.clone(),
        });
    }
}

/// CPU time of this thread so far.
fn cpu() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

/// Microseconds of CPU that `work` takes.
fn cost(work: impl FnOnce()) -> f64 {
    let before = cpu();
    work();
    cpu().saturating_sub(before).as_secs_f64() * 1e6
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[tokio::test]
#[ignore = "figure: CPU a request of metrics, drift and capture for 21 features"]
async fn what_observing_a_request_costs() {
    let site = Site::new("[[model]]\nname = \"pipeline\"\n[plans.open]\n[capture]\nsink = \"file:{folder}/samples\"\n");
    let mut doors = Doors::open(&site);
    let mut random = fastrand::Rng::with_seed(7);
    let requests: Vec<_> = (0..READY).map(|_| doors.request(&mut random)).collect();
    assert!(matches!(fixtures::signature("pipeline"), Signature::Columns(columns) if columns.len() == 21));
    // The baseline is learnt from the first rows; what follows is the state a gateway is in for the rest of its days.
    (0..3).for_each(|_| requests.iter().for_each(|request| doors.watch(request)));
    doors.drift.settle_once(Timestamp::UNIX_EPOCH);

    let (mut metrics, mut drift, mut capture) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        metrics.push(cost(|| requests.iter().for_each(|request| doors.measure(request))) / READY as f64);
        drift.push(cost(|| requests.iter().for_each(|request| doors.watch(request))) / READY as f64);
        capture.push(cost(|| requests.iter().for_each(|request| doors.sample(request))) / READY as f64);
        while doors.capture.counts().pending > 0 && doors.writer.spool_once().await == Some(0) {}
        doors.writer.flush_once(Timestamp::UNIX_EPOCH, true).await;
    }
    let counts = doors.capture.counts();
    assert_eq!(counts.dropped_queue_full, 0, "a queue that is full costs less than one that is not");
    let (metrics, drift, capture) = (median(metrics), median(drift), median(capture));
    println!("| part of a request of 21 features | CPU µs |\n|---|---|");
    println!("| metrics | {metrics:.2} |\n| drift | {drift:.2} |\n| capture | {capture:.2} |");
    println!("| in all | {:.2} |", metrics + drift + capture);
}
