//! A data address and an admin address on real sockets, with real keys and quotas in a folder of their own, and no
//! registry: what is served is what the test publishes.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use modelgate::auth::{self, Access, ApiKeys, PlanName};
use modelgate::capture::Capture;
use modelgate::clock::Clock;
use modelgate::drift::{self, Drift};
use modelgate::feedback::Feedback;
use modelgate::metrics::{self, Metrics};
use modelgate::model::{Models, Publisher, orders, published, shadow};
use modelgate::quota::{self, Limit, Location, Period, Plan, Quota, Throttle};
pub(crate) use modelgate::server::Config;
use modelgate::server::{self, ErrorStyle, Readiness, Router, State, Traffic, admin_router, data_router};
use modelgate::task::Tasks;
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::{canary, fixtures};

/// No test waits longer than this for anything. It says that something hangs, not that it is slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway that is asked over its sockets.
pub(crate) struct Gate {
    pub(crate) address: SocketAddr,
    pub(crate) router: Router,
    pub(crate) admin: Router,
    pub(crate) readiness: Readiness,
    pub(crate) publisher: Publisher,
    /// `x-api-key: …` of a caller whose plan has no limits.
    pub(crate) key: String,
    /// `x-api-key: …` of a caller who may have two requests at once and three rows a day.
    pub(crate) small_key: String,
    pub(crate) tasks: Tasks,
    /// Every key there is, to be changed.
    pub(crate) keys: Arc<ApiKeys>,
    folder: tempfile::TempDir,
}

/// Limits as a gateway has them by default, on any free port.
pub(crate) fn config() -> Config {
    Config {
        listen: ([127, 0, 0, 1], 0).into(),
        admin_listen: ([127, 0, 0, 1], 0).into(),
        error_style: ErrorStyle::Problem,
        max_body: 2 * 1024 * 1024,
        deadline: Duration::from_secs(10),
        max_rows: 1000,
        max_depth: 32,
        max_header_bytes: 16 * 1024,
        max_headers: 64,
        header_timeout: Duration::from_secs(10),
        body_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_mins(1),
        max_connections: NonZeroUsize::new(4096).unwrap(),
        max_connections_per_address: NonZeroUsize::new(256).unwrap(),
        max_streams: NonZeroU32::new(100).unwrap(),
        max_in_flight: NonZeroUsize::new(64).unwrap(),
        drain_delay: Duration::ZERO,
        grace: Duration::from_secs(10),
    }
}

impl Gate {
    /// A gateway with nothing configured to serve.
    pub(crate) async fn start(config: Config) -> Self {
        Self::with_models(config, &[]).await
    }

    /// A gateway with `names` configured and nothing loaded.
    pub(crate) async fn with_models(config: Config, names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (models, publisher) = published(names.iter().map(|name| name.parse().unwrap()));
        let (keys, [key, small_key]) = keys(folder.path());
        let state = state(folder.path(), keys, models);
        let (router, admin) = (data_router(state.clone(), &config), admin_router(state.clone(), &config));

        let listener = TcpListener::bind(config.listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = Tasks::new();
        tasks.spawn("data", server::serve(listener, router.clone(), config, tasks.stopping()));
        let (keys, readiness) = (state.keys, state.readiness);
        Self { address, router, admin, readiness, publisher, key, small_key, tasks, keys, folder }
    }

    /// A gateway that serves the fixture `kind` under that name.
    pub(crate) async fn serving(config: Config, kind: &str) -> Self {
        let mut gate = Self::with_models(config, &[kind]).await;
        gate.publisher.serve(Arc::new(fixtures::model(kind)));
        gate
    }

    /// The file of keys and quotas.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("gate.db")
    }

    /// A prediction asked for with `lines` and the key without limits.
    pub(crate) async fn predict(&self, lines: &[&str], body: &str) -> Answer {
        self.ask("POST", "/predict", &[&[self.key.as_str()], lines].concat(), body).await
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> Connection {
        Connection(TcpStream::connect(self.address).await.unwrap())
    }

    /// All that comes back for `request` on a connection of its own, until the gateway closes it.
    pub(crate) async fn tell(&self, request: impl AsRef<[u8]>) -> String {
        let mut connection = self.connect().await;
        connection.send(request).await;
        connection.rest().await
    }

    /// One request that asks for its connection to be closed; `lines` are header lines.
    pub(crate) async fn ask(&self, method: &str, target: &str, lines: &[&str], body: &str) -> Answer {
        let lines = lines.join("\r\n");
        let lines = if lines.is_empty() { lines } else { lines + "\r\n" };
        let length = body.len();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: gate\r\nConnection: close\r\nContent-Length: {length}\r\n{lines}\r\n"
        );
        Answer::read(&self.tell(head + body).await)
    }

    /// Stops the gateway and waits until it has stopped.
    pub(crate) async fn stop(&self) {
        self.tasks.stop();
        timeout(PATIENCE, self.tasks.finished()).await.expect("the gateway stops");
    }
}

/// The header lines of two callers, one a plan.
fn keys(folder: &Path) -> (ApiKeys, [String; 2]) {
    let (store, pepper) = (folder.join("gate.db"), folder.join("pepper"));
    let plans = PLANS.map(|plan| (PlanName::from(plan), Access::All)).into();
    let mut random = fastrand::Rng::with_seed(1);
    let mut random = |bytes: &mut [u8]| {
        random.fill(bytes);
        Ok(())
    };
    let keys = ApiKeys::open(auth::Config { store, pepper, plans }, &mut random).unwrap();
    let lines = PLANS.map(|plan| {
        let (_, secret) = keys.create("test", plan, None, Clock::system().now(), &mut random).unwrap();
        canary::note(secret.expose_secret());
        format!("x-api-key: {}", secret.expose_secret())
    });
    (keys, lines)
}

const PLANS: [&str; 2] = ["open", "small"];

fn quota(folder: &Path) -> Quota {
    let open = Plan::default();
    let small = Plan {
        // So slow that no test sees a token come back.
        throttle: Some(Throttle { rate: 0.001, burst: 2 }),
        quota: Some(Limit { amount: NonZeroU64::new(3).unwrap(), period: Period::Day }),
        ..Plan::default()
    };
    let plans = PLANS.map(PlanName::from).into_iter().zip([open, small]).collect();
    Quota::open(quota::Config { store: Location::File(folder.join("gate.db")), plans }, &mut getrandom::fill).unwrap()
}

fn state(folder: &Path, keys: ApiKeys, models: Models) -> State {
    let thousand = NonZeroUsize::new(1000).unwrap();
    State {
        keys: Arc::new(keys),
        quota: Arc::new(quota(folder)),
        models,
        shadow: shadow::line().0,
        orders: orders::channel().0,
        webhook: None,
        metrics: Metrics::new(metrics::Config { max_series: thousand, max_categories: thousand }),
        drift: Drift::new(drift::Config {
            window: Duration::from_hours(1),
            threshold: 0.1,
            min_rows: 200,
            baseline_rows: 1000,
            by_key: false,
        }),
        capture: Capture::off(),
        feedback: Feedback::off(),
        readiness: Readiness::default(),
        clock: Clock::system(),
        poll_interval: Duration::from_secs(30),
        runtime_version: "none".into(),
        traffic: Traffic::default(),
        seed: 1,
        trace_parent: None,
    }
}

/// A socket to the gateway.
pub(crate) struct Connection(TcpStream);

impl Connection {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// All that comes until the gateway closes. A reset is an end, too.
    pub(crate) async fn rest(&mut self) -> String {
        String::from_utf8_lossy(&self.rest_bytes().await).into_owned()
    }

    /// As [`rest`](Self::rest), for what is no text.
    pub(crate) async fn rest_bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _end = timeout(PATIENCE, self.0.read_to_end(&mut bytes)).await.expect("the gateway closes");
        bytes
    }

    /// The next answer, on a connection that stays open.
    pub(crate) async fn answer(&mut self) -> Answer {
        let mut text = Vec::new();
        while !is_whole(&text) {
            let mut piece = [0; 4096];
            let length = timeout(PATIENCE, self.0.read(&mut piece)).await.expect("an answer comes").unwrap();
            assert_ne!(length, 0, "closed after {:?}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&piece[..length]);
        }
        Answer::read(&String::from_utf8(text).unwrap())
    }
}

fn is_whole(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.is_none_or(|length| body.len() >= length.parse().unwrap())
}

/// An answer taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no whole answer in {text:?}"));
        assert!(!body.contains(r#""code":"internal""#), "no request makes the gateway fail: {body}");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Self { status: status.expect("a status line"), head: head.to_owned(), body: body.to_owned() }
    }

    /// A header's value, if there is one.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// The `code` of an error.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}
