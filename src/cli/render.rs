//! Documents as people read them. Pure: from the document to text.
//!
//! # Limitations
//! Everything that another program said is neutralised before it is shown.

use std::fmt::Write as _;

use super::style::{Style, neutral};
use crate::coordinator::attempt::outcome::{Outcome, OutcomeWord};
use crate::coordinator::report::documents::{
    DiffDocument, DoctorDocument, EventsDocument, GcDocument, ListDocument, ListedAttempt,
    PostCheckDocument, ReconcileDocument, RefusalDocument, ResolveDocument, StatusDocument,
};
use crate::coordinator::words::typed;
use crate::tx::post_check::PostCheckOutcome;
use crate::tx::record::Warning;
use crate::tx::state::PostCheckRecord;
use crate::tx::tag::StateTag;
use crate::tx::verdict::Status;

/// How many paths are listed before the rest is only counted.
const SHOWN_PATHS: usize = 10;

/// Writing into a `String` cannot fail; this keeps that in one place.
macro_rules! line {
    ($out:expr) => { $out.push('\n') };
    ($out:expr, $($arg:tt)*) => {{
        let _ = writeln!($out, $($arg)*);
    }};
}

mod show;

pub use show::show;

/// Warnings of what a rollback did not put back.
const STAYS: [&str; 4] = ["nested_gone", "mount_left", "drift_left", "git_changed"];

/// The end of a run.
pub fn outcome(style: Style, outcome: &Outcome) -> String {
    let mut out = String::new();
    let id = outcome.execution_id.as_str();
    let word = match outcome.outcome {
        OutcomeWord::Committed => style.good("committed"),
        OutcomeWord::RolledBack => style.bad("rolled back"),
        OutcomeWord::Quarantined => style.notice("quarantined"),
        OutcomeWord::Unprotected => style.notice("unprotected"),
        other => style.bad(other.as_str()),
    };
    let attempt = outcome.attempt.map_or_else(String::new, |n| format!(", attempt {n}"));
    let replayed = if outcome.replayed { " (recorded before; nothing ran)" } else { "" };
    match outcome.outcome {
        OutcomeWord::Committed if outcome.reason.as_deref() == Some("nothing_to_commit") => {
            line!(
                out,
                "worktx: {}: nothing to commit{replayed} {}",
                style.good("succeeded"),
                style.faint(format!("({id}{attempt})"))
            );
        }
        OutcomeWord::Committed => {
            let commit = outcome.commit.map_or_else(String::new, |c| c.short());
            let branch = outcome.branch.as_deref().unwrap_or("HEAD");
            let changes = changes(outcome);
            let what = match outcome.branch {
                None if outcome.replayed => ": what was kept of it is dropped".to_owned(),
                _ => format!(" on {}: {changes}", neutral(branch)),
            };
            line!(
                out,
                "worktx: {word} {}{what}{replayed} {}",
                style.strong(commit),
                style.faint(format!("({id}{attempt})"))
            );
        }
        OutcomeWord::RolledBack => {
            line!(
                out,
                "worktx: {word}: {} {}",
                why(outcome),
                style.faint(format!("({id}{attempt})"))
            );
            let stays = |warning: &Warning| STAYS.contains(&warning.code.as_str());
            let something_stays = outcome.warnings.iter().any(stays);
            let but = if something_stays { ", but for what is told below" } else { "" };
            if outcome.refs.discarded.is_empty() {
                line!(out, "  the workspace is as it was before{but}");
            } else {
                line!(out, "  the workspace is as it was before{but}; the rejected work is kept:");
                line!(out, "    {}", typed("diff", &outcome.execution_id, ""));
                line!(out, "    {}", typed("restore", &outcome.execution_id, ""));
            }
        }
        OutcomeWord::Quarantined => {
            line!(
                out,
                "worktx: {word}: {} {}",
                why(outcome),
                style.faint(format!("({id}{attempt})"))
            );
            let begun = matches!(
                outcome.reason.as_deref(),
                Some("restore_blocked" | "promote_blocked" | "drift")
            );
            let touched = if begun { "it stays as it is now" } else { "nothing was touched" };
            line!(out, "  {touched}; to see what is known and to settle it:");
            line!(out, "    {}", typed("show", &outcome.execution_id, ""));
        }
        OutcomeWord::Unprotected => {
            let what = match outcome.reason {
                None => "the command ran without a transaction".to_owned(),
                Some(_) => format!("{}; it ran without a transaction", why(outcome)),
            };
            line!(out, "worktx: {word}: {what} {}", style.faint(format!("({id})")));
        }
        OutcomeWord::Refused | OutcomeWord::Busy | OutcomeWord::Error => {
            line!(out, "worktx: {word}: {} {}", why(outcome), style.faint(format!("({id})")));
        }
    }
    paths(&mut out, "paths", &outcome.paths.iter().map(ToString::to_string).collect::<Vec<_>>());
    if let Some(turn) = &outcome.turn
        && !turn.killed.is_empty()
    {
        line!(out, "  still running after the command, ended:");
        for process in &turn.killed {
            line!(out, "    {} {} ({})", process.pid, neutral(&process.command), process.signal);
        }
    }
    paths(
        &mut out,
        "changed by somebody else meanwhile",
        &outcome.drift.iter().map(ToString::to_string).collect::<Vec<_>>(),
    );
    for warning in &outcome.warnings {
        line!(out, "{} {}", style.notice("warning:"), neutral(&warning.message));
    }
    out
}

fn changes(outcome: &Outcome) -> String {
    let Some(counts) = outcome.changes else { return "no changes".to_owned() };
    let parts: Vec<String> =
        [(counts.added, "added"), (counts.modified, "modified"), (counts.deleted, "deleted")]
            .into_iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, word)| format!("{n} {word}"))
            .collect();
    if parts.is_empty() { "no changes".to_owned() } else { parts.join(", ") }
}

/// Why, in a sentence.
fn why(outcome: &Outcome) -> String {
    let reason = outcome.reason.as_deref().unwrap_or("unknown");
    let turn = outcome.turn.as_ref();
    let text = match reason {
        "turn_failed" => match turn.map(|t| (t.exit_code, t.signal)) {
            Some((Some(code), _)) => format!("the command returned {code}"),
            Some((None, Some(signal))) => format!("signal {signal} ended the command"),
            _ => "the command failed".to_owned(),
        },
        "turn_timeout" => "the command ran out of time".to_owned(),
        "settle_by" => "it was not done by --settle-by".to_owned(),
        "cancelled" => "cancelled".to_owned(),
        "interrupted" => match outcome.outcome {
            OutcomeWord::Quarantined => {
                "a crash cut the command off; nobody can say what it meant to keep".to_owned()
            }
            _ => "interrupted; the execution may be run again".to_owned(),
        },
        "crashed" => "a crash cut the command off".to_owned(),
        "redelivered" => "the same execution came again".to_owned(),
        "not_started" => "it never started".to_owned(),
        "post_check_failed" => match outcome.post_check.as_ref() {
            Some(PostCheckRecord { outcome: PostCheckOutcome::Timeout, .. }) => {
                "the post-check ran out of time".to_owned()
            }
            Some(PostCheckRecord { exit_code: Some(code), .. }) => {
                format!("the post-check returned {code}")
            }
            _ => "the post-check failed".to_owned(),
        },
        "post_check_missing" => "there is no post-check that runs, and one is required".to_owned(),
        "post_check_changed" => "the command changed the post-check".to_owned(),
        "unignored" => "the command un-ignored files that were ignored before".to_owned(),
        "too_large" => "the command created more than the limits allow".to_owned(),
        "filter_unsupported" => "the command put files under a git filter".to_owned(),
        "unstorable" => "the command left something that git cannot store".to_owned(),
        "unfit" => "the command left the repository so that no run could begin in it".to_owned(),
        "verdict_lost" => match outcome.execution_status {
            Some(Status::Cancelled) => "the execution was cancelled".to_owned(),
            Some(status) => format!("another writer's verdict stood first: {status}"),
            None => "another writer's verdict stood first".to_owned(),
        },
        "discarded" => "an operator discarded it".to_owned(),
        "released" => "an operator kept the tree as it is".to_owned(),
        "writer_unproven" => "a process of the command may still be writing".to_owned(),
        "promote_blocked" => "it won, and the branch cannot be moved yet".to_owned(),
        "restore_blocked" => "the workspace cannot be brought back whole".to_owned(),
        "seal_blocked" => "what the command did cannot be pinned".to_owned(),
        "branch_moved" => "the branch is not where it was, and nobody vouches for it".to_owned(),
        "index_changed" => "the index changed after the seal".to_owned(),
        "foreign_lock" => "a lock of git is in the way".to_owned(),
        "drift" => "files changed that are nobody's of this attempt".to_owned(),
        "unstable" => "files keep changing although the command is dead".to_owned(),
        "gate_unknown" => "the verdict is not known".to_owned(),
        "post_check_unstartable" => "the post-check could not be started".to_owned(),
        "post_check_touched_git" => {
            "the post-check changed HEAD, the branch or the index".to_owned()
        }
        "git_changed" => "the command changed the git directory".to_owned(),
        "workspace_damaged" => "the git directory is not what it was".to_owned(),
        "lock_lost" => "the workspace lock was lost".to_owned(),
        "verdict_mismatch" => "row and journal contradict each other".to_owned(),
        "adopt_failed" => "it could not be adopted".to_owned(),
        other => other.replace('_', " "),
    };
    match &outcome.detail {
        Some(detail) if !detail.is_empty() => format!("{text}: {}", neutral(detail)),
        _ => text,
    }
}

fn paths(out: &mut String, title: &str, paths: &[String]) {
    if paths.is_empty() {
        return;
    }
    line!(out, "  {title}:");
    for path in paths.iter().take(SHOWN_PATHS) {
        line!(out, "    {path}");
    }
    if paths.len() > SHOWN_PATHS {
        line!(out, "    … and {} more", paths.len() - SHOWN_PATHS);
    }
}

fn state_word(style: Style, state: StateTag) -> String {
    match state {
        StateTag::Done => style.good(state),
        StateTag::RolledBack => style.bad(state),
        StateTag::Quarantined => style.notice(state),
        _ => state.to_string(),
    }
}

/// `list`
pub fn list(style: Style, document: &ListDocument) -> String {
    if document.attempts.is_empty() {
        return "no attempts yet\n".to_owned();
    }
    attempts_table(style, &document.attempts)
}

fn attempts_table(style: Style, attempts: &[ListedAttempt]) -> String {
    let rows = attempts
        .iter()
        .map(|a| {
            vec![
                a.execution_id.to_string(),
                a.attempt.to_string(),
                state_word(style, a.state),
                standing(a),
                seconds(&a.started_at),
                shorten(&neutral(&a.command), 60),
            ]
        })
        .collect();
    style.table(&["execution", "attempt", "state", "reason", "started", "command"], rows) + "\n"
}

/// The reason; and of what is on its way, whether anybody is at it.
fn standing(a: &ListedAttempt) -> String {
    let at_work = match (a.state.is_settled() || a.state == StateTag::Quarantined, a.running) {
        (true, _) => None,
        (false, true) => Some("running"),
        (false, false) => Some("left by a crash"),
    };
    let parts: Vec<&str> = a.reason.as_deref().into_iter().chain(at_work).collect();
    parts.join(", ")
}

/// A time without its fraction of a second, for tables.
fn seconds(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(whole, _)| format!("{whole}Z"))
}

fn shorten(text: &str, width: usize) -> String {
    let one_line = text.replace(['\n', '\t'], " ");
    if one_line.chars().count() <= width {
        return one_line;
    }
    let head: String = one_line.chars().take(width - 1).collect();
    format!("{head}…")
}

fn post_check_line(check: &PostCheckRecord) -> String {
    let word = format!("{:?}", check.outcome).to_lowercase();
    let code = check.exit_code.map_or_else(String::new, |c| format!(", returned {c}"));
    let time = check.duration_ms.map_or_else(String::new, |ms| format!(" after {ms} ms"));
    format!("{word}{code}{time}")
}

/// `events`
pub fn events(style: Style, document: &EventsDocument) -> String {
    let rows = document
        .events
        .iter()
        .map(|e| {
            let states = match (&e.from, &e.to) {
                (Some(from), Some(to)) if from != to => format!("{from} → {to}"),
                (_, Some(to)) => to.clone(),
                _ => String::new(),
            };
            vec![
                e.at.clone(),
                e.attempt.map_or_else(|| "-".to_owned(), |n| n.to_string()),
                e.event.clone(),
                states,
                super::detail::detail(&e.detail),
            ]
        })
        .collect();
    style.table(&["at", "attempt", "event", "state", "detail"], rows) + "\n"
}

/// `status`
pub fn status(style: Style, d: &StatusDocument) -> String {
    let mut out = String::new();
    line!(out, "workspace  {}", neutral(&d.workspace));
    let head = d.head.map_or_else(|| "nothing".to_owned(), |h| h.short());
    line!(out, "branch     {} at {head}", neutral(d.branch.as_deref().unwrap_or("none")));
    line!(out, "state      {}", neutral(&d.state_dir));
    line!(out, "profile    {}", d.profile);
    line!(out, "post-check {}", neutral(d.post_check.as_deref().unwrap_or("none")));
    if d.busy {
        line!(
            out,
            "{}",
            style.notice("busy: a run, or a command that holds the workspace, is at work")
        );
    } else if d.can_be_base {
        line!(out, "{}", style.good("ready: the next run would start"));
    } else if d.is_left_by_a_crash() {
        line!(out, "{}", style.bad("not ready: a crash left an attempt on its way"));
        let is_cut_off = d.unsettled.iter().any(|a| !a.running && a.state == StateTag::Open);
        if is_cut_off {
            // By the settings it may go back by itself; nobody is promised that here.
            line!(
                out,
                "  Hint: worktx reconcile; what its command had begun is held for you to decide about"
            );
        } else {
            line!(out, "  Hint: worktx reconcile settles it; the next run does so first");
        }
    } else {
        line!(out, "{}", style.bad("not ready: the next run would not start"));
    }
    // What a turn at work has changed so far is no advice to anybody, and a quarantined attempt
    // comes before everything else.
    let is_quarantined = d.refusals.iter().any(|r| r.reason == "quarantined");
    let shown = |r: &&RefusalDocument| !d.busy && (!is_quarantined || r.reason == "quarantined");
    for refusal in d.refusals.iter().filter(shown) {
        line!(out, "  {}: {}", refusal.reason, neutral(&refusal.message));
        paths(
            &mut out,
            "paths",
            &refusal.paths.iter().map(ToString::to_string).collect::<Vec<_>>(),
        );
        if let Some(hint) = &refusal.hint {
            line!(out, "  Hint: {hint}");
        }
    }
    if !d.unsettled.is_empty() {
        line!(out, "not settled:");
        out.push_str(&attempts_table(style, &d.unsettled));
    }
    for warning in &d.warnings {
        line!(out, "{} {}", style.notice("warning:"), neutral(&warning.message));
    }
    out
}

/// `diff --name-only`
pub fn diff_names(document: &DiffDocument) -> String {
    document.paths.iter().fold(String::new(), |mut out, p| {
        let letter = p.change.chars().next().unwrap_or('?').to_ascii_uppercase();
        line!(out, "{letter}\t{}", p.path);
        out
    })
}

/// `reconcile`
pub fn reconcile(style: Style, d: &ReconcileDocument) -> String {
    let mut out = String::new();
    for warning in &d.warnings {
        line!(out, "{} {}", style.notice("warning:"), neutral(&warning.message));
    }
    if d.attempts.is_empty() {
        line!(out, "nothing to reconcile: every attempt is settled");
        return out;
    }
    for a in &d.attempts {
        let reason = a.reason.as_deref().map_or_else(String::new, |r| format!(" ({r})"));
        let detail = a.detail.as_deref().map_or_else(String::new, |t| format!(": {}", neutral(t)));
        line!(
            out,
            "{}/{}: {} → {}{reason}{detail}",
            a.execution_id,
            a.attempt,
            a.from,
            state_word(style, a.state)
        );
        if a.state == StateTag::Quarantined {
            line!(out, "  {}", typed("show", &a.execution_id, ""));
        }
    }
    line!(
        out,
        "rolled forward {}, rolled back {}, quarantined {}, left {}",
        d.rolled_forward,
        d.rolled_back,
        d.quarantined,
        d.left
    );
    out
}

/// `resolve`
pub fn resolve(style: Style, d: &ResolveDocument) -> String {
    let mut out = String::new();
    for a in &d.attempts {
        line!(
            out,
            "{}/{}: {} → {}",
            a.execution_id,
            a.attempt,
            a.decision,
            state_word(style, a.state)
        );
        if let Some(detail) = &a.detail {
            line!(out, "  {}", neutral(detail));
        }
        for name in a.refs.discarded.iter().chain(&a.refs.rescue) {
            line!(out, "  kept in {name}");
        }
    }
    if d.attempts.is_empty() {
        line!(out, "nothing to resolve");
    }
    for warning in &d.warnings {
        line!(out, "{} {}", style.notice("warning:"), neutral(&warning.message));
    }
    out
}

/// `post-check`
pub fn post_check(style: Style, d: &PostCheckDocument) -> String {
    let mut out = String::new();
    let is_interrupted = d.decision == "interrupted";
    let check = if is_interrupted { d.decision.clone() } else { post_check_line(&d.post_check) };
    line!(out, "post-check {check}");
    if let Some(origin) = &d.origin {
        let why = d.why.as_ref().map_or_else(String::new, |why| format!(" cannot run: {why}"));
        line!(out, "  {}{}", neutral(origin), neutral(&why));
    }
    if is_interrupted {
        line!(out, "it was ended before it said anything: nothing can be told of a turn");
        return out;
    }
    let decision = match d.decision.as_str() {
        "commit" => style.good("would be committed"),
        "roll_back" => style.bad("would be rolled back"),
        other => style.notice(other),
    };
    match d.view.as_str() {
        "checkout" => line!(out, "a turn whose candidate was like HEAD {decision}"),
        _ => line!(out, "a turn that left the tree like this {decision}"),
    }
    out
}

/// `gc`
pub fn gc(d: &GcDocument) -> String {
    let verb = if d.dry_run { "would drop" } else { "dropped" };
    let mut out = String::new();
    line!(
        out,
        "{verb} {} attempts and {} refs; {} attempts stay, {} of them not settled",
        d.removed.len(),
        d.refs_removed,
        d.kept,
        d.unsettled
    );
    out
}

/// `doctor`
pub fn doctor(style: Style, d: &DoctorDocument) -> String {
    let mut out = String::new();
    for check in &d.checks {
        let level = match check.level.as_str() {
            "ok" => style.good("ok     "),
            "warning" => style.notice("warning"),
            _ => style.bad("problem"),
        };
        line!(out, "{level}  {}: {}", check.name, neutral(&check.detail));
        if let Some(hint) = &check.hint {
            line!(out, "         Hint: {hint}");
        }
    }
    out
}
