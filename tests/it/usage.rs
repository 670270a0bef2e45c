//! Plans as callers meet them: what a plan allows, what it says of itself, and what it refuses, over the front door.

use jiff::civil::Weekday;
use jiff::tz::Offset;
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::redis::Server;
use crate::support::site::{Answer, Gate, Site, eventually};

/// A gateway that serves `sum`, with `text` in its configuration, and a key of the plan `test`.
async fn gate(text: &str) -> (Site, Gate) {
    let mut site = Site::new(&format!("{text}\n[[model]]\nname = \"sum\"\n"));
    site.register_sum("sum", 1, 1000.0);
    site.promote("sum", 1);
    let gate = site.start("test").await;
    gate.serves("sum", 1).await;
    (site, gate)
}

fn rows(count: usize) -> Value {
    json!(vec![json!({"a": 1, "b": 2, "c": 3}); count])
}

async fn usage(gate: &Gate) -> Value {
    gate.get(gate.data, "/usage").await.body
}

/// When the present period ends, as the gateway says.
async fn resets_at(plan: &str) -> Timestamp {
    let (_site, gate) = gate(&format!("[plans.test]\nquota = 10\n{plan}")).await;
    let told = usage(&gate).await;
    let at = told["quota"]["resets_at"].as_str().unwrap_or_else(|| panic!("{told}")).parse().unwrap();
    gate.stop().await;
    at
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn periods_end_with_the_day_the_week_and_the_month_and_later_with_an_offset() {
    let midnight = |at: Timestamp| at.as_second() % 86_400 == 0;
    let date = |at: Timestamp| Offset::UTC.to_datetime(at).date();
    assert!(midnight(resets_at("period = \"day\"").await));
    let week = resets_at("period = \"week\"").await;
    assert!(midnight(week) && date(week).weekday() == Weekday::Monday, "{week}");
    let month = resets_at("period = \"month\"").await;
    assert!(midnight(month) && date(month).day() == 1, "{month}");
    assert!(midnight(resets_at("period = \"day\"\noffset = \"3h\"").await - 3.hours()));
    let sunday = resets_at("period = \"week\"\noffset = \"144h\"").await;
    assert!(midnight(sunday) && date(sunday).weekday() == Weekday::Sunday, "{sunday}");
    let fifteenth = resets_at("period = \"month\"\noffset = \"336h\"").await;
    assert!(midnight(fifteenth) && date(fifteenth).day() == 15, "{fifteenth}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_store_keeps_the_offset_too() {
    let server = Server::start();
    let (_site, gate) =
        gate(&format!("[plans.test]\nquota = 10\noffset = \"100h\"\n[quota]\nstore = \"{}\"", server.url())).await;
    eventually("the store to be reached", async || usage(&gate).await["used"].is_u64()).await;
    let told = usage(&gate).await;
    let at: Timestamp = told["quota"]["resets_at"].as_str().unwrap().parse().unwrap();
    assert_eq!((at - 4.hours()).as_second() % 86_400, 0, "{told}");
    assert!(told["limits"][0]["resets_in_seconds"].as_u64().unwrap() <= 86_400, "{told}");
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_counted_whatever_their_rows_where_the_plan_says_so() {
    let (_site, gate) = gate("[plans.test]\nquota = 3\nunit = \"requests\"").await;
    for used in 1..=3 {
        assert_eq!(gate.predict("sum", &rows(10)).await.status, 200);
        let told = usage(&gate).await;
        assert_eq!((&told["used"], &told["unit"]), (&json!(used), &json!("requests")));
    }
    assert_refused(&gate.predict("sum", &rows(1)).await, "quota_exceeded", "day");
    gate.stop().await;
}

/// A 429 with all that a caller needs to know.
fn assert_refused(answer: &Answer, code: &str, policy: &str) {
    assert_eq!((answer.status, &answer.body["code"]), (429, &json!(code)), "{}", answer.body);
    assert_eq!(answer.header("content-type"), "application/problem+json");
    assert_eq!(answer.body["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(answer.body["violated-policies"], json!([policy]));
    let limit = answer.header("ratelimit");
    assert!(limit.starts_with(&format!("\"{policy}\";r=0;t=")), "{limit}");
    let until: u64 = limit.split("t=").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    let retry_after: u64 = answer.header("retry-after").parse().unwrap();
    assert!(retry_after >= until, "not earlier than {until}: {retry_after}");
    assert!(answer.header("ratelimit-policy").starts_with(&format!("\"{policy}\";q=")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_name_the_limit_and_the_time_to_come_back() {
    let (_site, gate) = gate("[plans.test]\nrate = 0.01\nburst = 2\nquota = 100").await;
    for left in ["r=1", "r=0"] {
        let answer = gate.predict("sum", &rows(1)).await;
        assert_eq!(answer.header("ratelimit-policy"), "\"rate\";q=2;w=200, \"day\";q=100;w=86400");
        assert!(answer.header("ratelimit").contains(left), "{}", answer.header("ratelimit"));
    }
    assert_refused(&gate.predict("sum", &rows(1)).await, "rate_limited", "rate");
    assert_eq!(usage(&gate).await["used"], 2, "who is throttled is not charged");
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_at_one_time_than_the_plan_says_is_refused_and_room_is_made_again() {
    let (_site, gate) = gate("[plans.test]\nconcurrency = 1\nquota = 100").await;
    let body = json!({ "data": rows(1) }).to_string();
    let (half, rest) = body.split_at(10);
    let mut slow = TcpStream::connect(gate.data).await.unwrap();
    let head = format!(
        "POST /predict HTTP/1.1\r\nHost: gate\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nx-api-key: {}\r\n\r\n{half}",
        body.len(),
        gate.key
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    let metrics = format!("http://{}/metrics", gate.admin);
    eventually("the place to be taken", async || {
        let page = gate.http.get(&metrics).send().await.unwrap().text().await.unwrap();
        page.contains("modelgate_predictions_in_flight{} 1.0")
    })
    .await;
    let refused = gate.predict("sum", &rows(1)).await;
    assert_refused(&refused, "rate_limited", "concurrency");
    assert!(refused.header("ratelimit-policy").contains("q=1;qu=\"concurrent-requests\""));
    slow.write_all(rest.as_bytes()).await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    eventually("the place to be free", async || gate.predict("sum", &rows(1)).await.status == 200).await;
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_tells_what_it_would_have_refused_and_refuses_nothing() {
    let (_site, gate) = gate("[plans.test]\nrate = 0.01\nburst = 2\nquota = 3\nenforce = false").await;
    for _ in 0..6 {
        assert_eq!(gate.predict("sum", &rows(1)).await.status, 200);
    }
    let told = usage(&gate).await;
    assert_eq!((&told["used"], &told["enforced"]), (&json!(3), &json!(false)));
    let page = gate.http.get(format!("http://{}/metrics", gate.admin)).send().await.unwrap().text().await.unwrap();
    for line in ["modelgate_throttled_total{plan=\"test\"} 4", "modelgate_quota_exceeded_total{plan=\"test\"} 3"] {
        assert!(page.contains(line), "{line} in {page}");
    }
    gate.stop().await;
}

/// What `/usage` says while the store cannot be asked.
async fn check_usage_without_a_store(enforce: bool) {
    let mut server = Server::start();
    let url = server.url();
    server.kill();
    let plan = format!("[plans.test]\nrate = 5\nquota = 100\nenforce = {enforce}\n[quota]\nstore = \"{url}\"\n");
    let (_site, gate) = gate(&plan).await;
    let answer = gate.get(gate.data, "/usage").await;
    assert_eq!((answer.status, answer.header("modelgate-quota")), (200, "degraded"), "{}", answer.body);
    assert_eq!((&answer.body["used"], &answer.body["quota"]["amount"]), (&Value::Null, &json!(100)));
    assert_eq!(answer.body["throttle"]["rate"], 5.0);
    assert_eq!(gate.predict("sum", &rows(1)).await.status, 200, "a row is lent");
    let answer = gate.get(gate.data, "/usage").await;
    assert_eq!((&answer.body["used"], answer.header("modelgate-quota")), (&json!(1), "degraded"));
    server.restart();
    eventually("the store to be back", async || {
        gate.get(gate.data, "/usage").await.header("modelgate-quota").is_empty()
    })
    .await;
    assert_eq!(usage(&gate).await["used"], 1);
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_told_as_far_as_it_is_known_while_the_store_is_down() {
    check_usage_without_a_store(true).await;
    check_usage_without_a_store(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_api_gateway_meets_its_limits_in_its_words() {
    let (_site, gate) =
        gate("[plans.test]\nrate = 0.01\nburst = 3\nquota = 2\n[server]\nerror_style = \"api-gateway\"\n").await;
    let client = gate.client();
    let check = |answer: &Answer, status, message: &str, error_type| {
        assert_eq!((answer.status, &answer.body), (status, &json!({ "message": message })));
        assert_eq!(answer.header("x-amzn-errortype"), error_type);
        assert_eq!(answer.header("x-amzn-requestid"), answer.header("x-request-id"));
    };
    let huge = json!({ "data": "x".repeat(3 << 20) }).to_string();
    check(&client.post("/predict", huge).await, 413, "Request Too Long", "BadRequestException");
    assert_eq!(gate.predict("sum", &rows(2)).await.status, 200);
    check(&gate.predict("sum", &rows(1)).await, 429, "Limit Exceeded", "LimitExceededException");
    assert_eq!(client.post("/predict", "{").await.status, 400);
    check(&gate.predict("sum", &rows(1)).await, 429, "Too Many Requests", "TooManyRequestsException");
    gate.stop().await;
}
