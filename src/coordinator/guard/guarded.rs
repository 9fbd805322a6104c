//! A workspace for somebody else: its lock, given only where the tree is at rest.
//!
//! Order rule: the lock first, then the question whether anything is unsettled; then it is settled,
//! and all of it is asked again. Nobody is let at a tree that holds a rejected turn's leftovers.
//!
//! # Limitations
//! A tree that somebody changed by hand is at rest.

use std::time::Duration;

use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::session::{self, Session};
use crate::coordinator::settle::reconcile;
use crate::coordinator::words::typed;
use crate::git::workspace::lockfile::{self, WorkspaceLock};
use crate::process::Signals;

/// Takes the lock, at once or within `wait`; what a crash left is settled first.
///
/// # Errors
/// As [`take`], where it could not be settled.
pub fn take_settled(
    context: &Context,
    command: &str,
    wait: Option<Duration>,
) -> Result<WorkspaceLock, Failure> {
    match take(context, command, wait) {
        // Not before the lock was to be had: until then a supervisor may still be at work.
        Err(Failure::Impossible { .. }) => {
            settle(context)?;
            take(context, command, wait)
        }
        taken => taken,
    }
}

/// Takes the lock, at once or within `wait`.
///
/// # Errors
/// Busy, or something here is unsettled; then the hint names the execution.
pub fn take(
    context: &Context,
    command: &str,
    wait: Option<Duration>,
) -> Result<WorkspaceLock, Failure> {
    let lock = WorkspaceLock::acquire(&context.workspace, &session::holder(command), wait)?;
    let ledger = context.place.ledger();
    lockfile::check_marker(&context.workspace, &ledger.to_string_lossy())?;
    if let Some(ledger) = session::read_ledger(&context.place)?
        && let Some(attempt) = ledger.unsettled(Some(&context.workspace.id()))?.first()
    {
        let (key, state) = (&attempt.key, attempt.tag()?);
        return Err(Failure::impossible(
            format!("attempt {key} is {state}, not settled: its leftovers may be in the tree"),
            typed("show", &attempt.key.execution, ""),
        ));
    }
    Ok(lock)
}

/// Settles what crashes left here, as before every run. A busy workspace is left to its owner.
fn settle(context: &Context) -> Result<(), Failure> {
    let signals = Signals::install().map_err(Failure::io("installing signal handlers"))?;
    let (workspace, place) = (context.workspace.clone(), context.place.clone());
    match Session::open(workspace, place, "reconcile") {
        Ok(mut session) => reconcile::reconcile(&mut session, signals, None).map(drop),
        Err(Failure::Busy { .. }) => Ok(()),
        Err(failure) => Err(failure),
    }
}
