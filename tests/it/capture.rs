//! Samples from the request path to objects: over a real S3 protocol, through outages, kills and damaged disks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::num::NonZeroU32;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use modelgate::capture::protect::Policy;
use modelgate::capture::sink::{self, Sink};
use modelgate::capture::stored::{Search, SearchError};
use modelgate::capture::{self, Capture, Config, Counts, Flushed, Format, Record, SamplingRate, Writer};
use modelgate::model::features::{Raw, Settings};
use modelgate::model::signature::{Column, Kind, Signature};
use modelgate::model::{Digest, Features, Identity, Outputs, Prediction, Value, Version};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::RowAccessor as _;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::support::s3::{self, BUCKET, S3, SECRET};

fn noon() -> Timestamp {
    "2025-12-01T12:00:00Z".parse().unwrap()
}

/// A gateway's capture over a folder that outlives it.
struct Gate {
    capture: Capture,
    writer: Writer,
    model: Model,
}

/// The version that answers.
#[derive(Clone)]
struct Model {
    identity: Arc<Identity>,
    features: Arc<Features>,
}

impl Model {
    fn new(name: &str) -> Self {
        let column = |name: &str, kind| Column { name: name.into(), kind, required: true };
        let signature = Signature::Columns(vec![column("Age", Kind::Double), column("Job", Kind::Text)]);
        let identity = Identity::new(name.parse().unwrap(), Version(3), Digest([7; 32]), None);
        let features = Features::new(&signature, Settings::default()).unwrap();
        Self { identity: Arc::new(identity), features: Arc::new(features) }
    }

    /// One row, answered at noon.
    fn record(&self, id: &str) -> Record {
        let mut rows = self.features.rows();
        rows.begin();
        rows.set("Age", Raw::Float(40.5));
        rows.set("Job", Raw::Text("Doctor"));
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
    fn open(folder: &Path, sink: Sink) -> Self {
        Self::configured(folder, sink, |_| ())
    }

    fn configured(folder: &Path, sink: Sink, change: impl FnOnce(&mut Config)) -> Self {
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

    fn offer(&self, id: &str) {
        self.capture.offer(&self.model.identity.name, 1, || self.model.record(id));
    }

    /// Offers the ids and waits until they are accepted.
    async fn accept(&mut self, ids: impl IntoIterator<Item = impl AsRef<str>>) {
        for id in ids {
            self.offer(id.as_ref());
        }
        self.writer.spool_once().await.unwrap();
    }

    /// Closes and sends all there is, at noon.
    async fn flush(&mut self) -> Flushed {
        self.writer.flush_once(noon(), true).await
    }

    fn counts(&self) -> Counts {
        let counts = self.capture.counts();
        let Counts { sampled, stored, dropped_queue_full, dropped_spool_full, failed, pending } = counts;
        assert_eq!(sampled, stored + dropped_queue_full + dropped_spool_full + failed + pending, "{counts:?}");
        counts
    }
}

fn directory(folder: &Path) -> Sink {
    Sink::Directory(folder.join("samples"))
}

fn bucket(s3: &S3, secret: &str) -> Sink {
    Sink::S3 { client: s3.client(secret), bucket: BUCKET.to_owned(), prefix: "drift/eu".to_owned() }
}

/// The request ids in a Parquet file, line by line.
fn ids(object: &[u8]) -> Vec<String> {
    let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(object)).unwrap();
    reader.get_row_iter(None).unwrap().map(|line| line.unwrap().get_string(0).unwrap().clone()).collect()
}

/// The request ids in all objects, sorted.
fn all_ids(objects: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut all: Vec<_> = objects.iter().flat_map(|(_, object)| ids(object)).collect();
    all.sort();
    all
}

/// What a key ends in.
fn extension(key: &str) -> &str {
    key.rsplit_once('.').map_or("", |(_, extension)| extension)
}

/// The segments that wait in a gateway's folder.
fn segments(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = s3::files(&folder.join("spool"));
    files.retain(|(name, _)| name.ends_with(".segment"));
    files
}

#[tokio::test]
async fn samples_reach_the_bucket() {
    let folder = tempfile::tempdir().unwrap();
    let s3 = S3::start().await;
    let mut gate = Gate::open(folder.path(), bucket(&s3, SECRET));
    gate.accept(["a", "b", "c"]).await;
    assert_eq!(gate.counts(), Counts { sampled: 3, pending: 3, ..Counts::default() });
    assert_eq!(gate.flush().await, Flushed { stored: 3, waiting: 0, objects: 1 });
    assert_eq!(gate.counts(), Counts { sampled: 3, stored: 3, ..Counts::default() });
    assert_eq!(segments(folder.path()), []);

    let objects = s3.objects();
    let (key, object) = &objects[0];
    assert_eq!(objects.len(), 1);
    let (partition, name) = key.rsplit_once('/').unwrap();
    assert_eq!(partition, "drift/eu/model=credit-score/version=3/date=2025-12-01/hour=12");
    assert!(name.len() == 40 && name.ends_with(".parquet"), "{name}");
    assert_eq!(ids(object), ["a", "b", "c"]);
    let head = s3.client(SECRET).head_object().bucket(BUCKET).key(key).send().await.unwrap();
    assert_eq!(head.content_type(), Some("application/vnd.apache.parquet"));
}

/// Sends two samples in `format` and gives back the objects.
async fn sent_in(format: Format) -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().unwrap();
    let s3 = S3::start().await;
    let mut gate = Gate::configured(folder.path(), bucket(&s3, SECRET), |config| config.format = format);
    gate.accept(["a", "b"]).await;
    assert_eq!(gate.flush().await, Flushed { stored: 2, waiting: 0, objects: 1 });
    s3.objects()
}

#[tokio::test]
async fn json_lines_lie_where_sagemaker_puts_them() {
    let objects = sent_in(Format::Jsonl).await;
    let [(key, object)] = &objects[..] else { panic!("{objects:?}") };
    let (folder, name) = key.rsplit_once('/').unwrap();
    assert_eq!(folder, "drift/eu/credit-score/3/2025/12/01/12");
    assert!(name.len() == 38 && extension(name) == "jsonl", "{name}");
    let lines: Vec<serde_json::Value> = object
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let ids: Vec<_> = lines.iter().map(|line| line["eventMetadata"]["eventId"].as_str().unwrap()).collect();
    assert_eq!(ids, ["a", "b"]);
    assert_eq!(lines[0]["captureData"]["endpointInput"]["data"], "40.5,Doctor");
}

#[tokio::test]
async fn csv_lies_in_the_partitions_of_parquet() {
    let objects = sent_in(Format::Csv).await;
    let [(key, object)] = &objects[..] else { panic!("{objects:?}") };
    assert!(key.starts_with("drift/eu/model=credit-score/version=3/date=2025-12-01/hour=12/"), "{key}");
    let text = std::str::from_utf8(object).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.lines().nth(2).unwrap().ends_with(",k1,40.5,Doctor,1,Good,0.75,0.25,0.75"), "{text}");
}

#[tokio::test]
async fn a_sample_is_found_in_the_bucket_again() {
    let folder = tempfile::tempdir().unwrap();
    let s3 = S3::start().await;
    let mut gate = Gate::open(folder.path(), bucket(&s3, SECRET));
    for id in ["a", "b", "c"] {
        gate.accept([id]).await;
        gate.flush().await;
    }
    let find = async |id: &str, model: &str, date: &str| {
        let (model, dates) = (Some(model.parse().unwrap()), vec![date.parse().unwrap()]);
        Search { request_id: id.to_owned(), model, dates }.run(&bucket(&s3, SECRET)).await
    };
    let found = find("b", "credit-score", "2025-12-01").await.unwrap();
    assert_eq!((found.rows.len(), found.digest), (1, Digest([7; 32])));
    assert!(s3.objects().iter().any(|(key, _)| *key == format!("drift/eu/{}", found.key)), "{}", found.key);
    for (id, model, date) in
        [("d", "credit-score", "2025-12-01"), ("b", "credit", "2025-12-01"), ("b", "credit-score", "2025-12-02")]
    {
        assert!(matches!(find(id, model, date).await, Err(SearchError::NotFound { .. })), "{id} {model} {date}");
    }
    let search = Search { request_id: "b".to_owned(), model: None, dates: Vec::new() };
    assert!(matches!(search.run(&bucket(&s3, "a wrong secret")).await, Err(SearchError::Sink(_))));
}

#[tokio::test]
async fn a_manifest_accounts_for_every_flush_that_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let s3 = S3::start().await;
    let mut gate = Gate::open(folder.path(), bucket(&s3, SECRET));
    let mut listed: BTreeMap<String, serde_json::Value> = BTreeMap::new();
    for flush in 1..=3 {
        gate.accept([format!("{flush} a"), format!("{flush} b")]).await;
        gate.flush().await;
        // A flush with nothing to write costs nothing.
        gate.flush().await;
        let mut manifests = s3.everything();
        manifests.retain(|(key, _)| key.contains("/_manifest/"));
        assert_eq!(manifests.len(), flush);
        for (key, page) in manifests {
            assert!(key.starts_with("drift/eu/_manifest/date=2025-12-01/") && extension(&key) == "json", "{key}");
            listed.insert(key, serde_json::from_slice(&page).unwrap());
        }
    }
    let objects = s3.objects();
    assert_eq!(objects.len(), 3);
    for (key, body) in &objects {
        let entries = listed.values().flat_map(|page| page["objects"].as_array().unwrap());
        let entries: Vec<_> =
            entries.filter(|entry| format!("drift/eu/{}", entry["key"].as_str().unwrap()) == *key).collect();
        let [entry] = entries[..] else { panic!("{key} is listed {} times", entries.len()) };
        assert_eq!((&entry["rows"], &entry["bytes"]), (&2.into(), &body.len().into()));
    }
    let last = listed.values().max_by_key(|page| page["counts"]["stored"].as_u64()).unwrap();
    let expected = serde_json::json!({
        "sampled": 6, "stored": 6, "dropped_queue_full": 0, "dropped_spool_full": 0, "failed": 0, "pending": 0,
    });
    assert_eq!((&last["counts"], &last["unlisted"]), (&expected, &0.into()));
}

/// Everything that capture leaves behind in `folder`: the spool before the flush, and the objects after it.
async fn left_behind(folder: &Path, format: Format, protect: Policy) -> Vec<(String, Vec<u8>)> {
    let mut gate = Gate::configured(folder, directory(folder), |config| {
        config.format = format;
        config.protect = protect;
    });
    gate.accept(["a"]).await;
    let mut all = segments(folder);
    gate.flush().await;
    all.extend(s3::files(&folder.join("samples")));
    assert_eq!(all.len(), 3, "a segment, an object and a manifest");
    all
}

/// Whether a value of the features is in any of the files, as text or as a float; Parquet is read, too.
fn canaries(files: &[(String, Vec<u8>)]) -> usize {
    let in_bytes = |bytes: &[u8]| {
        let doubles = bytes.windows(8).filter(|window| *window == 40.5_f64.to_le_bytes()).count();
        let texts = ["Doctor", "40.5"]
            .map(|text| bytes.windows(text.len()).filter(|window| *window == text.as_bytes()).count());
        doubles + texts.iter().sum::<usize>()
    };
    let read = |name: &str, bytes: &[u8]| -> String {
        if !name.ends_with(".parquet") {
            return String::new();
        }
        let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(bytes)).unwrap();
        reader.get_row_iter(None).unwrap().map(|line| line.unwrap().to_string()).collect()
    };
    files.iter().map(|(name, bytes)| in_bytes(bytes) + in_bytes(read(name, bytes).as_bytes())).sum()
}

#[tokio::test]
async fn no_protected_value_is_left_behind_in_any_format() {
    let names = || vec!["Age".to_owned(), "Job".to_owned()];
    let policies = [
        Policy { redact: names(), ..Policy::default() },
        Policy { hash: names(), ..Policy::default() },
        Policy { bucket: names().into_iter().map(|name| (name, 25.0)).collect(), ..Policy::default() },
    ];
    for format in [Format::Parquet, Format::Jsonl, Format::Csv] {
        let folder = tempfile::tempdir().unwrap();
        assert!(canaries(&left_behind(folder.path(), format, Policy::default()).await) >= 4, "the canaries sing");
        for policy in &policies {
            let folder = tempfile::tempdir().unwrap();
            let found = canaries(&left_behind(folder.path(), format, policy.clone()).await);
            assert_eq!(found, 0, "{format:?} {policy:?}");
        }
    }
}

/// The CSV of a sample whose job is hashed, by a deployment whose data is in `folder`.
async fn hashed_csv(folder: &Path) -> Vec<u8> {
    let protect = Policy { hash: vec!["Job".to_owned()], ..Policy::default() };
    let mut files = left_behind(folder, Format::Csv, protect).await;
    files.retain(|(name, _)| extension(name) == "csv");
    files.remove(0).1
}

#[tokio::test]
async fn a_hash_lasts_in_one_deployment_and_differs_between_two() {
    let [here, there] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = hashed_csv(here.path()).await;
    assert_ne!(first, hashed_csv(there.path()).await);
    fs::remove_dir_all(here.path().join("samples")).unwrap();
    assert_eq!(first, hashed_csv(here.path()).await);
}

#[tokio::test]
async fn an_object_that_a_killed_process_has_put_is_not_put_twice() {
    let folder = tempfile::tempdir().unwrap();
    let s3 = S3::start().await;
    let mut gate = Gate::open(folder.path(), bucket(&s3, SECRET));
    gate.accept(["a", "b"]).await;
    let killed = segments(folder.path());
    gate.flush().await;
    drop(gate);
    // As if the process had been killed between the object and the deletion of its segment.
    for (name, bytes) in &killed {
        fs::write(folder.path().join("spool").join(name), bytes).unwrap();
    }
    let (key, _) = s3.objects().remove(0);
    let first = (key, b"put first".to_vec());
    s3.overwrite(&first.0, &first.1);
    let mut gate = Gate::open(folder.path(), bucket(&s3, SECRET));
    assert_eq!(gate.flush().await.stored, 2);
    assert_eq!(gate.counts(), Counts { sampled: 2, stored: 2, ..Counts::default() });
    assert_eq!(s3.objects(), [first]);
    assert_eq!(segments(folder.path()), []);
}

#[tokio::test]
async fn samples_wait_while_the_bucket_refuses_and_the_next_process_sends_them() {
    let folder = tempfile::tempdir().unwrap();
    let s3 = S3::start().await;
    let mut gate = Gate::open(folder.path(), bucket(&s3, "a wrong secret"));
    gate.accept(["a", "b"]).await;
    let refused = Flushed { stored: 0, waiting: 2, objects: 0 };
    assert_eq!(gate.flush().await, refused);
    assert_eq!(gate.counts(), Counts { sampled: 2, pending: 2, ..Counts::default() });
    drop(gate);

    let mut gate = Gate::open(folder.path(), bucket(&s3, SECRET));
    assert_eq!(gate.flush().await, Flushed { stored: 2, waiting: 0, objects: 1 });
    assert_eq!(all_ids(&s3.objects()), ["a", "b"]);
}

#[tokio::test]
async fn samples_outlast_an_outage_and_leave_when_the_wait_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut s3 = S3::start().await;
    let mut gate = Gate::configured(folder.path(), bucket(&s3, SECRET), |config| {
        config.flush_rows = NonZeroU32::new(2).unwrap();
    });
    s3.stop().await;
    gate.accept((0..20).map(|id| format!("{id:02}"))).await;
    let down = Flushed { stored: 0, waiting: 20, objects: 0 };
    for minute in 0..5 {
        assert_eq!(gate.writer.flush_once(noon() + Duration::from_mins(minute), false).await, down);
    }
    s3.restart().await;
    let last_try = noon() + Duration::from_mins(4);
    assert_eq!(gate.writer.flush_once(last_try + Duration::from_secs(7), false).await, down, "asked too early");
    let back = gate.writer.flush_once(last_try + Duration::from_secs(16), false).await;
    assert_eq!(back, Flushed { stored: 20, waiting: 0, objects: 10 });
    assert_eq!(all_ids(&s3.objects()), (0..20).map(|id| format!("{id:02}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn six_hours_without_the_bucket_lose_nothing_and_drain_in_one_flush() {
    let folder = tempfile::tempdir().unwrap();
    let mut s3 = S3::start().await;
    let mut gate = Gate::open(folder.path(), bucket(&s3, SECRET));
    s3.stop().await;
    let mut ids = Vec::new();
    for minute in 0..6 * 60 {
        let batch: Vec<_> = (0..20).map(|id| format!("{minute:03}-{id:02}")).collect();
        gate.accept(&batch).await;
        ids.extend(batch);
        // Every segment is older than a minute at the next look.
        let now = noon() + Duration::from_secs(minute * 60);
        assert_eq!(gate.writer.flush_once(now, false).await.stored, 0);
    }
    assert_eq!(gate.counts(), Counts { sampled: 7200, pending: 7200, ..Counts::default() });
    let waiting = segments(folder.path()).len();
    assert!(waiting >= 300, "{waiting} segments");

    s3.restart().await;
    let back = noon() + Duration::from_hours(6) + Duration::from_mins(5);
    let drained = gate.writer.flush_once(back, false).await;
    assert_eq!((drained.stored, drained.waiting), (7200, 0), "six hours leave in the step of one second");
    assert_eq!(all_ids(&s3.objects()), ids);
    let manifests = s3.everything().iter().filter(|(key, _)| key.contains("/_manifest/")).count();
    assert_eq!(manifests, 1, "one manifest lists them all");
}

#[tokio::test]
async fn spooling_goes_on_while_a_sink_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = s3::client(silent.local_addr().unwrap(), SECRET);
    let sink = Sink::S3 { client, bucket: BUCKET.to_owned(), prefix: String::new() };
    let mut gate = Gate::open(folder.path(), sink);
    gate.accept(["a"]).await;
    let Gate { capture, mut writer, model } = gate;
    let spooled = async {
        let (_connection, _) = silent.accept().await.unwrap();
        assert_eq!(segments(folder.path()).len(), 1);
        capture.offer(&model.identity.name, 1, || model.record("b"));
        while segments(folder.path()).len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        flushed = writer.flush_once(noon(), true) => panic!("nobody answered, but {flushed:?}"),
        done = timeout(Duration::from_secs(30), spooled) => done.expect("nothing was spooled meanwhile"),
    }
    assert_eq!(capture.counts(), Counts { sampled: 2, pending: 2, ..Counts::default() });
}

#[tokio::test]
async fn a_segment_that_the_sink_refuses_does_not_hold_up_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut gate = Gate::open(folder.path(), directory(folder.path()));
    // A file stands where the partition of this model has to be.
    fs::create_dir(folder.path().join("samples")).unwrap();
    fs::write(folder.path().join("samples/model=blocked"), "").unwrap();
    let blocked = Model::new("blocked");
    for index in 0..10 {
        gate.capture.offer(&blocked.identity.name, 1, || blocked.record(&format!("blocked {index}")));
        gate.writer.spool_once().await.unwrap();
        gate.flush().await;
    }
    gate.accept(["free"]).await;
    for _ in 0..11 {
        gate.flush().await;
    }
    assert_eq!(gate.counts(), Counts { sampled: 11, stored: 1, pending: 10, ..Counts::default() });
}

#[tokio::test]
async fn a_full_spool_drops_the_newest_and_counts_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut gate = Gate::configured(folder.path(), directory(folder.path()), |config| config.spool_max_bytes = 1000);
    for id in 0..20 {
        gate.offer(&format!("{id:02}"));
    }
    let accepted = gate.writer.spool_once().await.unwrap();
    assert!((5..20).contains(&accepted), "{accepted}");
    let dropped_spool_full = 20 - accepted;
    assert_eq!(gate.counts(), Counts { sampled: 20, pending: accepted, dropped_spool_full, ..Counts::default() });
    gate.flush().await;
    gate.accept(["20"]).await;
    gate.flush().await;
    let kept: Vec<_> = (0..accepted).chain([20]).map(|id| format!("{id:02}")).collect();
    assert_eq!(all_ids(&s3::samples(&folder.path().join("samples"))), kept);
}

/// Ways in which a disk may change a segment behind the gateway's back.
#[derive(Clone, Copy, Debug)]
enum Damage {
    FlipByte,
    CutTail,
    ZeroStretch,
    HugeNumber,
    Garbage,
    Delete,
    SwapWithNext,
}

const DAMAGES: [Damage; 7] = [
    Damage::FlipByte,
    Damage::CutTail,
    Damage::ZeroStretch,
    Damage::HugeNumber,
    Damage::Garbage,
    Damage::Delete,
    Damage::SwapWithNext,
];

impl Damage {
    fn happen(self, path: &Path, next: &Path, random: &mut fastrand::Rng) {
        let mut bytes = fs::read(path).unwrap();
        let at = random.usize(..bytes.len());
        let end = bytes.len().min(at + 100);
        match self {
            Self::FlipByte => bytes[at] ^= 1 << random.u32(..8),
            Self::CutTail => bytes.truncate(at),
            Self::ZeroStretch => bytes[at..end].fill(0),
            Self::HugeNumber => bytes[at..end.min(at + 8)].fill(0xff),
            Self::Garbage => bytes[at..].fill_with(|| random.u8(..)),
            Self::Delete => return fs::remove_file(path).unwrap(),
            Self::SwapWithNext => {
                fs::write(path, fs::read(next).unwrap()).unwrap();
                return fs::write(next, bytes).unwrap();
            }
        }
        fs::write(path, bytes).unwrap();
    }
}

/// Leaves three segments of four samples in a folder.
async fn three_segments(folder: &Path) -> Gate {
    let four = NonZeroU32::new(4).unwrap();
    let mut gate = Gate::configured(folder, directory(folder), |config| config.flush_rows = four);
    gate.accept((0..12).map(|id| format!("{id:02}"))).await;
    gate
}

/// Damages one of three segments, before or after a restart, and checks what is delivered and what is counted.
async fn check_damage(damage: Damage, restart: bool, random: &mut fastrand::Rng) {
    let folder = tempfile::tempdir().unwrap();
    let mut gate = three_segments(folder.path()).await;
    let paths: Vec<_> =
        segments(folder.path()).iter().map(|(name, _)| folder.path().join("spool").join(name)).collect();
    // Names of segments are random, so ask the first which of the samples it holds.
    let damaged = first_id(&fs::read(&paths[0]).unwrap());
    let hit = |id: &usize| id / 4 == damaged / 4 && !matches!(damage, Damage::SwapWithNext);
    let untouched: Vec<_> = (0..12).filter(|id| !hit(id)).collect();
    damage.happen(&paths[0], &paths[1], random);
    if restart {
        drop(gate);
        gate = Gate::open(folder.path(), directory(folder.path()));
    }
    gate.flush().await;

    let delivered = all_ids(&s3::samples(&folder.path().join("samples")));
    let context = format!("{damage:?}, restart {restart}: {delivered:?}");
    let distinct: BTreeSet<_> = delivered.iter().map(|id| id.parse::<usize>().unwrap()).collect();
    assert_eq!(distinct.len(), delivered.len(), "{context}");
    assert!(untouched.iter().all(|id| distinct.contains(id)), "{context}");
    let counts = gate.counts();
    assert_eq!((counts.stored, counts.pending), (delivered.len() as u64, 0), "{context} {counts:?}");
    if !restart {
        assert_eq!(counts.failed, 12 - counts.stored, "{context}");
    }
    assert!(counts.stored + counts.failed <= 12, "{context} {counts:?}");
    assert_eq!(segments(folder.path()), [], "{context}");
}

/// The number of the first sample in a segment; ids are written as their length and two digits.
fn first_id(segment: &[u8]) -> usize {
    let id = segment.windows(3).rfind(|window| window[0] == 2 && window[1..].iter().all(u8::is_ascii_digit));
    std::str::from_utf8(&id.unwrap()[1..]).unwrap().parse().unwrap()
}

#[tokio::test]
async fn damage_costs_no_more_than_what_it_hit_and_is_counted() {
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..140 {
        check_damage(DAMAGES[round % DAMAGES.len()], round % 2 == 0, &mut random).await;
    }
}

/// What the child of the kill test does: accepts samples, says so, and now and then sends them, until it is killed. Reads
/// its folder and its first id from standard input.
#[test]
#[ignore = "runs as the child of another test"]
fn accepts_samples_until_it_is_killed() {
    let mut lines = std::io::stdin().lines().map(Result::unwrap);
    let folder = PathBuf::from(lines.next().unwrap());
    let mut next: u64 = lines.next().unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut gate = Gate::open(&folder, directory(&folder));
        loop {
            let ids: Vec<_> = (next..next + 5).map(|id| id.to_string()).collect();
            next += 5;
            gate.accept(&ids).await;
            println!("\naccepted {}", ids.join(" "));
            if next.is_multiple_of(7) {
                println!("\nstored {}", gate.flush().await.stored);
            }
        }
    });
}

/// Runs the child, kills it after `lines` lines of its output, and gives back the ids it said were accepted.
fn accepted_before_kill(folder: &TempDir, first: u64, lines: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "capture::accepts_samples_until_it_is_killed", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{}\n{first}", folder.path().display()).unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut heard: Vec<_> = output.by_ref().take(lines).collect();
    child.kill().unwrap();
    heard.extend(output);
    assert_eq!(child.wait().unwrap().signal(), Some(9), "the child ended by itself: {heard:?}");
    let accepted = heard.iter().filter_map(|line| line.strip_prefix("accepted "));
    accepted.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

#[tokio::test]
async fn an_accepted_sample_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut accepted = Vec::new();
    let mut unsent = 0;
    for kill in 0..20 {
        accepted.extend(accepted_before_kill(&folder, kill * 1_000_000, random.usize(5..150)));
        unsent += usize::from(!segments(folder.path()).is_empty());
    }
    println!("{} accepted, {unsent} of 20 kills left segments behind", accepted.len());
    assert!(accepted.len() > 500 && unsent >= 5, "the kills did not hit what they should");

    let mut gate = Gate::open(folder.path(), directory(folder.path()));
    assert_eq!(gate.flush().await.waiting, 0);
    let objects = s3::samples(&folder.path().join("samples"));
    assert!(objects.iter().all(|(name, _)| name.ends_with(".parquet")), "a partial object is left");
    let delivered = all_ids(&objects);
    let distinct: BTreeSet<_> = delivered.iter().collect();
    assert_eq!(distinct.len(), delivered.len(), "rows were delivered twice");
    let lost: Vec<_> = accepted.iter().filter(|id| !distinct.contains(id)).collect();
    assert!(lost.is_empty(), "lost {lost:?}");
}
