//! A reader of the embedded metric format that takes what its specification allows and nothing else.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use super::cloudwatch::Datum;

/// What CloudWatch Logs takes as one event in every edition of its limits, less what it adds itself.
const EVENT_MAX_BYTES: usize = 256 * 1024 - 26;

/// Every metric in `text`, whose lines are read at the moment `now`; or what is wrong with it.
pub(crate) fn read(text: &str, now: Timestamp) -> Result<Vec<Datum>, String> {
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("the last line has no end".into());
    }
    let mut datums = Vec::new();
    for line in text.lines() {
        datums.extend(read_line(line, now).map_err(|wrong| format!("{wrong}: {line:.300}"))?);
    }
    Ok(datums)
}

fn read_line(line: &str, now: Timestamp) -> Result<Vec<Datum>, String> {
    ensure(line.len() <= EVENT_MAX_BYTES, || format!("{} bytes", line.len()))?;
    let root: Map<String, Value> = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let aws = object(root.get("_aws"), "_aws")?;
    members(aws, &["Timestamp", "CloudWatchMetrics"])?;
    let at = aws["Timestamp"].as_i64().and_then(|ms| Timestamp::from_millisecond(ms).ok()).ok_or("Timestamp")?;
    let age = now.duration_since(at);
    ensure(age <= SignedDuration::from_hours(14 * 24) && age >= SignedDuration::from_hours(-2), || format!("{at}"))?;
    let mut known = vec!["_aws".to_owned()];
    let mut datums = Vec::new();
    for directive in array(&aws["CloudWatchMetrics"], "CloudWatchMetrics")? {
        datums.extend(read_directive(object(Some(directive), "directive")?, &root, at, &mut known)?);
    }
    // Other members are allowed, as fields of the log; ours has none, so that they would be a mistake.
    ensure(root.keys().all(|member| known.contains(member)), || "a member that nothing names".into())?;
    Ok(datums)
}

fn read_directive(
    directive: &Map<String, Value>,
    root: &Map<String, Value>,
    at: Timestamp,
    known: &mut Vec<String>,
) -> Result<Vec<Datum>, String> {
    members(directive, &["Namespace", "Dimensions", "Metrics"])?;
    let namespace = plain(directive.get("Namespace"), 255)?;
    let metrics = array(&directive["Metrics"], "Metrics")?;
    ensure((1..=100).contains(&metrics.len()), || format!("{} metrics", metrics.len()))?;
    let mut datums = Vec::new();
    for set in array(&directive["Dimensions"], "Dimensions")? {
        let dimensions = read_dimensions(array(set, "dimension set")?, root, known)?;
        for metric in metrics {
            let (name, unit) = read_definition(object(Some(metric), "metric")?)?;
            let values = read_values(root.get(&name).ok_or_else(|| format!("no member {name}"))?)?;
            known.push(name.clone());
            let key = (name, dimensions.clone());
            datums.push(Datum { namespace: namespace.clone(), key, at, unit, values });
        }
    }
    let mut names: Vec<_> = datums.iter().map(|datum| &datum.key).collect();
    names.sort();
    names.dedup();
    ensure(names.len() == datums.len(), || "a metric twice".into())?;
    Ok(datums)
}

fn read_dimensions(
    set: &[Value],
    root: &Map<String, Value>,
    known: &mut Vec<String>,
) -> Result<Vec<(String, String)>, String> {
    ensure(set.len() <= 30, || format!("{} dimensions", set.len()))?;
    let read = |name: &Value| {
        let name = plain(Some(name), 250)?;
        let value = plain(root.get(&name), 1024)?;
        known.push(name.clone());
        Ok((name, value))
    };
    set.iter().map(read).collect()
}

fn read_definition(metric: &Map<String, Value>) -> Result<(String, String), String> {
    members(metric, &["Name", "Unit", "StorageResolution"])?;
    let unit = plain(metric.get("Unit"), 255)?;
    let units = ["Seconds", "Microseconds", "Milliseconds", "Percent", "Count", "Count/Second", "None"];
    ensure(units.contains(&unit.as_str()), || format!("unit {unit}"))?;
    ensure(matches!(metric["StorageResolution"].as_i64(), Some(1 | 60)), || "StorageResolution".into())?;
    Ok((plain(metric.get("Name"), 255)?, unit))
}

/// A number, a list of numbers, or values with their counts and what they come to.
fn read_values(value: &Value) -> Result<Vec<(f64, f64)>, String> {
    let values = match value {
        Value::Number(_) => vec![(number(value)?, 1.0)],
        Value::Array(list) => list.iter().map(|value| Ok((number(value)?, 1.0))).collect::<Result<_, String>>()?,
        Value::Object(counted) => read_counted(counted)?,
        _ => return Err(format!("{value} is no measurement")),
    };
    ensure((1..=100).contains(&values.len()), || format!("{} values", values.len()))?;
    let legal = |value: f64| value.is_finite() && value.abs() <= 2f64.powi(360);
    ensure(values.iter().all(|(value, count)| legal(*value) && *count > 0.0), || "a value out of range".into())?;
    Ok(values)
}

fn read_counted(counted: &Map<String, Value>) -> Result<Vec<(f64, f64)>, String> {
    members(counted, &["Values", "Counts", "Min", "Max", "Count", "Sum"])?;
    let numbers = |name: &str| array(&counted[name], name)?.iter().map(number).collect::<Result<Vec<f64>, String>>();
    let (values, counts) = (numbers("Values")?, numbers("Counts")?);
    ensure(values.len() == counts.len(), || "not as many counts as values".into())?;
    let pairs: Vec<(f64, f64)> = values.into_iter().zip(counts).collect();
    let figure = |name: &str| number(&counted[name]);
    let count: f64 = pairs.iter().map(|(_, count)| count).sum();
    let (sum, size) = pairs.iter().fold((0.0, 0.0), |(sum, size), (v, c)| (sum + v * c, size + v.abs() * c));
    let least = pairs.iter().map(|(value, _)| *value).fold(f64::INFINITY, f64::min);
    let most = pairs.iter().map(|(value, _)| *value).fold(f64::NEG_INFINITY, f64::max);
    let near = |a: f64, b: f64| (a - b).abs() <= size * 1e-12;
    let agree = near(figure("Count")?, count)
        && near(figure("Sum")?, sum)
        && near(figure("Min")?, least)
        && near(figure("Max")?, most);
    ensure(agree || size == 0.0, || "the statistics are not those of the values".into())?;
    Ok(pairs)
}

fn members(of: &Map<String, Value>, names: &[&str]) -> Result<(), String> {
    let missing = names.iter().find(|name| !of.contains_key(**name));
    ensure(missing.is_none(), || format!("{missing:?} is missing"))?;
    ensure(of.len() == names.len(), || format!("more than {names:?}"))
}

fn object<'v>(value: Option<&'v Value>, what: &str) -> Result<&'v Map<String, Value>, String> {
    value.and_then(Value::as_object).ok_or_else(|| format!("{what} is no object"))
}

fn array<'v>(value: &'v Value, what: &str) -> Result<&'v [Value], String> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| format!("{what} is no list"))
}

fn plain(value: Option<&Value>, max: usize) -> Result<String, String> {
    let text = value.and_then(Value::as_str).ok_or("no text where one must be")?;
    let good = (1..=max).contains(&text.len())
        && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        && !text.trim().is_empty()
        && !text.starts_with(':');
    ensure(good, || format!("{text:?} is not a plain text of {max} letters"))?;
    Ok(text.to_owned())
}

fn number(value: &Value) -> Result<f64, String> {
    value.as_f64().ok_or_else(|| format!("{value} is no number"))
}

fn ensure(is_so: bool, wrong: impl FnOnce() -> String) -> Result<(), String> {
    if is_so { Ok(()) } else { Err(wrong()) }
}
