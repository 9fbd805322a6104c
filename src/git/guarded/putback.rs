//! Putting the guarded files of the git directory back: everything on rollback, what can run
//! programs on success.
//!
//! A compare-and-swap: a file is touched only while it is what it was at the seal. Each file is
//! made new, synced, and renamed into place; a link is replaced, never followed. Running it again
//! after a crash ends in the same state.
//!
//! Order rules: after the seal's snapshot is recorded; removals before files, so that a link or a
//! file in a folder's place goes first. While another attempt is open in the repository it is not
//! called at all: the changes are only reported.
//!
//! # Limitations
//! - A file that has come to stand beneath a non-empty folder of somebody else is reported.
//! - Permission bits of folders are not put back.
//! - `config` is replaced without git's `config.lock`; one that stands there stops it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;

use bstr::BString;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::git::config::configfile;
use crate::git::files::dir::Dir;
use crate::git::guarded::{
    Class, Content, Snapshot, TEMPORARY, class, content, is_program, lines_of, values,
};
use crate::git::workspace::Workspace;
use crate::tx::path::RepoPath;

/// How much is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Everything that differs.
    All,
    /// Hooks, alternates, redirections, and configuration keys that can run programs.
    ProgramsOnly,
    /// What git keeps of operations that it has not ended: of one work tree, whoever else is at work
    /// in the repository.
    OperationsOnly,
}

/// Why a file was left as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Blocked {
    /// It is neither what it was at the seal nor what it was before the turn.
    ChangedSince,
    /// It was beyond 4 MiB before the turn, and is not kept.
    NotKept,
    /// git's lock of it stands there.
    Locked,
    /// The system said no.
    Failed {
        /// What it said.
        error: String,
    },
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBack {
    /// Files that were changed.
    pub done: Vec<RepoPath>,
    /// Files that were left as they are, and why.
    pub blocked: Vec<(RepoPath, Blocked)>,
}

/// Puts back what differs between `before` and `at_seal`.
pub fn put_back(
    workspace: &Workspace,
    before: &Snapshot,
    at_seal: &Snapshot,
    what: What,
) -> io::Result<PutBack> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, workspace.common_dir(), flags, Mode::empty())?;
    let made = Dir::open(workspace.common_dir()).map_err(|e| e.source)?;
    let at = Place { dir, made };
    let mut steps: Vec<(&RepoPath, Option<Content>)> = before
        .paths_with(at_seal)
        .filter(|path| before.files.get(*path) != at_seal.files.get(*path))
        .filter_map(|path| match target(path, before, at_seal, what) {
            Target::Leave => None,
            Target::Nothing => Some((path, None)),
            Target::Is(content) => Some((path, Some(content))),
        })
        .collect();
    // Removals first, the deepest of them before those above.
    steps.sort_by(|(a, to_a), (b, to_b)| {
        let order = to_a.is_some().cmp(&to_b.is_some());
        order.then_with(|| if to_a.is_none() { b.cmp(a) } else { a.cmp(b) })
    });
    let mut result = PutBack::default();
    for (path, target) in steps {
        match at.swap(path, at_seal.files.get(path), target.as_ref()) {
            Ok(true) => result.done.push(path.clone()),
            Ok(false) => {}
            Err(blocked) => result.blocked.push((path.clone(), blocked)),
        }
    }
    Ok(result)
}

/// What is to stand at a path that differs.
enum Target {
    /// What stands there.
    Leave,
    Nothing,
    Is(Content),
}

impl Target {
    fn of(content: Option<&Content>) -> Self {
        content.map_or(Self::Nothing, |content| Self::Is(content.clone()))
    }
}

fn target(path: &RepoPath, before: &Snapshot, at_seal: &Snapshot, what: What) -> Target {
    let old = before.files.get(path);
    match (what, class(path, &before.hook_folders)) {
        (What::All, _) | (What::OperationsOnly, Class::Operation) => Target::of(old),
        (What::OperationsOnly, _) => Target::Leave,
        (_, Class::Hook | Class::Alternates) => Target::of(old),
        (_, Class::Info | Class::Operation) => Target::Leave,
        (_, Class::Other) if path.as_bytes() == b"shallow" => Target::Leave,
        (_, Class::Other) => Target::of(old),
        (_, Class::Config) => config(old, at_seal.files.get(path)),
    }
}

/// The configuration as it was, with what the turn did to keys that run nothing.
///
/// It is made from the old text, so that keys that run programs stand exactly where they stood:
/// what an include overrides depends on its place.
fn config(old: Option<&Content>, new: Option<&Content>) -> Target {
    let (Ok(old_lines), Ok(new_lines), Some(Content::File { mode, .. })) =
        (lines_of(old), lines_of(new), new)
    else {
        return Target::of(old);
    };
    let (was, now) = (values(&old_lines), values(&new_lines));
    let differs = |key: &BString| was.get(key) != now.get(key);
    let is_program = |key: &BString| is_program(key, [was.get(key), now.get(key)]);
    if !was.keys().chain(now.keys()).any(|key| differs(key) && is_program(key)) {
        return Target::Leave;
    }
    let taken_over = |key: &BString| differs(key) && !is_program(key);
    let add: Vec<_> = new_lines
        .iter()
        .filter(|line| taken_over(&line.key))
        .map(|line| (line.key.clone(), line.value.clone()))
        .collect();
    if old.is_none() && add.is_empty() {
        return Target::Nothing;
    }
    let text = old.and_then(Content::bytes).unwrap_or_default();
    match configfile::edit(text, taken_over, &add) {
        Ok(text) => Target::Is(Content::file(*mode, text)),
        Err(_) => Target::of(old),
    }
}

struct Place {
    dir: OwnedFd,
    made: Dir,
}

impl Place {
    /// Brings one path from what it was at the seal to what it is to be; says whether it had to.
    fn swap(
        &self,
        path: &RepoPath,
        from: Option<&Content>,
        to: Option<&Content>,
    ) -> Result<bool, Blocked> {
        let failed = |error: io::Error| Blocked::Failed { error: error.to_string() };
        let now = content(&self.dir, path).map_err(failed)?;
        if now.as_ref() == to {
            return Ok(false);
        }
        // A folder that only held what has been removed by now counts as nothing.
        let is_emptied = from.is_none() && now == Some(Content::Directory);
        if now.as_ref() != from && !is_emptied {
            return Err(Blocked::ChangedSince);
        }
        if path.name().starts_with(b"config") {
            let lock = RepoPath::new([path.as_bytes(), b".lock"].concat())
                .map_err(|e| Blocked::Failed { error: e.to_string() })?;
            if content(&self.dir, &lock).map_err(failed)?.is_some() {
                return Err(Blocked::Locked);
            }
        }
        match to {
            None => self.remove(path, now.as_ref()).map_err(failed)?,
            Some(Content::File { mode, kept: true, bytes, .. }) => {
                self.put(path, from, |parent, name| write_new(parent, name, bytes, *mode))?;
            }
            Some(Content::Symlink { target }) => self.put(path, from, |parent, name| {
                Ok(rustix::fs::symlinkat(target.as_slice(), parent, name)?)
            })?,
            Some(_) => return Err(Blocked::NotKept),
        }
        Ok(true)
    }

    fn put(
        &self,
        path: &RepoPath,
        from: Option<&Content>,
        make: impl FnOnce(&OwnedFd, &[u8]) -> io::Result<()>,
    ) -> Result<(), Blocked> {
        let failed = |error: io::Error| Blocked::Failed { error: error.to_string() };
        if let Some(parent) = path.parent() {
            self.made.make_dir(parent.as_bytes()).map_err(|e| failed(e.source))?;
        }
        let parent = self.parent(path).map_err(failed)?;
        let temporary = [path.name(), TEMPORARY.as_bytes()].concat();
        unlink(&parent, &temporary).map_err(failed)?;
        make(&parent, &temporary).map_err(failed)?;
        // Once more: making the file took its time.
        let now = content(&self.dir, path).map_err(failed)?;
        if now == Some(Content::Directory) {
            let removed = rustix::fs::unlinkat(&parent, path.name(), AtFlags::REMOVEDIR);
            removed.map_err(|e| failed(e.into()))?;
        } else if now.as_ref() != from {
            unlink(&parent, &temporary).map_err(failed)?;
            return Err(Blocked::ChangedSince);
        }
        rustix::fs::renameat(&parent, temporary.as_slice(), &parent, path.name())
            .and_then(|()| rustix::fs::fsync(&parent))
            .map_err(|e| failed(e.into()))
    }

    fn remove(&self, path: &RepoPath, now: Option<&Content>) -> io::Result<()> {
        let parent = self.parent(path)?;
        if now == Some(&Content::Directory) {
            rustix::fs::unlinkat(&parent, path.name(), AtFlags::REMOVEDIR)?;
        } else {
            unlink(&parent, path.name())?;
        }
        rustix::fs::fsync(&parent)?;
        // The folders that the turn made for it go too, as far as they are empty; those that git
        // itself makes stay.
        let mut above = path.parent();
        let is_own = |f: &RepoPath| f.parent().is_some() && f.as_bytes() != b"objects/info";
        while let Some(folder) = above.filter(is_own) {
            let holder = self.parent(&folder)?;
            if rustix::fs::unlinkat(&holder, folder.name(), AtFlags::REMOVEDIR).is_err() {
                break;
            }
            rustix::fs::fsync(&holder)?;
            above = folder.parent();
        }
        Ok(())
    }

    fn parent(&self, path: &RepoPath) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let parent = path.parent();
        let rel = parent.as_ref().map_or(&b"."[..], RepoPath::as_bytes);
        loop {
            match rustix::fs::openat2(&self.dir, rel, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
    }
}

fn write_new(parent: &OwnedFd, name: &[u8], bytes: &[u8], mode: u32) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    file.sync_all()
}

fn unlink(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
