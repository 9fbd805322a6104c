//! Finds a program as `execvp` would, so that a typo is an error before anything happens.
//!
//! # Limitations
//! Between this look and the start the file may change; the start then fails by itself.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};

/// What `execvp` searches where there is no `PATH` (glibc's default, without the directory `.`).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// There is nothing to execute.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramNotFound {
    /// No file of this name on `PATH`.
    #[error("command not found: {}", name.display())]
    NotOnPath {
        /// What was asked for.
        name: OsString,
    },
    /// The path names nothing.
    #[error("no such file: {}", path.display())]
    NoSuchFile {
        /// The path, absolute.
        path: PathBuf,
    },
    /// There is a file or directory of this name, and it cannot be executed.
    #[error("not executable: {}", path.display())]
    NotExecutable {
        /// The first that was found.
        path: PathBuf,
    },
}

/// Finds what `argv0` names for a command that starts in `cwd` with this `PATH`.
///
/// A name with a slash is a path, relative to `cwd`; an empty part of `PATH` is `cwd`, as POSIX
/// has it.
pub fn find_program(
    argv0: &OsStr,
    cwd: &Path,
    path: Option<&OsStr>,
) -> Result<PathBuf, ProgramNotFound> {
    let not_found = || ProgramNotFound::NotOnPath { name: argv0.to_owned() };
    if argv0.is_empty() {
        return Err(not_found());
    }
    if argv0.as_bytes().contains(&b'/') {
        let program = cwd.join(argv0);
        return match judge(&program) {
            Judged::Runs => Ok(program),
            Judged::Stands => Err(ProgramNotFound::NotExecutable { path: program }),
            Judged::Nothing => Err(ProgramNotFound::NoSuchFile { path: program }),
        };
    }
    let mut refused = None;
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    for part in path.as_bytes().split(|byte| *byte == b':') {
        let program = cwd.join(OsStr::from_bytes(part)).join(argv0);
        match judge(&program) {
            Judged::Runs => return Ok(program),
            Judged::Stands => _ = refused.get_or_insert(program),
            Judged::Nothing => {}
        }
    }
    Err(refused.map_or_else(not_found, |path| ProgramNotFound::NotExecutable { path }))
}

enum Judged {
    Runs,
    Stands,
    Nothing,
}

fn judge(program: &Path) -> Judged {
    match std::fs::metadata(program) {
        Ok(meta) if meta.is_file() => {
            // By the effective ids, as exec does.
            match accessat(CWD, program, Access::EXEC_OK, AtFlags::EACCESS) {
                Ok(()) => Judged::Runs,
                Err(_) => Judged::Stands,
            }
        }
        // A directory on PATH is passed over by execvp; as a path it is refused.
        Ok(_) => Judged::Stands,
        Err(_) => Judged::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn finds_as_execvp_does() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name);
        for (name, mode) in [("one/tool", 0o644), ("two/tool", 0o755), ("one/plain", 0o644)] {
            fs::create_dir_all(at(name).parent().expect("has one"))?;
            fs::write(at(name), "#!/bin/sh\n")?;
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode))?;
        }
        let find = |name: &str, path: &str| {
            find_program(OsStr::new(name), dir.path(), Some(OsStr::new(path)))
        };
        assert_eq!(find("tool", "one:two"), Ok(at("two/tool")));
        assert_eq!(find("./two/tool", ""), Ok(at("./two/tool")));
        assert_eq!(find("sh", "one:/bin"), Ok(PathBuf::from("/bin/sh")));
        let path = at("one/plain");
        assert_eq!(find("plain", "two:one"), Err(ProgramNotFound::NotExecutable { path }));
        assert_eq!(
            find("nowhere", "one"),
            Err(ProgramNotFound::NotOnPath { name: "nowhere".into() })
        );
        let path = at("./nowhere");
        assert_eq!(find("./nowhere", "two"), Err(ProgramNotFound::NoSuchFile { path }));
        assert!(matches!(find("./one", ""), Err(ProgramNotFound::NotExecutable { .. })));
        assert!(find("", "one").is_err());
        // An empty part is the directory of the command.
        fs::copy(at("two/tool"), at("here"))?;
        assert_eq!(find("here", "one::two"), Ok(at("here")));
        Ok(())
    }
}
