//! One line of measurements as `PutMetricData` takes it, inside the limits of its reference.

use aws_sdk_cloudwatch::primitives::DateTime;
use aws_sdk_cloudwatch::types::{Dimension, MetricDatum, StandardUnit};
use jiff::Timestamp;

use super::histogram::{Point, float};
use super::series::Series;
use super::text::{dimensions, metric_name};

/// Values of one datum at most (`PutMetricData`, `Values`).
const VALUES_MAX: usize = 150;

/// Bytes of one value and its count in CBOR: two doubles with their marks.
const POINT_BYTES: usize = 18;

/// Bytes of a datum's keys, time stamp, unit and list heads in CBOR, rounded up.
const DATUM_BYTES: usize = 160;

/// Bytes of a dimension's keys and list heads in CBOR, rounded up.
const DIMENSION_BYTES: usize = 24;

/// The measurements of one series in one minute. Never empty.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) series: Series,
    pub(super) points: Vec<Point>,
}

impl Line {
    /// Into how many datums it goes.
    pub(super) fn datums(&self) -> usize {
        self.points.len().div_ceil(VALUES_MAX)
    }

    /// How long its datums are in CBOR at most.
    pub(super) fn wire_bytes(&self) -> usize {
        let dimensions: usize =
            dimensions(&self.series).iter().map(|(name, value)| DIMENSION_BYTES + name.len() + value.len()).sum();
        self.datums() * (DATUM_BYTES + metric_name(&self.series).len() + dimensions) + self.points.len() * POINT_BYTES
    }

    /// How much memory it takes, about.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.points.len() * size_of::<Point>()
    }

    /// Its datums, measured in the minute `at`.
    pub(super) fn to_datums(&self, at: Timestamp) -> impl Iterator<Item = MetricDatum> {
        let dimensions: Vec<Dimension> = dimensions(&self.series)
            .into_iter()
            .map(|(name, value)| Dimension::builder().name(name).value(value).build())
            .collect();
        self.points.chunks(VALUES_MAX).map(move |points| {
            MetricDatum::builder()
                .metric_name(metric_name(&self.series))
                .set_dimensions(Some(dimensions.clone()))
                .timestamp(DateTime::from_secs(at.as_second()))
                .set_values(Some(points.iter().map(|point| point.value).collect()))
                .set_counts(Some(points.iter().map(|point| float(point.count)).collect()))
                .unit(StandardUnit::from(self.series.unit().as_str()))
                .storage_resolution(60)
                .build()
        })
    }
}
