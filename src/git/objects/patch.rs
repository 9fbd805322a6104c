//! The difference of two trees as a patch, in git's form.
//!
//! Made from the two blobs of each path alone, so that nothing that a repository configures (a
//! textconv, an external diff) has a say or is run.
//!
//! # Limitations
//! No renames, no word-wise heading by `diff.<driver>.xfuncname`. A blob of more than
//! [`LARGEST_TEXT`] bytes counts as binary, and binary content is named, not shown.

use std::io;

use bstr::ByteSlice as _;

use crate::git::objects::store::{Held, Store, StoreError, TreeChange};
use crate::tx::entry::GIT_LINK;
use crate::tx::id::Oid;
use crate::tx::path::quote;

/// More bytes than this are not compared line by line.
pub const LARGEST_TEXT: u64 = 32 << 20;
/// As git: a NUL in the first bytes makes a blob binary.
const LOOKED_AT: usize = 8000;

/// A patch could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// An object could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// libgit2 could not compare.
    #[error("cannot compare: {0}")]
    Git(#[from] git2::Error),
    /// The output could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes the patch of some changes, path by path.
pub fn write(
    store: &Store,
    changes: &[TreeChange],
    out: &mut impl io::Write,
) -> Result<(), PatchError> {
    changes.iter().try_for_each(|change| one(store, change, out))
}

fn one(store: &Store, change: &TreeChange, out: &mut impl io::Write) -> Result<(), PatchError> {
    let (path, before, after) = change;
    // A change of type is two patches to git: one takes away, one brings.
    if let (Some(old), Some(new)) = (before, after)
        && old.0 & 0o170_000 != new.0 & 0o170_000
    {
        one(store, &(path.clone(), Some(*old), None), out)?;
        return one(store, &(path.clone(), None, Some(*new)), out);
    }
    let named = |side: &str| quote(&[side.as_bytes(), path.as_bytes()].concat());
    let (a, b) = (named("a/"), named("b/"));
    writeln!(out, "diff --git {a} {b}")?;
    match (before, after) {
        (None, Some(new)) => writeln!(out, "new file mode {:06o}", new.0)?,
        (Some(old), None) => writeln!(out, "deleted file mode {:06o}", old.0)?,
        (Some(old), Some(new)) if old.0 != new.0 => {
            writeln!(out, "old mode {:06o}\nnew mode {:06o}", old.0, new.0)?;
        }
        _ => {}
    }
    let id = |held: &Option<Held>| held.map_or(Oid::ZERO, |held| held.1);
    let (old, new) = (id(before), id(after));
    if old == new {
        return Ok(());
    }
    let mode = match (before, after) {
        (Some(old), Some(new)) if old.0 == new.0 => format!(" {:06o}", new.0),
        _ => String::new(),
    };
    writeln!(out, "index {}..{}{mode}", old.short(), new.short())?;
    let side = |held: &Option<Held>| content(store, held.as_ref());
    let from = if before.is_some() { a.as_str() } else { "/dev/null" };
    let to = if after.is_some() { b.as_str() } else { "/dev/null" };
    let (Some(old), Some(new)) = (side(before)?, side(after)?) else {
        writeln!(out, "Binary files {from} and {to} differ")?;
        return Ok(());
    };
    let mut options = git2::DiffOptions::new();
    options.force_text(true);
    let mut patch = git2::Patch::from_buffers(&old, None, &new, None, Some(&mut options))?;
    if patch.num_hunks() == 0 {
        return Ok(());
    }
    // git ends a name that holds a space with a tab, so that a patch can be read back.
    let header = |name: &str| {
        let tab = if name.contains(' ') && !name.starts_with('"') { "\t" } else { "" };
        format!("{name}{tab}")
    };
    writeln!(out, "--- {}\n+++ {}", header(from), header(to))?;
    let mut written = Ok(());
    let printed = patch.print(&mut |_, _, line| {
        let text = line.content();
        written = match line.origin() {
            // The header of the file: written above.
            'F' | 'B' => Ok(()),
            sign @ (' ' | '+' | '-') => {
                out.write_all(&[sign as u8]).and_then(|()| out.write_all(text))
            }
            _ => out.write_all(text),
        };
        written.is_ok()
    });
    written?;
    Ok(printed?)
}

/// The bytes of one side; `None` where they are not to be shown.
fn content(store: &Store, held: Option<&Held>) -> Result<Option<Vec<u8>>, PatchError> {
    let Some((mode, id)) = held else { return Ok(Some(Vec::new())) };
    if *mode == GIT_LINK {
        return Ok(Some(format!("Subproject commit {id}\n").into_bytes()));
    }
    if store.blob_size(*id)? > LARGEST_TEXT {
        return Ok(None);
    }
    let bytes = store.blob(*id)?;
    let is_binary = bytes[..bytes.len().min(LOOKED_AT)].find_byte(0).is_some();
    Ok((!is_binary).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::testkit::Repo;

    /// git's own patch is the judge, byte for byte.
    #[test]
    fn the_patch_is_the_one_that_git_makes() {
        let repo = Repo::new();
        let long: String = (0..60).fold(String::new(), |all, n| all + &format!("line {n}\n"));
        repo.write("long.txt", &long);
        repo.write("gone.txt", "one\ntwo\n");
        repo.write("empty.txt", "");
        repo.write("no end", "a\nb");
        repo.write("binary", "a\0b");
        repo.write("mode.sh", "x\n");
        repo.write("both.sh", "x\n");
        repo.write("link-to-be", "a file\n");
        repo.write("sub/\u{e4}\t.txt", "quoted\n");
        repo.commit("code.c", "int main(void)\n{\n\n\n\n\n\n\treturn 0;\n}\n");
        repo.git(&["add", "-A"]);
        repo.git(&["commit", "-qm", "one"]);
        let one = repo.git(&["rev-parse", "HEAD"]);
        repo.write("long.txt", &long.replace("line 3\n", "").replace("line 50", "fifty"));
        std::fs::remove_file(repo.root().join("gone.txt")).expect("removed");
        repo.write("no end", "a\nb\nc");
        repo.write("binary", "a\0c");
        repo.write("empty.txt", "not any more\n");
        repo.write("both.sh", "y\n");
        repo.write("new empty", "");
        repo.write("new.txt", "new\n");
        repo.write("sub/\u{e4}\t.txt", "changed\n");
        repo.write("code.c", "int main(void)\n{\n\n\n\n\n\n\treturn 1;\n}\n");
        std::fs::remove_file(repo.root().join("link-to-be")).expect("removed");
        std::os::unix::fs::symlink("new.txt", repo.root().join("link-to-be")).expect("linked");
        repo.git(&["add", "-A"]);
        repo.git(&["update-index", "--chmod=+x", "mode.sh", "both.sh"]);
        repo.git(&["commit", "-qm", "two"]);
        let options = ["-c", "core.quotePath=false", "diff", "--no-renames", "--abbrev=10"];
        let expected = repo.git(&[&options[..], &["--no-ext-diff", &one, "HEAD"]].concat());

        let store = Store::open(&repo.root().join(".git")).expect("opened");
        let tree = |id: &str| store.commit(id.parse().expect("an id")).expect("read").tree;
        let changes =
            store.diff_trees(tree(&one), tree(&repo.git(&["rev-parse", "HEAD"]))).expect("read");
        let mut found = Vec::new();
        write(&store, &changes, &mut found).expect("made");
        assert_eq!(found.to_str_lossy().trim_end_matches('\n'), expected);
    }
}
