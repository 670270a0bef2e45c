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

/// Welch's t of two samples.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn welch_t(a: &[f64], b: &[f64]) -> f64 {
    let moments = |sample: &[f64]| {
        let count = sample.len() as f64;
        let mean = sample.iter().sum::<f64>() / count;
        (mean, sample.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0) / count)
    };
    let ((mean_a, error_a), (mean_b, error_b)) = (moments(a), moments(b));
    (mean_a - mean_b) / (error_a + error_b).sqrt()
}

/// `secret` with another letter at `at`, and the checksum that then belongs to it.
fn forged(secret: &str, at: usize) -> String {
    let alphabet: Vec<char> = ('0'..='9').chain('A'..='Z').chain('a'..='z').collect();
    let mut body: Vec<char> = secret[..51].chars().collect();
    body[at] = if body[at] == 'x' { 'y' } else { 'x' };
    let body: String = body.into_iter().collect();
    let crc = crc32fast::hash(body.as_bytes()) as usize;
    let digits = (0..6).rev().map(|place| alphabet[crc / 62_usize.pow(place) % 62]);
    body.chars().chain(digits).collect()
}

/// The pieces of a distribution that are compared, by the share of the fastest of all: interrupts and cold caches are in
/// the rest, and would hide a difference of a few nanoseconds.
const CROPS: [f64; 4] = [0.5, 0.8, 0.9, 0.95];

/// The t of two samples that is farthest from zero, of those below each crop of both together.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a few millions"
)]
fn worst_t(a: &[f64], b: &[f64]) -> f64 {
    let mut both = [a, b].concat();
    both.sort_unstable_by(f64::total_cmp);
    let below = |limit: f64, sample: &[f64]| sample.iter().copied().filter(|time| *time <= limit).collect::<Vec<_>>();
    let ts = CROPS.map(|share| {
        let limit = both[(both.len() as f64 * share) as usize];
        welch_t(&below(limit, a), &below(limit, b))
    });
    ts.into_iter().max_by(|a, b| a.abs().total_cmp(&b.abs())).expect("there are crops")
}

/// So many verifications to one look at the clock: one alone takes hardly longer than the look.
const BATCH: usize = 16;

/// Nanoseconds that a verification of each text took, `rounds` times each and in random order, so that whatever changes
/// on the machine meanwhile changes for all of them.
fn times(keys: &ApiKeys, texts: &[String], rounds: usize) -> Vec<Vec<f64>> {
    let mut times = vec![Vec::with_capacity(rounds / BATCH); texts.len()];
    let mut order: Vec<usize> = (0..texts.len()).collect();
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..rounds / BATCH {
        random.shuffle(&mut order);
        for &case in &order {
            let started = Instant::now();
            for _ in 0..BATCH {
                let refused = black_box(keys.authenticate(black_box(&texts[case]), NOW)).is_err();
                assert!(refused);
            }
            times[case].push(started.elapsed().as_secs_f64() * 1e9 / f64::from(u8::try_from(BATCH).unwrap()));
        }
    }
    times
}

#[test]
#[ignore = "figure: a million verifications each of keys that are wrong in four ways"]
fn the_time_of_a_refusal_does_not_tell_what_was_wrong() {
    const ROUNDS: usize = 1_000_000;
    let folder = TempDir::new().unwrap();
    let keys = keys(folder.path());
    let (key, _) = caller(&keys);
    let (disabled, id) = caller(&keys);
    keys.disable(&id.key_id, NOW).unwrap();
    let names =
        ["unknown id", "unknown id, another", "wrong from the first letter", "wrong in the last letter", "disabled"];
    let texts = [forged(&key, 9), forged(&key, 12), forged(&key, 19), forged(&key, 50), disabled];
    times(&keys, &texts, ROUNDS / 10);
    let times = times(&keys, &texts, ROUNDS);
    let mut worst = 0.0_f64;
    for (i, first) in times.iter().enumerate() {
        let mut sorted = first.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        println!("{}: median {:.1} ns", names[i], sorted[sorted.len() / 2]);
        for (j, second) in times.iter().enumerate().skip(i + 1) {
            let t = worst_t(first, second);
            println!("  against {}: t = {t:.2}", names[j]);
            worst = worst.max(t.abs());
        }
    }
    println!("the farthest t from zero: {worst:.2}");
    // Which letters of a secret are right is the one thing that could be found out letter by letter.
    assert!(worst_t(&times[2], &times[3]).abs() < 4.5, "how much of a secret is right shows in the time");
}
