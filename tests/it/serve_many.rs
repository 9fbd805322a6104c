//! One server of several work trees: which is meant, what of one does not reach another, and that
//! one which cannot be used keeps nobody from the others.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use rustix::process::Signal;
use serde_json::json;

use crate::lab::Midway;
use crate::server::{Server, request, start, talk};
use crate::support::Repo;

fn root(repo: &Repo) -> String {
    repo.root.display().to_string()
}

fn both(one: &Repo, two: &Repo) -> Server {
    start(one, &[&root(one), &root(two)])
}

fn run_on(server: &Server, repo: &Repo, id: &str) {
    let body = json!({ "execution_id": id, "workspace": root(repo), "command": ["touch", id] });
    server.post("/v1/executions", &body).is(201);
    let path = format!("/v1/executions/{id}?wait=60s&workspace={}", root(repo));
    assert_eq!(server.get(&path).is(200)["exit_code"], 0);
}

#[test]
fn a_work_tree_beneath_another_is_another() {
    let (repo, other) = (Repo::new(), Repo::new());
    let nested = repo.path("ignored/side").display().to_string();
    repo.git(&["worktree", "add", "-q", &nested]);
    let server = both(&repo, &other);
    let before = repo.head();
    let submit = |workspace: &str| {
        let body = json!({ "workspace": workspace, "command": ["touch", "wrong"] });
        server.post("/v1/executions", &body)
    };
    for inner in [nested.clone(), format!("{nested}/src"), format!("{nested}/not/yet")] {
        assert_eq!(submit(&inner).is(409)["hint"], "GET /v1/workspaces", "{inner}");
    }
    assert_eq!(repo.head(), before);
    for inner in ["src/deep", "not/yet", "ignored"] {
        let path = format!("/v1/executions?workspace={}/{inner}", root(&repo));
        server.get(&path).is(200);
    }
}

#[test]
fn a_work_tree_that_is_gone_keeps_nobody_from_the_others() {
    let (gone, other) = (Repo::new(), Repo::new());
    let mut server = both(&gone, &other);
    // Its socket goes with it.
    server.state = other.git_dir().join("worktx");
    run_on(&server, &other, "one");
    let ready = server.get("/v1/ready").is(200);
    assert_eq!(ready["unusable"], json!([]));
    std::fs::rename(&gone.root, gone.outside().join("moved")).expect("moved");
    let trees = server.get("/v1/workspaces").is(200)["workspaces"].clone();
    assert!(trees[0]["error"].is_string() && trees[1]["error"].is_null(), "{trees}");
    let page = server.get("/metrics");
    assert!(page.status == 200 && page.body.contains("worktx_attempts_total"), "{}", page.body);
    let list = server.get("/v1/executions").is(200);
    assert_eq!(list["attempts"].as_array().map(Vec::len), Some(1));
    let left_out = list["left_out"].as_array().expect("a list");
    let state = gone.root.join(".git/worktx").display().to_string();
    assert!(left_out.len() == 1 && left_out[0]["state"] == state, "{list}");
    assert!(left_out[0]["reason"].is_string(), "{list}");
    assert_eq!(server.get("/v1/executions/one").is(200)["exit_code"], 0);
    assert_eq!(server.get("/v1/executions/on").is(200)["execution_id"], "one");
    server.post("/v1/executions/one/cancel", &json!({})).is(200);
    let mut all = follow(server.connect(), "", "");
    run_on(&server, &other, "two");
    until(&mut all, "\"event\":\"finished\"");
    let ready = server.get("/v1/ready").is(200);
    assert_eq!((&ready["ready"], &ready["unusable"]), (&true.into(), &json!([root(&gone)])));
    assert!(server.get("/v1/executions/none").status >= 500, "it may be in what cannot be read");
    std::fs::rename(&other.root, other.outside().join("moved")).expect("moved");
    server.state = other.outside().join("moved/.git/worktx");
    assert_eq!(server.get("/v1/ready").is(503)["ready"], false);
}

#[test]
fn a_ledger_is_read_by_any_of_its_work_trees() {
    let repo = Repo::new();
    let side = repo.outside().join("side").display().to_string();
    repo.git(&["worktree", "add", "-q", &side]);
    let server = start(&repo, &[&side, &root(&repo)]);
    let body = json!({ "execution_id": "one", "workspace": side, "command": ["touch", "one"] });
    server.post("/v1/executions", &body).is(201);
    server.end_of("one");
    repo.git(&["worktree", "remove", "--force", &side]);
    run_on(&server, &repo, "two");
    for id in ["one", "two"] {
        assert_eq!(server.get(&format!("/v1/executions/{id}")).is(200)["exit_code"], 0);
        server.get(&format!("/v1/executions/{id}/events")).is(200);
        server.get(&format!("/v1/executions/{id}/diff")).is(200);
    }
    let list = server.get("/v1/executions").is(200);
    assert_eq!(list["attempts"].as_array().map(Vec::len), Some(2));
    let page = server.get("/metrics").body;
    assert!(page.contains("worktx_attempts_total{outcome=\"committed\"} 2"), "{page}");
    assert_eq!(server.get("/v1/ready").is(200)["unusable"], json!([side]));
}

/// Follows all events, from the head of the answer on.
fn follow(stream: UnixStream, query: &str, headers: &str) -> BufReader<UnixStream> {
    let mut all = BufReader::new(stream);
    let asked = request("GET", &format!("/v1/events{query}"), headers, None);
    all.get_mut().write_all(asked.as_bytes()).expect("sent");
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        all.read_line(&mut line).expect("the head");
        assert!(!line.starts_with("HTTP/1.1 4"), "{line}");
    }
    all
}

/// Reads until this is told; all of it.
fn until(stream: &mut BufReader<UnixStream>, word: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(word) {
        assert!(stream.read_line(&mut seen).expect("readable") > 0, "{seen}");
    }
    seen
}

#[test]
fn a_client_that_comes_back_misses_nothing_of_any_ledger() {
    let (one, two) = (Repo::new(), Repo::new());
    let server = both(&one, &two);
    let mut all = follow(server.connect(), "", "");
    for id in ["a", "b", "c"] {
        run_on(&server, &one, id);
    }
    let mut seen = String::new();
    for _ in 0..3 {
        seen = until(&mut all, "\"event\":\"finished\"");
    }
    drop(all);
    let id = seen.lines().filter_map(|line| line.strip_prefix("id: ")).next_back();
    let id = id.expect("the id of the last event").to_owned();
    // Its first event has a smaller number than the last one that was seen of the other.
    run_on(&server, &two, "d");
    for (query, headers) in [
        (String::new(), format!("Last-Event-ID: {id}\r\n")),
        (format!("?after={id}"), String::new()),
    ] {
        let mut all = follow(server.connect(), &query, &headers);
        let seen = until(&mut all, "\"event\":\"finished\"");
        assert!(seen.contains("\"event\":\"opened\"") && !seen.contains("\"c\""), "{seen}");
    }
    // A number alone says nothing where there are two.
    assert_eq!(server.get("/v1/events?after=5").is(400)["reason"], "usage");
    // Another set of work trees: what is not named begins now.
    drop(server);
    let server = start(&two, &[]);
    let mut all = follow(server.connect(), &format!("?after={id}"), "");
    let seen = until(&mut all, "\"event\":\"finished\"");
    assert!(seen.contains("\"event\":\"opened\""));
    follow(server.connect(), "?after=5", "");
    // The others are not forgotten meanwhile: the next server may have them again.
    let id = seen.lines().filter_map(|line| line.strip_prefix("id: ")).next_back();
    let id = id.expect("the id of the last event").to_owned();
    drop(server);
    assert!(one.run(&["--execution-id", "e"], "touch e").code == 0);
    let server = both(&one, &two);
    let mut all = follow(server.connect(), &format!("?after={id}"), "");
    let seen = until(&mut all, "\"event\":\"finished\"");
    assert!(seen.contains("\"event\":\"opened\"") && seen.contains("\"e\""), "{seen}");
    assert_eq!(server.get("/v1/events?after=%0Aid-5.another-6").is(400)["reason"], "usage");
}

#[test]
fn a_ledger_that_was_not_there_is_followed_once_it_is() {
    let (away, other) = (Repo::new(), Repo::new());
    let mut server = both(&away, &other);
    server.state = other.git_dir().join("worktx");
    let moved = away.outside().join("moved");
    std::fs::rename(&away.root, &moved).expect("moved");
    let mut all = follow(server.connect(), "", "");
    std::fs::rename(&moved, &away.root).expect("moved back");
    // It is followed from the first look at it on: some run comes after that.
    let mut seen = String::new();
    for number in 0.. {
        run_on(&server, &away, &format!("away-{number}"));
        run_on(&server, &other, &format!("other-{number}"));
        let end = format!("\"event\":\"finished\",\"execution_id\":\"other-{number}\"");
        while !seen.contains(&end) {
            assert!(all.read_line(&mut seen).expect("readable") > 0, "{seen}");
        }
        if seen.contains("\"away-") {
            break;
        }
        assert!(number < 100, "it is not followed");
    }
}

#[test]
fn what_fits_in_two_repositories_is_asked_about() {
    let (one, two) = (Repo::new(), Repo::new());
    let server = both(&one, &two);
    run_on(&server, &one, "nightly-1");
    run_on(&server, &two, "nightly-1");
    run_on(&server, &two, "other");
    for id in ["nightly-1", "night"] {
        let problem = server.get(&format!("/v1/executions/{id}")).is(409);
        assert_eq!(
            (&problem["reason"], &problem["hint"]),
            (&"ambiguous".into(), &"say which: ?workspace=".into())
        );
        let path = format!("/v1/executions/{id}?workspace={}", root(&two));
        assert_eq!(server.get(&path).is(200)["workspace"], root(&two));
    }
    assert_eq!(server.get("/v1/executions/oth").is(200)["execution_id"], "other");
}

#[test]
fn a_list_of_one_tree_is_bounded_after_it_is_chosen() {
    let repo = Repo::new();
    let side = repo.outside().join("side").display().to_string();
    repo.git(&["worktree", "add", "-q", &side]);
    let server = start(&repo, &[&root(&repo), &side]);
    let body = json!({ "execution_id": "one", "workspace": side, "command": ["touch", "one"] });
    server.post("/v1/executions", &body).is(201);
    server.end_of("one");
    for id in ["two", "three"] {
        run_on(&server, &repo, id);
    }
    let list = server.get(&format!("/v1/executions?limit=1&workspace={side}")).is(200);
    let ids: Vec<_> = list["attempts"].as_array().expect("a list").iter().collect();
    assert_eq!((ids.len(), &ids[0]["execution_id"]), (1, &"one".into()));
}

#[test]
fn events_are_told_from_a_number_on() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    server.submit("one", "touch one");
    server.end_of("one");
    let all = server.get("/v1/executions/one/events").is(200);
    let all = all["events"].as_array().expect("events");
    let path = format!("/v1/executions/one/events?after={}", all[1]["id"]);
    let rest = server.get(&path).is(200);
    assert_eq!(rest["events"].as_array().expect("events")[..], all[2..]);
}

#[test]
fn a_wait_is_for_what_runs_by_hand_too() {
    let repo = Repo::new();
    let server = start(&repo, &[]);
    let midway = Midway::named(&repo, "");
    let run = repo.spawn(&mut repo.run_command(&["--execution-id", "hand"], &midway.words()));
    midway.ready.wait();
    let mut stream = server.connect();
    let asked = request("GET", "/v1/executions/hand?wait=60s", "", None);
    stream.write_all(asked.as_bytes()).expect("sent");
    // The server has taken the question: it answers another one that came later.
    server.get("/v1/health").is(200);
    midway.go.open();
    let document = talk(stream, "").is(200);
    assert_eq!(document["history"]["attempts"][0]["state"], "done", "{document:#}");
    Repo::wait(run).exits(0);
}

#[test]
fn every_refusal_is_a_problem() {
    let repo = Repo::new();
    let mut server = start(&repo, &[]);
    for (method, path) in [
        ("GET", "/v1/executions/%ff"),
        ("GET", "/v1/executions/%ff/output/stdout"),
        ("POST", "/v1/reconcile?workspace=a&workspace=b"),
        ("DELETE", "/v1/guard/%ff"),
    ] {
        let problem = server.ask(method, path, None).is(400);
        assert_eq!((&problem["reason"], &problem["exit_code"]), (&"usage".into(), &2.into()));
    }
    let unknown = server.post("/v1/executions", &json!({ "comand": ["true"] })).is(422);
    assert_eq!((&unknown["exit_code"], &unknown["error_code"]), (&2.into(), &"internal".into()));
    for name in ["message", "profile", "check", "post_check", "triggered_by", "claim_token", "cwd"]
    {
        let body = json!({ "command": ["true"], name: "a\0b" });
        let problem = server.post("/v1/executions", &body).is(400);
        assert!(problem["message"].as_str().is_some_and(|text| text.contains(name)), "{problem}");
    }
    server.signal(Signal::TERM);
    assert_eq!(server.over(), Some(0));
}
