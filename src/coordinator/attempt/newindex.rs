//! The index that a promotion puts in place: the one that stands there, with what the candidate has
//! otherwise. Where it is the base's it is spliced while it is written; else it is taken apart.
//!
//! # Limitations
//! Extensions of git's (its cache of trees) are left out: git makes them anew.

use std::path::Path;
use std::thread::JoinHandle;

use crate::base::hex::hex;
use crate::base::spread;
use crate::coordinator::attempt::baseindex;
use crate::coordinator::attempt::drive::{Driver, Stop, chain};
use crate::coordinator::attempt::validate::difference_stop;
use crate::git::files::dir::DirError;
use crate::git::index::known::{IndexDigest, KnownFile, Trailer, is_of};
use crate::git::index::splice::{Old, SpliceError, Written};
use crate::git::index::{self, Index, IndexChange, IndexError, Meaning};
use crate::git::objects::store::Held;
use crate::git::promote::{self, Difference};
use crate::git::refs::locks::{self, HeldLocks};
use crate::tx::path::RepoPath;
use crate::tx::state::Seal;

/// From so many bytes on the index is looked at by a thread of its own.
const LARGE: u64 = 256 << 10;

/// An index that was made for a promotion.
#[derive(Clone, Copy, Debug)]
pub struct NewIndex {
    /// Of its bytes.
    pub digest: IndexDigest,
    /// Its last bytes.
    pub trailer: Trailer,
    /// What it means.
    pub meaning: Meaning,
    /// A tree says all of it.
    pub is_plain: bool,
}

impl From<Written> for NewIndex {
    /// What is spliced has no flags.
    fn from(Written { digest, trailer, meaning }: Written) -> Self {
        Self { digest, trailer, meaning, is_plain: true }
    }
}

impl NewIndex {
    /// What is to be known of the bytes.
    fn of(bytes: &[u8]) -> Result<Self, IndexError> {
        let (digest, trailer) = (index::known::digest(bytes), index::known::trailer(bytes));
        let (meaning, is_plain) = if let Some(meaning) = index::splice::meaning(bytes) {
            (meaning, true)
        } else {
            let index = Index::parse(bytes)?;
            (index.meaning(), index.is_plain())
        };
        Ok(Self { digest, trailer, meaning, is_plain })
    }
}

/// A path, with what the base and what the candidate has there.
type Differs = (RepoPath, Option<Held>, Option<Held>);

/// A look at the bytes of a large index, by a thread, from the seal on: the commit is made of them.
#[derive(Debug)]
pub struct IndexCheck(JoinHandle<Option<KnownFile>>);

impl IndexCheck {
    /// Begins it, where that is worth a thread.
    pub(super) fn begin(git_dir: &Path, digest: IndexDigest) -> Option<Self> {
        let file = KnownFile::open(git_dir, digest).ok()?.filter(|file| file.size() >= LARGE)?;
        let look = move || file.is_whole().then_some(file);
        spread::start("index", look).ok().map(Self)
    }

    /// Whether the file was looked at, and found whole.
    fn says_of(self, file: &KnownFile) -> bool {
        let checked = self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        checked.is_some_and(|checked| checked.is_as(file))
    }
}

/// How the index comes to stand for the candidate.
enum Plan {
    /// It does already.
    Stays,
    /// It is the base's: the trees tell what differs.
    OfBase { file: Option<KnownFile>, differs: Vec<Differs> },
    /// All of it is compared with the candidate's tree.
    Compare,
}

fn unreadable(error: &dyn std::error::Error) -> Stop {
    Stop::damaged(chain(error))
}

impl Driver<'_> {
    /// Writes, durable, what the promotion is to put in place.
    pub(super) fn prepare(
        &mut self,
        seal: &Seal,
        target: &locks::Target,
        held: &HeldLocks,
    ) -> Result<(), Stop> {
        let new_index = match self.plan_index(seal)? {
            Plan::Stays => {
                promote::prepare(held, seal.sealed_head, seal.candidate, None)
                    .map_err(|error| Stop::seal_blocked(&error))?;
                None
            }
            Plan::OfBase { file, differs } => {
                let spliced = match file {
                    Some(file) => self.splice(seal, held, &file, &differs)?,
                    None => None,
                };
                Some(match spliced {
                    Some(new_index) => new_index,
                    None => self.take_apart(seal, held, Some(&differs))?,
                })
            }
            Plan::Compare => Some(self.take_apart(seal, held, None)?),
        };
        self.live.index_changes = Some(new_index.is_some());
        self.live.new_index = new_index;
        let Some(known) = new_index else { return Ok(()) };
        index::known::remember(known.digest, known.meaning);
        if let Ok(Some(file)) = target.pending_file(locks::Guarded::Index) {
            let git_dir = self.session.workspace.git_dir();
            index::known::written(git_dir, &file, known.digest, known.trailer);
        }
        Ok(())
    }

    fn plan_index(&self, seal: &Seal) -> Result<Plan, Stop> {
        let git_dir = self.session.workspace.git_dir();
        let digest = index::known::digest_now(git_dir)?;
        if digest.map(|digest| hex(&digest)) != self.spec.index_digest {
            return Ok(Plan::Compare);
        }
        let differs = self.session.store.diff_trees(self.spec.base_tree, seal.tree)?;
        if differs.is_empty() {
            return Ok(Plan::Stays);
        }
        let file = match digest {
            Some(digest) => KnownFile::open(git_dir, digest)?,
            None => None,
        };
        Ok(Plan::OfBase { file, differs })
    }

    /// Splices the index while it is written; `None` where that cannot be done.
    fn splice(
        &mut self,
        seal: &Seal,
        held: &HeldLocks,
        file: &KnownFile,
        differs: &[Differs],
    ) -> Result<Option<NewIndex>, Stop> {
        let more =
            |(_, before, after): &Differs| i64::from(after.is_some()) - i64::from(before.is_some());
        let old = Old {
            from: file.file(),
            size: file.size(),
            check: !self.live.index_check.take().is_some_and(|check| check.says_of(file)),
            grows: differs.iter().map(more).sum(),
        };
        let changes = self.index_changes(after(differs))?;
        let (mut written, mut is_other) = (None, false);
        let mut write = |to: &mut std::fs::File| {
            match index::splice::write(&old, changes.clone(), to) {
                Ok(new) if file.is_still() => written = Some(new),
                Ok(_) | Err(SpliceError::Form) => {
                    is_other = true;
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
                Err(SpliceError::Io(error)) => return Err(error),
            }
            Ok(())
        };
        let prepared: Result<(), DirError> =
            promote::prepare(held, seal.sealed_head, seal.candidate, Some(&mut write));
        if is_other {
            tracing::debug!("the index is not spliced");
            return Ok(None);
        }
        prepared.map_err(|error| Stop::seal_blocked(&error))?;
        Ok(written.map(NewIndex::from))
    }

    /// Makes the index out of all that is in the one that stands there.
    fn take_apart(
        &mut self,
        seal: &Seal,
        held: &HeldLocks,
        differs: Option<&[Differs]>,
    ) -> Result<NewIndex, Stop> {
        let old = index::load(self.session.workspace.git_dir())?;
        if let (Some(_), Some(bytes)) = (differs, &old)
            && !self.spec.index_digest.as_ref().is_some_and(|told| is_of(bytes, told))
        {
            return Err(difference_stop(&[Difference::Index]));
        }
        let current = old.as_deref().map_or_else(|| Ok(Index::empty()), Index::parse);
        let current = current.map_err(|error| unreadable(&error))?;
        let (wanted, base) = if let Some(differs) = differs {
            (after(differs), None)
        } else {
            let wanted = current
                .differs_from_tree(&self.session.store, seal.tree)
                .map_err(|error| unreadable(&error))?;
            (wanted, self.base_index()?)
        };
        let changes = self.index_changes(wanted)?;
        let bytes = current.with_changes(&changes, base.as_ref()).to_bytes();
        let mut write = |to: &mut std::fs::File| std::io::Write::write_all(to, &bytes);
        promote::prepare(held, seal.sealed_head, seal.candidate, Some(&mut write))
            .map_err(|error| Stop::seal_blocked(&error))?;
        NewIndex::of(&bytes).map_err(|error| unreadable(&error))
    }

    fn index_changes(
        &mut self,
        wanted: Vec<(RepoPath, Option<Held>)>,
    ) -> Result<Vec<IndexChange>, Stop> {
        let view = self.sealed_view()?;
        let change = |(path, held): (RepoPath, Option<Held>)| {
            // After a crash git shall compare the bytes: see `sealed_view`.
            let stat = view.snapshot.get(&path).map(|entry| entry.stat);
            let stat = stat.filter(|_| !view.of_earlier);
            IndexChange { to: held.map(|(mode, id)| (mode, id, stat)), path }
        };
        Ok(wanted.into_iter().map(change).collect())
    }

    fn base_index(&self) -> Result<Option<Index>, Stop> {
        if self.spec.index_digest.is_none() {
            return Ok(None);
        }
        let bytes = baseindex::saved(self.session, &self.key, &self.spec)?;
        Index::parse(&bytes).map(Some).map_err(|error| Stop::damaged(chain(&error)))
    }
}

fn after(differs: &[Differs]) -> Vec<(RepoPath, Option<Held>)> {
    differs.iter().map(|(path, _, after)| (path.clone(), *after)).collect()
}
