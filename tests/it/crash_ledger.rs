//! The crash matrix, rows 22 and 23: the ledger, and several at once.

use std::fs;
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::MetadataExt as _;

use crate::lab::{Immutable, JOB, Lab, Midway};
use crate::support::{Gate, Repo};

#[test]
fn row_22_a_ledger_that_cannot_be_used_is_an_error_before_the_turn() {
    let repo = Repo::new();
    repo.run(&[], "true").exits(0);
    let ledger = repo.path(".git/worktx/ledger.db");
    let whole = fs::read(&ledger).expect("readable");
    let ran = |word: &str| {
        let ran = repo.run(&[], "touch ran");
        assert_eq!(ran.code, 1, "{word}: {}{}", ran.stdout, ran.stderr);
        assert!(!repo.path("ran").exists(), "{word}");
        assert!(ran.stderr.to_lowercase().contains(word), "{word}: {}", ran.stderr);
    };
    fs::write(&ledger, &whole[..whole.len() / 2]).expect("written");
    ran("ledger");
    fs::write(&ledger, &whole).expect("written");
    repo.sql("pragma user_version = 99");
    ran("newer");
    fs::write(&ledger, &whole).expect("written");
    {
        // Locked by another process.
        let mut sqlite = repo.command("sqlite3");
        sqlite
            .arg(&ledger)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut child = sqlite.spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(b"begin exclusive; select 'locked';\n").expect("written");
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("read");
        ran("lock");
        drop(stdin);
        child.wait().expect("it ends");
    }
    repo.run(&[], "echo x > x").exits(0);
    assert_eq!(repo.sql("select count(*) from attempt where settled_at is null"), "0");
}

/// Another process that has the ledger, until it is let go.
struct Holder(std::process::Child);

impl Holder {
    fn new(repo: &Repo, how: &str) -> Self {
        let mut sqlite = repo.command("sqlite3");
        sqlite.arg(repo.path(".git/worktx/ledger.db"));
        sqlite.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = sqlite.spawn().expect("it starts");
        let stdin = child.stdin.as_mut().expect("piped");
        stdin.write_all(format!("begin {how}; select 'held';\n").as_bytes()).expect("written");
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.as_mut().expect("piped"))
            .read_line(&mut line)
            .expect("read");
        assert_eq!(line, "held\n");
        Self(child)
    }

    fn let_go(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("it ends");
    }
}

#[test]
fn row_22_busy_for_a_moment_is_waited_for() {
    for how in ["exclusive", "immediate"] {
        let lab = Lab::new();
        let held = Holder::new(&lab.repo, how);
        let child = lab.repo.spawn(&mut lab.repo.run_command(JOB, "echo x > x"));
        held.let_go();
        Repo::wait(child).exits(0);
        lab.laws();
    }
}

#[test]
fn row_22_locked_at_open_is_an_error_before_the_turn() {
    for how in ["exclusive", "immediate"] {
        let lab = Lab::new();
        let held = Holder::new(&lab.repo, how);
        let ran = lab.repo.run(JOB, "touch ran");
        held.let_go();
        assert_eq!(ran.code, 1, "{how}: {}", ran.stderr);
        assert!(ran.stderr.contains("lock") && ran.stderr.contains("Hint:"), "{}", ran.stderr);
        lab.as_before();
        assert_eq!(lab.status_of("job"), "", "never a half-open attempt");
        lab.repo.run(JOB, "echo x > x").exits(0);
        lab.laws();
    }
}

#[test]
fn row_22_locked_while_the_turn_runs_loses_nothing() {
    for end in [0, 3] {
        let mut lab = Lab::new();
        lab.hold("x\n");
        let midway = Midway::new(&lab);
        let script = format!("echo x > x; {}; exit {end}", midway.words());
        let child = lab.repo.spawn(&mut lab.repo.run_command(JOB, &script));
        let held = midway.meanwhile(|| Holder::new(&lab.repo, "exclusive"));
        let ran = Repo::wait(child);
        held.let_go();
        assert!([20, 70].contains(&ran.code), "{}{}", ran.stdout, ran.stderr);
        assert_eq!(lab.repo.read("x"), "x\n", "nothing was done that could not be recorded");
        assert_eq!(lab.repo.head(), lab.base);
        lab.reconcile();
        lab.laws();
        assert_eq!(lab.state("job", 1), ("quarantined".to_owned(), "interrupted".to_owned()));
        lab.repo.run(JOB, "test ! -e x").exits(0);
        lab.laws();
    }
}

#[test]
fn row_22_read_only_is_an_error_before_the_turn() {
    let lab = Lab::new();
    let marked = match Immutable::new(&lab.repo.path(".git/worktx/ledger.db")) {
        Ok(marked) => marked,
        Err(why) => return eprintln!("SKIPPED: {why}"),
    };
    let ran = lab.repo.run(JOB, "touch ran");
    // Whoever only reads can.
    lab.repo.call(&["list", "--json"]).exits(0);
    lab.repo.call(&["status", "--json"]).exits(0);
    drop(marked);
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("ledger.db") && ran.stderr.contains("Hint:"), "{}", ran.stderr);
    lab.as_before();
    assert_eq!(lab.status_of("job"), "", "never a half-open attempt");
    lab.repo.run(JOB, "echo x > x").exits(0);
    lab.laws();
}

#[test]
fn row_22_corrupt_is_an_error_and_never_reset_in_silence() {
    let lab = Lab::new();
    lab.repo.run(JOB, "echo x > x; exit 3").exits(10);
    let ledger = lab.repo.path(".git/worktx/ledger.db");
    let whole = fs::read(&ledger).expect("readable");
    let mut middle = whole.clone();
    middle[4096..8192].fill(0xa5);
    let mut header = whole.clone();
    header[..16].copy_from_slice(b"no sqlite at all");
    for (name, bytes) in [
        ("a page", &middle[..]),
        ("the header", &header[..]),
        ("half of it", &whole[..whole.len() / 2]),
        ("all of it", &[][..]),
    ] {
        fs::write(&ledger, bytes).expect("written");
        let ran = lab.repo.run(&["--execution-id", "next"], "touch ran");
        assert_eq!(ran.code, 1, "{name}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.to_lowercase().contains("ledger"), "{name}: {}", ran.stderr);
        assert!(!lab.repo.path("ran").exists(), "{name}");
        assert_eq!(fs::read(&ledger).expect("readable"), bytes, "{name}: it is left as it is");
        fs::write(&ledger, &whole).expect("written");
        lab.as_before();
        assert_eq!(lab.status_of("next"), "", "{name}: never a half-open attempt");
    }
    lab.repo.run(&["--execution-id", "next"], "echo y > y").exits(0);
    lab.laws();
}

#[test]
fn row_22_of_a_newer_version_it_is_read_and_never_written() {
    let lab = Lab::new();
    lab.repo.run(JOB, "echo x > x").exits(0);
    lab.killed_at("turn_over", &["--execution-id", "stuck"], "echo y > y");
    lab.repo.sql("pragma user_version = 99");
    let ledger = lab.repo.path(".git/worktx/ledger.db");
    let bytes = fs::read(&ledger).expect("readable");
    let ran = lab.repo.run(&[], "touch ran").exits(1);
    assert!(ran.stderr.contains("newer"), "{}", ran.stderr);
    assert!(!lab.repo.path("ran").exists());
    for args in [&["reconcile"][..], &["gc"], &["cancel", "job"]] {
        assert_ne!(lab.repo.call(args).code, 0, "{args:?}");
    }
    assert_eq!(fs::read(&ledger).expect("readable"), bytes);
}

#[test]
fn row_23_a_busy_workspace_is_busy_and_can_be_waited_for() {
    let repo = Repo::new();
    let (ready, go) = (Gate::new(&repo, "ready"), Gate::new(&repo, "go"));
    let script =
        format!("echo > {}; cat {} > /dev/null", ready.path().display(), go.path().display());
    let first = repo.spawn(&mut repo.run_command(&[], &script));
    ready.wait();
    let document = repo.run(&[], "true").exits(22).json();
    assert_eq!(document["outcome"], "busy");
    let second = repo.spawn(&mut repo.run_command(&["--wait", "60s"], "echo x > x"));
    go.open();
    Repo::wait(first).exits(0);
    Repo::wait(second).exits(0);
    assert_eq!(repo.git(&["show", "HEAD:x"]), "x");
}

#[test]
fn row_23_two_linked_worktrees_run_at_once() {
    let repo = Repo::new();
    let linked = repo.outside().join("linked");
    repo.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().expect("text")]);
    let (ready, go) = (Gate::new(&repo, "ready"), Gate::new(&repo, "go"));
    let script = format!(
        "echo a > a; echo > {}; cat {} > /dev/null",
        ready.path().display(),
        go.path().display()
    );
    let first = repo.spawn(&mut repo.run_command(&["--execution-id", "one"], &script));
    ready.wait();
    repo.finish(repo.run_command(&["--execution-id", "two"], "echo b > b").current_dir(&linked))
        .exits(0);
    repo.finish(
        repo.run_command(&["--execution-id", "three"], "echo c > c; git config x.y z; exit 3")
            .current_dir(&linked),
    )
    .exits(10);
    go.open();
    Repo::wait(first).exits(0);
    assert_eq!(repo.git(&["show", "main:a"]), "a");
    assert_eq!(repo.git(&["show", "side:b"]), "b");
    assert_eq!(repo.git_in(&linked, &["status", "--porcelain"]), "");
    assert_eq!(repo.status(), "");
    repo.fsck();
}

#[test]
fn row_23_two_state_directories_are_refused() {
    let repo = Repo::new();
    repo.run(&[], "true").exits(0);
    let other = repo.outside().join("state");
    let ran = repo.finish(repo.run_command(&[], "touch ran").env("WORKTX_STATE_DIR", &other));
    assert!([1, 21].contains(&ran.code), "{} {}", ran.code, ran.stderr);
    assert!(!repo.path("ran").exists());
    assert!(!other.join("ledger.db").exists());

    let repo = Repo::new();
    let state = repo.outside().join("state");
    repo.finish(repo.run_command(&[], "echo x > x").env("WORKTX_STATE_DIR", &state)).exits(0);
    assert!(state.join("ledger.db").exists() && !repo.path(".git/worktx/ledger.db").exists());
    assert_eq!(fs::metadata(&state).expect("there").mode() & 0o777, 0o700);
    repo.run(&[], "echo y > y").exits(0);
    assert!(!repo.path(".git/worktx/ledger.db").exists(), "the pointer is followed");
    repo.finish(repo.run_command(&[], "true").env("WORKTX_STATE_DIR", repo.path("src/state")))
        .exits(1);

    // While an attempt runs, with the pointer hidden.
    let (ready, go) = (Gate::new(&repo, "ready"), Gate::new(&repo, "go"));
    let script =
        format!("echo > {}; cat {} > /dev/null", ready.path().display(), go.path().display());
    let first = repo.spawn(&mut repo.run_command(&[], &script));
    ready.wait();
    fs::rename(repo.path(".git/worktx/state-dir"), repo.outside().join("hidden")).expect("moved");
    let other = repo.outside().join("third");
    let ran = repo.finish(repo.run_command(&[], "touch ran").env("WORKTX_STATE_DIR", &other));
    assert!([21, 22].contains(&ran.code), "{} {}", ran.code, ran.stderr);
    fs::rename(repo.outside().join("hidden"), repo.path(".git/worktx/state-dir")).expect("moved");
    go.open();
    Repo::wait(first).exits(0);
}

#[test]
fn row_23_a_second_ledger_meets_the_marker() {
    let lab = Lab::new();
    lab.killed_at("turn_over", &["--execution-id", "job"], "echo x > x");
    // The first ledger is nowhere to be found.
    let home = lab.repo.path(".git/worktx");
    fs::rename(home.join("ledger.db"), lab.repo.outside().join("hidden")).expect("moved");
    let other = lab.repo.outside().join("other");
    let ran = lab.repo.finish(
        lab.repo.run_command(&["--wait", "60s"], "touch ran").env("WORKTX_STATE_DIR", &other),
    );
    assert!([1, 21].contains(&ran.code), "{} {}", ran.code, ran.stderr);
    assert!(!lab.repo.path("ran").exists());
    // Nor is a new one made at the old place in silence.
    let ran = lab.repo.run(&["--wait", "60s"], "touch ran");
    assert!([1, 21].contains(&ran.code), "{} {}", ran.code, ran.stderr);
    assert!(!lab.repo.path("ran").exists());
    fs::rename(lab.repo.outside().join("hidden"), home.join("ledger.db")).expect("moved");
    lab.reconcile();
    assert_eq!(lab.state("job", 1).1, "interrupted");
    lab.laws();
}

#[test]
fn row_23_a_lock_file_that_the_turn_unlinks_is_noticed() {
    for script in
        ["rm .git/worktx-workspace", "rm .git/worktx-workspace; touch .git/worktx-workspace"]
    {
        for end in [0, 3] {
            let lab = Lab::new();
            let document = lab
                .repo
                .run(&["--execution-id", "job"], &format!("echo x > x; {script}; exit {end}"))
                .exits(20)
                .json();
            assert_eq!(document["reason"], "lock_lost", "{script}");
            assert_eq!(lab.repo.read("x"), "x\n");
            assert_eq!(lab.repo.head(), lab.base);
            lab.laws();
        }
    }
}

#[test]
fn row_23_many_at_once_run_one_after_the_other() {
    let lab = Lab::new();
    let job = |n: usize, wait: &[&str]| {
        let name = format!("many-{n}");
        let options = [&["--execution-id", &name], wait].concat();
        lab.repo.spawn(&mut lab.repo.run_command(&options, &format!("echo {n} >> README.md")))
    };
    let all: Vec<_> = (0..6).map(|n| job(n, &["--wait", "120s"])).collect();
    for child in all {
        Repo::wait(child).exits(0);
    }
    assert_eq!(lab.repo.git(&["rev-list", "--count", &format!("{}..HEAD", lab.base)]), "6");
    assert_eq!(lab.repo.read("README.md").lines().count(), 7);
    lab.laws();
    // Those that do not wait: one runs, or some one after the other; the rest are busy at once.
    let all: Vec<_> = (6..12).map(|n| job(n, &[])).collect();
    let codes: Vec<i32> = all.into_iter().map(|child| Repo::wait(child).code).collect();
    let ran = codes.iter().filter(|code| **code == 0).count();
    assert!(ran >= 1 && codes.iter().all(|code| [0, 22].contains(code)), "{codes:?}");
    assert_eq!(lab.repo.read("README.md").lines().count(), 7 + ran);
    lab.laws();
}

#[test]
fn row_23_a_lock_file_exchanged_mid_turn_lets_nobody_in_twice() {
    let lab = Lab::new();
    let midway = Midway::new(&lab);
    let script = format!("echo x > x; {}", midway.words());
    let child = lab.repo.spawn(&mut lab.repo.run_command(JOB, &script));
    let second = midway.meanwhile(|| {
        let lock = lab.repo.path(".git/worktx-workspace");
        fs::remove_file(&lock).expect("removed");
        lab.repo.run(&["--execution-id", "second"], "echo second > second")
    });
    let first = Repo::wait(child);
    assert_eq!(first.exits(20).json()["reason"], "lock_lost");
    // The second got the lock of another file; it may not touch what the first has open.
    assert_eq!(second.code, 22, "{}{}", second.stdout, second.stderr);
    assert!(!lab.repo.path("second").exists());
    assert_eq!(lab.repo.head(), lab.base);
    assert_eq!(lab.repo.read("x"), "x\n");
}

#[test]
fn row_23b_the_first_attempt_comes_too_late() {
    let lab = Lab::new();
    let linked = lab.repo.outside().join("linked");
    lab.repo.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().expect("text")]);
    lab.killed_at("turn_over", JOB, "echo x > x");
    lab.reconcile();
    assert_eq!(lab.state("job", 1).1, "interrupted");
    let document = lab
        .repo
        .finish(lab.repo.run_command(JOB, "echo y > y").current_dir(&linked))
        .exits(0)
        .json();
    assert_eq!(document["attempt"], 2);
    let row = lab.repo.sql("select status, success_attempt, success_candidate from execution where execution_id = 'job'");
    let adopt = lab.repo.call(&["resolve", "job", "--adopt"]);
    assert!([1, 13, 20].contains(&adopt.code), "{} {}", adopt.code, adopt.stderr);
    assert_eq!(lab.state("job", 1).0, "quarantined");
    assert_eq!(lab.repo.head(), lab.base);
    assert_eq!(lab.repo.read("x"), "x\n");
    let now = lab.repo.sql("select status, success_attempt, success_candidate from execution where execution_id = 'job'");
    assert_eq!(now, row);
    lab.repo.fsck();
}

#[test]
fn row_23b_a_late_terminal_of_attempt_one_is_lost() {
    for (point, running) in [
        ("seal_recorded", false),
        ("committing_recorded", false),
        ("committing_recorded", true),
        ("locks_held", false),
        ("rollback_recorded", true),
    ] {
        let mut lab = Lab::new();
        lab.hold("x\n");
        let linked = lab.repo.outside().join("linked");
        lab.repo.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().expect("text")]);
        let end = if point == "rollback_recorded" { 3 } else { 0 };
        let checked = [JOB, &["--check", "true"]].concat();
        lab.killed_at(point, &checked, &format!("echo x > x; exit {end}"));
        let midway = Midway::new(&lab);
        let wait = if running { midway.words() } else { "true".to_owned() };
        let mut command = lab.repo.run_command(JOB, &format!("echo y > y; {wait}"));
        command.current_dir(&linked);
        let row = || {
            lab.repo.sql(
                "select status, current_attempt, success_attempt, success_candidate, error \
                 from execution where execution_id = 'job'",
            )
        };
        let late = || {
            let before = row();
            lab.repo.finish(&mut lab.reconcile_command()).exits(0);
            assert_eq!(row(), before, "{point}: the row belongs to attempt 2");
            lab.state("job", 1).0
        };
        let first = if running {
            let second = lab.repo.spawn(&mut command);
            let first = midway.meanwhile(late);
            Repo::wait(second).exits(0);
            first
        } else {
            lab.repo.finish(&mut command).exits(0);
            late()
        };
        assert_eq!(first, "rolled_back", "{point}");
        lab.as_before();
        assert_eq!(row().split('|').nth(1), Some("2"), "{point}");
    }
}

#[test]
fn row_23b_adopt_and_discard_of_attempt_one_while_two_runs_elsewhere() {
    for how in ["--adopt", "--discard"] {
        let lab = Lab::new();
        let linked = lab.repo.outside().join("linked");
        lab.repo.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().expect("text")]);
        lab.killed_at("turn_over", JOB, "echo x > x");
        lab.reconcile();
        let midway = Midway::new(&lab);
        let mut command = lab.repo.run_command(JOB, &format!("echo y > y; {}", midway.words()));
        let second = lab.repo.spawn(command.current_dir(&linked));
        midway.meanwhile(|| {
            let ran = lab.repo.call(&["resolve", "job", how]);
            assert_eq!(lab.status_of("job"), "running", "{how}: {}", ran.stderr);
            assert_eq!(lab.repo.head(), lab.base, "{how}");
            if how == "--adopt" {
                assert_ne!(ran.code, 0, "{}", ran.stderr);
                assert_eq!(lab.repo.read("x"), "x\n", "adopt that lost leaves all as it is");
            }
        });
        let document = Repo::wait(second).exits(0).json();
        assert_eq!(document["attempt"], 2, "{how}");
        assert_eq!(lab.status_of("job"), "success");
        assert_eq!(lab.repo.git(&["show", "side:y"]), "y");
        lab.repo.fsck();
    }
}
