//! `show` as people read it.
//!
//! # Limitations
//! As of `render`.

use std::fmt::Write as _;

use super::{paths, post_check_line, state_word};
use crate::cli::explain;
use crate::cli::style::{Style, neutral};
use crate::coordinator::report::documents::{ShowDocument, ShownAttempt};
use crate::tx::phase::PhaseTime;
use crate::tx::tag::StateTag;

/// `show`
pub fn show(style: Style, document: &ShowDocument) -> String {
    let mut out = String::new();
    let status = document.execution_status.map_or("no row".to_owned(), |s| s.to_string());
    line!(out, "execution {}: {}", style.strong(&document.execution_id), status);
    if let Some(error) = &document.error {
        line!(out, "  error      {}", neutral(error));
    }
    for attempt in &document.attempts {
        line!(out);
        shown_attempt(&mut out, style, document, attempt);
    }
    out
}

fn shown_attempt(out: &mut String, style: Style, document: &ShowDocument, a: &ShownAttempt) {
    line!(out, "attempt {}: {}", a.attempt, state_word(style, a.state));
    if let Some(reason) = &a.reason {
        // What is held says it in whole sentences below.
        let detail = a.detail.as_deref().filter(|_| a.state != StateTag::Quarantined);
        let detail = detail.map_or_else(String::new, |d| format!(": {}", neutral(d)));
        line!(out, "  reason     {reason}{detail}");
    }
    if let Some(held) = a.held {
        line!(out, "  was        {held}");
    }
    line!(out, "  command    {}", neutral(&a.command));
    line!(out, "  workspace  {}", neutral(&a.workspace));
    line!(out, "  branch     {}", neutral(&a.branch));
    line!(out, "  base       {}", a.base);
    if let Some(candidate) = a.candidate {
        line!(out, "  candidate  {candidate}");
    }
    if let Some(c) = a.changes {
        line!(
            out,
            "  changes    {} added, {} modified, {} deleted",
            c.added,
            c.modified,
            c.deleted
        );
    }
    if let Some(turn) = &a.turn {
        match (turn.exit_code, turn.signal) {
            (Some(code), _) => {
                line!(out, "  turn       returned {code} after {} ms", turn.duration_ms);
            }
            (None, Some(signal)) => {
                line!(out, "  turn       ended by signal {signal} after {} ms", turn.duration_ms);
            }
            (None, None) => line!(out, "  turn       how it ended was not recorded"),
        }
        for process in &turn.killed {
            line!(
                out,
                "    ended    {} {} ({})",
                process.pid,
                neutral(&process.command),
                process.signal
            );
        }
    }
    if let Some(check) = &a.post_check {
        line!(out, "  post-check {}", post_check_line(check));
        if let Some(output) = check.output.as_deref().filter(|o| !o.is_empty()) {
            for text in neutral(output).lines() {
                line!(out, "    | {text}");
            }
        }
    }
    if !a.phases.is_empty() {
        // One that had only just begun when this was recorded says nothing.
        let told = a.phases.iter().filter(|time| time.duration_us >= 50);
        let phases: Vec<String> = told.map(phase).collect();
        line!(out, "  time       {}", phases.join(", "));
    }
    let is_held = a.state == StateTag::Quarantined;
    if let Some(writer) = a.writer.as_ref().filter(|_| !a.state.is_settled() && !is_held) {
        line!(
            out,
            "  writer     pid {} under supervisor {}",
            writer.leader.pid,
            writer.supervisor.pid
        );
    }
    line!(out, "  started    {}", a.started_at);
    if is_held {
        line!(out, "  held since {}", a.updated_at);
    }
    if let Some(settled) = &a.settled_at {
        line!(out, "  settled    {settled}");
    }
    let refs = a.refs.base.iter().chain(&a.refs.candidate);
    for name in refs.chain(&a.refs.discarded).chain(&a.refs.rescue).filter(|_| !is_held) {
        line!(out, "  kept in    {name}");
    }
    paths(
        out,
        "changed by somebody else",
        &a.drift.iter().map(ToString::to_string).collect::<Vec<_>>(),
    );
    for warning in &a.warnings {
        line!(out, "  {} {}", style.notice("warning:"), neutral(&warning.message));
    }
    for text in explain::explain(document, a) {
        line!(out, "  {text}");
    }
    if !a.commands.is_empty() && !is_held {
        let what = if a.running { "to end it:" } else { "to settle it, one of:" };
        line!(out, "  {what}");
        for command in &a.commands {
            line!(out, "    {command}");
        }
    }
}

/// A phase and how long it took.
fn phase(time: &PhaseTime) -> String {
    let name = time.phase.as_str().replace('_', "-");
    match time.duration_us {
        us @ ..10_000 => format!("{name} {}.{} ms", us / 1000, us % 1000 / 100),
        us @ ..10_000_000 => format!("{name} {} ms", us / 1000),
        us => format!("{name} {} s", us / 1_000_000),
    }
}
