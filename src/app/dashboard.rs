//! `modelgate dashboard`: the CloudWatch dashboard and alarms of a configuration, with their price before anything is made.

use anyhow::{bail, ensure};

use super::Aws;
use crate::config::Config;
use crate::metrics::cloudwatch;
use crate::metrics::dashboard::{self, Price, Scope, Way};

/// What the dashboard is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The dashboard's name.
    pub name: String,
    /// The region; that of the AWS configuration if unset, and `us-east-1` if that has none.
    pub region: Option<String>,
    /// What a model has, for the price.
    pub model: Shape,
    /// Who is told of an alarm: ARNs.
    pub actions: Vec<String>,
}

/// What a model has.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Features that are numbers.
    pub features: u32,
    /// Features that are texts.
    pub text_features: u32,
    /// Categories of each text.
    pub categories: u32,
    /// Classes it predicts.
    pub classes: u32,
}

/// What to do with the dashboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Give back its body.
    Print,
    /// Put it and its alarms into CloudWatch; gives back what was done.
    Put,
}

/// Makes the dashboard. `may_go_on` is given the price before anything is made, and says whether to.
///
/// # Errors
/// When there is nothing to show, it may not, or CloudWatch refuses.
pub fn dashboard(
    config: &Config,
    options: Options,
    task: Task,
    may_go_on: impl FnOnce(&str) -> anyhow::Result<bool>,
) -> anyhow::Result<String> {
    let (to, way) = match (&config.sinks.cloudwatch, &config.sinks.emf) {
        (Some(to), _) => (to, Way::Api),
        (None, Some(to)) => (to, Way::Logs),
        (None, None) => bail!("nothing is sent to CloudWatch: write [metrics.cloudwatch] or [metrics.emf] first"),
    };
    let models: Vec<String> = config.manager.models.iter().map(|model| model.name.to_string()).collect();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let (namespace, mode) = (to.namespace.clone(), to.mode.clone());
    let mut scope = Scope { namespace, region: String::new(), mode, models, actions: options.actions };
    let Shape { features, text_features, categories, classes } = options.model;
    let price = Price {
        models: count(scope.models.len()),
        features,
        text_features,
        categories,
        classes,
        plans: count(config.quota.plans.len()),
        alarms: count(dashboard::alarms(&scope).len()),
        interval_seconds: to.interval.as_secs(),
        mode: scope.mode.clone(),
        way,
    };
    ensure!(may_go_on(&price.to_string())?, "nothing was put; say --yes to be asked nothing");
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
