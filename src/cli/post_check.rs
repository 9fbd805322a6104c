//! `worktx post-check`.
//!
//! # Limitations
//! It decides over the tree as it stands, without a turn: nothing is sealed, nothing is put back.

use super::args::{Global, PostCheckArgs};
use super::style::Style;
use super::{exit, output, render};
use crate::config::Flags;
use crate::coordinator::attempt::check;
use crate::coordinator::context::{Context, Invocation};
use crate::coordinator::error::Failure;

/// Runs the post-check now, and says what would be decided.
pub(super) fn run(global: &Global, args: PostCheckArgs) -> Result<u8, Failure> {
    let flags = Flags {
        profile: global.profile.clone(),
        post_check: args.post_check,
        check: args.check,
        ..Flags::default()
    };
    let context = Context::find(Invocation::of_process(global.workspace.clone(), flags)?)?;
    let document = check::post_check(&context)?;
    if args.json {
        output::json(&document)?;
    } else {
        output::print(&render::post_check(Style::stdout(global.color), &document))?;
    }
    Ok(if document.decision == "commit" { exit::OK } else { exit::ERROR })
}
