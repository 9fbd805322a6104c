//! One run of an undo: the steps, and what is known while they go.
//!
//! # Limitations
//! As for [`super`].

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;

use rustix::fs::{self, AtFlags, RenameFlags};
use rustix::io::Errno;

use super::out::Judged;
use super::{Restore, RestoreError, RestoreReport, Stop, describe};
use crate::base::clock::file_clock_ns;
use crate::base::fault::{self, Point};
use crate::git::files::beneath::{self, Beneath, Seen};
use crate::git::undo::aside::{self, Aside};
use crate::git::undo::{Step, UndoPlan, same_mode_and_owner};
use crate::tx::entry::{Entry, Found, Kind};
use crate::tx::path::RepoPath;
use crate::tx::writer::BlockedPath;

/// How often a place is tried to be filled while somebody else fills and clears it.
const TRIES: u32 = 16;

pub(super) struct Run<'r, 'a> {
    pub(super) on: &'r mut Restore<'a>,
    pub(super) beneath: Beneath<'a>,
    pub(super) aside: Aside,
    plan: &'r UndoPlan,
    /// What the plan brings back, once somebody asks.
    of_the_base: OnceCell<HashMap<&'r RepoPath, &'r Entry>>,
    pub(super) report: RestoreReport,
    /// Paths that have been spoken about, as blocked, as drift, or as left: not judged again.
    pub(super) settled: HashSet<RepoPath>,
    /// Names in the temporary folder that may go once the rescue is pinned.
    pub(super) pending: Vec<String>,
}

impl<'r, 'a> Run<'r, 'a> {
    pub(super) fn start(on: &'r mut Restore<'a>, plan: &'r UndoPlan) -> Result<Self, RestoreError> {
        let beneath = Beneath::new(on.root);
        let failed = |source| RestoreError::Temporary { path: on.temporary.clone(), source };
        // The name is ours, but nothing kept the turn from using it.
        let taken = beneath.look(on.temporary).map_err(|e| failed(e.into()))?;
        if let Some(seen) = taken.filter(|seen| seen.kind != Kind::Directory) {
            if seen.kind.has_bytes() {
                let found = Found { kind: seen.kind, stat: seen.stat };
                let mut bytes = beneath::bytes_of(&seen).map_err(|e| failed(e.into()))?;
                on.rescue.add(on.temporary, &found, &mut bytes).map_err(RestoreError::Rescue)?;
                on.rescue.pin().map_err(RestoreError::Rescue)?;
            }
            beneath
                .forced(on.temporary, |dir, name| fs::unlinkat(dir, name, AtFlags::empty()))
                .map_err(|e| failed(e.into()))?;
        }
        let aside = Aside::open(&beneath, on.temporary.clone()).map_err(|e| failed(e.into()))?;
        let report = RestoreReport::default();
        let (settled, pending) = (HashSet::new(), Vec::new());
        let of_the_base = OnceCell::new();
        Ok(Self { on, beneath, aside, plan, of_the_base, report, settled, pending })
    }

    /// What an earlier run left in the temporary folder: compared, and rescued or dropped.
    pub(super) fn leftovers(&mut self) -> Result<(), RestoreError> {
        let names = std::mem::take(&mut self.aside.leftovers);
        if names.is_empty() {
            return Ok(());
        }
        let steps = self.plan.steps.iter().map(|step| (step.path(), step.base()));
        let known = self.on.pinned.keys().map(|path| (path, None)).chain(steps);
        let mut by_key: HashMap<String, (RepoPath, Option<Entry>)> = HashMap::new();
        for (path, base) in known {
            let slot = by_key.entry(aside::key(path)).or_insert_with(|| (path.clone(), None));
            slot.1 = slot.1.take().or_else(|| base.cloned());
        }
        for name in names {
            let here = RepoPath::join(Some(&self.aside.path), &name);
            let text = String::from_utf8_lossy(&name).into_owned();
            let (path, base) = text
                .split_once('-')
                .and_then(|(key, _)| by_key.get(key).cloned())
                .unwrap_or_else(|| (here.clone(), None));
            let done = if Aside::is_half_made(&name) && text.as_bytes() == name {
                self.aside.unlink(&text).map_err(Stop::from)
            } else if text.as_bytes() == name {
                self.drop_or_keep(&text, &path, base.as_ref()).map(drop)
            } else {
                // Not a name of ours: somebody put it here.
                self.take_out(&here, false)
            };
            self.settle(&here, done)?;
        }
        Ok(())
    }

    /// Does one step; what stands in its way is noted and does not stop the others.
    pub(super) fn step(&mut self, step: &Step) -> Result<(), RestoreError> {
        if self.is_settled(step.path()) {
            return Ok(());
        }
        let done = match step {
            Step::Remove { .. } | Step::RemoveDirectory { .. } | Step::Spill { .. }
                if self.is_back(step.path()) =>
            {
                Ok(())
            }
            Step::Remove { path } => self.take_out(path, true),
            Step::RemoveDirectory { path, in_the_way } => self.remove_directory(path, *in_the_way),
            Step::Spill { path } => self.spill(path),
            Step::MakeDirectory { path, base } => self.make_directory(path, base),
            Step::Put { path, base, spill } => self.put(path, base, *spill),
            Step::Mode { path, base } => self.mode(path, base),
        };
        self.settle(step.path(), done)?;
        fault::point(Point::FileRestored);
        Ok(())
    }

    /// Whether nothing more is to be done at a path: it, or a directory above it, is blocked,
    /// drift that stays, or left.
    pub(super) fn is_settled(&self, path: &RepoPath) -> bool {
        !self.settled.is_empty()
            && std::iter::successors(Some(path.clone()), RepoPath::parent)
                .any(|p| self.settled.contains(&p))
    }

    fn of_the_base(&self) -> &HashMap<&'r RepoPath, &'r Entry> {
        let plan = self.plan;
        self.of_the_base
            .get_or_init(|| plan.steps.iter().filter_map(|s| Some((s.path(), s.base()?))).collect())
    }

    /// Whether the base's own has taken the place of what is to go: an earlier try of this plan
    /// did that, and it is nobody's drift.
    fn is_back(&self, path: &RepoPath) -> bool {
        let Some(base) = self.of_the_base().get(path) else { return false };
        let Ok(Some(seen)) = self.beneath.look(path) else { return false };
        Self::is_base(base, &seen).unwrap_or(false)
            && !(seen.kind == Kind::Directory && Beneath::is_repository(seen.handle.as_fd()))
    }

    fn settle(&mut self, path: &RepoPath, done: Result<(), Stop>) -> Result<(), RestoreError> {
        match done {
            Ok(()) => Ok(()),
            Err(Stop::Fatal(error)) => Err(error),
            Err(Stop::Blocked(why)) => {
                if self.settled.insert(path.clone()) {
                    self.report.blocked.push(BlockedPath { path: path.clone(), why });
                }
                Ok(())
            }
        }
    }

    fn make_directory(&mut self, path: &RepoPath, base: &Entry) -> Result<(), Stop> {
        match self.beneath.look(path)? {
            Some(seen) if seen.kind == Kind::Directory => return Ok(()),
            Some(_) => self.take_out(path, true)?,
            None => {}
        }
        if self.is_settled(path) {
            return Ok(());
        }
        self.make_parents(path)?;
        // Open to its owner until everything is in it; the base's mode comes last.
        match self.beneath.forced(path, |dir, name| fs::mkdirat(dir, name, 0o700.into())) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let seen = self.beneath.look(path)?.ok_or(Errno::NOENT)?;
        self.beneath.changed(path);
        Ok(beneath::chown(seen.handle.as_fd(), &seen.stat, &base.stat)?)
    }

    /// Makes the directories above a path that are missing, where the plan did not: what stands
    /// there instead is in the way.
    fn make_parents(&mut self, path: &RepoPath) -> Result<(), Stop> {
        match self.beneath.parent(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            done => return Ok(done.map(drop)?),
        }
        let mut above: Vec<_> = std::iter::successors(path.parent(), RepoPath::parent).collect();
        above.reverse();
        for dir in above {
            match self.beneath.look(&dir)? {
                Some(seen) if seen.kind == Kind::Directory => continue,
                Some(_) => self.take_out(&dir, true)?,
                None => {}
            }
            if self.settled.contains(&dir) {
                return Ok(());
            }
            match self.beneath.forced(&dir, |at, name| fs::mkdirat(at, name, 0o755.into())) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &RepoPath, base: &Entry, spill: bool) -> Result<(), Stop> {
        self.make_parents(path)?;
        if self.is_settled(path) {
            return Ok(());
        }
        if spill && !self.is_back(path) {
            self.spill(path)?;
        }
        match self.beneath.look(path)? {
            Some(seen) if Self::is_base(base, &seen)? && !Self::is_shared(base, &seen) => {
                return self.mode_of(path, base, &seen);
            }
            Some(seen) if seen.kind == Kind::Directory => {
                if self.drift_stays() {
                    return self.keep(path);
                }
                self.sweep(path, true)?;
            }
            _ => {}
        }
        let bytes = self.on.bytes;
        let new = self.aside.make(path, base, || bytes.blob(base.raw))?;
        fault::point(Point::FileRestored);
        self.beneath.changed(path);
        let out = self.place(&new, path);
        if out.is_err() {
            let _ = self.aside.unlink(&new);
        }
        fault::point(Point::FileRestored);
        for name in out? {
            let judged = self.drop_or_keep(&name, path, Some(base));
            let back = match &judged {
                Ok(Judged::Kept) => false,
                Ok(Judged::Drift) => self.drift_stays(),
                Err(_) => true,
            };
            if back {
                // Our file comes out again; it is the base's, so it can go.
                let ours = self.aside.name_for(path);
                self.beneath.forced(path, |dir, old| self.aside.take(dir, old, &ours))?;
                self.put_back(&name, path)?;
                self.drop_or_keep(&ours, path, Some(base))?;
                if judged.is_ok() {
                    self.settled.insert(path.clone());
                }
            }
            judged?;
        }
        Ok(())
    }

    /// Puts a new thing at its place; returns the names of what came out.
    fn place(&mut self, new: &str, path: &RepoPath) -> Result<Vec<String>, Stop> {
        let mut out = Vec::new();
        for _ in 0..TRIES {
            match self.fill(new, path) {
                Ok(()) => return Ok(out),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let from = self.aside.dir.as_fd();
            let exchanged = self.beneath.forced(path, |dir, to| {
                if self.on.plain_renames {
                    return Err(Errno::INVAL);
                }
                fs::renameat_with(from, new, dir, to, RenameFlags::EXCHANGE)
            });
            match exchanged {
                Ok(()) => {
                    out.push(new.to_owned());
                    return Ok(out);
                }
                Err(Errno::NOENT) => {}
                // No such call on this file system, or a lower layer of an overlay: in two steps.
                Err(Errno::INVAL | Errno::NOSYS | Errno::XDEV) => {
                    let name = self.aside.name_for(path);
                    match self.beneath.forced(path, |dir, old| self.aside.take(dir, old, &name)) {
                        Ok(()) => out.push(name),
                        Err(Errno::NOENT) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Stop::Blocked(describe(Errno::EXIST)))
    }

    /// Whether kind and bytes are the base's.
    fn is_base(base: &Entry, seen: &Seen) -> Result<bool, Stop> {
        Ok(seen.kind == base.kind
            && match base.kind {
                Kind::File | Kind::Symlink => {
                    seen.stat.size == base.stat.size && beneath::raw_id(seen)? == Some(base.raw)
                }
                _ => true,
            })
    }

    /// Whether a mode set here would show under another name of the same inode, which may lie
    /// outside of the tree.
    fn is_shared(base: &Entry, seen: &Seen) -> bool {
        let found = Found { kind: seen.kind, stat: seen.stat };
        seen.kind != Kind::Directory && seen.stat.links > 1 && !same_mode_and_owner(base, &found)
    }

    /// Gives what a handle holds owner and mode of the base.
    fn mode_of(&self, path: &RepoPath, base: &Entry, seen: &Seen) -> Result<(), Stop> {
        let found = Found { kind: seen.kind, stat: seen.stat };
        if same_mode_and_owner(base, &found) {
            return Ok(());
        }
        self.beneath.changed(path);
        beneath::chown(seen.handle.as_fd(), &seen.stat, &base.stat)?;
        let (_, now) = beneath::stat_of(seen.handle.as_fd())?;
        if base.kind != Kind::Symlink && now.mode != base.stat.mode {
            beneath::chmod_forced(seen, base.stat.mode)?;
        }
        Ok(())
    }

    fn mode(&mut self, path: &RepoPath, base: &Entry) -> Result<(), Stop> {
        let looked_at = file_clock_ns();
        let Some(seen) = self.beneath.look(path)? else {
            return Err(Stop::Blocked("it is gone".to_owned()));
        };
        let drift = !Self::is_base(base, &seen)?;
        if drift && self.drift_stays() {
            return self.keep(path);
        }
        if base.kind != Kind::Directory && (drift || Self::is_shared(base, &seen)) {
            self.put(path, base, false)?;
            return if self.is_settled(path) { Ok(()) } else { self.check_put(path, base) };
        }
        if drift {
            return Err(Stop::Blocked("it is no directory any more".to_owned()));
        }
        self.mode_of(path, base, &seen)?;
        self.note(path, base, &seen, looked_at)
    }

    /// Notes how something of the base looks, if it has the base's mode.
    fn note(
        &mut self,
        path: &RepoPath,
        base: &Entry,
        seen: &Seen,
        looked_at: i64,
    ) -> Result<(), Stop> {
        let (_, stat) = beneath::stat_of(seen.handle.as_fd())?;
        if base.kind != Kind::Symlink && stat.mode != base.stat.mode {
            return Err(Stop::Blocked(format!(
                "its mode is {:o} and not {:o}",
                stat.mode, base.stat.mode
            )));
        }
        // A change after the look has a time that is not before it.
        let stat_is_proof = stat.ctime_ns < looked_at;
        let entry = Entry { stat, stat_is_proof, ..base.clone() };
        self.report.restored.push(path.clone());
        self.report.new_stats.push((path.clone(), Some(entry)));
        Ok(())
    }

    /// Looks at the path of a step again.
    pub(super) fn check(&mut self, step: &Step) -> Result<(), RestoreError> {
        if self.is_settled(step.path()) {
            return Ok(());
        }
        let done = match step {
            Step::Put { path, base, .. } => self.check_put(path, base),
            Step::Remove { path } | Step::Spill { path } => self.check_gone(path),
            Step::RemoveDirectory { path, .. } => match self.beneath.look(path) {
                Ok(None) => self.check_gone(path),
                // What is out of scope keeps it.
                Ok(Some(_)) => Ok(()),
                Err(error) => Err(error.into()),
            },
            // Their modes have a step of their own.
            Step::MakeDirectory { .. } | Step::Mode { .. } => Ok(()),
        };
        self.settle(step.path(), done)
    }

    fn check_put(&mut self, path: &RepoPath, base: &Entry) -> Result<(), Stop> {
        for again in [false, true] {
            let looked_at = file_clock_ns();
            if let Some(seen) = self.beneath.look(path)?
                && Self::is_base(base, &seen)?
            {
                return self.note(path, base, &seen, looked_at);
            }
            if self.drift_stays() {
                return self.keep(path);
            }
            if !again {
                self.put(path, base, false)?;
            }
        }
        Err(Stop::Blocked(describe(Errno::EXIST)))
    }

    fn check_gone(&mut self, path: &RepoPath) -> Result<(), Stop> {
        if self.beneath.look(path)?.is_some() {
            // The base's own has taken the place; that is looked at by itself.
            if self.of_the_base().contains_key(path) {
                return Ok(());
            }
            if self.drift_stays() {
                return self.keep(path);
            }
            self.take_out(path, false)?;
            if self.beneath.look(path)?.is_some() {
                return Err(Stop::Blocked(describe(Errno::EXIST)));
            }
        }
        if !self.report.spilled.contains(path) {
            self.report.removed.push(path.clone());
        }
        self.report.new_stats.push((path.clone(), None));
        Ok(())
    }

    /// Pins what was rescued, and only then unlinks it.
    pub(super) fn drop_what_is_kept(&mut self) -> Result<(), RestoreError> {
        if self.report.drift.is_empty() && self.report.moved_aside.is_empty() {
            return Ok(());
        }
        self.on.rescue.pin().map_err(RestoreError::Rescue)?;
        for name in std::mem::take(&mut self.pending) {
            let done = self.aside.unlink(&name).map_err(Stop::from);
            let here = RepoPath::join(Some(&self.aside.path), name.as_bytes());
            self.settle(&here, done)?;
        }
        Ok(())
    }

    /// Closes what was opened, removes the temporary folder, and makes everything durable.
    pub(super) fn finish(mut self, modes: &[&Step]) -> Result<RestoreReport, RestoreError> {
        self.drop_what_is_kept()?;
        let own: HashSet<&RepoPath> = modes.iter().map(|step| step.path()).collect();
        for (path, errno) in self.beneath.lock_again(|path| own.contains(path)) {
            self.settle(&path, Err(errno.into()))?;
        }
        for list in [&mut self.report.drift, &mut self.report.moved_aside] {
            list.sort_unstable();
            list.dedup();
        }
        let temporary = self.aside.path.clone();
        let gone = self
            .aside
            .close(&self.beneath)
            .map_err(|e| RestoreError::Temporary { path: temporary, source: e.into() })?;
        if !gone {
            self.beneath.changed_more();
        }
        self.on.spill.sync()?;
        self.plan.same.iter().for_each(|path| self.beneath.made_by_others(path));
        self.beneath.sync().map_err(|e| RestoreError::Sync(e.into()))?;
        Ok(self.report)
    }
}
