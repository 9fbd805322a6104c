//! `status`: how the workspace stands, judged as `run` would, without its lock.
//!
//! # Limitations
//! Tracked content is looked at by stat data and git's index, filters of paths not at all: `run`
//! reads more, and may refuse what looks fine here. A picture of the moment.

use crate::config::Loaded;
use crate::coordinator::attempt::base::unreadable;
use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::report::documents::StatusDocument;
use crate::coordinator::report::query::{commands, listed};
use crate::git::config::gitconfig::NoIdentity;
use crate::git::files::root::{Root, RootError};
use crate::git::index::{self, Index, IndexError};
use crate::git::objects::store::Store;
use crate::git::refs::{Head, Refs};
use crate::git::workspace::Workspace;
use crate::git::workspace::glance::{glance, is_damage};
use crate::git::workspace::judge::{BaseFacts, BaseWarning, judge};
use crate::git::workspace::lockfile::{self, MarkerError};
use crate::git::workspace::refusal::Refusal;
use crate::hook::capture::{self, CaptureError, Request};
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
    /// Why it would not come that far: the post-check that is named cannot be used.
    pub post_check: Option<CaptureError>,
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
    let mut unusable = None;
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
            unusable = post_check(context, &loaded, &mut document)?;
        }
        Err(found) => refusals.extend(found),
    }
    match Root::open(workspace.root()).and_then(|root| root.probe()) {
        Ok(()) => {}
        Err(RootError::NoOpenat2 { .. }) => refusals.push(Refusal::Openat2Denied),
        Err(error) => return Err(error.into()),
    }
    let is_left = document.is_left_by_a_crash();
    let is_quarantined = refusals.iter().any(|r| matches!(r, Refusal::Quarantined { .. }));
    if document.busy || is_left || is_quarantined {
        // What the tree holds now is the turn's: nobody should commit or stash it.
        let of_the_turn = |refusal: &Refusal| {
            !matches!(refusal, Refusal::ModifiedTracked { .. } | Refusal::StagedChanges { .. })
        };
        refusals.retain(of_the_turn);
    }
    document.can_be_base = refusals.is_empty() && unusable.is_none() && !document.busy && !is_left;
    Ok(Standing { document, refusals, post_check: unusable, warnings })
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
                    commands: commands(&attempt.key, &attempt.spec()?, &state, row.as_ref(), false),
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
    if let Err(NoIdentity { role }) = base.config.author()
        && settings.author.is_none()
    {
        refusals.push(Refusal::NoIdentity { role: role.to_owned() });
    }
    let untracked =
        (settings.untracked == Untracked::Refuse).then_some(&settings.scope.exclude[..]);
    let seen = match glance(&context.workspace, untracked) {
        Ok(seen) => seen,
        Err(error) if is_damage(&error) => {
            // In the words of `run`, which reads the index without libgit2.
            refusals.push(match read_index(&context.workspace) {
                Err(error) => unreadable(&error),
                Ok(_) => Refusal::Damaged { why: error.message().to_owned() },
            });
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

/// git's index, read as `run` reads it; an empty one where there is none.
pub(super) fn read_index(workspace: &Workspace) -> Result<Index, IndexError> {
    match index::known::read(workspace.git_dir())? {
        Some((bytes, _)) => Index::parse(&bytes),
        None => Ok(Index::empty()),
    }
}

/// Which post-check would be captured; why it cannot be, where it is one that is named.
fn post_check(
    context: &Context,
    loaded: &Loaded,
    document: &mut StatusDocument,
) -> Result<Option<CaptureError>, Failure> {
    document.post_check = match on_trial(context, loaded)? {
        Ok(Capture::Off | Capture::Absent) => None,
        Ok(Capture::Misconfigured { path, why }) => {
            let message = format!("the post-check {} cannot run: {why}", path.display());
            let code = "post_check_misconfigured".to_owned();
            document.warnings.push(Warning { code, message });
            None
        }
        Ok(Capture::Ready(ready)) => Some(match ready.origin {
            Origin::File { named, .. } => named.to_string_lossy().into_owned(),
            Origin::Command { words } => words,
        }),
        Err(error) => return Ok(Some(error)),
    };
    Ok(None)
}

/// Captures the post-check as `run` would; the copy goes to a folder that is removed again.
pub(super) fn on_trial(
    context: &Context,
    loaded: &Loaded,
) -> Result<Result<Capture, CaptureError>, Failure> {
    let trial = tempfile::tempdir().map_err(Failure::io("making a folder"))?;
    let request = Request {
        choice: &loaded.values.post_check,
        workspace: context.workspace.root(),
        home: context.variable("HOME").map(std::path::Path::new),
        search_path: context.variable("PATH").unwrap_or_default(),
    };
    Ok(capture::capture(&request, trial.path()))
}
