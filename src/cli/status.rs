//! `worktx status`.
//!
//! # Limitations
//! Exit 0 also where the next run would be refused: the question was answered.

use super::args::{Global, ReaderArgs};
use super::style::Style;
use super::{context, exit, output, refusal, render};
use crate::coordinator::error::Failure;
use crate::coordinator::report::status;
use crate::coordinator::words;

/// Says how the workspace stands.
pub(super) fn run(global: &Global, args: &ReaderArgs) -> Result<u8, Failure> {
    let standing = status::status(&context(global)?)?;
    let mut document = standing.document;
    document.refusals = standing.refusals.iter().map(refusal::document).collect();
    document.refusals.extend(standing.post_check.map(|error| refusal::unusable(&error.into())));
    document.warnings.extend(standing.warnings.iter().map(words::warning));
    if args.json {
        output::json(&document)?;
    } else {
        output::print(&render::status(Style::stdout(global.color), &document))?;
    }
    Ok(exit::OK)
}
