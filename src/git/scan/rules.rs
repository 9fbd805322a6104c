//! Ignore rules as git has them, seen twice: by the base's bytes (what the undo goes by) and by
//! what stands in the tree now (what the commit goes by). And the scope's patterns, which are
//! written like them.
//!
//! Git's order: the last match of the deepest `.gitignore` wins, then those above it, then
//! `info/exclude`, then `core.excludesFile`. A directory that is ignored is not looked into, so
//! that nothing beneath it can be taken back in.
//!
//! The files outside the tree are captured at open and given in as bytes; nothing here reads
//! them again.
//!
//! # Limitations
//! A `.gitignore` that is a link is not read, as git does it. One above [`MAX_RULES`] is an error
//! (git's own bound is 100 MiB, and it ignores what is above).

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::Arc;

use bstr::{BStr, BString, ByteSlice as _};
use elsa::sync::FrozenMap;
use gix_glob::pattern::Case;
use gix_glob::search::Pattern as _;
use gix_glob::search::pattern::List;
use gix_ignore::search::Ignore;

use crate::git::files::root::{Root, RootError};
use crate::git::manifest::snapshot::Snapshot;
use crate::git::scan::blob_id;
use crate::tx::entry::Kind;
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;
use crate::tx::settings::Scope;

/// The name of the file with a directory's rules.
pub const GITIGNORE: &[u8] = b".gitignore";

/// The most bytes of a `.gitignore` or `.gitattributes` that are read: 4 MiB.
pub const MAX_RULES: u64 = 4 << 20;

/// A file with rules cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// It is larger than any real one.
    #[error("{path} is larger than {MAX_RULES} bytes")]
    TooLarge {
        /// Which.
        path: RepoPath,
    },
    /// The bytes that the base has there cannot be had.
    #[error("the base's {path} ({id}) cannot be read: {why}")]
    Base {
        /// Which.
        path: RepoPath,
        /// The blob.
        id: Oid,
        /// Why not.
        why: String,
    },
    /// The system said no.
    #[error(transparent)]
    Root(#[from] RootError),
}

/// What is captured at open from outside the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapturedExcludes {
    /// `info/exclude` of the common git directory.
    pub info_exclude: Vec<u8>,
    /// The file that `core.excludesFile` names, or its default.
    pub excludes_file: Vec<u8>,
    /// `core.ignoreCase`.
    pub ignore_case: bool,
}

/// The rules that hold everywhere: captured excludes and the scope.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Weakest first.
    everywhere: [List<Ignore>; 2],
    exclude: List<Ignore>,
    also: List<Ignore>,
    survives: List<Ignore>,
    case: Case,
}

/// The `.gitignore` files from the root down to a directory; `None` where there is none.
pub type Level = Option<Arc<Node>>;

/// One `.gitignore` with those above it.
#[derive(Debug)]
pub struct Node {
    above: Level,
    list: List<Ignore>,
}

impl Drop for Node {
    /// One by one: a tree may be deeper than the stack.
    fn drop(&mut self) {
        let mut above = self.above.take();
        while let Some(mut node) = above.and_then(Arc::into_inner) {
            above = node.above.take();
        }
    }
}

impl Rules {
    /// Parses what was captured.
    pub fn new(captured: &CapturedExcludes, scope: &Scope) -> Self {
        let patterns = |lines: &[String]| parse(lines.join("\n").as_bytes(), None);
        Self {
            everywhere: [parse(&captured.excludes_file, None), parse(&captured.info_exclude, None)],
            exclude: patterns(&scope.exclude),
            also: patterns(&scope.also),
            survives: patterns(&scope.survives),
            case: if captured.ignore_case { Case::Fold } else { Case::Sensitive },
        }
    }

    /// The level of a directory (empty bytes for the root) that has a `.gitignore` of these bytes.
    pub fn level(&self, above: &Level, dir: &[u8], bytes: &[u8]) -> Level {
        let base = (!dir.is_empty()).then(|| {
            let mut base = BString::from(dir);
            base.push(b'/');
            base
        });
        let list = parse(bytes, base);
        if list.patterns.is_empty() {
            return above.clone();
        }
        Some(Arc::new(Node { above: above.clone(), list }))
    }

    /// Whether the rules say so of this very path. Whether a directory above it is ignored is to
    /// be asked first.
    pub fn ignores(&self, level: &Level, path: &[u8], is_dir: bool) -> bool {
        let path = path.as_bstr();
        let name = name_at(path);
        let mut at = level.as_ref();
        while let Some(node) = at {
            if let Some(ignored) = decide(&node.list, path, name, is_dir, self.case) {
                return ignored;
            }
            at = node.above.as_ref();
        }
        self.everywhere
            .iter()
            .rev()
            .find_map(|list| decide(list, path, name, is_dir, self.case))
            .unwrap_or(false)
    }

    /// Whether `[scope] exclude` names this very path; holds for what git does not track.
    pub fn excludes(&self, path: &[u8], is_dir: bool) -> bool {
        let path = path.as_bstr();
        !self.exclude.patterns.is_empty()
            && decide(&self.exclude, path, name_at(path), is_dir, Case::Sensitive) == Some(true)
    }

    /// Whether a path, or a directory above it, is in `[scope] exclude`.
    pub fn is_excluded(&self, path: &RepoPath, is_dir: bool) -> bool {
        at_or_above(&self.exclude, path, is_dir)
    }

    /// Whether a path is in the rollback-survives set: committed like anything else, never undone.
    pub fn survives(&self, path: &RepoPath, is_dir: bool) -> bool {
        at_or_above(&self.survives, path, is_dir)
    }

    /// Whether `[scope] also` names a path: ignored, but pinned and restored.
    pub fn also(&self, path: &RepoPath, is_dir: bool) -> bool {
        at_or_above(&self.also, path, is_dir)
    }
}

/// Reads a blob by its id; or says why it cannot.
type ReadBlob = Box<dyn Fn(Oid) -> Result<Vec<u8>, String> + Send + Sync>;

/// The `.gitignore` files of the base, each read when it is asked for: in a large tree there are
/// thousands, and a turn has to do with a few.
#[derive(Clone)]
pub struct BaseRules(Arc<Files>);

struct Files {
    snapshot: Arc<Snapshot>,
    blobs: ReadBlob,
    /// Those that were read, by directory.
    read: FrozenMap<Vec<u8>, Vec<u8>>,
}

impl std::fmt::Debug for BaseRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("BaseRules").field(&self.0.snapshot.meta()).finish()
    }
}

impl BaseRules {
    /// Those of a manifest: `blobs` reads a blob by the raw id of its entry.
    pub fn of(
        snapshot: Arc<Snapshot>,
        blobs: impl Fn(Oid) -> Result<Vec<u8>, String> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Files { snapshot, blobs: Box::new(blobs), read: FrozenMap::new() }))
    }

    /// The bytes of a directory's `.gitignore` (empty bytes for the root); `None` where there is none.
    pub fn get(&self, dir: &[u8]) -> Result<Option<&[u8]>, RulesError> {
        let files = &*self.0;
        let entry = files.snapshot.row(dir).and_then(|row| row.get(GITIGNORE));
        let Some(entry) = entry.filter(|entry| entry.kind() == Kind::File) else {
            return Ok(files.snapshot.ignored_rules().get(dir).map(Vec::as_slice));
        };
        if let Some(bytes) = files.read.get(dir) {
            return Ok(Some(bytes));
        }
        let path = || crate::git::manifest::child_path(dir, GITIGNORE);
        if entry.stat().size > MAX_RULES {
            return Err(RulesError::TooLarge { path: path() });
        }
        let id = entry.raw();
        let bytes = (files.blobs)(id).map_err(|why| RulesError::Base { path: path(), id, why })?;
        Ok(Some(files.read.insert(dir.to_vec(), bytes)))
    }

    /// Whether they are those of this snapshot.
    pub fn are_of(&self, snapshot: &Arc<Snapshot>) -> bool {
        Arc::ptr_eq(&self.0.snapshot, snapshot)
    }

    /// Whether a directory's `.gitignore` has these bytes, or is not there either; told by the id
    /// alone. Then it need not be read any more.
    pub fn is(&self, dir: &[u8], bytes: Option<&[u8]>) -> bool {
        let entry = self.0.snapshot.row(dir).and_then(|row| row.get(GITIGNORE));
        match (entry.filter(|entry| entry.kind() == Kind::File), bytes) {
            (Some(entry), Some(bytes)) => {
                let is_it = entry.stat().size == bytes.len() as u64
                    && bytes.len() as u64 <= MAX_RULES
                    && entry.raw() == blob_id(bytes);
                if is_it && self.0.read.get(dir).is_none() {
                    self.0.read.insert(dir.to_vec(), bytes.to_vec());
                }
                is_it
            }
            (Some(_), None) => false,
            (None, bytes) => self.0.snapshot.ignored_rules().get(dir).map(Vec::as_slice) == bytes,
        }
    }
}

/// Where a view has its `.gitignore` files from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The base's bytes.
    Base(&'a BaseRules),
    /// What stands in the tree now.
    Tree(&'a Root),
}

/// Answers for single paths, with all directories above them; remembers what it has read.
#[derive(Debug)]
pub struct View<'a> {
    rules: &'a Rules,
    source: Source<'a>,
    seen: HashMap<Vec<u8>, (Level, bool)>,
}

impl<'a> View<'a> {
    /// A view of the rules by one source.
    pub fn new(rules: &'a Rules, source: Source<'a>) -> Self {
        Self { rules, source, seen: HashMap::new() }
    }

    /// Whether the view ignores the path, or a directory above it.
    pub fn ignores(&mut self, path: &RepoPath, is_dir: bool) -> Result<bool, RulesError> {
        let bytes = path.as_bytes();
        let mut at = self.enter(b"", &None, false)?;
        for end in bytes.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at) {
            if at.1 {
                return Ok(true);
            }
            let dir = &bytes[..end];
            let ignored = match self.seen.get(dir) {
                Some((_, ignored)) => *ignored,
                None => self.rules.ignores(&at.0, dir, true),
            };
            at = self.enter(dir, &at.0, ignored)?;
        }
        Ok(at.1 || self.rules.ignores(&at.0, bytes, is_dir))
    }

    fn enter(
        &mut self,
        dir: &[u8],
        above: &Level,
        ignored: bool,
    ) -> Result<(Level, bool), RulesError> {
        if let Some(seen) = self.seen.get(dir) {
            return Ok(seen.clone());
        }
        let level = if ignored {
            above.clone()
        } else {
            let bytes = match self.source {
                Source::Base(files) => files.get(dir)?.map(<[u8]>::to_vec),
                Source::Tree(root) => {
                    read_rules(root, &crate::git::manifest::child_path(dir, GITIGNORE))?
                }
            };
            bytes.map_or_else(|| above.clone(), |bytes| self.rules.level(above, dir, &bytes))
        };
        self.seen.insert(dir.to_vec(), (level.clone(), ignored));
        Ok((level, ignored))
    }
}

/// The bytes of a file with rules that stands in the tree; `None` where there is no regular file.
pub fn read_rules(root: &Root, path: &RepoPath) -> Result<Option<Vec<u8>>, RulesError> {
    let file = match root.open_file(path) {
        Ok(file) => file,
        Err(RootError::WrongKind { .. } | RootError::Outside { .. }) => return Ok(None),
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    file.take(MAX_RULES + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| RootError::Io { path: path.clone(), source })?;
    if bytes.len() as u64 > MAX_RULES {
        return Err(RulesError::TooLarge { path: path.clone() });
    }
    Ok(Some(bytes))
}

fn parse(bytes: &[u8], base: Option<BString>) -> List<Ignore> {
    // Git ends the last line itself; without it a `\r` at the end would stay.
    let mut lines = bytes.to_vec();
    lines.push(b'\n');
    let patterns = Ignore::default().bytes_to_patterns(&lines, std::path::Path::new(""));
    List { patterns, source: None, base }
}

fn at_or_above(list: &List<Ignore>, path: &RepoPath, is_dir: bool) -> bool {
    if list.patterns.is_empty() {
        return false;
    }
    let bytes = path.as_bytes();
    let ends = bytes.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    ends.map(|end| (&bytes[..end], true)).chain([(bytes, is_dir)]).any(|(part, is_dir)| {
        decide(list, part.as_bstr(), name_at(part.as_bstr()), is_dir, Case::Sensitive) == Some(true)
    })
}

fn name_at(path: &BStr) -> Option<usize> {
    path.rfind_byte(b'/').map(|at| at + 1)
}

fn decide(
    list: &List<Ignore>,
    path: &BStr,
    name: Option<usize>,
    is_dir: bool,
    case: Case,
) -> Option<bool> {
    gix_ignore::search::pattern_matching_relative_path(list, path, name, Some(is_dir), case)
        .map(|found| !found.pattern.is_negative())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RepoPath {
        RepoPath::new(text).expect("valid")
    }

    #[test]
    fn the_scope_is_by_pattern_and_by_directory() {
        let scope = Scope {
            exclude: vec!["content/".into(), "*.big".into()],
            also: vec![".env*".into()],
            survives: vec!["/.trinity/journal/**".into()],
        };
        let rules = Rules::new(&CapturedExcludes::default(), &scope);
        assert!(rules.is_excluded(&path("a/content/x"), false));
        assert!(!rules.is_excluded(&path("content"), false));
        assert!(rules.excludes(b"content", true) && rules.excludes(b"a/b.big", false));
        assert!(rules.survives(&path(".trinity/journal/a/b"), false));
        assert!(!rules.survives(&path(".trinity/journal"), true));
        assert!(!rules.survives(&path("x/.trinity/journal/a"), false));
        assert!(rules.also(&path("a/.env.local"), false) && !rules.also(&path("a/env"), false));
    }

    #[test]
    fn a_deep_chain_does_not_end_the_stack() {
        let rules = Rules::new(&CapturedExcludes::default(), &Scope::default());
        let mut level = None;
        for _ in 0..200_000 {
            level = rules.level(&level, b"", b"x");
        }
        drop(level);
    }

    #[test]
    fn the_two_views() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(dir.path().join("a/b")).expect("made");
        std::fs::write(dir.path().join(".gitignore"), "*.log\nb/\n").expect("written");
        std::fs::write(dir.path().join("a/.gitignore"), "!keep.log\n!/b/x").expect("written");
        std::os::unix::fs::symlink("../.gitignore", dir.path().join("a/b/.gitignore"))
            .expect("linked");
        let root = Root::open(dir.path()).expect("opened");
        let captured =
            CapturedExcludes { info_exclude: b"secret\r".to_vec(), ..CapturedExcludes::default() };
        let rules = Rules::new(&captured, &Scope::default());
        let mut tree = View::new(&rules, Source::Tree(&root));
        let empty = BaseRules::of(Arc::default(), |_| Err("nothing".to_owned()));
        let mut base = View::new(&rules, Source::Base(&empty));
        for (name, by_tree, by_base) in [
            ("x.log", true, false),
            ("a/x.log", true, false),
            ("a/keep.log", false, false),
            ("a/b/x", true, false),
            ("a/b/keep.log", true, false),
            ("a/secret", true, true),
            ("a/secret/deeper", true, true),
            ("none/x", false, false),
        ] {
            assert_eq!(tree.ignores(&path(name), false).expect("read"), by_tree, "{name}");
            assert_eq!(base.ignores(&path(name), false).expect("read"), by_base, "{name}");
        }
    }
}
