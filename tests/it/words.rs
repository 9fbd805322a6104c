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
