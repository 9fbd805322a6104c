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
use super::drive::{Stop, chain};
use super::error::Failure;
use super::session::Session;
use super::spec::AttemptSpec;
use crate::base::hex::hex;
use crate::git::index::{Index, Meaning};
use crate::git::index_known::{self, IndexDigest, Trailer};
use crate::tx::id::AttemptKey;

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

/// Keeps the index in the attempt's folder, which the caller syncs; or gives the bytes that are to be
/// written there, where a second name will not do.
pub(super) fn keep(
    git_dir: &Path,
    found: &FoundIndex,
    folder: &Path,
) -> Result<Option<Vec<u8>>, Failure> {
    let Some(digest) = found.digest else { return Ok(None) };
    if found.is_plain {
        match link(git_dir, folder) {
            Ok(()) if index_known::digest_now(git_dir)? == Some(digest) => return Ok(None),
            // Another file system, one without second names, or not ours to link.
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "the index is copied"),
        }
    }
    match index_known::read(git_dir)? {
        Some((bytes, now)) if now == digest => Ok(Some(bytes)),
        _ => Err(Failure::impossible("the index changed while the attempt began", "run it again")),
    }
}

fn link(git_dir: &Path, folder: &Path) -> io::Result<()> {
    let to = folder.join(NAME);
    match std::fs::remove_file(&to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::hard_link(git_dir.join("index"), &to)?;
    // git does not sync it.
    File::open(to)?.sync_all()
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
    let made = Index::of_tree(&session.store, spec.base_tree)
        .map_err(|error| Stop::damaged(format!("{why}: {}", chain(&error))))?;
    if hex(&made.meaning().0) != spec.index_meaning {
        return Err(Stop::damaged(why));
    }
    Ok(made.to_bytes())
}
