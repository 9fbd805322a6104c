//! The git directory before and after a turn: configuration, hooks, alternates, other refs.
//!
//! What runs programs is put back on success too; a rollback puts everything back. Other branches,
//! tags and stashes are reported, never moved.
//!
//! # Limitations
//! A file above 4 MiB is compared and not kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::coordinator::attempt::drive::{Driver, Stop};
use crate::coordinator::attempt::rescue::PinKind;
use crate::coordinator::attempt::seal::signature;
use crate::coordinator::error::Failure;
use crate::git::guarded::putback::{self, What};
use crate::git::guarded::{ChangeKind, GitChange, Snapshot};
use crate::git::objects::odb::ObjectKind;
use crate::git::objects::pack::PackWriter;
use crate::git::objects::tree;
use crate::git::refs::Refs;
use crate::git::workspace::Workspace;
use crate::tx::cause::QuarantineReason;
use crate::tx::id::{Oid, RefName};
use crate::tx::settings::OnGitChange;

/// The file in an attempt's folder with what stood in the git directory.
pub(super) const NAME: &str = "git-directory.json";

/// What is in that file.
pub(super) fn to_bytes(snapshot: &Snapshot) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(snapshot).map_err(Failure::bug)
}

/// The refs that are not worktx's own, stash entries among them.
pub(super) fn other_refs(refs: &Refs) -> Result<Vec<(RefName, Oid)>, Failure> {
    let mut all = refs.list_but("refs", &["refs/worktx", "refs/trinity/tx"])?.refs;
    for (n, id) in refs.stash_entries()?.into_iter().rev().enumerate().skip(1) {
        all.push((RefName(format!("refs/stash@{{{n}}}")), id));
    }
    Ok(all)
}

/// git's `true` (`git-config(1)`, "Values").
fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "true" | "yes" | "on")
        || value.parse::<i64>().is_ok_and(|number| number != 0)
}

/// A change of the git directory, in words.
fn words(change: &GitChange) -> String {
    match &change.change {
        ChangeKind::ConfigKey { key, .. } => key.clone(),
        _ => change.file.to_string(),
    }
}

impl Driver<'_> {
    fn guarded(&mut self) -> Result<(Arc<Snapshot>, Snapshot), Stop> {
        let now = match self.live.git_now.take() {
            Some(now) => now,
            None => self.guarded_now()?,
        };
        Ok((self.guarded_before()?, now))
    }

    /// The commits at which history ends where the clone was shallow at open. Not the turn's word:
    /// it could hide what its own commits hold.
    pub(super) fn shallow(&self) -> Result<BTreeSet<Oid>, Stop> {
        Ok(self.guarded_before()?.shallow())
    }

    fn guarded_before(&self) -> Result<Arc<Snapshot>, Stop> {
        if let Some(before) = &self.live.git_directory {
            return Ok(before.clone());
        }
        let path = self.session.place.attempt(&self.key).join(NAME);
        // Trying again would not bring it back.
        let lost = |why: &dyn std::fmt::Display| {
            Stop::damaged(format!("what was kept of the git directory, {}: {why}", path.display()))
        };
        let bytes = std::fs::read(&path).map_err(|error| lost(&error))?;
        let before: Snapshot = serde_json::from_slice(&bytes).map_err(|error| lost(&error))?;
        Ok(Arc::new(before))
    }

    fn guarded_now(&self) -> Result<Snapshot, Stop> {
        capture(&self.session.workspace, self.spec.git.hooks_path.as_deref())
            .map_err(|error| Stop::damaged(error.to_string()))
    }

    /// In what way no attempt could begin after this turn, as its git directory stands.
    pub(super) fn unfit(&mut self) -> Result<Option<String>, Stop> {
        let (before, now) = self.guarded()?;
        let begun = before
            .unfinished(&now)
            .map(|file| format!("git has begun something that is not finished ({file})"));
        let why = begun.or_else(|| {
            let changes = before.compare(&now);
            let is_sparse = changes.iter().any(|change| match &change.change {
                ChangeKind::ConfigKey { key, after, .. } => {
                    key == "core.sparsecheckout" && after.last().is_some_and(|value| is_true(value))
                }
                _ => false,
            });
            is_sparse.then(|| "a sparse checkout (core.sparseCheckout)".to_owned())
        });
        self.live.git_now = Some(now);
        Ok(why)
    }

    /// On success: what can run programs goes back, the rest stays and is told. Gives
    /// `info/attributes`, if the turn made it another.
    pub(super) fn put_back_programs(&mut self) -> Result<Option<Vec<u8>>, Stop> {
        let (before, now) = self.guarded()?;
        let changes = before.compare(&now);
        if changes.is_empty() {
            return Ok(None);
        }
        let info = changes.iter().find(|change| change.file.as_bytes() == b"info/attributes");
        let info = info.map(|change| now.bytes(&change.file).unwrap_or_default().to_vec());
        let policy = self.spec.settings.on_git_change;
        let told =
            |list: &[&GitChange]| list.iter().map(|c| words(c)).collect::<Vec<_>>().join(", ");
        let (bad, mut fine): (Vec<_>, Vec<_>) = changes.iter().partition(|c| c.is_dangerous());
        // What says that something was begun was looked for before; the rest is git's scratch paper.
        fine.retain(|change| change.change != ChangeKind::Operation);
        if policy == OnGitChange::Quarantine {
            let what = changes.iter().map(words).collect();
            return Err(Stop::Quarantine(QuarantineReason::GitChanged { what }));
        }
        if !fine.is_empty() || policy == OnGitChange::Allow {
            let all: Vec<&GitChange> = changes.iter().collect();
            let list = if policy == OnGitChange::Allow { told(&all) } else { told(&fine) };
            self.record.warn(
                "git_changed",
                format!("the command changed the git directory, which stays so: {list}"),
            );
        }
        if policy == OnGitChange::Undo && !bad.is_empty() {
            let list = told(&bad);
            let done =
                putback::put_back(&self.session.workspace, &before, &now, What::ProgramsOnly)
                    .map_err(Failure::io("putting the git directory back"))?;
            if let Some((file, why)) = done.blocked.first() {
                return Err(Stop::Quarantine(QuarantineReason::GitChanged {
                    what: vec![format!("{file} cannot be put back: {why:?}")],
                }));
            }
            self.record.warn(
                "git_change_undone",
                format!(
                    "the command changed what runs programs in the git directory; put back: {list}"
                ),
            );
        }
        Ok(info)
    }

    /// On rollback: everything that the turn changed goes back.
    pub(super) fn put_back_git_directory(&mut self) -> Result<(), Stop> {
        let (before, now) = self.guarded()?;
        let changes = before.compare(&now);
        if changes.is_empty() {
            return Ok(());
        }
        let list = changes.iter().map(words).collect::<Vec<_>>().join(", ");
        let others = self
            .session
            .ledger
            .unsettled(None)?
            .iter()
            .any(|attempt| attempt.workspace.id != self.session.workspace.id());
        let all = !others && self.spec.settings.on_git_change != OnGitChange::Allow;
        // What was begun in this work tree is nobody else's, and would keep every later run out.
        let what = if all { What::All } else { What::OperationsOnly };
        self.pin_named(&now.named_by_operations(&before))?;
        let done = putback::put_back(&self.session.workspace, &before, &now, what)
            .map_err(Failure::io("putting the git directory back"))?;
        if let Some((file, why)) = done.blocked.first() {
            return Err(Stop::Quarantine(QuarantineReason::RestoreBlocked {
                paths: Vec::new(),
                why: format!("{file} in the git directory cannot be put back: {why:?}"),
            }));
        }
        if all {
            self.record
                .warn("git_change_undone", format!("the git directory was put back: {list}"));
        } else {
            self.record
                .warn("git_changed", format!("the git directory changed, and stays so: {list}"));
        }
        Ok(())
    }

    /// Other branches, tags and stashes that moved: told, never moved back.
    pub(super) fn report_other_refs(&mut self) {
        let Ok(now) = other_refs(&self.session.refs) else { return };
        let own = self.branch_ref();
        let before: BTreeMap<&RefName, Oid> =
            self.spec.other_refs.iter().map(|(name, id)| (name, *id)).collect();
        let after: BTreeMap<&RefName, Oid> = now.iter().map(|(name, id)| (name, *id)).collect();
        let names: BTreeSet<&RefName> = before.keys().chain(after.keys()).copied().collect();
        let moved: Vec<&RefName> = names
            .into_iter()
            .filter(|name| **name != own && before.get(name) != after.get(name))
            .collect();
        if moved.is_empty() {
            return;
        }
        let ids = moved.iter().flat_map(|name| [before.get(name), after.get(name)]);
        let ids: BTreeSet<Oid> = ids.flatten().copied().collect();
        let moved: Vec<String> = moved
            .into_iter()
            .map(|name| {
                let id = |side: &BTreeMap<&RefName, Oid>| {
                    side.get(name).map_or_else(|| "nothing".to_owned(), Oid::short)
                };
                format!("{name} ({} → {})", id(&before), id(&after))
            })
            .collect();
        let mut message = format!("other refs changed meanwhile: {}", moved.join(", "));
        if let Err(error) = self.pin_commits(&ids) {
            tracing::warn!(?error, "where other refs were could not be pinned");
            message.push_str("; what they named could not be pinned");
            // The outcome names no ref that is not there.
            let refs = &self.session.refs;
            self.record
                .pins
                .rescue
                .retain(|pin| matches!(refs.get(&pin.name), Ok(Some(id)) if id == pin.id));
        }
        self.record.warn("refs_moved", message);
    }

    /// Keeps what an operation of git names that goes back, as far as no ref named it at open: work
    /// that git had laid aside for it is known by nothing else.
    fn pin_named(&mut self, ids: &BTreeSet<Oid>) -> Result<(), Stop> {
        let known: BTreeSet<Oid> = self.spec.other_refs.iter().map(|(_, id)| *id).collect();
        let ids = ids.iter().copied().filter(|id| *id != self.spec.base && !known.contains(id));
        if let Some(pin) = self.pin_commits(&ids.collect())? {
            let message = format!(
                "what git had begun and not ended goes back; what it named is kept in {pin}"
            );
            self.record.warn("operation_undone", message);
        }
        Ok(())
    }

    /// Keeps commits alive under one rescue pin, and names it. What is no commit (a tag's own
    /// object), and what is gone already, is left out.
    fn pin_commits(&mut self, ids: &BTreeSet<Oid>) -> Result<Option<RefName>, Stop> {
        let store = &self.session.store;
        let commits: Vec<Oid> = ids
            .iter()
            .copied()
            .filter(|id| matches!(store.kind(*id), Ok(Some(ObjectKind::Commit))))
            .collect();
        if commits.is_empty() {
            return Ok(None);
        }
        let who = signature(&self.spec.author);
        let message = "worktx: where other refs were and are, or what git had begun with\n";
        let bytes = tree::commit_bytes(self.spec.base_tree, &commits, &who, &who, message);
        let mut pack = PackWriter::new(store);
        let id = pack.add_commit(&bytes).map_err(|e| Stop::seal_blocked(&e))?;
        let size = pack.finish().map_err(|e| Stop::seal_blocked(&e))?;
        store.refresh();
        self.record_pin(PinKind::Rescue, id, size)?;
        Ok(self.record.pins.rescue.last().map(|pin| pin.name.clone()))
    }
}

/// The files of the git directory that are watched over.
pub(in crate::coordinator) fn capture(
    workspace: &Workspace,
    hooks_path: Option<&str>,
) -> Result<Snapshot, crate::git::guarded::GuardError> {
    Snapshot::capture(workspace, hooks_path.map(Path::new))
}
