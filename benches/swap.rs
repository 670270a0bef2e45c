//! What a new version costs those who ask meanwhile, and how long switches take: `cargo bench --bench swap`.
//!
//! The load is open: each request has a time at which it is due, whatever became of those before it, and its latency counts
//! from then. The rate is half of what the same connections reach when each asks as fast as it is answered. Every few
//! seconds a version of 1 MB is promoted by hand; the two seconds around each promotion are held against all others.
//! Then, without load: a rollback, an admission, a start without the registry.

#![expect(clippy::print_stdout, reason = "the figures are the product of a benchmark")]
#![expect(clippy::disallowed_methods, reason = "a benchmark is its own process: it reads the clock and starts threads")]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts and times of a benchmark are far from the ends of their types"
)]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "../tests/it/support/onnx.rs"]
#[expect(dead_code, reason = "the tests need more of it")]
mod onnx;
#[path = "support/wire.rs"]
mod wire;

use wire::{Answer, Connection, create_key, free_address};

/// A forest of 70 whole trees, 1 MB: an ordinary model.
const FOREST: onnx::Weights = onnx::Weights::Trees { trees: 70, depth: 7 };

const CONNECTIONS: u32 = 16;
const CAPACITY_ROUND: Duration = Duration::from_secs(5);
const LOADS: u64 = 20;
/// From one promotion to the next.
const PAUSE: Duration = Duration::from_secs(5);
/// Half of what counts as around a promotion.
const AROUND: Duration = Duration::from_secs(1);
const ROLLBACKS: u64 = 25;
const STARTS: usize = 9;

fn main() {
    let mut site = Site::new();
    site.register(1);
    let gateway = site.start();
    beside_a_load(&site, &gateway);
    rollbacks(&site, &gateway);
    admissions(&site, &gateway);
    drop(gateway);
    starts(&mut site);
}

/// The latency of requests around promotions, and of all others.
fn beside_a_load(site: &Site, gateway: &Gateway) {
    let capacity = capacity(gateway);
    let rate = capacity / 2.0;
    let over = AtomicBool::new(false);
    let (latencies, loads) = thread::scope(|scope| {
        let begun = Instant::now();
        let over = &over;
        let ask = |number| scope.spawn(move || ask_when_due(gateway, begun, number, rate, over));
        let callers: Vec<_> = (0..CONNECTIONS).map(ask).collect();
        let loads: Vec<(Instant, Instant)> = (2..LOADS + 2)
            .map(|version| {
                site.register(version);
                thread::sleep(PAUSE);
                let ordered = Instant::now();
                gateway.promote(version);
                (ordered, Instant::now())
            })
            .collect();
        thread::sleep(PAUSE);
        over.store(true, Ordering::SeqCst);
        (callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect::<Vec<_>>(), loads)
    });
    let middle = |(from, to): &(Instant, Instant)| *from + (*to - *from) / 2;
    let is_around = |due: Instant, load| due + AROUND >= middle(load) && due <= middle(load) + AROUND;
    let around = |load| latencies.iter().filter(move |(due, _)| is_around(*due, load)).map(|(_, took)| *took);
    let steady = percentile(
        latencies.iter().filter(|(due, _)| !loads.iter().any(|load| is_around(*due, load))).map(|(_, took)| *took),
        0.99,
    );
    let each: Vec<Duration> = loads.iter().map(|load| percentile(around(load), 0.99)).collect();
    let together = percentile(loads.iter().flat_map(around), 0.99);
    let took = percentile(loads.iter().map(|(from, to)| *to - *from), 0.5);
    // Requests that wait for the one before them on their connection mean that the machine does not keep up.
    if steady > PAUSE / 100 {
        println!(
            "INVALID: p99 without a promotion is {steady:.2?}; the machine is too busy for half of its capacity\n"
        );
    }
    println!(
        "{LOADS} promotions of 1 MB, one every {} s, under {rate:.0} requests/s of {capacity:.0}\n",
        PAUSE.as_secs()
    );
    println!(
        "| p99 steady | p99 in the 2 s around each | ratio | median of the ratios of each | promotion under load |"
    );
    println!("|---|---|---|---|---|");
    println!(
        "| {steady:.2?} | {together:.2?} | {:.2} | {:.2} | {took:.0?} |\n",
        together.as_secs_f64() / steady.as_secs_f64(),
        percentile(each.iter().copied(), 0.5).as_secs_f64() / steady.as_secs_f64(),
    );
}

/// Answers a second when every connection asks as fast as it is answered.
fn capacity(gateway: &Gateway) -> f64 {
    let end = Instant::now() + CAPACITY_ROUND;
    let ask = || {
        let mut connection = Connection::open(gateway.data).unwrap();
        let mut answers = 0_u32;
        while Instant::now() < end {
            gateway.expect_200(connection.ask(&gateway.request));
            answers += 1;
        }
        answers
    };
    let answers: u32 = thread::scope(|scope| {
        let callers: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(ask)).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).sum()
    });
    f64::from(answers) / CAPACITY_ROUND.as_secs_f64()
}

/// Asks at this connection's share of the times that `rate` gives; when each was due, and how long after that it was
/// answered.
fn ask_when_due(
    gateway: &Gateway,
    begun: Instant,
    number: u32,
    rate: f64,
    over: &AtomicBool,
) -> Vec<(Instant, Duration)> {
    let mut connection = Connection::open(gateway.data).unwrap();
    let mut latencies = Vec::new();
    let pause = f64::from(CONNECTIONS) / rate;
    let first = pause * f64::from(number) / f64::from(CONNECTIONS);
    for turn in 0_u32.. {
        if over.load(Ordering::SeqCst) {
            break;
        }
        let due = begun + Duration::from_secs_f64(first + pause * f64::from(turn));
        thread::sleep(due.saturating_duration_since(Instant::now()));
        gateway.expect_200(connection.ask(&gateway.request));
        latencies.push((due, due.elapsed()));
    }
    latencies
}

/// From the order to its answer, and to the first answer of the version before.
fn rollbacks(site: &Site, gateway: &Gateway) {
    let took: Vec<(Duration, Duration)> = (1..=ROLLBACKS)
        .map(|turn| {
            let (before, version) = (gateway.serving(), LOADS + 1 + turn);
            site.register(version);
            gateway.promote(version);
            let begun = Instant::now();
            thread::scope(|scope| {
                let answered = scope.spawn(|| {
                    gateway.order("rollback", "{}");
                    begun.elapsed()
                });
                while gateway.serving() != before {}
                (answered.join().unwrap(), begun.elapsed())
            })
        })
        .collect();
    let median = |of: fn(&(Duration, Duration)) -> Duration| percentile(took.iter().map(of), 0.5);
    let worst = |of: fn(&(Duration, Duration)) -> Duration| percentile(took.iter().map(of), 1.0);
    println!(
        "rollback by hand, {ROLLBACKS} of them: the version before answers after {:.2?} (median), {:.2?} (worst);",
        median(|took| took.1),
        worst(|took| took.1)
    );
    println!(
        "the order is answered after {:.2?} (median), {:.2?} (worst)",
        median(|took| took.0),
        worst(|took| took.0)
    );
}

/// From the order to serve a version nobody has seen to its answer, and what the rungs of it took.
fn admissions(site: &Site, gateway: &Gateway) {
    let first = LOADS + ROLLBACKS + 2;
    let took = (first..first + 9).map(|version| {
        site.register(version);
        let begun = Instant::now();
        gateway.promote(version);
        begun.elapsed()
    });
    let took: Vec<Duration> = took.collect();
    println!(
        "admission of a 1 MB model, from the order to its answer: {:.0?} (median)",
        percentile(took.iter().copied(), 0.5)
    );
    let page: Value = serde_json::from_slice(&gateway.get(gateway.admin, "/admin/models").body).unwrap();
    for rung in page["models"][0]["verdict"]["rungs"].as_array().unwrap() {
        println!("  {}: {} ms", rung["name"].as_str().unwrap(), rung["took_ms"]);
    }
}

/// From the start of the process to the first yes of `/readyz`, with what was served last on disk and no registry.
fn starts(site: &mut Site) {
    fs::rename(site.registry(), site.folder.path().join("away")).unwrap();
    let took: Vec<Duration> = (0..STARTS)
        .map(|_| {
            let begun = Instant::now();
            let _gateway = site.start();
            begun.elapsed()
        })
        .collect();
    println!("start to ready without a registry, a 1 MB model: {:.0?} (median)", percentile(took.iter().copied(), 0.5));
}

fn percentile(values: impl Iterator<Item = Duration>, share: f64) -> Duration {
    let mut values: Vec<Duration> = values.collect();
    values.sort_unstable();
    values[((values.len() - 1) as f64 * share) as usize]
}

// --- the gateway ---------------------------------------------------------------------------------------------------------

/// A folder with a registry and a configuration, and a key.
struct Site {
    folder: tempfile::TempDir,
    file: PathBuf,
    data: SocketAddr,
    admin: SocketAddr,
    key: String,
}

const CONFIG: &str = r#"
data_dir = "{folder}/data"
[server]
listen = "{data}"
admin_listen = "{admin}"
drain_delay = "0s"
[registry]
uri = "file:{folder}/registry"
poll_interval = "1h"
[admission]
replay_rows = 0
[plans.bench]
[[model]]
name = "sum"
select = "version:1"
[model.rollout]
watch = "0s"
"#;

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (data, admin) = (free_address(), free_address());
        let text = CONFIG
            .replace("{folder}", &folder.path().display().to_string())
            .replace("{data}", &data.to_string())
            .replace("{admin}", &admin.to_string());
        let file = folder.path().join("modelgate.toml");
        fs::write(&file, text).unwrap();
        fs::create_dir_all(folder.path().join("registry")).unwrap();
        let key = create_key(&file);
        Self { folder, file, data, admin, key }
    }

    fn registry(&self) -> PathBuf {
        self.folder.path().join("registry")
    }

    /// Puts a version into the registry whose answers are `version` plus the sum of the row.
    fn register(&self, version: u64) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sum");
        let half = self.registry().join("sum").join(".half");
        fs::create_dir_all(&half).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), half.join(entry.file_name())).unwrap();
        }
        fs::write(half.join("model.onnx"), onnx::sum_with(version as f32, &FOREST)).unwrap();
        fs::rename(half, self.registry().join("sum").join(version.to_string())).unwrap();
    }

    /// A gateway that is ready.
    fn start(&self) -> Gateway {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modelgate"));
        let child = command.arg("serve").arg("--config").arg(&self.file).env("RUST_LOG", "error").spawn().unwrap();
        let (key, body) = (&self.key, r#"{"data":{"a":1,"b":2,"c":3}}"#);
        let request = format!(
            "POST /predict HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let gateway = Gateway { child, data: self.data, admin: self.admin, request: request.into_bytes() };
        let end = Instant::now() + Duration::from_mins(1);
        let is_ready = || {
            Some(Connection::open(self.data)?.ask(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n")?.status == 200)
        };
        while is_ready() != Some(true) {
            assert!(Instant::now() < end, "the gateway is not ready");
            thread::sleep(Duration::from_millis(1));
        }
        gateway
    }
}

/// A gateway that is ended with this.
struct Gateway {
    child: Child,
    data: SocketAddr,
    admin: SocketAddr,
    request: Vec<u8>,
}

impl Gateway {
    fn expect_200(&self, answer: Option<Answer>) -> Answer {
        let answer = answer.expect("the gateway answers");
        assert_eq!(answer.status, 200, "process {}: {}", self.child.id(), String::from_utf8_lossy(&answer.body));
        answer
    }

    fn get(&self, address: SocketAddr, path: &str) -> Answer {
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        self.expect_200(Connection::open(address).unwrap().ask(request.as_bytes()))
    }

    fn order(&self, verb: &str, body: &str) {
        let request = format!(
            "POST /admin/models/sum/{verb} HTTP/1.1\r\nhost: localhost\r\nx-modelgate-admin: 1\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.expect_200(Connection::open(self.admin).unwrap().ask(request.as_bytes()));
    }

    fn promote(&self, version: u64) {
        self.order("promote", &format!("{{\"version\":{version}}}"));
    }

    /// The version that answers.
    fn serving(&self) -> String {
        let answer = self.expect_200(Connection::open(self.data).unwrap().ask(&self.request));
        let body: Value = serde_json::from_slice(&answer.body).unwrap();
        body["version"].as_str().unwrap().to_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
