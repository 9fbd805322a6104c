//! A repository with everything that git does not store, and the three laws that hold after any
//! crash. The judges are `git` and `sqlite3` alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;

use crate::support::{Gate, Ran, Repo, has, is_root, listing};

/// The execution that most tests run.
pub const JOB: &[&str] = &["--execution-id", "job"];

/// What a turn that succeeds does: every kind of change.
pub const WORK: &str = "echo new > new.txt; echo more >> README.md; rm src/deep/two.txt; \
                        mkdir -p made/dir; echo in > made/dir/in; ln -sf src link; chmod 644 script.sh";

/// What a turn that fails does: as above, and what git cannot store.
pub const WRECK: &str = "echo new > new.txt; echo more >> README.md; rm -rf src empty; \
                         mkdir -p made/dir; echo in > made/dir/in; ln -sf /etc link; chmod 644 script.sh; \
                         mkfifo pipe; echo changed > notes.txt; rm dangling; mkdir dangling; \
                         echo deep > dangling/deep; echo blob > src; chmod 755 secret.txt; exit 3";

/// A turn that waits in the middle while the test does something.
pub struct Midway {
    pub ready: Gate,
    pub go: Gate,
}

impl Midway {
    pub fn new(lab: &Lab) -> Self {
        Self::named(&lab.repo, "")
    }

    /// One of several.
    pub fn named(repo: &Repo, name: &str) -> Self {
        let gate = |what: &str| Gate::new(repo, &format!("{what}{name}"));
        Self { ready: gate("ready"), go: gate("go") }
    }

    /// What the turn does there.
    pub fn words(&self) -> String {
        format!(
            "echo > {}; cat {} > /dev/null",
            self.ready.path().display(),
            self.go.path().display()
        )
    }

    /// While the turn waits, the test does something.
    pub fn meanwhile<T>(&self, what: impl FnOnce() -> T) -> T {
        self.ready.wait();
        let done = what();
        self.go.open();
        done
    }
}

/// A mount that goes with the test.
pub struct Mounted(String);

impl Mounted {
    /// Mounts something, or says in `Err` why the test is to be skipped.
    pub fn new(repo: &Repo, args: &[&str], at: &Path) -> Result<Self, String> {
        if !is_root() {
            return Err("mounting needs root".to_owned());
        }
        let ran = repo.finish(repo.command("mount").args(args).arg(at).current_dir("/"));
        if ran.code != 0 {
            return Err(format!("mount {args:?} does not work: {}", ran.stderr));
        }
        Ok(Self(at.display().to_string()))
    }

    /// One that somebody else made.
    pub fn by_others(at: &Path) -> Self {
        Self(at.display().to_string())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["-l", &self.0]).status();
    }
}

/// A file or folder that nobody can change, until this is dropped.
pub struct Immutable(std::path::PathBuf);

impl Immutable {
    /// `Err` says why the test is to be skipped.
    pub fn new(path: &Path) -> Result<Self, String> {
        if !is_root() || !has("chattr") {
            return Err("an immutable file needs root and chattr".to_owned());
        }
        let set = std::process::Command::new("chattr").arg("+i").arg(path).output();
        match set {
            Ok(output) if output.status.success() => Ok(Self(path.to_owned())),
            _ => Err(format!("the file system of {} knows no immutable files", path.display())),
        }
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _ = std::process::Command::new("chattr").arg("-i").arg(&self.0).status();
    }
}

/// A repository, what stood in it, and what must never be lost.
pub struct Lab {
    pub repo: Repo,
    pub base: String,
    pub before: BTreeMap<String, String>,
    /// Bytes, and the blob that they are.
    held: Vec<(Vec<u8>, String)>,
    held_at_first: usize,
}

/// Everything that a second reconcile must not change.
#[derive(Debug, PartialEq, Eq)]
pub struct Picture {
    refs: String,
    head: String,
    index: String,
    tree: BTreeMap<String, String>,
    stats: BTreeMap<String, (u64, i64)>,
    ledger: String,
}

impl Picture {
    /// Nothing differs, but inode and time of what lies at or beneath `restored`.
    #[track_caller]
    pub fn is_but_for(&self, after: &Self, restored: &[&str]) {
        assert_eq!((&self.head, &self.index, &self.tree), (&after.head, &after.index, &after.tree));
        for (path, stat) in &self.stats {
            let within = restored.iter().any(|r| {
                path.strip_prefix(r)
                    .is_some_and(|rest| matches!(rest.as_bytes().first(), None | Some(b'/')))
            });
            assert!(within || after.stats.get(path) == Some(stat), "{path} was touched");
        }
    }
}

impl Lab {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(more: impl FnOnce(&Repo)) -> Self {
        Self::on(Repo::new(), more)
    }

    /// In a repository that is there.
    pub fn on(repo: Repo, more: impl FnOnce(&Repo)) -> Self {
        let lab = Self::of(repo, more);
        // An execution that is done: asked for again it runs nothing, but reconciles first.
        lab.repo.run(&["--execution-id", "probe", "--no-post-check"], "true").exits(0);
        lab
    }

    /// The repository is filled; no command of worktx has met it.
    pub fn of(repo: Repo, more: impl FnOnce(&Repo)) -> Self {
        repo.write("script.sh", "#!/bin/sh\n");
        repo.write("secret.txt", "0600\n");
        fs::set_permissions(repo.path("script.sh"), fs::Permissions::from_mode(0o755))
            .expect("set");
        symlink("README.md", repo.path("link")).expect("made");
        repo.git(&["add", "-A"]);
        repo.git(&["commit", "-qm", "second"]);
        fs::set_permissions(repo.path("secret.txt"), fs::Permissions::from_mode(0o600))
            .expect("set");
        repo.write("notes.txt", "mine, untracked\n");
        symlink("/nowhere/at/all", repo.path("dangling")).expect("made");
        fs::create_dir_all(repo.path("empty/inner")).expect("made");
        repo.write("ignored/cache", "cached\n");
        more(&repo);
        let mut lab = Self {
            base: repo.head(),
            before: repo.listing(),
            held: Vec::new(),
            held_at_first: 0,
            repo,
        };
        lab.hold_tree();
        lab.held_at_first = lab.held.len();
        lab
    }

    /// With the user's own settings.
    pub fn with_settings(settings: &str) -> Self {
        Self::with(|repo| repo.settings(settings))
    }

    /// What is in scope now must never be lost.
    pub fn hold_tree(&mut self) {
        for path in self.before.keys() {
            let full = self.repo.path(path);
            if fs::symlink_metadata(&full).is_ok_and(|m| m.is_file())
                && !path.starts_with("ignored/")
            {
                let bytes = fs::read(full).expect("readable");
                self.held.push((bytes.clone(), self.blob_id(&bytes)));
            }
        }
    }

    /// These bytes must never be lost.
    pub fn hold(&mut self, bytes: &str) {
        self.held.push((bytes.as_bytes().to_vec(), self.blob_id(bytes.as_bytes())));
    }

    /// Forgets what was held since the lab was made.
    pub fn forget_held(&mut self) {
        self.held.truncate(self.held_at_first);
    }

    /// A run that ends at a fault point.
    #[track_caller]
    pub fn killed_at(&self, point: &str, options: &[&str], script: &str) {
        let mut command = self.repo.run_command(options, script);
        let ran = self.repo.finish(command.env("WORKTX_FAULT", point));
        assert_eq!(ran.code, -9, "{point} was not met: {}\n{}", ran.stdout, ran.stderr);
    }

    /// Settles what a crash left behind.
    #[track_caller]
    pub fn reconcile(&self) -> Ran {
        self.repo.finish(&mut self.reconcile_command()).exits(0)
    }

    pub fn reconcile_command(&self) -> std::process::Command {
        self.repo.run_command(&["--execution-id", "probe", "--wait", "60s"], "touch never")
    }

    /// State and reason of an attempt.
    #[track_caller]
    pub fn state(&self, execution: &str, attempt: u32) -> (String, String) {
        let row = self.repo.sql(&format!(
            "select state, coalesce(json_extract(outcome, '$.reason'), '') from attempt \
             where execution_id = '{execution}' and attempt = {attempt}"
        ));
        let (state, reason) = row.split_once('|').expect("there is such an attempt");
        (state.to_owned(), reason.to_owned())
    }

    /// What stands in the row.
    pub fn status_of(&self, execution: &str) -> String {
        self.repo.sql(&format!("select status from execution where execution_id = '{execution}'"))
    }

    pub fn picture(&self) -> Picture {
        let repo = &self.repo;
        let tree = repo.listing();
        let stats = tree
            .keys()
            .map(|path| {
                let meta = fs::symlink_metadata(repo.path(path)).expect("there");
                (path.clone(), (meta.ino(), meta.ctime_nsec()))
            })
            .collect();
        Picture {
            refs: repo.git(&["for-each-ref", "--format=%(refname) %(objectname)"]),
            head: fs::read_to_string(repo.git_dir().join("HEAD")).expect("readable"),
            index: repo.git(&["ls-files", "-s", "-v"]),
            tree,
            stats,
            ledger: repo.sql("select execution_id, attempt, state, data from attempt order by 1, 2; \
                              select execution_id, status, current_attempt, success_attempt, success_candidate, error from execution order by 1"),
        }
    }

    /// L1, L2 and L3, after a reconcile.
    #[track_caller]
    pub fn laws(&self) {
        self.l1_nothing_lost();
        self.l2_never_blessed();
        self.l3_no_limbo();
    }

    #[track_caller]
    pub fn l1_nothing_lost(&self) {
        let repo = &self.repo;
        repo.fsck();
        let reachable: BTreeSet<String> = repo
            .git(&["rev-list", "--objects", "--no-object-names", "--all"])
            .lines()
            .map(str::to_owned)
            .collect();
        let on_disk = listing_bytes(&repo.root)
            .into_iter()
            .chain(listing_bytes(&repo.git_dir().join("worktx/spill")))
            .collect::<BTreeSet<_>>();
        for (bytes, id) in &self.held {
            assert!(
                reachable.contains(id) || on_disk.contains(bytes),
                "lost: {:?}",
                String::from_utf8_lossy(bytes)
            );
        }
        let refs = repo.git(&["for-each-ref", "--format=%(objectname) %(refname)"]);
        assert!(!refs.lines().any(|line| line.ends_with(".lock")), "{refs}");
        let ids: Vec<&str> = refs.lines().map(|line| &line[..40]).collect();
        let found = self.fed(&["cat-file", "--batch-check"], ids.join("\n").as_bytes());
        assert!(!found.contains("missing"), "{refs}\n{found}");
    }

    #[track_caller]
    pub fn l2_never_blessed(&self) {
        let repo = &self.repo;
        let wins = repo.sql(
            "select e.execution_id, e.success_candidate, a.state from execution e join attempt a \
             on a.execution_id = e.execution_id and a.attempt = e.success_attempt \
             where e.status = 'success'",
        );
        let log =
            repo.git(&["log", "--format=%H %(trailers:key=Worktx-Execution,valueonly,separator=)"]);
        let on_branch: Vec<(&str, &str)> =
            log.lines().filter_map(|line| line.split_once(' ')).collect();
        for win in wins.lines() {
            let [_, candidate, state] = win.split('|').collect::<Vec<_>>()[..] else {
                panic!("{win}")
            };
            let contained = on_branch.iter().any(|(id, _)| *id == candidate);
            assert!(contained || state == "quarantined", "{win}");
        }
        let winners: BTreeSet<&str> = wins.lines().filter_map(|w| w.split('|').next()).collect();
        let mut seen = BTreeSet::new();
        for (_, execution) in on_branch.iter().filter(|(_, execution)| !execution.trim().is_empty())
        {
            let execution = execution.trim();
            assert!(seen.insert(execution), "{execution} has more than one commit");
            assert!(winners.contains(execution), "{execution} is on the branch and not won");
        }
    }

    #[track_caller]
    pub fn l3_no_limbo(&self) {
        let repo = &self.repo;
        let limbo = repo.sql(
            "select execution_id, attempt, state from attempt where settled_at is null and \
             not (state = 'quarantined' and coalesce(json_extract(outcome, '$.reason'), '') <> '')",
        );
        assert_eq!(limbo, "", "in limbo");
        let before = self.picture();
        self.repo.call(&["reconcile", "--json"]).exits(0);
        assert_eq!(self.picture(), before, "a second reconcile changed something");
        if repo.sql("select count(*) from attempt where settled_at is null") == "0" {
            self.nothing_is_left_over();
        }
    }

    /// No lock, no temporary folder, no cgroup, no checkout, no marker of unsettled work.
    #[track_caller]
    pub fn nothing_is_left_over(&self) {
        assert!(self.repo.cgroups().is_empty(), "{:?}", self.repo.cgroups());
        assert!(!self.repo.git_dir().join("worktx-marker").exists(), "the marker");
        let tree = self.repo.listing();
        let temporary: Vec<_> = tree.keys().filter(|p| p.starts_with(".worktx-tmp")).collect();
        assert!(temporary.is_empty(), "{temporary:?}");
        // An empty folder, where a disk did not let go of it, locks nothing: gc takes it along.
        let locks: Vec<_> = listing(&self.repo.git_dir())
            .into_iter()
            .filter(|(path, what)| {
                path.ends_with(".lock")
                    || (path.starts_with("worktx/prepared/") && !what.starts_with("dir"))
                    || path.starts_with("worktx/attempts/") && path.contains("/checkout-")
            })
            .collect();
        assert!(locks.is_empty(), "{locks:?}");
    }

    /// The tree is what it was, but for what is ignored; the branch too.
    #[track_caller]
    pub fn as_before(&self) {
        assert_eq!(self.repo.listing(), self.before);
        assert_eq!(self.repo.head(), self.base);
    }

    fn blob_id(&self, bytes: &[u8]) -> String {
        self.fed(&["hash-object", "--no-filters", "--stdin"], bytes).trim().to_owned()
    }

    /// What git says to this input.
    fn fed(&self, args: &[&str], input: &[u8]) -> String {
        let mut git = self.repo.command("git");
        let mut child = git
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("git starts");
        child.stdin.take().expect("piped").write_all(input).expect("written");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "git {args:?}");
        String::from_utf8(output.stdout).expect("text")
    }
}

/// The bytes of every file below `root` but `.git`.
fn listing_bytes(root: &Path) -> Vec<Vec<u8>> {
    let mut todo = vec![root.to_owned()];
    let mut all = Vec::new();
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for path in entries.map(|e| e.expect("readable").path()) {
            if path.file_name().is_some_and(|name| name == ".git") {
                continue;
            }
            let meta = fs::symlink_metadata(&path).expect("there");
            if meta.is_dir() {
                todo.push(path);
            } else if meta.is_file() && meta.len() < 1 << 20 {
                all.push(fs::read(path).expect("readable"));
            }
        }
    }
    all
}
