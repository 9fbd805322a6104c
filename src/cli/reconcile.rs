//! `worktx reconcile`.
//!
//! # Limitations
//! It settles the work trees of this repository that are there; a busy one is left to its owner.

use super::args::{Global, ReaderArgs};
use super::style::Style;
use super::{context, exit, output, render};
use crate::coordinator::error::Failure;
use crate::coordinator::settle::reconcile;

/// Settles what crashes left behind.
#[expect(clippy::needless_pass_by_value, reason = "the form of every command")]
pub(super) fn run(global: &Global, args: ReaderArgs) -> Result<u8, Failure> {
    let document = reconcile::everywhere(&context(global)?)?;
    if args.json {
        output::json(&document)?;
    } else {
        output::print(&render::reconcile(Style::stdout(global.color), &document))?;
    }
    Ok(if document.left == 0 { exit::OK } else { exit::ERROR })
}
