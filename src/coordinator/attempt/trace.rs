//! What an attempt leaves for the next one and for people: its outcome, which stands in the ledger
//! and is written into the folder of the next attempt; and, where the settings say so and the base
//! ignores the place, a record in the tree.
//!
//! # Limitations
//! A record in the tree is a courtesy: that it could not be written changes no outcome.

use rustix::fs::{Mode, OFlags};
use serde_json::json;
use std::os::fd::AsFd as _;

use crate::coordinator::attempt::drive::Driver;
use crate::coordinator::error::Failure;
use crate::coordinator::session::Session;
use crate::git::scan::rules::{Source, View};
use crate::journal::Change as LedgerChange;
use crate::tx::id::{AttemptKey, AttemptNo, ExecutionId};
use crate::tx::path::RepoPath;
use crate::tx::record::AttemptRecord;
use crate::tx::state::{TxEvent, TxState};

/// In an attempt's folder, the outcome of the one before: what `WORKTX_PREVIOUS` names.
pub(super) const PREVIOUS: &str = "previous.json";
const TREE_FOLDER: &str = ".trinity/journal";

impl Driver<'_> {
    /// Records the last event of an attempt, its outcome with it.
    pub(in crate::coordinator) fn apply_final(&mut self, event: TxEvent) -> Result<(), Failure> {
        let status = self.row()?.map(|row| row.status);
        let (name, expected) = (event.name(), self.record.state.tag());
        let state = self.record.state.clone().apply(event).map_err(Failure::bug)?;
        let record = AttemptRecord { state, ..self.record.clone() };
        let outcome = self.outcome_value(&record, status);
        self.rev = self.session.ledger.transition(&LedgerChange {
            key: &self.key,
            expected,
            rev: self.rev,
            record: &record,
            event: name,
            detail: &json!({ "phases": self.live.laps.so_far() }),
            outcome: outcome.as_ref(),
        })?;
        tracing::info!(event = name, state = record.state.tag().as_str(), "recorded");
        self.record = record;
        Ok(())
    }

    /// Writes the outcome into the tree, where that is asked for.
    pub(in crate::coordinator) fn leave_trace(&mut self) {
        let undone = matches!(self.state(), TxState::RolledBack { undo: Some(_) });
        if !undone || !self.spec.settings.tree_record {
            return;
        }
        let status = self.row().ok().flatten().map(|row| row.status);
        let Some(outcome) = self.outcome(&self.record, status) else { return };
        let Ok(bytes) = serde_json::to_vec_pretty(&outcome) else { return };
        if let Err(error) = self.leave_in_tree(&bytes) {
            tracing::warn!(%error, "no record of the attempt could be left in the tree");
        }
    }

    /// `.trinity/journal/tx-<execution>-<attempt>.json`, where the base ignores it.
    fn leave_in_tree(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let name = format!("tx-{}-{}.json", self.key.execution, self.key.attempt);
        let path = RepoPath::new(format!("{TREE_FOLDER}/{name}")).map_err(std::io::Error::other)?;
        let snapshot = self.snapshot().map_err(|_| std::io::Error::other("no manifest"))?;
        let base = self.base_rules(&snapshot);
        let rules = crate::coordinator::report::view::rules(&self.spec);
        let ignored = View::new(&rules, Source::Base(&base))
            .ignores(&path, false)
            .map_err(std::io::Error::other)?;
        if !ignored {
            return Ok(());
        }
        let mut dir = self.session.root.open_self()?;
        for part in TREE_FOLDER.split('/') {
            match rustix::fs::mkdirat(&dir, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            dir = rustix::fs::openat(
                &dir,
                part,
                OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(dir.as_fd(), &*name, flags, Mode::from_raw_mode(0o644))
        {
            Err(rustix::io::Errno::EXIST) => return Ok(()),
            other => other?,
        };
        let mut file = std::fs::File::from(file);
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    }
}

/// The outcome of an attempt before, if it came to one.
pub(super) fn before(
    session: &Session,
    execution: &ExecutionId,
    attempt: AttemptNo,
) -> Result<Option<Vec<u8>>, Failure> {
    let key = AttemptKey { execution: execution.clone(), attempt };
    let outcome = session.ledger.attempt(&key)?.and_then(|attempt| attempt.outcome);
    Ok(outcome.and_then(|outcome| serde_json::to_vec_pretty(&outcome).ok()))
}
