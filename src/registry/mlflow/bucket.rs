//! A version's files in S3, read with the gateway's own identity: for registries that do not hand artifacts on.

use std::error::Error;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;

use super::artifacts::Listed;
use crate::registry::cache::staging::MAX_FILES;
use crate::registry::path::{RelativePath, printable};
use crate::registry::{RegistryError, S3Folder};

/// A version's folder.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    pub(super) client: Client,
    pub(super) folder: S3Folder,
}

/// Why S3 did not give what it was asked for.
#[derive(Debug)]
pub(super) enum S3Error {
    /// It is away, or slow, or broken. Worth trying again.
    Away(String),
    /// This identity may not, there is no such bucket, or we have no identity at all.
    Denied(String),
    /// There is no such object.
    Missing,
    /// The object is another one by now.
    Changed,
}

impl Bucket {
    /// All objects below the folder.
    pub(super) async fn list(&self) -> Result<Result<Vec<Listed>, S3Error>, RegistryError> {
        let prefix = format!("{}/", self.folder.path.join("/"));
        let (mut files, mut token) = (Vec::new(), None);
        loop {
            let ask = self.client.list_objects_v2().bucket(&self.folder.bucket).prefix(&prefix);
            let page = match ask.set_continuation_token(token).send().await {
                Ok(page) => page,
                Err(error) => return Ok(Err(classify(&error))),
            };
            for object in page.contents() {
                let name = object.key().and_then(|key| key.strip_prefix(&prefix)).unwrap_or_default();
                // Consoles make an empty object of a folder's name.
                if name.is_empty() || name.ends_with('/') {
                    continue;
                }
                let path = name.parse().map_err(|error| RegistryError::BadArtifacts(format!("{error}")))?;
                files.push(Listed { path, size: object.size().and_then(|size| size.try_into().ok()).unwrap_or(0) });
            }
            if files.len() > MAX_FILES {
                return Err(RegistryError::BadArtifacts(format!("there are more than {MAX_FILES} of them")));
            }
            token = page.next_continuation_token().map(str::to_owned);
            if token.is_none() {
                return Ok(Ok(files));
            }
        }
    }

    /// One object, from `start` on; as long as it is still the one with `etag`.
    pub(super) async fn get(&self, path: &RelativePath, part: Option<(u64, &str)>) -> Result<GetObjectOutput, S3Error> {
        let key = format!("{}/{path}", self.folder.path.join("/"));
        let ask = self.client.get_object().bucket(&self.folder.bucket).key(key);
        let ask = match part {
            Some((start, etag)) => ask.range(format!("bytes={start}-")).if_match(etag),
            None => ask,
        };
        ask.send().await.map_err(|error| classify(&error))
    }
}

fn classify<E: ProvideErrorMetadata + Error + 'static>(
    error: &SdkError<E, aws_sdk_s3::config::http::HttpResponse>,
) -> S3Error {
    let status = error.raw_response().map(|answer| answer.status().as_u16());
    let text = whole(error);
    match (status, error.code()) {
        (Some(404), Some("NoSuchKey")) => S3Error::Missing,
        (Some(412), _) => S3Error::Changed,
        (Some(429 | 500..), _) => S3Error::Away(text),
        (Some(_), _) => S3Error::Denied(text),
        // Without credentials nothing is sent.
        (None, _) if text.contains("credentials") => S3Error::Denied(text),
        (None, _) => S3Error::Away(text),
    }
}

/// An error and its causes, in one line.
fn whole(error: &(dyn Error + 'static)) -> String {
    let causes: Vec<_> =
        std::iter::successors(Some(error), |error| (**error).source()).map(ToString::to_string).collect();
    printable(&causes.join(": "), 300)
}
