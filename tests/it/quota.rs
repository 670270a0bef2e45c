//! Quotas over a real store: exact under concurrency and over restarts, never above the limit after a crash.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use modelgate::auth::{self, Access, ApiKeys, Caller};
use modelgate::quota::{Charge, Config, Limit, Location, Period, Plan, Quota, Refusal, Throttle, Unit};
use proptest::prelude::*;
use secrecy::{ExposeSecret, SecretString};
use tempfile::TempDir;
use tokio::task::JoinSet;

const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// Noon of a Monday, the first of a month.
fn noon() -> Timestamp {
    "2026-06-01T12:00:00Z".parse().unwrap()
}

fn rows_a_day(amount: u64) -> Plan {
    let limit = Limit { amount: NonZeroU64::new(amount).unwrap(), period: Period::Day };
    Plan { quota: Some(limit), ..Plan::default() }
}

/// A store, with a caller on the plan `test`.
struct Bench {
    directory: TempDir,
    plan: Plan,
    caller: Arc<Caller>,
}

impl Bench {
    fn new(plan: Plan) -> Self {
        let directory = TempDir::new().unwrap();
        let (_, caller) = new_key(directory.path());
        Self { directory, plan, caller }
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("store.db")
    }

    fn open(&self) -> Quota {
        open(self.directory.path(), self.plan)
    }

    async fn reserve(&self, quota: &Quota, rows: u64) -> Result<Charge, Refusal> {
        quota.reserve(&self.caller, rows, noon()).await
    }

    /// Uses `rows` one by one and says how many were admitted.
    async fn spend(&self, quota: &Quota, rows: u64, now: Timestamp) -> u64 {
        let mut admitted = 0;
        for _ in 0..rows {
            if let Ok(charge) = quota.reserve(&self.caller, 1, now).await {
                charge.commit();
                admitted += 1;
            }
        }
        admitted
    }

    async fn used(&self, quota: &Quota) -> u64 {
        quota.usage(&self.caller, noon()).await.unwrap().used.unwrap()
    }

    fn sql(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.store()).unwrap()
    }

    /// What the store says was given out.
    fn given(&self) -> u64 {
        let given: i64 =
            self.sql().query_row("SELECT coalesce(sum(given), 0) FROM usage", [], |row| row.get(0)).unwrap();
        given.unsigned_abs()
    }
}

fn open(directory: &Path, plan: Plan) -> Quota {
    let plans = BTreeMap::from([("test".into(), plan)]);
    Quota::open(Config { store: Location::File(directory.join("store.db")), plans }, &mut getrandom::fill).unwrap()
}

fn keys(directory: &Path) -> ApiKeys {
    let plans = BTreeMap::from([("test".into(), Access::All)]);
    let (store, pepper) = (directory.join("store.db"), directory.join("pepper"));
    ApiKeys::open(auth::Config { store, pepper, plans }, &mut getrandom::fill).unwrap()
}

fn new_key(directory: &Path) -> (SecretString, Arc<Caller>) {
    let keys = keys(directory);
    let (_, key) = keys.create("app", "test", None, noon(), &mut getrandom::fill).unwrap();
    let caller = keys.authenticate(key.expose_secret(), noon()).unwrap();
    (key, caller)
}

/// What `kill -9` leaves: the process is gone, and no lease was given back.
async fn crash(quota: Quota) {
    // Nobody has rested, so this gives nothing back; it waits until the thread, which lives on here, has nothing to do.
    quota.settle_once(noon()).await.unwrap();
    std::mem::forget(quota);
}

/// Runs 32 tasks that each try `tries` charges of the sizes `rows` yields; the sum of rows admitted.
async fn hammer(bench: &Bench, quota: Arc<Quota>, tries: u64, rows: fn(u64) -> u64) -> u64 {
    let mut tasks = JoinSet::new();
    for task in 0..32 {
        let (quota, caller) = (Arc::clone(&quota), Arc::clone(&bench.caller));
        tasks.spawn(async move {
            let mut admitted = 0;
            for index in 0..tries {
                let rows = rows(task * tries + index);
                if let Ok(charge) = quota.reserve(&caller, rows, noon()).await {
                    charge.commit();
                    admitted += rows;
                }
            }
            admitted
        });
    }
    tasks.join_all().await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 32)]
async fn of_twice_the_quota_exactly_the_quota_is_admitted() {
    let bench = Bench::new(rows_a_day(2000));
    let quota = Arc::new(bench.open());
    assert_eq!(hammer(&bench, Arc::clone(&quota), 125, |_| 1).await, 2000);
    assert_eq!(bench.used(&quota).await, 2000);
    quota.settle_all(noon()).await.unwrap();
    assert_eq!(bench.given(), 2000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 32)]
async fn requests_of_mixed_sizes_fill_the_quota_and_never_pass_it() {
    let bench = Bench::new(rows_a_day(20_000));
    let quota = Arc::new(bench.open());
    let sizes = |index: u64| index * 37 % 100 + 1;
    let admitted = hammer(&bench, Arc::clone(&quota), 30, sizes).await;
    assert!(20_000 - 100 < admitted && admitted <= 20_000, "{admitted}");
    let rest = 20_000 - admitted;
    assert_eq!(bench.spend(&quota, 200, noon()).await, rest, "what is left is admitted to the last row");
    assert_eq!(bench.used(&quota).await, 20_000);
}

#[tokio::test]
async fn requests_count_as_one_where_the_plan_says_so() {
    let bench = Bench::new(Plan { unit: Unit::Requests, ..rows_a_day(3) });
    let quota = bench.open();
    for left in [2, 1, 0] {
        let charge = bench.reserve(&quota, 1000).await.unwrap();
        assert_eq!(charge.standing()[0].remaining, left);
        charge.commit();
    }
    assert!(matches!(bench.reserve(&quota, 1).await, Err(Refusal::Exhausted { .. })));
}

#[tokio::test]
async fn a_clean_stop_leaves_the_count_exact() {
    let bench = Bench::new(rows_a_day(10_000));
    for start in 1..=3 {
        let quota = bench.open();
        assert_eq!(bench.spend(&quota, 101, noon()).await, 101);
        quota.settle_all(noon()).await.unwrap();
        assert_eq!(bench.given(), 101 * start);
    }
    let quota = bench.open();
    assert_eq!(bench.used(&quota).await, 303);
    assert_eq!(bench.spend(&quota, 20_000, noon()).await, 10_000 - 303);
}

#[tokio::test]
async fn a_crash_costs_at_most_a_lease_and_never_gives_more() {
    let bench = Bench::new(rows_a_day(1000));
    let mut admitted = 0;
    for _ in 0..5 {
        let quota = bench.open();
        admitted += bench.spend(&quota, 37, noon()).await;
        assert!(bench.given() >= admitted, "a request was admitted before it was written down");
        crash(quota).await;
    }
    admitted += bench.spend(&bench.open(), 2000, noon()).await;
    assert!(admitted <= 1000, "{admitted}");
    assert!(admitted >= 1000 - 5 * 10, "each crash costs a lease of 10 at most: {admitted}");
}

/// The plan of the process that is killed.
fn of_the_killed() -> Plan {
    rows_a_day(50_000)
}

/// What that plan's store gives out at a time.
const LEASE: u64 = 500;

/// How many charge at the same time in the process that is killed.
const WAYS: u64 = 64;

#[test]
#[ignore = "child: of a_killed_gateway_has_written_down_all_it_admitted"]
fn spends_until_it_is_killed() {
    let mut lines = std::io::stdin().lines().map(Result::unwrap);
    let [directory, key, round] = [(); 3].map(|()| lines.next().unwrap());
    let (directory, now) = (PathBuf::from(directory), noon() + DAY * round.parse().unwrap());
    let caller = keys(&directory).authenticate(&key, noon()).unwrap();
    let quota = Arc::new(open(&directory, of_the_killed()));
    // Ends the line that the test harness has begun.
    std::io::stdout().write_all(b"\n").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let mut spending = JoinSet::new();
    for _ in 0..WAYS {
        let (quota, caller) = (Arc::clone(&quota), Arc::clone(&caller));
        let spend = async move {
            while let Ok(charge) = quota.reserve(&caller, 1, now).await {
                charge.commit();
                // Straight to the pipe: the test harness would keep what is printed.
                std::io::stdout().write_all(b"+\n").unwrap();
            }
        };
        spending.spawn_on(spend, runtime.handle());
    }
    runtime.block_on(spending.join_all());
}

/// Kills a gateway that charges at `points` moments, each on a day of its own.
async fn check_killed(points: u32) {
    let directory = TempDir::new().unwrap();
    let (key, caller) = new_key(directory.path());
    let bench = Bench { directory, plan: of_the_killed(), caller };
    for point in 1..=points {
        let enough = point as usize * 37 % 997;
        let admitted = run_and_kill(bench.directory.path(), &key, point, enough);
        assert!(admitted >= enough as u64, "{admitted}");
        let given = bench.given();
        assert!(given >= admitted, "{given} written, {admitted} admitted");
        assert!(given <= admitted + LEASE + WAYS, "a lease, and answers nobody read: {given}, {admitted} admitted");
        if point % 10 == 0 {
            let rest = bench.spend(&bench.open(), 50_000, noon() + DAY * point).await;
            assert_eq!(given + rest, 50_000, "what is left is admitted to the last row");
        }
    }
}

#[tokio::test]
async fn a_killed_gateway_has_written_down_all_it_admitted() {
    check_killed(20).await;
}

#[tokio::test]
#[ignore = "nightly: a gateway killed at 200 points under 64-way charging, a minute"]
async fn a_gateway_killed_two_hundred_times_has_written_down_all_it_admitted() {
    check_killed(200).await;
}

/// Starts a process that spends, kills it once it has admitted `enough`, and says how many it admitted.
fn run_and_kill(directory: &Path, key: &SecretString, round: u32, enough: usize) -> u64 {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["quota::spends_until_it_is_killed", "--exact", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = format!("{}\n{}\n{round}\n", directory.display(), key.expose_secret());
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let mut admitted =
        BufReader::new(process.stdout.take().unwrap()).lines().filter(|line| line.as_ref().unwrap() == "+");
    let early = admitted.by_ref().take(enough).count();
    process.kill().unwrap();
    let late = admitted.count();
    process.wait().unwrap();
    (early + late) as u64
}

#[tokio::test]
async fn two_gateways_on_one_store_share_the_quota() {
    let bench = Bench::new(rows_a_day(500));
    let (one, other) = (bench.open(), bench.open());
    let mut admitted = 0;
    for _ in 0..400 {
        admitted += bench.spend(&one, 1, noon()).await + bench.spend(&other, 1, noon()).await;
    }
    assert!((500 - 5..=500).contains(&admitted), "{admitted}");
}

#[tokio::test]
async fn a_charge_that_is_dropped_is_given_back() {
    let bench = Bench::new(rows_a_day(10));
    let quota = bench.open();
    let charge = bench.reserve(&quota, 10).await.unwrap();
    assert!(matches!(bench.reserve(&quota, 1).await, Err(Refusal::Exhausted { .. })));
    drop(charge);
    assert_eq!(bench.used(&quota).await, 0);
    assert!(bench.reserve(&quota, 10).await.is_ok());
}

#[tokio::test]
async fn a_request_that_gave_up_while_it_waited_is_not_charged() {
    let bench = Bench::new(rows_a_day(10));
    let quota = bench.open();
    {
        let mut waiting = Box::pin(bench.reserve(&quota, 10));
        // Asks the store, and goes away before or after it has answered.
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    }
    // The store's thread takes one after the other: after this it has answered whoever left.
    quota.settle_all(noon()).await.unwrap();
    assert!(bench.reserve(&quota, 10).await.is_ok());
}

#[tokio::test]
async fn a_charge_of_a_past_day_is_not_given_back_to_the_next() {
    let bench = Bench::new(rows_a_day(10));
    let quota = bench.open();
    let yesterday = bench.reserve(&quota, 7).await.unwrap();
    let tomorrow = noon() + DAY;
    assert_eq!(bench.spend(&quota, 6, tomorrow).await, 6);
    drop(yesterday);
    assert_eq!(bench.spend(&quota, 10, tomorrow).await, 4);
}

#[tokio::test]
async fn every_day_has_its_own_quota() {
    let bench = Bench::new(rows_a_day(1000));
    let quota = bench.open();
    // The first day ends with most of a lease unused; the next must not inherit it.
    for (day, tries, admitted) in [(0, 1, 1), (1, 1100, 1000), (2, 1100, 1000)] {
        assert_eq!(bench.spend(&quota, tries, noon() + DAY * day).await, admitted, "day {day}");
    }
}

#[tokio::test]
async fn a_lease_that_is_on_its_way_is_settled_too() {
    let bench = Bench::new(rows_a_day(300));
    for round in 1..=20 {
        let quota = bench.open();
        // Uses up a lease of three to the last row, and with that asks for the next.
        assert_eq!(bench.spend(&quota, 3, noon()).await, 3);
        quota.settle_all(noon()).await.unwrap();
        assert_eq!(bench.given(), 3 * round);
    }
}

#[tokio::test]
async fn what_is_left_and_when_it_resets_is_told() {
    let limit = Limit { amount: NonZeroU64::new(100).unwrap(), period: Period::Week };
    let plan = Plan { throttle: Some(Throttle { rate: 1.0, burst: 5 }), quota: Some(limit), ..Plan::default() };
    let bench = Bench::new(plan);
    let quota = bench.open();
    let charge = bench.reserve(&quota, 30).await.unwrap();
    let [rate, week] = charge.standing() else { panic!("a rate and a quota: {charge:?}") };
    assert_eq!((rate.name, rate.limit, rate.window, rate.remaining), ("rate", 5, Duration::from_secs(5), 4));
    assert_eq!((week.name, week.limit, week.window, week.remaining), ("week", 100, DAY * 7, 70));
    assert_eq!(week.resets_in, DAY * 6 + HOUR * 12);
    charge.commit();
    let usage = quota.usage(&bench.caller, noon()).await.unwrap();
    assert_eq!((usage.used, usage.quota, usage.unit), (Some(30), Some(limit), Unit::Rows));
    assert_eq!(usage.resets_at, Some("2026-06-08T00:00:00Z".parse().unwrap()));
    assert_eq!(usage.standing.len(), 2);
}

#[tokio::test]
async fn asking_for_usage_charges_and_leases_nothing() {
    let bench = Bench::new(rows_a_day(10_000));
    let quota = bench.open();
    assert_eq!(bench.used(&quota).await, 0);
    assert_eq!(bench.given(), 0);
}

#[tokio::test]
async fn refusals_say_which_limit_and_until_when() {
    let bench = Bench::new(rows_a_day(10));
    let quota = bench.open();
    match bench.reserve(&quota, 11).await {
        Err(Refusal::TooLarge { retry_after, .. }) => assert_eq!(retry_after, HOUR * 12),
        other => panic!("{other:?}"),
    }
    bench.reserve(&quota, 8).await.unwrap().commit();
    match bench.reserve(&quota, 3).await {
        Err(Refusal::Exhausted { standing, retry_after }) => {
            assert_eq!((standing[0].name, standing[0].remaining, retry_after), ("day", 2, HOUR * 12));
        }
        other => panic!("{other:?}"),
    }
    assert!(bench.reserve(&quota, 2).await.is_ok(), "less still fits");
}

#[tokio::test(start_paused = true)]
async fn a_throttled_request_is_not_charged_and_comes_back_in_time() {
    let bench = Bench::new(Plan { throttle: Some(Throttle { rate: 2.0, burst: 3 }), ..rows_a_day(100) });
    let quota = bench.open();
    assert_eq!(bench.spend(&quota, 3, noon()).await, 3);
    let Err(Refusal::Throttled { standing, retry_after }) = bench.reserve(&quota, 1).await else {
        panic!("a burst of three is used up")
    };
    assert_eq!((standing[0].name, standing[1].name, standing[1].remaining), ("rate", "day", 97));
    assert_eq!(bench.used(&quota).await, 3);
    tokio::time::advance(retry_after).await;
    assert_eq!(bench.spend(&quota, 2, noon()).await, 1);
}

#[tokio::test(start_paused = true)]
async fn what_the_quota_refuses_takes_a_token_all_the_same() {
    let bench = Bench::new(Plan { throttle: Some(Throttle { rate: 1.0, burst: 2 }), ..rows_a_day(1) });
    let quota = bench.open();
    assert_eq!(bench.spend(&quota, 1, noon()).await, 1);
    assert!(matches!(bench.reserve(&quota, 1).await, Err(Refusal::Exhausted { .. })));
    assert!(matches!(bench.reserve(&quota, 1).await, Err(Refusal::Throttled { .. })));
}

#[tokio::test]
async fn a_plan_without_a_quota_never_touches_the_store() {
    let bench = Bench::new(Plan { quota: None, ..rows_a_day(1) });
    let quota = bench.open();
    let locked = bench.sql();
    locked.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert_eq!(bench.spend(&quota, 1000, noon()).await, 1000);
    assert_eq!(bench.used(&quota).await, 0);
}

#[tokio::test]
async fn a_plan_that_is_not_configured_is_refused() {
    let bench = Bench::new(rows_a_day(1));
    let quota =
        Quota::open(Config { store: Location::File(bench.store()), plans: BTreeMap::new() }, &mut getrandom::fill)
            .unwrap();
    assert_eq!(bench.reserve(&quota, 1).await.unwrap_err(), Refusal::NoPlan);
}

#[tokio::test]
async fn a_store_that_is_down_is_served_from_the_lease_and_no_further() {
    let bench = Bench::new(rows_a_day(10_000));
    let quota = bench.open();
    assert_eq!(bench.spend(&quota, 1, noon()).await, 1);
    let locked = bench.sql();
    locked.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(bench.spend(&quota, 99, noon()).await, 99, "a lease is a hundred");
    assert_eq!(bench.reserve(&quota, 1).await.unwrap_err(), Refusal::StoreDown);
    locked.execute_batch("ROLLBACK").unwrap();
    assert_eq!(bench.spend(&quota, 20_000, noon()).await, 10_000 - 100);
}

#[tokio::test]
async fn a_settlement_that_fails_keeps_the_lease() {
    let bench = Bench::new(rows_a_day(10_000));
    let quota = bench.open();
    assert_eq!(bench.spend(&quota, 1, noon()).await, 1);
    let locked = bench.sql();
    locked.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(quota.settle_all(noon()).await.is_err());
    assert_eq!(bench.used(&quota).await, 1);
    assert_eq!(bench.spend(&quota, 99, noon()).await, 99);
    locked.execute_batch("ROLLBACK").unwrap();
    quota.settle_all(noon()).await.unwrap();
    assert_eq!(bench.spend(&quota, 20_000, noon()).await, 10_000 - 100);
}

#[tokio::test]
async fn a_settlement_takes_the_leases_of_keys_that_rest() {
    let bench = Bench::new(rows_a_day(10_000));
    let quota = bench.open();
    assert_eq!(bench.spend(&quota, 1, noon()).await, 1);
    assert_eq!(quota.settle_once(noon() + Duration::from_secs(59)).await.unwrap().counters, 0);
    assert_eq!(bench.given(), 100);
    assert_eq!(quota.settle_once(noon() + Duration::from_mins(1)).await.unwrap().counters, 1);
    assert_eq!(bench.given(), 1);
    assert_eq!(bench.used(&quota).await, 1, "a key that was forgotten is read again");
    assert_eq!(bench.spend(&quota, 20_000, noon()).await, 9_999);
}

#[tokio::test]
async fn a_charge_under_way_survives_a_settlement() {
    let bench = Bench::new(rows_a_day(100));
    let quota = bench.open();
    let charge = bench.reserve(&quota, 40).await.unwrap();
    quota.settle_once(noon() + HOUR).await.unwrap();
    assert_eq!(bench.given(), 40);
    drop(charge);
    assert_eq!(bench.spend(&quota, 200, noon()).await, 100);
}

#[tokio::test]
async fn rows_of_ended_periods_are_deleted() {
    let bench = Bench::new(rows_a_day(100));
    let quota = bench.open();
    assert_eq!(bench.spend(&quota, 1, noon()).await, 1);
    let rows = || bench.sql().query_row("SELECT count(*) FROM usage", [], |row| row.get::<_, i64>(0)).unwrap();
    // With an offset of 27 days at most.
    quota.settle_all(noon() + DAY * 28).await.unwrap();
    assert_eq!(rows(), 1, "the last day stays, for a clock that steps back");
    quota.settle_all(noon() + DAY * 29).await.unwrap();
    assert_eq!(rows(), 0);
}

#[tokio::test]
async fn a_clock_that_steps_back_over_midnight_opens_no_past_day() {
    let bench = Bench::new(rows_a_day(10));
    let midnight = noon() + HOUR * 12;
    let second = Duration::from_secs(1);
    let quota = bench.open();
    assert_eq!(bench.spend(&quota, 3, midnight - second).await, 3);
    assert_eq!(bench.spend(&quota, 4, midnight + second).await, 4);
    assert_eq!(bench.spend(&quota, 4, midnight - second).await, 4);
    quota.settle_all(midnight).await.unwrap();
    let quota = bench.open();
    assert_eq!(bench.spend(&quota, 10, midnight - second).await, 2, "nor does a restart");
    assert_eq!(bench.spend(&quota, 10, midnight + second).await, 0);
}

#[tokio::test]
async fn a_wrong_date_costs_one_window_and_locks_nobody_out() {
    let bench = Bench::new(rows_a_day(10));
    let quota = bench.open();
    assert_eq!(bench.spend(&quota, 6, noon()).await, 6);
    assert_eq!(bench.spend(&quota, 7, noon() + DAY * 400).await, 7);
    assert_eq!(bench.spend(&quota, 10, noon()).await, 3, "the count comes back with the clock");
    assert_eq!(bench.spend(&quota, 20, noon() + DAY).await, 10, "the next day is open");
}

#[tokio::test]
async fn who_used_a_quota_up_on_a_wrong_date_is_not_locked_out_on_the_days_after() {
    let bench = Bench::new(rows_a_day(10));
    let quota = bench.open();
    assert_eq!(bench.spend(&quota, 20, noon() + DAY * 400).await, 10);
    assert_eq!(bench.spend(&quota, 20, noon()).await, 0);
    quota.settle_all(noon()).await.unwrap();
    assert_eq!(bench.spend(&bench.open(), 20, noon() + DAY).await, 10);
}

#[tokio::test]
async fn a_settlement_on_a_wrong_date_opens_no_day_again() {
    let bench = Bench::new(rows_a_day(10));
    let quota = bench.open();
    assert_eq!(bench.spend(&quota, 6, noon()).await, 6);
    quota.settle_all(noon() + DAY * 400).await.unwrap();
    assert_eq!(bench.spend(&quota, 10, noon()).await, 4);
}

/// How many rows of ten a day are admitted, when the clock jumps from `start` by `jump` and back again.
async fn admitted_over_a_jump(start: Timestamp, jump: SignedDuration) -> u64 {
    let bench = Bench::new(rows_a_day(10));
    let quota = bench.open();
    let mut admitted = bench.spend(&quota, 6, start).await;
    for now in [start + jump, start, start + jump, start] {
        admitted += bench.spend(&quota, 20, now).await;
        // Nor does a restart at the wrong time open anything.
        quota.settle_all(now).await.unwrap();
    }
    assert_eq!(bench.spend(&quota, 20, start + DAY * 2).await, 10, "nobody is locked out after {jump}");
    admitted
}

#[tokio::test]
async fn a_jump_of_the_clock_opens_one_window_at_most() {
    let second = SignedDuration::from_secs(1);
    let after_midnight = noon() + HOUR * 12 + second;
    for (start, jump, most) in [
        (noon(), second, 10),
        (noon(), -second, 10),
        (noon(), second * 3600, 10),
        (noon(), -second * 3600, 10),
        (noon(), second * 300, 10),
        // Each of the two jumps forward opens the one window that it leads to.
        (noon(), second * 86_400 * 400, 30),
        (noon(), -second * 86_400 * 400, 30),
        // Over midnight: back to a day that has ended, and on to one that is soon to begin.
        (after_midnight, -second * 2, 10),
        (after_midnight, -second * 3600, 10),
        (after_midnight - second * 2, second * 2, 20),
    ] {
        let admitted = admitted_over_a_jump(start, jump).await;
        assert!((10..=most).contains(&admitted), "{start} {jump}: {admitted}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_jump_of_the_clock_brings_a_token() {
    let bench = Bench::new(Plan { throttle: Some(Throttle { rate: 1.0, burst: 5 }), ..rows_a_day(1_000_000) });
    let quota = bench.open();
    let mut admitted = 0;
    for now in [noon(), noon() + HOUR, noon() - HOUR, noon() + DAY * 400, noon() - DAY * 400, noon()] {
        admitted += bench.spend(&quota, 20, now).await;
    }
    assert_eq!(admitted, 5);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(bench.spend(&quota, 20, noon() - HOUR).await, 2);
}

#[derive(Clone, Debug)]
enum Step {
    Reserve(u64),
    Commit(usize),
    Drop(usize),
    Settle,
    SettleIdle,
    Restart,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..30_u64).prop_map(Step::Reserve),
        4 => any::<usize>().prop_map(Step::Commit),
        3 => any::<usize>().prop_map(Step::Drop),
        1 => Just(Step::Settle),
        1 => Just(Step::SettleIdle),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..60)
}

/// What a run knows for certain: rows whose charge is open, rows that are used, and rows that crashes may have cost.
#[derive(Default)]
struct Books {
    open: Vec<(u64, Charge)>,
    used: u64,
    lost: u64,
}

impl Books {
    fn total(&self) -> u64 {
        self.used + self.open.iter().map(|(rows, _)| rows).sum::<u64>()
    }

    fn take(&mut self, index: usize) -> Option<(u64, Charge)> {
        (!self.open.is_empty()).then(|| self.open.swap_remove(index % self.open.len()))
    }

    /// Charges that are open when the process ends count as used: nobody is left to give them back.
    fn end(&mut self) {
        for (rows, charge) in self.open.drain(..) {
            charge.commit();
            self.used += rows;
        }
    }
}

async fn check_books(steps: Vec<Step>) {
    const AMOUNT: u64 = 300;
    let bench = Bench::new(rows_a_day(AMOUNT));
    let mut quota = bench.open();
    let mut books = Books::default();
    for step in steps {
        match step {
            Step::Reserve(rows) => match bench.reserve(&quota, rows).await {
                Ok(charge) => books.open.push((rows, charge)),
                Err(refusal) => {
                    assert!(matches!(refusal, Refusal::Exhausted { .. }), "{refusal:?}");
                    assert!(books.total() + books.lost + rows > AMOUNT, "{rows} refused at {}", books.total());
                }
            },
            Step::Commit(index) => {
                if let Some((rows, charge)) = books.take(index) {
                    charge.commit();
                    books.used += rows;
                }
            }
            Step::Drop(index) => drop(books.take(index)),
            Step::Settle => assert!(quota.settle_all(noon()).await.is_ok()),
            Step::SettleIdle => assert!(quota.settle_once(noon() + HOUR).await.is_ok()),
            Step::Restart => {
                books.end();
                quota.settle_all(noon()).await.unwrap();
                assert_eq!(bench.given(), books.used + books.lost);
                quota = bench.open();
            }
            Step::Crash => {
                books.end();
                crash(std::mem::replace(&mut quota, bench.open())).await;
                books.lost = bench.given() - books.used;
            }
        }
        assert!(books.total() <= AMOUNT);
        assert_eq!(bench.used(&quota).await, books.total() + books.lost);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn nothing_is_lost_or_given_twice_whatever_the_order(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(check_books(steps));
    }
}
