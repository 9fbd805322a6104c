//! The manifest as a file, and brought up to date.
//!
//! # Limitations
//! What stands in a tree is the business of `crate::git::scan`.

use super::*;
use crate::tx::entry::{GIT_FILE, Kind, Stat, Tracked};

fn path(text: &str) -> RepoPath {
    RepoPath::new(text).expect("valid")
}

fn entry(kind: Kind, tracked: bool) -> Entry {
    let stat =
        Stat { mode: 0o644, size: 3, mtime_ns: 4, ctime_ns: 5, inode: 6, links: 1, uid: 0, gid: 0 };
    let raw = Oid::EMPTY_TREE;
    let tracked = tracked.then_some(Tracked { blob: raw, mode: GIT_FILE });
    Entry { kind, stat, stat_is_proof: true, raw, tracked }
}

fn filled(file: &Path) -> Manifest {
    let mut manifest = Manifest::open(file).expect("opened");
    let changes = [
        (path("a"), Some(entry(Kind::Directory, false))),
        (path("a/b"), Some(entry(Kind::Directory, false))),
        (path("a/b/file"), Some(entry(Kind::File, true))),
        (path("a/note"), Some(entry(Kind::File, false))),
        (path("empty"), Some(entry(Kind::Directory, false))),
    ];
    let described = Described {
        head_tree: Some(Oid::EMPTY_TREE),
        root: Some(RootId { device: 1, inode: u64::MAX, mount: 3 }),
    };
    let rules = IgnoredRules::from([(b"a".to_vec(), b"*".to_vec())]);
    manifest.apply(changes, Some(&rules), described).expect("applied");
    manifest
}

#[test]
fn what_is_applied_is_there_after_opening_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("manifest.db");
    let meta = filled(&file).meta().expect("meta");
    let mut manifest = Manifest::open(&file).expect("opened");
    assert_eq!(manifest.meta().expect("meta"), meta);
    let snapshot = manifest.load().expect("loaded");
    assert_eq!((snapshot.len(), snapshot.meta()), (5, meta));
    assert!(snapshot.tracks_beneath(b"a") && !snapshot.tracks_beneath(b"empty"));
    assert_eq!(snapshot.beneath(b"a").len(), 3);
    assert_eq!(snapshot.ignored_rules().len(), 1);
    let file_entry = manifest.get(&path("a/b/file")).expect("read");
    assert_eq!(file_entry, Some(entry(Kind::File, true)));
    assert_eq!(snapshot.get(&path("a/b/file")), file_entry);
    assert_eq!(manifest.get(&path("a/b/none")).expect("read"), None);
    assert_eq!(manifest.children(None).expect("read").len(), 2);

    // The last child takes the row with it.
    let before = meta.generation;
    let meta = manifest.apply([(path("a/b/file"), None)], None, meta.described).expect("done");
    assert_eq!(meta.generation, before + 1);
    let mut in_memory = snapshot;
    in_memory.apply([(path("a/b/file"), None)]);
    let loaded = manifest.load().expect("loaded");
    assert!(loaded.row(b"a/b").is_none() && in_memory.row(b"a/b").is_none());
    assert_eq!(loaded.ignored_rules().len(), 1);
    manifest.reset().expect("reset");
    assert!(manifest.load().expect("loaded").is_empty());
    assert_eq!(manifest.meta().expect("meta").generation, before + 2);
}

/// Those of earlier versions, as they stand on users' disks.
#[test]
fn earlier_versions_are_brought_up_to_date() {
    let first = "DROP TABLE notable; ALTER TABLE meta DROP COLUMN notable_sum;
        PRAGMA user_version = 1";
    // Its sum is of the paths alone; nobody looks at it any more.
    let second = "ALTER TABLE notable DROP COLUMN note; UPDATE meta SET notable_sum = 7;
        PRAGMA user_version = 2";
    // It had rules in its list.
    let third = "INSERT INTO notable VALUES (CAST('a/.gitignore' AS BLOB), 1);
        UPDATE meta SET notable_sum = 7; PRAGMA user_version = 3";
    for back in [first, second, third] {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("manifest.db");
        let mut manifest = filled(&file);
        let described = manifest.meta().expect("meta").described;
        let rules = (path("a/.gitattributes"), Some(entry(Kind::File, true)));
        manifest.apply([rules], None, described).expect("applied");
        manifest.db.execute_batch(back).expect("as it was");
        let reader = Manifest::open_to_read(&file);
        assert!(matches!(reader, Err(ManifestError::Missing { .. })), "nobody else migrates");
        drop(manifest);
        let mut manifest = Manifest::open(&file).expect("opened");
        let names = |manifest: &Manifest| {
            let snapshot = manifest.load().expect("loaded");
            let by_lookup = manifest.load_by_lookup().expect("loaded");
            assert!(snapshot.notable().map(|(p, _)| p).eq(by_lookup.notable().map(|(p, _)| p)));
            snapshot.notable().map(|(path, _)| path.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&manifest), ["a/note"]);
        let file_of = |name, tracked| (path(name), Some(entry(Kind::File, tracked)));
        let changes = [
            (path("a/note"), None),
            file_of(".gitignore", true),
            file_of("b/.gitattributes", true),
            file_of("a/.gitattributes", false),
            file_of("plain", true),
        ];
        manifest.apply(changes, None, described).expect("applied");
        assert_eq!(names(&manifest), ["a/.gitattributes"], "rules are found where they stand");
        let snapshot = manifest.load().expect("loaded");
        let all = [path("a/.gitattributes"), path("b/.gitattributes")];
        assert!(snapshot.attributes().eq(&all));
        let untracked = [file_of("a/.gitignore", false), file_of("b/.gitattributes", false)];
        let snapshot = {
            manifest.apply(untracked, None, described).expect("applied");
            manifest.load().expect("loaded")
        };
        assert_eq!(names(&manifest), ["a/.gitattributes", "a/.gitignore", "b/.gitattributes"]);
        manifest.apply([file_of("a/.gitattributes", true)], None, described).expect("applied");
        assert_eq!(names(&manifest), ["a/.gitignore", "b/.gitattributes"]);
        assert_eq!(manifest.load_by_lookup().expect("loaded").len(), snapshot.len());
        let note = "UPDATE notable SET note = 1 WHERE path = CAST('a/.gitignore' AS BLOB)";
        assert_eq!(manifest.db.execute(note, []).expect("spoilt"), 1);
        assert!(matches!(manifest.load(), Err(ManifestError::Damaged { .. })), "it would be lost");
        manifest.db.execute("DELETE FROM notable", []).expect("lost");
        assert!(matches!(manifest.load(), Err(ManifestError::Damaged { .. })));
    }
}

#[test]
fn damage_and_other_versions_are_errors() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("manifest.db");
    let mut manifest = filled(&file);
    let before = manifest.meta().expect("meta");
    let spoil = "UPDATE dir SET entries = substr(entries, 1, 20) WHERE path = CAST('a' AS BLOB)";
    assert_eq!(manifest.db.execute(spoil, []).expect("spoilt"), 1);
    assert!(matches!(manifest.load(), Err(ManifestError::Damaged { .. })));
    let change = [(path("b"), None), (path("a/x"), None)];
    let described = Described::default();
    let refused = manifest.apply(change, None, described);
    assert!(matches!(refused, Err(ManifestError::Damaged { .. })));
    assert_eq!(manifest.meta().expect("meta"), before, "nothing of it is written");
    manifest.db.pragma_update(None, "user_version", 9).expect("set");
    drop(manifest);
    assert!(matches!(Manifest::open(&file), Err(ManifestError::Version { found: 9, .. })));
    std::fs::write(&file, vec![7; 4096]).expect("written");
    assert!(matches!(Manifest::open(&file), Err(ManifestError::Damaged { .. })));
}
