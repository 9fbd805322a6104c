//! Which attempts an operator's decision is about, and where they lie: in any work tree of the
//! repository, whichever of them the command was called in.
//!
//! Order rule: each work tree is locked for its own attempts only, one after the other.
//!
//! # Limitations
//! A work tree that is gone keeps its attempts as they are: there is nothing left to decide about.

use crate::coordinator::attempt::drive::chain;
use crate::coordinator::attempt::outcome::{RefsDocument, SCHEMA};
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::report::documents::{ResolveDocument, ResolvedAttempt};
use crate::coordinator::session::Session;
use crate::coordinator::settle::resolve::{self, Choice};
use crate::journal::{Attempt, Filter, Ledger};
use crate::process::Signals;
use crate::tx::state::TxState;
use crate::tx::tag::StateTag;

/// What is decided about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The quarantined attempt of an execution, by a short form of its id.
    One(String),
    /// Every attempt of the repository that is quarantined for this reason.
    All(String),
}

/// Decides. About several, each is tried: what could not be done of one stands in its `detail`.
pub fn decide(
    context: &Context,
    which: &Which,
    choice: Choice,
    writer_dead: bool,
) -> Result<ResolveDocument, Failure> {
    let signals = Signals::install().map_err(Failure::io("installing signal handlers"))?;
    let ledger = context.need_ledger()?;
    let wanted = match which {
        Which::One(id) => one(&ledger, id)?,
        Which::All(reason) => all(&ledger, reason)?,
    };
    drop(ledger);
    let mut document =
        ResolveDocument { schema: SCHEMA, attempts: Vec::new(), warnings: Vec::new() };
    for attempt in wanted {
        let place = &attempt.workspace;
        let done = context.work_tree(&place.id, &place.root).and_then(|(workspace, place)| {
            let mut session = Session::open(workspace, place, "resolve")?;
            resolve::resolve(&mut session, signals, &attempt.key, choice, writer_dead)
        });
        match (done, which) {
            (Ok((resolved, warnings)), _) => {
                document.attempts.push(resolved);
                document.warnings.extend(warnings);
            }
            (Err(failure), Which::One(_)) => return Err(failure),
            (Err(failure), Which::All(_)) => {
                document.attempts.push(failed(&attempt, choice, &failure)?);
            }
        }
    }
    Ok(document)
}

fn one(ledger: &Ledger, id: &str) -> Result<Vec<Attempt>, Failure> {
    let execution = ledger.resolve(id)?;
    let filter = Filter { execution: Some(execution), ..Filter::default() };
    let mut attempts = ledger.attempts(&filter)?;
    let quarantined = attempts.iter().position(|a| a.state == StateTag::Quarantined.as_str());
    // The newest comes first.
    let at = quarantined.unwrap_or(0);
    Ok(if at < attempts.len() { vec![attempts.swap_remove(at)] } else { Vec::new() })
}

fn all(ledger: &Ledger, reason: &str) -> Result<Vec<Attempt>, Failure> {
    let mut wanted = Vec::new();
    for attempt in ledger.unsettled(None)? {
        if let TxState::Quarantined { reason: why, .. } = attempt.record()?.state
            && why.as_str() == reason
        {
            wanted.push(attempt);
        }
    }
    Ok(wanted)
}

fn failed(attempt: &Attempt, choice: Choice, why: &Failure) -> Result<ResolvedAttempt, Failure> {
    Ok(ResolvedAttempt {
        execution_id: attempt.key.execution.clone(),
        attempt: attempt.key.attempt,
        decision: choice.as_str().to_owned(),
        settled: false,
        state: attempt.tag()?,
        execution_status: None,
        verdict: None,
        detail: Some(chain(why)),
        refs: RefsDocument::of(&attempt.record()?),
    })
}
