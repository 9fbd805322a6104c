//! What a turn may leave in the repository because of which no later run could begin: it goes back
//! with everything else, and is no success.

use std::fs;
use std::path::Path;

use crate::lab::{JOB, Lab};
use crate::support::Repo;

/// A branch `other` with a file of its own, and one that is in conflict with `conflict`.
fn branches(repo: &Repo) {
    let on = |branch: &str, path: &str, text: &str| {
        repo.git(&["checkout", "-q", "-b", branch, "main"]);
        repo.write(path, text);
        repo.git(&["add", path]);
        repo.git(&["commit", "-qm", branch]);
    };
    on("other", "other", "other\n");
    on("theirs", "README.md", "theirs\n");
    repo.git(&["checkout", "-q", "main"]);
    repo.write("README.md", "ours\n");
    repo.git(&["commit", "-qm", "ours", "README.md"]);
}

/// What lies in a git directory beside worktx's own, objects and logs.
fn files_of(git_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(git_dir).expect("readable").map(|e| e.expect("readable"));
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| !name.starts_with("worktx") && name != "ORIG_HEAD");
    names.sort();
    names
}

const BEGUN: [(&str, &str); 6] = [
    ("git merge -q --no-ff --no-commit other", "MERGE_HEAD"),
    ("git merge -q theirs || true", "MERGE_HEAD"),
    ("git cherry-pick theirs || true", "CHERRY_PICK_HEAD"),
    ("git revert --no-commit HEAD", "REVERT_HEAD"),
    ("git cherry-pick other theirs other || true", ""),
    ("git format-patch -q -1 theirs -o ../patch; git am ../patch/* || true", "rebase-apply"),
];

#[test]
fn what_git_has_begun_goes_back() {
    for (begin, file) in BEGUN {
        let lab = Lab::with(branches);
        let before = files_of(&lab.repo.git_dir());
        lab.repo.run(JOB, &format!("{begin}; exit 3")).exits(10);
        // A cherry-pick of several may have commits of its own: all of it is back.
        lab.as_before();
        assert_eq!(files_of(&lab.repo.git_dir()), before, "{begin}");
        lab.laws();
        let ran = lab.repo.run(&["--execution-id", "left"], begin).exits(11);
        let document = ran.json();
        assert_eq!(document["reason"], "unfit", "{begin}");
        let detail = document["detail"].as_str().expect("text");
        assert!(detail.contains(file), "{detail}");
        assert!(ran.stderr.contains(detail), "{}", ran.stderr);
        assert_eq!(files_of(&lab.repo.git_dir()), before, "{begin}");
        lab.repo.run(&[], "true").exits(0);
    }
}

#[test]
fn what_git_has_ended_lands() {
    let lab = Lab::with(branches);
    lab.repo.run(JOB, "git merge -q --no-ff -m merged other; echo x > x").exits(0);
    assert_eq!(lab.repo.git(&["rev-list", "--count", "--merges", "HEAD"]), "1");
    assert_eq!(lab.repo.git(&["show", "HEAD:other"]), "other");
    lab.repo
        .run(&[], "git merge -q theirs; git checkout -q --ours README.md; git commit -qam both")
        .exits(0);
    assert_eq!(lab.repo.git(&["rev-list", "--count", "--merges", "HEAD"]), "2");
    lab.repo.run(&[], "true").exits(0);
}

#[test]
fn what_git_has_begun_goes_back_beside_an_unsettled_attempt() {
    let lab = Lab::with(branches);
    // A name that git's own folders have, too.
    let linked = lab.repo.outside().join("info");
    lab.repo.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().expect("text")]);
    lab.killed_at("turn_over", JOB, "echo x > x");
    let git_dir = lab.repo.git_dir().join("worktrees/info");
    let before = files_of(&git_dir);
    let mut run = lab.repo.run_command(&[], "git merge -q --no-commit --no-ff other; exit 3");
    lab.repo.finish(run.current_dir(&linked)).exits(10);
    assert_eq!(files_of(&git_dir), before);
    let mut run = lab.repo.run_command(&[], "true");
    lab.repo.finish(run.current_dir(&linked)).exits(0);
}

/// What git laid aside for an operation is known by a file of it alone.
#[test]
fn what_git_laid_aside_is_kept() {
    let kept = |lab: &Lab| {
        let refs = lab.repo.own_refs();
        let stashes = refs.iter().filter(|name| name.contains("/rescue/")).any(|name| {
            let all = lab.repo.git(&["log", "--format=%H", "-m", "-p", name]);
            all.contains("+laid aside")
        });
        assert!(stashes, "{refs:?}");
    };
    let lab = Lab::with(branches);
    let before = files_of(&lab.repo.git_dir());
    let merge = "echo laid aside >> secret.txt; git merge -q --autostash theirs; exit 3";
    let document = lab.repo.run(JOB, merge).exits(10).json();
    assert!(document["warnings"].to_string().contains("operation_undone"), "{document}");
    lab.as_before();
    assert_eq!(files_of(&lab.repo.git_dir()), before);
    kept(&lab);
    // A later commit takes nothing of it along.
    lab.repo.run(&[], "echo x > x; git add x; git commit -qm x").exits(0);
    assert_eq!(lab.repo.git(&["show", "HEAD:secret.txt"]), "0600");

    let lab = Lab::with(branches);
    let rebase = "echo laid aside >> secret.txt; git rebase -q --autostash theirs; exit 3";
    lab.repo.run(JOB, rebase).exits(20);
    lab.repo.git(&["symbolic-ref", "HEAD", "refs/heads/main"]);
    lab.repo.call(&["resolve", "job", "--discard"]).exits(0);
    lab.as_before();
    kept(&lab);
}

#[test]
fn no_run_could_begin_after_these() {
    for (turn, reason, detail) in [
        ("git sparse-checkout set src; echo x > src/x", "unfit", "sparse"),
        ("git sparse-checkout set --cone --sparse-index src", "unfit", "sparse"),
        ("printf '[submodule \"a\"]\\n\\tpath = a\\n' > .gitmodules", "unfit", ".gitmodules"),
        (
            "git config filter.n.clean cat; mkdir -p .git/info; \
             echo 'README.md filter=n' >> .git/info/attributes",
            "filter_unsupported",
            "",
        ),
    ] {
        let lab = Lab::new();
        let document = lab.repo.run(JOB, turn).exits(11).json();
        assert_eq!(document["reason"], reason, "{turn}");
        assert!(document["detail"].as_str().unwrap_or_default().contains(detail), "{document}");
        lab.as_before();
        lab.laws();
        lab.repo.run(&[], "echo y > y").exits(0);
        assert_eq!(lab.repo.git(&["show", "--stat", "--format=", "HEAD"]).lines().count(), 2);
    }
}

/// Attributes that ask for nothing special may be written there.
#[test]
fn other_attributes_of_the_repository_stay() {
    let lab = Lab::new();
    let ran = lab.repo.run(JOB, "mkdir -p .git/info; echo '*.md text' >> .git/info/attributes");
    assert!(ran.exits(0).json()["warnings"].to_string().contains("info/attributes"));
    assert_eq!(lab.repo.read(".git/info/attributes"), "*.md text\n");
}
