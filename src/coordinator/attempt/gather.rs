//! What a seal is made of: each changed path becomes a blob, an edit of the tree, and an entry of
//! what was sealed.
//!
//! # Limitations
//! A file is hashed once to know whether it changed, and once more while it is packed if it is
//! large; both must agree.

use std::collections::{BTreeMap, BTreeSet};

use crate::coordinator::attempt::drive::{Driver, Stop};
use crate::coordinator::attempt::seal::TurnIndex;
use crate::coordinator::error::Failure;
use crate::coordinator::report::view;
use crate::git::config::convert::Conversions;
use crate::git::objects::ahead::Ahead;
use crate::git::objects::pack::{PackError, PackWriter};
use crate::git::objects::store::Held;
use crate::git::scan;
use crate::git::scan::rules::{Source, View};
use crate::tx::cause::QuarantineReason;
use crate::tx::entry::{Change, Entry, GIT_FILE, GIT_SYMLINK, Kind, Tracked, git_mode};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;
use crate::tx::state::ChangeCounts;

/// Files up to this size are read once, into memory; larger ones are streamed, twice.
const IN_MEMORY: u64 = 8 << 20;

/// What becomes of the commit's tree.
type Edits = BTreeMap<RepoPath, Option<Held>>;

/// What goes into a candidate.
#[derive(Default)]
pub(super) struct Made {
    pub(super) edits: Edits,
    pub(super) entries: Vec<(RepoPath, Option<Entry>)>,
    pub(super) counts: ChangeCounts,
    pub(super) untracked_changed: Vec<RepoPath>,
    pub(super) left: Vec<RepoPath>,
    pub(super) gone: Vec<RepoPath>,
}

fn unstable(path: &RepoPath) -> Stop {
    Stop::Quarantine(QuarantineReason::Unstable { paths: vec![path.clone()] })
}

fn pack_stop(path: &RepoPath, error: &PackError) -> Stop {
    match error {
        PackError::Unstable { .. } => unstable(path),
        other => Stop::seal_blocked(other),
    }
}

impl Driver<'_> {
    /// One change of the scan: into the pack, the tree and the list of what was sealed.
    pub(super) fn make(
        &self,
        change: Change,
        ahead: Option<Ahead>,
        in_index: &dyn Fn(&RepoPath) -> Option<bool>,
        converter: &mut Conversions,
        pack: &mut PackWriter<'_>,
        made: &mut Made,
    ) -> Result<(), Stop> {
        let Change { path, before, after, ignored_by_turn, .. } = change;
        let tracked = before.as_ref().and_then(|entry| entry.tracked);
        let Some(found) = after else {
            if tracked.is_some() {
                made.edits.insert(path.clone(), None);
            }
            match before.as_ref().map(|entry| entry.kind) {
                Some(Kind::NestedRepository) => made.gone.push(path.clone()),
                None | Some(Kind::Directory) => {}
                Some(_) => made.counts.deleted += 1,
            }
            made.entries.push((path, None));
            return Ok(());
        };
        if !found.kind.is_storable() {
            if tracked.is_some() {
                made.edits.insert(path.clone(), None);
                made.counts.deleted += 1;
            }
            if found.kind != Kind::Directory && before.is_none() {
                made.left.push(path.clone());
            }
            let raw =
                scan::raw_id(&self.session.root, &path, &found, |_| {}).map_err(view::scan_stop)?;
            made.entries.push((path, Some(view::entry(&found, &raw))));
            return Ok(());
        }
        let leaves = ignored_by_turn && in_index(&path) == Some(false);
        let forced = in_index(&path) == Some(true);
        let wanted = !leaves && (!ignored_by_turn || forced || tracked.is_some());
        let mode = self.mode(&found, tracked);

        let (raw, held) = if wanted {
            match ahead {
                Some(ahead) => Self::keep_ahead(&path, &ahead, before.as_ref(), pack)?,
                None => self.keep(&path, &found, before.as_ref(), mode, converter, pack)?,
            }
        } else {
            let raw =
                scan::raw_id(&self.session.root, &path, &found, |_| {}).map_err(view::scan_stop)?;
            (raw, None)
        };
        let mut entry = view::entry(&found, &raw);
        let same_bytes =
            before.as_ref().is_some_and(|b| b.kind == entry.kind && b.raw == entry.raw);
        match (tracked, held) {
            (Some(was), _) if same_bytes && !leaves => {
                entry.tracked = Some(Tracked { blob: was.blob, mode });
                if mode != was.mode {
                    made.edits.insert(path.clone(), Some((mode, was.blob)));
                    made.counts.modified += 1;
                }
            }
            (Some(_), None) => {
                made.edits.insert(path.clone(), None);
                made.counts.deleted += 1;
            }
            (Some(was), Some(blob)) => {
                entry.tracked = Some(Tracked { blob, mode });
                if (was.blob, was.mode) != (blob, mode) {
                    made.edits.insert(path.clone(), Some((mode, blob)));
                    made.counts.modified += 1;
                }
            }
            // Untracked before and the same bytes: not committed, unless the turn put it in.
            (None, Some(_)) if same_bytes && !forced => {}
            (None, Some(blob)) => {
                entry.tracked = Some(Tracked { blob, mode });
                made.edits.insert(path.clone(), Some((mode, blob)));
                // In the place of a directory, of which git knows nothing.
                if before.as_ref().is_some_and(|before| before.kind != Kind::Directory) {
                    if !same_bytes {
                        made.untracked_changed.push(path.clone());
                    }
                    made.counts.modified += 1;
                } else {
                    made.counts.added += 1;
                }
            }
            (None, None) => {}
        }
        made.entries.push((path, Some(entry)));
        Ok(())
    }

    /// A path that the turn put in by force: committed as it stands.
    pub(super) fn force(
        &self,
        path: RepoPath,
        entry: &Entry,
        converter: &mut Conversions,
        pack: &mut PackWriter<'_>,
        made: &mut Made,
    ) -> Result<(), Stop> {
        let found = crate::tx::entry::Found { kind: entry.kind, stat: entry.stat };
        let mode = self.mode(&found, None);
        let (raw, held) = self.keep(&path, &found, None, mode, converter, pack)?;
        let Some(blob) = held else { return Ok(()) };
        let mut entry = view::entry(&found, &raw);
        entry.tracked = Some(Tracked { blob, mode });
        made.edits.insert(path.clone(), Some((mode, blob)));
        made.counts.added += 1;
        made.entries.push((path, Some(entry)));
        Ok(())
    }

    /// Tracked paths that the turn took out of the index and ignores now: they leave the commit
    /// and stay on disk.
    pub(super) fn leave_out(
        &self,
        snapshot: &crate::git::manifest::snapshot::Snapshot,
        turn_index: &TurnIndex,
        made: &mut Made,
    ) -> Result<(), Stop> {
        let Some(paths) = &turn_index.paths else { return Ok(()) };
        let rules = view::rules(&self.spec);
        let mut turn_view = View::new(&rules, Source::Tree(&self.session.root));
        let told: BTreeSet<RepoPath> = made.entries.iter().map(|(path, _)| path.clone()).collect();
        for (path, packed) in snapshot.iter() {
            if !packed.is_tracked() || paths.contains(path.as_bytes()) || told.contains(&path) {
                continue;
            }
            let ignored = turn_view
                .ignores(&path, false)
                .map_err(Failure::other("reading the ignore rules of the tree"))?;
            if ignored {
                made.edits.insert(path.clone(), None);
                made.counts.deleted += 1;
                made.entries.push((path, Some(Entry { tracked: None, ..packed.entry() })));
            }
        }
        Ok(())
    }

    fn mode(&self, found: &crate::tx::entry::Found, tracked: Option<Tracked>) -> u32 {
        if found.kind == Kind::Symlink || self.spec.git.file_mode {
            return git_mode(found.kind, &found.stat);
        }
        tracked.map(|t| t.mode).filter(|mode| *mode != GIT_SYMLINK).unwrap_or(GIT_FILE)
    }

    /// As [`Driver::keep`], of what was read already.
    fn keep_ahead(
        path: &RepoPath,
        ahead: &Ahead,
        before: Option<&Entry>,
        pack: &mut PackWriter<'_>,
    ) -> Result<(scan::RawFile, Option<Oid>), Stop> {
        let raw = ahead.raw;
        if let Some(tracked) = before.filter(|b| b.raw == raw.oid).and_then(|b| b.tracked) {
            return Ok((raw, Some(tracked.blob)));
        }
        ahead.add_to(pack).map_err(|e| pack_stop(path, &e))?;
        let oid = raw.oid;
        Ok((raw, Some(oid)))
    }

    /// Reads a file or link once, and puts what git would store of it into the pack, unless the
    /// base has it. Gives the raw id and the blob's.
    fn keep(
        &self,
        path: &RepoPath,
        found: &crate::tx::entry::Found,
        before: Option<&Entry>,
        mode: u32,
        converter: &mut Conversions,
        pack: &mut PackWriter<'_>,
    ) -> Result<(scan::RawFile, Option<Oid>), Stop> {
        let root = &self.session.root;
        let convert = mode != GIT_SYMLINK && converter.needs_conversion(path);
        if found.stat.size > IN_MEMORY && !convert {
            let raw = scan::raw_id(root, path, found, |_| {}).map_err(view::scan_stop)?;
            if !pack.contains(raw.oid) {
                let file = root.open_file(path).map_err(|_| unstable(path))?;
                let id = pack.add_blob(found.stat.size, file).map_err(|e| pack_stop(path, &e))?;
                if id != raw.oid {
                    return Err(unstable(path));
                }
            }
            let oid = raw.oid;
            return Ok((raw, Some(oid)));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(found.stat.size).unwrap_or(0));
        let raw = scan::raw_id(root, path, found, |piece| bytes.extend_from_slice(piece))
            .map_err(view::scan_stop)?;
        if before.is_some_and(|b| b.raw == raw.oid && b.tracked.is_some()) {
            return Ok((raw, before.and_then(|b| b.tracked).map(|t| t.blob)));
        }
        let add = |pack: &mut PackWriter<'_>, bytes: &[u8]| {
            pack.add_blob_bytes(bytes).map_err(|e| pack_stop(path, &e))
        };
        if !convert {
            let id = add(pack, &bytes)?;
            return Ok((raw, Some(id)));
        }
        let stored = before.and_then(|b| b.tracked);
        let converted = converter.to_git(path, &bytes, || {
            stored.and_then(|tracked| self.session.store.blob(tracked.blob).ok())
        });
        let id = add(pack, &converted)?;
        if id != raw.oid {
            // Drift is put back by bytes, and a later base may need them.
            add(pack, &bytes)?;
        }
        Ok((raw, Some(id)))
    }
}
