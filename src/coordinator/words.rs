//! The sentences that leave worktx by other ways than its own output: warnings, which are recorded,
//! and what a quarantine means, which stands in an operator's queue too.
//!
//! # Limitations
//! Failures and refusals have their words in `cli`.

use crate::git::workspace::judge::BaseWarning;
use crate::tx::id::ExecutionId;

/// The code and the sentence of a warning.
pub const fn base_warning(warning: &BaseWarning) -> (&'static str, &'static str) {
    match warning {
        BaseWarning::DetachedHead => {
            ("detached_head", "HEAD is on no branch: the commit is on HEAD alone")
        }
        BaseWarning::NotSigned => {
            ("not_signed", "commit.gpgSign is set; worktx does not sign, so the commit is unsigned")
        }
        BaseWarning::FileModeIgnored => {
            ("file_mode_ignored", "core.fileMode is off: a changed executable bit is not committed")
        }
        BaseWarning::ReplaceRefs => (
            "replace_refs",
            "the repository has refs/replace/; worktx reads the objects that they replace",
        ),
        BaseWarning::Shallow => ("shallow", "the clone is shallow: some history is not there"),
    }
}

/// A warning of the workspace, as documents have it.
pub fn warning(warning: &BaseWarning) -> crate::tx::record::Warning {
    let (code, message) = base_warning(warning);
    crate::tx::record::Warning { code: code.to_owned(), message: message.to_owned() }
}

/// What a quarantine reason means.
pub fn quarantine(word: &str) -> &'static str {
    match word {
        "interrupted" => {
            "A crash cut the command off: nobody can say what it would have left. Running the same \
             execution again also ends this, if nothing here has changed since."
        }
        "writer_unproven" => {
            "A process of the command may still be writing: nothing is touched until it is proven \
             dead, or you say so."
        }
        "promote_blocked" => {
            "It won, and the branch could not be moved to its commit. Once it can, or contains the \
             commit by a merge, it completes."
        }
        "restore_blocked" => {
            "The base could not be brought back whole: something is in the way. Once that is gone, \
             --discard goes on; where it cannot go (an object is missing), --keep ends it."
        }
        "seal_blocked" => "What stands there could not be pinned, so nothing of it was undone.",
        "branch_moved" => {
            "The branch is somewhere that the command is not known to have moved it to."
        }
        "index_changed" => "Somebody changed the index after the work was sealed.",
        "foreign_lock" => "A lock of git that is not worktx's was in the way.",
        "drift" => "Files changed after the seal, and not by this attempt.",
        "unstable" => "Files kept changing although every process of the command is dead.",
        "gate_unknown" => "The verdict was asked for and did not come.",
        "post_check_unstartable" => "worktx could not start its copy of the post-check.",
        "post_check_changed" => "The post-check is not the one that was captured at the start.",
        "post_check_touched_git" => "The post-check changed HEAD, the branch or the index.",
        "git_changed" => {
            "The command changed hooks, configuration or alternates of the git directory."
        }
        "workspace_damaged" => "The git directory, or the work tree, is not what it was.",
        "lock_lost" => "The file of the workspace lock was exchanged while the lock was held.",
        "verdict_mismatch" => {
            "The execution's row, the branch and the journal contradict each other."
        }
        "adopt_failed" => "It was to be adopted, and the post-check or the gate said no.",
        _ => "It was stopped for a reason that this worktx does not know.",
    }
}

/// A command about an execution, as it is typed: `options` are empty or begin with a dash.
pub fn typed(verb: &str, id: &ExecutionId, options: &str) -> String {
    let space = if options.is_empty() { "" } else { " " };
    if id.as_str().starts_with('-') {
        // Else it would be taken for an option itself.
        format!("worktx {verb}{space}{options} -- {id}")
    } else {
        format!("worktx {verb} {id}{space}{options}")
    }
}

/// What a command that settles a quarantine does; `None` for another command. `won` is of an
/// attempt whose success stands.
pub fn command(command: &str, won: bool) -> Option<&'static str> {
    if won && command.contains("--adopt") {
        return Some("does the same, of this attempt alone");
    }
    let word = [
        ("--adopt", "takes the work: it is sealed as it stands, validated, and lands"),
        ("--discard", "keeps the work under a ref and brings the base back"),
        ("--keep", "keeps the work under a ref, leaves the tree, and says FAILED"),
        ("reconcile", "completes it as soon as the way is free"),
    ];
    word.iter().find(|(option, _)| command.contains(option)).map(|(_, text)| *text)
}
