//! Everything that is open on one workspace while it is worked on: the lock, the ledger, the
//! object store, the held root, the manifest.
//!
//! Order rule: the lock comes before the ledger is written, and stays until the process ends.
//!
//! # Limitations
//! A session sees the repository by the paths and the configuration that were found when it was
//! opened; it never discovers again.

use std::cell::RefCell;
use std::path::Path;

use crate::base::durable;
use crate::coordinator::error::Failure;
use crate::coordinator::place::{PRIVATE_DIR, Place};
use crate::coordinator::warm::Warmth;
use crate::git::files::root::Root;
use crate::git::manifest::Manifest;
use crate::git::objects::store::{Store, read_alternates};
use crate::git::refs::Refs;
use crate::git::refs::locks::Target;
use crate::git::workspace::Workspace;
use crate::git::workspace::lockfile::{self, Holder, WorkspaceLock};
use crate::journal::{Ledger, Mode, Owner};
use crate::process;
use crate::tx::id::{AttemptKey, RefName};

/// An open workspace.
pub struct Session {
    /// Which.
    pub workspace: Workspace,
    /// Where its state lies.
    pub place: Place,
    /// Journal and embedded execution rows.
    pub ledger: Ledger,
    /// Nobody else is at work here.
    pub lock: WorkspaceLock,
    /// The objects.
    pub store: Store,
    /// The refs.
    pub refs: Refs,
    /// The held root of the work tree.
    pub root: Root,
    /// What was known of the work tree.
    pub manifest: Manifest,
    /// What a server knows of it; none until somebody asks for it.
    pub warmth: RefCell<Warmth>,
}

/// Where the state of a workspace lies, by the user's wish or the recorded pointer.
pub fn find_place(workspace: &Workspace, wanted: Option<&Path>) -> Result<Place, Failure> {
    Ok(Place::find(
        workspace.root(),
        workspace.git_dir(),
        workspace.common_dir(),
        &workspace.id(),
        wanted,
    )?)
}

/// The ledger for reading, if there is one.
pub fn read_ledger(place: &Place) -> Result<Option<Ledger>, Failure> {
    let path = place.ledger();
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(Ledger::open(&path, Mode::ReadOnly)?))
}

/// The ledger for writing, made if need be.
pub fn write_ledger(place: &Place) -> Result<Ledger, Failure> {
    let path = place.ledger();
    if path.exists() {
        Ok(Ledger::open(&path, Mode::ReadWrite)?)
    } else {
        Ok(Ledger::create(&path)?)
    }
}

/// This process, as who holds the lock; `command` is what it does.
pub fn holder(command: &str) -> Holder {
    Holder {
        process: process::own_process(),
        boot_id: process::this_host().boot_id,
        command: command.to_owned(),
        attempt: None,
    }
}

impl Session {
    /// Locks the workspace, at once or not at all, and opens everything of it.
    ///
    /// `command` is what is written down of the holder.
    pub fn open(workspace: Workspace, place: Place, command: &str) -> Result<Self, Failure> {
        Self::open_by(workspace, place, command, &mut None)
    }

    /// As [`Session::open`], with the objects, where they are open already; taken once the lock is
    /// held.
    pub fn open_by(
        workspace: Workspace,
        place: Place,
        command: &str,
        store: &mut Option<Store>,
    ) -> Result<Self, Failure> {
        let lock = WorkspaceLock::acquire(&workspace, &holder(command), None)?;
        // Before anything is made: a ledger that is refused leaves nothing behind, no pointer.
        let marker = lockfile::check_marker(&workspace, &place.ledger().to_string_lossy())?;
        place.create(workspace.common_dir())?;
        let ledger = write_ledger(&place)?;
        // Who had the lock until now may have had other alternates.
        let alternates = read_alternates(workspace.common_dir())?;
        let store = match store.take().filter(|store| store.alternates() == alternates) {
            Some(store) => store,
            None => Store::open_with(workspace.common_dir(), &alternates)?,
        };
        let refs = Refs::open(workspace.git_dir(), workspace.common_dir())?;
        let root = Root::open(workspace.root())?;
        root.probe()?;
        let manifest = Manifest::open(&place.manifest())?;
        let warmth = RefCell::default();
        let session = Self { workspace, place, ledger, lock, store, refs, root, manifest, warmth };
        if let Some(marker) = marker {
            session.forget_unrecorded(&marker.attempt)?;
        }
        Ok(session)
    }

    /// Removes what an attempt left that was never recorded, by a crash or an error. Its marker
    /// is written before its folder is made, so there is nothing that no record and no marker
    /// names.
    pub fn forget_unrecorded(&self, key: &AttemptKey) -> Result<(), Failure> {
        let folder = self.place.attempt(key);
        // One that has come as far as a turn was recorded: the ledger is an old copy.
        if self.ledger.attempt(key)?.is_some() || folder.join("turn").exists() {
            return Ok(());
        }
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::io("removing what was never recorded")(error));
            }
            _ => {}
        }
        // Its execution's folder, where no other attempt of it has one.
        if let Some(parent) = folder.parent() {
            let _ = std::fs::remove_dir(parent);
        }
        Ok(lockfile::clear_marker(&self.lock)?)
    }

    /// Begins the manifest anew, empty. Only where nothing of it is needed any more.
    pub fn renew_manifest(&mut self) -> Result<(), Failure> {
        let path = self.place.manifest();
        if let Some(folder) = path.parent() {
            durable::create_dir_all(folder, PRIVATE_DIR)
                .map_err(Failure::io("making the manifest's folder"))?;
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::io("removing the manifest")(error));
            }
            _ => {}
        }
        self.manifest = Manifest::open(&path)?;
        Ok(())
    }

    /// git's locks of an attempt on this workspace.
    pub fn target(&self, key: &AttemptKey, branch: Option<&RefName>) -> Target {
        Target {
            git_dir: self.workspace.git_dir().to_owned(),
            common_dir: self.workspace.common_dir().to_owned(),
            prep_dir: self.place.prepared(key),
            branch: branch.cloned(),
        }
    }

    /// The workspace as the ledger knows it.
    pub fn ledger_workspace(&self) -> crate::journal::Workspace {
        crate::journal::Workspace {
            id: self.workspace.id(),
            root: self.workspace.root().to_owned(),
            git_dir: self.workspace.git_dir().to_owned(),
        }
    }

    /// This process, as the owner of an attempt.
    pub fn owner() -> Owner {
        Owner { host: process::this_host(), process: process::own_process() }
    }

    /// The workspace is still the one that was opened, and the lock still held: asked before each
    /// effect.
    pub fn verify(&self) -> Result<(), String> {
        self.lock.verify().map_err(|e| e.to_string())?;
        self.workspace.verify(true).map_err(|e| e.to_string())?;
        self.root.verify().map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::context::Context;
    use crate::coordinator::test_lab::Lab;

    #[test]
    fn objects_that_were_opened_too_early_are_opened_anew() {
        let lab = Lab::new();
        let other = Lab::new();
        let common = lab.context.workspace.common_dir().to_owned();
        let info = common.join("objects/info");
        std::fs::create_dir_all(&info).expect("made");
        let objects = other.context.workspace.common_dir().join("objects");
        std::fs::write(info.join("alternates"), format!("{}\n", objects.display()))
            .expect("written");
        let open = |store: &mut Option<Store>| {
            let Context { workspace, place, .. } = lab.context.clone();
            Session::open_by(workspace, place, "test", store).expect("free")
        };
        let mut early = Some(Store::open(&common).expect("opened"));
        assert_eq!(open(&mut early).store.alternates().len(), 1);
        let mut early = Some(Store::open(&common).expect("opened"));
        std::fs::remove_file(info.join("alternates")).expect("removed");
        assert!(open(&mut early).store.alternates().is_empty(), "as it is under the lock");
    }
}
