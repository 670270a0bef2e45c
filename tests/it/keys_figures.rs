//! What keys and quotas cost, and that they are exact at full size. Too long for every run:
//! `cargo test --release --test it keys_figures:: -- --ignored --nocapture --test-threads 1`

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use modelgate::auth::{self, Access, ApiKeys, Caller, Plans};
use modelgate::quota::{self, Limit, Period, Plan, Quota, Throttle};
use secrecy::ExposeSecret as _;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::Instant;

const NOW: Timestamp = Timestamp::constant(1_780_000_000, 0);

fn keys(folder: &Path) -> ApiKeys {
    let plans = BTreeMap::from([("test".into(), Access::All)]);
    let config = auth::Config { store: folder.join("store.db"), pepper: folder.join("pepper"), plans };
    ApiKeys::open(config, &mut getrandom::fill).unwrap()
}

fn open(folder: &Path, throttle: Option<Throttle>, amount: u64) -> Quota {
    let limit = Limit { amount: NonZeroU64::new(amount).unwrap(), period: Period::Day };
    let plan = Plan { throttle, quota: Some(limit), ..Plan::default() };
    let plans = BTreeMap::from([("test".into(), plan)]);
    Quota::open(quota::Config { store: quota::Location::File(folder.join("store.db")), plans }, &mut getrandom::fill)
        .unwrap()
}

fn caller(keys: &ApiKeys) -> (String, Arc<Caller>) {
    let (_, key) = keys.create("app", "test", None, NOW, &mut getrandom::fill).unwrap();
    let key = key.expose_secret().to_owned();
    let caller = keys.authenticate(&key, NOW).unwrap();
    (key, caller)
}

/// Of 64 clients with 500 tries each, how many requests are admitted.
async fn admitted(quota: &Arc<Quota>, caller: &Arc<Caller>) -> u64 {
    let mut clients = JoinSet::new();
    for _ in 0..64 {
        let (quota, caller) = (Arc::clone(quota), Arc::clone(caller));
        clients.spawn(async move {
            let mut admitted = 0;
            for _ in 0..500 {
                if let Ok(charge) = quota.reserve(&caller, 1, NOW).await {
                    charge.commit();
                    admitted += 1;
                }
            }
            admitted
        });
    }
    clients.join_all().await.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 64)]
#[ignore = "nightly: twenty repeats of 32,000 requests"]
async fn a_quota_of_ten_thousand_admits_ten_thousand_twenty_times() {
    for _ in 0..20 {
        let folder = TempDir::new().unwrap();
        let (_, caller) = caller(&keys(folder.path()));
        let quota = Arc::new(open(folder.path(), None, 10_000));
        assert_eq!(admitted(&quota, &caller).await, 10_000);
        assert_eq!(quota.usage(&caller, NOW).await.unwrap().used, Some(10_000));
    }
    println!("20 × 32,000 requests of 64 clients on a quota of 10,000: exactly 10,000 admitted each time");
}

#[tokio::test]
#[ignore = "figure: what key and quota cost a request"]
async fn the_cost_of_key_and_quota_on_the_request_path() {
    const ROUNDS: u32 = 200_000;
    let folder = TempDir::new().unwrap();
    let keys = keys(folder.path());
    let (key, _) = caller(&keys);
    let throttle = Throttle { rate: 1e6, burst: 1_000_000 };
    let quota = open(folder.path(), Some(throttle), 1_000_000_000);
    let address = [10, 0, 0, 1].into();
    let time = |name: &str, started: Instant| println!("{name}: {:?} a request", started.elapsed() / ROUNDS);

    let started = Instant::now();
    for _ in 0..ROUNDS {
        black_box(keys.admit(black_box(&key), address, NOW)).unwrap();
    }
    time("key", started);
    let started = Instant::now();
    for _ in 0..ROUNDS {
        let caller = keys.admit(black_box(&key), address, NOW).unwrap();
        let _place = quota.enter(&caller, NOW).unwrap();
        quota.reserve(&caller, 1, NOW).await.unwrap().commit();
        quota.tally(&caller, "credit-score", 1);
    }
    time("key, concurrency, throttle, quota and tally", started);
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
#[ignore = "figure: a million keys: look-up, memory, start"]
fn a_million_keys_take_so_much_memory_and_so_long_to_look_up() {
    const KEYS: u32 = 1_000_000;
    let folder = TempDir::new().unwrap();
    let gateway = keys(folder.path());
    let csv: String = std::iter::once("Name,Key\n".to_owned())
        .chain((0..KEYS).map(|number| format!("customer {number},api-gateway-key-{number:020}\n")))
        .collect();
    let plans = Plans { otherwise: Some("test".into()), ..Plans::default() };
    let started = Instant::now();
    // Another process imports, as `modelgate keys import` does.
    keys(folder.path()).import(csv.as_bytes(), &plans, NOW, &mut getrandom::fill).unwrap();
    println!("{KEYS} keys imported in {:?}", started.elapsed());
    drop(csv);
    let before = resident();
    let started = Instant::now();
    gateway.refresh_once().unwrap();
    println!("read by a gateway in {:?}; {} bytes a key", started.elapsed(), (resident() - before) / u64::from(KEYS));
    let texts: Vec<_> = (0..KEYS).step_by(7).map(|number| format!("api-gateway-key-{number:020}")).collect();
    let started = Instant::now();
    for key in &texts {
        assert!(gateway.authenticate(key, NOW).is_ok());
    }
    println!("looked up in {:?} each", started.elapsed() / u32::try_from(texts.len()).unwrap());
    let strangers: Vec<_> = (0..100_000).map(|number| format!("api-gateway-KEY-{number:020}")).collect();
    let started = Instant::now();
    for key in &strangers {
        assert!(gateway.authenticate(key, NOW).is_err());
    }
    println!("refused in {:?} each", started.elapsed() / u32::try_from(strangers.len()).unwrap());
    drop(gateway);
    let started = Instant::now();
    let gateway = keys(folder.path());
    println!("opened at the start of a gateway in {:?}", started.elapsed());
    let file = fs::metadata(folder.path().join("store.db")).unwrap().len();
    println!("{} bytes a key on disk", file / u64::from(KEYS));
    assert!(gateway.authenticate(&texts[0], NOW).is_ok());
}
