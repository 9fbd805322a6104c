//! The judges: `git` and `sqlite3` alone say whether the laws hold and whether anything piles up.
//!
//! # Limitations
//! Objects that no ref names stay until git's own gc, which is switched off here: they are
//! bounded by the number of attempts only.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::life::{KEPT, Life};

/// Packs that may lie there: below what sets `git gc --auto` to work.
const PACKS: usize = 50;
/// A row of an execution stays for good; nothing else of the ledger grows.
const LEDGER: (u64, u64) = (4 << 20, 1 << 10);
/// What an attempt may leave in the git directory.
const GIT: (u64, u64) = (16 << 20, 16 << 10);

/// L1 to L3 of the crash matrix.
pub fn laws(life: &Life) {
    // L1: nothing lost.
    life.git(&["fsck", "--strict", "--no-dangling"]);
    let objects = life.git(&["rev-list", "--objects", "--no-object-names", "--all"]);
    let reachable: BTreeSet<&str> = objects.lines().collect();
    for n in &life.held {
        let path = life.outside.join("token");
        fs::write(&path, format!("token {n}\n")).expect("written");
        let id = life.git(&["hash-object", "--no-filters", path.to_str().expect("text")]);
        assert!(reachable.contains(id.as_str()), "lost: what attempt {n} wrote");
    }
    // L2: never blessed, and once.
    let wins =
        life.sql("select execution_id, success_candidate from execution where status = 'success'");
    let log = life.git(&["rev-list", "main"]);
    let branch: BTreeSet<&str> = log.lines().collect();
    let mut winners = BTreeSet::new();
    for win in wins.lines() {
        let (execution, candidate) = win.split_once('|').expect("two columns");
        winners.insert(execution);
        assert!(branch.contains(candidate), "{execution} won, and its commit is not on the branch");
    }
    let format = "--format=%(trailers:key=Worktx-Execution,valueonly,separator=)";
    let mut seen = BTreeSet::new();
    for execution in life.git(&["log", format, "main"]).lines().filter(|line| !line.is_empty()) {
        assert!(seen.insert(execution.to_owned()), "{execution} has more than one commit");
        assert!(winners.contains(execution), "{execution} is on the branch and not won");
    }
    // L3: no limbo, and a second look changes nothing.
    let limbo = "select count(*) from attempt where settled_at is null";
    assert_eq!(life.sql(limbo), "0");
    let before = picture(life);
    let (code, text) = life.call(&["reconcile", "--json"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(picture(life), before, "a second reconcile changed something");
    // Nobody is left.
    let left: Vec<String> = life
        .processes()
        .into_iter()
        .map(|pid| {
            let words = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
            String::from_utf8_lossy(&words.unwrap_or_default()).replace('\0', " ")
        })
        .collect();
    assert!(left.is_empty(), "processes are left: {left:?}");
}

fn picture(life: &Life) -> [String; 4] {
    [
        life.git(&["for-each-ref", "--format=%(refname) %(objectname)"]),
        life.git(&["ls-files", "-s"]),
        life.git(&["status", "--porcelain", "--ignored"]),
        life.sql("select execution_id, attempt, state, rev from attempt order by 1, 2"),
    ]
}

/// Everything that an attempt leaves for a while, or by mistake.
pub fn nothing_piled_up(life: &Life) {
    let (code, text) = life.call(&["gc"]);
    assert_eq!(code, 0, "{text}");
    let git = life.root.join(".git");
    let attempts = life.sql("select execution_id || '/' || attempt from attempt");
    let known: BTreeSet<&str> = attempts.lines().collect();
    assert!(known.len() as u64 <= KEPT, "{} attempts are kept", known.len());
    let refs = life.git(&["for-each-ref", "--format=%(refname)", "refs/worktx"]);
    for name in refs.lines() {
        let of: Vec<&str> = name.split('/').skip(3).take(2).collect();
        assert!(known.contains(of.join("/").as_str()), "a ref of no attempt: {name}");
    }
    for (folder, depth) in [("attempts", 2), ("spill", 1)] {
        for path in folders(&git.join("worktx").join(folder), depth) {
            let name = path.strip_prefix(git.join("worktx").join(folder)).expect("below");
            let name = name.to_string_lossy().into_owned();
            let known = if depth == 2 {
                known.contains(name.as_str())
            } else {
                known.iter().any(|key| key.replace('/', "-") == name)
            };
            assert!(known, "a folder of no attempt: {folder}/{name}");
        }
    }
    let mut strange = Vec::new();
    for path in files(&life.root) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_lock = path.extension().is_some_and(|e| e == "lock");
        if is_lock || name.starts_with("tmp_worktx") || name.starts_with(".worktx-tmp") {
            strange.push(path);
        }
    }
    assert!(strange.is_empty(), "left over: {strange:?}");
    assert!(folders(&git.join("worktx/prepared"), 1).is_empty(), "prepared locks");
    let top: Vec<_> = fs::read_dir(&life.root)
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(".worktx"))
        .collect();
    assert!(top.is_empty(), "in the work tree: {top:?}");
    let packs = count(&git.join("objects/pack"), "pack");
    assert!(packs < PACKS, "{packs} packs");
    let executions: u64 = life.sql("select count(*) from execution").parse().expect("a number");
    let ledger = size(&git.join("worktx/ledger.db"));
    assert!(ledger <= LEDGER.0 + LEDGER.1 * executions, "the ledger has {ledger} bytes");
    let whole: u64 = files(&git).iter().map(|path| size(path)).sum();
    assert!(whole <= GIT.0 + GIT.1 * life.count, "the git directory has {whole} bytes");
}

/// The sizes of what could grow, in words.
pub fn sizes(life: &Life) -> String {
    let git = life.root.join(".git");
    let all = files(&git);
    let whole: u64 = all.iter().map(|path| size(path)).sum();
    let loose = all.iter().filter(|path| {
        let folder = path.parent().and_then(Path::file_name).unwrap_or_default();
        folder.len() == 2 && path.starts_with(git.join("objects"))
    });
    let refs = all.iter().filter(|path| path.starts_with(git.join("refs"))).count();
    format!(
        ".git {:.1} MiB, {} packs of {:.1} MiB, {} loose objects, {refs} loose refs, ledger {:.2} MiB",
        mib(whole),
        count(&git.join("objects/pack"), "pack"),
        mib(all.iter().filter(|p| p.starts_with(git.join("objects/pack"))).map(|p| size(p)).sum()),
        loose.count(),
        mib(size(&git.join("worktx/ledger.db"))),
    )
}

/// Medians of commands that a person waits for.
pub fn times(life: &Life) -> [Duration; 3] {
    let median = |args: &[&str]| {
        let mut times: Vec<Duration> = (0..9)
            .map(|_| {
                let begun = Instant::now();
                let (code, text) = life.call(args);
                assert_eq!(code, 0, "{text}");
                begun.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[4]
    };
    [
        median(&["reconcile", "--json"]),
        median(&["list", "--json"]),
        median(&["run", "--no-post-check", "--", "true"]),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn size(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |meta| meta.len())
}

fn count(folder: &Path, ending: &str) -> usize {
    files(folder).iter().filter(|path| path.extension().is_some_and(|e| e == ending)).count()
}

/// Folders so deep beneath a folder.
fn folders(root: &Path, depth: usize) -> Vec<PathBuf> {
    let mut level = vec![root.to_owned()];
    for _ in 0..depth {
        let below = |dir: &PathBuf| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect::<Vec<_>>()
        };
        level = level.iter().flat_map(below).collect();
    }
    level
}

/// Every file beneath a folder.
pub fn files(root: &Path) -> Vec<PathBuf> {
    let mut todo = vec![root.to_owned()];
    let mut all = Vec::new();
    while let Some(dir) = todo.pop() {
        for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => todo.push(path),
                Ok(_) => all.push(path),
                Err(_) => {}
            }
        }
    }
    all
}
