//! A rate with a burst: the generic cell rate algorithm in one atomic number.
//!
//! What is kept is the theoretical arrival time: when the bucket will be full again. Times are nanoseconds of a clock
//! that only goes forward, so no change of the wall clock grants or takes a token.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Standing, Throttle};

/// One caller's bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    /// What one request costs, in nanoseconds.
    interval: u64,
    /// What a full bucket is worth, in nanoseconds.
    depth: u64,
    burst: u32,
    full_at: AtomicU64,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(throttle: Throttle) -> Self {
        // Rounded down, so that a caller who keeps exactly to the rate is never refused. The rate is then met to one
        // part in a million at a thousand requests a second.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates, as it should")]
        let interval = ((1e9 / throttle.rate) as u64).max(1);
        let depth = interval.saturating_mul(throttle.burst.into());
        Self { interval, depth, burst: throttle.burst, full_at: AtomicU64::new(0) }
    }

    /// Takes one token at `now`; says what is left, or, as an error, when there is one again.
    pub(super) fn take(&self, now: u64) -> Result<Standing, Standing> {
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            if self.tokens(full_at, now) == 0 {
                return Err(self.describe(full_at, now));
            }
            let next = full_at.max(now).saturating_add(self.interval);
            // Nothing else is published through this number.
            match self.full_at.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(self.describe(next, now)),
                Err(seen) => full_at = seen,
            }
        }
    }

    /// Puts one back that was taken, and then not used.
    pub(super) fn give_back(&self) {
        let _ = self
            .full_at
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| Some(full_at.saturating_sub(self.interval)));
    }

    /// Notes when the bucket will be full, where somebody else keeps it.
    pub(super) fn set_full_at(&self, full_at: u64) {
        self.full_at.store(full_at, Ordering::Relaxed);
    }

    /// What one token costs, in nanoseconds.
    pub(super) fn interval(&self) -> u64 {
        self.interval
    }

    /// What a full bucket is worth, in nanoseconds.
    pub(super) fn depth(&self) -> u64 {
        self.depth
    }

    /// What is left at `now`.
    pub(super) fn standing(&self, now: u64) -> Standing {
        self.describe(self.full_at.load(Ordering::Relaxed), now)
    }

    /// Whether a new bucket would behave the same.
    pub(super) fn is_full(&self, now: u64) -> bool {
        self.full_at.load(Ordering::Relaxed) <= now
    }

    /// What the bucket holds, in nanoseconds.
    fn content(&self, full_at: u64, now: u64) -> u64 {
        self.depth.saturating_sub(full_at.saturating_sub(now))
    }

    fn tokens(&self, full_at: u64, now: u64) -> u64 {
        self.content(full_at, now) / self.interval
    }

    fn describe(&self, full_at: u64, now: u64) -> Standing {
        let content = self.content(full_at, now);
        let to_next_token = if content == self.depth { 0 } else { self.interval - content % self.interval };
        Standing {
            name: "rate",
            limit: self.burst.into(),
            window: Duration::from_nanos(self.depth),
            remaining: self.tokens(full_at, now),
            resets_in: Duration::from_nanos(to_next_token),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_then_the_rate() {
        let bucket = Bucket::new(Throttle { rate: 2.0, burst: 3 });
        for left in [2, 1, 0] {
            assert_eq!(bucket.take(SECOND).unwrap().remaining, left);
        }
        let refused = bucket.take(SECOND).unwrap_err();
        assert_eq!((refused.remaining, refused.resets_in), (0, Duration::from_millis(500)));
        assert!(bucket.take(SECOND + SECOND / 2 - 1).is_err());
        let taken = bucket.take(SECOND + SECOND / 2).unwrap();
        assert_eq!((taken.limit, taken.window, taken.remaining), (3, Duration::from_millis(1500), 0));
        assert!(!bucket.is_full(2 * SECOND));
        assert!(bucket.is_full(4 * SECOND));
        assert_eq!(bucket.standing(4 * SECOND).resets_in, Duration::ZERO);
    }

    #[test]
    fn rates_at_both_ends_do_not_overflow() {
        let slow = Bucket::new(Throttle { rate: f64::MIN_POSITIVE, burst: u32::MAX });
        assert!(slow.take(u64::MAX).is_ok());
        let fast = Bucket::new(Throttle { rate: f64::MAX, burst: 1 });
        assert!(fast.take(0).is_ok());
        assert!(fast.take(1).is_ok());
    }

    #[test]
    fn threads_share_one_burst() {
        let bucket = Bucket::new(Throttle { rate: 1.0, burst: 1000 });
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| (0..500).filter(|_| bucket.take(7).is_ok()).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
    }

    /// Requests that a rate is worth in so many nanoseconds.
    #[expect(clippy::cast_precision_loss, reason = "the rounding is far below one request")]
    fn worth(rate: f64, nanos: u64) -> f64 {
        rate * nanos as f64 / 1e9
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn no_stretch_of_time_admits_more_than_burst_and_rate(
            rate in 0.1..1000.0_f64,
            burst in 1..50_u32,
            gaps in prop::collection::vec(prop_oneof![Just(0), 0..2_000_000_u64, 0..3 * SECOND], 1..300),
        ) {
            let bucket = Bucket::new(Throttle { rate, burst });
            let mut now = 0;
            let mut admitted = Vec::new();
            for gap in gaps {
                now += gap;
                if bucket.take(now).is_ok() {
                    admitted.push(now);
                }
            }
            for (first, start) in admitted.iter().enumerate() {
                for (last, end) in admitted.iter().enumerate().skip(first) {
                    let count = f64::from(u32::try_from(last - first + 1).unwrap());
                    let bound = f64::from(burst) + worth(rate, end - start) * (1.0 + 1e-6);
                    prop_assert!(count <= bound + 1e-6, "{count} in {} ns, bound {bound}", end - start);
                }
            }
        }

        #[test]
        fn who_keeps_to_the_rate_is_never_refused(rate in 0.1..10_000.0_f64, burst in 1..5_u32, start in 0..SECOND) {
            let bucket = Bucket::new(Throttle { rate, burst });
            for request in 0..2000_u32 {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive time")]
                let now = start + (f64::from(request) * 1e9 / rate).ceil() as u64;
                prop_assert!(bucket.take(now).is_ok(), "request {request}");
            }
        }

        #[test]
        fn who_waits_as_told_is_admitted(rate in 0.1..1000.0_f64, burst in 1..5_u32, tries in 1..100_usize) {
            let bucket = Bucket::new(Throttle { rate, burst });
            let mut now = 5;
            for _ in 0..tries {
                if let Err(refused) = bucket.take(now) {
                    let wait = u64::try_from(refused.resets_in.as_nanos()).unwrap();
                    prop_assert!(bucket.take(now + wait - 1).is_err());
                    now += wait;
                    prop_assert!(bucket.take(now).is_ok());
                }
            }
        }
    }
}
