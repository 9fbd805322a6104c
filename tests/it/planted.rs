//! What a turn leaves in the git directory, or makes of a folder of the base, and clones that lack
//! some of their history. None of it may keep the next attempt from its base.

use std::fs;

use serde_json::Value;

use crate::lab::{JOB, Lab};
use crate::server::start;
use crate::support::{Ran, Repo};

/// A clone of two commits on each of two branches, with more before them.
fn shallow() -> Lab {
    let source = Repo::new();
    let commit = |name: &str| {
        source.write(name, name);
        source.git(&["add", "-A"]);
        source.git(&["commit", "-qm", name]);
    };
    commit("one");
    source.git(&["checkout", "-qb", "side"]);
    for name in ["s1", "s2", "s3"] {
        commit(name);
    }
    source.git(&["checkout", "-q", "main"]);
    for name in ["two", "three"] {
        commit(name);
    }
    let repo = Repo::bare_home();
    let (from, to) = (format!("file://{}", source.root.display()), repo.root.display().to_string());
    let clone = ["clone", "-q", "--depth", "2", "--no-single-branch", &from, &to];
    repo.git_in(&repo.outside(), &clone);
    let lab = Lab::on(repo, |_| {});
    assert_eq!(lab.repo.git(&["rev-parse", "--is-shallow-repository"]), "true");
    lab
}

const OWN: &str = "echo t >> README.md; git commit -qam own";
const MERGE: &str = "git merge -q --no-edit --allow-unrelated-histories -m own origin/side";

/// The pin of what was undone stands on the turn's own last commit.
#[track_caller]
fn own_commits_are_kept(lab: &Lab) {
    let subject = ["log", "-1", "--format=%s", "refs/worktx/tx/job/1/discarded/1^"];
    assert_eq!(lab.repo.git(&subject), "own");
    lab.as_before();
    lab.laws();
}

#[test]
fn a_shallow_clone_is_a_base() {
    for script in ["true", OWN, MERGE] {
        let lab = shallow();
        lab.repo.run(JOB, &format!("{script}; echo x > x")).exits(0);
        assert_eq!(lab.repo.git(&["show", "HEAD:x"]), "x", "{script}");
        lab.laws();
    }
    for script in [OWN, MERGE] {
        let lab = shallow();
        let ran = lab.repo.run(JOB, &format!("{script}; echo x > x; exit 3")).exits(10);
        assert!(!ran.stdout.contains("own_commits_damaged"), "{}", ran.stdout);
        own_commits_are_kept(&lab);
    }
}

#[test]
fn a_shallow_clone_after_a_crash() {
    let lab = shallow();
    lab.killed_at("seal_recorded", JOB, &format!("{MERGE}; echo x > x"));
    lab.reconcile();
    assert_eq!(lab.repo.git(&["show", "HEAD:x"]), "x");
    lab.laws();
    let lab = shallow();
    lab.killed_at("rollback_recorded", JOB, &format!("{MERGE}; echo x > x; exit 3"));
    lab.reconcile();
    own_commits_are_kept(&lab);
}

/// What a turn says of where history ends hides nothing of its own commits.
#[test]
fn a_turn_does_not_say_where_history_ends() {
    let hide = "echo secret > ignored/key; git add -f ignored/key; git commit -qm one; \
                git rm -q ignored/key; git commit -qm two; git rev-parse HEAD >> .git/shallow";
    for lab in [shallow(), Lab::new()] {
        let ran = lab.repo.run(JOB, hide);
        assert!([11, 20].contains(&ran.code), "{}{}", ran.stdout, ran.stderr);
        assert_ne!(lab.status_of("job"), "success");
    }
    // A parent that is nowhere is no end of history, shallow or not.
    let forge = "id=$(git cat-file commit HEAD | sed 's/^author/parent 1111111111111111111111111111111111111111\\n&/' | \
                 sed \"s/^parent [^1].*/parent $(git rev-parse HEAD)/\" | git hash-object -t commit -w --stdin --literally); \
                 git reset -q --hard $id; git rev-parse HEAD >> .git/shallow";
    for lab in [shallow(), Lab::new()] {
        let ran = lab.repo.run(JOB, forge).exits(20);
        assert_eq!(ran.json()["reason"], "workspace_damaged", "{}", ran.stdout);
        lab.l3_no_limbo();
    }
}

const REPOSITORIES: [&str; 5] = [
    "git init -q src",
    "mkdir src/.git",
    "echo bytes > src/.git",
    "ln -s bytes src/.git",
    "git init -q empty; echo new > empty/new",
];

/// It is said that something is not committed.
#[track_caller]
fn warned(ran: &Ran, word: &str) {
    let warnings = ran.json()["warnings"].to_string();
    assert!(warnings.contains("not_committed") && warnings.contains(word), "{warnings}");
}

fn a_folder_becomes_a_repository(script: &str, with_server: bool) {
    let dir = if script.contains("empty") { "empty" } else { "src" };
    let mark = format!("{dir}/.git");
    let lab = Lab::new();
    let server = with_server.then(|| start(&lab.repo, &[]));
    let change = "echo x > x; echo more >> src/lib.rs";
    let fail = |script: &str| lab.repo.run(&[], &format!("{script}; {change}; exit 3")).exits(10);
    fail(script);
    assert!(fs::symlink_metadata(lab.repo.path(&mark)).is_err(), "{script}");
    lab.as_before();
    let ran = lab.repo.run(&["--check", "true"], &format!("{script}; {change}")).exits(0);
    warned(&ran, &mark);
    assert!(fs::symlink_metadata(lab.repo.path(&mark)).is_ok(), "{script}");
    let names = lab.repo.git(&["ls-tree", "-r", "--name-only", "HEAD"]);
    assert!(names.contains("\nx") && !names.contains(".git/"), "{names}");
    assert!(lab.repo.git(&["show", "HEAD:src/lib.rs"]).ends_with("more"));
    // It is there at the next open: no change of that turn.
    lab.repo.run(&[], "echo y > y; echo again >> src/lib.rs; exit 3").exits(10);
    assert!(fs::symlink_metadata(lab.repo.path(&mark)).is_ok(), "{script}");
    lab.repo.run(&[], "echo y > y; echo again >> src/lib.rs").exits(0);
    assert!(lab.repo.git(&["show", "HEAD:src/lib.rs"]).ends_with("again"));
    drop(server);
    lab.l2_never_blessed();
    if !with_server {
        lab.l3_no_limbo();
    }
}

#[test]
fn a_repository_in_a_folder_of_the_base() {
    for script in REPOSITORIES {
        a_folder_becomes_a_repository(script, false);
    }
    a_folder_becomes_a_repository(REPOSITORIES[0], true);
    let lab = Lab::new();
    let script = "echo bytes > src/.git; echo x > x; exit 3";
    lab.repo.run(JOB, script).exits(10);
    let spilled = lab.repo.git_dir().join("worktx/spill/job-1/1");
    assert_eq!(fs::read_to_string(spilled).expect("moved aside"), "bytes\n");
    lab.laws();
}

const INDEXES: [&str; 6] = [
    "mv .git/index i2; ln -s ../i2 .git/index",
    "rm .git/index; ln -s nowhere .git/index",
    "rm .git/index; mkfifo .git/index",
    "rm .git/index; mkdir .git/index",
    "echo garbage > .git/index",
    "chmod 0 .git/index; echo garbage > i; mv i .git/index; chmod 0 .git/index",
];

#[test]
fn an_index_that_is_no_file() {
    for own in ["", "echo own >> README.md; git commit -qam own; "] {
        for script in INDEXES {
            let lab = Lab::new();
            lab.repo.run(JOB, &format!("{own}{script}; echo x > x; exit 3")).exits(10);
            lab.as_before();
            assert_eq!(lab.repo.status(), "?? dangling\n?? notes.txt", "{script}");
            lab.laws();

            let lab = Lab::new();
            let ran = lab.repo.run(JOB, &format!("{own}{script}; echo x > x")).exits(20);
            assert_eq!(ran.json()["reason"], "workspace_damaged", "{script}");
            lab.repo.call(&["resolve", "job", "--discard"]).exits(0);
            lab.as_before();
            lab.laws();
        }
    }
    // One with something in it is nobody's to throw away.
    let lab = Lab::new();
    let ran = lab.repo.run(JOB, "rm .git/index; mkdir -p .git/index/x; exit 3").exits(20);
    assert_eq!(ran.json()["reason"], "restore_blocked");
    fs::remove_dir_all(lab.repo.git_dir().join("index")).expect("removed");
    lab.repo.call(&["resolve", "job", "--discard"]).exits(0);
    lab.as_before();
    lab.laws();
}

#[test]
fn a_ref_that_is_no_file() {
    for (name, make) in [
        ("../logs/refs/stash", "ln -s nowhere"),
        ("../logs/refs/stash", "mkfifo"),
        ("heads/planted", "ln -s a/f"),
        ("heads/planted", "ln -s main"),
        ("heads/planted", "ln -s ."),
        ("heads/planted", "ln -s ../../../src"),
        ("heads/planted", "mkfifo"),
        ("tags", "rm -r .git/refs/tags; ln -s heads"),
    ] {
        let lab = Lab::new();
        let script = format!("{make} .git/refs/{name}; echo x > x");
        lab.repo.run(&[], &format!("{script}; exit 3")).exits(10);
        lab.as_before();
        lab.repo.run(&[], "echo y > y").exits(0);
        lab.repo.run(&[], "echo z > z; exit 3").exits(10);
        assert_eq!(lab.repo.git(&["show", "HEAD:y"]), "y", "{script}");
        fs::remove_file(lab.repo.git_dir().join("refs").join(name)).expect("still there");
        lab.l1_nothing_lost();
        lab.l3_no_limbo();
    }
}

/// The branch itself, or HEAD: nobody vouches for what it says now.
#[test]
fn packed_refs_that_are_no_file() {
    for plant in ["ln -s ../../kept .git/packed-refs", "mkfifo .git/packed-refs"] {
        let lab = Lab::with(|repo| {
            repo.git(&["pack-refs", "--all"]);
        });
        let turn = format!("mv .git/packed-refs ../kept; {plant}; echo x > x; exit 3");
        let ran = lab.repo.run(JOB, &turn).exits(20);
        assert_eq!(ran.json()["reason"], "workspace_damaged", "{plant}");
        lab.repo.call(&["reconcile"]).exits(0);
        lab.repo.run(&[], "true").exits(21);
        let packed = lab.repo.git_dir().join("packed-refs");
        fs::remove_file(&packed).expect("there");
        fs::rename(lab.repo.root.parent().expect("has one").join("kept"), &packed).expect("moved");
        lab.repo.call(&["resolve", "job", "--discard"]).exits(0);
        lab.as_before();
        lab.laws();
    }
}

#[test]
fn a_branch_that_is_no_file() {
    for (file, script) in [
        ("refs/heads/main", "mv .git/refs/heads/main m; ln -s ../../../m .git/refs/heads/main"),
        ("refs/heads/main", "rm .git/refs/heads/main; mkfifo .git/refs/heads/main"),
        ("refs/heads/main", "echo garbage > .git/refs/heads/main"),
        ("HEAD", "rm .git/HEAD; ln -s refs/heads/main .git/HEAD"),
    ] {
        for exit in [0, 3] {
            let lab = Lab::new();
            let path = lab.repo.git_dir().join(file);
            let bytes = fs::read(&path).expect("readable");
            let ran = lab.repo.run(JOB, &format!("{script}; echo x > x; exit {exit}")).exits(20);
            assert_eq!(ran.json()["reason"], "branch_moved", "{script}");
            lab.repo.call(&["reconcile"]).exits(0);
            // What is kept needs no branch.
            let keep = exit == 3;
            if keep {
                lab.repo.call(&["resolve", "job", "--keep"]).exits(0);
            }
            fs::remove_file(&path).expect("there");
            fs::write(&path, bytes).expect("written");
            if keep {
                assert_eq!(lab.repo.git(&["show", "refs/worktx/tx/job/1/rescue/1:x"]), "x");
            } else {
                lab.repo.call(&["resolve", "job", "--discard"]).exits(0);
                lab.as_before();
            }
            lab.laws();
        }
    }
}

/// `git fsck --strict`, and who lets it look at what is pushed, must take what lands and what is
/// pinned.
#[test]
fn names_that_fsck_does_not_take() {
    for script in [
        "echo x > \"$Z\"",
        "mkdir \"$Z\"; echo x > \"$Z/config\"",
        "mkdir .gitattributes; echo x > .gitattributes/x",
        "mkdir -p a/.GITmodules; echo x > a/.GITmodules/x",
    ] {
        for own in ["", "; git add -A; git commit -qm own"] {
            let script = format!("Z=$(printf '.g\\342\\200\\214it'); {script}{own}");
            let lab = Lab::new();
            let document = lab.repo.run(JOB, &script).exits(11).json();
            assert_ne!(document["reason"], Value::Null, "{document}");
            lab.as_before();
            if own.is_empty() {
                lab.laws();
            }
        }
    }
    // What the base has is nobody's new mistake.
    let lab = Lab::with(|repo| {
        repo.write(".gitattributes/x", "x\n");
        repo.git(&["add", "-A", ".gitattributes"]);
        repo.git(&["commit", "-qm", "old"]);
    });
    lab.repo.run(JOB, "echo y >> .gitattributes/x").exits(0);
    lab.repo.run(&[], "echo z >> .gitattributes/x; exit 3").exits(10);
    assert_eq!(lab.repo.read(".gitattributes/x"), "x\ny\n");
}
