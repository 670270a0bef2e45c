//! What a prediction costs the gateway, beside what it must cost: `make bench`.
//!
//! For each model three processes take turns, round after round, on the same machine in the same minutes:
//!
//! - **bare run**: `ort` alone, one row a run, inputs built and outputs read each time, no server;
//! - **empty handler**: axum answering a fixed text to the same POST;
//! - **gateway**: the product with key, throttle, quota, metrics, CloudWatch and capture on.
//!
//! The figure is CPU time per request of the process itself (from `/proc`), which a noisy machine disturbs least, and the
//! ratio is gateway ÷ (bare run + empty handler). Medians over the rounds. Load is 16 keep-alive connections to 127.0.0.1.

#![expect(clippy::print_stdout, reason = "the figures are the product of a benchmark")]
#![expect(clippy::disallowed_methods, reason = "a benchmark is its own process: it reads the clock and starts threads")]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::unchecked_time_subtraction,
    reason = "counts and times of a benchmark are far from the ends of their types"
)]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "support/wire.rs"]
mod wire;

use wire::{Connection, create_key, free_address};

const CONNECTIONS: usize = 16;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(3);
const BARE_RUNS: usize = 20_000;
const MODELS: [&str; 2] = ["pipeline", "xgboost"];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("empty-handler") => empty_handler(),
        Some("bare-run") => bare_run(&arguments[2]),
        _ => compare(),
    }
}

fn compare() {
    let gateway = Gateway::start();
    let empty = Process::start(Command::new(std::env::current_exe().unwrap()).arg("empty-handler"));
    println!("{CONNECTIONS} connections, {ROUNDS} rounds of {} s each, medians\n", ROUND.as_secs());
    println!("| model | bare run µs | empty handler µs | gateway µs | ratio | gateway req/s | p50 ms | p99 ms |");
    println!("|---|---|---|---|---|---|---|---|");
    for model in MODELS {
        let request = gateway.request(model);
        let (mut bare, mut empties, mut gateways) = (Vec::new(), Vec::new(), Vec::new());
        load(gateway.data, &request, ROUND);
        for _ in 0..ROUNDS {
            bare.push(bare_run_cost(model));
            empties.push(load_measured(&empty, empty.address, &request).cpu_micros);
            gateways.push(load_measured(&gateway.process, gateway.data, &request));
        }
        let (bare, empty) = (median(bare), median(empties));
        let cost = median(gateways.iter().map(|load| load.cpu_micros).collect());
        println!(
            "| {model} | {bare:.1} | {empty:.1} | {cost:.1} | {:.2} | {:.0} | {:.2} | {:.2} |",
            cost / (bare + empty),
            median(gateways.iter().map(|load| load.rate).collect()),
            median(gateways.iter().map(|load| load.p50_millis).collect()),
            median(gateways.iter().map(|load| load.p99_millis).collect()),
        );
    }
    let resident = gateway.process.resident_mib();
    drop(gateway);
    println!();
    println!("resident memory after the load, two models: {resident:.0} MiB");
    let starts: Vec<(f64, f64)> = (0..5).map(|_| Gateway::first_answer()).collect();
    println!(
        "process start to first 200, warm cache, one model: {:.0} ms; resident then: {:.0} MiB",
        median(starts.iter().map(|start| start.0).collect()),
        median(starts.iter().map(|start| start.1).collect()),
    );
    let size = fs::metadata(env!("CARGO_BIN_EXE_modelgate")).unwrap().len();
    println!("size of the binary: {:.1} MB", size as f64 / 1e6);
}

// --- the three processes -------------------------------------------------------------------------------------------------

/// A child that is ended with the benchmark.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    /// Starts a child that prints its address as the last word of its first line.
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split_whitespace().last().unwrap_or_default().parse();
        Self { child, address: address.unwrap_or_else(|_| panic!("no address in `{line}`")) }
    }

    /// CPU time of all its threads so far.
    fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // utime and stime, in ticks of 10 ms.
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    fn resident_mib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

struct Gateway {
    process: Process,
    data: SocketAddr,
    key: String,
    folder: tempfile::TempDir,
}

impl Gateway {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for model in MODELS {
            copy_fixture(model, &folder.path().join("registry").join(model).join("1"));
        }
        Self::start_in(folder, &MODELS)
    }

    fn start_in(folder: tempfile::TempDir, models: &[&str]) -> Self {
        let (data, admin) = (free_address(), free_address());
        let models: Vec<String> =
            models.iter().map(|model| format!("[[model]]\nname = \"{model}\"\nselect = \"latest\"\n")).collect();
        let file = folder.path().join("modelgate.toml");
        let text = CONFIG
            .replace("{folder}", &folder.path().display().to_string())
            .replace("{data}", &data.to_string())
            .replace("{admin}", &admin.to_string());
        fs::write(&file, text + &models.concat()).unwrap();
        let key = create_key(&file);
        let child = Self::command(&file).arg("serve").arg("--config").arg(&file).spawn().unwrap();
        let gateway = Self { process: Process { child, address: data }, data, key, folder };
        gateway.wait_until_it_answers();
        gateway
    }

    fn command(_file: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modelgate"));
        command
            .env("RUST_LOG", "warn")
            .env("AWS_ENDPOINT_URL", format!("http://{}", swallow_everything()))
            .env("AWS_ACCESS_KEY_ID", "bench")
            .env("AWS_SECRET_ACCESS_KEY", "bench")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_EC2_METADATA_DISABLED", "true");
        command
    }

    fn wait_until_it_answers(&self) {
        let model = MODELS.iter().find(|model| self.folder.path().join("registry").join(model).exists()).unwrap();
        let request = self.request(model);
        let end = Instant::now() + Duration::from_mins(1);
        let ask_once = || Connection::open(self.data)?.ask(&request).map(|answer| answer.status);
        while ask_once() != Some(200) {
            assert!(Instant::now() < end, "the gateway gives no answer");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// One row of the fixture, as a caller sends it.
    fn request(&self, model: &str) -> Vec<u8> {
        let body = body(model);
        let head = format!(
            "POST /models/{model}/predict HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.key,
            body.len()
        );
        (head + &body).into_bytes()
    }

    /// Milliseconds from process start to the first 200 with the model in the cache and the registry gone, and MiB then.
    fn first_answer() -> (f64, f64) {
        let folder = tempfile::tempdir().unwrap();
        let registry = folder.path().join("registry");
        copy_fixture("pipeline", &registry.join("pipeline").join("1"));
        let first = Self::start_in(folder, &["pipeline"]);
        let Self { process, folder, .. } = first;
        drop(process);
        let begun = Instant::now();
        let second = Self::start_in(folder, &["pipeline"]);
        (begun.elapsed().as_secs_f64() * 1e3, second.process.resident_mib())
    }
}

const CONFIG: &str = r#"
data_dir = "{folder}/data"
[server]
listen = "{data}"
admin_listen = "{admin}"
[registry]
uri = "file:{folder}/registry"
poll_interval = "30s"
[plans.bench]
rate = 1000000
burst = 1000000
quota = 1000000000
period = "month"
unit = "rows"
[metrics.cloudwatch]
namespace = "Bench"
[capture]
sink = "file:{folder}/samples"
"#;

/// axum and nothing else: reads the body, answers a fixed text as long as an answer.
fn empty_handler() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let answer = async |_body: bytes::Bytes| [b'x'; 220].as_slice();
        let routes = axum::Router::new()
            .route("/models/pipeline/predict", axum::routing::post(answer))
            .route("/models/xgboost/predict", axum::routing::post(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("listening on {}", listener.local_addr().unwrap());
        axum::serve(listener, routes).await.unwrap();
    });
}

/// Prints the CPU microseconds of one run of the model: inputs built, run, outputs read.
fn bare_run(model: &str) {
    let environment = ort::init_from(library()).unwrap().build().unwrap();
    let mut session = ort::session::Session::builder(&environment)
        .unwrap()
        .with_intra_threads(1)
        .unwrap()
        .with_inter_threads(1)
        .unwrap()
        .commit_from_file(fixture(model).join("model.onnx"))
        .unwrap();
    let (columns, rows) = table(model);
    let mut run = |row: &[Value]| {
        let inputs = bare_inputs(&session, &columns, row);
        let outputs = session.run(inputs).unwrap();
        let (_, probabilities) = outputs[1].try_extract_tensor::<f32>().unwrap();
        std::hint::black_box(probabilities[0]);
    };
    (0..1000).for_each(|i| run(&rows[i % rows.len()]));
    let before = own_cpu();
    (0..BARE_RUNS).for_each(|i| run(&rows[i % rows.len()]));
    println!("{}", (own_cpu() - before).as_secs_f64() * 1e6 / BARE_RUNS as f64);
}

fn bare_inputs(
    session: &ort::session::Session,
    columns: &[String],
    row: &[Value],
) -> Vec<(String, ort::value::DynValue)> {
    use ort::value::{Tensor, TensorElementType, ValueType};
    let graph = session.inputs();
    if let [only] = graph {
        let numbers: Vec<f32> = row.iter().map(|value| value.as_f64().map_or(f32::NAN, |n| n as f32)).collect();
        let tensor = Tensor::from_array(([1, numbers.len()], numbers)).unwrap();
        return vec![(only.name().to_owned(), tensor.into_dyn())];
    }
    let tensor_of = |input: &ort::value::Outlet| {
        let value = &row[columns.iter().position(|name| name == input.name()).unwrap()];
        match input.dtype() {
            ValueType::Tensor { ty: TensorElementType::String, .. } => {
                let text = value.as_str().unwrap_or_default().to_owned();
                Tensor::from_string_array(([1, 1], &[text][..])).unwrap().into_dyn()
            }
            ValueType::Tensor { ty: TensorElementType::Int64, .. } => {
                Tensor::from_array(([1, 1], vec![value.as_i64().unwrap()])).unwrap().into_dyn()
            }
            _ => {
                let number = value.as_f64().map_or(f32::NAN, |number| number as f32);
                Tensor::from_array(([1, 1], vec![number])).unwrap().into_dyn()
            }
        }
    };
    graph.iter().map(|input| (input.name().to_owned(), tensor_of(input))).collect()
}

/// CPU time of this process's main thread.
fn own_cpu() -> Duration {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(schedstat.split_whitespace().next().unwrap().parse().unwrap())
}

fn bare_run_cost(model: &str) -> f64 {
    let output = Command::new(std::env::current_exe().unwrap()).args(["bare-run", model]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().expect("the bare run prints microseconds")
}

// --- load ------------------------------------------------------------------------------------------------------------------

struct Load {
    cpu_micros: f64,
    rate: f64,
    p50_millis: f64,
    p99_millis: f64,
}

fn load_measured(process: &Process, address: SocketAddr, request: &[u8]) -> Load {
    let (cpu, begun) = (process.cpu(), Instant::now());
    let mut latencies = load(address, request, ROUND);
    let (cpu, took) = (process.cpu() - cpu, begun.elapsed());
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    Load {
        cpu_micros: cpu.as_secs_f64() * 1e6 / latencies.len() as f64,
        rate: latencies.len() as f64 / took.as_secs_f64(),
        p50_millis: at(0.5),
        p99_millis: at(0.99),
    }
}

/// Sends `request` over and over on every connection; returns how long each answer took. Every answer must be a 200.
fn load(address: SocketAddr, request: &[u8], during: Duration) -> Vec<Duration> {
    let end = Instant::now() + during;
    thread::scope(|scope| {
        let connection = || {
            let mut connection = Connection::open(address).unwrap();
            let mut took = Vec::new();
            while Instant::now() < end {
                let begun = Instant::now();
                let answer = connection.ask(request).expect("every request is answered");
                assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
                took.push(begun.elapsed());
            }
            took
        };
        let workers: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(connection)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

// --- surroundings ---------------------------------------------------------------------------------------------------------

/// A server that takes any POST and answers an empty CBOR map: CloudWatch, as far as the gateway can tell.
fn swallow_everything() -> SocketAddr {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || swallow(stream, &CALLS));
        }
    });
    address
}

fn swallow(stream: TcpStream, calls: &AtomicU64) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        loop {
            line.clear();
            if stream.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        calls.fetch_add(1, Ordering::Relaxed);
        let answer = b"HTTP/1.1 200 OK\r\nsmithy-protocol: rpc-v2-cbor\r\ncontent-type: application/cbor\r\ncontent-length: 1\r\n\r\n\xa0";
        if stream.get_mut().write_all(answer).is_err() {
            return;
        }
    }
}

fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model)
}

fn library() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("lib").join(if cfg!(target_os = "macos") {
        "libonnxruntime.dylib"
    } else {
        "libonnxruntime.so"
    })
}

fn copy_fixture(model: &str, into: &Path) {
    fs::create_dir_all(into).unwrap();
    for entry in fs::read_dir(fixture(model)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), into.join(entry.file_name())).unwrap();
    }
}

/// The fixture's columns and rows.
fn table(model: &str) -> (Vec<String>, Vec<Vec<Value>>) {
    let mut expected: Value = serde_json::from_slice(&fs::read(fixture(model).join("expected.json")).unwrap()).unwrap();
    let columns = serde_json::from_value(expected["columns"].take()).unwrap();
    (columns, serde_json::from_value(expected["rows"].take()).unwrap())
}

/// One row as a caller sends it: fields in the order of the columns.
fn body(model: &str) -> String {
    let (columns, rows) = table(model);
    let fields: Vec<String> = columns.iter().zip(&rows[0]).map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{\"data\":{{{}}}}}", fields.join(","))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
