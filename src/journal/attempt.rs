//! What is written of an attempt: its opening, its changes of state, its events.
//!
//! Order rules: the row of the execution, the attempt and its first event come in one db
//! transaction; so do a change of state and its event. The embedded gate runs a [`Change`] inside
//! its own db transaction, beside the verdict.
//!
//! # Limitations
//! Which state may follow which is the business of `tx::state`; here only the one that stands
//! is compared.

use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension as _, Transaction, named_params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{LedgerError, fault};
use super::open::{Ledger, journal_of};
use super::read::row_of;
use super::space;
use super::sql::{Sorted as _, path_to_sql, to_json};
use crate::base::clock;
use crate::tx::id::{AttemptKey, AttemptNo, ExecutionId};
use crate::tx::record::AttemptRecord;
use crate::tx::tag::StateTag;
use crate::tx::verdict::{Row, Status};
use crate::tx::writer::{HostId, ProcessId};

/// The process that drives an attempt: its coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Where the id means something.
    pub host: HostId,
    /// The process.
    pub process: ProcessId,
}

/// A workspace, as the ledger knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// What stays the same when the repository is moved or mounted elsewhere: the git directory,
    /// relative to the common directory (empty for the main work tree, `worktrees/<name>`).
    pub id: String,
    /// The root of the work tree, where it stood last.
    pub root: PathBuf,
    /// The git directory, where it stood last.
    pub git_dir: PathBuf,
}

/// An attempt to be opened.
#[derive(Clone, Debug)]
pub struct NewAttempt<'a> {
    /// Of what.
    pub execution: &'a ExecutionId,
    /// The largest attempt that the refs know: a number is never used twice, even if the ledger
    /// has forgotten it.
    pub largest_in_refs: Option<AttemptNo>,
    /// Where.
    pub workspace: &'a Workspace,
    /// By whom.
    pub owner: &'a Owner,
    /// The platform's claim, where there is one; else the row keeps the one that it has.
    pub claim_token: Option<&'a str>,
}

/// What is recorded of an attempt when its number is known.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its first record: state `open`, with the pins to come.
    pub record: AttemptRecord,
    /// What never changes: captured configuration, post-check, base, command.
    pub spec: Value,
    /// The detail of the event `opened`.
    pub detail: Value,
}

/// What came of opening an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is recorded, at revision 0.
    Attempt(AttemptKey),
    /// Nothing was written: the execution is done with.
    Standing(Row),
}

/// A change of one attempt: by compare-and-set, with its event.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Of what.
    pub key: &'a AttemptKey,
    /// The state that must stand there.
    pub expected: StateTag,
    /// The revision that must stand there: tells apart what the state alone does not.
    pub rev: u64,
    /// What is to stand there.
    pub record: &'a AttemptRecord,
    /// The word in the event table: [`crate::tx::state::TxEvent::name`], or another where only
    /// pins or warnings change.
    pub event: &'a str,
    /// More about the event.
    pub detail: &'a Value,
    /// The outcome document, where there is one now.
    pub outcome: Option<&'a Value>,
}

impl Change<'_> {
    /// Writes it inside a db transaction that somebody else commits; the new revision.
    ///
    /// # Errors
    /// [`LedgerError::Stale`] where something else stands there; the transaction is then to be
    /// dropped.
    pub fn apply(&self, tx: &Transaction<'_>) -> Result<u64, LedgerError> {
        let (to, now) = (self.record.state.tag(), clock::now_rfc3339());
        let data = to_json(tx, "attempt.data", self.record)?;
        let changed = tx
            .prepare_cached(
                "UPDATE attempt SET state = :to, data = :data, rev = rev + 1, updated_at = :now,
                     settled_at = CASE WHEN :settled THEN coalesce(settled_at, :now) END,
                     outcome = coalesce(:outcome, outcome)
                 WHERE execution_id = :execution AND attempt = :attempt
                     AND state = :expected AND rev = :rev",
            )
            .at(tx)?
            .execute(named_params! {
                ":to": to.as_str(),
                ":data": data,
                ":now": now,
                ":settled": to.is_settled(),
                ":outcome": self.outcome.map(Value::to_string),
                ":execution": self.key.execution.as_str(),
                ":attempt": self.key.attempt.0,
                ":expected": self.expected.as_str(),
                ":rev": signed(self.rev),
            })
            .at(tx)?;
        if changed != 1 {
            return Err(LedgerError::Stale {
                key: self.key.clone(),
                expected: self.expected,
                rev: self.rev,
                found: standing(tx, self.key).at(tx)?,
            });
        }
        let event = NewEvent {
            execution: &self.key.execution,
            attempt: Some(self.key.attempt),
            at: &now,
            kind: self.event,
            from: Some(self.expected),
            to: Some(to),
            detail: self.detail,
        };
        event.insert(tx)?;
        Ok(self.rev + 1)
    }
}

impl Ledger {
    /// Opens the next attempt of an execution: one db transaction makes or takes its row
    /// (`running`, fenced to this attempt) and records the attempt as `open`.
    ///
    /// The number is 1 + the largest of ledger, row and refs; `facts` is asked once it is known.
    /// Where the row says `success`, `cancelled` or `skipped`, nothing is written and the row is
    /// given back. Not for a refusal: that is [`Ledger::record_event`], and touches no row.
    ///
    /// # Errors
    /// [`LedgerError::Full`] where not even the reserve for the attempt's way to the end can be
    /// had; else what [`LedgerError`] has.
    pub fn open_attempt(
        &mut self,
        new: &NewAttempt<'_>,
        facts: impl FnOnce(AttemptNo) -> Facts,
    ) -> Result<Opened, LedgerError> {
        let journal = journal_of(&self.path);
        let path = self.path.clone();
        space::keep(self.writable()?, &journal).map_err(|error| fault(&path, error))?;
        self.write(|tx| {
            let row = row_of(tx, new.execution).at(tx)?;
            if let Some(row) = row.as_ref().filter(|row| {
                matches!(row.status, Status::Success | Status::Cancelled | Status::Skipped)
            }) {
                return Ok(Opened::Standing(row.clone()));
            }
            let recorded: Option<u32> = tx
                .query_row(
                    "SELECT max(attempt) FROM attempt WHERE execution_id = ?1",
                    [new.execution.as_str()],
                    |found| found.get(0),
                )
                .at(tx)?;
            let largest = [
                recorded,
                row.and_then(|row| row.current_attempt).map(|n| n.0),
                new.largest_in_refs.map(|n| n.0),
            ];
            let number = AttemptNo(1 + largest.into_iter().flatten().max().unwrap_or(0));
            let key = AttemptKey { execution: new.execution.clone(), attempt: number };
            let facts = facts(number);
            insert(tx, new, &key, &facts)?;
            Ok(Opened::Attempt(key))
        })
    }

    /// Changes one attempt; the new revision.
    ///
    /// # Errors
    /// [`LedgerError::Stale`] where something else stands there than expected.
    pub fn transition(&mut self, change: &Change<'_>) -> Result<u64, LedgerError> {
        self.write(|tx| change.apply(tx))
    }

    /// Records an event that changes no state: a refusal (no attempt; no row is made or changed),
    /// or something noticed about an attempt.
    pub fn record_event(
        &mut self,
        execution: &ExecutionId,
        attempt: Option<AttemptNo>,
        kind: &str,
        detail: &Value,
    ) -> Result<(), LedgerError> {
        let at = clock::now_rfc3339();
        self.write(|tx| {
            NewEvent { execution, attempt, at: &at, kind, from: None, to: None, detail }.insert(tx)
        })
    }

    /// Keeps the outcome document of an attempt, in whatever state it is; the last one stands.
    ///
    /// # Errors
    /// [`LedgerError::NoAttempt`].
    pub fn set_outcome(&mut self, key: &AttemptKey, outcome: &Value) -> Result<(), LedgerError> {
        self.write(|tx| {
            let changed = tx
                .execute(
                    "UPDATE attempt SET outcome = ?3 WHERE execution_id = ?1 AND attempt = ?2",
                    (key.execution.as_str(), key.attempt.0, outcome.to_string()),
                )
                .at(tx)?;
            if changed == 1 { Ok(()) } else { Err(LedgerError::NoAttempt { key: key.clone() }) }
        })
    }

    /// Makes another process the owner of an attempt, if `expected` still is: who reconciles
    /// takes it over from who died.
    ///
    /// # Errors
    /// [`LedgerError::OwnerChanged`] where somebody else was faster.
    pub fn claim_owner(
        &mut self,
        key: &AttemptKey,
        expected: Option<&Owner>,
        owner: &Owner,
    ) -> Result<(), LedgerError> {
        self.write(|tx| {
            let found: Option<String> = tx
                .query_row(
                    "SELECT owner FROM attempt WHERE execution_id = ?1 AND attempt = ?2",
                    (key.execution.as_str(), key.attempt.0),
                    |row| row.get(0),
                )
                .optional()
                .at(tx)?
                .ok_or_else(|| LedgerError::NoAttempt { key: key.clone() })?;
            let found = found.and_then(|text| serde_json::from_str::<Owner>(&text).ok());
            if found.as_ref() != expected {
                return Err(LedgerError::OwnerChanged { key: key.clone() });
            }
            let text = to_json(tx, "attempt.owner", owner)?;
            tx.execute(
                "UPDATE attempt SET owner = ?3 WHERE execution_id = ?1 AND attempt = ?2",
                (key.execution.as_str(), key.attempt.0, &text),
            )
            .at(tx)?;
            let at = clock::now_rfc3339();
            let detail = serde_json::json!({ "owner": owner, "before": found });
            let event = NewEvent {
                execution: &key.execution,
                attempt: Some(key.attempt),
                at: &at,
                kind: "owner_changed",
                from: None,
                to: None,
                detail: &detail,
            };
            event.insert(tx)
        })
    }
}

fn insert(
    tx: &Transaction<'_>,
    new: &NewAttempt<'_>,
    key: &AttemptKey,
    facts: &Facts,
) -> Result<(), LedgerError> {
    let now = clock::now_rfc3339();
    let state = facts.record.state.tag();
    tx.execute(
        "INSERT INTO execution (execution_id, status, current_attempt, claim_token,
                                created_at, updated_at)
         VALUES (:execution, 'running', :attempt, :token, :now, :now)
         ON CONFLICT (execution_id) DO UPDATE SET
             status = 'running', current_attempt = :attempt,
             claim_token = coalesce(:token, claim_token),
             success_attempt = NULL, success_candidate = NULL, error = NULL,
             updated_at = :now, completed_at = NULL",
        named_params! {
            ":execution": key.execution.as_str(),
            ":attempt": key.attempt.0,
            ":token": new.claim_token,
            ":now": now,
        },
    )
    .at(tx)?;
    tx.execute(
        "INSERT INTO workspace (workspace_id, root, git_dir) VALUES (?1, ?2, ?3)
         ON CONFLICT (workspace_id) DO UPDATE SET root = ?2, git_dir = ?3",
        (&new.workspace.id, path_to_sql(&new.workspace.root), path_to_sql(&new.workspace.git_dir)),
    )
    .at(tx)?;
    tx.execute(
        "INSERT INTO attempt (execution_id, attempt, workspace_id, state, rev, started_at,
                              updated_at, owner, data, spec)
         VALUES (:execution, :attempt, :workspace, :state, 0, :now, :now, :owner, :data, :spec)",
        named_params! {
            ":execution": key.execution.as_str(),
            ":attempt": key.attempt.0,
            ":workspace": new.workspace.id,
            ":state": state.as_str(),
            ":now": now,
            ":owner": to_json(tx, "attempt.owner", new.owner)?,
            ":data": to_json(tx, "attempt.data", &facts.record)?,
            ":spec": facts.spec.to_string(),
        },
    )
    .at(tx)?;
    let event = NewEvent {
        execution: &key.execution,
        attempt: Some(key.attempt),
        at: &now,
        kind: "opened",
        from: None,
        to: Some(state),
        detail: &facts.detail,
    };
    event.insert(tx)
}

/// The state and revision of an attempt, as they stand.
fn standing(db: &Connection, key: &AttemptKey) -> rusqlite::Result<Option<(String, u64)>> {
    db.query_row(
        "SELECT state, rev FROM attempt WHERE execution_id = ?1 AND attempt = ?2",
        (key.execution.as_str(), key.attempt.0),
        |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())),
    )
    .optional()
}

/// An event to be written.
pub(super) struct NewEvent<'a> {
    pub execution: &'a ExecutionId,
    pub attempt: Option<AttemptNo>,
    pub at: &'a str,
    pub kind: &'a str,
    pub from: Option<StateTag>,
    pub to: Option<StateTag>,
    pub detail: &'a Value,
}

impl NewEvent<'_> {
    pub(super) fn insert(&self, tx: &Transaction<'_>) -> Result<(), LedgerError> {
        tx.prepare_cached(
            "INSERT INTO event (execution_id, attempt, at, kind, from_state, to_state, detail)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .at(tx)?
        .execute((
            self.execution.as_str(),
            self.attempt.map(|n| n.0),
            self.at,
            self.kind,
            self.from.map(StateTag::as_str),
            self.to.map(StateTag::as_str),
            self.detail.to_string(),
        ))
        .map(drop)
        .at(tx)
    }
}

/// SQLite's integers have a sign; a revision never comes near its end.
fn signed(rev: u64) -> i64 {
    i64::try_from(rev).unwrap_or(i64::MAX)
}
