use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::locks_tests::target;
use super::{Repo, path};
use crate::git::index::{Index, IndexChange, IndexError, load, read, restore};
use crate::tx::entry::{GIT_EXECUTABLE, GIT_FILE, Stat};
use crate::tx::id::Oid;

pub(super) fn stat_of(repo: &Repo, name: &str) -> Stat {
    let meta = std::fs::symlink_metadata(repo.root.join(name)).unwrap();
    Stat {
        mode: meta.mode() & 0o7777,
        size: meta.size(),
        mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
        ctime_ns: meta.ctime() * 1_000_000_000 + meta.ctime_nsec(),
        inode: meta.ino(),
        links: 1,
        uid: meta.uid(),
        gid: meta.gid(),
    }
}

fn index(repo: &Repo) -> Index {
    read(&repo.git_dir()).unwrap().unwrap()
}

fn own_listing(index: &Index) -> String {
    index.entries().fold(String::new(), |text, e| {
        text + &format!("{:06o} {} {}\t{}\n", e.mode, e.id, e.stage, e.path)
    })
}

fn git_listing(repo: &Repo) -> String {
    repo.git(["ls-files", "--stage"])
}

#[test]
fn every_version_reads_as_git_reads_it_and_is_written_back() {
    let repo = Repo::new();
    // Longer than the twelve bits of length that an entry has.
    let long = format!("100644 {}\tdir/{}x", repo.id("HEAD:a"), "long/".repeat(1000));
    repo.git_with(["update-index", "--index-info"], long.as_bytes());
    for version in ["2", "4"] {
        repo.git(["update-index", "--index-version", version]);
        for extended in [false, true] {
            if extended {
                repo.git(["update-index", "--skip-worktree", "a"]);
            }
            let index = index(&repo);
            assert_eq!(own_listing(&index), git_listing(&repo));
            let before = repo.git(["ls-files", "--debug", "-v"]);
            std::fs::write(repo.git_dir().join("index"), index.to_bytes()).unwrap();
            assert_eq!(repo.git(["ls-files", "--debug", "-v"]), before);
            repo.fsck();
        }
        repo.git(["update-index", "--no-skip-worktree", "a"]);
    }
}

#[test]
fn a_look_by_git_changes_the_bytes_and_not_the_meaning() {
    let repo = Repo::new();
    let before = (load(&repo.git_dir()).unwrap(), index(&repo).meaning());
    let file = std::fs::File::options().write(true).open(repo.root.join("a")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    repo.git(["status"]);
    assert_ne!(load(&repo.git_dir()).unwrap(), before.0);
    assert_eq!(index(&repo).meaning(), before.1);
    let mut seen = vec![before.1];
    for args in [
        &["update-index", "--assume-unchanged", "a"][..],
        &["update-index", "--skip-worktree", "a"],
        &["update-index", "--chmod=+x", "dir/b"],
        &["rm", "-q", "-f", "--cached", "dir/b"],
        &["add", "-N", "dir/b"],
    ] {
        repo.git(args);
        let now = index(&repo).meaning();
        assert!(!seen.contains(&now), "{args:?}");
        seen.push(now);
    }
}

#[test]
fn what_is_staged_and_what_conflicts() {
    let repo = Repo::new();
    let store = repo.store();
    let tree = repo.id("HEAD^{tree}");
    assert!(index(&repo).differs_from_tree(&store, tree).unwrap().is_empty());
    repo.write("a", "changed");
    repo.write("new", "n");
    repo.git(["add", "a", "new"]);
    repo.git(["rm", "-q", "--cached", "dir/b"]);
    repo.write("intent", "");
    repo.git(["add", "-N", "intent"]);
    let differ = index(&repo).differs_from_tree(&store, tree).unwrap();
    let paths: Vec<String> = differ.iter().map(|(path, _)| path.to_string()).collect();
    assert_eq!(paths, ["a", "dir/b", "intent", "new"]);
    assert_eq!(differ[0].1, Some((GIT_FILE, repo.id("HEAD:a"))));
    assert_eq!(differ[3].1, None);
    assert!(index(&repo).conflicts().is_empty());

    let repo = Repo::new();
    repo.git(["checkout", "-q", "-b", "side"]);
    repo.write("a", "side");
    repo.commit("side");
    repo.git(["checkout", "-q", "main"]);
    repo.write("a", "main");
    repo.commit("main");
    assert!(!repo.try_git(["merge", "side"], b"").0);
    let index = index(&repo);
    assert_eq!(own_listing(&index), git_listing(&repo));
    assert_eq!(index.conflicts(), [path("a")]);
    assert!(!index.paths_stage0().any(|p| p == "a"));
    let differ = index.differs_from_tree(&repo.store(), repo.id("HEAD^{tree}")).unwrap();
    assert_eq!(differ.len(), 1, "{differ:?}");
}

#[test]
fn what_cannot_be_read_has_a_name() {
    let repo = Repo::new();
    let good = load(&repo.git_dir()).unwrap().unwrap();
    repo.git(["update-index", "--split-index"]);
    let error = read(&repo.git_dir()).err();
    assert!(matches!(error, Some(IndexError::Split)), "{error:?}");
    repo.git(["update-index", "--no-split-index"]);
    assert!(read(&repo.git_dir()).is_ok());
    repo.git(["sparse-checkout", "set", "--cone", "--sparse-index", "nothing"]);
    assert!(matches!(read(&repo.git_dir()), Err(IndexError::Sparse)));
    let mut bad = good.clone();
    bad[20] ^= 1;
    assert!(matches!(Index::parse(&bad), Err(IndexError::Malformed(_))));
    assert!(matches!(Index::parse(b""), Err(IndexError::Malformed(_))));
}

#[test]
fn changes_leave_a_clean_status_without_another_look() {
    let repo = Repo::new();
    repo.git(["update-index", "--assume-unchanged", "dir/b"]);
    let base = index(&repo);
    repo.git(["update-index", "--assume-unchanged", "dir/sub/c"]);
    repo.git(["update-index", "--skip-worktree", "a"]);
    std::fs::remove_file(repo.root.join("a")).unwrap();
    repo.write("a/now/a/dir", "x");
    repo.write("new", "n");
    let write = |text: &str| -> Oid {
        repo.git_with(["hash-object", "-w", "--stdin"], text.as_bytes()).trim().parse().unwrap()
    };
    // Old enough that git does not take it for racy.
    for name in ["a/now/a/dir", "new"] {
        let file = std::fs::File::options().write(true).open(repo.root.join(name)).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_hours(400_000))
            .unwrap();
    }
    let change = |name: &str, id| IndexChange {
        path: path(name),
        to: Some((GIT_FILE, id, Some(stat_of(&repo, name)))),
    };
    let changes = [
        change("a/now/a/dir", write("x")),
        change("new", write("n")),
        IndexChange { path: path("not/there"), to: None },
    ];
    let bytes = index(&repo).with_changes(&changes, Some(&base)).to_bytes();
    let now = Index::parse(&bytes).unwrap();
    assert!(now.get(b"a").is_none(), "a folder took its place");
    assert!(now.get(b"dir/b").unwrap().flags.assume_unchanged, "was so before");
    assert!(!now.get(b"dir/sub/c").unwrap().flags.assume_unchanged, "the turn's doing");
    std::fs::write(repo.git_dir().join("index"), bytes).unwrap();
    assert_eq!(repo.git(["diff-files"]), "", "no refresh was needed");
    assert_eq!(repo.git(["ls-files"]), "a/now/a/dir\ndir/b\ndir/sub/c\nnew\n");
    repo.git(["commit", "-qm", "x"]);
    assert_eq!(repo.git(["status", "--porcelain"]), "");
    repo.fsck();

    // And back: a file where the folder was.
    let to_file = [IndexChange { path: path("a"), to: Some((GIT_EXECUTABLE, write("y"), None)) }];
    let bytes = index(&repo).with_changes(&to_file, None).to_bytes();
    let now = Index::parse(&bytes).unwrap();
    assert!(now.get(b"a/now/a/dir").is_none() && now.get(b"a").is_some());
}

#[test]
fn an_index_can_be_made_from_the_tree_alone() {
    let repo = Repo::new();
    let made = Index::from_tree(&repo.store(), repo.id("HEAD^{tree}"), |path, _| {
        Some(stat_of(&repo, &path.to_string()))
    });
    std::fs::write(repo.git_dir().join("index"), made.unwrap().to_bytes()).unwrap();
    assert_eq!(repo.git(["diff-files"]), "");
    assert_eq!(repo.git(["status", "--porcelain"]), "");
}

#[test]
fn a_saved_index_comes_back() {
    let repo = Repo::new();
    let saved = load(&repo.git_dir()).unwrap().unwrap();
    repo.git(["rm", "-q", "--cached", "a"]);
    for _ in 0..2 {
        restore(&target(&repo), Some(&saved), Duration::ZERO).unwrap();
        assert_eq!(load(&repo.git_dir()).unwrap().unwrap(), saved);
    }
    std::fs::write(repo.git_dir().join("index.lock"), "").unwrap();
    assert!(matches!(
        restore(&target(&repo), Some(&saved), Duration::ZERO),
        Err(IndexError::Lock(_))
    ));
    std::fs::remove_file(repo.git_dir().join("index.lock")).unwrap();
    restore(&target(&repo), None, Duration::ZERO).unwrap();
    assert_eq!(load(&repo.git_dir()).unwrap(), None);
    assert!(!repo.git_dir().join("index.lock").exists());
}

/// Prints what it takes for 100,000 entries; run it with `--release` for a number that counts.
#[test]
fn a_large_index_is_no_matter() {
    use std::fmt::Write as _;
    let repo = Repo::new();
    let blob = repo.id("HEAD:a");
    let mut input = String::new();
    for n in 0..100_000 {
        writeln!(input, "100644 {blob}\tsome/folder{}/of/many/file{n}", n / 100).unwrap();
    }
    repo.git_with(["update-index", "--index-info"], input.as_bytes());
    let start = Instant::now();
    let bytes = load(&repo.git_dir()).unwrap().unwrap();
    let index = Index::parse(&bytes).unwrap();
    let parsed = start.elapsed();
    let meaning = index.meaning();
    let meant = start.elapsed();
    let changes: Vec<_> = (0..1000)
        .map(|n| IndexChange { path: path(&format!("x/{n}")), to: Some((GIT_FILE, blob, None)) })
        .collect();
    let new = index.with_changes(&changes, Some(&index)).to_bytes();
    let made = start.elapsed();
    eprintln!(
        "100,000 entries: read {parsed:?}, meaning {:?}, new file {:?}",
        meant.saturating_sub(parsed),
        made.saturating_sub(meant)
    );
    assert_eq!(Index::parse(&new).unwrap().len(), 101_003);
    assert_ne!(Index::parse(&new).unwrap().meaning(), meaning);
}

proptest! {
    /// Whatever a turn writes there: an answer, never a panic, never much memory.
    #[test]
    fn nonsense_is_an_error(cut in 0usize..400, at in 0usize..400, byte: u8, version in 2u8..5) {
        use sha1::Digest as _;
        let names = ["a", "dir/b", "dir/sub/c"];
        let mut index = Index::empty();
        let changes: Vec<_> = names
            .iter()
            .map(|n| IndexChange { path: path(n), to: Some((GIT_FILE, Oid::EMPTY_TREE, None)) })
            .collect();
        index = Index::parse(&index.with_changes(&changes, None).to_bytes()).unwrap();
        let mut bytes = index.to_bytes();
        bytes.truncate(bytes.len() - 20);
        bytes[7] = version;
        let length = bytes.len();
        bytes[at % length] = byte;
        bytes.truncate(length.saturating_sub(cut / 4));
        let sum = sha1::Sha1::digest(&bytes);
        bytes.extend_from_slice(&sum);
        if let Ok(index) = Index::parse(&bytes) {
            let _ = index.meaning();
            let _ = Index::parse(&index.to_bytes()).unwrap();
        }
    }
}
