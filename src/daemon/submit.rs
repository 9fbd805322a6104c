//! What is asked for: judged, kept, and begun in its turn; and taken up again after a restart.
//!
//! Order rule: a request is durable before it is answered. What may have run is not begun again:
//! a new attempt, an outcome, or a driver's start that may have been without a transaction says so.
//!
//! # Limitations
//! A command that ran without a transaction while everything was killed has no known end.

use std::path::{Component, Path};

use sha2::{Digest as _, Sha256};

use super::documents::{Phase, Submission};
use super::drivers::{self, Job};
use super::server::{Server, Shared};
use super::submission::{Folder, Kept, forget_old, tidy};
use crate::base::clock;
use crate::base::hex::hex;
use crate::config::value;
use crate::coordinator::attempt::begin::UNPROTECTED;
use crate::coordinator::attempt::outcome::{Outcome, OutcomeWord};
use crate::coordinator::error::Failure;
use crate::tx::cause::ErrorCode;
use crate::tx::id::ExecutionId;
use crate::tx::settings::OnDirty;

/// What became of a request to submit.
pub(super) struct Submitted {
    pub(super) id: ExecutionId,
    pub(super) served: usize,
    pub(super) phase: Phase,
    /// It was there already.
    pub(super) existed: bool,
}

/// Takes a request: keeps it, and begins it in its turn. The same one again changes nothing.
///
/// # Errors
/// It makes no sense, another one has its name, or it cannot be kept.
pub(super) async fn submit(server: &Shared, request: Submission) -> Result<Submitted, Failure> {
    let server = Shared::clone(server);
    // On its own: a client that goes in the middle leaves nothing half done.
    tokio::spawn(async move { take(&server, request).await }).await.map_err(Failure::bug)?
}

async fn take(server: &Shared, mut request: Submission) -> Result<Submitted, Failure> {
    let id: ExecutionId = match &request.execution_id {
        Some(id) => id.parse().map_err(|e| Failure::Usage(format!("execution_id: {e}")))?,
        None => ulid::Ulid::generate().to_string().parse().map_err(Failure::bug)?,
    };
    request.execution_id = Some(id.to_string());
    let retry = std::mem::take(&mut request.retry);
    check(&request)?;
    let at = server.find(request.workspace.as_deref())?;
    // However it was named: two names of one work tree are one request.
    request.workspace = None;
    let stdin = request.stdin.take();
    let digest = stdin.as_ref().map(|text| hex(&Sha256::digest(text.as_bytes())));
    let root = server.served[at].root.clone();
    let kept = Kept { root, request, stdin: digest, attempt_before: 0, at: clock::now_rfc3339() };

    let _one = server.submitting.lock().await;
    let state = server.state_of(at).path.clone();
    let job = Job { served: at, id: id.clone(), folder: Folder::of(&state, &id) };
    let running = server.entries().get(&server.name(&job)).map(|entry| *entry.phase.borrow());
    let before = job.folder.kept().map_err(Failure::io("reading an earlier submission"))?;
    let submitted = |phase| Submitted { id: id.clone(), served: at, phase, existed: true };
    if let Some(before) = before {
        let same = before.is_same(&kept);
        match running {
            Some(phase) if same => {
                if phase == Phase::Queued && before.request != kept.request {
                    let renewed = Kept { request: kept.request, ..before };
                    job.folder.renew(&renewed).map_err(Failure::io("keeping the claim"))?;
                }
                return Ok(submitted(phase));
            }
            None if same && !retry && job.folder.finished().is_some() => {
                return Ok(submitted(Phase::Finished));
            }
            // Kept, and never begun: its client went in the middle.
            None if same && !retry => {
                drivers::enqueue(server, job);
                return Ok(submitted(Phase::Queued));
            }
            None if retry => {}
            _ => {
                return Err(Failure::impossible(
                    format!("execution {id} was submitted with another request"),
                    "ask for it by GET, or choose another execution_id",
                ));
            }
        }
    }
    let (asked, keeping) = (Shared::clone(server), job.clone());
    let keep = tokio::task::spawn_blocking(move || {
        let attempt_before = asked.last_attempt(keeping.served, &keeping.id)?;
        let kept = Kept { attempt_before, ..kept };
        let kept = keeping.folder.keep(&kept, stdin.as_deref());
        kept.map_err(Failure::io("keeping the request"))?;
        forget_old(&state);
        Ok::<_, Failure>(())
    });
    keep.await.map_err(Failure::bug)??;
    drivers::enqueue(server, job);
    Ok(Submitted { id, served: at, phase: Phase::Queued, existed: false })
}

/// What `worktx run` would refuse is refused here already.
fn check(request: &Submission) -> Result<(), Failure> {
    let usage = |what: &str, why: String| Failure::Usage(format!("{what}: {why}"));
    if request.command.first().is_none_or(String::is_empty) {
        return Err(usage("command", "it is empty".to_owned()));
    }
    for (name, text) in [
        ("timeout", &request.timeout),
        ("post_check_timeout", &request.post_check_timeout),
        ("wait", &request.wait),
    ] {
        if let Some(text) = text {
            value::duration_ms(text).map_err(|why| usage(name, why))?;
        }
    }
    if let Some(text) = &request.message {
        value::subject(text).map_err(|why| usage("message", why))?;
    }
    if let Some(text) = &request.settle_by {
        text.parse::<jiff::Timestamp>()
            .map_err(|_| usage("settle_by", format!("{text:?} is no time of RFC 3339")))?;
    }
    if let Some(word) = &request.on_dirty
        && !["refuse", "run"].contains(&word.as_str())
    {
        return Err(usage("on_dirty", format!("{word:?} is not `refuse` or `run`")));
    }
    if let Some(word) = &request.verify
        && !["watched", "full"].contains(&word.as_str())
    {
        return Err(usage("verify", format!("{word:?} is not `watched` or `full`")));
    }
    let checks = [request.post_check.is_some(), request.check.is_some(), request.no_post_check];
    if checks.iter().filter(|set| **set).count() > 1 {
        return Err(usage("check", "one of post_check, check and no_post_check".to_owned()));
    }
    let texts = request.command.iter().chain(request.env.keys()).chain(request.env.values());
    if texts.clone().any(|text| text.contains('\0')) {
        return Err(usage("command", "a zero byte".to_owned()));
    }
    let cwd = request.cwd.as_ref().map(Path::new);
    if cwd.is_some_and(|cwd| !cwd.components().all(|part| matches!(part, Component::Normal(_)))) {
        return Err(usage(
            "cwd",
            "it is to be a path beneath the root of the work tree".to_owned(),
        ));
    }
    if let Some(name) = request.env.keys().find(|name| name.is_empty() || name.contains('=')) {
        return Err(usage("env", format!("{name:?} is no name of a variable")));
    }
    Ok(())
}

/// Takes up what was submitted to an earlier server.
///
/// # Errors
/// A ledger cannot be read.
pub(super) fn resume(server: &Shared) -> Result<(), Failure> {
    for state in &server.states {
        tidy(&state.path);
    }
    for at in 0..server.served.len() {
        let served = &server.served[at];
        let mut found = Vec::new();
        for (id, folder) in Folder::all(&server.states[served.state].path) {
            if folder.finished().is_some() {
                continue;
            }
            let Ok(Some(kept)) = folder.kept() else { continue };
            if kept.root == served.root {
                let lock = folder.try_lock().map_err(Failure::io("looking for a driver"))?;
                // What runs is before all that waits, and that waits in the order in which it came.
                let job = Job { served: at, id, folder };
                found.push((lock.is_none(), kept, job));
            }
        }
        found.sort_by(|a, b| {
            (!a.0, &a.1.at, a.2.id.as_str()).cmp(&(!b.0, &b.1.at, b.2.id.as_str()))
        });
        for (runs, kept, job) in found {
            let id = job.id.clone();
            if runs {
                tracing::info!(%id, "a driver of an earlier server goes on");
                drivers::adopt(server, job);
            } else if let Some(outcome) = job.folder.outcome() {
                drivers::finish(server, &job, Some(outcome.exit_code()));
            } else if server.last_attempt(at, &id)? > kept.attempt_before {
                // Its end was recorded by itself, or by the reconcile before this.
                drivers::finish(server, &job, None);
            } else if job.folder.was_started() && may_be_unprotected(server, at, &kept)? {
                let why = "everything was killed while it may have run without a transaction";
                leave(server, &job, "not_known", why);
                drivers::finish(server, &job, None);
            } else {
                tracing::info!(%id, "a submission to an earlier server is begun");
                drivers::enqueue(server, job);
            }
        }
    }
    Ok(())
}

/// Whether a driver may have run it without leaving a trace of it.
fn may_be_unprotected(server: &Server, served: usize, kept: &Kept) -> Result<bool, Failure> {
    let kind = kept.request.triggered_by.as_deref();
    if kind.is_some_and(|kind| UNPROTECTED.contains(&kind)) {
        return Ok(true);
    }
    if let Some(word) = kept.request.on_dirty.as_deref() {
        return Ok(word == "run");
    }
    let user = server.served[served].context()?.user;
    Ok(user.values.settings.on_dirty == OnDirty::Run)
}

/// Leaves the outcome of what no driver could leave one of.
pub(super) fn leave(server: &Server, job: &Job, reason: &str, detail: &str) {
    let root = server.served[job.served].root.display().to_string();
    let mut outcome = Outcome::without_attempt(job.id.clone(), OutcomeWord::Error, &root);
    outcome.reason = Some(reason.to_owned());
    outcome.error_code = Some(ErrorCode::Internal);
    outcome.detail = Some(detail.to_owned());
    if let Err(error) = job.folder.leave_outcome(&outcome) {
        tracing::warn!(id = %job.id, %error, "its outcome could not be left");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Case = (&'static str, fn(&mut Submission));

    fn submission(change: impl FnOnce(&mut Submission)) -> Submission {
        let mut request = Submission { command: vec!["true".to_owned()], ..Submission::default() };
        change(&mut request);
        request
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(check(&submission(|_| {})).is_ok());
        let cases: [Case; 11] = [
            ("command", |r| r.command.clear()),
            ("command", |r| r.command.push("a\0b".to_owned())),
            ("timeout", |r| r.timeout = Some("soon".to_owned())),
            ("wait", |r| r.wait = Some("-1s".to_owned())),
            ("settle_by", |r| r.settle_by = Some("tomorrow".to_owned())),
            ("on_dirty", |r| r.on_dirty = Some("capture".to_owned())),
            ("verify", |r| r.verify = Some("never".to_owned())),
            ("cwd", |r| r.cwd = Some("/etc".to_owned())),
            ("cwd", |r| r.cwd = Some("a/../..".to_owned())),
            ("env", |r| drop(r.env.insert("A=B".to_owned(), String::new()))),
            ("check", |r| {
                r.check = Some("true".to_owned());
                r.no_post_check = true;
            }),
        ];
        for (word, change) in cases {
            let error = check(&submission(change)).expect_err(word).to_string();
            assert!(error.starts_with(word), "{error}");
        }
    }
}
