//! Hands beneath the root: every directory is reached by handle from the held root, part by part
//! where it must be, without following a link and without crossing a mount (`openat2`).
//!
//! Rules. A handle is opened for each act and not kept: a kept one could be moved out of the tree
//! meanwhile. What stands at a name is looked at through an `O_PATH` handle, which opens nothing
//! and so never blocks on a pipe, before it is opened. A directory or file that is closed to its
//! own owner is opened by `chmod` on its handle (`/proc/self/fd`), and gets its mode back.
//!
//! # Limitations
//! Needs `/proc`. What another user owns stays closed to an unprivileged caller: the error says
//! so. Immutable and append-only marks are cleared where the kernel lets us, and not set again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{self, AtFlags, CWD, FileType, IFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use sha1::{Digest as _, Sha1};

use crate::base::writeback::write_back;
use crate::tx::entry::{Kind, Stat};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;

/// Below this many bytes a path is resolved in one call; `PATH_MAX` is 4096 with the final zero.
const ONE_CALL: usize = 4000;

/// What keeps each step inside: design section 4, "Roll back".
pub(super) const STAY: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// Up to so many files and directories are synced each by itself, more by one `syncfs`. That one
/// is cheaper on a quiet disk from a few files on, but it also waits for whatever else was written
/// to the file system: by a build, by git, by a container beside.
const FEW: usize = 64;

/// What stands at a name, and the handle that it was seen by.
pub(in crate::git) struct Seen {
    /// An `O_PATH` handle of the very thing.
    pub(in crate::git) handle: OwnedFd,
    /// What it is; a directory with `.git` in it is told by [`Beneath::is_repository`].
    pub(in crate::git) kind: Kind,
    /// How it looks.
    pub(in crate::git) stat: Stat,
}

/// The held root, and the modes of what had to be opened by force beneath it.
pub(in crate::git) struct Beneath<'a> {
    root: BorrowedFd<'a>,
    /// Inode and mode that directories had before they were opened by force.
    unlocked: RefCell<HashMap<RepoPath, (u64, u32)>>,
    changed: Changed,
}

/// What has to be made durable.
#[derive(Default)]
struct Changed {
    /// Directories in which a name came or went; `None` is the root.
    directories: RefCell<BTreeSet<Option<RepoPath>>>,
    /// Paths of new files, and of what got another mode or owner.
    things: RefCell<BTreeSet<RepoPath>>,
    /// There are too many, or some that are not known one by one.
    beyond: Cell<bool>,
}

impl Changed {
    fn note(&self, parent: Option<RepoPath>) {
        self.directories.borrow_mut().insert(parent);
        self.bound();
    }

    fn bound(&self) {
        if self.directories.borrow().len() + self.things.borrow().len() > FEW {
            self.beyond.set(true);
        }
    }
}

impl<'a> Beneath<'a> {
    pub(in crate::git) fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, unlocked: RefCell::default(), changed: Changed::default() }
    }

    /// An `O_PATH` handle of a directory; `None` is the root.
    pub(in crate::git) fn directory(&self, path: Option<&RepoPath>) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let whole: &[u8] = path.map_or(b".", RepoPath::as_bytes);
        if whole.len() < ONE_CALL {
            match fs::openat2(self.root, OsStr::from_bytes(whole), flags, Mode::empty(), STAY) {
                // `EAGAIN`: something was renamed meanwhile, so that "beneath" was not certain.
                Err(Errno::ACCESS | Errno::NAMETOOLONG | Errno::AGAIN) => {}
                done => return done,
            }
        }
        let mut here = Self::step(self.root, b".", flags)?;
        let Some(path) = path else { return Ok(here) };
        let mut so_far: Option<RepoPath> = None;
        for part in path.parts() {
            let next = match Self::step(here.as_fd(), part, flags) {
                Err(Errno::ACCESS) => {
                    self.unlock(here.as_fd(), so_far.as_ref())?;
                    Self::step(here.as_fd(), part, flags)?
                }
                done => done?,
            };
            so_far = Some(RepoPath::join(so_far.as_ref(), part));
            here = next;
        }
        Ok(here)
    }

    fn step(at: BorrowedFd<'_>, part: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut tries = 0;
        loop {
            match fs::openat2(at, OsStr::from_bytes(part), flags, Mode::empty(), STAY) {
                Err(Errno::AGAIN) if tries < 100 => tries += 1,
                done => return done,
            }
        }
    }

    /// The directory that holds `path`.
    pub(in crate::git) fn parent(&self, path: &RepoPath) -> Result<OwnedFd, Errno> {
        self.directory(path.parent().as_ref())
    }

    /// What stands at `path`; `None` where nothing does. A mount gives `EXDEV`.
    pub(in crate::git) fn look(&self, path: &RepoPath) -> Result<Option<Seen>, Errno> {
        let parent = match self.parent(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            done => done?,
        };
        match Self::look_in(parent.as_fd(), path.name()) {
            Err(Errno::ACCESS) => {
                self.unlock(parent.as_fd(), path.parent().as_ref())?;
                Self::look_in(parent.as_fd(), path.name())
            }
            done => done,
        }
    }

    /// What stands at `name` in a directory.
    pub(in crate::git) fn look_in(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Seen>, Errno> {
        match Self::step(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC) {
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
            Ok(handle) => {
                let (kind, stat) = stat_of(handle.as_fd())?;
                Ok(Some(Seen { handle, kind, stat }))
            }
        }
    }

    /// Whether a directory is a repository of its own.
    pub(in crate::git) fn is_repository(dir: BorrowedFd<'_>) -> bool {
        fs::statat(dir, ".git", AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Does something to the name `path` in its directory, and opens by force what its owner
    /// closed: the directory, the thing itself if it is one (moving it rewrites its `..`), and
    /// immutable or append-only marks of both.
    pub(in crate::git) fn forced<T>(
        &self,
        path: &RepoPath,
        act: impl Fn(BorrowedFd<'_>, &OsStr) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let name = OsStr::from_bytes(path.name());
        if !self.changed.beyond.get() {
            self.changed.note(path.parent());
        }
        let parent = self.parent(path)?;
        let first = match act(parent.as_fd(), name) {
            Err(error @ (Errno::ACCESS | Errno::PERM)) => error,
            done => return done,
        };
        if first == Errno::PERM {
            let opened = reopen(parent.as_fd(), OFlags::DIRECTORY);
            let cleared = opened.is_ok_and(|handle| clear_marks(&handle));
            let seen = Self::look_in(parent.as_fd(), path.name())?;
            let own = seen.filter(|s| matches!(s.kind, Kind::File | Kind::Directory));
            let own_cleared = own
                .and_then(|s| open_to_read(&s).ok())
                .is_some_and(|handle| clear_marks(&handle.into()));
            if !cleared && !own_cleared {
                return Err(first);
            }
        } else {
            self.unlock(parent.as_fd(), path.parent().as_ref())?;
        }
        match act(parent.as_fd(), name) {
            Err(Errno::ACCESS) => {
                let seen = Self::look_in(parent.as_fd(), path.name())?.ok_or(Errno::NOENT)?;
                if seen.kind != Kind::Directory {
                    return Err(Errno::ACCESS);
                }
                self.unlock(seen.handle.as_fd(), Some(path))?;
                act(parent.as_fd(), name)
            }
            done => done,
        }
    }

    /// The names in a directory, without `.` and `..`.
    pub(in crate::git) fn names(&self, path: Option<&RepoPath>) -> Result<Vec<Vec<u8>>, Errno> {
        let handle = self.directory(path)?;
        let readable = match reopen(handle.as_fd(), OFlags::DIRECTORY) {
            Err(Errno::ACCESS) => {
                self.unlock(handle.as_fd(), path)?;
                reopen(handle.as_fd(), OFlags::DIRECTORY)?
            }
            done => done?,
        };
        let mut names = Vec::new();
        for entry in fs::Dir::new(readable)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    /// Gives a directory its owner's rights, and remembers what it had.
    fn unlock(&self, dir: BorrowedFd<'_>, path: Option<&RepoPath>) -> Result<(), Errno> {
        let (_, stat) = stat_of(dir)?;
        if stat.mode & 0o700 == 0o700 {
            return Err(Errno::ACCESS);
        }
        chmod(dir, stat.mode | 0o700)?;
        if let Some(path) = path {
            let was = (stat.inode, stat.mode);
            self.unlocked.borrow_mut().entry(path.clone()).or_insert(was);
        }
        Ok(())
    }

    /// Notes that the bytes, the mode or the owner of what stands at `path` have to be made
    /// durable; names are noted by [`Beneath::forced`].
    pub(in crate::git) fn changed(&self, path: &RepoPath) {
        if !self.changed.beyond.get() {
            self.changed.things.borrow_mut().insert(path.clone());
            self.changed.bound();
        }
    }

    /// As [`Beneath::changed`], for what somebody else may have made: its name too, and those of
    /// the directories on its way.
    pub(in crate::git) fn made_by_others(&self, path: &RepoPath) {
        let mut above = path.parent();
        while !self.changed.beyond.get() {
            let is_root = above.is_none();
            let next = above.as_ref().and_then(RepoPath::parent);
            self.changed.note(above);
            if is_root {
                break;
            }
            above = next;
        }
        self.changed(path);
    }

    /// Notes that not everything that changed is known path by path.
    pub(in crate::git) fn changed_more(&self) {
        self.changed.beyond.set(true);
    }

    /// Makes durable what was changed: each file and directory, or, where they are many or one of
    /// them cannot be opened, the whole file system of the root.
    ///
    /// # Errors
    /// What the kernel said of the sync. It is final: what could not be written may be dropped.
    pub(in crate::git) fn sync(&self) -> Result<(), Errno> {
        if !self.changed.beyond.get() && self.sync_each()? {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::syncfs(fs::openat(self.root, ".", flags, Mode::empty())?)
    }

    /// Syncs each thing, then each directory; `false` where one cannot be opened for it. What is
    /// gone by now is durable by its directory.
    fn sync_each(&self) -> Result<bool, Errno> {
        let mut files = Vec::new();
        for path in &*self.changed.things.borrow() {
            let seen = match self.look(path) {
                Ok(None) => continue,
                // The name of a link is all there is of it.
                Ok(Some(seen)) if seen.kind == Kind::Symlink => continue,
                Ok(Some(seen)) if matches!(seen.kind, Kind::File | Kind::Directory) => seen,
                Ok(Some(_)) | Err(_) => return Ok(false),
            };
            match reopen(seen.handle.as_fd(), OFlags::empty()) {
                Ok(handle) => files.push(handle),
                Err(_) => return Ok(false),
            }
        }
        write_back(&files);
        for path in &*self.changed.directories.borrow() {
            let handle = match self.directory(path.as_ref()) {
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                done => done.and_then(|handle| reopen(handle.as_fd(), OFlags::DIRECTORY)),
            };
            let Ok(handle) = handle else { return Ok(false) };
            files.push(handle);
        }
        files.iter().try_for_each(fs::fsync).map(|()| true)
    }

    /// Closes again what had to be opened and still stands, deepest first; `keep` tells which
    /// directories have a mode of their own coming. Returns what could not be closed.
    pub(in crate::git) fn lock_again(
        &self,
        keep: impl Fn(&RepoPath) -> bool,
    ) -> Vec<(RepoPath, Errno)> {
        let mut opened: Vec<_> = self.unlocked.borrow_mut().drain().collect();
        opened.sort_unstable_by(|a, b| b.0.cmp(&a.0));
        opened.retain(|(path, _)| !keep(path));
        let mut open_still = Vec::new();
        for (path, (inode, mode)) in opened {
            let closed = match self.look(&path) {
                Ok(Some(seen)) if seen.stat.inode == inode => chmod(seen.handle.as_fd(), mode),
                done => done.map(drop),
            };
            open_still.extend(closed.err().map(|errno| (path, errno)));
        }
        open_still
    }
}

/// Kind and look of what a handle holds.
pub(in crate::git) fn stat_of(handle: BorrowedFd<'_>) -> Result<(Kind, Stat), Errno> {
    let stat = fs::fstat(handle)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Symlink,
        FileType::Directory => Kind::Directory,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        _ => Kind::Device,
    };
    let ns = |seconds: i64, nanos| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    let stat = Stat {
        mode: stat.st_mode & 0o7777,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: ns(stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        ctime_ns: ns(stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0)),
        inode: stat.st_ino,
        links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
    };
    Ok((kind, stat))
}

/// The name by which the kernel lets a handle be opened or changed again: this very inode.
fn proc_name(handle: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}

/// Sets the mode of what a handle holds (not of a symlink), without asking for a right on it.
pub(in crate::git) fn chmod(handle: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    fs::chmodat(CWD, proc_name(handle), Mode::from_raw_mode(mode), AtFlags::empty())
}

/// As [`chmod`], through an immutable or append-only mark where it can be cleared.
pub(in crate::git) fn chmod_forced(seen: &Seen, mode: u32) -> Result<(), Errno> {
    match chmod(seen.handle.as_fd(), mode) {
        Err(Errno::PERM) if matches!(seen.kind, Kind::File | Kind::Directory) => {
            if open_to_read(seen).is_ok_and(|handle| clear_marks(&handle.into())) {
                chmod(seen.handle.as_fd(), mode)
            } else {
                Err(Errno::PERM)
            }
        }
        done => done,
    }
}

/// Gives owner and group back, where they differ; an unprivileged caller may not, and that is no
/// error: it could not have made the file otherwise in the first place.
pub(in crate::git) fn chown(handle: BorrowedFd<'_>, now: &Stat, base: &Stat) -> Result<(), Errno> {
    if (now.uid, now.gid) == (base.uid, base.gid) {
        return Ok(());
    }
    let owner = fs::Uid::from_raw(base.uid);
    let group = fs::Gid::from_raw(base.gid);
    match fs::chownat(handle, "", Some(owner), Some(group), AtFlags::EMPTY_PATH) {
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => Ok(()),
        done => done,
    }
}

/// Opens for reading what an `O_PATH` handle holds.
fn reopen(handle: BorrowedFd<'_>, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC | more;
    fs::openat(CWD, proc_name(handle), flags, Mode::empty())
}

/// Opens a file or directory for reading; one that is closed to its owner is opened by force,
/// and has its mode back when this returns.
pub(super) fn open_to_read(seen: &Seen) -> Result<File, Errno> {
    let more = if seen.kind == Kind::Directory { OFlags::DIRECTORY } else { OFlags::empty() };
    match reopen(seen.handle.as_fd(), more) {
        Err(Errno::ACCESS) => {
            chmod(seen.handle.as_fd(), seen.stat.mode | 0o400)?;
            let opened = reopen(seen.handle.as_fd(), more);
            chmod(seen.handle.as_fd(), seen.stat.mode)?;
            Ok(opened?.into())
        }
        done => Ok(done?.into()),
    }
}

/// Clears the immutable and append-only marks; whether there were any, and they are gone.
fn clear_marks(handle: &OwnedFd) -> bool {
    let marks = IFlags::IMMUTABLE | IFlags::APPEND;
    match fs::ioctl_getflags(handle) {
        Ok(flags) if flags.intersects(marks) => {
            fs::ioctl_setflags(handle, flags.difference(marks)).is_ok()
        }
        _ => false,
    }
}

/// The bytes behind a file or link, to be read once.
pub(in crate::git) fn bytes_of(seen: &Seen) -> Result<Box<dyn Read>, Errno> {
    if seen.kind == Kind::Symlink {
        let target = fs::readlinkat(&seen.handle, "", Vec::new())?;
        return Ok(Box::new(io::Cursor::new(target.into_bytes())));
    }
    Ok(Box::new(open_to_read(seen)?))
}

/// The id that the raw bytes have as a blob; `None` where they change while they are read.
pub(in crate::git) fn raw_id(seen: &Seen) -> io::Result<Option<Oid>> {
    let mut hasher = BlobHasher::new(seen.stat.size);
    io::copy(&mut bytes_of(seen)?, &mut hasher)?;
    Ok(hasher.finish())
}

/// Hashes bytes as git does a blob of a length known beforehand.
pub(in crate::git) struct BlobHasher {
    sha: Sha1,
    left: Option<u64>,
}

impl BlobHasher {
    pub(in crate::git) fn new(size: u64) -> Self {
        let mut sha = Sha1::new();
        sha.update(format!("blob {size}\0"));
        Self { sha, left: Some(size) }
    }

    /// The id; `None` where there were not exactly as many bytes as told.
    pub(in crate::git) fn finish(self) -> Option<Oid> {
        (self.left == Some(0)).then(|| Oid::from_bytes(self.sha.finalize().into()))
    }
}

impl io::Write for BlobHasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.and_then(|left| left.checked_sub(bytes.len() as u64));
        self.sha.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
