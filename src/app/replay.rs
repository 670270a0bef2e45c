//! `modelgate replay`: asks a stored request again of the version that answered it, and compares.
//!
//! The version comes from the model cache by its digest, or else from the registry, and must have that digest: so it is the
//! very bytes that answered. How features are written and outputs read comes from the configuration; the tags of a version
//! are in the cache only for the one that was served last.

use std::fmt;
use std::sync::Arc;

use anyhow::Context;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde_json::json;
use tokio::time::Instant;

use super::{Aws, load_runtime, open_registry, open_sink};
use crate::capture::protect::{Policy, Protection};
use crate::capture::segment::Row;
use crate::capture::sink;
use crate::capture::stored::{Search, Stored};
use crate::config::{self, Config};
use crate::manager;
use crate::model::features::{Feature, Inputs, Raw};
use crate::model::loading::Loading;
use crate::model::signature::Kind;
use crate::model::{Cell, Features, Model, Outputs, Prediction, Value};
use crate::registry::cache::Cache;
use crate::registry::{Fetched, Found, Select};

/// Numbers that differ by more than this, relative to the larger or to one, are different answers. Models compute with 32
/// bits, and another processor may round the last of their seven digits another way.
const TOLERANCE: f64 = 1e-4;

/// How long the model may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_mins(1);

/// What to replay.
#[derive(Clone, Debug)]
pub struct Request {
    /// The id the caller was given.
    pub request_id: String,
    /// Where samples are: `s3://bucket/prefix`, or a directory with or without `file:` before it. Unset: where the
    /// configuration says.
    pub samples: Option<String>,
    /// Only samples of this model.
    pub model: Option<String>,
    /// Only samples of this day. Unset: the day in the id, if the gateway made it, else all.
    pub date: Option<Date>,
}

/// How an answer compares with the stored one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Every bit of every number.
    Identical,
    /// The same class, and no number differs by more than this.
    Within(f64),
    /// Another class, or another number.
    Different,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identical => f.write_str("identical"),
            Self::Within(bound) => write!(f, "within {bound:e}"),
            Self::Different => f.write_str("different"),
        }
    }
}

/// A stored request, and its answers then and now.
#[derive(Debug)]
pub struct Report {
    stored: Stored,
    again: Outputs,
    verdicts: Vec<Verdict>,
    has_tags: bool,
}

/// Replays a request.
///
/// # Errors
/// When it cannot be found, its version is not in the cache, or what was stored is not all that was asked.
pub fn replay(config: Config, request: Request) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(replay_stored(config, request))
}

async fn replay_stored(config: Config, request: Request) -> anyhow::Result<Report> {
    let sink = open_sink(&place(request.samples.as_deref(), &config)?, &Aws::default()).await;
    let model = request.model.map(|name| name.parse()).transpose()?;
    let dates = request.date.map_or_else(|| dates_of(&request.request_id), |date| vec![date]);
    let search = Search { request_id: request.request_id, model, dates };
    let stored = search.run(&sink).await?;
    check_protected(&stored.protected)?;
    let protect = config.capture.as_ref().map(|capture| capture.protect.clone()).unwrap_or_default();
    let (model, has_tags) = reopen(config, &stored).await?;
    if !stored.has_types {
        // Text does not tell what was protected; the configuration does, if it has not changed since.
        check_protected(&protected(model.features(), &protect))?;
    }
    let inputs = inputs(&stored, model.features())?;
    let again = model.predict(&inputs, Instant::now() + PATIENCE).await?;
    Ok(Report::new(stored, again, has_tags))
}

fn check_protected(protected: &[String]) -> anyhow::Result<()> {
    let text = "the sample does not hold all that was asked, so it cannot be asked again";
    anyhow::ensure!(protected.is_empty(), "{text}: {}", protected.join(", "));
    Ok(())
}

/// What `protect` does to the features.
fn protected(features: &Features, protect: &Policy) -> Vec<String> {
    let done_to = |feature: &Feature| match protect.of(feature) {
        Protection::Keep => None,
        Protection::Redact => Some(format!("{} was left out", feature.name)),
        Protection::Hash => Some(format!("{} was hashed", feature.name)),
        Protection::Bucket(_) => Some(format!("{} was rounded", feature.name)),
    };
    features.list().iter().filter_map(done_to).collect()
}

/// Where the samples are.
fn place(written: Option<&str>, config: &Config) -> anyhow::Result<sink::Config> {
    let Some(text) = written else {
        let configured = config.capture.as_ref().map(|capture| capture.sink.clone());
        return configured.context("say where the samples are: --samples, or [capture] in the configuration");
    };
    let directory = || (!text.contains("://")).then(|| sink::Config::Directory(text.into()));
    config::sink(text)
        .or_else(directory)
        .with_context(|| format!("`{text}` is neither s3://bucket/prefix nor a directory"))
}

/// The day a UUID of version 7 was made on, and the next, on which the answer may have been.
fn dates_of(request_id: &str) -> Vec<Date> {
    let made = uuid::Uuid::parse_str(request_id).ok().and_then(|id| id.get_timestamp());
    let made = made.and_then(|time| Timestamp::from_second(time.to_unix().0.try_into().ok()?).ok());
    let Some(date) = made.map(|time| time.to_zoned(TimeZone::UTC).date()) else { return Vec::new() };
    [Some(date), date.checked_add(1.day()).ok()].into_iter().flatten().collect()
}

/// The version that answered, and whether its tags are known.
async fn reopen(config: Config, stored: &Stored) -> anyhow::Result<(Model, bool)> {
    let (name, version) = (&stored.model, stored.version);
    let scratch = tempfile::tempdir().context("cannot make a folder for the version's files")?;
    let (found, fetched, has_tags) = match in_cache(&config, stored) {
        Some(cached) => cached,
        None => from_registry(&config, stored, &Cache::open(scratch.path().join("cache"))?).await?,
    };
    // A model that the configuration does not name has no settings of its own.
    let settings = config.manager.models.into_iter().find(|model| model.name == *name);
    let (features, decision) = settings.map(|model| (model.features, model.decision)).unwrap_or_default();
    let runtime = load_runtime(config.onnxruntime).await?;
    let model = manager::reopen(runtime, name.clone(), features, decision, found, fetched).await;
    Ok((model.with_context(|| format!("version {version} of `{name}` does not load"))?, has_tags))
}

/// The version as the gateway keeps it.
fn in_cache(config: &Config, stored: &Stored) -> Option<(Found, Fetched, bool)> {
    let cache = Cache::beside(config.data_dir.join("cache"));
    let (version, digest) = (stored.version, &stored.digest);
    let last_good = cache.last_good(&stored.model).filter(|(_, fetched)| fetched.digest == *digest);
    if let Some((found, fetched)) = last_good {
        return Some((Found { version, ..found }, fetched, true));
    }
    cache.get(digest).map(|fetched| (unknown(stored), fetched, false))
}

/// The version as the registry has it now: with its tags, and never other bytes than those that answered.
async fn from_registry(config: &Config, stored: &Stored, cache: &Cache) -> anyhow::Result<(Found, Fetched, bool)> {
    let (name, version, digest) = (&stored.model, stored.version, stored.digest);
    let settings = config.manager.models.iter().find(|model| model.name == *name);
    let registered_model = settings.map_or(name.as_str(), |model| &model.registered_model);
    let missing = || {
        let data_dir = config.data_dir.display();
        format!(
            "version {version} of `{name}` ({digest}) is not in the model cache of `{data_dir}`, and the registry does not \
             give it"
        )
    };
    let registry = open_registry(config.registry.clone(), &Aws::default())?;
    let found = registry.resolve(registered_model, &Select::Version(version)).await.with_context(missing)?;
    let fetched = registry.fetch(&found, cache, &Loading::default()).await.with_context(missing)?;
    anyhow::ensure!(
        fetched.digest == digest,
        "version {version} of `{name}` is not in the model cache, and the registry has other bytes under that number: \
         {} answered, the registry has {}",
        digest,
        fetched.digest
    );
    Ok((found, fetched, true))
}

/// A version of which only the files are known.
fn unknown(stored: &Stored) -> Found {
    Found {
        registered_model: stored.model.to_string(),
        version: stored.version,
        alias: None,
        source: String::new(),
        created: 0,
        tags: std::collections::BTreeMap::new(),
    }
}

/// The stored rows as the model takes them.
fn inputs(stored: &Stored, features: &Features) -> anyhow::Result<Inputs> {
    let list = features.list();
    let fits = |(name, feature): (&String, &Feature)| name.starts_with(&*feature.name);
    let has_all = stored.rows.iter().all(|row| row.cells.len() == list.len());
    // JSON lines have no names.
    let has_names = stored.features.is_empty() || stored.features.iter().zip(list).all(fits);
    anyhow::ensure!(
        has_all && has_names,
        "the configuration of `{}` has other features than when the request was answered: {}",
        stored.model,
        stored.features.join(", ")
    );
    let mut rows = features.rows();
    for row in &stored.rows {
        rows.begin();
        for (cell, feature) in row.cells.iter().zip(list) {
            rows.set(&feature.field, typed(cell, feature.kind));
        }
        rows.end();
    }
    let unfit = "the configuration of the model does not take what it took when the request was answered";
    rows.finish().context(unfit)
}

/// A cell as the value of a feature: one that was stored as text is read as the feature's type.
fn typed(cell: &Cell, kind: Kind) -> Raw<'_> {
    let Cell::Text(text) = cell else { return cell.into() };
    let read = match kind {
        Kind::Text => None,
        Kind::Boolean => text.parse().ok().map(Raw::Boolean),
        Kind::Integer | Kind::Long => text.parse().ok().map(Raw::Integer),
        Kind::Float | Kind::Double => text.parse().ok().map(Raw::Float),
    };
    read.unwrap_or(Raw::Text(text))
}

/// A prediction that was stored as text, as the type of the one that was made again.
fn alike(then: &Value, now: &Value) -> Option<Value> {
    let Value::Text(text) = then else { return None };
    match now {
        Value::Integer(_) => text.parse().ok().map(Value::Integer),
        Value::Number(_) => text.parse().ok().map(Value::Number),
        Value::Text(_) => None,
    }
}

impl Report {
    fn new(mut stored: Stored, again: Outputs, has_tags: bool) -> Self {
        for (then, now) in stored.rows.iter_mut().zip(again.predictions()) {
            if !stored.has_types
                && let Some(value) = alike(&then.prediction.value, &now.value)
            {
                then.prediction.value = value;
            }
            if !stored.has_scores {
                then.prediction.score = now.score;
            }
        }
        let now = again.predictions().iter().enumerate();
        let now = now.map(|(row, prediction)| (prediction, again.probabilities(row)));
        let verdicts = stored.rows.iter().zip(now).map(|(then, (now, shares))| compare(then, now, shares)).collect();
        Self { stored, again, verdicts, has_tags }
    }

    /// The same for programs.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let Stored { key, model, version, digest, rows, .. } = &self.stored;
        let row = |(index, (then, now)): (usize, (&Row, &Prediction))| {
            let mut row = verdict_json(self.verdicts[index]);
            row["row"] = json!(index);
            row["stored"] = answer_json(&then.prediction, &then.probabilities);
            row["replayed"] = answer_json(now, self.again.probabilities(index));
            row
        };
        let mut report = verdict_json(self.verdict());
        report["model"] = json!(model.as_str());
        report["version"] = json!(version.to_string());
        report["digest"] = json!(digest.to_string());
        report["object"] = json!(key);
        report["tags_known"] = json!(self.has_tags);
        report["classes"] = json!(self.again.classes());
        report["rows"] = rows.iter().zip(self.again.predictions()).enumerate().map(row).collect();
        report
    }

    /// That of the row that differs most.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let worse = |one: Verdict, other: Verdict| if rank(other) > rank(one) { other } else { one };
        self.verdicts.iter().copied().fold(Verdict::Identical, worse)
    }
}

fn verdict_json(verdict: Verdict) -> serde_json::Value {
    match verdict {
        Verdict::Identical => json!({ "verdict": "identical" }),
        Verdict::Within(bound) => json!({ "verdict": "within", "within": bound }),
        Verdict::Different => json!({ "verdict": "different" }),
    }
}

fn answer_json(prediction: &Prediction, probabilities: &[f32]) -> serde_json::Value {
    let value = match &prediction.value {
        Value::Integer(class) => json!(class),
        Value::Number(number) => json!(number),
        Value::Text(class) => json!(class),
    };
    json!({ "prediction": value, "label": prediction.label, "score": prediction.score, "probabilities": probabilities })
}

/// Zero for identical, and the larger the more different.
fn rank(verdict: Verdict) -> f64 {
    match verdict {
        Verdict::Identical => 0.0,
        Verdict::Within(bound) => bound,
        Verdict::Different => f64::INFINITY,
    }
}

/// Labels are not compared: they are names, and may be given anew.
fn compare(then: &Row, now: &Prediction, shares: &[f32]) -> Verdict {
    let numbers = match (&then.prediction.value, &now.value) {
        (Value::Number(then), Value::Number(now)) => Some((*then, *now)),
        (then, now) if then == now => None,
        _ => return Verdict::Different,
    };
    if then.probabilities.len() != shares.len() || then.prediction.score.is_some() != now.score.is_some() {
        return Verdict::Different;
    }
    let scores = then.prediction.score.zip(now.score);
    let probabilities = then.probabilities.iter().zip(shares).map(|(then, now)| (f64::from(*then), f64::from(*now)));
    let pairs = numbers.into_iter().chain(scores).chain(probabilities);
    // `max` of the standard library passes over what is no number.
    let worse = |one: f64, other: f64| if one >= other { one } else { other };
    let furthest = pairs.map(|(then, now)| distance(then, now)).fold(0.0, worse);
    if furthest == 0.0 { Verdict::Identical } else { within(furthest) }
}

fn distance(then: f64, now: f64) -> f64 {
    (then - now).abs() / then.abs().max(now.abs()).max(1.0)
}

/// The smallest power of ten that holds `furthest`.
fn within(furthest: f64) -> Verdict {
    let bound = 10_f64.powi((-15..0).find(|power| furthest <= 10_f64.powi(*power)).unwrap_or(0));
    if bound <= TOLERANCE { Verdict::Within(bound) } else { Verdict::Different }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stored { key, model, version, digest, rows, .. } = &self.stored;
        let classes = self.again.classes();
        writeln!(f, "{model} version {version} ({digest})\nfrom {key}")?;
        for (index, ((then, now), verdict)) in rows.iter().zip(self.again.predictions()).zip(&self.verdicts).enumerate()
        {
            writeln!(f, "row {index}: {verdict}")?;
            writeln!(f, "  stored    {}", Answer(&then.prediction, &then.probabilities, classes))?;
            writeln!(f, "  replayed  {}", Answer(now, self.again.probabilities(index), classes))?;
        }
        if !self.has_tags {
            writeln!(f, "The version's tags are not in the cache; labels and thresholds are the configuration's.")?;
        }
        writeln!(f, "{}", self.verdict())
    }
}

/// A prediction, its probabilities, and the names of the classes, in one line.
struct Answer<'a>(&'a Prediction, &'a [f32], &'a [Arc<str>]);

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.value {
            Value::Integer(value) => write!(f, "prediction {value}")?,
            Value::Number(value) => write!(f, "prediction {value}")?,
            Value::Text(value) => write!(f, "prediction {value}")?,
        }
        if let Some(label) = &self.0.label {
            write!(f, ", label {label}")?;
        }
        if let Some(score) = self.0.score {
            write!(f, ", score {score}")?;
        }
        self.2.iter().zip(self.1).try_for_each(|(class, share)| write!(f, ", {class} {share}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prediction(value: Value, score: Option<f64>) -> Prediction {
        Prediction { value, label: None, score }
    }

    #[track_caller]
    fn check(then: Prediction, shares: &[f32], now: &Prediction, shares_now: &[f32], expected: &str) {
        let then = Row { cells: Vec::new(), prediction: then, probabilities: shares.to_vec() };
        assert_eq!(compare(&then, now, shares_now).to_string(), expected);
    }

    #[test]
    fn answers_are_identical_close_or_different() {
        let class = |class, score| prediction(Value::Integer(class), Some(score));
        check(class(1, 0.75), &[0.25, 0.75], &class(1, 0.75), &[0.25, 0.75], "identical");
        check(class(1, 0.75), &[0.25, 0.75], &class(1, 0.750_000_06), &[0.25, 0.75], "within 1e-7");
        check(class(1, 0.75), &[0.25, 0.75], &class(1, 0.75), &[0.26, 0.74], "different");
        check(class(1, 0.5), &[0.5, 0.5], &class(0, 0.5), &[0.5, 0.5], "different");
        check(class(1, 0.5), &[0.5, 0.5], &class(1, 0.5), &[], "different");
        let number = |value| prediction(Value::Number(value), None);
        check(number(1e9), &[], &number(1e9 + 1.0), &[], "within 1e-9");
        check(number(1.0), &[], &number(1.1), &[], "different");
        check(number(0.0), &[], &number(f64::NAN), &[], "different");
    }

    #[test]
    fn an_id_of_ours_tells_its_day() {
        let days = ["2025-12-01".parse().unwrap(), "2025-12-02".parse().unwrap()];
        assert_eq!(dates_of("019ad9c8-b200-7000-8000-000000000000"), days);
        assert_eq!(dates_of("order-77"), []);
    }
}
