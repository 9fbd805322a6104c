//! The readers over real repositories; `git` is the judge of refs and patches.

use std::path::Path;

use super::*;
use crate::coordinator::attempt::outcome::OutcomeWord;
use crate::coordinator::guard;
use crate::coordinator::init::{GuardWish, classify, init};
use crate::coordinator::report::changes::{diff, restore};
use crate::coordinator::report::doctor::doctor;
use crate::coordinator::report::status::status;
use crate::coordinator::settle::cancel::cancel;
use crate::coordinator::test_lab::{Lab, committing, gone, held, seal, undo, writer};
use crate::hook::guard::{parse_updates, read_vouches};
use crate::hook::install::HooksFolder;
use crate::journal::LedgerError;
use crate::journal::Owner;
use crate::tx::state::VerdictState;
use crate::tx::tag::StateTag;
use crate::tx::verdict::{Claim, Status};

/// What a program reads fits its schema.
#[track_caller]
fn fits(name: &str, document: &impl serde::Serialize) {
    let path = format!("{}/docs/schema/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let schema: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).expect("there")).expect("JSON");
    let document = serde_json::to_value(document).expect("plain data");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let wrong: Vec<String> = validator.iter_errors(&document).map(|e| e.to_string()).collect();
    assert!(wrong.is_empty(), "{name}: {wrong:?}");
}

fn living() -> Owner {
    Owner { host: process::this_host(), process: process::own_process() }
}

#[test]
fn before_the_first_run_there_is_nothing_and_nothing_is_made() {
    let repo = crate::git::testkit::Repo::new();
    repo.commit("a", "1");
    let context = Lab::context(&repo, None);
    assert!(list(&context, false, 50).expect("read").attempts.is_empty());
    assert!(matches!(show(&context, "x"), Err(Failure::Impossible { .. })));
    assert!(doctor(&context).checks.iter().any(|check| check.name == "ledger"));
    drop(status(&context).expect("looked"));
    assert!(!repo.root().join(".git/worktx").exists());
    assert!(!repo.root().join(".git/worktx-workspace").exists());
}

#[test]
fn lists_and_shows_what_is_recorded() {
    let lab = Lab::new();
    let work = lab.work("a.txt", "two\n");
    lab.rolled_back("build-one", work);
    lab.open("deploy", &living());
    let listed = list(&lab.context, false, 50).expect("read").attempts;
    let short: Vec<_> =
        listed.iter().map(|a| (a.execution_id.as_str(), a.state, a.running)).collect();
    assert_eq!(
        short,
        [("deploy", StateTag::Open, true), ("build-one", StateTag::RolledBack, false)]
    );
    assert_eq!(listed[1].outcome, Some(OutcomeWord::RolledBack));
    assert_eq!(listed[1].reason.as_deref(), Some("turn_failed"));
    assert_eq!(listed[1].command, "make 'it so'");
    let unsettled = list(&lab.context, true, 0).expect("read").attempts;
    assert_eq!(unsettled.len(), 1);

    let shown = show(&lab.context, "bui").expect("by its beginning");
    assert_eq!(shown.execution_status, Some(Status::Running));
    fits("show", &shown);
    fits("list", &list(&lab.context, false, 0).expect("read"));
    fits("events", &events(&lab.context, "bui").expect("read"));
    assert_eq!(shown.attempts[0].turn.as_ref().and_then(|turn| turn.exit_code), Some(3));
    assert_eq!(shown.attempts[0].refs.discarded, ["refs/worktx/tx/build-one/1/discarded/1"]);
    assert!(shown.attempts[0].commands.is_empty());
    let kinds: Vec<_> =
        events(&lab.context, "bui").expect("read").events.into_iter().map(|e| e.event).collect();
    assert_eq!(kinds, ["opened", "test", "test"]);
    let none = show(&lab.context, "zzz");
    assert!(matches!(none, Err(Failure::Ledger(LedgerError::NoExecution { .. }))), "{none:?}");
}

#[test]
fn the_commands_are_the_legal_ones() {
    let key =
        AttemptKey { execution: "e".parse().expect("valid"), attempt: crate::tx::id::AttemptNo(1) };
    let oid = crate::tx::id::Oid::EMPTY_TREE;
    let of = |state: &TxState, row: Option<&Row>| legal(&key, state, row, false, false).join("; ");
    let why = || QuarantineReason::PromoteBlocked { why: String::new() };
    let open = || TxState::Open { turn: None };
    let all = "worktx resolve e --adopt; worktx resolve e --discard; worktx resolve e --keep";
    assert_eq!(of(&held(open(), QuarantineReason::Interrupted), None), all);
    assert_eq!(
        of(&held(open(), QuarantineReason::WriterUnproven), None),
        "worktx resolve e --adopt --writer-dead; worktx resolve e --discard --writer-dead; \
         worktx resolve e --keep --writer-dead"
    );
    let undoing = TxState::RollingBack { undo: undo() };
    assert_eq!(
        of(&held(undoing, why()), None),
        "worktx resolve e --discard; worktx resolve e --keep"
    );
    let won = committing(seal(oid, oid, oid), VerdictState::Won);
    assert_eq!(of(&held(won, why()), None), "worktx reconcile; worktx resolve e --adopt");
    // The row says SUCCESS for this very attempt: it is never taken back.
    let row = Row {
        execution: key.execution.clone(),
        status: Status::Success,
        current_attempt: Some(key.attempt),
        success: Some(Claim { attempt: key.attempt, candidate: oid }),
        claim_token: None,
        error: None,
    };
    let pending = committing(seal(oid, oid, oid), VerdictState::Pending);
    let state = held(pending, QuarantineReason::VerdictMismatch);
    assert_eq!(of(&state, Some(&row)), "worktx resolve e --adopt");
    assert_eq!(of(&open(), None), "worktx reconcile");
    assert_eq!(legal(&key, &open(), None, true, false), ["worktx cancel e"]);
    assert_eq!(of(&TxState::RolledBack { undo: None }, None), "");
}

#[test]
fn diff_and_restore_give_the_rejected_work_back() {
    let lab = Lab::new();
    let work = lab.work("new dir/b.txt", "rejected\n");
    let key = lab.rolled_back("build", work);
    let found = diff(&lab.context, "build", None).expect("read");
    assert_eq!((found.document.from, found.document.to), (lab.base, work));
    assert_eq!(found.document.paths.len(), 1);
    fits("diff", &found.document);
    assert_eq!(found.document.paths[0].change, "added");
    let mut text = Vec::new();
    found.write(&mut text).expect("made").expect("written");
    let git = ["diff", "--no-renames", "--abbrev=10", &lab.base.to_string(), &work.to_string()];
    assert_eq!(String::from_utf8_lossy(&text).trim_end(), lab.repo.git(&git));

    let made = restore(&lab.context, "build", None, None).expect("made");
    assert_eq!(made.branch, "worktx/restored-build-1");
    fits("restore", &made);
    assert_eq!(lab.repo.git(&["show", "worktx/restored-build-1:new dir/b.txt"]), "rejected");
    assert_eq!(lab.repo.git(&["status", "--porcelain"]), "");
    let again = restore(&lab.context, "build", None, None);
    assert!(matches!(again, Err(Failure::Impossible { .. })), "{again:?}");
    restore(&lab.context, "build", Some(1), Some("mine")).expect("under another name");
    let none = restore(&lab.context, "build", Some(7), None);
    assert!(matches!(none, Err(Failure::Impossible { .. })), "{none:?}");
    lab.open("fresh", &gone());
    assert!(diff(&lab.context, "fresh", None).is_err());
    assert!(lab.own_refs().contains(&format!("refs/worktx/tx/{key}/discarded/1")));
}

#[test]
fn a_cancel_wins_once() {
    let lab = Lab::new();
    let key = lab.open("build", &living());
    let first = cancel(&lab.context, "build").expect("answered");
    assert_eq!((first.verdict.as_str(), first.execution_status), ("won", Some(Status::Cancelled)));
    fits("cancel", &first);
    let second = cancel(&lab.context, "build").expect("answered");
    assert_eq!(second.verdict, "lost");
    let history = events(&lab.context, "build").expect("read").events;
    let cancels: Vec<_> = history.iter().filter(|event| event.event == "cancel").collect();
    assert_eq!(cancels.len(), 2);
    assert_eq!(cancels[0].attempt, Some(key.attempt));
    // The attempt is its coordinator's to end.
    assert_eq!(lab.attempt(&key).expect("there").tag().expect("known"), StateTag::Open);
}

#[test]
fn status_says_what_the_next_run_would() {
    let lab = Lab::new();
    let codes = |context: &Context| -> (Vec<&'static str>, bool) {
        let standing = status(context).expect("looked");
        let codes =
            standing.refusals.iter().map(crate::git::workspace::refusal::Refusal::code).collect();
        (codes, standing.document.can_be_base)
    };
    assert_eq!(codes(&lab.context), (Vec::new(), true));
    lab.repo.write("a.txt", "dirty\n");
    lab.repo.write("notes", "untracked\n");
    assert_eq!(codes(&lab.context), (vec!["modified_tracked"], false));
    lab.repo.git(&["checkout", "-q", "a.txt"]);
    assert_eq!(codes(&lab.context), (Vec::new(), true));
    let trinity = Lab::context(&lab.repo, Some("trinity"));
    assert_eq!(codes(&trinity), (vec!["untracked_present"], false));

    let key = lab.open("build", &gone());
    lab.set(&key, held(TxState::Open { turn: None }, QuarantineReason::Interrupted), &[]);
    lab.repo.write(".worktx/post-check", "no run bit");
    let standing = status(&lab.context).expect("looked");
    assert_eq!(standing.refusals[0].code(), "quarantined");
    assert_eq!(standing.document.unsettled.len(), 1);
    assert!(!standing.document.busy);
    assert_eq!(standing.document.warnings[0].code, "post_check_misconfigured");
    let session = lab.session();
    assert!(status(&lab.context).expect("looked").document.busy);
    drop(session);
    lab.repo.write(".worktx.toml", "[post_check]\ncheck = 'make test'\n");
    lab.repo.git(&["add", ".worktx.toml"]);
    lab.repo.git(&["commit", "-qm", "settings"]);
    let standing = status(&lab.context).expect("looked");
    assert_eq!(standing.document.post_check.as_deref(), Some("make test"));
}

#[test]
fn the_guard_lets_the_turn_pass_and_nobody_else() {
    let lab = Lab::new();
    let key = lab.open("build", &living());
    std::fs::create_dir_all(lab.folder(&key)).expect("made");
    let other = lab.work("a.txt", "two\n");
    let lines = format!("{} {other} refs/heads/main\n", lab.base);
    let updates = parse_updates(lines.as_bytes()).expect("git's");
    let ask = || guard::judge(lab.git_dir(), &updates).expect("answered");
    assert_eq!(ask(), None, "nobody holds the lock");
    let session = lab.session();
    let refused = ask().expect("somebody else's");
    assert_eq!((refused.0, refused.1.short()), (key.clone(), "main"));
    let parent = *process::own_ancestry().first().expect("has one");
    lab.set(&key, TxState::Open { turn: Some(writer(parent)) }, &[]);
    assert_eq!(ask(), None);
    let vouched = read_vouches(&lab.folder(&key).join(guard::VOUCHED)).expect("read");
    assert_eq!(vouched.len(), 1);
    assert_eq!((vouched[0].old, vouched[0].new), (lab.base, other));
    drop(session);
}

#[test]
fn doctor_finds_what_is_in_the_way() {
    let lab = Lab::new();
    let before = doctor(&lab.context);
    assert!(before.healthy, "{before:?}");
    let work = lab.work("a.txt", "two\n");
    let key = lab.rolled_back("build", work);
    lab.repo.git(&["update-ref", "-d", &format!("refs/worktx/tx/{key}/discarded/1")]);
    let stale = lab.context.place.prepared(&key);
    std::fs::create_dir_all(&stale).expect("made");
    std::fs::write(stale.join("lock"), "").expect("written");
    std::fs::hard_link(stale.join("lock"), lab.git_dir().join("HEAD.lock")).expect("linked");
    std::fs::write(lab.git_dir().join("index.lock"), "").expect("written");
    lab.repo.write(".gitattributes", "*.bin filter=lfs\n");
    lab.repo.git(&["config", "filter.lfs.clean", "false"]);
    let _ = std::fs::remove_file(lab.git_dir().join("index.lock"));
    let _ = std::fs::remove_file(lab.git_dir().join("HEAD.lock"));
    lab.repo.git(&["add", ".gitattributes"]);
    lab.repo.git(&["commit", "-qm", "attributes"]);
    std::fs::hard_link(stale.join("lock"), lab.git_dir().join("HEAD.lock")).expect("linked");
    std::fs::write(lab.git_dir().join("index.lock"), "").expect("written");
    lab.open("crashed", &gone());
    let found = doctor(&lab.context);
    assert!(!found.healthy);
    let says = |name: &str, text: &str| {
        let of = found.checks.iter().filter(|check| check.name == name && check.level != "ok");
        let all: Vec<_> = of.map(|check| check.detail.clone()).collect();
        assert!(all.iter().any(|detail| detail.contains(text)), "{name}: {all:?}");
    };
    says("pins", "is gone");
    says("git lock", "HEAD.lock was left by a worktx that crashed");
    says("git lock", "index.lock is not worktx's");
    says("filters", "*.bin filter=lfs (.gitattributes)");
    says("attempts", "crashed/1 is open and nobody drives it");
    for check in found.checks.iter().filter(|check| check.level != "ok") {
        assert!(check.hint.is_some(), "{check:?}");
    }
}

#[test]
fn init_leaves_git_status_clean_and_takes_the_guard_out_again() {
    let lab = Lab::new();
    let of = |wish| init(&lab.context, wish).expect("done").guard;
    assert_eq!(of(GuardWish::Leave), "absent");
    assert_eq!(of(GuardWish::Install), "installed");
    assert_eq!(of(GuardWish::Install), "present");
    assert_eq!(of(GuardWish::Leave), "present");
    assert_eq!(lab.repo.git(&["status", "--porcelain"]), "");
    assert_eq!(of(GuardWish::Remove), "removed");
    assert_eq!(of(GuardWish::Remove), "absent");

    let at = |folder: &Path| classify(&lab.context.workspace, folder).expect("looked");
    let root = lab.repo.root();
    assert_eq!(at(&root.join(".git/hooks")), HooksFolder::Outside);
    assert_eq!(at(Path::new("/somewhere/else")), HooksFolder::Outside);
    assert_eq!(at(&root.join(".githooks")), HooksFolder::InTree);
    lab.repo.write(".git/info/exclude", "/.githooks/\n");
    assert_eq!(at(&root.join(".githooks")), HooksFolder::Ignored);
    lab.repo.git(&["config", "core.hooksPath", "tracked"]);
    assert!(matches!(init(&lab.context, GuardWish::Install), Err(Failure::Install(_))));
}
