//! What is measured: the names and dimensions of every series.

use std::borrow::Cow;
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
    /// Times that a version came to serve in place of another.
    Switched(Scope),
    /// The share of labelled rows whose class was right.
    Accuracy(Scope),
    /// The root of the mean squared distance of a predicted number from the true one.
    Rmse(Scope),
    /// Rows whose label came.
    LabelledRows(Scope),
    /// Measurements whose series found no room.
    Refused,
    /// Requests above a plan's rate, or above what it allows at one time.
    Throttled { plan: Arc<str> },
    /// Requests above a plan's quota.
    QuotaExceeded { plan: Arc<str> },
    /// Versions that were found unfit.
    VersionsRefused(ModelName),
    /// Versions that were left for the one before.
    Rollbacks(ModelName),
    /// A feature as SageMaker's Model Monitor names it.
    Monitor { of: FeatureOf, schedule: Arc<str>, figure: Monitored },
}

/// What Model Monitor says of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Monitored {
    /// Its values.
    Data,
    /// 0 or 1 a row, 1 where it has a value: the sum is what Model Monitor calls completeness, the average the share.
    NonNull,
    /// How far it is from its baseline, as [`Series::FeatureDrift`].
    BaselineDrift,
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

/// What a series is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Count,
    Milliseconds,
    /// A number of whatever the model's owner measures in.
    None,
}

impl Unit {
    /// As CloudWatch writes it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Count => "Count",
            Self::Milliseconds => "Milliseconds",
            Self::None => "None",
        }
    }
}

/// How the measurements of a series are to be read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Their sum is a number of things.
    Count,
    /// Their spread matters.
    Distribution,
    /// Each stands as it is until the next.
    Level,
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
    pub(super) fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
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
            Self::Switched(_) => "Switched",
            Self::Accuracy(_) => "Accuracy",
            Self::Rmse(_) => "RMSE",
            Self::LabelledRows(_) => "LabelledRows",
            Self::Refused => "SeriesRefused",
            Self::Throttled { .. } => "Throttled",
            Self::QuotaExceeded { .. } => "QuotaExceeded",
            Self::VersionsRefused(_) => "VersionsRefused",
            Self::Rollbacks(_) => "Rollbacks",
            Self::Monitor { of, figure, .. } => {
                let figure = match figure {
                    Monitored::Data => "data",
                    Monitored::NonNull => "non_null",
                    Monitored::BaselineDrift => "baseline_drift",
                };
                return Cow::Owned(format!("feature_{figure}_{}", of.feature));
            }
        })
    }

    /// Whether it is sent in the lean mode: one of six of each model, or the one that tells when there was no room for
    /// them.
    pub(super) fn is_lean(&self) -> bool {
        match self {
            Self::Requests(scope) | Self::Errors(scope) | Self::Latency(scope) | Self::Prediction(scope) => {
                scope.version.is_none()
            }
            Self::DriftedFeatures(_) | Self::MaxPsi(_) | Self::Refused => true,
            Self::PredictionClass { .. }
            | Self::FeatureValue(_)
            | Self::FeatureMissing(_)
            | Self::FeatureUnseen(_)
            | Self::FeatureCategory { .. }
            | Self::Psi(_)
            | Self::FeatureDrift(_)
            | Self::SampleRows(_)
            | Self::Switched(_)
            | Self::Accuracy(_)
            | Self::Rmse(_)
            | Self::LabelledRows(_)
            | Self::Throttled { .. }
            | Self::QuotaExceeded { .. }
            | Self::VersionsRefused(_)
            | Self::Rollbacks(_)
            | Self::Monitor { .. } => false,
        }
    }

    /// Whether it is of a model where each of its versions has one of its own.
    pub(super) fn is_over_versions(&self) -> bool {
        match self {
            Self::Requests(scope) | Self::Errors(scope) | Self::Latency(scope) | Self::Prediction(scope) => {
                scope.version.is_none()
            }
            _ => false,
        }
    }

    /// What its values are counted in.
    pub(super) fn unit(&self) -> Unit {
        match self {
            Self::Latency(_) => Unit::Milliseconds,
            Self::Prediction(_)
            | Self::FeatureValue(_)
            | Self::Psi(_)
            | Self::FeatureDrift(_)
            | Self::MaxPsi(_)
            | Self::Accuracy(_)
            | Self::Rmse(_)
            | Self::Monitor { .. } => Unit::None,
            Self::Requests(_)
            | Self::Errors(_)
            | Self::PredictionClass { .. }
            | Self::FeatureMissing(_)
            | Self::FeatureUnseen(_)
            | Self::FeatureCategory { .. }
            | Self::DriftedFeatures(_)
            | Self::SampleRows(_)
            | Self::Switched(_)
            | Self::LabelledRows(_)
            | Self::Refused
            | Self::Throttled { .. }
            | Self::QuotaExceeded { .. }
            | Self::VersionsRefused(_)
            | Self::Rollbacks(_) => Unit::Count,
        }
    }

    /// How its measurements are to be read together.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Latency(_)
            | Self::Prediction(_)
            | Self::FeatureValue(_)
            | Self::Monitor { figure: Monitored::Data, .. } => Kind::Distribution,
            Self::Psi(_)
            | Self::FeatureDrift(_)
            | Self::DriftedFeatures(_)
            | Self::MaxPsi(_)
            | Self::SampleRows(_)
            | Self::Accuracy(_)
            | Self::Rmse(_)
            | Self::LabelledRows(_)
            | Self::Monitor { figure: Monitored::BaselineDrift, .. } => Kind::Level,
            Self::Requests(_)
            | Self::Errors(_)
            | Self::PredictionClass { .. }
            | Self::FeatureMissing(_)
            | Self::FeatureUnseen(_)
            | Self::FeatureCategory { .. }
            | Self::Switched(_)
            | Self::Refused
            | Self::Throttled { .. }
            | Self::QuotaExceeded { .. }
            | Self::VersionsRefused(_)
            | Self::Rollbacks(_)
            | Self::Monitor { figure: Monitored::NonNull, .. } => Kind::Count,
        }
    }

    /// The dimensions' names and values, as they are.
    pub(super) fn dimensions(&self) -> Vec<(&'static str, String)> {
        let texts: Vec<(&'static str, &dyn ToString)> = match self {
            Self::Requests(scope)
            | Self::Errors(scope)
            | Self::Latency(scope)
            | Self::Prediction(scope)
            | Self::Switched(scope)
            | Self::Accuracy(scope)
            | Self::Rmse(scope)
            | Self::LabelledRows(scope) => {
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
            | Self::VersionsRefused(model)
            | Self::Rollbacks(model) => vec![("Model", model)],
            Self::Refused => Vec::new(),
            Self::Throttled { plan } | Self::QuotaExceeded { plan } => vec![("Plan", plan)],
            Self::Monitor { of, schedule, .. } => vec![("Endpoint", &of.model), ("MonitoringSchedule", schedule)],
        };
        texts.into_iter().map(|(name, text)| (name, text.to_string())).collect()
    }
}
