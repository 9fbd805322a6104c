//! What is said of an attempt is what became of it: no success whose commit cannot be read, none
//! after the time or against a request, no replay of what has not landed, nothing taken back unsaid.

use std::fs;

use crate::lab::{JOB, Lab, Midway, WORK};

const DROP_REF: &str =
    "git update-ref -d refs/worktx/tx/$WORKTX_EXECUTION_ID/$WORKTX_ATTEMPT/candidate";

#[test]
fn a_success_can_be_read() {
    // Only the ref: it is put back.
    let lab = Lab::new();
    lab.repo.run(&[JOB, &["--check", DROP_REF]].concat(), "echo x > x").exits(0);
    let pin = lab.repo.git(&["rev-parse", "refs/worktx/tx/job/1/candidate"]);
    assert_eq!(pin, lab.repo.head());
    lab.laws();
    // The commit is gone, or is there no longer whole: nothing is won.
    let prune = format!("{DROP_REF}; git reflog expire --expire=now --all; git gc -q --prune=now");
    for check in [prune.as_str(), "rm -f .git/objects/pack/*"] {
        let lab = Lab::new();
        let ran = lab.repo.run(&[JOB, &["--check", check]].concat(), "echo x > x").exits(20);
        assert_eq!(ran.json()["reason"], "workspace_damaged", "{check}");
        assert_eq!((lab.repo.head(), lab.status_of("job")), (lab.base.clone(), "running".into()));
        lab.l3_no_limbo();
        lab.repo.call(&["resolve", "job", "--discard"]).exits(0);
        lab.as_before();
    }
}

#[test]
fn what_a_crash_left_and_a_gc_has_dropped_is_held() {
    for point in ["candidate_pinned", "committing_recorded"] {
        let lab = Lab::new();
        lab.killed_at(point, JOB, "echo x > x");
        for name in lab.repo.own_refs() {
            lab.repo.git(&["update-ref", "-d", &name]);
        }
        lab.repo.git(&["gc", "-q", "--prune=now"]);
        lab.reconcile();
        let (state, reason) = lab.state("job", 1);
        assert_eq!(
            (state.as_str(), reason.as_str()),
            ("quarantined", "workspace_damaged"),
            "{point}"
        );
        lab.l3_no_limbo();
        lab.repo.fsck();
        lab.repo.call(&["resolve", "job", "--discard"]).exits(0);
        lab.as_before();
    }
}

#[test]
fn neither_the_time_nor_a_signal_is_missed_while_git_is_locked() {
    let lock = |lab: &Lab| fs::write(lab.repo.path(".git/index.lock"), "").expect("written");
    for signal in [None, Some(rustix::process::Signal::TERM), Some(rustix::process::Signal::INT)] {
        let lab = Lab::new();
        let midway = Midway::new(&lab);
        let mut options = [JOB, &["--check"]].concat();
        let check = midway.words();
        options.push(&check);
        let by = (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(7)).to_string();
        if signal.is_none() {
            options.extend(["--settle-by", &by]);
        }
        let child = lab.repo.spawn(&mut lab.repo.run_command(&options, "echo x > x"));
        midway.meanwhile(|| lock(&lab));
        if let Some(signal) = signal {
            let state =
                || lab.repo.call(&["show", "job", "--json"]).json()["attempts"][0]["state"].clone();
            while state() != "committing" {}
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, signal).expect("sent");
        }
        let ran = crate::support::Repo::wait(child);
        // The undo puts the index back, and waits for git as well.
        let (code, reason) = match signal {
            None => (12, "settle_by"),
            Some(rustix::process::Signal::INT) => (13, "cancelled"),
            Some(_) => (14, "interrupted"),
        };
        fs::remove_file(lab.repo.path(".git/index.lock")).expect("there");
        assert_eq!(ran.code, code, "{}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.json()["reason"], reason);
        assert_ne!(lab.status_of("job"), "success");
        assert_eq!(lab.repo.head(), lab.base);
        lab.laws();
    }
}

/// Who took an attempt up is told to end: that is no word about the attempt.
#[test]
fn a_signal_to_who_settles_it_ends_no_attempt() {
    for (point, signal) in [
        ("committing_recorded", rustix::process::Signal::INT),
        ("committing_recorded", rustix::process::Signal::TERM),
        ("candidate_pinned", rustix::process::Signal::INT),
    ] {
        let lab = Lab::new();
        let midway = Midway::new(&lab);
        let once = lab.repo.outside().join("once");
        let check = format!("test -e {} || exit 0; {}", once.display(), midway.words());
        lab.killed_at(point, &[JOB, &["--check", &check]].concat(), "echo x > x");
        let is_locked = point == "committing_recorded";
        let lock = lab.repo.path(".git/index.lock");
        fs::write(if is_locked { &lock } else { &once }, "").expect("written");
        let child = lab.repo.spawn(&mut lab.repo.run_command(&["--execution-id", "other"], "true"));
        if is_locked {
            let events = || lab.repo.call(&["events", "job", "--json"]).stdout;
            while !events().contains("decided") {}
        } else {
            midway.ready.wait();
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).expect("sent");
        let ran = crate::support::Repo::wait(child);
        assert_eq!(ran.code, 14, "{}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.json()["reason"], "left_unsettled");
        assert_eq!(lab.status_of("job"), "running");
        assert_eq!(lab.status_of("other"), "");
        fs::remove_file(if is_locked { &lock } else { &once }).expect("there");
        lab.reconcile();
        assert_eq!(lab.state("job", 1).0, "done");
        assert_eq!(lab.status_of("job"), "success");
        lab.laws();
    }
}

#[test]
fn a_success_in_another_work_tree_is_settled_before_it_is_replayed() {
    for blocked in [false, true] {
        let lab = Lab::new();
        let linked = lab.repo.outside().join("linked");
        lab.repo.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().expect("text")]);
        lab.killed_at("gate_won", JOB, "echo x > x");
        if blocked {
            let tree = ["commit-tree", "-p", "HEAD", "-m", "other", "HEAD^{tree}"];
            let other = lab.repo.git(&tree);
            fs::write(lab.repo.path(".git/refs/heads/main"), format!("{other}\n"))
                .expect("written");
        }
        let mut again = lab.repo.run_command(JOB, "touch never");
        let ran = lab.repo.finish(again.current_dir(&linked));
        let document = ran.json();
        assert!(!linked.join("never").exists());
        if blocked {
            assert_eq!((ran.code, &document["reason"]), (20, &"promote_blocked".into()));
        } else {
            assert_eq!((ran.code, &document["outcome"]), (0, &"committed".into()), "{document}");
            assert_eq!(document["commit"], lab.repo.head());
            assert_eq!(lab.repo.git(&["show", "main:x"]), "x");
        }
    }
}

#[test]
fn what_will_not_run_again_takes_nothing_back() {
    let lab = Lab::new();
    lab.killed_at("turn_over", JOB, WORK);
    lab.reconcile();
    lab.repo.call(&["cancel", "job"]).exits(0);
    let held = lab.repo.listing();
    let ran = lab.repo.run(JOB, "touch never").exits(13);
    assert_eq!(ran.json()["outcome"], "error");
    assert_eq!(lab.repo.listing(), held);
    assert_eq!(lab.state("job", 1).0, "quarantined");
}

#[test]
fn what_is_taken_back_first_is_said() {
    let lab = Lab::new();
    lab.killed_at("turn_over", JOB, WORK);
    let ran = lab.repo.run(JOB, "echo x > x").exits(0);
    let document = ran.json();
    assert_eq!(document["attempt"], 2);
    let warning = &document["warnings"][0];
    assert_eq!(warning["code"], "settled_first", "{document}");
    let message = warning["message"].as_str().expect("text");
    assert!(message.contains("job/1") && message.contains("rolled back"), "{message}");
    assert!(ran.stderr.contains("job/1"), "{}", ran.stderr);
    // The command that it names shows it.
    let shown = lab.repo.call(&["diff", "job", "--attempt", "1"]).exits(0);
    assert!(shown.stdout.contains("new.txt"), "{}", shown.stdout);
}

#[test]
fn a_killed_adoption_that_lost_meanwhile_stays_held() {
    let lab = Lab::new();
    lab.killed_at("turn_over", JOB, WORK);
    lab.reconcile();
    let mut adopt = lab.repo.worktx(&["resolve", "job", "--adopt"]);
    assert_eq!(lab.repo.finish(adopt.env("WORKTX_FAULT", "locks_held")).code, -9);
    lab.repo.sql(
        "update execution set status = 'cancelled', completed_at = '2026-01-01T00:00:00Z' \
         where execution_id = 'job'",
    );
    lab.reconcile();
    assert_eq!(lab.state("job", 1), ("quarantined".to_owned(), "adopt_failed".to_owned()));
    assert_eq!(lab.repo.read("new.txt"), "new\n", "as the operator wanted it");
    lab.l3_no_limbo();
    lab.repo.call(&["resolve", "job", "--discard"]).exits(0);
    lab.as_before();
}

#[test]
fn a_repository_within_that_a_turn_takes_away_is_told() {
    let lab = Lab::with(|repo| {
        repo.write("nest/w", "work\n");
        repo.git(&["init", "-q", "nest"]);
    });
    let keep = lab.repo.outside().join("nest");
    for (turn, code) in [("rm -rf nest; exit 3", 10), ("rm -rf nest", 0)] {
        let copy = |from: &std::path::Path, to: &std::path::Path| {
            lab.repo.finish(lab.repo.command("cp").arg("-a").args([from, to])).exits(0);
        };
        if code == 10 {
            copy(&lab.repo.path("nest"), &keep);
        } else {
            copy(&keep, &lab.repo.path("nest"));
        }
        let document = lab.repo.run(&[], turn).exits(code).json();
        assert_eq!(document["warnings"][0]["code"], "nested_gone", "{document}");
        assert!(document["warnings"][0]["message"].to_string().contains("nest"), "{document}");
        assert_eq!(document["warnings"].as_array().map(Vec::len), Some(1));
        assert_eq!(document["changes"]["deleted"].as_u64().unwrap_or_default(), 0);
    }
}

/// Stopped and continued at once, whenever that comes: the run goes on, and its work lands.
#[test]
fn a_stop_that_is_called_off_at_once_stops_nothing() {
    use std::os::unix::process::CommandExt as _;
    let lab = Lab::new();
    let midway = Midway::new(&lab);
    for turn in 0..20 {
        let words = if turn == 0 { midway.words() } else { "true".to_owned() };
        let script = format!("{words}; echo {turn} > x");
        let mut command = lab.repo.run_command(&[], &script);
        let child = lab.repo.spawn(command.process_group(0));
        let pid = rustix::process::Pid::from_child(&child);
        if turn == 0 {
            midway.ready.wait();
        }
        for signal in [rustix::process::Signal::TSTP, rustix::process::Signal::CONT] {
            rustix::process::kill_process(pid, signal).expect("sent");
        }
        if turn == 0 {
            midway.go.open();
        }
        let ran = crate::support::Repo::wait(child);
        assert_eq!(ran.code, 0, "{turn}: {}{}", ran.stdout, ran.stderr);
        assert_eq!(lab.repo.git(&["show", "HEAD:x"]), turn.to_string());
    }
}
