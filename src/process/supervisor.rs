//! The supervisor: this binary once more, as a child subreaper that does nothing but run one turn
//! and end it; and the leader, a copy of the supervisor until it becomes the command.
//!
//! Both wait to be told: the supervisor for its coordinator, the leader for its supervisor, and
//! both leave when the other side is gone. No threads, no git, no database; signals are blocked,
//! so that only SIGKILL and SIGSTOP reach it.
//!
//! Order rule: lock, subreaper, leader, `Ready`; the leader's command only after `Go`; the proof
//! is on disk before `Over` is said.
//!
//! # Limitations
//! Whoever starts this binary with the hidden word by hand gets a process that leaves at once.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    DumpableBehavior, Signal, set_child_subreaper, set_dumpable_behavior, setpgid, setsid,
};

use super::cgroup::{self, Own};
use super::ladder::{Ladder, Step};
use super::record::{self, Proof, Traces};
use super::table::{self, Process};
use super::wire::{self, Ended, Ending, Lead, LeaderNews, News, Order, Plan};
use super::{fork, signals};
use crate::tx::writer::{DeathProof, ProcessId};

/// `argv[1]` of a supervisor.
pub(super) const SUPERVISE: &str = "__supervise";

/// To be called first in `main`: does not return where the process was started as a supervisor.
#[expect(
    clippy::disallowed_methods,
    reason = "the supervisor is a process of its own and ends here"
)]
pub fn run_supervisor_if_asked() {
    if std::env::args_os().nth(1).is_some_and(|word| word == SUPERVISE) {
        let code = i32::from(supervise().is_err());
        std::process::exit(code);
    }
}

/// What the supervisor holds while its leader waits.
struct Held {
    lock: File,
    record_dir: PathBuf,
    leader_socket: OwnedFd,
    /// Plan, stdin, stdout, stderr of the leader.
    for_leader: Vec<OwnedFd>,
    /// Handles that are only to be kept open: the workspace lock.
    _kept: Vec<OwnedFd>,
    supervisor: ProcessId,
    leader: ProcessId,
    /// Where one could be made.
    cgroup: Option<Own>,
}

fn supervise() -> io::Result<()> {
    let children = signals::block_all_and_watch_children()?;
    // A group of its own: Ctrl-C at the terminal is not for the supervisor. The same session: the
    // leader's group would be orphaned otherwise, and job control would not work in it.
    setpgid(None, None)?;
    signals::close_all_on_exec()?;
    // Standard input is the coordinator; as handle 0 it would be inherited, so it moves away.
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    let Some((Order::Setup { record_dir, in_session, cgroup }, handles)) = wire::receive(&control)?
    else {
        return Ok(());
    };
    let record_dir = PathBuf::from(OsString::from_vec(record_dir));
    let held = match set_up(record_dir, in_session, cgroup, handles) {
        Ok(held) => held,
        Err(why) => return wire::send(&control, &News::Failed { why }, &[]),
    };
    let leader = held.leader;
    let cgroup = held.cgroup.as_ref().map(|own| own.path.clone());
    wire::send(&control, &News::Ready { supervisor: held.supervisor, leader, cgroup }, &[])?;
    match wire::receive(&control) {
        Ok(Some((Order::Go { grace_ms, bound_ms }, _))) => {
            let grace = Duration::from_millis(grace_ms);
            let bound = Duration::from_millis(bound_ms);
            run(held, &control, &children, (grace, bound))
        }
        // The coordinator is gone, or gave it up.
        _ => abandon(held, &control),
    }
}

fn set_up(
    record_dir: PathBuf,
    in_session: bool,
    cgroup: bool,
    mut handles: Vec<OwnedFd>,
) -> Result<Held, String> {
    let what = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    if handles.len() < 4 {
        return Err("the coordinator sent too few handles".to_owned());
    }
    let kept = handles.split_off(4);
    let lock = record::take(&record_dir)
        .map_err(what("the supervisor's lock"))?
        .ok_or("another supervisor runs in this record directory")?;
    set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| format!("child subreaper: {error}"))?;
    let supervisor = table::own_process();
    let cgroup = cgroup.then(|| cgroup::make(&record_dir, &supervisor)).flatten();
    let started = start_leader(in_session, cgroup.as_ref()).and_then(|started| {
        // The turn may not trace its supervisor, which could then be made to say anything.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        let traces = Traces {
            supervisor: Some(supervisor),
            leader: Some(started.leader.id),
            shared_session: in_session.then_some(started.leader.session),
            ..Traces::gather()
        };
        record::describe(&lock, &traces).map_err(what("the supervisor's lock"))?;
        Ok(started)
    });
    match started {
        Ok(Started { socket, leader, in_cgroup }) => {
            if let Some(unused) = cgroup.as_ref().filter(|_| !in_cgroup) {
                unused.remove();
            }
            Ok(Held {
                lock,
                record_dir,
                leader_socket: socket,
                for_leader: handles,
                _kept: kept,
                supervisor,
                leader: leader.id,
                cgroup: cgroup.filter(|_| in_cgroup),
            })
        }
        Err(why) => {
            // Its socket is closed by now: a leader that there is leaves.
            if let (None, Some(own)) = (wait_for_all(), cgroup) {
                own.remove();
            }
            Err(why)
        }
    }
}

/// A leader that waits at the other end of the socket.
struct Started {
    socket: OwnedFd,
    leader: Process,
    in_cgroup: bool,
}

fn start_leader(in_session: bool, cgroup: Option<&Own>) -> Result<Started, String> {
    let what = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let (socket, other) = wire::pair().map_err(what("socketpair"))?;
    let born_there = cgroup
        .and_then(|own| own.open().ok())
        .and_then(|dir| fork::start(Some(dir.as_fd()), &other, || lead(in_session)).ok());
    let (pid, in_cgroup) = if let Some(pid) = born_there {
        (pid, true)
    } else {
        let pid = fork::start(None, &other, || lead(in_session)).map_err(what("the leader"))?;
        (pid, cgroup.is_some_and(|own| own.take_in(pid).is_ok()))
    };
    drop(other);
    match wire::receive(&socket) {
        Ok(Some((LeaderNews::Waiting, _))) => {}
        Ok(Some((LeaderNews::ExecFailed { why }, _))) => return Err(format!("the leader: {why}")),
        Ok(None) => return Err("the leader left before it was let go".to_owned()),
        Err(error) => return Err(format!("the leader: {error}")),
    }
    let leader = table::read(pid).ok_or("the leader is not in /proc")?;
    Ok(Started { socket, leader, in_cgroup })
}

/// Waits until there are no children; why not, where that cannot be told.
fn wait_for_all() -> Option<String> {
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CHILD) => return None,
            Err(error) => return Some(format!("wait failed: {error}")),
        }
    }
}

/// The leader leaves at end of file; that is proof, too.
fn abandon(held: Held, control: &OwnedFd) -> io::Result<()> {
    drop(held.leader_socket);
    let status = wait_for_all();
    let proof = Proof {
        schema: 1,
        supervisor: held.supervisor,
        leader: held.leader,
        boot_id: table::this_host().boot_id,
        how: status.is_none().then_some(DeathProof::NeverStarted),
        unproven: status.clone(),
        exit_code: None,
        signal: None,
    };
    let written = proof.write(&held.record_dir);
    if let Some(own) = held.cgroup.filter(|_| proof.how.is_some()) {
        own.remove();
    }
    let ended = Ended {
        exit_code: None,
        signal: None,
        duration_ms: 0,
        killed: Vec::new(),
        asked: false,
        exec_error: None,
        unproven: status,
    };
    // A coordinator that is gone does not listen: the proof on disk is for its successor.
    let _ = wire::send(control, &News::Over(ended), &[]);
    written
}

fn run(
    held: Held,
    control: &OwnedFd,
    children: &OwnedFd,
    (grace, bound): (Duration, Duration),
) -> io::Result<()> {
    let mut ladder = Ladder::new(held.leader, grace, bound, held.cgroup);
    let started = Instant::now();
    let for_leader: Vec<_> = held.for_leader.iter().map(|fd| fd.as_fd()).collect();
    let mut exec_error = wire::send(&held.leader_socket, &Lead, &for_leader)
        .err()
        .map(|error| format!("the leader could not be let go: {error}"));
    drop(for_leader);
    drop(held.for_leader);
    let mut leader_socket = Some(held.leader_socket);
    let mut coordinator = Some(control);
    let unproven = loop {
        let wait = match ladder.step() {
            Step::Dead => break None,
            Step::Unproven(why) => break Some(why),
            Step::LeaderStopped => {
                if let Some(control) = coordinator {
                    let _ = wire::send(control, &News::Stopped, &[]);
                }
                continue;
            }
            Step::Wait(wait) => wait,
        };
        let (orders, exec) = wait_for(children, coordinator, leader_socket.as_ref(), wait);
        if exec && let Some(socket) = leader_socket.take() {
            // End of file: the handle closed at exec. A message: it could not be done.
            if let Ok(Some((LeaderNews::ExecFailed { why }, _))) = wire::receive(&socket) {
                exec_error = Some(why);
            }
        }
        if orders && let Some(control) = coordinator {
            if let Ok(Some((order, _))) = wire::receive(control) {
                obey(&mut ladder, &order);
            } else {
                coordinator = None;
                ladder.end(Ending::Terminate);
            }
        }
    };
    if exec_error.is_none()
        && let Some(socket) = leader_socket.take()
        && let Ok(Some((LeaderNews::ExecFailed { why }, _))) = wire::receive(&socket)
    {
        exec_error = Some(why);
    }
    let (exit_code, signal) = ladder.status();
    let proof = Proof {
        schema: 1,
        supervisor: held.supervisor,
        leader: held.leader,
        boot_id: table::this_host().boot_id,
        how: unproven.is_none().then_some(DeathProof::NoChildren),
        unproven: unproven.clone(),
        exit_code,
        signal,
    };
    let written = proof.write(&held.record_dir);
    if proof.how.is_some() {
        ladder.remove_cgroup();
    }
    let ended = Ended {
        exit_code,
        signal,
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        asked: ladder.was_asked(),
        killed: ladder.into_killed(),
        exec_error,
        unproven,
    };
    let _ = wire::send(control, &News::Over(ended), &[]);
    drop(held.lock);
    written
}

fn obey(ladder: &mut Ladder, order: &Order) {
    match order {
        Order::End(how) => ladder.end(*how),
        Order::Hurry => ladder.hurry(),
        Order::Stop => ladder.signal_leader(Signal::STOP),
        Order::Continue => ladder.signal_leader(Signal::CONT),
        // Said once, before.
        Order::Setup { .. } | Order::Go { .. } => {}
    }
}

/// Waits for a child, an order or the leader's `exec`; whether an order came, whether `exec` did.
fn wait_for(
    children: &OwnedFd,
    coordinator: Option<&OwnedFd>,
    leader: Option<&OwnedFd>,
    wait: Option<Duration>,
) -> (bool, bool) {
    let mut fds = vec![PollFd::new(children, PollFlags::IN)];
    fds.extend(coordinator.map(|fd| PollFd::new(fd, PollFlags::IN)));
    fds.extend(leader.map(|fd| PollFd::new(fd, PollFlags::IN)));
    let timeout = wait.and_then(|wait| Timespec::try_from(wait).ok());
    if poll(&mut fds, timeout.as_ref()).is_err() {
        return (false, false);
    }
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    drop(fds);
    if ready[0] {
        // The handle carries the signal only; the ladder asks the kernel for the children.
        let mut info = [0_u8; 1024];
        let _ = rustix::io::read(children, &mut info);
    }
    let at = 1 + usize::from(coordinator.is_some());
    (coordinator.is_some() && ready[1], leader.is_some() && ready[at])
}

/// The leader: makes its group or session, waits, and becomes the command.
#[expect(
    clippy::disallowed_methods,
    reason = "the supervisor is a process of its own and ends here"
)]
fn lead(in_session: bool) -> ! {
    let code = match wait_and_exec(in_session) {
        // The supervisor is gone, or gave it up.
        Ok(()) => 0,
        // As shells have it: not found 127, anything else 126.
        Err(error) if error.kind() == io::ErrorKind::NotFound => 127,
        Err(_) => 126,
    };
    std::process::exit(code)
}

fn wait_and_exec(in_session: bool) -> io::Result<()> {
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let grouped = if in_session { setpgid(None, None) } else { setsid().map(|_| ()) };
    if let Err(error) = grouped {
        let why = format!("process group: {error}");
        return wire::send(&control, &LeaderNews::ExecFailed { why }, &[]);
    }
    wire::send(&control, &LeaderNews::Waiting, &[])?;
    let Some((Lead, handles)) = wire::receive::<Lead>(&control)? else { return Ok(()) };
    signals::unblock_all();
    let error = become_command(handles);
    let why = error.to_string();
    wire::send(&control, &LeaderNews::ExecFailed { why }, &[])?;
    Err(error)
}

fn become_command(handles: Vec<OwnedFd>) -> io::Error {
    let Ok([plan, stdin, stdout, stderr]) = <[OwnedFd; 4]>::try_from(handles) else {
        return io::Error::other("the supervisor sent too few handles");
    };
    let prepared = Plan::read(plan).and_then(|plan| {
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        Ok(plan)
    });
    let plan = match prepared {
        Ok(plan) => plan,
        Err(error) => return error,
    };
    let mut argv = plan.argv.iter().map(|word| OsStr::from_bytes(word));
    let mut command = Command::new(OsStr::from_bytes(&plan.program));
    if let Some(name) = argv.next() {
        command.arg0(name);
    }
    command
        .args(argv)
        .current_dir(Path::new(OsStr::from_bytes(&plan.cwd)))
        .env_clear()
        .envs(plan.env.iter().map(|(k, v)| (OsStr::from_bytes(k), OsStr::from_bytes(v))));
    command.exec()
}
