//! The API: HTTP and JSON. Who may ask, how much, and where each question goes.
//!
//! # Limitations
//! One token means one client: its rate is that of all who have it.

mod answers;
mod api;
mod executions;
mod guard;
mod streams;
mod workspaces;

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use subtle::ConstantTimeEq as _;

pub use api::api;

use super::server::Shared;
use answers::Refused;

/// The largest request, in bytes: its greatest part is the standard input of a command.
const LARGEST: usize = 16 * 1024 * 1024;
/// Requests a second over the address, and how many of them may come at once.
const RATE: f64 = 50.0;
const BURST: f64 = 100.0;

/// Who may ask.
#[derive(Clone, Debug)]
pub(super) enum Access {
    /// Whoever the file system lets at the socket.
    Owner,
    /// Who has the token.
    Token(Vec<u8>),
}

/// What stands between an address and the API.
struct Door {
    token: Vec<u8>,
    /// How many requests may come, and since when that is so.
    bucket: Mutex<(f64, Instant)>,
}

impl Door {
    /// Whether one more may come now.
    fn takes(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(bucket.1).as_secs_f64();
        let left = passed.mul_add(RATE, bucket.0).min(BURST);
        *bucket = (if left >= 1.0 { left - 1.0 } else { left }, now);
        left >= 1.0
    }

    fn knows(&self, request: &Request) -> bool {
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        // In constant time for tokens of one length; the length is no secret.
        given.is_some_and(|given| given.ct_eq(&self.token).into())
    }
}

/// All routes. `api.rs` describes them; a test keeps the two in step.
pub(super) fn router(server: Shared, access: Access) -> Router {
    let counted = Shared::clone(&server);
    let routes = Router::new()
        .route("/v1/health", get(workspaces::health))
        .route("/v1/ready", get(workspaces::ready))
        .route("/v1/openapi.json", get(api::page))
        .route("/v1/workspaces", get(workspaces::list))
        .route("/v1/reconcile", post(workspaces::reconcile))
        .route("/v1/executions", get(executions::list).post(executions::submit))
        .route("/v1/executions/{id}", get(executions::show))
        .route("/v1/executions/{id}/cancel", post(executions::cancel))
        .route("/v1/executions/{id}/resolve", post(executions::resolve))
        .route("/v1/executions/{id}/diff", get(executions::diff))
        .route("/v1/executions/{id}/events", get(streams::of_execution))
        .route("/v1/executions/{id}/output/{stream}", get(streams::output))
        .route("/v1/events", get(streams::of_all))
        .route("/v1/guard", post(guard::acquire))
        .route("/v1/guard/{lease}", delete(guard::release).post(guard::renew))
        .route("/metrics", get(workspaces::metrics))
        .fallback(|| async { Refused::not_found("there is no such thing; see /v1/openapi.json") })
        .method_not_allowed_fallback(|| async { Refused::method() })
        .layer(DefaultBodyLimit::max(LARGEST))
        .layer(middleware::from_fn_with_state(counted, first))
        .with_state(server);
    match access {
        Access::Owner => routes,
        Access::Token(token) => {
            let bucket = Mutex::new((BURST, Instant::now()));
            let door = std::sync::Arc::new(Door { token, bucket });
            routes.layer(middleware::from_fn_with_state(door, at_the_door))
        }
    }
}

/// Before anything else: counts, and refuses at once what says itself that it is too large.
async fn first(State(server): State<Shared>, request: Request, next: Next) -> Response {
    server.metrics.request();
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > LARGEST) {
        let message = format!("a request has at most {LARGEST} bytes");
        return Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", &message).into_response();
    }
    next.run(request).await
}

async fn at_the_door(
    State(door): State<std::sync::Arc<Door>>,
    request: Request,
    next: Next,
) -> Response {
    if !door.knows(&request) {
        return Refused::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "the token is missing or wrong",
        )
        .into_response();
    }
    // Whoever has no token takes nothing from those who have.
    if !door.takes(Instant::now()) {
        return Refused::new(StatusCode::TOO_MANY_REQUESTS, "too_many", "too many requests")
            .into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_door_lets_a_burst_in_and_then_a_rate() {
        let start = Instant::now();
        let door = Door { token: Vec::new(), bucket: Mutex::new((BURST, start)) };
        let at_once = (0..1000).filter(|_| door.takes(start)).count();
        assert_eq!(at_once, 100);
        let later = (0..1000).filter(|_| door.takes(start + Duration::from_secs(1))).count();
        assert_eq!(later, 50);
        assert!(!door.takes(start), "time does not go back");
    }
}
