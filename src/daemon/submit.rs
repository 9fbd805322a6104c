//! What is asked for: judged, kept, and begun in its turn; and taken up again after a restart.
//!
//! Order rule: a request is durable before it is answered. What may have run is not begun again:
//! [`standing`] says so.
//!
//! # Limitations
//! What is kept for a work tree that is not served waits until it is.

use std::path::{Component, Path};

use sha2::{Digest as _, Sha256};

use super::documents::{Phase, Submission};
use super::drivers::{self, Job};
use super::server::{Server, Shared};
use super::standing::{self, Standing};
use super::submission::{Folder, Kept, forget_old, tidy};
use crate::base::clock;
use crate::base::hex::hex;
use crate::config::value;
use crate::coordinator::error::Failure;
use crate::tx::id::ExecutionId;

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
    let kept = Kept {
        workspace: server.served[at].id.clone(),
        root,
        request,
        stdin: digest,
        attempt_before: 0,
        at: clock::now_rfc3339(),
    };

    let _one = server.submitting.lock().await;
    let state = server.state_of(at).path.clone();
    let job = Job { served: at, id: id.clone(), folder: Folder::of(&state, &id) };
    let running = server.entries().get(&server.name(&job)).map(|entry| *entry.phase.borrow());
    let before = job.folder.kept().map_err(Failure::io("reading an earlier submission"))?;
    let submitted = |phase| Submitted { id: id.clone(), served: at, phase, existed: true };
    if let Some(before) = before {
        let same = before.is_same(&kept);
        if let Some(phase) = running.filter(|_| same) {
            if phase == Phase::Queued && before.request != kept.request {
                let renewed = Kept { request: kept.request, ..before };
                job.folder.renew(&renewed).map_err(Failure::io("keeping the claim"))?;
            }
            return Ok(submitted(phase));
        }
        if running.is_some() || (!same && !retry) {
            return Err(another(&id));
        }
        let (asked, judged, of_before) = (Shared::clone(server), job.clone(), before.clone());
        let earlier = tokio::task::spawn_blocking(move || earlier(&asked, &judged, &of_before));
        let earlier = earlier.await.map_err(Failure::bug)??;
        match earlier {
            Earlier::Runs if same => return Ok(submitted(Phase::Running)),
            Earlier::Runs => return Err(another(&id)),
            // There is nothing to try again.
            Earlier::Succeeded if same => return Ok(submitted(Phase::Finished)),
            Earlier::Succeeded => return Err(another(&id)),
            // Kept, and never begun: its client went in the middle.
            Earlier::Waits if same => {
                if before.request != kept.request {
                    let renewed = Kept { request: kept.request, ..before };
                    job.folder.renew(&renewed).map_err(Failure::io("keeping the claim"))?;
                }
                drivers::enqueue(server, job);
                return Ok(submitted(Phase::Queued));
            }
            // It waits for a work tree that is not served now: it is not over.
            Earlier::Waits => return Err(another(&id)),
            Earlier::Over if retry => {}
            Earlier::Over => return Ok(submitted(Phase::Finished)),
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

/// How an earlier submission of the same id stands that this server does nothing about.
enum Earlier {
    /// For a work tree that is not served: its driver goes on.
    Runs,
    Succeeded,
    Over,
    Waits,
}

fn earlier(server: &Server, job: &Job, kept: &Kept) -> Result<Earlier, Failure> {
    let lock = job.folder.try_lock().map_err(Failure::io("looking for a driver"))?;
    if lock.is_none() && job.folder.finished().is_none() {
        return Ok(Earlier::Runs);
    }
    let standing = standing::settle(server, job, kept)?;
    if standing == Standing::Waits {
        return Ok(Earlier::Waits);
    }
    let succeeded =
        standing == Standing::Over(Some(0)) || server.has_succeeded(job.served, &job.id)?;
    Ok(if succeeded { Earlier::Succeeded } else { Earlier::Over })
}

fn another(id: &ExecutionId) -> Failure {
    Failure::impossible(
        format!("execution {id} was submitted with another request"),
        "ask for it by GET, or choose another execution_id",
    )
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
    let words = request.command.iter().chain(request.env.keys()).chain(request.env.values());
    let words = words.map(|text| ("command, env", text));
    let others = [
        ("cwd", &request.cwd),
        ("profile", &request.profile),
        ("post_check", &request.post_check),
        ("check", &request.check),
        ("triggered_by", &request.triggered_by),
        ("message", &request.message),
        ("claim_token", &request.claim_token),
    ];
    let others = others.into_iter().filter_map(|(name, text)| Some((name, text.as_ref()?)));
    if let Some((name, _)) = words.chain(others).find(|(_, text)| text.contains('\0')) {
        // No process can be given one.
        return Err(usage(name, "a zero byte".to_owned()));
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
    for (state, found) in server.states.iter().enumerate() {
        tidy(&found.path);
        let mut all = Vec::new();
        for (id, folder) in Folder::all(&found.path) {
            if folder.finished().is_some() {
                // The server may have been killed between the two.
                standing::forget_token(&id, &folder);
                continue;
            }
            let kept = match folder.kept() {
                Ok(Some(kept)) => kept,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%id, %error, "a submission cannot be read");
                    continue;
                }
            };
            let Some(served) = server.named(state, &kept.workspace) else {
                let root = kept.root.display();
                tracing::warn!(%id, %root, "a submission waits for a work tree that is not served");
                continue;
            };
            let lock = folder.try_lock().map_err(Failure::io("looking for a driver"))?;
            // What runs is before all that waits, and that waits in the order in which it came.
            all.push((lock.is_none(), kept, Job { served, id, folder }));
        }
        all.sort_by(|a, b| (!a.0, &a.1.at, a.2.id.as_str()).cmp(&(!b.0, &b.1.at, b.2.id.as_str())));
        for (runs, kept, job) in all {
            let id = job.id.clone();
            if runs {
                tracing::info!(%id, "a driver of an earlier server goes on");
                drivers::adopt(server, job);
            } else if standing::settle(server, &job, &kept)? == Standing::Waits {
                tracing::info!(%id, "a submission to an earlier server is begun");
                drivers::enqueue(server, job);
            }
        }
    }
    Ok(())
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
        let cases: [Case; 13] = [
            ("command", |r| r.command.clear()),
            ("command", |r| r.command.push("a\0b".to_owned())),
            ("message", |r| r.message = Some("a\0b".to_owned())),
            ("claim_token", |r| r.claim_token = Some("a\0b".to_owned())),
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
