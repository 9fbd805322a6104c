//! Which moves of the branch were the turn's: git itself writes it into the reflog.
//!
//! The turn runs with `GIT_REFLOG_ACTION=worktx <execution>/<attempt>`, and git puts that in front
//! of the message of every move that a command makes. With git 2.47 the messages are: the mark
//! alone (checkout), the mark, a colon and a subject (commit, amend, merge, cherry-pick, revert,
//! am, reset, pull), the mark and a bracket (`(finish): …`, rebase). `update-ref`, `branch -f` and
//! `checkout -B` do not write it.
//!
//! The branch's log is judged, or HEAD's when detached: an unbroken chain of ids from the base to
//! the tip, each link marked or vouched for by the guard hook.
//!
//! Order rules: [`mark_now`] before the turn; the rest once the turn is dead.
//!
//! # Limitations
//! - Under the mark git does not write `checkout: moving from …`, by which it finds `@{-1}`:
//!   `git checkout -` and `git switch -` fail inside a turn.
//! - A turn can forge its own log. It then takes somebody else's commits for its own, at worst.
//! - A log that grew by more than 4 MiB is not read, which makes the move unvouched.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use bstr::{BString, ByteSlice as _};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

use crate::git::files::hexbytes;
use crate::git::files::smallfile::LIMIT;
use crate::git::refs::Head;
use crate::git::workspace::Workspace;
use crate::tx::id::{AttemptKey, Oid, RefName};

/// The value of `GIT_REFLOG_ACTION` for the turn of an attempt.
pub fn mark(key: &AttemptKey) -> String {
    format!("worktx {key}")
}

/// Where a log ended at open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMark {
    /// Bytes; 0 where there was no log.
    pub length: u64,
    /// The last line (of it the last 4 KiB at most), to notice that a log was rewritten.
    #[serde(with = "hexbytes")]
    pub last_line: Vec<u8>,
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The id before.
    pub old: Oid,
    /// The id after.
    pub new: Oid,
    /// What git wrote about it.
    pub message: BString,
}

/// What was appended to a log since open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The lines, oldest first.
    pub links: Vec<Link>,
    /// Whether the log still begins with what it held at open. If not (it was expired, rewritten
    /// or deleted), `links` may begin with lines from before.
    pub intact: bool,
}

/// How the branch came from the base to where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Moves {
    /// It is where it was.
    None,
    /// The turn moved it forward.
    TurnsOwn {
        /// The last commit.
        tip: Oid,
    },
    /// Somebody moved it, and nobody vouches that it was the turn.
    Unvouched {
        /// What is missing.
        why: String,
    },
    /// HEAD is elsewhere.
    Switched {
        /// The branch or the commit that it is on.
        to: String,
    },
    /// The base is no ancestor of the tip, or the branch is gone.
    Rewritten {
        /// What was found.
        why: String,
    },
}

/// The log that decides about a branch; for `HEAD` that of this work tree.
pub fn log_path(workspace: &Workspace, branch: &RefName) -> PathBuf {
    let dir = match branch.as_str() {
        "HEAD" => workspace.git_dir(),
        _ => workspace.common_dir(),
    };
    dir.join("logs").join(branch.as_str())
}

/// Where the log ends now.
pub fn mark_now(workspace: &Workspace, branch: &RefName) -> io::Result<LogMark> {
    let Some((file, length)) = open(workspace, branch)? else { return Ok(LogMark::default()) };
    Ok(LogMark { length, last_line: last_line(&file, length)? })
}

/// What the log says since the mark was made.
///
/// Errors: what the system says, `FileTooLarge` beyond 4 MiB, `InvalidData` for a line that is
/// none.
pub fn read_since(
    workspace: &Workspace,
    branch: &RefName,
    since: &LogMark,
) -> io::Result<Appended> {
    let Some((file, length)) = open(workspace, branch)? else {
        return Ok(Appended { links: Vec::new(), intact: since.length == 0 });
    };
    let intact = length >= since.length && last_line(&file, since.length)? == since.last_line;
    if intact {
        if length - since.length > LIMIT {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the log grew by over 4 MiB"));
        }
        let bytes = read_range(&file, since.length, length)?;
        return Ok(Appended { links: parse(&bytes)?, intact });
    }
    let from = length.saturating_sub(LIMIT);
    let mut bytes = read_range(&file, from, length)?;
    if from > 0 {
        let line_start = bytes.find_byte(b'\n').map_or(bytes.len(), |at| at + 1);
        bytes.drain(..line_start);
    }
    if !since.last_line.is_empty()
        && let Some(at) = bytes.rfind(&since.last_line)
    {
        bytes.drain(..at + since.last_line.len());
    }
    Ok(Appended { links: parse(&bytes)?, intact })
}

/// What is known of a branch after the turn.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The branch of the attempt; `HEAD` where it began detached.
    pub branch: &'a RefName,
    /// Where it was.
    pub base: Oid,
    /// Where it is; `None` where it is gone.
    pub tip: Option<Oid>,
    /// Where HEAD is.
    pub head: &'a Head,
    /// Its log since open.
    pub log: &'a Appended,
    /// Moves (old, new) that the guard hook saw and knows to be the turn's.
    pub vouched: &'a HashSet<(Oid, Oid)>,
}

/// Decides whose the moves are. `descends(tip, base)` says whether the base is an ancestor.
pub fn judge_moves(
    seen: &Observed<'_>,
    key: &AttemptKey,
    descends: impl FnOnce(Oid, Oid) -> bool,
) -> Moves {
    match seen.head {
        Head::Branch(on, _) if on != seen.branch => return Moves::Switched { to: on.to_string() },
        Head::Detached(id) if seen.branch.as_str() != "HEAD" => {
            return Moves::Switched { to: id.to_string() };
        }
        Head::Other(text) => return Moves::Switched { to: text.clone() },
        _ => {}
    }
    let Some(tip) = seen.tip else {
        return Moves::Rewritten { why: format!("{} is gone", seen.branch) };
    };
    if tip == seen.base {
        return Moves::None;
    }
    if let Err(why) = chain(seen, tip, &mark(key)) {
        return Moves::Unvouched { why };
    }
    if descends(tip, seen.base) {
        Moves::TurnsOwn { tip }
    } else {
        let (tip, base) = (tip.short(), seen.base.short());
        Moves::Rewritten { why: format!("{tip} does not descend from the base {base}") }
    }
}

fn chain(seen: &Observed<'_>, tip: Oid, mark: &str) -> Result<(), String> {
    // Lines that move nothing (a branch renamed there and back) prove nothing and spoil nothing.
    let links: Vec<&Link> = seen.log.links.iter().filter(|link| link.old != link.new).collect();
    let links = if seen.log.intact { &links[..] } else { since_base(&links, seen.base) };
    let mut at = seen.base;
    for link in links {
        if link.old != at && !vouched_path(seen.vouched, at, link.old) {
            let (at, old) = (at.short(), link.old.short());
            return Err(format!("the log of {} has no move from {at} to {old}", seen.branch));
        }
        if !is_marked(&link.message, mark) && !seen.vouched.contains(&(link.old, link.new)) {
            let (old, new) = (link.old.short(), link.new.short());
            let said = if link.message.is_empty() {
                "has no reflog message".to_owned()
            } else {
                format!("is not marked as the command's: {}", link.message)
            };
            return Err(format!("the move from {old} to {new} {said}"));
        }
        at = link.new;
    }
    if at == tip || vouched_path(seen.vouched, at, tip) {
        Ok(())
    } else {
        let (at, tip) = (at.short(), tip.short());
        Err(format!("the log of {} has no move from {at} to {tip}", seen.branch))
    }
}

/// The end of a rewritten log that begins with the earliest move away from the base, as far as
/// the chain is unbroken.
fn since_base<'a, 'b>(links: &'a [&'b Link], base: Oid) -> &'a [&'b Link] {
    let mut start = links.len();
    for at in (0..links.len()).rev() {
        if at + 1 < links.len() && links[at].new != links[at + 1].old {
            break;
        }
        if links[at].old == base {
            start = at;
        }
    }
    &links[start..]
}

fn is_marked(message: &[u8], mark: &str) -> bool {
    message
        .strip_prefix(mark.as_bytes())
        .is_some_and(|rest| rest.is_empty() || rest[0] == b':' || rest.starts_with(b" ("))
}

fn vouched_path(vouched: &HashSet<(Oid, Oid)>, from: Oid, to: Oid) -> bool {
    let mut seen = HashSet::from([from]);
    let mut queue = VecDeque::from([from]);
    while let Some(at) = queue.pop_front() {
        for (_, new) in vouched.iter().filter(|(old, _)| *old == at) {
            if *new == to {
                return true;
            }
            if seen.insert(*new) {
                queue.push_back(*new);
            }
        }
    }
    false
}

fn open(workspace: &Workspace, branch: &RefName) -> io::Result<Option<(File, u64)>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = match openat(CWD, log_path(workspace, branch), flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let meta = file.metadata()?;
    if meta.is_dir() {
        return Ok(None);
    }
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the log is not a file"));
    }
    Ok(Some((file, meta.len())))
}

fn last_line(file: &File, end: u64) -> io::Result<Vec<u8>> {
    let bytes = read_range(file, end.saturating_sub(4096), end)?;
    let inner = &bytes[..bytes.len().saturating_sub(1)];
    let start = inner.rfind_byte(b'\n').map_or(0, |at| at + 1);
    Ok(bytes[start..].to_vec())
}

fn read_range(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(to - from).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> io::Result<Vec<Link>> {
    let line = |line: &[u8]| {
        let (head, message) = line.split_once_str("\t").unwrap_or((line, b""));
        let mut words = head.splitn(3, |b| *b == b' ');
        let mut id = || std::str::from_utf8(words.next()?).ok()?.parse().ok();
        Some(Link { old: id()?, new: id()?, message: message.trim_end().into() })
    };
    let links = bytes.lines().filter(|l| !l.is_empty()).map(line).collect::<Option<_>>();
    links.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the log is damaged"))
}

#[cfg(test)]
mod tests;
