//! The crash matrix, rows 6, 12 and 13: what a new attempt may start from.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::{JOB, Lab, Midway, WORK, WRECK};
use crate::support::{Gate, Repo};

#[test]
fn row_06_a_dirty_workspace_is_refused_and_can_be_run_unprotected() {
    let repo = Repo::new();
    repo.write("README.md", "changed\n");
    let before = repo.listing();
    let document = repo.run(&[], "touch ran").exits(21).json();
    assert_eq!(document["outcome"], "refused");
    assert_eq!(document["attempt"], serde_json::Value::Null);
    assert!(document["paths"].to_string().contains("README.md"), "{document}");
    assert_eq!(repo.listing(), before);
    assert_eq!(repo.sql("select count(*) from attempt"), "0");

    repo.git(&["add", "README.md"]);
    repo.run(&[], "touch ran").exits(21);

    let document = repo.run(&["--on-dirty", "run"], "touch ran").exits(0).json();
    assert_eq!(document["outcome"], "unprotected");
    assert!(repo.path("ran").exists());
    repo.run(&["--on-dirty", "run"], "exit 4").exits(10);
    repo.run(&["--on-dirty", "capture"], "true").exits(2);
}

#[test]
fn row_06_every_kind_of_dirt_is_refused_by_name() {
    for (make, paths) in [
        ("echo x > README.md", &["README.md"][..]),
        ("echo x > README.md; git add README.md", &["README.md"]),
        ("echo x > new; git add new", &["new"]),
        ("echo x > new; git add -N new", &["new"]),
        ("rm src/lib.rs", &["src/lib.rs"]),
        ("git rm -q src/lib.rs", &["src/lib.rs"]),
        ("git rm -q --cached src/lib.rs", &["src/lib.rs"]),
        ("chmod 755 README.md", &["README.md"]),
        ("rm README.md; ln -s src README.md", &["README.md"]),
        ("rm README.md; mkdir README.md; echo x > README.md/x", &["README.md"]),
        ("git mv README.md src/moved", &["README.md", "src/moved"]),
        ("echo x > README.md; rm -rf src", &["README.md", "src/lib.rs", "src/deep/two.txt"]),
    ] {
        let lab = Lab::new();
        lab.repo.finish(lab.repo.command("sh").args(["-c", make])).exits(0);
        let before = lab.picture();
        let document = lab.repo.run(JOB, "touch ran").exits(21).json();
        assert_eq!(document["outcome"], "refused", "{make}");
        let named = document["paths"].to_string();
        for path in paths {
            assert!(named.contains(path), "{make}: {named}");
        }
        assert_eq!(lab.picture(), before, "{make}: something changed");
        assert_eq!(lab.status_of("job"), "", "{make}: a refusal makes no row");
    }
}

#[test]
fn row_12_the_next_attempt_starts_from_the_base_of_the_last() {
    let quick = "grace = \"300ms\"\n";
    let never = "exec sleep 1000";
    for (options, script, code) in [
        (&[][..], WRECK.to_owned(), 10),
        (&["--timeout", "1s"], format!("{WRECK_ON}; {never}"), 12),
        (&["--check", "false"], WORK.to_owned(), 11),
        (&[], "git rm -rq .; git commit -qm own; echo x > x; exit 3".to_owned(), 10),
        (&[], "echo '!ignored/' > .gitignore".to_owned(), 11),
        (&[], "kill -9 $$".to_owned(), 10),
    ] {
        let mut lab = Lab::with_settings(quick);
        lab.hold("cached\n");
        let first = lab.repo.run(&[JOB, options].concat(), &script).exits(code).json();
        assert_eq!(first["attempt"], 1);
        lab.as_before();
        let picture = "git status --porcelain > ../seen; ls -A . src > ../listed; \
                       cp \"$WORKTX_PREVIOUS\" ../previous; echo ok > ok";
        let second = lab.repo.run(JOB, picture).exits(0).json();
        assert_eq!(second["attempt"], 2, "{script}");
        assert_eq!(second["base"], lab.base.as_str(), "{script}");
        let seen = |name: &str| {
            fs::read_to_string(lab.repo.outside().join(name)).expect("the turn wrote it")
        };
        assert_eq!(seen("seen"), "?? dangling\n?? notes.txt\n", "{script}: leftovers");
        assert_eq!(
            seen("listed"),
            ".:\n.git\n.gitignore\nREADME.md\ndangling\nempty\nignored\nlink\nnotes.txt\n\
             script.sh\nsecret.txt\nsrc\n\nsrc:\ndeep\nlib.rs\n",
            "{script}: leftovers"
        );
        let previous: serde_json::Value = serde_json::from_str(&seen("previous")).expect("JSON");
        assert_eq!(previous["attempt"], 1);
        assert_eq!(previous["reason"], first["reason"]);
        assert_eq!(lab.repo.git(&["diff", "--name-only", &lab.base, "HEAD"]), "ok");
        lab.laws();
    }
}

/// As `WRECK`, without an end.
const WRECK_ON: &str = "rm -rf src empty; echo x > README.md; mkfifo pipe; chmod 000 README.md";

#[test]
fn row_13_a_redelivery_waits_for_the_living() {
    let lab = Lab::new();
    let midway = Midway::new(&lab);
    let first = lab
        .repo
        .spawn(&mut lab.repo.run_command(JOB, &format!("echo a > a; {}; exit 3", midway.words())));
    midway.ready.wait();
    lab.repo.run(JOB, "touch ran").exits(22);
    assert!(!lab.repo.path("ran").exists());
    let second = lab.repo.spawn(
        &mut lab.repo.run_command(&[JOB, &["--wait", "60s"]].concat(), "test ! -e a && echo b > b"),
    );
    midway.go.open();
    Repo::wait(first).exits(10);
    assert_eq!(Repo::wait(second).exits(0).json()["attempt"], 2);
    lab.laws();
}

#[test]
fn row_13_a_repaired_tree_is_not_rolled_back() {
    let mut lab = Lab::new();
    lab.killed_at("turn_over", JOB, WORK);
    lab.reconcile();
    assert_eq!(lab.state("job", 1).1, "interrupted");
    lab.repo.write("repair.txt", "by a person\n");
    lab.hold("by a person\n");
    lab.repo.run(JOB, "true").exits(21);
    assert_eq!(lab.repo.read("repair.txt"), "by a person\n");
    lab.laws();
    assert_eq!(lab.state("job", 1).0, "quarantined");
}

#[test]
fn row_13_attempt_two_starts_when_the_writer_of_the_first_is_dead() {
    // The coordinator is killed; coordinator and supervisor are.
    for both in [false, true] {
        let mut lab = Lab::with_settings("grace = \"300ms\"\nbound = \"20s\"\n");
        lab.hold("half\n");
        let (ready, never) = (Gate::new(&lab.repo, "ready"), Gate::new(&lab.repo, "never"));
        let script = format!(
            "trap '' INT TERM HUP; echo half > half; rm -rf src; echo $PPID > ../supervisor; \
             echo $$ > ../pid; echo > {}; while :; do cat {}; done",
            ready.path().display(),
            never.path().display()
        );
        let mut child = lab.repo.spawn(&mut lab.repo.run_command(JOB, &script));
        ready.wait();
        let number = |name: &str| -> i32 {
            let text = fs::read_to_string(lab.repo.outside().join(name)).expect("written");
            text.trim().parse().expect("a number")
        };
        let (supervisor, turn) = (number("supervisor"), number("pid"));
        child.kill().expect("sent");
        if both {
            kill_process(Pid::from_raw(supervisor).expect("a pid"), Signal::KILL).expect("sent");
        }
        child.wait().expect("it ends");
        let lives = format!("/proc/{turn}/exe");
        assert!(both || Path::new(&lives).exists(), "it is there until its supervisor ends it");
        let next = format!(
            "test ! -e {lives} && test ! -e half && test -e src/lib.rs && echo second > second"
        );
        let ran = lab.repo.run(&[JOB, &["--wait", "60s"]].concat(), &next);
        if both && ran.code == 21 {
            // Nobody can tell: then it has not started, and nothing was undone.
            assert_eq!(lab.state("job", 1).1, "writer_unproven");
            assert_eq!(lab.repo.read("half"), "half\n");
            assert!(!lab.repo.path("second").exists());
            let _ = kill_process(Pid::from_raw(turn).expect("a pid"), Signal::KILL);
        } else {
            assert_eq!(ran.exits(0).json()["attempt"], 2);
            assert_eq!(lab.state("job", 1), ("rolled_back".to_owned(), "redelivered".to_owned()));
            assert_eq!(lab.repo.git(&["diff", "--name-only", &lab.base, "HEAD"]), "second");
            let pins = lab.repo.own_refs().join(" ");
            assert!(pins.contains("job/1/rescue/") || pins.contains("job/1/discarded/"), "{pins}");
        }
        lab.laws();
    }
}

#[test]
fn row_13_what_was_only_touched_is_no_repair() {
    let lab = Lab::new();
    lab.killed_at("turn_over", JOB, "echo x > x");
    lab.reconcile();
    // Other times and another inode, the same bytes: as after a restored backup.
    for path in ["README.md", "x", "notes.txt"] {
        let copy = lab.repo.path("copy");
        fs::copy(lab.repo.path(path), &copy).expect("copied");
        fs::rename(copy, lab.repo.path(path)).expect("renamed");
    }
    let again = lab.repo.run(JOB, "test ! -e x && echo ok > ok").exits(0).json();
    assert_eq!(again["attempt"], 2);
    lab.laws();
}
