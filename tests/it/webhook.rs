//! Hints of a registry: real ones, false ones, and far too many.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use modelgate::clock::Clock;
use serde_json::json;
use sha2::Sha256;
use tokio::time::Instant;

use crate::support::fixtures::sum_files;
use crate::support::hostile_registry::{Honest, Hostile};
use crate::support::mlflow;
use crate::support::site::{Gate, Site, eventually};

const SECRET: &str = "hush";

/// The signature of a hint as MLflow's documentation has it.
fn sign(secret: &str, id: &str, time: i64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{id}.{time}.{body}").as_bytes());
    format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
}

async fn send(gate: &Gate, signature: &str, id: &str, time: i64, body: String) -> u16 {
    let request = gate.http.post(format!("http://{}/admin/registry-webhook", gate.admin));
    let request = request.header("x-mlflow-signature", signature).header("x-mlflow-delivery-id", id);
    request.header("x-mlflow-timestamp", time.to_string()).body(body).send().await.unwrap().status().as_u16()
}

/// A site whose gateway asks the registry at `uri` only when it is hinted to.
fn site(uri: &str, registered_model: &str) -> Site {
    let mut site = Site::new(&format!(
        "[plans.open]\n[[model]]\nname = \"sum\"\nregistered_model = \"{registered_model}\"\nselect = \"alias:champion\"\n\
         [registry]\nuri = \"{uri}\"\nwebhook_secret = \"{SECRET}\"\n"
    ));
    site.poll = Duration::from_hours(1);
    site
}

///
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_hints_is_a_poll_a_second_and_false_ones_are_none() {
    let honest = Honest::with(&sum_files(1000.0));
    let registry = Hostile::start(move |asked| std::future::ready(honest.answer(&asked))).await;
    let mut site = site(registry.uri.as_str(), "m");
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    let polls = || registry.asked().iter().filter(|asked| asked.path.ends_with("registered-models/alias")).count();
    let (before, start) = (polls(), Instant::now());
    let now = Clock::system().now().as_second();
    let lie = json!({ "entity": "model_version_alias", "action": "created",
                      "data": { "name": "m", "alias": "champion", "version": "666" } })
    .to_string();

    for (signature, id, time) in [
        (sign("another", "a", now, &lie), "a", now),
        (sign(SECRET, "b", now, &lie), "not b", now),
        (sign(SECRET, "c", now - 301, &lie), "c", now - 301),
        (sign(SECRET, "d", now + 330, &lie), "d", now + 330),
        (String::new(), "e", now),
    ] {
        assert_eq!(send(&gate, &signature, id, time, lie.clone()).await, 401, "{id}");
    }
    let huge = "x".repeat(65 << 10);
    assert_eq!(send(&gate, &sign(SECRET, "huge", now, &huge), "huge", now, huge).await, 413);
    assert_eq!(polls(), before, "no false hint is heard");

    for number in 0..1000 {
        let id = format!("{number}");
        // Every other one was sent before.
        let id = if number % 2 == 0 { id } else { format!("{}", number - 1) };
        assert_eq!(send(&gate, &sign(SECRET, &id, now, &lie), &id, now, lie.clone()).await, 202);
    }
    eventually("a poll", async || polls() > before).await;
    let (polled, seconds) = ((polls() - before) as u64, start.elapsed().as_secs());
    assert!(polled <= seconds + 1, "{polled} polls in {seconds} s");
    assert_eq!(gate.status("sum").await["version"], "1");
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_mlflow_says_that_an_alias_moved() {
    const NAME: &str = "webhooked";
    let server = mlflow::v3();
    for base in [1000.0, 2000.0] {
        server.register(NAME, &sum_files(base)).await;
    }
    server.set_alias(NAME, "champion", 1).await;
    let mut site = site(server.uri.as_str(), NAME);
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    let webhook = json!({
        "name": "to-the-gateway", "url": format!("http://{}/admin/registry-webhook", gate.admin), "secret": SECRET,
        "events": [{ "entity": "MODEL_VERSION_ALIAS", "action": "CREATED" }], "status": "ACTIVE",
    });
    let made = server.post("webhooks", webhook).await;
    server.set_alias(NAME, "champion", 2).await;
    // The server may not think of a new webhook for a minute, unless it is asked to try it. The next poll is an hour away.
    let id = made["webhook"]["webhook_id"].as_str().unwrap();
    let event = json!({ "event": { "entity": "MODEL_VERSION_ALIAS", "action": "CREATED" } });
    let tried = server.post(&format!("webhooks/{id}/test"), event).await;
    assert_eq!(tried["result"]["response_status"], 202, "{tried}");
    gate.serves("sum", 2).await;
    gate.stop().await;
}
