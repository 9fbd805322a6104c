//! One run of an undo: the steps, and what is known while they go.
//!
//! # Limitations
//! As for [`super`].

use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{self, AtFlags, RenameFlags};
use rustix::io::Errno;

use super::{Restore, RestoreError, RestoreReport, Stop, describe};
use crate::base::clock::file_clock_ns;
use crate::base::fault::{self, Point};
use crate::git::aside::{self, Aside};
use crate::git::beneath::{self, Beneath, Seen};
use crate::git::spill::{Spill, SpillError};
use crate::git::undo::{Step, UndoPlan, same_mode_and_owner};
use crate::tx::entry::{Entry, Found, Kind};
use crate::tx::path::RepoPath;
use crate::tx::settings::OnDrift;
use crate::tx::writer::BlockedPath;

/// How often a place is tried to be filled while somebody else fills and clears it.
const TRIES: u32 = 16;

pub(super) struct Run<'r, 'a> {
    on: &'r mut Restore<'a>,
    beneath: Beneath<'a>,
    aside: Aside,
    plan: &'r UndoPlan,
    /// The paths that the plan brings back, once somebody asks.
    of_the_base: OnceCell<HashSet<&'r RepoPath>>,
    pub(super) report: RestoreReport,
    /// Paths that have been spoken about, as blocked, as drift, or as left: not judged again.
    pub(super) settled: HashSet<RepoPath>,
    /// Names in the temporary folder that may go once the rescue is pinned.
    pending: Vec<String>,
}

/// Whether what came out is kept elsewhere.
#[derive(PartialEq, Eq)]
enum Judged {
    Kept,
    Drift,
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
    fn is_settled(&self, path: &RepoPath) -> bool {
        !self.settled.is_empty()
            && std::iter::successors(Some(path.clone()), RepoPath::parent)
                .any(|p| self.settled.contains(&p))
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

    /// Takes what is no directory out of its place. With `may_stay`, drift stays by `on_drift`.
    fn take_out(&mut self, path: &RepoPath, may_stay: bool) -> Result<(), Stop> {
        let Some(seen) = self.beneath.look(path)? else { return Ok(()) };
        if seen.kind == Kind::Directory {
            // It was none when it was planned for.
            return if may_stay && self.drift_stays() {
                self.keep(path)
            } else {
                self.sweep(path, true)
            };
        }
        let name = self.aside.name_for(path);
        match self.beneath.forced(path, |dir, old| self.aside.take(dir, old, &name)) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            done => done?,
        }
        fault::point(Point::FileRestored);
        let judged = self.drop_or_keep(&name, path, None);
        let back = match &judged {
            Ok(Judged::Kept) => false,
            Ok(Judged::Drift) => may_stay && self.drift_stays(),
            // Not kept, so it belongs where it was.
            Err(_) => true,
        };
        if back {
            self.put_back(&name, path)?;
            if judged.is_ok() {
                self.settled.insert(path.clone());
            }
        }
        judged.map(drop)
    }

    fn drift_stays(&self) -> bool {
        self.on.on_drift != OnDrift::Restore
    }

    /// Renames from the temporary folder to a place that is free; if it is not, the thing stays
    /// in the folder until it is pinned.
    fn put_back(&mut self, name: &str, path: &RepoPath) -> Result<(), Stop> {
        match self.fill(name, path) {
            Ok(()) => {
                self.pending.retain(|p| p != name);
                Ok(())
            }
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Renames from the temporary folder to a free place: `EXIST` where it is not.
    fn fill(&self, name: &str, path: &RepoPath) -> Result<(), Errno> {
        let from = self.aside.dir.as_fd();
        let filled = self.beneath.forced(path, |dir, to| {
            if self.on.plain_renames {
                return Err(Errno::INVAL);
            }
            fs::renameat_with(from, name, dir, to, RenameFlags::NOREPLACE)
        });
        match filled {
            Err(Errno::INVAL | Errno::NOSYS) => {
                self.beneath
                    .forced(path, |dir, to| fs::linkat(from, name, dir, to, AtFlags::empty()))?;
                self.aside.unlink(name)
            }
            done => done,
        }
    }

    /// Judges what lies in the temporary folder under `name` and came from `path`. What is kept
    /// elsewhere goes at once; the rest is rescued, and goes once that is pinned.
    fn drop_or_keep(
        &mut self,
        name: &str,
        path: &RepoPath,
        base: Option<&Entry>,
    ) -> Result<Judged, Stop> {
        let dir = self.aside.dir.as_fd();
        let Some(seen) = self.beneath.look_in(dir, name.as_bytes())? else {
            return Ok(Judged::Kept);
        };
        if seen.kind == Kind::Directory {
            let here = RepoPath::join(Some(&self.aside.path), name.as_bytes());
            return self.sweep(&here, true).map(|()| Judged::Kept);
        }
        if !seen.kind.has_bytes() || self.is_kept(path, base, &seen)? {
            self.aside.unlink(name)?;
            return Ok(Judged::Kept);
        }
        self.rescue(path, &seen)?;
        self.pending.push(name.to_owned());
        Ok(Judged::Drift)
    }

    /// Whether the bytes are those of the pin or of the base.
    fn is_kept(&self, path: &RepoPath, base: Option<&Entry>, seen: &Seen) -> Result<bool, Stop> {
        let ids = [self.on.pinned.get(path).copied(), base.map(|b| b.raw)];
        if ids == [None, None] {
            return Ok(false);
        }
        let id = beneath::raw_id(seen)?;
        Ok(id.is_some() && ids.contains(&id))
    }

    /// Gives bytes to the rescue, and notes them.
    fn rescue(&mut self, path: &RepoPath, seen: &Seen) -> Result<(), Stop> {
        let found = Found { kind: seen.kind, stat: seen.stat };
        let mut bytes = beneath::bytes_of(seen)?;
        self.on.rescue.add(path, &found, &mut bytes)?;
        if (self.on.in_scope)(path) || path.is_at_or_beneath(self.aside.path.as_bytes()) {
            self.report.drift.push(path.clone());
        } else {
            self.report.moved_aside.push(path.clone());
        }
        Ok(())
    }

    /// Rescues what stands at a path, a directory with everything in scope beneath it, and leaves
    /// it there.
    fn keep(&mut self, top: &RepoPath) -> Result<(), Stop> {
        let mut stack = vec![top.clone()];
        while let Some(path) = stack.pop() {
            let Some(seen) = self.beneath.look(&path)? else { continue };
            if seen.kind == Kind::Directory {
                if Beneath::is_repository(seen.handle.as_fd()) {
                    continue;
                }
                for name in self.beneath.names(Some(&path))? {
                    let child = RepoPath::join(Some(&path), &name);
                    if (self.on.in_scope)(&child) && !self.settled.contains(&child) {
                        stack.push(child);
                    }
                }
            } else if seen.kind.has_bytes() && !self.is_kept(&path, None, &seen)? {
                self.rescue(&path, &seen)?;
            }
        }
        if !self.report.drift.contains(top) {
            self.report.drift.push(top.clone());
        }
        self.settled.insert(top.clone());
        Ok(())
    }

    fn remove_directory(&mut self, path: &RepoPath, in_the_way: bool) -> Result<(), Stop> {
        match self.rmdir(path) {
            Ok(()) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => self.sweep(path, in_the_way)?,
            // It is something else by now.
            Err(Errno::NOTDIR) => return self.take_out(path, true),
            Err(Errno::BUSY) if !in_the_way => {}
            Err(error) => return Err(error.into()),
        }
        if !in_the_way && self.beneath.look(path).map_or(true, |seen| seen.is_some()) {
            // What keeps it has been spoken about, so it is no drift of the directory above.
            self.settled.insert(path.clone());
        }
        Ok(())
    }

    fn rmdir(&self, path: &RepoPath) -> Result<(), Errno> {
        let remove =
            |dir: BorrowedFd<'_>, name: &OsStr| fs::unlinkat(dir, name, AtFlags::REMOVEDIR);
        match self.beneath.forced(path, remove) {
            Err(Errno::NOENT) => Ok(()),
            done => done,
        }
    }

    /// Empties a directory that is not of the base, deepest first, and removes it if it can go.
    ///
    /// With `all`, it is in the way and everything comes out. Else what is out of scope stays, and
    /// what is in scope is drift: nobody planned for it.
    fn sweep(&mut self, top: &RepoPath, all: bool) -> Result<(), Stop> {
        let mut stack = vec![(top.clone(), false)];
        while let Some((dir, emptied)) = stack.pop() {
            if emptied {
                match self.rmdir(&dir) {
                    Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) if !all => {}
                    done => done?,
                }
                continue;
            }
            stack.push((dir.clone(), true));
            for name in self.beneath.names(Some(&dir))? {
                let child = RepoPath::join(Some(&dir), &name);
                if self.settled.contains(&child) || (!all && !(self.on.in_scope)(&child)) {
                    continue;
                }
                if !all && self.drift_stays() {
                    self.keep(&child)?;
                    continue;
                }
                let seen = match self.beneath.look(&child) {
                    Err(Errno::XDEV) if !all => continue,
                    seen => seen?,
                };
                match seen {
                    Some(seen) if seen.kind == Kind::Directory => {
                        if Beneath::is_repository(seen.handle.as_fd()) {
                            self.spill(&child)?;
                        } else {
                            stack.push((child, false));
                        }
                    }
                    Some(_) => self.take_out(&child, false)?,
                    None => {}
                }
            }
        }
        Ok(())
    }

    fn spill(&mut self, path: &RepoPath) -> Result<(), Stop> {
        let Some(_) = self.beneath.look(path)? else { return Ok(()) };
        let failed = RefCell::new(None);
        let spill = RefCell::new(&mut *self.on.spill);
        let moved = self.beneath.forced(path, |dir, name| {
            let spill: &mut Spill = &mut spill.borrow_mut();
            match spill.take(dir, name, path) {
                Ok(_) => Ok(()),
                Err(SpillError::Rename { errno, .. }) => Err(errno),
                Err(other) => {
                    *failed.borrow_mut() = Some(other);
                    Err(Errno::IO)
                }
            }
        });
        match (moved, failed.into_inner()) {
            (_, Some(error @ SpillError::OtherFileSystem { .. })) => {
                Err(Stop::Blocked(error.to_string()))
            }
            (_, Some(error)) => Err(Stop::Fatal(error.into())),
            (Err(Errno::NOENT), None) => Ok(()),
            (moved, None) => {
                moved?;
                self.report.spilled.push(path.clone());
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
        if spill {
            self.spill(path)?;
        }
        match self.beneath.look(path)? {
            Some(seen) if Self::is_base(base, &seen)? => return self.mode_of(base, &seen),
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

    /// Gives what a handle holds owner and mode of the base.
    fn mode_of(&self, base: &Entry, seen: &Seen) -> Result<(), Stop> {
        let found = Found { kind: seen.kind, stat: seen.stat };
        if same_mode_and_owner(base, &found) {
            return Ok(());
        }
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
        if !Self::is_base(base, &seen)? {
            return if self.drift_stays() {
                self.keep(path)
            } else {
                self.put(path, base, false)?;
                self.check_put(path, base)
            };
        }
        self.mode_of(base, &seen)?;
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
            let plan = self.plan;
            let of_the_base = self.of_the_base.get_or_init(|| {
                plan.steps.iter().filter(|s| s.base().is_some()).map(Step::path).collect()
            });
            if of_the_base.contains(path) {
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
        let failed = |source| RestoreError::Temporary { path: self.aside.path.clone(), source };
        self.beneath.lock_again(|path| own.contains(path)).map_err(|e| failed(e.into()))?;
        for list in [&mut self.report.drift, &mut self.report.moved_aside] {
            list.sort_unstable();
            list.dedup();
        }
        self.aside.close(&self.beneath).map_err(|e| failed(e.into()))?;
        self.on.spill.sync()?;
        self.beneath.sync().map_err(|e| RestoreError::Sync(e.into()))?;
        Ok(self.report)
    }
}
