//! What can go wrong with a ledger, by what one does about it.
//!
//! # Limitations
//! SQLite does not say which process holds a lock.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode as Code;
use rusqlite::ffi;

use crate::tx::id::{AttemptKey, ExecutionId};
use crate::tx::tag::StateTag;

/// Why the ledger did not do what it was asked for. Nothing is ever reset or repaired in silence.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// There is no ledger, and the call does not make one.
    #[error("there is no ledger at {path}")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file is gone and its rollback journal is still there: somebody deleted it.
    #[error(
        "the ledger {path} was deleted: its journal {journal} is still there. \
         Bring the ledger back from a copy, or remove the journal to begin a new one"
    )]
    Deleted {
        /// Where it was.
        path: PathBuf,
        /// What is left of it.
        journal: PathBuf,
    },
    /// A link, a directory, somebody else's file, or one that others may write.
    #[error("{path} cannot be trusted as a ledger: {why}")]
    Untrusted {
        /// The file or the directory that holds it.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process holds the file for longer than the bound.
    #[error("the ledger {path} is locked by another process (waited {waited_ms} ms)")]
    Locked {
        /// The file.
        path: PathBuf,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// The file or its directory cannot be written.
    #[error("the ledger {path} cannot be written: {why}")]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        why: String,
    },
    /// No space is left. Nothing was written.
    #[error("no space is left for the ledger {path}")]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged, or what stands in it contradicts itself.
    #[error("the ledger {path} is damaged: {why}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The file is something else: an empty file, another program's database, no database.
    #[error("{path} is not a ledger of worktx: {why}")]
    NotALedger {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// A newer worktx wrote it: it can be read, and is never written.
    #[error("the ledger {path} has format {found}, this worktx knows {known}: it is only read")]
    Newer {
        /// The file.
        path: PathBuf,
        /// The format of the file.
        found: u32,
        /// The format that this program writes.
        known: u32,
    },
    /// An older worktx wrote it: it has to be opened for writing once, which brings it up to date.
    #[error("the ledger {path} has the old format {found}, this worktx reads {known}")]
    Older {
        /// The file.
        path: PathBuf,
        /// The format of the file.
        found: u32,
        /// The format that this program reads.
        known: u32,
    },
    /// The file that is open does not stand at its path any more.
    #[error("the ledger {path} was moved, deleted or exchanged while it was open")]
    Moved {
        /// Where it stood.
        path: PathBuf,
    },
    /// A crash left a transaction to undo, and this process may not write.
    #[error("the ledger {path} needs its journal rolled back, and cannot be written: {why}")]
    NeedsRecovery {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        why: String,
    },
    /// The ledger was opened for reading.
    #[error("the ledger {path} was opened for reading only")]
    OpenedForReading {
        /// The file.
        path: PathBuf,
    },
    /// The state is not the expected one: somebody else has moved the attempt. Nothing was written.
    #[error("attempt {key} is not in state {expected} at revision {rev}: {}", found_text(.found.as_ref()))]
    Stale {
        /// The attempt.
        key: AttemptKey,
        /// The state that was expected.
        expected: StateTag,
        /// The revision that was expected.
        rev: u64,
        /// The state and revision that stand there; `None` where there is no such attempt.
        found: Option<(String, u64)>,
    },
    /// Another process has become the owner of the attempt. Nothing was written.
    #[error("attempt {key} belongs to another process")]
    OwnerChanged {
        /// The attempt.
        key: AttemptKey,
    },
    /// There is no such attempt.
    #[error("there is no attempt {key}")]
    NoAttempt {
        /// The attempt.
        key: AttemptKey,
    },
    /// The attempt is not settled: it is not to be removed.
    #[error("attempt {key} is not settled ({state})")]
    NotSettled {
        /// The attempt.
        key: AttemptKey,
        /// The state that it is in.
        state: String,
    },
    /// No execution has this id or begins with it.
    #[error("no execution is named {prefix:?}")]
    NoExecution {
        /// What was asked for.
        prefix: String,
    },
    /// Several executions begin with it.
    #[error("{prefix:?} is short for more than one execution")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// Who is meant, at most ten of them.
        ids: Vec<ExecutionId>,
    },
    /// A value cannot be written as JSON, or what stands there is of a form not known here.
    #[error("{what} of the ledger {path} cannot be read or written")]
    Json {
        /// The file.
        path: PathBuf,
        /// Which column of which row.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The machine failed to read or write.
    #[error("the ledger {path}: {doing} failed")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Everything else that SQLite says: a rule of the schema was broken, memory ran out.
    #[error("the ledger {path}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: rusqlite::Error,
    },
}

/// How long a lock of another process is waited for, in milliseconds. A db transaction of worktx
/// takes a few; this is for a machine that hardly moves.
pub(super) const LOCK_WAIT_MS: u64 = 10_000;

fn found_text(found: Option<&(String, u64)>) -> String {
    match found {
        Some((state, rev)) => format!("it is {state} at {rev}"),
        None => "there is no such attempt".to_owned(),
    }
}

/// Sorts what SQLite says by what one does about it.
pub(super) fn fault(path: &Path, error: rusqlite::Error) -> LedgerError {
    let path = path.to_owned();
    let why = error.to_string();
    match &error {
        rusqlite::Error::SqliteFailure(cause, _) => match (cause.code, cause.extended_code) {
            (Code::DatabaseBusy | Code::DatabaseLocked, _) => {
                LedgerError::Locked { path, waited_ms: LOCK_WAIT_MS }
            }
            (_, ffi::SQLITE_READONLY_ROLLBACK | ffi::SQLITE_READONLY_RECOVERY) => {
                LedgerError::NeedsRecovery { path, why }
            }
            (_, ffi::SQLITE_READONLY_DBMOVED) => LedgerError::Moved { path },
            (Code::ReadOnly | Code::CannotOpen | Code::PermissionDenied, _) => {
                LedgerError::ReadOnly { path, why }
            }
            (Code::DiskFull, _) => LedgerError::Full { path },
            (Code::DatabaseCorrupt, _) => LedgerError::Corrupt { path, why },
            (Code::NotADatabase, _) => LedgerError::NotALedger { path, why },
            (Code::SystemIoFailure, _) => LedgerError::Io {
                path,
                doing: "reading or writing",
                source: io::Error::other(error),
            },
            _ => LedgerError::Sqlite { path, source: error },
        },
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::Utf8Error(..) => LedgerError::Corrupt { path, why },
        _ => LedgerError::Sqlite { path, source: error },
    }
}
