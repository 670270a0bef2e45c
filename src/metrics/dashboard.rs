//! A CloudWatch dashboard and alarms for what the gateway sends, and what all of it costs a month.
//!
//! The dashboard finds its series with `SEARCH`, so that a new model, version, feature or class appears without a rewrite.
//! An alarm cannot be made of a `SEARCH`, so alarms watch each model's totals, which new versions and features are part of.

use std::fmt;

use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::error::DisplayErrorContext;
use aws_sdk_cloudwatch::types::{ComparisonOperator, Dimension, Statistic};
use serde_json::{Value, json};

/// What the dashboard is about.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The CloudWatch namespace.
    pub namespace: String,
    /// The AWS region of the metrics.
    pub region: String,
    /// The models that have alarms.
    pub models: Vec<String>,
    /// Who is told of an alarm: ARNs, such as that of an SNS topic; CloudWatch takes five at most.
    pub actions: Vec<String>,
}

/// Why a dashboard cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DashboardError {
    /// `SEARCH` has no way to write this name.
    #[error("the namespace `{0}` has a quote or backslash in it, which a search of CloudWatch cannot name")]
    Namespace(String),
    /// CloudWatch allows other names only.
    #[error("`{0}` is not a dashboard's name: use 1 to 255 of A-Z a-z 0-9 - _")]
    Name(String),
    /// More actions than an alarm takes.
    #[error("an alarm has five actions at most")]
    Actions,
    /// CloudWatch refused a call, or was not reached.
    #[error("CloudWatch did not take {what}: {reason}")]
    Refused {
        /// What was put.
        what: String,
        /// What CloudWatch says.
        reason: String,
    },
}

/// The grid of a dashboard is this wide.
const GRID: u32 = 24;

/// Rows of the grid a graph is high.
const HEIGHT: u32 = 6;

/// Seconds of one point of a graph, and of one of drift, which moves slowly.
const PERIOD: u32 = 300;
const DRIFT_PERIOD: u32 = 3600;

/// One graph: its title, its series and what is special about it.
struct Graph {
    title: &'static str,
    searches: Vec<Search>,
    more: Value,
}

/// The series of one metric with these dimensions.
struct Search {
    dimensions: &'static str,
    metric: &'static str,
    statistic: &'static str,
    period: u32,
}

fn search(dimensions: &'static str, metric: &'static str, statistic: &'static str) -> Search {
    let period = if matches!(metric, "PSI" | "MaxPSI" | "DriftedFeatures") { DRIFT_PERIOD } else { PERIOD };
    Search { dimensions, metric, statistic, period }
}

fn graph(title: &'static str, searches: impl Into<Vec<Search>>) -> Graph {
    Graph { title, searches: searches.into(), more: json!({}) }
}

/// The rows of graphs, from the top.
fn rows() -> Vec<Vec<Graph>> {
    let thresholds = json!([{ "label": "watch", "value": 0.1 }, { "label": "act", "value": 0.25 }]);
    let annotations = json!({ "annotations": { "horizontal": thresholds } });
    vec![
        vec![
            graph("Requests by model", [search("Model", "Requests", "Sum")]),
            graph("Share of failed requests by model", [search("Model", "Errors", "Average")]),
            graph(
                "Latency by model, p50 and p99 (ms)",
                [search("Model", "Latency", "p50"), search("Model", "Latency", "p99")],
            ),
        ],
        vec![
            graph("Requests by version", [search("Model,Version", "Requests", "Sum")]),
            graph("Share of failed requests by version", [search("Model,Version", "Errors", "Average")]),
            graph("Latency by version, p99 (ms)", [search("Model,Version", "Latency", "p99")]),
        ],
        vec![
            graph(
                "Score, p10, p50 and p90",
                [
                    search("Model", "Prediction", "p10"),
                    search("Model", "Prediction", "p50"),
                    search("Model", "Prediction", "p90"),
                ],
            ),
            graph("Score by version, mean", [search("Model,Version", "Prediction", "Average")]),
            Graph {
                more: json!({ "stacked": true }),
                ..graph("Predictions by class", [search("Model,Class", "PredictionClass", "Sum")])
            },
        ],
        vec![
            Graph { more: annotations.clone(), ..graph("PSI by feature", [search("Model,Feature", "PSI", "Maximum")]) },
            Graph { more: annotations, ..graph("Largest PSI by model", [search("Model", "MaxPSI", "Maximum")]) },
            graph("Drifted features by model", [search("Model", "DriftedFeatures", "Maximum")]),
        ],
        vec![
            graph("Features, mean", [search("Model,Feature", "FeatureValue", "Average")]),
            graph("Features by category", [search("Model,Feature,Category", "FeatureCategory", "Sum")]),
            graph(
                "Features, missing and unseen",
                [search("Model,Feature", "FeatureMissing", "Sum"), search("Model,Feature", "FeatureUnseen", "Sum")],
            ),
        ],
        vec![
            graph("Throttled by plan", [search("Plan", "Throttled", "Sum")]),
            graph("Over quota by plan", [search("Plan", "QuotaExceeded", "Sum")]),
        ],
    ]
}

/// The dashboard's body.
///
/// # Errors
/// When CloudWatch could not search in the namespace.
pub fn body(scope: &Scope) -> Result<Value, DashboardError> {
    if scope.namespace.contains(['"', '\'', '\\']) {
        return Err(DashboardError::Namespace(scope.namespace.clone()));
    }
    let text = "Written by `modelgate dashboard put`, which replaces it as a whole. \
                PSI above 0.1: watch; above 0.25: act. A graph without data has had none for two weeks.";
    let properties = json!({ "markdown": text });
    let mut widgets =
        vec![json!({ "type": "text", "x": 0, "y": 0, "width": GRID, "height": 2, "properties": properties })];
    for (y, row) in (2_u32..).step_by(HEIGHT as usize).zip(rows()) {
        let width = GRID / 3;
        for (x, graph) in (0_u32..).step_by(width as usize).zip(row) {
            let place = json!({ "type": "metric", "x": x, "y": y, "width": width, "height": HEIGHT });
            widgets.push(merged(place, json!({ "properties": graph.properties(scope) })));
        }
    }
    Ok(json!({ "start": "-PT24H", "periodOverride": "inherit", "widgets": widgets }))
}

impl Graph {
    fn properties(self, scope: &Scope) -> Value {
        let searches = self.searches.iter().enumerate();
        let metrics: Vec<Value> = searches.map(|(index, search)| search.row(index, scope)).collect();
        let common = json!({
            "title": self.title,
            "region": scope.region,
            "view": "timeSeries",
            "period": self.searches.first().map_or(PERIOD, |search| search.period),
            "yAxis": { "left": { "showUnits": false } },
            "metrics": metrics,
        });
        merged(common, self.more)
    }
}

impl Search {
    fn row(&self, index: usize, scope: &Scope) -> Value {
        let Self { dimensions, metric, statistic, period } = self;
        let namespace = &scope.namespace;
        let expression =
            format!("SEARCH('{{\"{namespace}\",{dimensions}}} MetricName=\"{metric}\"', '{statistic}', {period})");
        json!([{ "expression": expression, "id": format!("e{index}"), "label": "" }])
    }
}

/// The members of both objects.
fn merged(mut one: Value, other: Value) -> Value {
    if let (Value::Object(members), Value::Object(more)) = (&mut one, other) {
        members.extend(more);
    }
    one
}

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

/// Puts the dashboard in place of the one of this name, and every alarm in place of its own. Gives back what CloudWatch
/// remarks on the dashboard.
///
/// # Errors
/// When CloudWatch refuses one of them; those before it are in place.
pub async fn put(client: &Client, name: &str, scope: &Scope) -> Result<Vec<String>, DashboardError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if !(1..=255).contains(&name.len()) || !name.bytes().all(legal) {
        return Err(DashboardError::Name(name.to_owned()));
    }
    if scope.actions.len() > 5 {
        return Err(DashboardError::Actions);
    }
    let body = body(scope)?.to_string();
    let sent = client.put_dashboard().dashboard_name(name).dashboard_body(body).send().await;
    let answer = sent.map_err(|error| refused("the dashboard", &error))?;
    for alarm in alarms(scope) {
        alarm.put(client, scope).await?;
    }
    let remarks = answer.dashboard_validation_messages().iter();
    Ok(remarks.filter_map(|remark| remark.message()).map(str::to_owned).collect())
}

fn refused(what: &str, error: &(impl std::error::Error + 'static)) -> DashboardError {
    DashboardError::Refused { what: what.to_owned(), reason: DisplayErrorContext(error).to_string() }
}

impl Alarm {
    async fn put(&self, client: &Client, scope: &Scope) -> Result<(), DashboardError> {
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

/// What the metrics, the dashboard and its alarms cost a month.
///
/// Every distinct name with its dimensions is one metric. The prices are the list prices of us-east-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Models, each with one version at a time.
    pub models: u32,
    /// Features of each.
    pub features: u32,
    /// Usage plans.
    pub plans: u32,
    /// Alarms.
    pub alarms: u32,
    /// Minutes between two flushes, in seconds.
    pub interval_seconds: u64,
}

/// Requests, errors, latency and score, of the model and of its version.
const SERIES_OF_REQUESTS: u32 = 8;
/// What most classifications have.
const SERIES_OF_CLASSES: u32 = 3;
/// Value, PSI and distance; a text feature has a series for each category in place of the value.
const SERIES_OF_FEATURE: u32 = 3;
/// Largest PSI, drifted features, rows.
const SERIES_OF_DRIFT: u32 = 3;
/// Throttled and over quota.
const SERIES_OF_PLAN: u32 = 2;

/// Dollars for each of the first so many metrics of a month; then the next.
const TIERS: [(f64, f64); 4] = [(10_000.0, 0.30), (240_000.0, 0.10), (750_000.0, 0.05), (f64::INFINITY, 0.02)];
const DASHBOARD: f64 = 3.0;
const ALARM: f64 = 0.10;
const CALL: f64 = 0.01 / 1000.0;
/// `PutMetricData` takes this many metrics a call.
const METRICS_A_CALL: u32 = 1000;
const SECONDS_A_MONTH: u64 = 30 * 24 * 3600;

impl Price {
    /// How many metrics are sent.
    #[must_use]
    pub fn series(&self) -> u32 {
        let of_model = SERIES_OF_REQUESTS + SERIES_OF_CLASSES + SERIES_OF_DRIFT + self.features * SERIES_OF_FEATURE;
        self.models * of_model + self.plans * SERIES_OF_PLAN + 1
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

    /// Dollars a month for the calls of one gateway.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a month has few seconds")]
    pub fn calls(&self) -> f64 {
        let flushes = (SECONDS_A_MONTH / self.interval_seconds.max(1)) as f64;
        flushes * f64::from(self.series().div_ceil(METRICS_A_CALL)) * CALL
    }

    /// Dollars a month for the alarms.
    #[must_use]
    pub fn alarms(&self) -> f64 {
        f64::from(self.alarms) * ALARM
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (series, metrics, calls, alarms) = (self.series(), self.metrics(), self.calls(), self.alarms());
        let Self { models, features, .. } = self;
        writeln!(f, "A month at the list prices of us-east-1 (check https://aws.amazon.com/cloudwatch/pricing/):")?;
        writeln!(f, "  {series:>6} metrics    ${metrics:>9.2}   {models} models, {features} numeric features each")?;
        writeln!(f, "         calls      ${calls:>9.2}   for each gateway; a million calls a month are free")?;
        writeln!(f, "       1 dashboard  ${DASHBOARD:>9.2}   three are free")?;
        writeln!(f, "  {:>6} alarms     ${alarms:>9.2}   ten are free", self.alarms)?;
        writeln!(f, "         total      ${:>9.2}   before what is free", metrics + calls + DASHBOARD + alarms)?;
        writeln!(
            f,
            "A text feature has a metric for each category; gaps and unseen categories are metrics where they occur."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(models: u32, features: u32) -> Price {
        Price { models, features, plans: 0, alarms: 0, interval_seconds: 60 }
    }

    #[test]
    fn the_price_is_that_of_every_tier() {
        let one = price(1, 21);
        assert_eq!(one.series(), 8 + 3 + 3 + 63 + 1);
        assert_eq!(format!("{:.2} {:.2}", one.metrics(), one.calls()), "23.40 0.43");
        let many = price(200, 21);
        assert_eq!(many.series(), 15_401);
        assert_eq!(format!("{:.2} {:.2}", many.metrics(), many.calls()), "3540.10 6.91");
    }

    fn scope(namespace: &str) -> Scope {
        Scope {
            namespace: namespace.to_owned(),
            region: "eu-west-1".to_owned(),
            models: vec!["credit-score".to_owned()],
            actions: Vec::new(),
        }
    }

    #[test]
    fn every_metric_that_is_sent_is_on_the_dashboard() {
        let body = body(&scope("Model Gate")).unwrap().to_string();
        for (dimensions, metric) in [
            ("Model", "Requests"),
            ("Model,Version", "Latency"),
            ("Model,Class", "PredictionClass"),
            ("Model,Feature", "PSI"),
            ("Plan", "QuotaExceeded"),
        ] {
            let search = format!(r#"{{\"Model Gate\",{dimensions}}} MetricName=\"{metric}\"'"#);
            assert!(body.contains(&search), "{search} in {body}");
        }
    }

    #[test]
    fn a_namespace_that_would_end_the_search_is_refused() {
        assert!(matches!(body(&scope("a'b")), Err(DashboardError::Namespace(_))));
        assert!(matches!(body(&scope("a\"b")), Err(DashboardError::Namespace(_))));
    }
}
