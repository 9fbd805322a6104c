//! A server's first look at a work tree, by a process of its own.
//!
//! # Limitations
//! It holds the workspace's lock meanwhile: who wants to run a command waits for it.

use std::cell::RefCell;
use std::path::PathBuf;

use crate::coordinator::attempt::begin::{Begin, RunRequest};
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::session::Session;
use crate::coordinator::warm::Warmth;
use crate::git::workspace::lockfile::Holder;
use crate::process::Signals;

/// What a server's first look is called where it says who holds the lock.
const WARM_UP: &str = "warm-up";

/// Whether the workspace's lock is held by a server's first look.
pub(in crate::coordinator) fn is_warming(holder: Option<&Holder>) -> bool {
    holder.is_some_and(|holder| holder.command == WARM_UP)
}

/// Looks at a work tree so that a server that watches it knows it before the first turn. Where it
/// cannot be a base, nothing is known, and nothing is wrong with that.
///
/// # Errors
/// As [`crate::coordinator::attempt::begin::run`], before anything runs.
pub fn warm_up(context: &Context) -> Result<(), Failure> {
    let signals = Signals::install().map_err(Failure::io("installing signal handlers"))?;
    let request = RunRequest {
        context: context.clone(),
        execution: WARM_UP.parse().map_err(Failure::bug)?,
        timeout: None,
        settle_by: None,
        wait: None,
        triggered_by: None,
        claim_token: None,
        json: false,
        verify_all: false,
        command: Vec::new(),
        watcher: None,
    };
    let mut session = Session::open(context.workspace.clone(), context.place.clone(), WARM_UP)?;
    session.warmth =
        RefCell::new(Warmth::connect_patiently(&session.place, session.lock.descriptor()));
    let mut begin = Begin::new(&request, signals, PathBuf::new(), context.git_env());
    begin.is_warming = true;
    // The first look may write the manifest, by which the watch is begun; the second one knows that
    // nothing happened in between.
    for _ in 0..2 {
        begin.judge(&mut session)?;
        session.warmth.borrow_mut().wait_for_begin();
    }
    begin.judge(&mut session)?;
    Ok(())
}
