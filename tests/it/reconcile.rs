//! Reconcile: beside the living, twice, by two at once; and the decisions of operators.

use std::fs;
use std::path::Path;

use crate::lab::{JOB, Lab, Midway, Picture};
use crate::support::{Ran, Repo};

/// What `reconcile --json` counts: rolled forward, rolled back, quarantined, left.
#[track_caller]
fn counts(ran: &Ran) -> [u64; 4] {
    let document = ran.json();
    let counts = ["rolled_forward", "rolled_back", "quarantined", "left"]
        .map(|name| document[name].as_u64().expect("a number"));
    let each = document["attempts"].as_array().expect("a list");
    for (name, count) in ["rolled_forward", "rolled_back", "quarantined", "left"].iter().zip(counts)
    {
        let listed = each.iter().filter(|a| a["result"] == *name).count();
        assert_eq!(listed as u64, count, "{name}: {document}");
    }
    counts
}

fn reconcile(lab: &Lab) -> Ran {
    lab.repo.call(&["reconcile", "--json"])
}

#[test]
fn the_summary_counts_each_case() {
    let checked = [JOB, &["--check", "true"]].concat();
    let foreign = "echo theirs > .git/refs/heads/main.lock";
    for (point, script, wanted) in [
        ("open_recorded", "true", [0, 1, 0, 0]),
        ("turn_over", "echo x > x", [0, 0, 1, 0]),
        ("seal_recorded", "echo x > x", [1, 0, 0, 0]),
        ("post_check_passed", "echo x > x", [1, 0, 0, 0]),
        ("gate_won", "echo x > x", [1, 0, 0, 0]),
        ("committed_recorded", "true", [1, 0, 0, 0]),
        ("rollback_recorded", "echo x > x; exit 3", [0, 1, 0, 0]),
        ("file_restored", "echo x > x; exit 3", [0, 1, 0, 0]),
        ("seal_recorded", foreign, [0, 0, 1, 0]),
    ] {
        let lab = Lab::with_settings("bound = \"300ms\"\n");
        assert_eq!(counts(&reconcile(&lab).exits(0)), [0, 0, 0, 0], "nothing to do");
        lab.killed_at(point, &checked, script);
        let first = reconcile(&lab).exits(0);
        assert_eq!(counts(&first), wanted, "{point}, {script}: {}", first.stdout);
        let entry = &first.json()["attempts"][0];
        assert_eq!((&entry["execution_id"], &entry["attempt"]), (&"job".into(), &1.into()));
        // Once more: what is held stays held, what is settled is nothing any more.
        let before = lab.picture();
        let second = reconcile(&lab).exits(0);
        assert_eq!(counts(&second), [0, 0, wanted[2], 0], "{point}, {script}");
        assert_eq!(lab.picture(), before, "{point}, {script}");
    }
}

#[test]
fn beside_a_living_coordinator_nothing_is_touched() {
    // In the turn, in the post-check, with one that is in quarantine elsewhere.
    for in_check in [false, true] {
        let lab = Lab::new();
        let linked = lab.repo.outside().join("linked");
        lab.repo.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().expect("text")]);
        let mut crashed =
            lab.repo.run_command(&["--execution-id", "crashed"], "echo c > c; exit 3");
        let ran = crashed.current_dir(&linked).env("WORKTX_FAULT", "rollback_recorded");
        assert_eq!(lab.repo.finish(ran).code, -9);
        let midway = Midway::new(&lab);
        let (script, check) = if in_check {
            ("echo x > x".to_owned(), midway.words())
        } else {
            (format!("echo x > x; {}", midway.words()), "true".to_owned())
        };
        let options = [JOB, &["--check", &check]].concat();
        let child = lab.repo.spawn(&mut lab.repo.run_command(&options, &script));
        midway.meanwhile(|| {
            let pid = child.id();
            let row = || {
                lab.repo
                    .sql("select state, rev, owner, data from attempt where execution_id = 'job'")
            };
            let before = (row(), lab.repo.own_refs(), lab.repo.listing());
            assert!(before.0.contains(&pid.to_string()));
            // The other work tree is settled, this one is left: not all is settled.
            let ran = reconcile(&lab);
            assert_eq!(ran.code, 1, "{}", ran.stdout);
            assert_eq!(counts(&ran), [0, 1, 0, 1], "{}", ran.stdout);
            let ran = reconcile(&lab);
            assert_eq!(counts(&ran), [0, 0, 0, 1], "{}", ran.stdout);
            let mut after = (row(), lab.repo.own_refs(), lab.repo.listing());
            // What the crashed one left in refs is its own business.
            after.1.retain(|name| !name.contains("/crashed/"));
            let mut before = before;
            before.1.retain(|name| !name.contains("/crashed/"));
            assert_eq!(after, before, "what a living owner holds");
        });
        Repo::wait(child).exits(0);
        assert_eq!(lab.repo.git(&["show", "HEAD:x"]), "x");
        assert_eq!(counts(&reconcile(&lab).exits(0)), [0, 0, 0, 0]);
        lab.laws();
    }
}

#[test]
fn two_reconciles_at_once_do_the_work_once() {
    for (point, script, state) in [
        ("seal_recorded", "echo x > x", "done"),
        ("gate_won", "echo x > x", "done"),
        ("rollback_recorded", "echo x > x; rm -rf src; exit 3", "rolled_back"),
        ("turn_over", "echo x > x", "quarantined"),
    ] {
        let mut lab = Lab::new();
        lab.hold("x\n");
        lab.killed_at(point, JOB, script);
        let start = || lab.repo.spawn(&mut lab.repo.worktx(&["reconcile", "--json"]));
        let all: Vec<_> = (0..4).map(|_| start()).collect();
        for child in all {
            let ran = Repo::wait(child);
            // One that found the workspace busy says that something was left.
            assert!([0, 1].contains(&ran.code), "{}{}", ran.stdout, ran.stderr);
            let [.., left] = counts(&ran);
            assert_eq!(ran.code == 1, left > 0, "{}", ran.stdout);
        }
        assert_eq!(lab.state("job", 1).0, state, "{point}");
        lab.laws();
        if state == "done" {
            let count = lab.repo.git(&["rev-list", "--count", &format!("{}..HEAD", lab.base)]);
            assert_eq!(count, "1", "{point}");
        }
    }
}

#[test]
fn a_reconcile_is_bounded_by_what_is_unsettled() {
    let lab = Lab::with_settings("bound = \"300ms\"\n");
    // A foreign lock that never goes: every pass looks once, and comes back.
    lab.killed_at("seal_recorded", JOB, "echo x > x");
    lab.repo.write(".git/HEAD.lock", "theirs\n");
    let decisions = || {
        lab.repo.sql("select count(*) from event where execution_id = 'job' and kind = 'decided'")
    };
    reconcile(&lab).exits(0);
    let first: u32 = decisions().parse().expect("a number");
    assert!((1..=8).contains(&first), "{first}");
    let mut pictures: Vec<Picture> = Vec::new();
    for _ in 0..5 {
        reconcile(&lab).exits(0);
        pictures.push(lab.picture());
    }
    assert_eq!(decisions(), first.to_string(), "what is held is not decided about again");
    assert!(pictures.windows(2).all(|two| two[0] == two[1]));
    assert_eq!(lab.state("job", 1).1, "foreign_lock");
}

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

#[test]
fn a_marker_that_nothing_stands_behind_goes() {
    let lab = Lab::new();
    lab.killed_at("turn_over", JOB, "echo x > x");
    let marker = lab.repo.path(".git/worktx-marker");
    let text = fs::read(&marker).expect("there, since something is unsettled");
    lab.repo.call(&["resolve", "job", "--discard"]);
    lab.repo.call(&["reconcile"]).exits(0);
    lab.repo.call(&["resolve", "job", "--discard"]).exits(0);
    assert!(!marker.exists());
    // A kill between the end of the attempt and the marker's.
    fs::write(&marker, text).expect("written");
    lab.repo.call(&["reconcile"]).exits(0);
    lab.laws();
}
