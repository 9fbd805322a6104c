//! The gate against the platform's nine pinned cases and against the truth table, whole.

use rusqlite::Connection;
use serde_json::Value;

use super::*;
use crate::journal::{Change, Facts, Ledger, LedgerError, Mode, NewAttempt, Opened, Owner};
use crate::journal::{Filter, Workspace};
use crate::tx::cause::Cause;
use crate::tx::id::{AttemptKey, AttemptNo, Oid};
use crate::tx::record::AttemptRecord;
use crate::tx::state::TxState;
use crate::tx::tag::StateTag;
use crate::tx::verdict::{Claim, Status, TerminalStatus, Won, judge};
use crate::tx::writer::{HostId, ProcessId};

pub(super) const CANDIDATE: Oid = Oid::EMPTY_TREE;
const OTHER: Oid = Oid::ZERO;

pub(super) fn execution() -> ExecutionId {
    "e".parse().expect("valid")
}

pub(super) fn ask(status: TerminalStatus, from: Option<u32>) -> Terminal {
    Terminal { status, from: from.map(AttemptNo), claim_token: None, error: None }
}

fn success() -> Terminal {
    ask(TerminalStatus::Success(CANDIDATE), Some(1))
}

fn failed(from: Option<u32>, error: &str) -> Terminal {
    Terminal { error: Some(error.to_owned()), ..ask(TerminalStatus::Failed, from) }
}

fn cancel() -> Terminal {
    ask(TerminalStatus::Cancelled, None)
}

pub(super) fn next_attempt(ledger: &mut Ledger, token: Option<&str>) -> Opened {
    let host = HostId {
        machine_id: String::new(),
        boot_id: "b".to_owned(),
        pid_namespace: 1,
        init_start_ticks: 1,
    };
    let owner = Owner { host, process: ProcessId { pid: 1, start_ticks: 1 } };
    let (root, git_dir) = ("/w".into(), "/w/.git".into());
    let new = NewAttempt {
        execution: &execution(),
        largest_in_refs: None,
        workspace: &Workspace { id: String::new(), root, git_dir },
        owner: &owner,
        claim_token: token,
    };
    let facts = |_| Facts { record: AttemptRecord::open(), spec: Value::Null, detail: Value::Null };
    ledger.open_attempt(&new, facts).expect("written")
}

struct Fixture {
    ledger: Ledger,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn running() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut ledger = Ledger::create(&dir.path().join("ledger.db")).expect("made");
        assert!(matches!(next_attempt(&mut ledger, None), Opened::Attempt(_)));
        Self { ledger, _dir: dir }
    }

    fn ask(&mut self, terminal: &Terminal) -> Verdict {
        EmbeddedGate::new(self.ledger.writable().expect("ours")).ask(&execution(), terminal)
    }

    fn won(&mut self, terminal: &Terminal) -> Won {
        match self.ask(terminal) {
            Verdict::Won(won) => won,
            other => panic!("{terminal:?}: {other:?}"),
        }
    }

    fn lost(&mut self, terminal: &Terminal) -> Row {
        match self.ask(terminal) {
            Verdict::Lost(Some(row)) => row,
            other => panic!("{terminal:?}: {other:?}"),
        }
    }

    fn row(&mut self) -> Row {
        EmbeddedGate::new(self.ledger.writable().expect("ours"))
            .row(&execution())
            .expect("read")
            .expect("there")
    }
}

#[test]
fn case_1_a_cancel_beats_a_later_success() {
    let mut f = Fixture::running();
    assert_eq!(f.won(&cancel()).row().status, Status::Cancelled);
    let standing = f.lost(&success());
    assert_eq!(standing.status, Status::Cancelled);
    // The response is not recorded: the row names nobody's success.
    assert_eq!(standing.success, None);
    assert_eq!(f.row(), standing);
}

#[test]
fn case_2_success_of_a_running_execution_wins() {
    let mut f = Fixture::running();
    let row = f.won(&success()).row().clone();
    assert_eq!(row.status, Status::Success);
    assert_eq!(row.success, Some(Claim { attempt: AttemptNo(1), candidate: CANDIDATE }));
    assert_eq!(f.row(), row);
}

#[test]
fn case_3_success_corrects_a_premature_failure() {
    let mut f = Fixture::running();
    let stale = failed(None, "[lease_expired] stale: slot expired");
    assert_eq!(f.won(&stale).row().error, stale.error);
    let row = f.won(&success()).row().clone();
    assert_eq!((row.status, row.error), (Status::Success, None));
}

#[test]
fn case_4_a_watchdog_loses_to_a_cancel() {
    let mut f = Fixture::running();
    let _ = f.won(&cancel());
    let row = f.lost(&failed(None, "[timeout] watchdog"));
    assert_eq!((row.status, row.error), (Status::Cancelled, None));
}

#[test]
fn case_5_a_cancelled_execution_takes_neither_success_nor_another_cancel() {
    let mut f = Fixture::running();
    let _ = f.won(&cancel());
    assert_eq!(f.lost(&success()).status, Status::Cancelled);
    assert_eq!(f.lost(&cancel()).status, Status::Cancelled);
}

/// What the platform does once a terminal was won: it takes the proof, so that it cannot be
/// written for a lost verdict.
#[derive(Debug, Default, PartialEq)]
struct Platform {
    breaker_resets: u32,
    activity: Vec<Status>,
    slot_releases: u32,
}

impl Platform {
    fn won_only(&mut self, won: &Won) {
        self.activity.push(won.row().status);
        if won.row().status == Status::Success {
            self.breaker_resets += 1;
        }
    }

    /// One terminal writer: `(status, code)` of the result that it returns to its caller.
    fn finish(&mut self, f: &mut Fixture, terminal: &Terminal) -> (Status, &'static str) {
        self.slot_releases += 1;
        match f.ask(terminal) {
            Verdict::Won(won) => {
                self.won_only(&won);
                (won.row().status, "won")
            }
            Verdict::Lost(Some(row)) if terminal.status.status() == Status::Success => {
                (row.status, Cause::VerdictLost { standing: None }.error_code().as_str())
            }
            // A failure that lost is still reported as the failure that it is.
            Verdict::Lost(Some(_)) => (terminal.status.status(), "agent_error"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn case_6_a_success_that_lost_to_a_cancel_does_nothing_and_says_reconciled() {
    let (mut f, mut platform) = (Fixture::running(), Platform::default());
    let _ = f.won(&cancel());
    let result = platform.finish(&mut f, &success());
    assert_eq!(result, (Status::Cancelled, "reconciled"));
    assert_eq!(platform, Platform { slot_releases: 1, ..Platform::default() });
}

#[test]
fn case_7_a_success_that_won_acts_once() {
    let (mut f, mut platform) = (Fixture::running(), Platform::default());
    assert_eq!(platform.finish(&mut f, &success()), (Status::Success, "won"));
    // The cancel that comes late closes nothing.
    platform.finish(&mut f, &cancel());
    let expected =
        Platform { breaker_resets: 1, activity: vec![Status::Success], slot_releases: 2 };
    assert_eq!(platform, expected);
}

#[test]
fn case_8_a_failure_that_lost_leaves_the_activity_to_the_winner() {
    let (mut f, mut platform) = (Fixture::running(), Platform::default());
    platform.finish(&mut f, &cancel());
    let result = platform.finish(&mut f, &failed(Some(1), "[agent_error] exit 1"));
    assert_eq!(result, (Status::Failed, "agent_error"));
    assert_eq!(platform.activity, [Status::Cancelled]);
    assert_eq!(platform.breaker_resets, 0);
}

#[test]
fn case_9_a_failure_that_won_closes_the_activity_as_failed() {
    let (mut f, mut platform) = (Fixture::running(), Platform::default());
    platform.finish(&mut f, &failed(Some(1), "[agent_error] exit 1"));
    assert_eq!(platform.activity, [Status::Failed]);
    assert_eq!(platform.breaker_resets, 0);
    assert_eq!(f.row().error.as_deref(), Some("[agent_error] exit 1"));
}

/// Every row that can stand, times everything that can be asked.
#[test]
fn the_statement_is_the_truth_table() {
    let mut f = Fixture::running();
    let claims = [None, Some((1, CANDIDATE)), Some((1, OTHER)), Some((2, CANDIDATE))];
    let attempts = [None, Some(1), Some(2)];
    let tokens = [None, Some("a"), Some("b")];
    let statuses = [
        TerminalStatus::Success(CANDIDATE),
        TerminalStatus::Success(OTHER),
        TerminalStatus::Failed,
        TerminalStatus::Cancelled,
        TerminalStatus::Skipped,
    ];
    // One db transaction around all, never committed: no sync in between.
    let db = f.ledger.writable().expect("ours");
    db.execute_batch("DROP TRIGGER execution_fence_never_goes_back; BEGIN").expect("set");
    let (mut cases, mut wins) = (0, 0);
    for status in Status::ALL {
        for claim in claims {
            for current in attempts {
                for stored in tokens {
                    for wanted in statuses {
                        for from in attempts {
                            for token in tokens {
                                let row = Row {
                                    execution: execution(),
                                    status,
                                    current_attempt: current.map(AttemptNo),
                                    success: claim.map(|(n, candidate)| Claim {
                                        attempt: AttemptNo(n),
                                        candidate,
                                    }),
                                    claim_token: stored.map(str::to_owned),
                                    error: None,
                                };
                                let terminal = Terminal {
                                    claim_token: token.map(str::to_owned),
                                    error: Some("[x] y".to_owned()),
                                    ..ask(wanted, from)
                                };
                                put(db, &row);
                                let answer = embedded::answer(db, &execution(), &terminal);
                                let expected = judge(Some(&row), &terminal);
                                assert_eq!(answer.won, expected, "{row:?} {terminal:?}");
                                let stands = answer.row.expect("there");
                                assert_eq!(stands, after(&row, &terminal, expected));
                                cases += 1;
                                wins += u32::from(expected);
                            }
                        }
                    }
                }
            }
        }
    }
    db.execute_batch("ROLLBACK").expect("undone");
    assert_eq!(cases, 7 * 4 * 3 * 3 * 5 * 3 * 3);
    assert!(wins > 0 && wins < cases);
    // No such row.
    let nobody = "nobody".parse().expect("valid");
    for status in statuses {
        let terminal = ask(status, Some(1));
        assert!(!judge(None, &terminal));
        assert_eq!(EmbeddedGate::new(db).ask(&nobody, &terminal), Verdict::Lost(None));
    }
}

fn after(row: &Row, terminal: &Terminal, won: bool) -> Row {
    if !won {
        return row.clone();
    }
    let success = match terminal.status {
        TerminalStatus::Success(candidate) => {
            terminal.from.map(|attempt| Claim { attempt, candidate })
        }
        _ => None,
    };
    let error = if success.is_some() { None } else { terminal.error.clone() };
    Row { status: terminal.status.status(), success, error, ..row.clone() }
}

fn put(db: &Connection, row: &Row) {
    db.execute(
        "UPDATE execution SET status = ?1, current_attempt = ?2, success_attempt = ?3,
             success_candidate = ?4, claim_token = ?5, error = NULL",
        (
            row.status.as_str(),
            row.current_attempt.map(|n| n.0),
            row.success.map(|s| s.attempt.0),
            row.success.map(|s| s.candidate.to_string()),
            &row.claim_token,
        ),
    )
    .expect("put");
}

#[test]
fn asking_twice_gives_the_same_answer() {
    let mut f = Fixture::running();
    let first = f.won(&success());
    let completed = f.ledger.execution(&execution()).expect("read").expect("there").completed_at;
    assert_eq!(f.won(&success()), first);
    let again = f.ledger.execution(&execution()).expect("read").expect("there").completed_at;
    assert_eq!(again, completed, "a replay completes nothing anew");
    let other = ask(TerminalStatus::Success(OTHER), Some(1));
    assert_eq!(f.lost(&other), *first.row());
    assert_eq!(f.lost(&other), *first.row());
}

#[test]
fn an_older_attempt_is_fenced_off_and_a_cancel_is_not() {
    let mut f = Fixture::running();
    assert!(matches!(next_attempt(&mut f.ledger, None), Opened::Attempt(_)));
    // Attempt 1 was quarantined, attempt 2 runs: 1's late terminal, 1's adopt.
    assert_eq!(f.lost(&failed(Some(1), "late")).status, Status::Running);
    assert_eq!(f.lost(&success()).status, Status::Running);
    assert_eq!(f.won(&cancel()).row().status, Status::Cancelled);
}

#[test]
fn a_re_claimed_execution_loses_for_the_old_token() {
    let mut f = Fixture::running();
    let with = |token: &str| Terminal { claim_token: Some(token.to_owned()), ..success() };
    assert_eq!(f.lost(&with("a")).claim_token, None, "a missing stored token loses");
    let mut f = Fixture::running();
    next_attempt(&mut f.ledger, Some("a"));
    next_attempt(&mut f.ledger, Some("b"));
    let third = |token: &str| Terminal { from: Some(AttemptNo(3)), ..with(token) };
    assert_eq!(f.lost(&third("a")).status, Status::Running);
    let _ = f.won(&third("b"));
}

fn candidate_won(f: &mut Fixture, rev: u64) -> Result<Verdict, LedgerError> {
    let key = AttemptKey { execution: execution(), attempt: AttemptNo(1) };
    let won = AttemptRecord::open();
    let lost = AttemptRecord { state: TxState::RolledBack { undo: None }, ..won.clone() };
    let db = f.ledger.writable()?;
    EmbeddedGate::new(db).ask_and_record(&execution(), &success(), |tx, answer| {
        let change = Change {
            key: &key,
            expected: StateTag::Open,
            rev,
            record: if answer.won { &won } else { &lost },
            event: if answer.won { "verdict_won" } else { "verdict_lost" },
            detail: &Value::Null,
            outcome: None,
        };
        change.apply(tx).map(drop)
    })
}

#[test]
fn verdict_and_state_stand_there_both_or_neither() {
    let mut f = Fixture::running();
    // The journal refuses: the row is not won either.
    let error = candidate_won(&mut f, 5).expect_err("stale");
    assert!(matches!(error, LedgerError::Stale { .. }), "{error}");
    assert_eq!(f.row().status, Status::Running);
    assert!(matches!(candidate_won(&mut f, 0), Ok(Verdict::Won(_))));
    let attempts = f.ledger.attempts(&Filter::default()).expect("read");
    assert_eq!((attempts[0].rev, attempts[0].state.as_str()), (1, "open"));

    let mut f = Fixture::running();
    let _ = f.won(&cancel());
    assert!(matches!(candidate_won(&mut f, 0), Ok(Verdict::Lost(Some(_)))));
    let attempts = f.ledger.attempts(&Filter::default()).expect("read");
    assert_eq!((attempts[0].rev, attempts[0].state.as_str()), (1, "rolled_back"));
}

#[test]
fn an_error_is_unknown_and_never_won() {
    let mut f = Fixture::running();
    let path = f.ledger.path().to_owned();
    let held = Connection::open(&path).expect("opened");
    let db = f.ledger.writable().expect("ours");
    db.busy_timeout(std::time::Duration::ZERO).expect("set");
    let mut gate = EmbeddedGate::new(db);
    // Nobody can begin.
    held.execute_batch("BEGIN IMMEDIATE").expect("held");
    assert!(matches!(gate.ask(&execution(), &success()), Verdict::Unknown(_)));
    held.execute_batch("ROLLBACK").expect("let go");
    // A reader keeps it from being committed.
    held.execute_batch("BEGIN; SELECT count(*) FROM execution").expect("held");
    let mut reading = held.prepare("SELECT 1 FROM execution").expect("prepared");
    let mut rows = reading.query([]).expect("reads");
    assert!(rows.next().expect("reads").is_some());
    let verdict = gate.ask(&execution(), &success());
    assert!(matches!(&verdict, Verdict::Unknown(why) if why.contains("commit")), "{verdict:?}");
    drop(rows);
    drop(reading);
    held.execute_batch("ROLLBACK").expect("let go");
    assert_eq!(gate.row(&execution()).expect("read").expect("there").status, Status::Running);
    // The same question, once the way is free.
    assert!(matches!(gate.ask(&execution(), &success()), Verdict::Won(_)));
    // A row that is not understood.
    held.execute_batch(
        "PRAGMA ignore_check_constraints = ON; UPDATE execution SET success_candidate = 'x'",
    )
    .expect("set");
    assert!(matches!(gate.ask(&execution(), &cancel()), Verdict::Unknown(_)));
    assert!(gate.row(&execution()).is_err());
    // A file that cannot be written.
    drop(f);
    let mut f = Fixture::running();
    let db = f.ledger.writable().expect("ours");
    db.pragma_update(None, "query_only", true).expect("set");
    assert!(matches!(EmbeddedGate::new(db).ask(&execution(), &success()), Verdict::Unknown(_)));
    assert!(Ledger::open(f.ledger.path(), Mode::ReadOnly).is_ok());
}
