//! A loaded model version: its features, its session slots, its answers.
//!
//! `Session::run` takes `&mut self`, so a version has N slots, each owned by one run at a time.

use std::path::PathBuf;
use std::sync::Arc;

use super::Identity;
use super::features::{self, Features, Inputs};
use super::outputs::{Decision, Outputs};
use super::runtime::Runtime;
use super::signature::Signature;

/// Everything needed to load a version.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Which version it is.
    pub id: Identity,
    /// The ONNX file.
    pub onnx: PathBuf,
    /// The registry's signature; without one the graph's own inputs are the signature.
    pub signature: Option<Signature>,
    /// How callers write its features.
    pub features: features::Settings,
    /// How outputs become predictions.
    pub decision: Decision,
    /// Session slots: runs at one time.
    pub slots: usize,
}

/// A model version that can answer.
#[derive(Debug)]
pub struct Model {
    id: Arc<Identity>,
    features: Arc<Features>,
}

/// Why a version cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the model file")]
    Unreadable(#[source] std::io::Error),
}

/// Why a loaded model gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// ONNX Runtime reported an error.
    #[error("the model failed: {0}")]
    Runtime(String),
    /// The model answered with something that is no number.
    #[error("the model answered with a value that is not finite")]
    NotFinite,
    /// All slots are busy and the queue for them is full.
    #[error("all sessions are busy")]
    Overloaded,
}

impl Model {
    /// Loads a version. Blocking and possibly long: call it on a thread with a deep stack.
    ///
    /// # Errors
    /// When the version cannot be served, with what to do about it.
    pub fn load(runtime: &Runtime, spec: Spec) -> Result<Self, LoadError> {
        todo!()
    }

    /// Which version this is.
    #[must_use]
    pub fn id(&self) -> &Arc<Identity> {
        &self.id
    }

    /// What callers may send.
    #[must_use]
    pub fn features(&self) -> &Arc<Features> {
        &self.features
    }

    /// Answers every row, in order.
    ///
    /// # Errors
    /// When the model fails or answers something that is not finite.
    pub async fn predict(&self, inputs: &Inputs) -> Result<Outputs, PredictError> {
        todo!()
    }

    /// Runs `inputs` once through every slot, blocking; what a new version does before it is published.
    ///
    /// # Errors
    /// As [`predict`](Self::predict).
    pub fn warm_up(&self, inputs: &Inputs) -> Result<Outputs, PredictError> {
        todo!()
    }
}
