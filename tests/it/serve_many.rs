//! One server of several work trees: which is meant, what of one does not reach another, and that
//! one which cannot be used keeps nobody from the others.

use std::io::Write as _;

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
