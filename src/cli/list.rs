//! `worktx list`.
//!
//! # Limitations
//! All attempts of the repository, whichever work tree they ran in.

use super::args::{Global, ListArgs};
use super::style::Style;
use super::{context, exit, output, render};
use crate::coordinator::error::Failure;
use crate::coordinator::report::query;

/// Lists.
pub(super) fn run(global: &Global, args: &ListArgs) -> Result<u8, Failure> {
    let document = query::list(&context(global)?, args.unsettled, args.limit)?;
    if args.json {
        output::json(&document)?;
    } else {
        output::print(&render::list(Style::stdout(global.color), &document))?;
    }
    Ok(exit::OK)
}
