//! The crash matrix, rows 14 to 21 but for the post-check: what a turn does, and its undo.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use crate::lab::{JOB, Lab, Mounted, WRECK};
use crate::support::{Gate, Repo, is_root, path_with_worktx};

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

#[test]
fn row_14_what_other_refs_held_outlives_a_prune() {
    for end in [0, 3] {
        let lab = Lab::with(|repo| {
            repo.git(&["checkout", "-q", "-b", "other"]);
            repo.git(&["commit", "-q", "--allow-empty", "-m", "only on other"]);
            repo.git(&["checkout", "-q", "main"]);
        });
        let other = lab.repo.git(&["rev-parse", "other"]);
        let script = "git branch -qD other; git checkout -q -b made; \
                      git commit -q --allow-empty -m 'only on made'; git checkout -q main";
        let document = lab
            .repo
            .run(JOB, &format!("echo x > x; {script}; exit {end}"))
            .exits([0, 10][usize::from(end != 0)])
            .json();
        let warnings = document["warnings"].to_string();
        assert!(warnings.contains("refs/heads/other") && warnings.contains("refs/heads/made"));
        let made = lab.repo.git(&["rev-parse", "made"]);
        assert_eq!(lab.repo.git(&["branch", "--list", "other"]), "", "not moved back");
        lab.repo.git(&["branch", "-qD", "made"]);
        lab.repo.git(&["reflog", "expire", "--expire=now", "--all"]);
        lab.repo.git(&["gc", "-q", "--prune=now"]);
        lab.repo.git(&["cat-file", "-e", &other]);
        lab.repo.git(&["cat-file", "-e", &made]);
        lab.laws();
    }
}

#[test]
fn row_14b_the_guard_vouches_for_what_leaves_no_mark() {
    let silent = "git update-ref refs/heads/main \
                  $(git commit-tree -m silent -p HEAD \"HEAD^{tree}\")";
    for (end, code) in [(0, 0), (3, 10)] {
        let lab = Lab::new();
        lab.repo.call(&["init", "--guard"]).exits(0);
        let script =
            format!("echo x > x; {silent}; git commit -q --allow-empty -m own; exit {end}");
        let mut command = lab.repo.run_command(JOB, &script);
        lab.repo.finish(command.env("PATH", path_with_worktx())).exits(code);
        if end == 0 {
            assert_eq!(lab.repo.git(&["rev-parse", "HEAD~3"]), lab.base);
        } else {
            lab.as_before();
        }
        lab.laws();
    }
}

/// A folder outside of the tree with a file in it, as links may lead to.
fn canary(repo: &Repo) -> impl Fn() + use<> {
    let dir = repo.outside().join("canary");
    fs::create_dir(&dir).expect("made");
    fs::write(dir.join("file"), "sings\n").expect("written");
    let look = move || {
        let meta = |path: &Path| {
            let meta = fs::metadata(path).expect("there");
            (meta.ino(), meta.mode(), meta.mtime_nsec(), meta.ctime_nsec())
        };
        let names = fs::read_dir(&dir).expect("readable").count();
        let text = fs::read_to_string(dir.join("file")).expect("readable");
        (names, text, meta(&dir), meta(&dir.join("file")))
    };
    let before = look();
    move || assert_eq!(look(), before, "the canary was touched")
}

#[test]
fn row_15_symlinks_come_back_as_symlinks() {
    let wreck = "rm to-file; echo file > to-file; \
                 rm to-dir; mkdir to-dir; echo x > to-dir/x; \
                 rm gone; mkdir -p gone/deep; echo x > gone/deep/x; \
                 rm out; mkdir out; echo x > out/file; \
                 ln -sfn /etc out-file; rm up; \
                 rm -rf src; ln -s ../canary src; \
                 rm README.md; ln -s ../canary/file README.md; \
                 rm -rf empty; ln -s ../canary empty; \
                 ln -s ../canary new-link; ln -s ../canary/file new-file-link; ln -s . loop";
    for kill in [None, Some("file_restored:3"), Some("file_restored:9"), Some("restored")] {
        let lab = Lab::with(|repo| {
            symlink("README.md", repo.path("to-file")).expect("made");
            symlink("src", repo.path("to-dir")).expect("made");
            symlink("never/there", repo.path("gone")).expect("made");
            symlink("../canary", repo.path("out")).expect("made");
            symlink("../canary/file", repo.path("out-file")).expect("made");
            repo.git(&["add", "-A"]);
            repo.git(&["reset", "-q", "--", "notes.txt", "dangling"]);
            repo.git(&["commit", "-qm", "links"]);
            // Untracked ones too.
            symlink("../canary", repo.path("up")).expect("made");
        });
        let untouched = canary(&lab.repo);
        let script = format!("{wreck}; exit 3");
        match kill {
            None => {
                lab.repo.run(JOB, &script).exits(10);
            }
            Some(point) => {
                lab.killed_at(point, JOB, &script);
                lab.reconcile();
            }
        }
        untouched();
        lab.as_before();
        lab.laws();
        assert_eq!(lab.repo.status(), "?? dangling\n?? notes.txt\n?? up");
    }
    // On success they are what they are, and nothing behind them is read or written.
    let lab = Lab::new();
    let untouched = canary(&lab.repo);
    lab.repo.run(JOB, "ln -s ../canary new-link; rm -rf src; ln -s ../canary src").exits(0);
    untouched();
    assert_eq!(lab.repo.git(&["show", "HEAD:src"]), "../canary");
    assert!(lab.repo.git(&["ls-tree", "HEAD", "src"]).starts_with("120000"));
    lab.laws();
}

#[test]
fn row_16_a_bind_mount_of_the_same_file_system() {
    let lab = Lab::with(|repo| {
        fs::create_dir(repo.path("shared-in")).expect("made");
        fs::create_dir(repo.outside().join("volume")).expect("made");
        fs::write(repo.outside().join("volume/kept"), "before\n").expect("written");
    });
    let volume = lab.repo.outside().join("volume");
    let bind = ["--bind", volume.to_str().expect("text")];
    let _mounted = match Mounted::new(&lab.repo, &bind, &lab.repo.path("shared-in")) {
        Ok(mounted) => mounted,
        Err(why) => return eprintln!("SKIPPED: {why}"),
    };
    lab.repo
        .run(JOB, "echo after > shared-in/kept; echo new > shared-in/new; rm -rf src; exit 3")
        .exits(10);
    assert_eq!(fs::read_to_string(volume.join("kept")).expect("readable"), "after\n");
    assert_eq!(fs::read_to_string(volume.join("new")).expect("readable"), "new\n");
    assert_eq!(lab.repo.read("src/lib.rs"), "fn one() {}\n");
    lab.repo.run(JOB, "echo again > shared-in/kept; echo x > x").exits(0);
    assert_eq!(lab.repo.git(&["diff", "--name-only", &lab.base, "HEAD"]), "x");
}

#[test]
fn row_18_what_was_validated_is_what_was_committed_and_what_lies_there() {
    let look = "git rev-parse \"$WORKTX_CANDIDATE^{tree}\" > ../validated; \
                GIT_INDEX_FILE=../check-index git read-tree \"$WORKTX_CANDIDATE\"; \
                GIT_INDEX_FILE=../check-index git add -A; \
                GIT_INDEX_FILE=../check-index git write-tree > ../on-disk";
    for (setup, script, commits) in [
        ("true", "echo x > x; rm -rf src; chmod 755 README.md; ln -s x l", 1),
        ("true", "echo x > x; git add x; git commit -qm own; echo y > y", 2),
        ("true", "echo x > x; git add x; git commit -qm own", 1),
        ("true", "true", 0),
        ("git checkout -q --detach", "echo x > x", 1),
        ("git pack-refs --all", "echo x > x", 1),
        (
            "printf '* text=auto\\n' > .gitattributes; git add -A; git commit -qm a",
            "printf 'a\\r\\n' > x.txt",
            1,
        ),
    ] {
        let repo = Repo::new();
        repo.finish(repo.command("sh").args(["-c", setup])).exits(0);
        let base = repo.head();
        let log = |of: &str| repo.git(&["reflog", of]).lines().count();
        let branch = if setup.contains("detach") { "HEAD" } else { "main" };
        let moves = log(branch);
        let document = repo.run(&[JOB, &["--check", look]].concat(), script).exits(0).json();
        let seen = |name: &str| {
            let text = fs::read_to_string(repo.outside().join(name)).expect("the check wrote it");
            text.trim().to_owned()
        };
        let tree = repo.git(&["rev-parse", "HEAD^{tree}"]);
        assert_eq!(seen("validated"), tree, "{script}");
        assert_eq!(seen("on-disk"), tree, "{script}");
        assert_eq!(repo.tree_by_git(), tree, "{script}");
        assert_eq!(repo.git(&["write-tree"]), tree, "{script}: the index");
        assert_eq!(repo.status(), "", "{script}");
        assert_eq!(document["commit"], repo.head().as_str());
        let count = repo.git(&["rev-list", "--count", &format!("{base}..HEAD")]);
        assert_eq!(count, commits.to_string(), "{script}");
        assert_eq!(log(branch) - moves, commits, "{script}: as often as there are commits");
        repo.fsck();
    }
}

#[test]
fn row_19_a_turn_that_does_not_succeed_leaves_no_byte() {
    let never = "exec sleep 1000";
    for (options, end, code, reason) in [
        (&[][..], "exit 3", 10, "turn_failed"),
        (&[], "kill -9 $$", 10, "turn_failed"),
        (&["--timeout", "1s"], never, 12, "turn_timeout"),
        (&["--settle-by", "1970-01-01T00:00:00Z"], never, 12, "settle_by"),
    ] {
        let mut lab = Lab::with_settings("grace = \"300ms\"\n");
        if reason != "settle_by" {
            lab.hold("new\n");
        }
        let before = lab.picture();
        let script = format!("{}; {end}", WRECK.trim_end_matches("; exit 3"));
        let document = lab.repo.run(&[JOB, options].concat(), &script).exits(code).json();
        assert_eq!(document["reason"], reason);
        lab.as_before();
        lab.laws();
        let after = lab.picture();
        before.is_but_for(
            &after,
            &[
                "README.md",
                "src",
                "empty",
                "link",
                "script.sh",
                "notes.txt",
                "dangling",
                "secret.txt",
            ],
        );
    }
    // A command that cannot be executed at all.
    let lab = Lab::new();
    fs::write(lab.repo.path("ignored/nothing"), "no program\n").expect("written");
    let program = lab.repo.path("ignored/nothing");
    let mut command = lab.repo.worktx(&["run", "--json", "--execution-id", "job", "--"]);
    let ran = lab.repo.finish(command.arg(program));
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    lab.l3_no_limbo();
}

/// Ways for a transaction to end in a rollback: options, script, then what is done about it.
const ENDS: [(&[&str], &str, End); 8] = [
    (&[], "exit 3", End::ByItself(10)),
    (&["--timeout", "1s"], "exec sleep 1000", End::ByItself(12)),
    (&["--check", "false"], "true", End::ByItself(11)),
    (&[], "git add -f ignored/cache", End::ByItself(11)),
    (&[], "exit 3", End::Killed("rollback_recorded")),
    (&[], "exit 3", End::Killed("file_restored:2")),
    (&[], "true", End::Discarded),
    (&["--check", "false"], "true", End::Killed("discarded_pinned")),
];

#[derive(Clone, Copy, Debug)]
enum End {
    ByItself(i32),
    Killed(&'static str),
    Discarded,
}

#[test]
fn row_21_journal_and_failure_memory_survive_any_rollback() {
    for ignored in [true, false] {
        for (options, script, end) in ENDS {
            let repo = Repo::new();
            if ignored {
                repo.write(".gitignore", "ignored/\n.trinity/*\n");
            }
            repo.write(".trinity/journal/old.md", "old\n");
            repo.write(".trinity/failure-memory/lessons.md", "one\n");
            repo.write("ignored/cache", "cached\n");
            repo.git(&["add", "-A"]);
            repo.git(&["add", "-f", ".trinity/journal/old.md", ".trinity/failure-memory"]);
            repo.git(&["commit", "-qm", "memory"]);
            repo.settings("grace = \"300ms\"\n");
            let trinity = ["--profile", "trinity"];
            let options = [JOB, &trinity, options].concat();
            let write = "echo more >> .trinity/journal/old.md; echo new > .trinity/journal/new.md; \
                         mkdir -p .trinity/failure-memory/deep; echo two > .trinity/failure-memory/deep/two.md; \
                         echo two >> .trinity/failure-memory/lessons.md; \
                         rm -rf src; echo changed > README.md; echo x > .trinity/elsewhere";
            let script = format!("{write}; {script}");
            match end {
                End::ByItself(code) => {
                    repo.run(&options, &script).exits(code);
                }
                End::Killed(point) => {
                    let mut command = repo.run_command(&options, &script);
                    let ran = repo.finish(command.env("WORKTX_FAULT", point));
                    assert_eq!(ran.code, -9, "{point}: {}", ran.stderr);
                    repo.call(&["reconcile"]).exits(0);
                }
                End::Discarded => {
                    let mut command = repo.run_command(&options, &script);
                    repo.finish(command.env("WORKTX_FAULT", "turn_over"));
                    repo.call(&["reconcile"]).exits(0);
                    repo.call(&["resolve", "job", "--discard"]).exits(0);
                }
            }
            let what = format!("{end:?}, ignored: {ignored}");
            let state = repo.sql("select state from attempt where execution_id = 'job'");
            assert_eq!(state, "rolled_back", "{what}");
            assert_eq!(repo.read(".trinity/journal/old.md"), "old\nmore\n", "{what}");
            assert_eq!(repo.read(".trinity/journal/new.md"), "new\n", "{what}");
            assert_eq!(repo.read(".trinity/failure-memory/lessons.md"), "one\ntwo\n", "{what}");
            assert_eq!(repo.read(".trinity/failure-memory/deep/two.md"), "two\n", "{what}");
            assert_eq!(repo.read("README.md"), "hello\n", "{what}");
            assert!(repo.path("src/lib.rs").exists(), "{what}");
            // What the base ignores is outside, what it does not goes back.
            assert_eq!(repo.path(".trinity/elsewhere").exists(), ignored, "{what}");
            let kept = repo.sql("select outcome from attempt where execution_id = 'job'");
            let document: serde_json::Value = serde_json::from_str(&kept).expect("JSON");
            let in_tree = repo.path(".trinity/journal/tx-job-1.json");
            assert_eq!(in_tree.exists(), ignored, "{what}: where the base ignores it");
            if ignored {
                let told = fs::read_to_string(in_tree).expect("readable");
                let mut told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
                told["phases"] = document["phases"].clone();
                assert_eq!(told, document, "{what}");
            }
            assert_eq!(document["outcome"], "rolled_back", "{what}");
            assert!(document["refs"]["discarded"][0].is_string(), "{what}: where the work is");
        }
    }
}

#[test]
fn row_21_a_cancelled_turns_journal_survives_too() {
    let repo = Repo::new();
    repo.settings("grace = \"300ms\"\n");
    let (ready, never) = (Gate::new(&repo, "ready"), Gate::new(&repo, "never"));
    let script = format!(
        "mkdir -p .trinity/journal; echo why > .trinity/journal/why; echo x > x; echo > {}; cat {}",
        ready.path().display(),
        never.path().display()
    );
    let options = [JOB, &["--profile", "trinity"]].concat();
    let child = repo.spawn(&mut repo.run_command(&options, &script));
    ready.wait();
    repo.call(&["cancel", "job"]).exits(0);
    Repo::wait(child).exits(13);
    assert_eq!(repo.read(".trinity/journal/why"), "why\n");
    assert!(!repo.path("x").exists());
}
