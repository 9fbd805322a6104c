//! An operator is told: the queue file and the command, after a run, a reconcile, a resolve.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::support::{Ran, Repo};

const JOB: &[&str] = &["--execution-id", "job"];
/// A branch that nobody vouches for: quarantined.
const MOVE: &str = "echo x > x; git checkout -q -b elsewhere";

fn configure(repo: &Repo, text: &str) {
    let config = repo.home().join(".config/worktx/config.toml");
    fs::create_dir_all(config.parent().expect("has one")).expect("made");
    fs::write(config, text).expect("written");
}

fn queue(repo: &Repo) -> PathBuf {
    repo.home().join("operator-queue.json")
}

/// A repository whose user wants the queue file and a command that keeps what it was told.
fn told() -> Repo {
    let repo = Repo::new();
    let kept = repo.outside().join("told");
    configure(
        &repo,
        &format!(
            "[operator]\nqueue_file = \"{}\"\ncommand = \"cat >> {}; echo >> {}\"\n",
            queue(&repo).display(),
            kept.display(),
            kept.display()
        ),
    );
    repo
}

#[track_caller]
fn requests(repo: &Repo) -> Vec<Value> {
    let text = fs::read_to_string(queue(repo)).expect("readable");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["$schema"], "operator-queue-v1");
    value["requests"].as_array().expect("a list").clone()
}

fn said(repo: &Repo) -> Vec<Value> {
    let text = fs::read_to_string(repo.outside().join("told")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn notified(repo: &Repo) -> String {
    repo.sql(
        "select json_extract(detail, '$.what'), json_extract(detail, '$.queue'), \
              json_extract(detail, '$.command') from event where kind = 'notified' order by id",
    )
}

#[track_caller]
fn warns(ran: &Ran, code: &str, part: &str) {
    let document = ran.json();
    let found = document["warnings"].as_array().expect("a list").iter().find(|w| w["code"] == code);
    let message = found.map(|w| w["message"].as_str().expect("text").to_owned());
    assert!(message.as_ref().is_some_and(|m| m.contains(part)), "{message:?}\n{document:#}");
}

#[test]
fn a_quarantine_is_told_once_and_closed_when_it_is_settled() {
    let repo = told();
    let outcome = repo.run(JOB, MOVE).exits(20).json();
    assert_eq!(outcome["warnings"], json!([]));
    let asked = requests(&repo);
    assert_eq!(asked.len(), 1);
    let request = &asked[0];
    for (name, wanted) in
        [("id", "worktx-job-1"), ("type", "approval"), ("status", "pending"), ("priority", "high")]
    {
        assert_eq!(request[name], wanted);
    }
    assert_eq!(request["options"], json!(["adopt", "discard", "keep"]));
    let question = request["question"].as_str().expect("text");
    assert!(question.contains("worktx resolve job --discard"), "{question}");
    assert_eq!(request["context"]["reason"], "branch_moved");
    let documents = said(&repo);
    assert_eq!(documents.len(), 1);
    assert_eq!(documents[0]["reason"], "branch_moved");
    assert_eq!(documents[0]["execution_status"], "running");

    // Neither a reconcile nor a refused run says it again.
    repo.call(&["reconcile"]).exits(0);
    repo.run(&[], "true").exits(21);
    assert_eq!(requests(&repo), asked);
    assert_eq!(said(&repo).len(), 1);
    assert_eq!(notified(&repo), "quarantined:branch_moved|done|done");

    repo.git(&["symbolic-ref", "HEAD", "refs/heads/main"]);
    repo.call(&["resolve", "job", "--discard"]).exits(0);
    let closed = requests(&repo);
    assert_eq!(closed.len(), 1);
    assert_eq!(closed[0]["status"], "acknowledged");
    assert_eq!(closed[0]["resolution"], "rolled_back");
    assert_eq!(closed[0]["created_at"], request["created_at"]);
    assert_eq!(closed[0]["question"], request["question"]);
    assert_eq!(said(&repo).len(), 1, "nobody is needed any more");
    repo.run(&[], "true").exits(0);
    assert_eq!(requests(&repo), closed);
}

#[test]
fn after_a_crash_it_is_told_by_the_next_reconcile() {
    for (point, times) in [("to_be_told", 1), ("told", 2)] {
        let repo = told();
        let ran = repo.finish(repo.run_command(JOB, MOVE).env("WORKTX_FAULT", point));
        assert_eq!(ran.code, -9, "{point}");
        assert_eq!(notified(&repo), "");
        let mut wanted = "quarantined:branch_moved|done|done".to_owned();
        repo.call(&["reconcile"]).exits(0);
        assert_eq!(notified(&repo), wanted);
        assert_eq!(requests(&repo).len(), 1, "{point}");
        assert_eq!(said(&repo).len(), times, "{point}");

        // The same at its end: the attempt is settled, the request is not marked.
        repo.git(&["symbolic-ref", "HEAD", "refs/heads/main"]);
        let mut resolve = repo.worktx(&["resolve", "job", "--keep"]);
        assert_eq!(repo.finish(resolve.env("WORKTX_FAULT", point)).code, -9, "{point}");
        repo.call(&["reconcile"]).exits(0);
        repo.run(&[], "true").exits(0);
        assert_eq!(requests(&repo)[0]["status"], "acknowledged", "{point}");
        assert_eq!(requests(&repo)[0]["resolution"], "released", "{point}");
        wanted.push_str("\nsettled|done|");
        assert_eq!(notified(&repo), wanted, "{point}");
    }
}

#[test]
fn an_interrupted_attempt_is_told_by_who_finds_it() {
    let repo = told();
    let ran = repo.finish(repo.run_command(JOB, "echo x > x").env("WORKTX_FAULT", "turn_over"));
    assert_eq!(ran.code, -9);
    assert_eq!(repo.call(&["reconcile", "--json"]).exits(0).json()["warnings"], json!([]));
    assert_eq!(requests(&repo)[0]["context"]["reason"], "interrupted");
    // The same execution again settles it; that closes the request.
    repo.run(JOB, "true").exits(0);
    assert_eq!(requests(&repo)[0]["status"], "acknowledged");
    assert_eq!(said(&repo).len(), 1);
}

#[test]
fn others_requests_stay_and_an_answer_is_not_lost() {
    let repo = told();
    let theirs =
        r#"{"id": "approval-x",   "n": 1.50, "status": "pending", "new": {"b": 1, "a": 2}}"#;
    let text = format!(
        "{{\"later\": 1, \"$schema\": \"operator-queue-v1\", \"requests\": [{theirs}], \"agent\": \"a\"}}"
    );
    fs::write(queue(&repo), text).expect("written");
    fs::set_permissions(queue(&repo), fs::Permissions::from_mode(0o640)).expect("set");
    repo.run(JOB, MOVE).exits(20);
    let text = fs::read_to_string(queue(&repo)).expect("readable");
    assert!(text.contains(theirs), "{text}");
    assert!(text.contains("\"later\": 1") && text.contains("\"agent\": \"a\""), "{text}");
    assert_eq!(fs::metadata(queue(&repo)).expect("there").permissions().mode() & 0o777, 0o640);
    // Somebody answers in the platform; then it is settled on the command line.
    let mut value: Value = serde_json::from_str(&text).expect("JSON");
    value["requests"][1]["status"] = "responded".into();
    value["requests"][1]["response"] = "keep".into();
    fs::write(queue(&repo), value.to_string()).expect("written");
    repo.git(&["symbolic-ref", "HEAD", "refs/heads/main"]);
    repo.call(&["resolve", "job", "--keep"]).exits(0);
    let now = requests(&repo);
    assert_eq!(now[1]["status"], "acknowledged");
    assert_eq!(now[1]["response"], "keep");
    assert_eq!(now[0]["new"], json!({ "a": 2, "b": 1 }));
}

#[test]
fn what_cannot_be_told_is_a_warning_and_tried_again() {
    let limit = 2 << 20;
    let outside = |repo: &Repo| repo.outside().join("outside.json");
    type Put = fn(&Repo);
    let cases: [(&str, Put); 6] = [
        ("no operator-queue-v1 document", |repo| fs::write(queue(repo), "{nonsense").expect("put")),
        ("no operator-queue-v1 document", |repo| fs::write(queue(repo), "").expect("put")),
        ("larger than 2 MiB", |repo| {
            let file = fs::File::create(queue(repo)).expect("made");
            file.set_len(3 << 20).expect("set");
        }),
        ("symbolic link", |repo| {
            let to = repo.outside().join("outside.json");
            fs::write(&to, "{\"requests\": []}").expect("put");
            symlink(to, queue(repo)).expect("made");
        }),
        ("no regular file", |repo| {
            let mut mkfifo = std::process::Command::new("mkfifo");
            assert!(mkfifo.arg(queue(repo)).status().expect("starts").success());
        }),
        ("no regular file", |repo| fs::create_dir(queue(repo)).expect("made")),
    ];
    for (part, put) in cases {
        let repo = told();
        put(&repo);
        let before = fs::symlink_metadata(queue(&repo)).expect("there");
        let ran = repo.run(JOB, MOVE).exits(20);
        warns(&ran, "operator_queue", part);
        assert_eq!(said(&repo).len(), 1, "{part}: the command is told all the same");
        let after = fs::symlink_metadata(queue(&repo)).expect("there");
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(
            (before.ino(), before.len(), before.mtime_nsec()),
            (after.ino(), after.len(), after.mtime_nsec())
        );
        if outside(&repo).exists() {
            assert_eq!(fs::read_to_string(outside(&repo)).expect("read"), "{\"requests\": []}");
        }
        // Said once more, it is no news; put right, it gets through.
        let events = notified(&repo);
        warns(&repo.call(&["reconcile", "--json"]).exits(0), "operator_queue", part);
        assert_eq!(notified(&repo), events);
        if after.is_dir() {
            fs::remove_dir(queue(&repo)).expect("removed");
        } else {
            fs::remove_file(queue(&repo)).expect("removed");
        }
        repo.call(&["reconcile"]).exits(0);
        assert_eq!(requests(&repo).len(), 1, "{part}");
        assert_eq!(said(&repo).len(), 1, "{part}: but the command only once");
    }
    // What would not fit any more is not added.
    let repo = told();
    let pad = "x".repeat(limit - 300);
    fs::write(queue(&repo), json!({ "requests": [], "pad": pad }).to_string()).expect("written");
    warns(&repo.run(JOB, MOVE).exits(20), "operator_queue", "larger than 2 MiB");
    assert_eq!(fs::read_to_string(queue(&repo)).expect("there").matches('x').count(), pad.len());
}

#[test]
fn a_queue_in_the_work_tree_has_to_be_ignored() {
    // As on the platform: the repository is the home directory, `.trinity/*` is ignored.
    for ignored in [true, false] {
        let repo = Repo::new();
        repo.write(".gitignore", if ignored { "ignored/\n.trinity/*\n" } else { "ignored/\n" });
        repo.write(".trinity/authored", "tracked\n");
        repo.git(&["add", "-fA"]);
        repo.git(&["commit", "-qm", "home"]);
        let path = repo.path(".trinity/operator-queue.json");
        configure(&repo, &format!("[operator]\nqueue_file = \"{}\"\n", path.display()));
        let ran = repo.finish(repo.run_command(JOB, "echo x > x").env("WORKTX_FAULT", "turn_over"));
        assert_eq!(ran.code, -9);
        let document = repo.call(&["reconcile", "--json"]).exits(0);
        assert_eq!(path.exists(), ignored);
        if !ignored {
            warns(&document, "operator_queue", "in the scope of the transaction");
            assert_eq!(fs::read_dir(repo.path(".trinity")).expect("there").count(), 1);
        }
        // The fingerprint is what it was: the same execution goes on, and starts clean.
        let again = repo.run(JOB, "test ! -e x && echo ok > ok").exits(0).json();
        assert_eq!(again["attempt"], 2);
        assert_eq!(repo.status(), "");
        if ignored {
            let text = fs::read_to_string(&path).expect("there");
            assert!(text.contains("acknowledged"), "{text}");
        }
    }
    // Through a link that a turn put in the way of the folder nothing is written.
    let repo = Repo::new();
    repo.write(".gitignore", ".trinity\n");
    repo.git(&["add", "-A"]);
    repo.git(&["commit", "-qm", "home"]);
    fs::create_dir(repo.path(".trinity")).expect("made");
    let (path, away) = (repo.path(".trinity/operator-queue.json"), repo.outside().join("away"));
    fs::create_dir(&away).expect("made");
    configure(&repo, &format!("[operator]\nqueue_file = \"{}\"\n", path.display()));
    let script = format!("rmdir .trinity; ln -s {} .trinity; {MOVE}", away.display());
    warns(&repo.run(JOB, &script).exits(20), "operator_queue", "symbolic link");
    assert_eq!(fs::read_dir(&away).expect("there").count(), 0);
}

#[test]
fn a_root_reached_by_a_symlink_hides_no_scope() {
    let repo = Repo::new();
    let link = repo.outside().join("link");
    symlink(&repo.root, &link).expect("made");
    configure(&repo, &format!("[operator]\nqueue_file = \"{}\"\n", link.join("q.json").display()));
    for root in [&link, &repo.root] {
        let mut run = repo.worktx(&["--workspace", root.to_str().expect("text"), "run", "--json"]);
        run.args(JOB).args(["--", "sh", "-c", MOVE]);
        let ran = repo.finish(&mut run).exits(20);
        warns(&ran, "operator_queue", "in the scope of the transaction");
        assert!(!repo.path("q.json").exists());
        repo.git(&["symbolic-ref", "HEAD", "refs/heads/main"]);
        repo.git(&["branch", "-q", "-D", "elsewhere"]);
        repo.call(&["resolve", "job", "--discard"]).exits(0);
    }
}

#[test]
fn the_settings_are_those_of_the_opening() {
    let repo = told();
    let script = format!(
        "cat > $HOME/.config/worktx/config.toml <<'X'\n[operator]\ncommand = \"touch {}\"\nX\n{MOVE}",
        repo.outside().join("planted").display()
    );
    repo.run(JOB, &script).exits(20);
    repo.call(&["reconcile"]).exits(0);
    assert!(!repo.outside().join("planted").exists());
    assert_eq!(said(&repo).len(), 1);
    // Nor does an attempt that was opened without be told by who has one.
    let repo = Repo::new();
    repo.run(JOB, MOVE).exits(20);
    configure(&repo, "[operator]\ncommand = \"touch $HOME/told\"\n");
    repo.call(&["reconcile"]).exits(0);
    assert!(!repo.home().join("told").exists());
}

#[test]
fn the_command_is_bounded_and_its_failure_changes_nothing() {
    for (command, part) in [
        ("exit 3", "returned 3"),
        ("kill -9 $$", "signal 9"),
        ("(trap '' TERM; sleep 300) & trap '' TERM; sleep 300", "ended after 10 s"),
    ] {
        let repo = Repo::new();
        configure(&repo, &format!("[operator]\ncommand = \"{command}\"\n"));
        let before = std::time::Instant::now();
        let ran = repo.run(JOB, MOVE).exits(20);
        warns(&ran, "operator_command", part);
        assert!(before.elapsed().as_secs() < 40, "{command}");
    }
    let repo = Repo::new();
    configure(
        &repo,
        "[operator]\ncommand = \"pwd; env | sort | grep -E '^(GIT_|WORKTX_|KEPT)'; cat > /dev/null\"\n",
    );
    let mut run = repo.run_command(JOB, MOVE);
    let ran = repo.finish(run.env("GIT_OPTIONAL_LOCKS", "0").env("KEPT", "yes")).exits(20);
    assert_eq!(ran.json()["reason"], "branch_moved", "stdout is the document alone");
    let root = repo.root.display();
    let wanted = format!(
        "/\nKEPT=yes\nWORKTX_ATTEMPT=1\nWORKTX_EXECUTION_ID=job\nWORKTX_WORKSPACE={root}\n"
    );
    assert!(ran.stderr.contains(&wanted), "{}", ran.stderr);
    // Who does not read their input keeps nobody waiting.
    let repo = Repo::new();
    configure(&repo, "[operator]\ncommand = \"exec <&-; true\"\n");
    assert_eq!(repo.run(JOB, MOVE).exits(20).json()["warnings"], json!([]));
}

#[test]
fn a_loud_warning_is_an_alert_and_waits_only_once() {
    let repo = told();
    repo.write(".worktx/post-check", "#!/bin/sh\nexit 1\n");
    repo.git(&["add", "-A"]);
    repo.git(&["commit", "-qm", "not executable"]);
    repo.run(JOB, "echo x > x").exits(0);
    repo.run(&["--execution-id", "next"], "echo y > y").exits(0);
    let asked = requests(&repo);
    assert_eq!(asked.len(), 1, "{asked:#?}");
    assert_eq!(asked[0]["id"], "worktx-job-1-post_check_misconfigured");
    assert_eq!(asked[0]["type"], "alert");
    assert!(asked[0].get("options").is_none());
    assert_eq!(said(&repo).len(), 2);
    // After a crash the next command says it.
    let mut run = repo.run_command(&["--execution-id", "third"], "echo z > z");
    assert_eq!(repo.finish(run.env("WORKTX_FAULT", "to_be_told")).code, -9);
    let ran = repo.call(&["reconcile"]).exits(0);
    assert_eq!(said(&repo).len(), 3, "{} {} {}", ran.stdout, ran.stderr, notified(&repo));
}

#[test]
fn the_laws_hold_with_an_operator_who_is_told() {
    let mut lab = Lab::with(|repo| {
        configure(repo, "[operator]\ncommand = \"exit 1\"\n");
    });
    lab.hold("x\n");
    lab.killed_at("turn_over", JOB, "echo x > x");
    lab.reconcile();
    lab.laws();
    lab.repo.call(&["resolve", "job", "--discard"]).exits(0);
    lab.laws();
    lab.as_before();
}
