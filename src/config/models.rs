//! The `[[model]]` tables, and the `--model` flags that stand for one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Purpose;
use super::layer::{Node, Origin, Table, Value};
use super::reader::Section;
use super::value::{Parsed, Wrong, finite, list, map, number, text, text_as, texts, word};
use crate::capture::SamplingRate;
use crate::manager::ModelConfig;
use crate::model::features::{DefaultValue, Settings, Unseen};
use crate::model::outputs::{Decision, Rule};
use crate::model::{ModelName, Version};
use crate::registry::Select;

/// Puts `NAME`, `NAME@alias` or `NAME/version` over what is written: it chooses the version of the model of that name, or
/// adds one.
pub(super) fn from_flag(written: &mut Table, typed: &str) {
    let origin = Origin::Flag("--model");
    let node = |value| Node { value, origin: origin.clone() };
    let (name, select) = match typed.split_once(['@', '/']) {
        Some((name, alias)) if typed[name.len()..].starts_with('@') => (name, Some(format!("alias:{alias}"))),
        Some((name, version)) => (name, Some(format!("version:{version}"))),
        None => (typed, None),
    };
    let empty = || Node { value: Value::List(Vec::new()), origin: origin.clone() };
    let Value::List(models) = &mut written.entry("model".to_owned()).or_insert_with(empty).value else { return };
    let is_it =
        |table: &Table| matches!(table.get("name"), Some(Node { value: Value::Text(text), .. }) if text == name);
    let index = models.iter().position(|node| node.value.table().is_some_and(is_it)).unwrap_or_else(|| {
        models.push(node(Value::Table(Table::from([("name".to_owned(), node(Value::Text(name.to_owned())))]))));
        models.len() - 1
    });
    if let (Value::Table(table), Some(select)) = (&mut models[index].value, select) {
        table.insert("select".to_owned(), node(Value::Text(select)));
    }
}

/// The models, and the sampling rates of those that have one of their own.
pub(super) fn read(root: &mut Section<'_>, purpose: Purpose) -> (Vec<ModelConfig>, BTreeMap<ModelName, SamplingRate>) {
    let count = root.len("model");
    if count == 0 && purpose == Purpose::Serve && !root.has("model") {
        let text = "no model is configured, expected `--model NAME@alias` or a [[model]] table in the file of --config";
        root.mistake_at(Origin::Flag("--model"), text);
    }
    let mut names = BTreeSet::new();
    let mut rates = BTreeMap::new();
    let models = (0..count).filter_map(|index| model(root.element("model", index), &mut names, &mut rates)).collect();
    (models, rates)
}

fn model(
    mut s: Section<'_>,
    names: &mut BTreeSet<ModelName>,
    rates: &mut BTreeMap<ModelName, SamplingRate>,
) -> Option<ModelConfig> {
    let expected = "1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit";
    let name: Option<ModelName> = s.required("name", text_as(expected, |text| text.parse().ok()));
    if let Some(name) = &name
        && !names.insert(name.clone())
    {
        s.mistake("name", &format!("there is another model with the name \"{name}\""));
    }
    let registered_model = s.optional(
        "registered_model",
        text_as("a name without / \\ : that does not begin with a dot", registered_model),
    );
    let expected =
        "\"alias:<name>\", \"latest\", \"stage:Production\" (Staging, Archived, None) or \"version:<number>\"";
    let select = s.defaulted("select", text_as(expected, select));
    let decision = decision(&mut s);
    let features = features(s.section("features"));
    let rate = s.optional_section("capture").and_then(rate);
    s.finish();
    let name = name?;
    rates.extend(rate.map(|rate| (name.clone(), rate)));
    let registered_model = registered_model.unwrap_or_else(|| name.to_string());
    Some(ModelConfig { name, registered_model, select, features, decision })
}

/// MLflow's rule, and what keeps a name from being a path in a directory registry.
fn registered_model(text: &str) -> Option<String> {
    let legal = !text.contains(['/', '\\', ':']) && !text.contains(char::is_control) && !text.starts_with('.');
    (legal && (1..=256).contains(&text.len())).then(|| text.to_owned())
}

fn select(text: &str) -> Option<Select> {
    match text.split_once(':') {
        None => (text == "latest").then_some(Select::Latest),
        Some(("alias", alias)) => is_alias(alias).then(|| Select::Alias(alias.to_owned())),
        Some(("stage", stage)) => {
            let stages = ["Production", "Staging", "Archived", "None"];
            let known = stages.into_iter().find(|known| known.eq_ignore_ascii_case(stage))?;
            Some(Select::Stage(known.to_owned()))
        }
        Some(("version", number)) => number.parse().ok().filter(|version| *version >= Version(1)).map(Select::Version),
        Some(_) => None,
    }
}

/// MLflow's rule: letters, digits, `_` and `-`; and `latest` is no alias.
fn is_alias(text: &str) -> bool {
    let legal = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '-');
    !text.is_empty() && text != "latest" && text.chars().all(legal)
}

fn decision(s: &mut Section<'_>) -> Decision {
    let labels = s.optional("labels", map("a table of texts, such as { \"0\" = \"Poor\" }", text));
    let threshold = s.optional("threshold", number(0.0..=1.0));
    let bands = s.optional("bands", bands);
    if s.has("threshold") && s.has("bands") {
        s.mistake("bands", "expected either this or `threshold`, not both");
    }
    let rule = bands.or(threshold.map(Rule::Threshold)).unwrap_or_default();
    Decision { labels: labels.unwrap_or_default(), rule }
}

/// `[["Low", 0.35], ["Medium", 0.70], ["High"]]`: labels with their upper edges, ascending; the last has none.
fn bands(value: &Value) -> Parsed<Rule> {
    let expected = "bands with ascending upper edges and a last one without, such as [[\"Low\", 0.35], [\"High\"]]";
    let wrong = || Wrong::expected(expected);
    let mut bands = list(expected, band)(value)?;
    let Some((top, None)) = bands.pop() else { return Err(wrong()) };
    let below: Option<Vec<_>> = bands.into_iter().map(|(label, edge)| Some((label, edge?))).collect();
    let below = below.filter(|below| !below.is_empty() && below.is_sorted_by(|(_, low), (_, high)| low < high));
    Ok(Rule::Bands { below: below.ok_or_else(wrong)?, top })
}

/// A label and its upper edge, if it has one.
fn band(value: &Value) -> Parsed<(Arc<str>, Option<f64>)> {
    let wrong = || Wrong::expected("a label and its upper edge, such as [\"Low\", 0.35]");
    let Value::List(parts) = value else { return Err(wrong()) };
    let (label, edge) = match &parts[..] {
        [label] => (label, None),
        [label, edge] => (label, Some(finite(&edge.value).ok_or_else(wrong)?)),
        _ => return Err(wrong()),
    };
    Ok((text(&label.value).map_err(|_| wrong())?.into(), edge))
}

fn features(mut s: Section<'_>) -> Settings {
    let settings = Settings {
        coerce: s.switch("coerce"),
        rename: s.optional("rename", map("a table of texts, such as { idade = \"Age\" }", text)).unwrap_or_default(),
        default: s.optional("default", defaults).unwrap_or_default(),
        one_hot: s.optional("one_hot", texts).unwrap_or_default(),
        unseen: s.defaulted("unseen", word(&[("count", Unseen::Count), ("refuse", Unseen::Refuse)], &[])),
        columns: s.optional("columns", texts).unwrap_or_default(),
    };
    s.finish();
    settings
}

/// The model's own sampling rate.
fn rate(mut s: Section<'_>) -> Option<SamplingRate> {
    let rate = s.optional("rate", number(0.0..=1.0)).and_then(SamplingRate::new);
    s.finish();
    rate
}

fn defaults(value: &Value) -> Parsed<BTreeMap<String, DefaultValue>> {
    map("a table of texts, numbers and booleans, such as { Age = 40 }", default_value)(value)
}

fn default_value(value: &Value) -> Parsed<DefaultValue> {
    match value {
        Value::Boolean(truth) => Ok(DefaultValue::Boolean(*truth)),
        Value::Integer(number) => Ok(DefaultValue::Integer(*number)),
        Value::Float(number) if number.is_finite() => Ok(DefaultValue::Float(*number)),
        Value::Text(text) => Ok(DefaultValue::Text(text.clone())),
        _ => Err(Wrong::expected("a text, a finite number, true or false")),
    }
}
