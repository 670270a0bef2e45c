//! Samples from the request path to objects, over a real S3 protocol. What goes wrong on the way is in durability.rs.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;

use modelgate::capture::protect::Policy;
use modelgate::capture::sink::Sink;
use modelgate::capture::stored::{Search, SearchError};
use modelgate::capture::{Counts, Flushed, Format};
use modelgate::model::Digest;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::support::s3::{self, BUCKET, S3, SECRET};
use crate::support::samples::{Gate, Model, all_ids, bucket, directory, ids, noon, segments};

/// What a key ends in.
fn extension(key: &str) -> &str {
    key.rsplit_once('.').map_or("", |(_, extension)| extension)
}

#[tokio::test]
async fn samples_reach_the_bucket() {
    let folder = tempfile::tempdir().unwrap();
    let s3 = S3::start().await;
    let mut gate = Gate::open(folder.path(), bucket(&s3, SECRET));
    gate.accept(["a", "b", "c"]).await;
    assert_eq!(gate.counts(), Counts { sampled: 3, pending: 3, ..Counts::default() });
    assert_eq!(gate.flush().await, Flushed { stored: 3, waiting: 0, objects: 1, accepted: 0 });
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
    assert_eq!(gate.flush().await, Flushed { stored: 2, waiting: 0, objects: 1, accepted: 0 });
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
    let refused = Flushed { stored: 0, waiting: 2, objects: 0, accepted: 0 };
    assert_eq!(gate.flush().await, refused);
    assert_eq!(gate.counts(), Counts { sampled: 2, pending: 2, ..Counts::default() });
    drop(gate);

    let mut gate = Gate::open(folder.path(), bucket(&s3, SECRET));
    assert_eq!(gate.flush().await, Flushed { stored: 2, waiting: 0, objects: 1, accepted: 0 });
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
    let down = Flushed { stored: 0, waiting: 20, objects: 0, accepted: 0 };
    for minute in 0..5 {
        assert_eq!(gate.writer.flush_once(noon() + Duration::from_mins(minute), false).await, down);
    }
    s3.restart().await;
    let last_try = noon() + Duration::from_mins(4);
    assert_eq!(gate.writer.flush_once(last_try + Duration::from_secs(7), false).await, down, "asked too early");
    let back = gate.writer.flush_once(last_try + Duration::from_secs(16), false).await;
    assert_eq!(back, Flushed { stored: 20, waiting: 0, objects: 10, accepted: 0 });
    assert_eq!(all_ids(&s3.objects()), (0..20).map(|id| format!("{id:02}")).collect::<Vec<_>>());
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
