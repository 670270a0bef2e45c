//! `modelgate demo`: the whole gateway with a bundled model, no network and no account.
//!
//! The registry is a directory, samples go to a directory, a key is made and printed. Everything lies in one new folder
//! that is the visitor's to look at, and gone when the demo ends.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use secrecy::ExposeSecret;
use tracing::warn;

use super::{Running, serve_and_tell};
use crate::auth::ApiKeys;
use crate::clock::Clock;
use crate::config::{self, Sources};

/// The bundled registry: path below its root, bytes.
const REGISTRY: &[(&str, &[u8])] = &[
    ("credit-score/aliases.toml", include_bytes!("../../demo/registry/credit-score/aliases.toml")),
    ("credit-score/1/MLmodel", include_bytes!("../../demo/registry/credit-score/1/MLmodel")),
    ("credit-score/1/model.onnx", include_bytes!("../../demo/registry/credit-score/1/model.onnx")),
    (
        "credit-score/1/serving_input_example.json",
        include_bytes!("../../demo/registry/credit-score/1/serving_input_example.json"),
    ),
    ("credit-score/2/MLmodel", include_bytes!("../../demo/registry/credit-score/2/MLmodel")),
    ("credit-score/2/model.onnx", include_bytes!("../../demo/registry/credit-score/2/model.onnx")),
    (
        "credit-score/2/serving_input_example.json",
        include_bytes!("../../demo/registry/credit-score/2/serving_input_example.json"),
    ),
];

/// How long the demo waits for its model before it shows the curl line all the same.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often it looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What the demo is configured with; `{…}` is filled in.
const CONFIG: &str = include_str!("../../demo/modelgate.toml");

/// The body of the printed curl line.
const REQUEST: &str = include_str!("../../demo/request.json");

/// Runs the demo until a signal ends it; `sources` has the environment and the flags that were given. `say` is given what
/// a visitor should read.
///
/// # Errors
/// When the gateway cannot be built.
pub fn demo(sources: Sources, say: impl Fn(&str)) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("modelgate-demo-").tempdir().context("cannot make a folder")?;
    unpack(&folder.path().join("registry"))?;
    let file = folder.path().join("modelgate.toml");
    fs::write(&file, filled_in(folder.path()))?;
    let config = config::load(&Sources { file: Some(file), ..sources })?.config;
    fs::create_dir_all(&config.data_dir)?;
    let keys = ApiKeys::open(config.auth.clone(), &mut getrandom::fill)?;
    let (_, key) = keys.create("demo", "demo", None, Clock::system().now(), &mut getrandom::fill)?;
    serve_and_tell(config, async |running| {
        if tokio::time::timeout(PATIENCE, model_is_served(running)).await.is_err() {
            warn!("the bundled model is not served yet; the lines above say why");
        }
        say(&welcome(running, folder.path(), key.expose_secret()));
    })
}

/// Returns once a request would be answered.
async fn model_is_served(running: &Running) {
    while running.models().only().is_err() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn unpack(registry: &Path) -> anyhow::Result<()> {
    for (path, bytes) in REGISTRY {
        let path = registry.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn filled_in(folder: &Path) -> String {
    CONFIG
        .replace("{folder}", &folder.display().to_string())
        .replace("{listen}", &free_address(8080).to_string())
        .replace("{admin_listen}", &free_address(8081).to_string())
}

/// The usual address, or one the system chooses where that is taken.
fn free_address(port: u16) -> SocketAddr {
    let usual = SocketAddr::from(([127, 0, 0, 1], port));
    match TcpListener::bind(usual) {
        Ok(_) => usual,
        Err(_) => SocketAddr::from(([127, 0, 0, 1], 0)),
    }
}

fn welcome(running: &Running, folder: &Path, key: &str) -> String {
    let (data, admin, folder) = (running.data, running.admin, folder.display());
    let body = REQUEST.trim();
    format!(
        "
modelgate serves `credit-score` from {folder}/registry

  predictions   http://{data}
  metrics       http://{admin}/metrics
  models        http://{admin}/admin/models
  samples       {folder}/samples
  key           {key}

Ask for a prediction:

  curl -s http://{data}/predict -H 'x-api-key: {key}' -H 'content-type: application/json' -d '{body}'

Promote version 2 and ask again five seconds later:

  echo 'champion = 2' > {folder}/registry/credit-score/aliases.toml

Ctrl-C ends it and removes the folder.
"
    )
}
