//! What became of a submission: asked once its driver is over, when a server begins, and when the
//! same request comes again. One answer to all of them, so that nothing runs twice and nothing that
//! was taken is forgotten.
//!
//! Order rule: a cancel is written down before a driver is told of it, and the end of a submission
//! before those who wait for it are told.
//!
//! # Limitations
//! A command that ran without a transaction while everything was killed has no known end.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use rustix::process::Signal;

use super::documents::{Phase, Submission};
use super::drivers::Job;
use super::server::Server;
use super::submission::{Finished, Folder, Kept};
use crate::base::clock;
use crate::config::Flags;
use crate::coordinator::attempt::begin::UNPROTECTED;
use crate::coordinator::attempt::outcome::{Outcome, OutcomeWord, WAIT_ENDED};
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::process::{self, Request};
use crate::tx::cause::ErrorCode;
use crate::tx::id::ExecutionId;
use crate::tx::settings::OnDirty;

/// The exit code of what was cancelled before it began: docs/exit-codes.md.
const CANCELLED: u8 = 13;
/// The exit code of what a signal ended while it waited for its work tree.
const BUSY: u8 = 22;

/// So many drivers of one submission are killed before it is given up.
const KILLS: u8 = 3;

/// How a submission stands that no driver is at work on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is over; with the exit code, where an outcome tells it.
    Over(Option<u8>),
    /// Cancelled before anything of it ran.
    Cancelled,
    /// It may have run without a transaction, and left no trace.
    Unknown,
    /// Nothing of it ran: it waits.
    Waits,
}

impl Standing {
    /// What a client is told of it.
    pub(super) const fn phase(self) -> Phase {
        match self {
            Self::Waits => Phase::Queued,
            _ => Phase::Finished,
        }
    }

    /// The exit code that goes with it.
    pub(super) const fn exit_code(self) -> Option<u8> {
        match self {
            Self::Over(code) => code,
            Self::Cancelled => Some(CANCELLED),
            Self::Unknown | Self::Waits => None,
        }
    }
}

/// How a submission stands; `is_idle` where it is known that its driver was ended before it could
/// do anything.
///
/// # Errors
/// The ledger cannot be read.
pub(super) fn of(
    server: &Server,
    job: &Job,
    kept: &Kept,
    is_idle: bool,
) -> Result<Standing, Failure> {
    if let Some(finished) = job.folder.finished() {
        return Ok(Standing::Over(finished.exit_code));
    }
    let outcome = job.folder.outcome();
    let has_only_waited = outcome.as_ref().is_some_and(has_only_waited);
    if let Some(outcome) = outcome.filter(|_| !has_only_waited) {
        return Ok(Standing::Over(Some(outcome.exit_code())));
    }
    if server.last_attempt(job.served, &job.id)? > kept.attempt_before {
        // Its end was recorded by itself, or by the reconcile before this.
        return Ok(Standing::Over(None));
    }
    let is_idle = is_idle || has_only_waited || !job.folder.was_started();
    if !is_idle && may_be_unprotected(server, job, kept)? {
        return Ok(Standing::Unknown);
    }
    Ok(if job.folder.was_cancelled() { Standing::Cancelled } else { Standing::Waits })
}

/// Whether an outcome says that a signal came before the work tree could be had.
fn has_only_waited(outcome: &Outcome) -> bool {
    outcome.outcome == OutcomeWord::Busy && outcome.reason.as_deref() == Some(WAIT_ENDED)
}

/// Whether a driver may have run it without leaving a trace of it.
fn may_be_unprotected(server: &Server, job: &Job, kept: &Kept) -> Result<bool, Failure> {
    let kind = kept.request.triggered_by.as_deref();
    if kind.is_some_and(|kind| UNPROTECTED.contains(&kind)) {
        return Ok(true);
    }
    if let Some(word) = kept.request.on_dirty.as_deref() {
        return Ok(word == "run");
    }
    // As the driver was called: with the request's environment, not the server's.
    let mut invocation = server.context_near(job.served)?.invocation;
    let profile = kept.request.profile.clone().or(invocation.flags.profile.take());
    invocation.flags = Flags { profile, ..Flags::default() };
    let set = &kept.request.env;
    invocation.environment.retain(|(name, _)| name.to_str().is_none_or(|n| !set.contains_key(n)));
    invocation.environment.extend(set.iter().map(|(name, value)| (name.into(), value.into())));
    // What cannot be read now may have been another one then.
    Ok(Context::find(invocation)
        .map_or(true, |context| context.user.values.settings.on_dirty == OnDirty::Run))
}

/// How a submission stands that no driver is at work on, written down where it is over.
///
/// # Errors
/// The ledger cannot be read.
pub(super) fn settle(server: &Server, job: &Job, kept: &Kept) -> Result<Standing, Failure> {
    let standing = of(server, job, kept, false)?;
    if job.folder.finished().is_none() {
        conclude(server, job, standing);
    }
    Ok(standing)
}

fn conclude(server: &Server, job: &Job, standing: Standing) {
    match standing {
        Standing::Waits => return set_back(job),
        // What a driver says that only waited is not its end.
        Standing::Cancelled => set_back(job),
        Standing::Unknown => {
            let why = "its driver was killed while it may have run without a transaction";
            let code = leave(server, job, "not_known", why);
            return finish(server, job, Some(code));
        }
        Standing::Over(_) => {}
    }
    finish(server, job, standing.exit_code());
}

/// A driver of this server is over, or one of an earlier server was waited for; whether the
/// submission waits again.
pub(super) fn close(server: &Server, job: &Job, status: Option<ExitStatus>) -> bool {
    let id = &job.id;
    let code = status.and_then(|status| u8::try_from(status.code()?).ok());
    // Once it handles signals, none of these ends it.
    let ends_it = |signal| [Signal::TERM, Signal::INT].map(Signal::as_raw).contains(&signal);
    let is_idle = status.and_then(|status| status.signal()).is_some_and(ends_it);
    let is_adopted = status.is_none();
    let standing = match job.folder.kept() {
        Ok(Some(kept)) => of(server, job, &kept, is_idle),
        Ok(None) => Ok(Standing::Over(code)),
        Err(error) => Err(Failure::io("reading a submission")(error)),
    };
    // It was told to end, and nobody has cancelled the submission: all of a service may be told at
    // once, and its driver hear of it first.
    let has_waited = || job.folder.outcome().as_ref().is_some_and(has_only_waited);
    let is_drained = || *server.draining.borrow() && code.is_none_or(|code| code == BUSY);
    match standing {
        Ok(Standing::Waits) if is_adopted || is_idle || has_waited() || is_drained() => {
            set_back(job);
            return true;
        }
        // Killed: as if its server had been killed with it.
        Ok(Standing::Waits) if code.is_none() => {
            let killed = count_killed(server, job);
            if killed < KILLS {
                set_back(job);
                return true;
            }
            let why = format!("{killed} drivers of it were killed before they had done anything");
            let code = leave(server, job, "not_started", &why);
            finish(server, job, Some(code));
        }
        Ok(standing @ Standing::Cancelled) => conclude(server, job, standing),
        Ok(standing @ Standing::Unknown) if code.is_none() => conclude(server, job, standing),
        Ok(standing) => finish(server, job, code.or(standing.exit_code())),
        Err(error) => {
            tracing::warn!(%id, %error, "what became of a submission is not known");
            finish(server, job, code);
        }
    }
    false
}

/// How many drivers of a submission were killed, with the one that is over now.
fn count_killed(server: &Server, job: &Job) -> u8 {
    server.entries().get_mut(&server.name(job)).map_or(KILLS, |entry| {
        entry.killed = entry.killed.saturating_add(1);
        entry.killed
    })
}

/// Forgets a driver that did nothing.
pub(super) fn set_back(job: &Job) {
    if let Err(error) = job.folder.set_back() {
        tracing::warn!(id = %job.id, %error, "what a driver that only waited said stays");
    }
}

/// The driver is over, or never was: written down, and told to those who wait.
pub(super) fn finish(server: &Server, job: &Job, exit_code: Option<u8>) {
    let id = &job.id;
    let finished = Finished { exit_code, at: clock::now_rfc3339() };
    if let Err(error) = job.folder.finish(&finished) {
        tracing::warn!(%id, %error, "the end of a submission could not be written down");
    }
    // While the entry is there, nobody puts another request in this one's place.
    forget_token(id, &job.folder);
    if let Some(entry) = server.entries().remove(&server.name(job)) {
        entry.phase.send_replace(Phase::Finished);
    }
}

/// A fence of a claim that is over is nobody's business any more.
pub(super) fn forget_token(id: &ExecutionId, folder: &Folder) {
    if let Ok(Some(kept)) = folder.kept()
        && kept.request.claim_token.is_some()
    {
        let request = Submission { claim_token: None, ..kept.request.clone() };
        if let Err(error) = folder.renew(&Kept { request, ..kept }) {
            tracing::warn!(%id, %error, "the claim token of a submission stays");
        }
    }
}

/// The end of what was cancelled while it waited, written down before it is told.
fn end_unbegun(job: &Job) -> Result<(), Failure> {
    // As `worktx run` exits for an execution that is cancelled.
    let finished = Finished { exit_code: Some(CANCELLED), at: clock::now_rfc3339() };
    job.folder.finish(&finished).map_err(Failure::io("keeping the cancel"))?;
    forget_token(&job.id, &job.folder);
    Ok(())
}

/// Leaves the outcome of what no driver could leave one of; its exit code.
pub(super) fn leave(server: &Server, job: &Job, reason: &str, detail: &str) -> u8 {
    let root = server.served[job.served].root.display().to_string();
    let mut outcome = Outcome::without_attempt(job.id.clone(), OutcomeWord::Error, &root);
    outcome.reason = Some(reason.to_owned());
    outcome.error_code = Some(ErrorCode::Internal);
    outcome.detail = Some(detail.to_owned());
    if let Err(error) = job.folder.leave_outcome(&outcome) {
        tracing::warn!(id = %job.id, %error, "its outcome could not be left");
    }
    outcome.exit_code()
}

/// What became of a cancel.
pub(super) enum Cancelled {
    /// It waited, and will not be begun.
    Queued,
    /// Its driver was told: it had not begun an attempt.
    Told,
    /// The row is to be asked.
    Row,
}

/// Cancels what has no attempt yet; `has_begun` says whether it has.
///
/// # Errors
/// That it was cancelled cannot be kept, or its driver cannot be told: then it was not.
pub(super) fn cancel(
    server: &Server,
    job: &Job,
    kept: Option<&Kept>,
    has_begun: bool,
) -> Result<Cancelled, Failure> {
    let mut entries = server.entries();
    let name = server.name(job);
    let known = entries.get(&name).map(|entry| (*entry.phase.borrow(), entry.driver.clone()));
    match (known, kept) {
        (Some((Phase::Queued, _)), _) => {
            end_unbegun(job)?;
            if let Some(entry) = entries.remove(&name) {
                entry.phase.send_replace(Phase::Finished);
            }
            Ok(Cancelled::Queued)
        }
        (Some((Phase::Running, driver)), _) if !has_begun => {
            let driver = driver.or_else(|| job.folder.driver());
            tell_cancel(job, driver.as_ref())
        }
        // It waits for a work tree that is not served now, or its driver goes on there.
        (None, Some(kept)) if !has_begun && job.folder.finished().is_none() => {
            let lock = job.folder.try_lock().map_err(Failure::io("looking for a driver"))?;
            if lock.is_none() {
                return tell_cancel(job, job.folder.driver().as_ref());
            }
            if of(server, job, kept, false)? != Standing::Waits {
                return Ok(Cancelled::Row);
            }
            end_unbegun(job)?;
            Ok(Cancelled::Queued)
        }
        // The same cancel again.
        (None, Some(_)) if !has_begun && was_cancelled_unbegun(job) => Ok(Cancelled::Queued),
        _ => Ok(Cancelled::Row),
    }
}

/// Whether it has ended by a cancel before anything of it ran: such an end has no outcome.
fn was_cancelled_unbegun(job: &Job) -> bool {
    let finished = job.folder.finished();
    finished.is_some_and(|finished| finished.exit_code == Some(CANCELLED))
        && job.folder.outcome().is_none()
}

fn tell_cancel(job: &Job, driver: Option<&crate::journal::Owner>) -> Result<Cancelled, Failure> {
    let ending = || {
        Failure::impossible(
            format!("the driver of {} begins or ends just now", job.id),
            "ask again in a moment",
        )
    };
    let here = |driver: &&crate::journal::Owner| driver.host == process::this_host();
    let driver = driver.filter(here).ok_or_else(ending)?;
    // Written down first: it may be gone before it can say anything, and this server too.
    job.folder.cancel().map_err(Failure::io("keeping the cancel"))?;
    if process::tell(&driver.process, Request::Cancel) {
        Ok(Cancelled::Told)
    } else {
        Err(ending())
    }
}
