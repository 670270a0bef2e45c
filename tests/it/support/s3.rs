//! An S3 in this process: `s3s-fs` over a temporary folder, which checks signatures and honours `If-None-Match`. What it
//! is sent can be refused, cut off or left without an answer.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use s3s::Body;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The only bucket.
pub(crate) const BUCKET: &str = "samples";
/// The secret that belongs to the access key.
pub(crate) const SECRET: &str = "the right secret";
pub(crate) const ACCESS_KEY: &str = "AKIATEST";

/// A running, or stopped, S3.
pub(crate) struct S3 {
    folder: TempDir,
    address: SocketAddr,
    service: S3Service,
    tasks: JoinSet<()>,
    weather: Arc<Weather>,
}

/// What may go wrong with a PUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// 403: no permission.
    Denied,
    /// 503: too many requests.
    SlowDown,
    /// The connection ends when half of the body has come.
    Reset,
    /// The object is stored, and the connection ends before the answer.
    Unanswered,
}

/// Where a PUT is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Its head has come.
    Arrived,
    /// The bucket has the object, and nobody has said so.
    Stored,
}

type Forecast = Box<dyn FnMut() -> Option<Fault> + Send>;

type Watcher = Box<dyn FnMut(Moment) + Send>;

/// What happens to PUTs, and what was seen of them.
#[derive(Default)]
pub(crate) struct Weather {
    forecast: Mutex<Option<Forecast>>,
    watcher: Mutex<Option<Watcher>>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    asked: AtomicUsize,
    failed: AtomicUsize,
}

impl Weather {
    /// Every PUT from now on asks what goes wrong with it.
    pub(crate) fn forecast(&self, forecast: impl FnMut() -> Option<Fault> + Send + 'static) {
        *self.forecast.lock() = Some(Box::new(forecast));
    }

    /// Nothing goes wrong any more.
    pub(crate) fn clear_up(&self) {
        *self.forecast.lock() = None;
    }

    /// Is called at every moment of a PUT, before the next one.
    pub(crate) fn watch(&self, watcher: impl FnMut(Moment) + Send + 'static) {
        *self.watcher.lock() = Some(Box::new(watcher));
    }

    /// Nobody watches any more.
    pub(crate) fn look_away(&self) {
        *self.watcher.lock() = None;
    }

    /// How many PUTs there were at once, at most.
    pub(crate) fn most_under_way(&self) -> usize {
        self.most_under_way.load(Ordering::SeqCst)
    }

    /// How many PUTs there were, and how many of them went wrong.
    pub(crate) fn asked_and_failed(&self) -> (usize, usize) {
        (self.asked.load(Ordering::SeqCst), self.failed.load(Ordering::SeqCst))
    }

    fn begin(self: &Arc<Self>) -> Put {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let under_way = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_under_way.fetch_max(under_way, Ordering::SeqCst);
        self.pass(Moment::Arrived);
        Put(Arc::clone(self))
    }

    fn pass(&self, moment: Moment) {
        if let Some(watcher) = &mut *self.watcher.lock() {
            watcher(moment);
        }
    }

    fn fault(&self) -> Option<Fault> {
        let fault = self.forecast.lock().as_mut().and_then(|forecast| forecast());
        self.failed.fetch_add(usize::from(fault.is_some()), Ordering::SeqCst);
        fault
    }
}

/// A PUT that is not answered yet.
struct Put(Arc<Weather>);

impl Drop for Put {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

type Answer = Result<Response<Body>, Box<dyn std::error::Error + Send + Sync>>;

/// Answers a request, through the weather. An error ends the connection.
async fn answer(service: S3Service, weather: Arc<Weather>, request: Request<Incoming>) -> Answer {
    if request.method() != Method::PUT {
        return Ok(service.call(request.map(Body::from)).await?);
    }
    let _put = weather.begin();
    match weather.fault() {
        Some(Fault::Denied) => Ok(refusal(StatusCode::FORBIDDEN, "AccessDenied")),
        Some(Fault::SlowDown) => Ok(refusal(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
        Some(Fault::Reset) => Err(half_of(request).await),
        Some(Fault::Unanswered) => {
            service.call(request.map(Body::from)).await?;
            weather.pass(Moment::Stored);
            Err("the answer is lost".into())
        }
        None => {
            let answer = service.call(request.map(Body::from)).await?;
            weather.pass(Moment::Stored);
            Ok(answer)
        }
    }
}

fn refusal(status: StatusCode, code: &str) -> Response<Body> {
    let body = format!("<Error><Code>{code}</Code><Message>the test says so</Message></Error>");
    Response::builder().status(status).header("content-type", "application/xml").body(Body::from(body)).unwrap()
}

/// Reads half of the body.
async fn half_of(request: Request<Incoming>) -> Box<dyn std::error::Error + Send + Sync> {
    let length: usize = request.headers()["content-length"].to_str().unwrap().parse().unwrap();
    let mut body = request.into_body();
    let mut read = 0;
    while read < length / 2
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.into_data().map_or(0, |data| data.len());
    }
    "the connection is reset".into()
}

impl S3 {
    /// Starts with an empty bucket.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(FileSystem::new(folder.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let weather = Arc::default();
        let mut s3 = Self { folder, address, service: service.build(), tasks: JoinSet::new(), weather };
        s3.serve(listener);
        s3
    }

    /// Closes the port and every connection.
    pub(crate) async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Starts again on the same port with the same objects.
    pub(crate) async fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    /// What happens to PUTs.
    pub(crate) fn weather(&self) -> &Weather {
        &self.weather
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a URL.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A client over plain HTTP that tries once.
    pub(crate) fn client(&self, secret: &str) -> Client {
        client(self.address, secret)
    }

    /// Every object of samples: its key and its bytes, by key.
    pub(crate) fn objects(&self) -> Vec<(String, Vec<u8>)> {
        samples(&self.folder.path().join(BUCKET))
    }

    /// Every object of the bucket, the manifests too.
    pub(crate) fn everything(&self) -> Vec<(String, Vec<u8>)> {
        files(&self.folder.path().join(BUCKET))
    }

    /// Changes an object behind the protocol's back.
    pub(crate) fn overwrite(&self, key: &str, bytes: &[u8]) {
        fs::write(self.folder.path().join(BUCKET).join(key), bytes).unwrap();
    }

    fn serve(&mut self, listener: TcpListener) {
        let (service, weather) = (self.service.clone(), Arc::clone(&self.weather));
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (service, weather) = (service.clone(), Arc::clone(&weather));
                let service = service_fn(move |request| answer(service.clone(), Arc::clone(&weather), request));
                connections.spawn(async move {
                    // A client may hang up whenever it likes.
                    _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
    }
}

/// A client of whatever listens at `address`.
pub(crate) fn client(address: SocketAddr, secret: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new(ACCESS_KEY, secret, None, None, "test"))
        .endpoint_url(format!("http://{address}"))
        .force_path_style(true)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .retry_config(RetryConfig::disabled())
        .build();
    Client::from_conf(config)
}

/// Every file of samples below `folder`: its path from there and its bytes, by path.
pub(crate) fn samples(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = files(folder);
    found.retain(|(name, _)| !name.split('/').any(|part| part == "_manifest"));
    found
}

/// Every file below `folder`: its path from there and its bytes, by path.
pub(crate) fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}
