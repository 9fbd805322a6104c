//! Reconcile: beside the living, twice, by two at once; and the decisions of operators.

use std::fs;
use std::path::Path;

use crate::lab::{JOB, Lab};

#[test]
fn resolve_after_an_interruption() {
    for (how, state, status) in [
        ("--adopt", "done", "success"),
        ("--discard", "rolled_back", "failed"),
        ("--keep", "released", "failed"),
    ] {
        let mut lab = Lab::new();
        lab.hold("x\n");
        lab.killed_at("turn_over", JOB, "echo x > x; echo changed > README.md");
        lab.reconcile();
        lab.repo.call(&["resolve", "job", how]).exits(0);
        assert_eq!(lab.state("job", 1).0, state, "{how}");
        assert_eq!(lab.status_of("job"), status, "{how}");
        match how {
            "--adopt" => assert_eq!(lab.repo.git(&["show", "HEAD:x"]), "x"),
            "--discard" => lab.as_before(),
            _ => assert_eq!(lab.repo.read("x"), "x\n"),
        }
        lab.laws();
    }
}

#[test]
fn resolve_is_killed_too() {
    for (how, points, state) in [
        (
            "--adopt",
            &["seal_recorded", "committing_recorded", "gate_won", "branch_moved"][..],
            "done",
        ),
        (
            "--discard",
            &["rollback_recorded", "discarded_pinned", "file_restored", "restored"][..],
            "rolled_back",
        ),
    ] {
        for point in points {
            let mut lab = Lab::new();
            lab.hold("x\n");
            let options = [JOB, &["--check", "true"]].concat();
            lab.killed_at("turn_over", &options, "echo x > x; echo changed > README.md");
            lab.reconcile();
            let ran = lab
                .repo
                .finish(lab.repo.worktx(&["resolve", "job", how]).env("WORKTX_FAULT", point));
            assert_eq!(ran.code, -9, "{how}, {point}: {}", ran.stderr);
            lab.reconcile();
            lab.laws();
            assert_eq!(lab.state("job", 1).0, state, "{how}, {point}");
            if how == "--discard" {
                lab.as_before();
            }
        }
    }
}

#[test]
fn nothing_of_a_run_is_left_in_the_temporary_directory() {
    let lab = Lab::new();
    let tmp = lab.repo.outside().join("tmp");
    fs::create_dir(&tmp).expect("made");
    let mut command = lab.repo.run_command(&[JOB, &["--check", "true"]].concat(), "echo x > x");
    lab.repo.finish(command.env("TMPDIR", &tmp)).exits(0);
    assert_eq!(fs::read_dir(Path::new(&tmp)).expect("readable").count(), 0);
}
