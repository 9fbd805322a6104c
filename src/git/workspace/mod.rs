//! The workspace: where its work tree and its git directories are, found once and then only
//! verified.
//!
//! A search upwards happens once, when a command begins. Everything later opens by the recorded
//! paths and checks that the same directories still stand there. No variable of the environment
//! has a say in either.
//!
//! Order rules: lock and judge come after this; nothing here reads configuration.
//!
//! # Limitations
//! - Paths must be UTF-8: they stand in records and documents.
//! - `GIT_CEILING_DIRECTORIES` and `GIT_DISCOVERY_ACROSS_FILESYSTEM` are not looked at: the search
//!   stops at the edge of a file system.
//! - A `.git` that is a symbolic link is refused although git follows it: a turn could exchange it.

pub mod glance;
pub mod judge;
pub mod lockfile;
pub mod refusal;

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::git::files::smallfile;

/// What makes a directory that directory, as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The device number. overlayfs may change it at a mount.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
    /// Its owner.
    pub owner: u32,
}

/// A work tree with its git directories. Serializable: this is what the journal records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspace {
    root: PathBuf,
    git_dir: PathBuf,
    common_dir: PathBuf,
    linked: Option<String>,
    root_identity: Identity,
    git_dir_identity: Identity,
    common_dir_identity: Identity,
}

/// Why there is no workspace to be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No work tree holds the directory.
    #[error("{} is in no git work tree", start.display())]
    NotARepository {
        /// Where the search began.
        start: PathBuf,
    },
    /// A repository without a work tree.
    #[error("{} is a bare repository", git_dir.display())]
    Bare {
        /// The repository.
        git_dir: PathBuf,
    },
    /// The search began inside a git directory.
    #[error("{} is inside a git directory", start.display())]
    InsideGitDir {
        /// Where the search began.
        start: PathBuf,
    },
    /// `.git` is a symbolic link.
    #[error("{} is a symbolic link", path.display())]
    GitSymlink {
        /// The link.
        path: PathBuf,
    },
    /// There is a git directory, and it is not whole.
    #[error("{} is not a whole git directory: {why}", git_dir.display())]
    Damaged {
        /// The directory.
        git_dir: PathBuf,
        /// What is missing or wrong.
        why: String,
    },
    /// A path that cannot stand in a record.
    #[error("{path:?} is not valid UTF-8")]
    NotUtf8 {
        /// The path.
        path: PathBuf,
    },
    /// A recorded directory is another one now, or gone.
    #[error("{} is not the directory that it was", path.display())]
    Replaced {
        /// The directory.
        path: PathBuf,
        /// What was recorded.
        recorded: Identity,
        /// What stands there now, if a directory does.
        found: Option<Identity>,
    },
    /// The system said no.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// What was looked at.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Workspace {
    /// The workspace around a directory: the nearest directory upwards that holds `.git`.
    pub fn discover(start: &Path) -> Result<Self, OpenError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        let start = start.canonicalize().map_err(at(start))?;
        let device = std::fs::metadata(&start).map_err(at(&start))?.dev();
        for dir in start.ancestors() {
            if std::fs::metadata(dir).map_err(at(dir))?.dev() != device {
                break;
            }
            let dot_git = dir.join(".git");
            match std::fs::symlink_metadata(&dot_git) {
                Ok(meta) if meta.is_symlink() => {
                    return Err(OpenError::GitSymlink { path: dot_git });
                }
                Ok(meta) if meta.is_file() => return Self::at(dir, &git_file(&dot_git)?),
                Ok(meta) if meta.is_dir() => match missing_part(&dot_git) {
                    // git passes by a directory of that name that is nothing like its own.
                    Some(_) if is_unlike_git(&dot_git) => {}
                    Some(why) => return Err(OpenError::Damaged { git_dir: dot_git, why }),
                    None => return Self::at(dir, &dot_git),
                },
                Ok(_) => {
                    let why = "neither a directory nor a file".to_owned();
                    return Err(OpenError::Damaged { git_dir: dot_git, why });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(OpenError::Io { path: dot_git, source }),
            }
            if missing_part(dir).is_none() {
                return Err(if dir.file_name().is_some_and(|name| name == ".git") {
                    OpenError::InsideGitDir { start }
                } else {
                    OpenError::Bare { git_dir: dir.to_owned() }
                });
            }
        }
        Err(OpenError::NotARepository { start })
    }

    /// The workspace of a record, if its directories are the ones that were recorded.
    ///
    /// `same_boot` says whether the record was made since the machine's start: only then must the
    /// device numbers be the same too.
    pub fn open(recorded: &Self, same_boot: bool) -> Result<Self, OpenError> {
        recorded.verify(same_boot)?;
        let dot_git = recorded.root.join(".git");
        let named = match std::fs::symlink_metadata(&dot_git) {
            Ok(meta) if meta.is_dir() => dot_git,
            Ok(meta) if meta.is_file() => git_file(&dot_git)?,
            Ok(_) => return Err(OpenError::GitSymlink { path: dot_git }),
            Err(source) => return Err(OpenError::Io { path: dot_git, source }),
        };
        let now = Self::at(&recorded.root, &named)?;
        if now.git_dir != recorded.git_dir || now.common_dir != recorded.common_dir {
            let why = format!("the work tree's `.git` now leads to {}", now.git_dir.display());
            return Err(OpenError::Damaged { git_dir: recorded.git_dir.clone(), why });
        }
        Ok(now)
    }

    /// Whether the directories are still the same ones: asked before each effect.
    pub fn verify(&self, same_boot: bool) -> Result<(), OpenError> {
        for (path, recorded) in [
            (&self.root, self.root_identity),
            (&self.git_dir, self.git_dir_identity),
            (&self.common_dir, self.common_dir_identity),
        ] {
            let found = identity(path).ok();
            let same = found.is_some_and(|f| {
                f.inode == recorded.inode && (!same_boot || f.device == recorded.device)
            });
            if !same {
                return Err(OpenError::Replaced { path: path.clone(), recorded, found });
            }
        }
        match missing_part(&self.git_dir) {
            None => Ok(()),
            Some(why) => Err(OpenError::Damaged { git_dir: self.git_dir.clone(), why }),
        }
    }

    fn at(root: &Path, git_dir: &Path) -> Result<Self, OpenError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        let damaged = |why: String| OpenError::Damaged { git_dir: git_dir.to_owned(), why };
        let git_dir = &git_dir.canonicalize().map_err(|e| damaged(e.to_string()))?;
        let pointer = git_dir.join("commondir");
        let common_dir = match smallfile::read(&pointer).map_err(at(&pointer))? {
            None => git_dir.clone(),
            Some(text) => {
                let named = git_dir.join(utf8_line(&text, &pointer)?);
                named.canonicalize().map_err(|e| damaged(format!("commondir: {e}")))?
            }
        };
        if let Some(why) = missing_part(git_dir) {
            return Err(damaged(why));
        }
        let linked = match (common_dir == *git_dir, git_dir.file_name()) {
            (false, Some(name)) => Some(utf8(Path::new(name))?.to_owned()),
            _ => None,
        };
        for path in [root, git_dir, &common_dir] {
            utf8(path)?;
        }
        Ok(Self {
            root_identity: identity(root).map_err(at(root))?,
            git_dir_identity: identity(git_dir).map_err(at(git_dir))?,
            common_dir_identity: identity(&common_dir).map_err(at(&common_dir))?,
            root: root.to_owned(),
            git_dir: git_dir.clone(),
            common_dir,
            linked,
        })
    }

    /// The top of the work tree, canonical.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The git directory of this work tree: HEAD, index, locks. Canonical.
    pub fn git_dir(&self) -> &Path {
        &self.git_dir
    }

    /// The git directory that all work trees share: objects, refs, config. Canonical.
    pub fn common_dir(&self) -> &Path {
        &self.common_dir
    }

    /// Whether this is a linked work tree (`git worktree add`).
    pub fn is_linked(&self) -> bool {
        self.linked.is_some()
    }

    /// The name of this work tree among those of its repository: `main`, or `wt-` and the name
    /// of the linked one. Fit for a file name.
    pub fn id(&self) -> String {
        self.linked.as_ref().map_or_else(|| "main".to_owned(), |name| format!("wt-{name}"))
    }

    /// What makes the root that directory.
    pub fn root_identity(&self) -> Identity {
        self.root_identity
    }

    /// What makes the git directory that directory.
    pub fn git_dir_identity(&self) -> Identity {
        self.git_dir_identity
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    let meta = std::fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(Identity { device: meta.dev(), inode: meta.ino(), owner: meta.uid() })
}

/// The directory that a `.git` file names: `gitdir: <path>`.
fn git_file(path: &Path) -> Result<PathBuf, OpenError> {
    let text = smallfile::read(path)
        .map_err(|source| OpenError::Io { path: path.to_owned(), source })?
        .unwrap_or_default();
    let line = utf8_line(&text, path)?;
    let Some(target) = line.strip_prefix("gitdir: ") else {
        let why = "the file does not begin with `gitdir: `".to_owned();
        return Err(OpenError::Damaged { git_dir: path.to_owned(), why });
    };
    Ok(path.with_file_name(target))
}

fn utf8_line<'a>(text: &'a [u8], path: &Path) -> Result<&'a str, OpenError> {
    std::str::from_utf8(text)
        .map(|text| text.trim_end_matches(['\n', '\r']))
        .map_err(|_| OpenError::NotUtf8 { path: path.to_owned() })
}

fn utf8(path: &Path) -> Result<&str, OpenError> {
    path.to_str().ok_or_else(|| OpenError::NotUtf8 { path: path.to_owned() })
}

/// What a git directory lacks, by git's own rule (`is_git_directory`): HEAD, objects, refs.
fn missing_part(git_dir: &Path) -> Option<String> {
    let common = match smallfile::read(&git_dir.join("commondir")) {
        Ok(Some(text)) => match std::str::from_utf8(&text) {
            Ok(line) => git_dir.join(line.trim_end_matches(['\n', '\r'])),
            Err(_) => return Some("commondir is not text".to_owned()),
        },
        _ => git_dir.to_owned(),
    };
    let head = std::fs::symlink_metadata(git_dir.join("HEAD"));
    if !head.is_ok_and(|m| m.is_file() || m.is_symlink()) {
        return Some("HEAD is missing".to_owned());
    }
    ["objects", "refs"]
        .into_iter()
        .find(|name| !common.join(name).is_dir())
        .map(|name| format!("{name} is missing"))
}

fn is_unlike_git(dir: &Path) -> bool {
    ["HEAD", "objects", "refs", "config"]
        .iter()
        .all(|name| std::fs::symlink_metadata(dir.join(name)).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::testkit::Repo;

    #[test]
    fn finds_what_git_finds() {
        let repo = Repo::new();
        repo.commit("a/b/file", "x");
        let from = repo.root().join("a/b");
        let found = Workspace::discover(&from).expect("found");
        assert_eq!(found.root().to_str(), Some(&*repo.git(&["rev-parse", "--show-toplevel"])));
        assert_eq!(
            found.git_dir().to_str(),
            Some(&*repo.git(&["rev-parse", "--absolute-git-dir"]))
        );
        assert_eq!(found.common_dir(), found.git_dir());
        assert_eq!((found.id().as_str(), found.is_linked()), ("main", false));

        let json = serde_json::to_string(&found).expect("plain data");
        let recorded: Workspace = serde_json::from_str(&json).expect("read back");
        assert_eq!(Workspace::open(&recorded, true).expect("the same"), found);
    }

    #[test]
    fn finds_a_linked_work_tree_named_main() {
        let repo = Repo::new();
        repo.commit("file", "x");
        repo.git(&["worktree", "add", "-qb", "side", "../main"]);
        let root = repo.root().with_file_name("main");
        let found = Workspace::discover(&root).expect("found");
        assert!(found.is_linked());
        assert_eq!(found.id(), "wt-main");
        assert_eq!(found.git_dir(), repo.root().join(".git/worktrees/main"));
        assert_eq!(found.common_dir(), repo.root().join(".git"));
        Workspace::open(&found, true).expect("the same");
    }

    #[test]
    fn finds_a_git_directory_elsewhere() {
        let repo = Repo::new();
        let other = repo.root().with_file_name("elsewhere.git");
        repo.git(&["init", "-q", "--separate-git-dir", other.to_str().expect("text")]);
        let found = Workspace::discover(repo.root()).expect("found");
        assert_eq!((found.git_dir(), found.is_linked()), (&*other, false));
    }

    #[test]
    fn says_what_is_wrong() {
        let dir = tempfile::tempdir().expect("made");
        let none = Workspace::discover(dir.path());
        assert!(matches!(none, Err(OpenError::NotARepository { .. })), "{none:?}");

        let repo = Repo::new();
        repo.git(&["init", "-q", "--bare", "bare"]);
        let bare = Workspace::discover(&repo.root().join("bare/refs"));
        assert!(matches!(bare, Err(OpenError::Bare { .. })), "{bare:?}");
        let inside = Workspace::discover(&repo.root().join(".git/objects"));
        assert!(matches!(inside, Err(OpenError::InsideGitDir { .. })), "{inside:?}");

        std::fs::create_dir_all(repo.root().join("sub/.git")).expect("made");
        let found = Workspace::discover(&repo.root().join("sub")).expect("passes it by");
        assert_eq!(found.root(), repo.root());

        let moved = repo.root().with_file_name("moved");
        std::fs::rename(repo.root().join(".git"), &moved).expect("moved");
        let gone = Workspace::open(&found, true);
        assert!(matches!(gone, Err(OpenError::Replaced { .. })), "{gone:?}");
        std::os::unix::fs::symlink(&moved, repo.root().join(".git")).expect("linked");
        let link = Workspace::discover(repo.root());
        assert!(matches!(link, Err(OpenError::GitSymlink { .. })), "{link:?}");
        let link = found.verify(true);
        assert!(matches!(link, Err(OpenError::Replaced { .. })), "{link:?}");

        std::fs::remove_file(repo.root().join(".git")).expect("removed");
        std::fs::rename(&moved, repo.root().join(".git")).expect("back");
        found.verify(true).expect("the same again");
        std::fs::remove_file(repo.root().join(".git/HEAD")).expect("removed");
        for damaged in [found.verify(true).err(), Workspace::discover(repo.root()).err()] {
            assert!(matches!(damaged, Some(OpenError::Damaged { .. })), "{damaged:?}");
        }
    }
}
