//! Throttle and quota per key: charged before the work is done, given back when it was not.
//!
//! The throttle is a bucket per key in memory. The quota counts rows (or requests) in a calendar period of UTC. The
//! store gives it out in leases, and writes each down before a request is admitted on it: after a crash a caller has at
//! most one lease less than the limit, never more. A clean stop gives the leases back, so nothing is lost then.

mod calendar;
mod counter;
mod shared;
mod store;
mod tally;
mod throttle;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::num::{NonZeroU32, NonZeroU64};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use jiff::Timestamp;
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::auth::{self, Caller, KeyId, PlanName};
use counter::{Attempt, Balance, Counter, Hold, Terms};
use shared::Shared;
use store::{Charged, Down, Store};
use tally::Tally;
use throttle::Bucket;

pub use shared::{Health, LARGEST_AMOUNT, OnStoreDown, Redis};
pub use tally::{ModelUse, Use};

/// Plans, and where use is kept.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where use is kept.
    pub store: Location,
    /// Every plan by name.
    pub plans: BTreeMap<PlanName, Plan>,
}

/// Where use is kept.
#[derive(Clone, Debug)]
pub enum Location {
    /// In a SQLite file; the one the keys are in. For one gateway.
    File(PathBuf),
    /// In a Redis that gateways share.
    Redis(Redis),
}

/// What callers on a plan may use. By default as much as they like, counted in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Plan {
    /// How fast; `None` is as fast as the gateway can.
    pub throttle: Option<Throttle>,
    /// How much; `None` is without end.
    pub quota: Option<Limit>,
    /// What is counted.
    pub unit: Unit,
    /// Predictions of one account at one time; `None` is as many as the gateway can.
    pub concurrency: Option<NonZeroU32>,
    /// Whether who passes a limit is refused.
    pub enforcement: Enforcement,
}

/// What happens to who passes a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// It is refused.
    #[default]
    Enforced,
    /// It is admitted, and what would have been refused is counted. The quota counts up to its amount and no further.
    DryRun,
}

/// A rate with a burst. Both count requests, whatever their rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttle {
    /// Requests a second, above zero.
    pub rate: f64,
    /// Requests at once, at least one.
    pub burst: u32,
}

/// An amount per calendar period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Rows or requests.
    pub amount: NonZeroU64,
    /// The period, in UTC.
    pub period: Period,
}

/// A calendar period in UTC. Weeks begin on Monday.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// Midnight to midnight.
    Day,
    /// Monday to Monday.
    Week,
    /// The first to the first.
    Month,
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unit {
    /// Rows that were scored.
    #[default]
    Rows,
    /// Requests, whatever their rows.
    Requests,
}

/// Where a caller stands with one limit; what `RateLimit` headers and `GET /usage` are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `rate`, `concurrency`, or the period's name (`day`, `week`, `month`).
    pub name: &'static str,
    /// What is allowed: the burst, predictions at one time, or the amount of a period.
    pub limit: u64,
    /// The window: how long a full burst takes to come back, or the length of the period; none for what is allowed at
    /// one time.
    pub window: Duration,
    /// What is left.
    pub remaining: u64,
    /// Until there is more.
    pub resets_in: Duration,
}

/// Why a request is not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too fast.
    #[error("the plan's rate is used up for now")]
    Throttled {
        /// Where the caller stands, the violated limit first.
        standing: Vec<Standing>,
        /// When it may try again.
        retry_after: Duration,
    },
    /// As many at one time as the plan allows.
    #[error("as many of the plan's predictions are under way as may be at one time")]
    Busy {
        /// Where the caller stands, the violated limit first.
        standing: Vec<Standing>,
        /// When it may try again.
        retry_after: Duration,
    },
    /// Too much.
    #[error("the plan's quota is used up")]
    Exhausted {
        /// Where the caller stands, the violated limit first.
        standing: Vec<Standing>,
        /// When it may try again.
        retry_after: Duration,
    },
    /// More rows in one request than the plan's whole quota.
    #[error("the request has more rows than the plan's whole quota")]
    TooLarge {
        /// Where the caller stands, as far as it is known without the store.
        standing: Vec<Standing>,
        /// Until the period ends; the same request is refused then too.
        retry_after: Duration,
    },
    /// The key's plan is not configured.
    #[error("the key's plan is not configured")]
    NoPlan,
    /// Use cannot be recorded, so it cannot be allowed.
    #[error("use cannot be recorded at the moment")]
    StoreDown,
}

/// The kind of limit that was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exceeded {
    /// The rate, or what is allowed at one time.
    Throttle,
    /// The amount of a period.
    Quota,
}

impl Refusal {
    /// The kind of limit, if the refusal is the caller's own doing.
    #[must_use]
    pub fn exceeded(&self) -> Option<Exceeded> {
        match self {
            Self::Throttled { .. } | Self::Busy { .. } => Some(Exceeded::Throttle),
            Self::Exhausted { .. } | Self::TooLarge { .. } => Some(Exceeded::Quota),
            Self::NoPlan | Self::StoreDown => None,
        }
    }

    /// Where the caller stands with the limit that was passed, as far as that is known.
    fn violated(&self) -> Option<Standing> {
        match self {
            Self::Throttled { standing, .. } | Self::Busy { standing, .. } | Self::Exhausted { standing, .. } => {
                standing.first().copied()
            }
            // The rate comes first where the period was never asked about.
            Self::TooLarge { standing, .. } => standing.iter().find(|one| one.name != "rate").copied(),
            Self::NoPlan | Self::StoreDown => None,
        }
    }
}

/// A caller's own plan, used and left.
#[derive(Clone, Debug)]
pub struct Usage {
    /// What is counted.
    pub unit: Unit,
    /// Used in this period; nothing is counted for a plan without a quota.
    pub used: u64,
    /// The period's amount, if there is one.
    pub quota: Option<Limit>,
    /// When the period ends, if there is one.
    pub resets_at: Option<Timestamp>,
    /// The throttle, if there is one.
    pub throttle: Option<Throttle>,
    /// Predictions at one time, if they are limited.
    pub concurrency: Option<NonZeroU32>,
    /// Whether who passes a limit is refused.
    pub enforcement: Enforcement,
    /// Every limit and where the caller stands.
    pub standing: Vec<Standing>,
}

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be used.
    #[error(transparent)]
    Open(#[from] auth::StoreError),
    /// SQLite said no.
    #[error("the usage store cannot be written")]
    Sqlite(#[from] rusqlite::Error),
    /// The shared store's address cannot be used.
    #[error("the address of the shared quota store cannot be used")]
    Address(#[source] redis::RedisError),
    /// The shared store does not answer.
    #[error("the shared quota store does not answer")]
    Unreachable,
    /// The system has no thread to give.
    #[error("the thread of the usage store cannot be started")]
    Thread(#[source] io::Error),
    /// The store's thread has died.
    #[error("the thread of the usage store is gone; restart the gateway")]
    Stopped,
}

/// What one settlement did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Counters that were made exact in the store.
    pub counters: usize,
}

/// Counters that are settled with a shared store at one time: requests wait behind them. The rest is for the next time,
/// unless their own charges settle them before.
const SETTLED_AT_ONCE: usize = 2048;

/// Every caller's use.
#[derive(Debug)]
pub struct Quota {
    plans: BTreeMap<PlanName, Plan>,
    store: Store,
    /// Accounts in use: each is one key, or a row of keys that replaced each other. Bounded by the keys there are; those
    /// out of use are forgotten at a settlement.
    accounts: RwLock<HashMap<KeyId, Arc<Account>, RandomState>>,
    tally: Tally,
    /// What the buckets' time counts from.
    opened: Instant,
}

/// One key's use.
#[derive(Debug)]
struct Account {
    plan: Plan,
    bucket: Option<Bucket>,
    counter: Option<Arc<Counter>>,
    /// Predictions now.
    under_way: AtomicU32,
}

/// What [`Quota::hold`] took, and where the quota stands after it.
#[derive(Debug, Default)]
struct Held {
    hold: Option<Hold>,
    quota: Option<Standing>,
    is_degraded: bool,
}

impl Quota {
    /// Opens the store and starts its thread.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub fn open(config: Config) -> Result<Self, StoreError> {
        let store = Store::start(config.store)?;
        Ok(Self {
            plans: config.plans,
            store,
            accounts: RwLock::default(),
            tally: Tally::default(),
            opened: Instant::now(),
        })
    }

    /// Takes `rows` from what `caller` may use. Given back when the charge is dropped without
    /// [`commit`](Charge::commit).
    ///
    /// The throttle is asked first, and keeps its token whatever the quota says. Who is throttled is not charged.
    /// Touches the store only when a lease is used up; a plan without a quota never does. In a dry run every limit is
    /// asked, and the charge says which would have refused it; what cannot be recorded is not, and is admitted.
    ///
    /// # Errors
    /// When it is too fast, too much, or cannot be recorded.
    pub async fn reserve(&self, caller: &Caller, rows: u64, now: Timestamp) -> Result<Charge, Refusal> {
        let account = self.account(caller)?;
        let token = account.take_token(self.elapsed(), now);
        let (rate, too_fast) = account.overlook(token, Some)?;
        let rate = rate.flatten();
        let held = self.hold(&account, rate, rows, now).await;
        let is_down = matches!(held, Err(Refusal::StoreDown));
        let (held, too_much) = account.overlook(held, |quota| Held { quota: Some(quota), ..Held::default() })?;
        let Held { hold, quota, is_degraded } = held.unwrap_or_default();
        let is_degraded = is_degraded || is_down;
        Ok(Charge { hold, standing: [rate, quota].into(), is_degraded, exceeded: [too_fast, too_much] })
    }

    /// Takes a token of the caller's throttle, for a request that was not worth its reading. Says what a dry run
    /// overlooks.
    ///
    /// # Errors
    /// When it is too fast, or the caller's plan is not configured.
    pub fn take_token(&self, caller: &Caller, now: Timestamp) -> Result<Option<Exceeded>, Refusal> {
        let account = self.account(caller)?;
        let (_, exceeded) = account.overlook(account.take_token(self.elapsed(), now), |_| None)?;
        Ok(exceeded)
    }

    /// A place among the predictions of the caller's account that are under way, until it is dropped.
    ///
    /// # Errors
    /// When there are as many as its plan allows, or the plan is not configured.
    pub fn enter(&self, caller: &Caller, now: Timestamp) -> Result<Place, Refusal> {
        let account = self.account(caller)?;
        let under_way = account.under_way.fetch_add(1, Ordering::Relaxed);
        // From here on, an error leaves again.
        let mut place = Place { account, exceeded: None };
        if let Some(limit) = place.account.plan.concurrency.filter(|limit| under_way >= limit.get()) {
            let busy = Err(place.account.busy(limit, now));
            (_, place.exceeded) = place.account.overlook(busy, |_| ())?;
        }
        Ok(place)
    }

    /// Where `caller` stands, as far as memory knows; charges nothing and asks no store.
    #[must_use]
    pub fn standing(&self, caller: &Caller, now: Timestamp) -> Vec<Standing> {
        let Ok(account) = self.account(caller) else { return Vec::new() };
        let rate = account.bucket.as_ref().map(|bucket| bucket.standing(self.elapsed()));
        Standings::from([rate, account.quota_standing(now)]).to_vec()
    }

    /// Takes `rows` from the account's quota, if it has one. `rate` is only told.
    async fn hold(
        &self,
        account: &Account,
        rate: Option<Standing>,
        rows: u64,
        now: Timestamp,
    ) -> Result<Held, Refusal> {
        let Some(counter) = &account.counter else { return Ok(Held::default()) };
        let units = account.plan.unit.of(rows);
        if units > counter.amount() {
            return Err(too_large(counter, rate, now));
        }
        let mut is_degraded = self.store.shared().is_some_and(Shared::is_down);
        let (hold, balance) = match counter.charge(units, now) {
            Attempt::Held { hold, balance, low } => {
                if low {
                    self.store.top_up(counter, now);
                }
                (Some(hold), balance)
            }
            Attempt::Exhausted(balance) => (None, balance),
            Attempt::Short => {
                let charged = self.store.charge(Arc::clone(counter), units, now).await;
                is_degraded |= charged.is_err();
                charged.or_else(|Down| self.lend(account, counter, units, now))?
            }
        };
        let quota = counter.standing(balance, now);
        if hold.is_none() {
            let standing = Standings::from([Some(quota), rate]).to_vec();
            return Err(Refusal::Exhausted { standing, retry_after: quota.resets_in });
        }
        Ok(Held { hold, quota: Some(quota), is_degraded })
    }

    /// What a shared store's policy allows while the store cannot be asked; an embedded store has none but what is left
    /// of a lease.
    fn lend(&self, account: &Account, counter: &Arc<Counter>, units: u64, now: Timestamp) -> Charged {
        let shared = self.store.shared().ok_or(Down)?;
        match counter.lend(units, shared.allowance(counter.limit), now) {
            Some(Attempt::Held { hold, balance, .. }) => {
                shared.count_lent();
                Ok((Some(hold), balance))
            }
            Some(Attempt::Exhausted(balance)) => Ok((None, balance)),
            Some(Attempt::Short) | None => {
                // A dry run goes on uncounted.
                if account.plan.enforcement == Enforcement::Enforced {
                    shared.count_refused();
                }
                Err(Down)
            }
        }
    }

    /// How it goes with the shared store, if there is one.
    #[must_use]
    pub fn shared_store(&self) -> Option<Health> {
        self.store.shared().map(Shared::health)
    }

    /// Where `caller` stands, charging nothing.
    ///
    /// # Errors
    /// When its plan is not configured, or its use cannot be read.
    pub async fn usage(&self, caller: &Caller, now: Timestamp) -> Result<Usage, Refusal> {
        let account = self.account(caller)?;
        let rate = account.bucket.as_ref().map(|bucket| bucket.standing(self.elapsed()));
        let balance = match &account.counter {
            Some(counter) => Some(self.balance(counter, now).await?),
            None => None,
        };
        let quota = account.counter.as_ref().zip(balance);
        Ok(Usage {
            unit: account.plan.unit,
            used: balance.map_or(0, |balance| balance.used),
            quota: account.plan.quota,
            resets_at: quota.map(|(counter, balance)| counter.limit.period.end(balance.window)),
            throttle: account.plan.throttle,
            concurrency: account.plan.concurrency,
            enforcement: account.plan.enforcement,
            standing: Standings::from([rate, quota.map(|(counter, balance)| counter.standing(balance, now))]).to_vec(),
        })
    }

    /// Notes what a key was used for, for [`uses`](Self::uses) alone.
    pub fn tally(&self, caller: &Caller, model: &str, rows: u64) {
        self.tally.add(caller, model, rows);
    }

    /// What every key was used for since the process began, by model, and where its account stands as far as memory
    /// knows.
    #[must_use]
    pub fn uses(&self, now: Timestamp) -> Vec<Use> {
        self.tally.uses(|caller| self.standing(caller, now))
    }

    /// Gives back the leases of keys that were not used for a minute, so that the store says exactly what they used, and
    /// forgets periods that ended.
    ///
    /// # Errors
    /// When the store cannot be written; nothing is forgotten then.
    pub async fn settle_once(&self, now: Timestamp) -> Result<Settled, StoreError> {
        let settled = match self.store.shared().map(Shared::connection) {
            None => self.settle(now, usize::MAX, |counter| counter.is_idle(now)).await?,
            Some(connection) => self.settle(now, SETTLED_AT_ONCE, |counter| counter.is_due(connection, now)).await?,
        };
        let elapsed = self.elapsed();
        self.accounts.write().retain(|_, account| Arc::strong_count(account) > 1 || !account.is_idle(elapsed, now));
        Ok(settled)
    }

    /// Gives back every lease: the last settlement before a stop. After it the store is exact.
    ///
    /// # Errors
    /// When the store cannot be written; nothing is forgotten then.
    pub async fn settle_all(&self, now: Timestamp) -> Result<Settled, StoreError> {
        self.settle(now, usize::MAX, |_| true).await
    }

    async fn settle(
        &self,
        now: Timestamp,
        most: usize,
        which: impl Fn(&Counter) -> bool,
    ) -> Result<Settled, StoreError> {
        // Also those without a lease: one may be on its way, and the thread answers in order.
        let counters = {
            let accounts = self.accounts.read();
            let counters = accounts.values().filter_map(|account| account.counter.as_ref());
            counters.filter(|counter| which(counter)).take(most).cloned().collect()
        };
        self.store.settle(counters, now).await
    }

    async fn balance(&self, counter: &Arc<Counter>, now: Timestamp) -> Result<Balance, Down> {
        match counter.balance(now) {
            // Other gateways have gone on counting.
            Some(balance) if self.store.shared().is_some() => {
                Ok(self.store.look(Arc::clone(counter), now).await.unwrap_or(balance))
            }
            Some(balance) => Ok(balance),
            None => self.store.look(Arc::clone(counter), now).await,
        }
    }

    fn account(&self, caller: &Caller) -> Result<Arc<Account>, Refusal> {
        if let Some(account) = self.accounts.read().get(&caller.account) {
            return Ok(Arc::clone(account));
        }
        let plan = *self.plans.get(&caller.plan).ok_or(Refusal::NoPlan)?;
        let mut accounts = self.accounts.write();
        let account = accounts.entry(Arc::clone(&caller.account));
        Ok(Arc::clone(
            account.or_insert_with_key(|key_id| Arc::new(Account::new(key_id, plan, |limit| self.store.terms(limit)))),
        ))
    }

    /// Nanoseconds on a clock that no one can set.
    fn elapsed(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Account {
    fn new(key_id: &KeyId, plan: Plan, terms: impl FnOnce(Limit) -> Terms) -> Self {
        Self {
            plan,
            bucket: plan.throttle.map(Bucket::new),
            counter: plan.quota.map(|limit| Arc::new(Counter::new(Arc::clone(key_id), limit, terms(limit)))),
            under_way: AtomicU32::new(0),
        }
    }

    /// In a dry run a refusal becomes what `standing` makes of the limit that was passed, and which kind that is.
    fn overlook<T>(
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

    fn busy(&self, limit: NonZeroU32, now: Timestamp) -> Refusal {
        // Nobody knows when a prediction ends; a second is long for most.
        let retry_after = Duration::from_secs(1);
        let limit = limit.get().into();
        let concurrency =
            Standing { name: "concurrency", limit, window: Duration::ZERO, remaining: 0, resets_in: retry_after };
        let standing = Standings::from([Some(concurrency), self.quota_standing(now)]).to_vec();
        Refusal::Busy { standing, retry_after }
    }

    fn take_token(&self, elapsed: u64, now: Timestamp) -> Result<Option<Standing>, Refusal> {
        let Some(bucket) = &self.bucket else { return Ok(None) };
        bucket.take(elapsed).map(Some).map_err(|rate| {
            let standing = Standings::from([Some(rate), self.quota_standing(now)]).to_vec();
            Refusal::Throttled { standing, retry_after: rate.resets_in }
        })
    }

    /// Where the quota stands, as far as memory knows.
    fn quota_standing(&self, now: Timestamp) -> Option<Standing> {
        let counter = self.counter.as_ref()?;
        Some(counter.standing(counter.balance(now)?, now))
    }

    /// Whether forgetting it and reading the store again would make no difference.
    fn is_idle(&self, elapsed: u64, now: Timestamp) -> bool {
        let bucket_is_full = self.bucket.as_ref().is_none_or(|bucket| bucket.is_full(elapsed));
        // A charge under way, or a question to the store, holds the counter too.
        let is_settled = |counter: &Arc<Counter>| {
            Arc::strong_count(counter) == 1 && counter.is_forgettable() && counter.is_idle(now)
        };
        bucket_is_full && self.counter.as_ref().is_none_or(is_settled)
    }
}

impl Unit {
    fn of(self, rows: u64) -> u64 {
        match self {
            Self::Rows => rows,
            Self::Requests => 1,
        }
    }
}

impl From<Down> for Refusal {
    fn from(Down: Down) -> Self {
        Self::StoreDown
    }
}

fn too_large(counter: &Counter, rate: Option<Standing>, now: Timestamp) -> Refusal {
    let period = counter.limit.period;
    let quota = counter.balance(now).map(|balance| counter.standing(balance, now));
    Refusal::TooLarge {
        standing: Standings::from([quota, rate]).to_vec(),
        retry_after: calendar::until(now, period.end(period.window(now))),
    }
}

/// A reservation. Dropped without [`commit`](Self::commit), it is given back.
#[derive(Debug)]
#[must_use = "a charge that is dropped is given back"]
pub struct Charge {
    hold: Option<Hold>,
    standing: Standings,
    is_degraded: bool,
    exceeded: [Option<Exceeded>; 2],
}

impl Charge {
    /// Where the caller stands after this charge.
    #[must_use]
    pub fn standing(&self) -> &[Standing] {
        &self.standing
    }

    /// Whether the shared store could not be asked: others may count differently for now.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.is_degraded
    }

    /// The limits that were passed and, in a dry run, overlooked.
    pub fn exceeded(&self) -> impl Iterator<Item = Exceeded> {
        self.exceeded.into_iter().flatten()
    }

    /// Keeps the charge.
    pub fn commit(self) {
        if let Some(hold) = self.hold {
            hold.keep();
        }
    }
}

/// A prediction under way, until it is dropped.
#[derive(Debug)]
#[must_use = "a place that is dropped is free again"]
pub struct Place {
    account: Arc<Account>,
    exceeded: Option<Exceeded>,
}

impl Place {
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

/// At most one standing per kind of limit, without an allocation.
#[derive(Clone, Copy, Debug)]
struct Standings {
    all: [Standing; 2],
    count: usize,
}

impl From<[Option<Standing>; 2]> for Standings {
    fn from(standings: [Option<Standing>; 2]) -> Self {
        const NONE: Standing =
            Standing { name: "", limit: 0, window: Duration::ZERO, remaining: 0, resets_in: Duration::ZERO };
        let mut all = [NONE; 2];
        let mut count = 0;
        for standing in standings.into_iter().flatten() {
            all[count] = standing;
            count += 1;
        }
        Self { all, count }
    }
}

impl Deref for Standings {
    type Target = [Standing];

    fn deref(&self) -> &[Standing] {
        &self.all[..self.count]
    }
}
