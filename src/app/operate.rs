//! `modelgate models …`: an operator at the admin address of a running gateway.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::block_on;

/// Longer than the gateway itself waits for an order.
const PATIENCE: Duration = Duration::from_mins(6);

/// Which gateway, and who speaks to it.
#[derive(Debug)]
pub struct Desk {
    /// The admin address, as a URL.
    pub admin: String,
    /// Who orders, for the history.
    pub by: Option<String>,
    /// Why, for the history.
    pub reason: Option<String>,
}

/// What is asked or ordered.
#[derive(Debug)]
#[expect(missing_docs, reason = "`model` is a name and `version` a number everywhere")]
pub enum Command {
    /// Every model.
    List,
    /// What happened to a model's versions.
    History { model: String },
    /// Serve this version now.
    Promote { model: String, version: u64 },
    /// Back to the version before.
    RollBack { model: String },
    /// Stay on this version.
    Pin { model: String, version: u64 },
    /// Follow the registry again.
    Unpin { model: String },
}

/// Does it; returns what the operator should read.
///
/// # Errors
/// When the gateway cannot be reached, or does not follow the order, with its reason.
pub fn operate(desk: &Desk, command: Command) -> anyhow::Result<String> {
    block_on(async {
        Ok(match command {
            Command::List => list(&desk.ask("models").await?),
            Command::History { model } => history(&desk.ask(&format!("models/{model}/history")).await?),
            Command::Promote { model, version } => said(&desk.order(&model, "promote", Some(version)).await?),
            Command::RollBack { model } => said(&desk.order(&model, "rollback", None).await?),
            Command::Pin { model, version } => said(&desk.order(&model, "pin", Some(version)).await?),
            Command::Unpin { model } => said(&desk.order(&model, "unpin", None).await?),
        })
    })
}

impl Desk {
    async fn ask(&self, path: &str) -> anyhow::Result<Value> {
        self.answer(client()?.get(self.url(path))).await
    }

    async fn order(&self, model: &str, verb: &str, version: Option<u64>) -> anyhow::Result<Value> {
        let body = json!({ "version": version, "by": self.by, "reason": self.reason });
        let body: serde_json::Map<_, _> = match body {
            Value::Object(members) => members.into_iter().filter(|(_, value)| !value.is_null()).collect(),
            _ => serde_json::Map::new(),
        };
        let request = client()?.post(self.url(&format!("models/{model}/{verb}")));
        self.answer(request.header("x-modelgate-admin", "1").json(&body)).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}/admin/{path}", self.admin.trim_end_matches('/'))
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let unreachable =
            || format!("no gateway answers at {}: is it running, and is this its admin address?", self.admin);
        let answer = request.send().await.with_context(unreachable)?;
        let status = answer.status();
        let body: Value = answer.json().await.with_context(unreachable)?;
        match body["detail"].as_str() {
            Some(detail) if !status.is_success() => anyhow::bail!("{detail}"),
            None if !status.is_success() => anyhow::bail!("the gateway answers {status}"),
            _ => Ok(body),
        }
    }
}

/// Goes to this machine, whatever proxy there is.
fn client() -> anyhow::Result<reqwest::Client> {
    let builder = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().timeout(PATIENCE);
    builder.build().context("cannot build the HTTP client")
}

fn said(done: &Value) -> String {
    let text = |key: &str| done[key].as_str().unwrap_or("?");
    let before = done["from"].as_str().map_or_else(String::new, |from| format!(", before it was version {from}"));
    format!("`{}` is served in version {}{before}\n", text("model"), text("version"))
}

fn list(page: &Value) -> String {
    let mut rows = vec![["MODEL", "VERSION", "WANTED", "BEFORE", "PINNED", "ON TRIAL", "NOTE"].map(str::to_owned)];
    for model in page["models"].as_array().into_iter().flatten() {
        let trial = &model["trial"];
        let on_trial = match (trial["strategy"].as_str(), trial["version"].as_str()) {
            (Some(strategy), Some(version)) => format!("{version} ({strategy})"),
            (Some(strategy), None) => strategy.to_owned(),
            (None, _) => "-".to_owned(),
        };
        rows.push([
            cell(&model["name"]),
            cell(&model["version"]),
            cell(&model["aspired"]),
            cell(&model["previous"]),
            cell(&model["pinned"]),
            on_trial,
            cell(&model["trouble"]),
        ]);
    }
    table(&rows)
}

fn history(page: &Value) -> String {
    let mut rows = vec![["TIME", "VERSION", "EVENT", "FROM", "TO", "WHO", "WHY", "MEASURED"].map(str::to_owned)];
    for event in page["history"].as_array().into_iter().flatten() {
        let time = cell(&event["time"]).split('.').next().unwrap_or_default().trim_end_matches('Z').to_owned();
        let keys = ["version", "event", "from", "to", "who", "why", "verdict"].map(|key| cell(&event[key]));
        let [version, kind, from, to, who, why, measured] = keys;
        rows.push([time, version, kind, from, to, who, why, measured]);
    }
    table(&rows)
}

fn cell(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

/// Rows below their heads, each column as wide as its widest cell.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(text, "{}", cells.join("  ").trim_end()).expect("a String takes every write");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_aligned_and_says_what_is_on_trial() {
        let page = json!({ "models": [
            { "name": "credit-score", "version": "3", "aspired": "4", "previous": "2", "pinned": null,
              "trial": { "strategy": "canary", "version": "4" }, "trouble": null },
            { "name": "churn", "version": null, "aspired": null, "trial": null, "trouble": "the registry gives no answer" },
        ] });
        let expected = "\
MODEL         VERSION  WANTED  BEFORE  PINNED  ON TRIAL    NOTE
credit-score  3        4       2       -       4 (canary)  -
churn         -        -       -       -       -           the registry gives no answer
";
        assert_eq!(list(&page), expected);
    }

    #[test]
    fn the_history_has_a_line_for_each_event() {
        let page = json!({ "history": [{ "time": "2026-11-20T20:00:01.5Z", "version": "2", "event": "rolled_back",
            "from": "2", "to": "1", "who": "ana", "why": "too kind", "verdict": null }] });
        let expected = "\
TIME                 VERSION  EVENT        FROM  TO  WHO  WHY       MEASURED
2026-11-20T20:00:01  2        rolled_back  2     1   ana  too kind  -
";
        assert_eq!(history(&page), expected);
    }
}
