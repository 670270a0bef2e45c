//! Metrics to an OpenTelemetry collector: all of them, once, by the protocol, through every kind of outage.
#![expect(clippy::float_cmp, reason = "counts are whole numbers")]
#![expect(clippy::disallowed_methods, reason = "callers of the test")]

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use modelgate::metrics::otlp::Config;
use modelgate::metrics::{Flushed, Flusher, Metrics, Mode as Sent};
use percent_encoding::percent_decode_str;

use super::process::Binary;
use super::support::cloudwatch::Key;
use super::support::loans::{Oracle, loans, metrics, observe_random};
use super::support::otlp::{Collector, Measured, Mode};
use super::support::site::{Site, install_tls};

/// Some minute, and those after it.
fn minute(number: i64) -> Timestamp {
    Timestamp::from_second(1_795_190_400 + 60 * number).unwrap()
}

/// Metrics, a flusher of them, and the collector it sends to.
struct Bench {
    collector: Collector,
    metrics: Metrics,
    flusher: Flusher,
}

impl Bench {
    async fn start() -> Self {
        install_tls();
        let (collector, metrics) = (Collector::start().await, metrics(500));
        let to = Config {
            endpoint: format!("{}/v1/metrics", collector.endpoint()).parse().unwrap(),
            headers: [("x-tenant".parse().unwrap(), "a b".parse().unwrap())].into_iter().collect(),
            service_name: "gate".into(),
            interval: Duration::from_mins(1),
            mode: Sent::Full,
        };
        let flusher = Flusher::to_otlp(metrics.clone(), reqwest::Client::new(), to, minute(-1));
        Self { collector, metrics, flusher }
    }

    async fn flush(&mut self, number: i64) -> Flushed {
        self.flusher.flush_once(minute(number)).await
    }

    #[track_caller]
    fn check_totals(&self, oracle: &Oracle) {
        let totals = self.collector.totals();
        // A model's own series are the sums of its versions', which a collector makes itself.
        let of_versions = ["Requests", "Errors", "Latency", "Prediction"];
        let is_sent = |key: &Key| !of_versions.contains(&key.0.as_str()) || key.1.len() == 2;
        let expected = oracle.0.iter().filter(|(key, _)| is_sent(key));
        let expected: BTreeMap<Key, _> = expected.map(|(key, totals)| (theirs(key), *totals)).collect();
        assert_eq!(totals.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (key, (count, sum, size)) in expected {
            let (sent_count, sent_sum) = totals[&key];
            let is_count = sent_count == 0;
            #[expect(clippy::cast_precision_loss, reason = "tests count little")]
            let same_count = is_count || sent_count as f64 == count;
            assert!(same_count, "{key:?}: {sent_count} is not {count}");
            assert!((sent_sum - sum).abs() <= size * 1e-9, "{key:?}: {sent_sum} is not {sum}");
        }
        assert_eq!(self.collector.refusals(), Vec::<String>::new());
    }
}

/// A metric of CloudWatch by its name and labels in OpenTelemetry.
fn theirs((name, dimensions): &Key) -> Key {
    let name = match name.as_str() {
        "Requests" => "modelgate.requests",
        "Errors" => "modelgate.errors",
        "Latency" => "modelgate.latency",
        "Prediction" => "modelgate.prediction",
        "PredictionClass" => "modelgate.prediction_class",
        "FeatureValue" => "modelgate.feature_value",
        "FeatureMissing" => "modelgate.feature_missing",
        "FeatureUnseen" => "modelgate.feature_unseen",
        "FeatureCategory" => "modelgate.feature_category",
        other => panic!("{other} has no name"),
    };
    let label = |(name, value): &(String, String)| {
        (name.to_lowercase(), percent_decode_str(value).decode_utf8().unwrap().into_owned())
    };
    (name.to_owned(), dimensions.iter().map(label).collect())
}

#[tokio::test]
async fn what_arrives_is_what_was_measured() {
    let mut bench = Bench::start().await;
    let (model, mut random, mut oracle) = (loans(3), fastrand::Rng::with_seed(7), Oracle::default());
    for number in 0..5 {
        for _ in 0..400 {
            observe_random(&bench.metrics, &model, "3", &mut random, &mut oracle);
        }
        let flushed = bench.flush(number).await;
        assert_eq!((flushed.calls, flushed.kept, flushed.dropped), (1, 0, 0));
    }
    bench.check_totals(&oracle);
    let points = bench.collector.points();
    assert!(points.iter().all(|point| (point.unit == "ms") == (point.key.0 == "modelgate.latency")));
    assert!(points.iter().any(|point| matches!(point.measured, Measured::Distribution(..))));
    assert_eq!(bench.collector.headers()[0]["x-tenant"], "a b");

    // Deltas follow each other without a gap.
    let nanoseconds = |number| u64::try_from(minute(number).as_nanosecond()).unwrap();
    let mut spans: Vec<_> = points.iter().map(|point| point.span).collect();
    spans.dedup();
    assert_eq!(spans, (0..5).map(|number| (nanoseconds(number - 1), nanoseconds(number))).collect::<Vec<_>>());
}

/// Totals are whole after half an hour of trouble, which cost few calls.
async fn check_outage(mode: Mode) {
    let mut bench = Bench::start().await;
    let (model, mut random, mut oracle) = (loans(3), fastrand::Rng::with_seed(5), Oracle::default());
    bench.collector.set_mode(mode);
    for number in 0..30 {
        observe_random(&bench.metrics, &model, "3", &mut random, &mut oracle);
        let flushed = bench.flush(number).await;
        assert!(flushed.calls <= 60 && flushed.dropped == 0, "{mode:?} {flushed:?}");
    }
    bench.collector.set_mode(Mode::Ok);
    assert_eq!(bench.flush(30).await.kept, 0, "{mode:?}");
    bench.check_totals(&oracle);
}

#[tokio::test]
async fn an_outage_costs_nothing_but_time() {
    for mode in [Mode::Busy, Mode::Flaky, Mode::Unknown] {
        check_outage(mode).await;
    }
}

#[tokio::test]
async fn a_collector_that_is_not_there_keeps_what_is_measured_and_what_waits_for_an_hour_is_dropped() {
    let mut bench = Bench::start().await;
    let (model, mut random, mut oracle) = (loans(3), fastrand::Rng::with_seed(5), Oracle::default());
    drop(std::mem::replace(&mut bench.collector, Collector::start().await));
    observe_random(&bench.metrics, &model, "3", &mut random, &mut oracle);
    let flushed = bench.flush(0).await;
    assert!((flushed.calls, flushed.dropped) == (1, 0) && flushed.kept > 0, "{flushed:?}");
    assert_eq!(bench.flush(60).await.dropped, 0);
    assert_eq!(bench.flush(61).await.dropped, flushed.kept);
    let page = bench.metrics.render(&[]);
    let line = format!("modelgate_sink_dropped_total{{sink=\"otlp\"}} {}.0\n", flushed.kept);
    assert!(page.contains(&line), "{page}");
}

#[tokio::test]
async fn what_a_collector_refuses_is_counted_and_not_sent_again() {
    let mut bench = Bench::start().await;
    let (model, mut random) = (loans(3), fastrand::Rng::with_seed(5));
    observe_random(&bench.metrics, &model, "3", &mut random, &mut Oracle::default());
    bench.collector.set_mode(Mode::Partly);
    let flushed = bench.flush(0).await;
    assert_eq!((flushed.calls, flushed.kept, flushed.dropped), (1, 0, 2));
    bench.collector.set_mode(Mode::Ok);
    assert_eq!(bench.flush(1).await, Flushed::default());
    assert_eq!(bench.collector.calls(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_standard_variable_says_where() {
    // The file names a place where nobody is.
    let sink = "[metrics.otlp]\nendpoint = \"http://127.0.0.1:9/v1/metrics\"\nmode = \"lean\"\n";
    let mut site = Site::new(&format!("[plans.open]\n[[model]]\nname = \"sum\"\n{sink}"));
    site.register_sum("sum", 1, 1000.0);
    site.promote("sum", 1);
    let collector = Collector::start().await;
    let environment =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()), ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b")];
    let file = site.folder().join("modelgate.toml");
    let key = site.key("open");
    let binary = Binary::start(&mut Command::new(env!("CARGO_BIN_EXE_modelgate")), &file, &environment);
    binary.answer_seven_and_end(&key).await;
    assert_eq!(collector.refusals(), Vec::<String>::new());
    let of_model = vec![("model".to_owned(), "sum".to_owned())];
    let totals = collector.totals();
    assert_eq!(totals[&("modelgate.requests".to_owned(), of_model.clone())].1, 7.0);
    assert_eq!(totals[&("modelgate.prediction".to_owned(), of_model)], (7, 7021.0));
    let headers = collector.headers();
    assert!(headers.iter().all(|headers| headers["x-tenant"] == "a b"));
}
