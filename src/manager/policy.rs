//! What to do next for one model. Pure: the same view gives the same answer.
//!
//! Only a version the registry has positively named, and that has not been refused before, is ever an instruction. No
//! answer, a broken answer and an empty answer all mean: keep what is served.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::registry::Found;

/// What is known of one model at one moment.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The moment.
    pub now: Timestamp,
    /// What the registry wants served; `None` if it did not say.
    pub wanted: Option<&'a Found>,
    /// What is served.
    pub serving: Option<&'a Found>,
    /// The wanted version, if it was found unfit.
    pub refused: Option<&'a Found>,
    /// The last version that could not be brought here.
    pub failed: Option<&'a Failed>,
    /// The version on trial beside the one that is served.
    pub challenger: Option<&'a Found>,
    /// Whether the wanted version was rolled back, or set aside by an operator.
    pub barred: bool,
    /// The registry changes nothing before this: a version stays for a while once it serves.
    pub settled_until: Option<Timestamp>,
    /// Whether a version is on its way here: what comes of it is awaited.
    pub is_loading: bool,
}

/// A version that could not be brought here, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The version.
    pub found: Found,
    /// How often it was tried.
    pub attempts: u32,
    /// Not before this.
    pub retry_at: Timestamp,
    /// What went wrong the last time.
    pub why: String,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Nothing.
    Keep,
    /// Bring this version here, load it, and serve it if it proves fit.
    Load(&'a Found),
    /// Put the challenger off trial: the registry no longer wants it.
    Withdraw,
}

/// The version tags that change how outputs become predictions; a change of one is a change of the version.
const DECISIVE_TAGS: [&str; 3] = ["modelgate.labels", "modelgate.threshold", "modelgate.bands"];

/// The first pause after a failed download; each further failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(5);

/// The longest pause between tries to bring a version.
pub const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// The longest pause between tries of a version that is here and cannot be tried: each takes a process. With the doubling
/// before it, at most 24 a day.
pub const LONGEST_PAUSE_UNTRIED: Duration = Duration::from_hours(2);

/// What to do next.
#[must_use]
pub fn next_action<'a>(view: &View<'a>) -> Action<'a> {
    let Some(wanted) = view.wanted.filter(|_| !view.is_loading) else { return Action::Keep };
    let is_wanted = |found: &Found| is_same(found, wanted);
    let resting = view.failed.is_some_and(|failed| is_wanted(&failed.found) && view.now < failed.retry_at);
    let settling = view.settled_until.is_some_and(|until| view.now < until);
    let here = [view.serving, view.challenger, view.refused].into_iter().flatten().any(is_wanted);
    if !(here || resting || settling || view.barred) {
        Action::Load(wanted)
    } else if view.challenger.is_some_and(|challenger| !is_wanted(challenger)) {
        Action::Withdraw
    } else {
        Action::Keep
    }
}

/// Whether two answers of a registry mean the same version, served the same way.
///
/// The alias it was found under does not matter; number and name alone do not suffice, because numbers start again when
/// a model is deleted and made anew.
#[must_use]
pub fn is_same(a: &Found, b: &Found) -> bool {
    a.registered_model == b.registered_model
        && a.version == b.version
        && a.source == b.source
        && a.created == b.created
        && is_read_alike(&a.tags, &b.tags)
}

/// Whether versions with these tags have their outputs read in the same way.
#[must_use]
pub fn is_read_alike(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> bool {
    DECISIVE_TAGS.iter().all(|tag| a.get(*tag) == b.get(*tag))
}

/// What is remembered after `found` could not be brought here, or tried, once more.
#[must_use]
pub fn failed_again(before: Option<Failed>, found: &Found, why: &str, now: Timestamp, longest: Duration) -> Failed {
    let attempts = match before {
        Some(before) if is_same(&before.found, found) => before.attempts.saturating_add(1),
        Some(_) | None => 1,
    };
    Failed { found: found.clone(), attempts, retry_at: now + pause_after(attempts, longest), why: why.to_owned() }
}

/// The pause after `failures` failures in a row: 5 s, doubled each time, `longest` at most.
#[must_use]
pub fn pause_after(failures: u32, longest: Duration) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(longest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Version;

    fn found(version: u64) -> Found {
        Found {
            registered_model: "credit".into(),
            version: Version(version),
            alias: None,
            source: format!("models:/m-{version}"),
            created: 1,
            tags: BTreeMap::new(),
        }
    }

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn idle() -> View<'static> {
        View {
            now: second(100),
            wanted: None,
            serving: None,
            refused: None,
            failed: None,
            challenger: None,
            barred: false,
            settled_until: None,
            is_loading: false,
        }
    }

    #[test]
    fn one_version_at_a_time_is_brought() {
        let (one, two, three) = (found(1), found(2), found(3));
        let view = View { wanted: Some(&three), serving: Some(&one), challenger: Some(&two), ..idle() };
        assert_eq!(next_action(&view), Action::Load(&three));
        assert_eq!(next_action(&View { is_loading: true, ..view }), Action::Keep);
    }

    #[test]
    fn silence_is_no_instruction() {
        assert_eq!(next_action(&View { serving: Some(&found(1)), ..idle() }), Action::Keep);
        assert_eq!(next_action(&idle()), Action::Keep);
    }

    #[test]
    fn a_version_that_is_wanted_and_new_is_loaded_whichever_number_it_has() {
        let (one, two) = (found(1), found(2));
        assert_eq!(next_action(&View { wanted: Some(&two), serving: Some(&one), ..idle() }), Action::Load(&two));
        assert_eq!(next_action(&View { wanted: Some(&one), serving: Some(&two), ..idle() }), Action::Load(&one));
    }

    #[test]
    fn a_refused_version_is_not_tried_again_until_it_is_another() {
        let bad = found(2);
        let view = View { wanted: Some(&bad), refused: Some(&bad), ..idle() };
        assert_eq!(next_action(&view), Action::Keep);
        let made_anew = Found { created: 2, ..found(2) };
        assert_eq!(next_action(&View { wanted: Some(&made_anew), ..view }), Action::Load(&made_anew));
    }

    #[test]
    fn a_barred_version_stays_out() {
        let (one, two) = (found(1), found(2));
        let view = View { wanted: Some(&two), serving: Some(&one), barred: true, ..idle() };
        assert_eq!(next_action(&view), Action::Keep);
        assert_eq!(next_action(&View { barred: false, ..view }), Action::Load(&two));
    }

    #[test]
    fn a_version_stays_for_a_while_once_it_serves() {
        let (one, two) = (found(1), found(2));
        let view = View { wanted: Some(&one), serving: Some(&two), settled_until: Some(second(130)), ..idle() };
        assert_eq!(next_action(&view), Action::Keep);
        assert_eq!(next_action(&View { now: second(130), ..view }), Action::Load(&one));
    }

    #[test]
    fn a_challenger_stays_on_trial_while_it_is_wanted() {
        let (one, two, three) = (found(1), found(2), found(3));
        let view = View { serving: Some(&one), challenger: Some(&two), ..idle() };
        assert_eq!(next_action(&view), Action::Keep, "silence");
        assert_eq!(next_action(&View { wanted: Some(&two), ..view }), Action::Keep);
        assert_eq!(next_action(&View { wanted: Some(&one), ..view }), Action::Withdraw);
        assert_eq!(next_action(&View { wanted: Some(&three), ..view }), Action::Load(&three));
        assert_eq!(next_action(&View { wanted: Some(&three), barred: true, ..view }), Action::Withdraw);
    }

    #[test]
    fn a_failed_download_rests_until_its_time() {
        let two = found(2);
        let failed = failed_again(None, &two, "away", second(100), LONGEST_PAUSE);
        let view = View { wanted: Some(&two), failed: Some(&failed), ..idle() };
        assert_eq!(next_action(&view), Action::Keep);
        assert_eq!(next_action(&View { now: second(105), ..view }), Action::Load(&two));
        let three = found(3);
        assert_eq!(next_action(&View { wanted: Some(&three), ..view }), Action::Load(&three));
    }

    #[test]
    fn pauses_double_up_to_five_minutes_and_start_again_with_another_version() {
        let mut failed = None;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let again = failed_again(failed, &found(2), "away", second(0), LONGEST_PAUSE);
            pauses.push(again.retry_at.as_second());
            failed = Some(again);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(failed_again(failed, &found(3), "away", second(0), LONGEST_PAUSE).attempts, 1);
        assert_eq!(pause_after(u32::MAX, LONGEST_PAUSE), LONGEST_PAUSE);
    }

    #[test]
    fn what_cannot_be_tried_is_tried_24_times_a_day_at_most() {
        let day = Duration::from_hours(24);
        let mut at = Duration::ZERO;
        let tries = (1..).take_while(|tries| {
            at += pause_after(*tries, LONGEST_PAUSE_UNTRIED);
            at < day
        });
        // And the first.
        assert_eq!(tries.count() + 1, 22);
    }

    #[test]
    fn the_alias_does_not_make_another_version_but_a_decisive_tag_does() {
        let plain = found(1);
        let mut other = Found { alias: Some("champion".into()), ..found(1) };
        other.tags.insert("team".into(), "risk".into());
        assert!(is_same(&plain, &other));
        other.tags.insert("modelgate.threshold".into(), "0.4".into());
        assert!(!is_same(&plain, &other));
    }

    fn act(before: View<'_>, fit: bool) -> View<'_> {
        match next_action(&before) {
            Action::Keep => before,
            Action::Withdraw => View { challenger: None, ..before },
            Action::Load(version) if fit => View { serving: Some(version), challenger: None, ..before },
            Action::Load(version) => View { refused: Some(version), ..before },
        }
    }

    proptest! {
        /// Doing what the policy says leaves it with nothing more to say.
        #[test]
        fn acting_settles(wanted in proptest::option::of(1u64..4), serving in proptest::option::of(1u64..4),
                          refused in proptest::option::of(1u64..4), challenger in proptest::option::of(1u64..4), fit: bool) {
            let (wanted, serving, refused) = (wanted.map(found), serving.map(found), refused.map(found));
            let challenger = challenger.map(found);
            let before = View {
                wanted: wanted.as_ref(),
                serving: serving.as_ref(),
                refused: refused.as_ref(),
                challenger: challenger.as_ref(),
                ..idle()
            };
            // Twice: a challenger goes after the version that is wanted instead was found unfit.
            let after = act(act(before, fit), fit);
            prop_assert_eq!(next_action(&after), Action::Keep);
            prop_assert!(before.serving.is_none() || after.serving.is_some());
        }
    }
}
