//! What a power loss can leave that a kill cannot: bytes of the turn's that are gone from a file,
//! objects of its commits that are empty. `tests/power` tries all moments; here are the few that
//! broke once, each by itself.

use std::fs;

use crate::lab::{JOB, Lab, WORK, WRECK};
use crate::support::Ran;

const OWN: &str = "echo a > a; git add a; git commit -qm own; echo new > new.txt";

/// `worktx` after the machine was started anew.
fn rebooted(lab: &Lab, args: &[&str]) -> Ran {
    lab.repo.finish(lab.repo.worktx(args).env("WORKTX_FAULT_BOOT", "another"))
}

#[test]
fn what_an_undo_finds_after_a_power_loss_is_not_left_in_place_of_the_base() {
    for point in ["discarded_pinned", "file_restored:3"] {
        let lab = Lab::new();
        lab.killed_at(point, JOB, WRECK);
        for path in ["notes.txt", "new.txt", "src"] {
            // An undo that has come by here already is not disturbed.
            if lab.repo.path(path).is_file() {
                lab.repo.write(path, "");
            }
        }
        rebooted(&lab, &["reconcile"]).exits(0);
        lab.laws();
        assert_eq!(lab.state("job", 1).0, "rolled_back", "{point}");
        lab.as_before();
    }
}

#[test]
fn within_one_boot_the_same_bytes_are_somebody_elses() {
    let lab = Lab::new();
    lab.killed_at("discarded_pinned", JOB, WRECK);
    lab.repo.write("notes.txt", "");
    lab.reconcile();
    assert_eq!(lab.repo.read("notes.txt"), "", "by on_drift they are left");
}

#[test]
fn what_is_lost_between_the_post_check_and_the_gate_is_put_back() {
    let mut lab = Lab::new();
    lab.hold("hello\nmore\n");
    lab.killed_at("committing_recorded", JOB, WORK);
    lab.repo.write("README.md", "hello\n\0\0\0\0\0");
    rebooted(&lab, &["reconcile"]).exits(0);
    lab.laws();
    assert_eq!(lab.state("job", 1).0, "done");
    assert_eq!(lab.repo.read("README.md"), "hello\nmore\n");
    assert_eq!(lab.repo.status(), "?? dangling\n?? notes.txt");
}

#[test]
fn stat_data_from_before_a_crash_vouches_for_nothing_that_the_turn_wrote() {
    let lab = Lab::new();
    lab.killed_at("committing_recorded", JOB, WORK);
    rebooted(&lab, &["reconcile"]).exits(0);
    // A file that the turn wrote has no stat data in the index, so that git reads its bytes.
    let index = lab.repo.git(&["ls-files", "--debug", "README.md", "src/lib.rs"]);
    let sizes: Vec<&str> = index.lines().filter(|line| line.contains("size:")).collect();
    assert!(sizes[0].contains("size: 0\t") && !sizes[1].contains("size: 0\t"), "{index}");
    assert_eq!(lab.repo.status(), "?? dangling\n?? notes.txt");
}

#[test]
fn no_pin_stands_on_commits_of_which_parts_are_gone() {
    for choice in ["--discard", "--keep"] {
        let lab = Lab::new();
        lab.killed_at("turn_over", JOB, OWN);
        // git does not sync the objects that it writes: the blob is there, and empty.
        let blob = lab.repo.git(&["rev-parse", "HEAD:a"]);
        let object = lab.repo.path(format!(".git/objects/{}/{}", &blob[..2], &blob[2..]));
        fs::remove_file(&object).expect("removed");
        fs::write(&object, "").expect("written");
        rebooted(&lab, &["reconcile"]).exits(0);
        assert_eq!(lab.state("job", 1).1, "interrupted");
        rebooted(&lab, &["resolve", "job", choice]).exits(0);
        let pins = lab.repo.own_refs();
        assert!(pins.iter().any(|name| name.contains("/job/1/")), "{pins:?}");
        lab.repo.git(&["rev-list", "--objects", "--glob=refs/worktx"]);
        let warnings = lab
            .repo
            .sql("select json_extract(data, '$.warnings') from attempt where execution_id = 'job'");
        assert!(warnings.contains("own_commits_damaged"), "{warnings}");
        if choice == "--discard" {
            lab.as_before();
        }
    }
}
