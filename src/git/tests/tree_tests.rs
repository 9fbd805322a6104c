use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{Repo, path};
use crate::git::objects::pack::PackWriter;
use crate::git::objects::tree::{self, Signature, closure, commit_bytes, edit};
use crate::tx::entry::{GIT_EXECUTABLE, GIT_FILE};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;

/// Names that sort differently as files and as folders, few of them, so that they collide.
fn any_path() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a"), Just("a-b"), Just("a.c"), Just("a0"), Just("B"), Just("é")];
    proptest::collection::vec(name, 1..4).prop_map(|parts| parts.join("/"))
}

type Edits = BTreeMap<String, Option<bool>>;

fn apply_by_git(repo: &Repo, edits: &Edits, blob: Oid) -> Oid {
    for (name, what) in edits.iter().filter(|(_, what)| what.is_none()) {
        assert!(what.is_none());
        repo.git(["update-index", "--force-remove", "--", name]);
    }
    for (name, what) in edits {
        if let Some(executable) = what {
            let mode = if *executable { "100755" } else { "100644" };
            let entry = format!("{mode},{blob},{name}");
            repo.git(["update-index", "--add", "--replace", "--cacheinfo", &entry]);
        }
    }
    repo.git(["write-tree"]).trim().parse().unwrap()
}

/// Without paths that are beneath one another: what a work tree can hold at once.
fn coherent(edits: Edits) -> Edits {
    let mut kept: BTreeSet<String> = BTreeSet::new();
    edits
        .into_iter()
        .filter(|(name, what)| {
            let clash = kept.iter().any(|other| {
                name.starts_with(&format!("{other}/")) || other.starts_with(&format!("{name}/"))
            });
            if what.is_some() && !clash {
                kept.insert(name.clone());
            }
            what.is_none() || !clash
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn edits_give_the_tree_that_git_writes(
        base in proptest::collection::btree_map(any_path(), any::<bool>().prop_map(Some), 0..10),
        edits in proptest::collection::btree_map(any_path(), any::<Option<bool>>(), 0..8),
    ) {
        let repo = Repo::new();
        let blob = repo.id("HEAD:a");
        repo.git(["read-tree", "--empty"]);
        let base_tree = apply_by_git(&repo, &coherent(base), blob);
        let edits = coherent(edits);
        let wanted = apply_by_git(&repo, &edits, repo.id("HEAD:dir/b"));
        let store = repo.store();
        let mut pack = PackWriter::new(&store);
        let held = |x: bool| (if x { GIT_EXECUTABLE } else { GIT_FILE }, repo.id("HEAD:dir/b"));
        let edits: BTreeMap<RepoPath, _> =
            edits.iter().map(|(name, what)| (path(name), what.map(held))).collect();
        let own = edit(&store, base_tree, &edits, &mut pack).unwrap();
        prop_assert_eq!(own, wanted);
        pack.finish().unwrap();
        prop_assert!(store.tree(own).is_ok());
        repo.fsck();
    }
}

fn signature(name: &str, email: &str, offset_minutes: i32) -> Signature {
    Signature { name: name.into(), email: email.into(), time: 1_700_000_000, offset_minutes }
}

#[test]
fn a_commit_is_the_one_that_git_makes() {
    let repo = Repo::new();
    let (head, tree_id) = (repo.id("HEAD"), repo.id("HEAD^{tree}"));
    let author = signature("A U Thor", "author@example.com", 90);
    let committer = signature("C O Mitter", "committer@example.com", -480);
    let message = "worktx: é\n\nWorktx-Attempt: 1";
    let bytes = commit_bytes(tree_id, &[head], &author, &committer, message);
    let store = repo.store();
    let mut pack = PackWriter::new(&store);
    let own = pack.add_commit(&bytes).unwrap();
    pack.finish().unwrap();
    let git = repo.git(["commit-tree", &tree_id.to_string(), "-p", "HEAD", "-m", message]);
    assert_eq!(own.to_string(), git.trim());
    repo.fsck();
    let evil = signature(" A\n<b>, ", "x\n@<y>.", -90);
    assert_eq!(evil.line(), "Ab <x@y> 1700000000 -0130");
}

fn loose(repo: &Repo, id: Oid) -> std::path::PathBuf {
    let hex = id.to_string();
    repo.git_dir().join("objects").join(&hex[..2]).join(&hex[2..])
}

#[test]
fn a_missing_object_is_found_before_anything_names_it() {
    let repo = Repo::new();
    let base = repo.id("HEAD");
    repo.write("dir/new/x", "x");
    let own = repo.commit("the turn's own");
    std::fs::remove_dir_all(repo.root.join("dir/new")).unwrap();
    repo.write("dir/b", "changed");
    let tip = repo.commit("candidate");
    let store = repo.store();
    let (full, none) = (BTreeSet::new(), |_: Oid| false);
    assert!(closure(&store, tip, Some(base), &full, &none).unwrap().is_empty());
    assert!(closure(&store, tip, None, &full, &none).unwrap().is_empty());
    let id = |name: &str| repo.id(name);
    for (lost, at) in [
        (id("HEAD:dir/b"), Some("dir/b")),
        (id("HEAD:dir"), Some("dir")),
        (id("HEAD^{tree}"), None),
        (own, None),
        (id("HEAD~1:dir/new/x"), Some("dir/new/x")),
        (id("HEAD~1:dir/new"), Some("dir/new")),
    ] {
        let aside = repo.root.join("aside");
        std::fs::rename(loose(&repo, lost), &aside).unwrap();
        let gaps = closure(&repo.store(), tip, Some(base), &full, &none).unwrap();
        assert!(gaps.iter().any(|gap| gap.id == lost), "{gaps:?}");
        assert!(gaps.iter().any(|gap| gap.path == at.map(path)), "{gaps:?}");
        let trusted = closure(&repo.store(), tip, Some(base), &full, &|_| true).unwrap();
        assert_eq!(trusted.len(), gaps.len(), "trusted is not: need not be there");
        std::fs::rename(&aside, loose(&repo, lost)).unwrap();
    }
    // Of the base nothing is asked.
    std::fs::remove_file(loose(&repo, id("HEAD:a"))).unwrap();
    assert!(closure(&repo.store(), tip, Some(base), &full, &none).unwrap().is_empty());
    assert_eq!(closure(&repo.store(), tip, None, &full, &none).unwrap().len(), 1);
}

#[test]
fn too_deep_is_told() {
    let repo = Repo::new();
    let store = repo.store();
    let deep = path(&vec!["d"; 3000].join("/"));
    let edits = BTreeMap::from([(deep, Some((GIT_FILE, repo.id("HEAD:a"))))]);
    let mut pack = PackWriter::new(&store);
    let error = edit(&store, Oid::EMPTY_TREE, &edits, &mut pack).unwrap_err();
    assert!(matches!(error, tree::TreeError::Store(_)), "{error}");
    let deep = path(&vec!["d"; 2000].join("/"));
    let edits = BTreeMap::from([(deep.clone(), Some((GIT_FILE, repo.id("HEAD:a"))))]);
    let id = edit(&store, Oid::EMPTY_TREE, &edits, &mut pack).unwrap();
    pack.finish().unwrap();
    assert_eq!(store.tree_walk(id).map(|e| e.unwrap().0).collect::<Vec<_>>(), [deep]);
}
