//! Space that is the ledger's before it is needed, so that an attempt which has begun can record
//! its way to the end on a full disk: free pages inside the file, and the kept rollback journal.
//!
//! Order rules: taken before an attempt is opened, where a full disk is only a refusal. Never while an attempt is under way.
//!
//! # Limitations
//! Enough for some hundred changes of state of usual size, not for an outcome of megabytes. A file
//! system that does not overwrite in place (btrfs) needs new blocks all the same. Where a crash cut
//! a write off, rolling it back gives the journal's blocks to the file system: whoever is faster on
//! a full disk has them.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};

/// Free pages to have at least when an attempt is opened: 512 KiB.
const PAGES_AT_LEAST: i64 = 128;

/// Bytes that are taken at once.
const TAKE_BYTES: i64 = 1 << 20;

/// Bytes of the journal to have at least. A change of state touches about a dozen pages.
const JOURNAL_AT_LEAST: u64 = 128 << 10;

/// How much of the journal is overwritten to make it that long.
const JOURNAL_BYTES: usize = 160 << 10;

/// What a large db transaction may leave of the journal, in bytes.
pub(super) const JOURNAL_AT_MOST: i64 = 4 << 20;

/// Takes space if too little of it is left. Two db transactions then, else none.
pub(super) fn keep(db: &Connection, journal: &Path) -> rusqlite::Result<()> {
    let free: i64 = db.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    let journal = journal.symlink_metadata().map_or(0, |found| found.len());
    if free < PAGES_AT_LEAST || journal < JOURNAL_AT_LEAST { take(db) } else { Ok(()) }
}

/// Takes space: pages are written and given back to the file, not to the file system.
fn take(db: &Connection) -> rusqlite::Result<()> {
    // Two transactions: pages that come and go within one are never written.
    let tx = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    tx.execute("DELETE FROM reserve", [])?;
    tx.execute("INSERT INTO reserve (id, bytes) VALUES (1, zeroblob(?1))", [TAKE_BYTES])?;
    tx.commit()?;
    let tx = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    // Overwriting journals every page first: this is what makes the journal long.
    let mut bytes = tx.blob_open("main", "reserve", "bytes", 1, false)?;
    bytes.write_at(&vec![1; JOURNAL_BYTES], 0)?;
    bytes.close()?;
    tx.execute("DELETE FROM reserve", [])?;
    tx.commit()
}
