//! `cancel`: the terminal CANCELLED, through the gate like every other.
//!
//! Order rule: the row alone is written. A turn that runs sees it there and is ended and rolled
//! back by its own coordinator; nobody is told to end by a signal, so that nobody can be told so
//! wrongly. A coordinator that is suspended sees nothing: it is continued, once the row says so.
//!
//! # Limitations
//! A coordinator looks at the row twice a second. One of another user, or in another pid namespace,
//! cannot be continued from here.

use serde_json::json;

use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::report::documents::CancelDocument;
use crate::coordinator::report::query::is_running;
use crate::coordinator::session::write_ledger;
use crate::gate::{EmbeddedGate, Gate as _};
use crate::journal::Attempt;
use crate::process::{self, Awake};
use crate::tx::id::AttemptKey;
use crate::tx::verdict::{Terminal, TerminalStatus, Verdict};

/// What is written into the row's error.
const ERROR: &str = "[cancelled] worktx cancel";

/// Asks for CANCELLED. A lost verdict is an answer, not a failure: see the document.
pub fn cancel(context: &Context, id: &str) -> Result<CancelDocument, Failure> {
    let execution = context.need_ledger()?.resolve(id)?;
    let mut ledger = write_ledger(&context.place)?;
    let ask = Terminal {
        status: TerminalStatus::Cancelled,
        from: None,
        claim_token: None,
        error: Some(ERROR.to_owned()),
    };
    let (verdict, row) = match EmbeddedGate::new(ledger.writable()?).ask(&execution, &ask) {
        Verdict::Won(won) => ("won", Some(won.row().clone())),
        Verdict::Lost(row) => ("lost", row),
        Verdict::Unknown(why) => {
            return Err(Failure::Impossible {
                message: format!("the verdict is not known: {why}"),
                hint: Some(format!("ask again: worktx cancel {execution}")),
            });
        }
    };
    let status = row.as_ref().map(|row| row.status);
    // History names the attempt where it has one; a gone attempt has no history.
    let attempt = row.and_then(|row| row.current_attempt);
    let key = attempt.map(|attempt| AttemptKey { execution: execution.clone(), attempt });
    let found = match key {
        Some(key) => ledger.attempt(&key)?,
        None => None,
    };
    let attempt = found.as_ref().map(|found| found.key.attempt);
    let detail = json!({ "verdict": verdict, "status": status });
    ledger.record_event(&execution, attempt, "cancel", &detail)?;
    let mut document = CancelDocument {
        schema: SCHEMA,
        execution_id: execution,
        verdict: verdict.to_owned(),
        execution_status: status,
        state: found.as_ref().map(Attempt::tag).transpose()?,
        suspended: None,
    };
    if let Some(found) = &found
        && is_running(found)?
        && let Some(owner) = found.owner()?
    {
        document.suspended = match process::wake(&owner.process) {
            Awake::Already => None,
            Awake::Continued => Some("continued".to_owned()),
            Awake::No => Some(format!("pid {}", owner.process.pid)),
        };
    }
    Ok(document)
}
