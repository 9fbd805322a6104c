//! The terminal of an interactive turn: its group in the foreground, its modes put back, and
//! the job stopped and continued as the shell above expects.
//!
//! Order rule: the foreground is given before the command starts, and taken back before the
//! modes are put back.
//!
//! # Limitations
//! Only where standard input is the controlling terminal of this session. A terminal that hung
//! up meanwhile is nobody's to restore: errors are passed over.

use rustix::process::{Pid, getpgid, getpgrp, getppid, getsid};
use rustix::termios::{
    OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcgetsid, tcsetattr, tcsetpgrp,
};

use super::signals::without_ttou;

/// The terminal on standard input, while a turn may own it.
pub(super) struct Terminal {
    leader: Pid,
    /// What the modes were when the foreground was given.
    ours: Option<Termios>,
    /// What the turn had set when it was stopped.
    theirs: Option<Termios>,
    given: bool,
}

/// Whether standard input is the terminal of this session.
pub(super) fn is_on_stdin() -> bool {
    let stdin = rustix::stdio::stdin();
    isatty(stdin) && matches!((tcgetsid(stdin), getsid(None)), (Ok(its), Ok(own)) if its == own)
}

impl Terminal {
    /// For the group of this leader.
    pub(super) fn new(leader: Pid) -> Self {
        Self { leader, ours: None, theirs: None, given: false }
    }

    /// Makes the leader's group the foreground one, if this process's is; whether it did.
    pub(super) fn give(&mut self) -> bool {
        let tty = rustix::stdio::stdin();
        if tcgetpgrp(tty) != Ok(getpgrp()) {
            return false;
        }
        self.ours = tcgetattr(tty).ok();
        if let Some(theirs) = self.theirs.take() {
            let _ = tcsetattr(tty, OptionalActions::Drain, &theirs);
        }
        self.given = without_ttou(|| tcsetpgrp(tty, self.leader)).is_ok();
        self.given
    }

    /// Takes the foreground back and puts the modes back; keeps the turn's for the next time.
    pub(super) fn take_back(&mut self) {
        if !std::mem::take(&mut self.given) {
            return;
        }
        let tty = rustix::stdio::stdin();
        self.theirs = tcgetattr(tty).ok();
        without_ttou(|| {
            let _ = tcsetpgrp(tty, getpgrp());
            if let Some(ours) = &self.ours {
                let _ = tcsetattr(tty, OptionalActions::Drain, ours);
            }
        });
    }

    /// This process was continued by somebody: the shell may have put the job in the background
    /// meanwhile, then the terminal is not ours to take back.
    pub(super) fn continued(&mut self) -> bool {
        let foreground = tcgetpgrp(rustix::stdio::stdin());
        if self.given && foreground.is_ok() && foreground == getpgid(getppid()) {
            self.given = false;
        }
        foreground == Ok(getpgrp())
    }
}
