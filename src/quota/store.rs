//! The way to the usage store; the thread that owns the embedded one, and the SQL it runs.
//!
//! The thread takes all that is waiting, up to [`BATCH`], through one transaction: at midnight every key needs a new window,
//! and one write to the disk serves them all.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use super::calendar::{OFFSET_MAX, Window};
use super::counter::{Attempt, Balance, Counter, Grant, Hold, Terms, next_window};
use super::shared::{self, Asked, Shared};
use super::tokens::Tokens;
use super::{Limit, Location, Period, Settled, StoreError};
use crate::auth::{self, KeyId};
use crate::task;

/// Questions that may wait. A full queue refuses the request that asks, so that a slow disk cannot gather requests.
pub(super) const QUEUE: usize = 1024;

/// Questions answered with one transaction.
pub(super) const BATCH: usize = 256;

/// SQLite needs far less.
pub(super) const STACK_BYTES: usize = 512 * 1024;

/// The way to the thread. The thread ends when this is dropped.
#[derive(Debug)]
pub(super) struct Store {
    inbox: mpsc::Sender<Message>,
    /// Only where gateways share the store.
    shared: Option<Arc<Shared>>,
}

/// The store could not answer.
#[derive(Debug)]
pub(super) struct Down;

/// A charge that the store was asked about: taken, or why not.
pub(super) type Charged = Result<(Option<Hold>, Balance), Down>;

#[derive(Debug)]
pub(super) enum Message {
    Ask(Ask),
    Settle(Settle),
}

/// A question about one key, by a request whose clock says `seen`.
#[derive(Debug)]
pub(super) struct Ask {
    counter: Arc<Counter>,
    seen: Window,
    want: Want,
}

#[derive(Debug)]
pub(super) enum Want {
    /// These units, and a lease for those who come after.
    Charge { units: u64, now: Timestamp, reply: oneshot::Sender<Charged> },
    /// A lease, before the present one is used up.
    TopUp,
    /// Only to know.
    Look { reply: oneshot::Sender<Result<Balance, Down>> },
}

#[derive(Debug)]
pub(super) struct Settle {
    pub(super) counters: Vec<Arc<Counter>>,
    pub(super) now: Timestamp,
    pub(super) reply: oneshot::Sender<Result<Settled, StoreError>>,
}

impl Store {
    /// Opens the store and starts its thread.
    pub(super) fn start(location: Location, random: auth::Random<'_>) -> Result<Self, StoreError> {
        let (inbox, messages) = mpsc::channel(QUEUE);
        let shared = match location {
            Location::Redis(config) => Some(shared::start(config, messages, random)?),
            Location::File(path) => {
                let mut keeper = Keeper { db: auth::store::open(&path)?, swept: None, down: false };
                task::thread("usage-store", STACK_BYTES, move || keeper.run(messages)).map_err(StoreError::Thread)?;
                None
            }
        };
        Ok(Self { inbox, shared })
    }

    /// The store's own side, where gateways share it.
    pub(super) fn shared(&self) -> Option<&Shared> {
        self.shared.as_deref()
    }

    /// How the store gives a quota out.
    pub(super) fn terms(&self, limit: Limit) -> Terms {
        self.shared().map_or_else(|| Terms::embedded(limit), |shared| Terms::shared(limit, shared.lease()))
    }

    /// Takes `units` for `counter`, with what the store has left. `None` for the hold: there is not enough.
    pub(super) async fn charge(&self, counter: Arc<Counter>, units: u64, now: Timestamp) -> Charged {
        let (reply, answer) = oneshot::channel();
        self.ask(counter, now, Want::Charge { units, now, reply })?;
        answer.await.unwrap_or(Err(Down))
    }

    /// Where `counter` stands.
    pub(super) async fn look(&self, counter: Arc<Counter>, now: Timestamp) -> Result<Balance, Down> {
        let (reply, answer) = oneshot::channel();
        self.ask(counter, now, Want::Look { reply })?;
        answer.await.unwrap_or(Err(Down))
    }

    /// Asks for a lease without waiting for it.
    pub(super) fn top_up(&self, counter: &Arc<Counter>, now: Timestamp) {
        if self.ask(Arc::clone(counter), now, Want::TopUp).is_err() {
            counter.topped_up_in_vain();
        }
    }

    /// Puts a question for a token of a shared throttle beside what the store is asked for next.
    pub(super) fn queue_token(&self, tokens: &Arc<Tokens>) -> Result<Asked, Down> {
        self.shared().ok_or(Down)?.queue_token(tokens)
    }

    /// Whether there was a token. Asks now, if nothing else was asked for since.
    pub(super) async fn token(&self, asked: Result<Asked, Down>) -> Result<bool, Down> {
        let mut asked = asked?;
        // Woken for nothing, the thread would take the next token's question before the rows that come with it.
        match asked.try_recv() {
            Ok(answer) => answer,
            Err(TryRecvError::Closed) => Err(Down),
            Err(TryRecvError::Empty) => {
                self.wake();
                asked.await.unwrap_or(Err(Down))
            }
        }
    }

    /// The same for tokens that nobody waits for.
    pub(super) fn queue_top_up(&self, tokens: &Arc<Tokens>) {
        if self.shared().is_none_or(|shared| shared.queue_top_up(tokens).is_err()) {
            tokens.asked_in_vain();
        }
    }

    /// Has the shared store asked for what was put beside.
    pub(super) fn wake(&self) {
        self.shared().into_iter().for_each(Shared::wake);
    }

    fn ask(&self, counter: Arc<Counter>, now: Timestamp, want: Want) -> Result<(), Down> {
        if self.shared().is_some_and(Shared::is_down) {
            return Err(Down);
        }
        let seen = counter.calendar.window(now);
        self.inbox.try_send(Message::Ask(Ask { counter, seen, want })).map_err(|_| Down)
    }

    /// Gives back what is left of the leases of `counters`, and forgets windows that ended. Waits for its turn.
    pub(super) async fn settle(&self, counters: Vec<Arc<Counter>>, now: Timestamp) -> Result<Settled, StoreError> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Settle(Settle { counters, now, reply });
        self.inbox.send(message).await.map_err(|_| StoreError::Stopped)?;
        answer.await.unwrap_or(Err(StoreError::Stopped))
    }
}

/// What the thread holds.
struct Keeper {
    db: Connection,
    /// The day on which ended windows were last forgotten.
    swept: Option<Window>,
    /// Whether the last transaction failed; tells the first failure from those that follow.
    down: bool,
}

/// The part of a batch that is about one key.
pub(super) struct Visit {
    pub(super) counter: Arc<Counter>,
    seen: Window,
    wants: Vec<Want>,
}

impl Keeper {
    fn run(&mut self, mut messages: mpsc::Receiver<Message>) {
        while let Some(first) = messages.blocking_recv() {
            let (visits, settlements) = gather(Some(first), &mut messages);
            self.answer(visits);
            for Settle { counters, now, reply } in settlements {
                // Who asked may have gone; the leases are settled all the same.
                let _ = reply.send(self.settle(&counters, now));
            }
        }
    }

    fn answer(&mut self, visits: Vec<Visit>) {
        if visits.is_empty() {
            return;
        }
        let granted = self.grant(&visits);
        self.log_change(granted.as_ref().err());
        match granted {
            Ok(grants) => visits.into_iter().zip(grants).for_each(|(visit, grant)| visit.serve(grant)),
            Err(_) => visits.into_iter().for_each(Visit::refuse),
        }
    }

    /// Grants are booked only when the transaction is on the disk.
    fn grant(&mut self, visits: &[Visit]) -> rusqlite::Result<Vec<Grant>> {
        let tx = auth::store::write(&mut self.db)?;
        let grants = visits.iter().map(|visit| visit.grant(&tx)).collect::<rusqlite::Result<_>>()?;
        tx.commit()?;
        Ok(grants)
    }

    fn settle(&mut self, counters: &[Arc<Counter>], now: Timestamp) -> Result<Settled, StoreError> {
        let leases: Vec<_> = counters
            .iter()
            .filter_map(|counter| counter.return_lease().map(|(window, lease)| (counter, window, lease)))
            .collect();
        let settled = self.give_back(&leases, now);
        if settled.is_err() {
            for (counter, _, lease) in &leases {
                counter.keep_lease(*lease);
            }
        }
        settled?;
        Ok(Settled { counters: leases.len() })
    }

    fn give_back(&mut self, leases: &[(&Arc<Counter>, Window, u64)], now: Timestamp) -> rusqlite::Result<()> {
        let today = Period::Day.window(now);
        let sweep = self.swept != Some(today);
        if leases.is_empty() && !sweep {
            return Ok(());
        }
        let tx = auth::store::write(&mut self.db)?;
        for (counter, window, lease) in leases {
            tx.execute(
                "UPDATE usage SET given = max(0, given - ?) WHERE key_id = ? AND period = ? AND window = ?",
                params![integer(*lease)?, &*counter.key_id, counter.limit.period.name(), window],
            )?;
        }
        if sweep {
            forget_ended(&tx, now)?;
        }
        tx.commit()?;
        self.swept = Some(today);
        Ok(())
    }

    /// Logs when the store goes down and when it is back, not every request in between.
    fn log_change(&mut self, failure: Option<&rusqlite::Error>) {
        match (failure, self.down) {
            (Some(error), false) => tracing::error!(
                error = error as &dyn std::error::Error,
                "the usage store cannot be written; keys are served until their leases are used up"
            ),
            (None, true) => tracing::info!("the usage store can be written again"),
            _ => (),
        }
        self.down = failure.is_some();
    }
}

/// `first` and what waits behind it, a visit for each key.
pub(super) fn gather(first: Option<Message>, messages: &mut mpsc::Receiver<Message>) -> (Vec<Visit>, Vec<Settle>) {
    let mut visits = BTreeMap::new();
    let mut settlements = Vec::new();
    let waiting = std::iter::from_fn(|| messages.try_recv().ok());
    for message in first.into_iter().chain(waiting).take(BATCH) {
        match message {
            Message::Ask(ask) => add(&mut visits, ask),
            Message::Settle(settle) => settlements.push(settle),
        }
    }
    (visits.into_values().collect(), settlements)
}

fn add(visits: &mut BTreeMap<KeyId, Visit>, Ask { counter, seen, want }: Ask) {
    let key = Arc::clone(&counter.key_id);
    let visit = visits.entry(key).or_insert_with(|| Visit { counter, seen, wants: Vec::new() });
    // Around midnight requests disagree; those of one batch are counted together, in the later window.
    visit.seen = visit.seen.max(seen);
    visit.wants.push(want);
}

impl Visit {
    /// Gives out what the wants need, as far as the window has it, and writes that down.
    fn grant(&self, tx: &Transaction<'_>) -> rusqlite::Result<Grant> {
        let known = self.counter.known();
        let written = self.read(tx)?;
        // A row that was swept on a wrong date is still known here.
        let last = written.or(known.map(|(window, given, _)| (window, given)));
        let (window, given) = match last {
            None => (self.seen, 0),
            Some((window, given)) => match next_window(window, self.seen) {
                next if next > window => (next, 0),
                next => (next, given),
            },
        };
        let left = known.filter(|(known, ..)| *known >= window).map_or(0, |(.., left)| left);
        let granted = self.wanted(left).min(self.counter.amount().saturating_sub(given));
        let grant = Grant { window, given: given + granted, granted, shared: None };
        // A window that was left for an earlier one would else be found again, with its count, on every later day.
        if granted > 0 || last.is_some_and(|(left, _)| window < left) {
            self.write(tx, grant)?;
        }
        Ok(grant)
    }

    /// Enough for all charges, whatever else is taken meanwhile, and so that a full lease is left at most.
    pub(super) fn wanted(&self, left: u64) -> u64 {
        if self.wants.iter().all(|want| matches!(want, Want::Look { .. })) {
            return 0;
        }
        let charges = self.charges().fold(0, |sum: u64, (units, _)| sum.saturating_add(units));
        charges.max(self.counter.lease().saturating_sub(left))
    }

    fn charges(&self) -> impl Iterator<Item = (u64, Timestamp)> {
        self.wants.iter().filter_map(|want| match want {
            Want::Charge { units, now, .. } => Some((*units, *now)),
            Want::TopUp | Want::Look { .. } => None,
        })
    }

    fn read(&self, tx: &Transaction<'_>) -> rusqlite::Result<Option<(Window, u64)>> {
        tx.query_one(
            "SELECT window, given FROM usage WHERE key_id = ? AND period = ?",
            params![&*self.counter.key_id, self.counter.limit.period.name()],
            // The schema allows no negative number; one that is there all the same reads as a used up window.
            |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned())),
        )
        .optional()
    }

    fn write(&self, tx: &Transaction<'_>, grant: Grant) -> rusqlite::Result<()> {
        tx.execute(
            "INSERT INTO usage (key_id, period, window, given) VALUES (?, ?, ?, ?)
             ON CONFLICT (key_id, period) DO UPDATE SET window = excluded.window, given = excluded.given",
            params![&*self.counter.key_id, self.counter.limit.period.name(), grant.window, integer(grant.given)?],
        )?;
        Ok(())
    }

    /// Books the grant and answers. A hold whose asker has gone is dropped, and that gives it back.
    pub(super) fn serve(self, grant: Grant) {
        let (balance, holds) = self.counter.receive(grant, self.charges());
        let mut holds = holds.into_iter();
        for want in self.wants {
            match want {
                Want::Charge { reply, .. } => drop(reply.send(Ok((holds.next().flatten(), balance)))),
                Want::Look { reply } => drop(reply.send(Ok(balance))),
                Want::TopUp => (),
            }
        }
    }

    /// Answers what can be decided without the store by now: what others asked for may be enough. `None`: that was all.
    pub(super) fn serve_known(mut self) -> Option<Self> {
        let mut rest = Vec::new();
        for want in self.wants {
            match want {
                Want::Charge { units, now, reply } => match self.counter.charge(units, now) {
                    Attempt::Held { hold, balance, low } => {
                        rest.extend(low.then_some(Want::TopUp));
                        drop(reply.send(Ok((Some(hold), balance))));
                    }
                    Attempt::Exhausted(balance) => drop(reply.send(Ok((None, balance)))),
                    Attempt::Short => rest.push(Want::Charge { units, now, reply }),
                },
                Want::Look { .. } | Want::TopUp => rest.push(want),
            }
        }
        self.wants = rest;
        (!self.wants.is_empty()).then_some(self)
    }

    pub(super) fn refuse(self) {
        self.wants.into_iter().for_each(|want| want.refuse(&self.counter));
    }
}

impl Ask {
    pub(super) fn refuse(self) {
        self.want.refuse(&self.counter);
    }
}

impl Want {
    fn refuse(self, counter: &Counter) {
        match self {
            Self::Charge { reply, .. } => drop(reply.send(Err(Down))),
            Self::Look { reply } => drop(reply.send(Err(Down))),
            Self::TopUp => counter.topped_up_in_vain(),
        }
    }
}

/// Deletes the rows of windows before the last one, whatever their offset. That one stays, for a clock that steps back
/// over midnight.
fn forget_ended(tx: &Transaction<'_>, now: Timestamp) -> rusqlite::Result<()> {
    let now = now.checked_sub(OFFSET_MAX).unwrap_or(Timestamp::MIN);
    for period in [Period::Day, Period::Week, Period::Month] {
        tx.execute(
            "DELETE FROM usage WHERE period = ? AND window < ?",
            params![period.name(), period.window(now) - 1],
        )?;
    }
    Ok(())
}

/// SQLite's integers have a sign.
fn integer(number: u64) -> rusqlite::Result<i64> {
    i64::try_from(number).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}
