//! What came of a version that asked to serve: the checks it went through, and what each found. Plain data, kept by the
//! control plane and shown to operators.

use serde::{Deserialize, Serialize};

/// The rungs, in the order they are climbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The bytes are those first seen under this version.
    Digest,
    /// The file keeps the rules of [`scan`](super::scan).
    Scan,
    /// It loads and runs in a process of its own, within limits.
    Probe,
    /// It takes what its predecessor takes.
    Signature,
    /// Its input example gives finite answers in the declared shape.
    Example,
    /// It loads here, and every slot runs.
    WarmUp,
    /// It answers the rows answered lately about as its predecessor did.
    Replay,
}

impl Check {
    /// The word, as in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Digest => "digest",
            Self::Scan => "scan",
            Self::Probe => "probe",
            Self::Signature => "signature",
            Self::Example => "example",
            Self::WarmUp => "warm_up",
            Self::Replay => "replay",
        }
    }
}

/// How a rung ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The version keeps to it.
    Passed,
    /// There was nothing to check; the detail says why.
    Skipped,
    /// The version does not keep to it.
    Refused,
    /// It could not be found out, through no fault of the version. Worth trying again.
    Undecided,
}

/// One rung of a [`Verdict`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rung {
    /// Which.
    pub name: Check,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found, for people.
    pub detail: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// What came of a version: the rungs it climbed, and the one where it stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// In the order they were climbed.
    pub rungs: Vec<Rung>,
}

impl Verdict {
    /// The rung where the version stopped, if it did.
    #[must_use]
    pub fn stopped_at(&self) -> Option<&Rung> {
        self.rungs.last().filter(|rung| matches!(rung.outcome, Outcome::Refused | Outcome::Undecided))
    }

    /// Whether the version may serve.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.stopped_at().is_none()
    }
}
