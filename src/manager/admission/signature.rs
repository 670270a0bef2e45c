//! Whether a version takes what its predecessor takes, so that callers need not change.

use serde::{Deserialize, Serialize};

use super::{Finding, SignatureChange, Stop, passed, skipped};
use crate::model::Features;
use crate::model::signature::Kind;

/// What callers may send for one feature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Taken {
    /// The caller's name for it.
    pub(super) field: String,
    /// What a value must be.
    pub(super) kind: Kind,
    /// Whether a row must have it.
    pub(super) required: bool,
}

/// What `features` take.
pub(super) fn taken_by(features: &Features) -> Vec<Taken> {
    let taken = features.list().iter().map(|feature| Taken {
        field: feature.field.to_string(),
        kind: feature.kind,
        required: feature.required,
    });
    taken.collect()
}

/// The rung: every request that `serving` takes, the new version has to take as well.
pub(super) fn check(serving: Option<&Features>, new: &[Taken], on_change: SignatureChange) -> Finding {
    let Some(serving) = serving else { return skipped("nothing is served that it would replace") };
    let changes = changes(&taken_by(serving), new);
    match (changes.is_empty(), on_change) {
        (true, _) => passed((), format!("it takes what the serving version takes, in {} features", new.len())),
        (false, SignatureChange::Allow) => passed((), format!("changed, as allowed: {}", changes.join("; "))),
        (false, SignatureChange::Refuse) => Err(Stop::Refused(format!(
            "it does not take what the serving version takes: {}; set `signature_change = \"allow\"` in [admission] if \
             callers are ready for it",
            changes.join("; ")
        ))),
    }
}

/// Changes that are told of; a version with other columns throughout has hundreds.
const CHANGES_TOLD: usize = 5;

fn changes(old: &[Taken], new: &[Taken]) -> Vec<String> {
    let same = |list: &'_ [Taken], field: &str| list.iter().position(|taken| taken.field == field);
    let lost = old.iter().filter_map(|old| match same(new, &old.field).map(|at| &new[at]) {
        None => Some(format!("`{}` is gone", old.field)),
        Some(new) if !is_taken_by(old.kind, new.kind) => {
            Some(format!("`{}` was {:?} and is {:?}", old.field, old.kind, new.kind))
        }
        Some(new) if new.required && !old.required => Some(format!("`{}` has become required", old.field)),
        Some(_) => None,
    });
    let added = new.iter().filter(|new| new.required && same(old, &new.field).is_none());
    lost.chain(added.map(|new| format!("`{}` is new and required", new.field))).take(CHANGES_TOLD).collect()
}

/// Whether every value of `old` is one of `new`: the same type, or a wider one. A column of integers that gets its first
/// gap becomes one of doubles.
fn is_taken_by(old: Kind, new: Kind) -> bool {
    match old {
        Kind::Integer => matches!(new, Kind::Integer | Kind::Long | Kind::Double),
        Kind::Long => matches!(new, Kind::Long | Kind::Double),
        Kind::Float => matches!(new, Kind::Float | Kind::Double),
        Kind::Boolean | Kind::Double | Kind::Text => old == new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::features::Settings;
    use crate::model::signature::Signature;

    fn taken(field: &str, kind: Kind, required: bool) -> Taken {
        Taken { field: field.into(), kind, required }
    }

    #[track_caller]
    fn check_changes(new: &[Taken], expected: &[&str]) {
        let old = [taken("age", Kind::Long, true), taken("job", Kind::Text, false)];
        assert_eq!(changes(&old, new), expected);
    }

    #[test]
    fn a_change_is_refused_or_told_of_as_configured() {
        let signature = Signature::parse(r#"[{"name": "age", "type": "long", "required": true}]"#).unwrap();
        let serving = Features::new(&signature, Settings::default()).unwrap();
        let outcome = |new: &[Taken], on_change| match check(Some(&serving), new, on_change) {
            Ok(pass) => pass.detail,
            Err(Stop::Refused(reason) | Stop::Undecided(reason)) => format!("refused: {reason}"),
        };
        let (same, other) = ([taken("age", Kind::Long, true)], [taken("years", Kind::Long, true)]);
        assert!(outcome(&same, SignatureChange::Refuse).starts_with("it takes what"));
        assert!(outcome(&other, SignatureChange::Refuse).starts_with("refused: it does not take"));
        let allowed = outcome(&other, SignatureChange::Allow);
        assert_eq!(allowed, "changed, as allowed: `age` is gone; `years` is new and required");
    }

    #[test]
    fn what_callers_send_today_has_to_be_taken_tomorrow() {
        let (age, job) = (taken("age", Kind::Long, true), taken("job", Kind::Text, false));
        check_changes(&[job.clone(), age.clone()], &[]);
        check_changes(&[age.clone(), job.clone(), taken("new", Kind::Text, false)], &[]);
        check_changes(&[taken("age", Kind::Double, false), job.clone()], &[]);
        check_changes(std::slice::from_ref(&job), &["`age` is gone"]);
        check_changes(&[taken("Age", Kind::Long, false), job.clone()], &["`age` is gone"]);
        check_changes(&[taken("age", Kind::Integer, true), job.clone()], &["`age` was Long and is Integer"]);
        check_changes(&[age.clone(), taken("job", Kind::Text, true)], &["`job` has become required"]);
        check_changes(&[age, job, taken("new", Kind::Text, true)], &["`new` is new and required"]);
    }
}
