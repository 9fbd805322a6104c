//! Who in a process table belongs to a recorded writer, and who might: pure.
//!
//! A process of the turn is either in its session or group, or descends from one that is, or has
//! left both and been handed to a subreaper. Of the last kind nothing shows where it came from,
//! so that every process that started since, and for which there is no other explanation, is a
//! suspect. Explanations, each sound by itself:
//!
//! - its session is older than the turn (sessions cannot be joined), unless the turn shares it;
//! - it is in another cgroup than the turn: than the one that was made for it, or, without such a
//!   one, than that where it was started (leaving it takes rights beyond a plain user's, or a
//!   delegated tree and the will to);
//! - its parent lives and is neither init, nor an ancestor of the supervisor (only these may be
//!   handed the turn's orphans), nor itself of the turn or suspect;
//! - its parent is outside this pid namespace (`docker exec`): orphans fall to the inner init.
//!
//! # Limitations
//! Session and group numbers are pids: once all of the turn is gone they may be reused. The
//! window needs the pid counter to come round and the new holder to die before its children.

use std::collections::{HashMap, HashSet};

use super::cgroup;
use super::record::Traces;
use super::table::{Process, Table};
use crate::tx::writer::WriterRecord;

/// What a table shows of a writer.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Certainly the writer's.
    pub(super) ours: Vec<Process>,
    /// Possibly.
    pub(super) suspects: Vec<Process>,
}

/// The cgroup that was made for a turn.
#[derive(Clone, Copy, Debug)]
pub(super) enum TurnCgroup<'a> {
    /// Its path; the paths of others can be compared with it.
    Known(&'a str),
    /// There is one, and from here nothing can be compared with it.
    Unseen,
}

/// Looks for the writer; `own` is the pid of who looks, `turn` the cgroup that was made for it.
pub(super) fn look(
    table: &Table,
    record: &WriterRecord,
    traces: Option<&Traces>,
    own: i32,
    turn: Option<TurnCgroup<'_>>,
    cgroup_of: &dyn Fn(i32) -> String,
) -> Found {
    let in_cgroup = |pid: i32| match turn {
        Some(TurnCgroup::Known(made)) => {
            cgroup::path_in(&cgroup_of(pid)).is_some_and(|path| cgroup::holds(made, path))
        }
        _ => false,
    };
    let leader = record.leader;
    let reused = table.0.get(&leader.pid).is_some_and(|process| process.id != leader);
    let roots: HashSet<i32> = table
        .0
        .values()
        .filter(|p| p.id.pid != own)
        .filter(|p| p.id == record.supervisor || p.id.start_ticks >= record.started_ticks)
        .filter(|p| {
            p.id == record.supervisor
                || p.id == leader
                || (!reused && (p.session == leader.pid || p.group == leader.pid))
                || in_cgroup(p.id.pid)
        })
        .map(|p| p.id.pid)
        .collect();
    let mut ours = table.descendants(&roots);
    ours.extend(roots.iter().map(|pid| table.0[pid]).filter(Process::lives));
    ours.sort_by_key(|process| (process.id.start_ticks, process.id.pid));
    ours.retain(|process| process.id.pid != own);
    let certain: HashSet<i32> = ours.iter().map(|process| process.id.pid).collect();
    let old_sessions: HashSet<i32> = table
        .0
        .values()
        .filter(|p| p.id.start_ticks < record.started_ticks)
        .map(|p| p.session)
        .filter(|session| *session != 0)
        .collect();
    let mut judge = Judge {
        table,
        since: record.started_ticks,
        traces,
        own,
        turn,
        cgroup_of,
        old_sessions,
        known: certain.iter().map(|pid| (*pid, false)).collect(),
    };
    let mut suspects: Vec<Process> = table
        .0
        .values()
        .filter(|p| p.id.start_ticks >= record.started_ticks && p.lives() && p.id.pid != own)
        .filter(|p| !certain.contains(&p.id.pid) && !judge.explained(p))
        .copied()
        .collect();
    suspects.sort_by_key(|process| (process.id.start_ticks, process.id.pid));
    Found { ours, suspects }
}

struct Judge<'a> {
    table: &'a Table,
    since: u64,
    traces: Option<&'a Traces>,
    own: i32,
    turn: Option<TurnCgroup<'a>>,
    cgroup_of: &'a dyn Fn(i32) -> String,
    old_sessions: HashSet<i32>,
    known: HashMap<i32, bool>,
}

impl Judge<'_> {
    /// Whether a process that started since has another explanation than the turn.
    fn explained(&mut self, process: &Process) -> bool {
        if let Some(known) = self.known.get(&process.id.pid) {
            return *known;
        }
        // Parents of a table taken piecemeal could form a circle: unexplained until shown.
        self.known.insert(process.id.pid, false);
        let explained = self.by_itself(process) || self.by_parent(process);
        self.known.insert(process.id.pid, explained);
        explained
    }

    fn by_itself(&self, process: &Process) -> bool {
        let shared = self.traces.and_then(|traces| traces.shared_session);
        // Without traces the turn's session is not known to be its own.
        let by_session = self.traces.is_some()
            && shared != Some(process.session)
            && self.old_sessions.contains(&process.session);
        let by_cgroup = || {
            let its = (self.cgroup_of)(process.id.pid);
            match self.turn {
                Some(TurnCgroup::Known(made)) => {
                    cgroup::path_in(&its).is_some_and(|path| !cgroup::holds(made, path))
                }
                Some(TurnCgroup::Unseen) => false,
                None => self
                    .traces
                    .is_some_and(|t| !t.cgroup.is_empty() && !its.is_empty() && its != t.cgroup),
            }
        };
        (process.parent == 0 && process.id.pid != 1) || by_session || by_cgroup()
    }

    fn by_parent(&mut self, process: &Process) -> bool {
        let Some(parent) = self.table.0.get(&process.parent).copied() else { return false };
        let Some(traces) = self.traces else { return false };
        if parent.id.pid == 1 || traces.ancestors.contains(&parent.id) {
            return false;
        }
        parent.id.pid == self.own || parent.id.start_ticks < self.since || self.explained(&parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tx::writer::{HostId, ProcessId};

    const SINCE: u64 = 100;
    const OWN: i32 = 90;

    fn process(pid: i32, parent: i32, session: i32, start_ticks: u64) -> Process {
        let id = ProcessId { pid, start_ticks };
        Process { id, parent, group: session, session, state: b'S', threads: 1 }
    }

    fn found(extra: &[Process], traces: Option<&Traces>) -> (Vec<i32>, Vec<i32>) {
        found_in(None, extra, traces)
    }

    fn found_in(
        turn: Option<TurnCgroup<'_>>,
        extra: &[Process],
        traces: Option<&Traces>,
    ) -> (Vec<i32>, Vec<i32>) {
        let old = [
            process(1, 0, 1, 1),
            process(10, 1, 10, 5), // a shell, from which the coordinator was started
            process(11, 1, 11, 6), // a daemon that has nothing to do with it
            process(OWN, 10, 10, 300),
        ];
        let table = Table(old.iter().chain(extra).map(|p| (p.id.pid, *p)).collect());
        let host = HostId {
            machine_id: String::new(),
            boot_id: String::new(),
            pid_namespace: 0,
            init_start_ticks: 1,
        };
        let record = WriterRecord {
            host,
            supervisor: ProcessId { pid: 50, start_ticks: SINCE },
            leader: ProcessId { pid: 51, start_ticks: SINCE + 1 },
            cgroup: None,
            started_ticks: SINCE,
        };
        let cgroup = |pid: i32| {
            let path = match pid {
                70 => "/other",
                80..=89 => "/worktx-50-100/inner",
                _ => "/",
            };
            format!("1:devices:/x\n0::{path}\n")
        };
        let found = look(&table, &record, traces, OWN, turn, &cgroup);
        let pids = |list: Vec<Process>| list.iter().map(|p| p.id.pid).collect();
        (pids(found.ours), pids(found.suspects))
    }

    fn traces() -> Traces {
        let ancestors =
            vec![ProcessId { pid: 10, start_ticks: 5 }, ProcessId { pid: 1, start_ticks: 1 }];
        Traces { ancestors, cgroup: "1:devices:/x\n0::/\n".to_owned(), ..Traces::default() }
    }

    #[test]
    fn session_group_and_descent_are_certain() {
        let turn = [
            process(51, 1, 51, SINCE + 1),
            process(52, 1, 51, SINCE + 2),  // orphan in the session
            process(53, 52, 53, SINCE + 3), // left it, its parent has not
            process(54, 53, 53, SINCE + 4),
        ];
        assert_eq!(found(&turn, Some(&traces())), (vec![51, 52, 53, 54], vec![]));
    }

    #[test]
    fn an_orphan_in_a_session_of_its_own_is_suspect_with_its_children() {
        let daemon = [process(60, 1, 60, 120), process(61, 60, 60, 121), process(62, 10, 62, 122)];
        assert_eq!(found(&daemon, Some(&traces())), (vec![], vec![60, 61, 62]));
    }

    #[test]
    fn old_sessions_other_cgroups_and_other_parents_explain() {
        let others = [
            process(62, 10, 10, 120),  // a later command of the same shell
            process(63, 11, 63, 120),  // a worker of the daemon
            process(64, 63, 64, 121),  // and its child
            process(70, 1, 70, 120),   // a service started since
            process(71, 0, 71, 120),   // injected into the container
            process(72, OWN, 72, 310), // of this process
        ];
        assert_eq!(found(&others, Some(&traces())), (vec![], vec![]));
    }

    #[test]
    fn a_cgroup_of_its_own_tells_the_turn_from_others() {
        let all = [
            process(60, 1, 60, 120), // an orphan of somebody else, where the turn was started
            process(61, 60, 61, 121),
            process(70, 1, 70, 120), // a service
            process(80, 1, 80, 122), // an orphan of the turn
            process(81, 80, 81, 123),
            process(62, 81, 62, 124), // its child, which moved itself
        ];
        let own = TurnCgroup::Known("/worktx-50-100");
        assert_eq!(found_in(Some(own), &all, Some(&traces())), (vec![80, 81, 62], vec![]));
        assert_eq!(found_in(Some(own), &all, None), (vec![80, 81, 62], vec![]));
        // Where paths cannot be compared a cgroup explains nothing.
        let found = found_in(Some(TurnCgroup::Unseen), &all, Some(&traces()));
        assert_eq!(found, (vec![], vec![60, 70, 61, 80, 81, 62]));
    }

    #[test]
    fn a_shared_session_explains_nothing() {
        let shared = Traces { shared_session: Some(10), ..traces() };
        let orphan = [process(62, 1, 10, 120)];
        assert_eq!(found(&orphan, Some(&shared)), (vec![], vec![62]));
    }

    #[test]
    fn without_traces_nothing_is_explained() {
        let others = [process(62, 10, 10, 120), process(63, 11, 63, 120)];
        assert_eq!(found(&others, None), (vec![], vec![62, 63]));
    }

    #[test]
    fn a_reused_leader_pid_is_not_the_turn() {
        let other = [process(51, 11, 51, 200), process(52, 51, 51, 201)];
        assert_eq!(found(&other, Some(&traces())), (vec![], vec![]));
    }

    #[test]
    fn the_old_and_the_dead_are_nobody() {
        let zombie = Process { state: b'Z', ..process(51, 1, 51, SINCE + 1) };
        assert_eq!(found(&[zombie, process(52, 1, 52, 99)], Some(&traces())), (vec![], vec![]));
    }
}
