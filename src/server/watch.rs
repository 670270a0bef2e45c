//! Who is idle: since when a connection has had no request, or only half of one.
//!
//! hyper has one timer for "no request" and "half a request", and none for HTTP/2. Here both are told apart by watching
//! the bytes that come in and the requests that are under way.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::Config;

/// What one connection is doing.
#[derive(Debug)]
pub(super) struct Activity {
    opened: Instant,
    /// HTTP/2 pings and settings are bytes that begin no request, so there only the idle time counts.
    heads_are_timed: bool,
    header_timeout: Duration,
    idle_timeout: Duration,
    under_way: AtomicUsize,
    /// Milliseconds after `opened` when the last request ended.
    idle_since: AtomicU64,
    /// Milliseconds after `opened` when the first byte of a request came that has no end yet; or [`NO_HEAD`].
    head_since: AtomicU64,
}

const NO_HEAD: u64 = u64::MAX;

/// What to do about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing; look again then.
    LookAgain(Instant),
    /// It has had no request for too long.
    Idle,
    /// It has taken too long over the head of a request.
    HalfAHead,
}

impl Activity {
    /// A connection that has just sent its first bytes.
    pub(super) fn new(is_http2: bool, config: &Config) -> Self {
        Self {
            opened: Instant::now(),
            heads_are_timed: !is_http2,
            header_timeout: config.header_timeout,
            idle_timeout: config.idle_timeout,
            under_way: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(NO_HEAD),
        }
    }

    /// A request is under way until the guard is dropped.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        self.head_since.store(NO_HEAD, Ordering::SeqCst);
        Busy(Arc::clone(self))
    }

    /// Bytes came.
    fn heard(&self) {
        if self.heads_are_timed && self.under_way.load(Ordering::SeqCst) == 0 {
            // Only the first byte of a head starts its time.
            let _already = self.head_since.compare_exchange(NO_HEAD, self.age(), Ordering::SeqCst, Ordering::SeqCst);
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        let now = Instant::now();
        // What begins right after this look is due no earlier than then.
        let soon = now + self.header_timeout.min(self.idle_timeout);
        if self.under_way.load(Ordering::SeqCst) > 0 {
            return Verdict::LookAgain(soon);
        }
        let (due, late) = match self.head_since.load(Ordering::SeqCst) {
            NO_HEAD => (self.at(self.idle_since.load(Ordering::SeqCst)) + self.idle_timeout, Verdict::Idle),
            began => (self.at(began) + self.header_timeout, Verdict::HalfAHead),
        };
        if due <= now { late } else { Verdict::LookAgain(due.min(soon)) }
    }

    fn age(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(NO_HEAD - 1)
    }

    fn at(&self, millis: u64) -> Instant {
        self.opened + Duration::from_millis(millis)
    }
}

/// A request under way on a connection.
#[derive(Debug)]
pub(super) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.age(), Ordering::SeqCst);
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a caller may still send after our last word.
const MAX_UNHEARD_BYTES: usize = 8 * 1024 * 1024;

/// A socket whose reads are noticed, and which takes its leave slowly.
///
/// Closing a socket with unread bytes resets it, and a reset throws away what was written last: a caller who is
/// refused while it still sends would never read why. So after the last word what comes is read and thrown away, until
/// the caller closes or its time is up.
pub(super) struct Watched {
    io: TokioIo<TcpStream>,
    activity: Arc<Activity>,
    closing_time: Duration,
    leaving: Option<Leaving>,
}

struct Leaving {
    until: Pin<Box<Sleep>>,
    unheard: usize,
}

impl Watched {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>, closing_time: Duration) -> Self {
        Self { io: TokioIo::new(stream), activity, closing_time, leaving: None }
    }
}

impl Leaving {
    fn poll(&mut self, stream: &TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        let mut scrap = [0; 8 * 1024];
        while self.unheard < MAX_UNHEARD_BYTES && self.until.as_mut().poll(cx).is_pending() {
            if ready!(stream.poll_read_ready(cx)).is_err() {
                break;
            }
            match stream.try_read(&mut scrap) {
                Ok(0) => break,
                Ok(length) => self.unheard += length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

impl Read for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = ready!(Pin::new(&mut this.io).poll_read(cx, buffer));
        this.activity.heard();
        Poll::Ready(read)
    }
}

impl Write for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.leaving.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        let until = this.closing_time;
        let leaving = this.leaving.get_or_insert_with(|| Leaving { until: Box::pin(sleep(until)), unheard: 0 });
        leaving.poll(this.io.inner(), cx).map(Ok)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, buffers)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const HEAD: u64 = 10;
    const IDLE: u64 = 60;

    fn activity(heads_are_timed: bool) -> Arc<Activity> {
        Arc::new(Activity {
            opened: Instant::now(),
            heads_are_timed,
            header_timeout: Duration::from_secs(HEAD),
            idle_timeout: Duration::from_secs(IDLE),
            under_way: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(NO_HEAD),
        })
    }

    async fn check(activity: &Activity, seconds: u64, late: Option<Verdict>) {
        advance(Duration::from_secs(seconds)).await;
        match late {
            Some(late) => assert_eq!(activity.verdict(), late, "after {seconds} s more"),
            None => assert!(matches!(activity.verdict(), Verdict::LookAgain(_)), "after {seconds} s more"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_given_the_idle_time() {
        let activity = activity(true);
        check(&activity, IDLE - 1, None).await;
        check(&activity, 1, Some(Verdict::Idle)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_is_given_the_header_time_from_its_first_byte() {
        let activity = activity(true);
        check(&activity, 5, None).await;
        activity.heard();
        check(&activity, 9, None).await;
        activity.heard();
        check(&activity, 1, Some(Verdict::HalfAHead)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_under_way_has_its_own_limits() {
        let activity = activity(true);
        activity.heard();
        let busy = activity.busy();
        activity.heard();
        check(&activity, IDLE * 2, None).await;
        drop(busy);
        check(&activity, IDLE - 1, None).await;
        check(&activity, 1, Some(Verdict::Idle)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn pings_of_http2_begin_no_request_and_end_no_silence() {
        let activity = activity(false);
        activity.heard();
        check(&activity, HEAD * 2, None).await;
        activity.heard();
        check(&activity, IDLE - HEAD * 2, Some(Verdict::Idle)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn no_look_is_later_than_the_next_limit() {
        let activity = activity(true);
        assert_eq!(activity.verdict(), Verdict::LookAgain(Instant::now() + Duration::from_secs(HEAD)));
        advance(Duration::from_secs(IDLE - 3)).await;
        assert_eq!(activity.verdict(), Verdict::LookAgain(Instant::now() + Duration::from_secs(3)));
    }
}
