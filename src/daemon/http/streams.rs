//! What happens while it happens: events as server-sent events, output as bytes.
//!
//! # Limitations
//! That a ledger has changed is told by the file system, which may lose a word: those who follow
//! look again every few seconds as well.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;

use super::super::documents::Phase;
use super::super::drivers;
use super::super::server::Shared;
use super::answers::{Named, Refused, ask};
use super::executions::{Found, find, unreadable};
use crate::base::hex::hex;
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::coordinator::report::query;
use crate::journal::{Event, EventFilter, Filter};
use crate::tx::id::ExecutionId;

/// How often those who follow look again without being told.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How often a file that is being written is looked at.
const FOLLOW: Duration = Duration::from_millis(100);
/// How many characters name a ledger in the ids of a stream of all.
const NAME: usize = 8;
/// How many ledgers that are not served now are kept in the ids of a stream.
const ELSEWHERE: usize = 64;
/// How much output is sent at once, in bytes.
const CHUNK: usize = 64 * 1024;

/// `?workspace=&after=&follow=`
#[derive(Debug, Deserialize)]
pub(super) struct From {
    workspace: Option<String>,
    after: Option<i64>,
    #[serde(default)]
    follow: bool,
}

/// `?after=`
#[derive(Debug, Deserialize)]
pub(super) struct FromPlace {
    after: Option<String>,
}

/// One ledger that is followed.
struct Followed {
    server: Shared,
    state: usize,
    execution: Option<ExecutionId>,
    /// The number of the last event that was told; `None` until the ledger has been read, for who
    /// wants what comes from now on.
    after: Option<i64>,
    ready: std::collections::VecDeque<Event>,
    changed: tokio::sync::watch::Receiver<u64>,
    is_unreadable: bool,
}

/// What one of several ledgers has to tell.
enum Told {
    /// From which number on it is followed: that could not be read before.
    Begins(i64),
    Happened(Event),
}

impl Followed {
    fn new(
        server: &Shared,
        state: usize,
        execution: Option<ExecutionId>,
        after: Option<i64>,
    ) -> Self {
        let changed = server.states[state].changed.clone();
        let (server, ready) = (Shared::clone(server), [].into());
        Self { server, state, execution, after, ready, changed, is_unreadable: false }
    }

    /// The next event, or where they begin; `None` when the server begins nothing more.
    async fn next_until_drain(&mut self) -> Option<Told> {
        let mut draining = self.server.draining.subscribe();
        tokio::select! {
            biased;
            told = self.tell() => Some(told),
            () = ended(&mut draining) => None,
        }
    }

    async fn tell(&mut self) -> Told {
        if self.after.is_some() {
            return Told::Happened(self.next().await);
        }
        loop {
            if let Some(start) = self.begin().await {
                return Told::Begins(start);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// From which number on there will be something to tell; `None` while that cannot be read.
    async fn begin(&mut self) -> Option<i64> {
        if self.after.is_none() {
            let first = self.server.states[self.state].first;
            let now = |context: &Context| Ok(context.need_ledger()?.last_event_id()?);
            let now = ask(&self.server, first, now).await;
            self.after = self.read(now);
        }
        self.after
    }

    /// What could be read; the log says once why nothing could.
    fn read<T>(&mut self, answer: Result<T, Refused>) -> Option<T> {
        let was_unreadable = std::mem::replace(&mut self.is_unreadable, answer.is_err());
        match answer {
            Ok(read) => Some(read),
            Err(_) if was_unreadable => None,
            Err(refused) => {
                drop(unreadable(&self.server, self.state, refused));
                None
            }
        }
    }

    /// The next event.
    async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            // Before the look, so that what comes in between is told.
            self.changed.mark_unchanged();
            self.look().await;
            if !self.ready.is_empty() {
                continue;
            }
            tokio::select! {
                changed = self.changed.changed() => if changed.is_err() {
                    // Nobody watches: by time alone.
                    tokio::time::sleep(LOOK_AGAIN).await;
                },
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }

    async fn look(&mut self) {
        let served = self.server.states[self.state].first;
        let filter = EventFilter {
            execution: self.execution.clone(),
            after: self.after,
            ..EventFilter::default()
        };
        let found = ask(&self.server, served, move |context| {
            let Some(ledger) = context.ledger()? else { return Ok(Vec::new()) };
            Ok(ledger.events(&filter)?)
        });
        let found = found.await;
        if let Some(found) = self.read(found) {
            self.after = found.last().map(|event| event.id).or(self.after);
            self.ready.extend(found);
        }
    }
}

/// Until the server begins nothing more.
async fn ended(draining: &mut tokio::sync::watch::Receiver<bool>) {
    let _ = draining.wait_for(|draining| *draining).await;
}

fn sent(server: &Shared, state: usize, event: &Event, id: &str) -> Sent {
    let document = json!({
        "id": event.id, "at": event.at, "execution_id": event.execution,
        "attempt": event.attempt, "event": event.kind, "from": event.from_state,
        "to": event.to_state, "detail": event.detail,
        "state": server.states[state].path.display().to_string(),
    });
    let sent = Sent::default().event("event").id(id);
    // Plain data: it becomes text.
    sent.json_data(document).unwrap_or_default()
}

fn sse(stream: impl Stream<Item = Result<Sent, Infallible>> + Send + 'static) -> Response {
    Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
}

/// What a client that comes back has seen last.
fn last_seen(headers: &HeaderMap) -> Option<&str> {
    headers.get("last-event-id").and_then(|value| value.to_str().ok())
}

/// The number after which events are wanted: the header of a client that comes back goes first.
fn after(headers: &HeaderMap, from: &From) -> Option<i64> {
    last_seen(headers).and_then(|text| text.parse().ok()).or(from.after)
}

/// How far a stream of all ledgers is: the number of the last event of each, by the ledger's name,
/// so that a server of other work trees takes none for another.
struct Place {
    /// Of what is followed here.
    here: Vec<(String, Option<i64>)>,
    /// Of what is not served now: it may be when the client comes back the next time.
    elsewhere: Vec<(String, i64)>,
}

impl Place {
    /// Names of ledgers that hold for as long as they stand where they are.
    fn new(server: &Shared) -> Self {
        Self::of(server.states.iter().map(|state| state.path.as_path()))
    }

    fn of<'a>(states: impl Iterator<Item = &'a Path>) -> Self {
        let name = |path: &Path| {
            let digest = hex(&Sha256::digest(path.as_os_str().as_encoded_bytes()));
            digest.chars().take(NAME).collect()
        };
        Self { here: states.map(|path| (name(path), None)).collect(), elsewhere: Vec::new() }
    }

    /// Takes over what a client has seen: `name-number`, several with dots between them; a number
    /// alone where there is one ledger. Of what it does not name it has seen nothing.
    fn read(&mut self, text: &str) -> Option<()> {
        if let ([(_, only)], Ok(number)) = (&mut self.here[..], text.parse()) {
            *only = Some(number);
            return Some(());
        }
        for part in text.split('.') {
            let (name, number) = part.split_once('-')?;
            let number = number.parse().ok()?;
            // It goes back to the client: nothing but a name.
            if name.len() != NAME || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return None;
            }
            if let Some((_, at)) = self.here.iter_mut().find(|(known, _)| known == name) {
                *at = Some(number);
            } else {
                self.elsewhere.retain(|(known, _)| known != name);
                self.elsewhere.push((name.to_owned(), number));
            }
        }
        self.elsewhere.truncate(ELSEWHERE);
        Some(())
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let here = self.here.iter().filter_map(|(name, at)| Some((name, (*at)?)));
        let elsewhere = self.elsewhere.iter().map(|(name, at)| (name, *at));
        for (number, (name, at)) in here.chain(elsewhere).enumerate() {
            let between = if number == 0 { "" } else { "." };
            write!(f, "{between}{name}-{at}")?;
        }
        Ok(())
    }
}

/// All events of all state directories; without a place those from now on.
pub(super) async fn of_all(
    State(server): State<Shared>,
    headers: HeaderMap,
    query: Result<Query<FromPlace>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(from) = query?;
    let mut place = Place::new(&server);
    if let Some(text) = last_seen(&headers).or(from.after.as_deref()) {
        place.read(text).ok_or_else(|| {
            let why = format!("after: {text:?} is no id of an event of this stream");
            Refused::of(&server, &Failure::Usage(why))
        })?;
    }
    let mut all = Vec::new();
    for at in 0..server.states.len() {
        let mut followed = Followed::new(&server, at, None, place.here[at].1);
        // One that cannot be read yet keeps nobody from the events of the others.
        place.here[at].1 = followed.begin().await;
        all.push(Box::pin(stream::unfold(followed, move |mut followed| async move {
            let told = followed.next_until_drain().await?;
            Some(((at, told), followed))
        })));
    }
    let telling = Shared::clone(&server);
    Ok(sse(stream::select_all(all).filter_map(move |(at, told)| {
        let event = match told {
            Told::Begins(start) => {
                place.here[at].1 = Some(start);
                None
            }
            Told::Happened(event) => {
                place.here[at].1 = Some(event.id);
                Some(Ok(sent(&telling, at, &event, &place.to_string())))
            }
        };
        std::future::ready(event)
    })))
}

/// The events of one execution: a document, or a stream until it is over.
pub(super) async fn of_execution(
    State(server): State<Shared>,
    Named(id): Named<String>,
    headers: HeaderMap,
    query: Result<Query<From>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(from) = query?;
    let found = find(&server, &id, from.workspace.as_deref()).await?;
    let wants = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let follow = from.follow || wants.is_some_and(|kinds| kinds.contains("text/event-stream"));
    if !follow {
        let asked = found.job.id.to_string();
        let mut document =
            ask(&server, found.job.served, move |context| query::events(context, &asked)).await?;
        document.events.retain(|event| from.after.is_none_or(|after| event.id > after));
        return Ok(Json(document).into_response());
    }
    let state = server.served[found.job.served].state;
    let start = after(&headers, &from).unwrap_or(0);
    let followed = Followed::new(&server, state, Some(found.job.id.clone()), Some(start));
    let following = server.following();
    let stream = stream::unfold(Some((followed, found, following)), move |held| {
        let server = Shared::clone(&server);
        async move {
            let (mut followed, found, following) = held?;
            let mut over = phase_of(&server, &found);
            let event = tokio::select! {
                biased;
                event = followed.next() => Some(event),
                () = left_behind(&server, over.clone()) => None,
                () = finished(&server, &found, &mut over) => {
                    // What came last was recorded before it was over.
                    followed.look().await;
                    followed.ready.pop_front()
                }
            }?;
            let id = event.id.to_string();
            Some((Ok(sent(&server, state, &event, &id)), Some((followed, found, following))))
        }
    });
    Ok(sse(stream))
}

pub(super) fn phase_of(
    server: &Shared,
    found: &Found,
) -> Option<tokio::sync::watch::Receiver<Phase>> {
    server.entries().get(&server.name(&found.job)).map(|entry| entry.phase.subscribe())
}

/// Until the server goes before an execution is over; never for one that it waits for.
async fn left_behind(server: &Shared, phase: Option<tokio::sync::watch::Receiver<Phase>>) {
    ended(&mut server.draining.subscribe()).await;
    if phase.is_some_and(|phase| *phase.borrow() == Phase::Running) {
        std::future::pending::<()>().await;
    }
}

/// Until a submission is over; where it is none, until no coordinator is at work on it.
pub(super) async fn finished(
    server: &Shared,
    found: &Found,
    phase: &mut Option<tokio::sync::watch::Receiver<Phase>>,
) {
    if let Some(phase) = phase {
        let _ = phase.wait_for(|phase| *phase == Phase::Finished).await;
        return;
    }
    loop {
        let filter = Filter { execution: Some(found.job.id.clone()), ..Filter::default() };
        let running = ask(server, found.job.served, move |context| {
            let Some(ledger) = context.ledger()? else { return Ok(false) };
            for attempt in ledger.attempts(&filter)? {
                if query::is_running(&attempt)? {
                    return Ok(true);
                }
            }
            Ok(false)
        });
        if !matches!(running.await, Ok(true)) {
            return;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// What a command said on one stream: as far as it is, or followed to its end.
pub(super) async fn output(
    State(server): State<Shared>,
    Named((id, name)): Named<(String, String)>,
    query: Result<Query<From>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(from) = query?;
    let found = find(&server, &id, from.workspace.as_deref()).await?;
    if !["stdout", "stderr"].contains(&name.as_str()) {
        return Err(Refused::not_found("the streams are stdout and stderr"));
    }
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    let file = match drivers::open_output(&found.job.folder, &name) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if found.kept.is_none() {
                return Err(Refused::not_found(
                    "it was not submitted here: its output is not kept",
                ));
            }
            if !from.follow {
                return Ok((kind, Body::empty()).into_response());
            }
            None
        }
        Err(error) => {
            return Err(Refused::of(&server, &Failure::io("reading the output")(error)));
        }
    };
    let file = file.map(tokio::fs::File::from_std);
    let held = (file, found, name, from.follow.then(|| server.following()));
    let stream = stream::unfold(held, move |(mut file, found, name, follow)| {
        let server = Shared::clone(&server);
        async move {
            loop {
                // Asked before the look: what is written before the end is read after it.
                let phase = server
                    .entries()
                    .get(&server.name(&found.job))
                    .map(|entry| *entry.phase.borrow());
                if file.is_none() {
                    let opened = drivers::open_output(&found.job.folder, &name).ok();
                    file = opened.map(tokio::fs::File::from_std);
                }
                if let Some(reading) = &mut file {
                    let mut bytes = vec![0; CHUNK];
                    match reading.read(&mut bytes).await {
                        Ok(0) => {}
                        Ok(count) => {
                            bytes.truncate(count);
                            let held = (file, found, name, follow);
                            return Some((Ok(Bytes::from(bytes)), held));
                        }
                        Err(error) => return Some((Err(error), (None, found, name, None))),
                    }
                }
                if follow.is_none() || phase.is_none() {
                    return None;
                }
                if phase == Some(Phase::Queued) && *server.draining.borrow() {
                    // It goes on with the next server: this is not its end.
                    let left = std::io::Error::other("the server goes before it is begun");
                    return Some((Err(left), (None, found, name, None)));
                }
                tokio::time::sleep(FOLLOW).await;
            }
        }
    });
    Ok((kind, Body::from_stream(stream)).into_response())
}
