//! What is known of index files that were read: their digest by how the file looked, their meaning by
//! the digest. An index of 100,000 paths takes longer to read, to hash and to parse than all that is
//! done with it. A note of it ([`Noted`]) spares the next process that.
//!
//! # Limitations
//! A file is taken for the one that was read where inode, size and time of change of its bytes are
//! the same, and so is its trailer: git's checksum of all before it. Who writes into the file in
//! place, keeps these and spoils the rest has made an index that nobody can read; that is told where
//! it is read next. Without a trailer (`index.skipHash`) all of its stat data has to be the same, and
//! older than the clock can tell apart: the proof that the scan has.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::dir::{Dir, DirError};
use super::index::{Index, IndexError, Meaning};
use super::root::seen_of;
use super::scan::stat_is_proof;
use crate::base::clock::file_clock_ns;
use crate::tx::entry::Stat;
use crate::tx::id::Oid;

/// The name of the file in a work tree's git directory.
const NAME: &str = "index";

/// How many are remembered: those of before and after an attempt, with room.
const MOST: usize = 8;

/// SHA-256 of the bytes of an index file: equal means equal, different means nothing.
pub type IndexDigest = [u8; 32];

/// The last twenty bytes of an index file.
pub type Trailer = [u8; 20];

/// A file as it looked when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    stat: Stat,
    trailer: Trailer,
    stat_is_proof: bool,
}

impl Seen {
    /// Whether a file that looks like `now` has the bytes that were read.
    fn is(&self, now: &Self) -> bool {
        let looks = |stat: &Stat| (stat.inode, stat.size, stat.mtime_ns);
        let same = looks(&self.stat) == looks(&now.stat) && self.trailer == now.trailer;
        same && (self.trailer != Trailer::default()
            || (self.stat_is_proof && self.stat == now.stat))
    }
}

struct SeenFile {
    git_dir: PathBuf,
    seen: Seen,
    digest: IndexDigest,
}

/// What is known of an index that has what a tree has, for the next process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Noted {
    seen: Seen,
    /// Of its bytes.
    pub digest: IndexDigest,
    /// What it means.
    pub meaning: Meaning,
    /// The tree that it agrees with. It has no submodules.
    pub tree: Oid,
    /// Nothing in it has a flag, so that the tree says all that it means.
    pub is_plain: bool,
}

static FILES: Mutex<VecDeque<SeenFile>> = Mutex::new(VecDeque::new());
static MEANINGS: Mutex<VecDeque<(IndexDigest, Meaning)>> = Mutex::new(VecDeque::new());

/// SHA-256 of bytes.
pub fn digest(bytes: &[u8]) -> IndexDigest {
    Sha256::digest(bytes).into()
}

/// The trailer of the bytes of an index; zeros where there is none.
pub fn trailer(bytes: &[u8]) -> Trailer {
    bytes.last_chunk().copied().unwrap_or_default()
}

fn failed(git_dir: &Path) -> impl Fn(std::io::Error) -> DirError {
    let path = git_dir.join(NAME);
    move |error| DirError::new("read", &path, error)
}

fn look(file: &File) -> std::io::Result<Seen> {
    let looked_ns = file_clock_ns();
    let stat = seen_of(file.as_fd())?.stat;
    let mut trailer = Trailer::default();
    if let Some(at) = stat.size.checked_sub(trailer.len() as u64) {
        file.read_exact_at(&mut trailer, at)?;
    }
    Ok(Seen { stat, trailer, stat_is_proof: stat_is_proof(&stat, looked_ns) })
}

/// The index file of a git directory with its digest, links not followed; `None` where there is
/// none.
pub fn read(git_dir: &Path) -> Result<Option<(Vec<u8>, IndexDigest)>, DirError> {
    let failed = failed(git_dir);
    let dir = Dir::open(git_dir)?;
    let Some(mut file) = dir.open_file(NAME.as_bytes())? else { return Ok(None) };
    let before = look(&file).map_err(&failed)?;
    let size = usize::try_from(before.stat.size).unwrap_or(0);
    let mut bytes = Vec::with_capacity(size.saturating_add(1));
    file.read_to_end(&mut bytes).map_err(&failed)?;
    let digest = digest(&bytes);
    let after = look(&file).map_err(&failed)?;
    if after.stat == before.stat && trailer(&bytes) == after.trailer {
        see(git_dir, before, digest);
    }
    Ok(Some((bytes, digest)))
}

fn see(git_dir: &Path, seen: Seen, digest: IndexDigest) {
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    files.truncate(MOST - 1);
    files.push_front(SeenFile { git_dir: git_dir.to_owned(), seen, digest });
}

fn look_now(git_dir: &Path) -> Result<Option<Seen>, DirError> {
    let Some(file) = Dir::open(git_dir)?.open_file(NAME.as_bytes())? else { return Ok(None) };
    // One that is being written is told by who reads it.
    Ok(look(&file).ok())
}

/// Lets this module know that a file, which is to become the index, was just written with bytes of
/// this digest and trailer.
pub fn written(git_dir: &Path, file: &File, digest: IndexDigest, trailer: Trailer) {
    if let Ok(seen) = look(file)
        && seen.trailer == trailer
    {
        see(git_dir, Seen { stat_is_proof: false, ..seen }, digest);
    }
}

/// What an index file by another name means, if it is one that was read or written; it is not read
/// here.
pub fn meaning_known(file: &File) -> std::io::Result<Option<Meaning>> {
    Ok(digest_of(file)?.and_then(|digest| known_meaning(&digest)))
}

/// Lets this module know that bytes with a digest and a trailer were just put in place of the index.
pub fn placed(git_dir: &Path, digest: IndexDigest, trailer: Trailer) {
    if let Ok(Some(seen)) = look_now(git_dir)
        && seen.trailer == trailer
    {
        see(git_dir, Seen { stat_is_proof: false, ..seen }, digest);
    }
}

/// What is to be noted of an index that this process has read or put in place, and that has what
/// `tree` has, without submodules.
pub fn to_note(
    git_dir: &Path,
    digest: IndexDigest,
    meaning: Meaning,
    tree: Oid,
    is_plain: bool,
) -> Option<Noted> {
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let file = files.iter().find(|file| file.git_dir == git_dir && file.digest == digest)?;
    Some(Noted { seen: file.seen, digest, meaning, tree, is_plain })
}

/// Whether the index is the one that was noted: then it is known from now on, unread.
pub fn is_noted(git_dir: &Path, noted: &Noted) -> Result<bool, DirError> {
    let Some(now) = look_now(git_dir)?.filter(|now| noted.seen.is(now)) else { return Ok(false) };
    see(git_dir, Seen { stat_is_proof: noted.seen.stat_is_proof, ..now }, noted.digest);
    remember(noted.digest, noted.meaning);
    Ok(true)
}

/// The digest of an index file by another name, if it is one that was read; it is not read here.
pub fn digest_of(file: &File) -> std::io::Result<Option<IndexDigest>> {
    let now = look(file)?;
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(files.iter().find(|file| file.seen.is(&now)).map(|file| file.digest))
}

/// The digest of the index file of a git directory; one that is known is not read.
pub fn digest_now(git_dir: &Path) -> Result<Option<IndexDigest>, DirError> {
    if let Some(digest) = known_file(git_dir)? {
        return Ok(Some(digest));
    }
    Ok(read(git_dir)?.map(|(_, digest)| digest))
}

fn known_file(git_dir: &Path) -> Result<Option<IndexDigest>, DirError> {
    let Some(now) = look_now(git_dir)? else { return Ok(None) };
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = files.iter().find(|file| file.git_dir == git_dir && file.seen.is(&now));
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
