//! What reaches CloudWatch: all of it, once, inside every limit, through every kind of outage.
#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

use std::time::Duration;

use aws_sdk_cloudwatch::error::ProvideErrorMetadata;
use aws_sdk_cloudwatch::primitives::DateTime;
use aws_sdk_cloudwatch::types::{Dimension, MetricDatum};
use jiff::Timestamp;
use modelgate::metrics::cloudwatch::Config;
use modelgate::metrics::{Flushed, Flusher, Metrics, Mode as Sent};
use modelgate::model::features::{Raw, Settings};
use modelgate::model::signature::Kind;
use modelgate::model::{Inputs, Outputs, Prediction, Value};

use super::support::cloudwatch::{CloudWatch, Key, Mode};
use super::support::loans::{Loaded, Oracle, loans, metrics, observe_random, outputs, regression};

/// Some minute, and those after it.
fn minute(number: i64) -> Timestamp {
    Timestamp::from_second(1_795_190_400 + 60 * number).unwrap()
}

/// Metrics, a flusher of them, and the CloudWatch it flushes to.
struct Bench {
    cloudwatch: CloudWatch,
    metrics: Metrics,
    flusher: Flusher,
}

impl Bench {
    async fn start(max_series: usize) -> Self {
        let cloudwatch = CloudWatch::start(minute(0)).await;
        let client = cloudwatch.client();
        Self::with(cloudwatch, client, max_series)
    }

    fn with(cloudwatch: CloudWatch, client: aws_sdk_cloudwatch::Client, max_series: usize) -> Self {
        let metrics = metrics(max_series);
        let config = Config { namespace: "ModelGate".into(), interval: Duration::from_mins(1), mode: Sent::Full };
        let flusher = Flusher::to_cloudwatch(metrics.clone(), client, config, minute(0));
        Self { cloudwatch, metrics, flusher }
    }

    async fn flush(&mut self, number: i64) -> Flushed {
        self.cloudwatch.set_now(minute(number));
        self.flusher.flush_once(minute(number)).await
    }

    fn observe(&self, model: &Loaded, inputs: &Inputs, outputs: &Outputs, took: Duration) {
        self.metrics.observe_parts(&model.id, &model.features, inputs, outputs, took);
    }

    #[track_caller]
    fn check_totals(&self, expected: &Oracle) {
        expected.check(&self.cloudwatch.totals());
        assert_eq!(self.cloudwatch.refusals(), []);
    }
}

#[tokio::test]
async fn what_arrives_is_what_was_measured() {
    let mut bench = Bench::start(500).await;
    let mut random = fastrand::Rng::with_seed(7);
    let mut oracle = Oracle::default();
    let versions = [(loans(3), "3"), (loans(4), "4")];
    for number in 0..5 {
        for _ in 0..400 {
            let (model, version) = &versions[random.usize(0..2)];
            observe_random(&bench.metrics, model, version, &mut random, &mut oracle);
        }
        let took = Duration::from_millis(random.u64(1..100));
        let status = [422, 500][random.usize(0..2)];
        oracle.add_request("loans", "3", took, status == 500);
        bench.metrics.failed_parts(&versions[0].0.id, &versions[0].0.features, "some_code", status, took);
        bench.metrics.failed(None, "model_not_found", 404, took);
        // Whoever looks in between takes nothing away.
        let _page = bench.metrics.render(&[]);
        let flushed = bench.flush(number).await;
        assert_eq!((flushed.calls, flushed.kept, flushed.dropped), (1, 0, 0));
    }
    bench.check_totals(&oracle);
    let datums = bench.cloudwatch.datums();
    assert!(datums.iter().all(|datum| datum.namespace == "ModelGate"));
    assert!(datums.iter().all(|datum| (datum.key.0 == "Latency") == (datum.unit == "Milliseconds")));
}

#[test]
fn threads_lose_nothing() {
    let metrics = metrics(500);
    let model = Loaded::new("loans", 3, &[("age", Kind::Long)], Settings::default());
    let inputs = model.inputs(&[&[("age", Raw::Integer(40))]]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 0..500 {
                    metrics.observe_parts(&model.id, &model.features, &inputs, &regression(1.0), Duration::ZERO);
                    if round % 50 == 0 {
                        let _page = metrics.render(&[]);
                    }
                }
            });
        }
    });
    let page = metrics.render(&[]);
    assert!(page.contains("modelgate_feature_value_sum{model=\"loans\",feature=\"age\"} 160000.0\n"), "{page}");
}

#[tokio::test]
async fn versions_that_come_and_go_are_all_counted() {
    let mut bench = Bench::start(5000).await;
    for version in 0..300 {
        let model = Loaded::new("loans", version, &[("age", Kind::Long)], Settings::default());
        bench.observe(&model, &model.inputs(&[&[("age", Raw::Integer(40))]]), &regression(1.0), Duration::ZERO);
    }
    bench.flush(0).await;
    let totals = bench.cloudwatch.totals();
    assert_eq!(totals[&("Requests".to_owned(), vec![("Model".to_owned(), "loans".to_owned())])], (300.0, 300.0));
    assert_eq!(totals.keys().filter(|(name, _)| name == "Requests").count(), 301);
}

#[tokio::test]
async fn no_call_breaks_a_limit_however_wide_the_model() {
    let mut bench = Bench::start(5000).await;
    let names: Vec<String> = (0..1500).map(|number| format!("feature {number} {}", "ç".repeat(40))).collect();
    let columns: Vec<(&str, Kind)> = names.iter().map(|name| (name.as_str(), Kind::Double)).collect();
    let model = Loaded::new("wide", 1, &columns, Settings::default());
    let one: Vec<(&str, Raw<'_>)> = names.iter().map(|name| (name.as_str(), Raw::Float(1.0))).collect();
    bench.observe(&model, &model.inputs(&[&one]), &regression(1.0), Duration::ZERO);
    assert_eq!(bench.flush(0).await, Flushed { datums: 1508, calls: 2, kept: 0, dropped: 0 });

    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..100 {
        let row: Vec<(&str, Raw<'_>)> = names
            .iter()
            .map(|name| (name.as_str(), Raw::Float((random.f64() - 0.5) * 10f64.powi(random.i32(-300..300)))))
            .collect();
        bench.observe(&model, &model.inputs(&[&row]), &regression(1e300), Duration::from_secs(u64::MAX));
    }
    let flushed = bench.flush(1).await;
    assert_eq!((flushed.kept, flushed.dropped), (0, 0));
    assert_eq!(bench.cloudwatch.refusals(), []);
    let counts: f64 = bench.cloudwatch.totals().values().map(|(count, _)| count).sum();
    assert_eq!(counts, 101.0 * (1500.0 + 8.0));
    assert!(bench.cloudwatch.largest_bytes() > 500_000, "{}", bench.cloudwatch.largest_bytes());
}

#[tokio::test]
async fn a_million_names_are_few_series() {
    let mut bench = Bench::start(50).await;
    let model =
        Loaded::new("loans", 1, &[("a", Kind::Text), ("b", Kind::Text), ("c", Kind::Text)], Settings::default());
    for hundred in 0..1000 {
        let texts: Vec<String> = (0..1000).map(|number| format!("name {hundred} {number}")).collect();
        let rows: Vec<[(&str, Raw<'_>); 1]> =
            texts.iter().enumerate().map(|(row, text)| [(["a", "b", "c"][row % 3], Raw::Text(text))]).collect();
        let rows: Vec<&[(&str, Raw<'_>)]> = rows.iter().map(<[_; 1]>::as_slice).collect();
        bench.observe(&model, &model.inputs(&rows), &regression(1.0), Duration::ZERO);
    }
    bench.flush(0).await;
    let totals = bench.cloudwatch.totals();
    assert!(totals.len() <= 50, "{} series", totals.len());
    assert!(bench.metrics.render(&[]).len() < 20_000);

    // Every row is counted: under its own name, as another, or as refused.
    let of_texts = |(key, _): &(&Key, &(f64, f64))| ["FeatureCategory", "SeriesRefused"].contains(&key.0.as_str());
    let rows: f64 = totals.iter().filter(of_texts).map(|(_, (_, sum))| sum).sum();
    let missing: f64 = totals.iter().filter(|(key, _)| key.0 == "FeatureMissing").map(|(_, (_, sum))| sum).sum();
    assert_eq!(rows + missing, 3_000_000.0);
    assert!(totals.contains_key(&("SeriesRefused".to_owned(), vec![])));
}

#[tokio::test]
async fn a_million_classes_and_model_names_are_few_series() {
    let mut bench = Bench::start(50).await;
    let model = Loaded::new("loans", 1, &[("a", Kind::Double)], Settings::default());
    let inputs = model.inputs(&[&[("a", Raw::Float(1.0))]]);
    for thousand in 0..1000_i64 {
        let answer =
            |number: i64| Prediction { value: Value::Integer(1000 * thousand + number), label: None, score: None };
        bench.observe(&model, &inputs, &outputs((0..1000).map(answer).collect()), Duration::ZERO);
        // A name that no model has never becomes a label.
        bench.metrics.failed(None, "model_not_found", 404, Duration::ZERO);
    }
    bench.flush(0).await;
    let totals = bench.cloudwatch.totals();
    assert!(totals.len() <= 50, "{} series", totals.len());
    let classes: f64 = totals.iter().filter(|(key, _)| key.0 == "PredictionClass").map(|(_, (_, sum))| sum).sum();
    assert_eq!(classes, 1_000_000.0);
    let page = bench.metrics.render(&[]);
    assert!(page.len() < 20_000 && page.contains("code=\"model_not_found\"} 1000.0\n"), "{page}");
}

#[tokio::test]
async fn the_number_of_calls_does_not_depend_on_the_traffic() {
    let mut bench = Bench::start(500).await;
    let (model, mut random) = (loans(3), fastrand::Rng::with_seed(3));
    for (number, requests) in [(0, 1), (1, 5000)] {
        for _ in 0..requests {
            observe_random(&bench.metrics, &model, "3", &mut random, &mut Oracle::default());
        }
        assert_eq!(bench.flush(number).await.calls, 1);
    }
    assert_eq!(bench.flush(2).await, Flushed::default());
    assert_eq!(bench.cloudwatch.calls(), 2);
}

/// Totals are whole after `minutes` of trouble, which cost few calls, and every minute keeps its place.
async fn check_outage(mode: Mode, minutes: i64) {
    let cloudwatch = CloudWatch::start(minute(0)).await;
    let patience = if mode == Mode::Silent { Duration::from_millis(500) } else { Duration::from_secs(10) };
    let client = cloudwatch.hasty_client(patience);
    let mut bench = Bench::with(cloudwatch, client, 500);
    let (model, mut random, mut oracle) = (loans(3), fastrand::Rng::with_seed(5), Oracle::default());
    bench.cloudwatch.set_mode(mode);
    for number in 0..minutes {
        observe_random(&bench.metrics, &model, "3", &mut random, &mut oracle);
        let flushed = bench.flush(number).await;
        assert!(flushed.calls <= 3 && flushed.kept > 0 && flushed.dropped == 0, "{mode:?} {flushed:?}");
    }
    assert_eq!(bench.cloudwatch.datums().len(), 0);
    bench.cloudwatch.set_mode(Mode::Ok);
    observe_random(&bench.metrics, &model, "3", &mut random, &mut oracle);
    let flushed = bench.flush(minutes).await;
    assert_eq!((flushed.kept, flushed.dropped), (0, 0), "{mode:?}");
    bench.check_totals(&oracle);
    let mut minutes_seen: Vec<Timestamp> = bench.cloudwatch.datums().iter().map(|datum| datum.at).collect();
    minutes_seen.dedup();
    assert_eq!(minutes_seen, (0..=minutes).map(minute).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_outage_costs_nothing_but_time() {
    check_outage(Mode::Throttle, 30).await;
    check_outage(Mode::Fault, 30).await;
    check_outage(Mode::Drop, 30).await;
    check_outage(Mode::Silent, 2).await;
}

/// Minutes that each take more than the 1 MB of a call, kept for nearly an hour.
#[tokio::test]
async fn wide_minutes_of_an_hour_are_cut_into_calls_and_nothing_of_them_is_lost() {
    let mut bench = Bench::start(5000).await;
    let names: Vec<String> = (0..300).map(|number| format!("feature {number}")).collect();
    let columns: Vec<(&str, Kind)> = names.iter().map(|name| (name.as_str(), Kind::Double)).collect();
    let model = Loaded::new("wide", 1, &columns, Settings::default());
    let (mut random, mut oracle) = (fastrand::Rng::with_seed(2), Oracle::default());
    bench.cloudwatch.set_mode(Mode::Throttle);
    for number in [0, 30, 59] {
        for _ in 0..180 {
            let mut row = Vec::new();
            for name in &names {
                // NaN and infinity are refused before a model is asked; the widest numbers there are come this far.
                let value = (random.f64() - 0.5) * 10f64.powi(random.i32(-100..100));
                oracle.add("FeatureValue", &[("Model", "wide"), ("Feature", name)], value);
                row.push((name.as_str(), Raw::Float(value)));
            }
            oracle.add_request("wide", "1", Duration::from_millis(1), false);
            oracle.add_both("Prediction", "wide", "1", 1.0);
            bench.observe(&model, &model.inputs(&[&row]), &regression(1.0), Duration::from_millis(1));
        }
        let flushed = bench.flush(number).await;
        assert!(flushed.calls <= 3 && flushed.dropped == 0, "{flushed:?}");
    }
    bench.cloudwatch.set_mode(Mode::Ok);
    let flushed = bench.flush(60).await;
    assert_eq!((flushed.calls, flushed.kept, flushed.dropped), (6, 0, 0));
    bench.check_totals(&oracle);
    assert!(bench.cloudwatch.largest_bytes() > 800_000, "{}", bench.cloudwatch.largest_bytes());
}

#[tokio::test]
async fn half_of_the_calls_may_fail() {
    let mut bench = Bench::start(500).await;
    let (model, mut random, mut oracle) = (loans(3), fastrand::Rng::with_seed(9), Oracle::default());
    bench.cloudwatch.set_mode(Mode::Flaky);
    for number in 0..30 {
        observe_random(&bench.metrics, &model, "3", &mut random, &mut oracle);
        bench.flush(number).await;
    }
    bench.cloudwatch.set_mode(Mode::Ok);
    assert_eq!(bench.flush(30).await.kept, 0);
    bench.check_totals(&oracle);
}

#[tokio::test]
async fn what_cannot_be_sent_for_an_hour_is_dropped_and_counted() {
    let mut bench = Bench::start(500).await;
    let model = loans(3);
    let observe = |bench: &Bench| {
        bench.metrics.failed_parts(&model.id, &model.features, "some_code", 500, Duration::from_millis(1));
    };
    bench.cloudwatch.set_mode(Mode::Fault);
    observe(&bench);
    let kept = bench.flush(0).await.kept;
    observe(&bench);
    assert_eq!(bench.flush(60).await.dropped, 0);
    let flushed = bench.flush(61).await;
    assert_eq!((flushed.dropped, flushed.kept), (kept, kept));
    let page = bench.metrics.render(&[]);
    assert!(page.contains(&format!("modelgate_sink_dropped_total{{sink=\"cloudwatch\"}} {kept}.0\n")), "{page}");
    assert!(page.contains(&format!("modelgate_sink_kept{{sink=\"cloudwatch\"}} {kept}.0\n")), "{page}");
}

#[tokio::test]
async fn what_is_refused_as_invalid_is_not_sent_again() {
    let mut bench = Bench::start(500).await;
    let (model, mut random, mut oracle) = (loans(3), fastrand::Rng::with_seed(11), Oracle::default());
    bench.cloudwatch.set_mode(Mode::Refuse);
    observe_random(&bench.metrics, &model, "3", &mut random, &mut Oracle::default());
    let flushed = bench.flush(0).await;
    assert_eq!((flushed.calls, flushed.kept), (1, 0));
    assert!(flushed.dropped > 0);
    bench.cloudwatch.set_mode(Mode::Ok);
    observe_random(&bench.metrics, &model, "3", &mut random, &mut oracle);
    assert_eq!(bench.flush(1).await.calls, 1);
    bench.check_totals(&oracle);
}

#[tokio::test]
async fn a_flush_that_is_given_up_forgets_nothing() {
    let mut bench = Bench::start(500).await;
    let (model, mut random, mut oracle) = (loans(3), fastrand::Rng::with_seed(13), Oracle::default());
    observe_random(&bench.metrics, &model, "3", &mut random, &mut oracle);
    bench.cloudwatch.set_mode(Mode::Silent);
    let given_up = tokio::time::timeout(Duration::from_millis(50), bench.flush(0)).await;
    assert!(given_up.is_err());
    bench.cloudwatch.set_mode(Mode::Ok);
    bench.flush(1).await;
    bench.check_totals(&oracle);
}

/// What the fake answers to one datum, made by `change` out of a good one.
async fn check_refused(what: &str, change: impl FnOnce(MetricDatum) -> Vec<MetricDatum>) {
    let cloudwatch = CloudWatch::start(minute(0)).await;
    let at = DateTime::from_secs(minute(0).as_second());
    let good = MetricDatum::builder().metric_name("M").value(1.0).timestamp(at).unit("Count".into()).build();
    let call = cloudwatch.client().put_metric_data().namespace("N").set_metric_data(Some(change(good)));
    let error = call.send().await.expect_err(what);
    let code = error.code().unwrap_or_default();
    assert!(code.starts_with("InvalidParameter"), "{what}: {code}");
    assert_eq!(cloudwatch.datums().len(), 0, "{what}");
}

fn with(mut datum: MetricDatum, change: impl FnOnce(&mut MetricDatum)) -> Vec<MetricDatum> {
    change(&mut datum);
    vec![datum]
}

fn with_dimension(datum: MetricDatum, name: &str, value: &str) -> Vec<MetricDatum> {
    let dimension = Dimension::builder().name(name).value(value).build();
    with(datum, |datum| datum.dimensions = Some(vec![dimension]))
}

fn with_values(datum: MetricDatum, values: Vec<f64>, counts: Vec<f64>) -> Vec<MetricDatum> {
    with(datum, |datum| (datum.value, datum.values, datum.counts) = (None, Some(values), Some(counts)))
}

/// A fake that takes everything would prove nothing.
#[tokio::test]
async fn the_fake_refuses_what_aws_refuses() {
    check_refused("1,001 metrics", |datum| vec![datum; 1001]).await;
    check_refused("over 1 MB", |datum| {
        let long = with_dimension(datum, "D", &"x".repeat(1020)).remove(0);
        vec![long; 999]
    })
    .await;
    check_refused("NaN", |datum| with(datum, |datum| datum.value = Some(f64::NAN))).await;
    check_refused("infinity", |datum| with(datum, |datum| datum.value = Some(f64::INFINITY))).await;
    check_refused("2^361", |datum| with(datum, |datum| datum.value = Some(2f64.powi(361)))).await;
    let many = || (0..151).map(f64::from).collect::<Vec<_>>();
    check_refused("151 values", |datum| with_values(datum, many(), vec![1.0; 151])).await;
    check_refused("a count too few", |datum| with_values(datum, vec![1.0, 2.0], vec![1.0])).await;
    check_refused("value and values", |datum| with(datum, |datum| datum.values = Some(vec![1.0]))).await;
    check_refused("no ASCII", |datum| with_dimension(datum, "D", "ç")).await;
    check_refused("blank", |datum| with_dimension(datum, "D", "  ")).await;
    check_refused("too long", |datum| with_dimension(datum, "D", &"x".repeat(1025))).await;
    check_refused("colon", |datum| with_dimension(datum, ":D", "x")).await;
    check_refused("31 dimensions", |datum| {
        let dimension = |number: i32| Dimension::builder().name(number.to_string()).value("x").build();
        with(datum, |datum| datum.dimensions = Some((0..31).map(dimension).collect()))
    })
    .await;
    check_refused("resolution", |datum| with(datum, |datum| datum.storage_resolution = Some(30))).await;
    let at = |hours: i64| Some(DateTime::from_secs(minute(60 * hours).as_second() + 1));
    check_refused("past", |datum| with(datum, |datum| datum.timestamp = at(-14 * 24 - 1))).await;
    check_refused("future", |datum| with(datum, |datum| datum.timestamp = at(2))).await;
}
