//! What one gateway has of a throttle that several share.
//!
//! The store keeps the bucket, and each of its tokens is given to one gateway once: from any start, all gateways
//! together admit no more than the burst and what the rate has added since. A gateway takes a tenth of a burst at a
//! time, so that few requests ask; what it has and does not use is what others cannot use meanwhile, and what it may use
//! later on top of the others' burst.

use std::num::NonZeroU64;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::throttle::Bucket;
use super::{Standing, Throttle};
use crate::auth::KeyId;

/// A tenth: three gateways leave most of a burst to whoever needs it.
const LEASE_FRACTION: u64 = 10;
const LEASE_MAX: u64 = 1000;

/// Tokens of a caller that was away for so long are forgotten with it: at most a lease in a minute is wasted.
const IDLE: Duration = Duration::from_mins(1);

/// One account's tokens here.
#[derive(Debug)]
pub(super) struct Tokens {
    pub(super) account: KeyId,
    lease: u64,
    /// The bucket at the store, as the last answer had it. There is never more in it: others only take.
    theirs: Bucket,
    ours: Mutex<Ours>,
    /// What the buckets' time counts from.
    opened: Instant,
}

#[derive(Debug)]
struct Ours {
    held: u64,
    /// Whether the store's thread was asked for more and has not answered.
    topping_up: bool,
    last_used: u64,
}

/// What became of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taking {
    Taken,
    /// The store has none, and will not before this says.
    Dry(Standing),
    /// The store must be asked.
    Short,
}

/// When more may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    /// When few are left.
    Low,
    /// When the store is asked for something else anyway.
    Along,
}

impl Tokens {
    /// None yet. `lease` is how much of anything a gateway sets aside at most, where that is limited.
    pub(super) fn new(account: KeyId, throttle: Throttle, lease: Option<NonZeroU64>, opened: Instant) -> Self {
        let tenth = (u64::from(throttle.burst) / LEASE_FRACTION).clamp(1, LEASE_MAX);
        Self {
            account,
            lease: lease.map_or(tenth, |lease| tenth.min(lease.get())),
            theirs: Bucket::new(throttle),
            ours: Mutex::new(Ours { held: 0, topping_up: false, last_used: 0 }),
            opened,
        }
    }

    /// What the store is told of the throttle.
    pub(super) fn bucket(&self) -> &Bucket {
        &self.theirs
    }

    /// Where the store's bucket stands, as far as is known here.
    pub(super) fn theirs(&self) -> Standing {
        self.theirs.standing(self.elapsed())
    }

    /// Takes one at `now`, if that can be decided without the store.
    pub(super) fn take(&self, now: u64) -> Taking {
        let mut ours = self.ours.lock();
        if ours.held > 0 {
            ours.held -= 1;
            ours.last_used = now;
            return Taking::Taken;
        }
        let theirs = self.theirs.standing(now);
        if theirs.remaining == 0 { Taking::Dry(theirs) } else { Taking::Short }
    }

    /// Puts one back that was given, and then not used.
    pub(super) fn put_back(&self) {
        self.ours.lock().held += 1;
    }

    /// The present, on the buckets' clock.
    pub(super) fn elapsed(&self) -> u64 {
        nanoseconds(self.opened.elapsed())
    }

    /// Whether to ask for more before the last is used. Says so once until there is an answer.
    pub(super) fn should_top_up(&self, occasion: Occasion) -> bool {
        // Lower than a quota's, so that who has both asks for both when the quota's lease is low.
        let low = (self.lease / 20).max(1);
        let mut ours = self.ours.lock();
        let enough = match occasion {
            Occasion::Low => low,
            Occasion::Along => self.lease,
        };
        // With leases of one, nothing is set aside. A bucket that is all but empty is left to who needs it now.
        let asks = self.lease > 1 && ours.held < enough && !ours.topping_up && self.theirs().remaining > low;
        ours.topping_up |= asks;
        asks
    }

    /// How many to ask for when `waiting` need one each.
    pub(super) fn wanted(&self, waiting: u64) -> u64 {
        waiting.max(self.lease.saturating_sub(self.ours.lock().held))
    }

    /// Books an answer to what was asked at `sent`: so many tokens, and how long after it the store's bucket is full. Says
    /// how many of those who `waited` have one: they come before anybody who asks from now on.
    pub(super) fn receive(&self, granted: u64, waited: u64, sent: Instant, full_in: Duration) -> u64 {
        // The store looked at its clock after we sent, so its bucket is not full before this.
        let full_at = sent.saturating_duration_since(self.opened) + full_in;
        self.theirs.set_full_at(nanoseconds(full_at));
        let mut ours = self.ours.lock();
        let all = ours.held.saturating_add(granted);
        let served = all.min(waited);
        ours.held = all - served;
        ours.topping_up = false;
        served
    }

    /// The store did not answer; the next request may ask again. What it has given us all the same is lost.
    pub(super) fn asked_in_vain(&self) {
        self.ours.lock().topping_up = false;
    }

    /// Where a caller stands whose requests here alone leave it `local`.
    pub(super) fn standing(&self, local: Standing, now: u64) -> Standing {
        let theirs = self.theirs.standing(now);
        let remaining = theirs.remaining.saturating_add(self.ours.lock().held);
        if local.remaining <= remaining { local } else { Standing { remaining, ..theirs } }
    }

    /// Whether little is lost when it is forgotten.
    pub(super) fn is_forgettable(&self, now: u64) -> bool {
        let ours = self.ours.lock();
        ours.held == 0 || u128::from(now.saturating_sub(ours.last_used)) >= IDLE.as_nanos()
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
