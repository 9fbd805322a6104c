//! The gate: the compare-and-set on the execution row, and the only place that says "won".
//!
//! Every terminal goes through [`Gate::ask`]: success, failure, cancel, a watchdog's, that of
//! reconcile and of resolve. There is no check-then-act: the verdict is the answer of one atomic
//! statement, and it is obeyed. The truth table is [`crate::tx::verdict::judge`]; a gate does the
//! same and is tested against it.
//!
//! Order rules: whoever asks for SUCCESS has everything in hand that promotion needs. A won
//! verdict is journalled at once and not asked again; an unknown one is asked again, never acted
//! upon. [`Won`](crate::tx::verdict::Won) is made in this folder alone, after the commit of the
//! db transaction that decided.
//!
//! # Limitations
//! One gate so far, [`EmbeddedGate`]. One for PostgreSQL does the same statement, and reads the
//! row in the same transaction. One for a platform behind HTTP must be able to say *whose* success
//! stands: an answer like `{"replayed": true}` says that a terminal stands and not whose, so it is
//! [`Verdict::Unknown`] until the row, with attempt and candidate, has been read back.

mod embedded;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_race;

pub use embedded::{Answer, EmbeddedGate};

use crate::tx::id::ExecutionId;
use crate::tx::verdict::{Row, Terminal, Verdict};

/// Something that keeps execution rows and decides over them.
///
/// What an implementation promises:
/// - `ask` is one atomic compare-and-set; it is durable when `Won` or `Lost` is returned.
/// - It stores the attempt and the candidate of a SUCCESS, and gives them back.
/// - Asking twice for the SUCCESS of the same attempt and candidate gives the same answer.
/// - A terminal of an attempt needs it to be the row's current one; a cancel or a watchdog speaks
///   for no attempt and is not fenced.
/// - An error, a timeout, an answer that cannot be attributed: `Unknown`, never `Won`.
pub trait Gate {
    /// Asks for a terminal in the row of `execution`.
    fn ask(&mut self, execution: &ExecutionId, ask: &Terminal) -> Verdict;

    /// The row that stands; `None` where there is none.
    ///
    /// # Errors
    /// [`GateError`] where the row cannot be had or understood.
    fn row(&mut self, execution: &ExecutionId) -> Result<Option<Row>, GateError>;
}

/// A row cannot be had, or what stands in it is not understood.
#[derive(Debug, thiserror::Error)]
#[error("the row of execution {execution} cannot be read")]
pub struct GateError {
    /// Whose row.
    pub execution: ExecutionId,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
