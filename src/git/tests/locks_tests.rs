use std::path::PathBuf;
use std::time::Duration;

use super::Repo;
use crate::git::refs::locks::{
    self, Guarded, LockError, Target, forget, is_own_lock, release_own, take,
};
use crate::tx::id::RefName;

const NOW: Duration = Duration::ZERO;

pub(super) fn target(repo: &Repo) -> Target {
    Target {
        git_dir: repo.git_dir(),
        common_dir: repo.git_dir(),
        prep_dir: repo.git_dir().join("worktx/locks/main"),
        branch: Some(RefName("refs/heads/main".to_owned())),
    }
}

fn lock_files(repo: &Repo) -> Vec<PathBuf> {
    ["HEAD.lock", "refs/heads/main.lock", "index.lock"]
        .iter()
        .map(|name| repo.git_dir().join(name))
        .collect()
}

#[test]
fn git_is_kept_out_while_they_are_held() {
    let repo = Repo::new();
    let target = target(&repo);
    let held = take(&target, NOW).unwrap();
    assert!(lock_files(&repo).iter().all(|path| path.exists()));
    assert_eq!(held.lost().unwrap(), None);
    repo.write("a", "changed");
    assert!(!repo.try_git(["add", "a"], b"").0);
    assert!(!repo.try_git(["commit", "-qm", "x", "--allow-empty"], b"").0);
    assert!(!repo.try_git(["update-ref", "refs/heads/main", "HEAD"], b"").0);
    assert!(!repo.try_git(["checkout", "-q", "--detach"], b"").0);
    assert!(repo.try_git(["status"], b"").0);
    held.release().unwrap();
    forget(&target).unwrap();
    forget(&target).unwrap();
    assert!(lock_files(&repo).iter().all(|path| !path.exists()));
    assert!(!target.prep_dir.exists());
    repo.commit("possible again");
}

#[test]
fn own_locks_of_a_crash_are_recognised() {
    let repo = Repo::new();
    let target = target(&repo);
    // As a crash leaves them: nothing is released.
    drop(take(&target, NOW).unwrap());
    drop(take(&target, NOW).unwrap());
    assert!(is_own_lock(&target, Guarded::Branch).unwrap());
    // Entrypoints delete what ends in `.lock`: it is made again.
    std::fs::remove_file(repo.git_dir().join("index.lock")).unwrap();
    let held = take(&target, NOW).unwrap();
    std::fs::remove_file(repo.git_dir().join("HEAD.lock")).unwrap();
    assert_eq!(held.lost().unwrap(), Some(repo.git_dir().join("HEAD.lock")));
    let removed = release_own(&target).unwrap();
    assert_eq!(removed.len(), 2);
    assert!(release_own(&target).unwrap().is_empty());
    assert!(lock_files(&repo).iter().all(|path| !path.exists()));
}

#[test]
fn somebody_elses_lock_is_told_and_left_alone() {
    let repo = Repo::new();
    let target = target(&repo);
    for (n, foreign) in lock_files(&repo).iter().enumerate() {
        std::fs::write(foreign, "").unwrap();
        let error = take(&target, NOW).unwrap_err();
        assert!(matches!(&error, LockError::Foreign { path } if path == foreign), "{error}");
        let there: Vec<bool> = lock_files(&repo).iter().map(|path| path.exists()).collect();
        assert_eq!(there.iter().filter(|x| **x).count(), 1, "what was taken is given back: {n}");
        assert!(release_own(&target).unwrap().is_empty());
        assert!(foreign.exists());
        std::fs::remove_file(foreign).unwrap();
    }
}

#[test]
fn a_lock_that_goes_away_in_time_is_taken() {
    let repo = Repo::new();
    let target = target(&repo);
    let foreign = repo.git_dir().join("index.lock");
    std::fs::write(&foreign, "").unwrap();
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| take(&target, Duration::from_mins(1)).unwrap());
        // The branch's lock is there: the other thread is at the index's.
        while !repo.git_dir().join("refs/heads/main.lock").exists() {
            std::thread::yield_now();
        }
        std::fs::remove_file(&foreign).unwrap();
        taking.join().unwrap().release().unwrap();
    });
}

#[test]
fn a_detached_head_has_no_branch_to_lock() {
    let repo = Repo::new();
    let target = Target { branch: None, ..target(&repo) };
    let held = take(&target, NOW).unwrap();
    assert!(!repo.git_dir().join("refs/heads/main.lock").exists());
    assert!(repo.git_dir().join("HEAD.lock").exists());
    held.release().unwrap();
    let held = locks::take_index(&target, NOW).unwrap();
    assert!(!repo.git_dir().join("HEAD.lock").exists());
    held.release().unwrap();
}
