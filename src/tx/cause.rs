//! Why an attempt went where it went, in the words of the outcome document, and what each means
//! for the row and for the exit code.
//!
//! # Limitations
//! The sentences that people read are made in `cli`; here are the facts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::path::RepoPath;
use super::verdict::{Status, TerminalStatus};
use super::writer::BlockedPath;

/// `error_code` of an outcome document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The turn failed.
    AgentError,
    /// The turn, or all of it, ran out of time.
    Timeout,
    /// The post-check said no.
    PostCheckFailed,
    /// A policy said no.
    Policy,
    /// This attempt's own Ctrl-C, or a cancel that it was told of.
    Cancelled,
    /// Another writer's terminal stood first.
    Reconciled,
    /// SIGTERM or SIGHUP, or a crash.
    Interrupted,
    /// An operator decides.
    Quarantined,
    /// The workspace cannot be a base.
    Refused,
    /// The workspace is busy.
    Busy,
    /// A bug, or a machine that fails.
    Internal,
}

impl ErrorCode {
    /// The word in a document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AgentError => "agent_error",
            Self::Timeout => "timeout",
            Self::PostCheckFailed => "post_check_failed",
            Self::Policy => "policy",
            Self::Cancelled => "cancelled",
            Self::Reconciled => "reconciled",
            Self::Interrupted => "interrupted",
            Self::Quarantined => "quarantined",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::Internal => "internal",
        }
    }
}

/// Why an attempt is rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    /// It never started: nothing can have been written.
    NotStarted,
    /// The turn returned something else than 0, or a signal ended it.
    TurnFailed,
    /// `--timeout` ran out.
    TurnTimeout,
    /// `--settle-by` passed before the gate.
    SettleBy,
    /// Cancelled before the gate.
    Cancelled,
    /// SIGTERM or SIGHUP to the coordinator: the row stays open.
    Interrupted,
    /// A crash cut the turn off, and `on_interrupted = "roll_back"`.
    Crashed,
    /// The same execution came again after a crash cut it off.
    Redelivered,
    /// The post-check returned something else than 0, or a signal or its timeout ended it.
    PostCheckFailed,
    /// There is no post-check, or none that runs, and the settings want one.
    PostCheckMissing,
    /// The post-check is not what was captured.
    PostCheckChanged,
    /// The turn un-ignored paths that the base ignored.
    Unignored {
        /// Which.
        paths: Vec<RepoPath>,
    },
    /// The turn created more than the limits allow.
    TooLarge {
        /// Which, or the largest of them.
        paths: Vec<RepoPath>,
    },
    /// The turn put paths under a filter driver.
    FilterUnsupported {
        /// Which.
        paths: Vec<RepoPath>,
    },
    /// The turn left something that git cannot store.
    Unstorable {
        /// What, and why not.
        paths: Vec<BlockedPath>,
    },
    /// The turn left the repository so that no attempt could begin in it.
    Unfit {
        /// In what way, for a person.
        why: String,
    },
    /// Another terminal stands in the row.
    VerdictLost {
        /// Which; `None` where there is no row.
        standing: Option<Status>,
    },
    /// An operator's `resolve --discard`.
    Discarded,
}

impl Cause {
    /// `reason` of an outcome document.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotStarted => "not_started",
            Self::TurnFailed => "turn_failed",
            Self::TurnTimeout => "turn_timeout",
            Self::SettleBy => "settle_by",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
            Self::Crashed => "crashed",
            Self::Redelivered => "redelivered",
            Self::PostCheckFailed => "post_check_failed",
            Self::PostCheckMissing => "post_check_missing",
            Self::PostCheckChanged => "post_check_changed",
            Self::Unignored { .. } => "unignored",
            Self::TooLarge { .. } => "too_large",
            Self::FilterUnsupported { .. } => "filter_unsupported",
            Self::Unstorable { .. } => "unstorable",
            Self::Unfit { .. } => "unfit",
            Self::VerdictLost { .. } => "verdict_lost",
            Self::Discarded => "discarded",
        }
    }

    /// `error_code` of an outcome document.
    pub const fn error_code(&self) -> ErrorCode {
        match self {
            Self::TurnFailed => ErrorCode::AgentError,
            Self::TurnTimeout | Self::SettleBy => ErrorCode::Timeout,
            Self::Cancelled => ErrorCode::Cancelled,
            Self::NotStarted | Self::Interrupted | Self::Crashed | Self::Redelivered => {
                ErrorCode::Interrupted
            }
            Self::PostCheckFailed => ErrorCode::PostCheckFailed,
            Self::PostCheckMissing
            | Self::PostCheckChanged
            | Self::Unignored { .. }
            | Self::TooLarge { .. }
            | Self::FilterUnsupported { .. }
            | Self::Unstorable { .. }
            | Self::Unfit { .. } => ErrorCode::Policy,
            Self::VerdictLost { .. } => ErrorCode::Reconciled,
            Self::Discarded => ErrorCode::Quarantined,
        }
    }

    /// The terminal that the row is asked to take once the tree is back; `None` leaves the row
    /// open (a re-delivery may come) or as another writer wrote it.
    pub const fn terminal(&self) -> Option<TerminalStatus> {
        match self {
            Self::NotStarted
            | Self::Interrupted
            | Self::Crashed
            | Self::Redelivered
            | Self::VerdictLost { .. } => None,
            Self::Cancelled => Some(TerminalStatus::Cancelled),
            Self::TurnFailed
            | Self::TurnTimeout
            | Self::SettleBy
            | Self::PostCheckFailed
            | Self::PostCheckMissing
            | Self::PostCheckChanged
            | Self::Unignored { .. }
            | Self::TooLarge { .. }
            | Self::FilterUnsupported { .. }
            | Self::Unstorable { .. }
            | Self::Unfit { .. }
            | Self::Discarded => Some(TerminalStatus::Failed),
        }
    }

    /// The exit code of `run`: design section 7.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::TurnFailed => 10,
            Self::PostCheckFailed
            | Self::PostCheckMissing
            | Self::PostCheckChanged
            | Self::Unignored { .. }
            | Self::TooLarge { .. }
            | Self::FilterUnsupported { .. }
            | Self::Unstorable { .. }
            | Self::Unfit { .. } => 11,
            Self::TurnTimeout | Self::SettleBy => 12,
            Self::Cancelled | Self::VerdictLost { .. } | Self::Discarded => 13,
            Self::NotStarted | Self::Interrupted | Self::Crashed | Self::Redelivered => 14,
        }
    }

    /// More about it, for a person.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Unfit { why } => Some(why),
            _ => None,
        }
    }

    /// The paths that it is about.
    pub fn paths(&self) -> Vec<RepoPath> {
        match self {
            Self::Unignored { paths }
            | Self::TooLarge { paths }
            | Self::FilterUnsupported { paths } => paths.clone(),
            Self::Unstorable { paths } => paths.iter().map(|p| p.path.clone()).collect(),
            _ => Vec::new(),
        }
    }
}

/// Why an attempt is quarantined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum QuarantineReason {
    /// A crash cut the turn off: nobody can say what was intended.
    Interrupted,
    /// Somebody of the turn may still be writing.
    WriterUnproven,
    /// The verdict is won and the branch cannot be moved.
    PromoteBlocked {
        /// What is in the way.
        why: String,
    },
    /// The undo cannot be finished.
    RestoreBlocked {
        /// What is in the way.
        paths: Vec<BlockedPath>,
        /// What is in the way, where it is no path.
        why: String,
    },
    /// The candidate, or the pin of what is to be undone, cannot be made.
    SealBlocked {
        /// What is in the way.
        why: String,
    },
    /// The branch is somewhere that the turn is not known to have moved it to.
    BranchMoved {
        /// What was found.
        why: String,
    },
    /// The index is not what it was at the seal.
    IndexChanged,
    /// A lock of git that is not ours.
    ForeignLock {
        /// The file.
        lock: String,
    },
    /// Bytes that are nobody's of this attempt, and `on_drift = "quarantine"`.
    Drift {
        /// Where.
        paths: Vec<RepoPath>,
    },
    /// A file kept changing although every writer is dead.
    Unstable {
        /// Which.
        paths: Vec<RepoPath>,
    },
    /// The gate gave no answer within the bound.
    GateUnknown {
        /// The last answer.
        why: String,
    },
    /// worktx could not start its own captured copy of the post-check.
    PostCheckUnstartable {
        /// Why.
        why: String,
    },
    /// The post-check is not what was captured, and `on_changed = "quarantine"`.
    PostCheckChanged,
    /// The post-check changed HEAD, the branch or the index.
    PostCheckTouchedGit {
        /// What.
        why: String,
    },
    /// The turn changed configuration, hooks or alternates, and `on_git_change = "quarantine"`.
    GitChanged {
        /// What.
        what: Vec<String>,
    },
    /// The git directory, or the workspace itself, is not what it was at open.
    WorkspaceDamaged {
        /// What was found.
        why: String,
    },
    /// The workspace lock was lost: its file is not the one that is held.
    LockLost,
    /// Row, branch and record contradict each other.
    VerdictMismatch,
    /// An adopted attempt lost at the gate, or its post-check said no.
    AdoptFailed {
        /// Why.
        why: String,
    },
}

impl QuarantineReason {
    /// The words of all of them.
    pub const WORDS: [&str; 19] = [
        "interrupted",
        "writer_unproven",
        "promote_blocked",
        "restore_blocked",
        "seal_blocked",
        "branch_moved",
        "index_changed",
        "foreign_lock",
        "drift",
        "unstable",
        "gate_unknown",
        "post_check_unstartable",
        "post_check_changed",
        "post_check_touched_git",
        "git_changed",
        "workspace_damaged",
        "lock_lost",
        "verdict_mismatch",
        "adopt_failed",
    ];

    /// `reason` of a document.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Interrupted => "interrupted",
            Self::WriterUnproven => "writer_unproven",
            Self::PromoteBlocked { .. } => "promote_blocked",
            Self::RestoreBlocked { .. } => "restore_blocked",
            Self::SealBlocked { .. } => "seal_blocked",
            Self::BranchMoved { .. } => "branch_moved",
            Self::IndexChanged => "index_changed",
            Self::ForeignLock { .. } => "foreign_lock",
            Self::Drift { .. } => "drift",
            Self::Unstable { .. } => "unstable",
            Self::GateUnknown { .. } => "gate_unknown",
            Self::PostCheckUnstartable { .. } => "post_check_unstartable",
            Self::PostCheckChanged => "post_check_changed",
            Self::PostCheckTouchedGit { .. } => "post_check_touched_git",
            Self::GitChanged { .. } => "git_changed",
            Self::WorkspaceDamaged { .. } => "workspace_damaged",
            Self::LockLost => "lock_lost",
            Self::VerdictMismatch => "verdict_mismatch",
            Self::AdoptFailed { .. } => "adopt_failed",
        }
    }

    /// The detail for a person, where there is one beyond the word.
    pub fn detail(&self) -> Option<String> {
        let list = |paths: &[RepoPath]| {
            paths.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        match self {
            Self::PromoteBlocked { why }
            | Self::SealBlocked { why }
            | Self::BranchMoved { why }
            | Self::GateUnknown { why }
            | Self::PostCheckUnstartable { why }
            | Self::PostCheckTouchedGit { why }
            | Self::WorkspaceDamaged { why }
            | Self::AdoptFailed { why } => Some(why.clone()),
            Self::RestoreBlocked { paths, why } => {
                let mut parts: Vec<String> =
                    paths.iter().map(|p| format!("{}: {}", p.path, p.why)).collect();
                if !why.is_empty() {
                    parts.push(why.clone());
                }
                Some(parts.join("; "))
            }
            Self::ForeignLock { lock } => Some(lock.clone()),
            Self::Drift { paths } | Self::Unstable { paths } => Some(list(paths)),
            Self::GitChanged { what } => Some(what.join(", ")),
            Self::Interrupted
            | Self::WriterUnproven
            | Self::IndexChanged
            | Self::PostCheckChanged
            | Self::LockLost
            | Self::VerdictMismatch => None,
        }
    }
}
