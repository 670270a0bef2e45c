//! "Did you mean": the feature whose name is nearest to what a caller wrote.

use std::str::Chars;

use super::Feature;

/// More slips than this and the two names have little to do with each other.
const SLIPS_MAX: usize = 2;

/// Names longer than this get no suggestion; it bounds what a wrong name can cost.
const NAME_MAX_BYTES: usize = 64;

/// The caller's name of the feature that `field` probably means: the one whose model name it is, else the nearest.
pub(super) fn nearest<'f>(field: &str, features: &'f [Feature]) -> Option<&'f str> {
    if let Some(feature) = features.iter().find(|feature| &*feature.name == field) {
        return Some(&feature.field);
    }
    if field.len() > NAME_MAX_BYTES {
        return None;
    }
    features
        .iter()
        .filter_map(|feature| Some((slips(field.chars(), feature.field.chars(), SLIPS_MAX)?, &*feature.field)))
        // Everything is near a name of one letter.
        .filter(|&(slips, name)| slips < name.chars().count())
        .min_by_key(|&(slips, _)| slips)
        .map(|(_, name)| name)
}

/// How many characters must be added, removed or changed to get from one to the other, if no more than `allowed`.
fn slips(mut written: Chars<'_>, mut wanted: Chars<'_>, allowed: usize) -> Option<usize> {
    loop {
        let (written_from_here, wanted_from_here) = (written.clone(), wanted.clone());
        match (written.next(), wanted.next()) {
            (None, None) => return Some(0),
            (one, other) if one == other => (),
            _ => {
                let allowed = allowed.checked_sub(1)?;
                let one_too_many = slips(written.clone(), wanted_from_here, allowed);
                let one_too_few = slips(written_from_here, wanted.clone(), allowed);
                let one_changed = slips(written, wanted, allowed);
                return [one_too_many, one_too_few, one_changed].into_iter().flatten().min().map(|slips| slips + 1);
            }
        }
    }
}
