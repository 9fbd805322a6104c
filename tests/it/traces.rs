//! Where the time goes: phases in the documents, the log's lines, spans to a collector.

use serde_json::Value;

use crate::readers::fits;
use crate::support::Repo;

fn names(document: &Value) -> Vec<&str> {
    let phases = document["phases"].as_array().expect("a list");
    assert!(phases.iter().all(|phase| phase["duration_us"].is_u64()), "{phases:?}");
    phases.iter().map(|phase| phase["phase"].as_str().expect("a word")).collect()
}

#[test]
fn outcomes_tell_where_the_time_went() {
    let repo = Repo::new();
    let landed = repo.run(&["--check", "true"], "echo new > new").exits(0).json();
    fits("outcome", &landed);
    let forward = [
        "begin",
        "judge",
        "record",
        "start",
        "turn",
        "seal",
        "post_check",
        "gate",
        "promote",
        "finish",
    ];
    assert_eq!(names(&landed), forward);
    let undone = repo.run(&["--execution-id", "one"], "echo new > other; exit 1").exits(10).json();
    let back = ["begin", "judge", "record", "start", "turn", "discard", "restore", "finish"];
    assert_eq!(names(&undone), back);
    // Kept with it, and told again.
    let shown = repo.call(&["show", "one", "--json"]).exits(0).json();
    assert_eq!(names(&shown["attempts"][0]), back);
    let text = repo.call(&["show", "one"]).exits(0).stdout;
    assert!(text.contains("  time       begin "), "{text}");
    let refused = repo.call(&["run", "--json", "--on-dirty", "capture", "--", "true"]).exits(2);
    assert_eq!(names(&refused.json()), [""; 0]);
}

#[test]
fn lines_of_the_log_name_execution_and_attempt() {
    let repo = Repo::new();
    let run = |words: &[&str]| {
        let mut command = repo.worktx(words);
        command.args(["run", "--execution-id", "one", "--", "sh", "-c", "exit 1"]);
        repo.finish(command.env("WORKTX_LOG", "worktx=info")).exits(10).stderr
    };
    let text = run(&[]);
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(" INFO ")).collect();
    assert!(lines.len() >= 3, "{text}");
    assert!(lines.iter().all(|line| line.contains("attempt{execution=one attempt=1}")), "{text}");
    let text = run(&["--log-format", "json"]);
    let lines: Vec<Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    assert!(lines.len() >= 3, "{text}");
    for line in lines {
        let spans = line["spans"].as_array().expect("spans");
        let named = spans.iter().any(|span| span["execution"] == "one" && span["attempt"] == "2");
        assert!(named, "{line}");
    }
}

/// `cargo test --features otlp --test it traces`
#[test]
#[cfg(feature = "otlp")]
fn spans_go_to_a_collector() {
    use std::io::{Read as _, Write as _};

    let repo = Repo::new();
    let collector = std::net::TcpListener::bind("127.0.0.1:0").expect("an address");
    let address = format!("http://{}", collector.local_addr().expect("bound"));
    let taken = std::thread::spawn(move || {
        let (mut stream, _) = collector.accept().expect("somebody comes");
        let (mut all, mut part) = (Vec::new(), [0; 4096]);
        loop {
            let count = stream.read(&mut part).expect("readable");
            all.extend_from_slice(&part[..count]);
            let text = String::from_utf8_lossy(&all).to_ascii_lowercase();
            let Some(head) = text.find("\r\n\r\n") else { continue };
            let size = text.split("content-length: ").nth(1).expect("a length");
            let size: usize = size.split("\r\n").next().and_then(|n| n.parse().ok()).expect("one");
            let body = String::from_utf8_lossy(&all).find("\r\n\r\n").map_or(0, |at| at + 4);
            if all.len() >= body.max(head) + size || count == 0 {
                break;
            }
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("answered");
        String::from_utf8_lossy(&all).into_owned()
    });
    let mut command = repo.worktx(&["run", "--execution-id", "told", "--", "true"]);
    repo.finish(command.env("OTEL_EXPORTER_OTLP_ENDPOINT", address)).exits(0);
    let said = taken.join().expect("it ends");
    assert!(said.starts_with("POST /v1/traces"), "{said}");
    for word in ["told", "attempt", "begin", "judge", "turn", "seal", "finish"] {
        assert!(said.contains(word), "{word}: {said}");
    }
}
