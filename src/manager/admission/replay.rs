//! The rows answered lately, answered again by the version that wants to serve, beside the one that does.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Config, Finding, Stop, passed, skipped};
use crate::model::outputs::Value;
use crate::model::{Features, Inputs, InvalidInput, Model, Outputs};

/// Below this many rows a share says nothing.
const MIN_ROWS: usize = 32;

/// The longest one request may take either version.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// No new request is begun after this time.
const TOTAL_TIME: Duration = Duration::from_secs(30);

/// A row that takes less than this is fast enough, however fast it was before.
const FAST_ROW: Duration = Duration::from_millis(1);

/// What both versions answered to the same rows.
#[derive(Debug, Default)]
struct Comparison {
    pairs: Vec<(Value, Value)>,
    /// Time a row took, for each request.
    serving_times: Vec<Duration>,
    new_times: Vec<Duration>,
    /// Rows the serving version answers and the new one does not, and the first reason.
    failed: usize,
    first_failure: Option<String>,
}

/// The rung.
pub(super) async fn check(config: &Config, serving: Option<&Model>, new: &Model) -> Finding {
    let Some(serving) = serving else { return skipped("nothing is served that it would replace") };
    let requests = newest(serving.recent(), config.replay_rows);
    let rows: usize = requests.iter().map(Inputs::rows).sum();
    if rows < MIN_ROWS {
        return skipped(format!("not enough rows: {rows} of the {MIN_ROWS} it takes are remembered"));
    }
    let (comparison, translated) = compare(serving, new, &requests).await;
    let verdict = judge(&comparison, config)?;
    new.remember(translated);
    Ok(verdict)
}

/// The newest of `requests` that have at most `rows` rows together, the oldest first.
fn newest(mut requests: Vec<Inputs>, rows: usize) -> Vec<Inputs> {
    let mut left = rows;
    let fits = |inputs: &&Inputs| match left.checked_sub(inputs.rows()) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    let kept = requests.iter().rev().take_while(fits).count();
    requests.split_off(requests.len() - kept)
}

/// Runs both versions on `requests`; also returns them as the new version takes them.
async fn compare(serving: &Model, new: &Model, requests: &[Inputs]) -> (Comparison, Vec<Inputs>) {
    let mut comparison = Comparison::default();
    let mut translated = Vec::new();
    let end = Instant::now() + TOTAL_TIME;
    for inputs in requests {
        if Instant::now() > end {
            break;
        }
        // What the serving version does not answer now says nothing about the new one.
        let (Ok(before), serving_time) = timed(serving, inputs).await else { continue };
        let rows = inputs.rows();
        match translate(serving.features(), inputs, new.features()) {
            Err(error) => comparison.fail(rows, reason(&error)),
            Ok(inputs) => {
                match timed(new, &inputs).await {
                    (Ok(after), new_time) => comparison.add(&before, &after, serving_time, new_time),
                    (Err(error), _) => comparison.fail(rows, error),
                }
                translated.push(inputs);
            }
        }
    }
    (comparison, translated)
}

/// A model's answers, and how long each row took.
async fn timed(model: &Model, inputs: &Inputs) -> (Result<Outputs, String>, Duration) {
    let start = Instant::now();
    let answered = model.replay(inputs, start + REQUEST_TIME).await;
    let rows = u32::try_from(inputs.rows()).unwrap_or(u32::MAX).max(1);
    (answered.map_err(|error| error.to_string()), start.elapsed() / rows)
}

/// The rows as another version's features take them, by the callers' names. What it has no place for is left out: the
/// signature has been judged before.
fn translate(from: &Features, inputs: &Inputs, to: &Features) -> Result<Inputs, InvalidInput> {
    let mut rows = to.rows();
    for row in 0..inputs.rows() {
        rows.begin();
        for (feature, cell) in from.list().iter().zip(inputs.row(row)) {
            if to.has(&feature.field) {
                rows.set(&feature.field, cell.into());
            }
        }
        rows.end();
    }
    rows.finish()
}

fn reason(error: &InvalidInput) -> String {
    match error.errors.first() {
        Some(first) => format!("`{}` must be {}", first.feature, first.expected),
        None => error.to_string(),
    }
}

impl Comparison {
    fn add(&mut self, before: &Outputs, after: &Outputs, serving_time: Duration, new_time: Duration) {
        let pairs = before.predictions().iter().zip(after.predictions());
        self.pairs.extend(pairs.map(|(before, after)| (before.value.clone(), after.value.clone())));
        self.serving_times.push(serving_time);
        self.new_times.push(new_time);
    }

    fn fail(&mut self, rows: usize, reason: String) {
        self.failed += rows;
        self.first_failure.get_or_insert(reason);
    }
}

fn judge(comparison: &Comparison, config: &Config) -> Finding {
    let rows = comparison.pairs.len();
    let refuse = |reason: String| Err(Stop::Refused(reason));
    if let Some(failure) = &comparison.first_failure {
        let (failed, total) = (comparison.failed, comparison.failed + rows);
        return refuse(format!(
            "it does not answer {failed} of {total} rows that the serving version answers: {failure}"
        ));
    }
    if rows < MIN_ROWS {
        return skipped(format!("not enough rows: {rows} of the {MIN_ROWS} it takes could be compared"));
    }
    let (disagreement, shift) = (disagreement(&comparison.pairs), shift(&comparison.pairs));
    let (before, after) = (median(&comparison.serving_times), median(&comparison.new_times));
    let ratio = after.as_secs_f64() / before.as_secs_f64().max(1e-9);
    let figures = format!(
        "of {rows} rows {:.1} % are answered differently, the answers shift by {shift:.3}, a row takes {ratio:.1} times \
         as long ({after:.1?})",
        disagreement * 100.0
    );
    if disagreement > config.max_disagreement {
        return refuse(format!("{figures}: more than max_disagreement = {}", config.max_disagreement));
    }
    if shift > config.max_shift {
        return refuse(format!("{figures}: more than max_shift = {}", config.max_shift));
    }
    if ratio > config.max_latency_ratio && after > FAST_ROW {
        return refuse(format!("{figures}: more than max_latency_ratio = {}", config.max_latency_ratio));
    }
    passed((), figures)
}

/// The share of rows that are answered differently: another class; or a number further away than the serving version's
/// answers are spread.
fn disagreement(pairs: &[(Value, Value)]) -> f64 {
    let numbers: Vec<f64> = pairs.iter().filter_map(|(before, _)| number(before)).collect();
    let tolerance = spread(&numbers);
    let differ = |(before, after): &&(Value, Value)| match (number(before), number(after)) {
        (Some(before), Some(after)) => (before - after).abs() > tolerance.max(before.abs() * 1e-6),
        _ => before != after,
    };
    share(pairs.iter().filter(differ).count(), pairs.len())
}

/// How far the distribution of the answers moved, 0 to 1: of numbers the largest difference between the two cumulative
/// distributions (Kolmogorov and Smirnov's), of classes half the sum of the differences of their shares.
fn shift(pairs: &[(Value, Value)]) -> f64 {
    let numbers: Option<(Vec<f64>, Vec<f64>)> =
        pairs.iter().map(|(before, after)| Some((number(before)?, number(after)?))).collect();
    match numbers {
        Some((before, after)) => shift_of_numbers(before, after),
        None => shift_of_classes(pairs),
    }
}

fn shift_of_numbers(mut before: Vec<f64>, mut after: Vec<f64>) -> f64 {
    before.sort_unstable_by(f64::total_cmp);
    after.sort_unstable_by(f64::total_cmp);
    let at_most = |sorted: &[f64], value: f64| share(sorted.partition_point(|other| *other <= value), sorted.len());
    let distance = |value: &f64| (at_most(&before, *value) - at_most(&after, *value)).abs();
    before.iter().chain(&after).map(distance).fold(0.0, f64::max)
}

fn shift_of_classes(pairs: &[(Value, Value)]) -> f64 {
    let mut shares: BTreeMap<String, f64> = BTreeMap::new();
    let one = share(1, pairs.len());
    for (before, after) in pairs {
        *shares.entry(before.to_string()).or_default() += one;
        *shares.entry(after.to_string()).or_default() -= one;
    }
    shares.values().map(|difference| difference.abs()).sum::<f64>() / 2.0
}

fn number(value: &Value) -> Option<f64> {
    if let Value::Number(number) = value { Some(*number) } else { None }
}

/// The standard deviation.
fn spread(numbers: &[f64]) -> f64 {
    let count = share(1, numbers.len());
    let mean: f64 = numbers.iter().map(|number| number * count).sum();
    numbers.iter().map(|number| (number - mean).powi(2) * count).sum::<f64>().sqrt()
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand rows at most")]
fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
