//! The directories that a walk has still to look at, shared by its threads.
//!
//! # Limitations
//! The last directory found is the next one walked, so that few wait at a time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::rules::Level;
use super::scan::{ScanError, ScanRequest};
use crate::tx::entry::{Change, Stat};

/// The ignore rules of one view at a directory.
#[derive(Clone)]
pub(super) struct View {
    pub(super) level: Level,
    /// The directory, or one above it, is ignored.
    pub(super) ignored: bool,
}

impl View {
    pub(super) fn is(&self, other: &Self) -> bool {
        let same_level = match (&self.level, &other.level) {
            (None, None) => true,
            (Some(a), Some(b)) => std::sync::Arc::ptr_eq(a, b),
            _ => false,
        };
        same_level && self.ignored == other.ignored
    }
}

/// A directory still to be walked.
pub(super) struct Task {
    /// Empty for the root.
    pub(super) dir: Vec<u8>,
    pub(super) depth: u32,
    pub(super) base: View,
    pub(super) turn: View,
    pub(super) excluded: bool,
    /// What its parent saw; none of the root.
    pub(super) stat: Option<Stat>,
    /// The change of the directory itself, told once it is known whether it is a repository.
    pub(super) pending: Option<Box<Change>>,
}

pub(super) struct Queue {
    pub(super) tasks: Vec<Task>,
    pub(super) busy: usize,
    pub(super) stop: bool,
}

pub(super) struct Pool<'a> {
    pub(super) request: &'a ScanRequest<'a>,
    pub(super) queue: Mutex<Queue>,
    pub(super) wake: Condvar,
    pub(super) looked_at: AtomicU64,
    pub(super) changes: AtomicU64,
    pub(super) path_bytes: AtomicU64,
}

impl<'a> Pool<'a> {
    pub(super) fn new(request: &'a ScanRequest<'a>) -> Self {
        let view = View { level: None, ignored: false };
        let root = Task {
            dir: Vec::new(),
            depth: 0,
            base: view.clone(),
            turn: view,
            excluded: false,
            stat: None,
            pending: None,
        };
        Self {
            request,
            queue: Mutex::new(Queue { tasks: vec![root], busy: 0, stop: false }),
            wake: Condvar::new(),
            looked_at: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            path_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a change against the limits.
    pub(super) fn count(&self, change: &Change) -> Result<(), ScanError> {
        let limits = self.request.limits;
        if self.changes.fetch_add(1, Ordering::Relaxed) >= limits.changes {
            return Err(ScanError::TooMany { what: "changes", limit: limits.changes });
        }
        let length = change.path.as_bytes().len() as u64;
        let bytes = self.path_bytes.fetch_add(length, Ordering::Relaxed) + length;
        if bytes > limits.path_bytes {
            let limit = limits.path_bytes;
            return Err(ScanError::TooMany { what: "bytes of paths of changes", limit });
        }
        Ok(())
    }

    /// The next directory; `None` when all are done, or one failed.
    pub(super) fn next(&self) -> Option<Task> {
        let mut queue = self.queue();
        loop {
            if queue.stop {
                return None;
            }
            if let Some(task) = queue.tasks.pop() {
                queue.busy += 1;
                return Some(task);
            }
            if queue.busy == 0 {
                return None;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn done(&self, children: &mut Vec<Task>, stop: bool) {
        let mut queue = self.queue();
        queue.tasks.append(children);
        queue.busy -= 1;
        queue.stop |= stop;
        drop(queue);
        self.wake.notify_all();
    }
}
