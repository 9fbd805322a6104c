//! The crash matrix, row 7: cancels that come while the attempt is on its way to the gate.

use crate::lab::{JOB, Lab};
use crate::support::WORKTX;

#[test]
fn row_07_cancelled_after_the_seal() {
    for point in ["seal_recorded", "post_check_passed", "committing_recorded", "locks_held"] {
        let mut lab = Lab::new();
        lab.hold("x\n");
        lab.killed_at(point, &[JOB, &["--check", "true"]].concat(), "echo x > x");
        lab.repo.call(&["cancel", "job"]).exits(0);
        lab.reconcile();
        lab.laws();
        lab.as_before();
        let outcome = lab.repo.sql(
            "select json_extract(outcome, '$.error_code'), json_extract(outcome, '$.execution_status') \
             from attempt where execution_id = 'job'",
        );
        assert_eq!(outcome, "reconciled|cancelled", "{point}");
        assert_eq!(lab.status_of("job"), "cancelled", "{point}");
        assert_eq!(lab.state("job", 1).0, "rolled_back", "{point}");
        lab.repo.run(JOB, "touch never").exits(13);
    }
}

#[test]
fn row_07_cancelled_while_the_post_check_runs() {
    let mut lab = Lab::new();
    lab.hold("x\n");
    let check = format!("{WORKTX} cancel job >/dev/null");
    let document =
        lab.repo.run(&[JOB, &["--check", &check]].concat(), "echo x > x").exits(13).json();
    assert_eq!(document["outcome"], "rolled_back");
    assert_eq!(document["error_code"], "reconciled");
    assert_eq!(document["execution_status"], "cancelled");
    lab.laws();
    lab.as_before();
}

#[test]
fn row_07_a_cancel_after_the_gate_comes_too_late() {
    for point in ["gate_won", "branch_moved"] {
        let lab = Lab::new();
        lab.killed_at(point, JOB, "echo x > x");
        assert_eq!(lab.repo.call(&["cancel", "job"]).code, 13, "{point}");
        lab.reconcile();
        lab.laws();
        assert_eq!(lab.state("job", 1).0, "done");
        assert_eq!(lab.status_of("job"), "success");
    }
}
