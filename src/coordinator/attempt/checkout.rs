//! `[post_check] view = "checkout"`: where the post-check runs instead of the live tree.
//!
//! A scratch folder in the attempt's folder holds the candidate's files as git would check them
//! out, with a `.git` of its own. It is made before every run, and removed at its end with
//! whatever the post-check wrote into it.
//!
//! ```text
//! attempts/<execution>/<attempt>/checkout-<n>/      0700
//!     <name of the work tree>/                      where the post-check runs
//! ```
//!
//! Order rules: made before the post-check's processes are recorded, removed after they are proven
//! dead; known by its name alone, so that reconcile and gc find what a crash has left. What cannot
//! be removed stays under its number, and the next one gets another.
//!
//! # Limitations
//! The files are those of the commit: nothing that git ignores or does not track is there. By
//! default the state lies in `.git`, so that a tool which passes over everything beneath a folder
//! of that name finds nothing.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crate::base::fault::{self, Point};
use crate::base::rmtree::remove_tree;
use crate::coordinator::attempt::drive::{Driver, Stop, chain};
use crate::coordinator::place::PRIVATE_DIR;
use crate::coordinator::session::Session;
use crate::git::checkout::scratch::{self, ScratchError};
use crate::git::checkout::{self, CheckoutError, Rules};
use crate::git::config::gitconfig::GitConfig;
use crate::git::objects::store::StoreError;
use crate::hook::{PostCheckDecision, Ready};
use crate::process;
use crate::tx::cause::{Cause, QuarantineReason};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;
use crate::tx::settings::View;
use crate::tx::state::{PostCheckRecord, Seal, TxState};

/// What the names of the scratch folders begin with.
const PREFIX: &str = "checkout-";
/// How many that cannot be removed may lie there.
const MOST_LEFT: u32 = 100;
/// How many paths a warning names.
const TOLD: usize = 10;

/// A checkout could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    /// The scratch folder.
    #[error("cannot make a folder in {}: {source}", path.display())]
    Folder {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The commit.
    #[error(transparent)]
    Commit(#[from] StoreError),
    /// The files.
    #[error(transparent)]
    Files(#[from] CheckoutError),
    /// Its repository.
    #[error(transparent)]
    Repository(#[from] ScratchError),
}

/// A checkout that stands.
#[derive(Debug)]
pub(super) struct Made {
    /// Where the files are.
    pub(super) root: PathBuf,
    /// What asks for a conversion that was not done, and for which.
    pub(super) raw: Vec<(RepoPath, String)>,
}

/// Writes a commit into a new scratch folder beneath `folder`. What an earlier one left goes
/// first; a checkout that could not be finished goes too.
pub(super) fn make(
    session: &Session,
    git: &GitConfig,
    own_prefix: &str,
    folder: &Path,
    commit: Oid,
) -> Result<Made, MakeError> {
    for (path, error) in sweep(folder) {
        tracing::warn!(path = %path.display(), %error, "an earlier checkout stays");
    }
    let scratch = new_folder(folder)
        .map_err(|source| MakeError::Folder { path: folder.to_owned(), source })?;
    let name = session.workspace.root().file_name().unwrap_or(OsStr::new("workspace"));
    let root = scratch.join(name);
    let made = fill(session, git, own_prefix, &root, commit);
    if made.is_err()
        && let Err(error) = remove_tree(&scratch)
    {
        tracing::warn!(path = %scratch.display(), %error, "a part of a checkout stays");
    }
    made
}

fn fill(
    session: &Session,
    git: &GitConfig,
    own_prefix: &str,
    root: &Path,
    commit: Oid,
) -> Result<Made, MakeError> {
    std::fs::create_dir(root)
        .map_err(|source| MakeError::Folder { path: root.to_owned(), source })?;
    let tree = session.store.commit(commit)?.tree;
    let written = checkout::write(&session.store, tree, root, &Rules::captured(git))?;
    fault::point(Point::CheckoutWritten);
    let source = scratch::Source {
        store: &session.store,
        refs: &session.refs,
        common_dir: session.workspace.common_dir(),
        git,
        own_prefix,
    };
    scratch::make(root, commit, tree, &written, &source)?;
    Ok(Made { root: root.to_owned(), raw: written.raw })
}

fn new_folder(folder: &Path) -> io::Result<PathBuf> {
    let mut number = 1;
    loop {
        let path = folder.join(format!("{PREFIX}{number}"));
        match std::fs::DirBuilder::new().mode(PRIVATE_DIR).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < MOST_LEFT => {
                number += 1;
            }
            made => return made.map(|()| path),
        }
    }
}

/// Removes the scratch folders of an attempt, and says which stay, and why.
pub(in crate::coordinator) fn sweep(folder: &Path) -> Vec<(PathBuf, io::Error)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let is_ours = |name: &OsStr| {
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        number.is_some_and(|n| n.parse::<u32>().is_ok())
    };
    entries
        .flatten()
        .filter(|entry| is_ours(&entry.file_name()))
        .filter_map(|entry| remove_tree(&entry.path()).err().map(|error| (entry.path(), error)))
        .collect()
}

impl Driver<'_> {
    /// Runs the captured copy on what it is to see. `Err` is a cause that is not its own.
    pub(super) fn run_on_view(
        &mut self,
        seal: &Seal,
        ready: &Ready,
        record: &mut PostCheckRecord,
    ) -> Result<Result<PostCheckDecision, Cause>, Stop> {
        if self.spec.settings.post_check.view == View::Tree {
            let root = self.session.workspace.root().to_owned();
            return self.run_post_check(seal, ready, record, &root);
        }
        let prefix = &self.spec.settings.ref_prefix;
        let folder = self.session.place.attempt(&self.key);
        let made = make(self.session, &self.spec.git, prefix, &folder, seal.candidate);
        let made = made.map_err(|error| {
            let why = format!("the checkout cannot be written: {}", chain(&error));
            Stop::Quarantine(QuarantineReason::PostCheckUnstartable { why })
        })?;
        if let Some(message) = told(&made.raw) {
            self.record.warn("checkout_unconverted", message);
        }
        let ran = self.run_post_check(seal, ready, record, &made.root);
        // Without a proof of their death its processes may be in there still.
        if !matches!(ran, Err(Stop::Quarantine(QuarantineReason::WriterUnproven))) {
            self.drop_checkouts();
        }
        ran
    }

    /// Removes what a crash has left: cgroups and checkouts. Not before the writer is proven dead:
    /// somebody may be in there, and an empty cgroup proves less than one that is gone.
    pub(in crate::coordinator) fn drop_scratch(&mut self) {
        let reason = match self.state() {
            TxState::Quarantined { reason, .. } => Some(reason),
            _ => None,
        };
        if reason != Some(&QuarantineReason::WriterUnproven) {
            process::sweep_cgroups(&self.session.place.attempt(&self.key));
            self.drop_checkouts();
        }
    }

    /// Removes what checkouts this attempt has; its processes are dead.
    pub(super) fn drop_checkouts(&mut self) {
        for (path, error) in sweep(&self.session.place.attempt(&self.key)) {
            self.record.warn(
                "checkout_left",
                format!("the checkout {} cannot be removed: {error}", path.display()),
            );
        }
    }
}

/// What was written as it is stored, for a warning.
fn told(raw: &[(RepoPath, String)]) -> Option<String> {
    use std::fmt::Write as _;
    let ((first, what), more) = raw.split_first()?;
    let mut out = format!("in the checkout {first} is as it is stored, without {what}");
    for (path, what) in more.iter().take(TOLD) {
        let _ = write!(out, "; {path} without {what}");
    }
    if more.len() > TOLD {
        let _ = write!(out, "; {} more", more.len() - TOLD);
    }
    Some(out)
}
