//! Background work with names, and an end that can be awaited.
//!
//! Only `app` starts tasks, and only through here, so that a stop can wait for all of them and a task that dies takes
//! the process down in order instead of leaving a gateway that silently no longer polls or meters.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The tasks of one process and the two signals they listen to.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    failed: Arc<AtomicBool>,
}

impl Tasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the process is to stop, by [`stop`](Self::stop) or by a task that died.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Asks every task to finish.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Whether a task ended before it was asked to.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// Runs `work` until it returns. If it returns or panics before [`stop`](Self::stop), everything stops.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let guard = DeathWatch { name, tasks: self.clone() };
        self.tracker.spawn(async move {
            let _guard = guard;
            work.await;
        });
    }

    /// Returns when every spawned task has finished.
    pub async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Stops the process in order when the task that holds it goes before its time.
struct DeathWatch {
    name: &'static str,
    tasks: Tasks,
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        if !self.tasks.stop.is_cancelled() {
            tracing::error!(task = self.name, "background task `{}` ended early; stopping the gateway", self.name);
            self.tasks.failed.store(true, Ordering::SeqCst);
            self.tasks.stop.cancel();
        }
    }
}

/// Starts an operating system thread with a name and a stack of `stack_bytes`.
///
/// # Errors
/// When the system has no thread to give.
#[expect(clippy::disallowed_methods, reason = "the one home of spawning")]
pub fn thread<T: Send + 'static>(
    name: &str,
    stack_bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<thread::JoinHandle<T>> {
    thread::Builder::new().name(name.to_owned()).stack_size(stack_bytes).spawn(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_early_stops_the_rest() {
        let tasks = Tasks::new();
        let stopping = tasks.stopping();
        tasks.spawn("patient", async move { stopping.cancelled().await });
        tasks.spawn("short-lived", async {});
        tasks.finished().await;
        assert!(tasks.has_failed());
    }

    #[tokio::test]
    async fn a_task_that_panics_stops_the_rest() {
        let tasks = Tasks::new();
        let stopping = tasks.stopping();
        tasks.spawn("patient", async move { stopping.cancelled().await });
        tasks.spawn("clumsy", async { panic!("dropped the vase") });
        tasks.finished().await;
        assert!(tasks.has_failed());
    }

    #[tokio::test]
    async fn a_stop_that_was_asked_for_is_no_failure() {
        let tasks = Tasks::new();
        let stopping = tasks.stopping();
        tasks.spawn("patient", async move { stopping.cancelled().await });
        tasks.stop();
        tasks.finished().await;
        assert!(!tasks.has_failed());
    }
}
