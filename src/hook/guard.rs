//! The guard's decision: may this ref transaction touch the branch of a living attempt?
//!
//! The hook in the repository (see [`super::install`]) hands git's lines to `worktx guard-hook`,
//! which reads them with [`parse_updates`], gathers [`Owner`] and the ancestry of the asking
//! process, and asks [`decide`]. It exits with [`REFUSED`] where the answer is no and 0 in any
//! other case, its own failures included: a guard that cannot tell must not stop git.
//!
//! What the turn does itself is vouched for: each move of the branch is appended to a file, so
//! that a move by a program that leaves no mark in the reflog is still known as the turn's.
//!
//! # Limitations
//! It protects the branch, not the tree: when git asks, `rebase --autostash`, `reset --hard` and
//! `stash` have already rewritten files. Programs that do not run hooks (libgit2 among them) pass
//! it by. A vouch is no proof: it is written by a process with the turn's user id.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bstr::{BString, ByteSlice as _};

use crate::tx::id::{AttemptKey, Oid, RefName};
use crate::tx::writer::ProcessId;

/// What `worktx guard-hook` exits with to refuse; the hook passes on any other code, so that a
/// crash, or an older binary without that command, is no obstacle. (22: the workspace is busy.)
pub const REFUSED: u8 = 22;

/// One side of an update, as git writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// An object. Zero on the old side: the ref is made anew, or its old value does not matter.
    Id(Oid),
    /// A symbolic ref (`ref:refs/heads/x`, git 2.46 and newer).
    Symbolic(BString),
}

/// One line that git gives to a `reference-transaction` hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// The value that is expected to stand there.
    pub old: Value,
    /// The value to come; zero for a deletion.
    pub new: Value,
    /// The ref.
    pub name: BString,
}

/// A line that is none of git's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a line of a reference transaction: {line:?}")]
pub struct NotAnUpdate {
    /// The line.
    pub line: BString,
}

/// Reads what git writes to the hook's stdin: `<old> SP <new> SP <ref> LF`, once for each ref.
pub fn parse_updates(stdin: &[u8]) -> Result<Vec<Update>, NotAnUpdate> {
    let parse = |line: &[u8]| {
        let mut parts = line.splitn(3, |b| *b == b' ');
        let old = value(parts.next()?)?;
        let new = value(parts.next()?)?;
        let name = parts.next().filter(|name| !name.is_empty())?;
        Some(Update { old, new, name: name.into() })
    };
    stdin
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| parse(line).ok_or_else(|| NotAnUpdate { line: line.into() }))
        .collect()
}

fn value(text: &[u8]) -> Option<Value> {
    match text.strip_prefix(b"ref:") {
        Some(target) => Some(Value::Symbolic(target.into())),
        None => text.to_str().ok()?.parse().ok().map(Value::Id),
    }
}

/// The attempt that is at work in the repository, as its marker and ledger say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Which attempt.
    pub key: AttemptKey,
    /// Its branch; `HEAD` where that is detached.
    pub branch: RefName,
    /// The git directory of its work tree: `HEAD` means the HEAD there.
    pub git_dir: PathBuf,
    /// Whether a living process holds the workspace lock. Without one nobody is protected.
    pub lock_held: bool,
    /// The supervisor of the turn, and the leader. Not the coordinator: its post-check is no
    /// business of the branch. None where no turn runs any more.
    pub turn: Vec<ProcessId>,
    /// What the branch is at now.
    pub tip: Option<Oid>,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker<'a> {
    /// The git directory that git works in (`GIT_DIR` of the hook), absolute.
    pub git_dir: &'a Path,
    /// The asking process and its ancestors, each with its start time. Orphans of the turn hang
    /// beneath its supervisor (a child subreaper), so they are among its descendants.
    pub ancestry: &'a [ProcessId],
}

/// A move of the branch that the turn made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vouch {
    /// From.
    pub old: Oid,
    /// To.
    pub new: Oid,
}

/// The guard's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum GuardDecision {
    /// No business of the guard.
    Pass,
    /// The turn's own: pass once these are in the vouch file.
    Vouch(Vec<Vouch>),
    /// Somebody else's, while the owner lives.
    Refuse {
        /// Whose branch it is.
        key: AttemptKey,
        /// Which.
        branch: RefName,
    },
}

/// May this transaction, in git's state `prepared`, go on?
pub fn decide(updates: &[Update], asker: &Asker<'_>, owner: Option<&Owner>) -> GuardDecision {
    let Some(owner) = owner.filter(|owner| owner.lock_held) else { return GuardDecision::Pass };
    let per_worktree = owner.branch.as_str() == "HEAD";
    if per_worktree && asker.git_dir != owner.git_dir {
        return GuardDecision::Pass;
    }
    let mut of_branch =
        updates.iter().filter(|update| update.name == owner.branch.as_str()).peekable();
    if of_branch.peek().is_none() {
        return GuardDecision::Pass;
    }
    if !asker.ancestry.iter().any(|process| owner.turn.contains(process)) {
        return GuardDecision::Refuse { key: owner.key.clone(), branch: owner.branch.clone() };
    }
    let moves = of_branch.filter_map(|update| match (&update.old, &update.new) {
        (Value::Id(old), Value::Id(new)) => {
            let old = if old.is_zero() { owner.tip.unwrap_or(*old) } else { *old };
            Some(Vouch { old, new: *new })
        }
        // A branch that becomes a symbolic ref is nothing to vouch for.
        _ => None,
    });
    GuardDecision::Vouch(moves.collect())
}

/// Appends moves to the vouch file, each in one write, so that two hooks do not mix their lines.
///
/// Not synced: after a power cut no turn is judged by it, it is dead and interrupted.
pub fn append_vouches(path: &Path, moves: &[Vouch]) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    for Vouch { old, new } in moves {
        file.write_all(format!("{old} {new}\n").as_bytes())?;
    }
    Ok(())
}

/// The moves in a vouch file; none where there is no file. A line that is none of ours vouches
/// for nothing.
pub fn read_vouches(path: &Path) -> io::Result<Vec<Vouch>> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    let line = |line: &[u8]| {
        let (old, new) = line.to_str().ok()?.split_once(' ')?;
        Some(Vouch { old: old.parse().ok()?, new: new.parse().ok()? })
    };
    Ok(bytes.split(|b| *b == b'\n').filter_map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tx::id::AttemptNo;

    const SUPERVISOR: ProcessId = ProcessId { pid: 20, start_ticks: 500 };
    const LEADER: ProcessId = ProcessId { pid: 21, start_ticks: 501 };
    const SHELL: ProcessId = ProcessId { pid: 10, start_ticks: 100 };

    fn oid(digit: char) -> Oid {
        digit.to_string().repeat(40).parse().expect("hex")
    }

    fn owner(branch: &str) -> Owner {
        Owner {
            key: AttemptKey { execution: "job".parse().expect("valid"), attempt: AttemptNo(1) },
            branch: RefName(branch.to_owned()),
            git_dir: PathBuf::from("/r/.git"),
            lock_held: true,
            turn: vec![SUPERVISOR, LEADER],
            tip: Some(oid('a')),
        }
    }

    fn ask(
        updates: &[Update],
        git_dir: &str,
        ancestry: &[ProcessId],
        owner: &Owner,
    ) -> GuardDecision {
        decide(updates, &Asker { git_dir: Path::new(git_dir), ancestry }, Some(owner))
    }

    fn update(old: char, new: char, name: &str) -> Update {
        Update { old: Value::Id(oid(old)), new: Value::Id(oid(new)), name: name.into() }
    }

    fn refused(owner: &Owner) -> GuardDecision {
        GuardDecision::Refuse { key: owner.key.clone(), branch: owner.branch.clone() }
    }

    #[test]
    fn lines_of_git_are_read() {
        let (a, zero) = (oid('a'), Oid::ZERO);
        let text = format!("{zero} {a} refs/heads/x y\nref:refs/heads/x {a} HEAD\n\n");
        let updates = parse_updates(text.as_bytes()).expect("two lines");
        assert_eq!(updates.len(), 2);
        assert_eq!(updates[0].name, "refs/heads/x y");
        assert_eq!(updates[0].old, Value::Id(zero));
        assert_eq!(updates[1].old, Value::Symbolic("refs/heads/x".into()));
        for bad in ["x", "a b c", &format!("{a} {a}"), &format!("{a} {a} ")] {
            assert!(parse_updates(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(parse_updates(b""), Ok(Vec::new()));
    }

    #[test]
    fn others_are_refused_the_branch_and_nothing_else() {
        let owner = owner("refs/heads/main");
        let on_main = [update('a', 'b', "HEAD"), update('a', 'b', "refs/heads/main")];
        assert_eq!(ask(&on_main, "/r/.git", &[SHELL], &owner), refused(&owner));
        assert_eq!(ask(&on_main, "/r/.git/worktrees/w", &[SHELL], &owner), refused(&owner));
        assert_eq!(ask(&on_main, "/r/.git", &[], &owner), refused(&owner));
        for other in ["HEAD", "refs/heads/main2", "refs/tags/main", "refs/stash"] {
            let updates = [update('a', 'b', other)];
            assert_eq!(ask(&updates, "/r/.git", &[SHELL], &owner), GuardDecision::Pass, "{other}");
        }
        let delete = [update('a', '0', "refs/heads/main")];
        assert_eq!(ask(&delete, "/r/.git", &[SHELL], &owner), refused(&owner));
    }

    #[test]
    fn the_turn_passes_and_is_vouched_for() {
        let owner = owner("refs/heads/main");
        let updates = [update('a', 'b', "HEAD"), update('a', 'b', "refs/heads/main")];
        let expected = GuardDecision::Vouch(vec![Vouch { old: oid('a'), new: oid('b') }]);
        for turn in [SUPERVISOR, LEADER] {
            assert_eq!(ask(&updates, "/r/.git", &[SHELL, turn], &owner), expected);
        }
        // `update-ref` without an old value writes zeros: what stands there is meant.
        let updates = [update('0', 'c', "refs/heads/main")];
        let expected = GuardDecision::Vouch(vec![Vouch { old: oid('a'), new: oid('c') }]);
        assert_eq!(ask(&updates, "/r/.git", &[LEADER], &owner), expected);
        let reused = ProcessId { start_ticks: 999, ..LEADER };
        assert_eq!(ask(&updates, "/r/.git", &[reused], &owner), refused(&owner), "a reused pid");
    }

    #[test]
    fn a_detached_head_is_that_of_its_work_tree() {
        let owner = owner("HEAD");
        let updates = [update('a', 'b', "HEAD")];
        assert_eq!(ask(&updates, "/r/.git", &[SHELL], &owner), refused(&owner));
        assert_eq!(ask(&updates, "/r/.git/worktrees/w", &[SHELL], &owner), GuardDecision::Pass);
    }

    #[test]
    fn nobody_is_protected_without_a_living_owner() {
        let mut owner = owner("refs/heads/main");
        owner.lock_held = false;
        let updates = [update('a', 'b', "refs/heads/main")];
        assert_eq!(ask(&updates, "/r/.git", &[SHELL], &owner), GuardDecision::Pass);
        let asker = Asker { git_dir: Path::new("/r/.git"), ancestry: &[SHELL] };
        assert_eq!(decide(&updates, &asker, None), GuardDecision::Pass);
    }

    #[test]
    fn vouches_are_read_back_and_forged_lines_are_none() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("vouched");
        assert_eq!(read_vouches(&path)?, []);
        let (first, second) =
            (Vouch { old: oid('a'), new: oid('b') }, Vouch { old: oid('b'), new: oid('c') });
        append_vouches(&path, &[first])?;
        OpenOptions::new().append(true).open(&path)?.write_all(b"\xff nonsense\n")?;
        append_vouches(&path, &[second])?;
        assert_eq!(read_vouches(&path)?, [first, second]);
        Ok(())
    }
}
