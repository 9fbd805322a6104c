//! The objects of a repository, for reading: commits, trees, blobs, and how two trees differ.
//!
//! A [`Store`] is opened by the recorded common directory and the alternates that were known at
//! open. It never discovers, reads no configuration, no `commondir`, no `info/alternates` by
//! itself, no replace refs, grafts or commit graph; every object is checked against its id.
//!
//! # Limitations
//! SHA-1. Objects are read whole. Trees deeper than [`MAX_DEPTH`] are an error, as in git.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bstr::{BString, ByteSlice as _};

use crate::git::objects::odb::{Object, Odb};
pub use crate::git::objects::odb::{ObjectKind, OdbError};
use crate::tx::entry::{GIT_EXECUTABLE, GIT_FILE, GIT_LINK, GIT_SYMLINK, GIT_TREE};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;

/// How many folders deep a tree may be: git's own `core.maxTreeDepth`.
pub const MAX_DEPTH: usize = 2048;
/// How many alternates may point to further ones: as in git.
const ALTERNATES_DEPTH: usize = 5;

/// An object is not what is needed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is missing or damaged.
    #[error(transparent)]
    Odb(#[from] OdbError),
    /// libgit2 cannot open it.
    #[error("cannot open the repository {}: {why}", path.display())]
    Repository {
        /// The common directory.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// It is another kind of object.
    #[error("object {id} is a {found:?}, not a {wanted:?}")]
    Kind {
        /// Which.
        id: Oid,
        /// What was asked for.
        wanted: ObjectKind,
        /// What it is.
        found: ObjectKind,
    },
    /// Its bytes do not follow git's format.
    #[error("object {id} does not follow git's format: {why}")]
    Malformed {
        /// Which.
        id: Oid,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// A tree is deeper than [`MAX_DEPTH`].
    #[error("{path} is more than {MAX_DEPTH} folders deep")]
    TooDeep {
        /// Where.
        path: RepoPath,
    },
    /// The alternates file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Alternates {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl StoreError {
    /// The object that is missing or no good, where that is what is wrong: it will be so again.
    pub const fn object(&self) -> Option<Oid> {
        match self {
            Self::Odb(OdbError::Missing(id) | OdbError::Damaged { id, .. })
            | Self::Kind { id, .. }
            | Self::Malformed { id, .. } => Some(*id),
            Self::Odb(OdbError::Folder { .. })
            | Self::TooDeep { .. }
            | Self::Alternates { .. }
            | Self::Repository { .. } => None,
        }
    }
}

/// A commit, as far as worktx reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its tree.
    pub tree: Oid,
    /// Its parents, in order.
    pub parents: Vec<Oid>,
    /// The author line behind the word: `Name <mail> seconds zone`.
    pub author: BString,
    /// The committer line behind the word.
    pub committer: BString,
    /// The committer's time, seconds since the epoch; 0 where it cannot be read.
    pub time: i64,
    /// The message.
    pub message: BString,
}

/// An entry of a tree, as it stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// The name: one part.
    pub name: BString,
    /// The mode, in the form that git writes today.
    pub mode: u32,
    /// The object.
    pub id: Oid,
}

impl TreeEntry {
    /// Whether it is a folder.
    pub fn is_tree(&self) -> bool {
        self.mode == GIT_TREE
    }
}

/// Mode and id of what a tree holds at a path.
pub type Held = (u32, Oid);
/// A path that two trees hold differently: where, in the first, in the second.
pub type TreeChange = (RepoPath, Option<Held>, Option<Held>);

/// The objects of a repository.
pub struct Store {
    odb: Odb,
    objects: PathBuf,
    alternates: Vec<PathBuf>,
}

/// The objects of a repository for several threads, one at a time; opened when one is asked for.
pub struct SharedStore {
    objects: PathBuf,
    alternates: Vec<PathBuf>,
    opened: Mutex<Option<Store>>,
}

impl SharedStore {
    /// See [`Store::blob`].
    pub fn blob(&self, id: Oid) -> Result<Vec<u8>, StoreError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = &*opened {
            return store.blob(id);
        }
        let store = Store::of(self.objects.clone(), &self.alternates)?;
        opened.insert(store).blob(id)
    }
}

impl Store {
    /// Opens the objects of a repository by its common directory, with the alternates that stand
    /// there now: for the time before a turn. Keep [`Store::alternates`] for [`Store::open_with`].
    pub fn open(common_dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(common_dir, &read_alternates(common_dir)?)
    }

    /// Opens the objects of a repository by its common directory, with the alternates as captured.
    pub fn open_with(common_dir: &Path, alternates: &[PathBuf]) -> Result<Self, StoreError> {
        Self::of(common_dir.join("objects"), alternates)
    }

    fn of(objects: PathBuf, alternates: &[PathBuf]) -> Result<Self, StoreError> {
        let mut folders = vec![objects.clone()];
        folders.extend_from_slice(alternates);
        Ok(Self { odb: Odb::open(&folders)?, objects, alternates: alternates.to_vec() })
    }

    /// The same objects for several threads.
    pub fn shared(&self) -> SharedStore {
        SharedStore {
            objects: self.objects.clone(),
            alternates: self.alternates.clone(),
            opened: Mutex::new(None),
        }
    }

    /// The object folders of others that are read too.
    pub fn alternates(&self) -> &[PathBuf] {
        &self.alternates
    }

    /// The folder that objects are written into.
    pub fn objects_dir(&self) -> &Path {
        &self.objects
    }

    /// Makes everything durable that anybody has written into the object folder (`syncfs`), for
    /// objects that git wrote for a turn: git does not sync loose ones. Before a ref or the ledger
    /// names them.
    pub fn sync(&self) -> std::io::Result<()> {
        let folder = std::fs::File::open(&self.objects)?;
        Ok(rustix::fs::syncfs(&folder)?)
    }

    /// Looks for objects that came since the store was opened.
    pub fn refresh(&self) {
        self.odb.refresh();
    }

    /// Whether there is such an object; its bytes are not looked at.
    pub fn exists(&self, id: Oid) -> bool {
        self.odb.exists(id)
    }

    /// What kind of object it is, `None` where there is none; its bytes are not checked.
    pub fn kind(&self, id: Oid) -> Result<Option<ObjectKind>, StoreError> {
        Ok(self.odb.header(id)?.map(|(_, kind)| kind))
    }

    /// How many bytes a blob has.
    pub fn blob_size(&self, id: Oid) -> Result<u64, StoreError> {
        match self.odb.header(id)? {
            Some((size, ObjectKind::Blob)) => Ok(size),
            Some((_, found)) => Err(StoreError::Kind { id, wanted: ObjectKind::Blob, found }),
            None => Err(OdbError::Missing(id).into()),
        }
    }

    /// The bytes of a blob.
    pub fn blob(&self, id: Oid) -> Result<Vec<u8>, StoreError> {
        Ok(self.read(id, ObjectKind::Blob)?.bytes().to_vec())
    }

    /// Does something with the bytes of a blob, which are not copied.
    pub fn with_blob<T>(&self, id: Oid, act: impl FnOnce(&[u8]) -> T) -> Result<T, StoreError> {
        Ok(act(self.read(id, ObjectKind::Blob)?.bytes()))
    }

    /// Reads a blob for the check of its id alone, and says how many bytes it has.
    pub fn verify_blob(&self, id: Oid) -> Result<u64, StoreError> {
        Ok(self.read(id, ObjectKind::Blob)?.bytes().len() as u64)
    }

    fn read(&self, id: Oid, wanted: ObjectKind) -> Result<Object, StoreError> {
        let object = self.odb.read(id)?;
        if object.kind == wanted {
            Ok(object)
        } else {
            Err(StoreError::Kind { id, wanted, found: object.kind })
        }
    }

    /// A commit.
    pub fn commit(&self, id: Oid) -> Result<Commit, StoreError> {
        let object = self.read(id, ObjectKind::Commit)?;
        parse_commit(object.bytes()).map_err(|why| StoreError::Malformed { id, why })
    }

    /// The entries of a tree, in git's order. [`Oid::EMPTY_TREE`] needs no object.
    pub fn tree(&self, id: Oid) -> Result<Vec<TreeEntry>, StoreError> {
        if id == Oid::EMPTY_TREE {
            return Ok(Vec::new());
        }
        let object = self.read(id, ObjectKind::Tree)?;
        parse_tree(object.bytes()).map_err(|why| StoreError::Malformed { id, why })
    }

    /// Everything beneath a tree that is no folder, in the order of the index (by bytes of the
    /// whole path).
    pub fn tree_walk(&self, tree: Oid) -> TreeWalk<'_> {
        TreeWalk { store: self, root: Some(tree), stack: Vec::new() }
    }

    /// What a tree holds at a path, folders included.
    pub fn lookup(&self, tree: Oid, path: &RepoPath) -> Result<Option<Held>, StoreError> {
        let mut at = (GIT_TREE, tree);
        for part in path.parts() {
            if at.0 != GIT_TREE {
                return Ok(None);
            }
            match self.tree(at.1)?.into_iter().find(|entry| entry.name == part) {
                Some(entry) => at = (entry.mode, entry.id),
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// The paths (no folders) that two trees hold differently, by path. Equal subtrees are not
    /// read.
    pub fn diff_trees(&self, a: Oid, b: Oid) -> Result<Vec<TreeChange>, StoreError> {
        let mut changes = Vec::new();
        let mut work = vec![(None::<RepoPath>, 0, Some(a), Some(b))];
        while let Some((dir, depth, a, b)) = work.pop() {
            if a == b {
                continue;
            }
            let list = |id: Option<Oid>| id.map_or_else(|| Ok(Vec::new()), |id| self.tree(id));
            let before = list(a)?;
            let mut after: HashMap<BString, Held> =
                list(b)?.into_iter().map(|entry| (entry.name, (entry.mode, entry.id))).collect();
            let mut pairs = Vec::new();
            for entry in before {
                let new = after.remove(&entry.name);
                let old = (entry.mode, entry.id);
                if new != Some(old) {
                    pairs.push((entry.name, Some(old), new));
                }
            }
            pairs.extend(after.into_iter().map(|(name, new)| (name, None, Some(new))));
            for (name, old, new) in pairs {
                let path = RepoPath::join(dir.as_ref(), &name);
                let is_tree = |held: &Held| held.0 == GIT_TREE;
                let (old_tree, old) = old.map_or((None, None), |h| part(h, is_tree(&h)));
                let (new_tree, new) = new.map_or((None, None), |h| part(h, is_tree(&h)));
                if old.is_some() || new.is_some() {
                    changes.push((path.clone(), old, new));
                }
                if old_tree.is_some() || new_tree.is_some() {
                    if depth == MAX_DEPTH {
                        return Err(StoreError::TooDeep { path });
                    }
                    work.push((Some(path), depth + 1, old_tree, new_tree));
                }
            }
        }
        changes.sort_unstable_by(|x, y| x.0.cmp(&y.0));
        Ok(changes)
    }
}

/// A folder goes to the left, anything else to the right.
const fn part(held: Held, is_tree: bool) -> (Option<Oid>, Option<Held>) {
    if is_tree { (Some(held.1), None) } else { (None, Some(held)) }
}

/// See [`Store::tree_walk`]. Ends after an error.
pub struct TreeWalk<'a> {
    store: &'a Store,
    root: Option<Oid>,
    stack: Vec<(Option<RepoPath>, std::vec::IntoIter<TreeEntry>)>,
}

impl TreeWalk<'_> {
    fn fail(&mut self, error: StoreError) -> Result<(RepoPath, u32, Oid), StoreError> {
        self.stack.clear();
        Err(error)
    }
}

impl Iterator for TreeWalk<'_> {
    type Item = Result<(RepoPath, u32, Oid), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(root) = self.root.take() {
            match self.store.tree(root) {
                Ok(entries) => self.stack.push((None, entries.into_iter())),
                Err(error) => return Some(self.fail(error)),
            }
        }
        loop {
            let (dir, entries) = self.stack.last_mut()?;
            let Some(entry) = entries.next() else {
                self.stack.pop();
                continue;
            };
            let path = RepoPath::join(dir.as_ref(), &entry.name);
            if !entry.is_tree() {
                return Some(Ok((path, entry.mode, entry.id)));
            }
            if self.stack.len() > MAX_DEPTH {
                return Some(self.fail(StoreError::TooDeep { path }));
            }
            match self.store.tree(entry.id) {
                Ok(entries) => self.stack.push((Some(path), entries.into_iter())),
                Err(error) => return Some(self.fail(error)),
            }
        }
    }
}

fn parse_tree(mut rest: &[u8]) -> Result<Vec<TreeEntry>, &'static str> {
    let mut entries: Vec<TreeEntry> = Vec::new();
    while !rest.is_empty() {
        let space = rest.find_byte(b' ').ok_or("an entry without a mode")?;
        let mode = rest[..space].iter().try_fold(0u32, |mode, digit| match digit {
            b'0'..=b'7' if mode < 1 << 21 => Some(mode << 3 | u32::from(digit - b'0')),
            _ => None,
        });
        let mode = canonical(mode.ok_or("a mode that is no octal number")?)?;
        rest = &rest[space + 1..];
        let zero = rest.find_byte(0).ok_or("a name without an end")?;
        let name = &rest[..zero];
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err("a name that is no name");
        }
        let id = rest.get(zero + 1..zero + 21).ok_or("an id that is cut off")?;
        let id = Oid::from_bytes(id.try_into().expect("twenty bytes were cut out"));
        let entry = TreeEntry { name: name.into(), mode, id };
        if entries.last().is_some_and(|last| tree_order(last, &entry) != Ordering::Less) {
            return Err("names that are out of order");
        }
        entries.push(entry);
        rest = &rest[zero + 21..];
    }
    Ok(entries)
}

/// git's order of tree entries: by bytes, a folder as if its name ended in `/`.
pub(crate) fn tree_order(a: &TreeEntry, b: &TreeEntry) -> Ordering {
    let slash = |e: &TreeEntry| e.is_tree().then_some(b'/');
    let bytes = |e| TreeEntry::name_bytes(e).chain(slash(e));
    bytes(a).cmp(bytes(b))
}

impl TreeEntry {
    fn name_bytes(&self) -> impl Iterator<Item = u8> + '_ {
        self.name.iter().copied()
    }
}

/// The mode as git writes it today: old trees have others (`100664`).
fn canonical(mode: u32) -> Result<u32, &'static str> {
    match mode & 0o170_000 {
        0o100_000 if mode & 0o100 != 0 => Ok(GIT_EXECUTABLE),
        0o100_000 => Ok(GIT_FILE),
        GIT_SYMLINK => Ok(GIT_SYMLINK),
        GIT_TREE => Ok(GIT_TREE),
        GIT_LINK => Ok(GIT_LINK),
        _ => Err("a mode that git does not know"),
    }
}

fn parse_commit(bytes: &[u8]) -> Result<Commit, &'static str> {
    let (head, message) = bytes.split_once_str("\n\n").unwrap_or((bytes, b""));
    let mut lines = head.lines();
    let id = |line: &[u8], word: &str| -> Option<Oid> {
        line.strip_prefix(word.as_bytes())?.to_str().ok()?.parse().ok()
    };
    let first = lines.next().ok_or("an empty commit")?;
    let tree = id(first, "tree ").ok_or("no tree in the first line")?;
    let (mut parents, mut author, mut committer) = (Vec::new(), None, None);
    for line in lines {
        if let Some(parent) = line.strip_prefix(b"parent ").filter(|_| author.is_none()) {
            let parent = parent.to_str().ok().and_then(|text| text.parse().ok());
            parents.push(parent.ok_or("a parent that is no id")?);
        } else if let Some(who) = line.strip_prefix(b"author ").filter(|_| author.is_none()) {
            author = Some(BString::from(who));
        } else if let Some(who) = line.strip_prefix(b"committer ").filter(|_| committer.is_none()) {
            committer = Some(BString::from(who));
        }
    }
    let committer = committer.ok_or("no committer")?;
    let time = committer.rsplit_str(" ").nth(1).and_then(|t| t.to_str().ok()?.parse().ok());
    Ok(Commit {
        tree,
        parents,
        author: author.ok_or("no author")?,
        time: time.unwrap_or(0),
        committer,
        message: message.into(),
    })
}

/// The object folders that `objects/info/alternates` names, and those that they name in turn.
pub fn read_alternates(common_dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut work = vec![(common_dir.join("objects"), 0)];
    while let Some((objects, depth)) = work.pop() {
        let path = objects.join("info/alternates");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(StoreError::Alternates { path, source }),
        };
        for line in bytes.lines().filter(|l| !l.is_empty() && l[0] != b'#') {
            let folder = objects.join(OsStr::from_bytes(line));
            if folder.is_dir() && !found.contains(&folder) {
                found.push(folder.clone());
                if depth < ALTERNATES_DEPTH {
                    work.push((folder, depth + 1));
                }
            }
        }
    }
    Ok(found)
}
