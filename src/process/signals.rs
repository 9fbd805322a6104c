//! The signals of this process: requests to end the turn, job control, and what the supervisor
//! blocks. The one place of this folder that calls libc.
//!
//! Order rule: [`Signals::install`] comes before anything that a signal may have to end.
//!
//! # Limitations
//! One set of handlers for a process. A signal that was ignored at the start stays ignored, as
//! `nohup` and a shell's background jobs expect.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// What a person or a platform asks of a running attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// SIGINT, or `worktx cancel`: CANCELLED through the gate.
    Cancel,
    /// SIGTERM or SIGHUP: end the turn, roll back, leave the row open.
    Interrupt,
}

/// The first request: 0 none, 1 cancel, 2 interrupt. It stays.
static FIRST: AtomicU8 = AtomicU8::new(0);
static SIGINTS: AtomicU32 = AtomicU32::new(0);
static STOPS: AtomicU32 = AtomicU32::new(0);
static CONTINUES: AtomicU32 = AtomicU32::new(0);
/// The eventfd that wakes `poll`; -1 before [`Signals::install`].
static WAKE: AtomicI32 = AtomicI32::new(-1);
static WAKE_FD: OnceLock<OwnedFd> = OnceLock::new();

/// The handlers are in place: SIGINT, SIGTERM and SIGHUP are collected from here on.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Signals(());

// The counters are of the process; the methods ask for the value that shows that the handlers
// are in place.
#[allow(clippy::unused_self)]
impl Signals {
    /// Installs the handlers; a second call changes nothing.
    pub fn install() -> io::Result<Self> {
        if WAKE_FD.get().is_none() {
            let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let fd = WAKE_FD.get_or_init(|| fd);
            WAKE.store(fd.as_raw_fd(), Ordering::SeqCst);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGCONT] {
                handle(signal)?;
            }
        }
        Ok(Self(()))
    }

    /// The first request that came, at any time since [`Signals::install`].
    pub fn pending(&self) -> Option<Request> {
        match FIRST.load(Ordering::SeqCst) {
            1 => Some(Request::Cancel),
            2 => Some(Request::Interrupt),
            _ => None,
        }
    }

    /// How often SIGINT came.
    pub(super) fn interrupts(self) -> u32 {
        SIGINTS.load(Ordering::SeqCst)
    }

    /// Takes the SIGTSTPs that came since the last call.
    pub(super) fn take_stops(self) -> bool {
        STOPS.swap(0, Ordering::SeqCst) > 0
    }

    /// Takes the SIGCONTs that came since the last call.
    pub(super) fn take_continues(self) -> bool {
        CONTINUES.swap(0, Ordering::SeqCst) > 0
    }

    /// Becomes readable when a signal came; [`Signals::rest`] makes it quiet again.
    pub(super) fn wake_fd(self) -> BorrowedFd<'static> {
        WAKE_FD.get().expect("set by install, which alone makes this value").as_fd()
    }

    /// Empties the wake handle.
    pub(super) fn rest(self) {
        let mut count = [0_u8; 8];
        // Empty is fine: another look has taken the count.
        let _ = rustix::io::read(self.wake_fd(), &mut count);
    }
}

extern "C" fn on_signal(signal: libc::c_int) {
    match signal {
        libc::SIGINT => {
            SIGINTS.fetch_add(1, Ordering::SeqCst);
            let _ = FIRST.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst);
        }
        libc::SIGTERM | libc::SIGHUP => {
            let _ = FIRST.compare_exchange(0, 2, Ordering::SeqCst, Ordering::SeqCst);
        }
        libc::SIGTSTP => {
            STOPS.fetch_add(1, Ordering::SeqCst);
            // The last word counts: what was to be continued is to be stopped again.
            CONTINUES.store(0, Ordering::SeqCst);
        }
        _ => {
            CONTINUES.fetch_add(1, Ordering::SeqCst);
        }
    }
    let one = 1_u64;
    // SAFETY: write(2) is async-signal-safe, the buffer is a live u64 of 8 bytes, and the handle
    // in WAKE is never closed (it lives in a static). errno is this thread's and is put back.
    unsafe {
        let errno = *libc::__errno_location();
        let _ = libc::write(WAKE.load(Ordering::SeqCst), (&raw const one).cast(), 8);
        *libc::__errno_location() = errno;
    }
}

/// Puts the handler in place, unless the signal was ignored when this process started.
fn handle(signal: libc::c_int) -> io::Result<()> {
    if disposition(signal)? == libc::SIG_IGN && signal != libc::SIGCONT {
        return Ok(());
    }
    set(signal, on_signal as *const () as libc::sighandler_t)
}

fn disposition(signal: libc::c_int) -> io::Result<libc::sighandler_t> {
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only reads; `old` is writable and of the right type, and all
    // zeroes is a valid sigaction.
    let (result, old) =
        unsafe { (libc::sigaction(signal, std::ptr::null(), old.as_mut_ptr()), old.assume_init()) };
    if result == 0 { Ok(old.sa_sigaction) } else { Err(io::Error::last_os_error()) }
}

fn set(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: all zeroes is a valid sigaction (empty mask, no flags). The handler is SIG_DFL or
    // `on_signal`, which only does what is async-signal-safe.
    let result = unsafe {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Collects SIGTSTP while it lives: Ctrl-Z stops the turn first, then this process.
#[must_use]
pub(super) struct StopsCaught(bool);

impl StopsCaught {
    /// Starts to collect; does nothing where SIGTSTP was ignored.
    pub(super) fn start() -> Self {
        let ignored = disposition(libc::SIGTSTP).map_or(true, |old| old == libc::SIG_IGN);
        Self(!ignored && handle(libc::SIGTSTP).is_ok())
    }

    /// Stops this process's group as a shell expects of a job; returns when it is continued, or
    /// at once where the group is orphaned (then the kernel drops the signal).
    pub(super) fn stop_own_group(&self) {
        self.stop(|| rustix::process::kill_current_process_group(rustix::process::Signal::TSTP));
    }

    /// As [`StopsCaught::stop_own_group`], this process alone: it alone was asked to.
    pub(super) fn stop_self(&self) {
        self.stop(|| {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TSTP)
        });
    }

    fn stop(&self, send: impl FnOnce() -> rustix::io::Result<()>) {
        if !self.0 {
            return;
        }
        let _ = set(libc::SIGTSTP, libc::SIG_DFL);
        let _ = send();
        let _ = handle(libc::SIGTSTP);
    }
}

impl Drop for StopsCaught {
    fn drop(&mut self) {
        if self.0 {
            let _ = set(libc::SIGTSTP, libc::SIG_DFL);
        }
    }
}

/// Runs `act` with SIGTTOU blocked: a background process may set the terminal then.
pub(super) fn without_ttou<T>(act: impl FnOnce() -> T) -> T {
    // SAFETY: the sets are initialised by sigemptyset before use; the mask is this thread's and
    // is put back before the function returns.
    unsafe {
        let mut block = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        let mut old = block;
        libc::sigemptyset(&raw mut block);
        libc::sigaddset(&raw mut block, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const block, &raw mut old);
        let result = act();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, std::ptr::null_mut());
        result
    }
}

/// Blocks every signal that can be blocked and gives a handle that becomes readable at SIGCHLD.
///
/// For the supervisor, which is single-threaded. The mask is inherited: the leader clears it with
/// [`unblock_all`].
pub(super) fn block_all_and_watch_children() -> io::Result<OwnedFd> {
    // SAFETY: the sets are initialised before use; signalfd returns a new handle that nobody
    // else owns, or -1, which is checked.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigfillset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Empties the signal mask of a leader, so that its command starts as from a shell.
pub(super) fn unblock_all() {
    // SAFETY: the set is initialised by sigemptyset before use; a null old set is allowed.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigemptyset(&raw mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Makes every handle above 2 close at the next `exec`, whoever left it open.
///
/// # Errors
/// `/proc/self/fd` cannot be read.
pub(super) fn close_all_on_exec() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if fd > 2 {
            // SAFETY: fcntl with F_SETFD takes no pointer; on a handle that is closed by now it
            // fails with EBADF, which is as good.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}
