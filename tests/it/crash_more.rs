//! The crash matrix, its later rows: cancels, other programs, full disks, mounts, re-deliveries.

use std::fs;
use std::path::Path;

use crate::lab::Lab;
use crate::support::{Gate, Repo, WORKTX, is_root};

const JOB: &[&str] = &["--execution-id", "job"];

/// A turn that waits in the middle while the test does something.
struct Midway {
    ready: Gate,
    go: Gate,
}

impl Midway {
    fn new(lab: &Lab) -> Self {
        Self { ready: Gate::new(&lab.repo, "ready"), go: Gate::new(&lab.repo, "go") }
    }

    fn words(&self) -> String {
        format!(
            "echo > {}; cat {} > /dev/null",
            self.ready.path().display(),
            self.go.path().display()
        )
    }
}

#[test]
fn row_07_cancelled_after_the_seal() {
    for point in ["seal_recorded", "post_check_passed", "committing_recorded", "locks_held"] {
        let mut lab = Lab::new();
        lab.hold("x\n");
        lab.killed_at(point, JOB, "echo x > x");
        lab.repo.call(&["cancel", "job"]).exits(0);
        lab.reconcile();
        lab.laws();
        lab.as_before();
        assert_eq!(lab.status_of("job"), "cancelled", "{point}");
        assert_eq!(lab.state("job", 1).0, "rolled_back", "{point}");
        lab.repo.run(JOB, "touch never").exits(13);
    }
}

#[test]
fn row_07_cancelled_while_the_post_check_runs() {
    let mut lab = Lab::new();
    lab.hold("x\n");
    let check = format!("{WORKTX} cancel job >/dev/null");
    let document =
        lab.repo.run(&[JOB, &["--check", &check]].concat(), "echo x > x").exits(13).json();
    assert_eq!(document["outcome"], "rolled_back");
    assert_eq!(document["error_code"], "reconciled");
    assert_eq!(document["execution_status"], "cancelled");
    lab.laws();
    lab.as_before();
}

#[test]
fn row_07_a_cancel_after_the_gate_comes_too_late() {
    for point in ["gate_won", "branch_moved"] {
        let lab = Lab::new();
        lab.killed_at(point, JOB, "echo x > x");
        assert_eq!(lab.repo.call(&["cancel", "job"]).code, 13, "{point}");
        lab.reconcile();
        lab.laws();
        assert_eq!(lab.state("job", 1).0, "done");
        assert_eq!(lab.status_of("job"), "success");
    }
}

#[test]
fn row_08_row_17_the_disk_is_full() {
    if !is_root() {
        eprintln!("SKIPPED: mounting a small file system needs root");
        return;
    }
    for (end, free) in [("exit 3", false), ("exit 3", true), ("exit 0", false), ("exit 0", true)] {
        let repo = Repo::bare_home();
        let root = repo.root.display().to_string();
        let mounted = repo.finish(
            repo.command("mount")
                .args(["-t", "tmpfs", "-o", "size=24m", "worktx-test", &root])
                .current_dir("/"),
        );
        if mounted.code != 0 {
            eprintln!("SKIPPED: no tmpfs can be mounted: {}", mounted.stderr);
            return;
        }
        let _unmount = Unmount(root);
        repo.git(&["init", "-q", "-b", "main"]);
        repo.write("README.md", "hello\n");
        repo.write("large.bin", vec![7; 1 << 20]);
        repo.git(&["add", "-A"]);
        repo.git(&["commit", "-qm", "one"]);
        repo.write("notes.txt", "mine\n");
        repo.run(&["--execution-id", "probe"], "true").exits(0);
        let (base, before) = (repo.head(), repo.listing());
        let keep = if free { "rm -f ../repo/filler;" } else { "" };
        let script = format!(
            "echo work > work; echo changed > README.md; rm large.bin notes.txt; \
             head -c 30000000 /dev/urandom > filler 2>/dev/null; head -c 300000 filler > more; {keep} {end}"
        );
        let ran = repo.run(JOB, &script);
        eprintln!("{end}, {free}: {} {}", ran.code, ran.stderr);
        assert!(ran.code != 0 || end == "exit 0");
        if ran.code == 10 || ran.code == 11 {
            assert_eq!(repo.listing(), before, "rolled back, it says");
        } else if ran.code != 0 {
            assert_eq!(repo.read("work"), "work\n", "the tree is untouched");
            assert_eq!(repo.head(), base);
            // With space again it is settled.
            let _ = fs::remove_file(repo.path("filler"));
            let again = repo.call(&["reconcile", "--json"]);
            eprintln!("reconcile: {} {}{}", again.code, again.stdout, again.stderr);
            let state = repo.sql("select state from attempt where execution_id = 'job'");
            if state == "quarantined" {
                repo.call(&["resolve", "job", "--discard"]).exits(0);
            }
            let state = repo.sql("select state from attempt where execution_id = 'job'");
            assert!(["rolled_back", "done"].contains(&state.as_str()), "{state}");
            if state == "rolled_back" {
                let mut now = repo.listing();
                now.retain(|path, _| path != "filler");
                assert_eq!(now, before);
            }
        }
        repo.fsck();
    }
}

struct Unmount(String);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["-l", &self.0]).status();
    }
}

#[test]
fn row_08_an_immutable_file_and_a_busy_mount() {
    if !is_root() {
        eprintln!("SKIPPED: immutable files and mounts need root");
        return;
    }
    let lab = Lab::new();
    let script = "mkdir -p mnt; mount -t tmpfs worktx-test mnt || exit 4; echo x > mnt/x; rm -rf src; exit 3";
    let ran = lab.repo.run(JOB, script);
    let mount = lab.repo.path("mnt");
    let _unmount = Unmount(mount.display().to_string());
    if !mount.join("x").exists() {
        eprintln!("SKIPPED: no tmpfs can be mounted");
        return;
    }
    // Nothing within the mount is touched; whatever is said, it is never rolled back by half.
    assert_eq!(fs::read_to_string(mount.join("x")).expect("readable"), "x\n");
    let mut now = lab.repo.listing();
    now.retain(|path, _| !path.starts_with("mnt"));
    assert!([10, 20].contains(&ran.code), "{}", ran.stderr);
    if ran.code == 10 {
        assert_eq!(now, lab.before);
    } else {
        assert_eq!(ran.json()["reason"], "restore_blocked");
    }
}

#[test]
fn row_16_a_mount_that_is_there_at_open() {
    if !is_root() {
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    let lab = Lab::with(|repo| fs::create_dir(repo.path("shared-in")).expect("made"));
    let mount = lab.repo.path("shared-in");
    let ran =
        lab.repo.finish(lab.repo.command("mount").args(["-t", "tmpfs", "worktx-test"]).arg(&mount));
    if ran.code != 0 {
        eprintln!("SKIPPED: no tmpfs can be mounted: {}", ran.stderr);
        return;
    }
    let _unmount = Unmount(mount.display().to_string());
    fs::write(mount.join("kept"), "before\n").expect("written");
    lab.repo
        .run(JOB, "echo after > shared-in/kept; echo new > shared-in/new; echo x > x; exit 3")
        .exits(10);
    assert_eq!(fs::read_to_string(mount.join("kept")).expect("readable"), "after\n");
    assert_eq!(fs::read_to_string(mount.join("new")).expect("readable"), "new\n");
    assert!(!lab.repo.path("x").exists());
    lab.repo.run(JOB, "echo again > shared-in/kept; echo x > x").exits(0);
    assert_eq!(lab.repo.git(&["ls-tree", "-r", "--name-only", "HEAD", "shared-in"]), "");
    assert_eq!(lab.repo.git(&["show", "HEAD:x"]), "x");
}

#[test]
fn row_10_another_program_commits_mid_turn() {
    for (program, code) in [
        ("git add -A && git commit -qm auto-sync", 20),
        ("git commit -q --allow-empty -m other", 20),
        ("git stash push -q -u", 0),
        ("git reset -q --hard", 0),
        ("git checkout -q -b other", 20),
        ("git rebase -q --autostash HEAD", 0),
    ] {
        for end in [0, 3] {
            let mut lab = Lab::new();
            lab.hold("later\n");
            let midway = Midway::new(&lab);
            let script =
                format!("echo early > early; {}; echo later > later; exit {end}", midway.words());
            let child = lab.repo.spawn(&mut lab.repo.run_command(JOB, &script));
            midway.ready.wait();
            lab.repo.finish(lab.repo.command("sh").args(["-c", program])).exits(0);
            let moved = lab.repo.head();
            midway.go.open();
            let ran = Repo::wait(child);
            let wanted = if code == 0 && end == 3 { 10 } else { code };
            assert_eq!(ran.code, wanted, "{program}, {end}: {}", ran.stderr);
            lab.l1_nothing_lost();
            lab.l2_never_blessed();
            lab.l3_no_limbo();
            if ran.code == 20 {
                assert_eq!(lab.repo.head(), moved, "{program}: the branch stays where they put it");
                assert_eq!(lab.repo.read("later"), "later\n");
            }
            if ran.code == 10 {
                lab.as_before();
            }
        }
    }
}

#[test]
fn row_11_a_person_edits_after_the_seal() {
    for point in
        ["candidate_pinned", "committing_recorded", "locks_held", "gate_won", "branch_moved"]
    {
        let mut lab = Lab::new();
        for bytes in ["by the turn\n", "by a person\n", "also by a person\n", "x\n"] {
            lab.hold(bytes);
        }
        lab.killed_at(point, JOB, "echo 'by the turn' > README.md; echo x > x");
        lab.repo.write("README.md", "by a person\n");
        lab.repo.write("person.txt", "also by a person\n");
        lab.reconcile();
        lab.laws();
        assert_eq!(lab.state("job", 1).0, "done", "{point}");
        assert_eq!(lab.repo.git(&["show", "HEAD:README.md"]), "by the turn", "{point}");
        assert_eq!(lab.repo.git(&["ls-tree", "HEAD", "person.txt"]), "", "{point}");
        let before_gate = point == "candidate_pinned";
        if !before_gate {
            assert_eq!(lab.repo.read("README.md"), "by a person\n", "{point}: left in place");
        }
    }
}

#[test]
fn row_11_a_person_edits_during_the_rollback() {
    for point in ["discarded_pinned", "file_restored", "file_restored:4", "restored"] {
        let mut lab = Lab::new();
        for bytes in
            ["by the turn\n", "by a person\n", "also by a person\n", "in a new place\n", "x\n"]
        {
            lab.hold(bytes);
        }
        let script = "echo 'by the turn' > README.md; echo x > x; rm -rf src; mkdir made; echo x > made/x; exit 3";
        lab.killed_at(point, JOB, script);
        lab.repo.write("README.md", "by a person\n");
        lab.repo.write("person.txt", "also by a person\n");
        lab.repo.write("made/deep/er", "in a new place\n");
        lab.reconcile();
        lab.laws();
        let (state, reason) = lab.state("job", 1);
        assert!(state == "rolled_back" || state == "quarantined", "{point}: {state} {reason}");
        if state == "rolled_back" {
            for (path, text) in [
                ("README.md", "by a person\n"),
                ("person.txt", "also by a person\n"),
                ("made/deep/er", "in a new place\n"),
            ] {
                assert_eq!(lab.repo.read(path), text, "{point}: left in place");
            }
            let drift = lab.repo.sql(
                "select json_extract(outcome, '$.drift') from attempt where execution_id = 'job'",
            );
            assert!(drift.contains("README.md"), "{point}: {drift}");
        }
        assert!(!lab.repo.path("x").exists());
        assert_eq!(lab.repo.read("src/lib.rs"), "fn one() {}\n");
    }
}

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
fn row_20_what_a_post_check_may_do() {
    for (check, code, reason) in [
        ("exit 1", 11, "post_check_failed"),
        ("kill -9 $$", 11, "post_check_failed"),
        ("sleep 300", 11, "post_check_failed"),
        ("(setsid sleep 300 &); exit 0", 0, ""),
        ("git commit -q --allow-empty -m by-the-check", 20, "post_check_touched_git"),
        ("git add -A", 0, ""),
        ("git rm -q --cached README.md", 20, "post_check_touched_git"),
        ("git checkout -q -b elsewhere", 20, "post_check_touched_git"),
        ("rm -rf src; chmod 000 README.md; mkdir a; chmod 000 a", 0, ""),
        ("touch README.md; git status >/dev/null", 0, ""),
    ] {
        let lab = Lab::new();
        let options = [JOB, &["--check", check, "--post-check-timeout", "2s"]].concat();
        let ran = lab.repo.run(&options, "echo x > x");
        let skip = check == "git add -A" && ran.code == 20;
        assert!(ran.code == code || skip, "{check}: {} {}{}", ran.code, ran.stdout, ran.stderr);
        if code != 0 {
            assert_eq!(ran.json()["reason"], reason, "{check}");
        } else if !skip {
            assert_eq!(lab.repo.status(), "?? dangling\n?? notes.txt", "{check}");
        }
        if code == 11 {
            lab.as_before();
        }
        lab.l3_no_limbo();
    }
}

#[test]
fn row_20_killed_while_the_post_check_runs() {
    let mut lab = Lab::new();
    lab.hold("x\n");
    lab.hold("litter\n");
    let midway = Midway::new(&lab);
    let once = lab.repo.outside().join("once");
    let check = format!(
        "test -e {0} && exit 0; touch {0}; echo litter > litter; echo spoiled > README.md; {1}; sleep 300",
        once.display(),
        midway.words()
    );
    let mut child = lab
        .repo
        .spawn(&mut lab.repo.run_command(&[JOB, &["--check", &check]].concat(), "echo x > x"));
    midway.ready.wait();
    child.kill().expect("sent");
    child.wait().expect("it ends");
    lab.reconcile();
    lab.laws();
    assert_eq!(lab.state("job", 1).0, "done");
    assert_eq!(lab.repo.read("README.md"), "hello\n");
    assert!(!lab.repo.path("litter").exists());
    assert_eq!(lab.repo.git(&["show", "HEAD:x"]), "x");
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
            lab.killed_at("turn_over", JOB, "echo x > x; echo changed > README.md");
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
fn a_recorded_pin_without_its_ref_is_made_again() {
    let lab = Lab::new();
    lab.killed_at("turn_over", JOB, "echo x > x");
    lab.reconcile();
    let name = "refs/worktx/tx/job/1/base";
    let id = lab.repo.git(&["rev-parse", name]);
    for settle in [&["reconcile"][..], &["resolve", "job", "--keep"]] {
        // A kill between the ledger and the ref leaves this; so does who deletes it.
        lab.repo.git(&["update-ref", "-d", name]);
        let lock = lab.repo.path(".git").join(name).with_extension("lock");
        fs::create_dir_all(lock.parent().expect("has one")).expect("made");
        fs::write(&lock, "half").expect("written");
        lab.repo.call(settle).exits(0);
        assert_eq!(lab.repo.git(&["rev-parse", name]), id, "{settle:?}");
        assert!(!lock.exists(), "{settle:?}");
    }
    lab.laws();
}
