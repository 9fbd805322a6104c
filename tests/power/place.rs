//! One folder with a home and a repository: programs run in it, and a crash state put into it.
//!
//! # Limitations
//! Inode numbers and times of a state that was put in place are new. The lab's own folder keeps
//! its inode.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::model::{Id, Image, Kind};
use crate::support::WORKTX;

/// The folder, with `home` and `repo` in it.
#[derive(Clone, Debug)]
pub struct Place {
    pub root: PathBuf,
}

/// What a program said.
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    pub fn repo(&self) -> PathBuf {
        self.root.join("repo")
    }

    /// A program in an environment that nothing outside changes.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.root.join("home"))
            .env("LC_ALL", "C.UTF-8")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", self.root.join("home/.gitconfig"))
            .stdin(Stdio::null())
            .current_dir(self.repo());
        command
    }

    pub fn worktx(&self, args: &[&str]) -> Command {
        let mut command = self.command(WORKTX);
        command.args(args);
        command
    }

    pub fn git(&self, args: &[&str]) -> Said {
        run(self.command("git").args(args))
    }

    /// A question to a ledger, by sqlite3.
    pub fn sql(&self, ledger: &Path, query: &str) -> Said {
        run(self.command("sqlite3").arg(ledger).arg(query))
    }

    pub fn ledger(&self) -> PathBuf {
        self.repo().join(".git/worktx/ledger.db")
    }

    /// Empties the folder and puts a state in its place.
    pub fn become_image(&self, image: &Image) -> io::Result<()> {
        self.clear()?;
        let mut first: HashMap<Id, PathBuf> = HashMap::new();
        for entry in &image.entries {
            let path = self.root.join(Path::new(std::ffi::OsStr::from_bytes(&entry.path)));
            if entry.path.is_empty() {
                continue;
            }
            if let Some(other) = first.get(&entry.id) {
                fs::hard_link(other, &path)?;
                continue;
            }
            match &entry.kind {
                Kind::Dir => fs::create_dir(&path)?,
                Kind::File => {
                    let bytes = entry.bytes.as_ref().expect("a file has bytes");
                    fs::File::create(&path)?.write_all(bytes)?;
                    fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode))?;
                }
                Kind::Link(target) => symlink(std::ffi::OsStr::from_bytes(target), &path)?,
                Kind::Special(mode) => {
                    let kind = rustix::fs::FileType::from_raw_mode(*mode);
                    let rights = rustix::fs::Mode::from_raw_mode(entry.mode);
                    rustix::fs::mknodat(rustix::fs::CWD, &path, kind, rights, 0)?;
                }
            }
            first.insert(entry.id, path);
        }
        // Last: a directory may be closed to its own owner. Deepest first.
        for entry in image.entries.iter().rev().filter(|entry| entry.kind == Kind::Dir) {
            let path = self.root.join(Path::new(std::ffi::OsStr::from_bytes(&entry.path)));
            fs::set_permissions(path, fs::Permissions::from_mode(entry.mode))?;
        }
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        for path in fs::read_dir(&self.root)?.map(|entry| entry.map(|entry| entry.path())) {
            let path = path?;
            if fs::symlink_metadata(&path)?.is_dir() {
                fs::remove_dir_all(&path)?;
            } else {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Said {
    use std::os::unix::process::ExitStatusExt as _;
    let output = command.output().expect("it starts");
    let code = output.status.code().unwrap_or_else(|| -output.status.signal().unwrap_or_default());
    Said {
        code,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
