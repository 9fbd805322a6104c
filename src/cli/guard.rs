//! `worktx guard`: for a program that works in the repository with git on its own.
//!
//! # Limitations
//! The command becomes this process, with the lock as one of its handles: what it leaves running
//! in the background keeps the lock, too.

use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::set_child_subreaper;

use super::args::{Global, GuardArgs};
use super::context;
use crate::config::value;
use crate::coordinator::error::Failure;
use crate::coordinator::guard::guarded;
use crate::process::find_program;

/// Takes the workspace and becomes the command; comes back only where that fails.
pub(super) fn run(global: &Global, args: &GuardArgs) -> Result<u8, Failure> {
    let context = context(global)?;
    let wait = match (&args.wait, args.nowait) {
        (_, true) => None,
        (Some(text), _) => Some(Duration::from_millis(
            value::duration_ms(text).map_err(|why| Failure::Usage(format!("--wait: {why}")))?,
        )),
        // Beyond what a clock can hold: without a bound.
        (None, false) => Some(Duration::MAX),
    };
    let first = args.command.first().cloned().unwrap_or_default();
    let program = find_program(&first, &context.invocation.cwd, context.variable("PATH"))?;
    // Within a turn of this work tree it would wait for itself.
    let inside = context.variable("WORKTX_ATTEMPT").is_some()
        && context.variable("WORKTX_WORKSPACE").is_some_and(|at| at == context.workspace.root());
    let wait = wait.filter(|_| !inside);
    let command = format!("guard -- {}", first.to_string_lossy());
    let lock = guarded::take_settled(&context, &command, wait)?;
    let handle = lock.share().map_err(Failure::io("keeping the workspace lock"))?;
    fcntl_setfd(&handle, FdFlags::empty())
        .map_err(|error| Failure::io("keeping the workspace lock")(error.into()))?;
    // A post-check that was settled here needed it; the command is not to be one.
    let _ = set_child_subreaper(None);
    let error =
        std::process::Command::new(&program).arg0(&first).args(args.command.iter().skip(1)).exec();
    Err(Failure::io(format!("starting {}", program.display()))(error))
}
