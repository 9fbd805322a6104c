//! Why a workspace cannot be a base, as data: the word, the paths, and what a hint needs.
//!
//! Order rules: none. [`crate::git::workspace::judge`] finds some of these; the index, the baseline
//! and the coordinator find the others and use the same words.
//!
//! # Limitations
//! The sentences that people read are made in `cli`.

use serde::{Deserialize, Serialize};

use crate::tx::id::AttemptKey;
use crate::tx::path::RepoPath;

/// An operation of git that has begun and not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// `git merge`
    Merge,
    /// `git rebase`
    Rebase,
    /// `git am`
    Am,
    /// `git cherry-pick`
    CherryPick,
    /// `git revert`
    Revert,
    /// `git bisect`
    Bisect,
}

impl Operation {
    /// The subcommand of git, for a hint such as `git <name> --abort`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Merge => "merge",
            Self::Rebase => "rebase",
            Self::Am => "am",
            Self::CherryPick => "cherry-pick",
            Self::Revert => "revert",
            Self::Bisect => "bisect",
        }
    }
}

/// Why a workspace cannot be a base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Refusal {
    /// A repository without a work tree.
    BareRepository,
    /// There is no commit yet.
    UnbornHead {
        /// The branch that HEAD names.
        branch: String,
    },
    /// An operation of git has begun and not ended.
    OperationInProgress {
        /// Which.
        operation: Operation,
        /// The file that tells, relative to the git directory.
        file: String,
    },
    /// A lock of git that is not worktx's own.
    ForeignLock {
        /// The file.
        path: String,
    },
    /// The objects are not named by SHA-1.
    ObjectFormat {
        /// `extensions.objectFormat`
        format: String,
    },
    /// The refs are not kept in files.
    RefStorage {
        /// `extensions.refStorage`
        storage: String,
    },
    /// An extension of the repository that worktx does not know.
    UnknownExtension {
        /// Its name.
        name: String,
    },
    /// A format version that worktx does not know.
    FormatVersion {
        /// `core.repositoryFormatVersion`
        version: i64,
    },
    /// `git sparse-checkout` is on.
    SparseCheckout,
    /// Submodules.
    Submodules {
        /// Where they are, and `.gitmodules`.
        paths: Vec<RepoPath>,
    },
    /// The index is split over two files.
    SplitIndex,
    /// The index holds folders instead of their files.
    SparseIndex,
    /// `core.worktree` leads elsewhere.
    WorktreeElsewhere {
        /// Where.
        path: String,
    },
    /// The branch that HEAD names is only another name of a branch.
    SymbolicBranch {
        /// Which.
        branch: String,
    },
    /// The work tree or its git directory belongs to somebody else (git's `safe.directory`).
    UnsafeOwner {
        /// Which.
        path: String,
        /// The owner's user id.
        owner: u32,
    },
    /// The git directory or what is in it is not whole.
    Damaged {
        /// What was found.
        why: String,
    },
    /// The configuration cannot be read.
    BadConfig {
        /// What was found.
        why: String,
    },
    /// Nobody is named for the commit.
    NoIdentity {
        /// `author` or `committer`.
        role: String,
    },
    /// The system does not allow `openat2`.
    Openat2Denied,
    /// A merge has left conflicts in the index.
    ConflictedIndex {
        /// Where.
        paths: Vec<RepoPath>,
    },
    /// The index differs from HEAD.
    StagedChanges {
        /// Where.
        paths: Vec<RepoPath>,
    },
    /// Tracked files differ from the index.
    ModifiedTracked {
        /// Where.
        paths: Vec<RepoPath>,
    },
    /// Untracked files, and `[base] untracked = "refuse"`.
    UntrackedPresent {
        /// Where.
        paths: Vec<RepoPath>,
    },
    /// More untracked files than `[limits]` allow to pin.
    UntrackedBeyondLimits {
        /// The key of `[limits]`: `file`, `total`, `files`.
        limit: String,
        /// What it allows.
        allowed: u64,
        /// What was found, as far as it was counted.
        found: u64,
        /// The largest, or the first beyond.
        paths: Vec<RepoPath>,
    },
    /// An attempt is quarantined here.
    Quarantined {
        /// Which.
        attempt: AttemptKey,
        /// Why: the word of its reason.
        reason: String,
        /// The commands that settle it.
        commands: Vec<String>,
    },
    /// An attribute names a filter driver that is not built in.
    FilterDriver {
        /// The driver.
        driver: String,
        /// Where.
        paths: Vec<RepoPath>,
    },
    /// The attribute `working-tree-encoding`.
    WorkingTreeEncoding {
        /// Where.
        paths: Vec<RepoPath>,
    },
    /// The attribute `ident`.
    Ident {
        /// Where.
        paths: Vec<RepoPath>,
    },
    /// Something in scope that git cannot store.
    Unstorable {
        /// Where.
        paths: Vec<RepoPath>,
    },
    /// Something in scope that this user may not read: what stands there cannot be known.
    Unreadable {
        /// Where.
        paths: Vec<RepoPath>,
    },
    /// Another ledger has unsettled work here.
    LockedBySecondLedger {
        /// The ledger.
        ledger: String,
        /// Its attempt, where that is known.
        attempt: Option<AttemptKey>,
    },
    /// The state directory lies beneath the work tree.
    StateInWorkTree {
        /// Where.
        path: String,
    },
}

impl Refusal {
    /// `reason` of an outcome document: the word that `code` is when serialized.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BareRepository => "bare_repository",
            Self::UnbornHead { .. } => "unborn_head",
            Self::OperationInProgress { .. } => "operation_in_progress",
            Self::ForeignLock { .. } => "foreign_lock",
            Self::ObjectFormat { .. } => "object_format",
            Self::RefStorage { .. } => "ref_storage",
            Self::UnknownExtension { .. } => "unknown_extension",
            Self::FormatVersion { .. } => "format_version",
            Self::SparseCheckout => "sparse_checkout",
            Self::Submodules { .. } => "submodules",
            Self::SplitIndex => "split_index",
            Self::SparseIndex => "sparse_index",
            Self::WorktreeElsewhere { .. } => "worktree_elsewhere",
            Self::SymbolicBranch { .. } => "symbolic_branch",
            Self::UnsafeOwner { .. } => "unsafe_owner",
            Self::Damaged { .. } => "damaged",
            Self::BadConfig { .. } => "bad_config",
            Self::NoIdentity { .. } => "no_identity",
            Self::Openat2Denied => "openat2_denied",
            Self::ConflictedIndex { .. } => "conflicted_index",
            Self::StagedChanges { .. } => "staged_changes",
            Self::ModifiedTracked { .. } => "modified_tracked",
            Self::UntrackedPresent { .. } => "untracked_present",
            Self::UntrackedBeyondLimits { .. } => "untracked_beyond_limits",
            Self::Quarantined { .. } => "quarantined",
            Self::FilterDriver { .. } => "filter_driver",
            Self::WorkingTreeEncoding { .. } => "working_tree_encoding",
            Self::Ident { .. } => "ident",
            Self::Unstorable { .. } => "unstorable",
            Self::Unreadable { .. } => "unreadable",
            Self::LockedBySecondLedger { .. } => "locked_by_second_ledger",
            Self::StateInWorkTree { .. } => "state_in_work_tree",
        }
    }

    /// The paths of the work tree that it is about.
    pub fn paths(&self) -> &[RepoPath] {
        match self {
            Self::Submodules { paths }
            | Self::ConflictedIndex { paths }
            | Self::StagedChanges { paths }
            | Self::ModifiedTracked { paths }
            | Self::UntrackedPresent { paths }
            | Self::UntrackedBeyondLimits { paths, .. }
            | Self::FilterDriver { paths, .. }
            | Self::WorkingTreeEncoding { paths }
            | Self::Ident { paths }
            | Self::Unstorable { paths }
            | Self::Unreadable { paths } => paths,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_the_serialized_word() {
        let path = RepoPath::new("a").expect("valid");
        let driver = Refusal::FilterDriver { driver: "lfs".to_owned(), paths: vec![path.clone()] };
        assert_eq!(driver.paths(), [path]);
        let lock = Refusal::ForeignLock { path: "index.lock".to_owned() };
        for refusal in [driver, lock, Refusal::BareRepository, Refusal::Openat2Denied] {
            let json = serde_json::to_value(&refusal).expect("plain data");
            assert_eq!(json["code"], refusal.code());
            assert_eq!(serde_json::from_value::<Refusal>(json).expect("read back"), refusal);
        }
    }
}
