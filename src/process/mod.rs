//! Runs a command under a supervisor, ends it with everything that it ever started, and proves
//! that nobody of it is left; after a restart, says what can be said of a recorded writer.
//!
//! ```text
//! coordinator ── supervisor (child subreaper) ── leader = the command ── whatever it forks
//! ```
//!
//! Order rules: [`start`] makes supervisor and leader, both waiting; the caller records
//! [`Waiting::record`] durably; only then [`Waiting::run`] lets the command go. A [`ProvenDead`]
//! is made here and nowhere else. While a turn runs, the coordinator has no other children.
//!
//! # Limitations
//! What a daemon outside the turn starts on its behalf is no descendant and is not found. A root
//! turn can do anything.

mod cgroup;
mod death;
mod find;
mod fork;
mod ladder;
mod output;
mod prepared;
mod record;
mod signals;
mod supervisor;
mod suspects;
mod table;
mod terminal;
#[cfg(debug_assertions)]
#[doc(hidden)]
pub mod test_turn;
mod turn;
mod wire;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, SystemTime};

pub use cgroup::sweep as sweep_cgroups;
pub use death::{Death, Living, check, operators_word, stop};
pub use find::{ProgramNotFound, find_program};
pub use prepared::Prepared;
pub use signals::{Request, Signals};
pub use supervisor::run_supervisor_if_asked;
pub use table::{Awake, identity, is_alive, own_ancestry, own_process, tell, this_host, wake};
pub use turn::{StartError, Starting, Waiting, begin, start};

use crate::tx::writer::{EndedBy, ProvenDead, TurnResult};

/// A command, whole: nothing of this process's environment or directory is added.
#[derive(Clone, Debug)]
pub struct Command {
    /// What to execute, absolute: [`find_program`] gives it.
    pub program: PathBuf,
    /// The words, the name that the command sees first.
    pub argv: Vec<OsString>,
    /// Where it starts, absolute.
    pub cwd: PathBuf,
    /// All of its environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its standard input.
    pub stdin: Stdin,
    /// Its standard output and error.
    pub output: Output,
    /// It may own the terminal, where standard input is one.
    pub terminal: bool,
    /// It gets a cgroup of its own, where one can be made.
    pub cgroup: bool,
}

/// The standard input of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stdin {
    /// This process's.
    Inherit,
    /// `/dev/null`.
    Null,
    /// These bytes, then its end: a memory file, so that nobody waits for who does not read.
    Bytes(Vec<u8>),
}

/// Where a command's standard output and error go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// This process's.
    Inherit,
    /// Both to this process's standard error (`--json`: standard output is the document).
    StdoutToStderr,
    /// Both live to this process's standard error, the last bytes kept in
    /// [`TurnOver::output_tail`].
    KeepTail {
        /// How many bytes are kept.
        bytes: usize,
    },
}

/// What bounds a run.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the start of the command.
    pub timeout: Option<Duration>,
    /// A time of day.
    pub settle_by: Option<SystemTime>,
    /// Between asking and killing, for the leader and once more for its survivors.
    pub grace: Duration,
    /// How long killing may take until it counts as failed.
    pub proof_bound: Duration,
    /// Signals to this process end the command, also one that came before it. `false` for what
    /// runs after a turn was ended by one: then only the time does.
    pub by_signals: bool,
}

impl Default for Bounds {
    /// No deadline, 5 s of grace, 10 s for the proof.
    fn default() -> Self {
        Self {
            timeout: None,
            settle_by: None,
            grace: Duration::from_secs(5),
            proof_bound: Duration::from_secs(10),
            by_signals: true,
        }
    }
}

/// Where requests to end a running command come from.
pub struct Requests<'a> {
    /// The signals of this process.
    pub signals: Signals,
    /// Asked about every 500 ms while the command runs: `worktx cancel` is seen here.
    pub poll: &'a mut dyn FnMut() -> Option<Request>,
}

/// Nobody can show that the writer is dead: quarantine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the writer is not proven dead: {0}")]
pub struct Unproven(pub String);

/// A command that is over.
#[derive(Debug)]
#[must_use]
pub struct TurnOver {
    /// What the leader returned, and who had to be ended after it.
    pub result: TurnResult,
    /// Why it was over. A request that came after the leader had left by itself is not here;
    /// [`Signals::pending`] still has it.
    pub ended_by: EndedBy,
    /// The proof.
    pub death: Result<ProvenDead, Unproven>,
    /// The last bytes of its output, as they were written: terminal escapes are still in them.
    pub output_tail: Vec<u8>,
    /// There was more output than was kept.
    pub truncated: bool,
    /// Why the command could not be executed; its exit code is 127 (not found) or 126 then.
    pub exec_error: Option<String>,
    /// The supervisor did not live to the end; `ended_by` is `Interrupt` then, whatever the
    /// leader returned.
    pub supervisor_lost: bool,
    /// The supervisor, which has nothing left to do and is about to leave.
    pub leaving: Option<Leaving>,
}

/// A supervisor that has told the end of its run. Dropped, it is waited for: it still has the
/// workspace's lock open, which is to be free when this process is gone.
#[derive(Debug)]
pub struct Leaving(Child);

impl Drop for Leaving {
    fn drop(&mut self) {
        let _ = self.0.wait();
    }
}
