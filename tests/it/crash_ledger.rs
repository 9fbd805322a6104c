//! The crash matrix, rows 22 and 23: the ledger, and several at once.

use std::fs;
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::MetadataExt as _;

use crate::lab::{JOB, Lab};
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
