//! Unusual repositories, and what a turn may do to an ordinary one.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use serde_json::Value;

use crate::lab::Lab;
use crate::support::{Repo, has, is_root};

fn reason_of(document: &Value, talk: &str) -> String {
    format!("{} {} {talk}", document["reason"], document["paths"])
}

/// Refused: nothing ran, nothing was touched, and the answer names `word`.
#[track_caller]
pub fn refused(repo: &Repo, word: &str) {
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
fn an_ordinary_user_with_no_thread_to_be_had() {
    if !is_root() || !has("setpriv") || !has("prlimit") {
        eprintln!("SKIPPED: needs root, setpriv and prlimit to become somebody else");
        return;
    }
    let repo = Repo::new();
    let status = repo.command("chown").args(["-R", "65533:65533"]).arg(repo.outside()).status();
    assert!(status.expect("it starts").success());
    let before = repo.listing();
    // Its parent is the supervisor, of which the coordinator is the parent.
    let script = "up() { sed -n 's/^PPid:[[:space:]]*//p' /proc/$1/status; }
        echo two > README.md; echo new > new
        prlimit --pid $(up $(up $$)) --nproc=1:1 || exit 9
        exit 3";
    let mut command = repo.command("setpriv");
    command
        .args(["--reuid=65533", "--regid=65533", "--clear-groups", crate::support::WORKTX])
        .args(["run", "--json", "--", "sh", "-c", script]);
    assert_eq!(repo.finish(&mut command).exits(10).json()["turn"]["exit_code"], 3);
    assert_eq!(repo.listing(), before);
}

#[test]
fn a_base_that_the_turn_damaged_is_quarantined_where_it_is_needed() {
    let lose = "id=$(git rev-parse HEAD:.gitignore); rm -f .git/objects/$(echo $id | cut -c1-2)/$(echo $id | cut -c3-)";
    let run = |script: &str| {
        let repo = Repo::new();
        std::fs::write(repo.path(".gitignore"), "*.o\n").expect("written");
        repo.git(&["add", ".gitignore"]);
        repo.git(&["commit", "-q", "-m", "rules"]);
        let ran = repo.finish(&mut repo.run_command(&["--execution-id", "x"], script));
        (repo, ran)
    };
    let (repo, ran) = run(&format!("{lose}; echo x > .gitignore; exit 3"));
    ran.exits(20);
    let shown = repo.finish(&mut repo.worktx(&["show", "x", "--json"]));
    assert_eq!(shown.json()["attempts"][0]["state"], "quarantined", "{}", shown.stdout);
    // What stands in the tree as the base has it is not read out of the base.
    let (repo, ran) = run(&format!("{lose}; touch new.o new; exit 3"));
    ran.exits(10);
    assert!(repo.path("new.o").exists() && !repo.path("new").exists());
    // Nor does an undo take what it ignores for somebody's work.
    let (repo, ran) =
        run(&format!("{lose}; mkdir new; echo x > new/x; echo own > new/own.o; exit 3"));
    ran.exits(10);
    assert_eq!((repo.read("new/own.o").as_str(), repo.path("new/x").exists()), ("own\n", false));
    assert!(repo.git(&["for-each-ref", "refs/worktx/**/rescue/**"]).is_empty());
}

/// Trees are read before the turn and after it: what was there before says nothing of now.
#[test]
fn trees_of_the_base_that_the_turn_took_away() {
    for code in [0, 3] {
        let repo = Repo::new();
        let take = "rm -f .git/objects/$(git rev-parse HEAD^{tree} | sed 's|^..|&/|')";
        let script = format!("{take}; echo x > src/new; exit {code}");
        repo.finish(&mut repo.run_command(&[], &script)).exits(20);
        assert_eq!(repo.read("src/new"), "x\n", "nothing was touched");
    }
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

/// So many files of so long names that the index has more than a MiB.
fn with_large_index(repo: &Repo) {
    let long = "x".repeat(150);
    std::fs::create_dir(repo.path("many")).expect("made");
    for number in 0..5_500 {
        std::fs::write(repo.path(format!("many/{long}{number}")), "one").expect("written");
    }
    repo.git(&["add", "many"]);
    repo.git(&["commit", "-q", "-m", "many"]);
}

/// On tmpfs what is written through a mapping, which was read before, gives a file no time: only the bytes
/// tell, and a commit's index is made of them. By the turn, and by what runs after the seal.
#[test]
fn an_index_that_was_written_through_a_mapping() {
    let memory = std::path::Path::new("/dev/shm");
    if !memory.is_dir() || !has("python3") {
        println!("SKIPPED: needs /dev/shm and python3");
        return;
    }
    let spoil = "python3 -c \"
import mmap
with open('.git/index', 'r+b') as file:
    with mmap.mmap(file.fileno(), 0) as seen:
        sum(seen[:4096])
        seen[52:72] = bytes(20)
\"";
    let by_turn = format!("{spoil}; echo three > new");
    let cases = [(vec![], by_turn.as_str()), (vec!["--check", spoil], "echo three > new")];
    for (options, script) in cases {
        let dir = tempfile::tempdir_in(memory).expect("a folder");
        let repo = Repo::at(dir.path());
        with_large_index(&repo);
        let run = |options: &[&str], script| repo.finish(&mut repo.run_command(options, script));
        run(&[], "echo two > new").exits(0);
        run(&[], "echo two > other").exits(0);
        run(&options, script).exits(20);
        assert_eq!(repo.git(&["show", "HEAD:new"]), "two");
    }
}

#[test]
fn a_large_index_is_kept_by_one_name() {
    let repo = Repo::new();
    with_large_index(&repo);
    let index = repo.path(".git/index");
    let kept = repo.path(".git/worktx/manifest/main.index-kept");
    let is_kept = || {
        let inode = |path| std::fs::metadata(path).map(|meta| (meta.ino(), meta.nlink()));
        inode(&index).expect("there").0 == inode(&kept).expect("there").0
    };
    let run = |script: &str| repo.finish(&mut repo.run_command(&[], script));
    run("echo two > new; exit 3").exits(10);
    assert!(is_kept());
    let stat = || std::fs::metadata(&index).map(|meta| (meta.ino(), meta.ctime_nsec()));
    let before = stat().expect("there");
    run("echo two > new; exit 3").exits(10);
    assert_eq!(stat().expect("there"), before, "no other name");
    // A commit writes another one, which is kept at once.
    run("echo two > new").exits(0);
    assert!(is_kept());
    assert_eq!(repo.status(), "");

    let bytes = std::fs::read(&index).expect("read");
    run("rm .git/index; exit 3").exits(10);
    assert_eq!(std::fs::read(&index).expect("read"), bytes, "as it was");
    run("rm .git/index .git/worktx/manifest/main.index-kept; exit 3").exits(10);
    assert_eq!(repo.status(), "", "made anew");
    run("true").exits(0);
    // In place, with the old time: whoever holds a name of it holds the same bytes.
    let spoil = "touch -r .git/index t; printf '\\200' | dd of=.git/index bs=1 seek=72 conv=notrunc; touch -r t .git/index; exit 3";
    run(spoil).exits(10);
    assert_eq!(repo.git(&["ls-files", "-v"]).lines().filter(|l| l.starts_with('h')).count(), 0);
    assert_eq!(repo.status(), "");
}
