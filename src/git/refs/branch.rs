//! Branches that a person gets from worktx: discarded work, back under a name of its own.
//!
//! # Limitations
//! libgit2 writes it: no hook runs, and a power cut right after may lose it. The ref that it was
//! made from stays. Whose the repository is has been judged before.

use std::path::Path;

use crate::git::objects::odb::set_up_library;
use crate::tx::id::{Oid, RefName};

/// A branch could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BranchError {
    /// Not a name for a branch.
    #[error("{name:?} is no name for a branch")]
    Name {
        /// The name.
        name: String,
    },
    /// There is one of this name already.
    #[error("there is a branch {name} already")]
    Exists {
        /// The name.
        name: String,
    },
    /// The repository said no: another branch stands in the way, or a file.
    #[error("the branch {name} cannot be made: {}", source.message())]
    Git {
        /// The name.
        name: String,
        /// Why.
        source: git2::Error,
    },
}

/// Makes the branch `name` (without `refs/heads/`) at a commit. An existing one is never moved.
pub fn create(common_dir: &Path, name: &str, commit: Oid) -> Result<RefName, BranchError> {
    let full = format!("refs/heads/{name}");
    if name.starts_with('-') || name == "HEAD" || !git2::Reference::is_valid_name(&full) {
        return Err(BranchError::Name { name: name.to_owned() });
    }
    set_up_library();
    let make = || {
        let flags = git2::RepositoryOpenFlags::NO_SEARCH | git2::RepositoryOpenFlags::NO_DOTGIT;
        let none: [&Path; 0] = [];
        let repository = git2::Repository::open_ext(common_dir, flags, none)?;
        let id = git2::Oid::from_bytes(commit.as_bytes())?;
        repository.reference(&full, id, false, "worktx restore").map(drop)
    };
    match make() {
        Ok(()) => Ok(RefName(full)),
        Err(error) if error.code() == git2::ErrorCode::Exists => {
            Err(BranchError::Exists { name: name.to_owned() })
        }
        Err(source) => Err(BranchError::Git { name: name.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::testkit::Repo;

    #[test]
    fn a_branch_is_made_once_and_by_a_good_name() {
        let repo = Repo::new();
        let id: Oid = repo.commit("a", "x").parse().expect("an id");
        let common = repo.root().join(".git");
        create(&common, "worktx/restored-e-1", id).expect("made");
        assert_eq!(repo.git(&["rev-parse", "worktx/restored-e-1"]), id.to_string());
        let again = create(&common, "worktx/restored-e-1", id);
        assert!(matches!(again, Err(BranchError::Exists { .. })), "{again:?}");
        for bad in ["", "a..b", "-x", "a b", "HEAD", "x.lock"] {
            let made = create(&common, bad, id);
            assert!(matches!(made, Err(BranchError::Name { .. })), "{bad:?} {made:?}");
        }
        let blocked = create(&common, "worktx", id);
        assert!(blocked.is_err(), "{blocked:?}");
        repo.git(&["fsck", "--strict"]);
    }
}
