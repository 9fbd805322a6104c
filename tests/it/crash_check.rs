//! The crash matrix, row 20: post-checks.

use crate::lab::{JOB, Lab, Midway};
use crate::support::Repo;

#[test]
fn row_20_the_captured_one_runs_and_a_changed_one_is_refused() {
    let repo = Repo::new();
    repo.script(".worktx/post-check", "#!/bin/sh\nexit 1\n");
    repo.git(&["add", "-A"]);
    repo.git(&["commit", "-qm", "check"]);
    let before = repo.listing();
    let rewrite = "printf '#!/bin/sh\\nexit 0\\n' > .worktx/post-check";
    let document = repo.run(&[], rewrite).exits(11).json();
    assert_eq!(document["reason"], "post_check_changed");
    assert_eq!(repo.listing(), before);
    let document = repo.run(&[], "echo x > x").exits(11).json();
    assert_eq!(document["reason"], "post_check_failed");
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
