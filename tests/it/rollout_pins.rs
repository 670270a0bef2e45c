//! Callers who stay on a version, by their plan or by their key, while others move on.

use std::fs;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use modelgate::auth::{ApiKeys, Pin};
use modelgate::clock::Clock;
use serde_json::{Value, json};

use crate::support::site::{Answer, Gate, Site, eventually};

const FAR: &str = "2999-01-01";

fn site(pins: &str, more: &str) -> Site {
    Site::new(&format!(
        "{more}[plans.open]\n[plans.held]\npins = [{pins}]\n[[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n"
    ))
}

fn pinned_to(select: &str) -> String {
    format!("{{ model = \"sum\", select = \"{select}\", until = \"{FAR}\" }}")
}

fn row() -> Value {
    json!({ "a": 1, "b": 2, "c": 3 })
}

/// Points both aliases.
fn point(site: &Site, champion: u64, stable: u64) {
    let model = site.registry().join("sum");
    fs::write(model.join("aliases.half"), format!("champion = {champion}\nstable = {stable}\n")).unwrap();
    fs::rename(model.join("aliases.half"), model.join("aliases.toml")).unwrap();
}

async fn ask(gate: &Gate, key: &str) -> Answer {
    gate.client_with(key.to_owned()).predict("sum", &row()).await
}

/// The version that answers `key`, as body, header and prediction agree.
async fn version_for(gate: &Gate, key: &str) -> u64 {
    let answer = ask(gate, key).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let version: u64 = answer.body["version"].as_str().unwrap().parse().unwrap();
    assert!(answer.header("modelgate-model").starts_with(&format!("sum@{version};")), "{:?}", answer.headers);
    assert_eq!(answer.body["prediction"].as_f64(), Some(f64::from(u32::try_from(version).unwrap()) * 1000.0 + 6.0));
    version
}

async fn until_answered_by(gate: &Gate, key: &str, version: u64) {
    let text = json!(version.to_string());
    eventually(&format!("version {version} for a caller who stays"), async || {
        let answer = ask(gate, key).await;
        answer.status == 200 && answer.body["version"] == text
    })
    .await;
}

fn register(site: &Site, versions: std::ops::RangeInclusive<u16>) {
    for version in versions {
        site.register_sum("sum", version.into(), f32::from(version) * 1000.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_stays_on_a_version_while_others_move_on_and_after_a_restart_without_the_registry() {
    let mut site = site(&pinned_to("version:1"), "");
    let held = site.key("held");
    register(&site, 1..=3);
    site.promote("sum", 1);
    let gate = site.start("open").await;
    for version in 1..=3 {
        site.promote("sum", version);
        gate.serves("sum", version).await;
        until_answered_by(&gate, &held, 1).await;
        assert_eq!(version_for(&gate, &gate.key).await, version);
    }
    let status = gate.status("sum").await;
    assert_eq!((&status["previous"], &status["held"][0]["version"]), (&json!("2"), &json!("1")), "{status}");
    let usage = gate.http.get(format!("http://{}/usage", gate.data)).header("x-api-key", &held).send().await.unwrap();
    assert_eq!(Answer::of(usage).await.body["pins"][0]["to"], "version:1");
    gate.stop().await;

    fs::rename(site.registry(), site.folder().join("gone")).unwrap();
    let gate = site.start("open").await;
    gate.serves("sum", 3).await;
    until_answered_by(&gate, &held, 1).await;
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_stays_on_an_alias_follows_it_through_admission() {
    let mut site = site(&pinned_to("alias:stable"), "");
    let held = site.key("held");
    register(&site, 1..=4);
    site.register("sum", 5, "not-finite");
    point(&site, 4, 1);
    let gate = site.start("open").await;
    until_answered_by(&gate, &held, 1).await;
    point(&site, 4, 2);
    until_answered_by(&gate, &held, 2).await;
    point(&site, 4, 5);
    let refused = |status: &Value| status["held"][0]["trouble"].as_str().is_some_and(|text| text.contains("refused"));
    gate.says("sum", "a refusal", refused).await;
    assert_eq!(version_for(&gate, &held).await, 2);
    assert_eq!(version_for(&gate, &gate.key).await, 4);
    // An alias that is gone says nothing.
    site.promote("sum", 4);
    gate.says("sum", "silence", |status| {
        status["held"][0]["trouble"].as_str().is_some_and(|text| text.contains("stable"))
    })
    .await;
    assert_eq!(version_for(&gate, &held).await, 2);
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_answers_in_the_place_of_a_version_that_cannot_be_held() {
    let mut site = site(&pinned_to("version:9"), "");
    let held = site.key("held");
    register(&site, 1..=1);
    site.promote("sum", 1);
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    assert_eq!(version_for(&gate, &gate.key).await, 1);
    let answer = ask(&gate, &held).await;
    assert_eq!((answer.status, &answer.body["code"]), (503, &json!("pinned_version_unavailable")), "{}", answer.body);
    assert!(answer.body["detail"].as_str().unwrap().contains("version:9") && !answer.header("retry-after").is_empty());
    assert_eq!(gate.get(gate.data, "/readyz").await.status, 200, "whoever stays does not keep others waiting");
    register(&site, 9..=9);
    until_answered_by(&gate, &held, 9).await;
    assert_eq!(version_for(&gate, &gate.key).await, 1);
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_stays_until_its_date_and_then_the_version_is_let_go() {
    let mut site = site("", "");
    let key = site.key("held");
    let config = site.config();
    let keys = ApiKeys::open(config.auth, &mut getrandom::fill).unwrap();
    register(&site, 1..=3);
    site.promote("sum", 1);
    let clock = Clock::manual(Clock::system().now());
    let gate = site.start_by("open", clock.clone()).await;
    let id = &keys.list().unwrap()[0].id.clone();
    let pin = |until| {
        let pin = Pin { model: "sum".into(), to: "version:1".parse().unwrap(), until };
        keys.pin(id, &pin, config.manager.max_held, clock.now()).unwrap();
    };
    pin(Timestamp::MAX);
    for version in 1..=3 {
        site.promote("sum", version);
        gate.serves("sum", version).await;
    }
    until_answered_by(&gate, &key, 1).await;
    assert_eq!(version_for(&gate, &gate.key).await, 3);
    keys.unpin(id, "sum").unwrap();
    until_answered_by(&gate, &key, 3).await;
    gate.says("sum", "nothing held", |status| status["held"] == json!([])).await;

    pin(clock.now() + SignedDuration::from_hours(1));
    until_answered_by(&gate, &key, 1).await;
    clock.advance(Duration::from_mins(59));
    assert_eq!(version_for(&gate, &key).await, 1);
    clock.advance(Duration::from_mins(1));
    assert_eq!(version_for(&gate, &key).await, 3, "at its date, not at the next look at the keys");
    gate.says("sum", "nothing held", |status| status["held"] == json!([])).await;
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_versions_are_held_than_configured_and_who_moves_on_makes_room() {
    let mut site = site("", "[engine]\nmax_held = 1\n");
    let callers = [site.key("held"), site.key("open")];
    let config = site.config();
    let keys = ApiKeys::open(config.auth, &mut getrandom::fill).unwrap();
    let ids: Vec<_> = keys.list().unwrap().into_iter().map(|record| record.id).collect();
    register(&site, 1..=5);
    site.promote("sum", 5);
    let gate = site.start("open").await;
    gate.serves("sum", 5).await;
    let now = Clock::system().now();
    let pin = |id: &str, to: &str, room| {
        let pin = Pin { model: "sum".into(), to: to.parse().unwrap(), until: Timestamp::MAX };
        keys.pin(id, &pin, room, now).map(drop)
    };
    let held = |version: u64| {
        move |status: &Value| {
            let held = status["held"].as_array().unwrap();
            held.len() == 1 && held[0]["version"] == json!(version.to_string())
        }
    };
    pin(&ids[0], "version:1", 1).unwrap();
    gate.says("sum", "version 1 held", held(1)).await;
    assert!(pin(&ids[1], "version:2", 1).is_err());
    pin(&ids[0], "version:3", 1).unwrap();
    gate.says("sum", "version 3 in its place", held(3)).await;
    until_answered_by(&gate, &callers[0], 3).await;
    // Whoever wrote it without looking finds no room all the same.
    pin(&ids[1], "version:2", 9).unwrap();
    eventually("nobody in the place of version 2", async || ask(&gate, &callers[1]).await.status == 503).await;
    pin(&ids[0], "version:4", 9).unwrap();
    gate.says("sum", "version 4 held, and nothing beside it", held(4)).await;
    until_answered_by(&gate, &callers[0], 4).await;
    assert_eq!(ask(&gate, &callers[1]).await.status, 503);
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_stays_is_no_part_of_a_canary() {
    let mut site = Site::new(&format!(
        "[plans.open]\n[plans.held]\npins = [{}]\n[[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n\
         [model.rollout]\nstrategy = \"canary\"\nsteps = [{{ share = 1, time = \"24h\" }}]\n",
        pinned_to("version:1")
    ));
    let held = site.key("held");
    register(&site, 1..=2);
    site.promote("sum", 1);
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    until_answered_by(&gate, &held, 1).await;
    site.promote("sum", 2);
    gate.says("sum", "a canary", |status| status["trial"]["version"] == "2").await;
    assert_eq!((version_for(&gate, &held).await, version_for(&gate, &gate.key).await), (1, 2));
    let trial = gate.status("sum").await["trial"].clone();
    // What a caller who stays asks the serving version counts for the serving version.
    assert_eq!((&trial["serving"]["requests"], &trial["challenger"]["requests"]), (&json!(1), &json!(1)), "{trial}");
    gate.stop().await;
}
