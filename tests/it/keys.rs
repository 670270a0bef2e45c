//! The life of a key after it was made, and what its callers are charged: rotation, switches, scopes, imports, guesses,
//! replays, dry runs, and how refusals read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use modelgate::auth::{
    Access, ApiKeys, AuthError, Caller, Config, Imported, KeyRecord, NewKey, Plans, Scopes, StoreError,
};
use modelgate::quota::{self, Enforcement, Exceeded, Limit, Period, Plan, Quota, Refusal, Throttle};
use modelgate::server::ErrorStyle;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use tempfile::TempDir;

use crate::support::gate::{self, Gate};
use crate::support::site::Site;

const NOW: Timestamp = Timestamp::constant(1_780_000_000, 0);
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// A store with the plans `basic` and `gold`.
struct Keyring(TempDir);

impl Keyring {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("store.db")
    }

    fn open(&self) -> ApiKeys {
        let plans = BTreeMap::from([("basic".into(), Access::All), ("gold".into(), Access::All)]);
        let config = Config { store: self.store(), pepper: self.0.path().join("pepper"), plans };
        ApiKeys::open(config, &mut getrandom::fill).unwrap()
    }

    fn quota(&self, plan: Plan) -> Quota {
        let plans = BTreeMap::from([("basic".into(), plan)]);
        let config = quota::Config { store: quota::Location::File(self.store()), plans };
        Quota::open(config, &mut getrandom::fill).unwrap()
    }

    fn sql(&self, sql: &str) {
        rusqlite::Connection::open(self.store()).unwrap().execute_batch(sql).unwrap();
    }
}

fn create(keys: &ApiKeys) -> (KeyRecord, SecretString) {
    keys.create("app", "basic", None, NOW, &mut getrandom::fill).unwrap()
}

fn at(keys: &ApiKeys, key: &SecretString, time: Timestamp) -> Result<Arc<Caller>, AuthError> {
    keys.authenticate(key.expose_secret(), time)
}

fn daily(amount: u64) -> Plan {
    let limit = Limit { amount: NonZeroU64::new(amount).unwrap(), period: Period::Day };
    Plan { quota: Some(limit), ..Plan::default() }
}

#[test]
fn a_rotated_key_works_for_the_overlap_and_its_successor_from_the_first_moment() {
    let keyring = Keyring::new();
    let (gateway, cli) = (keyring.open(), keyring.open());
    let (old, old_key) = create(&cli);
    let (old, new, new_key) = cli.rotate(&old.id, SignedDuration::from_hours(24), NOW, &mut getrandom::fill).unwrap();
    let end = NOW + Duration::from_hours(24);
    assert_eq!((old.expires, old.replaced_by.as_ref(), new.expires), (Some(end), Some(&new.id), None));
    gateway.refresh_once().unwrap();
    for time in [NOW, end - Duration::from_millis(1)] {
        assert!(at(&gateway, &old_key, time).is_ok() && at(&gateway, &new_key, time).is_ok());
    }
    assert_eq!(at(&gateway, &old_key, end).unwrap_err(), AuthError::Unknown);
    assert!(at(&gateway, &new_key, end).is_ok());
    let listed: Vec<_> = cli.list().unwrap().into_iter().map(|key| key.id).collect();
    assert_eq!(listed, [old.id.clone(), new.id.clone()]);
    let twice = cli.rotate(&old.id, SignedDuration::ZERO, NOW, &mut getrandom::fill).unwrap_err();
    assert!(matches!(twice, StoreError::Replaced { by, .. } if by == new.id));
}

#[test]
fn a_successor_lives_as_long_as_the_old_key_was_given_and_the_old_one_no_longer_than_before() {
    let keys = Keyring::new().open();
    let (day, hour) = (Duration::from_hours(24), Duration::from_hours(1));
    let (old, _) = keys.create("app", "basic", Some(NOW + day), NOW, &mut getrandom::fill).unwrap();
    let rotated = keys.rotate(&old.id, SignedDuration::from_hours(99), NOW + hour, &mut getrandom::fill).unwrap();
    assert_eq!((rotated.0.expires, rotated.1.expires), (Some(NOW + day), Some(NOW + hour + day)));
    let ended = keys.rotate(&rotated.1.id, SignedDuration::ZERO, NOW + day * 9, &mut getrandom::fill).unwrap_err();
    assert!(matches!(ended, StoreError::Ended(_)));
}

#[tokio::test]
async fn a_rotation_opens_no_second_quota() {
    let keyring = Keyring::new();
    let keys = keyring.open();
    let quota = keyring.quota(daily(10));
    let (first, first_key) = create(&keys);
    let (second, second_key) = rotate(&keys, &first);
    let (_, third_key) = rotate(&keys, &second);
    let mut admitted = 0;
    for round in 0..30 {
        let key = [&first_key, &second_key, &third_key][round % 3];
        if let Ok(charge) = quota.reserve(&at(&keys, key, NOW).unwrap(), 1, NOW).await {
            charge.commit();
            admitted += 1;
        }
    }
    assert_eq!(admitted, 10);
}

fn rotate(keys: &ApiKeys, key: &KeyRecord) -> (KeyRecord, SecretString) {
    let (_, new, secret) = keys.rotate(&key.id, SignedDuration::from_hours(1), NOW, &mut getrandom::fill).unwrap();
    (new, secret)
}

#[test]
fn a_switch_and_scopes_take_effect_at_the_next_refresh_and_can_be_taken_back() {
    let keyring = Keyring::new();
    let (gateway, cli) = (keyring.open(), keyring.open());
    let (record, key) = create(&cli);
    let told = |keys: &ApiKeys| keys.refresh_once().unwrap().then(|| at(keys, &key, NOW));
    assert!(told(&gateway).unwrap().is_ok());
    assert_eq!(cli.disable(&record.id, NOW).unwrap().disabled, Some(NOW));
    assert_eq!(told(&gateway).unwrap().unwrap_err(), AuthError::Disabled);
    cli.enable(&record.id).unwrap();
    assert!(told(&gateway).unwrap().is_ok());
    cli.set_scopes(&record.id, "predict:credit".parse().unwrap()).unwrap();
    let caller = told(&gateway).unwrap().unwrap();
    assert_eq!((caller.may_use("credit"), caller.may_use("fraud")), (Ok(()), Err(AuthError::OutOfScope)));
    assert_eq!(caller.may_read_usage(), Err(AuthError::OutOfScope));
    cli.revoke(&record.id, NOW).unwrap();
    assert!(matches!(cli.enable(&record.id), Err(StoreError::Ended(_))));
    assert_eq!(told(&gateway).unwrap().unwrap_err(), AuthError::Unknown);
}

#[test]
fn scopes_are_kept_and_pass_on_to_a_successor() {
    let keyring = Keyring::new();
    let scopes: Scopes = "predict:credit usage:read".parse().unwrap();
    let new = NewKey { name: "app".into(), plan: "basic".into(), expires: None, scopes: scopes.clone() };
    let (record, _) = keyring.open().issue(new, NOW, &mut getrandom::fill).unwrap();
    assert_eq!(rotate(&keyring.open(), &record).0.scopes, scopes);
}

#[test]
fn a_store_of_the_first_version_is_brought_up_with_its_keys() {
    let keyring = Keyring::new();
    let (record, key) = create(&keyring.open());
    keyring.sql(
        "DROP TABLE unreadable; ALTER TABLE keyring DROP COLUMN shared_stamp;
         ALTER TABLE keyring DROP COLUMN shared_generation; ALTER TABLE keyring DROP COLUMN heard;
         DROP TABLE pins; DROP INDEX keys_by_hash;
         ALTER TABLE keys DROP COLUMN account; ALTER TABLE keys DROP COLUMN replaced_by;
         ALTER TABLE keys DROP COLUMN disabled; ALTER TABLE keys DROP COLUMN scopes;
         ALTER TABLE keys DROP COLUMN imported; PRAGMA user_version = 1",
    );
    let keys = keyring.open();
    let caller = at(&keys, &key, NOW).unwrap();
    assert_eq!((&caller.key_id, &caller.account), (&record.id, &record.id));
    keyring.sql(
        "DROP TABLE unreadable; ALTER TABLE keyring DROP COLUMN shared_stamp;
         ALTER TABLE keyring DROP COLUMN shared_generation; ALTER TABLE keyring DROP COLUMN heard;
         DROP TABLE pins; PRAGMA user_version = 2",
    );
    assert!(at(&keyring.open(), &key, NOW).is_ok() && keyring.open().key_pins().unwrap().is_empty());
    assert!(keyring.open().disable(&record.id, NOW).is_ok());
}

const THEIRS: &str = "\u{feff}Enabled,Name,key,UsageplanIds,Tags\n\
    true,Shop,apikey1234abcdefghij0123456789,\"c7y23b,unknown\",x\n\
    false,\"Bank, the\",apikey-of-the-bank-that-is-off,gold,\n\
    ,Plain,aaaaaaaaaaaaaaaaaaaa,,\n";

fn plans() -> Plans {
    Plans { by_usage_plan: BTreeMap::from([("c7y23b".into(), "gold".into())]), otherwise: Some("basic".into()) }
}

fn import(keys: &ApiKeys, csv: &str) -> Result<Imported, StoreError> {
    keys.import(csv.as_bytes(), &plans(), NOW, &mut getrandom::fill)
}

#[test]
fn keys_of_api_gateway_work_as_they_are_sent() {
    let keyring = Keyring::new();
    let keys = keyring.open();
    assert_eq!(import(&keys, THEIRS).unwrap(), Imported { created: 3, updated: 0 });
    let caller =
        |key: &str| keys.authenticate(key, NOW).map(|caller| (caller.name.to_string(), caller.plan.to_string()));
    assert_eq!(caller("apikey1234abcdefghij0123456789"), Ok(("Shop".into(), "gold".into())));
    assert_eq!(caller("aaaaaaaaaaaaaaaaaaaa"), Ok(("Plain".into(), "basic".into())));
    assert_eq!(caller("apikey-of-the-bank-that-is-off"), Err(AuthError::Disabled));
    assert_eq!(caller("apikey1234abcdefghij012345678"), Err(AuthError::Unknown));
    let again = THEIRS.replace("false", "true").replace("Shop", "Shop 2");
    assert_eq!(import(&keys, &again).unwrap(), Imported { created: 0, updated: 3 });
    assert_eq!(caller("apikey1234abcdefghij0123456789").unwrap().0, "Shop 2");
    assert!(caller("apikey-of-the-bank-that-is-off").is_ok());
    let id = keys.list().unwrap()[0].id.clone();
    keys.revoke(&id, NOW).unwrap();
    import(&keys, &again).unwrap();
    assert!(caller("apikey1234abcdefghij0123456789").is_err(), "an import revives no key");
    for file in fs::read_dir(keyring.0.path()).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(10).any(|part| THEIRS.as_bytes()[58..88].windows(10).any(|key| key == part)));
    }
}

fn check_refused(csv: &str, expect: &[&str]) {
    let keys = Keyring::new().open();
    let told = import(&keys, csv).unwrap_err().to_string();
    let lines: Vec<_> = told.lines().skip(1).map(str::trim).collect();
    assert_eq!(lines, expect);
    assert!(keys.list().unwrap().is_empty(), "all or nothing");
}

#[test]
fn every_mistake_of_a_key_file_is_told_at_once_and_none_shows_a_key() {
    check_refused("Name,Description\n", &["line 1: there is no column `Key`"]);
    check_refused(
        "Name,Key\r\n\r\n\r\nShort,key\r\n\nShort,key",
        &[
            "line 4: expected a key of 20 to 128 visible ASCII characters",
            "line 6: expected a key of 20 to 128 visible ASCII characters",
        ],
    );
    let (_, ours) = create(&Keyring::new().open());
    check_refused(
        &format!(
            "name,KEY,enabled,usageplanids\nGood,{0},,\n,{0},,\nShort,tooshort,,\nOdd,{0},maybe,\nTwo,{0},,\"gold,basic\"\nOurs,{1},,\n",
            "g".repeat(20),
            ours.expose_secret()
        ),
        &[
            "line 3: a key's name is 1 to 200 characters without control characters",
            "line 4: expected a key of 20 to 128 visible ASCII characters",
            "line 5: expected `true` or `false` for Enabled",
            "line 6: a key is on one plan, this one is on gold, basic",
            "line 7: the key has the form of modelgate's own: make it with `keys create`",
        ],
    );
}

/// A well-formed key that is none of ours.
fn guess(stranger: &ApiKeys) -> SecretString {
    create(stranger).1
}

#[tokio::test(start_paused = true)]
async fn guesses_are_throttled_and_a_good_key_never_is() {
    let keyring = Keyring::new();
    let keys = keyring.open();
    let (_, good) = create(&keys);
    let guess = guess(&Keyring::new().open());
    // Nobody who guesses gets to the store: it is locked.
    let lock = rusqlite::Connection::open(keyring.store()).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let admit = |key: &SecretString, address| keys.admit(key.expose_secret(), address, NOW);
    let mut checked = BTreeMap::<IpAddr, u32>::new();
    for round in 0..20_000_u32 {
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + round % 200));
        match admit(&guess, address).unwrap_err() {
            AuthError::Unknown => *checked.entry(address).or_default() += 1,
            AuthError::Throttled { retry_after } => assert!(retry_after <= Duration::from_mins(1)),
            other => panic!("{other}"),
        }
        if round % 20 == 0 {
            assert!(admit(&good, HOME).is_ok());
        }
    }
    assert!(checked.values().all(|count| *count <= 10), "{checked:?}");
    assert!(checked.values().sum::<u32>() <= 10, "one key id was guessed at: {checked:?}");
    let attacker = IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000));
    assert!(admit(&good, attacker).is_err(), "a key first used from where guesses come has to wait");
    tokio::time::advance(Duration::from_mins(1)).await;
    assert!(admit(&good, attacker).is_ok());
}

#[tokio::test(start_paused = true)]
async fn guessing_at_a_key_shuts_its_owner_out_nowhere_it_was_used_before() {
    let keys = Keyring::new().open();
    let (_, good) = create(&keys);
    assert!(keys.admit(good.expose_secret(), HOME, NOW).is_ok());
    for _ in 0..100 {
        assert!(keys.admit("nonsense", HOME, NOW).is_err());
    }
    assert!(keys.admit(good.expose_secret(), HOME, NOW).is_ok(), "all callers of a load balancer have one address");
    let (_, other) = create(&keys);
    assert!(keys.admit(other.expose_secret(), HOME, NOW).is_ok(), "a new key forgives");
}

#[tokio::test(start_paused = true)]
async fn who_still_sends_a_key_that_has_ended_guesses_at_nothing() {
    let keys = Keyring::new().open();
    let (revoked, first) = create(&keys);
    let (expired, second) = create(&keys);
    keys.revoke(&revoked.id, NOW).unwrap();
    keys.expire(&expired.id, Some(NOW)).unwrap();
    for _ in 0..50 {
        for key in [&first, &second] {
            assert_eq!(keys.admit(key.expose_secret(), HOME, NOW).unwrap_err(), AuthError::Unknown);
        }
    }
    let (_, newcomer) = create(&keys);
    assert!(keys.admit(newcomer.expose_secret(), HOME, NOW).is_ok(), "others of the address are let in");
}

#[test]
fn the_end_of_a_key_can_be_moved_until_it_is_revoked() {
    let keys = Keyring::new().open();
    let (record, key) = create(&keys);
    let end = NOW + Duration::from_hours(1);
    assert_eq!(keys.expire(&record.id, Some(end)).unwrap().expires, Some(end));
    assert!(at(&keys, &key, end - Duration::from_millis(1)).is_ok() && at(&keys, &key, end).is_err());
    assert_eq!(keys.expire(&record.id, None).unwrap().expires, None);
    assert!(at(&keys, &key, end).is_ok(), "a key that has expired works again");
    keys.revoke(&record.id, NOW).unwrap();
    assert!(matches!(keys.expire(&record.id, None), Err(StoreError::Ended(_))));
    assert!(matches!(keys.disable(&record.id, NOW), Err(StoreError::Ended(_))));
    assert!(matches!(keys.set_scopes(&record.id, Scopes::All), Err(StoreError::Ended(_))));
    assert_eq!(at(&keys, &key, NOW).unwrap_err(), AuthError::Unknown);
}

#[tokio::test]
async fn no_more_run_at_one_time_than_the_plan_allows() {
    let keyring = Keyring::new();
    let keys = keyring.open();
    let caller = at(&keys, &create(&keys).1, NOW).unwrap();
    let plan = Plan { concurrency: NonZeroU32::new(2), ..Plan::default() };
    let quota = keyring.quota(plan);
    let places: Vec<_> = (0..2).map(|_| quota.enter(&caller, NOW).unwrap()).collect();
    for _ in 0..3 {
        let refusal = quota.enter(&caller, NOW).unwrap_err();
        assert!(matches!(&refusal, Refusal::Busy { standing, .. } if standing[0].name == "concurrency"));
    }
    let other = at(&keys, &create(&keys).1, NOW).unwrap();
    assert!(quota.enter(&other, NOW).is_ok(), "each account has its own places");
    drop(places);
    let place = quota.enter(&caller, NOW).unwrap();
    assert_eq!(place.exceeded(), None);
    let dry = keyring.quota(Plan { enforcement: Enforcement::DryRun, ..plan });
    let places: Vec<_> = (0..3).map(|_| dry.enter(&caller, NOW).unwrap().exceeded()).collect();
    assert_eq!(places, [None; 3], "each was left at once");
    let places: Vec<_> = (0..3).map(|_| dry.enter(&caller, NOW).unwrap()).collect();
    let exceeded: Vec<_> = places.iter().map(quota::Place::exceeded).collect();
    assert_eq!(exceeded, [None, None, Some(Exceeded::Throttle)]);
}

#[tokio::test]
async fn a_dry_run_counts_and_tells_and_refuses_nobody() {
    let keyring = Keyring::new();
    let keys = keyring.open();
    let caller = at(&keys, &create(&keys).1, NOW).unwrap();
    let throttle = Throttle { rate: 0.001, burst: 4 };
    let plan = Plan { throttle: Some(throttle), enforcement: Enforcement::DryRun, ..daily(3) };
    let quota = keyring.quota(plan);
    let mut passed = Vec::new();
    for _ in 0..6 {
        let charge = quota.reserve(&caller, 1, NOW).await.unwrap();
        assert_eq!(charge.standing().len(), 2);
        passed.push(charge.exceeded().collect::<Vec<_>>());
        charge.commit();
    }
    let (rate, day) = (Exceeded::Throttle, Exceeded::Quota);
    assert_eq!(passed, [vec![], vec![], vec![], vec![day], vec![rate, day], vec![rate, day]]);
    assert_eq!(quota.usage(&caller, NOW).await.unwrap().used, Some(3));
    assert!(quota.reserve(&caller, 99, NOW).await.is_ok());
}

#[tokio::test]
async fn a_plan_is_asked_for_a_token_by_what_was_not_worth_reading() {
    let keyring = Keyring::new();
    let keys = keyring.open();
    let caller = at(&keys, &create(&keys).1, NOW).unwrap();
    let quota = keyring.quota(Plan { throttle: Some(Throttle { rate: 0.001, burst: 2 }), ..daily(9) });
    assert_eq!(quota.take_token(&caller, NOW).await, Ok(None));
    assert!(quota.take_token(&caller, NOW).await.is_ok());
    assert!(matches!(quota.take_token(&caller, NOW).await, Err(Refusal::Throttled { .. })));
    assert_eq!(quota.usage(&caller, NOW).await.unwrap().used, Some(0));
}

fn site() -> Site {
    let site = Site::new(
        "[plans.five]\nquota = 5\n[plans.dry]\nquota = 2\nenforce = false\n\
         [[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n",
    );
    site.register_sum("sum", 1, 1000.0);
    site.register_sum("sum", 2, 2000.0);
    site.promote("sum", 1);
    site
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_answered_as_the_first_time_by_the_version_that_answered_and_charged_once() {
    let mut site = site();
    let gate = site.start("five").await;
    gate.serves("sum", 1).await;
    let ask = async |name: &str, a: u32| {
        let body = json!({"data": {"a": a, "b": 0, "c": 0}}).to_string();
        let url = format!("http://{}/predict", gate.data);
        let request = gate.http.post(url).header("x-api-key", &gate.key).header("idempotency-key", name);
        let answer = request.header("content-type", "application/json").body(body).send().await.unwrap();
        crate::support::site::Answer::of(answer).await
    };
    let first = ask("order-1", 1).await;
    assert_eq!((first.status, first.header("idempotent-replayed")), (200, ""));
    site.promote("sum", 2);
    gate.serves("sum", 2).await;
    for _ in 0..10 {
        let again = ask("order-1", 1).await;
        assert_eq!((again.status, again.header("idempotent-replayed")), (200, "true"));
        assert_eq!(again.body, first.body);
        assert_eq!(again.header("modelgate-model"), first.header("modelgate-model"));
        assert!(again.header("ratelimit").contains("r=4"), "{}", again.header("ratelimit"));
    }
    let other = ask("order-1", 2).await;
    assert_eq!((other.status, &other.body["code"]), (422, &json!("idempotency_mismatch")));
    assert_eq!(ask("order-2", 1).await.body["version"], "2");
    assert_eq!(ask(&"n".repeat(256), 1).await.status, 400);
    assert_eq!(gate.get(gate.data, "/usage").await.body["used"], 2);
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_rows_that_were_scored_are_charged_and_every_answer_to_a_caller_says_where_it_stands() {
    let mut site = site();
    let gate = site.start("five").await;
    gate.serves("sum", 1).await;
    let good = json!({"a": 1, "b": 2, "c": 3});
    assert_eq!(gate.predict("sum", &good).await.status, 200);
    let client = gate.client();
    let huge = json!({ "data": "x".repeat(3 << 20) }).to_string();
    for (body, status) in [("{", 400), (r#"{"data":{"a":"x"}}"#, 422), (r#"{"data":[]}"#, 422), (&huge, 413)] {
        let answer = client.post("/predict", body.to_owned()).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("ratelimit").split(";t").next(), Some(r#""day";r=4"#), "{status}");
    }
    assert_eq!(gate.predict("unknown", &good).await.status, 404);
    let nobody = gate.http.post(format!("http://{}/predict", gate.data)).header("x-api-key", "wrong");
    assert_eq!(nobody.send().await.unwrap().status(), 401);
    assert_eq!(gate.get(gate.data, "/usage").await.body["used"], 1);
    let six = json!(vec![&good; 6]);
    assert_eq!(gate.predict("sum", &six).await.status, 429);
    assert_eq!(gate.predict("sum", &json!(vec![&good; 4])).await.status, 200);
    assert_eq!(gate.predict("sum", &good).await.status, 429);
    assert_eq!(gate.get(gate.data, "/usage").await.body["used"], 5);

    let used = gate.get(gate.admin, "/admin/usage").await.body;
    assert_eq!(used["keys"][0]["models"], json!([{ "model": "sum", "requests": 2, "rows": 5 }]), "{used}");
    assert_eq!(used["keys"][0]["limits"][0]["remaining"], 0);
    let page = gate.http.get(format!("http://{}/metrics", gate.admin)).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("modelgate_quota_exceeded_total{plan=\"five\"} 2"), "{page}");
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_is_measured_by_plan() {
    let mut site = site();
    let gate = site.start("dry").await;
    gate.serves("sum", 1).await;
    for _ in 0..5 {
        assert_eq!(gate.predict("sum", &json!({"a": 1, "b": 2, "c": 3})).await.status, 200);
    }
    let usage = gate.get(gate.data, "/usage").await.body;
    assert_eq!((&usage["used"], &usage["enforced"]), (&json!(2), &json!(false)));
    let page = gate.http.get(format!("http://{}/metrics", gate.admin)).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("modelgate_quota_exceeded_total{plan=\"dry\"} 3"), "{page}");
    gate.stop().await;
}

#[tokio::test]
async fn clients_of_api_gateway_get_its_statuses_bodies_and_headers() {
    let gate = Gate::serving(gate::Config { error_style: ErrorStyle::ApiGateway, ..gate::config() }, "sum").await;
    let check = async |lines: &[&str], target: &str, expect: (u16, &str, &str)| {
        let answer = gate.ask("POST", target, lines, "{").await;
        let error_type = answer.header("x-amzn-errortype").unwrap_or_default();
        assert_eq!((answer.status, answer.body.as_str(), error_type), expect, "{target}");
        assert_eq!(answer.header("x-amzn-requestid"), answer.header("x-request-id"));
        assert_eq!(answer.header("content-type"), Some("application/json"));
    };
    let forbidden = (403, r#"{"message":"Forbidden"}"#, "ForbiddenException");
    check(&[], "/predict", forbidden).await;
    check(&["x-api-key: wrong"], "/predict", forbidden).await;
    let missing = "Missing Authentication Token";
    let nowhere = (403, &*format!(r#"{{"message":"{missing}"}}"#), "MissingAuthenticationTokenException");
    check(&[&gate.key], "/nowhere", nowhere).await;
    let good = r#"{"data":{"a":1,"b":2,"c":3}}"#;
    for _ in 0..2 {
        let answer = gate.ask("POST", "/predict", &[&gate.small_key], good).await;
        assert_eq!((answer.status, answer.header("x-amzn-requestid").is_some()), (200, true));
    }
    let throttled = (429, r#"{"message":"Too Many Requests"}"#, "TooManyRequestsException");
    check(&[&gate.small_key], "/predict", throttled).await;
}

#[tokio::test]
async fn who_tries_many_keys_is_told_to_wait() {
    let gate = Gate::serving(gate::config(), "sum").await;
    let good = r#"{"data":{"a":1,"b":2,"c":3}}"#;
    assert_eq!(gate.predict(&[], good).await.status, 200);
    let mut told = BTreeSet::new();
    for _ in 0..10 {
        told.insert(gate.ask("POST", "/predict", &["x-api-key: wrong"], good).await.code());
    }
    assert_eq!(told, BTreeSet::from(["unauthenticated".to_owned()]));
    let answer = gate.ask("POST", "/predict", &["x-api-key: wrong"], good).await;
    assert_eq!((answer.status, answer.code().as_str()), (429, "auth_throttled"));
    assert!(answer.header("retry-after").unwrap().parse::<u32>().unwrap() <= 60);
    assert_eq!(gate.predict(&[], good).await.status, 200);
}
