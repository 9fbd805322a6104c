//! What a supervisor leaves in its record directory: a lock that it holds as long as it lives,
//! who it is, and, at the end, the proof of death.
//!
//! Order rule: the lock is taken and its text written before the leader may run; the proof is
//! durable before anybody is told of it.
//!
//! # Limitations
//! The text in the lock is not synced: it matters within one boot only.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::table::{self, Process};
use crate::base::durable;
use crate::tx::writer::{DeathProof, ProcessId};

// Not `.lock`: entrypoints of containers delete those beneath a git directory.
const LOCK: &str = "supervisor.held";
const PROOF: &str = "death.json";

/// The text in the lock: what helps to find the writer when its supervisor is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Traces {
    pub(super) supervisor: Option<ProcessId>,
    pub(super) leader: Option<ProcessId>,
    /// The session that the turn shares with others; `None` where it has its own.
    pub(super) shared_session: Option<i32>,
    /// Whoever may inherit orphans of the turn: the ancestors of the supervisor.
    pub(super) ancestors: Vec<ProcessId>,
    /// `/proc/self/cgroup` of the supervisor, where the turn starts too.
    pub(super) cgroup: String,
}

impl Traces {
    /// The ancestors and cgroup of this process.
    pub(super) fn gather() -> Self {
        let mut ancestors = Vec::new();
        let mut next = table::own_process().pid;
        while let Some(Process { parent, id, .. }) = table::read(next) {
            ancestors.push(id);
            next = parent;
        }
        Self { ancestors, cgroup: cgroup_of("self"), ..Self::default() }
    }
}

/// The cgroups of a process as one text; empty where unknown.
pub(super) fn cgroup_of(pid: impl std::fmt::Display) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default()
}

/// The proof on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proof {
    pub(super) schema: u32,
    pub(super) supervisor: ProcessId,
    pub(super) leader: ProcessId,
    pub(super) boot_id: String,
    /// How; `None` where there is no proof.
    pub(super) how: Option<DeathProof>,
    /// Who was left, where there is none.
    pub(super) unproven: Option<String>,
    pub(super) exit_code: Option<i32>,
    pub(super) signal: Option<i32>,
}

impl Proof {
    /// Writes it, durably.
    pub(super) fn write(&self, record_dir: &Path) -> io::Result<()> {
        durable::write_file(&record_dir.join(PROOF), &serde_json::to_vec(self)?, 0o600)
    }

    /// Reads it; `None` where there is none that can be read.
    pub(super) fn read(record_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(record_dir.join(PROOF)).ok()?).ok()
    }
}

/// Takes the lock and removes an older proof; `None` where a supervisor holds it.
pub(super) fn take(record_dir: &Path) -> io::Result<Option<File>> {
    let file = open(record_dir, true)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    durable::remove_file(&record_dir.join(PROOF))?;
    Ok(Some(file))
}

/// Writes the text into the lock that is held.
pub(super) fn describe(mut lock: &File, traces: &Traces) -> io::Result<()> {
    lock.set_len(0)?;
    lock.write_all(&serde_json::to_vec(traces)?)
}

/// The text of the lock; `None` where there is none that can be read.
pub(super) fn traces(record_dir: &Path) -> Option<Traces> {
    serde_json::from_slice(&std::fs::read(record_dir.join(LOCK)).ok()?).ok()
}

/// Whether no supervisor holds the lock; `None` where that cannot be told.
pub(super) fn is_free(record_dir: &Path) -> Option<bool> {
    let file = open(record_dir, false).ok()?;
    match file.try_lock() {
        Ok(()) => Some(true),
        Err(TryLockError::WouldBlock) => Some(false),
        Err(TryLockError::Error(_)) => None,
    }
}

fn open(record_dir: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .open(record_dir.join(LOCK))
}
