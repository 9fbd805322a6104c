//! `worktx serve`.
//!
//! # Limitations
//! It stays in the foreground: systemd, a container or a shell keeps it.

use std::path::PathBuf;
use std::time::Duration;

use super::args::{Global, ServeArgs};
use super::{error, exit, output};
use crate::config::{Flags, value};
use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::context::{Context, Invocation, configured_workspaces};
use crate::coordinator::error::Failure;
use crate::daemon::{self, Options, Problem};

/// Serves until it is told to end; with `--check` asks one that does.
pub(super) fn run(global: &Global, args: ServeArgs) -> Result<u8, Failure> {
    let workspaces = workspaces(global, args.workspaces)?;
    if args.check {
        // One server has them all, so that any of them finds it.
        let flags = Flags { profile: global.profile.clone(), ..Flags::default() };
        let first = Invocation::of_process(workspaces.into_iter().next(), flags)?;
        let said = daemon::check(&Context::find(first)?.place.state)?;
        output::print(&format!("{said}\n"))?;
        return Ok(exit::OK);
    }
    let drain =
        value::duration_ms(&args.drain).map_err(|why| Failure::Usage(format!("--drain: {why}")))?;
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

/// What is served: what the command line names, else what the configuration does, else the work
/// tree around the current directory.
fn workspaces(global: &Global, named: Vec<PathBuf>) -> Result<Vec<PathBuf>, Failure> {
    if !named.is_empty() {
        return Ok(named);
    }
    if let Some(one) = &global.workspace {
        return Ok(vec![one.clone()]);
    }
    let flags = Flags { profile: global.profile.clone(), ..Flags::default() };
    let configured = configured_workspaces(&Invocation::of_process(None, flags)?)?;
    Ok(if configured.is_empty() { vec![".".into()] } else { configured })
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
