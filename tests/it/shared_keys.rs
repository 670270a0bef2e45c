//! Keys that several gateways share, over a real Redis: what one changes works at the others, and whatever becomes of the
//! server, no gateway loses a key it had and none takes back one that was revoked.

mod processes;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use modelgate::auth::{
    Access, ApiKeys, AuthError, Config, Keep, KeyId, NewKey, Pin, Plans, Put, Scopes, SharedError, SharedStore,
    StoreError,
};
use secrecy::{ExposeSecret as _, SecretString};
use tempfile::TempDir;

use crate::keys_load::{CHANGES, check_change};
use crate::support::redis::{Server, Weather, Wire};
use crate::support::site::Site;

const NOW: Timestamp = Timestamp::constant(1_780_000_000, 0);

/// Gateways' data directories, and the store that they share.
struct Fleet {
    server: Server,
    folder: TempDir,
}

impl Fleet {
    fn new() -> Self {
        let fleet = Self { server: Server::start(), folder: tempfile::tempdir().unwrap() };
        fleet.give_pepper("pepper", 7);
        fleet
    }

    /// With an empty store of keys in it, that nobody has a copy of.
    fn shared() -> Self {
        let fleet = Self::new();
        fleet.keys("first").share(None).unwrap();
        fleet
    }

    fn give_pepper(&self, name: &str, byte: u8) {
        let path = self.folder.path().join(name);
        fs::write(&path, [byte; 32]).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn config(&self, directory: &str, pepper: &str) -> Config {
        let plans = BTreeMap::from([("basic".into(), Access::All), ("gold".into(), Access::All)]);
        let folder = self.folder.path();
        Config { store: folder.join(directory).join("modelgate.db"), pepper: folder.join(pepper), plans }
    }

    fn store(&self) -> SharedStore {
        SharedStore { url: self.server.url().parse().unwrap(), password: None, namespace: "test".into() }
    }

    fn keys(&self, directory: &str) -> ApiKeys {
        self.keys_over(directory, &self.store())
    }

    fn keys_over(&self, directory: &str, store: &SharedStore) -> ApiKeys {
        ApiKeys::open_shared(self.config(directory, "pepper"), store).unwrap()
    }

    /// A gateway that has looked at the store.
    fn gateway(&self, directory: &str) -> ApiKeys {
        let keys = self.keys(directory);
        assert!(keys.sync_at_start(NOW).unwrap());
        keys
    }

    /// The keys of a directory that shares nothing.
    fn alone(&self, directory: &str) -> ApiKeys {
        ApiKeys::open(self.config(directory, "pepper"), &mut getrandom::fill).unwrap()
    }
}

fn create(keys: &ApiKeys) -> (KeyId, SecretString) {
    let (record, key) = keys.create("app", "basic", None, NOW, &mut getrandom::fill).unwrap();
    (record.id, key)
}

fn refusal(keys: &ApiKeys, key: &SecretString) -> Option<AuthError> {
    keys.authenticate(key.expose_secret(), NOW).err()
}

fn shared_error<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> SharedError {
    match outcome {
        Err(StoreError::Shared(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn import(keys: &ApiKeys, plan: &str) {
    let plans = Plans { otherwise: Some(plan.into()), ..Plans::default() };
    keys.import(b"Name,Key\nold,ApiGatewaysOwnKeyOfMany\n", &plans, NOW, &mut getrandom::fill).unwrap();
}

/// One thing that can be done to a key at one gateway, and what comes of it at another.
fn check(what: &str, change: impl Fn(&ApiKeys, &str), refused: Option<&AuthError>) {
    let fleet = Fleet::shared();
    let (one, other) = (fleet.gateway("one"), fleet.gateway("other"));
    let (id, key) = create(&one);
    assert_eq!(refusal(&other, &key), Some(AuthError::Unknown), "it has not looked yet");
    assert!(other.sync_once(NOW).unwrap());
    assert_eq!(refusal(&other, &key), None);
    change(&one, &id);
    assert!(other.sync_once(NOW).unwrap(), "{what}");
    assert_eq!(refusal(&other, &key).as_ref(), refused, "{what}");
    assert!(!other.sync_once(NOW).unwrap(), "{what}: nothing is new");
    let shown =
        |keys: &ApiKeys| format!("{:?} {:?} {:?}", keys.list().unwrap(), keys.key_pins().unwrap(), keys.pinned(NOW));
    assert_eq!(shown(&one), shown(&other), "{what}");
}

#[test]
fn what_is_done_to_a_key_at_one_gateway_works_at_the_others_after_a_look() {
    check("revoke", |keys, id| drop(keys.revoke(id, NOW).unwrap()), Some(&AuthError::Unknown));
    check("disable", |keys, id| drop(keys.disable(id, NOW).unwrap()), Some(&AuthError::Disabled));
    check("expire", |keys, id| drop(keys.expire(id, Some(NOW)).unwrap()), Some(&AuthError::Unknown));
    check(
        "rotate",
        |keys, id| drop(keys.rotate(id, SignedDuration::ZERO, NOW, &mut getrandom::fill).unwrap()),
        Some(&AuthError::Unknown),
    );
    check("scope", |keys, id| drop(keys.set_scopes(id, "usage:read".parse().unwrap()).unwrap()), None);
    check("import", |keys, _| import(keys, "gold"), None);
    let pin = Pin { model: "sum".into(), to: "version:3".parse().unwrap(), until: NOW + Duration::from_hours(9) };
    check("pin", |keys, id| drop(keys.pin(id, &pin, 4, NOW).unwrap()), None);
    let and_back = |keys: &ApiKeys, id: &str| {
        keys.disable(id, NOW).unwrap();
        keys.enable(id).unwrap();
        keys.pin(id, &pin, 4, NOW).unwrap();
        keys.unpin(id, "sum").unwrap();
    };
    check("there and back", and_back, None);
}

#[test]
fn a_lower_scope_is_the_scope_of_the_others_callers() {
    let fleet = Fleet::shared();
    let (one, other) = (fleet.gateway("one"), fleet.gateway("other"));
    let (id, key) = create(&one);
    other.sync_once(NOW).unwrap();
    one.set_scopes(&id, "predict:sum".parse().unwrap()).unwrap();
    other.sync_once(NOW).unwrap();
    let caller = other.authenticate(key.expose_secret(), NOW).unwrap();
    assert!(caller.may_use("sum").is_ok() && caller.may_use("churn").is_err());
}

#[test]
fn a_gateway_serves_on_while_the_store_is_gone_and_says_how_old_its_copy_is() {
    let mut fleet = Fleet::shared();
    let gateway = fleet.gateway("one");
    let (id, key) = create(&gateway);
    let later = NOW + Duration::from_mins(5);
    gateway.sync_once(later).unwrap();
    fleet.server.kill();
    for _ in 0..3 {
        let error = shared_error(gateway.sync_once(later + Duration::from_mins(1)));
        assert!(matches!(error, SharedError::Unreachable(_)), "{error:?}");
        assert_eq!(refusal(&gateway, &key), None);
    }
    let health = gateway.copy_health().unwrap();
    assert_eq!((health.heard, health.trouble.is_some()), (Some(later), true), "{health:?}");
    assert!(matches!(shared_error(gateway.revoke(&id, NOW)), SharedError::Unreachable(_)));
    assert_eq!(refusal(&gateway, &key), None, "what was refused was not done");
    drop(gateway);
    let again = fleet.keys("one");
    assert!(!again.sync_at_start(later + Duration::from_mins(2)).unwrap());
    assert_eq!(refusal(&again, &key), None, "its copy is on disk");
    assert_eq!(again.copy_health().unwrap().heard, Some(later), "and how old it is, too");
}

#[test]
fn a_gateway_with_nothing_to_answer_with_does_not_start() {
    let mut fleet = Fleet::new();
    let keys = fleet.keys("new");
    let error = shared_error(keys.sync_at_start(NOW));
    let SharedError::NoCopy(reason) = &error else { panic!("{error:?}") };
    assert!(matches!(**reason, StoreError::Shared(SharedError::Absent)), "{reason:?}");
    fleet.server.kill();
    assert!(matches!(shared_error(keys.sync_at_start(NOW)), SharedError::NoCopy(_)));
}

#[test]
fn a_store_that_comes_back_empty_empties_no_gateway_and_gets_the_keys_back_from_one() {
    let mut fleet = Fleet::shared();
    let (one, other) = (fleet.gateway("one"), fleet.gateway("other"));
    let (id, key) = create(&one);
    other.sync_once(NOW).unwrap();
    fleet.server.kill();
    fleet.server.restart();
    for gateway in [&one, &other] {
        assert!(matches!(shared_error(gateway.sync_once(NOW)), SharedError::Absent));
        assert_eq!(refusal(gateway, &key), None);
    }
    assert!(matches!(shared_error(one.revoke(&id, NOW)), SharedError::Absent));
    let put = one.share(None).unwrap();
    assert_eq!(put, Put::Together { keys: 1, there: 0, unreadable: 0 });
    one.revoke(&id, NOW).unwrap();
    assert!(other.sync_once(NOW).unwrap());
    assert_eq!(refusal(&other, &key), Some(AuthError::Unknown));
    assert_eq!(other.share(None).unwrap(), Put::Nothing { keys: 1 });
}

/// All that the store has of keys.
const NAMES: [&str; 4] = ["test:keys", "test:keys:changes", "test:keys:stamps", "test:keys:state"];

/// The store as it was, in a place of its own.
fn set_aside(server: &Server) {
    for name in NAMES {
        server.command(&["COPY", name, &format!("aside:{name}"), "REPLACE"]);
    }
}

fn bring_back(server: &Server) {
    for name in NAMES {
        server.command(&["COPY", &format!("aside:{name}"), name, "REPLACE"]);
    }
}

#[test]
fn a_store_that_went_back_in_time_revives_no_key() {
    let fleet = Fleet::shared();
    let (one, other) = (fleet.gateway("one"), fleet.gateway("other"));
    let (id, key) = create(&one);
    set_aside(&fleet.server);
    one.revoke(&id, NOW).unwrap();
    other.sync_once(NOW).unwrap();
    bring_back(&fleet.server);
    assert!(matches!(shared_error(other.sync_once(NOW)), SharedError::Behind { there: 2, here: 3 }));
    assert!(matches!(shared_error(one.enable(&id)), SharedError::Behind { .. }));
    assert_eq!(refusal(&other, &key), Some(AuthError::Unknown));
    let SharedError::Conflicts { ids } = shared_error(other.share(None)) else { panic!("one of them is right") };
    assert_eq!(ids, [id.to_string()]);
    // An old copy that is put into an empty store is no newer for it.
    fleet.server.command(&["FLUSHALL"]);
    fleet.alone("old");
    let old = fleet.keys("old");
    old.share(None).unwrap();
    assert!(matches!(shared_error(other.sync_once(NOW)), SharedError::Behind { there: 1, here: 3 }));
    // The newest copy is put back by hand, and everybody takes it.
    other.share(None).unwrap();
    for gateway in [&one, &old] {
        assert!(gateway.sync_once(NOW).unwrap());
        assert_eq!(refusal(gateway, &key), Some(AuthError::Unknown));
    }
}

/// A failover to a replica that had not heard of the last change, and another change there.
#[test]
fn a_store_that_lost_a_change_and_went_on_revives_no_key() {
    for changes in [1, 2] {
        let fleet = Fleet::shared();
        let (one, other) = (fleet.gateway("one"), fleet.gateway("other"));
        let (id, key) = create(&one);
        other.sync_once(NOW).unwrap();
        set_aside(&fleet.server);
        one.revoke(&id, NOW).unwrap();
        bring_back(&fleet.server);
        let made: Vec<_> = (0..changes).map(|_| create(&other).1).collect();
        let there = 2 + changes;
        let error = shared_error(one.sync_once(NOW));
        assert!(matches!(error, SharedError::Behind { there: seen, here: 3 } if seen == there), "{error:?}");
        assert_eq!(refusal(&one, &key), Some(AuthError::Unknown));
        one.share(Some(Keep::Here)).unwrap();
        other.sync_once(NOW).unwrap();
        for gateway in [&one, &other] {
            assert_eq!(refusal(gateway, &key), Some(AuthError::Unknown));
            assert!(made.iter().all(|key| refusal(gateway, key).is_none()), "what was made meanwhile works");
        }
    }
}

#[test]
fn a_store_that_lost_a_part_is_not_believed() {
    for lost in ["test:keys", "test:keys:changes"] {
        let fleet = Fleet::shared();
        let (one, other) = (fleet.gateway("one"), fleet.gateway("other"));
        let (id, key) = create(&one);
        other.sync_once(NOW).unwrap();
        fleet.server.command(&["DEL", lost]);
        let new = fleet.keys("new");
        assert!(matches!(shared_error(new.sync_at_start(NOW)), SharedError::NoCopy(_)), "{lost}");
        other.share(None).unwrap_or_else(|error| panic!("{lost}: {error}"));
        one.sync_once(NOW).unwrap();
        one.disable(&id, NOW).unwrap_or_else(|error| panic!("{lost}: {error}"));
        other.sync_once(NOW).unwrap();
        assert_eq!(refusal(&other, &key), Some(AuthError::Disabled), "{lost}");
    }
    let fleet = Fleet::shared();
    let gateway = fleet.gateway("one");
    fleet.server.command(&["SET", "test:keys:state", "nonsense"]);
    assert!(matches!(shared_error(gateway.sync_once(NOW)), SharedError::Unintelligible { .. }));
}

#[test]
fn a_gateway_with_another_pepper_is_refused() {
    let mut fleet = Fleet::shared();
    fleet.give_pepper("other-pepper", 8);
    let stranger = ApiKeys::open_shared(fleet.config("stranger", "other-pepper"), &fleet.store()).unwrap();
    for outcome in [stranger.sync_at_start(NOW), stranger.share(None).map(|_| true)] {
        let error = shared_error(outcome);
        assert!(matches!(&error, SharedError::WrongPepper { path } if path.ends_with("other-pepper")), "{error:?}");
    }
    let none = ApiKeys::open_shared(fleet.config("none", "no-pepper"), &fleet.store()).unwrap_err();
    assert!(matches!(none, StoreError::NoPepper { .. }), "{none:?}");
    assert!(!fleet.folder.path().join("no-pepper").exists(), "a gateway makes none for itself");
    // One that started while the store was gone hears of it when it is back.
    let gateway = fleet.gateway("one");
    let (_, key) = create(&gateway);
    fleet.server.kill();
    fleet.server.restart();
    stranger.share(None).unwrap();
    assert!(matches!(shared_error(gateway.sync_once(NOW)), SharedError::WrongPepper { .. }));
    assert_eq!(refusal(&gateway, &key), None);
}

#[test]
fn of_changes_at_the_same_time_none_is_lost() {
    let fleet = Fleet::shared();
    let (id, _) = create(&fleet.gateway("first"));
    let create_many = |directory: &'static str| {
        let keys = fleet.gateway(directory);
        let id = id.clone();
        move || {
            for number in 0..20 {
                create(&keys);
                // All of them change this one, too.
                let scopes: Scopes = format!("predict:{directory}-{number}").parse().unwrap();
                keys.set_scopes(&id, scopes).unwrap();
            }
        }
    };
    let writers = ["a", "b", "c"].map(create_many);
    thread::scope(|scope| writers.map(|write| scope.spawn(write)).map(|thread| thread.join().unwrap()));
    let seen = ["a", "b", "c", "new"].map(|directory| {
        let keys = fleet.gateway(directory);
        assert_eq!(keys.copy_health().unwrap().generation, 1 + 1 + 3 * 40, "every change counted once");
        keys.list().unwrap().into_iter().map(|key| format!("{key:?}")).collect::<BTreeSet<_>>()
    });
    assert_eq!(seen[0].len(), 61);
    assert!(seen.iter().all(|keys| *keys == seen[0]));
}

#[test]
fn a_record_that_cannot_be_read_is_told_and_leaves_the_others() {
    let fleet = Fleet::shared();
    let (one, other) = (fleet.gateway("one"), fleet.gateway("other"));
    let (bad, bad_key) = create(&one);
    let (moved, moved_key) = create(&one);
    other.sync_once(NOW).unwrap();
    one.revoke(&moved, NOW).unwrap();
    let (last, good_key) = create(&one);
    fleet.server.command(&["HSET", "test:keys", &format!("key:{bad}"), "\u{7}garbage"]);
    // The record of a key that works, under the id of one that was revoked: its seal is another's.
    let record = fleet.server.command(&["HGET", "test:keys", &format!("key:{last}")]);
    let record = record.lines().nth(1).unwrap();
    fleet.server.command(&["HSET", "test:keys", &format!("key:{moved}"), record]);
    let new = fleet.gateway("new");
    assert_eq!(new.copy_health().unwrap().unreadable, 2);
    assert_eq!((refusal(&new, &good_key), refusal(&new, &bad_key)), (None, Some(AuthError::Unknown)));
    other.sync_once(NOW).unwrap();
    assert_eq!(refusal(&other, &good_key), None);
    assert_eq!(refusal(&other, &moved_key), None, "what it had stays");
    assert_eq!(other.copy_health().unwrap().unreadable, 1, "the other garbage was not written in a change");
    // It is told until the record is written again, by who has it: over a restart, too.
    drop(new);
    let new = fleet.gateway("new");
    assert_eq!(new.copy_health().unwrap().unreadable, 2);
    one.disable(&bad, NOW).unwrap();
    one.revoke(&moved, NOW).unwrap();
    new.sync_once(NOW).unwrap();
    assert_eq!(new.copy_health().unwrap().unreadable, 0);
    assert_eq!(refusal(&new, &bad_key), Some(AuthError::Disabled));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_answer_is_given_up_and_found_again() {
    let fleet = Fleet::shared();
    let wire = Wire::to(&fleet.server).await;
    let store = SharedStore { url: wire.url().parse().unwrap(), ..fleet.store() };
    let gateway = fleet.keys_over("one", &store);
    assert!(gateway.sync_at_start(NOW).unwrap());
    let (id, key) = create(&gateway);
    for weather in [Weather::Parted, Weather::AnswersStuck, Weather::Cut] {
        wire.becomes(weather);
        for _ in 0..2 {
            assert!(matches!(shared_error(gateway.sync_once(NOW)), SharedError::Unreachable(_)), "{weather:?}");
        }
        assert!(matches!(shared_error(gateway.revoke(&id, NOW)), SharedError::Unreachable(_)), "{weather:?}");
        assert_eq!(refusal(&gateway, &key), None);
        wire.becomes(Weather::Fair);
        gateway.sync_once(NOW).unwrap_or_else(|error| panic!("{weather:?}: {error:?}"));
    }
}

#[test]
fn nobody_has_to_try_twice_where_the_store_has_hung_up() {
    let fleet = Fleet::shared();
    let gateway = fleet.gateway("one");
    let (id, key) = create(&gateway);
    fleet.server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    gateway.revoke(&id, NOW).unwrap();
    assert_eq!(refusal(&gateway, &key), Some(AuthError::Unknown));
}

#[test]
#[ignore = "nightly: a change that is not answered, ten seconds"]
fn a_change_that_is_not_answered_is_not_said_to_be_made_or_not() {
    let fleet = Fleet::shared();
    let gateway = fleet.gateway("one");
    let (id, key) = create(&gateway);
    fleet.server.command(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    assert!(matches!(shared_error(gateway.revoke(&id, NOW)), SharedError::Uncertain(_)));
    fleet.server.command(&["CLIENT", "UNPAUSE"]);
    // Whichever it was, copy and store agree.
    gateway.sync_once(NOW).unwrap();
    let new = fleet.gateway("new");
    assert_eq!(refusal(&new, &key), refusal(&gateway, &key));
    gateway.revoke(&id, NOW).unwrap();
    new.sync_once(NOW).unwrap();
    assert_eq!(refusal(&new, &key), Some(AuthError::Unknown));
}

#[test]
fn a_user_with_the_documented_rights_and_a_password_is_enough() {
    let fleet = Fleet::new();
    let page = include_str!("../../docs/shared-quota.md");
    let rights = ["For an ACL user: `", "Where keys are shared, also: `"]
        .map(|start| page.lines().find_map(|line| line.strip_prefix(start)).unwrap().trim_end_matches("`."));
    let rights = rights.join(" ").replace("<namespace>", "test");
    let words = ["ACL", "SETUSER", "gateway", "on", ">secret"].into_iter().chain(rights.split(' '));
    let answer = fleet.server.command(&words.collect::<Vec<_>>());
    assert!(answer.starts_with("+OK"), "{answer}");
    let mut store = SharedStore { password: Some("secret".into()), ..fleet.store() };
    store.url.set_username("gateway").unwrap();
    let one = fleet.keys_over("one", &store);
    one.share(None).unwrap();
    let (id, key) = create(&one);
    let other = fleet.keys_over("other", &store);
    other.sync_at_start(NOW).unwrap();
    assert_eq!(refusal(&other, &key), None);
    store.password = Some("wrong".into());
    let error = shared_error(fleet.keys_over("one", &store).revoke(&id, NOW));
    assert!(matches!(error, SharedError::Unreachable(_)), "{error:?}");
    // A store that may only be read refuses, and nothing is left in doubt.
    fleet.server.command(&["ACL", "SETUSER", "gateway", "-set"]);
    assert!(matches!(shared_error(one.revoke(&id, NOW)), SharedError::Unreachable(_)));
    assert_eq!(refusal(&one, &key), None);
}

#[test]
fn keys_of_two_directories_are_put_together_and_what_differs_is_asked_about() {
    let fleet = Fleet::new();
    let (first, second) = (fleet.alone("first"), fleet.alone("second"));
    let (_, first_key) = create(&first);
    let (_, second_key) = create(&second);
    drop((first, second));
    let (first, second) = (fleet.keys("first"), fleet.keys("second"));
    assert_eq!(first.share(None).unwrap(), Put::Together { keys: 1, there: 0, unreadable: 0 });
    assert!(matches!(shared_error(second.sync_at_start(NOW)), SharedError::Unshared), "nothing is thrown away unasked");
    assert_eq!(refusal(&second, &second_key), None);
    assert_eq!(second.share(None).unwrap(), Put::Together { keys: 2, there: 1, unreadable: 0 });
    first.sync_once(NOW).unwrap();
    for keys in [&first, &second] {
        assert_eq!((refusal(keys, &first_key), refusal(keys, &second_key)), (None, None));
    }
}

/// Two directories of which one is a copy of the other, with a key that was revoked in the second, and a key that each
/// imported for itself; the first is shared.
fn differing(fleet: &Fleet) -> (ApiKeys, KeyId, SecretString) {
    let first = fleet.alone("first");
    let (id, key) = create(&first);
    drop(first);
    fs::create_dir(fleet.folder.path().join("second")).unwrap();
    let path = |directory: &str| -> PathBuf { fleet.config(directory, "pepper").store };
    fs::copy(path("first"), path("second")).unwrap();
    let second = fleet.alone("second");
    second.revoke(&id, NOW).unwrap();
    import(&second, "gold");
    drop(second);
    import(&fleet.alone("first"), "basic");
    fleet.keys("first").share(None).unwrap();
    (fleet.keys("second"), id, key)
}

#[test]
fn where_keys_differ_the_operator_says_which_are_right() {
    for (keep, refused, plan) in [(Keep::Here, Some(AuthError::Unknown), "gold"), (Keep::Store, None, "basic")] {
        let fleet = Fleet::new();
        let (second, id, key) = differing(&fleet);
        let conflicts = shared_error(second.share(None));
        let SharedError::Conflicts { ids } = &conflicts else { panic!("{conflicts:?}") };
        assert!(ids.len() == 2 && ids.contains(&id.to_string()), "{ids:?}");
        second.share(Some(keep)).unwrap();
        for directory in ["first", "second", "third"] {
            let keys = fleet.gateway(directory);
            assert_eq!(refusal(&keys, &key), refused, "{keep:?} in {directory}");
            let imported = keys.authenticate("ApiGatewaysOwnKeyOfMany", NOW).unwrap();
            assert_eq!((&*imported.plan, keys.list().unwrap().len()), (plan, 2), "{keep:?} in {directory}");
        }
    }
}

#[test]
fn keys_that_went_their_own_way_are_not_thrown_away_when_they_are_shared_again() {
    let fleet = Fleet::shared();
    drop(fleet.gateway("one"));
    let (_, key) = create(&fleet.alone("one"));
    let keys = fleet.keys("one");
    assert!(matches!(shared_error(keys.sync_at_start(NOW)), SharedError::Unshared));
    keys.share(None).unwrap();
    assert_eq!(refusal(&fleet.gateway("two"), &key), None);
}

#[test]
fn the_store_holds_eight_characters_of_no_secret_and_no_pepper() {
    let fleet = Fleet::shared();
    let keys = fleet.gateway("one");
    let mut source = fastrand::Rng::with_seed(5);
    let mut random = |bytes: &mut [u8]| {
        source.fill(bytes);
        Ok(())
    };
    let new = NewKey { name: "app".into(), plan: "basic".into(), expires: None, scopes: Scopes::All };
    let mut secrets = Vec::new();
    for _ in 0..200 {
        let (record, secret) = keys.issue(new.clone(), NOW, &mut random).unwrap();
        secrets.push(keys.rotate(&record.id, SignedDuration::ZERO, NOW, &mut random).unwrap().2);
        secrets.push(secret);
    }
    import(&keys, "basic");
    let mut pieces: BTreeSet<&[u8]> =
        secrets.iter().flat_map(|secret| secret.expose_secret().as_bytes()[19..].windows(8)).collect();
    pieces.extend(b"ApiGatewaysOwnKeyOfMany".windows(8));
    let pepper = [&[7_u8; 8][..], b"07070707", b"BwcHBwcH"];
    let names = fleet.server.command(&["KEYS", "*"]);
    let mut dump = Vec::from(names.as_bytes());
    for name in names.lines().filter(|line| line.starts_with("test:")) {
        for command in [&["HGETALL", name][..], &["ZRANGE", name, "0", "-1"], &["GET", name]] {
            dump.extend(fleet.server.command(command).into_bytes());
        }
    }
    let text = String::from_utf8_lossy(&dump);
    assert!(text.matches("\"hash\"").count() == 401 && text.contains("test:keys:state"), "all of it is searched");
    assert!(!dump.windows(8).any(|window| pieces.contains(window) || pepper.contains(&window)), "a secret is in it");
}

/// Each change of a key at one data directory takes effect in a gateway on another, at one moment for all its callers.
async fn check_changes(rounds: usize, bound: Option<Duration>) {
    let server = Server::start();
    let mut site = Site::new(&format!(
        "[plans.open]\n[[model]]\nname = \"sum\"\n[keys]\nshared = true\n[quota]\nstore = \"{}\"\n",
        server.url()
    ));
    site.register_sum("sum", 1, 0.0);
    site.promote("sum", 1);
    site.share_key("open");
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    let config = site.config();
    let elsewhere = Config { store: site.folder().join("elsewhere/modelgate.db"), ..config.auth };
    let keys = ApiKeys::open_shared(elsewhere, &config.shared_keys.unwrap()).unwrap();
    for change in CHANGES.repeat(rounds) {
        check_change(&gate, &keys, change, bound).await;
    }
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_elsewhere_works_for_all_callers_at_one_moment() {
    check_changes(1, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "nightly: each change of a shared key ten times under load, two minutes"]
async fn a_change_elsewhere_works_within_five_seconds_ten_times_over() {
    check_changes(10, Some(Duration::from_secs(5))).await;
}
