//! Fetching a version's files: where they are, which there are, and each of them whole.
//!
//! There is no checksum to compare with, so completeness is all that can be proved: each file has the size that was
//! listed, and together they are as large as `MLmodel` says. Downloads are cut: a 2.x server ends them after 30 seconds,
//! under a status of 200 and with an error page written into the body. What is cut is taken up again where it was.

use std::time::Duration;

use http::StatusCode;
use http::header::CONTENT_RANGE;
use reqwest::Response;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info};

use super::answer::{Answer, unreachable};
use super::location::Location;
use super::{Client, wire};
use crate::registry::cache::Cache;
use crate::registry::cache::staging::{Incoming, MAX_FILES, Staging};
use crate::registry::mlmodel::{self, Document};
use crate::registry::path::{RelativePath, printable};
use crate::registry::{Fetched, Found, RegistryError};

/// A file that comes slower than this is given up.
const MIN_BYTES_PER_SECOND: u64 = 64 << 10;

/// How often a download may be cut without having come any further.
const MAX_VAIN_ATTEMPTS: u32 = 3;

/// The end of a cut download is not trusted: a worker that is killed writes an error page of about 250 bytes into it.
const UNTRUSTED_TAIL: u64 = 16 << 10;

/// What is fetched twice when a download is taken up again. If it differs, the file is another one by now.
const OVERLAP: u64 = 64 << 10;

/// Files from this size on report their progress.
const LARGE_FILE: u64 = 16 << 20;

/// How often they do.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

const PROXY: &str = "api/2.0/mlflow-artifacts/artifacts";

/// A file as a listing has it.
struct Listed {
    path: RelativePath,
    size: u64,
}

/// Brings all files of `found` into `cache`.
pub(super) async fn fetch(client: &Client, found: &Found, cache: &Cache) -> Result<Fetched, RegistryError> {
    let mut download = Download::prepare(client, found).await?;
    let mut staging = cache.stage(client.config.max_bytes)?;
    match download.list().await? {
        Some(files) => download.all_of(files, &mut staging).await?,
        None => download.all_that_mlmodel_names(&mut staging).await?,
    }
    staging.seal().await
}

/// One version's download.
struct Download<'a> {
    client: &'a Client,
    found: &'a Found,
    /// The folder below the artifact proxy, where the proxy has the files.
    proxied: Option<Vec<String>>,
    /// The logged model the version was made from.
    logged_model: Option<String>,
}

impl<'a> Download<'a> {
    async fn prepare(client: &'a Client, found: &'a Found) -> Result<Self, RegistryError> {
        // Whoever kept `found` may have kept it from a time before a rule.
        let logged_model = match Location::parse(&found.source, &client.config.uri)? {
            Location::LoggedModel(id) => Some(id),
            _ => None,
        };
        if let Some(id) = &logged_model {
            client.finished_upload(id).await?;
        }
        let proxied = match client.storage(found).await? {
            Location::Proxied(path) => Some(path),
            _ => None,
        };
        Ok(Self { client, found, proxied, logged_model })
    }

    /// All files of the version, or nothing where the server cannot list them.
    async fn list(&mut self) -> Result<Option<Vec<Listed>>, RegistryError> {
        let files = self.walk().await?;
        // The proxy is switched off: what it cannot list it does not hand out either.
        if files.is_none() && self.proxied.take().is_some() {
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
        let (path, key, value) = match (&self.proxied, &self.logged_model) {
            (Some(base), _) => {
                let parts = base.iter().map(String::as_str).chain(folder.iter().flat_map(|folder| folder.segments()));
                (PROXY.to_owned(), "path", parts.collect::<Vec<_>>().join("/"))
            }
            (None, Some(id)) => {
                let folder = folder.map_or_else(String::new, |folder| folder.as_str().to_owned());
                (format!("{}/logged-models/{id}/artifacts/directories", super::API), "artifact_directory_path", folder)
            }
            (None, None) => return Ok(None),
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
        let path = match (folder, &self.proxied) {
            (Some(folder), Some(_)) => folder.join(&entry.path),
            _ => entry.path.parse(),
        };
        path.map_err(|error| RegistryError::BadArtifacts(error.to_string()))
    }

    /// Fetches listed files, `MLmodel` before all others: what cannot be served is known before it is fetched.
    async fn all_of(&self, mut files: Vec<Listed>, staging: &mut Staging) -> Result<(), RegistryError> {
        if files.is_empty() {
            return Err(RegistryError::Incomplete("its folder is empty, or not there".to_owned()));
        }
        check_sizes(&files, self.client.config.max_bytes)?;
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
    async fn all_that_mlmodel_names(&self, staging: &mut Staging) -> Result<(), RegistryError> {
        let document = self.mlmodel(None, staging).await?;
        for path in document.named_files()? {
            self.file(path, None, staging).await?;
        }
        Ok(())
    }

    async fn mlmodel(&self, size: Option<u64>, staging: &mut Staging) -> Result<Document, RegistryError> {
        let path: RelativePath = mlmodel::FILE.parse().expect("a plain name");
        let place = staging.place(&path);
        self.file(path, size, staging).await?;
        Document::read(&place)
    }

    /// Fetches one file, of `size` bytes where a listing said so.
    async fn file(&self, path: RelativePath, size: Option<u64>, staging: &mut Staging) -> Result<(), RegistryError> {
        let mut incoming = staging.receive(path).await?;
        let mut expected = Expected { size, deadline: None };
        let mut vain = 0;
        loop {
            let start = incoming.len();
            let step = if start == 0 {
                self.start(&mut incoming, &mut expected).await?
            } else {
                self.resume(&mut incoming, &mut expected).await?
            };
            let reason = match step {
                Step::Whole => break,
                Step::Cut(reason) => {
                    let trusted = incoming.len().saturating_sub(UNTRUSTED_TAIL);
                    incoming.rewind(if trusted > OVERLAP { trusted } else { 0 }).await?;
                    reason
                }
                Step::StartAgain(reason) => {
                    incoming.rewind(0).await?;
                    reason.to_owned()
                }
            };
            debug!("the download of `{}` was cut at byte {}: {reason}", incoming.path(), incoming.len());
            if incoming.len() <= start {
                vain += 1;
            }
            if vain == MAX_VAIN_ATTEMPTS {
                return Err(RegistryError::Incomplete(format!("`{}` does not come whole: {reason}", incoming.path())));
            }
        }
        Ok(staging.keep(incoming).await?)
    }

    async fn start(&self, incoming: &mut Incoming, expected: &mut Expected) -> Result<Step, RegistryError> {
        let url = match &self.proxied {
            Some(base) => self.client.proxied_file(base, incoming.path()),
            None => self.client.file_of_version(self.found, incoming.path()),
        };
        let response = self.client.open(url, 0).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        if expected.size.is_none() {
            expected.size = response.content_length();
        }
        self.stream(response, incoming, expected).await
    }

    /// Asks for the rest by the one route that every server answers in parts.
    async fn resume(&self, incoming: &mut Incoming, expected: &mut Expected) -> Result<Step, RegistryError> {
        let start = incoming.len() - OVERLAP;
        let mut response = self.client.open(self.client.file_of_version(self.found, incoming.path()), start).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(Step::StartAgain("the server gives no parts of it"));
        }
        let size = expected.size.unwrap_or_default();
        let range = format!("bytes {start}-{}/{size}", size.saturating_sub(1));
        if response.headers().get(CONTENT_RANGE).is_none_or(|part| part != range.as_str()) {
            return Ok(Step::StartAgain("the server gives another part than it was asked for"));
        }
        let known = incoming.tail(OVERLAP).await?;
        match self.skip(&mut response, &known, expected).await? {
            Skipped::Same(rest) => {
                incoming.write(&rest).await?;
                self.stream(response, incoming, expected).await
            }
            Skipped::Other => Ok(Step::StartAgain("it has changed meanwhile")),
            Skipped::Cut(reason) => Ok(Step::Cut(reason)),
        }
    }

    /// Reads over what is here already.
    async fn skip(
        &self,
        response: &mut Response,
        known: &[u8],
        expected: &mut Expected,
    ) -> Result<Skipped, RegistryError> {
        let mut again = Vec::new();
        while again.len() < known.len() {
            match self.chunk(response, expected).await? {
                Chunk::Some(chunk) => again.extend_from_slice(&chunk),
                Chunk::End => return Ok(Skipped::Cut("it ends early".to_owned())),
                Chunk::Cut(reason) => return Ok(Skipped::Cut(reason)),
            }
        }
        let rest = again.split_off(known.len());
        Ok(if again == known { Skipped::Same(rest) } else { Skipped::Other })
    }

    /// Appends the body until it is whole or cut.
    async fn stream(
        &self,
        mut response: Response,
        incoming: &mut Incoming,
        expected: &mut Expected,
    ) -> Result<Step, RegistryError> {
        let Some(size) = expected.size else {
            // A whole file could not be told from a cut one.
            return Err(RegistryError::Nonsense(format!("it gives no length for `{}`", incoming.path())));
        };
        let mut progress = Progress::new(size);
        loop {
            if incoming.len() > size {
                return Ok(Step::StartAgain("it is longer than was listed"));
            }
            match self.chunk(&mut response, expected).await? {
                Chunk::Some(chunk) => incoming.write(&chunk).await?,
                Chunk::End if incoming.len() == size => return Ok(Step::Whole),
                Chunk::End => return Ok(Step::Cut(format!("it ends after {} of {size} bytes", incoming.len()))),
                Chunk::Cut(reason) => return Ok(Step::Cut(reason)),
            }
            progress.report(self.found, incoming);
        }
    }

    /// The next piece of a body, while there is time for it.
    async fn chunk(&self, response: &mut Response, expected: &mut Expected) -> Result<Chunk, RegistryError> {
        let timeout = self.client.config.timeout;
        let deadline = expected.deadline(timeout, self.client.config.max_bytes);
        let silence = Instant::now() + timeout;
        match timeout_at(deadline.min(silence), response.chunk()).await {
            Ok(Ok(Some(chunk))) => Ok(Chunk::Some(chunk)),
            Ok(Ok(None)) => Ok(Chunk::End),
            Ok(Err(error)) => Ok(Chunk::Cut(unreachable(error).to_string())),
            Err(_) => Err(RegistryError::Unreachable(format!(
                "a file comes slower than {} KiB a second, or not at all",
                MIN_BYTES_PER_SECOND >> 10
            ))),
        }
    }

    async fn refusal(&self, response: Response) -> RegistryError {
        let read = tokio::time::timeout(self.client.config.timeout, Answer::read(response)).await;
        match read {
            Ok(Ok(answer)) => match answer.refusal(self.client.asked("artifacts")) {
                // It was listed, or MLmodel names it: it is there or will be.
                RegistryError::NotFound(said) => RegistryError::Incomplete(said),
                other => other,
            },
            Ok(Err(error)) => error,
            Err(_) => self.client.too_slow(),
        }
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

    /// Where the version's files are.
    async fn storage(&self, found: &Found) -> Result<Location, RegistryError> {
        let version = found.version.to_string();
        let query = [("name", found.registered_model.as_str()), ("version", version.as_str())];
        let uri: wire::DownloadUri = self.api("model-versions/get-download-uri", &query).await?;
        match Location::parse(&uri.artifact_uri, &self.config.uri)? {
            Location::Run { run, path } => self.storage_of_run(&run, path).await,
            Location::LoggedModel(id) => Ok(self.finished_upload(&id).await?.unwrap_or(Location::Elsewhere)),
            at => Ok(at),
        }
    }

    async fn storage_of_run(&self, run: &str, path: Vec<String>) -> Result<Location, RegistryError> {
        let run: wire::OneRun = self.api("runs/get", &[("run_id", run)]).await?;
        let at = Location::parse(&run.run.info.artifact_uri, &self.config.uri)?;
        Ok(match at {
            Location::Proxied(base) => Location::Proxied([base, path].concat()),
            _ => Location::Elsewhere,
        })
    }

    fn proxied_file(&self, base: &[String], path: &RelativePath) -> url::Url {
        let parts: Vec<&str> =
            [PROXY].into_iter().chain(base.iter().map(String::as_str)).chain([path.as_str()]).collect();
        self.url(&parts.join("/"), &[])
    }

    /// The route that reads every store, by the names of the version and the file. It cannot list.
    fn file_of_version(&self, found: &Found, path: &RelativePath) -> url::Url {
        let version = found.version.to_string();
        let query = [("name", found.registered_model.as_str()), ("version", version.as_str()), ("path", path.as_str())];
        self.url("model-versions/get-artifact", &query)
    }
}

/// What is known of a file before it is here.
struct Expected {
    size: Option<u64>,
    deadline: Option<Instant>,
}

impl Expected {
    /// When the file must be here, all attempts together.
    fn deadline(&mut self, timeout: Duration, max_bytes: u64) -> Instant {
        let seconds = self.size.unwrap_or(max_bytes) / MIN_BYTES_PER_SECOND;
        *self.deadline.get_or_insert_with(|| Instant::now() + timeout + Duration::from_secs(seconds))
    }
}

/// What became of one request for a file.
enum Step {
    Whole,
    /// It ended early. What is here, but for its tail, is good.
    Cut(String),
    /// What is here is of no use.
    StartAgain(&'static str),
}

/// What became of what is fetched twice.
enum Skipped {
    /// It is the same; and what came with it.
    Same(Vec<u8>),
    Other,
    Cut(String),
}

enum Chunk {
    Some(bytes::Bytes),
    End,
    Cut(String),
}

/// Tells people that a large file is coming.
struct Progress {
    size: u64,
    next: Instant,
}

impl Progress {
    fn new(size: u64) -> Self {
        Self { size, next: Instant::now() + PROGRESS_INTERVAL }
    }

    fn report(&mut self, found: &Found, incoming: &Incoming) {
        let now = Instant::now();
        if self.size < LARGE_FILE || now < self.next {
            return;
        }
        self.next = now + PROGRESS_INTERVAL;
        let (model, version, file) = (&found.registered_model, found.version, incoming.path());
        let percent = incoming.len().saturating_mul(100) / self.size;
        info!(
            registry.model = model, model.version = %version, bytes = incoming.len(), size = self.size,
            "fetching `{file}` of `{model}` version {version}: {percent} %"
        );
    }
}

/// Whether there is room for files of these sizes.
fn check_sizes(files: &[Listed], max_bytes: u64) -> Result<(), RegistryError> {
    let sum = files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size));
    match sum {
        Some(sum) if sum <= max_bytes => Ok(()),
        _ => Err(RegistryError::BadArtifacts(format!(
            "they are larger than the limit of {max_bytes} bytes for one version"
        ))),
    }
}
