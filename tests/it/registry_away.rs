//! What a gateway does while its registry is away, lies, or changes its mind: what is served stays.
#![expect(clippy::disallowed_methods, reason = "a client and a stopwatch of the test's own")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use crate::process::Binary;
use crate::support::fixtures::sum_files;
use crate::support::hostile_registry::{Asked, Honest, Hostile, chunked, cut, ok, say, version};
use crate::support::mlflow;
use crate::support::s3::{self, BUCKET, SECRET};
use crate::support::site::{Answer, Gate, Site, eventually};

fn honest(base: f32) -> Honest {
    Honest::with(&sum_files(base))
}

fn site(uri: &str) -> Site {
    Site::new(&format!(
        "[plans.open]\n[[model]]\nname = \"sum\"\nregistered_model = \"m\"\nselect = \"alias:champion\"\n\
         [registry]\nuri = \"{uri}\"\n"
    ))
}

/// What an honest registry says of version `number`, whose files come from `honest`.
fn numbered(honest: &Honest, number: u64, asked: &Asked) -> Response {
    if asked.path.ends_with("registered-models/alias") {
        let mut version = version();
        version["version"] = json!(number.to_string());
        version["source"] = json!(format!("mlflow-artifacts:/0/run/artifacts/model-{number}"));
        return ok(&json!({ "model_version": version }));
    }
    honest.answer(asked)
}

async fn admin_status(http: &reqwest::Client, binary: &Binary) -> Value {
    let url = format!("http://{}/admin/models", binary.admin);
    Answer::of(http.get(url).send().await.unwrap()).await.body["models"][0].clone()
}

/// A gateway's folder in which version 1 is last good, its file, in which the registry is where nobody is, and the digest.
async fn with_a_cache() -> (Site, PathBuf, String) {
    let honest = honest(1000.0);
    let registry = Hostile::start(move |asked| std::future::ready(numbered(&honest, 1, &asked))).await;
    let mut site = site(registry.uri.as_str());
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    let digest = gate.status("sum").await["digest"].as_str().unwrap().to_owned();
    gate.stop().await;
    let file = site.folder().join("modelgate.toml");
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(registry.uri.as_str(), &format!("http://{free}/"))).unwrap();
    (site, file, digest)
}

/// Kills a gateway with -9 in the middle of the download of version 2.
async fn kill_in_a_download(site: &mut Site, file: &PathBuf, http: &reqwest::Client) {
    let honest = honest(2000.0);
    let stalling = Hostile::start(move |asked| {
        std::future::ready(if asked.is_for("model.onnx") {
            let half = futures_util::stream::iter([Ok::<_, std::io::Error>(vec![1; 10])]);
            Response::new(Body::from_stream(futures_util::StreamExt::chain(half, futures_util::stream::pending())))
        } else {
            numbered(&honest, 2, &asked)
        })
    })
    .await;
    let before = std::fs::read_to_string(file).unwrap();
    let away = before.lines().find(|line| line.starts_with("uri = ")).unwrap();
    std::fs::write(file, before.replace(away, &format!("uri = \"{}\"", stalling.uri))).unwrap();
    let binary = Binary::serve_with(file, &[]);
    eventually("the download", async || {
        let status = admin_status(http, &binary).await;
        status["loading"]["version"] == "2" && status["loading"]["bytes"].as_u64() > Some(0)
    })
    .await;
    binary.signal("KILL");
    binary.ended().await;
    std::fs::write(file, before).unwrap();
    assert!(
        std::fs::read_dir(site.folder().join("data/cache/incoming")).unwrap().next().is_some(),
        "nothing was half here"
    );
}

/// R-01: `rounds` starts with a cache and no registry, every other one after a `kill -9` in a download. Returns how long each
/// took from listening to ready, the shortest first.
async fn check_starts(rounds: usize) -> Vec<Duration> {
    let (mut site, file, digest) = with_a_cache().await;
    let http = reqwest::Client::new();
    let mut took = Vec::new();
    for round in 0..rounds {
        if round % 2 == 1 {
            kill_in_a_download(&mut site, &file, &http).await;
        }
        let binary = Binary::serve_with(&file, &[]);
        let start = Instant::now();
        binary.ready(&http).await;
        took.push(start.elapsed());
        let status = admin_status(&http, &binary).await;
        assert_eq!((&status["version"], &status["digest"]), (&json!("1"), &json!(digest)), "round {round}");
        binary.signal("KILL");
        binary.ended().await;
    }
    took.sort_unstable();
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_with_a_cache_starts_without_its_registry() {
    check_starts(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "nightly: 100 starts with the registry away, 50 of them after kill -9 in a download, two minutes"]
async fn a_hundred_starts_without_the_registry_all_serve_the_last_good_version() {
    check_starts(100).await;
}

/// `cargo test --release --test it registry_away::ready -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "figure: with the registry away, from listening, when the cache is opened, to ready"]
async fn ready_after_the_cache_is_opened() {
    let took = check_starts(21).await;
    println!(
        "registry away: ready after {:?} (median), {:?} (worst of {})",
        took[took.len() / 2],
        took[took.len() - 1],
        took.len()
    );
}

// ---- R-03: a registry that lies

type Lie = (&'static str, Arc<dyn Fn() -> Response + Send + Sync>);

/// Answers to a question for an alias that no gateway may act upon.
fn lies() -> Vec<Lie> {
    let json_of = |body: Value| move || ok(&body);
    let with = |key: &str, value: Value| {
        let mut version = version();
        version[key] = value;
        json!({ "model_version": version })
    };
    let status = |code: u16, kind: &'static str, body: &'static str| {
        move || say(StatusCode::from_u16(code).unwrap(), kind, body)
    };
    let mut lies: Vec<Lie> = Vec::new();
    let mut lie = |name: &'static str, answer: Arc<dyn Fn() -> Response + Send + Sync>| lies.push((name, answer));
    for code in [400, 401, 403, 404, 405, 409, 418, 429, 500, 501, 502, 503, 504] {
        lie("a status", Arc::new(status(code, "text/html", "<html>no</html>")));
    }
    lie(
        "a busy server",
        Arc::new(|| Response::builder().status(429).header("retry-after", "0").body(Body::empty()).unwrap()),
    );
    lie("a login page", Arc::new(status(200, "text/html", "<!doctype html><title>Sign in</title>")));
    lie(
        "a redirect",
        Arc::new(|| {
            Response::builder().status(302).header("location", "http://127.0.0.1:1/").body(Body::empty()).unwrap()
        }),
    );
    lie("DagsHub's 404", Arc::new(status(404, "application/json", r#"{"error": "unsupported endpoint"}"#)));
    lie(
        "an unknown alias",
        Arc::new(status(
            400,
            "application/json",
            r#"{"error_code":"INVALID_PARAMETER_VALUE","message":"Registered model alias champion not found."}"#,
        )),
    );
    lie("nothing", Arc::new(|| Response::new(Body::empty())));
    for body in ["{}", "null", "[]", "NaN", "{", "\u{feff}{}", "{\"model_version\":{}}", "{\"model_version\":null}"] {
        lie("a strange body", Arc::new(status(200, "application/json", body)));
    }
    lie("a deep body", Arc::new(|| say(StatusCode::OK, "application/json", "[".repeat(100_000))));
    lie(
        "an endless body",
        Arc::new(|| {
            let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 1 << 20]));
            Response::new(Body::from_stream(endless))
        }),
    );
    lie("a cut body", Arc::new(|| chunked(vec![Ok(b"{\"model_version\": {".to_vec()), Err(cut())])));
    for number in
        [json!("-1"), json!("latest"), json!("../1"), json!("9223372036854775808"), json!(0), json!(1.5), json!(null)]
    {
        lie("a strange version", Arc::new(json_of(with("version", number))));
    }
    lie("another model", Arc::new(json_of(with("name", json!("other")))));
    lie("a pending version", Arc::new(json_of(with("status", json!("PENDING_REGISTRATION")))));
    lie("a source elsewhere", Arc::new(json_of(with("source", json!("http://169.254.169.254/latest")))));
    lies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lie_of_the_registry_changes_what_is_served() {
    let lie: Arc<Mutex<Option<Lie>>> = Arc::default();
    let (told, honest) = (Arc::clone(&lie), honest(1000.0));
    let registry = Hostile::start(move |asked| {
        let answer = told.lock().unwrap().as_ref().map(|(_, answer)| answer());
        std::future::ready(answer.unwrap_or_else(|| numbered(&honest, 1, &asked)))
    })
    .await;
    let mut site = site(registry.uri.as_str());
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    let lies = lies();
    assert!(lies.len() >= 40, "{}", lies.len());
    for (name, answer) in lies {
        *lie.lock().unwrap() = Some((name, answer));
        gate.says("sum", name, |status| status["trouble"].is_string()).await;
        let row = json!({ "a": 1, "b": 2, "c": 3 });
        assert_eq!(gate.predict("sum", &row).await.body["prediction"], 1006.0, "{name}");
        *lie.lock().unwrap() = None;
        gate.says("sum", "the truth again", |status| status["trouble"].is_null()).await;
    }
    assert_eq!(gate.history("sum").await, [("served".to_owned(), "1".to_owned())]);
    gate.stop().await;
}

// ---- R-11, R-13: a registry that changes its mind

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alias_that_flaps_is_followed_without_fetching_anything_twice() {
    let points_at = Arc::new(AtomicU64::new(1));
    let (now, one, two) = (Arc::clone(&points_at), honest(1000.0), honest(2000.0));
    let registry = Hostile::start(move |asked| {
        let of_two =
            asked.path.contains("/model-2/") || asked.query.get("path").is_some_and(|path| path.contains("model-2"));
        std::future::ready(by_version(if of_two { &two } else { &one }, now.load(Ordering::SeqCst), &asked))
    })
    .await;
    let mut site = site(registry.uri.as_str());
    let gate = site.start("open").await;
    for turn in 0..20 {
        let version = 1 + turn % 2;
        points_at.store(version, Ordering::SeqCst);
        gate.serves("sum", version).await;
        let answer = gate.predict("sum", &json!({ "a": 1, "b": 2, "c": 3 })).await;
        let expect = if version == 2 { 2006.0 } else { 1006.0 };
        assert_eq!(answer.body["prediction"], expect, "{:?}", answer.body);
    }
    let fetched = registry.asked().iter().filter(|asked| asked.is_for("model.onnx")).count();
    assert_eq!(fetched, 2, "both stay loaded");
    gate.stop().await;
}

/// As [`numbered`], each version with a folder of its own.
fn by_version(honest: &Honest, number: u64, asked: &Asked) -> Response {
    if asked.path.ends_with("model-versions/get-download-uri") {
        let number = &asked.query["version"];
        return ok(&json!({ "artifact_uri": format!("mlflow-artifacts:/0/run/artifacts/model-{number}") }));
    }
    let mut asked = asked.clone();
    asked.path = asked.path.replace("/model-1/", "/model/").replace("/model-2/", "/model/");
    numbered(honest, number, &asked)
}

async fn keeps(gate: &Gate, version: u64, says: &str) {
    let silent = |status: &Value| status["trouble"].as_str().is_some_and(|trouble| trouble.contains(says));
    let status = gate.says("sum", says, silent).await;
    assert_eq!(status["version"], version.to_string());
}

/// R-13: everything a registry can do to a model that is served.
async fn check_transitions(server: &'static mlflow::Server) {
    const NAME: &str = "changes its mind";
    let register = async |base: f32| server.register(NAME, &sum_files(base)).await;
    register(1000.0).await;
    server.set_alias(NAME, "champion", 1).await;
    let mut site = Site::new(&format!(
        "[plans.open]\n[[model]]\nname = \"sum\"\nregistered_model = \"{NAME}\"\nselect = \"alias:champion\"\n\
         [registry]\nuri = \"{}\"\n",
        server.uri
    ));
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    server.delete_alias(NAME, "champion").await;
    keeps(&gate, 1, "not found").await;
    register(2000.0).await;
    server.set_alias(NAME, "champion", 2).await;
    gate.serves("sum", 2).await;
    // The alias goes with its version.
    server.delete_version(NAME, 2).await;
    keeps(&gate, 2, "not found").await;
    server.set_alias(NAME, "champion", 1).await;
    gate.serves("sum", 1).await;
    let renamed = json!({ "name": NAME, "new_name": "another name" });
    server.post("registered-models/rename", renamed).await;
    keeps(&gate, 1, "not found").await;
    let renamed = json!({ "name": "another name", "new_name": NAME });
    server.post("registered-models/rename", renamed).await;
    gate.says("sum", "the answer", |status| status["trouble"].is_null()).await;
    server.delete_model(NAME).await;
    keeps(&gate, 1, "not found").await;
    // Numbers start again: this version 1 is another.
    register(3000.0).await;
    server.set_alias(NAME, "champion", 1).await;
    let row = json!({ "a": 1, "b": 2, "c": 3 });
    eventually("the new version 1", async || gate.predict("sum", &row).await.body["prediction"] == 3006.0).await;
    server.delete_model(NAME).await;
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_real_mlflow_3_does_to_a_model_it_is_served() {
    check_transitions(mlflow::v3()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_real_mlflow_2_does_to_a_model_it_is_served() {
    check_transitions(mlflow::v2()).await;
}

// ---- the whole thing, with artifacts in S3 and the SDK's own credentials

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_reads_s3_with_the_credentials_of_its_environment() {
    let server = mlflow::v3_bucket();
    let s3 = s3::S3::start().await;
    let logged = server.post("logged-models", json!({ "experiment_id": "0", "name": "model" })).await;
    let info = &logged["model"]["info"];
    let folder = info["artifact_uri"].as_str().unwrap().strip_prefix("s3://samples/").unwrap();
    for (name, bytes) in sum_files(1000.0) {
        let object = s3.client(SECRET).put_object().bucket(BUCKET).key(format!("{folder}/{name}"));
        object.body(bytes.into()).send().await.unwrap();
    }
    let id = info["model_id"].as_str().unwrap();
    server.finish_upload(id).await;
    server.version_of("by the environment", json!({ "model_id": id, "source": format!("models:/{id}") })).await;
    server.set_alias("by the environment", "champion", 1).await;
    let site = site(server.uri.as_str());
    site.config();
    let file = site.folder().join("modelgate.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace("\"m\"", "\"by the environment\"");
    std::fs::write(&file, text).unwrap();
    let binary = Binary::serve_with(
        &file,
        &[
            ("MLFLOW_S3_ENDPOINT_URL", &s3.endpoint().replace("127.0.0.1", "localhost")),
            ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1"),
            ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ],
    );
    let http = reqwest::Client::new();
    binary.ready(&http).await;
    assert_eq!(admin_status(&http, &binary).await["version"], "1");
    binary.signal("TERM");
    binary.ended().await;
}
