//! Measurements of a made-up model, and what plain arithmetic says they come to.

#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use modelgate::metrics::{self, Metrics};
use modelgate::model::features::{Raw, Settings};
use modelgate::model::signature::{Column, Kind, Signature};
use modelgate::model::{Digest, Features, Identity, Inputs, Outputs, Prediction, Value, Version};

use super::cloudwatch::Key;

pub(crate) fn metrics(max_series: usize) -> Metrics {
    let max = |number| NonZeroUsize::new(number).unwrap();
    Metrics::new(metrics::Config { max_series: max(max_series), max_categories: max(20) })
}

/// A model taken apart.
pub(crate) struct Loaded {
    pub(crate) id: Arc<Identity>,
    pub(crate) features: Features,
}

impl Loaded {
    pub(crate) fn new(name: &str, version: u64, columns: &[(&str, Kind)], settings: Settings) -> Self {
        let column = |(name, kind): &(&str, Kind)| Column { name: (*name).into(), kind: *kind, required: false };
        let signature = Signature::Columns(columns.iter().map(column).collect());
        let id = Identity::new(name.parse().unwrap(), Version(version), Digest([0; 32]), None);
        Self { id: Arc::new(id), features: Features::new(&signature, settings).unwrap() }
    }

    pub(crate) fn inputs(&self, rows: &[&[(&str, Raw<'_>)]]) -> Inputs {
        let mut reader = self.features.rows();
        for row in rows {
            reader.begin();
            row.iter().for_each(|(name, value)| reader.set(name, *value));
            reader.end();
        }
        reader.finish().unwrap()
    }
}

pub(crate) fn outputs(predictions: Vec<Prediction>) -> Outputs {
    Outputs::new(predictions, Arc::new([]), vec![])
}

pub(crate) fn regression(value: f64) -> Outputs {
    outputs(vec![Prediction { value: Value::Number(value), label: None, score: None }])
}

/// Count, sum, and sum of magnitudes of every series, the plain way.
#[derive(Default)]
pub(crate) struct Oracle(pub(crate) BTreeMap<Key, (f64, f64, f64)>);

impl Oracle {
    /// Panics unless a sink has every series of these and no other, with their counts and sums.
    #[track_caller]
    pub(crate) fn check(&self, totals: &BTreeMap<Key, (f64, f64)>) {
        assert_eq!(totals.keys().collect::<Vec<_>>(), self.0.keys().collect::<Vec<_>>());
        for (key, (count, sum, size)) in &self.0 {
            let (sent_count, sent_sum) = totals[key];
            assert_eq!(sent_count, *count, "{key:?}");
            assert!((sent_sum - sum).abs() <= size * 1e-9, "{key:?}: {sent_sum} is not {sum}");
        }
    }

    pub(crate) fn add(&mut self, metric: &str, dimensions: &[(&str, &str)], value: f64) {
        let dimensions = dimensions.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let entry = self.0.entry((metric.into(), dimensions)).or_default();
        entry.0 += 1.0;
        entry.1 += value;
        entry.2 += value.abs();
    }

    /// In the model's series and in its version's.
    pub(crate) fn add_both(&mut self, metric: &str, model: &str, version: &str, value: f64) {
        self.add(metric, &[("Model", model)], value);
        self.add(metric, &[("Model", model), ("Version", version)], value);
    }

    pub(crate) fn add_request(&mut self, model: &str, version: &str, took: Duration, is_error: bool) {
        self.add_both("Requests", model, version, 1.0);
        self.add_both("Errors", model, version, f64::from(u8::from(is_error)));
        self.add_both("Latency", model, version, took.as_secs_f64() * 1000.0);
    }
}

pub(crate) fn loans(version: u64) -> Loaded {
    let columns = [
        ("income", Kind::Double),
        ("age", Kind::Long),
        ("employed", Kind::Boolean),
        ("city", Kind::Text),
        ("job_Doctor", Kind::Long),
        ("job_Lawyer", Kind::Long),
    ];
    Loaded::new("loans", version, &columns, Settings { one_hot: vec!["job".into()], ..Settings::default() })
}

/// One random request of two rows, measured and counted apart.
pub(crate) fn observe_random(
    metrics: &Metrics,
    model: &Loaded,
    version: &str,
    random: &mut fastrand::Rng,
    oracle: &mut Oracle,
) {
    const CITIES: [&str; 4] = ["São Paulo", "Roma", "", "100 %"];
    const CITIES_SENT: [&str; 4] = ["S%C3%A3o Paulo", "Roma", "__empty__", "100 %25"];
    const JOBS: [&str; 3] = ["Doctor", "Lawyer", "Juggler"];
    const JOBS_SENT: [&str; 3] = ["Doctor", "Lawyer", "__other__"];
    let took = Duration::from_micros(random.u64(50..2_000_000));
    oracle.add_request("loans", version, took, false);
    let mut rows: Vec<Vec<(&str, Raw<'_>)>> = Vec::new();
    let mut predictions = Vec::new();
    for _ in 0..2 {
        let mut row = Vec::new();
        let of = |feature| [("Model", "loans"), ("Feature", feature)];
        if random.bool() {
            let income = (random.f64() - 0.3) * 10f64.powi(random.i32(-4..8));
            oracle.add("FeatureValue", &of("income"), income);
            row.push(("income", Raw::Float(income)));
        } else {
            oracle.add("FeatureMissing", &of("income"), 1.0);
        }
        let age = random.i64(-5..120);
        oracle.add("FeatureValue", &of("age"), f64::from(i32::try_from(age).unwrap()));
        row.push(("age", Raw::Integer(age)));
        let employed = random.bool();
        oracle.add("FeatureValue", &of("employed"), if employed { 1.0 } else { 0.0 });
        row.push(("employed", Raw::Boolean(employed)));
        let city = random.usize(0..CITIES.len());
        oracle.add("FeatureCategory", &[of("city")[0], of("city")[1], ("Category", CITIES_SENT[city])], 1.0);
        row.push(("city", Raw::Text(CITIES[city])));
        let job = random.usize(0..JOBS.len());
        oracle.add("FeatureCategory", &[of("job")[0], of("job")[1], ("Category", JOBS_SENT[job])], 1.0);
        if JOBS[job] == "Juggler" {
            oracle.add("FeatureUnseen", &of("job"), 1.0);
        }
        row.push(("job", Raw::Text(JOBS[job])));
        let (class, score) = (random.i64(0..3), random.f64());
        oracle.add_both("Prediction", "loans", version, score);
        oracle.add("PredictionClass", &[("Model", "loans"), ("Class", &class.to_string())], 1.0);
        predictions.push(Prediction { value: Value::Integer(class), label: None, score: Some(score) });
        rows.push(row);
    }
    let rows: Vec<&[(&str, Raw<'_>)]> = rows.iter().map(Vec::as_slice).collect();
    metrics.observe_parts(&model.id, &model.features, &model.inputs(&rows), &outputs(predictions), took);
}
