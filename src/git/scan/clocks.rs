//! A moment before a look, by which a file's time of change tells whether it is as it was then.
//!
//! # Limitations
//! As of [`stat_is_proof`]. A clock that is set back and forth again in between goes unseen.

use crate::base::clock::{ahead_of_boot_ns, file_clock_ns};
use crate::git::scan::{GRANULARITY_NS, stat_is_proof};
use crate::tx::entry::Stat;

/// The clock that files are stamped with, and how far it is ahead of the time since boot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clocks {
    file_ns: i64,
    ahead_ns: i64,
}

impl Clocks {
    pub(super) fn now() -> Self {
        Self { file_ns: file_clock_ns(), ahead_ns: ahead_of_boot_ns() }
    }

    /// Whether a file with this stat data is as it was then.
    pub(super) fn is_after(self, stat: &Stat) -> bool {
        let was_set_back = ahead_of_boot_ns() < self.ahead_ns - GRANULARITY_NS / 2;
        !was_set_back && stat_is_proof(stat, self.file_ns)
    }
}
