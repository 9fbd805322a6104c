//! The embedded gate: the table `execution` of the ledger, which stands in the journal's file.
//!
//! Order rules: the `UPDATE` comes first, inside `BEGIN IMMEDIATE`; its affected-row count is the
//! verdict; then the row that stands is read, what follows is journalled, and all of it is
//! committed as one. Only after the commit is there a verdict.
//!
//! # Limitations
//! The schema is the journal's (`src/journal/schema_1.sql`). An error at the commit may hide a
//! commit that was made: the verdict is unknown then, and asking again tells.

use rusqlite::{
    Connection, OptionalExtension as _, Transaction, TransactionBehavior, named_params,
};

use super::{Gate, GateError};
use crate::base::clock;
use crate::tx::id::{AttemptNo, ExecutionId};
use crate::tx::verdict::{Claim, Row, Status, Terminal, TerminalStatus, Verdict, Won};

/// The compare-and-set: `tx::verdict::judge` as one statement. A comparison with NULL is not true,
/// so that a missing token, attempt or claim loses.
const COMPARE_AND_SET: &str = "
UPDATE execution SET
    status = :status,
    success_attempt = CASE WHEN :status = 'success' THEN :attempt END,
    success_candidate = CASE WHEN :status = 'success' THEN :candidate END,
    error = CASE WHEN :status = 'success' THEN NULL ELSE :error END,
    completed_at = CASE WHEN status = 'success' THEN completed_at ELSE :now END,
    updated_at = :now
WHERE execution_id = :execution
    AND (:token IS NULL OR claim_token = :token)
    AND (:attempt IS NULL OR current_attempt = :attempt)
    AND (:status <> 'success' OR :attempt IS NOT NULL)
    AND (status IN ('queued', 'running', 'pending_retry')
         OR (:status = 'success' AND status IN ('failed', 'skipped'))
         OR (:status = 'success' AND status = 'success'
             AND success_attempt = :attempt AND success_candidate = :candidate))";

/// What the statement did, inside a db transaction that is not committed yet: no verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether it will be won, once it is committed.
    pub won: bool,
    /// The row as it stands then.
    pub row: Option<Row>,
}

/// The gate over the ledger's own table.
#[derive(Debug)]
pub struct EmbeddedGate<'a> {
    db: &'a mut Connection,
}

impl<'a> EmbeddedGate<'a> {
    /// A gate over an open ledger: `Ledger::writable` gives the connection.
    pub fn new(db: &'a mut Connection) -> Self {
        Self { db }
    }

    /// Asks, and records what follows in the same db transaction: verdict and change of state
    /// stand there both, or neither does.
    ///
    /// `record` sees the answer before it is a verdict. It writes, and does nothing else: what it
    /// returns as an error takes the answer back, and the row is as it was.
    ///
    /// # Errors
    /// What `record` returned. Errors of SQLite outside of it are [`Verdict::Unknown`].
    pub fn ask_and_record<E>(
        &mut self,
        execution: &ExecutionId,
        ask: &Terminal,
        record: impl FnOnce(&Transaction<'_>, &Answer) -> Result<(), E>,
    ) -> Result<Verdict, E> {
        let tx = match Transaction::new(self.db, TransactionBehavior::Immediate) {
            Ok(tx) => tx,
            Err(error) => return Ok(unknown("the ledger cannot be written", &error)),
        };
        let answer = match compare_and_set(&tx, execution, ask) {
            Ok(answer) => answer,
            Err(error) => return Ok(unknown("the row cannot be written", &error)),
        };
        record(&tx, &answer)?;
        if let Err(error) = tx.commit() {
            return Ok(unknown("the verdict could not be committed", &error));
        }
        Ok(match answer {
            Answer { won: true, row: Some(row) } => Verdict::Won(Won::by(row)),
            // Cannot be: what was updated is there. Not a win, whatever it is.
            Answer { won: true, row: None } => {
                Verdict::Unknown("the row that was written cannot be found".to_owned())
            }
            Answer { won: false, row } => Verdict::Lost(row),
        })
    }

    /// The win that stands in the row already, if it names this attempt and candidate: for who
    /// takes up a won attempt after a crash. Nothing is asked.
    ///
    /// # Errors
    /// [`GateError`] where the row cannot be read.
    pub fn standing_win(
        &mut self,
        execution: &ExecutionId,
        claim: Claim,
    ) -> Result<Option<Won>, GateError> {
        Ok(self
            .row(execution)?
            .filter(|row| row.status == Status::Success && row.success == Some(claim))
            .map(Won::by))
    }
}

impl Gate for EmbeddedGate<'_> {
    fn ask(&mut self, execution: &ExecutionId, ask: &Terminal) -> Verdict {
        let recorded: Result<Verdict, std::convert::Infallible> =
            self.ask_and_record(execution, ask, |_, _| Ok(()));
        match recorded {
            Ok(verdict) => verdict,
            Err(never) => match never {},
        }
    }

    fn row(&mut self, execution: &ExecutionId) -> Result<Option<Row>, GateError> {
        row_of(self.db, execution)
            .map_err(|source| GateError { execution: execution.clone(), source: source.into() })
    }
}

fn compare_and_set(
    tx: &Connection,
    execution: &ExecutionId,
    ask: &Terminal,
) -> rusqlite::Result<Answer> {
    let candidate = match ask.status {
        TerminalStatus::Success(candidate) => Some(candidate.to_string()),
        TerminalStatus::Failed | TerminalStatus::Cancelled | TerminalStatus::Skipped => None,
    };
    let affected = tx.execute(
        COMPARE_AND_SET,
        named_params! {
            ":status": ask.status.status().as_str(),
            ":attempt": ask.from.map(|n| n.0),
            ":candidate": candidate,
            ":error": ask.error,
            ":token": ask.claim_token,
            ":execution": execution.as_str(),
            ":now": clock::now_rfc3339(),
        },
    )?;
    Ok(Answer { won: affected == 1, row: row_of(tx, execution)? })
}

fn row_of(db: &Connection, execution: &ExecutionId) -> rusqlite::Result<Option<Row>> {
    let sql = "SELECT status, current_attempt, success_attempt, success_candidate,
                      claim_token, error
               FROM execution WHERE execution_id = ?1";
    db.prepare_cached(sql)?
        .query_row([execution.as_str()], |row| {
            let attempt: Option<u32> = row.get(2)?;
            let candidate = row.get::<_, Option<String>>(3)?.map(|t| parsed(3, &t)).transpose()?;
            Ok(Row {
                execution: execution.clone(),
                status: parsed(0, &row.get::<_, String>(0)?)?,
                current_attempt: row.get::<_, Option<u32>>(1)?.map(AttemptNo),
                success: attempt
                    .zip(candidate)
                    .map(|(attempt, candidate)| Claim { attempt: AttemptNo(attempt), candidate }),
                claim_token: row.get(4)?,
                error: row.get(5)?,
            })
        })
        .optional()
}

fn parsed<T>(column: usize, text: &str) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    text.parse().map_err(|error| {
        let kind = rusqlite::types::Type::Text;
        rusqlite::Error::FromSqlConversionFailure(column, kind, Box::new(error))
    })
}

fn unknown(what: &str, error: &rusqlite::Error) -> Verdict {
    Verdict::Unknown(format!("{what}: {error}"))
}

/// For the test of the truth table: the statement, inside whatever transaction is open.
#[cfg(test)]
pub(super) fn answer(db: &Connection, execution: &ExecutionId, ask: &Terminal) -> Answer {
    compare_and_set(db, execution, ask).expect("asked")
}
