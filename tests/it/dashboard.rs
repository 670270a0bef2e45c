//! The dashboard and its alarms: what is printed, and what a strict CloudWatch takes.

use std::fs;
use std::path::Path;
use std::process::Command;

use aws_sdk_cloudwatch::error::ProvideErrorMetadata as _;
use modelgate::metrics::Mode;
use modelgate::metrics::dashboard::{self, DashboardError, Scope};
use serde_json::{Value, json};

use crate::support::cloudwatch::CloudWatch;
use crate::support::panel;

const FILE: &str = "[[model]]\nname = \"credit-score\"\n[[model]]\nname = \"churn\"\n[metrics.cloudwatch]\n";

/// Runs the command on `FILE`: its exit code, its output, and what it said beside that.
fn run(arguments: &[&str], endpoint: &str) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gate.toml");
    fs::write(&file, FILE).unwrap();
    run_in(folder.path(), &file, arguments, endpoint, "")
}

/// The same, of a file there is, for somebody who types `answer`.
fn run_in(folder: &Path, file: &Path, arguments: &[&str], endpoint: &str, answer: &str) -> (i32, String, String) {
    let typed = folder.join("answer");
    fs::write(&typed, answer).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_modelgate"))
        .stdin(fs::File::open(typed).unwrap())
        .arg("dashboard")
        .args(arguments)
        .arg("--config")
        .arg(file)
        .env("AWS_ENDPOINT_URL_CLOUDWATCH", endpoint)
        .env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_REGION", "eu-west-1")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn scope() -> Scope {
    Scope {
        namespace: "ModelGate".to_owned(),
        region: "eu-west-1".to_owned(),
        mode: Mode::Full,
        models: vec!["credit-score".to_owned()],
        actions: Vec::new(),
    }
}

async fn cloudwatch() -> CloudWatch {
    CloudWatch::start("2025-12-01T12:00:00Z".parse().unwrap()).await
}

#[test]
fn the_printed_body_is_one_and_its_price_stands_beside_it() {
    let (code, body, price) = run(&["print", "--features", "21"], "http://127.0.0.1:9");
    assert_eq!(code, 0, "{price}");
    panel::check_body(&body).unwrap();
    assert!(
        body.contains("SEARCH('{\\\"ModelGate\\\",Model,Feature} MetricName=\\\"PSI\\\"', 'Maximum', 3600)"),
        "{body}"
    );
    assert!(price.starts_with("165 metrics, $53.63 a month before what is free\n"), "{price}");
    assert!(price.contains("165 metrics    $    49.50   2 models of 21 numeric and 0 text features"), "{price}");
    assert!(price.contains("7 alarms     $     0.70"), "{price}");
    assert!(
        price.contains("list prices of us-east-1 in November 2026 (check https://aws.amazon.com/cloudwatch/pricing/)"),
        "{price}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_cloudwatch_takes_dashboard_and_alarms_and_putting_again_changes_nothing() {
    let cloudwatch = cloudwatch().await;
    let endpoint = cloudwatch.endpoint().to_owned();
    let put = move || {
        run(&["put", "--yes", "--name", "gate", "--alarm-action", "arn:aws:sns:eu-west-1:1:on-call"], &endpoint)
    };
    let (code, said, price) = tokio::task::spawn_blocking(put.clone()).await.unwrap();
    assert_eq!((code, &*said), (0, "put dashboard gate and 7 alarms in eu-west-1\n"), "{price}");
    let (dashboards, alarms) = (cloudwatch.dashboards(), cloudwatch.alarms());
    assert_eq!(dashboards.keys().collect::<Vec<_>>(), ["gate"]);
    let names: Vec<_> = alarms.iter().map(|alarm| &*alarm.name).collect();
    let mut expected: Vec<String> = ["churn", "credit-score"]
        .iter()
        .flat_map(|model| ["drift", "errors", "latency"].map(|what| format!("ModelGate {model} {what}")))
        .collect();
    expected.push("ModelGate series refused".to_owned());
    assert_eq!(names, expected);
    let drift = &alarms[0];
    assert_eq!((&*drift.metric, &*drift.statistic, drift.actions), ("DriftedFeatures", "Maximum", 1));
    assert_eq!(drift.dimensions, [("Model".to_owned(), "churn".to_owned())]);
    assert_eq!(alarms[2].statistic, "p99");

    tokio::task::spawn_blocking(put).await.unwrap();
    assert_eq!((cloudwatch.dashboards(), cloudwatch.alarms()), (dashboards, alarms));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_put_until_somebody_has_seen_the_price_and_says_yes() {
    let cloudwatch = cloudwatch().await;
    let endpoint = cloudwatch.endpoint().to_owned();
    let put = move |answer: &'static str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gate.toml");
        fs::write(&file, FILE).unwrap();
        run_in(folder.path(), &file, &["put"], &endpoint, answer)
    };
    for answer in ["", "n\n", "perhaps\n"] {
        let put = put.clone();
        let (code, said, told) = tokio::task::spawn_blocking(move || put(answer)).await.unwrap();
        assert_eq!((code, &*said), (1, ""), "{told}");
        assert!(told.contains(" a month before what is free") && told.contains("say --yes"), "{told}");
        assert!(cloudwatch.dashboards().is_empty() && cloudwatch.alarms().is_empty());
    }
    let (code, _, told) = tokio::task::spawn_blocking(move || put("y\n")).await.unwrap();
    assert_eq!(code, 0, "{told}");
    assert_eq!((cloudwatch.dashboards().len(), cloudwatch.alarms().len()), (1, 7));
}

#[test]
fn what_is_written_as_lines_costs_its_lines_and_a_lean_gateway_has_few_graphs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gate.toml");
    fs::write(&file, "[[model]]\nname = \"churn\"\n[metrics.emf]\nnamespace = \"Lines\"\nmode = \"lean\"\n").unwrap();
    let (code, body, price) = run_in(folder.path(), &file, &["print"], "http://127.0.0.1:9", "");
    assert_eq!(code, 0, "{price}");
    panel::check_body(&body).unwrap();
    assert!(price.starts_with("7 metrics, $5.56 a month") && price.contains("log lines"), "{price}");
    assert!(body.contains("\\\"Lines\\\",Model}") && !body.contains("Model,Version"), "{body}");
}

#[tokio::test]
async fn what_cloudwatch_would_refuse_is_refused_here() {
    let cloudwatch = cloudwatch().await;
    let client = cloudwatch.client();
    assert!(matches!(dashboard::put(&client, "a b", &scope()).await, Err(DashboardError::Name(_))));
    let scope = Scope { actions: vec!["arn".to_owned(); 6], ..scope() };
    assert!(matches!(dashboard::put(&client, "gate", &scope).await, Err(DashboardError::Actions)));
    assert!(cloudwatch.dashboards().is_empty() && cloudwatch.alarms().is_empty());

    let bad = client.put_dashboard().dashboard_name("gate").dashboard_body("{\"widgets\":[{}]}").send().await;
    assert_eq!(bad.unwrap_err().code(), Some("DashboardInvalidInputError"));
}

/// Breaks a good body and sees the schema refuse it.
#[track_caller]
fn check_refused(change: impl FnOnce(&mut Value)) {
    let mut body = dashboard::body(&scope()).unwrap();
    panel::check_body(&body.to_string()).unwrap();
    change(&mut body);
    assert!(panel::check_body(&body.to_string()).is_err(), "{body}");
}

#[test]
fn the_schema_refuses_what_is_wrong() {
    check_refused(|body| body["widgets"][1]["type"] = json!("nonsense"));
    check_refused(|body| body["widgets"][1]["width"] = json!(25));
    check_refused(|body| body["widgets"][2]["x"] = json!(0));
    check_refused(|body| body["widgets"][1]["properties"]["period"] = json!(17));
    check_refused(|body| body["widgets"][1]["properties"]["metrics"] = json!([]));
    check_refused(|body| body["widgets"][1]["properties"]["colour"] = json!("red"));
    let expression = "SEARCH('{ModelGate,Model MetricName=\"PSI\"', 'Maximum', 300)";
    check_refused(|body| body["widgets"][1]["properties"]["metrics"][0][0]["expression"] = json!(expression));
}
