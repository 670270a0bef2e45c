//! Where objects go, and where they are read again: S3 or a directory.
//!
//! An object is created once and never changed. Its key tells its content, so a key that is taken already means that
//! this very object was put before, by a process that did not live to note it: that is a success.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::disk::{Access, Disk, EntryKind, Local, make_folders};

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
    Directory(Directory),
}

/// A folder of objects.
#[derive(Clone, Debug)]
pub struct Directory {
    folder: PathBuf,
    disk: Arc<dyn Disk>,
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
    /// A folder on this machine.
    #[must_use]
    pub fn directory(folder: impl Into<PathBuf>) -> Self {
        Self::Directory(Directory::new(folder.into(), Arc::new(Local)))
    }

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
                Self::Directory(directory) => put_file(directory.clone(), key.to_owned(), body).await,
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
            Self::Directory(directory) => {
                let (directory, within) = (directory.clone(), within.to_owned());
                blocking_read(move || {
                    let mut keys = Vec::new();
                    directory.list(&directory.folder, "", &mut keys)?;
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
            Self::Directory(directory) => {
                let (directory, path) = (directory.clone(), directory.folder.join(key));
                let object = blocking_read(move || directory.get(&path)).await?;
                object.ok_or_else(|| ReadError::TooLarge(key.to_owned()))
            }
        }
    }
}

impl Directory {
    /// A folder on `disk`.
    #[must_use]
    pub fn new(folder: PathBuf, disk: Arc<dyn Disk>) -> Self {
        Self { folder, disk }
    }

    /// The files below `folder`, by their path from there.
    fn list(&self, folder: &Path, above: &str, keys: &mut Vec<String>) -> io::Result<()> {
        for entry in self.disk.list(folder)? {
            let Ok(name) = entry.name.into_string() else { continue };
            let key = if above.is_empty() { name.clone() } else { format!("{above}/{name}") };
            if entry.kind == EntryKind::Folder {
                self.list(&folder.join(name), &key, keys)?;
            } else {
                keys.push(key);
            }
        }
        Ok(())
    }

    /// The object, unless it is too large.
    fn get(&self, path: &Path) -> io::Result<Option<Bytes>> {
        if self.disk.size(path)?.is_some_and(|bytes| bytes > OBJECT_MAX_BYTES) {
            return Ok(None);
        }
        self.disk.read(path, OBJECT_MAX_BYTES).map(|object| Some(object.into()))
    }

    /// Readers see the whole file or none: it is written beside its place, under a name that data tools skip and that
    /// the next try takes again.
    fn put(&self, key: &str, body: &[u8]) -> io::Result<()> {
        let (disk, path) = (&*self.disk, self.folder.join(key));
        let folder = path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
        if disk.size(&path)?.is_some() {
            // Whoever put it may have been killed before this line.
            return disk.sync_folder(folder);
        }
        make_folders(disk, folder, Access::Anyone)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let beside = folder.join(format!(".{}.partial", name.display()));
        disk.remove(&beside)?;
        let mut file = disk.create(&beside, Access::Anyone)?;
        file.append(body)?;
        file.sync()?;
        disk.rename(&beside, &path)?;
        disk.sync_folder(folder)
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

async fn put_file(directory: Directory, key: String, body: Vec<u8>) -> Result<(), PutError> {
    let done = spawn_blocking(move || directory.put(&key, &body)).await.unwrap_or_else(|error| Err(error.into()));
    done.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => PutError::Denied(error.to_string()),
        _ => PutError::Unavailable(error.to_string()),
    })
}
