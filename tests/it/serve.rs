//! The resident coordinator by the real binary: submissions, streams, crashes, operators.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::lab::Midway;
use crate::readers::fits;
use crate::server::{request, start, started};
use crate::support::Repo;

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
    // Its own environment decides it too, directly and by another configuration.
    repo.write("README.md", "dirty\n");
    let home = repo.outside().join("home");
    std::fs::create_dir_all(home.join("worktx")).expect("made");
    std::fs::write(home.join("worktx/config.toml"), "on_dirty = \"run\"\n").expect("written");
    for (number, (name, value)) in [
        ("triggered_by", json!("maintenance")),
        ("env", json!({ "WORKTX_ON_DIRTY": "run" })),
        ("env", json!({ "XDG_CONFIG_HOME": home })),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("care-{number}");
        let body =
            json!({ "execution_id": id, name: value, "command": ["sh", "-c", script.clone()] });
        server.post("/v1/executions", &body).is(201);
        midway.ready.wait();
        let asked = format!("execution-id={id}");
        let drivers = std::process::Command::new("pgrep").args(["-f", &asked]).output();
        let drivers = String::from_utf8(drivers.expect("pgrep starts").stdout).expect("text");
        server.signal(Signal::KILL);
        for driver in drivers.split_whitespace() {
            let pid = Pid::from_raw(driver.parse().expect("a pid")).expect("a pid");
            let _ = kill_process(pid, Signal::KILL);
        }
        server.over();
        server = start(&repo, &[]);
        let document = server.end_of(&id);
        let reason = &document["outcome"]["reason"];
        assert_eq!(reason, "not_known", "{document:#}");
        let said = std::fs::read_to_string(&runs).expect("readable");
        assert_eq!(said, "run\n".repeat(number + 1));
    }
}

#[test]
fn no_command_gets_the_fence_of_its_claim() {
    let repo = Repo::new();
    let mut server = start(&repo, &[]);
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
    let submitted = server.state.join("submitted");
    let kept = |id: &str| {
        let path = submitted.join(id).join("request.json");
        std::fs::read_to_string(path).expect("readable")
    };
    assert!(!kept("claimed").contains("first-token"));
    // A claim that is delivered again has another token, and is the same request.
    assert_eq!(server.post("/v1/executions", &asked("second-token")).is(200)["existed"], true);
    // What is cancelled before it begins is over, too.
    let midway = Midway::named(&repo, "");
    server.submit("first", &midway.words());
    let queued =
        json!({ "execution_id": "queued", "claim_token": "third-token", "command": ["true"] });
    server.post("/v1/executions", &queued).is(201);
    midway.meanwhile(|| {
        assert!(kept("queued").contains("third-token"));
        let answer = server.post("/v1/executions/queued/cancel", &json!({})).is(200);
        assert_eq!(answer["verdict"], "not_begun");
        assert!(!kept("queued").contains("third-token"));
    });
    // A server that was killed between the end and this left it.
    let path = server.state.join("submitted/queued/request.json");
    let left =
        kept("queued").replacen("\"command\"", "\"claim_token\":\"third-token\",\"command\"", 1);
    std::fs::write(&path, left).expect("written");
    server.signal(Signal::KILL);
    server.over();
    let _server = start(&repo, &[]);
    assert!(!std::fs::read_to_string(path).expect("readable").contains("third-token"));
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
fn the_profile_of_a_server_is_that_of_what_it_starts() {
    let repo = Repo::new();
    let mut command = repo.worktx(&["--profile", "trinity", "serve"]);
    let server = started(&mut command, &repo);
    server.submit("job", "echo x > x");
    assert_eq!(server.end_of("job")["exit_code"], 0);
    let own = repo.git(&["for-each-ref", "--format=%(refname)", "refs/trinity/tx"]);
    assert!(own.contains("refs/trinity/tx/job/1/candidate"), "{own}");
    // What a request names goes before it.
    let request = json!({ "execution_id": "other", "command": ["true"], "profile": "default" });
    server.post("/v1/executions", &request).is(201);
    assert_eq!(server.end_of("other")["exit_code"], 0);
    assert!(!repo.git(&["for-each-ref", "refs/worktx/tx/other"]).is_empty());
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
