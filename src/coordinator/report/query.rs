//! What is known of executions and attempts: read from the ledger, without any lock.
//!
//! # Limitations
//! A picture of the moment: an attempt may have gone on when it is shown.

use crate::coordinator::attempt::drive::chain;
use crate::coordinator::attempt::outcome::{Facts, Outcome, RefsDocument, SCHEMA};
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::report::documents::{
    EventDocument, EventsDocument, ListDocument, ListedAttempt, ShowDocument, ShownAttempt,
};
use crate::coordinator::report::held;
use crate::coordinator::spec::AttemptSpec;
use crate::coordinator::words::typed;
use crate::journal::{Attempt, EventFilter, Filter, Ledger};
use crate::process;
use crate::tx::cause::QuarantineReason;
use crate::tx::id::{AttemptKey, ExecutionId};
use crate::tx::phase::PhaseTime;
use crate::tx::state::TxState;
use crate::tx::verdict::Row;

/// The facts that an outcome document takes from the spec.
pub fn facts(key: &AttemptKey, spec: &AttemptSpec) -> Facts {
    Facts {
        key: key.clone(),
        workspace: spec.workspace.root().to_string_lossy().into_owned(),
        branch: spec.branch_name().to_owned(),
        base: spec.base,
    }
}

/// Whether the coordinator of an attempt lives, by its identity; not known counts as no.
pub fn is_running(attempt: &Attempt) -> Result<bool, Failure> {
    if attempt.is_settled() {
        return Ok(false);
    }
    let owner = attempt.owner()?;
    Ok(owner.is_some_and(|o| process::is_alive(&o.host, &o.process) == Some(true)))
}

/// An attempt in one line.
pub fn listed(attempt: &Attempt) -> Result<ListedAttempt, Failure> {
    let spec: AttemptSpec = attempt.spec()?;
    let record = attempt.record()?;
    let outcome = Outcome::of(facts(&attempt.key, &spec), &record, None);
    Ok(ListedAttempt {
        execution_id: attempt.key.execution.clone(),
        attempt: attempt.key.attempt,
        state: record.state.tag(),
        outcome: outcome.as_ref().map(|o| o.outcome),
        reason: outcome.and_then(|o| o.reason).or_else(|| on_its_way(&record.state)),
        workspace: attempt.workspace.root.to_string_lossy().into_owned(),
        command: spec.command_line(),
        started_at: attempt.started_at.clone(),
        updated_at: attempt.updated_at.clone(),
        settled_at: attempt.settled_at.clone(),
        running: is_running(attempt)?,
    })
}

/// The reason of a state that has one before it is at an end.
fn on_its_way(state: &TxState) -> Option<String> {
    match state {
        TxState::RollingBack { undo } => Some(undo.cause.reason().to_owned()),
        _ => None,
    }
}

/// `list`. A `limit` of 0 is all.
pub fn list(context: &Context, unsettled: bool, limit: u32) -> Result<ListDocument, Failure> {
    let filter = Filter {
        settled: unsettled.then_some(false),
        limit: (limit > 0).then_some(limit),
        ..Filter::default()
    };
    list_by(context, &filter)
}

/// As [`list`], by anything that the ledger can tell apart.
pub fn list_by(context: &Context, filter: &Filter) -> Result<ListDocument, Failure> {
    let Some(ledger) = context.ledger()? else {
        return Ok(ListDocument { schema: SCHEMA, attempts: Vec::new() });
    };
    let attempts = ledger.attempts(filter)?.iter().map(listed).collect::<Result<_, _>>()?;
    Ok(ListDocument { schema: SCHEMA, attempts })
}

/// `show`
pub fn show(context: &Context, id: &str) -> Result<ShowDocument, Failure> {
    let ledger = context.need_ledger()?;
    let execution = ledger.resolve(id)?;
    let row = ledger.execution(&execution)?.map(|found| found.row);
    let filter = Filter { execution: Some(execution.clone()), ..Filter::default() };
    let mut attempts = Vec::new();
    for attempt in ledger.attempts(&filter)?.iter().rev() {
        attempts.push(shown(context, attempt, row.as_ref())?);
    }
    Ok(ShowDocument {
        schema: SCHEMA,
        execution_id: execution,
        execution_status: row.as_ref().map(|row| row.status),
        current_attempt: row.as_ref().and_then(|row| row.current_attempt),
        success_attempt: row.as_ref().and_then(|row| row.success).map(|claim| claim.attempt),
        error: row.and_then(|row| row.error),
        attempts,
    })
}

fn shown(context: &Context, attempt: &Attempt, row: Option<&Row>) -> Result<ShownAttempt, Failure> {
    let spec: AttemptSpec = attempt.spec()?;
    let record = attempt.record()?;
    let state = &record.state;
    let outcome = Outcome::of(facts(&attempt.key, &spec), &record, row.map(|row| row.status));
    let running = is_running(attempt)?;
    let mut commands = commands(&attempt.key, &spec, state, row, running);
    let (mut first, mut seen, mut seen_error) = (Vec::new(), None, None);
    if matches!(state, TxState::Quarantined { .. }) {
        match held::look(context, attempt, &spec, &record) {
            Ok(found) => {
                (first, commands) = held::commands(&attempt.key, &spec, state, row, &found);
                seen = Some(found);
            }
            Err(failure) => seen_error = Some(chain(&failure)),
        }
    }
    Ok(ShownAttempt {
        attempt: attempt.key.attempt,
        state: state.tag(),
        outcome: outcome.as_ref().map(|o| o.outcome),
        workspace: attempt.workspace.root.to_string_lossy().into_owned(),
        branch: spec.branch_name().to_owned(),
        command: spec.command_line(),
        base: spec.base,
        candidate: state.seal().map(|seal| seal.candidate),
        changes: state.seal().map(|seal| seal.changes),
        reason: outcome.as_ref().and_then(|o| o.reason.clone()).or_else(|| on_its_way(state)),
        detail: outcome.and_then(|o| o.detail),
        held: match state {
            TxState::Quarantined { held, .. } => Some(held.tag()),
            _ => None,
        },
        writer: state.writer().cloned(),
        turn: state.turn().cloned(),
        post_check: state.post_check().cloned(),
        refs: RefsDocument::of(&record),
        drift: record.drift.clone(),
        warnings: record.warnings.clone(),
        phases: recorded_phases(attempt),
        started_at: attempt.started_at.clone(),
        updated_at: attempt.updated_at.clone(),
        settled_at: attempt.settled_at.clone(),
        running,
        commands,
        first,
        seen,
        seen_error,
    })
}

/// The phases that the outcome of an attempt was recorded with.
fn recorded_phases(attempt: &Attempt) -> Vec<PhaseTime> {
    let phases = attempt.outcome.as_ref().and_then(|outcome| outcome.get("phases")).cloned();
    phases.and_then(|phases| serde_json::from_value(phases).ok()).unwrap_or_default()
}

/// The commands that would not be refused, as far as ledger and row tell; the likeliest first; none
/// for a settled attempt.
pub fn commands(
    key: &AttemptKey,
    spec: &AttemptSpec,
    state: &TxState,
    row: Option<&Row>,
    running: bool,
) -> Vec<String> {
    let mut all = legal(key, state, row, running, false);
    if let TxState::Quarantined { held, .. } = state
        && !held.is_past_commit_point()
        && held::would_lose(key, spec, row)
    {
        all.retain(|command| !command.contains("--adopt"));
    }
    all
}

/// The commands that the state allows; `unproven` where a writer is known not to be dead.
pub(super) fn legal(
    key: &AttemptKey,
    state: &TxState,
    row: Option<&Row>,
    running: bool,
    unproven: bool,
) -> Vec<String> {
    let id = &key.execution;
    let TxState::Quarantined { held, reason, .. } = state else {
        return match (state.tag().is_settled(), running) {
            (true, _) => Vec::new(),
            (false, true) => vec![typed("cancel", id, "")],
            (false, false) => vec!["worktx reconcile".to_owned()],
        };
    };
    if held.is_past_commit_point() {
        // Forward only: by itself once the way is free, or by whatever merge.
        return vec!["worktx reconcile".to_owned(), typed("resolve", id, "--adopt")];
    }
    let unproven = unproven || *reason == QuarantineReason::WriterUnproven;
    let word = if unproven { " --writer-dead" } else { "" };
    let ours = row.is_some_and(|row| row.success.is_some_and(|claim| claim.attempt == key.attempt));
    let options: &[&str] = match (ours, held.has_begun_undo()) {
        (true, _) => &["adopt"],
        (false, true) => &["discard", "keep"],
        (false, false) => &["adopt", "discard", "keep"],
    };
    options.iter().map(|option| typed("resolve", id, &format!("--{option}{word}"))).collect()
}

/// `events`
pub fn events(context: &Context, id: &str) -> Result<EventsDocument, Failure> {
    let ledger = context.need_ledger()?;
    let execution = ledger.resolve(id)?;
    let filter = EventFilter { execution: Some(execution.clone()), ..EventFilter::default() };
    let events = ledger.events(&filter)?.into_iter().map(|event| EventDocument {
        id: event.id,
        at: event.at,
        attempt: event.attempt,
        event: event.kind,
        from: event.from_state,
        to: event.to_state,
        detail: event.detail,
    });
    Ok(EventsDocument { schema: SCHEMA, events: events.collect(), execution_id: execution })
}

/// The attempt that a person means: a number of an execution, or the newest that fits.
pub(super) fn choose(
    ledger: &Ledger,
    execution: &ExecutionId,
    number: Option<u32>,
    fits: impl Fn(&Attempt) -> Result<bool, Failure>,
) -> Result<Option<Attempt>, Failure> {
    let filter = Filter { execution: Some(execution.clone()), ..Filter::default() };
    for attempt in ledger.attempts(&filter)? {
        let wanted = match number {
            Some(number) => attempt.key.attempt.0 == number,
            None => fits(&attempt)?,
        };
        if wanted {
            return Ok(Some(attempt));
        }
    }
    match number {
        Some(number) => Err(Failure::impossible(
            format!("execution {execution} has no attempt {number}"),
            typed("show", execution, ""),
        )),
        None => Ok(None),
    }
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;
