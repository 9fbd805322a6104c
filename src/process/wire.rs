//! What coordinator, supervisor and leader say to each other: one JSON document a packet, over
//! `SOCK_SEQPACKET` pairs, with file handles beside it where they are needed.
//!
//! # Limitations
//! A packet is at most [`LARGEST`] bytes; the command itself (which may be megabytes) travels in
//! a memory file.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Seek as _, SeekFrom, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::tx::writer::{KilledProcess, ProcessId};

/// The largest packet, in bytes.
const LARGEST: usize = 128 * 1024;
/// How many handles one packet may carry.
const MOST_HANDLES: usize = 16;

/// From the coordinator to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// The first: beside it the plan, stdin, stdout, stderr, and the handles to keep.
    Setup {
        /// Where lock and proof go; absolute.
        record_dir: Vec<u8>,
        /// Stay in the session, in a group of its own; otherwise a session of its own.
        in_session: bool,
        /// Make a cgroup for the leader, if that can be.
        cgroup: bool,
    },
    /// The writer is recorded: run it.
    Go { grace_ms: u64, bound_ms: u64 },
    /// End the turn.
    End(Ending),
    /// No more grace.
    Hurry,
    /// Stop the leader's group (Ctrl-Z reached the coordinator).
    Stop,
    /// Continue it.
    Continue,
}

/// How a turn is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ending {
    /// SIGINT first.
    Cancel,
    /// SIGTERM first.
    Terminate,
}

/// From the supervisor to the coordinator.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum News {
    /// Supervisor and leader wait to be recorded.
    Ready { supervisor: ProcessId, leader: ProcessId, cgroup: Option<String> },
    /// They do not; the supervisor leaves.
    Failed { why: String },
    /// The leader is stopped (job control).
    Stopped,
    /// The turn is over.
    Over(Ended),
}

/// From the supervisor to the waiting leader; beside it plan, stdin, stdout, stderr.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Lead;

/// From the leader: it waits, or it could not become the command.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum LeaderNews {
    /// Its group or session is made.
    Waiting,
    /// `exec` failed.
    ExecFailed { why: String },
}

/// How a turn ended, as the supervisor saw it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) duration_ms: u64,
    pub(super) killed: Vec<KilledProcess>,
    /// It was asked to end while the leader lived.
    pub(super) asked: bool,
    /// Why the command could not be run.
    pub(super) exec_error: Option<String>,
    /// Who is left, in words; `None` is the proof of death.
    pub(super) unproven: Option<String>,
}

/// The command as the leader needs it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) program: Vec<u8>,
    pub(super) argv: Vec<Vec<u8>>,
    pub(super) cwd: Vec<u8>,
    pub(super) env: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Plan {
    /// Puts it into a memory file.
    pub(super) fn write(&self) -> io::Result<OwnedFd> {
        let mut file = std::fs::File::from(memfd_create("worktx-plan", MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(file.into())
    }

    /// Reads it back.
    pub(super) fn read(fd: OwnedFd) -> io::Result<Self> {
        let mut file = std::fs::File::from(fd);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

/// Two connected ends, both closed at `exec`.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one packet.
pub(super) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    handles: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_HANDLES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !handles.is_empty() && !control.push(SendAncillaryMessage::ScmRights(handles)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many handles for a packet"));
    }
    rustix::io::retry_on_intr(|| {
        sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives one packet; `None` is the end: the other side is gone.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0_u8; LARGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_HANDLES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut receive = || {
        rustix::io::retry_on_intr(|| {
            let slices = &mut [IoSliceMut::new(&mut bytes)];
            recvmsg(&socket, slices, &mut control, RecvFlags::CMSG_CLOEXEC)
        })
    };
    let received = match receive() {
        // The other side left with packets of ours unread. The kernel says so once, before what the
        // other side had sent (`unix(7)`): that is to be heard all the same.
        Err(rustix::io::Errno::CONNRESET) => receive()?,
        received => received?,
    };
    let mut handles = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            handles.extend(fds);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet was cut off"));
    }
    Ok(Some((serde_json::from_slice(&bytes[..received.bytes])?, handles)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_heard_though_the_answer_was_not() -> io::Result<()> {
        let (one, other) = pair()?;
        send(&other, &Order::Stop, &[])?;
        send(&one, &Order::Hurry, &[])?;
        drop(other);
        assert!(matches!(receive::<Order>(&one)?, Some((Order::Stop, _))));
        assert!(receive::<Order>(&one)?.is_none());
        // Nothing was sent: gone.
        let (one, other) = pair()?;
        send(&one, &Order::Hurry, &[])?;
        drop(other);
        assert!(receive::<Order>(&one)?.is_none());
        Ok(())
    }

    #[test]
    fn packets_carry_handles_and_end() -> io::Result<()> {
        let (one, other) = pair()?;
        let plan = Plan {
            program: b"/bin/x\xff".to_vec(),
            argv: vec![b"x".to_vec()],
            cwd: b"/".to_vec(),
            env: vec![(b"A".to_vec(), vec![b'b'; 300_000])],
        };
        let file = plan.write()?;
        send(&one, &Order::Go { grace_ms: 1, bound_ms: 2 }, &[file.as_fd()])?;
        drop(one);
        let (order, mut handles) = receive::<Order>(&other)?.expect("is there");
        assert!(matches!(order, Order::Go { grace_ms: 1, bound_ms: 2 }));
        let back = Plan::read(handles.pop().expect("came along"))?;
        assert_eq!((back.program, back.env), (plan.program, plan.env));
        assert!(receive::<Order>(&other)?.is_none());
        Ok(())
    }
}
