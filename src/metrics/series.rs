//! What is measured: the names and dimensions of every series.

use std::sync::Arc;

use super::PlanLimit;
use crate::model::{Identity, ModelName, Version};

/// One series as CloudWatch counts them: a metric's name and its dimensions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Series {
    /// Requests that got as far as a model, answered or failed.
    Requests(Scope),
    /// Those of them that failed through no fault of the caller (5xx): 0 or 1 a request, so that the average is the rate.
    Errors(Scope),
    /// How long a request took, in milliseconds.
    Latency(Scope),
    /// The score of each prediction, or the value a regression predicts.
    Prediction(Scope),
    /// Predictions by what they say.
    PredictionClass { model: ModelName, class: Arc<str> },
    /// The values of a feature; false and true as 0 and 1.
    FeatureValue(FeatureOf),
    /// Rows without a value for an optional feature.
    FeatureMissing(FeatureOf),
    /// Rows with a category the model has no column for.
    FeatureUnseen(FeatureOf),
    /// Rows by the text of a feature.
    FeatureCategory { of: FeatureOf, category: Arc<str> },
    /// How far a feature is from its baseline: population stability index.
    Psi(FeatureOf),
    /// The largest difference between a feature's distribution and its baseline's, less what chance makes of it.
    FeatureDrift(FeatureOf),
    /// Features that have drifted.
    DriftedFeatures(ModelName),
    /// The largest PSI of a feature that has enough rows.
    MaxPsi(ModelName),
    /// Rows that drift is computed of.
    SampleRows(ModelName),
    /// Measurements whose series found no room.
    Refused,
    /// Requests above a plan's rate, or above what it allows at one time.
    Throttled { plan: Arc<str> },
    /// Requests above a plan's quota.
    QuotaExceeded { plan: Arc<str> },
    /// Versions that came to answer.
    VersionsServed(ModelName),
    /// Versions that were found unfit.
    VersionsRefused(ModelName),
    /// Versions that were left for the one before.
    Rollbacks(ModelName),
}

/// All versions of a model together, or one of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Scope {
    pub(super) model: ModelName,
    pub(super) version: Option<Version>,
}

/// A feature of all versions of a model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FeatureOf {
    pub(super) model: ModelName,
    pub(super) feature: Arc<str>,
}

impl Scope {
    /// The version `id` names.
    pub(super) fn version(id: &Identity) -> Self {
        Self { model: id.name.clone(), version: Some(id.version) }
    }

    /// Both scopes something about `id` is measured in: its model and its version.
    pub(super) fn both(id: &Identity) -> [Self; 2] {
        [Self { model: id.name.clone(), version: None }, Self::version(id)]
    }
}

impl Series {
    /// Requests of `plan` that passed `limit`.
    pub(super) fn of_plan(plan: Arc<str>, limit: PlanLimit) -> Self {
        match limit {
            PlanLimit::Throttle => Self::Throttled { plan },
            PlanLimit::Quota => Self::QuotaExceeded { plan },
        }
    }

    /// The metric's name.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Requests(_) => "Requests",
            Self::Errors(_) => "Errors",
            Self::Latency(_) => "Latency",
            Self::Prediction(_) => "Prediction",
            Self::PredictionClass { .. } => "PredictionClass",
            Self::FeatureValue(_) => "FeatureValue",
            Self::FeatureMissing(_) => "FeatureMissing",
            Self::FeatureUnseen(_) => "FeatureUnseen",
            Self::FeatureCategory { .. } => "FeatureCategory",
            Self::Psi(_) => "PSI",
            Self::FeatureDrift(_) => "FeatureDrift",
            Self::DriftedFeatures(_) => "DriftedFeatures",
            Self::MaxPsi(_) => "MaxPSI",
            Self::SampleRows(_) => "SampleRows",
            Self::Refused => "SeriesRefused",
            Self::Throttled { .. } => "Throttled",
            Self::QuotaExceeded { .. } => "QuotaExceeded",
            Self::VersionsServed(_) => "VersionsServed",
            Self::VersionsRefused(_) => "VersionsRefused",
            Self::Rollbacks(_) => "Rollbacks",
        }
    }

    /// Whether it is one of the six that are sent of each model in the lean mode.
    pub(super) fn is_lean(&self) -> bool {
        match self {
            Self::Requests(scope) | Self::Errors(scope) | Self::Latency(scope) | Self::Prediction(scope) => {
                scope.version.is_none()
            }
            Self::DriftedFeatures(_) | Self::MaxPsi(_) => true,
            Self::PredictionClass { .. }
            | Self::FeatureValue(_)
            | Self::FeatureMissing(_)
            | Self::FeatureUnseen(_)
            | Self::FeatureCategory { .. }
            | Self::Psi(_)
            | Self::FeatureDrift(_)
            | Self::SampleRows(_)
            | Self::Refused
            | Self::Throttled { .. }
            | Self::QuotaExceeded { .. }
            | Self::VersionsServed(_)
            | Self::VersionsRefused(_)
            | Self::Rollbacks(_) => false,
        }
    }

    /// The dimensions' names and values, as they are.
    pub(super) fn dimensions(&self) -> Vec<(&'static str, String)> {
        let texts: Vec<(&'static str, &dyn ToString)> = match self {
            Self::Requests(scope) | Self::Errors(scope) | Self::Latency(scope) | Self::Prediction(scope) => {
                let version = scope.version.as_ref().map(|version| ("Version", version as &dyn ToString));
                std::iter::once(("Model", &scope.model as &dyn ToString)).chain(version).collect()
            }
            Self::PredictionClass { model, class } => vec![("Model", model), ("Class", class)],
            Self::FeatureValue(of)
            | Self::FeatureMissing(of)
            | Self::FeatureUnseen(of)
            | Self::Psi(of)
            | Self::FeatureDrift(of) => {
                vec![("Model", &of.model), ("Feature", &of.feature)]
            }
            Self::FeatureCategory { of, category } => {
                vec![("Model", &of.model), ("Feature", &of.feature), ("Category", category)]
            }
            Self::DriftedFeatures(model)
            | Self::MaxPsi(model)
            | Self::SampleRows(model)
            | Self::VersionsServed(model)
            | Self::VersionsRefused(model)
            | Self::Rollbacks(model) => vec![("Model", model)],
            Self::Refused => Vec::new(),
            Self::Throttled { plan } | Self::QuotaExceeded { plan } => vec![("Plan", plan)],
        };
        texts.into_iter().map(|(name, text)| (name, text.to_string())).collect()
    }
}
