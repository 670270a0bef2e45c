//! What the metrics, the dashboard and its alarms cost a month.
//!
//! The prices are the list prices of us-east-1 as known in November 2026, from
//! <https://aws.amazon.com/cloudwatch/pricing/>. Every distinct name with its dimensions is one metric.

use std::fmt;

use super::Mode;

/// What there will be to pay for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// Models, each with one version at a time.
    pub models: u32,
    /// Numeric features of each.
    pub features: u32,
    /// Text features of each, beside those.
    pub text_features: u32,
    /// Categories of a text feature.
    pub categories: u32,
    /// Classes that a model predicts.
    pub classes: u32,
    /// Usage plans.
    pub plans: u32,
    /// Alarms.
    pub alarms: u32,
    /// Seconds between two flushes.
    pub interval_seconds: u64,
    /// What is sent.
    pub mode: Mode,
    /// How it is sent.
    pub way: Way,
}

/// How metrics come into CloudWatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By calls of its API.
    Api,
    /// By lines of its logs.
    Logs,
}

/// Requests, errors, latency and score of a model, its largest PSI and its drifted features.
const LEAN: u32 = 6;
/// Requests, errors, latency and score of its version.
const OF_VERSION: u32 = 4;
/// PSI and distance.
const OF_DRIFT: u32 = 2;
/// What Model Monitor says of a number: its values, whether there is one, and the distance.
const OF_MONITOR: u32 = 3;
/// Throttled and over quota.
const OF_PLAN: u32 = 2;

/// Dollars for each of the first so many metrics of a month; then the next.
const TIERS: [(f64, f64); 4] = [(10_000.0, 0.30), (240_000.0, 0.10), (750_000.0, 0.05), (f64::INFINITY, 0.02)];
const DASHBOARD: f64 = 3.0;
const ALARM: f64 = 0.10;
const CALL: f64 = 0.01 / 1000.0;
const LOGS_GIGABYTE: f64 = 0.50;
/// `PutMetricData` takes this many metrics a call.
const METRICS_A_CALL: u32 = 1000;
/// Bytes that a metric takes in a line, about: most have one value, a busy one has a hundred.
const BYTES_A_METRIC: f64 = 400.0;
const SECONDS_A_MONTH: u64 = 30 * 24 * 3600;

impl Price {
    /// How many metrics are sent.
    #[must_use]
    pub fn series(&self) -> u32 {
        // The one that tells of refused measurements belongs to no model.
        self.models * self.of_model() + 1 + if self.mode == Mode::Full { self.plans * OF_PLAN } else { 0 }
    }

    fn of_model(&self) -> u32 {
        let Self { features, text_features, categories, classes, .. } = self;
        match self.mode {
            Mode::Lean => LEAN,
            // A text has no values there.
            Mode::SageMaker { .. } => LEAN + features * OF_MONITOR + text_features * (OF_MONITOR - 1) + 2,
            Mode::Full => {
                let rows = 1;
                let of_outputs = 2 * OF_DRIFT;
                let of_texts = text_features * (categories + OF_DRIFT);
                LEAN + rows + OF_VERSION + classes + of_outputs + features * (1 + OF_DRIFT) + of_texts
            }
        }
    }

    /// Dollars a month for the metrics.
    #[must_use]
    pub fn metrics(&self) -> f64 {
        let tier = |(left, sum): (f64, f64), (size, each): &(f64, f64)| {
            let here = left.min(*size);
            (left - here, sum + here * each)
        };
        TIERS.iter().fold((f64::from(self.series()), 0.0), tier).1
    }

    /// Dollars a month for bringing the metrics of one gateway there.
    #[must_use]
    pub fn transport(&self) -> f64 {
        match self.way {
            Way::Api => self.flushes() * f64::from(self.series().div_ceil(METRICS_A_CALL)) * CALL,
            Way::Logs => self.flushes() * f64::from(self.series()) * BYTES_A_METRIC / 1e9 * LOGS_GIGABYTE,
        }
    }

    /// Dollars a month for the alarms.
    #[must_use]
    pub fn alarms(&self) -> f64 {
        f64::from(self.alarms) * ALARM
    }

    /// Dollars a month for all of it.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.metrics() + self.transport() + DASHBOARD + self.alarms()
    }

    #[expect(clippy::cast_precision_loss, reason = "a month has few seconds")]
    fn flushes(&self) -> f64 {
        (SECONDS_A_MONTH / self.interval_seconds.max(1)) as f64
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (series, metrics, transport, alarms) = (self.series(), self.metrics(), self.transport(), self.alarms());
        let Self { models, features, text_features, .. } = self;
        let way = match self.way {
            Way::Api => "calls     ",
            Way::Logs => "log lines ",
        };
        writeln!(f, "{series} metrics, ${:.2} a month before what is free", self.total())?;
        writeln!(
            f,
            "at the list prices of us-east-1 in November 2026 (check https://aws.amazon.com/cloudwatch/pricing/):"
        )?;
        writeln!(
            f,
            "  {series:>6} metrics    ${metrics:>9.2}   {models} models of {features} numeric and {text_features} text features"
        )?;
        writeln!(f, "         {way} ${transport:>9.2}   for each gateway")?;
        writeln!(f, "       1 dashboard  ${DASHBOARD:>9.2}   three are free")?;
        writeln!(f, "  {:>6} alarms     ${alarms:>9.2}   ten are free", self.alarms)?;
        writeln!(
            f,
            "Gaps, unseen categories, rollouts, labels and a second version are metrics in the hours they occur."
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn price(models: u32, features: u32) -> Price {
        Price {
            models,
            features,
            text_features: 0,
            categories: 10,
            classes: 3,
            plans: 0,
            alarms: 0,
            interval_seconds: 60,
            mode: Mode::Full,
            way: Way::Api,
        }
    }

    #[test]
    fn the_price_is_that_of_every_tier() {
        let one = price(1, 21);
        assert_eq!(one.series(), 6 + 1 + 4 + 3 + 4 + 63 + 1);
        assert_eq!(format!("{:.2} {:.2}", one.metrics(), one.transport()), "24.60 0.43");
        let many = price(200, 21);
        assert_eq!(many.series(), 16_201);
        assert_eq!(format!("{:.2} {:.2}", many.metrics(), many.transport()), "3620.10 7.34");
    }

    #[test]
    fn a_mode_that_sends_less_costs_less() {
        let lean = Price { mode: Mode::Lean, ..price(1, 21) };
        assert_eq!((lean.series(), format!("{:.2}", lean.metrics())), (7, "2.10".to_owned()));
        let mode = Mode::SageMaker { schedules: BTreeMap::new() };
        assert_eq!(Price { mode, text_features: 4, ..price(1, 17) }.series(), 6 + 3 * 17 + 2 * 4 + 2 + 1);
    }

    #[test]
    fn logs_are_paid_by_their_size() {
        let logs = Price { way: Way::Logs, ..price(1, 21) };
        assert_eq!(format!("{:.2}", logs.transport()), "0.71");
    }
}
