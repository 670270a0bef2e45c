//! `modelgate dashboard`: the CloudWatch dashboard and alarms of a configuration, with their price before anything is made.

use anyhow::Context;

use super::Aws;
use crate::config::Config;
use crate::metrics::cloudwatch;
use crate::metrics::dashboard::{self, Price, Scope};

/// What the dashboard is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The dashboard's name.
    pub name: String,
    /// The region; that of the AWS configuration if unset, and `us-east-1` if that has none.
    pub region: Option<String>,
    /// Features of a model, for the price.
    pub features: u32,
    /// Who is told of an alarm: ARNs.
    pub actions: Vec<String>,
}

/// What to do with the dashboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Give back its body.
    Print,
    /// Put it and its alarms into CloudWatch; gives back what was done.
    Put,
}

/// Makes the dashboard. `tell_price` is given the price before anything is made.
///
/// # Errors
/// When there is nothing to show, or CloudWatch refuses.
pub fn dashboard(
    config: &Config,
    options: Options,
    task: Task,
    tell_price: impl FnOnce(&str) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let cloudwatch = config.sinks.cloudwatch.as_ref();
    let cloudwatch = cloudwatch.context("nothing is sent to CloudWatch: write [metrics.cloudwatch] first")?;
    let models: Vec<String> = config.manager.models.iter().map(|model| model.name.to_string()).collect();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let mut scope =
        Scope { namespace: cloudwatch.namespace.clone(), region: String::new(), models, actions: options.actions };
    let price = Price {
        models: count(scope.models.len()),
        features: options.features,
        plans: count(config.quota.plans.len()),
        alarms: count(dashboard::alarms(&scope).len()),
        interval_seconds: cloudwatch.interval.as_secs(),
    };
    tell_price(&price.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let aws = Aws::default();
        scope.region = match options.region {
            Some(region) => region,
            None => aws.config().await.region().map_or_else(|| "us-east-1".to_owned(), ToString::to_string),
        };
        if task == Task::Print {
            return Ok(serde_json::to_string_pretty(&dashboard::body(&scope)?)? + "\n");
        }
        let sdk = aws.config().await.clone().into_builder();
        let sdk = sdk.region(aws_config::Region::new(scope.region.clone())).build();
        let remarks = dashboard::put(&cloudwatch::client(&sdk), &options.name, &scope).await?;
        let remarks: Vec<String> = remarks.iter().map(|remark| format!("CloudWatch remarks: {remark}\n")).collect();
        let remarks = remarks.concat();
        Ok(format!("{remarks}put dashboard {} and {} alarms in {}\n", options.name, price.alarms, scope.region))
    })
}
