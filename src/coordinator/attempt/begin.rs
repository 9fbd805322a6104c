//! The beginning of `run`: find, lock, reconcile, judge, capture; then one db transaction opens the
//! attempt, and it is driven.
//!
//! Order rule: until the attempt is recorded, nothing of the repository is touched but worktx's
//! own state.
//!
//! # Limitations
//! `--on-dirty capture` is answered before anything is looked at.

use std::cell::RefCell;
use std::ffi::OsString;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use crate::base::durable;
use crate::base::hex::hex;
use crate::config::Loaded;
use crate::coordinator::attempt::base::{Base, base_pin};
use crate::coordinator::attempt::baseindex;
use crate::coordinator::attempt::drive::{Driver, Live, chain, time_of};
use crate::coordinator::attempt::gitdir;
use crate::coordinator::attempt::laps::Laps;
use crate::coordinator::attempt::outcome::Outcome;
use crate::coordinator::attempt::standing::{is_over, settled_first};
use crate::coordinator::attempt::trace;
use crate::coordinator::context::{Context, Invocation};
use crate::coordinator::error::Failure;
use crate::coordinator::notify;
use crate::coordinator::place::{PRIVATE_DIR, PRIVATE_FILE, Place, temporary_name};
use crate::coordinator::retention;
use crate::coordinator::session::Session;
use crate::coordinator::settle::reconcile;
use crate::coordinator::spec::AttemptSpec;
use crate::coordinator::warm::warmup::is_warming;
use crate::coordinator::warm::{BEGINNING, Warmth};
use crate::git::config::gitconfig::GitEnv;
use crate::git::objects::store::Store;
use crate::git::refs::reflog;
use crate::git::undo::restore;
use crate::git::workspace::Workspace;
use crate::git::workspace::judge::{self};
use crate::git::workspace::lockfile::{self, Holder, Marker};
use crate::git::workspace::refusal::Refusal;
use crate::hook::Capture;
use crate::hook::capture::{Request as CaptureRequest, capture};
use crate::journal::{Facts, NewAttempt, Opened};
use crate::process::{self, Command, Output, Prepared, Signals, Stdin, find_program};
use crate::tx::id::{AttemptKey, AttemptNo, ExecutionId, Pin, RefPrefix};
use crate::tx::path::RepoPath;
use crate::tx::phase::Phase;
use crate::tx::record::{AttemptRecord, Warning};
use crate::tx::settings::OnDirty;
use crate::tx::state::TxState;
use crate::tx::tag::StateTag;

/// Is told how far the look at the work tree has come; by several threads.
pub trait Watcher: std::fmt::Debug + Send + Sync {
    /// So many names have been looked at.
    fn looked_at(&self, names: u64);
    /// The look is over.
    fn over(&self);
}

/// What `run` is asked for.
#[derive(Clone, Debug)]
pub struct RunRequest {
    /// The workspace, the user's settings, how worktx was called.
    pub context: Context,
    /// The unit of work.
    pub execution: ExecutionId,
    /// The bound on the turn.
    pub timeout: Option<Duration>,
    /// When everything up to the gate must be done, RFC 3339.
    pub settle_by: Option<String>,
    /// How long to wait for a busy workspace.
    pub wait: Option<Duration>,
    /// What set it off.
    pub triggered_by: Option<String>,
    /// The fence of a pull-model claim.
    pub claim_token: Option<String>,
    /// Standard output is for the document.
    pub json: bool,
    /// Look at all, whatever a server says that it knows.
    pub verify_all: bool,
    /// The command.
    pub command: Vec<OsString>,
    /// Who wants to know how long the first look at the tree takes.
    pub watcher: Option<Arc<dyn Watcher>>,
}

/// Kinds of work that never open a transaction: no recursion.
pub const UNPROTECTED: [&str; 3] = ["validation", "maintenance", "health"];

/// Runs a command as a transaction, to its end.
///
/// # Errors
/// [`Failure`] where nothing ran, or where the end could not be recorded.
pub fn run(request: &RunRequest) -> Result<Outcome, Failure> {
    let _span = tracing::info_span!("run", execution = %request.execution).entered();
    let mut laps = Laps::default();
    laps.enter(Phase::Begin);
    let signals = Signals::install().map_err(Failure::io("installing signal handlers"))?;
    let context = &request.context;
    let Invocation { cwd, flags, .. } = &context.invocation;
    if flags.on_dirty == Some(OnDirty::Capture) {
        return Err(Failure::Usage("--on-dirty capture is not supported yet".to_owned()));
    }
    let first = request.command.first().cloned().unwrap_or_default();
    let program = find_program(&first, cwd, context.variable("PATH"))?;
    let unprotected =
        request.triggered_by.as_deref().is_some_and(|kind| UNPROTECTED.contains(&kind));
    let git_env = context.git_env();
    let store = match judge::readable(&context.workspace, &git_env) {
        Ok(store) => Some(store),
        // Of such a repository nothing can be opened, the ledger's place included.
        Err(refusals) if refusals.iter().any(is_unreadable) => {
            return Err(Failure::Refused { refusals, warnings: Vec::new() });
        }
        Err(_) => None,
    };
    let mut session = open(request, signals, &context.workspace, &context.place, store)?;
    let mut begin = Begin { laps, ..Begin::new(request, signals, program, git_env) };
    if unprotected {
        return begin.run_unprotected(&mut session, Vec::new());
    }
    let outcome = begin.run(&mut session);
    session.ledger.note_in_order();
    // The process is at its end: the kernel lets go of its maps of packs all at once.
    let Session { store, .. } = session;
    let _ = ManuallyDrop::new(store);
    outcome
}

/// Opens the session, within `--wait`; a request to end ends the wait too.
fn open(
    request: &RunRequest,
    signals: Signals,
    workspace: &Workspace,
    place: &Place,
    mut store: Option<Store>,
) -> Result<Session, Failure> {
    let until = request.wait.and_then(|wait| Instant::now().checked_add(wait));
    let warm_by = warm_by(request);
    loop {
        let opened = Session::open_by(workspace.clone(), place.clone(), "run", &mut store);
        let is_over = match (request.wait, until) {
            (None, _) => true,
            // Beyond what the clock can hold: without a bound.
            (Some(_), until) => until.is_some_and(|until| Instant::now() >= until),
        };
        match opened {
            // Each try waits a moment by itself. Who holds the lock may have objects dropped. A server
            // that begins looks at the tree, as this would: what it knows then is worth the wait.
            Err(Failure::Busy { ref holder })
                if signals.pending().is_none()
                    && (!is_over
                        || is_warming(holder.as_deref()) && warm_by > SystemTime::now()) =>
            {
                tracing::debug!("the workspace is busy: waiting");
                store = None;
            }
            Err(Failure::Busy { holder }) if signals.pending().is_some() => {
                return Err(Failure::WaitEnded { holder });
            }
            opened => return opened,
        }
    }
}

/// How long a server's first look is waited for: not beyond any bound that the caller has set.
fn warm_by(request: &RunRequest) -> SystemTime {
    let now = SystemTime::now();
    let most = if request.wait.is_some() { now } else { now + BEGINNING };
    time_of(request.settle_by.as_deref()).map_or(most, |by| most.min(by))
}

fn is_unreadable(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::BareRepository
            | Refusal::ObjectFormat { .. }
            | Refusal::RefStorage { .. }
            | Refusal::UnknownExtension { .. }
            | Refusal::FormatVersion { .. }
            | Refusal::UnsafeOwner { .. }
            | Refusal::Damaged { .. }
            | Refusal::BadConfig { .. }
    )
}

pub(in crate::coordinator) struct Begin<'r> {
    pub(super) request: &'r RunRequest,
    pub(super) signals: Signals,
    program: PathBuf,
    pub(super) git_env: GitEnv,
    pub(super) loaded: Loaded,
    laps: Laps,
    pub(super) prepared: Option<Prepared>,
    /// What was settled before anything of this one began.
    settled_first: Vec<Warning>,
    /// Nothing is to be run: a server begins.
    pub(in crate::coordinator) is_warming: bool,
}

impl<'r> Begin<'r> {
    pub(in crate::coordinator) fn new(
        request: &'r RunRequest,
        signals: Signals,
        program: PathBuf,
        git_env: GitEnv,
    ) -> Self {
        let (loaded, laps) = (request.context.user.clone(), Laps::default());
        Self {
            request,
            signals,
            program,
            git_env,
            loaded,
            laps,
            prepared: None,
            settled_first: Vec::new(),
            is_warming: false,
        }
    }

    fn run(&mut self, session: &mut Session) -> Result<Outcome, Failure> {
        let id = &self.request.execution;
        // What will not run again is no reason to take anything back.
        let again = (!is_over(session, id)?).then_some(id);
        let settled = reconcile::reconcile(session, self.signals, again)?;
        if let Some(outcome) = self.standing(session)? {
            return Ok(outcome);
        }
        self.settled_first = settled.attempts.iter().filter_map(settled_first).collect();
        self.laps.enter(Phase::Judge);
        self.prepared = Some(Prepared::start());
        if !self.request.verify_all {
            let mut warmth = Warmth::connect(&session.place, session.lock.descriptor());
            warmth.see_for_itself(&session.root);
            session.warmth = RefCell::new(warmth);
        }
        let base = match self.judge(session) {
            Ok(base) => base,
            Err(Failure::Refused { refusals, mut warnings }) => {
                // Whoever is told of the refusal has set this off, too.
                warnings.append(&mut self.settled_first);
                session.warmth.borrow_mut().rest();
                let dirty = |r: &Refusal| {
                    matches!(r, Refusal::ModifiedTracked { .. } | Refusal::StagedChanges { .. })
                };
                let on_dirty = self.loaded.values.settings.on_dirty;
                if on_dirty == OnDirty::Run && refusals.iter().all(dirty) {
                    let warning = Warning {
                        code: "unprotected".to_owned(),
                        message: "tracked files differ from HEAD, so the command ran without a transaction".to_owned(),
                    };
                    return self.run_unprotected(session, vec![warning]);
                }
                let codes: Vec<&str> = refusals.iter().map(Refusal::code).collect();
                let detail = json!({ "reasons": codes });
                session.ledger.record_event(id, None, "refused", &detail)?;
                return Err(Failure::Refused { refusals, warnings });
            }
            Err(other) => return Err(other),
        };
        self.open(session, base)
    }

    fn open(&mut self, session: &mut Session, base: Base) -> Result<Outcome, Failure> {
        self.laps.enter(Phase::Record);
        let id = self.request.execution.clone();
        let prefix = &self.loaded.values.settings.ref_prefix;
        let in_refs = largest_in_refs(session, prefix, &id)?;
        let in_ledger = session
            .ledger
            .attempts(&crate::journal::Filter {
                execution: Some(id.clone()),
                ..crate::journal::Filter::default()
            })?
            .into_iter()
            .map(|a| a.key.attempt)
            .max();
        let next = in_refs.max(in_ledger).map_or(1, |AttemptNo(n)| n + 1);
        let key = AttemptKey { execution: id, attempt: AttemptNo(next) };
        let marker = Marker {
            ledger: session.place.ledger().to_string_lossy().into_owned(),
            attempt: key.clone(),
            boot_id: process::this_host().boot_id,
        };
        lockfile::write_marker(&session.lock, &marker)?;
        let opened = self.open_as(session, base, key.clone(), (in_refs, in_ledger));
        if opened.is_err() {
            // Before it was recorded, nothing of it is to stay.
            let _ = session.forget_unrecorded(&key);
        }
        opened
    }

    fn open_as(
        &mut self,
        session: &mut Session,
        base: Base,
        key: AttemptKey,
        (in_refs, in_ledger): (Option<AttemptNo>, Option<AttemptNo>),
    ) -> Result<Outcome, Failure> {
        let settings = self.loaded.values.settings.clone();
        let prefix = RefPrefix(settings.ref_prefix.clone());
        let folder = session.place.attempt(&key);
        let making = || Failure::io("making the attempt's folder");
        let grown = durable::grow(&folder, PRIVATE_DIR).map_err(making())?;

        let context = &self.request.context;
        let home = context.variable("HOME").map(PathBuf::from);
        let path = context.variable("PATH").unwrap_or_default();
        let post_check = capture(
            &CaptureRequest {
                choice: &self.loaded.values.post_check,
                workspace: session.workspace.root(),
                home: home.as_deref(),
                search_path: path,
            },
            &folder,
        )?;
        let kept_of_it = gitdir::to_bytes(&base.git_directory)?;
        let mut kept = vec![(gitdir::NAME, kept_of_it.as_slice())];
        let index = baseindex::keep(session, base.facts.tree, &base.index, &folder)?;
        kept.extend(index.copy.as_deref().map(|bytes| (baseindex::NAME, bytes)));
        let before = in_ledger.map(|n| trace::before(session, &key.execution, n)).transpose()?;
        let before = before.flatten();
        kept.extend(before.as_deref().map(|bytes| (trace::PREVIOUS, bytes)));
        durable::write_new_files(&folder, &kept, index.file, PRIVATE_FILE)
            .map_err(Failure::io("keeping the index and the git directory's files"))?;
        grown.iter().try_for_each(|dir| durable::sync_dir(dir)).map_err(making())?;
        let index_digest = index.digest.map(|digest| hex(&digest));
        let branch = (!base.facts.detached).then(|| base.facts.branch.clone());
        let author = self.author(&base.facts)?;
        let base_pin = base_pin(session, &base, &author)?;
        let previous = before.map(|_| folder.join(trace::PREVIOUS).display().to_string());
        let root_mode = restore::root_mode(session.root.handle())
            .map_err(Failure::io("looking at the root of the work tree"))?;
        let temporary = RepoPath::new(temporary_name(&key)).map_err(Failure::bug)?;
        let log = reflog::mark_now(&session.workspace, &base.facts.branch)
            .map_err(Failure::io("reading the reflog"))?;
        let spec = AttemptSpec {
            workspace: session.workspace.clone(),
            boot_id: process::this_host().boot_id,
            branch,
            base: base.facts.commit,
            base_tree: base.facts.tree,
            settings,
            git: base.facts.config.clone(),
            author,
            post_check,
            command: self
                .request
                .command
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            log,
            index_meaning: hex(&base.index.meaning.0),
            index_digest,
            temporary,
            root_mode: Some(root_mode),
            claim_token: self.request.claim_token.clone(),
            triggered_by: self.request.triggered_by.clone(),
            settle_by: self.request.settle_by.clone(),
            other_refs: gitdir::other_refs(&session.refs)?,
            previous,
            operator: notify::capture(&self.loaded.values.operator),
        };
        let mut record = AttemptRecord::open();
        record.pins.base = Some(Pin { name: prefix.base(&key), id: base_pin });
        self.add_warnings(&mut record, &base, &spec);
        let spec_value = serde_json::to_value(&spec).map_err(Failure::bug)?;
        let workspace = session.ledger_workspace();
        let owner = Session::owner();
        let opened = session.ledger.open_attempt(
            &NewAttempt {
                execution: &key.execution,
                largest_in_refs: in_refs,
                workspace: &workspace,
                owner: &owner,
                claim_token: self.request.claim_token.as_deref(),
            },
            |_| Facts {
                record: record.clone(),
                spec: spec_value.clone(),
                detail: json!({ "base": spec.base, "command": spec.command_line() }),
            },
        )?;
        let holder = Holder {
            process: process::own_process(),
            boot_id: spec.boot_id.clone(),
            command: "run".to_owned(),
            attempt: Some(key.clone()),
        };
        session.lock.write_holder(&holder)?;
        match opened {
            Opened::Standing(row) => return Err(Failure::Standing(row.status)),
            Opened::Attempt(opened) if opened != key => {
                return Err(Failure::bug(format!("attempt {opened} was opened instead of {key}")));
            }
            Opened::Attempt(_) => {}
        }
        self.drive(session, key, spec, record, base)
    }

    fn drive(
        &mut self,
        session: &mut Session,
        key: AttemptKey,
        spec: AttemptSpec,
        record: AttemptRecord,
        base: Base,
    ) -> Result<Outcome, Failure> {
        let command = self.command(Some((&key, &spec)));
        self.laps.rest();
        let mut driver = Driver {
            session,
            key,
            spec,
            record,
            rev: 0,
            live: Live {
                command: Some(command),
                prepared: self.prepared.take(),
                timeout: self.request.timeout,
                snapshot: Some(Arc::new(base.baseline.snapshot)),
                git_directory: Some(Arc::new(base.git_directory)),
                environment: self.request.context.invocation.environment.clone(),
                laps: std::mem::take(&mut self.laps),
                ..Live::default()
            },
            signals: self.signals,
        };
        let driven = driver.drive();
        // One that no turn has taken leaves, before any other command is brought up.
        driver.live.prepared = None;
        let started = driver.record.state.tag() != StateTag::RolledBack
            && !matches!(driver.record.state, TxState::Open { turn: None });
        if let Err(failure) = driven {
            // The turn ran, and its end could not be recorded: reconcile goes on from there.
            return Err(if started {
                let status = driver.row().ok().flatten().map(|row| row.status);
                Failure::LeftOpen { key: driver.key.clone(), status, source: Box::new(failure) }
            } else {
                failure
            });
        }
        let settled = driver.state().tag().is_settled();
        let status = driver.row().ok().flatten().map(|row| row.status);
        let mut outcome = driver
            .outcome(&driver.record, status)
            .ok_or_else(|| Failure::bug("a run that came to no end"))?;
        outcome.warnings.append(&mut self.settled_first);
        let warnings = notify::tell(&mut driver);
        outcome.warnings.extend(warnings);
        let ended = driver.key;
        // The attempt is at its end, whatever becomes of what is left to tidy up: the next command
        // finds it.
        if settled && let Err(error) = lockfile::clear_marker(&session.lock) {
            tracing::warn!(error = %chain(&error), "the marker could not be removed");
        }
        let retention = self.loaded.values.settings.retention;
        if let Err(error) = retention::after_run(session, &retention, &ended) {
            // The attempt is at its end whatever becomes of old ones.
            tracing::warn!(error = %chain(&error), "old attempts could not be dropped");
        }
        Ok(outcome)
    }

    /// The command, with what the design adds to its environment.
    pub(super) fn command(&self, attempt: Option<(&AttemptKey, &AttemptSpec)>) -> Command {
        let mut env = self.request.context.invocation.environment.clone();
        let mut set = |name: &str, value: OsString| {
            env.retain(|(n, _)| n != name);
            env.push((name.into(), value));
        };
        set("WORKTX_EXECUTION_ID", self.request.execution.as_str().into());
        if let Some((key, spec)) = attempt {
            set("WORKTX_ATTEMPT", key.attempt.to_string().into());
            set("WORKTX_WORKSPACE", spec.workspace.root().into());
            set("GIT_REFLOG_ACTION", reflog::mark(key).into());
            let count = self.request.context.variable("GIT_CONFIG_COUNT");
            let count: u32 =
                count.and_then(|n| n.to_str()).and_then(|n| n.parse().ok()).unwrap_or(0);
            // A gc that a commit starts in the background would be ended with the turn, in the midst.
            let mut settings = vec![
                ("core.logAllRefUpdates", "true"),
                ("gc.autoDetach", "false"),
                ("maintenance.autoDetach", "false"),
            ];
            if spec.git.fsync.is_none() {
                // A `git gc` moves every ref, the base's pin too, into a file that git does not
                // sync: a power loss in the midst of the turn would take all of them.
                settings.push(("core.fsync", "reference"));
            }
            for (number, (key, value)) in (count..).zip(&settings) {
                set(&format!("GIT_CONFIG_KEY_{number}"), key.into());
                set(&format!("GIT_CONFIG_VALUE_{number}"), value.into());
            }
            let added = u32::try_from(settings.len()).unwrap_or(u32::MAX);
            set("GIT_CONFIG_COUNT", count.saturating_add(added).to_string().into());
            match &spec.previous {
                Some(previous) => set("WORKTX_PREVIOUS", previous.into()),
                None => env.retain(|(n, _)| n != "WORKTX_PREVIOUS"),
            }
        }
        Command {
            program: self.program.clone(),
            argv: self.request.command.clone(),
            cwd: self.request.context.invocation.cwd.clone(),
            env,
            stdin: Stdin::Inherit,
            output: if self.request.json { Output::StdoutToStderr } else { Output::Inherit },
            terminal: true,
            cgroup: true,
        }
    }

    fn add_warnings(&self, record: &mut AttemptRecord, base: &Base, spec: &AttemptSpec) {
        for warning in &base.facts.warnings {
            let (code, message) = crate::coordinator::words::base_warning(warning);
            record.warn(code, message);
        }
        for warning in &self.loaded.warnings {
            record.warn(warning.code, warning.message.clone());
        }
        if let Capture::Misconfigured { path, why } = &spec.post_check {
            record.warn(
                "post_check_misconfigured",
                format!("the post-check {} will not run: {why}", path.display()),
            );
        }
    }
}

/// The largest attempt of an execution that the refs know.
fn largest_in_refs(
    session: &Session,
    prefix: &str,
    id: &ExecutionId,
) -> Result<Option<AttemptNo>, Failure> {
    let folder = format!("{prefix}/{id}/");
    let refs = session.refs.list(&folder)?.refs;
    Ok(refs
        .iter()
        .filter_map(|(name, _)| {
            name.as_str().strip_prefix(&folder)?.split('/').next()?.parse().ok()
        })
        .map(AttemptNo)
        .max())
}

/// Whether an attempt is in a state that `reconcile` may still act on.
pub const fn is_open(tag: StateTag) -> bool {
    !tag.is_settled() && !matches!(tag, StateTag::Quarantined)
}
