//! The commit point and what follows: locks, comparison, gate, promotion, the effects of a
//! success.
//!
//! Order rule: everything that promotion needs is in hand before the gate is asked; promotion and
//! the effects of a success take a [`Won`], which only the gate makes.
//!
//! # Limitations
//! If a won attempt cannot promote, it is held as `promote_blocked`: never undone.

use std::time::{Duration, Instant};

use serde_json::json;

use super::baseindex::{self, NewIndex};
use super::drive::{Driver, Stop, chain};
use super::error::Failure;
use super::seal::signature;
use super::undo::lock_stop;
use super::validate::difference_stop;
use crate::base::fault::{self, Point};
use crate::base::hex::hex;
use crate::gate::{Answer, EmbeddedGate};
use crate::git::index::{self, Index, IndexChange, IndexError};
use crate::git::judge;
use crate::git::locks;
use crate::git::promote::{self, Move};
use crate::git::store::Held;
use crate::git::{index_known, index_splice};
use crate::journal::{Change as LedgerChange, LedgerError};
use crate::tx::cause::QuarantineReason;
use crate::tx::entry::Change;
use crate::tx::path::RepoPath;
use crate::tx::record::AttemptRecord;
use crate::tx::settings::OnDrift;
use crate::tx::state::{Seal, TxEvent};
use crate::tx::verdict::{Claim, Terminal, TerminalStatus, Verdict, Won};

/// How long somebody else's rebase is let finish, and how often it is looked at. Not longer than a
/// cancel may take to be acted on.
const A_REBASE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(20);

/// An index of so many bytes is worth a second thread.
const LARGE: usize = 256 << 10;

fn parsed(bytes: Option<&[u8]>) -> Result<Index, IndexError> {
    bytes.map_or_else(|| Ok(Index::empty()), Index::parse)
}

fn blocked(error: &dyn std::error::Error) -> Stop {
    Stop::Quarantine(QuarantineReason::PromoteBlocked { why: chain(error) })
}

impl Driver<'_> {
    fn sealed(&self) -> Result<Seal, Stop> {
        self.state().seal().cloned().ok_or_else(|| Failure::bug("a commit without a seal").into())
    }

    pub(super) fn ask_gate(&mut self) -> Result<(), Stop> {
        let seal = self.sealed()?;
        let target = self.session.target(&self.key, self.spec.branch.as_ref());
        let held = self.take_locks(&target)?;
        let ready = self.make_ready(&seal, &target, &held);
        if let Err(stop) = ready {
            held.release()?;
            return Err(stop);
        }
        fault::point(Point::LocksHeld);
        match self.ask(&seal)? {
            Verdict::Won(won) => {
                self.live.won = Some(won);
                self.live.held = Some(held);
                fault::point(Point::GateWon);
                Ok(())
            }
            Verdict::Lost(_) => {
                held.release()?;
                locks::forget(&target)?;
                Ok(())
            }
            Verdict::Unknown(why) => {
                held.release()?;
                Err(Stop::Quarantine(QuarantineReason::GateUnknown { why }))
            }
        }
    }

    /// git's locks. A rebase that somebody else has under way would, at its end or when it is given
    /// up, put the branch where it was before, whatever landed meanwhile: it is let finish, for a
    /// while, and then compared with the seal like anything else.
    fn take_locks(&self, target: &locks::Target) -> Result<locks::HeldLocks, Stop> {
        let until = Instant::now() + A_REBASE;
        let rebasing = || {
            judge::is_rebasing(&self.session.workspace)
                && Instant::now() < until
                && self.signals.pending().is_none()
        };
        loop {
            while rebasing() {
                std::thread::sleep(LOOK);
            }
            let held = locks::take(target, self.bound()).map_err(lock_stop)?;
            if !rebasing() {
                return Ok(held);
            }
            held.release()?;
            locks::forget(target)?;
        }
    }

    /// With the locks held: nothing differs from the seal, and what is to be put in place is
    /// written.
    fn make_ready(
        &mut self,
        seal: &Seal,
        target: &locks::Target,
        held: &locks::HeldLocks,
    ) -> Result<(), Stop> {
        let meaning = self.sealed_meaning()?;
        let differences = promote::compare(target, seal.sealed_head, meaning)
            .map_err(|error| Stop::damaged(chain(&error)))?;
        if !differences.is_empty() {
            return Err(difference_stop(&differences));
        }
        self.meet_drift(seal)?;
        self.session.warmth.borrow_mut().rest();
        let new_index = self.new_index(seal)?;
        self.live.index_changes = Some(new_index.is_some());
        // What is known of the bytes is found out while they are written.
        let prepare = || {
            let bytes = new_index.as_deref();
            promote::prepare(held, seal.sealed_head, seal.candidate, bytes)
                .map_err(|error| Stop::seal_blocked(&error))
        };
        let Some(bytes) = new_index.as_deref() else { return prepare() };
        let (prepared, known) = if bytes.len() < LARGE {
            (prepare(), NewIndex::of(bytes))
        } else {
            std::thread::scope(|scope| {
                let hashing = scope.spawn(|| NewIndex::of(bytes));
                let prepared = prepare();
                let known = hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                (prepared, known)
            })
        };
        prepared?;
        let known = known.map_err(|error| Stop::damaged(chain(&error)))?;
        index_known::remember(known.digest, known.meaning);
        if let Ok(Some(file)) = target.pending_file(locks::Guarded::Index) {
            let git_dir = self.session.workspace.git_dir();
            index_known::written(git_dir, &file, known.digest, known.trailer);
        }
        self.live.new_index = Some(known);
        Ok(())
    }

    /// What somebody changed since the seal: pinned, and by the setting left, put back or held.
    fn meet_drift(&mut self, seal: &Seal) -> Result<(), Stop> {
        if self.live.scope_seen && !self.sealed_paths_touched() {
            return Ok(());
        }
        let differ = self.since_seal()?;
        if differ.is_empty() {
            return Ok(());
        }
        let changes: Vec<Change> = differ.into_iter().map(|(change, _)| change).collect();
        let paths: Vec<RepoPath> = changes.iter().map(|c| c.path.clone()).collect();
        let pinned = self.pin_drift(seal, &changes)?;
        for path in &paths {
            if !self.record.drift.contains(path) {
                self.record.drift.push(path.clone());
            }
        }
        match self.on_drift() {
            OnDrift::Quarantine => Err(Stop::Quarantine(QuarantineReason::Drift { paths })),
            OnDrift::Leave => {
                self.record.warn(
                    "drift_left",
                    "somebody else changed files after the seal; they are kept in a ref and left as they are, not committed",
                );
                Ok(())
            }
            OnDrift::Restore => {
                self.put_back_pinned(seal, changes, &pinned)?;
                self.record.warn(
                    "drift_restored",
                    "somebody else changed files after the seal; they are kept in a ref and put back",
                );
                Ok(())
            }
        }
    }

    /// The index that stands for the candidate; `None` where it need not change.
    fn new_index(&mut self, seal: &Seal) -> Result<Option<Vec<u8>>, Stop> {
        let unreadable = |error: &dyn std::error::Error| Stop::damaged(chain(error));
        let git_dir = self.session.workspace.git_dir();
        let digest = index_known::digest_now(git_dir)?;
        let same_as_base = digest.map(|digest| hex(&digest)) == self.spec.index_digest;
        if same_as_base && seal.tree == self.spec.base_tree {
            return Ok(None);
        }
        let old = index::load(git_dir)?;
        if same_as_base {
            // The index is the base's, so the trees tell what differs.
            let wanted = self.session.store.diff_trees(self.spec.base_tree, seal.tree)?;
            let wanted = wanted.into_iter().map(|(path, _, after)| (path, after)).collect();
            let changes = self.index_changes(wanted)?;
            if changes.is_empty() {
                return Ok(None);
            }
            if let Some(old) = old.as_deref().filter(|old| old.len() >= LARGE) {
                let (is_whole, spliced) = std::thread::scope(|scope| {
                    let checking = scope.spawn(|| index_splice::is_whole(old));
                    let spliced = index_splice::splice(old, &changes);
                    let is_whole =
                        checking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                    (is_whole, spliced)
                });
                if let Some(spliced) = spliced.filter(|_| is_whole) {
                    return Ok(Some(spliced));
                }
            }
            let current = parsed(old.as_deref()).map_err(|e| unreadable(&e))?;
            return Ok(Some(current.with_changes(&changes, None).to_bytes()));
        }
        let current = parsed(old.as_deref()).map_err(|e| unreadable(&e))?;
        let wanted = current
            .differs_from_tree(&self.session.store, seal.tree)
            .map_err(|e| unreadable(&e))?;
        let base = self.base_index()?;
        let changes = self.index_changes(wanted)?;
        Ok(Some(current.with_changes(&changes, base.as_ref()).to_bytes()))
    }

    fn index_changes(
        &mut self,
        wanted: Vec<(RepoPath, Option<Held>)>,
    ) -> Result<Vec<IndexChange>, Stop> {
        let view = self.sealed_view()?;
        let change = |(path, held): (RepoPath, Option<Held>)| {
            // After a crash git shall compare the bytes: see `sealed_view`.
            let stat = view.snapshot.get(&path).map(|entry| entry.stat);
            let stat = stat.filter(|_| !view.of_earlier);
            IndexChange { to: held.map(|(mode, id)| (mode, id, stat)), path }
        };
        Ok(wanted.into_iter().map(change).collect())
    }

    fn base_index(&self) -> Result<Option<Index>, Stop> {
        if self.spec.index_digest.is_none() {
            return Ok(None);
        }
        let bytes = baseindex::saved(self.session, &self.key, &self.spec)?;
        Index::parse(&bytes).map(Some).map_err(|error| Stop::damaged(chain(&error)))
    }

    /// Asks for SUCCESS; the verdict and what follows from it are one db transaction.
    fn ask(&mut self, seal: &Seal) -> Result<Verdict, Stop> {
        let ask = Terminal {
            status: TerminalStatus::Success(seal.candidate),
            from: Some(self.key.attempt),
            claim_token: self.spec.claim_token.clone(),
            error: None,
        };
        let until = Instant::now() + self.bound();
        loop {
            let expected = self.state().tag();
            let before = self.record.clone();
            let (mut next, mut new_rev) = (before.clone(), self.rev);
            let (key, rev) = (self.key.clone(), self.rev);
            let db = self.session.ledger.writable()?;
            let verdict = EmbeddedGate::new(db).ask_and_record(
                &key.execution,
                &ask,
                |tx, answer: &Answer| {
                    let standing = answer.row.as_ref().map(|row| row.status);
                    let event = if answer.won {
                        TxEvent::VerdictWon
                    } else if seal.adopted {
                        // Lost: the tree stays as it is, and an operator decides again.
                        let why = format!(
                            "the execution already is {}",
                            standing.map_or("gone", crate::tx::verdict::Status::as_str)
                        );
                        TxEvent::Quarantined {
                            reason: QuarantineReason::AdoptFailed { why },
                            fingerprint: None,
                        }
                    } else {
                        TxEvent::VerdictLost { standing }
                    };
                    let name = event.name();
                    let state = before.state.clone().apply(event).map_err(AskError::Illegal)?;
                    next = AttemptRecord { state, ..before.clone() };
                    let change = LedgerChange {
                        key: &key,
                        expected,
                        rev,
                        record: &next,
                        event: name,
                        detail: &json!({ "standing": standing, "candidate": seal.candidate }),
                        outcome: None,
                    };
                    new_rev = change.apply(tx).map_err(AskError::Ledger)?;
                    Ok(())
                },
            );
            match verdict.map_err(AskError::into_failure)? {
                Verdict::Unknown(_) if Instant::now() < until => {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
                Verdict::Unknown(why) => return Ok(Verdict::Unknown(why)),
                verdict => {
                    tracing::info!(
                        ?verdict,
                        state = next.state.tag().as_str(),
                        "the gate answered"
                    );
                    self.record = next;
                    self.rev = new_rev;
                    return Ok(verdict);
                }
            }
        }
    }

    /// The verdict that was won: in hand, or, after a crash, read back from the row that stands.
    fn won(&mut self, seal: &Seal) -> Result<Won, Stop> {
        if let Some(won) = &self.live.won {
            return Ok(won.clone());
        }
        let claim = Claim { attempt: self.key.attempt, candidate: seal.candidate };
        let db = self.session.ledger.writable()?;
        EmbeddedGate::new(db)
            .standing_win(&self.key.execution, claim)
            .map_err(Failure::from)?
            .ok_or(Stop::Quarantine(QuarantineReason::VerdictMismatch))
    }

    pub(super) fn promote(&mut self) -> Result<(), Stop> {
        let seal = self.sealed()?;
        let won = self.won(&seal)?;
        if self.is_past_candidate(&seal)? {
            // Somebody built on it: what promotion was to bring about has come about.
            self.apply(TxEvent::Promoted, &json!({ "commit": seal.candidate, "by": "others" }))?;
            return Ok(());
        }
        let target = self.session.target(&self.key, self.spec.branch.as_ref());
        let held = match self.live.held.take() {
            Some(held) => held,
            None => locks::take(&target, self.bound()).map_err(|error| blocked(&error))?,
        };
        let moved = self.move_branch(&seal, &held, &won);
        if moved.is_ok() {
            fault::point(Point::Promoted);
            self.apply(TxEvent::Promoted, &json!({ "commit": seal.candidate }))?;
        }
        let released = held.release();
        // What kept the branch from moving may keep the locks from going: they are known as own.
        moved?;
        Ok(released?)
    }

    /// The branch has gone on from the candidate.
    fn is_past_candidate(&self, seal: &Seal) -> Result<bool, Stop> {
        // Also where the candidate is the turn's own last commit, and nothing had to be moved.
        let now = self.session.refs.get(&self.branch_ref())?;
        Ok(now.is_some_and(|now| {
            now != seal.candidate
                && self.session.store.is_descendant(now, seal.candidate).unwrap_or(false)
        }))
    }

    fn move_branch(&mut self, seal: &Seal, held: &locks::HeldLocks, won: &Won) -> Result<(), Stop> {
        debug_assert_eq!(won.row().success.map(|s| s.candidate), Some(seal.candidate));
        let who = signature(&self.spec.author);
        let message = format!("worktx {}: committed", self.key);
        let plan = Move {
            from: seal.sealed_head,
            to: seal.candidate,
            index_before: self.sealed_meaning()?,
            index_changes: self.live.index_changes.unwrap_or_default(),
            who: &who,
            message: &message,
            make_logs: self.spec.git.logs_branches(),
        };
        promote::promote(held, &plan).map_err(|error| blocked(&error))?;
        let branch = self.branch_ref();
        let landed = self.session.refs.get(&branch).map_err(|error| blocked(&error))?;
        let tree = match landed {
            Some(id) if id == seal.candidate => Some(self.session.store.commit(id)?.tree),
            _ => None,
        };
        if tree != Some(seal.tree) {
            return Err(Stop::Quarantine(QuarantineReason::PromoteBlocked {
                why: "the branch does not hold the candidate after it was moved".to_owned(),
            }));
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<(), Stop> {
        fault::point(Point::CommittedRecorded);
        let seal = self.sealed()?;
        let _won: Won = self.won(&seal)?;
        if let Some(NewIndex { digest, trailer, .. }) = self.live.new_index {
            index_known::placed(self.session.workspace.git_dir(), digest, trailer);
        }
        self.note_index(seal.tree)?;
        let entries = self.sealed_view()?.file.entries.clone();
        self.remember(entries, seal.tree)?;
        let target = self.session.target(&self.key, self.spec.branch.as_ref());
        // Before the end is recorded: after it nobody comes back for what is left.
        locks::forget(&target)?;
        self.report_other_refs();
        self.apply_final(TxEvent::Finished)?;
        self.leave_trace();
        Ok(())
    }
}

/// Why asking came to nothing.
enum AskError {
    Illegal(crate::tx::state::IllegalTransition),
    Ledger(LedgerError),
}

impl AskError {
    fn into_failure(self) -> Failure {
        match self {
            Self::Illegal(error) => Failure::bug(error),
            Self::Ledger(error) => error.into(),
        }
    }
}
