//! The files of the git directory that a turn must not leave poisoned: configuration, hooks,
//! `info/`, alternates. Captured before the turn and at the seal, compared, described.
//!
//! Putting them back is the business of [`crate::git::guarded::putback`].
//!
//! Order rules: one snapshot before the turn, one at the seal, by the same [`Workspace`]. Links
//! are recorded, never followed; nothing of what is read is ever run.
//!
//! # Limitations
//! - Contents beyond 4 MiB are digested, not kept, so they cannot be put back; beyond 256 MiB the
//!   digest is over size, times and inode.
//! - At most 4,096 files and 8 levels are looked at; [`Snapshot::incomplete`] says where it ended.
//! - Other linked work trees are a list of names; their own files are theirs.

pub mod putback;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::base::hex::hex;
use bstr::{BString, ByteSlice as _};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::git::config::configfile::{self, ConfigLine};
use crate::git::config::programkeys::runs_program;
use crate::git::files::hexbytes;
use crate::git::files::smallfile::LIMIT;
use crate::git::workspace::Workspace;
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;

/// Files looked at in one snapshot.
const MAX_FILES: usize = 4096;
/// Levels of folders beneath `hooks` and `info`.
const MAX_DEPTH: usize = 8;
/// Beyond this a file is not read for its digest.
const MAX_DIGEST: u64 = 256 << 20;
/// The end of the names under which [`crate::git::guarded::putback`] prepares files.
pub(super) const TEMPORARY: &str = ".worktx-new";

/// The git directory cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("cannot look at {}: {source}", path.display())]
pub struct GuardError {
    /// Where.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// What stands at a guarded path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Content {
    /// A file.
    File {
        /// Its permission bits.
        mode: u32,
        /// Its bytes' number.
        size: u64,
        /// The SHA-256 of its bytes, in hex.
        sha256: String,
        /// Whether `bytes` holds it; not where it is beyond 4 MiB.
        kept: bool,
        /// The bytes, as hex in a record.
        #[serde(with = "hexbytes")]
        bytes: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// Where it leads, as hex in a record.
        #[serde(with = "hexbytes")]
        target: Vec<u8>,
    },
    /// A folder in a file's place.
    Directory,
    /// A pipe, socket or device.
    Special,
}

impl Content {
    /// A file with these bytes.
    pub(super) fn file(mode: u32, bytes: Vec<u8>) -> Self {
        let sha256 = hex(&Sha256::digest(&bytes));
        Self::File { mode, size: bytes.len() as u64, sha256, kept: true, bytes }
    }

    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::File { kept: true, bytes, .. } => Some(bytes),
            _ => None,
        }
    }
}

/// The guarded files at one moment. Serializable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// By path below the common directory.
    pub files: BTreeMap<RepoPath, Content>,
    /// The names of the linked work trees.
    pub worktrees: Vec<String>,
    /// Folders beside `hooks` that hold hooks (`core.hooksPath` within the git directory).
    pub hook_folders: Vec<RepoPath>,
    /// Where the look ended, if it did not see everything.
    pub incomplete: Option<RepoPath>,
}

/// What kind of change it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ChangeKind {
    /// A key of a configuration file.
    ConfigKey {
        /// The key.
        key: String,
        /// Its values before, in order; those that may be secrets are left out.
        before: Vec<String>,
        /// Its values now.
        after: Vec<String>,
        /// Whether the key, by its old or new values, can run a program or redirect git.
        runs_program: bool,
    },
    /// A configuration file as a whole: gone, no file any more, or not to be read.
    ConfigFile,
    /// A hook.
    Hook,
    /// `objects/info/alternates` and its like.
    Alternates,
    /// A file of `info/`.
    Info,
    /// A linked work tree came or went.
    Worktree,
    /// A merge, a rebase, or whatever else git has begun and not ended.
    Operation,
    /// `shallow`, `commondir`, `gitdir`.
    Other,
}

/// One difference of two snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitChange {
    /// The file, below the common directory.
    pub file: RepoPath,
    /// What changed.
    #[serde(flatten)]
    pub change: ChangeKind,
}

impl GitChange {
    /// Whether it is put back on success too: what can run programs or redirect git.
    pub fn is_dangerous(&self) -> bool {
        match &self.change {
            ChangeKind::ConfigKey { runs_program, .. } => *runs_program,
            ChangeKind::ConfigFile | ChangeKind::Hook | ChangeKind::Alternates => true,
            ChangeKind::Other => self.file.as_bytes() != b"shallow",
            ChangeKind::Info | ChangeKind::Worktree | ChangeKind::Operation => false,
        }
    }
}

impl Snapshot {
    /// Looks at the guarded files now. `hooks_path` is the captured `core.hooksPath`.
    pub fn capture(workspace: &Workspace, hooks_path: Option<&Path>) -> Result<Self, GuardError> {
        let common = workspace.common_dir();
        let fail = |source: io::Error| GuardError { path: common.to_owned(), source };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir =
            rustix::fs::openat(CWD, common, flags, Mode::empty()).map_err(|e| fail(e.into()))?;
        let mut look = Look { dir, snapshot: Self::default() };
        let mut roots: Vec<RepoPath> =
            ["config", "config.worktree", "commondir", "gitdir", "shallow"]
                .into_iter()
                .chain(["hooks", "objects/info/alternates", "objects/info/http-alternates"])
                .chain(INFO)
                .filter_map(|name| RepoPath::new(name).ok())
                .collect();
        if let Ok(own) = workspace.git_dir().strip_prefix(common) {
            let own = own.to_string_lossy();
            let names = ["config.worktree", "commondir", "gitdir"].into_iter().chain(INFO);
            roots.extend(names.filter_map(|name| RepoPath::new(format!("{own}/{name}")).ok()));
        }
        if let Ok(list) = std::fs::read_dir(workspace.git_dir()) {
            let own = workspace.git_dir().strip_prefix(common).unwrap_or(Path::new(""));
            let names = list.flatten().map(|entry| entry.file_name());
            let begun = names.filter(|name| OPERATION.iter().any(|known| name == known));
            let path = |name| RepoPath::new(own.join(name).as_os_str().as_bytes()).ok();
            roots.extend(begun.filter_map(path));
        }
        let folder = hooks_path.and_then(|path| path.strip_prefix(common).ok());
        if let Some(folder) =
            folder.and_then(|f| RepoPath::new(f.to_string_lossy().as_bytes()).ok())
        {
            look.snapshot.hook_folders.push(folder.clone());
            roots.push(folder);
        }
        for root in roots {
            let path = common.join(root.as_path());
            look.at(&root, 0).map_err(|source| GuardError { path, source })?;
        }
        let mut snapshot = look.snapshot;
        if let Ok(list) = std::fs::read_dir(common.join("worktrees")) {
            let names = list.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
            snapshot.worktrees = names.collect();
            snapshot.worktrees.sort();
        }
        Ok(snapshot)
    }

    /// What is different in `now`.
    pub fn compare(&self, now: &Self) -> Vec<GitChange> {
        let mut changes = Vec::new();
        for file in self.paths_with(now) {
            let (before, after) = (self.files.get(file), now.files.get(file));
            if before == after {
                continue;
            }
            let change = match class(file, &self.hook_folders) {
                Class::Config => {
                    changes.extend(compare_config(file, before, after));
                    continue;
                }
                Class::Hook => ChangeKind::Hook,
                Class::Alternates => ChangeKind::Alternates,
                Class::Info => ChangeKind::Info,
                Class::Operation => ChangeKind::Operation,
                Class::Other => ChangeKind::Other,
            };
            changes.push(GitChange { file: file.clone(), change });
        }
        let lists = [(&self.worktrees, &now.worktrees), (&now.worktrees, &self.worktrees)];
        for (one, other) in lists {
            for name in one.iter().filter(|name| !other.contains(name)) {
                if let Ok(file) = RepoPath::new(format!("worktrees/{name}")) {
                    changes.push(GitChange { file, change: ChangeKind::Worktree });
                }
            }
        }
        changes
    }

    /// The bytes of a file, if it is one and they are kept.
    pub fn bytes(&self, path: &RepoPath) -> Option<&[u8]> {
        self.files.get(path)?.bytes()
    }

    /// The operation that was begun since and not ended, by the file that says so.
    pub fn unfinished<'a>(&self, now: &'a Self) -> Option<&'a RepoPath> {
        const SAY_SO: [&[u8]; 7] = [
            b"rebase-merge",
            b"rebase-apply",
            b"MERGE_HEAD",
            b"CHERRY_PICK_HEAD",
            b"REVERT_HEAD",
            b"BISECT_LOG",
            b"sequencer",
        ];
        let begun = |path: &&RepoPath| is_of_operation(path) && !self.files.contains_key(*path);
        let mut begun: Vec<&RepoPath> = now.files.keys().filter(begun).collect();
        begun.retain(|path| SAY_SO.contains(&path.name()));
        begun.into_iter().min_by_key(|path| SAY_SO.iter().position(|name| *name == path.name()))
    }

    /// The ids that git's files of an operation name, where they are not as `before`: what an operation
    /// was begun with may be known by nothing else.
    pub fn named_by_operations(&self, before: &Self) -> BTreeSet<Oid> {
        let files = self.files.iter().filter(|(path, content)| {
            is_of_operation(path) && before.files.get(*path) != Some(*content)
        });
        let words = files.flat_map(|(_, content)| {
            content.bytes().unwrap_or_default().split(u8::is_ascii_whitespace)
        });
        words.filter_map(|word| word.to_str().ok()?.parse().ok()).take(MAX_FILES).collect()
    }

    /// The commits whose parents a shallow clone does not have.
    pub fn shallow(&self) -> BTreeSet<Oid> {
        let file = RepoPath::new("shallow").ok().and_then(|path| self.bytes(&path));
        let ids = file.unwrap_or_default().lines().filter_map(|line| line.to_str().ok());
        ids.filter_map(|id| id.trim().parse().ok()).collect()
    }

    /// The paths of both snapshots, each once.
    pub(super) fn paths_with<'a>(&'a self, now: &'a Self) -> impl Iterator<Item = &'a RepoPath> {
        let new = now.files.keys().filter(|path| !self.files.contains_key(*path));
        self.files.keys().chain(new)
    }
}

/// The files of `info/` that git reads as settings. The others are git's own notes: a repack in
/// the background, begun before the turn by a plain `git commit`, writes `info/refs` at any time.
const INFO: [&str; 4] = ["info/attributes", "info/exclude", "info/grafts", "info/sparse-checkout"];

/// What git keeps of an operation that it has not ended (`gitrepository-layout(5)`, and the
/// `sequencer.c` and `branch.c` of git): of this work tree, beside its `HEAD`.
const OPERATION: [&str; 18] = [
    "MERGE_HEAD",
    "MERGE_MODE",
    "MERGE_MSG",
    "MERGE_RR",
    "MERGE_AUTOSTASH",
    "AUTO_MERGE",
    "SQUASH_MSG",
    "CHERRY_PICK_HEAD",
    "REVERT_HEAD",
    "BISECT_LOG",
    "BISECT_START",
    "BISECT_TERMS",
    "BISECT_NAMES",
    "BISECT_EXPECTED_REV",
    "BISECT_FIRST_PARENT",
    "rebase-merge",
    "rebase-apply",
    "sequencer",
];

/// What a guarded path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Config,
    Hook,
    Alternates,
    Info,
    Operation,
    Other,
}

pub(super) fn class(path: &RepoPath, hook_folders: &[RepoPath]) -> Class {
    let is_hook = path.is_at_or_beneath(b"hooks")
        || hook_folders.iter().any(|folder| path.is_at_or_beneath(folder.as_bytes()));
    match path.name() {
        _ if is_hook => Class::Hook,
        _ if path.is_at_or_beneath(b"objects") => Class::Alternates,
        // Before `info`, which a work tree may be called.
        _ if is_of_operation(path) => Class::Operation,
        _ if path.parts().any(|part| part == b"info") => Class::Info,
        b"config" | b"config.worktree" => Class::Config,
        _ => Class::Other,
    }
}

/// Of this work tree's git directory: the common one, or `worktrees/NAME` in it.
fn is_of_operation(path: &RepoPath) -> bool {
    let mut parts = path.parts();
    let first = parts.next();
    let name = if first == Some(b"worktrees") { parts.nth(1) } else { first };
    name.is_some_and(|name| OPERATION.iter().any(|known| known.as_bytes() == name))
}

/// The values of each key, in order.
pub(super) fn values(lines: &[ConfigLine]) -> BTreeMap<&BString, Vec<&Option<BString>>> {
    let mut by_key: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for line in lines {
        by_key.entry(&line.key).or_default().push(&line.value);
    }
    by_key
}

/// Whether a key can run a program by any of these values.
pub(super) fn is_program(key: &BString, lists: [Option<&Vec<&Option<BString>>>; 2]) -> bool {
    let any = lists.into_iter().flatten().flatten();
    runs_program(key, b"")
        || any.into_iter().any(|value| runs_program(key, value.as_ref().map_or(b"", |v| v)))
}

/// The lines of a configuration file; a missing one has none, `Err` where it cannot be read.
pub(super) fn lines_of(content: Option<&Content>) -> Result<Vec<ConfigLine>, ()> {
    match content {
        None => Ok(Vec::new()),
        Some(content) => configfile::parse(content.bytes().ok_or(())?).map_err(|_| ()),
    }
}

fn compare_config(
    file: &RepoPath,
    before: Option<&Content>,
    after: Option<&Content>,
) -> Vec<GitChange> {
    let change = |change| GitChange { file: file.clone(), change };
    let gone = before.is_some() && after.is_none();
    let (Ok(before), Ok(after), false) = (lines_of(before), lines_of(after), gone) else {
        return vec![change(ChangeKind::ConfigFile)];
    };
    let (before, after) = (values(&before), values(&after));
    let mut keys: Vec<_> = before.keys().chain(after.keys()).copied().collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| before.get(key) != after.get(key))
        .map(|key| {
            let lists = [before.get(key), after.get(key)];
            let shown = lists
                .map(|list| list.into_iter().flatten().map(|v| shown(key, v.as_ref())).collect());
            let [before, after] = shown;
            let runs_program = is_program(key, lists);
            change(ChangeKind::ConfigKey { key: key.to_string(), before, after, runs_program })
        })
        .collect()
}

/// A value as it may stand in a report: tokens in headers and URLs left out.
fn shown(key: &BString, value: Option<&BString>) -> String {
    let Some(value) = value else { return "true".to_owned() };
    let text = value.to_string();
    let secret = ["extraheader", "password", "token", "pass"]
        .iter()
        .any(|end| key.ends_with(end.as_bytes()));
    match text.split_once("://") {
        _ if secret => "…".to_owned(),
        Some((scheme, rest)) if rest.split('/').next().is_some_and(|host| host.contains('@')) => {
            let host = rest.split_once('@').map_or("", |(_, host)| host);
            format!("{scheme}://…@{host}")
        }
        _ => text,
    }
}

struct Look {
    dir: OwnedFd,
    snapshot: Snapshot,
}

impl Look {
    fn is_to_be_looked_at(&mut self, path: &RepoPath, depth: usize) -> bool {
        if path.name().ends_with(TEMPORARY.as_bytes()) || self.snapshot.files.contains_key(path) {
            return false;
        }
        if depth > MAX_DEPTH || self.snapshot.files.len() >= MAX_FILES {
            self.snapshot.incomplete.get_or_insert_with(|| path.clone());
            return false;
        }
        true
    }

    fn at(&mut self, path: &RepoPath, depth: usize) -> io::Result<()> {
        if !self.is_to_be_looked_at(path, depth) {
            return Ok(());
        }
        let found = content(&self.dir, path)?;
        self.found(path, found, depth)
    }

    fn found(&mut self, path: &RepoPath, found: Option<Content>, depth: usize) -> io::Result<()> {
        match found {
            None => Ok(()),
            Some(Content::Directory) if is_folder(path, depth) => {
                if is_of_operation(path) {
                    // By being there it says that something was begun.
                    self.snapshot.files.insert(path.clone(), Content::Directory);
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let fd = beneath(&self.dir, path, flags)?;
                let mut names = Vec::new();
                for entry in rustix::fs::Dir::read_from(&fd)? {
                    let entry = entry?;
                    let name = entry.file_name().to_bytes();
                    if name != b"." && name != b".." {
                        names.push(name.to_vec());
                    }
                    if names.len() > MAX_FILES {
                        break;
                    }
                }
                names.sort();
                names.iter().try_for_each(|name| {
                    let path = RepoPath::join(Some(path), name);
                    if !self.is_to_be_looked_at(&path, depth + 1) {
                        return Ok(());
                    }
                    let found = content_in(&fd, &path)?;
                    self.found(&path, found, depth + 1)
                })
            }
            Some(content) => {
                self.snapshot.files.insert(path.clone(), content);
                Ok(())
            }
        }
    }
}

/// Whether a folder is expected there, to be looked into.
fn is_folder(path: &RepoPath, depth: usize) -> bool {
    let files: [&[u8]; 7] = [
        b"config",
        b"config.worktree",
        b"commondir",
        b"gitdir",
        b"shallow",
        b"alternates",
        b"http-alternates",
    ];
    depth > 0 || !files.contains(&path.name())
}

fn beneath(dir: &impl AsFd, path: &RepoPath, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    loop {
        match rustix::fs::openat2(dir, path.as_bytes(), flags, Mode::empty(), resolve) {
            // A rename elsewhere kept the kernel from being sure.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// What stands at a path beneath a folder; `None` where nothing does, or where a link stands on
/// the way to it.
pub(super) fn content(dir: &impl AsFd, path: &RepoPath) -> io::Result<Option<Content>> {
    let parent = match path.parent() {
        None => rustix::io::dup(dir)?,
        Some(parent) => {
            match beneath(dir, &parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    };
    content_in(&parent, path)
}

/// What stands at a path, by a handle of the folder that it is in.
fn content_in(parent: &impl AsFd, path: &RepoPath) -> io::Result<Option<Content>> {
    let name = path.name();
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => return Ok(Some(Content::Directory)),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(parent, name, Vec::new())?.into_bytes();
            return Ok(Some(Content::Symlink { target }));
        }
        FileType::RegularFile => {}
        _ => return Ok(Some(Content::Special)),
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(parent, name, flags, Mode::empty())?);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Ok(Some(Content::Special));
    }
    let (mode, size) = (meta.mode() & 0o7777, meta.len());
    if size <= LIMIT {
        let mut bytes = Vec::new();
        file.take(LIMIT + 1).read_to_end(&mut bytes)?;
        return Ok(Some(Content::file(mode, bytes)));
    }
    let mut digest = Sha256::new();
    if size <= MAX_DIGEST {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => digest.update(&buffer[..n]),
            }
        }
    } else {
        let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        digest.update(format!("{size} {} {times:?}", meta.ino()));
    }
    let sha256 = hex(&digest.finalize());
    Ok(Some(Content::File { mode, size, sha256, kept: false, bytes: Vec::new() }))
}
