//! The crash matrix, rows 14 to 21 but for the post-check: what a turn does, and its undo.

use std::fs;

use crate::lab::{JOB, Lab, Mounted};
use crate::support::{Repo, is_root};

#[test]
fn row_14_a_branch_that_nobody_vouches_for_is_quarantined() {
    for script in [
        "git checkout -q -b elsewhere",
        "git checkout -q --detach",
        "git update-ref refs/heads/main $(git commit-tree -m forged HEAD^{tree} -p HEAD)",
        "git commit -q --allow-empty -m one && git update-ref -d refs/heads/main",
    ] {
        let repo = Repo::new();
        let document = repo.run(&[], &format!("echo x > x; {script}")).exits(20).json();
        assert_eq!(document["outcome"], "quarantined", "{script}");
        assert!(repo.path("x").exists(), "{script}");
        repo.run(&[], "true").exits(21);
        let id = document["execution_id"].as_str().expect("text");
        assert!(repo.call(&["show", id]).exits(0).stdout.contains("resolve"), "{script}");
    }
}

#[test]
fn row_14_other_refs_are_reported_and_left() {
    let lab = Lab::with(|repo| {
        repo.git(&["branch", "other"]);
        repo.git(&["tag", "v1"]);
        repo.write("README.md", "stashed\n");
        repo.git(&["stash", "-q"]);
    });
    let other = "git branch -f other HEAD~1; git tag -d v1 >/dev/null; git tag v2; git stash clear; git branch made";
    let document = lab
        .repo
        .run(&["--execution-id", "job"], &format!("echo x > x; {other}; exit 3"))
        .exits(10)
        .json();
    assert!(document["warnings"].to_string().contains("refs/heads/other"), "{document}");
    assert!(document["warnings"].to_string().contains("refs/stash"), "{document}");
    assert_eq!(lab.repo.git(&["rev-parse", "other"]), lab.repo.git(&["rev-parse", "HEAD~1"]));
    lab.as_before();
    lab.laws();
}

#[test]
fn row_14_every_stash_entry_is_pinned_at_open() {
    let lab = Lab::with(|repo| {
        repo.write("README.md", "stashed\n");
        repo.git(&["stash", "-q"]);
    });
    let stash = lab.repo.git(&["rev-parse", "refs/stash"]);
    lab.repo.run(&[], "git stash clear; exit 3").exits(10);
    lab.repo.git(&["reflog", "expire", "--expire=now", "--all"]);
    lab.repo.git(&["gc", "-q", "--prune=now"]);
    lab.repo.git(&["cat-file", "-e", &stash]);
}

#[test]
fn row_14_the_branch_and_its_log() {
    for (script, codes) in [
        ("rm -rf .git/logs", &[0, 10][..]),
        ("rm -f .git/logs/refs/heads/main; git commit -q --allow-empty -m own", &[0, 10]),
        ("git commit -q --allow-empty -m one; git reset -q --hard HEAD~1", &[0, 10]),
        ("git commit -q --amend -m rewritten", &[20]),
        ("git pack-refs --all --prune", &[0, 10]),
        ("git commit -q --allow-empty -m own; git pack-refs --all --prune", &[0, 10]),
        (
            "git checkout -q -b other; git commit -q --allow-empty -m own; git checkout -q main; git merge -q other",
            &[0, 10],
        ),
        ("git checkout -q -b other; git checkout -q main", &[0, 10]),
        ("git gc -q --prune=now", &[0, 10]),
        ("git repack -adq; git prune --expire=now", &[0, 10]),
        ("git branch -m renamed", &[20]),
        ("git symbolic-ref HEAD refs/heads/nowhere", &[20]),
    ] {
        for (at, end) in [0, 3].into_iter().enumerate() {
            let lab = Lab::new();
            let ran = lab
                .repo
                .run(&["--execution-id", "job"], &format!("echo x > x; {script}; exit {end}"));
            let wanted = codes.get(at).or(codes.first()).expect("has one");
            assert_eq!(ran.code, *wanted, "{script}, exit {end}: {}", ran.stderr);
            if ran.code == 10 {
                lab.as_before();
                assert_eq!(lab.repo.status(), "?? dangling\n?? notes.txt");
            }
            if ran.code == 20 {
                assert_eq!(lab.repo.read("x"), "x\n");
            }
            lab.l3_no_limbo();
        }
    }
}

#[test]
fn row_14b_the_turns_own_commits_stay_on_success_and_are_rewound_on_failure() {
    let repo = Repo::new();
    let base = repo.head();
    let commit = "echo a > a; git add a; git commit -qm 'by the turn'; echo b > b";
    let document = repo.run(&[], &format!("{commit}; exit 1")).exits(10).json();
    assert_eq!(repo.head(), base);
    assert_eq!(repo.status(), "");
    assert!(!repo.path("a").exists() && !repo.path("b").exists());
    let discarded = document["refs"]["discarded"][0].as_str().expect("a ref").to_owned();
    assert_eq!(repo.git(&["show", &format!("{discarded}:a")]), "a");

    repo.run(&[], commit).exits(0);
    assert_eq!(repo.git(&["rev-parse", "HEAD~2"]), base);
    assert_eq!(repo.git(&["log", "-1", "--format=%s", "HEAD~1"]), "by the turn");
    assert_eq!(repo.git(&["show", "HEAD:b"]), "b");
    assert_eq!(repo.status(), "");

    let all = "echo c > c; git add c; git commit -qm 'all of it'";
    let document = repo.run(&[], all).exits(0).json();
    assert_eq!(repo.git(&["log", "-1", "--format=%s"]), "all of it");
    assert_eq!(document["commit"], repo.head().as_str());
    repo.fsck();
}

#[test]
fn row_14b_an_interrupted_turn_that_committed_is_taken_back_too() {
    let mut lab = Lab::new();
    lab.hold("a\n");
    lab.killed_at(
        "turn_over",
        JOB,
        "echo a > a; git add a; git commit -qm own; echo new > new.txt",
    );
    lab.reconcile();
    assert_eq!(lab.state("job", 1).1, "interrupted");
    lab.laws();
    let again = lab.repo.run(JOB, "test ! -e a && echo ok > ok").exits(0).json();
    assert_eq!(again["attempt"], 2);
    assert_eq!(lab.repo.git(&["rev-parse", "HEAD~1"]), lab.base);
    lab.laws();
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
    let _unmount = Mounted::by_others(&mount);
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
