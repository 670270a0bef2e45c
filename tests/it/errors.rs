//! The error catalogue from outside: every code of docs/errors.md is provoked through the front door, in both styles, and
//! its status, body and headers are what the page says. No error tells what is nobody's business.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use modelgate::auth::{Pin, PinTo};
use modelgate::server::ErrorStyle;
use serde_json::{Value, json};

use crate::support::gate::{self, Answer, Connection, Gate};
use crate::support::site::Site;

const MODEL: &str = "text-classes";
const BODY: &str = r#"{"data":{"Age":40,"Annual_Income":52000.5,"Outstanding_Debt":1200,"Credit_Mix":"Good"}}"#;
const FOUR_ROWS: &str = r#"{"data":[{"Age":1,"Annual_Income":1,"Outstanding_Debt":1},{"Age":1,"Annual_Income":1,"Outstanding_Debt":1},
{"Age":1,"Annual_Income":1,"Outstanding_Debt":1},{"Age":1,"Annual_Income":1,"Outstanding_Debt":1}]}"#;
const SOON: Duration = Duration::from_millis(50);
const SECOND: &str = "Request-Timeout-Ms: 1000";

/// What docs/errors.md says of a code.
struct Documented {
    status: u16,
    retryable: bool,
    headers: BTreeSet<String>,
}

/// What it says of a code for clients of API Gateway.
struct ApiGateway {
    status: u16,
    body: String,
    error_type: Option<String>,
}

/// The cells of the table rows of docs/errors.md that begin with `start`.
fn rows(start: &str) -> Vec<Vec<String>> {
    let page = include_str!("../../docs/errors.md");
    let rows = page.lines().filter(|line| line.starts_with(start) && !line.starts_with("| status"));
    rows.map(|line| line.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What stands in backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn documented() -> BTreeMap<String, Documented> {
    let entry = |row: Vec<String>| {
        let headers = quoted(&row[5]).into_iter().collect();
        let entry = Documented { status: row[2].parse().unwrap(), retryable: row[3] == "yes", headers };
        (quoted(&row[1]).remove(0), entry)
    };
    rows("| `").into_iter().map(entry).collect()
}

fn api_gateway() -> BTreeMap<String, ApiGateway> {
    let mut entries = BTreeMap::new();
    for row in rows("| 4").into_iter().chain(rows("| 5")) {
        for code in quoted(&row[2]) {
            let (body, error_type) = (quoted(&row[3]).remove(0), quoted(&row[4]).pop());
            entries.insert(code, ApiGateway { status: row[1].parse().unwrap(), body, error_type });
        }
    }
    entries
}

/// Errors that came about, by their codes.
struct Provoked {
    style: ErrorStyle,
    told: BTreeMap<&'static str, Answer>,
}

impl Provoked {
    fn note(&mut self, code: &'static str, answer: Answer) {
        assert!(self.told.insert(code, answer).is_none(), "{code} twice");
    }

    fn config(&self) -> gate::Config {
        gate::Config { error_style: self.style, max_body: 1024, ..gate::config() }
    }
}

/// One request, on a connection that the caller would keep.
async fn ask(gate: &Gate, method: &str, target: &str, lines: &[&str], body: &str) -> Answer {
    let mut connection = gate.connect().await;
    send(&mut connection, method, target, lines, body).await;
    connection.answer().await
}

async fn send(connection: &mut Connection, method: &str, target: &str, lines: &[&str], body: &str) {
    let lines = lines.iter().map(|line| format!("{line}\r\n")).collect::<Vec<_>>().concat();
    let length = body.len();
    let request = format!("{method} {target} HTTP/1.1\r\nHost: gate\r\nContent-Length: {length}\r\n{lines}\r\n{body}");
    connection.send(request).await;
}

/// A connection whose prediction is under way: its body is asked for and does not come.
async fn begin(gate: &Gate) -> Connection {
    let mut connection = gate.connect().await;
    let lines = [&*gate.key, "Content-Length: 9", "Expect: 100-continue"].join("\r\n");
    connection.send(format!("POST /predict HTTP/1.1\r\nHost: gate\r\n{lines}\r\n\r\n")).await;
    assert_eq!(connection.answer().await.status, 100);
    connection
}

/// The id of the key in a header line.
fn id_of(line: &str) -> &str {
    &line["x-api-key: mg_live_".len()..][..10]
}

/// What the request itself is wrong with.
async fn provoke_by_requests(provoked: &mut Provoked) {
    let gate = Gate::serving(provoked.config(), MODEL).await;
    let key = gate.key.as_str();
    let many: Vec<String> = (0..70).map(|i| format!("a{i}: b")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let large = format!("{BODY}{}", " ".repeat(1024));
    for (code, method, target, lines, body) in [
        ("malformed_json", "POST", "/predict", &[key][..], "{"),
        ("malformed_request", "POST", "/predict?api_key=x", &[], ""),
        ("unauthenticated", "POST", "/predict", &[], ""),
        ("not_found", "GET", "/nowhere", &[], ""),
        ("method_not_allowed", "GET", "/predict", &[], ""),
        ("payload_too_large", "POST", "/predict", &[key], large.as_str()),
        ("unsupported_media_type", "POST", "/predict", &[key, "Content-Type: text/csv"], ""),
        ("invalid_input", "POST", "/predict", &[key], r#"{"Age":"old"}"#),
        ("headers_too_large", "GET", "/livez", &many, ""),
    ] {
        provoked.note(code, ask(&gate, method, target, lines, body).await);
    }
    let named = [key, "Idempotency-Key: one"];
    assert_eq!(ask(&gate, "POST", "/predict", &named, BODY).await.status, 200);
    provoked.note("idempotency_mismatch", ask(&gate, "POST", "/predict", &named, "{}").await);

    let small = gate.small_key.as_str();
    provoked.note("quota_exceeded", ask(&gate, "POST", "/predict", &[small], FOUR_ROWS).await);
    assert_eq!(ask(&gate, "POST", "/predict", &[small], BODY).await.status, 200);
    provoked.note("rate_limited", ask(&gate, "POST", "/predict", &[small], BODY).await);
    gate.keys.disable(id_of(small), Timestamp::UNIX_EPOCH).unwrap();
    provoked.note("forbidden", ask(&gate, "POST", "/predict", &[small], BODY).await);
    for _ in 0..10 {
        ask(&gate, "POST", "/predict", &["x-api-key: wrong"], "").await;
    }
    provoked.note("auth_throttled", ask(&gate, "POST", "/predict", &["x-api-key: wrong"], "").await);
    provoked.note("internal", panicked(&gate).await);
    gate.readiness.drain();
    provoked.note("shutting_down", ask(&gate, "GET", "/readyz", &[], "").await);
}

fn dropped() -> Result<Frame<Bytes>, Infallible> {
    panic!("/src/secret.rs:7: index out of bounds")
}

/// What comes of a handler that panics: no request over the sockets is known to do that.
async fn panicked(gate: &Gate) -> Answer {
    let body = StreamBody::new(stream::once(async { dropped() }));
    let (name, key) = gate.key.split_once(": ").unwrap();
    let request = http::Request::post("/predict").header("host", "gate").header(name, key).body(body).unwrap();
    let (head, body) = gate.router.answer(request).await.into_parts();
    let lines = head.headers.iter().map(|(name, value)| format!("\r\n{name}: {}", value.to_str().unwrap()));
    let text = lines.collect::<Vec<_>>().concat();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Answer { status: head.status.as_u16(), head: text, body }
}

/// What the gateway, its models or its store are in no state for.
async fn provoke_by_states(provoked: &mut Provoked) {
    let gate = Gate::with_models(provoked.config(), &[MODEL]).await;
    provoked.note("model_not_ready", ask(&gate, "POST", "/predict", &[&gate.key], BODY).await);

    let one = NonZeroUsize::new(1).unwrap();
    let gate = Gate::serving(gate::Config { max_in_flight: one, ..provoked.config() }, MODEL).await;
    let first = begin(&gate).await;
    provoked.note("overloaded", ask(&gate, "POST", "/predict", &[&gate.key], BODY).await);
    drop(first);

    let gate = Gate::serving(gate::Config { body_timeout: SOON, ..provoked.config() }, MODEL).await;
    provoked.note("request_timeout", begin(&gate).await.answer().await);
    let pin = Pin { model: MODEL.into(), to: PinTo::Version(9), until: Timestamp::MAX };
    gate.keys.pin(id_of(&gate.key), &pin, 1, Timestamp::UNIX_EPOCH).unwrap();
    provoked.note("pinned_version_unavailable", ask(&gate, "POST", "/predict", &[&gate.key], BODY).await);
    rusqlite::Connection::open(gate.store()).unwrap().execute_batch("ALTER TABLE usage RENAME TO gone").unwrap();
    provoked.note("quota_unavailable", ask(&gate, "POST", "/predict", &[&gate.small_key], BODY).await);

    let gate = Gate::serving(provoked.config(), "not-finite").await;
    provoked.note("model_output_invalid", ask(&gate, "POST", "/predict", &[&gate.key], r#"{"x":1}"#).await);

    let gate = Gate::serving(provoked.config(), "endless").await;
    let endless = [&*gate.key, "Idempotency-Key: twice", SECOND];
    let (mut first, mut second) = (gate.connect().await, gate.connect().await);
    send(&mut first, "POST", "/predict", &endless, r#"{"x":1e18}"#).await;
    send(&mut second, "POST", "/predict", &endless, r#"{"x":1e18}"#).await;
    let (first, second) = (first.answer().await, second.answer().await);
    let (late, early) = if first.status == 504 { (first, second) } else { (second, first) };
    provoked.note("deadline_exceeded", late);
    provoked.note("idempotency_in_progress", early);
}

/// Orders are given on the admin address, which has one style.
async fn conflict() -> Answer {
    let mut site = Site::new("[plans.open]\n[[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n");
    site.register_sum("sum", 1, 0.0);
    site.promote("sum", 1);
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    let refused = gate.order("sum", "rollback", json!({})).await;
    let lines = refused.headers.iter().map(|(name, value)| format!("\r\n{name}: {}", value.to_str().unwrap()));
    let answer =
        Answer { status: refused.status, head: lines.collect::<Vec<_>>().concat(), body: refused.body.to_string() };
    gate.stop().await;
    answer
}

/// Headers that any answer may have, whatever its code.
const EVERYWHERE: [&str; 3] = ["Modelgate-Model", "RateLimit", "RateLimit-Policy"];

fn has(answer: &Answer, documented: &str) -> bool {
    match documented.split_once(": ") {
        Some((name, value)) => answer.header(name) == Some(value),
        None => answer.header(documented).is_some(),
    }
}

fn check_headers(code: &str, answer: &Answer, documented: &BTreeMap<String, Documented>, but: &str) {
    let all: BTreeSet<&String> = documented.values().flat_map(|entry| &entry.headers).collect();
    let said = &documented[code].headers;
    for header in all.into_iter().filter(|header| *header != but) {
        let expected = said.contains(header);
        if expected || !EVERYWHERE.contains(&header.as_str()) {
            assert_eq!(has(answer, header), expected, "{code}: `{header}` in {}", answer.head);
        }
    }
}

fn check_problem(code: &str, answer: &Answer, documented: &BTreeMap<String, Documented>) {
    let (entry, body) = (&documented[code], answer.json());
    assert_eq!((answer.status, &body["code"]), (entry.status, &json!(code)), "{}", answer.body);
    assert_eq!((&body["status"], &body["retryable"]), (&json!(entry.status), &json!(entry.retryable)), "{code}");
    assert_eq!(body["request_id"].as_str(), answer.header("x-request-id"), "{code}");
    assert!(body["type"].as_str().is_some_and(|uri| uri.contains(':')) && body["title"].is_string(), "{body}");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{code}");
    check_headers(code, answer, documented, "");
}

fn check_api_gateway(
    code: &str,
    answer: &Answer,
    documented: &BTreeMap<String, Documented>,
    told: &BTreeMap<String, ApiGateway>,
) {
    let body: Value = answer.json();
    if let Some(told) = told.get(code) {
        assert_eq!((answer.status, &answer.body), (told.status, &told.body), "{code}");
        assert_eq!(answer.header("x-amzn-errortype"), told.error_type.as_deref(), "{code}");
    } else {
        assert_eq!((answer.status, answer.header("x-amzn-errortype")), (documented[code].status, None), "{code}");
        assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{code}: {body}");
        assert_eq!(body.get("errors").is_some(), code == "invalid_input", "{body}");
    }
    assert_eq!(answer.header("x-amzn-requestid"), answer.header("x-request-id"), "{code}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{code}");
    check_headers(code, answer, documented, "WWW-Authenticate");
}

/// What only the log may say: places in files, addresses, SQL, the names of our types, versions of what we are made of.
fn check_discreet(code: &str, answer: &Answer) {
    let folder = std::env::temp_dir().display().to_string();
    for secret in [
        folder.as_str(),
        ".rs",
        "::",
        "/src",
        ".db",
        ".onnx",
        "SQL",
        "sql",
        "SELECT",
        "usage RENAME",
        "127.0.0.1",
        "panic",
        "index out of",
        "hyper",
        "onnxruntime",
        "1.28",
        "mg_live_",
    ] {
        assert!(!answer.body.contains(secret), "{code} tells `{secret}`: {}", answer.body);
        assert!(!answer.head.contains(secret), "{code} tells `{secret}`: {}", answer.head);
    }
}

async fn check_style(style: ErrorStyle) {
    let mut provoked = Provoked { style, told: BTreeMap::new() };
    provoke_by_requests(&mut provoked).await;
    provoke_by_states(&mut provoked).await;
    if style == ErrorStyle::Problem {
        provoked.note("conflict", conflict().await);
    }
    let (documented, told) = (documented(), api_gateway());
    for code in documented.keys().filter(|code| style == ErrorStyle::Problem || *code != "conflict") {
        let answer = provoked.told.get(code.as_str()).unwrap_or_else(|| panic!("nothing provokes {code}"));
        match style {
            ErrorStyle::Problem => check_problem(code, answer, &documented),
            ErrorStyle::ApiGateway => check_api_gateway(code, answer, &documented, &told),
        }
        check_discreet(code, answer);
    }
    assert!(provoked.told.keys().all(|code| documented.contains_key(*code)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_code_of_the_catalogue_is_answered_as_documented() {
    check_style(ErrorStyle::Problem).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_code_of_the_catalogue_is_answered_as_documented_to_clients_of_api_gateway() {
    check_style(ErrorStyle::ApiGateway).await;
}
