//! The only place where effects are ordered: it drives attempts, and settles what crashes left.
//!
//! # Limitations
//! One attempt at a time on a work tree; the lock of [`place`] sees to it.

pub mod cancel;
pub mod changes;
pub mod context;
pub mod doctor;
pub mod documents;
pub mod error;
pub mod guard;
pub mod init;
pub mod outcome;
pub mod place;
pub mod query;
pub mod retention;
pub mod session;
pub mod spec;
pub mod status;
#[cfg(test)]
mod test_lab;
