//! One key's use, or that of a row of keys that replaced each other.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use jiff::Timestamp;

use super::counter::Counter;
use super::standing::Standings;
use super::store::Down;
use super::throttle::Bucket;
use super::tokens::{Taking, Tokens};
use super::{Enforcement, Exceeded, Plan, Refusal, Standing};

/// One key's use.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) plan: Plan,
    /// What the throttle allows this gateway, were it alone.
    bucket: Option<Bucket>,
    /// What of it is ours, where gateways share it.
    pub(super) tokens: Option<Arc<Tokens>>,
    pub(super) counter: Option<Arc<Counter>>,
    /// Predictions now.
    under_way: AtomicU32,
}

impl Account {
    pub(super) fn new(plan: Plan, counter: Option<Counter>, tokens: Option<Tokens>) -> Self {
        Self {
            plan,
            bucket: plan.throttle.map(Bucket::new),
            tokens: tokens.map(Arc::new),
            counter: counter.map(Arc::new),
            under_way: AtomicU32::new(0),
        }
    }

    /// In a dry run a refusal becomes what `standing` makes of the limit that was passed, and which kind that is.
    pub(super) fn overlook<T>(
        &self,
        result: Result<T, Refusal>,
        standing: impl FnOnce(Standing) -> T,
    ) -> Result<(Option<T>, Option<Exceeded>), Refusal> {
        match (result, self.plan.enforcement) {
            (Ok(taken), _) => Ok((Some(taken), None)),
            (Err(refusal), Enforcement::Enforced) => Err(refusal),
            (Err(refusal), Enforcement::DryRun) => Ok((refusal.violated().map(standing), refusal.exceeded())),
        }
    }

    /// What became of a token, where a dry run overlooks that there was none.
    pub(super) fn pace(&self, token: Result<Option<Standing>, Refusal>) -> Result<Pace, Refusal> {
        let (rate, exceeded) = self.overlook(token, Some)?;
        Ok(Pace { rate: rate.flatten(), exceeded, is_degraded: false })
    }

    /// The same for a token that the shared store was asked for. While it cannot be asked, each gateway throttles for
    /// itself.
    pub(super) fn pace_of(
        &self,
        tokens: &Tokens,
        answer: &Result<bool, Down>,
        local: Standing,
        now: Timestamp,
    ) -> Result<Pace, Refusal> {
        match answer {
            Ok(true) => self.pace(Ok(Some(tokens.standing(local, tokens.elapsed())))),
            Ok(false) => self.pace(Err(self.throttled_by_others(tokens.theirs(), now))),
            Err(Down) => Ok(Pace { rate: Some(local), exceeded: None, is_degraded: true }),
        }
    }

    fn busy(&self, limit: NonZeroU32, now: Timestamp) -> Refusal {
        // Nobody knows when a prediction ends; a second is long for most.
        let retry_after = Duration::from_secs(1);
        let limit = limit.get().into();
        let concurrency =
            Standing { name: "concurrency", limit, window: Duration::ZERO, remaining: 0, resets_in: retry_after };
        let standing = Standings::from([Some(concurrency), self.quota_standing(now)]).to_vec();
        Refusal::Busy { standing, retry_after }
    }

    /// Takes a token of the throttle, as far as that can be decided without the store.
    pub(super) fn take_token(&self, elapsed: u64, now: Timestamp) -> Token<'_> {
        let Some(bucket) = &self.bucket else { return Token::Decided(Ok(None)) };
        // What is too fast for one gateway alone is too fast for several.
        let local = match bucket.take(elapsed) {
            Ok(local) => local,
            Err(local) => return Token::Decided(Err(self.throttled(local, now))),
        };
        let Some(tokens) = &self.tokens else { return Token::Decided(Ok(Some(local))) };
        match tokens.take(elapsed) {
            Taking::Taken => Token::Decided(Ok(Some(tokens.standing(local, elapsed)))),
            Taking::Dry(theirs) => Token::Decided(Err(self.throttled_by_others(theirs, now))),
            Taking::Short => Token::Short { tokens, local },
        }
    }

    /// What is too fast because of other gateways does not count here.
    fn throttled_by_others(&self, theirs: Standing, now: Timestamp) -> Refusal {
        self.bucket.iter().for_each(Bucket::give_back);
        self.throttled(theirs, now)
    }

    fn throttled(&self, rate: Standing, now: Timestamp) -> Refusal {
        let standing = Standings::from([Some(rate), self.quota_standing(now)]).to_vec();
        Refusal::Throttled { standing, retry_after: rate.resets_in }
    }

    /// Where the throttle stands, as far as memory knows.
    pub(super) fn rate_standing(&self, elapsed: u64) -> Option<Standing> {
        let local = self.bucket.as_ref()?.standing(elapsed);
        Some(self.tokens.as_ref().map_or(local, |tokens| tokens.standing(local, elapsed)))
    }

    /// Where the quota stands, as far as memory knows.
    pub(super) fn quota_standing(&self, now: Timestamp) -> Option<Standing> {
        let counter = self.counter.as_ref()?;
        Some(counter.standing(counter.balance(now)?, now))
    }

    /// Whether forgetting it and reading the store again would make no difference.
    pub(super) fn is_idle(&self, elapsed: u64, now: Timestamp) -> bool {
        let bucket_is_full = self.bucket.as_ref().is_none_or(|bucket| bucket.is_full(elapsed));
        // A charge under way, or a question to the store, holds the counter too.
        let is_settled = |counter: &Arc<Counter>| {
            Arc::strong_count(counter) == 1 && counter.is_forgettable() && counter.is_idle(now)
        };
        let tokens_are_few = self.tokens.as_ref().is_none_or(|tokens| tokens.is_forgettable(elapsed));
        bucket_is_full && tokens_are_few && self.counter.as_ref().is_none_or(is_settled)
    }
}

/// A token of an account's throttle.
#[derive(Debug)]
pub(super) enum Token<'a> {
    /// Taken, or not; none is needed where there is no throttle.
    Decided(Result<Option<Standing>, Refusal>),
    /// The shared store must be asked. `local`: where the throttle would stand were this gateway alone.
    Short { tokens: &'a Arc<Tokens>, local: Standing },
}

/// Where the throttle stands for a request that it lets through.
#[derive(Debug)]
pub(super) struct Pace {
    pub(super) rate: Option<Standing>,
    /// Set where a dry run overlooks that it is too fast.
    pub(super) exceeded: Option<Exceeded>,
    /// Whether the shared store could not be asked.
    pub(super) is_degraded: bool,
}

/// A prediction under way, until it is dropped.
#[derive(Debug)]
#[must_use = "a place that is dropped is free again"]
pub struct Place {
    account: Arc<Account>,
    exceeded: Option<Exceeded>,
}

impl Place {
    /// One more.
    ///
    /// # Errors
    /// When there are as many as the plan allows.
    pub(super) fn of(account: Arc<Account>, now: Timestamp) -> Result<Self, Refusal> {
        let under_way = account.under_way.fetch_add(1, Ordering::Relaxed);
        // From here on, an error leaves again.
        let mut place = Self { account, exceeded: None };
        if let Some(limit) = place.account.plan.concurrency.filter(|limit| under_way >= limit.get()) {
            let busy = Err(place.account.busy(limit, now));
            (_, place.exceeded) = place.account.overlook(busy, |_| ())?;
        }
        Ok(place)
    }

    /// The limit that was passed and, in a dry run, overlooked.
    #[must_use]
    pub fn exceeded(&self) -> Option<Exceeded> {
        self.exceeded
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.account.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
