//! What is served: a model version that can answer, and the set of them that is published.
//!
//! A [`Model`] is immutable. Changing what is served means making another and publishing a new [`ModelSet`]; a request
//! takes one snapshot and keeps it to its end, so that no answer mixes two versions. Only the holder of the
//! [`Publisher`] can publish.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;

pub mod features;
pub mod held;
pub mod loading;
pub mod onnx_file;
pub mod orders;
pub mod outputs;
mod protobuf;
mod recent;
pub mod rollout;
pub mod runtime;
pub mod scan;
pub mod session;
pub mod shadow;
pub mod signature;
pub mod verdict;

use loading::Loading;

pub use features::{Cell, Features, Inputs, InvalidInput};
pub use held::{Held, Target};
pub use outputs::{Decision, Outcomes, Outputs, Prediction, Value};
pub use recent::MAX_ROWS as RECENT_MAX_ROWS;
pub use rollout::{Route, Trial};
pub use session::{LoadError, Model, PredictError, Spec, Stage};
pub use verdict::Verdict;

/// The name a model has in URLs, metrics and sample keys: 1 to 64 of `A-Z a-z 0-9 . _ -`, starting with a letter or
/// digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName(Arc<str>);

/// Why a text is not a [`ModelName`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a model name: use 1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit")]
pub struct NotAModelName(String);

impl ModelName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = NotAModelName;

    fn from_str(text: &str) -> Result<Self, NotAModelName> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let all_good = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if starts_well && all_good && text.len() <= 64 {
            Ok(Self(text.into()))
        } else {
            Err(NotAModelName(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A registry version number. Registries send it as text; it is ordered as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Version {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// SHA-256 over a version's files; what makes two versions the same bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The 64 hexadecimal digits, without the algorithm's name.
    #[must_use]
    pub fn hex(&self) -> String {
        let mut text = String::with_capacity(64);
        for byte in self.0 {
            write!(text, "{byte:02x}").expect("a String takes all that is written");
        }
        text
    }
}

/// A text that is not 64 hexadecimal digits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest has 64 hexadecimal digits")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;

    /// Reads what [`hex`](Self::hex) writes.
    fn from_str(hex: &str) -> Result<Self, NotADigest> {
        if hex.len() != 64 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(NotADigest);
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&hex[at..at + 2], 16).map_err(|_| NotADigest)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha-256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which bytes answer, under which names.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The name in URLs, metrics and sample keys.
    pub name: ModelName,
    /// The registry's version number.
    pub version: Version,
    /// The digest of the version's files.
    pub digest: Digest,
    /// The alias it was found under, where it was found under one.
    pub alias: Option<Arc<str>>,
    header: HeaderValue,
    version_text: Arc<str>,
}

impl Identity {
    /// An identity, with its header value made once.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "it cannot")]
    pub fn new(name: ModelName, version: Version, digest: Digest, alias: Option<Arc<str>>) -> Self {
        let mut text = format!("{name}@{version}; digest={digest}");
        // An alias may hold any letter of Unicode; a header value may not.
        if let Some(alias) = alias.as_deref().filter(|alias| alias.is_ascii()) {
            text.push_str("; alias=");
            text.push_str(alias);
        }
        let header = HeaderValue::from_str(&text).expect("names, digits and ASCII aliases are legal header text");
        Self { name, version, digest, alias, header, version_text: version.to_string().into() }
    }

    /// The value of `Modelgate-Model`: `credit-score@3; digest=sha-256:…; alias=champion`.
    #[must_use]
    pub fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// The version as text, made once.
    #[must_use]
    pub fn version_text(&self) -> &Arc<str> {
        &self.version_text
    }
}

/// What callers and operators may know of a configured model.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The version the registry wants served, when it has said so.
    pub aspired: Option<Version>,
    /// Why the aspired version is not served, or why the registry could not be asked.
    pub trouble: Option<String>,
    /// Since when the registry has not been heard from.
    pub stale_since: Option<jiff::Timestamp>,
    /// The version that stays until told otherwise.
    pub pinned: Option<Version>,
    /// The version before, loaded and ready to answer again.
    pub previous: Option<Version>,
    /// Versions that were rolled back and are not served again by themselves.
    pub quarantined: Vec<Version>,
    /// The version on its way, if one is.
    pub loading: Option<Arc<Loading>>,
    /// The version that asked to serve last, and what came of it.
    pub verdict: Option<(Version, Arc<Verdict>)>,
    /// What happened since the gateway started.
    pub tally: VersionTally,
}

/// How often what happened to versions of one model.
#[derive(Clone, Debug, Default)]
pub struct VersionTally {
    /// By what happened.
    pub events: BTreeMap<orders::Kind, u64>,
    /// Versions that passed every rung.
    pub admitted: u64,
    /// Versions that were found unfit.
    pub refused: u64,
    /// Versions of which it could not be found out.
    pub undecided: u64,
}

/// One configured model in a [`ModelSet`].
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// The version that answers.
    pub serving: Option<Arc<Model>>,
    /// What is on trial, if anything is.
    pub trial: Option<Arc<Trial>>,
    /// The versions that callers stay on.
    pub held: Vec<Held>,
    /// What the control plane says of it.
    pub status: Status,
}

/// Everything that is published at one moment: every configured model, served or not.
#[derive(Clone, Debug, Default)]
pub struct ModelSet {
    entries: BTreeMap<ModelName, Entry>,
}

impl ModelSet {
    /// The configured models by name.
    pub fn iter(&self) -> impl Iterator<Item = (&ModelName, &Entry)> {
        self.entries.iter()
    }

    fn only(&self) -> Result<(&ModelName, &Entry), NotServed> {
        let mut entries = self.entries.iter();
        match (entries.next(), entries.next()) {
            (Some(entry), None) => Ok(entry),
            (None, _) => Err(NotServed::Unknown),
            (Some(_), Some(_)) => Err(NotServed::Ambiguous),
        }
    }

    /// Whether every configured model has a version that answers.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.entries.values().all(|entry| entry.serving.is_some())
    }
}

impl Entry {
    /// The answer of the version that is held for those who stay on `target`.
    fn held(&self, target: &Target) -> Option<Route> {
        let model = self.held.iter().find(|held| held.target == *target)?.model.as_ref()?;
        // Where it is the one that serves, it is watched with what it answers here, too.
        let serves = self.serving.as_ref().is_some_and(|serving| Arc::ptr_eq(serving, model));
        Some(Route::held(model, self.trial.as_ref().filter(|_| serves)))
    }
}

/// Why a name has no model to answer with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    /// No such model is configured.
    #[error("no such model")]
    Unknown,
    /// It is configured, but no version has been loaded yet.
    #[error("no version is loaded yet")]
    NotReady,
    /// No name was given and there is more than one model.
    #[error("there is more than one model; name one")]
    Ambiguous,
    /// The caller stays on a version that is not loaded, or cannot be.
    #[error("{0} is not loaded")]
    NotHeld(Target),
}

/// The reading half of what is published. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Models(Arc<ArcSwap<ModelSet>>);

impl Models {
    /// The model that serves under `name` now.
    ///
    /// # Errors
    /// When there is none, and why.
    pub fn get(&self, name: &str) -> Result<Arc<Model>, NotServed> {
        let set = self.0.load();
        let entry = set.entries.get(name).ok_or(NotServed::Unknown)?;
        entry.serving.clone().ok_or(NotServed::NotReady)
    }

    /// Who answers a request of `key_id` to the model `name`, or to the only one configured where it names none. `stays`
    /// says what the caller stays on, of the model of that name. Take it once per request.
    ///
    /// # Errors
    /// When nobody does, and why. In the place of a version that a caller stays on nobody else answers.
    pub fn route(
        &self,
        name: Option<&str>,
        key_id: &str,
        stays: impl FnOnce(&str) -> Option<Target>,
    ) -> Result<Route, NotServed> {
        let set = self.0.load();
        let (name, entry) = match name {
            Some(name) => set.entries.get_key_value(name).ok_or(NotServed::Unknown)?,
            None => set.only()?,
        };
        if let Some(target) = stays(name.as_str()) {
            return entry.held(&target).ok_or(NotServed::NotHeld(target));
        }
        let serving = entry.serving.as_ref().ok_or(NotServed::NotReady)?;
        Ok(Route::find(serving, entry.trial.as_ref(), key_id))
    }

    /// All that is published at this moment.
    #[must_use]
    pub fn snapshot(&self) -> Arc<ModelSet> {
        self.0.load_full()
    }
}

/// The writing half. There is one, and the manager holds it.
#[derive(Debug)]
pub struct Publisher(Arc<ArcSwap<ModelSet>>);

impl Publisher {
    /// Publishes `model` under its name, which ends what was on trial there; returns the version it replaced, for its last
    /// user to leave.
    pub fn serve(&mut self, model: Arc<Model>) -> Option<Arc<Model>> {
        let mut set = ModelSet::clone(&self.0.load());
        let entry = set.entries.entry(model.id().name.clone()).or_default();
        let replaced = entry.serving.replace(model);
        entry.trial = None;
        self.0.store(Arc::new(set));
        replaced
    }

    /// The version that answers under `name`.
    #[must_use]
    pub fn serving(&self, name: &ModelName) -> Option<Arc<Model>> {
        self.0.load().entries.get(name)?.serving.clone()
    }

    /// What was last published of `name`.
    #[must_use]
    pub fn status(&self, name: &ModelName) -> Status {
        self.0.load().entries.get(name).map(|entry| entry.status.clone()).unwrap_or_default()
    }

    /// Puts something on trial beside what serves under `name`, in place of what was, or ends that.
    pub fn put_on_trial(&mut self, name: &ModelName, trial: Option<Arc<Trial>>) {
        let mut set = ModelSet::clone(&self.0.load());
        set.entries.entry(name.clone()).or_default().trial = trial;
        self.0.store(Arc::new(set));
    }

    /// The reading half.
    #[must_use]
    pub fn models(&self) -> Models {
        Models(Arc::clone(&self.0))
    }

    /// Publishes what is known of `name`, and what is held of it for callers who stay.
    pub fn report(&mut self, name: &ModelName, status: Status, held: Vec<Held>) {
        let mut set = ModelSet::clone(&self.0.load());
        let entry = set.entries.entry(name.clone()).or_default();
        entry.status = status;
        entry.held = held;
        self.0.store(Arc::new(set));
    }
}

/// The two ends of what is published, with `names` configured and nothing served.
#[must_use]
pub fn published(names: impl IntoIterator<Item = ModelName>) -> (Models, Publisher) {
    let entries = names.into_iter().map(|name| (name, Entry::default())).collect();
    let shared = Arc::new(ArcSwap::from_pointee(ModelSet { entries }));
    (Models(Arc::clone(&shared)), Publisher(shared))
}
