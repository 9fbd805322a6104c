//! The crash matrix, rows 8 and 17: restores that cannot be done, disks that are full.

use std::fs;
use std::path::Path;

use crate::lab::{JOB, Lab, Mounted};
use crate::support::{Repo, is_root};

#[test]
fn row_08_row_17_the_disk_is_full() {
    if !is_root() {
        eprintln!("SKIPPED: mounting a small file system needs root");
        return;
    }
    for (end, free) in [("exit 3", false), ("exit 3", true), ("exit 0", false), ("exit 0", true)] {
        let repo = Repo::bare_home();
        let root = repo.root.display().to_string();
        let mounted = repo.finish(
            repo.command("mount")
                .args(["-t", "tmpfs", "-o", "size=24m", "worktx-test", &root])
                .current_dir("/"),
        );
        if mounted.code != 0 {
            eprintln!("SKIPPED: no tmpfs can be mounted: {}", mounted.stderr);
            return;
        }
        let _unmount = Mounted::by_others(Path::new(&root));
        repo.git(&["init", "-q", "-b", "main"]);
        repo.write("README.md", "hello\n");
        repo.write("large.bin", vec![7; 1 << 20]);
        repo.git(&["add", "-A"]);
        repo.git(&["commit", "-qm", "one"]);
        repo.write("notes.txt", "mine\n");
        repo.run(&["--execution-id", "probe"], "true").exits(0);
        let (base, before) = (repo.head(), repo.listing());
        let keep = if free { "rm -f ../repo/filler;" } else { "" };
        let script = format!(
            "echo work > work; echo changed > README.md; rm large.bin notes.txt; \
             head -c 30000000 /dev/urandom > filler 2>/dev/null; head -c 300000 filler > more; {keep} {end}"
        );
        let ran = repo.run(JOB, &script);
        eprintln!("{end}, {free}: {} {}", ran.code, ran.stderr);
        assert!(ran.code != 0 || end == "exit 0");
        if ran.code == 10 || ran.code == 11 {
            assert_eq!(repo.listing(), before, "rolled back, it says");
        } else if ran.code != 0 {
            assert_eq!(repo.read("work"), "work\n", "the tree is untouched");
            assert_eq!(repo.head(), base);
            // With space again it is settled.
            let _ = fs::remove_file(repo.path("filler"));
            let again = repo.call(&["reconcile", "--json"]);
            eprintln!("reconcile: {} {}{}", again.code, again.stdout, again.stderr);
            let state = repo.sql("select state from attempt where execution_id = 'job'");
            if state == "quarantined" {
                repo.call(&["resolve", "job", "--discard"]).exits(0);
            }
            let state = repo.sql("select state from attempt where execution_id = 'job'");
            assert!(["rolled_back", "done"].contains(&state.as_str()), "{state}");
            if state == "rolled_back" {
                let mut now = repo.listing();
                now.retain(|path, _| path != "filler");
                assert_eq!(now, before);
            }
        }
        repo.fsck();
    }
}

#[test]
fn row_08_an_immutable_file_and_a_busy_mount() {
    if !is_root() {
        eprintln!("SKIPPED: immutable files and mounts need root");
        return;
    }
    let lab = Lab::new();
    let script = "mkdir -p mnt; mount -t tmpfs worktx-test mnt || exit 4; echo x > mnt/x; rm -rf src; exit 3";
    let ran = lab.repo.run(JOB, script);
    let mount = lab.repo.path("mnt");
    let _unmount = Mounted::by_others(&mount);
    if !mount.join("x").exists() {
        eprintln!("SKIPPED: no tmpfs can be mounted");
        return;
    }
    // Nothing within the mount is touched; whatever is said, it is never rolled back by half.
    assert_eq!(fs::read_to_string(mount.join("x")).expect("readable"), "x\n");
    let mut now = lab.repo.listing();
    now.retain(|path, _| !path.starts_with("mnt"));
    assert!([10, 20].contains(&ran.code), "{}", ran.stderr);
    if ran.code == 10 {
        assert_eq!(now, lab.before);
    } else {
        assert_eq!(ran.json()["reason"], "restore_blocked");
    }
}
