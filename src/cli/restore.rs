//! `worktx restore`.
//!
//! # Limitations
//! It makes a branch and switches to nothing: the work tree stays as it is.

use super::args::{Global, RestoreArgs};
use super::{context, exit, output};
use crate::coordinator::error::Failure;
use crate::coordinator::report::changes;

/// Brings discarded work back as a branch.
pub(super) fn run(global: &Global, args: &RestoreArgs) -> Result<u8, Failure> {
    let context = context(global)?;
    let document = changes::restore(&context, &args.id, args.attempt, args.branch.as_deref())?;
    if args.json {
        output::json(&document)?;
    } else {
        let (branch, commit) = (&document.branch, document.commit.short());
        output::print(&format!(
            "made the branch {branch} at {commit}; your work tree is as it was\n\
             to look at it:    git diff HEAD...{branch}\n\
             to take it over:  git merge --squash {branch}\n"
        ))?;
    }
    Ok(exit::OK)
}
