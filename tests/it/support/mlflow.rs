//! Real MLflow servers on the loopback, one of a kind for all tests of the process, filled by plain HTTP.
//!
//! They come from `scripts/test-servers.sh`. Tests share a server and nothing else: each uses model names of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use modelgate::model::loading::Loading;
use modelgate::registry::cache::Cache;
use modelgate::registry::{Config, Credentials, Fetched, Found, Mlflow, Registry, RegistryError};
use reqwest::Method;
use serde_json::{Value, json};
use url::Url;

/// A running server. It ends with this process, because its standard input does.
#[derive(Debug)]
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) uri: Url,
    /// 2 or 3.
    pub(crate) major: u8,
    /// The workspace its calls are for.
    workspace: Option<&'static str>,
    _child: Child,
}

/// MLflow 3, which hands out artifacts itself.
pub(crate) fn v3() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(3, "proxied"))
}

/// MLflow 2, which hands out artifacts itself.
pub(crate) fn v2() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(2, "proxied"))
}

/// MLflow 3 run with `--no-serve-artifacts`.
pub(crate) fn v3_direct() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(3, "direct"))
}

/// MLflow 3 run with `--no-serve-artifacts` and its artifacts in S3, at `s3://samples/mlflow`.
pub(crate) fn v3_bucket() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(3, "bucket"))
}

/// MLflow 3 with basic authentication, run with `--static-prefix /mlflow`. The address holds [`PASSWORD`].
pub(crate) fn v3_guarded() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let mut server = Server::start(3, "guarded");
        server.uri.set_path("/mlflow/");
        server.uri.set_username("admin").unwrap();
        server.uri.set_password(Some(PASSWORD)).unwrap();
        server
    })
}

/// The password of `admin`.
pub(crate) const PASSWORD: &str = "the right password";

/// MLflow 3 with workspaces, and all that is registered in [`WORKSPACE`].
pub(crate) fn v3_workspaces() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server { workspace: Some(WORKSPACE), ..Server::start(3, "workspaces") })
}

/// The workspace of [`v3_workspaces`]; tests make it.
pub(crate) const WORKSPACE: &str = "team-a";

/// An `MLmodel` file of the ONNX flavour, and what it names.
pub(crate) const ONNX_MLMODEL: &str = "\
flavors:
  onnx: {data: model.onnx, onnx_version: 1.23.2}
  python_function: {data: model.onnx, loader_module: mlflow.onnx}
saved_input_example_info: {artifact_path: input_example.json, serving_input_path: serving_input_example.json}
";

/// The files of a version that can be served, as far as the registry looks.
pub(crate) fn onnx_files(model: &[u8]) -> Vec<(&str, &[u8])> {
    vec![
        ("MLmodel", ONNX_MLMODEL.as_bytes()),
        ("model.onnx", model),
        ("input_example.json", b"[[1.0]]"),
        ("serving_input_example.json", br#"{"inputs": [[1.0]]}"#),
    ]
}

/// An empty cache, and its folder.
pub(crate) fn cache() -> (tempfile::TempDir, Cache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path().join("cache")).unwrap();
    (folder, cache)
}

/// A registry at `uri`, with no credentials and a short patience.
pub(crate) fn registry_at(uri: &Url) -> Registry {
    Registry::new(Config::Mlflow(mlflow_at(uri).into()), client())
}

/// Its settings.
pub(crate) fn mlflow_at(uri: &Url) -> Mlflow {
    Mlflow {
        uri: uri.clone(),
        credentials: Credentials::None,
        timeout: Duration::from_secs(30),
        workspace: None,
        max_bytes: 64 << 20,
        ca_file: None,
        artifact_roots: Vec::new(),
        s3_endpoint: None,
    }
}

/// Fetches `found`; nobody looks how far it is.
pub(crate) async fn fetch(registry: &Registry, found: &Found, cache: &Cache) -> Result<Fetched, RegistryError> {
    registry.fetch(found, cache, &Loading::default()).await
}

/// A client as the gateway builds it: no redirects. One per test: connections belong to the test's runtime.
pub(crate) fn client() -> reqwest::Client {
    builder().build().unwrap()
}

/// A client that fills servers from any runtime, because it keeps no connection. Building one takes 50 ms.
pub(crate) fn filler() -> &'static reqwest::Client {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    CLIENT.get_or_init(|| builder().pool_max_idle_per_host(0).build().unwrap())
}

fn builder() -> reqwest::ClientBuilder {
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy()
}

impl Server {
    fn start(major: u8, kind: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join(format!(".venv/mlflow-{major}/bin/python"));
        assert!(python.exists(), "there is no MLflow {major} to test against: run scripts/test-servers.sh");
        let mut child = Command::new(python)
            .arg(root.join("tests/it/support/mlflow_server.py"))
            .arg(kind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let uri = format!("http://127.0.0.1:{}", port.trim()).parse();
        Self { uri: uri.expect("the server prints its port"), major, workspace: None, _child: child }
    }

    /// The registry that this server is.
    pub(crate) fn registry(&self) -> Registry {
        registry_at(&self.uri)
    }

    /// Registers the next version of `model`, with these files, as a client of this release does. Returns its number.
    pub(crate) async fn register(&self, model: &str, files: &[(&str, impl AsRef<[u8]>)]) -> u64 {
        if self.major == 2 {
            return self.register_in_run(model, files).await;
        }
        let id = self.log_model(files).await;
        self.finish_upload(&id).await;
        self.version_of(model, json!({ "model_id": id, "source": format!("models:/{id}") })).await
    }

    /// Registers the next version of `model` from files in a run, as clients before 3.0 do.
    pub(crate) async fn register_in_run(&self, model: &str, files: &[(&str, impl AsRef<[u8]>)]) -> u64 {
        let run = self.post("runs/create", json!({ "experiment_id": "0", "start_time": 1 })).await;
        let info = &run["run"]["info"];
        let source = format!("{}/model", info["artifact_uri"].as_str().unwrap());
        self.upload(&source, files).await;
        self.version_of(model, json!({ "run_id": info["run_id"], "source": source })).await
    }

    /// Uploads a logged model that stays pending. Returns its id.
    pub(crate) async fn log_model(&self, files: &[(&str, impl AsRef<[u8]>)]) -> String {
        self.log_model_in("0", files).await
    }

    /// The same, in an experiment.
    pub(crate) async fn log_model_in(&self, experiment: &str, files: &[(&str, impl AsRef<[u8]>)]) -> String {
        let logged = self.post("logged-models", json!({ "experiment_id": experiment, "name": "model" })).await;
        let info = &logged["model"]["info"];
        self.upload(info["artifact_uri"].as_str().unwrap(), files).await;
        info["model_id"].as_str().unwrap().to_owned()
    }

    /// Says that a logged model is whole.
    pub(crate) async fn finish_upload(&self, id: &str) {
        let ready = json!({ "model_id": id, "status": "LOGGED_MODEL_READY" });
        self.call(Method::PATCH, &format!("logged-models/{id}"), ready).await;
    }

    /// Registers the next version of `model`, from what is there already.
    pub(crate) async fn version_of(&self, model: &str, mut from: Value) -> u64 {
        from["name"] = model.into();
        let body = json!({ "name": model });
        // It may be there.
        let url = self.api("registered-models/create");
        self.with_workspace(filler().post(url).json(&body)).send().await.unwrap();
        let version = self.post("model-versions/create", from).await;
        version["model_version"]["version"].as_str().unwrap().parse().unwrap()
    }

    /// Points an alias at a version.
    pub(crate) async fn set_alias(&self, model: &str, alias: &str, version: u64) {
        let body = json!({ "name": model, "alias": alias, "version": version.to_string() });
        self.post("registered-models/alias", body).await;
    }

    /// Removes an alias.
    pub(crate) async fn delete_alias(&self, model: &str, alias: &str) {
        self.call(Method::DELETE, "registered-models/alias", json!({ "name": model, "alias": alias })).await;
    }

    /// Removes a version.
    pub(crate) async fn delete_version(&self, model: &str, version: u64) {
        let body = json!({ "name": model, "version": version.to_string() });
        self.call(Method::DELETE, "model-versions/delete", body).await;
    }

    /// Removes a model with all its versions.
    pub(crate) async fn delete_model(&self, model: &str) {
        self.call(Method::DELETE, "registered-models/delete", json!({ "name": model })).await;
    }

    /// Any call of the API that must succeed.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        self.call(Method::POST, path, body).await
    }

    /// Any call of the API that must succeed.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Value) -> Value {
        let request = filler().request(method, self.api(path)).json(&body);
        let answer = self.with_workspace(request).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "MLflow {} {path}: {status} {text}", self.major);
        serde_json::from_str(&text).unwrap()
    }

    fn with_workspace(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match self.workspace {
            Some(workspace) => request.header("x-mlflow-workspace", workspace),
            None => request,
        }
    }

    fn api(&self, path: &str) -> Url {
        self.uri.join(&format!("api/2.0/mlflow/{path}")).unwrap()
    }

    /// Puts files below an artifact's address.
    pub(crate) async fn upload(&self, to: &str, files: &[(&str, impl AsRef<[u8]>)]) {
        for (name, bytes) in files {
            match to.strip_prefix("mlflow-artifacts:") {
                Some(path) => self.put(&format!("{path}/{name}"), bytes.as_ref()).await,
                None => write(&Path::new(to.trim_start_matches("file://")).join(name), bytes.as_ref()),
            }
        }
    }

    async fn put(&self, path: &str, bytes: &[u8]) {
        let mut url = self.uri.join("api/2.0/mlflow-artifacts/artifacts").unwrap();
        url.path_segments_mut().unwrap().extend(path.trim_start_matches('/').split('/'));
        let answer = self.with_workspace(filler().put(url).body(bytes.to_vec())).send().await.unwrap();
        assert!(answer.status().is_success(), "upload of {path}: {}", answer.status());
    }
}

fn write(place: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::fs::write(place, bytes).unwrap();
}
