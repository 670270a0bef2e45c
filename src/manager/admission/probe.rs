//! A version is tried in a process of its own first: what crashes, hangs or eats memory there does it to nobody else.
//!
//! The gateway starts its own program as `modelgate probe`, writes a [`Request`] to its standard input and reads what it
//! says from its standard output. The process limits itself before it loads anything, has none of the gateway's
//! environment, cannot write files, is [kept](super::confine) from all but the version, yields the processor to everybody,
//! and ends when the gateway does.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, nice, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::confine::{Confinement, confine};
use super::signature::{self, Taken};
use super::whole_reason;
use crate::manager::loader::{self, Parts, STACK_BYTES};
use crate::model::features::Settings;
use crate::model::outputs::Decision;
use crate::model::runtime::{Runtime, TELEMETRY_OFF};
use crate::model::{Digest, Identity, Outputs, Version};
use crate::task;

/// The longest thing the process may say, in bytes. A model of 4,096 features with names of 256 bytes stays below.
const MAX_SAID_BYTES: u64 = 4 << 20;

/// How often its memory is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Files it may have open; it needs about ten.
const MAX_FILES: u64 = 64;

/// Answers to the example that are told of.
const ANSWERS_TOLD: usize = 3;

/// What to try, and within which limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// The version's files.
    pub(super) folder: PathBuf,
    /// The ONNX Runtime to try it with: the one that would serve it.
    pub(super) library: PathBuf,
    /// How callers write its features.
    pub(super) features: Settings,
    /// How its outputs become predictions.
    pub(super) decision: Decision,
    /// Address space at most, in bytes.
    pub(super) max_memory: u64,
    /// Processor time at most.
    pub(super) max_cpu_seconds: u64,
}

/// What the process found out about a version that answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// What it takes.
    pub(super) features: Vec<Taken>,
    /// The first answers to the input example; `None` without one.
    pub(super) answers: Option<Vec<String>>,
    /// Rows in the example.
    pub(super) rows: usize,
    /// From the start of the process to a warm model.
    pub(super) took_ms: u64,
    /// The most memory it had; 0 where the system does not tell.
    pub(super) peak_bytes: u64,
    /// What the process was kept from.
    pub(super) confined: Confinement,
}

/// What the process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    /// The version answers.
    Answered(Report),
    /// It does not, and why.
    Unfit(String),
    /// The process cannot work.
    Broken(String),
}

/// How the try ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The version answers.
    Answered(Report),
    /// It does not load or answer, and ONNX Runtime or we say why.
    Unfit(String),
    /// It took the process with it.
    Died(String),
    /// There was no try, through no fault of the version.
    Broken(String),
}

/// Tries a version in a process of its own. Never takes much longer than `wall`.
pub(super) async fn run(program: &Path, environment: &[(String, String)], request: &Request, wall: Duration) -> Ended {
    let spawned = Command::new(program)
        .arg("probe")
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env(TELEMETRY_OFF.0, TELEMETRY_OFF.1)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return Ended::Broken(format!("cannot start `{} probe`: {error}", program.display())),
    };
    let start = Instant::now();
    let mut peak_bytes = 0;
    let Ok(ended) = timeout(wall, converse(&mut child, request, &mut peak_bytes)).await else {
        // It may have ended meanwhile.
        let _ = child.kill().await;
        return Ended::Died(format!(
            "had no answer after {wall:?} (max_load_wall) and was ended, with {} MiB",
            peak_bytes >> 20
        ));
    };
    match ended {
        Ok((said, status)) => understand(&said, status, start.elapsed(), peak_bytes, request),
        Err(error) => Ended::Broken(error.to_string()),
    }
}

/// Asks, and listens to the end.
async fn converse(child: &mut Child, request: &Request, peak: &mut u64) -> std::io::Result<(Vec<u8>, ExitStatus)> {
    let asked = serde_json::to_vec(request)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A process that is gone already says more by how it ended.
        let _ = stdin.write_all(&asked).await;
    }
    let stdout = child.stdout.take();
    let process = child.id();
    let listen = async {
        let mut said = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(MAX_SAID_BYTES).read_to_end(&mut said).await?;
        }
        std::io::Result::Ok((said, child.wait().await?))
    };
    tokio::pin!(listen);
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            heard = &mut listen => return heard,
            _ = looks.tick() => *peak = process.and_then(peak_of).unwrap_or(0).max(*peak),
        }
    }
}

fn understand(said: &[u8], status: ExitStatus, took: Duration, peak_bytes: u64, request: &Request) -> Ended {
    // Numbers of signals that are the same on every Linux and macOS, and what they mean here.
    const SIGABRT: i32 = 6;
    const SIGKILL: i32 = 9;
    const SIGSEGV: i32 = 11;
    const SIGXCPU: i32 = 24;
    let until_then = format!("after {} ms, with {} MiB", took.as_millis(), peak_bytes >> 20);
    match (status.signal(), serde_json::from_slice(said)) {
        (None, Ok(Said::Answered(report))) if status.success() => Ended::Answered(report),
        (None, Ok(Said::Unfit(reason))) if status.success() => Ended::Unfit(reason),
        (None, Ok(Said::Broken(reason))) if status.success() => Ended::Broken(reason),
        (Some(SIGXCPU), _) => Ended::Died(format!(
            "took more than {} s of processor time (max_load_cpu) and was ended {until_then}",
            request.max_cpu_seconds
        )),
        (Some(SIGSEGV), _) => Ended::Died(format!("crashed with SIGSEGV {until_then}")),
        (Some(SIGABRT), _) => Ended::Died(format!(
            "gave up with SIGABRT {until_then}; its limit is {} MiB (max_load_memory)",
            request.max_memory >> 20
        )),
        // Not ours: the machine has no memory left, or somebody stops us.
        (Some(SIGKILL), _) => Ended::Broken(format!("the process was killed from outside {until_then}")),
        (Some(signal), _) => Ended::Died(format!("ended with signal {signal} {until_then}")),
        (None, _) => Ended::Died(format!("ended with {status} and no answer {until_then}")),
    }
}

/// What a process has had in memory at most, in bytes, where the system tells.
fn peak_of(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

/// The other end: takes the request, keeps to its limits, tries the version, and returns what there is to say.
#[must_use]
pub fn answer(request: &str) -> String {
    let said = serde_json::from_str(request).map_or_else(|error| Said::Broken(error.to_string()), attempt);
    serde_json::to_string(&said).unwrap_or_default()
}

fn attempt(request: Request) -> Said {
    let start = Instant::now();
    if let Err(error) = limit(&request) {
        return Said::Broken(format!("cannot limit itself: {error}"));
    }
    let library = request.library.clone();
    let runtime = match on_deep_stack(move || Runtime::load(Some(&library))) {
        Ok(Ok(Ok(runtime))) => runtime,
        Ok(Ok(Err(error))) => return Said::Broken(whole_reason(&error)),
        Ok(Err(_)) => return Said::Broken("loading ONNX Runtime made the gateway's own code panic".to_owned()),
        Err(error) => return Said::Broken(error.to_string()),
    };
    // Before the first byte of the version is read. The thread that reads it inherits this.
    let confined = confine(&request.folder);
    match on_deep_stack(move || load(&runtime, request, confined, start)) {
        Ok(Ok(said)) => said,
        Ok(Err(_)) => Said::Unfit("loading it made the gateway's own code panic".to_owned()),
        Err(error) => Said::Broken(error.to_string()),
    }
}

/// What came of `work` on a thread with a deep stack, or that it panicked, or that there is no such thread.
fn on_deep_stack<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<std::thread::Result<T>> {
    Ok(task::thread("model-loader", STACK_BYTES, work)?.join())
}

/// Takes from this process all that loading a model does not need.
fn limit(request: &Request) -> std::io::Result<()> {
    let to = |most| Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Core, to(0))?;
    setrlimit(Resource::Fsize, to(0))?;
    setrlimit(Resource::Nofile, to(MAX_FILES))?;
    setrlimit(Resource::As, to(request.max_memory))?;
    // The hard limit kills without a trace of why; the soft one comes first.
    let cpu = Rlimit { current: Some(request.max_cpu_seconds), maximum: Some(request.max_cpu_seconds + 1) };
    setrlimit(Resource::Cpu, cpu)?;
    // Requests come first, but under full load it must still get enough of the processor to end in time.
    nice(loader::YIELD)?;
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

fn load(runtime: &Runtime, request: Request, confined: Confinement, start: Instant) -> Said {
    let parts = Parts {
        id: identity(),
        folder: request.folder,
        features: request.features,
        decision: request.decision,
        slots: 1,
    };
    match loader::load(runtime, parts) {
        Ok((model, answers)) => Said::Answered(Report {
            features: signature::taken_by(model.features()),
            rows: answers.as_ref().map_or(0, |answers| answers.predictions().len()),
            answers: answers.as_ref().map(told),
            took_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            peak_bytes: peak_of(std::process::id()).unwrap_or(0),
            confined,
        }),
        Err(unfit) => Said::Unfit(whole_reason(&unfit)),
    }
}

/// Under which name it is tried does not matter: nobody asks.
fn identity() -> Identity {
    Identity::new("probe".parse().expect("five letters are a name"), Version(0), Digest([0; 32]), None)
}

fn told(answers: &Outputs) -> Vec<String> {
    answers.predictions().iter().take(ANSWERS_TOLD).map(|prediction| prediction.value.to_string()).collect()
}
