//! The crash matrix, rows 8 and 17: restores that cannot be done, disks that are full.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::{Immutable, JOB, Lab, Midway, Mounted, WORK};
use crate::support::{Ran, Repo, WORKTX, has, is_root};

/// Runs worktx as root who may not clear the marks of files.
fn without_marks(lab: &Lab, args: &[&str]) -> Command {
    let mut command = lab.repo.command("setpriv");
    command.args(["--bounding-set", "-linux_immutable", "--inh-caps", "-linux_immutable", WORKTX]);
    command.args(args);
    command
}

#[track_caller]
fn is_blocked_at(lab: &Lab, ran: &Ran, path: &str) {
    assert_eq!(ran.code, 20, "{}{}", ran.stdout, ran.stderr);
    let show = lab.repo.call(&["show", "job", "--json"]).exits(0).stdout;
    assert!(show.contains("restore_blocked") && show.contains(path), "{path}: {show}");
    is_still_blocked(lab);
}

/// Never reported as rolled back, neither in the ledger nor in the row, and nobody starts here.
#[track_caller]
fn is_still_blocked(lab: &Lab) {
    assert_eq!(lab.state("job", 1), ("quarantined".to_owned(), "restore_blocked".to_owned()));
    assert_eq!(lab.status_of("job"), "running");
    lab.repo.run(&[], "touch never").exits(21);
    assert!(!lab.repo.path("never").exists());
    assert_eq!(lab.repo.head(), lab.base);
}

const WRECK: &str = "echo changed > src/lib.rs; rm README.md src/deep/two.txt; mkdir made; \
                     echo x > made/x; echo log > script.sh";

#[test]
fn row_08_an_immutable_file_holds_the_rollback_until_it_is_free() {
    if !is_root() || !has("setpriv") {
        eprintln!("SKIPPED: needs root and setpriv");
        return;
    }
    for (path, kill) in [
        ("src/lib.rs", None),
        ("src/deep", None),
        ("made/x", None),
        ("made", None),
        ("src/lib.rs", Some("rollback_recorded")),
        ("src/lib.rs", Some("discarded_pinned")),
        ("src/deep", Some("file_restored")),
        ("made/x", Some("file_restored:2")),
    ] {
        let mut lab = Lab::new();
        for bytes in ["changed\n", "x\n", "log\n"] {
            lab.hold(bytes);
        }
        let midway = Midway::new(&lab);
        let script = format!("{WRECK}; {}; exit 3", midway.words());
        let args = [&["run", "--json"], JOB, &["--", "sh", "-c", &script]].concat();
        let mut command = without_marks(&lab, &args);
        if let Some(point) = kill {
            command.env("WORKTX_FAULT", point);
        }
        let child = lab.repo.spawn(&mut command);
        let marked = midway.meanwhile(|| Immutable::new(&lab.repo.path(path)));
        let ran = Repo::wait(child);
        let marked = match marked {
            Ok(marked) => marked,
            Err(why) => return eprintln!("SKIPPED: {why}"),
        };
        if kill.is_none() {
            is_blocked_at(&lab, &ran, path);
        } else {
            assert_eq!(ran.code, -9, "{kill:?}: {}", ran.stderr);
        }
        let ran = lab.repo.finish(&mut without_marks(&lab, &["reconcile", "--json"])).exits(0);
        assert_eq!(ran.json()["quarantined"], 1, "{path}, {kill:?}: {}", ran.stdout);
        is_still_blocked(&lab);
        lab.laws();
        // An operator who decides too early.
        let discard = ["resolve", "job", "--discard"];
        lab.repo.finish(&mut without_marks(&lab, &discard)).exits(20);
        assert_eq!(lab.state("job", 1).1, "restore_blocked");
        lab.repo.call(&["resolve", "job", "--adopt"]).exits(1);
        drop(marked);
        lab.repo.finish(&mut without_marks(&lab, &discard)).exits(0);
        lab.as_before();
        assert_eq!(lab.state("job", 1).0, "rolled_back");
        assert_eq!(lab.status_of("job"), "failed");
        lab.laws();
    }
}

#[test]
fn row_08_a_mark_that_can_be_cleared_is() {
    for path in ["src/lib.rs", "src/deep", "made/x", "made"] {
        let lab = Lab::new();
        let midway = Midway::new(&lab);
        let script = format!("{WRECK}; {}; exit 3", midway.words());
        let child = lab.repo.spawn(&mut lab.repo.run_command(JOB, &script));
        let marked = midway.meanwhile(|| Immutable::new(&lab.repo.path(path)));
        let ran = Repo::wait(child);
        if let Err(why) = marked {
            return eprintln!("SKIPPED: {why}");
        }
        assert_eq!(ran.code, 10, "{path}: {}", ran.stderr);
        lab.as_before();
        lab.laws();
    }
}

#[test]
fn row_08_a_folder_of_somebody_else_holds_the_rollback() {
    if !is_root() || !has("setpriv") {
        eprintln!("SKIPPED: needs root and setpriv to become somebody else");
        return;
    }
    let lab = Lab::new();
    let mut chown_all = lab.repo.command("chown");
    chown_all.args(["-R", "65534:65534"]).arg(lab.repo.outside());
    lab.repo.finish(&mut chown_all).exits(0);
    let nobody = |args: &[&str]| {
        let mut command = lab.repo.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", WORKTX]).args(args);
        command
    };
    if lab.repo.finish(&mut nobody(&["status"])).code != 0 {
        eprintln!("SKIPPED: the binary cannot be run as another user");
        return;
    }
    let midway = Midway::new(&lab);
    for gate in [&midway.ready, &midway.go] {
        fs::set_permissions(gate.path(), fs::Permissions::from_mode(0o666)).expect("set");
    }
    let script = format!("{WRECK}; {}; exit 3", midway.words());
    let args = [&["run", "--json"], JOB, &["--", "sh", "-c", &script]].concat();
    let child = lab.repo.spawn(&mut nobody(&args));
    let theirs = lab.repo.path("src/deep");
    midway.meanwhile(|| chown(&theirs, Some(0), Some(0)).expect("given away"));
    let ran = Repo::wait(child);
    is_blocked_at(&lab, &ran, "src/deep");
    lab.repo.finish(&mut nobody(&["resolve", "job", "--discard"])).exits(20);
    chown(&theirs, Some(65534), Some(65534)).expect("given back");
    lab.repo.finish(&mut nobody(&["resolve", "job", "--discard"])).exits(0);
    lab.as_before();
    assert_eq!(lab.state("job", 1).0, "rolled_back");
}

#[test]
fn row_08_a_mount_by_the_turn() {
    if !is_root() {
        eprintln!("SKIPPED: mounts need root");
        return;
    }
    // In nobody's way it is left and said so; over something of the base it blocks.
    for (path, blocks) in [("mnt", false), ("empty", true), ("src", true)] {
        let lab = Lab::new();
        let script = format!(
            "mkdir -p {path}; mount -t tmpfs worktx-test {path} || exit 4; echo x > {path}/x; \
             rm README.md; exit 3"
        );
        let ran = lab.repo.run(JOB, &script);
        let mount = lab.repo.path(path);
        let mounted = Mounted::by_others(&mount);
        if !mount.join("x").exists() {
            eprintln!("SKIPPED: no tmpfs can be mounted");
            return;
        }
        assert_eq!(fs::read_to_string(mount.join("x")).expect("readable"), "x\n");
        if blocks {
            is_blocked_at(&lab, &ran, path);
            drop(mounted);
            lab.repo.call(&["resolve", "job", "--discard"]).exits(0);
            lab.as_before();
        } else {
            let document = ran.exits(10).json();
            assert!(document["warnings"].to_string().contains("mounted on mnt"), "{document}");
            drop(mounted);
            fs::remove_dir(&mount).expect("an empty folder was left");
            lab.as_before();
        }
        lab.laws();
    }
}

/// A small file system, and what of a workspace lies on it.
struct Small {
    options: &'static str,
    image: bool,
    place: Placed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placed {
    All,
    Tree,
    GitDirectory,
    State,
}

/// A repository partly or wholly on the small file system, its mount point and the mount.
fn on_small(small: &Small) -> Result<(Lab, PathBuf, Mounted), String> {
    let repo = Repo::bare_home();
    let at = match small.place {
        Placed::All | Placed::Tree => repo.root.clone(),
        _ => repo.outside().join("small"),
    };
    fs::create_dir_all(&at).expect("made");
    let mounted = if small.image {
        let image = repo.outside().join("image");
        fs::File::create(&image).expect("made").set_len(24 << 20).expect("set");
        let made = repo.command("mkfs.ext4").arg("-q").arg(&image).status();
        if !made.is_ok_and(|status| status.success()) {
            return Err("no mkfs.ext4".to_owned());
        }
        let mounted = Mounted::new(&repo, &["-o", "loop", image.to_str().expect("text")], &at)?;
        let _ = fs::remove_dir(at.join("lost+found"));
        mounted
    } else {
        Mounted::new(&repo, &["-t", "tmpfs", "-o", small.options, "worktx-test"], &at)?
    };
    match small.place {
        Placed::All | Placed::State => repo.git(&["init", "-q", "-b", "main", "."]),
        Placed::Tree | Placed::GitDirectory => {
            let beside = if small.place == Placed::Tree { repo.outside() } else { at.clone() };
            let dir = beside.join("git");
            repo.git(&[
                "init",
                "-q",
                "-b",
                "main",
                "--separate-git-dir",
                dir.to_str().expect("text"),
                ".",
            ])
        }
    };
    repo.first_commit();
    if small.place == Placed::State {
        repo.settings(&format!("[state]\ndir = \"{}\"\n", at.join("state").display()));
    }
    Ok((Lab::on(repo, |_| {}), at, mounted))
}

#[test]
fn row_17_the_disk_is_full() {
    let bytes = "size=20m";
    let inodes = "size=64m,nr_inodes=420";
    let mut met = std::collections::BTreeMap::new();
    for (options, image, place) in [
        (bytes, false, Placed::All),
        (bytes, false, Placed::Tree),
        (bytes, false, Placed::GitDirectory),
        (bytes, false, Placed::State),
        (inodes, false, Placed::All),
        (inodes, false, Placed::GitDirectory),
        ("", true, Placed::All),
    ] {
        let ends: &[(i32, bool)] = match (options, place) {
            (_, Placed::All) if options == bytes => &[(3, false), (0, false), (0, true), (3, true)],
            _ => &[(3, false), (0, false)],
        };
        for &(end, free) in ends {
            let small = Small { options, image, place };
            let (mut lab, at, mounted) = match on_small(&small) {
                Ok(all) => all,
                Err(why) => return eprintln!("SKIPPED: {why}"),
            };
            let what = format!("{options} {place:?}, exit {end}, freed: {free}");
            fill_up(&mut lab, &at, options == inodes, end, free, &what, &mut met);
            drop(lab);
            drop(mounted);
        }
    }
    eprintln!("{met:?}");
    assert!(met.keys().any(|code| ![0, 10].contains(code)), "nothing was ever in the way: {met:?}");
}

/// A turn that works, fills the file system, and ends.
fn fill_up(
    lab: &mut Lab,
    at: &Path,
    inodes: bool,
    end: i32,
    free: bool,
    what: &str,
    met: &mut std::collections::BTreeMap<i32, u32>,
) {
    for bytes in ["new\n", "hello\nmore\n", "in\n"] {
        lab.hold(bytes);
    }
    let fill = if inodes {
        "mkdir $SMALL/filler; i=0; while : > $SMALL/filler/$i; do i=$((i+1)); done 2>/dev/null"
    } else {
        "head -c 40000000 /dev/urandom > $SMALL/filler 2>/dev/null"
    };
    let keep = if free { "rm -rf $SMALL/filler" } else { "true" };
    let script = format!("{WORK}; {fill}; {keep}; exit {end}");
    let mut command = lab.repo.run_command(JOB, &script);
    let ran = lab.repo.finish(command.env("SMALL", at));
    *met.entry(ran.code).or_default() += 1;
    let filler = at.join("filler");
    let clear = |filler: &Path| {
        let _ = fs::remove_file(filler);
        let _ = fs::remove_dir_all(filler);
    };
    match ran.code {
        0 => assert_eq!(end, 0, "{what}"),
        10 | 11 => {
            lab.as_before();
            assert!(!lab.repo.path("filler").exists(), "{what}: rolled back, it says");
        }
        _ => {
            // Nothing was said to have been done, and nothing was done: no partial commit.
            assert_eq!(lab.repo.head(), lab.base, "{what}: {}", ran.stderr);
            assert_eq!(lab.repo.read("new.txt"), "new\n", "{what}: {}", ran.stderr);
        }
    }
    // With space again it is settled. (Where it landed, the filler is in the commit.)
    if ran.code != 0 {
        clear(&filler);
    }
    lab.repo.call(&["reconcile", "--json"]).exits(0);
    let (state, reason) = lab.state("job", 1);
    if state == "quarantined" {
        assert!(!reason.is_empty(), "{what}");
        lab.laws();
        lab.repo.call(&["resolve", "job", "--discard"]).exits(0);
    }
    let (state, _) = lab.state("job", 1);
    match state.as_str() {
        "done" => {
            assert_eq!(lab.repo.git(&["rev-parse", "HEAD~1"]), lab.base, "{what}");
            assert_eq!(lab.repo.git(&["show", "HEAD:new.txt"]), "new", "{what}");
        }
        "rolled_back" => lab.as_before(),
        other => panic!("{what}: {other}"),
    }
    lab.laws();
    if filler.exists() {
        lab.repo.git(&["rm", "-rq", "filler"]);
        lab.repo.git(&["commit", "-qm", "space again"]);
    }
    lab.repo.run(&["--execution-id", "after"], "echo after > after").exits(0);
    lab.laws();
}
