//! The crash matrix, row 20: post-checks.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

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
        ("mv .git/index .git/i; ln -s i .git/index", 20, "post_check_touched_git"),
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

/// A lab whose base has a post-check at the default place, with an interpreter of its own.
fn with_post_check(text: &str) -> Lab {
    Lab::with(|repo| {
        repo.script("tools/interpreter", "#!/bin/sh\nexec /bin/sh \"$@\"\n");
        let own = repo.path("tools/interpreter");
        let text = text.replace("OWN", &own.display().to_string());
        repo.script(".worktx/post-check", &text);
        repo.git(&["add", "tools", ".worktx"]);
        repo.git(&["commit", "-qm", "post-check"]);
    })
}

#[test]
fn row_20_missing() {
    // At the default places: fail-open, and said in the commit.
    let lab = Lab::new();
    let document = lab.repo.run(JOB, "echo x > x").exits(0).json();
    assert_eq!(document["post_check"]["outcome"], "absent");
    assert!(lab.repo.git(&["log", "-1", "--format=%B"]).contains("Worktx-Post-Check: absent"));
    // Unless the settings want one.
    let lab = Lab::with(|_| {});
    lab.repo.settings("[post_check]\non_absent = \"reject\"\n");
    let document = lab.repo.run(JOB, "echo x > x").exits(11).json();
    assert_eq!(document["reason"], "post_check_missing");
    lab.as_before();
    lab.laws();
    // Named and not there: an error before the turn.
    let lab = Lab::new();
    let named = [JOB, &["--post-check", "nowhere/check"]].concat();
    let ran = lab.repo.run(&named, "touch ran").exits(1);
    assert!(ran.stderr.contains("nowhere/check"), "{}", ran.stderr);
    lab.as_before();
    assert_eq!(lab.status_of("job"), "", "no attempt was opened");
    assert!(!lab.repo.path(".git/worktx/attempts/job").exists(), "its folder is gone");
    assert!(!lab.repo.path(".git/worktx-marker").exists(), "so is its marker");
}

#[test]
fn row_20_no_run_bit() {
    // At open, at a default place: fail-open with a loud warning.
    let lab = with_post_check("#!/bin/sh\nexit 1\n");
    let check = lab.repo.path(".worktx/post-check");
    let mode = |bits: u32| {
        fs::set_permissions(&check, fs::Permissions::from_mode(bits)).expect("set");
    };
    mode(0o644);
    lab.repo.git(&["commit", "-qam", "no run bit"]);
    let ran = lab.repo.run(JOB, "echo x > x").exits(0);
    let document = ran.json();
    assert_eq!(document["post_check"]["outcome"], "misconfigured");
    assert!(document["warnings"].to_string().contains("post_check_misconfigured"), "{document}");
    assert!(ran.stderr.contains("post-check"), "loud: {}", ran.stderr);
    // Or as the settings say.
    lab.repo.settings("[post_check]\non_misconfigured = \"reject\"\n");
    let again = &["--execution-id", "again"];
    let document = lab.repo.run(again, "echo y > y").exits(11).json();
    assert_eq!(document["reason"], "post_check_missing");
    assert!(!lab.repo.path("y").exists());
    // Named: an error before the turn.
    let named = ["--post-check", ".worktx/post-check"];
    lab.repo.run(&named, "touch ran").exits(1);
    assert!(!lab.repo.path("ran").exists());
    // Taken away by the turn: it was runnable at open.
    lab.repo.settings("");
    mode(0o755);
    lab.repo.git(&["commit", "-qam", "run bit"]);
    let before = lab.repo.listing();
    let document =
        lab.repo.run(&["--execution-id", "chmod"], "chmod -x .worktx/post-check").exits(11).json();
    assert_eq!(document["reason"], "post_check_changed");
    assert_eq!(lab.repo.listing(), before);
}

#[test]
fn row_20_edited_removed_or_its_interpreter_by_the_turn() {
    for script in [
        "printf '#!/bin/sh\\nexit 0\\n' > .worktx/post-check",
        "rm .worktx/post-check",
        "rm -rf .worktx",
        "rm .worktx/post-check; ln -s /bin/true .worktx/post-check",
        "rm -rf .worktx; ln -s /bin .worktx",
        "rm tools/interpreter",
        "printf '#!/bin/sh\\nexit 0\\n' > tools/interpreter",
        "rm -rf tools",
        "chmod -x tools/interpreter",
    ] {
        for (setting, code, reason) in [
            ("", 11, "post_check_changed"),
            ("[post_check]\non_changed = \"quarantine\"\n", 20, "post_check_changed"),
        ] {
            let lab = with_post_check("#!OWN\nexit 0\n");
            lab.repo.settings(setting);
            let ran = lab.repo.run(JOB, &format!("echo x > x; {script}"));
            assert_eq!(ran.code, code, "{script}: {}{}", ran.stdout, ran.stderr);
            assert_eq!(ran.json()["reason"], reason, "{script}");
            if code == 11 {
                lab.as_before();
            } else {
                assert_eq!(lab.repo.read("x"), "x\n");
                assert_eq!(lab.repo.head(), lab.base);
            }
            lab.laws();
        }
    }
    // The captured copy decides, whatever the turn made of the original.
    let lab = with_post_check("#!/bin/sh\ntest -e wanted\n");
    lab.repo.settings("[post_check]\non_changed = \"ignore\"\n");
    let rewrite = "printf '#!/bin/sh\\nexit 0\\n' > .worktx/post-check";
    lab.repo.run(JOB, rewrite).exits(11);
    lab.as_before();
    lab.repo.run(JOB, &format!("{rewrite}; touch wanted")).exits(0);
    lab.laws();
}

#[test]
fn row_20_hangs_is_killed_leaves_a_daemon() {
    for (check, code, outcome) in [
        ("trap '' TERM INT HUP; while :; do sleep 1000; done", 11, "timeout"),
        ("kill -9 $$", 11, "failed"),
        ("kill -TERM $$", 11, "failed"),
        ("kill -9 -- -$$", 11, "failed"),
    ] {
        let lab = Lab::with_settings("grace = \"300ms\"\n");
        let options = [JOB, &["--check", check, "--post-check-timeout", "1s"]].concat();
        let document = lab.repo.run(&options, "echo x > x").exits(code).json();
        assert_eq!(document["post_check"]["outcome"], outcome, "{check}");
        lab.as_before();
        lab.laws();
    }
    // A daemon that goes on writing is dead before anything counts.
    for end in [0, 1] {
        let lab = Lab::with_settings("grace = \"300ms\"\n");
        let midway = Midway::new(&lab);
        let check = format!(
            "(setsid sh -c 'trap \"\" TERM HUP INT; echo $$ > ../daemon; echo > {0}; \
             while :; do echo spoiled > README.md; echo spoiled > spoiled; done' \
             </dev/null >/dev/null 2>&1 &); cat {0}; exit {end}",
            midway.ready.path().display()
        );
        let options = [JOB, &["--check", &check]].concat();
        lab.repo.run(&options, "echo x > x").exits([0, 11][usize::from(end != 0)]);
        let pid = fs::read_to_string(lab.repo.outside().join("daemon")).expect("written");
        assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists(), "it lives");
        assert_eq!(lab.repo.read("README.md"), "hello\n");
        assert!(!lab.repo.path("spoiled").exists());
        if end == 0 {
            assert_eq!(lab.repo.git(&["diff", "--name-only", &lab.base, "HEAD"]), "x");
        } else {
            lab.as_before();
        }
        lab.laws();
    }
}
