//! Throttle and quota per key: charged before the work is done, given back when it was not.
//!
//! The throttle is a bucket per key in memory, or in the store that gateways share. The quota counts rows (or requests) in a calendar period of UTC. The
//! store gives it out in leases, and writes each down before a request is admitted on it: after a crash a caller has at
//! most one lease less than the limit, never more. A clean stop gives the leases back, so nothing is lost then.

mod account;
mod calendar;
mod counter;
mod plan;
mod shared;
mod standing;
mod store;
mod tally;
mod throttle;
mod tokens;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use foldhash::fast::RandomState;
use jiff::Timestamp;
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::auth::{self, Caller, KeyId, PlanName};
use account::{Account, Token};
use counter::{Attempt, Balance, Counter, Hold};
use shared::Shared;
use standing::Standings;
use store::{Charged, Down, Store};
use tally::Tally;
use tokens::{Occasion, Tokens};

pub use account::Place;
pub use calendar::OFFSET_MAX;
pub use plan::{Enforcement, Limit, Period, Plan, Throttle, Unit};
pub use shared::{Health, LARGEST_AMOUNT, OnStoreDown, Redis, Unfit};
pub use standing::{Exceeded, Refusal, Standing, Usage};
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
    /// The system has no random bytes.
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
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

/// What [`Quota::hold`] took, and where the quota stands after it.
#[derive(Debug, Default)]
struct Held {
    hold: Option<Hold>,
    quota: Option<Standing>,
    is_degraded: bool,
}

impl Quota {
    /// Opens the store and starts its thread. What is drawn from `random` tells this gateway from every other.
    ///
    /// # Errors
    /// When the store cannot be used.
    pub fn open(config: Config, random: auth::Random<'_>) -> Result<Self, StoreError> {
        let store = Store::start(config.store, random)?;
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
    /// Touches the store only when a lease is used up, and a shared one at most once: what is missing of both is asked for
    /// together. In a dry run every limit is asked, and the charge says which would have refused it; what cannot be
    /// recorded is not, and is admitted.
    ///
    /// # Errors
    /// When it is too fast, too much, or cannot be recorded.
    pub async fn reserve(&self, caller: &Caller, rows: u64, now: Timestamp) -> Result<Charge, Refusal> {
        let account = self.account(caller)?;
        let (pace, held) = match account.take_token(self.elapsed(), now) {
            Token::Decided(token) => {
                let pace = account.pace(token)?;
                self.top_up_tokens(&account);
                let held = self.hold(&account, pace.rate, rows, now).await;
                (pace, held)
            }
            Token::Short { tokens, local } => {
                let asked = self.store.queue_token(tokens);
                let held = self.hold(&account, Some(local), rows, now).await;
                // What was taken from the quota of who is throttled goes back here.
                let pace = account.pace_of(tokens, &self.store.token(asked).await, local, now)?;
                (pace, held)
            }
        };
        let is_down = pace.is_degraded || matches!(held, Err(Refusal::StoreDown));
        let (held, too_much) = account.overlook(held, |quota| Held { quota: Some(quota), ..Held::default() })?;
        let Held { hold, quota, is_degraded } = held.unwrap_or_default();
        Ok(Charge {
            hold,
            standing: [pace.rate, quota].into(),
            is_degraded: is_degraded || is_down,
            exceeded: [pace.exceeded, too_much],
        })
    }

    /// Takes a token of the caller's throttle, for a request that was not worth its reading. Says what a dry run
    /// overlooks.
    ///
    /// # Errors
    /// When it is too fast, or the caller's plan is not configured.
    pub async fn take_token(&self, caller: &Caller, now: Timestamp) -> Result<Option<Exceeded>, Refusal> {
        let account = self.account(caller)?;
        let pace = match account.take_token(self.elapsed(), now) {
            Token::Decided(token) => account.pace(token)?,
            Token::Short { tokens, local } => {
                let answer = self.store.token(self.store.queue_token(tokens)).await;
                account.pace_of(tokens, &answer, local, now)?
            }
        };
        Ok(pace.exceeded)
    }

    /// Asks for tokens before the last is used.
    fn top_up_tokens(&self, account: &Account) {
        if let Some(tokens) = account.tokens.as_ref().filter(|tokens| tokens.should_top_up(Occasion::Low)) {
            self.store.queue_top_up(tokens);
            self.store.wake();
        }
    }

    /// Has tokens asked for along with what the store is asked for next.
    fn queue_tokens(&self, account: &Account) {
        if let Some(tokens) = account.tokens.as_ref().filter(|tokens| tokens.should_top_up(Occasion::Along)) {
            self.store.queue_top_up(tokens);
        }
    }

    /// A place among the predictions of the caller's account that are under way, until it is dropped.
    ///
    /// # Errors
    /// When there are as many as its plan allows, or the plan is not configured.
    pub fn enter(&self, caller: &Caller, now: Timestamp) -> Result<Place, Refusal> {
        Place::of(self.account(caller)?, now)
    }

    /// Where `caller` stands, as far as memory knows; charges nothing and asks no store.
    #[must_use]
    pub fn standing(&self, caller: &Caller, now: Timestamp) -> Vec<Standing> {
        let Ok(account) = self.account(caller) else { return Vec::new() };
        Standings::from([account.rate_standing(self.elapsed()), account.quota_standing(now)]).to_vec()
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
                    self.queue_tokens(account);
                    self.store.top_up(counter, now);
                }
                (Some(hold), balance)
            }
            Attempt::Exhausted(balance) => (None, balance),
            Attempt::Short => {
                self.queue_tokens(account);
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
                shared.count_lent(units);
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

    /// Where `caller` stands, charging nothing. What only a store knows that cannot be asked is left out.
    ///
    /// # Errors
    /// When its plan is not configured.
    pub async fn usage(&self, caller: &Caller, now: Timestamp) -> Result<Usage, Refusal> {
        let account = self.account(caller)?;
        let (balance, is_degraded) = match &account.counter {
            Some(counter) => self.balance(counter, now).await,
            None => (None, false),
        };
        let quota = account.counter.as_ref().zip(balance);
        let rate = account.rate_standing(self.elapsed());
        let Plan { unit, quota: limit, offset: _, throttle, concurrency, enforcement } = account.plan;
        Ok(Usage {
            unit,
            used: if limit.is_none() { Some(0) } else { balance.map(|balance| balance.used) },
            quota: limit,
            resets_at: quota.map(|(counter, balance)| counter.calendar.end(balance.window)),
            throttle,
            concurrency,
            enforcement,
            standing: Standings::from([rate, quota.map(|(counter, balance)| counter.standing(balance, now))]).to_vec(),
            is_degraded,
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

    /// Where `counter` stands, as the store has it, or else as memory has it; and whether the store could not be asked.
    async fn balance(&self, counter: &Arc<Counter>, now: Timestamp) -> (Option<Balance>, bool) {
        let known = counter.balance(now);
        // Nobody else counts in an embedded store.
        if known.is_some() && self.store.shared().is_none() {
            return (known, false);
        }
        match self.store.look(Arc::clone(counter), now).await {
            Ok(balance) => (Some(balance), false),
            Err(Down) => (known, true),
        }
    }

    fn account(&self, caller: &Caller) -> Result<Arc<Account>, Refusal> {
        if let Some(account) = self.accounts.read().get(&caller.account) {
            return Ok(Arc::clone(account));
        }
        let plan = *self.plans.get(&caller.plan).ok_or(Refusal::NoPlan)?;
        let mut accounts = self.accounts.write();
        let account = accounts.entry(Arc::clone(&caller.account));
        Ok(Arc::clone(account.or_insert_with_key(|key_id| Arc::new(self.new_account(key_id, plan)))))
    }

    fn new_account(&self, key_id: &KeyId, plan: Plan) -> Account {
        let counter = |limit| Counter::new(Arc::clone(key_id), limit, plan.offset, self.store.terms(limit));
        let tokens = |shared: &Shared| {
            let throttle = plan.throttle?;
            Some(Tokens::new(Arc::clone(key_id), throttle, shared.lease(), self.opened))
        };
        Account::new(plan, plan.quota.map(counter), self.store.shared().and_then(tokens))
    }

    /// Nanoseconds on a clock that no one can set.
    fn elapsed(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

fn too_large(counter: &Counter, rate: Option<Standing>, now: Timestamp) -> Refusal {
    let quota = counter.balance(now).map(|balance| counter.standing(balance, now));
    Refusal::TooLarge {
        standing: Standings::from([quota, rate]).to_vec(),
        retry_after: calendar::until(now, counter.calendar.end(counter.calendar.window(now))),
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
