//! What an attempt changed, and rejected work brought back as a branch.
//!
//! Compared are pinned commits, never the work tree: what is shown is what is kept.
//!
//! # Limitations
//! What git cannot store (special files, empty directories) stands in a pin's `meta.json` and is
//! not shown here.

use std::io;

use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::report::documents::{DiffDocument, DiffPath, RestoreDocument};
use crate::coordinator::report::query::choose;
use crate::coordinator::spec::AttemptSpec;
use crate::coordinator::words::typed;
use crate::git::objects::patch::{self, PatchError};
use crate::git::objects::store::{Store, TreeChange};
use crate::git::refs::branch::{self, BranchError};
use crate::git::workspace::judge;
use crate::tx::id::{AttemptKey, Oid};
use crate::tx::record::AttemptRecord;
use crate::tx::state::TxState;

/// The difference that an attempt made.
pub struct Difference {
    /// As a document.
    pub document: DiffDocument,
    store: Store,
    changes: Vec<TreeChange>,
}

impl Difference {
    /// Writes it as a patch, in git's form.
    ///
    /// # Errors
    /// The inner one is of the writer: a reader that went away.
    pub fn write(&self, out: &mut impl io::Write) -> Result<io::Result<()>, Failure> {
        match patch::write(&self.store, &self.changes, out) {
            Ok(()) => Ok(Ok(())),
            Err(PatchError::Io(error)) => Ok(Err(error)),
            Err(error) => Err(Failure::other("comparing two trees")(error)),
        }
    }
}

/// What is compared with what: rejected work with the pinned base (untracked files included), a
/// candidate with the base commit.
fn sides(spec: &AttemptSpec, record: &AttemptRecord) -> Option<(Oid, Oid)> {
    let pinned = record.pins.base.as_ref().map_or(spec.base, |pin| pin.id);
    let discarded = record.pins.discarded.last().map(|pin| (pinned, pin.id));
    let candidate = record.state.seal().map(|seal| (spec.base, seal.candidate));
    let rescued = record.pins.rescue.last().map(|pin| (pinned, pin.id));
    match record.state {
        TxState::RolledBack { .. } | TxState::RollingBack { .. } => discarded.or(candidate),
        TxState::Released { .. } => discarded.or(rescued).or(candidate),
        _ => candidate.or(discarded),
    }
}

/// `diff`
pub fn diff(context: &Context, id: &str, number: Option<u32>) -> Result<Difference, Failure> {
    let ledger = context.need_ledger()?;
    let execution = ledger.resolve(id)?;
    let Some(attempt) = choose(&ledger, &execution, number, |_| Ok(true))? else {
        // A refusal makes no row.
        let what = match ledger.execution(&execution)? {
            Some(found) => {
                format!("is {}, and gc has dropped what was kept of it", found.row.status)
            }
            None => "was only refused: nothing ran".to_owned(),
        };
        return Err(Failure::impossible(
            format!("execution {execution} {what}"),
            typed("events", &execution, ""),
        ));
    };
    let (spec, record): (AttemptSpec, _) = (attempt.spec()?, attempt.record()?);
    let Some((from, to)) = sides(&spec, &record) else {
        let state = record.state.tag();
        return Err(Failure::impossible(
            format!("attempt {} is {state}: nothing that it did is pinned", attempt.key),
            typed("show", &execution, ""),
        ));
    };
    let store = Store::open(context.workspace.common_dir())?;
    let tree = |id| store.commit(id).map(|commit| commit.tree);
    let mut changes = store.diff_trees(tree(from)?, tree(to)?)?;
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    let paths = changes.iter().map(|(path, before, after)| DiffPath {
        path: path.clone(),
        change: match (before, after) {
            (None, _) => "added",
            (_, None) => "deleted",
            _ => "modified",
        }
        .to_owned(),
    });
    let document = DiffDocument {
        schema: SCHEMA,
        execution_id: execution,
        attempt: attempt.key.attempt,
        from,
        to,
        paths: paths.collect(),
    };
    Ok(Difference { document, store, changes })
}

/// The branch that `restore` makes where no name is given.
pub fn restored_name(key: &AttemptKey) -> String {
    format!("worktx/restored-{}-{}", key.execution, key.attempt)
}

/// `restore`: the last rejected work of an attempt as a branch. The work tree is not touched.
pub fn restore(
    context: &Context,
    id: &str,
    number: Option<u32>,
    name: Option<&str>,
) -> Result<RestoreDocument, Failure> {
    judge::trusted(&context.workspace, &context.git_env())
        .map_err(|refusals| Failure::Refused { refusals, warnings: Vec::new() })?;
    let ledger = context.need_ledger()?;
    let execution = ledger.resolve(id)?;
    let has_work =
        |attempt: &crate::journal::Attempt| Ok(!attempt.record()?.pins.discarded.is_empty());
    let attempt = choose(&ledger, &execution, number, has_work)?;
    let pin = match &attempt {
        Some(attempt) => attempt.record()?.pins.discarded.last().cloned(),
        None => None,
    };
    let (Some(attempt), Some(pin)) = (attempt, pin) else {
        return Err(Failure::impossible(
            format!("execution {execution} has no discarded work"),
            typed("show", &execution, ""),
        ));
    };
    let store = Store::open(context.workspace.common_dir())?;
    store.commit(pin.id)?;
    let name = name.map_or_else(|| restored_name(&attempt.key), str::to_owned);
    branch::create(context.workspace.common_dir(), &name, pin.id).map_err(|error| {
        let hint = match &error {
            BranchError::Exists { name } => {
                format!("look at it with: git log {name}; or choose another name with --branch")
            }
            _ => "choose another name with --branch".to_owned(),
        };
        Failure::Impossible { message: error.to_string(), hint: Some(hint) }
    })?;
    Ok(RestoreDocument {
        schema: SCHEMA,
        execution_id: execution,
        attempt: attempt.key.attempt,
        branch: name,
        commit: pin.id,
    })
}
