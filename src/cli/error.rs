//! Failures as people and programs are told: the one place that decides kind, sentence, causes,
//! hint and exit code.
//!
//! # Limitations
//! A hint is one line. Where there is nothing useful to say there is none.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io::ErrorKind;

use super::style::{Style, neutral};
use super::{exit, refusal};
use crate::coordinator::attempt::drive::chain;
use crate::coordinator::attempt::outcome::WAIT_ENDED;
use crate::coordinator::error::Failure;
use crate::coordinator::place::PlaceError;
use crate::coordinator::words::typed;
use crate::git::files::root::RootError;
use crate::git::workspace::OpenError;
use crate::git::workspace::lockfile::{Holder, LockError, MarkerError};
use crate::hook::install::InstallError;
use crate::journal::LedgerError;
use crate::process;
use crate::tx::cause::ErrorCode;
use crate::tx::verdict::Status;

/// How many paths of a refusal are listed.
const SHOWN_PATHS: usize = 10;

/// What a failure is to a program: the reason's word, the error code, the exit code.
pub fn reason(failure: &Failure) -> (&'static str, ErrorCode, u8) {
    use Failure as F;
    let error = |word| (word, ErrorCode::Internal, exit::ERROR);
    match failure {
        F::Usage(_) => ("usage", ErrorCode::Internal, exit::USAGE),
        F::Config(_) => error("bad_settings"),
        F::Impossible { .. } => error("impossible"),
        F::Workspace(OpenError::Bare { .. }) => {
            ("bare_repository", ErrorCode::Refused, exit::REFUSED)
        }
        F::Workspace(_) => error("no_workspace"),
        F::GitConfig(_) => error("bad_git_config"),
        F::Place(_) => error("state_directory"),
        F::Ledger(LedgerError::NoExecution { .. }) => error("no_execution"),
        F::Ledger(LedgerError::Ambiguous { .. }) => error("ambiguous"),
        F::Ledger(LedgerError::Full { .. }) => error("no_space"),
        F::Ledger(LedgerError::Newer { .. }) => error("newer_ledger"),
        F::Ledger(_) => error("ledger"),
        F::Gate(_) => error("gate"),
        F::Busy { .. } => ("busy", ErrorCode::Busy, exit::BUSY),
        F::WaitEnded { .. } => (WAIT_ENDED, ErrorCode::Busy, exit::BUSY),
        F::Lock(_) => error("workspace_lock"),
        F::Refused { refusals, .. } => {
            let word = refusals.first().map_or("refused", |refusal| refusal.code());
            (word, ErrorCode::Refused, exit::REFUSED)
        }
        F::Standing(Status::Cancelled) => ("cancelled", ErrorCode::Reconciled, exit::VERDICT_LOST),
        F::Standing(_) => ("verdict_lost", ErrorCode::Reconciled, exit::VERDICT_LOST),
        F::Marker(MarkerError::OtherLedger { .. }) => {
            ("locked_by_second_ledger", ErrorCode::Refused, exit::REFUSED)
        }
        F::Marker(_) => error("marker"),
        F::Program(_) => error("command_not_found"),
        F::Start(_) => error("not_started"),
        F::Identity(_) => ("no_identity", ErrorCode::Refused, exit::REFUSED),
        F::PostCheck(_) => error("post_check_unusable"),
        F::Install(_) => error("guard_hook"),
        F::Store(_) => error("object_store"),
        F::Ref(_) => error("refs"),
        F::Root(RootError::NoOpenat2 { .. }) => {
            ("openat2_denied", ErrorCode::Refused, exit::REFUSED)
        }
        F::Root(_) => error("work_tree"),
        F::Manifest(_) => error("manifest"),
        F::Dir(_) => error("git_directory"),
        F::Io { .. } | F::Other { .. } => error("io"),
        F::LeftOpen { .. } => ("left_open", ErrorCode::Internal, exit::INTERNAL),
        F::LeftUnsettled { .. } => ("left_unsettled", ErrorCode::Interrupted, exit::INTERRUPTED),
        F::Bug(_) => ("bug", ErrorCode::Internal, exit::INTERNAL),
    }
}

/// The text for a person, with its last line end; `command` is the one that failed.
pub fn report(style: Style, command: &str, failure: &Failure) -> String {
    let mut out = String::new();
    let word = style.bad("Error:");
    match failure {
        Failure::Refused { refusals, warnings } => {
            let _ = writeln!(out, "{word} the workspace cannot be a base; nothing ran");
            for refusal in refusals {
                let document = refusal::document(refusal);
                let _ = writeln!(out, "  {}: {}", document.reason, neutral(&document.message));
                for path in document.paths.iter().take(SHOWN_PATHS) {
                    let _ = writeln!(out, "    {path}");
                }
                if document.paths.len() > SHOWN_PATHS {
                    let more = document.paths.len() - SHOWN_PATHS;
                    let _ = writeln!(out, "    … and {more} more");
                }
                if let Some(hint) = document.hint {
                    let _ = writeln!(out, "  Hint: {}", neutral(&hint));
                }
            }
            for warning in warnings {
                let _ = writeln!(out, "{} {}", style.notice("warning:"), neutral(&warning.message));
            }
            return out;
        }
        Failure::Bug(what) => {
            let _ = writeln!(out, "{word} this is a bug in worktx: {}", neutral(what));
        }
        other => {
            let _ = writeln!(out, "{word} {}", neutral(&other.to_string()));
        }
    }
    causes(&mut out, failure);
    let of_its_own =
        matches!(failure, Failure::Usage(_)).then(|| format!("worktx {command} --help"));
    if let Some(hint) = of_its_own.or_else(|| hint(failure)) {
        let _ = writeln!(out, "Hint: {}", neutral(&hint));
    }
    out
}

/// The causes that say something which has not been said yet.
fn causes(out: &mut String, failure: &Failure) {
    let mut said = failure.to_string();
    let mut next = failure.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !text.is_empty() && !said.contains(&text) {
            let _ = writeln!(out, "Caused by: {}", neutral(&text));
            said = text;
        }
        next = cause.source();
    }
}

/// What is wrong, with its causes, in one line.
pub fn sentence(failure: &Failure) -> String {
    if let Failure::Refused { refusals, .. } = failure {
        let all: Vec<String> =
            refusals.iter().map(|refusal| refusal::document(refusal).message).collect();
        return format!("the workspace cannot be a base: {}", all.join("; "));
    }
    chain(failure)
}

/// What to do about it, where there is something to do.
pub fn hint(failure: &Failure) -> Option<String> {
    use Failure as F;
    let fixed = match failure {
        F::Usage(_) => "worktx --help",
        F::Impossible { hint, .. } => return hint.clone(),
        F::Workspace(OpenError::NotARepository { .. }) => {
            "go into a git repository, or name one with --workspace; git init makes one"
        }
        F::Workspace(OpenError::Bare { .. } | OpenError::InsideGitDir { .. }) => {
            "go into a work tree of it, or name one with --workspace"
        }
        F::Workspace(OpenError::GitSymlink { .. }) => {
            "put the git directory there, or a file with `gitdir: <path>`"
        }
        F::Workspace(OpenError::NotUtf8 { .. }) => {
            "give the directories of the path names in UTF-8: records hold it as text"
        }
        F::Workspace(OpenError::Damaged { .. }) => "look with: git fsck",
        F::Workspace(OpenError::Replaced { .. }) => "go into the directory anew, and call it again",
        // `doctor` begins with the same look, and would end with the same sentence.
        F::Workspace(OpenError::Io { source, .. }) => match source.kind() {
            ErrorKind::PermissionDenied => "it has to be readable for your user",
            _ => "name a directory in a git work tree: --workspace DIR",
        },
        F::Place(PlaceError::Io { .. }) => {
            "work as the user whose it is, make it accessible to yours, or name another: \
             WORKTX_STATE_DIR"
        }
        F::Store(_) | F::Ref(_) | F::Dir(_) => "worktx doctor",
        F::Config(_) => "docs/configuration.md lists every key",
        F::GitConfig(_) => "git config --list --show-origin",
        F::Place(PlaceError::OtherState { recorded, .. }) => {
            return Some(format!("use it: WORKTX_STATE_DIR='{}'", recorded.display()));
        }
        F::Place(PlaceError::InWorkTree(_)) => {
            "choose a directory outside of it, or unset WORKTX_STATE_DIR"
        }
        F::Ledger(error) => return ledger_hint(error),
        F::Busy { holder } | F::WaitEnded { holder } => {
            return Some(busy_hint(holder.as_deref()));
        }
        F::Lock(LockError::Replaced { .. } | LockError::Io { .. }) => "worktx doctor",
        F::Marker(MarkerError::OtherLedger { marker }) => {
            let dir = std::path::Path::new(&marker.ledger).parent()?;
            return Some(format!("WORKTX_STATE_DIR='{}' worktx reconcile", dir.display()));
        }
        F::Marker(_) => "worktx doctor",
        F::Standing(_) => "a new --execution-id begins a new execution",
        F::Program(_) => "the command comes after `--`: a program on the PATH, or its path",
        F::Identity(_) => refusal::NO_IDENTITY,
        F::PostCheck(_) => "worktx run --no-post-check goes without one",
        F::Install(InstallError::Io { .. }) => "worktx doctor",
        F::Root(RootError::NoOpenat2 { .. }) => {
            "Linux 5.6 or newer is needed, and a container runtime that allows openat2"
        }
        F::LeftOpen { .. } | F::LeftUnsettled { .. } => "worktx reconcile",
        F::Bug(_) => "please report it, with the output of: worktx doctor",
        // They say what to do themselves, or nobody can.
        F::Lock(LockError::Busy { .. })
        | F::Refused { .. }
        | F::Gate(_)
        | F::Start(_)
        | F::Install(_)
        | F::Root(_)
        | F::Manifest(_)
        | F::Io { .. }
        | F::Other { .. } => return None,
    };
    Some(fixed.to_owned())
}

fn ledger_hint(error: &LedgerError) -> Option<String> {
    let fixed = match error {
        LedgerError::NoExecution { .. } => "worktx list",
        LedgerError::Ambiguous { ids, .. } => {
            let ids: Vec<&str> = ids.iter().map(crate::tx::id::ExecutionId::as_str).collect();
            return Some(format!("one of: {}", ids.join(", ")));
        }
        LedgerError::Full { .. } => "free some space; worktx gc drops what is kept of old attempts",
        LedgerError::Newer { .. } => "use the newer worktx",
        LedgerError::Older { .. } | LedgerError::NeedsRecovery { .. } => "worktx reconcile",
        LedgerError::Deleted { .. } | LedgerError::OpenedForReading { .. } => return None,
        _ => "worktx doctor",
    };
    Some(fixed.to_owned())
}

fn busy_hint(holder: Option<&Holder>) -> String {
    let Some(holder) = holder else {
        return "wait for it with --wait DUR; worktx status says who it is".to_owned();
    };
    if process::own_ancestry().contains(&holder.process) {
        // It would wait for itself, or end itself.
        return format!(
            "this is called from within `worktx {}` (pid {}), which holds the work tree: run the \
             command itself there, without worktx",
            holder.command, holder.process.pid
        );
    }
    match &holder.attempt {
        Some(key) => format!(
            "attempt {key} runs here (pid {}): --wait DUR waits for it, {} ends it",
            holder.process.pid,
            typed("cancel", &key.execution, "")
        ),
        None => format!(
            "`worktx {}` is at work (pid {}): wait for it with --wait DUR",
            holder.command, holder.process.pid
        ),
    }
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
