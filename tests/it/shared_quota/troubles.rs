//! What a store can do to gateways, and that none of it makes a request wait twice, or a quota be forgotten.

use tokio::time::Instant;

use super::*;

/// Failures in a row after which a gateway leaves the store alone, as the manual says.
const FAILURES: u64 = 5;

/// Asks for a token and a row until the store is left alone, and a thousand times more. No request asks twice: the calls
/// that failed are as many as the first requests, and the gateway's own probes, of which there are two a second.
async fn check_left_alone(bench: &Bench, quota: &Quota, trouble: &str) {
    let began = Instant::now();
    let before = quota.shared_store().unwrap().calls;
    let mut requests = 0_u64;
    while quota.shared_store().unwrap().is_up {
        requests += 1;
        assert!(requests < 100, "{trouble}: requests go on waiting");
        assert!(bench.reserve(quota, 1).await.is_err(), "{trouble}");
    }
    for _ in 0..1000 {
        assert!(matches!(bench.reserve(quota, 1).await, Err(Refusal::StoreDown)), "{trouble}");
    }
    let calls = quota.shared_store().unwrap().calls - before;
    let probes = began.elapsed().as_secs() * 2 + 3;
    assert!(requests <= FAILURES, "{trouble}: {requests} requests waited");
    assert!(calls <= requests + probes, "{trouble}: {calls} calls for {requests} requests and {probes} probes");
}

/// Brings trouble upon a gateway, takes it away, and expects all of the quota to be there.
async fn check_trouble(server: &Server, wire: &Wire, name: &str, begin: impl FnOnce(&Bench), end: impl FnOnce(&Bench)) {
    let bench = Bench::exact(&wire.url(), 50);
    let bench = Bench { throttle: Some(Throttle { rate: 1e6, burst: 1_000_000 }), ..bench };
    let quota = bench.gateway().await;
    assert_eq!(bench.spend(&quota, 1).await, 1, "{name}");
    begin(&bench);
    check_left_alone(&bench, &quota, name).await;
    end(&bench);
    is_back(&quota).await;
    settle_until_heard(&quota).await;
    assert_eq!(bench.given(server), 1, "{name}: nothing was charged that was not admitted");
    assert_eq!(bench.spend(&quota, 100).await, 49, "{name}");
}

async fn settle_until_heard(quota: &Quota) {
    eventually("the store to hear what is held", async || quota.settle_all(noon()).await.is_ok()).await;
}

fn ok(answer: &str) {
    assert!(answer.starts_with("+OK") || answer.starts_with("+OK\r\n+OK"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_waits_for_a_store_in_trouble_twice() {
    let server = Server::start();
    let wire = Wire::to(&server).await;
    let fair = |_: &Bench| wire.becomes(Weather::Fair);
    check_trouble(&server, &wire, "hangs", |_| wire.becomes(Weather::Parted), fair).await;
    check_trouble(&server, &wire, "answers a second late", |_| wire.becomes(Weather::Slow), fair).await;
    check_trouble(&server, &wire, "cuts us off", |_| wire.becomes(Weather::Cut), fair).await;
    let memory = |bytes: &'static str| {
        let server = &server;
        move |_: &Bench| ok(&server.command(&["CONFIG", "SET", "maxmemory", bytes]))
    };
    check_trouble(&server, &wire, "has no memory left", memory("1"), memory("0")).await;
    let follow = |words: &'static [&str]| {
        let server = &server;
        move |_: &Bench| ok(&server.command(words))
    };
    let (begin, end) = (follow(&["REPLICAOF", "127.0.0.1", "1"]), follow(&["REPLICAOF", "NO", "ONE"]));
    check_trouble(&server, &wire, "may only be read", begin, end).await;
    let begin = |_: &Bench| {
        ok(&server.command(&["CONFIG", "SET", "requirepass", "new"]));
        // Who was let in before stays; they are shown the door.
        server.command_as("new", &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    };
    let end = |_: &Bench| ok(&server.command_as("new", &["CONFIG", "SET", "requirepass", ""]));
    check_trouble(&server, &wire, "has another password", begin, end).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_waits_for_a_store_that_is_gone_twice() {
    let mut server = Server::start();
    let bench = Bench::exact(&server.url(), 50);
    let quota = bench.gateway().await;
    assert_eq!(bench.spend(&quota, 1).await, 1);
    server.kill();
    check_left_alone(&bench, &quota, "is gone").await;
    server.restart();
    is_back(&quota).await;
    assert_eq!(bench.spend(&quota, 100).await, 49);
}

/// A server, and another that follows it over a wire and has what it had so far.
async fn followed() -> (Server, Server, Wire) {
    let (primary, replica) = (Server::start(), Server::start());
    let wire = Wire::to(&primary).await;
    ok(&replica.command(&["REPLICAOF", "127.0.0.1", &wire.address.port().to_string()]));
    eventually("the replica to follow", async || {
        replica.command(&["INFO", "replication"]).contains("master_link_status:up")
    })
    .await;
    (primary, replica, wire)
}

async fn has_given(bench: &Bench, server: &Server, given: u64) {
    eventually("the replica to have it", async || {
        let answer = server.command(&["HGET", &bench.key(), "given"]);
        answer.lines().nth(1) == Some(&given.to_string())
    })
    .await;
}

/// Uses 300 at each of two gateways, and 100 more that the replica does not hear of, and lets that take over.
async fn check_lagging_failover(on_store_down: OnStoreDown) {
    let (mut primary, replica, replication) = followed().await;
    let to_store = Wire::to(&primary).await;
    let bench = Bench::with(&to_store.url(), 1000, NonZeroU64::new(1), on_store_down);
    let gateways = [bench.gateway().await, bench.gateway().await];
    for quota in &gateways {
        bench.take(quota, 300).await;
    }
    has_given(&bench, &replica, 600).await;
    replication.becomes(Weather::AnswersStuck);
    for quota in &gateways {
        bench.take(quota, 50).await;
    }
    primary.kill();
    let mut lent = 0;
    for quota in &gateways {
        // All that the policy lends, so that nothing is lent for an answer that is late.
        lent += bench.spend_meanwhile(quota, 20).await + is_down(&bench, quota).await;
    }
    ok(&replica.command(&["REPLICAOF", "NO", "ONE"]));
    assert_eq!(bench.given(&replica), 600, "the replica lags");
    to_store.leads_to(&replica);
    for quota in &gateways {
        is_back(quota).await;
        settle_until_heard(quota).await;
    }
    assert_eq!(bench.given(&replica), 700 + lent, "{on_store_down:?}: the gateways have told it all they know");
    let rest = bench.spend(&gateways[0], 500).await + bench.spend(&gateways[1], 500).await;
    settle_all(&gateways).await;
    assert_eq!(bench.given(&replica), 700 + lent + rest, "{on_store_down:?}: the figure to the row");
    if on_store_down != OnStoreDown::Open {
        assert_eq!(700 + lent + rest, 1000, "{on_store_down:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lagged_forgets_nothing_that_gateways_remember() {
    for policy in [OnStoreDown::Closed, OnStoreDown::Lease, OnStoreDown::Open] {
        check_lagging_failover(policy).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_admitted_above_the_quota_is_what_a_parted_gateway_used_unseen_and_is_told_to_the_row() {
    let (mut primary, replica, replication) = followed().await;
    let (near, far) = (Wire::to(&primary).await, Wire::to(&primary).await);
    let bench = Bench::exact(&near.url(), 1000);
    let mut parted = bench.clone();
    parted.redis.url = far.url().parse().unwrap();
    let (here, there) = (bench.gateway().await, parted.gateway().await);
    assert_eq!(bench.spend(&here, 300).await, 300);
    has_given(&bench, &replica, 300).await;
    replication.becomes(Weather::AnswersStuck);
    // Nobody but the gateway over there and the old primary knows of these.
    assert_eq!(parted.spend(&there, 100).await, 100);
    primary.kill();
    far.becomes(Weather::Parted);
    ok(&replica.command(&["REPLICAOF", "NO", "ONE"]));
    near.leads_to(&replica);
    far.leads_to(&replica);
    is_back(&here).await;
    assert_eq!(bench.spend(&here, 1000).await, 700, "the store has forgotten a hundred");
    is_down(&parted, &there).await;
    far.becomes(Weather::Fair);
    is_back(&there).await;
    settle_until_heard(&there).await;
    for quota in [&here, &there] {
        assert_eq!(bench.used(quota).await, 1100, "the figure to the row");
        assert_eq!(bench.spend(quota, 1).await, 0);
    }
}

#[tokio::test]
async fn what_was_lent_is_counted_in_rows_and_shows_above_the_quota() {
    let server = Server::start();
    let wire = Wire::to(&server).await;
    let bench = Bench::with(&wire.url(), 1000, NonZeroU64::new(1), OnStoreDown::Lease);
    let (here, there) = (bench.gateway().await, bench.gateway().await);
    bench.take(&here, 300).await;
    bench.take(&there, 600).await;
    wire.becomes(Weather::Parted);
    // The last hundred and ten more, in tens.
    let mut lent = 0;
    for quota in [&here, &there] {
        if let Ok(charge) = bench.reserve(quota, 10).await {
            charge.commit();
            lent += 10;
        }
        is_down(&bench, quota).await;
        assert_eq!(quota.shared_store().unwrap().lent_units, 10);
    }
    assert_eq!(lent, 20);
    wire.becomes(Weather::Fair);
    for quota in [&here, &there] {
        is_back(quota).await;
        settle_until_heard(quota).await;
    }
    assert_eq!(bench.used(&here).await, 920);
}
