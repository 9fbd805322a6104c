//! The directories that a walk has still to look at, shared by its threads.
//!
//! # Limitations
//! The last directory found is the next one walked, so that few wait at a time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::git::scan::rules::Level;
use crate::git::scan::{ScanError, ScanRequest};
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
    /// Everything beneath is looked at, whatever was touched.
    pub(super) whole: bool,
    /// What its parent saw; none of the root.
    pub(in crate::git) stat: Option<Stat>,
    /// The change of the directory itself, told once it is known whether it is a repository.
    pub(super) pending: Option<Box<Change>>,
}

struct Queue {
    tasks: Vec<Task>,
    /// How many threads walk.
    workers: usize,
    /// How many of them have nothing to do.
    idle: usize,
    stop: bool,
}

/// What the threads of a walk share. Each has directories of its own to walk; it gives of them
/// only where another has none, so that the lock is taken rarely.
pub(super) struct Pool<'a> {
    pub(super) request: &'a ScanRequest<'a>,
    queue: Mutex<Queue>,
    wake: Condvar,
    hungry: AtomicBool,
    stopped: AtomicBool,
    pub(super) looked_at: AtomicU64,
    changes: AtomicU64,
    path_bytes: AtomicU64,
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
            whole: request.only.is_none_or(|touched| touched.is_whole(b"")),
            stat: None,
            pending: None,
        };
        Self {
            request,
            queue: Mutex::new(Queue { tasks: vec![root], workers: 1, idle: 0, stop: false }),
            wake: Condvar::new(),
            hungry: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            looked_at: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            path_bytes: AtomicU64::new(0),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
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

    /// A second thread begins to walk.
    pub(super) fn join(&self) {
        self.queue().workers += 1;
    }

    /// The next directory of who has `mine`; `None` when all are done, or one failed.
    pub(super) fn next(&self, mine: &mut Vec<Task>) -> Option<Task> {
        if self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        if self.hungry.load(Ordering::Relaxed) && mine.len() > 1 {
            let half = mine.len() / 2;
            self.queue().tasks.extend(mine.drain(..half));
            self.wake.notify_one();
        }
        mine.pop().or_else(|| self.wait(mine))
    }

    fn wait(&self, mine: &mut Vec<Task>) -> Option<Task> {
        let mut queue = self.queue();
        queue.idle += 1;
        self.hungry.store(true, Ordering::Relaxed);
        loop {
            if queue.stop {
                return None;
            }
            if !queue.tasks.is_empty() {
                let left = queue.tasks.len() / 2;
                mine.extend(queue.tasks.drain(left..));
                queue.idle -= 1;
                self.hungry.store(queue.idle > 0, Ordering::Relaxed);
                return mine.pop();
            }
            if queue.idle == queue.workers {
                queue.stop = true;
                self.wake.notify_all();
                return None;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives all that is left to whoever walks next; whether that is anything.
    pub(super) fn leave(&self, mine: &mut Vec<Task>) -> bool {
        let mut queue = self.queue();
        queue.tasks.append(mine);
        !queue.tasks.is_empty()
    }

    /// One failed: the others need not go on.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.queue().stop = true;
        self.wake.notify_all();
    }
}
