//! What CloudWatch demands of a dashboard's body and of an alarm, for the fake: its emulators take anything.
//!
//! Written from the reference of the dashboard body and of `PutMetricAlarm`, not from what the gateway sends.

use serde_json::Value;

const GRID: u64 = 24;
const WIDGETS_MAX: usize = 500;
const METRICS_OF_WIDGET_MAX: usize = 500;
const METRICS_MAX: usize = 2500;

const TYPES: [&str; 6] = ["metric", "text", "log", "alarm", "explorer", "custom"];
const VIEWS: [&str; 5] = ["timeSeries", "singleValue", "gauge", "bar", "pie"];

/// What is wrong with a body, if anything is.
pub(crate) fn check_body(text: &str) -> Result<(), String> {
    let body: Value = serde_json::from_str(text).map_err(|error| format!("the body is not JSON: {error}"))?;
    let members = body.as_object().ok_or("the body is no object")?;
    for name in members.keys() {
        known(name, &["start", "end", "periodOverride", "variables", "widgets"])?;
    }
    if let Some(over) = body.get("periodOverride") {
        known(over.as_str().unwrap_or("?"), &["auto", "inherit"])?;
    }
    let widgets = body["widgets"].as_array().ok_or("widgets is no list")?;
    ensure(widgets.len() <= WIDGETS_MAX, "too many widgets")?;
    let counts: Vec<usize> = widgets.iter().map(check_widget).collect::<Result<_, _>>()?;
    ensure(counts.iter().sum::<usize>() <= METRICS_MAX, "too many metrics")?;
    check_places(widgets)
}

fn check_widget(widget: &Value) -> Result<usize, String> {
    let members = widget.as_object().ok_or("a widget is no object")?;
    for name in members.keys() {
        known(name, &["type", "x", "y", "width", "height", "properties"])?;
    }
    let kind = widget["type"].as_str().ok_or("a widget has no type")?;
    known(kind, &TYPES)?;
    match kind {
        "metric" => check_metric(&widget["properties"]).map_err(|wrong| format!("{wrong} in {widget}")),
        "text" => widget["properties"]["markdown"].as_str().map(|_| 0).ok_or_else(|| "no markdown".to_owned()),
        _ => Ok(0),
    }
}

fn check_metric(properties: &Value) -> Result<usize, String> {
    let members = properties.as_object().ok_or("properties is no object")?;
    let names = ["title", "region", "view", "stacked", "period", "stat", "yAxis", "metrics", "annotations", "legend"];
    for name in members.keys() {
        known(name, &names)?;
    }
    ensure(properties["region"].as_str().is_some_and(|region| region.contains('-')), "no region")?;
    known(properties["view"].as_str().unwrap_or("timeSeries"), &VIEWS)?;
    if let Some(period) = properties.get("period") {
        ensure(period.as_i64().is_some_and(is_period), "period")?;
    }
    for line in properties["annotations"]["horizontal"].as_array().into_iter().flatten() {
        ensure(line["value"].is_number(), "an annotation without a value")?;
    }
    let metrics = properties["metrics"].as_array().ok_or("metrics is no list")?;
    ensure((1..=METRICS_OF_WIDGET_MAX).contains(&metrics.len()), "number of metrics")?;
    let mut ids: Vec<&str> = Vec::new();
    for metric in metrics {
        let parts = metric.as_array().filter(|parts| !parts.is_empty()).ok_or("a metric is no list")?;
        let options = parts.last().filter(|part| part.is_object());
        let names = &parts[..parts.len() - usize::from(options.is_some())];
        ensure(names.iter().all(Value::is_string), "a metric of other than texts")?;
        match options.and_then(|options| options["expression"].as_str()) {
            Some(expression) => check_expression(expression)?,
            None => ensure(names.len() >= 2 && names.len() % 2 == 0, "a namespace, a name and pairs")?,
        }
        if let Some(id) = options.and_then(|options| options["id"].as_str()) {
            ensure(id.starts_with(|first: char| first.is_ascii_lowercase()) && !ids.contains(&id), "an id")?;
            ids.push(id);
        }
    }
    Ok(metrics.len())
}

/// `SEARCH('{namespace,dimension,…} terms', 'statistic', period)`
fn check_expression(expression: &str) -> Result<(), String> {
    let inner = expression.strip_prefix("SEARCH('").and_then(|rest| rest.strip_suffix(')')).ok_or("no SEARCH")?;
    let parts: Vec<&str> = inner.split('\'').collect();
    let [query, ", ", statistic, period] = parts[..] else { return Err(format!("quotes in {expression}")) };
    let schema = query.strip_prefix('{').and_then(|rest| rest.split_once("} ")).ok_or("no schema")?;
    let (schema, terms) = schema;
    ensure(schema.split(',').all(|name| !name.is_empty() && name.matches('"').count() % 2 == 0), "the schema")?;
    ensure(terms.starts_with("MetricName=\"") && terms.ends_with('"'), "the terms")?;
    check_statistic(statistic)?;
    let period = period.strip_prefix(", ").and_then(|period| period.parse().ok());
    ensure(period.is_some_and(is_period), "the period of a search")
}

fn check_statistic(statistic: &str) -> Result<(), String> {
    let is_percentile = statistic.strip_prefix('p').and_then(|rest| rest.parse::<f64>().ok());
    let simple = ["SampleCount", "Average", "Sum", "Minimum", "Maximum"].contains(&statistic);
    ensure(simple || is_percentile.is_some_and(|share| (0.0..=100.0).contains(&share)), "the statistic")
}

fn is_period(seconds: i64) -> bool {
    matches!(seconds, 1 | 5 | 10 | 30) || (seconds > 0 && seconds % 60 == 0)
}

/// Every widget is on the grid, and none on another.
fn check_places(widgets: &[Value]) -> Result<(), String> {
    let mut places: Vec<[u64; 4]> = Vec::new();
    for widget in widgets {
        let number = |name: &str| widget[name].as_u64().ok_or_else(|| format!("no {name}"));
        let [x, y, width, height] = [number("x")?, number("y")?, number("width")?, number("height")?];
        ensure(width >= 1 && x + width <= GRID && (1..=1000).contains(&height), "a widget off the grid")?;
        let overlaps = |[other_x, other_y, other_width, other_height]: &[u64; 4]| {
            x < other_x + other_width && *other_x < x + width && y < other_y + other_height && *other_y < y + height
        };
        ensure(!places.iter().any(overlaps), "a widget on another")?;
        places.push([x, y, width, height]);
    }
    Ok(())
}

/// An alarm as the fake reads it from the call.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Alarm {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) metric: String,
    pub(crate) dimensions: Vec<(String, String)>,
    pub(crate) statistic: String,
    pub(crate) period: i64,
    pub(crate) periods: i64,
    pub(crate) missing: String,
    pub(crate) operator: String,
    pub(crate) actions: usize,
}

/// What is wrong with an alarm, if anything is.
pub(crate) fn check_alarm(alarm: &Alarm) -> Result<(), String> {
    ensure((1..=255).contains(&alarm.name.len()), "the alarm's name")?;
    ensure(!alarm.namespace.is_empty() && !alarm.metric.is_empty(), "the alarm's metric")?;
    check_statistic(&alarm.statistic)?;
    ensure(matches!(alarm.period, 10 | 30) || (alarm.period > 0 && alarm.period % 60 == 0), "the alarm's period")?;
    ensure(alarm.periods >= 1 && alarm.period * alarm.periods <= 86_400, "the alarm looks back more than a day")?;
    known(&alarm.missing, &["breaching", "notBreaching", "ignore", "missing"])?;
    let operators = ["GreaterThanThreshold", "GreaterThanOrEqualToThreshold", "LessThanThreshold"];
    known(&alarm.operator, &operators)?;
    ensure(alarm.actions <= 5, "more than five actions")
}

fn known(word: &str, words: &[&str]) -> Result<(), String> {
    ensure(words.contains(&word), &format!("`{word}` is none of {words:?}"))
}

fn ensure(is_so: bool, wrong: &str) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(wrong.to_owned()) }
}
