//! Operators' decisions: each sentence of what `resolve` promises, then the same under fire.

use std::fs;

use serde_json::Value;

use crate::lab::Lab;
use crate::support::{Ran, Repo, is_root};

const JOB: &[&str] = &["--execution-id", "job"];
const WORK: &str = "echo x > x; echo changed > README.md; rm -r src";

/// An attempt that a crash cut off, held as `interrupted`.
fn interrupted(options: &[&str], script: &str) -> Lab {
    let mut lab = Lab::new();
    lab.hold("x\n");
    lab.hold("changed\n");
    lab.killed_at("turn_over", &[JOB, options].concat(), script);
    lab.reconcile();
    assert_eq!(lab.state("job", 1).1, "interrupted");
    lab
}

fn resolve(lab: &Lab, options: &[&str]) -> Ran {
    lab.repo.call(&[&["resolve", "job", "--json"], options].concat())
}

#[track_caller]
fn first(ran: &Ran) -> Value {
    let document = ran.json();
    assert_eq!(document["schema"], 1);
    document["attempts"][0].clone()
}

/// The tree, the branch and the index: what a refused decision must not touch.
fn looks(lab: &Lab) -> (String, String, String) {
    let tree = format!("{:?}", lab.repo.listing());
    (tree, lab.repo.head(), lab.repo.git(&["ls-files", "-s"]))
}

fn row(lab: &Lab, status: &str) {
    lab.repo.sql(&format!(
        "update execution set status = '{status}', completed_at = '2026-01-01T00:00:00Z' \
         where execution_id = 'job'"
    ));
}

fn events(lab: &Lab, kind: &str) -> String {
    lab.repo.sql(&format!("select detail from event where kind = '{kind}' order by id"))
}

#[test]
fn adopt_seals_validates_asks_and_promotes() {
    let lab = interrupted(&["--check", "grep -q changed README.md && test -e x"], WORK);
    let done = first(&resolve(&lab, &["--adopt"]).exits(0));
    assert_eq!((&done["settled"], &done["verdict"]), (&true.into(), &"won".into()));
    assert_eq!(done["state"], "done");
    assert_eq!(lab.status_of("job"), "success");
    assert_eq!(lab.repo.git(&["show", "HEAD:x"]), "x");
    assert_eq!(lab.repo.git(&["rev-parse", "HEAD~1"]), lab.base);
    lab.laws();
}

#[test]
fn adopt_that_the_post_check_refuses_stays_held() {
    let lab = interrupted(&["--check", "echo litter > litter; exit 1"], WORK);
    let before = looks(&lab);
    let done = first(&resolve(&lab, &["--adopt"]).exits(20));
    assert_eq!((&done["settled"], &done["verdict"]), (&false.into(), &Value::Null));
    assert!(done["detail"].as_str().expect("text").starts_with("adopt_failed"), "{done}");
    assert_eq!(looks(&lab), before);
    assert_eq!(lab.state("job", 1), ("quarantined".to_owned(), "adopt_failed".to_owned()));
    assert_eq!(lab.status_of("job"), "running");
    lab.laws();
    // Both other ways are still open.
    resolve(&lab, &["--discard"]).exits(0);
    lab.as_before();
    lab.laws();
}

#[test]
fn adopt_that_would_lose_touches_nothing() {
    let lab = interrupted(&["--check", "touch ../ran"], WORK);
    let hooks = lab.repo.script(".git/hooks/pre-commit", "#!/bin/sh\n");
    lab.repo.call(&["cancel", "job"]).exits(0);
    let before = looks(&lab);
    let done = first(&resolve(&lab, &["--adopt"]).exits(13));
    assert_eq!(done["verdict"], "lost");
    assert_eq!(done["execution_status"], "cancelled");
    assert_eq!(looks(&lab), before);
    assert!(hooks.exists() && !lab.repo.outside().join("ran").exists());
    assert_eq!(lab.state("job", 1), ("quarantined".to_owned(), "interrupted".to_owned()));
    assert_eq!(lab.status_of("job"), "cancelled");
    lab.laws();
}

#[test]
fn adopt_that_loses_at_the_gate_stays_held() {
    let check = format!("{} cancel job", crate::support::WORKTX);
    let lab = interrupted(&["--check", &check], WORK);
    let before = looks(&lab);
    let done = first(&resolve(&lab, &["--adopt"]).exits(13));
    assert_eq!(done["verdict"], "lost");
    assert_eq!(looks(&lab), before);
    assert_eq!(lab.state("job", 1), ("quarantined".to_owned(), "adopt_failed".to_owned()));
    assert_eq!(lab.status_of("job"), "cancelled");
    lab.laws();
    resolve(&lab, &["--discard"]).exits(0);
    lab.as_before();
    assert_eq!(lab.status_of("job"), "cancelled");
    lab.laws();
}

#[test]
fn discard_needs_the_failed_terminal_or_anothers() {
    for status in ["running", "cancelled", "failed", "skipped"] {
        let lab = interrupted(&[], WORK);
        row(&lab, status);
        let done = first(&resolve(&lab, &["--discard"]).exits(0));
        let won = status == "running";
        assert_eq!(done["verdict"], if won { "won" } else { "lost" }, "{status}");
        assert_eq!(lab.status_of("job"), if won { "failed" } else { status });
        lab.as_before();
        lab.laws();
    }
    // Another attempt's success is another's terminal.
    let lab = interrupted(&[], WORK);
    lab.repo.sql(&format!(
        "update execution set status = 'success', current_attempt = 2, success_attempt = 2, \
         success_candidate = '{}' where execution_id = 'job'",
        lab.base
    ));
    assert_eq!(first(&resolve(&lab, &["--discard"]).exits(0))["verdict"], "lost");
    assert_eq!(lab.status_of("job"), "success");
    lab.as_before();
}

#[test]
fn keep_pins_leaves_the_tree_and_says_failed() {
    let lab = interrupted(&[], WORK);
    let before = looks(&lab);
    let done = first(&resolve(&lab, &["--keep"]).exits(0));
    assert_eq!((&done["state"], &done["verdict"]), (&"released".into(), &"won".into()));
    assert_eq!(looks(&lab), before);
    assert_eq!(lab.status_of("job"), "failed");
    let pin = done["refs"]["rescue"][0].as_str().expect("a ref");
    assert_eq!(lab.repo.git(&["show", &format!("{pin}:x")]), "x");
    assert_eq!(lab.repo.git(&["show", &format!("{pin}:README.md")]), "changed");
    let gone = lab.repo.git(&["ls-tree", "-r", "--name-only", pin, "--", "src"]);
    assert_eq!(gone, "", "what is gone is gone in the pin too");
    lab.laws();
    // Even if it is all thrown away now, nothing is lost.
    lab.repo.git(&["reset", "-q", "--hard"]);
    lab.repo.git(&["clean", "-qfd"]);
    lab.l1_nothing_lost();
}

#[test]
fn keep_pins_within_the_limits_and_leaves_the_rest_in_the_tree() {
    let lab = Lab::with(|repo| {
        let config = repo.home().join(".config/worktx/config.toml");
        fs::create_dir_all(config.parent().expect("has one")).expect("made");
        fs::write(config, "[limits]\nfile = \"64KiB\"\n").expect("written");
    });
    lab.killed_at("turn_over", JOB, "echo x > x; head -c 100000 /dev/zero > large");
    lab.reconcile();
    let before = looks(&lab);
    let done = first(&resolve(&lab, &["--keep"]).exits(0));
    assert_eq!(looks(&lab), before);
    let pin = done["refs"]["rescue"][0].as_str().expect("a ref");
    let held = lab.repo.git(&["ls-tree", "--name-only", pin]);
    assert!(held.contains("x\n") || held.ends_with('x'), "{held}");
    assert!(!held.contains("large"), "{held}");
    let shown = lab.repo.call(&["show", "job"]).exits(0).stdout;
    assert!(shown.contains("beyond the limits"), "{shown}");
    lab.laws();
}

#[test]
fn neither_discard_nor_keep_where_the_row_names_this_attempt() {
    let lab = interrupted(&[], WORK);
    lab.repo.sql(&format!(
        "update execution set status = 'success', success_attempt = 1, \
         success_candidate = '{}' where execution_id = 'job'",
        lab.base
    ));
    let before = (looks(&lab), lab.repo.own_refs());
    for how in ["--discard", "--keep"] {
        let ran = resolve(&lab, &[how]).exits(1);
        assert!(ran.stderr.contains("SUCCESS for this attempt"), "{}", ran.stderr);
    }
    assert_eq!((looks(&lab), lab.repo.own_refs()), before);
    assert_eq!(lab.state("job", 1).0, "quarantined");
    let shown = lab.repo.call(&["show", "job", "--json"]).exits(0).json();
    assert_eq!(shown["attempts"][0]["commands"], serde_json::json!(["worktx resolve job --adopt"]));
}

/// A mount in the way of a rollback; it goes with this.
struct InTheWay(std::path::PathBuf);

impl Drop for InTheWay {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_rollback_that_has_begun_cannot_be_adopted() {
    if !is_root() {
        eprintln!("SKIPPED: a mount in the way needs root");
        return;
    }
    let mut lab = Lab::new();
    lab.hold("x\n");
    let script = "rm -r src; mkdir src; echo x > src/lib.rs; mount --bind src/lib.rs src/lib.rs || exit 4; exit 3";
    let ran = lab.repo.run(JOB, script);
    let mount = InTheWay(lab.repo.path("src/lib.rs"));
    if ran.code == 10 {
        assert_eq!(ran.json()["turn"]["exit_code"], 4, "rolled back over a mount");
        eprintln!("SKIPPED: nothing can be mounted");
        return;
    }
    assert_eq!(ran.exits(20).json()["reason"], "restore_blocked");
    let refused = resolve(&lab, &["--adopt"]).exits(1);
    assert!(refused.stderr.contains("cannot be adopted any more"), "{}", refused.stderr);
    assert_eq!(first(&resolve(&lab, &["--discard"]).exits(20))["state"], "quarantined");
    let shown = lab.repo.call(&["show", "job"]).exits(0).stdout;
    assert!(shown.contains("src/lib.rs") && !shown.contains("--adopt"), "{shown}");
    lab.laws();
    drop(mount);
    resolve(&lab, &["--discard"]).exits(0);
    lab.as_before();
    lab.laws();
}

/// A success that cannot land: somebody moved the branch by force, under the lock.
fn promote_blocked(script: &str) -> (Lab, String) {
    let lab = Lab::new();
    lab.killed_at("gate_won", JOB, script);
    let other = lab.repo.git(&["commit-tree", "-p", "HEAD", "-m", "other", "HEAD^{tree}"]);
    fs::write(lab.repo.path(".git/refs/heads/main"), format!("{other}\n")).expect("written");
    lab.reconcile();
    assert_eq!(lab.state("job", 1).1, "promote_blocked");
    // Whoever is to merge can: no lock of the crashed attempt is in their way.
    for lock in ["HEAD.lock", "index.lock", "refs/heads/main.lock"] {
        assert!(!lab.repo.path(".git").join(lock).exists(), "{lock}");
    }
    (lab, other)
}

#[test]
fn promote_blocked_only_completes_by_whatever_merge() {
    let (lab, other) = promote_blocked("echo x > x");
    let before = looks(&lab);
    for how in ["--discard", "--keep"] {
        resolve(&lab, &[how]).exits(1);
    }
    assert_eq!(first(&resolve(&lab, &["--adopt"]).exits(20))["state"], "quarantined");
    assert_eq!(looks(&lab), before);
    lab.laws();
    // Somebody merges the candidate, and the next reconcile sees it.
    let candidate =
        lab.repo.sql("select success_candidate from execution where execution_id = 'job'");
    let tree = lab.repo.git(&["merge-tree", "--write-tree", &other, &candidate]);
    let merge =
        lab.repo.git(&["commit-tree", "-p", &other, "-p", &candidate, "-m", "merged", &tree]);
    lab.repo.git(&["update-ref", "refs/heads/main", &merge, &other]);
    let document = lab.repo.call(&["reconcile", "--json"]).exits(0).json();
    assert_eq!(document["rolled_forward"], 1, "{document:#}");
    assert_eq!(lab.state("job", 1).0, "done");
    assert_eq!(lab.repo.head(), merge);
    assert_eq!(lab.repo.read("x"), "x\n");
    lab.laws();
}

#[test]
fn a_success_that_the_turn_committed_itself_is_past_when_others_build_on_it() {
    let lab = Lab::new();
    lab.killed_at("gate_won", JOB, "echo x > x; git add x; git commit -qm own");
    for lock in ["HEAD.lock", "index.lock", "refs/heads/main.lock"] {
        // The start of a container does that.
        let _ = fs::remove_file(lab.repo.path(".git").join(lock));
    }
    lab.repo.git(&["commit", "-q", "--allow-empty", "-m", "on top"]);
    let top = lab.repo.head();
    lab.repo.call(&["reconcile"]).exits(0);
    assert_eq!(lab.state("job", 1).0, "done");
    assert_eq!(lab.repo.head(), top);
    lab.laws();
}

/// A writer of which nobody can say whether it lives: another container on the same machine, and
/// no cgroup whose end would prove it.
fn unproven() -> Lab {
    let mut lab = Lab::new();
    lab.hold("x\n");
    lab.hold("changed\n");
    lab.killed_at("turn_over", JOB, WORK);
    lab.repo.sql(
        "update attempt set data = json_remove(json_set(data, '$.state.turn.host.pid_namespace', 1), \
         '$.state.turn.cgroup') where execution_id = 'job'",
    );
    lab.reconcile();
    assert_eq!(lab.state("job", 1).1, "writer_unproven");
    lab
}

#[test]
fn without_proof_of_death_the_operators_word_is_needed_and_recorded() {
    for (how, state) in [("--adopt", "done"), ("--discard", "rolled_back"), ("--keep", "released")]
    {
        let lab = unproven();
        let before = looks(&lab);
        let held = first(&resolve(&lab, &[how]).exits(20));
        assert!(held["detail"].as_str().expect("text").starts_with("writer_unproven"), "{held}");
        assert_eq!(looks(&lab), before);
        assert_eq!(lab.status_of("job"), "running");
        lab.laws();
        resolve(&lab, &[how, "--writer-dead"]).exits(0);
        assert_eq!(lab.state("job", 1).0, state);
        let words = events(&lab, "resolve");
        let words: Vec<&str> = words.lines().collect();
        assert!(words[0].contains("\"writer_dead\":false"), "{words:?}");
        assert!(words[1].contains("\"writer_dead\":true"), "{words:?}");
        lab.laws();
    }
}

#[test]
fn only_an_interrupted_attempt_ends_by_itself_and_only_unchanged() {
    // The index, a file and the branch are each part of the fingerprint; a look is not.
    for (touch, ends) in [
        ("git status > /dev/null; touch -a README.md", true),
        ("git add x", false),
        ("echo more >> x", false),
        ("git update-ref HEAD $(git commit-tree -p HEAD -m by-hand HEAD^{tree})", false),
        ("git symbolic-ref HEAD refs/heads/other", false),
        ("echo cache > ignored/new", true),
    ] {
        let lab = interrupted(&[], WORK);
        lab.repo.finish(lab.repo.command("sh").args(["-c", touch])).exits(0);
        lab.repo.run(&["--execution-id", "other"], "true").exits(21);
        let again = lab.repo.run(JOB, "test ! -e x && echo ok > ok");
        assert_eq!(again.code, if ends { 0 } else { 21 }, "{touch}: {}", again.stderr);
        let state = lab.state("job", 1);
        assert_eq!(state.0, if ends { "rolled_back" } else { "quarantined" }, "{touch}");
        if ends {
            assert_eq!(state.1, "redelivered");
            let kept = lab.repo.own_refs().join(" ");
            assert!(
                kept.contains("job/1/discarded/1") || kept.contains("job/1/rescue/1"),
                "{kept}"
            );
        }
    }
    let repo = Repo::new();
    repo.run(JOB, "echo x > x; git checkout -q -b elsewhere").exits(20);
    let refused = repo.run(JOB, "true").exits(21);
    assert_eq!(refused.json()["reason"], "quarantined");
    for command in ["worktx show job", "worktx resolve job"] {
        assert!(refused.stderr.contains(command), "{}", refused.stderr);
    }
}

#[test]
fn a_decision_finds_the_work_tree_that_it_is_about() {
    let repo = Repo::new();
    let linked = repo.outside().join("linked");
    repo.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().expect("text")]);
    let crash = |id: &str, dir: &std::path::Path| {
        let mut run = repo.run_command(&["--execution-id", id], "echo x > x; rm -r src");
        assert_eq!(repo.finish(run.current_dir(dir).env("WORKTX_FAULT", "turn_over")).code, -9);
    };
    let before = repo.listing();
    crash("in-linked", &linked);
    repo.call(&["reconcile"]).exits(0);
    // Called in the main work tree, which is not meant.
    repo.call(&["resolve", "in-linked", "--discard"]).exits(0);
    assert_eq!(repo.listing(), before);
    assert!(linked.join("src/lib.rs").exists() && !linked.join("x").exists());
    assert_eq!(repo.git_in(&linked, &["status", "--porcelain"]), "");

    crash("one", &linked);
    crash("two", &repo.root);
    repo.call(&["reconcile"]).exits(0);
    let document = repo
        .call(&["resolve", "--all", "--reason", "interrupted", "--discard", "--json"])
        .exits(0)
        .json();
    assert_eq!(document["attempts"].as_array().expect("a list").len(), 2, "{document:#}");
    assert_eq!(repo.listing(), before);
    assert_eq!(repo.git_in(&linked, &["status", "--porcelain"]), "");
    let none = repo.call(&["resolve", "--all", "--reason", "drift", "--discard"]).exits(0);
    assert_eq!(none.stdout, "nothing to resolve\n");
    for wrong in [
        &["resolve", "--all", "--reason", "drift", "--keep"][..],
        &["resolve", "--all", "--reason", "drift", "--adopt"],
        &["resolve", "--all", "--discard"],
        &["resolve", "one", "--all", "--reason", "drift", "--discard"],
        &["resolve", "one"],
        &["resolve", "one", "--keep", "--discard"],
    ] {
        repo.call(wrong).exits(2);
    }
    let settled = repo.call(&["resolve", "one", "--keep"]).exits(1);
    assert!(settled.stderr.contains("not quarantined"), "{}", settled.stderr);
    repo.fsck();
}

#[test]
fn of_a_fleet_one_that_cannot_be_done_stops_none() {
    let repo = Repo::new();
    let linked = repo.outside().join("linked");
    repo.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().expect("text")]);
    for (id, dir) in [("one", &linked), ("two", &repo.root)] {
        let mut run = repo.run_command(&["--execution-id", id], "echo x > x");
        assert_eq!(repo.finish(run.current_dir(dir).env("WORKTX_FAULT", "turn_over")).code, -9);
    }
    repo.call(&["reconcile"]).exits(0);
    fs::rename(&linked, repo.outside().join("away")).expect("moved");
    let ran = repo.call(&["resolve", "--all", "--reason", "interrupted", "--discard", "--json"]);
    let document = ran.exits(20).json();
    let settled: Vec<&Value> =
        document["attempts"].as_array().expect("a list").iter().map(|a| &a["settled"]).collect();
    assert_eq!(settled, [&Value::from(false), &Value::from(true)], "{document:#}");
    assert!(document["attempts"][0]["detail"].is_string(), "{document:#}");
    assert!(!repo.path("x").exists());
    // Nor does the missing tree keep the others from being reconciled.
    let document = repo.call(&["reconcile", "--json"]).json();
    assert_eq!(
        document["left"].as_u64().unwrap_or(0) + document["quarantined"].as_u64().unwrap_or(0),
        1
    );
    fs::rename(repo.outside().join("away"), &linked).expect("moved back");
    repo.call(&["resolve", "one", "--discard"]).exits(0);
}

#[test]
fn killed_at_every_point_of_every_decision() {
    let ways: [(&str, &[&str], &str, &[&str]); 3] = [
        (
            "--adopt",
            &[
                "seal_recorded",
                "candidate_pinned",
                "post_check_passed",
                "committing_recorded",
                "locks_held",
                "gate_won",
                "branch_moved",
                "promoted",
                "committed_recorded",
            ],
            "done",
            &["done"],
        ),
        (
            "--discard",
            &[
                "rollback_recorded",
                "discarded_pinned",
                "file_restored",
                "file_restored:2",
                "file_restored:3",
                "restored",
            ],
            "rolled_back",
            &["rolled_back"],
        ),
        // Nothing is recorded of a decision to keep until it is done: it is asked for again.
        ("--keep", &["kept_pinned"], "released", &["quarantined"]),
    ];
    for (how, points, settled, after) in ways {
        for point in points {
            let lab = interrupted(&["--check", "test -e x"], WORK);
            let before = lab.repo.listing();
            let mut command = lab.repo.worktx(&["resolve", "job", how]);
            let ran = lab.repo.finish(command.env("WORKTX_FAULT", point));
            assert_eq!(ran.code, -9, "{how}, {point}: {}{}", ran.stdout, ran.stderr);
            lab.reconcile();
            lab.laws();
            assert!(after.contains(&lab.state("job", 1).0.as_str()), "{how}, {point}");
            if after[0] == "quarantined" {
                assert_eq!(lab.repo.listing(), before);
                lab.repo.call(&["resolve", "job", how]).exits(0);
            }
            assert_eq!(lab.state("job", 1).0, settled, "{how}, {point}");
            match how {
                "--adopt" => assert_eq!(lab.repo.git(&["show", "HEAD:x"]), "x"),
                "--discard" => lab.as_before(),
                _ => assert_eq!(lab.repo.listing(), before),
            }
            lab.laws();
            // Whatever it was, the next execution goes its way.
            if how != "--keep" {
                lab.repo.run(&["--execution-id", "next"], "echo n > n").exits(0);
            }
        }
    }
}

#[test]
fn the_decision_is_killed_and_so_is_the_reconcile() {
    for (how, one, two) in [
        ("--adopt", "seal_recorded", "gate_won"),
        ("--adopt", "gate_won", "branch_moved"),
        ("--discard", "rollback_recorded", "file_restored:2"),
        ("--discard", "file_restored:2", "restored"),
    ] {
        let lab = interrupted(&[], WORK);
        let mut command = lab.repo.worktx(&["resolve", "job", how]);
        assert_eq!(lab.repo.finish(command.env("WORKTX_FAULT", one)).code, -9, "{how} {one}");
        let mut command = lab.reconcile_command();
        assert_eq!(lab.repo.finish(command.env("WORKTX_FAULT", two)).code, -9, "{how} {two}");
        lab.reconcile();
        lab.laws();
        let state = lab.state("job", 1).0;
        assert_eq!(state, if how == "--adopt" { "done" } else { "rolled_back" });
    }
}
