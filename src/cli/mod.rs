//! Talks to people: the command line, its texts, its exit codes.
//!
//! One file a command. Each gives back an exit code or a [`Failure`]; what a failure looks like is
//! decided in [`error`] alone.
//!
//! # Limitations
//! Standard output is data, standard error is talk.

pub mod args;
mod cancel;
mod completions;
mod demo;
mod detail;
mod diff;
#[cfg(test)]
mod docs_tests;
mod doctor;
pub mod error;
mod events;
pub mod exit;
pub mod explain;
mod gc;
mod guard;
mod guard_hook;
mod init;
mod list;
mod log;
pub mod output;
mod post_check;
mod progress;
mod reconcile;
pub mod refusal;
pub mod render;
mod resolve;
mod restore;
mod run;
mod serve;
mod show;
mod status;
pub mod style;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

use args::{Cli, Command, Global};

use crate::config::Flags;

use crate::coordinator::context::{Context, Invocation};
use crate::coordinator::error::Failure;
use crate::coordinator::warm::warmup;
use style::Style;

/// Everything after the supervisor's question: parses, does, and says what came of it.
pub fn main() -> ExitCode {
    ExitCode::from(called_with(std::env::args_os()))
}

fn called_with(words: impl IntoIterator<Item = OsString>) -> u8 {
    let parsed = Cli::command().try_get_matches_from(words).and_then(|matches| {
        let name = matches.subcommand_name().unwrap_or_default().to_owned();
        Cli::from_arg_matches(&matches).map(|cli| (cli, name))
    });
    let (cli, name) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // Nobody can be told where that fails.
            let _ = error.print();
            return if error.use_stderr() { exit::USAGE } else { exit::OK };
        }
    };
    let Cli { global, command } = cli;
    // A server has nobody who looks on: it says what it does.
    let serves = matches!(&command, Command::Serve(args) if !args.check);
    let _log = log::begin(global.log_format, serves.then_some("worktx=info"));
    match dispatch(&global, command) {
        Ok(code) => code,
        Err(failure) => {
            output::say(&error::report(Style::stderr(global.color), &name, &failure));
            error::reason(&failure).2
        }
    }
}

fn dispatch(global: &Global, command: Command) -> Result<u8, Failure> {
    match command {
        Command::Run(args) => run::run(global, *args),
        Command::Status(args) => status::run(global, &args),
        Command::List(args) => list::run(global, &args),
        Command::Show(args) => show::run(global, &args),
        Command::Diff(args) => diff::run(global, &args),
        Command::Events(args) => events::run(global, &args),
        Command::Cancel(args) => cancel::run(global, &args),
        Command::Restore(args) => restore::run(global, &args),
        Command::PostCheck(args) => post_check::run(global, args),
        Command::Reconcile(args) => reconcile::run(global, args),
        Command::Resolve(args) => resolve::run(global, args),
        Command::Gc(args) => gc::run(global, &args),
        Command::Serve(args) => serve::run(global, args),
        Command::Guard(args) => guard::run(global, &args),
        Command::Init(args) => init::run(global, &args),
        Command::Demo(args) => demo::run(global, args),
        Command::Doctor(args) => doctor::run(global, &args),
        Command::Completions(args) => completions::shell(&args),
        Command::Man => completions::man(),
        Command::GuardHook => Ok(guard_hook::run(global)),
        Command::WarmUp => warmup::warm_up(&context(global)?).map(|()| exit::OK),
    }
}

/// The workspace that the global options name.
fn context(global: &Global) -> Result<Context, Failure> {
    let flags = Flags { profile: global.profile.clone(), ..Flags::default() };
    Context::find(Invocation::of_process(global.workspace.clone(), flags)?)
}
