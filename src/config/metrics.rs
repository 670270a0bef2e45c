//! What is measured, and the sinks it goes to.

use std::collections::BTreeMap;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::layer::{Origin, Value};
use super::reader::Section;
use super::sections::{HOUR, Signal, collector, count, non_zero, otlp_endpoint, otlp_service_name};
use super::value::{Parsed, SECOND, duration, map, text_as, word};
use super::{Sinks, variable};
use crate::metrics::{Config, Mode, cloudwatch, otlp};
use crate::model::ModelName;

pub(super) fn read(mut s: Section<'_>, env: &[(String, String)]) -> (Config, Sinks) {
    let config = Config {
        max_series: non_zero(s.defaulted("max_series", count())),
        max_categories: non_zero(s.defaulted("max_categories", count())),
    };
    let cloudwatch = s.optional_section("cloudwatch").map(to_cloudwatch);
    let emf = s.optional_section("emf").map(to_cloudwatch);
    let otlp = s.optional_section("otlp").and_then(|section| to_otlp(section, env));
    let namespace = |to: &Option<cloudwatch::Config>| to.as_ref().map(|to| to.namespace.clone());
    if emf.is_some() && namespace(&cloudwatch) == namespace(&emf) {
        s.mistake("emf", "expected another namespace than metrics.cloudwatch: CloudWatch would count everything twice");
    }
    s.finish();
    (config, Sinks { cloudwatch, emf, otlp })
}

/// Both ways into CloudWatch have the same keys.
fn to_cloudwatch(mut s: Section<'_>) -> cloudwatch::Config {
    let expected = "1 to 255 printable ASCII characters, not beginning with \":\" or \"AWS/\"";
    let namespace = s.defaulted("namespace", text_as(expected, namespace));
    let interval = s.defaulted("interval", duration(SECOND * 10..=HOUR));
    let no_schedules = || Mode::SageMaker { schedules: BTreeMap::new() };
    let modes = [("full", Mode::Full), ("lean", Mode::Lean), ("sagemaker", no_schedules())];
    let mode = s.defaulted("mode", word(&modes, &[]));
    let schedules = s.optional("schedules", map("a table of texts, such as { credit-score = \"nightly\" }", schedule));
    let mode = match (mode, schedules) {
        (Mode::SageMaker { .. }, Some(schedules)) => Mode::SageMaker { schedules: by_model(&mut s, schedules) },
        (mode, None) => mode,
        (mode, Some(_)) => {
            s.mistake("schedules", "expected `mode = \"sagemaker\"` with it");
            mode
        }
    };
    s.finish();
    cloudwatch::Config { namespace, interval, mode }
}

fn by_model(s: &mut Section<'_>, schedules: BTreeMap<String, String>) -> BTreeMap<ModelName, String> {
    let mut named = BTreeMap::new();
    for (name, schedule) in schedules {
        match name.parse() {
            Ok(model) => drop(named.insert(model, schedule)),
            Err(error) => s.mistake("schedules", &format!("{error}")),
        }
    }
    named
}

/// The name of a monitoring schedule, by SageMaker's rules.
fn schedule(value: &Value) -> Parsed<String> {
    let legal = |text: &str| {
        let good = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        (good && (1..=63).contains(&text.len())).then(|| text.to_owned())
    };
    text_as("a schedule's name of 1 to 63 of A-Z a-z 0-9 -", legal)(value)
}

/// CloudWatch's own rules for a namespace.
fn namespace(text: &str) -> Option<String> {
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    let allowed = printable && !text.starts_with(':') && !text.starts_with("AWS/") && !text.trim().is_empty();
    (allowed && text.len() <= 255).then(|| text.to_owned())
}

const METRICS: Signal = Signal {
    name: "metrics",
    endpoint: "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    protocol: "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
};

/// OpenTelemetry's variables go over the file, as every variable does.
fn to_otlp(mut s: Section<'_>, env: &[(String, String)]) -> Option<otlp::Config> {
    let written =
        s.optional("endpoint", text_as("an address, such as \"http://localhost:4318/v1/metrics\"", collector));
    let interval = s.defaulted("interval", duration(SECOND * 10..=HOUR));
    let mode = s.defaulted("mode", word(&[("full", Mode::Full), ("lean", Mode::Lean)], &[]));
    let headers = otlp_headers(&mut s, env);
    let endpoint = otlp_endpoint(&mut s, env, &METRICS).or(written);
    if endpoint.is_none() && !s.has("endpoint") {
        s.refuse("expected an `endpoint`, or OTEL_EXPORTER_OTLP_ENDPOINT in the environment");
    }
    s.finish();
    Some(otlp::Config { endpoint: endpoint?, headers, service_name: otlp_service_name(env), interval, mode })
}

/// `name=value,name=value`, the values percent-encoded, as OpenTelemetry writes headers.
fn otlp_headers(s: &mut Section<'_>, env: &[(String, String)]) -> HeaderMap {
    let names = ["OTEL_EXPORTER_OTLP_METRICS_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
    let given = names.into_iter().find_map(|name| variable(env, name).map(|text| (name, text)));
    let Some((name, text)) = given else { return HeaderMap::new() };
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(header).collect::<Option<HeaderMap>>().unwrap_or_else(|| {
        // The text may hold a secret: it is not shown.
        let text = "expected headers as `name=value,name=value`, the values percent-encoded";
        s.mistake_at(Origin::Variable(name.to_owned()), text);
        HeaderMap::new()
    })
}

fn header(part: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = part.split_once('=')?;
    let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
    let mut value = HeaderValue::from_str(&value).ok()?;
    value.set_sensitive(true);
    Some((name.trim().parse().ok()?, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(part: &str, expected: Option<(&str, &str)>) {
        let read = header(part);
        let read = read.as_ref().map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        assert_eq!(read, expected);
    }

    #[test]
    fn headers_are_written_as_opentelemetry_writes_them() {
        check("api-key=a%20b%3D%2C", Some(("api-key", "a b=,")));
        check(" Tenant = x ", Some(("tenant", "x")));
        check("no value", None);
        check("a b=c", None);
        check("a=%0A", None);
    }

    #[test]
    fn a_header_is_a_secret() {
        assert!(header("a=b").unwrap().1.is_sensitive());
    }
}
