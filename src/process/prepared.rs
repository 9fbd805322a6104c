//! A supervisor that was started ahead of its run: its `exec` and its start take place while the
//! coordinator looks at the tree.
//!
//! Order rule: until it is told of a run it holds nothing, has done nothing and writes nothing;
//! at the end of its socket it leaves.
//!
//! # Limitations
//! One run each.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use super::supervisor::SUPERVISE;
use super::wire;

/// A supervisor that waits for its first order. Dropped, it leaves, and is waited for.
#[derive(Debug)]
pub struct Prepared(Option<(Child, OwnedFd)>);

impl Prepared {
    /// Starts a supervisor. Where that fails, the run itself tries once more and says why.
    pub fn start() -> Self {
        Self(spawn().ok())
    }

    /// The process and the socket to it, where it still lives: Ctrl-C at the terminal is for it
    /// too until it has blocked all signals.
    pub(super) fn take(mut self) -> Option<(Child, OwnedFd)> {
        let (mut child, control) = self.0.take()?;
        match child.try_wait() {
            Ok(None) => Some((child, control)),
            _ => None,
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some((mut child, control)) = self.0.take() {
            drop(control);
            let _ = child.wait();
        }
    }
}

/// A new supervisor, and the socket to it.
pub(super) fn spawn() -> io::Result<(Child, OwnedFd)> {
    let (control, other) = wire::pair()?;
    let child = Command::new("/proc/self/exe")
        .arg(SUPERVISE)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(other))
        .stdout(Stdio::null())
        .spawn()?;
    Ok((child, control))
}
