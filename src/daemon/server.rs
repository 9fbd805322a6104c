//! What one server has: the work trees, their state directories, what was submitted and runs.
//!
//! Order rule: the lock of a state directory is taken before anything of it is written.
//!
//! # Limitations
//! The work trees are those of the start; another one needs a restart, which loses nothing.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use notify::Watcher as _;
use tokio::sync::{Semaphore, watch};

use super::documents::Phase;
use super::drivers::Job;
use super::guard::Leases;
use super::metrics::Metrics;
use super::watching::{self, Told};
use super::{Describe, Options};
use crate::config::Flags;
use crate::coordinator::context::{Context, Invocation};
use crate::coordinator::error::Failure;
use crate::coordinator::place::PRIVATE_FILE;
use crate::coordinator::report::documents::ReconcileDocument;
use crate::coordinator::session;
use crate::git::workspace::Workspace;
use crate::journal::Owner;
use crate::tx::id::ExecutionId;
use crate::tx::verdict::Status;

/// Held by a server as long as it lives; its text is the server's pid.
const LOCK: &str = "serve.lock";
/// How long a killed server may take to be gone, and how often that is asked.
const DYING: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(20);

/// A work tree that is served.
pub(super) struct Served {
    /// Its name among the work trees of its repository.
    pub(super) id: String,
    /// Its root.
    pub(super) root: PathBuf,
    /// Which of [`Server::states`].
    pub(super) state: usize,
    /// What its watch does; set when it begins.
    pub(super) watched: OnceLock<Told>,
    /// One driver at a time, in the order of their submissions.
    pub(super) turn: Arc<Semaphore>,
    invocation: Invocation,
}

impl Served {
    /// Whether the work tree stands where it was found.
    pub(super) fn is_there(&self) -> bool {
        Workspace::discover(&self.root).is_ok_and(|found| found.root() == self.root)
    }

    /// The workspace as it stands now.
    pub(super) fn context(&self) -> Result<Context, Failure> {
        Context::find(self.invocation.clone())
    }

    /// The profile that the server was started with: everything that it starts has it too.
    pub(super) fn profile(&self) -> Option<&String> {
        self.invocation.flags.profile.as_ref()
    }
}

/// A state directory, of one or several work trees.
pub(super) struct State {
    /// Where it is.
    pub(super) path: PathBuf,
    /// The first work tree of it: which of [`Server::served`].
    pub(super) first: usize,
    /// Grows when the ledger may have changed.
    pub(super) changed: watch::Receiver<u64>,
    _lock: File,
    /// `None` where files cannot be watched: then those who follow look again by time.
    _watcher: Option<notify::RecommendedWatcher>,
}

/// Names a submission: the state directory that it is kept in (which of [`Server::states`]), and its
/// execution. Two repositories may have one of the same id.
pub(super) type Name = (usize, ExecutionId);

/// A submission that is not over.
pub(super) struct Entry {
    /// Which of [`Server::served`].
    pub(super) served: usize,
    /// How far it is.
    pub(super) phase: watch::Sender<Phase>,
    /// The driver, where this server started it.
    pub(super) driver: Option<Owner>,
    /// How many drivers of it were killed before they had done anything.
    pub(super) killed: u8,
}

/// What a command of worktx came to.
pub(super) struct Called {
    /// Its exit code.
    pub(super) code: i32,
    /// Its document.
    pub(super) out: Vec<u8>,
    /// What it said on stderr.
    pub(super) said: String,
}

/// The server.
pub(super) struct Server {
    pub(super) served: Vec<Served>,
    pub(super) states: Vec<State>,
    /// Bounds the drivers, all together.
    pub(super) slots: Semaphore,
    pub(super) entries: Mutex<HashMap<Name, Entry>>,
    /// Submissions are taken one after the other, and nothing is cancelled meanwhile.
    pub(super) submitting: tokio::sync::Mutex<()>,
    pub(super) leases: Leases,
    pub(super) metrics: Metrics,
    pub(super) describe: Describe,
    /// Grows to `true` when no more work is begun.
    pub(super) draining: watch::Sender<bool>,
    is_ready: AtomicBool,
    /// One handle for each who follows an execution to its end.
    following: Arc<()>,
}

impl Server {
    /// Finds the work trees, takes their locks, brings their ledgers up to date.
    pub(super) fn open(options: &Options) -> Result<Self, Failure> {
        let (mut served, mut states) = (Vec::<Served>::new(), Vec::<State>::new());
        for dir in &options.workspaces {
            let flags = Flags { profile: options.profile.clone(), ..Flags::default() };
            let mut invocation = Invocation::of_process(Some(dir.clone()), flags)?;
            let context = Context::find(invocation.clone())?;
            let root = context.workspace.root().to_owned();
            if served.iter().any(|other| other.root == root) {
                continue;
            }
            context.place.create(context.workspace.common_dir())?;
            let known = states.iter().position(|state| state.path == context.place.state);
            let state = if let Some(known) = known {
                known
            } else {
                states.push(open_state(&context, served.len())?);
                states.len() - 1
            };
            // By its root from now on, whatever becomes of the directory that was named.
            invocation.workspace = Some(root.clone());
            let turn = Arc::new(Semaphore::new(1));
            let id = context.workspace.id();
            served.push(Served { id, root, state, watched: OnceLock::new(), turn, invocation });
        }
        let slots = match options.max_running {
            0 => served.len(),
            bound => bound,
        };
        Ok(Self {
            served,
            states,
            slots: Semaphore::new(slots),
            entries: Mutex::default(),
            submitting: tokio::sync::Mutex::default(),
            leases: Leases::default(),
            metrics: Metrics::new(),
            describe: options.describe,
            draining: watch::Sender::new(false),
            is_ready: AtomicBool::new(false),
            following: Arc::default(),
        })
    }

    /// Settles what crashes left, by drivers, before anything new begins.
    pub(super) async fn reconcile(&self) -> Result<(), Failure> {
        for state in &self.states {
            let served = &self.served[state.first];
            let Called { code, out, .. } = self.call(served, &["reconcile", "--json"]).await?;
            let said: Option<ReconcileDocument> = serde_json::from_slice(&out).ok();
            if let Some(said) = said {
                tracing::info!(
                    state = %state.path.display(), left = said.left,
                    attempts = said.attempts.len(), "reconciled"
                );
            } else {
                tracing::warn!(state = %state.path.display(), code, "not reconciled");
            }
        }
        Ok(())
    }

    /// Begins to watch the work trees.
    pub(super) fn watch(&self) -> Result<(), Failure> {
        for served in &self.served {
            let context = served.context()?;
            if context.user.values.watches > 0 {
                let told = watching::begin(&context, context.user.values.watches)?;
                served.watched.get_or_init(|| told);
            }
        }
        Ok(())
    }

    /// Has the work trees looked at, so that the watches know them before the first turn. One that
    /// cannot be a base now is known after the first turn that begins.
    pub(super) async fn warm_up(&self) {
        for served in self.served.iter().filter(|served| served.watched.get().is_some()) {
            if let Err(error) = self.call(served, &["warm-up"]).await {
                tracing::warn!(%error, root = %served.root.display(), "not looked at");
            }
        }
    }

    /// Runs a command of worktx on a work tree, as a process of its own.
    pub(super) async fn call(&self, served: &Served, words: &[&str]) -> Result<Called, Failure> {
        let output = tokio::process::Command::new("/proc/self/exe")
            .arg("--workspace")
            .arg(&served.root)
            .args(served.profile().map(|profile| format!("--profile={profile}")))
            .args(words)
            .current_dir(&served.root)
            .stdin(Stdio::null())
            .process_group(0)
            .output()
            .await
            .map_err(Failure::io(format!("starting worktx {}", words.join(" "))))?;
        let code = output.status.code().unwrap_or(i32::from(u8::MAX));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !said.is_empty() {
            tracing::info!(code, command = words.join(" "), said = said.trim_end(), "called");
        }
        Ok(Called { code, out: output.stdout, said })
    }

    /// The work tree that a request names; the only one where it names none.
    pub(super) fn find(&self, workspace: Option<&str>) -> Result<usize, Failure> {
        let Some(name) = workspace else {
            return match self.served.len() {
                1 => Ok(0),
                _ => Err(Failure::Usage(
                    "several work trees are served: name one as `workspace`".to_owned(),
                )),
            };
        };
        let none = || Failure::impossible(format!("{name} is not served"), "GET /v1/workspaces");
        let path = std::path::absolute(name).map_err(|_| none())?;
        // As far as it is there; the rest may be made by a command.
        let there = path.ancestors().find_map(|dir| Some((dir, dir.canonicalize().ok()?)));
        let (dir, there) = there.ok_or_else(none)?;
        let position = |root: &Path| self.served.iter().position(|served| served.root == root);
        // Also one that is damaged, or is no work tree any more, by its own name.
        let path = path.strip_prefix(dir).map_or_else(|_| there.clone(), |rest| there.join(rest));
        if let Some(at) = position(&path).or_else(|| position(&there)) {
            return Ok(at);
        }
        // A work tree beneath another one is another one, whether it is served or not.
        let found = Workspace::discover(&there);
        let root = found.as_ref().map_or(there.as_path(), Workspace::root);
        position(root).ok_or_else(none)
    }

    /// The workspace of a work tree, or of another one with the same ledger where that one is gone.
    pub(super) fn context_near(&self, served: usize) -> Result<Context, Failure> {
        let wanted = &self.served[served];
        let others = self.served.iter().enumerate();
        let mut others = others.filter(|(at, other)| *at != served && other.state == wanted.state);
        wanted
            .context()
            .or_else(|gone| others.find_map(|(_, other)| other.context().ok()).ok_or(gone))
    }

    /// The name of a submission.
    pub(super) fn name(&self, job: &Job) -> Name {
        (self.served[job.served].state, job.id.clone())
    }

    /// The work tree of a state directory that has this name, if it is served.
    pub(super) fn named(&self, state: usize, id: &str) -> Option<usize> {
        self.served.iter().position(|served| served.state == state && served.id == id)
    }

    /// Whether an execution has succeeded, by its row.
    pub(super) fn has_succeeded(&self, served: usize, id: &ExecutionId) -> Result<bool, Failure> {
        let Some(ledger) = self.context_near(served)?.ledger()? else { return Ok(false) };
        Ok(ledger.execution(id)?.is_some_and(|found| found.row.status == Status::Success))
    }

    /// The number of the last attempt of an execution; 0 where there is none.
    pub(super) fn last_attempt(&self, served: usize, id: &ExecutionId) -> Result<u32, Failure> {
        let Some(ledger) = self.context_near(served)?.ledger()? else { return Ok(0) };
        let row = ledger.execution(id)?.map(|found| found.row);
        Ok(row.and_then(|row| row.current_attempt).map_or(0, |attempt| attempt.0))
    }

    /// The folder of state of a work tree.
    pub(super) fn state_of(&self, served: usize) -> &State {
        &self.states[self.served[served].state]
    }

    pub(super) fn entries(&self) -> MutexGuard<'_, HashMap<Name, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be held by a stream that ends with its execution.
    pub(super) fn following(&self) -> Arc<()> {
        Arc::clone(&self.following)
    }

    /// Whether such a stream is not at its end.
    pub(super) fn is_followed(&self) -> bool {
        Arc::strong_count(&self.following) > 1
    }

    pub(super) fn set_ready(&self) {
        self.is_ready.store(true, Ordering::Relaxed);
    }

    /// Whether requests for work are taken.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed) && !*self.draining.borrow()
    }
}

fn open_state(context: &Context, first: usize) -> Result<State, Failure> {
    let path = context.place.state.clone();
    let lock = take(&path.join(LOCK))?;
    session::write_ledger(&context.place)?;
    let (sender, changed) = watch::channel(0);
    let watcher = watch_ledger(&path, sender)
        .inspect_err(|error| {
            tracing::warn!(%error, "the ledger cannot be watched: events come by time");
        })
        .ok();
    Ok(State { path, first, changed, _lock: lock, _watcher: watcher })
}

fn take(path: &Path) -> Result<File, Failure> {
    let io = || Failure::io(format!("taking {}", path.display()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE_FILE)
        .open(path)
        .map_err(io())?;
    // One that was killed a moment ago may not be gone yet: its successor waits for that.
    let until = Instant::now() + DYING;
    let mut locked = file.try_lock();
    while matches!(locked, Err(TryLockError::WouldBlock)) && Instant::now() < until {
        std::thread::sleep(RETRY);
        locked = file.try_lock();
    }
    match locked {
        Ok(()) => {
            let write = |file: &mut File| {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())
            };
            write(&mut file).map_err(io())?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let who = pid.trim();
            Err(Failure::impossible(
                format!("another worktx serve (pid {who}) serves this repository"),
                "worktx serve --check asks whether it is well",
            ))
        }
        Err(TryLockError::Error(error)) => Err(io()(error)),
    }
}

/// Tells whenever a file of the ledger is changed.
fn watch_ledger(
    state: &Path,
    changed: watch::Sender<u64>,
) -> notify::Result<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let is_change = event.is_ok_and(|event| {
            let of_ledger = |path: &PathBuf| {
                path.file_name()
                    .is_some_and(|name| name.as_encoded_bytes().starts_with(b"ledger.db"))
            };
            // Readers open and close it too; a lost event says so by asking for a rescan.
            event.need_rescan() || (!event.kind.is_access() && event.paths.iter().any(of_ledger))
        });
        if is_change {
            changed.send_modify(|number| *number += 1);
        }
    })?;
    watcher.watch(state, notify::RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// What a handler holds.
pub(super) type Shared = Arc<Server>;
