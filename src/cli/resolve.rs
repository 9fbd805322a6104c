//! `worktx resolve`.
//!
//! # Limitations
//! `--all` decides about one reason at a time, so that nobody decides about what they did not see.

use super::args::{Global, ResolveArgs};
use super::style::Style;
use super::{context, exit, output, render};
use crate::coordinator::error::Failure;
use crate::coordinator::settle::decide::{self, Which};
use crate::coordinator::settle::resolve::Choice;

/// Decides about quarantined attempts.
pub(super) fn run(global: &Global, args: ResolveArgs) -> Result<u8, Failure> {
    let choice = match (args.adopt, args.discard) {
        (true, _) => Choice::Adopt,
        (_, true) => Choice::Discard,
        _ => Choice::Keep,
    };
    let which = match args.id {
        Some(id) => Which::One(id),
        None => Which::All(args.reason.unwrap_or_default()),
    };
    let document = decide::decide(&context(global)?, &which, choice, args.writer_dead)?;
    if args.json {
        output::json(&document)?;
    } else {
        output::print(&render::resolve(Style::stdout(global.color), &document))?;
    }
    let mut left = document.attempts.iter().filter(|attempt| !attempt.settled).peekable();
    Ok(if left.peek().is_none() {
        exit::OK
    } else if left.any(|attempt| attempt.verdict.as_deref() == Some("lost")) {
        exit::VERDICT_LOST
    } else {
        exit::QUARANTINED
    })
}
