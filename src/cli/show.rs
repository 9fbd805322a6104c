//! `worktx show`.
//!
//! # Limitations
//! What a post-check said is shown with its escapes neutralised.

use super::args::{Global, IdArgs};
use super::style::Style;
use super::{context, exit, output, render};
use crate::coordinator::error::Failure;
use crate::coordinator::report::query;

/// Shows.
pub(super) fn run(global: &Global, args: &IdArgs) -> Result<u8, Failure> {
    let document = query::show(&context(global)?, &args.id)?;
    if args.json {
        output::json(&document)?;
    } else {
        output::print(&render::show(Style::stdout(global.color), &document))?;
    }
    Ok(exit::OK)
}
