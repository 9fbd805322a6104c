//! `worktx gc`.
//!
//! # Limitations
//! The objects of what went are git's to drop: `git gc` does it in its own time.

use super::args::{GcArgs, Global};
use super::{context, exit, output, render};
use crate::coordinator::error::Failure;
use crate::coordinator::retention;
use crate::coordinator::session::Session;

/// Drops what the bounds of `[gc]` do not cover.
pub(super) fn run(global: &Global, args: &GcArgs) -> Result<u8, Failure> {
    let context = context(global)?;
    let bounds = context.user.values.settings.retention;
    let mut session = Session::open(context.workspace, context.place, "gc")?;
    if !args.dry_run {
        retention::sweep_scratch(&session)?;
    }
    let document = retention::gc(&mut session, &bounds, args.dry_run)?;
    if args.json {
        output::json(&document)?;
    } else {
        let list = document.removed.iter().fold(String::new(), |all, key| all + key + "\n");
        output::print(&(list + &render::gc(&document)))?;
    }
    Ok(exit::OK)
}
