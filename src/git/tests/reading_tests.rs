use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::{Repo, path};
use crate::git::objects::odb::OdbError;
use crate::git::objects::store::{Store, StoreError};
use crate::tx::id::Oid;

fn listing(store: &Store, tree: Oid) -> String {
    store
        .tree_walk(tree)
        .map(|e| e.unwrap())
        .fold(String::new(), |text, (path, mode, id)| text + &format!("{mode:06o} {id}\t{path}\n"))
}

#[test]
fn reads_what_git_reads() {
    let repo = Repo::new();
    repo.write("dir-x/q", "after dir in one order, before it in the other");
    repo.write("dir.y", "");
    std::os::unix::fs::symlink("nowhere", repo.root.join("link")).unwrap();
    let tip = repo.commit("second\n\nbody");
    let store = repo.store();
    let commit = store.commit(tip).unwrap();
    assert_eq!(commit.tree, repo.id("HEAD^{tree}"));
    assert_eq!(commit.parents, [repo.id("HEAD^")]);
    assert_eq!(commit.message, "second\n\nbody\n");
    assert_eq!(commit.time, 1_700_000_000);
    let expected =
        repo.git(["ls-tree", "-r", "--format=%(objectmode) %(objectname)%x09%(path)", "HEAD"]);
    assert_eq!(listing(&store, commit.tree), expected);
    let (mode, id) = store.lookup(commit.tree, &path("dir/sub/c")).unwrap().unwrap();
    assert_eq!((mode, store.blob(id).unwrap()), (0o100_644, b"three\n".to_vec()));
    assert_eq!(store.blob_size(id).unwrap(), 6);
    assert!(store.lookup(commit.tree, &path("a/b")).unwrap().is_none());
    assert!(store.lookup(commit.tree, &path("dir/sub")).unwrap().is_some());
    assert!(matches!(store.commit(commit.tree), Err(StoreError::Kind { .. })));
}

#[test]
fn replace_refs_and_grafts_change_nothing() {
    let repo = Repo::new();
    let first = repo.id("HEAD");
    repo.write("a", "other\n");
    let second = repo.commit("second");
    let blob = repo.id("HEAD:a");
    repo.git(["replace", &blob.to_string(), &repo.id("HEAD^:a").to_string()]);
    repo.git(["replace", &second.to_string(), &first.to_string()]);
    assert_eq!(repo.git(["cat-file", "blob", &blob.to_string()]), "one\n", "git honours it");
    let store = repo.store();
    assert_eq!(store.blob(blob).unwrap(), b"other\n");
    assert_eq!(store.commit(second).unwrap().parents, [first]);
}

#[test]
fn alternates_count_only_as_captured() {
    let other = Repo::new();
    other.write("only-there", "secret");
    other.commit("there");
    let id = other.id("HEAD:only-there");
    let repo = Repo::new();
    let captured = repo.store().alternates().to_vec();
    std::fs::write(
        repo.git_dir().join("objects/info/alternates"),
        format!("# planted\n{}\n", other.git_dir().join("objects").display()),
    )
    .unwrap();
    assert!(repo.store().exists(id));
    assert!(!Store::open_with(&repo.git_dir(), &captured).unwrap().exists(id));
}

#[test]
fn a_swapped_object_is_damage() {
    let repo = Repo::new();
    let (mine, other) = (repo.id("HEAD:a"), repo.id("HEAD:dir/b"));
    let file = |id: Oid| {
        let hex = id.to_string();
        repo.git_dir().join("objects").join(&hex[..2]).join(&hex[2..])
    };
    std::fs::set_permissions(file(mine), std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::copy(file(other), file(mine)).unwrap();
    let error = repo.store().blob(mine).unwrap_err();
    assert!(
        matches!(error, StoreError::Odb(OdbError::Damaged { id, .. }) if id == mine),
        "{error}"
    );
    std::fs::remove_file(file(mine)).unwrap();
    let error = repo.store().blob(mine).unwrap_err();
    assert!(matches!(error, StoreError::Odb(OdbError::Missing(id)) if id == mine), "{error}");
}

#[test]
fn a_configuration_that_git_refuses_is_not_read() {
    let repo = Repo::new();
    let head = repo.id("HEAD");
    std::fs::write(repo.git_dir().join("config"), "[core\nworktree = /nowhere").unwrap();
    assert!(repo.store().commit(head).is_ok());
}

#[test]
fn differences_are_those_of_git() {
    let repo = Repo::new();
    repo.write("file-then-dir", "x");
    repo.write("dir-then-file/x/y", "x");
    let a = repo.commit("a");
    std::fs::remove_file(repo.root.join("file-then-dir")).unwrap();
    repo.write("file-then-dir/in", "x");
    std::fs::remove_dir_all(repo.root.join("dir-then-file")).unwrap();
    repo.write("dir-then-file", "x");
    repo.write("dir/b", "changed");
    std::fs::set_permissions(repo.root.join("a"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let b = repo.commit("b");
    let store = repo.store();
    let text = |held: Option<(u32, Oid)>| held.unwrap_or((0, Oid::ZERO));
    let mut own: Vec<String> = store
        .diff_trees(store.commit(a).unwrap().tree, store.commit(b).unwrap().tree)
        .unwrap()
        .into_iter()
        .map(|(path, old, new)| {
            let ((m1, i1), (m2, i2)) = (text(old), text(new));
            format!(":{m1:06o} {m2:06o} {i1} {i2} {path}")
        })
        .collect();
    let git = repo.git(["diff-tree", "-r", "--no-renames", &a.to_string(), &b.to_string()]);
    let mut git: Vec<String> = git
        .lines()
        .map(|line| {
            let (head, path) = line.split_once('\t').unwrap();
            format!("{} {path}", &head[..head.len() - 2])
        })
        .collect();
    own.sort();
    git.sort();
    assert_eq!(own, git);
    assert_eq!(own.len(), 6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Random histories, all commits with nearly the same time, so that the clock is no help.
    #[test]
    fn histories_are_those_of_git(
        shape in proptest::collection::vec((0usize..8, 0usize..8, any::<bool>(), 0u64..3), 4..10),
    ) {
        let repo = Repo::new();
        let tree = repo.id("HEAD^{tree}").to_string();
        let mut ids = vec![repo.id("HEAD")];
        for (n, (one, two, merge, late)) in shape.into_iter().enumerate() {
            let pick = |back: usize| ids[ids.len() - 1 - back.min(ids.len() - 1)];
            let mut args = vec!["commit-tree".to_owned(), tree.clone(), "-m".into(), n.to_string()];
            args.extend(["-p".into(), pick(one).to_string()]);
            if merge && pick(two) != pick(one) {
                args.extend(["-p".into(), pick(two).to_string()]);
            }
            let mut command = repo.command();
            command.args(args).env("GIT_COMMITTER_DATE", format!("{} +0000", 1_700_000_000 + late));
            let out = String::from_utf8(command.output().unwrap().stdout).unwrap();
            ids.push(out.trim().parse().unwrap());
        }
        let store = repo.store();
        let last = ids[ids.len() - 1];
        for id in &ids {
            for (base, tip) in [(*id, last), (last, *id)] {
                let range = format!("{base}..{tip}");
                let git = repo.git(["rev-list", &range]);
                let mut git: Vec<Oid> = git.lines().map(|l| l.parse().unwrap()).collect();
                let mut own = store.commits_between(base, tip, &BTreeSet::new()).unwrap();
                own.sort();
                git.sort();
                prop_assert_eq!(own, git);
                let (ok, _) = repo.try_git(
                    ["merge-base", "--is-ancestor", &base.to_string(), &tip.to_string()], b"");
                prop_assert_eq!(store.is_descendant(tip, base).unwrap(), ok);
            }
        }
    }
}
