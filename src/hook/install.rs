//! The guard's block in a repository's `reference-transaction` hook: in, up to date, and out again.
//!
//! The block stands between two markers, right after the `#!` line, so that it sees stdin first;
//! it hands the same lines on, so that a user's own script below it is none the wiser. What is
//! not between the markers is never changed, and removal gives back the user's file byte for byte.
//!
//! # Limitations
//! Only a shell script can take the block in: any other existing hook is refused with the reason,
//! since a wrapper would have to move the user's file away. A `core.hooksPath` outside the work
//! tree may serve many repositories: the guard is then in all of them, and passes in those without
//! a living attempt.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bstr::ByteSlice as _;

use crate::base::durable;

/// The hook as it is where there was none: also a file of the distribution.
pub const TEMPLATE: &str = include_str!("../../hooks/reference-transaction");
/// The name of git's hook.
pub const HOOK: &str = "reference-transaction";
const BEGIN: &str = "# >>> worktx guard >>>\n";
const END: &str = "# <<< worktx guard <<<";

/// What a file in the hooks folder would be to git.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HooksFolder {
    /// In the git directory, or elsewhere outside the work tree.
    Outside,
    /// In the work tree, and ignored there.
    Ignored,
    /// In the work tree: tracked, or it would show up as untracked.
    InTree,
}

/// What an installation or removal did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The hook was made, or the block put into a hook.
    Installed,
    /// A block of another version was replaced.
    Upgraded,
    /// The block was taken out.
    Removed,
    /// Nothing was to be done.
    Unchanged,
}

/// Whether the guard stands in a hooks folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Not there.
    Absent,
    /// There, as this version writes it.
    Present,
    /// There, as another version wrote it.
    Outdated,
    /// There, and git does not run it: the hook has no run bit.
    Asleep,
}

/// The guard cannot be installed or removed; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The hooks folder is part of the work tree: a commit or `git status` would show the guard.
    #[error(
        "core.hooksPath is {}, which is content of the work tree: put a line that calls \
         `worktx guard-hook` into the hook there yourself, or point core.hooksPath elsewhere",
        folder.display()
    )]
    InTree {
        /// The folder.
        folder: PathBuf,
    },
    /// The existing hook is no shell script.
    #[error(
        "{} is run by {runs:?}, not by a shell: let it call `worktx guard-hook` itself, with the \
         lines of its stdin, and refuse where that exits with 22",
        hook.display()
    )]
    NotShell {
        /// The hook.
        hook: PathBuf,
        /// Its `#!` line, or what it is.
        runs: String,
    },
    /// The existing hook has no run bit: git does not run it, and a run bit would wake it up.
    #[error("{} has no run bit, so git does not run it: `chmod +x` it or move it away", hook.display())]
    Asleep {
        /// The hook.
        hook: PathBuf,
    },
    /// The existing hook is a link, a directory or something else than a plain file.
    #[error("{} is not a plain file: worktx does not write through a link", hook.display())]
    NotAFile {
        /// The hook.
        hook: PathBuf,
    },
    /// One marker without the other.
    #[error("{} holds one marker of the worktx guard without the other: mend it by hand", hook.display())]
    BrokenMarkers {
        /// The hook.
        hook: PathBuf,
    },
    /// The file system said no.
    #[error("{}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The folder in which git looks for hooks. `hooks_path` is `core.hooksPath` after git's own
/// expansion of `~`; a relative one is meant from the root of the work tree.
pub fn hooks_folder(common_dir: &Path, work_tree: &Path, hooks_path: Option<&Path>) -> PathBuf {
    hooks_path.map_or_else(|| common_dir.join("hooks"), |path| work_tree.join(path))
}

/// Puts the guard into the hooks folder (made where it is missing), or brings it up to date.
pub fn install(folder: &Path, kind: HooksFolder) -> Result<Change, InstallError> {
    if kind == HooksFolder::InTree {
        return Err(InstallError::InTree { folder: folder.to_owned() });
    }
    let hook = folder.join(HOOK);
    let Some((text, mode)) = read(&hook)? else {
        durable::create_dir_all(folder, 0o777).map_err(io_at(folder))?;
        write(&hook, TEMPLATE.as_bytes(), 0o755)?;
        return Ok(Change::Installed);
    };
    if let Some((start, end)) = block_in(&text, &hook)? {
        let new = [&text[..start], block().as_bytes(), &text[end..]].concat();
        if new == text {
            return Ok(Change::Unchanged);
        }
        write(&hook, &new, mode)?;
        return Ok(Change::Upgraded);
    }
    if mode & 0o111 == 0 {
        return Err(InstallError::Asleep { hook });
    }
    if !is_shell(&text) {
        let line = text.lines().next().unwrap_or_default().chars().take(80).collect();
        return Err(InstallError::NotShell { hook, runs: line });
    }
    write(&hook, &inserted(&text), mode)?;
    Ok(Change::Installed)
}

/// Takes the guard out. A hook that was made by [`install`] is removed, another is what it was.
pub fn remove(folder: &Path) -> Result<Change, InstallError> {
    let hook = folder.join(HOOK);
    let Some((text, mode)) = read(&hook)? else { return Ok(Change::Unchanged) };
    let Some((start, end)) = block_in(&text, &hook)? else { return Ok(Change::Unchanged) };
    let (before, after) = match text.get(end) {
        Some(b'\n') => (&text[..start], &text[end + 1..]),
        // Inserted behind a last line without a line end: that went in with the block.
        _ => (text[..start].strip_suffix(b"\n").unwrap_or(&text[..start]), &text[end..]),
    };
    let own = &TEMPLATE[..TEMPLATE.find(BEGIN).unwrap_or(0)];
    let rest = [before, after].concat();
    if rest == own.as_bytes() {
        durable::remove_file(&hook).map_err(io_at(&hook))?;
    } else {
        write(&hook, &rest, mode)?;
    }
    Ok(Change::Removed)
}

/// Looks whether the guard is there.
pub fn look(folder: &Path) -> Result<Presence, InstallError> {
    let hook = folder.join(HOOK);
    let Some((text, mode)) = read(&hook)? else { return Ok(Presence::Absent) };
    Ok(match block_in(&text, &hook)? {
        None => Presence::Absent,
        Some(_) if mode & 0o111 == 0 => Presence::Asleep,
        Some((start, end)) if &text[start..end] == block().as_bytes() => Presence::Present,
        Some(_) => Presence::Outdated,
    })
}

/// The block, from marker to marker, without the last line end.
fn block() -> &'static str {
    let start = TEMPLATE.find(BEGIN).unwrap_or(0);
    let end = TEMPLATE.find(END).map_or(TEMPLATE.len(), |at| at + END.len());
    &TEMPLATE[start..end]
}

fn inserted(text: &[u8]) -> Vec<u8> {
    let block = block().as_bytes();
    if !text.starts_with(b"#!") {
        return [block, b"\n", text].concat();
    }
    match text.find_byte(b'\n') {
        Some(end) => [&text[..=end], block, b"\n", &text[end + 1..]].concat(),
        None => [text, b"\n", block].concat(),
    }
}

/// Where the block stands, its last line end not counted.
fn block_in(text: &[u8], hook: &Path) -> Result<Option<(usize, usize)>, InstallError> {
    match (text.find(BEGIN), text.find(END)) {
        (None, None) => Ok(None),
        (Some(start), Some(end)) if start < end => Ok(Some((start, end + END.len()))),
        _ => Err(InstallError::BrokenMarkers { hook: hook.to_owned() }),
    }
}

/// Whether a shell runs it. git starts what has no `#!` line through `sh`.
fn is_shell(text: &[u8]) -> bool {
    let Some(line) = text.strip_prefix(b"#!") else {
        return !text.starts_with(b"\x7fELF") && !text.contains(&0);
    };
    let line = line.split(|b| matches!(b, b'\n' | b'\r')).next().unwrap_or_default();
    let mut words = line
        .split(|b| matches!(b, b' ' | b'\t'))
        .filter(|word| !word.is_empty())
        .map(|word| word.rsplit(|b| *b == b'/').next().unwrap_or_default());
    let name = match words.next() {
        Some(b"env") => words.find(|word| !word.starts_with(b"-")),
        Some(b"busybox") => words.next(),
        other => other,
    };
    let shells: [&[u8]; 6] = [b"sh", b"bash", b"dash", b"ash", b"ksh", b"zsh"];
    name.is_some_and(|name| shells.contains(&name))
}

fn read(hook: &Path) -> Result<Option<(Vec<u8>, u32)>, InstallError> {
    let metadata = match std::fs::symlink_metadata(hook) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io_at(hook))?,
    };
    if !metadata.is_file() {
        return Err(InstallError::NotAFile { hook: hook.to_owned() });
    }
    let text = std::fs::read(hook).map_err(io_at(hook))?;
    Ok(Some((text, metadata.permissions().mode() & 0o7777)))
}

fn write(hook: &Path, text: &[u8], mode: u32) -> Result<(), InstallError> {
    durable::write_file(hook, text, mode).map_err(io_at(hook))?;
    // What the umask took away is given back: an existing hook keeps its bits.
    let bits = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(hook, bits).map_err(io_at(hook))
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::Io { path, source }
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
