//! Connections: accepted, counted, watched while idle, and ended in order.
//!
//! Built on hyper's two protocols directly. `axum::serve` installs no timer, so nothing would ever end a connection
//! that says nothing; hyper-util's builder that tells the protocols apart waits for the first bytes without a timer,
//! and cannot bound the bytes of HTTP/1 headers.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use hyper_util::server::graceful::GracefulConnection;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::watch::{Activity, Verdict, Watched};
use super::{Config, Router, Traffic};

/// How long a full table of file descriptors is given to empty.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);

/// What a closing connection may take to notice that it is closing.
const CLOSING_TIME: Duration = Duration::from_secs(1);

/// What every HTTP/2 connection begins with; no HTTP/1 method is called so.
const HTTP2_PREFACE: &[u8] = b"PRI ";

/// Streams a caller may reset before we have looked at them; more end the connection (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;

/// HTTP/2 flow control, in bytes: one stream, and all streams of a connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// hyper keeps this many header fields without an allocation. Ours is the limit that counts; this one is for heads
/// that are so far over it that no answer of ours is owed.
const HYPER_HEADERS: usize = 100;

/// Accepts on `listener` until `stop`, then lets requests under way finish within the grace time.
pub async fn serve(listener: TcpListener, router: Router, config: Config, stop: CancellationToken) {
    let tracker = TaskTracker::new();
    let server = Arc::new(Server::new(router, config, &stop, tracker.clone()));
    accept(&listener, &server, &stop).await;
    drop(listener);

    tracker.close();
    if timeout(server.config.grace, tracker.wait()).await.is_err() {
        tracing::warn!("requests were still under way when the grace time ended; their connections are cut");
        server.cut.cancel();
        tracker.wait().await;
    }
}

async fn accept(listener: &TcpListener, server: &Arc<Server>, stop: &CancellationToken) {
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                if let Some(place) = server.seats.take(peer.ip()) {
                    server.tracker.spawn(Arc::clone(server).answer(stream, peer.ip(), place));
                }
            }
            Err(error) if is_about_one_connection(&error) => (),
            Err(error) => {
                if !failing {
                    tracing::error!(error = &error as &dyn std::error::Error, "cannot accept connections; trying on");
                }
                failing = true;
                sleep(ACCEPT_BACK_OFF).await;
            }
        }
    }
}

/// The caller was gone before we looked. Everything else (no file descriptors, no memory) is about us.
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// What all connections of one listener share.
struct Server {
    router: Router,
    config: Config,
    http1: http1::Builder,
    http2: http2::Builder<Spawner>,
    seats: Seats,
    tracker: TaskTracker,
    /// No more requests, please.
    stop: CancellationToken,
    /// Not a moment longer.
    cut: CancellationToken,
}

impl Server {
    fn new(router: Router, config: Config, stop: &CancellationToken, tracker: TaskTracker) -> Self {
        Self {
            http1: http1(&config),
            http2: http2(&config, Spawner(tracker.clone())),
            seats: Seats::new(&config, router.traffic().clone()),
            stop: stop.child_token(),
            cut: CancellationToken::new(),
            router,
            config,
            tracker,
        }
    }

    /// One connection, from its first byte to its last.
    async fn answer(self: Arc<Self>, stream: TcpStream, peer: IpAddr, _seat: Seat) {
        let first = tokio::select! {
            () = self.stop.cancelled() => return,
            first = timeout(self.config.header_timeout, peek(&stream)) => first,
        };
        let Ok(Ok(is_http2)) = first else { return };
        // Answers are written whole; waiting to fill a segment only delays their end.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let activity = Arc::new(Activity::new(is_http2, &self.config));
        let io = Watched::new(stream, Arc::clone(&activity), CLOSING_TIME);
        let service = service_fn(|request| {
            let (router, busy) = (self.router.clone(), Activity::busy(&activity));
            async move {
                let _busy = busy;
                Ok::<_, Infallible>(router.answer_to(request, Some(peer)).await)
            }
        });
        if is_http2 {
            self.drive(pin!(self.http2.serve_connection(io, service)), &activity).await;
        } else {
            self.drive(pin!(self.http1.serve_connection(io, service)), &activity).await;
        }
    }

    /// Runs a connection until it ends by itself, has been idle for too long, or is cut.
    async fn drive<C: GracefulConnection>(&self, mut connection: Pin<&mut C>, activity: &Activity) {
        let mut check = pin!(sleep(Duration::ZERO));
        // Tokens of its own: a shared one would be a lock that all connections pass on every wake-up.
        let (stop, cut) = (self.stop.child_token(), self.cut.child_token());
        let (mut stopping, mut cutting) = (pin!(stop.cancelled()), pin!(cut.cancelled()));
        let mut closing = false;
        loop {
            tokio::select! {
                biased;
                // How it ended is the caller's business: reset, half a request, or well.
                _ended = connection.as_mut() => return,
                () = check.as_mut() => match activity.verdict() {
                    Verdict::LookAgain(at) => check.as_mut().reset(at),
                    Verdict::HalfAHead => return,
                    Verdict::Idle if closing => return,
                    Verdict::Idle => {
                        closing = true;
                        connection.as_mut().graceful_shutdown();
                        check.as_mut().reset(Instant::now() + CLOSING_TIME);
                    }
                },
                () = stopping.as_mut(), if !closing => {
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = cutting.as_mut() => return,
            }
        }
    }
}

/// Whether the caller speaks HTTP/2. Waits for its first bytes, and leaves them where they are.
async fn peek(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; HTTP2_PREFACE.len()];
    // The preface comes in one piece: whoever sends less at first is taken for HTTP/1, and refused by its parser.
    let length = stream.peek(&mut first).await?;
    Ok(&first[..length] == HTTP2_PREFACE)
}

fn http1(config: &Config) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // hyper's own timer runs between requests too, where the idle time is the limit; `Activity` knows the two.
        .header_read_timeout(None)
        .max_headers(config.max_headers.max(HYPER_HEADERS))
        .max_header_size(hard_header_bytes(config))
        .max_buf_size(hard_header_bytes(config).max(64 * 1024));
    builder
}

fn http2(config: &Config, spawner: Spawner) -> http2::Builder<Spawner> {
    let mut builder = http2::Builder::new(spawner);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_streams.get())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_header_list_size(u32::try_from(hard_header_bytes(config)).unwrap_or(u32::MAX))
        .keep_alive_interval(config.idle_timeout / 2)
        .keep_alive_timeout(config.header_timeout);
    builder
}

/// Up to our limit a head is read and answered; up to this one it is read and refused; above, hyper refuses it unread.
fn hard_header_bytes(config: &Config) -> usize {
    config.max_header_bytes.saturating_mul(2)
}

/// Runs HTTP/2 streams where a stop can wait for them.
#[derive(Clone)]
struct Spawner(TaskTracker);

impl<F: Future<Output: Send + 'static> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

/// Places for connections: so many in all, so many for one address. Without one a connection is closed at once.
struct Seats {
    max: usize,
    max_per_address: usize,
    taken: Arc<Mutex<Taken>>,
    traffic: Traffic,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One connection's place, until it is dropped.
struct Seat {
    address: IpAddr,
    taken: Arc<Mutex<Taken>>,
    traffic: Traffic,
}

impl Seats {
    fn new(config: &Config, traffic: Traffic) -> Self {
        Self {
            max: config.max_connections.get(),
            max_per_address: config.max_connections_per_address.get(),
            taken: Arc::default(),
            traffic,
        }
    }

    fn take(&self, address: IpAddr) -> Option<Seat> {
        let address = household(address);
        let mut taken = self.taken.lock();
        let of_address = taken.by_address.get(&address).copied().unwrap_or(0);
        if taken.total >= self.max || of_address >= self.max_per_address {
            self.traffic.0.connections_refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        taken.total += 1;
        taken.by_address.insert(address, of_address + 1);
        self.traffic.0.connections.fetch_add(1, Ordering::Relaxed);
        Some(Seat { address, taken: Arc::clone(&self.taken), traffic: self.traffic.clone() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        taken.total -= 1;
        if let Some(of_address) = taken.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                taken.by_address.remove(&self.address);
            }
        }
        self.traffic.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One IPv6 caller has a network of 2^64 addresses to come from.
fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}
