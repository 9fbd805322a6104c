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
use std::time::Duration;

use serde_json::json;

use super::context::Context;
use super::documents::{ReconcileDocument, ReconciledAttempt};
use super::drive::{Driver, Live, Stop};
use super::error::Failure;
use super::outcome::SCHEMA;
use super::rescue::stand_by_pins;
use super::session::Session;
use super::spec::AttemptSpec;
use crate::git::lockfile;
use crate::git::workspace::Workspace;
use crate::process::{self, Death, Signals};
use crate::tx::cause::{Cause, QuarantineReason};
use crate::tx::id::ExecutionId;
use crate::tx::recovery::{self, Decision, OwnerSeen, Phase, PinFirst};
use crate::tx::state::{StateTag, TxEvent, TxState, Undo};
use crate::tx::writer::{DeathProof, ProvenDead, TurnResult};

/// How many decisions one attempt is given in one pass.
const STEPS: u32 = 8;

/// Settles what is unsettled in the workspace of a session. `again` is the execution that has
/// come again, if one has.
pub fn reconcile(
    session: &mut Session,
    signals: Signals,
    again: Option<&ExecutionId>,
) -> Result<ReconcileDocument, Failure> {
    let mut document = empty();
    let workspace = session.workspace.id();
    for attempt in session.ledger.unsettled(Some(&workspace))? {
        let from = attempt.tag()?;
        let spec: AttemptSpec = attempt.spec()?;
        let owner = attempt.owner()?;
        let record = attempt.record()?;
        if record.state != (TxState::Open { turn: None }) {
            stand_by_pins(session, &attempt.key, &spec.settings.ref_prefix, &record)?;
        }
        if from == StateTag::Quarantined && Phase::of(&record.state) == Phase::QuarantinedOther {
            count(&mut document, from, &attempt.key, &spec, &record.state);
            continue;
        }
        session.ledger.claim_owner(&attempt.key, owner.as_ref(), &Session::owner())?;
        let mut driver = Driver {
            session: &mut *session,
            key: attempt.key.clone(),
            spec,
            record,
            rev: attempt.rev,
            live: Live::with_environment(),
            signals,
        };
        let wanted = again == Some(&attempt.key.execution);
        driver.reconcile_one(wanted)?;
        let state = driver.record.state.clone();
        let spec = driver.spec.clone();
        count(&mut document, from, &attempt.key, &spec, &state);
    }
    if document.left == 0 && document.quarantined == 0 {
        // Also where a kill came between the end of an attempt and this.
        lockfile::clear_marker(&session.lock)?;
    }
    Ok(document)
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
    drop(ledger);
    if lockfile::read_marker(&context.workspace)?.is_some() {
        // Perhaps a kill came between the end of the attempt and the marker's.
        roots.push((context.workspace.id(), context.workspace.root().to_owned()));
    }
    roots.sort();
    roots.dedup_by(|a, b| a.0 == b.0);
    for (id, root) in roots {
        let (workspace, place) = if id == context.workspace.id() {
            (context.workspace.clone(), context.place.clone())
        } else {
            let workspace = Workspace::discover(&root)?;
            let wanted = Some(context.place.state.as_path());
            let place = super::session::find_place(&workspace, wanted)?;
            (workspace, place)
        };
        let done = match Session::open(workspace, place, "reconcile", None) {
            Ok(mut session) => reconcile(&mut session, signals, None)?,
            Err(Failure::Busy { .. }) => left(context, &id)?,
            Err(failure) => return Err(failure),
        };
        all.rolled_forward += done.rolled_forward;
        all.rolled_back += done.rolled_back;
        all.quarantined += done.quarantined;
        all.left += done.left;
        all.attempts.extend(done.attempts);
    }
    Ok(all)
}

const fn empty() -> ReconcileDocument {
    ReconcileDocument {
        schema: SCHEMA,
        rolled_forward: 0,
        rolled_back: 0,
        quarantined: 0,
        left: 0,
        attempts: Vec::new(),
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
                Err(Stop::Quarantine(reason)) => {
                    if matches!(self.state(), TxState::Quarantined { .. }) {
                        return Ok(());
                    }
                    self.quarantine(reason)?;
                }
                Err(Stop::Failure(failure)) => return Err(failure),
            }
        }
        Ok(())
    }

    /// One observation, one decision, one step; whether there is more to do.
    fn decide_once(&mut self, again: bool) -> Result<bool, Stop> {
        self.session.verify().map_err(|why| self.lost(&why))?;
        let sight = self.observe(OwnerSeen::Gone, again)?;
        let phase = Phase::of(self.state());
        let decision = recovery::decide(phase, sight.seen);
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
        match decision {
            Decision::Leave => Ok(false),
            Decision::Abandon => self.abandon().map(|()| false),
            Decision::StopWriter => self.stop_writer().map(|()| true),
            Decision::Quarantine(reason) => {
                self.quarantine(reason)?;
                Ok(false)
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
                let before = matches!(phase, Phase::Sealed | Phase::Validating);
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

    fn recorded_death(&self) -> Option<ProvenDead> {
        self.state().seal().map(|seal| seal.death.clone())
    }

    fn roll_back_as(&mut self, cause: Cause, death: ProvenDead) -> Result<(), Stop> {
        let detail = json!({ "reason": cause.reason(), "death": death.how() });
        let event = match self.state() {
            TxState::Quarantined { .. } => {
                let tip = self.judge_moves()?;
                TxEvent::TakenBack { cause, death, tip }
            }
            TxState::Committing { .. } => {
                let standing = self.row()?.map(|row| row.status);
                TxEvent::VerdictLost { standing }
            }
            _ => {
                let tip = self.judge_moves()?;
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
