//! The dashboard and its alarms: what is printed, and what a strict CloudWatch takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use aws_sdk_cloudwatch::error::ProvideErrorMetadata as _;
use jiff::Timestamp;
use modelgate::drift::{self, Drift};
use modelgate::metrics::cloudwatch::Config;
use modelgate::metrics::dashboard::{self, DashboardError, Price, Scope, Way};
use modelgate::metrics::{Flusher, Mode, PlanLimit};
use modelgate::model::features::{Raw, Settings};
use modelgate::model::signature::Kind;
use modelgate::model::{Prediction, Value as Predicted};
use serde_json::{Value, json};

use crate::support::cloudwatch::{CloudWatch, Key};
use crate::support::loans::{self, Loaded};
use crate::support::panel;

const FILE: &str = "[[model]]\nname = \"credit-score\"\n[[model]]\nname = \"churn\"\n[metrics.cloudwatch]\n";

const NOW: Timestamp = Timestamp::constant(1_795_190_400, 0);

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
    CloudWatch::start(NOW).await
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

/// What a gateway of one model really sends: three numbers, a text of two categories, two classes and a score, drift of
/// all, one plan, and nothing refused.
async fn sent(mode: Mode) -> BTreeSet<Key> {
    let cloudwatch = cloudwatch().await;
    let metrics = loans::metrics(500);
    let to = Config { namespace: "ModelGate".to_owned(), interval: Duration::from_mins(1), mode };
    let mut flusher = Flusher::to_cloudwatch(metrics.clone(), cloudwatch.client(), to, NOW);
    let columns = [("a", Kind::Double), ("b", Kind::Double), ("c", Kind::Double), ("t", Kind::Text)];
    let model = Loaded::new("churn", 1, &columns, Settings::default());
    let (window, by_key) = (Duration::from_hours(1), false);
    let drift = Drift::new(drift::Config { window, threshold: 0.1, min_rows: 200, baseline_rows: 300, by_key });
    drift.watch_parts(&model.id, &model.features, Ok(None));
    for number in 0..700_u16 {
        let value = Raw::Float(f64::from(number % 10));
        let (text, class) = (["x", "y"][usize::from(number % 2)], i64::from(number % 2));
        let inputs = model.inputs(&[&[("a", value), ("b", value), ("c", value), ("t", Raw::Text(text))]]);
        let answer = Prediction { value: Predicted::Integer(class), label: None, score: Some(f64::from(number % 9)) };
        let outputs = loans::outputs(vec![answer]);
        drift.observe_parts(&model.id, &inputs, &outputs, &"key".into());
        metrics.observe_parts(&model.id, &model.features, &inputs, &outputs, Duration::ZERO);
        if number == 300 {
            drift.settle_once(NOW);
        }
    }
    drift.settle_once(NOW);
    metrics.show_drift(&[drift.report(&model.id, NOW).unwrap()]);
    metrics.limit_passed(&"basic".into(), PlanLimit::Throttle);
    metrics.limit_passed(&"basic".into(), PlanLimit::Quota);
    flusher.flush_once(NOW).await;
    assert_eq!(cloudwatch.refusals(), []);
    cloudwatch.totals().into_keys().collect()
}

/// The price is made of as many metrics as are sent, and of `SeriesRefused`, which is only sent where there is something
/// to tell.
async fn check_price(mode: Mode) {
    let price = Price {
        models: 1,
        features: 3,
        text_features: 1,
        categories: 2,
        classes: 2,
        plans: 1,
        alarms: 0,
        interval_seconds: 60,
        mode: mode.clone(),
        way: Way::Api,
    };
    let sent = sent(mode).await;
    assert_eq!(price.series() as usize, sent.len() + 1, "{sent:#?}");
}

#[tokio::test]
async fn the_price_is_that_of_what_is_sent() {
    check_price(Mode::Full).await;
    check_price(Mode::Lean).await;
    check_price(Mode::SageMaker { schedules: BTreeMap::new() }).await;
}

/// Every graph finds what it is about: the metric, with just the dimensions that its search names.
#[tokio::test]
async fn every_search_finds_what_is_sent() {
    for mode in [Mode::Full, Mode::Lean] {
        let sent = sent(mode.clone()).await;
        let schemas: BTreeSet<String> = sent.iter().map(schema).collect();
        let body = dashboard::body(&Scope { mode, ..scope() }).unwrap();
        for (search, schema) in searches(&body) {
            // These are sent when it happens.
            let seldom = [
                "SeriesRefused",
                "Switched",
                "Rollbacks",
                "VersionsRefused",
                "FeatureMissing",
                "FeatureUnseen",
                "Accuracy",
                "RMSE",
                "LabelledRows",
            ];
            let found = schemas.contains(&schema) || seldom.iter().any(|metric| schema.ends_with(metric));
            assert!(found, "{search} finds nothing of {schemas:?}");
        }
        let shown: BTreeSet<String> = searches(&body).into_iter().map(|(_, schema)| schema).collect();
        // The distance stands beside the PSI in the answer of the admin address.
        let hidden: Vec<_> = schemas.difference(&shown).filter(|schema| !schema.ends_with("FeatureDrift")).collect();
        assert!(hidden.is_empty(), "no graph shows {hidden:?}");
    }
}

/// `Model,Version Latency`
fn schema((name, dimensions): &Key) -> String {
    let names: Vec<&str> = dimensions.iter().map(|(name, _)| name.as_str()).collect();
    format!("{} {name}", names.join(","))
}

/// Each search of a body, and what it finds as [`schema`] writes it.
fn searches(body: &Value) -> Vec<(String, String)> {
    let metrics =
        body["widgets"].as_array().unwrap().iter().filter_map(|widget| widget["properties"]["metrics"].as_array());
    let expressions = metrics.flatten().filter_map(|row| row[0]["expression"].as_str());
    let read = |expression: &str| {
        let inside = expression.split(['{', '}']).nth(1).unwrap();
        let dimensions = inside.split_once("\",").map_or("", |(_, dimensions)| dimensions);
        let metric = expression.split("MetricName=\"").nth(1).unwrap().split('"').next().unwrap();
        (expression.to_owned(), format!("{dimensions} {metric}"))
    };
    expressions.map(read).collect()
}

#[tokio::test]
async fn a_rollout_has_a_mark_and_a_start_has_none() {
    let cloudwatch = cloudwatch().await;
    let metrics = loans::metrics(500);
    let to = Config { namespace: "ModelGate".to_owned(), interval: Duration::from_mins(1), mode: Mode::Full };
    let mut flusher = Flusher::to_cloudwatch(metrics.clone(), cloudwatch.client(), to, NOW);
    for version in [1, 1, 2, 2, 1] {
        let model = Loaded::new("churn", version, &[("a", Kind::Double)], Settings::default());
        metrics.show_served([&model.id].into_iter());
    }
    flusher.flush_once(NOW).await;
    let of = |version: &str| {
        let dimensions = [("Model", "churn"), ("Version", version)];
        ("Switched".to_owned(), dimensions.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec())
    };
    assert_eq!(cloudwatch.totals(), BTreeMap::from([(of("1"), (1.0, 1.0)), (of("2"), (1.0, 1.0))]));
    let page = metrics.render(&[]);
    assert!(page.contains("modelgate_switches_total{model=\"churn\",version=\"2\"} 1.0\n"), "{page}");
}

/// A metric that is sent and not written down is a metric nobody looks for.
#[tokio::test]
async fn every_metric_that_is_sent_is_in_the_table() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let mut names: BTreeSet<String> = sent(Mode::Full).await.into_iter().map(|(name, _)| name).collect();
    names.extend(["Switched", "SeriesRefused", "FeatureMissing", "FeatureUnseen"].map(str::to_owned));
    let missing: Vec<_> = names.iter().filter(|name| !page.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/metrics.md lacks {missing:?}");
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
