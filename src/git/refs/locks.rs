//! git's own locks, held by worktx: `HEAD.lock`, `<branch>.lock`, `index.lock`, and for a moment
//! `packed-refs.lock`.
//!
//! Each is made by `link(2)` from one file that stays linked in worktx's folder of the git
//! directory ([`Target::prep_dir`], name `lock`) until everything is released. "The same file" is
//! how a crashed lock of worktx is told from anybody else's: no inode number is stored. What is to
//! be put in place under a lock is written beside it before (`<what>.pending`) and renamed over
//! the old file while the lock is held, so that "is it done?" can be answered after a crash: the
//! pending file is gone.
//!
//! Order: prepared file durable, then HEAD, branch, index; released the other way round; the
//! pending files go before the prepared file, which goes last.
//!
//! # Limitations
//! Whoever calls holds the workspace lock. `prep_dir` must be on the file system of the git
//! directories. Nothing here relies on `Drop`: a lock that is not released stays, and is found
//! again by [`take`] or [`release_own`].

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::git::files::dir::{Dir, DirError, WriteFile};
use crate::tx::id::RefName;

const PREPARED: &[u8] = b"lock";
/// What stands in a lock, for a person who finds one.
const NOTE: &[u8] = b"held by worktx; `worktx reconcile` releases it\n";
/// Between two tries for a lock that somebody else holds.
const PAUSE: Duration = Duration::from_millis(10);

/// A lock could not be taken or released.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else's lock was there for as long as was waited. Nothing is held by this call.
    #[error("{} is somebody else's, and was still there at the end of the wait", path.display())]
    Foreign {
        /// The lock.
        path: PathBuf,
    },
    /// A folder or file of the git directory.
    #[error(transparent)]
    Dir(#[from] DirError),
}

/// The locks of one workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The git directory of this work tree: HEAD and index are there.
    pub git_dir: PathBuf,
    /// The common git directory: branches are there.
    pub common_dir: PathBuf,
    /// Worktx's folder for this, on the same file system; no other workspace uses it.
    pub prep_dir: PathBuf,
    /// The branch; `None` where HEAD is detached, and so is itself what moves.
    pub branch: Option<RefName>,
}

/// One of the files that are guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarded {
    /// `HEAD` of the git directory.
    Head,
    /// The branch, in the common directory.
    Branch,
    /// `index` of the git directory.
    Index,
}

impl Guarded {
    const fn pending(self) -> &'static [u8] {
        match self {
            Self::Head => b"HEAD.pending",
            Self::Branch => b"branch.pending",
            Self::Index => b"index.pending",
        }
    }
}

/// A name that is locked by another name beside it.
pub(crate) struct Place {
    pub(crate) dir: Dir,
    pub(crate) name: Vec<u8>,
}

impl Place {
    fn lock_name(&self) -> Vec<u8> {
        [&self.name[..], b".lock"].concat()
    }

    pub(crate) fn lock_path(&self) -> PathBuf {
        self.dir.path_of(&self.lock_name())
    }
}

impl Target {
    pub(crate) fn prep(&self) -> Result<Dir, DirError> {
        open_made(&self.prep_dir)
    }

    /// The file that moves: the branch, or HEAD itself.
    pub const fn moving(&self) -> Guarded {
        if self.branch.is_some() { Guarded::Branch } else { Guarded::Head }
    }

    /// Where a guarded file stands; the folder of the branch is made if need be.
    pub(crate) fn place(&self, what: Guarded) -> Result<Place, DirError> {
        match (what, &self.branch) {
            (Guarded::Branch, Some(branch)) => {
                let common = Dir::open(&self.common_dir)?;
                let (dir, name) = common.make_parent(branch.as_str().as_bytes())?;
                Ok(Place { dir, name: name.to_vec() })
            }
            (Guarded::Head | Guarded::Branch, _) => {
                Ok(Place { dir: Dir::open(&self.git_dir)?, name: b"HEAD".to_vec() })
            }
            (Guarded::Index, _) => {
                Ok(Place { dir: Dir::open(&self.git_dir)?, name: b"index".to_vec() })
            }
        }
    }

    fn all(&self) -> &'static [Guarded] {
        if self.branch.is_some() {
            &[Guarded::Head, Guarded::Branch, Guarded::Index]
        } else {
            &[Guarded::Head, Guarded::Index]
        }
    }

    /// Writes what shall be put in place under the lock; durable; may be called again before the
    /// promotion has begun. Call it with the locks held, and before the gate is asked.
    pub fn write_pending(&self, what: Guarded, bytes: &[u8]) -> Result<(), DirError> {
        let prep = self.prep()?;
        prep.place(what.pending(), bytes)?;
        prep.sync()
    }

    /// As [`Target::write_pending`], for what moves and for the index, by who writes that; `None` is
    /// nothing to be put in place.
    pub fn write_all_pending(
        &self,
        moving: Option<&[u8]>,
        index: Option<WriteFile<'_>>,
    ) -> Result<(), DirError> {
        if moving.is_none() && index.is_none() {
            return Ok(());
        }
        let prep = self.prep()?;
        if let Some(bytes) = moving {
            prep.place(self.moving().pending(), bytes)?;
        }
        if let Some(write) = index {
            prep.place_by(Guarded::Index.pending(), write)?;
        }
        prep.sync()
    }

    /// What is written to be put in place; `None` where nothing is, or it is in place already.
    pub fn pending(&self, what: Guarded) -> Result<Option<Vec<u8>>, DirError> {
        self.prep()?.read(what.pending())
    }

    /// Nothing is to be put in place of it; not durable by itself.
    pub fn drop_pending(&self, what: Guarded) -> Result<(), DirError> {
        self.prep()?.unlink(what.pending()).map(drop)
    }

    /// The file of what is written to be put in place.
    pub fn pending_file(&self, what: Guarded) -> Result<Option<std::fs::File>, DirError> {
        self.prep()?.open_file(what.pending())
    }

    /// Puts the pending file in place. Says whether there was one: after a crash there is none if
    /// this was done before. Needs the lock; durable after [`Target::sync_places`].
    pub(crate) fn put_in_place(&self, what: Guarded) -> Result<bool, DirError> {
        let (prep, place) = (self.prep()?, self.place(what)?);
        match prep.rename(what.pending(), &place.dir, &place.name) {
            Ok(()) => Ok(true),
            Err(e) if e.is(Errno::NOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Makes what was put in place durable; also what a run did that died before it came here.
    pub(crate) fn sync_places(&self, which: &[Guarded]) -> Result<(), DirError> {
        // The new names first: if only one of the two were on disk after a power cut, then it is
        // done and looks pending, which a replay can tell; never the other way round.
        self.sync_dirs(which)?;
        self.prep()?.sync()
    }

    /// Syncs the folders of guarded files, each once.
    fn sync_dirs(&self, which: &[Guarded]) -> Result<(), DirError> {
        let mut done: Vec<PathBuf> = Vec::new();
        for what in which {
            let place = self.place(*what)?;
            let path = place.dir.path_of(b"");
            if !done.contains(&path) {
                place.dir.sync()?;
                done.push(path);
            }
        }
        Ok(())
    }
}

/// Git's locks of one workspace, held. They stay on disk if this is dropped: give them to
/// [`HeldLocks::release`], or let [`release_own`] find them.
#[must_use = "locks stay until they are released"]
#[derive(Debug)]
pub struct HeldLocks {
    target: Target,
    held: Vec<Guarded>,
}

/// Takes HEAD's, the branch's and the index's lock, in this order; one that stands there from
/// before a crash is recognised and counts as taken.
///
/// Somebody else's lock is waited for until `bound` has passed in all; then the locks that this
/// call made are given back.
pub fn take(target: &Target, bound: Duration) -> Result<HeldLocks, LockError> {
    take_some(target, target.all(), bound)
}

/// Takes the index's lock alone.
pub fn take_index(target: &Target, bound: Duration) -> Result<HeldLocks, LockError> {
    take_some(target, &[Guarded::Index], bound)
}

fn take_some(target: &Target, which: &[Guarded], bound: Duration) -> Result<HeldLocks, LockError> {
    // A folder that is there may have been made just before a crash: without it our locks are
    // nobody's. One that is made now is synced with that.
    if target.prep_dir.is_dir()
        && let Some(parent) = target.prep_dir.parent()
    {
        Dir::open(parent)?.sync()?;
    }
    let prep = target.prep()?;
    let until = Instant::now() + bound;
    let mut made: Vec<Guarded> = Vec::new();
    for what in which {
        let taken = target
            .place(*what)
            .map_err(LockError::from)
            .and_then(|place| link_one(&prep, &place, until));
        match taken {
            Ok(true) => made.push(*what),
            Ok(false) => {}
            Err(error) => {
                give_back(target, &prep, &made)?;
                return Err(error);
            }
        }
    }
    // Each excludes others from its link on; durable they are all together.
    target.sync_dirs(&made)?;
    Ok(HeldLocks { target: target.clone(), held: which.to_vec() })
}

/// Takes one lock; says whether it was made now (or stood there from before).
pub(crate) fn take_one(prep: &Dir, place: &Place, until: Instant) -> Result<bool, LockError> {
    let made = link_one(prep, place, until)?;
    if made {
        place.dir.sync()?;
    }
    Ok(made)
}

/// As [`take_one`], but the lock's name is not durable yet.
fn link_one(prep: &Dir, place: &Place, until: Instant) -> Result<bool, LockError> {
    let lock = place.lock_name();
    loop {
        // Made anew only where there is none: own locks must stay recognisable.
        if prep.identity(PREPARED)?.is_none() {
            let fresh = [PREPARED, b".new"].concat();
            prep.unlink(&fresh)?;
            prep.create(&fresh, NOTE)?;
            prep.rename(&fresh, prep, PREPARED)?;
            prep.sync()?;
        }
        match prep.link(PREPARED, &place.dir, &lock) {
            Ok(()) => return Ok(true),
            Err(e) if e.is(Errno::EXIST) => {
                if is_own(prep, place)? {
                    return Ok(false);
                }
            }
            Err(e) => return Err(e.into()),
        }
        if Instant::now() >= until {
            return Err(LockError::Foreign { path: place.lock_path() });
        }
        std::thread::sleep(PAUSE);
    }
}

fn is_own(prep: &Dir, place: &Place) -> Result<bool, DirError> {
    let prepared = prep.identity(PREPARED)?;
    Ok(prepared.is_some() && prepared == place.dir.identity(&place.lock_name())?)
}

/// Removes the lock if it is worktx's own; says whether it did.
pub(crate) fn release_one(prep: &Dir, place: &Place) -> Result<bool, DirError> {
    let own = unlink_one(prep, place)?;
    if own {
        place.dir.sync()?;
    }
    Ok(own)
}

fn unlink_one(prep: &Dir, place: &Place) -> Result<bool, DirError> {
    let own = is_own(prep, place)?;
    if own {
        place.dir.unlink(&place.lock_name())?;
    }
    Ok(own)
}

fn give_back(target: &Target, prep: &Dir, which: &[Guarded]) -> Result<Vec<PathBuf>, DirError> {
    let (mut removed, mut gone) = (Vec::new(), Vec::new());
    for what in which.iter().rev() {
        let place = target.place(*what)?;
        if unlink_one(prep, &place)? {
            removed.push(place.lock_path());
            gone.push(*what);
        }
    }
    target.sync_dirs(&gone)?;
    Ok(removed)
}

impl HeldLocks {
    /// What they lock.
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// The lock that is not there any more, or is another file: somebody removed it by force.
    pub fn lost(&self) -> Result<Option<PathBuf>, DirError> {
        let prep = self.target.prep()?;
        for what in &self.held {
            let place = self.target.place(*what)?;
            if !is_own(&prep, &place)? {
                return Ok(Some(place.lock_path()));
            }
        }
        Ok(None)
    }

    /// Releases them. The prepared and pending files stay for [`forget`], after the ledger says
    /// that nothing is needed any more.
    pub fn release(self) -> Result<(), DirError> {
        give_back(&self.target, &self.target.prep()?, &self.held).map(|_| ())
    }
}

/// After a crash, or to give up: removes those of the target's locks that are worktx's own, and
/// says which; then forgets. Somebody else's are left alone.
pub fn release_own(target: &Target) -> Result<Vec<PathBuf>, DirError> {
    if !target.prep_dir.is_dir() {
        return Ok(Vec::new());
    }
    let prep = target.prep()?;
    let mut removed = give_back(target, &prep, target.all())?;
    let packed = Place { dir: Dir::open(&target.common_dir)?, name: b"packed-refs".to_vec() };
    if release_one(&prep, &packed)? {
        removed.push(packed.lock_path());
    }
    remove_prepared(&prep)?;
    Ok(removed)
}

/// After a crash: removes those of the target's locks that are worktx's own, and keeps what was
/// prepared for them, so that who takes them again goes on from there.
pub fn give_back_own(target: &Target) -> Result<Vec<PathBuf>, DirError> {
    if !target.prep_dir.is_dir() {
        return Ok(Vec::new());
    }
    give_back(target, &target.prep()?, target.all())
}

/// Whether a lock at this path is worktx's own of this target.
pub fn is_own_lock(target: &Target, what: Guarded) -> Result<bool, DirError> {
    if !target.prep_dir.is_dir() {
        return Ok(false);
    }
    is_own(&target.prep()?, &target.place(what)?)
}

/// Removes the pending files, then the prepared one and their folder, when the ledger says that
/// nothing is needed any more. A lock that is still held is released before: without the prepared file it would be
/// nobody's.
pub fn forget(target: &Target) -> Result<(), DirError> {
    release_own(target)?;
    // Only a folder that is empty goes; one that stays is no harm.
    let _ = std::fs::remove_dir(&target.prep_dir);
    Ok(())
}

fn remove_prepared(prep: &Dir) -> Result<(), DirError> {
    let mut pending = prep.unlink(b"packed-refs.pending")?;
    for what in [Guarded::Head, Guarded::Branch, Guarded::Index] {
        pending |= prep.unlink(what.pending())?;
        pending |= prep.unlink(&[what.pending(), b".new"].concat())?;
    }
    if pending {
        prep.sync()?;
    }
    let mut prepared = prep.unlink(&[PREPARED, b".new"].concat())?;
    prepared |= prep.unlink(PREPARED)?;
    if prepared { prep.sync() } else { Ok(()) }
}

/// Opens a folder by its path; made, and durable in its parent, if it is not there.
pub(crate) fn open_made(path: &Path) -> Result<Dir, DirError> {
    crate::base::durable::create_dir_all(path, 0o700)
        .map_err(|e| DirError::new("make", path, e))?;
    Dir::open(path)
}
