//! A gateway's capture over a folder that outlives it, and what it leaves there.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use modelgate::capture::protect::Policy;
use modelgate::capture::sink::{self, Sink};
use modelgate::capture::{self, Capture, Config, Counts, Flushed, Format, Record, SamplingRate, Writer};
use modelgate::model::features::{Raw, Settings};
use modelgate::model::signature::{Column, Kind, Signature};
use modelgate::model::{Digest, Features, Identity, Outputs, Prediction, Value, Version};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::RowAccessor as _;

use super::s3::{self, BUCKET, S3};

/// When everything is answered.
pub(crate) fn noon() -> Timestamp {
    "2025-12-01T12:00:00Z".parse().unwrap()
}

/// A gateway's capture over a folder that outlives it.
pub(crate) struct Gate {
    pub(crate) capture: Capture,
    pub(crate) writer: Writer,
    pub(crate) model: Model,
}

/// The version that answers.
#[derive(Clone)]
pub(crate) struct Model {
    pub(crate) identity: Arc<Identity>,
    features: Arc<Features>,
}

impl Model {
    pub(crate) fn new(name: &str) -> Self {
        let column = |name: &str, kind| Column { name: name.into(), kind, required: true };
        let signature = Signature::Columns(vec![column("Age", Kind::Double), column("Job", Kind::Text)]);
        let identity = Identity::new(name.parse().unwrap(), Version(3), Digest([7; 32]), None);
        let features = Features::new(&signature, Settings::default()).unwrap();
        Self { identity: Arc::new(identity), features: Arc::new(features) }
    }

    /// One row, answered at noon.
    pub(crate) fn record(&self, id: &str) -> Record {
        self.record_of(id, 40.5, "Doctor")
    }

    /// The same of any row.
    pub(crate) fn record_of(&self, id: &str, age: f64, job: &str) -> Record {
        let mut rows = self.features.rows();
        rows.begin();
        rows.set("Age", Raw::Float(age));
        rows.set("Job", Raw::Text(job));
        rows.end();
        let prediction = Prediction { value: Value::Integer(1), label: Some("Good".into()), score: Some(0.75) };
        Record {
            request_id: id.into(),
            time: noon(),
            model: Arc::clone(&self.identity),
            features: Arc::clone(&self.features),
            key_id: "k1".into(),
            inputs: rows.finish().unwrap(),
            outputs: Outputs::new(vec![prediction], ["Poor".into(), "Good".into()].into(), vec![0.25, 0.75]),
        }
    }
}

impl Gate {
    pub(crate) fn open(folder: &Path, sink: Sink) -> Self {
        Self::configured(folder, sink, |_| ())
    }

    pub(crate) fn configured(folder: &Path, sink: Sink, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            sink: sink::Config::Directory(PathBuf::new()),
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
        };
        change(&mut config);
        let (capture, writer) = capture::open(config, sink, &mut getrandom::fill, fastrand::u64(..)).unwrap();
        Self { capture, writer, model: Model::new("credit-score") }
    }

    pub(crate) fn offer(&self, id: &str) {
        self.capture.offer(&self.model.identity.name, 1, || self.model.record(id));
    }

    /// Offers the ids and waits until they are accepted.
    pub(crate) async fn accept(&mut self, ids: impl IntoIterator<Item = impl AsRef<str>>) {
        for id in ids {
            self.offer(id.as_ref());
        }
        self.writer.spool_once().await.unwrap();
    }

    /// Closes and sends all there is, at noon.
    pub(crate) async fn flush(&mut self) -> Flushed {
        self.writer.flush_once(noon(), true).await
    }

    pub(crate) fn counts(&self) -> Counts {
        let counts = self.capture.counts();
        let Counts { sampled, stored, dropped_queue_full, dropped_spool_full, failed, pending } = counts;
        assert_eq!(sampled, stored + dropped_queue_full + dropped_spool_full + failed + pending, "{counts:?}");
        counts
    }
}

pub(crate) fn directory(folder: &Path) -> Sink {
    Sink::directory(folder.join("samples"))
}

pub(crate) fn bucket(s3: &S3, secret: &str) -> Sink {
    Sink::S3 { client: s3.client(secret), bucket: BUCKET.to_owned(), prefix: "drift/eu".to_owned() }
}

/// The request ids in a Parquet file, line by line.
pub(crate) fn ids(object: &[u8]) -> Vec<String> {
    let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(object)).unwrap();
    reader.get_row_iter(None).unwrap().map(|line| line.unwrap().get_string(0).unwrap().clone()).collect()
}

/// The request ids in all objects, sorted.
pub(crate) fn all_ids(objects: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut all: Vec<_> = objects.iter().flat_map(|(_, object)| ids(object)).collect();
    all.sort();
    all
}

/// The segments that wait in a gateway's folder.
pub(crate) fn segments(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = s3::files(&folder.join("spool"));
    files.retain(|(name, _)| name.ends_with(".segment"));
    files
}
