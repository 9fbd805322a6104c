//! `run`, its outcomes and what is left on disk.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use crate::support::{Gate, Repo};

#[test]
fn a_success_is_committed() {
    let repo = Repo::new();
    let base = repo.head();
    let ran =
        repo.run(&[], "echo new > new.txt; echo more >> README.md; rm src/deep/two.txt").exits(0);
    let document = ran.json();
    assert_eq!(document["outcome"], "committed");
    assert_eq!(document["execution_status"], "success");
    assert_eq!(document["error_code"], serde_json::Value::Null);
    assert_eq!(document["base"], base.as_str());
    assert_eq!(document["commit"], repo.head().as_str());
    assert_eq!(document["changes"]["added"], 1);
    assert_eq!(document["changes"]["modified"], 1);
    assert_eq!(document["changes"]["deleted"], 1);
    assert_eq!(repo.status(), "");
    assert_eq!(repo.git(&["rev-parse", "HEAD~1"]), base);
    assert_eq!(repo.tree_by_git(), repo.git(&["rev-parse", "HEAD^{tree}"]));
    let body = repo.git(&["log", "-1", "--format=%B"]);
    assert!(body.starts_with("worktx: sh -c"), "{body}");
    assert!(body.contains("Worktx-Execution: "), "{body}");
    assert!(body.contains("Worktx-Attempt: 1"), "{body}");
    assert!(body.contains("Worktx-Post-Check: absent"), "{body}");
    assert!(repo.git(&["reflog", "-1", "main"]).contains("worktx"));
    repo.fsck();
}

#[test]
fn a_failure_goes_back_byte_for_byte() {
    let repo = Repo::new();
    repo.write("notes.txt", "mine\n");
    fs::create_dir(repo.path("empty")).expect("made");
    fs::set_permissions(repo.path("src/lib.rs"), fs::Permissions::from_mode(0o600)).expect("set");
    symlink("README.md", repo.path("link")).expect("made");
    symlink("/nowhere/at/all", repo.path("dangling")).expect("made");
    let before = repo.listing();
    let untouched = fs::metadata(repo.path(".gitignore")).expect("there");
    let head = repo.head();

    let script = "rm -rf src notes.txt empty; echo x > README.md; mkdir -p a/b/c; echo y > a/b/c/d; \
                  ln -sf /etc/passwd link; rm dangling; mkdir dangling; chmod 777 .; mkfifo pipe; \
                  chmod 000 a/b; exit 3";
    let ran = repo.run(&[], script).exits(10);
    let document = ran.json();
    assert_eq!(document["outcome"], "rolled_back");
    assert_eq!(document["error_code"], "agent_error");
    assert_eq!(document["execution_status"], "failed");
    assert_eq!(document["turn"]["exit_code"], 3);
    assert_eq!(repo.listing(), before);
    assert_eq!(repo.head(), head);
    let after = fs::metadata(repo.path(".gitignore")).expect("there");
    assert_eq!((untouched.ino(), untouched.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    let discarded = document["refs"]["discarded"][0].as_str().expect("a ref").to_owned();
    assert_eq!(repo.git(&["show", &format!("{discarded}:README.md")]), "x");
    assert_eq!(repo.git(&["show", &format!("{discarded}:a/b/c/d")]), "y");
    repo.fsck();
}

#[test]
fn the_post_check_decides() {
    let repo = Repo::new();
    let before = repo.listing();
    let ran = repo.run(&["--check", "echo looked; test ! -e bad"], "touch bad").exits(11);
    let document = ran.json();
    assert_eq!(document["reason"], "post_check_failed");
    assert_eq!(document["error_code"], "post_check_failed");
    assert_eq!(document["post_check"]["outcome"], "failed");
    assert!(document["post_check"]["output"].as_str().expect("text").contains("looked"));
    assert_eq!(repo.listing(), before);

    let ran = repo.run(&["--check", "test -e good && test -n \"$WORKTX_CANDIDATE\""], "touch good");
    assert_eq!(ran.exits(0).json()["post_check"]["outcome"], "passed");
    assert!(repo.git(&["log", "-1", "--format=%B"]).contains("Worktx-Post-Check: sha256:"));
    assert_eq!(repo.status(), "");
}

#[test]
fn the_post_check_cannot_leave_anything() {
    let repo = Repo::new();
    let check = "echo litter > litter; echo spoiled > README.md; rm src/lib.rs";
    let document = repo.run(&["--check", check], "echo new > new.txt").exits(0).json();
    assert_eq!(repo.status(), "");
    assert_eq!(repo.read("README.md"), "hello\n");
    assert!(repo.path("src/lib.rs").exists());
    assert!(!repo.path("litter").exists());
    let rescue = document["refs"]["rescue"][0].as_str().expect("a ref").to_owned();
    assert_eq!(repo.git(&["show", &format!("{rescue}:litter")]), "litter");
}

#[test]
fn nothing_to_commit_is_a_success() {
    let repo = Repo::new();
    let head = repo.head();
    let document = repo.run(&[], "true").exits(0).json();
    assert_eq!(document["outcome"], "committed");
    assert_eq!(document["reason"], "nothing_to_commit");
    assert_eq!(repo.head(), head);
    assert_eq!(document["commit"], head.as_str());
}

#[test]
fn untracked_files_are_part_of_the_base() {
    let repo = Repo::new();
    repo.write("notes.txt", "mine\n");
    repo.write("other.txt", "too\n");
    repo.run(&[], "echo x > new.txt").exits(0);
    assert_eq!(repo.status(), "?? notes.txt\n?? other.txt");
    let document = repo.run(&[], "echo more >> notes.txt; rm other.txt").exits(0).json();
    assert!(document["warnings"].to_string().contains("untracked_changed"), "{document}");
    assert_eq!(repo.status(), "");
    assert_eq!(repo.git(&["show", "HEAD:notes.txt"]), "mine\nmore");
    let base = document["refs"]["base"].as_str().expect("a ref").to_owned();
    assert_eq!(repo.git(&["show", &format!("{base}:other.txt")]), "too");

    let strict = repo.path("../home/.config/worktx/config.toml");
    fs::create_dir_all(strict.parent().expect("has one")).expect("made");
    fs::write(&strict, "[base]\nuntracked = \"refuse\"\n").expect("written");
    repo.write("again.txt", "x");
    repo.run(&[], "true").exits(21);
}

#[test]
fn ignored_files_are_outside_and_secrets_stay_out() {
    let repo = Repo::new();
    repo.write("ignored/cache", "cached");
    repo.write("secret.log", "secret");
    repo.run(&[], "echo x > x; echo changed > ignored/cache; exit 1").exits(10);
    assert_eq!(repo.read("ignored/cache"), "changed\n");
    assert!(!repo.path("x").exists());

    let document = repo.run(&[], "printf 'ignored/\\n' > .gitignore").exits(11).json();
    assert_eq!(document["reason"], "unignored");
    assert!(document["paths"].to_string().contains("secret.log"), "{document}");
    assert_eq!(repo.read(".gitignore"), "ignored/\n*.log\n");

    let add = "printf 'target/\\n' >> .gitignore; mkdir target; echo big > target/out";
    repo.run(&[], add).exits(0);
    assert_eq!(repo.status(), "");
    assert_eq!(repo.git(&["ls-files", "target"]), "");
    assert!(repo.path("target/out").exists());

    let hide = "printf '*\\n' >> .gitignore; echo z > hidden; exit 1";
    repo.run(&[], hide).exits(10);
    assert!(!repo.path("hidden").exists());
}

#[test]
fn an_execution_is_replayed_retried_and_cancelled() {
    let repo = Repo::new();
    let failed = repo.run(&["--execution-id", "job"], "echo x > x; exit 1").exits(10).json();
    assert_eq!(failed["attempt"], 1);
    let second = repo.run(&["--execution-id", "job"], "test ! -e x && echo y > y").exits(0).json();
    assert_eq!(second["attempt"], 2);
    assert_eq!(second["replayed"], false);
    let head = repo.head();
    let replay = repo.run(&["--execution-id", "job"], "echo never > never").exits(0).json();
    assert_eq!(replay["replayed"], true);
    assert_eq!(replay["commit"], second["commit"]);
    assert_eq!(repo.head(), head);
    assert!(!repo.path("never").exists());
    repo.run(&["--execution-id", "not valid"], "true").exits(2);
}

#[test]
fn the_next_attempt_is_told_of_the_last() {
    let repo = Repo::new();
    repo.run(&["--execution-id", "job"], "echo x > x; exit 1").exits(10);
    let document = repo.run(&["--execution-id", "job"], "cp \"$WORKTX_PREVIOUS\" told").exits(0);
    drop(document);
    let told: serde_json::Value = serde_json::from_str(&repo.read("told")).expect("JSON");
    assert_eq!(told["attempt"], 1);
    assert_eq!(told["reason"], "turn_failed");
}

#[test]
fn a_timeout_ends_the_turn_and_its_children() {
    let repo = Repo::new();
    let before = repo.listing();
    let script = "(trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ > ../pid; while :; do read x; done' \
                  < ../never &) ; echo x > x; exec cat ../never";
    let never = Gate::new(&repo, "never");
    let ran = repo.run(&["--timeout", "1s"], script);
    drop(never);
    let document = ran.exits(12).json();
    assert_eq!(document["error_code"], "timeout");
    assert_eq!(repo.listing(), before);
}

#[test]
fn a_daemon_is_dead_before_the_tree_is_touched() {
    let repo = Repo::new();
    let ready = Gate::new(&repo, "ready");
    let script = format!(
        "(setsid sh -c 'trap \"\" TERM HUP INT; echo $$ > {0}; \
         while :; do echo spoiled > spoiled; done' </dev/null >/dev/null 2>&1 &) ; \
         cat {0} > ../daemon.pid; exit 5",
        ready.path().display()
    );
    let document = repo.run(&[], &script).exits(10).json();
    let killed = document["turn"]["killed"].as_array().expect("a list");
    assert!(!killed.is_empty(), "{document}");
    let pid = fs::read_to_string(repo.outside().join("daemon.pid")).expect("written");
    assert!(!std::path::Path::new(&format!("/proc/{}", pid.trim())).exists());
    assert!(!repo.path("spoiled").exists());
    assert_eq!(repo.status(), "");
}

#[test]
fn a_linked_worktree_and_a_detached_head_work() {
    let repo = Repo::new();
    let linked = repo.outside().join("linked");
    repo.git(&["worktree", "add", "-q", "-b", "side", linked.to_str().expect("text")]);
    let mut command = repo.run_command(&[], "echo x > x");
    let document = repo.finish(command.current_dir(&linked)).exits(0).json();
    assert_eq!(document["branch"], "side");
    assert_eq!(repo.git_in(&linked, &["status", "--porcelain"]), "");
    assert_eq!(repo.git(&["show", "side:x"]), "x");
    let mut command = repo.run_command(&[], "rm -rf src; exit 1");
    repo.finish(command.current_dir(&linked)).exits(10);
    assert_eq!(repo.git_in(&linked, &["status", "--porcelain"]), "");

    repo.git(&["checkout", "-q", "--detach"]);
    let before = repo.git(&["rev-parse", "main"]);
    let document = repo.run(&[], "echo y > y").exits(0).json();
    assert_eq!(document["branch"], "HEAD");
    assert_eq!(repo.git(&["rev-parse", "main"]), before);
    assert_eq!(repo.head(), document["commit"].as_str().expect("text"));
    assert_eq!(repo.status(), "");
}

#[test]
fn signals_and_cancel_end_a_turn_as_designed() {
    use rustix::process::{Pid, Signal, kill_process};
    for (signal, code, status) in [
        (Some(Signal::INT), 13, "cancelled"),
        (Some(Signal::TERM), 14, "running"),
        (Some(Signal::HUP), 14, "running"),
        (None, 13, "cancelled"),
    ] {
        let repo = Repo::new();
        let before = repo.listing();
        let (ready, never) = (Gate::new(&repo, "ready"), Gate::new(&repo, "never"));
        let script = format!(
            "echo x > x; echo > {}; exec cat {}",
            ready.path().display(),
            never.path().display()
        );
        let child = repo.spawn(&mut repo.run_command(&["--execution-id", "job"], &script));
        ready.wait();
        match signal {
            Some(signal) => {
                let pid = Pid::from_raw(i32::try_from(child.id()).expect("fits")).expect("a pid");
                kill_process(pid, signal).expect("sent");
            }
            None => {
                repo.call(&["cancel", "job"]).exits(0);
            }
        }
        let document = Repo::wait(child).exits(code).json();
        assert_eq!(document["outcome"], "rolled_back");
        assert_eq!(document["execution_status"], status);
        assert_eq!(repo.listing(), before);
        assert_eq!(repo.status(), "");
    }
}

#[test]
fn conversions_are_gits() {
    let repo = Repo::new();
    repo.write(".gitattributes", "*.txt text\n*.bin -text\n");
    repo.write("crlf.txt", "a\r\nb\r\n");
    repo.git(&["add", "-A"]);
    repo.git(&["commit", "-qm", "attributes"]);
    let before = repo.listing();
    repo.run(&[], "printf 'x\\r\\n' > crlf.txt; exit 1").exits(10);
    assert_eq!(repo.listing(), before);
    repo.run(&[], "printf 'x\\r\\ny\\r\\n' > new.txt; printf 'x\\r\\n' > new.bin").exits(0);
    assert_eq!(repo.tree_by_git(), repo.git(&["rev-parse", "HEAD^{tree}"]));
    assert_eq!(repo.status(), "");
}

#[test]
fn poison_in_the_git_directory_does_not_stay() {
    let repo = Repo::new();
    let poison = "git config core.fsmonitor /tmp/evil; git config my.key kept; \
                  printf '#!/bin/sh\\nexit 1\\n' > .git/hooks/pre-commit; chmod +x .git/hooks/pre-commit";
    let document = repo.run(&[], &format!("echo x > x; {poison}")).exits(0).json();
    assert!(document["warnings"].to_string().contains("core.fsmonitor"), "{document}");
    assert!(!repo.path(".git/hooks/pre-commit").exists());
    assert_eq!(repo.git(&["config", "--get", "my.key"]), "kept");
    let config = fs::read_to_string(repo.path(".git/config")).expect("readable");
    assert!(!config.contains("fsmonitor"), "{config}");

    let before = config;
    repo.run(&[], &format!("git config my.key other; {poison}; exit 1")).exits(10);
    assert_eq!(fs::read_to_string(repo.path(".git/config")).expect("readable"), before);
}

#[test]
fn the_settings_name_the_author_and_the_message() {
    let repo = Repo::new();
    let config = repo.home().join(".config/worktx/config.toml");
    fs::create_dir_all(config.parent().expect("has one")).expect("made");
    fs::write(config, "[commit]\nauthor = \"A Bot <bot@example.org>\"\n").expect("written");
    repo.run(&["-m", "what it does"], "echo x > x").exits(0);
    let said = repo.git(&["log", "-1", "--format=%an <%ae> %s"]);
    assert_eq!(said, "A Bot <bot@example.org> what it does");
}

#[test]
fn awkward_names_go_forth_and_back() {
    let repo = Repo::new();
    let long = "n".repeat(255);
    let make = format!(
        "printf a > \"$(printf 'new\\nline')\"; printf b > -dash; printf c > 'back\\slash'; \
         printf d > {long}; printf e > \"$(printf 'bad\\377name')\"; printf f > ' space '"
    );
    let before = repo.listing();
    repo.run(&[], &format!("{make}; exit 1")).exits(10);
    assert_eq!(repo.listing(), before);
    repo.run(&[], &make).exits(0);
    assert_eq!(repo.status(), "");
    assert_eq!(repo.tree_by_git(), repo.git(&["rev-parse", "HEAD^{tree}"]));
    repo.fsck();
}

#[test]
fn the_turns_git_syncs_refs_unless_somebody_decided_otherwise() {
    let repo = Repo::new();
    let asked = "git config core.fsync > seen; git config core.logAllRefUpdates >> seen; git config x.y >> seen";
    let mut command = repo.run_command(&[], asked);
    command
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "x.y")
        .env("GIT_CONFIG_VALUE_0", "z");
    repo.finish(&mut command).exits(0);
    assert_eq!(repo.read("seen"), "reference\ntrue\nz\n");
    repo.git(&["config", "core.fsync", "none"]);
    repo.run(&[], "git config core.fsync > seen").exits(0);
    assert_eq!(repo.read("seen"), "none\n");
}

/// A folder that ignores itself by rules of its own was ignored by the base, and is not by the turn:
/// what is in it has not come since the seal.
#[test]
fn a_folder_that_ignores_itself_stays_where_the_turn_no_longer_does() {
    let repo = Repo::new();
    repo.write(".gitignore", "venv/\n");
    repo.git(&["add", "-A"]);
    repo.git(&["commit", "-qm", "rules"]);
    repo.write("venv/.gitignore", "*\n");
    repo.write("venv/lib", "precious\n");
    let ran = repo.run(&["--check", "true"], "echo '*.o' > .gitignore").exits(0).json();
    assert_eq!(repo.read("venv/lib"), "precious\n");
    assert_eq!(repo.read("venv/.gitignore"), "*\n");
    assert_eq!((repo.status().as_str(), &ran["warnings"]), ("", &serde_json::json!([])));
}
