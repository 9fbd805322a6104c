//! Repositories for tests, made and judged by the real git.
//!
//! # Limitations
//! Tests only.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A fresh repository in a folder of its own; gone when dropped.
pub(crate) struct Repo {
    dir: tempfile::TempDir,
    root: PathBuf,
}

impl Repo {
    /// An empty repository, branch `main`.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().canonicalize().expect("canonical").join("repo");
        std::fs::create_dir(&root).expect("made");
        let repo = Self { dir, root };
        repo.git(&["init", "-q", "-b", "main"]);
        repo
    }

    /// The root of the work tree.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Its git directory.
    pub(crate) fn git_dir(&self) -> PathBuf {
        self.root.join(".git")
    }

    /// A home without anything in it.
    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// A `git` with a hermetic environment, in `dir`.
    pub(crate) fn command(&self, dir: &Path) -> Command {
        let mut command = Command::new("git");
        command.current_dir(dir).env_clear().envs([
            ("PATH", std::env::var("PATH").expect("set").as_str()),
            ("HOME", self.home().to_str().expect("text")),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_EDITOR", "true"),
            ("GIT_AUTHOR_NAME", "A"),
            ("GIT_AUTHOR_EMAIL", "a@example.com"),
            ("GIT_COMMITTER_NAME", "C"),
            ("GIT_COMMITTER_EMAIL", "c@example.com"),
        ]);
        command
    }

    /// Runs git in the root; it must succeed. Its output without the last line feed.
    pub(crate) fn git(&self, args: &[&str]) -> String {
        text(&self.command(&self.root).args(args).output().expect("git runs"), args)
    }

    /// Runs git in the root and says whether it succeeded.
    pub(crate) fn try_git(&self, args: &[&str]) -> bool {
        self.command(&self.root).args(args).output().expect("git runs").status.success()
    }

    /// Writes a file and commits it; the commit's id.
    pub(crate) fn commit(&self, path: &str, content: &str) -> String {
        self.write(path, content);
        self.git(&["add", "-f", path]);
        self.git(&["commit", "-qm", path]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Writes a file below the root.
    pub(crate) fn write(&self, path: &str, content: &str) {
        let path = self.root.join(path);
        std::fs::create_dir_all(path.parent().expect("has one")).expect("made");
        std::fs::write(path, content).expect("written");
    }
}

/// The output of a command that must have succeeded.
pub(crate) fn text(out: &Output, what: &[&str]) -> String {
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "git {what:?}: {error}");
    String::from_utf8(out.stdout.clone()).expect("text").trim_end_matches('\n').to_owned()
}
