//! The crash matrix, rows 10, 11 and 24: other programs, other people, other people's locks.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::edges::refused;
use crate::lab::{JOB, Lab, Midway};
use crate::support::{Ran, Repo, path_with_worktx};

/// Programs that work on the tree while a turn runs, and whether they move the branch.
const PROGRAMS: [(&str, bool); 6] = [
    ("git add -A && git commit -qm auto-sync", true),
    ("git rebase -q --autostash diverged", true),
    ("git merge -q --autostash -m merged ahead", true),
    ("git reset -q --hard ahead", true),
    ("git reset -q --hard", false),
    ("git stash push -q -u", false),
];

/// A lab with branches to rebase onto, to merge, to reset to.
fn with_branches() -> Lab {
    let mut lab = Lab::with(|repo| {
        repo.git(&["checkout", "-q", "-b", "ahead"]);
        repo.write("ahead.txt", "ahead\n");
        repo.git(&["add", "ahead.txt"]);
        repo.git(&["commit", "-qm", "ahead"]);
        repo.git(&["checkout", "-q", "-b", "diverged", "main~1"]);
        repo.write("diverged.txt", "diverged\n");
        repo.git(&["add", "diverged.txt"]);
        repo.git(&["commit", "-qm", "diverged"]);
        repo.git(&["checkout", "-q", "main"]);
    });
    lab.hold("later\n");
    lab
}

/// One program mid-turn. Gives what `run` said, what the program returned, and where the branch
/// was when it was done.
fn mid_turn(lab: &Lab, program: &str, end: i32) -> (Ran, i32, String) {
    let midway = Midway::new(lab);
    let script = format!(
        "echo early > early; echo edited >> README.md; {}; echo later > later; exit {end}",
        midway.words()
    );
    let child = lab.repo.spawn(&mut lab.repo.run_command(JOB, &script));
    let (code, moved) = midway.meanwhile(|| {
        let mut sh = lab.repo.command("sh");
        let ran = lab.repo.finish(sh.args(["-c", program]).env("PATH", path_with_worktx()));
        (ran.code, lab.repo.git(&["rev-parse", "main"]))
    });
    (Repo::wait(child), code, moved)
}

/// A rebase takes from the branch what others had put there: that is none of worktx's moves.
#[track_caller]
fn the_laws(lab: &Lab, program: &str) {
    if program.contains("rebase") {
        lab.l1_nothing_lost();
        lab.l3_no_limbo();
    } else {
        lab.laws();
    }
}

#[test]
fn row_10_another_program_mid_turn_without_the_guard() {
    for (program, moves) in PROGRAMS {
        for end in [0, 3] {
            let lab = with_branches();
            let (ran, code, moved) = mid_turn(&lab, program, end);
            assert_eq!(code, 0, "{program}");
            let wanted = if moves { 20 } else { [0, 10][usize::from(end != 0)] };
            assert_eq!(ran.code, wanted, "{program}, {end}: {}", ran.stderr);
            the_laws(&lab, program);
            if moves {
                assert_eq!(ran.json()["reason"], "branch_moved");
                assert_eq!(lab.repo.head(), moved, "{program}: it stays where they put it");
                assert_eq!(lab.repo.read("later"), "later\n");
                assert_ne!(lab.status_of("job"), "success");
            } else if end == 0 {
                assert_eq!(lab.repo.git(&["rev-parse", "HEAD~1"]), lab.base);
                assert_eq!(lab.repo.git(&["show", "HEAD:later"]), "later");
            } else {
                lab.as_before();
            }
        }
    }
}

#[test]
fn row_10_another_program_mid_turn_meets_the_guard() {
    for (program, moves) in PROGRAMS {
        for end in [0, 3] {
            let lab = with_branches();
            lab.repo.call(&["init", "--guard"]).exits(0);
            let (ran, code, moved) = mid_turn(&lab, program, end);
            assert_eq!(moved, lab.base, "{program}: the branch was moved past the guard");
            assert!(code != 0 || !moves, "{program}: was let through");
            // `rebase` has detached HEAD by then, which nobody of the attempt did.
            let wanted =
                if program.contains("rebase") { 20 } else { [0, 10][usize::from(end != 0)] };
            assert_eq!(ran.code, wanted, "{program}, {end}: {}{}", ran.stdout, ran.stderr);
            match ran.code {
                0 => {
                    assert_eq!(lab.repo.git(&["rev-parse", "HEAD~1"]), lab.base, "{program}");
                    assert_eq!(lab.repo.git(&["show", "HEAD:later"]), "later", "{program}");
                }
                10 => lab.as_before(),
                _ => assert_eq!(lab.repo.read("later"), "later\n", "{program}"),
            }
            the_laws(&lab, program);
            assert!(lab.repo.path(".git/hooks/reference-transaction").exists(), "{program}");
        }
    }
}

#[test]
fn row_10_a_rebase_that_was_left_holds_nothing_up_for_ever() {
    let mut lab = Lab::new();
    lab.hold("x\n");
    let midway = Midway::new(&lab);
    let check = midway.words();
    let options = [JOB, &["--check", &check]].concat();
    let child = lab.repo.spawn(&mut lab.repo.run_command(&options, "echo x > x"));
    let left = lab.repo.path(".git/rebase-merge");
    midway.meanwhile(|| fs::create_dir(&left).expect("made"));
    Repo::wait(child).exits(0);
    assert_eq!(lab.repo.git(&["diff", "--name-only", &lab.base, "HEAD"]), "x");
    fs::remove_dir(&left).expect("still there");
    lab.laws();
}

#[test]
fn row_11_a_person_edits_mid_turn() {
    for end in [0, 3] {
        let mut lab = Lab::new();
        for bytes in ["by a person\n", "also by a person\n"] {
            lab.hold(bytes);
        }
        let midway = Midway::new(&lab);
        let script = format!("echo x > x; {}; exit {end}", midway.words());
        let child = lab.repo.spawn(&mut lab.repo.run_command(JOB, &script));
        midway.meanwhile(|| {
            lab.repo.write("README.md", "by a person\n");
            lab.repo.write("person.txt", "also by a person\n");
        });
        let document = Repo::wait(child).json();
        // It cannot be told from the turn's own: it is where the turn's own is.
        let holder = if end == 0 { "HEAD" } else { text(&document["refs"]["discarded"][0]) };
        assert_eq!(lab.repo.git(&["show", &format!("{holder}:README.md")]), "by a person");
        assert_eq!(lab.repo.git(&["show", &format!("{holder}:person.txt")]), "also by a person");
        if end != 0 {
            lab.as_before();
        }
        lab.laws();
    }
}

#[test]
fn row_11_a_person_edits_during_the_post_check() {
    for end in [0, 1] {
        let mut lab = Lab::new();
        for bytes in ["by a person\n", "also by a person\n", "x\n"] {
            lab.hold(bytes);
        }
        let midway = Midway::new(&lab);
        let check = format!("{}; exit {end}", midway.words());
        let options = [JOB, &["--check", &check]].concat();
        let child = lab.repo.spawn(&mut lab.repo.run_command(&options, "echo x > x"));
        midway.meanwhile(|| {
            lab.repo.write("README.md", "by a person\n");
            lab.repo.write("person.txt", "also by a person\n");
        });
        let document = Repo::wait(child).exits([0, 11][usize::from(end != 0)]).json();
        let rescue = text(&document["refs"]["rescue"][0]);
        assert_eq!(lab.repo.git(&["show", &format!("{rescue}:README.md")]), "by a person");
        assert_eq!(lab.repo.git(&["show", &format!("{rescue}:person.txt")]), "also by a person");
        assert_eq!(lab.repo.read("README.md"), "hello\n", "put back");
        assert!(!lab.repo.path("person.txt").exists(), "put back");
        if end == 0 {
            assert_eq!(lab.repo.git(&["diff", "--name-only", &lab.base, "HEAD"]), "x");
        } else {
            lab.as_before();
        }
        lab.laws();
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
        let options = [JOB, &["--check", "true"]].concat();
        lab.killed_at(point, &options, "echo 'by the turn' > README.md; echo x > x");
        lab.repo.write("README.md", "by a person\n");
        lab.repo.write("person.txt", "also by a person\n");
        lab.reconcile();
        lab.laws();
        assert_eq!(lab.state("job", 1).0, "done", "{point}");
        assert_eq!(lab.repo.git(&["show", "HEAD:README.md"]), "by the turn", "{point}");
        assert_eq!(lab.repo.git(&["ls-tree", "HEAD", "person.txt"]), "", "{point}");
        if point == "candidate_pinned" {
            // The post-check has yet to run: what is not of the seal is put back before it.
            assert_eq!(lab.repo.read("README.md"), "by the turn\n");
            continue;
        }
        assert_eq!(lab.repo.read("README.md"), "by a person\n", "{point}: left in place");
        assert_eq!(lab.repo.read("person.txt"), "also by a person\n", "{point}: left in place");
        if ["committing_recorded", "locks_held"].contains(&point) {
            let document = lab.repo.run(JOB, "touch never").exits(0).json();
            let drift = document["drift"].to_string();
            assert!(
                drift.contains("README.md") && drift.contains("person.txt"),
                "{point}: {drift}"
            );
            let rescue = text(&document["refs"]["rescue"][0]);
            let pinned = lab.repo.git(&["show", &format!("{rescue}:README.md")]);
            assert_eq!(pinned, "by a person", "{point}");
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
fn row_24_foreign_locks_at_open_are_refused_and_never_removed() {
    for lock in ["index.lock", "HEAD.lock", "refs/heads/main.lock"] {
        let repo = Repo::new();
        repo.write(&format!(".git/{lock}"), "theirs\n");
        refused(&repo, "lock");
        assert_eq!(repo.read(&format!(".git/{lock}")), "theirs\n");
    }
}

#[test]
fn row_24_locks_that_the_turn_leaves_are_quarantined() {
    for lock in ["index.lock", "HEAD.lock", "refs/heads/main.lock"] {
        for end in [0, 3] {
            let lab = Lab::with_settings(QUICK);
            let script = format!("echo x > x; echo theirs > .git/{lock}; exit {end}");
            let ran = lab.repo.run(&["--execution-id", "job"], &script);
            if end == 0 || lock == "index.lock" && ran.code == 20 {
                assert_eq!(ran.exits(20).json()["reason"], "foreign_lock", "{lock}");
                assert_eq!(lab.repo.read("x"), "x\n");
            } else {
                ran.exits(10);
                lab.as_before();
            }
            assert_eq!(lab.repo.read(&format!(".git/{lock}")), "theirs\n");
            assert_eq!(lab.repo.head(), lab.base);
        }
    }
}

/// A lock is waited for only so long.
const QUICK: &str = "bound = \"300ms\"\n";

/// The locks that promotion holds.
const LOCKS: [&str; 3] = ["HEAD.lock", "refs/heads/main.lock", "index.lock"];

#[test]
fn row_24_own_crashed_locks_are_the_same_files_as_the_prepared_ones() {
    for point in ["locks_held", "gate_won"] {
        let lab = Lab::new();
        lab.killed_at(point, JOB, "echo x > x");
        let inode = |path: &Path| fs::metadata(path).expect("it lies there").ino();
        let prepared: Vec<u64> = fs::read_dir(lab.repo.path(".git/worktx/prepared/job-1"))
            .expect("readable")
            .map(|entry| inode(&entry.expect("readable").path()))
            .collect();
        for lock in LOCKS {
            let own = inode(&lab.repo.path(format!(".git/{lock}")));
            assert!(prepared.contains(&own), "{point}, {lock}: linked to a prepared file");
        }
        lab.reconcile();
        lab.laws();
        assert_eq!(lab.state("job", 1).0, "done", "{point}");
    }
}

#[test]
fn row_24_own_crashed_locks_in_the_own_prefix_are_cleared() {
    for (point, lock, state) in [
        ("open_recorded", "base.lock", "rolled_back"),
        ("seal_recorded", "candidate.lock", "done"),
        ("rollback_recorded", "discarded/1.lock", "rolled_back"),
    ] {
        let lab = Lab::new();
        let end = if state == "done" { 0 } else { 3 };
        lab.killed_at(point, JOB, &format!("echo x > x; exit {end}"));
        // As if the crash had come one step later, with the ref still in its lock.
        lab.repo.write(&format!(".git/refs/worktx/tx/job/1/{lock}"), "");
        lab.reconcile();
        assert_eq!(lab.state("job", 1).0, state, "{lock}");
        lab.laws();
    }
}

#[test]
fn row_24_a_lock_of_others_in_the_place_of_an_own_one_is_never_removed() {
    for point in ["locks_held", "gate_won"] {
        for lock in LOCKS {
            let mut lab = Lab::with_settings(QUICK);
            lab.hold("x\n");
            lab.killed_at(point, JOB, "echo x > x");
            // Somebody cleared the locks, and somebody else holds one now: with the same bytes.
            let path = lab.repo.path(format!(".git/{lock}"));
            let bytes = fs::read(&path).expect("readable");
            for lock in LOCKS {
                fs::remove_file(lab.repo.path(format!(".git/{lock}"))).expect("removed");
            }
            fs::write(&path, &bytes).expect("written");
            let theirs = fs::metadata(&path).expect("there").ino();
            lab.reconcile();
            let (state, reason) = lab.state("job", 1);
            let (wanted, status) = match point {
                "locks_held" => ("foreign_lock", "running"),
                _ => ("promote_blocked", "success"),
            };
            assert_eq!((state.as_str(), reason.as_str()), ("quarantined", wanted), "{lock}");
            assert_eq!(lab.status_of("job"), status, "{point}, {lock}");
            assert_eq!(fs::metadata(&path).expect("not removed").ino(), theirs);
            assert_eq!(lab.repo.head(), lab.base);
            lab.repo.run(&[], "true").exits(21);
            // They are done with it.
            fs::remove_file(&path).expect("removed");
            if point == "locks_held" {
                lab.repo.call(&["resolve", "job", "--adopt"]).exits(0);
            } else {
                lab.reconcile();
            }
            assert_eq!(lab.state("job", 1).0, "done", "{point}, {lock}");
            lab.laws();
        }
    }
}

fn text(value: &serde_json::Value) -> &str {
    value.as_str().expect("text")
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
