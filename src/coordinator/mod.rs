//! The only place where effects are ordered: it drives attempts, and settles what crashes left.
//!
//! # Limitations
//! One attempt at a time on a work tree; the lock of [`place`] sees to it.

pub mod begin;
mod commit;
pub mod documents;
pub mod drive;
pub mod error;
mod gitdir;
mod observe;
pub mod outcome;
pub mod place;
mod policy;
pub mod reconcile;
mod rescue;
pub mod resolve;
mod seal;
pub mod session;
pub mod spec;
mod trace;
mod turn;
mod undo;
mod validate;
pub mod view;
mod words;
