//! The few calls that have no safe words: the filter of the traced process itself, and what its
//! tracer asks of the kernel.
//!
//! # Limitations
//! x86-64. A tracee belongs to the thread that took it: all calls here are made by that thread.
#![allow(unsafe_code, reason = "seccomp and ptrace have no safe wrapper")]

use std::ffi::{c_int, c_void};
use std::io;

pub use libc::user_regs_struct as Registers;

/// Keeps this process, and all that it will ever start, behind the filter.
pub fn enter_filter(program: &mut [libc::sock_filter]) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("shorter than the kernel's bound"),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `program` names `len` instructions that live until the call returns; the kernel
    // copies them.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            std::ptr::from_ref(&program).cast::<c_void>(),
        )
    };
    result(i64::from(done))
}

/// Takes a process, with all that it will ever start; they die with this one.
pub fn seize(pid: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACESECCOMP
        | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SEIZE, pid, options as usize)
}

/// Lets a stopped tracee go on, with a signal or none (0).
pub fn go_on(pid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, pid, usize::try_from(signal).unwrap_or(0))
}

/// Leaves a tracee that was stopped by a signal as stopped as it would be without a tracer.
pub fn leave_stopped(pid: i32) -> io::Result<()> {
    request(libc::PTRACE_LISTEN, pid, 0)
}

/// The pid that a fork has made.
pub fn message(pid: i32) -> io::Result<i32> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, pid, std::ptr::from_mut(&mut message) as usize)?;
    i32::try_from(message).map_err(io::Error::other)
}

/// The registers of a stopped tracee.
pub fn registers(pid: i32) -> io::Result<Registers> {
    // SAFETY: a structure of integers, for which zero is a value.
    let mut registers: Registers = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, pid, std::ptr::from_mut(&mut registers) as usize)?;
    Ok(registers)
}

/// Makes the call at which a tracee stopped return an error, instead of being done.
pub fn refuse(pid: i32, mut registers: Registers, errno: i32) -> io::Result<()> {
    registers.orig_rax = u64::MAX;
    registers.rax = i64::from(-errno).cast_unsigned();
    request(libc::PTRACE_SETREGS, pid, std::ptr::from_ref(&registers) as usize)
}

fn request(what: libc::c_uint, pid: i32, data: usize) -> io::Result<()> {
    // SAFETY: `data` is a number, or the address of a structure of the size that this request
    // reads or fills, which its caller above holds until the call returns. A tracee that is gone
    // or not stopped makes it fail with ESRCH and nothing else.
    let done =
        unsafe { libc::ptrace(what, pid, std::ptr::null_mut::<c_void>(), data as *mut c_void) };
    result(done)
}

fn result(done: i64) -> io::Result<()> {
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What [`wait`] saw.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub pid: i32,
    pub status: c_int,
}

/// Waits for the next news of this thread's own tracees and children; `None` where there are none.
pub fn wait() -> io::Result<Option<Seen>> {
    let mut status: c_int = 0;
    loop {
        // SAFETY: `status` lives across the call.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        match result(i64::from(pid)) {
            Ok(()) => return Ok(Some(Seen { pid, status })),
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}
