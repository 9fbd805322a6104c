//! The index as it was at open, kept for the way back.
//!
//! git never writes into an index that is in place, so that a second name of the file keeps it, at no
//! cost, however large it is. Should somebody write into it all the same, what was kept is not what
//! was found; then, and only where the base's tree says all that it meant, it is made anew from that.
//! One that means more (flags of `git update-index`) is kept as a copy.
//!
//! # Limitations
//! One that was made anew says nothing of times and sizes: git compares the files at its next look.

use std::fs::File;
use std::io;
use std::path::Path;

use super::base::FoundIndex;
use super::drive::{Driver, Stop, chain};
use super::error::Failure;
use super::session::Session;
use super::spec::AttemptSpec;
use crate::base::hex::hex;
use crate::git::index::{Index, IndexError, Meaning};
use crate::git::index_known::{self, IndexDigest, Trailer};
use crate::git::index_splice;
use crate::tx::id::{AttemptKey, Oid};
use crate::tx::path::RepoPath;

/// The name in the attempt's folder.
pub(super) const NAME: &str = "index.base";

/// An index that was made for a promotion.
#[derive(Clone, Copy, Debug)]
pub struct NewIndex {
    /// Of its bytes.
    pub digest: IndexDigest,
    /// Its last bytes.
    pub trailer: Trailer,
    /// What it means.
    pub meaning: Meaning,
    /// A tree says all of it.
    pub is_plain: bool,
}

impl Driver<'_> {
    /// Notes how the index looks at the end of an attempt, for the next one, where it is known that
    /// it has what the tree has.
    pub(super) fn note_index(&self, tree: Oid) -> Result<(), Failure> {
        let git_dir = self.session.workspace.git_dir();
        let of_base = tree == self.spec.base_tree;
        let (digest, meaning, is_plain) = match self.live.new_index {
            Some(NewIndex { digest, meaning, is_plain, .. }) => (digest, meaning, is_plain),
            // It is the one that was found at open.
            None => match self.session.place.noted_index().filter(|noted| noted.tree == tree) {
                Some(noted) if of_base => (noted.digest, noted.meaning, noted.is_plain),
                _ => return Ok(()),
            },
        };
        let list = RepoPath::new(".gitmodules").map_err(Failure::bug)?;
        if !of_base && self.session.store.lookup(tree, &list)?.is_some() {
            return Ok(());
        }
        let boot_id = &self.spec.boot_id;
        if index_known::digest_now(git_dir)? == Some(digest)
            && let Some(noted) =
                index_known::to_note(git_dir, boot_id, digest, meaning, tree, is_plain)
            && self.session.place.noted_index().as_ref() != Some(&noted)
        {
            self.session.place.note_index(&noted);
        }
        Ok(())
    }
}

impl NewIndex {
    /// What is to be known of the bytes.
    pub(super) fn of(bytes: &[u8]) -> Result<Self, IndexError> {
        let (digest, trailer) = (index_known::digest(bytes), index_known::trailer(bytes));
        let (meaning, is_plain) = if let Some(meaning) = index_splice::meaning(bytes) {
            (meaning, true)
        } else {
            let index = Index::parse(bytes)?;
            (index.meaning(), index.is_plain())
        };
        Ok(Self { digest, trailer, meaning, is_plain })
    }
}

/// How the index is kept.
pub(super) struct Kept {
    /// Of its bytes; `None` where there is no index.
    pub(super) digest: Option<IndexDigest>,
    /// What is to be written into the attempt's folder; `None` where a second name keeps it.
    pub(super) copy: Option<Vec<u8>>,
}

/// Keeps the index that was found, by a second name in the attempt's folder, which the caller syncs,
/// or as a copy. Others may have written it anew meanwhile, as `git status` does; what somebody staged
/// meanwhile is not of the base.
pub(super) fn keep(
    session: &Session,
    base_tree: Oid,
    found: &FoundIndex,
    folder: &Path,
) -> Result<Kept, Failure> {
    let Some(judged) = found.digest else { return Ok(Kept { digest: None, copy: None }) };
    let git_dir = session.workspace.git_dir();
    if found.is_plain {
        match link(git_dir, folder) {
            Ok(file) if index_known::linked(git_dir, &file, judged).unwrap_or(false) => {
                return Ok(Kept { digest: Some(judged), copy: None });
            }
            Ok(_) => {}
            // Another file system, one without second names, or not ours to link.
            Err(error) => tracing::debug!(%error, "the index is copied"),
        }
    }
    let now = index_known::read(git_dir)?;
    let bytes = match now {
        Some((bytes, digest))
            if digest == judged
                || index_known::meaning_of(&bytes).is_ok_and(|now| now == found.meaning) =>
        {
            bytes
        }
        _ if found.is_plain => Index::from_tree(&session.store, base_tree, |_, _| None)
            .map_err(Failure::other("reading the base's tree"))?
            .to_bytes(),
        _ => {
            let what = "something was staged while the attempt began";
            return Err(Failure::impossible(what, "git status"));
        }
    };
    Ok(Kept { digest: Some(index_known::digest(&bytes)), copy: Some(bytes) })
}

fn link(git_dir: &Path, folder: &Path) -> io::Result<File> {
    let to = folder.join(NAME);
    match std::fs::remove_file(&to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::hard_link(git_dir.join("index"), &to)?;
    let file = File::open(to)?;
    // git does not sync it.
    file.sync_all()?;
    Ok(file)
}

/// The bytes of the index that was kept; or as good as these.
pub(super) fn saved(
    session: &Session,
    key: &AttemptKey,
    spec: &AttemptSpec,
) -> Result<Vec<u8>, Stop> {
    let saved = std::fs::read(session.place.attempt(key).join(NAME));
    let why = match saved {
        Ok(bytes) if Some(hex(&index_known::digest(&bytes))) == spec.index_digest => {
            return Ok(bytes);
        }
        Ok(_) => "the saved index is not what was saved".to_owned(),
        Err(error) => format!("the saved index cannot be read: {error}"),
    };
    tracing::warn!(why, "the index is made anew");
    let made = Index::from_tree(&session.store, spec.base_tree, |_, _| None)
        .map_err(|error| Stop::damaged(format!("{why}: {}", chain(&error))))?;
    if hex(&made.meaning().0) != spec.index_meaning {
        return Err(Stop::damaged(why));
    }
    Ok(made.to_bytes())
}
