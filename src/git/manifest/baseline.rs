//! Establishing the base: the manifest is brought up to what stands in the tree now, against the
//! tree of HEAD, and what may speak against it as a base is told.
//!
//! 1. Where HEAD's tree is another than the manifest's, a tree diff brings `tracked` up to date.
//! 2. A scan finds the paths whose stat data is no proof; their bytes are hashed, once, by two
//!    threads.
//! 3. A tracked path whose bytes, after git's conversions, are not its blob's is `modified`.
//! 4. Only where nothing is modified, or the dirty state is to be the base, the manifest is
//!    written; and only what differs, so that nothing is written where nothing changed.
//!
//! Order rules: hold the workspace lock; nothing may be unsettled here. The bytes of `untracked`
//! are to be pinned before the base is relied on.
//!
//! # Limitations
//! A dirty base is described without HEAD's tree, so that the next one is compared with all of it.
//! Symbolic links are expected to be links (`core.symlinks=false` makes them modified).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::base::spread;
use crate::git::config::attributes::{Attributes, CapturedAttributes, Unsupported};
use crate::git::config::convert::{AutoCrlf, Conversions};
use crate::git::files::root::{Root, RootError};
use crate::git::manifest::snapshot::Snapshot;
use crate::git::manifest::touched::{Touched, parent};
use crate::git::manifest::{Described, Manifest, ManifestError};
use crate::git::objects::store::{Store, StoreError};
use crate::git::scan::rules::{GITIGNORE, Rules, RulesError};
use crate::git::scan::{RawFile, ScanError, ScanLimits, ScanRequest, blob_id, raw_id, scan};
use crate::tx::entry::{
    Change, Entry, Found, GIT_FILE, GIT_LINK, GIT_SYMLINK, Kind, Stat, Tracked, git_mode,
};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;
use crate::tx::settings::Limits;

/// How often a file that changes while it is read is read again.
const READS: u32 = 4;

/// How many files make a second thread worth its start.
const ALONE: usize = 64;

/// So many files, of so many bytes together, are sooner read again next time than written down, where
/// all is looked at anyway.
pub const STALE: usize = 64;
const STALE_BYTES: u64 = 1 << 20;
/// As [`STALE`], where each of them is a directory more to look at.
pub const STALE_WATCHED: usize = 16;

/// What the base is established from.
pub struct BaselineRequest<'a> {
    /// The work tree.
    pub root: &'a Root,
    /// The objects.
    pub store: &'a Store,
    /// The tree of HEAD's commit.
    pub head_tree: Oid,
    /// Captured excludes and the scope.
    pub rules: &'a Rules,
    /// Captured attributes.
    pub attributes: &'a CapturedAttributes,
    /// `core.autocrlf` as captured.
    pub autocrlf: AutoCrlf,
    /// `core.fileMode` as captured: whether the executable bit counts.
    pub file_mode: bool,
    /// How much may be untracked.
    pub limits: Limits,
    /// See [`ScanRequest::temporary`].
    pub temporary: &'a [Vec<u8>],
    /// Take modified tracked content as the base (`--on-dirty capture`).
    pub keep_modified: bool,
    /// See [`ScanRequest::progress`].
    pub progress: Option<&'a (dyn Fn(u64) + Sync)>,
    /// See [`ScanRequest::only`]: of all other directories it is known that they are as the
    /// manifest says.
    pub only: Option<&'a Touched>,
    /// Of so many files the manifest may keep stat data that is out of date ([`STALE`]): where they
    /// are is told, and looked at again next time.
    pub stale: usize,
}

/// What stands in the tree, judged. Lists are sorted.
#[derive(Debug, Default)]
pub struct Baseline {
    /// Tracked paths whose content, kind or mode is not HEAD's, deleted ones among them. Where
    /// there are some, and they are not to be kept, nothing has been written.
    pub modified: Vec<RepoPath>,
    /// Files and links in scope that git does not track.
    pub untracked: Vec<(RepoPath, Entry)>,
    /// Their bytes.
    pub untracked_bytes: u64,
    /// Repositories within the tree: out of scope.
    pub nested: Vec<RepoPath>,
    /// Mounts within the tree: out of scope.
    pub mounts: Vec<RepoPath>,
    /// Named pipes, sockets, devices.
    pub special: Vec<RepoPath>,
    /// Submodules of HEAD: a refusal.
    pub submodules: Vec<RepoPath>,
    /// Paths that ask for a conversion which is not performed: a refusal.
    pub unsupported: Vec<(RepoPath, Unsupported)>,
    /// Directories with a `.gitattributes`.
    pub attributes: Vec<Vec<u8>>,
    /// The manifest's generation; unchanged where nothing was written.
    pub generation: u64,
    /// Whether something was written.
    pub written: bool,
    /// The directories whose children were written anew (empty bytes for the root). Sorted.
    pub rewritten: Vec<Vec<u8>>,
    /// The directories with stat data in the manifest that is out of date. Sorted.
    pub stale: Vec<Vec<u8>>,
    /// Whether the look was at all, whatever was asked for.
    pub full: bool,
    /// Whether a watch of what the manifest has sees all that the next look depends on. No where a
    /// `.gitattributes` is ignored itself.
    pub can_be_watched: bool,
    /// The base in memory.
    pub snapshot: Snapshot,
}

/// The base cannot be established.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// Untracked files beyond the limits.
    #[error("untracked files beyond the limits: {files} files, {bytes} bytes, {} too large", too_large.len())]
    TooMuch {
        /// Single files above the bound.
        too_large: Vec<RepoPath>,
        /// How many there are.
        files: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// What is in it cannot be known.
    #[error("cannot read {}", named(paths))]
    Unreadable {
        /// Which; never empty.
        paths: Vec<RepoPath>,
    },
    /// They kept changing while they were read.
    #[error("keeps changing: {}", named(paths))]
    Unstable {
        /// Which; never empty.
        paths: Vec<RepoPath>,
    },
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The scan.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// A `.gitattributes`.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// An object of HEAD cannot be read.
    #[error("cannot read HEAD's tree: {0}")]
    Store(#[from] StoreError),
}

fn named(paths: &[RepoPath]) -> String {
    match paths {
        [] => String::new(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

/// Brings the manifest up to what stands in the tree now. See the module.
pub fn establish(
    manifest: &mut Manifest,
    request: &BaselineRequest<'_>,
) -> Result<Baseline, BaselineError> {
    let old = if request.only.is_some() { manifest.load_by_lookup()? } else { manifest.load()? };
    let mut baseline = Baseline::default();
    let mut updates = BTreeMap::new();
    let mut current = old.clone();
    // Another root: nothing that the stat data says is about it.
    let moved = old.meta().described.root.is_some_and(|was| was.inode != request.root.id().inode);
    let from = old.meta().described.head_tree.filter(|_| !moved);
    let mut only = request.only.cloned().filter(|_| from.is_some());
    if from != Some(request.head_tree) {
        updates = tracked_updates(request, &current, from, moved, &mut baseline.submodules)?;
        // What HEAD says of them has changed: whether they are as it says has to be looked at.
        if let Some(only) = &mut only {
            for (path, entry) in &updates {
                only.path(path);
                let is_tracked = entry.as_ref().is_some_and(|entry| entry.tracked.is_some());
                let mut above = path.parent().filter(|_| !is_tracked);
                // Whether a directory above is ignored by now is seen where it is listed.
                while let Some(dir) = above {
                    only.path(&dir);
                    above = dir.parent();
                }
            }
        }
        current.apply(updates.clone());
    }
    if let Some(only) = &only {
        current.read_ahead(only)?;
    }
    let scanned = scan(&ScanRequest {
        temporary: request.temporary,
        limits: ScanLimits { changes: u64::MAX, ..ScanLimits::default() },
        progress: request.progress,
        only: only.as_ref(),
        ..ScanRequest::new(request.root, &current, request.rules, None)
    })?;
    if !scanned.unreadable.is_empty() {
        return Err(BaselineError::Unreadable { paths: scanned.unreadable });
    }
    let attributes = Attributes::of_tree(request.attributes, request.root, &scanned.attributes)?;
    let mut conversions = Conversions::new(attributes, request.autocrlf);
    updates.extend(scanned.dropped.into_iter().map(|path| (path, None)));
    judge_sizes(request, &scanned.changes)?;
    let files = read_all(request.root, &scanned.changes)?;
    for (change, read) in scanned.changes.into_iter().zip(files) {
        let tracked = change.before.as_ref().and_then(|before| before.tracked);
        let entry = read.map(|(found, raw)| Entry {
            kind: found.kind,
            stat: raw.stat,
            stat_is_proof: raw.stat_is_proof,
            raw: raw.oid,
            tracked: tracked.filter(|_| found.kind.is_storable()),
        });
        if let Some(tracked) = tracked
            && !is_committed(request, &mut conversions, &change.path, entry.as_ref(), tracked)?
        {
            baseline.modified.push(change.path.clone());
        }
        updates.insert(change.path, entry);
    }
    current.apply(updates.clone());
    updates.retain(|path, entry| old.get(path) != *entry);
    classify(&mut baseline, &current, &mut conversions);
    let (files, bytes) = (baseline.untracked.len() as u64, baseline.untracked_bytes);
    if files > request.limits.files || bytes > request.limits.total_bytes {
        return Err(BaselineError::TooMuch { too_large: Vec::new(), files, bytes });
    }
    let clean = baseline.modified.is_empty();
    let described =
        Described { head_tree: clean.then_some(request.head_tree), root: Some(request.root.id()) };
    let mut meta = old.meta();
    baseline.full = only.is_none();
    baseline.can_be_watched = scanned
        .attributes
        .iter()
        .all(|dir| current.row(dir).is_some_and(|row| row.get(b".gitattributes").is_some()));
    baseline.attributes = scanned.attributes;
    if clean || request.keep_modified {
        let rules = &scanned.ignored_rules;
        let same_rules = old.ignored_rules() == rules;
        let same = same_rules && old.meta().described == described;
        let changed = directories(updates.keys());
        if same && (updates.is_empty() || are_looks(&old, &updates, request.stale)) {
            baseline.stale = changed;
        } else {
            let rules = (!same_rules).then_some(rules);
            meta = manifest.apply(updates, rules, described)?;
            (baseline.written, baseline.rewritten) = (true, changed);
        }
        current = current.described_by(meta, scanned.ignored_rules);
    }
    baseline.generation = meta.generation;
    baseline.snapshot = current;
    Ok(baseline)
}

/// Whether a few entries differ, and in nothing but what tells that a file is as it was.
/// They are looked at by their bytes again next time, which takes less than the syncs of writing.
fn are_looks(old: &Snapshot, updates: &BTreeMap<RepoPath, Option<Entry>>, most: usize) -> bool {
    let mut bytes = STALE_BYTES;
    updates.len() <= most
        && updates.iter().all(|(path, now)| {
            // Everything beneath rules that look new would be looked at.
            if path.name() == GITIGNORE {
                return false;
            }
            let (Some(was), Some(now)) = (old.get(path), now) else { return false };
            let (a, b) = (was.stat, now.stat);
            let left = bytes.checked_sub(b.size);
            bytes = left.unwrap_or(0);
            left.is_some()
                && (was.kind, was.raw, was.tracked) == (now.kind, now.raw, now.tracked)
                && (a.mode, a.uid, a.gid, a.links) == (b.mode, b.uid, b.gid, b.links)
        })
}

/// The directories that hold the paths, each once, sorted.
pub fn directories<'p>(paths: impl Iterator<Item = &'p RepoPath>) -> Vec<Vec<u8>> {
    let dirs: BTreeSet<&[u8]> = paths.map(|path| parent(path.as_bytes())).collect();
    dirs.into_iter().map(<[u8]>::to_vec).collect()
}

/// The entries whose `tracked` is another by the tree diff, with their directories.
fn tracked_updates(
    request: &BaselineRequest<'_>,
    current: &Snapshot,
    from: Option<Oid>,
    moved: bool,
    submodules: &mut Vec<RepoPath>,
) -> Result<BTreeMap<RepoPath, Option<Entry>>, BaselineError> {
    let mut updates = BTreeMap::new();
    // A tree of which something is gone by now: everything anew.
    let known = from.and_then(|from| request.store.diff_trees(from, request.head_tree).ok());
    let changes = if let Some(changes) = known {
        changes
    } else {
        for (path, packed) in current.iter() {
            if packed.is_tracked() || moved {
                let entry = packed.entry();
                let stat_is_proof = entry.stat_is_proof && !moved;
                updates.insert(path, Some(Entry { tracked: None, stat_is_proof, ..entry }));
            }
        }
        request.store.diff_trees(Oid::EMPTY_TREE, request.head_tree)?
    };
    for (path, _, _) in changes.iter().filter(|(_, _, after)| after.is_none()) {
        if let Some(entry) = current.get(path) {
            updates.insert(path.clone(), Some(Entry { tracked: None, ..entry }));
        }
    }
    for (path, _, after) in changes {
        let Some((mode, blob)) = after else { continue };
        if mode == GIT_LINK {
            submodules.push(path);
            continue;
        }
        if current.packed(&path).is_some_and(|known| known.kind() == Kind::Directory) {
            // What stood in it is nowhere any more; whatever stands there after all, a look finds.
            let beneath = current.beneath(path.as_bytes());
            updates.extend(beneath.into_iter().map(|(path, _)| (path, None)));
        }
        let tracked = Tracked { blob, mode };
        let known = current.get(&path).filter(|entry| entry.kind.is_storable());
        let entry = known.unwrap_or_else(|| unknown(kind_of_mode(mode)));
        // Other bytes or another mode have to be looked at again: without proof the scan names
        // the path.
        let same = entry.raw == tracked.blob && mode == git_mode(entry.kind, &entry.stat);
        let proof = entry.stat_is_proof && !moved && same;
        let entry = Entry { stat_is_proof: proof, tracked: Some(tracked), ..entry };
        let mut above = path.parent();
        updates.insert(path, Some(entry));
        while let Some(dir) = above {
            let kind = match updates.get(&dir) {
                Some(entry) => entry.as_ref().map(|entry| entry.kind),
                None => current.packed(&dir).map(|known| known.kind()),
            };
            if kind == Some(Kind::Directory) {
                break;
            }
            above = dir.parent();
            updates.insert(dir, Some(unknown(Kind::Directory)));
        }
    }
    Ok(updates)
}

const fn kind_of_mode(mode: u32) -> Kind {
    if mode == GIT_SYMLINK { Kind::Symlink } else { Kind::File }
}

/// An entry of which nothing but its kind is known: no stat data is the same as this.
const fn unknown(kind: Kind) -> Entry {
    let stat =
        Stat { mode: 0, size: 0, mtime_ns: 0, ctime_ns: 0, inode: 0, links: 0, uid: 0, gid: 0 };
    Entry { kind, stat, stat_is_proof: false, raw: Oid::ZERO, tracked: None }
}

/// Whether what stands at a tracked path is what its commit has.
fn is_committed(
    request: &BaselineRequest<'_>,
    conversions: &mut Conversions,
    path: &RepoPath,
    entry: Option<&Entry>,
    tracked: Tracked,
) -> Result<bool, BaselineError> {
    let Some(entry) = entry else { return Ok(false) };
    if entry.kind != kind_of_mode(tracked.mode) {
        return Ok(false);
    }
    let mode = git_mode(entry.kind, &entry.stat);
    // Git once wrote 0100664; it takes it for a plain file.
    let plain = |mode: u32| if mode == 0o100_664 { GIT_FILE } else { mode };
    if request.file_mode && mode != plain(tracked.mode) {
        return Ok(false);
    }
    if entry.raw == tracked.blob {
        return Ok(true);
    }
    if entry.kind != Kind::File || !conversions.needs_conversion(path) {
        return Ok(false);
    }
    let found = Found { kind: entry.kind, stat: entry.stat };
    let mut bytes = Vec::new();
    raw_id(request.root, path, &found, |piece| bytes.extend_from_slice(piece))?;
    let stored = || request.store.blob(tracked.blob).ok();
    Ok(blob_id(&conversions.to_git(path, &bytes, stored)) == tracked.blob)
}

/// Refuses untracked files that are too large before they are hashed.
fn judge_sizes(request: &BaselineRequest<'_>, changes: &[Change]) -> Result<(), BaselineError> {
    let limits = request.limits;
    let mut too_large = Vec::new();
    let (mut files, mut bytes) = (0, 0u64);
    for change in changes {
        let tracked = change.before.as_ref().is_some_and(|before| before.tracked.is_some());
        let Some(found) = change.after.as_ref().filter(|found| found.kind.has_bytes() && !tracked)
        else {
            continue;
        };
        files += 1;
        bytes = bytes.saturating_add(found.stat.size);
        if found.stat.size > limits.file_bytes {
            too_large.push(change.path.clone());
        }
    }
    if too_large.is_empty() && files <= limits.files && bytes <= limits.total_bytes {
        return Ok(());
    }
    Err(BaselineError::TooMuch { too_large, files, bytes })
}

type Read = Option<(Found, RawFile)>;

/// Reads everything that changed, in the order given; `None` where nothing stands.
fn read_all(root: &Root, changes: &[Change]) -> Result<Vec<Read>, BaselineError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(change) = changes.get(at) else { return Ok::<_, BaselineError>(done) };
            done.push((at, read_stable(root, change)?));
        }
    };
    let mut all = if changes.len() < ALONE {
        work()?
    } else {
        let (mine, theirs) = spread::beside(work, work);
        let mut mine = mine?;
        mine.extend(theirs?);
        mine
    };
    all.sort_unstable_by_key(|(at, _)| *at);
    Ok(all.into_iter().map(|(_, read)| read).collect())
}

/// Others may be at work at open: what changes meanwhile is read again, a few times.
fn read_stable(root: &Root, change: &Change) -> Result<Read, BaselineError> {
    let path = &change.path;
    let mut after = change.after.clone();
    for _ in 0..READS {
        let Some(found) = after else { return Ok(None) };
        if !found.kind.has_bytes() {
            // A look again would only race: kind and mode are all that counts.
            let raw = RawFile { oid: Oid::ZERO, stat: found.stat, stat_is_proof: true };
            return Ok(Some((found, raw)));
        }
        match raw_id(root, path, &found, |_| {}) {
            Ok(raw) => return Ok(Some((found, raw))),
            Err(ScanError::Unstable { .. }) => after = root.stat(path).map_err(ScanError::from)?,
            Err(ScanError::Root(RootError::Io { source, .. }))
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                return Err(BaselineError::Unreadable { paths: vec![path.clone()] });
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(BaselineError::Unstable { paths: vec![path.clone()] })
}

fn classify(baseline: &mut Baseline, current: &Snapshot, conversions: &mut Conversions) {
    for (path, child) in current.notable() {
        let path = path.clone();
        match child.kind() {
            Kind::File | Kind::Symlink if !child.is_tracked() => {
                baseline.untracked_bytes += child.stat().size;
                baseline.untracked.push((path, child.entry()));
            }
            Kind::File | Kind::Symlink | Kind::Directory => {}
            Kind::Fifo | Kind::Socket | Kind::Device => baseline.special.push(path),
            Kind::NestedRepository => baseline.nested.push(path),
            Kind::Mount => baseline.mounts.push(path),
        }
    }
    if conversions.attributes().may_refuse() {
        let files = current.iter().filter(|(_, child)| child.kind() == Kind::File);
        let files: Vec<_> = files.map(|(path, _)| path).collect();
        baseline.unsupported = conversions.attributes().unsupported(&files);
    }
    baseline.submodules.sort_unstable();
    baseline.modified.sort_unstable();
    baseline.unsupported.sort_unstable_by(|a, b| a.0.cmp(&b.0));
}
