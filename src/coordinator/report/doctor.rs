//! `doctor`: everything that could be in the way, looked at and put into one sentence each.
//!
//! A check that cannot be made is a finding, never the end of the others.
//!
//! # Limitations
//! It looks and changes nothing. What a turn does is judged by `run` alone.

use std::fmt::Display;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::coordinator::attempt::drive::chain;
use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::context::Context;
use crate::coordinator::init::{classify, hooks_folder};
use crate::coordinator::report::documents::{DoctorCheck, DoctorDocument};
use crate::coordinator::report::query::is_running;
use crate::coordinator::report::status;
use crate::coordinator::settle::leftovers::leftovers;
use crate::coordinator::words::typed;
use crate::git::config::gitconfig::GitConfig;
use crate::git::files::root::Root;
use crate::git::index::IndexError;
use crate::git::objects::store::Store;
use crate::git::refs::{Head, Refs};
use crate::git::workspace::judge;
use crate::git::workspace::lockfile;
use crate::git::workspace::refusal::Refusal;
use crate::hook::install::{self, HOOK, HooksFolder, Presence};
use crate::journal::{Filter, Ledger};
use crate::process;
use crate::tx::post_check::{Capture, Origin};
use crate::tx::record::AttemptRecord;
use crate::tx::state::TxState;

/// Less free space than this is worth a word.
const LOW_SPACE: u64 = 1 << 30;
/// Less than this, and the next attempt will hardly be recorded.
const NO_SPACE: u64 = 32 << 20;

struct Checks(Vec<DoctorCheck>);

impl Checks {
    fn add(&mut self, name: &str, level: &str, detail: impl Display, hint: Option<&str>) {
        self.0.push(DoctorCheck {
            name: name.to_owned(),
            level: level.to_owned(),
            detail: detail.to_string(),
            hint: hint.map(str::to_owned),
        });
    }

    fn ok(&mut self, name: &str, detail: impl Display) {
        self.add(name, "ok", detail, None);
    }

    fn warning(&mut self, name: &str, detail: impl Display, hint: &str) {
        self.add(name, "warning", detail, Some(hint));
    }

    fn problem(&mut self, name: &str, detail: impl Display, hint: &str) {
        self.add(name, "problem", detail, Some(hint));
    }
}

/// Looks at everything.
pub fn doctor(context: &Context) -> DoctorDocument {
    let mut checks = Checks(Vec::new());
    git_directory(context, &mut checks);
    trusted(context, &mut checks);
    openat2(context, &mut checks);
    machine(context, &mut checks);
    state(context, &mut checks);
    let ledger = ledger(context, &mut checks);
    locks(context, &mut checks);
    if !lockfile::is_held(context.workspace.git_dir()).unwrap_or(false) {
        for found in leftovers(context, ledger.as_ref()) {
            match found.hint {
                None => checks.ok(found.name, found.text),
                Some(hint) => checks.warning(found.name, found.text, &hint),
            }
        }
    }
    if let Some(ledger) = &ledger {
        attempts(context, ledger, &mut checks);
    }
    configuration(context, &mut checks);
    guard(context, &mut checks);
    let healthy = checks.0.iter().all(|check| check.level != "problem");
    DoctorDocument { schema: SCHEMA, healthy, checks: checks.0 }
}

fn git_directory(context: &Context, checks: &mut Checks) {
    let workspace = &context.workspace;
    match workspace.verify(true) {
        Ok(()) => checks.ok("git directory", workspace.git_dir().display()),
        Err(error) => checks.problem("git directory", error, "look at it with: git fsck"),
    }
}

fn trusted(context: &Context, checks: &mut Checks) {
    let Err(refusals) = judge::trusted(&context.workspace, &context.git_env()) else {
        return checks.ok("repository", "yours, and of a known form");
    };
    for refusal in refusals {
        match refusal {
            Refusal::UnsafeOwner { path, owner } => {
                let text = format!("{path} belongs to another user ({owner})");
                let hint = format!("git config --global --add safe.directory '{path}'");
                checks.problem("repository", text, &hint);
            }
            other => checks.problem("repository", other.code(), "worktx status explains it"),
        }
    }
}

fn openat2(context: &Context, checks: &mut Checks) {
    let hint = "worktx needs Linux 5.6 or newer, and a container runtime whose seccomp profile \
                allows openat2";
    match Root::open(context.workspace.root()).and_then(|root| root.probe()) {
        Ok(()) => checks.ok("openat2", "allowed"),
        Err(error) => checks.problem("openat2", error, hint),
    }
}

fn machine(context: &Context, checks: &mut Checks) {
    let host = process::this_host();
    if host.boot_id.is_empty() {
        let hint = "mount /proc: without it no writer can be proven dead";
        checks.problem("boot id", "the kernel's boot id cannot be read", hint);
    } else if host.machine_id.is_empty() {
        let hint = "give the machine an /etc/machine-id: without it a restart proves nothing";
        checks.warning("boot id", "there is no machine id", hint);
    } else {
        checks.ok("boot id", host.boot_id);
    }
    let dir = existing(&context.place.state);
    match rustix::fs::statvfs(&dir) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let text = format!("{} MiB free at {}", free >> 20, dir.display());
            let hint = "free some space; `worktx gc` drops what is kept of old attempts";
            if free < NO_SPACE || (found.f_files > 0 && found.f_favail < 100) {
                checks.problem("disk space", text, hint);
            } else if free < LOW_SPACE {
                checks.warning("disk space", text, hint);
            } else {
                checks.ok("disk space", text);
            }
        }
        Err(error) => checks.warning("disk space", error, "look with: df"),
    }
}

/// The nearest directory upwards that is there.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn state(context: &Context, checks: &mut Checks) {
    let state = &context.place.state;
    let found = match std::fs::symlink_metadata(state) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            checks.ok("state directory", format!("{} is not there yet", state.display()));
            return;
        }
        Err(error) => {
            checks.problem("state directory", error, "make it accessible to your user");
            return;
        }
    };
    let own = rustix::process::geteuid().as_raw();
    let mode = found.mode() & 0o7777;
    if !found.is_dir() {
        let hint = "it must be a directory, no link: set it with `[state] dir`";
        checks.problem("state directory", format!("{} is no directory", state.display()), hint);
    } else if found.uid() != own && own != 0 {
        let text = format!("{} belongs to user {}", state.display(), found.uid());
        checks.problem("state directory", text, "run worktx as that user, or `chown` it");
    } else if mode & 0o077 != 0 {
        let text = format!("{} is open to others (mode {mode:04o})", state.display());
        let hint = format!("chmod 700 '{}'", state.display());
        checks.warning("state directory", text, &hint);
    } else {
        checks.ok("state directory", state.display());
    }
}

fn ledger(context: &Context, checks: &mut Checks) -> Option<Ledger> {
    let ledger = match context.ledger() {
        Ok(Some(ledger)) => ledger,
        Ok(None) => {
            checks.ok("ledger", "there is none yet: nothing was run here");
            return None;
        }
        Err(error) => {
            let hint = "it is never reset by worktx: bring it back from a copy, or move it away";
            checks.problem("ledger", chain(&error), hint);
            return None;
        }
    };
    if let Err(error) = ledger.quick_check() {
        let hint = "bring it back from a copy: `sqlite3 ledger.db .recover` shows what is left";
        checks.problem("ledger", error, hint);
        return Some(ledger);
    }
    match ledger.newer() {
        Some(newer) => {
            let text =
                format!("format {} is newer than {}: it is only read", newer.found, newer.known);
            checks.problem("ledger", text, "use the newer worktx");
        }
        None => checks.ok("ledger", ledger.path().display()),
    }
    clock(&ledger, checks);
    Some(ledger)
}

fn clock(ledger: &Ledger, checks: &mut Checks) {
    let newest = Filter { limit: Some(1), ..Filter::default() };
    let now = crate::base::clock::now_rfc3339();
    match ledger.attempts(&newest) {
        Ok(found) if found.first().is_some_and(|attempt| attempt.updated_at > now) => {
            let text = format!("it is {now}, before the last record of the ledger");
            checks.warning("clock", text, "set the clock: gc and --settle-by go by it");
        }
        Ok(_) => checks.ok("clock", now),
        Err(error) => checks.problem("clock", error, "see the ledger"),
    }
}

fn locks(context: &Context, checks: &mut Checks) {
    let workspace = &context.workspace;
    let (git, common) = (workspace.git_dir(), workspace.common_dir());
    let busy = lockfile::is_held(git).unwrap_or(false);
    if busy {
        let who = lockfile::last_holder(workspace).map_or_else(String::new, |h| {
            format!(" by `worktx {}`, pid {}", h.command, h.process.pid)
        });
        checks.ok("workspace lock", format!("held{who}"));
    } else {
        checks.ok("workspace lock", "free");
    }
    let own = context.place.ledger();
    if let Err(error) = lockfile::check_marker(workspace, &own.to_string_lossy()) {
        let hint = "use the ledger that it names, or settle its work there";
        checks.problem("second ledger", error, hint);
    }
    let is_own = context.own_locks();
    let mut places = vec![git.join("index.lock"), git.join("HEAD.lock")];
    places.extend(["packed-refs.lock", "config.lock"].map(|name| common.join(name)));
    if let Ok(Ok(Head::Branch(name, _))) = Refs::open(git, common).map(|refs| refs.head()) {
        places.push(common.join(format!("{name}.lock")));
    }
    let mut found = 0;
    for path in places.iter().filter(|path| path.symlink_metadata().is_ok()) {
        found += 1;
        let text = path.display();
        match (is_own(path), busy) {
            (true, true) => checks.ok("git lock", format!("{text} is held by worktx")),
            (true, false) => {
                let text = format!("{text} was left by a worktx that crashed");
                checks.problem("git lock", text, "worktx reconcile");
            }
            (false, _) => {
                let text = format!("{text} is not worktx's");
                let hint = "wait for the git command that holds it; if there is none, remove it";
                checks.problem("git lock", text, hint);
            }
        }
    }
    if found == 0 {
        checks.ok("git lock", "none");
    }
}

fn attempts(context: &Context, ledger: &Ledger, checks: &mut Checks) {
    let all = match ledger.attempts(&Filter::default()) {
        Ok(all) => all,
        Err(error) => return checks.problem("attempts", error, "see the ledger"),
    };
    let refs = Refs::open(context.workspace.git_dir(), context.workspace.common_dir());
    let store = Store::open(context.workspace.common_dir());
    let mut lost = 0;
    let mut unsettled = 0;
    for attempt in &all {
        let key = &attempt.key;
        let record: AttemptRecord = match attempt.record() {
            Ok(record) => record,
            Err(error) => {
                checks.problem("attempts", chain(&error), "see the ledger");
                continue;
            }
        };
        if let TxState::Quarantined { held, reason, .. } = &record.state {
            let begun = if held.has_begun_undo() { ", its rollback is half done" } else { "" };
            let text = format!("{key} is quarantined: {}{begun}", reason.as_str());
            checks.problem("attempts", text, &typed("show", &key.execution, ""));
        } else if !attempt.is_settled() && !is_running(attempt).unwrap_or(false) {
            let text = format!("{key} is {} and nobody drives it", attempt.state);
            checks.problem("attempts", text, "worktx reconcile");
        }
        unsettled += usize::from(!attempt.is_settled());
        // One that never started has given its pins back.
        if matches!(record.state, TxState::RolledBack { undo: None } | TxState::Open { .. }) {
            continue;
        }
        let Ok(refs) = &refs else { continue };
        for pin in record.pins.all() {
            let stands = refs.get(&pin.name);
            if matches!(&stands, Ok(Some(id)) if *id == pin.id) {
                continue;
            }
            lost += 1;
            let what = match stands {
                Ok(None) => "is gone".to_owned(),
                Ok(Some(id)) => format!("was moved to {}", id.short()),
                Err(error) => error.to_string(),
            };
            let text = format!("{} of attempt {key} {what}", pin.name);
            let alive = store.as_ref().is_ok_and(|store| store.exists(pin.id));
            if alive {
                let hint = format!("git update-ref {} {}", pin.name, pin.id);
                checks.warning("pins", text, &hint);
            } else if attempt.is_settled() {
                checks.warning("pins", text, "what it kept is gone: `worktx gc` will forget it");
            } else {
                let hint = "its object is gone too: bring it back from a copy before reconciling";
                checks.problem("pins", text, hint);
            }
        }
    }
    if unsettled == 0 {
        checks.ok("attempts", format!("{} recorded, all settled", all.len()));
    }
    match (refs, lost) {
        (Err(error), _) => checks.problem("pins", error, "look with: git fsck"),
        (Ok(_), 0) => checks.ok("pins", "every ref stands as recorded"),
        (Ok(_), _) => {}
    }
}

fn configuration(context: &Context, checks: &mut Checks) {
    let workspace = &context.workspace;
    let refs = Refs::open(workspace.git_dir(), workspace.common_dir());
    let head = refs.and_then(|refs| refs.head());
    let (branch, commit) = match &head {
        Ok(Head::Branch(name, id)) => (Some(name.as_str()), *id),
        Ok(Head::Detached(id)) => (None, Some(*id)),
        Ok(Head::Other(_)) | Err(_) => (None, None),
    };
    let config = match GitConfig::capture(workspace, &context.git_env(), branch) {
        Ok(config) => config,
        Err(error) => {
            return checks.problem("git configuration", error, "look with: git config --list");
        }
    };
    let author = context.user.values.settings.author.clone();
    match (config.committer().and_then(|_| config.author()), author) {
        (_, Some(author)) => checks.ok("identity", author),
        (Ok(author), None) => checks.ok("identity", format!("{} <{}>", author.name, author.email)),
        (Err(error), None) => {
            checks.problem("identity", error, "git config user.email you@example.org");
        }
    }
    let fsck = "look with: git fsck";
    match status::read_index(workspace) {
        Ok(_) => checks.ok("index", "can be read"),
        Err(IndexError::Split) => {
            checks.problem("index", "it is split", "git update-index --no-split-index");
        }
        Err(IndexError::Sparse) => {
            checks.problem("index", "it is sparse", "git sparse-checkout disable");
        }
        Err(error) => checks.problem("index", chain(&error), fsck),
    }
    let Some(commit) = commit else {
        return match head {
            Err(error) => checks.problem("HEAD", chain(&error), fsck),
            Ok(Head::Other(text)) => {
                let text = format!("it names no branch and no commit: {text:?}");
                checks.problem("HEAD", text, "git symbolic-ref HEAD refs/heads/BRANCH");
            }
            Ok(_) => checks.problem("HEAD", "there is no commit", "make a first commit"),
        };
    };
    post_check(context, commit, checks);
    let attributes = attributes(context, commit, &config);
    match attributes {
        Ok(found) if found.is_empty() => checks.ok("filters", "no filter drivers in use"),
        Ok(found) => {
            let hint = "files under such an attribute make the workspace no base (not supported \
                        yet)";
            checks.warning("filters", found.join(", "), hint);
        }
        Err(error) => checks.problem("filters", chain(&error), "look with: git fsck"),
    }
}

/// The post-check that the next run would capture.
fn post_check(context: &Context, commit: crate::tx::id::Oid, checks: &mut Checks) {
    let name = "post-check";
    let captured = Store::open(context.workspace.common_dir())
        .and_then(|store| store.commit(commit).map(|found| (store, found.tree)))
        .map_err(crate::coordinator::error::Failure::from)
        .and_then(|(store, tree)| context.settings(&store, tree))
        .and_then(|loaded| status::on_trial(context, &loaded));
    match captured {
        Ok(Ok(Capture::Off | Capture::Absent)) => checks.ok(name, "there is none"),
        Ok(Ok(Capture::Misconfigured { path, why })) => {
            let text = format!("{} cannot run: {why}", path.display());
            checks.warning(name, text, "worktx post-check says what would be decided");
        }
        Ok(Ok(Capture::Ready(ready))) => match ready.origin {
            Origin::File { named, .. } => checks.ok(name, named.display()),
            Origin::Command { words } => checks.ok(name, words),
        },
        Ok(Err(error)) => {
            let hint = "bring it back, or name another: --post-check, --check, `[post_check]`";
            checks.problem(name, chain(&error), hint);
        }
        Err(error) => checks.problem(name, chain(&error), "docs/configuration.md lists every key"),
    }
}

/// The attributes that could stop a run, wherever they are written, each with its file.
fn attributes(
    context: &Context,
    commit: crate::tx::id::Oid,
    config: &GitConfig,
) -> Result<Vec<String>, crate::coordinator::error::Failure> {
    let store = Store::open(context.workspace.common_dir())?;
    let mut found = Vec::new();
    let mut look = |file: &str, bytes: &[u8]| {
        for line in String::from_utf8_lossy(bytes).lines() {
            let mut words = line.split_ascii_whitespace().filter(|_| !line.starts_with('#'));
            let pattern = words.next().unwrap_or_default().to_owned();
            for word in words {
                let stops = word == "ident"
                    || word.starts_with("filter=")
                    || word.starts_with("working-tree-encoding=");
                if stops && found.len() < 10 {
                    found.push(format!("{pattern} {word} ({file})"));
                }
            }
        }
    };
    for file in [&config.system_attributes, &config.attributes, &config.info_attributes] {
        look(file.path.as_deref().unwrap_or_default(), &file.bytes);
    }
    for entry in store.tree_walk(store.commit(commit)?.tree) {
        let (path, mode, id) = entry?;
        if path.name() == b".gitattributes" && mode & 0o170_000 == 0o100_000 {
            look(&path.to_string(), &store.blob(id)?);
        }
    }
    Ok(found)
}

fn guard(context: &Context, checks: &mut Checks) {
    let folder = match hooks_folder(context) {
        Ok(folder) => folder,
        Err(error) => return checks.warning("guard hook", chain(&error), "worktx status"),
    };
    let hook = folder.join(HOOK).display().to_string();
    let path = context.variable("PATH");
    let found = process::find_program("worktx".as_ref(), context.workspace.root(), path);
    match install::look(&folder) {
        Ok(Presence::Absent) => {
            let how = match classify(&context.workspace, &folder) {
                Ok(HooksFolder::InTree) => "; its folder is content of the work tree",
                _ => "; `worktx init --guard` installs it",
            };
            checks.ok("guard hook", format!("not installed (it is optional){how}"));
        }
        Ok(Presence::Present) => match found {
            Ok(program) => checks.ok("guard hook", format!("{hook}, runs {}", program.display())),
            Err(error) => {
                let text = format!("{hook} passes everything: {error}");
                checks.warning("guard hook", text, "put worktx on the PATH of who runs git");
            }
        },
        Ok(Presence::Outdated) => {
            let text = format!("{hook} is of another version");
            checks.warning("guard hook", text, "worktx init --guard");
        }
        Ok(Presence::Asleep) => {
            let text = format!("{hook} has no run bit: git does not run it");
            checks.warning("guard hook", text, &format!("chmod +x '{hook}'"));
        }
        Err(error) => checks.warning("guard hook", error, "look at the file"),
    }
}
