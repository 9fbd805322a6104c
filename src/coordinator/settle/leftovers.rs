//! What crashes may have left beside the ledger, and whether an operator can be told: looked at for
//! `doctor`.
//!
//! # Limitations
//! It looks and changes nothing. Nothing of this keeps a run from starting.

use crate::coordinator::context::Context;
use crate::coordinator::notify;
use crate::git::workspace::lockfile;
use crate::journal::Ledger;
use crate::tx::id::AttemptKey;

/// One thing that was looked at.
pub(in crate::coordinator) struct Finding {
    /// What.
    pub(in crate::coordinator) name: &'static str,
    /// In a sentence.
    pub(in crate::coordinator) text: String,
    /// What to do about it; `None` where all is well.
    pub(in crate::coordinator) hint: Option<String>,
}

/// Looks; not while somebody is at work here.
pub(in crate::coordinator) fn leftovers(
    context: &Context,
    ledger: Option<&Ledger>,
) -> Vec<Finding> {
    let mut found = vec![marker(context, ledger), prepared(context, ledger)];
    found.extend(queue(context));
    found
}

fn is_unsettled(ledger: Option<&Ledger>, key: &AttemptKey) -> bool {
    let attempt = ledger.and_then(|ledger| ledger.attempt(key).ok().flatten());
    attempt.is_some_and(|attempt| !attempt.is_settled())
}

/// The marker names an attempt of this ledger that is over.
fn marker(context: &Context, ledger: Option<&Ledger>) -> Finding {
    let name = "marker";
    let own = context.place.ledger();
    // Another ledger's is looked at with the locks.
    match lockfile::read_marker(&context.workspace) {
        Ok(Some(marker)) if std::path::Path::new(&marker.ledger) == own => {
            if is_unsettled(ledger, &marker.attempt) {
                let text = format!("names attempt {}, which is not settled", marker.attempt);
                Finding { name, text, hint: None }
            } else {
                let text = format!("is stale: attempt {} is over", marker.attempt);
                let hint = "it only keeps other ledgers out; the next run here replaces it";
                Finding { name, text, hint: Some(hint.to_owned()) }
            }
        }
        Ok(_) => Finding { name, text: "none of this ledger".to_owned(), hint: None },
        Err(error) => {
            let hint = Some("look at worktx-marker in the git directory".to_owned());
            Finding { name, text: error.to_string(), hint }
        }
    }
}

/// Files for git's locks of attempts that are over.
fn prepared(context: &Context, ledger: Option<&Ledger>) -> Finding {
    let name = "prepared locks";
    let folder = context.place.local.join("prepared");
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let left: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            let key = name.rsplit_once('-').and_then(|(execution, attempt)| {
                let attempt = crate::tx::id::AttemptNo(attempt.parse().ok()?);
                Some(AttemptKey { execution: execution.parse().ok()?, attempt })
            });
            key.is_none_or(|key| !is_unsettled(ledger, &key))
        })
        .collect();
    if left.is_empty() {
        return Finding { name, text: "none are left over".to_owned(), hint: None };
    }
    let text = format!("left over in {}: {}", folder.display(), left.join(", "));
    let hint = "nobody uses them any more: they can be removed while no run is at work".to_owned();
    Finding { name, text, hint: Some(hint) }
}

/// Whether the operator queue could be written.
fn queue(context: &Context) -> Option<Finding> {
    let name = "operator queue";
    Some(match notify::check_queue(&context.user.values.operator)? {
        Ok(path) => Finding { name, text: path.display().to_string(), hint: None },
        Err(text) => {
            let hint = "until it can be written, nobody is told by it of what is quarantined";
            Finding { name, text, hint: Some(hint.to_owned()) }
        }
    })
}
