//! Refs: reading all of them, and keeping those of worktx's own prefix.
//!
//! Read as files (loose, then `packed-refs`) beneath a held folder, without following links. A
//! [`Refs::pin`] is a compare-and-swap by git's own protocol: `<ref>.lock`, look, rename; synced
//! with every folder that it made.
//!
//! # Limitations
//! The files format; reftable is refused before. Names that are no UTF-8 are listed as broken, and
//! so is what is no file, links too, which git would follow.
//! The own prefix is nobody else's: a lock that stands there is taken for a crashed one, so the
//! caller holds the workspace lock. No reflogs are written for it.

pub mod branch;
pub mod locks;
pub mod reflog;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bstr::ByteSlice as _;
use rustix::io::Errno;

use crate::git::files::dir::{Dir, DirError, split};
use crate::git::refs::locks::{LockError, Place};
use crate::tx::id::{Oid, Pin, RefName};

/// How many symbolic refs may lead to one another: as in git.
const MAX_SYMREFS: usize = 5;
/// How long somebody else's lock of `packed-refs` is waited for.
const PACKED_BOUND: Duration = Duration::from_secs(10);

/// A ref could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RefError {
    /// A folder or file of the git directory. [`DirError::is_symlink`] tells a planted link.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// `packed-refs` is locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The file of the ref holds neither an id nor the name of another ref.
    #[error("ref {name} holds no object id")]
    Broken {
        /// Which.
        name: RefName,
    },
    /// The ref stands with another id than the one that is expected.
    #[error("ref {name} is {}, not {wanted}", found.map_or_else(|| "not there".to_owned(), |id| id.to_string()))]
    Differs {
        /// Which.
        name: RefName,
        /// What it should hold.
        wanted: Oid,
        /// What it holds.
        found: Option<Oid>,
    },
    /// Another ref stands in the way: one name is the folder of the other.
    #[error("ref {name} cannot stand beside {other}")]
    Conflict {
        /// The ref that was to be made.
        name: RefName,
        /// What is in its way.
        other: String,
    },
    /// Not a name for a ref, or not one of worktx's own prefix.
    #[error("{name} is no ref name that can be used here")]
    Name {
        /// The name.
        name: RefName,
    },
}

/// What HEAD says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// A branch; without an id it is unborn.
    Branch(RefName, Option<Oid>),
    /// A commit.
    Detached(Oid),
    /// Neither: missing, damaged, or a ref outside `refs/heads/`. The bytes, for a person.
    Other(String),
}

/// All refs of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefList {
    /// Name and id, by name. Symbolic refs stand with the id that they lead to.
    pub refs: Vec<(RefName, Oid)>,
    /// Names whose file holds no id, that are no file (a link, a pipe), or that are no text.
    pub broken: Vec<RefName>,
}

enum Raw {
    Id(Oid),
    Symbolic(RefName),
    Broken,
}

impl Raw {
    fn is(&self, id: Oid) -> bool {
        matches!(self, Self::Id(found) if *found == id)
    }
}

/// The refs of one work tree.
#[derive(Debug)]
pub struct Refs {
    git: Dir,
    common: Dir,
    /// The folders in which every name on the way to a pin was made durable by this process.
    durable: RefCell<HashSet<Vec<u8>>>,
}

impl Refs {
    /// Opens the refs of a work tree by its recorded directories.
    pub fn open(git_dir: &Path, common_dir: &Path) -> Result<Self, RefError> {
        let (git, common) = (Dir::open(git_dir)?, Dir::open(common_dir)?);
        Ok(Self { git, common, durable: RefCell::default() })
    }

    /// HEAD of the work tree.
    pub fn head(&self) -> Result<Head, RefError> {
        let bytes = match self.git.read(b"HEAD") {
            Err(error) if error.is_irregular() => {
                return Ok(Head::Other("no file, but a link or a pipe".to_owned()));
            }
            read => read?,
        };
        Ok(match bytes.as_deref().map(parse) {
            Some(Raw::Id(id)) => Head::Detached(id),
            Some(Raw::Symbolic(name)) if name.0.starts_with("refs/heads/") && is_valid(&name) => {
                match self.get(&name) {
                    Ok(id) => Head::Branch(name, id),
                    Err(RefError::Broken { .. }) => Head::Other(format!("{name} is damaged")),
                    Err(error) => return Err(error),
                }
            }
            _ => Head::Other(bytes.unwrap_or_default().to_str_lossy().trim_end().to_owned()),
        })
    }

    /// The id of a ref, symbolic ones followed; `None` where there is none.
    pub fn get(&self, name: &RefName) -> Result<Option<Oid>, RefError> {
        let mut name = name.clone();
        for _ in 0..=MAX_SYMREFS {
            if !is_valid(&name) {
                return Err(RefError::Name { name });
            }
            match self.raw(&name)? {
                None => return Ok(None),
                Some(Raw::Id(id)) => return Ok(Some(id)),
                Some(Raw::Symbolic(next)) => name = next,
                Some(Raw::Broken) => break,
            }
        }
        Err(RefError::Broken { name })
    }

    fn raw(&self, name: &RefName) -> Result<Option<Raw>, RefError> {
        let own = ["refs/bisect/", "refs/worktree/", "refs/rewritten/"];
        let per_worktree = own.iter().any(|dir| name.0.starts_with(dir));
        let dir =
            if per_worktree || !name.0.starts_with("refs/") { &self.git } else { &self.common };
        if let Some(raw) = read_raw(dir, name.0.as_bytes())? {
            return Ok(Some(raw));
        }
        let packed = self.common.read(b"packed-refs")?.unwrap_or_default();
        let found = packed_lines(&packed).find(|(_, ref_name)| *ref_name == name.0.as_bytes());
        Ok(found.map(|(id, _)| id.map_or(Raw::Broken, Raw::Id)))
    }

    /// All refs at or beneath a name (`refs`, `refs/worktx/tx`), with or without a slash at its end.
    pub fn list(&self, prefix: &str) -> Result<RefList, RefError> {
        self.list_but(prefix, &[])
    }

    /// As [`Refs::list`], without what is at or beneath one of the folders `but`, which are not
    /// looked into: an attempt's own refs may be many.
    pub fn list_but(&self, prefix: &str, but: &[&str]) -> Result<RefList, RefError> {
        let prefix = prefix.trim_end_matches('/');
        let left_out = |name: &[u8]| {
            but.iter().any(|folder| {
                name.strip_prefix(folder.as_bytes()).is_some_and(|r| r.is_empty() || r[0] == b'/')
            })
        };
        let mut all: BTreeMap<Vec<u8>, Raw> = BTreeMap::new();
        let packed = self.common.read(b"packed-refs")?.unwrap_or_default();
        let beneath = |name: &[u8]| {
            name.strip_prefix(prefix.as_bytes()).is_some_and(|r| r.is_empty() || r[0] == b'/')
        };
        for (id, name) in packed_lines(&packed).filter(|(_, name)| beneath(name) && !left_out(name))
        {
            all.insert(name.to_vec(), id.map_or(Raw::Broken, Raw::Id));
        }
        // What is a link is broken, and not looked through: a turn may have planted it.
        let mut work = vec![prefix.as_bytes().to_vec()];
        while let Some(folder) = work.pop() {
            let Some(dir) = self.common.dir(&folder)? else { continue };
            for (name, is_dir) in dir.names()? {
                let path = [&folder[..], b"/", &name[..]].concat();
                if left_out(&path) {
                    continue;
                }
                if is_dir {
                    work.push(path);
                } else if !name.ends_with(b".lock") {
                    // Gone since the listing: as if it had never been there.
                    if let Some(raw) = read_raw(&dir, &name)? {
                        all.insert(path, raw);
                    }
                }
            }
        }
        let mut list = RefList::default();
        for (name, raw) in all {
            let ref_name = RefName(name.to_str_lossy().into_owned());
            let id = match raw {
                Raw::Id(id) => Some(id),
                Raw::Symbolic(_) => self.get(&ref_name).ok().flatten(),
                Raw::Broken => None,
            };
            match id {
                Some(id) if is_valid(&ref_name) && name.to_str().is_ok() => {
                    list.refs.push((ref_name, id));
                }
                _ => list.broken.push(ref_name),
            }
        }
        Ok(list)
    }

    /// The commits of all stash entries, oldest first: only the newest has a ref, the others live
    /// in its reflog.
    pub fn stash_entries(&self) -> Result<Vec<Oid>, RefError> {
        let log = match self.common.read(b"logs/refs/stash") {
            // Not looked through, as a ref that is none; git would follow a link.
            Err(error) if error.is_irregular() => Vec::new(),
            read => read?.unwrap_or_default(),
        };
        let id = |line: &[u8]| line.get(41..81)?.to_str().ok()?.parse::<Oid>().ok();
        let mut entries: Vec<Oid> = log.lines().filter_map(id).filter(|id| !id.is_zero()).collect();
        if let Ok(Some(top)) = self.get(&RefName("refs/stash".to_owned()))
            && !entries.contains(&top)
        {
            entries.push(top);
        }
        Ok(entries)
    }

    /// Makes the ref of a pin, durable. One that stands with that id is made already; with
    /// another id it is [`RefError::Differs`]. A damaged file in its place is replaced.
    pub fn pin(&self, prefix: &str, pin: &Pin) -> Result<(), RefError> {
        self.write(prefix, pin, false)
    }

    /// As [`Refs::pin`], whatever stands there now: for a ref that somebody moved.
    pub fn put_back(&self, prefix: &str, pin: &Pin) -> Result<(), RefError> {
        self.write(prefix, pin, true)
    }

    fn write(&self, prefix: &str, pin: &Pin, force: bool) -> Result<(), RefError> {
        let Pin { name, id } = pin;
        check_own(prefix, name)?;
        let conflict = |other: &str| RefError::Conflict { name: name.clone(), other: other.into() };
        // A packed ref in the way is not seen by making files.
        let packed = self.common.read(b"packed-refs")?.unwrap_or_default();
        let in_way = |other: &[u8]| {
            let (short, long) = if other.len() < name.0.len() {
                (other, name.0.as_bytes())
            } else {
                (name.0.as_bytes(), other)
            };
            long.strip_prefix(short).is_some_and(|rest| rest.first() == Some(&b'/'))
        };
        if let Some((_, other)) = packed_lines(&packed).find(|(_, other)| in_way(other)) {
            return Err(conflict(&other.to_str_lossy()));
        }
        let (parent, leaf) = split(name.0.as_bytes());
        let (dir, grown) = match self.common.grow(parent) {
            Err(e) if e.is(Errno::NOTDIR) => return Err(conflict("a file on its way")),
            Err(e) => {
                // Some may have been made.
                self.durable.borrow_mut().clear();
                return Err(e.into());
            }
            Ok(grown) => grown,
        };
        let mut durable = self.durable.borrow_mut();
        let mut grown: HashSet<PathBuf> = grown.into_iter().map(Dir::into_path).collect();
        // Whatever comes of this call: who comes next syncs them.
        durable.retain(|path| !grown.contains(&self.common.path_of(path)));
        let lock = [leaf, b".lock"].concat();
        dir.unlink(&lock)?;
        dir.create(&lock, format!("{id}\n").as_bytes())?;
        let found = match self.raw(name)? {
            Some(Raw::Id(found)) => Some(found),
            Some(Raw::Symbolic(_)) if !force => self.get(name).ok().flatten(),
            _ => None,
        };
        if found.is_some_and(|found| found != *id) && !force {
            dir.unlink(&lock)?;
            return Err(RefError::Differs { name: name.clone(), wanted: *id, found });
        }
        // Also where it stands already: whoever made it may have died before it was durable.
        let mut placed = dir.rename(&lock, &dir, leaf);
        if placed.as_ref().is_err_and(|e| e.is(Errno::ISDIR)) && remove_empty(&dir, leaf) {
            placed = dir.rename(&lock, &dir, leaf);
        }
        if let Err(error) = placed {
            dir.unlink(&lock)?;
            let blocked = error.is(Errno::ISDIR);
            return Err(if blocked { conflict("a folder in its place") } else { error.into() });
        }
        dir.sync()?;
        // A folder on the way may have been made just before a crash. Those that this process
        // synced are durable, if nothing was made in them since.
        for (at, _) in name.0.match_indices('/') {
            let path = &name.0.as_bytes()[..at];
            let is_parent = at + 1 + leaf.len() == name.0.len();
            grown.remove(&self.common.path_of(path));
            if is_parent || durable.contains(path) {
                continue;
            }
            if let Some(folder) = self.common.dir(path)? {
                folder.sync()?;
                durable.insert(path.to_vec());
            }
        }
        // `refs` itself, where even that was made.
        if grown.is_empty() { Ok(()) } else { Ok(self.common.sync()?) }
    }

    /// Removes the ref of a pin, loose and packed, for good, and the folders of the prefix that
    /// end up empty. Not there: done. With another id: [`RefError::Differs`].
    ///
    /// `prep_dir` is where the prepared file of worktx's locks is (`locks`).
    pub fn unpin(&self, prefix: &str, pin: &Pin, prep_dir: &Path) -> Result<(), RefError> {
        self.unpin_all(prefix, std::iter::once(pin), prep_dir)
    }

    /// As [`Refs::unpin`] for each of them, up to the first that is another. Each folder that is
    /// left is synced once, after all of them.
    pub fn unpin_all<'p>(
        &self,
        prefix: &str,
        mut pins: impl Iterator<Item = &'p Pin>,
        prep_dir: &Path,
    ) -> Result<(), RefError> {
        let mut touched = BTreeSet::new();
        let removed = pins.try_for_each(|pin| self.remove(prefix, pin, prep_dir, &mut touched));
        for folder in touched {
            if let Some(dir) = self.common.dir(&folder)? {
                dir.sync()?;
            }
        }
        removed
    }

    /// `touched` is told the folders that are left and have one name less.
    fn remove(
        &self,
        prefix: &str,
        pin: &Pin,
        prep_dir: &Path,
        touched: &mut BTreeSet<Vec<u8>>,
    ) -> Result<(), RefError> {
        let Pin { name, id } = pin;
        check_own(prefix, name)?;
        // One that is not there may have been about to be made: its lock and its folders go.
        if let Some(Raw::Id(found)) = self.raw(name)?.filter(|raw| !raw.is(*id)) {
            return Err(RefError::Differs { name: name.clone(), wanted: *id, found: Some(found) });
        }
        // Packed first: a crash between the two leaves the loose one, and so the same ref.
        self.unpack(name, prep_dir)?;
        if let Some((dir, leaf)) = self.common.parent(name.0.as_bytes())? {
            let locked = dir.unlink(&[leaf, b".lock"].concat())?;
            if dir.unlink(leaf)? || locked {
                touched.insert(split(name.0.as_bytes()).0.to_vec());
            }
        }
        let mut folder = name.0.as_str();
        while let Some((parent, leaf)) = folder.rsplit_once('/') {
            if folder != name.0 {
                // A folder that is not there was never made, or a crash came between.
                if let Some(dir) = self.common.dir(parent.as_bytes())? {
                    if dir.remove_dir(leaf.as_bytes()) {
                        touched.remove(folder.as_bytes());
                        touched.insert(parent.as_bytes().to_vec());
                    } else if dir.identity(leaf.as_bytes())?.is_some() {
                        break;
                    }
                }
            }
            folder = parent;
            if folder == prefix {
                break;
            }
        }
        Ok(())
    }

    /// Removes the locks beneath a folder of worktx's own prefix: whoever calls holds the workspace
    /// lock, so that nobody else makes refs there, and they are what a crash left.
    pub fn clear_locks(&self, folder: &str) -> Result<(), RefError> {
        let mut work = vec![folder.as_bytes().to_vec()];
        while let Some(path) = work.pop() {
            let Some(dir) = self.common.dir(&path)? else { continue };
            for (name, is_dir) in dir.names()? {
                if is_dir {
                    work.push([&path[..], b"/", &name[..]].concat());
                } else if name.ends_with(b".lock") {
                    dir.unlink(&name)?;
                }
            }
        }
        Ok(())
    }

    fn unpack(&self, name: &RefName, prep_dir: &Path) -> Result<(), RefError> {
        let holds = |packed: &[u8]| packed_lines(packed).any(|(_, n)| n == name.0.as_bytes());
        if !holds(&self.common.read(b"packed-refs")?.unwrap_or_default()) {
            return Ok(());
        }
        let prep = locks::open_made(prep_dir)?;
        let dir = self.common.dir(b"")?.expect("the folder that is held");
        let place = Place { dir, name: b"packed-refs".to_vec() };
        locks::take_one(&prep, &place, Instant::now() + PACKED_BOUND)?;
        let result = self.rewrite_packed(name, &prep);
        locks::release_one(&prep, &place)?;
        result
    }

    fn rewrite_packed(&self, name: &RefName, prep: &Dir) -> Result<(), RefError> {
        let packed = self.common.read(b"packed-refs")?.unwrap_or_default();
        let mut kept = Vec::with_capacity(packed.len());
        let mut skipping = false;
        for line in packed.lines_with_terminator() {
            let of_ref = line.get(41..).is_some_and(|n| n.trim_end() == name.0.as_bytes());
            // `^` lines belong to the ref above them.
            skipping = of_ref || (skipping && line.first() == Some(&b'^'));
            if !skipping {
                kept.extend_from_slice(line);
            }
        }
        let pending = b"packed-refs.pending";
        prep.unlink(pending)?;
        prep.create(pending, &kept)?;
        prep.rename(pending, &self.common, b"packed-refs")?;
        self.common.sync()?;
        Ok(prep.sync()?)
    }
}

/// Removes folders that hold nothing but folders; says whether `name` is gone.
fn remove_empty(parent: &Dir, name: &[u8]) -> bool {
    if let Ok(Some(dir)) = parent.dir(name) {
        for (child, is_dir) in dir.names().unwrap_or_default() {
            if !is_dir || !remove_empty(&dir, &child) {
                return false;
            }
        }
    }
    parent.remove_dir(name)
}

/// What a ref's own file says; `None` where there is none.
fn read_raw(dir: &Dir, name: &[u8]) -> Result<Option<Raw>, DirError> {
    match dir.read(name) {
        Err(error) if error.is_irregular() => Ok(Some(Raw::Broken)),
        read => Ok(read?.map(|bytes| parse(&bytes))),
    }
}

fn parse(bytes: &[u8]) -> Raw {
    if let Some(name) = bytes.strip_prefix(b"ref:") {
        return match name.trim().to_str() {
            Ok(name) if !name.is_empty() => Raw::Symbolic(RefName(name.to_owned())),
            _ => Raw::Broken,
        };
    }
    bytes.trim_end().to_str().ok().and_then(|text| text.parse().ok()).map_or(Raw::Broken, Raw::Id)
}

fn packed_lines(packed: &[u8]) -> impl Iterator<Item = (Option<Oid>, &[u8])> {
    packed.lines().filter(|line| !line.starts_with(b"#") && !line.starts_with(b"^")).filter_map(
        |line| {
            let (id, name) = line.split_once_str(" ")?;
            Some((id.to_str().ok().and_then(|text| text.parse().ok()), name))
        },
    )
}

fn check_own(prefix: &str, name: &RefName) -> Result<(), RefError> {
    let beneath = name.0.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
    if beneath && prefix.starts_with("refs/") && is_valid(name) {
        Ok(())
    } else {
        Err(RefError::Name { name: name.clone() })
    }
}

/// The rules of `git check-ref-format`, as far as they keep a name from being another file.
fn is_valid(name: &RefName) -> bool {
    let bad = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && !part.ends_with('.')
            && !part.to_ascii_lowercase().ends_with(".lock")
    };
    !name.0.contains(bad)
        && !name.0.contains("..")
        && !name.0.contains("@{")
        && name.0.split('/').all(part)
}
