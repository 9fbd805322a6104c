//! Resolve: an operator's decision about a quarantined attempt.
//!
//! Order rules: the gate is asked first; nothing is undone without proof of death or the operator's
//! recorded word for it; whatever stands in the tree is pinned before it is touched or let go.
//! Decisions go through the same states and effects as everything else.
//!
//! # Limitations
//! An operator's decision vouches for a branch that still descends from the base; where HEAD is on
//! another branch, they have to go back to it first.

use serde_json::json;

use crate::base::fault::{self, Point};
use crate::coordinator::attempt::drive::{Driver, Stop, chain};
use crate::coordinator::attempt::outcome::RefsDocument;
use crate::coordinator::attempt::rescue::{PinKind, stand_by_pins};
use crate::coordinator::attempt::turn::branch_moved;
use crate::coordinator::attempt::undo::too_large;
use crate::coordinator::error::Failure;
use crate::coordinator::notify;
use crate::coordinator::report::documents::ResolvedAttempt;
use crate::coordinator::report::held;
use crate::coordinator::report::view;
use crate::coordinator::session::Session;
use crate::coordinator::settle::reconcile;
use crate::coordinator::spec::AttemptSpec;
use crate::coordinator::words::typed;
use crate::gate::{EmbeddedGate, Gate as _};
use crate::git::refs::{Head, RefError, locks};
use crate::git::scan::NewDirectories;
use crate::git::workspace::lockfile;
use crate::process::{self, Signals};
use crate::tx::cause::{Cause, QuarantineReason};
use crate::tx::id::{AttemptKey, Oid};
use crate::tx::record::Warning;
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
pub(super) fn resolve(
    session: &mut Session,
    signals: Signals,
    key: &AttemptKey,
    choice: Choice,
    writer_dead: bool,
) -> Result<(ResolvedAttempt, Vec<Warning>), Failure> {
    let attempt = session
        .ledger
        .attempt(key)?
        .ok_or_else(|| Failure::impossible(format!("there is no attempt {key}"), "worktx list"))?;
    let record = attempt.record()?;
    let TxState::Quarantined { held, .. } = &record.state else {
        return Err(Failure::impossible(
            format!("attempt {key} is {}, not quarantined", record.state.tag()),
            typed("show", &key.execution, ""),
        ));
    };
    let past = held.is_past_commit_point();
    if past && choice != Choice::Adopt {
        return Err(Failure::impossible(
            format!("attempt {key} has won its row: it is completed, never undone"),
            typed("resolve", &key.execution, "--adopt"),
        ));
    }
    if choice == Choice::Adopt && held.has_begun_undo() {
        return Err(Failure::impossible(
            format!("the undo of attempt {key} has begun: it cannot be adopted any more"),
            typed("resolve", &key.execution, "--discard"),
        ));
    }
    let owner = attempt.owner()?;
    let spec: AttemptSpec = attempt.spec()?;
    stand_by_pins(session, key, &spec.settings.ref_prefix, &record)?;
    session.ledger.claim_owner(key, owner.as_ref(), &Session::owner())?;
    let mut driver = reconcile::driver(session, signals, &attempt)?;
    let detail = json!({ "decision": choice.as_str(), "writer_dead": writer_dead });
    driver.session.ledger.record_event(&key.execution, Some(key.attempt), "resolve", &detail)?;
    let mut verdict = None;
    let why = match driver.resolve_one(choice, past, writer_dead, &mut verdict) {
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
    if let Some(why) = &why {
        let detail = json!({ "decision": choice.as_str(), "why": why });
        let ledger = &mut driver.session.ledger;
        ledger.record_event(&key.execution, Some(key.attempt), "not_resolved", &detail)?;
    }
    driver.resolved(choice, why, verdict)
}

impl Driver<'_> {
    fn resolve_one(
        &mut self,
        choice: Choice,
        past: bool,
        writer_dead: bool,
        verdict: &mut Option<&'static str>,
    ) -> Result<(), Stop> {
        self.session.verify().map_err(|why| self.lost(&why))?;
        if past {
            self.apply(TxEvent::Resumed, &json!({ "by": "operator" }))?;
            return self.drive().map_err(Stop::from);
        }
        let death = self.death_for_resolve(writer_dead)?;
        match choice {
            Choice::Adopt => {
                let tip = self.tip_for_resolve(true)?;
                if let Some(why) = self.would_lose()? {
                    *verdict = Some("lost");
                    return Err(Stop::Quarantine(QuarantineReason::AdoptFailed { why }));
                }
                let turn = self.state().turn().or(self.record.turn.as_ref());
                let turn = turn.cloned().unwrap_or_default();
                self.seal_at(tip, turn, death, true)?;
                self.drive()?;
                *verdict = match self.state() {
                    TxState::Quarantined { held, .. } if !held.is_past_commit_point() => {
                        self.would_lose()?.map(|_| "lost")
                    }
                    _ => Some("won"),
                };
            }
            Choice::Discard => {
                let tip = self.tip_for_resolve(false)?;
                self.make_durable(tip)?;
                *verdict = Some(self.ask_failed()?);
                let cause = Cause::Discarded;
                let detail = json!({ "reason": cause.reason(), "death": death.how() });
                // An undo that could not be finished has pinned what stood there then. What stands
                // there now is discarded too, as nobody's but this attempt's.
                self.record.earlier_discarded = self.record.pins.discarded.len();
                self.apply(TxEvent::TakenBack { cause, death, tip }, &detail)?;
                self.drive()?;
            }
            Choice::Keep => {
                let tip = match self.session.refs.get(&self.branch_ref()) {
                    // It names nothing that could be kept.
                    Err(RefError::Broken { .. }) => None,
                    read => read?,
                };
                *verdict = Some(self.ask_failed()?);
                self.pin_all(tip.filter(|id| *id != self.spec.base))?;
                fault::point(Point::KeptPinned);
                let target = self.session.target(&self.key, self.spec.branch.as_ref());
                locks::forget(&target)?;
                self.apply_final(TxEvent::Released)?;
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

    /// Why SUCCESS would lose to what stands in the row; `None` where it would not.
    ///
    /// An early no, so that nothing is sealed, validated and put back in vain. It is no verdict:
    /// the gate is asked before anything lands.
    fn would_lose(&mut self) -> Result<Option<String>, Stop> {
        let row = self.row()?;
        if !held::would_lose(&self.key, &self.spec, row.as_ref()) {
            return Ok(None);
        }
        Ok(Some(match row {
            None => "the execution's row is gone".to_owned(),
            Some(row) => match row.current_attempt {
                Some(current) if current != self.key.attempt => {
                    format!("the execution is {}, by attempt {current}", row.status)
                }
                _ if row.status.is_terminal() => format!("the execution already is {}", row.status),
                _ => "the execution was claimed anew by somebody else".to_owned(),
            },
        }))
    }

    /// FAILED through the gate: won, or another's terminal standing. A row that has gone on to a
    /// later attempt, or to another claim, is no business of this one any more: its own tree is.
    fn ask_failed(&mut self) -> Result<&'static str, Stop> {
        let ask = Terminal {
            status: TerminalStatus::Failed,
            from: Some(self.key.attempt),
            claim_token: self.spec.claim_token.clone(),
            error: Some("[quarantined] an operator decided against it".to_owned()),
        };
        let db = self.session.ledger.writable()?;
        match EmbeddedGate::new(db).ask(&self.key.execution, &ask) {
            Verdict::Won(_) => Ok("won"),
            Verdict::Lost(Some(row)) if row.status == Status::Success => {
                if row.success.is_some_and(|s| s.attempt == self.key.attempt) {
                    return Err(Stop::Failure(Failure::impossible(
                        "the row says SUCCESS for this attempt",
                        typed("resolve", &self.key.execution, "--adopt"),
                    )));
                }
                Ok("lost")
            }
            Verdict::Lost(_) => Ok("lost"),
            Verdict::Unknown(why) => Err(Stop::Quarantine(QuarantineReason::GateUnknown { why })),
        }
    }

    /// Pins everything that differs from the base, and leaves it.
    fn pin_all(&mut self, tip: Option<Oid>) -> Result<(), Stop> {
        let snapshot = self.snapshot()?;
        let rules = self.base_rules(&snapshot);
        let scan = view::look(self.session, &self.spec, &snapshot, &rules, NewDirectories::Walk)
            .map_err(view::scan_stop)?;
        if scan.changes.is_empty() && tip.is_none() {
            return Ok(());
        }
        let onto = self.base_pin_tree()?;
        let parent = self.parent_of_pin(tip)?;
        // As in a rollback: what is beyond the limits is not hashed into git's objects. It stays in
        // the tree.
        let large = too_large(&scan.changes, &self.spec.settings.limits, false);
        if !large.is_empty() {
            let count = large.len();
            let message =
                format!("{count} paths are beyond the limits: they stay, and are not pinned");
            self.record.warn("not_pinned", message);
        }
        self.pin_changes(PinKind::Rescue, &scan.changes, onto, &[parent], &large)?;
        Ok(())
    }

    fn resolved(
        mut self,
        choice: Choice,
        why: Option<String>,
        verdict: Option<&'static str>,
    ) -> Result<(ResolvedAttempt, Vec<Warning>), Failure> {
        let settled = self.state().tag().is_settled();
        let status = self.row()?.map(|row| row.status);
        if !settled && let Some(outcome) = self.outcome_value(&self.record, status) {
            self.session.ledger.set_outcome(&self.key, &outcome)?;
        }
        let warnings = notify::tell(&mut self);
        if settled {
            self.drop_scratch();
        }
        let workspace = self.session.workspace.id();
        if settled
            && self.session.ledger.unsettled(Some(&workspace))?.is_empty()
            && let Err(error) = lockfile::clear_marker(&self.session.lock)
        {
            // It is settled all the same: the next command finds what is left.
            tracing::warn!(error = %chain(&error), "the marker could not be removed");
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
        let resolved = ResolvedAttempt {
            execution_id: self.key.execution.clone(),
            attempt: self.key.attempt,
            decision: choice.as_str().to_owned(),
            settled,
            state: self.state().tag(),
            execution_status: status,
            verdict: verdict.map(str::to_owned),
            detail,
            refs: RefsDocument::of(&self.record),
        };
        Ok((resolved, warnings))
    }
}
