//! The ledger: what stands in SQLite of executions, attempts and their history.
//!
//! One file, `ledger.db`, holds the journal (table `attempt`, append-only `event`) and the rows
//! that the embedded gate decides over (`execution`), so that a verdict and the change of state
//! that follows from it are one db transaction. An operator may read it with `sqlite3`.
//!
//! Order rules:
//! - Every write is one db transaction that begins `IMMEDIATE`. When a call has returned `Ok`,
//!   what it wrote is durable; when it has returned an error, nothing of it stands there, except
//!   after [`LedgerError::Io`] at the commit itself, where either may be true: read again.
//! - A state is changed only by compare-and-set over tag and `rev` ([`Change`]); its event goes
//!   into the same db transaction.
//! - A newer file is read and never written; a file that is not in order is never reset.
//! - A ledger appears under its name whole ([`Ledger::create`]), or not at all.
//!
//! How it is made durable: `synchronous=FULL` with a rollback journal that is kept
//! (`journal_mode=PERSIST`).
//! - WAL is out: on a full disk such a file cannot be opened, not even for reading, or its shared
//!   memory file ends the process with SIGBUS; and exclusive locking would shut out the other
//!   processes that read.
//! - `DELETE` is out: the unlink of the journal is not synced, so that a power cut can bring the
//!   journal back and take a won verdict away.
//! - `TRUNCATE` and `PERSIST` both sync the end of the journal before the commit returns (in
//!   SQLite's `pager_end_transaction` and `zeroJournalHdr`: the first only with `FULL`, the second
//!   always). `PERSIST` keeps the journal's blocks: a state change needs no new space for it on a
//!   full disk, and no sync has to write a changed file size. And a journal without its ledger
//!   proves that a ledger was deleted.
//! - Rolling a crashed write back unlinks the journal (a connection is in `DELETE` mode until it
//!   has read). That needs no sync: rolling back twice is rolling back once, and the next write
//!   makes its journal anew and syncs the directory before it touches the file.
//!
//! # Limitations
//! - A process with the same user id can edit the file; triggers stop mistakes, not malice. What
//!   git's refs say has to be compared with it.
//! - An old copy put in place of the file between two runs is a valid ledger. [`Ledger::id`] and
//!   [`Ledger::last_event_id`] are there for a marker elsewhere to tell.
//! - Locks are SQLite's, POSIX record locks: a file system that has none (some network ones) is
//!   not safe for several processes.
//! - Space is kept in reserve ([`Ledger::open_attempt`]) only where a file system overwrites in
//!   place; btrfs needs new blocks for every write.
//! - A crash inside [`Ledger::create`] can leave a file `ledger.db.<…>.new` beside it.

mod attempt;
mod error;
mod open;
mod read;
mod remove;
mod space;
mod sql;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_open;

pub use attempt::{Change, Facts, NewAttempt, Opened, Owner, Workspace};
pub use error::LedgerError;
pub use open::{Ledger, Mode, Newer};
pub use read::{Attempt, AttemptHead, Event, EventFilter, Execution, Filter};
