//! A small world to restore in: a base, what the turn made of it, and a canary outside.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::*;
use crate::git::undo::{Rules, plan};
use crate::tx::entry::{Change, Kind, Stat};
use crate::tx::writer::{DeathProof, ProvenDead};

pub(super) type Listing = BTreeMap<Vec<u8>, (Kind, u32, Vec<u8>)>;

pub(super) fn oid(bytes: &[u8]) -> Oid {
    use io::Write as _;
    let mut hasher = crate::git::files::beneath::BlobHasher::new(bytes.len() as u64);
    hasher.write_all(bytes).expect("hashed");
    hasher.finish().expect("all of it")
}

/// Everything beneath a directory: kind, mode, bytes. Needs the rights to read it.
pub(super) fn list(root: &Path) -> Listing {
    let mut found = Listing::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(root.join(&dir)).expect("readable") {
            let path = dir.join(entry.expect("entry").file_name());
            let meta = fs::symlink_metadata(root.join(&path)).expect("there");
            let kind = match meta.file_type() {
                t if t.is_dir() => Kind::Directory,
                t if t.is_symlink() => Kind::Symlink,
                t if t.is_fifo() => Kind::Fifo,
                t if t.is_socket() => Kind::Socket,
                _ => Kind::File,
            };
            let bytes = match kind {
                Kind::File => fs::read(root.join(&path)).expect("read"),
                Kind::Symlink => {
                    fs::read_link(root.join(&path)).expect("read").as_os_str().as_bytes().to_vec()
                }
                _ => vec![],
            };
            found.insert(path.as_os_str().as_bytes().to_vec(), (kind, meta.mode() & 0o7777, bytes));
            if kind == Kind::Directory {
                stack.push(path);
            }
        }
    }
    found
}

pub(super) struct FromListing(pub(super) HashMap<Oid, Vec<u8>>);

impl Bytes for FromListing {
    fn blob(&self, id: Oid) -> io::Result<Box<dyn Read>> {
        let bytes = self.0.get(&id).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(io::Cursor::new(bytes.clone())))
    }
}

#[derive(Default)]
pub(super) struct Kept {
    pub(super) dir: PathBuf,
    pub(super) added: Vec<Oid>,
}

impl Rescue for Kept {
    fn add(&mut self, _: &RepoPath, _: &Found, bytes: &mut dyn Read) -> io::Result<Oid> {
        let mut all = Vec::new();
        bytes.read_to_end(&mut all)?;
        let id = oid(&all);
        fs::write(self.dir.join(id.to_string()), all)?;
        self.added.push(id);
        Ok(id)
    }

    fn pin(&mut self) -> io::Result<()> {
        self.added.iter().try_for_each(|id| {
            let name = id.to_string();
            fs::rename(self.dir.join(&name), self.dir.join(format!("pinned-{name}"))).or_else(
                |error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) },
            )
        })
    }
}

/// A folder with `base`, what the tree was; `rejected`, what the pin holds; `tree`; and outside of
/// it `canary`.
pub(super) struct Lab {
    pub(super) dir: PathBuf,
    pub(super) ignored: &'static str,
    pub(super) on_drift: OnDrift,
    pub(super) plain_renames: bool,
    pub(super) too_large: &'static [&'static str],
    pub(super) _held: Option<tempfile::TempDir>,
}

pub(super) const TEMPORARY: &str = ".worktx-tmp-test";

impl Lab {
    pub(super) fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            ignored: "ignored",
            on_drift: OnDrift::Leave,
            plain_renames: false,
            too_large: &[],
            _held: None,
        }
    }

    /// Fills the base, and lets the turn loose on a copy of it.
    pub(super) fn new(base: impl FnOnce(&Path), turn: impl FnOnce(&Path)) -> Self {
        let temporary = tempfile::tempdir().expect("a folder");
        let lab = Self { _held: None, ..Self::at(temporary.path()) };
        let lab = Self { _held: Some(temporary), ..lab };
        fs::set_permissions(&lab.dir, fs::Permissions::from_mode(0o755)).expect("opened");
        for name in ["base", "canary", "rescue"] {
            fs::create_dir(lab.dir.join(name)).expect("made");
        }
        fs::write(lab.dir.join("canary/file"), "outside").expect("written");
        base(&lab.dir.join("base"));
        lab.copy("base", "tree");
        turn(&lab.tree());
        lab.copy("tree", "rejected");
        lab
    }

    pub(super) fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    pub(super) fn copy(&self, from: &str, to: &str) {
        let done = Command::new("cp")
            .args(["-a", "--"])
            .args([self.dir.join(from), self.dir.join(to)])
            .status();
        assert!(done.expect("cp runs").success());
    }

    pub(super) fn is_ignored(&self, path: &[u8]) -> bool {
        path.split(|b| *b == b'/').any(|part| part == self.ignored.as_bytes())
    }

    pub(super) fn changes(&self) -> Vec<Change> {
        let (base, mut now) = (list(&self.dir.join("base")), list(&self.tree()));
        let look = |root: &str, path: &[u8]| {
            let at = self.dir.join(root).join(std::ffi::OsStr::from_bytes(path));
            let meta = fs::symlink_metadata(at).expect("listed");
            Stat {
                mode: meta.mode() & 0o7777,
                size: meta.len(),
                mtime_ns: meta.mtime_nsec(),
                ctime_ns: meta.ctime_nsec(),
                inode: meta.ino(),
                links: 1,
                uid: meta.uid(),
                gid: meta.gid(),
            }
        };
        // The scan does not walk into a repository: what the base has in it is gone for it.
        let nested: Vec<Vec<u8>> =
            now.keys().filter_map(|p| p.strip_suffix(b"/.git")).map(<[u8]>::to_vec).collect();
        now.retain(|path, _| {
            !nested.iter().any(|n| path.starts_with(n) && path.get(n.len()) == Some(&b'/'))
        });
        for path in &nested {
            now.get_mut(path).expect("listed").0 = Kind::NestedRepository;
        }
        let paths: HashSet<_> = base.keys().chain(now.keys()).cloned().collect();
        let differs = |path: &Vec<u8>| {
            base.get(path) != now.get(path)
                && !path.starts_with(TEMPORARY.as_bytes())
                && (base.contains_key(path) || !self.is_ignored(path))
        };
        let entry = |path: &Vec<u8>| {
            base.get(path).map(|(kind, _, bytes)| Entry {
                kind: *kind,
                stat: look("base", path),
                stat_is_proof: true,
                raw: if kind.has_bytes() { oid(bytes) } else { Oid::ZERO },
                tracked: None,
            })
        };
        let found = |path: &Vec<u8>| {
            now.get(path).map(|(kind, ..)| Found { kind: *kind, stat: look("tree", path) })
        };
        paths
            .iter()
            .filter(|path| differs(path))
            .map(|path| Change {
                path: RepoPath::new(path.clone()).expect("valid"),
                before: entry(path),
                after: found(path),
                ignored_by_base: self.is_ignored(path),
                ignored_by_turn: false,
            })
            .collect()
    }

    /// Plans from what stands there, lets `between` act, and restores.
    pub(super) fn restore_after(&self, between: impl FnOnce(&Path)) -> RestoreReport {
        self.restore_twice(between, None)
    }

    /// As [`Lab::restore_after`]; before, the same plan is tried without the bytes of one file.
    pub(super) fn restore_twice(
        &self,
        between: impl FnOnce(&Path),
        without: Option<&str>,
    ) -> RestoreReport {
        let pinned = list(&self.dir.join("rejected"))
            .into_iter()
            .filter(|(path, (kind, ..))| kind.has_bytes() && !self.is_ignored(path))
            .map(|(path, (_, _, bytes))| (RepoPath::new(path).expect("valid"), oid(&bytes)))
            .collect();
        let too_large = self.too_large.iter().map(|p| RepoPath::new(*p).expect("valid")).collect();
        let rules = Rules { pinned: &pinned, survives: &|_| false, too_large: &too_large };
        let plan = plan(ProvenDead::attest(DeathProof::NoChildren), self.changes(), &rules);
        between(&self.tree());
        let base = list(&self.dir.join("base"));
        let bytes: HashMap<_, _> =
            base.into_values().map(|(_, _, bytes)| (oid(&bytes), bytes)).collect();
        let mut fewer = FromListing(bytes.clone());
        fewer.0.remove(&oid(without.unwrap_or_default().as_bytes()));
        let all = FromListing(bytes);
        let root = fs::File::open(self.tree()).expect("opened");
        let mut rescue = Kept { dir: self.dir.join("rescue"), added: vec![] };
        let mut on = Restore {
            root: std::os::fd::AsFd::as_fd(&root),
            temporary: &RepoPath::new(TEMPORARY).expect("valid"),
            pinned: &pinned,
            in_scope: &|path| !self.is_ignored(path.as_bytes()),
            on_drift: self.on_drift,
            bytes: &all,
            rescue: &mut rescue,
            spill: &mut Spill::at(self.dir.join("spill")),
            plain_renames: self.plain_renames,
        };
        if let Some(without) = without {
            on.bytes = &fewer;
            let first = restore(&plan, &mut on).expect("not stopped");
            assert_ne!(first.blocked, [], "{without}");
            on.bytes = &all;
        }
        restore(&plan, &mut on).expect("not stopped")
    }

    pub(super) fn restore(&self) -> RestoreReport {
        self.restore_after(|_| {})
    }

    /// Restores in a process of its own, which the fault may end; its report, if it came to it.
    pub(super) fn restore_elsewhere(&self, fault: &str, unprivileged: bool) -> Option<String> {
        let own = std::env::current_exe().expect("known");
        let mut command = if unprivileged {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(own);
            command
        } else {
            Command::new(own)
        };
        let report = self.dir.join("report");
        let _ = fs::remove_file(&report);
        let output = command
            .args(["--exact", "git::undo::restore::tests::elsewhere", "--include-ignored"])
            .env("WORKTX_TEST_LAB", &self.dir)
            .env("WORKTX_FAULT", fault)
            .output()
            .expect("runs");
        let text = fs::read_to_string(&report).ok();
        assert_eq!(text.is_some(), output.status.success(), "{output:?}");
        text
    }

    pub(super) fn rescued(&self) -> Vec<Vec<u8>> {
        let mut all: Vec<_> = fs::read_dir(self.dir.join("rescue"))
            .expect("there")
            .map(|entry| entry.expect("entry"))
            .filter(|entry| entry.file_name().as_bytes().starts_with(b"pinned-"))
            .map(|entry| fs::read(entry.path()).expect("read"))
            .collect();
        all.sort();
        all
    }

    pub(super) fn assert_is_base(&self) {
        assert_eq!(list(&self.tree()), list(&self.dir.join("base")));
        assert_eq!(fs::read(self.dir.join("canary/file")).expect("read"), b"outside");
        assert_eq!(fs::read_dir(self.dir.join("canary")).expect("read").count(), 1);
    }
}

pub(super) fn write(root: &Path, path: &str, bytes: &str) {
    let at = root.join(path);
    fs::create_dir_all(at.parent().expect("has one")).expect("made");
    fs::write(at, bytes).expect("written");
}

pub(super) fn mode(root: &Path, path: &str, mode: u32) {
    fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).expect("set");
}

pub(super) fn fifo(root: &Path, path: &str) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, root.join(path), FileType::Fifo, Mode::from_raw_mode(0o640), 0).expect("made");
}

pub(super) fn remove(root: &Path, path: &str) {
    let at = root.join(path);
    if at.symlink_metadata().expect("there").is_dir() {
        fs::remove_dir_all(at).expect("removed");
    } else {
        fs::remove_file(at).expect("removed");
    }
}
