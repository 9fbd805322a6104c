//! `worktx run`: from flags to a request, from an outcome to words and an exit code.
//!
//! # Limitations
//! With `--json` the document is the only thing on standard output; talk goes to standard error.

use std::process::ExitCode;
use std::time::Duration;

use super::args::{Global, OnDirtyArg, RunArgs};
use super::style::Style;
use super::{error, print, render};
use crate::config::{Flags, value};
use crate::coordinator::begin::{self, RunRequest};
use crate::coordinator::error::Failure;
use crate::coordinator::outcome::{Outcome, OutcomeWord};
use crate::tx::id::ExecutionId;
use crate::tx::settings::OnDirty;

/// Runs it.
///
/// # Errors
/// What kept it from running; the exit code of what did run is in the value.
pub(super) fn run(global: &Global, args: RunArgs) -> Result<ExitCode, Failure> {
    let json = args.json;
    let id = match &args.execution_id {
        Some(id) => id.parse::<ExecutionId>().map_err(|e| Failure::Usage(e.to_string()))?,
        None => ulid::Ulid::generate().to_string().parse().map_err(Failure::bug)?,
    };
    let start = super::start_dir(global)?;
    let root = start.display().to_string();
    let result = request(global, args, id.clone(), start).and_then(|request| begin::run(&request));
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(failure) if json => {
            super::print_error(global, &failure);
            failed(&failure, id, &root)
        }
        Err(failure) => return Err(failure),
    };
    if json {
        print::json(&outcome)?;
    }
    if !json || outcome.outcome != OutcomeWord::Error {
        print::talk(&render::outcome(Style::stderr(global.color), &outcome));
    }
    Ok(ExitCode::from(outcome.exit_code()))
}

/// The outcome of something that did not run.
fn failed(failure: &Failure, id: ExecutionId, root: &str) -> Outcome {
    let said = error::explain(failure);
    let mut outcome = Outcome::without_attempt(id, said.outcome, root);
    outcome.reason = Some(said.reason.to_owned());
    outcome.error_code = said.error_code;
    outcome.detail = Some(said.message);
    if let Failure::Standing(status) = failure {
        outcome.execution_status = Some(*status);
    }
    if let Failure::Refused { refusals, warnings } = failure {
        outcome.paths = refusals.iter().flat_map(|r| r.paths().to_vec()).collect();
        outcome.warnings.clone_from(warnings);
    }
    outcome
}

fn duration(flag: &'static str, text: Option<&str>) -> Result<Option<Duration>, Failure> {
    text.map(|text| {
        value::duration_ms(text)
            .map(Duration::from_millis)
            .map_err(|why| Failure::Usage(format!("{flag}: {why}")))
    })
    .transpose()
}

fn request(
    global: &Global,
    args: RunArgs,
    execution: ExecutionId,
    start: std::path::PathBuf,
) -> Result<RunRequest, Failure> {
    let settle_by = match args.settle_by {
        None => None,
        Some(text) => {
            text.parse::<jiff::Timestamp>().map_err(|_| {
                Failure::Usage(format!(
                    "--settle-by: {text:?} is no time; give one like 2026-01-31T12:00:00Z"
                ))
            })?;
            Some(text)
        }
    };
    let flags = Flags {
        profile: global.profile.clone(),
        post_check: args.post_check,
        check: args.check,
        no_post_check: args.no_post_check,
        post_check_timeout_ms: duration(
            "--post-check-timeout",
            args.post_check_timeout.as_deref(),
        )?
        .map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        on_dirty: args.on_dirty.map(|what| match what {
            OnDirtyArg::Refuse => OnDirty::Refuse,
            OnDirtyArg::Run => OnDirty::Run,
            OnDirtyArg::Capture => OnDirty::Capture,
        }),
        message: args.message,
    };
    Ok(RunRequest {
        start,
        cwd: std::env::current_dir().map_err(Failure::io("finding the current directory"))?,
        execution,
        flags,
        timeout: duration("--timeout", args.timeout.as_deref())?,
        settle_by,
        wait: duration("--wait", args.wait.as_deref())?,
        triggered_by: args.triggered_by,
        claim_token: args.claim_token,
        json: args.json,
        command: args.command,
        environment: std::env::vars_os().collect(),
    })
}
