//! When the manifest is written at open, and when not.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn nothing_is_written_where_nothing_changed() {
    let mut tree = Tree::new();
    tree.write("src/a.txt", "one");
    tree.write("src/deep/b.txt", "two");
    tree.commit(&["src"]);
    tree.write("note", "three");
    std::fs::create_dir(tree.at("empty")).expect("made");
    let first = tree.establish().expect("a base");
    assert!(first.written);
    assert_eq!(first.untracked.len(), 1);
    assert_eq!((first.untracked_bytes, first.snapshot.len()), (5, 6));
    wait_for_proof();
    let second = tree.establish().expect("a base");
    let third = tree.establish().expect("a base");
    assert!(!third.written);
    assert_eq!(third.generation, second.generation);
    assert!(third.snapshot.iter().all(|(_, packed)| packed.stat_is_proof()));
    let raw = third.snapshot.get(&path("src/a.txt")).expect("there").raw;
    assert_eq!(raw, blob_id(b"one"));
    // Another commit with the same tree changes nothing; another tree is taken over.
    tree.git(&["commit", "-q", "--allow-empty", "-m", "y"]);
    assert!(!tree.establish().expect("a base").written);
    tree.commit(&["note"]);
    let fourth = tree.establish().expect("a base");
    assert!(fourth.written && fourth.untracked.is_empty() && fourth.modified.is_empty());
    tree.git(&["rm", "-q", "--cached", "note"]);
    tree.git(&["commit", "-q", "-m", "z"]);
    assert_eq!(tree.establish().expect("a base").untracked.len(), 1);
}

#[test]
fn stat_data_alone_is_not_worth_writing() {
    let mut tree = Tree::new();
    for name in 0..80 {
        tree.write(&format!("d/{name}"), "one");
    }
    tree.write("other", "two");
    tree.commit(&["d", "other"]);
    let (base, _) = tree.base();
    tree.stale = STALE;
    let written = |tree: &mut Tree| {
        wait_for_proof();
        let found = tree.establish().expect("a base");
        // What is in memory is as it stands, written or not.
        wait_for_proof();
        for (path, packed) in found.snapshot.iter().filter(|(_, known)| known.is_tracked()) {
            let stat = tree.root.stat(&path).expect("looked").expect("there").stat;
            assert_eq!(packed.stat().mtime_ns, stat.mtime_ns, "{path:?}");
        }
        found.written
    };
    assert!(!written(&mut tree));
    tree.write("d/3", "one");
    assert!(!written(&mut tree) && !written(&mut tree), "the same bytes");
    let known = tree.manifest.get(&path("d/3")).expect("read").expect("there");
    assert_eq!(known, base.snapshot.get(&path("d/3")).expect("there"));
    // What an undo would bring back has to stand in it.
    std::fs::set_permissions(tree.at("d/3"), PermissionsExt::from_mode(0o600)).expect("set");
    assert!(written(&mut tree), "a mode");
    tree.write("note", "one");
    assert!(written(&mut tree), "a new name");
    tree.write("note", "two");
    assert!(written(&mut tree), "other bytes");
    for name in 0..65 {
        tree.write(&format!("d/{name}"), "one");
    }
    assert!(written(&mut tree), "many");
    assert!(!written(&mut tree));
    // Beneath rules that look new everything would be looked at, each time.
    tree.write(".gitignore", "*.o");
    assert!(written(&mut tree));
    tree.write(".gitignore", "*.o");
    assert!(written(&mut tree) && !written(&mut tree));
    // A commit that changes what is tracked.
    tree.commit(&["note"]);
    assert!(written(&mut tree));
}

/// What stood in a directory that a commit made a file of is nowhere, whichever way it is looked at.
#[test]
fn a_commit_that_makes_a_file_of_a_directory() {
    for bounded in [false, true] {
        let mut tree = Tree::new();
        tree.write("a/deep/one", "one");
        tree.write("b/two", "two");
        tree.write("c", "three");
        tree.commit(&["a", "b", "c"]);
        tree.write("a/own", "of nobody");
        tree.establish().expect("a base");
        for name in ["a", "b"] {
            std::fs::remove_dir_all(tree.at(name)).expect("removed");
        }
        std::fs::remove_file(tree.at("c")).expect("removed");
        tree.write("a", "a file");
        symlink("a", tree.at("b")).expect("linked");
        tree.write("c/four", "four");
        tree.git(&["add", "-A"]);
        tree.git(&["commit", "-q", "-m", "the other way round"]);
        tree.only = bounded.then(|| {
            let mut touched = Touched::default();
            touched.directory("");
            touched
        });
        let found = tree.establish().expect("a base");
        assert!(found.modified.is_empty() && found.untracked.is_empty(), "{found:?}");
        let names = |snapshot: &crate::git::manifest::snapshot::Snapshot| {
            let names: BTreeSet<String> = snapshot.iter().map(|(p, _)| p.to_string()).collect();
            names.into_iter().collect::<Vec<_>>()
        };
        let written = tree.manifest.load().expect("loaded");
        assert_eq!(names(&found.snapshot), ["a", "b", "c", "c/four"]);
        assert_eq!(names(&written), ["a", "b", "c", "c/four"]);
        assert_eq!(written.notable().count(), 0);
        tree.only = None;
        assert_eq!(tree.establish().expect("a base").modified, []);
    }
}
