//! `status`: how the workspace stands, judged as `run` would, without its lock.
//!
//! # Limitations
//! Tracked content is looked at by stat data and git's index, filters of paths not at all: `run`
//! reads more, and may refuse what looks fine here. A picture of the moment.

use crate::config::Loaded;
use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::report::documents::StatusDocument;
use crate::coordinator::report::query::{commands, listed};
use crate::git::config::gitconfig::NoIdentity;
use crate::git::files::root::{Root, RootError};
use crate::git::objects::store::Store;
use crate::git::refs::{Head, Refs};
use crate::git::workspace::glance::{glance, is_damage};
use crate::git::workspace::judge::{BaseFacts, BaseWarning, judge};
use crate::git::workspace::lockfile::{self, MarkerError};
use crate::git::workspace::refusal::Refusal;
use crate::hook::capture::{self, Request};
use crate::tx::post_check::{Capture, Origin};
use crate::tx::record::Warning;
use crate::tx::settings::{OnDirty, Untracked};
use crate::tx::state::TxState;

/// How a workspace stands, before it is put into words.
pub struct Standing {
    /// The document; its `refusals` are still empty.
    pub document: StatusDocument,
    /// Why the next run would be refused.
    pub refusals: Vec<Refusal>,
    /// What git alone says that a person should know.
    pub warnings: Vec<BaseWarning>,
}

/// Looks.
pub fn status(context: &Context) -> Result<Standing, Failure> {
    let workspace = &context.workspace;
    let head = Refs::open(workspace.git_dir(), workspace.common_dir())?.head();
    let (branch, commit) = match head {
        Ok(Head::Branch(name, id)) => (Some(name.short().to_owned()), id),
        Ok(Head::Detached(id)) => (Some("HEAD".to_owned()), Some(id)),
        Ok(Head::Other(_)) | Err(_) => (None, None),
    };
    let mut document = StatusDocument {
        schema: SCHEMA,
        workspace: workspace.root().to_string_lossy().into_owned(),
        branch,
        head: commit,
        state_dir: context.place.state.to_string_lossy().into_owned(),
        profile: context.user.values.settings.profile.clone(),
        busy: lockfile::is_held(workspace.git_dir())
            .map_err(Failure::io("looking at the workspace lock"))?,
        can_be_base: false,
        refusals: Vec::new(),
        unsettled: Vec::new(),
        post_check: None,
        warnings: Vec::new(),
    };
    let mut refusals = Vec::new();
    let mut warnings = Vec::new();
    quarantined(context, &mut document, &mut refusals)?;
    match judge(workspace, &context.git_env(), context.own_locks()) {
        Ok(base) => {
            warnings.clone_from(&base.warnings);
            let store = Store::open_with(workspace.common_dir(), &base.alternates)?;
            let loaded = context.settings(&store, base.tree)?;
            document.warnings.extend(loaded.warnings.iter().map(|warning| Warning {
                code: warning.code.to_owned(),
                message: warning.message.clone(),
            }));
            content(context, &base, &loaded, &mut document, &mut refusals)?;
            post_check(context, &loaded, &mut document)?;
        }
        Err(found) => refusals.extend(found),
    }
    match Root::open(workspace.root()).and_then(|root| root.probe()) {
        Ok(()) => {}
        Err(RootError::NoOpenat2 { .. }) => refusals.push(Refusal::Openat2Denied),
        Err(error) => return Err(error.into()),
    }
    let is_left = document.is_left_by_a_crash();
    if document.busy || is_left {
        // What the tree holds now is the turn's: nobody should commit or stash it.
        let of_the_turn = |refusal: &Refusal| {
            !matches!(refusal, Refusal::ModifiedTracked { .. } | Refusal::StagedChanges { .. })
        };
        refusals.retain(of_the_turn);
    }
    document.can_be_base = refusals.is_empty() && !document.busy && !is_left;
    Ok(Standing { document, refusals, warnings })
}

/// What an operator still has to decide here, and what another ledger has begun.
fn quarantined(
    context: &Context,
    document: &mut StatusDocument,
    refusals: &mut Vec<Refusal>,
) -> Result<(), Failure> {
    if let Some(ledger) = context.ledger()? {
        for attempt in ledger.unsettled(Some(&context.place.workspace_id))? {
            document.unsettled.push(listed(&attempt)?);
            let state = attempt.record()?.state;
            if let TxState::Quarantined { reason, .. } = &state {
                let row = ledger.execution(&attempt.key.execution)?.map(|found| found.row);
                refusals.push(Refusal::Quarantined {
                    reason: reason.as_str().to_owned(),
                    commands: commands(&attempt.key, &state, row.as_ref(), false),
                    attempt: attempt.key,
                });
            }
        }
    }
    let own = context.place.ledger();
    match lockfile::check_marker(&context.workspace, &own.to_string_lossy()) {
        Ok(_) => Ok(()),
        Err(MarkerError::OtherLedger { marker }) => {
            refusals.push(Refusal::LockedBySecondLedger {
                ledger: marker.ledger,
                attempt: Some(marker.attempt),
            });
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn content(
    context: &Context,
    base: &BaseFacts,
    loaded: &Loaded,
    document: &mut StatusDocument,
    refusals: &mut Vec<Refusal>,
) -> Result<(), Failure> {
    let settings = &loaded.values.settings;
    if let Err(NoIdentity { role }) = base.config.committer().and(base.config.author())
        && settings.author.is_none()
    {
        refusals.push(Refusal::NoIdentity { role: role.to_owned() });
    }
    let untracked =
        (settings.untracked == Untracked::Refuse).then_some(&settings.scope.exclude[..]);
    let seen = match glance(&context.workspace, untracked) {
        Ok(seen) => seen,
        Err(error) if is_damage(&error) => {
            refusals.push(Refusal::Damaged { why: error.message().to_owned() });
            return Ok(());
        }
        Err(error) => return Err(Failure::other("looking at the work tree")(error)),
    };
    if !seen.conflicted.is_empty() {
        refusals.push(Refusal::ConflictedIndex { paths: seen.conflicted });
    }
    let is_dirty = !seen.staged.is_empty() || !seen.modified.is_empty();
    if settings.on_dirty == OnDirty::Run {
        if is_dirty {
            let message = "tracked files differ from HEAD: the next run would be unprotected";
            document
                .warnings
                .push(Warning { code: "dirty".to_owned(), message: message.to_owned() });
        }
    } else {
        if !seen.staged.is_empty() {
            refusals.push(Refusal::StagedChanges { paths: seen.staged });
        }
        if !seen.modified.is_empty() {
            refusals.push(Refusal::ModifiedTracked { paths: seen.modified });
        }
    }
    if !seen.untracked.is_empty() {
        refusals.push(Refusal::UntrackedPresent { paths: seen.untracked });
    }
    Ok(())
}

/// Which post-check would be captured; the trial copy goes to a folder that is removed again.
fn post_check(
    context: &Context,
    loaded: &Loaded,
    document: &mut StatusDocument,
) -> Result<(), Failure> {
    let trial = tempfile::tempdir().map_err(Failure::io("making a folder"))?;
    let home = context.variable("HOME").map(std::path::Path::new);
    let search_path = context.variable("PATH").unwrap_or_default();
    let request = Request {
        choice: &loaded.values.post_check,
        workspace: context.workspace.root(),
        home,
        search_path,
    };
    let mut warn = |code: &str, message: String| {
        document.warnings.push(Warning { code: code.to_owned(), message });
    };
    document.post_check = match capture::capture(&request, trial.path()) {
        Ok(Capture::Off | Capture::Absent) => None,
        Ok(Capture::Misconfigured { path, why }) => {
            let message = format!("the post-check {} cannot run: {why}", path.display());
            warn("post_check_misconfigured", message);
            None
        }
        Ok(Capture::Ready(ready)) => Some(match ready.origin {
            Origin::File { named, .. } => named.to_string_lossy().into_owned(),
            Origin::Command { words } => words,
        }),
        Err(error) => {
            warn("post_check_unusable", error.to_string());
            None
        }
    };
    Ok(())
}
