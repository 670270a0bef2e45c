//! Labels through the front door: who may send them, what becomes of them, and that a kill takes none of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use modelgate::auth::{ApiKeys, NewKey};
use modelgate::clock::Clock;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::process::Binary;
use crate::support::fixtures::expected;
use crate::support::s3::files;
use crate::support::site::{Client, Gate, Site, eventually};

const CONFIGURATION: &str = "[[model]]\nname = \"text-classes\"\nselect = \"version:1\"\n\
    [[model]]\nname = \"regression\"\nselect = \"version:1\"\n[plans.open]\n[plans.other]\n\
    [capture]\nsink = \"file:{folder}/samples\"\nformat = \"jsonl\"\n";

fn site(more: &str) -> Site {
    let site = Site::new(&format!("{CONFIGURATION}{more}"));
    for kind in ["text-classes", "regression"] {
        site.register(kind, 1, kind);
    }
    site
}

async fn serving(site: &mut Site) -> Gate {
    let gate = site.start("open").await;
    gate.serves("text-classes", 1).await;
    gate.serves("regression", 1).await;
    gate
}

/// Asks for the rows of a fixture; the id of the answer, and the predictions.
async fn ask(gate: &Gate, kind: &str) -> (String, Vec<Value>) {
    let rows: Vec<_> = expected(kind).rows().collect();
    let answer = gate.predict(kind, &json!(rows)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let id = answer.body["request_id"].as_str().unwrap().to_owned();
    (id, answer.body["predictions"].as_array().unwrap().clone())
}

async fn label(client: &Client, body: &Value) -> Value {
    let answer = client.post("/feedback", body.to_string()).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    answer.body
}

async fn accuracy(gate: &Gate, model: &str) -> Value {
    let answer = gate.get(gate.admin, &format!("/admin/models/{model}/accuracy")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

/// Counts of a receipt: matched, changed, duplicate, unknown, refused.
fn counts(receipt: &Value) -> [u64; 5] {
    ["matched", "changed", "duplicate", "unknown", "refused"].map(|name| receipt[name].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_tell_how_right_a_version_is() {
    let mut site = site("[feedback]\n");
    let gate = serving(&mut site).await;
    let (id, predictions) = ask(&gate, "text-classes").await;
    let classes: Vec<&str> = predictions[0]["probabilities"].as_object().unwrap().keys().map(String::as_str).collect();
    let truths: Vec<&str> = (0..predictions.len()).map(|row| classes[row % classes.len()]).collect();
    let receipt = label(&gate.client(), &json!({ "request_id": id, "labels": truths })).await;
    assert_eq!(counts(&receipt), [truths.len() as u64, 0, 0, 0, 0], "{receipt}");

    // By hand, from the answers as the caller saw them.
    let rows = predictions.iter().zip(&truths);
    let right = rows.clone().filter(|(found, truth)| found["prediction"] == **truth).count();
    let loss: f64 =
        rows.clone().map(|(found, truth)| -found["probabilities"][*truth].as_f64().unwrap().max(1e-15).ln()).sum();
    #[expect(clippy::cast_precision_loss, reason = "a few rows")]
    let (right, all) = (right as f64, truths.len() as f64);
    let report = accuracy(&gate, "text-classes").await;
    let version = &report["versions"][0];
    assert_eq!((&version["version"], &version["labelled_rows"]), (&json!("1"), &json!(truths.len())));
    assert!((version["accuracy"].as_f64().unwrap() - right / all).abs() < 1e-12, "{version}");
    assert!((version["log_loss"].as_f64().unwrap() - loss / all).abs() < 1e-6, "{version}");
    for cell in version["confusion"].as_array().unwrap() {
        let is_it =
            |(found, truth): &(&Value, &&str)| found["prediction"] == cell["predicted"] && cell["actual"] == **truth;
        assert_eq!(cell["rows"], rows.clone().filter(is_it).count(), "{cell}");
    }
    assert_eq!(version["days"].as_array().unwrap().len(), 1);

    let (id, predictions) = ask(&gate, "regression").await;
    let first = predictions[0]["prediction"].as_f64().unwrap();
    label(&gate.client(), &json!({ "request_id": id, "label": first + 2.0 })).await;
    let version = &accuracy(&gate, "regression").await["versions"][0];
    assert!((version["bias"].as_f64().unwrap() + 2.0).abs() < 1e-9, "{version}");

    let page = gate.http.get(format!("http://{}/metrics", gate.admin));
    eventually("the accuracy on /metrics", async || {
        let page = page.try_clone().unwrap().send().await.unwrap().text().await.unwrap();
        page.contains(r#"modelgate_accuracy{model="text-classes",version="1"}"#)
            && page
                .contains(&format!("modelgate_labelled_rows{{model=\"text-classes\",version=\"1\"}} {}", truths.len()))
            && page.contains(r#"modelgate_rmse{model="regression",version="1"}"#)
            && page.contains(r#"modelgate_feedback_labels_total{outcome="matched"}"#)
    })
    .await;
    gate.stop().await;

    // The capture and its ground truth name the same events, row for row.
    let objects = files(&site.folder().join("samples"));
    let events = |is_meant: &dyn Fn(&str) -> bool, data: &str| -> Vec<(String, usize)> {
        let texts = objects.iter().filter(|(key, _)| {
            Path::new(key).extension().is_some_and(|extension| extension == "jsonl") && is_meant(key)
        });
        let lines = texts.flat_map(|(_, bytes)| std::str::from_utf8(bytes).unwrap().lines());
        let lines = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
        let event = |line: Value| {
            let rows = line.pointer(data).unwrap().as_str().unwrap().split('\n').count();
            (line["eventMetadata"]["eventId"].as_str().unwrap().to_owned(), rows)
        };
        lines.map(event).collect()
    };
    let captured = events(&|key| key.starts_with("text-classes/"), "/captureData/endpointOutput/data");
    let truth = events(&|key| key.starts_with("_labels/text-classes/1/"), "/groundTruthData/data");
    assert_eq!((captured.len(), &captured), (1, &truth));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_labels_its_own_answers_and_no_others() {
    let mut site = site("[feedback]\nmax_labels = 3\n");
    let (other, narrow) = (site.key("other"), scoped_key(&mut site, "predict:* usage:read"));
    let elsewhere = scoped_key(&mut site, "predict:* feedback:regression");
    let gate = serving(&mut site).await;
    let (id, predictions) = ask(&gate, "text-classes").await;
    let truth = predictions[0]["prediction"].clone();
    let one = json!({ "request_id": id, "label": truth });

    let theirs = label(&gate.client_with(other.clone()), &one).await;
    let nobodys = label(&gate.client_with(other), &json!({ "request_id": "nobody", "label": truth })).await;
    assert_eq!(theirs, nobodys, "whether somebody else has it is not told");
    assert_eq!(counts(&theirs), [0, 0, 0, 1, 0]);
    assert_eq!(accuracy(&gate, "text-classes").await["versions"], json!([]));

    let refused = async |client: Client, body: &str, status: u16, code: &str| {
        let answer = client.post("/feedback", body.to_owned()).await;
        assert_eq!((answer.status, &answer.body["code"]), (status, &json!(code)), "{body}: {}", answer.body);
        answer.body
    };
    let one = one.to_string();
    refused(gate.client_with(narrow), &one, 403, "forbidden").await;
    refused(gate.client_with("mg_live_nobody".to_owned()), &one, 401, "unauthenticated").await;
    refused(gate.client(), "{", 400, "malformed_json").await;
    refused(gate.client(), r#"{"request_id":"a","labels":[1,1,1,1]}"#, 413, "payload_too_large").await;
    // Another account's key: it has no such answer, whatever its scopes.
    assert_eq!(
        counts(&label(&gate.client_with(elsewhere), &serde_json::from_str(&one).unwrap()).await),
        [0, 0, 0, 1, 0]
    );
    let wrong = json!({ "request_id": id, "label": "no such class" }).to_string();
    let body = refused(gate.client(), &wrong, 422, "invalid_input").await;
    assert!(body["errors"][0]["expected"].as_str().unwrap().starts_with("one of "), "{body}");
    let mixed = json!([{ "request_id": id, "label": truth }, { "request_id": id, "row": 9999, "label": truth }]);
    let receipt = label(&gate.client(), &mixed).await;
    assert_eq!((counts(&receipt), &receipt["errors"][0]["feature"]), ([1, 0, 0, 0, 1], &json!("row")));
    assert_eq!(counts(&label(&gate.client(), &serde_json::from_str(&one).unwrap()).await), [0, 0, 1, 0, 0]);
    assert_eq!(gate.get(gate.admin, "/admin/models/nobody/accuracy").await.status, 404);
    gate.stop().await;
}

fn scoped_key(site: &mut Site, scopes: &str) -> String {
    site.key("open");
    let keys = ApiKeys::open(site.config().auth, &mut getrandom::fill).unwrap();
    let new = NewKey { name: "narrow".into(), plan: "open".into(), expires: None, scopes: scopes.parse().unwrap() };
    keys.issue(new, Clock::system().now(), &mut getrandom::fill).unwrap().1.expose_secret().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_section_no_labels_are_taken() {
    let mut site = site("");
    let gate = serving(&mut site).await;
    let answer = gate.client().post("/feedback", r#"{"request_id":"a","label":1}"#).await;
    assert_eq!((answer.status, &answer.body["code"]), (404, &json!("not_found")));
    assert_eq!(gate.get(gate.admin, "/admin/models/regression/accuracy").await.status, 404);
    gate.stop().await;
    assert!(!site.folder().join("data/feedback.db").exists());
}

/// Labels in all objects, by request id.
fn stored_labels(site: &Site) -> Vec<String> {
    let objects = files(&site.folder().join("samples")).into_iter().filter(|(key, _)| key.starts_with("_labels/"));
    let id = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap()["eventMetadata"]["eventId"].as_str().unwrap().to_owned()
    };
    let mut ids: Vec<String> = objects
        .flat_map(|(_, bytes)| std::str::from_utf8(&bytes).unwrap().lines().map(id).collect::<Vec<_>>())
        .collect();
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_accepted_label_is_lost_by_a_kill() {
    let mut site = site("[feedback]\n");
    let key = site.key("open");
    site.config();
    let file = site.folder().join("modelgate.toml");
    let http = reqwest::Client::builder().build().unwrap();
    let post = async |address: std::net::SocketAddr, path: &str, body: Value| -> Value {
        let request = http.post(format!("http://{address}{path}")).header("x-api-key", &key).json(&body);
        request.send().await.unwrap().json().await.unwrap()
    };
    let row = expected("regression").rows().next().unwrap();
    let mut accepted = Vec::new();
    for life in 0..3 {
        let gateway = Binary::serve_with(&file, &[]);
        gateway.ready(&http).await;
        for number in 0..5 {
            let answer = post(gateway.data, "/models/regression/predict", json!({ "data": row })).await;
            let id = answer["request_id"].as_str().unwrap().to_owned();
            let receipt = post(gateway.data, "/feedback", json!({ "request_id": id, "label": number })).await;
            assert_eq!(receipt["matched"], 1, "life {life}: {receipt}");
            accepted.push(id);
        }
        gateway.signal("KILL");
        gateway.ended().await;
    }
    let gateway = Binary::serve_with(&file, &[]);
    gateway.ready(&http).await;
    let url = format!("http://{}/admin/models/regression/accuracy", gateway.admin);
    let report: Value = http.get(url).send().await.unwrap().json().await.unwrap();
    assert_eq!(report["versions"][0]["labelled_rows"], 15, "{report}");
    let again = post(gateway.data, "/feedback", json!({ "request_id": accepted[0], "label": 0 })).await;
    assert_eq!(again["duplicate"], 1, "what came before a kill is remembered: {again}");
    gateway.signal("TERM");
    assert!(gateway.ended().await.0.success());
    accepted.sort();
    assert_eq!(stored_labels(&site), accepted);
}

#[test]
fn labels_without_samples_need_no_sink() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gate.toml");
    fs::write(&file, "[[model]]\nname = \"m\"\n[feedback]\nage = \"1h\"\n").unwrap();
    let check =
        Command::new(env!("CARGO_BIN_EXE_modelgate")).arg("check-config").arg("--config").arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && said.contains("age = \"1h\""), "{said}");
}
