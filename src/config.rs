//! What the user wrote → [`Config`], every value valid; or every mistake at once, each with file, line and key.
//!
//! Four layers, each over the one before: `config/default.toml` (compiled in, and the reference of every key), the user's
//! file, the environment, the flags. The layers become one tree whose values know where they were written; [`load`]
//! reads it section by section into types that cannot be wrong. Nothing here reads the process's environment: it is
//! handed in.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::SecretString;

use crate::{auth, capture, drift, feedback, manager, registry, server, telemetry};

mod effective;
mod keys;
mod layer;
mod metrics;
mod models;
mod pins;
mod quota;
mod reader;
mod rollout;
mod sections;
mod value;

pub use effective::Effective;

use layer::{Origin, Table, Value};
use reader::{Findings, Section};

/// A place for samples, written as `capture.sink` is; `None` if it is not one.
#[must_use]
pub fn sink(text: &str) -> Option<capture::sink::Config> {
    sections::sink(text)
}

/// Every key with its default and the reason for it.
pub const DEFAULT: &str = include_str!("../config/default.toml");

/// Everything the process needs to know, ready to use.
#[derive(Clone, Debug)]
pub struct Config {
    /// Keys, usage, model cache, spool.
    pub data_dir: PathBuf,
    /// Where ONNX Runtime is, if the user says.
    pub onnxruntime: Option<PathBuf>,
    /// Addresses and limits.
    pub server: server::Config,
    /// Where versions come from.
    pub registry: registry::Config,
    /// Which models, and how often to look.
    pub manager: manager::Config,
    /// What the registry signs its hints with; unset, it may give none.
    pub webhook_secret: Option<SecretString>,
    /// Where keys live and what plans allow.
    pub auth: auth::Config,
    /// Where gateways share keys, if they do.
    pub shared_keys: Option<auth::SharedStore>,
    /// Versions that plans stay on.
    pub pins: auth::PlanPins,
    /// Plans.
    pub quota: crate::quota::Config,
    /// What is measured.
    pub metrics: crate::metrics::Config,
    /// How drift is looked for.
    pub drift: drift::Config,
    /// Where measurements go.
    pub sinks: Sinks,
    /// Whether and where samples are kept.
    pub capture: Option<capture::Config>,
    /// Whether labels are taken.
    pub feedback: Option<feedback::Config>,
    /// Logs and traces.
    pub telemetry: telemetry::Config,
}

/// Where measurements go besides Prometheus: to as many of these as there are.
#[derive(Clone, Debug, Default)]
pub struct Sinks {
    /// CloudWatch's API.
    pub cloudwatch: Option<crate::metrics::cloudwatch::Config>,
    /// Standard output, for CloudWatch Logs.
    pub emf: Option<crate::metrics::cloudwatch::Config>,
    /// An OpenTelemetry collector.
    pub otlp: Option<crate::metrics::otlp::Config>,
}

/// Where configuration comes from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The user's file.
    pub file: Option<PathBuf>,
    /// The environment, names and values.
    pub env: Vec<(String, String)>,
    /// Flags of the command line.
    pub flags: Flags,
    /// The machine's processors: as many models run at one time, unless the user says otherwise.
    pub processors: NonZeroUsize,
    /// What the configuration is for.
    pub purpose: Purpose,
}

/// What the configuration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Serving: there must be a model, and plans may name only models there are.
    Serve,
    /// Working on the data directory: which models there are does not matter.
    Keys,
}

/// The everyday keys as flags, as they were typed.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `registry.uri`
    pub registry: Option<String>,
    /// Models as `NAME`, `NAME@alias` or `NAME/version`: another model, or another version of one in the file.
    pub models: Vec<String>,
    /// `server.listen`
    pub listen: Option<String>,
    /// `server.admin_listen`
    pub admin_listen: Option<String>,
    /// `data_dir`
    pub data_dir: Option<String>,
}

/// A configuration and how it came about.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Ready to use.
    pub config: Config,
    /// The same for people: every value and where it was written.
    pub effective: Effective,
}

/// Everything that is wrong with a configuration, in the order of the layers and their lines. At least one mistake.
#[derive(Debug, thiserror::Error)]
#[error("{}", lines(mistakes))]
pub struct ConfigErrors {
    mistakes: Vec<Mistake>,
}

/// One thing that is wrong: `file:line: key: what was found, what was expected`. For the environment the variable stands
/// in place of the file, for a flag the flag.
#[derive(Clone, Debug)]
pub struct Mistake {
    origin: Origin,
    text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.text)
    }
}

impl ConfigErrors {
    fn new(mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by(|a, b| a.origin.cmp(&b.origin));
        Self { mistakes }
    }

    /// Every mistake.
    #[must_use]
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>().join("\n")
}

/// Reads the configuration.
///
/// # Errors
/// With everything that is wrong with it.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let mut findings = Findings::default();
    let mut written = match &sources.file {
        Some(path) => file(path).map_err(ConfigErrors::new)?,
        None => Table::new(),
    };
    standard_variables(&mut written, &sources.env);
    own_variables(&mut written, &sources.env, &mut findings);
    flags(&mut written, &sources.flags);
    let defaults = defaults();
    let config = read(Section::root(&mut findings, &written, &defaults), sources);
    findings.into_effective().map(|effective| Loaded { config, effective })
}

/// `default.toml` with every key switched on.
fn defaults() -> Table {
    let text: String = DEFAULT.lines().map(|line| switched_on(line).to_owned() + "\n").collect();
    layer::document(&text, &Arc::from(Path::new("default.toml"))).expect("the tests read every key of it")
}

/// The line, without the mark of a key that is off: a `#` with no space after it.
fn switched_on(line: &str) -> &str {
    line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| !c.is_whitespace())).unwrap_or(line)
}

fn file(path: &Path) -> Result<Table, Vec<Mistake>> {
    let name: Arc<Path> = path.into();
    match std::fs::read_to_string(path) {
        Ok(text) => layer::document(&text, &name),
        Err(error) => Err(vec![Mistake {
            origin: Origin::Flag("--config"),
            text: format!("cannot read `{}`: {error}", path.display()),
        }]),
    }
}

/// Variables other programs know, and the keys they set. Unset and empty are the same, as these programs have it.
const STANDARD_VARIABLES: [(&str, &[&str]); 9] = [
    ("MLFLOW_TRACKING_URI", &["registry", "uri"]),
    ("MLFLOW_TRACKING_USERNAME", &["registry", "username"]),
    ("MLFLOW_TRACKING_PASSWORD", &["registry", "password"]),
    ("MLFLOW_TRACKING_TOKEN", &["registry", "token"]),
    ("MLFLOW_WORKSPACE", &["registry", "workspace"]),
    ("MLFLOW_TRACKING_SERVER_CERT_PATH", &["registry", "ca_file"]),
    ("MLFLOW_S3_ENDPOINT_URL", &["registry", "s3_endpoint"]),
    ("ORT_DYLIB_PATH", &["onnxruntime"]),
    ("RUST_LOG", &["telemetry", "log_filter"]),
];

fn standard_variables(written: &mut Table, env: &[(String, String)]) {
    for (name, key) in STANDARD_VARIABLES {
        if let Some(value) = variable(env, name) {
            layer::set(written, key, Value::Text(value.to_owned()), &Origin::Variable(name.to_owned()));
        }
    }
}

/// The value of an environment variable that is set and not empty.
fn variable<'e>(env: &'e [(String, String)], name: &str) -> Option<&'e str> {
    let (_, value) = env.iter().find(|(key, value)| key == name && !value.is_empty())?;
    Some(value)
}

/// `MODELGATE__SERVER__LISTEN` is `server.listen`.
fn own_variables(written: &mut Table, env: &[(String, String)], findings: &mut Findings) {
    let mut ours: Vec<_> =
        env.iter().filter_map(|(name, value)| Some((name.strip_prefix("MODELGATE__")?, name, value))).collect();
    // A table before the keys in it, whatever order the environment has.
    ours.sort();
    for (key, name, value) in ours {
        let key = key.to_ascii_lowercase();
        let path: Vec<&str> = key.split("__").collect();
        let origin = Origin::Variable(name.clone());
        if path.iter().any(|part| part.is_empty()) {
            findings.mistake(origin, "expected a key, as in MODELGATE__SERVER__LISTEN".to_owned());
        } else {
            layer::set(written, &path, Value::loose(value, &origin), &origin);
        }
    }
}

fn flags(written: &mut Table, flags: &Flags) {
    let keyed: [(&'static str, &Option<String>, &[&str]); 4] = [
        ("--registry", &flags.registry, &["registry", "uri"]),
        ("--listen", &flags.listen, &["server", "listen"]),
        ("--admin-listen", &flags.admin_listen, &["server", "admin_listen"]),
        ("--data-dir", &flags.data_dir, &["data_dir"]),
    ];
    for (flag, typed, key) in keyed {
        if let Some(typed) = typed {
            layer::set(written, key, Value::Text(typed.clone()), &Origin::Flag(flag));
        }
    }
    for typed in &flags.models {
        models::from_flag(written, typed);
    }
}

fn read(mut root: Section<'_>, sources: &Sources) -> Config {
    let data_dir = root.defaulted("data_dir", value::path);
    let onnxruntime = root.optional("onnxruntime", value::path);
    let server = sections::server(root.section("server"));
    let sections::Engine { slots, max_held } = sections::engine(root.section("engine"), sources.processors);
    let admission = sections::admission(root.section("admission"), &sources.env);
    let sections::Registry { config: registry, poll_interval, write_back, webhook_secret } =
        sections::registry(root.section("registry"));
    let (models, rates) = models::read(&mut root, sources.purpose);
    let store = data_dir.join("modelgate.db");
    let plans = sections::plans(&mut root, &models, sources.purpose, max_held);
    let usage = quota::read(root.section("quota"), store.clone(), &plans.limits);
    let keys = keys::read(root.section("keys"), data_dir.join("pepper"), &usage);
    let (metrics, sinks) = metrics::read(root.section("metrics"), &sources.env);
    let drift = sections::drift(root.section("drift"));
    let capture = root.optional_section("capture").and_then(|section| sections::capture(section, &data_dir, rates));
    let labels =
        root.optional_section("feedback").map(|section| sections::feedback(section, &data_dir, capture.as_ref()));
    let telemetry = sections::telemetry(root.section("telemetry"), &sources.env);
    root.finish();
    Config {
        auth: auth::Config { store, pepper: keys.pepper, plans: plans.access },
        shared_keys: keys.shared,
        quota: crate::quota::Config { store: usage, plans: plans.limits },
        pins: plans.pins,
        manager: manager::Config { poll_interval, slots, max_held, admission, models, write_back },
        webhook_secret,
        data_dir,
        onnxruntime,
        server,
        registry,
        metrics,
        drift,
        sinks,
        capture,
        feedback: labels,
        telemetry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts of the mistakes in `written`.
    fn mistakes_in(written: &Table) -> Vec<String> {
        let mut findings = Findings::default();
        let sources = Sources {
            file: None,
            env: Vec::new(),
            flags: Flags::default(),
            processors: NonZeroUsize::MIN,
            purpose: Purpose::Serve,
        };
        read(Section::root(&mut findings, written, &defaults()), &sources);
        findings.mistakes.iter().map(Mistake::to_string).collect()
    }

    /// Asking for a key that is not there panics in [`Section`], so this is both directions.
    #[test]
    fn default_toml_and_the_readers_know_the_same_keys() {
        let unknown: Vec<_> = mistakes_in(&defaults()).into_iter().filter(|text| text.contains("unknown")).collect();
        assert!(unknown.is_empty(), "{unknown:#?}");
    }

    #[test]
    fn default_toml_lacks_only_a_model() {
        let written = layer::document(DEFAULT, &Arc::from(Path::new("default.toml"))).unwrap();
        let mistakes = mistakes_in(&written);
        assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
        assert!(mistakes[0].starts_with("--model: "), "{mistakes:#?}");
    }

    #[test]
    fn prose_is_not_a_key() {
        assert_eq!(switched_on("# a = 1"), "# a = 1");
        assert_eq!(switched_on("#"), "#");
        assert_eq!(switched_on("#a = 1"), "a = 1");
        assert_eq!(switched_on("a = 1"), "a = 1");
    }
}
