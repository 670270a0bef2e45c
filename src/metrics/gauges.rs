//! Drift and accuracy as series: figures that stand as they are until the next look, and are not added up.

use std::sync::Arc;

use super::histogram::float;
use super::series::{FeatureOf, Scope, Series};
use crate::drift::report::{Report, Score, Verdict};
use crate::feedback::tally::Figures;
use crate::model::Identity;

/// What stands for the predictions among a model's features.
const PREDICTION: &str = "__prediction__";

/// What stands for their scores.
const SCORE: &str = "__score__";

/// The series of one version's drift. Only what has enough rows for a verdict has a figure.
pub(super) fn of(report: &Report) -> Vec<(Series, f64)> {
    let model = &report.id.name;
    let judged = || report.features.iter().filter(|score| is_judged(score));
    let mut series = vec![(Series::SampleRows(model.clone()), float(report.rows))];
    if judged().next().is_some() {
        let drifted = judged().filter(|score| score.verdict == Verdict::Drifted).count();
        series.push((Series::DriftedFeatures(model.clone()), float(drifted as u64)));
        series.push((Series::MaxPsi(model.clone()), judged().map(|score| score.psi).fold(0.0, f64::max)));
    }
    let outputs = report.prediction.iter().map(|score| (PREDICTION, score));
    let outputs = outputs.chain(report.score.iter().map(|score| (SCORE, score)));
    let features = report.features.iter().map(|score| (score.name.as_str(), score));
    for (name, score) in features.chain(outputs).filter(|(_, score)| is_judged(score)) {
        let of = FeatureOf { model: model.clone(), feature: Arc::from(name) };
        series.push((Series::Psi(of.clone()), score.psi));
        series.push((Series::FeatureDrift(of), score.robust));
    }
    series
}

/// The series of one version's accuracy.
pub(super) fn of_labels(id: &Identity, figures: &Figures) -> Vec<(Series, f64)> {
    let scope = Scope::version(id);
    let rows = (Series::LabelledRows(scope.clone()), float(figures.labelled_rows));
    let accuracy = figures.accuracy.map(|accuracy| (Series::Accuracy(scope.clone()), accuracy));
    let rmse = figures.rmse.map(|rmse| (Series::Rmse(scope), rmse));
    [rows].into_iter().chain(accuracy).chain(rmse).collect()
}

fn is_judged(score: &Score) -> bool {
    score.verdict != Verdict::NotEnoughData
}
