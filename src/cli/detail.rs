//! The detail of a recorded event in one line for people: names and values, ids shortened, what is
//! deeper left out. `--json` has all of it.
//!
//! # Limitations
//! Knows the events by their fields alone; a new field shows by itself.

use serde_json::{Map, Value};

use super::style::neutral;

/// The fields that say the most, which come first.
const FIRST: [&str; 5] = ["decision", "reason", "what", "why", "death"];
/// What is shown elsewhere: `show` tells where the time went.
const ELSEWHERE: &str = "phases";
/// How long a value may be.
const LONGEST: usize = 80;

/// The detail as `name value, name value`; empty where there is none.
pub(super) fn detail(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Object(map) => fields(map),
        other => one(other).unwrap_or_default(),
    }
}

fn fields(map: &Map<String, Value>) -> String {
    let rank = |name: &str| FIRST.iter().position(|first| *first == name).unwrap_or(FIRST.len());
    let mut all: Vec<(&String, &Value)> =
        map.iter().filter(|(name, _)| *name != ELSEWHERE).collect();
    all.sort_by_key(|(name, _)| rank(name));
    let parts: Vec<String> = all
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{} {}", name.replace('_', " "), one(value)?)))
        .collect();
    parts.join(", ")
}

fn one(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) if text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Some(text[..10].to_owned())
        }
        Value::String(text) => Some(shortened(&neutral(text))),
        Value::Object(map) => {
            // A process, whose host is the same in all of them.
            if let Some(pid) = map.get("process").and_then(|process| process.get("pid")) {
                return Some(format!("pid {pid}"));
            }
            let inner = fields(map);
            (!inner.is_empty()).then(|| format!("({inner})"))
        }
        Value::Array(all) if all.is_empty() => None,
        Value::Array(all) => {
            Some(shortened(&all.iter().filter_map(one).collect::<Vec<_>>().join(", ")))
        }
        other => Some(other.to_string()),
    }
}

fn shortened(text: &str) -> String {
    let line = text.replace(['\n', '\t'], " ");
    if line.chars().count() <= LONGEST {
        return line;
    }
    let head: String = line.chars().take(LONGEST - 1).collect();
    format!("{head}…")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn details_are_read_by_people() {
        let decided = json!({
            "stage": "OpenTurn", "phases": [{ "phase": "turn", "duration_us": 7 }], "writer": "dead: Gone", "verdict": "NotWritten",
            "branch": "AtBase", "tree": "Foreign", "again": false, "decision": "quarantine"
        });
        insta::assert_snapshot!(detail(&decided), @"decision quarantine, again false, branch AtBase, stage OpenTurn, tree Foreign, verdict NotWritten, writer dead: Gone");
        let id = "b332edd82f32ffb7bb93d6935522af061b8ec51d";
        let sealed = json!({ "candidate": id, "changes": { "added": 1 }, "exit_code": null });
        assert_eq!(detail(&sealed), "candidate b332edd82f, changes (added 1)");
        let process = json!({ "pid": 7, "start_ticks": 1 });
        let owner = json!({ "owner": { "host": { "boot_id": "x" }, "process": process } });
        assert_eq!(detail(&owner), "owner pid 7");
        assert_eq!(detail(&json!({})), "");
        assert_eq!(
            detail(&json!("a\u{1b}[2Jb\nc")),
            detail(&json!({ "x": "a\u{1b}[2Jb\nc" }))[2..]
        );
    }
}
