//! Can the workspace be a base? Each reason against it is looked for on purpose, by files and
//! captured configuration, before any library opens the repository.
//!
//! Order rules: under the workspace lock, after reconcile. What stands in the work tree and in the
//! index is judged after this, by their own modules, with the same [`Refusal`].
//!
//! # Limitations
//! - Submodules are found by the commit's tree and by `.gitmodules`, not in `.git/modules`.
//! - A `git bisect` counts although nothing of it stands in the way of a commit: it would take the
//!   turn's commit for one of its own.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::git::config::gitconfig::{GitConfig, GitEnv};
use crate::git::files::smallfile;
use crate::git::objects::store::{Store, StoreError};
use crate::git::refs::{Head, RefError, Refs};
use crate::git::workspace::Workspace;
use crate::git::workspace::refusal::{Operation, Refusal};
use crate::tx::entry::GIT_LINK;
use crate::tx::id::{Oid, RefName};
use crate::tx::path::RepoPath;

/// At most so many submodules are named in a refusal.
const NAMED: usize = 100;

/// Something that a person should know although the workspace can be a base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum BaseWarning {
    /// HEAD is on no branch: commits will be on HEAD alone.
    DetachedHead,
    /// `commit.gpgSign` is set, and the candidate will not be signed.
    NotSigned,
    /// `core.fileMode` is off: a changed executable bit is not committed.
    FileModeIgnored,
    /// `refs/replace/` has entries; worktx reads the objects that they replace.
    ReplaceRefs,
    /// A shallow clone, or one with grafts: some history is not there.
    Shallow,
}

/// What a base is, as far as git alone says so. Serializable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseFacts {
    /// What the attempt moves: the branch, or `HEAD` when detached.
    pub branch: RefName,
    /// Whether HEAD is on no branch.
    pub detached: bool,
    /// The commit.
    pub commit: Oid,
    /// Its tree.
    pub tree: Oid,
    /// The object folders of others, as captured: [`Store::open_with`] takes them.
    pub alternates: Vec<PathBuf>,
    /// The configuration, as captured.
    pub config: GitConfig,
    /// What a person should know.
    pub warnings: Vec<BaseWarning>,
}

/// Judges the workspace. `is_own_lock` says of a lock file whether worktx made it.
///
/// `Err` is never empty.
pub fn judge(
    workspace: &Workspace,
    env: &GitEnv,
    is_own_lock: impl Fn(&Path) -> bool,
) -> Result<BaseFacts, Vec<Refusal>> {
    judge_by(workspace, env, is_own_lock, None)
}

/// As [`judge`], but without a look for submodules, which reads every folder of the commit's tree:
/// for who compares the index with that tree anyway, and finds them in it.
pub fn judge_but_submodules(
    workspace: &Workspace,
    store: &Store,
    env: &GitEnv,
    is_own_lock: impl Fn(&Path) -> bool,
) -> Result<BaseFacts, Vec<Refusal>> {
    judge_by(workspace, env, is_own_lock, Some(store))
}

/// Whether anything of the repository can be read at all: what is to be known before the ledger
/// is opened. Gives the objects, which took a while to open.
pub fn readable(workspace: &Workspace, env: &GitEnv) -> Result<Store, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let config = readable_config(workspace, env)?;
    if config.bare {
        refusals.push(Refusal::BareRepository);
    }
    let store = Store::open(workspace.common_dir())
        .map_err(|error| refusals.push(damaged(error.to_string())));
    if let Ok(store) = &store {
        base(workspace, Some(store), &mut refusals);
    }
    store.ok().filter(|_| refusals.is_empty()).ok_or(refusals)
}

/// Whether the repository is one that this user may trust, of a form that is known here.
pub fn trusted(workspace: &Workspace, env: &GitEnv) -> Result<(), Vec<Refusal>> {
    readable_config(workspace, env).map(drop)
}

fn readable_config(workspace: &Workspace, env: &GitEnv) -> Result<GitConfig, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let config = read_config(workspace, env).map_err(|refusal| vec![refusal])?;
    owners(workspace, env, &config, &mut refusals);
    format(&config, &mut refusals);
    // Of a repository of another kind nothing else can be read.
    if refusals.is_empty() { Ok(config) } else { Err(refusals) }
}

fn judge_by(
    workspace: &Workspace,
    env: &GitEnv,
    is_own_lock: impl Fn(&Path) -> bool,
    store: Option<&Store>,
) -> Result<BaseFacts, Vec<Refusal>> {
    let config = readable_config(workspace, env)?;
    let mut refusals = Vec::new();
    if config.bare {
        refusals.push(Refusal::BareRepository);
    }
    if let Some(path) = &config.worktree {
        let named = workspace.git_dir().join(path);
        if named.canonicalize().ok().as_deref() != Some(workspace.root()) {
            refusals.push(Refusal::WorktreeElsewhere { path: path.clone() });
        }
    }
    if config.sparse_checkout {
        refusals.push(Refusal::SparseCheckout);
    }
    operations(workspace, &mut refusals);
    let base = base(workspace, store, &mut refusals);
    let branch = base.as_ref().map(|base| &base.branch);
    locks(workspace, branch, is_own_lock, &mut refusals);
    match base {
        Some(base) if refusals.is_empty() => {
            let warnings = warnings(workspace, &config, base.detached);
            let Found { branch, detached, commit, tree, alternates } = base;
            Ok(BaseFacts { branch, detached, commit, tree, alternates, config, warnings })
        }
        _ => Err(refusals),
    }
}

struct Found {
    branch: RefName,
    detached: bool,
    commit: Oid,
    tree: Oid,
    alternates: Vec<PathBuf>,
}

fn read_config(workspace: &Workspace, env: &GitEnv) -> Result<GitConfig, Refusal> {
    // Where the refs are no files HEAD says nothing; then there is no `onbranch` either.
    let head = smallfile::read(&workspace.git_dir().join("HEAD")).ok().flatten();
    let head = head.and_then(|bytes| String::from_utf8(bytes).ok());
    let branch = head.as_deref().and_then(|text| text.strip_prefix("ref:")).map(str::trim);
    GitConfig::capture(workspace, env, branch)
        .map_err(|error| Refusal::BadConfig { why: error.to_string() })
}

/// git's rule since CVE-2022-24765: nobody else may own the work tree or its git directory.
fn owners(workspace: &Workspace, env: &GitEnv, config: &GitConfig, refusals: &mut Vec<Refusal>) {
    let own = rustix::process::geteuid();
    let root = workspace.root().to_string_lossy();
    let safe = config.safe_directories.iter().any(|dir| {
        dir == "*"
            || dir.strip_suffix("/*").is_some_and(|above| {
                root.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
            })
            || dir.trim_end_matches('/') == root
    });
    if safe {
        return;
    }
    for (path, identity) in [
        (workspace.root(), workspace.root_identity()),
        (workspace.git_dir(), workspace.git_dir_identity()),
    ] {
        let by_sudo = own.is_root() && env.sudo_uid() == Some(identity.owner);
        if identity.owner != own.as_raw() && !by_sudo {
            let path = path.display().to_string();
            refusals.push(Refusal::UnsafeOwner { path, owner: identity.owner });
        }
    }
}

fn format(config: &GitConfig, refusals: &mut Vec<Refusal>) {
    if !(0..=1).contains(&config.format_version) {
        refusals.push(Refusal::FormatVersion { version: config.format_version });
    }
    for (name, value) in &config.extensions {
        match name.as_str() {
            "objectformat" if value.eq_ignore_ascii_case("sha1") => {}
            "objectformat" => refusals.push(Refusal::ObjectFormat { format: value.clone() }),
            "refstorage" if value.eq_ignore_ascii_case("files") => {}
            "refstorage" => refusals.push(Refusal::RefStorage { storage: value.clone() }),
            "noop" | "worktreeconfig" | "preciousobjects" | "relativeworktrees" => {}
            // Under version 0 git honours few of them and passes by the others.
            _ if config.format_version == 0 && name != "partialclone" => {}
            _ => refusals.push(Refusal::UnknownExtension { name: name.clone() }),
        }
    }
}

fn operations(workspace: &Workspace, refusals: &mut Vec<Refusal>) {
    let is_there = |file: &str| std::fs::symlink_metadata(workspace.git_dir().join(file)).is_ok();
    let mut found = Vec::new();
    if is_there("rebase-apply") {
        let is_am = is_there("rebase-apply/applying");
        found.push((if is_am { Operation::Am } else { Operation::Rebase }, "rebase-apply"));
    }
    for (file, operation) in [
        ("rebase-merge", Operation::Rebase),
        ("MERGE_HEAD", Operation::Merge),
        ("CHERRY_PICK_HEAD", Operation::CherryPick),
        ("REVERT_HEAD", Operation::Revert),
        ("BISECT_LOG", Operation::Bisect),
    ] {
        // A rebase leaves CHERRY_PICK_HEAD too: the outer operation is the one to end.
        if is_there(file) && (file != "CHERRY_PICK_HEAD" || found.is_empty()) {
            found.push((operation, file));
        }
    }
    if found.is_empty() && is_there("sequencer") {
        // Between two commits of a sequence neither of the HEAD files need be there.
        let todo = smallfile::read(&workspace.git_dir().join("sequencer/todo")).ok().flatten();
        let is_revert = todo.is_some_and(|todo| todo.starts_with(b"revert"));
        let operation = if is_revert { Operation::Revert } else { Operation::CherryPick };
        found.push((operation, "sequencer"));
    }
    refusals.extend(found.into_iter().map(|(operation, file)| Refusal::OperationInProgress {
        operation,
        file: file.to_owned(),
    }));
}

/// Whether a rebase is under way, or was left.
pub fn is_rebasing(workspace: &Workspace) -> bool {
    ["rebase-merge", "rebase-apply"].iter().any(|dir| workspace.git_dir().join(dir).exists())
}

/// With a store it is not looked for submodules.
fn base(
    workspace: &Workspace,
    store: Option<&Store>,
    refusals: &mut Vec<Refusal>,
) -> Option<Found> {
    let packed = workspace.common_dir().join("packed-refs");
    if std::fs::symlink_metadata(&packed).is_ok_and(|meta| !meta.is_file()) {
        refusals.push(damaged(format!("{} is no file", packed.display())));
        return None;
    }
    let refs = Refs::open(workspace.git_dir(), workspace.common_dir());
    let (branch, detached, commit) = match refs.and_then(|refs| refs.head()) {
        Ok(Head::Branch(name, Some(id))) => (name, false, id),
        Ok(Head::Detached(id)) => (RefName("HEAD".to_owned()), true, id),
        Ok(Head::Branch(name, None)) => {
            refusals.push(Refusal::UnbornHead { branch: name.short().to_owned() });
            return None;
        }
        Ok(Head::Other(text)) => {
            refusals.push(damaged(format!("HEAD says {text:?}")));
            return None;
        }
        Err(error) => {
            refusals.push(unreadable(&error));
            return None;
        }
    };
    if !detached {
        let file = smallfile::read(&workspace.common_dir().join(branch.as_str()));
        if file.ok().flatten().is_some_and(|text| text.starts_with(b"ref:")) {
            refusals.push(Refusal::SymbolicBranch { branch: branch.short().to_owned() });
            return None;
        }
    }
    let found = match store {
        Some(store) => tree(store, commit),
        None => Store::open(workspace.common_dir()).and_then(|store| {
            let found = tree(&store, commit)?;
            submodules(&store, found.0, refusals)?;
            Ok(found)
        }),
    };
    match found {
        Ok((tree, alternates)) => Some(Found { branch, detached, commit, tree, alternates }),
        Err(error) => {
            refusals.push(damaged(error.to_string()));
            None
        }
    }
}

fn tree(store: &Store, commit: Oid) -> Result<(Oid, Vec<PathBuf>), StoreError> {
    Ok((store.commit(commit)?.tree, store.alternates().to_vec()))
}

fn submodules(store: &Store, tree: Oid, refusals: &mut Vec<Refusal>) -> Result<(), StoreError> {
    let mut submodules = Vec::new();
    // Folders only: in a tree of a hundred thousand files there are few of them.
    let mut stack: Vec<(Option<RepoPath>, Oid)> = vec![(None, tree)];
    while let Some((dir, id)) = stack.pop() {
        for entry in store.tree(id)? {
            let is_list = dir.is_none() && entry.name == ".gitmodules";
            if !entry.is_tree() && entry.mode != GIT_LINK && !is_list {
                continue;
            }
            let Ok(name) = RepoPath::new(entry.name.clone()) else {
                refusals.push(damaged(format!("the tree {id} holds the name {:?}", entry.name)));
                continue;
            };
            let path = RepoPath::join(dir.as_ref(), name.as_bytes());
            if entry.is_tree() {
                stack.push((Some(path), entry.id));
            } else if submodules.len() < NAMED {
                submodules.push(path);
            }
        }
    }
    if !submodules.is_empty() {
        submodules.sort();
        refusals.push(Refusal::Submodules { paths: submodules });
    }
    Ok(())
}

fn locks(
    workspace: &Workspace,
    branch: Option<&RefName>,
    is_own_lock: impl Fn(&Path) -> bool,
    refusals: &mut Vec<Refusal>,
) {
    let (git, common) = (workspace.git_dir(), workspace.common_dir());
    let mut places = vec![git.join("index.lock"), git.join("HEAD.lock")];
    places.extend(["packed-refs.lock", "config.lock"].map(|name| common.join(name)));
    if let Some(branch) = branch.filter(|branch| branch.as_str() != "HEAD") {
        places.push(common.join(format!("{branch}.lock")));
    }
    for path in places {
        if std::fs::symlink_metadata(&path).is_ok() && !is_own_lock(&path) {
            refusals.push(Refusal::ForeignLock { path: path.display().to_string() });
        }
    }
}

fn warnings(workspace: &Workspace, config: &GitConfig, detached: bool) -> Vec<BaseWarning> {
    let common = workspace.common_dir();
    let holds = |name: &str| common.join(name).metadata().is_ok_and(|meta| meta.len() > 0);
    let refs = Refs::open(workspace.git_dir(), common);
    let replaced = refs
        .and_then(|refs| refs.list("refs/replace"))
        .is_ok_and(|list| !list.refs.is_empty() || !list.broken.is_empty());
    [
        (detached, BaseWarning::DetachedHead),
        (config.gpg_sign, BaseWarning::NotSigned),
        (!config.file_mode, BaseWarning::FileModeIgnored),
        (replaced, BaseWarning::ReplaceRefs),
        (holds("shallow") || holds("info/grafts"), BaseWarning::Shallow),
    ]
    .into_iter()
    .filter_map(|(is_so, warning)| is_so.then_some(warning))
    .collect()
}

fn damaged(why: String) -> Refusal {
    Refusal::Damaged { why }
}

fn unreadable(error: &RefError) -> Refusal {
    damaged(error.to_string())
}

#[cfg(test)]
mod tests;
