//! The benchmark: what a transaction costs beside git's own commands, in the same run.
//!
//! ```text
//! cargo bench --bench turns [-- --sizes 1000,10000,100000] [--rounds N] [--quick] [--dir DIR] [--keep]
//!                            [--phases] [--wide] [--large BYTES] [--warm]
//! ```
//!
//! Whole processes are timed, by turns: git, worktx, git, worktx. The turn (eight files edited,
//! two added, two deleted) is the same process on both sides and counts on both. No figure is
//! expected here: the table is printed, and only wrong results make it fail. With `--phases` a second
//! table says what the time of worktx goes into. With `--wide` 10,000 paths (or all, where there are
//! fewer) are changed too, and other ways to a clean tree are timed; with `--large` one file of so many
//! bytes is. With `--warm` a server watches the tree of worktx, and git has an equal one of its own, so
//! that each finds what it left itself.
//!
//! # Limitations
//! Caches are warm. Every run begins with a process start; without `--warm` nothing else is resident.
#![allow(clippy::print_stdout)]

mod measure;
mod tree;

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use measure::{Took, median, run};

/// The durable renames that a run may take longer than git where the tree is small.
const RENAMES: u32 = 40;

/// How many paths many are.
const MANY: u64 = 10_000;

/// The exit code of a run that was refused.
const REFUSED: i32 = 21;

struct Options {
    sizes: Vec<u64>,
    rounds: Option<usize>,
    dir: Option<PathBuf>,
    keep: bool,
    phases: bool,
    wide: bool,
    large: Option<u64>,
    warm: bool,
}

/// What is measured, against what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    Commit,
    RollBack,
    Refusal,
    Nothing,
    Many,
    Large,
}

impl Case {
    /// Those of one run.
    fn of(options: &Options) -> Vec<Self> {
        let mut all = vec![Self::Commit, Self::RollBack, Self::Refusal, Self::Nothing];
        all.extend(options.wide.then_some(Self::Many));
        all.extend(options.large.map(|_| Self::Large));
        all
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::RollBack => "rollback",
            Self::Refusal => "refusal",
            Self::Nothing => "run -- true",
            Self::Many => "commit of many paths",
            Self::Large => "commit of a large file",
        }
    }

    const fn against(self) -> &'static str {
        match self {
            Self::Commit | Self::Many | Self::Large => "turn + status + add -A + commit",
            Self::RollBack => "turn + restore + clean",
            Self::Refusal => "status",
            Self::Nothing => "true + status + add -A + commit",
        }
    }
}

#[derive(Default)]
struct Times {
    git: Vec<Duration>,
    worktx: Vec<Duration>,
    peak_kib: u64,
    phases: BTreeMap<String, Vec<Duration>>,
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|word| word == "turn") {
        return turn(&args[1..]);
    }
    let options = options(&args)?;
    println!(
        "| files | case | git | worktx | ratio | bar | | peak memory | git's commands |\n\
         |---:|---|---:|---:|---:|---:|---|---:|---|"
    );
    // All are removed at the end alone, for the same reason as none is made with something deleted.
    let above = match &options.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    for size in &options.sizes {
        let place = above.path().join(size.to_string());
        std::fs::create_dir(&place)?;
        measure_size(&options, *size, &place)?;
    }
    if options.keep {
        println!("kept: {}", above.keep().display());
    }
    Ok(())
}

fn options(args: &[String]) -> io::Result<Options> {
    let mut options = Options {
        sizes: vec![1_000, 10_000, 100_000],
        rounds: None,
        dir: None,
        keep: false,
        phases: false,
        wide: false,
        large: None,
        warm: false,
    };
    let mut args = args.iter();
    let usage = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    while let Some(word) = args.next() {
        let mut value = || args.next().ok_or_else(|| usage("a value is missing"));
        match word.as_str() {
            "--sizes" => {
                let sizes: Result<_, _> = value()?.split(',').map(str::parse).collect();
                options.sizes = sizes.map_err(|_| usage("--sizes takes numbers"))?;
            }
            "--rounds" => {
                let rounds = value()?.parse().map_err(|_| usage("--rounds takes a number"))?;
                options.rounds = Some(rounds);
            }
            "--dir" => options.dir = Some(value()?.into()),
            "--keep" => options.keep = true,
            "--phases" => options.phases = true,
            "--wide" => options.wide = true,
            "--warm" => options.warm = true,
            "--large" => {
                let bytes = value()?.parse().map_err(|_| usage("--large takes bytes"))?;
                options.large = Some(bytes);
            }
            "--quick" => {
                options.sizes = vec![1_000];
                options.rounds = Some(3);
            }
            // Cargo's own.
            "--bench" => {}
            other => return Err(usage(&format!("{other} is no option"))),
        }
    }
    Ok(options)
}

/// This program as the turn: `turn FILES ROUND BEFORE EXIT`, in the tree.
#[expect(clippy::disallowed_methods, reason = "the exit code is what the turn is about")]
fn turn(args: &[String]) -> io::Result<()> {
    let number = |at: usize| args.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
    let here = Path::new(".");
    match args.first().map(String::as_str) {
        Some("many") => return tree::turn_many(here, number(1), number(2)),
        Some("large") => return tree::turn_large(here, number(1), number(2)),
        _ => tree::turn(here, number(0), number(1), number(2))?,
    }
    std::process::exit(i32::from(number(3) != 0))
}

fn measure_size(options: &Options, files: u64, above: &Path) -> io::Result<()> {
    let root = above.join("tree");
    tree::make(&root, files)?;
    let own = std::env::current_exe()?;
    let beside = above.join("beside");
    if options.warm {
        tree::make(&beside, files)?;
    }
    let git_root = if options.warm { &beside } else { &root };
    let bench = Bench { root: &root, git_root, files, own, large: options.large.unwrap_or(0) };
    let rounds = options.rounds.unwrap_or(if files > 50_000 { 5 } else { 7 });
    // Once without counting: the manifest, the ledger, the caches.
    bench.expect("the first run", bench.worktx(&["true"])?, 0)?;
    let server = options.warm.then(|| Server::start(&root)).transpose()?;
    let mut times: BTreeMap<Case, Times> = BTreeMap::new();
    let (mut renames, mut others) = (Vec::new(), BTreeMap::<&str, Vec<Duration>>::new());
    let mut last = Last { git: 0, worktx: 0, is_one: !options.warm };
    for round in 0..rounds {
        for case in Case::of(options) {
            let seed = round as u64 * 10 + case as u64 * 2 + 1;
            let (git, worktx) = bench.case(case, seed, &mut last)?;
            let times = times.entry(case).or_default();
            times.git.push(git.wall);
            times.worktx.push(worktx.wall);
            times.peak_kib = times.peak_kib.max(worktx.peak_kib);
            if options.phases && case != Case::Refusal {
                for (phase, time) in bench.phases(worktx.wall)? {
                    times.phases.entry(phase).or_default().push(time);
                }
            }
        }
        if options.wide {
            for (name, took) in bench.other_ways(above, round as u64, &mut last)? {
                others.entry(name).or_default().push(took.wall);
            }
        }
    }
    // After the rounds: each of them deletes a file, of which those rounds know nothing then.
    for _ in 0..rounds {
        renames.push(measure::durable_renames(above, RENAMES)?);
    }
    let committing = Case::of(options).len() - 3;
    if options.warm {
        Bench::check(git_root, rounds * committing)?;
        Bench::check(&root, rounds * committing)?;
    } else {
        Bench::check(&root, rounds * committing * 2)?;
    }
    let renames = median(renames);
    let mut phases = Vec::new();
    for (case, times) in times {
        let (git, worktx) = (median(times.git), median(times.worktx));
        let each = times.phases.into_iter().map(|(phase, all)| (phase, ms(median(all))));
        let each: Vec<String> =
            each.map(|(phase, time)| format!("{} {time}", &phase[3..])).collect();
        if !each.is_empty() {
            phases.push(format!("| {files} | {} | {} |", case.name(), each.join(", ")));
        }
        let bar = match case {
            Case::Commit if options.warm => git / 12,
            Case::RollBack if options.warm => git / 25,
            _ if files < 10_000 => git + renames,
            _ => git,
        };
        println!(
            "| {files} | {} | {} | {} | {:.2} | {} | {} | {} MiB | {} |",
            case.name(),
            ms(git),
            ms(worktx),
            worktx.as_secs_f64() / git.as_secs_f64(),
            ms(bar),
            if worktx <= bar { "within" } else { "above" },
            times.peak_kib / 1024,
            case.against(),
        );
    }
    for (name, times) in others {
        println!("| {files} | {name} | {} | | | | | | |", ms(median(times)));
    }
    println!("| {files} | {RENAMES} durable renames | | {} | | | | | |", ms(renames));
    if let Some(server) = server {
        println!("| {files} | the server | | | | | | {} MiB | |", server.peak_kib()? / 1024);
    }
    if !phases.is_empty() {
        println!(
            "\n| files | case | phases, each by its median |\n|---:|---|---|\n{}\n",
            phases.join("\n")
        );
    }
    Ok(())
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// The round whose added files stand in a tree.
struct Last {
    git: u64,
    worktx: u64,
    /// Both work in one tree.
    is_one: bool,
}

impl Last {
    fn by_git(&mut self, round: u64) {
        self.git = round;
        if self.is_one {
            self.worktx = round;
        }
    }

    fn by_worktx(&mut self, round: u64) {
        self.worktx = round;
        if self.is_one {
            self.git = round;
        }
    }
}

/// A server that watches the tree; ended with the measurement.
struct Server(Child);

impl Server {
    fn start(root: &Path) -> io::Result<Self> {
        let mut worktx = Command::new(env!("CARGO_BIN_EXE_worktx"));
        let mut child = worktx
            .current_dir(root)
            .arg("serve")
            .env("HOME", "/nonexistent")
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().ok_or_else(|| io::Error::other("no standard error"))?;
        let mut lines = BufReader::new(stderr);
        let mut line = String::new();
        while !line.starts_with("worktx: serving") {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                return Err(io::Error::other("the server did not start"));
            }
        }
        // Whoever writes to a pipe that nobody reads is ended.
        std::thread::spawn(move || io::copy(&mut lines, &mut io::sink()));
        Ok(Self(child))
    }

    fn peak_kib(&self) -> io::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = peak.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
        number.ok_or_else(|| io::Error::other("no peak"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Bench<'a> {
    root: &'a Path,
    /// Where git works.
    git_root: &'a Path,
    files: u64,
    own: PathBuf,
    large: u64,
}

impl Bench<'_> {
    /// One case on both sides.
    fn case(&self, case: Case, seed: u64, last: &mut Last) -> io::Result<(Took, Took)> {
        match case {
            Case::Commit => {
                let git = self.turn(seed, last.git, false)?.and(self.git_commit(0)?);
                last.by_git(seed);
                let words = self.words(seed + 1, last.worktx, false);
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let worktx = self.expect("commit", self.worktx(&words)?, 0)?;
                last.by_worktx(seed + 1);
                Ok((git, worktx))
            }
            Case::RollBack => {
                let git = self
                    .turn(seed, last.git, true)?
                    .and(self.git(&["restore", "."], 0)?)
                    .and(self.git(&["clean", "-fdq"], 0)?);
                let words = self.words(seed + 1, last.worktx, true);
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let worktx = self.expect("rollback", self.worktx(&words)?, 10)?;
                Ok((git, worktx))
            }
            Case::Refusal => {
                let (path, before) = tree::dirty(self.root, self.files)?;
                let beside = tree::dirty(self.git_root, self.files)?;
                let git = self.git(&["status"], 0)?;
                let worktx = self.expect("refusal", self.worktx(&["true"])?, REFUSED)?;
                std::fs::write(beside.0, beside.1)?;
                std::fs::write(path, before)?;
                Ok((git, worktx))
            }
            Case::Many | Case::Large => {
                let (kind, count) = match case {
                    Case::Many => ("many", self.files.min(MANY)),
                    _ => ("large", self.large),
                };
                let words = |round: u64| {
                    let numbers = [count.to_string(), round.to_string()];
                    ["turn", kind].map(str::to_owned).into_iter().chain(numbers).collect::<Vec<_>>()
                };
                let mut turn = Command::new(&self.own);
                let turn = run(turn.current_dir(self.git_root).args(words(seed)))?;
                let git = turn.and(self.git_commit(0)?);
                let own = self.own.display().to_string();
                let words = words(seed + 1);
                let words: Vec<&str> =
                    std::iter::once(own.as_str()).chain(words.iter().map(String::as_str)).collect();
                Ok((git, self.expect(case.name(), self.worktx(&words)?, 0)?))
            }
            Case::Nothing => {
                let git = run(&mut Command::new("true"))?.and(self.git_commit(1)?);
                let worktx = self.expect("run -- true", self.worktx(&["true"])?, 0)?;
                Ok((git, worktx))
            }
        }
    }

    /// What else brings a tree back, or makes one to work in: on the same turn's changes.
    fn other_ways(
        &self,
        above: &Path,
        round: u64,
        last: &mut Last,
    ) -> io::Result<[(&'static str, Took); 3]> {
        let turn = self.turn(round * 10 + 9, last.git, true)?;
        let stash = turn
            .and(self.git(&["stash", "push", "-u", "-q"], 0)?)
            .and(self.git(&["stash", "drop", "-q"], 0)?);
        let (tree, copy) = (above.join("worktree"), above.join("copy"));
        let tree = tree.display().to_string();
        let added = self.git(&["worktree", "add", "-q", "--detach", &tree], 0)?;
        self.git(&["worktree", "remove", "--force", &tree], 0)?;
        let copied = run(Command::new("cp").arg("-a").arg(self.root).arg(&copy))?;
        let copied = self.expect("cp -a", copied, 0)?;
        std::fs::remove_dir_all(&copy)?;
        Ok([("turn + stash -u + drop", stash), ("worktree add", added), ("cp -a", copied)])
    }

    /// git says that nothing is left behind, and every commit is there.
    fn check(root: &Path, made: usize) -> io::Result<()> {
        let status = tree::git(root, &["status", "--porcelain"])?;
        let commits = tree::git(root, &["rev-list", "--count", "HEAD"])?;
        let expected = (1 + made).to_string();
        if !status.is_empty() || commits.trim() != expected {
            return Err(io::Error::other(format!(
                "{} commits instead of {expected}; git status says {status:?}",
                commits.trim()
            )));
        }
        tree::git(root, &["fsck", "--connectivity-only"]).map(drop)
    }

    /// What the last attempt's time went into, in order; what is left of `wall` is the start and the
    /// end of the process.
    fn phases(&self, wall: Duration) -> io::Result<Vec<(String, Duration)>> {
        let ask = |args: &[&str]| -> io::Result<serde_json::Value> {
            let mut worktx = Command::new(env!("CARGO_BIN_EXE_worktx"));
            let out = worktx.current_dir(self.root).args(args).output()?.stdout;
            serde_json::from_slice(&out).map_err(io::Error::other)
        };
        let list = ask(&["list", "--limit", "1", "--json"])?;
        let id = list["attempts"][0]["execution_id"].as_str().unwrap_or_default();
        let shown = ask(&["show", id, "--json"])?;
        let told = shown["attempts"][0]["phases"].as_array().cloned().unwrap_or_default();
        let mut all: Vec<(String, Duration)> = Vec::new();
        for (at, phase) in told.iter().enumerate() {
            let time = Duration::from_micros(phase["duration_us"].as_u64().unwrap_or(0));
            all.push((format!("{at:02} {}", phase["phase"].as_str().unwrap_or("?")), time));
        }
        let sum = all.iter().map(|(_, time)| *time).sum();
        all.push(("99 start and end".to_owned(), wall.saturating_sub(sum)));
        Ok(all)
    }

    fn words(&self, round: u64, before: u64, fails: bool) -> Vec<String> {
        let mut words = vec![self.own.display().to_string(), "turn".to_owned()];
        words.extend([self.files, round, before, u64::from(fails)].map(|n| n.to_string()));
        words
    }

    fn turn(&self, round: u64, before: u64, fails: bool) -> io::Result<Took> {
        let words = self.words(round, before, fails);
        let took = run(Command::new(&self.own).current_dir(self.git_root).args(&words[1..]))?;
        self.expect("the turn", took, i32::from(fails))
    }

    fn git_commit(&self, code: i32) -> io::Result<Took> {
        let status = self.git(&["status"], 0)?;
        let add = self.git(&["add", "-A"], 0)?;
        let commit = self.git(&["commit", "-q", "-m", "a turn"], code)?;
        Ok(status.and(add).and(commit))
    }

    fn git(&self, args: &[&str], code: i32) -> io::Result<Took> {
        let took = run(Command::new("git").current_dir(self.git_root).args(args))?;
        self.expect(&format!("git {args:?}"), took, code)
    }

    fn worktx(&self, command: &[&str]) -> io::Result<Took> {
        let mut worktx = Command::new(env!("CARGO_BIN_EXE_worktx"));
        // A large file is beyond what a turn may make by default.
        let large = (self.large + (1 << 20)).max(100 << 20).to_string();
        worktx.env("WORKTX_LIMITS_FILE", &large).env("WORKTX_LIMITS_TOTAL", "100GiB");
        run(worktx.current_dir(self.root).args(["run", "--"]).args(command))
    }

    #[expect(clippy::unused_self, reason = "reads as the others do")]
    fn expect(&self, what: &str, took: Took, code: i32) -> io::Result<Took> {
        if took.code == code {
            return Ok(took);
        }
        Err(io::Error::other(format!("{what} exited with {} instead of {code}", took.code)))
    }
}
