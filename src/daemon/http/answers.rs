//! What is answered: a document, or a problem with its HTTP status.
//!
//! # Limitations
//! The words of a failure are those of the command line, by [`Describe`](super::super::Describe).

use axum::Json;
use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::super::documents::Problem;
use super::super::server::{Called, Shared};
use crate::coordinator::attempt::outcome::SCHEMA;
use crate::coordinator::context::Context;
use crate::coordinator::error::Failure;
use crate::journal::LedgerError;
use crate::tx::cause::ErrorCode;

/// A request that is not granted.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    problem: Box<Problem>,
}

/// An answer.
pub(super) type Answer<T> = Result<Json<T>, Refused>;

impl Refused {
    /// A refusal by the API itself.
    pub(super) fn new(status: StatusCode, reason: &str, message: &str) -> Self {
        let problem = Problem {
            schema: SCHEMA,
            reason: reason.to_owned(),
            error_code: ErrorCode::Refused,
            message: message.to_owned(),
            hint: None,
            exit_code: 1,
        };
        Self { status, problem: Box::new(problem) }
    }

    pub(super) fn not_found(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(super) fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method", "this cannot be done with it")
    }

    /// With what to do about it.
    pub(super) fn hint(mut self, hint: &str) -> Self {
        self.problem.hint = Some(hint.to_owned());
        self
    }

    /// Whether it is the request that does not fit, not the server that cannot.
    pub(super) fn is_conflict(&self) -> bool {
        self.status == StatusCode::CONFLICT
    }

    /// What is wrong.
    pub(super) fn message(self) -> String {
        self.problem.message
    }

    /// A command that could not do it, in its own words.
    pub(super) fn called(status: StatusCode, reason: &str, called: &Called) -> Self {
        let line = |word: &str| {
            called.said.lines().find_map(|line| Some(line.strip_prefix(word)?.trim().to_owned()))
        };
        let said = || format!("worktx {reason} exited with {}", called.code);
        let mut refused = Self::new(status, reason, &line("Error:").unwrap_or_else(said));
        refused.problem.hint = line("Hint:");
        refused.problem.exit_code = u8::try_from(called.code).unwrap_or(u8::MAX);
        refused
    }

    /// A failure of the coordinator, in the words of the command line.
    pub(super) fn of(server: &Shared, failure: &Failure) -> Self {
        let status = match failure {
            Failure::Usage(_) | Failure::Config(_) => StatusCode::BAD_REQUEST,
            Failure::Ledger(LedgerError::NoExecution { .. }) => StatusCode::NOT_FOUND,
            Failure::Ledger(LedgerError::Full { .. }) => StatusCode::INSUFFICIENT_STORAGE,
            Failure::Busy { .. } => StatusCode::LOCKED,
            Failure::Impossible { .. }
            | Failure::Refused { .. }
            | Failure::Standing(_)
            | Failure::Ledger(LedgerError::Ambiguous { .. }) => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, problem: Box::new((server.describe)(failure)) }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, Json(*self.problem)).into_response()
    }
}

impl Refused {
    /// A request that cannot be read: what the command line calls a usage error.
    fn usage(status: StatusCode, message: &str) -> Self {
        let mut refused = Self::new(status, "usage", message);
        refused.problem.error_code = ErrorCode::Internal;
        refused.problem.exit_code = 2;
        refused
    }
}

impl From<JsonRejection> for Refused {
    fn from(error: JsonRejection) -> Self {
        Self::usage(error.status(), &error.body_text())
    }
}

impl From<QueryRejection> for Refused {
    fn from(error: QueryRejection) -> Self {
        Self::usage(error.status(), &error.body_text())
    }
}

impl From<PathRejection> for Refused {
    fn from(error: PathRejection) -> Self {
        Self::usage(error.status(), &error.body_text())
    }
}

impl From<BytesRejection> for Refused {
    fn from(error: BytesRejection) -> Self {
        Self::usage(error.status(), &error.body_text())
    }
}

/// What the path of a request names; where it is not to be read, a problem like any other.
pub(super) struct Named<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let Path(named) = Path::from_request_parts(parts, state).await?;
        Ok(Self(named))
    }
}

/// Asks something of a ledger, and of the work tree that it is about where that is there. Waiting for
/// a disk holds nobody up.
pub(super) async fn ask<T: Send + 'static>(
    server: &Shared,
    served: usize,
    question: impl FnOnce(&Context) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Refused> {
    asked(server, move |server| question(&server.context_near(served)?)).await
}

/// As [`ask`], of this work tree alone.
pub(super) async fn ask_tree<T: Send + 'static>(
    server: &Shared,
    served: usize,
    question: impl FnOnce(&Context) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Refused> {
    asked(server, move |server| question(&server.served[served].context()?)).await
}

/// Asks the server something that may wait for a disk.
pub(super) async fn asked<T: Send + 'static>(
    server: &Shared,
    question: impl FnOnce(&Shared) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Refused> {
    let asking = Shared::clone(server);
    match tokio::task::spawn_blocking(move || question(&asking)).await {
        Ok(answer) => answer.map_err(|failure| Refused::of(server, &failure)),
        Err(error) => Err(Refused::of(server, &Failure::bug(error))),
    }
}
