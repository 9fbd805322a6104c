//! The plan of a rollback: what has to be done, in which order, to have the base again. Pure.
//!
//! Input is what differs between the base and the tree; output is a list of steps for
//! [`crate::git::undo::restore`]. The order is a rule, since each part makes room for the next:
//!
//! 1. what is not of the base goes, deepest first;
//! 2. directories come back, outermost first;
//! 3. files, links, pipes and sockets come back;
//! 4. directories get their mode, deepest first, so that a closed one closes last.
//!
//! What the base ignored is not planned for at all. Where it stands in the way, the execution
//! meets it and moves it aside. Bytes that are neither of the base nor pinned are drift; that is
//! found out when they come out of their place, not here.
//!
//! # Limitations
//! The plan needs the whole list of differences: each path of the base below a directory that is
//! gone, or that was replaced, must be listed by itself. Device nodes cannot be made again (the
//! manifest does not hold their numbers): a missing one is blocked.

pub(super) mod aside;
pub mod pin;
pub mod restore;
pub mod spill;

use std::collections::{HashMap, HashSet};

use crate::tx::entry::{Change, Entry, Found, Kind};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;
use crate::tx::writer::{BlockedPath, ProvenDead};

/// One step of an undo. Each can be done again at any time, and finds out by itself whether it
/// has been done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take away something that is no directory and not of the base.
    Remove {
        /// Where.
        path: RepoPath,
    },
    /// Take away a directory that is not of the base, once it is empty.
    RemoveDirectory {
        /// Where.
        path: RepoPath,
        /// Whether something of the base must come back at this very path: then what is left in
        /// it is moved aside; else a directory that is not empty stays.
        in_the_way: bool,
    },
    /// Move something whole into the spill: beyond the limits, or a repository of its own.
    Spill {
        /// Where.
        path: RepoPath,
    },
    /// Make a directory of the base.
    MakeDirectory {
        /// Where.
        path: RepoPath,
        /// What the base has there.
        base: Entry,
    },
    /// Put back a file, link, pipe or socket.
    Put {
        /// Where.
        path: RepoPath,
        /// What the base has there.
        base: Entry,
        /// Whether what stands there is beyond the limits: moved into the spill, unread.
        spill: bool,
    },
    /// Give something its mode (and, as root, its owner) back; its bytes are not touched.
    Mode {
        /// Where.
        path: RepoPath,
        /// What the base has there.
        base: Entry,
    },
}

impl Step {
    /// The path that it is about.
    pub const fn path(&self) -> &RepoPath {
        match self {
            Self::Remove { path }
            | Self::RemoveDirectory { path, .. }
            | Self::Spill { path }
            | Self::MakeDirectory { path, .. }
            | Self::Put { path, .. }
            | Self::Mode { path, .. } => path,
        }
    }

    /// What the base has at the path; `None` where it has nothing.
    pub const fn base(&self) -> Option<&Entry> {
        match self {
            Self::Remove { .. } | Self::RemoveDirectory { .. } | Self::Spill { .. } => None,
            Self::MakeDirectory { base, .. } | Self::Put { base, .. } | Self::Mode { base, .. } => {
                Some(base)
            }
        }
    }
}

/// What has to be done to have the base again. It holds the proof that the writer is dead, so
/// that none can be made, and nothing undone, without it.
#[derive(Clone, Debug)]
#[must_use]
pub struct UndoPlan {
    proof: ProvenDead,
    /// The steps, in the order in which they must be done.
    pub steps: Vec<Step>,
    /// What cannot be brought back, known already.
    pub blocked: Vec<BlockedPath>,
    /// Mounts that the turn made and that stand in nobody's way: left as they are.
    pub left: Vec<RepoPath>,
    /// Repositories of their own that stood there at open, out of scope: gone, or something else
    /// now, and nothing brings them back.
    pub gone: Vec<RepoPath>,
    /// Files and links that hold what the base has, and were written or made anew meanwhile, by
    /// somebody who need not have synced them.
    pub same: Vec<RepoPath>,
}

impl UndoPlan {
    /// The proof that nobody of the turn writes any more.
    pub const fn proof(&self) -> &ProvenDead {
        &self.proof
    }
}

/// What a plan is made by, beside the changes.
pub struct Rules<'a> {
    /// The raw blob ids that the pin of the rejected work holds, by path.
    pub pinned: &'a HashMap<RepoPath, Oid>,
    /// Whether a path belongs to the rollback-survives set: never undone.
    pub survives: &'a dyn Fn(&RepoPath) -> bool,
    /// What is beyond the limits and therefore not in the pin: moved into the spill. A directory
    /// here stands for everything beneath it.
    pub too_large: &'a HashSet<RepoPath>,
}

/// Makes the plan that leads from what `changes` found back to the base.
pub fn plan(proof: ProvenDead, changes: Vec<Change>, rules: &Rules<'_>) -> UndoPlan {
    // The directories that something of the base needs: what is no directory there is in the way,
    // even where the base ignored it.
    let mut needed = HashSet::new();
    for change in changes.iter().filter(|c| c.before.is_some()) {
        let mut above = change.path.parent();
        while let Some(dir) = above {
            above = dir.parent();
            if !needed.insert(dir) {
                break;
            }
        }
    }
    let mut sorter =
        Sorter { rules, needed, removals: vec![], makes: vec![], puts: vec![], modes: vec![] };
    let mut plan = UndoPlan {
        proof,
        steps: vec![],
        blocked: vec![],
        left: vec![],
        gone: vec![],
        same: vec![],
    };
    for change in changes {
        if (rules.survives)(&change.path) || sorter.is_inside_spilled(&change) {
            continue;
        }
        sorter.sort(change, &mut plan);
    }
    let Sorter { mut removals, mut makes, mut puts, mut modes, .. } = sorter;
    // A path sorts before everything beneath it, so the reverse is deepest first.
    removals.sort_unstable_by(|a, b| b.path().cmp(a.path()));
    makes.sort_unstable_by(|a, b| a.path().cmp(b.path()));
    puts.sort_unstable_by(|a, b| a.path().cmp(b.path()));
    modes.sort_unstable_by(|a, b| b.path().cmp(a.path()));
    plan.steps = removals;
    plan.steps.append(&mut makes);
    plan.steps.append(&mut puts);
    plan.steps.append(&mut modes);
    plan
}

struct Sorter<'a> {
    rules: &'a Rules<'a>,
    needed: HashSet<RepoPath>,
    removals: Vec<Step>,
    makes: Vec<Step>,
    puts: Vec<Step>,
    modes: Vec<Step>,
}

impl Sorter<'_> {
    /// Whether the path goes into the spill with a directory above it, and the base has nothing
    /// there that would have to come back.
    fn is_inside_spilled(&self, change: &Change) -> bool {
        change.before.is_none()
            && !self.rules.too_large.is_empty()
            && std::iter::successors(change.path.parent(), RepoPath::parent)
                .any(|above| self.rules.too_large.contains(&above))
    }

    fn sort(&mut self, change: Change, plan: &mut UndoPlan) {
        let Change { path, before, after, ignored_by_base, .. } = change;
        match (before, after) {
            (None, None) => {}
            (None, Some(found)) => {
                let in_the_way = self.needed.contains(&path);
                if ignored_by_base && (!in_the_way || found.kind == Kind::Directory) {
                    return;
                }
                self.remove(path, found.kind, false, plan);
            }
            (Some(base), None) => self.bring_back(path, base, false, plan),
            (Some(base), Some(found)) => self.differs(path, base, &found, plan),
        }
    }

    /// Something that is not of the base.
    fn remove(&mut self, path: RepoPath, kind: Kind, in_the_way: bool, plan: &mut UndoPlan) {
        if kind == Kind::Mount {
            if in_the_way || self.needed.contains(&path) {
                plan.blocked.push(blocked(path, "a file system is mounted on it"));
            } else {
                plan.left.push(path);
            }
            return;
        }
        let step = if self.rules.too_large.contains(&path) || kind == Kind::NestedRepository {
            Step::Spill { path }
        } else if kind == Kind::Directory {
            // A directory that the base needs stays, even though nobody listed it as one of its.
            if !in_the_way && self.needed.contains(&path) {
                return;
            }
            Step::RemoveDirectory { path, in_the_way }
        } else {
            Step::Remove { path }
        };
        self.removals.push(step);
    }

    fn differs(&mut self, path: RepoPath, base: Entry, found: &Found, plan: &mut UndoPlan) {
        let outside = |kind| matches!(kind, Kind::NestedRepository | Kind::Mount);
        if outside(base.kind) {
            // Out of scope at open: it has never been looked into.
            if base.kind == Kind::NestedRepository && found.kind != base.kind {
                plan.gone.push(path);
            }
            return;
        }
        if base.kind == found.kind {
            let same_bytes = match base.kind {
                Kind::File | Kind::Symlink => {
                    self.rules.pinned.get(&path).is_some_and(|id| *id == base.raw)
                }
                _ => true,
            };
            // A mode set on an inode with other names would show under them too, and those may
            // lie outside: such a file is replaced.
            let shared = base.kind != Kind::Directory && found.stat.links > 1;
            if !same_bytes || (shared && !same_mode_and_owner(&base, found)) {
                let spill = self.rules.too_large.contains(&path);
                self.bring_back(path, base, spill, plan);
                return;
            }
            if matches!(base.kind, Kind::File | Kind::Symlink) {
                plan.same.push(path.clone());
            }
            if base.kind != Kind::Symlink && !same_mode_and_owner(&base, found) {
                self.modes.push(Step::Mode { path, base });
            }
            return;
        }
        if found.kind == Kind::Mount {
            plan.blocked.push(blocked(path, "a file system is mounted on it"));
            return;
        }
        let simple = !matches!(found.kind, Kind::Directory | Kind::NestedRepository);
        if simple && base.kind != Kind::Directory && !self.rules.too_large.contains(&path) {
            // Exchanged in one step: at no time nothing stands there.
            self.bring_back(path, base, false, plan);
            return;
        }
        self.remove(path.clone(), found.kind, true, plan);
        self.bring_back(path, base, false, plan);
    }

    fn bring_back(&mut self, path: RepoPath, base: Entry, spill: bool, plan: &mut UndoPlan) {
        match base.kind {
            Kind::Directory => {
                self.modes.push(Step::Mode { path: path.clone(), base: base.clone() });
                self.makes.push(Step::MakeDirectory { path, base });
            }
            Kind::File | Kind::Symlink | Kind::Fifo | Kind::Socket => {
                self.puts.push(Step::Put { path, base, spill });
            }
            Kind::Device => plan.blocked.push(blocked(path, "a device node cannot be made again")),
            Kind::NestedRepository => plan.gone.push(path),
            Kind::Mount => {}
        }
    }
}

/// Whether permission bits and owner are the base's.
pub(super) fn same_mode_and_owner(base: &Entry, found: &Found) -> bool {
    let (base, found) = (&base.stat, &found.stat);
    base.mode == found.mode && base.uid == found.uid && base.gid == found.gid
}

fn blocked(path: RepoPath, why: &str) -> BlockedPath {
    BlockedPath { path, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tx::entry::Stat;
    use crate::tx::writer::DeathProof;

    fn path(text: &str) -> RepoPath {
        RepoPath::new(text).expect("valid")
    }

    fn stat(mode: u32) -> Stat {
        let (uid, gid) = (0, 0);
        Stat { mode, size: 1, mtime_ns: 1, ctime_ns: 1, inode: 1, links: 1, uid, gid }
    }

    fn entry(kind: Kind, raw: u8) -> Entry {
        let raw = Oid::from_bytes([raw; 20]);
        Entry { kind, stat: stat(0o644), stat_is_proof: true, raw, tracked: None }
    }

    fn change(at: &str, before: Option<Kind>, after: Option<Kind>) -> Change {
        Change {
            path: path(at),
            before: before.map(|k| entry(k, 1)),
            after: after.map(|kind| Found { kind, stat: stat(0o644) }),
            ignored_by_base: false,
            ignored_by_turn: false,
        }
    }

    fn planned(changes: Vec<Change>, pinned: &[(&str, u8)], too_large: &[&str]) -> UndoPlan {
        let pinned = pinned.iter().map(|(p, id)| (path(p), Oid::from_bytes([*id; 20]))).collect();
        let too_large = too_large.iter().map(|p| path(p)).collect();
        let survives = |p: &RepoPath| p.is_at_or_beneath(b"journal");
        let rules = Rules { pinned: &pinned, survives: &survives, too_large: &too_large };
        plan(ProvenDead::attest(DeathProof::NoChildren), changes, &rules)
    }

    fn shown(plan: &UndoPlan) -> Vec<String> {
        let word = |step: &Step| match step {
            Step::Remove { .. } => "remove",
            Step::RemoveDirectory { in_the_way: true, .. } => "clear",
            Step::RemoveDirectory { .. } => "rmdir",
            Step::Spill { .. } => "spill",
            Step::MakeDirectory { .. } => "mkdir",
            Step::Put { spill: true, .. } => "put+spill",
            Step::Put { .. } => "put",
            Step::Mode { .. } => "mode",
        };
        plan.steps.iter().map(|s| format!("{} {}", word(s), s.path())).collect()
    }

    use Kind::{Device, Directory, Fifo, File, Mount, NestedRepository, Symlink};

    #[test]
    fn makes_room_before_it_brings_back() {
        let plan = planned(
            vec![
                change("f", Some(File), Some(Directory)),
                change("f/x", None, Some(File)),
                change("f/y", None, Some(Directory)),
                change("d", Some(Directory), Some(File)),
                change("d/a", Some(File), None),
                change("l", Some(Symlink), Some(Fifo)),
            ],
            &[("f/x", 2), ("d", 3)],
            &[],
        );
        assert_eq!(
            shown(&plan),
            [
                "rmdir f/y",
                "remove f/x",
                "clear f",
                "remove d",
                "mkdir d",
                "put d/a",
                "put f",
                "put l",
                "mode d"
            ]
        );
        assert_eq!(plan.blocked, []);
    }

    #[test]
    fn equal_bytes_are_not_written_again() {
        let mut moded = change("m", Some(File), Some(File));
        moded.after.as_mut().expect("there").stat.mode = 0o755;
        let plan = planned(
            vec![
                change("same", Some(File), Some(File)),
                moded,
                change("x", Some(File), Some(File)),
            ],
            &[("same", 1), ("m", 1), ("x", 2)],
            &[],
        );
        assert_eq!(shown(&plan), ["put x", "mode m"]);
        assert_eq!(plan.same, [path("same"), path("m")], "written by who need not have synced");
    }

    #[test]
    fn what_the_base_ignored_is_touched_only_in_the_way() {
        let ignored = |at, kind| Change { ignored_by_base: true, ..change(at, None, Some(kind)) };
        let plan = planned(
            vec![
                ignored("free", File),
                ignored("dir", File),
                change("dir/a", Some(File), None),
                ignored("other", Directory),
                change("other/a", Some(File), None),
            ],
            &[],
            &[],
        );
        assert_eq!(shown(&plan), ["remove dir", "put dir/a", "put other/a"]);
    }

    #[test]
    fn survivors_and_what_was_outside_at_open_stay() {
        let plan = planned(
            vec![
                change("journal/a", None, Some(File)),
                change("journal/b", Some(File), None),
                change("repo", Some(NestedRepository), Some(File)),
                change("gone", Some(Mount), None),
            ],
            &[],
            &[],
        );
        assert_eq!(shown(&plan), Vec::<String>::new());
        assert_eq!(plan.blocked, []);
    }

    #[test]
    fn the_spill_takes_what_was_not_read() {
        let plan = planned(
            vec![
                change("huge", None, Some(Directory)),
                change("huge/a", None, Some(File)),
                change("grown", Some(File), Some(File)),
                change("repo", None, Some(NestedRepository)),
                change("src", Some(Directory), Some(NestedRepository)),
                change("src/a", Some(File), None),
            ],
            &[],
            &["huge", "grown"],
        );
        assert_eq!(
            shown(&plan),
            [
                "spill src",
                "spill repo",
                "spill huge",
                "mkdir src",
                "put+spill grown",
                "put src/a",
                "mode src"
            ]
        );
    }

    #[test]
    fn mounts_and_devices_are_named_where_they_block() {
        let plan = planned(
            vec![
                change("new", None, Some(Mount)),
                change("over", Some(Directory), Some(Mount)),
                change("null", Some(Device), None),
            ],
            &[],
            &[],
        );
        assert_eq!(plan.left, [path("new")]);
        let names: Vec<_> = plan.blocked.iter().map(|b| b.path.to_string()).collect();
        assert_eq!(names, ["over", "null"]);
        assert_eq!(plan.steps, []);
    }
}
