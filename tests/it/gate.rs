//! The main job through the front door: a whole gateway, a registry, callers.
#![expect(clippy::disallowed_methods, reason = "callers are tasks of the test")]

use std::fs;

use serde_json::{Value, json};

use crate::support::fixtures;
use crate::support::site::Site;

const OPEN: &str = "[plans.open]\n";

fn model(name: &str) -> String {
    format!("[[model]]\nname = \"{name}\"\nselect = \"alias:champion\"\n")
}

fn site(models: &[&str]) -> Site {
    let site = Site::new(&(OPEN.to_owned() + &models.iter().map(|name| model(name)).collect::<String>()));
    for name in models {
        fs::create_dir_all(site.registry().join(name)).unwrap();
    }
    site
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_model_of_one_gateway_answers_what_python_answered() {
    let kinds = ["pipeline", "xgboost", "forest-zipmap", "regression"];
    let mut site = site(&kinds);
    for kind in kinds {
        site.register(kind, 1, kind);
        site.promote(kind, 1);
    }
    let gate = site.start("open").await;
    for kind in kinds {
        gate.serves(kind, 1).await;
        let expected = fixtures::expected(kind);
        let rows: Vec<Value> = expected.rows().collect();
        let answer = gate.predict(kind, &Value::Array(rows.clone())).await;
        assert_eq!(answer.status, 200, "{kind}: {}", answer.body);
        let predictions = answer.body["predictions"].as_array().unwrap();
        assert_eq!(predictions.len(), rows.len());
        for (row, prediction) in predictions.iter().enumerate() {
            expected.assert_row(row, prediction);
        }
        let single = gate.predict(kind, &rows[0]).await;
        expected.assert_row(0, &single.body);
        assert_eq!(single.body["model"], kind);
        assert_eq!(single.body["version"], "1");
        let named = single.header("modelgate-model");
        assert!(
            named.starts_with(&format!("{kind}@1; digest=sha-256:")) && named.ends_with("; alias=champion"),
            "{named}"
        );
        assert_eq!(single.header("x-request-id"), single.body["request_id"].as_str().unwrap());
    }
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_of_n_answers_exactly_n_of_2n_under_thirty_two_way_load() {
    const QUOTA: usize = 640;
    let text = format!("[plans.small]\nquota = {QUOTA}\nperiod = \"month\"\nunit = \"rows\"\n{}", model("sum"));
    let mut site = Site::new(&text);
    site.register_sum("sum", 1, 0.0);
    site.promote("sum", 1);
    let gate = site.start("small").await;
    gate.serves("sum", 1).await;
    let callers: Vec<_> = (0..32)
        .map(|_| {
            let client = gate.client();
            tokio::spawn(async move {
                let mut statuses = Vec::new();
                for _ in 0..2 * QUOTA / 32 {
                    let answer = client.predict("sum", &json!({"a": 1, "b": 2, "c": 3})).await;
                    if answer.status == 429 {
                        assert_eq!(answer.body["code"], "quota_exceeded");
                        assert!(answer.headers.contains_key("retry-after"));
                    }
                    statuses.push(answer.status);
                }
                statuses
            })
        })
        .collect();
    let mut statuses = Vec::new();
    for caller in callers {
        statuses.extend(caller.await.unwrap());
    }
    let count = |status| statuses.iter().filter(|found| **found == status).count();
    assert_eq!((count(200), count(429)), (QUOTA, QUOTA));

    // The count survives a stop and a start.
    gate.stop().await;
    let gate = site.start("small").await;
    gate.serves("sum", 1).await;
    assert_eq!(gate.predict("sum", &json!({"a": 1, "b": 2, "c": 3})).await.status, 429);
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_fails_costs_nothing() {
    let text = format!("[plans.small]\nquota = 3\nperiod = \"month\"\nunit = \"rows\"\n{}", model("sum"));
    let mut site = Site::new(&text);
    site.register_sum("sum", 1, 0.0);
    site.promote("sum", 1);
    let gate = site.start("small").await;
    gate.serves("sum", 1).await;
    for _ in 0..5 {
        assert_eq!(gate.predict("sum", &json!({"a": 1, "b": "no number", "c": 3})).await.status, 422);
    }
    assert_eq!(gate.get(gate.data, "/usage").await.body["used"], 0);
    assert_eq!(gate.predict("sum", &json!([{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 3}])).await.status, 200);
    assert_eq!(gate.get(gate.data, "/usage").await.body["used"], 2);
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_gone_unloads_nothing_and_the_last_good_version_opens_without_it() {
    let mut site = site(&["sum"]);
    site.register_sum("sum", 7, 7000.0);
    site.promote("sum", 7);
    let gate = site.start("open").await;
    gate.serves("sum", 7).await;

    fs::rename(site.registry(), site.folder().join("elsewhere")).unwrap();
    gate.says("sum", "the gateway to notice that the registry is gone", |status| !status["stale_since"].is_null())
        .await;
    let row = json!({"a": 1, "b": 1, "c": 1});
    assert_eq!(gate.predict("sum", &row).await.body["prediction"], 7003.0);
    gate.stop().await;

    let gate = site.start("open").await;
    gate.serves("sum", 7).await;
    assert_eq!(gate.predict("sum", &row).await.body["prediction"], 7003.0);

    fs::rename(site.folder().join("elsewhere"), site.registry()).unwrap();
    site.register_sum("sum", 8, 8000.0);
    site.promote("sum", 8);
    gate.serves("sum", 8).await;
    gate.says("sum", "the gateway to hear the registry again", |status| status["stale_since"].is_null()).await;
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cached_version_whose_bytes_changed_is_not_opened() {
    let mut site = site(&["sum"]);
    site.register_sum("sum", 1, 1000.0);
    site.promote("sum", 1);
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    gate.stop().await;
    fs::rename(site.registry(), site.folder().join("elsewhere")).unwrap();
    let versions = site.folder().join("data/cache/sha256");
    let version = fs::read_dir(versions).unwrap().next().unwrap().unwrap().path();
    let file = version.join("files/model.onnx");
    let mut permissions = fs::metadata(&file).unwrap().permissions();
    #[expect(clippy::permissions_set_readonly_false, reason = "the test's own folder")]
    permissions.set_readonly(false);
    fs::set_permissions(&file, permissions).unwrap();
    fs::write(&file, fixtures::sum_model(666.0)).unwrap();

    let gate = site.start("open").await;
    gate.says("sum", "the gateway to find the registry gone", |status| !status["stale_since"].is_null()).await;
    let answer = gate.predict("sum", &json!({"a": 1, "b": 1, "c": 1})).await;
    assert_eq!((answer.status, &answer.body["code"]), (503, &json!("model_not_ready")));
    assert!(answer.headers.contains_key("retry-after"));
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_not_fit_is_refused_once_and_the_one_before_it_stays() {
    let mut site = site(&["sum"]);
    site.register_sum("sum", 1, 1000.0);
    site.promote("sum", 1);
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    let row = json!({"a": 1, "b": 1, "c": 1});

    for (version, bytes, reason) in
        [(2, &b"\x80\x04\x95pickled"[..], "pickle"), (3, b"<html>please log in</html>", "ONNX"), (4, b"", "ONNX")]
    {
        site.register_sum("sum", version, 0.0);
        fs::write(site.registry().join(format!("sum/{version}/model.onnx")), bytes).unwrap();
        site.promote("sum", version);
        let refused = format!("version {version} was refused");
        let told = |status: &Value| status["trouble"].as_str().is_some_and(|trouble| trouble.starts_with(&refused));
        let status = gate.says("sum", &refused, told).await;
        assert!(status["trouble"].as_str().unwrap().contains(reason), "{status}");
        assert_eq!(status["version"], "1");
        assert_eq!(gate.predict("sum", &row).await.body["prediction"], 1003.0);
    }
    site.register_sum("sum", 5, 5000.0);
    site.promote("sum", 5);
    gate.serves("sum", 5).await;
    gate.says("sum", "the trouble to be over", |status| status["trouble"].is_null()).await;
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_write_features_as_their_handlers_took_them() {
    let text = format!(
        "{OPEN}{}  [model.features]\n  rename = {{ primeiro = \"a\" }}\n  default = {{ c = 5 }}\n",
        model("sum")
    );
    let mut site = Site::new(&text);
    site.register_sum("sum", 1, 0.0);
    site.promote("sum", 1);
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    let answer = gate.predict("sum", &json!({"b": "20", "primeiro": 1})).await;
    assert_eq!(answer.body["prediction"], 26.0, "{}", answer.body);
    let bare = gate.client().post("/predict", r#"{"primeiro": 1, "b": 2}"#).await;
    assert_eq!(bare.body["prediction"], 8.0, "{}", bare.body);
    let wrong = gate.predict("sum", &json!({"primeiro": "um", "b": 2})).await;
    assert_eq!((wrong.status, &wrong.body["errors"][0]["feature"]), (422, &json!("primeiro")));
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_opens_only_the_models_it_names() {
    let text = format!("[plans.narrow]\nmodels = [\"sum\"]\n{}{}", model("sum"), model("other"));
    let mut site = Site::new(&text);
    for name in ["sum", "other"] {
        site.register_sum(name, 1, 0.0);
        site.promote(name, 1);
    }
    let gate = site.start("narrow").await;
    gate.serves("sum", 1).await;
    gate.serves("other", 1).await;
    let row = json!({"a": 1, "b": 1, "c": 1});
    assert_eq!(gate.predict("sum", &row).await.status, 200);
    let refused = gate.predict("other", &row).await;
    assert_eq!((refused.status, &refused.body["code"]), (403, &json!("forbidden")));
    gate.stop().await;
}
