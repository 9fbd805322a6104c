//! What a quarantined attempt means, in plain words: why it is held, what there is now, what is
//! kept where, and the commands that settle it.
//!
//! # Limitations
//! One sentence for each reason; the details stand in the document beside it. What there is now is
//! a picture of the moment: each command looks again.

use super::style::neutral;
use crate::coordinator::report::documents::{
    SeenBranch, SeenTree, SeenWriter, ShowDocument, ShownAttempt,
};
use crate::coordinator::words;
use crate::tx::path::RepoPath;
use crate::tx::tag::StateTag;
use crate::tx::verdict::Status;

/// The lines about an attempt that an operator has to decide about; none about another.
pub fn explain(document: &ShowDocument, attempt: &ShownAttempt) -> Vec<String> {
    if attempt.state != StateTag::Quarantined {
        return Vec::new();
    }
    let mut lines = vec!["why it is held:".to_owned()];
    let mut add = |text: String| lines.push(format!("  {text}"));
    add(words::quarantine(attempt.reason.as_deref().unwrap_or_default()).to_owned());
    if let Some(detail) = attempt.detail.as_deref().filter(|detail| !detail.is_empty()) {
        add(format!("Detail: {}", neutral(detail)));
    }
    add(standing(attempt).to_owned());
    if let Some(writer) = &attempt.writer
        && attempt.seen.as_ref().is_none_or(|seen| seen.writer.state != "dead")
    {
        add(format!(
            "Look for pid {} (the command) and pid {} (its supervisor) and for what they started.",
            writer.leader.pid, writer.supervisor.pid
        ));
        add("--writer-dead is your word that none of it writes any more; it is recorded."
            .to_owned());
    }
    lines.push("what there is now:".to_owned());
    match (&attempt.seen, &attempt.seen_error) {
        (Some(seen), _) => {
            lines.push(format!("  processes  {}", processes(&seen.writer)));
            lines.push(format!("  branch     {}", branch(attempt, &seen.branch)));
            match (&seen.tree, &seen.tree_error) {
                (Some(found), _) => tree(&mut lines, found, attempt.held),
                (None, why) => {
                    let why = neutral(why.as_deref().unwrap_or("unknown"));
                    lines.push(format!("  tree       not looked at: {why}"));
                }
            }
        }
        (None, why) => {
            let why = neutral(why.as_deref().unwrap_or("unknown"));
            lines.push(format!("  it could not be looked at: {why}"));
        }
    }
    lines.push(format!("  row        {}", row(document, attempt)));
    let refs = &attempt.refs;
    let one = |name: &Option<String>, what| name.clone().map(|name| (name, what));
    let many =
        |names: &[String], what| names.iter().cloned().map(move |name| (name, what)).collect();
    let mut kept: Vec<(String, &str)> = Vec::new();
    kept.extend(one(&refs.base, "what it started from"));
    kept.extend(one(&refs.candidate, "what the command did"));
    kept.extend::<Vec<_>>(many(&refs.discarded, "what was undone, or was about to be"));
    kept.extend::<Vec<_>>(many(&refs.rescue, "what stood there and was not the command's"));
    columns(&mut lines, "what is kept:", kept);
    if !attempt.first.is_empty() {
        let steps = attempt.first.iter().map(|step| (step.command.clone(), step.what.as_str()));
        columns(&mut lines, "what has to be done first:", steps.collect());
    }
    let commands = attempt.commands.iter();
    let what = |command: &String| words::command(command, won(attempt)).unwrap_or_default();
    let commands = commands.map(|c| (c.clone(), what(c))).collect();
    columns(&mut lines, "what settles it, one of:", commands);
    lines
}

/// A title, and lines of a name and what it is; long names have a line of their own.
fn columns(lines: &mut Vec<String>, title: &str, rows: Vec<(String, &str)>) {
    if rows.is_empty() {
        return;
    }
    lines.push(title.to_owned());
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    for (name, what) in rows {
        let line = format!("  {name:width$}  {what}");
        lines.push(line.trim_end().to_owned());
    }
}

fn standing(attempt: &ShownAttempt) -> &'static str {
    match attempt.held {
        Some(StateTag::Committing | StateTag::CommittedFs) if won(attempt) => {
            "Its success stands: it is never undone, it only has to land."
        }
        Some(StateTag::RollingBack) => {
            "Its rollback had begun: part of the tree may be the base again already."
        }
        Some(StateTag::Open) => "Nothing was decided, and nothing of the tree was touched.",
        _ => "Nothing was decided: the tree holds what the command did.",
    }
}

/// Past the commit point nothing but completing is offered.
fn won(attempt: &ShownAttempt) -> bool {
    attempt.commands.iter().any(|command| command == "worktx reconcile")
}

fn processes(writer: &SeenWriter) -> String {
    let detail = neutral(writer.detail.as_deref().unwrap_or_default());
    match writer.state.as_str() {
        "dead" => "all proven dead".to_owned(),
        "alive" => format!("alive: {detail}"),
        _ => format!("not proven dead: {detail}"),
    }
}

fn branch(attempt: &ShownAttempt, seen: &SeenBranch) -> String {
    let name = neutral(&attempt.branch);
    let commit = seen.commit.map_or_else(String::new, |id| format!(" ({})", id.short()));
    let place = match seen.at.as_str() {
        "base" => "at the base",
        "sealed" => "where the work was sealed",
        "candidate" => "at the candidate",
        "past_candidate" => "past the candidate, which it contains",
        "past_base" => "past the base",
        "gone" => "gone",
        _ => "somewhere that does not descend from the base",
    };
    let head = if seen.head_is_on_it {
        String::new()
    } else {
        format!("; HEAD is not on it, but on {}", neutral(&seen.head))
    };
    format!("{name} is {place}{commit}{head}")
}

fn tree(lines: &mut Vec<String>, seen: &SeenTree, held: Option<StateTag>) {
    let mut groups = Vec::new();
    if seen.has_candidate {
        groups.push((seen.at_candidate, "of the command's work", &seen.candidate_paths));
        groups.push((seen.at_base, "as in the base again", &seen.base_paths));
        groups.push((
            seen.neither,
            "changed since: neither base nor candidate",
            &seen.neither_paths,
        ));
    } else if held == Some(StateTag::RollingBack) {
        groups.push((seen.neither, "not as in the base yet", &seen.neither_paths));
    } else {
        groups.push((seen.neither, "not as in the base", &seen.neither_paths));
    }
    groups.retain(|(count, ..)| *count > 0);
    if groups.is_empty() {
        lines.push("  tree       everything in scope is as in the base".to_owned());
    }
    for (count, what, paths) in groups {
        let noun = if count == 1 { "path" } else { "paths" };
        lines.push(format!("  tree       {count} {noun} {what}: {}", list(paths, count)));
    }
}

fn list(paths: &[RepoPath], count: u64) -> String {
    const SHOWN: usize = 5;
    let mut names: Vec<String> = paths.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = count.saturating_sub(names.len() as u64);
    if more > 0 {
        names.push(format!("… and {more} more"));
    }
    names.join(", ")
}

fn row(document: &ShowDocument, attempt: &ShownAttempt) -> String {
    let Some(status) = document.execution_status else { return "there is none".to_owned() };
    let own = |other: Option<crate::tx::id::AttemptNo>| other == Some(attempt.attempt);
    match status {
        Status::Success if own(document.success_attempt) => "success, of this attempt".to_owned(),
        Status::Success => match document.success_attempt {
            Some(other) => format!("success, of attempt {other}: this one cannot land any more"),
            None => "success, of somebody else: this one cannot land any more".to_owned(),
        },
        Status::Cancelled => "cancelled: this attempt cannot land any more".to_owned(),
        _ if document.current_attempt.is_some() && !own(document.current_attempt) => {
            let other = document.current_attempt.map(|n| n.to_string()).unwrap_or_default();
            format!("{status}, by attempt {other}: this one cannot land any more")
        }
        Status::Failed | Status::Skipped => {
            format!("{status}; a success of this attempt would still correct it")
        }
        _ => format!("{status}: there is no verdict yet"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tx::cause::QuarantineReason as Q;

    #[test]
    fn a_writer_that_may_live_is_named() {
        let host = serde_json::json!({
            "machine_id": "m", "boot_id": "b", "pid_namespace": 1, "init_start_ticks": 1
        });
        let process = |pid: i32| serde_json::json!({ "pid": pid, "start_ticks": 1 });
        let attempt = serde_json::json!({
            "attempt": 1, "state": "quarantined", "held": "open", "outcome": "quarantined",
            "workspace": "/w", "branch": "main", "command": "make",
            "base": crate::tx::id::Oid::EMPTY_TREE, "candidate": null, "changes": null,
            "reason": "writer_unproven", "detail": null, "turn": null, "post_check": null,
            "writer": {
                "host": host, "supervisor": process(20), "leader": process(21),
                "cgroup": null, "started_ticks": 1
            },
            "refs": { "base": null, "candidate": null, "discarded": [], "rescue": [] },
            "drift": [], "warnings": [], "started_at": "", "updated_at": "", "settled_at": null,
            "running": false, "commands": ["worktx resolve e --keep --writer-dead"],
            "seen_error": "no such tree"
        });
        let document = serde_json::json!({
            "schema": 1, "execution_id": "e", "execution_status": "running", "error": null,
            "current_attempt": 1, "attempts": [attempt]
        });
        let mut document: ShowDocument = serde_json::from_value(document).expect("a document");
        insta::assert_snapshot!(explain(&document, &document.attempts[0]).join("\n"), @r"
        why it is held:
          A process of the command may still be writing: nothing is touched until it is proven dead, or you say so.
          Nothing was decided, and nothing of the tree was touched.
          Look for pid 21 (the command) and pid 20 (its supervisor) and for what they started.
          --writer-dead is your word that none of it writes any more; it is recorded.
        what there is now:
          it could not be looked at: no such tree
          row        running: there is no verdict yet
        what settles it, one of:
          worktx resolve e --keep --writer-dead  keeps the work under a ref, leaves the tree, and says FAILED
        ");
        document.attempts[0].state = StateTag::Released;
        assert!(explain(&document, &document.attempts[0]).is_empty());
    }

    #[test]
    fn every_reason_has_its_sentence() {
        let why = String::new;
        let reasons = [
            Q::Interrupted,
            Q::WriterUnproven,
            Q::PromoteBlocked { why: why() },
            Q::RestoreBlocked { paths: Vec::new(), why: why() },
            Q::SealBlocked { why: why() },
            Q::BranchMoved { why: why() },
            Q::IndexChanged,
            Q::ForeignLock { lock: why() },
            Q::Drift { paths: Vec::new() },
            Q::Unstable { paths: Vec::new() },
            Q::GateUnknown { why: why() },
            Q::PostCheckUnstartable { why: why() },
            Q::PostCheckChanged,
            Q::PostCheckTouchedGit { why: why() },
            Q::GitChanged { what: Vec::new() },
            Q::WorkspaceDamaged { why: why() },
            Q::LockLost,
            Q::VerdictMismatch,
            Q::AdoptFailed { why: why() },
        ];
        assert_eq!(reasons.iter().map(Q::as_str).collect::<Vec<_>>(), Q::WORDS);
        let unknown = words::quarantine("no such word");
        for word in reasons.iter().map(Q::as_str) {
            assert_ne!(words::quarantine(word), unknown, "{word}");
        }
    }
}
