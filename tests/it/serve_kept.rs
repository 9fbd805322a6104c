//! What a server has taken is kept and runs once: through drains, cancels, retries, kills, and when
//! its work tree is served elsewhere.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::lab::Midway;
use crate::server::{Server, request, start, talk};
use crate::support::Repo;

/// The driver of a submission.
fn driver(server: &Server, id: &str) -> Pid {
    let path = server.state.join("submitted").join(id).join("driver.json");
    let text = loop {
        // Written by the server, as soon as there is one.
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.is_empty() => break text,
            _ => std::thread::yield_now(),
        }
    };
    let said: Value = serde_json::from_str(&text).expect("a document");
    let pid = said["process"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    Pid::from_raw(pid.expect("a pid")).expect("a pid")
}

/// The driver of a submission, once it handles signals: then it waits for its work tree.
fn waiting(server: &Server, id: &str) -> Pid {
    let pid = driver(server, id);
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
        let status = status.expect("it lives");
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t"));
        let caught = u64::from_str_radix(caught.expect("a mask"), 16).expect("a number");
        // SIGTERM, by the handler that comes after the one for SIGINT.
        if caught & (1 << 14) != 0 {
            return pid;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_drain_keeps_what_waits_for_its_work_tree() {
    let repo = Repo::new();
    let midway = Midway::named(&repo, "");
    let guard = repo.spawn(&mut repo.worktx(&["guard", "--", "sh", "-c", &midway.words()]));
    let mut server = start(&repo, &["--drain", "0s"]);
    server.submit("waits", "echo waits > waits");
    server.submit("behind", "echo behind > behind");
    let care = json!({
        "execution_id": "care", "triggered_by": "maintenance", "command": ["sh", "-c", "echo care > ignored"],
    });
    midway.ready.wait();
    waiting(&server, "waits");
    server.signal(Signal::TERM);
    assert_eq!(server.over(), Some(0));
    let mut server = start(&repo, &["--drain", "0s"]);
    server.post("/v1/executions", &care).is(201);
    for id in ["waits", "behind", "care"] {
        assert_ne!(server.get(&format!("/v1/executions/{id}")).is(200)["phase"], "finished");
    }
    waiting(&server, "waits");
    server.signal(Signal::TERM);
    assert_eq!(server.over(), Some(0));
    midway.go.open();
    Repo::wait(guard).exits(0);
    let server = start(&repo, &[]);
    for id in ["waits", "behind", "care"] {
        assert_eq!(server.end_of(id)["exit_code"], 0, "{id}");
    }
    assert_eq!((repo.read("waits"), repo.read("behind")), ("waits\n".into(), "behind\n".into()));
    assert_eq!(repo.sql("select count(*) from attempt"), "2");
}

#[test]
fn a_driver_that_only_waited_is_no_end_of_its_submission() {
    let repo = Repo::new();
    let midway = Midway::named(&repo, "");
    let guard = repo.spawn(&mut repo.worktx(&["guard", "--", "sh", "-c", &midway.words()]));
    let mut server = start(&repo, &[]);
    midway.ready.wait();
    server.submit("waits", "echo waits > waits");
    let mut pid = waiting(&server, "waits");
    // A server that lives begins it again.
    for signal in [Signal::TERM, Signal::KILL] {
        kill_process(pid, signal).expect("it lives");
        while driver(&server, "waits") == pid {
            std::thread::yield_now();
        }
        pid = waiting(&server, "waits");
    }
    // All of a service is told to end at once, and the server does not live to hear of it.
    server.signal(Signal::KILL);
    server.over();
    kill_process(pid, Signal::TERM).expect("it lives");
    let lock =
        std::fs::File::open(server.state.join("submitted/waits/driver.lock")).expect("there");
    lock.lock().expect("it ends");
    drop(lock);
    let said = std::fs::read_to_string(server.state.join("submitted/waits/outcome.json"));
    let said: Value = serde_json::from_str(&said.expect("left")).expect("a document");
    assert_eq!((&said["outcome"], &said["reason"]), (&"busy".into(), &"wait_ended".into()));
    let server = start(&repo, &[]);
    assert_ne!(server.get("/v1/executions/waits").is(200)["phase"], "finished");
    midway.go.open();
    Repo::wait(guard).exits(0);
    assert_eq!(server.end_of("waits")["exit_code"], 0);
    assert_eq!(repo.read("waits"), "waits\n");
}

#[test]
fn a_driver_that_is_killed_is_no_end_without_an_outcome() {
    let repo = Repo::new();
    let midway = Midway::named(&repo, "");
    let guard = repo.spawn(&mut repo.worktx(&["guard", "--", "sh", "-c", &midway.words()]));
    let server = start(&repo, &[]);
    midway.meanwhile(|| {
        server.submit("killed", "echo killed > killed");
        let mut pid = waiting(&server, "killed");
        for _ in 0..2 {
            kill_process(pid, Signal::KILL).expect("it lives");
            while driver(&server, "killed") == pid {
                std::thread::yield_now();
            }
            pid = waiting(&server, "killed");
        }
        kill_process(pid, Signal::KILL).expect("it lives");
        let document = server.end_of("killed");
        assert_eq!(
            (&document["exit_code"], &document["outcome"]["reason"]),
            (&1.into(), &"not_started".into())
        );
    });
    Repo::wait(guard).exits(0);
    let inside = Midway::named(&repo, "inside");
    let body = json!({
        "execution_id": "care", "triggered_by": "maintenance", "command": ["sh", "-c", inside.words()],
    });
    server.post("/v1/executions", &body).is(201);
    inside.ready.wait();
    kill_process(driver(&server, "care"), Signal::KILL).expect("it lives");
    let document = server.end_of("care");
    assert_eq!(
        (&document["exit_code"], &document["outcome"]["reason"]),
        (&1.into(), &"not_known".into())
    );
    assert_eq!(repo.sql("select count(*) from attempt"), "0");
    // There is nothing left to cancel, and no row that could say so.
    let answer = server.post("/v1/executions/care/cancel", &json!({})).is(409);
    assert_eq!(answer["hint"], "GET /v1/executions/care");
}

#[test]
fn a_cancel_of_what_waits_for_its_work_tree_is_its_end() {
    let repo = Repo::new();
    let midway = Midway::named(&repo, "");
    let guard = repo.spawn(&mut repo.worktx(&["guard", "--", "sh", "-c", &midway.words()]));
    let mut server = start(&repo, &[]);
    midway.meanwhile(|| {
        server.submit("own", "echo own > own");
        waiting(&server, "own");
        let answer = server.post("/v1/executions/own/cancel", &json!({})).is(200);
        assert_eq!(answer["verdict"], "interrupted");
        let document = server.end_of("own");
        assert_eq!((&document["exit_code"], &document["outcome"]), (&13.into(), &Value::Null));
        // Also one that an earlier server began.
        server.submit("adopted", "echo adopted > adopted");
        waiting(&server, "adopted");
        server.signal(Signal::KILL);
        server.over();
        server = start(&repo, &[]);
        let answer = server.post("/v1/executions/adopted/cancel", &json!({})).is(200);
        assert_eq!(answer["verdict"], "interrupted");
        assert_eq!(server.end_of("adopted")["exit_code"], 13);
    });
    Repo::wait(guard).exits(0);
    assert_eq!(repo.sql("select count(*) from attempt"), "0");
    assert!(!repo.path("own").exists() && !repo.path("adopted").exists());
}

#[test]
fn a_cancel_at_any_moment_is_an_end() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    for number in 0..12 {
        let id = format!("job-{number}");
        server.submit(&id, "exec sleep 600");
        // It meets the driver before it is there, before it handles signals, and in its attempt.
        for _ in 0..number * 20 {
            std::thread::yield_now();
        }
        let answer = loop {
            let answer = server.post(&format!("/v1/executions/{id}/cancel"), &json!({}));
            if answer.status == 200 {
                break answer.json();
            }
        };
        assert_eq!(server.end_of(&id)["exit_code"], 13, "{answer}");
    }
}

#[test]
fn a_cancel_waits_for_what_is_being_taken() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    // Beyond the bound the finished ones are looked at, while a request that came is on the disk
    // already and not in the queue: one that is a pipe holds that moment.
    let submitted = server.state.join("submitted");
    for number in 0..500 {
        std::fs::create_dir_all(submitted.join(format!("old-{number}"))).expect("made");
    }
    let held = submitted.join("old-0/finished.json");
    let made = std::process::Command::new("mkfifo").arg(&held).status().expect("it starts");
    assert!(made.success());
    let body = json!({ "execution_id": "job", "command": ["sleep", "600"] });
    let mut submits = server.connect();
    let asked = request("POST", "/v1/executions", "", Some(&body));
    submits.write_all(asked.as_bytes()).expect("sent");
    let mut finished = std::fs::OpenOptions::new().write(true).open(&held).expect("it is read");
    assert!(submitted.join("job/request.json").exists());
    let mut cancels = server.connect();
    let asked = request("POST", "/v1/executions/job/cancel", "", Some(&json!({})));
    cancels.write_all(asked.as_bytes()).expect("sent");
    // The server has taken the cancel: it answers another request that came later.
    server.get("/v1/health").is(200);
    finished.write_all(b"{\"exit_code\":0,\"at\":\"2026\"}").expect("read");
    drop(finished);
    assert_eq!(talk(submits, "").is(201)["phase"], "queued");
    let mut answer = talk(cancels, "");
    while answer.status != 200 {
        answer = server.post("/v1/executions/job/cancel", &json!({}));
    }
    let verdict = answer.json()["verdict"].clone();
    let document = server.end_of("job");
    assert_eq!(document["exit_code"], 13, "{verdict}: {document:#}");
    assert!(verdict != "not_begun" || document["history"].is_null(), "{document:#}");
}

#[test]
fn a_success_is_not_tried_again() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    let asked = |word: &str| json!({ "execution_id": "job", "retry": true, "command": ["sh", "-c", format!("echo {word}; echo {word} > file")] });
    server.post("/v1/executions", &asked("first")).is(201);
    assert_eq!(server.end_of("job")["exit_code"], 0);
    let again = server.post("/v1/executions", &asked("first")).is(200);
    assert_eq!((&again["existed"], &again["phase"]), (&true.into(), &"finished".into()));
    let other = server.post("/v1/executions", &asked("second")).is(409);
    assert_eq!(other["reason"], "impossible");
    assert_eq!(server.get("/v1/executions/job/output/stdout").body, "first\n");
    assert_eq!(repo.read("file"), "first\n");
}

#[test]
fn an_end_that_could_not_be_written_down_is_one() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    let runs = repo.outside().join("runs");
    let way = server.state.join("submitted/job/finished.json");
    let script = format!("echo run >> {}; mkdir {}; exit 3", runs.display(), way.display());
    let body = json!({ "execution_id": "job", "command": ["sh", "-c", script] });
    server.post("/v1/executions", &body).is(201);
    assert_eq!(server.end_of("job")["exit_code"], 10);
    let again = server.post("/v1/executions", &body).is(200);
    assert_eq!((&again["existed"], &again["phase"]), (&true.into(), &"finished".into()));
    assert_eq!(std::fs::read_to_string(runs).expect("readable"), "run\n");
    assert_eq!(repo.sql("select count(*) from attempt"), "1");
}

#[test]
fn a_moved_work_tree_takes_its_submissions_with_it() {
    let mut repo = Repo::new();
    let mut server = start(&repo, &[]);
    server.post("/v1/guard", &json!({ "ttl": "10m" })).is(200);
    let body = json!({ "execution_id": "waits", "command": ["sh", "-c", "pwd > where"] });
    server.post("/v1/executions", &body).is(201);
    server.signal(Signal::KILL);
    server.over();
    let moved = repo.outside().join("moved");
    std::fs::rename(&repo.root, &moved).expect("moved");
    repo.root = moved;
    let server = start(&repo, &[]);
    let again = server.post("/v1/executions", &body).is(200);
    assert_eq!(again["existed"], true);
    assert_eq!(server.end_of("waits")["exit_code"], 0);
    assert_eq!(repo.read("where").trim_end(), repo.root.display().to_string());
    assert_eq!(repo.sql("select count(*) from attempt"), "1");
}

#[test]
fn what_comes_for_a_tree_that_is_gone_waits_for_it() {
    let repo = Repo::new();
    let side = repo.outside().join("side");
    let name = side.display().to_string();
    repo.git(&["worktree", "add", "-q", &name]);
    let mut server = start(&repo, &[&repo.root.display().to_string(), &name, "--max-running", "1"]);
    let away = repo.outside().join("away");
    std::fs::rename(&side, &away).expect("moved");
    for id in ["waits", "dropped"] {
        let body = json!({ "execution_id": id, "workspace": name, "command": ["touch", id] });
        server.post("/v1/executions", &body).is(201);
    }
    let mut line = String::new();
    while !line.contains("waits for a work tree that is gone") {
        line.clear();
        server.log.read_line(&mut line).expect("readable");
        assert!(!line.contains("no driver could be started"), "{line}");
    }
    assert_eq!(server.get("/v1/executions/waits").is(200)["phase"], "queued");
    let answer = server.post("/v1/executions/dropped/cancel", &json!({})).is(200);
    assert_eq!(answer["verdict"], "not_begun");
    // It keeps nobody from the only slot.
    let body = json!({ "execution_id": "other", "workspace": repo.root, "command": ["true"] });
    server.post("/v1/executions", &body).is(201);
    assert_eq!(server.end_of("other")["exit_code"], 0);
    std::fs::rename(&away, &side).expect("moved back");
    assert_eq!(server.end_of("waits")["exit_code"], 0);
    assert!(side.join("waits").exists() && !side.join("dropped").exists());
}

#[test]
fn what_waits_for_a_tree_that_is_not_served_waits() {
    let repo = Repo::new();
    let side = repo.outside().join("side").display().to_string();
    repo.git(&["worktree", "add", "-q", &side]);
    let root = repo.root.display().to_string();
    let mut server = start(&repo, &[&root, &side]);
    server.post("/v1/guard", &json!({ "ttl": "10m", "workspace": side })).is(200);
    for id in ["waits", "dropped"] {
        let body = json!({ "execution_id": id, "workspace": side, "command": ["touch", id] });
        server.post("/v1/executions", &body).is(201);
    }
    server.signal(Signal::KILL);
    server.over();
    let mut server = start(&repo, &[&root]);
    assert!(server.said.contains("not served"), "{}", server.said);
    let document = server.get("/v1/executions/waits").is(200);
    assert_eq!(
        (&document["phase"], &document["workspace"]),
        (&"queued".into(), &side.as_str().into())
    );
    // Another request in its place would be the end of it: it is not over.
    let body = json!({ "execution_id": "waits", "retry": true, "command": ["true"] });
    assert_eq!(server.post("/v1/executions", &body).is(409)["reason"], "impossible");
    for _ in ["once", "again"] {
        let answer = server.post("/v1/executions/dropped/cancel", &json!({})).is(200);
        assert_eq!(answer["verdict"], "not_begun");
    }
    server.signal(Signal::KILL);
    server.over();
    let server = start(&repo, &[&root, &side]);
    assert_eq!(server.end_of("waits")["exit_code"], 0);
    assert_eq!(server.end_of("dropped")["exit_code"], 13);
    let there = |name: &str| std::path::Path::new(&side).join(name).exists();
    assert!(there("waits") && !there("dropped"));
}

#[test]
fn what_runs_without_an_attempt_is_reached_by_a_later_server() {
    let repo = Repo::new();
    let mut server = start(&repo, &[]);
    let midway = Midway::named(&repo, "");
    let ended = |server: &mut Server, id: &str| {
        let body = json!({
            "execution_id": id, "triggered_by": "maintenance", "command": ["sh", "-c", midway.words()],
        });
        server.post("/v1/executions", &body).is(201);
        midway.ready.wait();
        server.signal(Signal::KILL);
        server.over();
        *server = start(&repo, &["--drain", "0s"]);
    };
    ended(&mut server, "cancelled");
    let answer = server.post("/v1/executions/cancelled/cancel", &json!({})).is(200);
    assert_eq!(answer["verdict"], "interrupted");
    assert_eq!(server.end_of("cancelled")["outcome"]["reason"], "cancelled");
    ended(&mut server, "drained");
    server.signal(Signal::TERM);
    assert_eq!(server.over(), Some(0));
    let server = start(&repo, &[]);
    assert_eq!(server.end_of("drained")["outcome"]["reason"], "interrupted");
}

#[test]
fn output_is_followed_through_a_drain() {
    let repo = Repo::new();
    let mut server = start(&repo, &["--drain", "1h"]);
    let midway = Midway::named(&repo, "");
    server.submit("job", &format!("echo first; {}; echo second", midway.words()));
    midway.ready.wait();
    let mut output = BufReader::new(server.connect());
    let path = "/v1/executions/job/output/stdout?follow=true";
    output.get_mut().write_all(request("GET", path, "", None).as_bytes()).expect("sent");
    let mut events = BufReader::new(server.connect());
    let path = "/v1/executions/job/events?follow=true";
    events.get_mut().write_all(request("GET", path, "", None).as_bytes()).expect("sent");
    let (mut seen, mut told) = (String::new(), String::new());
    while !seen.contains("first\n") {
        assert!(output.read_line(&mut seen).expect("readable") > 0, "{seen}");
    }
    while !told.contains("turn_started") {
        assert!(events.read_line(&mut told).expect("readable") > 0, "{told}");
    }
    server.signal(Signal::TERM);
    let mut line = String::new();
    while !line.contains("told to end") {
        line.clear();
        assert!(server.log.read_line(&mut line).expect("readable") > 0);
    }
    midway.go.open();
    output.read_to_string(&mut seen).expect("to its end");
    assert!(seen.contains("second\n") && seen.ends_with("0\r\n\r\n"), "{seen}");
    events.read_to_string(&mut told).expect("to its end");
    assert!(told.contains("\"event\":\"finished\"") && told.ends_with("0\r\n\r\n"), "{told}");
    assert_eq!(server.over(), Some(0));
}
