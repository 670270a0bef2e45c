//! Where objects go: S3 or a directory.

use std::path::PathBuf;

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
        client: aws_sdk_s3::Client,
        /// The bucket.
        bucket: String,
        /// The key prefix.
        prefix: String,
    },
    /// A directory.
    Directory(PathBuf),
}
