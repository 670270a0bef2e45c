//! Versions that lie in S3 and that their registry does not hand out: folders of objects, and the way to them.
//!
//! Who may register a model may write any bucket into its source. So a folder is read only below the artifact root that
//! the registry itself has, or below one that the configuration names: the gateway's identity in AWS reads nothing else
//! for anybody.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_sdk_s3::Client;
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use super::path::is_plain_segment;

/// A folder in a bucket; without a path, the whole bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Folder {
    /// The bucket.
    pub bucket: String,
    /// The folders from its top.
    pub path: Vec<String>,
}

impl S3Folder {
    /// Whether `other` is in this folder, or is it.
    #[must_use]
    pub fn holds(&self, other: &Self) -> bool {
        self.bucket == other.bucket && other.path.starts_with(&self.path)
    }
}

impl fmt::Display for S3Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        self.path.iter().try_for_each(|part| write!(f, "/{part}"))
    }
}

/// Why a text is not an [`S3Folder`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no folder in S3: write s3://bucket/folder")]
pub struct NotAnS3Folder(String);

impl FromStr for S3Folder {
    type Err = NotAnS3Folder;

    fn from_str(text: &str) -> Result<Self, NotAnS3Folder> {
        let read = || {
            let rest = text.strip_prefix("s3://")?;
            let mut parts = rest.strip_suffix('/').unwrap_or(rest).split('/').map(str::to_owned);
            let bucket = parts.next().filter(|bucket| is_plain_segment(bucket))?;
            let path: Vec<String> = parts.collect();
            path.iter().all(|part| is_plain_segment(part)).then_some(Self { bucket, path })
        };
        read().ok_or_else(|| NotAnS3Folder(text.to_owned()))
    }
}

type Connect = dyn Fn() -> BoxFuture<'static, Client> + Send + Sync;

/// The way to S3, taken when it is first needed: to find credentials the machine's metadata may be asked.
#[derive(Clone)]
pub struct S3 {
    connect: Arc<Connect>,
    client: Arc<OnceCell<Client>>,
}

impl S3 {
    /// By the client that `connect` makes.
    #[must_use]
    pub fn new(connect: impl Fn() -> BoxFuture<'static, Client> + Send + Sync + 'static) -> Self {
        Self { connect: Arc::new(connect), client: Arc::new(OnceCell::new()) }
    }

    pub(super) async fn client(&self) -> &Client {
        self.client.get_or_init(|| (self.connect)()).await
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(text: &str) -> S3Folder {
        text.parse().unwrap()
    }

    #[test]
    fn a_folder_holds_what_is_below_it_and_no_namesake() {
        let root = folder("s3://models/mlflow/");
        assert_eq!(root.to_string(), "s3://models/mlflow");
        for inside in ["s3://models/mlflow", "s3://models/mlflow/1/models/m-1/artifacts"] {
            assert!(root.holds(&folder(inside)), "{inside}");
        }
        for outside in ["s3://models", "s3://models/mlflow-2/1", "s3://other/mlflow/1", "s3://models/1/mlflow"] {
            assert!(!root.holds(&folder(outside)), "{outside}");
        }
        assert!(folder("s3://models").holds(&root));
    }

    #[test]
    fn only_folders_are_folders() {
        for text in
            ["", "s3://", "s3:///a", "models/a", "S3://a", "s3://a//b", "s3://a/../b", "s3://a/%2e%2e", "s3://a:1/b"]
        {
            assert!(text.parse::<S3Folder>().is_err(), "{text}");
        }
    }
}
