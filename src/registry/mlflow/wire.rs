//! What MLflow's JSON answers hold, as far as it is used. Unknown members are ignored: each release adds some.

use std::str::FromStr;

use serde::Deserialize;
use serde::de::{Deserializer, Error};
use serde_json::Value;

/// `registered-models/alias`, `model-versions/get`
#[derive(Deserialize)]
pub(super) struct OneVersion {
    pub(super) model_version: ModelVersion,
}

/// `model-versions/search`, `registered-models/get-latest-versions`. Empty lists are left out.
#[derive(Deserialize)]
pub(super) struct Versions {
    #[serde(default)]
    pub(super) model_versions: Vec<ModelVersion>,
}

/// `registered-models/search`
#[derive(Deserialize)]
pub(super) struct Models {
    #[serde(default)]
    pub(super) registered_models: Vec<RegisteredModel>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct RegisteredModel {
    pub(super) name: String,
    /// In milliseconds.
    #[serde(default, deserialize_with = "number")]
    pub(super) creation_timestamp: i64,
    /// The newest version of each stage.
    #[serde(default)]
    pub(super) latest_versions: Vec<ModelVersion>,
    #[serde(default)]
    pub(super) aliases: Vec<Alias>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Alias {
    pub(super) alias: String,
    #[serde(deserialize_with = "number")]
    pub(super) version: u64,
}

/// `experiments/get`
#[derive(Deserialize)]
pub(super) struct OneExperiment {
    pub(super) experiment: Experiment,
}

#[derive(Deserialize)]
pub(super) struct Experiment {
    #[serde(default)]
    pub(super) artifact_location: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct ModelVersion {
    pub(super) name: String,
    /// A number; sent as text.
    #[serde(deserialize_with = "number")]
    pub(super) version: u64,
    /// In milliseconds; sent as a number by some servers and as text by others.
    #[serde(default, deserialize_with = "number")]
    pub(super) creation_timestamp: i64,
    #[serde(default)]
    pub(super) source: String,
    #[serde(default)]
    pub(super) status: String,
    #[serde(default)]
    pub(super) current_stage: String,
    #[serde(default)]
    pub(super) tags: Vec<Tag>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Tag {
    pub(super) key: String,
    #[serde(default)]
    pub(super) value: String,
}

/// `model-versions/get-download-uri`
#[derive(Deserialize)]
pub(super) struct DownloadUri {
    pub(super) artifact_uri: String,
}

/// `logged-models/<id>`
#[derive(Deserialize)]
pub(super) struct OneLoggedModel {
    pub(super) model: LoggedModel,
}

#[derive(Deserialize)]
pub(super) struct LoggedModel {
    pub(super) info: LoggedModelInfo,
}

#[derive(Deserialize)]
pub(super) struct LoggedModelInfo {
    pub(super) artifact_uri: String,
    pub(super) status: String,
}

/// `runs/get`
#[derive(Deserialize)]
pub(super) struct OneRun {
    pub(super) run: Run,
}

#[derive(Deserialize)]
pub(super) struct Run {
    pub(super) info: RunInfo,
}

#[derive(Deserialize)]
pub(super) struct RunInfo {
    pub(super) artifact_uri: String,
}

/// A listing of one folder. A folder that is not there lists as `{}`.
#[derive(Deserialize)]
pub(super) struct Listing {
    #[serde(default)]
    pub(super) files: Vec<ListedFile>,
}

#[derive(Deserialize)]
pub(super) struct ListedFile {
    pub(super) path: String,
    #[serde(default)]
    pub(super) is_dir: bool,
    /// In bytes; left out for folders.
    #[serde(default, deserialize_with = "number")]
    pub(super) file_size: u64,
}

/// An error. DagsHub's own have `error` instead.
#[derive(Default, Deserialize)]
pub(super) struct Trouble {
    #[serde(default)]
    pub(super) error_code: String,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) error: String,
}

/// A number, or a text of its digits: 64-bit numbers are text in some JSON forms of protocol buffers.
fn number<'de, D: Deserializer<'de>, N: FromStr>(deserializer: D) -> Result<N, D::Error> {
    let text = match Value::deserialize(deserializer)? {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        _ => return Err(D::Error::custom("expected a whole number")),
    };
    text.parse().map_err(|_| D::Error::custom("expected a whole number"))
}
