//! Folders of the git directory by handle: every name is reached beneath a held directory without
//! following a symbolic link, so that a planted link leads nowhere.
//!
//! Order rule of every change: content, its name, then a sync of the folder that holds the name.
//!
//! # Limitations
//! The held folder itself is opened by its recorded path, links in it included. `openat2` is
//! needed (Linux 5.6).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A step in a folder of the git directory failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {source}", path.display())]
pub struct DirError {
    /// What was tried.
    pub what: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

impl DirError {
    pub(crate) fn new(what: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self { what, path: path.to_owned(), source: source.into() }
    }

    /// Whether a symbolic link stands on the way.
    pub fn is_symlink(&self) -> bool {
        self.source.raw_os_error() == Some(Errno::LOOP.raw_os_error())
    }

    /// Whether what stands there is neither a file nor a folder, or lies behind a link.
    pub(crate) fn is_irregular(&self) -> bool {
        self.source.kind() == io::ErrorKind::InvalidInput
            || self.is_symlink()
            || self.is(Errno::NXIO)
    }

    pub(crate) fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno.raw_os_error())
    }
}

/// What makes two names the same file, as long as one of them is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

/// Writes what a new file is to have.
pub type WriteFile<'a> = &'a mut dyn FnMut(&mut File) -> io::Result<()>;

/// A held folder.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    /// Opens a folder by its recorded path.
    pub(crate) fn open(path: &Path) -> Result<Self, DirError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = retry(|| rustix::fs::open(path, flags, Mode::empty()))
            .map_err(|e| DirError::new("open", path, e))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    pub(crate) fn into_path(self) -> PathBuf {
        self.path
    }

    pub(crate) fn path_of(&self, rel: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(rel))
    }

    fn open_beneath(&self, rel: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = flags | OFlags::CLOEXEC;
        retry(|| rustix::fs::openat2(&self.fd, rel, flags, mode, resolve))
    }

    /// A folder beneath this one; `None` where there is none.
    pub(crate) fn dir(&self, rel: &[u8]) -> Result<Option<Self>, DirError> {
        let rel = if rel.is_empty() { b"." } else { rel };
        match self.open_beneath(rel, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path: self.path_of(rel) })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(DirError::new("open", &self.path_of(rel), e)),
        }
    }

    /// A folder beneath this one; what is missing on the way is made, each durable in its parent.
    pub(crate) fn make_dir(&self, rel: &[u8]) -> Result<Self, DirError> {
        let (dir, grown) = self.grow(rel)?;
        grown.iter().try_for_each(Self::sync)?;
        Ok(dir)
    }

    /// As [`Dir::make_dir`], with the folders in which something was made: they are the caller's to
    /// sync, so that one commit of the file system's journal has all that comes after, too.
    pub(crate) fn grow(&self, rel: &[u8]) -> Result<(Self, Vec<Self>), DirError> {
        let mut grown = Vec::new();
        // Somebody may remove an empty folder between our making and opening it, as git does.
        for _ in 0..8 {
            match self.try_make_dir(rel, &mut grown) {
                Err(e) if e.is(Errno::NOENT) => {}
                other => return Ok((other?, grown)),
            }
        }
        Ok((self.try_make_dir(rel, &mut grown)?, grown))
    }

    fn try_make_dir(&self, rel: &[u8], grown: &mut Vec<Self>) -> Result<Self, DirError> {
        let fail = |e| DirError::new("make", &self.path_of(rel), e);
        let open = |parent: &Self, part: &[u8]| {
            parent.open_beneath(part, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
        };
        let mut at = Self { fd: open(self, b".").map_err(fail)?, path: self.path.clone() };
        for part in rel.split(|b| *b == b'/').filter(|p| !p.is_empty()) {
            let fd = match open(&at, part) {
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&at.fd, part, Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(fail(e)),
                    }
                    let fd = open(&at, part);
                    grown.push(Self { fd: open(&at, b".").map_err(fail)?, path: at.path.clone() });
                    fd
                }
                other => other,
            };
            at = Self { path: at.path_of(part), fd: fd.map_err(fail)? };
        }
        Ok(at)
    }

    /// The parent folder of `rel`, made if need be, and the last part.
    pub(crate) fn make_parent<'a>(&self, rel: &'a [u8]) -> Result<(Self, &'a [u8]), DirError> {
        let (parent, name) = split(rel);
        Ok((self.make_dir(parent)?, name))
    }

    /// The parent folder of `rel`, if there is one, and the last part.
    pub(crate) fn parent<'a>(&self, rel: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, DirError> {
        let (parent, name) = split(rel);
        Ok(self.dir(parent)?.map(|dir| (dir, name)))
    }

    /// A regular file beneath this folder, open for reading; `None` where there is nothing, or a
    /// folder. Anything else at the name is an error, and is not opened for long.
    pub(crate) fn open_file(&self, rel: &[u8]) -> Result<Option<File>, DirError> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let fd = match self.open_beneath(rel, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(e) => return Err(DirError::new("read", &self.path_of(rel), e)),
        };
        let fail = |e: io::Error| DirError::new("read", &self.path_of(rel), e);
        let kind = rustix::fs::fstat(&fd).map_err(|e| fail(e.into()))?.st_mode;
        match FileType::from_raw_mode(kind) {
            FileType::RegularFile => Ok(Some(File::from(fd))),
            FileType::Directory => Ok(None),
            _ => Err(fail(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))),
        }
    }

    /// The bytes of a regular file, as [`Dir::open_file`].
    pub(crate) fn read(&self, rel: &[u8]) -> Result<Option<Vec<u8>>, DirError> {
        let Some(mut file) = self.open_file(rel)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| DirError::new("read", &self.path_of(rel), e))?;
        Ok(Some(bytes))
    }

    /// Which file stands at a name of this folder, links not followed.
    pub(crate) fn identity(&self, name: &[u8]) -> Result<Option<Identity>, DirError> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Identity { device: stat.st_dev, inode: stat.st_ino })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(DirError::new("look at", &self.path_of(name), e)),
        }
    }

    /// Makes a new file with these bytes, synced; its name is not durable yet. `EEXIST` where
    /// anything stands there. A file that could not be written whole does not stay: as a lock it
    /// would keep everybody out.
    pub(crate) fn create(&self, name: &[u8], bytes: &[u8]) -> Result<(), DirError> {
        self.create_by(name, &mut |file| file.write_all(bytes))
    }

    /// As [`Dir::create`], by whoever writes the bytes.
    pub(crate) fn create_by(&self, name: &[u8], write: WriteFile<'_>) -> Result<(), DirError> {
        let fail = |e: io::Error| DirError::new("make", &self.path_of(name), e);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let fd = self
            .open_beneath(name, flags, Mode::from_raw_mode(0o666))
            .map_err(|e| fail(e.into()))?;
        let mut file = File::from(fd);
        write(&mut file).and_then(|()| file.sync_all()).map_err(|error| {
            let _ = self.unlink(name);
            fail(error)
        })
    }

    /// Puts `bytes` at `name` whole; its name is durable after [`Dir::sync`]. What a crash left
    /// under the temporary name (`<name>.new`) is replaced.
    pub(crate) fn place(&self, name: &[u8], bytes: &[u8]) -> Result<(), DirError> {
        self.place_by(name, &mut |file| file.write_all(bytes))
    }

    /// As [`Dir::place`], by whoever writes the bytes.
    pub(crate) fn place_by(&self, name: &[u8], write: WriteFile<'_>) -> Result<(), DirError> {
        let temporary = [name, b".new"].concat();
        self.unlink(&temporary)?;
        self.create_by(&temporary, write)?;
        self.rename(&temporary, self, name)
    }

    /// A second name for the file at `name`. `EEXIST` where anything stands there.
    pub(crate) fn link(&self, name: &[u8], to: &Self, to_name: &[u8]) -> Result<(), DirError> {
        rustix::fs::linkat(&self.fd, name, &to.fd, to_name, AtFlags::empty())
            .map_err(|e| DirError::new("link", &to.path_of(to_name), e))
    }

    pub(crate) fn rename(&self, name: &[u8], to: &Self, to_name: &[u8]) -> Result<(), DirError> {
        rustix::fs::renameat(&self.fd, name, &to.fd, to_name)
            .map_err(|e| DirError::new("rename to", &to.path_of(to_name), e))
    }

    /// Removes a name, if it is there; says whether it was.
    pub(crate) fn unlink(&self, name: &[u8]) -> Result<bool, DirError> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(DirError::new("remove", &self.path_of(name), e)),
        }
    }

    /// Removes an empty folder; says whether it is gone by this.
    pub(crate) fn remove_dir(&self, name: &[u8]) -> bool {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR).is_ok()
    }

    /// Appends to a file that is made if it is not there, and syncs it; its name is not durable.
    pub(crate) fn append(&self, name: &[u8], bytes: &[u8]) -> Result<(), DirError> {
        let fail = |e: io::Error| DirError::new("append to", &self.path_of(name), e);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NONBLOCK;
        let fd = self
            .open_beneath(name, flags, Mode::from_raw_mode(0o666))
            .map_err(|e| fail(e.into()))?;
        let mut file = File::from(fd);
        file.write_all(bytes).map_err(fail)?;
        file.sync_all().map_err(fail)
    }

    /// The names in this folder, sorted, with whether each is a folder (links are not).
    pub(crate) fn names(&self) -> Result<Vec<(Vec<u8>, bool)>, DirError> {
        let fail = |e: Errno| DirError::new("list", &self.path, e);
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let is_dir = match entry.file_type() {
                FileType::Unknown => {
                    let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
                    stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode).is_dir())
                }
                kind => kind.is_dir(),
            };
            names.push((name.to_vec(), is_dir));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Makes the names in this folder durable. An error is final.
    pub(crate) fn sync(&self) -> Result<(), DirError> {
        rustix::fs::fsync(&self.fd).map_err(|e| DirError::new("sync", &self.path, e))
    }
}

pub(in crate::git) fn split(rel: &[u8]) -> (&[u8], &[u8]) {
    match rel.iter().rposition(|b| *b == b'/') {
        Some(at) => (&rel[..at], &rel[at + 1..]),
        None => (&[], rel),
    }
}

/// `openat2` says `EAGAIN` where a rename elsewhere kept it from being sure.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..1000 {
        match call() {
            Err(Errno::INTR | Errno::AGAIN) => {}
            other => return other,
        }
    }
    call()
}
