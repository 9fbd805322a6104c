//! The only place where effects are ordered: it drives attempts, and settles what crashes left.
//!
//! # Limitations
//! One attempt at a time on a work tree; the lock of [`place`] sees to it.

pub mod attempt;
pub mod context;
pub mod error;
pub mod guard;
pub mod init;
pub mod notify;
pub mod place;
pub mod report;
pub mod retention;
pub mod session;
pub mod settle;
pub mod spec;
pub mod warm;
pub mod words;

#[cfg(test)]
mod test_lab;
