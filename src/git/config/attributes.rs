//! Git's attributes, as far as they decide about bytes: which conversion a path takes, and whether
//! it asks for one that worktx does not do.
//!
//! Git's order, weakest first: the system's file, `core.attributesFile`, `.gitattributes` from the
//! root down, `info/attributes`. The files outside the tree are captured at open and given in.
//! A tree without such files is answered without a look at any pattern.
//!
//! # Limitations
//! Filter drivers, `working-tree-encoding` and `ident` are recognised, not performed. Macros count
//! in the files outside the tree and in the root's only, as in git.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bstr::ByteSlice as _;
use gix_attributes::search::{MetadataCollection, Outcome};
use gix_attributes::{Search, StateRef};
use gix_glob::pattern::Case;

use crate::git::config::gitconfig::GitConfig;
use crate::git::files::root::Root;
use crate::git::manifest::child_path;
use crate::git::scan::rules::{RulesError, read_rules};
use crate::tx::path::RepoPath;

/// The name of the file with a directory's attributes.
pub const GITATTRIBUTES: &[u8] = b".gitattributes";

/// Git ignores longer lines (`ATTR_MAX_LINE_LENGTH` in its `attr.h`).
const MAX_LINE: usize = 2048;

/// What is asked of every path, in this order.
const ASKED: [&str; 6] = ["text", "crlf", "eol", "filter", "working-tree-encoding", "ident"];

/// What is captured at open from outside the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapturedAttributes {
    /// `/etc/gitattributes`, or what git was built with.
    pub system: Vec<u8>,
    /// The file that `core.attributesFile` names, or its default.
    pub attributes_file: Vec<u8>,
    /// `info/attributes` of the common git directory.
    pub info: Vec<u8>,
    /// `core.ignoreCase`.
    pub ignore_case: bool,
}

impl CapturedAttributes {
    /// Those of a captured configuration.
    pub fn of(git: &GitConfig) -> Self {
        Self {
            system: git.system_attributes.bytes.clone(),
            attributes_file: git.attributes.bytes.clone(),
            info: git.info_attributes.bytes.clone(),
            ignore_case: git.ignore_case,
        }
    }
}

/// A conversion that worktx does not perform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// `filter=…`: a program.
    Filter(String),
    /// `working-tree-encoding=…`, other than UTF-8.
    Encoding(String),
    /// `ident`.
    Ident,
}

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Filter(name) => write!(f, "filter={name}"),
            Self::Encoding(name) => write!(f, "working-tree-encoding={name}"),
            Self::Ident => f.write_str("ident"),
        }
    }
}

/// What `text` or its old name `crlf` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    Set,
    Unset,
    Auto,
    /// `crlf=input`
    Input,
}

/// What a path's attributes say about line ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LineEnds {
    pub(super) text: Option<Text>,
    /// `eol=crlf` is true, `eol=lf` false.
    pub(super) crlf: Option<bool>,
}

/// All attributes of one view of the tree.
#[derive(Debug)]
pub struct Attributes {
    search: Search,
    outcome: Outcome,
    case: Case,
    may_convert: bool,
    may_refuse: bool,
}

impl Attributes {
    /// From the captured files and the `.gitattributes` of a view, by directory (empty bytes for
    /// the root).
    ///
    /// # Panics
    /// Never on Linux, where any bytes are a path.
    pub fn new(
        captured: &CapturedAttributes,
        files: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Self {
        let mut files: Vec<_> = files.into_iter().collect();
        // By bytes a directory comes before what is in it, and only its ancestors matter to a path.
        files.sort_unstable();
        let all = [&captured.system, &captured.attributes_file, &captured.info];
        let any = |words: &[&str]| {
            all.into_iter()
                .chain(files.iter().map(|(_, bytes)| bytes))
                .any(|bytes| words.iter().any(|word| bytes.contains_str(word)))
        };
        let may_convert = any(&["text", "crlf", "eol", "binary"]);
        let may_refuse = any(&["filter", "working-tree-encoding", "ident"]);
        let mut collection = MetadataCollection::default();
        let mut search = Search::default();
        let mut add = |bytes: &[u8], dir: &[u8], macros: bool| {
            // The list's patterns count from the directory of its source, seen from the root.
            let source = Path::new(OsStr::from_bytes(dir)).join(".gitattributes");
            let root = (!dir.is_empty()).then_some(Path::new(""));
            search
                .add_patterns_buffer(&short_lines(bytes), source, root, &mut collection, macros)
                .expect("a path of bytes is a path on Linux");
        };
        add(b"[attr]binary -diff -merge -text", b"", true);
        add(&captured.system, b"", true);
        add(&captured.attributes_file, b"", true);
        for (dir, bytes) in &files {
            add(bytes, dir, dir.is_empty());
        }
        add(&captured.info, b"", true);
        let mut outcome = Outcome::default();
        outcome.initialize_with_selection(&collection, ASKED);
        let case = if captured.ignore_case { Case::Fold } else { Case::Sensitive };
        Self { search, outcome, case, may_convert, may_refuse }
    }

    /// From what stands in the tree, in the directories that a scan names.
    pub fn of_tree(
        captured: &CapturedAttributes,
        root: &Root,
        dirs: &[Vec<u8>],
    ) -> Result<Self, RulesError> {
        let mut files = Vec::new();
        for dir in dirs {
            if let Some(bytes) = read_rules(root, &child_path(dir, GITATTRIBUTES))? {
                files.push((dir.clone(), bytes));
            }
        }
        Ok(Self::new(captured, files))
    }

    /// Whether any path at all may take a conversion by attributes.
    pub const fn may_convert(&self) -> bool {
        self.may_convert
    }

    /// Whether any path at all may ask for a conversion that worktx does not perform.
    pub const fn may_refuse(&self) -> bool {
        self.may_refuse
    }

    /// Those of the paths that ask for a conversion that worktx does not perform. Links and
    /// directories take none: do not ask for them.
    pub fn unsupported<'p>(
        &mut self,
        paths: impl IntoIterator<Item = &'p RepoPath>,
    ) -> Vec<(RepoPath, Unsupported)> {
        if !self.may_refuse {
            return Vec::new();
        }
        paths
            .into_iter()
            .filter_map(|path| self.unsupported_at(path).map(|what| (path.clone(), what)))
            .collect()
    }

    fn unsupported_at(&mut self, path: &RepoPath) -> Option<Unsupported> {
        self.find(path);
        let mut found = None;
        for matched in self.outcome.iter_selected() {
            let name = matched.assignment.name.as_str();
            let state = matched.assignment.state;
            let what = match (name, state) {
                ("filter", StateRef::Value(value)) => {
                    Unsupported::Filter(value.as_bstr().to_string())
                }
                ("working-tree-encoding", StateRef::Value(value)) => {
                    let value = value.as_bstr().to_string();
                    // What git takes for UTF-8 (`same_utf_encoding`): nothing to do.
                    if matches!(value.to_ascii_lowercase().as_str(), "utf-8" | "utf8") {
                        continue;
                    }
                    Unsupported::Encoding(value)
                }
                ("working-tree-encoding", StateRef::Set | StateRef::Unset) => {
                    Unsupported::Encoding(String::new())
                }
                ("ident", StateRef::Set) => Unsupported::Ident,
                _ => continue,
            };
            found = found.or(Some(what));
        }
        found
    }

    /// What the path's attributes say about line ends: git's `git_path_check_crlf`.
    pub(super) fn line_ends(&mut self, path: &RepoPath) -> LineEnds {
        if !self.may_convert {
            return LineEnds::default();
        }
        self.find(path);
        let mut text = None;
        let mut old_name = None;
        let mut crlf = None;
        for matched in self.outcome.iter_selected() {
            let state = matched.assignment.state;
            let word = match state {
                StateRef::Value(value) => Some(value.as_bstr()),
                _ => None,
            };
            let said = match state {
                StateRef::Set => Some(Text::Set),
                StateRef::Unset => Some(Text::Unset),
                StateRef::Value(_) if word == Some("auto".into()) => Some(Text::Auto),
                StateRef::Value(_) if word == Some("input".into()) => Some(Text::Input),
                _ => None,
            };
            match matched.assignment.name.as_str() {
                "text" => text = said,
                "crlf" => old_name = said,
                "eol" => {
                    crlf = word.and_then(|word| match word.as_bytes() {
                        b"crlf" => Some(true),
                        b"lf" => Some(false),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        LineEnds { text: text.or(old_name), crlf }
    }

    fn find(&mut self, path: &RepoPath) {
        self.outcome.reset();
        self.search.pattern_matching_relative_path(
            path.as_bstr(),
            self.case,
            Some(false),
            &mut self.outcome,
        );
    }
}

fn short_lines(bytes: &[u8]) -> Vec<u8> {
    bytes
        .split_inclusive(|b| *b == b'\n')
        .filter(|line| line.len() < MAX_LINE)
        .flatten()
        .copied()
        .collect()
}
