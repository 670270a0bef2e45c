//! The error catalogue, held to its documentation and to every byte that was sent before.

use std::fmt::Write as _;

use http_body_util::BodyExt as _;

use super::*;

/// Every way an error comes about, with the name of the way.
fn samples() -> Vec<(&'static str, ApiError)> {
    let standing = |name, limit, window| Standing {
        name,
        limit,
        window: Duration::from_secs(window),
        remaining: 0,
        resets_in: Duration::from_millis(1500),
    };
    let (rate, day) = (standing("rate", 100, 2), standing("day", 10_000, 86_400));
    let left = Standing { remaining: 8, ..day };
    let concurrency = standing("concurrency", 64, 0);
    let retry_after = Duration::from_millis(1500);
    let field = |feature: &str, expected: &str, found: &str| FieldError {
        row: 0,
        feature: feature.to_owned(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    };
    let errors = vec![field("Age", "a number", "\"old\""), field("Income", "a number", "nothing")];
    let models = || serde_json::json!([{ "name": "credit-score", "status": "waiting" }]);
    let poll = Duration::from_secs(30);
    vec![
        ("no route", ApiError::no_route()),
        ("method", ApiError::method_not_allowed("POST")),
        ("malformed request", ApiError::malformed_request("more than one Host header")),
        ("media type", ApiError::unsupported_media_type("send the body as Content-Type: application/json")),
        ("headers", ApiError::headers_too_large("a request may have 64 header fields".to_owned())),
        ("body too large", ApiError::body_too_large(2_097_152)),
        ("body too slow", ApiError::body_too_slow()),
        ("body broken", ApiError::broken_body("invalid chunk size")),
        ("overloaded", ApiError::overloaded()),
        ("deadline", ApiError::deadline_exceeded("quota")),
        ("draining", ApiError::draining(models())),
        ("not complete", ApiError::not_complete(models())),
        ("panic", ApiError::panicked(&"index out of bounds in /src/secret.rs")),
        ("model unknown", ApiError::not_served(&NotServed::Unknown, poll)),
        ("model not ready", ApiError::not_served(&NotServed::NotReady, poll)),
        (
            "version not held",
            ApiError::not_served(&NotServed::NotHeld(crate::model::Target::Alias("stable".into())), poll),
        ),
        ("model ambiguous", ApiError::not_served(&NotServed::Ambiguous, poll)),
        ("key missing", AuthError::Missing.into()),
        ("key unknown", AuthError::Unknown.into()),
        ("keys differ", AuthError::Ambiguous.into()),
        ("key not allowed", AuthError::NotAllowed.into()),
        ("json", WireError::Malformed { line: 1, column: 9, detail: "a value is missing".to_owned() }.into()),
        ("no rows", WireError::NoRows.into()),
        ("too many rows", WireError::TooManyRows { limit: 1000 }.into()),
        ("too deep", WireError::TooDeep { limit: 32 }.into()),
        ("input", InvalidInput { errors: errors.clone(), total: 2 }.into()),
        ("input, and more", InvalidInput { errors, total: 12 }.into()),
        ("key disabled", AuthError::Disabled.into()),
        ("key out of scope", AuthError::OutOfScope.into()),
        ("guessing", AuthError::Throttled { retry_after }.into()),
        ("name in use", ApiError::idempotency_in_progress()),
        ("name of another", ApiError::idempotency_mismatch()),
        ("busy", Refusal::Busy { standing: vec![concurrency, day], retry_after }.into()),
        ("throttled", Refusal::Throttled { standing: vec![rate, day], retry_after }.into()),
        ("exhausted", Refusal::Exhausted { standing: vec![day, rate], retry_after }.into()),
        ("more than is left", Refusal::Exhausted { standing: vec![left], retry_after }.into()),
        ("too much at once", Refusal::TooLarge { standing: vec![day], retry_after }.into()),
        ("no plan", Refusal::NoPlan.into()),
        ("quota store", Refusal::StoreDown.into()),
        ("runtime", PredictError::Runtime("node Gemm_3 in /models/7/model.onnx".to_owned()).into()),
        ("output", PredictError::NotFinite.into()),
        ("output shape", PredictError::Answer("3 rows for 2".to_owned()).into()),
        ("graph input", PredictError::Input(InvalidInput { errors: vec![], total: 1 }).into()),
        ("queue", PredictError::DeadlineExceeded { stage: Stage::Queue }.into()),
        ("run", PredictError::DeadlineExceeded { stage: Stage::Run }.into()),
        ("sessions busy", PredictError::Overloaded.into()),
        ("hint", ApiError::not_signed()),
        ("order", ApiError::order_refused(&Refused::NothingBefore)),
        ("order unknown", ApiError::order_refused(&Refused::Unknown)),
        ("order busy", ApiError::order_refused(&Refused::Busy)),
        ("history", ApiError::order_refused(&Refused::Unreadable)),
    ]
}

async fn render(style: ErrorStyle, name: &str, error: ApiError) -> String {
    let mut response = error.into_response(style, "0192f1c5-7d3a-7000-8000-000000000000", 7);
    let mut text = format!("## {name}\n{}\n", response.status());
    for (name, value) in response.headers() {
        writeln!(text, "{name}: {}", value.to_str().unwrap()).unwrap();
    }
    let body = response.body_mut().collect().await.unwrap().to_bytes();
    writeln!(text, "{}", str::from_utf8(&body).unwrap()).unwrap();
    text
}

async fn check_rendered(style: ErrorStyle, expect: &str) {
    let mut rendered = Vec::new();
    for (name, error) in samples() {
        rendered.push(render(style, name, error).await);
    }
    let rendered = rendered.join("\n");
    assert_eq!(rendered, expect, "now:\n{rendered}");
}

#[tokio::test]
async fn every_error_reads_as_it_always_has() {
    check_rendered(ErrorStyle::Problem, include_str!("rendered.txt")).await;
}

#[tokio::test]
async fn clients_of_api_gateway_read_what_they_always_have() {
    check_rendered(ErrorStyle::ApiGateway, include_str!("rendered_api_gateway.txt")).await;
}

#[test]
fn every_code_comes_about_somehow() {
    for code in Code::ALL {
        assert!(samples().iter().any(|(_, error)| error.code == code), "{code:?}");
    }
}

#[test]
fn what_failed_inside_is_for_the_log_only() {
    for (name, error) in samples() {
        let told = serde_json::to_string(&error.problem("id")).unwrap();
        assert!(!told.contains(".rs") && !told.contains(".onnx") && !told.contains("chunk size"), "{name}: {told}");
        assert!(error.code != Code::Internal || error.source().is_some(), "{name}");
    }
}

#[test]
fn the_documentation_lists_every_code_and_no_other() {
    let rows = include_str!("../../../docs/errors.md").lines().filter(|line| line.starts_with("| `"));
    let documented: Vec<String> =
        rows.map(|row| row.split('|').skip(1).take(3).map(str::trim).collect::<Vec<_>>().join(" ")).collect();
    let codes: Vec<String> = Code::ALL
        .into_iter()
        .map(|code| {
            let retry = if code.is_retryable() { "yes" } else { "no" };
            format!("`{}` {} {retry}", code.as_str(), code.status().as_u16())
        })
        .collect();
    assert_eq!(documented, codes);
}

#[test]
fn seconds_are_rounded_up_and_never_none() {
    for (wait, seconds) in [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (40_211_000, 40_211)] {
        assert_eq!(whole_seconds(Duration::from_millis(wait)), seconds, "{wait} ms");
    }
}
