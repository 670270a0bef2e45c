//! Keys and their store, as gateways and the command line use them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use modelgate::auth::{Access, ApiKeys, AuthError, Caller, Config, KeyRecord, Plans, StoreError};
use secrecy::{ExposeSecret, SecretString};
use tempfile::TempDir;

const NOW: Timestamp = Timestamp::constant(1_780_000_000, 0);

/// A store and a pepper in directories of their own, with the plans `all` and `one`.
struct Keyring {
    directory: TempDir,
}

impl Keyring {
    fn new() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("data/store.db")
    }

    fn pepper(&self) -> PathBuf {
        self.directory.path().join("secret/pepper")
    }

    fn config(&self) -> Config {
        let one = Access::Only(BTreeSet::from(["credit".to_owned()]));
        let plans = BTreeMap::from([("all".into(), Access::All), ("one".into(), one)]);
        Config { store: self.store(), pepper: self.pepper(), plans }
    }

    fn try_open(&self) -> Result<ApiKeys, StoreError> {
        ApiKeys::open(self.config(), &mut getrandom::fill)
    }

    fn open(&self) -> ApiKeys {
        self.try_open().unwrap()
    }

    fn refusal(&self) -> StoreError {
        self.try_open().expect_err("a store in this state is refused")
    }

    /// Every file below the directory.
    fn files(&self) -> Vec<PathBuf> {
        let below = |name| fs::read_dir(self.directory.path().join(name)).unwrap();
        below("data").chain(below("secret")).map(|entry| entry.unwrap().path()).collect()
    }

    /// Runs `sql` as another program would.
    fn tamper(&self, sql: &str) {
        rusqlite::Connection::open(self.store()).unwrap().execute_batch(sql).unwrap();
    }
}

fn create(keys: &ApiKeys, plan: &str) -> (KeyRecord, SecretString) {
    keys.create("app", plan, None, NOW, &mut getrandom::fill).unwrap()
}

fn authenticate(keys: &ApiKeys, key: &SecretString) -> Result<Arc<Caller>, AuthError> {
    keys.authenticate(key.expose_secret(), NOW)
}

fn truncate(path: &Path, len: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn a_key_brings_its_caller_with_name_plan_and_models() {
    let keys = Keyring::new().open();
    let (record, key) = create(&keys, "one");
    let caller = authenticate(&keys, &key).unwrap();
    assert_eq!((&*caller.key_id, &*caller.name, &*caller.plan), (&*record.id, "app", "one"));
    assert_eq!(caller.may_use("credit"), Ok(()));
    assert_eq!(caller.may_use("fraud"), Err(AuthError::NotAllowed));
    let (_, key) = create(&keys, "all");
    assert_eq!(authenticate(&keys, &key).unwrap().may_use("fraud"), Ok(()));
}

#[test]
fn keys_outlive_the_process() {
    let keyring = Keyring::new();
    let (record, key) = create(&keyring.open(), "all");
    let keys = keyring.open();
    assert_eq!(authenticate(&keys, &key).unwrap().key_id, record.id);
    let listed = keys.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].id, listed[0].created, listed[0].revoked), (&record.id, NOW, None));
}

#[test]
fn keys_are_listed_oldest_first() {
    let keys = Keyring::new().open();
    let made: Vec<_> = (0..20).map(|_| create(&keys, "all").0.id).collect();
    let listed: Vec<_> = keys.list().unwrap().into_iter().map(|record| record.id).collect();
    assert_eq!(listed, made);
}

#[test]
fn no_file_holds_eight_characters_of_any_secret() {
    let keyring = Keyring::new();
    let keys = keyring.open();
    let mut secrets: Vec<_> = (0..1000).map(|_| create(&keys, "all").1).collect();
    let (replaced, _) = create(&keys, "all");
    secrets.push(keys.rotate(&replaced.id, SignedDuration::ZERO, NOW, &mut getrandom::fill).unwrap().2);
    let foreign = format!("{}ApiGatewaysOwnKeyOfSixtyCharacters", "x".repeat(19));
    let plans = Plans { otherwise: Some("all".into()), ..Plans::default() };
    keys.import(format!("Name,Key\nold,{foreign}\n").as_bytes(), &plans, NOW, &mut getrandom::fill).unwrap();
    secrets.push(foreign.into());
    let mut pieces = BTreeSet::new();
    for secret in &secrets {
        let secret = &secret.expose_secret().as_bytes()["mg_live_7Kq3ZrT0aB_".len()..];
        pieces.extend(secret.windows(8));
    }
    let files = keyring.files();
    assert!(files.iter().any(|file| file.to_string_lossy().ends_with("-wal")), "the log is searched as well");
    for file in files {
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(8).any(|window| pieces.contains(window)), "{} holds a secret", file.display());
    }
}

#[test]
fn nothing_shows_a_secret_when_debugged() {
    let keyring = Keyring::new();
    let keys = keyring.open();
    let (record, key) = create(&keys, "all");
    let shown = format!("{keys:?} {record:?} {key:?} {:?}", authenticate(&keys, &key));
    assert!(!shown.contains(&key.expose_secret()[19..]), "{shown}");
    let error = keys.revoke(&key.expose_secret()[..56], NOW).unwrap_err().to_string();
    assert!(!error.contains(&key.expose_secret()[19..27]), "{error}");
}

#[test]
fn a_wrong_secret_under_a_right_id_is_refused_like_an_unknown_id() {
    let keys = Keyring::new().open();
    let (_, right) = create(&keys, "all");
    let foreign = create(&Keyring::new().open(), "all").1;
    // Two keys whose form is right: the id of ours with the secret of another, and one that is all another's.
    let body = format!("{}{}", &right.expose_secret()[..19], &foreign.expose_secret()[19..51]);
    let forged = SecretString::from(with_checksum(&body));
    assert_eq!(authenticate(&keys, &forged).unwrap_err(), AuthError::Unknown);
    assert_eq!(authenticate(&keys, &foreign).unwrap_err(), AuthError::Unknown);
    for text in ["", "mg_live_", "é", "mg_live_7Kq3ZrT0aB_0123456789abcdefghijABCDEFGHIJ01000000"] {
        assert_eq!(keys.authenticate(text, NOW).unwrap_err(), AuthError::Unknown);
    }
}

/// `body` with its published checksum: CRC-32 in base 62, six digits.
fn with_checksum(body: &str) -> String {
    let alphabet: Vec<_> = ('0'..='9').chain('A'..='Z').chain('a'..='z').collect();
    let crc = crc32fast::hash(body.as_bytes()) as usize;
    let digits = (0..6).rev().map(|place| alphabet[crc / 62_usize.pow(place) % 62]);
    body.chars().chain(digits).collect()
}

#[test]
fn a_key_works_until_it_expires() {
    let keys = Keyring::new().open();
    let end = NOW + Duration::from_mins(1);
    let (record, key) = keys.create("app", "all", Some(end), NOW, &mut getrandom::fill).unwrap();
    assert_eq!(record.expires, Some(end));
    let at = |time| keys.authenticate(key.expose_secret(), time);
    assert!(at(end - Duration::from_millis(1)).is_ok());
    assert_eq!(at(end).unwrap_err(), AuthError::Unknown);
}

#[test]
fn another_process_s_changes_are_seen_at_the_next_refresh() {
    let keyring = Keyring::new();
    let (gateway, cli) = (keyring.open(), keyring.open());
    let (record, key) = create(&cli, "all");
    assert!(authenticate(&gateway, &key).is_err());
    assert!(gateway.refresh_once().unwrap());
    assert!(authenticate(&gateway, &key).is_ok());
    assert!(!gateway.refresh_once().unwrap());
    let revoked = cli.revoke(&record.id, NOW).unwrap();
    assert_eq!(revoked.revoked, Some(NOW));
    assert!(gateway.refresh_once().unwrap());
    assert_eq!(authenticate(&gateway, &key).unwrap_err(), AuthError::Unknown);
}

#[test]
fn writes_that_change_no_key_cause_no_reload() {
    let keyring = Keyring::new();
    let keys = keyring.open();
    keyring.tamper("INSERT INTO usage VALUES ('someone', 'day', 1, 1)");
    assert!(!keys.refresh_once().unwrap());
}

#[test]
fn the_process_that_changes_a_key_sees_it_at_once() {
    let keys = Keyring::new().open();
    let (record, key) = create(&keys, "all");
    assert!(authenticate(&keys, &key).is_ok());
    keys.revoke(&record.id, NOW).unwrap();
    assert!(authenticate(&keys, &key).is_err());
    let again = keys.revoke(key.expose_secret(), NOW + Duration::from_secs(9)).unwrap();
    assert_eq!(again.revoked, Some(NOW), "the first revocation counts");
}

#[test]
fn the_last_good_keys_stay_when_the_store_cannot_be_read() {
    let keyring = Keyring::new();
    let keys = keyring.open();
    let (_, key) = create(&keys, "all");
    keyring.tamper("UPDATE keyring SET generation = generation + 1; ALTER TABLE keys RENAME TO gone");
    assert!(keys.refresh_once().is_err());
    assert!(authenticate(&keys, &key).is_ok());
    keyring.tamper("ALTER TABLE gone RENAME TO keys");
    assert!(keys.refresh_once().unwrap(), "a failure is not remembered as a success");
}

#[test]
fn a_key_whose_plan_is_gone_may_use_nothing() {
    let keyring = Keyring::new();
    let (_, key) = create(&keyring.open(), "all");
    let mut config = keyring.config();
    config.plans.remove("all");
    let keys = ApiKeys::open(config, &mut getrandom::fill).unwrap();
    assert_eq!(authenticate(&keys, &key).unwrap().may_use("credit"), Err(AuthError::NotAllowed));
}

#[test]
fn what_cannot_be_made_or_revoked_is_named() {
    let keys = Keyring::new().open();
    let create = |name: &str, plan| keys.create(name, plan, None, NOW, &mut getrandom::fill).unwrap_err();
    assert_eq!(create("app", "gold").to_string(), "there is no plan `gold`; configured are: all, one");
    for name in ["", "a\nb", "\u{7f}", &"x".repeat(201)] {
        assert!(matches!(create(name, "all"), StoreError::BadName));
    }
    assert!(keys.create(&"é".repeat(200), "all", None, NOW, &mut getrandom::fill).is_ok());
    assert!(matches!(keys.revoke("0000000000", NOW), Err(StoreError::NoSuchKey(id)) if id == "0000000000"));
    assert_eq!(keys.list().unwrap().len(), 1);
}

#[test]
fn two_keys_never_share_an_id() {
    let keys = Keyring::new().open();
    let mut stuck = |bytes: &mut [u8]| {
        bytes.fill(7);
        Ok(())
    };
    let (_, key) = keys.create("first", "all", None, NOW, &mut stuck).unwrap();
    assert!(keys.create("second", "one", None, NOW, &mut stuck).is_err());
    assert_eq!(&*authenticate(&keys, &key).unwrap().name, "first");
}

#[test]
fn store_and_pepper_are_the_owner_s_alone() {
    let keyring = Keyring::new();
    let keys = keyring.open();
    create(&keys, "all");
    let files = keyring.files();
    assert_eq!(files.len(), 4, "store, log, index of the log, pepper: {files:?}");
    for file in files {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    drop(keys);
    for file in [keyring.store(), keyring.pepper()] {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(keyring.refusal(), StoreError::Exposed { mode: 0o644, .. }));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o440)).unwrap();
        assert!(!matches!(keyring.try_open(), Err(StoreError::Exposed { .. })), "a mounted secret is the group's");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn a_pepper_that_is_lost_cut_or_another_is_refused_while_there_are_keys() {
    let keyring = Keyring::new();
    let (_, key) = create(&keyring.open(), "all");
    let good = fs::read(keyring.pepper()).unwrap();
    let put = |bytes: &[u8]| fs::write(keyring.pepper(), bytes).unwrap();
    put(&[1; 32]);
    assert!(matches!(keyring.refusal(), StoreError::PepperChanged { .. }));
    put(&good[..31]);
    assert!(matches!(keyring.refusal(), StoreError::PepperLength { found: 31, .. }));
    fs::remove_file(keyring.pepper()).unwrap();
    assert!(matches!(keyring.refusal(), StoreError::PepperMissing { .. }));
    assert!(!keyring.pepper().exists(), "none is made in its place");
    put(&good);
    fs::set_permissions(keyring.pepper(), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(authenticate(&keyring.open(), &key).is_ok());
}

#[test]
fn a_pepper_without_keys_may_be_made_anew() {
    let keyring = Keyring::new();
    drop(keyring.open());
    fs::remove_file(keyring.pepper()).unwrap();
    let (_, key) = create(&keyring.open(), "all");
    assert!(authenticate(&keyring.open(), &key).is_ok());
}

#[test]
fn a_damaged_store_is_refused_and_left_as_it_is() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("emptied", |store| truncate(store, 0)),
        ("cut", |store| truncate(store, 8192)),
        ("not a database", |store| fs::write(store, vec![b'x'; 32768]).unwrap()),
        ("a page overwritten", |store| {
            let mut bytes = fs::read(store).unwrap();
            bytes[4096..8192].fill(0xAA);
            fs::write(store, bytes).unwrap();
        }),
        ("another program's", |store| {
            fs::remove_file(store).unwrap();
            rusqlite::Connection::open(store).unwrap().execute_batch("CREATE TABLE keys (id)").unwrap();
            fs::set_permissions(store, fs::Permissions::from_mode(0o600)).unwrap();
        }),
    ];
    for (what, damage) in damages {
        let keyring = Keyring::new();
        create(&keyring.open(), "all");
        damage(&keyring.store());
        let before = fs::read(keyring.store()).unwrap();
        let refusal = keyring.refusal();
        assert!(matches!(refusal, StoreError::Damaged { .. }), "{what}: {refusal:?}");
        assert!(refusal.to_string().contains("put back a backup"), "{refusal}");
        assert_eq!(fs::read(keyring.store()).unwrap(), before, "{what}");
    }
}

#[test]
fn a_store_that_vanished_from_beside_its_log_is_refused() {
    let keyring = Keyring::new();
    let keys = keyring.open();
    create(&keys, "all");
    fs::remove_file(keyring.store()).unwrap();
    assert!(matches!(keyring.refusal(), StoreError::Damaged { .. }));
}

#[test]
fn a_store_of_a_newer_version_is_refused() {
    let keyring = Keyring::new();
    drop(keyring.open());
    keyring.tamper("PRAGMA user_version = 5");
    assert!(matches!(keyring.refusal(), StoreError::Newer { found: 5, known: 4, .. }));
}

#[test]
fn processes_that_start_together_make_one_store_and_one_pepper() {
    let keyring = Keyring::new();
    let made: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| create(&keyring.open(), "all").1)).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let keys = keyring.open();
    assert!(made.iter().all(|key| authenticate(&keys, key).is_ok()));
    assert_eq!(keys.list().unwrap().len(), 8);
}
