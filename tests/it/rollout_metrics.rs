//! What is told of versions in figures; and that docs/metrics.md lists every figure of `/metrics`, and none besides.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use modelgate::metrics::cloudwatch::Config;
use modelgate::metrics::{Flusher, Mode, VersionEvent};
use serde_json::json;

use crate::support::cloudwatch::CloudWatch;
use crate::support::loans::metrics;
use crate::support::redis::Server;
use crate::support::site::{Gate, Site, eventually};

/// The page of figures.
async fn page(gate: &Gate) -> String {
    let answer = gate.http.get(format!("http://{}/metrics", gate.admin)).send().await.unwrap();
    answer.text().await.unwrap()
}

/// Waits until the page has this line: what happened is counted once it is on disk.
async fn until_told(gate: &Gate, line: &str) {
    eventually(line, async || page(gate).await.lines().any(|written| written == line)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_to_versions_is_told_in_figures() {
    let mut site = Site::new(
        "[plans.open]\n[[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n[model.rollout]\nstrategy = \"shadow\"\n\
         steps = [{ share = 1, time = \"24h\" }]\n",
    );
    for version in [1_u16, 2] {
        site.register_sum("sum", version.into(), 1000.0);
    }
    site.register("sum", 3, "not-finite");
    site.promote("sum", 1);
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    site.promote("sum", 3);
    gate.says("sum", "a refusal", |status| !status["trouble"].is_null()).await;
    site.promote("sum", 2);
    gate.says("sum", "a trial", |status| status["trial"]["version"] == "2").await;
    gate.predict("sum", &json!([{ "a": 1, "b": 2, "c": 3 }, { "a": 4, "b": 5, "c": 6 }])).await;
    gate.says("sum", "a comparison", |status| status["trial"]["challenger"]["compared_rows"] == 2).await;
    for line in [
        "modelgate_serving_version{model=\"sum\"} 1.0",
        "modelgate_version_events_total{model=\"sum\",event=\"served\"} 1.0",
        "modelgate_version_events_total{model=\"sum\",event=\"refused\"} 1.0",
        "modelgate_version_events_total{model=\"sum\",event=\"tried\"} 1.0",
        "modelgate_version_events_total{model=\"sum\",event=\"rolled_back\"} 0.0",
        "modelgate_admissions_total{model=\"sum\",outcome=\"admitted\"} 2.0",
        "modelgate_admissions_total{model=\"sum\",outcome=\"refused\"} 1.0",
        "modelgate_barred_versions{model=\"sum\"} 0.0",
        "modelgate_trial_share{model=\"sum\",version=\"2\",strategy=\"shadow\"} 1.0",
        "modelgate_trial_requests{model=\"sum\",version=\"1\",role=\"serving\",outcome=\"answered\"} 1.0",
        "modelgate_trial_requests{model=\"sum\",version=\"2\",role=\"challenger\",outcome=\"answered\"} 1.0",
        "modelgate_trial_rows{model=\"sum\",outcome=\"compared\"} 2.0",
        "modelgate_trial_rows{model=\"sum\",outcome=\"disagreed\"} 0.0",
    ] {
        until_told(&gate, line).await;
    }
    // The end of a trial by hand bars the challenger.
    gate.order("sum", "rollback", json!({})).await;
    until_told(&gate, "modelgate_version_events_total{model=\"sum\",event=\"rolled_back\"} 1.0").await;
    until_told(&gate, "modelgate_barred_versions{model=\"sum\"} 1.0").await;
    let page = page(&gate).await;
    assert!(!page.contains("modelgate_trial_share{"), "{page}");
    gate.stop().await;
}

#[tokio::test]
async fn what_happens_to_versions_reaches_cloudwatch() {
    let now = Timestamp::from_second(1_795_190_400).unwrap();
    let cloudwatch = CloudWatch::start(now).await;
    let metrics = metrics(1000);
    let config = Config { namespace: "ModelGate".into(), interval: Duration::from_mins(1), mode: Mode::Full };
    let mut flusher = Flusher::to_cloudwatch(metrics.clone(), cloudwatch.client(), config, now);
    let name = "sum".parse().unwrap();
    for event in [VersionEvent::Refused, VersionEvent::RolledBack, VersionEvent::Refused] {
        metrics.version_event(&name, event);
    }
    flusher.flush_once(now).await;
    let mut sent: Vec<_> = cloudwatch.datums().into_iter().map(|datum| datum.key.0).collect();
    sent.sort_unstable();
    assert_eq!((sent, cloudwatch.refusals()), (vec!["Rollbacks".into(), "VersionsRefused".into()], Vec::new()));
}

/// The names that `text` has in backquotes, or at the beginning of its lines, up to labels.
fn names<'t>(words: impl Iterator<Item = &'t str>) -> BTreeSet<String> {
    let letters =
        |word: &str| word.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect();
    words.filter(|word| word.starts_with("modelgate_")).map(letters).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documentation_lists_every_figure_and_none_besides() {
    let redis = Server::start();
    let mut site = Site::new(&format!(
        "[plans.open]\n[[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n[quota]\nstore = \"{}\"\n\
         [keys]\nshared = true\n[metrics.cloudwatch]\n[capture]\nsink = \"file:{{folder}}/samples\"\n[feedback]\n",
        redis.url()
    ));
    site.register_sum("sum", 1, 1000.0);
    site.promote("sum", 1);
    site.share_key("open");
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    gate.predict("sum", &json!({ "a": 1, "b": 2, "c": 3 })).await;
    let page = page(&gate).await;
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(|line| {
        let (name, kind) = line.split_once(' ').unwrap();
        if kind == "counter" { format!("{name}_total") } else { name.to_owned() }
    });
    let told: BTreeSet<String> = families.filter(|name| name.starts_with("modelgate_")).collect();
    let listed = names(include_str!("../../docs/metrics.md").split('`').skip(1).step_by(2));
    assert_eq!(told.difference(&listed).collect::<Vec<_>>(), Vec::<&String>::new(), "not in docs/metrics.md");
    assert_eq!(listed.difference(&told).collect::<Vec<_>>(), Vec::<&String>::new(), "listed and not told");
    gate.stop().await;
}
