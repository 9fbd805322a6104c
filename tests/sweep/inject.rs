//! Runs a command under the filter, counts the calls by which worktx changes files, and lets a
//! fault happen at one of them.
//!
//! Counted are the calls of the coordinator, of its supervisors and of the leaders that wait
//! beneath them: everything that runs worktx's own binary. What the turn and the post-check do is
//! counted apart and never disturbed, so that N has the same meaning however a turn is written; a
//! fault in the midst of a turn is the same fault as one at the first call after it was let go.
//!
//! A call counts where it changes a regular file or a directory: writes into pipes, sockets and
//! terminals do not. One that the kernel begins again after a signal counts once.
//!
//! # Limitations
//! What is counted is what is asked for: an `open` that could make a file counts where the file is
//! there already.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::filter::{self, Call, Names, Takes};
use crate::ptrace::{self, Registers};

/// `argv[1]` of this binary where it puts itself behind the filter and becomes the command.
pub const BECOME: &str = "__behind-the-filter";

/// Longer than any run takes that goes on by itself.
const BOUND: Duration = Duration::from_mins(2);

/// What happens at the N-th call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every process is killed before it.
    KillAll,
    /// The coordinator is killed before it, and nothing else.
    KillCoordinator,
    /// It fails, once.
    Once(i32),
    /// It fails, and so does every later one.
    ForGood(i32),
}

/// Whose call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Coordinator,
    Supervisor,
    Turn,
}

/// What a run under the filter came to.
#[derive(Debug)]
pub struct Traced {
    /// The exit code, or the signal, negative.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// The counted calls in their order, in words.
    pub calls: Vec<String>,
    /// How many of them came before the first program that is not worktx's own.
    pub before_turn: usize,
    /// Whether the fault happened.
    pub hit: bool,
    /// It had to be ended after [`BOUND`].
    pub hung: bool,
}

/// Becomes the command of the arguments, behind the filter, once it is traced.
pub fn become_command(mut words: impl Iterator<Item = std::ffi::OsString>) -> io::Error {
    let Some(program) = words.next() else { return io::ErrorKind::InvalidInput.into() };
    let mut filter = filter::program();
    let stopped = kill_process(rustix::process::getpid(), Signal::STOP);
    match stopped.map_err(io::Error::from).and_then(|()| ptrace::enter_filter(&mut filter)) {
        Err(error) => error,
        Ok(()) => Command::new(program).args(words).exec(),
    }
}

/// Runs `command`, whose program is `own`, and lets `fault` happen at its `at`-th call (from 1; 0
/// is never). Paths are told as seen from `home`.
pub fn run(
    command: &Command,
    own: &Path,
    home: &Path,
    at: usize,
    fault: Fault,
) -> io::Result<Traced> {
    let mut behind = Command::new(std::env::current_exe()?);
    behind.arg(BECOME).arg(command.get_program()).args(command.get_args()).env_clear();
    behind.envs(command.get_envs().filter_map(|(name, value)| value.map(|value| (name, value))));
    behind.current_dir(command.get_current_dir().unwrap_or(home));
    behind.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = behind.spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let root = i32::try_from(child.id()).map_err(io::Error::other)?;
    let alive = Arc::new(Mutex::new(BTreeSet::from([root])));
    let mut tracer = Tracer {
        own: own.canonicalize()?,
        home: home.to_owned(),
        root,
        at,
        fault,
        tasks: BTreeMap::from([(root, Task { group: root, who: Who::Coordinator, again: None })]),
        alive: Arc::clone(&alive),
        started: false,
        dying: false,
        hit: false,
        status: None,
        calls: Vec::new(),
        before_turn: None,
    };
    let hung = Arc::new(AtomicBool::new(false));
    let (over, until) = channel::<()>();
    let watch = {
        let hung = Arc::clone(&hung);
        std::thread::spawn(move || {
            while until.recv_timeout(BOUND) == Err(RecvTimeoutError::Timeout) {
                hung.store(true, Ordering::Relaxed);
                alive.lock().expect("nothing panics with it").iter().for_each(|pid| kill(*pid));
            }
        })
    };
    let traced = tracer.follow();
    drop(over);
    let watched = watch.join();
    traced?;
    watched.map_err(|_| io::Error::other("the watch panicked"))?;
    let text = |pipe: &mut dyn io::Read| {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Traced {
        code: tracer
            .status
            .ok_or_else(|| io::Error::other("the coordinator was not waited for"))?,
        stdout: stdout.map_or(Ok(String::new()), |mut pipe| text(&mut pipe))?,
        stderr: stderr.map_or(Ok(String::new()), |mut pipe| text(&mut pipe))?,
        before_turn: tracer.before_turn.unwrap_or(tracer.calls.len()),
        calls: tracer.calls,
        hit: tracer.hit,
        hung: hung.load(Ordering::Relaxed),
    })
}

fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// One traced thread.
#[derive(Clone, Copy, Debug)]
struct Task {
    /// Its process.
    group: i32,
    who: Who,
    /// The call that a signal interrupted: number and arguments.
    again: Option<[u64; 7]>,
}

struct Tracer {
    own: PathBuf,
    home: PathBuf,
    root: i32,
    at: usize,
    fault: Fault,
    tasks: BTreeMap<i32, Task>,
    /// The processes, for who ends a run that hangs.
    alive: Arc<Mutex<BTreeSet<i32>>>,
    /// The command itself runs.
    started: bool,
    /// All is killed; what is still met is killed too.
    dying: bool,
    hit: bool,
    status: Option<i32>,
    calls: Vec<String>,
    before_turn: Option<usize>,
}

impl Tracer {
    fn follow(&mut self) -> io::Result<()> {
        // It stops itself before it enters the filter, so that nothing of it is missed.
        ptrace::seize(self.root)?;
        let pid = Pid::from_raw(self.root).ok_or(io::ErrorKind::InvalidInput)?;
        while let Some(seen) = ptrace::wait()? {
            if libc::WIFEXITED(seen.status) || libc::WIFSIGNALED(seen.status) {
                if seen.pid == self.root {
                    self.status = Some(if libc::WIFEXITED(seen.status) {
                        libc::WEXITSTATUS(seen.status)
                    } else {
                        -libc::WTERMSIG(seen.status)
                    });
                }
                self.tasks.remove(&seen.pid);
                self.alive.lock().expect("nothing panics with it").remove(&seen.pid);
                continue;
            }
            if !libc::WIFSTOPPED(seen.status) {
                continue;
            }
            let signal = libc::WSTOPSIG(seen.status);
            let event = seen.status >> 16;
            self.know(seen.pid);
            if self.dying {
                self.kill_all();
                continue;
            }
            // A tracee may be killed at any time: that it is gone is told by the next wait.
            let _ = match event {
                libc::PTRACE_EVENT_SECCOMP => self.at_call(seen.pid),
                libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                    self.forked(seen.pid)
                }
                libc::PTRACE_EVENT_EXEC => self.became(seen.pid),
                STOP if self.started && signal != libc::SIGTRAP => ptrace::leave_stopped(seen.pid),
                STOP => {
                    if !self.started && seen.pid == self.root && signal != libc::SIGTRAP {
                        let _ = kill_process(pid, Signal::CONT);
                    }
                    ptrace::go_on(seen.pid, 0)
                }
                _ => self.at_signal(seen.pid, signal),
            };
        }
        Ok(())
    }

    fn who(&self, task: i32) -> Who {
        self.tasks.get(&task).map_or(Who::Turn, |task| task.who)
    }

    /// Knows a task that is seen for the first time, by what `/proc` says of it.
    fn know(&mut self, task: i32) {
        if self.tasks.contains_key(&task) {
            return;
        }
        let number = |name: &str| {
            let status = fs::read_to_string(format!("/proc/{task}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<i32>().ok()
        };
        let group = number("Tgid:").unwrap_or(task);
        let of = if group == task { number("PPid:").unwrap_or(0) } else { group };
        self.add(task, group, self.who(of));
    }

    fn add(&mut self, task: i32, group: i32, who: Who) {
        self.tasks.insert(task, Task { group, who, again: None });
        self.alive.lock().expect("nothing panics with it").insert(group);
    }

    fn forked(&mut self, task: i32) -> io::Result<()> {
        let new = ptrace::message(task)?;
        // It may have been seen before its parent told of it; and it may be over already.
        if self.tasks.contains_key(&new) || !Path::new(&format!("/proc/{new}")).exists() {
            return ptrace::go_on(task, 0);
        }
        let thread = fs::exists(format!("/proc/{task}/task/{new}")).unwrap_or(false);
        let group = if thread { self.tasks.get(&task).map_or(new, |t| t.group) } else { new };
        self.add(new, group, self.who(task));
        ptrace::go_on(task, 0)
    }

    /// A process became another program: worktx's own are told by their first word.
    fn became(&mut self, task: i32) -> io::Result<()> {
        let program = fs::read_link(format!("/proc/{task}/exe"))?;
        let words = fs::read(format!("/proc/{task}/cmdline"))?;
        let first = words.split(|byte| *byte == 0).nth(1).unwrap_or_default();
        if !self.started && program != self.own {
            // Not the command yet: what puts itself behind the filter.
            return ptrace::go_on(task, 0);
        }
        let ours = program == self.own && self.who(task) != Who::Turn;
        if !ours {
            self.before_turn.get_or_insert(self.calls.len());
        }
        let who = match first {
            _ if !ours => Who::Turn,
            b"__supervise" => Who::Supervisor,
            _ => Who::Coordinator,
        };
        // The threads that the process had are gone, without a word.
        self.tasks.retain(|other, t| t.group != task || *other == task);
        self.started |= ours && task == self.root;
        self.add(task, task, who);
        ptrace::go_on(task, 0)
    }

    fn at_signal(&mut self, task: i32, signal: i32) -> io::Result<()> {
        let registers = ptrace::registers(task)?;
        // The kernel's own codes for a call that is begun again: ERESTARTSYS and its kin.
        let begun_again = (-516..=-512).contains(&registers.rax.cast_signed());
        if begun_again && let Some(task) = self.tasks.get_mut(&task) {
            task.again = Some(arguments(&registers));
        }
        ptrace::go_on(task, signal)
    }

    fn at_call(&mut self, task: i32) -> io::Result<()> {
        let registers = ptrace::registers(task)?;
        let who = self.who(task);
        let Some(call) = filter::by_number(registers.orig_rax).filter(|_| self.started) else {
            return ptrace::go_on(task, 0);
        };
        let again = self.tasks.get_mut(&task).and_then(|task| task.again.take());
        let repeated = again == Some(arguments(&registers));
        if who == Who::Turn || repeated {
            return ptrace::go_on(task, 0);
        }
        let looker = Looker { task, home: &self.home };
        let Some(words) = looker.words(call, &registers) else { return ptrace::go_on(task, 0) };
        // A cgroup lies on no disk: none is full there, none fails.
        let on_disk = !words.contains(" /sys/");
        let by = if who == Who::Supervisor { "supervisor: " } else { "" };
        self.calls.push(format!("{by}{words}"));
        let number = self.calls.len();
        if self.at == 0 || number < self.at {
            return ptrace::go_on(task, 0);
        }
        let first = number == self.at;
        match self.fault {
            Fault::KillAll if first => {
                self.hit = true;
                self.dying = true;
                self.kill_all();
                return Ok(());
            }
            Fault::KillCoordinator if first => {
                self.hit = true;
                // Where it is over already its number may be another's.
                if self.status.is_none() {
                    kill(self.root);
                }
            }
            Fault::Once(errno) if first => {
                self.hit = true;
                if on_disk {
                    ptrace::refuse(task, registers, errno)?;
                }
            }
            Fault::ForGood(errno) => {
                self.hit = true;
                // A full disk still lets go of what is on it.
                if on_disk && (errno != libc::ENOSPC || call.takes == Takes::Space) {
                    ptrace::refuse(task, registers, errno)?;
                }
            }
            _ => {}
        }
        ptrace::go_on(task, 0)
    }

    fn kill_all(&self) {
        let groups: BTreeSet<i32> = self.tasks.values().map(|task| task.group).collect();
        groups.into_iter().for_each(kill);
    }
}

/// The stop of a tracee that was seized, in the upper half of its status.
const STOP: i32 = 128;

/// Number and arguments of a call.
fn arguments(registers: &Registers) -> [u64; 7] {
    let r = registers;
    [r.orig_rax, r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9]
}

/// Puts a call into words, and says whether it changes a file at all.
struct Looker<'a> {
    task: i32,
    home: &'a Path,
}

impl Looker<'_> {
    fn words(&self, call: &Call, registers: &Registers) -> Option<String> {
        let arguments = arguments(registers);
        let arg = |at: usize| arguments[at + 1];
        let names = match call.names {
            Names::Everything => String::new(),
            Names::Fd(fd) => self.handle(arg(fd))?,
            Names::Path(path) => self.path(None, arg(path)),
            // Without a path the handle itself is meant.
            Names::At(dir, path) if arg(path) == 0 => self.handle(arg(dir))?,
            Names::At(dir, path) => self.path(Some(arg(dir)), arg(path)),
            Names::Paths(one, two) => {
                format!("{} → {}", self.path(None, arg(one)), self.path(None, arg(two)))
            }
            Names::Ats(dir, one, other, two) => format!(
                "{} → {}",
                self.path(Some(arg(dir)), arg(one)),
                self.path(Some(arg(other)), arg(two))
            ),
            Names::Open(path) => self.opened(None, arg(path))?,
            Names::OpenAt(dir, path) => self.opened(Some(arg(dir)), arg(path))?,
            Names::OpenHow(dir, path, how) => {
                let mut flags = [0; 8];
                self.read(arg(how), &mut flags);
                if u64::from_ne_bytes(flags) & u64::from(filter::MAKES) == 0 {
                    return None;
                }
                self.opened(Some(arg(dir)), arg(path))?
            }
        };
        Some(format!("{} {names}", call.name))
    }

    /// What a handle is of, unless that is no file: `None`.
    fn handle(&self, fd: u64) -> Option<String> {
        let link = self.link(fd);
        let target = fs::read_link(&link).ok()?;
        let meta = fs::metadata(&link).ok()?;
        let file = meta.is_file() || meta.is_dir();
        let stored = !target.starts_with("/proc")
            && !target.as_os_str().as_encoded_bytes().starts_with(b"/memfd:");
        (file && stored).then(|| self.seen(&target))
    }

    /// What would be opened, unless it is there and no file.
    fn opened(&self, dir: Option<u64>, path: u64) -> Option<String> {
        let full = self.full(dir, path);
        let special = fs::metadata(&full).is_ok_and(|meta| {
            let kind = meta.file_type();
            kind.is_char_device() || kind.is_fifo() || kind.is_socket() || kind.is_block_device()
        });
        (!special && !full.starts_with("/proc")).then(|| self.seen(&full))
    }

    fn path(&self, dir: Option<u64>, path: u64) -> String {
        self.seen(&self.full(dir, path))
    }

    fn full(&self, dir: Option<u64>, path: u64) -> PathBuf {
        let path = self.text(path);
        if path.is_absolute() {
            return path;
        }
        // AT_FDCWD is an `int`.
        let at = dir.filter(|dir| *dir as u32 as i32 != libc::AT_FDCWD);
        let link = at.map_or_else(|| format!("/proc/{}/cwd", self.task), |dir| self.link(dir));
        fs::read_link(link).unwrap_or_default().join(path)
    }

    fn link(&self, fd: u64) -> String {
        format!("/proc/{}/fd/{}", self.task, fd as u32)
    }

    fn seen(&self, path: &Path) -> String {
        path.strip_prefix(self.home).unwrap_or(path).display().to_string()
    }

    fn text(&self, address: u64) -> PathBuf {
        use std::os::unix::ffi::OsStringExt as _;
        let mut bytes = Vec::new();
        let mut piece = [0; 256];
        let mut at = address;
        // Pieces end where pages do: what comes after a path may not be there.
        while bytes.len() < 4096 {
            let len = usize::try_from(256 - at % 256).expect("small");
            if !self.read(at, &mut piece[..len]) {
                break;
            }
            let end = piece[..len].iter().position(|byte| *byte == 0);
            bytes.extend_from_slice(&piece[..end.unwrap_or(len)]);
            if end.is_some() {
                break;
            }
            at += len as u64;
        }
        std::ffi::OsString::from_vec(bytes).into()
    }

    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        File::open(format!("/proc/{}/mem", self.task))
            .is_ok_and(|memory| memory.read_exact_at(into, address).is_ok())
    }
}

/// Whether processes may be traced behind a filter here: `touch` of a file is one call.
pub fn trial() -> io::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    let mut command = Command::new("mkdir");
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).arg(&file);
    command.current_dir(folder.path());
    let own = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .map(|dir| dir.join("mkdir"))
        .find_map(|program| program.canonicalize().ok())
        .ok_or(io::ErrorKind::NotFound)?;
    let traced = run(&command, &own, folder.path(), 1, Fault::Once(libc::ENOSPC))?;
    if traced.hit && traced.code == 1 && !file.exists() {
        return Ok(());
    }
    Err(io::Error::other(format!("the kernel does not do as it is told: {traced:?}")))
}
