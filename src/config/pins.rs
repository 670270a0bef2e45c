//! The `pins` of a plan: versions that its callers stay on until a date.

use std::collections::{BTreeMap, BTreeSet};

use super::Purpose;
use super::layer::{Table, Value};
use super::reader::Section;
use super::value::{Parsed, Wrong, list, text_as};
use crate::auth::{Pin, PinTo, PlanPins, moment};
use crate::manager::ModelConfig;

const EXPECTED: &str =
    "pins such as [{ model = \"credit-score\", select = \"version:3\", until = \"2027-01-31\" }], one for each model";

/// The pins of the plan in `s`. `before` are those of the plans before it: each version they ask for takes memory.
pub(super) fn read(
    s: &mut Section<'_>,
    models: &[ModelConfig],
    purpose: Purpose,
    max_held: usize,
    before: &PlanPins,
) -> Vec<Pin> {
    let pins = s.optional("pins", list(EXPECTED, pin)).unwrap_or_default();
    let known = |name: &str| models.iter().any(|model| model.name.as_str() == name);
    let mut named = BTreeSet::new();
    let mut held: BTreeMap<&str, BTreeSet<&PinTo>> = BTreeMap::new();
    for pin in before.values().flatten() {
        held.entry(&pin.model).or_default().insert(&pin.to);
    }
    for Pin { model, to, .. } in &pins {
        if purpose == Purpose::Serve && !known(model) {
            s.mistake("pins", &format!("there is no [[model]] with the name \"{model}\""));
        }
        if !named.insert(model) {
            s.mistake("pins", &format!("the model \"{model}\" is pinned twice"));
        }
        let of_model = held.entry(model).or_default();
        if of_model.insert(to) && of_model.len() > max_held {
            s.mistake(
                "pins",
                &format!("plans pin more versions of \"{model}\" than are held: {max_held} (engine.max_held)"),
            );
        }
    }
    pins
}

fn pin(value: &Value) -> Parsed<Pin> {
    let wrong = || {
        Wrong::expected("a pin, such as { model = \"credit-score\", select = \"version:3\", until = \"2027-01-31\" }")
    };
    let Value::Table(table) = value else { return Err(wrong()) };
    if table.len() != 3 {
        return Err(wrong());
    }
    let model = member(table, "model", "a model's name", |text| Some(text.into())).ok_or_else(wrong)??;
    let expected = "\"version:<number>\" or \"alias:<name>\"";
    let to = member(table, "select", expected, |text| text.parse().ok()).ok_or_else(wrong)??;
    let expected = "a day such as \"2027-01-31\", from whose beginning in UTC the pin holds no more, or a moment such as \
                    \"2027-01-31T12:00:00Z\"";
    let until = member(table, "until", expected, moment).ok_or_else(wrong)??;
    Ok(Pin { model, to, until })
}

/// The text at `key`, read; `None` where there is no such key.
fn member<T>(table: &Table, key: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Parsed<T>> {
    let node = table.get(key)?;
    let written = match &node.value {
        Value::Datetime(text) => text_as(expected, parse)(&Value::Text(text.clone())),
        value => text_as(expected, parse)(value),
    };
    Some(written.map_err(|wrong| wrong.inside(&format!(".{key}"), node)))
}
