//! What a quarantined attempt means, in plain words: what is known, and what each of the commands
//! that settle it would do.
//!
//! # Limitations
//! One sentence for each reason; the details stand in the document beside it.

use crate::coordinator::documents::ShownAttempt;
use crate::coordinator::words;
use crate::tx::state::StateTag;

/// The sentences about an attempt that an operator has to decide about; none about another.
pub fn explain(attempt: &ShownAttempt) -> Vec<String> {
    if attempt.state != StateTag::Quarantined {
        return Vec::new();
    }
    let mut lines =
        vec![words::quarantine(attempt.reason.as_deref().unwrap_or_default()).to_owned()];
    lines.push(match attempt.held {
        Some(StateTag::Committing | StateTag::CommittedFs) if won(attempt) => {
            "Its success stands: it is never undone, it only has to land.".to_owned()
        }
        Some(StateTag::RollingBack) => {
            "Its rollback had begun: part of the tree may be the base again already.".to_owned()
        }
        Some(StateTag::Open) => {
            "Nothing was decided: the tree is as the command left it.".to_owned()
        }
        _ => "Nothing was decided: the tree holds what the command did.".to_owned(),
    });
    if let Some(writer) = &attempt.writer
        && attempt.reason.as_deref() == Some("writer_unproven")
    {
        lines.push(format!(
            "Look for pid {} (the command) and pid {} (its supervisor) and for what they started. \
             --writer-dead is your word that none of it writes any more; it is recorded.",
            writer.leader.pid, writer.supervisor.pid
        ));
    }
    lines.extend(attempt.commands.iter().filter_map(|command| meaning(command)));
    lines
}

/// Past the commit point nothing but completing is offered.
fn won(attempt: &ShownAttempt) -> bool {
    attempt.commands.iter().any(|command| command == "worktx reconcile")
}

fn meaning(command: &str) -> Option<String> {
    let name = command.split(' ').find(|word| word.starts_with("--")).unwrap_or("reconcile");
    words::command(command).map(|text| format!("{name} {text}."))
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
            "running": false, "commands": ["worktx resolve e --keep --writer-dead"]
        });
        let mut attempt: ShownAttempt = serde_json::from_value(attempt).expect("a document");
        insta::assert_snapshot!(explain(&attempt).join("\n"), @r"
        A process of the command may still be writing: nothing is touched until it is proven dead, or you say so.
        Nothing was decided: the tree is as the command left it.
        Look for pid 21 (the command) and pid 20 (its supervisor) and for what they started. --writer-dead is your word that none of it writes any more; it is recorded.
        --keep keeps the work under a ref, leaves the tree, and says FAILED.
        ");
        attempt.state = StateTag::Released;
        assert!(explain(&attempt).is_empty());
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
        let unknown = words::quarantine("no such word");
        for word in reasons.iter().map(Q::as_str) {
            assert_ne!(words::quarantine(word), unknown, "{word}");
        }
    }
}
