//! Telling an operator: what is quarantined goes into the operator queue of the platform and to a
//! command of the user's, what was loud but went on goes there as an alert.
//!
//! Order rules: nobody is told before it is durably recorded; that somebody was told is an event,
//! `notified`. After a crash in between it is told again, under the same id: at least once. A way
//! that failed is tried again by the next reconcile. Nothing here changes an outcome: what fails is
//! a warning.
//!
//! Settings: those that were captured when the attempt was opened, whoever tells. A turn that edits
//! the user's configuration cannot make worktx run a command.
//!
//! # Limitations
//! - An answer that is given in the queue is not read: the commands in the request settle it.
//! - The command runs in `/`, since the work tree holds what a turn left, while the workspace lock
//!   is held: what it calls of worktx can look, not decide.
//! - Requests that are done with stay in the file until somebody tidies it.

pub(super) mod queue;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::base::clock;
use crate::base::durable;
use crate::base::fault::{self, Point};
use crate::config::Operator;
use crate::coordinator::attempt::drive::{Driver, chain};
use crate::coordinator::attempt::outcome::RefsDocument;
use crate::coordinator::notify::queue::{Place, Queue, QueueError};
use crate::coordinator::report::query;
use crate::coordinator::report::view;
use crate::coordinator::words;
use crate::git::scan::rules::{Source, View};
use crate::journal::EventFilter;
use crate::process::{self, Bounds, Command, Output, Requests, Stdin};
use crate::tx::path::RepoPath;
use crate::tx::record::Warning;
use crate::tx::state::TxState;
use crate::tx::writer::EndedBy;

/// The event that remembers what was told, and how that went.
const EVENT: &str = "notified";
/// What a way is said to be where it worked.
const DONE: &str = "done";
/// How long the command may run.
const TIMEOUT: Duration = Duration::from_secs(10);
/// From SIGTERM to SIGKILL, once it may not.
const GRACE: Duration = Duration::from_secs(1);
/// The warnings of an attempt that went on which an operator has to hear of.
const LOUD: [&str; 1] = ["post_check_misconfigured"];

/// The settings as they are recorded: the folder of the queue by its real path, so that a link
/// that somebody puts there later leads nowhere.
pub(super) fn capture(operator: &Operator) -> Operator {
    let real = |path: &PathBuf| {
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        match (folder, path.file_name()) {
            (Some(folder), Some(name)) => folder.join(name),
            _ => path.clone(),
        }
    };
    Operator { queue_file: operator.queue_file.as_ref().map(real), ..operator.clone() }
}

/// What an operator is told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Notice {
    /// They have to decide.
    Decide { reason: &'static str },
    /// There is nothing to decide any more.
    Settled,
    /// It went on, and they should know.
    Alert(Warning),
}

impl Notice {
    /// The word in the event: what was told is not told again under the same word.
    fn what(&self) -> String {
        match self {
            Self::Decide { reason } => format!("quarantined:{reason}"),
            Self::Settled => "settled".to_owned(),
            Self::Alert(warning) => format!("alert:{}", warning.code),
        }
    }
}

/// How the two ways went; `None` where a way is not wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ways {
    queue: Option<String>,
    command: Option<String>,
}

impl Ways {
    fn of(detail: &Value) -> Self {
        let text = |name: &str| detail[name].as_str().map(str::to_owned);
        Self { queue: text("queue"), command: text("command") }
    }

    fn is_open(way: Option<&String>) -> bool {
        way.is_none_or(|said| said != DONE)
    }
}

/// Tells what is to be told of an attempt, once. The warnings say what could not be.
pub(super) fn tell(driver: &mut Driver<'_>) -> Vec<Warning> {
    let operator = driver.spec.operator.clone();
    if operator == Operator::default() {
        return Vec::new();
    }
    let told = told(driver);
    let mut warnings = Vec::new();
    let mut said = None;
    for notice in notices(driver, &told) {
        let what = notice.what();
        let before = told.iter().rev().find(|(word, _)| *word == what);
        let before = before.map(|(_, ways)| ways.clone()).unwrap_or_default();
        let mut now = before.clone();
        let path = operator.queue_file.as_deref();
        let path = path.filter(|_| Ways::is_open(before.queue.as_ref()));
        let words = operator.command.as_deref().filter(|_| notice != Notice::Settled);
        let words = words.filter(|_| Ways::is_open(before.command.as_ref()));
        if path.is_none() && words.is_none() {
            continue;
        }
        fault::point(Point::ToBeTold);
        if let Some(path) = path {
            let done = enter(driver, path, &notice);
            now.queue = Some(done.err().unwrap_or_else(|| DONE.to_owned()));
        }
        if let Some(words) = words {
            // One run tells all of it: the document is the same.
            let done = said.get_or_insert_with(|| say(driver, words)).clone();
            now.command = Some(done.err().unwrap_or_else(|| DONE.to_owned()));
        }
        fault::point(Point::Told);
        let failed = [("operator_queue", &now.queue), ("operator_command", &now.command)];
        for (code, why) in failed {
            if let Some(why) = why.as_ref().filter(|why| *why != DONE) {
                let message = format!("an operator could not be told: {why}");
                tracing::warn!(attempt = %driver.key, "{message}");
                let warning = Warning { code: code.to_owned(), message };
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
        }
        if now == before {
            continue;
        }
        let detail = json!({ "what": what, "queue": now.queue, "command": now.command });
        let (execution, attempt) = (driver.key.execution.clone(), Some(driver.key.attempt));
        let recorded = driver.session.ledger.record_event(&execution, attempt, EVENT, &detail);
        if let Err(error) = recorded {
            tracing::warn!(error = %chain(&error), "that an operator was told is not recorded");
        }
    }
    warnings
}

/// What was told of the attempt, oldest first.
fn told(driver: &Driver<'_>) -> Vec<(String, Ways)> {
    let filter = EventFilter {
        execution: Some(driver.key.execution.clone()),
        attempt: Some(driver.key.attempt),
        after: None,
    };
    let events = driver.session.ledger.events(&filter).unwrap_or_default();
    events
        .into_iter()
        .filter(|event| event.kind == EVENT)
        .map(|event| {
            let what = event.detail["what"].as_str().unwrap_or_default().to_owned();
            (what, Ways::of(&event.detail))
        })
        .collect()
}

fn notices(driver: &Driver<'_>, told: &[(String, Ways)]) -> Vec<Notice> {
    let mut notices: Vec<Notice> = driver
        .record
        .warnings
        .iter()
        .filter(|warning| LOUD.contains(&warning.code.as_str()))
        .take(1)
        .map(|warning| Notice::Alert(warning.clone()))
        .collect();
    match driver.state() {
        TxState::Quarantined { reason, .. } => {
            notices.push(Notice::Decide { reason: reason.as_str() });
        }
        // Only who was asked something is told that there is nothing to answer any more.
        state if state.tag().is_settled() => {
            if told.iter().any(|(what, _)| what.starts_with("quarantined:")) {
                notices.push(Notice::Settled);
            }
        }
        _ => return Vec::new(),
    }
    notices
}

/// The id of the request about an attempt.
fn request_id(driver: &Driver<'_>) -> String {
    format!("worktx-{}-{}", driver.key.execution, driver.key.attempt)
}

/// Adds, changes or closes the request in the queue file.
fn enter(driver: &mut Driver<'_>, path: &Path, notice: &Notice) -> Result<(), String> {
    let shown = path.display();
    let beside = may_lie(driver, path).map_err(|why| format!("{shown}: {why}"))?;
    let own = driver.session.place.attempt(&driver.key);
    let wrong = |error: QueueError| format!("{shown} was left as it is: {error}");
    durable::create_dir_all(&own, crate::coordinator::place::PRIVATE_DIR)
        .map_err(|error| wrong(error.into()))?;
    let place = Place::of(path, &own, beside).map_err(wrong)?;
    let row = driver.row().ok().flatten();
    let commands = query::commands(&driver.key, &driver.spec, driver.state(), row.as_ref(), false);
    let changed = match notice {
        Notice::Decide { .. } => {
            let request = question(driver, &commands);
            place.change(|queue| ask(queue, &request))
        }
        Notice::Alert(warning) => {
            let request = alert(driver, warning);
            place.change(|queue| warn(queue, &request))
        }
        Notice::Settled => {
            let (id, how) = (request_id(driver), driver.state().tag().as_str());
            place.change(|queue| close(queue, &id, how))
        }
    };
    changed.map(drop).map_err(wrong)
}

/// Adds the request, or changes what it asks. What was asked once and still is stays untouched:
/// the platform holds a changed question against the one that a person has read.
fn ask(queue: &mut Queue, request: &Map<String, Value>) -> Result<bool, QueueError> {
    let id = request["id"].as_str().unwrap_or_default();
    let Some((at, mut standing)) = queue.find(id) else {
        return queue.put(None, request).map(|()| true);
    };
    let same = |name: &str| standing.get(name) == request.get(name);
    if same("question") && same("options") {
        return Ok(false);
    }
    for (name, value) in request {
        if name != "status" && name != "created_at" {
            standing.insert(name.clone(), value.clone());
        }
    }
    queue.put(Some(at), &standing).map(|()| true)
}

/// Adds an alert, unless the same one waits already: every run would bring another.
fn warn(queue: &mut Queue, request: &Map<String, Value>) -> Result<bool, QueueError> {
    let waits = queue.requests().any(|(_, standing)| {
        let same = |name: &str| standing["context"][name] == request["context"][name];
        standing.get("id") == request.get("id")
            || standing.get("status").and_then(Value::as_str) == Some("pending")
                && standing.get("context").is_some_and(Value::is_object)
                && same("worktx_alert")
                && same("workspace")
    });
    if waits {
        return Ok(false);
    }
    queue.put(None, request).map(|()| true)
}

/// Marks the request as done with. What the platform has ended itself stays as it is.
fn close(queue: &mut Queue, id: &str, how: &str) -> Result<bool, QueueError> {
    let Some((at, mut standing)) = queue.find(id) else { return Ok(false) };
    let status = standing.get("status").and_then(Value::as_str);
    if matches!(status, Some("acknowledged" | "cancelled" | "expired")) {
        return Ok(false);
    }
    standing.insert("status".to_owned(), "acknowledged".into());
    standing.insert("resolution".to_owned(), how.into());
    standing.insert("resolved_at".to_owned(), clock::now_rfc3339().into());
    queue.put(Some(at), &standing).map(|()| true)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The request about a quarantined attempt.
fn question(driver: &Driver<'_>, commands: &[String]) -> Map<String, Value> {
    let TxState::Quarantined { reason, .. } = driver.state() else { return Map::new() };
    let (key, spec) = (&driver.key, &driver.spec);
    let root = spec.workspace.root().display().to_string();
    let won = driver.state().is_past_commit_point();
    let option = |command: &String| {
        let (_, after) = command.split_once(" --")?;
        Some(after.split(' ').next().unwrap_or_default().to_owned())
    };
    let options: Vec<String> = commands.iter().filter_map(option).collect();
    let mut text = format!(
        "{} The command was `{}`.",
        words::quarantine(reason.as_str()),
        spec.command_line()
    );
    if let Some(detail) = reason.detail().filter(|detail| !detail.is_empty()) {
        let _ = write!(text, "\n\nDetail: {detail}");
    }
    let show = words::typed("show", &key.execution, "");
    let _ = write!(text, "\n\nIn `{root}`, look: `{show}`");
    text.push_str("\n\nThen run one of these there. An answer in this queue changes nothing.");
    for command in commands {
        let _ = write!(text, "\n- `{command}`");
        if let Some(meaning) = words::command(command, won) {
            let _ = write!(text, ": {meaning}");
        }
    }
    object(json!({
        "id": request_id(driver),
        "type": "approval",
        "status": "pending",
        "priority": "high",
        "title": format!("worktx holds attempt {key}: {}", reason.as_str().replace('_', " ")),
        "question": text,
        "options": options,
        "context": {
            "execution_id": key.execution,
            "attempt": key.attempt,
            "workspace": root,
            "branch": spec.branch_name(),
            "base": spec.base,
            "candidate": driver.state().seal().map(|seal| seal.candidate),
            "reason": reason.as_str(),
            "detail": reason.detail(),
            "refs": RefsDocument::of(&driver.record),
            "commands": commands,
        },
        "created_at": clock::now_rfc3339(),
    }))
}

/// The request about something loud that stopped nothing.
fn alert(driver: &Driver<'_>, warning: &Warning) -> Map<String, Value> {
    let key = &driver.key;
    object(json!({
        "id": format!("{}-{}", request_id(driver), warning.code),
        "type": "alert",
        "status": "pending",
        "priority": "medium",
        "title": format!("worktx: {}", warning.code.replace('_', " ")),
        "question": format!(
            "In attempt {key}: {}. It went on all the same. Until this is put right, every run here does.",
            warning.message
        ),
        "context": {
            "execution_id": key.execution,
            "attempt": key.attempt,
            "workspace": driver.spec.workspace.root().display().to_string(),
            "worktx_alert": warning.code,
        },
        "created_at": clock::now_rfc3339(),
    }))
}

/// Whether the queue file is no business of the transaction, and whether a file beside it is none
/// either. In scope it would be drift, and in the next commit.
fn may_lie(driver: &Driver<'_>, path: &Path) -> Result<bool, String> {
    let Ok(inside) = path.strip_prefix(driver.spec.workspace.root()) else { return Ok(true) };
    let unsure = |why: String| format!("whether it is ignored cannot be told: {why}");
    let session = &driver.session;
    let snapshot = Arc::new(session.manifest.load().map_err(|error| unsure(chain(&error)))?);
    let base = view::base_rules(&session.store, &snapshot);
    let rules = view::rules(&driver.spec);
    let outside = |path: &RepoPath| -> Result<bool, String> {
        if snapshot.get(path).is_some() {
            return Ok(false);
        }
        if rules.is_excluded(path, false) {
            return Ok(true);
        }
        let mut by_base = View::new(&rules, Source::Base(&base));
        let mut by_tree = View::new(&rules, Source::Tree(&session.root));
        Ok(by_base.ignores(path, false).map_err(|error| unsure(chain(&error)))?
            && by_tree.ignores(path, false).map_err(|error| unsure(chain(&error)))?)
    };
    let file = RepoPath::new(inside.as_os_str().as_bytes()).map_err(|e| unsure(e.to_string()))?;
    if !outside(&file)? {
        return Err("it is in the scope of the transaction: have git ignore it".to_owned());
    }
    let mut name = b".".to_vec();
    name.extend_from_slice(file.name());
    name.extend_from_slice(b".worktx-1");
    outside(&RepoPath::join(file.parent().as_ref(), &name))
}

/// Runs the command with the outcome document on its standard input.
fn say(driver: &mut Driver<'_>, words: &str) -> Result<(), String> {
    let status = driver.row().ok().flatten().map(|row| row.status);
    let outcome = driver.outcome(&driver.record, status);
    let input = outcome.and_then(|outcome| serde_json::to_vec(&outcome).ok()).unwrap_or_default();
    let mut env = driver.live.environment.clone();
    env.retain(|(name, _)| !name.as_bytes().starts_with(b"GIT_"));
    let mut set = |name: &str, value: OsString| {
        env.retain(|(n, _)| n != name);
        env.push((name.into(), value));
    };
    set("WORKTX_EXECUTION_ID", driver.key.execution.as_str().into());
    set("WORKTX_ATTEMPT", driver.key.attempt.to_string().into());
    set("WORKTX_WORKSPACE", driver.spec.workspace.root().into());
    let command = Command {
        program: "/bin/sh".into(),
        argv: ["sh", "-c", words].map(OsString::from).to_vec(),
        cwd: "/".into(),
        env,
        stdin: Stdin::Bytes(input),
        output: Output::StdoutToStderr,
        terminal: false,
        cgroup: false,
    };
    let folder = driver.session.place.attempt(&driver.key).join("notify");
    let waiting = process::start(&command, &folder, &[])
        .map_err(|error| format!("its command could not be started: {}", chain(&error)))?;
    let bounds = Bounds {
        timeout: Some(TIMEOUT),
        grace: GRACE,
        // The run may have come to this by a signal.
        by_signals: false,
        ..Bounds::default()
    };
    let over = waiting.run(&bounds, &mut Requests { signals: driver.signals, poll: &mut || None });
    match (over.ended_by, over.result.exit_code, over.result.signal) {
        (EndedBy::Timeout, ..) => {
            Err(format!("its command was ended after {} s", TIMEOUT.as_secs()))
        }
        (_, Some(0), _) => Ok(()),
        (_, Some(code), _) => Err(format!("its command returned {code}")),
        (_, None, Some(signal)) => Err(format!("its command was ended by signal {signal}")),
        (_, None, None) => Err("how its command ended is not known".to_owned()),
    }
}

/// Whether the queue file of the settings could be written: for who only asks.
pub(super) fn check_queue(operator: &Operator) -> Option<Result<PathBuf, String>> {
    let path = capture(operator).queue_file?;
    let place = Place::of(&path, Path::new("/"), false);
    Some(match place.and_then(|place| place.is_usable()) {
        Ok(()) => Ok(path),
        Err(error) => Err(format!("{}: {error}", path.display())),
    })
}
