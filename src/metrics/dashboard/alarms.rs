//! Alarms on what all versions of a model share, because an alarm cannot be made of a `SEARCH`.

use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::types::{ComparisonOperator, Dimension, Statistic};

use super::{DashboardError, Scope, refused};

/// What an alarm watches.
#[derive(Clone, Debug, PartialEq)]
pub struct Alarm {
    /// Its name: `<namespace> <model> <what>`.
    pub name: String,
    /// Why it rings, for the person it wakes.
    pub description: String,
    /// The metric.
    pub metric: &'static str,
    /// The model, where the metric has one.
    pub model: Option<String>,
    /// `Average`, `Maximum`, `Sum` or a percentile.
    pub statistic: &'static str,
    /// Rings above this…
    pub above: f64,
    /// …for this many periods…
    pub periods: i32,
    /// …of so many seconds.
    pub period: i32,
}

/// The alarms: three a model, and one for measurements that found no room.
#[must_use]
pub fn alarms(scope: &Scope) -> Vec<Alarm> {
    let of_model = |model: &String| {
        let alarm = |what: &str, description: &str, metric, statistic, above, periods, period| Alarm {
            name: format!("{} {model} {what}", scope.namespace),
            description: description.to_owned(),
            metric,
            model: Some(model.clone()),
            statistic,
            above,
            periods,
            period,
        };
        [
            alarm(
                "errors",
                "More than 1 % of requests fail, not through their callers",
                "Errors",
                "Average",
                0.01,
                2,
                300,
            ),
            alarm("latency", "One request in a hundred takes more than a second", "Latency", "p99", 1000.0, 3, 300),
            alarm("drift", "A feature has drifted from its baseline", "DriftedFeatures", "Maximum", 0.0, 2, 3600),
        ]
    };
    let refused = Alarm {
        name: format!("{} series refused", scope.namespace),
        description: "Measurements found no room: raise metrics.max_series".to_owned(),
        metric: "SeriesRefused",
        model: None,
        statistic: "Sum",
        above: 0.0,
        periods: 1,
        period: 3600,
    };
    scope.models.iter().flat_map(of_model).chain([refused]).collect()
}

impl Alarm {
    pub(super) async fn put(&self, client: &Client, scope: &Scope) -> Result<(), DashboardError> {
        let model = self.model.as_ref().map(|model| Dimension::builder().name("Model").value(model).build());
        let call = client
            .put_metric_alarm()
            .alarm_name(&self.name)
            .alarm_description(&self.description)
            .namespace(&scope.namespace)
            .metric_name(self.metric)
            .set_dimensions(model.map(|model| vec![model]))
            .comparison_operator(ComparisonOperator::GreaterThanThreshold)
            .threshold(self.above)
            .period(self.period)
            .evaluation_periods(self.periods)
            // Nobody asking is no reason to wake somebody.
            .treat_missing_data("notBreaching")
            .set_alarm_actions((!scope.actions.is_empty()).then(|| scope.actions.clone()));
        let call = match Statistic::from(self.statistic) {
            Statistic::Average | Statistic::Maximum | Statistic::Sum => call.statistic(self.statistic.into()),
            _ => call.extended_statistic(self.statistic),
        };
        let sent = call.send().await;
        sent.map(|_| ()).map_err(|error| refused(&format!("the alarm `{}`", self.name), &error))
    }
}
