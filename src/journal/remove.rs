//! What gc takes out of the ledger: whole settled attempts, and old notes about refusals.
//!
//! Order rules: the refs and files of an attempt go before its record, so that nothing is left
//! that no record names. The row of its execution stays for good: it is what a re-delivered
//! execution is answered from, and what keeps attempt numbers from being used again.
//!
//! # Limitations
//! The file does not shrink: free pages are the reserve of attempts to come.

use rusqlite::{OptionalExtension as _, Transaction};

use super::error::LedgerError;
use super::open::Ledger;
use super::sql::Sorted as _;
use crate::tx::id::AttemptKey;

impl Ledger {
    /// Removes settled attempts with their events: all of them, or none.
    ///
    /// # Errors
    /// [`LedgerError::NotSettled`], [`LedgerError::NoAttempt`].
    pub fn remove_settled(&mut self, keys: &[AttemptKey]) -> Result<(), LedgerError> {
        if keys.is_empty() {
            return Ok(());
        }
        self.write(|tx| keys.iter().try_for_each(|key| remove(tx, key)))
    }

    /// Removes the events without an attempt (refusals) from before a time, RFC 3339 in UTC as
    /// [`crate::base::clock::rfc3339`] writes it; how many.
    pub fn remove_refusals_before(&mut self, time: &str) -> Result<usize, LedgerError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM event WHERE attempt IS NULL AND at < ?1)";
        let any: bool = self.db.query_row(sql, [time], |row| row.get(0)).at(&self.db)?;
        if !any {
            // A db transaction that changes nothing has its five syncs all the same.
            return Ok(0);
        }
        self.write(|tx| {
            tx.execute(
                "INSERT INTO removal (execution_id, attempt)
                 SELECT DISTINCT execution_id, NULL FROM event WHERE attempt IS NULL AND at < ?1",
                [time],
            )
            .at(tx)?;
            let removed =
                tx.execute("DELETE FROM event WHERE attempt IS NULL AND at < ?1", [time]).at(tx)?;
            tx.execute("DELETE FROM removal", []).at(tx)?;
            Ok(removed)
        })
    }
}

fn remove(tx: &Transaction<'_>, key: &AttemptKey) -> Result<(), LedgerError> {
    let of = (key.execution.as_str(), key.attempt.0);
    let found: Option<(String, bool)> = tx
        .query_row(
            "SELECT state, settled_at IS NOT NULL FROM attempt
             WHERE execution_id = ?1 AND attempt = ?2",
            of,
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()
        .at(tx)?;
    match found {
        None => return Err(LedgerError::NoAttempt { key: key.clone() }),
        Some((state, false)) => return Err(LedgerError::NotSettled { key: key.clone(), state }),
        Some((_, true)) => {}
    }
    for sql in [
        "INSERT INTO removal (execution_id, attempt) VALUES (?1, ?2)",
        "DELETE FROM event WHERE execution_id = ?1 AND attempt = ?2",
        "DELETE FROM attempt WHERE execution_id = ?1 AND attempt = ?2",
        "DELETE FROM removal WHERE execution_id = ?1 AND attempt = ?2",
    ] {
        tx.execute(sql, of).at(tx)?;
    }
    Ok(())
}
