//! New trees and commits from old ones, and the proof that nothing of a commit is missing.
//!
//! Only folders on the way to a change are written anew; everything else keeps its object.
//!
//! # Limitations
//! Trees deeper than [`MAX_DEPTH`] are an error, as in git.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bstr::{BString, ByteSlice as _};

use crate::git::objects::odb::OdbError;
use crate::git::objects::pack::{PackError, PackWriter};
use crate::git::objects::store::{
    Held, MAX_DEPTH, ObjectKind, Store, StoreError, TreeEntry, tree_order,
};
use crate::tx::entry::{GIT_LINK, GIT_TREE};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;

/// A tree could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The old tree could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The new one could not be written.
    #[error(transparent)]
    Pack(#[from] PackError),
}

type Edit<'a> = (&'a [u8], Option<Held>);

/// The tree that `base` becomes by `edits`: a path gets mode and object, or goes away.
///
/// A path that gets something replaces a folder of that name, and a file on the way to a path
/// that gets something becomes a folder. Folders that end up empty go away. Taking away what is
/// not there, or is a folder, changes nothing.
pub fn edit(
    store: &Store,
    base: Oid,
    edits: &BTreeMap<RepoPath, Option<Held>>,
    pack: &mut PackWriter<'_>,
) -> Result<Oid, TreeError> {
    if let Some(path) = edits.keys().find(|path| path.parts().count() > MAX_DEPTH) {
        return Err(StoreError::TooDeep { path: path.clone() }.into());
    }
    let edits: Vec<Edit<'_>> = edits.iter().map(|(path, held)| (path.as_bytes(), *held)).collect();
    // An explicit stack: a tree may be deeper than a thread's stack is.
    let mut folder = Folder::open(store, Some(base), &edits, 0)?;
    let mut above = Vec::new();
    loop {
        if let Some((subtree, deeper, skip)) = folder.next_folder() {
            above.push(std::mem::replace(&mut folder, Folder::open(store, subtree, deeper, skip)?));
            continue;
        }
        let tree = folder.write(pack)?;
        match above.pop() {
            Some(parent) => {
                folder = parent;
                folder.close(tree);
            }
            None => return tree.map_or_else(|| Ok(pack.add_tree(b"")?), Ok),
        }
    }
}

/// A folder on the way to a change.
struct Folder<'a> {
    base: Option<Oid>,
    entries: BTreeMap<BString, Held>,
    changed: bool,
    /// The edits at or beneath it, sorted, whose first `skip` bytes are the folder.
    edits: &'a [Edit<'a>],
    skip: usize,
    /// Up to where its subfolders are done.
    at: usize,
    /// The subfolder that is open.
    open: &'a [u8],
}

impl<'a> Folder<'a> {
    fn open(
        store: &Store,
        base: Option<Oid>,
        edits: &'a [Edit<'a>],
        skip: usize,
    ) -> Result<Self, StoreError> {
        let old = base.map_or_else(|| Ok(Vec::new()), |id| store.tree(id))?;
        let mut entries: BTreeMap<BString, Held> =
            old.into_iter().map(|entry| (entry.name, (entry.mode, entry.id))).collect();
        let mut changed = false;
        // Entries of this folder first: a file that a folder replaces is taken away before.
        for (path, held) in edits {
            let name = &path[skip..];
            if name.contains(&b'/') {
                continue;
            }
            let before = entries.get(name.as_bstr()).copied();
            match held {
                Some(held) if before != Some(*held) => {
                    entries.insert(name.into(), *held);
                    changed = true;
                }
                None if before.is_some_and(|(mode, _)| mode != GIT_TREE) => {
                    entries.remove(name.as_bstr());
                    changed = true;
                }
                _ => {}
            }
        }
        Ok(Self { base, entries, changed, edits, skip, at: 0, open: b"" })
    }

    fn subtree(&self) -> Option<Oid> {
        let held = self.entries.get(self.open.as_bstr());
        held.filter(|(mode, _)| *mode == GIT_TREE).map(|(_, id)| *id)
    }

    /// The next subfolder with edits beneath it: its old tree, those edits, the bytes to skip.
    fn next_folder(&mut self) -> Option<(Option<Oid>, &'a [Edit<'a>], usize)> {
        loop {
            let rest = &self.edits[self.at..];
            let path = rest.first()?.0;
            let Some(slash) = path[self.skip..].find_byte(b'/') else {
                self.at += 1;
                continue;
            };
            // What lies in one folder stands together, since the paths are sorted.
            let skip = self.skip + slash + 1;
            let dir = &path[self.skip..skip];
            let count = rest.iter().take_while(|(p, _)| p[self.skip..].starts_with(dir)).count();
            self.at += count;
            self.open = &dir[..slash];
            return Some((self.subtree(), &rest[..count], skip));
        }
    }

    /// Takes what its open subfolder became; `None`: it is empty.
    fn close(&mut self, tree: Option<Oid>) {
        let name = self.open.as_bstr();
        match tree {
            Some(id) if self.entries.get(name) != Some(&(GIT_TREE, id)) => {
                self.entries.insert(name.into(), (GIT_TREE, id));
                self.changed = true;
            }
            None if self.subtree().is_some() => {
                self.entries.remove(name);
                self.changed = true;
            }
            _ => {}
        }
    }

    /// The folder as it is now; `None`: it is empty.
    fn write(self, pack: &mut PackWriter<'_>) -> Result<Option<Oid>, PackError> {
        if self.entries.is_empty() {
            return Ok(None);
        }
        if let Some(base) = self.base.filter(|_| !self.changed) {
            return Ok(Some(base));
        }
        let mut entries: Vec<TreeEntry> = self
            .entries
            .into_iter()
            .map(|(name, (mode, id))| TreeEntry { name, mode, id })
            .collect();
        entries.sort_unstable_by(tree_order);
        let mut bytes = Vec::with_capacity(entries.len() * 40);
        for entry in &entries {
            bytes.extend_from_slice(format!("{:o} ", entry.mode).as_bytes());
            bytes.extend_from_slice(&entry.name);
            bytes.push(0);
            bytes.extend_from_slice(entry.id.as_bytes());
        }
        pack.add_tree(&bytes).map(Some)
    }
}

/// Who did it, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The name.
    pub name: String,
    /// The mail address.
    pub email: String,
    /// Seconds since the epoch.
    pub time: i64,
    /// Minutes east of UTC.
    pub offset_minutes: i32,
}

impl Signature {
    /// `Name <mail> seconds zone`, as commits and reflogs have it. What would break the form is
    /// left out, and what git strips from the ends is stripped (`strbuf_addstr_without_crud`).
    pub fn line(&self) -> String {
        let sign = if self.offset_minutes < 0 { '-' } else { '+' };
        let minutes = self.offset_minutes.unsigned_abs();
        format!(
            "{} <{}> {} {sign}{:02}{:02}",
            clean(&self.name),
            clean(&self.email),
            self.time,
            minutes / 60,
            minutes % 60
        )
    }
}

fn clean(text: &str) -> String {
    let crud =
        |c: char| c <= ' ' || matches!(c, '.' | ',' | ':' | ';' | '<' | '>' | '"' | '\\' | '\'');
    let text: String = text.chars().filter(|c| !matches!(c, '<' | '>' | '\n' | '\0')).collect();
    text.trim_matches(crud).to_owned()
}

/// The raw bytes of a commit. The message is UTF-8 (git's default, so no encoding line); it gets
/// a newline at the end if it has none, and loses zero bytes, which git does not allow.
pub fn commit_bytes(
    tree: Oid,
    parents: &[Oid],
    author: &Signature,
    committer: &Signature,
    message: &str,
) -> Vec<u8> {
    let parents =
        parents.iter().fold(String::new(), |text, id| text + "parent " + &id.to_string() + "\n");
    let (author, committer) = (author.line(), committer.line());
    let mut text = format!("tree {tree}\n{parents}author {author}\ncommitter {committer}\n\n");
    text.extend(message.chars().filter(|c| *c != '\0'));
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.into_bytes()
}

/// An object that a commit needs and that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The object.
    pub id: Oid,
    /// Where it belongs; `None` for commits and root trees.
    pub path: Option<RepoPath>,
    /// What is wrong, for a person.
    pub why: String,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)?;
        self.path.as_ref().map_or(Ok(()), |path| write!(f, " ({path})"))
    }
}

/// Every object that `commit` needs and `known_base` does not have: is it there, and is it what
/// its id says? The answer lists what is not; empty is good.
///
/// Commits between the two are looked at too; what is before `shallow` ones need not be there
/// ([`Store::commits_between`]). `trusted` names blobs whose bytes need not be read again, because
/// this process has just written them ([`PackWriter::wrote`]); they must be there.
pub fn closure(
    store: &Store,
    commit: Oid,
    known_base: Option<Oid>,
    shallow: &BTreeSet<Oid>,
    trusted: &dyn Fn(Oid) -> bool,
) -> Result<Vec<Gap>, StoreError> {
    let mut gaps = Vec::new();
    let mut commits = vec![commit];
    let mut base_tree = None;
    if let Some(base) = known_base {
        base_tree = Some(store.commit(base)?.tree);
        match store.commits_between(base, commit, shallow) {
            Ok(between) => commits = between,
            Err(error) => gaps.push(gap(commit, None, error)?),
        }
    }
    let mut seen = HashSet::new();
    for id in commits {
        match store.commit(id) {
            Ok(commit) => walk(store, commit.tree, base_tree, trusted, &mut seen, &mut gaps)?,
            Err(error) => gaps.push(gap(id, None, error)?),
        }
    }
    gaps.dedup();
    Ok(gaps)
}

fn walk(
    store: &Store,
    tree: Oid,
    base: Option<Oid>,
    trusted: &dyn Fn(Oid) -> bool,
    seen: &mut HashSet<Oid>,
    gaps: &mut Vec<Gap>,
) -> Result<(), StoreError> {
    let mut work = vec![(None::<RepoPath>, 0, tree, base)];
    while let Some((dir, depth, tree, base)) = work.pop() {
        if Some(tree) == base || !seen.insert(tree) {
            continue;
        }
        let entries = match store.tree(tree) {
            Ok(entries) => entries,
            Err(error) => {
                gaps.push(gap(tree, dir, error)?);
                continue;
            }
        };
        let old: BTreeMap<BString, Held> = match base.map(|base| store.tree(base)).transpose()? {
            Some(list) => list.into_iter().map(|e| (e.name, (e.mode, e.id))).collect(),
            None => BTreeMap::new(),
        };
        for TreeEntry { name, mode, id } in entries {
            let before = old.get(&name);
            if before.is_some_and(|held| held.1 == id) || mode == GIT_LINK {
                continue;
            }
            let path = RepoPath::join(dir.as_ref(), &name);
            if mode == GIT_TREE {
                if depth == MAX_DEPTH {
                    return Err(StoreError::TooDeep { path });
                }
                let before = before.filter(|held| held.0 == GIT_TREE).map(|held| held.1);
                work.push((Some(path), depth + 1, id, before));
            } else if seen.insert(id) {
                let found = if trusted(id) {
                    match store.kind(id) {
                        Ok(Some(ObjectKind::Blob)) => Ok(()),
                        Ok(Some(found)) => {
                            Err(StoreError::Kind { id, wanted: ObjectKind::Blob, found })
                        }
                        Ok(None) => Err(OdbError::Missing(id).into()),
                        Err(error) => Err(error),
                    }
                } else {
                    store.verify_blob(id).map(|_| ())
                };
                if let Err(error) = found {
                    gaps.push(gap(id, Some(path), error)?);
                }
            }
        }
    }
    Ok(())
}

/// The gap that an error of the object itself is; other errors stay errors.
fn gap(asked: Oid, path: Option<RepoPath>, error: StoreError) -> Result<Gap, StoreError> {
    let Some(id) = error.object() else { return Err(error) };
    let path = path.filter(|_| id == asked);
    Ok(Gap { id, path, why: error.to_string() })
}
