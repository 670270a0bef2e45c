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

/// The longest a plan's offset can be: shorter than every month.
pub const OFFSET_MAX: Duration = Duration::from_hours(27 * 24);

/// A plan's periods: those of the calendar, each a while later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Calendar {
    pub(super) period: Period,
    pub(super) offset: Duration,
}

impl Calendar {
    /// The window that `now` is in.
    pub(super) fn window(self, now: Timestamp) -> Window {
        self.period.window(now.checked_sub(self.offset).unwrap_or(Timestamp::MIN))
    }

    /// When `window` begins.
    fn start(self, window: Window) -> Timestamp {
        self.period.start(window).checked_add(self.offset).unwrap_or(Timestamp::MAX)
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
    fn start(self, window: Window) -> Timestamp {
        let start = match self {
            Self::Day => day_start(window),
            Self::Week => window.checked_mul(7).and_then(|days| day_start(days - EPOCH_WEEKDAY)),
            Self::Month => month_start(window),
        };
        // Only a window beyond the calendar has no start: the one after the last, or one that a store made up.
        start.unwrap_or(if window < 0 { Timestamp::MIN } else { Timestamp::MAX })
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

    const NO_OFFSET: Duration = Duration::ZERO;

    fn check(period: Period, offset: Duration, now: &str, start: &str, end: &str) {
        let calendar = Calendar { period, offset };
        let window = calendar.window(at(now));
        assert_eq!((calendar.start(window), calendar.end(window)), (at(start), at(end)), "{calendar:?} of {now}");
    }

    #[test]
    fn windows_begin_and_end_where_the_calendar_says() {
        check(Period::Day, NO_OFFSET, "2024-02-29T23:59:59.999Z", "2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z");
        check(Period::Week, NO_OFFSET, "2024-12-31T12:00:00Z", "2024-12-30T00:00:00Z", "2025-01-06T00:00:00Z");
        check(Period::Week, NO_OFFSET, "2023-01-01T23:59:59Z", "2022-12-26T00:00:00Z", "2023-01-02T00:00:00Z");
        check(Period::Month, NO_OFFSET, "2100-02-28T00:00:00Z", "2100-02-01T00:00:00Z", "2100-03-01T00:00:00Z");
        check(Period::Month, NO_OFFSET, "1999-12-31T23:59:59Z", "1999-12-01T00:00:00Z", "2000-01-01T00:00:00Z");
        check(Period::Day, NO_OFFSET, "1969-12-31T23:59:59.5Z", "1969-12-31T00:00:00Z", "1970-01-01T00:00:00Z");
    }

    #[test]
    fn an_offset_moves_both_ends() {
        let hours = |hours| Duration::from_hours(hours);
        check(Period::Day, hours(3), "2024-03-01T02:59:59Z", "2024-02-29T03:00:00Z", "2024-03-01T03:00:00Z");
        check(Period::Day, hours(3), "2024-03-01T03:00:00Z", "2024-03-01T03:00:00Z", "2024-03-02T03:00:00Z");
        // Weeks from Sunday, months from the fifteenth.
        check(Period::Week, hours(144), "2025-01-04T23:59:59Z", "2024-12-29T00:00:00Z", "2025-01-05T00:00:00Z");
        check(Period::Month, hours(336), "2024-03-14T12:00:00Z", "2024-02-15T00:00:00Z", "2024-03-15T00:00:00Z");
        check(Period::Month, OFFSET_MAX, "2023-02-28T00:00:00Z", "2023-02-28T00:00:00Z", "2023-03-28T00:00:00Z");
    }

    #[test]
    fn windows_beyond_the_calendar_do_not_panic() {
        for (period, offset) in PERIODS.into_iter().flat_map(|period| [(period, NO_OFFSET), (period, OFFSET_MAX)]) {
            let calendar = Calendar { period, offset };
            for window in [i64::MIN, i64::MAX, calendar.window(Timestamp::MIN), calendar.window(Timestamp::MAX)] {
                assert!(calendar.start(window) <= calendar.end(window));
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

    /// A plan's calendar and a time of 1970 to 2100, half of the times within two seconds of a midnight; half of the
    /// calendars without an offset.
    fn moments() -> impl Strategy<Value = (Calendar, Timestamp)> {
        let second = prop_oneof![
            0..4_102_444_800_i64,
            (0..47_482_i64, -2..2_i64).prop_map(|(day, off)| (day * DAY_SECONDS + off).max(0)),
        ];
        let offset = prop_oneof![Just(0), 0..=OFFSET_MAX.as_secs()];
        (second, 0..1_000_000_000_i32, prop::sample::select(&PERIODS), offset).prop_map(
            |(second, nanosecond, period, offset)| {
                let offset = Duration::from_secs(offset);
                (Calendar { period, offset }, Timestamp::new(second, nanosecond).unwrap() + offset)
            },
        )
    }

    fn check_against_a_slow_reference(cases: u32) {
        proptest!(ProptestConfig::with_cases(cases), |((calendar, now) in moments())| {
            let (period, offset) = (calendar.period, calendar.offset);
            let window = calendar.window(now);
            let start = slow_start(period, now - offset);
            prop_assert_eq!(calendar.start(window), start + offset);
            prop_assert_eq!(calendar.end(window), slow_end(period, start) + offset);
            prop_assert_eq!(calendar.window(calendar.end(window)), window + 1);
            prop_assert!(calendar.start(window) <= now && now < calendar.end(window));
        });
    }

    #[test]
    fn windows_equal_a_slow_reference() {
        check_against_a_slow_reference(20_000);
    }

    #[test]
    #[ignore = "nightly: a million moments of the calendar, 10 s"]
    fn windows_equal_a_slow_reference_a_million_times() {
        check_against_a_slow_reference(1_000_000);
    }
}
