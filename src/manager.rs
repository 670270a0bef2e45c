//! The control plane: asks the registry which version is wanted, loads it aside, publishes it, lets the old one go.
//!
//! Nothing here is on a request's path. Absence is never an instruction: a registry that is down, slow, lying or empty
//! changes nothing about what is served.

use std::time::Duration;

use crate::model::ModelName;
use crate::model::features::Settings;
use crate::model::outputs::Decision;
use crate::registry::Select;

/// How the control plane goes about it.
#[derive(Clone, Debug)]
pub struct Config {
    /// How often the registry is asked.
    pub poll_interval: Duration,
    /// Session slots per version: runs at one time.
    pub slots: usize,
    /// The models to serve.
    pub models: Vec<ModelConfig>,
}

/// One `[[model]]` of the configuration.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The name in URLs, metrics and samples.
    pub name: ModelName,
    /// The registry's name for it.
    pub registered_model: String,
    /// Which version.
    pub select: Select,
    /// How callers write its features.
    pub features: Settings,
    /// How outputs become predictions; what is unset here may come from the version's tags.
    pub decision: Decision,
}
