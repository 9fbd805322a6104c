//! Resolve: an operator's decision about a quarantined attempt.
//!
//! Order rules: the gate is asked first; nothing is undone without proof of death or the operator's
//! recorded word for it; whatever stands in the tree is pinned before it is touched or let go.
//! Decisions go through the same states and effects as everything else.
//!
//! # Limitations
//! An operator's decision vouches for a branch that still descends from the base; where HEAD is on
//! another branch, they have to go back to it first.

use std::collections::HashSet;

use serde_json::json;

use super::documents::ResolvedAttempt;
use super::drive::{Driver, Live, Stop, chain};
use super::error::Failure;
use super::outcome::RefsDocument;
use super::rescue::PinKind;
use super::session::Session;
use super::spec::AttemptSpec;
use super::turn::branch_moved;
use super::view;
use crate::gate::{EmbeddedGate, Gate as _};
use crate::git::lockfile;
use crate::git::locks;
use crate::git::refs::Head;
use crate::git::scan::NewDirectories;
use crate::process::{self, Signals};
use crate::tx::cause::{Cause, QuarantineReason};
use crate::tx::id::{AttemptKey, Oid};
use crate::tx::recovery::{OwnerSeen, WriterSeen};
use crate::tx::state::{TxEvent, TxState};
use crate::tx::verdict::{Status, Terminal, TerminalStatus, Verdict};
use crate::tx::writer::ProvenDead;

/// What an operator decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Seal the tree as it stands, validate it, let it land.
    Adopt,
    /// Pin what stands there, restore the base.
    Discard,
    /// Pin what stands there, leave it.
    Keep,
}

impl Choice {
    /// The word on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adopt => "adopt",
            Self::Discard => "discard",
            Self::Keep => "keep",
        }
    }
}

/// Carries a decision out. The document says whether the attempt is settled now.
///
/// # Errors
/// Where the decision is not legal for the state that the attempt is in; nothing has changed then.
pub fn resolve(
    session: &mut Session,
    signals: Signals,
    key: &AttemptKey,
    choice: Choice,
    writer_dead: bool,
) -> Result<ResolvedAttempt, Failure> {
    let attempt = session
        .ledger
        .attempt(key)?
        .ok_or_else(|| Failure::impossible(format!("there is no attempt {key}"), "worktx list"))?;
    let record = attempt.record()?;
    let TxState::Quarantined { held, .. } = &record.state else {
        return Err(Failure::impossible(
            format!("attempt {key} is {}, not quarantined", record.state.tag()),
            format!("worktx show {}", key.execution),
        ));
    };
    let past = held.is_past_commit_point();
    if past && choice != Choice::Adopt {
        return Err(Failure::impossible(
            format!("attempt {key} has won its row: it is completed, never undone"),
            format!("worktx resolve {} --adopt", key.execution),
        ));
    }
    if choice == Choice::Adopt && held.has_begun_undo() {
        return Err(Failure::impossible(
            format!("the undo of attempt {key} has begun: it cannot be adopted any more"),
            format!("worktx resolve {} --discard", key.execution),
        ));
    }
    let spec: AttemptSpec = attempt.spec()?;
    let owner = attempt.owner()?;
    session.ledger.claim_owner(key, owner.as_ref(), &Session::owner())?;
    let mut driver = Driver {
        session,
        key: key.clone(),
        spec,
        record,
        rev: attempt.rev,
        live: Live::with_environment(),
        signals,
    };
    let detail = json!({ "decision": choice.as_str(), "writer_dead": writer_dead });
    driver.session.ledger.record_event(&key.execution, Some(key.attempt), "resolve", &detail)?;
    let why = match driver.resolve_one(choice, past, writer_dead) {
        Ok(()) => None,
        Err(Stop::Quarantine(reason)) => {
            let why = format!("{}: {}", reason.as_str(), reason.detail().unwrap_or_default());
            // What was held stays held, for what it was held for.
            let held = matches!(driver.state(), TxState::Quarantined { .. });
            if !held && !driver.state().tag().is_settled() {
                driver.quarantine(reason)?;
            }
            Some(why.trim_end_matches([':', ' ']).to_owned())
        }
        Err(Stop::Failure(failure)) => return Err(failure),
    };
    driver.resolved(choice, why)
}

impl Driver<'_> {
    fn resolve_one(&mut self, choice: Choice, past: bool, writer_dead: bool) -> Result<(), Stop> {
        self.session.verify().map_err(|why| self.lost(&why))?;
        if past {
            self.apply(TxEvent::Resumed, &json!({ "by": "operator" }))?;
            return self.drive().map_err(Stop::from);
        }
        let death = self.death_for_resolve(writer_dead)?;
        match choice {
            Choice::Adopt => {
                let tip = self.tip_for_resolve(true)?;
                let turn = self.state().turn().or(self.record.turn.as_ref());
                let turn = turn.cloned().unwrap_or_default();
                self.seal_at(tip, turn, death, true)?;
                self.drive()?;
            }
            Choice::Discard => {
                let tip = self.tip_for_resolve(false)?;
                self.ask_failed()?;
                let cause = Cause::Discarded;
                let detail = json!({ "reason": cause.reason(), "death": death.how() });
                self.apply(TxEvent::TakenBack { cause, death, tip }, &detail)?;
                self.drive()?;
            }
            Choice::Keep => {
                let tip = self.session.refs.get(&self.branch_ref())?;
                self.pin_all(tip.filter(|id| *id != self.spec.base))?;
                self.ask_failed()?;
                let target = self.session.target(&self.key, self.spec.branch.as_ref());
                locks::release_own(&target)?;
                self.apply_final(TxEvent::Released)?;
                locks::forget(&target)?;
                self.leave_trace();
            }
        }
        Ok(())
    }

    fn death_for_resolve(&mut self, writer_dead: bool) -> Result<ProvenDead, Stop> {
        let sight = self.observe(OwnerSeen::Gone, false)?;
        if sight.seen.writer == WriterSeen::ProvenDead
            && let Some(death) = sight.death
        {
            return Ok(death);
        }
        if self.state().writer().is_none() || writer_dead {
            // No writer was ever let go, or the operator gives their word, which is recorded.
            return Ok(process::operators_word());
        }
        Err(Stop::Quarantine(QuarantineReason::WriterUnproven))
    }

    /// Where the branch stands, by the operator's word; `None` is the base. What is to land must
    /// descend from the base; what is undone is pinned, wherever it came from.
    fn tip_for_resolve(&mut self, to_land: bool) -> Result<Option<Oid>, Stop> {
        let head = self.session.refs.head()?;
        let now = match (&head, &self.spec.branch) {
            (Head::Branch(name, id), Some(branch)) if name == branch => *id,
            (Head::Detached(id), None) => Some(*id),
            _ => None,
        };
        let Some(id) = now else {
            let back = match &self.spec.branch {
                Some(branch) => format!("git symbolic-ref HEAD {branch}"),
                None => format!("git update-ref --no-deref HEAD {}", self.spec.base),
            };
            return Err(branch_moved(format!(
                "HEAD is not on {} any more; `{back}` brings it back without touching a file",
                self.branch_ref()
            )));
        };
        if id == self.spec.base {
            return Ok(None);
        }
        self.session.store.refresh();
        if to_land && !self.session.store.is_descendant(id, self.spec.base).unwrap_or(false) {
            return Err(branch_moved(format!(
                "{} is at {}, which does not descend from the base {}: it can be discarded or kept",
                self.branch_ref(),
                id.short(),
                self.spec.base.short()
            )));
        }
        Ok(Some(id))
    }

    /// FAILED through the gate: won, or another's terminal standing.
    fn ask_failed(&mut self) -> Result<(), Stop> {
        let ask = Terminal {
            status: TerminalStatus::Failed,
            from: Some(self.key.attempt),
            claim_token: self.spec.claim_token.clone(),
            error: Some("[quarantined] an operator decided against it".to_owned()),
        };
        let db = self.session.ledger.writable()?;
        match EmbeddedGate::new(db).ask(&self.key.execution, &ask) {
            Verdict::Won(_) => Ok(()),
            Verdict::Lost(Some(row)) if row.status == Status::Success => {
                if row.success.is_some_and(|s| s.attempt == self.key.attempt) {
                    return Err(Stop::Failure(Failure::impossible(
                        "the row says SUCCESS for this attempt",
                        format!("worktx resolve {} --adopt", self.key.execution),
                    )));
                }
                Ok(())
            }
            Verdict::Lost(_) => Ok(()),
            Verdict::Unknown(why) => Err(Stop::Quarantine(QuarantineReason::GateUnknown { why })),
        }
    }

    /// Pins everything that differs from the base, and leaves it.
    fn pin_all(&mut self, tip: Option<Oid>) -> Result<(), Stop> {
        let snapshot = self.snapshot()?;
        let rules = view::base_rules(&self.session.store, &snapshot)?;
        let scan = view::look(self.session, &self.spec, &snapshot, &rules, NewDirectories::Walk)
            .map_err(view::scan_stop)?;
        if scan.changes.is_empty() && tip.is_none() {
            return Ok(());
        }
        let base_pin = self.record.pins.base.as_ref().map_or(self.spec.base, |pin| pin.id);
        let onto = self.session.store.commit(base_pin)?.tree;
        let parent = tip.unwrap_or(self.spec.base);
        self.pin_changes(PinKind::Rescue, &scan.changes, onto, &[parent], &HashSet::new())?;
        Ok(())
    }

    fn resolved(mut self, choice: Choice, why: Option<String>) -> Result<ResolvedAttempt, Failure> {
        let settled = self.state().tag().is_settled();
        if settled {
            self.drop_scratch();
            lockfile::clear_marker(&self.session.lock)
                .map_err(|error| Failure::Bug(chain(&error)))?;
        }
        let detail = match self.state() {
            TxState::Quarantined { reason, .. } => why.or_else(|| {
                Some(match reason.detail() {
                    Some(detail) => format!("{}: {detail}", reason.as_str()),
                    None => reason.as_str().to_owned(),
                })
            }),
            TxState::RolledBack { undo: Some(undo) } if choice == Choice::Adopt => {
                Some(undo.cause.reason().to_owned())
            }
            _ => why,
        };
        Ok(ResolvedAttempt {
            execution_id: self.key.execution.clone(),
            attempt: self.key.attempt,
            decision: choice.as_str().to_owned(),
            settled,
            state: self.state().tag(),
            execution_status: self.row()?.map(|row| row.status),
            detail,
            refs: RefsDocument::of(&self.record),
        })
    }
}
