//! Notes that save time: small files that tell what was found out once. Checked when read, never
//! synced; one that is lost or damaged is found out again.
//!
//! # Limitations
//! The check finds damage, not forgery: nothing may rest on a note that its directory's owner
//! could not do anyway.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// What a note says; `None` where there is none, or a damaged one.
pub fn read(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let (said, sum) = text.strip_suffix('\n')?.rsplit_once(' ')?;
    (sum == sum_of(said)).then(|| said.to_owned())
}

/// Writes a note, over one that is there: no file is made or removed for it. Who reads meanwhile
/// finds it damaged, and finds out again.
///
/// # Errors
/// What the system said: nothing that has to be told to anybody.
pub fn write(path: &Path, said: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let text = format!("{said} {}\n", sum_of(said));
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

fn sum_of(said: &str) -> String {
    format!("{:08x}", crc32fast::hash(said.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_note_says_nothing() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("note");
        assert_eq!(read(&path), None);
        write(&path, "one two")?;
        write(&path, "three four five")?;
        assert_eq!(read(&path).as_deref(), Some("three four five"));
        write(&path, "three four")?;
        assert_eq!(read(&path).as_deref(), Some("three four"));
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 1);
        let whole = std::fs::read(&path)?;
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut])?;
            assert_eq!(read(&path), None, "{cut}");
        }
        std::fs::write(&path, "three five 00000000\n")?;
        assert_eq!(read(&path), None);
        Ok(())
    }
}
