//! The request path's end, and records for the tests of the rooms below.

use std::cell::Cell as Flag;
use std::task::{Context, Waker};

use crate::model::features::{Raw, Settings};
use crate::model::signature::{Column, Kind, Signature};
use crate::model::{Digest, Prediction, Value, Version};

use super::sink::Sink;
use super::*;

/// Noon of 1 December 2025, UTC.
pub(super) fn noon() -> Timestamp {
    "2025-12-01T12:00:00Z".parse().unwrap()
}

pub(super) fn config(folder: &std::path::Path) -> Config {
    Config {
        sink: sink::Config::Directory(folder.join("samples")),
        format: Format::Parquet,
        rate: SamplingRate::ALL,
        rates: BTreeMap::new(),
        failed: false,
        flush_rows: NonZeroU32::new(10_000).unwrap(),
        flush_age: Duration::from_mins(1),
        protect: Policy::default(),
        secret: folder.join("secret"),
        spool: folder.join("spool"),
        spool_max_bytes: 1 << 30,
    }
}

/// A version of a model with a number and a text.
pub(super) struct Version3 {
    pub(super) model: Arc<Identity>,
    features: Arc<Features>,
}

pub(super) fn version(number: u64) -> Version3 {
    let column = |name: &str, kind| Column { name: name.into(), kind, required: true };
    let signature = Signature::Columns(vec![column("Age", Kind::Double), column("Job", Kind::Text)]);
    let name = "credit-score".parse().unwrap();
    Version3 {
        model: Arc::new(Identity::new(name, Version(number), Digest([7; 32]), None)),
        features: Arc::new(Features::new(&signature, Settings::default()).unwrap()),
    }
}

impl Version3 {
    /// A request answered at `time`, with `rows` rows of which each has `job`.
    pub(super) fn record(&self, id: &str, rows: usize, job: &str, time: Timestamp) -> Record {
        let mut table = self.features.rows();
        for _ in 0..rows {
            table.begin();
            table.set("Age", Raw::Float(40.5));
            table.set("Job", Raw::Text(job));
            table.end();
        }
        let prediction = Prediction { value: Value::Integer(1), label: Some("Good".into()), score: Some(0.75) };
        let classes: Arc<[Arc<str>]> = ["Poor".into(), "Good".into()].into();
        Record {
            request_id: id.into(),
            time,
            model: Arc::clone(&self.model),
            features: Arc::clone(&self.features),
            key_id: "k1".into(),
            inputs: table.finish().unwrap(),
            outputs: Outputs::new(vec![prediction; rows], classes, [0.25, 0.75].repeat(rows)),
        }
    }
}

/// The name of the model all samples are of.
fn name() -> ModelName {
    "credit-score".parse().unwrap()
}

fn offered(rate: f64, seed: u64) -> Counts {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { rate: SamplingRate::new(rate).unwrap(), ..config(folder.path()) };
    let (capture, _writer) = open(config, Sink::directory(folder.path()), &mut getrandom::fill, seed).unwrap();
    let record = version(3).record("r", 1, "Doctor", noon());
    for _ in 0..4000 {
        capture.offer(&name(), 1, || record.clone());
    }
    capture.counts()
}

#[test]
fn the_rate_decides_how_many_are_sampled_and_the_seed_which() {
    assert_eq!(offered(0.0, 1).sampled, 0);
    assert_eq!(offered(1.0, 1).sampled, 4000);
    let quarter = offered(0.25, 1).sampled;
    assert!((900..1100).contains(&quarter), "{quarter} of 4000");
    assert_eq!(offered(0.25, 1).sampled, quarter);
}

#[test]
fn a_model_may_have_a_rate_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let rates = [(name(), SamplingRate::ALL)].into();
    let config = Config { rate: SamplingRate::new(0.0).unwrap(), rates, ..config(folder.path()) };
    let sink = Sink::directory(folder.path());
    let (capture, _writer) = open(config, sink, &mut getrandom::fill, 1).unwrap();
    capture.offer(&name(), 1, || version(3).record("r", 1, "Doctor", noon()));
    capture.offer(&"other".parse().unwrap(), 1, || unreachable!("its rate is none"));
    assert_eq!(capture.counts().sampled, 1);
}

#[test]
fn nothing_is_built_for_a_capture_that_is_off() {
    Capture::off().offer(&name(), 1, || unreachable!("nobody asked for the record"));
    assert_eq!(Capture::off().counts(), Counts::default());
}

/// Offers `times` the same record to a queue that nobody empties, and checks how many are taken.
#[track_caller]
fn check_bound(times: u64, rows: usize, job: &str, taken: u64) {
    let folder = tempfile::tempdir().unwrap();
    let (capture, _writer) =
        open(config(folder.path()), Sink::directory(folder.path()), &mut getrandom::fill, 1).unwrap();
    let record = version(3).record("r", rows, job, noon());
    for _ in 0..times {
        capture.offer(&name(), rows, || record.clone());
    }
    let rows = rows as u64;
    let dropped_queue_full = (times - taken) * rows;
    let expected = Counts { sampled: times * rows, pending: taken * rows, dropped_queue_full, ..Counts::default() };
    assert_eq!(capture.counts(), expected);
}

#[test]
fn the_queue_is_bounded_in_records() {
    check_bound(4100, 1, "Doctor", 4096);
}

#[test]
fn the_queue_is_bounded_in_rows() {
    check_bound(100, 1000, "Doctor", 65);
}

#[test]
fn the_queue_is_bounded_in_bytes() {
    check_bound(100, 1000, &"x".repeat(4096), 15);
}

#[test]
fn no_record_is_built_where_there_is_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let (capture, _writer) =
        open(config(folder.path()), Sink::directory(folder.path()), &mut getrandom::fill, 1).unwrap();
    let built = Flag::new(false);
    capture.offer(&name(), 100_000, || {
        built.set(true);
        version(3).record("r", 1, "Doctor", noon())
    });
    assert!(!built.get());
    assert_eq!(capture.counts().dropped_queue_full, 100_000);
}

#[tokio::test]
async fn the_queue_ends_with_the_last_capture() {
    let folder = tempfile::tempdir().unwrap();
    let (capture, mut writer) =
        open(config(folder.path()), Sink::directory(folder.path()), &mut getrandom::fill, 1).unwrap();
    let twin = capture.clone();
    drop(capture);
    twin.offer(&name(), 2, || version(3).record("r", 2, "Doctor", noon()));
    drop(twin);
    assert_eq!(writer.spool_once().await, Some(2));
    assert_eq!(writer.spool_once().await, None);
    assert_eq!(writer.flush_once(noon(), true).await, Flushed { stored: 2, waiting: 0, objects: 1, accepted: 0 });
    assert_eq!(writer.counts(), Counts { sampled: 2, stored: 2, ..Counts::default() });
}

#[tokio::test]
async fn a_writer_that_waits_is_woken_by_an_offer_and_by_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (capture, mut writer) =
        open(config(folder.path()), Sink::directory(folder.path()), &mut getrandom::fill, 1).unwrap();
    let offer = async {
        tokio::task::yield_now().await;
        capture.offer(&name(), 1, || version(3).record("r", 1, "Doctor", noon()));
    };
    assert_eq!(tokio::join!(writer.spool_once(), offer).0, Some(1));
    let end = async {
        tokio::task::yield_now().await;
        drop(capture);
    };
    assert_eq!(tokio::join!(writer.spool_once(), end).0, None);
}

#[tokio::test]
async fn what_a_step_that_was_dropped_has_spooled_the_next_one_says() {
    let folder = tempfile::tempdir().unwrap();
    let (capture, mut writer) =
        open(config(folder.path()), Sink::directory(folder.path()), &mut getrandom::fill, 1).unwrap();
    capture.offer(&name(), 1, || version(3).record("r", 1, "Doctor", noon()));
    let spool = Arc::clone(&writer.spooler.spool);
    let busy = spool.lock();
    assert!(pin!(writer.spool_once()).as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(busy);
    drop(capture);
    assert_eq!(writer.spool_once().await, Some(1));
    assert_eq!(writer.spool_once().await, None);
}
