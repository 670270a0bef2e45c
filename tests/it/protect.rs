//! Canaries in protected features: they must show up nowhere, under no policy, in no kind of feature.

use std::fs;
use std::path::Path;
use std::process::Command;

use modelgate::capture::segment;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use serde_json::{Value, json};

use crate::process::Binary;
use crate::support::fixtures::expected;
use crate::support::s3::files;
use crate::support::site::{Answer, Site, eventually};

/// One canary in each class of features (long, double, text) under each policy that can be followed, and in a text whose
/// bucket cannot be. A number's digits occur nowhere else.
const CANARIES: [(&str, &str); 8] = [
    ("Num_of_Loan", "918273645"),
    ("Annual_Income", "746352819.5"),
    ("Occupation", "canary-left-out"),
    ("Age", "827364519"),
    ("Monthly_Inhand_Salary", "635281947.25"),
    ("Credit_Mix", "canary-hashed"),
    ("Outstanding_Debt", "528194736.75"),
    ("Payment_Behaviour", "canary-bucket"),
];

/// A canary in what is kept, to know that the search finds what is there.
const KEPT: (&str, &str) = ("Monthly_Balance", "419273645.5");

const POLICY: &str = "redact = [\"Num_of_Loan\", \"Annual_Income\", \"Occupation\"]\n\
    hash = [\"Age\", \"Monthly_Inhand_Salary\", \"Credit_Mix\"]\n\
    bucket = { Outstanding_Debt = 1000000, Payment_Behaviour = 10 }\n";

fn site(format: &str) -> Site {
    let site = Site::new(&format!(
        "[[model]]\nname = \"pipeline\"\nselect = \"version:1\"\n[plans.open]\n[drift]\nmin_rows = 20\nbaseline_rows = 20\n\
         by_key = true\n[feedback]\n[capture]\nsink = \"file:{{folder}}/samples\"\nformat = \"{format}\"\nfailed = true\n{POLICY}"
    ));
    site.register("pipeline", 1, "pipeline");
    site
}

/// A row full of canaries.
fn row() -> Value {
    let mut row = expected("pipeline").rows().next().unwrap();
    for (feature, canary) in CANARIES.iter().chain([&KEPT]) {
        row[*feature] = serde_json::from_str(canary).unwrap_or_else(|_| json!(canary));
    }
    row
}

/// What was written of an object, as text.
fn read(key: &str, bytes: &[u8]) -> String {
    if !key.ends_with(".parquet") {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(bytes)).unwrap();
    let metadata = format!("{:?}", reader.metadata());
    let lines: Vec<String> = reader.get_row_iter(None).unwrap().map(|line| line.unwrap().to_string()).collect();
    metadata + &lines.join("\n")
}

/// What a segment holds, as text: floats and varints are not their digits.
fn read_segment(bytes: &[u8]) -> String {
    format!("{:?}", segment::read(bytes).expect("a whole segment"))
}

#[track_caller]
fn check_clean(what: &str, text: &str) {
    for (feature, canary) in CANARIES {
        let digits = canary.split('.').next().unwrap();
        assert!(!text.contains(digits), "{what} tells `{feature}`: …{}…", around(text, digits));
    }
}

fn around(text: &str, found: &str) -> String {
    let at = text.find(found).unwrap();
    text.chars().skip(text[..at].chars().count().saturating_sub(80)).take(200).collect()
}

/// Runs a gateway that is told canaries in every way there is; gives back all it said and kept, by what it is.
async fn told(site: &mut Site) -> Vec<(String, String)> {
    let key = site.key("open");
    site.config();
    let file = site.folder().join("modelgate.toml");
    let gateway = Binary::serve_with(&file, &[("RUST_LOG", "debug,hyper=info,h2=info,ort=info")]);
    let http = reqwest::Client::builder().build().unwrap();
    gateway.ready(&http).await;
    let post = async |path: &str, body: Value| {
        let request = http.post(format!("http://{}{path}", gateway.data)).header("x-api-key", &key).json(&body);
        Answer::of(request.send().await.unwrap()).await
    };
    let answer = post("/models/pipeline/predict", json!({ "data": vec![row(); 60] })).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let id = answer.body["request_id"].as_str().unwrap().to_owned();
    let mut wrong = row();
    wrong["Delay_from_due_date"] = json!("not a number");
    assert_eq!(post("/models/pipeline/predict", json!({ "data": wrong })).await.status, 422);
    let truth = answer.body["predictions"][0]["prediction"].clone();
    assert_eq!(post("/feedback", json!({ "request_id": id, "label": truth })).await.status, 202);

    let mut said = Vec::new();
    let pages = [
        "/metrics",
        "/admin/models",
        "/admin/usage",
        "/admin/models/pipeline/drift?by=key",
        "/admin/models/pipeline/accuracy",
        "/admin/models/pipeline/history",
    ];
    for page in pages {
        let url = format!("http://{}{page}", gateway.admin);
        said.push((page.to_owned(), http.get(url).send().await.unwrap().text().await.unwrap()));
    }
    // What waits on the disk while the sink has nothing yet: the answered request's segment, and the failed one's.
    let spool = site.folder().join("data/spool");
    let is_whole = |(name, bytes): &(String, Vec<u8>)| {
        name.ends_with(".segment") && segment::read(bytes).is_some_and(|contents| !contents.samples.is_empty())
    };
    eventually("both samples on the disk", async || files(&spool).iter().filter(|file| is_whole(file)).count() == 2)
        .await;
    gateway.signal("KILL");
    let (_, log) = gateway.ended().await;
    said.push(("the log".to_owned(), log));
    let folder = site.folder().join("data");
    for (name, bytes) in files(&folder) {
        let text = if name.ends_with(".segment") {
            read_segment(&bytes)
        } else {
            String::from_utf8_lossy(&bytes).into_owned()
        };
        said.push((format!("data_dir/{name}"), text));
    }
    let gateway = Binary::serve_with(&file, &[]);
    gateway.ready(&http).await;
    // Enough for a baseline of live rows, of which a stop in order keeps what it may.
    let url = format!("http://{}/models/pipeline/predict", gateway.data);
    let request = http.post(url).header("x-api-key", &key).json(&json!({ "data": vec![row(); 60] }));
    assert_eq!(request.send().await.unwrap().status(), 200);
    gateway.signal("TERM");
    assert!(gateway.ended().await.0.success());
    let stopped = files(&folder).into_iter().filter(|(name, _)| !name.ends_with(".segment"));
    said.extend(
        stopped.map(|(name, bytes)| {
            (format!("data_dir/{name} after a stop"), String::from_utf8_lossy(&bytes).into_owned())
        }),
    );
    let samples = files(&site.folder().join("samples"));
    assert!(
        samples.iter().any(|(key, _)| !key.starts_with('_'))
            && samples.iter().any(|(key, _)| key.starts_with("_labels"))
    );
    let has_failed =
        |(key, bytes): &(String, Vec<u8>)| key.starts_with("_failed/") && read(key, bytes).contains(KEPT.1);
    assert!(samples.iter().any(has_failed), "the failed request is kept as far as it may be");
    said.extend(samples.iter().map(|(key, bytes)| (key.clone(), read(key, bytes))));
    said.push(("replay".to_owned(), replay(&file, &id)));
    said
}

fn replay(file: &Path, id: &str) -> String {
    let command =
        Command::new(env!("CARGO_BIN_EXE_modelgate")).args(["replay", id, "--config"]).arg(file).output().unwrap();
    assert_eq!(command.status.code(), Some(1));
    String::from_utf8([command.stdout, command.stderr].concat()).unwrap()
}

/// The hash of `Credit_Mix` in a deployment.
async fn check_format(format: &str) -> Option<String> {
    let mut site = site(format);
    let said = told(&mut site).await;
    for (what, text) in &said {
        if !what.ends_with("replay") {
            check_clean(what, text);
        }
    }
    let kept = said.iter().filter(|(_, text)| text.contains("419273645.5")).count();
    assert!(kept >= 2, "what is kept is in the spool and in the sink, so canaries would have been found");
    let (_, replayed) = said.last().unwrap();
    let reason = "Age was hashed, Num_of_Loan was left out, Annual_Income was left out";
    assert!(replayed.contains("does not hold all that was asked"), "{replayed}");
    for part in reason.split(", ") {
        assert!(replayed.contains(part), "{replayed}");
    }
    assert!(replayed.contains("Outstanding_Debt was rounded"), "{replayed}");
    let metrics = &said[0].1;
    assert!(metrics.contains(r#"feature="Monthly_Balance""#) && !metrics.contains(r#"feature="Occupation",category"#));
    let hash = said.iter().find_map(|(key, text)| {
        Path::new(key).extension().is_some_and(|extension| extension == "csv").then(|| hash_in(text)).flatten()
    });
    fs::remove_dir_all(site.folder().join("samples")).unwrap();
    hash
}

/// The first text of 32 hexadecimal digits in the line of a sample.
fn hash_in(text: &str) -> Option<String> {
    let is_hash = |field: &&str| field.len() == 32 && field.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.lines().nth(1)?.split(',').find(is_hash).map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_canary_is_in_parquet_or_anywhere_else() {
    check_format("parquet").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_canary_is_in_json_lines_or_anywhere_else() {
    check_format("jsonl").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_canary_is_in_csv_and_hashes_differ_between_deployments() {
    let (one, other) = (check_format("csv").await, check_format("csv").await);
    assert!(one.is_some() && other.is_some() && one != other, "{one:?} {other:?}");
}
