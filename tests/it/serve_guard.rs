//! The guard and its leases, and how a server is reached.

use std::net::TcpStream;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::lab::Midway;
use crate::server::{Answer, request, start, started, talk};
use crate::support::{Ran, Repo};

#[test]
fn a_lease_keeps_attempts_away() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    let asked = json!({ "holder": "sync", "ttl": "10m" });
    let lease = server.post("/v1/guard", &asked).is(200);
    let busy = repo.run(&[], "true").exits(22);
    assert!(busy.stderr.contains("guard sync"), "{}", busy.stderr);
    assert_eq!(server.post("/v1/guard", &json!({})).is(423)["reason"], "busy");
    let path = format!("/v1/guard/{}", lease["lease"].as_str().expect("a name"));
    let renewed = server.post(&path, &json!({ "ttl": "20m" })).is(200);
    assert!(renewed["expires_at"].as_str() > lease["expires_at"].as_str());
    server.submit("waits", "echo waits > waits");
    server.ask("DELETE", &path, None).is(200);
    server.ask("DELETE", &path, None).is(409);
    assert_eq!(server.end_of("waits")["exit_code"], 0);
    // One that is not renewed ends by itself.
    server.post("/v1/guard", &json!({ "ttl": "10ms" })).is(200);
    let mut command = repo.run_command(&["--wait", "60s"], "true");
    repo.finish(&mut command).exits(0);
}

#[test]
fn guard_runs_a_command_while_no_attempt_does() {
    let repo = Repo::new();
    repo.call(&["guard", "--", "sh", "-c", "exit 7"]).exits(7);
    let missing = repo.call(&["guard", "--", "no-such-program"]).exits(1);
    assert!(missing.stderr.contains("command not found"), "{}", missing.stderr);
    let midway = Midway::named(&repo, "");
    let mut guard = repo.worktx(&["guard", "--", "sh", "-c", &midway.words()]);
    let guard = repo.spawn(&mut guard);
    midway.meanwhile(|| {
        let busy = repo.run(&[], "true").exits(22);
        assert!(busy.stderr.contains("guard -- sh"), "{}", busy.stderr);
        let second = repo.call(&["guard", "--nowait", "--", "true"]).exits(22);
        assert!(second.stderr.contains("busy"), "{}", second.stderr);
    });
    Repo::wait(guard).exits(0);
    repo.run(&[], "echo x > x").exits(0);
}

#[test]
fn no_guarded_command_is_let_at_what_a_crash_left() {
    let repo = Repo::new();
    let midway = Midway::named(&repo, "");
    let script = format!("echo left > left; {}", midway.words());
    let run = repo.spawn(&mut repo.run_command(&["--execution-id", "leaves"], &script));
    midway.ready.wait();
    kill_process(Pid::from_child(&run), Signal::KILL).expect("it lives");
    let _: Ran = Repo::wait(run);
    // It waits until the supervisor has ended the turn, and reconciles.
    let guard = ["guard", "--wait", "60s", "--", "git", "status", "--porcelain"];
    let refused = repo.call(&guard).exits(1);
    assert!(refused.stderr.contains("worktx show leaves"), "{}", refused.stderr);
    assert_eq!(repo.sql("select state from attempt"), "quarantined");
    repo.call(&["resolve", "leaves", "--discard"]).exits(0);
    assert_eq!(repo.call(&guard).exits(0).stdout, "");
}

/// What an auto-sync does: everything is committed, rebased and pushed.
const SYNC: &str = "echo $1 > sync/$1 && git add -A && git commit -q -m auto-sync && \
                    git fetch -q origin && git rebase -q --autostash origin/main && \
                    git push -q --force-with-lease origin HEAD:main";

#[test]
fn a_guarded_sync_and_attempts_take_turns() {
    let repo = Repo::new();
    let remote = repo.outside().join("remote.git").display().to_string();
    repo.git(&["init", "-q", "--bare", "-b", "main", &remote]);
    repo.git(&["remote", "add", "origin", &remote]);
    repo.write("sync/start", "0\n");
    repo.git(&["add", "-A"]);
    repo.git(&["commit", "-q", "-m", "sync"]);
    repo.git(&["push", "-q", "origin", "main"]);
    let over = std::sync::atomic::AtomicBool::new(false);
    let synced = std::thread::scope(|scope| {
        let syncing = scope.spawn(|| {
            let mut count = 0;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                count += 1;
                let number = count.to_string();
                repo.call(&["guard", "--", "sh", "-c", SYNC, "sync", &number]).exits(0);
            }
            count
        });
        for number in 0..24 {
            let (script, code) = match number % 3 {
                0 => (format!("echo {number} > ok-{number}"), 0),
                1 => (format!("echo {number} > bad-{number}; rm -r sync; exit 1"), 10),
                _ => (format!("git rm -q README.md; git commit -q -m bad-{number}; exit 1"), 10),
            };
            repo.finish(&mut repo.run_command(&["--wait", "120s"], &script)).exits(code);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        syncing.join().expect("it ends")
    });
    // Whatever came last is pushed, too.
    repo.call(&["guard", "--", "sh", "-c", SYNC, "sync", "last"]).exits(0);
    assert_eq!(
        repo.sql("select count(*) from attempt where state not in ('done', 'rolled_back')"),
        "0"
    );
    assert_eq!(repo.git(&["rev-parse", "origin/main"]), repo.head());
    assert_eq!(repo.status(), "");
    // Nothing lost: what succeeded, and every sync, is there. Nothing blessed: what failed never was.
    let files = repo.git(&["ls-tree", "-r", "--name-only", "HEAD"]);
    for number in (0..24).step_by(3) {
        assert!(files.lines().any(|file| file == format!("ok-{number}")), "{number}: {files}");
    }
    assert_eq!(files.lines().filter(|file| file.starts_with("sync/")).count(), synced + 2);
    let history = repo.git(&["log", "--format=%s", "--name-status", "main", "origin/main"]);
    assert!(!history.contains("bad-") && !history.contains("D\t"), "{history}");
    repo.fsck();
}

fn over_tcp(address: &str, headers: &str) -> Answer {
    let stream = TcpStream::connect(address).expect("it listens");
    talk(stream, &request("GET", "/v1/workspaces", headers, None))
}

#[test]
fn an_address_wants_the_token() {
    let repo = Repo::new();
    let token = repo.outside().join("token");
    std::fs::write(&token, "a-token-of-enough-bytes\n").expect("written");
    let file = token.display().to_string();
    let words = ["serve", "--listen", "127.0.0.1:0", "--token-file", &file];
    let refused = repo.call(&words).exits(1);
    assert!(refused.stderr.contains("chmod 600"), "{}", refused.stderr);
    std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("set");
    let anywhere = repo.call(&["serve", "--listen", "0.0.0.0:0", "--token-file", &file]).exits(1);
    assert!(anywhere.stderr.contains("--listen-anywhere"), "{}", anywhere.stderr);
    let server = start(&repo, &words[1..]);
    let address = server.said.trim_end().rsplit("http://").next().expect("an address");
    assert_eq!(over_tcp(address, "").status, 401);
    assert_eq!(over_tcp(address, "Authorization: Bearer a-token-of-enough-byteX\r\n").status, 401);
    let right = "Authorization: Bearer a-token-of-enough-bytes\r\n";
    assert_eq!(over_tcp(address, right).status, 200);
    let refused = (0..1000).any(|_| over_tcp(address, right).status == 429);
    assert!(refused, "there is a bound on the rate");
}

#[test]
fn there_is_one_server_and_it_can_be_asked() {
    let repo = Repo::new();
    let none = repo.call(&["serve", "--check"]).exits(1);
    assert!(none.stderr.contains("no server answers"), "{}", none.stderr);
    let server = start(&repo, &[]);
    assert!(repo.call(&["serve", "--check"]).exits(0).stdout.contains("\"ready\":true"));
    let second = repo.call(&["serve"]).exits(1);
    assert!(second.stderr.contains(&server.child.id().to_string()), "{}", second.stderr);
    let mode = std::fs::metadata(server.state.join("serve.sock")).expect("there");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&mode) & 0o777, 0o600);
    drop(server);
    repo.call(&["serve", "--check"]).exits(1);
    let server = start(&repo, &[]);
    assert_eq!(server.get("/v1/health").is(200)["status"], "ok");
}

#[test]
fn a_deep_state_directory_is_served() {
    let repo = Repo::new();
    let deep = repo.outside().join("d".repeat(60)).join("e".repeat(60));
    repo.settings(&format!("[state]\ndir = {:?}\n", Path::new(&deep)));
    let mut server = start(&repo, &[]);
    let check = repo.call(&["serve", "--check"]).exits(0);
    assert!(check.stdout.contains("true"));
    server.signal(Signal::INT);
    assert_eq!(server.over(), Some(0));
}

#[test]
fn the_configuration_names_what_is_served() {
    let (repo, other) = (Repo::new(), Repo::new());
    let outside = repo.outside().display().to_string();
    repo.settings(&format!("[serve]\nworkspaces = [{:?}, {:?}]\n", repo.path(""), other.path("")));
    let mut command = repo.worktx(&["serve"]);
    let server = started(command.current_dir(&outside), &repo);
    assert!(server.said.contains("serving 2 work trees"), "{}", server.said);
    let check = |words: &[&str]| repo.finish(repo.worktx(words).current_dir(&outside));
    assert!(check(&["serve", "--check"]).exits(0).stdout.contains("true"));
    let tree = other.path("").display().to_string();
    check(&["serve", "--check", "--workspace", &tree]).exits(0);
    drop(server);
    repo.settings("[serve]\nworkspaces = [\"here\"]\n");
    let wrong = repo.call(&["serve"]).exits(1);
    assert!(wrong.stderr.contains("must be absolute"), "{}", wrong.stderr);
}
