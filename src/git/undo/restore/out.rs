//! Taking things out of their place: nothing that comes out is unlinked unless it is kept
//! elsewhere.
//!
//! # Limitations
//! As for [`super`].

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{self, AtFlags, RenameFlags};
use rustix::io::Errno;

use super::Stop;
use super::run::Run;
use crate::base::fault::{self, Point};
use crate::git::files::beneath::{self, Beneath, Seen};
use crate::git::undo::spill::{Spill, SpillError};
use crate::tx::entry::{Entry, Found, Kind};
use crate::tx::path::RepoPath;
use crate::tx::settings::OnDrift;

/// Whether what came out is kept elsewhere.
#[derive(PartialEq, Eq)]
pub(super) enum Judged {
    Kept,
    Drift,
}

impl Run<'_, '_> {
    /// Takes what is no directory out of its place. With `may_stay`, drift stays by `on_drift`.
    pub(super) fn take_out(&mut self, path: &RepoPath, may_stay: bool) -> Result<(), Stop> {
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

    pub(super) fn drift_stays(&self) -> bool {
        self.on.on_drift != OnDrift::Restore
    }

    /// Renames from the temporary folder to a place that is free; if it is not, the thing stays
    /// in the folder until it is pinned.
    pub(super) fn put_back(&mut self, name: &str, path: &RepoPath) -> Result<(), Stop> {
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
    pub(super) fn fill(&self, name: &str, path: &RepoPath) -> Result<(), Errno> {
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
    pub(super) fn drop_or_keep(
        &mut self,
        name: &str,
        path: &RepoPath,
        base: Option<&Entry>,
    ) -> Result<Judged, Stop> {
        let dir = self.aside.dir.as_fd();
        let Some(seen) = Beneath::look_in(dir, name.as_bytes())? else {
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
    pub(super) fn keep(&mut self, top: &RepoPath) -> Result<(), Stop> {
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

    pub(super) fn remove_directory(
        &mut self,
        path: &RepoPath,
        in_the_way: bool,
    ) -> Result<(), Stop> {
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
    pub(super) fn sweep(&mut self, top: &RepoPath, all: bool) -> Result<(), Stop> {
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

    pub(super) fn spill(&mut self, path: &RepoPath) -> Result<(), Stop> {
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
}
