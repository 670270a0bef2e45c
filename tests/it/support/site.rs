//! A whole gateway in this process: real sockets, a real model engine, a registry that is a directory of its own.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use modelgate::app::{self, Running, Surroundings};
use modelgate::auth::ApiKeys;
use modelgate::clock::Clock;
use modelgate::config::{self, Config, Flags, Purpose, Sources};
use modelgate::model::Model;
use secrecy::ExposeSecret;
use serde_json::Value;

use super::canary::{self, Search};
use super::fixtures;

/// How often test gateways look at their registry.
const POLL: Duration = Duration::from_millis(10);

/// The longest any wait of a test may take before it is taken for never.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a gateway is made of before it runs. Its folder outlives it, so that another can be started there.
#[derive(Debug)]
pub(crate) struct Site {
    folder: tempfile::TempDir,
    text: String,
    keys: BTreeMap<String, String>,
    /// How often the registry is looked at.
    pub(crate) poll: Duration,
    probe_program: PathBuf,
}

impl Site {
    /// A site whose configuration is `text`, in which `{folder}` stands for its folder; addresses are chosen by the system,
    /// and the registry is `{folder}/registry` unless `text` has one.
    pub(crate) fn new(text: &str) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), text)
    }

    /// The same in memory, where the system has a folder there: for what makes more small files than a disk can.
    pub(crate) fn in_memory(text: &str) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self::in_folder(folder.unwrap(), text)
    }

    fn in_folder(folder: tempfile::TempDir, text: &str) -> Self {
        install_tls();
        let mut text = text.replace("{folder}", &folder.path().display().to_string());
        text.insert_str(0, &format!("data_dir = \"{}/data\"\n", folder.path().display()));
        if !text.contains("[registry]") {
            let registry = folder.path().join("registry");
            text = format!("{text}\n[registry]\nuri = \"file:{}\"\n", registry.display());
        }
        if !text.contains("[admission]") {
            // Versions of `sum` answer differently, so that tests can tell them apart.
            text.push_str("\n[admission]\nreplay_rows = 0\n");
        }
        if !text.contains("[server]\n") {
            text.push_str("\n[server]\n");
        }
        text = text.replace(
            "[server]\n",
            "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\ndrain_delay = \"0s\"\n\
             max_connections_per_address = 4096\n",
        );
        fs::create_dir_all(folder.path().join("registry")).unwrap();
        // The program that runs is the one with the tests, which tries no models.
        Self { folder, text, keys: BTreeMap::new(), poll: POLL, probe_program: env!("CARGO_BIN_EXE_modelgate").into() }
    }

    /// Edits the configuration, which the next start reads.
    pub(crate) fn change(&mut self, from: &str, to: &str) {
        assert!(self.text.contains(from), "the configuration has no `{from}`");
        self.text = self.text.replace(from, to);
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn registry(&self) -> PathBuf {
        self.folder.path().join("registry")
    }

    /// Puts a fixture's files into the registry as a version, whole at once.
    pub(crate) fn register(&self, model: &str, version: u64, fixture: &str) {
        self.register_files(model, version, &fixtures::folder(fixture), |_| {});
    }

    /// A version of the fixture `sum`, whose answers are `base` plus the sum of a row.
    pub(crate) fn register_sum(&self, model: &str, version: u64, base: f32) {
        self.register_files(model, version, &fixtures::folder("sum"), |folder| {
            let file = folder.join("model.onnx");
            fs::write(&file, fixtures::sum_model(base)).unwrap();
        });
    }

    /// A version made of a fixture's files after `change` was at them.
    pub(crate) fn register_changed(&self, model: &str, version: u64, fixture: &str, change: impl FnOnce(&Path)) {
        self.register_files(model, version, &fixtures::folder(fixture), change);
    }

    /// Changes the configuration for the next start.
    pub(crate) fn reword(&mut self, from: &str, to: &str) {
        assert!(self.text.contains(from), "no {from:?} in the configuration");
        self.text = self.text.replace(from, to);
    }

    /// Has versions tried by another program than the gateway's own.
    pub(crate) fn set_probe_program(&mut self, program: PathBuf) {
        self.probe_program = program;
    }

    /// Notes in the file `tries` each time a version is tried in a process of its own.
    pub(crate) fn count_tries(&mut self, tries: &Path) {
        use std::os::unix::fs::PermissionsExt as _;
        let program = self.folder().join("counting");
        let real = env!("CARGO_BIN_EXE_modelgate");
        fs::write(&program, format!("#!/bin/sh\necho try >> {}\nexec {real} probe\n", tries.display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        self.set_probe_program(program);
    }

    fn register_files(&self, model: &str, version: u64, from: &Path, change: impl FnOnce(&Path)) {
        let model = self.registry().join(model);
        fs::create_dir_all(&model).unwrap();
        let half = model.join(format!(".{version}.half"));
        fs::create_dir_all(&half).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), half.join(entry.file_name())).unwrap();
        }
        change(&half);
        fs::rename(half, model.join(version.to_string())).unwrap();
    }

    /// Points the alias `champion` at a version.
    pub(crate) fn promote(&self, model: &str, version: u64) {
        let model = self.registry().join(model);
        fs::write(model.join("aliases.half"), format!("champion = {version}\n")).unwrap();
        fs::rename(model.join("aliases.half"), model.join("aliases.toml")).unwrap();
    }

    /// The configuration, with the tests' short poll interval.
    pub(crate) fn config(&self) -> Config {
        let file = self.folder.path().join("modelgate.toml");
        fs::write(&file, &self.text).unwrap();
        let sources = Sources {
            file: Some(file),
            env: Vec::new(),
            flags: Flags::default(),
            processors: NonZeroUsize::new(2).unwrap(),
            purpose: Purpose::Serve,
        };
        let mut config = config::load(&sources).unwrap_or_else(|errors| panic!("{errors}")).config;
        config.manager.poll_interval = self.poll;
        if !self.text.contains("dwell") {
            // Most tests promote again and again.
            config.manager.models.iter_mut().for_each(|model| model.rollout.dwell = Duration::ZERO);
        }
        config.manager.admission.program.clone_from(&self.probe_program);
        config
    }

    /// The plan's key, made at its first use.
    pub(crate) fn key(&mut self, plan: &str) -> String {
        if let Some(key) = self.keys.get(plan) {
            return key.clone();
        }
        let auth = self.config().auth;
        fs::create_dir_all(auth.store.parent().unwrap()).unwrap();
        let keys = ApiKeys::open(auth, &mut getrandom::fill).unwrap();
        let (_, secret) = keys.create(plan, plan, None, Clock::system().now(), &mut getrandom::fill).unwrap();
        let key = secret.expose_secret().to_owned();
        canary::note(&key);
        self.keys.insert(plan.to_owned(), key.clone());
        key
    }

    /// Gives the plan's key to the store that this site shares its keys in.
    pub(crate) fn share_key(&mut self, plan: &str) {
        self.key(plan);
        let Config { auth, shared_keys, .. } = self.config();
        ApiKeys::open_shared(auth, &shared_keys.unwrap()).unwrap().share(None).unwrap();
    }

    /// Starts a gateway here, and returns once it listens.
    pub(crate) async fn start(&mut self, plan: &str) -> Gate {
        self.start_by(plan, Clock::system()).await
    }

    /// The same, by another clock.
    pub(crate) async fn start_by(&mut self, plan: &str, clock: Clock) -> Gate {
        let key = self.key(plan);
        let surroundings = Surroundings { clock, seed: 7 };
        let running =
            Box::pin(app::start(self.config(), surroundings)).await.unwrap_or_else(|error| panic!("{error:#}"));
        let http = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        Gate { data: running.data, admin: running.admin, key, http, running }
    }
}

/// Whatever a test was about: no key of its callers is in what its gateways left.
impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let search = Search::new(self.keys.values().map(String::as_str));
        for folder in ["data", "samples"] {
            assert_eq!(search.find_below(&self.folder().join(folder)), Vec::<String>::new(), "keys in clear");
        }
    }
}

/// A gateway that runs, and a client with a key.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) data: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) key: String,
    pub(crate) http: reqwest::Client,
    running: Running,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        assert_ne!(body["code"], "internal", "no request makes the gateway fail: {body}");
        Self { status, headers, body }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Gate {
    pub(crate) fn client(&self) -> Client {
        Client { data: self.data, key: self.key.clone(), http: self.http.clone() }
    }

    /// A client with another key.
    pub(crate) fn client_with(&self, key: String) -> Client {
        Client { key, ..self.client() }
    }

    pub(crate) async fn predict(&self, model: &str, data: &Value) -> Answer {
        self.client().predict(model, data).await
    }

    /// What comes of an operator's order of `model`.
    pub(crate) async fn order(&self, model: &str, verb: &str, body: Value) -> Answer {
        let url = format!("http://{}/admin/models/{model}/{verb}", self.admin);
        let request = self.http.post(url).header("x-modelgate-admin", "1").json(&body);
        Answer::of(request.send().await.unwrap()).await
    }

    /// What happened to the versions of `model`, oldest first: event and version.
    pub(crate) async fn history(&self, model: &str) -> Vec<(String, String)> {
        let page = self.get(self.admin, &format!("/admin/models/{model}/history")).await.body;
        let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
        let events = page["history"].as_array().unwrap().iter().rev();
        events.map(|event| (text(event, "event"), text(event, "version"))).collect()
    }

    pub(crate) async fn get(&self, address: SocketAddr, path: &str) -> Answer {
        let request = self.http.get(format!("http://{address}{path}")).header("x-api-key", &self.key);
        Answer::of(request.send().await.unwrap()).await
    }

    /// What `/admin/models` says of one model.
    pub(crate) async fn status(&self, model: &str) -> Value {
        let page = self.get(self.admin, "/admin/models").await.body;
        page["models"].as_array().unwrap().iter().find(|entry| entry["name"] == model).unwrap().clone()
    }

    /// The version that serves.
    pub(crate) fn model(&self, name: &str) -> Arc<Model> {
        self.running.models().get(name).unwrap()
    }

    /// Waits until `model` is served in `version`.
    pub(crate) async fn serves(&self, model: &str, version: u64) {
        let served = || self.running.models().get(model).ok().map(|model| model.id().version.0);
        eventually(&format!("`{model}` in version {version}"), async || served() == Some(version)).await;
    }

    /// Waits until the status of `model` satisfies `holds`.
    pub(crate) async fn says(&self, model: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        eventually(what, async || holds(&self.status(model).await)).await;
        self.status(model).await
    }

    /// Stops in order.
    pub(crate) async fn stop(self) {
        assert!(self.running.stop().await, "a background task died");
    }
}

/// A caller that can go to another task.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    data: SocketAddr,
    key: String,
    http: reqwest::Client,
}

impl Client {
    pub(crate) async fn predict(&self, model: &str, data: &Value) -> Answer {
        let body = serde_json::json!({ "data": data });
        self.post(&format!("/models/{model}/predict"), body.to_string()).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        let request = self
            .http
            .post(format!("http://{}{path}", self.data))
            .header("x-api-key", &self.key)
            .header("content-type", "application/json")
            .body(body);
        Answer::of(request.send().await.unwrap()).await
    }
}

/// Looks again and again until `holds`; a test that waits in vain fails and says for what.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The one TLS stack, as `main` installs it.
pub(crate) fn install_tls() {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
