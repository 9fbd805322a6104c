//! The crash matrix, rows 6, 12 and 13: what a new attempt may start from.

use crate::lab::{JOB, Lab, Midway, WORK};
use crate::support::Repo;

#[test]
fn row_06_a_dirty_workspace_is_refused_and_can_be_run_unprotected() {
    let repo = Repo::new();
    repo.write("README.md", "changed\n");
    let before = repo.listing();
    let document = repo.run(&[], "touch ran").exits(21).json();
    assert_eq!(document["outcome"], "refused");
    assert_eq!(document["attempt"], serde_json::Value::Null);
    assert!(document["paths"].to_string().contains("README.md"), "{document}");
    assert_eq!(repo.listing(), before);
    assert_eq!(repo.sql("select count(*) from attempt"), "0");

    repo.git(&["add", "README.md"]);
    repo.run(&[], "touch ran").exits(21);

    let document = repo.run(&["--on-dirty", "run"], "touch ran").exits(0).json();
    assert_eq!(document["outcome"], "unprotected");
    assert!(repo.path("ran").exists());
    repo.run(&["--on-dirty", "run"], "exit 4").exits(10);
    repo.run(&["--on-dirty", "capture"], "true").exits(2);
}

#[test]
fn row_13_a_redelivery_waits_for_the_living() {
    let lab = Lab::new();
    let midway = Midway::new(&lab);
    let first = lab
        .repo
        .spawn(&mut lab.repo.run_command(JOB, &format!("echo a > a; {}; exit 3", midway.words())));
    midway.ready.wait();
    lab.repo.run(JOB, "touch ran").exits(22);
    assert!(!lab.repo.path("ran").exists());
    let second = lab.repo.spawn(
        &mut lab.repo.run_command(&[JOB, &["--wait", "60s"]].concat(), "test ! -e a && echo b > b"),
    );
    midway.go.open();
    Repo::wait(first).exits(10);
    assert_eq!(Repo::wait(second).exits(0).json()["attempt"], 2);
    lab.laws();
}

#[test]
fn row_13_a_repaired_tree_is_not_rolled_back() {
    let mut lab = Lab::new();
    lab.killed_at("turn_over", JOB, WORK);
    lab.reconcile();
    assert_eq!(lab.state("job", 1).1, "interrupted");
    lab.repo.write("repair.txt", "by a person\n");
    lab.hold("by a person\n");
    lab.repo.run(JOB, "true").exits(21);
    assert_eq!(lab.repo.read("repair.txt"), "by a person\n");
    lab.laws();
    assert_eq!(lab.state("job", 1).0, "quarantined");
}
