//! The outcome document: what `run` says at its end, and what is kept for a replay.
//!
//! Its form is `docs/schema/outcome.json`; within a schema number fields are only ever added.
//!
//! # Limitations
//! Paths that are no UTF-8 stand in it as git quotes them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tx::cause::ErrorCode;
use crate::tx::id::{AttemptKey, AttemptNo, ExecutionId, Oid};
use crate::tx::path::RepoPath;
use crate::tx::phase::PhaseTime;
use crate::tx::record::{AttemptRecord, Warning};
use crate::tx::state::{ChangeCounts, PostCheckRecord, TxState};
use crate::tx::verdict::Status;
use crate::tx::writer::TurnResult;

/// The schema number of every document of this version.
pub const SCHEMA: u32 = 1;

/// The reason of what a signal ended while it waited for its work tree: nothing ran.
pub const WAIT_ENDED: &str = "wait_ended";

/// What came of an attempt, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeWord {
    /// The row is won; branch and index hold the candidate.
    Committed,
    /// The scope is what it was.
    RolledBack,
    /// An operator decides.
    Quarantined,
    /// The workspace cannot be a base; nothing ran.
    Refused,
    /// It ran without a transaction, as asked.
    Unprotected,
    /// Somebody else is at work; nothing ran.
    Busy,
    /// Nothing ran, or worktx itself failed.
    Error,
}

impl OutcomeWord {
    /// The word in a document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled_back",
            Self::Quarantined => "quarantined",
            Self::Refused => "refused",
            Self::Unprotected => "unprotected",
            Self::Busy => "busy",
            Self::Error => "error",
        }
    }
}

/// The refs of an attempt, by their use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefsDocument {
    /// What keeps the base alive.
    pub base: Option<String>,
    /// What keeps the candidate alive.
    pub candidate: Option<String>,
    /// What was undone.
    pub discarded: Vec<String>,
    /// Somebody else's bytes.
    pub rescue: Vec<String>,
}

impl RefsDocument {
    /// The refs of a record.
    pub fn of(record: &AttemptRecord) -> Self {
        let name = |pin: &crate::tx::id::Pin| pin.name.0.clone();
        Self {
            base: record.pins.base.as_ref().map(name),
            candidate: record.pins.candidate.as_ref().map(name),
            discarded: record.pins.discarded.iter().map(name).collect(),
            rescue: record.pins.rescue.iter().map(name).collect(),
        }
    }
}

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    /// [`SCHEMA`]
    pub schema: u32,
    /// The execution.
    pub execution_id: ExecutionId,
    /// The attempt; `None` where there was none.
    pub attempt: Option<AttemptNo>,
    /// The word.
    pub outcome: OutcomeWord,
    /// Nothing ran: this was recorded before.
    pub replayed: bool,
    /// Why, in a word that stays the same.
    pub reason: Option<String>,
    /// Why, for a program; `None` on success.
    pub error_code: Option<ErrorCode>,
    /// What stands in the row.
    pub execution_status: Option<Status>,
    /// The root of the work tree.
    pub workspace: String,
    /// The branch; `HEAD` where it is detached.
    pub branch: Option<String>,
    /// The commit that it started from.
    pub base: Option<Oid>,
    /// The commit that stands for what the turn did.
    pub candidate: Option<Oid>,
    /// The commit that landed; `None` unless committed.
    pub commit: Option<Oid>,
    /// How many paths differ from the base.
    pub changes: Option<ChangeCounts>,
    /// How the turn ended.
    pub turn: Option<TurnResult>,
    /// What the post-check said.
    pub post_check: Option<PostCheckRecord>,
    /// Which refs keep what.
    pub refs: RefsDocument,
    /// Where somebody else's bytes were found.
    pub drift: Vec<RepoPath>,
    /// The paths that `reason` is about.
    pub paths: Vec<RepoPath>,
    /// More about `reason`, for a person.
    pub detail: Option<String>,
    /// What a person should know.
    pub warnings: Vec<Warning>,
    /// Where the time went, in the order of the phases; empty where no attempt was made. The last
    /// phase is told as far as it had come when this was written.
    #[serde(default)]
    pub phases: Vec<PhaseTime>,
}

/// The facts of an attempt that its state does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Which attempt.
    pub key: AttemptKey,
    /// The root of the work tree.
    pub workspace: String,
    /// The branch, by its short name.
    pub branch: String,
    /// The base commit.
    pub base: Oid,
}

impl Outcome {
    /// A document of an execution of which no attempt was made.
    pub fn without_attempt(execution: ExecutionId, outcome: OutcomeWord, workspace: &str) -> Self {
        Self {
            schema: SCHEMA,
            execution_id: execution,
            attempt: None,
            outcome,
            replayed: false,
            reason: None,
            error_code: None,
            execution_status: None,
            workspace: workspace.to_owned(),
            branch: None,
            base: None,
            candidate: None,
            commit: None,
            changes: None,
            turn: None,
            post_check: None,
            refs: RefsDocument::default(),
            drift: Vec::new(),
            paths: Vec::new(),
            detail: None,
            warnings: Vec::new(),
            phases: Vec::new(),
        }
    }

    /// The document of an attempt that is settled or quarantined.
    ///
    /// `status` is what stands in the row. `None` for a state that is still on its way.
    pub fn of(facts: Facts, record: &AttemptRecord, status: Option<Status>) -> Option<Self> {
        let state = &record.state;
        let mut document =
            Self::without_attempt(facts.key.execution, OutcomeWord::Error, &facts.workspace);
        document.attempt = Some(facts.key.attempt);
        document.execution_status = status;
        document.branch = Some(facts.branch);
        document.base = Some(facts.base);
        document.candidate = state.seal().map(|seal| seal.candidate);
        document.changes = state.seal().map(|seal| seal.changes);
        document.turn = state.turn().or(record.turn.as_ref()).cloned();
        document.post_check = state.post_check().cloned();
        document.refs = RefsDocument::of(record);
        document.drift.clone_from(&record.drift);
        document.warnings.clone_from(&record.warnings);
        match state {
            TxState::Done { seal, .. } => {
                document.outcome = OutcomeWord::Committed;
                document.commit = Some(seal.candidate);
                let nothing = seal.changes.total() == 0 && !seal.has_new_commit();
                document.reason = nothing.then(|| "nothing_to_commit".to_owned());
            }
            TxState::RolledBack { undo } => {
                document.outcome = OutcomeWord::RolledBack;
                let not_started = crate::tx::cause::Cause::NotStarted;
                let cause = undo.as_ref().map_or(&not_started, |undo| &undo.cause);
                document.reason = Some(cause.reason().to_owned());
                document.error_code = Some(cause.error_code());
                document.paths = cause.paths();
                document.detail = cause.detail().map(str::to_owned);
            }
            TxState::Released { reason } => {
                document.outcome = OutcomeWord::Quarantined;
                document.reason = Some("released".to_owned());
                document.error_code = Some(ErrorCode::Quarantined);
                document.detail = Some(reason.as_str().to_owned());
            }
            TxState::Quarantined { reason, .. } => {
                document.outcome = OutcomeWord::Quarantined;
                document.reason = Some(reason.as_str().to_owned());
                document.error_code = Some(ErrorCode::Quarantined);
                document.detail = reason.detail();
            }
            _ => return None,
        }
        Some(document)
    }

    /// The exit code of `run`: design section 7, `docs/exit-codes.md`.
    pub fn exit_code(&self) -> u8 {
        match (self.outcome, self.error_code) {
            (OutcomeWord::Committed, _) => 0,
            (OutcomeWord::Quarantined, _) => 20,
            (OutcomeWord::Refused, _) => 21,
            (OutcomeWord::Busy, _) => 22,
            (OutcomeWord::Unprotected, None) => 0,
            (_, Some(ErrorCode::AgentError)) => 10,
            (_, Some(ErrorCode::PostCheckFailed | ErrorCode::Policy)) => 11,
            (_, Some(ErrorCode::Timeout)) => 12,
            (_, Some(ErrorCode::Cancelled | ErrorCode::Reconciled | ErrorCode::Quarantined)) => 13,
            (_, Some(ErrorCode::Interrupted)) => 14,
            // As the failure that it was made of: `cli` has the words.
            (OutcomeWord::Error, Some(ErrorCode::Internal)) => match self.reason.as_deref() {
                None | Some("bug" | "left_open") => 70,
                Some("usage") => 2,
                Some(_) => 1,
            },
            (_, Some(ErrorCode::Internal)) => 70,
            (OutcomeWord::Error, _) => 1,
            (OutcomeWord::RolledBack | OutcomeWord::Unprotected, _) => 70,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tx::cause::Cause;

    /// The exit code by the document is the one by the cause: a replay has the document only.
    #[test]
    fn exit_codes_follow_the_cause() {
        let causes = [
            Cause::NotStarted,
            Cause::TurnFailed,
            Cause::TurnTimeout,
            Cause::SettleBy,
            Cause::Cancelled,
            Cause::Interrupted,
            Cause::Crashed,
            Cause::Redelivered,
            Cause::PostCheckFailed,
            Cause::PostCheckMissing,
            Cause::PostCheckChanged,
            Cause::Unignored { paths: Vec::new() },
            Cause::TooLarge { paths: Vec::new() },
            Cause::FilterUnsupported { paths: Vec::new() },
            Cause::Unstorable { paths: Vec::new() },
            Cause::Unfit { why: String::new() },
            Cause::VerdictLost { standing: None },
            Cause::Discarded,
        ];
        for cause in causes {
            let id = "x".parse().expect("valid");
            let mut document = Outcome::without_attempt(id, OutcomeWord::RolledBack, "/");
            document.error_code = Some(cause.error_code());
            assert_eq!(document.exit_code(), cause.exit_code(), "{cause:?}");
        }
    }
}
