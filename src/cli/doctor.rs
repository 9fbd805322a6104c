//! `worktx doctor`.
//!
//! # Limitations
//! A picture of the moment.

use super::args::{Global, ReaderArgs};
use super::style::Style;
use super::{context, exit, output, render};
use crate::coordinator::error::Failure;
use crate::coordinator::report::doctor;

/// Looks; exits with 1 where something is in the way.
pub(super) fn run(global: &Global, args: &ReaderArgs) -> Result<u8, Failure> {
    let document = doctor::doctor(&context(global)?);
    if args.json {
        output::json(&document)?;
    } else {
        output::print(&render::doctor(Style::stdout(global.color), &document))?;
    }
    Ok(if document.healthy { exit::OK } else { exit::ERROR })
}
