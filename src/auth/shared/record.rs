//! One record of the shared keys: a key, or what an account stays on, as JSON under a seal.
//!
//! The seal is a keyed hash under the pepper, which the store never sees: who can only write to the store can neither
//! make a key that works, nor widen or revive one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use super::super::pepper::Pepper;
use super::super::store::StoredKey;
use super::super::{KeyId, KeyRecord, Pin, key};

/// A record, with the field it is under.
#[derive(Debug)]
pub(super) enum Record {
    /// `key:<id>`
    Key(Box<StoredKey>),
    /// `pins:<account>`; without pins they were taken back.
    Pins(KeyId, Vec<Pin>),
}

/// What is written of a key. What is not known here is not passed over: it could be what narrows the key.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WrittenKey {
    name: String,
    plan: String,
    /// In base 64.
    hash: String,
    created: Timestamp,
    expires: Option<Timestamp>,
    revoked: Option<Timestamp>,
    account: KeyId,
    replaced_by: Option<KeyId>,
    disabled: Option<Timestamp>,
    scopes: String,
    imported: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WrittenPin {
    model: String,
    to: String,
    until: Timestamp,
}

impl Record {
    pub(super) fn field(&self) -> String {
        match self {
            Self::Key(key) => format!("key:{}", key.record.id),
            Self::Pins(account, _) => format!("pins:{account}"),
        }
    }

    /// What the store keeps under the field: a seal, a space, and JSON.
    pub(super) fn value(&self, pepper: &Pepper) -> String {
        let json = match self {
            Self::Key(key) => serde_json::to_string(&WrittenKey::of(key)),
            Self::Pins(_, pins) => serde_json::to_string(&pins.iter().map(WrittenPin::of).collect::<Vec<_>>()),
        };
        let json = json.expect("texts, times and truths are JSON");
        format!("{} {json}", STANDARD.encode(seal(pepper, &self.field(), &json)))
    }

    /// The record that `value` is under `field`; `None` where it is not what [`value`](Self::value) made of one.
    pub(super) fn read(field: &str, value: &str, pepper: &Pepper) -> Option<Self> {
        let (sealed, json) = value.split_once(' ')?;
        let sealed = STANDARD.decode(sealed).ok()?;
        if !bool::from(sealed.ct_eq(&seal(pepper, field, json))) {
            return None;
        }
        let (kind, id) = field.split_once(':')?;
        let id = KeyId::from(key::id_text(&key::parse_id(id)?));
        match kind {
            "key" => Some(Self::Key(Box::new(serde_json::from_str::<WrittenKey>(json).ok()?.into_key(id)?))),
            "pins" => {
                let pins: Vec<WrittenPin> = serde_json::from_str(json).ok()?;
                let pins = pins.into_iter().map(WrittenPin::into_pin).collect::<Option<_>>()?;
                Some(Self::Pins(id, pins))
            }
            _ => None,
        }
    }
}

/// What only who has the pepper can make. No key has such a form, so no key's hash is ever one.
fn seal(pepper: &Pepper, field: &str, json: &str) -> [u8; 32] {
    pepper.digest(&format!("modelgate record {field}\n{json}"))
}

impl WrittenKey {
    fn of(StoredKey { record, hash }: &StoredKey) -> Self {
        let KeyRecord {
            id: _,
            name,
            plan,
            created,
            expires,
            revoked,
            account,
            replaced_by,
            disabled,
            scopes,
            imported,
        } = record.clone();
        let (hash, scopes) = (STANDARD.encode(hash), scopes.to_string());
        Self { name, plan, hash, created, expires, revoked, account, replaced_by, disabled, scopes, imported }
    }

    fn into_key(self, id: KeyId) -> Option<StoredKey> {
        let Self { name, plan, hash, created, expires, revoked, account, replaced_by, disabled, scopes, imported } =
            self;
        let (hash, scopes) = (STANDARD.decode(hash).ok()?.try_into().ok()?, scopes.parse().ok()?);
        let record =
            KeyRecord { id, name, plan, created, expires, revoked, account, replaced_by, disabled, scopes, imported };
        Some(StoredKey { record, hash })
    }
}

impl WrittenPin {
    fn of(Pin { model, to, until }: &Pin) -> Self {
        Self { model: model.to_string(), to: to.to_string(), until: *until }
    }

    fn into_pin(self) -> Option<Pin> {
        Some(Pin { model: self.model.into(), to: self.to.parse().ok()?, until: self.until })
    }
}
