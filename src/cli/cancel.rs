//! `worktx cancel`.
//!
//! # Limitations
//! It does not wait for the turn to be over.

use super::args::{Global, IdArgs};
use super::{context, exit, output};
use crate::coordinator::error::Failure;
use crate::coordinator::settle::cancel;

/// Cancels; exits with 13 where another terminal stands.
pub(super) fn run(global: &Global, args: &IdArgs) -> Result<u8, Failure> {
    let document = cancel::cancel(&context(global)?, &args.id)?;
    let is_won = document.verdict == "won";
    if args.json {
        output::json(&document)?;
    } else {
        let id = &document.execution_id;
        let text = match document.execution_status {
            _ if is_won => {
                format!("cancelled {id}; if its command is running, it is ended and rolled back\n")
            }
            Some(status) => format!("not cancelled: {id} already is {status}\n"),
            None => format!("not cancelled: {id} has no row, nothing of it ever ran\n"),
        };
        output::print(&text)?;
    }
    Ok(if is_won { exit::OK } else { exit::VERDICT_LOST })
}
