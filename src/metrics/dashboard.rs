//! A CloudWatch dashboard and alarms for what the gateway sends, and what all of it costs a month.
//!
//! The dashboard finds its series with `SEARCH`, so that a new model, version, feature or class appears without a rewrite.
//! An alarm cannot be made of a `SEARCH`, so alarms watch each model's totals, which new versions and features are part of.

use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::error::DisplayErrorContext;
use serde_json::{Value, json};

use super::Mode;

pub use self::alarms::{Alarm, alarms};
pub use self::price::{Price, Way};

mod alarms;
mod price;

/// What the dashboard is about.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The CloudWatch namespace.
    pub namespace: String,
    /// The AWS region of the metrics.
    pub region: String,
    /// What is sent: a graph of anything else would be empty.
    pub mode: Mode,
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
    let period =
        if matches!(metric, "PSI" | "MaxPSI" | "DriftedFeatures" | "SampleRows") { DRIFT_PERIOD } else { PERIOD };
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
            graph("Rollout marks: a version came to serve", [search("Model,Version", "Switched", "Maximum")]),
            graph(
                "Rollbacks, versions refused",
                [search("Model", "Rollbacks", "Sum"), search("Model", "VersionsRefused", "Sum")],
            ),
            graph("Measurements that found no room", [search("", "SeriesRefused", "Sum")]),
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
            graph("Rows that drift is computed of", [search("Model", "SampleRows", "Maximum")]),
            graph("Accuracy by version, of labelled rows", [search("Model,Version", "Accuracy", "Maximum")]),
            graph("RMSE by version, of labelled rows", [search("Model,Version", "RMSE", "Maximum")]),
        ],
        vec![
            graph("Labelled rows by version", [search("Model,Version", "LabelledRows", "Maximum")]),
            graph("Throttled by plan", [search("Plan", "Throttled", "Sum")]),
            graph("Over quota by plan", [search("Plan", "QuotaExceeded", "Sum")]),
        ],
    ]
}

/// The graphs of `row` that will have data.
fn shown(row: Vec<Graph>, mode: &Mode) -> Vec<Graph> {
    let is_sent = |search: &Search| match mode {
        Mode::Full => true,
        Mode::Lean | Mode::SageMaker { .. } => is_lean(search),
    };
    row.into_iter().filter(|graph| graph.searches.iter().all(is_sent)).collect()
}

/// As [`Series::is_lean`](super::series::Series), by name.
fn is_lean(search: &Search) -> bool {
    let six = ["Requests", "Errors", "Latency", "Prediction", "MaxPSI", "DriftedFeatures"];
    match search.dimensions {
        "Model" => six.contains(&search.metric),
        "" => search.metric == "SeriesRefused",
        _ => false,
    }
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
    let rows = rows().into_iter().map(|row| shown(row, &scope.mode)).filter(|row| !row.is_empty());
    for (y, row) in (2_u32..).step_by(HEIGHT as usize).zip(rows) {
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
        let schema = if dimensions.is_empty() { String::new() } else { format!(",{dimensions}") };
        let expression =
            format!("SEARCH('{{\"{namespace}\"{schema}}} MetricName=\"{metric}\"', '{statistic}', {period})");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(namespace: &str) -> Scope {
        Scope {
            namespace: namespace.to_owned(),
            region: "eu-west-1".to_owned(),
            mode: Mode::Full,
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
            ("Model,Version", "Switched"),
            ("Plan", "QuotaExceeded"),
        ] {
            let search = format!(r#"{{\"Model Gate\",{dimensions}}} MetricName=\"{metric}\"'"#);
            assert!(body.contains(&search), "{search} in {body}");
        }
    }

    #[test]
    fn the_lean_mode_has_no_empty_graphs() {
        let body = body(&Scope { mode: Mode::Lean, ..scope("ModelGate") }).unwrap().to_string();
        assert!(body.contains("MaxPSI") && body.contains("SeriesRefused"), "{body}");
        assert!(!body.contains("Model,Version") && !body.contains("PredictionClass"), "{body}");
    }

    #[test]
    fn a_namespace_that_would_end_the_search_is_refused() {
        assert!(matches!(body(&scope("a'b")), Err(DashboardError::Namespace(_))));
        assert!(matches!(body(&scope("a\"b")), Err(DashboardError::Namespace(_))));
    }
}
