//! Talks to people: the command line, its texts, its exit codes.
//!
//! # Limitations
//! Standard output is data, standard error is talk.

pub mod args;
mod print;
pub mod render;
mod run;
pub mod style;
mod error {
    //! temporary
    use crate::coordinator::error::Failure;
    use crate::coordinator::outcome::OutcomeWord;
    use crate::tx::cause::ErrorCode;
    pub struct Said {
        pub outcome: OutcomeWord,
        pub reason: &'static str,
        pub error_code: Option<ErrorCode>,
        pub message: String,
    }
    pub fn explain(f: &Failure) -> Said {
        let (o, c) = match f {
            Failure::Refused { .. } => (OutcomeWord::Refused, ErrorCode::Refused),
            Failure::Busy { .. } => (OutcomeWord::Busy, ErrorCode::Busy),
            Failure::Standing(_) => (OutcomeWord::Error, ErrorCode::Reconciled),
            _ => (OutcomeWord::Error, ErrorCode::Internal),
        };
        Said { outcome: o, reason: "x", error_code: Some(c), message: format!("{f:?}") }
    }
}
use crate::coordinator::error::Failure;
use clap::Parser as _;
use std::process::ExitCode;
fn start_dir(g: &args::Global) -> Result<std::path::PathBuf, Failure> {
    match &g.workspace {
        Some(d) => Ok(d.clone()),
        None => std::env::current_dir().map_err(Failure::io("cwd")),
    }
}
fn print_error(_g: &args::Global, f: &Failure) {
    eprintln!("Error: {}", crate::coordinator::drive::chain(f));
    eprintln!("{f:?}");
}
pub fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let r = match cli.command {
        args::Command::Run(a) => run::run(&cli.global, a),
        _ => Ok(ExitCode::from(1)),
    };
    r.unwrap_or_else(|f| {
        print_error(&cli.global, &f);
        ExitCode::from(1)
    })
}
