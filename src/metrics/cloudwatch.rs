//! CloudWatch by its API: one `PutMetricData` for each batch, inside every limit of its reference.

use std::time::Duration;

use aws_sdk_cloudwatch::config::retry::RetryConfig;
use aws_sdk_cloudwatch::config::timeout::TimeoutConfig;
use aws_sdk_cloudwatch::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_cloudwatch::operation::put_metric_data::PutMetricDataError;

use super::Mode;
use super::flusher::Answer;
use super::queue::Batch;

/// What goes to CloudWatch, by its API or through its logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The CloudWatch namespace.
    pub namespace: String,
    /// How often.
    pub interval: Duration,
    /// What is sent.
    pub mode: Mode,
}

/// The longest a call may take, with everything.
const CALL_MAX: Duration = Duration::from_secs(10);

/// A client with our manners: one attempt a call, because the next flush is the next attempt, and a time limit.
#[must_use]
pub fn client(sdk: &aws_config::SdkConfig) -> aws_sdk_cloudwatch::Client {
    let config = aws_sdk_cloudwatch::config::Builder::from(sdk)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_timeout(CALL_MAX).build())
        .build();
    aws_sdk_cloudwatch::Client::from_conf(config)
}

/// Sends one batch.
pub(super) async fn put(client: &aws_sdk_cloudwatch::Client, namespace: &str, batch: &Batch) -> Answer {
    let at = batch.span.minute();
    let datums = batch.lines.iter().flat_map(|line| line.to_datums(at)).collect();
    match client.put_metric_data().namespace(namespace).set_metric_data(Some(datums)).send().await {
        Ok(_) => Answer::Received,
        Err(error) => answer_of(&error),
    }
}

fn answer_of(error: &SdkError<PutMetricDataError>) -> Answer {
    let reason = DisplayErrorContext(error).to_string();
    if is_invalid(error) { Answer::Invalid(reason) } else { Answer::Failed(reason) }
}

/// Whether the fault lies in the call, by the codes CloudWatch has for that. All else may pass: throttling, faults of
/// the service or the network, and credentials, which somebody will renew.
fn is_invalid(error: &SdkError<PutMetricDataError>) -> bool {
    const CODES: [&str; 5] = [
        "InvalidParameterValue",
        "InvalidParameterCombination",
        "MissingParameter",
        "MissingRequiredParameter",
        "ValidationError",
    ];
    const TOO_LARGE: u16 = 413;
    let code = error.code().map(|code| code.strip_suffix("Exception").unwrap_or(code));
    let status = error.raw_response().map(|response| response.status().as_u16());
    code.is_some_and(|code| CODES.contains(&code)) || status == Some(TOO_LARGE)
}
