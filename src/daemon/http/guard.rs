//! Leases over HTTP.
//!
//! # Limitations
//! Whoever knows the name of a lease may end it.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use std::time::Duration;

use super::super::documents::{GuardDocument, GuardRequest};
use super::super::guard::{self, LONGEST, TTL};
use super::super::server::Shared;
use super::answers::{Answer, Named, Refused};
use crate::base::clock;
use crate::config::value;
use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::error::Failure;

fn duration(name: &str, text: Option<&str>, default: Duration) -> Result<Duration, Failure> {
    text.map_or(Ok(default), |text| {
        let read = value::duration_ms(text);
        read.map(Duration::from_millis).map_err(|why| Failure::Usage(format!("{name}: {why}")))
    })
}

fn document(server: &Shared, served: usize, lease: String, ttl: Duration) -> GuardDocument {
    let ends = jiff::Timestamp::now() + ttl;
    GuardDocument {
        schema: SCHEMA,
        lease,
        workspace: server.served[served].root.display().to_string(),
        expires_at: clock::rfc3339(ends),
    }
}

pub(super) async fn acquire(
    State(server): State<Shared>,
    request: Result<Json<GuardRequest>, JsonRejection>,
) -> Answer<GuardDocument> {
    let Json(request) = request?;
    let refused = |failure| Refused::of(&server, &failure);
    let at = server.find(request.workspace.as_deref()).map_err(refused)?;
    let ttl = duration("ttl", request.ttl.as_deref(), TTL).map_err(refused)?.min(LONGEST);
    let wait = duration("wait", request.wait.as_deref(), Duration::ZERO).map_err(refused)?;
    let holder = request.holder.unwrap_or_default();
    let lease =
        guard::acquire(&server, at, &holder, ttl, wait.min(LONGEST)).await.map_err(refused)?;
    Ok(Json(document(&server, at, lease, ttl)))
}

pub(super) async fn renew(
    State(server): State<Shared>,
    Named(lease): Named<String>,
    request: Result<Json<GuardRequest>, JsonRejection>,
) -> Answer<GuardDocument> {
    let Json(request) = request?;
    let refused = |failure| Refused::of(&server, &failure);
    let ttl = duration("ttl", request.ttl.as_deref(), TTL).map_err(refused)?.min(LONGEST);
    let at = guard::renew(&server, &lease, ttl).map_err(refused)?;
    Ok(Json(document(&server, at, lease, ttl)))
}

pub(super) async fn release(
    State(server): State<Shared>,
    Named(lease): Named<String>,
) -> Answer<serde_json::Value> {
    guard::release(&server, &lease).map_err(|failure| Refused::of(&server, &failure))?;
    Ok(Json(serde_json::json!({ "schema": SCHEMA, "lease": lease })))
}
