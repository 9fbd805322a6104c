//! Real trees, real kills, real races. The judge is a listing made with the standard library.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::git::undo::{Rules, plan};
use crate::tx::entry::{Change, Kind, Stat};
use crate::tx::writer::{DeathProof, ProvenDead};

type Listing = BTreeMap<Vec<u8>, (Kind, u32, Vec<u8>)>;

fn oid(bytes: &[u8]) -> Oid {
    use io::Write as _;
    let mut hasher = crate::git::beneath::BlobHasher::new(bytes.len() as u64);
    hasher.write_all(bytes).expect("hashed");
    hasher.finish().expect("all of it")
}

/// Everything beneath a directory: kind, mode, bytes. Needs the rights to read it.
fn list(root: &Path) -> Listing {
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

struct FromListing(HashMap<Oid, Vec<u8>>);

impl Bytes for FromListing {
    fn blob(&self, id: Oid) -> io::Result<Box<dyn Read>> {
        let bytes = self.0.get(&id).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(io::Cursor::new(bytes.clone())))
    }
}

#[derive(Default)]
struct Kept {
    dir: PathBuf,
    added: Vec<Oid>,
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
struct Lab {
    dir: PathBuf,
    ignored: &'static str,
    on_drift: OnDrift,
    plain_renames: bool,
    too_large: &'static [&'static str],
    _temporary: Option<tempfile::TempDir>,
}

const TEMPORARY: &str = ".worktx-tmp-test";

impl Lab {
    fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            ignored: "ignored",
            on_drift: OnDrift::Leave,
            plain_renames: false,
            too_large: &[],
            _temporary: None,
        }
    }

    /// Fills the base, and lets the turn loose on a copy of it.
    fn new(base: impl FnOnce(&Path), turn: impl FnOnce(&Path)) -> Self {
        let temporary = tempfile::tempdir().expect("a folder");
        let lab = Self { _temporary: Some(temporary), ..Self::at(Path::new("")) };
        let dir = lab._temporary.as_ref().expect("just made").path().to_owned();
        let lab = Self { dir, ..lab };
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

    fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    fn copy(&self, from: &str, to: &str) {
        let done = Command::new("cp")
            .args(["-a", "--"])
            .args([self.dir.join(from), self.dir.join(to)])
            .status();
        assert!(done.expect("cp runs").success());
    }

    fn is_ignored(&self, path: &[u8]) -> bool {
        path.split(|b| *b == b'/').any(|part| part == self.ignored.as_bytes())
    }

    fn changes(&self) -> Vec<Change> {
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
            now.get(path).map(|(kind, ..)| {
                Found { kind: *kind, stat: look("tree", path) }
            })
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
    fn restore_after(&self, between: impl FnOnce(&Path)) -> RestoreReport {
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
        let bytes = base.into_values().map(|(_, _, bytes)| (oid(&bytes), bytes)).collect();
        let root = fs::File::open(self.tree()).expect("opened");
        let mut rescue = Kept { dir: self.dir.join("rescue"), added: vec![] };
        let mut on = Restore {
            root: std::os::fd::AsFd::as_fd(&root),
            temporary: &RepoPath::new(TEMPORARY).expect("valid"),
            pinned: &pinned,
            in_scope: &|path| !self.is_ignored(path.as_bytes()),
            on_drift: self.on_drift,
            bytes: &FromListing(bytes),
            rescue: &mut rescue,
            spill: &mut Spill::at(self.dir.join("spill")),
            plain_renames: self.plain_renames,
        };
        restore(&plan, &mut on).expect("not stopped")
    }

    fn restore(&self) -> RestoreReport {
        self.restore_after(|_| {})
    }

    /// Restores in a process of its own, which the fault may end; its report, if it came to it.
    fn restore_elsewhere(&self, fault: &str, unprivileged: bool) -> Option<String> {
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
            .args(["--exact", "git::restore::tests::elsewhere", "--include-ignored"])
            .env("WORKTX_TEST_LAB", &self.dir)
            .env("WORKTX_FAULT", fault)
            .output()
            .expect("runs");
        let text = fs::read_to_string(&report).ok();
        assert_eq!(text.is_some(), output.status.success(), "{output:?}");
        text
    }

    fn rescued(&self) -> Vec<Vec<u8>> {
        let mut all: Vec<_> = fs::read_dir(self.dir.join("rescue"))
            .expect("there")
            .map(|entry| entry.expect("entry"))
            .filter(|entry| entry.file_name().as_bytes().starts_with(b"pinned-"))
            .map(|entry| fs::read(entry.path()).expect("read"))
            .collect();
        all.sort();
        all
    }

    fn assert_is_base(&self) {
        assert_eq!(list(&self.tree()), list(&self.dir.join("base")));
        assert_eq!(fs::read(self.dir.join("canary/file")).expect("read"), b"outside");
        assert_eq!(fs::read_dir(self.dir.join("canary")).expect("read").count(), 1);
    }
}

/// Not a test by itself: the other end of [`Lab::restore_elsewhere`].
#[test]
#[ignore = "run by other tests, in a process that may be killed"]
fn elsewhere() {
    let Some(dir) = std::env::var_os("WORKTX_TEST_LAB") else { return };
    let lab = Lab { on_drift: OnDrift::Restore, ..Lab::at(Path::new(&dir)) };
    let report = lab.restore();
    fs::write(lab.dir.join("report"), format!("{:?}", report.blocked)).expect("written");
}

fn write(root: &Path, path: &str, bytes: &str) {
    let at = root.join(path);
    fs::create_dir_all(at.parent().expect("has one")).expect("made");
    fs::write(at, bytes).expect("written");
}

fn mode(root: &Path, path: &str, mode: u32) {
    fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).expect("set");
}

fn fifo(root: &Path, path: &str) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, root.join(path), FileType::Fifo, Mode::from_raw_mode(0o640), 0).expect("made");
}

fn remove(root: &Path, path: &str) {
    let at = root.join(path);
    if at.symlink_metadata().expect("there").is_dir() {
        fs::remove_dir_all(at).expect("removed");
    } else {
        fs::remove_file(at).expect("removed");
    }
}

/// Some of everything.
fn rich_base(root: &Path) {
    for path in ["same", "edited", "gone", "to_dir", "to_link", "to_fifo", "crlf\r", "d/deep/x"] {
        write(root, path, &format!("{path}\r\nbase"));
    }
    mode(root, "edited", 0o4751);
    mode(root, "gone", 0o400);
    write(root, "moded", "moded");
    mode(root, "moded", 0o600);
    symlink("nowhere", root.join("dangling")).expect("linked");
    symlink("../canary/file", root.join("outward")).expect("linked");
    symlink("same", root.join("relinked")).expect("linked");
    fs::create_dir_all(root.join("empty/within")).expect("made");
    mode(root, "empty/within", 0o1777);
    fs::create_dir(root.join("dir_to_file")).expect("made");
    write(root, "dir_to_file/a", "a");
    write(root, "dir_to_link/a", "a");
    fifo(root, "pipe");
    fifo(root, "pipe_gone");
    let bytes: Vec<u8> = [b'n'; 200].into_iter().chain([0xff, b'\n', b'-']).collect();
    fs::write(root.join(std::ffi::OsStr::from_bytes(&bytes)), "odd").expect("written");
    fs::write(root.join("y".repeat(255)), "long").expect("written");
}

fn rich_turn(root: &Path) {
    write(root, "edited", "other");
    mode(root, "moded", 0o777);
    for path in ["gone", "to_dir", "to_link", "to_fifo", "dir_to_file", "dir_to_link", "d"] {
        remove(root, path);
    }
    write(root, "to_dir/new/x", "x");
    write(root, "to_dir/y", "y");
    symlink("../canary/file", root.join("to_link")).expect("linked");
    fifo(root, "to_fifo");
    write(root, "dir_to_file", "file");
    symlink("../canary", root.join("dir_to_link")).expect("linked");
    symlink("../canary", root.join("d")).expect("linked");
    remove(root, "outward");
    write(root, "outward", "a file now");
    remove(root, "dangling");
    fs::create_dir(root.join("dangling")).expect("made");
    remove(root, "relinked");
    symlink("edited", root.join("relinked")).expect("linked");
    remove(root, "empty");
    remove(root, "pipe");
    write(root, "pipe", "no pipe");
    remove(root, "pipe_gone");
    remove(root, &"y".repeat(255));
    write(root, "new/tree/file", "new");
    fs::create_dir_all(root.join("new/empty")).expect("made");
    fifo(root, "new/pipe");
    mode(root, "new", 0o500);
}

#[test]
fn everything_comes_back_byte_for_byte() {
    for plain_renames in [false, true] {
        let lab = Lab { plain_renames, ..Lab::new(rich_base, rich_turn) };
        let same = fs::metadata(lab.tree().join("same")).expect("there");
        let moded = fs::metadata(lab.tree().join("moded")).expect("there");
        let report = lab.restore();
        assert_eq!(report.blocked, []);
        assert_eq!((report.drift.len(), report.moved_aside.len()), (0, 0), "{report:?}");
        lab.assert_is_base();
        assert!(lab.rescued().is_empty());
        let now = fs::metadata(lab.tree().join("same")).expect("there");
        let look = |m: &fs::Metadata| (m.ino(), m.mtime(), m.mtime_nsec(), m.ctime_nsec());
        assert_eq!(look(&now), look(&same), "what does not differ is not touched");
        let now = fs::metadata(lab.tree().join("moded")).expect("there");
        assert_eq!((now.ino(), now.mtime_nsec()), (moded.ino(), moded.mtime_nsec()));
        for (path, entry) in &report.new_stats {
            let there = fs::symlink_metadata(lab.tree().join(path.as_path()));
            assert_eq!(
                entry.as_ref().map(|e| (e.stat.inode, e.stat.ctime_ns % 1_000_000_000)),
                there.ok().map(|m| (m.ino(), m.ctime_nsec())),
                "{path}"
            );
        }
        assert_eq!(lab.restore(), RestoreReport::default(), "a second run has nothing to do");
    }
}

#[test]
fn a_kill_at_any_point_converges() {
    let mut killed = 0;
    for n in 1.. {
        let lab = Lab::new(rich_base, rich_turn);
        if lab.restore_elsewhere(&format!("file_restored:{n}"), false).is_some() {
            lab.assert_is_base();
            break;
        }
        killed += 1;
        // The second crash, in the repair of the first.
        lab.restore_elsewhere(&format!("file_restored:{}", n / 2 + 1), false);
        assert_eq!(lab.restore_elsewhere("", false).as_deref(), Some("[]"));
        lab.assert_is_base();
        assert!(lab.rescued().is_empty(), "nothing was anybody else's");
    }
    assert!(killed > 40, "the points are gone: {killed}");
}

#[test]
fn drift_is_rescued_and_stays_or_goes() {
    for on_drift in [OnDrift::Leave, OnDrift::Restore] {
        let lab = Lab {
            on_drift,
            ..Lab::new(
                |root| {
                    for path in ["edited", "mode", "gone", "free", "k"] {
                        write(root, path, "base");
                    }
                },
                |root| {
                    write(root, "edited", "turn");
                    mode(root, "mode", 0o755);
                    remove(root, "gone");
                    write(root, "new/a", "turn");
                    write(root, "new2/a", "turn");
                    write(root, "k", "turn");
                },
            )
        };
        let report = lab.restore_after(|root| {
            write(root, "edited", "person 1");
            write(root, "mode", "person 2");
            write(root, "gone", "person 3");
            write(root, "new/a", "person 4");
            write(root, "new2/ignored/a", "ignored");
            write(root, "new2/fresh/b", "person 5");
            remove(root, "k");
            write(root, "k/x", "person 6");
        });
        assert_eq!(report.blocked, []);
        let want: Vec<Vec<u8>> = (1..=6).map(|n| format!("person {n}").into_bytes()).collect();
        assert_eq!(lab.rescued(), want, "{on_drift:?}");
        for path in ["edited", "mode", "gone", "new/a"] {
            let path = RepoPath::new(path).expect("valid");
            assert!(report.drift.contains(&path), "{path} {:?}", report.drift);
        }
        assert_eq!(fs::read(lab.tree().join("new2/ignored/a")).expect("untouched"), b"ignored");
        let now = list(&lab.tree());
        let bytes = |path: &str| now.get(path.as_bytes()).map(|e| e.2.clone());
        if on_drift == OnDrift::Leave {
            for (n, path) in
                ["edited", "mode", "gone", "new/a", "new2/fresh/b", "k/x"].iter().enumerate()
            {
                assert_eq!(bytes(path), Some(want[n].clone()), "{path}");
            }
            assert!(!now.contains_key(&b"new2/a"[..]));
        } else {
            fs::remove_dir_all(lab.tree().join("new2")).expect("only the ignored is left");
            lab.assert_is_base();
        }
    }
}

#[test]
fn ignored_content_in_the_way_is_kept_aside() {
    let lab = Lab::new(
        |root| write(root, "f", "base"),
        |root| {
            remove(root, "f");
            write(root, "f/ignored/secret", "precious");
            write(root, "f/x", "x");
            write(root, "n/ignored", "stays");
        },
    );
    let report = lab.restore();
    assert_eq!(report.blocked, []);
    assert_eq!(report.moved_aside, [RepoPath::new("f/ignored/secret").expect("valid")]);
    assert!(report.drift.is_empty(), "{:?}", report.drift);
    assert_eq!(lab.rescued(), [b"precious"]);
    assert_eq!(fs::read(lab.tree().join("f")).expect("back"), b"base");
    assert_eq!(fs::read(lab.tree().join("n/ignored")).expect("there"), b"stays");
}

#[test]
fn the_spill_takes_whole_things_unread() {
    let lab = Lab {
        too_large: &["huge", "grown"],
        ..Lab::new(
            |root| {
                write(root, "grown", "base");
                write(root, "src/a", "base");
            },
            |root| {
                write(root, "huge/a/b", "huge");
                write(root, "grown", "much more");
                write(root, "repo/.git/HEAD", "ref");
                write(root, "repo/work", "work");
                write(root, "src/.git/HEAD", "ref");
                write(root, "src/a", "edited");
            },
        )
    };
    let report = lab.restore();
    let names: Vec<_> = report.spilled.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["src", "repo", "huge", "grown"]);
    let listed = Spill::list(&lab.dir.join("spill")).expect("read");
    assert_eq!(listed.len(), 4);
    let spilled = |path: &str| {
        let line = listed.iter().find(|l| l.path.to_string() == path).expect("listed");
        lab.dir.join("spill").join(line.number.to_string())
    };
    assert_eq!(fs::read(spilled("huge").join("a/b")).expect("kept"), b"huge");
    assert_eq!(fs::read(spilled("src").join("a")).expect("kept"), b"edited");
    assert_eq!(fs::read(spilled("grown")).expect("kept"), b"much more");
    assert_eq!(fs::read(lab.tree().join("grown")).expect("back"), b"base");
    assert!(!lab.tree().join("repo").exists());
    assert!(!lab.tree().join("src/.git").exists());
    assert_eq!(lab.restore().blocked, []);
    lab.assert_is_base();
}

#[test]
fn hard_links_outside_keep_their_bytes_and_mode() {
    let lab = Lab::new(
        |root| {
            write(root, "f", "base");
            write(root, "moded", "base");
        },
        |root| {
            for path in ["f", "new"] {
                let _ = fs::remove_file(root.join(path));
                fs::hard_link(root.join("../canary/file"), root.join(path)).expect("linked");
            }
        },
    );
    assert_eq!(lab.restore().blocked, []);
    lab.assert_is_base();
    let canary = fs::metadata(lab.dir.join("canary/file")).expect("there");
    assert_eq!((canary.nlink(), canary.mode() & 0o777), (1, 0o644));
}

#[test]
fn a_taken_temporary_name_is_cleared() {
    let lab = Lab::new(|root| write(root, "f", "base"), |root| write(root, "f", "turn"));
    symlink(lab.dir.join("canary"), lab.tree().join(TEMPORARY)).expect("linked");
    assert_eq!(lab.restore().blocked, []);
    lab.assert_is_base();
    write(&lab.tree(), &format!("{TEMPORARY}/mine"), "left here");
    write(&lab.tree(), &format!("{TEMPORARY}/dir/deep"), "left there");
    write(&lab.tree(), "f", "turn");
    assert_eq!(lab.restore().blocked, []);
    lab.assert_is_base();
    let canary = lab.dir.join("canary").as_os_str().as_bytes().to_vec();
    assert_eq!(lab.rescued(), [canary, b"left here".to_vec(), b"left there".to_vec()]);
}

#[test]
fn a_directory_swapped_with_a_link_never_leads_out() {
    let lab = Lab::new(
        |root| {
            for n in 0..40 {
                write(root, &format!("d/f{n}"), "base");
            }
        },
        |root| {
            for n in 0..40 {
                write(root, &format!("d/f{n}"), "turn");
                write(root, &format!("d/new{n}"), "turn");
            }
        },
    );
    for n in 0..40 {
        write(&lab.dir, &format!("canary/f{n}"), "outside");
        write(&lab.dir, &format!("canary/new{n}"), "outside");
    }
    let canary = list(&lab.dir.join("canary"));
    let tree = lab.tree();
    symlink("../canary", tree.join("swap")).expect("linked");
    let (stop, swaps) = (AtomicBool::new(false), RefCell::new(0));
    std::thread::scope(|scope| {
        let attack = scope.spawn(|| {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            let mut swaps = 0_u64;
            while !stop.load(Ordering::Relaxed) || swaps % 2 == 1 {
                let (a, b) = (tree.join("d"), tree.join("swap"));
                let done = renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE);
                swaps += u64::from(done.is_ok());
                if done.is_err() && stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            swaps
        });
        for _ in 0..20 {
            // The tree is planned for as it is when the swap rests; the run meets the race.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lab.restore()));
            for n in 0..40 {
                let _ = fs::write(lab.dir.join("rejected").join(format!("d/f{n}")), "turn");
            }
        }
        stop.store(true, Ordering::Relaxed);
        *swaps.borrow_mut() = attack.join().expect("no panic");
    });
    assert!(*swaps.borrow() > 100, "the attack did not run: {swaps:?}");
    assert_eq!(list(&lab.dir.join("canary")), canary);
}

#[test]
fn paths_beyond_path_max_come_back() {
    use rustix::fs::{Mode, OFlags, mkdirat, openat};
    let part = "p".repeat(200);
    let dir = tempfile::tempdir().expect("a folder");
    let root = fs::File::open(dir.path()).expect("opened");
    let deep = RepoPath::new(vec![part.as_str(); 40].join("/")).expect("valid");
    let file = RepoPath::join(Some(&deep), b"file");
    let stat = {
        let mut here: std::os::fd::OwnedFd = root.try_clone().expect("cloned").into();
        for _ in 0..39 {
            mkdirat(&here, &*part, Mode::from_raw_mode(0o755)).expect("made");
            here = openat(&here, &*part, OFlags::DIRECTORY, Mode::empty()).expect("opened");
        }
        let (_, stat) =
            crate::git::beneath::stat_of(std::os::fd::AsFd::as_fd(&here)).expect("looked");
        Stat { size: 4, ..stat }
    };
    let entry = |kind, raw, mode| Entry {
        kind,
        stat: Stat { mode, ..stat },
        stat_is_proof: true,
        raw,
        tracked: None,
    };
    let change = |path: &RepoPath, before| Change {
        path: path.clone(),
        before: Some(before),
        after: None,
        ignored_by_base: false,
        ignored_by_turn: false,
    };
    let changes = vec![
        change(&file, entry(Kind::File, oid(b"deep"), 0o640)),
        change(&deep, entry(Kind::Directory, Oid::ZERO, 0o711)),
    ];
    let (pinned, too_large) = (HashMap::new(), HashSet::new());
    let rules = Rules { pinned: &pinned, survives: &|_| false, too_large: &too_large };
    let plan = plan(ProvenDead::attest(DeathProof::NoChildren), changes, &rules);
    let mut rescue = Kept::default();
    let report = restore(
        &plan,
        &mut Restore {
            root: std::os::fd::AsFd::as_fd(&root),
            temporary: &RepoPath::new(TEMPORARY).expect("valid"),
            pinned: &pinned,
            in_scope: &|_| true,
            on_drift: OnDrift::Leave,
            bytes: &FromListing(HashMap::from([(oid(b"deep"), b"deep".to_vec())])),
            rescue: &mut rescue,
            spill: &mut Spill::at(dir.path().join("spill")),
            plain_renames: false,
        },
    )
    .expect("not stopped");
    assert_eq!(report.blocked, []);
    assert_eq!(report.restored, [file, deep]);
    let found =
        Command::new("find").arg(dir.path()).args(["-name", "file", "-perm", "640"]).output();
    assert!(found.expect("find runs").stdout.len() > 8000, "the file is there");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn closed_directories_open_for_an_unprivileged_owner() {
    if !is_root() {
        println!("SKIPPED: needs root, to become somebody else");
        return;
    }
    let lab = Lab::new(
        |root| {
            write(root, "a/b/f", "base");
            write(root, "a/b/g", "base");
            write(root, "closed/f", "base");
            mode(root, "closed/f", 0);
        },
        |root| {
            write(root, "a/b/f", "turn");
            remove(root, "a/b/g");
            write(root, "new/deep/x", "turn");
            write(root, "closed/f", "turn");
            mode(root, "new/deep", 0);
            mode(root, "new", 0);
            mode(root, "a/b", 0);
            mode(root, "a", 0o111);
        },
    );
    // The lab's own listing must read, so what the turn closed is listed as root, here; the
    // restore runs as nobody on a tree that is closed again in between.
    let done = Command::new("chown").args(["-R", "65534:65534"]).arg(&lab.dir).status();
    assert!(done.expect("chown runs").success());
    let tree = lab.tree();
    let changes = lab.changes();
    let want = list(&lab.dir.join("base"));
    let report = as_nobody(&lab, changes);
    assert_eq!(report, "[] []");
    assert_eq!(list(&tree), want);
}

/// Runs a restore in a forked-off thread with the rights of nobody: Linux has them per thread.
fn as_nobody(lab: &Lab, changes: Vec<Change>) -> String {
    let pinned: HashMap<_, _> = list(&lab.dir.join("rejected"))
        .into_iter()
        .filter(|(_, (kind, ..))| kind.has_bytes())
        .map(|(path, (_, _, bytes))| (RepoPath::new(path).expect("valid"), oid(&bytes)))
        .collect();
    let base = list(&lab.dir.join("base"));
    let bytes = FromListing(base.into_values().map(|e| (oid(&e.2), e.2)).collect());
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let root = fs::File::open(lab.tree()).expect("opened");
            rustix::thread::set_thread_groups(&[]).expect("dropped");
            rustix::thread::set_thread_gid(rustix::fs::Gid::from_raw(65534)).expect("dropped");
            rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(65534)).expect("dropped");
            let too_large = HashSet::new();
            let rules = Rules { pinned: &pinned, survives: &|_| false, too_large: &too_large };
            let plan = plan(ProvenDead::attest(DeathProof::NoChildren), changes, &rules);
            let mut rescue = Kept { dir: lab.dir.join("rescue"), added: vec![] };
            let report = restore(
                &plan,
                &mut Restore {
                    root: std::os::fd::AsFd::as_fd(&root),
                    temporary: &RepoPath::new(TEMPORARY).expect("valid"),
                    pinned: &pinned,
                    in_scope: &|_| true,
                    on_drift: OnDrift::Leave,
                    bytes: &bytes,
                    rescue: &mut rescue,
                    spill: &mut Spill::at(lab.dir.join("spill")),
                    plain_renames: false,
                },
            )
            .expect("not stopped");
            format!("{:?} {:?}", report.blocked, report.drift)
        });
        work.join().expect("no panic")
    })
}

#[test]
fn immutable_things_are_cleared_or_named() {
    let mark = |flag: &str, at: PathBuf| {
        Command::new("chattr").arg(flag).arg(at).output().is_ok_and(|o| o.status.success())
    };
    let lab = Lab::new(
        |root| {
            write(root, "f", "base");
            write(root, "d/f", "base");
            write(root, "m", "base");
        },
        |root| {
            write(root, "f", "turn");
            write(root, "d/f", "turn");
            write(root, "d/new", "turn");
            mode(root, "m", 0o600);
        },
    );
    let tree = lab.tree();
    if !is_root() || !mark("+i", tree.join("f")) {
        println!("SKIPPED: needs root and a file system with immutable files");
        return;
    }
    assert!(
        mark("+a", tree.join("m")) && mark("+a", tree.join("d/new")) && mark("+i", tree.join("d"))
    );
    let done =
        Command::new("chown").args(["-R", "65534:65534"]).arg(lab.dir.join("rescue")).status();
    assert!(done.expect("chown runs").success());
    let report = as_nobody_on(&lab);
    assert!(
        report.contains("f: ") || report.contains("\"f\"") || report.contains("path: f"),
        "{report}"
    );
    assert_ne!(list(&tree), list(&lab.dir.join("base")), "nobody could not");
    assert_eq!(lab.restore().blocked, []);
    lab.assert_is_base();
}

fn as_nobody_on(lab: &Lab) -> String {
    let done = Command::new("chown").arg("65534:65534").arg(lab.tree()).status();
    assert!(done.expect("chown runs").success());
    as_nobody(lab, lab.changes())
}

#[test]
fn a_mount_is_neither_entered_nor_removed() {
    let lab = Lab::new(
        |root| write(root, "over/f", "base"),
        |root| {
            write(root, "over/f", "turn");
            fs::create_dir_all(root.join("new/mnt")).expect("made");
        },
    );
    let (tree, canary) = (lab.tree(), lab.dir.join("canary"));
    let bind =
        |to: &str| Command::new("mount").arg("--bind").arg(&canary).arg(tree.join(to)).output();
    if !is_root() || !bind("new/mnt").is_ok_and(|o| o.status.success()) {
        println!("SKIPPED: needs root and the right to mount");
        return;
    }
    let report = lab.restore_after(|_| {
        assert!(bind("over").expect("mount runs").status.success());
    });
    for at in ["over", "new/mnt"] {
        let done = Command::new("umount").arg(tree.join(at)).status();
        assert!(done.expect("umount runs").success());
    }
    let blocked: Vec<_> = report.blocked.iter().map(|b| b.path.to_string()).collect();
    assert!(blocked.contains(&"over/f".to_owned()), "{blocked:?}");
    assert_eq!(lab.restore().blocked, []);
    lab.assert_is_base();
}

#[test]
fn damaged_objects_and_full_reports_block() {
    let lab = Lab::new(
        |root| {
            write(root, "f", "base");
            write(root, "g", "base g");
        },
        |root| {
            write(root, "f", "turn");
            write(root, "g", "turn");
        },
    );
    let report = lab.restore_after(|_| write(&lab.dir, "base/f", "evil"));
    let blocked: Vec<_> = report.blocked.iter().map(|b| b.path.to_string()).collect();
    assert_eq!(blocked, ["f"]);
    assert_eq!(fs::read(lab.tree().join("f")).expect("left"), b"turn");
    assert_eq!(fs::read(lab.tree().join("g")).expect("back"), b"base g");
    assert!(!lab.tree().join(TEMPORARY).exists());
}
