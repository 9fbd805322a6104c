//! The execution of an [`UndoPlan`]: the tree becomes the base again, and no byte is lost on the
//! way.
//!
//! Rules, in this order:
//!
//! - Each step is beneath the root ([`crate::git::files::beneath`]), looks first, and does nothing
//!   where nothing is to do: run again after a kill at any point, it ends in the same tree.
//! - A file is made whole in the temporary folder ([`crate::git::undo::aside`]) and exchanged with
//!   what stands at its place; nothing is ever written into an inode that has a name in the tree.
//! - What came out is compared with the pin and with the base. If it is neither, it is drift: it
//!   goes to [`Rescue`], and is unlinked only after [`Rescue::pin`] has returned. By `on_drift` it
//!   is also put back where it was.
//! - A path that cannot be brought back is [`RestoreReport::blocked`], never done; the others go
//!   on.
//! - At the end each path is looked at again, its bytes read by handle, and files and names are
//!   made durable, before anybody is told: each by an `fsync` where they are few, else all by one
//!   `syncfs` ([`Beneath::sync`]).
//!
//! # Limitations
//! Before Linux 5.8 `syncfs` does not report write errors. A directory that was closed to its own
//! owner, and that the undo is not about, keeps the mode that let us in if a kill comes between.
//! Owners come back only as root.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::git::files::beneath::{self, Beneath};
use crate::git::undo::aside::MakeError;
use crate::git::undo::spill::{Spill, SpillError};
use crate::git::undo::{Step, UndoPlan};
use crate::tx::entry::{Entry, Found, Kind};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;
use crate::tx::settings::OnDrift;
use crate::tx::writer::BlockedPath;

mod out;
mod run;
#[cfg(test)]
mod tests;

/// Where the bytes of the base come from.
pub trait Bytes {
    /// The bytes of a blob. They are hashed while they are used, so need not be checked.
    fn blob(&self, id: Oid) -> io::Result<Box<dyn Read>>;
}

/// Where bytes go that are neither of the base nor pinned.
pub trait Rescue {
    /// Takes the bytes of a file, or the target of a link. Durable after [`Rescue::pin`] only.
    fn add(&mut self, path: &RepoPath, found: &Found, bytes: &mut dyn Read) -> io::Result<Oid>;
    /// Makes durable, and pins under a ref, what was added so far. Called at least before anything
    /// that was added is unlinked, also where nothing was.
    fn pin(&mut self) -> io::Result<()>;
}

/// What a restore works with.
pub struct Restore<'a> {
    /// The held root of the work tree (`O_PATH` is enough).
    pub root: BorrowedFd<'a>,
    /// The name of the temporary folder at the root, as recorded.
    pub temporary: &'a RepoPath,
    /// The raw blob ids that the pin of the rejected work holds, by path.
    pub pinned: &'a HashMap<RepoPath, Oid>,
    /// Whether the undo covers a path that turns up: not ignored by the base, not excluded, not
    /// of the rollback-survives set.
    pub in_scope: &'a dyn Fn(&RepoPath) -> bool,
    /// See [`OnDrift`]. `Quarantine` leaves things as `Leave` does; the caller sees the drift.
    pub on_drift: OnDrift,
    /// See [`Bytes`].
    pub bytes: &'a dyn Bytes,
    /// See [`Rescue`].
    pub rescue: &'a mut dyn Rescue,
    /// Where things go that are moved unread.
    pub spill: &'a mut Spill,
    /// Do without `renameat2` flags, as on a file system that has none; found out by itself
    /// otherwise.
    pub plain_renames: bool,
}

/// What became of an undo.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreReport {
    /// Put back, or had its mode put back.
    pub restored: Vec<RepoPath>,
    /// Taken away, since it was not of the base.
    pub removed: Vec<RepoPath>,
    /// Moved into the spill.
    pub spilled: Vec<RepoPath>,
    /// Where bytes stood that are neither of the base nor pinned; all of them are rescued. By
    /// `on_drift` they stand there still.
    pub drift: Vec<RepoPath>,
    /// Out of scope, in the way of something of the base, and therefore rescued and taken away.
    pub moved_aside: Vec<RepoPath>,
    /// Not as the base has it, and why. The undo is not done while there is one.
    pub blocked: Vec<BlockedPath>,
    /// How the paths look now, for the manifest; `None`: nothing is there any more.
    pub new_stats: Vec<(RepoPath, Option<Entry>)>,
}

/// Why an undo stopped as a whole. It can be run again.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The temporary folder cannot be used.
    #[error("the temporary folder {path}: {source}")]
    Temporary {
        /// Its name.
        path: RepoPath,
        /// Why not.
        source: io::Error,
    },
    /// What must be kept could not be pinned. It lies in the temporary folder.
    #[error("what was found beside the pin cannot be kept: {0}")]
    Rescue(#[source] io::Error),
    /// The disk did not take what was written.
    #[error("what was restored cannot be made durable: {0}")]
    Sync(#[source] io::Error),
    /// As for the spill.
    #[error(transparent)]
    Spill(#[from] SpillError),
}

/// Why one step could not be done.
enum Stop {
    /// This path: the others go on.
    Blocked(String),
    /// Everything.
    Fatal(RestoreError),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Blocked(describe(errno))
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Blocked(error.to_string())
    }
}

impl From<MakeError> for Stop {
    fn from(error: MakeError) -> Self {
        Self::Blocked(error.to_string())
    }
}

/// What an error means for a person who has to clear the way.
fn describe(errno: Errno) -> String {
    match errno {
        Errno::XDEV | Errno::BUSY => "a file system is mounted on it or above it".to_owned(),
        Errno::PERM => "not permitted: an immutable mark, or another owner".to_owned(),
        Errno::ACCESS => "permission denied".to_owned(),
        Errno::NOTDIR | Errno::LOOP => "a part of the path is no directory".to_owned(),
        Errno::NOTEMPTY | Errno::EXIST => "something stands there that cannot go".to_owned(),
        other => io::Error::from(other).to_string(),
    }
}

/// Lets us read what a turn closed to its own owner, so that it can be pinned before it is undone:
/// what a scan listed as unreadable. The mode of the base comes back with the undo.
///
/// # Errors
/// What the system said, in words; it is in the way then.
pub fn open_up(root: BorrowedFd<'_>, path: &RepoPath) -> Result<(), String> {
    let done = (|| {
        let Some(seen) = Beneath::new(root).look(path)? else { return Ok(()) };
        let bits = match seen.kind {
            Kind::Directory => 0o700,
            Kind::File => 0o600,
            _ => return Err(Errno::ACCESS),
        };
        beneath::chmod_forced(&seen, seen.stat.mode & 0o7777 | bits)
    })();
    done.map_err(describe)
}

/// The permission bits of the root itself, for which a manifest has no entry.
///
/// # Errors
/// What the system said.
pub fn root_mode(root: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(beneath::stat_of(root)?.1.mode & 0o7777)
}

/// Gives the root itself a mode, durably, if it has another.
///
/// # Errors
/// What the system said.
pub fn set_root_mode(root: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    if root_mode(root)? != mode {
        beneath::chmod(root, mode)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::fsync(rustix::fs::openat(root, ".", flags, Mode::empty())?)?;
    }
    Ok(())
}

/// Makes durable what holds the base's bytes already: see [`UndoPlan::same`].
///
/// # Errors
/// What the system said. It is final: what could not be written may be dropped.
pub fn sync_same(root: BorrowedFd<'_>, plan: &UndoPlan) -> Result<(), RestoreError> {
    if plan.same.is_empty() {
        return Ok(());
    }
    let beneath = Beneath::new(root);
    plan.same.iter().for_each(|path| beneath.made_by_others(path));
    beneath.sync().map_err(|e| RestoreError::Sync(e.into()))
}

/// Carries the plan out. What could not be brought back is in the report; an error means that
/// the run stopped in between. Either way it can be run again, with the same plan or a new one.
pub fn restore(plan: &UndoPlan, on: &mut Restore<'_>) -> Result<RestoreReport, RestoreError> {
    let mut run = run::Run::start(on, plan)?;
    run.report.blocked.clone_from(&plan.blocked);
    run.settled.extend(plan.blocked.iter().map(|b| b.path.clone()));
    run.settled.extend(plan.left.iter().cloned());
    run.leftovers()?;
    let (modes, others): (Vec<_>, Vec<_>) =
        plan.steps.iter().partition(|step| matches!(step, Step::Mode { .. }));
    for step in &others {
        run.step(step)?;
    }
    run.drop_what_is_kept()?;
    for step in &others {
        run.check(step)?;
    }
    run.drop_what_is_kept()?;
    // Last, since a directory of the base may be closed to its own owner.
    for step in &modes {
        run.step(step)?;
    }
    run.finish(&modes)
}
