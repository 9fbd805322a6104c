//! The execution row, what may be asked of it, and what the answer is.
//!
//! The truth table is the platform's compare-and-set with one stricter cell: SUCCESS over SUCCESS
//! wins only for the same attempt and candidate. [`judge`] is that table as a function; the gates
//! do the same in one atomic statement and are tested against it.
//!
//! # Limitations
//! A row says who won, not that the winner has acted on it: that is the journal's to know.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::id::{AttemptNo, ExecutionId, InvalidName, Oid};

/// The status of an execution, by the platform's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waiting for a worker.
    Queued,
    /// At work.
    Running,
    /// Terminal: it is done.
    Success,
    /// Terminal: it went wrong.
    Failed,
    /// Terminal: somebody did not want it any more.
    Cancelled,
    /// Terminal: it was not needed.
    Skipped,
    /// Waiting for another try.
    PendingRetry,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Running,
        Self::Success,
        Self::Failed,
        Self::Cancelled,
        Self::Skipped,
        Self::PendingRetry,
    ];

    /// The name in a row and in a document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Skipped => "skipped",
            Self::PendingRetry => "pending_retry",
        }
    }

    /// Whether nothing is expected to follow.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Success | Self::Failed | Self::Cancelled | Self::Skipped)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = InvalidName;
    fn from_str(value: &str) -> Result<Self, InvalidName> {
        Self::ALL.into_iter().find(|s| s.as_str() == value).ok_or_else(|| InvalidName {
            what: "status",
            value: value.to_owned(),
            rule: "one of the platform's seven",
        })
    }
}

/// Who claims a SUCCESS, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// The attempt.
    pub attempt: AttemptNo,
    /// The commit that it stands for.
    pub candidate: Oid,
}

/// The execution row, as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The execution.
    pub execution: ExecutionId,
    /// Its status.
    pub status: Status,
    /// The attempt that may write a terminal.
    pub current_attempt: Option<AttemptNo>,
    /// The attempt and candidate that SUCCESS names, where it does.
    pub success: Option<Claim>,
    /// The platform's fence of the pull model, fresh per claim.
    pub claim_token: Option<String>,
    /// `[code] message`, of a terminal that is not a success.
    pub error: Option<String>,
}

/// A terminal that somebody wants in the row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// What is asked for.
    pub status: TerminalStatus,
    /// The attempt that asks; `None` for a cancel or a watchdog, which speak for none.
    pub from: Option<AttemptNo>,
    /// The claim token that the row must hold, where one was given.
    pub claim_token: Option<String>,
    /// `[code] message`.
    pub error: Option<String>,
}

/// The terminals that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TerminalStatus {
    /// SUCCESS of this candidate; the attempt is in [`Terminal::from`], and must be there.
    Success(Oid),
    /// FAILED.
    Failed,
    /// CANCELLED.
    Cancelled,
    /// SKIPPED.
    Skipped,
}

impl TerminalStatus {
    /// The status that the row has if it wins.
    pub const fn status(self) -> Status {
        match self {
            Self::Success(_) => Status::Success,
            Self::Failed => Status::Failed,
            Self::Cancelled => Status::Cancelled,
            Self::Skipped => Status::Skipped,
        }
    }
}

/// The answer of a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// The row says what was asked for, for whom it was asked.
    Won(Won),
    /// Something else stands there, or there is no row.
    Lost(Option<Row>),
    /// No answer that can be attributed: ask again, never act.
    Unknown(String),
}

/// A verdict that was won. Promotion and the effects of a success take one by value or reference.
///
/// Made by `gate` only, a test keeps it so.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Won(Row);

impl Won {
    /// For `gate` alone: the row as it stands after the win.
    pub(crate) const fn by(row: Row) -> Self {
        Self(row)
    }

    /// The row that stands.
    pub const fn row(&self) -> &Row {
        &self.0
    }
}

/// Whether `ask` wins over what stands: the truth table as a pure function.
pub fn judge(standing: Option<&Row>, ask: &Terminal) -> bool {
    let Some(row) = standing else { return false };
    if ask.claim_token.is_some() && ask.claim_token != row.claim_token {
        return false;
    }
    if ask.from.is_some() && ask.from != row.current_attempt {
        return false;
    }
    match (ask.status, row.status) {
        (TerminalStatus::Success(_), _) if ask.from.is_none() => false,
        (_, Status::Queued | Status::Running | Status::PendingRetry) => true,
        (TerminalStatus::Success(_), Status::Failed | Status::Skipped) => true,
        (TerminalStatus::Success(candidate), Status::Success) => {
            row.success.is_some_and(|s| Some(s.attempt) == ask.from && s.candidate == candidate)
        }
        (TerminalStatus::Success(_), Status::Cancelled) => false,
        (
            TerminalStatus::Failed | TerminalStatus::Cancelled | TerminalStatus::Skipped,
            Status::Success | Status::Failed | Status::Cancelled | Status::Skipped,
        ) => false,
    }
}
