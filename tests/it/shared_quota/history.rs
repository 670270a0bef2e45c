//! Three gateways at once, and whether one counter could have said the same, one request after the other.

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

/// How many try at each gateway at the same time, and how often each does.
const WAYS: u64 = 4;
const TRIES: u64 = 25;

/// What a request was told.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Admitted,
    /// The quota has less left than that.
    Refused,
    /// The store was asked and its answer was late, as happens on a busy machine: it may have held the rows for a while.
    Undecided,
}

/// One request: when it began and when it was answered, on one clock.
#[derive(Clone, Copy, Debug)]
struct Operation {
    began: u64,
    ended: u64,
    rows: u64,
    outcome: Outcome,
}

/// Says what no order of the requests explains in which each takes effect at one moment between its beginning and its
/// answer: admitted if the quota of `amount` has its rows left, refused if it has not, less `aside` rows that may be set
/// aside where others cannot use them.
///
/// Nothing is given back here, so the counter only grows, and one order is the best there is for every request: all that
/// are admitted take effect at once, and all that are refused as late as they can.
fn unexplained(history: &[Operation], amount: u64, aside: u64) -> Option<String> {
    let with = |outcome| history.iter().filter(move |operation| operation.outcome == outcome);
    let rows =
        |operations: &mut dyn Iterator<Item = &Operation>| operations.map(|operation| operation.rows).sum::<u64>();
    let admitted = rows(&mut with(Outcome::Admitted));
    if admitted > amount {
        return Some(format!("{admitted} rows of {amount}"));
    }
    with(Outcome::Refused).find_map(|refused| {
        let not_refused = history.iter().filter(|operation| operation.outcome != Outcome::Refused);
        let used = rows(&mut not_refused.filter(|operation| operation.began <= refused.ended));
        let there = amount.saturating_sub(used + aside);
        (refused.rows <= there).then(|| format!("{refused:?} while {there} rows were left"))
    })
}

/// The same by trying every order.
fn is_explained(rest: &[Operation], amount: u64, used: u64) -> bool {
    let first_end = rest.iter().map(|operation| operation.ended).min();
    first_end.is_none_or(|first_end| {
        (0..rest.len()).filter(|index| rest[*index].began <= first_end).any(|index| {
            let mut rest = rest.to_vec();
            let next = rest.remove(index);
            let fits = used + next.rows <= amount;
            match next.outcome {
                Outcome::Admitted => fits && is_explained(&rest, amount, used + next.rows),
                _ => !fits && is_explained(&rest, amount, used),
            }
        })
    })
}

fn operation(began: u64, ended: u64, rows: u64, outcome: Outcome) -> Operation {
    Operation { began, ended, rows, outcome }
}

#[test]
fn histories_that_no_counter_has_are_told() {
    use Outcome::{Admitted, Refused, Undecided};
    let told = |history: &[Operation], aside| unexplained(history, 100, aside).unwrap_or_default();
    let full = operation(10, 20, 100, Admitted);
    assert_eq!(told(&[full, operation(0, 5, 1, Admitted)], 50), "101 rows of 100");
    assert!(
        told(&[full, operation(0, 9, 1, Refused)], 0).contains("100 rows were left"),
        "refused before it was used up"
    );
    assert_eq!(told(&[full, operation(0, 15, 1, Refused)], 0), "");
    assert_eq!(told(&[full, operation(30, 40, 1, Refused)], 0), "");
    let most = operation(0, 1, 80, Admitted);
    assert!(told(&[most, operation(2, 3, 20, Refused)], 0).contains("20 rows were left"), "there was room");
    assert_eq!(told(&[most, operation(2, 3, 21, Refused)], 0), "");
    assert_eq!(told(&[most, operation(2, 3, 20, Refused)], 1), "", "one was set aside");
    assert_eq!(told(&[most, operation(2, 3, 15, Undecided), operation(4, 5, 6, Refused)], 0), "", "held for a while");
    assert_eq!(told(&[most, operation(2, 3, 15, Undecided), operation(4, 5, 20, Admitted)], 0), "", "and not for ever");
}

proptest! {
    #[test]
    fn what_is_told_is_what_no_order_explains(
        steps in prop::collection::vec((0..12_u64, 0..6_u64, 1..5_u64, any::<bool>()), 0..7),
        amount in 1..12_u64,
    ) {
        let operation = |(began, took, rows, is_admitted)| {
            operation(began, began + took, rows, if is_admitted { Outcome::Admitted } else { Outcome::Refused })
        };
        let history: Vec<_> = steps.into_iter().map(operation).collect();
        prop_assert_eq!(unexplained(&history, amount, 0).is_none(), is_explained(&history, amount, 0));
    }
}

impl Bench {
    /// Asks for up to `most` rows at a time, and notes what became of it.
    async fn record(&self, quota: &Quota, most: u64, clock: Instant, seed: u64) -> Vec<Operation> {
        let nanoseconds = || u64::try_from(clock.elapsed().as_nanos()).unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut history = Vec::new();
        for _ in 0..TRIES {
            let (rows, began) = (random.u64(1..=most), nanoseconds());
            let outcome = match self.reserve(quota, rows).await {
                Ok(charge) => {
                    charge.commit();
                    Outcome::Admitted
                }
                Err(Refusal::Exhausted { .. }) => Outcome::Refused,
                Err(Refusal::StoreDown) => Outcome::Undecided,
                Err(other) => panic!("{other:?}"),
            };
            history.push(operation(began, nanoseconds(), rows, outcome));
        }
        history
    }
}

/// Three times a hundred requests of up to `most` rows for half of what they ask for.
async fn check_history(url: &str, lease: Option<NonZeroU64>, most: u64, seed: u64) {
    let tries = 3 * WAYS * TRIES;
    let bench = Bench::with(url, tries * (1 + most) / 4, lease, OnStoreDown::Closed);
    let clock = Instant::now();
    let mut running = JoinSet::new();
    for (number, quota) in (0..).zip(bench.three().await) {
        for way in 0..WAYS {
            let (bench, quota) = (bench.clone(), Arc::clone(&quota));
            running.spawn(async move { bench.record(&quota, most, clock, seed << 8 | number << 4 | way).await });
        }
    }
    let history = running.join_all().await.concat();
    assert_eq!(history.len() as u64, tries);
    // At each of the other two: a lease, and what was too little for a request that was refused. Without leases and with
    // requests of one row there is neither.
    let lease = lease.map_or(bench.amount / 100, |lease| lease.get() - 1);
    let told = unexplained(&history, bench.amount, 2 * (lease + most - 1));
    assert_eq!(told, None, "seed {seed}, lease {lease}, {most} rows at most: {history:#?}");
}

async fn check_histories(count: u64) {
    let server = Server::start();
    for seed in 0..count {
        for lease in [NonZeroU64::new(1), None] {
            for most in [1, 100] {
                check_history(&server.url(), lease, most, seed).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_counter_explains_what_three_gateways_said() {
    check_histories(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "nightly: 1,200 histories of three gateways, a minute"]
async fn one_counter_explains_what_three_gateways_said_three_hundred_times() {
    check_histories(300).await;
}
