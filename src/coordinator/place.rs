//! Where worktx keeps what: the layout of the state directory and of its folder in the git
//! directory.
//!
//! ```text
//! <common git directory>/worktx/            the state directory, unless it is set elsewhere
//!     ledger.db                             journal and embedded execution ledger
//!     manifest/<workspace>.db               what was known of each work tree, a cache with proof
//!     manifest/<workspace>.index            a note: how the index looked that agreed with a tree
//!     serve.sock, watch-<workspace>.sock    a server's: for its clients, and for drivers
//!     ledger.db.in-order                    a note: how the ledger looked that was in order
//!     attempts/<execution>/<attempt>/       captured post-check, saved index, outcome before, output,
//!                                           checkout-<n>/ while a post-check runs in one
//!     attempts.sizes                        a note: how much of what was undone each keeps
//!     spill/<execution>-<attempt>/          what was too large to be pinned
//! <git directory>/worktx/                   per work tree, always here
//!     workspace                             the lock; never unlinked
//!     marker                                which ledger the lock's holder writes to
//!     prepared/<execution>-<attempt>/       the files that git's locks are links to
//! <common git directory>/worktx/state-dir   where the state directory is, if elsewhere
//! ```
//!
//! # Limitations
//! A second state directory is noticed by the pointer, not merged.

use std::io;
use std::path::{Path, PathBuf};

use crate::base::{durable, note};
use crate::git::index::known::Noted;
use crate::tx::id::AttemptKey;

/// The mode of every directory of the state: nobody else's business.
pub const PRIVATE_DIR: u32 = 0o700;
/// The mode of every file of the state.
pub const PRIVATE_FILE: u32 = 0o600;

/// A state directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The repository's ledger is elsewhere.
    #[error("the ledger of this repository is in {recorded}, not in {asked}")]
    OtherState {
        /// Where the pointer says.
        recorded: PathBuf,
        /// Where this command would look.
        asked: PathBuf,
    },
    /// It would be changed by the turns that it records.
    #[error("the state directory {0} lies in the work tree")]
    InWorkTree(PathBuf),
    /// It cannot be made or read.
    #[error("the state directory {path} cannot be used")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The places of one workspace.
#[derive(Clone, Debug)]
pub struct Place {
    /// The state directory.
    pub state: PathBuf,
    /// worktx's folder in the git directory of this work tree.
    pub local: PathBuf,
    /// The name of this work tree among those of the repository.
    pub workspace_id: String,
}

impl Place {
    /// Finds the places; makes nothing.
    ///
    /// `wanted` is the state directory that the user asks for, if any.
    pub fn find(
        root: &Path,
        git_dir: &Path,
        common_dir: &Path,
        workspace_id: &str,
        wanted: Option<&Path>,
    ) -> Result<Self, PlaceError> {
        let home = common_dir.join("worktx");
        let pointer = home.join("state-dir");
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| PlaceError::Io { path, source }
        };
        let recorded = match std::fs::read_to_string(&pointer) {
            Ok(text) => Some(PathBuf::from(text.trim_end_matches('\n'))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error(&pointer)(error)),
        };
        let state = match (wanted, recorded) {
            (None, None) => home.clone(),
            (None, Some(recorded)) => recorded,
            (Some(wanted), recorded) => {
                let wanted = std::path::absolute(wanted).map_err(io_error(wanted))?;
                let wanted = wanted.canonicalize().unwrap_or(wanted);
                let other = recorded.unwrap_or_else(|| home.clone());
                let standing = other.join("ledger.db").exists();
                if standing && other != wanted {
                    return Err(PlaceError::OtherState { recorded: other, asked: wanted });
                }
                wanted
            }
        };
        if state != home && state.starts_with(root) && !state.starts_with(common_dir) {
            return Err(PlaceError::InWorkTree(state));
        }
        Ok(Self { state, local: git_dir.join("worktx"), workspace_id: workspace_id.to_owned() })
    }

    /// Makes what is missing, and the pointer where the state is elsewhere.
    pub fn create(&self, common_dir: &Path) -> Result<(), PlaceError> {
        let make = |path: &Path| {
            durable::create_dir_all(path, PRIVATE_DIR)
                .map_err(|source| PlaceError::Io { path: path.to_owned(), source })
        };
        make(&self.state)?;
        make(&self.local)?;
        make(&self.state.join("manifest"))?;
        make(&self.state.join("attempts"))?;
        let home = common_dir.join("worktx");
        if self.state != home {
            make(&home)?;
            let pointer = home.join("state-dir");
            if !pointer.exists() {
                let text = format!("{}\n", self.state.display());
                durable::write_file(&pointer, text.as_bytes(), PRIVATE_FILE)
                    .map_err(|source| PlaceError::Io { path: pointer, source })?;
            }
        }
        Ok(())
    }

    /// The ledger.
    pub fn ledger(&self) -> PathBuf {
        self.state.join("ledger.db")
    }

    /// The manifest of this work tree.
    pub fn manifest(&self) -> PathBuf {
        self.state.join("manifest").join(format!("{}.db", self.workspace_id))
    }

    /// The second name of a large index: of the one of the last attempt.
    pub fn kept_index(&self) -> PathBuf {
        self.state.join("manifest").join(format!("{}.index-kept", self.workspace_id))
    }

    /// What was noted of the index.
    pub fn noted_index(&self) -> Option<Noted> {
        serde_json::from_str(&note::read(&self.index_note())?).ok()
    }

    /// Notes what is known of the index.
    pub fn note_index(&self, noted: &Noted) {
        let said = serde_json::to_string(noted).map_err(std::io::Error::other);
        if let Err(error) = said.and_then(|said| note::write(&self.index_note(), &said)) {
            tracing::debug!(%error, "no note could be made of the index");
        }
    }

    fn index_note(&self) -> PathBuf {
        self.state.join("manifest").join(format!("{}.index", self.workspace_id))
    }

    /// The note of how much each attempt keeps.
    pub fn sizes_note(&self) -> PathBuf {
        self.state.join("attempts.sizes")
    }

    /// The folder of an attempt.
    pub fn attempt(&self, key: &AttemptKey) -> PathBuf {
        self.state.join("attempts").join(key.execution.as_str()).join(key.attempt.to_string())
    }

    /// Where what is too large to be pinned goes.
    pub fn spill(&self, key: &AttemptKey) -> PathBuf {
        self.state.join("spill").join(format!("{}-{}", key.execution, key.attempt))
    }

    /// Where the files lie that git's locks are links to.
    pub fn prepared(&self, key: &AttemptKey) -> PathBuf {
        self.local.join("prepared").join(format!("{}-{}", key.execution, key.attempt))
    }
}

/// The folder at the work-tree root in which new files are made and old ones wait.
pub fn temporary_name(key: &AttemptKey) -> String {
    format!(".worktx-tmp-{}-{}", key.execution, key.attempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_pointer_and_refuses_a_second_state() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("tree");
        let git = root.join(".git");
        let elsewhere = dir.path().join("state");
        std::fs::create_dir_all(&git)?;
        let find = |wanted: Option<&Path>| Place::find(&root, &git, &git, "main", wanted);

        let place = find(Some(&elsewhere)).expect("fits");
        place.create(&git).expect("made");
        std::fs::write(place.ledger(), "")?;
        assert_eq!(find(None).expect("by the pointer").state, place.state);
        let other = dir.path().join("other");
        assert!(matches!(find(Some(&other)), Err(PlaceError::OtherState { .. })));
        assert!(matches!(
            Place::find(&root, &git, &git, "main", Some(&root.join("state"))),
            Err(PlaceError::InWorkTree(_) | PlaceError::OtherState { .. })
        ));
        Ok(())
    }
}
