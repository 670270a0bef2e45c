//! Samples as other people's programs read them: pandas and pyarrow, Python's `csv`, and a strict reader of SageMaker's form.
//! The Python is that of the MLflow server the tests use, which brings pandas.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::fixtures::expected;
use crate::support::site::Site;

/// What the script found in a site's samples.
fn read(site: &Site, format: &str) -> Value {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(root.join(".venv/mlflow-3/bin/python"))
        .env("PYTHONPATH", root.join(".venv/pyarrow"))
        .arg(root.join("tests/it/support/read_samples.py"))
        .args([format, site.folder().join("samples").to_str().unwrap()])
        .output()
        .expect("scripts/test-servers.sh has made .venv/mlflow-3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A number, whether the format has types or not.
fn number(value: &Value) -> f64 {
    value.as_f64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_else(|| panic!("{value} is no number"))
}

/// As the format writes a missing value or a text.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Asks for the rows of a fixture with gaps and awkward texts, labels some, fails once, and has the samples read.
async fn check(format: &str) {
    let mut site = Site::new(&format!(
        "[[model]]\nname = \"pipeline\"\nselect = \"version:1\"\n[plans.open]\n[feedback]\n\
         [capture]\nsink = \"file:{{folder}}/samples\"\nformat = \"{format}\"\nfailed = true\n"
    ));
    site.register("pipeline", 1, "pipeline");
    let gate = site.start("open").await;
    gate.serves("pipeline", 1).await;
    let mut rows: Vec<Value> = expected("pipeline").rows().take(50).collect();
    for (row, text) in rows.iter_mut().zip(["Doctor, retired", "", "the \"Doctor\"", "two\nlines", " outside ", "ção"])
    {
        row["Occupation"] = json!(text);
    }
    let answer = gate.predict("pipeline", &json!(rows)).await;
    let id = answer.body["request_id"].as_str().unwrap().to_owned();
    let answers = answer.body["predictions"].as_array().unwrap();
    let labels: Vec<&Value> = answers.iter().take(10).map(|answer| &answer["prediction"]).collect();
    let body = json!({ "request_id": id, "labels": labels }).to_string();
    assert_eq!(gate.client().post("/feedback", body).await.status, 202);
    assert_eq!(gate.predict("pipeline", &json!({})).await.status, 422);
    gate.stop().await;

    let found = read(&site, format);
    assert_eq!((found["rows"].as_object().unwrap().len(), &found["joined"]), (50, &json!(10)), "{format}");
    let features: Vec<String> = rows[0].as_object().unwrap().keys().cloned().collect();
    for (index, (row, answer)) in rows.iter().zip(answers).enumerate() {
        let read = &found["rows"][format!("{id} {index}")];
        assert_eq!(text(&read["prediction"]), text(&answer["prediction"]), "{format} row {index}");
        if format == "jsonl" {
            check_captured(read, row, answer);
            continue;
        }
        for feature in &features {
            let (read, asked) = (&read[format!("feature_{feature}")], &row[feature]);
            match asked {
                Value::Number(asked) => {
                    assert!((number(read) - asked.as_f64().unwrap()).abs() < 1e-9, "{feature}: {read}");
                }
                asked => assert_eq!(text(read), text(asked), "{format} {feature}"),
            }
        }
        for (class, share) in answer["probabilities"].as_object().unwrap() {
            let read = number(&read[format!("probability_{class}")]);
            assert!((read - share.as_f64().unwrap()).abs() < 1e-6, "{class}: {read}, {share}");
        }
    }
}

/// JSON lines have no names: the features are in the model's order.
fn check_captured(read: &Value, row: &Value, answer: &Value) {
    let features = read["features"].as_array().unwrap();
    assert_eq!(features.len(), row.as_object().unwrap().len());
    assert!((number(&features[0]) - row["Age"].as_f64().unwrap()).abs() < 1e-9);
    assert!(features.iter().any(|field| text(field) == text(&row["Occupation"])), "{read}");
    let shares: f64 = read["probabilities"].as_array().unwrap().iter().map(number).sum();
    let told: f64 = answer["probabilities"].as_object().unwrap().values().map(number).sum();
    assert!((shares - told).abs() < 1e-5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pandas_and_pyarrow_read_the_parquet() {
    check("parquet").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pythons_csv_reads_the_csv() {
    check("csv").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_reader_takes_the_json_lines_for_sagemakers() {
    check("jsonl").await;
}
