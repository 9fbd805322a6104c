use std::path::Path;

use super::*;
use crate::git::refs::Refs;
use crate::git::testkit::{Repo, text};
use crate::tx::id::AttemptNo;

fn key() -> AttemptKey {
    AttemptKey { execution: "Ex-1".parse().expect("valid"), attempt: AttemptNo(2) }
}

/// A work tree between open and seal.
struct Open<'a> {
    repo: &'a Repo,
    workspace: Workspace,
    branch: RefName,
    base: Oid,
    log: LogMark,
    vouched: HashSet<(Oid, Oid)>,
}

impl<'a> Open<'a> {
    fn at(repo: &'a Repo, root: &Path) -> Self {
        let workspace = Workspace::discover(root).expect("found");
        let refs = Refs::open(workspace.git_dir(), workspace.common_dir()).expect("opened");
        let (branch, base) = match refs.head().expect("read") {
            Head::Branch(name, id) => (name, id.expect("born")),
            Head::Detached(id) => (RefName("HEAD".to_owned()), id),
            Head::Other(text) => panic!("{text}"),
        };
        let log = mark_now(&workspace, &branch).expect("read");
        Self { repo, workspace, branch, base, log, vouched: HashSet::new() }
    }

    /// Runs a shell script as the turn (marked) or as somebody else.
    fn sh(&self, marked: bool, script: &str) {
        let git = self.repo.command(self.workspace.root());
        let mut sh = std::process::Command::new("sh");
        sh.args(["-ec", script]).current_dir(self.workspace.root()).env_clear();
        for (name, value) in git.get_envs() {
            sh.env(name, value.expect("set"));
        }
        if marked {
            sh.env("GIT_REFLOG_ACTION", mark(&key()))
                .env("GIT_CONFIG_COUNT", "1")
                .env("GIT_CONFIG_KEY_0", "core.logAllRefUpdates")
                .env("GIT_CONFIG_VALUE_0", "true");
        }
        text(&sh.output().expect("runs"), &[script]);
    }

    fn refs(&self) -> Refs {
        Refs::open(self.workspace.git_dir(), self.workspace.common_dir()).expect("opened")
    }

    fn tip(&self) -> Option<Oid> {
        self.refs().get(&self.branch).expect("read")
    }

    fn judge(&self) -> Moves {
        let head = self.refs().head().expect("read");
        let log = read_since(&self.workspace, &self.branch, &self.log).expect("read");
        let seen = Observed {
            branch: &self.branch,
            base: self.base,
            tip: self.tip(),
            head: &head,
            log: &log,
            vouched: &self.vouched,
        };
        judge_moves(&seen, &key(), |tip, base| {
            self.repo.try_git(&["merge-base", "--is-ancestor", &base.to_string(), &tip.to_string()])
        })
    }

    fn expect_own(&self, what: &str) {
        let tip = self.tip().expect("there");
        assert_ne!(tip, self.base, "{what} moved nothing");
        assert_eq!(self.judge(), Moves::TurnsOwn { tip }, "{what}");
    }
}

/// A repository with two commits on `main` and one on each of `side` and `other`.
fn prepared() -> Repo {
    let repo = Repo::new();
    repo.commit("one", "1");
    repo.git(&["branch", "other"]);
    repo.commit("two", "2");
    repo.git(&["branch", "side"]);
    for branch in ["side", "other"] {
        repo.git(&["checkout", "-q", branch]);
        repo.commit(branch, branch);
    }
    repo.git(&["checkout", "-q", "main"]);
    repo
}

const COMMANDS: &[&str] = &[
    "echo x >two; git commit -qam c",
    "echo x >two; git commit -qam c; git commit -q --amend -m d",
    "echo x >two; git commit -qam c; echo y >two; git commit -qam d; git reset -q --hard HEAD~1",
    "git reset -q --hard side",
    "git merge -q side",
    "git merge -q --no-ff -m m side",
    "git merge -q -m m other",
    "git merge -q --squash other >/dev/null; git commit -qm s",
    "git cherry-pick other >/dev/null",
    "git revert --no-edit HEAD >/dev/null",
    "git format-patch -q -1 -o ../patches other; git am -q ../patches/*",
    "git pull -q --ff-only . side",
    "git pull -q --no-rebase . other",
    "git pull -q --rebase . side",
    "echo x >two; git commit -qam c; git rebase -q side",
    "echo x >two; git commit -qam c; echo y >two; git commit -qam d; \
     GIT_SEQUENCE_EDITOR='sed -i 2s/pick/fixup/' git rebase -q -i HEAD~2",
    "git checkout -q side; git checkout -q main; echo x >two; git commit -qam c",
    "echo x >two; git stash -q; git stash pop -q; git commit -qam c",
    "echo x >two; git commit -qam 'worktx Ex-1/9: not a mark'",
];

#[test]
fn every_command_of_a_turn_is_known() {
    for command in COMMANDS {
        let repo = prepared();
        let open = Open::at(&repo, repo.root());
        open.sh(true, command);
        open.expect_own(command);
    }
}

#[test]
fn in_a_linked_work_tree_too() {
    for command in COMMANDS.iter().filter(|c| !c.contains("checkout")) {
        let repo = prepared();
        repo.git(&["worktree", "add", "-qb", "linked", "../linked", "main"]);
        let open = Open::at(&repo, &repo.root().with_file_name("linked"));
        assert!(open.workspace.is_linked());
        open.sh(true, command);
        open.expect_own(command);
    }
}

#[test]
fn detached_by_the_log_of_head() {
    for command in COMMANDS.iter().filter(|c| !c.contains("checkout")) {
        let repo = prepared();
        repo.git(&["checkout", "-q", "--detach"]);
        let open = Open::at(&repo, repo.root());
        open.sh(true, command);
        open.expect_own(command);
    }
}

#[test]
fn with_packed_refs_and_without_a_log_at_open() {
    let repo = prepared();
    repo.git(&["pack-refs", "--all"]);
    std::fs::remove_dir_all(repo.root().join(".git/logs")).expect("removed");
    let open = Open::at(&repo, repo.root());
    assert_eq!(open.log, LogMark::default());
    open.sh(true, "echo x >two; git commit -qam c; git gc -q --prune=now");
    open.expect_own("commit");
}

#[test]
fn in_a_hook_of_the_turn() {
    let repo = prepared();
    let hook = "#!/bin/sh\n[ -e once ] && exit; touch once; git commit -q --amend -m by-hook\n";
    repo.write(".git/hooks/post-commit", hook);
    let open = Open::at(&repo, repo.root());
    open.sh(true, "chmod +x .git/hooks/post-commit; echo x >two; git commit -qam c");
    assert_eq!(repo.git(&["log", "-1", "--format=%s"]), "by-hook");
    open.expect_own("a hook");
}

#[test]
fn moves_that_nobody_vouches_for() {
    for (marked, script) in [
        (false, "echo x >two; git commit -qam c"),
        (false, "echo x >two; git commit -qam 'worktx Ex-1/2: forged'"),
        (false, "git merge -q side"),
        (true, "git update-ref refs/heads/main side"),
        (true, "git checkout -q --detach; git branch -qf main side; git checkout -q main"),
        (true, "git checkout -q -B main side"),
    ] {
        let repo = prepared();
        let mut open = Open::at(&repo, repo.root());
        open.sh(marked, script);
        assert!(matches!(open.judge(), Moves::Unvouched { .. }), "{script}: {:?}", open.judge());
        // One more marked commit does not wash it clean.
        open.sh(true, "git reset -q --hard; echo z >two; git commit -qam z");
        assert!(matches!(open.judge(), Moves::Unvouched { .. }), "{script}: {:?}", open.judge());
        // The guard hook's word does.
        let second = repo.git(&["rev-parse", "HEAD~1"]).parse().expect("an id");
        open.vouched.insert((open.base, second));
        open.expect_own(script);
    }
}

#[test]
fn a_move_without_any_log_needs_the_hooks_word() {
    let repo = prepared();
    let mut open = Open::at(&repo, repo.root());
    open.sh(true, "git rev-parse side >.git/refs/heads/main; git reset -q --hard");
    assert!(matches!(open.judge(), Moves::Unvouched { .. }));
    open.vouched.insert((open.base, open.tip().expect("there")));
    open.expect_own("vouched");
    // A marked commit on top does not close the gap; the hook's word still does.
    open.sh(true, "echo x >two; git commit -qam c");
    open.expect_own("vouched, then marked");
    open.vouched.clear();
    assert!(matches!(open.judge(), Moves::Unvouched { .. }), "{:?}", open.judge());
}

#[test]
fn another_attempts_mark_is_none() {
    let repo = prepared();
    let open = Open::at(&repo, repo.root());
    for other in ["worktx Ex-1/21", "worktx Ex-1/1", "worktx Ex-1"] {
        let script = format!("export GIT_REFLOG_ACTION='{other}'; git merge -q side");
        open.sh(true, &script);
        assert!(matches!(open.judge(), Moves::Unvouched { .. }), "{other}");
        open.sh(true, "git reset -q --hard HEAD~1");
    }
}

#[test]
fn switched_rewritten_or_where_it_was() {
    let judge = |script: &str| {
        let repo = prepared();
        let open = Open::at(&repo, repo.root());
        open.sh(true, script);
        open.judge()
    };
    assert_eq!(judge("true"), Moves::None);
    assert_eq!(judge("echo x >two; git commit -qam c; git reset -q --hard HEAD~1"), Moves::None);
    let side = Moves::Switched { to: "refs/heads/side".to_owned() };
    assert_eq!(judge("git checkout -q side"), side);
    assert_eq!(judge("git branch -M side"), side);
    assert!(matches!(judge("git checkout -q --detach"), Moves::Switched { .. }));
    for script in
        ["git commit -q --amend -m rewritten", "git reset -q --hard other", "git rebase -q other"]
    {
        assert!(matches!(judge(script), Moves::Rewritten { .. }), "{script}: {:?}", judge(script));
    }
    assert!(matches!(judge("git update-ref -d refs/heads/main"), Moves::Rewritten { .. }));
}

#[test]
fn an_expired_log_is_still_a_chain() {
    let repo = prepared();
    let open = Open::at(&repo, repo.root());
    open.sh(true, "echo x >two; git commit -qam c; echo y >two; git commit -qam d");
    // All but the last two lines are dropped.
    let path = log_path(&open.workspace, &open.branch);
    let log = std::fs::read_to_string(&path).expect("read");
    let lines: Vec<&str> = log.lines().collect();
    std::fs::write(&path, lines[lines.len() - 2..].join("\n") + "\n").expect("written");
    open.expect_own("expired");
    std::fs::write(&path, lines[lines.len() - 1].to_owned() + "\n").expect("written");
    assert!(matches!(open.judge(), Moves::Unvouched { .. }));
    std::fs::remove_file(&path).expect("removed");
    assert!(matches!(open.judge(), Moves::Unvouched { .. }));
    std::fs::write(&path, "no log at all\n").expect("written");
    let damaged = read_since(&open.workspace, &open.branch, &open.log).expect_err("damaged");
    assert_eq!(damaged.kind(), io::ErrorKind::InvalidData);
}
