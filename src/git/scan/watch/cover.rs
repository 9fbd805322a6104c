//! Setting the watches: of everything that the manifest has, and again of what was touched.
//!
//! # Limitations
//! What cannot be watched is looked at always, or whole with everything beneath.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::inotify::{self, WatchFlags};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::{Dir, Lost, ROOT, Watch, errno};
use crate::git::files::listing::{LISTING, Names};
use crate::git::files::root::{LIST, seen_at};
use crate::git::manifest::row::Row;
use crate::git::manifest::touched::parent;
use crate::git::manifest::{Manifest, child_path};
use crate::tx::entry::Kind;

const GITIGNORE: &[u8] = b".gitignore";

/// Names come, go and are exchanged; modes and owners change.
pub(super) const OF_DIRECTORY: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::DONT_FOLLOW);
/// Bytes, modes, owners and the number of names. A mapping that was written through tells it when the
/// file is closed, which may be long after the process has gone.
const OF_FILE: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::OPEN)
    .union(WatchFlags::ONESHOT)
    .union(WatchFlags::DONT_FOLLOW);
/// A directory that the manifest does not have: something in it may make it another thing.
const OF_OTHER: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::ONESHOT)
    .union(WatchFlags::DONT_FOLLOW);

impl Watch {
    /// Watches again what was touched, so that what happens from now on is seen.
    pub(super) fn watch_again(&mut self) -> Result<(), Lost> {
        let mut names = Names::default();
        let mut buffer = Vec::with_capacity(LISTING);
        while let Some(id) = self.fired.pop_first() {
            let Some(dir) = self.dirs.get(&id) else { continue };
            let path = dir.path.clone();
            let opened = if path.is_empty() {
                self.root.open_self().map_err(|error| errno(&error))
            } else {
                self.root.open_beneath(&path, LIST)
            };
            let listed = opened.and_then(|handle| {
                names.read(&handle, &mut buffer)?;
                Ok(handle)
            });
            match listed {
                Ok(handle) => self.watch_listed(id, &path, &handle, &names)?,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) if id != ROOT => {
                    self.lose(path);
                }
                Err(Errno::ACCESS | Errno::PERM) if id != ROOT => self.lose(path),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn watch_listed(
        &mut self,
        id: u32,
        path: &[u8],
        handle: &OwnedFd,
        names: &Names,
    ) -> Result<(), Lost> {
        let children = self.dirs.get(&id).map(|dir| dir.children.clone()).unwrap_or_default();
        for child in children {
            let Some(dir) = self.dirs.get(&child) else { continue };
            let name = dir.path[if path.is_empty() { 0 } else { path.len() + 1 }..].to_vec();
            let is_listed = names.find(&name).is_some_and(|at| {
                matches!(names.list[at].2, FileType::Directory | FileType::Unknown)
            });
            if !is_listed {
                let gone = dir.path.clone();
                self.forget(&gone);
                self.whole.remove(&gone);
            }
        }
        for at in 0..names.list.len() {
            let Some(name) = names.name(at) else { continue };
            if path.is_empty() && name == b".git" {
                continue;
            }
            let full = child_path(path, name).as_bytes().to_vec();
            if let Some(child) = self.by_path.get(&full).copied() {
                let was = self.dirs.get(&child).map(|dir| dir.wd);
                match self.add(handle, name, OF_DIRECTORY) {
                    // The same one as before.
                    Ok(wd) if was == Some(wd) && self.dir_watches.contains_key(&wd) => {}
                    Ok(_) | Err(Lost::System(Errno::NOENT | Errno::NOTDIR)) => self.lose(full),
                    Err(Lost::System(Errno::ACCESS | Errno::PERM)) => self.lose(full),
                    Err(lost) => return Err(lost),
                }
                continue;
            }
            let flags = match names.list[at].2 {
                FileType::Directory => OF_OTHER,
                _ => OF_FILE,
            };
            if matches!(names.list[at].2, FileType::Directory | FileType::Unknown) {
                // It is new, or came again: nothing of it is watched. Where it is ignored, no look
                // goes there.
                self.whole.insert(full, self.clock);
            }
            self.watch_name(id, handle, name, flags)?;
        }
        if self.opened.remove(&id) && self.may_have_changed(handle, names) {
            self.touched.insert(id, self.clock);
        }
        Ok(())
    }

    /// Whether a file of the directory has a time of change since the last look: who opened one may
    /// have written through a mapping, which the kernel tells only when the file is let go of.
    fn may_have_changed(&self, handle: &OwnedFd, names: &Names) -> bool {
        let Some(looked_at) = self.looked_at else { return true };
        (0..names.list.len()).filter_map(|at| names.name(at)).any(|name| {
            let seen = seen_at(handle.as_fd(), name);
            !seen.is_ok_and(|seen| seen.kind == Kind::Directory || looked_at.is_after(&seen.stat))
        })
    }

    fn watch_name(
        &mut self,
        id: u32,
        handle: &OwnedFd,
        name: &[u8],
        flags: WatchFlags,
    ) -> Result<bool, Lost> {
        let wd = match self.add(handle, name, flags) {
            Ok(wd) => wd,
            // It has gone: there is or will be an event of the directory.
            Err(Lost::System(Errno::NOENT | Errno::NOTDIR)) => return Ok(false),
            Err(Lost::System(Errno::ACCESS | Errno::PERM)) => {
                self.blind.insert(id);
                return Ok(false);
            }
            Err(lost) => return Err(lost),
        };
        if let Some(known) = self.dir_watches.get(&wd).copied() {
            // A directory of the manifest that stands elsewhere by now: its watch was just changed.
            if let Some(dir) = self.dirs.get(&known).map(|dir| dir.path.clone()) {
                self.lose(dir);
            }
            return Ok(true);
        }
        match self.file_watches.insert(wd, id) {
            Some(other) if other != id && self.dirs.contains_key(&other) => {
                self.shared.entry(wd).or_default().extend([other, id]);
                Ok(true)
            }
            Some(_) => Ok(false),
            None => Ok(true),
        }
    }

    pub(super) fn add(&self, dir: &OwnedFd, name: &[u8], flags: WatchFlags) -> Result<i32, Lost> {
        let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        let limit = self.limit;
        if self.count() >= limit {
            return Err(Lost::Limit { limit, is_own: true });
        }
        match inotify::add_watch(&self.events, OsStr::from_bytes(&path), flags) {
            Ok(wd) => Ok(wd),
            Err(Errno::NOSPC) => Err(Lost::Limit { limit: self.count(), is_own: false }),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn insert(&mut self, path: Vec<u8>, wd: i32, above: Option<u32>) {
        let id = self.next;
        self.next += 1;
        if let Some(above) = above.and_then(|above| self.dirs.get_mut(&above)) {
            above.children.insert(id);
        }
        self.file_watches.remove(&wd);
        self.dir_watches.insert(wd, id);
        self.by_path.insert(path.clone(), id);
        self.dirs.insert(id, Dir { path, wd, children: BTreeSet::new(), row: None });
    }

    pub(super) fn cover_all(&mut self, manifest: &Manifest) -> Result<(), Lost> {
        // Before the rows: one that is written meanwhile is not covered.
        let generation = manifest.meta()?.generation;
        // Parents come before what is in them.
        for (dir, row) in manifest.rows_beneath(b"")? {
            self.cover(&dir, &row)?;
        }
        for dir in manifest.ignored_rules()? {
            self.cover_rules(&dir)?;
        }
        self.covers = Some(generation);
        Ok(())
    }

    /// Directories whose rows were written anew, parents first.
    pub(super) fn cover_these(
        &mut self,
        dirs: &[Vec<u8>],
        manifest: &Manifest,
    ) -> Result<(), Lost> {
        for dir in dirs {
            if let Some(row) = manifest.row(dir)? {
                self.cover(dir, &row)?;
            }
        }
        Ok(())
    }

    pub(super) fn cover_beneath(&mut self, dir: &[u8], manifest: &Manifest) -> Result<(), Lost> {
        let above = parent(dir);
        if manifest.row(above)?.and_then(|row| Some(row.get(name_of(dir))?.kind()))
            != Some(Kind::Directory)
        {
            return Ok(());
        }
        self.cover_directory(dir)?;
        if let Some(row) = manifest.row(dir)? {
            self.cover(dir, &row)?;
        }
        for (beneath, row) in manifest.rows_beneath(dir)? {
            self.cover(&beneath, &row)?;
        }
        self.cover_rules(dir)
    }

    pub(super) fn cover_rules(&mut self, dir: &[u8]) -> Result<(), Lost> {
        let Some(id) = self.by_path.get(dir).copied() else { return Ok(()) };
        if self.by_path.contains_key(child_path(dir, GITIGNORE).as_bytes()) {
            return Ok(());
        }
        let Ok(handle) = self.handle(dir) else {
            self.lose(dir.to_vec());
            return Ok(());
        };
        if self.watch_name(id, &handle, GITIGNORE, OF_FILE)? {
            self.touch_unless_opened(id);
        }
        Ok(())
    }

    /// What was not watched before counts as touched; where something was opened, as the look itself
    /// does, the times of change of all files there tell.
    fn touch_unless_opened(&mut self, id: u32) {
        if !self.opened.contains(&id) {
            self.touch(id);
        }
    }

    fn handle(&self, dir: &[u8]) -> Result<OwnedFd, Errno> {
        if dir.is_empty() {
            return self.root.open_self().map_err(|error| errno(&error));
        }
        self.root.open_beneath(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)
    }

    /// Watches a directory of the manifest; what was not watched before counts as touched.
    fn cover_directory(&mut self, dir: &[u8]) -> Result<(), Lost> {
        if self.by_path.contains_key(dir) {
            return Ok(());
        }
        let Some(above) = self.by_path.get(parent(dir)).copied() else {
            // Something above is to be looked at whole.
            return Ok(());
        };
        let added =
            self.handle(dir).map_err(Lost::from).and_then(|h| self.add(&h, b".", OF_DIRECTORY));
        match added {
            Ok(wd) if self.dir_watches.contains_key(&wd) => self.lose(dir.to_vec()),
            Ok(wd) => {
                self.insert(dir.to_vec(), wd, Some(above));
                self.touch_path(dir);
            }
            Err(Lost::System(_)) => self.lose(dir.to_vec()),
            Err(lost) => return Err(lost),
        }
        Ok(())
    }

    fn cover(&mut self, dir: &[u8], row: &Row) -> Result<(), Lost> {
        let Some(id) = self.by_path.get(dir).copied() else { return Ok(()) };
        let row_sum = Some(row.checksum());
        if self.dirs.get(&id).is_some_and(|known| known.row == row_sum) {
            // All its files are watched; a directory in it may have been lost since.
            for child in row.iter().filter(|child| child.kind() == Kind::Directory) {
                self.cover_directory(child_path(dir, child.name).as_bytes())?;
            }
            return Ok(());
        }
        let handle = match self.handle(dir) {
            Ok(handle) => handle,
            Err(_) if id != ROOT => {
                self.lose(dir.to_vec());
                return Ok(());
            }
            Err(errno) => return Err(errno.into()),
        };
        for child in row.iter() {
            match child.kind() {
                Kind::Directory => {
                    let path = child_path(dir, child.name);
                    self.cover_directory(path.as_bytes())?;
                }
                Kind::Mount => {}
                kind => {
                    if self.is_overlay && child.stat().links > 1 {
                        // A name of a lower layer may be another inode later on.
                        self.blind.insert(id);
                    }
                    let flags = if kind == Kind::NestedRepository { OF_OTHER } else { OF_FILE };
                    if self.watch_name(id, &handle, child.name, flags)? {
                        self.touch_unless_opened(id);
                    }
                }
            }
        }
        if let Some(known) = self.dirs.get_mut(&id) {
            known.row = row_sum;
        }
        Ok(())
    }
}

fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}
