//! Leases on workspaces: programs that work in a repository with git on their own ask for one, and
//! no attempt begins meanwhile.
//!
//! Order rule: the workspace lock is taken first; then the ledger is asked whether the tree is at
//! rest. A lease on a tree with somebody's leftovers is not given.
//!
//! # Limitations
//! A lease ends with the server, and by time: its holder must be done before, or renew it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::server::Shared;
use crate::coordinator::error::Failure;
use crate::coordinator::guard::guarded;
use crate::git::workspace::lockfile::WorkspaceLock;

/// How long a lease is, unless it is asked for otherwise.
pub(super) const TTL: Duration = Duration::from_mins(1);
/// The longest.
pub(super) const LONGEST: Duration = Duration::from_hours(1);
/// Between two tries for a workspace that is busy.
const RETRY: Duration = Duration::from_millis(100);

struct Lease {
    served: usize,
    /// Counts renewals: the timer of an older one ends nothing.
    renewed: u64,
    _lock: WorkspaceLock,
    /// No driver is started meanwhile, only to wait.
    _turn: OwnedSemaphorePermit,
}

/// Those that are given.
#[derive(Default)]
pub(super) struct Leases(Mutex<HashMap<String, Lease>>);

impl Leases {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.all().len()
    }
}

/// Gives a lease, at once or within `wait`; its name.
///
/// # Errors
/// The workspace is busy, or not at rest.
pub(super) async fn acquire(
    server: &Shared,
    served: usize,
    holder: &str,
    ttl: Duration,
    wait: Duration,
) -> Result<String, Failure> {
    let until = Instant::now() + wait;
    // In its turn among those that wait for this work tree here.
    let turn = std::sync::Arc::clone(&server.served[served].turn).acquire_owned();
    let turn = match tokio::time::timeout_at(until, turn).await {
        Ok(turn) => turn.map_err(Failure::bug)?,
        Err(_) => return Err(Failure::Busy { holder: None }),
    };
    let mut settled = false;
    let lock = loop {
        let (asked, holder) = (Shared::clone(server), format!("guard {holder}"));
        let tried = tokio::task::spawn_blocking(move || {
            guarded::take(&asked.served[served].context()?, &holder, None)
        });
        let tried = tried.await.map_err(Failure::bug)?;
        match tried {
            Err(Failure::Busy { .. }) if Instant::now() < until => {
                tokio::time::sleep(RETRY).await;
            }
            // What a crash left is settled first, once.
            Err(Failure::Impossible { .. }) if !settled => {
                settled = true;
                server.call(&server.served[served], &["reconcile", "--json"]).await?;
            }
            done => break done?,
        }
    };
    let name = ulid::Ulid::generate().to_string();
    let lease = Lease { served, renewed: 0, _lock: lock, _turn: turn };
    server.leases.all().insert(name.clone(), lease);
    expire(server, name.clone(), 0, ttl);
    Ok(name)
}

/// Makes a lease end later; its workspace.
pub(super) fn renew(server: &Shared, name: &str, ttl: Duration) -> Result<usize, Failure> {
    let mut all = server.leases.all();
    let lease = all.get_mut(name).ok_or_else(gone)?;
    lease.renewed += 1;
    let (served, renewed) = (lease.served, lease.renewed);
    drop(all);
    expire(server, name.to_owned(), renewed, ttl);
    Ok(served)
}

/// Ends a lease.
pub(super) fn release(server: &Shared, name: &str) -> Result<(), Failure> {
    server.leases.all().remove(name).map(drop).ok_or_else(gone)
}

fn gone() -> Failure {
    Failure::impossible("there is no such lease; it has ended", "ask for a new one")
}

fn expire(server: &Shared, name: String, renewed: u64, ttl: Duration) {
    let server = Shared::clone(server);
    tokio::spawn(async move {
        tokio::time::sleep(ttl).await;
        let mut all = server.leases.all();
        if all.get(&name).is_some_and(|lease| lease.renewed == renewed) {
            all.remove(&name);
            tracing::warn!(lease = name, "a guard lease has run out");
        }
    });
}
