//! Finding the post-check, keeping its bytes before the turn, and comparing after it.
//!
//! Order: [`capture`] runs before anything of the turn can, and returns only when the copy is
//! durable; its answer is recorded in the same db transaction that opens the attempt. [`recheck`]
//! runs after the writer is proven dead. `.worktx/post-check` is read from the disk: at open the
//! disk equals the base, untracked files included.
//!
//! # Limitations
//! A changed original is noticed by what its name leads to, its bytes, its run bit and its
//! interpreters; what the post-check itself reads or starts (helpers, tests, build files) is not
//! captured: the changed paths are handed to it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::program::{self, Lookup};
use crate::base::durable;
use crate::tx::post_check::{
    Capture, Difference, Interpreter, Origin, PostCheckChoice, Ready, Recheck, Unrunnable,
};

/// The default place in a workspace.
pub const WORKSPACE_PLACE: &str = ".worktx/post-check";
/// The default place in a home directory.
pub const HOME_PLACE: &str = ".trinity/post-check";
/// What runs a command given as words.
pub const SHELL: &str = "/bin/sh";
/// The name of the captured copy in the folder that is given for it.
const COPY: &str = "post-check";

/// Where a post-check is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What the user asked for.
    pub choice: &'a PostCheckChoice,
    /// The root of the work tree, absolute. The post-check runs there.
    pub workspace: &'a Path,
    /// `HOME`, if it is set.
    pub home: Option<&'a Path>,
    /// `PATH` of the environment that the post-check will get.
    pub search_path: &'a OsStr,
}

/// The post-check cannot be captured: exit 1, before the turn.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It was named by flag or configuration and cannot be run.
    #[error("the post-check {} cannot be used: {why}", path.display())]
    Named {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        why: Unrunnable,
    },
    /// A command was given and there is no shell for it.
    #[error("there is no {SHELL} to run the check {words:?}: {why}")]
    NoShell {
        /// The command.
        words: String,
        /// Why not.
        why: Unrunnable,
    },
    /// The copy cannot be written.
    #[error("the post-check cannot be copied to {}", path.display())]
    Copy {
        /// Where to.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Finds the post-check and keeps its bytes in `folder` (made with mode 0700 if it is missing).
///
/// The first of what was named, `.worktx/post-check`, `~/.trinity/post-check`. One that is found
/// at a default place and cannot run ends the search: a broken validator is not stepped over.
pub fn capture(request: &Request<'_>, folder: &Path) -> Result<Capture, CaptureError> {
    match request.choice {
        PostCheckChoice::Off => Ok(Capture::Off),
        PostCheckChoice::Command { words } => command(request, words),
        PostCheckChoice::Path { path } => match load(path, request) {
            Ok(loaded) => keep(loaded, request, path, folder),
            Err(why) => Err(CaptureError::Named { path: path.clone(), why }),
        },
        PostCheckChoice::Default => {
            let home = request.home.filter(|home| home.is_absolute());
            let places =
                [Some(request.workspace.join(WORKSPACE_PLACE)), home.map(|h| h.join(HOME_PLACE))];
            for path in places.into_iter().flatten() {
                if !stands(&path) {
                    continue;
                }
                return match load(&path, request) {
                    Ok(loaded) => keep(loaded, request, &path, folder),
                    Err(why) => Ok(Capture::Misconfigured { path, why }),
                };
            }
            Ok(Capture::Absent)
        }
    }
}

/// Compares what stands there after the turn with what was captured.
///
/// Anything but [`Capture::Ready`] is [`Recheck::Same`]: one that appeared during the turn is not
/// the validator of that turn.
pub fn recheck(capture: &Capture, workspace: &Path) -> Recheck {
    let Capture::Ready(ready) = capture else { return Recheck::Same };
    let lookup = Lookup {
        cwd: workspace,
        search_path: ready.search_path.as_os_str(),
        known: &ready.interpreters,
    };
    let mut what = Vec::new();
    let now = match &ready.origin {
        Origin::Command { .. } => program::program(SHELL, lookup),
        Origin::File { named, resolved } => {
            what.extend(original(named, resolved, &ready.sha256));
            // By the copy: the original may be gone. A copy that cannot be read is no matter of
            // the original; the launch refuses it.
            match ready.captured.as_deref().map(program::read) {
                Some(Ok(copy)) => program::interpreters(&copy.bytes, lookup),
                _ => Ok(ready.interpreters.clone()),
            }
        }
    };
    match now {
        Ok(now) => what.extend(interpreters(&ready.interpreters, &now)),
        Err(Unrunnable::NoInterpreter { named }) => {
            let why = "it is not there or cannot be run".to_owned();
            what.push(Difference::Interpreter { named, why });
        }
        Err(why) => {
            let named = ready.interpreters.first().map_or_else(String::new, |i| i.named.clone());
            what.push(Difference::Interpreter { named, why: why.to_string() });
        }
    }
    if what.is_empty() { Recheck::Same } else { Recheck::Changed { what } }
}

fn original(named: &Path, resolved: &Path, sha256: &str) -> Option<Difference> {
    match program::read(named) {
        Err(why) => Some(Difference::Unrunnable { path: named.to_owned(), why }),
        Ok(now) if now.resolved != resolved => {
            Some(Difference::Elsewhere { named: named.to_owned(), resolved: now.resolved })
        }
        Ok(now) if program::sha256(&now.bytes) != sha256 => {
            Some(Difference::Bytes { path: resolved.to_owned() })
        }
        Ok(_) => None,
    }
}

fn interpreters(then: &[Interpreter], now: &[Interpreter]) -> Option<Difference> {
    let pairs = then.iter().map(Some).chain(std::iter::repeat(None));
    let differs =
        |named: &str, why: String| Some(Difference::Interpreter { named: named.to_owned(), why });
    for (then, now) in pairs.zip(now) {
        let Some(then) = then else {
            return differs(&now.named, format!("{} runs it now", now.path.display()));
        };
        if then.path != now.path {
            return differs(&now.named, format!("it is {} now", now.path.display()));
        }
        if then.sha256 != now.sha256 || (then.sha256.is_empty() && then.stamp != now.stamp) {
            return differs(&now.named, format!("{} has other bytes", now.path.display()));
        }
    }
    then.get(now.len()).and_then(|gone| differs(&gone.named, "it is not used any more".to_owned()))
}

struct Loaded {
    program: program::Program,
    interpreters: Vec<Interpreter>,
}

fn load(path: &Path, request: &Request<'_>) -> Result<Loaded, Unrunnable> {
    let program = program::read(path)?;
    let interpreters = program::interpreters(&program.bytes, lookup(request))?;
    Ok(Loaded { program, interpreters })
}

const fn lookup<'a>(request: &Request<'a>) -> Lookup<'a> {
    Lookup { cwd: request.workspace, search_path: request.search_path, known: &[] }
}

fn keep(
    loaded: Loaded,
    request: &Request<'_>,
    named: &Path,
    folder: &Path,
) -> Result<Capture, CaptureError> {
    let copy = folder.join(COPY);
    durable::create_dir_all(folder, 0o700)
        .and_then(|()| durable::write_file(&copy, &loaded.program.bytes, 0o700))
        .map_err(|source| CaptureError::Copy { path: copy.clone(), source })?;
    let resolved = loaded.program.resolved;
    Ok(Capture::Ready(Ready {
        sha256: program::sha256(&loaded.program.bytes),
        captured: Some(copy),
        interpreters: loaded.interpreters,
        original_dir: resolved.parent().unwrap_or(Path::new("/")).to_owned(),
        origin: Origin::File { named: named.to_owned(), resolved },
        search_path: PathBuf::from(request.search_path),
    }))
}

fn command(request: &Request<'_>, words: &str) -> Result<Capture, CaptureError> {
    let interpreters = program::program(SHELL, lookup(request))
        .map_err(|why| CaptureError::NoShell { words: words.to_owned(), why })?;
    Ok(Capture::Ready(Ready {
        origin: Origin::Command { words: words.to_owned() },
        sha256: program::sha256(OsStr::new(words).as_bytes()),
        captured: None,
        interpreters,
        original_dir: request.workspace.to_owned(),
        search_path: PathBuf::from(request.search_path),
    }))
}

/// Whether anything stands at a path, a link to nothing included. What cannot be told stands.
fn stands(path: &Path) -> bool {
    match std::fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) => {
            !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        }
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
