//! A server for tests. Requests are written by hand, so that what is asked is what stands here.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::Repo;

/// A server that is killed at the end of its test.
pub struct Server {
    pub child: Child,
    pub state: PathBuf,
    /// What it said when it was ready.
    pub said: String,
    pub log: BufReader<std::process::ChildStderr>,
}

/// What was answered.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    #[track_caller]
    pub fn is(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.json()
    }
}

pub fn start(repo: &Repo, words: &[&str]) -> Server {
    started(repo.worktx(&["serve"]).args(words), repo)
}

/// As [`start`], by a command of one's own.
pub fn started(command: &mut Command, repo: &Repo) -> Server {
    let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
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

pub fn talk(stream: impl std::io::Read + std::io::Write, request: &str) -> Answer {
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

pub fn unchunked(mut text: &str) -> String {
    let mut all = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        all.push_str(&rest[..size]);
        text = rest[size..].trim_start_matches("\r\n");
    }
    all
}

pub fn request(method: &str, path: &str, headers: &str, body: Option<&Value>) -> String {
    let body = body.map(Value::to_string).unwrap_or_default();
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}{kind}\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

impl Server {
    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(self.state.join("serve.sock")).expect("it listens")
    }

    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        talk(self.connect(), &request(method, path, "", body))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, None)
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, Some(body))
    }

    #[track_caller]
    pub fn submit(&self, id: &str, script: &str) {
        let body = json!({ "execution_id": id, "command": ["sh", "-c", script] });
        self.post("/v1/executions", &body).is(201);
    }

    /// Waits for the end of a submission.
    #[track_caller]
    pub fn end_of(&self, id: &str) -> Value {
        let document = self.get(&format!("/v1/executions/{id}?wait=60s")).is(200);
        assert_eq!(document["phase"], "finished", "{document:#}");
        document
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("it lives");
    }

    /// Until it is gone; its exit code.
    pub fn over(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}
