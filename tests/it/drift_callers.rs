//! Drift by caller: each caller's scores are those of its own rows, worked out here again from the rows alone.

use std::collections::BTreeMap;
use std::fs;

use modelgate::auth::ApiKeys;
use modelgate::clock::Clock;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::support::fixtures::expected;
use crate::support::site::{Client, Gate, Site};

const EDGES: [f64; 5] = [20.0, 30.0, 40.0, 50.0, 60.0];
const COUNTS: [u32; 4] = [100, 300, 400, 200];

/// Callers that are told apart at one time.
const CALLERS: usize = 32;

/// The predictions have no stored baseline, and there are never enough rows for one: windows would begin anew with it.
fn site(by_key: bool) -> Site {
    let site = Site::new(&format!(
        "[[model]]\nname = \"pipeline\"\nselect = \"version:1\"\n[plans.open]\n\
         [drift]\nmin_rows = 20\nbaseline_rows = 10000\nby_key = {by_key}\n"
    ));
    site.register("pipeline", 1, "pipeline");
    let age = json!({ "name": "Age", "missing": 0, "edges": EDGES, "counts": COUNTS });
    let baseline = json!({ "modelgate_baseline": 1, "rows": 1000, "features": [age] });
    fs::write(site.registry().join("pipeline/1/baseline.json"), baseline.to_string()).unwrap();
    site
}

/// So many new keys: their ids and texts.
fn keys(site: &mut Site, count: usize) -> Vec<(String, String)> {
    site.key("open");
    let keys = ApiKeys::open(site.config().auth, &mut getrandom::fill).unwrap();
    let make = |number: usize| {
        let name = format!("caller {number}");
        let (record, secret) = keys.create(&name, "open", None, Clock::system().now(), &mut getrandom::fill).unwrap();
        (record.id.to_string(), secret.expose_secret().to_owned())
    };
    (0..count).map(make).collect()
}

async fn ask(client: &Client, ages: &[u32]) {
    let known: Vec<Value> = expected("pipeline").rows().collect();
    let mut rows: Vec<Value> = known.into_iter().cycle().take(ages.len()).collect();
    for (row, age) in rows.iter_mut().zip(ages) {
        row["Age"] = json!(age);
    }
    assert_eq!(client.predict("pipeline", &json!(rows)).await.status, 200);
}

async fn drift(gate: &Gate, query: &str) -> Value {
    gate.get(gate.admin, &format!("/admin/models/pipeline/drift{query}")).await.body
}

/// Σ (p − q) ln(p / q) over below, the bins and above; a place that one side has no row in counts as half a row there.
fn psi(ages: &[u32]) -> f64 {
    let place =
        |age: f64| EDGES.iter().filter(|edge| **edge <= age).count() - usize::from(age.to_bits() == EDGES[4].to_bits());
    let mut found = [0.0; 6];
    for age in ages {
        found[place(f64::from(*age))] += 1.0;
    }
    let baseline = [0.0, 100.0, 300.0, 400.0, 200.0, 0.0];
    #[expect(clippy::cast_precision_loss, reason = "a few rows")]
    let rows = ages.len() as f64;
    let occupied = found.iter().zip(baseline).filter(|(found, baseline)| **found + baseline > 0.0);
    let term = |(found, baseline): (&f64, f64)| {
        let (p, q) = (found.max(0.5) / rows, baseline.max(0.5) / 1000.0);
        (p - q) * (p / q).ln()
    };
    occupied.map(term).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_caller_has_the_scores_of_its_own_rows() {
    let mut site = site(true);
    let callers = keys(&mut site, 3);
    let gate = site.start("open").await;
    gate.serves("pipeline", 1).await;
    // Half as the baseline has them, one caller's far above, one caller's few.
    let rows = [
        (0..200).map(|n| 22 + (n * 7) % 36).collect::<Vec<u32>>(),
        (0..100).map(|n| 45 + n % 40).collect(),
        vec![33; 10],
    ];
    for ((_, key), ages) in callers.iter().zip(&rows) {
        ask(&gate.client_with(key.clone()), ages).await;
    }
    let report = drift(&gate, "?by=key").await;
    let by_key: BTreeMap<&str, &Value> =
        report["by_key"].as_array().unwrap().iter().map(|one| (one["key_id"].as_str().unwrap(), one)).collect();
    assert_eq!(by_key.len(), 3, "{report}");
    let age = |report: &Value| {
        report["features"].as_array().unwrap().iter().find(|score| score["name"] == "Age").unwrap().clone()
    };
    for ((id, _), ages) in callers.iter().zip(&rows) {
        let (found, wanted) = (age(by_key[&**id]), psi(ages));
        assert_eq!(found["rows"], ages.len(), "{found}");
        assert!((found["psi"].as_f64().unwrap() - wanted).abs() < 1e-9, "{found}, by hand {wanted}");
    }
    let all: Vec<u32> = rows.concat();
    assert!((age(&report)["psi"].as_f64().unwrap() - psi(&all)).abs() < 1e-9);
    let verdict = |caller: usize| age(by_key[&*callers[caller].0])["verdict"].as_str().unwrap().to_owned();
    assert_eq!((verdict(1), verdict(2)), ("drifted".to_owned(), "not enough data".to_owned()));
    assert!(drift(&gate, "").await.get("by_key").is_none());
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_callers_are_told_apart_those_that_asked_last() {
    let mut site = site(true);
    let callers = keys(&mut site, CALLERS + 2);
    let gate = site.start("open").await;
    gate.serves("pipeline", 1).await;
    for (_, key) in &callers {
        ask(&gate.client_with(key.clone()), &[33, 34]).await;
    }
    let report = drift(&gate, "?by=key").await;
    let told: Vec<&str> =
        report["by_key"].as_array().unwrap().iter().map(|one| one["key_id"].as_str().unwrap()).collect();
    assert_eq!(told.len(), CALLERS);
    for (id, _) in &callers[2..] {
        assert!(told.contains(&&**id), "{id} asked lately");
    }
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_are_not_told_apart_unless_they_are_to_be() {
    let mut site = site(false);
    let gate = site.start("open").await;
    gate.serves("pipeline", 1).await;
    ask(&gate.client(), &[33, 34]).await;
    assert_eq!(drift(&gate, "?by=key").await["by_key"], Value::Null);
    gate.stop().await;
}
