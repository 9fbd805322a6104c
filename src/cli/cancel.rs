//! `worktx cancel`.
//!
//! # Limitations
//! It does not wait for the turn to be over.

use super::args::{Global, IdArgs};
use super::{context, exit, output};
use crate::coordinator::error::Failure;
use crate::coordinator::report::documents::CancelDocument;
use crate::coordinator::settle::cancel;
use crate::coordinator::words::typed;
use crate::tx::tag::StateTag;

/// Cancels; exits with 13 where another terminal stands.
pub(super) fn run(global: &Global, args: &IdArgs) -> Result<u8, Failure> {
    let document = cancel::cancel(&context(global)?, &args.id)?;
    let is_won = document.verdict == "won";
    if args.json {
        output::json(&document)?;
    } else {
        output::print(&text(&document))?;
    }
    Ok(if is_won { exit::OK } else { exit::VERDICT_LOST })
}

fn text(document: &CancelDocument) -> String {
    let id = &document.execution_id;
    if document.verdict != "won" {
        return match document.execution_status {
            Some(status) => format!("not cancelled: {id} already is {status}\n"),
            None => format!("not cancelled: {id} has no row, nothing of it ever ran\n"),
        };
    }
    let show = typed("show", id, "");
    let then = match (document.suspended.as_deref(), document.state) {
        (Some("continued"), _) => {
            "its run was suspended and goes on, to end its command and roll it back".to_owned()
        }
        (Some(pid), _) => {
            let kill = pid.replace("pid", "kill -CONT");
            format!("its run is suspended ({pid}) and ends its command once it goes on: {kill}")
        }
        (None, Some(StateTag::Quarantined)) => {
            format!("its attempt stays held until you decide about it: {show}")
        }
        (None, _) => "if its command is running, it is ended and rolled back".to_owned(),
    };
    format!("cancelled {id}; {then}\n")
}
