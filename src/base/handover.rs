//! A document handed over to whoever asked for it, at a path that is theirs: a file is replaced
//! whole, and what is no file (a pipe, a device) is written to and stays what it is.
//!
//! Nothing beside the path is touched: the temporary file has a name that nothing had before.
//!
//! # Limitations
//! A file that cannot be replaced (its folder may not be written to, or it is mounted by itself) is
//! written in place, so that a reader may see a part. A handle by its name in `/proc` that is not
//! this process's standard output or error is written at its end. A pipe that nobody reads is an error, not a wait; one whose reader stops reading is waited
//! for. A file that was replaced has the mode that it had, and its owner and group where that may be.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::durable::{parent_of, sync_dir};

/// Puts `bytes` at `path`, durably where a file stands there or nothing; a new file has `mode`.
///
/// # Errors
/// Whatever keeps it from being written. What stood at `path` stands there as before then, unless
/// it had to be written in place.
pub fn hand_over(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let path = &end_of_links(path)?;
    if let Some(number) = handle(path) {
        return match number {
            1 => io::stdout().lock().write_all(bytes).and_then(|()| io::stdout().flush()),
            2 => io::stderr().lock().write_all(bytes),
            // What was written to it before stays.
            _ => OpenOptions::new().append(true).open(path)?.write_all(bytes),
        };
    }
    match std::fs::metadata(path) {
        Ok(there) if there.is_file() => match replace(path, bytes, mode, Some(&there)) {
            Err(error) if is_kept(&error) => {
                let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
                file.write_all(bytes)?;
                file.sync_all()
            }
            replaced => replaced,
        },
        Ok(there) if there.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(_) => {
            // Without waiting for a reader to come; what comes then may wait for it to read.
            let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
            let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
            let mut file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
            let set = rustix::fs::fcntl_getfl(&file)?;
            rustix::fs::fcntl_setfl(&file, set - OFlags::NONBLOCK)?;
            file.write_all(bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => replace(path, bytes, mode, None),
        Err(error) => Err(error),
    }
}

/// Where a path leads whose last part is a link. The name of a handle is no such link: it leads to
/// what is open, whatever its text says.
fn end_of_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    // As many as the kernel follows (`path_resolution(7)`).
    for _ in 0..40 {
        match std::fs::read_link(&path) {
            Ok(target) if handle(&path).is_none() => path = parent_of(&path).join(target),
            _ => return Ok(path),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// The number of a handle by its name in `/proc` (`proc_pid_fd(5)`), 0 where it is another process's.
fn handle(path: &Path) -> Option<u32> {
    let number = path.file_name()?.to_str()?.parse::<u32>().ok()?;
    let folder = parent_of(path).canonicalize().ok()?;
    let in_proc = folder.strip_prefix("/proc").ok()?;
    let own = std::process::id().to_string();
    let is_own = in_proc.starts_with(&own);
    (in_proc.file_name()? == "fd").then_some(if is_own { number } else { 0 })
}

/// Whether what stands there can be written to, and not replaced.
fn is_kept(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::ResourceBusy
            | io::ErrorKind::InvalidFilename
    )
}

fn replace(path: &Path, bytes: &[u8], mode: u32, there: Option<&Metadata>) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    name.push(format!(".{}", ulid::Ulid::generate()));
    let temporary = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    let placed = fill(&mut file, bytes, there).and_then(|()| std::fs::rename(&temporary, path));
    if placed.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    placed.and_then(|()| sync_dir(parent_of(path)))
}

fn fill(file: &mut File, bytes: &[u8], there: Option<&Metadata>) -> io::Result<()> {
    if let Some(there) = there {
        // The owner first: a change of it takes bits of the mode away.
        let _ = std::os::unix::fs::fchown(&*file, Some(there.uid()), Some(there.gid()));
        file.set_permissions(there.permissions())?;
    }
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).expect("readable").map(|e| e.expect("readable"));
        let mut names: Vec<_> =
            entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_nothing_beside_it() {
        let dir = tempfile::tempdir().expect("made");
        let file = dir.path().join("out");
        std::fs::write(dir.path().join("out.new"), "mine").expect("written");
        hand_over(&file, b"one", 0o600).expect("new");
        assert_eq!(file.metadata().expect("there").permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).expect("set");
        hand_over(&file, b"two", 0o600).expect("replaced");
        assert_eq!(file.metadata().expect("there").permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read(&file).expect("read"), b"two");
        assert_eq!(std::fs::read(dir.path().join("out.new")).expect("read"), b"mine");
        assert_eq!(names(dir.path()), ["out", "out.new"]);
    }

    #[test]
    fn links_are_followed_and_stay() {
        let dir = tempfile::tempdir().expect("made");
        let (link, target) = (dir.path().join("link"), dir.path().join("target"));
        symlink("target", &link).expect("made");
        hand_over(&link, b"one", 0o600).expect("made there");
        hand_over(&link, b"two", 0o600).expect("replaced there");
        assert!(link.symlink_metadata().expect("there").is_symlink());
        assert_eq!(std::fs::read(&target).expect("read"), b"two");
        assert_eq!(names(dir.path()), ["link", "target"]);
        symlink("round", dir.path().join("round")).expect("made");
        assert!(hand_over(&dir.path().join("round"), b"x", 0o600).is_err());
    }

    #[test]
    fn a_handle_by_its_name_is_written_at_its_end() {
        use std::os::fd::AsRawFd as _;
        let dir = tempfile::tempdir().expect("made");
        let log = dir.path().join("log");
        std::fs::write(&log, "before\n").expect("written");
        let open = OpenOptions::new().append(true).open(&log).expect("open");
        let link = dir.path().join("link");
        for path in ["/proc/self/fd", "/dev/fd", "/proc/thread-self/fd"] {
            let name = Path::new(path).join(open.as_raw_fd().to_string());
            hand_over(&name, b"one\n", 0o600).expect("written");
            let _ = std::fs::remove_file(&link);
            symlink(&name, &link).expect("made");
            hand_over(&link, b"two\n", 0o600).expect("written");
        }
        assert_eq!(
            std::fs::read_to_string(&log).expect("read"),
            "before\n".to_owned() + &"one\ntwo\n".repeat(3)
        );
        assert_eq!(open.metadata().expect("there").nlink(), 1, "the same file");
    }

    #[test]
    fn what_cannot_be_replaced_is_written_in_place() {
        let dir = tempfile::tempdir().expect("made");
        // With what a temporary name adds, too long a name.
        let file = dir.path().join("x".repeat(250));
        std::fs::write(&file, "a long one").expect("written");
        hand_over(&file, b"new", 0o600).expect("written");
        assert_eq!(std::fs::read(&file).expect("read"), b"new");
    }

    #[test]
    fn what_is_no_file_stays_what_it_is() {
        let dir = tempfile::tempdir().expect("made");
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).expect("made");
        assert!(hand_over(&pipe, b"nobody", 0o600).is_err(), "nobody reads, and nobody waits");
        // More than a pipe holds.
        let much = vec![b'x'; 200_000];
        let reader = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).expect("open");
        let read = std::thread::spawn(move || {
            let mut all = vec![0; 200_000];
            (&reader).read_exact(&mut all).map(|()| all)
        });
        hand_over(&pipe, &much, 0o600).expect("read at the other end");
        assert!(read.join().expect("ends").expect("read") == much);
        assert!(pipe.metadata().expect("there").file_type().is_fifo());
        let error = hand_over(dir.path(), b"x", 0o600).expect_err("a folder");
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
        assert!(hand_over(&dir.path().join("no/where"), b"x", 0o600).is_err());
        assert_eq!(names(dir.path()), ["pipe"]);
    }
}
