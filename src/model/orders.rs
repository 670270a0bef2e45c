//! What operators ask of the control plane. The one way from an address to the manager: bounded, and each order is
//! answered.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot};

use super::{ModelName, Version};

/// Orders that may wait. One more is refused as [`Refused::Busy`].
const QUEUE: usize = 32;

/// The longest name or reason that is kept of an operator, in characters.
const SAID_MAX: usize = 200;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// What happened to the model's versions.
    History,
    /// Serve this version now. The version the registry wants is set aside until it wants another.
    Promote(Version),
    /// Go back to the version before, or end the trial, and bar the version that is left.
    RollBack,
    /// Serve this version until told otherwise.
    Pin(Version),
    /// Follow the registry again.
    Unpin,
}

/// Who asks, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// As the operator calls itself; not proved.
    pub who: String,
    /// The reason given.
    pub why: String,
}

impl Operator {
    /// An operator; long texts are cut, and what cannot be printed is left out.
    #[must_use]
    pub fn new(who: Option<&str>, why: Option<&str>) -> Self {
        let said = |text: &str| text.chars().filter(|letter| !letter.is_control()).take(SAID_MAX).collect();
        Self { who: said(who.unwrap_or("operator")), why: said(why.unwrap_or("asked for by hand")) }
    }
}

/// One order and where its answer goes.
#[derive(Debug)]
pub struct Order {
    /// Of which model.
    pub model: ModelName,
    /// What.
    pub ask: Ask,
    /// By whom.
    pub by: Operator,
    /// Where the answer goes. Whoever asked may have gone.
    pub reply: oneshot::Sender<Answer>,
}

/// What came of an order.
pub type Answer = Result<Done, Refused>;

/// What was done.
#[derive(Debug)]
pub enum Done {
    /// This version answers now.
    Serving {
        /// The version.
        version: Version,
        /// What answered before, or was on trial, if it was another.
        from: Option<Version>,
    },
    /// What happened, newest first.
    History(Vec<Event>),
}

/// Why an order is not followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such model is configured.
    #[error("there is no such model")]
    Unknown,
    /// Nothing to go back to.
    #[error("there is no version to go back to: none was served before this one since the gateway started")]
    NothingBefore,
    /// Nothing is pinned.
    #[error("no version is pinned")]
    NotPinned,
    /// Too many orders at once, or another one for this model is under way.
    #[error("another order is under way; try again when it is done")]
    Busy,
    /// The version cannot be had, or is not fit.
    #[error("{0}")]
    NotServed(String),
    /// The history cannot be read.
    #[error("the history cannot be read; the log has the reason")]
    Unreadable,
}

/// What happened to a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It came to answer.
    Served,
    /// It was found unfit.
    Refused,
    /// It was put on trial, or the next step of one.
    Tried,
    /// It passed the watch after it came to answer.
    Kept,
    /// It was put off trial, because something else is wanted.
    Withdrawn,
    /// It was left for the version before, and is barred.
    RolledBack,
    /// It came to answer callers who stay on it.
    Held,
    /// It stays until told otherwise.
    Pinned,
    /// It no longer stays.
    Unpinned,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Served,
        Self::Refused,
        Self::Tried,
        Self::Kept,
        Self::Withdrawn,
        Self::RolledBack,
        Self::Held,
        Self::Pinned,
        Self::Unpinned,
    ];

    /// The word, as in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Refused => "refused",
            Self::Tried => "tried",
            Self::Kept => "kept",
            Self::Withdrawn => "withdrawn",
            Self::RolledBack => "rolled_back",
            Self::Held => "held",
            Self::Pinned => "pinned",
            Self::Unpinned => "unpinned",
        }
    }

    /// The kind of that word.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One line of a model's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// What happened.
    pub event: Kind,
    /// To which version.
    #[serde(serialize_with = "as_text")]
    pub version: Version,
    /// Its bytes, where they were seen.
    pub digest: Option<String>,
    /// What answered before.
    #[serde(serialize_with = "as_text_if_any")]
    pub from: Option<Version>,
    /// What answers after.
    #[serde(serialize_with = "as_text_if_any")]
    pub to: Option<Version>,
    /// Who or what made it happen.
    pub who: String,
    /// Why.
    pub why: String,
    /// What was measured, where something was.
    pub verdict: Option<String>,
}

/// Versions are text wherever callers and operators read them.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape serde calls")]
fn as_text<S: serde::Serializer>(version: &Version, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(version)
}

#[expect(clippy::ref_option, reason = "the shape serde calls")]
fn as_text_if_any<S: serde::Serializer>(version: &Option<Version>, serializer: S) -> Result<S::Ok, S::Error> {
    match version {
        Some(version) => serializer.collect_str(version),
        None => serializer.serialize_none(),
    }
}

/// Where orders are given. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Orders {
    queue: mpsc::Sender<Order>,
    hint: Arc<Notify>,
}

/// Where orders arrive. There is one, and the manager holds it.
#[derive(Debug)]
pub struct Inbox {
    /// The orders.
    pub queue: mpsc::Receiver<Order>,
    /// Somebody says the registry has news. Any number of hints is one.
    pub hint: Arc<Notify>,
}

/// Both ends.
#[must_use]
pub fn channel() -> (Orders, Inbox) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let hint = Arc::new(Notify::new());
    (Orders { queue: sender, hint: Arc::clone(&hint) }, Inbox { queue, hint })
}

impl Orders {
    /// Gives an order and waits for what comes of it, which for a version that has to be fetched takes a while. The order
    /// stands when the wait is given up.
    ///
    /// # Errors
    /// When it is not followed, and why.
    pub async fn give(&self, model: ModelName, ask: Ask, by: Operator) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(Order { model, ask, by, reply }).map_err(|_full| Refused::Busy)?;
        // Gone without an answer: the manager stops.
        answer.await.unwrap_or(Err(Refused::Busy))
    }

    /// Says that it is worth asking the registry now.
    pub fn hint(&self) {
        self.hint.notify_one();
    }
}
