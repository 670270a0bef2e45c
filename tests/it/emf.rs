//! Metrics as lines on standard output: the same figures as by CloudWatch's API, inside every limit of the format.
#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use modelgate::clock::Clock;
use modelgate::metrics::cloudwatch::Config;
use modelgate::metrics::{Flushed, Flusher, Metrics, Mode, emf};
use modelgate::model::features::{Raw, Settings};
use modelgate::model::signature::Kind;
use modelgate::task;
use serde_json::{Value, json};

use super::process::Binary;
use super::support::cloudwatch::{CloudWatch, Datum, totals};
use super::support::emf::read;
use super::support::loans::{Loaded, Oracle, loans, metrics, observe_random, regression};
use super::support::site::Site;

/// Some minute, and those after it.
fn minute(number: i64) -> Timestamp {
    Timestamp::from_second(1_795_190_400 + 60 * number).unwrap()
}

fn config(mode: Mode) -> Config {
    Config { namespace: "ModelGate".into(), interval: Duration::from_mins(1), mode }
}

/// An output that can be read, and be closed or blocked.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Written>>);

#[derive(Default)]
struct Written {
    text: Vec<u8>,
    is_closed: bool,
}

impl Output {
    fn with<T>(&self, work: impl FnOnce(&mut Written) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn text(&self) -> String {
        self.with(|written| String::from_utf8(written.text.clone()).unwrap())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|written| {
            if written.is_closed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            written.text.extend_from_slice(bytes);
            Ok(bytes.len())
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn start(writer: emf::Writer<Output>) {
    task::thread("emf-writer", 256 << 10, move || writer.run()).unwrap();
}

/// Metrics, a flusher of them, and the output it writes to.
struct Bench {
    output: Output,
    metrics: Metrics,
    flusher: Flusher,
}

impl Bench {
    fn start(max_series: usize, mode: Mode) -> Self {
        let (output, metrics) = (Output::default(), metrics(max_series));
        let (out, writer) = emf::channel(output.clone());
        start(writer);
        let flusher = Flusher::to_emf(metrics.clone(), out, config(mode), minute(0));
        Self { output, metrics, flusher }
    }

    async fn flush(&mut self, number: i64) -> Flushed {
        self.flusher.flush_once(minute(number)).await
    }

    #[track_caller]
    fn datums(&self) -> Vec<Datum> {
        read(&self.output.text(), minute(0)).unwrap()
    }
}

#[tokio::test]
async fn lines_say_what_the_api_is_told() {
    let mut bench = Bench::start(500, Mode::Full);
    let cloudwatch = CloudWatch::start(minute(0)).await;
    let mut to_api = Flusher::to_cloudwatch(bench.metrics.clone(), cloudwatch.client(), config(Mode::Full), minute(0));
    let (model, mut random, mut oracle) = (loans(3), fastrand::Rng::with_seed(7), Oracle::default());
    for number in 0..5 {
        for _ in 0..400 {
            observe_random(&bench.metrics, &model, "3", &mut random, &mut oracle);
        }
        let flushed = bench.flush(number).await;
        assert_eq!((flushed.calls, flushed.kept, flushed.dropped), (1, 0, 0));
        to_api.flush_once(minute(number)).await;
    }
    let datums = bench.datums();
    oracle.check(&totals(&datums));
    oracle.check(&cloudwatch.totals());
    assert!(datums.iter().all(|datum| datum.namespace == "ModelGate"));
    assert!(datums.iter().all(|datum| (datum.key.0 == "Latency") == (datum.unit == "Milliseconds")));
    let mut minutes: Vec<Timestamp> = datums.iter().map(|datum| datum.at).collect();
    minutes.dedup();
    assert_eq!(minutes, (0..5).map(minute).collect::<Vec<_>>());

    // Not only the totals: every value of every metric.
    let sorted = |mut all: Vec<_>| {
        all.sort_by(|a: &(_, f64, f64), b| a.partial_cmp(b).unwrap());
        all
    };
    let of_lines = datums.iter().flat_map(|datum| {
        datum
            .values
            .iter()
            .map(move |(value, count)| ((datum.at, datum.key.clone(), datum.unit.clone()), *value, *count))
    });
    let of_api = cloudwatch.datums().into_iter().flat_map(|datum| {
        let (at, key, unit) = (datum.at, datum.key, datum.unit);
        datum.values.into_iter().map(move |(value, count)| ((at, key.clone(), unit.clone()), value, count))
    });
    assert_eq!(sorted(of_lines.collect()), sorted(of_api.collect()));
}

#[tokio::test]
async fn no_line_breaks_a_limit_however_wide_the_model() {
    let schedules = [("wide".parse().unwrap(), "nightly".to_owned())].into();
    let mut bench = Bench::start(5000, Mode::SageMaker { schedules });
    let names: Vec<String> = (0..500).map(|number| format!("feature {number} {}", "ç".repeat(60))).collect();
    let columns: Vec<(&str, Kind)> = names.iter().map(|name| (name.as_str(), Kind::Double)).collect();
    let model = Loaded::new("wide", 1, &columns, Settings::default());
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..300 {
        let mut value = || Raw::Float((random.f64() - 0.5) * 10f64.powi(random.i32(-300..300)));
        let row: Vec<(&str, Raw<'_>)> = names.iter().map(|name| (name.as_str(), value())).collect();
        bench.metrics.observe_parts(
            &model.id,
            &model.features,
            &model.inputs(&[&row]),
            &regression(1e300),
            Duration::from_secs(u64::MAX),
        );
    }
    bench.flush(0).await;
    // Each feature has a name in Model Monitor's letters, and all of them share their dimensions.
    let text = bench.output.text();
    let counted = totals(&bench.datums());
    let of_features = counted.iter().filter(|(key, _)| key.0.starts_with("feature_"));
    assert_eq!(of_features.clone().count(), 2 * 500);
    assert!(of_features.clone().all(|(_, (count, _))| *count == 300.0));
    assert!(of_features.clone().all(|((_, dimensions), _)| dimensions[0].1 == "wide" && dimensions[1].1 == "nightly"));
    let longest = text.lines().map(str::len).max().unwrap();
    assert!((100_000..=256 * 1024).contains(&longest), "{longest}");
}

#[tokio::test]
async fn an_output_that_is_closed_costs_nothing_but_time() {
    let mut bench = Bench::start(500, Mode::Full);
    let (model, mut random, mut oracle) = (loans(3), fastrand::Rng::with_seed(5), Oracle::default());
    bench.output.with(|written| written.is_closed = true);
    for number in 0..30 {
        observe_random(&bench.metrics, &model, "3", &mut random, &mut oracle);
        let flushed = bench.flush(number).await;
        assert!(flushed.calls <= 3 && flushed.kept > 0 && flushed.dropped == 0, "{flushed:?}");
    }
    bench.output.with(|written| written.is_closed = false);
    assert_eq!(bench.flush(30).await.kept, 0);
    oracle.check(&totals(&bench.datums()));
}

#[tokio::test]
async fn a_reader_that_is_slow_blocks_nobody_and_is_told_once() {
    let (output, metrics) = (Output::default(), metrics(500));
    let (out, writer) = emf::channel(output.clone());
    let mut flusher = Flusher::to_emf(metrics.clone(), out, config(Mode::Full), minute(0));
    let (model, mut random, mut oracle) = (loans(3), fastrand::Rng::with_seed(6), Oracle::default());
    observe_random(&metrics, &model, "3", &mut random, &mut oracle);
    {
        let mut flush = std::pin::pin!(flusher.flush_once(minute(0)));
        tokio::select! {
            biased;
            _ = &mut flush => panic!("nobody has written anything"),
            () = tokio::task::yield_now() => observe_random(&metrics, &model, "3", &mut random, &mut oracle),
        }
        start(writer);
        assert_eq!(flush.await.kept, 0);
    }
    flusher.flush_once(minute(1)).await;
    oracle.check(&totals(&read(&output.text(), minute(0)).unwrap()));
}

/// Breaks a good line and sees it refused: a reader that takes everything would prove nothing.
#[track_caller]
fn check_refused(change: impl FnOnce(&mut Value)) {
    let metric = json!({ "Name": "Latency", "Unit": "Milliseconds", "StorageResolution": 60 });
    let directive = json!({ "Namespace": "N", "Dimensions": [["Model"]], "Metrics": [metric] });
    let mut line = json!({
        "_aws": { "Timestamp": minute(0).as_millisecond(), "CloudWatchMetrics": [directive] },
        "Model": "m",
        "Latency": { "Values": [1.0, 2.0], "Counts": [3, 1], "Min": 1.0, "Max": 2.0, "Count": 4, "Sum": 5.0 },
    });
    read(&format!("{line}\n"), minute(0)).unwrap();
    change(&mut line);
    assert!(read(&format!("{line}\n"), minute(0)).is_err(), "{line}");
}

#[test]
fn the_reader_refuses_what_the_specification_does_not_allow() {
    let directive = |line: &mut Value| line["_aws"]["CloudWatchMetrics"][0].take();
    check_refused(|line| line["_aws"]["Timestamp"] = json!(minute(-15 * 24 * 60).as_millisecond()));
    check_refused(|line| line["_aws"]["CloudWatchMetrics"][0]["Dimensions"] = json!([["Version"]]));
    check_refused(|line| line["_aws"]["CloudWatchMetrics"][0]["Metrics"][0]["Unit"] = json!("Parsecs"));
    check_refused(|line| line["_aws"]["CloudWatchMetrics"][0]["Metrics"][0]["Name"] = json!("Requests"));
    check_refused(|line| line["Model"] = json!("São Paulo"));
    check_refused(|line| line["Latency"]["Counts"] = json!([3]));
    check_refused(|line| line["Latency"]["Sum"] = json!(6.0));
    check_refused(|line| line["Latency"] = json!((0..101).collect::<Vec<_>>()));
    check_refused(|line| line["Latency"] = json!("1"));
    check_refused(|line| line["more"] = json!(1));
    check_refused(|line| line["Model"] = json!("x".repeat(300_000)));
    check_refused(|line| {
        let mut directive = directive(line);
        let metric = directive["Metrics"][0].clone();
        directive["Metrics"] = json!(vec![metric; 2]);
        line["_aws"]["CloudWatchMetrics"] = json!([directive]);
    });
    assert!(read("{", minute(0)).is_err() && read("listening on 127.0.0.1\n", minute(0)).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_metrics_is_on_standard_output() {
    let text = "[plans.open]\n[[model]]\nname = \"sum\"\n[metrics.emf]\nnamespace = \"Gate\"\n[telemetry]\nlog_format = \"json\"\n";
    let mut site = Site::new(text);
    site.register_sum("sum", 1, 1000.0);
    site.promote("sum", 1);
    let key = site.key("open");
    let (file, stdout) = (site.folder().join("modelgate.toml"), site.folder().join("stdout"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelgate"));
    let binary = Binary::start(command.stdout(File::create(&stdout).unwrap()), &file, &[]);
    binary.answer_seven_and_end(&key).await;
    let datums = read(&fs::read_to_string(stdout).unwrap(), Clock::system().now()).unwrap();
    let of_model = vec![("Model".to_owned(), "sum".to_owned())];
    let counted = totals(&datums);
    assert_eq!(counted[&("Requests".to_owned(), of_model.clone())], (7.0, 7.0));
    assert_eq!(counted[&("Prediction".to_owned(), of_model)], (7.0, 7021.0));
    assert!(datums.iter().all(|datum| datum.namespace == "Gate"));
}
