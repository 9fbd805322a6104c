//! Removing a folder with everything in it, whatever a program has left there: closed directories,
//! pipes and sockets, links, immutable marks, trees without a bottom.
//!
//! Everything goes by directory handles from the folder's parent on: no link is followed and no
//! mount is crossed (`openat2`), so that nothing outside is ever touched. What lies very deep is
//! moved up first, so that neither the number of open handles nor the stack grows with the depth.
//!
//! # Limitations
//! For scratch folders that nobody works in any more: what somebody adds meanwhile may stay. What
//! another user owns stays to an unprivileged caller. Nothing is synced.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    self, AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags, RenameFlags, ResolveFlags,
};
use rustix::io::Errno;

/// How many handles are open at once, at most: deeper directories are moved up first.
const HANDLES: usize = 48;

/// How every step is resolved.
const STAY: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// A directory that is being emptied.
struct Level {
    handle: OwnedFd,
    /// Its name in the one before.
    name: Vec<u8>,
    /// What is left in it to be looked at.
    names: Vec<Vec<u8>>,
}

/// Removes what stands at `path`, a folder with everything in it; that nothing stands there is no
/// error. As much as can go goes: the error is the first that was met.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("a folder without a name"));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match fs::openat(CWD, parent, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        opened => opened?,
    };
    let name = name.as_bytes();
    match unlink(parent.as_fd(), name) {
        Err(Errno::ISDIR) => {}
        done => return Ok(done?),
    }
    let mut moved = 0;
    loop {
        let before = moved;
        let top = Level::open(parent.as_fd(), name)?;
        let failed = empty(top, &mut moved);
        if let Some(errno) = failed {
            return Err(errno.into());
        }
        // What was moved up is looked at in another pass.
        if moved == before {
            return Ok(forced(parent.as_fd(), name, AtFlags::REMOVEDIR)?);
        }
    }
}

/// Empties a directory; what lies too deep is moved into it and counted. Gives the first error.
fn empty(top: Level, moved: &mut u64) -> Option<Errno> {
    let mut failed = None;
    let mut note = |errno| {
        failed.get_or_insert(errno);
    };
    let mut levels = vec![top];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            let Some(done) = levels.pop() else { break };
            let Some(above) = levels.last() else { break };
            let Level { name, .. } = done;
            match forced(above.handle.as_fd(), &name, AtFlags::REMOVEDIR) {
                // Somebody's error has been noted already.
                Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(errno) => note(errno),
            }
            continue;
        };
        match unlink(level.handle.as_fd(), &name) {
            Ok(()) => continue,
            Err(Errno::ISDIR) => {}
            Err(errno) => {
                note(errno);
                continue;
            }
        }
        if levels.len() < HANDLES {
            let Some(level) = levels.last() else { break };
            match Level::open(level.handle.as_fd(), &name) {
                Ok(inner) => levels.push(inner),
                Err(errno) => note(errno),
            }
        } else if let Err(errno) = move_up(&levels, &name, moved) {
            note(errno);
        }
    }
    failed
}

/// Moves a directory of the deepest level into the top one, under a name of its own.
fn move_up(levels: &[Level], name: &[u8], moved: &mut u64) -> Result<(), Errno> {
    let (Some(top), Some(deepest)) = (levels.first(), levels.last()) else { return Ok(()) };
    // A directory that moves gets another `..`, for which it must be open to its owner.
    Level::open(deepest.handle.as_fd(), name)?;
    loop {
        *moved += 1;
        let new = format!(".moved-up-{moved}");
        match fs::renameat_with(
            &deepest.handle,
            OsStr::from_bytes(name),
            &top.handle,
            new.as_str(),
            RenameFlags::NOREPLACE,
        ) {
            Err(Errno::EXIST) => {}
            done => return done,
        }
    }
}

impl Level {
    /// Opens a directory, by force where its owner closed it, and lists it.
    fn open(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Self, Errno> {
        let handle = step(dir, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
        let mode = fs::fstat(&handle)?.st_mode & 0o7777;
        if mode & 0o700 != 0o700 {
            let itself = format!("/proc/self/fd/{}", handle.as_raw_fd());
            fs::chmodat(CWD, itself, Mode::from_raw_mode(mode | 0o700), AtFlags::empty())?;
        }
        let handle = step(handle.as_fd(), b".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&handle)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(Self { handle, name: name.to_vec(), names })
    }
}

fn step(dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut tries = 0;
    loop {
        let flags = flags | OFlags::CLOEXEC;
        match fs::openat2(dir, OsStr::from_bytes(name), flags, Mode::empty(), STAY) {
            Err(Errno::AGAIN | Errno::INTR) if tries < 100 => tries += 1,
            done => return done,
        }
    }
}

/// Removes what is no directory; `ISDIR` where it is one.
fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    forced(dir, name, AtFlags::empty())
}

/// Removes a name, and clears the marks that keep it; gone is gone.
fn forced(dir: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> Result<(), Errno> {
    let remove = || fs::unlinkat(dir, OsStr::from_bytes(name), flags);
    let done = match remove() {
        Err(Errno::PERM) if clear_marks(dir, name) => remove(),
        done => done,
    };
    match done {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

/// Clears the immutable and append-only marks of a directory and of what stands at a name in it;
/// whether there were any, and they are gone.
fn clear_marks(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    let marks = IFlags::IMMUTABLE | IFlags::APPEND;
    let clear = |handle: Result<OwnedFd, Errno>| {
        let Ok(handle) = handle else { return false };
        fs::ioctl_getflags(&handle).is_ok_and(|flags| {
            flags.intersects(marks) && fs::ioctl_setflags(&handle, flags.difference(marks)).is_ok()
        })
    };
    // A device acts on being opened: look first.
    let kind = fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW)
        .map(|stat| FileType::from_raw_mode(stat.st_mode));
    let own = matches!(kind, Ok(FileType::RegularFile | FileType::Directory))
        && clear(step(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK));
    clear(step(dir, b".", OFlags::RDONLY | OFlags::DIRECTORY)) || own
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
mod tests {
    use std::fs::{self as files, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::process::Command;

    use super::*;

    #[test]
    fn whatever_is_left_goes_and_nothing_outside() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let outside = dir.path().join("outside");
        files::create_dir(&outside)?;
        files::write(outside.join("canary"), "sings")?;
        let top = dir.path().join("scratch");
        files::create_dir_all(top.join("closed/inner"))?;
        files::write(top.join("closed/inner/file"), "x")?;
        files::write(top.join("read-only"), "x")?;
        files::set_permissions(top.join("read-only"), Permissions::from_mode(0o0))?;
        symlink(&outside, top.join("link"))?;
        symlink("nowhere", top.join("closed/dangling"))?;
        assert!(Command::new("mkfifo").arg(top.join("pipe")).status()?.success());
        std::os::unix::net::UnixListener::bind(top.join("socket"))?;
        files::hard_link(outside.join("canary"), top.join("hard"))?;
        files::set_permissions(top.join("closed/inner"), Permissions::from_mode(0o0))?;
        files::set_permissions(top.join("closed"), Permissions::from_mode(0o111))?;
        files::set_permissions(&top, Permissions::from_mode(0o500))?;
        remove_tree(&top)?;
        assert!(top.symlink_metadata().is_err());
        assert_eq!(files::read(outside.join("canary"))?, b"sings");
        // Again, and where there is a link or no parent.
        remove_tree(&top)?;
        symlink(&outside, &top)?;
        remove_tree(&top)?;
        assert!(top.symlink_metadata().is_err() && outside.join("canary").exists());
        remove_tree(&dir.path().join("no/such"))
    }

    #[test]
    fn a_tree_without_a_bottom_goes() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let top = dir.path().join("scratch");
        files::create_dir(&top)?;
        // Deeper than `PATH_MAX` and than the handles that a process has; one part is closed.
        let mut at = OwnedFd::from(files::File::open(&top)?);
        for depth in 0..3000 {
            rustix::fs::mkdirat(&at, "a-longer-name", Mode::RWXU)?;
            rustix::fs::mkdirat(&at, ".moved-up-1", Mode::empty())?;
            let next = step(at.as_fd(), b"a-longer-name", OFlags::RDONLY)?;
            if depth % 700 == 0 {
                rustix::fs::fchmod(&at, Mode::RUSR)?;
            }
            at = next;
        }
        drop(at);
        remove_tree(&top)?;
        assert!(!top.exists());
        Ok(())
    }

    #[test]
    fn marks_are_cleared_and_mounts_are_not_crossed() -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: needs root");
            return Ok(());
        }
        let dir = tempfile::tempdir()?;
        let top = dir.path().join("scratch");
        files::create_dir_all(top.join("marked"))?;
        files::write(top.join("marked/file"), "x")?;
        let mark = |path: &Path| Command::new("chattr").arg("+i").arg(path).status();
        let marked = mark(&top.join("marked/file")).and_then(|_| mark(&top.join("marked")));
        if !marked.is_ok_and(|status| status.success()) {
            println!("SKIPPED: no immutable marks here");
            return remove_tree(&top);
        }
        remove_tree(&top)?;
        assert!(!top.exists());

        files::create_dir_all(top.join("mount"))?;
        files::write(top.join("beside"), "x")?;
        let mount =
            |args: &[&str]| Command::new(args[0]).args(&args[1..]).arg(top.join("mount")).status();
        if !mount(&["mount", "-t", "tmpfs", "tmpfs"])?.success() {
            println!("SKIPPED: no right to mount");
            return Ok(());
        }
        files::write(top.join("mount/canary"), "sings")?;
        let removed = remove_tree(&top);
        let sings = top.join("mount/canary").exists();
        mount(&["umount"])?;
        assert!(removed.is_err() && sings && !top.join("beside").exists());
        remove_tree(&top)
    }
}
