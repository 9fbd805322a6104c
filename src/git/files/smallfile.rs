//! Reading the small files of a git directory: bounded, never waiting, regular files only.
//!
//! Order rules: none. What cannot be read whole is a typed error, not a part of it.
//!
//! # Limitations
//! Links are followed by [`read`]; [`read_beneath`] follows none.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// The most that one file of a git directory may hold to be read whole: 4 MiB.
pub const LIMIT: u64 = 4 << 20;

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// The file's bytes; `None` where there is none.
///
/// Errors: what the system says; `InvalidInput` where it is no regular file, `FileTooLarge` beyond
/// [`LIMIT`].
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    whole(rustix::fs::openat(CWD, path, FLAGS, Mode::empty()))
}

/// Like [`read`], of a file beneath an open directory, without following a link at any step.
pub fn read_beneath(dir: impl AsFd, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    whole(rustix::fs::openat2(dir, path, FLAGS, Mode::empty(), resolve))
}

fn whole(opened: rustix::io::Result<OwnedFd>) -> io::Result<Option<Vec<u8>>> {
    let file = match opened {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 4 MiB"));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_waits_and_never_reads_without_end() {
        let dir = tempfile::tempdir().expect("made");
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RWXU, 0).expect("made");
        assert_eq!(read(&fifo).expect_err("no file").kind(), io::ErrorKind::InvalidInput);
        assert!(read(Path::new("/dev/zero")).is_err());
        let large = dir.path().join("large");
        File::create(&large).expect("made").set_len(LIMIT + 1).expect("set");
        assert_eq!(read(&large).expect_err("large").kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(&dir.path().join("none/x")).expect("none"), None);
        std::os::unix::fs::symlink(&large, dir.path().join("link")).expect("made");
        let fd = File::open(dir.path()).expect("opened");
        assert!(read_beneath(&fd, Path::new("link")).is_err());
    }
}
