//! Everything that only reads: the ledger, the work tree and the processes, made into documents.
//!
//! # Limitations
//! Each file names its own.

pub mod changes;
pub mod doctor;
pub mod documents;
pub(super) mod held;
pub mod query;
pub mod status;
pub mod view;
