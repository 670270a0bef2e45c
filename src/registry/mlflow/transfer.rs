//! One file, whole.
//!
//! Downloads are cut: a 2.x server ends them after 30 seconds, under a status of 200 and with an error page written into
//! the body. What is cut is taken up where it was, but only as a part of the very same file: the server is asked for the
//! rest on the condition that the file still has the validator (`ETag`) the first part came with. The artifact proxy
//! gives none for some stores; what it cut is thrown away, and the file asked for by the route that does. What is here is
//! compared with the beginning of the rest all the same, because servers make validators of times and sizes.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use http::header::{CONTENT_RANGE, ETAG};
use http::{HeaderMap, StatusCode};
use reqwest::Response;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::answer::{Answer, unreachable};
use super::artifacts::{Download, Store};
use super::bucket::S3Error;
use crate::registry::RegistryError;
use crate::registry::cache::staging::{Incoming, Staging};
use crate::registry::path::RelativePath;

/// A file that comes slower than this is given up.
const MIN_BYTES_PER_SECOND: u64 = 64 << 10;

/// How often a download may be cut without having come any further.
const MAX_VAIN_ATTEMPTS: u32 = 3;

/// The end of a cut download is not trusted: a worker that is killed writes an error page of about 250 bytes into it.
const UNTRUSTED_TAIL: u64 = 16 << 10;

/// What is fetched twice when a download is taken up again. If it differs, the file is another one by now.
const OVERLAP: u64 = 64 << 10;

/// What is known of a file that is not whole yet.
struct Expected {
    /// Its size, from the listing or else from the first answer.
    size: Option<u64>,
    /// What the server calls these very bytes, where it has a name for them.
    etag: Option<String>,
    /// The route that names the version is taken, whoever else has the file.
    by_version: bool,
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

/// A server's answer to a request for a file, or for the rest of one.
struct Opened {
    body: Body,
    size: Option<u64>,
    etag: Option<String>,
    /// `Content-Range`, where this is a part.
    part: Option<String>,
}

enum Body {
    Http(Response),
    S3(ByteStream),
}

impl Body {
    async fn next(&mut self) -> Result<Option<bytes::Bytes>, String> {
        match self {
            Self::Http(response) => response.chunk().await.map_err(|error| unreachable(error).to_string()),
            Self::S3(stream) => stream.next().await.transpose().map_err(|error| error.to_string()),
        }
    }
}

impl Download<'_> {
    /// Fetches one file, of `size` bytes where a listing said so.
    pub(super) async fn file(
        &mut self,
        path: RelativePath,
        size: Option<u64>,
        staging: &mut Staging,
    ) -> Result<(), RegistryError> {
        let mut incoming = staging.receive(path).await?;
        let mut expected = Expected { size, etag: None, by_version: false, deadline: None };
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
                    keep_what_is_good(&mut incoming, &mut expected).await?;
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
        self.progress.has_file(incoming.len());
        Ok(staging.keep(incoming).await?)
    }

    async fn start(&mut self, incoming: &mut Incoming, expected: &mut Expected) -> Result<Step, RegistryError> {
        let Some(opened) = self.open(incoming.path(), expected, None).await? else {
            return Ok(Step::StartAgain("it has changed meanwhile"));
        };
        expected.size = expected.size.or(opened.size);
        expected.etag = opened.etag;
        self.stream(opened.body, incoming, expected).await
    }

    async fn resume(&mut self, incoming: &mut Incoming, expected: &mut Expected) -> Result<Step, RegistryError> {
        let start = incoming.len() - OVERLAP;
        let Some(mut opened) = self.open(incoming.path(), expected, Some(start)).await? else {
            return Ok(Step::StartAgain("it has changed meanwhile"));
        };
        let Some(part) = opened.part else {
            return Ok(Step::StartAgain("it has changed meanwhile, or the server gives no parts of it"));
        };
        let size = expected.size.unwrap_or_default();
        if part != format!("bytes {start}-{}/{size}", size.saturating_sub(1)) {
            return Ok(Step::StartAgain("the server gives another part than it was asked for"));
        }
        // Not every server heeds a condition.
        if opened.etag.is_some() && opened.etag != expected.etag {
            return Ok(Step::StartAgain("it has changed meanwhile"));
        }
        let known = incoming.tail(OVERLAP).await?;
        match self.skip(&mut opened.body, &known, expected).await? {
            Skipped::Same(rest) => {
                incoming.write(&rest).await?;
                self.stream(opened.body, incoming, expected).await
            }
            Skipped::Other => Ok(Step::StartAgain("it has changed meanwhile")),
            Skipped::Cut(reason) => Ok(Step::Cut(reason)),
        }
    }

    /// Asks for a file, or for what comes after its first `start` bytes; nothing if it is another file by now.
    async fn open(
        &self,
        path: &RelativePath,
        expected: &Expected,
        start: Option<u64>,
    ) -> Result<Option<Opened>, RegistryError> {
        let part = start.zip(expected.etag.as_deref());
        let url = match &self.store {
            Store::Bucket(bucket) => {
                return match bucket.get(path, part).await {
                    Ok(object) => Ok(Some(Opened {
                        size: object.content_length.and_then(|length| length.try_into().ok()),
                        etag: object.e_tag,
                        part: object.content_range,
                        body: Body::S3(object.body),
                    })),
                    Err(S3Error::Changed) => Ok(None),
                    Err(error) => Err(refused_by_s3(path, error)),
                };
            }
            Store::Proxied(base) if !expected.by_version => self.client.proxied_file(base, path),
            Store::Proxied(_) | Store::Version => self.client.file_of_version(self.found, path),
        };
        let response = self.client.open(url, part).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
        Ok(Some(Opened {
            size: response.content_length(),
            etag: validator(response.headers()),
            part: header(response.headers(), &CONTENT_RANGE).filter(|_| is_part).map(str::to_owned),
            body: Body::Http(response),
        }))
    }

    /// Reads over what is here already.
    async fn skip(&self, body: &mut Body, known: &[u8], expected: &mut Expected) -> Result<Skipped, RegistryError> {
        let mut again = Vec::new();
        while again.len() < known.len() {
            match self.chunk(body, expected).await? {
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
        &mut self,
        mut body: Body,
        incoming: &mut Incoming,
        expected: &mut Expected,
    ) -> Result<Step, RegistryError> {
        let Some(size) = expected.size else {
            // A whole file could not be told from a cut one.
            return Err(RegistryError::Nonsense(format!("it gives no length for `{}`", incoming.path())));
        };
        loop {
            if incoming.len() > size {
                return Ok(Step::StartAgain("it is longer than was listed"));
            }
            match self.chunk(&mut body, expected).await? {
                Chunk::Some(chunk) => incoming.write(&chunk).await?,
                Chunk::End if incoming.len() == size => return Ok(Step::Whole),
                Chunk::End => return Ok(Step::Cut(format!("it ends after {} of {size} bytes", incoming.len()))),
                Chunk::Cut(reason) => return Ok(Step::Cut(reason)),
            }
            self.progress.has_part(incoming.path(), incoming.len());
        }
    }

    /// The next piece of a body, while there is time for it.
    async fn chunk(&self, body: &mut Body, expected: &mut Expected) -> Result<Chunk, RegistryError> {
        let timeout = self.client.config.timeout;
        let deadline = expected.deadline(timeout, self.client.config.max_bytes);
        let silence = Instant::now() + timeout;
        match timeout_at(deadline.min(silence), body.next()).await {
            Ok(Ok(Some(chunk))) => Ok(Chunk::Some(chunk)),
            Ok(Ok(None)) => Ok(Chunk::End),
            Ok(Err(reason)) => Ok(Chunk::Cut(reason)),
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

/// After a cut: what was the file's before it, where the rest can be asked for, and else nothing.
async fn keep_what_is_good(incoming: &mut Incoming, expected: &mut Expected) -> Result<(), RegistryError> {
    let trusted = incoming.len().saturating_sub(UNTRUSTED_TAIL);
    let can_go_on = expected.etag.is_some() && trusted > OVERLAP;
    expected.by_version |= expected.etag.is_none();
    Ok(incoming.rewind(if can_go_on { trusted } else { 0 }).await?)
}

fn refused_by_s3(path: &RelativePath, error: S3Error) -> RegistryError {
    match error {
        S3Error::Away(why) => RegistryError::Unreachable(why),
        S3Error::Denied(why) => RegistryError::Refused(format!(
            "cannot read `{path}` in S3 ({why}): this identity needs s3:GetObject there"
        )),
        // It was listed: it is there or will be.
        S3Error::Missing | S3Error::Changed => RegistryError::Incomplete(format!("there is no `{path}`")),
    }
}

/// The name a server has for exactly these bytes; a weak one (`W/`) names others, too.
fn validator(headers: &HeaderMap) -> Option<String> {
    header(headers, &ETAG).filter(|etag| !etag.starts_with("W/")).map(str::to_owned)
}

fn header<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}
