//! The output of a command that is shown live and of which the end is kept.
//!
//! A thread copies, so that a reader that has fallen asleep holds up no deadline. The end of the
//! command ends it, not the end of file: a process elsewhere may hold the pipe open for ever.
//!
//! # Limitations
//! What is still in the pipe when standard error cannot take it for a second is left there.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// How long the rest of the output may take once the command is dead.
const REST: Duration = Duration::from_secs(1);

/// The tail and whether something was dropped before it.
#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    truncated: bool,
}

impl Tail {
    fn push(&mut self, new: &[u8], keep: usize) {
        self.bytes.extend(new);
        let surplus = self.bytes.len().saturating_sub(keep);
        self.bytes.drain(..surplus);
        self.truncated |= surplus > 0;
    }
}

/// Copies a pipe to standard error and keeps its end.
pub(super) struct Copier {
    tail: Arc<Mutex<Tail>>,
    stop: Arc<OwnedFd>,
    done: Receiver<()>,
}

impl Copier {
    /// The copier, and the end of the pipe to write into.
    pub(super) fn start(keep: usize) -> io::Result<(Self, OwnedFd)> {
        let (source, sink) = pipe_with(PipeFlags::CLOEXEC)?;
        // The reading end alone: the command must not find its output non-blocking.
        rustix::fs::fcntl_setfl(&source, rustix::fs::OFlags::NONBLOCK)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let tail = Arc::new(Mutex::new(Tail::default()));
        let (tell, done) = sync_channel(1);
        let (of_thread, stop_of_thread) = (Arc::clone(&tail), Arc::clone(&stop));
        std::thread::Builder::new().name("output".to_owned()).spawn(move || {
            copy(&source, &stop_of_thread, &of_thread, keep);
            // Nobody may be waiting any more.
            let _ = tell.send(());
        })?;
        Ok((Self { tail, stop, done }, sink))
    }

    /// The command is dead: takes what is still in the pipe, and gives the tail.
    pub(super) fn finish(self) -> (Vec<u8>, bool) {
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        match self.done.recv_timeout(REST) {
            Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let tail = std::mem::take(&mut *tail);
        (tail.bytes.into(), tail.truncated)
    }
}

fn copy(source: &OwnedFd, stop: &OwnedFd, tail: &Mutex<Tail>, keep: usize) {
    let mut buffer = vec![0_u8; 64 * 1024];
    let mut stopping = false;
    // Whoever holds the pipe open elsewhere could go on for ever: what a pipe holds is enough.
    let mut rest = 1024 * 1024_usize;
    loop {
        match rustix::io::read(source, &mut buffer[..]) {
            Ok(0) => return,
            Ok(count) => {
                tail.lock().unwrap_or_else(PoisonError::into_inner).push(&buffer[..count], keep);
                show(&buffer[..count]);
                if stopping {
                    rest = rest.saturating_sub(count);
                    if rest == 0 {
                        return;
                    }
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if stopping => return,
            Err(Errno::AGAIN) => {
                let mut fds =
                    [PollFd::new(source, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
                if poll(&mut fds, None).is_ok() {
                    stopping = fds[1].revents().contains(PollFlags::IN);
                }
            }
            Err(_) => return,
        }
    }
}

/// Writes to standard error as it is; whoever closed it does not want to see it.
fn show(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stderr(), bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let stderr = rustix::stdio::stderr();
                let _ = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], None);
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_end_though_the_pipe_stays_open() -> io::Result<()> {
        let (copier, sink) = Copier::start(10)?;
        rustix::io::write(&sink, b"0123456789abcdef\n")?;
        let (tail, truncated) = copier.finish();
        assert_eq!((tail.as_slice(), truncated), (&b"789abcdef\n"[..], true));
        drop(sink);
        let (copier, sink) = Copier::start(10)?;
        rustix::io::write(&sink, b"short\n")?;
        drop(sink);
        assert_eq!(copier.finish(), (b"short\n".to_vec(), false));
        Ok(())
    }
}
