//! The `[model.rollout]` tables: how a new version comes to serve.

use std::time::Duration;

use super::layer::{Node, Value};
use super::reader::Section;
use super::value::{Parsed, SECOND, Wrong, duration, list, number, whole, word};
use crate::manager::judge::{Limits, Rollout, Step, Strategy};
use crate::model::rollout::Share;

const DAY: Duration = Duration::from_hours(24);

pub(super) fn read(mut s: Section<'_>) -> Rollout {
    let strategies = [("immediate", Strategy::Immediate), ("shadow", Strategy::Shadow), ("canary", Strategy::Canary)];
    let rollout = Rollout {
        strategy: s.defaulted("strategy", word(&strategies, &[])),
        steps: s.defaulted("steps", steps),
        watch: s.defaulted("watch", duration(Duration::ZERO..=DAY)),
        dwell: s.defaulted("dwell", duration(Duration::ZERO..=DAY)),
        limits: Limits {
            min_requests: s.defaulted("min_requests", whole(1..=1_000_000)),
            error_rate: s.defaulted("max_error_rate", number(0.0..=1.0)),
            not_finite_rate: s.defaulted("max_not_finite_rate", number(0.0..=1.0)),
            latency_ratio: s.defaulted("max_latency_ratio", number(1.0..=1000.0)),
            disagreement: s.defaulted("max_disagreement", number(0.0..=1.0)),
            tolerance: s.defaulted("tolerance", number(0.0..=1.0)),
        },
    };
    s.finish();
    rollout
}

/// Steps whose shares do not shrink: nobody goes back to the version before while a rollout goes on.
fn steps(value: &Value) -> Parsed<Vec<Step>> {
    let expected =
        "steps with growing shares, such as [{ share = 0.05, time = \"10m\" }, { share = 0.5, time = \"10m\" }]";
    let steps = list(expected, step)(value)?;
    let grow = !steps.is_empty() && steps.is_sorted_by(|one, next| one.share <= next.share);
    if grow { Ok(steps) } else { Err(Wrong::expected(expected)) }
}

fn step(value: &Value) -> Parsed<Step> {
    let wrong = || Wrong::expected("a step, such as { share = 0.05, time = \"10m\" }");
    let Value::Table(table) = value else { return Err(wrong()) };
    if table.len() != 2 {
        return Err(wrong());
    }
    let member = |key: &str| table.get(key).ok_or_else(wrong);
    let read = |key: &str, node: &Node, wrong: Wrong| wrong.inside(&format!(".{key}"), node);
    let share = member("share")?;
    let part = number(0.0..=1.0)(&share.value).map_err(|wrong| read("share", share, wrong))?;
    let time = member("time")?;
    let length = duration(SECOND..=DAY)(&time.value).map_err(|wrong| read("time", time, wrong))?;
    Ok(Step { share: Share::new(part).ok_or_else(wrong)?, time: length })
}
