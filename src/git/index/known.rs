//! What is known of index files that were read: their digest by how the file looked, their meaning by
//! the digest. An index of 100,000 paths takes longer to read, to hash and to parse than all that is
//! done with it. A note of it ([`Noted`]) spares the next process that.
//!
//! A file is taken for the one that was read where all its stat data is the same, and older than the
//! clock could tell apart when it was seen: the proof that the scan has. Where that is no proof, or
//! only the time of change of the inode differs (another name of it came or went), the bytes are
//! hashed and have to fit the trailer that was known. git itself reads an index without looking at
//! its trailer: the trailer alone says nothing.
//!
//! # Limitations
//! An index without a trailer (`index.skipHash`) is read again where stat data is no proof.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::base::clock::file_clock_ns;
use crate::base::hex::hex;
use crate::git::files::dir::DirError;
use crate::git::files::root::seen_of;
use crate::git::index;
use crate::git::index::{Index, IndexError, Meaning};
use crate::git::scan::{proof_from_ns, stat_is_proof};
use crate::tx::entry::Stat;
use crate::tx::id::Oid;

/// The name of the file in a work tree's git directory.
const NAME: &str = "index";

/// How many are remembered: those of before and after an attempt, with room.
const MOST: usize = 8;

/// What tells the bytes of an index file from all others: of two that were read, those that mean
/// something else differ as surely as by SHA-256, those that differ in times or extensions alone by
/// SHA-1, as git's trailer.
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

/// How a file stands to one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Likeness {
    /// It has the bytes.
    Same,
    /// It has them if they fit the trailer.
    IfWhole,
    Other,
}

impl Seen {
    fn likeness(&self, now: &Self) -> Likeness {
        let looks = |stat: &Stat| (stat.inode, stat.size, stat.mtime_ns);
        if looks(&self.stat) != looks(&now.stat) || self.trailer != now.trailer {
            Likeness::Other
        } else if self.stat_is_proof && self.stat == now.stat {
            Likeness::Same
        } else if self.trailer == Trailer::default() {
            Likeness::Other
        } else {
            Likeness::IfWhole
        }
    }
}

struct SeenFile {
    git_dir: PathBuf,
    seen: Seen,
    digest: IndexDigest,
}

/// What is known of an index that has what a tree has, for the next process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    seen: Seen,
    /// A power loss may take bytes and leave stat data.
    boot_id: String,
    /// Of its bytes. Until 26 November 2026 another one was called `digest`.
    #[serde(rename = "told_by")]
    pub digest: IndexDigest,
    /// What it means.
    pub meaning: Meaning,
    /// The tree that it agrees with. It has no submodules.
    pub tree: Oid,
    /// Nothing in it has a flag, so that the tree says all that it means.
    pub is_plain: bool,
}

impl Noted {
    /// How many bytes the file has.
    pub const fn size(&self) -> u64 {
        self.seen.stat.size
    }
}

static FILES: Mutex<VecDeque<SeenFile>> = Mutex::new(VecDeque::new());
static MEANINGS: Mutex<VecDeque<(IndexDigest, Meaning)>> = Mutex::new(VecDeque::new());

/// Of the bytes of an index file.
pub fn digest(bytes: &[u8]) -> IndexDigest {
    let plain = bytes.split_last_chunk().zip(index::splice::meaning(bytes));
    match plain {
        Some(((body, trailer), meaning)) => digest_by(Sha1::digest(body).into(), *trailer, meaning),
        None => Sha256::digest(bytes).into(),
    }
}

/// Whether bytes are those that a digest was noted of, in hex digits: also as attempts were recorded
/// until 26 November 2026, by SHA-256 of all bytes.
pub fn is_of(bytes: &[u8], told: &str) -> bool {
    hex(&digest(bytes)) == told || hex(&Sha256::digest(bytes)) == told
}

/// Of an index of the form that is spliced, by the SHA-1 of what is before its trailer.
pub fn digest_by(sum: Trailer, trailer: Trailer, meaning: Meaning) -> IndexDigest {
    Sha256::digest([b"index of\0".as_slice(), &sum, &trailer, &meaning.0].concat()).into()
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
    let Some(mut file) = index::open(git_dir)? else { return Ok(None) };
    let before = look(&file).map_err(&failed)?;
    let size = usize::try_from(before.stat.size).unwrap_or(0);
    let mut bytes = Vec::with_capacity(size.saturating_add(1));
    file.read_to_end(&mut bytes).map_err(&failed)?;
    let digest = digest(&bytes);
    let after = look(&file).map_err(&failed)?;
    if after.stat == before.stat && trailer(&bytes) == after.trailer {
        // What was read before, by the looks of the file before.
        see(git_dir, before, digest);
    }
    Ok(Some((bytes, digest)))
}

fn see(git_dir: &Path, seen: Seen, digest: IndexDigest) {
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    files.truncate(MOST - 1);
    files.push_front(SeenFile { git_dir: git_dir.to_owned(), seen, digest });
}

/// Whether a file has bytes that were read before; then it is known as it looks now.
fn recognise(git_dir: &Path, file: &File, known: Seen, digest: IndexDigest) -> bool {
    // One that is being written is told by who reads it.
    let Ok(now) = look(file) else { return false };
    match known.likeness(&now) {
        Likeness::Other => false,
        Likeness::Same => true,
        Likeness::IfWhole => {
            let is_whole = hashes_to(file, &now);
            if is_whole {
                see(git_dir, now, digest);
            }
            is_whole
        }
    }
}

/// Whether the bytes before the trailer hash to it, and the file looks the same after.
fn hashes_to(file: &File, seen: &Seen) -> bool {
    let mut hash = Sha1::new();
    let mut left = seen.stat.size.saturating_sub(seen.trailer.len() as u64);
    let (mut at, mut buffer) = (0, vec![0; 256 << 10]);
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        match file.read_at(&mut buffer[..want], at) {
            Ok(0) | Err(_) => return false,
            Ok(count) => {
                hash.update(&buffer[..count]);
                at += count as u64;
                left -= count as u64;
            }
        }
    }
    hash.finalize().as_slice() == seen.trailer
        && look(file).is_ok_and(|after| after.stat == seen.stat && after.trailer == seen.trailer)
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

/// What an index file means that this process has written and nobody else has a name of yet: by its
/// looks alone.
pub fn meaning_as_written(file: &File) -> std::io::Result<Option<Meaning>> {
    let now = look(file)?;
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = files
        .iter()
        .find(|file| file.seen.stat == now.stat && file.seen.likeness(&now) != Likeness::Other);
    Ok(known.and_then(|file| known_meaning(&file.digest)))
}

/// Lets this module know that bytes with a digest and a trailer were just put in place of the index.
pub fn placed(git_dir: &Path, digest: IndexDigest, trailer: Trailer) {
    if let Ok(Some(file)) = index::open(git_dir) {
        written(git_dir, &file, digest, trailer);
    }
}

/// Lets this module know that a known index has got another name, `file`: whether it is that one, by
/// its looks. Its bytes are looked at before anything rests on them.
pub fn linked(git_dir: &Path, file: &File, digest: IndexDigest) -> std::io::Result<bool> {
    let now = look(file)?;
    let is_it = {
        let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
        files
            .iter()
            .any(|known| known.digest == digest && known.seen.likeness(&now) != Likeness::Other)
    };
    if is_it {
        see(git_dir, Seen { stat_is_proof: false, ..now }, digest);
    }
    Ok(is_it)
}

/// What is to be noted of an index that this process has read or put in place, and that has what
/// `tree` has, without submodules.
pub fn to_note(
    git_dir: &Path,
    boot_id: &str,
    digest: IndexDigest,
    meaning: Meaning,
    tree: Oid,
    is_plain: bool,
) -> Option<Noted> {
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let file = files.iter().find(|file| file.git_dir == git_dir && file.digest == digest)?;
    let boot_id = boot_id.to_owned();
    Some(Noted { seen: file.seen, boot_id, digest, meaning, tree, is_plain })
}

/// Whether the index is the one that was noted: then it is known from now on.
pub fn is_noted(git_dir: &Path, boot_id: &str, noted: &Noted) -> Result<bool, DirError> {
    let Some(file) = index::open(git_dir)?.filter(|_| noted.boot_id == boot_id) else {
        return Ok(false);
    };
    if !recognise(git_dir, &file, noted.seen, noted.digest) {
        return Ok(false);
    }
    if noted.seen.stat_is_proof && look(&file).is_ok_and(|now| now.stat == noted.seen.stat) {
        see(git_dir, noted.seen, noted.digest);
    }
    remember(noted.digest, noted.meaning);
    Ok(true)
}

/// What is to be noted of an index from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It is proven, or not the one that was noted.
    Nothing,
    /// Its last change is too recent for its looks to prove anything later; so long from now they do.
    TooYoung(Duration),
    /// It has the bytes that it had, and its looks prove it from now on.
    Noted(Noted),
}

/// How long the clock that files are stamped with may stand still: a tick at 100 Hz.
const TICK: Duration = Duration::from_millis(10);

/// How long it is until stat data proves something, by the clock that files are stamped with.
fn until_proof(stat: &Stat) -> Duration {
    let left = proof_from_ns(stat).saturating_sub(file_clock_ns());
    TICK + Duration::from_nanos(u64::try_from(left).unwrap_or(0))
}

/// Looks at the bytes of an index whose looks were no proof when it was noted: for who has the time.
pub fn prove(git_dir: &Path, boot_id: &str, noted: &Noted) -> Result<Proof, DirError> {
    if noted.boot_id != boot_id || noted.seen.stat_is_proof {
        return Ok(Proof::Nothing);
    }
    let Some(file) = index::open(git_dir)? else { return Ok(Proof::Nothing) };
    let Ok(now) = look(&file) else { return Ok(Proof::Nothing) };
    Ok(match noted.seen.likeness(&now) {
        Likeness::IfWhole if !now.stat_is_proof => Proof::TooYoung(until_proof(&now.stat)),
        Likeness::IfWhole if hashes_to(&file, &now) => {
            Proof::Noted(Noted { seen: now, ..noted.clone() })
        }
        _ => Proof::Nothing,
    })
}

/// The digest of the index file of a git directory; one that is known is not read.
pub fn digest_now(git_dir: &Path) -> Result<Option<IndexDigest>, DirError> {
    if let Some(digest) = known_file(git_dir)? {
        return Ok(Some(digest));
    }
    Ok(read(git_dir)?.map(|(_, digest)| digest))
}

/// Whether the index file of a git directory looks like the one with this digest that this process
/// has read or written: its bytes are not looked at.
pub fn looks_known(git_dir: &Path, digest: IndexDigest) -> Result<bool, DirError> {
    let Some(file) = index::open(git_dir)? else { return Ok(false) };
    let Ok(now) = look(&file) else { return Ok(false) };
    let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let is_like = |known: &SeenFile| {
        known.git_dir == git_dir
            && known.digest == digest
            && known.seen.likeness(&now) != Likeness::Other
    };
    Ok(files.iter().any(is_like))
}

/// An index file whose bytes are known, for reading them once more.
#[derive(Debug)]
pub struct KnownFile {
    file: File,
    seen: Seen,
}

impl KnownFile {
    /// The index file of a git directory, where it looks like the one with this digest.
    pub fn open(git_dir: &Path, digest: IndexDigest) -> Result<Option<Self>, DirError> {
        let Some(file) = index::open(git_dir)? else { return Ok(None) };
        let Ok(now) = look(&file) else { return Ok(None) };
        let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
        let mut of_digest = files.iter().filter(|known| known.digest == digest);
        let is_known = of_digest
            .any(|known| known.git_dir == git_dir && known.seen.likeness(&now) != Likeness::Other);
        Ok(is_known.then_some(Self { file, seen: now }))
    }

    /// The file, at its beginning.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// How many bytes it has.
    pub const fn size(&self) -> u64 {
        self.seen.stat.size
    }

    /// Whether its bytes fit its trailer. Its looks tell nobody's damage, nor, on tmpfs, what was
    /// written through a mapping: whoever makes another index of it signs what it finds.
    pub fn is_whole(&self) -> bool {
        hashes_to(&self.file, &self.seen)
    }

    /// Whether both are the same file, as it looked then and now.
    pub fn is_as(&self, other: &Self) -> bool {
        self.seen.stat == other.seen.stat && self.seen.trailer == other.seen.trailer
    }

    /// Whether it still looks as it did when it was opened.
    pub fn is_still(&self) -> bool {
        look(&self.file)
            .is_ok_and(|now| now.stat == self.seen.stat && now.trailer == self.seen.trailer)
    }
}

fn known_file(git_dir: &Path) -> Result<Option<IndexDigest>, DirError> {
    let Some(file) = index::open(git_dir)? else { return Ok(None) };
    let Ok(now) = look(&file) else { return Ok(None) };
    let known = {
        let files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
        let like = |wanted| {
            files
                .iter()
                .find(|file| file.git_dir == git_dir && file.seen.likeness(&now) == wanted)
                .map(|file| (file.seen, file.digest))
        };
        like(Likeness::Same).or_else(|| like(Likeness::IfWhole))
    };
    Ok(known
        .filter(|(seen, digest)| recognise(git_dir, &file, *seen, *digest))
        .map(|(_, digest)| digest))
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

    /// Of a plain one, of one with a flag, and of what is no index.
    #[test]
    fn every_byte_counts() {
        let repo = Repo::new();
        repo.commit("a", "one\n");
        repo.git(&["status"]);
        let read = || read(&repo.git_dir()).expect("read").expect("there").0;
        let plain = read();
        repo.git(&["update-index", "--assume-unchanged", "a"]);
        for mut bytes in [plain, read(), b"DIRC".to_vec()] {
            let first = digest(&bytes);
            let told = [hex(&first), hex(&Sha256::digest(&bytes))];
            assert!(told.iter().all(|told| is_of(&bytes, told)), "by either formula");
            for at in 0..bytes.len() {
                bytes[at] ^= 4;
                assert_ne!(digest(&bytes), first, "{at}");
                assert!(!told.iter().any(|told| is_of(&bytes, told)), "{at}");
                bytes[at] ^= 4;
            }
            bytes.push(0);
            assert_ne!(digest(&bytes), first);
        }
    }

    /// In place, with the old trailer and the old time: git takes such an index for good.
    #[test]
    fn a_trailer_and_a_time_prove_nothing() {
        let repo = Repo::new();
        let git_dir = repo.git_dir();
        repo.commit("a", "one\n");
        let path = git_dir.join(NAME);
        let (bytes, digest) = read(&git_dir).expect("read").expect("there");
        let (meaning, boot) = (meaning_of(&bytes).expect("git's"), "boot");
        let noted = to_note(&git_dir, boot, digest, meaning, Oid::EMPTY_TREE, true).expect("known");
        // Another name of it is no change.
        std::fs::hard_link(&path, git_dir.join("other")).expect("linked");
        let file = File::open(git_dir.join("other")).expect("opened");
        assert!(linked(&git_dir, &file, digest).expect("looked"));
        assert_eq!(digest_now(&git_dir).expect("read"), Some(digest));
        assert!(is_noted(&git_dir, boot, &noted).expect("looked"));
        assert!(!is_noted(&git_dir, "another boot", &noted).expect("looked"));

        // Somebody looks at it in between: then its looks are the proof.
        let noted = Noted { seen: Seen { stat_is_proof: false, ..noted.seen }, ..noted };
        let now = || prove(&git_dir, boot, &noted).expect("looked");
        assert_eq!(prove(&git_dir, "another boot", &noted).expect("looked"), Proof::Nothing);
        let proven = loop {
            match now() {
                Proof::TooYoung(left) => {
                    assert!(left >= TICK && left < Duration::from_secs(2), "{left:?}");
                    std::thread::yield_now();
                }
                Proof::Noted(proven) => break proven,
                Proof::Nothing => panic!("it is the one"),
            }
        };
        assert!(is_noted(&git_dir, boot, &proven).expect("looked"));
        assert_eq!(prove(&git_dir, boot, &proven).expect("looked"), Proof::Nothing);

        let modified = std::fs::metadata(&path).and_then(|meta| meta.modified()).expect("a time");
        let mut spoilt = bytes;
        spoilt[12 + 60] |= 0x80;
        std::fs::write(&path, &spoilt).expect("written");
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(modified))
            .expect("set");
        assert!(repo.git(&["ls-files", "-v"]).starts_with("h "), "git believes it");
        assert_eq!(digest_now(&git_dir).expect("read"), Some(super::digest(&spoilt)));
        assert!(!is_noted(&git_dir, boot, &noted).expect("looked"));
        assert!(!is_noted(&git_dir, boot, &proven).expect("looked"));
        while matches!(now(), Proof::TooYoung(_)) {
            std::thread::yield_now();
        }
        assert_eq!(now(), Proof::Nothing, "other bytes");
    }
}
