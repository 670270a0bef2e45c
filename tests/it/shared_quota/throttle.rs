//! Throttles that several gateways share: together they admit what the plan says, and no more.

#![expect(clippy::print_stdout, reason = "a nightly run says what it counted")]
#![expect(clippy::cast_precision_loss, reason = "counts and times of a test are far from the ends of their types")]

use std::time::Duration;

use modelgate::quota::{Enforcement, Exceeded, OnStoreDown, Plan, Refusal, Throttle};
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

/// A burst that does not come back while a test runs.
const STILL: f64 = 0.001;

impl Bench {
    /// The same with a throttle, and a quota that is not in its way.
    fn throttled(self, rate: f64, burst: u32) -> Self {
        Self { amount: 1_000_000, throttle: Some(Throttle { rate, burst }), ..self }
    }

    /// Takes a token until the store has decided, and says whether there was one.
    async fn is_let_through(&self, quota: &Quota) -> bool {
        for _ in 0..1000 {
            match self.reserve(quota, 1).await {
                Ok(charge) if charge.is_degraded() => tokio::time::sleep(Duration::from_millis(2)).await,
                Ok(charge) => {
                    charge.commit();
                    return true;
                }
                Err(Refusal::Throttled { .. }) => return false,
                Err(Refusal::StoreDown) => tokio::time::sleep(Duration::from_millis(2)).await,
                Err(other) => panic!("{other:?}"),
            }
        }
        panic!("waited in vain for the store to decide");
    }

    /// Asks each gateway in turn and says how many were let through.
    async fn rush(&self, gateways: &[Arc<Quota>], tries: usize) -> u64 {
        let mut admitted = 0;
        for quota in gateways.iter().cycle().take(tries) {
            admitted += u64::from(self.is_let_through(quota).await);
        }
        admitted
    }
}

#[tokio::test]
async fn three_gateways_let_one_burst_through() {
    let server = Server::start();
    for bench in [Bench::exact(&server.url(), 1), Bench::leased(&server.url(), 1)] {
        let bench = bench.throttled(STILL, 100);
        let gateways = bench.three().await;
        assert_eq!(bench.rush(&gateways, 450).await, 100);
    }
}

#[tokio::test]
async fn who_is_too_fast_elsewhere_is_told_when_to_come_back_and_is_not_charged() {
    let server = Server::start();
    let bench = Bench::exact(&server.url(), 1).throttled(0.1, 5);
    let gateways = bench.three().await;
    assert_eq!(bench.rush(&gateways[..1], 20).await, 5);
    assert!(!bench.is_let_through(&gateways[1]).await);
    let calls = gateways[1].shared_store().unwrap().calls;
    let Err(Refusal::Throttled { standing, retry_after }) = bench.reserve(&gateways[1], 1).await else {
        panic!("the other gateway has used the burst")
    };
    assert_eq!((standing[0].name, standing[0].limit, standing[0].remaining), ("rate", 5, 0));
    assert!((5..=10).contains(&retry_after.as_secs()), "a token comes in ten seconds: {retry_after:?}");
    assert_eq!(gateways[1].shared_store().unwrap().calls, calls, "what is known is not asked again");
    settle_all(&gateways).await;
    assert_eq!(bench.given(&server), 5);
}

#[tokio::test]
async fn what_is_not_worth_reading_takes_a_token_of_all_gateways() {
    let server = Server::start();
    let bench = Bench::exact(&server.url(), 1).throttled(STILL, 3);
    let gateways = bench.three().await;
    let mut refused = 0;
    for quota in gateways.iter().cycle().take(9) {
        refused += u64::from(quota.take_token(&bench.caller, noon()).await.is_err());
    }
    assert_eq!(refused, 6);
}

#[tokio::test]
async fn a_dry_run_counts_who_is_too_fast_elsewhere() {
    let server = Server::start();
    let bench = Bench::exact(&server.url(), 1).throttled(STILL, 2);
    let bench = Bench { enforcement: Enforcement::DryRun, ..bench };
    let gateways = bench.three().await;
    let mut passed = Vec::new();
    for quota in gateways.iter().cycle().take(6) {
        let charge = bench.counted(quota, 1).await;
        passed.extend(charge.exceeded());
        charge.commit();
    }
    assert_eq!(passed, [Exceeded::Throttle; 4]);
}

#[tokio::test]
async fn a_plan_with_a_throttle_alone_is_shared_too() {
    let server = Server::start();
    let bench = Bench::leased(&server.url(), 1).throttled(STILL, 30);
    let plan = Plan { throttle: bench.throttle, ..Plan::default() };
    let open = || {
        let plans = BTreeMap::from([("test".into(), plan)]);
        let config = Config { store: Location::Redis(bench.redis.clone()), plans };
        Arc::new(Quota::open(config, &mut getrandom::fill).unwrap())
    };
    let gateways = [open(), open(), open()];
    for quota in &gateways {
        is_back(quota).await;
    }
    assert_eq!(bench.rush(&gateways, 120).await, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_who_waited_is_refused_because_somebody_else_was_quicker() {
    let server = Server::start();
    let bench = Bench::exact(&server.url(), 1).throttled(STILL, 100_000);
    let gateways = [bench.gateway().await];
    assert_eq!(bench.hammer(&gateways, 64, 50, |_| 1).await, 64 * 50);
}

#[tokio::test]
async fn a_request_asks_for_its_token_and_its_rows_in_one_round_trip() {
    let server = Server::start();
    let bench = Bench::exact(&server.url(), 1).throttled(STILL, 1000);
    let quota = bench.gateway().await;
    let before = quota.shared_store().unwrap();
    assert_eq!(bench.rush(&[Arc::clone(&quota)], 300).await, 300);
    let after = quota.shared_store().unwrap();
    let (calls, late) = (after.calls - before.calls, after.failures - before.failures);
    println!("{calls} round trips, {late} of them late");
    assert!((300..=310 + 2 * late).contains(&calls), "{calls} round trips, {late} of them late");
}

#[tokio::test]
async fn with_leases_tokens_come_along_with_the_quota() {
    let server = Server::start();
    let bench = Bench { amount: 10_000, ..Bench::leased(&server.url(), 1).throttled(STILL, 10_000) };
    let quota = bench.gateway().await;
    let before = quota.shared_store().unwrap().calls;
    assert_eq!(bench.rush(&[Arc::clone(&quota)], 9000).await, 9000);
    let calls = quota.shared_store().unwrap().calls - before;
    assert!((85..=110).contains(&calls), "{calls} round trips, no more than the quota's leases take");
}

#[tokio::test]
async fn without_the_store_each_gateway_throttles_for_itself() {
    let mut server = Server::start();
    let bench = Bench::with(&server.url(), 1, None, OnStoreDown::Open).throttled(STILL, 50);
    let gateways = [bench.gateway().await, bench.gateway().await];
    server.kill();
    for quota in &gateways {
        let mut admitted = 0;
        for _ in 0..100 {
            match bench.reserve(quota, 1).await {
                Ok(charge) => {
                    assert!(charge.is_degraded());
                    charge.commit();
                    admitted += 1;
                }
                Err(refusal) => assert!(matches!(refusal, Refusal::Throttled { .. }), "{refusal:?}"),
            }
        }
        assert_eq!(admitted, 50);
    }
}

#[tokio::test]
async fn a_store_that_comes_back_empty_has_one_more_burst_and_no_more() {
    let mut server = Server::start();
    // Each gateway alone would still let some through.
    let bench = Bench::exact(&server.url(), 1).throttled(STILL, 30);
    let gateways = bench.three().await;
    assert_eq!(bench.rush(&gateways, 90).await, 30);
    server.kill();
    is_down(&Bench { caller: new_caller(), ..bench.clone() }, &gateways[0]).await;
    server.restart();
    for quota in &gateways {
        is_back(quota).await;
    }
    let again = bench.rush(&gateways, 120).await;
    assert!(again <= 30, "{again}");
}

#[tokio::test]
async fn a_store_whose_clock_was_set_back_throttles_at_the_rate_and_not_until_the_wrong_time() {
    let server = Server::start();
    let bench = Bench::exact(&server.url(), 1).throttled(1000.0, 10);
    let quota = bench.gateway().await;
    assert!(bench.is_let_through(&quota).await);
    let key = format!("test:rate:{}", bench.caller.account);
    // As it was written an hour from now.
    let later = jiff::Timestamp::from_second(4_000_000_000).unwrap().as_second().to_string();
    let answer = server.command(&["HSET", &key, "since", &later, "full_at", "0"]);
    assert!(answer.starts_with(":0"), "{answer}");
    let fresh = bench.gateway().await;
    eventually("the rate to bring tokens", async || bench.is_let_through(&fresh).await).await;
}

#[tokio::test]
async fn namespaces_do_not_touch_each_other() {
    let server = Server::start();
    let one = Bench::exact(&server.url(), 1).throttled(STILL, 20);
    let one = Bench { amount: 10, ..one };
    let mut other = one.clone();
    other.redis.namespace = "other".into();
    for bench in [one, other] {
        let gateways = bench.three().await;
        let mut admitted = 0;
        for quota in &gateways {
            admitted += bench.spend(quota, 10).await;
        }
        assert_eq!(admitted, 10, "{}", bench.redis.namespace);
    }
}

/// A long run under more than the rate, with arrivals at random at each gateway. Counted is what the store let through:
/// on a busy machine some of its answers are too late.
async fn check_long_run(url: String, gateways: usize, lease: Option<NonZeroU64>, plan: Throttle, length: Duration) {
    let bench = Bench::with(&url, 1, lease, OnStoreDown::Closed).throttled(plan.rate, plan.burst);
    let mut running = JoinSet::new();
    let mut all = Vec::new();
    for _ in 0..gateways {
        all.push(bench.gateway().await);
    }
    let began = Instant::now();
    for (seed, quota) in all.iter().enumerate() {
        let (bench, quota) = (bench.clone(), Arc::clone(quota));
        // Eight times the rate, from all together: more than the burst and the rate of each gateway alone.
        let mean_gap = gateways as f64 / (8.0 * plan.rate);
        running.spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed as u64);
            let (mut admitted, mut next) = (0_u32, began);
            while next < began + length {
                tokio::time::sleep_until(next).await;
                match bench.reserve(&quota, 1).await {
                    Ok(charge) if !charge.is_degraded() => {
                        charge.commit();
                        admitted += 1;
                    }
                    _ => {}
                }
                next += Duration::from_secs_f64(mean_gap * -random.f64().max(1e-9).ln());
            }
            admitted
        });
    }
    let admitted: u32 = running.join_all().await.into_iter().sum();
    let (at_least, at_most) =
        (plan.rate * length.as_secs_f64(), plan.rate * began.elapsed().as_secs_f64() + f64::from(plan.burst));
    println!("{gateways} gateways, lease {lease:?}: {admitted} in [{at_least:.0}, {at_most:.0}]");
    let admitted = f64::from(admitted);
    assert!(admitted <= at_most + 1.0, "{gateways} gateways, {lease:?}: {admitted}, {at_most} at most");
    assert!(admitted >= at_least - 1.0, "{gateways} gateways, {lease:?}: {admitted}, {at_least} at least");
}

async fn check_long_runs(plan: Throttle, length: Duration) {
    let server = Server::start();
    let leases = [NonZeroU64::new(1), None];
    let runs = (1..=3).flat_map(|gateways| leases.map(|lease| (gateways, lease)));
    let runs = runs.map(|(gateways, lease)| check_long_run(server.url(), gateways, lease, plan, length));
    futures_util::future::join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_two_and_three_gateways_keep_to_one_rate() {
    check_long_runs(Throttle { rate: 60.0, burst: 240 }, Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "nightly: one, two and three gateways on one throttle, 60 s"]
async fn one_two_and_three_gateways_keep_to_one_rate_for_a_minute() {
    check_long_runs(Throttle { rate: 50.0, burst: 100 }, Duration::from_mins(1)).await;
}

/// Asks the script's bucket at each of `steps`, which are gaps in microseconds and what is wanted.
fn taken_by_the_script(server: &Server, throttle: Throttle, steps: &[(u64, u64)]) -> Vec<u64> {
    let script = concat!(
        include_str!("../../../src/quota/shared/take.lua"),
        "local now, full_at, all = 0, 0, {} \
         for i = 3, #ARGV, 2 do now = now + tonumber(ARGV[i]) \
         all[#all + 1], full_at = take(full_at, now, tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[i + 1])) end \
         return table.concat(all, ' ')"
    );
    let interval = 1e6 / throttle.rate;
    let mut words = vec!["EVAL".to_owned(), script.to_owned(), "0".to_owned(), interval.to_string()];
    words.push((interval * f64::from(throttle.burst)).to_string());
    words.extend(steps.iter().flat_map(|(gap, want)| [gap.to_string(), want.to_string()]));
    let answer = server.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let line = answer.lines().nth(1).unwrap_or_else(|| panic!("{answer}"));
    line.split(' ').map(|number| number.parse().unwrap()).collect()
}

/// The same by a bucket that counts tokens, in the plainest way there is.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, and not below zero")]
fn taken_by_a_plain_bucket(throttle: Throttle, steps: &[(u64, u64)]) -> Vec<u64> {
    let mut level = f64::from(throttle.burst);
    let take = |&(gap, want): &(u64, u64)| {
        level = (level + throttle.rate * gap as f64 / 1e6).min(f64::from(throttle.burst));
        let granted = ((level + 1e-6).floor()).min(want as f64);
        level -= granted;
        granted as u64
    };
    steps.iter().map(take).collect()
}

#[test]
fn the_script_gives_out_tokens_as_a_plain_bucket_does() {
    let server = Server::start();
    let steps = prop::collection::vec((prop_oneof![Just(0), 0..5_000_000_u64, 0..50_000_u64], 0..40_u64), 1..80);
    let rates = prop::sample::select(vec![0.125, 1.0, 8.0, 50.0, 1000.0]);
    proptest!(ProptestConfig::with_cases(300), |(rate in rates, burst in 1..60_u32, steps in steps)| {
        let throttle = Throttle { rate, burst };
        prop_assert_eq!(
            taken_by_the_script(&server, throttle, &steps),
            taken_by_a_plain_bucket(throttle, &steps)
        );
    });
}
