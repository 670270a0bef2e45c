//! The binary itself: what it prints, how it takes signals, what it leaves behind.
#![expect(clippy::disallowed_methods, reason = "a thread of the test reads the log")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use modelgate::clock::Clock;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Value, json};

use crate::support::canary;
use crate::support::cloudwatch::{CloudWatch, Mode};
use crate::support::s3::{self, S3};
use crate::support::site::{Answer, Site, eventually};
use crate::support::{fixtures, mlflow, redis};

/// A gateway in a process of its own, killed if the test does not end it.
pub(crate) struct Binary {
    child: Child,
    pub(crate) data: SocketAddr,
    pub(crate) admin: SocketAddr,
    log: std::thread::JoinHandle<String>,
}

impl Binary {
    /// Starts `serve` on a file and returns once it listens. The addresses are read from its log.
    fn serve(file: &Path) -> Self {
        Self::serve_with(file, &[])
    }

    /// The same, with more in its environment.
    pub(crate) fn serve_with(file: &Path, environment: &[(&str, &str)]) -> Self {
        Self::start(&mut Command::new(env!("CARGO_BIN_EXE_modelgate")), file, environment)
    }

    pub(crate) fn start(command: &mut Command, file: &Path, environment: &[(&str, &str)]) -> Self {
        command
            .arg("serve")
            .arg("--config")
            .arg(file)
            .env("RUST_LOG", canary::log_level())
            .envs(environment.iter().copied());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let process = child.id();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap());
        let mut lines = lines.inspect(move |line| canary::keep(process, line));
        let mut seen = String::new();
        let listening = lines
            .by_ref()
            .inspect(|line| seen.push_str(&(line.clone() + "\n")))
            .find(|line| line.contains("listening on"));
        let line = listening.unwrap_or_else(|| panic!("the gateway never listened:\n{seen}"));
        let after = |word: &str| -> SocketAddr {
            let rest = &line[line.find(word).unwrap() + word.len()..];
            let address: String = rest.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect();
            address.parse().unwrap_or_else(|_| panic!("no address after `{word}` in `{line}`"))
        };
        let (data, admin) = (after("listening on "), after("admin on "));
        let log = std::thread::spawn(move || lines.collect::<Vec<_>>().join("\n"));
        Self { child, data, admin, log }
    }

    /// Its number among processes.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub(crate) async fn ended(mut self) -> (ExitStatus, String) {
        let mut status = None;
        eventually("the process to end", async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        let log = std::mem::replace(&mut self.log, std::thread::spawn(String::new)).join().unwrap();
        (status.unwrap(), log)
    }

    /// Has `sum` answer seven rows, whose first features are 0 to 6, and stops in order.
    pub(crate) async fn answer_seven_and_end(self, key: &str) {
        let http = reqwest::Client::new();
        self.ready(&http).await;
        for turn in 0..7 {
            let request = http.post(format!("http://{}/predict", self.data)).header("x-api-key", key);
            let request = request.json(&json!({"data": {"a": turn, "b": 0, "c": 0}}));
            assert_eq!(request.send().await.unwrap().status(), 200);
        }
        self.signal("TERM");
        let (status, log) = self.ended().await;
        assert_eq!(status.code(), Some(0), "{log}");
    }

    pub(crate) async fn ready(&self, http: &reqwest::Client) {
        let url = format!("http://{}/readyz", self.data);
        eventually("the gateway to be ready", async || {
            http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A site with the sum model in version 1, samples in a directory, and its file.
pub(crate) fn site() -> (Site, PathBuf) {
    let text = "[plans.open]\n[[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n\
                [capture]\nsink = \"file:{folder}/samples\"\n";
    let (site, file) = site_of(text);
    site.register_sum("sum", 1, 1000.0);
    site.promote("sum", 1);
    (site, file)
}

/// A site with this configuration, and its file.
pub(crate) fn site_of(text: &str) -> (Site, PathBuf) {
    let site = Site::new(text);
    site.config();
    let file = site.folder().join("modelgate.toml");
    (site, file)
}

/// Rows in all sample objects of which `is_meant` is true of the key.
fn sampled_rows(objects: Vec<(String, Vec<u8>)>, is_meant: impl Fn(&str) -> bool) -> i64 {
    let rows = |bytes| SerializedFileReader::new(Bytes::from(bytes)).unwrap().metadata().file_metadata().num_rows();
    objects.into_iter().filter(|(key, _)| is_meant(key)).map(|(_, bytes)| rows(bytes)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_loses_no_answer_and_no_sample() {
    let (mut site, file) = site();
    let key = site.key("open");
    let binary = Binary::serve(&file);
    let http = reqwest::Client::new();
    binary.ready(&http).await;
    let url = format!("http://{}/predict", binary.data);
    let callers: Vec<_> = (0..16)
        .map(|caller| {
            let (http, url, key) = (http.clone(), url.clone(), key.clone());
            tokio::spawn(async move {
                let mut answered = 0_u32;
                loop {
                    let body = json!({"data": {"a": caller, "b": answered, "c": 0}}).to_string();
                    let request = http.post(&url).header("x-api-key", &key).header("content-type", "application/json");
                    // From here on, a connection that is refused or closed before an answer began was never accepted.
                    let Ok(response) = request.body(body).send().await else { return answered };
                    let answer = Answer::of(response).await;
                    if answer.status == 503 {
                        assert_eq!(answer.body["code"], "shutting_down");
                        return answered;
                    }
                    assert_eq!(answer.status, 200, "{}", answer.body);
                    assert_eq!(
                        answer.body["prediction"].as_f64(),
                        Some(1000.0 + f64::from(caller) + f64::from(answered))
                    );
                    answered += 1;
                }
            })
        })
        .collect();
    tokio::time::timeout(Duration::from_mins(1), async {
        let metrics = format!("http://{}/metrics", binary.admin);
        eventually("some load", async || {
            let page = http.get(&metrics).send().await.unwrap().text().await.unwrap();
            let count = |line: &str| line.rsplit(' ').next().and_then(|figure| figure.parse::<f64>().ok());
            page.lines().any(|line| line.starts_with("modelgate_requests_total{") && count(line) > Some(200.0))
        })
        .await;
    })
    .await
    .unwrap();
    binary.signal("TERM");
    let (status, log) = binary.ended().await;
    let mut answered = 0;
    for caller in callers {
        answered += i64::from(caller.await.unwrap());
    }
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("stopped in order"), "{log}");
    assert_eq!(sampled_rows(s3::samples(&site.folder().join("samples")), |_| true), answered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_made_and_revoked_by_the_command_line_work_in_a_running_gateway() {
    let (_site, file) = site();
    let binary = Binary::serve(&file);
    let http = reqwest::Client::new();
    binary.ready(&http).await;
    let keys = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_modelgate"))
            .arg("keys")
            .args(arguments)
            .arg("--config")
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let made = keys(&["create", "--name", "shop", "--plan", "open"]);
    let key = made.split_whitespace().find(|word| word.starts_with("mg_live_")).expect("the key is printed").to_owned();
    let ask = async || {
        let request = http.post(format!("http://{}/predict", binary.data)).header("x-api-key", &key);
        let body = json!({"data": {"a": 1, "b": 2, "c": 3}}).to_string();
        request.header("content-type", "application/json").body(body).send().await.unwrap().status().as_u16()
    };
    eventually("the new key to work", async || ask().await == 200).await;

    let id = &key["mg_live_".len()..][..10];
    let listed = keys(&["list"]);
    assert!(listed.contains(id) && listed.contains("shop"), "{listed}");
    assert!(!listed.contains(&key[20..]), "the list shows no secret");
    keys(&["revoke", id]);
    eventually("the revoked key to stop working", async || ask().await == 401).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_prints_a_curl_line_that_works_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_modelgate"))
        .args(["demo", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let curl = lines.map(|line| line.trim().to_owned()).find(|line| line.starts_with("curl ")).expect("a curl line");
    let mut answer = serde_json::Value::Null;
    eventually("the demo's answer", async || {
        let output = Command::new("sh").args(["-c", &curl]).output().unwrap();
        answer = serde_json::from_slice(&output.stdout).unwrap_or_default();
        answer["prediction"].is_string()
    })
    .await;
    assert_eq!((&answer["model"], &answer["version"]), (&json!("credit-score"), &json!("1")));
    let sum: f64 = answer["probabilities"].as_object().unwrap().values().map(|share| share.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{answer}");
    assert!(Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the demo removes what it made");
}

/// The files of a version, as `Server::register` takes them.
fn version_files(fixture: &str, onnx: Option<Vec<u8>>) -> Vec<(String, Vec<u8>)> {
    let folder = fixtures::folder(fixture);
    let names = ["MLmodel", "model.onnx", "input_example.json", "serving_input_example.json"];
    let read = |name: &str| (name.to_owned(), std::fs::read(folder.join(name)).unwrap());
    let mut files: Vec<_> = names.into_iter().map(read).collect();
    if let Some(onnx) = onnx {
        files[1].1 = onnx;
    }
    files
}

async fn register(server: &mlflow::Server, model: &str, fixture: &str, onnx: Option<Vec<u8>>) -> u64 {
    let files = version_files(fixture, onnx);
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    server.register(model, &files).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_main_job_with_mlflow_3_cloudwatch_and_s3() {
    the_main_job(mlflow::v3()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_main_job_with_mlflow_2_cloudwatch_and_s3() {
    the_main_job(mlflow::v2()).await;
}

/// An environment in which AWS is these two.
fn aws(s3: &S3, cloudwatch: &CloudWatch) -> [(&'static str, String); 6] {
    [
        ("AWS_ENDPOINT_URL_S3", s3.endpoint()),
        ("AWS_ENDPOINT_URL_CLOUDWATCH", cloudwatch.endpoint().to_owned()),
        ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", s3::SECRET.to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
    ]
}

/// Two models of a real server in one gateway; an alias that moves under load; then what CloudWatch and S3 got.
async fn the_main_job(server: &mlflow::Server) {
    register(server, "whole-credit", "pipeline", None).await;
    server.set_alias("whole-credit", "champion", 1).await;
    register(server, "whole-sum", "sum", Some(fixtures::sum_model(1000.0))).await;
    server.set_alias("whole-sum", "champion", 1).await;
    let (s3, cloudwatch) = (S3::start().await, CloudWatch::start(Clock::system().now()).await);
    let mut site = Site::new(&format!(
        "[plans.open]\n[plans.tiny]\nquota = 10\nperiod = \"month\"\n\
         [[model]]\nname = \"credit\"\nregistered_model = \"whole-credit\"\n\
         [[model]]\nname = \"sum\"\nregistered_model = \"whole-sum\"\n\
         [registry]\nuri = \"{}\"\npoll_interval = \"5s\"\n\
         [metrics.cloudwatch]\nnamespace = \"Gate\"\n[capture]\nsink = \"s3://{}/drift\"\n",
        server.uri,
        s3::BUCKET
    ));
    let (open, tiny) = (site.key("open"), site.key("tiny"));
    let environment = aws(&s3, &cloudwatch);
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let binary = Binary::serve_with(&site.folder().join("modelgate.toml"), &environment);
    let http = reqwest::Client::new();
    binary.ready(&http).await;
    let ask = async |model: &str, key: &str, data: &Value| {
        let url = format!("http://{}/models/{model}/predict", binary.data);
        let request = http.post(url).header("x-api-key", key).header("content-type", "application/json");
        Answer::of(request.body(json!({ "data": data }).to_string()).send().await.unwrap()).await
    };

    let expected = fixtures::expected("pipeline");
    let rows: Vec<Value> = expected.rows().collect();
    let answer = ask("credit", &open, &Value::Array(rows.clone())).await;
    for (row, prediction) in answer.body["predictions"].as_array().unwrap().iter().enumerate() {
        expected.assert_row(row, prediction);
    }

    register(server, "whole-sum", "sum", Some(fixtures::sum_model(2000.0))).await;
    server.set_alias("whole-sum", "champion", 2).await;
    let mut asked = 0;
    eventually("version 2 to answer", async || {
        let answer = ask("sum", &open, &json!({"a": 1, "b": 2, "c": 3})).await;
        asked += 1;
        let version = answer.body["version"].as_str().unwrap().to_owned();
        assert_eq!(answer.body["prediction"].as_f64(), Some(if version == "1" { 1006.0 } else { 2006.0 }));
        version == "2"
    })
    .await;
    server.delete_alias("whole-sum", "champion").await;

    let mut statuses = Vec::new();
    for _ in 0..12 {
        statuses.push(ask("sum", &tiny, &json!({"a": 1, "b": 2, "c": 3})).await.status);
    }
    assert_eq!(statuses, [[200; 10].as_slice(), &[429; 2]].concat());
    asked += 10;

    binary.signal("TERM");
    let (status, log) = binary.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(sampled_rows(s3.objects(), |key| key.contains("model=sum/")), asked);
    assert_eq!(sampled_rows(s3.objects(), |key| key.starts_with("drift/model=credit/version=1/date=")), 200);
    check_measurements(&cloudwatch, &rows, asked);
}

/// What CloudWatch took, against the rows that were sent.
#[expect(clippy::float_cmp, reason = "counts are whole numbers")]
fn check_measurements(cloudwatch: &CloudWatch, rows: &[Value], asked: i64) {
    assert_eq!(cloudwatch.refusals(), []);
    assert!(cloudwatch.datums().iter().all(|datum| datum.namespace == "Gate"));
    let totals = cloudwatch.totals();
    let total = |name: &str, dimensions: &[(&str, &str)]| {
        let wanted: BTreeSet<(String, String)> =
            dimensions.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut found = totals.iter().filter(|((metric, dimensions), _)| {
            metric == name && dimensions.iter().cloned().collect::<BTreeSet<_>>() == wanted
        });
        found.next().map_or((0.0, 0.0), |(_, total)| *total)
    };
    #[expect(clippy::cast_precision_loss, reason = "hundreds of rows")]
    let (rows_sent, asked) = (rows.len() as f64, asked as f64);
    assert_eq!(total("Prediction", &[("Model", "credit")]).0, rows_sent);
    assert_eq!(total("Prediction", &[("Model", "credit"), ("Version", "1")]).0, rows_sent);
    assert_eq!(total("Prediction", &[("Model", "sum")]).0, asked);
    for (feature, kind) in rows[1].as_object().unwrap() {
        let feature_of = |row: &Value| row[feature].clone();
        let given = rows.iter().map(feature_of).filter(|value| !value.is_null());
        if kind.is_string() {
            let counted = totals.iter().filter(|((metric, dimensions), _)| {
                metric == "FeatureCategory" && dimensions.contains(&("Feature".to_owned(), feature.clone()))
            });
            let counted: f64 = counted.map(|(_, (_, sum))| sum).sum();
            #[expect(clippy::cast_precision_loss, reason = "hundreds of rows")]
            let given = given.count() as f64;
            assert_eq!(counted, given, "{feature}");
        } else {
            let sum: f64 = given.filter_map(|value| value.as_f64()).sum();
            let measured = total("FeatureValue", &[("Model", "credit"), ("Feature", feature)]).1;
            assert!((measured - sum).abs() <= 1e-9 * sum.abs(), "{feature}: {measured} for {sum}");
        }
    }
}

async fn predict(http: &reqwest::Client, data: SocketAddr, key: &str) -> Answer {
    let request = http.post(format!("http://{data}/predict")).header("x-api-key", key);
    let body = json!({"data": {"a": 1, "b": 2, "c": 3}}).to_string();
    Answer::of(request.header("content-type", "application/json").body(body).send().await.unwrap()).await
}

/// Sends requests over `key` to a gateway until one is refused; how many were answered, and the refusal.
async fn predict_until_refused(http: &reqwest::Client, data: SocketAddr, key: &str) -> (u32, Answer) {
    let mut answered = 0;
    loop {
        let answer = predict(http, data, key).await;
        if answer.status != 200 {
            return (answered, answer);
        }
        answered += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_gateways_on_one_redis_admit_the_quota_and_go_on_without_it() {
    let mut server = redis::Server::start();
    let mut site = Site::new(&format!(
        "[plans.shared]\nquota = 300\n[plans.other]\nquota = 300\n\
         [plans.dry]\nquota = 300\nenforce = false\n[[model]]\nname = \"sum\"\n\
         [quota]\nstore = \"{}\"\n",
        server.url()
    ));
    site.register_sum("sum", 1, 1000.0);
    site.promote("sum", 1);
    let (shared, other, dry) = (site.key("shared"), site.key("other"), site.key("dry"));
    let file = site.folder().join("modelgate.toml");
    let gateways: Vec<_> = (0..3)
        .map(|number| {
            let folder = site.folder().join(format!("data-{number}"));
            std::fs::create_dir(&folder).unwrap();
            for name in ["modelgate.db", "pepper"] {
                std::fs::copy(site.folder().join("data").join(name), folder.join(name)).unwrap();
            }
            Binary::serve_with(&file, &[("MODELGATE__DATA_DIR", folder.to_str().unwrap())])
        })
        .collect();
    let http = reqwest::Client::new();
    let mut callers = tokio::task::JoinSet::new();
    for gateway in &gateways {
        gateway.ready(&http).await;
    }
    for gateway in &gateways {
        for _ in 0..8 {
            let (http, data, key) = (http.clone(), gateway.data, shared.clone());
            callers.spawn(async move {
                let mut answered = 0;
                loop {
                    let (more, refusal) = predict_until_refused(&http, data, &key).await;
                    answered += more;
                    // On a busy machine an answer of the store can be late, and what is lent for that be used up.
                    if refusal.status != 503 {
                        return (answered, refusal);
                    }
                }
            });
        }
    }
    let mut admitted = 0;
    for (answered, refusal) in callers.join_all().await {
        admitted += answered;
        assert_eq!((refusal.status, refusal.body["code"].as_str()), (429, Some("quota_exceeded")), "{}", refusal.body);
    }
    // Exactly, but for what was lent for late answers; where nothing is lent, `shared_quota` has it exactly.
    assert!((300..=309).contains(&admitted), "{admitted}");

    server.kill();
    for gateway in &gateways {
        let (answered, refusal) = predict_until_refused(&http, gateway.data, &other).await;
        assert_eq!(answered, 3, "a hundredth is lent");
        assert_eq!((refusal.status, refusal.body["code"].as_str()), (503, Some("quota_unavailable")));
        assert_eq!(refusal.header("modelgate-quota"), "degraded");
        let page = http.get(format!("http://{}/metrics", gateway.admin)).send().await.unwrap().text().await.unwrap();
        for line in [
            "modelgate_quota_degraded_total{outcome=\"lent\"} 3.0",
            "modelgate_quota_degraded_total{outcome=\"refused\"} 1.0",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
        for _ in 0..5 {
            let answer = predict(&http, gateway.data, &dry).await;
            assert_eq!((answer.status, answer.header("modelgate-quota")), (200, "degraded"), "{}", answer.body);
        }
        let (answered, _) = predict_until_refused(&http, gateway.data, &shared).await;
        assert_eq!(answered, 0, "what is known to be used up stays so");
    }
    server.restart();
    let mut answered = 9;
    for gateway in &gateways {
        let metrics = format!("http://{}/metrics", gateway.admin);
        eventually("the store to be back", async || {
            let page = http.get(&metrics).send().await.unwrap().text().await.unwrap();
            page.contains("modelgate_quota_store_up{} 1.0")
        })
        .await;
    }
    eventually("the loans to be charged", async || {
        let given =
            server.command(&["HGET", &format!("modelgate:quota:{}:day", &other["mg_live_".len()..][..10]), "given"]);
        given.lines().nth(1) == Some("9")
    })
    .await;
    for gateway in &gateways {
        answered += predict_until_refused(&http, gateway.data, &other).await.0;
    }
    assert_eq!(answered, 300);
    for gateway in gateways {
        gateway.signal("TERM");
        let (status, log) = gateway.ended().await;
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.matches("quota store").count() <= 2, "one line down, one line up: {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unpacked_archive_runs_from_any_folder_with_its_library_in_lib() {
    let (site, file) = site();
    let archive = tempfile::tempdir().unwrap();
    std::fs::create_dir(archive.path().join("lib")).unwrap();
    let library = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("lib").join(library);
    std::fs::copy(built, archive.path().join("lib").join(library)).unwrap();
    let binary = archive.path().join("modelgate");
    std::fs::copy(env!("CARGO_BIN_EXE_modelgate"), &binary).unwrap();
    let binary = Binary::start(Command::new(&binary).current_dir(site.folder()), &file, &[]);
    binary.ready(&reqwest::Client::new()).await;
}

#[test]
fn a_missing_library_is_told_with_its_cure() {
    let (_site, file) = site();
    let output = Command::new(env!("CARGO_BIN_EXE_modelgate"))
        .args(["serve", "--config"])
        .arg(&file)
        .env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("/nowhere/libonnxruntime.so") && text.contains("scripts/fetch-onnxruntime.sh"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aws_that_is_away_fails_no_prediction_and_loses_no_sample() {
    let mut site = Site::new(&format!(
        "[plans.open]\n[[model]]\nname = \"sum\"\n[metrics.cloudwatch]\nnamespace = \"Gate\"\ninterval = \"10s\"\n\
         [capture]\nsink = \"s3://{}/drift\"\nflush = {{ rows = 5, age = \"1s\" }}\n",
        s3::BUCKET
    ));
    site.register_sum("sum", 1, 1000.0);
    site.promote("sum", 1);
    let key = site.key("open");
    let file = site.folder().join("modelgate.toml");
    let mut s3 = S3::start().await;
    s3.stop().await;
    let cloudwatch = CloudWatch::start(Clock::system().now()).await;
    cloudwatch.set_mode(Mode::Fault);
    let environment = aws(&s3, &cloudwatch);
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();

    let binary = Binary::serve_with(&file, &environment);
    let http = reqwest::Client::new();
    binary.ready(&http).await;
    for turn in 0..20 {
        let request = http.post(format!("http://{}/predict", binary.data)).header("x-api-key", &key);
        let body = json!({"data": {"a": turn, "b": 0, "c": 0}}).to_string();
        let answer =
            Answer::of(request.header("content-type", "application/json").body(body).send().await.unwrap()).await;
        assert_eq!((answer.status, answer.body["prediction"].as_f64()), (200, Some(1000.0 + f64::from(turn))));
    }
    binary.signal("TERM");
    let (status, log) = binary.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(s3.objects().is_empty());

    s3.restart().await;
    let binary = Binary::serve_with(&file, &environment);
    eventually("the samples of the process before", async || sampled_rows(s3.objects(), |_| true) == 20).await;
    binary.signal("TERM");
    assert_eq!(binary.ended().await.0.code(), Some(0));
}
