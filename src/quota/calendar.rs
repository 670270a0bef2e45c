//! Calendar periods of UTC as numbered windows: pure arithmetic.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil;
use jiff::tz::Offset;

use super::Period;

const DAY_SECONDS: i64 = 86_400;
/// 1970-01-01 was a Thursday: three days into its week.
const EPOCH_WEEKDAY: i64 = 3;

/// The number of a window of some [`Period`]; the next window has the next number.
pub(super) type Window = i64;

impl Period {
    /// What the period is called in the configuration, in headers and in the store.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }

    /// The window that `now` is in.
    pub(super) fn window(self, now: Timestamp) -> Window {
        match self {
            Self::Day => day(now),
            Self::Week => (day(now) + EPOCH_WEEKDAY).div_euclid(7),
            Self::Month => {
                let date = Offset::UTC.to_datetime(now).date();
                i64::from(date.year()) * 12 + i64::from(date.month()) - 1
            }
        }
    }

    /// When `window` begins.
    pub(super) fn start(self, window: Window) -> Timestamp {
        let start = match self {
            Self::Day => day_start(window),
            Self::Week => window.checked_mul(7).and_then(|days| day_start(days - EPOCH_WEEKDAY)),
            Self::Month => month_start(window),
        };
        // Only a window beyond the calendar has no start: the one after the last, or one that a store made up.
        start.unwrap_or(if window < 0 { Timestamp::MIN } else { Timestamp::MAX })
    }

    /// When `window` ends and the next one begins.
    pub(super) fn end(self, window: Window) -> Timestamp {
        self.start(window.saturating_add(1))
    }

    /// How long `window` is.
    pub(super) fn length(self, window: Window) -> Duration {
        until(self.start(window), self.end(window))
    }
}

/// From `now` to `then`; nothing when that is past.
pub(super) fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(now.duration_until(then)).unwrap_or_default()
}

/// Days since the epoch.
fn day(now: Timestamp) -> i64 {
    now.as_millisecond().div_euclid(DAY_SECONDS * 1000)
}

fn day_start(day: i64) -> Option<Timestamp> {
    Timestamp::from_second(day.checked_mul(DAY_SECONDS)?).ok()
}

fn month_start(month: i64) -> Option<Timestamp> {
    let year = i16::try_from(month.div_euclid(12)).ok()?;
    let month = i8::try_from(month.rem_euclid(12) + 1).ok()?;
    let first = civil::Date::new(year, month, 1).ok()?;
    Offset::UTC.to_timestamp(first.to_datetime(civil::Time::midnight())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::ToSpan;
    use proptest::prelude::*;

    const PERIODS: [Period; 3] = [Period::Day, Period::Week, Period::Month];

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn check(period: Period, now: &str, start: &str, end: &str) {
        let window = period.window(at(now));
        assert_eq!((period.start(window), period.end(window)), (at(start), at(end)), "{period:?} of {now}");
    }

    #[test]
    fn windows_begin_and_end_where_the_calendar_says() {
        check(Period::Day, "2024-02-29T23:59:59.999Z", "2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z");
        check(Period::Week, "2024-12-31T12:00:00Z", "2024-12-30T00:00:00Z", "2025-01-06T00:00:00Z");
        check(Period::Week, "2023-01-01T23:59:59Z", "2022-12-26T00:00:00Z", "2023-01-02T00:00:00Z");
        check(Period::Month, "2100-02-28T00:00:00Z", "2100-02-01T00:00:00Z", "2100-03-01T00:00:00Z");
        check(Period::Month, "1999-12-31T23:59:59Z", "1999-12-01T00:00:00Z", "2000-01-01T00:00:00Z");
        check(Period::Day, "1969-12-31T23:59:59.5Z", "1969-12-31T00:00:00Z", "1970-01-01T00:00:00Z");
    }

    #[test]
    fn windows_beyond_the_calendar_do_not_panic() {
        for period in PERIODS {
            for window in [i64::MIN, i64::MAX, period.window(Timestamp::MIN), period.window(Timestamp::MAX)] {
                assert!(period.start(window) <= period.end(window));
            }
        }
    }

    /// The first instant of the period around `now`, found by walking back day by day.
    fn slow_start(period: Period, now: Timestamp) -> Timestamp {
        let mut date = Offset::UTC.to_datetime(now).date();
        let is_first = |date: civil::Date| match period {
            Period::Day => true,
            Period::Week => date.weekday() == civil::Weekday::Monday,
            Period::Month => date.day() == 1,
        };
        while !is_first(date) {
            date = date.yesterday().unwrap();
        }
        Offset::UTC.to_timestamp(date.at(0, 0, 0, 0)).unwrap()
    }

    fn slow_end(period: Period, start: Timestamp) -> Timestamp {
        let date = Offset::UTC.to_datetime(start).date();
        let next = match period {
            Period::Day => date.checked_add(1.day()),
            Period::Week => date.checked_add(1.week()),
            Period::Month => date.checked_add(1.month()),
        };
        Offset::UTC.to_timestamp(next.unwrap().at(0, 0, 0, 0)).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn windows_equal_a_slow_reference(
            // 1970 to 2100, half of the time within two seconds of a midnight.
            second in prop_oneof![
                0..4_102_444_800_i64,
                (0..47_482_i64, -2..2_i64).prop_map(|(day, off)| (day * DAY_SECONDS + off).max(0)),
            ],
            nanosecond in 0..1_000_000_000_i32,
            period in prop::sample::select(&PERIODS),
        ) {
            let now = Timestamp::new(second, nanosecond).unwrap();
            let window = period.window(now);
            let start = slow_start(period, now);
            prop_assert_eq!(period.start(window), start);
            prop_assert_eq!(period.end(window), slow_end(period, start));
            prop_assert_eq!(period.window(period.end(window)), window + 1);
            prop_assert!(period.start(window) <= now && now < period.end(window));
        }
    }
}
