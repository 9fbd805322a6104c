//! Two pieces of work beside each other, each on a processor of its own.
//!
//! Some kernels of virtual machines pack what runs on few processors and spread it only after
//! some 15 ms: longer than a walk of 10,000 files takes, in which two threads then take turns on
//! one processor; and a new thread waits for up to 3 ms until the one that started it blocks. Who
//! starts a thread here moves it to another processor before it has run: it begins within 0.1 ms
//! then. Elsewhere a new thread begins on an idle processor anyway.
//!
//! # Limitations
//! The thread is moved once and may be moved back. It is found as a thread of this process that was
//! not there before, so that one that somebody else starts in the same moment may be moved with it.
//! Where only one processor may be used, where there is no `/proc` with this process's own numbers,
//! or where the kernel says no, nothing is moved.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::process::Pid;
use rustix::thread::{sched_getaffinity, sched_getcpu, sched_setaffinity};

/// Does both, `there` in a thread of its own, and waits for both. Where no thread is to be had, one
/// after the other.
///
/// It pays for work of a millisecond, or for work that waits for the disk: the thread costs some
/// 0.1 ms.
pub fn beside<A, B: Send>(here: impl FnOnce() -> A, there: impl FnOnce() -> B + Send) -> (A, B) {
    beside_by(thread::Builder::new(), here, there)
}

/// Does something in a thread of its own, from now on.
///
/// # Errors
/// No thread is to be had.
pub fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let span = tracing::Span::current();
    elsewhere(|| thread::Builder::new().name(name.to_owned()).spawn(move || span.in_scope(work)))
}

/// Held while a thread is started and moved: two that move one thread would each give it back the
/// processors that the other has left it for the moment, and the narrower ones might stay.
static MOVING: Mutex<()> = Mutex::new(());

/// Moves the thread that is started here to another processor.
fn elsewhere<T>(start: impl FnOnce() -> T) -> T {
    let _alone = MOVING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = threads();
    let started = start();
    for pid in threads().into_iter().filter(|pid| !before.contains(pid)) {
        move_away(pid);
    }
    started
}

fn beside_by<A, B: Send>(
    builder: thread::Builder,
    here: impl FnOnce() -> A,
    there: impl FnOnce() -> B + Send,
) -> (A, B) {
    let span = tracing::Span::current();
    let there = Mutex::new(Some(there));
    // Taken once, by whoever does it.
    let take = || there.lock().unwrap_or_else(PoisonError::into_inner).take();
    thread::scope(|scope| {
        let started =
            elsewhere(|| builder.spawn_scoped(scope, || take().map(|there| span.in_scope(there))));
        let mine = here();
        let theirs = match started {
            Ok(other) => other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => {
                tracing::debug!(%error, "no thread can be made");
                take().map(|there| there())
            }
        };
        (mine, theirs.expect("taken by one"))
    })
}

/// The threads of this process; none where `/proc` has other numbers than its own.
fn threads() -> Vec<Pid> {
    let own = rustix::process::getpid().to_string();
    if std::fs::read_link("/proc/self").ok().is_none_or(|link| link.as_os_str() != own.as_str()) {
        return Vec::new();
    }
    let entries = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(Pid::from_raw).collect()
}

/// Moves a thread off the caller's processor, and lets it go on anywhere.
fn move_away(thread: Pid) {
    let Ok(all) = sched_getaffinity(Some(thread)) else { return };
    let mut others = all;
    others.unset(sched_getcpu());
    if others.count() > 0 && sched_setaffinity(Some(thread), &others).is_ok() {
        let _ = sched_setaffinity(Some(thread), &all);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn both_are_done_and_both_see_what_is_around() {
        let around = [1, 2, 3];
        let (here, there) = beside(|| around.iter().sum::<i32>(), || around.map(|n| n * n));
        assert_eq!((here, there), (6, [1, 4, 9]));
    }

    #[test]
    fn a_thread_that_was_moved_may_run_anywhere() {
        // The first thread of the process was there before all others, so that none moves it.
        let all = sched_getaffinity(Some(rustix::process::getpid())).expect("asked");
        let (say, hear) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        let (masks, ()) = beside(
            move || {
                let there: Pid = hear.recv().expect("said");
                // Other tests of this process move threads too, and may hold this one for theirs.
                let alone = MOVING.lock().unwrap_or_else(PoisonError::into_inner);
                let mask = |of| sched_getaffinity(of).expect("asked");
                let masks = (mask(None), mask(Some(there)));
                drop((alone, end));
                masks
            },
            move || {
                say.send(rustix::thread::gettid()).expect("heard");
                let _ = ended.recv();
            },
        );
        assert!(masks == (all, all));
    }

    #[test]
    fn threads_that_are_started_at_once_may_all_run_anywhere() {
        let all = sched_getaffinity(Some(rustix::process::getpid())).expect("asked");
        let start_some = || {
            let starts = (0..20).map(|_| start("other", rustix::thread::gettid));
            let started: Vec<_> = starts.map(|one| one.expect("a thread")).collect();
            for one in started {
                one.join().expect("ends");
            }
            let _alone = MOVING.lock().unwrap_or_else(PoisonError::into_inner);
            sched_getaffinity(None).expect("asked")
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start_some)).collect();
            for one in threads {
                assert!(one.join().expect("ends") == all);
            }
        });
    }

    #[test]
    fn what_was_started_goes_on() {
        let started = start("other", || 5).expect("a thread");
        assert_eq!(started.join().expect("ends"), 5);
    }

    #[test]
    fn a_panic_there_is_a_panic_here() {
        let caught = std::panic::catch_unwind(|| beside(|| 1, || panic!("there")));
        assert!(caught.is_err());
    }

    #[test]
    fn without_a_thread_both_are_done_too() {
        // More than there are addresses.
        let none = thread::Builder::new().stack_size(1 << 60);
        assert_eq!(beside_by(none, || 1, || 2), (1, 2));
    }
}
