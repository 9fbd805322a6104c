//! `[post_check] view = "checkout"`: the post-check decides by the candidate alone, works in a
//! scratch of its own, and leaves nothing behind.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::lab::Lab;
use crate::support::{Gate, Repo, is_root, listing};

const JOB: &[&str] = &["--execution-id", "job"];
const WORK: &str = "echo new > new.txt; echo more >> README.md; rm src/deep/two.txt; \
                    ln -sf src link; chmod 644 script.sh; echo x > run.sh; chmod 755 run.sh";

fn with_view(repo: &Repo) {
    let config = repo.home().join(".config/worktx/config.toml");
    fs::create_dir_all(config.parent().expect("has one")).expect("made");
    fs::write(config, "[post_check]\nview = \"checkout\"\n").expect("written");
}

fn lab() -> Lab {
    Lab::with(with_view)
}

fn check(words: &str) -> Vec<&str> {
    [JOB, &["--check", words]].concat()
}

/// The scratch folders that lie in a state directory.
fn scratch_in(state: &Path) -> Vec<PathBuf> {
    let Ok(executions) = fs::read_dir(state.join("attempts")) else { return Vec::new() };
    let attempts = executions.flatten().flat_map(|e| fs::read_dir(e.path()).into_iter().flatten());
    let inside = attempts.flatten().flat_map(|a| fs::read_dir(a.path()).into_iter().flatten());
    let folders = inside.flatten().map(|e| e.path());
    folders.filter(|path| path.to_string_lossy().contains("/checkout-")).collect()
}

#[track_caller]
fn is_clean(lab: &Lab) {
    assert_eq!(scratch_in(&lab.repo.path(".git/worktx")), Vec::<PathBuf>::new());
}

#[track_caller]
fn is_committed(lab: &Lab) {
    assert_eq!(lab.state("job", 1).0, "done");
    let candidate =
        lab.repo.sql("select success_candidate from execution where execution_id = 'job'");
    assert_eq!(lab.repo.head(), candidate);
    assert_eq!(lab.repo.git(&["rev-parse", "HEAD~1"]), lab.base);
    assert_eq!(lab.repo.status(), "?? dangling\n?? notes.txt");
    lab.laws();
    is_clean(lab);
}

#[test]
fn the_candidate_decides_and_nothing_beside_it() {
    let sees = "test \"$PWD\" = \"$WORKTX_WORKSPACE\" && test -e \"$WORKTX_REPOSITORY/notes.txt\" && \
                test -e \"$WORKTX_REPOSITORY/ignored/cache\" && test \"${PWD##*/}\" = repo && \
                test ! -e notes.txt && test ! -e ignored && test ! -e empty && test ! -L dangling && \
                test ! -e src/deep && test -x run.sh && test ! -x script.sh && \
                test \"$(readlink link)\" = src && test \"$(cat new.txt)\" = new && \
                test \"$(stat -c %a \"$(dirname \"$PWD\")\")\" = 700 && \
                tr '\\0' '\\n' < \"$WORKTX_CHANGED_FILES\" | grep -qx new.txt";
    let lab = lab();
    lab.repo.run(&check(sees), WORK).exits(0);
    is_committed(&lab);

    // What only the live tree has is no help, and nothing is changed there.
    for only_live in ["test -e ignored/cache", "test -e notes.txt", "test -d empty/inner"] {
        let lab = self::lab();
        let ran = lab.repo.run(&check(only_live), WORK).exits(11).json();
        assert_eq!(ran["reason"], "post_check_failed", "{only_live}");
        lab.as_before();
        is_clean(&lab);
        let mut live = lab.repo.run_command(&check(only_live), WORK);
        lab.repo.finish(live.env("WORKTX_POST_CHECK_VIEW", "tree")).exits(0);
        lab.laws();
    }
}

#[test]
fn it_holds_what_git_would_check_out() {
    let lab = lab();
    let out = lab.repo.outside().join("seen");
    let words = format!("cp -a . {}", out.display());
    let turn = "printf '*.txt text eol=crlf\\n*.raw -text\\n' > .gitattributes; \
                printf 'a\\r\\nb\\r\\n' > dos.txt; printf 'a\\nb\\n' > unix.txt; \
                printf 'a\\r\\n' > some.raw; printf '\\r\\n' >> README.md; mkdir -p src/m/n; \
                printf 'deep\\r\\n' > src/m/n/x.txt; ln -s ../../nowhere src/m/l; \
                echo '#!' > src/m/tool; chmod 755 src/m/tool";
    lab.repo.run(&check(&words), turn).exits(0);
    is_committed(&lab);
    let judge = lab.repo.outside().join("judge");
    lab.repo.git(&["worktree", "add", "-q", "--detach", judge.to_str().expect("text"), "HEAD"]);
    let (seen, wanted) = (listing(&out), listing(&judge));
    assert_eq!(wanted["unix.txt"], "file 644 a\r\nb\r\n");
    assert_eq!(seen, wanted);
}

#[test]
fn git_works_in_it_and_reaches_nothing_else() {
    let lab = lab();
    let words = "set -e; test \"$(git rev-parse --show-toplevel)\" = \"$PWD\"; \
        test -z \"$(git status --porcelain)\"; \
        test \"$(git rev-parse HEAD)\" = \"$WORKTX_CANDIDATE\"; \
        git diff --exit-code HEAD >/dev/null; git diff --name-only main | grep -qx new.txt; \
        git diff --name-only \"$WORKTX_BASE\" \"$WORKTX_CANDIDATE\" | grep -qx new.txt; \
        git log --format=%s | grep -qx second; \
        git checkout -q -b elsewhere; git rm -rq --cached .; git commit -qm mine; \
        git branch -f main; git tag broken; git config core.hooksPath /nowhere; git gc -q --prune=now; \
        mkdir -p deep/er; rm -rf .git; cd deep/er; ! git status 2>/dev/null; \
        ! git rev-parse --git-dir 2>/dev/null";
    let before = lab.repo.git(&["config", "--list", "--local"]);
    lab.repo.run(&check(words), WORK).exits(0);
    is_committed(&lab);
    assert_eq!(lab.repo.git(&["config", "--list", "--local"]), before);
    assert_eq!(lab.repo.git(&["branch", "--format=%(refname:short)"]), "main");
    assert_eq!(lab.repo.git(&["tag"]), "");
}

#[test]
fn what_it_writes_is_thrown_away() {
    for (words, code) in [
        ("i=0; while [ $i -lt 1000 ]; do echo $i > made-$i; i=$((i+1)); done", 0),
        ("rm -rf \"$PWD\"", 0),
        ("rm -rf \"$PWD\"; exit 3", 11),
        ("cd ..; rm -rf repo; echo x > repo; mkfifo pipe; ln -s \"$WORKTX_REPOSITORY\" l", 0),
        (
            "mkdir -p a/b/c; mkfifo a/b/p; echo x > a/b/c/f; ln -s \"$WORKTX_REPOSITORY\" a/out; \
             ln -s \"$WORKTX_REPOSITORY/src\" s; chmod 000 a/b/c a/b a; chmod 000 .",
            0,
        ),
        (
            "(setsid sleep 300 &); d=0; while [ $d -lt 300 ]; do mkdir $d; cd $d; d=$((d+1)); done",
            0,
        ),
        ("echo changed > README.md; rm -rf src; sleep 300", 11),
    ] {
        let lab = lab();
        let timeout = if words.ends_with("sleep 300") { "1s" } else { "60s" };
        let options = [check(words), vec!["--post-check-timeout", timeout]].concat();
        let ran = lab.repo.run(&options, WORK).exits(code);
        for warning in ["checkout_", "put_back"] {
            assert!(!ran.stdout.contains(warning), "{words}: {}", ran.stdout);
        }
        if code == 0 {
            is_committed(&lab);
        } else {
            lab.as_before();
            lab.laws();
            is_clean(&lab);
        }
    }
}

#[test]
fn what_appears_in_the_live_tree_meanwhile_is_put_back() {
    let mut lab = lab();
    lab.hold("by the check\n");
    let words =
        "echo by the check > \"$WORKTX_REPOSITORY/stray\"; rm \"$WORKTX_REPOSITORY/README.md\"";
    let ran = lab.repo.run(&check(words), WORK).exits(0).json();
    assert!(ran["warnings"].to_string().contains("put_back"), "{ran}");
    is_committed(&lab);
    // The live repository is compared as ever.
    let lab = self::lab();
    let words = "git -C \"$WORKTX_REPOSITORY\" commit -q --allow-empty -m by-the-check";
    let ran = lab.repo.run(&check(words), WORK).exits(20).json();
    assert_eq!(ran["reason"], "post_check_touched_git");
    is_clean(&lab);
}

#[test]
fn row_20_a_killed_checkout_is_made_anew() {
    for point in ["checkout_written", "post_check_passed"] {
        let lab = lab();
        lab.killed_at(point, &check("test -e new.txt && test -x run.sh"), WORK);
        assert_eq!(
            scratch_in(&lab.repo.path(".git/worktx")).len(),
            usize::from(point == "checkout_written")
        );
        lab.reconcile();
        is_committed(&lab);
    }
    // In the middle of the check: what the first run wrote is not there in the second.
    let lab = lab();
    let (ready, never) = (Gate::new(&lab.repo, "ready"), Gate::new(&lab.repo, "never"));
    let words = format!(
        "test ! -e half || exit 9; echo half > half; chmod 000 src; \
         test -e ../../../../../../../../second || {{ echo > {}; cat {}; }}",
        ready.path().display(),
        never.path().display()
    );
    let mut child = lab.repo.spawn(&mut lab.repo.run_command(&check(&words), WORK));
    ready.wait();
    child.kill().expect("sent");
    child.wait().expect("it ends");
    let left = scratch_in(&lab.repo.path(".git/worktx"));
    assert_eq!(left.len(), 1);
    assert!(left[0].join("repo/half").exists());
    fs::write(lab.repo.outside().join("second"), "").expect("written");
    lab.reconcile();
    is_committed(&lab);
}

#[test]
fn row_20_a_crashed_checkout_goes_although_it_is_not_run_again() {
    let lab = lab();
    lab.killed_at("checkout_written", &check("true"), WORK);
    let other = lab.repo.git(&["commit-tree", "-p", "HEAD", "-m", "other", "HEAD^{tree}"]);
    lab.repo.git(&["update-ref", "refs/heads/main", &other]);
    lab.reconcile();
    assert_eq!(lab.state("job", 1), ("quarantined".to_owned(), "branch_moved".to_owned()));
    is_clean(&lab);
}

/// Unmounts, whatever the test says.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn what_cannot_be_removed_is_a_warning_and_gc_takes_it() {
    if !is_root() {
        println!("SKIPPED: mounting needs root");
        return;
    }
    let lab = lab();
    let words = "mkdir busy && mount -t tmpfs worktx-test busy && echo x > busy/x";
    let ran = lab.repo.run(&check(words), WORK);
    if ran.code == 11 {
        println!("SKIPPED: no tmpfs can be mounted: {}", ran.stderr);
        return;
    }
    let left = scratch_in(&lab.repo.path(".git/worktx"));
    assert_eq!(left.len(), 1);
    let unmount = Unmount(left[0].join("repo/busy"));
    let warnings = ran.exits(0).json()["warnings"].to_string();
    assert!(warnings.contains("checkout_left"), "{warnings}");
    assert!(left[0].join("repo/busy/x").exists(), "a mount is not crossed");
    assert!(!left[0].join("repo/src").exists(), "what can go goes");
    drop(unmount);
    lab.repo.call(&["gc"]).exits(0);
    is_committed(&lab);
}

#[test]
fn row_17_a_full_disk_under_the_checkout_is_no_pass() {
    if !is_root() {
        println!("SKIPPED: mounting a small file system needs root");
        return;
    }
    let repo = Repo::new();
    with_view(&repo);
    let state = repo.outside().join("state");
    fs::create_dir(&state).expect("made");
    let path = state.to_str().expect("text").to_owned();
    let mount = |options: &str| {
        repo.finish(repo.command("mount").args([
            "-t",
            "tmpfs",
            "-o",
            options,
            "worktx-test",
            &path,
        ]))
    };
    let mounted = mount("size=16m");
    if mounted.code != 0 {
        println!("SKIPPED: no tmpfs can be mounted: {}", mounted.stderr);
        return;
    }
    let _unmount = Unmount(state.clone());
    let turn = "for i in 1 2 3 4 5; do head -c 8000000 /dev/urandom > big-$i; done; echo x > x";
    let run = |options: &[&str], turn: &str| {
        let mut command = repo.run_command(options, turn);
        repo.finish(command.env("WORKTX_STATE_DIR", &state))
    };
    let ran = run(&check("test -e x"), turn).exits(20).json();
    assert_eq!(ran["reason"], "post_check_unstartable");
    assert!(ran["warnings"].is_array());
    assert_eq!(scratch_in(&state), Vec::<PathBuf>::new());
    assert_eq!(repo.git(&["log", "--format=%s"]), "first");
    // With space again an operator's word is enough.
    assert_eq!(mount("remount,size=120m").code, 0);
    let mut adopt = repo.worktx(&["resolve", "job", "--adopt"]);
    repo.finish(adopt.env("WORKTX_STATE_DIR", &state)).exits(0);
    assert_eq!(repo.git(&["rev-list", "--count", "HEAD"]), "2");
    assert_eq!(repo.status(), "");
    assert_eq!(scratch_in(&state), Vec::<PathBuf>::new());
}

#[test]
fn the_command_sees_head() {
    let repo = Repo::new();
    with_view(&repo);
    repo.write("notes.txt", "mine\n");
    repo.write("README.md", "changed\n");
    symlink("nowhere", repo.path("l")).expect("made");
    let words = "test ! -e notes.txt && test ! -L l && grep -q hello README.md && \
                 test -z \"$(git status --porcelain)\"";
    let seen = repo.call(&["post-check", "--json", "--check", words]).exits(0).json();
    assert_eq!(seen["view"], "checkout");
    assert_eq!(seen["post_check"]["outcome"], "passed");
    assert!(!repo.path(".git/worktx/post-check").exists());
    let mut live = repo.worktx(&["post-check", "--json", "--check", words]);
    let live = repo.finish(live.env("WORKTX_POST_CHECK_VIEW", "tree")).exits(1).json();
    assert_eq!(live["view"], "tree");
}
