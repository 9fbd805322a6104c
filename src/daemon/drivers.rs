//! Submissions become drivers: `worktx run`, one at a time on a work tree, in their order.
//!
//! Order rule: the driver's lock is held, and its start written down, before it exists; who it is,
//! as soon as it does.
//!
//! # Limitations
//! A driver that an earlier server began is waited for by its lock: its exit code is that of the
//! outcome that it left. One whose server is killed in the instant of its start, before it could be
//! written down, cannot be told to end until it has an attempt.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use tokio::process::Command;
use tokio::sync::watch;

use super::documents::Phase;
use super::server::{Entry, Served, Server, Shared};
use super::standing;
use super::submission::{Folder, Kept};
use crate::coordinator::error::Failure;
use crate::journal::{Filter, Owner};
use crate::process::{self, Request};
use crate::tx::id::ExecutionId;

/// How long a driver waits for somebody else's work on its workspace, unless the request says.
const WAIT: &str = "10m";
/// What `worktx run` takes a claim token from.
const CLAIM_TOKEN: &str = "WORKTX_CLAIM_TOKEN";
/// The handle of the lock in a driver.
const LOCK_FD: i32 = 3;
/// After the interrupt of a drain, drivers have this long to roll back.
const ROLL_BACK: Duration = Duration::from_mins(1);
/// How long those who follow what is over may take to read its end, and how often that is asked.
const FOLLOWERS: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often a work tree that is gone is looked for, where something waits for it.
const LOOK_FOR_TREE: Duration = Duration::from_secs(1);

/// A submission that is to be run, or runs.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// Which of [`Server::served`].
    pub(super) served: usize,
    pub(super) id: ExecutionId,
    pub(super) folder: Folder,
}

fn enter(server: &Server, job: &Job, phase: Phase) {
    let (mut entries, name) = (server.entries(), server.name(job));
    // As often as it was begun again.
    let killed = entries.get(&name).map_or(0, |entry| entry.killed);
    let phase = watch::Sender::new(phase);
    entries.insert(name, Entry { served: job.served, phase, driver: None, killed });
}

/// Begins a submission in its turn.
pub(super) fn enqueue(server: &Shared, job: Job) {
    enter(server, &job, Phase::Queued);
    let server = Shared::clone(server);
    tokio::spawn(async move {
        let Ok(_turn) = server.served[job.served].turn.acquire().await else { return };
        let mut is_told = false;
        let _slot = loop {
            let Ok(slot) = server.slots.acquire().await else { return };
            if is_there(&server, job.served).await {
                break slot;
            }
            // It waits in its place, and keeps nobody from the others.
            drop(slot);
            if !server.entries().contains_key(&server.name(&job)) {
                return;
            }
            if !std::mem::replace(&mut is_told, true) {
                let root = server.served[job.served].root.display();
                tracing::warn!(id = %job.id, %root, "a submission waits for a work tree that is gone");
            }
            tokio::time::sleep(LOOK_FOR_TREE).await;
        };
        let id = &job.id;
        let lock = lock_of(&job.folder).await;
        if *server.draining.borrow() {
            // It is kept: the next server begins it.
            return;
        }
        // Nothing is waited for between this and the driver's start.
        if !server.entries().contains_key(&server.name(&job)) {
            // Cancelled while it waited.
            return;
        }
        if job.folder.finished().is_some() {
            // An end that was written down is one, whoever queues it.
            if let Some(entry) = server.entries().remove(&server.name(&job)) {
                entry.phase.send_replace(Phase::Finished);
            }
            return;
        }
        let driven = match lock {
            Ok(lock) => drive(&server, &job, lock).await,
            Err(error) => Err(error),
        };
        let status = match driven {
            Ok(status) => {
                tracing::info!(%id, code = status.code(), "a driver is over");
                Some(status)
            }
            Err(error) if !is_there(&server, job.served).await => {
                tracing::warn!(%id, %error, "its work tree went just now");
                standing::set_back(&job);
                begin_again(&server, job);
                return;
            }
            Err(error) => {
                tracing::warn!(%id, %error, "no driver could be started");
                let why = format!("no driver could be started: {error}");
                let code = standing::leave(&server, &job, "not_started", &why);
                standing::finish(&server, &job, Some(code));
                return;
            }
        };
        let (done, closing) = (job.clone(), Shared::clone(&server));
        let closed =
            tokio::task::spawn_blocking(move || standing::close(&closing, &done, status)).await;
        if matches!(closed, Ok(true)) {
            begin_again(&server, job);
        }
    });
}

/// Whether a work tree stands where it was found; waiting for a disk holds nobody up.
async fn is_there(server: &Shared, served: usize) -> bool {
    let asked = Shared::clone(server);
    tokio::task::spawn_blocking(move || asked.served[served].is_there()).await.unwrap_or(false)
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
        let (done, closing) = (job.clone(), Shared::clone(&server));
        let closed =
            tokio::task::spawn_blocking(move || standing::close(&closing, &done, None)).await;
        if matches!(closed, Ok(true)) {
            begin_again(&server, job);
        }
    });
}

/// A driver went before it had done anything: the next one begins it, in a drain the next server's.
fn begin_again(server: &Shared, job: Job) {
    if *server.draining.borrow() {
        server.entries().remove(&server.name(&job));
    } else {
        tracing::info!(id = %job.id, "a submission is begun again: nothing of it ran");
        // It takes the place of its entry: no cancel finds it without one.
        enqueue(server, job);
    }
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

/// Starts a driver and waits for it.
async fn drive(server: &Server, job: &Job, lock: File) -> std::io::Result<ExitStatus> {
    let (id, folder) = (&job.id, &job.folder);
    let kept = folder.kept()?.ok_or(std::io::ErrorKind::NotFound)?;
    folder.start()?;
    let root = &server.served[job.served].root;
    let mut command = driver(&kept, &server.served[job.served], id, folder)?;
    let mapping = FdMapping { parent_fd: OwnedFd::from(lock), child_fd: LOCK_FD };
    command.fd_mappings(vec![mapping]).map_err(std::io::Error::other)?;
    let mut child = command.spawn()?;
    // With it goes this process's handle of the lock.
    drop(command);
    // A child that was not reaped: the pid is its own.
    let known = child.id().and_then(|pid| process::identity(i32::try_from(pid).ok()?));
    let driver = known.map(|process| Owner { host: process::this_host(), process });
    if let Some(driver) = &driver
        && let Err(error) = folder.note_driver(driver)
    {
        tracing::warn!(%id, %error, "a later server will not know this driver");
    }
    if let Some(entry) = server.entries().get_mut(&server.name(job)) {
        entry.driver = driver;
        entry.phase.send_replace(Phase::Running);
    }
    let workspace = root.display();
    tracing::info!(%id, %workspace, "a driver is at work");
    child.wait().await
}

fn driver(
    kept: &Kept,
    served: &Served,
    id: &ExecutionId,
    folder: &Folder,
) -> std::io::Result<Command> {
    let request = &kept.request;
    let (stdout, stderr) = folder.outputs()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("--workspace").arg(&served.root);
    if let Some(profile) = request.profile.as_ref().or(served.profile()) {
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
        .current_dir(served.root.join(cwd))
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

/// Begins nothing more, waits for what runs, interrupts what is left, and waits for that.
pub(super) async fn drain(server: &Server, patience: Duration) {
    server.draining.send_replace(true);
    end_drivers(server, patience).await;
    // What was said last is read by those who follow it.
    let _ = tokio::time::timeout(FOLLOWERS, async {
        while server.is_followed() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })
    .await;
}

async fn end_drivers(server: &Server, patience: Duration) {
    if tokio::time::timeout(patience, idle(server)).await.is_ok() {
        return;
    }
    for ((_, id), entry) in &*server.entries() {
        if *entry.phase.borrow() != Phase::Running {
            continue;
        }
        let folder = Folder::of(&server.state_of(entry.served).path, id);
        let known = entry.driver.clone().or_else(|| folder.driver());
        let here = known.filter(|driver| driver.host == process::this_host());
        let told = here.is_some_and(|driver| process::tell(&driver.process, Request::Interrupt));
        if !told {
            terminate_adopted(server, entry.served, id);
        }
    }
    if tokio::time::timeout(ROLL_BACK, idle(server)).await.is_err() {
        tracing::warn!("drivers go on without a server");
    }
}

/// A driver that an earlier server could not write down is known by what the ledger says of it.
fn terminate_adopted(server: &Server, served: usize, id: &ExecutionId) {
    let owner = || {
        let ledger = server.context_near(served)?.need_ledger()?;
        let filter = Filter { execution: Some(id.clone()), limit: Some(1), ..Filter::default() };
        let attempts = ledger.attempts(&filter)?;
        let owner = attempts.first().map(crate::journal::Attempt::owner).transpose()?;
        Ok::<_, Failure>(owner.flatten())
    };
    match owner() {
        Ok(Some(owner)) if process::is_alive(&owner.host, &owner.process) == Some(true) => {
            process::tell(&owner.process, Request::Interrupt);
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
