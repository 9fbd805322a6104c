//! The scan: where the tree may differ from the manifest, by stat data alone; and the id of the
//! bytes that stand somewhere.
//!
//! A path is listed if the base has it, or the base's rules do not ignore it, or the rules that
//! stand in the tree now do not ignore it, and its stat data is no proof that it is the same. The
//! bytes decide afterwards ([`raw_id`]).
//!
//! Two uses: with [`ScanRequest::base`] it tells what was done since the base was taken; without,
//! it brings a manifest up to what stands in the tree now ([`crate::git::manifest::baseline`]).
//!
//! Order rules: the clock is read before the first look, so that a change in the same tick as the
//! look can never hide behind equal times.
//!
//! # Limitations
//! Of a directory, kind, permission bits and owner count, not its times. A page that is mapped for
//! writing changes without a new ctime until it is written back: whoever maps it must be dead. On a
//! file system in memory it may never get one. A file system that stamps by another machine's clock (NFS) may give a proof too early.

pub(super) mod clocks;
pub mod mark;
pub mod pool;
pub mod rules;
#[cfg(test)]
mod tests;
pub mod walk;
pub mod watch;

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsFd as _;

use sha1::{Digest as _, Sha1};

use crate::base::clock::file_clock_ns;
use crate::git::files::root::{Root, RootError, marks_repository, seen_of};
use crate::git::manifest::IgnoredRules;
use crate::git::manifest::snapshot::Snapshot;
use crate::git::manifest::touched::Touched;
use crate::git::scan::rules::{BaseRules, Rules, RulesError};
use crate::tx::entry::{Change, Found, Kind, Stat};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;

/// How coarse the clock of a file system may be: 20 ms, twice the tick of a 100 Hz kernel.
pub const GRANULARITY_NS: i64 = 20_000_000;

/// What a scan may hold before it gives up with [`ScanError::TooMany`] or [`ScanError::TooDeep`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanLimits {
    /// Changes.
    pub changes: u64,
    /// Bytes of the paths of all changes.
    pub path_bytes: u64,
    /// Directories in each other.
    pub depth: u32,
}

impl Default for ScanLimits {
    /// A million changes, 128 MiB of paths, 4096 directories deep.
    fn default() -> Self {
        Self { changes: 1_000_000, path_bytes: 128 << 20, depth: 4096 }
    }
}

/// What to do with a directory that the base does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NewDirectories {
    /// List what is in it.
    #[default]
    Walk,
    /// List it alone: for moving it aside whole where its contents are beyond the limits.
    Whole,
}

/// What to scan.
#[derive(Clone, Copy)]
pub struct ScanRequest<'a> {
    /// The work tree.
    pub root: &'a Root,
    /// The base.
    pub snapshot: &'a Snapshot,
    /// Captured excludes and the scope.
    pub rules: &'a Rules,
    /// The base's own `.gitignore` files. `None`: the tree is to become the base, so that what
    /// stands in it is both views, and entries that are out of scope now are told as `dropped`.
    pub base: Option<&'a BaseRules>,
    /// Names directly in the root that are out of scope: worktx's temporary folders.
    pub temporary: &'a [Vec<u8>],
    /// See [`NewDirectories`].
    pub new_directories: NewDirectories,
    /// Look only at these directories: of every other one it is known that it is as the snapshot
    /// says. The answer is the same. `None`: look at all.
    pub only: Option<&'a Touched>,
    /// See [`ScanLimits`].
    pub limits: ScanLimits,
    /// Is told how many names have been looked at so far; by several threads.
    pub progress: Option<&'a (dyn Fn(u64) + Sync)>,
}

impl<'a> ScanRequest<'a> {
    /// A scan with the usual limits.
    pub fn new(
        root: &'a Root,
        snapshot: &'a Snapshot,
        rules: &'a Rules,
        base: Option<&'a BaseRules>,
    ) -> Self {
        Self {
            root,
            snapshot,
            rules,
            base,
            temporary: &[],
            new_directories: NewDirectories::Walk,
            only: None,
            limits: ScanLimits::default(),
            progress: None,
        }
    }
}

/// What a scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The paths that are not known to be the same, sorted by their bytes: a directory comes
    /// before what is in it.
    pub changes: Vec<Change>,
    /// Directories that may not be read and `.gitignore` files that may not: nothing is known of
    /// what is beneath, and none of it is in `changes`. Sorted.
    pub unreadable: Vec<RepoPath>,
    /// `.gitignore` files of the tree that are above the bound, so that the turn's view goes
    /// without them. Sorted.
    pub oversized_rules: Vec<RepoPath>,
    /// The directories (empty bytes for the root) that hold a `.gitattributes`, of those in scope.
    /// Sorted.
    pub attributes: Vec<Vec<u8>>,
    /// Only without a base: entries of the manifest that are ignored or excluded by now and that
    /// git does not track. Sorted.
    pub dropped: Vec<RepoPath>,
    /// Of the tree as it is: see [`IgnoredRules`].
    pub ignored_rules: IgnoredRules,
    /// Only of a bounded look: directories with other rules than the snapshot was made by.
    /// Everything beneath them was looked at.
    pub(super) reread: Vec<Vec<u8>>,
    /// The clock that files are stamped with, before the first look.
    pub started_ns: i64,
    /// How many names were looked at, ignored ones among them.
    pub looked_at: u64,
}

/// A scan could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// More changes than the limits allow.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Directories in each other beyond the limit.
    #[error("{path} lies more than {limit} directories deep")]
    TooDeep {
        /// The first that does.
        path: RepoPath,
        /// The limit.
        limit: u32,
    },
    /// Somebody exchanged it during the scan.
    #[error("{path} changed while it was looked at")]
    Unstable {
        /// Where.
        path: RepoPath,
    },
    /// A file with rules cannot be read.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The system said no.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The root itself cannot be listed.
    #[error("cannot list the work tree: {0}")]
    List(std::io::Error),
}

/// Scans the tree.
pub fn scan(request: &ScanRequest<'_>) -> Result<Scan, ScanError> {
    crate::git::scan::walk::walk(request)
}

/// Whether this stat data, seen at a time when the files' clock stood at `looked_ns` or later,
/// may prove later that nothing changed: the last change must be older than what the clock can
/// tell apart.
///
/// A file system that keeps whole seconds (ext4 with inodes of 128 bytes) may mean any time within.
pub const fn stat_is_proof(stat: &Stat, looked_ns: i64) -> bool {
    looked_ns >= proof_from_ns(stat)
}

/// The first moment at which that may be so, by the files' clock.
pub(super) const fn proof_from_ns(stat: &Stat) -> i64 {
    const SECOND: i64 = 1_000_000_000;
    let latest = if stat.ctime_ns % SECOND == 0 { stat.ctime_ns + SECOND } else { stat.ctime_ns };
    latest.saturating_add(GRANULARITY_NS + 1)
}

/// Bytes that were read once from one handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawFile {
    /// The id of the raw bytes as a git blob; [`Oid::ZERO`] of what has none.
    pub oid: Oid,
    /// The stat data, the same before and after.
    pub stat: Stat,
    /// See [`stat_is_proof`].
    pub stat_is_proof: bool,
}

/// The id of the bytes at a path, if they are what `found` saw and stay so while they are read:
/// else [`ScanError::Unstable`].
///
/// A file is opened once and streamed; `sink` gets its bytes in pieces (a link's target in one).
/// What git has no bytes for is only looked at again.
pub fn raw_id(
    root: &Root,
    path: &RepoPath,
    found: &Found,
    mut sink: impl FnMut(&[u8]),
) -> Result<RawFile, ScanError> {
    let unstable = || ScanError::Unstable { path: path.clone() };
    let looked_ns = file_clock_ns();
    let done = |oid| RawFile {
        oid,
        stat: found.stat,
        stat_is_proof: stat_is_proof(&found.stat, looked_ns),
    };
    match found.kind {
        Kind::File => {
            let mut file = match root.open_file(path) {
                Ok(file) => file,
                Err(error) if error.is_missing() => return Err(unstable()),
                Err(RootError::WrongKind { .. }) => return Err(unstable()),
                Err(error) => return Err(error.into()),
            };
            let same = |file: &File| match seen_of(file.as_fd()) {
                Ok(seen) if seen.stat == found.stat => Ok(()),
                Ok(_) => Err(unstable()),
                Err(errno) => Err(ScanError::from(RootError::at(path, errno))),
            };
            same(&file)?;
            let io = |source| RootError::Io { path: path.clone(), source };
            let oid = hash_stream(&mut file, found.stat.size, &mut sink).map_err(io)?;
            same(&file)?;
            oid.map(done).ok_or_else(unstable)
        }
        Kind::Symlink => {
            let target = match root.read_link(path) {
                Ok(target) => target,
                Err(error) if error.is_missing() => return Err(unstable()),
                Err(RootError::WrongKind { .. }) => return Err(unstable()),
                Err(error) => return Err(error.into()),
            };
            if root.stat(path)?.as_ref() != Some(found) {
                return Err(unstable());
            }
            sink(&target);
            Ok(done(blob_id(&target)))
        }
        _ => match root.stat(path)? {
            Some(now) if now.kind == found.kind => Ok(done(Oid::ZERO)),
            // `.git` in a folder of the base: what makes that a repository stands for it.
            Some(now) if found.kind == Kind::NestedRepository && marks_repository(now.kind) => {
                Ok(done(Oid::ZERO))
            }
            _ => Err(unstable()),
        },
    }
}

/// The id of bytes as a git blob.
pub fn blob_id(bytes: &[u8]) -> Oid {
    let mut hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    Oid::from_bytes(hash.finalize().into())
}

/// `None` where there are more or fewer bytes than `size`.
fn hash_stream(
    file: &mut File,
    size: u64,
    sink: &mut impl FnMut(&[u8]),
) -> std::io::Result<Option<Oid>> {
    let mut hash = Sha1::new_with_prefix(format!("blob {size}\0"));
    let mut buffer = vec![0; usize::try_from(size + 1).unwrap_or(usize::MAX).min(128 << 10)];
    let mut left = size;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        let Some(rest) = left.checked_sub(count as u64) else { return Ok(None) };
        left = rest;
        hash.update(&buffer[..count]);
        sink(&buffer[..count]);
    }
    Ok((left == 0).then(|| Oid::from_bytes(hash.finalize().into())))
}
