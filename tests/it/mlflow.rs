//! The registry client against real MLflow servers, 3.x and the last 2.x, and against one that lies.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use modelgate::model::Version;
use modelgate::registry::cache::Cache;
use modelgate::registry::{Config, Credentials, Fetched, Found, Registry, RegistryError, Select};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::fixtures::noise;
use crate::support::hostile_registry::{Asked, Honest, Hostile, chunked, cut, ok, say, version};
use crate::support::mlflow::{
    self, ONNX_MLMODEL, Server, cache, client, fetch, filler, mlflow_at, onnx_files, registry_at,
};

fn both() -> [&'static Server; 2] {
    [mlflow::v3(), mlflow::v2()]
}

fn alias(name: &str) -> Select {
    Select::Alias(name.to_owned())
}

/// The digest as the documentation of the cache defines it.
fn digest_of(files: &[(&str, &[u8])]) -> String {
    let hex = |bytes: &[u8]| modelgate::model::Digest(Sha256::digest(bytes).into()).hex();
    let mut lines: Vec<String> = files.iter().map(|(name, bytes)| format!("{}  {name}\n", hex(bytes))).collect();
    lines.sort_unstable();
    hex(lines.concat().as_bytes())
}

fn files_below(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    files
}

#[track_caller]
fn assert_holds(fetched: &Fetched, files: &[(&str, &[u8])]) {
    let expect: BTreeMap<_, _> = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
    let found = files_below(&fetched.folder);
    assert_eq!(found.keys().collect::<Vec<_>>(), expect.keys().collect::<Vec<_>>());
    assert!(found == expect, "the bytes differ");
    assert_eq!(fetched.digest.hex(), digest_of(files));
}

// ---- real servers: which version

#[tokio::test]
async fn an_alias_is_followed_wherever_it_goes() {
    for server in both() {
        let registry = server.registry();
        let name = "alias lifecycle é@100%";
        server.register(name, &onnx_files(b"1")).await;
        server.register(name, &onnx_files(b"2")).await;
        server.set_alias(name, "champion", 1).await;
        server
            .post("model-versions/set-tag", json!({ "name": name, "version": "1", "key": "gate", "value": "passed" }))
            .await;
        let first = registry.resolve(name, &alias("champion")).await.unwrap();
        assert_eq!((first.version, first.alias.as_deref()), (Version(1), Some("champion")));
        assert_eq!(first.registered_model, name);
        assert_eq!(first.tags["gate"], "passed");
        assert!(first.created > 0 && !first.source.is_empty());

        server.set_alias(name, "champion", 2).await;
        let moved = registry.resolve(name, &alias("champion")).await.unwrap();
        assert_eq!(moved.version, Version(2));

        let wrong_case = registry.resolve(name, &alias("Champion")).await;
        assert!(matches!(wrong_case, Err(RegistryError::NotFound(_))), "{wrong_case:?}");
        server.delete_alias(name, "champion").await;
        let gone = registry.resolve(name, &alias("champion")).await;
        assert!(matches!(gone, Err(RegistryError::NotFound(_))), "{gone:?}");

        server.set_alias(name, "champion", 2).await;
        server.delete_version(name, 2).await;
        let gone = registry.resolve(name, &alias("champion")).await;
        assert!(matches!(gone, Err(RegistryError::NotFound(_))), "{gone:?}");
        let unknown = registry.resolve("no such model", &alias("champion")).await;
        assert!(matches!(unknown, Err(RegistryError::NotFound(_))), "{unknown:?}");
    }
}

#[tokio::test]
async fn the_latest_is_the_highest_number_whatever_was_edited_last() {
    for server in both() {
        let registry = server.registry();
        let name = "latest of eleven";
        server.register_in_run(name, &onnx_files(b"1")).await;
        let first = registry.resolve(name, &Select::Latest).await.unwrap();
        for number in 2..=11 {
            let same = json!({ "source": first.source, "run_id": run_of(&first.source) });
            assert_eq!(server.version_of(name, same).await, number);
        }
        let edit = json!({ "name": name, "version": "5", "description": "edited last" });
        server.call(reqwest::Method::PATCH, "model-versions/update", edit).await;
        let stage = json!({ "name": name, "version": "9", "stage": "Production", "archive_existing_versions": false });
        server.post("model-versions/transition-stage", stage).await;
        assert_eq!(registry.resolve(name, &Select::Latest).await.unwrap().version, Version(11));
        server.delete_version(name, 11).await;
        assert_eq!(registry.resolve(name, &Select::Latest).await.unwrap().version, Version(10));
        let nothing = registry.resolve("no such model", &Select::Latest).await;
        assert!(matches!(nothing, Err(RegistryError::NotFound(_))), "{nothing:?}");
    }
}

fn run_of(source: &str) -> &str {
    source.split('/').nth(2).unwrap()
}

#[tokio::test]
async fn the_latest_is_found_under_names_with_quotes_and_worse() {
    for server in both() {
        let registry = server.registry();
        server.register("plain", &onnx_files(b"1")).await;
        for name in
            ["it's", "say \"hi\"", "bo'th\"", "x' AND name='plain", "back\\slash", "per%27cent", "a&b=c+d", "x'--"]
        {
            server.register(name, &onnx_files(b"1")).await;
            let found = registry.resolve(name, &Select::Latest).await.unwrap();
            assert_eq!(found.registered_model, name);
        }
    }
}

#[tokio::test]
async fn a_stage_gives_its_newest_version() {
    for server in both() {
        let registry = server.registry();
        let name = "staged";
        let stage = Select::Stage("Production".to_owned());
        server.register(name, &onnx_files(b"1")).await;
        let none = registry.resolve(name, &stage).await;
        assert!(matches!(none, Err(RegistryError::NotFound(_))), "{none:?}");
        for version in ["1", "2"] {
            server.register(name, &onnx_files(version.as_bytes())).await;
            let body =
                json!({ "name": name, "version": version, "stage": "Production", "archive_existing_versions": false });
            server.post("model-versions/transition-stage", body).await;
        }
        assert_eq!(registry.resolve(name, &stage).await.unwrap().version, Version(2));
        let unknown = registry.resolve(name, &Select::Stage("Prod".to_owned())).await.unwrap_err();
        assert!(unknown.to_string().contains("Staging, Production, Archived"), "{unknown}");
    }
}

#[tokio::test]
async fn a_pinned_version_is_that_one_or_none() {
    for server in both() {
        let registry = server.registry();
        let name = "pinned";
        server.register(name, &onnx_files(b"1")).await;
        server.register(name, &onnx_files(b"2")).await;
        assert_eq!(registry.resolve(name, &Select::Version(Version(1))).await.unwrap().version, Version(1));
        server.delete_version(name, 1).await;
        for version in [1, 99] {
            let none = registry.resolve(name, &Select::Version(Version(version))).await;
            assert!(matches!(none, Err(RegistryError::NotFound(_))), "{none:?}");
        }
    }
}

#[tokio::test]
async fn a_version_of_a_model_made_anew_is_another_version() {
    for server in both() {
        let registry = server.registry();
        server.register("reborn", &onnx_files(b"1")).await;
        let before = registry.resolve("reborn", &Select::Latest).await.unwrap();
        server.delete_model("reborn").await;
        server.register("reborn", &onnx_files(b"1")).await;
        let after = registry.resolve("reborn", &Select::Latest).await.unwrap();
        assert_eq!(before.version, after.version);
        assert_ne!(before, after);
    }
}

// ---- real servers: its files

#[tokio::test]
async fn all_files_arrive_with_their_digest() {
    let big = noise(300_000, 1);
    let mut files = onnx_files(&big);
    // An archive is a file as any other: nothing in it is looked at.
    let archive = [b"../../../../evil".to_vec(), vec![0; 496], b"evil".to_vec(), vec![0; 1020]].concat();
    let link = b"PK\x03\x04\x14\0\0\0\0\0../../evil".to_vec();
    files.extend([("bundle.tar", archive.as_slice()), ("bundle.zip", link.as_slice())]);
    files.extend([("code/part one/ä.py", &b"x = 1"[..]), ("empty", b""), ("100%25.txt", b"x")]);
    let taken: Vec<_> = files.iter().copied().filter(|(name, _)| *name != "100%25.txt").collect();
    for server in both() {
        let registry = server.registry();
        let (_folder, cache) = cache();
        for (name, found) in [
            ("files", server.register("files", &taken).await),
            ("files in a run", server.register_in_run("files in a run", &taken).await),
        ] {
            let found = registry.resolve(name, &Select::Version(Version(found))).await.unwrap();
            let fetched = fetch(&registry, &found, &cache).await.unwrap();
            assert_holds(&fetched, &taken);
            let again = fetch(&registry, &found, &cache).await.unwrap();
            assert_eq!(fetched.folder, again.folder);
            assert_eq!(cache.get(&fetched.digest).unwrap().folder, fetched.folder);
        }
    }
}

#[tokio::test]
async fn a_registered_copy_has_the_files_of_its_original() {
    for server in both() {
        let registry = server.registry();
        let (_folder, cache) = cache();
        let files = onnx_files(b"original");
        server.register("original", &files).await;
        server.version_of("copy", json!({ "source": "models:/original/1" })).await;
        let found = registry.resolve("copy", &Select::Latest).await.unwrap();
        assert_holds(&fetch(&registry, &found, &cache).await.unwrap(), &files);
    }
}

#[tokio::test]
async fn a_version_whose_upload_goes_on_is_tried_again_later() {
    let server = mlflow::v3();
    let registry = server.registry();
    let (_folder, cache) = cache();
    let files = onnx_files(b"pending");
    let id = server.log_model(&files).await;
    server.version_of("pending", json!({ "model_id": id, "source": format!("models:/{id}") })).await;
    let found = registry.resolve("pending", &Select::Latest).await.unwrap();
    let early = fetch(&registry, &found, &cache).await;
    assert!(matches!(early, Err(RegistryError::Incomplete(_))), "{early:?}");
    server.finish_upload(&id).await;
    assert_holds(&fetch(&registry, &found, &cache).await.unwrap(), &files);
}

#[tokio::test]
async fn a_version_that_lost_files_is_not_taken_for_whole() {
    let mlmodel = format!("{ONNX_MLMODEL}model_size_bytes: 100\n");
    for server in both() {
        let registry = server.registry();
        let (_folder, cache) = cache();
        server.register("lost", &[("MLmodel", mlmodel.as_bytes()), ("model.onnx", &[7; 99])]).await;
        server.register("empty folder", &[("", ""); 0]).await;
        for name in ["lost", "empty folder"] {
            let found = registry.resolve(name, &Select::Latest).await.unwrap();
            let fetched = fetch(&registry, &found, &cache).await;
            assert!(matches!(fetched, Err(RegistryError::Incomplete(_))), "{fetched:?}");
        }
    }
}

#[tokio::test]
async fn a_server_that_hands_out_no_artifacts_is_asked_by_version() {
    let server = mlflow::v3_direct();
    let registry = server.registry();
    let (_folder, cache) = cache();
    let big = noise(200_000, 2);
    let mut files = onnx_files(&big);
    server.register_in_run("in a run", &files).await;
    let found = registry.resolve("in a run", &Select::Latest).await.unwrap();
    assert_holds(&fetch(&registry, &found, &cache).await.unwrap(), &files);
    // Of a logged model all files are known.
    files.push(("more/weights.data", b"weights"));
    server.register("logged", &files).await;
    let found = registry.resolve("logged", &Select::Latest).await.unwrap();
    assert_holds(&fetch(&registry, &found, &cache).await.unwrap(), &files);
}

#[tokio::test]
async fn a_model_of_another_flavor_is_refused_before_its_files_are_fetched() {
    let mlmodel =
        b"flavors:\n  sklearn: {pickled_model: model.pkl}\n  python_function: {loader_module: mlflow.sklearn}\n";
    for server in both() {
        let registry = server.registry();
        let (_folder, cache) = cache();
        server.register("pickled", &[("MLmodel", &mlmodel[..]), ("model.pkl", b"\x80\x04.")]).await;
        let found = registry.resolve("pickled", &Select::Latest).await.unwrap();
        let refused = fetch(&registry, &found, &cache).await.unwrap_err();
        assert!(matches!(refused, RegistryError::BadArtifacts(_)), "{refused:?}");
        assert!(refused.to_string().contains("skl2onnx"), "{refused}");
    }
}

/// A server between us and a real one that cuts each download of the whole `model.onnx` after `keep` bytes, with an error
/// page in the body as a killed 2.x worker leaves it.
async fn cutting(server: &'static Server, keep: usize) -> Hostile {
    Hostile::start(move |asked| async move {
        let mut url = server.uri.join(asked.path.trim_start_matches('/')).unwrap();
        url.query_pairs_mut().extend_pairs(&asked.query);
        let mut request = filler().get(url);
        for name in ["range", "if-range"] {
            if let Some(value) = asked.headers.get(name) {
                request = request.header(name, value);
            }
        }
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await.unwrap();
        let etag = headers.get("etag").cloned();
        if asked.is_for("model.onnx") && asked.range_start().is_none() {
            let page = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/html\r\n\r\n<html></html>".to_vec();
            let mut response = chunked(vec![Ok(body[..keep].to_vec()), Ok(page), Err(cut())]);
            response.headers_mut().extend(etag.map(|etag| (http::header::ETAG, etag)));
            return response;
        }
        let mut response = Response::builder().status(status);
        for name in ["content-type", "content-range", "etag"] {
            if let Some(value) = headers.get(name) {
                response = response.header(name, value);
            }
        }
        response.body(Body::from(body)).unwrap()
    })
    .await
}

#[tokio::test]
async fn a_download_a_real_server_cuts_is_taken_up_where_it_was() {
    let big = noise(400_000, 3);
    let files = onnx_files(&big);
    for server in both() {
        server.register("cut", &files).await;
        let between = cutting(server, 250_000).await;
        let registry = registry_at(&between.uri);
        let (_folder, cache) = cache();
        let found = registry.resolve("cut", &Select::Latest).await.unwrap();
        assert_holds(&fetch(&registry, &found, &cache).await.unwrap(), &files);
        let resumed: Vec<_> = between.asked().iter().filter_map(Asked::range_start).collect();
        assert_eq!(resumed.len(), 1);
        assert!((100_000..250_000).contains(&resumed[0]), "{resumed:?}");
    }
}

// ---- servers that lie

async fn resolve_at(hostile: &Hostile) -> Result<Found, RegistryError> {
    let mut config = mlflow_at(&hostile.uri);
    config.timeout = Duration::from_millis(300);
    Registry::new(Config::Mlflow(config.into()), filler().clone()).resolve("m", &alias("champion")).await
}

async fn fetch_at(hostile: &Hostile, cache: &Cache) -> Result<Fetched, RegistryError> {
    let registry = registry_at(&hostile.uri);
    let found = registry.resolve("m", &alias("champion")).await.unwrap();
    fetch(&registry, &found, cache).await
}

/// A registry that answers every question with this.
async fn check_says(answer: impl Fn() -> Response + Clone + Send + Sync + 'static, kind: &str, says: &str) {
    let error = resolve_at(&Hostile::saying(answer).await).await.unwrap_err();
    assert!(format!("{error:?}").starts_with(kind), "{error:?} is not {kind}");
    assert!(error.to_string().contains(says), "`{error}` does not say `{says}`");
}

#[tokio::test]
async fn refusals_name_their_cure() {
    let html = |status: u16, text: &'static str| {
        move || say(StatusCode::from_u16(status).unwrap(), "text/html; charset=utf-8", text)
    };
    let json = |status: u16, code: &'static str, message: &'static str| {
        move || {
            let body = json!({ "error_code": code, "message": message }).to_string();
            say(StatusCode::from_u16(status).unwrap(), "application/json", body)
        }
    };
    check_says(html(401, "You are not authenticated."), "Refused", "MLFLOW_TRACKING_USERNAME").await;
    check_says(html(403, "Permission denied"), "Refused", "Permission denied").await;
    let host = "Invalid Host header - possible DNS rebinding attack detected";
    check_says(html(403, host), "Refused", "--allowed-hosts 127.0.0.1:").await;
    check_says(html(404, "<!doctype html>"), "Refused", "is the registry's address right").await;
    let dagshub = || {
        say(StatusCode::NOT_FOUND, "application/json", r#"{"error": "unsupported endpoint, please contact support"}"#)
    };
    check_says(dagshub, "Refused", "has no `registered-models/alias`").await;
    check_says(json(400, "INVALID_PARAMETER_VALUE", "Registered model alias x not found."), "NotFound", "alias x")
        .await;
    check_says(json(404, "RESOURCE_DOES_NOT_EXIST", "Registered Model with name=m not found"), "NotFound", "name=m")
        .await;
    check_says(json(400, "INVALID_PARAMETER_VALUE", "bad\nline"), "Refused", "bad line").await;
    check_says(json(500, "FEATURE_DISABLED", "Workspaces are off"), "Refused", "take the workspace out").await;
    check_says(json(503, "TEMPORARILY_UNAVAILABLE", "database is locked"), "Unreachable", "database is locked").await;
    check_says(html(500, "<!doctype html>"), "Unreachable", "500").await;
    check_says(html(200, "<!doctype html><title>Sign in</title>"), "Nonsense", "HTML page").await;
}

#[tokio::test]
async fn wrong_answers_are_nonsense_and_never_a_version() {
    let with = |key: &str, value: Value| {
        let mut version = version();
        version[key] = value;
        json!({ "model_version": version }).to_string()
    };
    let deep = "[".repeat(100_000);
    let mut bodies = vec![
        String::new(),
        "{}".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        "{\"model_version\": {}}".to_owned(),
        "NaN".to_owned(),
        "{\"model_version\": null}".to_owned(),
        format!("{{\"model_version\": {deep}"),
        "\u{feff}{}".to_owned(),
        "{".to_owned(),
        with("name", json!("another")),
        with("name", json!(5)),
        with("source", json!(["x"])),
        with("tags", json!("x")),
    ];
    for number in [
        json!("latest"),
        json!("../1"),
        json!("-1"),
        json!(-1),
        json!(0),
        json!(1.5),
        json!("9223372036854775808"),
        json!(9_223_372_036_854_775_807_i64),
        json!(null),
        json!([1]),
        json!(""),
    ] {
        bodies.push(with("version", number));
    }
    for body in bodies {
        let sent = body.clone();
        let hostile = Hostile::saying(move || say(StatusCode::OK, "application/json", sent.clone())).await;
        let answer = resolve_at(&hostile).await;
        let shown = body.chars().take(80).collect::<String>();
        assert!(matches!(answer, Err(RegistryError::Nonsense(_))), "{shown}: {answer:?}");
    }
}

#[tokio::test]
async fn numbers_as_text_and_members_never_heard_of_are_taken() {
    let mut odd = version();
    odd["version"] = json!(7);
    odd["creation_timestamp"] = json!("1795190445155");
    odd["sqlstate"] = json!({ "new": [1, 2] });
    odd["tags"] = json!([{ "key": "a", "value": "b" }, { "key": "empty" }]);
    let hostile = Hostile::saying(move || ok(&json!({ "model_version": odd, "more": 1 }))).await;
    let found = resolve_at(&hostile).await.unwrap();
    assert_eq!((found.version, found.created), (Version(7), 1_795_190_445_155));
    assert_eq!(found.tags["a"], "b");
}

#[tokio::test]
async fn only_ready_models_are_versions() {
    for (key, value) in [
        ("status", json!("PENDING_REGISTRATION")),
        ("status", json!("FAILED_REGISTRATION")),
        ("status", json!("")),
        ("tags", json!([{ "key": "mlflow.prompt.is_prompt", "value": "true" }])),
    ] {
        let mut version = version();
        version[key] = value;
        let hostile = Hostile::saying(move || ok(&json!({ "model_version": version }))).await;
        let answer = resolve_at(&hostile).await;
        assert!(matches!(answer, Err(RegistryError::NotFound(_))), "{answer:?}");
    }
}

#[tokio::test]
async fn an_answer_too_long_or_too_slow_is_let_go() {
    let claim =
        || Response::builder().header("content-length", 1_u64 << 30).body(Body::from_stream(endless())).unwrap();
    check_says(claim, "Nonsense", "longer than").await;
    check_says(|| Response::new(Body::from_stream(endless())), "Nonsense", "longer than").await;
    let drip = || {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(b"{".to_vec())]);
        Response::new(Body::from_stream(futures_util::StreamExt::chain(first, futures_util::stream::pending())))
    };
    check_says(drip, "Unreachable", "no whole answer").await;
    check_says(|| chunked(vec![Ok(b"{\"model_version\": {".to_vec()), Err(cut())]), "Unreachable", "").await;
    let silent = Hostile::start(|_| std::future::pending::<Response>()).await;
    assert!(matches!(resolve_at(&silent).await, Err(RegistryError::Unreachable(_))));
}

fn endless() -> impl futures_util::Stream<Item = Result<Vec<u8>, std::io::Error>> {
    futures_util::stream::repeat_with(|| Ok(vec![b' '; 1 << 20]))
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let registry = registry_at(&format!("http://{free}").parse().unwrap());
    assert!(matches!(registry.resolve("m", &Select::Latest).await, Err(RegistryError::Unreachable(_))));
}

#[tokio::test]
async fn a_busy_server_is_left_alone_as_long_as_it_asks() {
    let cases = [
        (429, Some(("retry-after", "17")), Some(17)),
        (429, None, None),
        (429, Some(("retry-after", "soon")), None),
        (429, Some(("retry-after", "999999999")), Some(3600)),
        (503, Some(("retry-after", "5")), Some(5)),
        (429, Some(("retry-after", "Fri, 20 Nov 2026 16:01:20 GMT")), Some(20)),
        (429, Some(("retry-after", "Fri, 20 Nov 2026 16:00:20 GMT")), Some(0)),
    ];
    for (status, header, seconds) in cases {
        let hostile = Hostile::saying(move || {
            let response = Response::builder().status(status).header("date", "Fri, 20 Nov 2026 16:01:00 GMT");
            header
                .into_iter()
                .fold(response, |response, (name, value)| response.header(name, value))
                .body(Body::empty())
                .unwrap()
        });
        let Err(RegistryError::Busy { retry_after }) = resolve_at(&hostile.await).await else {
            panic!("{status} is not busy")
        };
        assert_eq!(retry_after, seconds.map(Duration::from_secs), "{header:?}");
    }
}

#[tokio::test]
async fn redirects_are_not_followed_and_credentials_stay() {
    let elsewhere = Hostile::saying(|| ok(&json!({ "model_version": version() }))).await;
    let target = elsewhere.uri.clone();
    let hostile = Hostile::saying(move || {
        Response::builder()
            .status(302)
            .header("location", format!("{target}steal?token=secret"))
            .body(Body::empty())
            .unwrap()
    })
    .await;
    let mut config = mlflow_at(&hostile.uri);
    config.credentials = Credentials::Bearer("secret-token".into());
    let error = Registry::new(Config::Mlflow(config.into()), client()).resolve("m", &Select::Latest).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::Refused(text) if text.contains("/steal,") && !text.contains("secret")),
        "{error:?}"
    );
    assert!(elsewhere.asked().is_empty());
    assert_eq!(hostile.asked()[0].headers["authorization"], "Bearer secret-token");
}

#[tokio::test]
async fn credentials_path_and_workspace_go_where_they_belong() {
    let honest = Honest::with(&onnx_files(b"1"));
    let hostile = Hostile::start(move |mut asked| {
        asked.path = asked.path.strip_prefix("/base/u.mlflow").unwrap_or_default().to_owned();
        std::future::ready(honest.answer(&asked))
    })
    .await;
    let mut uri = hostile.uri.join("base/u.mlflow/").unwrap();
    uri.set_username("us%40er").unwrap();
    uri.set_password(Some("p%3Aw")).unwrap();
    let mut config = mlflow_at(&uri);
    config.workspace = Some("team-a".to_owned());
    let registry = Registry::new(Config::Mlflow(config.into()), client());
    let (_folder, cache) = cache();
    let found = registry.resolve("m", &alias("champion")).await.unwrap();
    fetch(&registry, &found, &cache).await.unwrap();
    for asked in hostile.asked() {
        assert!(asked.path.starts_with("/base/u.mlflow/") && !asked.path.contains("//"), "{}", asked.path);
        // us@er:p:w
        assert_eq!(asked.headers["authorization"], "Basic dXNAZXI6cDp3");
        assert_eq!(asked.headers["x-mlflow-workspace"], "team-a");
    }
    assert!(!format!("{registry:?}").contains("p%3Aw"));
    let plain = Hostile::saying(|| ok(&json!({}))).await;
    let _ = resolve_at(&plain).await;
    assert!(!plain.asked()[0].headers.contains_key("authorization"));
    assert!(!plain.asked()[0].headers.contains_key("x-mlflow-workspace"));
}

#[tokio::test]
async fn a_server_without_search_is_asked_for_its_latest_versions() {
    let hostile = Hostile::start(|asked| {
        std::future::ready(if asked.path.ends_with("/get-latest-versions") {
            let [mut two, mut ten] = [version(), version()];
            two["version"] = json!("2");
            ten["version"] = json!("10");
            ok(&json!({ "model_versions": [ten, two] }))
        } else {
            say(
                StatusCode::NOT_FOUND,
                "application/json",
                r#"{"error": "unsupported endpoint, please contact support@dagshub.com"}"#,
            )
        })
    })
    .await;
    let found = registry_at(&hostile.uri).resolve("m", &Select::Latest).await.unwrap();
    assert_eq!(found.version, Version(10));
}

#[tokio::test]
async fn sources_that_lead_elsewhere_are_refused_before_anything_is_asked() {
    let honest = Hostile::saying(|| panic!("nothing is asked")).await;
    let registry = registry_at(&honest.uri);
    let (_folder, cache) = cache();
    let bad = [
        "http://169.254.169.254/x",
        "mlflow-artifacts://evil.example/x",
        "mlflow-artifacts:/../x",
        "mlflow-artifacts:/%2e%2e/x",
    ];
    for source in bad {
        let found = Found {
            registered_model: "m".to_owned(),
            version: Version(1),
            alias: None,
            source: source.to_owned(),
            created: 0,
            tags: BTreeMap::new(),
        };
        let refused = fetch(&registry, &found, &cache).await;
        assert!(matches!(refused, Err(RegistryError::BadArtifacts(_))), "{refused:?}");
        let mut lying = version();
        lying["source"] = json!(source);
        let hostile = Hostile::saying(move || ok(&json!({ "model_version": lying }))).await;
        let refused = resolve_at(&hostile).await;
        assert!(matches!(refused, Err(RegistryError::BadArtifacts(_))), "{refused:?}");
    }
    assert!(honest.asked().is_empty());
}

#[tokio::test]
async fn storage_that_leads_elsewhere_is_refused_before_it_is_asked() {
    for uri in
        ["https://evil.example/x", "mlflow-artifacts://evil.example/x", "mlflow-artifacts:/a/../../x", "ftp://x/y"]
    {
        let honest = Honest { artifact_uri: uri, ..Honest::with(&onnx_files(b"1")) };
        let hostile = Hostile::start(move |asked| std::future::ready(honest.answer(&asked))).await;
        let (_folder, cache) = cache();
        let refused = fetch_at(&hostile, &cache).await;
        assert!(matches!(refused, Err(RegistryError::BadArtifacts(_))), "{refused:?}");
        assert!(hostile.asked().last().unwrap().path.ends_with("/get-download-uri"));
    }
}

#[tokio::test]
async fn unresolved_run_and_model_addresses_are_resolved() {
    let files = onnx_files(b"1");
    for (uri, call, info) in [
        (
            "runs:/run/model",
            "runs/get",
            json!({ "run": { "info": { "artifact_uri": "mlflow-artifacts:/0/run/artifacts" } } }),
        ),
        (
            "models:/m-1",
            "logged-models/m-1",
            json!({ "model": { "info": { "artifact_uri": "mlflow-artifacts:/0/run/artifacts/model", "status": "LOGGED_MODEL_READY" } } }),
        ),
    ] {
        let honest = Honest { artifact_uri: uri, ..Honest::with(&files) };
        let hostile = Hostile::start(move |asked| {
            std::future::ready(if asked.path.ends_with(call) { ok(&info) } else { honest.answer(&asked) })
        })
        .await;
        let (_folder, cache) = cache();
        assert_holds(&fetch_at(&hostile, &cache).await.unwrap(), &files);
        assert!(hostile.asked().iter().all(|asked| asked.path != "/model-versions/get-artifact"));
    }
}

#[tokio::test]
async fn without_a_listing_the_files_are_those_that_mlmodel_names() {
    let mut files = onnx_files(b"1");
    let honest = Honest { artifact_uri: "s3://bucket/x", ..Honest::with(&files) };
    let hostile = Hostile::start(move |asked| std::future::ready(honest.answer(&asked))).await;
    let (_folder, cache) = cache();
    assert_holds(&fetch_at(&hostile, &cache).await.unwrap(), &files);
    assert!(hostile.asked().iter().all(|asked| !asked.path.contains("mlflow-artifacts")));
    // The same where the proxy is switched off.
    files.push(("not named.bin", b"x"));
    let honest = Honest::with(&files);
    let off = Hostile::start(move |asked| {
        std::future::ready(if asked.path.contains("mlflow-artifacts") {
            say(
                StatusCode::SERVICE_UNAVAILABLE,
                "application/json",
                r#"{"detail":"Artifact serving is disabled. Run with x"}"#,
            )
        } else {
            honest.answer(&asked)
        })
    })
    .await;
    assert_holds(&fetch_at(&off, &cache).await.unwrap(), &files[..4]);
}

/// A registry whose listing is this.
async fn fetch_listed(listing: Value) -> (Result<Fetched, RegistryError>, tempfile::TempDir) {
    let honest = Honest::with(&onnx_files(b"1"));
    let hostile = Hostile::start(move |asked| {
        let is_listing = asked.path == "/api/2.0/mlflow-artifacts/artifacts";
        std::future::ready(if is_listing { ok(&listing) } else { honest.answer(&asked) })
    })
    .await;
    let (folder, cache) = cache();
    (fetch_at(&hostile, &cache).await, folder)
}

#[tokio::test]
async fn names_that_leave_the_folder_are_refused_and_nothing_is_written() {
    let names = ["../x", "/etc/x", "a/../../x", "..\\x", "%2e%2e/x", "C:\\x", "a\0b", "", ".", "a//b", "%252e/x"];
    for (name, is_dir) in names.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        let listing = json!({ "files": [{ "path": "MLmodel", "file_size": 1 }, { "path": name, "file_size": 1, "is_dir": is_dir }] });
        let (refused, folder) = fetch_listed(listing).await;
        assert!(matches!(refused, Err(RegistryError::BadArtifacts(_))), "{name}: {refused:?}");
        assert!(files_below(folder.path()).is_empty());
    }
}

#[tokio::test]
async fn listings_beyond_the_limits_are_refused() {
    let mlmodel = json!({ "path": "MLmodel", "file_size": ONNX_MLMODEL.len() });
    let many: Vec<Value> = (0..300).map(|i| json!({ "path": format!("f{i}"), "file_size": 1 })).collect();
    let folder_in_itself = json!([mlmodel, { "path": "again", "is_dir": true }]);
    let too_large = json!([mlmodel, { "path": "big", "file_size": (64_u64 << 20) + 1 }]);
    let overflow = json!([mlmodel, { "path": "a", "file_size": u64::MAX }, { "path": "b", "file_size": u64::MAX }]);
    for files in [json!(many), folder_in_itself, too_large, overflow, json!([{ "path": "model.onnx", "file_size": 1 }])]
    {
        let (refused, folder) = fetch_listed(json!({ "files": files })).await;
        assert!(matches!(refused, Err(RegistryError::BadArtifacts(_))), "{refused:?}");
        assert!(files_below(folder.path()).is_empty());
    }
}

#[tokio::test]
async fn a_file_that_is_not_as_long_as_listed_is_never_kept() {
    for wrong in [-1_i64, 1, 1000] {
        let mut listing = Honest::with(&onnx_files(b"12345")).listing();
        let size = listing["files"][1]["file_size"].as_i64().unwrap();
        listing["files"][1]["file_size"] = json!(size + wrong);
        let (refused, folder) = fetch_listed(listing).await;
        assert!(matches!(refused, Err(RegistryError::Incomplete(_))), "{wrong}: {refused:?}");
        assert!(files_below(folder.path()).is_empty());
    }
}

#[tokio::test]
async fn a_file_that_changed_between_two_parts_is_fetched_anew() {
    let (old, new) = (noise(300_000, 6), noise(300_000, 7));
    let honest = Honest::with(&onnx_files(&new));
    let first = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let hostile = Hostile::start(move |asked| {
        let is_download = asked.path.starts_with("/api/2.0/mlflow-artifacts/") && asked.path.ends_with("/model.onnx");
        let is_first = is_download && first.swap(false, std::sync::atomic::Ordering::SeqCst);
        std::future::ready(if is_first {
            chunked(vec![Ok(old[..200_000].to_vec()), Err(cut())])
        } else {
            honest.answer(&asked)
        })
    })
    .await;
    let (_folder, cache) = cache();
    assert_holds(&fetch_at(&hostile, &cache).await.unwrap(), &onnx_files(&new));
}

#[tokio::test]
async fn a_server_that_gives_no_parts_is_asked_three_times_for_the_whole() {
    let model = noise(300_000, 8);
    let honest = Honest::with(&onnx_files(&model));
    let hostile = Hostile::start(move |asked| {
        let is_model = asked.is_for("model.onnx");
        let bytes = honest.bytes("model.onnx").unwrap();
        std::future::ready(if is_model {
            chunked(vec![Ok(bytes[..200_000].to_vec()), Err(cut())])
        } else {
            honest.answer(&asked)
        })
    })
    .await;
    let (folder, cache) = cache();
    let refused = fetch_at(&hostile, &cache).await;
    assert!(matches!(refused, Err(RegistryError::Incomplete(_))), "{refused:?}");
    let whole = hostile.asked().iter().filter(|asked| asked.is_for("model.onnx")).count();
    assert_eq!(whole, 3);
    assert!(files_below(folder.path()).is_empty());
}

#[test]
fn no_answer_whatever_makes_the_client_panic() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut runner =
        TestRunner::new(proptest::test_runner::Config { cases: 64, failure_persistence: None, ..Default::default() });
    let bodies = (100_u16..600, proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200));
    runner
        .run(&bodies, |(status, body)| {
            // A 1xx is no answer.
            let status = StatusCode::from_u16(status.max(200)).unwrap();
            runtime.block_on(async {
                let hostile = Hostile::saying(move || say(status, "application/json", body.clone())).await;
                assert!(resolve_at(&hostile).await.is_err());
            });
            Ok(())
        })
        .unwrap();
}
