//! Every key, in memory. Whether a text is one of them takes the same time for each text: neither how a key is wrong nor
//! whether it is shows in it.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::select_unpredictable;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use subtle::ConstantTimeEq;

use super::attempts::Subject;
use super::pepper::Digest;
use super::pins::Pin;
use super::store::StoredKey;
use super::{Access, AuthError, Caller, KeyId, KeyRecord, PlanName};

/// Every key, those that have ended included: who still sends one of them is no guesser.
///
/// They are found by the first bytes of their keyed hash, not by the id in their text: a wrong secret under an id that
/// exists is then looked for, and not found, just like one under an id that does not.
#[derive(Default)]
pub(super) struct LiveKeys {
    /// The first bytes of each key's hash, ascending. Of a million keys two begin alike once in forty million stores, and
    /// then one of them is not found.
    heads: Vec<u64>,
    /// The keys, in the order of `heads`.
    keys: Vec<LiveKey>,
    /// Whether some were made elsewhere, and may have any form.
    pub(super) has_imported: bool,
    /// What any of them stays on, no longer than the key lives, by account.
    pub(super) pins: Vec<(KeyId, Pin)>,
}

pub(super) struct LiveKey {
    hash: Digest,
    is_disabled: bool,
    /// When it expires, or long ago if it was revoked.
    ends: Timestamp,
    /// The address it was last used from, as a [`Subject`]'s bits.
    last_address: AtomicU64,
    /// Made once, so that a request clones a pointer.
    pub(super) caller: Arc<Caller>,
}

/// Why a key does not open the door.
#[derive(Clone, Copy)]
pub(super) enum Refused {
    /// It is none of ours.
    Unknown,
    /// It was one of ours.
    Ended,
    Disabled,
}

impl From<Refused> for AuthError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown | Refused::Ended => Self::Unknown,
            Refused::Disabled => Self::Disabled,
        }
    }
}

impl LiveKeys {
    /// Takes `keys` in, each with what its account stays on. What `before` knew of their addresses stays known.
    pub(super) fn new(
        keys: Vec<StoredKey>,
        plans: &BTreeMap<PlanName, Access>,
        pins: &BTreeMap<KeyId, Vec<Pin>>,
        before: &Self,
    ) -> Self {
        let mut live = Self::default();
        for key in keys {
            let pins = pins.get(&key.record.account).map_or(&[][..], Vec::as_slice);
            live.add(key, plans, pins, before);
        }
        live.keys.sort_unstable_by_key(|key| head(&key.hash));
        live.heads = live.keys.iter().map(|key| head(&key.hash)).collect();
        live
    }

    fn add(&mut self, key: StoredKey, plans: &BTreeMap<PlanName, Access>, pins: &[Pin], before: &Self) {
        let StoredKey { record, hash } = key;
        self.has_imported |= record.imported;
        let known = before.nearest(&hash).filter(|key| key.hash == hash);
        let known = known.map_or(0, |key| key.last_address.load(Ordering::Relaxed));
        // Nobody shows a key that was revoked: what it stays on is held for nobody.
        let end = record.revoked.or(record.expires).unwrap_or(Timestamp::MAX);
        let until_end = |pin: &Pin| Pin { until: pin.until.min(end), ..pin.clone() };
        self.pins.extend(pins.iter().map(|pin| (KeyId::clone(&record.account), until_end(pin))));
        self.keys.push(LiveKey {
            hash,
            is_disabled: record.disabled.is_some(),
            ends: if record.revoked.is_some() { Timestamp::MIN } else { record.expires.unwrap_or(Timestamp::MAX) },
            last_address: known.into(),
            caller: Arc::new(Caller { pins: pins.to_vec(), ..caller(record, plans) }),
        });
    }

    /// The key with this hash, if it works.
    pub(super) fn find(&self, hash: &Digest, now: Timestamp) -> Result<&LiveKey, Refused> {
        let key = self.nearest(hash).ok_or(Refused::Unknown)?;
        let is_it = bool::from(hash.ct_eq(&key.hash));
        match select_unpredictable(is_it, key.refused(now), Some(Refused::Unknown)) {
            Some(refused) => Err(refused),
            None => Ok(key),
        }
    }

    /// The key with this hash, or another one where there is none with it. The steps depend on the number of keys alone.
    fn nearest(&self, hash: &Digest) -> Option<&LiveKey> {
        let wanted = head(hash);
        let at = self.heads.partition_point(|head| *head < wanted);
        self.keys.get(at.min(self.keys.len().saturating_sub(1)))
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

fn head(hash: &Digest) -> u64 {
    u64::from_be_bytes(*hash.first_chunk().expect("a digest is longer than its head"))
}

impl LiveKey {
    /// Why it does not open the door, if it does not. Without a branch, as all that is done for a stranger's key too.
    fn refused(&self, now: Timestamp) -> Option<Refused> {
        let by_switch = select_unpredictable(self.is_disabled, Some(Refused::Disabled), None);
        select_unpredictable(self.ends <= now, Some(Refused::Ended), by_switch)
    }

    /// Whether it was last used from there.
    pub(super) fn is_known_at(&self, from: Subject) -> bool {
        self.last_address.load(Ordering::Relaxed) == from.to_bits()
    }

    pub(super) fn note_address(&self, from: Subject) {
        // Read first: a line of memory that is only read is shared by all processors.
        if !self.is_known_at(from) {
            self.last_address.store(from.to_bits(), Ordering::Relaxed);
        }
    }
}

/// Who sends the key of `record`.
fn caller(record: KeyRecord, plans: &BTreeMap<PlanName, Access>) -> Caller {
    let access = plans.get(record.plan.as_str()).cloned().unwrap_or_else(|| {
        if record.revoked.is_none() {
            tracing::warn!(
                key.id = &*record.id,
                plan = record.plan,
                "key `{}` may use no model: its plan `{}` is not configured",
                record.id,
                record.plan
            );
        }
        Access::Only(BTreeSet::new())
    });
    Caller {
        key_id: record.id,
        name: record.name.into(),
        plan: record.plan.into(),
        account: record.account,
        access,
        scopes: record.scopes,
        pins: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Scopes;

    const NOW: Timestamp = Timestamp::constant(1_780_000_000, 0);

    /// Keys with these hashes, in any order.
    fn live(hashes: &[Digest], change: impl Fn(&mut KeyRecord)) -> LiveKeys {
        let stored = |hash: &Digest| {
            let mut record = KeyRecord {
                id: "id".into(),
                name: String::new(),
                plan: String::new(),
                created: NOW,
                expires: None,
                revoked: None,
                account: "id".into(),
                replaced_by: None,
                disabled: None,
                scopes: Scopes::All,
                imported: false,
            };
            change(&mut record);
            StoredKey { record, hash: *hash }
        };
        let keys = hashes.iter().map(stored).collect();
        LiveKeys::new(keys, &BTreeMap::new(), &BTreeMap::new(), &LiveKeys::default())
    }

    fn refusal(live: &LiveKeys, hash: &Digest) -> &'static str {
        match live.find(hash, NOW) {
            Ok(_) => "none",
            Err(Refused::Unknown) => "unknown",
            Err(Refused::Ended) => "ended",
            Err(Refused::Disabled) => "disabled",
        }
    }

    #[test]
    fn each_key_is_found_and_no_other() {
        let hashes: Vec<Digest> =
            (0..100).map(|number: u8| [number.wrapping_mul(37), number, 7, 7].repeat(8).try_into().unwrap()).collect();
        for count in 0..hashes.len() {
            let live = live(&hashes[..count], |_| {});
            for (index, hash) in hashes.iter().enumerate() {
                assert_eq!(refusal(&live, hash), if index < count { "none" } else { "unknown" });
                let mut near = *hash;
                near[31] ^= 1;
                assert_eq!(refusal(&live, &near), "unknown", "only the end of the hash differs");
            }
            assert_eq!(refusal(&live, &[0xff; 32]), "unknown", "beyond the last");
        }
    }

    #[test]
    fn a_key_is_refused_for_the_reason_that_holds_longest() {
        let of = |change: fn(&mut KeyRecord)| refusal(&live(&[[1; 32], [2; 32]], change), &[2; 32]);
        assert_eq!(of(|key| key.expires = Some(NOW)), "ended");
        assert_eq!(of(|key| key.expires = Some(NOW + jiff::SignedDuration::from_millis(1))), "none");
        assert_eq!(of(|key| key.disabled = Some(NOW)), "disabled");
        assert_eq!(of(|key| (key.disabled, key.expires) = (Some(NOW), Some(NOW))), "ended");
        assert_eq!(of(|key| (key.disabled, key.revoked) = (Some(NOW), Some(NOW))), "ended");
    }
}
