//! `modelgate replay`: what was sampled is asked again of the version that answered it, by the binary, as an operator would.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::fixtures;
use crate::support::s3::{ACCESS_KEY, BUCKET, S3, SECRET, files};
use crate::support::site::Site;

const KINDS: [&str; 5] = ["logistic", "one-hot", "regression", "text-classes", "forest-zipmap"];

/// A configuration that serves the fixtures and keeps samples in a directory.
fn file_with(more: &str) -> String {
    let model = |kind: &&str| {
        let one_hot = if *kind == "one-hot" { "[model.features]\none_hot = [\"Occupation\"]\n" } else { "" };
        let more = if *kind == "text-classes" { more } else { "" };
        format!("[[model]]\nname = \"{kind}\"\nselect = \"version:1\"\n{more}{one_hot}")
    };
    let models: String = KINDS.iter().map(model).collect();
    format!("[plans.open]\n{models}[capture]\nsink = \"file:{{folder}}/samples\"\n")
}

/// Runs the command on the site's file, or on another one: its exit code, and all it said.
fn replay(site: &Site, file: &str, arguments: &[&str]) -> (i32, String) {
    let command = Command::new(env!("CARGO_BIN_EXE_modelgate"))
        .arg("replay")
        .args(arguments)
        .arg("--config")
        .arg(site.folder().join(file))
        .output()
        .unwrap();
    let said = [command.stdout, command.stderr].concat();
    (command.status.code().unwrap(), String::from_utf8(said).unwrap())
}

/// Asks every fixture its rows in one request each, and gives back the ids.
async fn asked(site: &mut Site) -> Vec<(&'static str, String)> {
    let gate = site.start("open").await;
    let mut ids = Vec::new();
    for kind in KINDS {
        gate.serves(kind, 1).await;
        let rows: Vec<_> = fixtures::expected(kind).rows().collect();
        let answer = gate.predict(kind, &json!(rows)).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        ids.push((kind, answer.body["request_id"].as_str().unwrap().to_owned()));
    }
    gate.stop().await;
    ids
}

fn write(site: &Site, name: &str, text: &str) {
    let text = text.replace("{folder}", &site.folder().display().to_string());
    let before = fs::read_to_string(site.folder().join("modelgate.toml")).unwrap();
    let own = before.split("[plans.open]").next().unwrap();
    fs::write(site.folder().join(name), format!("{own}{text}")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_request_is_answered_the_same_by_the_version_that_answered_it() {
    let mut site = Site::new(&file_with(""));
    for kind in KINDS {
        site.register(kind, 1, kind);
    }
    let ids = asked(&mut site).await;
    for (kind, id) in &ids {
        let (code, said) = replay(&site, "modelgate.toml", &[id]);
        assert_eq!(code, 0, "{kind}: {said}");
        assert!(
            said.ends_with("identical\n") && said.contains(&format!("{kind} version 1 (sha-256:")),
            "{kind}: {said}"
        );
        assert_eq!(said.matches("  replayed  ").count(), fixtures::expected(kind).rows().count(), "{said}");
    }
    let (kind, id) = &ids[3];
    let samples = site.folder().join("samples");
    let named = ["--samples", samples.to_str().unwrap(), "--model", kind, "--date", &day_of(&samples, kind)];
    assert_eq!(replay(&site, "modelgate.toml", &[&[&**id], &named[..]].concat()).0, 0);

    // What decides the class is configuration, and the operator has changed it.
    write(&site, "strict.toml", &file_with("threshold = 1.0\n"));
    let (code, said) = replay(&site, "strict.toml", &[id]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("different\n"), "{said}");
}

/// The date in the key of a model's only object.
fn day_of(samples: &Path, kind: &str) -> String {
    let entry = fs::read_dir(samples.join(format!("model={kind}/version=1"))).unwrap().next().unwrap().unwrap();
    entry.file_name().to_str().unwrap().strip_prefix("date=").unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_replayed_says_why() {
    let mut site = Site::new(&(file_with("") + "redact = [\"Occupation\"]\n"));
    for kind in KINDS {
        site.register(kind, 1, kind);
    }
    let ids = asked(&mut site).await;
    let check = |arguments: &[&str], text: &str| {
        let (code, said) = replay(&site, "modelgate.toml", arguments);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(text), "{said}");
    };
    check(&["order-77"], "no sample of request `order-77` in 5 objects");
    check(&[&ids[0].1, "--model", "one-hot"], "in 1 objects");
    check(&[&ids[0].1, "--date", "2020-01-01"], "in 0 objects");
    check(&[&ids[0].1, "--samples", "gs://bucket"], "neither s3://bucket/prefix nor a directory");
    check(&[&ids[0].1, "--samples", "nowhere"], "the samples cannot be read");
    check(&[&ids[1].1], "does not hold all that was asked, so it cannot be asked again: Occupation was left out");
    fs::remove_dir_all(site.folder().join("data/cache/sha256")).unwrap();
    let (code, said) = replay(&site, "modelgate.toml", &[&ids[2].1]);
    assert_eq!(code, 0, "the registry still has it: {said}");
    let changed = site.registry().join("regression/1/input_example.json");
    fs::write(changed, "{}").unwrap();
    check(&[&ids[2].1], "the registry has other bytes under that number");
    fs::remove_dir_all(site.registry().join("regression")).unwrap();
    check(&[&ids[2].1], "is not in the model cache");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_is_replayed_like_parquet() {
    for format in ["csv", "jsonl"] {
        let mut site = Site::new(&(file_with("") + &format!("format = \"{format}\"\n")));
        for kind in KINDS {
            site.register(kind, 1, kind);
        }
        for (kind, id) in asked(&mut site).await {
            let (code, said) = replay(&site, "modelgate.toml", &[&id, "--model", kind, "--json"]);
            assert_eq!(code, 0, "{format} {kind}: {said}");
            let report: serde_json::Value = serde_json::from_str(&said).unwrap();
            let rows = report["rows"].as_array().unwrap();
            assert_eq!(
                (&report["verdict"], rows.len()),
                (&json!("identical"), fixtures::expected(kind).rows().count())
            );
            assert_eq!(rows[0]["stored"]["prediction"], rows[0]["replayed"]["prediction"], "{report}");
            assert_eq!((&report["model"], &report["version"]), (&json!(kind), &json!("1")));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_of_samples_is_replayed_from() {
    let s3 = S3::start().await;
    let mut site = Site::new(&file_with(""));
    for kind in KINDS {
        site.register(kind, 1, kind);
    }
    let ids = asked(&mut site).await;
    for (key, bytes) in files(&site.folder().join("samples")) {
        let put = s3.client(SECRET).put_object().bucket(BUCKET).key(format!("drift/{key}")).body(bytes.into());
        put.send().await.unwrap();
    }
    let environment = [
        ("AWS_ENDPOINT_URL", s3.endpoint()),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelgate"));
    command
        .args(["replay", &ids[0].1, "--samples", &format!("s3://{BUCKET}/drift"), "--config"])
        .arg(site.folder().join("modelgate.toml"))
        .envs(environment)
        .env("AWS_EC2_METADATA_DISABLED", "true");
    let output = command.output().unwrap();
    assert!(
        output.status.success() && output.stdout.ends_with(b"identical\n"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
