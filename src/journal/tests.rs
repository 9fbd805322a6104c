//! Writing and reading attempts, on real files; the `sqlite3` binary is the judge of the rules
//! that the schema keeps.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::*;
use crate::tx::cause::QuarantineReason;
use crate::tx::id::{AttemptKey, AttemptNo, ExecutionId};
use crate::tx::record::AttemptRecord;
use crate::tx::state::TxState;
use crate::tx::tag::StateTag;
use crate::tx::verdict::Status;
use crate::tx::writer::{HostId, ProcessId};

pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ledger: Ledger,
}

pub(crate) fn fixture() -> Fixture {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ledger = Ledger::create(&dir.path().join("state/ledger.db")).expect("made");
    Fixture { dir, ledger }
}

pub(crate) fn id(text: &str) -> ExecutionId {
    text.parse().expect("valid")
}

pub(crate) fn owner(pid: i32) -> Owner {
    Owner {
        host: HostId {
            machine_id: "m".to_owned(),
            boot_id: "b".to_owned(),
            pid_namespace: 4_026_531_836,
            init_start_ticks: 7,
        },
        process: ProcessId { pid, start_ticks: 11 },
    }
}

pub(crate) fn workspace(name: &str) -> Workspace {
    Workspace {
        id: name.to_owned(),
        root: Path::new("/w").join(name),
        git_dir: Path::new("/w").join(name).join(".git"),
    }
}

pub(crate) fn open_with(
    ledger: &mut Ledger,
    execution: &ExecutionId,
    largest_in_refs: Option<u32>,
    claim_token: Option<&str>,
) -> Opened {
    let new = NewAttempt {
        execution,
        largest_in_refs: largest_in_refs.map(AttemptNo),
        workspace: &workspace("main"),
        owner: &owner(1),
        claim_token,
    };
    ledger
        .open_attempt(&new, |n| Facts {
            record: AttemptRecord::open(),
            spec: json!({ "command": ["true"], "number": n }),
            detail: Value::Null,
        })
        .expect("written")
}

pub(crate) fn open(ledger: &mut Ledger, execution: &ExecutionId) -> AttemptKey {
    match open_with(ledger, execution, None, None) {
        Opened::Attempt(key) => key,
        Opened::Standing(row) => panic!("stands: {row:?}"),
    }
}

pub(crate) fn in_state(state: TxState) -> AttemptRecord {
    AttemptRecord { state, ..AttemptRecord::open() }
}

pub(crate) fn change<'a>(key: &'a AttemptKey, rev: u64, to: &'a AttemptRecord) -> Change<'a> {
    Change {
        key,
        expected: StateTag::Open,
        rev,
        record: to,
        event: "test",
        detail: &Value::Null,
        outcome: None,
    }
}

fn settle(ledger: &mut Ledger, key: &AttemptKey) {
    let record = in_state(TxState::RolledBack { undo: None });
    ledger.transition(&change(key, 0, &record)).expect("written");
}

/// What the `sqlite3` binary says to a statement: its output, or its complaint.
pub(crate) fn sqlite3(path: &Path, sql: &str) -> Result<String, String> {
    let out = Command::new("sqlite3").arg(path).arg(sql).output().expect("sqlite3 runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    if out.status.success() { Ok(text(out.stdout)) } else { Err(text(out.stderr)) }
}

#[test]
fn opening_takes_the_row_and_records_the_attempt_as_one() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    let key = open(&mut ledger, &id("e"));
    assert_eq!(key.attempt, AttemptNo(1));
    let attempt = ledger.attempt(&key).expect("read").expect("there");
    assert_eq!(attempt.record().expect("known"), AttemptRecord::open());
    assert_eq!(attempt.spec::<Value>().expect("known")["number"], json!(1));
    assert_eq!(attempt.owner().expect("known"), Some(owner(1)));
    assert_eq!((attempt.rev, attempt.is_settled()), (0, false));
    assert_eq!(attempt.workspace, workspace("main"));
    let execution = ledger.execution(&key.execution).expect("read").expect("there");
    assert_eq!(execution.row.status, Status::Running);
    assert_eq!(execution.row.current_attempt, Some(AttemptNo(1)));
    let events = ledger.events(&EventFilter::default()).expect("read");
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].kind.as_str(), events[0].attempt), ("opened", Some(AttemptNo(1))));
    assert_eq!(events[0].to_state.as_deref(), Some("open"));
}

#[test]
fn attempt_numbers_are_never_used_again() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    let execution = id("e");
    let first = open(&mut ledger, &execution);
    settle(&mut ledger, &first);
    assert_eq!(open(&mut ledger, &execution).attempt, AttemptNo(2));
    // The refs know more than the ledger.
    let Opened::Attempt(key) = open_with(&mut ledger, &execution, Some(6), None) else {
        panic!("stands")
    };
    assert_eq!(key.attempt, AttemptNo(7));
    settle(&mut ledger, &key);
    // The record is gone, the row remembers.
    ledger.remove_settled(std::slice::from_ref(&key)).expect("removed");
    assert_eq!(open(&mut ledger, &execution).attempt, AttemptNo(8));
}

#[test]
fn a_finished_execution_is_given_back_and_nothing_is_written() {
    for status in ["success", "cancelled", "skipped"] {
        let Fixture { mut ledger, dir: _dir } = fixture();
        let key = open(&mut ledger, &id("e"));
        let sql = format!("UPDATE execution SET status = '{status}'");
        sqlite3(ledger.path(), &sql).expect("written");
        let opened = open_with(&mut ledger, &key.execution, None, Some("token"));
        let Opened::Standing(row) = opened else { panic!("{status}: {opened:?}") };
        assert_eq!(row.status.as_str(), status);
        assert_eq!(ledger.attempts(&Filter::default()).expect("read").len(), 1);
        assert_eq!(ledger.last_event_id().expect("read"), 1);
    }
    let Fixture { mut ledger, dir: _dir } = fixture();
    let key = open(&mut ledger, &id("e"));
    sqlite3(ledger.path(), "UPDATE execution SET status = 'failed', error = '[x] y'").expect("ok");
    let next = open_with(&mut ledger, &key.execution, None, Some("token"));
    assert_eq!(next, Opened::Attempt(AttemptKey { attempt: AttemptNo(2), ..key }));
    let row = ledger.execution(&id("e")).expect("read").expect("there").row;
    assert_eq!((row.status, row.error), (Status::Running, None));
    assert_eq!(row.claim_token.as_deref(), Some("token"));
}

#[test]
fn a_change_needs_the_state_and_the_revision_that_stand() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    let key = open(&mut ledger, &id("e"));
    let held = in_state(TxState::Quarantined {
        held: Box::new(TxState::Open { turn: None }),
        reason: QuarantineReason::Interrupted,
        fingerprint: None,
    });
    let mut warned = AttemptRecord::open();
    warned.warn("w", "a warning");
    // Same state, other data: the revision tells them apart.
    assert_eq!(ledger.transition(&change(&key, 0, &warned)).expect("written"), 1);
    let stale = ledger.transition(&change(&key, 0, &held)).expect_err("stale");
    assert!(
        matches!(&stale, LedgerError::Stale { found: Some((s, 1)), .. } if s == "open"),
        "{stale}"
    );
    assert_eq!(ledger.transition(&change(&key, 1, &held)).expect("written"), 2);
    let stale = ledger.transition(&change(&key, 2, &held)).expect_err("stale");
    assert!(
        matches!(&stale, LedgerError::Stale { found: Some((s, 2)), .. } if s == "quarantined"),
        "{stale}"
    );
    let nobody = AttemptKey { attempt: AttemptNo(9), ..key.clone() };
    let stale = ledger.transition(&change(&nobody, 0, &held)).expect_err("stale");
    assert!(matches!(stale, LedgerError::Stale { found: None, .. }), "{stale}");
    // A change that lost leaves no event.
    let events = ledger.events(&EventFilter { execution: Some(id("e")), ..Default::default() });
    assert_eq!(events.expect("read").len(), 3);
    let attempt = ledger.attempt(&key).expect("read").expect("there");
    assert_eq!(attempt.record().expect("known"), held);
    assert!(!attempt.is_settled(), "quarantined is not settled");
    assert_eq!(ledger.unsettled(Some("main")).expect("read").len(), 1);
    assert_eq!(ledger.unsettled(Some("other")).expect("read").len(), 0);
}

#[test]
fn settling_comes_with_its_outcome_and_stays() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    let key = open(&mut ledger, &id("e"));
    let record = in_state(TxState::RolledBack { undo: None });
    let outcome = json!({ "schema": 1 });
    let settling = Change { outcome: Some(&outcome), ..change(&key, 0, &record) };
    ledger.transition(&settling).expect("written");
    let attempt = ledger.attempt(&key).expect("read").expect("there");
    assert_eq!(attempt.outcome, Some(outcome));
    let settled_at = attempt.settled_at.expect("settled");
    // Warnings may still come; the state may not change.
    let again = Change { expected: StateTag::RolledBack, ..change(&key, 1, &record) };
    ledger.transition(&again).expect("written");
    let open = AttemptRecord::open();
    let back = Change { expected: StateTag::RolledBack, ..change(&key, 2, &open) };
    let error = ledger.transition(&back).expect_err("refused");
    assert!(matches!(error, LedgerError::Sqlite { .. }), "{error}");
    ledger.set_outcome(&key, &json!({ "schema": 2 })).expect("written");
    let attempt = ledger.attempt(&key).expect("read").expect("there");
    assert_eq!(attempt.settled_at, Some(settled_at));
    assert_eq!((attempt.rev, attempt.outcome), (2, Some(json!({ "schema": 2 }))));
    assert!(ledger.unsettled(None).expect("read").is_empty());
}

#[test]
fn a_refusal_touches_no_row() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    let refused = json!({ "reason": "dirty" });
    ledger.record_event(&id("r"), None, "refused", &refused).expect("written");
    assert_eq!(ledger.execution(&id("r")).expect("read"), None);
    let events = ledger.events(&EventFilter::default()).expect("read");
    assert_eq!((events[0].attempt, &events[0].detail), (None, &refused));
    // Its id can be shortened all the same, to ask for its events.
    assert_eq!(ledger.resolve("r").expect("known"), id("r"));
}

#[test]
fn an_owner_is_taken_over_once() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    let key = open(&mut ledger, &id("e"));
    ledger.claim_owner(&key, Some(&owner(1)), &owner(2)).expect("written");
    let late = ledger.claim_owner(&key, Some(&owner(1)), &owner(3)).expect_err("late");
    assert!(matches!(late, LedgerError::OwnerChanged { .. }), "{late}");
    let attempt = ledger.attempt(&key).expect("read").expect("there");
    assert_eq!(attempt.owner().expect("known"), Some(owner(2)));
    let nobody = AttemptKey { attempt: AttemptNo(2), ..key };
    let error = ledger.claim_owner(&nobody, None, &owner(3)).expect_err("nobody");
    assert!(matches!(error, LedgerError::NoAttempt { .. }), "{error}");
}

#[test]
fn short_ids_are_resolved_when_they_are_clear() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    for name in ["nightly", "nightly-2", "weekly", "01JD00000000000000ABCDEFGH"] {
        open(&mut ledger, &id(name));
    }
    let clear = |short: &str| ledger.resolve(short).expect("clear").to_string();
    assert_eq!(clear("nightly"), "nightly", "a whole id is itself");
    assert_eq!(clear("w"), "weekly");
    assert_eq!(clear(id("01JD00000000000000ABCDEFGH").short()), "01JD00000000000000ABCDEFGH");
    let error = ledger.resolve("night").expect_err("two");
    let LedgerError::Ambiguous { ids, .. } = error else { panic!("{error}") };
    assert_eq!(ids, [id("nightly"), id("nightly-2")]);
    for nobody in ["", "x", "eekly", "%", "night_y"] {
        let error = ledger.resolve(nobody).expect_err(nobody);
        assert!(matches!(error, LedgerError::NoExecution { .. }), "{nobody}: {error}");
    }
}

#[test]
fn lists_go_by_what_is_asked_for() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    let first = open(&mut ledger, &id("a"));
    settle(&mut ledger, &first);
    let second = open(&mut ledger, &id("a"));
    let third = open(&mut ledger, &id("b"));
    let keys = |filter: Filter| -> Vec<AttemptKey> {
        ledger.attempts(&filter).expect("read").into_iter().map(|a| a.key).collect()
    };
    assert_eq!(keys(Filter::default()), [third.clone(), second.clone(), first.clone()]);
    let of_a = Filter { execution: Some(id("a")), ..Filter::default() };
    assert_eq!(keys(of_a), [second.clone(), first.clone()]);
    assert_eq!(keys(Filter { limit: Some(1), ..Filter::default() }), [third]);
    assert_eq!(
        keys(Filter { settled: Some(true), ..Filter::default() }),
        std::slice::from_ref(&first)
    );
    let rolled = Filter { state: Some(StateTag::RolledBack), ..Filter::default() };
    assert_eq!(keys(rolled), [first]);
    assert!(keys(Filter { workspace: Some("x".to_owned()), ..Filter::default() }).is_empty());
    let after = EventFilter { after: Some(2), ..EventFilter::default() };
    assert_eq!(ledger.events(&after).expect("read").len(), 2);
    let of_one =
        EventFilter { execution: Some(id("a")), attempt: Some(second.attempt), after: None };
    assert_eq!(ledger.events(&of_one).expect("read").len(), 1);
}

#[test]
fn only_settled_attempts_are_removed_with_their_events() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    let key = open(&mut ledger, &id("e"));
    let error = ledger.remove_settled(std::slice::from_ref(&key)).expect_err("unsettled");
    assert!(matches!(error, LedgerError::NotSettled { .. }), "{error}");
    ledger.record_event(&id("e"), None, "refused", &Value::Null).expect("written");
    settle(&mut ledger, &key);
    ledger.remove_settled(std::slice::from_ref(&key)).expect("removed");
    assert!(ledger.attempt(&key).expect("read").is_none());
    assert_eq!(ledger.events(&EventFilter::default()).expect("read").len(), 1);
    assert!(ledger.execution(&id("e")).expect("read").is_some(), "the row stays");
    assert_eq!(ledger.last_event_id().expect("read"), 3, "numbers are not reused");
    assert_eq!(ledger.remove_refusals_before("2000").expect("removed"), 0);
    assert_eq!(ledger.remove_refusals_before("9999").expect("removed"), 1);
    assert_eq!(sqlite3(ledger.path(), "SELECT count(*) FROM removal").as_deref(), Ok("0"));
    let error = ledger.remove_settled(std::slice::from_ref(&key)).expect_err("gone");
    assert!(matches!(error, LedgerError::NoAttempt { .. }), "{error}");
}

#[test]
fn the_schema_keeps_its_rules_against_any_program() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    let key = open(&mut ledger, &id("e"));
    settle(&mut ledger, &key);
    open(&mut ledger, &id("e"));
    for (sql, rule) in [
        ("UPDATE event SET kind = 'x'", "an event is never changed"),
        ("DELETE FROM event", "an event is never deleted"),
        ("DELETE FROM attempt", "an attempt is never deleted"),
        ("DELETE FROM execution", "an execution row is never deleted"),
        ("UPDATE attempt SET spec = '{}'", "the facts of an attempt never change"),
        ("UPDATE attempt SET started_at = ''", "the facts of an attempt never change"),
        ("UPDATE attempt SET state = 'done' WHERE attempt = 1", "stays settled"),
        ("UPDATE attempt SET state = 'done' WHERE attempt = 2", "CHECK"),
        ("UPDATE attempt SET data = '{' WHERE attempt = 2", "CHECK"),
        ("UPDATE execution SET current_attempt = 1", "never goes back"),
        ("UPDATE execution SET current_attempt = NULL", "never goes back"),
        ("UPDATE execution SET status = 'fine'", "CHECK"),
    ] {
        let said = sqlite3(ledger.path(), sql).expect_err(sql);
        assert!(said.contains(rule), "{sql}: {said}");
    }
}

#[test]
fn a_record_that_contradicts_its_column_is_damage() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    let key = open(&mut ledger, &id("e"));
    sqlite3(ledger.path(), "UPDATE attempt SET state = 'sealed'").expect("written");
    let attempt = ledger.attempt(&key).expect("read").expect("there");
    let error = attempt.record().expect_err("damage");
    assert!(matches!(error, LedgerError::Corrupt { .. }), "{error}");
    sqlite3(ledger.path(), "UPDATE attempt SET state = 'levitating'").expect("written");
    let attempt = ledger.attempt(&key).expect("read").expect("can still be shown");
    assert!(matches!(attempt.tag(), Err(LedgerError::Corrupt { .. })));
}

#[test]
fn paths_that_are_no_text_come_back() {
    use std::os::unix::ffi::OsStrExt as _;
    let Fixture { mut ledger, dir: _dir } = fixture();
    let odd =
        Workspace { root: std::ffi::OsStr::from_bytes(b"/w/\xff\n").into(), ..workspace("main") };
    let execution = id("e");
    let new = NewAttempt {
        execution: &execution,
        largest_in_refs: None,
        workspace: &odd,
        owner: &owner(1),
        claim_token: None,
    };
    let facts = |_| Facts { record: AttemptRecord::open(), spec: Value::Null, detail: Value::Null };
    ledger.open_attempt(&new, facts).expect("written");
    assert_eq!(ledger.unsettled(None).expect("read")[0].workspace, odd);
}
