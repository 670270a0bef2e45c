//! What a charge costs: `cargo bench --bench quota`.
//!
//! One thread reserves a row and commits it, again and again: embedded; shared with leases; shared and asking for every
//! request; and with 64 tasks at once that ask for every request, which share round trips. A quota alone, and with all
//! that a request costs before its model: the key is checked, a throttle and a quota are asked. With the CPU time of the whole
//! process (from `/proc`) and the round trips of a charge. The Redis is that of `scripts/test-servers.sh` or of the PATH.

#![expect(clippy::print_stdout, reason = "the figures are the product of a benchmark")]
#![expect(clippy::disallowed_methods, reason = "a benchmark is its own process: it reads the clock and starts tasks")]
#![expect(clippy::cast_precision_loss, reason = "counts and times of a benchmark are far from the ends of their types")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::num::NonZeroU64;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use modelgate::auth::{self, Access, ApiKeys, Caller};
use modelgate::quota::{Config, Limit, Location, OnStoreDown, Period, Plan, Quota, Redis, Throttle};
use secrecy::{ExposeSecret, SecretString};
use tokio::task::JoinSet;

/// So large that a lease is a thousand, the most.
const AMOUNT: u64 = 1_000_000_000;

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, url) = redis();
    let keys = keys(folder.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let redis = |lease| {
        let url = url.parse().unwrap();
        let namespace = format!("bench-{lease:?}");
        Location::Redis(Redis { url, password: None, namespace, lease, on_store_down: OnStoreDown::Closed })
    };
    let file = || Location::File(folder.path().join("usage.db"));
    println!("{:<42}{:>10}{:>10}{:>12}", "one charge", "wall", "CPU", "round trips");
    let quota_alone = ("quota", false);
    let whole = ("throttled", true);
    let cases = [
        ("quota, embedded", file(), quota_alone, 1, 5_000_000),
        ("key, throttle and quota, embedded", file(), whole, 1, 5_000_000),
        ("quota, leases of 1000", redis(None), quota_alone, 1, 5_000_000),
        ("quota, leases of 100", redis(NonZeroU64::new(100)), quota_alone, 1, 500_000),
        ("key, throttle and quota, leases of 100", redis(NonZeroU64::new(100)), whole, 1, 500_000),
        ("quota, exact", redis(NonZeroU64::new(1)), quota_alone, 1, 20_000),
        ("key, throttle and quota, exact", redis(NonZeroU64::new(1)), whole, 1, 20_000),
        ("key, throttle and quota, exact, 64 tasks", redis(NonZeroU64::new(1)), whole, 64, 200_000),
    ];
    for (name, store, (plan, with_key), tasks, charges) in cases {
        let quota = Arc::new(Quota::open(Config { store, plans: plans() }, &mut getrandom::fill).unwrap());
        let user = Arc::new(User::new(&keys, plan, with_key));
        runtime.block_on(spend(&quota, &user, tasks, 1000));
        let trips = || quota.shared_store().map_or(0, |health| health.calls);
        let (calls, cpu, began) = (trips(), cpu_seconds(), Instant::now());
        runtime.block_on(spend(&quota, &user, tasks, charges));
        let each = |amount: f64| amount / charges as f64;
        let (wall, cpu) = (each(began.elapsed().as_secs_f64() * 1e9), each((cpu_seconds() - cpu) * 1e9));
        println!("{name:<42}{wall:>7.0} ns{cpu:>7.0} ns{:>12.4}", each((trips() - calls) as f64));
    }
}

/// Who charges, and whether the key is checked each time.
struct User {
    keys: Arc<ApiKeys>,
    key: SecretString,
    caller: Arc<Caller>,
    with_key: bool,
}

impl User {
    fn new(keys: &Arc<ApiKeys>, plan: &str, with_key: bool) -> Self {
        let (_, key) = keys.create("bench", plan, None, noon(), &mut getrandom::fill).unwrap();
        let caller = keys.authenticate(key.expose_secret(), noon()).unwrap();
        Self { keys: Arc::clone(keys), key, caller, with_key }
    }

    fn caller(&self, now: Timestamp) -> Arc<Caller> {
        if self.with_key {
            self.keys.authenticate(self.key.expose_secret(), now).unwrap()
        } else {
            Arc::clone(&self.caller)
        }
    }
}

async fn spend(quota: &Arc<Quota>, user: &Arc<User>, tasks: u64, charges: u64) {
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let (quota, user) = (Arc::clone(quota), Arc::clone(user));
        running.spawn(async move {
            let now = noon();
            for _ in 0..charges / tasks {
                quota.reserve(&user.caller(now), 1, now).await.unwrap().commit();
            }
        });
    }
    running.join_all().await;
}

fn noon() -> Timestamp {
    "2026-06-01T12:00:00Z".parse().unwrap()
}

fn plans() -> BTreeMap<auth::PlanName, Plan> {
    let limit = Limit { amount: NonZeroU64::new(AMOUNT).unwrap(), period: Period::Day };
    let quota = Plan { quota: Some(limit), ..Plan::default() };
    // Faster than anything here, so that nobody is refused.
    let throttled = Plan { throttle: Some(Throttle { rate: 1e9, burst: 1_000_000 }), ..quota };
    BTreeMap::from([("quota".into(), quota), ("throttled".into(), throttled)])
}

fn keys(folder: &Path) -> Arc<ApiKeys> {
    let plans = BTreeMap::from(["quota", "throttled"].map(|plan| (plan.into(), Access::All)));
    let (store, pepper) = (folder.join("keys.db"), folder.join("pepper"));
    Arc::new(ApiKeys::open(auth::Config { store, pepper, plans }, &mut getrandom::fill).unwrap())
}

/// A Redis that ends with its owner, however that ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn redis() -> (Server, String) {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/redis/bin/redis-server");
    let program = if ours.exists() { ours } else { "redis-server".into() };
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut server = Command::new(program)
        .args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", "", "--appendonly", "no"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("Ready to accept")), "redis-server does not start");
    (Server(server), format!("redis://{address}"))
}

/// Of this process, the Redis not included. Linux counts in hundredths.
fn cpu_seconds() -> f64 {
    let line = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = line[line.rfind(')').unwrap()..].split_whitespace().skip(12).take(2);
    fields.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}
