//! Who may write into the tree, and what proves that nobody of them is left.
//!
//! # Limitations
//! The records are data; how death is found out is the business of `process`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::path::RepoPath;

/// A process, by what makes it one: a pid alone is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct ProcessId {
    /// The pid, in the pid namespace of the record that holds this.
    pub pid: i32,
    /// Its start, in clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start_ticks: u64,
}

/// The machine, boot and pid namespace in which a process id means something.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct HostId {
    /// `/etc/machine-id`, empty where there is none.
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The inode of `/proc/self/ns/pid`.
    pub pid_namespace: u64,
    /// The start of pid 1 there: tells a restarted container from the one before.
    pub init_start_ticks: u64,
}

/// Everything that is recorded of a writer before it may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WriterRecord {
    /// Where the ids mean something.
    pub host: HostId,
    /// The supervisor.
    pub supervisor: ProcessId,
    /// The leader: the command itself.
    pub leader: ProcessId,
    /// The cgroup that was made for it (its path below the cgroup mount), where one could be.
    pub cgroup: Option<String>,
    /// Clock ticks since boot before which no process of the writer but the supervisor can have
    /// started.
    pub started_ticks: u64,
}

/// A process that was still there after the leader, and was ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KilledProcess {
    /// Its pid.
    pub pid: i32,
    /// Its command line, shortened; its name in brackets where there is none.
    pub command: String,
    /// The signal that ended it: `SIGTERM` or `SIGKILL`.
    pub signal: String,
}

/// How it was proven that a writer is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeathProof {
    /// Its supervisor, a child subreaper, has no children at all: the kernel says so.
    NoChildren,
    /// It was never let go: it left at the pipe, before its command.
    NeverStarted,
    /// The machine has booted since.
    OtherBoot,
    /// Supervisor and leader are gone by pid and start time, and nobody descends from them.
    Gone,
    /// The cgroup that held it is empty or gone.
    CgroupEmpty,
    /// The supervisor's lock is free, and the operator says that no other container shares it.
    ExclusiveVolume,
    /// An operator gave their word (`--writer-dead`).
    OperatorsWord,
}

/// The writer is dead. A seal and an undo hold one, so that neither can be written without it.
///
/// Made by `process` only, a test keeps it so; read back from a record of the ledger otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
#[must_use]
pub struct ProvenDead(DeathProof);

impl ProvenDead {
    /// For `process` alone: call it where the proof is in hand.
    pub(crate) const fn attest(how: DeathProof) -> Self {
        Self(how)
    }

    /// What the proof is.
    pub const fn how(&self) -> DeathProof {
        self.0
    }
}

/// How the turn ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TurnResult {
    /// What the leader returned, if it returned.
    pub exit_code: Option<i32>,
    /// The signal that ended the leader, if one did.
    pub signal: Option<i32>,
    /// From the start of the leader to the proof of death, in milliseconds.
    pub duration_ms: u64,
    /// Who was still there after the leader.
    pub killed: Vec<KilledProcess>,
}

/// Why the turn was over, apart from what the leader returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// The leader left by itself.
    Itself,
    /// `--timeout` ran out.
    Timeout,
    /// `--settle-by` passed.
    SettleBy,
    /// Ctrl-C, or `worktx cancel`.
    Cancel,
    /// SIGTERM or SIGHUP to the coordinator.
    Interrupt,
}

/// A path that stands in the way of a decision, with why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedPath {
    /// Where.
    pub path: RepoPath,
    /// Why, in words for a person.
    pub why: String,
}
