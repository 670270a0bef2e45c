//! Questions for tokens of shared throttles, on their way to the store and back.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::Script;
use redis::aio::MultiplexedConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::super::store::{Down, QUEUE};
use super::super::tokens::{Taking, Tokens};
use super::{BUDGET, Failure, late};
use crate::auth::KeyId;

static TAKE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("take.lua"), include_str!("tokens.lua"))));

/// Whether there was a token.
pub(super) type Reply = oneshot::Sender<Result<bool, Down>>;

/// A question by one request, or by none that waits for it.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) tokens: Arc<Tokens>,
    pub(super) reply: Option<Reply>,
}

/// All that is asked about one account at one time.
#[derive(Debug)]
pub(super) struct Visit {
    tokens: Arc<Tokens>,
    waiting: Vec<Reply>,
}

/// What the store gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    granted: u64,
    sent: Instant,
    full_in: Duration,
}

/// What waits in `asks`, a visit for each account.
pub(super) fn gather(asks: &mut mpsc::Receiver<Ask>) -> Vec<Visit> {
    let mut visits: BTreeMap<KeyId, Visit> = BTreeMap::new();
    let waiting = std::iter::from_fn(|| asks.try_recv().ok());
    for Ask { tokens, reply } in waiting.take(QUEUE) {
        let account = Arc::clone(&tokens.account);
        let visit = visits.entry(account).or_insert_with(|| Visit { tokens, waiting: Vec::new() });
        visit.waiting.extend(reply);
    }
    visits.into_values().collect()
}

impl Ask {
    pub(super) fn refuse(self) {
        let Self { tokens, reply } = self;
        Visit { tokens, waiting: reply.into_iter().collect() }.refuse();
    }
}

impl Visit {
    /// Answers what can be decided without the store by now. `None`: that was all.
    pub(super) fn serve_known(mut self) -> Option<Self> {
        if self.waiting.is_empty() {
            return Some(self);
        }
        let now = self.tokens.elapsed();
        while let Some(reply) = self.waiting.pop() {
            let is_taken = match self.tokens.take(now) {
                Taking::Taken => true,
                Taking::Dry(_) => false,
                Taking::Short => {
                    self.waiting.push(reply);
                    return Some(self);
                }
            };
            // Who gave up waiting does not need the answer.
            let _ = reply.send(Ok(is_taken));
        }
        None
    }

    /// One question to the store.
    pub(super) async fn ask(
        &self,
        mut connection: MultiplexedConnection,
        namespace: &str,
        sent: Instant,
    ) -> Result<Given, Failure> {
        let mut call = TAKE.key(format!("{namespace}:rate:{}", self.tokens.account));
        let bucket = self.tokens.bucket();
        call.arg(microseconds(bucket.interval())).arg(microseconds(bucket.depth()));
        call.arg(self.tokens.wanted(self.waiting.len() as u64));
        let answer = timeout_at(sent + BUDGET, call.invoke_async(&mut connection)).await.map_err(late)??;
        let (granted, full_in): (u64, u64) = answer;
        Ok(Given { granted, sent, full_in: Duration::from_micros(full_in) })
    }

    /// Books what was given and answers. A token whose asker has gone stays here.
    pub(super) fn serve(self, Given { granted, sent, full_in }: Given) {
        let mut served = self.tokens.receive(granted, self.waiting.len() as u64, sent, full_in);
        for reply in self.waiting {
            let is_taken = served > 0;
            served = served.saturating_sub(1);
            if reply.send(Ok(is_taken)).is_err() && is_taken {
                self.tokens.put_back();
            }
        }
    }

    pub(super) fn refuse(self) {
        self.tokens.asked_in_vain();
        for reply in self.waiting {
            let _ = reply.send(Err(Down));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "the rounding is far below one request")]
fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}
