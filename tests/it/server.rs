//! The data address over real sockets: health, routes, keys, limits, framing, slowness, the end.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::Frame;

use crate::support::gate::{Connection, Gate, config};

const SOON: Duration = Duration::from_millis(50);

/// A fixture with a whole number, two floats and an optional text.
const MODEL: &str = "text-classes";
const BODY: &str = r#"{"data":{"Age":40,"Annual_Income":52000.5,"Outstanding_Debt":1200,"Credit_Mix":"Good"}}"#;

#[tokio::test]
async fn health_needs_no_key_and_follows_the_state() {
    let gate = Gate::with_models(config(), &["credit-score"]).await;
    let live = gate.ask("GET", "/livez", &[], "").await;
    assert_eq!((live.status, live.body.as_str()), (200, r#"{"status":"live"}"#));

    let waiting = gate.ask("GET", "/readyz", &[], "").await;
    assert_eq!((waiting.status, waiting.code().as_str()), (503, "model_not_ready"));
    assert_eq!(waiting.json()["models"][0]["name"], "credit-score");
    assert_eq!(waiting.json()["models"][0]["status"], "waiting");

    gate.readiness.drain();
    let draining = gate.ask("GET", "/readyz", &[], "").await;
    assert_eq!((draining.status, draining.code().as_str()), (503, "shutting_down"));
    assert_eq!(gate.ask("GET", "/livez", &[], "").await.status, 200);
}

#[tokio::test]
async fn a_gateway_without_models_is_ready() {
    let gate = Gate::start(config()).await;
    let ready = gate.ask("GET", "/readyz", &[], "").await;
    assert_eq!((ready.status, ready.json()["status"].as_str()), (200, Some("ready")));
}

#[tokio::test]
async fn every_answer_has_a_name_and_is_not_to_be_kept() {
    let gate = Gate::start(config()).await;
    for (method, target) in [("GET", "/livez"), ("GET", "/nowhere"), ("POST", "/predict"), ("PUT", "/usage")] {
        let answer = gate.ask(method, target, &["X-Request-Id: order-66"], "").await;
        assert_eq!(answer.header("x-request-id"), Some("order-66"), "{target}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{target}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{target}");
        assert_eq!(answer.header("server"), None, "{target}");
        if answer.status != 200 {
            assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{target}");
            assert_eq!(answer.json()["request_id"], "order-66", "{target}");
        }
    }
    let made = gate.ask("GET", "/livez", &["X-Request-Id: two words"], "").await;
    let id = made.header("x-request-id").unwrap();
    assert_eq!((id.len(), id.as_bytes()[14]), (36, b'7'), "{id}");
}

#[tokio::test]
async fn what_is_not_there_is_told_from_what_is_there_for_others() {
    let gate = Gate::start(config()).await;
    let check = async |method: &str, target: &str, status: u16, allow: Option<&str>| {
        let answer = gate.ask(method, target, &[], "").await;
        assert_eq!((answer.status, answer.header("allow")), (status, allow), "{method} {target}");
    };
    check("GET", "/", 404, None).await;
    check("GET", "/metrics", 404, None).await;
    check("GET", "/admin/models", 404, None).await;
    check("POST", "/models/a/b/predict", 404, None).await;
    check("GET", "/predict", 405, Some("POST")).await;
    check("GET", "/models/a/predict", 405, Some("POST")).await;
    check("POST", "/livez", 405, Some("GET, HEAD")).await;
    check("DELETE", "/usage", 405, Some("GET, HEAD")).await;
    check("HEAD", "/livez", 200, None).await;
}

#[tokio::test]
async fn only_a_valid_key_sent_as_a_header_opens_the_door() {
    let gate = Gate::with_models(config(), &["credit-score"]).await;
    let secret = gate.key.strip_prefix("x-api-key: ").unwrap();
    let check = async |target: &str, lines: &[&str], status: u16, code: &str| {
        let answer = gate.ask("POST", target, lines, "{}").await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{target} {lines:?}");
        assert!(!answer.body.contains(secret) && !answer.head.contains(secret));
        answer
    };
    let key = &gate.key;
    let bearer = format!("Authorization: Bearer {secret}");
    let in_address = format!("/predict?api_key={secret}");

    let refused = check("/predict", &[], 401, "unauthenticated").await;
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    let unknown = check("/predict", &["x-api-key: mg_live_no"], 401, "unauthenticated").await;
    assert_eq!(refused.json()["detail"], unknown.json()["detail"]);
    check("/predict", &["Authorization: Basic dTpw"], 401, "unauthenticated").await;
    check("/predict", &[key, "Authorization: Bearer other"], 400, "malformed_request").await;
    check(&in_address, &[], 400, "malformed_request").await;
    check(&in_address, &[key], 400, "malformed_request").await;

    // From here on it is about the model.
    let waiting = check("/predict", &[key], 503, "model_not_ready").await;
    assert_eq!(waiting.header("retry-after"), Some("30"));
    check("/predict", &[&bearer], 503, "model_not_ready").await;
    check("/predict", &[key, &bearer], 503, "model_not_ready").await;
    check("/models/credit-score/predict", &[key], 503, "model_not_ready").await;
    let hostile = check("/models/%3Cscript%3E/predict", &[key], 404, "not_found").await;
    assert!(!hostile.body.contains("script"), "{}", hostile.body);
}

#[tokio::test]
async fn a_caller_sees_its_own_plan() {
    let gate = Gate::start(config()).await;
    assert_eq!(gate.ask("GET", "/usage", &[], "").await.status, 401);
    let usage = gate.ask("GET", "/usage", &[&gate.key], "").await;
    assert_eq!(usage.status, 200);
    assert_eq!(usage.json()["plan"], "open");
    assert_eq!(usage.json()["unit"], "rows");
    assert_eq!(usage.json()["used"], 0);
}

#[tokio::test]
async fn a_body_must_be_plain_json_by_its_own_account() {
    let gate = Gate::with_models(config(), &["credit-score"]).await;
    for line in ["Content-Type: text/csv", "Content-Encoding: gzip", "Content-Type: application/x-www-form-urlencoded"]
    {
        let answer = gate.predict(&[line], "{}").await;
        assert_eq!((answer.status, answer.code().as_str()), (415, "unsupported_media_type"), "{line}");
        assert_eq!(answer.header("accept"), Some("application/json"));
        assert_eq!(answer.header("accept-encoding"), Some("identity"));
    }
    let answer = gate.predict(&["Content-Type: application/json; charset=utf-8"], "{}").await;
    assert_eq!(answer.code(), "model_not_ready");
}

#[tokio::test]
async fn headers_are_bounded_in_number() {
    let gate = Gate::start(config()).await;
    // `ask` sends three of its own.
    let lines = |count: usize| (0..count - 3).map(|i| format!("a{i}: b")).collect::<Vec<_>>();
    let ask = async |count: usize| {
        let lines = lines(count);
        gate.ask("GET", "/livez", &lines.iter().map(String::as_str).collect::<Vec<_>>(), "").await
    };
    assert_eq!(ask(64).await.status, 200);
    let refused = ask(65).await;
    assert_eq!((refused.status, refused.code().as_str()), (431, "headers_too_large"));
    assert_eq!(refused.header("connection"), Some("close"));
    // Far above, hyper says so without words.
    assert_eq!(ask(101).await.status, 431);
}

#[tokio::test]
async fn headers_are_bounded_in_bytes() {
    let gate = Gate::start(config()).await;
    let own = "/livez".len() + "hostgateconnectionclosecontent-length0a".len();
    let ask = async |bytes: usize| {
        let line = format!("a: {}", "b".repeat(bytes - own));
        gate.ask("GET", "/livez", &[&line], "").await
    };
    assert_eq!(ask(16 * 1024).await.status, 200);
    let refused = ask(16 * 1024 + 1).await;
    assert_eq!((refused.status, refused.code().as_str()), (431, "headers_too_large"));
    assert_eq!(ask(33 * 1024).await.status, 431);
    assert_eq!(ask(1024 * 1024).await.status, 431);
}

/// Sends `request`, and says with which statuses it was answered before the connection ended.
async fn statuses(gate: &Gate, request: &str) -> Vec<String> {
    let text = gate.tell(request).await;
    let lines = text.split("HTTP/1.").skip(1);
    lines.map(|line| line.split(' ').nth(1).unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn one_request_has_one_reading_and_one_answer() {
    let gate = Gate::start(config()).await;
    let check = async |what: &str, request: &str, expect: &[&str]| {
        assert_eq!(statuses(&gate, request).await, expect, "{what}");
    };
    // Were the second half of a body read as a request, it would be answered with 404.
    let hidden = "GET /hidden HTTP/1.1\r\nHost: gate\r\n\r\n";

    check(
        "two lengths",
        &format!("POST /livez HTTP/1.1\r\nHost: gate\r\nContent-Length: 0\r\nContent-Length: 37\r\n\r\n{hidden}"),
        &["400"],
    )
    .await;
    check(
        "a list of lengths",
        &format!("POST /livez HTTP/1.1\r\nHost: gate\r\nContent-Length: 0, 37\r\n\r\n{hidden}"),
        &["400"],
    )
    .await;
    check("a length with a sign", "POST /livez HTTP/1.1\r\nHost: gate\r\nContent-Length: +0\r\n\r\n", &["400"]).await;
    check("a length below zero", "POST /livez HTTP/1.1\r\nHost: gate\r\nContent-Length: -1\r\n\r\n", &["400"]).await;
    check("length, then chunks", &format!("POST /livez HTTP/1.1\r\nHost: gate\r\nContent-Length: 37\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"), &["405"]).await;
    check("chunks, then length", &format!("POST /livez HTTP/1.1\r\nHost: gate\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{hidden}"), &["405"]).await;
    check(
        "a coding that is none",
        &format!("POST /livez HTTP/1.1\r\nHost: gate\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}"),
        &["400"],
    )
    .await;
    check(
        "chunks of something packed",
        &format!("POST /livez HTTP/1.1\r\nHost: gate\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{hidden}"),
        &["400"],
    )
    .await;
    check("chunked twice", &format!("POST /livez HTTP/1.1\r\nHost: gate\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"), &["400"]).await;
    check(
        "chunked is not last",
        &format!("POST /livez HTTP/1.1\r\nHost: gate\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        &["400"],
    )
    .await;
    check(
        "chunks in HTTP/1.0",
        &format!("POST /livez HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        &["400"],
    )
    .await;
    check("a folded line", "GET /livez HTTP/1.1\r\nHost: gate\r\nA: b\r\n c\r\nConnection: close\r\n\r\n", &["400"])
        .await;
    check("a space before the colon", "GET /livez HTTP/1.1\r\nHost: gate\r\nContent-Length : 0\r\n\r\n", &["400"])
        .await;
    check("a line without a colon", "GET /livez HTTP/1.1\r\nHost: gate\r\nnonsense\r\n\r\n", &["400"]).await;
    check("NUL in a value", "GET /livez HTTP/1.1\r\nHost: gate\r\nA: b\0c\r\n\r\n", &["400"]).await;
    check("a bare CR in a value", "GET /livez HTTP/1.1\r\nHost: gate\r\nA: b\rc\r\n\r\n", &["400"]).await;
    check("an underscore in a name", "GET /livez HTTP/1.1\r\nHost: gate\r\nx_api_key: k\r\n\r\n", &["400"]).await;
    check("no host", "GET /livez HTTP/1.1\r\nConnection: close\r\n\r\n", &["400"]).await;
    check("two hosts", "GET /livez HTTP/1.1\r\nHost: gate\r\nHost: gate\r\n\r\n", &["400"]).await;
    check("no host in HTTP/1.0", "GET /livez HTTP/1.0\r\n\r\n", &["200"]).await;
    check("a version of the future", "GET /livez HTTP/3.0\r\nHost: gate\r\n\r\n", &["400"]).await;
    check("the whole address", "GET http://gate/livez HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n", &["200"])
        .await;
    check("a tunnel", "CONNECT gate:443 HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n", &["404"]).await;
    check(
        "HTTP/2 from HTTP/1",
        "GET /livez HTTP/1.1\r\nHost: gate\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n",
        &["200"],
    )
    .await;
    check("no HTTP at all", "\x16\x03\x01\x02\x00\x01\r\n\r\n", &["400"]).await;
    check(
        "two requests in one piece",
        &format!(
            "GET /livez HTTP/1.1\r\nHost: gate\r\n\r\n{}",
            hidden.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
        ),
        &["200", "404"],
    )
    .await;
}

#[tokio::test]
async fn who_says_nothing_or_half_of_it_is_shown_the_door() {
    let limits = modelgate::server::Config { header_timeout: SOON, idle_timeout: SOON * 2, ..config() };
    let gate = Gate::start(limits).await;
    for beginning in
        ["", "P", "PRI", "GET /livez HTT", "GET /livez HTTP/1.1\r\nHost: gate\r\n", "PRI * HTTP/2.0\r\n\r\nSM"]
    {
        let heard = gate.tell(beginning).await;
        assert!(!heard.contains(" 200 "), "{beginning:?}: {heard}");
    }
}

#[tokio::test]
async fn a_connection_that_is_done_is_not_kept_for_ever() {
    let gate = Gate::start(modelgate::server::Config { idle_timeout: SOON, ..config() }).await;
    let mut connection = gate.connect().await;
    connection.send("GET /livez HTTP/1.1\r\nHost: gate\r\n\r\n").await;
    assert_eq!(connection.answer().await.status, 200);
    assert_eq!(connection.rest().await, "");
}

#[tokio::test]
async fn connections_are_bounded_and_places_come_free() {
    let two = NonZeroUsize::new(2).unwrap();
    for limits in [
        modelgate::server::Config { max_connections: two, ..config() },
        modelgate::server::Config { max_connections_per_address: two, ..config() },
    ] {
        let gate = Gate::start(limits).await;
        let mut connections = [gate.connect().await, gate.connect().await];
        for connection in &mut connections {
            connection.send("GET /livez HTTP/1.1\r\nHost: gate\r\n\r\n").await;
            assert_eq!(connection.answer().await.status, 200);
        }
        assert_eq!(gate.connect().await.rest().await, "");
        let page = admin_page(&gate, "/metrics").await;
        assert_eq!(figure(&page, "modelgate_connections"), Some(2.0), "{page}");
        assert_eq!(figure(&page, "modelgate_connections_refused_total"), Some(1.0), "{page}");

        drop(connections);
        // The gateway notices when it notices; until then it may refuse.
        while !gate.tell("GET /livez HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n").await.contains(" 200 ") {}
    }
}

/// A figure without labels on a Prometheus page.
fn figure(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.trim_start_matches("{}").strip_prefix(' ')?.parse().ok())
}

/// What the admin address says, without a socket.
async fn admin_page(gate: &Gate, target: &str) -> String {
    let request = http::Request::get(target).header("host", "gate").body(Empty::<Bytes>::new()).unwrap();
    let answer = gate.admin.answer(request).await;
    assert_eq!(answer.status(), 200, "{target}");
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn operators_see_every_model() {
    let gate = Gate::with_models(config(), &["b", "a"]).await;
    let page: serde_json::Value = serde_json::from_str(&admin_page(&gate, "/admin/models").await).unwrap();
    let names: Vec<_> = page["models"].as_array().unwrap().iter().map(|model| &model["name"]).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(page["models"][0]["status"], "waiting");
    assert_eq!(page["models"][0]["version"], serde_json::Value::Null);
}

/// A connection with a prediction under way: its head is read and its body is asked for.
async fn begin(gate: &Gate) -> Connection {
    let mut connection = gate.connect().await;
    let (key, length) = (&gate.key, BODY.len());
    connection
        .send(format!(
            "POST /predict HTTP/1.1\r\nHost: gate\r\n{key}\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        ))
        .await;
    assert_eq!(connection.answer().await.status, 100);
    connection
}

#[tokio::test]
async fn a_stop_lets_a_request_finish_and_idle_connections_go() {
    let gate = Gate::serving(config(), MODEL).await;
    let mut idle = gate.connect().await;
    idle.send("GET /livez HTTP/1.1\r\nHost: gate\r\n\r\n").await;
    assert_eq!(idle.answer().await.status, 200);
    let mut busy = begin(&gate).await;

    gate.tasks.stop();
    assert_eq!(idle.rest().await, "");
    busy.send(BODY).await;
    let last = busy.rest().await;
    assert!(last.starts_with("HTTP/1.1 200 OK") && last.contains("connection: close"), "{last}");
    drop((idle, busy));
    gate.stop().await;
    tokio::net::TcpStream::connect(gate.address).await.unwrap_err();
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let gate = Gate::serving(modelgate::server::Config { grace: SOON, ..config() }, MODEL).await;
    let mut stuck = begin(&gate).await;
    gate.stop().await;
    assert_eq!(stuck.rest().await, "");
}

#[tokio::test]
async fn a_prediction_says_who_made_it() {
    let gate = Gate::serving(config(), MODEL).await;
    for target in ["/predict", "/models/text-classes/predict"] {
        let answer = gate.ask("POST", target, &[&gate.key, "X-Request-Id: a-1"], BODY).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let digest = "07".repeat(32);
        assert_eq!(answer.header("modelgate-model"), Some(format!("text-classes@1; digest=sha-256:{digest}").as_str()));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("ratelimit"), None);
        let json = answer.json();
        assert_eq!(
            (&json["request_id"], &json["model"], &json["version"]),
            (&"a-1".into(), &MODEL.into(), &"1".into())
        );
        assert!(json["prediction"].is_string() && json["probabilities"].is_object(), "{json}");
    }
    let ready = gate.ask("GET", "/readyz", &[], "").await;
    assert_eq!((ready.status, &ready.json()["models"][0]["version"]), (200, &"1".into()));
}

#[tokio::test]
async fn a_caller_is_told_where_it_stands_until_it_may_not_go_on() {
    let gate = Gate::serving(config(), MODEL).await;
    let ask = async || gate.ask("POST", "/predict", &[&gate.small_key], BODY).await;
    let first = ask().await;
    assert_eq!(first.status, 200, "{}", first.body);
    let policy = first.header("ratelimit-policy").unwrap();
    assert!(policy.contains(r#""rate";q=2;w="#) && policy.contains(r#""day";q=3;w=86400"#), "{policy}");
    let limit = first.header("ratelimit").unwrap();
    assert!(limit.contains(r#""rate";r=1;t="#) && limit.contains(r#""day";r=2;t="#), "{limit}");

    assert_eq!(ask().await.status, 200);
    let refused = ask().await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "rate_limited"));
    assert_eq!(refused.json()["violated-policies"][0], "rate");
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    assert!(refused.header("ratelimit").unwrap().starts_with(r#""rate";r=0;t="#), "{:?}", refused.header("ratelimit"));

    let usage = gate.ask("GET", "/usage", &[&gate.small_key], "").await;
    assert_eq!((&usage.json()["used"], &usage.json()["quota"]["amount"]), (&2.into(), &3.into()));
    assert!(usage.header("ratelimit").unwrap().contains(r#""day";r=1;"#));
}

#[tokio::test]
async fn a_body_has_a_last_byte_that_passes() {
    let limits = modelgate::server::Config { max_body: BODY.len(), ..config() };
    let gate = Gate::serving(limits, MODEL).await;
    assert_eq!(gate.predict(&[], BODY).await.status, 200);
    let refused = gate.predict(&[], &format!("{BODY} ")).await;
    assert_eq!((refused.status, refused.code().as_str()), (413, "payload_too_large"));
    // Chunked, its length is not known before.
    let key = &gate.key;
    let head = format!(
        "POST /predict HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n{key}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    for (body, status) in [(BODY.to_owned(), "200"), (format!("{BODY} "), "413")] {
        let request = format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        assert_eq!(statuses(&gate, &request).await, [status]);
    }
}

#[tokio::test]
async fn who_is_refused_while_it_still_sends_can_read_why() {
    let gate = Gate::serving(config(), MODEL).await;
    let much = " ".repeat(6 * 1024 * 1024);
    let refused = gate.predict(&[], &much).await;
    assert_eq!((refused.status, refused.code().as_str()), (413, "payload_too_large"));
    let refused = gate.ask("POST", "/predict", &[], &much).await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "unauthenticated"));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let gate = Gate::serving(modelgate::server::Config { body_timeout: SOON, ..config() }, MODEL).await;
    let refused = begin(&gate).await.answer().await;
    assert_eq!((refused.status, refused.code().as_str()), (408, "request_timeout"));
    assert_eq!(refused.header("connection"), Some("close"));
}

#[tokio::test]
async fn a_body_is_asked_for_only_if_it_will_be_read() {
    let gate = Gate::serving(config(), MODEL).await;
    let request = "POST /predict HTTP/1.1\r\nHost: gate\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n";
    assert_eq!(statuses(&gate, request).await, ["401"]);
    let mut asked = begin(&gate).await;
    asked.send(BODY).await;
    assert_eq!(asked.answer().await.status, 200);
}

#[tokio::test]
async fn a_body_is_framed_as_its_headers_say() {
    let gate = Gate::serving(config(), MODEL).await;
    let key = &gate.key;
    let head = format!("POST /predict HTTP/1.1\r\nHost: gate\r\n{key}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let many = "1\r\n \r\n".repeat(2000);
    for (what, body) in [
        ("no size", "zz\r\n{}\r\n0\r\n\r\n"),
        ("a size below zero", "-2\r\n{}\r\n0\r\n\r\n"),
        ("a size beyond 64 bits", "FFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n"),
        ("longer than its size", "1\r\n{}\r\n0\r\n\r\n"),
        ("a bare LF", "2\n{}\r\n0\r\n\r\n"),
        ("many chunks of one byte", many.as_str()),
    ] {
        assert_eq!(statuses(&gate, &format!("{head}{body}")).await, ["400"], "{what}");
    }
}

#[tokio::test]
async fn more_predictions_than_can_be_are_refused_at_once_and_health_is_not() {
    let one = NonZeroUsize::new(1).unwrap();
    let gate = Gate::serving(modelgate::server::Config { max_in_flight: one, ..config() }, MODEL).await;
    let mut first = begin(&gate).await;
    let refused = gate.predict(&[], BODY).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "overloaded"));
    let retry_after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=5).contains(&retry_after), "{retry_after}");
    assert_eq!(gate.ask("GET", "/livez", &[], "").await.status, 200);
    assert_eq!(gate.ask("GET", "/readyz", &[], "").await.status, 200);
    assert_eq!(figure(&admin_page(&gate, "/metrics").await, "modelgate_predictions_in_flight"), Some(1.0));

    first.send(BODY).await;
    assert_eq!(first.answer().await.status, 200);
    assert_eq!(gate.predict(&[], BODY).await.status, 200);
}

#[tokio::test]
async fn a_model_that_does_not_come_back_is_given_up() {
    let gate = Gate::serving(config(), "endless").await;
    let answer = gate.predict(&["Request-Timeout-Ms: 50"], r#"{"x":1e18}"#).await;
    assert_eq!((answer.status, answer.code().as_str()), (504, "deadline_exceeded"));
    assert_eq!(answer.header("modelgate-stage"), Some("run"));
    assert!(answer.header("modelgate-model").unwrap().starts_with("endless@1"));
}

#[tokio::test]
async fn an_answer_that_is_no_number_is_not_passed_on_and_not_charged() {
    let gate = Gate::serving(config(), "not-finite").await;
    let answer = gate.ask("POST", "/predict", &[&gate.small_key], r#"{"x":1}"#).await;
    assert_eq!((answer.status, answer.code().as_str()), (500, "model_output_invalid"));
    assert!(answer.header("modelgate-model").unwrap().starts_with("not-finite@1"));
    assert_eq!(gate.ask("GET", "/usage", &[&gate.small_key], "").await.json()["used"], 0);
}

#[tokio::test]
async fn a_handler_that_panics_is_an_answer_too() {
    let gate = Gate::serving(config(), MODEL).await;
    let (name, key) = gate.key.split_once(": ").unwrap();
    let ask = async |pieces: fn() -> Frame<Bytes>| {
        let body = StreamBody::new(stream::once(async move { Ok::<_, Infallible>(pieces()) }));
        let request = http::Request::post("/predict").header("host", "gate").header(name, key).body(body).unwrap();
        gate.router.answer(request).await
    };
    let broken = ask(|| panic!("dropped the vase")).await;
    assert_eq!(broken.status(), 500);
    let body = broken.into_body().collect().await.unwrap().to_bytes();
    assert!(!String::from_utf8_lossy(&body).contains("vase"));
    assert_eq!(ask(|| Frame::data(Bytes::from_static(BODY.as_bytes()))).await.status(), 200);
    assert_eq!(figure(&admin_page(&gate, "/metrics").await, "modelgate_panics_total"), Some(1.0));
}

/// Bodies that are no good, each in its own way, with the name of the way. A good one is `BODY`.
fn bad_bodies() -> Vec<(&'static str, String)> {
    let row = |members: &str| format!(r#"{{"data":{{{members}}}}}"#);
    let age = |value: &str| format!(r#"{{"data":{{"Age":{value},"Annual_Income":1.5,"Outstanding_Debt":2}}}}"#);
    let income = |value: &str| format!(r#"{{"data":{{"Age":40,"Annual_Income":{value},"Outstanding_Debt":2}}}}"#);
    let mix = |value: &str| {
        format!(r#"{{"data":{{"Age":40,"Annual_Income":1.5,"Outstanding_Debt":2,"Credit_Mix":{value}}}}}"#)
    };
    let nested = |depth: usize| mix(&("[".repeat(depth - 2) + &"]".repeat(depth - 2)));
    let rows = |count: usize| format!(r#"{{"data":[{}]}}"#, vec![r#"{"Age":1}"#; count].join(","));
    vec![
        ("nothing", String::new()),
        ("a blank", " ".to_owned()),
        ("a word", "hello".to_owned()),
        ("null", "null".to_owned()),
        ("a number", "42".to_owned()),
        ("a text", r#""Age""#.to_owned()),
        ("a list", "[]".to_owned()),
        ("a list of rows without data", r#"[{"Age":40}]"#.to_owned()),
        ("half an object", r#"{"data":"#.to_owned()),
        ("an object without an end", r#"{"data":{"Age":40"#.to_owned()),
        ("a comma too many", row(r#""Age":40,"#)),
        ("a comma too few", row(r#""Age":40 "Annual_Income":1"#)),
        ("single quotes", "{'data':{}}".to_owned()),
        ("names without quotes", "{data:{}}".to_owned()),
        ("a comment", r#"{"data":{} /* none */}"#.to_owned()),
        ("two bodies", format!("{BODY}{BODY}")),
        ("something after the end", format!("{BODY}x")),
        ("two data", r#"{"data":{},"data":{}}"#.to_owned()),
        ("data and more", r#"{"data":{},"Age":40}"#.to_owned()),
        ("data is null", r#"{"data":null}"#.to_owned()),
        ("data is a text", r#"{"data":"Age"}"#.to_owned()),
        ("no rows", r#"{"data":[]}"#.to_owned()),
        ("a row that is a number", r#"{"data":[1]}"#.to_owned()),
        ("a row that is a list", r#"{"data":[[40,1.5,2]]}"#.to_owned()),
        ("an empty object", "{}".to_owned()),
        ("an empty row", row("")),
        ("a missing field", row(r#""Age":40,"Annual_Income":1.5"#)),
        ("an unknown field", row(r#""Age":40,"Annual_Income":1.5,"Outstanding_Debt":2,"Shoe_Size":43"#)),
        ("a misspelt field", row(r#""age":40,"Annual_Income":1.5,"Outstanding_Debt":2"#)),
        ("a field twice", row(r#""Age":40,"Age":41,"Annual_Income":1.5,"Outstanding_Debt":2"#)),
        ("a fraction for a whole number", age("40.5")),
        ("a word for a number", age(r#""old""#)),
        ("an empty text for a number", age(r#""""#)),
        ("a boolean for a number", age("true")),
        ("null for what is required", age("null")),
        ("a list for a number", age("[40]")),
        ("an object for a number", age(r#"{"years":40}"#)),
        ("a number beyond 64 bits", age("9223372036854775808")),
        ("a number in hexadecimal", age("0x28")),
        ("a number with a leading zero", age("040")),
        ("a number with a plus", age("+40")),
        ("NaN", income("NaN")),
        ("infinity", income("Infinity")),
        ("a number beyond any float", income("1e400")),
        ("NaN as text", income(r#""NaN""#)),
        ("a number for a text", mix("1")),
        ("a text that is too long", mix(&format!("{:?}", "x".repeat(4097)))),
        ("half a surrogate", mix(r#""\ud800""#)),
        ("a control character", mix("\"\u{1}\"")),
        ("an escape that is none", mix(r#""\x41""#)),
        ("a NUL in a text", mix(r#""Go\u0000od""#)),
        ("as deep as may be", nested(32)),
        ("deeper than may be", nested(33)),
        ("far too deep", nested(100_000)),
        ("a row of many with a mistake", r#"{"data":[{"Age":1,"Annual_Income":1,"Outstanding_Debt":1},{"Age":"x","Annual_Income":1,"Outstanding_Debt":1}]}"#.to_owned()),
        ("more mistakes than are told", rows(6)),
        ("a row too many", rows(1001)),
        ("markup in a name", row(r#""<script>alert(1)</script>":1"#)),
    ]
}

#[tokio::test]
async fn every_bad_body_is_the_callers_news_in_its_own_words() {
    let gate = Gate::serving(config(), MODEL).await;
    let mut told = String::new();
    for (what, body) in bad_bodies() {
        let answer = gate.predict(&["X-Request-Id: r"], &body).await;
        assert!((400..500).contains(&answer.status), "{what}: {}", answer.body);
        let json = answer.json();
        writeln!(told, "{what}\n  {} {}: {}", answer.status, answer.code(), json["detail"].as_str().unwrap()).unwrap();
        for error in json["errors"].as_array().into_iter().flatten() {
            writeln!(told, "  {error}").unwrap();
        }
    }
    assert_eq!(told, include_str!("server/bad_bodies.txt"), "now:\n{told}");
}

/// HTTP/2 by hand: one frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The frames of an answer: kind, flags, stream, payload.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while bytes.len() >= 9 {
        let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
        let stream = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
        let Some(payload) = bytes.get(9..9 + length) else { break };
        frames.push((bytes[3], bytes[4], stream, payload.to_vec()));
        bytes = &bytes[9 + length..];
    }
    frames
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
/// `:method GET`, `:scheme http`, `:path /livez`, `:authority gate`.
const GET_LIVEZ: &[u8] = b"\x82\x86\x04\x06/livez\x01\x04gate";

#[tokio::test]
async fn http2_is_understood_from_its_first_bytes() {
    let gate = Gate::start(config()).await;
    let mut connection = gate.connect().await;
    connection.send([PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 5, 1, GET_LIVEZ)].concat()).await;
    connection.send(frame(GO_AWAY, 0, 0, &[0; 8])).await;
    let frames = frames(&connection.rest_bytes().await);
    let of = |kind| frames.iter().find(|frame| frame.0 == kind && frame.2 == 1).map(|frame| frame.3.as_slice());
    // 0x88 is `:status 200`.
    assert_eq!(of(HEADERS).map(|headers| headers[0]), Some(0x88), "{frames:?}");
    assert_eq!(of(DATA), Some(br#"{"status":"live"}"#.as_slice()), "{frames:?}");
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_connection() {
    let gate = Gate::start(config()).await;
    let mut connection = gate.connect().await;
    let flood = (0..500).flat_map(|i| {
        let stream = 2 * i + 1;
        [frame(HEADERS, 5, stream, GET_LIVEZ), frame(RESET, 0, stream, &8_u32.to_be_bytes())].concat()
    });
    connection.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat().into_iter().chain(flood).collect::<Vec<_>>()).await;
    let frames = frames(&connection.rest_bytes().await);
    // 11 is ENHANCE_YOUR_CALM.
    let calm = frames.iter().find(|frame| frame.0 == GO_AWAY).map(|frame| frame.3[7]);
    assert_eq!(calm, Some(11), "{frames:?}");
    assert_eq!(gate.ask("GET", "/livez", &[], "").await.status, 200);
}
