//! What an operator is shown of a held attempt: that it is so, and that what they are told to type
//! is not refused.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::readers::fits;
use crate::support::Repo;

const JOB: &[&str] = &["--execution-id", "job"];

#[track_caller]
fn shown(repo: &Repo) -> Value {
    let document = repo.call(&["show", "job", "--json"]).exits(0).json();
    fits("show", &document);
    document["attempts"][0].clone()
}

/// Types what is shown: first the steps, then one of the commands.
#[track_caller]
fn typed(repo: &Repo, steps: &Value, command: &Value) -> i32 {
    for step in steps.as_array().expect("a list") {
        let words = step["command"].as_str().expect("text");
        repo.finish(repo.command("sh").args(["-c", words])).exits(0);
    }
    let words = command.as_str().expect("text").split(' ').skip(1);
    repo.call(&words.collect::<Vec<_>>()).code
}

/// A way for an attempt to be held, and what the branch is then.
type Way = (&'static str, fn() -> Lab, &'static [&'static str]);

fn crashed(script: &str) -> Lab {
    let lab = Lab::new();
    lab.killed_at("turn_over", JOB, script);
    lab.reconcile();
    lab
}

fn moved(script: &str) -> Lab {
    let lab = Lab::new();
    lab.repo.run(JOB, &format!("echo x > x; {script}")).exits(20);
    lab
}

const ALL: &[&str] = &["--adopt", "--discard", "--keep"];

const WAYS: [Way; 7] = [
    ("interrupted", || crashed("echo x > x; rm -r src"), ALL),
    ("HEAD elsewhere", || moved("git checkout -q -b elsewhere"), ALL),
    ("HEAD detached", || moved("git checkout -q --detach"), ALL),
    ("forged", || moved("git update-ref HEAD $(git commit-tree -p HEAD -m f HEAD^{tree})"), ALL),
    (
        "rewritten",
        || moved("git update-ref HEAD $(git commit-tree -m root HEAD^{tree})"),
        &["--discard", "--keep"],
    ),
    (
        "cancelled",
        || {
            let lab = crashed("echo x > x");
            lab.repo.call(&["cancel", "job"]).exits(0);
            lab
        },
        &["--discard", "--keep"],
    ),
    (
        "writer unproven",
        || {
            let lab = Lab::new();
            lab.killed_at("turn_over", JOB, "echo x > x");
            lab.repo.sql(
                "update attempt set data = json_set(data, '$.state.turn.host.pid_namespace', 1) \
                 where execution_id = 'job'",
            );
            lab.reconcile();
            lab
        },
        ALL,
    ),
];

#[test]
fn what_is_shown_can_be_typed() {
    for (what, make, options) in WAYS {
        for (at, option) in options.iter().enumerate() {
            let lab = make();
            let attempt = shown(&lab.repo);
            let commands = attempt["commands"].as_array().expect("a list");
            assert_eq!(commands.len(), options.len(), "{what}: {commands:?}");
            let command = &commands[at];
            assert!(command.as_str().expect("text").contains(option), "{what}: {command}");
            let code = typed(&lab.repo, &attempt["first"], command);
            assert_eq!(code, 0, "{what}: {} {command}", attempt["first"]);
            lab.repo.fsck();
        }
    }
}

#[test]
fn what_is_not_shown_would_be_refused() {
    for (what, make, options) in WAYS {
        for option in ALL.iter().filter(|option| !options.contains(option)) {
            let lab = make();
            let ran = lab.repo.call(&["resolve", "job", option]);
            assert!(ran.code != 0, "{what}, {option}: {}", ran.stdout);
        }
    }
}

#[test]
fn a_success_that_is_blocked_lands_by_what_is_shown() {
    let lab = Lab::new();
    lab.killed_at("gate_won", JOB, "echo x > x; echo changed > README.md");
    let other = lab.repo.git(&["commit-tree", "-p", "HEAD", "-m", "other", "HEAD^{tree}"]);
    fs::write(lab.repo.path(".git/refs/heads/main"), format!("{other}\n")).expect("written");
    lab.reconcile();
    let attempt = shown(&lab.repo);
    assert_eq!(attempt["seen"]["branch"]["at"], "past_base");
    assert_eq!(attempt["seen"]["tree"]["at_candidate"], 2);
    let commands = attempt["commands"].clone();
    assert_eq!(commands, json!(["worktx reconcile", "worktx resolve job --adopt"]));
    assert_eq!(typed(&lab.repo, &attempt["first"], &commands[0]), 0);
    assert_eq!(lab.state("job", 1).0, "done");
    assert_eq!(lab.repo.git(&["rev-parse", "kept-job-1"]), other, "nothing of theirs is lost");
    lab.laws();
}

#[test]
fn the_tree_is_held_against_base_and_candidate() {
    let lab = Lab::with(|repo| {
        let config = repo.home().join(".config/worktx/config.toml");
        fs::create_dir_all(config.parent().expect("has one")).expect("made");
        fs::write(config, "on_drift = \"quarantine\"\n").expect("written");
    });
    lab.killed_at("committing_recorded", JOB, "echo x > x; echo y > y; echo z > z; rm -r empty");
    // A person changes one, takes one back, makes one.
    lab.repo.write("y", "by a person\n");
    fs::remove_file(lab.repo.path("z")).expect("removed");
    lab.repo.write("new", "new\n");
    lab.reconcile();
    let attempt = shown(&lab.repo);
    assert_eq!(attempt["reason"], "drift");
    let tree = &attempt["seen"]["tree"];
    assert_eq!(tree["has_candidate"], true);
    assert_eq!(tree["candidate_paths"], json!(["empty", "empty/inner", "x"]), "{tree:#}");
    assert_eq!((&tree["at_candidate"], &tree["neither"]), (&3.into(), &2.into()));
    assert_eq!(tree["neither_paths"], json!(["new", "y"]));
    assert_eq!((&tree["at_base"], &tree["base_paths"]), (&1.into(), &json!(["z"])));
    assert_eq!(attempt["seen"]["writer"]["state"], "dead");
    let text = lab.repo.call(&["show", "job"]).exits(0).stdout;
    for part in [
        "3 paths of the command's work: empty, empty/inner, x",
        "2 paths changed since: neither base nor candidate: new, y",
        "1 path as in the base again: z",
        "processes  all proven dead",
        "running: there is no verdict yet",
        "rescue/1",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    // Looking changed nothing: the judge of that is the second reconcile.
    lab.l3_no_limbo();
}

#[test]
fn somebody_at_work_is_not_disturbed() {
    let lab = crashed("echo x > x");
    let lock = lab.repo.path(".git/worktx-workspace");
    let mut held = Command::new("flock");
    held.arg("-n").arg(&lock).arg(crate::support::WORKTX).arg("--workspace").arg(&lab.repo.root);
    held.args(["show", "job"]).env("HOME", lab.repo.home());
    let Ok(output) = held.output() else {
        eprintln!("SKIPPED: there is no flock(1)");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("not looked at: somebody is at work in it"), "{text}");
}

#[test]
fn every_document_about_a_held_attempt_fits_its_schema() {
    let lab = crashed("echo x > x; rm -r src");
    let repo = &lab.repo;
    for (name, args) in [
        ("status", vec!["status", "--json"]),
        ("list", vec!["list", "--json"]),
        ("events", vec!["events", "job", "--json"]),
        ("reconcile", vec!["reconcile", "--json"]),
    ] {
        fits(name, &repo.call(&args).exits(0).json());
    }
    let doctor = repo.call(&["doctor", "--json"]).exits(1).json();
    fits("doctor", &doctor);
    let events = repo.call(&["events", "job"]).exits(0).stdout;
    let decided = events.lines().find(|line| line.contains("decided")).expect("decided");
    for seen in ["decision quarantine", "branch AtBase", "writer dead", "verdict NotWritten"] {
        assert!(decided.contains(seen), "{decided}");
    }
    fits("resolve", &repo.call(&["resolve", "job", "--discard", "--json"]).exits(0).json());
    fits(
        "resolve",
        &repo.call(&["resolve", "--all", "--reason", "drift", "--discard", "--json"]).json(),
    );
}

#[test]
fn the_doctor_sees_what_a_crash_left_beside() {
    let repo = Repo::new();
    let config = repo.home().join(".config/worktx/config.toml");
    fs::create_dir_all(config.parent().expect("has one")).expect("made");
    fs::write(config, "[operator]\nqueue_file = \"~/queue.json\"\n").expect("written");
    fs::write(repo.home().join("queue.json"), "nonsense").expect("written");
    repo.run(JOB, "echo x > x").exits(0);
    let level = |name: &str| -> String {
        let document = repo.call(&["doctor", "--json"]).exits(0).json();
        let checks = document["checks"].as_array().expect("a list").clone();
        let found = checks.iter().find(|check| check["name"] == name).expect(name);
        format!("{} {}", found["level"].as_str().expect("text"), found["detail"])
    };
    assert!(level("operator queue").starts_with("warning"), "{}", level("operator queue"));
    assert!(level("marker").starts_with("ok"), "{}", level("marker"));
    assert!(level("prepared locks").starts_with("ok"));
    fs::remove_file(repo.home().join("queue.json")).expect("removed");
    assert!(level("operator queue").starts_with("ok"));
    fs::create_dir_all(repo.path(".git/worktx/prepared/job-1")).expect("made");
    assert!(level("prepared locks").contains("left over"), "{}", level("prepared locks"));
    let ledger = repo.path(".git/worktx/ledger.db");
    let marker = json!({
        "ledger": ledger, "attempt": { "execution": "job", "attempt": 1 }, "boot_id": "b"
    });
    fs::write(repo.path(".git/worktx-marker"), marker.to_string()).expect("written");
    assert!(level("marker").contains("stale"), "{}", level("marker"));
}

#[test]
fn status_gives_no_advice_about_a_tree_that_a_crash_left() {
    let lab = Lab::new();
    lab.killed_at("turn_over", JOB, "echo changed > README.md");
    let text = lab.repo.call(&["status"]).exits(0).stdout;
    assert!(
        text.contains("a crash left an attempt") && text.contains("worktx reconcile"),
        "{text}"
    );
    assert!(!text.contains("commit or stash"), "{text}");
    let document = lab.repo.call(&["status", "--json"]).exits(0).json();
    assert_eq!((&document["can_be_base"], &document["busy"]), (&false.into(), &false.into()));
    lab.reconcile();
    let text = lab.repo.call(&["status"]).exits(0).stdout;
    assert!(text.contains("quarantined") && !text.contains("a crash left"), "{text}");
}
