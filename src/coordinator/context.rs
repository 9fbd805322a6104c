//! What every command begins with: the workspace around a directory, where its state lies, and
//! what a user has set.
//!
//! Order rule: found once, when a command begins; nothing is locked or written here.
//!
//! # Limitations
//! The repository's `.worktx.toml` is read only by who decides about a run ([`Context::settings`]):
//! it may set nothing that the other commands look at, and a fault in it must not keep a person
//! from listing what there is.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::config::{self, Flags, Loaded, Sources, UserFile};
use crate::coordinator::error::Failure;
use crate::coordinator::place::Place;
use crate::coordinator::session;
use crate::git::config::gitconfig::GitEnv;
use crate::git::objects::store::Store;
use crate::git::workspace::Workspace;
use crate::journal::Ledger;
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;

/// The variable of `--claim-token`.
const CLAIM_TOKEN: &str = "WORKTX_CLAIM_TOKEN";

/// How worktx was called.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The current directory, absolute.
    pub cwd: PathBuf,
    /// `--workspace`.
    pub workspace: Option<PathBuf>,
    /// What the command line says of settings.
    pub flags: Flags,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl Invocation {
    /// Of this process.
    pub fn of_process(workspace: Option<PathBuf>, flags: Flags) -> Result<Self, Failure> {
        let cwd = std::env::current_dir().map_err(Failure::io("finding the current directory"))?;
        Ok(Self { cwd, workspace, flags, environment: environment() })
    }
}

/// The work trees that a user's configuration has for a server; it is read outside of any work tree.
pub fn configured_workspaces(invocation: &Invocation) -> Result<Vec<PathBuf>, Failure> {
    let user = UserFile::read(&invocation.environment)?;
    let sources = Sources {
        repository: None,
        user: user.as_ref(),
        environment: &invocation.environment,
        flags: &invocation.flags,
        workspace: &invocation.cwd,
        cwd: &invocation.cwd,
    };
    Ok(config::load(&sources)?.values.workspaces)
}

/// The environment of this process, without the fence of a claim: that is worktx's own business, and
/// no command, check or hook of it gets it.
pub fn environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name != CLAIM_TOKEN).collect()
}

/// A workspace that has been found.
#[derive(Clone, Debug)]
pub struct Context {
    /// Which.
    pub workspace: Workspace,
    /// Where its state lies.
    pub place: Place,
    /// The user's settings, without the repository's.
    pub user: Loaded,
    /// How worktx was called.
    pub invocation: Invocation,
    user_file: Option<UserFile>,
}

impl Context {
    /// Finds the workspace and its state; makes nothing.
    pub fn find(invocation: Invocation) -> Result<Self, Failure> {
        let start = invocation.workspace.as_ref().map(|dir| invocation.cwd.join(dir));
        let workspace = Workspace::discover(start.as_ref().unwrap_or(&invocation.cwd))?;
        let user_file = UserFile::read(&invocation.environment)?;
        let sources = sources(&invocation, &workspace, user_file.as_ref(), None);
        let user = config::load(&sources)?;
        let place = session::find_place(&workspace, user.values.state_dir.as_deref())?;
        Ok(Self { workspace, place, user, invocation, user_file })
    }

    /// All settings: those of the repository too, as of a base's tree.
    pub fn settings(&self, store: &Store, base_tree: Oid) -> Result<Loaded, Failure> {
        let file = RepoPath::new(config::load::REPOSITORY_FILE).map_err(Failure::bug)?;
        let repository = match store.lookup(base_tree, &file)? {
            Some((mode, id)) if mode & 0o170_000 == 0o100_000 => Some(store.blob(id)?),
            _ => None,
        };
        let user_file = self.user_file.as_ref();
        let sources = sources(&self.invocation, &self.workspace, user_file, repository.as_deref());
        Ok(config::load(&sources)?)
    }

    /// A variable of the environment, if it is set and not empty.
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        let found = self.invocation.environment.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_os_str()).filter(|value| !value.is_empty())
    }

    /// What git's configuration is found by.
    pub fn git_env(&self) -> GitEnv {
        GitEnv::new(self.invocation.environment.iter().cloned())
    }

    /// The ledger for reading, if there is one.
    pub fn ledger(&self) -> Result<Option<Ledger>, Failure> {
        session::read_ledger(&self.place)
    }

    /// The ledger for reading; a failure with a hint where there is none.
    pub fn need_ledger(&self) -> Result<Ledger, Failure> {
        self.ledger()?.ok_or_else(|| {
            Failure::impossible("nothing was ever run here", "start with: worktx run -- COMMAND")
        })
    }

    /// Another work tree of the repository, or this one: by what the ledger knows of it.
    pub fn work_tree(&self, id: &str, root: &Path) -> Result<(Workspace, Place), Failure> {
        if id == self.workspace.id() {
            return Ok((self.workspace.clone(), self.place.clone()));
        }
        let workspace = Workspace::discover(root)?;
        if workspace.id() != id {
            return Err(Failure::impossible(
                format!("{} is another work tree than it was", root.display()),
                "git worktree list",
            ));
        }
        let place = session::find_place(&workspace, Some(self.place.state.as_path()))?;
        Ok((workspace, place))
    }

    /// Tells worktx's own locks of git from others', by their being the same file as a prepared
    /// one.
    pub fn own_locks(&self) -> impl Fn(&Path) -> bool + use<> {
        own_locks(&self.place.local)
    }
}

fn sources<'a>(
    invocation: &'a Invocation,
    workspace: &'a Workspace,
    user: Option<&'a UserFile>,
    repository: Option<&'a [u8]>,
) -> Sources<'a> {
    Sources {
        repository,
        user,
        environment: &invocation.environment,
        flags: &invocation.flags,
        workspace: workspace.root(),
        cwd: &invocation.cwd,
    }
}

/// Tells the locks that are links to the prepared files of any attempt of this work tree.
///
/// `local` is worktx's folder in the git directory ([`Place::local`]).
pub fn own_locks(local: &Path) -> impl Fn(&Path) -> bool + use<> {
    let folders = std::fs::read_dir(local.join("prepared")).into_iter().flatten().flatten();
    let identity = |path: &Path| {
        let found = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        Some((found.dev(), found.ino()))
    };
    let own: Vec<(u64, u64)> =
        folders.filter_map(|folder| identity(&folder.path().join("lock"))).collect();
    move |path| identity(path).is_some_and(|found| own.contains(&found))
}
