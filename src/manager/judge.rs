//! Whether a version on trial passes, fails, or must be watched on. Pure: the same view gives the same verdict.

use std::fmt;
use std::time::Duration;

use crate::model::rollout::{Counts, Share};

/// Slower by a ratio counts from here on: between two runs of microseconds the ratio is the machine's noise.
const SLOWER_BY: Duration = Duration::from_millis(1);

/// Slower counts only as far as it is beyond so many standard errors: a busy machine holds up single runs for long.
const STANDARD_ERRORS: f64 = 3.0;

/// How a new version of a model comes to serve; from the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// In which manner.
    pub strategy: Strategy,
    /// The steps of a canary or a shadow, in order. At least one.
    pub steps: Vec<Step>,
    /// How long a version is watched after it came to serve.
    pub watch: Duration,
    /// The shortest time between two switches that the registry asks for.
    pub dwell: Duration,
    /// What it must keep to.
    pub limits: Limits,
}

/// In which manner a new version comes to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// At once.
    Immediate,
    /// After it has answered the same rows beside the serving version.
    Shadow,
    /// A share of the callers at a time.
    Canary,
}

/// One step of a trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// How many callers.
    pub share: Share,
    /// For how long at least.
    pub time: Duration,
}

/// What a version must keep to. Rates are what it may have above the serving version's own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Requests before anything is concluded.
    pub min_requests: u64,
    /// Failed requests.
    pub error_rate: f64,
    /// Answers that are no number.
    pub not_finite_rate: f64,
    /// Its mean time over that of the serving version.
    pub latency_ratio: f64,
    /// Of a shadow: rows that it answers differently.
    pub disagreement: f64,
    /// Numbers no further apart than this part of the larger are the same answer.
    pub tolerance: f64,
}

/// A trial at one moment.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// How long it has been going.
    pub elapsed: Duration,
    /// How long it is to go.
    pub time: Duration,
    /// How the judged version does.
    pub judged: Counts,
    /// How the version that serves beside it does; `None` while the serving version itself is watched.
    pub beside: Option<Counts>,
    /// How the version before a watched one does, which answers some of the same requests, too.
    pub before: Option<Counts>,
    /// What to keep to.
    pub limits: &'a Limits,
}

/// What to do with a trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It goes on.
    Wait,
    /// It is over, and went well.
    Pass,
    /// It is over: a limit was broken.
    Fail(Breach),
}

/// A limit that was broken: by what, and where it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Breach {
    /// Too many requests failed.
    Errors(f64, f64),
    /// Too many answers were no number.
    NotFinite(f64, f64),
    /// It is too slow.
    Latency(f64, f64),
    /// It answers too many rows differently.
    Disagreement(f64, f64),
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errors(found, limit) => {
                write!(f, "{:.2} % of its requests failed, {:.2} % may", found * 100.0, limit * 100.0)
            }
            Self::NotFinite(found, limit) => {
                write!(f, "{:.2} % of its answers were no number, {:.2} % may be", found * 100.0, limit * 100.0)
            }
            Self::Latency(found, limit) => {
                write!(f, "it took {found:.2} times as long as the version it replaces, {limit:.2} is the limit")
            }
            Self::Disagreement(found, limit) => {
                write!(f, "it answered {:.2} % of the rows differently, {:.2} % may be", found * 100.0, limit * 100.0)
            }
        }
    }
}

/// What to do now.
#[must_use]
pub fn verdict(view: &View<'_>) -> Verdict {
    let enough = view.judged.requests() >= view.limits.min_requests;
    let over = view.elapsed >= view.time;
    if enough && let Some(breach) = breach(view) {
        return Verdict::Fail(breach);
    }
    // A watch ends by its time, because the version serves already. A challenger has to show something first.
    if over && (enough || view.beside.is_none()) { Verdict::Pass } else { Verdict::Wait }
}

/// The first limit that is broken.
fn breach(view: &View<'_>) -> Option<Breach> {
    let View { judged, limits, .. } = view;
    let beside = view.beside.unwrap_or_default();
    let errors = (judged.failed_rate(), limits.error_rate + beside.failed_rate());
    let not_finite = (judged.not_finite_rate(), limits.not_finite_rate + beside.not_finite_rate());
    let disagreement = (judged.disagreement(), limits.disagreement);
    if errors.0 > errors.1 {
        Some(Breach::Errors(errors.0, errors.1))
    } else if not_finite.0 > not_finite.1 {
        Some(Breach::NotFinite(not_finite.0, not_finite.1))
    } else if disagreement.0 > disagreement.1 {
        Some(Breach::Disagreement(disagreement.0, disagreement.1))
    } else {
        slowness(judged, &beside, limits).or_else(|| slowness(judged, &view.before?, limits))
    }
}

/// How much slower than the version beside it, if that is too much and no chance. Both are measured at the same time on
/// the same machine, or not at all.
fn slowness(judged: &Counts, beside: &Counts, limits: &Limits) -> Option<Breach> {
    if beside.requests() < limits.min_requests {
        return None;
    }
    let [judged_error, beside_error] = [judged, beside].map(|counts| counts.mean_error().as_secs_f64());
    let chance = STANDARD_ERRORS * judged_error.hypot(limits.latency_ratio * beside_error);
    let (judged, beside) = (judged.mean().as_secs_f64(), beside.mean().as_secs_f64());
    let allowed = (beside * limits.latency_ratio).max(beside + SLOWER_BY.as_secs_f64());
    (judged > allowed + chance).then(|| Breach::Latency(judged / beside, limits.latency_ratio))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::rollout::Tally;

    const LIMITS: Limits = Limits {
        min_requests: 100,
        error_rate: 0.01,
        not_finite_rate: 0.01,
        latency_ratio: 2.0,
        disagreement: 0.05,
        tolerance: 0.0,
    };

    const MINUTE: Duration = Duration::from_mins(1);

    fn counts(requests: u64, failed: u64, not_finite: u64) -> Counts {
        Counts { answered: requests - failed - not_finite, failed, not_finite, ..Counts::default() }
    }

    fn view(judged: Counts, beside: Option<Counts>) -> View<'static> {
        View { elapsed: Duration::ZERO, time: MINUTE, judged, beside, before: None, limits: &LIMITS }
    }

    #[test]
    fn a_limit_is_broken_above_it_and_not_at_it() {
        assert_eq!(verdict(&view(counts(100, 1, 0), None)), Verdict::Wait);
        assert_eq!(verdict(&view(counts(100, 2, 0), None)), Verdict::Fail(Breach::Errors(0.02, 0.01)));
        assert_eq!(verdict(&view(counts(100, 0, 1), None)), Verdict::Wait);
        assert_eq!(verdict(&view(counts(100, 0, 2), None)), Verdict::Fail(Breach::NotFinite(0.02, 0.01)));
    }

    #[test]
    fn too_few_requests_say_nothing() {
        assert_eq!(verdict(&view(counts(99, 99, 0), None)), Verdict::Wait);
    }

    #[test]
    fn a_version_is_not_blamed_for_what_the_one_beside_it_does_too() {
        let beside = Some(counts(1000, 40, 0));
        assert_eq!(verdict(&view(counts(100, 5, 0), beside)), Verdict::Wait);
        assert!(matches!(verdict(&view(counts(100, 6, 0), beside)), Verdict::Fail(Breach::Errors(..))));
    }

    #[test]
    fn slower_counts_by_ratio_and_by_a_millisecond() {
        let taking = |micros: u64| Counts { time: Duration::from_micros(100 * micros), ..counts(100, 0, 0) };
        assert_eq!(verdict(&view(taking(900), Some(taking(100)))), Verdict::Wait);
        assert_eq!(verdict(&view(taking(2900), Some(taking(1500)))), Verdict::Wait);
        assert!(matches!(verdict(&view(taking(3100), Some(taking(1500)))), Verdict::Fail(Breach::Latency(..))));
        assert_eq!(verdict(&view(taking(3100), None)), Verdict::Wait);
    }

    #[test]
    fn a_run_that_was_held_up_makes_no_version_slow() {
        let quick = Duration::from_millis(1);
        let taking = |slow: u64, millis: u64| {
            let tally = Tally::default();
            (0..100 - slow).for_each(|_| tally.note(Ok(()), quick));
            (0..slow).for_each(|_| tally.note(Ok(()), Duration::from_millis(millis)));
            tally.counts()
        };
        let before = taking(0, 0);
        assert_eq!(verdict(&view(taking(1, 400), Some(before))), Verdict::Wait, "5 ms in the mean, by one run");
        assert!(matches!(verdict(&view(taking(80, 6), Some(before))), Verdict::Fail(Breach::Latency(..))));
    }

    #[test]
    fn a_watched_version_is_compared_with_the_one_before_it() {
        let taking = |requests: u64, millis: u64| Counts {
            time: Duration::from_millis(requests * millis),
            ..counts(requests, 0, 0)
        };
        let watched = |millis, before| View { before: Some(before), ..view(taking(100, millis), None) };
        let slow = verdict(&watched(9, taking(100, 4)));
        assert!(matches!(slow, Verdict::Fail(Breach::Latency(ratio, _)) if (ratio - 2.25).abs() < 1e-6), "{slow:?}");
        assert_eq!(verdict(&watched(8, taking(100, 4))), Verdict::Wait);
        assert_eq!(verdict(&watched(9, taking(99, 4))), Verdict::Wait, "too few to say");
        let over = View { elapsed: MINUTE, ..watched(8, taking(100, 4)) };
        assert_eq!(verdict(&over), Verdict::Pass);
        // Its failures are its own: the version before is asked for its pace alone.
        let failing = View { judged: counts(100, 5, 0), ..watched(4, counts(100, 50, 0)) };
        assert!(matches!(verdict(&failing), Verdict::Fail(Breach::Errors(..))));
    }

    #[test]
    fn a_shadow_fails_by_what_it_answers_differently() {
        let shadow = |disagreed| Counts { compared: 1000, disagreed, ..counts(100, 0, 0) };
        assert_eq!(verdict(&view(shadow(50), Some(counts(100, 0, 0)))), Verdict::Wait);
        assert!(matches!(verdict(&view(shadow(51), Some(counts(100, 0, 0)))), Verdict::Fail(Breach::Disagreement(..))));
    }

    #[test]
    fn a_watch_ends_by_its_time_and_a_challenger_needs_requests_too() {
        let over = |judged, beside| View { elapsed: MINUTE, ..view(judged, beside) };
        assert_eq!(verdict(&over(counts(0, 0, 0), None)), Verdict::Pass);
        assert_eq!(verdict(&over(counts(99, 0, 0), Some(counts(900, 0, 0)))), Verdict::Wait);
        assert_eq!(verdict(&over(counts(100, 0, 0), Some(counts(900, 0, 0)))), Verdict::Pass);
    }

    fn any_counts() -> impl Strategy<Value = Counts> {
        (0..5000u64, 0..200u64, 0..200u64, 0..10_000u64, 0..1000u64).prop_map(
            |(answered, failed, not_finite, millis, disagreed)| Counts {
                answered,
                failed,
                not_finite,
                time: Duration::from_millis(millis),
                squares: 0,
                compared: answered,
                disagreed: disagreed.min(answered),
                shed: 0,
            },
        )
    }

    use proptest::strategy::Strategy;

    proptest! {
        /// No version passes before its time, none fails for want of evidence, and none passes with a limit broken.
        #[test]
        fn verdicts_keep_their_word(judged in any_counts(), beside in proptest::option::of(any_counts()), seconds in 0..120u64) {
            let view = View { elapsed: Duration::from_secs(seconds), ..view(judged, beside) };
            match verdict(&view) {
                Verdict::Pass => {
                    prop_assert!(view.elapsed >= MINUTE);
                    prop_assert!(judged.requests() < LIMITS.min_requests || breach(&view).is_none());
                }
                Verdict::Fail(_) => prop_assert!(judged.requests() >= LIMITS.min_requests),
                Verdict::Wait => prop_assert!(seconds < 60 || judged.requests() < LIMITS.min_requests),
            }
        }

        /// More failures never make a failing version good.
        #[test]
        fn worse_is_never_better(judged in any_counts(), beside in proptest::option::of(any_counts()), more in 0..100u64) {
            let before = view(judged, beside);
            let worse = Counts { failed: judged.failed + more, answered: judged.answered.saturating_sub(more), ..judged };
            if let Verdict::Fail(Breach::Errors(..)) = verdict(&before) {
                prop_assert!(matches!(verdict(&view(worse, beside)), Verdict::Fail(Breach::Errors(..))));
            }
        }
    }
}
