//! A store that does what it is asked and answers too late, and one that a gateway cannot reach for a while: what is
//! charged is what was admitted, and what was admitted above the quota is what the gateway says it lent.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use super::*;

async fn settle_until_heard(gateways: &[Arc<Quota>]) {
    for quota in gateways {
        eventually("the store to hear what is held", async || quota.settle_all(noon()).await.is_ok()).await;
    }
}

/// Asks `tries` times, each request once, while one answer in ten is late. Nothing is admitted that the store has not
/// charged by then.
async fn ask_once_each(bench: Bench, server: Arc<Server>, quota: Arc<Quota>, tries: u64, admitted: Arc<AtomicU64>) {
    let (began, before) = (Instant::now(), quota.shared_store().unwrap());
    for index in 0..tries {
        let rows = index % 5 + 1;
        match bench.reserve(&quota, rows).await {
            Ok(charge) => {
                charge.commit();
                admitted.fetch_add(rows, Ordering::SeqCst);
            }
            Err(Refusal::StoreDown) => {}
            Err(other) => panic!("{other:?}"),
        }
        if index % 10 == 0 {
            let so_far = admitted.load(Ordering::SeqCst);
            let charged = bench.given(&server);
            assert!(charged >= so_far, "{so_far} rows admitted, {charged} charged");
        }
    }
    let after = quota.shared_store().unwrap();
    assert!(after.failures > before.failures, "no answer was late");
    let (calls, probes) = (after.calls - before.calls, began.elapsed().as_secs() * 2 + 3);
    assert!(calls <= tries + probes, "{calls} calls for {tries} requests: some were repeated");
}

/// Three gateways with `tries` requests each, and then as many as fill the quota.
async fn check_late_answers(lease: Option<NonZeroU64>, tries: u64) {
    let server = Arc::new(Server::start());
    let wire = Wire::to(&server).await;
    let bench = Bench::with(&wire.url(), 12 * tries, lease, OnStoreDown::Closed);
    let gateways = bench.three().await;
    let admitted = Arc::new(AtomicU64::new(bench.spend(&gateways[0], 1).await));
    wire.becomes(Weather::SomeAnswersLate);
    let mut asking = JoinSet::new();
    for quota in &gateways {
        let (bench, quota) = (bench.clone(), Arc::clone(quota));
        asking.spawn(ask_once_each(bench, Arc::clone(&server), quota, tries, Arc::clone(&admitted)));
    }
    asking.join_all().await;
    wire.becomes(Weather::Fair);
    for quota in &gateways {
        is_back(quota).await;
    }
    settle_until_heard(&gateways).await;
    let admitted = admitted.load(Ordering::SeqCst);
    assert_eq!(bench.given(&server), admitted, "every charge is there once");
    assert_eq!(admitted + bench.hammer(&gateways, 8, tries, |_| 1).await, bench.amount);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_one_answer_in_ten_too_late_each_request_is_charged_once_or_not_at_all() {
    check_late_answers(NonZeroU64::new(1), 50).await;
    check_late_answers(None, 50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "nightly: 30,000 requests at three gateways with one answer in ten too late, two minutes"]
async fn with_one_answer_in_ten_too_late_thirty_thousand_requests_are_charged_once_or_not_at_all() {
    check_late_answers(NonZeroU64::new(1), 5000).await;
    check_late_answers(None, 5000).await;
}

/// One of three gateways is parted from the store for `requests` that come so far apart, while the others use up what is
/// left of the quota. What is admitted above it then is what that gateway says it lent, to the row.
async fn check_partition(on_store_down: OnStoreDown, requests: u64, gap: Duration) {
    let server = Server::start();
    let wire = Wire::to(&server).await;
    // Under an open door too, a gateway refuses what by itself would pass the quota.
    let amount = 1000.max(2 * requests);
    let bench = Bench::with(&server.url(), amount, NonZeroU64::new(1), on_store_down);
    let mut over_wire = bench.clone();
    over_wire.redis.url = wire.url().parse().unwrap();
    let gateways = [bench.gateway().await, bench.gateway().await, over_wire.gateway().await];
    let parted = &gateways[2];
    let mut admitted = 0;
    for quota in &gateways {
        bench.take(quota, amount / 50).await;
        admitted += amount / 50;
    }
    let before = parted.shared_store().unwrap().lent_units;
    wire.becomes(Weather::Parted);
    let (mut lent, mut refused) = (0, 0);
    for _ in 0..requests {
        match bench.reserve(parted, 1).await {
            Ok(charge) if charge.is_degraded() => {
                charge.commit();
                lent += 1;
            }
            Err(Refusal::StoreDown) => refused += 1,
            other => panic!("{on_store_down:?}: {other:?}"),
        }
        tokio::time::sleep(gap).await;
    }
    let allowed = match on_store_down {
        OnStoreDown::Closed => 0,
        OnStoreDown::Lease => requests.min(amount / 100),
        OnStoreDown::Open => requests,
    };
    assert_eq!((lent, refused), (allowed, requests - allowed), "{on_store_down:?}");
    for quota in &gateways[..2] {
        admitted += bench.spend(quota, amount).await;
    }
    wire.becomes(Weather::Fair);
    is_back(parted).await;
    settle_until_heard(&gateways).await;
    let told = gateways.each_ref().map(|quota| quota.shared_store().unwrap().lent_units);
    assert_eq!(told[2] - before, lent, "{on_store_down:?}: the figure of the metric");
    // An answer that was late by itself is lent for too.
    let of_others = told[0] + told[1] + before;
    let least = amount + lent;
    admitted += lent;
    assert!((least..=least + of_others).contains(&admitted), "{on_store_down:?}: {admitted}, {told:?}");
    for quota in &gateways {
        eventually("the figure of the caller", async || {
            quota.usage(&bench.caller, noon()).await.unwrap().used == Some(admitted)
        })
        .await;
        assert_eq!(bench.spend(quota, 1).await, 0, "{on_store_down:?}");
    }
}

async fn check_partitions(requests: u64, gap: Duration) {
    for policy in [OnStoreDown::Closed, OnStoreDown::Lease, OnStoreDown::Open] {
        check_partition(policy, requests, gap).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_parted_gateway_admits_above_the_quota_is_what_it_says_it_lent() {
    check_partitions(50, Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "nightly: a gateway parted from the store for 30 s, under each policy"]
async fn what_a_gateway_parted_for_half_a_minute_admits_is_what_it_says_it_lent() {
    check_partitions(3000, Duration::from_millis(10)).await;
}
