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

#[cfg(test)]
mod tests {
    use super::*;

    /// Names, counts and sums of what is made of five values whose sum is `sum`.
    fn check(series: &Series, sum: f64, expected: &[(&str, u64, f64)]) {
        let made = of(series, &Histogram::of(sum / 5.0, 5), &BTreeMap::new());
        let made: Vec<_> = made.iter().map(|(series, values)| (series.name(), values.total())).collect();
        let made: Vec<_> = made.iter().map(|(name, (count, sum))| (name.as_ref(), *count, *sum)).collect();
        assert_eq!(made, expected);
    }

    #[test]
    fn a_row_is_complete_or_not_whatever_the_feature_is() {
        let of = FeatureOf { model: "m".parse().unwrap(), feature: "Age".into() };
        let category = Series::FeatureCategory { of: of.clone(), category: "old".into() };
        let (data, non_null) = ("feature_data_Age", "feature_non_null_Age");
        check(&Series::FeatureValue(of.clone()), 200.0, &[(data, 5, 200.0), (non_null, 5, 5.0)]);
        check(&category, 5.0, &[(non_null, 5, 5.0)]);
        check(&Series::FeatureMissing(of.clone()), 5.0, &[(non_null, 5, 0.0)]);
        check(&Series::FeatureDrift(of.clone()), 1.0, &[("feature_baseline_drift_Age", 5, 1.0)]);
        check(&Series::FeatureUnseen(of), 5.0, &[]);
    }
}
