//! The thread that speaks with a shared store, Redis, so that several gateways count as one.
//!
//! A gateway tells the store what it holds of a key's window, and what more it wants; a script decides, in one step and
//! by the store's clock. That is a state and not a change, so a call whose answer was lost can be repeated: nothing is
//! charged twice, and what was given in the lost answer is found again. See `shared/charge.lua`.
//!
//! All that is waiting goes to the store at once and shares one round trip. Nobody waits for a store that is dead: a
//! call has [`BUDGET`], whoever waits behind a failed call is refused with it, and after [`FAILURES`] in a row only this
//! thread asks, until there is an answer.

mod look;
mod tokens;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, RedisError, Script};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, timeout_at};
use url::Url;

pub use self::look::Unfit;
use super::calendar::{Calendar, Window, until};
use super::counter::{Confirmed, Counter, Grant, Report, hundredth};
use super::store::{BATCH, Down, Message, QUEUE, STACK_BYTES, Settle, Visit, gather};
use super::tokens::Tokens;
use super::{Limit, Period, Settled, StoreError};
use crate::{auth, task};

/// A Redis that several gateways count in.
#[derive(Clone, Debug)]
pub struct Redis {
    /// `redis://host:6379/0`, or `rediss:` for TLS; a user and a password may be in it.
    pub url: Url,
    /// Goes over the password in `url`.
    pub password: Option<SecretString>,
    /// Begins every key, so that deployments can share a server.
    pub namespace: String,
    /// How much a gateway sets aside at a time; one asks for every request. `None`: a hundredth of the amount, a
    /// thousand at most.
    pub lease: Option<NonZeroU64>,
    /// What happens while it cannot be asked.
    pub on_store_down: OnStoreDown,
}

/// What happens to charges while the shared store cannot be asked, and nothing is set aside here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStoreDown {
    /// A hundredth of the amount is lent, a thousand at most, per gateway, key and window. Then as `Closed`.
    Lease,
    /// They are refused.
    Closed,
    /// They are lent without end.
    Open,
}

/// How it goes with a shared store, since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether requests are let through to it.
    pub is_up: bool,
    /// Round trips.
    pub calls: u64,
    /// Round trips that failed.
    pub failures: u64,
    /// Charges that were lent because it could not be asked.
    pub lent: u64,
    /// Rows or requests of those charges: the quotas were passed by no more than that.
    pub lent_units: u64,
    /// Charges that were refused because it could not be asked.
    pub refused: u64,
}

/// A call takes no longer, with connecting if need be: it is on the way of a request.
const BUDGET: Duration = Duration::from_millis(50);

/// Connecting takes no longer where no request waits for it: TLS may need more than a call has.
const CONNECT: Duration = Duration::from_secs(2);

/// Failures in a row after which no request waits for the store.
const FAILURES: u32 = 5;

/// How often a store that failed is tried.
const PROBE: Duration = Duration::from_millis(500);

/// Longer than any window of the period, so that a window's row outlives it, and a clock that is set back a little.
const fn lifetime_seconds(period: Period) -> u32 {
    match period {
        Period::Day => 2 * 86_400,
        Period::Week => 2 * 7 * 86_400,
        Period::Month => 2 * 31 * 86_400,
    }
}

/// A Lua number is exact up to here.
pub const LARGEST_AMOUNT: u64 = 1 << 53;

static CHARGE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("shared/window.lua"), include_str!("shared/charge.lua"))));

/// The answer to a question for a token, when there is one.
pub(super) type Asked = oneshot::Receiver<Result<bool, Down>>;

/// What the thread and the requests both see.
#[derive(Debug)]
pub(super) struct Shared {
    on_store_down: OnStoreDown,
    lease: Option<NonZeroU64>,
    /// Questions for tokens of throttles. They wait for a question about a quota to go with, or for `wake`, so that who
    /// needs both waits for one round trip. A full queue is a store that cannot be asked.
    tokens: mpsc::Sender<tokens::Ask>,
    wake: Notify,
    /// Set while no request is to wait for the store.
    is_down: AtomicBool,
    /// The number of the connection; counts up.
    connection: AtomicU64,
    calls: AtomicU64,
    failures: AtomicU64,
    lent: AtomicU64,
    lent_units: AtomicU64,
    refused: AtomicU64,
}

impl Shared {
    pub(super) fn lease(&self) -> Option<NonZeroU64> {
        self.lease
    }

    /// Whether no request is to wait for the store.
    pub(super) fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Relaxed)
    }

    pub(super) fn connection(&self) -> u64 {
        self.connection.load(Ordering::Relaxed)
    }

    /// Puts a question for a token beside what is asked for next, which has to come or to be [woken](Self::wake) for.
    pub(super) fn queue_token(&self, tokens: &Arc<Tokens>) -> Result<Asked, Down> {
        let (reply, answer) = oneshot::channel();
        self.queue(tokens, Some(reply))?;
        Ok(answer)
    }

    /// The same for tokens that nobody waits for.
    pub(super) fn queue_top_up(&self, tokens: &Arc<Tokens>) -> Result<(), Down> {
        self.queue(tokens, None)
    }

    fn queue(&self, tokens: &Arc<Tokens>, reply: Option<tokens::Reply>) -> Result<(), Down> {
        if self.is_down() {
            return Err(Down);
        }
        self.tokens.try_send(tokens::Ask { tokens: Arc::clone(tokens), reply }).map_err(|_| Down)
    }

    /// Has the store asked for what was put beside.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// How much may be lent of a window.
    pub(super) fn allowance(&self, limit: Limit) -> u64 {
        match self.on_store_down {
            OnStoreDown::Lease => hundredth(limit),
            OnStoreDown::Closed => 0,
            OnStoreDown::Open => u64::MAX,
        }
    }

    pub(super) fn count_lent(&self, units: u64) {
        self.lent.fetch_add(1, Ordering::Relaxed);
        self.lent_units.fetch_add(units, Ordering::Relaxed);
    }

    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn health(&self) -> Health {
        Health {
            is_up: !self.is_down(),
            calls: self.calls.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            lent: self.lent.load(Ordering::Relaxed),
            lent_units: self.lent_units.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// Starts the thread. It connects by itself; a store that is not there yet is no reason not to start.
pub(super) fn start(
    config: Redis,
    messages: mpsc::Receiver<Message>,
    random: auth::Random<'_>,
) -> Result<Arc<Shared>, StoreError> {
    let mut gateway = [0; 8];
    random(&mut gateway).map_err(StoreError::Random)?;
    let (tokens, asks) = mpsc::channel(QUEUE);
    let shared = Arc::new(Shared {
        on_store_down: config.on_store_down,
        lease: config.lease,
        tokens,
        wake: Notify::new(),
        is_down: AtomicBool::new(false),
        connection: AtomicU64::new(0),
        calls: AtomicU64::new(0),
        failures: AtomicU64::new(0),
        lent: AtomicU64::new(0),
        lent_units: AtomicU64::new(0),
        refused: AtomicU64::new(0),
    });
    let mut inbox = Inbox { messages, tokens: asks, shared: Arc::clone(&shared) };
    let mut keeper = Keeper {
        client: client(&config)?,
        namespace: config.namespace,
        gateway: format!("{:016x}", u64::from_be_bytes(gateway)),
        connection: None,
        call: 0,
        failures: 0,
        shared: Arc::clone(&shared),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StoreError::Thread)?;
    task::thread("usage-store", STACK_BYTES, move || runtime.block_on(keeper.run(&mut inbox)))
        .map_err(StoreError::Thread)?;
    Ok(shared)
}

fn client(config: &Redis) -> Result<Client, StoreError> {
    let info = config.url.as_str().into_connection_info().map_err(StoreError::Address)?;
    let mut settings = info.redis_settings().clone();
    if let Some(password) = &config.password {
        settings = settings.set_password(password.expose_secret());
    }
    Client::open(info.set_redis_settings(settings)).map_err(StoreError::Address)
}

/// What the thread holds.
struct Keeper {
    client: Client,
    namespace: String,
    /// Tells this process from every other, and from itself before a restart.
    gateway: String,
    connection: Option<MultiplexedConnection>,
    /// Of the last call; the store ignores what comes late.
    call: u64,
    /// In a row.
    failures: u32,
    shared: Arc<Shared>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("it took too long")]
    Late,
    #[error(transparent)]
    Redis(#[from] RedisError),
    #[error("the store's time is not on the calendar")]
    Time(#[from] jiff::Error),
}

/// What the script answers: the window, what is given of it, what we hold, what of that is new, and the store's time in
/// seconds and microseconds.
type Answer = (Window, u64, u64, u64, i64, i32);

/// What the script is asked about one key.
struct Question {
    key: String,
    amount: NonZeroU64,
    calendar: Calendar,
    report: Report,
    want: u64,
}

/// What waits for the thread. Each queue is bounded by [`QUEUE`].
struct Inbox {
    messages: mpsc::Receiver<Message>,
    tokens: mpsc::Receiver<tokens::Ask>,
    shared: Arc<Shared>,
}

/// What goes to the store in one round trip, and the settlements that follow it.
#[derive(Default)]
struct Round {
    visits: Vec<Visit>,
    tokens: Vec<tokens::Visit>,
    settlements: Vec<Settle>,
}

impl Inbox {
    /// All that waits; waits for the first. `None`: nobody is left who could ask.
    async fn next(&mut self) -> Option<Round> {
        let message = tokio::select! {
            message = self.messages.recv() => Some(message?),
            () = self.shared.wake.notified() => None,
        };
        // In this order: who asks for both put the token in first, and waits for one round trip.
        let (visits, settlements) = gather(message, &mut self.messages);
        let tokens = tokens::gather(&mut self.tokens);
        let visits = visits.into_iter().filter_map(Visit::serve_known).collect();
        let tokens = tokens.into_iter().filter_map(tokens::Visit::serve_known).collect();
        Some(Round { visits, tokens, settlements })
    }

    /// Refuses who asks, without end.
    async fn refuse(&mut self) {
        loop {
            tokio::select! {
                Some(message) = self.messages.recv() => refuse(message),
                Some(ask) = self.tokens.recv() => ask.refuse(),
                else => return,
            }
        }
    }

    /// Those who waited behind a call that failed have waited long enough.
    fn refuse_waiting(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            refuse(message);
        }
        while let Ok(ask) = self.tokens.try_recv() {
            ask.refuse();
        }
    }
}

impl Keeper {
    async fn run(&mut self, inbox: &mut Inbox) {
        // The first tick is at once: it connects before the first request asks.
        let mut probes = tokio::time::interval(PROBE);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                round = inbox.next() => match round {
                    Some(round) => self.take(round, inbox).await,
                    None => return,
                },
                _ = probes.tick(), if self.connection.is_none() || self.failures > 0 => self.probe(inbox).await,
            }
        }
    }

    async fn take(&mut self, Round { visits, tokens, settlements }: Round, inbox: &mut Inbox) {
        if !visits.is_empty() || !tokens.is_empty() {
            self.answer(visits, tokens, inbox).await;
        }
        for Settle { counters, reply, .. } in settlements {
            // Who asked may have gone; the leases are settled all the same.
            let _ = reply.send(self.settle(&counters).await);
        }
    }

    async fn answer(&mut self, visits: Vec<Visit>, tokens: Vec<tokens::Visit>, inbox: &mut Inbox) {
        let questions = visits.iter().map(|visit| self.question(&visit.counter, |left| visit.wanted(left))).collect();
        let answers = self.ask(questions, &tokens).await;
        // Before anybody hears of it, who may then ask about something else.
        if answers.are_none() {
            inbox.refuse_waiting();
        }
        // Tokens first: who asked for both looks for its token as soon as it has its rows.
        for (visit, given) in tokens.into_iter().zip(answers.given) {
            match given {
                Some(given) => visit.serve(given),
                None => visit.refuse(),
            }
        }
        for (visit, grant) in visits.into_iter().zip(answers.grants) {
            if let Some(grant) = grant {
                visit.serve(grant);
            } else {
                visit.counter.doubt();
                visit.refuse();
            }
        }
    }

    /// Gives back the leases of `counters`, and tells the store what it does not know.
    async fn settle(&mut self, counters: &[Arc<Counter>]) -> Result<Settled, StoreError> {
        let mut settled = Settled { counters: 0 };
        for counters in counters.chunks(BATCH) {
            let counters: Vec<_> = counters.iter().filter(|counter| self.has_news(counter)).collect();
            let questions = counters.iter().map(|counter| self.question(counter, |_| 0)).collect::<Vec<_>>();
            if questions.is_empty() {
                continue;
            }
            for (counter, grant) in counters.iter().zip(self.ask(questions, &[]).await.grants) {
                let Some(grant) = grant else {
                    counter.doubt();
                    return Err(StoreError::Unreachable);
                };
                counter.receive(grant, std::iter::empty());
                settled.counters += 1;
            }
        }
        Ok(settled)
    }

    /// Takes back what is left here, and says whether the store should be told.
    fn has_news(&self, counter: &Counter) -> bool {
        let is_unconfirmed = counter.is_unconfirmed(self.shared.connection());
        counter.return_lease().is_some() || is_unconfirmed
    }

    /// Connects, and asks for nothing of a key that nobody has: whether the store is there, and can be written.
    async fn probe(&mut self, inbox: &mut Inbox) {
        if self.connection.is_none() && !self.connect_meanwhile(inbox).await {
            return;
        }
        let calendar = Calendar { period: Period::Day, offset: Duration::ZERO };
        let report = Report { window: None, confirmed: 0, held: 0, seen: 0, left: 0 };
        let probe =
            Question { key: format!("{}:probe", self.namespace), amount: NonZeroU64::MIN, calendar, report, want: 0 };
        if self.ask(vec![probe], &[]).await.grants.iter().any(Option::is_none) {
            inbox.refuse_waiting();
        }
    }

    /// Connects while it refuses who asks; the first time they may wait as long as for an answer, for the store is not
    /// known to be down. Whether there is a connection now.
    async fn connect_meanwhile(&mut self, inbox: &mut Inbox) -> bool {
        let patience = if self.failures == 0 { BUDGET } else { Duration::ZERO };
        let refuse = async {
            tokio::time::sleep(patience).await;
            inbox.refuse().await;
        };
        let connected = tokio::select! {
            connected = connect(&self.client, Instant::now() + CONNECT) => connected,
            () = refuse => return false,
        };
        match connected {
            Ok(connection) => {
                self.keep(connection);
                true
            }
            Err(failure) => {
                self.shared.calls.fetch_add(1, Ordering::Relaxed);
                self.note(Err(failure));
                false
            }
        }
    }

    fn question(&self, counter: &Counter, want: impl FnOnce(u64) -> u64) -> Question {
        let report = counter.report();
        let key = format!("{}:quota:{}:{}", self.namespace, counter.key_id, counter.limit.period.name());
        let (amount, calendar) = (counter.limit.amount, counter.calendar);
        Question { key, amount, calendar, want: want(report.left), report }
    }

    /// One round trip for all that is asked. `None` for what was not answered.
    async fn ask(&mut self, questions: Vec<Question>, tokens: &[tokens::Visit]) -> Answers {
        self.call += 1;
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        let sent = Instant::now();
        let (grants, given) = match self.connected(sent + BUDGET).await {
            Err(failure) => {
                self.note(Err(failure));
                return Answers::none(questions.len(), tokens.len());
            }
            Ok(connection) => {
                let asked = questions.iter().map(|question| self.ask_one(connection.clone(), question, sent));
                let tokens = tokens.iter().map(|visit| visit.ask(connection.clone(), &self.namespace, sent));
                futures_util::join!(join_all(asked), join_all(tokens))
            }
        };
        let mut failure = None;
        let answers = Answers { grants: answered(grants, &mut failure), given: answered(given, &mut failure) };
        // One key that cannot be read does not make a dead store of it, as long as others can.
        self.note(failure.filter(|_| answers.are_none()).map_or(Ok(()), Err));
        answers
    }

    async fn ask_one(
        &self,
        mut connection: MultiplexedConnection,
        question: &Question,
        sent: Instant,
    ) -> Result<Grant, Failure> {
        let Question { key, amount, calendar, report, want } = question;
        let period = calendar.period;
        let mut call = CHARGE.key(key);
        call.arg(period.name()).arg(amount.get()).arg(lifetime_seconds(period)).arg(calendar.offset.as_secs());
        call.arg(&self.gateway).arg(self.call);
        call.arg(report.window.map(|window| window.to_string()).unwrap_or_default());
        call.arg(report.confirmed).arg(report.held).arg(report.seen).arg(*want);
        let answer: Answer = timeout_at(sent + BUDGET, call.invoke_async(&mut connection)).await.map_err(late)??;
        let (window, given, held, granted, second, microsecond) = answer;
        let now = Timestamp::new(second, microsecond.saturating_mul(1000))?;
        // The store looked at its clock after we sent, so this is not later than its end of the window.
        let ends = sent + until(now, calendar.end(window));
        let connection = self.shared.connection();
        Ok(Grant { window, given, granted, shared: Some(Confirmed { held, ends, connection }) })
    }

    async fn connected(&mut self, until: Instant) -> Result<MultiplexedConnection, Failure> {
        if let Some(connection) = &self.connection {
            return Ok(connection.clone());
        }
        let connection = connect(&self.client, until).await?;
        Ok(self.keep(connection))
    }

    fn keep(&mut self, connection: MultiplexedConnection) -> MultiplexedConnection {
        self.shared.connection.fetch_add(1, Ordering::Relaxed);
        self.connection.insert(connection).clone()
    }

    /// Logs when the store goes down and when it is back, not every call in between.
    fn note(&mut self, outcome: Result<(), Failure>) {
        let was_down = self.shared.is_down();
        match outcome {
            Ok(()) => {
                self.failures = 0;
                self.shared.is_down.store(false, Ordering::Relaxed);
                if was_down {
                    tracing::info!("the shared quota store answers again");
                }
            }
            Err(failure) => {
                // Whatever went wrong, a new connection may lead to a server that can.
                self.connection = None;
                self.failures = self.failures.saturating_add(1);
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
                if self.failures >= FAILURES && !was_down {
                    self.shared.is_down.store(true, Ordering::Relaxed);
                    tracing::error!(
                        error = &failure as &dyn std::error::Error,
                        "the shared quota store cannot be used; requests do not wait for it until it answers"
                    );
                }
            }
        }
    }
}

/// What the store answered to what was asked, in the same order.
struct Answers {
    grants: Vec<Option<Grant>>,
    given: Vec<Option<tokens::Given>>,
}

impl Answers {
    fn none(questions: usize, tokens: usize) -> Self {
        Self { grants: vec![None; questions], given: vec![None; tokens] }
    }

    fn are_none(&self) -> bool {
        self.grants.iter().all(Option::is_none) && self.given.iter().all(Option::is_none)
    }
}

/// What came of each question, with the last failure set aside.
fn answered<T>(answers: Vec<Result<T, Failure>>, failure: &mut Option<Failure>) -> Vec<Option<T>> {
    answers.into_iter().map(|answer| answer.map_err(|error| *failure = Some(error)).ok()).collect()
}

async fn connect(client: &Client, until: Instant) -> Result<MultiplexedConnection, Failure> {
    // The crate's own limits are for each step; ours is for all of them.
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let connecting = client.get_multiplexed_async_connection_with_config(&config);
    Ok(timeout_at(until, connecting).await.map_err(late)??)
}

fn late(_elapsed: tokio::time::error::Elapsed) -> Failure {
    Failure::Late
}

fn refuse(message: Message) {
    match message {
        Message::Ask(ask) => ask.refuse(),
        // Who gave up waiting does not need the answer.
        Message::Settle(Settle { reply, .. }) => drop(reply.send(Err(StoreError::Unreachable))),
    }
}
