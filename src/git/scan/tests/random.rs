//! Random trees, rules and changes: the answers are git's.
//!
//! # Limitations
//! Names and patterns are a few that get into each other's way.

use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;

use super::Tree;
use crate::git::scan::rules::{Source, View};
use crate::tx::path::RepoPath;

const NAMES: &[&str] = &["a", "b.o", "c.log", "build", "x y", "é", "[z]"];
const PATTERNS: &[&str] = &[
    "*.o",
    "build/",
    "build",
    "/a",
    "a/b.o",
    "**/c.log",
    "!c.log",
    "!build/",
    "a/**",
    "*",
    "!*/",
    "!a",
    "# comment",
    "\\#x",
    "x\\ y",
    "x y  ",
    "[a-c]*",
    "\\[z\\]",
    "**/build/**",
    "a/*/c.log",
    "!b.o",
    "/build/a",
    "?.o",
    "é",
    "*.log\r",
    "a/",
    "/*/a",
    "!/a/b.o",
    "b.o/",
    "[!a]",
    "**",
];

#[derive(Clone, Debug)]
struct Random {
    files: Vec<(Vec<usize>, bool, u8)>,
    ignores: Vec<(Vec<usize>, Vec<usize>)>,
    info: Vec<usize>,
    excludes: Vec<usize>,
}

fn random() -> impl Strategy<Value = Random> {
    let parts = || proptest::collection::vec(0..NAMES.len(), 1..5);
    let dir = proptest::collection::vec(0..NAMES.len(), 0..3);
    let lines = |n| proptest::collection::vec(0..PATTERNS.len(), 0..n);
    let files = proptest::collection::vec((parts(), prop::bool::weighted(0.3), 0u8..8), 1..25);
    let ignores = proptest::collection::vec((dir, lines(6)), 0..4);
    (files, ignores, lines(3), lines(3)).prop_map(|(files, ignores, info, excludes)| Random {
        files,
        ignores,
        info,
        excludes,
    })
}

fn joined(parts: &[usize]) -> String {
    parts.iter().map(|at| NAMES[*at]).collect::<Vec<_>>().join("/")
}

fn lines(patterns: &[usize]) -> Vec<u8> {
    patterns.iter().flat_map(|at| [PATTERNS[*at], "\n"].concat().into_bytes()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Random trees, rules and changes: untracked and modified paths, and the answer for every
    /// single path, are git's.
    #[test]
    fn as_git_sees_it(random in random()) {
        let mut tree = Tree::new();
        let excludes = tree.dir.path().join("excludes");
        tree.captured.info_exclude = lines(&random.info);
        tree.captured.excludes_file = lines(&random.excludes);
        std::fs::write(&excludes, &tree.captured.excludes_file).expect("written");
        tree.git(&["config", "core.excludesFile", excludes.to_str().expect("text")]);
        tree.write(".git/info/exclude", &tree.captured.info_exclude);
        let make = |name: &str, bytes: &[u8]| {
            let at = tree.at(name);
            // A file may stand where a directory is wanted, and the other way round.
            std::fs::create_dir_all(at.parent().expect("has one")).is_ok()
                && !at.is_dir()
                && std::fs::write(at, bytes).is_ok()
        };
        let mut made = Vec::new();
        for (parts, tracked, change) in &random.files {
            let name = joined(parts);
            if make(&name, name.as_bytes()) {
                made.push((name, *tracked, *change));
            }
        }
        let tracked: Vec<&str> =
            made.iter().filter(|(_, tracked, _)| *tracked).map(|(name, ..)| name.as_str()).collect();
        if !tracked.is_empty() {
            tree.git(&[&["--literal-pathspecs", "add", "-f", "--"], &tracked[..]].concat());
            tree.git(&["commit", "-q", "-m", "x"]);
        }
        for (dir, patterns) in &random.ignores {
            let name = [joined(dir).as_str(), ".gitignore"].join("/");
            make(name.trim_start_matches('/'), &lines(patterns));
        }
        for (name, _, change) in &made {
            match change {
                0 => drop(std::fs::remove_file(tree.at(name))),
                1 => tree.write(name, "changed"),
                _ => {}
            }
        }
        tree.keep_modified = true;
        let baseline = tree.establish().expect("judged");
        let ours: BTreeSet<_> = baseline.untracked.iter().map(|(path, _)| path.clone()).collect();
        let git = tree.paths(&["ls-files", "-o", "--exclude-standard", "-z"], b"");
        prop_assert_eq!(ours, git);
        let ours: BTreeSet<_> = baseline.modified.iter().cloned().collect();
        let git = tree.paths(&["diff", "--name-only", "-z", "HEAD"], b"");
        prop_assert_eq!(ours, git);

        let rules = tree.rules();
        let mut view = View::new(&rules, Source::Tree(&tree.root));
        let mut asked = BTreeSet::new();
        let mut todo = vec![tree.root.path().to_owned()];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).expect("listed").flatten() {
                let at = entry.path();
                let name = at.strip_prefix(tree.root.path()).expect("beneath");
                if name != Path::new(".git") {
                    use std::os::unix::ffi::OsStrExt as _;
                    asked.insert((RepoPath::new(name.as_os_str().as_bytes()).expect("valid"), at.is_dir()));
                    if at.is_dir() {
                        todo.push(at);
                    }
                }
            }
        }
        let mut input = Vec::new();
        for (path, _) in &asked {
            input.extend(path.as_bytes());
            input.push(0);
        }
        let git = tree.paths(&["check-ignore", "--no-index", "--stdin", "-z"], &input);
        for (path, is_dir) in &asked {
            let ours = view.ignores(path, *is_dir).expect("read");
            prop_assert_eq!(ours, git.contains(path), "{}", path);
        }
    }
}
