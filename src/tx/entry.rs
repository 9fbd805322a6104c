//! What stands at a path: the vocabulary of the manifest, the scan and the undo.
//!
//! # Limitations
//! Extended attributes and ACLs are not described, so they are not restored.

use serde::{Deserialize, Serialize};

use super::id::Oid;
use super::path::RepoPath;

/// What kind of thing stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A symbolic link; its bytes are its target.
    Symlink,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A block or character device.
    Device,
    /// A directory that is a git repository of its own (it holds `.git`): never walked into.
    NestedRepository,
    /// A directory on which another file system or bind mount stands: never walked into.
    Mount,
}

impl Kind {
    /// Whether git can store it in a tree.
    pub const fn is_storable(self) -> bool {
        matches!(self, Self::File | Self::Symlink)
    }

    /// Whether its bytes can be read and kept as a blob.
    pub const fn has_bytes(self) -> bool {
        self.is_storable()
    }
}

/// What `statx` says of a path, as far as it can tell whether the bytes may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stat {
    /// The permission bits, `0o7777`.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Last change of the bytes, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Last change of the inode, nanoseconds since the epoch. No unprivileged program can set it.
    pub ctime_ns: i64,
    /// The inode number.
    pub inode: u64,
    /// How many names the inode has.
    pub links: u32,
    /// Owner, as in git's index.
    pub uid: u32,
    /// Group, as in git's index.
    pub gid: u32,
}

/// One path of the base, as the manifest knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What stands there.
    pub kind: Kind,
    /// How it looked when its bytes were last known.
    pub stat: Stat,
    /// Whether `stat` alone may prove that the bytes are the same. False where the last change was
    /// so close to the look at it that another one could hide behind the same time.
    pub stat_is_proof: bool,
    /// The id of the raw bytes as a git blob; [`Oid::ZERO`] where there are none.
    pub raw: Oid,
    /// Whether git tracks the path, and as what.
    pub tracked: Option<Tracked>,
}

/// How the base's commit holds a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// The blob, after git's conversions. Equal to the raw bytes' id for nearly every file.
    pub blob: Oid,
    /// git's mode: `0o100644`, `0o100755`, `0o120000`.
    pub mode: u32,
}

/// Git's mode of a symbolic link.
pub const GIT_SYMLINK: u32 = 0o120_000;
/// Git's mode of a plain file.
pub const GIT_FILE: u32 = 0o100_644;
/// Git's mode of an executable file.
pub const GIT_EXECUTABLE: u32 = 0o100_755;
/// Git's mode of a directory.
pub const GIT_TREE: u32 = 0o040_000;
/// Git's mode of a submodule's commit.
pub const GIT_LINK: u32 = 0o160_000;

/// The mode that git would store for a file or link that looks like this.
pub const fn git_mode(kind: Kind, stat: &Stat) -> u32 {
    match kind {
        Kind::Symlink => GIT_SYMLINK,
        _ if stat.mode & 0o100 != 0 => GIT_EXECUTABLE,
        _ => GIT_FILE,
    }
}

/// What stands at a path now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// What it is.
    pub kind: Kind,
    /// How it looks.
    pub stat: Stat,
}

/// A path at which the tree is not known to be as the manifest has it.
///
/// A change may turn out to be none once its bytes are read (a touched file): that is told by
/// the raw id, not here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where.
    pub path: RepoPath,
    /// What the base has there, if anything.
    pub before: Option<Entry>,
    /// What stands there now, if anything.
    pub after: Option<Found>,
    /// Whether the rules of the base ignore the path. Such a path is only listed where the base
    /// has it, or where the turn's rules do not ignore it.
    pub ignored_by_base: bool,
    /// Whether the rules that stand in the tree now ignore the path.
    pub ignored_by_turn: bool,
}
