//! One workspace, and everything that happens to it: attempts, kills, and what people do then.
//!
//! # Limitations
//! A moment of a kill is drawn from how long such a turn took so far, so that all of its life is
//! met, not the beginning alone.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::turns::Kind;

/// How many settled attempts gc keeps.
pub const KEPT: u64 = 60;

/// Tokens of the last attempts that must be somewhere: fewer than gc keeps attempts.
const HELD: usize = 15;

/// Numbers that look random and are the same for the same seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The workspace and its history.
pub struct Life {
    _dir: Option<tempfile::TempDir>,
    pub outside: PathBuf,
    pub root: PathBuf,
    /// The binary under test.
    worktx: String,
    random: Random,
    /// How long a turn of each kind took the last time that it was let live.
    took: HashMap<&'static str, Duration>,
    /// The last tokens.
    pub held: VecDeque<u64>,
    /// Every attempt is rolled back, and nobody is killed.
    pub undone: bool,
    pub count: u64,
    pub ended: BTreeMap<String, u64>,
    pub killed: BTreeMap<String, u64>,
    pub settled: BTreeMap<String, u64>,
}

impl Life {
    pub fn new(dir: &Path, worktx: &Path, random: Random, keep: bool, undone: bool) -> Self {
        let dir =
            tempfile::Builder::new().prefix("worktx-life-").tempdir_in(dir).expect("a folder");
        let outside = dir.path().canonicalize().expect("there");
        let dir = if keep {
            println!("in {}", dir.keep().display());
            None
        } else {
            Some(dir)
        };
        let root = outside.join("repo");
        let make = |path: &Path, text: &str| {
            fs::create_dir_all(path.parent().expect("has one")).expect("made");
            fs::write(path, text).expect("written");
        };
        make(
            &outside.join("home/.gitconfig"),
            &format!(
                "[user]\n\tname = Test\n\temail = test@example.org\n{}",
                // Where turns are killed, so is a gc that one of their commits has begun.
                if undone { "" } else { "[gc]\n\tauto = 0\n" }
            ),
        );
        make(
            &outside.join("home/.config/worktx/config.toml"),
            &format!("grace = \"300ms\"\nbound = \"2s\"\n[gc]\nattempts = {KEPT}\n"),
        );
        for n in 0..12 {
            make(&root.join(format!("src/f{n}")), &format!("{n}\n"));
        }
        for n in 0..16 {
            make(&root.join(format!("tokens/{n}")), "none\n");
        }
        make(&root.join("README.md"), "hello\n");
        make(&root.join(".gitignore"), "ignored/\n");
        make(&root.join("ignored/cache"), "cached\n");
        let life = Self {
            _dir: dir,
            outside,
            root,
            worktx: worktx.canonicalize().expect("there").to_str().expect("text").to_owned(),
            random,
            undone,
            took: HashMap::new(),
            held: VecDeque::new(),
            count: 0,
            ended: BTreeMap::new(),
            killed: BTreeMap::new(),
            settled: BTreeMap::new(),
        };
        life.git(&["init", "-q", "-b", "main", "."]);
        life.git(&["add", "-A"]);
        life.git(&["commit", "-qm", "first"]);
        life.probe();
        life
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.outside.join("home"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("WORKTX", &self.worktx)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir(&self.root);
        command
    }

    pub fn call(&self, args: &[&str]) -> (i32, String) {
        said(&self.command(&self.worktx).args(args).output().expect("it starts"))
    }

    #[track_caller]
    pub fn git(&self, args: &[&str]) -> String {
        let (code, text) = said(&self.command("git").args(args).output().expect("git starts"));
        assert_eq!(code, 0, "git {args:?}: {text}");
        text.trim_end().to_owned()
    }

    #[track_caller]
    pub fn sql(&self, query: &str) -> String {
        let mut command = self.command("sqlite3");
        command.arg(self.root.join(".git/worktx/ledger.db")).arg(query);
        let (code, text) = said(&command.output().expect("sqlite3 starts"));
        assert_eq!(code, 0, "{query}: {text}");
        text.trim_end().to_owned()
    }

    /// An execution that is done: asked for again it runs nothing, but settles first.
    fn probe(&self) {
        let args = ["run", "--wait", "120s", "--execution-id", "probe", "--no-post-check"];
        let (code, text) = self.call(&[&args[..], &["--", "true"]].concat());
        assert_eq!(code, 0, "{text}");
    }

    /// One attempt, perhaps a kill, and everything settled again.
    pub fn attempt(&mut self, n: u64) {
        self.count = n;
        let kind = if self.undone {
            Kind::any_undone(&mut self.random)
        } else {
            Kind::any(&mut self.random)
        };
        let script = kind.script(n, &mut self.random);
        let id = format!("life-{n}");
        let mut command = self.command(&self.worktx);
        command.args(["run", "--wait", "120s", "--execution-id", &id]);
        command.args(kind.options()).args(["--", "sh", "-c", &script]);
        let kill = !self.undone && self.random.below(2) == 0;
        let name = name_of(kind);
        let usual = self.took.get(name).copied().unwrap_or(Duration::from_millis(80));
        let delay = usual * u32::try_from(self.random.below(1100)).expect("small") / 1000;
        let flavour = self.random.below(3);
        let begun = Instant::now();
        // Not into a pipe: what outlives the coordinator would hold it open.
        let talk = self.outside.join("talk");
        command.stdout(Stdio::null()).stderr(fs::File::create(&talk).expect("made"));
        let mut child = command.spawn().expect("it starts");
        if kill && !ends_within(&child, delay) {
            kill_some(&child, flavour);
            let words = ["coordinator", "coordinator and supervisor", "all"];
            *self
                .killed
                .entry(words[usize::try_from(flavour).unwrap_or(0)].to_owned())
                .or_default() += 1;
        }
        let status = child.wait().expect("it ends");
        let code = status.code().unwrap_or_else(|| -status.signal().unwrap_or_default());
        let text = fs::read_to_string(&talk).unwrap_or_default();
        if code >= 0 {
            assert_eq!(code, kind.code(), "attempt {n}, {kind:?}: {text}");
            self.took.insert(name, begun.elapsed());
            if kind.writes_token() {
                self.held.push_back(n);
                if self.held.len() > HELD {
                    self.held.pop_front();
                }
            }
        }
        *self.ended.entry(format!("{code}")).or_default() += 1;
        if code < 0 || code == 20 {
            let cgroups = self.cgroups(&id);
            if cgroups.iter().any(|path| path.exists()) {
                *self.killed.entry("whose cgroup was left".to_owned()).or_default() += 1;
            }
            self.settle(n, &id, kind);
            let left: Vec<_> = cgroups.iter().filter(|path| path.exists()).collect();
            assert!(left.is_empty(), "attempt {n}, {kind:?}: cgroups are left: {left:?}");
        }
        let status = self.git(&["status", "--porcelain"]);
        assert_eq!(
            status, "",
            "attempt {n}, {kind:?}, {code}: the tree is not the branch's\n{text}"
        );
    }

    /// The cgroups that attempts of an execution were given, by their notes.
    fn cgroups(&self, id: &str) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let Some(mount) = mount
            .filter(|words| words.get(2) == Some(&"cgroup2"))
            .find_map(|words| words.get(1).map(PathBuf::from))
        else {
            return Vec::new();
        };
        crate::judge::files(&self.root.join(".git/worktx/attempts").join(id))
            .iter()
            .filter(|path| path.ends_with("cgroup.json"))
            .filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok())
            .filter_map(|note: serde_json::Value| Some(note["path"].as_str()?.to_owned()))
            .map(|path| mount.join(path.trim_start_matches('/')))
            .collect()
    }

    /// Somebody comes: an operator, the next run, or the same execution again.
    fn settle(&mut self, n: u64, id: &str, kind: Kind) {
        let way = self.random.below(3);
        match way {
            0 => {
                // Busy while the supervisor still ends the turn.
                if self.call(&["reconcile"]).0 == 1 {
                    self.probe();
                }
            }
            1 => self.probe(),
            _ => {
                let script = format!("echo again {n} > tokens/{}", n % 16);
                let args = ["run", "--wait", "120s", "--execution-id", id, "--no-post-check"];
                let (code, text) = self.call(&[&args[..], &["--", "sh", "-c", &script]].concat());
                assert!([0, 13, 21].contains(&code), "attempt {n} again: {code} {text}");
            }
        }
        self.clear_locks_of_a_killed_git(n, kind);
        let query = "select execution_id, attempt, state, coalesce(json_extract(outcome, '$.reason'), '') \
                     from attempt where settled_at is null";
        for line in self.sql(query).lines() {
            let [execution, _, state, reason] = line.split('|').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            assert_eq!(state, "quarantined", "attempt {n}: in limbo: {line}");
            self.decide(n, execution, reason);
        }
        assert_eq!(self.sql(query), "", "attempt {n}: settled by nobody");
    }

    /// A git of the turn that was killed leaves its locks. They are not worktx's to remove: an
    /// operator does, who has seen that nobody lives.
    fn clear_locks_of_a_killed_git(&mut self, n: u64, kind: Kind) {
        let inode = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.ino()).ok();
        let git = self.root.join(".git");
        let prepared: Vec<u64> = crate::judge::files(&git.join("worktx/prepared"))
            .iter()
            .filter_map(|path| inode(path))
            .collect();
        for lock in ["HEAD.lock", "refs/heads/main.lock", "index.lock", "packed-refs.lock"]
            .map(|name| git.join(name))
        {
            let Some(found) = inode(&lock) else { continue };
            if prepared.contains(&found) {
                continue;
            }
            assert!(kind.runs_git(), "attempt {n}, {kind:?}: whose is {}?", lock.display());
            let living = self.processes();
            assert!(living.is_empty(), "attempt {n}, {kind:?}: somebody lives: {living:?}");
            fs::remove_file(&lock).expect("removed");
            *self.settled.entry("lock of a killed git, removed".to_owned()).or_default() += 1;
        }
    }

    fn decide(&mut self, n: u64, execution: &str, reason: &str) {
        let mut more: Vec<&str> = Vec::new();
        if reason == "writer_unproven" {
            // An operator who gives their word has looked.
            for pid in self.processes() {
                let _ = kill_process(pid, Signal::KILL);
            }
            more.push("--writer-dead");
        }
        let how = ["--adopt", "--discard", "--keep"];
        let first = how[usize::try_from(self.random.below(3)).unwrap_or(0)];
        for choice in [first, "--discard", "--adopt"] {
            let args = [&["resolve", execution, choice], &more[..]].concat();
            let (code, text) = self.call(&args);
            if code == 0 {
                *self.settled.entry(format!("{reason}, {}", &choice[2..])).or_default() += 1;
                if choice == "--keep" {
                    self.tidy_up(n);
                }
                return;
            }
            assert!([1, 13, 20].contains(&code), "attempt {n}, {reason}, {choice}: {code} {text}");
        }
        panic!("attempt {n}: no decision settles {execution}: {reason}");
    }

    /// An operator who kept the tree makes a base of it again.
    fn tidy_up(&self, n: u64) {
        let script = "chmod 644 README.md; rm -f pipe; git add -A; git diff --cached --quiet || git commit -qm kept";
        let (code, text) =
            said(&self.command("sh").args(["-c", script]).output().expect("it starts"));
        assert_eq!(code, 0, "attempt {n}: {text}");
    }

    /// Living processes that have to do with this workspace, by folder, words or environment.
    pub fn processes(&self) -> Vec<Pid> {
        let needle = self.outside.to_string_lossy().into_owned();
        let mut found = Vec::new();
        for (pid, _, state) in table() {
            let dir = PathBuf::from(format!("/proc/{pid}"));
            let cwd = fs::read_link(dir.join("cwd")).unwrap_or_default();
            let has = |file: &str| {
                let bytes = fs::read(dir.join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).contains(&needle)
            };
            let ours = cwd.starts_with(&self.outside) || has("cmdline") || has("environ");
            if state != 'Z' && pid != std::process::id().cast_signed() && ours {
                found.extend(Pid::from_raw(pid));
            }
        }
        found
    }
}

/// Kinds that take about the same time.
fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Rejected | Kind::CheckLitters => "check",
        Kind::TimesOut => "timeout",
        Kind::OwnCommits | Kind::OwnCommitsFails | Kind::BranchMoved => "git",
        Kind::Cancelled => "cancelled",
        _ => "plain",
    }
}

fn said(output: &Output) -> (i32, String) {
    let code = output.status.code().unwrap_or_else(|| -output.status.signal().unwrap_or_default());
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if code != 0 {
        text.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    (code, text)
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).expect("a pid")
}

fn ends_within(child: &Child, time: Duration) -> bool {
    let handle = pidfd_open(pid_of(child), PidfdFlags::empty()).expect("a handle");
    let time = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&time)).is_ok_and(|ready| ready > 0)
}

/// Pid, parent and state of every process.
fn table() -> Vec<(i32, i32, char)> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").expect("readable").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut words = rest.split(' ');
        let state = words.next().and_then(|word| word.chars().next()).unwrap_or('Z');
        let parent = words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
        all.push((pid, parent, state));
    }
    all
}

/// Kills the coordinator; with its supervisor; with everything beneath.
fn kill_some(child: &Child, flavour: u64) {
    let coordinator = pid_of(child);
    let table = table();
    let mut victims = vec![coordinator.as_raw_nonzero().get()];
    let mut at = 0;
    while flavour > 0 && at < victims.len() {
        let parent = victims[at];
        at += 1;
        victims.extend(table.iter().filter(|(_, of, _)| *of == parent).map(|(pid, ..)| *pid));
        if flavour == 1 {
            break;
        }
    }
    for pid in victims.into_iter().filter_map(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}
