//! Objects of worktx's own packs that nothing names any more: they are dropped.
//!
//! git drops such objects only in a gc of its own, which an agent's repository may never see, and
//! rejected work would fill the disk whatever the bounds of retention say. What was never in a pack
//! of worktx's is not touched.
//!
//! What counts as a name: forty hexadecimal digits in any file of the git directories (refs,
//! packed refs, reflogs, HEADs, a rebase in progress, other work trees), and the twenty bytes of an
//! id in any of them (indexes of any version). Whatever is reached from those through commits,
//! trees and tags stays.
//!
//! Order rules:
//! - a pack that was written or relied on within the grace is not looked at: whoever finds an
//!   object there already, git too, touches its pack;
//! - what stays is in a new pack, durable and read back, before an old one goes;
//! - names are looked for again, and the packs' times compared, under the folder's lock, which
//!   every writer of worktx shares; a change in between, and nothing goes.
//!
//! # Limitations
//! Another repository that borrows objects from this one (`git clone --shared`) is not seen, by git's
//! own gc neither. A program that keeps the id of an object longer than the grace without writing it
//! down in the git directory loses it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::odb::{ObjectKind, OdbError};
use super::pack::{PackError, PackWriter};
use super::packed;
use super::repack::{Own, entries, own_packs, remove_packs};
use super::store::{Store, StoreError};
use crate::tx::entry::{GIT_LINK, GIT_TREE};
use crate::tx::id::Oid;

/// Folders of a common directory in which nothing names an object of this repository.
const NAMELESS: [&str; 6] = ["objects", "worktx", "modules", "lfs", "annex", "hooks"];
/// How many bytes of the git directories are looked through for names, before it gives up.
const LOOKED_THROUGH: u64 = 512 << 20;
/// A pack that is larger is dropped whole or not at all: copying holds it in memory.
const COPIED: u64 = 64 << 20;
/// How much of a file is looked at at once, and how much of the piece before is looked at again: an
/// id with what bounds it.
const PIECE: usize = 1 << 20;
const OVERLAP: usize = 64;
/// How much of a pack must be for nothing before it is copied without that: a quarter.
const WORTH: usize = 4;

/// How far a prune may go.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long a pack has to lie untouched.
    pub grace: Duration,
    /// How many commits and trees are looked at before it gives up.
    pub objects: usize,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pruned {
    /// Every object is named, or too young.
    Nothing,
    /// There is more history than the bounds allow.
    TooMuch,
    /// Somebody wrote meanwhile: the next time.
    Disturbed,
    /// So many bytes of packs went, less what was written anew.
    Freed(u64),
}

/// Drops what nothing names.
///
/// `also` are names that stand nowhere in the git directory yet: those of a ledger.
pub fn prune(
    store: &Store,
    common_dir: &Path,
    also: &[Oid],
    bounds: &Bounds,
) -> Result<Pruned, PackError> {
    let folder = store.objects_dir().join("pack");
    let fail = |source| PackError::Io { what: "look through", path: folder.clone(), source };
    // One at a time; the folder's own lock is for the short end.
    let Ok(alone) = File::open(store.objects_dir()) else { return Ok(Pruned::Nothing) };
    if matches!(alone.try_lock(), Err(std::fs::TryLockError::WouldBlock)) {
        return Ok(Pruned::Disturbed);
    }
    let now = SystemTime::now();
    let is_old = |own: &Own| now.duration_since(own.touched).is_ok_and(|age| age >= bounds.grace);
    let (mut packs, mut ours) = (Vec::new(), HashSet::new());
    for own in own_packs(&folder)?.into_iter().filter(is_old) {
        let Some(ids) = packed::read_table(&own.path(&folder, "idx"), usize::MAX).map_err(fail)?
        else {
            continue;
        };
        let ids: Vec<Oid> = ids.into_iter().map(Oid::from_bytes).collect();
        ours.extend(ids.iter().copied());
        packs.push((own, ids));
    }
    let mut mark = Mark { store, ours: &ours, live: HashSet::new(), seen: HashSet::new(), bounds };
    let mut names = match Names::read(common_dir, &ours) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Ok(Pruned::TooMuch),
        names => names.map_err(fail)?,
    };
    names.ids.extend(also);
    if !mark.all(&names)? {
        return Ok(Pruned::TooMuch);
    }
    let dead =
        |ids: &[Oid], mark: &Mark<'_>| ids.iter().filter(|id| !mark.live.contains(id)).count();
    packs.retain(|(own, ids)| {
        let dead = dead(ids, &mark);
        dead == ids.len() || (dead * WORTH >= ids.len() && dead > 0 && own.size <= COPIED)
    });
    if packs.is_empty() {
        return Ok(Pruned::Nothing);
    }
    let made = copy(store, &folder, &packs, &mark.live)?;
    let before: HashSet<Oid> = mark.live.clone();

    let Ok(lock) = File::open(&folder) else { return Ok(Pruned::Nothing) };
    if matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)) {
        return Ok(Pruned::Disturbed);
    }
    let untouched = own_packs(&folder)?;
    let stays =
        |own: &Own| untouched.iter().any(|now| now.name == own.name && now.touched == own.touched);
    if !packs.iter().all(|(own, _)| stays(own)) {
        return Ok(Pruned::Disturbed);
    }
    let again = Names::read(common_dir, &ours).map_err(fail)?;
    if !mark.all(&again)? || mark.live != before {
        return Ok(Pruned::Disturbed);
    }
    let gone: Vec<&Own> = packs
        .iter()
        .map(|(own, _)| own)
        .filter(|own| Some(own.name) != made.map(|m| m.0))
        .collect();
    let bytes: u64 = gone.iter().map(|own| own.size).sum();
    remove_packs(&folder, gone.into_iter())?;
    store.refresh();
    Ok(Pruned::Freed(bytes.saturating_sub(made.map_or(0, |m| m.1))))
}

/// How many bytes worktx's own packs have.
pub fn own_bytes(store: &Store) -> u64 {
    let packs = own_packs(&store.objects_dir().join("pack")).unwrap_or_default();
    packs.iter().map(|own| own.size).sum()
}

/// One pack with what stays of these; its name and size, where something does.
fn copy(
    store: &Store,
    folder: &Path,
    packs: &[(Own, Vec<Oid>)],
    live: &HashSet<Oid>,
) -> Result<Option<(Oid, u64)>, PackError> {
    let mut writer = PackWriter::apart(store);
    let mut touched = SystemTime::UNIX_EPOCH;
    for (own, ids) in packs {
        if !ids.iter().any(|id| live.contains(id)) {
            continue;
        }
        touched = touched.max(own.touched);
        let path = own.path(folder, "pack");
        let all =
            entries(own, folder).map_err(|source| PackError::Io { what: "copy", path, source })?;
        for (id, bytes) in all.into_iter().filter(|(id, _)| live.contains(id)) {
            writer.add_entry(id, &bytes)?;
        }
    }
    let Some(name) = writer.finish_named()? else { return Ok(None) };
    let made = Own { name, size: 0, touched };
    made.keep_time(folder);
    let size = std::fs::metadata(made.path(folder, "pack")).map_or(0, |meta| meta.len());
    Ok(Some((name, size)))
}

/// The ids that the files of the git directories name.
#[derive(Default)]
struct Names {
    ids: HashSet<Oid>,
    /// How much was looked through.
    bytes: u64,
}

impl Names {
    fn read(common_dir: &Path, ours: &HashSet<Oid>) -> io::Result<Self> {
        let mut names = Self::default();
        let mut first = vec![false; 1 << 16];
        for id in ours {
            first[two(id.as_bytes())] = true;
        }
        let mut todo = vec![(common_dir.to_owned(), true)];
        while let Some((dir, is_top)) = todo.pop() {
            let list = match std::fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                list => list?,
            };
            for entry in list {
                let entry = entry?;
                let mut kind = entry.file_type()?;
                if kind.is_symlink() {
                    match std::fs::metadata(entry.path()) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                        meta => kind = meta?.file_type(),
                    }
                    if kind.is_dir() {
                        // Where it leads to is not known, and what there is, may name anything.
                        let why = format!("{} leads elsewhere", entry.path().display());
                        return Err(io::Error::other(why));
                    }
                }
                if kind.is_dir() {
                    let name = entry.file_name();
                    if !(is_top && NAMELESS.iter().any(|nameless| name == *nameless)) {
                        todo.push((entry.path(), false));
                    }
                } else if kind.is_file() {
                    match File::open(entry.path()) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        file => names.file(&mut file?, ours, &first)?,
                    }
                }
            }
        }
        Ok(names)
    }

    /// Reads a file piece by piece, each with the end of the one before it.
    fn file(
        &mut self,
        file: &mut impl Read,
        ours: &HashSet<Oid>,
        first: &[bool],
    ) -> io::Result<()> {
        let (mut bytes, mut kept) = (vec![0; PIECE + OVERLAP], 0);
        loop {
            let count = file.read(&mut bytes[kept..])?;
            self.bytes += count as u64;
            if self.bytes > LOOKED_THROUGH {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            if count == 0 {
                return Ok(());
            }
            let piece = &bytes[..kept + count];
            for word in piece.split(|byte| !byte.is_ascii_hexdigit()).filter(|w| w.len() == 40) {
                let word = std::str::from_utf8(word).ok();
                self.ids.extend(word.and_then(|word| word.parse::<Oid>().ok()));
            }
            for window in piece.windows(20).filter(|window| first[two(window)]) {
                let id = Oid::from_bytes(window.try_into().expect("twenty bytes"));
                if ours.contains(&id) {
                    self.ids.insert(id);
                }
            }
            let end = piece.len();
            let start = end.saturating_sub(OVERLAP);
            bytes.copy_within(start..end, 0);
            kept = end - start;
        }
    }
}

/// The first two bytes as a number.
fn two(id: &[u8]) -> usize {
    usize::from(id[0]) << 8 | usize::from(id[1])
}

/// Finds what is reached from names.
struct Mark<'a> {
    store: &'a Store,
    /// What might be dropped.
    ours: &'a HashSet<Oid>,
    /// What of it stays.
    live: HashSet<Oid>,
    /// Commits, trees and tags that were looked into.
    seen: HashSet<Oid>,
    bounds: &'a Bounds,
}

impl Mark<'_> {
    /// Whether the bounds were enough.
    fn all(&mut self, names: &Names) -> Result<bool, PackError> {
        let mut todo: Vec<(Oid, Option<ObjectKind>)> =
            names.ids.iter().map(|id| (*id, None)).collect();
        while let Some((id, kind)) = todo.pop() {
            if self.ours.contains(&id) {
                self.live.insert(id);
            }
            if kind == Some(ObjectKind::Blob) || self.seen.contains(&id) {
                continue;
            }
            // What is not there, as beyond the edge of a shallow clone, leads nowhere.
            let kind = match kind {
                Some(kind) => kind,
                None => match self.store.kind(id)? {
                    Some(kind) => kind,
                    None => continue,
                },
            };
            if kind == ObjectKind::Blob {
                continue;
            }
            self.seen.insert(id);
            if self.seen.len() > self.bounds.objects {
                return Ok(false);
            }
            match self.look_into(id, kind, &mut todo) {
                Err(StoreError::Odb(OdbError::Missing(_))) => {}
                done => done?,
            }
        }
        Ok(true)
    }

    fn look_into(
        &self,
        id: Oid,
        kind: ObjectKind,
        todo: &mut Vec<(Oid, Option<ObjectKind>)>,
    ) -> Result<(), StoreError> {
        match kind {
            ObjectKind::Commit => {
                let commit = self.store.commit(id)?;
                todo.push((commit.tree, Some(ObjectKind::Tree)));
                todo.extend(commit.parents.into_iter().map(|id| (id, Some(ObjectKind::Commit))));
            }
            ObjectKind::Tree => {
                for entry in self.store.tree(id)? {
                    match entry.mode {
                        GIT_LINK => {}
                        GIT_TREE => todo.push((entry.id, Some(ObjectKind::Tree))),
                        _ => todo.push((entry.id, Some(ObjectKind::Blob))),
                    }
                }
            }
            ObjectKind::Tag => todo.push((self.store.tag_target(id)?, None)),
            ObjectKind::Blob => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testkit::Repo;
    use super::*;

    const NOW: Bounds = Bounds { grace: Duration::ZERO, objects: 1000 };

    struct Lab {
        repo: Repo,
        store: Store,
    }

    impl Lab {
        fn new() -> Self {
            let repo = Repo::new();
            std::fs::write(repo.root().join("file"), "first\n").expect("written");
            repo.git(&["add", "file"]);
            repo.git(&["commit", "-q", "-m", "first"]);
            let store = Store::open(&repo.git_dir()).expect("opened");
            Self { repo, store }
        }

        /// A commit in an own pack, on top of HEAD, with one file more.
        fn packed(&self, text: &str) -> (Oid, Oid) {
            let head: Oid = self.repo.git(&["rev-parse", "HEAD"]).parse().expect("an id");
            let mut pack = PackWriter::new(&self.store);
            let blob = pack.add_blob_bytes(text.as_bytes()).expect("added");
            let mut tree = b"100644 more\0".to_vec();
            tree.extend(blob.as_bytes());
            let tree = pack.add_tree(&tree).expect("added");
            let commit = format!(
                "tree {tree}\nparent {head}\nauthor A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\n{text}"
            );
            let commit = pack.add_commit(commit.as_bytes()).expect("added");
            pack.finish().expect("durable");
            (commit, blob)
        }

        fn prune(&self, bounds: &Bounds) -> Pruned {
            prune(&self.store, &self.repo.git_dir(), &[], bounds).expect("done")
        }

        fn has(&self, id: Oid) -> bool {
            self.repo.try_git(&["cat-file", "-e", &id.to_string()])
        }
    }

    #[test]
    fn what_nothing_names_goes_and_what_anything_names_stays() {
        let lab = Lab::new();
        let of = |name: &str| lab.packed(&format!("{name}\n"));
        let (by_ref, by_log, by_index, by_file, by_tag, by_other) =
            (of("ref"), of("log"), of("index"), of("file"), of("tag"), of("other"));
        let (dead, told) = (of("dead"), of("told"));
        lab.repo.git(&["update-ref", "refs/kept/one", &by_ref.0.to_string()]);
        lab.repo.git(&["branch", "gone", &by_log.0.to_string()]);
        lab.repo.git(&["checkout", "-q", "gone"]);
        lab.repo.git(&["checkout", "-q", "main"]);
        lab.repo.git(&["branch", "-q", "-D", "gone"]);
        std::fs::write(lab.repo.root().join("added"), "index\n").expect("written");
        lab.repo.git(&["add", "added"]);
        std::fs::write(lab.repo.git_dir().join("ORIG_HEAD"), format!("{}\n", by_file.0))
            .expect("written");
        lab.repo.git(&["tag", "-a", "-m", "tag", "tag", &by_tag.0.to_string()]);
        lab.repo.git(&["worktree", "add", "-q", "--detach", "../other", &by_other.0.to_string()]);
        lab.repo.git(&["pack-refs", "--all"]);

        let day = Bounds { grace: Duration::from_hours(24), ..NOW };
        assert_eq!(lab.prune(&day), Pruned::Nothing, "all are young");
        assert_eq!(lab.prune(&Bounds { objects: 2, ..NOW }), Pruned::TooMuch);
        let also = [told.0];
        let done = prune(&lab.store, &lab.repo.git_dir(), &also, &NOW).expect("done");
        assert!(matches!(done, Pruned::Freed(bytes) if bytes > 0), "{done:?}");
        for (kept, blob) in [by_ref, by_log, by_file, by_tag, by_other, told] {
            assert!(lab.has(kept) && lab.has(blob));
        }
        // Only the blob of it was named.
        assert!(lab.has(by_index.1) && !lab.has(by_index.0));
        assert!(!lab.has(dead.0) && !lab.has(dead.1));
        lab.repo.git(&["fsck", "--strict"]);
        assert!(matches!(lab.prune(&NOW), Pruned::Freed(_)), "nobody tells of it now");
        assert!(!lab.has(told.0));
        assert_eq!(lab.prune(&NOW), Pruned::Nothing);
        lab.repo.git(&["fsck", "--strict"]);
    }

    #[test]
    fn behind_a_link_there_may_be_names() {
        let lab = Lab::new();
        let (kept, _) = lab.packed("kept\n");
        lab.repo.git(&["update-ref", "refs/heads/kept", &kept.to_string()]);
        let (refs, aside) = (lab.repo.git_dir().join("refs"), lab.repo.root().join("refs-aside"));
        std::fs::rename(&refs, &aside).expect("moved");
        std::os::unix::fs::symlink(&aside, &refs).expect("made");
        prune(&lab.store, &lab.repo.git_dir(), &[], &NOW).expect_err("it cannot be told");
        assert!(lab.has(kept));
    }

    #[test]
    fn what_git_has_put_together_stays() {
        let lab = Lab::new();
        let (dead, _) = lab.packed("dead\n");
        lab.repo.git(&["multi-pack-index", "write"]);
        let (later, _) = lab.packed("later\n");
        assert!(matches!(lab.prune(&NOW), Pruned::Freed(_)));
        assert!(lab.has(dead) && !lab.has(later));
        lab.repo.git(&["multi-pack-index", "verify"]);
        lab.repo.git(&["fsck", "--strict"]);
        let index = lab.store.objects_dir().join("pack/multi-pack-index");
        std::fs::remove_file(&index).expect("removed");
        std::fs::write(&index, "no index").expect("written");
        assert_eq!(lab.prune(&NOW), Pruned::Nothing, "what cannot be read may name any");
        std::fs::remove_file(&index).expect("removed");
        assert!(matches!(lab.prune(&NOW), Pruned::Freed(_)));
        assert!(!lab.has(dead));
    }

    #[test]
    fn what_somebody_relies_on_is_young_again() {
        let lab = Lab::new();
        let (_, blob) = lab.packed("relied on\n");
        let hour = Bounds { grace: Duration::from_hours(1), ..NOW };
        let folder = lab.store.objects_dir().join("pack");
        for own in own_packs(&folder).expect("read") {
            let old = SystemTime::now() - Duration::from_hours(2);
            let file = File::open(own.path(&folder, "pack")).expect("there");
            file.set_modified(old).expect("set");
        }
        // A writer finds the blob there, and does not write it.
        let mut pack = PackWriter::new(&lab.store);
        assert_eq!(pack.add_blob_bytes(b"relied on\n").expect("added"), blob);
        assert_eq!(lab.prune(&NOW), Pruned::Disturbed, "a writer is at work");
        pack.finish().expect("nothing to do");
        assert_eq!(lab.prune(&hour), Pruned::Nothing);
        assert!(lab.has(blob));
        assert!(matches!(lab.prune(&NOW), Pruned::Freed(_)));
        assert!(!lab.has(blob));
    }

    #[test]
    fn ids_are_found_across_pieces() {
        let id: Oid = "0123456789abcdef0123456789abcdef01234567".parse().expect("an id");
        let ours = HashSet::from([id]);
        let mut first = vec![false; 1 << 16];
        first[two(id.as_bytes())] = true;
        for before in [0, 1, PIECE - 30, PIECE - 20, PIECE + 24, PIECE + 44, PIECE + 63] {
            for bytes in [id.as_bytes().to_vec(), format!(" {id}\n").into_bytes()] {
                let mut file = vec![b'.'; before];
                file.extend(bytes);
                file.extend([b'.'; 100]);
                let mut names = Names::default();
                names.file(&mut file.as_slice(), &ours, &first).expect("read");
                assert!(names.ids.contains(&id), "{before}");
            }
        }
    }
}
