//! Unusual repositories, and what a turn may do to an ordinary one.

use std::fs;
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use serde_json::Value;

use crate::lab::Lab;
use crate::support::{Gate, Repo, has, is_root};

fn reason_of(document: &Value, talk: &str) -> String {
    format!("{} {} {talk}", document["reason"], document["paths"])
}

/// Refused: nothing ran, nothing was touched, and the answer names `word`.
#[track_caller]
fn refused(repo: &Repo, word: &str) {
    let before = repo.listing();
    let ran = repo.run(&[], "touch ran").exits(21);
    let document = ran.json();
    assert_eq!(document["outcome"], "refused");
    assert_eq!(document["attempt"], Value::Null);
    assert_eq!(repo.listing(), before);
    let said = reason_of(&document, &ran.stderr);
    assert!(said.contains(word), "{word}: {said}");
}

#[test]
fn formats_that_are_refused() {
    for (args, word) in [
        (&["--object-format=sha256"][..], "sha256"),
        (&["--ref-format=reftable"], "reftable"),
        (&["--bare"], "bare"),
    ] {
        let repo = Repo::bare_home();
        let mut all = vec!["init", "-q", "-b", "main"];
        all.extend_from_slice(args);
        if repo.finish(repo.command("git").args(&all)).code != 0 {
            eprintln!("SKIPPED: this git does not know {args:?}");
            continue;
        }
        if word != "bare" {
            repo.git(&["commit", "-q", "--allow-empty", "-m", "x"]);
        }
        if word == "bare" {
            let ran = repo.run(&[], "touch ran");
            assert!([1, 21].contains(&ran.code), "{} {}", ran.code, ran.stderr);
            assert!(ran.stderr.contains("bare"), "{}", ran.stderr);
            assert!(!repo.path("ran").exists());
            continue;
        }
        refused(&repo, word);
    }
    let repo = Repo::bare_home();
    repo.git(&["init", "-q", "-b", "main"]);
    refused(&repo, "commit");
}

#[test]
fn operations_in_progress_are_refused() {
    let repo = Repo::new();
    repo.git(&["checkout", "-q", "-b", "side"]);
    repo.write("README.md", "side\n");
    repo.git(&["commit", "-qam", "side"]);
    repo.git(&["checkout", "-q", "main"]);
    repo.write("README.md", "main\n");
    repo.git(&["commit", "-qam", "main"]);
    for (start, end, word) in [
        ("merge side", "merge --abort", "merge"),
        ("rebase side", "rebase --abort", "rebase"),
        ("cherry-pick side", "cherry-pick --abort", "cherry"),
        ("revert --no-edit HEAD~1", "revert --abort", "revert"),
        ("bisect start HEAD HEAD~1", "bisect reset", "bisect"),
    ] {
        let args: Vec<&str> = start.split(' ').collect();
        repo.finish(repo.command("git").args(&args));
        if !repo.path(".git/REVERT_HEAD").exists() && word == "revert" {
            continue;
        }
        refused(&repo, word);
        repo.git(&end.split(' ').collect::<Vec<_>>());
        repo.run(&[], "true").exits(0);
    }
}

#[test]
fn sparse_checkouts_submodules_and_filters_are_refused() {
    let repo = Repo::new();
    repo.git(&["sparse-checkout", "set", "--no-cone", "/src"]);
    refused(&repo, "sparse");

    let repo = Repo::new();
    let head = repo.head();
    repo.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{head},sub")]);
    repo.git(&["commit", "-qm", "submodule"]);
    fs::create_dir(repo.path("sub")).expect("made");
    refused(&repo, "sub");

    for (attribute, word) in [
        ("*.md filter=lfs diff=lfs merge=lfs -text", "lfs"),
        ("*.md filter=mine", "mine"),
        ("*.md ident", "ident"),
        ("*.md working-tree-encoding=UTF-16", "encoding"),
    ] {
        let repo = Repo::new();
        repo.write(".gitattributes", format!("{attribute}\n"));
        repo.git(&["add", ".gitattributes"]);
        let committed = repo.finish(repo.command("git").args(["commit", "-qm", "attributes"]));
        assert_eq!(committed.code, 0, "{}", committed.stderr);
        refused(&repo, word);
    }
}

#[test]
fn foreign_locks_are_refused_and_never_removed() {
    for lock in ["index.lock", "HEAD.lock", "refs/heads/main.lock"] {
        let repo = Repo::new();
        repo.write(&format!(".git/{lock}"), "theirs\n");
        refused(&repo, "lock");
        assert_eq!(repo.read(&format!(".git/{lock}")), "theirs\n");
    }
}

#[test]
fn locks_that_the_turn_leaves_are_quarantined() {
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

#[test]
fn nested_repositories_that_are_there_at_open_are_outside() {
    let repo = Repo::new();
    let nested = repo.path("vendor/nested");
    fs::create_dir_all(&nested).expect("made");
    repo.git_in(&nested, &["init", "-q"]);
    fs::write(nested.join("file"), "inside\n").expect("written");
    repo.git_in(&nested, &["add", "-A"]);
    repo.git_in(&nested, &["commit", "-qm", "inside"]);
    let linked = repo.path("linked");
    repo.git(&["worktree", "add", "-q", "-b", "side", "linked"]);
    repo.run(
        &[],
        "echo more >> vendor/nested/file; echo more >> linked/README.md; echo x > x; exit 3",
    )
    .exits(10);
    assert_eq!(fs::read_to_string(nested.join("file")).expect("readable"), "inside\nmore\n");
    assert_eq!(fs::read_to_string(linked.join("README.md")).expect("readable"), "hello\nmore\n");
    assert!(!repo.path("x").exists());
    repo.run(&[], "echo more >> vendor/nested/file; echo x > x").exits(0);
    assert_eq!(repo.git(&["ls-tree", "-r", "--name-only", "HEAD", "vendor", "linked"]), "");
    assert_eq!(repo.git(&["show", "HEAD:x"]), "x");
    // The linked one is a workspace of its own, under the same ledger.
    repo.git_in(&linked, &["checkout", "-q", "--", "."]);
    repo.finish(repo.run_command(&[], "echo y > y").current_dir(&linked)).exits(0);
    assert_eq!(repo.git(&["show", "side:y"]), "y");
    repo.fsck();
}

#[test]
fn two_linked_worktrees_run_at_once() {
    let repo = Repo::new();
    let linked = repo.outside().join("linked");
    repo.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().expect("text")]);
    let (ready, go) = (Gate::new(&repo, "ready"), Gate::new(&repo, "go"));
    let script = format!(
        "echo a > a; echo > {}; cat {} > /dev/null",
        ready.path().display(),
        go.path().display()
    );
    let first = repo.spawn(&mut repo.run_command(&["--execution-id", "one"], &script));
    ready.wait();
    repo.finish(repo.run_command(&["--execution-id", "two"], "echo b > b").current_dir(&linked))
        .exits(0);
    repo.finish(
        repo.run_command(&["--execution-id", "three"], "echo c > c; git config x.y z; exit 3")
            .current_dir(&linked),
    )
    .exits(10);
    go.open();
    Repo::wait(first).exits(0);
    assert_eq!(repo.git(&["show", "main:a"]), "a");
    assert_eq!(repo.git(&["show", "side:b"]), "b");
    assert_eq!(repo.git_in(&linked, &["status", "--porcelain"]), "");
    assert_eq!(repo.status(), "");
    repo.fsck();
}

#[test]
fn crlf_bytes_come_back_as_they_were() {
    for (config, attributes) in
        [("true", ""), ("input", ""), ("false", "* text=auto eol=crlf\n"), ("false", "* text\n")]
    {
        let lab = Lab::with(|repo| {
            repo.git(&["config", "core.autocrlf", config]);
            repo.write(".gitattributes", attributes);
            repo.write("crlf.txt", "a\r\nb\r\n");
            repo.write("lf.txt", "a\nb\n");
            repo.write("mixed.txt", "a\r\nb\n");
            repo.finish(repo.command("git").args(["add", "-A", "."]));
            repo.git(&["reset", "-q", "--", "notes.txt", "dangling"]);
            repo.git(&["commit", "-qm", "texts"]);
        });
        let document = lab
            .repo
            .run(&[], "printf 'x\\r\\n' > crlf.txt; rm lf.txt; printf 'y\\n' > mixed.txt; exit 3");
        document.exits(10);
        lab.as_before();
        let ran = lab.repo.run(
            &[],
            "printf 'x\\r\\ny\\n' > new.txt; printf 'q\\r\\n' >> crlf.txt; touch mixed.txt",
        );
        ran.exits(0);
        assert_eq!(lab.repo.status(), "?? dangling\n?? notes.txt", "{config} {attributes}");
        lab.laws();
    }
}

#[test]
fn modes_of_files_and_of_the_root() {
    let lab = Lab::with(|repo| {
        fs::set_permissions(&repo.root, fs::Permissions::from_mode(0o750)).expect("set");
        fs::set_permissions(repo.path("src"), fs::Permissions::from_mode(0o2770)).expect("set");
    });
    lab.repo
        .run(&[], "chmod 644 secret.txt; chmod 700 . src; chmod 600 script.sh; exit 3")
        .exits(10);
    lab.as_before();
    assert_eq!(fs::metadata(&lab.repo.root).expect("there").mode() & 0o7777, 0o750);
    lab.repo.run(&[], "echo x > x").exits(0);
    assert_eq!(fs::metadata(lab.repo.path("secret.txt")).expect("there").mode() & 0o7777, 0o600);
}

#[test]
fn trees_are_turned_upside_down() {
    for script in [
        "mkdir new; mv src README.md link new/; mv new/src/deep .",
        "rm -rf src README.md link secret.txt script.sh notes.txt dangling empty .gitignore",
        "mv src tmp; mv README.md src; mv tmp README.md",
        "rm link; mkdir link; echo x > link/x",
        "rm -rf src; ln -s /etc src",
        "rm -rf empty; ln -s src empty; rm dangling; mkdir dangling",
        "i=0; while [ $i -lt 3000 ]; do echo $i > f$i; i=$((i+1)); done",
        "mkdir -p .git/x; echo x > .git/x/y",
        "truncate -s 5G big; echo x > x",
    ] {
        let mut lab = Lab::new();
        lab.hold("cached\n");
        lab.repo.run(&[], &format!("{script}; exit 3")).exits(10);
        let mut now = lab.repo.listing();
        let mut before = lab.before.clone();
        now.retain(|path, _| !path.starts_with("ignored"));
        before.retain(|path, _| !path.starts_with("ignored"));
        assert_eq!(now, before, "{script}");
        lab.laws();
        if script.contains("big") {
            continue;
        }
        let lab = Lab::new();
        lab.repo.run(&["--execution-id", "job"], script);
        lab.laws();
        if lab.status_of("job") == "success" {
            let tree = lab.repo.git(&["rev-parse", "HEAD^{tree}"]);
            let index = lab.repo.git(&["write-tree"]);
            assert_eq!(tree, index, "{script}");
            assert_eq!(lab.repo.git(&["diff", "--name-only", "HEAD"]), "", "{script}");
        }
    }
}

#[test]
fn files_forced_in_and_taken_out() {
    // Forced in although the base ignores it: a secret in a commit.
    let lab = Lab::new();
    let document = lab.repo.run(&[], "git add -f ignored/cache").exits(11).json();
    assert_eq!(document["reason"], "unignored");
    lab.as_before();
    assert_eq!(lab.repo.git(&["ls-files", "ignored"]), "");
    let document =
        lab.repo.run(&[], "git add -f ignored/cache; git commit -qm secret").exits(11).json();
    assert_eq!(document["reason"], "unignored");
    lab.as_before();
    let document = lab.repo.run(&[], "git add -f ignored/cache; git commit -qm secret; git rm -q --cached ignored/cache; git commit -qm gone").exits(11).json();
    assert_eq!(document["reason"], "unignored", "each of the turn's commits");
    lab.as_before();
    lab.laws();

    // Taken out and ignored: leaves the commit, stays on disk.
    let lab = Lab::new();
    lab.repo.run(&[], "git rm -q --cached secret.txt; echo secret.txt >> .gitignore").exits(0);
    assert_eq!(lab.repo.git(&["ls-tree", "HEAD", "secret.txt"]), "");
    assert_eq!(lab.repo.read("secret.txt"), "0600\n");
    assert_eq!(lab.repo.status(), "?? dangling\n?? notes.txt");
    lab.laws();
    // Taken out and not ignored: `git add -A` would bring it back.
    let lab = Lab::new();
    lab.repo.run(&[], "git rm -q --cached secret.txt; echo x > x").exits(0);
    assert!(lab.repo.git(&["ls-tree", "HEAD", "secret.txt"]).contains("secret.txt"));
    assert_eq!(lab.repo.status(), "?? dangling\n?? notes.txt");
    lab.laws();
    // Staged, then changed: the tree counts.
    let lab = Lab::new();
    lab.repo
        .run(
            &[],
            "echo staged > README.md; git add README.md; echo later > README.md; git add notes.txt",
        )
        .exits(0);
    assert_eq!(lab.repo.git(&["show", "HEAD:README.md"]), "later");
    assert_eq!(lab.repo.git(&["show", "HEAD:notes.txt"]), "mine, untracked");
    assert_eq!(lab.repo.status(), "?? dangling");
    lab.laws();
    // The index in any state goes back.
    let lab = Lab::new();
    lab.repo.run(&[], "git rm -rq --cached .; git add -f ignored/cache; exit 3").exits(10);
    lab.as_before();
    assert_eq!(lab.repo.status(), "?? dangling\n?? notes.txt");
    lab.laws();
}

#[test]
fn other_refs_are_reported_and_left() {
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
fn every_stash_entry_is_pinned_at_open() {
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
fn a_stash_by_the_turn() {
    let lab = Lab::new();
    lab.repo.run(&[], "echo x >> README.md; git stash -q; echo y > y").exits(0);
    assert_eq!(lab.repo.read("README.md"), "hello\n");
    assert_eq!(lab.repo.git(&["show", "HEAD:y"]), "y");
    lab.repo.run(&[], "echo x >> README.md; git stash -q -u; exit 3").exits(10);
    assert_eq!(lab.repo.read("notes.txt"), "mine, untracked\n");
    lab.laws();
}

#[test]
fn the_branch_and_its_log() {
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
fn two_ledgers_are_refused() {
    let repo = Repo::new();
    repo.run(&[], "true").exits(0);
    let other = repo.outside().join("state");
    let ran = repo.finish(repo.run_command(&[], "touch ran").env("WORKTX_STATE_DIR", &other));
    assert!([1, 21].contains(&ran.code), "{} {}", ran.code, ran.stderr);
    assert!(!repo.path("ran").exists());
    assert!(!other.join("ledger.db").exists());

    let repo = Repo::new();
    let state = repo.outside().join("state");
    repo.finish(repo.run_command(&[], "echo x > x").env("WORKTX_STATE_DIR", &state)).exits(0);
    assert!(state.join("ledger.db").exists() && !repo.path(".git/worktx/ledger.db").exists());
    assert_eq!(fs::metadata(&state).expect("there").mode() & 0o777, 0o700);
    repo.run(&[], "echo y > y").exits(0);
    assert!(!repo.path(".git/worktx/ledger.db").exists(), "the pointer is followed");
    repo.finish(repo.run_command(&[], "true").env("WORKTX_STATE_DIR", repo.path("src/state")))
        .exits(1);

    // While an attempt runs, with the pointer hidden.
    let (ready, go) = (Gate::new(&repo, "ready"), Gate::new(&repo, "go"));
    let script =
        format!("echo > {}; cat {} > /dev/null", ready.path().display(), go.path().display());
    let first = repo.spawn(&mut repo.run_command(&[], &script));
    ready.wait();
    fs::rename(repo.path(".git/worktx/state-dir"), repo.outside().join("hidden")).expect("moved");
    let other = repo.outside().join("third");
    let ran = repo.finish(repo.run_command(&[], "touch ran").env("WORKTX_STATE_DIR", &other));
    assert!([21, 22].contains(&ran.code), "{} {}", ran.code, ran.stderr);
    fs::rename(repo.outside().join("hidden"), repo.path(".git/worktx/state-dir")).expect("moved");
    go.open();
    Repo::wait(first).exits(0);
}

#[test]
fn a_second_ledger_meets_the_marker() {
    let lab = Lab::new();
    lab.killed_at("turn_over", &["--execution-id", "job"], "echo x > x");
    // The first ledger is nowhere to be found.
    let home = lab.repo.path(".git/worktx");
    fs::rename(home.join("ledger.db"), lab.repo.outside().join("hidden")).expect("moved");
    let other = lab.repo.outside().join("other");
    let ran = lab.repo.finish(
        lab.repo.run_command(&["--wait", "60s"], "touch ran").env("WORKTX_STATE_DIR", &other),
    );
    assert!([1, 21].contains(&ran.code), "{} {}", ran.code, ran.stderr);
    assert!(!lab.repo.path("ran").exists());
    // Nor is a new one made at the old place in silence.
    let ran = lab.repo.run(&["--wait", "60s"], "touch ran");
    assert!([1, 21].contains(&ran.code), "{} {}", ran.code, ran.stderr);
    assert!(!lab.repo.path("ran").exists());
    fs::rename(lab.repo.outside().join("hidden"), home.join("ledger.db")).expect("moved");
    lab.reconcile();
    assert_eq!(lab.state("job", 1).1, "interrupted");
    lab.laws();
}

#[test]
fn a_ledger_that_cannot_be_used_is_an_error_before_the_turn() {
    let repo = Repo::new();
    repo.run(&[], "true").exits(0);
    let ledger = repo.path(".git/worktx/ledger.db");
    let whole = fs::read(&ledger).expect("readable");
    let ran = |word: &str| {
        let ran = repo.run(&[], "touch ran");
        assert_eq!(ran.code, 1, "{word}: {}{}", ran.stdout, ran.stderr);
        assert!(!repo.path("ran").exists(), "{word}");
        assert!(ran.stderr.to_lowercase().contains(word), "{word}: {}", ran.stderr);
    };
    fs::write(&ledger, &whole[..whole.len() / 2]).expect("written");
    ran("ledger");
    fs::write(&ledger, &whole).expect("written");
    repo.sql("pragma user_version = 99");
    ran("newer");
    fs::write(&ledger, &whole).expect("written");
    {
        // Locked by another process.
        let mut sqlite = repo.command("sqlite3");
        sqlite
            .arg(&ledger)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut child = sqlite.spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(b"begin exclusive; select 'locked';\n").expect("written");
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("read");
        ran("lock");
        drop(stdin);
        child.wait().expect("it ends");
    }
    repo.run(&[], "echo x > x").exits(0);
    assert_eq!(repo.sql("select count(*) from attempt where settled_at is null"), "0");
}

#[test]
fn a_lock_file_that_the_turn_unlinks_is_noticed() {
    for script in
        ["rm .git/worktx-workspace", "rm .git/worktx-workspace; touch .git/worktx-workspace"]
    {
        for end in [0, 3] {
            let lab = Lab::new();
            let document = lab
                .repo
                .run(&["--execution-id", "job"], &format!("echo x > x; {script}; exit {end}"))
                .exits(20)
                .json();
            assert_eq!(document["reason"], "lock_lost", "{script}");
            assert_eq!(lab.repo.read("x"), "x\n");
            assert_eq!(lab.repo.head(), lab.base);
            lab.laws();
        }
    }
}

#[test]
fn an_ordinary_user_with_closed_doors() {
    if !is_root() || !has("setpriv") {
        eprintln!("SKIPPED: needs root and setpriv to become somebody else");
        return;
    }
    let repo = Repo::new();
    let status = repo.command("chown").args(["-R", "65534:65534"]).arg(repo.outside()).status();
    assert!(status.expect("it starts").success());
    let run = |script: &str| {
        let mut command = repo.command("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", crate::support::WORKTX])
            .args(["run", "--json", "--", "sh", "-c", script]);
        repo.finish(&mut command)
    };
    let probe = run("true");
    if probe.code != 0 {
        eprintln!("SKIPPED: the binary cannot be run as another user: {}", probe.stderr);
        return;
    }
    let before = repo.listing();
    let wreck = "mkdir -p a/b; echo x > a/b/c; chmod 000 a/b/c a/b a; chmod 000 src/deep src README.md; chmod 555 .; exit 3";
    run(wreck).exits(10);
    assert_eq!(repo.listing(), before);
    let ran = run("mkdir a; echo x > a/c; chmod 000 a/c");
    assert_eq!(ran.exits(11).json()["reason"], "unstorable");
    assert_eq!(repo.listing(), before);
    let ran = run("mkdir a; echo x > a/c; chmod 000 a");
    assert_eq!(ran.exits(11).json()["reason"], "unstorable");
    assert_eq!(repo.listing(), before);
}

#[test]
fn a_root_reached_by_a_symlink_and_from_below() {
    let repo = Repo::new();
    let alias = repo.outside().join("alias");
    symlink(&repo.root, &alias).expect("made");
    repo.finish(repo.run_command(&[], "echo x > x").current_dir(alias.join("src"))).exits(0);
    assert_eq!(repo.git(&["show", "HEAD:src/x"]), "x");
    repo.finish(
        repo.run_command(&[], "echo y > y; rm -rf ../src; exit 3").current_dir(repo.path("src")),
    )
    .exits(10);
    assert_eq!(repo.status(), "");
}

#[test]
fn case_and_encoding_settings() {
    let lab = Lab::with(|repo| {
        repo.git(&["config", "core.ignorecase", "true"]);
        repo.git(&["config", "core.precomposeunicode", "true"]);
        repo.git(&["config", "core.filemode", "false"]);
        repo.git(&["config", "core.symlinks", "false"]);
        repo.git(&["config", "core.quotepath", "false"]);
        repo.git(&["config", "status.showUntrackedFiles", "no"]);
    });
    lab.repo.run(&[], "echo x > Readme.MD; chmod 755 README.md; echo ä > 'ä'; mkdir IGNORED; echo y > IGNORED/y; exit 3").exits(10);
    let mut now = lab.repo.listing();
    now.retain(|path, _| !path.starts_with("IGNORED"));
    assert_eq!(now, lab.before);
    lab.repo
        .run(&["--execution-id", "job"], "echo ä > 'ä'; chmod 755 README.md; echo x > script.sh")
        .exits(0);
    assert!(lab.repo.git(&["ls-tree", "HEAD", "README.md"]).starts_with("100644"));
    assert!(lab.repo.git(&["ls-tree", "HEAD", "script.sh"]).starts_with("100755"));
    lab.laws();
}
