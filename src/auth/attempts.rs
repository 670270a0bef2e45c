//! How often somebody has shown a key that is none: counted for each address, and for each key id that was tried.
//!
//! The table has a fixed size, so that guessing takes no memory. Where it is full, the subject that failed longest ago
//! makes room; an attacker who fills it with addresses of its own wins back ten attempts for each.

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::key;

/// Failures in a row, without a quiet [`MINUTE`] between two of them, after which a subject has to wait.
const MOST: u32 = 10;

/// How long it then waits.
const MINUTE: Duration = Duration::from_mins(1);

/// Subjects that share a place in the table, and how many such places there are: 16,384 subjects in 384 KiB.
const WAYS: usize = 4;
const SETS: usize = 4096;

/// An address or a key id, as its hash under a secret of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Subject(u64);

/// Everybody who failed lately.
#[derive(Debug)]
pub(super) struct Attempts {
    opened: Instant,
    secret: RandomState,
    /// Milliseconds after `opened` when the last failure will be a minute old; zero while there was none. Spares those
    /// who have a key the look into the table while nobody fails.
    quiet_from: AtomicU64,
    table: Mutex<Box<[[Slot; WAYS]]>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    subject: Subject,
    failures: u32,
    /// Milliseconds after `opened` when the last failure is a minute old, and all are forgotten.
    forgotten_at: u64,
}

impl Attempts {
    pub(super) fn new() -> Self {
        Self {
            opened: Instant::now(),
            secret: RandomState::new(),
            quiet_from: AtomicU64::new(0),
            table: Mutex::new(vec![[Slot::default(); WAYS]; SETS].into()),
        }
    }

    /// An address. Of version 6 the first half counts: the other half is its owner's to choose.
    pub(super) fn address(&self, address: IpAddr) -> Subject {
        match address.to_canonical() {
            IpAddr::V4(address) => self.subject(("v4", address.to_bits())),
            IpAddr::V6(address) => self.subject(("v6", address.to_bits() >> 64)),
        }
    }

    /// A key id that somebody tried.
    pub(super) fn key(&self, id: &key::Id) -> Subject {
        self.subject(("key", id))
    }

    fn subject(&self, subject: impl Hash) -> Subject {
        Subject(self.secret.hash_one(subject))
    }

    /// How long `subject` has to wait, if it has to.
    pub(super) fn wait(&self, subject: Subject) -> Option<Duration> {
        let quiet_from = self.quiet_from.load(Ordering::Relaxed);
        if quiet_from == 0 {
            return None;
        }
        let now = self.now();
        if quiet_from <= now {
            return None;
        }
        let table = self.table.lock();
        let slot = table[subject.set()].iter().find(|slot| slot.subject == subject)?;
        slot.wait(now)
    }

    /// Counts a failure of `subject`, unless it has to wait: then says how long, and counts nothing, so that who goes on
    /// trying is not shut out for ever.
    pub(super) fn failed(&self, subject: Subject) -> Option<Duration> {
        let now = self.now();
        let mut table = self.table.lock();
        let set = &mut table[subject.set()];
        let known = set.iter().position(|slot| slot.subject == subject);
        let slot = match known {
            Some(index) => &mut set[index],
            None => set.iter_mut().min_by_key(|slot| slot.forgotten_at).expect("a set has four slots"),
        };
        if known.is_none() || slot.forgotten_at <= now {
            *slot = Slot { subject, failures: 0, forgotten_at: now };
        }
        if let Some(wait) = slot.wait(now) {
            return Some(wait);
        }
        slot.failures += 1;
        slot.forgotten_at = now + millis(MINUTE);
        self.quiet_from.store(slot.forgotten_at, Ordering::Relaxed);
        None
    }

    /// Forgets all failures.
    pub(super) fn forgive(&self) {
        self.table.lock().fill([Slot::default(); WAYS]);
        self.quiet_from.store(0, Ordering::Relaxed);
    }

    /// Milliseconds after `opened`, at least one.
    fn now(&self) -> u64 {
        millis(self.opened.elapsed()) + 1
    }
}

impl Subject {
    /// The hash itself, to remember a subject by.
    pub(super) fn to_bits(self) -> u64 {
        self.0
    }

    #[expect(clippy::cast_possible_truncation, reason = "any bits of the hash will do")]
    fn set(self) -> usize {
        self.0 as usize % SETS
    }
}

impl Slot {
    fn wait(&self, now: u64) -> Option<Duration> {
        let is_shut_out = self.failures >= MOST && now < self.forgotten_at;
        is_shut_out.then(|| Duration::from_millis(self.forgotten_at - now))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn address(attempts: &Attempts, number: u32) -> Subject {
        attempts.address(Ipv4Addr::from_bits(number).into())
    }

    /// Fails `tries` times and says how often it was counted.
    fn fail(attempts: &Attempts, subject: Subject, tries: u32) -> u32 {
        (0..tries).filter(|_| attempts.failed(subject).is_none()).map(|_| 1).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn ten_failures_then_a_minute_of_waiting_and_ten_more() {
        let attempts = Attempts::new();
        let (bad, good) = (address(&attempts, 1), address(&attempts, 2));
        assert_eq!(fail(&attempts, bad, 100), 10);
        assert_eq!((attempts.wait(bad), attempts.wait(good)), (Some(MINUTE), None));
        tokio::time::advance(Duration::from_millis(59_999)).await;
        assert_eq!((fail(&attempts, bad, 1), attempts.wait(bad)), (0, Some(Duration::from_millis(1))));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!((attempts.wait(bad), fail(&attempts, bad, 100)), (None, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_minute_forgives_what_was_no_attack() {
        let attempts = Attempts::new();
        let clumsy = address(&attempts, 1);
        for _ in 0..5 {
            assert_eq!(fail(&attempts, clumsy, 9), 9);
            tokio::time::advance(MINUTE).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_addresses_takes_no_more_memory_and_leaves_others_alone() {
        let attempts = Attempts::new();
        let good = address(&attempts, 0);
        for number in 1..100_000 {
            attempts.failed(address(&attempts, number));
        }
        assert_eq!(attempts.table.lock().len() * WAYS, 16_384);
        assert_eq!(attempts.wait(good), None);
    }

    #[test]
    fn half_of_an_ipv6_address_is_its_owners_to_choose() {
        let attempts = Attempts::new();
        let subject = |network: u128, host: u128| attempts.address(Ipv6Addr::from_bits(network << 64 | host).into());
        assert_eq!(subject(7, 1), subject(7, 2));
        assert_ne!(subject(7, 1), subject(8, 1));
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        assert_eq!(attempts.address(mapped.into()), attempts.address(Ipv4Addr::LOCALHOST.into()));
    }
}
