//! The temporary folder at the work-tree root: where restored files are made, and where what they
//! replace comes out.
//!
//! A name in it says what it is. `new-<n>` is half made, by nobody but us, and can go unread.
//! `<key>-<n>`, the key being the SHA-1 of a path, is either the whole file that is to stand at
//! that path or what stood there: after a crash it can be told from its bytes which, and nothing
//! in it is ever unlinked without having been compared with the pin.
//!
//! The folder ignores itself (`.gitignore` with `*`), so that a crash leaves `git status` clean.
//!
//! # Limitations
//! Its name must be recorded by the caller, and out of the scope of scan and seal.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use sha1::{Digest as _, Sha1};

use crate::base::fault::{self, Point};
use crate::base::hex::hex;
use crate::git::files::beneath::{self, Beneath, BlobHasher};
use crate::tx::entry::{Entry, Kind};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;

/// What makes git blind to the folder.
const IGNORE: &str = ".gitignore";
/// How the names of half-made things start.
const HALF_MADE: &[u8] = b"new-";

/// Why a thing of the base could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    #[error("cannot be made: {0}")]
    Io(#[from] io::Error),
    #[error("object {0} is damaged: its bytes are others")]
    Damaged(Oid),
    #[error("a {0:?} cannot be made again")]
    Kind(Kind),
}

impl From<Errno> for MakeError {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

pub(super) struct Aside {
    /// An `O_PATH` handle of the folder.
    pub(super) dir: OwnedFd,
    /// Where it is.
    pub(super) path: RepoPath,
    /// What an earlier run left in it.
    pub(super) leftovers: Vec<Vec<u8>>,
    next: u64,
}

impl Aside {
    /// Opens the folder, making it where it is missing. What stands there must be a directory.
    pub(super) fn open(beneath: &Beneath<'_>, path: RepoPath) -> Result<Self, Errno> {
        let made = beneath.forced(&path, |parent, name| fs::mkdirat(parent, name, 0o700.into()));
        match made {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let dir = beneath.directory(Some(&path))?;
        beneath::chmod(dir.as_fd(), 0o700)?;
        let mut leftovers = beneath.names(Some(&path))?;
        leftovers.retain(|name| name != IGNORE.as_bytes());
        let number = |name: &[u8]| -> Option<u64> {
            std::str::from_utf8(name.rsplit(|b| *b == b'-').next()?).ok()?.parse().ok()
        };
        let next = leftovers.iter().filter_map(|name| number(name)).max();
        let next = next.map_or(0, |last| last.saturating_add(1));
        let aside = Self { dir, path, leftovers, next };
        aside.ignore_itself()?;
        Ok(aside)
    }

    /// Nobody but a crash of this very function leaves a short file, so it is not read again.
    fn ignore_itself(&self) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match fs::openat(&self.dir, IGNORE, flags, Mode::from_raw_mode(0o600)) {
            Ok(file) => rustix::io::write(file, b"*\n").map(drop),
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A name of its own for what belongs to `path`.
    pub(super) fn name_for(&mut self, path: &RepoPath) -> String {
        self.next += 1;
        format!("{}-{}", key(path), self.next)
    }

    /// Whether a leftover is half made: ours, of no use, in no need of a look.
    pub(super) fn is_half_made(name: &[u8]) -> bool {
        name.starts_with(HALF_MADE)
    }

    /// Makes what the base has at `path`, whole, with owner and mode; returns its name here.
    pub(super) fn make(
        &mut self,
        path: &RepoPath,
        base: &Entry,
        bytes: impl FnOnce() -> io::Result<Box<dyn Read>>,
    ) -> Result<String, MakeError> {
        let name = self.name_for(path);
        let half = format!("new-{}", self.next);
        let made = self.make_half(&half, base, bytes).and_then(|()| {
            fault::point(Point::FileRestored);
            fs::renameat(&self.dir, &*half, &self.dir, &*name).map_err(MakeError::from)
        });
        if made.is_err() {
            let _ = self.unlink(&half);
        }
        made.map(|()| name)
    }

    fn make_half(
        &self,
        half: &str,
        base: &Entry,
        bytes: impl FnOnce() -> io::Result<Box<dyn Read>>,
    ) -> Result<(), MakeError> {
        match base.kind {
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(0o600);
                let file: File = fs::openat(&self.dir, half, flags, mode)?.into();
                let size = base.stat.size;
                let mut both = Tee { file, hasher: BlobHasher::new(size) };
                // One byte more than there should be is enough to see that it is damaged.
                io::copy(&mut bytes()?.take(size.saturating_add(1)), &mut both)?;
                if both.hasher.finish() != Some(base.raw) {
                    return Err(MakeError::Damaged(base.raw));
                }
            }
            Kind::Symlink => {
                let mut target = Vec::new();
                bytes()?.take(base.stat.size.saturating_add(1)).read_to_end(&mut target)?;
                let mut hasher = BlobHasher::new(target.len() as u64);
                hasher.write_all(&target)?;
                if hasher.finish() != Some(base.raw) {
                    return Err(MakeError::Damaged(base.raw));
                }
                fs::symlinkat(OsStr::from_bytes(&target), &self.dir, half)?;
            }
            Kind::Fifo | Kind::Socket => {
                let kind = if base.kind == Kind::Fifo { FileType::Fifo } else { FileType::Socket };
                fs::mknodat(&self.dir, half, kind, Mode::from_raw_mode(0o600), 0)?;
            }
            other => return Err(MakeError::Kind(other)),
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = fs::openat(&self.dir, half, flags, Mode::empty())?;
        let (_, now) = beneath::stat_of(handle.as_fd())?;
        // A change of owner clears set-id bits, so the mode comes after it.
        beneath::chown(handle.as_fd(), &now, &base.stat)?;
        if base.kind != Kind::Symlink {
            beneath::chmod(handle.as_fd(), base.stat.mode)?;
        }
        Ok(())
    }

    /// Unlinks something in the folder that is known to be kept elsewhere.
    pub(super) fn unlink(&self, name: &str) -> Result<(), Errno> {
        fs::unlinkat(&self.dir, name, AtFlags::empty())
    }

    /// Renames from a directory into the folder, under a name that nothing else has.
    pub(super) fn take(
        &self,
        from: std::os::fd::BorrowedFd<'_>,
        old: &OsStr,
        name: &str,
    ) -> Result<(), Errno> {
        match fs::renameat_with(from, old, &self.dir, name, RenameFlags::NOREPLACE) {
            // The name is fresh and the folder closed to others, so a plain rename does the same.
            Err(Errno::INVAL | Errno::NOSYS) => fs::renameat(from, old, &self.dir, name),
            done => done,
        }
    }

    /// Removes the folder if nothing is left in it; whether it is gone.
    pub(super) fn close(&self, beneath: &Beneath<'_>) -> Result<bool, Errno> {
        if beneath.names(Some(&self.path))?.iter().any(|name| name != IGNORE.as_bytes()) {
            return Ok(false);
        }
        self.unlink(IGNORE)?;
        match beneath
            .forced(&self.path, |parent, name| fs::unlinkat(parent, name, AtFlags::REMOVEDIR))
        {
            Err(Errno::NOTEMPTY | Errno::EXIST) => self.ignore_itself().map(|()| false),
            done => done.map(|()| true),
        }
    }
}

/// What a path's things are called in the folder.
pub(super) fn key(path: &RepoPath) -> String {
    hex(&Sha1::digest(path.as_bytes()))
}

struct Tee {
    file: File,
    hasher: BlobHasher,
}

impl io::Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.write(&bytes[..written])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
