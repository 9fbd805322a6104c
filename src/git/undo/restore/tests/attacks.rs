//! What a turn may try: links, closed directories, marks, mounts, depth.

use std::collections::HashSet;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::*;
use super::lab::*;
use crate::git::undo::{Rules, plan};
use crate::tx::entry::{Change, Kind, Stat};
use crate::tx::writer::{DeathProof, ProvenDead};

#[test]
fn hard_links_outside_keep_their_bytes_and_mode() {
    let lab = Lab::new(
        |root| {
            write(root, "f", "base");
            write(root, "moded", "outside");
            mode(root, "moded", 0o600);
        },
        |root| {
            write(&root.join("../canary"), "file", "outside");
            for path in ["f", "new", "moded"] {
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
    let (mut swaps, mut disturbed, mut restored) = (0, 0, 0);
    // Left in place, a link ends the round, so many rounds are needed to meet both sides.
    for round in 0..1000 {
        if round >= 30 && restored >= 20 && disturbed >= 20 {
            break;
        }
        symlink("../canary", tree.join("swap")).expect("linked");
        for n in 0..40 {
            write(&tree, &format!("d/f{n}"), "turn");
            write(&tree, &format!("d/new{n}"), "turn");
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (started, at_work) = std::sync::mpsc::channel();
            let (stop, tree) = (&stop, &tree);
            let mut attack = None;
            let report = lab.restore_after(|_| {
                attack = Some(scope.spawn(move || swap_until(stop, tree, &started)));
                at_work.recv().expect("it swaps");
            });
            stop.store(true, Ordering::Relaxed);
            swaps += attack.expect("spawned").join().expect("no panic");
            disturbed += report.drift.len() + report.blocked.len();
            restored += report.restored.len();
        });
        // Whatever the race left: a directory `d` and nothing called `swap`.
        for name in ["d", "swap"] {
            let at = tree.join(name);
            if at.is_symlink() {
                fs::remove_file(at).expect("removed");
            } else if name == "swap" && at.exists() {
                fs::rename(at, tree.join("d")).expect("moved");
            }
        }
    }
    println!("{swaps} swaps, {restored} restored, {disturbed} disturbed");
    assert!(swaps > 100 && restored >= 20 && disturbed >= 20, "the race did not happen");
    assert_eq!(list(&lab.dir.join("canary")), canary);
}

/// Exchanges `d` and `swap` as fast as it can.
fn swap_until(stop: &AtomicBool, tree: &Path, started: &std::sync::mpsc::Sender<()>) -> u64 {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let mut swaps = 0;
    while !stop.load(Ordering::Relaxed) {
        let (a, b) = (tree.join("d"), tree.join("swap"));
        swaps += u64::from(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok());
        let _ = started.send(());
    }
    swaps
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
            crate::git::files::beneath::stat_of(std::os::fd::AsFd::as_fd(&here)).expect("looked");
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

pub(super) fn is_root() -> bool {
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
            write(root, "ro/f", "base");
            mode(root, "ro", 0o555);
        },
        |root| {
            write(root, "a/b/f", "turn");
            remove(root, "a/b/g");
            write(root, "new/deep/x", "turn");
            write(root, "closed/f", "turn");
            write(root, "ro/f", "turn");
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
