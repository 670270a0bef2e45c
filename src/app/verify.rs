//! `modelgate verify`: the verdict on one version, as a gateway would find it before serving, without a gateway.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde_json::json;

use super::operate::table;
use super::{Aws, block_on, load_runtime, open_registry};
use crate::config::{self, Config, Sources};
use crate::manager::ModelConfig;
use crate::manager::admission::{Admission, Candidate, Outcome, Rung, Verdict};
use crate::model::loading::Loading;
use crate::model::{Digest, Version};
use crate::registry::cache::Cache;
use crate::registry::{Fetched, Found, Select};

/// What a version is called whose model the configuration does not have.
const UNNAMED: &str = "verified";

/// The verdict on `version` (a folder, or `models:/name/3`, `models:/name@alias`), as text or JSON, and whether it is fit.
/// The settings of a `[[model]]` of that name apply; a folder is judged by those of the only one, where there is one.
///
/// # Errors
/// When the configuration is wrong, or the version cannot be had.
pub fn verify(sources: Sources, version: &str, as_json: bool) -> anyhow::Result<(String, bool)> {
    let config = config::load(&sources)?.config;
    block_on(async {
        let scratch = tempfile::tempdir().context("cannot make a folder for the version's files")?;
        let (found, fetched) = match reference(version) {
            Some((name, select)) => fetch(&config, scratch.path(), name, &select).await?,
            None => in_folder(Path::new(version))?,
        };
        let runtime = load_runtime(config.onnxruntime.clone()).await?;
        let settings = settings(&config, &found, sources)?;
        let admission = Admission::new(config.manager.admission, runtime, None, 1);
        let candidate =
            Candidate { config: &settings, found: &found, fetched: &fetched, serving: None, has_served: false };
        let (verdict, _) = admission.admit(candidate).await;
        let fit = verdict.is_admitted();
        let text = if as_json { as_json_text(&found, &fetched, &verdict) } else { as_text(version, &verdict) };
        Ok((text, fit))
    })
}

fn as_json_text(found: &Found, fetched: &Fetched, verdict: &Verdict) -> String {
    let known = (!is_folder(found)).then(|| (found.version.to_string(), fetched.digest.to_string()));
    let (version, digest) = known.unzip();
    let verdict = json!({
        "fit": verdict.is_admitted(), "version": version, "digest": digest, "rungs": verdict.rungs,
    });
    format!("{verdict}\n")
}

fn as_text(version: &str, verdict: &Verdict) -> String {
    let row = |rung: &Rung| {
        let outcome = match rung.outcome {
            Outcome::Passed => "passed",
            Outcome::Skipped => "skipped",
            Outcome::Refused => "REFUSED",
            Outcome::Undecided => "UNDECIDED",
        };
        [outcome.to_owned(), rung.name.as_str().to_owned(), rung.detail.clone()]
    };
    let rows: Vec<_> = verdict.rungs.iter().map(row).collect();
    format!(
        "{}{version} is {}\n",
        table(&rows),
        if verdict.is_admitted() { "fit to serve" } else { "not fit to serve" }
    )
}

/// Name and selection of `models:/name/3` or `models:/name@alias`.
fn reference(text: &str) -> Option<(&str, Select)> {
    let text = text.strip_prefix("models:/")?;
    if let Some((name, alias)) = text.split_once('@') {
        return Some((name, Select::Alias(alias.to_owned())));
    }
    let (name, version) = text.split_once('/')?;
    Some((name, Select::Version(version.parse().ok()?)))
}

async fn fetch(config: &Config, scratch: &Path, name: &str, select: &Select) -> anyhow::Result<(Found, Fetched)> {
    let cache = Cache::open(scratch.join("cache")).context("cannot make a folder for the version's files")?;
    let registry = open_registry(config.registry.clone(), &Aws::default())?;
    let found = registry.resolve(name, select).await?;
    let fetched = registry.fetch(&found, &cache, &Loading::default()).await?;
    Ok((found, fetched))
}

/// The version in a folder: without a number, and without a digest, because nothing is copied.
fn in_folder(folder: &Path) -> anyhow::Result<(Found, Fetched)> {
    let known = folder.join("MLmodel").is_file();
    anyhow::ensure!(known, "{} has no MLmodel file, and is no models:/name/version either", folder.display());
    let found = Found {
        registered_model: String::new(),
        version: Version(0),
        alias: None,
        source: folder.display().to_string(),
        created: 0,
        tags: BTreeMap::new(),
    };
    Ok((found, Fetched { digest: Digest([0; 32]), folder: folder.to_owned() }))
}

fn is_folder(found: &Found) -> bool {
    found.registered_model.is_empty()
}

/// How a gateway with this configuration would serve `found`; one without a word about it, by the defaults.
fn settings(config: &Config, found: &Found, mut sources: Sources) -> anyhow::Result<ModelConfig> {
    let models = &config.manager.models;
    let of_that_name = models.iter().find(|model| model.registered_model == found.registered_model);
    let only = if let ([only], true) = (&models[..], is_folder(found)) { Some(only) } else { None };
    if let Some(settings) = of_that_name.or(only) {
        return Ok(settings.clone());
    }
    sources.flags.models.push(UNNAMED.to_owned());
    let models = config::load(&sources)?.config.manager.models;
    models.into_iter().find(|model| model.name.as_str() == UNNAMED).context("the configuration has no room for a model")
}
