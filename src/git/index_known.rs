//! What this process knows of index files that it has read: their digest by how the file looked,
//! their meaning by the digest. An index of 100,000 paths takes longer to read, to hash and to
//! parse than all that is done with it.
//!
//! # Limitations
//! A file is taken for the one that was read where inode, size, times, mode and owner are the
//! same and the last change was older than the clock can tell apart: the proof that the scan has.

use std::collections::VecDeque;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::dir::{Dir, DirError};
use super::index::{Index, IndexError, Meaning};
use super::root::{seen_at, seen_of};
use super::scan::stat_is_proof;
use crate::base::clock::file_clock_ns;
use crate::tx::entry::Stat;

/// The name of the file in a work tree's git directory.
const NAME: &str = "index";

/// How many are remembered: those of before and after an attempt, with room.
const MOST: usize = 8;

/// SHA-256 of the bytes of an index file: equal means equal, different means nothing.
pub type IndexDigest = [u8; 32];

/// A file as it looked when it was read.
struct SeenFile {
    git_dir: PathBuf,
    stat: Stat,
    digest: IndexDigest,
}

static FILES: Mutex<VecDeque<SeenFile>> = Mutex::new(VecDeque::new());
static MEANINGS: Mutex<VecDeque<(IndexDigest, Meaning)>> = Mutex::new(VecDeque::new());

/// SHA-256 of bytes.
pub fn digest(bytes: &[u8]) -> IndexDigest {
    Sha256::digest(bytes).into()
}

/// The index file of a git directory with its digest, links not followed; `None` where there is
/// none.
pub fn read(git_dir: &Path) -> Result<Option<(Vec<u8>, IndexDigest)>, DirError> {
    let dir = Dir::open(git_dir)?;
    let looked_ns = file_clock_ns();
    let Some(mut file) = dir.open_file(NAME.as_bytes())? else { return Ok(None) };
    let failed = |error: std::io::Error| DirError::new("read", &git_dir.join(NAME), error);
    let look = |file: &std::fs::File| seen_of(file.as_fd()).map_err(|e| failed(e.into()));
    let before = look(&file)?.stat;
    let mut bytes = Vec::with_capacity(usize::try_from(before.size).unwrap_or(0).saturating_add(1));
    file.read_to_end(&mut bytes).map_err(failed)?;
    let digest = digest(&bytes);
    if look(&file)?.stat == before && stat_is_proof(&before, looked_ns) {
        let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
        files.truncate(MOST - 1);
        files.push_front(SeenFile { git_dir: git_dir.to_owned(), stat: before, digest });
    }
    Ok(Some((bytes, digest)))
}

/// The digest of the index file of a git directory; one that is known is not read.
pub fn digest_now(git_dir: &Path) -> Result<Option<IndexDigest>, DirError> {
    if let Some(digest) = known_file(git_dir)? {
        return Ok(Some(digest));
    }
    Ok(read(git_dir)?.map(|(_, digest)| digest))
}

fn known_file(git_dir: &Path) -> Result<Option<IndexDigest>, DirError> {
    let dir = Dir::open(git_dir)?;
    // What cannot be looked at is told by who reads it.
    let Ok(now) = seen_at(dir.as_fd(), NAME) else { return Ok(None) };
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = files.iter().find(|file| file.git_dir == git_dir && file.stat == now.stat);
    Ok(known.map(|file| file.digest))
}

/// What the index file of a git directory means; `None` where there is none.
pub fn meaning_now(git_dir: &Path) -> Result<Option<Meaning>, IndexError> {
    if let Some(meaning) = known_file(git_dir)?.and_then(|digest| known_meaning(&digest)) {
        return Ok(Some(meaning));
    }
    let Some((bytes, digest)) = read(git_dir)? else { return Ok(None) };
    meaning_by(digest, &bytes).map(Some)
}

/// What the bytes of an index file mean.
pub fn meaning_of(bytes: &[u8]) -> Result<Meaning, IndexError> {
    meaning_by(digest(bytes), bytes)
}

fn meaning_by(digest: IndexDigest, bytes: &[u8]) -> Result<Meaning, IndexError> {
    if let Some(meaning) = known_meaning(&digest) {
        return Ok(meaning);
    }
    let meaning = Index::parse(bytes)?.meaning();
    remember(digest, meaning);
    Ok(meaning)
}

fn known_meaning(digest: &IndexDigest) -> Option<Meaning> {
    let known = MEANINGS.lock().unwrap_or_else(PoisonError::into_inner);
    known.iter().find(|(known, _)| known == digest).map(|(_, meaning)| *meaning)
}

/// Lets this module know what the bytes with a digest mean.
pub fn remember(digest: IndexDigest, meaning: Meaning) {
    let mut known = MEANINGS.lock().unwrap_or_else(PoisonError::into_inner);
    known.truncate(MOST - 1);
    known.push_front((digest, meaning));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::index::IndexChange;
    use crate::git::testkit::Repo;
    use crate::tx::path::RepoPath;

    /// However fast one change follows another, what is told is what stands there.
    #[test]
    fn never_tells_what_no_longer_stands_there() {
        let repo = Repo::new();
        let git_dir = repo.git_dir();
        repo.commit("a", "one\n");
        let mut index =
            Index::parse(&read(&git_dir).expect("read").expect("there").0).expect("own");
        for round in 0..300_u32 {
            let id =
                crate::tx::id::Oid::from_bytes([u8::try_from(round % 251).expect("small"); 20]);
            let path = RepoPath::new("a").expect("valid");
            let changes = [IndexChange { path, to: Some((0o100_644, id, None)) }];
            index = index.with_changes(&changes, None);
            let bytes = index.to_bytes();
            // Into the same inode, as git never does: only times tell.
            std::fs::write(git_dir.join(NAME), &bytes).expect("written");
            for _ in 0..2 {
                assert_eq!(digest_now(&git_dir).expect("read"), Some(digest(&bytes)), "{round}");
                let meaning = meaning_now(&git_dir).expect("read");
                assert_eq!(meaning, Some(index.meaning()), "{round}");
            }
        }
        std::fs::remove_file(git_dir.join(NAME)).expect("removed");
        assert_eq!(digest_now(&git_dir).expect("looked"), None);
        assert_eq!(meaning_now(&git_dir).expect("looked"), None);
    }
}
