//! Where objects go: S3 or a directory.
//!
//! An object is created once and never changed. Its key tells its content, so a key that is taken already means that
//! this very object was put before, by a process that did not live to note it: that is a success.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Where objects go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config {
    /// `s3://bucket/prefix`
    S3 {
        /// The bucket.
        bucket: String,
        /// The key prefix, without slashes at its ends; may be empty.
        prefix: String,
    },
    /// `file:folder`
    Directory(PathBuf),
}

/// A place that takes objects. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Sink {
    /// An S3 bucket.
    S3 {
        /// The SDK's client.
        client: Client,
        /// The bucket.
        bucket: String,
        /// The key prefix, without slashes at its ends; may be empty.
        prefix: String,
    },
    /// A directory.
    Directory(PathBuf),
}

/// Why an object could not be put.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The sink refuses: no permission, no such bucket. Asking again soon does not help.
    #[error("the sink refuses samples: {0}; check its name and permissions")]
    Denied(String),
    /// Anything that may pass by itself.
    #[error("the sink cannot be reached: {0}")]
    Unavailable(String),
}

/// The client has its own time-outs; this one is for a server that takes a byte now and then.
const PUT_TIMEOUT: Duration = Duration::from_mins(2);

/// How often an object is put when S3 answers that another write of the key is under way.
const CONFLICT_TRIES: u32 = 3;

impl Sink {
    /// Puts `body` at `key`, unless there is an object already.
    ///
    /// # Errors
    /// When the sink did not confirm that it has the object.
    pub async fn put(&self, key: &str, body: Vec<u8>) -> Result<(), PutError> {
        let put = async {
            match self {
                Self::S3 { client, bucket, prefix } => {
                    put_s3(client, bucket, &prefixed(prefix, key), body.into()).await
                }
                Self::Directory(folder) => put_file(folder.join(key), body).await,
            }
        };
        timeout(PUT_TIMEOUT, put)
            .await
            .unwrap_or_else(|_| Err(PutError::Unavailable("no answer in two minutes".to_owned())))
    }
}

fn prefixed(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}/{key}") }
}

async fn put_s3(client: &Client, bucket: &str, key: &str, body: Bytes) -> Result<(), PutError> {
    let mut tries = CONFLICT_TRIES;
    loop {
        tries -= 1;
        let put = client
            .put_object()
            .bucket(bucket)
            .key(key)
            .if_none_match("*")
            .content_type(media_type(key))
            .body(ByteStream::from(body.clone()));
        let Err(error) = put.send().await else { return Ok(()) };
        match error.raw_response().map(|response| response.status().as_u16()) {
            Some(412) => return Ok(()),
            Some(409) if tries > 0 => (),
            status => return Err(put_error(status, &error)),
        }
    }
}

fn media_type(key: &str) -> &'static str {
    match key.rsplit_once('.') {
        Some((_, "parquet")) => "application/vnd.apache.parquet",
        Some((_, "jsonl")) => "application/jsonlines",
        Some((_, "csv")) => "text/csv; charset=utf-8",
        Some((_, "json")) => "application/json",
        _ => "application/octet-stream",
    }
}

fn put_error<E: Error + 'static>(status: Option<u16>, error: &SdkError<E>) -> PutError {
    let text = chain(error);
    match status {
        // 301 is a bucket of another region.
        Some(301 | 401 | 403 | 404) => PutError::Denied(text),
        _ => PutError::Unavailable(text),
    }
}

/// The error and its causes, because the SDK's outermost word is "service error".
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

async fn put_file(path: PathBuf, body: Vec<u8>) -> Result<(), PutError> {
    let done = spawn_blocking(move || create_file(&path, &body)).await.unwrap_or_else(|error| Err(error.into()));
    done.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => PutError::Denied(error.to_string()),
        _ => PutError::Unavailable(error.to_string()),
    })
}

/// Readers see the whole file or none: it is written beside its place, under a name that data tools skip and that the
/// next try takes again.
fn create_file(path: &Path, body: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
    if path.try_exists()? {
        // Whoever put it may have been killed before this line.
        return sync_folder(folder);
    }
    create_folder(folder)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let beside = folder.join(format!(".{}.partial", name.display()));
    let mut file = File::create(&beside)?;
    file.write_all(body)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_folder(folder)
}

/// Makes a folder and those above it, each durable.
fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().unwrap_or(Path::new(""));
    create_folder(above)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_folder(above),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}
