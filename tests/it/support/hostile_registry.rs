//! A registry that answers as it is told: honestly, for one version with some files, or with whatever a test puts in.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use url::Url;

/// One request that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The path, decoded.
    pub(crate) path: String,
    /// The query, decoded.
    pub(crate) query: BTreeMap<String, String>,
    /// The headers.
    pub(crate) headers: HeaderMap,
    /// For which server, where it was asked as a proxy.
    pub(crate) proxied_for: Option<String>,
}

impl Asked {
    fn read(request: &Request) -> Self {
        let path = percent_encoding::percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
        let proxied_for = request.uri().authority().map(ToString::to_string);
        let query = url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
        Self { path, query: query.into_owned().collect(), headers: request.headers().clone(), proxied_for }
    }

    /// Whether the bytes of `file` are asked for, by whichever route.
    pub(crate) fn is_for(&self, file: &str) -> bool {
        let by_version = self.path.ends_with("/model-versions/get-artifact");
        if by_version { self.query["path"] == file } else { self.path.ends_with(&format!("/{file}")) }
    }

    /// The first byte that was asked for, if not all were.
    pub(crate) fn range_start(&self) -> Option<usize> {
        let range = self.headers.get("range")?.to_str().unwrap();
        Some(range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().unwrap())
    }
}

/// A server that answers as it is told. It ends with the test's runtime.
#[derive(Clone, Debug)]
pub(crate) struct Hostile {
    /// Where it listens.
    pub(crate) uri: Url,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Hostile {
    /// Starts a server that gives each request to `answer`.
    pub(crate) async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Asked) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response> + Send,
    {
        Self::start_at("127.0.0.1:0", answer).await
    }

    /// The same, at an address.
    #[expect(clippy::disallowed_methods, reason = "a test's server lives as long as its runtime")]
    pub(crate) async fn start_at<F, R>(address: &str, answer: F) -> Self
    where
        F: Fn(Asked) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response> + Send,
    {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let router = axum::Router::new().fallback(async move |request: Request| {
            let asked = Asked::read(&request);
            log.lock().unwrap().push(asked.clone());
            answer(asked).await
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { uri, asked }
    }

    /// Starts a server that gives the same answer to everything.
    pub(crate) async fn saying(answer: impl Fn() -> Response + Clone + Send + Sync + 'static) -> Self {
        Self::start(move |_| std::future::ready(answer())).await
    }

    /// All that arrived so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// An honest registry with version 1 of `m`, `champion`, and its files in the artifact proxy.
#[derive(Clone, Debug)]
pub(crate) struct Honest {
    /// Where it says the files are.
    pub(crate) artifact_uri: &'static str,
    /// The files.
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

impl Honest {
    /// With these files.
    pub(crate) fn with(files: &[(&str, impl AsRef<[u8]>)]) -> Self {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.as_ref().to_vec())).collect();
        Self { artifact_uri: "mlflow-artifacts:/0/run/artifacts/model", files }
    }

    /// What an honest server says to `asked`.
    pub(crate) fn answer(&self, asked: &Asked) -> Response {
        let path = asked.path.as_str();
        if let Some(call) = path.strip_prefix("/api/2.0/mlflow/") {
            return match call {
                "registered-models/alias" | "model-versions/get" => ok(&json!({ "model_version": version() })),
                "model-versions/search" => ok(&json!({ "model_versions": [version()] })),
                "model-versions/get-download-uri" => ok(&json!({ "artifact_uri": self.artifact_uri })),
                _ => not_found(),
            };
        }
        match path.strip_prefix("/api/2.0/mlflow-artifacts/artifacts") {
            Some("") => ok(&self.listing()),
            Some(file) => self.whole(file.trim_start_matches("/0/run/artifacts/model/")),
            None if path == "/model-versions/get-artifact" => self.part(&asked.query["path"], asked),
            None => not_found(),
        }
    }

    /// The files, flat.
    pub(crate) fn listing(&self) -> Value {
        let files = self.files.iter().map(|(name, bytes)| json!({ "path": name, "file_size": bytes.len() }));
        json!({ "files": files.collect::<Vec<_>>() })
    }

    /// One file's bytes.
    pub(crate) fn bytes(&self, file: &str) -> Option<&[u8]> {
        self.files.iter().find(|(name, _)| name == file).map(|(_, bytes)| bytes.as_slice())
    }

    /// A file without its length, as a 2.x server sends it.
    fn whole(&self, file: &str) -> Response {
        self.bytes(file).map_or_else(not_found, |bytes| chunked(vec![Ok(bytes.to_vec())]))
    }

    /// A file with its validator, from the byte that was asked for on if the condition holds.
    fn part(&self, file: &str, asked: &Asked) -> Response {
        let Some(bytes) = self.bytes(file) else { return not_found() };
        let etag = etag_of(bytes);
        let response = Response::builder().header("etag", &etag);
        let holds = asked.headers.get("if-range").is_none_or(|condition| *condition == etag);
        let Some(start) = asked.range_start().filter(|_| holds) else {
            return response.body(Body::from(bytes.to_vec())).unwrap();
        };
        let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
        let response = response.status(StatusCode::PARTIAL_CONTENT).header("content-range", range);
        response.body(Body::from(bytes[start..].to_vec())).unwrap()
    }
}

/// What an honest server calls these bytes.
pub(crate) fn etag_of(bytes: &[u8]) -> String {
    format!("\"{:08x}\"", crc32fast::hash(bytes))
}

/// Version 1 of `m` as a registry has it.
pub(crate) fn version() -> Value {
    json!({
        "name": "m", "version": "1", "creation_timestamp": 1_795_190_445_155_i64, "current_stage": "None", "status": "READY",
        "source": "mlflow-artifacts:/0/run/artifacts/model", "run_id": "run", "aliases": ["champion"],
    })
}

/// 200 with JSON.
pub(crate) fn ok(body: &Value) -> Response {
    say(StatusCode::OK, "application/json", body.to_string())
}

/// MLflow's own 404.
pub(crate) fn not_found() -> Response {
    let body = json!({ "error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such thing" });
    say(StatusCode::NOT_FOUND, "application/json", body.to_string())
}

/// Any status with any body.
pub(crate) fn say(status: StatusCode, kind: &str, body: impl Into<Body>) -> Response {
    Response::builder().status(status).header("content-type", kind).body(body.into()).unwrap()
}

/// 200 with a body of pieces, each sent before the next; an error cuts the connection.
pub(crate) fn chunked(pieces: Vec<Result<Vec<u8>, std::io::Error>>) -> Response {
    let pieces = futures_util::stream::iter(pieces).then(async |piece| {
        // A pause, however short, makes the server send what it has.
        tokio::task::yield_now().await;
        piece
    });
    Response::new(Body::from_stream(pieces))
}

/// What cuts a connection.
pub(crate) fn cut() -> std::io::Error {
    std::io::Error::other("cut")
}
