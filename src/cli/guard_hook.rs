//! `worktx guard-hook`: what the `reference-transaction` hook asks.
//!
//! # Limitations
//! Its own failures pass: a guard that cannot tell must not stop git. They are in the log.

use std::io::Read as _;
use std::path::PathBuf;

use super::args::Global;
use super::style::neutral;
use super::{exit, output};
use crate::coordinator::error::Failure;
use crate::coordinator::guard;
use crate::coordinator::words::typed;
use crate::hook::guard::{REFUSED, parse_updates};

/// git's lines are short; more than this is none of git's doing.
const LIMIT: u64 = 64 << 20;

/// Answers git: [`REFUSED`] where the branch is a living attempt's and somebody else asks.
pub(super) fn run(_: &Global) -> u8 {
    match asked() {
        Ok(None) => exit::OK,
        Ok(Some(text)) => {
            output::say(&text);
            REFUSED
        }
        Err(failure) => {
            tracing::warn!(error = %failure, "the guard hook could not tell");
            exit::OK
        }
    }
}

fn asked() -> Result<Option<String>, Failure> {
    let mut lines = Vec::new();
    std::io::stdin()
        .lock()
        .take(LIMIT)
        .read_to_end(&mut lines)
        .map_err(Failure::io("reading git's lines"))?;
    let updates = parse_updates(&lines).map_err(Failure::other("reading git's lines"))?;
    let git_dir = std::env::var_os("GIT_DIR").map_or_else(|| PathBuf::from(".git"), PathBuf::from);
    Ok(guard::judge(&git_dir, &updates)?.map(|(key, branch)| {
        format!(
            "worktx: {} belongs to attempt {key}, which is running; nothing was changed\n\
             Hint: wait for it, or end it: {}\n",
            neutral(branch.short()),
            typed("cancel", &key.execution, "")
        )
    }))
}
