//! Few packs instead of many: worktx's own small packs are made one.
//!
//! Every seal and every pin is a pack of its own, and git looks through all packs for an object.
//! Order rule: the new pack is whole, durable and read back before an old one goes, its index
//! first. Every object of the old ones is in it, each hashed anew: nothing is dropped, so nobody
//! has to be asked who may still want it.
//!
//! Own packs are told by their name: it is derived from the checksum that the pack ends in
//! ([`own_name`]), as nobody else derives it. Packs of others are not touched, nor is one that
//! somebody marked (`.keep` and the like), or that git has put into a multi-pack index.
//!
//! # Limitations
//! Objects that no ref names any more stay: which those are, git's own gc has to find out. Packs
//! of [`TIERS`]'s last size and more stay as they are.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use flate2::read::ZlibDecoder;
use sha1::{Digest as _, Sha1};

use crate::base::durable;
use crate::git::objects::odb::ObjectKind;
use crate::git::objects::pack::{PackError, PackWriter, object_id};
use crate::git::objects::packed;
use crate::git::objects::store::Store;
use crate::tx::id::Oid;

/// Packs up to each of these sizes are made one with their like, so that an object is copied three
/// times at most.
const TIERS: [u64; 3] = [64 << 10, 1 << 20, 16 << 20];

/// How many of a size are made one. All tiers together stay below what makes `git gc --auto` set
/// to work (50 packs).
const MANY: usize = 12;

/// The name of an own pack, by the checksum that it ends in.
pub(super) fn own_name(checksum: [u8; 20]) -> Oid {
    let mut hash = Sha1::new();
    hash.update(b"worktx pack\0");
    hash.update(checksum);
    Oid::from_bytes(hash.finalize().into())
}

/// Makes one pack of many small own ones, where there are many; says how many went.
pub fn consolidate(store: &Store) -> Result<usize, PackError> {
    let folder = store.objects_dir().join("pack");
    let Ok(lock) = File::open(&folder) else { return Ok(0) };
    // Another work tree of the repository may be at it; file systems without locks have only us.
    if matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)) {
        return Ok(0);
    }
    let mut gone = 0;
    for _ in TIERS {
        let mut by_tier: BTreeMap<usize, Vec<Own>> = BTreeMap::new();
        for own in own_packs(&folder)? {
            if let Some(tier) = TIERS.iter().position(|size| own.size < *size) {
                by_tier.entry(tier).or_default().push(own);
            }
        }
        let Some(many) = by_tier.into_values().find(|packs| packs.len() >= MANY) else { break };
        gone += merge(store, &folder, &many)?;
    }
    Ok(gone)
}

/// A pack that worktx wrote.
struct Own {
    name: Oid,
    size: u64,
}

impl Own {
    fn path(&self, folder: &Path, ending: &str) -> PathBuf {
        folder.join(format!("pack-{}.{ending}", self.name))
    }
}

/// The own packs of a folder, by name. A pack that a crash left without its index is removed.
fn own_packs(folder: &Path) -> Result<Vec<Own>, PackError> {
    let failed = |source| PackError::Io { what: "look through", path: folder.to_owned(), source };
    let mut names = HashSet::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    let whole = |pack: &str| names.contains(&format!("{pack}.idx"));
    if names.len() < 2 * MANY && names.iter().filter_map(|f| f.strip_suffix(".pack")).all(whole) {
        // Too few for anything: none of them has to be opened.
        return Ok(Vec::new());
    }
    let Some(put_together) = packed::put_together(folder).map_err(failed)? else {
        return Ok(Vec::new());
    };
    let mut packs = Vec::new();
    for file in &names {
        let Some(name) = file.strip_prefix("pack-").and_then(|f| f.strip_suffix(".pack")) else {
            continue;
        };
        let marked = ["keep", "promisor", "mtimes", "bitmap"]
            .iter()
            .any(|ending| names.contains(&format!("pack-{name}.{ending}")))
            || put_together.contains(&format!("pack-{name}.idx"));
        let Ok(name) = name.parse::<Oid>() else { continue };
        let path = folder.join(file);
        let Some(size) = size_if_own(&path, name) else { continue };
        if marked {
            continue;
        }
        if names.contains(&format!("pack-{name}.idx")) {
            packs.push(Own { name, size });
        } else {
            remove_orphan(&path);
        }
    }
    packs.sort_unstable_by_key(|own| own.name);
    Ok(packs)
}

fn size_if_own(path: &Path, name: Oid) -> Option<u64> {
    let meta = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let at = meta.len().checked_sub(20)?;
    let mut checksum = [0; 20];
    File::open(path).ok()?.read_exact_at(&mut checksum, at).ok()?;
    (own_name(checksum) == name).then_some(meta.len())
}

/// Whoever is about to put the index beside it holds its lock.
fn remove_orphan(path: &Path) {
    if let Ok(file) = File::open(path)
        && file.try_lock().is_ok()
        && !path.with_extension("idx").exists()
    {
        let _ = std::fs::remove_file(path);
    }
}

/// Copies every object of the packs into one, then removes them; one that is damaged is left.
fn merge(store: &Store, folder: &Path, packs: &[Own]) -> Result<usize, PackError> {
    let mut writer = PackWriter::apart(store);
    let (mut copied, mut wanted) = (Vec::new(), HashSet::new());
    for own in packs {
        match entries(own, folder) {
            Ok(entries) => {
                for (id, bytes) in entries {
                    writer.add_entry(id, &bytes)?;
                    wanted.insert(id);
                }
                copied.push(own);
            }
            Err(error) => {
                tracing::warn!(pack = %own.name, %error, "a pack of worktx is not what was written");
            }
        }
    }
    if copied.len() < 2 {
        return Ok(0);
    }
    let Some(name) = writer.finish_named()? else { return Ok(0) };
    let made = Own { name, size: 0 };
    let index = made.path(folder, "idx");
    let table = packed::read_table(&index, usize::MAX).map_err(|source| PackError::Io {
        what: "read back",
        path: index,
        source,
    })?;
    for id in table.unwrap_or_default() {
        wanted.remove(&Oid::from_bytes(id));
    }
    if let Some(lost) = wanted.into_iter().next() {
        return Err(PackError::Lost(lost));
    }
    let gone = remove_packs(folder, copied.into_iter().filter(|own| own.name != name))?;
    store.refresh();
    Ok(gone)
}

/// Removes packs, each by its index first, so that none is there without one that is whole.
fn remove_packs<'a>(
    folder: &Path,
    packs: impl Iterator<Item = &'a Own>,
) -> Result<usize, PackError> {
    let mut gone = 0;
    for own in packs {
        for ending in ["idx", "rev", "pack"] {
            let path = own.path(folder, ending);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(PackError::Io { what: "remove", path, source: e });
                }
                _ => {}
            }
        }
        gone += 1;
    }
    durable::sync_dir(folder).map_err(|source| PackError::Io {
        what: "sync",
        path: folder.to_owned(),
        source,
    })?;
    Ok(gone)
}

/// Every object of an own pack, as it stands there, its bytes hashed.
fn entries(own: &Own, folder: &Path) -> io::Result<Vec<(Oid, Vec<u8>)>> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let pack = std::fs::read(own.path(folder, "pack"))?;
    let index = std::fs::read(own.path(folder, "idx"))?;
    let found = packed::entries(&index).ok_or_else(|| bad("its index cannot be read"))?;
    let mut starts: Vec<usize> = found.iter().map(|(_, offset)| *offset).collect();
    starts.push(pack.len().saturating_sub(20));
    starts.sort_unstable();
    let mut all = Vec::with_capacity(found.len());
    for (id, start) in found {
        let end = starts[starts.partition_point(|at| *at <= start)..].first();
        let entry = end.and_then(|end| pack.get(start..*end)).ok_or_else(|| bad("it is short"))?;
        if hash_entry(entry)? != Some(id) {
            return Err(bad("an object is not what its index says"));
        }
        all.push((id, entry.to_vec()));
    }
    Ok(all)
}

/// The id of the object in an entry; `None` where it is none that worktx writes.
fn hash_entry(entry: &[u8]) -> io::Result<Option<Oid>> {
    let Some(first) = entry.first() else { return Ok(None) };
    let kind = match first >> 4 & 7 {
        1 => ObjectKind::Commit,
        2 => ObjectKind::Tree,
        3 => ObjectKind::Blob,
        _ => return Ok(None),
    };
    let head = 1 + entry.iter().take_while(|byte| **byte & 0x80 != 0).count();
    let mut bytes = Vec::new();
    ZlibDecoder::new(entry.get(head..).unwrap_or_default()).read_to_end(&mut bytes)?;
    Ok(Some(object_id(kind, &bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::testkit::Repo;

    /// A pack with one blob; gives its id.
    fn pack(store: &Store, text: &str) -> Oid {
        let mut writer = PackWriter::new(store);
        let id = writer.add_blob_bytes(text.as_bytes()).expect("added");
        writer.finish().expect("written");
        id
    }

    fn packs(repo: &Repo) -> Vec<String> {
        let folder = repo.git_dir().join("objects/pack");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name().into_string().expect("text"))
            .filter(|name| Path::new(name).extension().is_some_and(|end| end == "pack"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_git_has_put_together_stays() {
        let repo = Repo::new();
        let store = Store::open(&repo.git_dir()).expect("opened");
        for n in 0..MANY {
            pack(&store, &format!("blob {n}\n"));
        }
        repo.git(&["multi-pack-index", "write"]);
        let before = packs(&repo);
        assert_eq!(consolidate(&store).expect("done"), 0, "an index of git's names them");
        assert_eq!(packs(&repo), before);
        repo.git(&["multi-pack-index", "verify"]);
        let index = repo.git_dir().join("objects/pack/multi-pack-index");
        std::fs::remove_file(&index).expect("removed");
        std::fs::write(&index, "no index").expect("written");
        assert_eq!(consolidate(&store).expect("done"), 0, "what cannot be read may name any");
        std::fs::remove_file(&index).expect("removed");
        assert_eq!(consolidate(&store).expect("done"), MANY);
    }

    #[test]
    fn many_become_one_and_nothing_is_lost() {
        let repo = Repo::new();
        let store = Store::open(&repo.git_dir()).expect("opened");
        let mut ids = Vec::new();
        for n in 0..MANY - 1 {
            ids.push(pack(&store, &format!("blob {n}\n")));
        }
        assert_eq!(consolidate(&store).expect("done"), 0, "not many yet");
        ids.push(pack(&store, "one more\n"));
        // A pack of git's own.
        std::fs::write(repo.root().join("file"), "by git\n").expect("written");
        repo.git(&["add", "file"]);
        repo.git(&["commit", "-qm", "by git"]);
        repo.git(&["repack", "-q"]);
        assert_eq!(consolidate(&store).expect("done"), MANY);
        assert_eq!(packs(&repo).len(), 2);
        for (n, id) in ids.iter().enumerate() {
            let text = repo.git(&["cat-file", "blob", &id.to_string()]);
            assert!(text == format!("blob {n}") || text == "one more");
            assert!(store.exists(*id));
        }
        repo.git(&["fsck", "--strict", "--full"]);
        repo.git(&["verify-pack", &format!(".git/objects/pack/{}", packs(&repo)[0])]);
    }

    #[test]
    fn packs_stay_few_however_many_are_written() {
        let repo = Repo::new();
        let store = Store::open(&repo.git_dir()).expect("opened");
        let mut last = None;
        for n in 0..400 {
            last = Some(pack(&store, &format!("{n} {}", "x".repeat(n * 7))));
            consolidate(&store).expect("done");
            assert!(packs(&repo).len() < TIERS.len() * MANY, "{n}");
        }
        repo.git(&["cat-file", "-e", &last.expect("one").to_string()]);
        let all = repo.git(&["cat-file", "--batch-check", "--batch-all-objects"]);
        assert_eq!(all.lines().count(), 400);
        repo.git(&["fsck", "--strict", "--full"]);
    }

    #[test]
    fn what_a_crash_left_is_gone_on_with() {
        let repo = Repo::new();
        let store = Store::open(&repo.git_dir()).expect("opened");
        let folder = repo.git_dir().join("objects/pack");
        let ids: Vec<Oid> = (0..MANY).map(|n| pack(&store, &format!("{n}\n"))).collect();
        // The new pack is there, the old ones too, one of them without its index.
        let saved: Vec<(PathBuf, Vec<u8>)> = packs(&repo)
            .iter()
            .flat_map(|name| [folder.join(name), folder.join(name).with_extension("idx")])
            .map(|path| (path.clone(), std::fs::read(&path).expect("readable")))
            .collect();
        assert_eq!(consolidate(&store).expect("done"), MANY);
        let made = packs(&repo);
        for (path, bytes) in &saved[..saved.len() - 1] {
            std::fs::write(path, bytes).expect("written");
        }
        consolidate(&store).expect("done");
        for id in &ids {
            repo.git(&["cat-file", "-e", &id.to_string()]);
        }
        assert!(packs(&repo).contains(&made[0]) || packs(&repo).len() == 1);
        let orphan = saved.last().expect("one").0.with_extension("pack");
        assert!(!orphan.exists(), "nobody would ever remove it");
        repo.git(&["fsck", "--strict", "--full"]);
    }

    #[test]
    fn marked_foreign_and_lying_packs_are_left() {
        let repo = Repo::new();
        let store = Store::open(&repo.git_dir()).expect("opened");
        let folder = repo.git_dir().join("objects/pack");
        let kept = pack(&store, "kept\n");
        let first = packs(&repo)[0].clone();
        std::fs::write(folder.join(&first).with_extension("keep"), "").expect("written");
        let true_id = pack(&store, "the truth\n");
        for n in 0..MANY {
            pack(&store, &format!("{n}\n"));
        }
        // One whose index gives the id of another object to its bytes.
        let liar = PackWriter::apart(&store);
        let name = {
            let mut writer = liar;
            writer.add_blob_bytes(b"a lie\n").expect("added");
            writer.finish_named().expect("written").expect("one")
        };
        let index = folder.join(format!("pack-{name}.idx"));
        let mut bytes = std::fs::read(&index).expect("readable");
        bytes[1032..1052].copy_from_slice(true_id.as_bytes());
        std::fs::remove_file(&index).expect("removed");
        std::fs::write(&index, bytes).expect("written");
        consolidate(&store).expect("done");
        assert!(folder.join(&first).exists(), "somebody wants to keep it");
        assert!(index.exists(), "what is damaged is left");
        repo.git(&["cat-file", "-e", &kept.to_string()]);
        std::fs::remove_file(&index).expect("removed");
        assert_eq!(repo.git(&["cat-file", "blob", &true_id.to_string()]), "the truth");
    }
}
