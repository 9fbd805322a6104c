//! The commands that only read, by the real binary: documents, exit codes, closed pipes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Ran, Repo, WORKTX};

/// The document of a command fits the schema of its page.
#[track_caller]
pub fn fits(name: &str, document: &Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("docs/schema/{name}.json"));
    let text = fs::read_to_string(&path).expect("the schema is there");
    let schema: Value = serde_json::from_str(&text).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a schema");
    let wrong: Vec<String> = validator.iter_errors(document).map(|e| e.to_string()).collect();
    assert!(wrong.is_empty(), "{name}: {wrong:?}\n{document:#}");
    assert_eq!(document["schema"], 1);
}

fn json(repo: &Repo, args: &[&str]) -> Value {
    let ran = repo.call(args).exits(0);
    assert_eq!(ran.stderr, "", "stdout is data, stderr is talk");
    ran.json()
}

#[test]
fn the_documents_fit_their_schemas() {
    let repo = Repo::new();
    let before = repo.listing();
    for (name, args) in [
        ("list", vec!["list", "--json"]),
        ("status", vec!["status", "--json"]),
        ("init", vec!["init", "--json"]),
        ("doctor", vec!["doctor", "--json"]),
        ("gc", vec!["gc", "--dry-run", "--json"]),
    ] {
        fits(name, &json(&repo, &args));
    }
    let status = json(&repo, &["status", "--json"]);
    assert_eq!((&status["branch"], &status["can_be_base"]), (&"main".into(), &true.into()));
    assert_eq!(status["head"], repo.head());
    assert_eq!(repo.status(), "");
    assert_eq!(repo.listing(), before, "nothing was written into the work tree");
    repo.fsck();
}

#[test]
fn a_refusal_is_foretold_with_its_hint() {
    let repo = Repo::new();
    repo.write("README.md", "changed\n");
    let status = json(&repo, &["status", "--json"]);
    fits("status", &status);
    assert_eq!(status["refusals"][0]["reason"], "modified_tracked");
    assert_eq!(status["refusals"][0]["paths"][0], "README.md");
    let text = repo.call(&["status"]).exits(0).stdout;
    assert!(text.contains("not ready") && text.contains("Hint: commit or stash it"), "{text}");
}

#[test]
fn failures_have_a_sentence_a_hint_and_a_code() {
    let repo = Repo::bare_home();
    let nowhere = repo.call(&["list"]).exits(1);
    assert_eq!(nowhere.stdout, "");
    assert!(nowhere.stderr.starts_with("Error: ") && nowhere.stderr.contains("\nHint: "));
    let repo = Repo::new();
    for (args, code) in [
        (vec!["show", "nobody"], 1),
        (vec!["cancel", "nobody"], 1),
        (vec!["restore", "nobody"], 1),
        (vec!["no-such-command"], 2),
        (vec!["show"], 2),
        (vec!["resolve", "x"], 2),
        (vec!["--profile", "nonsense", "list"], 1),
        (vec!["--help"], 0),
        (vec!["--version"], 0),
        (vec!["man"], 0),
        (vec!["completions", "bash"], 0),
        (vec!["completions", "fish"], 0),
    ] {
        let ran = repo.call(&args).exits(code);
        assert_eq!(ran.stdout.is_empty(), code != 0, "{args:?}: {}", ran.stdout);
        assert_eq!(ran.stderr.is_empty(), code == 0, "{args:?}: {}", ran.stderr);
    }
    assert!(!repo.path(".git/worktx").exists(), "who only reads makes nothing");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let repo = Repo::new();
    for args in [vec!["man"], vec!["completions", "zsh"], vec!["doctor", "--json"], vec!["list"]] {
        let mut command = repo.worktx(&args);
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        command.stdout(writer).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        let code = child.wait().expect("it ends").code();
        assert_eq!((code, said.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn the_log_is_off_until_it_is_asked_for_and_known_variables_are_no_news() {
    let repo = Repo::new();
    let ran = repo.finish(repo.worktx(&["status", "--json"]).env("WORKTX_LOG", "debug")).exits(0);
    assert_eq!(ran.json()["warnings"], serde_json::json!([]));
    let ran = repo.finish(repo.worktx(&["status", "--json"]).env("WORKTX_NONSENSE", "1")).exits(0);
    assert_eq!(ran.json()["warnings"][0]["code"], "unknown_variable");
    let ran = repo.finish(repo.worktx(&["list"]).env("WORKTX_LOG", "=====")).exits(0);
    assert!(ran.stderr.starts_with("warning: WORKTX_LOG"), "{}", ran.stderr);
}

#[test]
fn colour_only_where_it_is_wanted() {
    let repo = Repo::new();
    let coloured = |args: &[&str]| repo.call(args).exits(0).stdout.contains('\u{1b}');
    assert!(!coloured(&["status"]), "not into a pipe");
    assert!(coloured(&["status", "--color", "always"]));
    assert!(!coloured(&["status", "--color", "never"]));
}

#[test]
fn the_guard_goes_in_and_out_and_passes_while_nothing_runs() {
    let repo = Repo::new();
    repo.call(&["init", "--guard"]).exits(0);
    let hook = repo.path(".git/hooks/reference-transaction");
    assert!(hook.exists());
    // git finds the hook, the hook finds this worktx.
    let bin = PathBuf::from(WORKTX).parent().expect("has one").to_owned();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("set"));
    let commit = |path: &str| {
        let mut git = std::process::Command::new("git");
        git.args(["-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty"]);
        git.args(["-m", "x"]).current_dir(&repo.root).env("PATH", path).env("HOME", repo.home());
        let output = git.output().expect("git starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    commit(&path);
    // A ledger that cannot be read is no reason to stop git.
    fs::write(repo.path(".git/worktx/ledger.db"), "nonsense").expect("written");
    commit(&path);
    fs::remove_dir_all(repo.path(".git/worktx")).expect("removed");
    assert_eq!(json(&repo, &["init", "--no-guard", "--json"])["guard"], "removed");
    assert!(!hook.exists());
}

#[test]
fn what_git_says_to_the_guard_is_read_whole() {
    let repo = Repo::new();
    let mut command = repo.worktx(&["guard-hook"]);
    command.env("GIT_DIR", ".git").stdin(Stdio::piped());
    let mut child = repo.spawn(&mut command);
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(b"nonsense that is no line of git\n").expect("read");
    drop(stdin);
    let Ran { code, stdout, stderr } = Repo::wait(child);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "", ""), "its own failures pass");
}

/// Whoever asks how things stand is told, also where git itself says nothing more.
#[test]
fn a_damaged_index_is_said_to_be_one() {
    let repo = Repo::new();
    let index = repo.path(".git/index");
    let mut bytes = std::fs::read(&index).expect("read");
    bytes[60] ^= 1;
    std::fs::write(&index, bytes).expect("written");
    let status = json(&repo, &["status", "--json"]);
    fits("status", &status);
    assert_eq!(status["refusals"][0]["reason"], "damaged");
    assert_eq!(status["can_be_base"], false);
}
