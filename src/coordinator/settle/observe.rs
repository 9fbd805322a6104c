//! Observation for reconcile: what the row, the branch, the tree and the processes say, reduced to
//! what the recovery table looks at.
//!
//! # Limitations
//! Observing changes nothing. What is seen may be another by the time it is acted on; every effect
//! looks again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::coordinator::attempt::drive::{Driver, Stop, chain};
use crate::coordinator::error::Failure;
use crate::coordinator::place::Place;
use crate::coordinator::report::view;
use crate::coordinator::session::Session;
use crate::coordinator::spec::AttemptSpec;
use crate::git::index;
use crate::git::refs::Head;
use crate::git::scan::{self, NewDirectories};
use crate::process::{self, Death};
use crate::tx::id::{AttemptKey, Oid};
use crate::tx::recovery::{
    BranchSeen, Observed, OwnerSeen, Stage, TreeSeen, VerdictSeen, WriterSeen,
};
use crate::tx::state::{Fingerprint, TxState};
use crate::tx::verdict::{Claim, Status};
use crate::tx::writer::ProvenDead;

/// What was seen, and the proof where one was found.
#[derive(Debug)]
pub(super) struct Sight {
    /// For the table.
    pub(super) seen: Observed,
    /// Nobody writes any more.
    pub(super) death: Option<ProvenDead>,
    /// For the event.
    pub(super) detail: Value,
}

#[derive(Debug, Serialize, Deserialize)]
struct Look {
    head: String,
    branch: Option<Oid>,
    index: Option<String>,
    tree: String,
}

/// What HEAD, index and tree look like.
pub(in crate::coordinator) fn fingerprint(
    session: &Session,
    spec: &AttemptSpec,
) -> Result<Fingerprint, Failure> {
    let head = format!("{:?}", session.refs.head()?);
    let branch = match &spec.branch {
        Some(branch) => session.refs.get(branch)?,
        None => None,
    };
    let bytes = index::load(session.workspace.git_dir())?;
    // By meaning: `git status` rewrites stat data whenever somebody looks.
    let index = bytes.map(|bytes| match index::Index::parse(&bytes) {
        Ok(index) => crate::base::hex::hex(&index.meaning().0),
        Err(_) => crate::base::hex::hex(&index::known::digest(&bytes)),
    });
    let snapshot = Arc::new(session.manifest.load()?);
    let rules = view::base_rules(&session.store, &snapshot);
    let scan = view::look(session, spec, &snapshot, &rules, NewDirectories::Walk)
        .map_err(Failure::other("looking at the work tree"))?;
    let mut hash = Sha256::new();
    for change in scan.changes {
        let raw = match &change.after {
            Some(found) => Some(
                scan::raw_id(&session.root, &change.path, found, |_| {})
                    .map_err(Failure::other("looking at the work tree"))?,
            ),
            None => None,
        };
        // By what stands there: a `touch` or a restored backup changes times and inodes only.
        if let (Some(before), Some(found), Some(raw)) = (&change.before, &change.after, &raw)
            && (before.kind, before.stat.mode, before.raw) == (found.kind, found.stat.mode, raw.oid)
        {
            continue;
        }
        hash.update(change.path.as_bytes());
        hash.update([0]);
        if let (Some(found), Some(raw)) = (&change.after, raw) {
            hash.update(format!("{:?} {:o} {}", found.kind, found.stat.mode, raw.oid));
        }
        hash.update([0]);
    }
    let look = Look { head, branch, index, tree: crate::base::hex::hex(&hash.finalize()) };
    let text = serde_json::to_string(&look).map_err(Failure::bug)?;
    Ok(Fingerprint(crate::base::hex::hex(&Sha256::digest(text.as_bytes()))))
}

/// The folder in which the supervisor of a recorded writer leaves its proof.
pub(in crate::coordinator) fn writer_folder_of(
    place: &Place,
    key: &AttemptKey,
    state: &TxState,
) -> std::path::PathBuf {
    let folder = place.attempt(key);
    let mut state = state;
    while let TxState::Quarantined { held, .. } = state {
        state = held;
    }
    match state {
        TxState::Validating { run, .. } => folder.join(format!("post-check-{run}")),
        _ => folder.join("turn"),
    }
}

impl Driver<'_> {
    /// Looks at everything that the recovery table asks about. `again` says that the same
    /// execution has come again.
    pub(super) fn observe(&mut self, owner: OwnerSeen, again: bool) -> Result<Sight, Stop> {
        let stage = Stage::of(self.state());
        let (writer, death, writer_text) = self.observe_writer();
        let verdict = self.observe_verdict();
        let branch = self.observe_branch()?;
        let wants_tree = matches!(
            stage,
            Stage::Sealed | Stage::Validating | Stage::Committing | Stage::RollingBack
        );
        let tree = if wants_tree && writer == WriterSeen::ProvenDead {
            self.observe_tree()?
        } else {
            TreeSeen::Foreign
        };
        let again = again && self.is_as_quarantined();
        let seen = Observed {
            owner,
            writer,
            verdict,
            branch,
            tree,
            on_interrupted: self.spec.settings.on_interrupted,
            again,
        };
        let detail = json!({
            "stage": format!("{stage:?}"), "writer": writer_text, "verdict": format!("{verdict:?}"),
            "branch": format!("{branch:?}"), "tree": format!("{tree:?}"), "again": again,
        });
        Ok(Sight { seen, death, detail })
    }

    /// The folder in which the supervisor of the recorded writer leaves its proof.
    pub(super) fn writer_folder(&self) -> std::path::PathBuf {
        writer_folder_of(&self.session.place, &self.key, self.state())
    }

    fn observe_writer(&self) -> (WriterSeen, Option<ProvenDead>, String) {
        let Some(record) = self.state().writer() else {
            let sealed = self.state().seal().map(|seal| seal.death.clone());
            let undone = match self.state() {
                TxState::RollingBack { undo } => Some(undo.death.clone()),
                _ => None,
            };
            return (WriterSeen::ProvenDead, sealed.or(undone), "none recorded".to_owned());
        };
        let exclusive = self.spec.settings.exclusive_volume;
        match process::check(record, &self.writer_folder(), exclusive) {
            Death::Proven(death) => {
                let how = format!("dead: {:?}", death.how());
                (WriterSeen::ProvenDead, Some(death), how)
            }
            Death::Alive(living) => {
                let pids: Vec<String> = living.iter().map(|l| l.pid.to_string()).collect();
                (WriterSeen::Unproven, None, format!("alive: {}", pids.join(", ")))
            }
            Death::Unproven(why) => (WriterSeen::Unproven, None, format!("unproven: {why}")),
        }
    }

    fn observe_verdict(&mut self) -> VerdictSeen {
        let candidate = self.state().seal().map(|seal| seal.candidate);
        match self.row() {
            Err(_) => VerdictSeen::Unknown,
            Ok(None) => VerdictSeen::Theirs,
            Ok(Some(row)) => {
                let ours = candidate.is_some_and(|candidate| {
                    row.success == Some(Claim { attempt: self.key.attempt, candidate })
                });
                match row.status {
                    Status::Success if ours => VerdictSeen::Ours,
                    // A watchdog's premature failure may still be corrected by the real result.
                    Status::Failed | Status::Skipped => VerdictSeen::NotWritten,
                    status if status.is_terminal() => VerdictSeen::Theirs,
                    _ => VerdictSeen::NotWritten,
                }
            }
        }
    }

    fn observe_branch(&mut self) -> Result<BranchSeen, Stop> {
        let head = self.session.refs.head()?;
        let now = match (&head, &self.spec.branch) {
            (Head::Branch(name, id), Some(branch)) if name == branch => *id,
            (Head::Detached(id), None) => Some(*id),
            // Past the commit point the branch counts, wherever HEAD went meanwhile.
            (_, Some(branch)) if self.state().is_past_commit_point() => {
                self.session.refs.get(branch)?
            }
            _ => return Ok(BranchSeen::Elsewhere),
        };
        let Some(now) = now else { return Ok(BranchSeen::Elsewhere) };
        let seal = self.state().seal();
        let tip = match self.state() {
            TxState::RollingBack { undo } => undo.tip,
            _ => seal.map(|seal| seal.sealed_head),
        };
        if let Some(seal) = seal.filter(|_| !self.state().has_begun_undo()) {
            let past = self.state().is_past_commit_point();
            if now == seal.candidate && (past || seal.has_new_commit()) {
                return Ok(BranchSeen::AtCandidate);
            }
            if Some(now) == tip && now != self.spec.base {
                return Ok(BranchSeen::AtTip);
            }
            if now == seal.sealed_head {
                return Ok(BranchSeen::AtBase);
            }
            let builds_on = self.session.store.is_descendant(now, seal.candidate).unwrap_or(false);
            if builds_on && (past || seal.has_new_commit()) {
                return Ok(BranchSeen::PastCandidate);
            }
            return Ok(BranchSeen::Elsewhere);
        }
        if now == self.spec.base {
            return Ok(BranchSeen::AtBase);
        }
        if tip == Some(now) {
            return Ok(BranchSeen::AtTip);
        }
        // A crash cut the turn off before anything of the branch was recorded: its own commits are
        // told by the reflog.
        let cut_off =
            matches!(Stage::of(self.state()), Stage::OpenTurn | Stage::QuarantinedInterrupted);
        if cut_off && matches!(self.judge_moves(), Ok(Some(own)) if own == now) {
            return Ok(BranchSeen::AtTip);
        }
        Ok(BranchSeen::Elsewhere)
    }

    fn observe_tree(&mut self) -> Result<TreeSeen, Stop> {
        if matches!(self.state(), TxState::RollingBack { .. }) {
            // The undo itself compares each path with base and pin, and rescues what is neither.
            return Ok(TreeSeen::Mixed);
        }
        let differ = self.since_seal()?;
        Ok(if differ.is_empty() { TreeSeen::Candidate } else { TreeSeen::Foreign })
    }

    fn is_as_quarantined(&self) -> bool {
        let TxState::Quarantined { fingerprint: Some(before), .. } = self.state() else {
            return false;
        };
        match fingerprint(self.session, &self.spec) {
            Ok(now) => now == *before,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the workspace could not be looked at");
                false
            }
        }
    }
}
