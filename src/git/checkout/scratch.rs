//! The repository of a scratch checkout: a `.git` of its own, so that git works in it, and works
//! on it alone.
//!
//! It reads the objects of the real repository as an alternate, and writes into its own. HEAD is
//! detached at the commit; the refs are those of the real repository as they stand, worktx's own
//! left out. Nothing that is done here reaches the real repository's refs, index, configuration or
//! hooks.
//!
//! # Limitations
//! Of the repository's configuration only what decides about bytes is taken over: no remotes, no
//! identity, no hooks, no drivers. No reflogs, no stash. Nothing is synced.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::git::checkout::Written;
use crate::git::config::gitconfig::{AutoCrlf, GitConfig};
use crate::git::index::{Index, IndexError};
use crate::git::objects::store::Store;
use crate::git::refs::{RefError, Refs};
use crate::tx::id::Oid;

/// The repository of a checkout could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// A file of it.
    #[error("cannot make its .git: {0}")]
    Write(#[from] io::Error),
    /// The refs that it is to have.
    #[error(transparent)]
    Refs(#[from] RefError),
    /// Its index.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// What a scratch repository is made from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The objects.
    pub store: &'a Store,
    /// The refs.
    pub refs: &'a Refs,
    /// The common directory.
    pub common_dir: &'a Path,
    /// Configuration as captured at open.
    pub git: &'a GitConfig,
    /// Where worktx's own refs are, which are left out.
    pub own_prefix: &'a str,
}

/// Makes the `.git` of the checkout at `root`, which holds `tree` of `commit` as `written`.
pub fn make(
    root: &Path,
    commit: Oid,
    tree: Oid,
    written: &Written,
    from: &Source<'_>,
) -> Result<(), ScratchError> {
    let git = root.join(".git");
    for folder in ["objects/info", "objects/pack", "refs/heads", "refs/tags", "info"] {
        fs::create_dir_all(git.join(folder))?;
    }
    fs::write(git.join("HEAD"), format!("{commit}\n"))?;
    fs::write(git.join("config"), config(from.git))?;
    fs::write(git.join("info/attributes"), &from.git.info_attributes.bytes)?;
    fs::write(git.join("info/exclude"), &from.git.info_exclude.bytes)?;
    let mut alternates = Vec::new();
    for folder in [from.store.objects_dir()].into_iter().chain(alternates_of(from.store)) {
        push_alternate(&mut alternates, folder);
    }
    fs::write(git.join("objects/info/alternates"), alternates)?;
    match fs::read(from.common_dir.join("shallow")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        shallow => fs::write(git.join("shallow"), shallow?)?,
    }
    packed_refs(&git, from)?;
    let mut stats = written.stats.iter();
    let index = Index::from_tree(from.store, tree, |_, _| stats.next().and_then(|(_, s)| *s))?;
    // Last: git takes a file that is older than the index for unchanged.
    fs::write(git.join("index"), index.to_bytes())?;
    Ok(())
}

fn alternates_of(store: &Store) -> impl Iterator<Item = &Path> {
    store.alternates().iter().map(PathBuf::as_path)
}

/// One line of `objects/info/alternates`; a path that a line cannot hold is quoted, as git reads
/// it.
fn push_alternate(out: &mut Vec<u8>, folder: &Path) {
    let bytes = folder.as_os_str().as_bytes();
    if bytes.contains(&b'\n') {
        out.push(b'"');
        for byte in bytes {
            match byte {
                b'\n' => out.extend(b"\\n"),
                b'"' | b'\\' => out.extend([b'\\', *byte]),
                byte => out.push(*byte),
            }
        }
        out.push(b'"');
    } else {
        out.extend(bytes);
    }
    out.push(b'\n');
}

fn config(git: &GitConfig) -> String {
    let autocrlf = match git.autocrlf {
        AutoCrlf::False => "false",
        AutoCrlf::True => "true",
        AutoCrlf::Input => "input",
    };
    let eol = match git.eol.as_deref() {
        Some("crlf") => "\teol = crlf\n",
        Some("lf") => "\teol = lf\n",
        _ => "",
    };
    format!(
        "[core]\n\trepositoryformatversion = 0\n\tbare = false\n\tfilemode = {}\n\tsymlinks = {}\n\
         \tignorecase = {}\n\tautocrlf = {autocrlf}\n{eol}[gc]\n\tauto = 0\n",
        git.file_mode, git.symlinks, git.ignore_case
    )
}

/// All refs in one file, sorted by name.
fn packed_refs(git: &Path, from: &Source<'_>) -> Result<(), ScratchError> {
    let mut refs = from.refs.list_but("refs", &[from.own_prefix, "refs/stash"])?.refs;
    refs.sort_by(|a, b| a.0.0.as_bytes().cmp(b.0.0.as_bytes()));
    let mut out = io::BufWriter::new(fs::File::create(git.join("packed-refs"))?);
    out.write_all(b"# pack-refs with: sorted \n")?;
    for (name, id) in refs {
        writeln!(out, "{id} {}", name.0)?;
    }
    Ok(out.flush()?)
}
