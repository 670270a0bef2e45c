//! Callers who stay on a version while others move on: by their plan, or by their key, until a date.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use rusqlite::{Connection, Row, Transaction, params};

use super::{ApiKeys, Caller, KeyId, KeyRecord, PlanName, StoreError, lifecycle, store};

/// What a caller stays on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PinTo {
    /// A version by its number.
    Version(u64),
    /// Whatever an alias points at.
    Alias(Arc<str>),
}

/// One model of which a caller stays on a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The model, as callers name it.
    pub model: Arc<str>,
    /// What the caller stays on.
    pub to: PinTo,
    /// From then on the caller goes the way of all.
    pub until: Timestamp,
}

/// What plans stay on.
pub type PlanPins = BTreeMap<PlanName, Vec<Pin>>;

/// A text that is neither a version nor an alias.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected \"version:<number>\" or \"alias:<name>\"")]
pub struct NoPin;

/// As in `version:3` and `alias:stable`.
impl fmt::Display for PinTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "version:{version}"),
            Self::Alias(alias) => write!(f, "alias:{alias}"),
        }
    }
}

impl FromStr for PinTo {
    type Err = NoPin;

    fn from_str(text: &str) -> Result<Self, NoPin> {
        // MLflow's rule for aliases; `latest` is none.
        let legal = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '-');
        let is_alias = |text: &str| !text.is_empty() && text != "latest" && text.chars().all(legal);
        match text.split_once(':') {
            Some(("version", number)) => {
                number.parse().ok().filter(|number| *number > 0).map(Self::Version).ok_or(NoPin)
            }
            Some(("alias", alias)) if is_alias(alias) => Ok(Self::Alias(alias.into())),
            _ => Err(NoPin),
        }
    }
}

/// The moment that `2027-01-31` (its first, in UTC) or `2027-01-31T12:00:00Z` means.
#[must_use]
pub fn moment(text: &str) -> Option<Timestamp> {
    let first_of = |day: Date| day.to_zoned(TimeZone::UTC).ok().map(|start| start.timestamp());
    text.parse().ok().or_else(|| text.parse().ok().and_then(first_of))
}

impl Caller {
    /// What this caller's own key stays on.
    #[must_use]
    pub fn pins(&self) -> &[Pin] {
        &self.pins
    }
}

impl ApiKeys {
    /// The same keys, on plans that stay on versions.
    #[must_use]
    pub fn with_pins(self, plan_pins: PlanPins) -> Self {
        Self { plan_pins, ..self }
    }

    /// What holds for `caller` at `now`: its key's pins, and then those of its plan.
    pub fn pins_of<'a>(&'a self, caller: &'a Caller, now: Timestamp) -> impl Iterator<Item = &'a Pin> {
        let of_plan = self.plan_pins.get(&caller.plan).into_iter().flatten();
        caller.pins.iter().chain(of_plan).filter(move |pin| now < pin.until)
    }

    /// What `caller` stays on of `model`; `None` where it goes the way of all. The key's word comes before the plan's.
    #[must_use]
    pub fn pin_of<'a>(&'a self, caller: &'a Caller, model: &str, now: Timestamp) -> Option<&'a PinTo> {
        self.pins_of(caller, now).find(|pin| *pin.model == *model).map(|pin| &pin.to)
    }

    /// What callers of each model stay on at `now`, once each: that of plans first, then that of keys, the oldest first.
    #[must_use]
    pub fn pinned(&self, now: Timestamp) -> BTreeMap<String, Vec<PinTo>> {
        self.pinned_without(now, |_, _| false)
    }

    /// As [`pinned`](Self::pinned), without what `is_left_out` of an account's pins.
    fn pinned_without(
        &self,
        now: Timestamp,
        is_left_out: impl Fn(&KeyId, &Pin) -> bool,
    ) -> BTreeMap<String, Vec<PinTo>> {
        let mut pinned: BTreeMap<String, Vec<PinTo>> = BTreeMap::new();
        let live = self.live.load();
        let of_keys = live.pins.iter().filter(|(account, pin)| !is_left_out(account, pin)).map(|(_, pin)| pin);
        for pin in self.plan_pins.values().flatten().chain(of_keys).filter(|pin| now < pin.until) {
            let of_model = pinned.entry(pin.model.to_string()).or_default();
            if !of_model.contains(&pin.to) {
                of_model.push(pin.to.clone());
            }
        }
        pinned
    }

    /// Lets the key with this id, and those that replace it, stay on a version, in the place of the one it stayed on of that
    /// model. `room` is how many different ones there may be of a model.
    ///
    /// # Errors
    /// When there is no such key, the date is past, there is no room, or the store cannot be written.
    pub fn pin(&self, id: &str, pin: &Pin, room: usize, now: Timestamp) -> Result<KeyRecord, StoreError> {
        if pin.until <= now {
            return Err(StoreError::PinIsPast(pin.until));
        }
        let stored = Pin { until: lifecycle::to_millisecond(pin.until), ..pin.clone() };
        self.change_pins(id, |tx, account| {
            self.check_room(account, pin, room, now)?;
            Ok(put(tx, account, &stored)?)
        })
    }

    /// Whether what `pin` is to can be held, once `account` no longer stays on what it replaces.
    fn check_room(&self, account: &str, pin: &Pin, room: usize, now: Timestamp) -> Result<(), StoreError> {
        let is_replaced = |of: &KeyId, old: &Pin| **of == *account && old.model == pin.model;
        let held = self.pinned_without(now, is_replaced).remove(&*pin.model).unwrap_or_default();
        if held.contains(&pin.to) || held.len() < room {
            return Ok(());
        }
        let held = held.iter().map(PinTo::to_string).collect::<Vec<_>>().join(", ");
        Err(StoreError::NoRoomForPin { model: pin.model.to_string(), room, held })
    }

    /// Lets the key with this id go the way of all callers of `model` again.
    ///
    /// # Errors
    /// When there is no such key, it is not pinned, or the store cannot be written.
    pub fn unpin(&self, id: &str, model: &str) -> Result<KeyRecord, StoreError> {
        let mut removed = 0;
        let record = self.change_pins(id, |tx, account| {
            removed = tx.execute("DELETE FROM pins WHERE account = ? AND model = ?", params![account, model])?;
            Ok(removed)
        })?;
        if removed == 0 { Err(StoreError::NotPinned { id: record.id, model: model.to_owned() }) } else { Ok(record) }
    }

    fn change_pins(
        &self,
        id: &str,
        mut change: impl FnMut(&Transaction<'_>, &str) -> Result<usize, StoreError>,
    ) -> Result<KeyRecord, StoreError> {
        self.edit(|edit| {
            let record = lifecycle::find(edit, id)?;
            change(edit, &record.account)?;
            edit.touched_pins(&record.account)?;
            Ok(record)
        })
    }

    /// What every key stays on, past dates included, by account.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn key_pins(&self) -> Result<BTreeMap<KeyId, Vec<Pin>>, StoreError> {
        Ok(read(&self.store.lock().db)?)
    }
}

/// The pins of keys, by account.
pub(super) fn read(db: &Connection) -> rusqlite::Result<BTreeMap<KeyId, Vec<Pin>>> {
    let mut statement = db.prepare("SELECT account, model, target, until FROM pins ORDER BY account, model")?;
    let mut pins: BTreeMap<KeyId, Vec<Pin>> = BTreeMap::new();
    for row in statement.query_map([], read_pin)? {
        let (account, pin) = row?;
        pins.entry(account).or_default().push(pin);
    }
    Ok(pins)
}

/// The pins of one account.
pub(super) fn of_account(db: &Connection, account: &str) -> rusqlite::Result<Vec<Pin>> {
    let mut statement =
        db.prepare("SELECT account, model, target, until FROM pins WHERE account = ? ORDER BY model")?;
    let rows = statement.query_map([account], |row| read_pin(row).map(|(_, pin)| pin))?;
    rows.collect()
}

pub(super) fn put(tx: &Transaction<'_>, account: &str, pin: &Pin) -> rusqlite::Result<usize> {
    tx.execute(
        "INSERT OR REPLACE INTO pins (account, model, target, until) VALUES (?, ?, ?, ?)",
        params![account, &*pin.model, pin.to.to_string(), pin.until.as_millisecond()],
    )
}

fn read_pin(row: &Row<'_>) -> rusqlite::Result<(KeyId, Pin)> {
    let text = |column| row.get::<_, String>(column);
    let to = text(2)?.parse().map_err(|error| store::invalid_text(2, error))?;
    let until = store::timestamp(3, row.get(3)?)?;
    Ok((text(0)?.into(), Pin { model: text(1)?.into(), to, until }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Access, Config};

    fn at(day: i64) -> Timestamp {
        Timestamp::from_second(day * 86_400).unwrap()
    }

    fn pin(model: &str, to: &str, day: i64) -> Pin {
        Pin { model: model.into(), to: to.parse().unwrap(), until: at(day) }
    }

    fn open(folder: &std::path::Path) -> ApiKeys {
        let plans = [(PlanName::from("basic"), Access::All)].into();
        let config = Config { store: folder.join("keys.db"), pepper: folder.join("pepper"), plans };
        ApiKeys::open(config, &mut getrandom::fill).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        for text in ["version:3", "alias:stable", "alias:größer-2"] {
            assert_eq!(text.parse::<PinTo>().unwrap().to_string(), text);
        }
        for text in ["3", "version:0", "version:", "alias:", "alias:latest", "alias:a b", "stage:Production"] {
            assert_eq!(text.parse::<PinTo>(), Err(NoPin), "{text}");
        }
        assert_eq!(moment("1970-01-03"), Some(at(2)));
        assert_eq!(moment("1970-01-02T00:00:00Z"), Some(at(1)));
        assert_eq!(moment("tomorrow"), None);
    }

    #[test]
    fn a_keys_pin_lasts_until_its_date_comes_before_the_plans_and_passes_to_its_successor() {
        let folder = tempfile::tempdir().unwrap();
        let of_plan = vec![pin("sum", "alias:stable", 20), pin("churn", "version:9", 5)];
        let keys = open(folder.path()).with_pins([(PlanName::from("basic"), of_plan)].into());
        let (record, secret) = keys.create("a", "basic", None, at(0), &mut getrandom::fill).unwrap();
        let on = |keys: &ApiKeys, secret: &secrecy::SecretString, model, day| {
            let caller = keys.authenticate(secrecy::ExposeSecret::expose_secret(secret), at(0)).unwrap();
            keys.pin_of(&caller, model, at(day)).map(PinTo::to_string)
        };
        assert_eq!(on(&keys, &secret, "sum", 1).as_deref(), Some("alias:stable"));
        keys.pin(&record.id, &pin("sum", "version:3", 10), 4, at(0)).unwrap();
        let (_, _, successor) =
            keys.rotate(&record.id, jiff::SignedDuration::from_hours(1), at(0), &mut getrandom::fill).unwrap();
        for secret in [&secret, &successor] {
            assert_eq!(on(&keys, secret, "sum", 9).as_deref(), Some("version:3"));
            assert_eq!(on(&keys, secret, "sum", 10).as_deref(), Some("alias:stable"), "the key's date has come");
            assert_eq!(on(&keys, secret, "sum", 20), None, "and the plan's");
            assert_eq!(on(&keys, secret, "other", 1), None);
        }
        let (sum, churn) = ("sum".to_owned(), "churn".to_owned());
        let to = |text: &str| text.parse::<PinTo>().unwrap();
        let all = [(churn, vec![to("version:9")]), (sum.clone(), vec![to("alias:stable"), to("version:3")])];
        assert_eq!(keys.pinned(at(1)), all.into());
        assert_eq!(keys.pinned(at(10)), [(sum, vec![to("alias:stable")])].into());
        keys.unpin(&record.id, "sum").unwrap();
        assert_eq!(on(&keys, &secret, "sum", 1).as_deref(), Some("alias:stable"));
        assert!(matches!(keys.unpin(&record.id, "sum"), Err(StoreError::NotPinned { .. })));
    }

    #[test]
    fn another_process_sees_it_and_what_cannot_be_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (keys, beside) = (open(folder.path()), open(folder.path()));
        let (record, _) = keys.create("a", "basic", None, at(0), &mut getrandom::fill).unwrap();
        keys.pin(&record.id, &pin("sum", "version:3", 10), 1, at(0)).unwrap();
        assert!(beside.refresh_once().unwrap());
        assert_eq!(beside.pinned(at(1)).len(), 1);
        keys.pin(&record.id, &Pin { until: Timestamp::MAX, ..pin("sum", "version:3", 0) }, 1, at(0)).unwrap();
        let again = keys.pin(&record.id, &pin("sum", "version:3", 12), 1, at(0));
        assert!(again.is_ok(), "the same version takes no more room");
        let (second, _) = keys.create("b", "basic", None, at(0), &mut getrandom::fill).unwrap();
        let one_more = keys.pin(&second.id, &pin("sum", "version:4", 10), 1, at(0));
        assert!(matches!(one_more, Err(StoreError::NoRoomForPin { .. })), "{one_more:?}");
        assert!(matches!(keys.pin(&record.id, &pin("sum", "version:3", 1), 1, at(1)), Err(StoreError::PinIsPast(_))));
        assert!(matches!(keys.pin("nobody", &pin("sum", "version:3", 9), 1, at(1)), Err(StoreError::NoSuchKey(_))));
        keys.revoke(&record.id, at(1)).unwrap();
        assert!(keys.pinned(at(1)).is_empty(), "nobody shows a revoked key");
    }

    #[test]
    fn a_pin_takes_the_place_of_the_callers_own_and_of_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let keys = open(folder.path());
        let create = |name| keys.create(name, "basic", None, at(0), &mut getrandom::fill).unwrap().0.id;
        let (one, other) = (create("one"), create("other"));
        let stay = |id: &str, model, to| keys.pin(id, &pin(model, to, 10), 2, at(0));
        let held = |model| keys.pinned(at(1)).remove(model).unwrap_or_default();
        let to = |text: &str| text.parse::<PinTo>().unwrap();
        stay(&one, "sum", "version:1").unwrap();
        stay(&other, "sum", "version:2").unwrap();
        stay(&one, "sum", "version:3").unwrap();
        assert_eq!(held("sum"), [to("version:3"), to("version:2")]);
        stay(&one, "sum", "version:2").unwrap();
        assert_eq!(held("sum"), [to("version:2")]);
        // Two stay on version 2 now: if one leaves it, it is still held.
        let (third, fourth) = (create("third"), create("fourth"));
        stay(&third, "sum", "version:4").unwrap();
        let no_room = stay(&one, "sum", "version:5");
        assert!(matches!(no_room, Err(StoreError::NoRoomForPin { .. })), "{no_room:?}");
        assert!(stay(&fourth, "sum", "version:5").is_err(), "a caller who stays on nothing replaces nothing");
        // What a caller stays on of one model makes no room for another.
        stay(&third, "churn", "version:7").unwrap();
        stay(&fourth, "churn", "version:8").unwrap();
        assert!(stay(&one, "churn", "version:9").is_err());
    }
}
