//! A first look at a work tree for people who ask how it stands: by libgit2, without the lock and
//! without the manifest, writing nothing.
//!
//! # Limitations
//! It sees what `git status` would see. Files whose index entry is marked assume-unchanged, and
//! files under a filter that libgit2 does not have, are judged by `run` alone, which reads bytes.

use std::path::Path;

use crate::git::objects::odb::set_up_library;
use crate::git::workspace::Workspace;
use crate::tx::path::RepoPath;

/// What differs in the tracked content, and what is untracked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Glance {
    /// The index holds conflicts here.
    pub conflicted: Vec<RepoPath>,
    /// The index differs from HEAD here.
    pub staged: Vec<RepoPath>,
    /// Tracked files differ from the index here.
    pub modified: Vec<RepoPath>,
    /// Untracked, where it was asked for: folders stand for what is in them.
    pub untracked: Vec<RepoPath>,
}

/// Whether it is git's own files that cannot be read: `run` refuses these by name.
pub fn is_damage(error: &git2::Error) -> bool {
    use git2::ErrorClass::{Index, Object, Odb, Tree, Zlib};
    matches!(error.class(), Index | Object | Odb | Tree | Zlib)
}

/// Looks. `untracked` gives the patterns of untracked paths that do not count, or is `None` where
/// untracked paths are not asked for.
pub fn glance(workspace: &Workspace, untracked: Option<&[String]>) -> Result<Glance, git2::Error> {
    let repository = open(workspace)?;
    let mut options = git2::StatusOptions::new();
    options.show(git2::StatusShow::IndexAndWorkdir).include_untracked(untracked.is_some());
    if let Some(patterns) = untracked {
        repository.add_ignore_rule(&(patterns.join("\n") + "\n"))?;
    }
    let mut found = Glance::default();
    for entry in repository.statuses(Some(&mut options))?.iter() {
        let bytes = entry.path_bytes();
        let bytes = bytes.strip_suffix(b"/").unwrap_or(bytes);
        let Ok(path) = RepoPath::new(bytes) else { continue };
        let status = entry.status();
        if status.is_conflicted() {
            found.conflicted.push(path);
            continue;
        }
        if status.is_wt_new() {
            found.untracked.push(path.clone());
        }
        if status.intersects(
            git2::Status::WT_MODIFIED
                | git2::Status::WT_DELETED
                | git2::Status::WT_TYPECHANGE
                | git2::Status::WT_RENAMED,
        ) {
            found.modified.push(path.clone());
        }
        if status.intersects(
            git2::Status::INDEX_NEW
                | git2::Status::INDEX_MODIFIED
                | git2::Status::INDEX_DELETED
                | git2::Status::INDEX_RENAMED
                | git2::Status::INDEX_TYPECHANGE,
        ) {
            found.staged.push(path);
        }
    }
    Ok(found)
}

/// Whether git would show a new file at this path of the work tree: not ignored, or tracked.
pub fn would_show(workspace: &Workspace, relative: &Path) -> Result<bool, git2::Error> {
    let repository = open(workspace)?;
    let tracked = repository.index()?.get_path(relative, 0).is_some();
    Ok(tracked || !repository.is_path_ignored(relative)?)
}

fn open(workspace: &Workspace) -> Result<git2::Repository, git2::Error> {
    set_up_library();
    let none: [&Path; 0] = [];
    git2::Repository::open_ext(workspace.root(), git2::RepositoryOpenFlags::NO_SEARCH, none)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::testkit::Repo;

    #[test]
    fn sees_what_git_status_sees_and_writes_nothing() {
        let repo = Repo::new();
        repo.commit("a", "1");
        repo.commit("b", "1");
        repo.commit(".gitignore", "*.log\n");
        let index = || std::fs::read(repo.root().join(".git/index")).expect("read");
        let before = index();
        let workspace = Workspace::discover(repo.root()).expect("found");
        repo.write("x.log", "ignored");
        assert_eq!(glance(&workspace, Some(&[])).expect("looked"), Glance::default());
        repo.write("a", "22");
        repo.write("notes/x", "untracked");
        repo.write("out/y", "excluded");
        let found = glance(&workspace, Some(&["out/".to_owned()])).expect("looked");
        let names = |paths: &[RepoPath]| paths.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(&found.modified), ["a"]);
        assert_eq!(names(&found.untracked), ["notes"]);
        assert_eq!(index(), before);
        repo.git(&["add", "a"]);
        let found = glance(&workspace, None).expect("looked");
        assert_eq!((names(&found.staged), found.untracked), (vec!["a".to_owned()], Vec::new()));
        let shows = |path: &str| would_show(&workspace, Path::new(path)).expect("looked");
        assert!(shows("hooks/new") && shows("a") && !shows("x.log"));
    }
}
