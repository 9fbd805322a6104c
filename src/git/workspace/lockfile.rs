//! The workspace lock: one owner for a work tree at a time, and a durable marker beside it.
//!
//! The lock is an exclusive `flock` on `worktx-workspace` in the work tree's git directory. It
//! belongs to the *open file*, not to the process: a supervisor that inherits the handle holds the
//! same lock, and it is free only when the last handle is closed. So nobody ever calls
//! `LOCK_UN`: that would take it from all of them. The file is never unlinked: two processes could
//! then hold two files of one name. Its name does not end in `.lock`, since container entrypoints
//! delete those.
//!
//! The marker `worktx-marker` outlives every process. It names the ledger that has unsettled work
//! here, so that a second ledger refuses instead of guessing.
//!
//! Order rules: lock before anything is judged; [`WorkspaceLock::verify`] before each effect; the
//! marker is written before an attempt is recorded and removed after it is settled.
//!
//! # Limitations
//! - `flock` has no wait with a bound; [`WorkspaceLock::acquire`] tries again every 20 ms.
//! - What the file says of its holder is for people; only the kernel's lock counts.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat};
use serde::{Deserialize, Serialize};

use crate::base::durable;
use crate::git::files::smallfile;
use crate::git::workspace::Workspace;
use crate::tx::id::AttemptKey;
use crate::tx::writer::ProcessId;

/// The name of the lock file in the git directory.
pub const LOCK_NAME: &str = "worktx-workspace";
/// The name of the marker in the git directory.
pub const MARKER_NAME: &str = "worktx-marker";

/// Between two tries of [`WorkspaceLock::acquire`].
const RETRY: Duration = Duration::from_millis(20);

/// Who holds the lock, as they wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub process: ProcessId,
    /// `/proc/sys/kernel/random/boot_id` at that time.
    pub boot_id: String,
    /// What it is doing: a command of worktx.
    pub command: String,
    /// The attempt, once there is one.
    pub attempt: Option<AttemptKey>,
}

/// Why the lock is not to be had, or not ours any more.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody holds it.
    #[error("the workspace is busy")]
    Busy {
        /// Who, if they have written it down.
        holder: Option<Box<Holder>>,
    },
    /// The path does not lead to the file that is locked.
    #[error("{} is not the lock file that is held", path.display())]
    Replaced {
        /// The path of the lock file.
        path: PathBuf,
    },
    /// The system said no.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// The path of the lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The lock is held as long as this, or any handle made from it, is open.
#[derive(Debug)]
#[must_use]
pub struct WorkspaceLock {
    file: File,
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Whether a process took the workspace's lock and holds it by this descriptor of its own, by the
/// kernel's word. Not by `/proc/locks`: to read it waits for a grace period, some 12 ms.
pub fn holds(process: i32, descriptor: i32, git_dir: &Path) -> bool {
    let Ok(meta) = std::fs::metadata(git_dir.join(LOCK_NAME)) else { return false };
    let info = std::fs::read_to_string(format!("/proc/{process}/fdinfo/{descriptor}"));
    let (inode, process) = (meta.ino().to_string(), process.to_string());
    // `lock:	1: FLOCK  ADVISORY  WRITE 4711 fe:00:2229 0 EOF`, see proc_pid_fdinfo(5).
    info.is_ok_and(|info| {
        info.lines().filter_map(|line| line.strip_prefix("lock:")).any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, "FLOCK", _, "WRITE", pid, place, ..] = words.as_slice() else { return false };
            *pid == process && place.rsplit(':').next() == Some(inode.as_str())
        })
    })
}

impl WorkspaceLock {
    /// Takes the lock, at once or within `wait`, and writes down who holds it.
    pub fn acquire(
        workspace: &Workspace,
        holder: &Holder,
        wait: Option<Duration>,
    ) -> Result<Self, LockError> {
        let path = workspace.git_dir().join(LOCK_NAME);
        let until = wait.and_then(|wait| Instant::now().checked_add(wait));
        let once_more = Instant::now() + RETRY;
        loop {
            if let Some(lock) = Self::try_once(&path)? {
                lock.write_holder(holder)?;
                return Ok(lock);
            }
            // A wait beyond what the clock can hold is a wait without bound. Without a wait there is
            // still one more try: a reader that asks whether the lock is held has it for an instant.
            let bound = if wait.is_some() { until } else { Some(once_more) };
            if bound.is_some_and(|until| Instant::now() >= until) {
                return Err(LockError::Busy { holder: read_holder(&path).map(Box::new) });
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Takes over a handle of a held lock, as the supervisor does with the one that it inherits.
    ///
    /// The handle must lead to the lock file of this workspace; that it is locked is proven by
    /// taking the same lock again, which an open file always can.
    pub fn adopt(workspace: &Workspace, handle: OwnedFd) -> Result<Self, LockError> {
        let path = workspace.git_dir().join(LOCK_NAME);
        let lock = Self::of(File::from(handle), &path)?;
        match flock(&lock.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => lock.verify().map(|()| lock),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(LockError::Busy { holder: read_holder(&path).map(Box::new) })
            }
            Err(error) => Err(LockError::Io { path, source: error.into() }),
        }
    }

    /// Whether the path still leads to the file that is locked: asked before each effect.
    pub fn verify(&self) -> Result<(), LockError> {
        match std::fs::symlink_metadata(&self.path) {
            Ok(meta) if (meta.dev(), meta.ino()) == (self.device, self.inode) => Ok(()),
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(LockError::Io { path: self.path.clone(), source })
            }
            _ => Err(LockError::Replaced { path: self.path.clone() }),
        }
    }

    /// A handle of the same lock, to be given to a supervisor. Close-on-exec is set: who spawns
    /// puts it in its place in the child.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// The number of its descriptor in this process.
    pub fn descriptor(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Writes down anew who holds the lock: once the attempt has its number.
    pub fn write_holder(&self, holder: &Holder) -> Result<(), LockError> {
        let write = || {
            let text = serde_json::to_vec(holder)?;
            self.file.write_all_at(&text, 0)?;
            self.file.set_len(text.len() as u64)
        };
        write().map_err(|source| LockError::Io { path: self.path.clone(), source })
    }

    fn try_once(path: &Path) -> Result<Option<Self>, LockError> {
        let failed = |source: io::Error| LockError::Io { path: path.to_owned(), source };
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = openat(CWD, path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
        let lock = Self::of(File::from(fd), path)?;
        match flock(&lock.file, FlockOperation::NonBlockingLockExclusive) {
            // Somebody may have put another file there between the two calls: then this is none.
            Ok(()) => Ok(lock.verify().is_ok().then_some(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(failed(error.into())),
        }
    }

    fn of(file: File, path: &Path) -> Result<Self, LockError> {
        let failed = |source: io::Error| LockError::Io { path: path.to_owned(), source };
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        Ok(Self { device: meta.dev(), inode: meta.ino(), file, path: path.to_owned() })
    }
}

impl AsFd for WorkspaceLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn read_holder(path: &Path) -> Option<Holder> {
    serde_json::from_slice(&smallfile::read(path).ok()??).ok()
}

/// Who would be met at the lock: for `status`. Says nothing about whether it is held.
pub fn last_holder(workspace: &Workspace) -> Option<Holder> {
    read_holder(&workspace.git_dir().join(LOCK_NAME))
}

/// Whether somebody holds the workspace lock; for who only reads. Makes no file.
///
/// A shared lock is taken and given back where nobody does: who tries to take the lock for good at
/// that very moment finds it busy.
pub fn is_held(git_dir: &Path) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let fd = match openat(CWD, git_dir.join(LOCK_NAME), flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    match flock(&fd, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// What a second ledger meets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The ledger that has unsettled work here: the path of its file.
    pub ledger: String,
    /// The attempt.
    pub attempt: AttemptKey,
    /// `/proc/sys/kernel/random/boot_id` when it was written.
    pub boot_id: String,
}

/// Why the marker cannot be passed.
#[derive(Debug, thiserror::Error)]
pub enum MarkerError {
    /// Another ledger has unsettled work here.
    #[error("the ledger {} has unsettled work here: attempt {}", marker.ledger, marker.attempt)]
    OtherLedger {
        /// What the marker says.
        marker: Box<Marker>,
    },
    /// The file is there and says nothing that can be read.
    #[error("{} cannot be read: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The system said no.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The marker, if one is there.
pub fn read_marker(workspace: &Workspace) -> Result<Option<Marker>, MarkerError> {
    let path = workspace.git_dir().join(MARKER_NAME);
    let unreadable = |why: String| MarkerError::Unreadable { path: path.clone(), why };
    let Some(text) = smallfile::read(&path).map_err(|e| unreadable(e.to_string()))? else {
        return Ok(None);
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| unreadable(e.to_string()))
}

/// The marker, if it is of this ledger; a typed error if it is of another one.
pub fn check_marker(workspace: &Workspace, ledger: &str) -> Result<Option<Marker>, MarkerError> {
    match read_marker(workspace)? {
        Some(marker) if marker.ledger != ledger => {
            Err(MarkerError::OtherLedger { marker: Box::new(marker) })
        }
        marker => Ok(marker),
    }
}

/// Writes the marker, durable. Only under the lock, and never over another ledger's.
pub fn write_marker(lock: &WorkspaceLock, marker: &Marker) -> Result<(), MarkerError> {
    let path = lock.path.with_file_name(MARKER_NAME);
    let text = serde_json::to_vec(marker).map_err(io::Error::from);
    text.and_then(|text| durable::write_file(&path, &text, 0o600))
        .map_err(|source| MarkerError::Io { path, source })
}

/// Removes the marker, durable. Only under the lock, once nothing is unsettled here.
pub fn clear_marker(lock: &WorkspaceLock) -> Result<(), MarkerError> {
    let path = lock.path.with_file_name(MARKER_NAME);
    durable::remove_file(&path).map_err(|source| MarkerError::Io { path, source })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::git::testkit::Repo;
    use crate::tx::id::AttemptNo;

    fn holder(command: &str) -> Holder {
        let process = ProcessId { pid: 7, start_ticks: 8 };
        Holder { process, boot_id: "b".to_owned(), command: command.to_owned(), attempt: None }
    }

    fn workspace(repo: &Repo) -> Workspace {
        Workspace::discover(repo.root()).expect("found")
    }

    #[test]
    fn one_holder_at_a_time() {
        let repo = Repo::new();
        let workspace = workspace(&repo);
        let lock = WorkspaceLock::acquire(&workspace, &holder("a long one"), None).expect("free");
        lock.write_holder(&holder("run")).expect("written");
        match WorkspaceLock::acquire(&workspace, &holder("gc"), Some(RETRY * 2)) {
            Err(LockError::Busy { holder: Some(found) }) => assert_eq!(*found, holder("run")),
            other => panic!("{other:?}"),
        }
        assert!(is_held(workspace.git_dir()).expect("looked"));
        // A handle given away holds on although ours is closed.
        let shared = lock.share().expect("shared");
        drop(lock);
        let busy = WorkspaceLock::acquire(&workspace, &holder("gc"), None);
        assert!(matches!(busy, Err(LockError::Busy { .. })), "{busy:?}");
        let adopted = WorkspaceLock::adopt(&workspace, shared).expect("the same lock");
        adopted.verify().expect("the same file");
        drop(adopted);
        // A process that another test is just starting has all handles until it is another program.
        let wait = Some(Duration::from_secs(10));
        drop(WorkspaceLock::acquire(&workspace, &holder("gc"), wait).expect("free"));
        repo.commit("file", "git does not mind the file");
        assert_eq!(repo.git(&["status", "--porcelain"]), "");
    }

    #[test]
    fn another_process_holds_and_dies() {
        let repo = Repo::new();
        let workspace = workspace(&repo);
        let lock = WorkspaceLock::acquire(&workspace, &holder("run"), None).expect("free");
        // The child inherits the open file as its stdin, and lives until it is killed.
        let mut child = Command::new("sh")
            .args(["-c", "echo ready; exec tail -f /dev/null"])
            .stdin(Stdio::from(lock.share().expect("shared")))
            .stdout(Stdio::piped())
            .spawn()
            .expect("runs");
        let mut ready = [0; 6];
        child.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("ready");
        drop(lock);
        let busy = WorkspaceLock::acquire(&workspace, &holder("gc"), None);
        assert!(matches!(busy, Err(LockError::Busy { .. })), "{busy:?}");
        let waiting = std::thread::spawn({
            let workspace = workspace.clone();
            move || WorkspaceLock::acquire(&workspace, &holder("gc"), Some(Duration::MAX))
        });
        child.kill().expect("killed");
        child.wait().expect("reaped");
        drop(waiting.join().expect("no panic").expect("free after the death"));
    }

    #[test]
    fn notices_another_file_in_its_place() {
        let repo = Repo::new();
        let workspace = workspace(&repo);
        let lock = WorkspaceLock::acquire(&workspace, &holder("run"), None).expect("free");
        let path = workspace.git_dir().join(LOCK_NAME);
        std::fs::remove_file(&path).expect("removed");
        assert!(matches!(lock.verify(), Err(LockError::Replaced { .. })));
        std::fs::write(&path, "").expect("written");
        assert!(matches!(lock.verify(), Err(LockError::Replaced { .. })));
        let shared = lock.share().expect("shared");
        let adopted = WorkspaceLock::adopt(&workspace, shared);
        assert!(matches!(adopted, Err(LockError::Replaced { .. })), "{adopted:?}");
        std::fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink("/dev/null", &path).expect("linked");
        let link = WorkspaceLock::acquire(&workspace, &holder("gc"), None);
        assert!(matches!(link, Err(LockError::Io { .. })), "{link:?}");
    }

    #[test]
    fn linked_work_trees_have_locks_of_their_own() {
        let repo = Repo::new();
        repo.commit("file", "x");
        repo.git(&["worktree", "add", "-qb", "side", "../side"]);
        let side = Workspace::discover(&repo.root().with_file_name("side")).expect("found");
        let one = WorkspaceLock::acquire(&workspace(&repo), &holder("run"), None).expect("free");
        let two = WorkspaceLock::acquire(&side, &holder("run"), None).expect("free too");
        assert_ne!(one.path, two.path);
    }

    #[test]
    fn the_marker_stops_another_ledger() {
        let repo = Repo::new();
        let workspace = workspace(&repo);
        let lock = WorkspaceLock::acquire(&workspace, &holder("run"), None).expect("free");
        assert_eq!(check_marker(&workspace, "/a/ledger.db").expect("none"), None);
        let attempt = AttemptKey { execution: "e".parse().expect("valid"), attempt: AttemptNo(2) };
        let ledger = "/a/ledger.db".to_owned();
        let marker = Marker { ledger, attempt, boot_id: "b".to_owned() };
        write_marker(&lock, &marker).expect("written");
        drop(lock);
        let own = check_marker(&workspace, "/a/ledger.db").expect("ours");
        assert_eq!(own.as_ref(), Some(&marker));
        let other = check_marker(&workspace, "/b/ledger.db");
        assert!(matches!(other, Err(MarkerError::OtherLedger { marker: m }) if *m == marker));
        std::fs::write(workspace.git_dir().join(MARKER_NAME), "{").expect("written");
        let broken = read_marker(&workspace);
        assert!(matches!(broken, Err(MarkerError::Unreadable { .. })), "{broken:?}");
        let lock = WorkspaceLock::acquire(&workspace, &holder("run"), None).expect("free");
        clear_marker(&lock).expect("removed");
        clear_marker(&lock).expect("removed already");
        assert_eq!(read_marker(&workspace).expect("none"), None);
    }
}
