//! What commands say where something is in the way: it is true, and what is to be typed works.

use std::fs;
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::lab::Lab;
use crate::readers::fits;
use crate::support::{Gate, Ran, Repo, WORKTX, has, is_root};

#[test]
fn a_repository_of_another_user_is_used_once_it_is_said_to_be_safe() {
    if !is_root() {
        eprintln!("SKIPPED: chown needs root");
        return;
    }
    let repo = Repo::new();
    repo.run(&["--execution-id", "job"], "echo x > x; exit 1").exits(10);
    let config = repo.home().join(".gitconfig");
    let text = fs::read_to_string(&config).expect("there");
    fs::write(&config, text.replace("[safe]\n\tdirectory = *\n", "")).expect("written");
    let done = Command::new("chown").args(["-R", "65534"]).arg(&repo.root).status();
    assert!(done.expect("chown starts").success());
    let status = repo.call(&["status", "--json"]).exits(0).json();
    assert_eq!(status["refusals"][0]["reason"], "unsafe_owner");
    let hint = status["refusals"][0]["hint"].as_str().expect("text").to_owned();
    let refused = repo.call(&["restore", "job"]).exits(21);
    assert!(refused.stderr.contains(&hint), "{}", refused.stderr);

    assert!(doctors(&repo, 1, "repository").contains(&hint));

    repo.finish(repo.command("sh").args(["-c", &hint])).exits(0);
    assert!(doctors(&repo, 0, "repository").starts_with("\"ok\""));
    let status = repo.call(&["status", "--json"]).exits(0).json();
    fits("status", &status);
    assert_eq!(status["can_be_base"], true, "{status:#}");
    repo.call(&["restore", "job"]).exits(0);
    assert_eq!(repo.git(&["show", "worktx/restored-job-1:x"]), "x");
    repo.run(&[], "echo y > y").exits(0);
}

#[test]
fn an_outcome_that_cannot_be_printed_stands() {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").expect("opened");
    for (script, code, word) in [
        ("echo x > x", 0, "committed"),
        ("echo x > x; exit 1", 10, "rolled back"),
        ("git symbolic-ref HEAD refs/heads/else", 20, "quarantined"),
    ] {
        let repo = Repo::new();
        let mut command = repo.run_command(&[], script);
        let output = command.stdout(full()).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(&format!("worktx: {word}")), "{said}");
        assert!(said.contains("warning: the outcome stands: writing to standard output"), "{said}");
    }
    let repo = Repo::new();
    repo.write("README.md", "changed\n");
    let output = repo.run_command(&[], "true").stdout(full()).output().expect("it starts");
    assert_eq!(output.status.code(), Some(21), "{}", String::from_utf8_lossy(&output.stderr));
}

fn doctors(repo: &Repo, code: i32, name: &str) -> String {
    let document = repo.call(&["doctor", "--json"]).exits(code).json();
    fits("doctor", &document);
    let checks = document["checks"].as_array().expect("a list").clone();
    let found = checks.iter().find(|check| check["name"] == name).expect(name);
    format!("{} {} {}", found["level"], found["detail"], found["hint"])
}

#[test]
fn a_post_check_that_cannot_be_used_is_foretold() {
    let repo = Repo::new();
    assert!(doctors(&repo, 0, "post-check").starts_with("\"ok\""));
    repo.settings("[post_check]\npath = \"/nonexistent\"\n");
    let status = repo.call(&["status", "--json"]).exits(0).json();
    fits("status", &status);
    assert_eq!(status["can_be_base"], false);
    assert_eq!(status["refusals"][0]["reason"], "post_check_unusable");
    let text = repo.call(&["status"]).exits(0).stdout;
    assert!(text.contains("not ready") && text.contains("/nonexistent"), "{text}");
    let found = doctors(&repo, 1, "post-check");
    assert!(found.starts_with("\"problem\"") && found.contains("/nonexistent"), "{found}");
    let ran = repo.run(&[], "true").exits(1);
    assert_eq!(ran.json()["reason"], "post_check_unusable");
}

#[test]
fn a_broken_git_directory_is_a_finding() {
    let repo = Repo::new();
    fs::write(repo.path(".git/index"), "junk").expect("written");
    let found = doctors(&repo, 1, "index");
    assert!(found.contains("problem") && found.contains("does not follow"), "{found}");
    let repo = Repo::new();
    fs::write(repo.path(".git/HEAD"), "zzz\n").expect("written");
    let found = doctors(&repo, 1, "HEAD");
    assert!(found.contains("zzz") && !found.contains("first commit"), "{found}");
}

#[test]
fn a_split_index_is_foretold_as_run_refuses_it() {
    let repo = Repo::new();
    repo.git(&["update-index", "--split-index"]);
    let status = repo.call(&["status", "--json"]).exits(0).json();
    let ran = repo.run(&[], "true").exits(21);
    assert_eq!(status["refusals"][0]["reason"], ran.json()["reason"]);
    assert_eq!(status["refusals"][0]["reason"], "split_index");
    let hint = status["refusals"][0]["hint"].as_str().expect("text");
    repo.finish(repo.command("sh").args(["-c", hint])).exits(0);
    repo.run(&[], "echo x > x").exits(0);
}

#[test]
fn a_reason_that_does_not_exist_is_no_answer() {
    let lab = Lab::new();
    lab.killed_at("turn_over", &["--execution-id", "job"], "echo x > x");
    lab.reconcile();
    let ran = lab.repo.call(&["resolve", "--all", "--reason", "interupted", "--discard"]).exits(2);
    assert!(ran.stderr.contains("'interrupted'"), "{}", ran.stderr);
    lab.repo.call(&["resolve", "--all", "--reason", "drift", "--discard"]).exits(0);
    assert_eq!(lab.state("job", 1).0, "quarantined");
    lab.repo.call(&["resolve", "--all", "--reason", "interrupted", "--discard"]).exits(0);
    lab.laws();
}

fn signalled(child: &Child, signal: Signal) -> Pid {
    let pid = Pid::from_child(child);
    kill_process(pid, signal).expect("sent");
    pid
}

#[test]
fn what_ends_an_unprotected_run_has_its_own_code() {
    const KIND: [&str; 2] = ["--triggered-by", "maintenance"];
    let repo = Repo::new();
    let told = |ran: Ran, code: i32, reason: &str, error: &str, said: &str| {
        let ran = ran.exits(code);
        let document = ran.json();
        fits("outcome", &document);
        assert_eq!(document["outcome"], "unprotected");
        assert_eq!((&document["reason"], &document["error_code"]), (&reason.into(), &error.into()));
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    };
    let timeout = [&KIND[..], &["--timeout", "1s"]].concat();
    told(repo.run(&timeout, "sleep 600"), 12, "turn_timeout", "timeout", "ran out of time");
    let soon = (jiff::Timestamp::now() + std::time::Duration::from_secs(1)).to_string();
    let by = [&KIND[..], &["--settle-by", &soon]].concat();
    told(repo.run(&by, "sleep 600"), 12, "settle_by", "timeout", "--settle-by");
    told(repo.run(&KIND, "exit 3"), 10, "turn_failed", "agent_error", "returned 3");
    for (signal, code, word) in [
        (Signal::INT, 13, "cancelled"),
        (Signal::TERM, 14, "interrupted"),
        (Signal::HUP, 14, "interrupted"),
    ] {
        let begun = Gate::new(&repo, &format!("begun-{}", signal.as_raw()));
        let script = format!("echo > {}; exec sleep 600", begun.path().display());
        let child = repo.spawn(&mut repo.run_command(&KIND, &script));
        begun.wait();
        signalled(&child, signal);
        told(Repo::wait(child), code, word, word, word);
    }
}

#[test]
fn a_post_check_that_is_interrupted_has_decided_nothing() {
    let repo = Repo::new();
    let begun = Gate::new(&repo, "begun");
    let check = format!("echo > {}; exec sleep 600", begun.path().display());
    for json in [true, false] {
        let mut args = vec!["post-check", "--check", check.as_str()];
        args.extend(json.then_some("--json"));
        let child = repo.spawn(&mut repo.worktx(&args));
        begun.wait();
        signalled(&child, Signal::INT);
        let ran = Repo::wait(child).exits(1);
        if json {
            fits("post-check", &ran.json());
            assert_eq!(ran.json()["decision"], "interrupted");
        } else {
            assert!(ran.stdout.starts_with("post-check interrupted\n"), "{}", ran.stdout);
            assert!(!ran.stdout.contains("rolled back"), "{}", ran.stdout);
        }
    }
}

#[test]
fn a_post_check_that_cannot_run_is_named_with_the_reason() {
    let repo = Repo::new();
    repo.write(".worktx/post-check", "#!/bin/sh\nexit 1\n");
    let ran = repo.call(&["post-check"]).exits(0);
    let place = format!("{} cannot run: ", repo.path(".worktx/post-check").display());
    assert!(ran.stdout.contains(&place), "{}", ran.stdout);
    assert!(ran.stdout.contains("would be committed"), "{}", ran.stdout);
    let document = repo.call(&["post-check", "--json"]).exits(0).json();
    fits("post-check", &document);
    assert!(document["why"].as_str().is_some_and(|why| !why.is_empty()), "{document}");
    repo.run(&[], "echo x > x").exits(0);
}

#[test]
fn a_suspended_run_is_cancelled_too() {
    let repo = Repo::new();
    let begun = Gate::new(&repo, "begun");
    let script = format!("echo > {}; exec sleep 600", begun.path().display());
    let child = repo.spawn(&mut repo.run_command(&["--execution-id", "job"], &script));
    begun.wait();
    let pid = signalled(&child, Signal::STOP);
    let stopped = waitpid(Some(pid), WaitOptions::UNTRACED).expect("a child").expect("news");
    assert!(stopped.1.stopped(), "{stopped:?}");
    let document = repo.call(&["cancel", "job", "--json"]).exits(0).json();
    fits("cancel", &document);
    assert_eq!(document["suspended"], "continued");
    let outcome = Repo::wait(child).exits(13).json();
    assert_eq!(outcome["outcome"], "rolled_back");
}

#[test]
fn a_held_attempt_that_was_cancelled_is_offered_no_adoption() {
    let lab = Lab::new();
    let repo = &lab.repo;
    lab.killed_at("turn_over", &["--execution-id", "job"], "echo x > README.md");
    let text = repo.call(&["status"]).exits(0).stdout;
    assert!(text.contains("is held for you to decide about"), "{text}");
    lab.reconcile();
    let refused = repo.run(&[], "true").exits(21);
    assert!(refused.stderr.contains("worktx resolve job --adopt"), "{}", refused.stderr);
    let ran = repo.call(&["cancel", "job"]).exits(0);
    assert!(ran.stdout.contains("stays held") && ran.stdout.contains("worktx show job"));
    let refused = repo.run(&[], "true").exits(21);
    assert!(refused.stderr.contains("worktx resolve job --discard"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("--adopt"), "{}", refused.stderr);
    let status = repo.call(&["status", "--json"]).exits(0).json();
    assert!(!status.to_string().contains("--adopt"), "{status:#}");
    // What the held attempt left in the tree is nothing to commit or stash.
    let reasons: Vec<&str> = status["refusals"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|refusal| refusal["reason"].as_str())
        .collect();
    assert_eq!(reasons, ["quarantined"]);
}

#[test]
fn an_id_that_begins_with_a_dash_can_be_typed() {
    let typed = |repo: &Repo, line: &str| {
        let words: Vec<&str> = line.trim().split(' ').skip(1).collect();
        repo.call(&words)
    };
    let repo = Repo::new();
    let id = "--execution-id=-x";
    let ran = repo.run(&[id], "echo x > x; exit 1").exits(10);
    let commands: Vec<&str> =
        ran.stderr.lines().filter(|line| line.trim().starts_with("worktx ")).collect();
    assert_eq!(commands, ["    worktx diff -- -x", "    worktx restore -- -x"]);
    for line in commands {
        typed(&repo, line).exits(0);
    }
    repo.run(&[id], "echo y > y; git symbolic-ref HEAD refs/heads/else").exits(20);
    repo.git(&["symbolic-ref", "HEAD", "refs/heads/main"]);
    let document = typed(&repo, "worktx show --json -- -x").exits(0).json();
    let commands = document["attempts"][1]["commands"].clone();
    assert_eq!(commands[1], "worktx resolve --discard -- -x", "{commands}");
    typed(&repo, commands[1].as_str().expect("text")).exits(0);
    repo.run(&[], "echo z > z").exits(0);
}

#[test]
fn a_turn_that_calls_worktx_is_not_told_to_wait_for_itself() {
    let repo = Repo::new();
    for inner in ["run -- true", "guard -- true"] {
        let script = format!("{WORKTX} {inner} 2>&1; test $? = 22");
        let ran = repo.run(&[], &script).exits(0);
        assert!(ran.stderr.contains("called from within `worktx run`"), "{}", ran.stderr);
        assert!(!ran.stderr.contains("worktx cancel"), "{}", ran.stderr);
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_its_paths() {
    if !is_root() || !has("setpriv") {
        eprintln!("SKIPPED: needs root and setpriv to become somebody else");
        return;
    }
    let repo = Repo::new();
    let done = repo.command("chown").args(["-R", "65534:65534"]).arg(repo.outside()).status();
    assert!(done.expect("it starts").success());
    let run = || {
        let mut command = repo.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", WORKTX]);
        repo.finish(command.args(["run", "--json", "--", "true"]))
    };
    let probe = run();
    if probe.code != 0 {
        eprintln!("SKIPPED: the binary cannot be run as another user: {}", probe.stderr);
        return;
    }
    for (name, make) in [("data", "mkdir -m 700 data"), ("key", "umask 077; echo x > key")] {
        repo.finish(repo.command("sh").args(["-c", make])).exits(0);
        let ran = run().exits(21);
        let document = ran.json();
        fits("outcome", &document);
        assert_eq!(document["reason"], "unreadable");
        assert_eq!(document["paths"], serde_json::json!([name]));
        assert!(ran.stderr.contains(".git/info/exclude"), "{}", ran.stderr);
        let exclude = format!("echo /{name} >> .git/info/exclude");
        repo.finish(repo.command("sh").args(["-c", &exclude])).exits(0);
        run().exits(0);
    }
}

#[test]
fn a_limit_is_named_as_the_key_that_raises_it() {
    let repo = Repo::new();
    repo.write("large", "x".repeat(3_000));
    for (key, settings) in
        [("file", "file = '1KiB'"), ("total", "total = '1KiB'"), ("files", "files = 0")]
    {
        repo.settings(&format!("[limits]\n{settings}\n"));
        let ran = repo.run(&[], "true").exits(21);
        assert!(ran.stderr.contains(&format!("beyond limits.{key}:")), "{key}: {}", ran.stderr);
    }
}

#[test]
fn no_hint_leads_to_the_same_error() {
    let repo = Repo::new();
    let file = repo.path("README.md").display().to_string();
    for args in [
        vec!["--workspace", "/nonexistent", "status"],
        vec!["--workspace", &file, "status"],
        vec!["serve", "/nonexistent"],
        vec!["serve", &file],
    ] {
        let ran = repo.call(&args).exits(1);
        assert!(ran.stderr.contains("\nHint: name a directory"), "{args:?}: {}", ran.stderr);
    }
    for (args, hint) in [
        (vec!["run", "--timeout", "x", "--", "true"], "worktx run --help"),
        (vec!["run", "-m", "", "--", "true"], "worktx run --help"),
        (vec!["run", "-m", " \nbody", "--", "true"], "worktx run --help"),
        (vec!["run", "--json", "--on-dirty", "capture", "--", "true"], "worktx run --help"),
        (vec!["guard", "--wait", "x", "--", "true"], "worktx guard --help"),
    ] {
        let ran = repo.call(&args).exits(2);
        assert!(ran.stderr.contains(&format!("\nHint: {hint}\n")), "{args:?}: {}", ran.stderr);
    }
    let ran = repo.call(&["guard", "--", "nonexistent"]).exits(1);
    assert!(!ran.stderr.contains("worktx run"), "{}", ran.stderr);
    assert!(!repo.has_ledger(), "nothing was made");
}

#[test]
fn who_commits_is_asked_for_in_the_same_words() {
    let repo = Repo::new();
    fs::write(repo.home().join(".gitconfig"), "[safe]\n\tdirectory = *\n").expect("written");
    let status = repo.call(&["status", "--json"]).exits(0).json();
    assert_eq!(status["refusals"][0]["reason"], "no_identity");
    let hint = status["refusals"][0]["hint"].as_str().expect("text").to_owned();
    let ran = repo.run(&[], "true").exits(21);
    assert_eq!(ran.json()["reason"], "no_identity");
    assert!(ran.stderr.contains(&hint) && hint.contains("[commit] author"), "{}", ran.stderr);
    repo.settings("[commit]\nauthor = 'A <a@example.org>'\n");
    repo.run(&[], "echo x > x").exits(0);
}

#[test]
fn a_demonstration_that_nobody_reads_is_no_error() {
    let repo = Repo::bare_home();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut demo = repo.worktx(&["demo"]);
    let output = demo.stdout(writer).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(!said.contains("Error"), "{said}");
}

#[test]
fn what_gc_has_dropped_is_not_said_to_have_been_refused() {
    let repo = Repo::new();
    let id = ["--execution-id", "job"];
    let commit = repo.run(&id, "echo x > x").exits(0).json()["commit"].clone();
    repo.settings("[gc]\nattempts = 0\ndays = 0\n");
    repo.call(&["gc"]).exits(0);
    let ran = repo.call(&["diff", "job"]).exits(1);
    assert!(ran.stderr.contains("is success, and gc has dropped"), "{}", ran.stderr);
    let ran = repo.run(&id, "true").exits(0);
    assert_eq!((&ran.json()["commit"], &ran.json()["replayed"]), (&commit, &true.into()));
    assert!(ran.stderr.contains("what was kept of it is dropped"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("no changes"), "{}", ran.stderr);
}
