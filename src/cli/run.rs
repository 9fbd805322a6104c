//! `worktx run`: from flags to a request, from an outcome to words and an exit code.
//!
//! # Limitations
//! With `--json` the document is the only thing on standard output; talk goes to standard error.
//! A standard output that was closed before the start is `/dev/null` by now: nobody is told that
//! the document went nowhere.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::args::{Global, OnDirtyArg, RunArgs, VerifyArg};
use super::progress::Spinner;
use super::style::{Style, neutral};
use super::{error, output, render};
use crate::base::handover::hand_over;
use crate::config::{Flags, value};
use crate::coordinator::attempt::begin::{self, RunRequest};
use crate::coordinator::attempt::outcome::{Outcome, OutcomeWord};
use crate::coordinator::context::{Context, Invocation};
use crate::coordinator::error::Failure;
use crate::coordinator::place::PRIVATE_FILE;
use crate::tx::cause::ErrorCode;
use crate::tx::id::ExecutionId;
use crate::tx::settings::OnDirty;

/// Runs it; the exit code is that of the outcome.
pub(super) fn run(global: &Global, args: RunArgs) -> Result<u8, Failure> {
    let (json, file) = (args.json, args.outcome_file.clone());
    let id = match &args.execution_id {
        Some(id) => id.parse::<ExecutionId>().map_err(|e| Failure::Usage(e.to_string()))?,
        None => ulid::Ulid::generate().to_string().parse().map_err(Failure::bug)?,
    };
    let root = global.workspace.clone().or_else(|| std::env::current_dir().ok());
    let root = root.unwrap_or_default().display().to_string();
    let style = Style::stderr(global.color);
    match request(global, args, id.clone()).and_then(|request| begin::run(&request)) {
        Ok(outcome) => {
            leave(file.as_deref(), &outcome);
            output::say(&render::outcome(style, &outcome));
            print(json, style, &outcome);
            Ok(outcome.exit_code())
        }
        Err(failure) if json || file.is_some() => {
            output::say(&error::report(style, "run", &failure));
            let outcome = failed(&failure, id, &root);
            leave(file.as_deref(), &outcome);
            print(json, style, &outcome);
            Ok(error::reason(&failure).2)
        }
        Err(failure) => Err(failure),
    }
}

/// Writes the document where `--outcome-file` says. That it cannot be changes no outcome.
fn leave(file: Option<&Path>, outcome: &Outcome) {
    let Some(file) = file else { return };
    let written = serde_json::to_vec_pretty(outcome)
        .map_err(std::io::Error::other)
        .and_then(|bytes| hand_over(file, &bytes, PRIVATE_FILE));
    if let Err(error) = written {
        let file = file.display();
        output::say(&format!("warning: the outcome could not be written to {file}: {error}\n"));
    }
}

/// Prints the document. What is done is done, and has been said: that the document cannot be
/// printed changes no outcome.
fn print(json: bool, style: Style, outcome: &Outcome) {
    if json && let Err(failure) = output::json(outcome) {
        let why = neutral(&error::sentence(&failure));
        output::say(&format!("{} the outcome stands: {why}\n", style.notice("warning:")));
    }
}

/// The document of something that did not run.
fn failed(failure: &Failure, id: ExecutionId, root: &str) -> Outcome {
    let (reason, code, _) = error::reason(failure);
    let word = match code {
        ErrorCode::Refused => OutcomeWord::Refused,
        ErrorCode::Busy => OutcomeWord::Busy,
        _ => OutcomeWord::Error,
    };
    let mut outcome = Outcome::without_attempt(id, word, root);
    outcome.reason = Some(reason.to_owned());
    outcome.error_code = Some(code);
    outcome.detail = Some(failure.to_string());
    match failure {
        Failure::LeftOpen { key, status, .. } => {
            outcome.attempt = Some(key.attempt);
            outcome.execution_status = *status;
        }
        Failure::Standing(status) => outcome.execution_status = Some(*status),
        Failure::Refused { refusals, warnings } => {
            outcome.paths = refusals.iter().flat_map(|r| r.paths().to_vec()).collect();
            outcome.warnings.clone_from(warnings);
        }
        _ => {}
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

fn request(global: &Global, args: RunArgs, execution: ExecutionId) -> Result<RunRequest, Failure> {
    if let Some(text) = &args.settle_by {
        text.parse::<jiff::Timestamp>().map_err(|_| {
            Failure::Usage(format!(
                "--settle-by: {text:?} is no time; give one like 2026-01-31T12:00:00Z"
            ))
        })?;
    }
    if let Some(text) = &args.message {
        value::subject(text).map_err(|why| Failure::Usage(format!("--message: {why}")))?;
    }
    let timeout = duration("--timeout", args.timeout.as_deref())?;
    let wait = duration("--wait", args.wait.as_deref())?;
    let check_timeout = duration("--post-check-timeout", args.post_check_timeout.as_deref())?;
    let flags = Flags {
        profile: global.profile.clone(),
        post_check: args.post_check,
        check: args.check,
        no_post_check: args.no_post_check,
        post_check_timeout_ms: check_timeout
            .map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        on_dirty: args.on_dirty.map(|what| match what {
            OnDirtyArg::Refuse => OnDirty::Refuse,
            OnDirtyArg::Run => OnDirty::Run,
            OnDirtyArg::Capture => OnDirty::Capture,
        }),
        message: args.message,
    };
    let context = Context::find(Invocation::of_process(global.workspace.clone(), flags)?)?;
    Ok(RunRequest {
        context,
        execution,
        timeout,
        settle_by: args.settle_by,
        wait,
        triggered_by: args.triggered_by,
        claim_token: args.claim_token,
        json: args.json,
        verify_all: args.verify == VerifyArg::Full,
        command: args.command,
        watcher: Some(Arc::new(Spinner::new())),
    })
}
