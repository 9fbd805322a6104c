//! Promotion: the branch and the index move to the candidate, under git's locks, which are held
//! from before the gate.
//!
//! Order: [`compare`] everything with the seal; [`prepare`] what is to be put in place; (the gate,
//! which is not asked here); [`promote`]: branch, its reflog, HEAD's reflog, index; then the locks
//! are released, and after the ledger has it, `locks::forget`. Every step looks first and can be
//! done again after a crash anywhere.
//!
//! Rewinding a branch over a turn's own commits is the same with another id.
//!
//! # Limitations
//! Reflogs are looked through from their end, [`LOG_TAIL`] bytes back. `core.sharedRepository` is
//! not followed: new files have the mode that the umask leaves.

use bstr::ByteSlice as _;

use crate::base::fault;
use crate::git::files::dir::{Dir, DirError, WriteFile};
use crate::git::index;
use crate::git::index::{Index, IndexError, Meaning};
use crate::git::objects::tree::Signature;
use crate::git::refs::locks::{Guarded, HeldLocks, Target};
use crate::git::refs::{Head, RefError, Refs};
use crate::tx::id::{Oid, RefName};

/// How far back in a reflog the own line is looked for.
const LOG_TAIL: usize = 1 << 20;

/// A promotion could not be carried out (yet): nothing is undone, it can be called again.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// A folder or file of the git directory.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// A ref.
    #[error(transparent)]
    Ref(#[from] RefError),
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A lock was removed by force: take them again, then promote again.
    #[error("the lock {} is not held any more", .0.display())]
    LockLost(std::path::PathBuf),
    /// Something stands otherwise than the seal and the candidate have it.
    #[error("{0}")]
    Moved(Difference),
    /// What is to be put in place was never written, or was forgotten: [`prepare`], then promote
    /// again.
    #[error("nothing is prepared to be put in place of {0:?}")]
    NotPrepared(Guarded),
}

/// What stands otherwise than at the seal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// HEAD names something else.
    #[error("HEAD is {0:?}")]
    Head(Head),
    /// The branch has another id.
    #[error("the branch is at {}", .0.map_or_else(|| "nothing".to_owned(), |id| id.to_string()))]
    Branch(Option<Oid>),
    /// The index says something else.
    #[error("the index says something else")]
    Index,
    /// The index cannot be read.
    #[error("the index cannot be read: {0}")]
    IndexUnreadable(String),
}

/// What was seen at the seal, and what shall stand after.
#[derive(Clone, Debug)]
pub struct Move<'a> {
    /// The id of the branch (or of a detached HEAD) at the seal.
    pub from: Oid,
    /// The id that it gets; the same one where only the index is to be written.
    pub to: Oid,
    /// What the index meant at the seal.
    pub index_before: Meaning,
    /// Whether the index gets another meaning: then one that still means what it did, with nothing
    /// prepared, is [`PromoteError::NotPrepared`] and not taken for done.
    pub index_changes: bool,
    /// Who is named in the reflog.
    pub who: &'a Signature,
    /// The reflog's message, one line.
    pub message: &'a str,
    /// Whether git would make a reflog where there is none (`core.logAllRefUpdates` as captured).
    /// One that is there gets its line in any case.
    pub make_logs: bool,
}

/// What the index of a work tree means; one that is not there means none.
pub fn index_meaning(target: &Target) -> Result<Meaning, IndexError> {
    let meaning = index::known::meaning_now(&target.git_dir)?;
    Ok(meaning.unwrap_or_else(|| Index::empty().meaning()))
}

/// What stands otherwise than at the seal; empty is good. Call it with the locks held.
pub fn compare(
    target: &Target,
    sealed_head: Oid,
    index_before: Meaning,
) -> Result<Vec<Difference>, PromoteError> {
    let mut differences = Vec::new();
    let head = Refs::open(&target.git_dir, &target.common_dir)?.head()?;
    match (&head, &target.branch) {
        (Head::Branch(name, id), Some(branch)) if name == branch => {
            if *id != Some(sealed_head) {
                differences.push(Difference::Branch(*id));
            }
        }
        (Head::Detached(id), None) => {
            if *id != sealed_head {
                differences.push(Difference::Branch(Some(*id)));
            }
        }
        _ => differences.push(Difference::Head(head)),
    }
    match index_meaning(target) {
        Ok(meaning) if meaning == index_before => {}
        Ok(_) => differences.push(Difference::Index),
        Err(IndexError::Dir(error)) => return Err(error.into()),
        Err(error) => differences.push(Difference::IndexUnreadable(error.to_string())),
    }
    Ok(differences)
}

/// Writes, durable, what [`promote`] will put in place. Before the gate, with the locks held; may
/// be called again as long as the gate is not won. `new_index` is `None` where it need not change.
pub fn prepare(
    locks: &HeldLocks,
    from: Oid,
    to: Oid,
    new_index: Option<WriteFile<'_>>,
) -> Result<(), DirError> {
    let target = locks.target();
    let line = format!("{to}\n");
    let branch = (from != to).then_some(line.as_bytes());
    // What an earlier seal of the attempt was to put in place is not of this one.
    if branch.is_none() {
        target.drop_pending(target.moving())?;
    }
    if new_index.is_none() {
        target.drop_pending(Guarded::Index)?;
    }
    target.write_all_pending(branch, new_index)
}

/// Moves branch and index. Call it again after a crash, with the locks taken again: what is done
/// is not done twice. The locks stay held: release them afterwards.
pub fn promote(locks: &HeldLocks, plan: &Move<'_>) -> Result<(), PromoteError> {
    if let Some(lost) = locks.lost()? {
        return Err(PromoteError::LockLost(lost));
    }
    let target = locks.target();
    if plan.from != plan.to {
        move_branch(target, plan)?;
        write_logs(target, plan)?;
    }
    fault::point(fault::Point::BranchMoved);
    move_index(target, plan)?;
    // Once for both. Also where both were in place before a crash: whoever put them there may not
    // have come to the sync.
    Ok(target.sync_places(&[target.moving(), Guarded::Index])?)
}

fn move_branch(target: &Target, plan: &Move<'_>) -> Result<(), PromoteError> {
    let refs = Refs::open(&target.git_dir, &target.common_dir)?;
    let head = refs.head()?;
    let now = match (&head, &target.branch) {
        (Head::Branch(name, id), Some(branch)) if name == branch => *id,
        (Head::Detached(id), None) => Some(*id),
        // The branch decides; where HEAD went meanwhile is somebody else's doing.
        (_, Some(branch)) => refs.get(branch)?,
        (_, None) => return Err(PromoteError::Moved(Difference::Head(head))),
    };
    let what = target.moving();
    match now {
        Some(id) if id == plan.to => Ok(()),
        Some(id) if id == plan.from => {
            if target.pending(what)?.is_none() {
                target.write_pending(what, format!("{}\n", plan.to).as_bytes())?;
            }
            target.put_in_place(what)?;
            Ok(())
        }
        other => Err(PromoteError::Moved(Difference::Branch(other))),
    }
}

fn move_index(target: &Target, plan: &Move<'_>) -> Result<(), PromoteError> {
    let Some(file) = target.pending_file(Guarded::Index)? else {
        if plan.index_changes && index_meaning(target)? == plan.index_before {
            return Err(PromoteError::NotPrepared(Guarded::Index));
        }
        // In place already, or none was needed.
        return Ok(());
    };
    let known = index::known::meaning_as_written(&file);
    let known = known.map_err(|e| DirError::new("read", &target.git_dir.join("index"), e))?;
    let wanted = match known {
        Some(known) => known,
        None => index::known::meaning_of(&target.pending(Guarded::Index)?.unwrap_or_default())?,
    };
    let now = match index_meaning(target) {
        Ok(meaning) => meaning,
        Err(IndexError::Dir(error)) => return Err(error.into()),
        Err(error) => {
            let why = Difference::IndexUnreadable(error.to_string());
            return Err(PromoteError::Moved(why));
        }
    };
    if now != plan.index_before && now != wanted {
        return Err(PromoteError::Moved(Difference::Index));
    }
    target.put_in_place(Guarded::Index)?;
    Ok(())
}

fn write_logs(target: &Target, plan: &Move<'_>) -> Result<(), PromoteError> {
    let message: String = plan.message.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = format!("{} {} {}\t{message}\n", plan.from, plan.to, plan.who.line());
    if let Some(RefName(branch)) = &target.branch {
        let common = Dir::open(&target.common_dir)?;
        append_log(&common, &format!("logs/{branch}"), &line, plan.make_logs)?;
    }
    let git = Dir::open(&target.git_dir)?;
    append_log(&git, "logs/HEAD", &line, plan.make_logs)?;
    Ok(())
}

/// Appends a line to a reflog unless it is there; a line that a crash cut off is mended.
fn append_log(root: &Dir, path: &str, line: &str, make: bool) -> Result<(), DirError> {
    let old = match root.read(path.as_bytes())? {
        Some(old) => old,
        None if make => Vec::new(),
        None => return Ok(()),
    };
    let (dir, name) = root.make_parent(path.as_bytes())?;
    // Zone and seconds may be others at a replay; the two ids say what happened.
    let ids = &line.as_bytes()[..82];
    let tail = &old[old.len().saturating_sub(LOG_TAIL)..];
    let whole = tail.rfind_byte(b'\n').map_or(0, |at| at + 1);
    if !tail[..whole].lines().any(|old| old.starts_with(ids)) {
        let torn = &tail[whole..];
        let rest = match line.as_bytes().strip_prefix(torn) {
            Some(rest) => rest.to_vec(),
            None => [b"\n", line.as_bytes()].concat(),
        };
        dir.append(name, &rest)?;
    }
    dir.sync()
}
