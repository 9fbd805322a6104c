//! A clean checkout of a commit's tree in an empty folder: what `git worktree add --detach` would
//! write, made from objects by own code. No git program, no hook, no filter.
//!
//! Types, the executable bit, links, and line ends by the attributes of that tree and the
//! configuration captured at open. A submodule is an empty folder, as in git.
//!
//! Order rule: directories and files are made new, beneath held handles, in the order of the
//! index; one that stands there already is an error.
//!
//! # Limitations
//! Scratch: nothing is synced. A file is read whole. What asks for a filter driver,
//! `working-tree-encoding` or `ident` is written as it is stored, and told.

pub mod scratch;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::git::config::attributes::{Attributes, CapturedAttributes, GITATTRIBUTES};
use crate::git::config::convert::{AutoCrlf, Conversions, Eol};
use crate::git::config::gitconfig::GitConfig;
use crate::git::files::beneath;
use crate::git::files::names::storable_path;
use crate::git::files::root::{Root, RootError};
use crate::git::objects::store::{Store, StoreError};
use crate::tx::entry::{GIT_EXECUTABLE, GIT_LINK, GIT_SYMLINK, Stat};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;

/// A checkout could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    /// An object of the tree.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A folder or file.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Which.
        path: RepoPath,
        /// Why not.
        source: io::Error,
    },
    /// git would not check it out either.
    #[error("{0} is a name that git does not take")]
    Name(RepoPath),
    /// The folder itself.
    #[error(transparent)]
    Root(#[from] RootError),
}

/// What decides about the bytes, as captured at open.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The attributes files from outside the tree.
    pub attributes: CapturedAttributes,
    /// `core.autocrlf`
    pub autocrlf: AutoCrlf,
    /// `core.eol`
    pub eol: Eol,
    /// `core.symlinks`; false: a link is a file that holds its target.
    pub symlinks: bool,
}

impl Rules {
    /// Those of the configuration captured at open.
    pub fn captured(git: &GitConfig) -> Self {
        Self {
            attributes: CapturedAttributes::of(git),
            autocrlf: AutoCrlf::of(git),
            eol: if git.eol.as_deref() == Some("crlf") { Eol::Crlf } else { Eol::Lf },
            symlinks: git.symlinks,
        }
    }
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// How each file and link looks, in the order of the index; `None` for a submodule.
    pub stats: Vec<(RepoPath, Option<Stat>)>,
    /// What asks for a conversion that was not done, and for which.
    pub raw: Vec<(RepoPath, String)>,
}

/// Writes `tree` into the empty folder `root`.
pub fn write(
    store: &Store,
    tree: Oid,
    root: &Path,
    rules: &Rules,
) -> Result<Written, CheckoutError> {
    let entries = store.tree_walk(tree).collect::<Result<Vec<_>, _>>()?;
    let mut files = Vec::new();
    for (path, mode, id) in &entries {
        if path.name() == GITATTRIBUTES && *mode != GIT_SYMLINK && *mode != GIT_LINK {
            let dir = path.parent().map_or_else(Vec::new, |dir| dir.as_bytes().to_vec());
            files.push((dir, store.blob(*id)?));
        }
    }
    let mut attributes = Attributes::new(&rules.attributes, files);
    let plain = entries.iter().filter(|(_, mode, _)| !matches!(*mode, GIT_SYMLINK | GIT_LINK));
    let raw = attributes.unsupported(plain.map(|(path, ..)| path));
    let raw = raw.into_iter().map(|(path, what)| (path, what.to_string())).collect();
    let mut writer = Writer {
        store,
        rules,
        conversions: Conversions::new(attributes, rules.autocrlf),
        folders: Folders { root: Root::open(root)?, at: None },
    };
    let mut stats = Vec::with_capacity(entries.len());
    for (path, mode, id) in entries {
        let stat = writer.entry(&path, mode, id)?;
        stats.push((path, stat));
    }
    Ok(Written { stats, raw })
}

struct Writer<'a> {
    store: &'a Store,
    rules: &'a Rules,
    conversions: Conversions,
    folders: Folders,
}

impl Writer<'_> {
    fn entry(
        &mut self,
        path: &RepoPath,
        mode: u32,
        id: Oid,
    ) -> Result<Option<Stat>, CheckoutError> {
        let is_link = mode == GIT_SYMLINK;
        if !storable_path(path, is_link) {
            return Err(CheckoutError::Name(path.clone()));
        }
        let fail = |errno: Errno| CheckoutError::Write { path: path.clone(), source: errno.into() };
        let dir = self.folders.of(path)?;
        let name = OsStr::from_bytes(path.name());
        if mode == GIT_LINK {
            rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o777)).map_err(fail)?;
            return Ok(None);
        }
        if is_link && self.rules.symlinks {
            let target = self.store.blob(id)?;
            rustix::fs::symlinkat(OsStr::from_bytes(&target), dir, name).map_err(fail)?;
            let seen = beneath::Beneath::look_in(dir, path.name()).map_err(fail)?;
            return Ok(seen.map(|seen| seen.stat));
        }
        let bits = if mode == GIT_EXECUTABLE { 0o777 } else { 0o666 };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(bits)).map_err(fail)?;
        let mut file = File::from(file);
        let (conversions, eol) = (&mut self.conversions, self.rules.eol);
        let written = self.store.with_blob(id, |bytes| {
            if is_link || !conversions.may_change(path, eol) {
                file.write_all(bytes)
            } else {
                file.write_all(&conversions.to_worktree(path, bytes, eol))
            }
        })?;
        written.map_err(|source| CheckoutError::Write { path: path.clone(), source })?;
        let (_, stat) = beneath::stat_of(file.as_fd()).map_err(fail)?;
        Ok(Some(stat))
    }
}

/// The directories that are made on the way.
struct Folders {
    root: Root,
    /// The directory of the entry before, and its handle.
    at: Option<(Option<RepoPath>, OwnedFd)>,
}

impl Folders {
    /// The handle of the directory that holds `path`; what is missing on the way is made.
    fn of(&mut self, path: &RepoPath) -> Result<BorrowedFd<'_>, CheckoutError> {
        let wanted = path.parent();
        let is_there = self.at.as_ref().is_some_and(|(at, _)| *at == wanted);
        if !is_there {
            // The walk never comes back to a directory that it has left: what the one before does
            // not share is new.
            let before = self.at.as_ref().and_then(|(at, _)| at.as_ref());
            let shared = match (before, &wanted) {
                (Some(a), Some(b)) => a.parts().zip(b.parts()).take_while(|(a, b)| a == b).count(),
                _ => 0,
            };
            let mut so_far: Option<RepoPath> = None;
            for (depth, part) in wanted.iter().flat_map(RepoPath::parts).enumerate() {
                let next = RepoPath::join(so_far.as_ref(), part);
                if depth >= shared {
                    let parent = self.root.open_parent(&next)?;
                    rustix::fs::mkdirat(
                        &parent,
                        OsStr::from_bytes(part),
                        Mode::from_raw_mode(0o777),
                    )
                    .map_err(|e| CheckoutError::Write { path: next.clone(), source: e.into() })?;
                }
                so_far = Some(next);
            }
            let handle = self.root.open_parent(path)?;
            self.at = Some((wanted, handle));
        }
        Ok(self.at.as_ref().map(|(_, handle)| handle.as_fd()).expect("just opened"))
    }
}

#[cfg(test)]
mod tests;
