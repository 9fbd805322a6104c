//! Reading, writing, refs, locks, index and promotion, judged by the `git` binary.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod index_tests;
mod kill_tests;
mod locks_tests;
mod pack_tests;
mod promote_tests;
mod reading_tests;
mod refs_tests;
mod tree_tests;

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::git::objects::store::Store;
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;

/// A repository with one commit: `a`, `dir/b`, `dir/sub/c`.
pub(super) struct Repo {
    _temp: Option<tempfile::TempDir>,
    pub(super) root: PathBuf,
}

impl Repo {
    pub(super) fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("repo");
        std::fs::create_dir(&root).unwrap();
        let repo = Self { _temp: Some(temp), root };
        repo.git(["init", "-q", "-b", "main"]);
        repo.write("a", "one\n");
        repo.write("dir/b", "two\n");
        repo.write("dir/sub/c", "three\n");
        repo.commit("first");
        repo
    }

    /// One that somebody else made, and takes away.
    pub(super) const fn at(root: PathBuf) -> Self {
        Self { _temp: None, root }
    }

    /// The same again, elsewhere.
    pub(super) fn copy(&self) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("repo");
        let status = Command::new("cp").arg("-a").arg(&self.root).arg(&root).status().unwrap();
        assert!(status.success());
        Self { _temp: Some(temp), root }
    }

    pub(super) fn git_dir(&self) -> PathBuf {
        self.root.join(".git")
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(super) fn commit(&self, message: &str) -> Oid {
        self.git(["add", "-A"]);
        self.git(["commit", "-q", "--allow-empty", "-m", message]);
        self.id("HEAD")
    }

    pub(super) fn id(&self, name: &str) -> Oid {
        self.git(["rev-parse", name]).trim().parse().unwrap()
    }

    pub(super) fn store(&self) -> Store {
        Store::open(&self.git_dir()).unwrap()
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("git");
        for (key, _) in
            std::env::vars_os().filter(|(k, _)| k.as_encoded_bytes().starts_with(b"GIT_"))
        {
            command.env_remove(key);
        }
        for (key, value) in [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_AUTHOR_NAME", "A U Thor"),
            ("GIT_AUTHOR_EMAIL", "author@example.com"),
            ("GIT_COMMITTER_NAME", "C O Mitter"),
            ("GIT_COMMITTER_EMAIL", "committer@example.com"),
            ("GIT_AUTHOR_DATE", "1700000000 +0130"),
            ("GIT_COMMITTER_DATE", "1700000000 -0800"),
            ("LC_ALL", "C"),
        ] {
            command.env(key, value);
        }
        command.current_dir(&self.root);
        command
    }

    pub(super) fn git<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        self.git_with(args, b"")
    }

    pub(super) fn git_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &[u8],
    ) -> String {
        let (ok, out) = self.try_git(args, input);
        assert!(ok, "{out}");
        out
    }

    pub(super) fn try_git<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &[u8],
    ) -> (bool, String) {
        let mut command = self.command();
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let out = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let errors = String::from_utf8_lossy(&out.stderr);
        if out.status.success() { (true, text) } else { (false, format!("{text}{errors}")) }
    }

    /// git finds nothing wrong.
    pub(super) fn fsck(&self) {
        let (ok, out) = self.try_git(["fsck", "--strict", "--no-dangling"], b"");
        assert!(ok && !out.contains("error") && !out.contains("warning"), "{out}");
    }
}

pub(super) fn path(text: &str) -> RepoPath {
    RepoPath::new(text).unwrap()
}

/// What [`sweep`] gave to the victim; `None` where the test is run by hand.
pub(super) fn sweep_case<T: serde::de::DeserializeOwned>() -> Option<T> {
    std::env::var("WORKTX_TEST_CASE").ok().map(|case| serde_json::from_str(&case).unwrap())
}

/// Runs the ignored test `victim` of this folder on copies of a repository, killed before its
/// n-th call of each system call that changes names or syncs, for n from 1 until it gets through;
/// after each, `after` says what must hold (it is told whether there was a kill). How many kills
/// there were; `None` where nothing can be traced.
pub(super) fn sweep<T: serde::Serialize>(
    victim: &str,
    template: &Repo,
    case: &dyn Fn(&Path) -> T,
    after: &dyn Fn(&Repo, bool),
) -> Option<u32> {
    let mut killed = 0;
    for call in ["linkat", "renameat", "/^rename$", "unlinkat", "/^unlink$", "fsync", "mkdirat"] {
        for n in 1.. {
            let repo = template.copy();
            let case = serde_json::to_string(&case(&repo.root)).unwrap();
            let status = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"])
                .arg(format!("inject={call}:signal=KILL:when={n}"))
                .arg(std::env::current_exe().unwrap())
                .args([&format!("git::tests::{victim}"), "--exact", "--ignored", "-q"])
                .env("WORKTX_TEST_CASE", case)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            let Ok(status) = status else {
                eprintln!("SKIPPED: there is no strace");
                return None;
            };
            if status.success() {
                after(&repo, false);
                break;
            }
            if status.signal() != Some(9) && status.code() != Some(137) {
                eprintln!("SKIPPED: strace may not trace here ({status})");
                return None;
            }
            killed += 1;
            after(&repo, true);
        }
    }
    Some(killed)
}
