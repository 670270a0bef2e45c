//! `modelgate doctor`: everything a gateway needs from outside, one line each, and the cure where something is missing.

use std::path::Path;

use aws_sdk_cloudwatch::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_cloudwatch::primitives::DateTime;
use aws_sdk_cloudwatch::types::{MetricDatum, StandardUnit};

use super::operate::table;
use super::{Aws, block_on, http_client, load_runtime, open_registry, s3_client};
use crate::capture::sink;
use crate::clock::Clock;
use crate::config::Config;
use crate::manager::ModelConfig;
use crate::metrics::otlp;
use crate::model::loading::Loading;
use crate::quota::{Location, Redis, Unfit};
use crate::registry::cache::Cache;
use crate::registry::mlmodel::MlModel;
use crate::registry::{Registry, RegistryError};

/// The object that shows whether a bucket takes samples. It is empty, and written again each time.
const PROBE: &str = "modelgate-doctor";

/// What was looked at, and what is wrong with it.
struct Finding {
    what: String,
    /// What was found; or what is wrong, with the cure.
    found: Result<String, String>,
}

impl Finding {
    fn new(what: impl Into<String>, found: Result<String, String>) -> Self {
        Self { what: what.into(), found }
    }
}

/// One line for each thing, and whether all is well.
///
/// # Errors
/// When not even looking is possible.
pub fn doctor(config: &Config) -> anyhow::Result<(String, bool)> {
    block_on(async {
        let mut findings = vec![data_dir(&config.data_dir), runtime(config).await];
        let aws = Aws::default();
        let registry = open_registry(config.registry.clone(), &aws)?;
        for model in &config.manager.models {
            findings.extend(version(&registry, model).await?);
        }
        if let Some(capture) = &config.capture {
            findings.push(samples(&capture.sink, &aws).await);
        }
        if let Some(to) = &config.sinks.cloudwatch {
            findings.push(cloudwatch(&to.namespace, &aws).await);
        }
        if let Some(to) = config.sinks.otlp.clone() {
            findings.push(collector(to).await?);
        }
        if let Location::Redis(store) = &config.quota.store {
            findings.push(quota_store(store).await);
        }
        let good = findings.iter().all(|finding| finding.found.is_ok());
        let rows: Vec<_> = findings.into_iter().map(row).collect();
        Ok((table(&rows), good))
    })
}

fn row(Finding { what, found }: Finding) -> [String; 3] {
    match found {
        Ok(found) => ["ok".to_owned(), what, found],
        Err(wrong) => ["WRONG".to_owned(), what, wrong],
    }
}

fn data_dir(path: &Path) -> Finding {
    let writable = super::make_data_dir(path)
        .and_then(|()| tempfile::tempfile_in(path).map_err(anyhow::Error::from))
        .map(|_| path.display().to_string());
    let cure =
        |error| format!("{error:#}: give this user the right to write there, or set data_dir to where it has it");
    Finding::new("data_dir", writable.map_err(cure))
}

async fn runtime(config: &Config) -> Finding {
    let loaded = load_runtime(config.onnxruntime.clone()).await;
    Finding::new(
        "ONNX Runtime",
        loaded.map(|runtime| runtime.version().to_owned()).map_err(|error| format!("{error:#}")),
    )
}

/// What the registry says of a model, and whether its flavour can be served.
async fn version(registry: &Registry, model: &ModelConfig) -> anyhow::Result<Vec<Finding>> {
    let what = format!("registry: {}", model.name);
    let found = match registry.resolve(&model.registered_model, &model.select).await {
        Ok(found) => found,
        Err(error) => return Ok(vec![Finding::new(what, Err(error.to_string()))]),
    };
    let named = found.alias.as_deref().map_or_else(String::new, |alias| format!(", by its alias {alias}"));
    let seen = Finding::new(what, Ok(format!("version {}{named}", found.version)));
    let scratch = tempfile::tempdir()?;
    let cache = Cache::open(scratch.path().join("cache"))?;
    let servable = async {
        let fetched = registry.fetch(&found, &cache, &Loading::default()).await?;
        Ok::<_, RegistryError>(MlModel::read(&fetched.folder)?.onnx)
    };
    let servable = servable.await.map_err(|error| error.to_string());
    Ok(vec![seen, Finding::new(format!("flavour: {}", model.name), servable.map(|onnx| format!("ONNX, in {onnx}")))])
}

async fn samples(sink: &sink::Config, aws: &Aws) -> Finding {
    let found = match sink {
        sink::Config::Directory(folder) => writable(folder),
        sink::Config::S3 { bucket, prefix } => {
            let key = if prefix.is_empty() { PROBE.to_owned() } else { format!("{prefix}/{PROBE}") };
            let put = s3_client(aws.config().await).put_object().bucket(bucket).key(&key).send().await;
            let cure = |refusal: Refusal| match refusal.kind {
                Kind::NoSuchPlace => format!("{refusal}: create the bucket {bucket}, or name another in capture.sink"),
                _ => refusal.cure(&format!("s3:PutObject on {bucket}/{prefix}*"), "AWS_ENDPOINT_URL_S3"),
            };
            put.map(|_| format!("s3://{bucket}/{key} was written")).map_err(|error| cure(Refusal::read(&error)))
        }
    };
    Finding::new("samples", found)
}

fn writable(folder: &Path) -> Result<String, String> {
    let made = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder));
    made.map(|_| folder.display().to_string())
        .map_err(|error| format!("{}: {error}: give this user the right to write there", folder.display()))
}

/// Sends one figure under a name of its own, so that no real one is touched.
async fn cloudwatch(namespace: &str, aws: &Aws) -> Finding {
    let client = crate::metrics::cloudwatch::client(aws.config().await);
    let now = DateTime::from_secs(Clock::system().now().as_second());
    let datum =
        MetricDatum::builder().metric_name("Doctor").timestamp(now).unit(StandardUnit::Count).value(1.0).build();
    let sent = client.put_metric_data().namespace(namespace).metric_data(datum).send().await;
    let cure = |error| {
        let permission = format!("cloudwatch:PutMetricData for the namespace {namespace}");
        Refusal::read(&error).cure(&permission, "AWS_ENDPOINT_URL_CLOUDWATCH")
    };
    let found = sent.map(|_| format!("{namespace} takes figures")).map_err(cure);
    Finding::new("CloudWatch", found)
}

async fn collector(to: otlp::Config) -> anyhow::Result<Finding> {
    let endpoint = to.endpoint.clone();
    let found = otlp::look(http_client(None)?, to).await;
    let cure = |wrong| {
        format!(
            "{endpoint}: {wrong}: are metrics.otlp.endpoint and its headers right, and does a collector listen there?"
        )
    };
    Ok(Finding::new("OTLP", found.map(|()| format!("{endpoint} takes figures")).map_err(cure)))
}

async fn quota_store(store: &Redis) -> Finding {
    let place = format!("{}:{}", store.url.host_str().unwrap_or_default(), store.url.port().unwrap_or(6379));
    let cure = |unfit| match unfit {
        Unfit::Unreachable(_) => format!("{place}: {unfit}: is quota.store right, and the network open?"),
        Unfit::NotAllowed(_) => format!(
            "{place}: {unfit}: are the user and the password right, and has the user the rights of docs/shared-quota.md?"
        ),
        Unfit::Evicts(_) => format!("{place}: {unfit}: set it to noeviction"),
    };
    let found = store.look().await.map(|()| format!("{place} can be written to")).map_err(cure);
    Finding::new("quota store", found)
}

/// Why AWS did not do what it was asked to.
struct Refusal {
    kind: Kind,
    text: String,
}

/// What kind of refusal it is: each has a cure of its own.
#[derive(Clone, Copy)]
enum Kind {
    /// Nothing was sent: there is no identity to sign it with.
    NoIdentity,
    /// AWS does not know this identity, or its signature is not good.
    UnknownIdentity,
    /// This identity may not.
    NotAllowed,
    /// There is no such bucket.
    NoSuchPlace,
    /// Nobody answered.
    NoAnswer,
    Other,
}

impl Refusal {
    fn read<E>(error: &SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let code = error.code();
        let text = one_line(error);
        let kind = match (error, code) {
            (_, Some("NoSuchBucket" | "NotFound")) => Kind::NoSuchPlace,
            (_, Some("AccessDenied" | "AccessDeniedException" | "AuthorizationError")) => Kind::NotAllowed,
            (_, Some(code)) if IDENTITY_CODES.contains(&code) => Kind::UnknownIdentity,
            // Without credentials nothing is sent.
            (_, None) if text.contains("credentials") => Kind::NoIdentity,
            (SdkError::DispatchFailure(_) | SdkError::TimeoutError(_), None) => Kind::NoAnswer,
            _ => Kind::Other,
        };
        Self { kind, text }
    }

    /// What is wrong, and what to do about it.
    fn cure(&self, permission: &str, endpoint: &str) -> String {
        let cure = match self.kind {
            Kind::NoIdentity => "give this process an identity: a role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            Kind::UnknownIdentity => {
                "are AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN right, and the clock?"
            }
            Kind::NotAllowed => return format!("{self}: give this identity {permission}"),
            Kind::NoAnswer => {
                return format!(
                    "{self}: is the network open, and are AWS_REGION and {endpoint}, where it is set, right?"
                );
            }
            Kind::NoSuchPlace | Kind::Other => return format!("{self}: does this identity have {permission}?"),
        };
        format!("{self}: {cure}")
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// What AWS says of an identity that it does not take.
const IDENTITY_CODES: [&str; 7] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestTimeTooSkewed",
];

/// What the service said; or else the error with its causes. In one line.
fn one_line<E: ProvideErrorMetadata + std::error::Error + 'static>(error: &SdkError<E>) -> String {
    let said = match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        (None, _) => {
            let error: &(dyn std::error::Error + 'static) = error;
            let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
            causes.collect::<Vec<_>>().join(": ")
        }
    };
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}
