//! Executions over HTTP: submit, look, wait, cancel, decide.
//!
//! # Limitations
//! A short form of an id is understood for what has an attempt; what only waits wants its whole id.

use std::path::PathBuf;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::documents::{
    AttemptsDocument, ExecutionDocument, ExecutionsDocument, LeftOut, Phase, ResolveRequest,
    Submission,
};
use super::super::drivers::Job;
use super::super::server::{Server, Shared};
use super::super::standing::{self, Cancelled};
use super::super::submission::{Folder, Kept};
use super::super::submit;
use super::answers::{Answer, Named, Refused, ask, asked};
use super::streams;
use crate::config::value;
use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::error::Failure;
use crate::coordinator::report::changes;
use crate::coordinator::report::documents::ResolveDocument;
use crate::coordinator::report::query;
use crate::coordinator::settle::cancel;
use crate::journal::{Filter, LedgerError};
use crate::tx::id::ExecutionId;

/// The longest that a request waits for an execution.
const LONGEST_WAIT: Duration = Duration::from_mins(10);

/// `?workspace=&unsettled=&limit=`
#[derive(Debug, Deserialize)]
pub(super) struct Listed {
    workspace: Option<String>,
    #[serde(default)]
    unsettled: bool,
    limit: Option<u32>,
}

/// `?workspace=&wait=`
#[derive(Debug, Deserialize)]
pub(super) struct Waited {
    workspace: Option<String>,
    wait: Option<String>,
}

/// `?workspace=`
#[derive(Debug, Deserialize)]
pub(super) struct Which {
    workspace: Option<String>,
}

/// `?workspace=&attempt=&format=`
#[derive(Debug, Deserialize)]
pub(super) struct Compared {
    workspace: Option<String>,
    attempt: Option<u32>,
    format: Option<String>,
}

/// Where an execution is to be found.
pub(super) struct Found {
    pub(super) job: Job,
    /// The root of its work tree, served or not.
    root: PathBuf,
    /// It was submitted here.
    pub(super) kept: Option<Kept>,
    /// The number of its last attempt; 0 where there is none.
    pub(super) last_attempt: u32,
    /// The ledger has a row of it.
    has_row: bool,
}

impl Found {
    /// Whether its submission has come as far as an attempt.
    fn has_begun(&self) -> bool {
        let before = self.kept.as_ref().map_or(0, |kept| kept.attempt_before);
        self.last_attempt > before
    }
}

/// Looks for an execution: by its whole id everywhere first, then by a short form of it.
pub(super) async fn find(
    server: &Shared,
    id: &str,
    workspace: Option<&str>,
) -> Result<Found, Refused> {
    let wanted = match workspace {
        Some(name) => {
            let at = server.find(Some(name)).map_err(|failure| Refused::of(server, &failure))?;
            Some(server.served[at].state)
        }
        None => None,
    };
    let exact: Option<ExecutionId> = id.parse().ok();
    let states: Vec<usize> =
        (0..server.states.len()).filter(|at| wanted.is_none_or(|wanted| wanted == *at)).collect();
    // One that cannot be read keeps nobody from what the others have.
    let (mut all, mut unread) = (Vec::new(), None);
    if let Some(id) = &exact {
        for state in &states {
            match look(server, *state, id).await {
                Ok(found) => all.extend(found),
                Err(refused) => unread = Some(unreadable(server, *state, refused)),
            }
        }
    }
    if all.is_empty() {
        for state in &states {
            match look_short(server, *state, id).await {
                Ok(found) => all.extend(found),
                Err(refused) if refused.is_conflict() => return Err(refused),
                Err(refused) => unread = Some(unreadable(server, *state, refused)),
            }
        }
    }
    let mut all = all.into_iter();
    match (all.next(), all.next()) {
        (Some(found), None) => Ok(found),
        (Some(one), Some(other)) => {
            let roots = [one, other].map(|found| found.root.display().to_string());
            let message = format!("{id:?} fits in {} and in {}", roots[0], roots[1]);
            let status = StatusCode::CONFLICT;
            Err(Refused::new(status, "ambiguous", &message).hint("say which: ?workspace="))
        }
        (None, _) => {
            let none = Failure::from(LedgerError::NoExecution { prefix: id.to_owned() });
            Err(unread.unwrap_or_else(|| Refused::of(server, &none)))
        }
    }
}

/// A state directory that is left out of an answer: the log says why.
pub(super) fn unreadable(server: &Server, state: usize, refused: Refused) -> Refused {
    let state = server.states[state].path.display();
    tracing::warn!(%state, ?refused, "a ledger cannot be read");
    refused
}

/// An execution of one state directory by a short form of its id.
async fn look_short(server: &Shared, state: usize, id: &str) -> Result<Option<Found>, Refused> {
    let served = server.states[state].first;
    let short = id.to_owned();
    let full = ask(server, served, move |context| {
        let Some(ledger) = context.ledger()? else { return Ok(None) };
        match ledger.resolve(&short) {
            Ok(id) => Ok(Some(id)),
            Err(LedgerError::NoExecution { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    });
    match full.await? {
        Some(full) => look(server, state, &full).await,
        None => Ok(None),
    }
}

/// An execution of one state directory, if it is known there.
async fn look(server: &Shared, state: usize, id: &ExecutionId) -> Result<Option<Found>, Refused> {
    let served = server.states[state].first;
    let folder = Folder::of(&server.states[state].path, id);
    let (asked, reading) = (id.clone(), folder.clone());
    let (kept, row, last) = ask(server, served, move |context| {
        let kept = reading.kept().map_err(Failure::io("reading a submission"))?;
        let Some(ledger) = context.ledger()? else { return Ok((kept, None, None)) };
        let row = ledger.execution(&asked)?.map(|found| found.row);
        let filter = Filter { execution: Some(asked), limit: Some(1), ..Filter::default() };
        let last = ledger.attempts(&filter)?.into_iter().next().map(|found| found.workspace);
        Ok((kept, row, last))
    })
    .await?;
    if kept.is_none() && row.is_none() {
        return Ok(None);
    }
    let place = kept.as_ref().map(|kept| (kept.workspace.clone(), kept.root.clone()));
    let place = place.or(last.map(|last| (last.id, last.root)));
    let of_place = place.as_ref().and_then(|(id, _)| server.named(state, id));
    // Of a work tree that is not served the ledger is known all the same.
    let job = Job { served: of_place.unwrap_or(served), id: id.clone(), folder };
    let stood = place.filter(|_| of_place.is_none()).map(|(_, root)| root);
    let root = stood.unwrap_or_else(|| server.served[job.served].root.clone());
    let has_row = row.is_some();
    let last_attempt = row.and_then(|row| row.current_attempt).map_or(0, |attempt| attempt.0);
    Ok(Some(Found { job, root, kept, last_attempt, has_row }))
}

pub(super) async fn submit(
    State(server): State<Shared>,
    request: Result<Json<Submission>, JsonRejection>,
) -> Result<Response, Refused> {
    let Json(request) = request?;
    if !server.is_ready() {
        return Err(Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "draining",
            "the server begins nothing any more",
        ));
    }
    let submitted =
        submit::submit(&server, request).await.map_err(|failure| Refused::of(&server, &failure))?;
    let status = if submitted.existed { StatusCode::OK } else { StatusCode::CREATED };
    let document = ExecutionsDocument {
        schema: SCHEMA,
        execution_id: submitted.id.clone(),
        workspace: server.served[submitted.served].root.display().to_string(),
        phase: submitted.phase,
        existed: submitted.existed,
    };
    let place = format!("/v1/executions/{}", submitted.id);
    Ok((status, [(header::LOCATION, place)], Json(document)).into_response())
}

pub(super) async fn list(
    State(server): State<Shared>,
    query: Result<Query<Listed>, QueryRejection>,
) -> Answer<AttemptsDocument> {
    let Query(listed) = query?;
    let limit = listed.limit.unwrap_or(50);
    let refused = |failure| Refused::of(&server, &failure);
    let wanted = match listed.workspace.as_deref() {
        Some(name) => Some(server.find(Some(name)).map_err(refused)?),
        None => None,
    };
    let (mut all, mut left_out) = (Vec::new(), Vec::new());
    for (at, state) in server.states.iter().enumerate() {
        if wanted.is_some_and(|wanted| server.served[wanted].state != at) {
            continue;
        }
        let filter = Filter {
            workspace: wanted.map(|wanted| server.served[wanted].id.clone()),
            settled: listed.unsettled.then_some(false),
            limit: (limit > 0).then_some(limit),
            ..Filter::default()
        };
        let part = ask(&server, state.first, move |context| query::list_by(context, &filter));
        match part.await {
            Ok(part) => all.extend(part.attempts),
            Err(refused) if wanted.is_some() => return Err(refused),
            Err(refused) => {
                let reason = unreadable(&server, at, refused).message();
                left_out.push(LeftOut { state: state.path.display().to_string(), reason });
            }
        }
    }
    all.sort_by(|a, b| b.started_at.cmp(&a.started_at));
    if limit > 0 {
        all.truncate(limit as usize);
    }
    Ok(Json(AttemptsDocument { schema: SCHEMA, attempts: all, left_out }))
}

pub(super) async fn show(
    State(server): State<Shared>,
    Named(id): Named<String>,
    query: Result<Query<Waited>, QueryRejection>,
) -> Answer<ExecutionDocument> {
    let Query(waited) = query?;
    let found = find(&server, &id, waited.workspace.as_deref()).await?;
    if let Some(text) = waited.wait {
        let wait = value::duration_ms(&text)
            .map_err(|why| Refused::of(&server, &Failure::Usage(format!("wait: {why}"))))?;
        let wait = Duration::from_millis(wait).min(LONGEST_WAIT);
        // Also for the end of what runs by hand.
        let mut phase = streams::phase_of(&server, &found);
        let over = streams::finished(&server, &found, &mut phase);
        let _ = tokio::time::timeout(wait, over).await;
    }
    let running = server.entries().get(&server.name(&found.job)).map(|entry| *entry.phase.borrow());
    let (phase, code) = match (running, found.kept.clone()) {
        (Some(phase), _) => (Some(phase), None),
        (None, None) => (None, None),
        (None, Some(kept)) => {
            let job = found.job.clone();
            let (phase, code) =
                asked(&server, move |server| unattended(server, &job, &kept)).await?;
            (Some(phase), code)
        }
    };
    let id = found.job.id.to_string();
    let history = ask(&server, found.job.served, move |context| match query::show(context, &id) {
        Ok(document) => Ok(Some(document)),
        Err(Failure::Ledger(LedgerError::NoExecution { .. })) => Ok(None),
        Err(failure) => Err(failure),
    })
    .await?;
    let is_over = phase == Some(Phase::Finished);
    Ok(Json(ExecutionDocument {
        schema: SCHEMA,
        execution_id: found.job.id,
        workspace: found.root.display().to_string(),
        phase,
        exit_code: code.filter(|_| is_over),
        outcome: found.job.folder.outcome().filter(|_| is_over),
        history,
    }))
}

/// How far a submission is that this server does nothing about, and its exit code.
fn unattended(server: &Server, job: &Job, kept: &Kept) -> Result<(Phase, Option<u8>), Failure> {
    let standing = standing::of(server, job, kept, false)?;
    // Of a work tree that is not served the driver may go on. An old submission may go just now.
    let runs = job.folder.finished().is_none() && matches!(job.folder.try_lock(), Ok(None));
    Ok(if runs { (Phase::Running, None) } else { (standing.phase(), standing.exit_code()) })
}

pub(super) async fn cancel(
    State(server): State<Shared>,
    Named(id): Named<String>,
    query: Result<Query<Which>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<Value> {
    let (Query(which), _) = (query?, body?);
    // What is being taken is on the disk before it is queued: it is not judged in between.
    let one = server.submitting.lock().await;
    let found = find(&server, &id, which.workspace.as_deref()).await?;
    let unrecorded = standing::cancel(&server, &found.job, found.kept.as_ref(), found.has_begun())
        .map_err(|failure| Refused::of(&server, &failure))?;
    drop(one);
    match unrecorded {
        Cancelled::Queued => Ok(Json(json!({
            "schema": SCHEMA, "execution_id": found.job.id, "verdict": "not_begun",
            "execution_status": null,
        }))),
        Cancelled::Told => Ok(Json(json!({
            "schema": SCHEMA, "execution_id": found.job.id, "verdict": "interrupted",
            "execution_status": null,
        }))),
        Cancelled::Row if !found.has_row && found.job.folder.finished().is_some() => {
            let id = &found.job.id;
            let over = Failure::impossible(
                format!("{id} is over, and had no attempt"),
                format!("GET /v1/executions/{id}"),
            );
            Err(Refused::of(&server, &over))
        }
        Cancelled::Row => {
            let asked = found.job.id.to_string();
            let document =
                ask(&server, found.job.served, move |context| cancel::cancel(context, &asked))
                    .await?;
            let value = serde_json::to_value(document)
                .map_err(|error| Refused::of(&server, &Failure::bug(error)))?;
            Ok(Json(value))
        }
    }
}

pub(super) async fn resolve(
    State(server): State<Shared>,
    Named(id): Named<String>,
    query: Result<Query<Which>, QueryRejection>,
    request: Result<Json<ResolveRequest>, JsonRejection>,
) -> Answer<ResolveDocument> {
    let Query(which) = query?;
    let Json(request) = request?;
    let found = find(&server, &id, which.workspace.as_deref()).await?;
    let refused = |failure| Refused::of(&server, &failure);
    let decision = match request.decision.as_str() {
        "adopt" => "--adopt",
        "discard" => "--discard",
        "keep" => "--keep",
        other => {
            let why = format!("decision: {other:?} is not `adopt`, `discard` or `keep`");
            return Err(refused(Failure::Usage(why)));
        }
    };
    let mut words = vec!["resolve", "--json", decision];
    if request.writer_dead {
        words.push("--writer-dead");
    }
    words.extend(["--", found.job.id.as_str()]);
    let called = server.call(&server.served[found.job.served], &words).await.map_err(refused)?;
    serde_json::from_slice(&called.out)
        .map(Json)
        .map_err(|_| Refused::called(StatusCode::CONFLICT, "resolve", &called))
}

pub(super) async fn diff(
    State(server): State<Shared>,
    Named(id): Named<String>,
    query: Result<Query<Compared>, QueryRejection>,
) -> Result<Response, Refused> {
    let Query(compared) = query?;
    let found = find(&server, &id, compared.workspace.as_deref()).await?;
    let asked = found.job.id.to_string();
    let number = compared.attempt;
    let is_patch = match compared.format.as_deref() {
        None | Some("json") => false,
        Some("patch") => true,
        Some(other) => {
            let why = format!("format: {other:?} is not `json` or `patch`");
            return Err(Refused::of(&server, &Failure::Usage(why)));
        }
    };
    let answer = ask(&server, found.job.served, move |context| {
        let difference = changes::diff(context, &asked, number)?;
        if !is_patch {
            return serde_json::to_vec(&difference.document).map_err(Failure::bug);
        }
        let mut bytes = Vec::new();
        difference.write(&mut bytes)?.map_err(Failure::io("writing the patch"))?;
        Ok(bytes)
    })
    .await?;
    let kind = if is_patch { "text/x-diff" } else { "application/json" };
    Ok(([(header::CONTENT_TYPE, kind)], Body::from(answer)).into_response())
}
