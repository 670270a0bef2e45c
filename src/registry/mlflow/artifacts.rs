//! Fetching a version's files: where they are, and which there are. [`transfer`](super::transfer) brings each of them whole.
//!
//! There is no checksum to compare with, so completeness is all that can be proved: each file has the size that was
//! listed, and together they are as large as `MLmodel` says.

use tracing::warn;

use super::bucket::{Bucket, S3Error};
use super::location::Location;
use super::progress::Progress;
use super::{Client, wire};
use crate::model::loading::Loading;
use crate::registry::cache::Cache;
use crate::registry::cache::staging::{MAX_FILES, Staging};
use crate::registry::mlmodel::{self, Document};
use crate::registry::path::{RelativePath, printable};
use crate::registry::{Fetched, Found, RegistryError, S3Folder};

const PROXY: &str = "api/2.0/mlflow-artifacts/artifacts";

/// A file as a listing has it.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) path: RelativePath,
    pub(super) size: u64,
}

/// Who hands out a version's files.
#[derive(Debug)]
pub(super) enum Store {
    /// The registry's artifact proxy: the folder there.
    Proxied(Vec<String>),
    /// S3, to us.
    Bucket(Bucket),
    /// The registry, by the names of the version and the file. It cannot list.
    Version,
}

/// Brings all files of `found` into `cache`.
pub(super) async fn fetch(
    client: &Client,
    found: &Found,
    cache: &Cache,
    loading: &Loading,
) -> Result<Fetched, RegistryError> {
    let mut download = Download::prepare(client, found, loading).await?;
    let mut staging = cache.stage(client.config.max_bytes)?;
    match download.list().await? {
        Some(files) => download.all_of(files, &mut staging).await?,
        None => download.all_that_mlmodel_names(&mut staging).await?,
    }
    staging.seal().await
}

/// One version's download.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    pub(super) found: &'a Found,
    pub(super) store: Store,
    /// The logged model the version was made from.
    logged_model: Option<String>,
    pub(super) progress: Progress<'a>,
}

impl<'a> Download<'a> {
    async fn prepare(client: &'a Client, found: &'a Found, loading: &'a Loading) -> Result<Self, RegistryError> {
        // Whoever kept `found` may have kept it from a time before a rule.
        let logged_model = match Location::parse(&found.source, &client.config.uri)? {
            Location::LoggedModel(id) => Some(id),
            _ => None,
        };
        if let Some(id) = &logged_model {
            client.finished_upload(id).await?;
        }
        let store = client.storage(found).await?;
        Ok(Self { client, found, store, logged_model, progress: Progress::new(found, loading) })
    }

    /// All files of the version, or nothing where the server cannot list them.
    async fn list(&mut self) -> Result<Option<Vec<Listed>>, RegistryError> {
        if let Store::Bucket(bucket) = &self.store {
            let folder = &bucket.folder;
            match bucket.list().await? {
                Ok(files) => return Ok(Some(files)),
                Err(S3Error::Denied(why)) => warn!(
                    registry.model = self.found.registered_model,
                    "cannot list {folder} in S3 ({why}); the registry is asked for the files instead. This identity needs \
                     s3:ListBucket and s3:GetObject there"
                ),
                Err(S3Error::Away(why)) => return Err(RegistryError::Unreachable(why)),
                Err(S3Error::Missing | S3Error::Changed) => {
                    return Err(RegistryError::Incomplete(format!("there is nothing at {folder}")));
                }
            }
            self.store = Store::Version;
        }
        let files = self.walk().await?;
        // The proxy is switched off: what it cannot list it does not hand out either.
        if files.is_none() && matches!(self.store, Store::Proxied(_)) {
            self.store = Store::Version;
            return self.walk().await;
        }
        Ok(files)
    }

    async fn walk(&self) -> Result<Option<Vec<Listed>>, RegistryError> {
        let mut files = Vec::new();
        let mut folders: Vec<Option<RelativePath>> = vec![None];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            let Some(listing) = self.list_one(folder.as_ref()).await? else { return Ok(None) };
            seen += listing.files.len();
            if seen > MAX_FILES {
                return Err(RegistryError::BadArtifacts(format!("there are more than {MAX_FILES} of them")));
            }
            for entry in listing.files {
                let path = self.path_of(&entry, folder.as_ref())?;
                if entry.is_dir {
                    folders.push(Some(path));
                } else {
                    files.push(Listed { path, size: entry.file_size });
                }
            }
        }
        Ok(Some(files))
    }

    async fn list_one(&self, folder: Option<&RelativePath>) -> Result<Option<wire::Listing>, RegistryError> {
        let (path, key, value) = match (&self.store, &self.logged_model) {
            (Store::Proxied(base), _) => {
                let parts = base.iter().map(String::as_str).chain(folder.iter().flat_map(|folder| folder.segments()));
                (PROXY.to_owned(), "path", parts.collect::<Vec<_>>().join("/"))
            }
            (_, Some(id)) => {
                let folder = folder.map_or_else(String::new, |folder| folder.as_str().to_owned());
                (format!("{}/logged-models/{id}/artifacts/directories", super::API), "artifact_directory_path", folder)
            }
            (_, None) => return Ok(None),
        };
        let query = [(key, value.as_str())];
        let query = if value.is_empty() { &[][..] } else { &query };
        let answer = self.client.ask(self.client.url(&path, query)).await?;
        if answer.is_unsupported() {
            return Ok(None);
        }
        answer.json(self.client.asked("artifacts")).map(Some)
    }

    /// The proxy names files by their folder, a logged model by itself.
    fn path_of(&self, entry: &wire::ListedFile, folder: Option<&RelativePath>) -> Result<RelativePath, RegistryError> {
        let path = match (folder, &self.store) {
            (Some(folder), Store::Proxied(_)) => folder.join(&entry.path),
            _ => entry.path.parse(),
        };
        path.map_err(|error| RegistryError::BadArtifacts(error.to_string()))
    }

    /// Fetches listed files, `MLmodel` before all others: what cannot be served is known before it is fetched.
    async fn all_of(&mut self, mut files: Vec<Listed>, staging: &mut Staging) -> Result<(), RegistryError> {
        if files.is_empty() {
            return Err(RegistryError::Incomplete("its folder is empty, or not there".to_owned()));
        }
        self.progress.expect(whole_size(&files, self.client.config.max_bytes)?);
        files.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        let Some(at) = files.iter().position(|file| file.path.as_str() == mlmodel::FILE) else {
            return Err(RegistryError::BadArtifacts(
                "there is no MLmodel file: register a model, not a folder".to_owned(),
            ));
        };
        let document = self.mlmodel(Some(files[at].size), staging).await?;
        document.onnx()?;
        if !document.is_covered_by(files.iter().map(|file| (file.path.as_str(), file.size))) {
            return Err(RegistryError::Incomplete("they are smaller than MLmodel says".to_owned()));
        }
        files.remove(at);
        for file in files {
            self.file(file.path, Some(file.size), staging).await?;
        }
        Ok(())
    }

    /// Fetches what can be known without a listing.
    async fn all_that_mlmodel_names(&mut self, staging: &mut Staging) -> Result<(), RegistryError> {
        let document = self.mlmodel(None, staging).await?;
        for path in document.named_files()? {
            self.file(path, None, staging).await?;
        }
        Ok(())
    }

    async fn mlmodel(&mut self, size: Option<u64>, staging: &mut Staging) -> Result<Document, RegistryError> {
        let path: RelativePath = mlmodel::FILE.parse().expect("a plain name");
        let place = staging.place(&path);
        self.file(path, size, staging).await?;
        Document::read(&place)
    }
}

impl Client {
    /// Where a logged model is, if the server knows it still; an error while it is being uploaded.
    ///
    /// A version made from one is `READY` at once.
    async fn finished_upload(&self, id: &str) -> Result<Option<Location>, RegistryError> {
        let what = format!("logged-models/{id}");
        let answer = self.ask(self.url(&format!("{}/{what}", super::API), &[])).await?;
        if answer.is_unsupported() {
            return Ok(None);
        }
        let model: wire::OneLoggedModel = match answer.json(self.asked(&what)) {
            // Deleted since. Its files stay, and so does the version.
            Err(RegistryError::NotFound(_)) => return Ok(None),
            answer => answer?,
        };
        let info = model.model.info;
        if info.status != "LOGGED_MODEL_READY" {
            let status = printable(&info.status, 40);
            return Err(RegistryError::Incomplete(format!("the upload of {id} is not finished ({status})")));
        }
        Location::parse(&info.artifact_uri, &self.config.uri).map(Some)
    }

    /// Who hands out the version's files.
    async fn storage(&self, found: &Found) -> Result<Store, RegistryError> {
        let version = found.version.to_string();
        let query = [("name", found.registered_model.as_str()), ("version", version.as_str())];
        let uri: wire::DownloadUri = self.api("model-versions/get-download-uri", &query).await?;
        let at = match Location::parse(&uri.artifact_uri, &self.config.uri)? {
            Location::Run { run, path } => self.storage_of_run(&run, path).await?,
            Location::LoggedModel(id) => self.finished_upload(&id).await?.unwrap_or(Location::Elsewhere),
            at => at,
        };
        match (at, &self.s3) {
            (Location::Proxied(path), _) => Ok(Store::Proxied(path)),
            (Location::S3(folder), Some(s3)) => {
                self.check_root(&folder).await?;
                Ok(Store::Bucket(Bucket { client: s3.client().await.clone(), folder }))
            }
            _ => Ok(Store::Version),
        }
    }

    async fn storage_of_run(&self, run: &str, path: Vec<String>) -> Result<Location, RegistryError> {
        let run: wire::OneRun = self.api("runs/get", &[("run_id", run)]).await?;
        let at = Location::parse(&run.run.info.artifact_uri, &self.config.uri)?;
        Ok(match at {
            Location::Proxied(base) => Location::Proxied([base, path].concat()),
            Location::S3(base) => Location::S3(S3Folder { path: [base.path, path].concat(), ..base }),
            _ => Location::Elsewhere,
        })
    }

    /// Whether our identity may be used to read this folder.
    async fn check_root(&self, folder: &S3Folder) -> Result<(), RegistryError> {
        let is_configured = self.config.artifact_roots.iter().any(|root| root.holds(folder));
        if is_configured || self.own_root().await?.is_some_and(|root| root.holds(folder)) {
            return Ok(());
        }
        Err(RegistryError::BadArtifacts(format!(
            "they are at {}, which is neither below the registry's own artifact root nor below one of \
             `registry.artifact_roots`: add that folder there if versions may come from it",
            printable(&folder.to_string(), 120)
        )))
    }

    /// Where the registry puts artifacts, if that is S3: its first experiment is made with the server, and lies below it.
    async fn own_root(&self) -> Result<Option<S3Folder>, RegistryError> {
        let asked = self.api::<wire::OneExperiment>("experiments/get", &[("experiment_id", "0")]).await;
        let experiment = match asked {
            Err(error @ (RegistryError::Unreachable(_) | RegistryError::Busy { .. })) => return Err(error),
            Err(_) => return Ok(None),
            Ok(experiment) => experiment.experiment,
        };
        let root = experiment.artifact_location.strip_suffix("/0").and_then(|root| root.parse().ok());
        Ok(root)
    }

    pub(super) fn proxied_file(&self, base: &[String], path: &RelativePath) -> url::Url {
        let parts: Vec<&str> =
            [PROXY].into_iter().chain(base.iter().map(String::as_str)).chain([path.as_str()]).collect();
        self.url(&parts.join("/"), &[])
    }

    /// The route that reads every store, by the names of the version and the file. It cannot list.
    pub(super) fn file_of_version(&self, found: &Found, path: &RelativePath) -> url::Url {
        let version = found.version.to_string();
        let query = [("name", found.registered_model.as_str()), ("version", version.as_str()), ("path", path.as_str())];
        self.url("model-versions/get-artifact", &query)
    }
}

/// How many bytes files of these sizes are, if there is room for them.
fn whole_size(files: &[Listed], max_bytes: u64) -> Result<u64, RegistryError> {
    let sum = files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size));
    sum.filter(|sum| *sum <= max_bytes).ok_or_else(|| {
        RegistryError::BadArtifacts(format!("they are larger than the limit of {max_bytes} bytes for one version"))
    })
}
