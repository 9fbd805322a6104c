//! A repository of its own for each test, the real binary, and the judges: `git` and `sqlite3`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The binary under test.
pub const WORKTX: &str = env!("CARGO_BIN_EXE_worktx");

/// A home and a repository that nothing outside can change.
pub struct Repo {
    dir: PathBuf,
    /// Removes the folder at the end, where it is the test's own.
    _temporary: Option<tempfile::TempDir>,
    pub root: PathBuf,
}

/// What a run said.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let code =
            output.status.code().unwrap_or_else(|| -output.status.signal().unwrap_or_default());
        Self {
            code,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The document on stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("no JSON ({e}): {}\n{}", self.stdout, self.stderr))
    }

    /// Ends the test unless the exit code is this.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }
}

impl Repo {
    /// A repository with two committed files and a folder.
    pub fn new() -> Self {
        Self::filled(Self::bare_home())
    }

    /// As [`Repo::new`], in an empty folder that stays.
    pub fn at(dir: &Path) -> Self {
        Self::filled(Self::home_in(dir, None))
    }

    fn filled(repo: Self) -> Self {
        repo.git(&["init", "-q", "-b", "main", "."]);
        repo.first_commit();
        repo
    }

    /// The first commit of every repository here.
    pub fn first_commit(&self) {
        self.write("README.md", "hello\n");
        self.write("src/lib.rs", "fn one() {}\n");
        self.write("src/deep/two.txt", "two\n");
        self.write(".gitignore", "ignored/\n*.log\n");
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", "first"]);
    }

    /// A home and an empty folder.
    pub fn bare_home() -> Self {
        let dir = tempfile::Builder::new().prefix("worktx-it-").tempdir().expect("a folder");
        let path = dir.path().to_owned();
        Self::home_in(&path, Some(dir))
    }

    fn home_in(dir: &Path, temporary: Option<tempfile::TempDir>) -> Self {
        let dir = dir.canonicalize().expect("there");
        let root = dir.join("repo");
        fs::create_dir_all(&root).expect("a folder");
        fs::create_dir_all(dir.join("home")).expect("a folder");
        fs::write(
            dir.join("home/.gitconfig"),
            "[user]\n\tname = Test\n\temail = test@example.org\n[init]\n\tdefaultBranch = main\n[gc]\n\tauto = 0\n[safe]\n\tdirectory = *\n",
        )
        .expect("written");
        Self { dir, _temporary: temporary, root }
    }

    pub fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    /// A folder beside the repository.
    pub fn outside(&self) -> PathBuf {
        self.dir.clone()
    }

    /// Writes the user's configuration file.
    pub fn settings(&self, text: &str) {
        let config = self.home().join(".config/worktx/config.toml");
        fs::create_dir_all(config.parent().expect("has one")).expect("a folder");
        fs::write(config, text).expect("written");
    }

    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    pub fn write(&self, relative: &str, text: impl AsRef<[u8]>) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().expect("has one")).expect("a folder");
        fs::write(path, text).expect("written");
    }

    pub fn read(&self, relative: &str) -> String {
        fs::read_to_string(self.path(relative)).expect("readable")
    }

    pub fn script(&self, relative: &str, text: &str) -> PathBuf {
        let path =
            if relative.starts_with('/') { PathBuf::from(relative) } else { self.path(relative) };
        fs::create_dir_all(path.parent().expect("has one")).expect("a folder");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        path
    }

    /// A program in the tests' own environment.
    pub fn command(&self, program: &str) -> Command {
        self.hermetic(program)
    }

    fn hermetic(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home())
            .env("LC_ALL", "C.UTF-8")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", self.home().join(".gitconfig"))
            .stdin(Stdio::null())
            .current_dir(&self.root);
        command
    }

    /// A command of worktx, to be changed and run.
    pub fn worktx(&self, args: &[&str]) -> Command {
        let mut command = self.hermetic(WORKTX);
        command.args(args);
        command
    }

    /// `worktx run --json [OPTIONS] -- sh -c SCRIPT`
    pub fn run(&self, options: &[&str], script: &str) -> Ran {
        self.finish(&mut self.run_command(options, script))
    }

    pub fn run_command(&self, options: &[&str], script: &str) -> Command {
        let mut command = self.worktx(&["run", "--json"]);
        command.args(options).args(["--", "sh", "-c", script]);
        command
    }

    pub fn finish(&self, command: &mut Command) -> Ran {
        Ran::of(command.output().expect("it starts"))
    }

    pub fn call(&self, args: &[&str]) -> Ran {
        self.finish(&mut self.worktx(args))
    }

    pub fn spawn(&self, command: &mut Command) -> std::process::Child {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
    }

    pub fn wait(child: std::process::Child) -> Ran {
        Ran::of(child.wait_with_output().expect("it ends"))
    }

    /// What git says; the test ends if it fails.
    #[track_caller]
    pub fn git(&self, args: &[&str]) -> String {
        self.git_in(&self.root, args)
    }

    #[track_caller]
    pub fn git_in(&self, dir: &Path, args: &[&str]) -> String {
        let output = self.hermetic("git").args(args).current_dir(dir).output().expect("git starts");
        let ran = Ran::of(output);
        assert_eq!(ran.code, 0, "git {args:?}: {}{}", ran.stdout, ran.stderr);
        ran.stdout.trim_end_matches('\n').to_owned()
    }

    pub fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    pub fn status(&self) -> String {
        self.git(&["status", "--porcelain"])
    }

    /// What `git add -A` and `git write-tree` would make of the tree, by an index of its own.
    pub fn tree_by_git(&self) -> String {
        let index = self.outside().join("judge-index");
        let _ = fs::remove_file(&index);
        let run = |args: &[&str]| {
            let output = self
                .hermetic("git")
                .args(args)
                .env("GIT_INDEX_FILE", &index)
                .output()
                .expect("git starts");
            let ran = Ran::of(output);
            assert_eq!(ran.code, 0, "git {args:?}: {}", ran.stderr);
            ran.stdout.trim().to_owned()
        };
        run(&["read-tree", "HEAD"]);
        run(&["add", "-A"]);
        run(&["write-tree"])
    }

    /// The git directory, also where `.git` is a file that names it.
    pub fn git_dir(&self) -> PathBuf {
        let own = self.root.join(".git");
        match fs::read_to_string(&own) {
            Ok(text) => PathBuf::from(text.trim_start_matches("gitdir: ").trim_end()),
            Err(_) => own,
        }
    }

    /// The repository is sound.
    #[track_caller]
    pub fn fsck(&self) {
        let output = self
            .hermetic("git")
            .args(["fsck", "--strict", "--no-dangling"])
            .output()
            .expect("git starts");
        let ran = Ran::of(output);
        assert_eq!(ran.code, 0, "fsck: {}{}", ran.stdout, ran.stderr);
        for word in ["error", "missing", "broken", "corrupt"] {
            assert!(!ran.stderr.contains(word) && !ran.stdout.contains(word), "{}", ran.stderr);
        }
    }

    /// Whether there is a ledger: `sqlite3` would make one.
    pub fn has_ledger(&self) -> bool {
        self.path(".git/worktx/ledger.db").exists()
    }

    /// A question to the ledger, by sqlite3.
    #[track_caller]
    pub fn sql(&self, query: &str) -> String {
        let home = self.git_dir().join("worktx");
        let state = fs::read_to_string(home.join("state-dir"))
            .map_or(home, |text| PathBuf::from(text.trim_end()));
        let ledger = state.join("ledger.db");
        let output =
            self.hermetic("sqlite3").arg(&ledger).arg(query).output().expect("sqlite3 starts");
        let ran = Ran::of(output);
        assert_eq!(ran.code, 0, "{query}: {}", ran.stderr);
        ran.stdout.trim_end().to_owned()
    }

    /// The cgroups that the ledger names, and that are there.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
        let mount = mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let fields: Vec<&str> = left.split(' ').collect();
            (right.starts_with("cgroup2 ") && fields[3] == "/").then(|| PathBuf::from(fields[4]))
        });
        let Some(mount) = mount.filter(|_| self.has_ledger()) else { return Vec::new() };
        let named = self.sql(
            "select distinct value from attempt, json_tree(data) where key = 'cgroup' and value is not null",
        );
        let paths = named.lines().map(|path| mount.join(path.trim_start_matches('/')));
        paths.filter(|path| path.exists()).collect()
    }

    /// Everything below the root but `.git`: kind, mode and bytes by path.
    pub fn listing(&self) -> BTreeMap<String, String> {
        listing(&self.root)
    }

    /// The refs that worktx keeps.
    pub fn own_refs(&self) -> Vec<String> {
        self.git(&["for-each-ref", "--format=%(refname)", "refs/worktx", "refs/trinity"])
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

/// Everything below `root` but `.git`: kind, mode and bytes by path.
pub fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for path in entries.map(|e| e.expect("readable").path()) {
            let relative = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
            if relative == ".git" {
                continue;
            }
            let meta = fs::symlink_metadata(&path).expect("there");
            let mode = meta.mode() & 0o7777;
            let what = if meta.is_symlink() {
                format!("link {}", fs::read_link(&path).expect("a link").display())
            } else if meta.is_dir() {
                todo.push(path.clone());
                format!("dir {mode:o}")
            } else if meta.is_file() && meta.len() > 1 << 30 {
                format!("file {mode:o} of {} bytes", meta.len())
            } else if meta.is_file() {
                let bytes = fs::read(&path).expect("readable");
                format!("file {mode:o} {}", String::from_utf8_lossy(&bytes))
            } else {
                format!("special {:o}", meta.mode())
            };
            all.insert(relative, what);
        }
    }
    all
}

/// A FIFO by which a turn and a test wait for each other without sleeping.
pub struct Gate {
    path: PathBuf,
}

impl Gate {
    pub fn new(repo: &Repo, name: &str) -> Self {
        let path = repo.outside().join(name);
        let status = Command::new("mkfifo").arg(&path).status().expect("mkfifo starts");
        assert!(status.success());
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until somebody writes into it, and gives what they wrote.
    pub fn wait(&self) -> String {
        fs::read_to_string(&self.path).expect("readable")
    }

    /// Lets whoever reads it go on.
    pub fn open(&self) {
        let mut file = fs::OpenOptions::new().write(true).open(&self.path).expect("opened");
        file.write_all(b"go\n").expect("written");
    }
}

/// A search path on which hooks find the binary under test.
pub fn path_with_worktx() -> String {
    let bin = Path::new(WORKTX).parent().expect("has one");
    format!("{}:{}", bin.display(), std::env::var("PATH").expect("set"))
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a program is there.
pub fn has(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|dir| dir.join(OsStr::new(program)).exists())
    })
}
