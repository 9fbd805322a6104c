//! A copy of this process, born in another cgroup where one is wanted: to move a process there
//! later makes the kernel wait for a grace period (`cgroup_attach_lock`; 15 ms measured).
//!
//! # Limitations
//! For a process with one thread only. `clone3` may be forbidden (container runtimes answer
//! `ENOSYS`), and needs Linux 5.7 for a cgroup.

#![allow(unsafe_code)]

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

/// From `linux/sched.h`; `libc` has it not, since it fits no `int`.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Starts `child` in a copy of this process, in the cgroup of which `cgroup` is the folder, with
/// `socket` as standard input, nothing as standard output and error, and no other handle; its pid.
///
/// # Errors
/// This process has other threads, `cgroup` cannot be joined, or the kernel gives no process.
pub(super) fn start(
    cgroup: Option<BorrowedFd<'_>>,
    socket: &OwnedFd,
    child: impl FnOnce() -> Infallible,
) -> io::Result<i32> {
    // One entry a thread, and `.` and `..` as in every folder.
    if std::fs::metadata("/proc/self/task")?.nlink() != 3 {
        return Err(io::Error::other("a process with several threads is not copied"));
    }
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let pid = if let Some(cgroup) = cgroup { clone_into(cgroup)? } else { fork()? };
    if pid != 0 {
        return Ok(pid);
    }
    if only_standard(socket, &null).is_ok() {
        child();
    }
    // Nobody can be told why: the parent sees that the socket has closed.
    // SAFETY: ends this process at once and takes no pointer.
    unsafe { libc::_exit(126) }
}

fn fork() -> io::Result<i32> {
    // SAFETY: there is no other thread (checked by the only caller), so that no lock is held and
    // nothing is half-changed in the copy: it may do whatever this process may.
    let pid = unsafe { libc::fork() };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

fn clone_into(cgroup: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: `clone_args` is plain numbers, for which zero means "nothing".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    // SAFETY: the kernel reads `args` during the call only. Without CLONE_VM and without a stack
    // the copy goes on here as after `fork`, with memory of its own; as there, no other thread
    // exists. What glibc's `fork` does beside that (handlers of `pthread_atfork`, locks of other
    // threads, the cached thread id) matters to nobody here: no handlers are registered, and
    // that id is used by `raise` and by error-checking mutexes only.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(pid).map_err(io::Error::other)
}

/// In the copy: the handles are set as they are to be, everything else is closed.
fn only_standard(socket: &OwnedFd, null: &File) -> io::Result<()> {
    rustix::stdio::dup2_stdin(socket)?;
    rustix::stdio::dup2_stdout(null)?;
    rustix::stdio::dup2_stderr(null)?;
    // SAFETY: whoever owns these handles is a value of the parent's that the copy
    // never uses again, nor drops: it ends in `child`, which does not return, or in `_exit`.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if closed == 0 {
        return Ok(());
    }
    // Before Linux 5.9. The numbers first: the folder's own handle is among them, and closed by then.
    let handles: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for fd in handles.into_iter().filter(|fd| *fd > 2) {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
    Ok(())
}
