//! What becomes of a key: made, replaced, disabled, narrowed, ended. Gateways on the store notice at their next
//! [`refresh_once`](ApiKeys::refresh_once), this process at once.

use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};

use super::store::Edit;
use super::{ApiKeys, KeyId, KeyRecord, NAME_MAX_CHARS, Random, Scopes, SharedError, StoreError, key, store};

/// How often a change is tried where others change the same keys at the same time. Each time, one of them gets through.
const EDIT_ATTEMPTS: u32 = 100;

/// What a key is made of.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Whose it is, for people.
    pub name: String,
    /// The usage plan.
    pub plan: String,
    /// When it stops working, if it does.
    pub expires: Option<Timestamp>,
    /// What it may do, of what the plan allows.
    pub scopes: Scopes,
}

impl ApiKeys {
    /// Makes a key for all that its plan allows: [`issue`](Self::issue) without scopes.
    ///
    /// # Errors
    /// When the name or the plan will not do, or the store cannot be written.
    pub fn create(
        &self,
        name: &str,
        plan: &str,
        expires: Option<Timestamp>,
        now: Timestamp,
        random: Random<'_>,
    ) -> Result<(KeyRecord, SecretString), StoreError> {
        let new = NewKey { name: name.to_owned(), plan: plan.to_owned(), expires, scopes: Scopes::All };
        self.issue(new, now, random)
    }

    /// Makes a key; the secret is returned once and stored nowhere. Times are kept to the millisecond.
    ///
    /// # Errors
    /// When the name or the plan will not do, or the store cannot be written.
    pub fn issue(
        &self,
        new: NewKey,
        now: Timestamp,
        random: Random<'_>,
    ) -> Result<(KeyRecord, SecretString), StoreError> {
        check_name(&new.name)?;
        self.check_plan(&new.plan)?;
        let (record, secret) = generate(new, now, random)?;
        let hash = self.pepper.digest(secret.expose_secret());
        self.edit(|edit| Ok(edit.insert(&record, &hash)?))?;
        Ok((record, secret))
    }

    /// Makes a key in the place of the one with this id: same name, plan, scopes and length of life. The old one works on
    /// for `overlap`, or until its own end if that comes first. Both are counted under one account.
    ///
    /// # Errors
    /// When there is no such key, it has ended or was replaced before, or the store cannot be written.
    pub fn rotate(
        &self,
        id: &str,
        overlap: SignedDuration,
        now: Timestamp,
        random: Random<'_>,
    ) -> Result<(KeyRecord, KeyRecord, SecretString), StoreError> {
        self.edit(|edit| {
            let mut old = find(edit, id)?;
            check_rotatable(&old, now)?;
            let lifetime = old.expires.map(|end| end.duration_since(old.created));
            let expires = lifetime.map(|lifetime| now.saturating_add(lifetime)).transpose();
            let new = NewKey {
                name: old.name.clone(),
                plan: old.plan.clone(),
                expires: expires.unwrap_or(Some(Timestamp::MAX)),
                scopes: old.scopes.clone(),
            };
            let (mut new, secret) = generate(new, now, random)?;
            new.account = old.account.clone();
            let end = to_millisecond(now.saturating_add(overlap).unwrap_or(Timestamp::MAX));
            old.expires = Some(old.expires.map_or(end, |before| before.min(end)));
            old.replaced_by = Some(new.id.clone());
            edit.insert(&new, &self.pepper.digest(secret.expose_secret()))?;
            edit.update(&old)?;
            Ok((old, new, secret))
        })
    }

    /// Ends a key, given by its id. A key that was revoked before keeps its date.
    ///
    /// # Errors
    /// When there is no such key, or the store cannot be written.
    pub fn revoke(&self, id: &str, now: Timestamp) -> Result<KeyRecord, StoreError> {
        self.change(id, |key| {
            key.revoked.get_or_insert(to_millisecond(now));
            Ok(())
        })
    }

    /// Switches a key off until it is [enabled](Self::enable). One that was off before keeps its date.
    ///
    /// # Errors
    /// When there is no such key, it was revoked, or the store cannot be written.
    pub fn disable(&self, id: &str, now: Timestamp) -> Result<KeyRecord, StoreError> {
        self.change(id, |key| {
            check_not_revoked(key)?;
            key.disabled.get_or_insert(to_millisecond(now));
            Ok(())
        })
    }

    /// Switches a disabled key on again.
    ///
    /// # Errors
    /// When there is no such key, it was revoked, or the store cannot be written.
    pub fn enable(&self, id: &str) -> Result<KeyRecord, StoreError> {
        self.change(id, |key| {
            check_not_revoked(key)?;
            key.disabled = None;
            Ok(())
        })
    }

    /// Says anew when a key stops working: `None` is never. One that has expired works again if the new end is to come.
    ///
    /// # Errors
    /// When there is no such key, it was revoked, or the store cannot be written.
    pub fn expire(&self, id: &str, end: Option<Timestamp>) -> Result<KeyRecord, StoreError> {
        self.change(id, |key| {
            check_not_revoked(key)?;
            key.expires = end.map(to_millisecond);
            Ok(())
        })
    }

    /// Says anew what a key may do.
    ///
    /// # Errors
    /// When there is no such key, it was revoked, or the store cannot be written.
    pub fn set_scopes(&self, id: &str, scopes: Scopes) -> Result<KeyRecord, StoreError> {
        self.change(id, move |key| {
            check_not_revoked(key)?;
            key.scopes = scopes.clone();
            Ok(())
        })
    }

    fn change(
        &self,
        id: &str,
        change: impl Fn(&mut KeyRecord) -> Result<(), StoreError>,
    ) -> Result<KeyRecord, StoreError> {
        self.edit(|edit| {
            let mut record = find(edit, id)?;
            change(&mut record)?;
            edit.update(&record)?;
            Ok(record)
        })
    }

    /// Makes a change of keys: in the store that gateways share, where they do, and here.
    ///
    /// `change` runs again when another process was faster, on the keys as they are then.
    pub(super) fn edit<T>(
        &self,
        mut change: impl FnMut(&mut Edit<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        for _ in 0..EDIT_ATTEMPTS {
            self.catch_up()?;
            let mut store = self.store.lock();
            let mut edit = Edit::begin(&mut store.db)?;
            let done = change(&mut edit)?;
            if self.publish(&edit)? {
                edit.commit()?;
                self.reload(&mut store)?;
                return Ok(done);
            }
        }
        Err(SharedError::Busy.into())
    }

    pub(super) fn check_plan(&self, plan: &str) -> Result<(), StoreError> {
        if self.plans.contains_key(plan) {
            return Ok(());
        }
        Err(StoreError::UnknownPlan { plan: plan.to_owned(), known: self.plans.keys().cloned().collect() })
    }
}

/// The key with this id. Who gives a whole key means its id; the error must not show the secret.
pub(super) fn find(tx: &rusqlite::Transaction<'_>, id: &str) -> Result<KeyRecord, StoreError> {
    let known = key::parse(id).or_else(|| key::parse_id(id));
    let found = known.map(|id| store::key(tx, key::id_text(&id))).transpose()?.flatten();
    let shown = || key::parse_id(id).map_or("…", |_| id).to_owned();
    found.map(|key| key.record).ok_or_else(|| StoreError::NoSuchKey(shown()))
}

fn check_not_revoked(key: &KeyRecord) -> Result<(), StoreError> {
    if key.revoked.is_some() { Err(StoreError::Ended(KeyId::clone(&key.id))) } else { Ok(()) }
}

fn check_rotatable(key: &KeyRecord, now: Timestamp) -> Result<(), StoreError> {
    if let Some(by) = &key.replaced_by {
        return Err(StoreError::Replaced { id: KeyId::clone(&key.id), by: KeyId::clone(by) });
    }
    let has_ended = key.revoked.is_some() || key.expires.is_some_and(|end| end <= now);
    if has_ended { Err(StoreError::Ended(KeyId::clone(&key.id))) } else { Ok(()) }
}

fn generate(new: NewKey, now: Timestamp, random: Random<'_>) -> Result<(KeyRecord, SecretString), StoreError> {
    let (id, secret) = key::generate(random)?;
    let id = KeyId::from(key::id_text(&id));
    let record = KeyRecord {
        account: id.clone(),
        id,
        name: new.name,
        plan: new.plan,
        created: to_millisecond(now),
        expires: new.expires.map(to_millisecond),
        revoked: None,
        replaced_by: None,
        disabled: None,
        scopes: new.scopes,
        imported: false,
    };
    Ok((record, secret))
}

pub(super) fn check_name(name: &str) -> Result<(), StoreError> {
    let fits = (1..=NAME_MAX_CHARS).contains(&name.chars().count());
    if fits && !name.chars().any(char::is_control) { Ok(()) } else { Err(StoreError::BadName) }
}

/// What the store keeps of a time. The last second there is has no milliseconds that can be read back.
pub(super) fn to_millisecond(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond())
        .or_else(|_| Timestamp::from_second(time.as_second()))
        .expect("a second of a timestamp is a timestamp")
}
