//! What the captured copy is started with: its words, its environment, the file of changed paths.
//!
//! Order: [`write_changed_files`] first, then [`command`], which reads the copy once more and
//! refuses one that is not what was captured: a turn with the same user id can write into the
//! state directory.
//!
//! # Limitations
//! Between that look and the start somebody with the same user id could still change the copy; by
//! then the writer is proven dead, so it is not the turn.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::capture::SHELL;
use super::program;
use crate::base::durable;
use crate::tx::id::{AttemptKey, Oid};
use crate::tx::post_check::{Origin, Ready};

/// Variables of the caller that begin with `WORKTX_` and are handed on: where the ledger is, and
/// which profile. Every other one is dropped, so that what a post-check reads is never forged.
const KEPT: [&str; 2] = ["WORKTX_STATE_DIR", "WORKTX_PROFILE"];

/// What a post-check is told of.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The environment that `worktx run` was started with.
    pub environment: &'a [(OsString, OsString)],
    /// Which attempt.
    pub key: &'a AttemptKey,
    /// Where it runs: the work tree, or the checkout of the candidate.
    pub workspace: &'a Path,
    /// The root of the work tree.
    pub repository: &'a Path,
    /// The commit that the attempt started from.
    pub base: Oid,
    /// The commit that it decides over.
    pub candidate: Oid,
    /// The file made by [`write_changed_files`].
    pub changed_files: &'a Path,
}

/// How to start it. stdin is `/dev/null`, both outputs are the caller's to collect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Program (absolute) and arguments.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The directory.
    pub cwd: PathBuf,
}

/// The captured copy cannot be used: quarantine (`Ran::Unstartable`).
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It is gone, or cannot be read or run.
    #[error("the captured post-check {} cannot be used: {why}", path.display())]
    Unusable {
        /// The copy.
        path: PathBuf,
        /// Why not.
        why: crate::tx::post_check::Unrunnable,
    },
    /// It has other bytes.
    #[error("the captured post-check {} is not what was captured", path.display())]
    Damaged {
        /// The copy.
        path: PathBuf,
    },
}

/// How to start the captured copy, or the command.
pub fn command(ready: &Ready, facts: &Facts<'_>) -> Result<Launch, LaunchError> {
    let argv = match (&ready.origin, &ready.captured) {
        (Origin::Command { words }, _) => vec![SHELL.into(), "-c".into(), words.into()],
        (Origin::File { named, .. }, None) => {
            return Err(LaunchError::Damaged { path: named.clone() });
        }
        (Origin::File { .. }, Some(copy)) => {
            let read = program::read(copy)
                .map_err(|why| LaunchError::Unusable { path: copy.clone(), why })?;
            if program::sha256(&read.bytes) != ready.sha256 {
                return Err(LaunchError::Damaged { path: copy.clone() });
            }
            vec![copy.clone().into_os_string()]
        }
    };
    let environment = environment(ready, facts);
    Ok(Launch { argv, environment, cwd: facts.workspace.to_owned() })
}

fn environment(ready: &Ready, facts: &Facts<'_>) -> Vec<(OsString, OsString)> {
    let execution = facts.key.execution.as_str();
    // In a checkout git is not to find another repository where that one's is gone.
    let ceiling = facts.workspace.parent().filter(|_| facts.workspace != facts.repository);
    // A command has no folder of its own.
    let original_dir = match ready.origin {
        Origin::Command { .. } => facts.workspace,
        Origin::File { .. } => &ready.original_dir,
    };
    let given = [
        ("WORKTX_EXECUTION_ID", execution.into()),
        ("WORKTX_ATTEMPT", facts.key.attempt.to_string().into()),
        ("WORKTX_WORKSPACE", facts.workspace.into()),
        ("WORKTX_REPOSITORY", facts.repository.into()),
        ("WORKTX_BASE", facts.base.to_string().into()),
        ("WORKTX_CANDIDATE", facts.candidate.to_string().into()),
        ("WORKTX_CHANGED_FILES", facts.changed_files.into()),
        ("WORKTX_POST_CHECK_DIR", original_dir.into()),
        ("TRINITY_EXECUTION_ID", execution.into()),
        // A `git status` of the post-check must not rewrite the index that the seal has seen.
        ("GIT_OPTIONAL_LOCKS", "0".into()),
    ];
    let mut environment: Vec<_> = facts
        .environment
        .iter()
        .filter(|(name, _)| is_handed_on(name) && !given.iter().any(|(own, _)| name == own))
        .cloned()
        .collect();
    environment.extend(given.into_iter().map(|(name, value)| (name.into(), value)));
    environment.extend(ceiling.map(|path| ("GIT_CEILING_DIRECTORIES".into(), path.into())));
    environment
}

fn is_handed_on(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.starts_with(b"GIT_")
        && (!bytes.starts_with(b"WORKTX_") || KEPT.iter().any(|kept| name == *kept))
}

/// Writes the file of `WORKTX_CHANGED_FILES`: every path that the candidate adds, modifies or
/// deletes, relative to the root, each followed by a NUL.
///
/// Not synced: it is made anew before every run.
pub fn write_changed_files<'a>(
    path: &Path,
    changed: impl IntoIterator<Item = &'a [u8]>,
) -> io::Result<()> {
    let mut file = BufWriter::new(durable::create(path, 0o600)?);
    for name in changed {
        file.write_all(name)?;
        file.write_all(b"\0")?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tx::id::AttemptNo;

    fn ready(origin: Origin, captured: Option<PathBuf>, sha256: String) -> Ready {
        Ready {
            origin,
            sha256,
            captured,
            interpreters: Vec::new(),
            original_dir: PathBuf::from("/home/x/.trinity"),
            search_path: PathBuf::from("/bin"),
        }
    }

    fn launch(ready: &Ready, environment: &[(OsString, OsString)]) -> Result<Launch, LaunchError> {
        let key = AttemptKey { execution: "job-7".parse().expect("valid"), attempt: AttemptNo(3) };
        let facts = Facts {
            environment,
            key: &key,
            workspace: Path::new("/ws"),
            repository: Path::new("/ws"),
            base: Oid::ZERO,
            candidate: Oid::EMPTY_TREE,
            changed_files: Path::new("/state/changed"),
        };
        command(ready, &facts)
    }

    #[test]
    fn what_the_caller_forged_is_not_handed_on() {
        let command = Origin::Command { words: "npm test".to_owned() };
        let caller: Vec<(OsString, OsString)> = [
            ("PATH", "/bin"),
            ("GIT_DIR", "/elsewhere"),
            ("GIT_OPTIONAL_LOCKS", "1"),
            ("WORKTX_CANDIDATE", "forged"),
            ("WORKTX_PREVIOUS", "forged"),
            ("WORKTX_STATE_DIR", "/state"),
            ("TRINITY_EXECUTION_ID", "forged"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .to_vec();
        let launch = launch(&ready(command, None, String::new()), &caller).expect("a command");
        assert_eq!(launch.argv, ["/bin/sh", "-c", "npm test"]);
        let mut lines: Vec<String> = launch
            .environment
            .iter()
            .map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect();
        lines.sort();
        let expected = [
            "GIT_OPTIONAL_LOCKS=0".to_owned(),
            "PATH=/bin".to_owned(),
            "TRINITY_EXECUTION_ID=job-7".to_owned(),
            "WORKTX_ATTEMPT=3".to_owned(),
            format!("WORKTX_BASE={}", Oid::ZERO),
            format!("WORKTX_CANDIDATE={}", Oid::EMPTY_TREE),
            "WORKTX_CHANGED_FILES=/state/changed".to_owned(),
            "WORKTX_EXECUTION_ID=job-7".to_owned(),
            "WORKTX_POST_CHECK_DIR=/ws".to_owned(),
            "WORKTX_REPOSITORY=/ws".to_owned(),
            "WORKTX_STATE_DIR=/state".to_owned(),
            "WORKTX_WORKSPACE=/ws".to_owned(),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_copy_that_somebody_wrote_into_is_refused() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let copy = dir.path().join("post-check");
        durable::write_file(&copy, b"#!/bin/sh\nexit 1\n", 0o700)?;
        let origin = Origin::File { named: PathBuf::from("/x"), resolved: PathBuf::from("/x") };
        let digest = program::sha256(b"#!/bin/sh\nexit 1\n");
        let ready = ready(origin, Some(copy.clone()), digest);
        assert_eq!(launch(&ready, &[]).expect("untouched").argv, [copy.as_os_str()]);
        durable::write_file(&copy, b"#!/bin/sh\nexit 0\n", 0o700)?;
        assert!(matches!(launch(&ready, &[]), Err(LaunchError::Damaged { .. })));
        std::fs::remove_file(&copy)?;
        assert!(matches!(launch(&ready, &[]), Err(LaunchError::Unusable { .. })));
        Ok(())
    }

    #[test]
    fn changed_files_are_read_by_xargs() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("changed");
        write_changed_files(&path, [b"a b".as_slice(), b"c\nd", b"\xff"])?;
        assert_eq!(std::fs::read(&path)?, b"a b\0c\nd\0\xff\0");
        Ok(())
    }
}
