//! What the user wrote → [`Config`], every value valid; or every mistake at once, each with file, line and key.

use std::path::PathBuf;

use crate::{auth, capture, manager, metrics, quota, registry, server, telemetry};

/// Everything the process needs to know, ready to use.
#[derive(Clone, Debug)]
pub struct Config {
    /// Keys, usage, model cache, spool.
    pub data_dir: PathBuf,
    /// Where ONNX Runtime is, if the user says.
    pub onnxruntime: Option<PathBuf>,
    /// Addresses and limits.
    pub server: server::Config,
    /// Where versions come from.
    pub registry: registry::Config,
    /// Which models, and how often to look.
    pub manager: manager::Config,
    /// Where keys live and what plans allow.
    pub auth: auth::Config,
    /// Plans.
    pub quota: quota::Config,
    /// What is measured.
    pub metrics: metrics::Config,
    /// Whether and where measurements go to CloudWatch.
    pub cloudwatch: Option<metrics::cloudwatch::Config>,
    /// Whether and where samples are kept.
    pub capture: Option<capture::Config>,
    /// Logs and traces.
    pub telemetry: telemetry::Config,
}
