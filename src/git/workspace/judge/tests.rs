use super::*;
use crate::git::testkit::{Repo, text};
use BaseWarning::{DetachedHead, FileModeIgnored, NotSigned, ReplaceRefs};

fn judged_at(repo: &Repo, root: &Path) -> Result<BaseFacts, Vec<Refusal>> {
    let workspace = Workspace::discover(root).expect("found");
    let env =
        [("HOME".into(), repo.home().into_os_string()), ("GIT_CONFIG_NOSYSTEM".into(), "1".into())];
    judge(&workspace, &GitEnv::new(env), |path| path.ends_with("HEAD.lock"))
}

fn judged(repo: &Repo) -> Result<BaseFacts, Vec<Refusal>> {
    judged_at(repo, repo.root())
}

fn codes(repo: &Repo) -> Vec<&'static str> {
    judged(repo).err().unwrap_or_default().iter().map(Refusal::code).collect()
}

/// `main` and `side` with a conflict in `file`.
fn conflicting() -> Repo {
    let repo = Repo::new();
    repo.commit("file", "base");
    repo.git(&["checkout", "-qb", "side"]);
    repo.commit("file", "side");
    repo.git(&["checkout", "-q", "main"]);
    repo.commit("file", "main");
    repo
}

#[test]
fn a_clean_repository_is_a_base() {
    let repo = Repo::new();
    repo.commit("a/file", "x");
    repo.git(&["pack-refs", "--all"]);
    let facts = judged(&repo).expect("a base");
    assert_eq!(facts.branch.as_str(), "refs/heads/main");
    assert_eq!(facts.commit.to_string(), repo.git(&["rev-parse", "HEAD"]));
    assert_eq!(facts.tree.to_string(), repo.git(&["rev-parse", "HEAD^{tree}"]));
    assert_eq!((facts.detached, facts.warnings.as_slice()), (false, &[][..]));
    let json = serde_json::to_string(&facts).expect("plain data");
    assert_eq!(serde_json::from_str::<BaseFacts>(&json).expect("read back"), facts);
}

#[test]
fn warns_and_goes_on() {
    let repo = Repo::new();
    repo.commit("file", "x");
    let second = repo.commit("file", "y");
    repo.git(&["replace", &second, "HEAD~1"]);
    repo.git(&["checkout", "-q", "--detach"]);
    repo.git(&["config", "commit.gpgSign", "true"]);
    repo.git(&["config", "core.fileMode", "false"]);
    let facts = judged(&repo).expect("a base");
    assert_eq!((facts.branch.as_str(), facts.detached), ("HEAD", true));
    assert_eq!(facts.warnings, [DetachedHead, NotSigned, FileModeIgnored, ReplaceRefs]);
    let tree = repo.git(&["--no-replace-objects", "rev-parse", "HEAD^{tree}"]);
    assert_eq!(facts.tree.to_string(), tree, "the object itself, not what replaces it");
}

#[test]
fn operations_in_progress_are_refused() {
    for (script, operation, file) in [
        ("git merge side", Operation::Merge, "MERGE_HEAD"),
        ("git rebase side", Operation::Rebase, "rebase-merge"),
        ("git rebase --apply side", Operation::Rebase, "rebase-apply"),
        ("git format-patch -q -1 -o ../p side; git am ../p/*", Operation::Am, "rebase-apply"),
        ("git cherry-pick side", Operation::CherryPick, "CHERRY_PICK_HEAD"),
        ("git revert HEAD~1 || git revert --no-edit HEAD~1", Operation::Revert, "REVERT_HEAD"),
        ("git bisect start", Operation::Bisect, "BISECT_LOG"),
        (
            "git cherry-pick side^ side; rm -f .git/CHERRY_PICK_HEAD",
            Operation::CherryPick,
            "sequencer",
        ),
    ] {
        let repo = conflicting();
        repo.commit("file", "again");
        let git = repo.command(repo.root());
        let mut sh = std::process::Command::new("sh");
        sh.args(["-c", script]).current_dir(repo.root()).env_clear();
        sh.envs(git.get_envs().map(|(name, value)| (name, value.expect("set"))));
        sh.output().expect("runs");
        let refusals = judged(&repo).expect_err(script);
        let file = file.to_owned();
        assert_eq!(refusals, [Refusal::OperationInProgress { operation, file }], "{script}");
    }
}

#[test]
#[allow(clippy::print_stderr)]
fn other_kinds_of_repository_are_refused() {
    let made = |args: &[&str]| {
        let repo = Repo::new();
        std::fs::remove_dir_all(repo.root().join(".git")).expect("removed");
        let mut all = vec!["init", "-q", "-b", "main"];
        all.extend_from_slice(args);
        repo.try_git(&all).then_some(repo)
    };
    let sha256 = made(&["--object-format=sha256"]).expect("made");
    sha256.commit("file", "x");
    assert_eq!(judged(&sha256), Err(vec![Refusal::ObjectFormat { format: "sha256".to_owned() }]));
    match made(&["--ref-format=reftable"]) {
        Some(repo) => {
            repo.commit("file", "x");
            let storage = "reftable".to_owned();
            assert_eq!(judged(&repo), Err(vec![Refusal::RefStorage { storage }]));
        }
        None => eprintln!("SKIPPED: this git knows no reftable"),
    }
    assert_eq!(codes(&made(&[]).expect("made")), ["unborn_head"]);

    let repo = Repo::new();
    repo.commit("file", "x");
    for (text, code) in [
        ("[core]\nrepositoryformatversion = 1\n[extensions]\nnews = 1\n", "unknown_extension"),
        (
            "[core]\nrepositoryformatversion = 0\n[extensions]\npartialClone = o\n",
            "unknown_extension",
        ),
        ("[core]\nrepositoryformatversion = 2\n", "format_version"),
        ("[core]\nbare = true\n", "bare_repository"),
        ("[core]\nworktree = /\n", "worktree_elsewhere"),
        ("[core\n", "bad_config"),
    ] {
        std::fs::write(repo.root().join(".git/config"), text).expect("written");
        assert_eq!(codes(&repo), [code], "{text}");
    }
    let text = "[core]\nrepositoryformatversion = 1\nworktree = ..\n[extensions]\nnoop = 1\n";
    std::fs::write(repo.root().join(".git/config"), text).expect("written");
    assert_eq!(judged(&repo).map(|_| ()), Ok(()));
}

#[test]
fn submodules_and_sparse_checkout_are_refused() {
    let repo = Repo::new();
    let id = repo.commit("file", "x");
    repo.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{id},deep/er/sub")]);
    repo.commit(".gitmodules", "");
    let paths = [".gitmodules", "deep/er/sub"].map(|p| RepoPath::new(p).expect("valid")).to_vec();
    assert_eq!(judged(&repo), Err(vec![Refusal::Submodules { paths }]));

    let repo = Repo::new();
    repo.commit("a/file", "x");
    repo.git(&["sparse-checkout", "set", "a"]);
    assert_eq!(codes(&repo), ["sparse_checkout"]);
    repo.git(&["sparse-checkout", "disable"]);
    assert_eq!(codes(&repo), [""; 0]);
}

#[test]
fn locks_of_others_are_refused() {
    let repo = Repo::new();
    repo.commit("file", "x");
    repo.git(&["worktree", "add", "-qb", "a/side", "../side"]);
    let side = repo.root().with_file_name("side");
    repo.write(".git/index.lock", "");
    repo.write(".git/HEAD.lock", "ours, says the caller");
    repo.write(".git/refs/heads/main.lock", "");
    assert_eq!(codes(&repo), ["foreign_lock"; 2]);
    assert_eq!(judged_at(&repo, &side).map(|_| ()), Ok(()));
    repo.write(".git/worktrees/side/index.lock", "");
    repo.write(".git/refs/heads/a/side.lock", "");
    assert_eq!(judged_at(&repo, &side).expect_err("locked").len(), 2);
}

#[test]
fn damage_is_refused() {
    let repo = Repo::new();
    let id = repo.commit("file", "x");
    let object = format!(".git/objects/{}/{}", &id[..2], &id[2..]);
    for (file, content) in [
        (".git/HEAD", "nonsense\n"),
        (".git/HEAD", "ref: refs/other/x\n"),
        (".git/refs/heads/main", "nonsense\n"),
        (object.as_str(), "nonsense"),
    ] {
        let path = repo.root().join(file);
        let before = std::fs::read(&path).expect("there");
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, content).expect("written");
        assert_eq!(codes(&repo), ["damaged"], "{file}: {content}");
        std::fs::write(&path, before).expect("written");
        assert_eq!(codes(&repo), [""; 0]);
    }
    repo.git(&["branch", "other"]);
    repo.git(&["symbolic-ref", "refs/heads/main", "refs/heads/other"]);
    assert_eq!(codes(&repo), ["symbolic_branch"]);
}

#[test]
#[allow(clippy::print_stderr)]
fn somebody_elses_repository_is_refused() {
    let repo = Repo::new();
    repo.commit("file", "x");
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can give a folder away");
        return;
    }
    std::os::unix::fs::chown(repo.root(), Some(12345), None).expect("given away");
    assert!(!repo.try_git(&["status"]), "git refuses too");
    let path = repo.root().display().to_string();
    assert_eq!(judged(&repo), Err(vec![Refusal::UnsafeOwner { path, owner: 12345 }]));
    std::fs::create_dir_all(repo.home()).expect("made");
    for safe in [
        "*",
        &repo.root().display().to_string(),
        &format!("{}/*", repo.root().parent().expect("has one").display()),
    ] {
        let home = format!("[safe]\n\tdirectory = {safe}\n");
        std::fs::write(repo.home().join(".gitconfig"), home).expect("written");
        let out = repo.command(repo.root()).arg("status").output().expect("runs");
        text(&out, &["status", safe]);
        assert_eq!(codes(&repo), [""; 0], "{safe}");
    }
}
