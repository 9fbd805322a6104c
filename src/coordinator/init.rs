//! `init`: the state directory and the ledger, and the guard hook in or out. Nothing in the work
//! tree is made or changed, so that `git status` says afterwards what it said before.
//!
//! # Limitations
//! A hooks folder that is content of the work tree is left to its owner.

use std::path::{Path, PathBuf};

use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::report::documents::InitDocument;
use crate::coordinator::session::write_ledger;
use crate::git::config::gitconfig::GitConfig;
use crate::git::refs::{Head, Refs};
use crate::git::workspace::Workspace;
use crate::git::workspace::glance::would_show;
use crate::git::workspace::lockfile::{Holder, WorkspaceLock};
use crate::hook::install::{self, Change, HOOK, HooksFolder, Presence};
use crate::process;

/// What to do with the guard hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardWish {
    /// Put it in, or bring it up to date.
    Install,
    /// Take it out.
    Remove,
    /// Leave it as it is.
    Leave,
}

/// The hooks folder of a workspace, by the configuration as it is now.
pub fn hooks_folder(context: &Context) -> Result<PathBuf, Failure> {
    let workspace = &context.workspace;
    let refs = Refs::open(workspace.git_dir(), workspace.common_dir())?;
    let branch = match refs.head() {
        Ok(Head::Branch(name, _)) => Some(name),
        _ => None,
    };
    let branch = branch.as_ref().map(crate::tx::id::RefName::as_str);
    let config = GitConfig::capture(workspace, &context.git_env(), branch)?;
    let path = config.hooks_path.as_deref().map(Path::new);
    Ok(install::hooks_folder(workspace.common_dir(), workspace.root(), path))
}

/// What a hook in that folder would be to git.
pub fn classify(workspace: &Workspace, folder: &Path) -> Result<HooksFolder, Failure> {
    // What is not there yet is judged by where it would be.
    let real = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let in_git = [workspace.git_dir(), workspace.common_dir()];
    if in_git.iter().any(|dir| real.starts_with(dir)) {
        return Ok(HooksFolder::Outside);
    }
    let Ok(relative) = real.strip_prefix(workspace.root()) else {
        return Ok(HooksFolder::Outside);
    };
    let shown = would_show(workspace, &relative.join(HOOK))
        .map_err(Failure::other("asking whether the hooks folder is ignored"))?;
    Ok(if shown { HooksFolder::InTree } else { HooksFolder::Ignored })
}

/// Prepares the repository.
pub fn init(context: &Context, wish: GuardWish) -> Result<InitDocument, Failure> {
    let workspace = &context.workspace;
    context.place.create(workspace.common_dir())?;
    drop(write_ledger(&context.place)?);
    let folder = hooks_folder(context)?;
    let guard = if wish == GuardWish::Leave {
        match install::look(&folder)? {
            Presence::Absent => "absent",
            Presence::Present | Presence::Outdated | Presence::Asleep => "present",
        }
    } else {
        // A turn must not find the hooks changed beneath it.
        let holder = Holder {
            process: process::own_process(),
            boot_id: process::this_host().boot_id,
            command: "init".to_owned(),
            attempt: None,
        };
        let _lock = WorkspaceLock::acquire(workspace, &holder, None)?;
        let change = if wish == GuardWish::Install {
            install::install(&folder, classify(workspace, &folder)?)?
        } else {
            install::remove(&folder)?
        };
        match change {
            Change::Installed => "installed",
            Change::Upgraded => "updated",
            Change::Removed => "removed",
            Change::Unchanged if wish == GuardWish::Install => "present",
            Change::Unchanged => "absent",
        }
    };
    let hook = !matches!(guard, "removed" | "absent");
    Ok(InitDocument {
        schema: SCHEMA,
        workspace: workspace.root().to_string_lossy().into_owned(),
        state_dir: context.place.state.to_string_lossy().into_owned(),
        guard: guard.to_owned(),
        hook: hook.then(|| folder.join(HOOK).to_string_lossy().into_owned()),
    })
}
