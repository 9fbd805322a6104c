//! Making and opening: what is wrong with a file is said, and nothing is ever reset.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::open::{APPLICATION_ID, KNOWN, journal_of};
use super::tests::{Fixture, change, fixture, id, in_state, open, owner, sqlite3, workspace};
use super::*;
use crate::tx::record::AttemptRecord;
use crate::tx::state::TxState;
use crate::tx::tag::StateTag;

fn mode_of(path: &Path) -> u32 {
    path.metadata().expect("there").permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
}

fn refused(path: &Path) -> LedgerError {
    let error = Ledger::open(path, Mode::ReadWrite).map(drop).expect_err("refused");
    // What cannot be opened is not made anew either.
    assert!(Ledger::create(path).is_err() || matches!(error, LedgerError::Missing { .. }));
    error
}

#[test]
fn a_new_ledger_is_private_whole_and_made_once() {
    let Fixture { mut ledger, dir } = fixture();
    let path = ledger.path().to_owned();
    assert_eq!(mode_of(&path), 0o600);
    assert_eq!(mode_of(path.parent().expect("has one")), 0o700);
    open(&mut ledger, &id("e"));
    assert_eq!(mode_of(&journal_of(&path)), 0o600);
    let again = Ledger::create(&path).expect("opened");
    assert_eq!(again.id(), ledger.id());
    assert_eq!(again.attempts(&Filter::default()).expect("read").len(), 1);
    let pragma = |name: &str| sqlite3(&path, &format!("PRAGMA {name}")).expect("read");
    assert_eq!(pragma("application_id"), APPLICATION_ID.to_string());
    assert_eq!(pragma("user_version"), KNOWN.to_string());
    assert_eq!(pragma("integrity_check"), "ok");
    let names: Vec<_> = std::fs::read_dir(dir.path().join("state"))
        .expect("there")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    assert_eq!(names.len(), 2, "no draft is left: {names:?}");
}

#[test]
fn settings_of_the_connection_are_as_documented() {
    let Fixture { ledger, dir: _dir } = fixture();
    let pragma = |name: &str| -> String {
        ledger
            .db
            .pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
            .map(|value| format!("{value:?}"))
            .expect("read")
    };
    assert_eq!(pragma("journal_mode"), "Text(\"persist\")");
    assert_eq!(pragma("synchronous"), "Integer(2)");
    assert_eq!(pragma("foreign_keys"), "Integer(1)");
    assert_eq!(pragma("trusted_schema"), "Integer(0)");
}

#[test]
fn what_is_missing_or_deleted_is_said() {
    let Fixture { mut ledger, dir } = fixture();
    let path = ledger.path().to_owned();
    assert!(matches!(refused(&dir.path().join("none/ledger.db")), LedgerError::Missing { .. }));
    open(&mut ledger, &id("e"));
    std::fs::remove_file(&path).expect("deleted");
    // Under an open one.
    let error = ledger.record_event(&id("e"), None, "x", &Value::Null).expect_err("moved");
    assert!(matches!(error, LedgerError::Moved { .. }), "{error}");
    drop(ledger);
    assert!(matches!(
        Ledger::open(&path, Mode::ReadWrite).map(drop),
        Err(LedgerError::Missing { .. })
    ));
    let error = Ledger::create(&path).map(drop).expect_err("its journal is there");
    assert!(matches!(error, LedgerError::Deleted { .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn an_exchanged_file_is_noticed() {
    let Fixture { mut ledger, dir } = fixture();
    let path = ledger.path().to_owned();
    let copy = dir.path().join("copy");
    std::fs::copy(&path, &copy).expect("copied");
    std::fs::rename(&copy, &path).expect("exchanged");
    let error = ledger.record_event(&id("e"), None, "x", &Value::Null).expect_err("moved");
    assert!(matches!(error, LedgerError::Moved { .. }), "{error}");
}

#[test]
fn links_and_other_things_are_not_trusted() {
    let Fixture { ledger, dir } = fixture();
    let path = ledger.path().to_owned();
    drop(ledger);
    let real = dir.path().join("real.db");
    std::fs::rename(&path, &real).expect("moved");
    std::os::unix::fs::symlink(&real, &path).expect("linked");
    assert!(matches!(refused(&path), LedgerError::Untrusted { .. }));
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("made");
    assert!(matches!(refused(&path), LedgerError::Untrusted { .. }));
    std::fs::remove_dir(&path).expect("removed");
    std::fs::rename(&real, &path).expect("back");
    let target = dir.path().join("target");
    let journal = journal_of(&path);
    let _ = std::fs::remove_file(&journal);
    std::os::unix::fs::symlink(&target, &journal).expect("linked");
    assert!(matches!(refused(&path), LedgerError::Untrusted { .. }));
    assert!(!target.exists());
    std::fs::remove_file(&journal).expect("removed");
    let linked_dir = dir.path().join("linked");
    std::os::unix::fs::symlink(dir.path().join("state"), &linked_dir).expect("linked");
    assert!(matches!(refused(&linked_dir.join("ledger.db")), LedgerError::Untrusted { .. }));
    Ledger::open(&path, Mode::ReadWrite).expect("in order again");
}

#[test]
fn rights_of_others_are_taken_away() {
    let Fixture { ledger, dir: _dir } = fixture();
    let path = ledger.path().to_owned();
    let parent = path.parent().expect("has one").to_owned();
    drop(ledger);
    set_mode(&path, 0o664);
    set_mode(&parent, 0o775);
    Ledger::open(&path, Mode::ReadOnly).expect("read");
    assert_eq!(mode_of(&path), 0o664, "a reader changes nothing");
    Ledger::open(&path, Mode::ReadWrite).expect("opened");
    assert_eq!((mode_of(&path), mode_of(&parent)), (0o600, 0o700));
}

#[test]
fn what_is_no_ledger_is_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("empty"), "").expect("written");
    std::fs::write(at("text"), "hello, this is a text of more than a hundred bytes, ".repeat(20))
        .expect("written");
    sqlite3(&at("other"), "CREATE TABLE t (x)").expect("made");
    let version_0 = format!("PRAGMA application_id = {APPLICATION_ID}; CREATE TABLE t (x)");
    sqlite3(&at("bare"), &version_0).expect("made");
    for name in ["empty", "text", "other", "bare"] {
        let before = std::fs::read(at(name)).expect("read");
        let error = refused(&at(name));
        assert!(
            matches!(error, LedgerError::NotALedger { .. } | LedgerError::Corrupt { .. }),
            "{name}: {error}"
        );
        assert_eq!(std::fs::read(at(name)).expect("read"), before, "{name}");
    }
}

#[test]
fn damage_is_found_before_the_first_write() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    for n in 0..40 {
        open(&mut ledger, &id(&format!("e{n}")));
    }
    let path = ledger.path().to_owned();
    drop(ledger);
    let whole = std::fs::read(&path).expect("read");
    // A page of a table in the middle is overwritten; then the file is cut off.
    let root: usize = sqlite3(&path, "SELECT rootpage FROM sqlite_schema WHERE name = 'attempt'")
        .expect("read")
        .parse()
        .expect("a number");
    let mut damaged = whole.clone();
    damaged[(root - 1) * 4096..root * 4096].fill(0xa5);
    std::fs::write(&path, &damaged).expect("written");
    let error = refused(&path);
    assert!(matches!(error, LedgerError::Corrupt { .. }), "{error}");
    std::fs::write(&path, &whole[..whole.len() / 8]).expect("written");
    let error = refused(&path);
    assert!(matches!(error, LedgerError::Corrupt { .. }), "{error}");
    std::fs::write(&path, &whole).expect("written");
    Ledger::open(&path, Mode::ReadWrite).expect("in order again");
}

#[test]
fn a_newer_ledger_is_read_and_never_written() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    open(&mut ledger, &id("e"));
    let path = ledger.path().to_owned();
    drop(ledger);
    sqlite3(&path, "ALTER TABLE attempt ADD COLUMN mood TEXT; PRAGMA user_version = 7;")
        .expect("a newer one");
    let before = std::fs::read(&path).expect("read");
    let error = refused(&path);
    assert!(matches!(error, LedgerError::Newer { found: 7, known: KNOWN, .. }), "{error}");
    let mut ledger = Ledger::open(&path, Mode::ReadOnly).expect("read");
    assert_eq!(ledger.newer(), Some(Newer { found: 7, known: KNOWN }));
    assert_eq!(ledger.attempts(&Filter::default()).expect("read").len(), 1);
    assert!(matches!(
        ledger.record_event(&id("e"), None, "x", &Value::Null),
        Err(LedgerError::OpenedForReading { .. })
    ));
    drop(ledger);
    assert_eq!(std::fs::read(&path).expect("read"), before);
}

#[test]
fn a_locked_ledger_is_an_error_after_the_bound() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    let path = ledger.path().to_owned();
    let mut other = Command::new("sqlite3")
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sqlite3 runs");
    let mut to = other.stdin.take().expect("piped");
    writeln!(to, "BEGIN IMMEDIATE;\nSELECT 'held';").expect("written");
    let mut from = BufReader::new(other.stdout.take().expect("piped")).lines();
    assert_eq!(from.next().expect("more").expect("text"), "held");
    ledger.db.busy_timeout(std::time::Duration::from_millis(1)).expect("set");
    let error = ledger.record_event(&id("e"), None, "x", &Value::Null).expect_err("locked");
    assert!(matches!(error, LedgerError::Locked { .. }), "{error}");
    // Reading goes on beside a writer.
    assert_eq!(ledger.last_event_id().expect("read"), 0);
    Ledger::open(&path, Mode::ReadOnly).expect("opened");
    drop(to);
    other.wait().expect("ended");
    ledger.record_event(&id("e"), None, "x", &Value::Null).expect("free again");
}

#[test]
fn a_full_file_is_an_error_and_the_reserve_carries_an_attempt_to_its_end() {
    let Fixture { mut ledger, dir: _dir } = fixture();
    let key = open(&mut ledger, &id("e"));
    // The file may not grow by a page: what a full disk does to it.
    let pages: i64 =
        ledger.db.pragma_query_value(None, "page_count", |row| row.get(0)).expect("read");
    ledger.db.pragma_update(None, "max_page_count", pages).expect("set");
    let mut record = AttemptRecord::open();
    let end = in_state(TxState::RolledBack { undo: None });
    for rev in 0..50 {
        record.warn("w", format!("{rev} of a good many warnings of some length"));
        ledger.transition(&change(&key, rev, &record)).expect("from the reserve");
    }
    ledger.transition(&change(&key, 50, &end)).expect("from the reserve");
    // Much more than the reserve is an error, and nothing of it is written.
    let last = ledger.last_event_id().expect("read");
    let big = Value::String("x".repeat(4 << 20));
    let error = ledger.record_event(&id("e"), None, "big", &big).expect_err("full");
    assert!(matches!(error, LedgerError::Full { .. }), "{error}");
    assert_eq!(ledger.last_event_id().expect("read"), last);
}

#[test]
fn on_a_full_disk_an_attempt_that_is_open_settles_and_a_new_one_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "none"])
        .arg(dir.path())
        .stderr(Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        #[allow(clippy::print_stderr)]
        {
            eprintln!("SKIPPED: no right to mount a tmpfs");
        }
        return;
    }
    let unmount = Unmount(dir.path().to_owned());
    let mut ledger = Ledger::create(&dir.path().join("ledger.db")).expect("made");
    let key = open(&mut ledger, &id("e"));
    let mut filler = std::fs::File::create(dir.path().join("filler")).expect("made");
    while filler.write_all(&[1; 4096]).is_ok() {}
    // Opened for reading, and for writing, all the same: a crash may come on a full disk.
    Ledger::open(ledger.path(), Mode::ReadOnly).expect("opened");
    let mut ledger = Ledger::open(ledger.path(), Mode::ReadWrite).expect("opened");
    let record = AttemptRecord::open();
    for rev in 0..50 {
        ledger.transition(&change(&key, rev, &record)).expect("from the reserve");
    }
    let end = in_state(TxState::RolledBack { undo: None });
    ledger.transition(&change(&key, 50, &end)).expect("from the reserve");
    let big = Value::String("x".repeat(900 << 10));
    let error = loop {
        if let Err(error) = ledger.record_event(&id("e"), None, "big", &big) {
            break error;
        }
    };
    assert!(matches!(error, LedgerError::Full { .. }), "{error}");
    // Too little is left of the reserve to begin another attempt: nothing is half open then.
    let (execution, workspace, owner) = (id("f"), workspace("main"), owner(1));
    let new = NewAttempt {
        execution: &execution,
        largest_in_refs: None,
        workspace: &workspace,
        owner: &owner,
        claim_token: None,
    };
    let error = ledger.open_attempt(&new, |_| panic!("not asked")).expect_err("full");
    assert!(matches!(error, LedgerError::Full { .. }), "{error}");
    assert_eq!(ledger.execution(&execution).expect("read"), None);
    drop((filler, ledger));
    drop(unmount);
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn two_processes_that_make_a_ledger_at_once_have_one() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("state/ledger.db");
    let mut children: Vec<_> = (0..4).map(|_| child("maker", &path)).collect();
    for made in &mut children {
        writeln!(made.stdin.as_mut().expect("piped"), "go").expect("written");
    }
    let mut ids: Vec<String> = children.into_iter().map(|made| lines(made).remove(0)).collect();
    ids.dedup();
    assert_eq!(ids, [Ledger::open(&path, Mode::ReadOnly).expect("read").id()]);
}

#[test]
fn what_was_acknowledged_outlives_a_kill() {
    for kill_after in [1, 7, 40] {
        let Fixture { mut ledger, dir: _dir } = fixture();
        let key = open(&mut ledger, &id("e"));
        let mut writer = child("writer", ledger.path());
        writeln!(writer.stdin.as_mut().expect("piped"), "go").expect("written");
        let mut acknowledged = 0;
        let mut from = BufReader::new(writer.stdout.take().expect("piped")).lines();
        while acknowledged < kill_after {
            let line = from.next().expect("more").expect("text");
            acknowledged = value(&line).and_then(|n| n.parse().ok()).unwrap_or(acknowledged);
        }
        writer.kill().expect("ours");
        writer.wait().expect("ended");
        let after = Ledger::open(ledger.path(), Mode::ReadOnly).expect("rolled back by a reader");
        let attempt = after.attempt(&key).expect("read").expect("there");
        assert!(attempt.rev >= acknowledged, "{} < {acknowledged}", attempt.rev);
        let events = after.events(&EventFilter::default()).expect("read");
        assert_eq!(events.len() as u64, attempt.rev + 1, "each change has its event");
        assert_eq!(sqlite3(ledger.path(), "PRAGMA integrity_check").as_deref(), Ok("ok"));
    }
}

#[test]
fn a_reader_rolls_a_crashed_write_back() {
    let Fixture { mut ledger, dir } = fixture();
    for n in 0..40 {
        open(&mut ledger, &id(&format!("e{n}")));
    }
    let path = ledger.path().to_owned();
    let before = sqlite3(&path, ".dump").expect("read");
    // A write that has reached the file and is not committed; a copy of both is what a crash
    // would leave.
    let writer = rusqlite::Connection::open(&path).expect("opened");
    writer
        .execute_batch(
            "PRAGMA journal_mode = PERSIST; PRAGMA cache_size = 1; BEGIN IMMEDIATE;
             UPDATE attempt SET data = json_quote(hex(zeroblob(9000)));
             UPDATE execution SET error = 'half';",
        )
        .expect("written");
    let crashed = dir.path().join("state/crashed.db");
    std::fs::copy(&path, &crashed).expect("copied");
    std::fs::copy(journal_of(&path), journal_of(&crashed)).expect("copied");
    drop(writer);
    assert_ne!(std::fs::read(&crashed).expect("read"), std::fs::read(&path).expect("read"));
    let reader = Ledger::open(&crashed, Mode::ReadOnly).expect("rolled back");
    assert_eq!(reader.attempts(&Filter::default()).expect("read").len(), 40);
    assert!(!journal_of(&crashed).exists(), "rolled back, for good");
    assert_eq!(sqlite3(&crashed, ".dump").expect("read"), before);
}

/// The marker of a child's lines among those of the test harness.
const SAYS: &str = "child says: ";

fn value(line: &str) -> Option<&str> {
    line.split_once(SAYS).map(|(_, value)| value)
}

fn lines(child: std::process::Child) -> Vec<String> {
    let out = child.wait_with_output().expect("ended");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.lines().filter_map(value).map(str::to_owned).collect()
}

fn child(what: &str, path: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().expect("known"))
        .args(["--exact", "journal::tests_open::as_child", "--nocapture", "--test-threads=1"])
        .env("WORKTX_TEST_JOURNAL", what)
        .env("WORKTX_TEST_LEDGER", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test binary runs")
}

/// No test of its own: what the others run in processes of their own.
#[test]
#[allow(clippy::print_stdout)]
fn as_child() {
    let Ok(what) = std::env::var("WORKTX_TEST_JOURNAL") else { return };
    let path = PathBuf::from(std::env::var_os("WORKTX_TEST_LEDGER").expect("given"));
    let mut go = String::new();
    std::io::stdin().read_line(&mut go).expect("told");
    if what == "maker" {
        println!("{SAYS}{}", Ledger::create(&path).expect("made").id());
        return;
    }
    let mut ledger = Ledger::open(&path, Mode::ReadWrite).expect("opened");
    let key = ledger.unsettled(None).expect("read").remove(0).key;
    let mut rev = 0;
    loop {
        let record = AttemptRecord::open();
        let change = Change { expected: StateTag::Open, ..change(&key, rev, &record) };
        rev = ledger.transition(&change).expect("written");
        println!("{SAYS}{rev}");
    }
}
