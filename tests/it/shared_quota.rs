//! Quotas that several gateways share, over a real Redis: exact, whatever becomes of the server and the wire to it.

mod history;
mod late;
mod processes;
mod throttle;
mod troubles;

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::{Date, Weekday};
use jiff::{SignedDuration, Timestamp, ToSpan};
use modelgate::auth::{self, Access, ApiKeys, Caller};
use modelgate::quota::{
    Charge, Config, Enforcement, Exceeded, Health, Limit, Location, OnStoreDown, Period, Plan, Quota, Redis, Refusal,
    Throttle,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::task::JoinSet;

use crate::support::redis::{Server, Weather, Wire};
use crate::support::site::eventually;

/// What the gateways' clocks say. The server's clock says something else.
fn noon() -> Timestamp {
    "2026-06-01T12:00:00Z".parse().unwrap()
}

/// Gateways' settings, and a caller on the plan `test`.
#[derive(Clone)]
struct Bench {
    amount: u64,
    throttle: Option<Throttle>,
    enforcement: Enforcement,
    redis: Redis,
    caller: Arc<Caller>,
}

impl Bench {
    /// Every request asks; what cannot be asked for is refused.
    fn exact(url: &str, amount: u64) -> Self {
        Self::with(url, amount, NonZeroU64::new(1), OnStoreDown::Closed)
    }

    fn leased(url: &str, amount: u64) -> Self {
        Self::with(url, amount, None, OnStoreDown::Closed)
    }

    fn with(url: &str, amount: u64, lease: Option<NonZeroU64>, on_store_down: OnStoreDown) -> Self {
        let url = url.parse().unwrap();
        let redis = Redis { url, password: None, namespace: "test".into(), lease, on_store_down };
        Self { amount, throttle: None, enforcement: Enforcement::Enforced, redis, caller: new_caller() }
    }

    /// A gateway that has connected.
    async fn gateway(&self) -> Arc<Quota> {
        let quota = Arc::new(self.gateway_on_its_way());
        eventually("the store to answer", async || {
            let Health { calls, failures, .. } = quota.shared_store().unwrap();
            // The second waits its turn behind the first call.
            calls > failures && quota.settle_all(noon()).await.is_ok()
        })
        .await;
        quota
    }

    fn gateway_on_its_way(&self) -> Quota {
        let limit = Limit { amount: NonZeroU64::new(self.amount).unwrap(), period: Period::Day };
        let plan =
            Plan { throttle: self.throttle, quota: Some(limit), enforcement: self.enforcement, ..Plan::default() };
        let plans = BTreeMap::from([("test".into(), plan)]);
        Quota::open(Config { store: Location::Redis(self.redis.clone()), plans }, &mut getrandom::fill).unwrap()
    }

    async fn three(&self) -> [Arc<Quota>; 3] {
        [self.gateway().await, self.gateway().await, self.gateway().await]
    }

    async fn reserve(&self, quota: &Quota, rows: u64) -> Result<Charge, Refusal> {
        quota.reserve(&self.caller, rows, noon()).await
    }

    /// The same until the store has decided: on a busy machine its answer can be late.
    async fn decided(&self, quota: &Quota, rows: u64) -> Option<Charge> {
        for _ in 0..1000 {
            match self.reserve(quota, rows).await {
                Err(Refusal::StoreDown) => tokio::time::sleep(Duration::from_millis(2)).await,
                decided => return decided.ok(),
            }
        }
        panic!("waited in vain for the store to decide");
    }

    /// A charge in a dry run, tried until the store has decided.
    async fn counted(&self, quota: &Quota, rows: u64) -> Charge {
        for _ in 0..1000 {
            match self.reserve(quota, rows).await.unwrap() {
                charge if charge.is_degraded() => tokio::time::sleep(Duration::from_millis(2)).await,
                charge => return charge,
            }
        }
        panic!("waited in vain for the store to decide");
    }

    /// Uses so many rows in one request, more than a loan is: nothing is lent for an answer that is late by itself.
    async fn take(&self, quota: &Quota, rows: u64) {
        self.decided(quota, rows).await.expect("the quota has as many").commit();
    }

    /// Tries `rows` one by one and says how many were admitted.
    async fn spend(&self, quota: &Quota, rows: u64) -> u64 {
        let mut admitted = 0;
        for _ in 0..rows {
            if let Some(charge) = self.decided(quota, 1).await {
                charge.commit();
                admitted += 1;
            }
        }
        admitted
    }

    /// The same where the store is down: nobody waits for it.
    async fn spend_meanwhile(&self, quota: &Quota, rows: u64) -> u64 {
        let mut admitted = 0;
        for _ in 0..rows {
            if let Ok(charge) = self.reserve(quota, 1).await {
                charge.commit();
                admitted += 1;
            }
        }
        admitted
    }

    async fn used(&self, quota: &Quota) -> u64 {
        quota.usage(&self.caller, noon()).await.unwrap().used.unwrap()
    }

    /// What the server says was given out.
    fn given(&self, server: &Server) -> u64 {
        let answer = server.command(&["HGET", &self.key(), "given"]);
        answer.lines().nth(1).and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
    }

    fn key(&self) -> String {
        format!("test:quota:{}:day", self.caller.account)
    }

    /// Runs `tasks` at each gateway that each try `tries` charges of the sizes `rows` yields; the sum of rows admitted.
    async fn hammer(&self, gateways: &[Arc<Quota>], tasks: u64, tries: u64, rows: fn(u64) -> u64) -> u64 {
        let mut running = JoinSet::new();
        for task in 0..tasks * gateways.len() as u64 {
            let quota = Arc::clone(&gateways[usize::try_from(task).unwrap() % gateways.len()]);
            let bench = self.clone();
            running.spawn(async move {
                let mut admitted = 0;
                for index in 0..tries {
                    let rows = rows(task * tries + index);
                    if let Some(charge) = bench.decided(&quota, rows).await {
                        charge.commit();
                        admitted += rows;
                    }
                }
                admitted
            });
        }
        running.join_all().await.into_iter().sum()
    }
}

fn open_keys(folder: &Path) -> ApiKeys {
    let plans = BTreeMap::from([("test".into(), Access::All)]);
    let (store, pepper) = (folder.join("store.db"), folder.join("pepper"));
    ApiKeys::open(auth::Config { store, pepper, plans }, &mut getrandom::fill).unwrap()
}

fn new_caller() -> Arc<Caller> {
    let folder = tempfile::tempdir().unwrap();
    let keys = open_keys(folder.path());
    let (_, key) = keys.create("app", "test", None, noon(), &mut getrandom::fill).unwrap();
    keys.authenticate(key.expose_secret(), noon()).unwrap()
}

async fn settle_all(gateways: &[Arc<Quota>]) {
    for quota in gateways {
        quota.settle_all(noon()).await.unwrap();
    }
}

/// Until requests are let through to the store again.
async fn is_back(quota: &Quota) {
    eventually("the store to be back", async || {
        let before = quota.shared_store().unwrap();
        let answered = before.calls - before.failures;
        tokio::task::yield_now().await;
        before.is_up && quota.settle_once(noon()).await.is_ok() && answered > 0
    })
    .await;
}

/// Asks until the store is taken for dead. How many were admitted meanwhile.
async fn is_down(bench: &Bench, quota: &Quota) -> u64 {
    let mut admitted = 0;
    eventually("the store to be taken for dead", async || {
        admitted += bench.spend_meanwhile(quota, 1).await;
        !quota.shared_store().unwrap().is_up
    })
    .await;
    admitted
}

/// Of more than the quota, three gateways admit exactly the quota.
async fn check_exact(bench: Bench, server: &Server, tasks: u64, tries: u64) {
    let gateways = bench.three().await;
    assert_eq!(bench.hammer(&gateways, tasks, tries, |_| 1).await, bench.amount);
    for quota in &gateways {
        assert_eq!(bench.used(quota).await, bench.amount);
        assert_eq!(bench.spend(quota, 1).await, 0);
    }
    assert_eq!(bench.given(server), bench.amount);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_gateways_that_ask_for_every_request_admit_exactly_the_quota() {
    let server = Server::start();
    check_exact(Bench::exact(&server.url(), 1000), &server, 32, 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_gateways_with_leases_admit_exactly_the_quota() {
    let server = Server::start();
    check_exact(Bench::leased(&server.url(), 1000), &server, 32, 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "nightly: three gateways in one process admit exactly 10,000, 20 repeats, a minute"]
async fn twenty_times_three_gateways_admit_exactly_ten_thousand() {
    let server = Server::start();
    for _ in 0..20 {
        check_exact(Bench::exact(&server.url(), 10_000), &server, 64, 170).await;
        check_exact(Bench::leased(&server.url(), 10_000), &server, 64, 170).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_of_mixed_sizes_never_pass_the_quota_and_can_fill_it() {
    let server = Server::start();
    for bench in [Bench::exact(&server.url(), 5000), Bench::leased(&server.url(), 5000)] {
        let gateways = bench.three().await;
        let admitted = bench.hammer(&gateways, 16, 10, |index| index * 37 % 100 + 1).await;
        assert!(admitted <= 5000, "{admitted}");
        // What is left over at one gateway is there for the others when it is settled.
        settle_all(&gateways).await;
        let rest = bench.spend(&*bench.gateway().await, 5000).await;
        assert_eq!(admitted + rest, 5000);
        assert!(rest < 100, "a request of any size was refused only when it did not fit: {rest}");
    }
}

#[tokio::test]
async fn a_busy_key_asks_once_in_about_a_hundred_requests() {
    let server = Server::start();
    let bench = Bench::leased(&server.url(), 10_000);
    let quota = bench.gateway().await;
    let before = quota.shared_store().unwrap().calls;
    assert_eq!(bench.spend(&quota, 9000).await, 9000);
    let calls = quota.shared_store().unwrap().calls - before;
    assert!((85..=105).contains(&calls), "{calls} round trips");
}

#[tokio::test]
async fn without_a_lease_a_request_asks_once_and_leaves_nothing_aside() {
    let server = Server::start();
    let bench = Bench::exact(&server.url(), 10_000);
    let quota = bench.gateway().await;
    let before = quota.shared_store().unwrap().calls;
    assert_eq!(bench.spend(&quota, 500).await, 500);
    let calls = quota.shared_store().unwrap().calls - before;
    assert!((500..=510).contains(&calls), "{calls} round trips, with those whose answer was late");
    assert_eq!(bench.given(&server), 500);
    // Dropped, so given back: at the next settlement it is there for everybody.
    drop(bench.reserve(&quota, 7).await.unwrap());
    quota.settle_once(noon()).await.unwrap();
    assert_eq!(bench.given(&server), 500);
}

#[tokio::test]
async fn a_clean_stop_gives_the_leases_back() {
    let server = Server::start();
    let bench = Bench::leased(&server.url(), 1000);
    let quota = bench.gateway().await;
    assert_eq!(bench.spend(&quota, 3).await, 3);
    assert!(bench.given(&server) > 3);
    quota.settle_all(noon()).await.unwrap();
    assert_eq!(bench.given(&server), 3);
}

#[tokio::test]
async fn an_answer_that_was_lost_charges_nothing_in_the_end() {
    let server = Server::start();
    let wire = Wire::to(&server).await;
    let bench = Bench::exact(&wire.url(), 100);
    let quota = bench.gateway().await;
    assert_eq!(bench.spend(&quota, 1).await, 1);
    wire.becomes(Weather::AnswersStuck);
    assert!(matches!(bench.reserve(&quota, 20).await, Err(Refusal::StoreDown)));
    assert_eq!(bench.given(&server), 21, "the store did what it was asked");
    wire.becomes(Weather::Fair);
    is_back(&quota).await;
    assert_eq!(bench.given(&server), 1);
    assert_eq!(bench.spend(&quota, 200).await, 99);
}

#[tokio::test]
async fn a_first_answer_that_was_lost_charges_nothing_either() {
    let server = Server::start();
    let wire = Wire::to(&server).await;
    let bench = Bench::exact(&wire.url(), 100);
    let quota = bench.gateway().await;
    wire.becomes(Weather::AnswersStuck);
    assert!(matches!(bench.reserve(&quota, 20).await, Err(Refusal::StoreDown)));
    assert_eq!(bench.given(&server), 20);
    wire.becomes(Weather::Fair);
    assert_eq!(bench.spend(&quota, 200).await, 100);
}

#[tokio::test]
async fn a_call_that_comes_after_a_later_one_changes_nothing() {
    let server = Server::start();
    let wire = Wire::to(&server).await;
    let bench = Bench::exact(&wire.url(), 100);
    let quota = bench.gateway().await;
    assert_eq!(bench.spend(&quota, 1).await, 1);
    // The question stays on the way, and arrives when the gateway has long asked anew.
    wire.becomes(Weather::Parted);
    assert!(matches!(bench.reserve(&quota, 20).await, Err(Refusal::StoreDown)));
    wire.becomes(Weather::Fair);
    is_back(&quota).await;
    assert_eq!(bench.spend(&quota, 50).await, 50);
    assert_eq!(bench.given(&server), 51);
    let other = bench.gateway().await;
    assert_eq!(bench.spend(&other, 200).await, 49);
}

/// Uses 300 of 1000 at each of two gateways, kills the server, tries 50 at each, restarts it empty, and then takes all.
/// What is lent in between, at both, and whether it may be more than the policy's.
async fn check_restarted_empty(on_store_down: OnStoreDown, lent: u64) {
    let mut server = Server::start();
    let bench = Bench::with(&server.url(), 1000, NonZeroU64::new(1), on_store_down);
    let gateways = [bench.gateway().await, bench.gateway().await];
    for quota in &gateways {
        bench.take(quota, 300).await;
    }
    server.kill();
    let mut in_between = 0;
    for quota in &gateways {
        in_between += bench.spend_meanwhile(quota, 50).await;
        let charge = bench.reserve(quota, 1).await;
        match on_store_down {
            OnStoreDown::Open => assert!(charge.unwrap().is_degraded()),
            _ => assert!(matches!(charge, Err(Refusal::StoreDown))),
        }
        in_between += is_down(&bench, quota).await;
    }
    if on_store_down != OnStoreDown::Open {
        assert_eq!(in_between, lent, "{on_store_down:?}");
    }
    server.restart();
    for quota in &gateways {
        is_back(quota).await;
    }
    let committed = bench.given(&server);
    assert!(committed >= 600 + in_between, "nothing that was used is forgotten: {committed}");
    let rest = bench.spend(&gateways[0], 500).await + bench.spend(&gateways[1], 500).await;
    assert!(600 + in_between + rest <= 1000, "{on_store_down:?}: {in_between} + {rest}");
    if on_store_down != OnStoreDown::Open {
        assert_eq!(600 + in_between + rest, 1000, "{on_store_down:?}");
    }
}

#[tokio::test]
async fn a_store_killed_and_restarted_empty_forgets_nothing_of_a_closed_door() {
    check_restarted_empty(OnStoreDown::Closed, 0).await;
}

#[tokio::test]
async fn a_store_killed_and_restarted_empty_forgets_nothing_of_a_loan() {
    check_restarted_empty(OnStoreDown::Lease, 2 * 10).await;
}

#[tokio::test]
async fn a_store_killed_and_restarted_empty_forgets_nothing_of_an_open_door() {
    check_restarted_empty(OnStoreDown::Open, 2 * 50).await;
}

#[tokio::test]
async fn a_restarted_store_believes_what_a_gateway_saw_of_those_that_are_gone() {
    let mut server = Server::start();
    let bench = Bench::leased(&server.url(), 1000);
    let (stays, goes) = (bench.gateway().await, bench.gateway().await);
    assert_eq!(bench.spend(&goes, 400).await, 400);
    assert_eq!(bench.spend(&stays, 100).await, 100);
    server.kill();
    drop(goes);
    let mut rest = is_down(&bench, &stays).await;
    server.restart();
    is_back(&stays).await;
    rest += bench.spend(&stays, 1000).await;
    assert!((490..=500).contains(&rest), "all that was used is counted, and what was set aside: {rest}");
}

#[tokio::test]
async fn a_loan_is_for_one_window_and_no_more_than_was_agreed() {
    let mut server = Server::start();
    let bench = Bench::with(&server.url(), 5000, None, OnStoreDown::Lease);
    let quota = bench.gateway().await;
    assert_eq!(bench.spend(&quota, 1).await, 1);
    quota.settle_all(noon()).await.unwrap();
    server.kill();
    // The allowance counts rows, also of requests that are larger than what is left of it.
    let charge = bench.reserve(&quota, 30).await.unwrap();
    assert!(charge.is_degraded());
    charge.commit();
    assert!(matches!(bench.reserve(&quota, 21).await, Err(Refusal::StoreDown)));
    assert_eq!(bench.spend_meanwhile(&quota, 100).await, 20);
    // One that was never there has the same.
    let fresh = Bench { caller: new_caller(), ..bench.clone() };
    let quota = fresh.gateway_on_its_way();
    assert_eq!(fresh.spend_meanwhile(&quota, 100).await, 50);
    let health = quota.shared_store().unwrap();
    assert_eq!((health.lent, health.refused), (50, 50));
}

/// A dry run without a store: nobody is refused, and nobody is counted as refused.
async fn check_dry_run_when_down(on_store_down: OnStoreDown, lent: u64) {
    let mut server = Server::start();
    let bench = Bench { enforcement: Enforcement::DryRun, ..Bench::with(&server.url(), 200, None, on_store_down) };
    let quota = bench.gateway().await;
    server.kill();
    for _ in 0..20 {
        let charge = bench.reserve(&quota, 3).await.unwrap();
        assert!(charge.is_degraded(), "{on_store_down:?}");
        assert_eq!(charge.exceeded().next(), None, "nobody knows");
        charge.commit();
    }
    let health = quota.shared_store().unwrap();
    assert_eq!((health.lent, health.refused), (lent, 0), "{on_store_down:?}");
    assert!(bench.reserve(&quota, 201).await.unwrap().exceeded().eq([Exceeded::Quota]), "no store can allow it");
    server.restart();
    is_back(&quota).await;
    drop(bench.counted(&quota, 3).await);
}

#[tokio::test]
async fn a_dry_run_refuses_nobody_while_the_store_is_down() {
    check_dry_run_when_down(OnStoreDown::Closed, 0).await;
    check_dry_run_when_down(OnStoreDown::Lease, 0).await;
    check_dry_run_when_down(OnStoreDown::Open, 20).await;
}

#[tokio::test]
async fn a_dry_run_counts_up_to_the_amount_and_says_who_passed_it() {
    let server = Server::start();
    let bench = Bench { enforcement: Enforcement::DryRun, ..Bench::exact(&server.url(), 3) };
    let gateways = bench.three().await;
    let mut passed = 0;
    for quota in gateways.iter().cycle().take(9) {
        let charge = bench.counted(quota, 1).await;
        passed += charge.exceeded().count();
        charge.commit();
    }
    assert_eq!((bench.given(&server), passed), (3, 6));
}

#[tokio::test]
async fn keys_that_replaced_each_other_share_one_quota() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let keys = open_keys(folder.path());
    let (record, old) = keys.create("app", "test", None, noon(), &mut getrandom::fill).unwrap();
    let (_, _, new) = keys.rotate(&record.id, SignedDuration::from_hours(1), noon(), &mut getrandom::fill).unwrap();
    let [old, new] = [old, new].map(|key| keys.authenticate(key.expose_secret(), noon()).unwrap());
    assert_ne!(old.key_id, new.key_id);
    let old = Bench { caller: old, ..Bench::exact(&server.url(), 10) };
    let new = Bench { caller: new, ..old.clone() };
    let gateways = [old.gateway().await, old.gateway().await];
    assert_eq!(old.spend(&gateways[0], 4).await, 4);
    assert_eq!(new.spend(&gateways[1], 20).await, 6);
    assert_eq!((new.key(), new.given(&server)), (old.key(), 10));
}

#[tokio::test]
async fn no_request_asks_a_store_that_is_dead() {
    let server = Server::start();
    let wire = Wire::to(&server).await;
    let bench = Bench::exact(&wire.url(), 1000);
    let quota = bench.gateway().await;
    wire.becomes(Weather::Parted);
    is_down(&bench, &quota).await;
    let before = quota.shared_store().unwrap();
    assert_eq!(bench.spend_meanwhile(&quota, 10_000).await, 0);
    let after = quota.shared_store().unwrap();
    assert_eq!(after.refused - before.refused, 10_000);
    assert!(after.calls - before.calls < 100, "only the probes asked: {}", after.calls - before.calls);
    wire.becomes(Weather::Fair);
    is_back(&quota).await;
    assert_eq!(bench.spend(&quota, 2000).await, 1000);
}

/// A server that answers with an error is as good as none; once it is cured, it is used again.
async fn check_error(server: &Server, bench: &Bench, break_it: &[&str], cure_it: &[&str]) {
    let quota = bench.gateway().await;
    assert_eq!(bench.spend(&quota, 1).await, 1);
    let answer = server.command(break_it);
    assert!(answer.starts_with("+OK"), "{answer}");
    assert!(matches!(bench.reserve(&quota, 1).await, Err(Refusal::StoreDown)), "{break_it:?}");
    is_down(bench, &quota).await;
    let answer = server.command(cure_it);
    assert!(answer.starts_with(['+', ':']), "{answer}");
    is_back(&quota).await;
    assert_eq!(bench.spend(&quota, 1).await, 1, "{cure_it:?}");
}

#[tokio::test]
async fn a_server_that_may_not_write_is_down_until_it_may() {
    let server = Server::start();
    let bench = || Bench::exact(&server.url(), 100);
    check_error(&server, &bench(), &["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]).await;
    check_error(&server, &bench(), &["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]).await;
}

#[tokio::test]
async fn a_key_of_the_wrong_type_is_refused_and_others_are_not() {
    let server = Server::start();
    let (bad, good) = (Bench::exact(&server.url(), 100), new_caller());
    let quota = bad.gateway().await;
    server.command(&["SET", &bad.key(), "text"]);
    for _ in 0..3 {
        assert!(matches!(bad.reserve(&quota, 1).await, Err(Refusal::StoreDown)));
        quota.reserve(&good, 1, noon()).await.unwrap().commit();
    }
    assert!(quota.shared_store().unwrap().is_up);
}

#[tokio::test]
async fn a_script_that_the_server_forgot_is_loaded_again() {
    let server = Server::start();
    let bench = Bench::exact(&server.url(), 100);
    let quota = bench.gateway().await;
    assert_eq!(bench.spend(&quota, 5).await, 5);
    server.command(&["SCRIPT", "FLUSH"]);
    assert_eq!(bench.spend(&quota, 200).await, 95);
}

#[tokio::test]
async fn a_wrong_password_is_a_store_that_is_down() {
    let server = Server::start_with(&["--requirepass", "secret"]);
    let mut bench = Bench::exact(&server.url(), 100);
    let quota = bench.gateway_on_its_way();
    assert!(matches!(bench.reserve(&quota, 1).await, Err(Refusal::StoreDown)), "none");
    bench.redis.password = Some(SecretString::from("wrong"));
    let quota = bench.gateway_on_its_way();
    assert!(matches!(bench.reserve(&quota, 1).await, Err(Refusal::StoreDown)), "wrong");
    bench.redis.password = Some(SecretString::from("secret"));
    assert_eq!(bench.spend(&*bench.gateway().await, 200).await, 100);
}

#[tokio::test]
async fn a_user_with_the_documented_rights_is_enough() {
    let server = Server::start();
    let page = include_str!("../../docs/shared-quota.md");
    let rights = page.lines().find_map(|line| line.strip_prefix("For an ACL user: `")).unwrap().trim_end_matches("`.");
    let rights = rights.replace("<namespace>", "test");
    let words = ["ACL", "SETUSER", "gateway", "on", ">secret"].into_iter().chain(rights.split(' '));
    let answer = server.command(&words.collect::<Vec<_>>());
    assert!(answer.starts_with("+OK"), "{answer}");
    let mut bench = Bench::leased(&server.url(), 100);
    bench.redis.url.set_username("gateway").unwrap();
    bench.redis.password = Some(SecretString::from("secret"));
    assert_eq!(bench.spend(&*bench.gateway().await, 200).await, 100);
    bench.redis.namespace = "other".into();
    let quota = bench.gateway_on_its_way();
    assert!(matches!(bench.reserve(&quota, 1).await, Err(Refusal::StoreDown)), "another deployment's keys");
}

#[tokio::test]
async fn gateways_whose_clocks_differ_count_in_one_window() {
    let server = Server::start();
    let bench = Bench::exact(&server.url(), 90);
    let gateways = bench.three().await;
    // Five minutes around a midnight, and one that is years behind.
    let midnight: Timestamp = "2026-06-02T00:00:00Z".parse().unwrap();
    let clocks = [midnight - 5.minutes(), midnight + 5.minutes(), "2001-01-01T00:00:00Z".parse().unwrap()];
    let mut admitted = 0;
    let mut resets = Vec::new();
    for _ in 0..100 {
        for (quota, now) in gateways.iter().zip(clocks) {
            if let Ok(charge) = quota.reserve(&bench.caller, 1, now).await {
                resets.push(charge.standing()[0].resets_in);
                charge.commit();
                admitted += 1;
            }
        }
    }
    assert_eq!(admitted, 90);
    let (least, most) = (resets.iter().min().unwrap(), resets.iter().max().unwrap());
    assert!(most.abs_diff(*least) < Duration::from_mins(4), "all say when the store's day ends: {least:?}, {most:?}");
}

#[tokio::test]
async fn a_day_that_ended_by_the_servers_clock_is_not_counted_in_the_next() {
    let server = Server::start();
    let bench = Bench::exact(&server.url(), 100);
    let quota = bench.gateway().await;
    assert_eq!(bench.spend(&quota, 60).await, 60);
    let answer = server.command(&["HGET", &bench.key(), "window"]);
    let today: i64 = answer.lines().nth(1).unwrap().parse().unwrap();
    // As if all of that had been some days ago, or on the day that a clock set back by an hour has left.
    for (window, admitted) in [(today - 2, 100), (today + 1, 0)] {
        server.command(&["HSET", &bench.key(), "window", &window.to_string(), "given", "100"]);
        assert_eq!(bench.spend(&*bench.gateway().await, 200).await, admitted, "{}", window - today);
    }
}

/// The window that `second` is in, counted one by one from the calendar.
fn windows_of(second: i64) -> [i64; 3] {
    let date = jiff::tz::Offset::UTC.to_datetime(Timestamp::from_second(second).unwrap()).date();
    let epoch = Date::constant(1970, 1, 1);
    let days = i64::from(epoch.until(date).unwrap().get_days());
    let monday = date.checked_sub(i64::from(date.weekday().since(Weekday::Monday)).days()).unwrap();
    let first_monday = Date::constant(1969, 12, 29);
    let weeks = i64::from(first_monday.until(monday).unwrap().get_days()) / 7;
    [days, weeks, i64::from(date.year()) * 12 + i64::from(date.month()) - 1]
}

#[test]
fn the_script_counts_windows_as_the_calendar_does() {
    let server = Server::start();
    // Every midnight of 1970 to 2100 with the second before it, and seconds that fall anywhere.
    let midnights = (0..47_482).flat_map(|day| [day * 86_400, day * 86_400 + 86_399]);
    let anywhere = (0..4_102_444_800).step_by(86_413 * 7);
    let seconds: Vec<i64> = midnights.chain(anywhere).collect();
    let script = concat!(
        include_str!("../../src/quota/shared/window.lua"),
        "local all = {} for i, second in ipairs(ARGV) do local s = tonumber(second) all[i] = \
         window_of('day', s) .. ' ' .. window_of('week', s) .. ' ' .. window_of('month', s) end \
         return table.concat(all, '\\n')"
    );
    for seconds in seconds.chunks(5000) {
        let texts: Vec<String> = seconds.iter().map(ToString::to_string).collect();
        let words = ["EVAL", script, "0"].into_iter().chain(texts.iter().map(String::as_str)).collect::<Vec<_>>();
        let answer = server.command(&words);
        let lines: Vec<_> = answer.lines().skip(1).take(seconds.len()).collect();
        assert_eq!(lines.len(), seconds.len(), "{answer}");
        for (second, line) in seconds.iter().zip(lines) {
            let counted: Vec<i64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
            assert_eq!(counted, windows_of(*second), "{second}");
        }
    }
}
