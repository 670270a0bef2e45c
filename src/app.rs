//! The composition root: builds every part, connects them, starts them, and stops them in order.
//!
//! Contains no logic of its own. What is started here, and only here, runs through [`Tasks`].

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use aws_config::SdkConfig;
use aws_types::service_config::ServiceConfigKey;
use futures_util::FutureExt as _;
use tokio::net::TcpListener;
use tokio::sync::OnceCell;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::capture::sink::Sink;
use crate::capture::{self, Capture};
use crate::clock::Clock;
use crate::config::Config;
use crate::drift::Drift;
use crate::feedback::{self, Feedback, Keeper, Sender};
use crate::manager::admission::probe;
use crate::manager::history::History;
use crate::manager::{Manager, Parts};
use crate::metrics::{Flusher, Metrics};
use crate::model::runtime::Runtime;
use crate::model::shadow::Comparer;
use crate::model::{self, Models, held, orders, shadow};
use crate::quota::Quota;
use crate::registry::cache::Cache;
use crate::registry::{self, Names, Registry, S3};
use crate::server::{self, Readiness, State, Traffic, Webhook};
use crate::task::{self, Tasks};
use crate::telemetry;

mod baseline;
pub mod dashboard;
mod demo;
mod doctor;
pub mod keys;
pub mod operate;
pub mod replay;
mod sinks;
mod verify;

pub use baseline::{BaselineSources, FeatureSource, baseline};
pub use demo::demo;
pub use doctor::doctor;
pub use operate::operate;
pub use verify::verify;

/// How often what idle callers had set aside is given back.
const SETTLE_INTERVAL: Duration = Duration::from_secs(1);

/// How often segments are looked at for being full or old.
const CAPTURE_FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// How often drift is looked at: a few times in each step of the shortest window, and before each flush to CloudWatch.
const DRIFT_INTERVAL: Duration = Duration::from_secs(2);

/// How often drift is written down: a kill costs the rows of so long.
const DRIFT_SAVE_INTERVAL: Duration = Duration::from_mins(1);

/// How long a stop waits for measurements and samples to be taken. Samples that are not stay on disk for the next start.
const LAST_FLUSH: Duration = Duration::from_secs(15);

/// The stack on which ONNX Runtime is loaded and put to the test.
const RUNTIME_STACK_BYTES: usize = 64 << 20;

/// What the process takes from outside besides its configuration.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// What time it is.
    pub clock: Clock,
    /// Where randomness that need not be secret comes from: sampling, jitter.
    pub seed: u64,
}

impl Surroundings {
    /// The machine's own.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn of_the_machine() -> anyhow::Result<Self> {
        let seed = getrandom::u64().context("the system gives no randomness")?;
        Ok(Self { clock: Clock::system(), seed })
    }
}

/// A gateway that runs.
#[derive(Debug)]
pub struct Running {
    /// Where callers connect.
    pub data: SocketAddr,
    /// Where operators connect.
    pub admin: SocketAddr,
    models: Models,
    readiness: Readiness,
    drain_delay: Duration,
    front: Tasks,
    back: Tasks,
}

/// Builds and starts a gateway.
///
/// # Errors
/// When a part cannot be built; the chain says which and what to do.
pub async fn start(config: Config, surroundings: Surroundings) -> anyhow::Result<Running> {
    let Surroundings { clock, seed } = surroundings;
    make_data_dir(&config.data_dir)?;
    let runtime = load_runtime(config.onnxruntime.clone()).await?;
    let keys = Arc::new(keys::open(config.auth, config.shared_keys.as_ref())?.with_pins(config.pins));
    let are_in_step = keys::sync_at_start(&keys, clock.now()).await?;
    let (tell, stays) = held::line();
    tell.send_replace(keys::who_stays(&keys, clock.now()));
    let quota = Arc::new(Quota::open(config.quota, &mut getrandom::fill)?);
    // What samples may not hold, metrics may not show.
    let withheld = config.capture.as_ref().map(|capture| capture.protect.names()).unwrap_or_default();
    let metrics = Metrics::withholding(config.metrics, withheld.clone());
    let drift = Drift::open(config.drift, config.data_dir.join("drift.state"), withheld);
    let aws = Aws::default();
    let samples = config.capture.as_ref().map(|capture| capture.sink.clone());
    let (capture, capture_writer) = open_capture(config.capture, &aws, seed).await?;
    let (feedback, labels) = open_feedback(config.feedback, samples.as_ref(), &aws).await?;
    let (models, publisher) = model::published(config.manager.models.iter().map(|model| model.name.clone()));
    let cache = Cache::open(config.data_dir.join("cache")).context("cannot open the model cache")?;
    let registry = open_registry(config.registry, &aws)?;
    let poll_interval = config.manager.poll_interval;
    let history = History::open(&config.data_dir.join("history.db")).context("cannot open the history of versions")?;
    let (orders, inbox) = orders::channel();
    let (shadow, comparer) = shadow::line();
    let parts = Parts {
        registry,
        cache,
        runtime: runtime.clone(),
        publisher,
        drift: drift.clone(),
        metrics: metrics.clone(),
        inbox,
        stays,
        history,
        clock: clock.clone(),
    };
    let manager = Manager::new(parts, config.manager).context("cannot read the history of versions")?;

    let data = bind(config.server.listen, "server.listen").await?;
    let admin = bind(config.server.admin_listen, "server.admin_listen").await?;
    let readiness = Readiness::default();
    let state = State {
        keys: Arc::clone(&keys),
        quota: Arc::clone(&quota),
        models: models.clone(),
        shadow,
        orders,
        webhook: config.webhook_secret.as_ref().map(|secret| Arc::new(Webhook::new(secret))),
        metrics: metrics.clone(),
        drift: drift.clone(),
        capture,
        feedback: feedback.clone(),
        readiness: readiness.clone(),
        clock: clock.clone(),
        poll_interval,
        runtime_version: runtime.version().into(),
        traffic: Traffic::default(),
        seed,
        trace_parent: config.telemetry.otlp.is_some().then_some(|headers, span| telemetry::follow(span, headers)),
    };
    let running = Running {
        data: data.local_addr()?,
        admin: admin.local_addr()?,
        models,
        readiness,
        drain_delay: config.server.drain_delay,
        front: Tasks::new(),
        back: Tasks::new(),
    };

    let (front, back) = (&running.front, &running.back);
    let data_routes = server::data_router(state.clone(), &config.server);
    let admin_routes = server::admin_router(state, &config.server);
    front.spawn("data-listener", server::serve(data, data_routes, config.server.clone(), front.stopping()));
    front.spawn("admin-listener", server::serve(admin, admin_routes, config.server, front.stopping()));
    back.spawn("registry", follow_registry(manager, seed, back.stopping()));
    back.spawn("shadow", compare(comparer, back.stopping()));
    if keys.copy_health().is_some() {
        back.spawn("shared-keys", keys::follow(Arc::clone(&keys), are_in_step, clock.clone(), back.stopping()));
    }
    back.spawn("keys", keys::refresh(keys, tell, clock.clone(), back.stopping()));
    back.spawn("usage", settle_usage(quota, clock.clone(), back.stopping()));
    back.spawn(
        "drift",
        follow_drift(drift.clone(), running.models.clone(), metrics.clone(), clock.clone(), back.stopping()),
    );
    back.spawn("drift-state", keep_drift(drift, clock.clone(), back.stopping()));
    if let Some((keeper, sender)) = labels {
        let accuracy = show_accuracy(feedback, running.models.clone(), metrics.clone(), back.stopping());
        back.spawn("accuracy", accuracy);
        back.spawn("labels", keep_labels(keeper, sender, clock.clone(), back.stopping()));
    }
    if let Some(writer) = capture_writer {
        back.spawn("capture", write_samples(writer, clock.clone(), back.stopping()));
    }
    for (name, interval, flusher) in sinks::open(config.sinks, &metrics, &aws, clock.now()).await? {
        back.spawn(name, send_metrics(flusher, interval, clock.clone(), back.stopping()));
    }
    info!(data = %running.data, admin = %running.admin, onnxruntime = %runtime.version(), "listening on {}, admin on {}", running.data, running.admin);
    Ok(running)
}

impl Running {
    /// What is published; for those who wait for a model.
    #[must_use]
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// Returns when a background task has died.
    pub async fn broken(&self) {
        let (front, back) = (self.front.stopping(), self.back.stopping());
        tokio::select! {
            () = front.cancelled() => {}
            () = back.cancelled() => {}
        }
    }

    /// Stops in order: unready, drain, close, flush. Says whether every part did its work to the end.
    pub async fn stop(self) -> bool {
        self.readiness.drain();
        tokio::time::sleep(self.drain_delay).await;
        self.front.stop();
        self.front.finished().await;
        self.back.stop();
        self.back.finished().await;
        !self.front.has_failed() && !self.back.has_failed()
    }
}

/// Runs `work` to its end, for commands that do one thing.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the async runtime")?.block_on(work)
}

/// Tries the version that `request` names, as the process that a gateway starts for it; returns what to tell the gateway.
#[must_use]
pub fn probe(request: &str) -> String {
    probe::answer(request)
}

/// Runs a gateway until a signal asks it to stop.
///
/// # Errors
/// When it cannot be built, or a part of it died.
pub fn serve(config: Config) -> anyhow::Result<()> {
    serve_and_tell(config, async |_| {})
}

/// The same; `tell` is called once it listens.
fn serve_and_tell(config: Config, tell: impl AsyncFnOnce(&Running)) -> anyhow::Result<()> {
    let _telemetry = telemetry::init(&config.telemetry)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("modelgate")
        .build()
        .context("cannot start the async runtime")?;
    runtime.block_on(async {
        // On the heap: it is built once, and large.
        let running = Box::pin(start(config, Surroundings::of_the_machine()?)).await?;
        tell(&running).await;
        tokio::select! {
            signal = signalled() => info!("{} received; finishing what is under way, once more to exit at once", signal?),
            () = running.broken() => {}
        }
        tokio::select! {
            in_order = running.stop() => anyhow::ensure!(in_order, "a part of the gateway died; the log says which"),
            signal = signalled() => anyhow::bail!("{} received again; exiting without waiting", signal?),
        }
        info!("stopped in order");
        Ok(())
    })
}

/// The name of the next SIGTERM or SIGINT.
async fn signalled() -> anyhow::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

fn make_data_dir(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make data_dir `{}`", path.display()))
}

async fn load_runtime(configured: Option<std::path::PathBuf>) -> anyhow::Result<Runtime> {
    let (done, loaded) = tokio::sync::oneshot::channel();
    task::thread("onnxruntime-loader", RUNTIME_STACK_BYTES, move || {
        // The receiver is gone only when the process is already on its way out.
        let _ = done.send(Runtime::load(configured.as_deref()));
    })?;
    Ok(loaded.await.context("the thread that loads ONNX Runtime died")??)
}

async fn open_capture(
    config: Option<capture::Config>,
    aws: &Aws,
    seed: u64,
) -> anyhow::Result<(Capture, Option<capture::Writer>)> {
    let Some(config) = config else { return Ok((Capture::off(), None)) };
    let sink = open_sink(&config.sink, aws).await;
    let (capture, writer) = capture::open(config, sink, &mut getrandom::fill, seed)?;
    Ok((capture, Some(writer)))
}

async fn open_feedback(
    config: Option<feedback::Config>,
    samples: Option<&capture::sink::Config>,
    aws: &Aws,
) -> anyhow::Result<(Feedback, Option<(Keeper, Option<Sender>)>)> {
    let Some(config) = config else { return Ok((Feedback::off(), None)) };
    let sink = match samples {
        Some(samples) => Some(open_sink(samples, aws).await),
        None => None,
    };
    let (feedback, keeper, sender) = feedback::open(config, sink)?;
    Ok((feedback, Some((keeper, sender))))
}

async fn open_sink(config: &capture::sink::Config, aws: &Aws) -> Sink {
    match config {
        capture::sink::Config::Directory(folder) => Sink::directory(folder.clone()),
        capture::sink::Config::S3 { bucket, prefix } => {
            let (bucket, prefix) = (bucket.clone(), prefix.clone());
            Sink::S3 { client: s3_client(aws.config().await), bucket, prefix }
        }
    }
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} ({key})"))
}

/// The client for registries. Follows no redirect and no name to where no registry is: credentials never go to another host.
fn http_client(ca_file: Option<&Path>) -> anyhow::Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .dns_resolver(Names::default())
        .user_agent(concat!("modelgate/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(10));
    let builder = match ca_file {
        Some(file) => builder.tls_certs_merge(certificates(file)?),
        None => builder,
    };
    builder.build().context("cannot build the HTTP client")
}

fn certificates(file: &Path) -> anyhow::Result<Vec<reqwest::Certificate>> {
    let what = || format!("cannot read certificates from `{}` (registry.ca_file)", file.display());
    let pem = std::fs::read(file).with_context(what)?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem).with_context(what)?;
    anyhow::ensure!(!certificates.is_empty(), "{}: there is no certificate in it", what());
    Ok(certificates)
}

/// The registry, with a way to read what it keeps in S3 and does not hand on.
fn open_registry(config: registry::Config, aws: &Aws) -> anyhow::Result<Registry> {
    let (endpoint, ca_file) = match &config {
        registry::Config::Mlflow(server) => (server.s3_endpoint.clone(), server.ca_file.clone()),
        registry::Config::Directory(_) => (None, None),
    };
    let aws = aws.clone();
    let connect = move || {
        let (aws, endpoint) = (aws.clone(), endpoint.clone());
        async move {
            let config = aws.config().await;
            s3_client_at(config, endpoint.map(String::from).or_else(|| s3_endpoint(config)))
        }
        .boxed()
    };
    Ok(Registry::new(config, http_client(ca_file.as_deref())?).with_s3(S3::new(connect)))
}

/// The AWS SDK's configuration, looked up only by those who need it: without a region it asks the instance's metadata.
#[derive(Clone, Default)]
struct Aws(Arc<OnceCell<SdkConfig>>);

impl Aws {
    async fn config(&self) -> &SdkConfig {
        self.0.get_or_init(load_aws_config).await
    }
}

/// A client of S3 where the environment says it is.
fn s3_client(config: &SdkConfig) -> aws_sdk_s3::Client {
    s3_client_at(config, s3_endpoint(config))
}

/// A stand-in for S3 rarely answers under `<bucket>.<host>`: where the endpoint is given, the bucket goes into the path.
fn s3_client_at(config: &SdkConfig, endpoint: Option<String>) -> aws_sdk_s3::Client {
    let builder = aws_sdk_s3::config::Builder::from(config).force_path_style(endpoint.is_some());
    let builder = match endpoint {
        Some(endpoint) => builder.endpoint_url(endpoint),
        None => builder,
    };
    aws_sdk_s3::Client::from_conf(builder.build())
}

/// `AWS_ENDPOINT_URL_S3`, or else `AWS_ENDPOINT_URL`, or what a profile says in their place.
fn s3_endpoint(config: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id("S3").env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
    let own = key.ok().zip(config.service_config()).and_then(|(key, settings)| settings.load_config(key));
    own.or_else(|| config.endpoint_url().map(str::to_owned))
}

async fn load_aws_config() -> SdkConfig {
    use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
    let client = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let timeouts = aws_config::timeout::TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        .operation_attempt_timeout(Duration::from_secs(15))
        .operation_timeout(Duration::from_secs(45))
        .build();
    aws_config::defaults(aws_config::BehaviorVersion::latest())
        .http_client(client)
        .timeout_config(timeouts)
        .load()
        .await
}

async fn follow_registry(mut manager: Manager, seed: u64, stop: CancellationToken) {
    tokio::select! {
        () = manager.open_last_good() => {}
        () = stop.cancelled() => return,
    }
    manager.run(seed, stop).await;
}

/// Has challengers answer what was answered, until it is time to stop: what still waits then is nobody's loss.
async fn compare(mut comparer: Comparer, stop: CancellationToken) {
    loop {
        tokio::select! {
            more = comparer.compare_once() => if !more { return stop.cancelled().await },
            () = stop.cancelled() => return,
        }
    }
}

async fn settle_usage(quota: Arc<Quota>, clock: Clock, stop: CancellationToken) {
    let mut pace = Pace::new(SETTLE_INTERVAL, stop);
    let mut healthy = true;
    while pace.next().await {
        match quota.settle_once(clock.now()).await {
            Ok(_) => healthy = true,
            Err(error) if healthy => {
                warn!("cannot write usage, it is kept and written later: {error}");
                healthy = false;
            }
            Err(_) => {}
        }
    }
    if let Err(error) = quota.settle_all(clock.now()).await {
        warn!("cannot write the last usage; callers may get fewer requests than their quota: {error}");
    }
}

async fn follow_drift(drift: Drift, models: Models, metrics: Metrics, clock: Clock, stop: CancellationToken) {
    let mut pace = Pace::new(DRIFT_INTERVAL, stop);
    while pace.next().await {
        let now = clock.now();
        drift.settle_once(now);
        let served = models.snapshot();
        metrics.show_drift(&drift.reports(&served, now));
        metrics.show_served(served.iter().filter_map(|(_, entry)| entry.serving.as_ref()).map(|model| model.id()));
    }
}

/// Writes the windows down once a while, and once more after the last request.
async fn keep_drift(drift: Drift, clock: Clock, stop: CancellationToken) {
    let mut pace = Pace::new(DRIFT_SAVE_INTERVAL, stop);
    while pace.next().await {
        drift.save_once(clock.now()).await;
    }
    drift.save_once(clock.now()).await;
}

async fn send_metrics(mut flusher: Flusher, interval: Duration, clock: Clock, stop: CancellationToken) {
    let mut pace = Pace::new(interval, stop);
    while pace.next().await {
        flusher.flush_once(clock.now()).await;
    }
    if tokio::time::timeout(LAST_FLUSH, flusher.flush_once(clock.now())).await.is_err() {
        warn!("the last measurements were not taken in time; they are lost");
    }
}

async fn show_accuracy(feedback: Feedback, models: Models, metrics: Metrics, stop: CancellationToken) {
    let mut pace = Pace::new(DRIFT_INTERVAL, stop);
    while pace.next().await {
        let set = models.snapshot();
        let serving = set.iter().filter_map(|(_, entry)| entry.serving.as_ref());
        let figures = serving.filter_map(|model| Some((Arc::clone(model.id()), feedback.figures(model.id())?)));
        metrics.show_accuracy(&figures.collect::<Vec<_>>());
    }
}

/// Keeps answers and labels as they come, and sends labels to the sink; to the end, when no listener takes any more.
async fn keep_labels(mut keeper: Keeper, mut sender: Option<Sender>, clock: Clock, stop: CancellationToken) {
    let keep = async {
        loop {
            tokio::select! {
                more = keeper.keep_once(|| clock.now()) => if !more { return },
                () = stop.cancelled() => return,
            }
        }
    };
    let send = async {
        let mut pace = Pace::new(CAPTURE_FLUSH_INTERVAL, stop.clone());
        while pace.next().await {
            if let Some(sender) = &mut sender {
                sender.flush_once(clock.now(), false).await;
            }
        }
    };
    tokio::join!(keep, send);
    keeper.keep_all(clock.now()).await;
    if let Some(sender) = &mut sender
        && tokio::time::timeout(LAST_FLUSH, sender.flush_once(clock.now(), true)).await.is_err()
    {
        warn!("labels could not be sent in time; they wait in data_dir for the next start");
    }
}

/// Spools as samples come, and flushes at every interval. Ends when the last [`Capture`] is gone, which is when the
/// listeners have closed, or when it is told to stop and nothing waits any more.
async fn write_samples(mut writer: capture::Writer, clock: Clock, stop: CancellationToken) {
    let mut pace = Pace::new(CAPTURE_FLUSH_INTERVAL, stop);
    loop {
        tokio::select! {
            spooled = writer.spool_once() => if spooled.is_none() { break },
            go_on = pace.next() => {
                if !go_on {
                    break;
                }
                writer.flush_once(clock.now(), false).await;
            }
        }
    }
    if tokio::time::timeout(LAST_FLUSH, writer.flush_once(clock.now(), true)).await.is_err() {
        warn!("samples could not be sent in time; they wait in the spool for the next start");
    }
}

/// When a driver takes its next step.
struct Pace {
    ticks: Interval,
    stop: CancellationToken,
}

impl Pace {
    /// One step an interval, the first after one; a step that takes longer puts off the next.
    fn new(interval: Duration, stop: CancellationToken) -> Self {
        let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, stop }
    }

    /// Waits for the next step; false when it is time to stop.
    async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.ticks.tick() => true,
            () = self.stop.cancelled() => false,
        }
    }
}
