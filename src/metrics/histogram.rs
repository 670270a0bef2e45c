//! How often values of which size came: buckets of equal relative width that keep their sums.
//!
//! A bucket is named by the sign, the exponent and the first five bits of the mantissa, so each octave has 32 of them
//! and a bucket is about 3 % wide. It keeps count and sum, and answers with the mean of its members: exact wherever a
//! bucket has one distinct value, as for whole numbers up to 64, and the sum over all buckets is always the sum of
//! what was added.

use std::collections::HashMap;

use foldhash::fast::FixedState;

/// `PutMetricData` takes values from -2^360 to 2^360; what is beyond is measured as the limit.
pub(super) const VALUE_LIMIT: f64 = f64::from_bits((1023 + 360) << 52);

/// Distinct buckets at most: two datums' worth. Past it, neighbours are joined two by two, as often as it takes.
pub(super) const BUCKETS_MAX: usize = 300;

/// The mantissa bits that are left out of a bucket's name, 52 less five.
const BITS_LEFT_OUT: u32 = 47;

/// Counts and sums by bucket.
#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    /// How many times neighbours were joined.
    joined: u32,
    // The hasher's seed need not be secret: there are at most `BUCKETS_MAX` keys to collide.
    buckets: HashMap<u64, Bucket, FixedState>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    count: u64,
    sum: f64,
}

/// A value and how often it came.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) value: f64,
    pub(super) count: u64,
}

impl Histogram {
    /// A histogram of one value that came `count` times.
    pub(super) fn of(value: f64, count: u64) -> Self {
        let mut histogram = Self::default();
        histogram.add(value, count);
        histogram
    }

    /// Adds `value` as often as `count` says. What is not a number is left out.
    pub(super) fn add(&mut self, value: f64, count: u64) {
        if value.is_nan() || count == 0 {
            return;
        }
        // Adding zero makes -0 and 0 one value.
        let value = value.clamp(-VALUE_LIMIT, VALUE_LIMIT) + 0.0;
        let sum = value * float(count);
        self.put(value.to_bits() >> (BITS_LEFT_OUT + self.joined), Bucket { count, sum });
    }

    /// Adds everything `other` holds.
    pub(super) fn merge(&mut self, other: &Self) {
        while self.joined < other.joined {
            self.join_neighbours();
        }
        for (key, bucket) in &other.buckets {
            // Read again each time: putting may have joined neighbours.
            let narrower = self.joined - other.joined;
            self.put(key >> narrower, *bucket);
        }
    }

    /// Whether nothing was added.
    pub(super) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// How many values were added, and their sum.
    pub(super) fn total(&self) -> (u64, f64) {
        self.buckets.values().fold((0, 0.0), |(count, sum), bucket| (count + bucket.count, sum + bucket.sum))
    }

    /// The mean of each bucket with its count, ascending.
    pub(super) fn points(&self) -> Vec<Point> {
        let mut points: Vec<Point> = self.buckets.values().map(Bucket::point).collect();
        points.sort_unstable_by(|a, b| a.value.total_cmp(&b.value));
        points
    }

    fn put(&mut self, key: u64, more: Bucket) {
        self.buckets.entry(key).or_default().merge(more);
        while self.buckets.len() > BUCKETS_MAX {
            self.join_neighbours();
        }
    }

    /// Halves the resolution: drops one more bit of every bucket's name.
    fn join_neighbours(&mut self) {
        self.joined += 1;
        for (key, bucket) in std::mem::take(&mut self.buckets) {
            self.buckets.entry(key >> 1).or_default().merge(bucket);
        }
    }
}

impl Bucket {
    fn merge(&mut self, more: Self) {
        self.count += more.count;
        self.sum += more.sum;
    }

    fn point(&self) -> Point {
        // Rounding in a long sum can push the mean of equal values past the limit they were held to.
        let mean = (self.sum / float(self.count)).clamp(-VALUE_LIMIT, VALUE_LIMIT);
        Point { value: mean, count: self.count }
    }
}

/// A count as CloudWatch and Prometheus carry it.
#[expect(clippy::cast_precision_loss, reason = "counts of requests stay far below 2^53")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[f64]) -> Histogram {
        let mut histogram = Histogram::default();
        for value in values {
            histogram.add(*value, 1);
        }
        histogram
    }

    fn check_sum(values: &[f64], histogram: &Histogram) {
        let (count, sum) = histogram.total();
        let wanted: f64 = values.iter().sum();
        let size: f64 = values.iter().map(|value| value.abs()).sum();
        assert_eq!(count, values.len() as u64);
        assert!((sum - wanted).abs() <= size * 1e-12, "{sum} is not {wanted}");
        let of_points: f64 = histogram.points().iter().map(|point| point.value * float(point.count)).sum();
        assert!((of_points - wanted).abs() <= size * 1e-12, "{of_points} is not {wanted}");
    }

    #[test]
    fn small_whole_numbers_come_back_as_they_are() {
        let values: Vec<f64> = (-64..=64).map(f64::from).collect();
        let back: Vec<f64> = of(&values).points().iter().map(|point| point.value).collect();
        assert_eq!(back, values);
    }

    #[test]
    fn both_zeros_are_one() {
        assert_eq!(of(&[0.0, -0.0]).points(), [Point { value: 0.0, count: 2 }]);
    }

    #[test]
    fn what_cloudwatch_would_refuse_is_held_to_its_limit() {
        let limit = 2f64.powi(360);
        let points = of(&[1e300, f64::INFINITY, f64::NEG_INFINITY, f64::NAN]).points();
        assert_eq!(points, [Point { value: -limit, count: 1 }, Point { value: limit, count: 2 }]);
    }

    #[test]
    fn values_spread_over_all_magnitudes_stay_within_the_bound() {
        let values: Vec<f64> = (-300..300).flat_map(|power| [2f64.powi(power), -1.5 * 2f64.powi(power)]).collect();
        let histogram = of(&values);
        assert!(histogram.points().len() <= BUCKETS_MAX);
        check_sum(&values, &histogram);
    }

    proptest! {
        #[test]
        fn sums_and_counts_are_kept(values in prop::collection::vec(-1e12..1e12f64, 0..2000)) {
            check_sum(&values, &of(&values));
        }

        #[test]
        fn merging_is_adding(
            here in prop::collection::vec(-1e6..1e6f64, 0..800),
            there in prop::collection::vec(-1e-6..1e12f64, 0..800),
        ) {
            let mut merged = of(&here);
            merged.merge(&of(&there));
            prop_assert!(merged.points().len() <= BUCKETS_MAX);
            check_sum(&[here, there].concat(), &merged);
        }

        #[test]
        fn a_value_comes_back_within_three_percent(value in prop::num::f64::NORMAL) {
            let value = value.clamp(-VALUE_LIMIT, VALUE_LIMIT);
            let neighbours = of(&[value, value * 1.001]);
            for point in neighbours.points() {
                prop_assert!(((point.value - value) / value).abs() < 0.032);
            }
        }
    }
}
