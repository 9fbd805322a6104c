//! The resident coordinator: one process that takes executions over a socket, starts a driver for
//! each, and answers while they run.
//!
//! ```text
//! client ── socket ── server ── driver (`worktx run`) ── supervisor ── turn
//! ```
//!
//! There is one way to drive an attempt, and it is not here: the server starts `worktx run`, one at
//! a time on a work tree, and what is known of an attempt stands in the ledger. So it may be killed
//! at any moment: drivers go on without it, and the next server takes up what was submitted.
//!
//! Order rule: lock, migrate, reconcile, watch, listen. A submission is durable before it is answered.
//!
//! # Limitations
//! What is held warm of a work tree is where something happened; all else each driver opens anew.

mod check;
mod documents;
mod drivers;
mod guard;
mod http;
mod listen;
mod metrics;
mod server;
mod standing;
mod submission;
mod submit;
mod watching;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

pub use check::check;
pub use documents::{
    ExecutionDocument, ExecutionsDocument, GuardDocument, GuardRequest, Phase, Problem,
    ResolveRequest, Submission, WorkspaceDocument, WorkspacesDocument,
};
pub use http::api;

use crate::coordinator::error::Failure;
use server::Server;

/// Says what a failure is, to people and programs: given by `cli`, which decides the words.
pub type Describe = fn(&Failure) -> Problem;

/// What a server is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directories in the work trees to serve; at least one.
    pub workspaces: Vec<PathBuf>,
    /// A set of defaults.
    pub profile: Option<String>,
    /// An address to listen on beside the socket.
    pub listen: Option<SocketAddr>,
    /// The file with the token that is wanted there.
    pub token_file: Option<PathBuf>,
    /// The address may be one that other machines reach.
    pub anywhere: bool,
    /// How many drivers at once; 0 is as many as there are work trees.
    pub max_running: usize,
    /// How long running executions may go on after a SIGTERM, before they are interrupted.
    pub drain: Duration,
    /// The words for failures.
    pub describe: Describe,
}

/// Serves until it is told to end.
///
/// `ready` is told once, when requests are answered: the sockets.
///
/// # Errors
/// A workspace cannot be served, or an address cannot be had.
pub fn serve(options: &Options, ready: impl FnOnce(&[String])) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::io("starting the server"))?;
    let done = runtime.block_on(run(options, ready));
    // A reader of a ledger may still be at work; nobody waits for it.
    runtime.shutdown_background();
    done
}

async fn run(options: &Options, ready: impl FnOnce(&[String])) -> Result<(), Failure> {
    let mut terminate =
        signal(SignalKind::terminate()).map_err(Failure::io("installing signal handlers"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(Failure::io("installing signal handlers"))?;
    let server = Arc::new(Server::open(options)?);
    server.metrics.begin(&server)?;
    tokio::select! {
        done = server.reconcile() => done?,
        // The process that reconciles goes on, and leaves nothing half done.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    server.watch()?;
    tokio::select! {
        () = server.warm_up() => {}
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    let sockets = listen::bind(&server, options).await?;
    submit::resume(&server)?;
    let names: Vec<String> = sockets.iter().map(listen::Listening::name).collect();
    let mut serving = listen::serve(sockets, &server);
    ready(&names);
    server.set_ready();
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        Some(ended) = serving.join_next() => {
            return match ended {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(Failure::io("answering requests")(error)),
                Err(error) => Err(Failure::bug(error)),
            };
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!(drain = ?options.drain, "told to end");
    tokio::select! {
        () = drivers::drain(&server, options.drain) => {}
        _ = terminate.recv() => tracing::info!("told twice: leaving at once"),
        _ = interrupt.recv() => tracing::info!("told twice: leaving at once"),
    }
    Ok(())
}
