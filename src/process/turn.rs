//! One run of a command, seen from the coordinator: start both processes, let them be recorded,
//! let the command go, pass on what is asked of it, and come back when it is dead or unproven.
//!
//! Order rule: [`start`], record durably, [`Waiting::run`]. The coordinator becomes a child
//! subreaper first, so that a turn whose supervisor is killed falls to it and nobody else.
//!
//! # Limitations
//! While the coordinator itself is stopped, deadlines stand still.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process, set_child_subreaper};

use super::ladder::{Ladder, Step};
use super::output::Copier;
use super::prepared::{self, Prepared};
use super::signals::{Signals, StopsCaught};
use super::terminal::{self, Terminal};
use super::wire::{self, Ended, Ending, News, Order, Plan};
use super::{
    Bounds, Command, Leaving, Output, Request, Requests, Stdin, TurnOver, Unproven, cgroup, table,
};
use crate::base::{durable, fault};
use crate::tx::writer::{DeathProof, EndedBy, ProvenDead, TurnResult, WriterRecord};

/// How often the poll callback is asked and the supervisor looked after.
const TICK: Duration = Duration::from_millis(500);
/// A supervisor that somebody keeps stopped for so many ticks is given up.
const STOPPED_TICKS: u32 = 6;
/// A SIGINT within this time of the first belongs to it: `timeout` and shells send it twice.
const SAME_CTRL_C: Duration = Duration::from_millis(300);
/// How many handles may be kept open by the supervisor.
const MOST_KEPT: usize = 12;
/// What a shell returns for a command that Ctrl-C ended: 128 + SIGINT.
const EXIT_CTRL_C: i32 = 130;

/// A command could not be brought to wait.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The record directory cannot be made or used.
    #[error("cannot use the record directory {}", dir.display())]
    RecordDir {
        /// Which.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Out of handles, memory or processes, or `/proc` is not there.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The supervisor said no, or left.
    #[error("the supervisor did not start: {why}")]
    Supervisor {
        /// In its words.
        why: String,
    },
}

/// Supervisor and leader wait to be recorded. Dropped, they leave.
#[derive(Debug)]
#[must_use]
pub struct Waiting {
    supervisor: Child,
    control: OwnedFd,
    record: WriterRecord,
    record_dir: PathBuf,
    in_session: bool,
    copier: Option<CopierBox>,
}

struct CopierBox(Copier);

impl std::fmt::Debug for CopierBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Copier")
    }
}

/// A supervisor that has been told of its run and brings its leader up: to be waited for, or to be
/// given up.
#[derive(Debug)]
#[must_use]
pub struct Starting {
    supervisor: Child,
    control: OwnedFd,
    told: io::Result<()>,
    record_dir: PathBuf,
    in_session: bool,
    copier: Option<CopierBox>,
}

/// Starts supervisor and leader; both wait. As [`begin`] and [`Starting::wait`].
pub fn start(
    command: &Command,
    record_dir: &Path,
    keep: &[BorrowedFd<'_>],
) -> Result<Waiting, StartError> {
    begin(None, command, record_dir, keep)?.wait()
}

/// Tells a supervisor of its run, and does not wait until it has brought up its leader.
///
/// `record_dir` is this run's own directory; the supervisor keeps lock and proof in it. The
/// handles in `keep` (the workspace lock) stay open in the supervisor, not in the command. A
/// supervisor that was `prepared` is taken, where it still lives.
pub fn begin(
    prepared: Option<Prepared>,
    command: &Command,
    record_dir: &Path,
    keep: &[BorrowedFd<'_>],
) -> Result<Starting, StartError> {
    let system = |what: &'static str| move |source: io::Error| StartError::System { what, source };
    let no_dir = |source| StartError::RecordDir { dir: record_dir.to_owned(), source };
    let record_dir = std::path::absolute(record_dir).map_err(no_dir)?;
    durable::create_dir_all(&record_dir, 0o700).map_err(no_dir)?;
    if keep.len() > MOST_KEPT {
        let source = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(StartError::System { what: "keep so many handles", source });
    }
    set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| system("become a child subreaper")(error.into()))?;
    let in_session = command.terminal && command.stdin == Stdin::Inherit && terminal::is_on_stdin();
    let bytes = |text: &std::ffi::OsStr| text.as_bytes().to_vec();
    let plan = Plan {
        program: bytes(command.program.as_os_str()),
        argv: command.argv.iter().map(|word| bytes(word)).collect(),
        cwd: bytes(command.cwd.as_os_str()),
        env: command.env.iter().map(|(key, value)| (bytes(key), bytes(value))).collect(),
    };
    let plan = plan.write().map_err(system("write the command into a memory file"))?;
    let null = std::fs::File::open("/dev/null").map_err(system("open /dev/null"))?;
    let (copier, sink) = match command.output {
        Output::KeepTail { bytes } => {
            let (copier, sink) = Copier::start(bytes).map_err(system("keep the output"))?;
            (Some(CopierBox(copier)), Some(sink))
        }
        Output::Inherit | Output::StdoutToStderr => (None, None),
    };
    let given = match &command.stdin {
        Stdin::Bytes(bytes) => {
            Some(memory_file(bytes).map_err(system("write the input into a memory file"))?)
        }
        Stdin::Inherit | Stdin::Null => None,
    };
    let stdin = match (&command.stdin, &given) {
        (_, Some(given)) => given.as_fd(),
        (Stdin::Inherit, _) => rustix::stdio::stdin(),
        (_, None) => null.as_fd(),
    };
    let (stdout, stderr) = match (&sink, command.output) {
        (Some(sink), _) => (sink.as_fd(), sink.as_fd()),
        (None, Output::StdoutToStderr) => (rustix::stdio::stderr(), rustix::stdio::stderr()),
        (None, _) => (rustix::stdio::stdout(), rustix::stdio::stderr()),
    };
    let (supervisor, control) = match prepared.and_then(Prepared::take) {
        Some(waits) => waits,
        None => prepared::spawn().map_err(system("start the supervisor"))?,
    };
    let setup = Order::Setup {
        record_dir: bytes(record_dir.as_os_str()),
        in_session,
        cgroup: command.cgroup,
    };
    let mut handles = vec![plan.as_fd(), stdin, stdout, stderr];
    handles.extend_from_slice(keep);
    let told = wire::send(&control, &setup, &handles);
    Ok(Starting { supervisor, control, told, record_dir, in_session, copier })
}

impl Starting {
    /// Waits until the leader is up, and waits itself.
    pub fn wait(self) -> Result<Waiting, StartError> {
        let Self { supervisor, control, told, record_dir, in_session, copier } = self;
        let (id, leader, cgroup) = match told.and_then(|()| wire::receive(&control)) {
            Ok(Some((News::Ready { supervisor, leader, cgroup }, _))) => {
                (supervisor, leader, cgroup)
            }
            answer => {
                let why = match answer {
                    Ok(Some((News::Failed { why }, _))) => why,
                    Ok(Some((other, _))) => format!("it said {other:?}"),
                    Ok(None) => "it left".to_owned(),
                    Err(error) => error.to_string(),
                };
                give_up(supervisor);
                return Err(StartError::Supervisor { why });
            }
        };
        let record = WriterRecord {
            host: table::this_host(),
            supervisor: id,
            leader,
            cgroup,
            // The supervisor was there before, and has started nothing else.
            started_ticks: leader.start_ticks,
        };
        Ok(Waiting { supervisor, control, record, record_dir, in_session, copier })
    }

    /// Nothing of it may stay.
    pub fn give_up(self) {
        give_up(self.supervisor);
    }
}

/// A file in memory with these bytes, to be read from its beginning.
fn memory_file(bytes: &[u8]) -> io::Result<std::fs::File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::memfd_create("worktx-input", flags)?);
    io::Write::write_all(&mut file, bytes)?;
    io::Seek::rewind(&mut file)?;
    Ok(file)
}

/// Nothing of it may stay; it never had a leader that was let go.
fn give_up(mut supervisor: Child) {
    let _ = supervisor.kill();
    let _ = supervisor.wait();
    // Its leader, if it had one, leaves by itself and falls to this process.
    while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::empty()) {}
}

impl Waiting {
    /// What is to be recorded before [`Waiting::run`].
    pub fn record(&self) -> &WriterRecord {
        &self.record
    }

    /// Lets both leave without having run anything.
    pub fn abandon(mut self) -> Result<ProvenDead, Unproven> {
        let _ = rustix::net::shutdown(&self.control, rustix::net::Shutdown::Write);
        if let Ok(Some((News::Over(Ended { unproven: None, .. }), _))) =
            wire::receive(&self.control)
        {
            let _ = self.supervisor.wait();
            return Ok(ProvenDead::attest(DeathProof::NeverStarted));
        }
        // It was killed while it waited: what it left falls to this process.
        let bounds = Bounds::default();
        let (_, death) = self.take_over(&bounds, None);
        death
    }

    /// Lets the command go and comes back when all of it is dead, or cannot be proven dead.
    ///
    /// The first request ends it: SIGINT to its group for a cancel, SIGTERM otherwise, SIGKILL
    /// after the grace; a second Ctrl-C ends the grace.
    pub fn run(mut self, bounds: &Bounds, requests: &mut Requests<'_>) -> TurnOver {
        let started = Instant::now();
        let mut job = Job {
            terminal: Pid::from_raw(self.record.leader.pid)
                .filter(|_| self.in_session)
                .map(Terminal::new),
            stops: StopsCaught::start(),
            owned: false,
            stop_asked: false,
            stopped: false,
        };
        job.give();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let go = Order::Go { grace_ms: millis(bounds.grace), bound_ms: millis(bounds.proof_bound) };
        // A supervisor that is gone shows at the first look below.
        let _ = wire::send(&self.control, &go, &[]);
        let (ended, asked) = self.watch(started, bounds, requests, &mut job);
        let supervisor_lost = ended.is_none();
        let mut leaving = None;
        let (ended, death) = if let Some(ended) = ended {
            let death = match &ended.unproven {
                None => Ok(ProvenDead::attest(DeathProof::NoChildren)),
                Some(why) => Err(Unproven(why.clone())),
            };
            leaving = Some(Leaving(self.supervisor));
            (ended, death)
        } else {
            self.take_over(bounds, Some((requests.signals, started)))
        };
        job.take_back();
        let ctrl_c =
            ended.signal == Some(Signal::INT.as_raw()) || ended.exit_code == Some(EXIT_CTRL_C);
        let ended_by = match asked {
            Some(by) if ended.asked => by,
            _ if supervisor_lost => EndedBy::Interrupt,
            // The terminal sent SIGINT to the turn alone, and the turn went by it.
            _ if job.owned && ctrl_c => EndedBy::Cancel,
            _ => EndedBy::Itself,
        };
        let (output_tail, truncated) =
            self.copier.take().map_or_else(Default::default, |copier| copier.0.finish());
        TurnOver {
            result: TurnResult {
                exit_code: ended.exit_code,
                signal: ended.signal,
                duration_ms: millis(started.elapsed()),
                killed: ended.killed,
            },
            ended_by,
            death,
            output_tail,
            truncated,
            exec_error: ended.exec_error,
            supervisor_lost,
            leaving,
        }
    }

    /// Until the supervisor says that it is over (`None`: it is lost), and what was asked of it.
    fn watch(
        &mut self,
        started: Instant,
        bounds: &Bounds,
        requests: &mut Requests<'_>,
        job: &mut Job,
    ) -> (Option<Ended>, Option<EndedBy>) {
        let signals = requests.signals;
        let mut asked: Option<(EndedBy, Instant)> = None;
        let mut polled = None;
        let mut next_tick = started;
        let mut interrupts = signals.interrupts();
        let mut stopped_ticks = 0;
        loop {
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                if asked.is_none() {
                    polled = (requests.poll)();
                }
                if !self.look_after_supervisor(&mut stopped_ticks) {
                    return (None, asked.map(|(by, _)| by));
                }
            }
            let mut orders = Vec::new();
            if let Some((_, since)) = asked {
                let count = signals.interrupts();
                if now - since >= SAME_CTRL_C && count > interrupts {
                    orders.push(Order::Hurry);
                }
                interrupts = count;
            } else if let Some(by) = why_end(signals, polled, started, bounds) {
                asked = Some((by, now));
                let cancel = by == EndedBy::Cancel;
                orders.push(Order::End(if cancel { Ending::Cancel } else { Ending::Terminate }));
            }
            if signals.take_stops() {
                job.stop_asked = true;
                orders.push(Order::Stop);
            }
            // One that comes before the stop that was asked for calls that off.
            if !job.stop_asked && signals.take_continues() && job.continued() {
                orders.push(Order::Continue);
            }
            for order in &orders {
                let _ = wire::send(&self.control, order, &[]);
            }
            let (news, woken) = self.wait_for(signals, next_wake(now, next_tick, started, bounds));
            if woken {
                signals.rest();
            }
            if news {
                match wire::receive(&self.control) {
                    Ok(Some((News::Over(ended), _))) => {
                        return (Some(ended), asked.map(|(by, _)| by));
                    }
                    Ok(Some((News::Stopped, _))) if asked.is_some() || job.stopped(signals) => {
                        let _ = wire::send(&self.control, &Order::Continue, &[]);
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return (None, asked.map(|(by, _)| by)),
                }
            }
        }
    }

    fn wait_for(&self, signals: Signals, wait: Duration) -> (bool, bool) {
        let wake = signals.wake_fd();
        let mut fds =
            [PollFd::new(&self.control, PollFlags::IN), PollFd::new(&wake, PollFlags::IN)];
        match poll(&mut fds, Timespec::try_from(wait).ok().as_ref()) {
            Ok(_) => (!fds[0].revents().is_empty(), !fds[1].revents().is_empty()),
            // Interrupted: the signal is in the counters already.
            Err(_) => (false, false),
        }
    }

    /// Wakes a supervisor that somebody stopped; `false` if it is traced or kept stopped, then it
    /// is given up.
    fn look_after_supervisor(&self, stopped_ticks: &mut u32) -> bool {
        // Not reaped before this run is over: the pid is its own.
        let id = self.record.supervisor.pid;
        match table::read(id).map(|process| process.state) {
            Some(b't') => fault::is_traced(),
            Some(b'T') if *stopped_ticks >= STOPPED_TICKS => false,
            Some(b'T') => {
                *stopped_ticks += 1;
                if let Some(pid) = Pid::from_raw(id) {
                    let _ = kill_process(pid, Signal::CONT);
                }
                true
            }
            _ => {
                *stopped_ticks = 0;
                true
            }
        }
    }

    /// The supervisor is lost: what descends from it has fallen to this process, which ends it.
    fn take_over(
        &mut self,
        bounds: &Bounds,
        run: Option<(Signals, Instant)>,
    ) -> (Ended, Result<ProvenDead, Unproven>) {
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
        let path = self.record.cgroup.as_deref();
        let own = || path.and_then(|path| cgroup::find(&self.record_dir, path));
        let mut ladder =
            Ladder::take_over(self.record.leader, bounds.grace, bounds.proof_bound, own());
        ladder.end(Ending::Terminate);
        let interrupts = run.map(|(signals, _)| signals.interrupts());
        let unproven = loop {
            match ladder.step() {
                Step::Dead => break None,
                Step::Unproven(why) => break Some(why),
                Step::LeaderStopped => ladder.signal_leader(Signal::CONT),
                Step::Wait(wait) => {
                    if run.map(|(signals, _)| signals.interrupts()) > interrupts {
                        ladder.hurry();
                    }
                    // Nobody watches SIGCHLD here: the kernel is asked again soon.
                    let short = Duration::from_millis(20);
                    std::thread::sleep(wait.map_or(short, |wait| wait.min(short)));
                }
            }
        };
        if unproven.is_none()
            && let Some(own) = own()
        {
            own.remove();
        }
        let (exit_code, signal) = ladder.status();
        let death = match &unproven {
            None => Ok(ProvenDead::attest(DeathProof::NoChildren)),
            Some(why) => Err(Unproven(why.clone())),
        };
        let ended = Ended {
            exit_code,
            signal,
            duration_ms: 0,
            asked: false,
            killed: ladder.into_killed(),
            exec_error: None,
            unproven,
        };
        (ended, death)
    }
}

fn why_end(
    signals: Signals,
    polled: Option<Request>,
    started: Instant,
    bounds: &Bounds,
) -> Option<EndedBy> {
    match signals.pending().filter(|_| bounds.by_signals).or(polled) {
        Some(Request::Cancel) => return Some(EndedBy::Cancel),
        Some(Request::Interrupt) => return Some(EndedBy::Interrupt),
        None => {}
    }
    if bounds.timeout.is_some_and(|timeout| started.elapsed() >= timeout) {
        return Some(EndedBy::Timeout);
    }
    if bounds.settle_by.is_some_and(|by| SystemTime::now() >= by) {
        return Some(EndedBy::SettleBy);
    }
    None
}

/// How long to wait at most: the next tick, or the timeout (`settle_by` is a time of day, which
/// may jump, and is looked at every tick).
fn next_wake(now: Instant, tick: Instant, started: Instant, bounds: &Bounds) -> Duration {
    let tick = tick.saturating_duration_since(now);
    let left = bounds.timeout.map(|timeout| timeout.saturating_sub(started.elapsed()));
    let by = bounds.settle_by.and_then(|by| by.duration_since(SystemTime::now()).ok());
    [left, by]
        .into_iter()
        .flatten()
        .filter(|left| !left.is_zero())
        // A moment more: woken early, it would turn in a circle.
        .fold(tick, |wait, left| wait.min(left + Duration::from_millis(1)))
}

/// Job control between the shell above and the turn below.
struct Job {
    terminal: Option<Terminal>,
    stops: StopsCaught,
    /// The turn has owned the terminal.
    owned: bool,
    /// This process was asked to stop.
    stop_asked: bool,
    /// The turn is stopped.
    stopped: bool,
}

impl Job {
    fn give(&mut self) -> bool {
        let given = self.terminal.as_mut().is_some_and(Terminal::give);
        self.owned |= given;
        given
    }

    fn take_back(&mut self) {
        if let Some(terminal) = &mut self.terminal {
            terminal.take_back();
        }
    }

    /// The turn has stopped: so does this job. Whether the turn is to be continued.
    fn stopped(&mut self, signals: Signals) -> bool {
        let was_asked = std::mem::take(&mut self.stop_asked);
        if self.terminal.is_none() && !was_asked {
            // Somebody stopped a turn that has no shell above it; that is theirs to continue.
            return false;
        }
        let called_off = signals.take_continues() && was_asked;
        if called_off {
            // Whoever asked for it has said so before it came to that.
            return true;
        }
        self.stopped = true;
        self.take_back();
        let _ = signals.take_stops();
        if was_asked {
            self.stops.stop_self();
        } else {
            self.stops.stop_own_group();
        }
        let was_continued = signals.take_continues();
        let in_front = self.terminal.as_mut().is_none_or(Terminal::continued);
        if was_continued || in_front {
            self.stopped = false;
            self.give();
            return true;
        }
        // In the background of a session without job control: stopped until somebody says more.
        false
    }

    /// This process was continued; whether the turn is to be, too.
    fn continued(&mut self) -> bool {
        let in_front = self.terminal.as_mut().is_some_and(Terminal::continued);
        let given = in_front && self.give();
        std::mem::take(&mut self.stopped) || given
    }
}
