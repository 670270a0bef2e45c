//! From a folder on disk to a model that has proved it can answer. Blocking; runs on a thread of its own.

use std::path::PathBuf;

#[cfg(target_os = "linux")]
use rustix::process::nice;

use crate::model::features::Settings;
use crate::model::outputs::{Decision, DecisionError};
use crate::model::runtime::Runtime;
use crate::model::{Identity, LoadError, Model, Outputs, PredictError, Spec};
use crate::registry::RegistryError;
use crate::registry::mlmodel::MlModel;
use crate::task;

use super::example;

/// The loader's stack. ONNX Runtime recurses while it reads a graph: 2 MiB, the usual stack of a thread, ends the process
/// on a 40 KB file.
pub(super) const STACK_BYTES: usize = 64 << 20;

/// How much a loader yields the processor to the threads that answer requests: a third of what one of them gets.
pub(super) const YIELD: i32 = 5;

/// Why a version is not fit to serve.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Its files are not what is needed.
    #[error(transparent)]
    Files(#[from] RegistryError),
    /// The tags that say how to read its outputs are not readable.
    #[error(transparent)]
    Tags(#[from] DecisionError),
    /// It cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It loads, but gives no answer.
    #[error("the model does not answer its warm-up: {0}")]
    WarmUp(#[from] PredictError),
    /// The loader itself broke.
    #[error("the loader broke while it loaded the version")]
    LoaderBroke,
}

/// What to load.
#[derive(Debug)]
pub(super) struct Parts {
    /// Which version it is.
    pub(super) id: Identity,
    /// Where its files are.
    pub(super) folder: PathBuf,
    /// How callers write its features.
    pub(super) features: Settings,
    /// How its outputs become predictions.
    pub(super) decision: Decision,
    /// Session slots.
    pub(super) slots: usize,
}

/// Runs `work`, which loads models, on a thread with a deep stack that yields to those of requests. Waits for it without
/// blocking.
pub(super) async fn on_deep_stack<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unfit> {
    let (done, result) = tokio::sync::oneshot::channel();
    let work = move || {
        // On Linux it is the thread that yields. One that may not is in the way of requests, and nothing worse.
        #[cfg(target_os = "linux")]
        let _ = nice(YIELD);
        // The receiver is gone only when the process stops in the middle of a load.
        let _ = done.send(work());
    };
    task::thread("model-loader", STACK_BYTES, work).map_err(|_| Unfit::LoaderBroke)?;
    let result = result.await.map_err(|_| Unfit::LoaderBroke);
    // Reading a graph takes a multiple of its file, which is free by now. Not on the thread that yields: trimming locks what
    // requests allocate from.
    tokio::task::spawn_blocking(glibc_trim::trim);
    result
}

/// Loads and warms a version. Returns the answers to its input example, where it was logged with one.
pub(super) fn load(runtime: &Runtime, parts: Parts) -> Result<(Model, Option<Outputs>), Unfit> {
    let mlmodel = MlModel::read(&parts.folder)?;
    let model = Model::load(
        runtime,
        Spec {
            id: parts.id,
            onnx: parts.folder.join(&mlmodel.onnx),
            signature: mlmodel.signature,
            features: parts.features,
            decision: parts.decision,
            slots: parts.slots,
        },
    )?;
    let example = mlmodel.input_example.and_then(|file| example::read(&parts.folder.join(file), model.features()));
    let answers = model.warm_up(example.as_ref())?;
    Ok((model, answers))
}
