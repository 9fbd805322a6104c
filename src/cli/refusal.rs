//! Refusals and warnings about a base, in sentences with a hint each.
//!
//! # Limitations
//! The paths stand beside the sentence, not in it.

use super::error;
use crate::coordinator::error::Failure;
use crate::coordinator::report::documents::RefusalDocument;
use crate::coordinator::words::typed;
use crate::git::workspace::refusal::{Operation, Refusal};

/// What to do where nobody is named for a commit.
pub(super) const NO_IDENTITY: &str =
    "git config user.name NAME and git config user.email MAIL, or `[commit] author`";

/// A refusal as a document.
pub fn document(refusal: &Refusal) -> RefusalDocument {
    let (message, hint) = text(refusal);
    RefusalDocument {
        reason: refusal.code().to_owned(),
        message,
        hint,
        paths: refusal.paths().to_vec(),
    }
}

/// What ends a run before it can be refused, as a document.
pub fn unusable(failure: &Failure) -> RefusalDocument {
    RefusalDocument {
        reason: error::reason(failure).0.to_owned(),
        message: error::sentence(failure),
        hint: error::hint(failure),
        paths: Vec::new(),
    }
}

/// The sentence, and what to do about it.
fn text(refusal: &Refusal) -> (String, Option<String>) {
    use Refusal as R;
    let settle = "commit or stash it, or say --on-dirty run to go without a transaction";
    let (message, hint): (String, &str) = match refusal {
        R::BareRepository => ("the repository has no work tree".into(), "use a clone of it"),
        R::UnbornHead { branch } => (
            format!("the branch {branch} has no commit yet"),
            "git commit --allow-empty -m initial",
        ),
        R::OperationInProgress { operation, file } => {
            let name = operation.name();
            let end = match operation {
                Operation::Bisect => "git bisect reset".to_owned(),
                _ => format!("finish it, or: git {name} --abort"),
            };
            return (format!("a {name} is in progress ({file})"), Some(end));
        }
        R::ForeignLock { path } => (
            format!("a lock of git is there: {path}"),
            "wait for the git command that holds it; if there is none, remove the file",
        ),
        R::ObjectFormat { format } => {
            (format!("objects are named by {format}: only SHA-1 is supported"), "")
        }
        R::RefStorage { storage } => (
            format!("refs are stored as {storage}: only files are supported"),
            "git refs migrate --ref-format=files",
        ),
        R::UnknownExtension { name } => {
            (format!("the repository uses the extension {name}, which is not known here"), "")
        }
        R::FormatVersion { version } => {
            (format!("the repository has the format {version}, which is not known here"), "")
        }
        R::SparseCheckout => {
            ("sparse checkout is not supported yet".into(), "git sparse-checkout disable")
        }
        R::Submodules { .. } => ("submodules are not supported yet".into(), ""),
        R::SplitIndex => {
            ("a split index is not supported".into(), "git update-index --no-split-index")
        }
        R::SparseIndex => {
            ("a sparse index is not supported yet".into(), "git sparse-checkout disable")
        }
        R::WorktreeElsewhere { path } => (
            format!("core.worktree leads elsewhere: {path}"),
            "run it in that work tree, or: git config --unset core.worktree",
        ),
        R::SymbolicBranch { branch } => (
            format!("the branch {branch} is only another name of a branch"),
            "switch to the branch that it leads to",
        ),
        R::UnsafeOwner { path, owner } => {
            let hint = format!("git config --global --add safe.directory '{path}'");
            return (format!("{path} belongs to another user ({owner})"), Some(hint));
        }
        R::Damaged { why } => (format!("the git directory is not whole: {why}"), "git fsck"),
        R::BadConfig { why } => (
            format!("git's configuration cannot be read: {why}"),
            "git config --list --show-origin",
        ),
        R::NoIdentity { role } => {
            (format!("nobody is named as the {role} of a commit"), NO_IDENTITY)
        }
        R::Openat2Denied => (
            "the system does not allow openat2".into(),
            "Linux 5.6 or newer is needed, and a container runtime that allows it; worktx doctor",
        ),
        R::ConflictedIndex { .. } => (
            "a merge has left conflicts".into(),
            "resolve them and `git add`, or git merge --abort",
        ),
        R::StagedChanges { .. } => ("the index differs from HEAD".into(), settle),
        R::ModifiedTracked { .. } => ("tracked files differ from HEAD".into(), settle),
        R::UntrackedPresent { .. } => (
            "there are untracked files, and `[base] untracked` is \"refuse\"".into(),
            "commit, ignore or remove them",
        ),
        R::UntrackedBeyondLimits { limit, allowed, found, .. } => (
            format!("untracked files are beyond limits.{limit}: {found}, allowed are {allowed}"),
            "ignore them, list them in `[scope] exclude`, or raise `[limits]`",
        ),
        R::Quarantined { attempt, reason, commands } => {
            let show = typed("show", &attempt.execution, "");
            let hint = match commands.len() {
                0 => show,
                _ => format!("{show} explains it; then: {}", commands.join(", or ")),
            };
            return (format!("attempt {attempt} is quarantined here: {reason}"), Some(hint));
        }
        R::FilterDriver { driver, .. } => (
            format!("the filter driver {driver} is not supported yet"),
            "take the filter attribute off these paths, or keep them out of this repository",
        ),
        R::WorkingTreeEncoding { .. } => (
            "the attribute working-tree-encoding is not supported yet".into(),
            "see .gitattributes",
        ),
        R::Ident { .. } => {
            ("the attribute ident is not supported yet".into(), "see .gitattributes")
        }
        R::Unstorable { .. } => {
            ("git cannot store something that stands there".into(), "remove it, or exclude it")
        }
        R::Unreadable { .. } => (
            "something here cannot be read by your user, so that it could not be brought back"
                .into(),
            "make it readable; what git does not track may be named in .git/info/exclude instead",
        ),
        R::LockedBySecondLedger { ledger, attempt } => {
            let what = attempt.as_ref().map_or_else(String::new, |a| format!(" (attempt {a})"));
            let dir = std::path::Path::new(ledger).parent().unwrap_or(std::path::Path::new("/"));
            let hint = format!("WORKTX_STATE_DIR='{}' worktx reconcile", dir.display());
            return (format!("the ledger {ledger} has unsettled work here{what}"), Some(hint));
        }
        R::StateInWorkTree { path } => (
            format!("the state directory {path} lies in the work tree"),
            "put it elsewhere: WORKTX_STATE_DIR or `[state] dir`",
        ),
    };
    (message, (!hint.is_empty()).then(|| hint.to_owned()))
}
