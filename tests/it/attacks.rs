//! What a turn may try. A canary file outside of the tree must not change, a canary program must
//! not run.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;

use serde_json::Value;

use crate::lab::Lab;
use crate::support::{Ran, Repo, has, is_root};

const BYTES: &str = "the canary sings\n";

/// A lab with something outside that must not be touched and a program that must not run.
struct Trap {
    lab: Lab,
    file: PathBuf,
    dir: PathBuf,
    program: PathBuf,
    ran: PathBuf,
    was: (u32, u64, i64),
}

impl Trap {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(more: impl FnOnce(&Repo)) -> Self {
        let lab = Lab::with(more);
        let dir = lab.repo.outside().join("canary");
        fs::create_dir(&dir).expect("made");
        let file = dir.join("file");
        fs::write(&file, BYTES).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("set");
        let ran = lab.repo.outside().join("canary-ran");
        let text = format!("#!/bin/sh\necho \"$0 $*\" >> {}\ncat\nexit 0\n", ran.display());
        let program = lab.repo.script(&lab.repo.outside().join("evil").to_string_lossy(), &text);
        let meta = fs::metadata(&file).expect("there");
        let was = (meta.mode(), meta.ino(), meta.mtime_nsec());
        Self { lab, file, dir, program, ran, was }
    }

    fn repo(&self) -> &Repo {
        &self.lab.repo
    }

    /// A turn with `$CANARY`, `$DIR` and `$EVIL` set.
    fn run(&self, options: &[&str], script: &str) -> Ran {
        let mut command = self.repo().run_command(options, script);
        command.env("CANARY", &self.file).env("DIR", &self.dir).env("EVIL", &self.program);
        let ran = self.repo().finish(&mut command);
        self.sings();
        ran
    }

    /// The turn fails, and everything is as before.
    #[track_caller]
    fn undone(&self, script: &str) -> Value {
        let document = self.run(&[], &format!("{script}\nexit 3")).exits(10).json();
        self.lab.as_before();
        self.clear();
        self.lab.laws();
        document
    }

    /// No canary but the turn's own doing, which is cleared before git looks.
    #[track_caller]
    fn sings(&self) {
        assert_eq!(fs::read_to_string(&self.file).expect("readable"), BYTES);
        let meta = fs::metadata(&self.file).expect("there");
        assert_eq!(
            (meta.mode(), meta.ino(), meta.mtime_nsec()),
            self.was,
            "the canary was touched"
        );
        let count = fs::read_dir(&self.dir).expect("readable").count();
        assert_eq!(count, 1, "something was put beside the canary");
        if let Ok(text) = fs::read_to_string(&self.ran) {
            panic!("a planted program ran: {text}");
        }
    }

    fn clear(&self) {
        let _ = fs::remove_file(&self.ran);
    }
}

const CONFIG: &str = r#"
git config core.fsmonitor "$EVIL"
git config core.hooksPath "$(dirname "$EVIL")"
git config diff.external "$EVIL"
git config filter.x.clean "$EVIL"; git config filter.x.smudge "$EVIL"; git config filter.x.required true
git config merge.x.driver "$EVIL"
git config diff.x.textconv "$EVIL"
git config gpg.program "$EVIL"; git config commit.gpgsign true
git config core.sshCommand "$EVIL"; git config core.alternateRefsCommand "$EVIL"
git config core.editor "$EVIL"; git config core.pager "$EVIL"; git config core.askPass "$EVIL"
git config alias.status "!$EVIL"; git config credential.helper "!$EVIL"
git config uploadpack.packObjectsHook "$EVIL"
printf '[core]\n\tfsmonitor = %s\n' "$EVIL" > .git/planted; git config include.path planted
"#;

#[test]
fn attack_01_programs_in_the_configuration() {
    let trap = Trap::new();
    let config = fs::read_to_string(trap.repo().path(".git/config")).expect("readable");
    trap.undone(&format!("{CONFIG} echo x > x"));
    assert_eq!(fs::read_to_string(trap.repo().path(".git/config")).expect("readable"), config);

    let document = trap.run(&[], &format!("echo x > x; {CONFIG}")).exits(0).json();
    assert!(document["warnings"].to_string().contains("core.fsmonitor"), "{document}");
    let after = fs::read_to_string(trap.repo().path(".git/config")).expect("readable");
    for word in ["evil", "planted", "gpgsign = true\n\tprogram"] {
        assert!(!after.contains(word), "{after}");
    }
    // What git itself runs afterwards, and the next transaction, meet nothing of it.
    trap.repo().git(&["status"]);
    trap.run(&[], "echo y > y").exits(0);
    trap.lab.laws();
    trap.sings();
}

#[test]
fn attack_01_worktree_configuration() {
    let trap = Trap::new();
    let plant = "git config extensions.worktreeConfig true; \
                 git config --worktree core.fsmonitor \"$EVIL\"; echo x > x";
    trap.undone(plant);
    trap.run(&[], plant);
    trap.run(&[], "echo y > y");
    trap.repo().git(&["status"]);
    trap.sings();
}

#[test]
fn attack_02_hooks_of_every_name() {
    let trap = Trap::new();
    let plant = "mkdir -p .git/hooks; for h in applypatch-msg pre-applypatch post-applypatch pre-commit \
        pre-merge-commit prepare-commit-msg commit-msg post-commit pre-rebase post-checkout post-merge \
        pre-push post-rewrite reference-transaction post-index-change pre-auto-gc fsmonitor-watchman; \
        do cp \"$EVIL\" .git/hooks/$h; done; echo x > x";
    trap.undone(plant);
    assert!(!trap.repo().path(".git/hooks/reference-transaction").exists());
    let document = trap.run(&[], plant).exits(0).json();
    assert!(document["warnings"].to_string().contains("hooks/"), "{document}");
    assert!(!trap.repo().path(".git/hooks/post-index-change").exists());
    trap.repo().git(&["commit", "-q", "--allow-empty", "-m", "x"]);
    trap.sings();
}

#[test]
fn attack_03_attributes() {
    for (attribute, code) in [
        ("filter=x", 11),
        ("ident", 11),
        ("working-tree-encoding=UTF-16", 11),
        ("diff=x merge=x", 0),
    ] {
        let trap = Trap::new();
        let script = format!(
            "echo '* {attribute}' > .gitattributes; echo x > x; \
             git config filter.x.clean \"$EVIL\"; git config filter.x.required true"
        );
        trap.undone(&script);
        let document = trap.run(&[], &script).exits(code).json();
        if code == 11 {
            assert_eq!(document["reason"], "filter_unsupported", "{attribute}");
            trap.lab.as_before();
        }
        trap.lab.laws();
    }
}

#[test]
fn attack_03_a_driver_that_is_there_at_open_never_runs() {
    let trap = Trap::new();
    let evil = trap.program.to_string_lossy().into_owned();
    trap.repo().git(&["config", "filter.x.clean", &evil]);
    trap.repo().git(&["config", "filter.x.smudge", &evil]);
    let document = trap.run(&[], "echo '*.txt filter=x' > .gitattributes; echo x > x.txt");
    assert_eq!(document.exits(11).json()["reason"], "filter_unsupported");
    trap.lab.as_before();
}

#[test]
fn attack_04_the_git_directory_replaced() {
    for (script, code) in [
        ("git config core.worktree \"$DIR\"; echo x > x", 10),
        ("git config core.bare true; echo x > x", 10),
        ("mv .git ../moved; ln -s ../moved .git; echo x > x", 20),
        ("mv .git ../moved; echo 'gitdir: ../moved' > .git; echo x > x", 20),
        ("mv .git ../moved; cp -r ../moved .git; echo x > x", 20),
        ("mv .git ../moved; mkdir .git; echo x > x", 20),
        ("mv .git ../moved; ln -s \"$DIR\" .git; echo x > x", 20),
        ("echo \"$DIR\" > .git/commondir; echo x > x", 20),
    ] {
        let trap = Trap::new();
        let document = trap.run(&[], &format!("{script}; exit 3")).exits(code).json();
        assert!(!document["reason"].is_null(), "{script}");
        if code == 10 {
            trap.lab.as_before();
            trap.lab.laws();
        } else {
            assert_eq!(trap.repo().read("x"), "x\n", "{script}: untouched");
        }
        trap.sings();
    }
}

#[test]
fn attack_04_git_variables_of_the_caller_are_not_obeyed() {
    let trap = Trap::new();
    let mut command = trap.repo().run_command(
        &[],
        "unset GIT_DIR GIT_INDEX_FILE GIT_WORK_TREE GIT_OBJECT_DIRECTORY; echo x > x",
    );
    command
        .env("GIT_DIR", &trap.dir)
        .env("GIT_WORK_TREE", &trap.dir)
        .env("GIT_INDEX_FILE", &trap.file)
        .env("GIT_OBJECT_DIRECTORY", &trap.dir);
    trap.repo().finish(&mut command).exits(0);
    assert_eq!(trap.repo().git(&["show", "HEAD:x"]), "x");
    trap.sings();
}

#[test]
fn attack_05_index_flags() {
    let trap = Trap::new();
    let hide = "git update-index --assume-unchanged README.md; git update-index --skip-worktree secret.txt; \
                echo hidden > README.md; echo hidden2 > secret.txt";
    trap.undone(hide);
    trap.run(&[], hide).exits(0);
    assert_eq!(trap.repo().git(&["show", "HEAD:README.md"]), "hidden");
    assert_eq!(trap.repo().git(&["show", "HEAD:secret.txt"]), "hidden2");
    assert_eq!(trap.repo().status(), "?? dangling\n?? notes.txt");
    trap.lab.laws();
    // Same size, same time.
    let trap = Trap::new();
    let racy =
        "touch -r README.md ../stamp; printf 'HELLO\\n' > README.md; touch -r ../stamp README.md";
    trap.undone(racy);
    trap.run(&[], racy).exits(0);
    assert_eq!(trap.repo().git(&["show", "HEAD:README.md"]), "HELLO");
    // A split index.
    let trap = Trap::new();
    trap.undone("git update-index --split-index; echo x > x; git add x");
    let ran = trap.run(&[], "git update-index --split-index; echo x > x; git add x");
    assert!([0, 11, 20].contains(&ran.code), "{}", ran.stderr);
    trap.lab.laws();
}

#[test]
fn attack_06_excludes_that_hide() {
    let trap = Trap::new();
    let hide = "echo '*' >> .git/info/exclude; echo '*' > .gitignore; echo x > x; \
                git config core.excludesFile \"$PWD/.all\"; echo '*' > .all; git sparse-checkout set nothing || true";
    trap.undone(hide);
    trap.run(&[], "git sparse-checkout set --no-cone /src; echo x > src/x");
    trap.lab.laws();
}

#[test]
fn attack_07_nested_repositories() {
    let trap = Trap::new();
    let make = "git init -q nested; echo a > nested/a; (cd nested && git add a && git commit -qm a); \
                git init -q unborn; echo b > unborn/b; git init -q --bare bare.git; echo x > x";
    let document = trap.undone(make);
    assert!(!document["refs"]["discarded"].as_array().expect("a list").is_empty());
    let document = trap.run(&[], make).exits(0).json();
    assert!(document["warnings"].to_string().contains("nested"), "{document}");
    assert_eq!(trap.repo().git(&["ls-tree", "HEAD", "nested"]), "");
    assert_eq!(trap.repo().git(&["show", "HEAD:x"]), "x");
    trap.lab.laws();
}

#[test]
fn attack_07_gitlinks_and_impossible_names() {
    for script in [
        "git update-index --add --cacheinfo 160000,$(git rev-parse HEAD),sub; git commit -qm link; mkdir sub",
        "mkdir -p .GIT; echo x > .GIT/config",
        "mkdir -p 'git~1'; echo x > 'git~1/config'",
        "mkdir -p sub/.git; echo x > sub/.git/x",
    ] {
        let trap = Trap::new();
        trap.undone(script);
        let ran = trap.run(&[], script);
        assert!([0, 11, 20].contains(&ran.code), "{script}: {}", ran.stderr);
        trap.repo().fsck();
        let names = trap.repo().git(&["ls-tree", "-r", "--name-only", "HEAD"]);
        assert!(
            !names.contains(".GIT") && !names.contains("git~1") && !names.contains("sub"),
            "{script}: {names}"
        );
    }
}

#[test]
fn attack_08_objects() {
    // A loose object of the base is swapped for another, or is gone.
    for (script, codes) in [
        (
            "f=$(git rev-parse HEAD:README.md | sed 's,^..,&/,'); chmod u+w .git/objects/$f; rm -f .git/objects/$f; rm README.md",
            &[20][..],
        ),
        (
            "f=$(git rev-parse HEAD:README.md | sed 's,^..,&/,'); g=$(git rev-parse HEAD:src/lib.rs | sed 's,^..,&/,'); cp -f .git/objects/$g .git/objects/$f; rm README.md",
            &[20],
        ),
        ("printf '%s\\n' \"$DIR\" > .git/objects/info/alternates; rm README.md", &[10]),
        (
            "git replace $(git rev-parse HEAD:README.md) $(git rev-parse HEAD:src/lib.rs); rm README.md",
            &[10],
        ),
        ("git rev-parse HEAD > .git/shallow; rm README.md", &[10, 20]),
        (
            "mkdir -p .git/info; echo \"$(git rev-parse HEAD)\" > .git/info/grafts; rm README.md",
            &[10],
        ),
    ] {
        let trap = Trap::new();
        let ran = trap.run(&[], &format!("{script}; exit 3"));
        assert!(codes.contains(&ran.code), "{script}: {}{}", ran.stdout, ran.stderr);
        if ran.code == 10 {
            trap.lab.as_before();
        }
    }
}

#[test]
fn attack_09_our_refs() {
    let own = "r=refs/worktx/tx/$WORKTX_EXECUTION_ID/1/base";
    for script in [
        "git update-ref -d $r",
        "git update-ref $r $(git commit-tree -m forged HEAD^{tree})",
        "git pack-refs --all",
        "mv .git/refs/worktx ../stolen",
        "rm -rf .git/refs/worktx; ln -s \"$DIR\" .git/refs/worktx",
        "git update-ref -d $r; git update-ref refs/worktx/tx/$WORKTX_EXECUTION_ID HEAD",
        "git update-ref refs/worktx/tx/$WORKTX_EXECUTION_ID/1/discarded HEAD",
        "git update-ref refs/worktx/tx/$WORKTX_EXECUTION_ID/1/candidate HEAD",
    ] {
        let trap = Trap::new();
        let document = trap.run(&[], &format!("{own}; echo x > x; {script}; exit 3"));
        assert!([10, 20].contains(&document.code), "{script}: {}", document.stderr);
        let document = document.json();
        if document["outcome"] == "rolled_back" {
            trap.lab.as_before();
            let discarded = document["refs"]["discarded"][0].as_str().expect("a ref").to_owned();
            assert_eq!(trap.repo().git(&["show", &format!("{discarded}:x")]), "x", "{script}");
        }
        trap.sings();
        let trap = Trap::new();
        let ran = trap.run(&[], &format!("{own}; echo x > x; {script}"));
        assert!([0, 20].contains(&ran.code), "{script}: {}", ran.stderr);
        trap.lab.l2_never_blessed();
    }
}

#[test]
fn attack_10_planted_locks() {
    for lock in
        ["index.lock", "HEAD.lock", "refs/heads/main.lock", "packed-refs.lock", "config.lock"]
    {
        let trap = Trap::new();
        let ran = trap.run(&[], &format!("echo x > x; echo planted > .git/{lock}"));
        assert!([0, 20].contains(&ran.code), "{lock}: {}{}", ran.stdout, ran.stderr);
        if ran.code == 20 {
            assert_eq!(ran.json()["reason"], "foreign_lock", "{lock}");
        }
        assert_eq!(trap.repo().read(&format!(".git/{lock}")), "planted\n");
        let next = trap.run(&[], "true");
        assert!([0, 21].contains(&next.code), "{lock}: {}", next.stderr);
        assert_eq!(trap.repo().read(&format!(".git/{lock}")), "planted\n");
    }
}

#[test]
fn attack_11_poison_for_later() {
    let trap = Trap::new();
    let plant = "git remote add evil ext::\"$EVIL\"; echo '*.c filter=x' > .git/info/attributes; \
                 echo 'x' > .git/info/sparse-checkout; git worktree add -q ../planted 2>/dev/null; echo x > x";
    let before = fs::read_to_string(trap.repo().path(".git/config")).expect("readable");
    trap.undone(plant);
    assert_eq!(fs::read_to_string(trap.repo().path(".git/config")).expect("readable"), before);
    assert!(!trap.repo().path(".git/info/attributes").exists());
}

#[test]
fn attack_12_the_git_directory_is_gone() {
    for script in [
        "rm -rf .git",
        "rm -rf .git/objects",
        "rm -f .git/HEAD",
        "rm -rf .git/refs",
        "rm -f .git/index",
        "rm -rf .git/worktx",
        "rm -f .git/worktx/ledger.db",
        "rm -rf .git/worktx/manifest",
        "rm -rf .git/worktx/attempts",
        "rm -f .git/worktx-workspace",
        "rm -f .git/worktx-marker",
        "echo > .git/HEAD",
        "echo garbage > .git/index",
        "echo garbage > .git/worktx/ledger.db",
    ] {
        for end in ["exit 3", "exit 0"] {
            let trap = Trap::new();
            let ran = trap.run(&[], &format!("echo x > x; rm -f notes.txt; {script}; {end}"));
            assert!([0, 10, 20].contains(&ran.code), "{script}: {}{}", ran.stdout, ran.stderr);
            if ran.code == 10 {
                trap.lab.as_before();
            } else {
                assert_eq!(trap.repo().read("x"), "x\n", "{script}, {end}: the tree is untouched");
            }
            eprintln!("{script}, {end}: {} {}", ran.code, ran.stderr);
        }
    }
}

#[test]
fn attack_13_symlinks_out_of_the_tree() {
    let trap = Trap::new();
    trap.undone("rm -rf src; ln -s \"$DIR\" src");
    trap.undone("mv src ../away; ln -s ../away src; rm -rf ../away");
    trap.undone("rm -rf src/deep; ln -s \"$DIR\" src/deep; ln -sf \"$CANARY\" README.md; ln -s \"$CANARY\" new");
    trap.undone("rm -rf src; mkdir src; ln -s \"$CANARY\" src/lib.rs; ln -s \"$DIR\" src/deep; rm -rf empty; ln -s \"$DIR\" empty");
    trap.run(&[], "rm -rf src/deep; ln -s \"$DIR\" src/deep; ln -s \"$CANARY\" new").exits(0);
    assert!(trap.repo().git(&["ls-tree", "HEAD", "src/deep"]).starts_with("120000"));
    trap.lab.laws();
}

#[test]
fn attack_14_hard_links() {
    let trap = Trap::new();
    trap.undone("ln -f \"$CANARY\" README.md; ln \"$CANARY\" linked");
    trap.undone("rm notes.txt; ln \"$CANARY\" notes.txt");
    let trap = Trap::new();
    let ran = trap.run(&["--check", "echo spoiled > README.md; chmod 777 README.md"], "echo x > x");
    ran.exits(0);
    assert_eq!(trap.repo().read("README.md"), "hello\n");
}

#[test]
fn attack_15_special_files() {
    let trap = Trap::new();
    trap.undone("rm README.md; mkfifo README.md; mkfifo src/pipe; rm notes.txt; mkfifo notes.txt");
    let document = trap
        .run(&[], "mkfifo pipe; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'; rm README.md; mkfifo README.md; echo x > x")
        .exits(0)
        .json();
    assert!(document["warnings"].to_string().contains("pipe"), "{document}");
    assert_eq!(trap.repo().git(&["show", "HEAD:x"]), "x");
    assert_eq!(trap.repo().git(&["ls-tree", "HEAD", "pipe", "sock"]), "");
    trap.lab.laws();
}

#[test]
fn attack_15_a_post_check_leaves_special_files() {
    let trap = Trap::new();
    let check = "rm README.md; mkfifo README.md; mkfifo more; mkdir -p a/b; mkfifo a/b/c; rm -rf src; ln -s / src";
    trap.run(&["--check", check], "echo x > x").exits(0);
    assert_eq!(trap.repo().status(), "?? dangling\n?? notes.txt");
    assert!(!trap.repo().path("more").exists() && !trap.repo().path("a").exists());
    trap.lab.laws();
}

#[test]
fn attack_16_sizes_and_depth() {
    let trap = Trap::new();
    let document = trap.run(&[], "truncate -s 300G huge; echo x > x").exits(11).json();
    assert_eq!(document["reason"], "too_large");
    trap.lab.as_before();
    let deep = "python3 -c 'import os
for i in range(1500): os.mkdir(\"dddddddd\"); os.chdir(\"dddddddd\")
open(\"f\", \"w\")'";
    trap.undone(deep);
    let document = trap.run(&[], deep).exits(11).json();
    assert_eq!(document["reason"], "unstorable");
    trap.lab.as_before();
    trap.lab.laws();
    let trap = Trap::new();
    trap.undone("truncate -s 300G README.md; truncate -s 200G src/new");
}

#[test]
fn attack_19_permissions() {
    if is_root() && !std::path::Path::new("/usr/bin/setpriv").exists() {
        eprintln!("SKIPPED: no setpriv to be somebody else");
        return;
    }
    let trap = Trap::new();
    trap.undone("mkdir -p m/n; echo x > m/n/x; chmod 000 m/n m; chmod 555 src; chmod 000 src/deep README.md; chmod 000 .");
    let ran = trap.run(&[], "mkdir -p m/n; echo x > m/n/x; chmod 555 m/n m src");
    ran.exits(0);
    trap.lab.laws();
}

#[test]
fn attack_20_what_git_cannot_store() {
    let trap = Trap::new();
    trap.undone("rm -rf empty; mkdir -p empty2/e; chmod 755 secret.txt; chmod 700 src; chmod 1777 src/deep; chmod 4755 script.sh");
}

#[test]
fn attack_21_the_root_moved_away() {
    for script in [
        "cd ..; mv repo moved; mkdir repo; cp -r moved/.git repo/.git",
        "cd ..; mv repo moved; ln -s moved repo",
        "cd ..; mv repo moved; ln -s \"$DIR\" repo",
        "cd ..; mv repo moved",
    ] {
        let trap = Trap::new();
        let ran = trap.run(&[], &format!("echo x > x; {script}; exit 3"));
        assert!(ran.code == 20, "{script}: {} {}{}", ran.code, ran.stdout, ran.stderr);
        assert_eq!(
            fs::read_to_string(trap.repo().outside().join("moved/x")).expect("untouched"),
            "x\n"
        );
        if let Ok(document) = serde_json::from_str::<Value>(&ran.stdout) {
            assert!(!document["reason"].is_null(), "{document}");
        }
        eprintln!("{script}: {} {}", ran.code, ran.stderr);
    }
}

/// The work tree is the same, and is reached by another path than before.
#[test]
fn attack_21_a_folder_above_is_moved_and_linked() {
    let trap = Trap::new();
    let above = trap.repo().outside();
    let aside = above.with_extension("aside");
    let script = "echo poison > README.md; echo new > new; rm src/lib.rs
        mv \"$ABOVE\" \"$ABOVE.aside\"; ln -s \"$ABOVE.aside\" \"$ABOVE\"; exit 3";
    let mut command = trap.repo().run_command(&[], script);
    let ran = trap.repo().finish(command.env("ABOVE", &above));
    fs::remove_file(&above).expect("the link");
    fs::rename(&aside, &above).expect("moved back");
    assert!([10, 20].contains(&ran.code), "{} {}{}", ran.code, ran.stdout, ran.stderr);
    trap.sings();
    if ran.code == 10 {
        trap.lab.as_before();
    } else {
        assert!(trap.repo().path("new").exists(), "untouched");
    }
}

/// Written through a mapping; the handle waits in a socket that nobody reads, so that the file is not
/// let go of when its process ends.
#[test]
fn attack_23_a_mapping_whose_handle_is_parked() {
    if !has("python3") {
        println!("SKIPPED: no python3");
        return;
    }
    let trap = Trap::new();
    fs::write(trap.repo().outside().join("parked.py"), include_str!("parked.py")).expect("written");
    let document = trap.undone("python3 ../parked.py src/lib.rs");
    assert_eq!(document["reason"], "turn_failed");
    assert!(document["refs"]["discarded"][0].is_string(), "what it wrote is kept: {document}");
}

#[test]
fn attack_28_output_and_escapes() {
    let trap = Trap::new();
    let ran = trap.run(&[], "head -c 3000000 /dev/zero | tr '\\0' y; printf '\\033]0;evil\\007'; (exec sleep 300 &) ; exit 3");
    let document = ran.exits(10).json();
    assert!(!document["turn"]["killed"].as_array().expect("a list").is_empty());
    let check = "head -c 3000000 /dev/zero | tr '\\0' y; printf '\\033]0;evil\\007'; exit 1";
    let document = trap.run(&["--check", check], "echo x > x").exits(11).json();
    let output = document["post_check"]["output"].as_str().expect("text").to_owned();
    assert!(output.len() < 40_000, "{}", output.len());
    trap.lab.as_before();
}

#[test]
fn attack_30_forged_variables() {
    let trap = Trap::new();
    let mut command = trap.repo().run_command(
        &["--execution-id", "real"],
        "test \"$WORKTX_EXECUTION_ID\" = real && test \"$WORKTX_ATTEMPT\" = 1 && echo x > x",
    );
    command
        .env("WORKTX_EXECUTION_ID", "forged")
        .env("WORKTX_ATTEMPT", "7")
        .env("WORKTX_PREVIOUS", "/etc/passwd");
    trap.repo().finish(&mut command).exits(0);
}

#[test]
fn attack_31_the_post_checks_interpreter_and_helpers() {
    let trap = Trap::with(|repo| {
        repo.script("tool/sh", "#!/bin/sh\nexec /bin/sh \"$@\"\n");
        let text = format!("#!{}\nexit 1\n", repo.path("tool/sh").display());
        repo.script(".worktx/post-check", &text);
        repo.git(&["add", "-A"]);
        repo.git(&["commit", "-qm", "check"]);
    });
    for script in [
        "printf '#!/bin/sh\\nexit 0\\n' > tool/sh",
        "chmod -x .worktx/post-check",
        "rm .worktx/post-check",
        "rm .worktx/post-check; ln -s /bin/true .worktx/post-check",
        "rm tool/sh",
    ] {
        let ran = trap.run(&[], &format!("echo x > x; {script}"));
        assert_eq!(ran.code, 11, "{script}: {}", ran.stdout);
        trap.lab.as_before();
    }
}

#[test]
fn attack_35_the_ledger() {
    for script in [
        "echo garbage > .git/worktx/ledger.db",
        "truncate -s 0 .git/worktx/ledger.db",
        "rm .git/worktx/ledger.db; ln -s \"$CANARY\" .git/worktx/ledger.db",
        "rm -f .git/worktx/ledger.db .git/worktx/ledger.db-wal .git/worktx/ledger.db-shm",
        "chmod 000 .git/worktx/ledger.db",
    ] {
        let trap = Trap::new();
        trap.run(&[], "echo before > before").exits(0);
        let refs = trap.repo().own_refs();
        assert!(!refs.is_empty());
        trap.repo()
            .finish(trap.repo().command("sh").args(["-c", script]).env("CANARY", &trap.file));
        let ran = trap.run(&[], "touch ran");
        let root_can = script.starts_with("chmod") && is_root();
        assert!(ran.code == 1 || root_can, "{script}: {} {}{}", ran.code, ran.stdout, ran.stderr);
        assert!(!trap.repo().path("ran").exists() || root_can, "{script}");
        trap.sings();
    }
}

#[test]
fn attack_35_a_manifest_that_is_gone_does_not_empty_the_tree() {
    let trap = Trap::with(|repo| {
        let config = repo.home().join(".config/worktx/config.toml");
        fs::create_dir_all(config.parent().expect("has one")).expect("made");
        fs::write(config, "on_interrupted = \"roll_back\"\n").expect("written");
    });
    for (point, end, gone) in [
        ("turn_over", "exit 3", "rm -rf .git/worktx/manifest"),
        ("rollback_recorded", "exit 3", "rm -rf .git/worktx/manifest"),
        ("committing_recorded", "exit 0", "rm -rf .git/worktx/manifest"),
        ("rollback_recorded", "exit 3", "rm -rf .git/worktx/attempts"),
        ("committing_recorded", "exit 0", "rm -rf .git/worktx/attempts"),
        ("gate_won", "exit 0", "rm -rf .git/worktx/attempts"),
    ] {
        let trap_now = if point == "turn_over" { &trap } else { &Trap::new() };
        trap_now.lab.killed_at(point, &["--execution-id", "job"], &format!("echo x > x; {end}"));
        let repo = trap_now.repo();
        repo.finish(repo.command("sh").args(["-c", gone])).exits(0);
        trap_now.lab.reconcile();
        assert_eq!(trap_now.lab.state("job", 1).0, "quarantined", "{point}, {gone}");
        assert_eq!(repo.read("README.md"), "hello\n", "{point}, {gone}");
        assert_eq!(repo.read("x"), "x\n", "{point}, {gone}");
        trap_now.lab.laws();
    }
}

#[test]
fn attack_35_an_old_copy_of_the_ledger() {
    let trap = Trap::new();
    let ledger = trap.repo().path(".git/worktx/ledger.db");
    let old = fs::read(&ledger).expect("readable");
    let job = &["--execution-id", "job"];
    let first = trap.run(job, "echo x > x; exit 3").exits(10).json();
    fs::write(&ledger, old).expect("written");
    // What the refs know counts too: no number is given twice, no pin is lost.
    let second = trap.run(job, "echo y > y; exit 3").exits(10).json();
    assert_eq!(second["attempt"], 2, "{second}");
    let discarded = first["refs"]["discarded"][0].as_str().expect("a ref").to_owned();
    assert_eq!(trap.repo().git(&["show", &format!("{discarded}:x")]), "x");
    trap.lab.laws();
}

#[test]
fn attack_09_a_ref_in_the_place_of_a_pin() {
    let trap = Trap::new();
    let repo = trap.repo();
    trap.lab.killed_at("open_recorded", &["--execution-id", "job"], "echo x > x");
    let other = repo.git(&["commit-tree", "-m", "forged", "HEAD^{tree}"]);
    repo.git(&["update-ref", "refs/worktx/tx/job/1/base", &other]);
    trap.lab.reconcile();
    assert_eq!(trap.lab.state("job", 1).0, "rolled_back");
    assert_eq!(repo.git(&["rev-parse", "refs/worktx/tx/job/1/base"]), other, "not ours");
    trap.lab.laws();
    trap.run(&["--execution-id", "job"], "echo x > x").exits(0);
}

/// The index that is kept for the way back is another name of the same file: who writes into it in
/// place spoils both.
#[test]
fn an_index_that_is_written_into_in_place() {
    let repo = Repo::new();
    for (number, in_place) in [
        "printf spoilt > .git/index",
        "git rm -q --cached README.md; cp .git/index i; git reset -q; cat i > .git/index; rm i",
        "dd if=/dev/zero of=.git/index bs=1 seek=40 count=4 conv=notrunc 2>/dev/null",
    ]
    .into_iter()
    .enumerate()
    {
        // An index of its own for each.
        repo.run(&[], &format!("echo {number} > round")).exits(0);
        let before = repo.git(&["ls-files", "-s"]);
        repo.run(&[], &format!("echo bad > new; {in_place}; exit 3")).exits(10);
        assert_eq!(repo.git(&["ls-files", "-s"]), before, "{in_place}");
        assert_eq!(repo.status(), "", "{in_place}");
    }
    // What a tree does not say is kept as a copy.
    repo.git(&["update-index", "--assume-unchanged", "round"]);
    repo.run(&[], "printf spoilt > .git/index; exit 3").exits(10);
    assert_eq!(repo.git(&["ls-files", "-v", "round"]), "h round");
    repo.fsck();
}
