//! `worktx init`.
//!
//! # Limitations
//! It writes no file into the work tree: what it suggests is for the user to write and commit.

use std::fmt::Write as _;

use super::args::{Global, InitArgs};
use super::style::neutral;
use super::{context, exit, output};
use crate::coordinator::error::Failure;
use crate::coordinator::init::{self, GuardWish};
use crate::coordinator::report::documents::InitDocument;

/// Prepares the repository.
pub(super) fn run(global: &Global, args: &InitArgs) -> Result<u8, Failure> {
    let wish = match (args.guard, args.no_guard) {
        (true, _) => GuardWish::Install,
        (false, true) => GuardWish::Remove,
        (false, false) => GuardWish::Leave,
    };
    let document = init::init(&context(global)?, wish)?;
    if args.json {
        output::json(&document)?;
    } else {
        output::print(&text(&document))?;
    }
    Ok(exit::OK)
}

fn text(document: &InitDocument) -> String {
    let mut out = String::new();
    let hook = document.hook.as_deref().unwrap_or_default();
    let _ = writeln!(out, "state directory: {}", neutral(&document.state_dir));
    let _ = match document.guard.as_str() {
        "absent" => writeln!(out, "guard hook: none (`worktx init --guard` installs it)"),
        "removed" => writeln!(out, "guard hook: removed"),
        word => writeln!(out, "guard hook: {word}, {}", neutral(hook)),
    };
    out.push_str(
        "your files and `git status` are as they were\n\
         \n\
         next: a post-check decides what may land; it is an executable of your own, such as\n\
         \n    mkdir -p .worktx\n    printf '#!/bin/sh\\nexec make test\\n' >.worktx/post-check\n    \
         chmod +x .worktx/post-check\n\
         \nthen: worktx run -- COMMAND\n",
    );
    out
}
