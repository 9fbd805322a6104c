//! `worktx gc`.
//!
//! # Limitations
//! Objects of what went go once they have lain for `gc.grace`; those that a turn's own git made are
//! for `git gc`.

use super::args::{GcArgs, Global};
use super::{context, exit, output, render};
use crate::coordinator::error::Failure;
use crate::coordinator::retention::{self, Extent};
use crate::coordinator::session::Session;

/// Drops what the bounds of `[gc]` do not cover.
pub(super) fn run(global: &Global, args: &GcArgs) -> Result<u8, Failure> {
    let context = context(global)?;
    let bounds = context.user.values.settings.retention;
    let mut session = Session::open(context.workspace, context.place, "gc")?;
    if !args.dry_run {
        retention::sweep_scratch(&session)?;
    }
    let extent = if args.dry_run { Extent::Look } else { Extent::All };
    let mut document = retention::gc(&mut session, &bounds, extent)?;
    if extent == Extent::All {
        document.bytes_freed = retention::drop_all_nameless(session, &bounds)?;
    }
    if args.json {
        output::json(&document)?;
    } else {
        let list = document.removed.iter().fold(String::new(), |all, key| all + key + "\n");
        output::print(&(list + &render::gc(&document)))?;
    }
    Ok(exit::OK)
}
