//! A model's features under the names that SageMaker's Model Monitor gave them, so that alarms made for it go on.
//!
//! Model Monitor sends `feature_data_<feature>`, `feature_non_null_<feature>` and `feature_baseline_drift_<feature>` with
//! the dimensions `Endpoint` and `MonitoringSchedule`, into the namespace `aws/sagemaker/Endpoints/data-metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::histogram::Histogram;
use super::series::{FeatureOf, Monitored, Series};
use crate::model::ModelName;

/// What is measured of `series` as Model Monitor would have it: nothing, if that knows no such thing.
pub(super) fn of(
    series: &Series,
    values: &Histogram,
    schedules: &BTreeMap<ModelName, String>,
) -> Vec<(Series, Histogram)> {
    let rows = |value: f64| Histogram::of(value, values.total().0);
    let (of, measured) = match series {
        Series::FeatureValue(of) => (of, vec![(Monitored::Data, values.clone()), (Monitored::NonNull, rows(1.0))]),
        Series::FeatureCategory { of, .. } => (of, vec![(Monitored::NonNull, rows(1.0))]),
        Series::FeatureMissing(of) => (of, vec![(Monitored::NonNull, rows(0.0))]),
        Series::FeatureDrift(of) => (of, vec![(Monitored::BaselineDrift, values.clone())]),
        _ => return Vec::new(),
    };
    let schedule: Arc<str> = schedule_of(&of.model, schedules).into();
    let named = |(figure, values)| (monitor(of, &schedule, figure), values);
    measured.into_iter().map(named).collect()
}

fn schedule_of<'s>(model: &'s ModelName, schedules: &'s BTreeMap<ModelName, String>) -> &'s str {
    schedules.get(model).map_or(model.as_str(), String::as_str)
}

fn monitor(of: &FeatureOf, schedule: &Arc<str>, figure: Monitored) -> Series {
    Series::Monitor { of: of.clone(), schedule: Arc::clone(schedule), figure }
}
