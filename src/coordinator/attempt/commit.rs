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

use crate::base::fault::{self, Point};
use crate::coordinator::attempt::baseindex::Keeping;
use crate::coordinator::attempt::drive::{ASK_AGAIN, Driver, Stop, chain, is_stale};
use crate::coordinator::attempt::newindex::NewIndex;
use crate::coordinator::attempt::seal::signature;
use crate::coordinator::attempt::undo::lock_stop;
use crate::coordinator::attempt::validate::difference_stop;
use crate::coordinator::error::Failure;
use crate::gate::{Answer, EmbeddedGate};
use crate::git::index;
use crate::git::objects::store::Store;
use crate::git::objects::tree;
use crate::git::promote::{self, Move};
use crate::git::refs::locks::{self, LockError};
use crate::git::workspace::judge;
use crate::journal::{Change as LedgerChange, LedgerError};
use crate::tx::cause::{Cause, QuarantineReason};
use crate::tx::entry::Change;
use crate::tx::path::RepoPath;
use crate::tx::record::AttemptRecord;
use crate::tx::settings::OnDrift;
use crate::tx::state::{Seal, TxEvent};
use crate::tx::verdict::{Claim, Status, Terminal, TerminalStatus, Verdict, Won};

/// How long somebody else's rebase is let finish, and how often it is looked at. Not longer than a
/// cancel may take to be acted on.
const A_REBASE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(20);

/// How long somebody else's lock is waited for before it is asked whether to go on.
const A_TRY: Duration = Duration::from_millis(250);

fn blocked(error: &dyn std::error::Error) -> Stop {
    Stop::Quarantine(QuarantineReason::PromoteBlocked { why: chain(error) })
}

/// What an operator wanted, and somebody else's terminal stands: the tree stays as it is, and they
/// decide again.
pub(in crate::coordinator) fn adopt_lost(standing: Option<Status>) -> QuarantineReason {
    let why = format!("the execution already is {}", standing.map_or("gone", Status::as_str));
    QuarantineReason::AdoptFailed { why }
}

impl Driver<'_> {
    fn sealed(&self) -> Result<Seal, Stop> {
        self.state().seal().cloned().ok_or_else(|| Failure::bug("a commit without a seal").into())
    }

    pub(super) fn ask_gate(&mut self) -> Result<(), Stop> {
        let seal = self.sealed()?;
        let target = self.session.target(&self.key, self.spec.branch.as_ref());
        let held = match self.take_locks(&seal, &target)? {
            Ok(held) => held,
            Err(cause) => return self.reject(&seal, cause, None),
        };
        let ready = self.make_ready(&seal, &target, &held);
        if let Err(stop) = ready {
            held.release()?;
            return Err(stop);
        }
        fault::point(Point::LocksHeld);
        match self.asked_before_the_gate(&seal) {
            Ok(None) => {}
            asked => {
                held.release()?;
                locks::forget(&target)?;
                return asked?.map_or(Ok(()), |cause| self.reject(&seal, cause, None));
            }
        }
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

    /// A request to end that came since the post-check, where it is known that the gate was not won
    /// before a crash.
    fn asked_before_the_gate(&mut self, seal: &Seal) -> Result<Option<Cause>, Stop> {
        let is_open = self.row().is_ok_and(|row| row.is_none_or(|row| row.success.is_none()));
        if is_open { self.asked_to_end(seal) } else { Ok(None) }
    }

    /// git's locks; the cause to end for, where one came while somebody else held them.
    ///
    /// A rebase that somebody else has under way would, at its end or when it is given up, put the
    /// branch where it was before, whatever landed meanwhile: it is let finish, for a while, and
    /// then compared with the seal like anything else.
    fn take_locks(
        &mut self,
        seal: &Seal,
        target: &locks::Target,
    ) -> Result<Result<locks::HeldLocks, Cause>, Stop> {
        let until = Instant::now() + self.bound();
        let rebase_until = Instant::now() + A_REBASE;
        let rebasing = |driver: &Self| {
            judge::is_rebasing(&driver.session.workspace)
                && Instant::now() < rebase_until
                && driver.signals.pending().is_none()
        };
        loop {
            while rebasing(self) {
                std::thread::sleep(LOOK);
            }
            let left = until.saturating_duration_since(Instant::now());
            let held = match locks::take(target, left.min(A_TRY)) {
                Err(LockError::Foreign { .. }) if left > A_TRY => {
                    match self.asked_before_the_gate(seal)? {
                        Some(cause) => return Ok(Err(cause)),
                        None => continue,
                    }
                }
                taken => taken.map_err(lock_stop)?,
            };
            if !rebasing(self) {
                return Ok(Ok(held));
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
        self.see_the_candidate(seal)?;
        self.session.warmth.borrow_mut().rest();
        self.prepare(seal, target, held)
    }

    /// What the row is to name can be read, by whoever comes next: a post-check may have deleted refs
    /// and objects. From now on git's locks keep a gc from going over them.
    ///
    /// Only that the new objects are there is looked at, not their bytes again.
    fn see_the_candidate(&mut self, seal: &Seal) -> Result<(), Stop> {
        if !self.live.others_ran {
            return Ok(());
        }
        // Not by what this process holds open: that outlives its name.
        let alternates = self.session.store.alternates();
        let store = Store::open_with(self.session.workspace.common_dir(), alternates)?;
        let (base, shallow) = (Some(self.spec.base), self.shallow()?);
        let gaps = tree::closure(&store, seal.candidate, base, &shallow, &|_| true)?;
        if let Some(gap) = gaps.first() {
            return Err(Stop::damaged(format!("of the candidate, {gap}")));
        }
        let pins = &self.record.pins;
        for pin in pins.base.iter().chain(&pins.candidate) {
            let put_back = self.session.refs.put_back(&self.spec.settings.ref_prefix, pin);
            put_back.map_err(|error| Stop::seal_blocked(&error))?;
        }
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

    /// Asks for SUCCESS; the verdict and what follows from it are one db transaction.
    fn ask(&mut self, seal: &Seal) -> Result<Verdict, Stop> {
        let ask = Terminal {
            status: TerminalStatus::Success(seal.candidate),
            from: Some(self.key.attempt),
            claim_token: self.spec.claim_token.clone(),
            error: None,
        };
        let until = Instant::now() + self.bound();
        let mut unheard: Option<AttemptRecord> = None;
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
                        TxEvent::Quarantined { reason: adopt_lost(standing), fingerprint: None }
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
            let verdict = match verdict {
                Err(AskError::Ledger(error)) if is_stale(&error) => {
                    let Some(stands) =
                        unheard.take().filter(|r| self.is_recorded(r).unwrap_or(false))
                    else {
                        return Err(error.into());
                    };
                    // The answer before, which could not be heard, was written.
                    (next, new_rev) = (stands, self.rev + 1);
                    self.verdict_of(seal)?
                }
                verdict => verdict.map_err(AskError::into_failure)?,
            };
            match verdict {
                Verdict::Unknown(_) if Instant::now() < until => {
                    if new_rev != rev {
                        unheard = Some(next);
                    }
                    std::thread::sleep(ASK_AGAIN);
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

    /// What the row says of this attempt's claim, without asking for it.
    fn verdict_of(&mut self, seal: &Seal) -> Result<Verdict, Stop> {
        let claim = Claim { attempt: self.key.attempt, candidate: seal.candidate };
        let db = self.session.ledger.writable()?;
        let won = EmbeddedGate::new(db).standing_win(&self.key.execution, claim);
        Ok(match won.map_err(Failure::from)? {
            Some(won) => Verdict::Won(won),
            None => Verdict::Lost(self.row()?),
        })
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
            let (workspace, place) = (&self.session.workspace, &self.session.place);
            self.live.keeping = Keeping::begin(workspace, place, self.live.new_index);
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
        let there = match landed {
            Some(id) if id == seal.candidate => Some(self.session.store.commit(id)?.tree),
            _ => None,
        };
        if there != Some(seal.tree) {
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
            index::known::placed(self.session.workspace.git_dir(), digest, trailer);
        }
        let entries = self.sealed_view()?.file.entries.clone();
        let target = self.session.target(&self.key, self.spec.branch.as_ref());
        self.remember(entries, seal.tree)?;
        // Before the end is recorded: after it nobody comes back for what is left.
        locks::forget(&target)?;
        self.report_other_refs();
        if let Some(keeping) = self.live.keeping.take() {
            keeping.finish();
        }
        self.note_index(seal.tree)?;
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
