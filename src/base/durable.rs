//! Writes that are there after a power cut once they have returned: file, then name, then the
//! directory that holds the name.
//!
//! # Limitations
//! As durable as `fsync` of the file system is. An error of `fsync` is final: it is returned and
//! never retried, since the kernel may have dropped what it could not write.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::writeback::write_back;

/// Syncs a directory: the names in it are durable after this.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes a directory and all above it that are missing, each durable in its parent.
///
/// `mode` is that of the directories made.
pub fn create_dir_all(dir: &Path, mode: u32) -> io::Result<()> {
    grow(dir, mode)?.iter().try_for_each(|dir| sync_dir(dir))
}

/// As [`create_dir_all`], with the directories in which one was made: the caller syncs them, after
/// what else it makes, so that one commit of the file system's journal has it all.
pub fn grow(dir: &Path, mode: u32) -> io::Result<Vec<PathBuf>> {
    let mut missing: Vec<&Path> = Vec::new();
    let mut at = dir;
    while !at.is_dir() {
        missing.push(at);
        at = parent_of(at);
    }
    for dir in missing.iter().rev() {
        match std::fs::DirBuilder::new().mode(mode).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(missing.into_iter().map(|dir| parent_of(dir).to_owned()).collect())
}

/// Puts `bytes` at `path` whole: a reader sees the old file or the new one, never a part.
///
/// The file is made with `mode`; one that a crash left under the temporary name is replaced.
pub fn write_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    place_file(path, bytes, mode)?;
    sync_dir(parent_of(path))
}

/// Writes files into a directory that nobody looks into before this has returned, all of them
/// before the first sync, and syncs `other` with them, which has got a name there; then the
/// directory is synced.
pub fn write_new_files(
    dir: &Path,
    files: &[(&str, &[u8])],
    other: Option<File>,
    mode: u32,
) -> io::Result<()> {
    let made = files.iter().map(|(name, bytes)| {
        let mut file = create(&dir.join(name), mode)?;
        file.write_all(bytes)?;
        Ok(file)
    });
    let mut made = made.collect::<io::Result<Vec<File>>>()?;
    made.extend(other);
    write_back(&made);
    made.iter().try_for_each(File::sync_all)?;
    sync_dir(dir)
}

fn place_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary_name(path);
    let mut file = create(&temporary, mode)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// Makes a new file for writing; one that stands there is removed, not written into.
pub fn create(path: &Path, mode: u32) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

/// Removes a file, if it is there, for good.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_dir(parent_of(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn replaces_whole_and_by_mode() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("a/b/file");
        create_dir_all(path.parent().expect("has one"), 0o700)?;
        std::fs::write(path.with_file_name("file.new"), "left by a crash")?;
        write_file(&path, b"one", 0o600)?;
        write_file(&path, b"two", 0o600)?;
        assert_eq!(std::fs::read(&path)?, b"two");
        assert_eq!(std::fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
        assert!(!path.with_file_name("file.new").exists());
        remove_file(&path)?;
        remove_file(&path)?;
        assert!(!path.exists());
        Ok(())
    }
}
