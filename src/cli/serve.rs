//! `worktx serve`.
//!
//! # Limitations
//! It stays in the foreground: systemd, a container or a shell keeps it.

use std::time::Duration;

use super::args::{Global, ServeArgs};
use super::{context, error, exit, output};
use crate::config::value;
use crate::coordinator::error::Failure;
use crate::coordinator::outcome::SCHEMA;
use crate::daemon::{self, Options, Problem};

/// Serves until it is told to end; with `--check` asks one that does.
pub(super) fn run(global: &Global, args: ServeArgs) -> Result<u8, Failure> {
    if args.check {
        let said = daemon::check(&context(global)?.place.state)?;
        output::print(&format!("{said}\n"))?;
        return Ok(exit::OK);
    }
    let drain =
        value::duration_ms(&args.drain).map_err(|why| Failure::Usage(format!("--drain: {why}")))?;
    let mut workspaces = args.workspaces;
    if workspaces.is_empty() {
        workspaces.push(global.workspace.clone().unwrap_or_else(|| ".".into()));
    }
    let count = workspaces.len();
    let options = Options {
        workspaces,
        profile: global.profile.clone(),
        listen: args.listen,
        token_file: args.token_file,
        anywhere: args.listen_anywhere,
        max_running: args.max_running,
        drain: Duration::from_millis(drain),
        describe,
    };
    daemon::serve(&options, |sockets| {
        let trees = if count == 1 { "work tree" } else { "work trees" };
        output::say(&format!("worktx: serving {count} {trees} on {}\n", sockets.join(", ")));
    })?;
    Ok(exit::OK)
}

/// A failure as a client is told: the words of the command line.
fn describe(failure: &Failure) -> Problem {
    let (reason, error_code, exit_code) = error::reason(failure);
    Problem {
        schema: SCHEMA,
        reason: reason.to_owned(),
        error_code,
        message: error::sentence(failure),
        hint: error::hint(failure),
        exit_code,
    }
}
