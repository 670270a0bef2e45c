//! What becomes of a key while it is in use: each change takes effect in a running gateway, at one moment for all of its
//! callers, within a second. And guesses, many of them, while somebody with a key goes on.
#![expect(clippy::print_stdout, reason = "what was counted is printed")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use modelgate::auth::{Access, ApiKeys, AuthError, Config, well_formed_id};
use modelgate::clock::Clock;
use secrecy::ExposeSecret as _;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::site::{Client, Gate, Site, eventually};

const NOW: Timestamp = Timestamp::constant(1_780_000_000, 0);

/// `body` with its published checksum: CRC-32 in base 62, six digits.
fn with_checksum(body: &str) -> String {
    let alphabet: Vec<_> = ('0'..='9').chain('A'..='Z').chain('a'..='z').collect();
    let crc = crc32fast::hash(body.as_bytes()) as usize;
    let digits = (0..6).rev().map(|place| alphabet[crc / 62_usize.pow(place) % 62]);
    body.chars().chain(digits).collect()
}

/// A well-formed key that nobody made.
fn any_key(random: &mut fastrand::Rng) -> String {
    let letters = |random: &mut fastrand::Rng, count| (0..count).map(|_| random.alphanumeric()).collect::<String>();
    let (id, secret) = (letters(random, 10), letters(random, 32));
    with_checksum(&format!("mg_live_{id}_{secret}"))
}

/// A store that nobody can get at, and its keys: whoever asks it waits for ever, so that what answers did not ask.
struct Locked {
    keys: ApiKeys,
    good: String,
    _lock: rusqlite::Connection,
    _folder: tempfile::TempDir,
}

impl Locked {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store: PathBuf = folder.path().join("store.db");
        let plans = BTreeMap::from([("open".into(), Access::All)]);
        let config = Config { store: store.clone(), pepper: folder.path().join("pepper"), plans };
        let keys = ApiKeys::open(config, &mut getrandom::fill).unwrap();
        let (_, good) = keys.create("app", "open", None, NOW, &mut getrandom::fill).unwrap();
        let lock = rusqlite::Connection::open(store).unwrap();
        lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
        Self { keys, good: good.expose_secret().to_owned(), _lock: lock, _folder: folder }
    }
}

/// Every slip of one letter, every swap of neighbours and every cut of `count` keys is refused, by its form alone.
fn check_slips(count: usize) {
    let locked = Locked::new();
    let mut random = fastrand::Rng::with_seed(2);
    let mut refused = 0_u64;
    let mut check = |text: &str| {
        assert_eq!(well_formed_id(text), None, "{text}");
        assert_eq!(locked.keys.authenticate(text, NOW).unwrap_err(), AuthError::Unknown);
        refused += 1;
    };
    for _ in 0..count {
        let key = any_key(&mut random).into_bytes();
        assert!(well_formed_id(str::from_utf8(&key).unwrap()).is_some(), "only what is changed is refused");
        for at in 0..key.len() {
            check(str::from_utf8(&key[..at]).unwrap());
            let mut slip = key.clone();
            for letter in ('0'..='9').chain('A'..='Z').chain('a'..='z').chain(['_']) {
                slip[at] = u8::try_from(letter).unwrap();
                if slip[at] != key[at] {
                    check(str::from_utf8(&slip).unwrap());
                }
            }
            let mut swapped = key.clone();
            swapped.swap(at, (at + 1) % key.len());
            if at + 1 < key.len() && swapped != key {
                check(str::from_utf8(&swapped).unwrap());
            }
        }
        let random_text: String = (0..57).map(|_| random.alphanumeric()).collect();
        check(&random_text);
        check(&format!("mg_live_{}_{}", &random_text[8..18], &random_text[19..]));
    }
    assert!(locked.keys.authenticate(&locked.good, NOW).is_ok());
    println!("{refused} texts that are nearly keys were refused without the store, of {count} keys");
}

#[test]
fn what_is_nearly_a_key_is_refused_without_the_store() {
    check_slips(20);
}

#[test]
#[ignore = "nightly: every slip of 10,000 keys, half a minute"]
fn what_is_nearly_one_of_ten_thousand_keys_is_refused_without_the_store() {
    check_slips(10_000);
}

/// `count` guesses from so many addresses, each at another key, while somebody with a key asks once in twenty guesses.
fn check_guesses(count: u32, addresses: u32) {
    let locked = Locked::new();
    let (home, mut random) = (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), fastrand::Rng::with_seed(3));
    let mut checked = BTreeMap::<IpAddr, u32>::new();
    let started = Instant::now();
    for guess in 0..count {
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + guess % addresses));
        match locked.keys.admit(&any_key(&mut random), address, NOW).unwrap_err() {
            AuthError::Unknown => *checked.entry(address).or_default() += 1,
            AuthError::Throttled { retry_after } => assert!(retry_after <= Duration::from_mins(1)),
            other => panic!("{other}"),
        }
        if guess % 20 == 0 {
            assert!(locked.keys.admit(&locked.good, home, NOW).is_ok(), "after {guess} guesses");
        }
    }
    let minutes = u32::try_from(started.elapsed().as_secs() / 60).unwrap() + 1;
    assert!(checked.values().all(|checked| *checked <= 10 * minutes), "{checked:?}");
    println!("of {count} guesses from {addresses} addresses {} were looked at", checked.values().sum::<u32>());
}

#[tokio::test]
async fn guesses_at_many_keys_are_looked_at_ten_times_an_address_and_disturb_nobody() {
    check_guesses(5000, 1);
    check_guesses(5000, 200);
}

#[tokio::test]
#[ignore = "nightly: 100,000 guesses from one address and from 200, a minute"]
async fn a_hundred_thousand_guesses_are_looked_at_ten_times_an_address_and_disturb_nobody() {
    check_guesses(100_000, 1);
    check_guesses(100_000, 200);
}

/// Within how long a change must work here.
const EFFECTIVE: Duration = Duration::from_secs(1);

/// A gateway with the model `sum`, and its keys as the command line has them.
async fn serving() -> (Site, Gate, ApiKeys) {
    let mut site = Site::new("[plans.open]\n[[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n");
    site.register_sum("sum", 1, 0.0);
    site.promote("sum", 1);
    let gate = site.start("open").await;
    gate.serves("sum", 1).await;
    let keys = ApiKeys::open(site.config().auth, &mut getrandom::fill).unwrap();
    (site, gate, keys)
}

async fn ask(client: &Client) -> u16 {
    client.predict("sum", &json!({"a": 1, "b": 2, "c": 3})).await.status
}

/// A key with its id that the gateway knows already.
async fn known_key(gate: &Gate, keys: &ApiKeys) -> (String, Client) {
    let (record, key) = keys.create("app", "open", None, Clock::system().now(), &mut getrandom::fill).unwrap();
    let client = gate.client_with(key.expose_secret().to_owned());
    eventually("the gateway to know the key", async || ask(&client).await == 200).await;
    (record.id.to_string(), client)
}

/// One answer: when its request was sent, when it came, and its status.
type Heard = (Instant, Instant, u16);

/// Has 64 callers ask until `done`, and count their answers; all that they heard.
fn load(client: &Client, done: &Arc<AtomicBool>, answers: &Arc<AtomicU64>) -> JoinSet<Vec<Heard>> {
    let mut callers = JoinSet::new();
    for _ in 0..64 {
        let (client, done, answers) = (client.clone(), Arc::clone(done), Arc::clone(answers));
        callers.spawn(async move {
            let mut heard = Vec::new();
            while !done.load(Ordering::SeqCst) {
                let sent = Instant::now();
                let status = ask(&client).await;
                heard.push((sent, Instant::now(), status));
                answers.fetch_add(1, Ordering::SeqCst);
            }
            heard
        });
    }
    callers
}

pub(crate) type Change = fn(&ApiKeys, &str);

/// Each way in which a key loses what it had, with the status it is refused with.
pub(crate) const CHANGES: [(&str, u16, Change); 4] = [
    ("revoke", 401, |keys, id| drop(keys.revoke(id, Clock::system().now()).unwrap())),
    ("disable", 403, |keys, id| drop(keys.disable(id, Clock::system().now()).unwrap())),
    ("expire", 401, |keys, id| drop(keys.expire(id, Some(Clock::system().now())).unwrap())),
    ("scope", 403, |keys, id| drop(keys.set_scopes(id, "usage:read".parse().unwrap()).unwrap())),
];

/// Changes a key under 64-way load. All callers are admitted before it and refused after it; who asks after anybody was
/// refused, or when `bound` has passed, is admitted no more.
pub(crate) async fn check_change(
    gate: &Gate,
    keys: &ApiKeys,
    (what, refusal, change): (&str, u16, Change),
    bound: Option<Duration>,
) {
    let (id, client) = known_key(gate, keys).await;
    let (done, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers = load(&client, &done, &answers);
    let some_load = async || {
        let end = answers.load(Ordering::SeqCst) + 300;
        eventually("some load", async || answers.load(Ordering::SeqCst) > end).await;
    };
    some_load().await;
    change(keys, &id);
    let changed = Instant::now();
    eventually("the change to work", async || ask(&client).await == refusal).await;
    some_load().await;
    done.store(true, Ordering::SeqCst);
    let heard: Vec<Heard> = callers.join_all().await.concat();
    let count = |status| heard.iter().filter(|(_, _, heard)| *heard == status).count();
    let (admitted, refused) = (count(200), count(refusal));
    assert_eq!(admitted + refused, heard.len(), "{what}: every caller is admitted or refused, never failed");
    assert!(admitted > 100 && refused > 100, "{what}: {admitted} admitted and {refused} refused prove nothing");
    let first = heard.iter().filter(|(_, _, status)| *status == refusal).map(|(_, came, _)| *came).min().unwrap();
    let late = heard.iter().filter(|(sent, _, status)| *status == 200 && *sent > first).count();
    assert_eq!(late, 0, "{what}: admitted after another was refused");
    let last = heard.iter().filter(|(_, _, status)| *status == 200).map(|(sent, ..)| *sent).max().unwrap();
    let took = last.saturating_duration_since(changed);
    println!("{what} under 64-way load: {admitted} admitted, {refused} refused, the last {took:?} after the change");
    assert!(bound.is_none_or(|bound| took <= bound), "{what} took {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_works_for_all_callers_at_one_moment() {
    let (_site, gate, keys) = serving().await;
    for change in CHANGES {
        check_change(&gate, &keys, change, None).await;
    }
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "nightly: each change of a key ten times under load, half a minute"]
async fn a_change_works_within_a_second_ten_times_over() {
    let (_site, gate, keys) = serving().await;
    for change in CHANGES.repeat(10) {
        check_change(&gate, &keys, change, Some(EFFECTIVE)).await;
    }
    gate.stop().await;
}

/// Rotates a key under load of both: to the end of the overlap both are admitted, from then on the new one alone.
async fn check_rotation(overlap: SignedDuration) {
    let (_site, gate, keys) = serving().await;
    let (id, old) = known_key(&gate, &keys).await;
    let clock = Clock::system();
    let (record, _, key) = keys.rotate(&id, overlap, clock.now(), &mut getrandom::fill).unwrap();
    let end = record.expires.unwrap();
    let new = gate.client_with(key.expose_secret().to_owned());
    eventually("the gateway to know the successor", async || ask(&new).await == 200).await;
    let mut counts = [0_u64; 3];
    // Until the old key was refused as often as this.
    while counts[2] < 50 {
        let before = clock.now();
        let (of_old, of_new) = tokio::join!(ask(&old), ask(&new));
        let after = clock.now();
        assert_eq!(of_new, 200, "the new key works at all times");
        match of_old {
            200 => assert!(before < end, "admitted after the overlap"),
            401 => assert!(after >= end, "refused in the overlap"),
            other => panic!("{other}"),
        }
        counts[usize::from(of_old == 401) * 2] += 1;
        counts[1] += 1;
    }
    println!("{} of the old key in the overlap, {} of the new one, {} refused", counts[0], counts[1], counts[2]);
    assert!(counts[0] > 20, "the overlap was over before it began");
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_keys_work_in_the_overlap_and_then_the_new_one_alone() {
    check_rotation(SignedDuration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "nightly: an overlap of twenty seconds under load"]
async fn both_keys_work_in_a_long_overlap_and_then_the_new_one_alone() {
    check_rotation(SignedDuration::from_secs(20)).await;
}
