//! `worktx diff`.
//!
//! # Limitations
//! No pager is started; pipe it into one.

use super::args::{DiffArgs, Global};
use super::{context, exit, output, render};
use crate::coordinator::error::Failure;
use crate::coordinator::report::changes;

/// Shows what an attempt changed, as a patch unless asked otherwise.
pub(super) fn run(global: &Global, args: &DiffArgs) -> Result<u8, Failure> {
    let difference = changes::diff(&context(global)?, &args.id, args.attempt)?;
    if args.json {
        output::json(&difference.document)?;
    } else if args.name_only {
        output::print(&render::diff_names(&difference.document))?;
    } else {
        let mut failed = None;
        output::write(|out| match difference.write(out) {
            Ok(written) => written,
            Err(failure) => {
                failed = Some(failure);
                Ok(())
            }
        })?;
        if let Some(failure) = failed {
            return Err(failure);
        }
    }
    Ok(exit::OK)
}
