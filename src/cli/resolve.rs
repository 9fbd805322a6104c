//! `worktx resolve`.
//!
//! # Limitations
//! `--all` decides about one reason at a time, so that nobody decides about what they did not see.

use super::args::{Global, ResolveArgs};
use super::style::Style;
use super::{context, exit, output, render};
use crate::coordinator::documents::ResolveDocument;
use crate::coordinator::error::Failure;
use crate::coordinator::outcome::SCHEMA;
use crate::coordinator::resolve::{self, Choice};
use crate::coordinator::session::Session;
use crate::journal::Filter;
use crate::process::Signals;
use crate::tx::id::AttemptKey;
use crate::tx::state::{StateTag, TxState};

/// Decides about quarantined attempts.
#[expect(clippy::needless_pass_by_value, reason = "the form of every command")]
pub(super) fn run(global: &Global, args: ResolveArgs) -> Result<u8, Failure> {
    let choice = match (args.adopt, args.discard) {
        (true, _) => Choice::Adopt,
        (_, true) => Choice::Discard,
        _ => Choice::Keep,
    };
    if args.all && choice != Choice::Discard {
        return Err(Failure::Usage("--all goes with --discard only".to_owned()));
    }
    let context = context(global)?;
    let signals = Signals::install().map_err(Failure::io("installing signal handlers"))?;
    let mut session = Session::open(context.workspace, context.place, "resolve", None)?;
    let mut document = ResolveDocument { schema: SCHEMA, attempts: Vec::new() };
    for key in wanted(&session, &args)? {
        let resolved = resolve::resolve(&mut session, signals, &key, choice, args.writer_dead)?;
        document.attempts.push(resolved);
    }
    if args.json {
        output::json(&document)?;
    } else {
        output::print(&render::resolve(Style::stdout(global.color), &document))?;
    }
    let left: Vec<_> = document.attempts.iter().filter(|a| !a.settled).collect();
    let lost = left.iter().any(|a| {
        a.execution_status.is_some_and(super::super::tx::verdict::Status::is_terminal)
            && a.detail.as_deref().is_some_and(|d| d.starts_with("adopt_failed"))
    });
    Ok(match (left.is_empty(), lost) {
        (true, _) => exit::OK,
        (false, true) => exit::VERDICT_LOST,
        (false, false) => exit::QUARANTINED,
    })
}

/// The attempts that are meant: the quarantined one of an execution, or all of a reason.
fn wanted(session: &Session, args: &ResolveArgs) -> Result<Vec<AttemptKey>, Failure> {
    if let Some(id) = &args.id {
        let execution = session.ledger.resolve(id)?;
        let filter = Filter { execution: Some(execution.clone()), ..Filter::default() };
        let attempts = session.ledger.attempts(&filter)?;
        let quarantined = attempts.iter().find(|a| a.state == StateTag::Quarantined.as_str());
        let chosen = quarantined.or_else(|| attempts.iter().max_by_key(|a| a.key.attempt));
        return Ok(chosen.map(|a| a.key.clone()).into_iter().collect());
    }
    let reason = args.reason.clone().unwrap_or_default();
    let mut keys = Vec::new();
    for attempt in session.ledger.unsettled(Some(&session.workspace.id()))? {
        if let TxState::Quarantined { reason: why, .. } = attempt.record()?.state
            && why.as_str() == reason
        {
            keys.push(attempt.key);
        }
    }
    Ok(keys)
}
