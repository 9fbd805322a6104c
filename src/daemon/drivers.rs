//! Submissions become drivers: `worktx run`, one at a time on a work tree, in their order.
//!
//! Order rule: the driver's lock is held, and its start written down, before it exists.
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
use super::submission::{Finished, Folder, Kept};
use super::submit::leave;
use crate::base::clock;
use crate::coordinator::error::Failure;
use crate::journal::Filter;
use crate::process;
use crate::tx::id::ExecutionId;

/// How long a driver waits for somebody else's work on its workspace, unless the request says.
const WAIT: &str = "10m";
/// The exit code of what was cancelled before it began: docs/exit-codes.md.
const CANCELLED: u8 = 13;
/// What `worktx run` takes a claim token from.
const CLAIM_TOKEN: &str = "WORKTX_CLAIM_TOKEN";
/// The handle of the lock in a driver.
const LOCK_FD: i32 = 3;
/// After the interrupt of a drain, drivers have this long to roll back.
const ROLL_BACK: Duration = Duration::from_mins(1);

/// A submission that is to be run, or runs.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// Which of [`Server::served`].
    pub(super) served: usize,
    pub(super) id: ExecutionId,
    pub(super) folder: Folder,
}

fn enter(server: &Server, job: &Job, phase: Phase) {
    let entry = Entry { served: job.served, phase: watch::Sender::new(phase), driver: None };
    server.entries().insert(server.name(job), entry);
}

/// Begins a submission in its turn.
pub(super) fn enqueue(server: &Shared, job: Job) {
    enter(server, &job, Phase::Queued);
    let server = Shared::clone(server);
    tokio::spawn(async move {
        let Ok(_turn) = server.served[job.served].turn.acquire().await else { return };
        let Ok(_slot) = server.slots.acquire().await else { return };
        if *server.draining.borrow() {
            // It is kept: the next server begins it.
            return;
        }
        let id = &job.id;
        let lock = lock_of(&job.folder).await;
        // Nothing is waited for between this and the driver's start.
        if !server.entries().contains_key(&server.name(&job)) {
            // Cancelled while it waited.
            return;
        }
        let driven = match lock {
            Ok(lock) => drive(&server, &job, lock).await,
            Err(error) => Err(error),
        };
        let code = match driven {
            Ok(code) => {
                tracing::info!(%id, code, "a driver is over");
                code
            }
            Err(error) => {
                tracing::warn!(%id, %error, "no driver could be started");
                leave(
                    &server,
                    &job,
                    "not_started",
                    &format!("no driver could be started: {error}"),
                );
                None
            }
        };
        if code.is_none() && *server.draining.borrow() && is_untouched(&server, &job).await {
            // The signal came before it had begun: the next server begins it.
            server.entries().remove(&server.name(&job));
            return;
        }
        let (done, server) = (job.clone(), Shared::clone(&server));
        let _ = tokio::task::spawn_blocking(move || finish(&server, &done, code)).await;
    });
}

/// Whether a driver that was ended by a signal had not begun an attempt.
async fn is_untouched(server: &Shared, job: &Job) -> bool {
    let (server, job) = (Shared::clone(server), job.clone());
    let asked = tokio::task::spawn_blocking(move || {
        let before = job.folder.kept().ok().flatten()?.attempt_before;
        let last = server.last_attempt(job.served, &job.id).ok()?;
        Some(last <= before && job.folder.outcome().is_none())
    });
    asked.await.ok().flatten().unwrap_or(false)
}

/// Waits for a driver of an earlier server.
pub(super) fn adopt(server: &Shared, job: Job) {
    enter(server, &job, Phase::Running);
    let server = Shared::clone(server);
    tokio::spawn(async move {
        let Ok(_turn) = server.served[job.served].turn.acquire().await else { return };
        // It runs already, whatever the bound says.
        let _slot = server.slots.try_acquire();
        let waiting = job.folder.clone();
        let waited = tokio::task::spawn_blocking(move || waiting.wait()).await;
        let id = &job.id;
        tracing::info!(%id, waited = waited.is_ok(), "a driver of an earlier server is over");
        let (done, server) = (job.clone(), Shared::clone(&server));
        let _ = tokio::task::spawn_blocking(move || finish(&server, &done, None)).await;
    });
}

/// The driver's lock. The supervisor of a driver that was killed may still be ending its turn:
/// that is waited for.
async fn lock_of(folder: &Folder) -> std::io::Result<File> {
    loop {
        if let Some(lock) = folder.try_lock()? {
            return Ok(lock);
        }
        let waiting = folder.clone();
        tokio::task::spawn_blocking(move || waiting.wait())
            .await
            .map_err(std::io::Error::other)??;
    }
}

/// Starts a driver and waits for it; its exit code, `None` where a signal ended it.
async fn drive(server: &Server, job: &Job, lock: File) -> std::io::Result<Option<u8>> {
    let (id, folder) = (&job.id, &job.folder);
    let kept = folder.kept()?.ok_or(std::io::ErrorKind::NotFound)?;
    folder.start()?;
    let mut command = driver(&kept, id, folder)?;
    let mapping = FdMapping { parent_fd: OwnedFd::from(lock), child_fd: LOCK_FD };
    command.fd_mappings(vec![mapping]).map_err(std::io::Error::other)?;
    let mut child = command.spawn()?;
    // With it goes this process's handle of the lock.
    drop(command);
    if let Some(entry) = server.entries().get_mut(&server.name(job)) {
        entry.driver = child.id().and_then(|pid| i32::try_from(pid).ok());
        entry.phase.send_replace(Phase::Running);
    }
    let workspace = server.served[job.served].root.display();
    tracing::info!(%id, %workspace, "a driver is at work");
    let status = child.wait().await?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()))
}

fn driver(kept: &Kept, id: &ExecutionId, folder: &Folder) -> std::io::Result<Command> {
    let request = &kept.request;
    let (stdout, stderr) = folder.outputs()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("--workspace").arg(&kept.root);
    if let Some(profile) = &request.profile {
        command.arg(format!("--profile={profile}"));
    }
    command.arg("run").arg(format!("--execution-id={id}"));
    command.arg("--outcome-file").arg(folder.outcome_file());
    let wait = request.wait.clone().unwrap_or_else(|| WAIT.to_owned());
    let options = [
        ("--wait", Some(&wait)),
        ("--post-check", request.post_check.as_ref()),
        ("--check", request.check.as_ref()),
        ("--post-check-timeout", request.post_check_timeout.as_ref()),
        ("--timeout", request.timeout.as_ref()),
        ("--settle-by", request.settle_by.as_ref()),
        ("--on-dirty", request.on_dirty.as_ref()),
        ("--verify", request.verify.as_ref()),
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
    command.env_remove(CLAIM_TOKEN);
    if let Some(token) = &request.claim_token {
        // Not on the command line, where everybody may read it.
        command.env(CLAIM_TOKEN, token);
    }
    Ok(command)
}

/// The driver is over, or never was: written down, and told to those who wait.
pub(super) fn finish(server: &Server, job: &Job, exit_code: Option<u8>) {
    let id = &job.id;
    let finished = Finished { exit_code, at: clock::now_rfc3339() };
    if let Err(error) = job.folder.finish(&finished) {
        tracing::warn!(%id, %error, "the end of a submission could not be written down");
    }
    if let Some(entry) = server.entries().remove(&server.name(job)) {
        entry.phase.send_replace(Phase::Finished);
    }
    // A fence of a claim that is over is nobody's business any more.
    if let Ok(Some(kept)) = job.folder.kept()
        && kept.request.claim_token.is_some()
    {
        let request = Submission { claim_token: None, ..kept.request.clone() };
        if let Err(error) = job.folder.renew(&Kept { request, ..kept }) {
            tracing::warn!(%id, %error, "the claim token of a submission stays");
        }
    }
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

/// Cancels what has no attempt yet; `begun` says whether it has.
///
/// # Errors
/// That it was cancelled cannot be kept: then it was not.
pub(super) fn cancel_unrecorded(
    server: &Server,
    job: &Job,
    begun: bool,
) -> Result<Cancelled, Failure> {
    let mut entries = server.entries();
    let name = server.name(job);
    let Some(entry) = entries.get(&name) else { return Ok(Cancelled::Row) };
    let phase = *entry.phase.borrow();
    match (phase, entry.driver.and_then(Pid::from_raw)) {
        (Phase::Queued, _) => {
            // As `worktx run` exits for an execution that is cancelled.
            let finished = Finished { exit_code: Some(CANCELLED), at: clock::now_rfc3339() };
            job.folder.finish(&finished).map_err(Failure::io("keeping the cancel"))?;
            if let Some(entry) = entries.remove(&name) {
                entry.phase.send_replace(Phase::Finished);
            }
            Ok(Cancelled::Queued)
        }
        (_, Some(driver)) if !begun => {
            // A child that was not reaped: the pid is its own.
            let _ = kill_process(driver, Signal::INT);
            Ok(Cancelled::Told)
        }
        (_, None) if !begun => Err(Failure::impossible(
            format!("a driver of an earlier server is about to begin {}", job.id),
            "ask again in a moment",
        )),
        _ => Ok(Cancelled::Row),
    }
}

/// Begins nothing more, waits for what runs, interrupts what is left, and waits for that.
pub(super) async fn drain(server: &Server, patience: Duration) {
    server.draining.send_replace(true);
    if tokio::time::timeout(patience, idle(server)).await.is_ok() {
        return;
    }
    for ((_, id), entry) in &*server.entries() {
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
