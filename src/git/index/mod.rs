//! git's index: reading what a turn left without believing it, and writing the one that stands
//! after a promotion.
//!
//! Of an index that a turn may have written only paths, modes, ids, stages and flags are compared
//! and only the set of stage-0 paths is used; times and sizes in it prove nothing. An index is
//! never compared by bytes: `git status` rewrites it whenever somebody looks ([`Index::meaning`]).
//!
//! Own code, since what libgit2 reads it also judges (it refuses extensions that have to be told
//! apart here) and what it writes loses flags.
//!
//! # Limitations
//! Versions 2 to 4, SHA-1. Split and sparse indexes are recognised, not read. Extensions are not
//! kept: git makes the cache tree and the untracked cache again when it needs them.

pub mod form;
pub mod known;
pub mod splice;

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use bstr::{BStr, ByteSlice as _};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

use crate::git::files::dir::{Dir, DirError};
use crate::git::index::form::{cut, offset, put_offset, stat_words, word};
use crate::git::objects::store::{Held, Store, StoreError};
use crate::git::refs::locks::{self, Guarded, LockError, Target};
use crate::tx::entry::{GIT_TREE, Stat};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;

const ASSUME_VALID: u16 = 0x8000;
pub(super) const EXTENDED: u16 = 0x4000;
const STAGE_SHIFT: u16 = 12;
pub(super) const NAME_MASK: u16 = 0x0fff;
const SKIP_WORKTREE: u16 = 0x4000;
const INTENT_TO_ADD: u16 = 0x2000;
/// Bytes of an entry before its flags: ten words of `stat`, and the id.
pub(super) const FIXED: usize = 60;

/// An index could not be read or put in place.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The file.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A tree that it was compared with.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It does not follow git's format.
    #[error("the index does not follow git's format: {0}")]
    Malformed(&'static str),
    /// A split index: its entries are in another file.
    #[error("the index is split (`git update-index --no-split-index` joins it)")]
    Split,
    /// A sparse index: some of its entries are folders.
    #[error("the index is sparse (`git sparse-checkout disable` fills it)")]
    Sparse,
}

impl From<&'static str> for IndexError {
    fn from(why: &'static str) -> Self {
        Self::Malformed(why)
    }
}

/// What a user or a turn may have said about a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--assume-unchanged`: git does not look at the file.
    pub assume_unchanged: bool,
    /// `--skip-worktree`: git takes the file for there.
    pub skip_worktree: bool,
    /// `git add -N`: there is no content yet.
    pub intent_to_add: bool,
}

/// An entry.
#[derive(Clone, Copy, Debug)]
pub struct IndexEntry<'a> {
    /// The path; always one that [`RepoPath`] takes.
    pub path: &'a BStr,
    /// git's mode.
    pub mode: u32,
    /// The object.
    pub id: Oid,
    /// 0, or 1 to 3 in a conflict.
    pub stage: u8,
    /// Its flags.
    pub flags: Flags,
}

impl IndexEntry<'_> {
    /// The path as the rest of worktx has it.
    ///
    /// # Panics
    /// Never: every path was checked when the index was read.
    pub fn repo_path(&self) -> RepoPath {
        RepoPath::new(self.path.to_owned()).expect("checked when the index was read")
    }
}

#[derive(Clone, Copy)]
struct Raw {
    /// ctime, mtime (seconds and nanoseconds each), device, inode, mode, uid, gid, size.
    stat: [u32; 10],
    id: Oid,
    flags: u16,
    extended: u16,
    name: (usize, usize),
}

/// An index, read.
pub struct Index {
    version: u32,
    names: Vec<u8>,
    entries: Vec<Raw>,
}

/// SHA-256 over what an index means: equal for two that differ in `stat` data, extensions or
/// version alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Meaning(pub [u8; 32]);

/// The index file, links not followed; `None` where there is none. A folder in its place is an
/// error: it means no empty index, and nothing can be put in its place.
fn open(git_dir: &Path) -> Result<Option<File>, DirError> {
    let dir = Dir::open(git_dir)?;
    match dir.open_file(b"index")? {
        None if dir.dir(b"index")?.is_some() => {
            let error = std::io::Error::from(std::io::ErrorKind::IsADirectory);
            Err(DirError::new("read", &dir.path_of(b"index"), error))
        }
        file => Ok(file),
    }
}

/// The bytes of an index file, links not followed; `None` where there is none.
pub fn load(git_dir: &Path) -> Result<Option<Vec<u8>>, DirError> {
    let Some(mut file) = open(git_dir)? else { return Ok(None) };
    let mut bytes = Vec::new();
    let read = file.read_to_end(&mut bytes);
    read.map_err(|error| DirError::new("read", &git_dir.join("index"), error))?;
    Ok(Some(bytes))
}

/// Reads the index of a work tree; `None` where there is none (as after `git init`).
pub fn read(git_dir: &Path) -> Result<Option<Index>, IndexError> {
    load(git_dir)?.map(|bytes| Index::parse(&bytes)).transpose()
}

/// Whether two indexes say the same.
pub fn same_meaning(a: &Index, b: &Index) -> bool {
    a.meaning() == b.meaning()
}

impl Index {
    /// One without entries: what a missing file means.
    pub const fn empty() -> Self {
        Self { version: 2, names: Vec::new(), entries: Vec::new() }
    }

    /// Reads an index file. Never believes a length that is not there.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        let bad = IndexError::Malformed;
        let end = bytes.len().checked_sub(20).ok_or(bad("too short"))?;
        let (body, sum) = bytes.split_at(end);
        // Zeros: `index.skipHash`.
        if sum != [0; 20] && Sha1::digest(body).as_slice() != sum {
            return Err(bad("its checksum is wrong"));
        }
        let mut rest = body;
        if cut(&mut rest, 4)? != b"DIRC" {
            return Err(bad("no DIRC at its start"));
        }
        let version = word(cut(&mut rest, 4)?);
        if !(2..=4).contains(&version) {
            return Err(bad("a version that is not 2, 3 or 4"));
        }
        let count = usize::try_from(word(cut(&mut rest, 4)?)).unwrap_or(usize::MAX);
        let mut index =
            Self { version, names: Vec::with_capacity(rest.len() / 2), entries: Vec::new() };
        index.entries.reserve(count.min(rest.len() / (FIXED + 2)));
        for _ in 0..count {
            index.parse_entry(&mut rest)?;
        }
        while !rest.is_empty() {
            let name = cut(&mut rest, 4)?;
            let length = usize::try_from(word(cut(&mut rest, 4)?)).unwrap_or(usize::MAX);
            cut(&mut rest, length)?;
            match name {
                b"link" => return Err(IndexError::Split),
                b"sdir" => return Err(IndexError::Sparse),
                // An upper-case letter means that it can be left out.
                [b'A'..=b'Z', ..] => {}
                _ => return Err(bad("an extension that is needed and unknown")),
            }
        }
        Ok(index)
    }

    fn parse_entry(&mut self, rest: &mut &[u8]) -> Result<(), IndexError> {
        let bad = IndexError::Malformed;
        let start = rest.len();
        let fixed = cut(rest, FIXED + 2)?;
        let mut stat = [0; 10];
        for (slot, bytes) in stat.iter_mut().zip(fixed.chunks_exact(4)) {
            *slot = word(bytes);
        }
        let id = Oid::from_bytes(fixed[40..60].try_into().expect("twenty bytes"));
        let flags = u16::from_be_bytes([fixed[60], fixed[61]]);
        let mut extended = 0;
        if flags & EXTENDED != 0 {
            if self.version < 3 {
                return Err(bad("extended flags in version 2"));
            }
            let bytes = cut(rest, 2)?;
            extended = u16::from_be_bytes([bytes[0], bytes[1]]);
        }
        let from = self.names.len();
        if self.version == 4 {
            let strip = offset(rest)?;
            let before = self.entries.last().map_or(0..0, |last| last.name.0..last.name.1);
            let keep =
                before.len().checked_sub(strip).ok_or(bad("a name that goes back too far"))?;
            self.names.extend_from_within(before.start..before.start + keep);
        }
        let zero = rest.find_byte(0).ok_or(bad("a name without an end"))?;
        self.names.extend_from_slice(cut(rest, zero)?);
        if self.version == 4 {
            cut(rest, 1)?;
        } else {
            let used = start - rest.len();
            cut(rest, (used / 8 + 1) * 8 - used)?;
        }
        let raw = Raw { stat, id, flags, extended, name: (from, self.names.len()) };
        let name = &self.names[from..];
        if raw.mode() == GIT_TREE || name.ends_with(b"/") {
            return Err(IndexError::Sparse);
        }
        // Only the entries that replace those of a shared index have no name.
        if name.is_empty() {
            return Err(IndexError::Split);
        }
        if name.split(|b| *b == b'/').any(|p| matches!(p, b"" | b"." | b"..")) {
            return Err(bad("a path that is none"));
        }
        if let Some(last) = self.entries.last() {
            let last = (&self.names[last.name.0..last.name.1], last.stage());
            if last >= (name, raw.stage()) {
                return Err(bad("entries that are out of order"));
            }
        }
        self.entries.push(raw);
        Ok(())
    }

    fn name(&self, raw: &Raw) -> &BStr {
        self.names[raw.name.0..raw.name.1].as_bstr()
    }

    /// The entries, by path and stage.
    pub fn entries(&self) -> impl Iterator<Item = IndexEntry<'_>> {
        self.entries.iter().map(|raw| IndexEntry {
            path: self.name(raw),
            mode: raw.mode(),
            id: raw.id,
            stage: raw.stage(),
            flags: raw.flags(),
        })
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The stage-0 entry of a path.
    pub fn get(&self, path: &[u8]) -> Option<IndexEntry<'_>> {
        let at = self.entries.partition_point(|raw| **self.name(raw) < *path);
        let raw =
            self.entries.get(at).filter(|raw| **self.name(raw) == *path && raw.stage() == 0)?;
        let (mode, id, flags) = (raw.mode(), raw.id, raw.flags());
        Some(IndexEntry { path: self.name(raw), mode, id, stage: 0, flags })
    }

    /// The paths that are tracked: all that a turn's index is believed in.
    pub fn paths_stage0(&self) -> impl Iterator<Item = &BStr> {
        self.entries.iter().filter(|raw| raw.stage() == 0).map(|raw| self.name(raw))
    }

    /// The paths in conflict.
    pub fn conflicts(&self) -> Vec<RepoPath> {
        let mut paths: Vec<RepoPath> =
            self.entries().filter(|e| e.stage > 0).map(|e| e.repo_path()).collect();
        paths.dedup();
        paths
    }

    /// Whether nothing in it has a flag or a stage, so that a tree says all that it means.
    pub fn is_plain(&self) -> bool {
        self.entries.iter().all(|raw| raw.stage() == 0 && raw.flags() == Flags::default())
    }

    /// What it means, as one value.
    pub fn meaning(&self) -> Meaning {
        let mut hash = Sha256::new();
        for entry in self.entries() {
            let Flags { assume_unchanged, skip_worktree, intent_to_add } = entry.flags;
            let flags = u8::from(assume_unchanged)
                | u8::from(skip_worktree) << 1
                | u8::from(intent_to_add) << 2;
            hash.update(entry.mode.to_be_bytes());
            hash.update(entry.id.as_bytes());
            hash.update([entry.stage, flags]);
            hash.update(entry.path);
            hash.update([0]);
        }
        Meaning(hash.finalize().into())
    }

    /// The paths that it holds otherwise than a tree does, with what the tree holds: what is
    /// staged, if the tree is HEAD's; what to change, if it is the candidate's. Conflicts and
    /// `git add -N` count as otherwise.
    pub fn differs_from_tree(
        &self,
        store: &Store,
        tree: Oid,
    ) -> Result<Vec<(RepoPath, Option<Held>)>, IndexError> {
        let mut differ: Vec<(RepoPath, Option<Held>)> = Vec::new();
        let mut own = self.entries().peekable();
        let mut walk = store.tree_walk(tree);
        let mut next = walk.next().transpose()?;
        loop {
            let order = match (own.peek(), &next) {
                (None, None) => return Ok(differ),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(entry), Some((path, ..))) => entry.path.as_bytes().cmp(path.as_bytes()),
            };
            if order == Ordering::Less {
                if let Some(entry) = own.next() {
                    // The higher stages of a path that the tree has were told with it.
                    let path = entry.repo_path();
                    if differ.last().is_none_or(|(last, _)| *last != path) {
                        differ.push((path, None));
                    }
                }
                continue;
            }
            let Some((path, mode, id)) = next.take() else { continue };
            next = walk.next().transpose()?;
            let same = order == Ordering::Equal
                && own.next().is_some_and(|entry| {
                    (entry.mode, entry.id, entry.stage) == (mode, id, 0)
                        && !entry.flags.intent_to_add
                });
            if !same {
                differ.push((path, Some((mode, id))));
            }
        }
    }

    /// The index after a promotion: this one with `changes`. `None` takes a path out.
    ///
    /// Paths that are not named keep their entry and its `stat`, so that git need not read the
    /// files again. A changed path gets the given `stat`; without one git reads the file at its
    /// next look. A path that takes the place of a folder takes out what was beneath it, and the
    /// other way round. Flags are those of `base` (the index at open) where it is given: what the
    /// turn set is gone, what was there stays.
    #[must_use]
    pub fn with_changes(&self, changes: &[IndexChange], base: Option<&Self>) -> Self {
        let changes: BTreeMap<&[u8], &IndexChange> =
            changes.iter().map(|change| (change.path.as_bytes(), change)).collect();
        let mut folders = HashSet::new();
        let mut files = HashSet::new();
        for (path, change) in &changes {
            if change.to.is_some() {
                files.insert(*path);
                for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
                    folders.insert(&path[..at]);
                }
            }
        }
        let in_way = |path: &[u8]| {
            folders.contains(path)
                || path.iter().enumerate().any(|(at, b)| *b == b'/' && files.contains(&path[..at]))
        };
        let mut out = Self {
            version: self.version,
            names: Vec::with_capacity(self.names.len() + changes.len() * 32),
            entries: Vec::with_capacity(self.entries.len() + changes.len()),
        };
        let mut old = self.entries.iter().peekable();
        let mut new = changes.into_iter().peekable();
        let flags_of = |path: &[u8], now: Flags| match base {
            Some(base) => base.get(path).map_or_else(Flags::default, |entry| entry.flags),
            None => now,
        };
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(raw), Some((path, _))) => self.name(raw).as_bytes().cmp(*path),
            };
            if order == Ordering::Less {
                let Some(raw) = old.next() else { continue };
                let name = self.name(raw).as_bytes();
                if files.is_empty() || !in_way(name) {
                    let mut raw = *raw;
                    raw.set_flags(flags_of(name, raw.flags()));
                    out.push(name, raw);
                }
                continue;
            }
            let Some((path, change)) = new.next() else { continue };
            let mut now = Flags::default();
            while let Some(raw) = old.next_if(|raw| self.name(raw).as_bytes() == path) {
                now = raw.flags();
            }
            if let Some((mode, id, stat)) = change.to {
                let stat = stat.map_or([0; 10], |stat| stat_words(&stat));
                let mut raw = Raw { stat, id, flags: 0, extended: 0, name: (0, 0) };
                raw.stat[6] = mode;
                raw.set_flags(Flags { intent_to_add: false, ..flags_of(path, now) });
                out.push(path, raw);
            }
        }
        out
    }

    fn push(&mut self, name: &[u8], mut raw: Raw) {
        let from = self.names.len();
        self.names.extend_from_slice(name);
        raw.name = (from, self.names.len());
        self.entries.push(raw);
    }

    /// The index of a tree, made from nothing but it: `stat_of` says how the file of a path looks,
    /// if it holds just that.
    pub fn from_tree(
        store: &Store,
        tree: Oid,
        mut stat_of: impl FnMut(&RepoPath, Held) -> Option<Stat>,
    ) -> Result<Self, IndexError> {
        let mut index = Self::empty();
        for entry in store.tree_walk(tree) {
            let (path, mode, id) = entry?;
            let stat = stat_of(&path, (mode, id)).map_or([0; 10], |stat| stat_words(&stat));
            let mut raw = Raw { stat, id, flags: 0, extended: 0, name: (0, 0) };
            raw.stat[6] = mode;
            index.push(path.as_bytes(), raw);
        }
        Ok(index)
    }

    /// The file, without extensions.
    ///
    /// # Panics
    /// With 2^32 entries.
    pub fn to_bytes(&self) -> Vec<u8> {
        let extended = self.entries.iter().any(|raw| raw.extended != 0);
        let version = if extended { self.version.max(3) } else { self.version };
        let mut out = Vec::with_capacity(32 + self.names.len() + self.entries.len() * 72);
        out.extend_from_slice(b"DIRC");
        out.extend_from_slice(&version.to_be_bytes());
        let count = u32::try_from(self.entries.len()).expect("fewer than 2^32 entries");
        out.extend_from_slice(&count.to_be_bytes());
        let mut last: Range<usize> = 0..0;
        for raw in &self.entries {
            let start = out.len();
            for word in raw.stat {
                out.extend_from_slice(&word.to_be_bytes());
            }
            out.extend_from_slice(raw.id.as_bytes());
            let name = &self.names[raw.name.0..raw.name.1];
            let length = u16::try_from(name.len()).map_or(NAME_MASK, |n| n.min(NAME_MASK));
            let extended = if raw.extended == 0 { 0 } else { EXTENDED };
            let flags = raw.flags & !(EXTENDED | NAME_MASK) | extended | length;
            out.extend_from_slice(&flags.to_be_bytes());
            if raw.extended != 0 {
                out.extend_from_slice(&raw.extended.to_be_bytes());
            }
            if version == 4 {
                let before = &self.names[last];
                let same = before.iter().zip(name).take_while(|(a, b)| a == b).count();
                put_offset(&mut out, before.len() - same);
                out.extend_from_slice(&name[same..]);
                out.push(0);
            } else {
                out.extend_from_slice(name);
                let used = out.len() - start;
                out.resize(start + (used / 8 + 1) * 8, 0);
            }
            last = raw.name.0..raw.name.1;
        }
        let sum = Sha1::digest(&out);
        out.extend_from_slice(&sum);
        out
    }
}

/// One path of [`Index::with_changes`].
#[derive(Clone, Debug)]
pub struct IndexChange {
    /// Where.
    pub path: RepoPath,
    /// Mode, object, and how the file looks that holds just that; `None` takes the path out.
    pub to: Option<(u32, Oid, Option<Stat>)>,
}

impl Raw {
    const fn mode(&self) -> u32 {
        self.stat[6]
    }

    fn stage(&self) -> u8 {
        u8::try_from(self.flags >> STAGE_SHIFT & 3).expect("two bits")
    }

    const fn flags(&self) -> Flags {
        Flags {
            assume_unchanged: self.flags & ASSUME_VALID != 0,
            skip_worktree: self.extended & SKIP_WORKTREE != 0,
            intent_to_add: self.extended & INTENT_TO_ADD != 0,
        }
    }

    const fn set_flags(&mut self, flags: Flags) {
        self.flags &= !ASSUME_VALID;
        if flags.assume_unchanged {
            self.flags |= ASSUME_VALID;
        }
        self.extended = 0;
        if flags.skip_worktree {
            self.extended |= SKIP_WORKTREE;
        }
        if flags.intent_to_add {
            self.extended |= INTENT_TO_ADD;
        }
    }
}

/// Puts a saved index file back, durable, by git's protocol: under `index.lock`, by rename.
/// `None`: there was none, so it is removed. May be called again after a crash.
pub fn restore(target: &Target, saved: Option<&[u8]>, bound: Duration) -> Result<(), IndexError> {
    let locks = locks::take_index(target, bound)?;
    let result = put_back(target, saved);
    locks.release()?;
    Ok(result?)
}

fn put_back(target: &Target, saved: Option<&[u8]>) -> Result<(), DirError> {
    let place = target.place(Guarded::Index)?;
    // No file takes the place of a folder. One with something in it is an operator's to judge.
    place.dir.remove_dir(&place.name);
    if let Some(bytes) = saved {
        target.write_pending(Guarded::Index, bytes)?;
        target.put_in_place(Guarded::Index)?;
        return target.sync_places(&[Guarded::Index]);
    }
    place.dir.unlink(&place.name)?;
    place.dir.sync()
}
