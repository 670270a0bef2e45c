//! Where versions come from: an MLflow (or DagsHub) server, or a directory laid out like one.
//!
//! Resolves a selection to one version, and fetches a version's files into the content-addressed [`cache`]. Decides
//! nothing: what the registry says, or fails to say, is for the manager to weigh.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use crate::model::loading::Loading;
use crate::model::{Digest, Version};

pub mod cache;
pub mod directory;
pub mod mlflow;
pub mod mlmodel;
mod names;
mod path;
mod s3;

pub use names::Names;
pub use s3::{NotAnS3Folder, S3, S3Folder};

/// Which version of a registered model to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select {
    /// `alias:champion`
    Alias(String),
    /// `latest`: the highest version number.
    Latest,
    /// `stage:Production`: the newest version in a stage.
    Stage(String),
    /// `version:3`
    Version(Version),
}

/// Where to look.
#[derive(Clone, Debug)]
pub enum Config {
    /// An MLflow server.
    Mlflow(Box<Mlflow>),
    /// A directory: `<root>/<registered model>/<version>/MLmodel`, aliases in `<root>/<registered model>/aliases.toml`.
    Directory(PathBuf),
}

/// How to talk to an MLflow server.
#[derive(Clone, Debug)]
pub struct Mlflow {
    /// The server, with the path it lives under.
    pub uri: Url,
    /// Who we are.
    pub credentials: Credentials,
    /// The longest wait for one answer; above 20 s, because a server whose database is locked answers after 20.
    pub timeout: Duration,
    /// The workspace header, sent only when set.
    pub workspace: Option<String>,
    /// No version larger than this is fetched.
    pub max_bytes: u64,
    /// Certificates to trust besides the system's, in PEM.
    pub ca_file: Option<PathBuf>,
    /// Folders in S3, besides the server's own artifact root, that versions are read from with our own identity.
    pub artifact_roots: Vec<S3Folder>,
    /// Where that S3 is, if it is not the SDK's.
    pub s3_endpoint: Option<Url>,
}

/// Who we are to the registry.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// Nobody.
    None,
    /// HTTP basic authentication.
    Basic {
        /// The user's name.
        username: String,
        /// The password, or a DagsHub token.
        password: SecretString,
    },
    /// A bearer token.
    Bearer(SecretString),
}

/// A version as the registry names it. Two of these are the same version only if all of it is equal: version numbers
/// start again when a model is deleted and made anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The registry's name for the model.
    pub registered_model: String,
    /// The version number.
    pub version: Version,
    /// The alias it was found under.
    pub alias: Option<Arc<str>>,
    /// Where the registry says the version came from.
    pub source: String,
    /// When the registry made it, in milliseconds since the Unix epoch.
    pub created: i64,
    /// Its tags.
    pub tags: std::collections::BTreeMap<String, String>,
}

/// A version on disk, whole and digested.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The digest over all its files.
    pub digest: Digest,
    /// The folder that holds `MLmodel`.
    pub folder: PathBuf,
}

/// What went wrong between us and a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The server cannot be reached, or is slow, or broken. Worth trying again.
    #[error("the registry does not answer: {0}")]
    Unreachable(String),
    /// The server asks us to wait.
    #[error("the registry asks to wait")]
    Busy {
        /// For how long, where it says so.
        retry_after: Option<Duration>,
    },
    /// Not allowed. Trying again soon will not help.
    #[error("the registry refuses us: {0}")]
    Refused(String),
    /// The selection points at nothing.
    #[error("{0}")]
    NotFound(String),
    /// The answer is not one we know.
    #[error("the registry's answer makes no sense: {0}")]
    Nonsense(String),
    /// The version's files are not all there, or change while they are fetched. Worth trying again.
    #[error("the version's files are not all there yet: {0}")]
    Incomplete(String),
    /// The version's files cannot be fetched as they are.
    #[error("the version's files cannot be used: {0}")]
    BadArtifacts(String),
    /// Our own disk.
    #[error("cannot write to the model cache")]
    Disk(#[from] std::io::Error),
}

impl RegistryError {
    /// The same, for another who waits for the answer.
    fn again(&self) -> Self {
        match self {
            Self::Unreachable(why) => Self::Unreachable(why.clone()),
            Self::Busy { retry_after } => Self::Busy { retry_after: *retry_after },
            Self::Refused(why) => Self::Refused(why.clone()),
            Self::NotFound(why) => Self::NotFound(why.clone()),
            Self::Nonsense(why) => Self::Nonsense(why.clone()),
            Self::Incomplete(why) => Self::Incomplete(why.clone()),
            Self::BadArtifacts(why) => Self::BadArtifacts(why.clone()),
            Self::Disk(error) => Self::Disk(error.kind().into()),
        }
    }
}

/// A registry. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Registry {
    /// An MLflow server.
    Mlflow(mlflow::Client),
    /// A directory.
    Directory(directory::Directory),
}

impl Registry {
    /// A registry to ask; asks nothing yet. `http` must follow no redirects, and resolve by [`Names`].
    #[must_use]
    pub fn new(config: Config, http: reqwest::Client) -> Self {
        match config {
            Config::Mlflow(mlflow) => Self::Mlflow(mlflow::Client::new(*mlflow, http)),
            Config::Directory(root) => Self::Directory(directory::Directory::new(root)),
        }
    }

    /// With a way to read what a server keeps in S3 and does not hand on.
    #[must_use]
    pub fn with_s3(self, s3: S3) -> Self {
        match self {
            Self::Mlflow(client) => Self::Mlflow(client.with_s3(s3)),
            directory @ Self::Directory(_) => directory,
        }
    }

    /// The versions that these registered models' selections point at now, in their order. One question where the server
    /// understands it.
    pub async fn resolve_all(&self, wanted: &[(String, Select)]) -> Vec<Result<Found, RegistryError>> {
        match self {
            Self::Mlflow(client) => client.resolve_all(wanted).await,
            Self::Directory(directory) => {
                wanted.iter().map(|(model, select)| directory.resolve(model, select)).collect()
            }
        }
    }

    /// The version that `select` points at now.
    ///
    /// # Errors
    /// When there is no answer, or it is no version.
    pub async fn resolve(&self, registered_model: &str, select: &Select) -> Result<Found, RegistryError> {
        match self {
            Self::Mlflow(client) => client.resolve(registered_model, select).await,
            Self::Directory(directory) => directory.resolve(registered_model, select),
        }
    }

    /// Brings the files of `found` into `cache`, and says on the way how far it has come.
    ///
    /// # Errors
    /// When they cannot be brought whole, or break a rule.
    pub async fn fetch(
        &self,
        found: &Found,
        cache: &cache::Cache,
        loading: &Loading,
    ) -> Result<Fetched, RegistryError> {
        match self {
            Self::Mlflow(client) => client.fetch(found, cache, loading).await,
            Self::Directory(directory) => directory.fetch(found, cache).await,
        }
    }

    /// Sets a tag of the version `found`. A directory has none and takes none.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub async fn tag(&self, found: &Found, key: &str, value: &str) -> Result<(), RegistryError> {
        match self {
            Self::Mlflow(client) => client.tag(found, key, value).await,
            Self::Directory(_) => Ok(()),
        }
    }
}
