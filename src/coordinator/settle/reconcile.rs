//! Reconcile: for every unsettled attempt of a workspace, observe, decide by the table, act, until
//! nothing is left to do by itself.
//!
//! Order rules: under the workspace lock, so that a living owner's attempt is never touched; each
//! decision is an event with its observations, recorded before it is acted on; effects are the
//! same code as the normal way.
//!
//! # Limitations
//! Bounded: each attempt is given a fixed number of steps.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::config::Operator;
use crate::coordinator::attempt::commit::adopt_lost;
use crate::coordinator::attempt::drive::{Driver, Live, Stop, chain, is_for_good};
use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::attempt::rescue::stand_by_pins;
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::notify;
use crate::coordinator::report::documents::{ReconcileDocument, ReconciledAttempt};
use crate::coordinator::session::Session;
use crate::coordinator::spec::AttemptSpec;
use crate::git::refs::locks;
use crate::git::workspace::lockfile;
use crate::journal::{Attempt, Filter, Owner};
use crate::process::{self, Death, Signals};
use crate::tx::cause::{Cause, QuarantineReason};
use crate::tx::id::ExecutionId;
use crate::tx::record::Warning;
use crate::tx::recovery::{self, Decision, OwnerSeen, PinFirst, Stage};
use crate::tx::state::{TxEvent, TxState, Undo};
use crate::tx::tag::StateTag;
use crate::tx::writer::{DeathProof, ProvenDead, TurnResult};

/// How many decisions one attempt is given in one pass.
const STEPS: u32 = 8;

/// How long a process may take to be gone once it has let go of its lock.
const DYING: Duration = Duration::from_secs(2);

/// Settles what is unsettled in the workspace of a session. `again` is the execution that has
/// come again, if one has.
pub fn reconcile(
    session: &mut Session,
    signals: Signals,
    again: Option<&ExecutionId>,
) -> Result<ReconcileDocument, Failure> {
    let _span = tracing::info_span!("reconcile").entered();
    let mut document = empty();
    let workspace = session.workspace.id();
    let unsettled = session.ledger.unsettled(Some(&workspace))?;
    if unsettled.is_empty() {
        // A crash may have come between the end of the last attempt and the word about it.
        let last = Filter { workspace: Some(workspace), limit: Some(1), ..Filter::default() };
        if let Some(attempt) = session.ledger.attempts(&last)?.first() {
            document.warnings = notify::tell(&mut driver(session, signals, attempt)?);
        }
    }
    for attempt in unsettled {
        let from = attempt.tag()?;
        let owner = attempt.owner()?;
        let mut driver = driver(session, signals, &attempt)?;
        if *driver.state() != (TxState::Open { turn: None }) {
            let prefix = driver.spec.settings.ref_prefix.clone();
            stand_by_pins(driver.session, &attempt.key, &prefix, &driver.record)?;
        }
        let held = Stage::of(driver.state()) == Stage::QuarantinedOther;
        if from != StateTag::Quarantined || !held {
            if owner.as_ref().is_some_and(lives_on) {
                // The lock could be had, but who drives this lives: its lock file was exchanged.
                return Err(Failure::Busy { holder: None });
            }
            let ledger = &mut driver.session.ledger;
            ledger.claim_owner(&attempt.key, owner.as_ref(), &Session::owner())?;
            driver.reconcile_one(again == Some(&attempt.key.execution))?;
        }
        driver.drop_scratch();
        if let Err(error) = driver.give_locks_back() {
            // The disk that holds the attempt may hold its locks: the next time tries again.
            let message = format!("git's locks of {} are left: {}", attempt.key, chain(&error));
            document.warnings.push(Warning { code: "locks_left".to_owned(), message });
        }
        document.warnings.extend(notify::tell(&mut driver));
        count(&mut document, from, &attempt.key, &driver.spec, &driver.record.state);
    }
    if document.left == 0 && document.quarantined == 0 {
        // Also where a kill came between the end of an attempt and this.
        lockfile::clear_marker(&session.lock)?;
    }
    Ok(document)
}

/// Whether the owner of an attempt lives, and is somebody else. One whose lock could be had is
/// dead in most cases, or dies this instant: the kernel lets go of the lock a little before.
fn lives_on(owner: &Owner) -> bool {
    let until = Instant::now() + DYING;
    while *owner != Session::owner() && process::is_alive(&owner.host, &owner.process) == Some(true)
    {
        if Instant::now() >= until {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Takes an attempt up as the ledger has it.
pub(super) fn driver<'s>(
    session: &'s mut Session,
    signals: Signals,
    attempt: &Attempt,
) -> Result<Driver<'s>, Failure> {
    Ok(Driver {
        session,
        key: attempt.key.clone(),
        spec: attempt.spec()?,
        record: attempt.record()?,
        rev: attempt.rev,
        live: Live::with_environment(),
        signals,
    })
}

/// Settles every work tree of a repository that has something unsettled and that is there.
///
/// A busy one is left to its owner, and counted as left.
pub fn everywhere(context: &Context) -> Result<ReconcileDocument, Failure> {
    let signals = Signals::install().map_err(Failure::io("installing signal handlers"))?;
    let mut all = empty();
    let Some(ledger) = context.ledger()? else { return Ok(all) };
    let mut roots: Vec<(String, PathBuf)> = ledger
        .unsettled(None)?
        .into_iter()
        .map(|attempt| (attempt.workspace.id, attempt.workspace.root))
        .collect();
    let own = context.workspace.id();
    let last = Filter { workspace: Some(own.clone()), limit: Some(1), ..Filter::default() };
    if let Some(attempt) = ledger.attempts(&last)?.first()
        && attempt.spec::<AttemptSpec>()?.operator != Operator::default()
    {
        // Settled or not: somebody may still have to be told of it.
        roots.push((own, attempt.workspace.root.clone()));
    }
    drop(ledger);
    if lockfile::read_marker(&context.workspace)?.is_some() {
        // Perhaps a kill came between the end of the attempt and the marker's.
        roots.push((context.workspace.id(), context.workspace.root().to_owned()));
    }
    roots.sort();
    roots.dedup_by(|a, b| a.0 == b.0);
    for (id, root) in roots {
        let (workspace, place) = match context.work_tree(&id, &root) {
            Ok(found) => found,
            Err(failure) => {
                // Its tree is gone or elsewhere: that keeps no other from being settled.
                let message = format!("{} was left: {}", root.display(), chain(&failure));
                all.warnings.push(Warning { code: "no_work_tree".to_owned(), message });
                all.add(left(context, &id)?);
                continue;
            }
        };
        let done = match Session::open(workspace, place, "reconcile") {
            Ok(mut session) => reconcile(&mut session, signals, None),
            Err(failure) => Err(failure),
        };
        let done = match done {
            Err(Failure::Busy { .. }) => left(context, &id)?,
            done => done?,
        };
        all.add(done);
    }
    Ok(all)
}

impl ReconcileDocument {
    fn add(&mut self, other: Self) {
        self.rolled_forward += other.rolled_forward;
        self.rolled_back += other.rolled_back;
        self.quarantined += other.quarantined;
        self.left += other.left;
        self.attempts.extend(other.attempts);
        self.warnings.extend(other.warnings);
    }
}

const fn empty() -> ReconcileDocument {
    ReconcileDocument {
        schema: SCHEMA,
        rolled_forward: 0,
        rolled_back: 0,
        quarantined: 0,
        left: 0,
        attempts: Vec::new(),
        warnings: Vec::new(),
    }
}

/// What a living owner drives.
fn left(context: &Context, workspace: &str) -> Result<ReconcileDocument, Failure> {
    let mut document = empty();
    let ledger = context.need_ledger()?;
    for attempt in ledger.unsettled(Some(workspace))? {
        let spec: AttemptSpec = attempt.spec()?;
        count(&mut document, attempt.tag()?, &attempt.key, &spec, &attempt.record()?.state);
    }
    Ok(document)
}

fn count(
    document: &mut ReconcileDocument,
    from: StateTag,
    key: &crate::tx::id::AttemptKey,
    spec: &AttemptSpec,
    state: &TxState,
) {
    let result = match state {
        TxState::Done { .. } => {
            document.rolled_forward += 1;
            "rolled_forward"
        }
        TxState::RolledBack { .. } | TxState::Released { .. } => {
            document.rolled_back += 1;
            "rolled_back"
        }
        TxState::Quarantined { .. } => {
            document.quarantined += 1;
            "quarantined"
        }
        _ => {
            document.left += 1;
            "left"
        }
    };
    let (reason, detail) = match state {
        TxState::Quarantined { reason, .. } => (Some(reason.as_str().to_owned()), reason.detail()),
        TxState::RolledBack { undo } => {
            let cause = undo.as_ref().map_or(&Cause::NotStarted, |undo| &undo.cause);
            (Some(cause.reason().to_owned()), None)
        }
        _ => (None, None),
    };
    document.attempts.push(ReconciledAttempt {
        execution_id: key.execution.clone(),
        attempt: key.attempt,
        workspace: spec.workspace.root().display().to_string(),
        from,
        state: state.tag(),
        result: result.to_owned(),
        reason,
        detail,
    });
}

impl Driver<'_> {
    fn reconcile_one(&mut self, again: bool) -> Result<(), Failure> {
        for _ in 0..STEPS {
            match self.decide_once(again) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(stop) => {
                    let reason = match stop {
                        Stop::Quarantine(reason) => reason,
                        // What is missing today is missing tomorrow: an operator decides.
                        Stop::Failure(failure) if is_for_good(&failure) => {
                            QuarantineReason::WorkspaceDamaged { why: chain(&failure) }
                        }
                        Stop::Failure(failure) => return Err(failure),
                    };
                    if matches!(self.state(), TxState::Quarantined { .. }) {
                        return Ok(());
                    }
                    self.quarantine(reason)?;
                }
            }
        }
        Ok(())
    }

    /// One observation, one decision, one step; whether there is more to do.
    fn decide_once(&mut self, again: bool) -> Result<bool, Stop> {
        self.session.verify().map_err(|why| self.lost(&why))?;
        let sight = self.observe(OwnerSeen::Gone, again)?;
        let stage = Stage::of(self.state());
        let decision = recovery::decide(stage, sight.seen);
        if decision == Decision::Leave {
            return Ok(false);
        }
        let mut detail = sight.detail;
        detail["decision"] = json!(decision.name());
        self.session.ledger.record_event(
            &self.key.execution,
            Some(self.key.attempt),
            "decided",
            &detail,
        )?;
        if !matches!(decision, Decision::StopWriter | Decision::Quarantine(_)) {
            // Nobody is in there any more, and after the last record nobody comes back for it.
            self.drop_scratch();
        }
        match decision {
            Decision::Leave => Ok(false),
            Decision::Abandon => self.abandon().map(|()| false),
            Decision::StopWriter => self.stop_writer().map(|()| true),
            Decision::Quarantine(reason) => {
                // Where the same execution has come again already, the table has more to say.
                let more = again && reason == QuarantineReason::Interrupted;
                self.quarantine(reason)?;
                Ok(more)
            }
            Decision::RollBack(
                cause,
                PinFirst::Everything | PinFirst::WhatIsNew | PinFirst::Nothing,
            ) => {
                let Some(death) = sight.death.or_else(|| self.recorded_death()) else {
                    return Err(Stop::Quarantine(QuarantineReason::WriterUnproven));
                };
                self.roll_back_as(cause, death)?;
                self.drive()?;
                Ok(!self.state().tag().is_settled())
            }
            Decision::RollForward => {
                // The row names us: the gate says so again, and promotion looks at the branch.
                self.drive()?;
                Ok(!self.state().tag().is_settled())
            }
            Decision::Resume(pin) => {
                if matches!(self.state(), TxState::Quarantined { .. }) {
                    self.apply(TxEvent::Resumed, &json!({}))?;
                }
                let before = matches!(stage, Stage::Sealed | Stage::Validating);
                if before
                    && pin == PinFirst::WhatIsNew
                    && let Some(seal) = self.state().seal().cloned()
                {
                    self.put_back_since_seal(&seal)?;
                }
                self.drive()?;
                Ok(!matches!(self.state(), TxState::Quarantined { .. })
                    && !self.state().tag().is_settled())
            }
        }
    }

    /// Of what is held for an operator nothing may keep git from the branch: they have to be able
    /// to merge, or to move it. Only locks that a crash of this very attempt left are meant.
    fn give_locks_back(&self) -> Result<(), Failure> {
        let is_held = matches!(self.state(), TxState::Quarantined { .. });
        if is_held {
            let target = self.session.target(&self.key, self.spec.branch.as_ref());
            locks::give_back_own(&target)?;
        }
        Ok(())
    }

    fn recorded_death(&self) -> Option<ProvenDead> {
        self.state().seal().map(|seal| seal.death.clone())
    }

    fn roll_back_as(&mut self, cause: Cause, death: ProvenDead) -> Result<(), Stop> {
        if self.state().seal().is_some_and(|seal| seal.adopted)
            && matches!(self.state(), TxState::Committing { .. })
        {
            let standing = self.row()?.map(|row| row.status);
            return Err(Stop::Quarantine(adopt_lost(standing)));
        }
        let detail = json!({ "reason": cause.reason(), "death": death.how() });
        let event = match self.state() {
            TxState::Quarantined { .. } => {
                let tip = self.judge_moves()?;
                self.make_durable(tip)?;
                TxEvent::TakenBack { cause, death, tip }
            }
            TxState::Committing { .. } => {
                let standing = self.row()?.map(|row| row.status);
                TxEvent::VerdictLost { standing }
            }
            _ => {
                let tip = self.judge_moves()?;
                self.make_durable(tip)?;
                let turn = TurnResult::default();
                TxEvent::Failed(Undo { cause, death, turn, seal: None, post_check: None, tip })
            }
        };
        self.apply(event, &detail)?;
        Ok(())
    }

    /// Ends what is left of the writer, and looks for the proof.
    fn stop_writer(&mut self) -> Result<(), Stop> {
        let Some(record) = self.state().writer().cloned() else { return Ok(()) };
        let death = process::stop(
            &record,
            &self.writer_folder(),
            Duration::from_millis(self.spec.settings.grace_ms),
            self.bound(),
            self.spec.settings.exclusive_volume,
        );
        let (word, why) = match &death {
            Death::Proven(death) => ("proven", format!("{:?}", death.how())),
            Death::Alive(living) => ("alive", format!("{} processes", living.len())),
            Death::Unproven(why) => ("unproven", why.clone()),
        };
        self.session.ledger.record_event(
            &self.key.execution,
            Some(self.key.attempt),
            "writer_stopped",
            &json!({ "death": word, "how": why }),
        )?;
        match death {
            Death::Proven(death) => {
                debug_assert_ne!(death.how(), DeathProof::OperatorsWord);
                Ok(())
            }
            Death::Alive(_) | Death::Unproven(_) => {
                Err(Stop::Quarantine(QuarantineReason::WriterUnproven))
            }
        }
    }
}
