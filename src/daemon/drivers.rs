//! Submissions become drivers: `worktx run`, one at a time on a work tree, in their order.
//!
//! Order rule: the request is durable before it is answered; the driver's lock is held before the
//! driver exists.
//!
//! # Limitations
//! A driver that an earlier server began is waited for by its lock: its exit code is not known.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::sync::watch;

use super::documents::{Phase, Submission};
use super::server::{Entry, Server, Shared};
use super::submission::{Finished, Folder, Kept, forget_old};
use crate::base::clock;
use crate::config::value;
use crate::coordinator::error::Failure;
use crate::coordinator::outcome::{Outcome, OutcomeWord};
use crate::journal::Filter;
use crate::process;
use crate::tx::cause::ErrorCode;
use crate::tx::id::ExecutionId;
use crate::tx::verdict::Status;

/// How long a driver waits for somebody else's work on its workspace, unless the request says.
const WAIT: &str = "10m";
/// The exit code of what was cancelled before it began: docs/exit-codes.md.
const CANCELLED: u8 = 13;
/// The handle of the lock in a driver.
const LOCK_FD: i32 = 3;
/// After the interrupt of a drain, drivers have this long to roll back.
const ROLL_BACK: Duration = Duration::from_mins(1);

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
pub(super) async fn submit(server: &Shared, mut request: Submission) -> Result<Submitted, Failure> {
    let id: ExecutionId = match &request.execution_id {
        Some(id) => id.parse().map_err(|e| Failure::Usage(format!("execution_id: {e}")))?,
        None => ulid::Ulid::generate().to_string().parse().map_err(Failure::bug)?,
    };
    request.execution_id = Some(id.to_string());
    let retry = std::mem::take(&mut request.retry);
    check(&request)?;
    let at = server.find(request.workspace.as_deref())?;
    let root = server.served[at].root.clone();
    // However it was named: two names of one work tree are one request.
    request.workspace = None;
    let kept = Kept { root, request, at: clock::now_rfc3339() };
    let _one = server.submitting.lock().await;
    let folder = Folder::of(&server.state_of(at).path, &id);
    let running = server.entries().get(&id).map(|entry| *entry.phase.borrow());
    let before = folder.kept().map_err(Failure::io("reading an earlier submission"))?;
    if let Some(before) = before {
        let submitted = |phase| Submitted { id: id.clone(), served: at, phase, existed: true };
        match running {
            Some(phase) if before.is_same(&kept) => return Ok(submitted(phase)),
            None if before.is_same(&kept) && !retry => return Ok(submitted(Phase::Finished)),
            None if retry => {}
            _ => {
                return Err(Failure::impossible(
                    format!("execution {id} was submitted with another request"),
                    "ask for it by GET, or choose another execution_id",
                ));
            }
        }
    }
    let (keeping, state) = (folder.clone(), server.state_of(at).path.clone());
    let keep = tokio::task::spawn_blocking(move || {
        keeping.keep(&kept)?;
        forget_old(&state);
        Ok(())
    });
    keep.await.map_err(Failure::bug)?.map_err(Failure::io("keeping the request"))?;
    enqueue(server, at, id.clone(), folder);
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
    if let Some(text) = &request.settle_by {
        text.parse::<jiff::Timestamp>()
            .map_err(|_| usage("settle_by", format!("{text:?} is no time of RFC 3339")))?;
    }
    if let Some(word) = &request.on_dirty
        && !["refuse", "run"].contains(&word.as_str())
    {
        return Err(usage("on_dirty", format!("{word:?} is not `refuse` or `run`")));
    }
    let checks = [request.post_check.is_some(), request.check.is_some(), request.no_post_check];
    if checks.iter().filter(|set| **set).count() > 1 {
        return Err(usage("check", "one of post_check, check and no_post_check".to_owned()));
    }
    let texts = request.command.iter().chain(request.env.keys()).chain(request.env.values());
    if texts.clone().any(|text| text.contains('\0')) {
        return Err(usage("command", "a zero byte".to_owned()));
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
    for at in 0..server.served.len() {
        let served = &server.served[at];
        let mut found = Vec::new();
        for (id, folder) in Folder::all(&server.states[served.state].path) {
            let Ok(Some(kept)) = folder.kept() else { continue };
            if kept.root == served.root && folder.finished().is_none() {
                let lock = folder.try_lock().map_err(Failure::io("looking for a driver"))?;
                // What runs is before all that waits, and that waits in the order in which it came.
                found.push((lock.is_none(), kept.at, id, folder));
            }
        }
        found.sort_by(|a, b| (!a.0, &a.1, a.2.as_str()).cmp(&(!b.0, &b.1, b.2.as_str())));
        let context = served.context()?;
        let ledger = context.ledger()?;
        for (runs, _, id, folder) in found {
            let row = match &ledger {
                Some(ledger) => ledger.execution(&id)?.map(|found| found.row),
                None => None,
            };
            // One that got as far as an attempt is not begun again: its end was recorded by
            // itself, or by the reconcile before this.
            let began = row.as_ref().is_some_and(|row| {
                row.current_attempt.is_some() || !matches!(row.status, Status::Queued)
            });
            if runs {
                tracing::info!(%id, "a driver of an earlier server goes on");
                adopt(server, at, id, folder);
            } else if began {
                finish(server, &id, &folder, None);
            } else {
                tracing::info!(%id, "a submission to an earlier server is begun");
                enqueue(server, at, id, folder);
            }
        }
    }
    Ok(())
}

fn enter(server: &Server, served: usize, id: &ExecutionId, phase: Phase) {
    let phase = watch::Sender::new(phase);
    let entry = Entry { served, phase, driver: None };
    server.entries().insert(id.clone(), entry);
}

fn enqueue(server: &Shared, served: usize, id: ExecutionId, folder: Folder) {
    enter(server, served, &id, Phase::Queued);
    let server = Shared::clone(server);
    tokio::spawn(async move {
        let Ok(_turn) = server.served[served].turn.acquire().await else { return };
        let Ok(_slot) = server.slots.acquire().await else { return };
        if *server.draining.borrow() {
            // It is kept: the next server begins it.
            return;
        }
        if !server.entries().contains_key(&id) {
            // Cancelled while it waited.
            return;
        }
        let code = drive(&server, served, &id, &folder).await;
        match &code {
            Ok(code) => tracing::info!(%id, code, "a driver is over"),
            Err(error) => {
                tracing::warn!(%id, %error, "no driver could be started");
                not_started(&server, served, &id, &folder, error);
            }
        }
        finish(&server, &id, &folder, code.ok());
    });
}

/// Leaves the outcome of what could not be started: its folder is not there, say.
fn not_started(
    server: &Server,
    served: usize,
    id: &ExecutionId,
    folder: &Folder,
    error: &std::io::Error,
) {
    let root = server.served[served].root.display().to_string();
    let mut outcome = Outcome::without_attempt(id.clone(), OutcomeWord::Error, &root);
    outcome.reason = Some("not_started".to_owned());
    outcome.error_code = Some(ErrorCode::Internal);
    outcome.detail = Some(format!("no driver could be started: {error}"));
    if let Err(error) = folder.leave_outcome(&outcome) {
        tracing::warn!(%id, %error, "its outcome could not be left");
    }
}

fn adopt(server: &Shared, served: usize, id: ExecutionId, folder: Folder) {
    enter(server, served, &id, Phase::Running);
    let server = Shared::clone(server);
    tokio::spawn(async move {
        let Ok(_turn) = server.served[served].turn.acquire().await else { return };
        let waiting = folder.clone();
        let waited = tokio::task::spawn_blocking(move || waiting.wait()).await;
        tracing::info!(%id, waited = waited.is_ok(), "a driver of an earlier server is over");
        finish(&server, &id, &folder, None);
    });
}

/// Starts a driver and waits for it; its exit code.
async fn drive(
    server: &Server,
    served: usize,
    id: &ExecutionId,
    folder: &Folder,
) -> std::io::Result<u8> {
    let kept = folder.kept()?.ok_or(std::io::ErrorKind::NotFound)?;
    let Some(lock) = folder.try_lock()? else {
        return Err(std::io::Error::other("a driver runs already"));
    };
    let mut command = driver(&kept, id, folder)?;
    let mapping = FdMapping { parent_fd: OwnedFd::from(lock), child_fd: LOCK_FD };
    command.fd_mappings(vec![mapping]).map_err(std::io::Error::other)?;
    let mut child = command.spawn()?;
    // With it goes this process's handle of the lock.
    drop(command);
    if let Some(entry) = server.entries().get_mut(id) {
        entry.driver = child.id().and_then(|pid| i32::try_from(pid).ok());
        entry.phase.send_replace(Phase::Running);
    }
    tracing::info!(%id, workspace = %server.served[served].root.display(), "a driver is at work");
    let status = child.wait().await?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

fn driver(kept: &Kept, id: &ExecutionId, folder: &Folder) -> std::io::Result<Command> {
    let request = &kept.request;
    let (stdout, stderr) = folder.outputs()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("--workspace").arg(&kept.root);
    if let Some(profile) = &request.profile {
        command.arg("--profile").arg(profile);
    }
    command.args(["run", "--execution-id", id.as_str(), "--outcome-file"]);
    command.arg(folder.outcome_file());
    let wait = request.wait.clone().unwrap_or_else(|| WAIT.to_owned());
    let options = [
        ("--wait", Some(&wait)),
        ("--post-check", request.post_check.as_ref()),
        ("--check", request.check.as_ref()),
        ("--post-check-timeout", request.post_check_timeout.as_ref()),
        ("--timeout", request.timeout.as_ref()),
        ("--settle-by", request.settle_by.as_ref()),
        ("--on-dirty", request.on_dirty.as_ref()),
        ("--triggered-by", request.triggered_by.as_ref()),
        ("--message", request.message.as_ref()),
    ];
    for (name, value) in options {
        if let Some(value) = value {
            command.arg(format!("{name}={value}"));
        }
    }
    if request.no_post_check {
        command.arg("--no-post-check");
    }
    if let Some(token) = &request.claim_token {
        // Not on the command line, where everybody may read it.
        command.env("WORKTX_CLAIM_TOKEN", token);
    }
    command.arg("--").args(&request.command);
    let cwd = request.cwd.as_ref().map_or_else(PathBuf::new, PathBuf::from);
    command
        .envs(&request.env)
        .current_dir(kept.root.join(cwd))
        .stdin(Stdio::from(folder.input()?))
        .stdout(Stdio::from(stdout))
        .stderr(Stdio::from(stderr))
        // Ctrl-C at the server's terminal is for the server.
        .process_group(0);
    Ok(command)
}

/// The driver is over, or never was: written down, and told to those who wait.
fn finish(server: &Server, id: &ExecutionId, folder: &Folder, exit_code: Option<u8>) {
    let finished = Finished { exit_code, at: clock::now_rfc3339() };
    if let Err(error) = folder.finish(&finished) {
        tracing::warn!(%id, %error, "the end of a submission could not be written down");
    }
    if let Some(entry) = server.entries().remove(id) {
        entry.phase.send_replace(Phase::Finished);
    }
}

/// What became of a cancel.
pub(super) enum Cancelled {
    /// It waited, and will not be begun.
    Queued,
    /// Its driver was told: nothing of it stood in the ledger yet.
    Told,
    /// The row is to be asked.
    Row,
}

/// Cancels what has no row yet.
///
/// # Errors
/// That it was cancelled cannot be kept: then it was not.
pub(super) fn cancel_unrecorded(
    server: &Server,
    id: &ExecutionId,
    folder: &Folder,
    has_row: bool,
) -> Result<Cancelled, Failure> {
    let mut entries = server.entries();
    let Some(entry) = entries.get(id) else { return Ok(Cancelled::Row) };
    let phase = *entry.phase.borrow();
    match (phase, entry.driver.and_then(Pid::from_raw)) {
        (Phase::Queued, _) => {
            // As `worktx run` exits for an execution that is cancelled.
            let finished = Finished { exit_code: Some(CANCELLED), at: clock::now_rfc3339() };
            folder.finish(&finished).map_err(Failure::io("keeping the cancel"))?;
            if let Some(entry) = entries.remove(id) {
                entry.phase.send_replace(Phase::Finished);
            }
            Ok(Cancelled::Queued)
        }
        (_, Some(driver)) if !has_row => {
            // A child that was not reaped: the pid is its own.
            let _ = kill_process(driver, Signal::INT);
            Ok(Cancelled::Told)
        }
        _ => Ok(Cancelled::Row),
    }
}

/// Begins nothing more, waits for what runs, interrupts what is left, and waits for that.
pub(super) async fn drain(server: &Server, patience: Duration) {
    server.draining.send_replace(true);
    if tokio::time::timeout(patience, idle(server)).await.is_ok() {
        return;
    }
    for (id, entry) in &*server.entries() {
        if *entry.phase.borrow() != Phase::Running {
            continue;
        }
        match entry.driver.and_then(Pid::from_raw) {
            // A child that was not reaped: the pid is its own.
            Some(driver) => drop(kill_process(driver, Signal::TERM)),
            None => terminate_adopted(server, entry.served, id),
        }
    }
    if tokio::time::timeout(ROLL_BACK, idle(server)).await.is_err() {
        tracing::warn!("drivers go on without a server");
    }
}

/// A driver of an earlier server is known by what the ledger says of it.
fn terminate_adopted(server: &Server, served: usize, id: &ExecutionId) {
    let owner = || {
        let ledger = server.served[served].context()?.need_ledger()?;
        let filter = Filter { execution: Some(id.clone()), limit: Some(1), ..Filter::default() };
        let attempts = ledger.attempts(&filter)?;
        let owner = attempts.first().map(crate::journal::Attempt::owner).transpose()?;
        Ok::<_, Failure>(owner.flatten())
    };
    match owner() {
        Ok(Some(owner)) if process::is_alive(&owner.host, &owner.process) == Some(true) => {
            process::terminate(&owner.process);
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%id, %error, "its driver could not be found"),
    }
}

/// Until no driver runs.
async fn idle(server: &Server) {
    loop {
        let running = server
            .entries()
            .values()
            .find(|entry| *entry.phase.borrow() == Phase::Running)
            .map(|entry| entry.phase.subscribe());
        let Some(mut running) = running else { return };
        // An error says that it is over, too.
        let _ = running.wait_for(|phase| *phase == Phase::Finished).await;
    }
}

/// The file of what a command said, for who follows it.
pub(super) fn open_output(folder: &Folder, stream: &str) -> std::io::Result<File> {
    File::open(folder.output(stream))
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
        let cases: [Case; 8] = [
            ("command", |r| r.command.clear()),
            ("command", |r| r.command.push("a\0b".to_owned())),
            ("timeout", |r| r.timeout = Some("soon".to_owned())),
            ("wait", |r| r.wait = Some("-1s".to_owned())),
            ("settle_by", |r| r.settle_by = Some("tomorrow".to_owned())),
            ("on_dirty", |r| r.on_dirty = Some("capture".to_owned())),
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
