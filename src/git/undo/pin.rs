//! What goes under a pin: a commit that holds a state of the tree as raw bytes.
//!
//! Its tree is another commit's with every path applied as it stands on disk, unconverted, so that
//! `git diff <base> <pin>` shows the work and `git branch x <pin>` gives it back. What git cannot
//! store (special files, empty directories, permissions beyond 644 and 755, names like `.GIT`,
//! paths too deep) stands in `meta.json` of a last parent commit, its bytes beside it under
//! numbers.
//!
//! Each file is opened once, by handle, and hashed while its bytes go into the pack; then the
//! handle and the name are looked at again. What does not hold still is [`PinError::Unstable`].
//! Nothing is durable before `PackWriter::finish`, and nothing may be undone before that.
//!
//! # Limitations
//! What is moved into the spill unread, nested repositories and mounts are named in `meta.json`
//! and not held.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use serde::{Deserialize, Serialize};

use crate::git::files::beneath::{self, Beneath};
use crate::git::files::names::passes_fsck;
use crate::git::objects::pack::{PackError, PackWriter};
use crate::git::objects::store::{Held, MAX_DEPTH, Store};
use crate::git::objects::tree::{self, Signature, TreeError};
use crate::tx::entry::{Change, Found, GIT_FILE, Kind, git_mode};
use crate::tx::id::Oid;
use crate::tx::path::RepoPath;
use crate::tx::writer::BlockedPath;

/// The list of what git cannot store, in the tree of the meta commit.
pub const META: &str = "meta.json";
/// How often a file that changes while it is read is tried.
const TRIES: u32 = 3;

/// A pin could not be built. Nothing that it should hold may be undone.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Files kept changing although every writer is dead.
    #[error("files change while they are read: {}", names(paths))]
    Unstable {
        /// Which.
        paths: Vec<RepoPath>,
    },
    /// Files could not be read.
    #[error("files cannot be read: {}", paths.iter().map(|p| format!("{}: {}", p.path, p.why)).collect::<Vec<_>>().join(", "))]
    Unreadable {
        /// Which, and why not.
        paths: Vec<BlockedPath>,
    },
    /// The objects could not be written.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The tree could not be made.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// `meta.json` could not be made.
    #[error("{META} cannot be written: {0}")]
    Meta(#[from] serde_json::Error),
}

fn names(paths: &[RepoPath]) -> String {
    paths.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What a pin holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The commit to be pinned. Where there was nothing to add, the first parent itself.
    pub commit: Oid,
    /// The raw blob id of each path that was read: what [`crate::git::undo`] calls `pinned`.
    pub raw: HashMap<RepoPath, Oid>,
}

/// `meta.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// 1.
    pub schema: u32,
    /// What the tree does not say, by path.
    pub entries: Vec<MetaEntry>,
}

/// One path of `meta.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaEntry {
    /// Where.
    pub path: RepoPath,
    /// What it is.
    pub kind: Kind,
    /// Its permission bits, `0o7777`.
    pub mode: u32,
    /// The name of its bytes beside `meta.json`, where the pin's tree does not hold them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<String>,
    /// It is not held: too large, a repository of its own, or a mount.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_held: bool,
}

/// What a pin is built with.
pub struct PinSource<'a> {
    /// The held root of the work tree.
    pub root: BorrowedFd<'a>,
    /// The objects.
    pub store: &'a Store,
    /// The tree that the paths are applied to.
    pub onto: Oid,
    /// The parents of the commit; the first is what it stands for.
    pub parents: &'a [Oid],
    /// What is beyond the limits: named and not read.
    pub too_large: &'a HashSet<RepoPath>,
    /// Author and committer.
    pub who: &'a Signature,
    /// The message.
    pub message: &'a str,
}

/// Builds the pin of rejected work: everything that `changes` lists and the undo covers, as it
/// stands now. `onto` is the tree of the base pin, the first parent the branch's tip.
///
/// What the base ignored and does not have is left out, as the undo leaves it alone.
pub fn build_pin(
    from: &PinSource<'_>,
    changes: &[Change],
    pack: &mut PackWriter<'_>,
) -> Result<Built, PinError> {
    let covered = changes.iter().filter(|c| c.before.is_some() || !c.ignored_by_base);
    build(from, covered.map(|c| (&c.path, c.after.as_ref())), pack)
}

/// Builds the pin of a base: its commit, with what was untracked and what differs from the
/// commit's bytes on top. The commit itself where there is nothing of the kind.
pub fn build_base_pin(
    from: &PinSource<'_>,
    additions: &[(RepoPath, Found)],
    pack: &mut PackWriter<'_>,
) -> Result<Built, PinError> {
    build(from, additions.iter().map(|(path, found)| (path, Some(found))), pack)
}

fn build<'p>(
    from: &PinSource<'_>,
    items: impl Iterator<Item = (&'p RepoPath, Option<&'p Found>)>,
    pack: &mut PackWriter<'_>,
) -> Result<Built, PinError> {
    let mut build = Build {
        beneath: Beneath::new(from.root),
        too_large: from.too_large,
        edits: BTreeMap::new(),
        raw: HashMap::new(),
        meta: Vec::new(),
        beside: BTreeMap::new(),
        unstable: Vec::new(),
        unreadable: Vec::new(),
    };
    for (path, found) in items {
        match found {
            None => {
                build.edits.insert(path.clone(), None);
            }
            Some(found) => build.add(path, found, pack)?,
        }
    }
    // A directory that had to be opened to be read is closed again.
    for (path, error) in build.beneath.lock_again(|_| false) {
        tracing::warn!(%path, %error, "a directory keeps the mode that it was read with");
    }
    if !build.unreadable.is_empty() {
        return Err(PinError::Unreadable { paths: build.unreadable });
    }
    if !build.unstable.is_empty() {
        return Err(PinError::Unstable { paths: build.unstable });
    }
    build.finish(from, pack)
}

struct Build<'a> {
    beneath: Beneath<'a>,
    too_large: &'a HashSet<RepoPath>,
    edits: BTreeMap<RepoPath, Option<Held>>,
    raw: HashMap<RepoPath, Oid>,
    meta: Vec<MetaEntry>,
    /// The blobs of the meta tree.
    beside: BTreeMap<RepoPath, Option<Held>>,
    unstable: Vec<RepoPath>,
    unreadable: Vec<BlockedPath>,
}

impl Build<'_> {
    fn add(
        &mut self,
        path: &RepoPath,
        found: &Found,
        pack: &mut PackWriter<'_>,
    ) -> Result<(), PinError> {
        let held_elsewhere = matches!(found.kind, Kind::NestedRepository | Kind::Mount)
            || (!self.too_large.is_empty()
                && std::iter::successors(Some(path.clone()), RepoPath::parent)
                    .any(|p| self.too_large.contains(&p)));
        let mut entry = MetaEntry {
            path: path.clone(),
            kind: found.kind,
            mode: found.stat.mode,
            blob: None,
            not_held: held_elsewhere,
        };
        if held_elsewhere || !found.kind.has_bytes() {
            // The tree holds nothing at this path; what is beneath it speaks for itself.
            self.edits.insert(path.clone(), None);
            self.meta.push(entry);
            return Ok(());
        }
        let Some((id, found)) = self.read(path, found, pack)? else { return Ok(()) };
        self.raw.insert(path.clone(), id);
        entry.mode = found.stat.mode;
        if is_storable(path, found.kind) {
            self.edits.insert(path.clone(), Some((git_mode(found.kind, &found.stat), id)));
            let plain = matches!(found.stat.mode, 0o644 | 0o755);
            if found.kind == Kind::File && !plain {
                self.meta.push(entry);
            }
        } else {
            let number = (self.beside.len() + 1).to_string();
            let name = RepoPath::join(None, number.as_bytes());
            self.beside.insert(name, Some((GIT_FILE, id)));
            entry.blob = Some(number);
            self.meta.push(entry);
        }
        Ok(())
    }

    /// Reads a file or link into the pack; `None` where that is noted as a failure.
    fn read(
        &mut self,
        path: &RepoPath,
        found: &Found,
        pack: &mut PackWriter<'_>,
    ) -> Result<Option<(Oid, Found)>, PinError> {
        for _ in 0..TRIES {
            match self.read_once(path, found.kind, pack) {
                Ok(Some(done)) => return Ok(Some(done)),
                Ok(None) => {}
                Err(ReadError::Pack(error)) => return Err(error.into()),
                Err(ReadError::Io(error)) => {
                    let why = error.to_string();
                    self.unreadable.push(BlockedPath { path: path.clone(), why });
                    return Ok(None);
                }
            }
        }
        self.unstable.push(path.clone());
        Ok(None)
    }

    /// One try; `None`: it is not the same before and after.
    fn read_once(
        &self,
        path: &RepoPath,
        kind: Kind,
        pack: &mut PackWriter<'_>,
    ) -> Result<Option<(Oid, Found)>, ReadError> {
        let Some(seen) = self.beneath.look(path)?.filter(|seen| seen.kind == kind) else {
            return Ok(None);
        };
        // Opened before the look that counts: a closed file is opened by `chmod` and back, which
        // moves its ctime.
        let bytes = beneath::bytes_of(&seen)?;
        let (_, before) = beneath::stat_of(seen.handle.as_fd())?;
        let id = match pack.add_blob(before.size, bytes) {
            Err(PackError::Unstable { .. }) => return Ok(None),
            Err(PackError::Source(error)) => return Err(error.into()),
            id => id?,
        };
        let (_, after) = beneath::stat_of(seen.handle.as_fd())?;
        let named = self.beneath.look(path)?.is_some_and(|now| now.stat.inode == after.inode);
        Ok((named && before == after).then_some((id, Found { kind, stat: before })))
    }

    fn finish(self, from: &PinSource<'_>, pack: &mut PackWriter<'_>) -> Result<Built, PinError> {
        let tree = tree::edit(from.store, from.onto, &self.edits, pack)?;
        if tree == from.onto
            && self.meta.is_empty()
            && let [only] = from.parents
        {
            return Ok(Built { commit: *only, raw: self.raw });
        }
        let commit = |tree, parents: &[Oid], pack: &mut PackWriter<'_>| {
            pack.add_commit(&tree::commit_bytes(tree, parents, from.who, from.who, from.message))
        };
        let mut parents = from.parents.to_vec();
        if !self.meta.is_empty() {
            let mut entries = self.meta;
            entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
            let text = serde_json::to_vec_pretty(&Meta { schema: 1, entries })?;
            let mut beside = self.beside;
            let id = pack.add_blob_bytes(&text)?;
            beside.insert(RepoPath::join(None, META.as_bytes()), Some((GIT_FILE, id)));
            let meta = tree::edit(from.store, Oid::EMPTY_TREE, &beside, pack)?;
            parents.push(commit(meta, &[], pack)?);
        }
        Ok(Built { commit: commit(tree, &parents, pack)?, raw: self.raw })
    }
}

enum ReadError {
    Pack(PackError),
    Io(io::Error),
}

impl From<PackError> for ReadError {
    fn from(error: PackError) -> Self {
        Self::Pack(error)
    }
}

impl From<rustix::io::Errno> for ReadError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Whether git can store something at the path.
fn is_storable(path: &RepoPath, kind: Kind) -> bool {
    path.parts().count() <= MAX_DEPTH && passes_fsck(path, kind == Kind::Symlink)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::git::files::beneath::Seen;
    use crate::tx::entry::{Entry, Stat};

    fn git(dir: &Path, args: &[&str]) -> String {
        let done = Command::new("git")
            .args(["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"])
            .args(args)
            .current_dir(dir)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .output()
            .expect("git runs");
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("text").trim_end().to_owned()
    }

    fn path(text: &str) -> RepoPath {
        RepoPath::new(text).expect("valid")
    }

    fn look(root: &fs::File, at: &str) -> Option<Found> {
        let seen = Beneath::new(root.as_fd()).look(&path(at)).expect("looked");
        seen.map(|Seen { kind, stat, .. }| Found { kind, stat })
    }

    fn who() -> Signature {
        let (name, email) = ("w".to_owned(), "w@x".to_owned());
        Signature { name, email, time: 1_700_000_000, offset_minutes: 60 }
    }

    struct Repo {
        dir: tempfile::TempDir,
        root: fs::File,
        store: Store,
        head: Oid,
        tree: Oid,
    }

    fn repo(fill: impl FnOnce(&Path)) -> Repo {
        let dir = tempfile::tempdir().expect("a folder");
        git(dir.path(), &["init", "-q"]);
        fill(dir.path());
        git(dir.path(), &["add", "-A"]);
        git(dir.path(), &["commit", "-q", "-m", "base"]);
        let id = |name: &str| git(dir.path(), &["rev-parse", name]).parse().expect("an id");
        let (head, tree) = (id("HEAD"), id("HEAD^{tree}"));
        let store = Store::open(&dir.path().join(".git")).expect("opened");
        let root = fs::File::open(dir.path()).expect("opened");
        Repo { dir, root, store, head, tree }
    }

    impl Repo {
        fn build(
            &self,
            paths: &[&str],
            too_large: &[&str],
            ignored: &[&str],
        ) -> Result<Built, PinError> {
            let old = Stat {
                mode: 0o644,
                size: 0,
                mtime_ns: 0,
                ctime_ns: 0,
                inode: 0,
                links: 1,
                uid: 0,
                gid: 0,
            };
            let changes: Vec<Change> = paths
                .iter()
                .map(|at| Change {
                    path: path(at),
                    before: self.store.lookup(self.tree, &path(at)).expect("read").map(|held| {
                        Entry {
                            kind: Kind::File,
                            stat: old,
                            stat_is_proof: false,
                            raw: held.1,
                            tracked: None,
                        }
                    }),
                    after: look(&self.root, at),
                    ignored_by_base: ignored.contains(at),
                    ignored_by_turn: false,
                })
                .collect();
            let mut pack = PackWriter::new(&self.store);
            let built = build_pin(
                &PinSource {
                    root: self.root.as_fd(),
                    store: &self.store,
                    onto: self.tree,
                    parents: &[self.head],
                    too_large: &too_large.iter().map(|p| path(p)).collect(),
                    who: &who(),
                    message: "discarded",
                },
                &changes,
                &mut pack,
            )?;
            pack.finish()?;
            Ok(built)
        }
    }

    #[test]
    fn the_work_is_there_for_git() {
        let repo = repo(|dir| {
            fs::write(dir.join("edited"), "base").expect("written");
            fs::write(dir.join("gone"), "base").expect("written");
            fs::write(dir.join("swap"), "base").expect("written");
            fs::write(dir.join(".gitattributes"), "* text=auto eol=lf\n").expect("written");
        });
        let dir = repo.dir.path();
        fs::write(dir.join("edited"), "turn\r\nraw\r\n").expect("written");
        fs::set_permissions(dir.join("edited"), fs::Permissions::from_mode(0o0)).expect("set");
        fs::remove_file(dir.join("gone")).expect("removed");
        fs::remove_file(dir.join("swap")).expect("removed");
        fs::create_dir_all(dir.join("swap/.GIT")).expect("made");
        fs::create_dir_all(dir.join("empty")).expect("made");
        fs::write(dir.join("swap/new"), "new").expect("written");
        fs::write(dir.join("swap/.GIT/x"), "odd").expect("written");
        fs::write(dir.join("huge"), "huge").expect("written");
        fs::write(dir.join("secret"), "secret").expect("written");
        symlink("../out", dir.join("link")).expect("linked");
        let paths = ["edited", "gone", "swap", "swap/new", "swap/.GIT", "swap/.GIT/x", "empty"];
        let all: Vec<&str> = paths.into_iter().chain(["huge", "secret", "link"]).collect();
        let built = repo.build(&all, &["huge"], &["secret"]).expect("built");

        let pin = built.commit.to_string();
        git(dir, &["update-ref", "refs/pin", &pin]);
        git(dir, &["fsck", "--strict", "--no-dangling"]);
        let shown = git(dir, &["diff", "--no-renames", "--name-status", "HEAD", "refs/pin"]);
        assert_eq!(shown, "M\tedited\nD\tgone\nA\tlink\nD\tswap\nA\tswap/new");
        assert_eq!(git(dir, &["cat-file", "-p", "refs/pin:edited"]), "turn\r\nraw", "unconverted");
        assert_eq!(git(dir, &["cat-file", "-p", "refs/pin:link"]), "../out");
        assert_eq!(git(dir, &["rev-parse", "refs/pin^1"]), repo.head.to_string());
        let meta: Meta =
            serde_json::from_str(&git(dir, &["cat-file", "-p", "refs/pin^2:meta.json"]))
                .expect("read back");
        let told: Vec<_> = meta
            .entries
            .iter()
            .map(|e| (e.path.to_string(), e.kind, e.mode, e.blob.is_some(), e.not_held))
            .collect();
        let told: Vec<_> = told.iter().map(|t| (t.0.as_str(), t.1, t.2, t.3, t.4)).collect();
        assert_eq!(
            told,
            [
                ("edited", Kind::File, 0, false, false),
                ("empty", Kind::Directory, 0o755, false, false),
                ("huge", Kind::File, 0o644, false, true),
                ("swap", Kind::Directory, 0o755, false, false),
                ("swap/.GIT", Kind::Directory, 0o755, false, false),
                ("swap/.GIT/x", Kind::File, 0o644, true, false),
            ]
        );
        let number = meta.entries[5].blob.as_deref().expect("beside");
        assert_eq!(git(dir, &["cat-file", "-p", &format!("refs/pin^2:{number}")]), "odd");
        assert_eq!(built.raw.len(), 4, "{:?}", built.raw);
        let raw = git(dir, &["hash-object", "--no-filters", "swap/new"]);
        assert_eq!(built.raw[&path("swap/new")].to_string(), raw);
        let mode = fs::metadata(dir.join("edited")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0, "closed again");
    }

    #[test]
    fn nothing_to_add_is_the_base_itself() {
        let repo = repo(|dir| fs::write(dir.join("a"), "base").expect("written"));
        assert_eq!(repo.build(&["a"], &[], &[]).expect("built").commit, repo.head);

        let dir = repo.dir.path();
        fs::write(dir.join("note"), "untracked").expect("written");
        let (parents, too_large, who) = ([repo.head], HashSet::new(), who());
        let from = PinSource {
            root: repo.root.as_fd(),
            store: &repo.store,
            onto: repo.tree,
            parents: &parents,
            too_large: &too_large,
            who: &who,
            message: "base",
        };
        let mut pack = PackWriter::new(&repo.store);
        let additions = [(path("note"), look(&repo.root, "note").expect("there"))];
        let built = build_base_pin(&from, &additions, &mut pack).expect("built");
        pack.finish().expect("durable");
        let shown = git(dir, &["show", "--format=%P", "--name-status", &built.commit.to_string()]);
        assert_eq!(shown, format!("{}\n\nA\tnote", repo.head));
    }

    #[test]
    fn what_does_not_hold_still_is_named() {
        let repo = repo(|dir| fs::write(dir.join("a"), "base").expect("written"));
        let at = repo.dir.path().join("a");
        let stop = std::sync::atomic::AtomicBool::new(false);
        let (started, at_work) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let flip = scope.spawn(|| {
                // Equal sizes, one moment apart; large, so that reading it takes longer than that.
                let pages = [vec![b'a'; 1 << 22], vec![b'b'; 1 << 22]];
                let mut turn = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    use std::os::unix::fs::FileExt as _;
                    let file = fs::OpenOptions::new().write(true).open(&at).expect("opened");
                    for chunk in pages[turn].chunks(4096).enumerate() {
                        file.write_at(chunk.1, chunk.0 as u64 * 4096).expect("written");
                    }
                    turn = 1 - turn;
                    let _ = started.send(());
                }
            });
            at_work.recv().expect("it writes");
            let built: Vec<_> = (0..10).map(|_| repo.build(&["a"], &[], &[])).collect();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            flip.join().expect("no panic");
            for built in built {
                match built {
                    Err(PinError::Unstable { paths }) => assert_eq!(paths, [path("a")]),
                    // The writer may rest; then what was read is what stood there: the new bytes
                    // up to one place, the old ones from there.
                    Ok(built) => {
                        let bytes = repo.store.blob(built.raw[&path("a")]).expect("there");
                        let pages: Vec<u8> = bytes.chunks(4096).map(|page| page[0]).collect();
                        let turns = pages.windows(2).filter(|two| two[0] != two[1]).count();
                        assert!(turns <= 1, "torn at {turns} places");
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
    }

    #[test]
    fn what_reads_longer_than_it_looks_is_unstable() {
        let mut repo = repo(|dir| fs::write(dir.join("a"), "base").expect("written"));
        // A file of the kernel: 0 bytes by its look, 37 by its reading.
        repo.root = fs::File::open("/proc/sys/kernel/random").expect("opened");
        let built = repo.build(&["uuid"], &[], &[]);
        assert!(matches!(built, Err(PinError::Unstable { .. })), "{built:?}");
    }
}
