use std::path::{Path, PathBuf};

use super::locks_tests::target;
use super::{Repo, sweep, sweep_case};
use crate::git::objects::pack::PackWriter;
use crate::git::refs::Refs;
use crate::tx::id::{Oid, Pin, RefName};

const PREFIX: &str = "refs/worktx/tx";

fn pin(leaf: &str, id: Oid) -> Pin {
    Pin { name: RefName(format!("{PREFIX}/{leaf}")), id }
}

/// Writes an object, pins it, and drops an older pin that `git pack-refs` has packed.
fn steps(repo: &Repo, old: Oid) -> Oid {
    let store = repo.store();
    let mut pack = PackWriter::new(&store);
    let id = pack.add_blob_bytes(b"kept").unwrap();
    pack.finish().unwrap();
    let refs = Refs::open(&repo.git_dir(), &repo.git_dir()).unwrap();
    refs.pin(PREFIX, &pin("y/1/base", id)).unwrap();
    refs.unpin(PREFIX, &pin("x/1/base", old), &target(repo).prep_dir).unwrap();
    crate::git::refs::locks::release_own(&target(repo)).unwrap();
    id
}

#[test]
#[ignore = "started by `objects_and_pins_survive_a_kill_at_every_call`"]
fn victim() {
    let Some((root, old)) = sweep_case::<(PathBuf, Oid)>() else { return };
    steps(&Repo::at(root), old);
}

#[test]
fn objects_and_pins_survive_a_kill_at_every_call() {
    let template = Repo::new();
    let old = template.id("HEAD");
    let refs = Refs::open(&template.git_dir(), &template.git_dir()).unwrap();
    refs.pin(PREFIX, &pin("x/1/base", old)).unwrap();
    template.git(["pack-refs", "--all", "--prune"]);
    let killed = sweep(
        "kill_tests::victim",
        &template,
        &|root: &Path| (root.to_owned(), old),
        &|repo, _| {
            repo.fsck();
            let id = steps(repo, old);
            repo.fsck();
            assert_eq!(repo.id("refs/worktx/tx/y/1/base"), id);
            assert_eq!(repo.git(["cat-file", "blob", &id.to_string()]), "kept");
            assert_eq!(
                repo.git(["for-each-ref", "--format=%(refname)"]),
                "refs/heads/main\nrefs/worktx/tx/y/1/base\n"
            );
            let left: Vec<_> = std::fs::read_dir(repo.git_dir().join("objects/pack"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.starts_with("tmp_"))
                .collect();
            assert!(left.is_empty(), "{left:?}");
            assert!(!repo.git_dir().join("packed-refs.lock").exists());
            assert!(!repo.git_dir().join("refs/worktx/tx/x").exists());
        },
    );
    assert!(killed.is_none_or(|killed| killed > 15), "{killed:?}");
}
