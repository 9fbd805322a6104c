//! The spill: where a rollback puts what a turn made beyond the limits, by rename alone.
//!
//! Nothing in it has been read, hashed or copied, so that a huge file, an endless tree or a
//! nested repository costs one rename. Things lie under numbers; `index.jsonl` has one line for
//! each, written and synced **before** the rename: a crash leaves a line without a thing, never a
//! thing without a line.
//!
//! # Limitations
//! Same file system as the work tree only: else [`SpillError::OtherFileSystem`], and an operator
//! decides. A line whose thing is not there tells of a crash, and means nothing else.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::base::durable;
use crate::tx::path::RepoPath;

/// The list of what lies in a spill, beside the things.
pub const INDEX: &str = "index.jsonl";

/// Why something could not be moved into the spill. It stands where it stood.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// The state lies on another file system than the work tree: a rename cannot reach it.
    #[error("{path}: the spill {} is on another file system", dir.display())]
    OtherFileSystem {
        /// What was to be moved.
        path: RepoPath,
        /// The spill.
        dir: PathBuf,
    },
    /// The name could not be moved for another reason, to be judged by who asked.
    #[error("{path}: cannot be moved into the spill: {errno}")]
    Rename {
        /// What was to be moved.
        path: RepoPath,
        /// Why not.
        errno: Errno,
    },
    /// The spill itself cannot be written.
    #[error("the spill {}: {source}", dir.display())]
    Folder {
        /// The spill.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// One line of the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spilled {
    /// The name in the spill.
    pub number: u64,
    /// Where it stood.
    pub path: RepoPath,
}

/// The spill folder of one attempt. Made when something is first put into it.
#[derive(Debug)]
pub struct Spill {
    dir: PathBuf,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    handle: File,
    index: File,
    next: u64,
}

impl Spill {
    /// The spill at `dir`, a folder of the state directory.
    pub const fn at(dir: PathBuf) -> Self {
        Self { dir, open: None }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves `name` of the directory `from` into the spill; `path` is what the index says of it.
    /// Returns its number. Both ends are durable after [`Spill::sync`] and a sync of `from`.
    pub fn take(
        &mut self,
        from: BorrowedFd<'_>,
        name: &std::ffi::OsStr,
        path: &RepoPath,
    ) -> Result<u64, SpillError> {
        let folder = |source| SpillError::Folder { dir: self.dir.clone(), source };
        let open = match &mut self.open {
            Some(open) => open,
            none => none.insert(Open::new(&self.dir).map_err(folder)?),
        };
        let number = open.next;
        open.next += 1;
        open.note(&Spilled { number, path: path.clone() }).map_err(folder)?;
        let to = number.to_string();
        let flags = RenameFlags::NOREPLACE;
        match renameat_with(from, name, open.handle.as_fd(), &*to, flags) {
            Ok(()) => Ok(number),
            Err(Errno::XDEV) => {
                Err(SpillError::OtherFileSystem { path: path.clone(), dir: self.dir.clone() })
            }
            Err(errno) => Err(SpillError::Rename { path: path.clone(), errno }),
        }
    }

    /// Makes the names in the spill durable. An error is final.
    pub fn sync(&self) -> Result<(), SpillError> {
        let Some(open) = &self.open else { return Ok(()) };
        let folder = |source| SpillError::Folder { dir: self.dir.clone(), source };
        open.handle.sync_all().map_err(folder)
    }

    /// What lies in the spill at `dir`: the lines whose thing is there.
    pub fn list(dir: &Path) -> Result<Vec<Spilled>, SpillError> {
        let folder = |source| SpillError::Folder { dir: dir.to_owned(), source };
        let mut lines = read_index(dir).map_err(folder)?;
        lines.retain(|line| dir.join(line.number.to_string()).symlink_metadata().is_ok());
        Ok(lines)
    }
}

impl Open {
    fn new(dir: &Path) -> io::Result<Self> {
        durable::create_dir_all(dir, 0o700)?;
        let next = read_index(dir)?.iter().map(|line| line.number).max().unwrap_or(0) + 1;
        let at = dir.join(INDEX);
        let mut index = OpenOptions::new().append(true).create(true).mode(0o600).open(&at)?;
        // Whatever a crash left half-written ends here: the line after it stands alone.
        if index.metadata()?.len() > 0 {
            index.write_all(b"\n")?;
        }
        durable::sync_dir(dir)?;
        Ok(Self { handle: File::open(dir)?, index, next })
    }

    fn note(&mut self, line: &Spilled) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.index.write_all(&bytes)?;
        self.index.sync_all()
    }
}

/// The whole lines of an index; a half-written one, left by a crash, is none.
fn read_index(dir: &Path) -> io::Result<Vec<Spilled>> {
    let file = match File::open(dir.join(INDEX)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut lines = Vec::new();
    for line in BufReader::new(file).split(b'\n') {
        lines.extend(serde_json::from_slice(&line?));
    }
    Ok(lines)
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
mod tests {
    use std::ffi::OsStr;
    use std::fs;

    use super::*;

    #[test]
    fn numbers_go_on_after_a_crash() {
        let root = tempfile::tempdir().expect("a folder");
        let tree = root.path().join("tree");
        let dir = root.path().join("state/spill/1");
        fs::create_dir_all(tree.join("huge/deep")).expect("made");
        fs::write(tree.join("big"), "big").expect("written");
        let from = File::open(&tree).expect("opened");
        let path = |text| RepoPath::new(text).expect("valid");

        let mut spill = Spill::at(dir.clone());
        let huge = spill.take(from.as_fd(), OsStr::new("huge"), &path("x\n/huge")).expect("moved");
        spill.sync().expect("synced");
        let mut torn = OpenOptions::new().append(true).open(dir.join(INDEX)).expect("opened");
        torn.write_all(b"{\"number\":7,\"pa").expect("written");

        let mut again = Spill::at(dir.clone());
        let gone = again.take(from.as_fd(), OsStr::new("none"), &path("none"));
        assert!(matches!(gone, Err(SpillError::Rename { errno: Errno::NOENT, .. })));
        let big = again.take(from.as_fd(), OsStr::new("big"), &path("big")).expect("moved");
        assert!(huge < big);
        let listed = Spill::list(&dir).expect("read");
        let want = [(huge, "x\n/huge"), (big, "big")];
        let want = want.map(|(number, text)| Spilled { number, path: path(text) });
        assert_eq!(listed, want);
        assert!(dir.join(huge.to_string()).join("deep").is_dir());
        assert_eq!(fs::read(dir.join(big.to_string())).expect("read"), b"big");
        assert_eq!(fs::read_dir(&tree).expect("read").count(), 0);
    }

    #[test]
    fn another_file_system_is_named() {
        let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
            println!("SKIPPED: no second file system at /dev/shm");
            return;
        };
        let tree = tempfile::tempdir().expect("a folder");
        fs::write(tree.path().join("big"), "big").expect("written");
        let from = File::open(tree.path()).expect("opened");
        let mut spill = Spill::at(other.path().join("spill"));
        let path = RepoPath::new("big").expect("valid");
        let moved = spill.take(from.as_fd(), OsStr::new("big"), &path);
        assert!(matches!(moved, Err(SpillError::OtherFileSystem { .. })), "{moved:?}");
        assert!(tree.path().join("big").exists());
    }
}
