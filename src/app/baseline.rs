//! `modelgate baseline`: training data → the file that is logged with a version.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::time::Instant;

use super::RUNTIME_STACK_BYTES;
use crate::drift::baseline::Baseline;
use crate::drift::table::{Predictions, Table};
use crate::model::features::Settings;
use crate::model::runtime::Runtime;
use crate::model::signature::Signature;
use crate::model::{Digest, Features, Identity, Model, Spec, Version, outputs::Decision};
use crate::registry::mlmodel::{self, MlModel};
use crate::task;

/// The longest a model may take for one row.
const ROW_MAX: Duration = Duration::from_secs(30);

/// What the baseline is made of.
#[derive(Clone, Debug)]
pub struct BaselineSources {
    /// The training data: CSV.
    pub data: PathBuf,
    /// What says which columns are features, and of which type.
    pub features: FeatureSource,
    /// Bins of a numeric feature at most.
    pub bins: usize,
    /// Where the result goes.
    pub out: PathBuf,
}

/// What says which columns are features.
#[derive(Clone, Debug)]
pub enum FeatureSource {
    /// A version's folder: its signature, and the model itself, which is run over the rows.
    ModelDir(PathBuf),
    /// An `MLmodel` file: its signature.
    Signature(PathBuf),
    /// The data alone: every column is one.
    Data,
}

/// Makes a baseline and writes it; says in a line what it made.
///
/// # Errors
/// When the data or the model cannot be read, or do not fit each other.
pub fn baseline(sources: BaselineSources) -> anyhow::Result<String> {
    // ONNX Runtime recurses while it reads a graph.
    let made = task::thread("baseline", RUNTIME_STACK_BYTES, move || make(&sources))?;
    made.join().map_err(|_| anyhow::anyhow!("making the baseline broke"))?
}

fn make(sources: &BaselineSources) -> anyhow::Result<String> {
    let BaselineSources { data, features, bins, out } = sources;
    let file = File::open(data).with_context(|| format!("cannot read `{}`", data.display()))?;
    let table = Table::read(file).with_context(|| format!("cannot use `{}`", data.display()))?;
    let baseline = match features {
        FeatureSource::ModelDir(folder) => of_model(&table, folder, *bins)?,
        FeatureSource::Signature(file) => table.baseline_of(&grouped(&table, &mlmodel::signature_in(file)?)?, *bins)?,
        FeatureSource::Data => table.baseline_of_all(*bins)?,
    };
    std::fs::write(out, baseline.to_text()).with_context(|| format!("cannot write `{}`", out.display()))?;
    let ((total, looked_at), (features, predictions)) = (table.rows(), baseline.extent());
    let predictions = if predictions { "with the model's predictions" } else { "without predictions (--model-dir)" };
    Ok(format!("{features} features of {looked_at} rows (of {total}), {predictions}, in {}\n", out.display()))
}

/// The features of `signature`, with groups of one-hot columns where the data have a column for the group.
fn grouped(table: &Table, signature: &Signature) -> anyhow::Result<Features> {
    let plain = Features::new(signature, Settings::default())?;
    Ok(Features::new(signature, settings(table, &plain))?)
}

fn settings(table: &Table, plain: &Features) -> Settings {
    Settings { one_hot: table.groups(plain), ..Settings::default() }
}

fn of_model(table: &Table, folder: &Path, bins: usize) -> anyhow::Result<Baseline> {
    let mlmodel = MlModel::read(folder)?;
    let signature = mlmodel.signature.context("the model was logged without a signature: give it one")?;
    let plain = Features::new(&signature, Settings::default())?;
    let name = "baseline".parse().context("a plain word is a model's name")?;
    let model = Model::load(
        &Runtime::load(None)?,
        Spec {
            id: Identity::new(name, Version(0), Digest([0; 32]), None),
            onnx: folder.join(&mlmodel.onnx),
            signature: Some(signature),
            features: settings(table, &plain),
            decision: Decision::default(),
            slots: 1,
        },
    )?;
    model.warm_up(None)?;
    let baseline = table.baseline_of(model.features(), bins)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let predictions = runtime.block_on(predict_all(table, &model))?;
    Ok(baseline.with_predictions(predictions, bins))
}

async fn predict_all(table: &Table, model: &Model) -> anyhow::Result<Predictions> {
    let mut predictions = Predictions::default();
    for inputs in table.requests(model.features()) {
        predictions.add(&model.predict(&inputs, Instant::now() + ROW_MAX).await?);
    }
    Ok(predictions)
}
