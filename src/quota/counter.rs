//! One key's quota in memory: what the store has given out, and what is left here of that.
//!
//! The store's row says how much of a window was given out, to this process as leases and to others. A lease is used up
//! here without the store; `given - left` is what was used. Only the store's thread changes the window and `given`,
//! so a charge never has to wait for a disk with the lock held.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::calendar::{Calendar, Window, until};
use super::{Limit, Standing};
use crate::auth::KeyId;

/// A lease is a hundredth of the amount, so that a crash loses at most one percent …
const LEASE_FRACTION: u64 = 100;
/// … and never more than this.
const LEASE_MAX: u64 = 1000;

/// A lease that was not used for so long goes back.
const IDLE: SignedDuration = SignedDuration::from_secs(60);

/// How long a shared store's word that a window is used up is taken for true: other gateways give leases back.
const USED_UP_FOR: Duration = Duration::from_secs(1);

/// We end a window up to a round trip before the store does. Who forgot it must not ask about it again.
const SURELY_OVER: Duration = Duration::from_secs(1);

/// How a store gives a quota out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// How much is asked of the store at a time.
    lease: u64,
    /// With less than this left, more is asked for.
    low: u64,
    idle: SignedDuration,
    windows: Windows,
}

/// By whose clock a window ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Windows {
    /// This gateway's: nobody else counts.
    Ours,
    /// The store's: gateways whose clocks differ count in the same window.
    TheStores,
}

/// One key's quota.
#[derive(Debug)]
pub(super) struct Counter {
    pub(super) key_id: KeyId,
    pub(super) limit: Limit,
    pub(super) calendar: Calendar,
    terms: Terms,
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
    /// What only counts with a shared store.
    shared: Shares,
}

/// What a gateway knows of its part in a window that it shares.
#[derive(Clone, Copy, Debug, Default)]
struct Shares {
    /// When the window ends, on our monotonic clock; never later than by the store's.
    ends: Option<Instant>,
    /// When the store last answered.
    told: Option<Instant>,
    /// What this gateway has: what it used of the window, and what is left.
    held: u64,
    /// What of that the store knows of.
    confirmed: u64,
    /// What of it was lent while the store could not be asked.
    lent: u64,
    /// The store's connection that the last answer came over.
    connection: u64,
    /// Whether a call was not answered, so that the store may have given more than we know.
    unsure: bool,
}

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Balance {
    pub(super) window: Window,
    pub(super) used: u64,
    pub(super) remaining: u64,
    /// When the window ends, where that is by the store's clock.
    ends: Option<Instant>,
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
    /// What a shared store says besides.
    pub(super) shared: Option<Confirmed>,
}

/// What a shared store knows of this gateway's part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confirmed {
    /// What this gateway has of the window.
    pub(super) held: u64,
    pub(super) ends: Instant,
    pub(super) connection: u64,
}

/// What a shared store is told of this gateway's part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    /// `None` where the store has not said which it is.
    pub(super) window: Option<Window>,
    pub(super) confirmed: u64,
    pub(super) held: u64,
    /// What all gateways have, as the store last said.
    pub(super) seen: u64,
    pub(super) left: u64,
}

impl Terms {
    /// The embedded store's: asking it costs a write to the disk.
    pub(super) fn embedded(limit: Limit) -> Self {
        let lease = hundredth(limit);
        Self { lease, low: lease / 2, idle: IDLE, windows: Windows::Ours }
    }

    /// A shared store's. With a lease of one every request asks, and what it gives back is soon there for others.
    pub(super) fn shared(limit: Limit, lease: Option<NonZeroU64>) -> Self {
        let lease = lease.map_or_else(|| hundredth(limit), NonZeroU64::get);
        let idle = if lease == 1 { SignedDuration::ZERO } else { IDLE };
        // Late, because every question is a round trip; an answer takes a fraction of a millisecond.
        Self { lease, low: lease / 10, idle, windows: Windows::TheStores }
    }
}

/// A lease of the usual size.
pub(super) fn hundredth(limit: Limit) -> u64 {
    (limit.amount.get() / LEASE_FRACTION).clamp(1, LEASE_MAX)
}

impl Counter {
    pub(super) fn new(key_id: KeyId, limit: Limit, offset: Duration, terms: Terms) -> Self {
        let calendar = Calendar { period: limit.period, offset };
        let ledger = Ledger {
            window: None,
            given: 0,
            left: 0,
            topping_up: false,
            last_used: Timestamp::MIN,
            shared: Shares::default(),
        };
        Self { key_id, limit, calendar, terms, ledger: Mutex::new(ledger) }
    }

    pub(super) fn amount(&self) -> u64 {
        self.limit.amount.get()
    }

    /// How much is asked of the store at a time.
    pub(super) fn lease(&self) -> u64 {
        self.terms.lease
    }

    /// Takes `units` if that can be decided without the store. A window that the store once called used up stays so
    /// here, but for what is given back here: who is exhausted and keeps asking costs no disk access.
    pub(super) fn charge(self: &Arc<Self>, units: u64, now: Timestamp) -> Attempt {
        let mut ledger = self.ledger.lock();
        let Some(balance) = self.current(&ledger, now) else { return Attempt::Short };
        if balance.remaining < units {
            let outdated = ledger.shared.told.is_some_and(|told| told.elapsed() >= USED_UP_FOR);
            return if outdated { Attempt::Short } else { Attempt::Exhausted(balance) };
        }
        if ledger.left < units {
            return Attempt::Short;
        }
        ledger.left -= units;
        ledger.last_used = now;
        let low = !ledger.topping_up && ledger.left < self.terms.low && ledger.given < self.amount();
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
        let is_current = match self.terms.windows {
            Windows::Ours => next_window(window, self.calendar.window(now)) == window,
            Windows::TheStores => ledger.shared.ends.is_some_and(|ends| Instant::now() < ends),
        };
        is_current.then(|| self.balance_of(ledger, window))
    }

    fn balance_of(&self, ledger: &Ledger, window: Window) -> Balance {
        Balance {
            window,
            used: ledger.given.saturating_sub(ledger.left),
            remaining: self.amount().saturating_sub(ledger.given) + ledger.left,
            ends: ledger.shared.ends,
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
        match grant.shared {
            None => ledger.book(grant),
            Some(confirmed) => ledger.book_share(grant, confirmed),
        }
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
        now.duration_since(self.ledger.lock().last_used) >= self.terms.idle
    }

    /// Whether asking the store again would tell all that is known here. A share is remembered until its window ends,
    /// for a store that loses its memory.
    pub(super) fn is_forgettable(&self) -> bool {
        let ledger = self.ledger.lock();
        let Shares { held, unsure, ends, .. } = ledger.shared;
        let is_over = ends.is_none_or(|ends| Instant::now() > ends + SURELY_OVER);
        let is_remembered = (held > 0 || unsure) && !is_over;
        ledger.left == 0 && !is_remembered
    }

    /// Whether a settlement with a shared store has something to do here.
    pub(super) fn is_due(&self, connection: u64, now: Timestamp) -> bool {
        let rests = self.is_idle(now) && self.ledger.lock().left > 0;
        rests || self.is_unconfirmed(connection)
    }

    /// Whether the store should hear of this: it has not confirmed everything, or was connected anew and may have
    /// forgotten.
    pub(super) fn is_unconfirmed(&self, connection: u64) -> bool {
        let shares = self.ledger.lock().shared;
        shares.unsure || shares.held != shares.confirmed || (shares.held > 0 && shares.connection != connection)
    }

    /// Takes what is left of the lease out of the ledger, to give it back to the store.
    pub(super) fn return_lease(&self) -> Option<(Window, u64)> {
        let mut ledger = self.ledger.lock();
        let lease = std::mem::take(&mut ledger.left);
        ledger.given = ledger.given.saturating_sub(lease);
        ledger.shared.held = ledger.shared.held.saturating_sub(lease);
        ledger.shared.confirmed = ledger.shared.confirmed.min(ledger.shared.held);
        ledger.window.filter(|_| lease > 0).map(|window| (window, lease))
    }

    /// What to tell a shared store.
    pub(super) fn report(&self) -> Report {
        let ledger = self.ledger.lock();
        let Shares { held, confirmed, told, ends, .. } = ledger.shared;
        let seen = ledger.given.saturating_sub(held.saturating_sub(confirmed));
        // A window that began by our own clock is the store's present one, whatever its number is there.
        let is_known = told.is_some() || ends.is_some_and(|ends| ends <= Instant::now());
        Report { window: ledger.window.filter(|_| is_known), confirmed, held, seen, left: ledger.left }
    }

    /// A call was not answered: the store may or may not have done what it was asked.
    pub(super) fn doubt(&self) {
        self.ledger.lock().shared.unsure = true;
    }

    /// Takes `units` that the shared store cannot be asked for, if no more than `allowance` is lent in the window. `None`:
    /// it is. A window that is known to be used up stays so.
    pub(super) fn lend(self: &Arc<Self>, units: u64, allowance: u64, now: Timestamp) -> Option<Attempt> {
        let mut ledger = self.ledger.lock();
        let balance = self.current(&ledger, now);
        if let Some(balance) = balance.filter(|balance| balance.remaining < units) {
            return Some(Attempt::Exhausted(balance));
        }
        if balance.is_none() {
            self.turn(&mut ledger, now);
        }
        let missing = units.saturating_sub(ledger.left);
        let lent = ledger.shared.lent.checked_add(missing).filter(|lent| *lent <= allowance)?;
        ledger.shared.lent = lent;
        ledger.shared.held += missing;
        ledger.given += missing;
        ledger.left = ledger.left + missing - units;
        ledger.last_used = now;
        let window = ledger.window?;
        let hold = Hold { counter: Arc::clone(self), window, units };
        Some(Attempt::Held { hold, balance: self.balance_of(&ledger, window), low: false })
    }

    /// Begins the next window by our own clock; there is no other to ask.
    fn turn(&self, ledger: &mut Ledger, now: Timestamp) {
        let seen = self.calendar.window(now);
        let window = ledger.window.map_or(seen, |ended| seen.max(ended.saturating_add(1)));
        ledger.window = Some(window);
        (ledger.given, ledger.left) = (0, 0);
        let ends = Instant::now() + until(now, self.calendar.end(window));
        ledger.shared = Shares { ends: Some(ends), connection: ledger.shared.connection, ..Shares::default() };
    }

    /// Puts back a lease that the store did not take.
    pub(super) fn keep_lease(&self, lease: u64) {
        let mut ledger = self.ledger.lock();
        ledger.given += lease;
        ledger.left += lease;
    }

    /// `balance` in the form that callers see.
    pub(super) fn standing(&self, balance: Balance, now: Timestamp) -> Standing {
        Standing {
            name: self.limit.period.name(),
            limit: self.amount(),
            window: self.calendar.length(balance.window),
            remaining: balance.remaining,
            resets_in: match balance.ends {
                None => until(now, self.calendar.end(balance.window)),
                Some(ends) => ends.saturating_duration_since(Instant::now()),
            },
        }
    }
}

impl Ledger {
    fn book(&mut self, grant: Grant) {
        if self.window.is_none_or(|window| window < grant.window) {
            self.left = 0;
        }
        self.window = Some(grant.window);
        self.given = grant.given;
        self.left += grant.granted;
    }

    /// The same for a window that other gateways count in, where charges may have been lent since the question.
    fn book_share(&mut self, grant: Grant, Confirmed { held, ends, connection }: Confirmed) {
        if self.window == Some(grant.window) {
            self.left += grant.granted;
            self.shared.held += grant.granted;
        } else {
            self.left = grant.granted;
            let lent = if self.shared.told.is_none() { self.shared.lent } else { 0 };
            self.shared = Shares { held, lent, ..Shares::default() };
        }
        self.window = Some(grant.window);
        let shares = &mut self.shared;
        shares.confirmed = held;
        (shares.ends, shares.told) = (Some(ends), Some(Instant::now()));
        (shares.connection, shares.unsure) = (connection, false);
        self.given = grant.given + shares.held.saturating_sub(held);
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
