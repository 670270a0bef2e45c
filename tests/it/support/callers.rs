//! Callers that keep their connections, of HTTP/1 and HTTP/2 by turns, and know what version `k` of `sum` has to answer:
//! `1000 k` plus the sum of the row.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Rows in a batch; one request in 32 is a batch.
const BATCH: usize = 100;

/// One connection, kept.
pub(crate) enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    #[expect(clippy::disallowed_methods, reason = "a connection is driven by a task of the test")]
    pub(crate) async fn open(address: SocketAddr, is_http2: bool) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let io = TokioIo::new(stream);
        if is_http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            Self::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            Self::Http1(sender)
        }
    }

    /// Asks on this connection; a text says what is wrong with it.
    pub(crate) async fn predict(&mut self, key: &str, model: &str, body: String) -> Result<Response<Bytes>, String> {
        let path = format!("/models/{model}/predict");
        let request = Request::builder().method(Method::POST).header(CONTENT_TYPE, "application/json");
        let request = request.header("x-api-key", key);
        let body = Full::new(Bytes::from(body));
        let answer = match self {
            Self::Http1(sender) => {
                let request = request.uri(path).header(HOST, "gate").body(body).unwrap();
                sender.ready().await.map_err(|error| error.to_string())?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                let request = request.uri(format!("http://gate{path}")).body(body).unwrap();
                sender.ready().await.map_err(|error| error.to_string())?;
                sender.send_request(request).await
            }
        };
        let (head, body) = answer.map_err(|error| error.to_string())?.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}

/// What all callers of a run share.
#[derive(Debug, Default)]
struct Watch {
    is_over: AtomicBool,
    /// Every request that begins from now on is answered by this version or a later one, and no caller goes back. 0 is no
    /// such promise.
    visible: AtomicU64,
    /// Requests answered so far, and rightly.
    answered: AtomicU64,
}

/// What callers saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) requests: u64,
    pub(crate) rows: u64,
    /// Requests that were the caller's first after a switch was reported.
    pub(crate) first_after: u64,
    /// The digest that was named with each version.
    pub(crate) digests: BTreeMap<u64, String>,
}

impl Seen {
    fn take(&mut self, other: Self) -> Result<(), String> {
        self.requests += other.requests;
        self.rows += other.rows;
        self.first_after += other.first_after;
        other.digests.into_iter().try_for_each(|(version, digest)| self.note(version, &digest))
    }

    fn note(&mut self, version: u64, digest: &str) -> Result<(), String> {
        let first = self.digests.entry(version).or_insert_with(|| digest.to_owned());
        if first == digest { Ok(()) } else { Err(format!("version {version} has the digests {first} and {digest}")) }
    }
}

/// Callers under way.
pub(crate) struct Callers {
    watch: Arc<Watch>,
    tasks: JoinSet<Result<Seen, String>>,
}

impl Callers {
    /// So many callers of the model `sum`, every second one on HTTP/2. Each asks again `pause` after it was answered.
    pub(crate) async fn start(address: SocketAddr, key: &str, count: u64, pause: Duration) -> Self {
        let watch = Arc::new(Watch::default());
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let connection = Connection::open(address, number % 2 == 1).await;
            tasks.spawn(call(connection, key.to_owned(), number, pause, Arc::clone(&watch)));
        }
        Self { watch, tasks }
    }

    /// Whoever asks from now on must be answered by `version` or a later one.
    pub(crate) fn expect_from_now_on(&self, version: u64) {
        self.watch.visible.store(version, Ordering::SeqCst);
    }

    /// Whether a caller has seen something wrong: then there is no need to go on.
    pub(crate) fn have_complained(&self) -> bool {
        self.watch.is_over.load(Ordering::SeqCst)
    }

    /// How many requests were answered so far.
    pub(crate) fn answered(&self) -> u64 {
        self.watch.answered.load(Ordering::Relaxed)
    }

    /// Ends the load. Fails with what any caller saw go wrong.
    pub(crate) async fn end(mut self) -> Seen {
        self.watch.is_over.store(true, Ordering::SeqCst);
        let mut all = Seen::default();
        while let Some(seen) = self.tasks.join_next().await {
            let seen = seen.unwrap().unwrap_or_else(|wrong| panic!("{wrong}"));
            all.take(seen).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
        all
    }
}

async fn call(
    mut connection: Connection,
    key: String,
    number: u64,
    pause: Duration,
    watch: Arc<Watch>,
) -> Result<Seen, String> {
    let mut random = fastrand::Rng::with_seed(number);
    let (mut seen, mut latest) = (Seen::default(), 0);
    while !watch.is_over.load(Ordering::SeqCst) {
        let count = if random.u8(..) < 8 { BATCH } else { 1 };
        let rows: Vec<[u32; 3]> =
            (0..count).map(|_| [random.u32(..100), random.u32(..100), random.u32(..100)]).collect();
        let floor = watch.visible.load(Ordering::SeqCst);
        let answer = connection.predict(&key, "sum", body_of(&rows)).await;
        let checked = answer.and_then(|answer| check(&answer, &rows)).and_then(|(version, digest)| {
            if floor > 0 && version < floor.max(latest) {
                return Err(format!("version {version} answered after {latest}, when {floor} was reported to serve"));
            }
            seen.note(version, &digest)?;
            Ok(version)
        });
        let version = checked.inspect_err(|_| watch.is_over.store(true, Ordering::SeqCst))?;
        seen.first_after += u64::from(floor > latest);
        latest = version;
        seen.requests += 1;
        watch.answered.fetch_add(1, Ordering::Relaxed);
        seen.rows += rows.len() as u64;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    Ok(seen)
}

fn body_of(rows: &[[u32; 3]]) -> String {
    let row = |[a, b, c]: &[u32; 3]| format!("{{\"a\":{a},\"b\":{b},\"c\":{c}}}");
    match rows {
        [one] => format!("{{\"data\":{}}}", row(one)),
        many => format!("{{\"data\":[{}]}}", many.iter().map(row).collect::<Vec<_>>().join(",")),
    }
}

#[derive(Deserialize)]
struct Told {
    version: String,
    prediction: Option<f64>,
    predictions: Option<Vec<Row>>,
}

#[derive(Deserialize)]
struct Row {
    prediction: f64,
}

/// The version and digest an answer names, if every row is what that version answers and the header says the same.
pub(crate) fn check(answer: &Response<Bytes>, rows: &[[u32; 3]]) -> Result<(u64, String), String> {
    let text = || format!("{} {}", answer.status(), String::from_utf8_lossy(answer.body()));
    if answer.status() != 200 {
        return Err(text());
    }
    let told: Told = serde_json::from_slice(answer.body()).map_err(|error| format!("{error} in {}", text()))?;
    let version: u64 = told.version.parse().map_err(|_| text())?;
    let header = answer.headers()["modelgate-model"].to_str().unwrap();
    let digest = header
        .strip_prefix(&format!("sum@{version}; digest="))
        .ok_or_else(|| format!("version {version}, and the header says {header}"))?;
    let digest = digest.split(';').next().unwrap_or_default().to_owned();
    let found: Vec<f64> = match (told.prediction, told.predictions) {
        (Some(prediction), None) => vec![prediction],
        (None, Some(predictions)) => predictions.iter().map(|row| row.prediction).collect(),
        _ => return Err(text()),
    };
    #[expect(clippy::cast_precision_loss, reason = "answers stay below sixteen million")]
    let right = |row: &[u32; 3]| (1000 * version + row.iter().map(|value| u64::from(*value)).sum::<u64>()) as f64;
    let expected: Vec<f64> = rows.iter().map(right).collect();
    if found == expected { Ok((version, digest)) } else { Err(format!("{} where {expected:?} is right", text())) }
}
