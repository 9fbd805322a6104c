//! The crash matrix on the real binary: a fault, the next command reconciles, then three laws.

use std::fs;

use crate::lab::{JOB, Lab, WORK, WRECK};
use crate::support::Gate;

fn held(lab: &mut Lab) {
    for bytes in ["new\n", "hello\nmore\n", "in\n"] {
        lab.hold(bytes);
    }
}

#[track_caller]
fn is_committed(lab: &Lab) {
    let repo = &lab.repo;
    assert_eq!(lab.state("job", 1).0, "done");
    assert_eq!(lab.status_of("job"), "success");
    let candidate = repo.sql("select success_candidate from execution where execution_id = 'job'");
    assert_eq!(repo.head(), candidate);
    assert_eq!(repo.git(&["rev-parse", "HEAD~1"]), lab.base);
    assert_eq!(repo.status(), "?? dangling\n?? notes.txt");
    assert_eq!(repo.read("new.txt"), "new\n");
    assert_eq!(repo.git(&["show", "HEAD:README.md"]), "hello\nmore");
    let replay = repo.run(JOB, "touch never").exits(0).json();
    assert_eq!(replay["replayed"], true);
    assert_eq!(replay["commit"], candidate.as_str());
    assert!(!repo.path("never").exists());
}

#[track_caller]
fn is_rolled_back(lab: &Lab) {
    assert_eq!(lab.state("job", 1), ("rolled_back".to_owned(), "turn_failed".to_owned()));
    assert_eq!(lab.status_of("job"), "failed");
    lab.as_before();
}

#[test]
fn row_01_killed_before_the_turn() {
    for point in ["open_recorded", "base_pinned"] {
        let lab = Lab::new();
        lab.killed_at(point, JOB, WORK);
        lab.reconcile();
        lab.laws();
        assert_eq!(lab.state("job", 1), ("rolled_back".to_owned(), "not_started".to_owned()));
        lab.as_before();
        assert!(!lab.repo.own_refs().iter().any(|name| name.contains("/job/")), "{point}");
        let next = lab.repo.run(JOB, WORK).exits(0).json();
        assert_eq!(next["attempt"], 2);
        assert_eq!(next["base"], lab.base.as_str());
    }
}

#[test]
fn row_02_killed_mid_turn() {
    let mut lab = Lab::new();
    lab.hold("half\n");
    let (ready, never) = (Gate::new(&lab.repo, "ready"), Gate::new(&lab.repo, "never"));
    let script = format!(
        "trap '' INT TERM HUP; echo half > half; echo $$ > ../pid; echo > {}; cat {}; sleep 1000",
        ready.path().display(),
        never.path().display()
    );
    let mut child = lab.repo.spawn(&mut lab.repo.run_command(JOB, &script));
    ready.wait();
    child.kill().expect("sent");
    child.wait().expect("it ends");
    lab.reconcile();
    let pid = fs::read_to_string(lab.repo.outside().join("pid")).expect("written");
    assert!(!std::path::Path::new(&format!("/proc/{}/exe", pid.trim())).exists(), "it lives");
    lab.laws();
    assert_eq!(lab.state("job", 1), ("quarantined".to_owned(), "interrupted".to_owned()));
    assert_eq!(lab.repo.read("half"), "half\n");
    assert_eq!(lab.repo.head(), lab.base);
    // Another execution meets the wall; the same one again goes on from the base.
    lab.repo.run(&[], "true").exits(21);
    let again = lab.repo.run(JOB, "test ! -e half && echo ok > ok").exits(0).json();
    assert_eq!(again["attempt"], 2);
    assert_eq!(lab.state("job", 1).0, "rolled_back");
    lab.laws();
}

#[test]
fn row_02_killed_after_the_turn_and_rolled_back_by_configuration() {
    for point in ["turn_recorded", "turn_over"] {
        let mut lab = Lab::with(|repo| {
            let config = repo.home().join(".config/worktx/config.toml");
            fs::create_dir_all(config.parent().expect("has one")).expect("made");
            fs::write(config, "on_interrupted = \"roll_back\"\n").expect("written");
        });
        if point == "turn_over" {
            held(&mut lab);
        }
        lab.killed_at(point, JOB, WORK);
        lab.reconcile();
        lab.laws();
        assert_eq!(lab.state("job", 1).0, "rolled_back", "{point}");
        lab.as_before();
        lab.repo.run(JOB, WORK).exits(0);
    }
}

#[test]
fn row_02b_coordinator_and_supervisor_killed() {
    let mut lab = Lab::new();
    lab.hold("half\n");
    let (ready, never) = (Gate::new(&lab.repo, "ready"), Gate::new(&lab.repo, "never"));
    let script = format!(
        "trap '' INT TERM HUP; echo half > half; echo $PPID > ../supervisor; echo $$ > ../pid; \
         echo > {}; while :; do cat {}; done",
        ready.path().display(),
        never.path().display()
    );
    let mut child = lab.repo.spawn(&mut lab.repo.run_command(JOB, &script));
    ready.wait();
    let number = |name: &str| {
        let text = fs::read_to_string(lab.repo.outside().join(name)).expect("written");
        rustix::process::Pid::from_raw(text.trim().parse().expect("a number")).expect("a pid")
    };
    let (supervisor, turn) = (number("supervisor"), number("pid"));
    child.kill().expect("sent");
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).expect("sent");
    child.wait().expect("it ends");
    lab.reconcile();
    let (state, reason) = lab.state("job", 1);
    assert_eq!(state, "quarantined");
    assert!(reason == "interrupted" || reason == "writer_unproven", "{reason}");
    let lives = std::path::Path::new(&format!("/proc/{}/exe", turn.as_raw_nonzero())).exists();
    assert!(!lives || reason == "writer_unproven");
    let _ = rustix::process::kill_process(turn, rustix::process::Signal::KILL);
    assert_eq!(lab.repo.read("half"), "half\n");
    lab.laws();
}

#[test]
fn row_03_killed_between_post_check_and_gate() {
    for point in ["seal_recorded", "candidate_pinned", "post_check_passed", "committing_recorded"] {
        let mut lab = Lab::new();
        held(&mut lab);
        lab.killed_at(point, &[JOB, &["--check", "test -e new.txt"]].concat(), WORK);
        lab.reconcile();
        lab.laws();
        is_committed(&lab);
    }
}

#[test]
fn row_03b_killed_between_gate_and_branch() {
    for point in ["locks_held", "gate_won"] {
        let mut lab = Lab::new();
        held(&mut lab);
        lab.killed_at(point, JOB, WORK);
        assert!(lab.repo.path(".git/index.lock").exists(), "{point}: the locks still lie there");
        lab.reconcile();
        lab.laws();
        is_committed(&lab);
    }
}

#[test]
fn row_03c_a_won_attempt_that_cannot_promote_is_never_undone() {
    let mut lab = Lab::new();
    held(&mut lab);
    lab.killed_at("gate_won", JOB, WORK);
    // Somebody moves the branch by force, under the lock.
    let other = lab.repo.git(&["commit-tree", "-p", "HEAD", "-m", "other", "HEAD^{tree}"]);
    fs::write(lab.repo.path(".git/refs/heads/main"), format!("{other}\n")).expect("written");
    lab.reconcile();
    assert_eq!(lab.state("job", 1), ("quarantined".to_owned(), "promote_blocked".to_owned()));
    assert_eq!(lab.status_of("job"), "success");
    assert_eq!(lab.repo.read("new.txt"), "new\n");
    lab.laws();
    lab.repo.run(&[], "true").exits(21);
    // The way is free again: it completes by itself.
    fs::write(lab.repo.path(".git/refs/heads/main"), format!("{}\n", lab.base)).expect("written");
    lab.reconcile();
    lab.laws();
    is_committed(&lab);
}

#[test]
fn row_04_killed_after_the_branch_moved() {
    for point in ["branch_moved", "promoted", "committed_recorded"] {
        let mut lab = Lab::new();
        held(&mut lab);
        lab.killed_at(point, JOB, WORK);
        lab.reconcile();
        lab.laws();
        is_committed(&lab);
        let log = lab.repo.git(&["reflog", "main"]);
        assert_eq!(log.lines().filter(|l| l.contains("job/1")).count(), 1, "{point}: {log}");
    }
}

#[test]
fn row_05_killed_mid_rollback_at_any_file() {
    for point in ["rollback_recorded", "discarded_pinned", "restored"] {
        let mut lab = Lab::new();
        held(&mut lab);
        lab.killed_at(point, JOB, WRECK);
        lab.reconcile();
        lab.laws();
        is_rolled_back(&lab);
    }
    for n in 1.. {
        let mut lab = Lab::new();
        held(&mut lab);
        let point = format!("file_restored:{n}");
        let mut command = lab.repo.run_command(JOB, WRECK);
        let ran = lab.repo.finish(command.env("WORKTX_FAULT", &point));
        if ran.code == 10 {
            assert!(n > 10, "only {n} points");
            break;
        }
        assert_eq!(ran.code, -9, "{}", ran.stderr);
        lab.reconcile();
        lab.laws();
        is_rolled_back(&lab);
        assert!(
            lab.repo.own_refs().iter().all(|r| !r.contains("rescue")),
            "{n}: somebody's bytes?"
        );
    }
}

#[test]
fn row_09_the_reconcile_is_killed_too() {
    let at = [
        (
            "seal_recorded",
            WORK,
            &[
                "candidate_pinned",
                "post_check_passed",
                "locks_held",
                "gate_won",
                "branch_moved",
                "promoted",
                "committed_recorded",
            ][..],
        ),
        ("gate_won", WORK, &["branch_moved", "promoted", "committed_recorded"][..]),
        ("branch_moved", WORK, &["promoted", "committed_recorded"][..]),
        (
            "rollback_recorded",
            WRECK,
            &[
                "discarded_pinned",
                "file_restored",
                "file_restored:5",
                "file_restored:12",
                "restored",
            ][..],
        ),
        (
            "file_restored:4",
            WRECK,
            &[
                "rollback_recorded",
                "discarded_pinned",
                "file_restored",
                "file_restored:7",
                "restored",
            ][..],
        ),
    ];
    for (first, script, seconds) in at {
        for second in seconds {
            let mut lab = Lab::new();
            held(&mut lab);
            lab.killed_at(first, JOB, script);
            let ran = lab.repo.finish(lab.reconcile_command().env("WORKTX_FAULT", second));
            assert_eq!(ran.code, -9, "{first}, {second}: {}{}", ran.stdout, ran.stderr);
            lab.reconcile();
            lab.laws();
            if script == WORK { is_committed(&lab) } else { is_rolled_back(&lab) }
        }
    }
}

#[test]
fn row_09_the_turns_own_commits_survive_every_kill() {
    const OWN: &str = "echo a > a; git add a; git commit -qm own; echo new > new.txt";
    for point in [
        "seal_recorded",
        "candidate_pinned",
        "committing_recorded",
        "locks_held",
        "gate_won",
        "branch_moved",
        "promoted",
        "committed_recorded",
    ] {
        let mut lab = Lab::new();
        lab.hold("a\n");
        lab.killed_at(point, JOB, OWN);
        lab.reconcile();
        lab.laws();
        assert_eq!(lab.state("job", 1).0, "done", "{point}");
        assert_eq!(lab.repo.git(&["rev-parse", "HEAD~2"]), lab.base, "{point}");
        assert_eq!(lab.repo.status(), "?? dangling\n?? notes.txt");
    }
    for point in
        ["rollback_recorded", "discarded_pinned", "branch_moved", "file_restored", "restored"]
    {
        let mut lab = Lab::new();
        lab.hold("a\n");
        lab.killed_at(point, JOB, &format!("{OWN}; exit 3"));
        lab.reconcile();
        lab.laws();
        is_rolled_back(&lab);
    }
}
