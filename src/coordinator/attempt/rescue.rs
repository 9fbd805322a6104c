//! Pins of bytes that are in the way: rejected work (`discarded`), somebody else's (`rescue`).
//!
//! Order rule: objects durable, then the pin in the ledger, then its ref. A pin's number is never
//! used twice.
//!
//! # Limitations
//! What git cannot store stands in the pin's second parent, see `git::pin`.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};

use serde_json::json;

use crate::coordinator::attempt::drive::{Driver, Stop};
use crate::coordinator::attempt::seal::signature;
use crate::coordinator::error::Failure;
use crate::coordinator::session::Session;
use crate::git::objects::pack::PackWriter;
use crate::git::objects::store::{Held, Store};
use crate::git::objects::tree::{self, Signature};
use crate::git::refs::{RefError, Refs};
use crate::git::undo::pin::{self, PinError, PinSource};
use crate::git::undo::restore::{Bytes, Rescue};
use crate::journal::{Change as LedgerChange, Ledger};
use crate::tx::cause::QuarantineReason;
use crate::tx::entry::{Change, Found, git_mode};
use crate::tx::id::{AttemptKey, Oid, Pin, RefPrefix};
use crate::tx::path::RepoPath;
use crate::tx::record::AttemptRecord;

/// Which kind of pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::coordinator) enum PinKind {
    /// Rejected work.
    Discarded,
    /// Somebody else's bytes.
    Rescue,
}

impl PinKind {
    const fn event(self) -> &'static str {
        match self {
            Self::Discarded => "discarded_pinned",
            Self::Rescue => "rescue_pinned",
        }
    }
}

pub(super) fn pin_stop(error: PinError) -> Stop {
    match error {
        PinError::Unstable { paths } => Stop::Quarantine(QuarantineReason::Unstable { paths }),
        other => Stop::seal_blocked(&other),
    }
}

impl Driver<'_> {
    /// Pins what `changes` lists, as it stands now, on top of a tree. Gives the raw id of each
    /// path that is held.
    pub(in crate::coordinator) fn pin_changes(
        &mut self,
        kind: PinKind,
        changes: &[Change],
        onto: Oid,
        parents: &[Oid],
        too_large: &HashSet<RepoPath>,
    ) -> Result<HashMap<RepoPath, Oid>, Stop> {
        let who = signature(&self.spec.author);
        let what = match kind {
            PinKind::Discarded => "what was undone",
            PinKind::Rescue => "what somebody else changed",
        };
        let message = format!(
            "worktx: {what}\n\nWorktx-Execution: {}\nWorktx-Attempt: {}\n",
            self.key.execution, self.key.attempt
        );
        let (built, size) = {
            let store = &self.session.store;
            let mut pack = PackWriter::new(store);
            let from = PinSource {
                root: self.session.root.handle(),
                store,
                onto,
                parents,
                too_large,
                who: &who,
                message: &message,
            };
            let built = pin::build_pin(&from, changes, &mut pack).map_err(pin_stop)?;
            let size = pack.finish().map_err(|e| Stop::seal_blocked(&e))?;
            store.refresh();
            (built, size)
        };
        self.record_pin(kind, built.commit, size)?;
        Ok(built.raw)
    }

    /// The tree of the base as it was pinned, with what git did not track. Where somebody dropped that
    /// commit, the base's own: what it did not track goes back only where it stands as it was.
    pub(in crate::coordinator) fn base_pin_tree(&mut self) -> Result<Oid, Stop> {
        let pin = self.record.pins.base.as_ref().map_or(self.spec.base, |pin| pin.id);
        match self.session.store.commit(pin) {
            Ok(commit) => Ok(commit.tree),
            Err(error) if error.object().is_some() && pin != self.spec.base => {
                let message = "the pin of what git did not track at the beginning is gone";
                self.record.warn("base_pin_gone", message);
                Ok(self.spec.base_tree)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What a pin stands on: the turn's own last commit, durable. A power loss may have left one
    /// of which parts are gone; no pin is made that cannot be read, so it then stands on the base.
    pub(in crate::coordinator) fn parent_of_pin(&mut self, tip: Option<Oid>) -> Result<Oid, Stop> {
        let base = self.spec.base;
        let Some(tip) = tip.filter(|tip| *tip != base) else { return Ok(base) };
        self.make_durable(Some(tip))?;
        let shallow = self.shallow()?;
        let gaps = tree::closure(&self.session.store, tip, Some(base), &shallow, &|_| false)?;
        let Some(gap) = gaps.first() else { return Ok(tip) };
        let message = format!("the turn's own commit {tip} cannot be kept: {gap}");
        self.record.warn("own_commits_damaged", message);
        Ok(base)
    }

    /// Records a pin, then makes its ref; `size` is what was packed for it, in bytes.
    pub(super) fn record_pin(&mut self, kind: PinKind, id: Oid, size: u64) -> Result<(), Stop> {
        let prefix = self.spec.prefix();
        let list = match kind {
            PinKind::Discarded => &mut self.record.pins.discarded,
            PinKind::Rescue => &mut self.record.pins.rescue,
        };
        let k = u32::try_from(list.len()).unwrap_or(u32::MAX).saturating_add(1);
        let name = match kind {
            PinKind::Discarded => prefix.discarded(&self.key, k),
            PinKind::Rescue => prefix.rescue(&self.key, k),
        };
        let pin = Pin { name, id };
        list.push(pin.clone());
        self.save(kind.event(), &json!({ "ref": pin.name, "id": pin.id, "bytes": size }))?;
        self.make_ref(&pin).map_err(|e| Stop::seal_blocked(&e))
    }
}

/// Makes the refs of recorded pins that are not there: a crash came between the ledger and the ref,
/// or somebody deleted it. What a crash left of making one goes.
pub(in crate::coordinator) fn stand_by_pins(
    session: &Session,
    key: &AttemptKey,
    prefix: &str,
    record: &AttemptRecord,
) -> Result<(), Failure> {
    session.refs.clear_locks(&RefPrefix(prefix.to_owned()).folder(key))?;
    for pin in record.pins.all() {
        match session.refs.get(&pin.name) {
            Ok(Some(_)) => {}
            // Recorded, and its objects never came to be: nothing stood on it.
            _ if !session.store.exists(pin.id) => {}
            Ok(None) | Err(RefError::Broken { .. }) => session.refs.pin(prefix, pin)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The bytes of the base, from the object store.
pub(super) struct StoreBytes<'a>(pub(super) &'a Store);

impl Bytes for StoreBytes<'_> {
    fn blob(&self, id: Oid) -> io::Result<Box<dyn Read>> {
        let bytes = self.0.blob(id).map_err(io::Error::other)?;
        Ok(Box::new(io::Cursor::new(bytes)))
    }
}

/// Where a restore puts bytes that turn up and that nothing holds.
pub(super) struct RescueSink<'a> {
    pub(super) store: &'a Store,
    pub(super) refs: &'a Refs,
    pub(super) ledger: &'a mut Ledger,
    pub(super) key: &'a AttemptKey,
    pub(super) record: &'a mut AttemptRecord,
    pub(super) rev: &'a mut u64,
    pub(super) prefix: &'a str,
    pub(super) onto: Oid,
    pub(super) parent: Oid,
    pub(super) who: Signature,
    pub(super) pack: Option<PackWriter<'a>>,
    pub(super) held: Vec<(RepoPath, Held)>,
}

impl Rescue for RescueSink<'_> {
    fn add(&mut self, path: &RepoPath, found: &Found, bytes: &mut dyn Read) -> io::Result<Oid> {
        let pack = self.pack.get_or_insert_with(|| PackWriter::new(self.store));
        let id = pack.add_blob(found.stat.size, bytes).map_err(io::Error::other)?;
        self.held.push((path.clone(), (git_mode(found.kind, &found.stat), id)));
        Ok(id)
    }

    fn pin(&mut self) -> io::Result<()> {
        let Some(mut pack) = self.pack.take() else { return Ok(()) };
        let edits = self.held.drain(..).map(|(path, held)| (path, Some(held))).collect();
        let tree =
            tree::edit(self.store, self.onto, &edits, &mut pack).map_err(io::Error::other)?;
        let message = format!(
            "worktx: what somebody else changed\n\nWorktx-Execution: {}\nWorktx-Attempt: {}\n",
            self.key.execution, self.key.attempt
        );
        let bytes = tree::commit_bytes(tree, &[self.parent], &self.who, &self.who, &message);
        let id = pack.add_commit(&bytes).map_err(io::Error::other)?;
        let size = pack.finish().map_err(io::Error::other)?;
        self.store.refresh();
        let k = u32::try_from(self.record.pins.rescue.len()).unwrap_or(u32::MAX).saturating_add(1);
        let prefix = crate::tx::id::RefPrefix(self.prefix.to_owned());
        let pin = Pin { name: prefix.rescue(self.key, k), id };
        self.record.pins.rescue.push(pin.clone());
        let change = LedgerChange {
            key: self.key,
            expected: self.record.state.tag(),
            rev: *self.rev,
            record: self.record,
            event: PinKind::Rescue.event(),
            detail: &json!({ "ref": pin.name, "id": pin.id, "bytes": size }),
            outcome: None,
        };
        *self.rev = self.ledger.transition(&change).map_err(io::Error::other)?;
        self.refs.pin(self.prefix, &pin).map_err(io::Error::other)
    }
}

/// The raw ids that a pin of rejected work holds, by path: read back after a crash.
pub(super) fn held_by_pin(
    store: &Store,
    base_tree: Oid,
    pin: Oid,
) -> Result<HashMap<RepoPath, Oid>, Failure> {
    let tree = store.commit(pin)?.tree;
    Ok(store
        .diff_trees(base_tree, tree)?
        .into_iter()
        .filter_map(|(path, _, after)| after.map(|(_, id)| (path, id)))
        .collect())
}
