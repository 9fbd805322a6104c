//! `worktx events`.
//!
//! # Limitations
//! The table cuts long details; `--json` has them whole.

use super::args::{Global, IdArgs};
use super::style::Style;
use super::{context, exit, output, render};
use crate::coordinator::error::Failure;
use crate::coordinator::report::query;

/// Shows.
pub(super) fn run(global: &Global, args: &IdArgs) -> Result<u8, Failure> {
    let document = query::events(&context(global)?, &args.id)?;
    if args.json {
        output::json(&document)?;
    } else {
        output::print(&render::events(Style::stdout(global.color), &document))?;
    }
    Ok(exit::OK)
}
