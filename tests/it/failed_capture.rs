//! Requests that fail, kept as samples of their own: what is in them, what is not, and that they are counted.

use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Value, json};

use crate::support::fixtures::expected;
use crate::support::s3::files;
use crate::support::site::{Gate, Site};

fn site(format: &str, more: &str) -> Site {
    let site = Site::new(&format!(
        "[[model]]\nname = \"regression\"\nselect = \"version:1\"\n[plans.open]\n[plans.tiny]\nquota = 1\n\
         [capture]\nsink = \"file:{{folder}}/samples\"\nformat = \"{format}\"\n{more}"
    ));
    site.register("regression", 1, "regression");
    site
}

/// A good request, one with a wrong value, one that is no JSON, and one that the plan refuses; ids of the failed ones.
async fn ask(site: &mut Site) -> (Gate, [String; 2]) {
    let tiny = site.key("tiny");
    let gate = site.start("open").await;
    gate.serves("regression", 1).await;
    let good = expected("regression").rows().next().unwrap();
    let mut wrong = good.clone();
    wrong["Age"] = json!("forty");
    wrong["nobody asked"] = json!("kept nowhere");
    assert_eq!(gate.predict("regression", &good).await.status, 200);
    let id = |answer: &crate::support::site::Answer| answer.body["request_id"].as_str().unwrap().to_owned();
    let invalid = gate.predict("regression", &wrong).await;
    assert_eq!(invalid.status, 422);
    let malformed = gate.client().post("/models/regression/predict", r#"{"data": "#).await;
    assert_eq!(malformed.status, 400);
    let (first, second) = (gate.client_with(tiny.clone()), gate.client_with(tiny));
    assert_eq!(first.predict("regression", &good).await.status, 200);
    assert_eq!(second.predict("regression", &good).await.status, 429);
    let ids = [id(&invalid), id(&malformed)];
    (gate, ids)
}

/// Objects by their keys.
type Objects = Vec<(String, Vec<u8>)>;

/// Objects of failed requests, and of all others.
fn objects(site: &Site) -> (Objects, Objects) {
    let all = files(&site.folder().join("samples")).into_iter().filter(|(key, _)| !key.starts_with("_manifest"));
    all.partition(|(key, _)| key.starts_with("_failed/"))
}

fn lines(object: &[u8]) -> Vec<Value> {
    let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(object)).unwrap();
    let value = |field: &Field| match field {
        Field::Str(text) => json!(text),
        Field::Int(number) => json!(number),
        Field::Long(number) => json!(number),
        _ => Value::Null,
    };
    let line = |line: Row| line.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect();
    reader.get_row_iter(None).unwrap().map(|row| line(row.unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_is_kept_apart_and_counted_with_the_rest() {
    let mut site = site("parquet", "failed = true\n");
    let (gate, ids) = ask(&mut site).await;
    let page = gate.http.get(format!("http://{}/metrics", gate.admin)).send().await.unwrap().text().await.unwrap();
    assert!(page.contains(r#"modelgate_capture_rows_total{outcome="sampled"} 4"#), "two answered, two failed");
    gate.stop().await;
    let (failed, others) = objects(&site);
    assert_eq!((failed.len(), others.len()), (1, 1));
    let (key, object) = &failed[0];
    assert!(key.starts_with("_failed/model=regression/version=1/date="), "{key}");
    let lines = lines(object);
    let columns: Vec<&str> = lines[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert!(
        ["error_code", "error_status", "body_bytes", "input", "key_id", "model_digest"]
            .iter()
            .all(|name| columns.contains(name))
    );
    assert!(!columns.iter().any(|name| name.starts_with("feature_") || *name == "prediction"), "{columns:?}");
    let told = |line: &Value| (line["request_id"].clone(), line["error_code"].clone(), line["error_status"].clone());
    assert_eq!(told(&lines[0]), (json!(ids[0]), json!("invalid_input"), json!(422)));
    assert_eq!(told(&lines[1]), (json!(ids[1]), json!("malformed_json"), json!(400)));
    assert_eq!((&lines[1]["input"], &lines[1]["body_bytes"]), (&Value::Null, &json!(9)));
    let input: Value = serde_json::from_str(lines[0]["input"].as_str().unwrap()).unwrap();
    assert_eq!(input[0]["Age"], "forty");
    assert!(input[0].get("nobody asked").is_none(), "{input}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_text_they_have_their_own_columns_too() {
    for format in ["csv", "jsonl"] {
        let mut site = site(format, "failed = true\n");
        let (gate, ids) = ask(&mut site).await;
        gate.stop().await;
        let (failed, others) = objects(&site);
        let text = std::str::from_utf8(&failed[0].1).unwrap();
        assert!(!text.contains("kept nowhere") && text.contains("forty"), "{text}");
        assert!(!others.iter().any(|(_, bytes)| String::from_utf8_lossy(bytes).contains("forty")));
        if format == "csv" {
            let header = "request_id,row,time,model_name,model_version,model_digest,key_id,error_code,error_status,body_bytes,input";
            assert_eq!(text.lines().next(), Some(header));
            continue;
        }
        let event: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(event["eventMetadata"]["eventId"], json!(ids[0]));
        assert_eq!(event["captureData"]["endpointOutput"]["data"], "invalid_input,422");
        assert_eq!(event["captureData"]["endpointInput"]["encoding"], "JSON");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_failed_is_kept_unless_it_is_asked_for() {
    let mut site = site("parquet", "");
    let (gate, _) = ask(&mut site).await;
    gate.stop().await;
    let (failed, others) = objects(&site);
    assert_eq!((failed.len(), others.len()), (0, 1));
}
