//! The process table as `/proc` shows it: who is there, whose child, since when.
//!
//! # Limitations
//! A picture taken process by process: what forks meanwhile may be missing, so that no proof
//! rests on one look. `hidepid` hides others' processes; [`Table::is_whole`] tells.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::signals::Request;
use crate::base::fault;
use crate::tx::writer::{HostId, ProcessId};

/// The longest command line that is kept, in characters.
const COMMAND_CHARS: usize = 160;

/// One process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) id: ProcessId,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    /// The letter of `/proc/<pid>/stat`.
    pub(super) state: u8,
    pub(super) threads: i64,
}

impl Process {
    /// Whether it can still run: a zombie cannot, unless only its first thread is one.
    pub(super) fn lives(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x') || self.threads > 1
    }

    /// A kernel thread, or the mother of them.
    fn is_kernel(&self) -> bool {
        self.id.pid == 2 || self.parent == 2
    }
}

/// All processes of this pid namespace, by pid.
#[derive(Debug, Default)]
pub(super) struct Table(pub(super) HashMap<i32, Process>);

impl Table {
    /// Looks once through `/proc`.
    pub(super) fn read() -> std::io::Result<Self> {
        let mut table = HashMap::new();
        for entry in fs::read_dir("/proc")? {
            let Ok(entry) = entry else { continue };
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if let Some(process) = read(pid).filter(|process| !process.is_kernel()) {
                table.insert(pid, process);
            }
        }
        Ok(Self(table))
    }

    /// Whether other users' processes are shown too: init is somebody's.
    pub(super) fn is_whole(&self) -> bool {
        self.0.contains_key(&1)
    }

    /// The living processes that descend from `roots`, without these.
    pub(super) fn descendants(&self, roots: &HashSet<i32>) -> Vec<Process> {
        let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
        for process in self.0.values() {
            children.entry(process.parent).or_default().push(*process);
        }
        let mut seen = roots.clone();
        let mut next: Vec<i32> = roots.iter().copied().collect();
        let mut found = Vec::new();
        while let Some(pid) = next.pop() {
            for child in children.get(&pid).into_iter().flatten() {
                if seen.insert(child.id.pid) {
                    next.push(child.id.pid);
                    // A zombie has no children left, but a zombie first thread may.
                    if child.lives() {
                        found.push(*child);
                    }
                }
            }
        }
        found.sort_by_key(|process| (process.id.start_ticks, process.id.pid));
        found
    }
}

/// One process, or `None` if there is none of this pid.
pub(super) fn read(pid: i32) -> Option<Process> {
    parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(pid: i32, stat: &[u8]) -> Option<Process> {
    // The name may hold anything, brackets too: the fields start after the last one.
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(close + 2..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // proc_pid_stat(5): field n stands at n - 3 here.
    let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
    let small = |field: usize| i32::try_from(number(field)?).ok();
    Some(Process {
        id: ProcessId { pid, start_ticks: fields.get(22 - 3)?.parse().ok()? },
        parent: small(4)?,
        group: small(5)?,
        session: small(6)?,
        state: *fields.first()?.as_bytes().first()?,
        threads: number(20)?,
    })
}

/// The process if it is this one (by its start) and lives.
pub(super) fn living(id: &ProcessId) -> Option<Process> {
    read(id.pid).filter(|process| process.id == *id && process.lives())
}

/// Sends a signal to this very process; whether it was there to get it.
pub(super) fn send(id: &ProcessId, signal: Signal) -> bool {
    let Some(pid) = Pid::from_raw(id.pid) else { return false };
    // The handle first, the look second: what is looked at is what the handle names.
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    living(id).is_some() && pidfd_send_signal(handle, signal).is_ok()
}

/// Tells a coordinator what is asked of it, by the signal for that; whether it was there to hear it.
pub fn tell(id: &ProcessId, request: Request) -> bool {
    let signal = match request {
        Request::Cancel => Signal::INT,
        Request::Interrupt => Signal::TERM,
    };
    send(id, signal)
}

/// The identity of a process, if there is one of this pid.
pub fn identity(pid: i32) -> Option<ProcessId> {
    read(pid).map(|process| process.id)
}

/// What became of a process that may have been suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awake {
    /// It was not suspended, or is not there.
    Already,
    /// It was, and was continued.
    Continued,
    /// It still is: it is another user's, or is being traced.
    No,
}

/// Continues a process that was suspended: by Ctrl-Z, or by SIGSTOP.
pub fn wake(id: &ProcessId) -> Awake {
    match living(id).map(|process| process.state) {
        Some(b'T') if send(id, Signal::CONT) => Awake::Continued,
        Some(b'T' | b't') => Awake::No,
        _ => Awake::Already,
    }
}

/// The command line, shortened, unprintable characters replaced; the name in brackets where
/// there is none.
pub(super) fn command_line(pid: i32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&words).replace('\0', " ");
    let line = if text.trim().is_empty() {
        let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("[{}]", String::from_utf8_lossy(&name).trim())
    } else {
        text.trim().to_owned()
    };
    let plain = line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut short: String = plain.clone().take(COMMAND_CHARS).collect();
    if plain.count() > COMMAND_CHARS {
        short.push('…');
    }
    short
}

/// The machine, boot and pid namespace of this process: the same for as long as it lives.
pub fn this_host() -> HostId {
    static FOUND: OnceLock<HostId> = OnceLock::new();
    FOUND.get_or_init(find_host).clone()
}

fn find_host() -> HostId {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    HostId {
        machine_id: text("/etc/machine-id"),
        boot_id: fault::boot_id().unwrap_or_else(|| text("/proc/sys/kernel/random/boot_id")),
        pid_namespace: namespace_inode(Path::new("/proc/self/ns/pid")),
        init_start_ticks: read(1).map_or(0, |init| init.id.start_ticks),
    }
}

fn namespace_inode(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).map_or(0, |meta| meta.ino())
}

/// This process.
pub fn own_process() -> ProcessId {
    static FOUND: OnceLock<ProcessId> = OnceLock::new();
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let find = || ProcessId { pid, start_ticks: read(pid).map_or(0, |own| own.id.start_ticks) };
    let found = FOUND.get_or_init(find);
    // A copy of a process (the leader is one) has what that one found.
    if found.pid == pid { *found } else { find() }
}

/// This process's parent and all above it, each with its start: who asks.
pub fn own_ancestry() -> Vec<ProcessId> {
    let mut chain: Vec<ProcessId> = Vec::new();
    let mut pid = read(own_process().pid).map_or(0, |own| own.parent);
    while let Some(process) = read(pid) {
        // A pid that is used again meanwhile could lead in a circle.
        if chain.contains(&process.id) {
            break;
        }
        chain.push(process.id);
        pid = process.parent;
    }
    chain
}

/// Whether a recorded process lives; `None` where this cannot be known from here: another
/// machine, or another pid namespace of the same boot.
pub fn is_alive(host: &HostId, id: &ProcessId) -> Option<bool> {
    let here = this_host();
    if *host == here && !here.boot_id.is_empty() {
        return Some(living(id).is_some());
    }
    let rebooted = !here.machine_id.is_empty()
        && host.machine_id == here.machine_id
        && host.boot_id != here.boot_id;
    rebooted.then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_brackets_do_not_shift_fields() {
        let stat = b"7 (a) b (c)) S 1 7 5 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 4242 0 0";
        let process = parse(7, stat).expect("parses");
        assert_eq!(process.id, ProcessId { pid: 7, start_ticks: 4242 });
        assert_eq!((process.parent, process.group, process.session), (1, 7, 5));
        assert_eq!((process.state, process.threads), (b'S', 3));
    }

    #[test]
    fn own_process_lives_and_another_start_does_not() {
        let own = own_process();
        assert_eq!(is_alive(&this_host(), &own), Some(true));
        let other = ProcessId { start_ticks: own.start_ticks + 1, ..own };
        assert_eq!(is_alive(&this_host(), &other), Some(false));
    }

    #[test]
    fn the_ancestry_leads_to_init() {
        let chain = own_ancestry();
        let parent = rustix::process::getppid().expect("has one").as_raw_nonzero().get();
        assert_eq!(chain.first().map(|p| p.pid), Some(parent));
        assert!(chain.iter().all(|p| p.pid > 0));
    }

    #[test]
    fn another_namespace_says_nothing_and_another_boot_says_dead() {
        let mut host = this_host();
        host.init_start_ticks += 1;
        assert_eq!(is_alive(&host, &own_process()), None);
        let mut host = this_host();
        host.boot_id = "another".to_owned();
        let known = (!host.machine_id.is_empty()).then_some(false);
        assert_eq!(is_alive(&host, &own_process()), known);
    }

    #[test]
    fn a_zombie_is_not_alive() -> std::io::Result<()> {
        let mut child = std::process::Command::new("true").spawn()?;
        let pid = i32::try_from(child.id()).expect("fits");
        let handle = pidfd_open(Pid::from_raw(pid).expect("not 0"), PidfdFlags::empty())?;
        // Readable once it has ended; it stays a zombie until it is waited for.
        let mut ready = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ready, None)?;
        let zombie = read(pid).expect("is there");
        assert_eq!(zombie.state, b'Z');
        assert!(!zombie.lives() && living(&zombie.id).is_none());
        assert!(!send(&zombie.id, Signal::TERM));
        child.wait()?;
        Ok(())
    }

    #[test]
    fn descendants_are_found_at_any_depth() {
        let make = |pid: i32, parent: i32, state| Process {
            id: ProcessId { pid, start_ticks: 1 },
            parent,
            group: pid,
            session: pid,
            state,
            threads: 1,
        };
        let all = [
            make(2, 1, b'S'),
            make(3, 2, b'T'),
            make(4, 3, b'S'),
            make(5, 2, b'Z'),
            make(6, 1, b'S'),
        ];
        let table = Table(all.into_iter().map(|p| (p.id.pid, p)).collect());
        let found: Vec<i32> =
            table.descendants(&HashSet::from([2])).iter().map(|p| p.id.pid).collect();
        assert_eq!(found, [3, 4]);
    }
}
