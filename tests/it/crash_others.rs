//! The crash matrix, rows 10, 11 and 24: other programs, other people, other people's locks.

use crate::edges::refused;
use crate::lab::{JOB, Lab, Midway};
use crate::support::Repo;

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
            let lab = Lab::new();
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
