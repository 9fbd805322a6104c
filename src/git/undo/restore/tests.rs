#![expect(clippy::print_stdout, reason = "a test that is skipped says so")]
//! Real trees, real kills, real races. The judge is a listing made with the standard library.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::Command;

use super::*;

mod attacks;
mod lab;

use lab::*;

/// Not a test by itself: the other end of [`Lab::restore_elsewhere`].
#[test]
#[ignore = "run by other tests, in a process that may be killed"]
fn elsewhere() {
    let Some(dir) = std::env::var_os("WORKTX_TEST_LAB") else { return };
    let lab = Lab { on_drift: OnDrift::Restore, ..Lab::at(Path::new(&dir)) };
    let report = lab.restore();
    fs::write(lab.dir.join("report"), format!("{:?}", report.blocked)).expect("written");
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

/// What the first try put back is no drift to the second: a file that could not be read once does
/// not leave its directory half full, and nobody told.
#[test]
fn a_plan_may_be_tried_again() {
    let base = |root: &Path| {
        rich_base(root);
        write(root, "dir_to_file/late", "once unreadable");
    };
    for on_drift in [OnDrift::Leave, OnDrift::Restore] {
        let lab = Lab { on_drift, ..Lab::new(base, rich_turn) };
        let report = lab.restore_twice(|_| {}, Some("once unreadable"));
        assert_eq!((report.blocked.len(), report.drift.len()), (0, 0), "{report:?}");
        lab.assert_is_base();
        assert!(lab.rescued().is_empty());
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

/// Not a law but a measurement, for whoever doubts from where on one `syncfs` is the cheaper.
#[test]
#[ignore = "measures; run it alone"]
fn sync_policy_is_measured() {
    let dir = tempfile::tempdir().expect("a folder");
    let handle = fs::File::open(dir.path()).expect("opened");
    for count in [1, 2, 4, 16, 64, 1000] {
        let fill = |name: &str| -> Vec<fs::File> {
            let files = (0..count).map(|n| dir.path().join(format!("{name}{count}-{n}")));
            files
                .map(|at| {
                    fs::write(&at, vec![b'x'; 4096]).expect("written");
                    fs::File::open(at).expect("opened")
                })
                .collect()
        };
        let files = fill("each");
        let start = std::time::Instant::now();
        for file in &files {
            file.sync_all().expect("synced");
        }
        handle.sync_all().expect("synced");
        let each = start.elapsed();
        let files = fill("begun");
        let start = std::time::Instant::now();
        crate::base::writeback::write_back(&files);
        for file in &files {
            file.sync_all().expect("synced");
        }
        handle.sync_all().expect("synced");
        let begun = start.elapsed();
        let _files = fill("once");
        let start = std::time::Instant::now();
        rustix::fs::syncfs(&handle).expect("synced");
        println!(
            "{count} files: fsync each {each:?}, begun before {begun:?}, syncfs {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn a_full_disk_blocks_and_is_overcome() {
    let lab = Lab::new(
        |root| {
            write(root, "big", &"b".repeat(200_000));
            write(root, "a_small", "base");
        },
        |root| {
            write(root, "big", "turn");
            write(root, "a_small", "turn");
        },
    );
    // `a_small` comes first: what the kernel frees of `big` need not be free at once.
    // The tree moves to a file system that has room for the turn's files, not for the base's.
    lab.copy("tree", "kept");
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=128k", "none"])
        .arg(lab.tree())
        .output();
    if !attacks::is_root() || !mount.is_ok_and(|o| o.status.success()) {
        println!("SKIPPED: needs root and the right to mount");
        return;
    }
    write(&lab.tree(), "big", "turn");
    write(&lab.tree(), "a_small", "turn");
    let report = lab.restore();
    let blocked: Vec<_> = report.blocked.iter().map(|b| b.path.to_string()).collect();
    let small = fs::read(lab.tree().join("a_small")).expect("there");
    let big = fs::read(lab.tree().join("big")).expect("there");
    let more = Command::new("mount").args(["-o", "remount,size=1m"]).arg(lab.tree()).status();
    let again = lab.restore();
    let now = list(&lab.tree());
    let done = Command::new("umount").arg(lab.tree()).status();
    assert!(more.expect("mount runs").success() && done.expect("umount runs").success());
    assert_eq!((blocked, big, small), (vec!["big".to_owned()], b"turn".to_vec(), b"base".to_vec()));
    assert_eq!(again.blocked, []);
    assert_eq!(now, list(&lab.dir.join("base")));
}

/// As above: how long many files take, and that time grows with their number only.
#[test]
#[ignore = "measures; run it alone"]
fn many_files_are_measured() {
    for count in [5_000, 20_000] {
        let fill = |root: &Path, dir: &str, bytes: &str| {
            for n in 0..count / 2 {
                write(root, &format!("{dir}{}/f{n}", n % 50), bytes);
            }
        };
        let lab = Lab::new(
            |root| fill(root, "d", "base"),
            |root| {
                fill(root, "d", "turn");
                fill(root, "new", "turn");
            },
        );
        let start = std::cell::Cell::new(None);
        let report = lab.restore_after(|_| start.set(Some(std::time::Instant::now())));
        let took = start.get().expect("ran").elapsed();
        println!("{count} files: {took:?}, {:?} each", took / count);
        assert_eq!(report.blocked, []);
        lab.assert_is_base();
    }
}
