//! Several real processes write terminals for one execution, in whatever order the machine finds.
//!
//! Each writer does a list of steps; what it was told goes to its standard output. Whatever the
//! order, at most one attempt and candidate was ever told that its SUCCESS won.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use proptest::prelude::*;
use serde_json::Value;

use super::tests::{ask, execution, next_attempt};
use super::*;
use crate::journal::{Change, Ledger, LedgerError, Mode, Opened};
use crate::tx::id::{AttemptKey, AttemptNo, Oid};
use crate::tx::record::AttemptRecord;
use crate::tx::state::TxState;
use crate::tx::tag::StateTag;
use crate::tx::verdict::{Status, TerminalStatus};

/// What a writer does, in its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A re-delivery: the next attempt, which this writer then speaks for.
    Open,
    /// SUCCESS of its attempt, for its candidate number n.
    Success(u8),
    /// FAILED of its attempt.
    Failed,
    /// A user's cancel.
    Cancel,
    /// A watchdog's FAILED, which speaks for no attempt.
    Watchdog,
}

impl Step {
    fn word(self) -> String {
        match self {
            Self::Success(n) => format!("success{n}"),
            other => format!("{other:?}").to_lowercase(),
        }
    }

    fn from_word(word: &str) -> Self {
        match word {
            "open" => Self::Open,
            "failed" => Self::Failed,
            "cancel" => Self::Cancel,
            "watchdog" => Self::Watchdog,
            other => Self::Success(other["success".len()..].parse().expect("a number")),
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Open),
        4 => (0..2u8).prop_map(Step::Success),
        2 => Just(Step::Failed),
        1 => Just(Step::Cancel),
        2 => Just(Step::Watchdog),
    ];
    proptest::collection::vec(step, 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 0, ..Default::default() })]

    #[test]
    fn at_most_one_attempt_ever_acts_on_success(
        writers in proptest::collection::vec(steps(), 2..5)
    ) {
        let told = race(&writers);
        let successes: BTreeSet<&str> = told.won.iter().map(String::as_str)
            .filter(|won| won.starts_with("success ")).collect();
        prop_assert!(successes.len() <= 1, "{:?}", told.won);
        let cancels = told.won.iter().filter(|won| *won == "cancelled").count();
        prop_assert!(cancels <= 1, "{:?}", told.won);
        // Who was told that it won stands there, if nothing that beats it was told so as well.
        match (&told.row.success, successes.first()) {
            (Some(claim), Some(won)) => {
                prop_assert_eq!(told.row.status, Status::Success);
                prop_assert_eq!(format!("success {} {}", claim.attempt, claim.candidate), *won);
                prop_assert_eq!(cancels, 0);
            }
            (None, None) => prop_assert_ne!(told.row.status, Status::Success),
            (stands, won) => prop_assert!(false, "{stands:?} stands, {won:?} was told"),
        }
        prop_assert_eq!(told.row.status == Status::Cancelled, cancels == 1);
        // Verdict and journal are one: exactly the attempts that were told are journalled so.
        prop_assert_eq!(told.journalled, successes.len());
    }
}

struct Told {
    won: Vec<String>,
    row: Row,
    journalled: usize,
}

fn race(writers: &[Vec<Step>]) -> Told {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("ledger.db");
    let mut ledger = Ledger::create(&path).expect("made");
    assert!(matches!(next_attempt(&mut ledger, None), Opened::Attempt(_)));
    let mut children: Vec<_> = writers.iter().map(|steps| start(steps, &path)).collect();
    // All are ready before any is let go.
    for (_, said) in &mut children {
        assert!(said.by_ref().any(|line| line.expect("text").contains("ready")));
    }
    for (child, _) in &mut children {
        writeln!(child.stdin.as_mut().expect("piped"), "go").expect("written");
    }
    let mut won = Vec::new();
    for (mut child, said) in children {
        won.extend(
            said.map(|line| line.expect("text"))
                .filter_map(|line| line.split_once(SAYS).map(|(_, what)| what.to_owned())),
        );
        assert!(child.wait().expect("ended").success());
    }
    let db = ledger.writable().expect("ours");
    let row = EmbeddedGate::new(db).row(&execution()).expect("read").expect("there");
    let journalled = ledger
        .events(&crate::journal::EventFilter::default())
        .expect("read")
        .into_iter()
        .filter(|event| event.kind == "verdict_won")
        .count();
    Told { won, row, journalled }
}

const SAYS: &str = "child won: ";

type Lines = std::io::Lines<BufReader<std::process::ChildStdout>>;

fn start(steps: &[Step], ledger: &Path) -> (Child, Lines) {
    let words: Vec<String> = steps.iter().map(|step| step.word()).collect();
    let mut child = Command::new(std::env::current_exe().expect("known"))
        .args(["--exact", "gate::tests_race::as_child", "--nocapture", "--test-threads=1"])
        .env("WORKTX_TEST_GATE", words.join(" "))
        .env("WORKTX_TEST_LEDGER", ledger)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test binary runs");
    let said = BufReader::new(child.stdout.take().expect("piped")).lines();
    (child, said)
}

/// No test of its own: one writer of the race.
#[test]
#[allow(clippy::print_stdout)]
fn as_child() {
    let Ok(words) = std::env::var("WORKTX_TEST_GATE") else { return };
    let path = PathBuf::from(std::env::var_os("WORKTX_TEST_LEDGER").expect("given"));
    let mut ledger = Ledger::open(&path, Mode::ReadWrite).expect("opened");
    println!("\nready");
    let mut go = String::new();
    std::io::stdin().read_line(&mut go).expect("told");
    let mut attempt = 1;
    for step in words.split(' ').map(Step::from_word) {
        let terminal = match step {
            Step::Open => {
                if let Opened::Attempt(key) = next_attempt(&mut ledger, None) {
                    attempt = key.attempt.0;
                }
                continue;
            }
            Step::Success(n) => {
                ask(TerminalStatus::Success(Oid::from_bytes([n; 20])), Some(attempt))
            }
            Step::Failed => ask(TerminalStatus::Failed, Some(attempt)),
            Step::Cancel => ask(TerminalStatus::Cancelled, None),
            Step::Watchdog => ask(TerminalStatus::Failed, None),
        };
        match decide(&mut ledger, attempt, &terminal).expect("answered") {
            Verdict::Won(won) => match won.row().success {
                Some(claim) => println!("{SAYS}success {} {}", claim.attempt, claim.candidate),
                None => println!("{SAYS}{}", won.row().status),
            },
            Verdict::Lost(row) => assert!(row.is_some()),
            Verdict::Unknown(why) => panic!("{why}"),
        }
    }
}

/// Asks, and journals a won success once, in the same db transaction.
fn decide(ledger: &mut Ledger, attempt: u32, terminal: &Terminal) -> Result<Verdict, LedgerError> {
    let key = AttemptKey { execution: execution(), attempt: AttemptNo(attempt) };
    let db = ledger.writable()?;
    EmbeddedGate::new(db).ask_and_record(&execution(), terminal, |tx, answer| {
        if !answer.won || !matches!(terminal.status, TerminalStatus::Success(_)) {
            return Ok(());
        }
        let change = Change {
            key: &key,
            expected: StateTag::Open,
            rev: 0,
            record: &AttemptRecord {
                state: TxState::RolledBack { undo: None },
                ..AttemptRecord::open()
            },
            event: "verdict_won",
            detail: &Value::Null,
            outcome: None,
        };
        match change.apply(tx) {
            // Won before, by this writer or by another that speaks for the same attempt.
            Ok(_) | Err(LedgerError::Stale { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    })
}
