//! After a restart: is a recorded writer dead, and if not, its end.
//!
//! Order rule: nothing is signalled that is not certainly the writer's; suspects only take the
//! proof away. What [`stop`] ended is judged by [`check`] again.
//!
//! # Limitations
//! Without a proof on disk `Gone` rests on looks at `/proc`, see `suspects`. On a file system of
//! the network no reboot proves anything: another machine may have mounted it.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::cgroup::{self, Seen};
use super::ladder::freeze_and_kill;
use super::record::{self, Proof};
use super::suspects::{self, Found, TurnCgroup};
use super::table::{self, Process, Table};
use crate::tx::writer::{DeathProof, ProcessId, ProvenDead, WriterRecord};

/// How often a writer that is being ended is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How many looks at most, until nobody ends meanwhile.
const LOOKS: u32 = 50;
/// How many processes a sentence names.
const NAMED: usize = 5;

/// What can be said of a recorded writer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Death {
    /// It is dead.
    Proven(ProvenDead),
    /// It lives: these are certainly its processes.
    Alive(Vec<Living>),
    /// Neither can be shown; why, in words.
    Unproven(String),
}

/// A living process of a writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Living {
    /// Its pid.
    pub pid: i32,
    /// Its command line, shortened.
    pub command: String,
}

/// The operator's recorded word (`--writer-dead`).
pub fn operators_word() -> ProvenDead {
    ProvenDead::attest(DeathProof::OperatorsWord)
}

/// Says what can be said of a recorded writer, without touching it.
///
/// `exclusive_volume` is `[container] exclusive_volume`: nobody else mounts this volume.
pub fn check(record: &WriterRecord, record_dir: &Path, exclusive_volume: bool) -> Death {
    let here = table::this_host();
    if record.host != here || here.boot_id.is_empty() {
        return elsewhere(record, record_dir, exclusive_volume);
    }
    let proof = proof_on_disk(record, record_dir);
    let first = match look(record, record_dir) {
        Ok(found) => found,
        Err(why) => return Death::Unproven(why),
    };
    let by_id = [record.supervisor, record.leader];
    if let Some(proof) = proof
        && !first.ours.iter().any(|process| by_id.contains(&process.id))
    {
        return Death::Proven(ProvenDead::attest(proof));
    }
    let again = || {
        std::thread::sleep(LOOK);
        look(record, record_dir)
    };
    let found = match until_still(first, again, |p| table::living(&p.id).is_some()) {
        Ok(found) => found,
        Err(why) => return Death::Unproven(why),
    };
    if !found.ours.is_empty() {
        return Death::Alive(found.ours.iter().map(living).collect());
    }
    if record::is_free(record_dir) == Some(false) {
        return Death::Unproven("somebody holds the supervisor's lock".to_owned());
    }
    let cgroup = cgroup_seen(record, record_dir);
    if cgroup == Some(Seen::Populated) {
        return Death::Unproven(
            "somebody who cannot be seen is in the cgroup of the turn".to_owned(),
        );
    }
    if found.suspects.is_empty() {
        let is_empty = matches!(cgroup, Some(Seen::Empty | Seen::Gone));
        let how = if is_empty { DeathProof::CgroupEmpty } else { DeathProof::Gone };
        return Death::Proven(ProvenDead::attest(how));
    }
    let named: Vec<String> = found
        .suspects
        .iter()
        .take(NAMED)
        .map(|p| format!("{} ({})", p.id.pid, table::command_line(p.id.pid)))
        .collect();
    Death::Unproven(format!(
        "the supervisor was killed, and {} process(es) started since may be of the turn: {}",
        found.suspects.len(),
        named.join("; ")
    ))
}

/// Finds what is left of a writer and ends it: SIGTERM, the grace, SIGKILL, at most `bound`.
///
/// A supervisor that still lives has lost its coordinator and ends the turn itself; it gets the
/// time for that first. The caller holds the workspace lock: the writer's coordinator is gone.
pub fn stop(
    record: &WriterRecord,
    record_dir: &Path,
    grace: Duration,
    bound: Duration,
    exclusive_volume: bool,
) -> Death {
    let death = end(record, record_dir, grace, bound, exclusive_volume);
    if matches!(death, Death::Proven(_))
        && let Some(own) = record.cgroup.as_deref().and_then(|path| cgroup::find(record_dir, path))
    {
        own.remove();
    }
    death
}

fn end(
    record: &WriterRecord,
    record_dir: &Path,
    grace: Duration,
    bound: Duration,
    exclusive_volume: bool,
) -> Death {
    let first = check(record, record_dir, exclusive_volume);
    if !matches!(first, Death::Alive(_)) {
        return first;
    }
    if table::living(&record.supervisor).is_some() {
        table::send(&record.supervisor, Signal::CONT);
        // The leader's grace, its survivors', the kill.
        let until = Instant::now() + grace + grace + bound;
        while Instant::now() < until && table::living(&record.supervisor).is_some() {
            std::thread::sleep(LOOK);
        }
    }
    let mut known: HashSet<ProcessId> = HashSet::new();
    let mut find = |table: &Table| find_all(table, record, record_dir, &mut known);
    let mut asked: HashSet<ProcessId> = HashSet::new();
    let until = Instant::now() + grace;
    while let Ok(table) = Table::read() {
        let left = find(&table);
        // A supervisor that did not leave by itself is not asked to leave first: it reaps.
        let turn: Vec<&Process> = left.iter().filter(|p| p.id != record.supervisor).collect();
        for process in turn.iter().filter(|p| asked.insert(p.id)) {
            table::send(&process.id, Signal::TERM);
            table::send(&process.id, Signal::CONT);
        }
        if turn.is_empty() || Instant::now() >= until {
            break;
        }
        std::thread::sleep(LOOK);
    }
    let until = Instant::now() + bound;
    let own = record.cgroup.as_deref().and_then(|path| cgroup::find(record_dir, path));
    while Instant::now() < until {
        if let Some(own) = &own {
            own.kill();
        }
        if freeze_and_kill(until, &mut find, |_| {}).is_some_and(|left| left == 0) {
            break;
        }
        std::thread::sleep(LOOK);
    }
    check(record, record_dir, exclusive_volume)
}

/// The writer's processes, and those that were seen to be its before their parents went.
fn find_all(
    table: &Table,
    record: &WriterRecord,
    record_dir: &Path,
    known: &mut HashSet<ProcessId>,
) -> Vec<Process> {
    known.extend(look_in(table, record, record_dir).ours.iter().map(|process| process.id));
    let roots: HashSet<i32> = known
        .iter()
        .filter(|id| table.0.get(&id.pid).is_some_and(|process| process.id == **id))
        .map(|id| id.pid)
        .collect();
    let mut all = table.descendants(&roots);
    known.extend(all.iter().map(|process| process.id));
    all.extend(roots.iter().map(|pid| table.0[pid]).filter(Process::lives));
    let own = rustix::process::getpid().as_raw_nonzero().get();
    all.retain(|process| process.id.pid != own);
    all
}

fn elsewhere(record: &WriterRecord, record_dir: &Path, exclusive_volume: bool) -> Death {
    let here = table::this_host();
    let same_machine = !here.machine_id.is_empty() && here.machine_id == record.host.machine_id;
    let other_boot = !here.boot_id.is_empty() && here.boot_id != record.host.boot_id;
    if same_machine && other_boot && is_local(record_dir) {
        return Death::Proven(ProvenDead::attest(DeathProof::OtherBoot));
    }
    if exclusive_volume && record::is_free(record_dir) == Some(true) {
        return Death::Proven(ProvenDead::attest(DeathProof::ExclusiveVolume));
    }
    // A cgroup goes only when nobody is in it; the supervisor, which is not, holds its lock.
    if same_machine
        && !other_boot
        && is_local(record_dir)
        && cgroup_seen(record, record_dir) == Some(Seen::Gone)
        && record::is_free(record_dir) == Some(true)
    {
        return Death::Proven(ProvenDead::attest(DeathProof::CgroupEmpty));
    }
    let where_to = if same_machine && other_boot {
        "before a reboot, on a file system that other machines may share"
    } else if same_machine {
        "in another pid namespace of this machine (a container?)"
    } else {
        "on a machine that cannot be told from others (another container?)"
    };
    Death::Unproven(format!("the writer was started {where_to}"))
}

/// The proof that its own supervisor left, if it is of this very writer.
fn proof_on_disk(record: &WriterRecord, record_dir: &Path) -> Option<DeathProof> {
    let proof = Proof::read(record_dir)?;
    let same = proof.supervisor == record.supervisor
        && proof.leader == record.leader
        && proof.boot_id == record.host.boot_id;
    proof.how.filter(|_| same)
}

/// Looks until two looks in a row show nobody, or one shows somebody who stays.
///
/// A process that ends while it is looked at shows neither its cgroup nor its children, so that
/// it explains nothing and is no evidence either. Where suspects end as fast as they are looked
/// at, the last of them count.
fn until_still(
    mut found: Found,
    mut again: impl FnMut() -> Result<Found, String>,
    stays: impl Fn(&Process) -> bool,
) -> Result<Found, String> {
    let mut is_clear = false;
    for _ in 0..LOOKS {
        let nobody = found.suspects.is_empty();
        if !found.ours.is_empty() || found.suspects.iter().any(&stays) || (nobody && is_clear) {
            return Ok(found);
        }
        is_clear = nobody;
        found = again()?;
    }
    Err("processes that may be of the turn come and go faster than they can be looked at"
        .to_owned())
}

fn look(record: &WriterRecord, record_dir: &Path) -> Result<Found, String> {
    let table = Table::read().map_err(|error| format!("/proc cannot be read: {error}"))?;
    if table.is_whole() {
        Ok(look_in(&table, record, record_dir))
    } else {
        Err("/proc hides other users' processes".to_owned())
    }
}

fn look_in(table: &Table, record: &WriterRecord, record_dir: &Path) -> Found {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let traces = record::traces(record_dir).filter(|traces| {
        traces.supervisor == Some(record.supervisor) && traces.leader == Some(record.leader)
    });
    let turn = record.cgroup.as_deref().map(|path| match cgroup::look(record_dir, path) {
        Seen::Unknown => TurnCgroup::Unseen,
        _ => TurnCgroup::Known(path),
    });
    suspects::look(table, record, traces.as_ref(), own, turn, &|pid| record::cgroup_of(pid))
}

/// What can be said of the cgroup that was made for the writer; `None` where there was none.
fn cgroup_seen(record: &WriterRecord, record_dir: &Path) -> Option<Seen> {
    let path = record.cgroup.as_deref()?;
    Some(cgroup::find(record_dir, path).map_or(Seen::Unknown, |own| own.look_twice()))
}

fn living(process: &Process) -> Living {
    Living { pid: process.id.pid, command: table::command_line(process.id.pid) }
}

/// Whether no other machine can have mounted this file system at the same time.
fn is_local(dir: &Path) -> bool {
    // Magic numbers of file systems of the network, and of those that may be one: statfs(2).
    const SHARED: [u32; 14] = [
        0x6969,      // nfs
        0x517b,      // smb
        0xff53_4d42, // cifs
        0xfe53_4d42, // smb2
        0x0102_1997, // 9p
        0x6573_5546, // fuse, virtiofs
        0x00c3_6400, // ceph
        0x0116_1970, // gfs2
        0x7461_636f, // ocfs2
        0x0bd0_0bd0, // lustre
        0x5346_414f, // afs
        0x6b41_4653, // afs (kernel)
        0x7375_7245, // coda
        0x4750_4653, // gpfs
    ];
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    rustix::fs::statfs(dir).is_ok_and(|fs| !SHARED.contains(&(fs.f_type as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_of_nobody() -> WriterRecord {
        let gone = ProcessId { pid: i32::MAX, start_ticks: u64::MAX };
        WriterRecord {
            host: table::this_host(),
            supervisor: gone,
            leader: gone,
            cgroup: None,
            started_ticks: u64::MAX,
        }
    }

    #[test]
    fn gone_is_proven_and_another_place_is_not() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let record = record_of_nobody();
        let how = |death: Death| match death {
            Death::Proven(proof) => Some(proof.how()),
            _ => None,
        };
        assert_eq!(how(check(&record, dir.path(), false)), Some(DeathProof::Gone));
        let mut container = record.clone();
        container.host.pid_namespace += 1;
        assert_eq!(how(check(&container, dir.path(), false)), None);
        // Exclusive, and no lock file that could be free.
        assert_eq!(how(check(&container, dir.path(), true)), None);
        let lock = record::take(dir.path())?.expect("free");
        assert_eq!(how(check(&container, dir.path(), true)), None);
        drop(lock);
        assert_eq!(how(check(&container, dir.path(), true)), Some(DeathProof::ExclusiveVolume));
        assert_eq!(how(check(&container, dir.path(), false)), None);
        let mut boot = record;
        boot.host.boot_id = "another".to_owned();
        let known = (!boot.host.machine_id.is_empty() && is_local(dir.path()))
            .then_some(DeathProof::OtherBoot);
        assert_eq!(how(check(&boot, dir.path(), false)), known);
        boot.host.machine_id = "another".to_owned();
        assert_eq!(how(check(&boot, dir.path(), false)), None);
        Ok(())
    }

    #[test]
    fn who_ends_while_looked_at_is_no_evidence() {
        let process = |pid: i32| Process {
            id: ProcessId { pid, start_ticks: 7 },
            parent: 1,
            group: pid,
            session: pid,
            state: b'S',
            threads: 1,
        };
        // What each look shows: our own, suspects. Whoever has an even number stays.
        let looks = |shown: &[(&[i32], &[i32])]| {
            let all = |pids: &[i32]| pids.iter().map(|pid| process(*pid)).collect();
            let mut taken = 0;
            let mut next = || {
                let (ours, suspects) = shown[taken.min(shown.len() - 1)];
                taken += 1;
                Found { ours: all(ours), suspects: all(suspects) }
            };
            let first = next();
            let found = until_still(first, || Ok(next()), |process| process.id.pid % 2 == 0);
            (taken, found.ok().map(|found| (found.ours.len(), found.suspects.len())))
        };
        let nobody = Some((0, 0));
        assert_eq!(looks(&[(&[], &[])]), (2, nobody), "nobody is proven by one look");
        assert_eq!(looks(&[(&[], &[3]), (&[], &[])]), (3, nobody));
        assert_eq!(looks(&[(&[], &[]), (&[], &[3]), (&[], &[])]), (4, nobody));
        assert_eq!(looks(&[(&[], &[3]), (&[], &[4])]), (2, Some((0, 1))), "its child stays");
        assert_eq!(looks(&[(&[], &[]), (&[5], &[])]), (2, Some((1, 0))));
        let (taken, found) = looks(&[(&[], &[3])]);
        assert!(taken > 10 && found.is_none(), "a chain that never ends proves nothing");
        let mut chain = vec![(&[][..], &[3][..]); LOOKS as usize];
        chain.push((&[], &[]));
        assert_eq!(looks(&chain).1, None, "nor does one look behind it");
    }

    #[test]
    fn a_held_lock_takes_the_proof_away() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let _lock = record::take(dir.path())?.expect("free");
        let death = check(&record_of_nobody(), dir.path(), false);
        assert!(matches!(death, Death::Unproven(why) if why.contains("lock")));
        Ok(())
    }
}
