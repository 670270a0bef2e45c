//! Where objects go, and where they are read again: S3 or a directory.
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

/// Why samples cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The sink does not give them.
    #[error("the samples cannot be read: {0}")]
    Unavailable(String),
    /// An object no gateway has written.
    #[error("`{0}` is larger than 256 MiB, which no object of samples is")]
    TooLarge(String),
}

/// An object is made of one segment, which is far smaller.
const OBJECT_MAX_BYTES: u64 = 256 << 20;

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

impl Sink {
    /// The keys of all objects that begin with `within`, in no order.
    ///
    /// # Errors
    /// When the sink does not list them.
    pub async fn list(&self, within: &str) -> Result<Vec<String>, ReadError> {
        match self {
            Self::S3 { client, bucket, prefix } => list_s3(client, bucket, prefix, within).await,
            Self::Directory(folder) => {
                let (folder, within) = (folder.clone(), within.to_owned());
                blocking_read(move || {
                    let mut keys = Vec::new();
                    list_folder(&folder, "", &mut keys)?;
                    keys.retain(|key| key.starts_with(&within));
                    Ok(keys)
                })
                .await
            }
        }
    }

    /// The object at `key`, whole.
    ///
    /// # Errors
    /// When the sink does not give it, or it is too large to be one.
    pub async fn get(&self, key: &str) -> Result<Bytes, ReadError> {
        match self {
            Self::S3 { client, bucket, prefix } => get_s3(client, bucket, &prefixed(prefix, key)).await,
            Self::Directory(folder) => {
                let path = folder.join(key);
                if fs::metadata(&path).is_ok_and(|file| file.len() > OBJECT_MAX_BYTES) {
                    return Err(ReadError::TooLarge(key.to_owned()));
                }
                blocking_read(move || fs::read(path).map(Bytes::from)).await
            }
        }
    }
}

async fn list_s3(client: &Client, bucket: &str, prefix: &str, within: &str) -> Result<Vec<String>, ReadError> {
    let start = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let mut pages = client.list_objects_v2().bucket(bucket).prefix(prefixed(prefix, within)).into_paginator().send();
    let mut keys = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| ReadError::Unavailable(chain(&error)))?;
        let found = page.contents().iter().filter_map(|object| object.key()?.strip_prefix(&start));
        keys.extend(found.map(str::to_owned));
    }
    Ok(keys)
}

async fn get_s3(client: &Client, bucket: &str, key: &str) -> Result<Bytes, ReadError> {
    let object = client.get_object().bucket(bucket).key(key).send().await;
    let object = object.map_err(|error| ReadError::Unavailable(chain(&error)))?;
    if object.content_length().is_some_and(|length| length.cast_unsigned() > OBJECT_MAX_BYTES) {
        return Err(ReadError::TooLarge(key.to_owned()));
    }
    let body = object.body.collect().await.map_err(|error| ReadError::Unavailable(chain(&error)))?;
    Ok(body.into_bytes())
}

/// The files below `folder`, by their path from there.
fn list_folder(folder: &Path, above: &str, keys: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let key = if above.is_empty() { name } else { format!("{above}/{name}") };
        if entry.file_type()?.is_dir() {
            list_folder(&entry.path(), &key, keys)?;
        } else {
            keys.push(key);
        }
    }
    Ok(())
}

async fn blocking_read<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ReadError> {
    let done = spawn_blocking(work).await.unwrap_or_else(|error| Err(error.into()));
    done.map_err(|error| ReadError::Unavailable(error.to_string()))
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
