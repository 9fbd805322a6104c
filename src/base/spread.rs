//! Has a thread that shares work with another one begin on another processor.
//!
//! Some kernels of virtual machines pack what runs on few processors and spread it only after
//! some 15 ms: longer than a walk of 10,000 files takes, in which two threads then take turns on
//! one processor. Elsewhere a new thread begins on an idle processor anyway.
//!
//! # Limitations
//! The thread is moved once and may be moved back. Where only one processor may be used, or the
//! kernel says no, nothing is done.

use rustix::thread::{sched_getaffinity, sched_getcpu, sched_setaffinity};

/// The processor that the caller runs on: what a thread that it starts is to leave.
pub fn here() -> usize {
    sched_getcpu()
}

/// Moves the calling thread off the processor `from`, and lets it go on anywhere.
pub fn away_from(from: usize) {
    let Ok(all) = sched_getaffinity(None) else { return };
    let mut others = all;
    others.unset(from);
    if others.count() > 0 && sched_setaffinity(None, &others).is_ok() {
        let _ = sched_setaffinity(None, &all);
    }
}
