//! One key's quota in memory: what the store has given out, and what is left here of that.
//!
//! The store's row says how much of a window was given out, to this process as leases and to others. A lease is used up
//! here without the store; `given - left` is what was used. Only the store's thread changes the window and `given`,
//! so a charge never has to wait for a disk with the lock held.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::calendar::{Window, until};
use super::{Limit, Standing};
use crate::auth::KeyId;

/// A lease is a hundredth of the amount, so that a crash loses at most one percent …
const LEASE_FRACTION: u64 = 100;
/// … and never more than this.
const LEASE_MAX: u64 = 1000;

/// A lease that was not used for so long goes back.
const IDLE: SignedDuration = SignedDuration::from_secs(60);

/// One key's quota.
#[derive(Debug)]
pub(super) struct Counter {
    pub(super) key_id: KeyId,
    pub(super) limit: Limit,
    ledger: Mutex<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    /// `None` until the store was asked.
    window: Option<Window>,
    /// What the store had given out of this window, ours included, when it was last asked.
    given: u64,
    /// What of that is ours and not used.
    left: u64,
    /// Whether the store's thread was asked for more and has not answered.
    topping_up: bool,
    last_used: Timestamp,
}

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Balance {
    pub(super) window: Window,
    pub(super) used: u64,
    pub(super) remaining: u64,
}

/// What became of a charge in memory.
#[derive(Debug)]
pub(super) enum Attempt {
    /// Taken. `low`: the lease is nearly used up; who sees this asks the store for more.
    Held { hold: Hold, balance: Balance, low: bool },
    /// The window has less left than that.
    Exhausted(Balance),
    /// The store must be asked.
    Short,
}

/// What the store's row says after it was asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub(super) window: Window,
    /// What is given out of the window, this grant included.
    pub(super) given: u64,
    /// What is given out now.
    pub(super) granted: u64,
}

impl Counter {
    pub(super) fn new(key_id: KeyId, limit: Limit) -> Self {
        let ledger = Ledger { window: None, given: 0, left: 0, topping_up: false, last_used: Timestamp::MIN };
        Self { key_id, limit, ledger: Mutex::new(ledger) }
    }

    pub(super) fn amount(&self) -> u64 {
        self.limit.amount.get()
    }

    /// How much is asked of the store at a time.
    pub(super) fn lease(&self) -> u64 {
        (self.amount() / LEASE_FRACTION).clamp(1, LEASE_MAX)
    }

    /// Takes `units` if that can be decided without the store. A window that the store once called used up stays so
    /// here, but for what is given back here: who is exhausted and keeps asking costs no disk access.
    pub(super) fn charge(self: &Arc<Self>, units: u64, now: Timestamp) -> Attempt {
        let mut ledger = self.ledger.lock();
        let Some(balance) = self.current(&ledger, now) else { return Attempt::Short };
        if balance.remaining < units {
            return Attempt::Exhausted(balance);
        }
        if ledger.left < units {
            return Attempt::Short;
        }
        ledger.left -= units;
        ledger.last_used = now;
        let low = !ledger.topping_up && ledger.left < self.lease() / 2 && ledger.given < self.amount();
        ledger.topping_up |= low;
        let balance = self.balance_of(&ledger, balance.window);
        Attempt::Held { hold: Hold { counter: Arc::clone(self), window: balance.window, units }, balance, low }
    }

    /// Where the key stands at `now`, if the store was asked in this window.
    pub(super) fn balance(&self, now: Timestamp) -> Option<Balance> {
        self.current(&self.ledger.lock(), now)
    }

    fn current(&self, ledger: &Ledger, now: Timestamp) -> Option<Balance> {
        let window = ledger.window?;
        let seen = self.limit.period.window(now);
        (next_window(window, seen) == window).then(|| self.balance_of(ledger, window))
    }

    fn balance_of(&self, ledger: &Ledger, window: Window) -> Balance {
        Balance {
            window,
            used: ledger.given.saturating_sub(ledger.left),
            remaining: self.amount().saturating_sub(ledger.given) + ledger.left,
        }
    }

    /// The window last heard of, what was given out of it, and what is left here.
    pub(super) fn known(&self) -> Option<(Window, u64, u64)> {
        let ledger = self.ledger.lock();
        ledger.window.map(|window| (window, ledger.given, ledger.left))
    }

    /// Books `grant` and takes each of `charges` from it, in order, as far as there is enough.
    pub(super) fn receive(
        self: &Arc<Self>,
        grant: Grant,
        charges: impl Iterator<Item = (u64, Timestamp)>,
    ) -> (Balance, Vec<Option<Hold>>) {
        let mut ledger = self.ledger.lock();
        if ledger.window.is_none_or(|window| window < grant.window) {
            ledger.left = 0;
        }
        ledger.window = Some(grant.window);
        ledger.given = grant.given;
        ledger.left += grant.granted;
        ledger.topping_up = false;
        let holds = charges.map(|(units, now)| {
            ledger.left = ledger.left.checked_sub(units)?;
            ledger.last_used = now;
            Some(Hold { counter: Arc::clone(self), window: grant.window, units })
        });
        let holds = holds.collect();
        (self.balance_of(&ledger, grant.window), holds)
    }

    /// The store could not be asked for more; the next charge may ask again.
    pub(super) fn topped_up_in_vain(&self) {
        self.ledger.lock().topping_up = false;
    }

    /// Whether the lease is of no use here any more.
    pub(super) fn is_idle(&self, now: Timestamp) -> bool {
        now.duration_since(self.ledger.lock().last_used) >= IDLE
    }

    /// Whether there is a lease.
    pub(super) fn has_lease(&self) -> bool {
        self.ledger.lock().left > 0
    }

    /// Takes what is left of the lease out of the ledger, to give it back to the store.
    pub(super) fn return_lease(&self) -> Option<(Window, u64)> {
        let mut ledger = self.ledger.lock();
        let lease = std::mem::take(&mut ledger.left);
        ledger.given = ledger.given.saturating_sub(lease);
        ledger.window.filter(|_| lease > 0).map(|window| (window, lease))
    }

    /// Puts back a lease that the store did not take.
    pub(super) fn keep_lease(&self, lease: u64) {
        let mut ledger = self.ledger.lock();
        ledger.given += lease;
        ledger.left += lease;
    }

    /// `balance` in the form that callers see.
    pub(super) fn standing(&self, balance: Balance, now: Timestamp) -> Standing {
        let period = self.limit.period;
        Standing {
            name: period.name(),
            limit: self.amount(),
            window: period.length(balance.window),
            remaining: balance.remaining,
            resets_in: until(now, period.end(balance.window)),
        }
    }
}

/// The window to count in, when `current` was counted in and the clock says `seen`.
///
/// A clock that steps back a little, even over midnight, does not open a past window again. One that steps back further
/// was wrong before; following it keeps a key from being locked out until the wrong date comes. The count goes with
/// it, so nothing is won by a jump to and fro but the one window jumped to.
pub(super) fn next_window(current: Window, seen: Window) -> Window {
    if current.saturating_sub(1) == seen { current } else { seen }
}

/// Units that are taken, until they are kept. Dropped, they go back.
#[derive(Debug)]
pub(super) struct Hold {
    counter: Arc<Counter>,
    window: Window,
    units: u64,
}

impl Hold {
    /// They are used.
    pub(super) fn keep(mut self) {
        self.units = 0;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.units > 0 {
            let mut ledger = self.counter.ledger.lock();
            // What was used in a window that has passed is not given back to the next.
            if ledger.window == Some(self.window) {
                ledger.left += self.units;
            }
        }
    }
}
