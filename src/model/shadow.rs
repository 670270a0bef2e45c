//! The line in which answered requests wait for a challenger to answer them too. A side door: nobody waits for it, and
//! what finds it full is counted and left out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::rollout::{Route, Trial};
use super::{Inputs, Outputs};

/// Requests that may wait. One more is shed, and counted with the trial.
const LINE: usize = 256;

/// The longest one comparison may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where requests get in line. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shadow(mpsc::Sender<Job>);

/// The end of the line. There is one.
#[derive(Debug)]
pub struct Comparer {
    line: mpsc::Receiver<Job>,
}

#[derive(Debug)]
struct Job {
    trial: Arc<Trial>,
    inputs: Inputs,
    told: Outputs,
}

/// Both ends, with nobody in between.
#[must_use]
pub fn line() -> (Shadow, Comparer) {
    let (sender, line) = mpsc::channel(LINE);
    (Shadow(sender), Comparer { line })
}

impl Shadow {
    /// Has the challenger answer what was answered with `told`, if there is one that shadows and there is room.
    pub fn offer(&self, route: &Route, key_id: &str, inputs: &Inputs, told: &Outputs) {
        let Some(trial) = route.shadowed(key_id) else { return };
        let job = Job { trial: Arc::clone(trial), inputs: inputs.clone(), told: told.clone() };
        if self.0.try_send(job).is_err() {
            trial.shed();
        }
    }
}

impl Comparer {
    /// Compares the next request in line, one at a time; false when no more will come.
    pub async fn compare_once(&mut self) -> bool {
        let Some(Job { trial, inputs, told }) = self.line.recv().await else { return false };
        trial.compare(&inputs, &told, Instant::now() + PATIENCE).await;
        true
    }
}
