//! What commands say where something is in the way: it is true, and what is to be typed works.

use std::fs;
use std::process::Command;

use crate::readers::fits;
use crate::support::{Repo, is_root};

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

    repo.finish(repo.command("sh").args(["-c", &hint])).exits(0);
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
