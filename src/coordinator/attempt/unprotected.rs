//! A command that runs without a transaction: kinds of work that never open one, and
//! `--on-dirty run`. Supervised and ended as a turn is; nothing of the tree is sealed or undone.
//!
//! # Limitations
//! What a crash of such a run leaves is nobody's to undo.

use std::os::fd::AsFd as _;
use std::time::Duration;

use serde_json::json;

use crate::coordinator::attempt::begin::Begin;
use crate::coordinator::attempt::drive::time_of;
use crate::coordinator::attempt::outcome::{Outcome, OutcomeWord};
use crate::coordinator::error::Failure;
use crate::coordinator::session::Session;
use crate::process::{self, Bounds, Requests};
use crate::tx::cause::Cause;
use crate::tx::record::Warning;
use crate::tx::writer::EndedBy;

impl Begin<'_> {
    /// Runs without a transaction, under the lock.
    pub(super) fn run_unprotected(
        &mut self,
        session: &mut Session,
        warnings: Vec<Warning>,
    ) -> Result<Outcome, Failure> {
        let id = &self.request.execution;
        let root = session.workspace.root().display().to_string();
        let folder = session.place.state.join("unprotected").join(id.as_str());
        let lock = session.lock.share().map_err(Failure::io("sharing the lock"))?;
        let waiting =
            process::begin(self.prepared.take(), &self.command(None), &folder, &[lock.as_fd()])?
                .wait()?;
        let bounds = Bounds {
            timeout: self.request.timeout,
            settle_by: time_of(self.request.settle_by.as_deref()),
            grace: Duration::from_millis(self.loaded.values.settings.grace_ms),
            ..Bounds::default()
        };
        let over =
            waiting.run(&bounds, &mut Requests { signals: self.signals, poll: &mut || None });
        let _ = std::fs::remove_dir_all(&folder);
        let mut outcome = Outcome::without_attempt(id.clone(), OutcomeWord::Unprotected, &root);
        outcome.warnings = warnings;
        let cause = match over.ended_by {
            EndedBy::Itself if over.result.exit_code == Some(0) => None,
            EndedBy::Itself => Some(Cause::TurnFailed),
            EndedBy::Timeout => Some(Cause::TurnTimeout),
            EndedBy::SettleBy => Some(Cause::SettleBy),
            EndedBy::Cancel => Some(Cause::Cancelled),
            EndedBy::Interrupt => Some(Cause::Interrupted),
        };
        outcome.turn = Some(over.result);
        outcome.reason = cause.as_ref().map(|cause| cause.reason().to_owned());
        outcome.error_code = cause.as_ref().map(Cause::error_code);
        let detail = json!({ "reason": outcome.reason, "exit_code": outcome.turn.as_ref().and_then(|t| t.exit_code) });
        session.ledger.record_event(id, None, "unprotected", &detail)?;
        Ok(outcome)
    }
}
