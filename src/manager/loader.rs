//! From a folder on disk to a model that has proved it can answer. Blocking; runs on a thread of its own.

use crate::model::outputs::{Decision, DecisionError};
use crate::model::runtime::Runtime;
use crate::model::{Identity, LoadError, Model, PredictError, Spec};
use crate::registry::mlmodel::MlModel;
use crate::registry::{Fetched, Found, RegistryError};
use crate::task;

use super::{ModelConfig, example};

/// The loader's stack. ONNX Runtime recurses while it reads a graph: 2 MiB, the usual stack of a thread, ends the process
/// on a 40 KB file.
const STACK_BYTES: usize = 64 << 20;

/// Why a version is not fit to serve.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Its files are not what is needed.
    #[error(transparent)]
    Files(#[from] RegistryError),
    /// It cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tags that say how to read its outputs are not readable.
    #[error(transparent)]
    Tags(#[from] DecisionError),
    /// It loads, but gives no answer.
    #[error("the model does not answer its warm-up: {0}")]
    WarmUp(#[from] PredictError),
    /// The loader itself broke.
    #[error("the loader broke while it loaded the version")]
    LoaderBroke,
}

/// Loads and warms the version in `fetched`, on a thread with a deep stack.
pub(super) async fn load(
    runtime: Runtime,
    config: ModelConfig,
    slots: usize,
    found: Found,
    fetched: Fetched,
) -> Result<Model, Unfit> {
    let (done, result) = tokio::sync::oneshot::channel();
    let work = move || {
        // The receiver is gone only when the process stops in the middle of a load.
        let _ = done.send(load_blocking(&runtime, config, slots, &found, &fetched));
    };
    task::thread("model-loader", STACK_BYTES, work).map_err(|_| Unfit::LoaderBroke)?;
    result.await.unwrap_or(Err(Unfit::LoaderBroke))
}

fn load_blocking(
    runtime: &Runtime,
    config: ModelConfig,
    slots: usize,
    found: &Found,
    fetched: &Fetched,
) -> Result<Model, Unfit> {
    let mlmodel = MlModel::read(&fetched.folder)?;
    let decision = config.decision.or(Decision::from_tags(&found.tags)?);
    let model = Model::load(
        runtime,
        Spec {
            id: Identity::new(config.name, found.version, fetched.digest, found.alias.clone()),
            onnx: fetched.folder.join(&mlmodel.onnx),
            signature: mlmodel.signature,
            features: config.features,
            decision,
            slots,
        },
    )?;
    let example = mlmodel.input_example.and_then(|file| example::read(&fetched.folder.join(file), model.features()));
    model.warm_up(example.as_ref())?;
    Ok(model)
}
