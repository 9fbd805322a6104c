//! The server itself and its work trees.
//!
//! # Limitations
//! Whether a work tree can be a base is not asked here: that is a look at all of it.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::json;

use super::super::documents::{Phase, WorkspaceDocument, WorkspacesDocument};
use super::super::server::Shared;
use super::answers::{Answer, Refused, ask_tree};
use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::report::documents::ReconcileDocument;
use crate::tx::tag::StateTag;

/// `?workspace=`
#[derive(Debug, Deserialize)]
pub(super) struct Which {
    workspace: Option<String>,
}

pub(super) async fn health() -> Response {
    Json(json!({ "schema": SCHEMA, "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
        .into_response()
}

pub(super) async fn ready(State(server): State<Shared>) -> Response {
    let mut unusable = Vec::new();
    for at in 0..server.served.len() {
        if ask_tree(&server, at, |context| context.ledger().map(drop)).await.is_err() {
            unusable.push(server.served[at].root.display().to_string());
        }
    }
    // Where one of several cannot be used, work for the others is taken.
    let ready = server.is_ready() && unusable.len() < server.served.len();
    let draining = *server.draining.borrow();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let said = json!({
        "schema": SCHEMA, "ready": ready, "draining": draining, "unusable": unusable,
    });
    (status, Json(said)).into_response()
}

pub(super) async fn metrics(State(server): State<Shared>) -> Result<Response, Refused> {
    let counting = Shared::clone(&server);
    let page = tokio::task::spawn_blocking(move || counting.metrics.page(&counting)).await;
    let page = match page {
        Ok(page) => page.map_err(|failure| Refused::of(&server, &failure))?,
        Err(error) => return Err(Refused::of(&server, &super::super::Failure::bug(error))),
    };
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], page).into_response())
}

pub(super) async fn list(State(server): State<Shared>) -> Answer<WorkspacesDocument> {
    let mut workspaces = Vec::new();
    for at in 0..server.served.len() {
        let counted = ask_tree(&server, at, |context| {
            let Some(ledger) = context.ledger()? else { return Ok((0, 0)) };
            let unsettled = ledger.unsettled(Some(&context.workspace.id()))?;
            let mut quarantined = 0;
            for attempt in &unsettled {
                quarantined += usize::from(attempt.tag()? == StateTag::Quarantined);
            }
            Ok((unsettled.len(), quarantined))
        });
        // One that cannot be used keeps nobody from the others.
        let ((unsettled, quarantined), error) = match counted.await {
            Ok(counts) => (counts, None),
            Err(refused) => ((0, 0), Some(refused.message())),
        };
        let entries = server.entries();
        let here = || entries.iter().filter(|(_, entry)| entry.served == at);
        let in_phase = |phase| here().filter(move |(_, entry)| *entry.phase.borrow() == phase);
        workspaces.push(WorkspaceDocument {
            root: server.served[at].root.display().to_string(),
            state: server.state_of(at).path.display().to_string(),
            running: in_phase(Phase::Running).next().map(|((_, id), _)| id.clone()),
            queued: in_phase(Phase::Queued).count(),
            unsettled,
            quarantined,
            error,
            watches: server.served[at].watched.get().map(|told| told.now().watches),
        });
    }
    Ok(Json(WorkspacesDocument { schema: SCHEMA, workspaces }))
}

pub(super) async fn reconcile(
    State(server): State<Shared>,
    query: Result<Query<Which>, QueryRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<ReconcileDocument> {
    let (Query(which), _) = (query?, body?);
    let refused = |failure| Refused::of(&server, &failure);
    let at = server.find(which.workspace.as_deref()).map_err(refused)?;
    let called =
        server.call(&server.served[at], &["reconcile", "--json"]).await.map_err(refused)?;
    serde_json::from_slice(&called.out)
        .map(Json)
        .map_err(|_| Refused::called(StatusCode::INTERNAL_SERVER_ERROR, "reconcile", &called))
}
