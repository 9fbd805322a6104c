//! Fault points: named places between the steps at which a test may end the process.
//!
//! `WORKTX_FAULT=<name>` kills the process group's own process with SIGKILL when the point is
//! reached; `WORKTX_FAULT=<name>:<n>` at the n-th time. `WORKTX_FAULT_BOOT=<id>` says that the
//! machine was started anew, for tests of power loss; `WORKTX_FAULT_TRACED=1` that a test traces
//! all processes. Compiled out of release builds.
//!
//! # Limitations
//! A closed set: a name that is none of [`Point`] is ignored, and a test keeps the names in step
//! with the tests that use them.

/// Where a test may end the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The attempt is recorded `open`, nothing is pinned.
    OpenRecorded,
    /// The base is pinned, the turn not started.
    BasePinned,
    /// The turn's writer is recorded, it waits at the pipe.
    TurnRecorded,
    /// The turn is over and proven dead, nothing is recorded of it.
    TurnOver,
    /// The state `sealed` is recorded, its ref may not be made.
    SealRecorded,
    /// The candidate is pinned.
    CandidatePinned,
    /// The files of the post-check's checkout are written, its repository is not.
    CheckoutWritten,
    /// The post-check passed; nothing is recorded of it.
    PostCheckPassed,
    /// `committing` is recorded.
    CommittingRecorded,
    /// The locks of HEAD, branch and index are held, the gate is not asked.
    LocksHeld,
    /// The gate is won and journalled, the branch has not moved.
    GateWon,
    /// The branch has moved, the index has not.
    BranchMoved,
    /// Branch and index have moved, nothing is recorded of it.
    Promoted,
    /// `committed_fs` is recorded.
    CommittedRecorded,
    /// `rolling_back` is recorded, nothing is pinned.
    RollbackRecorded,
    /// The rejected work is pinned, the tree is untouched.
    DiscardedPinned,
    /// A file of the undo has been put back.
    FileRestored,
    /// The tree is the base again, nothing is recorded of it.
    Restored,
    /// An operator has to know of something that is recorded, and was not told.
    ToBeTold,
    /// An operator was told; that is not recorded.
    Told,
    /// An operator's `--keep`: everything is pinned and the row is asked, nothing is recorded.
    KeptPinned,
}

impl Point {
    /// The name in `WORKTX_FAULT`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenRecorded => "open_recorded",
            Self::BasePinned => "base_pinned",
            Self::TurnRecorded => "turn_recorded",
            Self::TurnOver => "turn_over",
            Self::SealRecorded => "seal_recorded",
            Self::CandidatePinned => "candidate_pinned",
            Self::CheckoutWritten => "checkout_written",
            Self::PostCheckPassed => "post_check_passed",
            Self::CommittingRecorded => "committing_recorded",
            Self::LocksHeld => "locks_held",
            Self::GateWon => "gate_won",
            Self::BranchMoved => "branch_moved",
            Self::Promoted => "promoted",
            Self::CommittedRecorded => "committed_recorded",
            Self::RollbackRecorded => "rollback_recorded",
            Self::DiscardedPinned => "discarded_pinned",
            Self::FileRestored => "file_restored",
            Self::Restored => "restored",
            Self::ToBeTold => "to_be_told",
            Self::Told => "told",
            Self::KeptPinned => "kept_pinned",
        }
    }
}

/// Passes the point, or ends the process there if a test asks for it.
#[cfg(debug_assertions)]
pub fn point(at: Point) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static SEEN: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("WORKTX_FAULT") else { return };
    let (name, nth) = wanted
        .split_once(':')
        .map_or((wanted.as_str(), 1), |(name, n)| (name, n.parse::<u32>().unwrap_or(1)));
    if name == at.name() && SEEN.fetch_add(1, Ordering::Relaxed) + 1 == nth {
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    }
}

/// Compiled out of release builds.
#[cfg(not(debug_assertions))]
pub fn point(_at: Point) {}

/// The boot id that a test claims, in place of the kernel's.
#[cfg(debug_assertions)]
pub fn boot_id() -> Option<String> {
    std::env::var("WORKTX_FAULT_BOOT").ok().filter(|id| !id.is_empty())
}

/// Compiled out of release builds.
#[cfg(not(debug_assertions))]
pub fn boot_id() -> Option<String> {
    None
}

/// Whether a test traces this process and the supervisor: one that is seen stopped by a tracer is
/// then not given up.
#[cfg(debug_assertions)]
pub fn is_traced() -> bool {
    std::env::var_os("WORKTX_FAULT_TRACED").is_some()
}

/// Compiled out of release builds.
#[cfg(not(debug_assertions))]
pub fn is_traced() -> bool {
    false
}
