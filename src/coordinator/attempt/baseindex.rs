//! The index as it was at open, kept for the way back.
//!
//! git never writes into an index that is in place, so that a second name of the file keeps it, at no
//! cost, however large it is. Should somebody write into it all the same, what was kept is not what
//! was found; then, and only where the base's tree says all that it meant, it is made anew from that.
//! One that means more (flags of `git update-index`) is kept as a copy.
//!
//! A new name moves a file's time of change, so that its bytes have to be looked at to know that they
//! are what they were. A large index therefore has one second name for all attempts, which stays as
//! long as git does not write another file: at most one attempt of a work tree is unsettled.
//!
//! # Limitations
//! One that was made anew says nothing of times and sizes: git compares the files at its next look.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::base::durable;
use crate::base::hex::hex;
use crate::base::spread;
use crate::coordinator::attempt::base::FoundIndex;
use crate::coordinator::attempt::drive::{Driver, Stop, chain};
use crate::coordinator::attempt::newindex::NewIndex;
use crate::coordinator::error::Failure;
use crate::coordinator::place::Place;
use crate::coordinator::session::Session;
use crate::coordinator::spec::AttemptSpec;
use crate::git::index::known::{IndexDigest, Proof, is_of};
use crate::git::index::{self, Index};
use crate::git::workspace::Workspace;
use crate::process;
use crate::tx::id::{AttemptKey, Oid};
use crate::tx::path::RepoPath;

/// The name in the attempt's folder.
pub(super) const NAME: &str = "index.base";

/// From so many bytes on an index is large: to hash it takes longer than the syncs of a second name.
const LARGE: u64 = 1 << 20;
/// How long is waited at most until an index is old enough to be told by its looks; else it is left to
/// the next attempt. More than it takes on a file system that keeps whole seconds, unless somebody set
/// the clock back.
const YOUNG: Duration = Duration::from_secs(2);

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
        // After an undo the one that was made for the commit is nowhere.
        let is_it = if self.live.new_index.is_some() && !of_base {
            // The next attempt looks at its bytes.
            index::known::looks_known(git_dir, digest)?
        } else {
            index::known::digest_now(git_dir)? == Some(digest)
        };
        if is_it
            && let Some(noted) =
                index::known::to_note(git_dir, boot_id, digest, meaning, tree, is_plain)
            && self.session.place.noted_index().as_ref() != Some(&noted)
        {
            self.session.place.note_index(&noted);
        }
        Ok(())
    }
}

/// Looks at the bytes of a large index that an attempt has put in place, while nobody works in the tree:
/// the next attempt knows it by its looks then. Without the workspace's lock: a note that is no longer
/// true tells of a file that is not there any more.
pub fn prove(workspace: &Workspace, place: &Place) {
    let (git_dir, boot_id) = (workspace.git_dir(), process::this_host().boot_id);
    let Some(noted) = place.noted_index().filter(|noted| noted.size() >= LARGE) else { return };
    let look = || index::known::prove(git_dir, &boot_id, &noted);
    let looked = match look() {
        Ok(Proof::TooYoung(left)) if left <= YOUNG => {
            std::thread::sleep(left);
            look()
        }
        looked => looked,
    };
    match looked {
        Ok(Proof::Noted(proven)) if place.noted_index().as_ref() == Some(&noted) => {
            place.note_index(&proven);
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "the index was not looked at"),
    }
}

/// How the index is kept.
pub(super) struct Kept {
    /// Of its bytes; `None` where there is no index.
    pub(super) digest: Option<IndexDigest>,
    /// What is to be written into the attempt's folder; `None` where a second name keeps it.
    pub(super) copy: Option<Vec<u8>>,
    /// The file that has a second name in the attempt's folder, to be synced: git does not.
    pub(super) file: Option<File>,
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
    let Some(judged) = found.digest else {
        return Ok(Kept { digest: None, copy: None, file: None });
    };
    let git_dir = session.workspace.git_dir();
    if found.is_plain {
        match second_name(git_dir, &session.place, folder) {
            Ok(None) if index::known::digest_now(git_dir)? == Some(judged) => {
                return Ok(Kept { digest: Some(judged), copy: None, file: None });
            }
            Ok(Some(file)) if index::known::linked(git_dir, &file, judged).unwrap_or(false) => {
                return Ok(Kept { digest: Some(judged), copy: None, file: Some(file) });
            }
            Ok(_) => {}
            // Another file system, one without second names, or not ours to link.
            Err(error) => tracing::debug!(%error, "the index is copied"),
        }
    }
    let now = index::known::read(git_dir)?;
    let bytes = match now {
        Some((bytes, digest))
            if digest == judged
                || index::known::meaning_of(&bytes).is_ok_and(|now| now == found.meaning) =>
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
    Ok(Kept { digest: Some(index::known::digest(&bytes)), copy: Some(bytes), file: None })
}

/// Gives the index a second name; `None` where it has one from before.
fn second_name(git_dir: &Path, place: &Place, folder: &Path) -> io::Result<Option<File>> {
    if std::fs::symlink_metadata(git_dir.join("index"))?.len() < LARGE {
        return link(git_dir, &folder.join(NAME)).map(Some);
    }
    link_once(git_dir, &place.kept_index())
}

/// A large index that was just put in place gets its second name, by a thread, so that its time of
/// change is an old one when the next attempt comes: the kernel takes a while to forget the one that
/// had the name before. Only of an attempt that was won: nothing needs that one any more.
#[derive(Debug)]
pub struct Keeping(JoinHandle<io::Result<()>>);

impl Keeping {
    /// Begins it, where there is something to be kept.
    pub(super) fn begin(
        workspace: &Workspace,
        place: &Place,
        new: Option<NewIndex>,
    ) -> Option<Self> {
        let new = new.filter(|new| new.is_plain)?;
        let git_dir = workspace.git_dir().to_owned();
        let size = std::fs::symlink_metadata(git_dir.join("index")).map_or(0, |meta| meta.len());
        let kept = place.kept_index();
        let keep = move || -> io::Result<()> {
            if let Some(file) = link_once(&git_dir, &kept)? {
                index::known::linked(&git_dir, &file, new.digest)?;
            }
            Ok(())
        };
        if size < LARGE {
            return None;
        }
        spread::start("index", keep).ok().map(Self)
    }

    /// Waits for it. Where it could not be done, the next attempt does it.
    pub(super) fn finish(self) {
        let kept = self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if let Err(error) = kept {
            tracing::debug!(%error, "the new index has no second name yet");
        }
    }
}

fn link_once(git_dir: &Path, kept: &Path) -> io::Result<Option<File>> {
    let identity = |meta: Metadata| (meta.dev(), meta.ino(), meta.is_file());
    let index = std::fs::symlink_metadata(git_dir.join("index")).map(identity)?;
    if std::fs::symlink_metadata(kept).map(identity).is_ok_and(|kept| kept == index) {
        return Ok(None);
    }
    let new = kept.with_extension("index-new");
    let file = link(git_dir, &new)?;
    file.sync_all()?;
    std::fs::rename(&new, kept)?;
    kept.parent().map_or(Ok(()), durable::sync_dir)?;
    Ok(Some(file))
}

fn link(git_dir: &Path, to: &Path) -> io::Result<File> {
    match std::fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::hard_link(git_dir.join("index"), to)?;
    File::open(to)
}

/// The bytes of the index that was kept; or as good as these.
pub(super) fn saved(
    session: &Session,
    key: &AttemptKey,
    spec: &AttemptSpec,
) -> Result<Vec<u8>, Stop> {
    let own = session.place.attempt(key).join(NAME);
    let saved = match std::fs::read(own) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::read(session.place.kept_index())
        }
        read => read,
    };
    let why = match saved {
        Ok(bytes) if spec.index_digest.as_ref().is_some_and(|told| is_of(&bytes, told)) => {
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
