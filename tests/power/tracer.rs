//! Every system call of a command and of everything that it starts, seen as it returns.
//!
//! By `ptrace(2)`, which needs no rights: a process may trace its own children. The only unsafe
//! file of this tool: each call into the C library is in a function of its own, with its proof.
//!
//! # Limitations
//! The thread that starts a command must be the one that follows it: the kernel takes requests
//! from the tracing thread alone. Tracees of 64 bit, on x86-64 or
//! 64-bit ARM.
#![allow(unsafe_code, reason = "ptrace has no safe interface")]

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

/// One system call that has returned.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The thread that made it; it is stopped as long as it is looked at.
    pub tid: i32,
    pub number: i64,
    pub args: [u64; 6],
    /// What it returned; below zero is an error.
    pub result: i64,
}

/// What a watcher wants after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    GoOn,
    /// Everything is killed, now.
    Stop,
}

/// What looks at a traced command.
pub trait Watcher {
    /// A system call has returned.
    fn returned(&mut self, call: &Call) -> Then;
    /// The command itself is over; what it started may go on.
    fn leader_gone(&mut self) -> Then {
        Then::GoOn
    }
}

/// How a traced command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself: its exit code, or the signal that ended it, negative.
    Code(i32),
    /// The watcher said so.
    Stopped,
}

/// Starts a command and shows `watcher` each system call as it returns, its own and those of
/// everything that it starts, until all of them are over.
///
/// # Errors
/// The command cannot be started or traced.
pub fn follow(command: &mut Command, watcher: &mut dyn Watcher) -> io::Result<Ended> {
    command.env("WORKTX_FAULT_TRACED", "1");
    // SAFETY: between fork and exec only `trace_me`, one system call without memory of its own.
    unsafe { command.pre_exec(trace_me) };
    let child = command.spawn()?;
    let leader = i32::try_from(child.id()).expect("a pid");
    let ended = trace(leader, watcher);
    forget(child);
    ended
}

/// The child was waited for by [`trace`]; its handle has nothing left to do.
fn forget(child: Child) {
    drop(child);
}

fn trace(leader: i32, watcher: &mut dyn Watcher) -> io::Result<Ended> {
    let (_, status) = wait(leader)?.ok_or_else(|| io::Error::other("the command is gone"))?;
    if !libc::WIFSTOPPED(status) {
        return Err(io::Error::other("the command ended before it was traced"));
    }
    set_options(leader)?;
    resume(leader, 0);
    // Per thread: the call that it is in. A thread is known once it has stopped first.
    let mut threads: HashMap<i32, Option<(i64, [u64; 6])>> = HashMap::from([(leader, None)]);
    let mut code = 0;
    while let Some((tid, status)) = wait(-1)? {
        if !libc::WIFSTOPPED(status) {
            threads.remove(&tid);
            if tid == leader {
                code = if libc::WIFEXITED(status) {
                    libc::WEXITSTATUS(status)
                } else {
                    -libc::WTERMSIG(status)
                };
                if watcher.leader_gone() == Then::Stop {
                    kill_all(&threads);
                    return Ok(Ended::Code(code));
                }
            }
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        let event = status >> 16;
        let new = !threads.contains_key(&tid);
        let within = threads.entry(tid).or_default();
        if signal == libc::SIGTRAP | 0x80 {
            match call_info(tid) {
                Some(Info::Entry(number, args)) => *within = Some((number, args)),
                Some(Info::Exit(result)) => {
                    if let Some((number, args)) = within.take() {
                        let call = Call { tid, number, args, result };
                        if watcher.returned(&call) == Then::Stop {
                            kill_all(&threads);
                            return Ok(Ended::Stopped);
                        }
                    }
                }
                None => {}
            }
            resume(tid, 0);
        } else if event != 0 || (new && signal == libc::SIGSTOP) {
            // A fork, an exec, or the first stop of a new thread: nothing that it should see.
            resume(tid, 0);
        } else {
            resume(tid, signal);
        }
    }
    Ok(Ended::Code(code))
}

/// Ends every tracee, and waits for each.
fn kill_all(threads: &HashMap<i32, Option<(i64, [u64; 6])>>) {
    for tid in threads.keys() {
        kill(*tid);
    }
    while let Ok(Some((tid, status))) = wait(-1) {
        if libc::WIFSTOPPED(status) {
            // One that was only just born.
            kill(tid);
            resume(tid, libc::SIGKILL);
        }
    }
}

enum Info {
    Entry(i64, [u64; 6]),
    Exit(i64),
}

fn trace_me() -> io::Result<()> {
    // SAFETY: no memory is passed; the call marks this process as traced by its parent.
    if unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn set_options(tid: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_EXITKILL;
    // SAFETY: the options are passed by value, in the place of the data pointer.
    if unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, tid, 0, options) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets it run to its next system call, with a signal if that is not 0. One that was killed
/// meanwhile cannot be resumed, and need not be.
fn resume(tid: i32, signal: i32) {
    // SAFETY: the signal is passed by value, in the place of the data pointer.
    unsafe { libc::ptrace(libc::PTRACE_SYSCALL, tid, 0, signal) };
}

fn kill(tid: i32) {
    // SAFETY: no memory is passed. A tracee is a child of this thread until it is waited for, so
    // that its number is nobody else's.
    unsafe { libc::kill(tid, libc::SIGKILL) };
}

/// The next tracee that stopped or ended, of this thread's own; `None` where there are none left.
fn wait(of: i32) -> io::Result<Option<(i32, i32)>> {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        let tid = unsafe { libc::waitpid(of, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        if tid > 0 {
            return Ok(Some((tid, status)));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ECHILD) => return Ok(None),
            _ => return Err(error),
        }
    }
}

fn call_info(tid: i32) -> Option<Info> {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: the kernel writes at most `size` bytes into `info`, which has them.
    let got = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, tid, size, info.as_mut_ptr()) };
    if got <= 0 {
        return None;
    }
    // SAFETY: all bytes are initialised (zeroed), and every pattern of them is a valid value of
    // this struct of integers.
    let info = unsafe { info.assume_init() };
    match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: `op` says that this is the variant; it is integers alone.
            let entry = unsafe { info.u.entry };
            Some(Info::Entry(entry.nr.cast_signed(), entry.args))
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            // SAFETY: `op` says that this is the variant; it is integers alone.
            let exit = unsafe { info.u.exit };
            Some(Info::Exit(exit.sval))
        }
        _ => None,
    }
}
