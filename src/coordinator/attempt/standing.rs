//! What stands already when an execution comes: its row decides before anything else does, and what
//! was left unsettled is settled and told.
//!
//! # Limitations
//! A success that waits in another work tree of the repository is settled there first; where that
//! tree is busy or gone, so is the answer.

use crate::coordinator::attempt::begin::Begin;
use crate::coordinator::attempt::outcome::{Outcome, OutcomeWord};
use crate::coordinator::error::Failure;
use crate::coordinator::report::documents::ReconciledAttempt;
use crate::coordinator::session::Session;
use crate::coordinator::settle::reconcile;
use crate::coordinator::words::typed;
use crate::journal::{Attempt, Filter};
use crate::tx::id::ExecutionId;
use crate::tx::record::Warning;
use crate::tx::tag::StateTag;
use crate::tx::verdict::Status;

/// Whether an execution will not run again.
pub(super) fn is_over(session: &mut Session, id: &ExecutionId) -> Result<bool, Failure> {
    let standing = session.ledger.execution(id)?.map(|execution| execution.row.status);
    Ok(matches!(standing, Some(Status::Success | Status::Cancelled | Status::Skipped)))
}

/// What a run says of an attempt that it settled before it began: whoever waits for the outcome
/// knows of no other command that did.
pub(super) fn settled_first(attempt: &ReconciledAttempt) -> Option<Warning> {
    let key = format!("{}/{}", attempt.execution_id, attempt.attempt);
    let message = match attempt.state {
        StateTag::Done => format!("{key} had won, and was brought to its end first"),
        StateTag::RolledBack => {
            let reason = attempt.reason.as_deref().unwrap_or_default();
            let number = format!("--attempt {}", attempt.attempt);
            let diff = typed("diff", &attempt.execution_id, &number);
            format!(
                "{key}, which was left unsettled, was rolled back first ({reason}); what it left is kept: {diff}"
            )
        }
        _ => return None,
    };
    Some(Warning { code: "settled_first".to_owned(), message })
}

impl Begin<'_> {
    /// The row decides first: successful is replayed, cancelled and skipped are final.
    pub(super) fn standing(&self, session: &mut Session) -> Result<Option<Outcome>, Failure> {
        let id = &self.request.execution;
        let Some(execution) = session.ledger.execution(id)? else { return Ok(None) };
        match execution.row.status {
            Status::Success => {
                let filter = Filter { execution: Some(id.clone()), ..Filter::default() };
                let attempt = execution.row.success.map(|s| s.attempt);
                let find = |session: &Session| -> Result<Option<Attempt>, Failure> {
                    let all = session.ledger.attempts(&filter)?;
                    Ok(all.into_iter().find(|a| Some(a.key.attempt) == attempt))
                };
                let mut won = find(session)?;
                if let Some(there) = won.take_if(|a| a.outcome.is_none()) {
                    self.settle_elsewhere(session, &there)?;
                    won = find(session)?;
                }
                let recorded = won.and_then(|a| a.outcome);
                let mut outcome = if let Some(value) = recorded {
                    serde_json::from_value(value)
                        .map_err(Failure::other("reading the recorded outcome"))?
                } else {
                    let root = session.workspace.root().display().to_string();
                    let mut outcome =
                        Outcome::without_attempt(id.clone(), OutcomeWord::Committed, &root);
                    outcome.attempt = attempt;
                    outcome.commit = execution.row.success.map(|s| s.candidate);
                    outcome.candidate = outcome.commit;
                    outcome
                };
                outcome.replayed = true;
                outcome.execution_status = Some(Status::Success);
                Ok(Some(outcome))
            }
            status @ (Status::Cancelled | Status::Skipped) => Err(Failure::Standing(status)),
            _ => Ok(None),
        }
    }

    /// A success that is not at its end yet, in another work tree of the repository: whether it
    /// landed is known once it is settled.
    fn settle_elsewhere(&self, session: &Session, won: &Attempt) -> Result<(), Failure> {
        if won.workspace.id == session.workspace.id() {
            // It was taken up just now, and did not come to an end.
            return Err(Failure::Busy { holder: None });
        }
        let (id, root) = (&won.workspace.id, &won.workspace.root);
        let (workspace, place) = self.request.context.work_tree(id, root)?;
        let mut there = Session::open(workspace, place, "run")?;
        reconcile::reconcile(&mut there, self.signals, None)?;
        Ok(())
    }
}
