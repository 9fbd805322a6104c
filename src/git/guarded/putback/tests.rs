use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::git::guarded::{ChangeKind, GitChange};
use crate::git::testkit::Repo;

fn open() -> (Repo, Workspace, Snapshot) {
    let repo = Repo::new();
    repo.commit("file", "x");
    repo.git(&["config", "remote.o.url", "https://h/r"]);
    repo.git(&["config", "core.pager", "less"]);
    repo.write(".git/hooks/pre-push", "#!/bin/sh\n");
    let hook = repo.root().join(".git/hooks/pre-push");
    std::fs::set_permissions(hook, PermissionsExt::from_mode(0o755)).expect("set");
    let workspace = Workspace::discover(repo.root()).expect("found");
    let before = look(&workspace);
    (repo, workspace, before)
}

fn look(workspace: &Workspace) -> Snapshot {
    Snapshot::capture(workspace, None).expect("looked")
}

fn path(text: &str) -> RepoPath {
    RepoPath::new(text).expect("valid")
}

/// What a hostile turn leaves.
fn poison(repo: &Repo) {
    let git = repo.root().join(".git");
    repo.git(&["config", "core.fsmonitor", "/tmp/evil"]);
    repo.git(&["config", "core.pager", "evil"]);
    repo.git(&["config", "alias.st", "!evil"]);
    repo.git(&["config", "alias.lg", "log --oneline"]);
    repo.git(&["config", "user.name", "Turn"]);
    repo.git(&["config", "remote.o.url", "https://u:secret@h/other"]);
    repo.git(&["config", "--add", "include.path", "/dev/zero"]);
    repo.write(".git/hooks/pre-commit", "evil");
    repo.write(".git/hooks/deep/er/x", "evil");
    std::fs::remove_file(git.join("hooks/pre-push")).expect("removed");
    symlink("/bin/sh", git.join("hooks/pre-push")).expect("linked");
    repo.write(".git/objects/info/alternates", "/elsewhere\n");
    repo.write(".git/info/exclude", "*\n");
    repo.write(".git/config.worktree", "[core]\n\tsshCommand = evil\n");
    repo.write(".git/commondir", "/elsewhere\n");
}

#[test]
fn tells_every_change() {
    let (repo, workspace, before) = open();
    assert_eq!(before.compare(&look(&workspace)), []);
    poison(&repo);
    let changes = before.compare(&look(&workspace));
    let is = |file: &str, kind: &ChangeKind| {
        changes.contains(&GitChange { file: path(file), change: kind.clone() })
    };
    for file in ["hooks/pre-commit", "hooks/pre-push", "hooks/deep/er/x"] {
        assert!(is(file, &ChangeKind::Hook), "{file}");
    }
    assert!(is("objects/info/alternates", &ChangeKind::Alternates));
    assert!(is("info/exclude", &ChangeKind::Info));
    assert!(is("commondir", &ChangeKind::Other));
    let key = |file: &str, key: &str, before: &[&str], after: &[&str], runs_program| {
        let words = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let (before, after) = (words(before), words(after));
        is(file, &ChangeKind::ConfigKey { key: key.to_owned(), before, after, runs_program })
    };
    assert!(key("config", "core.pager", &["less"], &["evil"], true));
    assert!(key("config", "core.fsmonitor", &[], &["/tmp/evil"], true));
    assert!(key("config", "include.path", &[], &["/dev/zero"], true));
    assert!(key("config", "alias.st", &[], &["!evil"], true));
    assert!(key("config", "alias.lg", &[], &["log --oneline"], false));
    assert!(key("config", "remote.o.url", &["https://h/r"], &["https://…@h/other"], false));
    assert!(key("config.worktree", "core.sshcommand", &[], &["evil"], true));
    assert_eq!(changes.len(), 14);
    let json = serde_json::to_string(&changes).expect("plain data");
    assert_eq!(serde_json::from_str::<Vec<GitChange>>(&json).expect("read back"), changes);
}

#[test]
fn puts_everything_back_twice() {
    let (repo, workspace, before) = open();
    poison(&repo);
    let at_seal = look(&workspace);
    let json = serde_json::to_string(&before).expect("plain data");
    let before: Snapshot = serde_json::from_str(&json).expect("read back");
    // A crash left a prepared file.
    repo.write(".git/config.worktx-new", "half");
    let done = put_back(&workspace, &before, &at_seal, What::All).expect("ran");
    assert_eq!(done.blocked, []);
    assert_eq!(look(&workspace), before);
    assert!(!repo.root().join(".git/hooks/deep").exists());
    assert!(repo.root().join(".git/objects/info").exists());
    let again = put_back(&workspace, &before, &at_seal, What::All).expect("ran");
    assert_eq!(again, PutBack::default());
    assert_eq!(repo.git(&["config", "core.pager"]), "less");
}

#[test]
fn on_success_only_what_runs_programs() {
    let (repo, workspace, before) = open();
    poison(&repo);
    let at_seal = look(&workspace);
    for _ in 0..2 {
        let done = put_back(&workspace, &before, &at_seal, What::ProgramsOnly).expect("ran");
        assert_eq!(done.blocked, []);
    }
    let now = look(&workspace);
    let left = before.compare(&now);
    assert!(left.iter().all(|change| !change.is_dangerous()), "{left:?}");
    assert_eq!(repo.git(&["config", "user.name"]), "Turn");
    assert_eq!(repo.git(&["config", "remote.o.url"]), "https://u:secret@h/other");
    assert_eq!(repo.git(&["config", "alias.lg"]), "log --oneline");
    assert_eq!(repo.git(&["config", "core.pager"]), "less");
    assert!(!repo.try_git(&["config", "core.fsmonitor"]));
    assert!(!repo.root().join(".git/config.worktree").exists());
    assert_eq!(now.files[&path("info/exclude")], at_seal.files[&path("info/exclude")]);

    // Nothing dangerous: the file stays as it is, byte for byte.
    let before = look(&workspace);
    repo.git(&["config", "user.name", "Again"]);
    let at_seal = look(&workspace);
    let done = put_back(&workspace, &before, &at_seal, What::ProgramsOnly).expect("ran");
    assert_eq!(done, PutBack::default());
    assert_eq!(look(&workspace), at_seal);

    // A broken or missing configuration is put back whole.
    for broken in [Some("[core\n"), None] {
        let config = repo.root().join(".git/config");
        match broken {
            Some(text) => std::fs::write(&config, text).expect("written"),
            None => std::fs::remove_file(&config).expect("removed"),
        }
        let seen = look(&workspace);
        let changes = before.compare(&seen);
        assert!(matches!(changes[..], [GitChange { change: ChangeKind::ConfigFile, .. }]));
        put_back(&workspace, &before, &seen, What::ProgramsOnly).expect("ran");
        assert_eq!(look(&workspace), before);
    }
}

#[test]
fn leaves_alone_what_changed_since_the_seal() {
    let (repo, workspace, before) = open();
    poison(&repo);
    let at_seal = look(&workspace);
    repo.write(".git/hooks/pre-commit", "a person's");
    repo.write(".git/config.lock", "");
    let done = put_back(&workspace, &before, &at_seal, What::All).expect("ran");
    assert_eq!(done.blocked.len(), 2);
    assert!(done.blocked.contains(&(path("hooks/pre-commit"), Blocked::ChangedSince)));
    assert!(done.blocked.contains(&(path("config"), Blocked::Locked)));
    let hook = std::fs::read(repo.root().join(".git/hooks/pre-commit")).expect("read");
    assert_eq!(hook, b"a person's");
}

#[test]
fn follows_no_link_and_waits_for_nothing() {
    let (repo, workspace, before) = open();
    let git = repo.root().join(".git");
    let outside = repo.root().with_file_name("outside");
    std::fs::create_dir(&outside).expect("made");
    std::fs::write(outside.join("pre-push"), "canary").expect("written");
    symlink("hooks", git.join("inner")).expect("linked");
    let dir = std::fs::File::open(&git).expect("opened");
    assert!(content(&dir, &path("hooks/pre-push")).expect("looked").is_some());
    assert_eq!(content(&dir, &path("inner/pre-push")).expect("looked"), None);
    std::fs::rename(git.join("hooks"), git.join("gone")).expect("moved");
    symlink(&outside, git.join("hooks")).expect("linked");
    std::fs::remove_file(git.join("config")).expect("removed");
    rustix::fs::mknodat(CWD, git.join("config"), rustix::fs::FileType::Fifo, Mode::RWXU, 0)
        .expect("made");
    std::fs::remove_file(git.join("info/exclude")).expect("removed");
    std::fs::create_dir(git.join("info/exclude")).expect("made");
    let large = std::fs::File::create(git.join("info/grafts")).expect("made");
    large.set_len(1 << 40).expect("set");
    let at_seal = look(&workspace);
    assert!(before.compare(&at_seal).len() >= 4);
    let done = put_back(&workspace, &before, &at_seal, What::All).expect("ran");
    assert_eq!(done.blocked, []);
    assert_eq!(look(&workspace), before);
    assert_eq!(std::fs::read(outside.join("pre-push")).expect("there"), b"canary");
    assert_eq!(std::fs::read_dir(&outside).expect("there").count(), 1);
}

#[test]
fn hooks_elsewhere_in_the_git_directory_and_linked_work_trees() {
    let (repo, _, _) = open();
    repo.git(&["worktree", "add", "-qb", "side", "../side"]);
    let side = Workspace::discover(&repo.root().with_file_name("side")).expect("found");
    let own = repo.root().join(".git/own");
    let look = || Snapshot::capture(&side, Some(&own)).expect("looked");
    let before = look();
    repo.write(".git/own/pre-commit", "evil");
    repo.write(".git/worktrees/side/config.worktree", "[core]\n\tpager = evil\n");
    repo.git(&["worktree", "add", "-qb", "third", "../third"]);
    let at_seal = look();
    let changes = before.compare(&at_seal);
    let files: Vec<_> = changes.iter().map(|c| c.file.to_string()).collect();
    assert_eq!(files, ["own/pre-commit", "worktrees/side/config.worktree", "worktrees/third"]);
    let done = put_back(&side, &before, &at_seal, What::ProgramsOnly).expect("ran");
    assert_eq!((done.done.len(), done.blocked.len()), (2, 0));
    assert_eq!(look().files, before.files);
    assert!(repo.root().join(".git/worktrees/third").exists(), "reported, not removed");
}

#[test]
fn notes_that_git_itself_takes_are_no_change() {
    let (repo, workspace, _) = open();
    let before = look(&workspace);
    repo.git(&["update-server-info"]);
    assert!(repo.root().join(".git/info/refs").exists(), "git wrote its note");
    assert_eq!(before.compare(&look(&workspace)), []);
}
