//! The held handle of the work-tree root: the only way to anything beneath it.
//!
//! Every step is `openat2` with `RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS` and `RESOLVE_NO_XDEV`: a
//! directory that a hostile program exchanges for a link meanwhile gives an error, never a place
//! outside. The last part of a path is looked at by its own name in its opened directory.
//!
//! Order rules: [`Root::probe`] before anything else of a workspace; [`Root::verify`] before each
//! effect that the path, and not the handle, has to be right for.
//!
//! # Limitations
//! Linux 5.6 or newer. Mount ids are known from 5.8 on; before that a mount is told by its device
//! alone, so that a bind mount from the same file system is not recognised by `stat` (it still is
//! not crossed). The permission bits of the root itself are nobody's entry.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::tx::entry::{Found, Kind, Stat};
use crate::tx::path::RepoPath;

/// How every step beneath the root is resolved.
pub const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::NO_MAGICLINKS);

/// `STATX_MNT_ID` of `linux/stat.h`, which rustix has no name for.
const STATX_MNT_ID: StatxFlags = StatxFlags::from_bits_retain(0x1000);

/// What is asked of every path.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(STATX_MNT_ID);

/// The longest path that is given to the kernel at once: `PATH_MAX` (4096) less the final zero,
/// rounded down. Longer ones are walked by handle.
const CHUNK: usize = 4_000;

/// How often `openat2` is asked again when it says `EAGAIN`: a rename somewhere raced with it.
const RACES: u32 = 128;

/// A path beneath the root that could not be opened, read or looked at.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The root cannot be opened.
    #[error("cannot open the work tree {}: {source}", path.display())]
    Open {
        /// The root.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `openat2` is not there or not allowed (a container's seccomp profile).
    #[error(
        "openat2 is not available ({source}): Linux 5.6 or a newer container runtime is needed"
    )]
    NoOpenat2 {
        /// `ENOSYS` or `EPERM`.
        source: std::io::Error,
    },
    /// The path of the root leads somewhere else now.
    #[error("{} is not the directory that it was at open", path.display())]
    Replaced {
        /// The root.
        path: PathBuf,
    },
    /// It is not the kind of thing that was asked for.
    #[error("{path} is not a {wanted}")]
    WrongKind {
        /// Where.
        path: RepoPath,
        /// What was asked for.
        wanted: &'static str,
    },
    /// A part of the path is a link, a mount, or leads out of the tree.
    #[error("{path} is not reachable without a link or mount: {source}")]
    Outside {
        /// Where.
        path: RepoPath,
        /// `ELOOP` or `EXDEV`.
        source: std::io::Error,
    },
    /// The system said no.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Where.
        path: RepoPath,
        /// What the system said.
        source: std::io::Error,
    },
}

impl RootError {
    pub(in crate::git) fn at(path: &RepoPath, errno: Errno) -> Self {
        let path = path.clone();
        match errno {
            Errno::LOOP | Errno::XDEV => Self::Outside { path, source: errno.into() },
            _ => Self::Io { path, source: errno.into() },
        }
    }

    /// Whether there is nothing at the path, or a part of it is no directory.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory))
    }
}

/// What makes a directory the one that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RootId {
    /// `st_dev`. Changes when an overlay is mounted anew.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
    /// The mount id; 0 where the kernel does not tell (before 5.8).
    pub mount: u64,
}

/// The work-tree root, held open.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
    id: RootId,
}

/// What `statx` says, with the mount that it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::git) struct Seen {
    pub(in crate::git) kind: Kind,
    pub(in crate::git) stat: Stat,
    pub(in crate::git) device: u64,
    /// 0 where the kernel does not tell.
    pub(super) mount: u64,
}

impl Root {
    /// Opens and holds the directory at `path`; links in `path` itself are followed.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        let wrong = |errno: Errno| RootError::Open { path: path.to_owned(), source: errno.into() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(wrong)?;
        let seen = seen_of(fd.as_fd()).map_err(wrong)?;
        let id = RootId { device: seen.device, inode: seen.stat.inode, mount: seen.mount };
        Ok(Self { fd, path: path.to_owned(), id })
    }

    /// Asks the kernel whether `openat2` may be used: an old kernel has none, and the seccomp
    /// profile of an old container runtime denies it.
    pub fn probe(&self) -> Result<(), RootError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match open_once(self.fd.as_fd(), b".", flags) {
            Ok(_) => Ok(()),
            Err(errno @ (Errno::NOSYS | Errno::PERM)) => {
                Err(RootError::NoOpenat2 { source: errno.into() })
            }
            Err(errno) => Err(RootError::Open { path: self.path.clone(), source: errno.into() }),
        }
    }

    /// Whether the path that it was opened by still leads to the directory that is held.
    ///
    /// Compares inode and mount; the device only where there is no mount id.
    pub fn verify(&self) -> Result<(), RootError> {
        let now = Self::open(&self.path)?;
        let same = now.id.inode == self.id.inode
            && now.id.mount == self.id.mount
            && (now.id.mount != 0 || now.id.device == self.id.device);
        if same { Ok(()) } else { Err(RootError::Replaced { path: self.path.clone() }) }
    }

    /// The path that it was opened by: for people and for `verify`, not for access.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What makes it the directory that it is.
    pub const fn id(&self) -> RootId {
        self.id
    }

    /// The handle (`O_PATH`): for `*at` calls on names directly in the root.
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The root opened for listing.
    pub fn open_self(&self) -> std::io::Result<OwnedFd> {
        Ok(open_once(self.fd.as_fd(), b".", LIST)?)
    }

    /// Opens a directory for listing and for `*at` calls (`O_RDONLY`).
    pub fn open_dir(&self, path: &RepoPath) -> Result<OwnedFd, RootError> {
        self.open_beneath(path.as_bytes(), LIST).map_err(|errno| match errno {
            Errno::NOTDIR => RootError::WrongKind { path: path.clone(), wanted: "directory" },
            errno => RootError::at(path, errno),
        })
    }

    /// Opens a directory as a handle only (`O_PATH`): needs no right to read it.
    pub fn open_dir_handle(&self, path: &RepoPath) -> Result<OwnedFd, RootError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.open_beneath(path.as_bytes(), flags).map_err(|errno| match errno {
            Errno::NOTDIR => RootError::WrongKind { path: path.clone(), wanted: "directory" },
            errno => RootError::at(path, errno),
        })
    }

    /// Opens the directory that holds `path` as a handle (`O_PATH`), the root itself included.
    pub fn open_parent(&self, path: &RepoPath) -> Result<OwnedFd, RootError> {
        let held = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
        path.parent().map_or_else(
            || held(self.handle()).map_err(|source| RootError::Io { path: path.clone(), source }),
            |parent| self.open_dir_handle(&parent),
        )
    }

    /// Opens a regular file for reading. Anything else is [`RootError::WrongKind`], found without
    /// waiting: a named pipe does not block, a device is not touched before it is recognised.
    pub fn open_file(&self, path: &RepoPath) -> Result<File, RootError> {
        let wrong = || RootError::WrongKind { path: path.clone(), wanted: "regular file" };
        // A device acts on being opened: look first. The look after the open is what counts.
        match self.stat(path)? {
            Some(found) if found.kind == Kind::File => {}
            Some(_) => return Err(wrong()),
            None => return Err(RootError::at(path, Errno::NOENT)),
        }
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = self.open_beneath(path.as_bytes(), flags).map_err(|e| RootError::at(path, e))?;
        let seen = seen_of(fd.as_fd()).map_err(|e| RootError::at(path, e))?;
        if seen.kind == Kind::File { Ok(File::from(fd)) } else { Err(wrong()) }
    }

    /// The target of a symbolic link, as bytes.
    pub fn read_link(&self, path: &RepoPath) -> Result<Vec<u8>, RootError> {
        let dir = self.open_parent(path)?;
        match rustix::fs::readlinkat(&dir, OsStr::from_bytes(path.name()), Vec::new()) {
            Ok(target) => Ok(target.into_bytes()),
            Err(Errno::INVAL) => {
                Err(RootError::WrongKind { path: path.clone(), wanted: "symbolic link" })
            }
            Err(errno) => Err(RootError::at(path, errno)),
        }
    }

    /// What stands at a path; `None` where there is nothing, or where a part on the way is no
    /// directory (a link is none).
    ///
    /// A directory is a [`Kind::NestedRepository`] if it holds a `.git`, whatever the base says.
    pub fn stat(&self, path: &RepoPath) -> Result<Option<Found>, RootError> {
        let dir = match self.open_parent(path) {
            Ok(dir) => dir,
            Err(RootError::WrongKind { .. }) => return Ok(None),
            Err(RootError::Outside { source, .. })
                if Errno::from_io_error(&source) == Some(Errno::LOOP) =>
            {
                return Ok(None);
            }
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error),
        };
        let name = path.name();
        let seen = match seen_at(dir.as_fd(), OsStr::from_bytes(name)) {
            Ok(seen) => seen,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(RootError::at(path, errno)),
        };
        let mut kind = self.kind_of(&seen);
        if kind == Kind::Directory {
            let inside = open_once(dir.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY)
                .and_then(|inside| seen_at(inside.as_fd(), ".git"));
            if inside.is_ok_and(|seen| marks_repository(seen.kind)) {
                kind = Kind::NestedRepository;
            }
        }
        Ok(Some(Found { kind, stat: seen.stat }))
    }

    /// The kind, with a mount recognised. The mount id decides where there is one: files of an
    /// overlay may have another device than their directory without being a mount.
    pub(in crate::git) fn kind_of(&self, seen: &Seen) -> Kind {
        let mount = if seen.mount != 0 && self.id.mount != 0 {
            seen.mount != self.id.mount
        } else {
            seen.kind == Kind::Directory && seen.device != self.id.device
        };
        if mount { Kind::Mount } else { seen.kind }
    }

    /// `openat2` beneath the root for a path of any length.
    pub(in crate::git) fn open_beneath(
        &self,
        path: &[u8],
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        let mut at: Option<OwnedFd> = None;
        let mut rest = path;
        while rest.len() > CHUNK {
            // A part is at most 255 bytes, so that there is a `/` to cut at; a longer one is
            // answered by the kernel.
            let Some(cut) = rest[..CHUNK].iter().rposition(|b| *b == b'/') else {
                return Err(Errno::NAMETOOLONG);
            };
            let dir = at.as_ref().map_or(self.fd.as_fd(), OwnedFd::as_fd);
            let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = open_once(dir, &rest[..cut], step)?;
            at = Some(next);
            rest = &rest[cut + 1..];
        }
        open_once(at.as_ref().map_or(self.fd.as_fd(), OwnedFd::as_fd), rest, flags)
    }
}

/// How a directory is opened for listing.
pub(in crate::git) const LIST: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// Whether a `.git` of this kind makes its directory a repository of its own. A link counts: git
/// follows it.
pub(in crate::git) const fn marks_repository(kind: Kind) -> bool {
    !matches!(kind, Kind::Fifo | Kind::Socket | Kind::Device)
}

/// `openat2` beneath `dir`, asked again where a rename raced with it.
pub(in crate::git) fn open_once(
    dir: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    for _ in 0..RACES {
        match rustix::fs::openat2(
            dir,
            OsStr::from_bytes(path),
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            BENEATH,
        ) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// What stands at one name of an opened directory; links are not followed, nothing is mounted.
pub(in crate::git) fn seen_at(
    dir: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
) -> Result<Seen, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(dir, name, flags, WANTED).map(|statx| seen(&statx))
}

/// What an open handle is.
pub(in crate::git) fn seen_of(fd: BorrowedFd<'_>) -> Result<Seen, Errno> {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, WANTED).map(|statx| seen(&statx))
}

fn seen(statx: &Statx) -> Seen {
    let ns = |time: &rustix::fs::StatxTimestamp| {
        time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec))
    };
    let kind = match FileType::from_raw_mode(u32::from(statx.stx_mode)) {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::BlockDevice | FileType::CharacterDevice => Kind::Device,
        FileType::RegularFile | FileType::Unknown => Kind::File,
    };
    Seen {
        kind,
        stat: Stat {
            mode: u32::from(statx.stx_mode) & 0o7777,
            size: statx.stx_size,
            mtime_ns: ns(&statx.stx_mtime),
            ctime_ns: ns(&statx.stx_ctime),
            inode: statx.stx_ino,
            links: statx.stx_nlink,
            uid: statx.stx_uid,
            gid: statx.stx_gid,
        },
        device: rustix::fs::makedev(statx.stx_dev_major, statx.stx_dev_minor),
        mount: if statx.stx_mask & STATX_MNT_ID.bits() == 0 { 0 } else { statx.stx_mnt_id },
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn path(text: &str) -> RepoPath {
        RepoPath::new(text).expect("valid")
    }

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(dir.path().join("tree")).expect("made");
        let root = Root::open(&dir.path().join("tree")).expect("opened");
        root.probe().expect("openat2");
        (dir, root)
    }

    #[test]
    fn nothing_is_reached_through_links() {
        let (dir, root) = root();
        std::fs::write(dir.path().join("canary"), "outside").expect("written");
        std::fs::create_dir(root.path().join("real")).expect("made");
        std::fs::write(root.path().join("real/file"), "inside").expect("written");
        symlink("..", root.path().join("up")).expect("linked");
        symlink("real", root.path().join("alias")).expect("linked");
        symlink("real/file", root.path().join("name")).expect("linked");

        let mut text = String::new();
        root.open_file(&path("real/file")).expect("opens").read_to_string(&mut text).expect("read");
        assert_eq!(text, "inside");
        for through in ["up/canary", "alias/file"] {
            assert!(root.open_file(&path(through)).is_err(), "{through}");
            assert!(root.read_link(&path(through)).is_err(), "{through}");
            assert_eq!(root.stat(&path(through)).expect("no error"), None, "{through}");
        }
        assert!(root.open_dir(&path("alias")).is_err());
        assert!(matches!(root.open_file(&path("name")), Err(RootError::WrongKind { .. })));
        assert_eq!(root.read_link(&path("name")).expect("read"), b"real/file");
        let found = root.stat(&path("alias")).expect("no error").expect("stands");
        assert_eq!(found.kind, Kind::Symlink);
    }

    #[test]
    fn special_files_do_not_block() {
        let (_dir, root) = root();
        let fifo = root.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("made");
        let _socket = UnixListener::bind(root.path().join("socket")).expect("bound");
        for (name, kind) in [("fifo", Kind::Fifo), ("socket", Kind::Socket)] {
            assert_eq!(root.stat(&path(name)).expect("stat").map(|f| f.kind), Some(kind));
            assert!(matches!(root.open_file(&path(name)), Err(RootError::WrongKind { .. })));
        }
        assert_eq!(root.stat(&path("fifo/x")).expect("no error"), None);
        assert_eq!(root.stat(&path("none")).expect("no error"), None);
    }

    #[test]
    fn a_replaced_root_is_noticed_and_the_handle_still_leads_to_the_old_one() {
        let (dir, root) = root();
        root.verify().expect("the same");
        std::fs::rename(root.path(), dir.path().join("moved")).expect("moved");
        assert!(root.verify().is_err());
        std::fs::create_dir(root.path()).expect("made");
        assert!(matches!(root.verify(), Err(RootError::Replaced { .. })));
        std::fs::write(dir.path().join("moved/file"), "x").expect("written");
        assert!(root.stat(&path("file")).expect("stat").is_some());
        std::fs::remove_dir(root.path()).expect("removed");
        symlink("moved", root.path()).expect("linked");
        // The same directory by way of a link is the same directory.
        root.verify().expect("the same");
    }

    #[test]
    fn paths_longer_than_the_system_allows() {
        let (_dir, root) = root();
        let part = "p".repeat(250);
        let mut at = root.open_self().expect("opened");
        for _ in 0..40 {
            rustix::fs::mkdirat(&at, part.as_str(), Mode::RWXU).expect("made");
            at = open_once(at.as_fd(), part.as_bytes(), LIST).expect("opened");
        }
        let file = rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR)
            .expect("made");
        drop(file);
        let deep = path(&format!("{}/file", vec![part.as_str(); 40].join("/")));
        assert!(deep.as_bytes().len() > 10_000);
        root.open_file(&deep).expect("opens");
        assert!(root.stat(&deep).expect("stat").is_some());
        root.open_dir(&deep.parent().expect("has one")).expect("opens");
    }

    #[test]
    fn a_directory_with_git_inside_is_a_repository_of_its_own() {
        let (_dir, root) = root();
        for (name, make_dir) in [("a", true), ("b", false)] {
            std::fs::create_dir(root.path().join(name)).expect("made");
            let inner = root.path().join(name).join(".git");
            if make_dir {
                std::fs::create_dir(inner).expect("made");
            } else {
                std::fs::write(inner, "gitdir: elsewhere").expect("written");
            }
            let found = root.stat(&path(name)).expect("stat").expect("stands");
            assert_eq!(found.kind, Kind::NestedRepository);
        }
    }

    #[test]
    fn mounts_are_recognised_and_not_crossed() {
        let (_dir, root) = root();
        std::fs::create_dir(root.path().join("mnt")).expect("made");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "none"])
            .arg(root.path().join("mnt"))
            .output();
        if !mounted.is_ok_and(|out| out.status.success()) {
            #[allow(clippy::print_stderr)]
            {
                eprintln!("SKIPPED: cannot mount here");
            }
            return;
        }
        std::fs::write(root.path().join("mnt/file"), "x").expect("written");
        let kind = root.stat(&path("mnt")).expect("stat").expect("stands").kind;
        let opened = root.open_dir(&path("mnt")).is_err();
        let inside = root.open_file(&path("mnt/file")).is_err();
        let gone = std::process::Command::new("umount").arg(root.path().join("mnt")).status();
        assert!(gone.is_ok_and(|status| status.success()));
        assert_eq!(kind, Kind::Mount);
        assert!(opened && inside);
    }
}
