//! The resident coordinator and the guard, by the real binary. Requests are written by hand, so
//! that what is asked is what stands here.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::lab::Midway;
use crate::readers::fits;
use crate::support::{Ran, Repo};

/// A server that is killed at the end of its test.
struct Server {
    child: Child,
    state: PathBuf,
    /// What it said when it was ready.
    said: String,
    log: BufReader<std::process::ChildStderr>,
}

/// What was answered.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    #[track_caller]
    fn is(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.json()
    }
}

fn start(repo: &Repo, words: &[&str]) -> Server {
    let mut command = repo.worktx(&["serve"]);
    let mut child = command.args(words).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut log = BufReader::new(child.stderr.take().expect("piped"));
    let mut said = String::new();
    let mut line = String::new();
    while !line.starts_with("worktx: serving") {
        line.clear();
        let count = log.read_line(&mut line).expect("readable");
        said.push_str(&line);
        assert!(count > 0, "it is not ready: {said}");
    }
    Server { child, state: repo.git_dir().join("worktx"), said, log }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn talk(stream: impl std::io::Read + std::io::Write, request: &str) -> Answer {
    let mut stream = stream;
    stream.write_all(request.as_bytes()).expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answered");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        unchunked(body)
    } else {
        body.to_owned()
    };
    Answer { status, head: head.to_owned(), body }
}

fn unchunked(mut text: &str) -> String {
    let mut all = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        all.push_str(&rest[..size]);
        text = rest[size..].trim_start_matches("\r\n");
    }
    all
}

fn request(method: &str, path: &str, headers: &str, body: Option<&Value>) -> String {
    let body = body.map(Value::to_string).unwrap_or_default();
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}{kind}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

impl Server {
    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.state.join("serve.sock")).expect("it listens")
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        talk(self.connect(), &request(method, path, "", body))
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, None)
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, Some(body))
    }

    #[track_caller]
    fn submit(&self, id: &str, script: &str) {
        let body = json!({ "execution_id": id, "command": ["sh", "-c", script] });
        self.post("/v1/executions", &body).is(201);
    }

    /// Waits for the end of a submission.
    #[track_caller]
    fn end_of(&self, id: &str) -> Value {
        let document = self.get(&format!("/v1/executions/{id}?wait=60s")).is(200);
        assert_eq!(document["phase"], "finished", "{document:#}");
        document
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it lives");
    }

    /// Until it is gone; its exit code.
    fn over(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

#[test]
fn a_submission_lands_and_everything_is_told() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    let body = json!({
        "execution_id": "one", "env": { "GREETING": "hello" }, "stdin": "from stdin\n",
        "command": ["sh", "-c", "cat > new.txt; echo $GREETING; echo talk >&2"],
    });
    let answer = server.post("/v1/executions", &body);
    assert!(answer.head.contains("location: /v1/executions/one"), "{}", answer.head);
    answer.is(201);
    let document = server.end_of("one");
    assert_eq!(document["exit_code"], 0);
    fits("outcome", &document["outcome"]);
    fits("show", &document["history"]);
    assert_eq!(document["outcome"]["commit"], repo.head());
    assert_eq!(repo.read("new.txt"), "from stdin\n");
    assert_eq!(repo.status(), "");
    assert_eq!(server.get("/v1/executions/one/output/stdout").body, "hello\n");
    let stderr = server.get("/v1/executions/one/output/stderr").body;
    assert!(stderr.starts_with("talk\nworktx: committed "), "{stderr}");
    fits("diff", &server.get("/v1/executions/one/diff").is(200));
    let patch = server.get("/v1/executions/one/diff?format=patch").body;
    assert!(patch.contains("+from stdin"), "{patch}");
    fits("events", &server.get("/v1/executions/one/events").is(200));
    fits("list", &server.get("/v1/executions?limit=5").is(200));
    let stream = server.get("/v1/executions/one/events?follow=true").body;
    let kinds: Vec<&str> = stream.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(kinds.len().to_string(), repo.sql("select count(*) from event"), "{stream}");
    let page = server.get("/metrics").body;
    for line in [
        "worktx_attempts_total{outcome=\"committed\"} 1",
        "worktx_gate_verdicts_total{verdict=\"won\"} 1",
        "worktx_drivers 0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
    repo.fsck();
}

#[test]
fn the_same_request_again_runs_nothing() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    let body =
        json!({ "execution_id": "job", "command": ["sh", "-c", "echo run >> runs; exit 3"] });
    server.post("/v1/executions", &body).is(201);
    let document = server.end_of("job");
    assert_eq!(
        (&document["exit_code"], &document["outcome"]["reason"]),
        (&10.into(), &"turn_failed".into())
    );
    let again = server.post("/v1/executions", &body).is(200);
    assert_eq!((&again["existed"], &again["phase"]), (&true.into(), &"finished".into()));
    assert_eq!(repo.sql("select count(*) from attempt"), "1");
    let mut other = body.clone();
    other["command"][2] = "true".into();
    let problem = server.post("/v1/executions", &other).is(409);
    assert_eq!(problem["reason"], "impossible");
    assert!(problem["message"].as_str().is_some_and(|text| text.contains("another request")));
    other["retry"] = true.into();
    server.post("/v1/executions", &other).is(201);
    assert_eq!(server.end_of("job")["exit_code"], 0);
    assert_eq!(repo.sql("select count(*) from attempt"), "2");
}

#[test]
fn what_makes_no_sense_is_said() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    for (body, word) in [
        (json!({ "command": [] }), "command"),
        (json!({ "command": ["true"], "timeout": "soon" }), "timeout"),
        (json!({ "command": ["true"], "execution_id": "a/b" }), "execution_id"),
    ] {
        let problem = server.post("/v1/executions", &body).is(400);
        assert!(problem["message"].as_str().is_some_and(|text| text.contains(word)), "{problem}");
    }
    assert_eq!(server.post("/v1/executions", &json!({ "comand": ["true"] })).status, 422);
    let elsewhere = json!({ "command": ["true"], "workspace": "/" });
    assert_eq!(server.post("/v1/executions", &elsewhere).is(409)["hint"], "GET /v1/workspaces");
    assert_eq!(server.get("/v1/executions/none").is(404)["reason"], "no_execution");
    assert_eq!(server.get("/nothing").is(404)["reason"], "not_found");
    assert_eq!(server.ask("DELETE", "/v1/health", None).status, 405);
    let large = 17 << 20;
    let text = format!(
        "POST /v1/executions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n\
         Content-Length: {large}\r\n\r\n"
    );
    // Refused before any of it is read.
    let mut stream = BufReader::new(server.connect());
    stream.get_mut().write_all(text.as_bytes()).expect("sent");
    let mut line = String::new();
    stream.read_line(&mut line).expect("answered");
    assert!(line.starts_with("HTTP/1.1 413 "), "{line}");
    assert_eq!(repo.sql("select count(*) from attempt"), "0");
}

#[test]
fn every_route_of_the_description_is_answered() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    server.submit("one", "echo x > x");
    server.end_of("one");
    let api = server.get("/v1/openapi.json").is(200);
    for (path, methods) in api["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            if path == "/v1/events" {
                // It has no end.
                continue;
            }
            let filled = path
                .replace("{id}", "one")
                .replace("{stream}", "stdout")
                .replace("{lease}", "none");
            let body = (method == "post").then(|| json!({}));
            let answer = server.ask(&method.to_uppercase(), &filled, body.as_ref());
            let reason =
                serde_json::from_str(&answer.body).unwrap_or(Value::Null)["reason"].clone();
            assert!(
                answer.status != 405 && reason != "not_found",
                "{method} {path}: {}",
                answer.body
            );
        }
    }
}

#[test]
fn one_at_a_time_on_a_tree_and_trees_do_not_wait_for_each_other() {
    let (one, two) = (Repo::new(), Repo::new());
    let second = two.root.display().to_string();
    let server = start(&one, &[&one.root.display().to_string(), &second]);
    let midway = Midway::named(&one, "");
    let first = one.root.display().to_string();
    let on = |tree: &str, id: &str, script: &str| {
        let body = json!({
            "execution_id": id, "workspace": tree, "command": ["sh", "-c", script],
        });
        server.post("/v1/executions", &body).is(201);
    };
    on(&first, "slow", &format!("echo slow > order; {}", midway.words()));
    on(&first, "next", "echo next >> order");
    midway.meanwhile(|| {
        on(&second, "other", "echo other > other");
        assert_eq!(server.end_of("other")["exit_code"], 0);
        assert_eq!(server.get("/v1/executions/next").is(200)["phase"], "queued");
        let document = server.get("/v1/workspaces").is(200);
        let tree = &document["workspaces"][0];
        assert_eq!((&tree["running"], &tree["queued"]), (&"slow".into(), &1.into()));
    });
    assert_eq!(server.end_of("next")["exit_code"], 0);
    assert_eq!(one.read("order"), "slow\nnext\n");
    assert_eq!((one.status(), two.status()), (String::new(), String::new()));
    let missing = json!({ "command": ["true"] });
    server.post("/v1/executions", &missing).is(400);
}

#[test]
fn a_killed_server_loses_nothing() {
    let repo = Repo::new();
    let mut server = start(&repo, &[]);
    let midway = Midway::named(&repo, "");
    server.submit("runs", &format!("echo once >> runs; {}", midway.words()));
    server.submit("dropped", "echo dropped > dropped");
    server.submit("waits", "echo waits > waits");
    midway.meanwhile(|| {
        let answer = server.post("/v1/executions/dropped/cancel", &json!({})).is(200);
        assert_eq!(answer["verdict"], "not_begun");
        server.signal(Signal::KILL);
        server.over();
        server = start(&repo, &[]);
        let document = server.get("/v1/executions/runs").is(200);
        assert_eq!(document["phase"], "running", "{}", server.said);
    });
    let document = server.end_of("runs");
    assert_eq!(document["outcome"]["outcome"], "committed");
    assert_eq!(server.end_of("waits")["exit_code"], 0);
    assert_eq!(server.end_of("dropped")["exit_code"], 13);
    assert_eq!((repo.read("runs").as_str(), repo.read("waits").as_str()), ("once\n", "waits\n"));
    assert!(!repo.path("dropped").exists());
    assert_eq!(repo.sql("select count(*) from attempt"), "2");
    // A third server finds all of it over.
    server.signal(Signal::KILL);
    server.over();
    let server = start(&repo, &[]);
    assert_eq!(server.end_of("runs")["outcome"]["outcome"], "committed");
    assert_eq!(repo.sql("select count(*) from attempt"), "2");
    repo.fsck();
}

#[test]
fn what_dies_with_its_server_is_shown_by_the_next() {
    let repo = Repo::new();
    let before = repo.listing();
    let mut server = start(&repo, &[]);
    let midway = Midway::named(&repo, "");
    server.submit("dies", &format!("echo left > left; {}", midway.words()));
    midway.ready.wait();
    let driver = repo.sql("select json_extract(owner, '$.process.pid') from attempt");
    let driver = Pid::from_raw(driver.parse().expect("a pid")).expect("a pid");
    // A container that goes takes all of it at once.
    server.signal(Signal::KILL);
    kill_process(driver, Signal::KILL).expect("it lives");
    server.over();
    let server = start(&repo, &[]);
    let document = server.end_of("dies");
    let attempt = &document["history"]["attempts"][0];
    // Nothing recorded what it left: an operator decides.
    assert_eq!(attempt["state"], "quarantined", "{attempt:#}");
    assert_eq!((&attempt["reason"], &document["exit_code"]), (&"interrupted".into(), &Value::Null));
    let discard = json!({ "decision": "discard" });
    server.post("/v1/executions/dies/resolve", &discard).is(200);
    assert_eq!(repo.listing(), before);
    assert_eq!(repo.sql("select count(*) from attempt"), "1", "it is not begun again by itself");
}

#[test]
fn two_repositories_may_have_one_id() {
    let (one, two) = (Repo::new(), Repo::new());
    let roots = [one.root.display().to_string(), two.root.display().to_string()];
    let server = start(&one, &[&roots[0], &roots[1]]);
    let midway = Midway::named(&one, "");
    let scripts = [midway.words(), "echo here > here".to_owned()];
    for (root, script) in roots.iter().zip(&scripts) {
        let body = json!({
            "execution_id": "nightly", "workspace": root, "command": ["sh", "-c", script],
        });
        server.post("/v1/executions", &body).is(201);
    }
    let end = |root: &str| {
        server.get(&format!("/v1/executions/nightly?wait=60s&workspace={root}")).is(200)
    };
    midway.meanwhile(|| assert_eq!(end(&roots[1])["phase"], "finished"));
    let document = end(&roots[0]);
    assert_eq!(
        (&document["exit_code"], &document["workspace"]),
        (&0.into(), &roots[0].as_str().into())
    );
    assert_eq!(two.read("here"), "here\n");
}

#[test]
fn a_whole_id_goes_before_the_beginning_of_another() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    let midway = Midway::named(&repo, "");
    server.submit("job-10", &midway.words());
    server.submit("job-1", "echo one > one");
    server.submit("-x", "echo dash > dash");
    midway.meanwhile(|| {
        let answer = server.post("/v1/executions/job-1/cancel", &json!({})).is(200);
        assert_eq!(
            (&answer["execution_id"], &answer["verdict"]),
            (&"job-1".into(), &"not_begun".into())
        );
    });
    assert_eq!(server.end_of("job-10")["exit_code"], 0);
    assert_eq!(server.end_of("-x")["exit_code"], 0);
    assert!(repo.path("dash").exists() && !repo.path("one").exists());
}

#[test]
fn a_retry_that_waits_outlives_its_server() {
    let repo = Repo::new();
    let mut server = start(&repo, &[]);
    let failing =
        json!({ "execution_id": "job", "stdin": "old", "command": ["sh", "-c", "cat; exit 1"] });
    server.post("/v1/executions", &failing).is(201);
    assert_eq!(server.end_of("job")["exit_code"], 10);
    let midway = Midway::named(&repo, "");
    server.submit("first", &midway.words());
    let retry = json!({
        "execution_id": "job", "retry": true, "command": ["sh", "-c", "cat > input; echo again > again"],
    });
    server.post("/v1/executions", &retry).is(201);
    midway.meanwhile(|| {
        server.signal(Signal::KILL);
        server.over();
        server = start(&repo, &[]);
        assert_eq!(server.get("/v1/executions/job").is(200)["phase"], "queued");
    });
    assert_eq!(server.end_of("job")["exit_code"], 0);
    assert_eq!((repo.read("again").as_str(), repo.read("input").as_str()), ("again\n", ""));
}

#[test]
fn what_may_have_run_without_a_transaction_is_not_run_again() {
    let repo = Repo::new();
    let mut server = start(&repo, &[]);
    let midway = Midway::named(&repo, "");
    let runs = repo.outside().join("runs");
    let script = format!("echo run >> {}; {}", runs.display(), midway.words());
    let body = json!({
        "execution_id": "care", "triggered_by": "maintenance", "command": ["sh", "-c", script],
    });
    server.post("/v1/executions", &body).is(201);
    midway.ready.wait();
    let drivers = std::process::Command::new("pgrep").args(["-f", "execution-id=care"]).output();
    let drivers = String::from_utf8(drivers.expect("pgrep starts").stdout).expect("text");
    server.signal(Signal::KILL);
    for driver in drivers.split_whitespace() {
        let pid = Pid::from_raw(driver.parse().expect("a pid")).expect("a pid");
        let _ = kill_process(pid, Signal::KILL);
    }
    server.over();
    let server = start(&repo, &[]);
    let document = server.end_of("care");
    let reason = &document["outcome"]["reason"];
    assert_eq!(reason, "not_known", "{document:#}");
    assert_eq!(std::fs::read_to_string(runs).expect("readable"), "run\n");
}

#[test]
fn no_command_gets_the_fence_of_its_claim() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    let asked = |token: &str| {
        json!({
            "execution_id": "claimed", "claim_token": token, "command": ["sh", "-c", "env > env; env"],
        })
    };
    server.post("/v1/executions", &asked("first-token")).is(201);
    server.end_of("claimed");
    let seen = server.get("/v1/executions/claimed/output/stdout").body;
    assert!(
        seen.contains("WORKTX_EXECUTION_ID=claimed") && !seen.contains("first-token"),
        "{seen}"
    );
    let kept = server.state.join("submitted/claimed/request.json");
    assert!(!std::fs::read_to_string(kept).expect("readable").contains("first-token"));
    // A claim that is delivered again has another token, and is the same request.
    assert_eq!(server.post("/v1/executions", &asked("second-token")).is(200)["existed"], true);
}

#[test]
fn a_wait_for_the_workspace_ends_with_a_signal() {
    let repo = Repo::new();
    let midway = Midway::named(&repo, "");
    let guard = repo.spawn(&mut repo.worktx(&["guard", "--", "sh", "-c", &midway.words()]));
    midway.meanwhile(|| {
        let mut waiting = repo.run_command(&["--wait", "1h"], "true");
        let waiting = repo.spawn(waiting.env("WORKTX_LOG", "worktx=debug"));
        // It sleeps between two tries only once it handles signals.
        let handles = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", waiting.id()));
            let caught = status.expect("it lives");
            let caught =
                caught.lines().find_map(|line| line.strip_prefix("SigCgt:\t").map(str::to_owned));
            u64::from_str_radix(&caught.expect("a mask"), 16).expect("a number") & (1 << 14) != 0
        };
        while !handles() {
            std::thread::yield_now();
        }
        kill_process(Pid::from_child(&waiting), Signal::TERM).expect("it lives");
        Repo::wait(waiting).exits(22);
    });
    Repo::wait(guard).exits(0);
    // Within a turn its own tree is busy, and no wait helps.
    let inside = "worktx guard -- true; echo $? > code";
    let mut command = repo.run_command(&[], inside);
    repo.finish(command.env("PATH", crate::support::path_with_worktx())).exits(0);
    assert_eq!(repo.read("code"), "22\n");
}

#[test]
fn what_cannot_be_started_says_why() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    let body = json!({ "execution_id": "job", "command": ["true"], "cwd": "nowhere" });
    server.post("/v1/executions", &body).is(201);
    let document = server.end_of("job");
    fits("outcome", &document["outcome"]);
    assert_eq!(document["outcome"]["reason"], "not_started");
    let body = json!({ "execution_id": "none", "command": ["no-such-program"] });
    server.post("/v1/executions", &body).is(201);
    let document = server.end_of("none");
    assert_eq!(document["exit_code"], 1);
    assert_eq!(document["outcome"]["reason"], "command_not_found");
}

#[test]
fn a_drain_reaches_what_an_earlier_server_began() {
    let repo = Repo::new();
    let before = repo.listing();
    let mut server = start(&repo, &[]);
    let midway = Midway::named(&repo, "");
    server.submit("job", &format!("echo left > left; {}", midway.words()));
    midway.ready.wait();
    server.signal(Signal::KILL);
    server.over();
    let mut server = start(&repo, &["--drain", "0s"]);
    server.signal(Signal::TERM);
    assert_eq!(server.over(), Some(0));
    assert_eq!(repo.listing(), before);
    assert_eq!(repo.sql("select state from attempt"), "rolled_back");
}

#[test]
fn what_runs_by_hand_is_followed_too() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    let midway = Midway::named(&repo, "");
    let run = repo.spawn(&mut repo.run_command(&["--execution-id", "hand"], &midway.words()));
    midway.ready.wait();
    let mut stream = BufReader::new(server.connect());
    let path = "/v1/executions/hand/events?follow=true";
    stream.get_mut().write_all(request("GET", path, "", None).as_bytes()).expect("sent");
    let mut seen = String::new();
    while !seen.contains("turn_started") {
        assert!(stream.read_line(&mut seen).expect("readable") > 0, "{seen}");
    }
    midway.go.open();
    stream.read_to_string(&mut seen).expect("to its end");
    assert!(seen.contains("\"event\":\"finished\""), "{seen}");
    Repo::wait(run).exits(0);
}

#[test]
fn a_cancel_reaches_a_turn() {
    let repo = Repo::new();
    let before = repo.listing();
    let server = start(&repo, &[]);
    let midway = Midway::named(&repo, "");
    server.submit("job", &format!("echo left > left; {}", midway.words()));
    midway.ready.wait();
    let answer = server.post("/v1/executions/job/cancel", &json!({})).is(200);
    fits("cancel", &answer);
    assert_eq!(answer["verdict"], "won");
    let document = server.end_of("job");
    assert_eq!(document["exit_code"], 13);
    assert_eq!(repo.listing(), before);
    let again = server.post("/v1/executions/job/cancel", &json!({})).is(200);
    assert_eq!(
        (&again["verdict"], &again["execution_status"]),
        (&"lost".into(), &"cancelled".into())
    );
}

#[test]
fn sigterm_drains_and_a_second_one_leaves_at_once() {
    let repo = Repo::new();
    let before = repo.listing();
    let mut server = start(&repo, &["--drain", "0s"]);
    let midway = Midway::named(&repo, "");
    server.submit("job", &format!("echo left > left; {}", midway.words()));
    server.submit("kept", "echo kept > kept");
    midway.ready.wait();
    server.signal(Signal::TERM);
    assert_eq!(server.over(), Some(0));
    assert_eq!(repo.listing(), before, "interrupted, and rolled back before the server went");
    assert_eq!(repo.sql("select state from attempt"), "rolled_back");

    let mut server = start(&repo, &["--drain", "1h"]);
    assert_eq!(server.end_of("kept")["exit_code"], 0);
    let midway = Midway::named(&repo, "-second");
    server.submit("goes-on", &format!("echo on > on; {}", midway.words()));
    midway.meanwhile(|| {
        server.signal(Signal::TERM);
        let mut line = String::new();
        while !line.contains("told to end") {
            line.clear();
            assert!(server.log.read_line(&mut line).expect("readable") > 0);
        }
        let body = json!({ "command": ["true"] });
        assert_eq!(server.post("/v1/executions", &body).is(503)["reason"], "draining");
        assert_eq!(server.get("/v1/ready").status, 503);
        server.signal(Signal::TERM);
        assert_eq!(server.over(), Some(0));
    });
    // Its driver goes on: the next server waits for it.
    let server = start(&repo, &[]);
    assert_eq!(server.end_of("goes-on")["outcome"]["outcome"], "committed");
}

#[test]
fn output_and_events_are_followed_to_their_end() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    let mut all = BufReader::new(server.connect());
    all.get_mut().write_all(request("GET", "/v1/events", "", None).as_bytes()).expect("sent");
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        all.read_line(&mut line).expect("the head");
    }
    let midway = Midway::named(&repo, "");
    server.submit("job", &format!("echo first; {}; echo second", midway.words()));
    midway.ready.wait();
    let mut output = BufReader::new(server.connect());
    let path = "/v1/executions/job/output/stdout?follow=true";
    output.get_mut().write_all(request("GET", path, "", None).as_bytes()).expect("sent");
    let mut seen = String::new();
    while !seen.contains("first\n") {
        assert!(output.read_line(&mut seen).expect("readable") > 0, "{seen}");
    }
    midway.go.open();
    output.read_to_string(&mut seen).expect("to its end");
    assert!(seen.contains("second\n"), "{seen}");
    let mut seen = String::new();
    while !seen.contains("\"event\":\"finished\"") {
        assert!(all.read_line(&mut seen).expect("readable") > 0, "{seen}");
    }
    assert!(seen.contains("\"event\":\"opened\""), "{seen}");
}

#[test]
fn an_operator_decides_over_the_socket() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    // A branch that somebody moved is nobody's to undo.
    let script = "echo left > left; git update-ref refs/heads/main \
                  $(git commit-tree -m other HEAD^{tree}); exit 1";
    server.submit("stuck", script);
    let document = server.end_of("stuck");
    assert_eq!(document["exit_code"], 20, "{document:#}");
    let tree = server.get("/v1/workspaces").is(200)["workspaces"][0].clone();
    assert_eq!((&tree["unsettled"], &tree["quarantined"]), (&1.into(), &1.into()));
    let wrong = json!({ "decision": "perhaps" });
    server.post("/v1/executions/stuck/resolve", &wrong).is(400);
    let guard = server.post("/v1/guard", &json!({})).is(409);
    assert!(guard["message"].as_str().is_some_and(|text| text.contains("not settled")), "{guard}");
    let refused = repo.call(&["guard", "--", "true"]);
    assert!(
        refused.code == 1 && refused.stderr.contains("worktx show stuck"),
        "{}",
        refused.stderr
    );
    let answer =
        server.post("/v1/executions/stuck/resolve", &json!({ "decision": "keep" })).is(200);
    fits("resolve", &answer);
    assert_eq!(repo.sql("select state from attempt"), "released");
    let again = server.post("/v1/executions/stuck/resolve", &json!({ "decision": "keep" })).is(409);
    assert!(again["message"].as_str().is_some_and(|text| text.contains("stuck")), "{again}");
}

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
