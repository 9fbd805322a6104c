use std::io::Read;

use super::Repo;
use crate::git::objects::pack::{PackError, PackWriter};
use crate::git::objects::store::ObjectKind;
use crate::tx::id::Oid;

fn pack_files(repo: &Repo) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(repo.git_dir().join("objects/pack"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn git_reads_what_was_written() {
    let repo = Repo::new();
    let store = repo.store();
    let mut pack = PackWriter::new(&store);
    // Noise does not compress, so the deflate buffer fills up; text does.
    let mut state = 1u32;
    let noise: Vec<u8> = (0..300_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect();
    let text = b"abc\n".repeat(100_000);
    let mut ids = Vec::new();
    for bytes in [&b""[..], b"x", &noise, &text, &noise] {
        let id = pack.add_blob(bytes.len() as u64, bytes).unwrap();
        assert_eq!(id.to_string(), repo.git_with(["hash-object", "--stdin"], bytes).trim());
        ids.push((id, bytes));
    }
    assert_eq!(pack.add_blob_bytes(b"x").unwrap(), ids[1].0);
    assert_eq!(pack.len(), 4, "twice is once");
    assert!(!store.exists(ids[2].0), "nothing is there before the end");
    pack.finish().unwrap();
    for (id, bytes) in ids {
        assert_eq!(store.blob(id).unwrap(), bytes);
    }
    let names = pack_files(&repo);
    assert_eq!(names.len(), 2, "{names:?}");
    let index = repo.git_dir().join("objects/pack").join(&names[0]);
    repo.git([std::ffi::OsStr::new("verify-pack"), index.as_os_str()]);
    repo.fsck();
    assert_eq!(
        repo.git(["count-objects", "-v"]).lines().find(|l| l.starts_with("garbage")),
        Some("garbage: 0")
    );
}

#[test]
fn what_is_packed_is_not_written_again_but_what_is_loose_is() {
    let repo = Repo::new();
    let blob = repo.id("HEAD:a");
    let store = repo.store();
    assert!(!PackWriter::new(&store).contains(blob), "loose objects are not synced");
    repo.git(["repack", "-adq"]);
    let mut pack = PackWriter::new(&store);
    assert!(pack.contains(blob));
    assert_eq!(pack.add_blob(4, &b"one\n"[..]).unwrap(), blob);
    assert_eq!(pack.add_blob_bytes(b"two\n").unwrap(), repo.id("HEAD:dir/b"));
    assert!(pack.is_empty());
    let before = pack_files(&repo);
    pack.finish().unwrap();
    assert!(pack_files(&repo).iter().all(|n| before.contains(n) && !n.starts_with("tmp")));
}

struct Failing;
impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("gone"))
    }
}

#[test]
fn a_file_that_changes_is_told_and_leaves_no_trace() {
    let repo = Repo::new();
    let store = repo.store();
    let mut pack = PackWriter::new(&store);
    let long = vec![7; 200_000];
    let first = pack.add_blob_bytes(b"first").unwrap();
    assert!(matches!(pack.add_blob(199_999, &long[..]), Err(PackError::Unstable { .. })));
    assert!(matches!(pack.add_blob(200_001, &long[..]), Err(PackError::Unstable { .. })));
    assert!(matches!(pack.add_blob(1, Failing), Err(PackError::Source(_))));
    let last = pack.add_blob_bytes(b"last").unwrap();
    pack.finish().unwrap();
    assert_eq!(store.blob(first).unwrap(), b"first");
    assert_eq!(store.blob(last).unwrap(), b"last");
    repo.fsck();
}

#[test]
fn nothing_added_is_no_pack_and_leftovers_go() {
    let repo = Repo::new();
    let store = repo.store();
    PackWriter::new(&store).finish().unwrap();
    assert!(pack_files(&repo).is_empty());
    let left = repo.git_dir().join("objects/pack/tmp_worktx_1_0.pack");
    let others = repo.git_dir().join("objects/pack/tmp_pack_abc");
    std::fs::write(&left, "PACK").unwrap();
    std::fs::write(&others, "PACK").unwrap();
    let mut at_work = PackWriter::new(&store);
    at_work.add_blob_bytes(b"one writer").unwrap();
    assert!(!left.exists() && others.exists());
    let mut second = PackWriter::new(&store);
    let id = second.add_blob_bytes(b"another writer").unwrap();
    second.finish().unwrap();
    at_work.finish().unwrap();
    assert_eq!(store.kind(id).unwrap(), Some(ObjectKind::Blob));
    std::fs::remove_file(others).unwrap();
    let mut dropped = PackWriter::new(&store);
    dropped.add_blob_bytes(b"dropped").unwrap();
    drop(dropped);
    assert_eq!(pack_files(&repo).len(), 4);
    repo.fsck();
}

#[test]
fn the_same_pack_twice_is_fine() {
    let repo = Repo::new();
    for _ in 0..2 {
        let store = repo.store();
        let mut pack = PackWriter::new(&store);
        let id = pack.add_blob_bytes(b"again").unwrap();
        pack.finish().unwrap();
        assert!(store.exists(id));
        // As after a power cut that took the index but not the pack.
        for name in pack_files(&repo).iter().filter(|n| n.contains(".idx")) {
            std::fs::remove_file(repo.git_dir().join("objects/pack").join(name)).unwrap();
        }
    }
}

/// A file system of one megabyte, if the test may mount one.
struct Small(std::path::PathBuf);
impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let repo = Repo::new();
    let folder = repo.git_dir().join("objects/pack");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "none"])
        .arg(&folder)
        .stderr(std::process::Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mounting a tmpfs needs root");
        return;
    }
    let small = Small(folder.clone());
    let store = repo.store();
    let mut state = 1u32;
    let mut failed = false;
    let mut pack = PackWriter::new(&store);
    for _ in 0..40 {
        let noise: Vec<u8> = (0..100_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            })
            .collect();
        if let Err(error) = pack.add_blob_bytes(&noise) {
            assert!(matches!(error, PackError::Io { .. }), "{error}");
            assert!(matches!(pack.add_blob_bytes(b"more"), Err(PackError::GivenUp)));
            failed = true;
            break;
        }
    }
    assert!(failed);
    assert!(matches!(pack.finish(), Err(PackError::GivenUp)));
    assert!(pack_files(&repo).is_empty());
    assert_ne!(repo.id("HEAD"), Oid::ZERO);
    drop(small);
}

#[test]
fn what_is_relied_on_is_touched_or_written_anew() {
    let repo = Repo::new();
    let store = repo.store();
    let mut pack = PackWriter::new(&store);
    pack.add_blob_bytes(b"there\n").unwrap();
    pack.finish().unwrap();
    let folder = repo.git_dir().join("objects/pack");
    let name = pack_files(&repo).into_iter().find(|name| !name.ends_with("idx")).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_hours(2);
    let file = std::fs::File::open(folder.join(&name)).unwrap();
    file.set_modified(old).unwrap();
    let mut pack = PackWriter::new(&store);
    pack.add_blob_bytes(b"there\n").unwrap();
    assert!(pack.is_empty(), "it is there");
    assert!(file.metadata().unwrap().modified().unwrap() > old, "and no gc forgets it meanwhile");
    // A gc was quicker.
    let mut pack = PackWriter::new(&store);
    std::fs::remove_file(folder.join(&name)).unwrap();
    pack.add_blob_bytes(b"there\n").unwrap();
    assert!(!pack.is_empty(), "it is written anew");
}
