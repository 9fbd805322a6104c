//! The kill ladder of a child subreaper, and the proof of death: first the leader's group is
//! asked and then killed, then everything that is left, until the kernel says that this process
//! has no children at all. Whatever the turn forked is a descendant of the subreaper, whatever
//! sessions, groups or parents it left.
//!
//! Order rule: [`Ladder::step`] reaps before it looks, and looks before it signals; a signal goes
//! to a process by handle and start time, or to a group of which every member is a descendant.
//!
//! # Limitations
//! Who cannot be signalled (another user's, in an unkillable sleep) makes the bound run out: then
//! there is no proof. At most [`MOST_NAMED`] survivors are named.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, wait};

use super::cgroup::Own;
use super::table::{self, Process, Table};
use super::wire::Ending;
use crate::tx::writer::{KilledProcess, ProcessId};

/// How many survivors are named; a fork bomb has more.
const MOST_NAMED: usize = 100;
/// From this many survivors on nobody is asked first: a fork bomb uses the grace to grow.
const BOMB: usize = 500;
/// How often survivors are looked for while they have grace.
const LOOK_ASKED: Duration = Duration::from_millis(50);
/// How often while they are being killed.
const LOOK_KILLED: Duration = Duration::from_millis(10);
/// How many rounds of freezing come before a kill at most: each may find what forked meanwhile.
const FREEZE_ROUNDS: usize = 8;

/// What comes next for whoever drives the ladder.
#[derive(Debug)]
pub(super) enum Step {
    /// Step again when a child changes, at the latest after this time (`None`: when one does).
    Wait(Option<Duration>),
    /// The leader has been stopped; step again.
    LeaderStopped,
    /// No children: the proof.
    Dead,
    /// The bound ran out; who is left, in words.
    Unproven(String),
}

#[derive(Debug)]
enum Phase {
    /// The leader runs, nobody asked for its end.
    Running,
    /// It was asked to end; killed at the time.
    Asked { kill_at: Instant },
    /// It was killed, or it is gone; its survivors were asked.
    Survivors { kill_at: Instant },
    /// Everything is killed until the time.
    Killing { until: Instant },
}

/// Ends what descends from this process, a child subreaper.
#[derive(Debug)]
pub(super) struct Ladder {
    leader: ProcessId,
    grace: Duration,
    bound: Duration,
    phase: Phase,
    reaped: bool,
    asked_while_alive: bool,
    /// The leader's exit code or signal.
    status: (Option<i32>, Option<i32>),
    named: HashMap<ProcessId, usize>,
    killed: Vec<KilledProcess>,
    /// Where everything of the turn is, unless it moved itself.
    cgroup: Option<Own>,
}

impl Ladder {
    /// The leader runs, or waits at its pipe.
    pub(super) fn new(
        leader: ProcessId,
        grace: Duration,
        bound: Duration,
        cgroup: Option<Own>,
    ) -> Self {
        Self {
            leader,
            grace,
            bound,
            phase: Phase::Running,
            reaped: false,
            asked_while_alive: false,
            status: (None, None),
            named: HashMap::new(),
            killed: Vec::new(),
            cgroup,
        }
    }

    /// The leader may have been reaped by a supervisor that is gone.
    pub(super) fn take_over(
        leader: ProcessId,
        grace: Duration,
        bound: Duration,
        cgroup: Option<Own>,
    ) -> Self {
        let mut ladder = Self::new(leader, grace, bound, cgroup);
        ladder.reaped = table::read(leader.pid).is_none_or(|process| process.id != leader);
        if ladder.reaped {
            ladder.phase = Phase::Survivors { kill_at: Instant::now() + grace };
        }
        ladder
    }

    /// Asks the turn to end; a second call changes nothing.
    pub(super) fn end(&mut self, how: Ending) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        self.asked_while_alive = true;
        self.signal_leader(match how {
            Ending::Cancel => Signal::INT,
            Ending::Terminate => Signal::TERM,
        });
        // A stopped process sees no signal before it is continued.
        self.signal_leader(Signal::CONT);
        self.phase = Phase::Asked { kill_at: Instant::now() + self.grace };
    }

    /// Ends every grace.
    pub(super) fn hurry(&mut self) {
        self.grace = Duration::ZERO;
        match &mut self.phase {
            Phase::Asked { kill_at } | Phase::Survivors { kill_at } => *kill_at = Instant::now(),
            Phase::Running | Phase::Killing { .. } => {}
        }
    }

    /// Sends a signal to the leader's group, or to the leader where it left that.
    ///
    /// Nothing once it is reaped: group and pid may be somebody else's by then.
    pub(super) fn signal_leader(&self, signal: Signal) {
        if self.reaped {
            return;
        }
        let Some(group) = Pid::from_raw(self.leader.pid) else { return };
        let _ = kill_process_group(group, signal);
        if table::read(self.leader.pid).is_some_and(|leader| leader.group != self.leader.pid) {
            table::send(&self.leader, signal);
        }
    }

    /// Reaps, looks, signals.
    pub(super) fn step(&mut self) -> Step {
        let was_running = !self.reaped;
        loop {
            match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
                Ok(None) => break,
                Ok(Some((pid, status))) => {
                    let is_leader = pid.as_raw_nonzero().get() == self.leader.pid && !self.reaped;
                    if is_leader && status.stopped() {
                        return Step::LeaderStopped;
                    }
                    if is_leader && (status.exited() || status.signaled()) {
                        self.reaped = true;
                        self.status = (status.exit_status(), status.terminating_signal());
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::CHILD) => return Step::Dead,
                Err(error) => return Step::Unproven(format!("wait failed: {error}")),
            }
        }
        if was_running && self.reaped {
            self.phase = Phase::Survivors { kill_at: Instant::now() + self.grace };
        }
        let now = Instant::now();
        match self.phase {
            Phase::Running => Step::Wait(None),
            Phase::Asked { kill_at } if now < kill_at => Step::Wait(Some(kill_at - now)),
            Phase::Asked { .. } => {
                // The leader first, its survivors then get their own grace: they have not been
                // asked yet where they left its group.
                self.signal_leader(Signal::KILL);
                self.phase = Phase::Survivors { kill_at: now + self.grace };
                Step::Wait(Some(LOOK_KILLED))
            }
            Phase::Survivors { kill_at } if !self.reaped && now < kill_at => {
                // Killed and not gone yet.
                Step::Wait(Some(LOOK_KILLED))
            }
            Phase::Survivors { kill_at } => {
                let count = self.ask_survivors();
                if now < kill_at && count < BOMB {
                    return Step::Wait(Some(LOOK_ASKED.min(kill_at - now)));
                }
                self.phase = Phase::Killing { until: now + self.bound };
                self.kill_everything(now + self.bound);
                Step::Wait(Some(LOOK_KILLED))
            }
            Phase::Killing { until } if now < until => {
                self.kill_everything(until);
                Step::Wait(Some(LOOK_KILLED))
            }
            Phase::Killing { .. } => Step::Unproven(self.who_is_left()),
        }
    }

    /// Whether the end was asked for before the leader left.
    pub(super) fn was_asked(&self) -> bool {
        self.asked_while_alive
    }

    /// Exit code and signal of the leader.
    pub(super) fn status(&self) -> (Option<i32>, Option<i32>) {
        self.status
    }

    /// Removes the cgroup; to be called once death is proven.
    pub(super) fn remove_cgroup(&self) {
        if let Some(own) = &self.cgroup {
            own.remove();
        }
    }

    /// The survivors that were ended.
    pub(super) fn into_killed(self) -> Vec<KilledProcess> {
        self.killed
    }

    fn name(&mut self, process: &Process, signal: &str) {
        if let Some(at) = self.named.get(&process.id) {
            signal.clone_into(&mut self.killed[*at].signal);
        } else if self.killed.len() < MOST_NAMED && process.id != self.leader {
            self.named.insert(process.id, self.killed.len());
            self.killed.push(KilledProcess {
                pid: process.id.pid,
                command: table::command_line(process.id.pid),
                signal: signal.to_owned(),
            });
        }
    }

    /// SIGTERM to each survivor that has not had it; how many there are.
    fn ask_survivors(&mut self) -> usize {
        let Ok(table) = Table::read() else { return 0 };
        let survivors = descendants_of_this(&table);
        if survivors.len() < BOMB {
            for process in &survivors {
                if !self.named.contains_key(&process.id) {
                    self.name(process, "SIGTERM");
                    table::send(&process.id, Signal::TERM);
                    table::send(&process.id, Signal::CONT);
                }
            }
        }
        survivors.len()
    }

    /// Kills the cgroup at one stroke, where there is one; then freezes all descendants until none
    /// appears any more, and kills them: who moved to another cgroup is a descendant still.
    fn kill_everything(&mut self, until: Instant) {
        if self.cgroup.is_some()
            && let Ok(table) = Table::read()
        {
            for process in descendants_of_this(&table) {
                self.name(&process, "SIGKILL");
            }
        }
        if let Some(own) = &self.cgroup {
            own.kill();
        }
        let seen = |process: &Process| self.name(process, "SIGKILL");
        freeze_and_kill(until, &mut descendants_of_this, seen);
    }

    fn who_is_left(&self) -> String {
        let left = Table::read().map(|table| descendants_of_this(&table)).unwrap_or_default();
        let named: Vec<String> = left
            .iter()
            .take(5)
            .map(|p| {
                format!(
                    "{} ({}, state {})",
                    p.id.pid,
                    table::command_line(p.id.pid),
                    char::from(p.state)
                )
            })
            .collect();
        format!(
            "{} process(es) did not end within {} ms: {}",
            left.len(),
            self.bound.as_millis(),
            named.join("; ")
        )
    }
}

/// Freezes what `find` finds until nothing new appears, then kills it; how many there were, or
/// `None` where `/proc` cannot be read. `seen` is told of each while it is frozen.
pub(super) fn freeze_and_kill(
    until: Instant,
    find: &mut dyn FnMut(&Table) -> Vec<Process>,
    mut seen: impl FnMut(&Process),
) -> Option<usize> {
    let mut frozen: HashSet<ProcessId> = HashSet::new();
    let mut all = Vec::new();
    let mut groups = HashSet::new();
    for _ in 0..FREEZE_ROUNDS {
        let table = Table::read().ok()?;
        all = find(&table);
        groups = own_groups(&table, &all);
        let new: Vec<Process> =
            all.iter().filter(|process| frozen.insert(process.id)).copied().collect();
        if new.is_empty() || Instant::now() >= until {
            break;
        }
        // A group signal and a fork exclude each other in the kernel: nobody slips through.
        for group in &groups {
            signal_group(*group, Signal::STOP);
        }
        for process in new.iter().filter(|process| !groups.contains(&process.group)) {
            table::send(&process.id, Signal::STOP);
        }
        new.iter().for_each(&mut seen);
    }
    for group in &groups {
        signal_group(*group, Signal::KILL);
    }
    for process in all.iter().filter(|process| !groups.contains(&process.group)) {
        table::send(&process.id, Signal::KILL);
    }
    Some(all.len())
}

fn descendants_of_this(table: &Table) -> Vec<Process> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    table.descendants(&HashSet::from([own]))
}

/// The process groups that hold nobody but these.
fn own_groups(table: &Table, all: &[Process]) -> HashSet<i32> {
    let pids: HashSet<i32> = all.iter().map(|process| process.id.pid).collect();
    let mut groups: HashSet<i32> = all.iter().map(|process| process.group).collect();
    for process in table.0.values() {
        if process.lives() && !pids.contains(&process.id.pid) {
            groups.remove(&process.group);
        }
    }
    // 0 is a group outside this pid namespace, 1 that of init: never one of the turn.
    groups.retain(|group| *group > 1);
    groups
}

fn signal_group(group: i32, signal: Signal) {
    if let Some(group) = Pid::from_raw(group) {
        let _ = kill_process_group(group, signal);
    }
}
