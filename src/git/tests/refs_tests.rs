use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode};

use super::Repo;
use crate::git::refs::{Head, RefError, Refs};
use crate::tx::id::{Oid, Pin, RefName};

const PREFIX: &str = "refs/worktx/tx";

fn refs(repo: &Repo) -> Refs {
    Refs::open(&repo.git_dir(), &repo.git_dir()).unwrap()
}

fn name(text: &str) -> RefName {
    RefName(text.to_owned())
}

fn pin(leaf: &str, id: Oid) -> Pin {
    Pin { name: name(&format!("{PREFIX}/{leaf}")), id }
}

fn prep(repo: &Repo) -> PathBuf {
    repo.git_dir().join("worktx/locks/main")
}

#[test]
fn a_pin_is_made_once_and_never_moved() {
    let repo = Repo::new();
    let first = repo.id("HEAD");
    let second = repo.commit("second");
    let refs = refs(&repo);
    let mine = pin("x/1/base", first);
    for _ in 0..2 {
        refs.pin(PREFIX, &mine).unwrap();
        assert_eq!(repo.id(mine.name.as_str()), first);
    }
    let other = Pin { id: second, ..mine.clone() };
    let error = refs.pin(PREFIX, &other).unwrap_err();
    assert!(matches!(error, RefError::Differs { found: Some(f), .. } if f == first), "{error}");
    assert!(matches!(refs.unpin(PREFIX, &other, &prep(&repo)), Err(RefError::Differs { .. })));
    refs.put_back(PREFIX, &other).unwrap();
    assert_eq!(refs.get(&mine.name).unwrap(), Some(second));
    // What a crash or a forger left.
    let file = repo.git_dir().join(mine.name.as_str());
    std::fs::write(file.with_extension("lock"), "").unwrap();
    std::fs::write(&file, "").unwrap();
    assert!(matches!(refs.get(&mine.name), Err(RefError::Broken { .. })));
    refs.pin(PREFIX, &mine).unwrap();
    assert_eq!(repo.id(mine.name.as_str()), first);
    assert!(!file.with_extension("lock").exists());
    // Folders without anything in them do not count.
    std::fs::create_dir_all(repo.git_dir().join(PREFIX).join("x/1/candidate/a/b")).unwrap();
    refs.pin(PREFIX, &pin("x/1/candidate", first)).unwrap();
    repo.fsck();
    for _ in 0..2 {
        refs.unpin(PREFIX, &mine, &prep(&repo)).unwrap();
        refs.unpin(PREFIX, &pin("x/1/candidate", first), &prep(&repo)).unwrap();
    }
    assert!(!repo.git_dir().join(PREFIX).join("x").exists());
    assert!(repo.git_dir().join(PREFIX).exists());
    // What a kill leaves that came before the ref was in its place.
    let folder = file.parent().expect("has one");
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(file.with_extension("lock"), "half").unwrap();
    refs.unpin(PREFIX, &mine, &prep(&repo)).unwrap();
    assert!(!repo.git_dir().join(PREFIX).join("x").exists());
}

#[test]
fn packed_refs_are_refs() {
    let repo = Repo::new();
    let id = repo.id("HEAD");
    repo.git(["tag", "-a", "v1", "-m", "annotated, so that a peeled line follows"]);
    let refs = refs(&repo);
    let (mine, keep) = (pin("x/1/base", id), pin("x/1/candidate", id));
    refs.pin(PREFIX, &mine).unwrap();
    refs.pin(PREFIX, &keep).unwrap();
    repo.git(["pack-refs", "--all", "--prune"]);
    assert!(!repo.git_dir().join(mine.name.as_str()).exists());
    assert_eq!(refs.get(&mine.name).unwrap(), Some(id));
    refs.pin(PREFIX, &mine).unwrap();
    refs.unpin(PREFIX, &mine, &prep(&repo)).unwrap();
    assert_eq!(refs.get(&mine.name).unwrap(), None);
    assert!(!repo.try_git(["rev-parse", "--verify", "-q", mine.name.as_str()], b"").0);
    assert_eq!(repo.id(keep.name.as_str()), id);
    assert_eq!(repo.id("v1^{}"), id);
    assert!(!repo.git_dir().join("packed-refs.lock").exists());
    assert!(matches!(refs.head().unwrap(), Head::Branch(_, Some(at)) if at == id));
    let error = refs.pin(PREFIX, &pin("x/1/candidate/1", id)).unwrap_err();
    assert!(matches!(error, RefError::Conflict { .. }), "{error}");
    repo.fsck();
}

#[test]
fn names_that_cannot_stand_together_are_told() {
    let repo = Repo::new();
    let id = repo.id("HEAD");
    let refs = refs(&repo);
    refs.pin(PREFIX, &pin("x/1", id)).unwrap();
    let error = refs.pin(PREFIX, &pin("x/1/base", id)).unwrap_err();
    assert!(matches!(error, RefError::Conflict { .. }), "{error}");
    let error = refs.pin(PREFIX, &pin("x", id)).unwrap_err();
    assert!(matches!(error, RefError::Conflict { .. }), "{error}");
    for bad in [
        "refs/heads/main",
        "refs/worktx/tx",
        "refs/worktx/txx/1",
        "refs/worktx/tx/../../heads/main",
        "refs/worktx/tx/a.lock",
        "refs/worktx/tx//a",
        "refs/worktx/tx/a b",
    ] {
        let error = refs.pin(PREFIX, &Pin { name: name(bad), id }).unwrap_err();
        assert!(matches!(error, RefError::Name { .. }), "{bad}: {error}");
    }
}

#[test]
fn a_planted_link_is_not_followed() {
    let repo = Repo::new();
    let id = repo.id("HEAD");
    let outside = repo.root.join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, repo.git_dir().join("refs/worktx")).unwrap();
    let refs = refs(&repo);
    let link = |error: RefError| matches!(&error, RefError::Dir(e) if e.is_symlink());
    assert!(link(refs.pin(PREFIX, &pin("x/1/base", id)).unwrap_err()));
    assert!(link(refs.list(PREFIX).unwrap_err()));
    assert_eq!(refs.list("refs").unwrap().broken, [name("refs/worktx")]);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    let head = repo.git_dir().join("HEAD");
    std::fs::rename(&head, outside.join("HEAD")).unwrap();
    std::os::unix::fs::symlink(outside.join("HEAD"), &head).unwrap();
    assert!(matches!(refs.head().unwrap(), Head::Other(_)));
}

#[test]
fn lists_are_those_of_git() {
    let repo = Repo::new();
    repo.git(["branch", "feature/x"]);
    repo.git(["tag", "v1"]);
    repo.git(["pack-refs", "--all"]);
    repo.commit("later");
    repo.git(["update-ref", "refs/remotes/origin/main", "HEAD"]);
    repo.git(["symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/main"]);
    for text in ["s1", "s2"] {
        repo.write("a", text);
        repo.git(["stash"]);
    }
    let refs = refs(&repo);
    let list = refs.list("refs").unwrap();
    let own: String =
        list.refs.iter().fold(String::new(), |text, (n, id)| text + &format!("{n} {id}\n"));
    assert_eq!(own, repo.git(["for-each-ref", "--format=%(refname) %(objectname)"]));
    assert!(list.broken.is_empty());
    assert_eq!(refs.stash_entries().unwrap(), [repo.id("stash@{1}"), repo.id("stash@{0}")]);
    let heads = refs.list("refs/heads").unwrap().refs;
    assert_eq!(refs.list("refs/heads/").unwrap().refs, heads);
    let others = refs.list_but("refs", &["refs/heads"]).unwrap().refs;
    let all = refs.list("refs").unwrap().refs;
    let is_head = |(name, _): &&(RefName, Oid)| name.as_str().starts_with("refs/heads/");
    assert!(all.iter().any(|r| is_head(&r)) && others.iter().all(|r| !is_head(&r)));
    assert_eq!(all.iter().filter(|r| !is_head(r)).cloned().collect::<Vec<_>>(), others);
    assert_eq!(heads.len(), 2);
    std::fs::write(repo.git_dir().join("refs/heads/bad"), "nonsense").unwrap();
    assert_eq!(refs.list("refs").unwrap().broken, [name("refs/heads/bad")]);
    std::os::unix::fs::symlink("main", repo.git_dir().join("refs/heads/link")).unwrap();
    let mut broken = vec![name("refs/heads/bad"), name("refs/heads/link")];
    assert_eq!(refs.list("refs").unwrap().broken, broken);
    let pipe = repo.git_dir().join("refs/heads/pipe");
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
    broken.push(name("refs/heads/pipe"));
    assert_eq!(refs.list("refs").unwrap().broken, broken);
    assert!(matches!(refs.get(&broken[2]).unwrap_err(), RefError::Broken { .. }));
}

#[test]
fn head_is_told_apart() {
    let repo = Repo::new();
    let id = repo.id("HEAD");
    let refs = refs(&repo);
    assert_eq!(refs.head().unwrap(), Head::Branch(name("refs/heads/main"), Some(id)));
    repo.git(["checkout", "-q", "--detach"]);
    assert_eq!(refs.head().unwrap(), Head::Detached(id));
    repo.git(["checkout", "-q", "--orphan", "new"]);
    assert_eq!(refs.head().unwrap(), Head::Branch(name("refs/heads/new"), None));
    std::fs::write(repo.git_dir().join("HEAD"), "ref: refs/tags/x\n").unwrap();
    assert!(matches!(refs.head().unwrap(), Head::Other(_)));
}
