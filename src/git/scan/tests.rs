//! Scan, rules and baseline on real trees; git is the judge.
//!
//! # Limitations
//! Stat data is a proof only when it is older than the files' clock can tell apart: the tests
//! wait for that clock, not for a time.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::base::clock::file_clock_ns;
use crate::git::config::attributes::CapturedAttributes;
use crate::git::config::convert::AutoCrlf;
use crate::git::files::root::Root;
use crate::git::manifest::Manifest;
use crate::git::manifest::baseline::{Baseline, BaselineError, BaselineRequest, STALE, establish};
use crate::git::manifest::touched::Touched;
use crate::git::objects::store::Store;
use crate::git::scan::rules::{BaseRules, CapturedExcludes, Rules};
use crate::git::scan::{
    GRANULARITY_NS, NewDirectories, Scan, ScanError, ScanLimits, ScanRequest, blob_id, raw_id,
    scan, stat_is_proof,
};
use crate::tx::entry::{Change, Kind, Stat};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;
use crate::tx::settings::{Limits, Scope};

mod marked;
mod random;
mod watched;
mod written;

fn path(text: &str) -> RepoPath {
    RepoPath::new(text).expect("valid")
}

struct Tree {
    dir: tempfile::TempDir,
    root: Root,
    manifest: Manifest,
    captured: CapturedExcludes,
    scope: Scope,
    limits: Limits,
    keep_modified: bool,
    autocrlf: AutoCrlf,
    /// What the next look is bounded to.
    only: Option<Touched>,
    stale: usize,
}

impl Tree {
    fn new() -> Self {
        Self::new_in(&std::env::temp_dir())
    }

    fn new_in(folder: &std::path::Path) -> Self {
        let dir = tempfile::tempdir_in(folder).expect("a folder");
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).expect("made");
        let tree = Self {
            root: Root::open(&tree).expect("opened"),
            manifest: Manifest::open(&dir.path().join("manifest.db")).expect("opened"),
            dir,
            captured: CapturedExcludes::default(),
            scope: Scope::default(),
            limits: Limits::default(),
            keep_modified: false,
            autocrlf: AutoCrlf::Off,
            only: None,
            stale: 0,
        };
        tree.git(&["init", "-q", "-b", "main"]);
        for (key, value) in [("user.name", "T"), ("user.email", "t@t"), ("gc.auto", "0")] {
            tree.git(&["config", key, value]);
        }
        tree.git(&["commit", "-q", "--allow-empty", "-m", "empty"]);
        tree
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn git_with(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new("git")
            .arg("-C")
            .arg(self.root.path())
            .args(args)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("runs");
        child.stdin.take().expect("piped").write_all(input).expect("written");
        let out = child.wait_with_output().expect("ends");
        let nothing_found = args[0] == "check-ignore" && out.status.code() == Some(1);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() || nothing_found, "{args:?}: {said}");
        out.stdout
    }

    fn git(&self, args: &[&str]) -> String {
        String::from_utf8(self.git_with(args, b"")).expect("text")
    }

    fn paths(&self, args: &[&str], input: &[u8]) -> BTreeSet<RepoPath> {
        let out = self.git_with(args, input);
        out.split(|b| *b == 0)
            .filter(|name| !name.is_empty())
            .map(|name| RepoPath::new(name).expect("valid"))
            .collect()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let at = self.at(name);
        std::fs::create_dir_all(at.parent().expect("has one")).expect("made");
        std::fs::write(at, bytes).expect("written");
    }

    fn commit(&self, names: &[&str]) {
        self.git(&[&["add", "-f", "--"], names].concat());
        self.git(&["commit", "-q", "-m", "x"]);
    }

    fn rules(&self) -> Rules {
        Rules::new(&self.captured, &self.scope)
    }

    fn establish(&mut self) -> Result<Baseline, BaselineError> {
        let store = Store::open(&self.root.path().join(".git")).expect("opened");
        let head_tree: Oid = self.git(&["rev-parse", "HEAD^{tree}"]).trim().parse().expect("an id");
        let rules = self.rules();
        establish(
            &mut self.manifest,
            &BaselineRequest {
                root: &self.root,
                store: &store,
                head_tree,
                rules: &rules,
                attributes: &CapturedAttributes::default(),
                autocrlf: self.autocrlf,
                file_mode: true,
                limits: self.limits,
                temporary: &[b".worktx-tmp-1".to_vec()],
                keep_modified: self.keep_modified,
                progress: None,
                only: self.only.as_ref(),
                stale: self.stale,
            },
        )
    }

    /// A base whose stat data is a proof, with the bytes of its `.gitignore` files as a pin would
    /// keep them.
    fn base(&mut self) -> (Baseline, BaseRules) {
        self.establish().expect("a base");
        wait_for_proof();
        let baseline = self.establish().expect("a base");
        assert_eq!(baseline.modified, []);
        let mut kept = std::collections::HashMap::new();
        for (path, packed) in baseline.snapshot.iter() {
            if path.name() == b".gitignore" && packed.kind() == Kind::File {
                kept.insert(packed.raw(), std::fs::read(self.root.path().join(path.as_path())));
            }
        }
        let rules = BaseRules::of(Arc::new(baseline.snapshot.clone()), move |id| {
            let bytes = kept[&id].as_ref().expect("read").clone();
            assert_eq!(blob_id(&bytes), id);
            Ok(bytes)
        });
        (baseline, rules)
    }

    fn scan(&self, base: &(Baseline, BaseRules)) -> Scan {
        let rules = self.rules();
        let temporary = [b".worktx-tmp-1".to_vec()];
        let request = ScanRequest {
            temporary: &temporary,
            ..ScanRequest::new(&self.root, &base.0.snapshot, &rules, Some(&base.1))
        };
        scan(&request).expect("scanned")
    }
}

fn wait_for_proof() {
    let until = file_clock_ns() + GRANULARITY_NS + 1;
    while file_clock_ns() <= until {
        std::thread::yield_now();
    }
}

/// `path before>after flags`, a letter a kind, `b` and `t` for ignored by base and turn.
fn told(scan: &Scan) -> Vec<String> {
    let letter = |kind: Option<Kind>| match kind {
        None => '-',
        Some(Kind::File) => 'f',
        Some(Kind::Symlink) => 'l',
        Some(Kind::Directory) => 'd',
        Some(Kind::Fifo) => 'p',
        Some(Kind::Socket) => 's',
        Some(Kind::Device) => 'c',
        Some(Kind::NestedRepository) => 'r',
        Some(Kind::Mount) => 'm',
    };
    let tell = |change: &Change| {
        let before = letter(change.before.as_ref().map(|entry| entry.kind));
        let after = letter(change.after.as_ref().map(|found| found.kind));
        let base = if change.ignored_by_base { "b" } else { "" };
        let turn = if change.ignored_by_turn { "t" } else { "" };
        format!("{} {before}>{after}{base}{turn}", change.path)
    };
    scan.changes.iter().map(tell).collect()
}

#[test]
fn a_stamp_in_whole_seconds_is_any_time_within() {
    let second = 1_000_000_000;
    let stat = |ctime_ns| Stat {
        mode: 0,
        size: 0,
        mtime_ns: 0,
        ctime_ns,
        inode: 0,
        links: 1,
        uid: 0,
        gid: 0,
    };
    assert!(stat_is_proof(&stat(7 * second + 1), 7 * second + second / 2));
    assert!(!stat_is_proof(&stat(7 * second), 7 * second + second / 2));
    assert!(stat_is_proof(&stat(7 * second), 9 * second));
    assert!(!stat_is_proof(&stat(7 * second + 1), 7 * second + GRANULARITY_NS));
}

#[test]
fn what_is_not_as_committed_is_modified() {
    let mut tree = Tree::new();
    for name in ["same", "bytes", "mode", "gone", "kind", "dir/file", "by-head", "mode-by-head"] {
        tree.write(name, format!("{name}\n"));
    }
    tree.commit(&["."]);
    tree.base();
    // Behind the back of the stat data: HEAD moves, the files stay.
    tree.write("by-head", "other\n");
    tree.commit(&["by-head"]);
    tree.git(&["update-index", "--chmod=+x", "mode-by-head"]);
    tree.git(&["commit", "-q", "-m", "x"]);
    tree.base_is(&["mode-by-head"]);
    tree.git(&["reset", "-q", "--soft", "HEAD~2"]);
    tree.base_is(&["by-head"]);
    tree.write("bytes", "Bytes\n");
    std::fs::set_permissions(tree.at("mode"), PermissionsExt::from_mode(0o755)).expect("set");
    std::fs::remove_file(tree.at("gone")).expect("removed");
    std::fs::remove_file(tree.at("kind")).expect("removed");
    symlink("kind\n", tree.at("kind")).expect("linked");
    std::fs::rename(tree.at("dir"), tree.at("real")).expect("moved");
    symlink("real", tree.at("dir")).expect("linked");
    let all = ["by-head", "bytes", "dir/file", "gone", "kind", "mode"];
    tree.base_is(&all);
    // As a base of its own it is written; the next open that wants a clean tree still sees it.
    tree.keep_modified = true;
    let kept = tree.establish().expect("a base");
    assert!(kept.written && kept.modified.len() == all.len());
    tree.keep_modified = false;
    tree.base_is(&all);
}

impl Tree {
    fn base_is(&mut self, modified: &[&str]) {
        let baseline = self.establish().expect("judged");
        let modified: Vec<_> = modified.iter().map(|name| path(name)).collect();
        assert_eq!(baseline.modified, modified);
        assert!(modified.is_empty() || !baseline.written);
    }
}

#[test]
fn a_crlf_tree_is_clean() {
    let mut tree = Tree::new();
    tree.write(".gitattributes", "*.txt text eol=crlf\n");
    tree.write("a.txt", "one\r\ntwo\r\n");
    tree.write("b.bin", "one\r\n");
    tree.commit(&["."]);
    tree.base_is(&[]);
    let baseline = tree.establish().expect("a base");
    let entry = baseline.snapshot.get(&path("a.txt")).expect("there");
    assert_eq!(entry.raw, blob_id(b"one\r\ntwo\r\n"));
    assert_eq!(entry.tracked.expect("tracked").blob, blob_id(b"one\ntwo\n"));
    tree.write("a.txt", "one\r\nTwo\r\n");
    tree.base_is(&["a.txt"]);
}

#[test]
fn what_a_turn_did_is_told() {
    let mut tree = Tree::new();
    for name in ["src/a", "src/b", "src/c", "keep/tracked.log", "swap/x", "exec", "touched"] {
        tree.write(name, "base");
    }
    tree.write(".gitignore", "*.log\ntarget/\nsecret\n");
    tree.commit(&["."]);
    tree.git(&["add", "-f", "keep/tracked.log"]);
    tree.write("note", "untracked");
    tree.write("notes/deep/n", "untracked");
    tree.write("target/out", "ignored");
    tree.write("secret", "ignored");
    // As Python makes it: everything in it is ignored, by a file that is ignored itself.
    tree.write("venv/.gitignore", "*");
    tree.write("venv/bin/python", "ignored");
    tree.write("nested/file", "not ours");
    std::fs::create_dir(tree.at("nested/.git")).expect("made");
    std::fs::create_dir_all(tree.at("empty/inner")).expect("made");
    tree.write(".worktx-tmp-1/x", "ours");
    let base = tree.base();
    assert_eq!(base.0.nested, [path("nested")]);
    assert_eq!(told(&tree.scan(&base)), [""; 0]);

    let mtime = std::fs::metadata(tree.at("src/a")).expect("stat").modified().expect("a time");
    tree.write("src/a", "BASE");
    let file = std::fs::File::options().write(true).open(tree.at("src/a")).expect("opened");
    file.set_modified(mtime).expect("set");
    std::fs::remove_file(tree.at("src/b")).expect("removed");
    std::fs::set_permissions(tree.at("exec"), PermissionsExt::from_mode(0o755)).expect("set");
    std::fs::set_permissions(tree.at("src"), PermissionsExt::from_mode(0o700)).expect("set");
    std::fs::remove_dir_all(tree.at("swap")).expect("removed");
    symlink("/etc", tree.at("swap")).expect("linked");
    std::fs::remove_dir(tree.at("empty/inner")).expect("removed");
    std::fs::remove_dir_all(tree.at("notes")).expect("removed");
    tree.write("keep/tracked.log", "tracked though ignored");
    tree.write(".gitignore", "*.log\ntarget/\nbuild/\nnote\n");
    tree.write("build/artefact", "by the turn, ignored by the turn");
    tree.write("new/dir/file", "new");
    tree.write("target/out", "changed, and nobody's business");
    tree.write("venv/bin/python", "the same");
    tree.write("nested/file", "the same");
    tree.write("clone/file", "nested");
    std::fs::create_dir(tree.at("clone/.git")).expect("made");
    std::fs::create_dir(tree.at("keep/.git")).expect("made");
    tree.write("keep/beside", "new");
    tree.write(".GIT", "git cannot store it");
    let fifo = tree.at("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("made");
    let scanned = tree.scan(&base);
    assert_eq!(
        told(&scanned),
        [
            ".GIT ->f",
            ".gitignore f>f",
            "build ->dt",
            "build/artefact ->ft",
            "clone ->r",
            "empty/inner d>-",
            "exec f>f",
            "keep/.git ->r",
            "keep/beside ->f",
            "keep/tracked.log f>fbt",
            "new ->d",
            "new/dir ->d",
            "new/dir/file ->f",
            "notes d>-",
            "notes/deep d>-",
            "notes/deep/n f>-",
            "pipe ->p",
            "secret ->fb",
            "src d>d",
            "src/a f>f",
            "src/b f>-",
            "swap d>l",
            "swap/x f>-",
        ]
    );
    let rules = tree.rules();
    let whole = ScanRequest {
        new_directories: NewDirectories::Whole,
        ..ScanRequest::new(&tree.root, &base.0.snapshot, &rules, Some(&base.1))
    };
    let whole = told(&scan(&whole).expect("scanned"));
    assert!(whole.contains(&"new ->d".to_owned()) && !whole.iter().any(|c| c.contains("new/dir")));

    // The turn's own rules within a directory that the base has by another's.
    std::fs::remove_file(tree.at("venv/.gitignore")).expect("removed");
    let told = told(&tree.scan(&base));
    assert!(told.contains(&"venv/bin ->db".to_owned()), "{told:?}");
    assert!(told.contains(&"venv/bin/python ->fb".to_owned()));
}

#[test]
fn the_scope_leaves_out_what_is_untracked_only() {
    let mut tree = Tree::new();
    tree.scope.exclude = vec!["content/".to_owned()];
    tree.write("content/tracked", "base");
    tree.commit(&["."]);
    tree.write("content/data", "out of scope");
    tree.write("sub/content/data", "out of scope");
    let base = tree.base();
    assert_eq!(base.0.untracked, []);
    tree.write("content/tracked", "changed");
    tree.write("content/more", "out of scope");
    tree.write("sub/content/more", "out of scope");
    assert_eq!(told(&tree.scan(&base)), ["content/tracked f>f"]);
}

#[test]
fn what_is_ignored_since_leaves_the_base() {
    let mut tree = Tree::new();
    tree.write("src/x", "base");
    tree.commit(&["."]);
    tree.write("out/a/b", "untracked");
    tree.write("loose", "untracked");
    let (baseline, _) = tree.base();
    assert_eq!(baseline.untracked.len(), 2);
    tree.write(".gitignore", "out/\nloose\n.gitignore\n");
    let (baseline, rules) = tree.base();
    assert_eq!(baseline.untracked, []);
    assert_eq!(baseline.snapshot.len(), 2);
    assert_eq!(rules.get(b"").expect("read"), Some(&b"out/\nloose\n.gitignore\n"[..]));
    tree.git(&["init", "-q", "src"]);
    std::fs::create_dir_all(tree.at("other/deep")).expect("made");
    tree.git(&["init", "-q", "other"]);
    let (baseline, _) = tree.base();
    assert_eq!(baseline.nested, [path("other"), path("src/.git")]);
    assert!(told(&tree.scan(&(baseline, rules))).is_empty());
}

#[test]
fn limits_are_typed() {
    let mut tree = Tree::new();
    for at in 0..20 {
        tree.write(&format!("d/{at}"), "12345");
    }
    tree.limits = Limits { file_bytes: 4, total_bytes: 1000, files: 1000 };
    let wrong = tree.establish().expect_err("too large");
    assert!(matches!(wrong, BaselineError::TooMuch { too_large, .. } if too_large.len() == 20));
    tree.limits = Limits { file_bytes: 5, total_bytes: 99, files: 1000 };
    assert!(matches!(tree.establish(), Err(BaselineError::TooMuch { bytes: 100, .. })));
    tree.limits = Limits { file_bytes: 5, total_bytes: 100, files: 19 };
    assert!(matches!(tree.establish(), Err(BaselineError::TooMuch { files: 20, .. })));
    tree.limits = Limits { file_bytes: 5, total_bytes: 100, files: 20 };
    tree.establish().expect("a base");
    // Known ones count as well.
    tree.limits.files = 19;
    assert!(matches!(tree.establish(), Err(BaselineError::TooMuch { files: 20, .. })));

    let rules = tree.rules();
    let empty = crate::git::manifest::snapshot::Snapshot::default();
    let usual = ScanRequest::new(&tree.root, &empty, &rules, None);
    let limits = ScanLimits { changes: 20, ..ScanLimits::default() };
    let wrong = scan(&ScanRequest { limits, ..usual }).expect_err("one too many");
    assert!(matches!(wrong, ScanError::TooMany { limit: 20, .. }));
    let limits = ScanLimits { path_bytes: 20, ..ScanLimits::default() };
    assert!(matches!(scan(&ScanRequest { limits, ..usual }), Err(ScanError::TooMany { .. })));
    let limits = ScanLimits { depth: 0, ..ScanLimits::default() };
    assert!(matches!(scan(&ScanRequest { limits, ..usual }), Err(ScanError::TooDeep { .. })));
}

#[test]
fn a_bottomless_tree_ends_with_an_answer() {
    let tree = Tree::new();
    let mut at = tree.root.open_self().expect("opened");
    let mode = rustix::fs::Mode::RWXU;
    for _ in 0..300 {
        rustix::fs::mkdirat(&at, "a-name-of-some-length", mode).expect("made");
        at = rustix::fs::openat(&at, "a-name-of-some-length", crate::git::files::root::LIST, mode)
            .expect("opened");
    }
    let rules = tree.rules();
    let empty = crate::git::manifest::snapshot::Snapshot::default();
    let usual = ScanRequest::new(&tree.root, &empty, &rules, None);
    assert_eq!(scan(&usual).expect("scanned").changes.len(), 300);
    let limits = ScanLimits { depth: 100, ..ScanLimits::default() };
    let wrong = scan(&ScanRequest { limits, ..usual }).expect_err("too deep");
    assert!(matches!(wrong, ScanError::TooDeep { limit: 100, .. }));
}

#[test]
fn bytes_are_those_that_were_seen() {
    let tree = Tree::new();
    tree.write("file", vec![b'x'; 300_000]);
    symlink("target\u{ff}", tree.at("link")).expect("linked");
    for name in ["file", "link"] {
        let name = path(name);
        let found = tree.root.stat(&name).expect("stat").expect("stands");
        let mut bytes = Vec::new();
        let raw = raw_id(&tree.root, &name, &found, |piece| bytes.extend(piece)).expect("read");
        assert_eq!(raw.oid, blob_id(&bytes));
        assert_eq!(bytes.len() as u64, found.stat.size);
    }
    let by_git = tree.git(&["hash-object", "--no-filters", "file"]);
    let found = tree.root.stat(&path("file")).expect("stat").expect("stands");
    let raw = raw_id(&tree.root, &path("file"), &found, |_| {}).expect("read");
    assert_eq!(raw.oid.to_string(), by_git.trim());
    // Written while it is read: the first piece triggers it.
    let mut once = Some(std::fs::File::options().append(true).open(tree.at("file")).expect("open"));
    let wrong = raw_id(&tree.root, &path("file"), &found, |_| {
        if let Some(mut file) = once.take() {
            file.write_all(b"more").expect("written");
        }
    });
    assert!(matches!(wrong, Err(ScanError::Unstable { .. })));
    // Another inode of the same size, and nothing at all.
    std::fs::remove_file(tree.at("file")).expect("removed");
    let gone = raw_id(&tree.root, &path("file"), &found, |_| {});
    assert!(matches!(gone, Err(ScanError::Unstable { .. })));
}

/// Run by hand, in a release build: `cargo test --release -- --ignored bench_scan --nocapture`.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stderr)]
fn bench_scan() {
    let mut tree = Tree::new();
    tree.write(".gitignore", "*.log\ntarget/\n*.pyc\n/build\nnode_modules/\n*.tmp\n.env\n");
    for dir in 0..5_000 {
        let dir = format!("top{}/mid{}/dir{dir}", dir % 10, dir % 100);
        std::fs::create_dir_all(tree.at(&dir)).expect("made");
        for file in 0..20 {
            std::fs::write(tree.at(&format!("{dir}/file{file}.txt")), dir.as_bytes())
                .expect("made");
        }
    }
    tree.git(&["add", "-A"]);
    tree.git(&["commit", "-q", "-m", "x"]);
    let time = |what: &str, work: &mut dyn FnMut()| {
        let cpu = || rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let (start, before) = (std::time::Instant::now(), cpu());
        work();
        let used = std::time::Duration::try_from(cpu() - before).expect("forward");
        eprintln!("{what}: {:?}, {used:?} of the processors", start.elapsed());
    };
    time("first base", &mut || drop(tree.establish().expect("a base")));
    wait_for_proof();
    time("base again", &mut || drop(tree.establish().expect("a base")));
    let base = tree.base();
    for _ in 0..3 {
        time("base, nothing changed", &mut || drop(tree.establish().expect("a base")));
        time("load", &mut || drop(tree.manifest.load().expect("loaded")));
        time("scan", &mut || assert!(tree.scan(&base).changes.is_empty()));
    }
    let status = std::fs::read_to_string("/proc/self/status").expect("read");
    eprintln!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
    time("git status", &mut || drop(tree.git(&["status", "--porcelain"])));
    time("git status", &mut || drop(tree.git(&["status", "--porcelain"])));
}
