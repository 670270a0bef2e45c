//! `modelgate doctor`: one line for each thing a gateway needs from outside, and the cure where it is missing.

use std::process::Command;

use modelgate::clock::Clock;

use crate::support::cloudwatch::{CloudWatch, Mode};
use crate::support::hostile_registry::{Hostile, say};
use crate::support::mlflow;
use crate::support::otlp::{self, Collector};
use crate::support::redis;
use crate::support::s3::{self, BUCKET, S3, SECRET};
use crate::support::site::Site;

/// A site with a good model, samples in `sink` and figures in CloudWatch.
fn site(sink: &str) -> Site {
    site_with(&format!("[capture]\nsink = \"{sink}\"\n[metrics.cloudwatch]\nnamespace = \"Gate\"\n"))
}

/// A site with a good model, and what else is asked for.
fn site_with(more: &str) -> Site {
    let site = Site::new(&format!("[plans.open]\n[[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n{more}"));
    site.register_sum("sum", 1, 1000.0);
    site.promote("sum", 1);
    site
}

/// What the doctor says of `site` in this environment and no other, and whether all is well.
async fn doctor(site: &Site, environment: &[(&str, &str)]) -> (String, bool) {
    site.config();
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelgate"));
    command.arg("doctor").arg("--config").arg(site.folder().join("modelgate.toml"));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", site.folder());
    // A stand-in has no metadata service, and asking a real one takes seconds.
    command.envs([("AWS_REGION", "us-east-1"), ("AWS_EC2_METADATA_DISABLED", "true"), ("AWS_MAX_ATTEMPTS", "1")]);
    command.envs(environment.iter().copied());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (String::from_utf8([output.stdout, output.stderr].concat()).unwrap(), output.status.success())
}

/// The environment in which AWS is at these places, with this secret.
fn aws<'e>(s3: &'e str, cloudwatch: &'e str, secret: &'e str) -> [(&'e str, &'e str); 4] {
    [
        ("AWS_ENDPOINT_URL_S3", s3),
        ("AWS_ENDPOINT_URL_CLOUDWATCH", cloudwatch),
        ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", secret),
    ]
}

/// Checks that the one line about `what` says all of `says`, and that no other line is wrong.
#[track_caller]
fn assert_only_wrong(report: &(String, bool), what: &str, says: &[&str]) {
    let (text, good) = report;
    let wrong: Vec<&str> = text.lines().filter(|line| line.starts_with("WRONG")).collect();
    assert!(!good && wrong.len() == 1, "{text}");
    for part in [what].iter().chain(says) {
        assert!(wrong[0].contains(part), "no `{part}` in: {}", wrong[0]);
    }
}

async fn nobody() -> String {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", free.local_addr().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_is_written_to_and_each_reason_against_it_has_its_cure() {
    let mut s3 = S3::start().await;
    let cloudwatch = CloudWatch::start(Clock::system().now()).await;
    let (at, figures) = (s3.endpoint(), cloudwatch.endpoint().to_owned());
    let site = site(&format!("s3://{BUCKET}/drift"));
    let (well, good) = doctor(&site, &aws(&at, &figures, SECRET)).await;
    assert!(good && well.contains("s3://samples/drift/modelgate-doctor was written"), "{well}");
    assert!(well.contains("Gate takes figures"), "{well}");
    assert_eq!(well.lines().count(), 6, "one line each: {well}");

    let by_name = at.replace("127.0.0.1", "localhost");
    let (well, good) = doctor(&site, &aws(&by_name, &figures, SECRET)).await;
    assert!(good, "a stand-in by a name: {well}");

    let report = doctor(&site, &aws(&at, &figures, "a wrong secret")).await;
    assert_only_wrong(&report, "samples", &["SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"]);
    for (status, code, cure) in [
        (404, "NoSuchBucket", "create the bucket samples, or name another in capture.sink"),
        (403, "AccessDenied", "give this identity s3:PutObject on samples/drift*"),
    ] {
        // What AWS says; the S3 of the tests makes a bucket where there is none, and has nobody who may not.
        let xml = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
        let status = http::StatusCode::from_u16(status).unwrap();
        let refusing = Hostile::saying(move || say(status, "application/xml", xml.clone())).await;
        let report = doctor(&site, &aws(refusing.uri.as_str(), &figures, SECRET)).await;
        assert_only_wrong(&report, "samples", &[code, cure]);
    }
    s3.stop().await;
    let report = doctor(&site, &aws(&at, &figures, SECRET)).await;
    assert_only_wrong(&report, "samples", &["is the network open", "AWS_ENDPOINT_URL_S3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cloudwatch_takes_one_figure_and_each_reason_against_it_has_its_cure() {
    let s3 = S3::start().await;
    let cloudwatch = CloudWatch::start(Clock::system().now()).await;
    let (at, figures, away) = (s3.endpoint(), cloudwatch.endpoint().to_owned(), nobody().await);
    let site = site(&format!("s3://{BUCKET}/drift"));
    cloudwatch.set_mode(Mode::Deny);
    let report = doctor(&site, &aws(&at, &figures, SECRET)).await;
    let permission = "give this identity cloudwatch:PutMetricData for the namespace Gate";
    assert_only_wrong(&report, "CloudWatch", &["AccessDenied", permission]);
    let report = doctor(&site, &aws(&at, &away, SECRET)).await;
    assert_only_wrong(&report, "CloudWatch", &["is the network open", "AWS_ENDPOINT_URL_CLOUDWATCH"]);
    assert!(cloudwatch.datums().is_empty(), "nothing was taken so far");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_identity_in_aws_is_told_to_get_one() {
    let s3 = S3::start().await;
    let site = site("file:{folder}/samples");
    let (text, good) = doctor(&site, &[("AWS_ENDPOINT_URL", &s3.endpoint())]).await;
    assert!(!good && text.contains("give this process an identity"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_refuses_us_is_one_line_with_its_cure() {
    let server = mlflow::v3_guarded();
    let mut uri = server.uri.clone();
    uri.set_password(Some("wrong")).unwrap();
    let site = Site::new(&format!(
        "[plans.open]\n[[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n[registry]\nuri = \"{uri}\"\n"
    ));
    let report = doctor(&site, &[]).await;
    assert_only_wrong(&report, "registry: sum", &["does not accept the user name and password"]);
    assert!(!report.0.contains("wrong@"), "{}", report.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_store_is_written_to_and_each_reason_against_it_has_its_cure() {
    let mut server = redis::Server::start();
    let site = site_with(&format!("[quota]\nstore = \"{}\"\nnamespace = \"gate\"\n", server.url()));
    let (well, good) = doctor(&site, &[]).await;
    assert!(good && well.contains("quota store") && well.contains("can be written to"), "{well}");
    assert!(server.command(&["DBSIZE"]).starts_with(":0"), "nothing is left behind");

    server.command(&["CONFIG", "SET", "maxmemory-policy", "volatile-lru"]);
    assert_only_wrong(&doctor(&site, &[]).await, "quota store", &["volatile-lru", "set it to noeviction"]);
    // Who may not ask for the policy is not told off for it.
    server.command(&["ACL", "SETUSER", "default", "-info"]);
    let (well, good) = doctor(&site, &[]).await;
    assert!(good, "{well}");
    server.command(&["ACL", "SETUSER", "default", "-hset"]);
    assert_only_wrong(&doctor(&site, &[]).await, "quota store", &["hset", "the rights of docs/shared-quota.md"]);
    server.command(&["ACL", "SETUSER", "default", "resetpass", ">secret"]);
    assert_only_wrong(&doctor(&site, &[]).await, "quota store", &["are the user and the password right"]);
    server.kill();
    assert_only_wrong(&doctor(&site, &[]).await, "quota store", &["is quota.store right, and the network open?"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_is_asked_and_each_reason_against_it_has_its_cure() {
    let collector = Collector::start().await;
    let site = site_with("[metrics.otlp]\nendpoint = \"http://127.0.0.1:9/v1/metrics\"\n");
    let (at, away) = (collector.endpoint().to_owned(), nobody().await);
    let (well, good) = doctor(&site, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &at)]).await;
    assert!(good && well.contains("/v1/metrics takes figures"), "{well}");
    assert_eq!((collector.calls(), collector.points().len(), collector.refusals().len()), (1, 0, 0));
    collector.set_mode(otlp::Mode::Unknown);
    let report = doctor(&site, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &at)]).await;
    assert_only_wrong(&report, "OTLP", &["401", "its headers"]);
    let report = doctor(&site, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &away)]).await;
    assert_only_wrong(&report, "OTLP", &["does a collector listen there?"]);
}
