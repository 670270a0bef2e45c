//! Drift through the front door: a baseline made by the command, rows that change, and who is told.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use modelgate::drift::{self, Drift};
use modelgate::metrics::cloudwatch::Config;
use modelgate::metrics::{self, Flusher, Metrics, Mode};
use modelgate::model::features::{Raw, Settings};
use modelgate::model::signature::{Column, Kind, Signature};
use modelgate::model::{Digest, Features, Identity, Outputs, Prediction, Value as Predicted, Version};
use serde_json::{Value, json};

use crate::support::cloudwatch::{CloudWatch, Key};
use crate::support::fixtures::{self, expected};
use crate::support::site::{Gate, Site, eventually};

const MODEL: &str = "pipeline";

/// A gateway's configuration with one model and a plan. A version of few rows is enough for these tests.
const GATEWAY: &str = r#"
[[model]]
name = "pipeline"
[plans.open]
[drift]
min_rows = 200
baseline_rows = 200
by_key = true
"#;

/// The rows of the fixture, which are draws of one population, as CSV.
fn training() -> String {
    let rows: Vec<Value> = expected(MODEL).rows().collect();
    let names: Vec<String> = rows[0].as_object().unwrap().keys().cloned().collect();
    let cell = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => format!("\"{text}\""),
        other => other.to_string(),
    };
    let line = |row: &Value| names.iter().map(|name| cell(&row[name])).collect::<Vec<_>>().join(",");
    let lines: Vec<String> = rows.iter().map(line).collect();
    // Each row ten times: a population of two thousand.
    format!("{}\r\n{}\r\n", names.join(","), vec![lines.join("\r\n"); 10].join("\r\n"))
}

fn run_baseline(folder: &Path, arguments: &[&str]) -> Output {
    let data = folder.join("train.csv");
    fs::write(&data, training()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelgate"));
    command.arg("baseline").arg("--data").arg(data).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.output().unwrap()
}

/// The baseline of the fixture with its predictions, as the command writes it.
fn make_baseline(folder: &Path) -> String {
    let (out, model) = (folder.join("made.json"), fixtures::folder(MODEL));
    let output = run_baseline(folder, &["--model-dir", model.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.starts_with("21 features of 2000 rows (of 2000), with the model's predictions"), "{printed}");
    fs::read_to_string(out).unwrap()
}

/// A gateway that serves the fixture with `baseline` in the version's folder.
async fn serve(baseline: Option<&str>) -> (Site, Gate) {
    let mut site = Site::new(GATEWAY);
    site.register(MODEL, 1, MODEL);
    if let Some(text) = baseline {
        fs::write(site.registry().join(MODEL).join("1/baseline.json"), text).unwrap();
    }
    site.promote(MODEL, 1);
    let gate = site.start("open").await;
    gate.serves(MODEL, 1).await;
    (site, gate)
}

/// Asks for every row of the fixture, changed.
async fn ask(gate: &Gate, change: impl Fn(usize, &mut Value)) {
    let mut rows: Vec<Value> = expected(MODEL).rows().collect();
    for (number, row) in rows.iter_mut().enumerate() {
        change(number, row);
    }
    assert_eq!(gate.predict(MODEL, &Value::Array(rows)).await.status, 200);
}

async fn drift(gate: &Gate, query: &str) -> Value {
    let answer = gate.get(gate.admin, &format!("/admin/models/{MODEL}/drift{query}")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

fn drifted(report: &Value) -> Vec<&str> {
    let features = report["features"].as_array().unwrap().iter();
    features.filter(|score| score["drifted"] == true).map(|score| score["name"].as_str().unwrap()).collect()
}

fn feature<'r>(report: &'r Value, name: &str) -> &'r Value {
    report["features"].as_array().unwrap().iter().find(|score| score["name"] == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_feature_is_named_against_the_baseline_that_came_with_the_version() {
    let folder = tempfile::tempdir().unwrap();
    let (_site, gate) = serve(Some(&make_baseline(folder.path()))).await;
    ask(&gate, |_, _| {}).await;
    let report = drift(&gate, "").await;
    assert_eq!(
        (&report["version"], &report["baseline"], &report["rows"]),
        (&json!("1"), &json!("stored"), &json!(200))
    );
    assert_eq!(report["features"].as_array().unwrap().len(), 21);
    assert_eq!(drifted(&report), Vec::<&str>::new(), "{report:#}");
    assert_eq!(report["prediction"]["drifted"], false, "the model's own predictions are in its baseline");
    assert!(report["prediction"]["psi"].as_f64().unwrap() < 1e-9, "{}", report["prediction"]);
    assert_eq!(report["score"]["rows"], 200);

    for _ in 0..2 {
        ask(&gate, |_, row| row["Annual_Income"] = json!(row["Annual_Income"].as_f64().unwrap() * 1000.0)).await;
    }
    let report = drift(&gate, "?by=key").await;
    assert_eq!(drifted(&report), ["Annual_Income"], "{report:#}");
    assert!(feature(&report, "Annual_Income")["out_of_range"]["share"].as_f64().unwrap() > 0.5);
    let callers = report["by_key"].as_array().unwrap();
    assert_eq!((callers.len(), &callers[0]["rows"], drifted(&callers[0])), (1, &json!(600), vec!["Annual_Income"]));

    let page = gate.http.get(format!("http://{}/metrics", gate.admin));
    eventually("drift on /metrics", async || {
        let page = page.try_clone().unwrap().send().await.unwrap().text().await.unwrap();
        page.contains(r#"modelgate_drifted_features{model="pipeline"} 1"#)
            && page.contains(r#"modelgate_feature_psi{model="pipeline",feature="Annual_Income"}"#)
    })
    .await;
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_baseline_the_first_rows_are_it_and_a_broken_one_stops_nothing() {
    let (_site, gate) = serve(Some(r#"{"modelgate_baseline":1,"rows":"#)).await;
    ask(&gate, |_, _| {}).await;
    eventually("the baseline of live rows", async || drift(&gate, "").await["baseline"] == "live").await;
    let report = drift(&gate, "").await;
    let trouble = report["trouble"][0].as_str().unwrap();
    assert!(trouble.contains("baseline.json is not a baseline"), "{trouble}");
    assert_eq!((&report["baseline_rows"], &report["rows"]), (&json!(200), &json!(0)));
    assert_eq!(feature(&report, "Age")["verdict"], "not enough data");
    ask(&gate, |number, row| row["Occupation"] = json!(if number % 2 == 0 { "Pilot" } else { "Doctor" })).await;
    let report = drift(&gate, "").await;
    assert_eq!(drifted(&report), ["Occupation"], "{report:#}");
    assert!(feature(&report, "Occupation")["unseen"]["share"].as_f64().unwrap() > 0.49);
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_the_live_baseline_and_the_window() {
    let (mut site, gate) = serve(None).await;
    ask(&gate, |_, _| {}).await;
    eventually("the baseline of live rows", async || drift(&gate, "").await["baseline"] == "live").await;
    ask(&gate, |_, row| row["Annual_Income"] = json!(row["Annual_Income"].as_f64().unwrap() * 1000.0)).await;
    let before = drift(&gate, "").await;
    assert_eq!((&before["rows"], drifted(&before)), (&json!(200), vec!["Annual_Income"]));
    gate.stop().await;

    let gate = site.start("open").await;
    gate.serves(MODEL, 1).await;
    assert_eq!(drift(&gate, "").await, before);
    ask(&gate, |_, _| {}).await;
    assert_eq!(drift(&gate, "").await["rows"], 400, "the window goes on");
    gate.stop().await;
    let state = fs::read_to_string(site.folder().join("data/drift.state")).unwrap();

    fs::write(site.folder().join("data/drift.state"), state.replacen("counts", "bounds", 1)).unwrap();
    let gate = site.start("open").await;
    gate.serves(MODEL, 1).await;
    let anew = drift(&gate, "").await;
    assert_eq!((&anew["baseline"], &anew["rows"]), (&json!("learning"), &json!(0)));
    assert!(site.folder().join("data/drift.state.damaged").exists());
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_route_knows_only_models_that_are_served() {
    let (_site, gate) = serve(None).await;
    assert_eq!(gate.get(gate.admin, "/admin/models/nobody/drift").await.status, 404);
    assert_eq!(gate.get(gate.data, &format!("/admin/models/{MODEL}/drift")).await.status, 404);
    assert_eq!(drift(&gate, "").await["baseline"], "learning");
    gate.stop().await;
}

#[test]
fn the_command_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let signature = fixtures::folder("sum").join("MLmodel");
    let output = run_baseline(folder.path(), &["--signature", signature.to_str().unwrap(), "--out", "/dev/null"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the data lack columns of the signature"), "{said}");
}

/// A version of one feature, its rows, and what they are told to.
struct Bench {
    cloudwatch: CloudWatch,
    metrics: Metrics,
    flusher: Flusher,
    drift: Drift,
    id: Arc<Identity>,
    features: Features,
}

fn minute(number: i64) -> Timestamp {
    Timestamp::from_second(1_795_190_400 + 60 * number).unwrap()
}

impl Bench {
    async fn start(mode: Mode, max_series: usize) -> Self {
        let cloudwatch = CloudWatch::start(minute(0)).await;
        let config =
            metrics::Config { max_series: max_series.try_into().unwrap(), max_categories: 10.try_into().unwrap() };
        let metrics = Metrics::new(config);
        let to = Config { namespace: "ModelGate".into(), interval: Duration::from_mins(1), mode };
        let flusher = Flusher::to_cloudwatch(metrics.clone(), cloudwatch.client(), to, minute(0));
        let drift = Drift::new(drift::Config {
            window: Duration::from_hours(1),
            threshold: 0.1,
            min_rows: 200,
            baseline_rows: 500,
            by_key: false,
        });
        let column = Column { name: "Age".into(), kind: Kind::Double, required: true };
        let features = Features::new(&Signature::Columns(vec![column]), Settings::default()).unwrap();
        let id = Arc::new(Identity::new("m".parse().unwrap(), Version(1), Digest([0; 32]), None));
        drift.watch_parts(&id, &features, Ok(None));
        Self { cloudwatch, metrics, flusher, drift, id, features }
    }

    fn ask(&self, rows: u32, shift: f64) {
        for number in 0..rows {
            let mut reader = self.features.rows();
            reader.begin();
            reader.set("Age", Raw::Float(f64::from(number % 100) + shift));
            reader.end();
            let (inputs, prediction) = (reader.finish().unwrap(), Predicted::Number(1.0));
            let prediction = Prediction { value: prediction, label: None, score: None };
            let outputs = Outputs::new(vec![prediction], Arc::default(), vec![]);
            self.drift.observe_parts(&self.id, &inputs, &outputs, &"k".into());
            self.metrics.observe_parts(&self.id, &self.features, &inputs, &outputs, Duration::from_millis(1));
        }
        self.drift.settle_once(minute(0));
    }

    /// What one flush sends: name and dimensions, count and sum.
    async fn flush(&mut self) -> Vec<(String, f64, f64)> {
        let report = self.drift.report(&self.id, minute(0)).unwrap();
        // Looked at more often than sent.
        self.metrics.show_drift(std::slice::from_ref(&report));
        self.metrics.show_drift(&[report]);
        self.flusher.flush_once(minute(0)).await;
        let shown = |((name, dimensions), (count, sum)): (Key, (f64, f64))| {
            let values: Vec<String> = dimensions.into_iter().map(|(_, value)| value).collect();
            (format!("{name} {}", values.join(" ")), count, sum)
        };
        assert!(self.cloudwatch.refusals().is_empty(), "{:?}", self.cloudwatch.refusals());
        self.cloudwatch.totals().into_iter().map(shown).collect()
    }
}

#[tokio::test]
async fn cloudwatch_is_told_once_a_flush_and_only_what_there_are_enough_rows_for() {
    let mut bench = Bench::start(Mode::Full, 100).await;
    bench.ask(500, 0.0);
    bench.ask(150, 50.0);
    let names = |sent: &[(String, f64, f64)]| -> Vec<String> {
        let drift = ["PSI", "FeatureDrift", "DriftedFeatures", "MaxPSI", "SampleRows"];
        let is_drift = |name: &&String| drift.iter().any(|of| name.split(' ').next() == Some(*of));
        sent.iter().map(|(name, ..)| name).filter(is_drift).cloned().collect()
    };
    let sent = bench.flush().await;
    assert_eq!(names(&sent), ["SampleRows m"]);
    assert!(sent.contains(&("SampleRows m".into(), 1.0, 150.0)), "{sent:?}");
    bench.ask(150, 50.0);
    let sent = bench.flush().await;
    let all = [
        "DriftedFeatures m",
        "FeatureDrift m Age",
        "FeatureDrift m __prediction__",
        "MaxPSI m",
        "PSI m Age",
        "PSI m __prediction__",
        "SampleRows m",
    ];
    assert_eq!(names(&sent), all);
    assert!(sent.contains(&("SampleRows m".into(), 2.0, 450.0)), "{sent:?}");
    assert!(sent.contains(&("DriftedFeatures m".into(), 1.0, 1.0)), "{sent:?}");
}

#[tokio::test]
async fn the_lean_mode_sends_six_series() {
    let mut bench = Bench::start(Mode::Lean, 100).await;
    bench.ask(500, 0.0);
    bench.ask(300, 50.0);
    let sent: Vec<String> = bench.flush().await.into_iter().map(|(name, ..)| name).collect();
    assert_eq!(sent, ["DriftedFeatures m", "Errors m", "Latency m", "MaxPSI m", "Prediction m", "Requests m"]);
}

#[tokio::test]
async fn alarms_made_for_model_monitor_find_their_metrics() {
    let schedules = [("m".parse().unwrap(), "nightly".to_owned())].into();
    let mut bench = Bench::start(Mode::SageMaker { schedules }, 100).await;
    bench.ask(500, 0.0);
    bench.ask(300, 50.0);
    let sent = bench.flush().await;
    let names: Vec<&str> = sent.iter().map(|(name, ..)| name.as_str()).collect();
    let monitored = [
        "feature_baseline_drift_Age m nightly",
        "feature_baseline_drift___prediction__ m nightly",
        "feature_data_Age m nightly",
        "feature_non_null_Age m nightly",
    ];
    let lean = ["DriftedFeatures m", "Errors m", "Latency m", "MaxPSI m", "Prediction m", "Requests m"];
    assert_eq!(names, [&lean[..], &monitored[..]].concat());
    assert!(sent.contains(&("feature_non_null_Age m nightly".into(), 800.0, 800.0)), "{sent:?}");
}

#[tokio::test]
async fn the_cap_on_series_holds_for_drift() {
    // Requests, Errors, Latency and Prediction of the model and of the version, the feature, and one for the cap itself.
    let mut bench = Bench::start(Mode::Full, 10).await;
    bench.ask(500, 0.0);
    bench.ask(300, 50.0);
    let sent = bench.flush().await;
    assert!(!sent.iter().any(|(name, ..)| name.starts_with("PSI") || name.starts_with("MaxPSI")), "{sent:?}");
    assert!(!bench.metrics.render(&[]).contains("modelgate_max_psi{"));
}
