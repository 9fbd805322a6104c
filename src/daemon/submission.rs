//! What was submitted, on disk: one folder an execution, in the state directory.
//!
//! ```text
//! submitted/<execution>/request.json    what was asked for
//!                       stdin           its standard input
//!                       started         a driver was about to be started
//!                       driver.lock     held by the driver, by an inherited handle, as long as it lives
//!                       driver.json     who the driver is: what a later server may signal
//!                       cancelled       a driver was told to cancel it before it had an attempt
//!                       stdout, stderr  what command and driver said
//!                       outcome.json    the outcome document, by the driver
//!                       finished.json   the driver is over
//! ```
//!
//! Order rule: a folder comes and goes as a whole, by a rename; it is durable before the request is
//! answered. The lock is held before the driver exists and goes with its last handle, so that a
//! server which was killed in between leaves no doubt whether there is one.
//!
//! # Limitations
//! The output of a command is kept whole; its size is the command's own business.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::documents::Submission;
use crate::base::durable;
use crate::coordinator::attempt::outcome::Outcome;
use crate::coordinator::place::{PRIVATE_DIR, PRIVATE_FILE};
use crate::journal::Owner;
use crate::tx::id::ExecutionId;

/// How many finished submissions are kept.
const KEPT: usize = 500;

const REQUEST: &str = "request.json";
const STDIN: &str = "stdin";
const LOCK: &str = "driver.lock";
const OUTCOME: &str = "outcome.json";
const FINISHED: &str = "finished.json";
const STARTED: &str = "started";
const DRIVER: &str = "driver.json";
const CANCELLED: &str = "cancelled";
/// How the names of folders begin that are being made and removed.
const NEW: &str = ".new-";
const GONE: &str = ".gone-";

/// What is written down when a driver is over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Finished {
    /// Its exit code; `None` where no server saw it.
    pub(super) exit_code: Option<u8>,
    /// When, RFC 3339.
    pub(super) at: String,
}

/// The request as it is kept: with its workspace, whatever was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// The name of the work tree among those of its repository: it stays when that is moved.
    pub(super) workspace: String,
    /// The root of the work tree, where it stood then.
    pub(super) root: PathBuf,
    /// What was asked for, without its standard input.
    pub(super) request: Submission,
    /// The digest of its standard input, in hexadecimal.
    pub(super) stdin: Option<String>,
    /// The number of the last attempt that there was before.
    pub(super) attempt_before: u32,
    /// When, RFC 3339.
    pub(super) at: String,
}

impl Kept {
    /// Whether another request asks for the same. A claim has a new token each time it comes.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let without = |kept: &Self| Submission { claim_token: None, ..kept.request.clone() };
        let of = |kept: &Self| (kept.workspace.clone(), kept.stdin.clone(), without(kept));
        of(self) == of(other)
    }
}

/// The folder of one submission.
#[derive(Clone, Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn of(state: &Path, id: &ExecutionId) -> Self {
        Self(state.join("submitted").join(id.as_str()))
    }

    /// All of a state directory, with their names.
    pub(super) fn all(state: &Path) -> Vec<(ExecutionId, Self)> {
        let entries = fs::read_dir(state.join("submitted")).into_iter().flatten().flatten();
        let named = entries.filter_map(|entry| {
            let id: ExecutionId = entry.file_name().to_str()?.parse().ok()?;
            Some((id, Self(entry.path())))
        });
        named.collect()
    }

    /// What was asked for; `None` where nothing was, wholly.
    pub(super) fn kept(&self) -> io::Result<Option<Kept>> {
        match fs::read(self.0.join(REQUEST)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps a request, durably, in the place of what an earlier try of it left.
    pub(super) fn keep(&self, kept: &Kept, stdin: Option<&str>) -> io::Result<()> {
        let all = self.0.parent().ok_or(io::ErrorKind::InvalidInput)?;
        durable::create_dir_all(all, PRIVATE_DIR)?;
        let new = self.beside(NEW);
        remove_if_there(&new)?;
        durable::create_dir_all(&new, PRIVATE_DIR)?;
        if let Some(text) = stdin {
            durable::write_file(&new.join(STDIN), text.as_bytes(), PRIVATE_FILE)?;
        }
        durable::write_file(&new.join(REQUEST), &serde_json::to_vec(kept)?, PRIVATE_FILE)?;
        self.forget()?;
        fs::rename(&new, &self.0)?;
        durable::sync_dir(all)
    }

    /// Keeps another claim of the same request.
    pub(super) fn renew(&self, kept: &Kept) -> io::Result<()> {
        durable::write_file(&self.0.join(REQUEST), &serde_json::to_vec(kept)?, PRIVATE_FILE)
    }

    /// Removes all of it: at one stroke for whoever looks for submissions.
    fn forget(&self) -> io::Result<()> {
        let gone = self.beside(GONE);
        remove_if_there(&gone)?;
        match fs::rename(&self.0, &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => fs::remove_dir_all(&gone),
        }
    }

    /// A folder beside this one, with a name that no execution has.
    fn beside(&self, what: &str) -> PathBuf {
        let mut name = std::ffi::OsString::from(what);
        name.push(self.0.file_name().unwrap_or_default());
        self.0.with_file_name(name)
    }

    /// Writes down, durably, that a driver is about to be started.
    pub(super) fn start(&self) -> io::Result<()> {
        durable::write_file(&self.0.join(STARTED), b"", PRIVATE_FILE)
    }

    /// Whether a driver was about to be started.
    pub(super) fn was_started(&self) -> bool {
        self.0.join(STARTED).exists()
    }

    /// Takes back what was written down for a driver that did nothing, and what it said.
    pub(super) fn set_back(&self) -> io::Result<()> {
        // The outcome last: as long as it is there, it says that nothing ran.
        for name in [STARTED, OUTCOME] {
            match durable::remove_file(&self.0.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes down, durably, that a driver is about to be told of a cancel.
    pub(super) fn cancel(&self) -> io::Result<()> {
        durable::write_file(&self.0.join(CANCELLED), b"", PRIVATE_FILE)
    }

    /// Whether a driver was about to be told of a cancel.
    pub(super) fn was_cancelled(&self) -> bool {
        self.0.join(CANCELLED).exists()
    }

    /// Writes down who the driver is. It means something within one boot only: it is not synced.
    pub(super) fn note_driver(&self, driver: &Owner) -> io::Result<()> {
        let mut file = private().create(true).truncate(true).open(self.0.join(DRIVER))?;
        file.write_all(&serde_json::to_vec(driver)?)
    }

    /// Who the last driver is or was.
    pub(super) fn driver(&self) -> Option<Owner> {
        serde_json::from_slice(&fs::read(self.0.join(DRIVER)).ok()?).ok()
    }

    /// The lock for a driver; `None` where one lives.
    pub(super) fn try_lock(&self) -> io::Result<Option<File>> {
        let file = self.open_lock()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Waits until no driver lives.
    pub(super) fn wait(&self) -> io::Result<()> {
        self.open_lock()?.lock()
    }

    fn open_lock(&self) -> io::Result<File> {
        private().read(true).create(true).truncate(false).open(self.0.join(LOCK))
    }

    /// What the command reads.
    pub(super) fn input(&self) -> io::Result<File> {
        match File::open(self.0.join(STDIN)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => File::open("/dev/null"),
            opened => opened,
        }
    }

    /// Empty files for what is said.
    pub(super) fn outputs(&self) -> io::Result<(File, File)> {
        let open = |name| private().create(true).truncate(true).open(self.0.join(name));
        Ok((open("stdout")?, open("stderr")?))
    }

    /// The file of what was said: `stdout` or `stderr`.
    pub(super) fn output(&self, stream: &str) -> PathBuf {
        self.0.join(stream)
    }

    /// Where the driver puts the outcome.
    pub(super) fn outcome_file(&self) -> PathBuf {
        self.0.join(OUTCOME)
    }

    /// Leaves an outcome in the driver's stead.
    pub(super) fn leave_outcome(&self, outcome: &Outcome) -> io::Result<()> {
        durable::write_file(
            &self.outcome_file(),
            &serde_json::to_vec_pretty(outcome)?,
            PRIVATE_FILE,
        )
    }

    /// The outcome that the driver left.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        serde_json::from_slice(&fs::read(self.outcome_file()).ok()?).ok()
    }

    /// Whether the driver is over, and how.
    pub(super) fn finished(&self) -> Option<Finished> {
        serde_json::from_slice(&fs::read(self.0.join(FINISHED)).ok()?).ok()
    }

    /// Writes down that the driver is over.
    pub(super) fn finish(&self, finished: &Finished) -> io::Result<()> {
        durable::write_file(&self.0.join(FINISHED), &serde_json::to_vec(finished)?, PRIVATE_FILE)
    }
}

fn remove_if_there(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Removes what a killed server left half made or half removed.
pub(super) fn tidy(state: &Path) {
    let entries = fs::read_dir(state.join("submitted")).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        if [NEW, GONE].iter().any(|what| name.as_encoded_bytes().starts_with(what.as_bytes()))
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, folder = %entry.path().display(), "a leftover stays");
        }
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(PRIVATE_FILE);
    options
}

/// Removes the oldest finished submissions beyond [`KEPT`]; what cannot be removed stays.
pub(super) fn forget_old(state: &Path) {
    let all = Folder::all(state);
    if all.len() <= KEPT {
        return;
    }
    let mut finished: Vec<(String, Folder)> =
        all.into_iter().filter_map(|(_, folder)| Some((folder.finished()?.at, folder))).collect();
    finished.sort_by(|a, b| b.0.cmp(&a.0));
    for (_, folder) in finished.into_iter().skip(KEPT) {
        if let Err(error) = folder.forget() {
            tracing::warn!(%error, folder = %folder.0.display(), "a finished submission stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(command: &str) -> Kept {
        let request = Submission { command: vec![command.to_owned()], ..Submission::default() };
        Kept {
            workspace: "main".to_owned(),
            root: PathBuf::from("/tree"),
            request,
            stdin: None,
            attempt_before: 0,
            at: String::new(),
        }
    }

    #[test]
    fn a_request_takes_the_place_of_an_earlier_one_as_a_whole() -> io::Result<()> {
        let state = tempfile::tempdir()?;
        let id: ExecutionId = "one".parse().expect("an id");
        let folder = Folder::of(state.path(), &id);
        assert!(folder.kept()?.is_none() && folder.finished().is_none());
        folder.keep(&kept("a"), Some("input"))?;
        folder.start()?;
        folder.finish(&Finished { exit_code: Some(10), at: "2026-01-01T00:00:00Z".to_owned() })?;
        assert_eq!(folder.finished().and_then(|f| f.exit_code), Some(10));
        assert_eq!(io::read_to_string(folder.input()?)?, "input");
        folder.keep(&kept("b"), None)?;
        assert_eq!(folder.kept()?, Some(kept("b")));
        assert!(folder.finished().is_none() && !folder.was_started());
        assert_eq!(io::read_to_string(folder.input()?)?, "", "the input went with its request");
        // What a kill left beside it is no submission, and goes.
        fs::create_dir(state.path().join("submitted/.new-two"))?;
        fs::create_dir(state.path().join("submitted/.gone-three"))?;
        let found: Vec<_> = Folder::all(state.path()).into_iter().map(|(id, _)| id).collect();
        assert_eq!(found, [id]);
        tidy(state.path());
        assert_eq!(fs::read_dir(state.path().join("submitted"))?.count(), 1);
        Ok(())
    }

    #[test]
    fn a_new_claim_is_the_same_request() {
        let claim = |token: &str| {
            let mut one = kept("a");
            one.request.claim_token = Some(token.to_owned());
            one
        };
        assert!(claim("x").is_same(&claim("y")) && !claim("x").is_same(&kept("b")));
        let moved = Kept { root: PathBuf::from("/elsewhere"), ..kept("a") };
        let linked = Kept { workspace: "wt-side".to_owned(), ..kept("a") };
        assert!(kept("a").is_same(&moved) && !kept("a").is_same(&linked));
    }

    #[test]
    fn a_driver_is_known_by_its_lock() -> io::Result<()> {
        let state = tempfile::tempdir()?;
        let folder = Folder::of(state.path(), &"one".parse().expect("an id"));
        folder.keep(&kept("a"), None)?;
        let held = folder.try_lock()?;
        assert!(held.is_some() && folder.try_lock()?.is_none());
        drop(held);
        assert!(folder.try_lock()?.is_some());
        Ok(())
    }

    #[test]
    fn the_oldest_finished_go() -> io::Result<()> {
        let state = tempfile::tempdir()?;
        for n in 0..KEPT + 2 {
            let id = format!("e{n:04}").parse().expect("an id");
            let folder = Folder::of(state.path(), &id);
            fs::create_dir_all(&folder.0)?;
            let text = format!("{{\"exit_code\":0,\"at\":\"{n:06}\"}}");
            fs::write(folder.0.join(FINISHED), text)?;
        }
        let waiting = Folder::of(state.path(), &"waits".parse().expect("an id"));
        waiting.keep(&kept("a"), None)?;
        forget_old(state.path());
        let mut left: Vec<_> =
            Folder::all(state.path()).into_iter().map(|(id, _)| id.to_string()).collect();
        left.sort();
        assert_eq!((left.len(), left[0].as_str()), (KEPT + 1, "e0002"));
        assert!(left.contains(&"waits".to_owned()));
        Ok(())
    }
}
