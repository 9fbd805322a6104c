//! The only place where effects are ordered: it drives attempts, and settles what crashes left.
//!
//! # Limitations
//! One attempt at a time on a work tree; the lock of [`place`] sees to it.

mod base;
pub mod baseindex;
pub mod begin;
pub mod cancel;
pub mod changes;
pub mod check;
mod checkout;
mod commit;
pub mod context;
pub mod decide;
pub mod doctor;
pub mod documents;
pub mod drive;
pub mod error;
mod gather;
mod gitdir;
pub mod guard;
pub mod guarded;
mod held;
pub mod init;
mod laps;
mod leftovers;
mod newindex;
mod notify;
mod observe;
pub mod outcome;
pub mod place;
mod policy;
pub mod query;
mod queue;
pub mod reconcile;
mod rescue;
pub mod resolve;
pub mod retention;
mod seal;
pub mod session;
pub mod spec;
pub mod status;
mod trace;
mod turn;
mod undo;
mod unprotected;
mod validate;
pub mod view;
pub mod warm;
pub mod warmup;
pub mod words;

#[cfg(test)]
mod test_lab;
