//! One attempt from open to settled, effect by effect.
//!
//! # Limitations
//! Each file names its own.

pub(super) mod base;
pub mod baseindex;
pub mod begin;
pub mod check;
pub(super) mod checkout;
pub(super) mod commit;
pub mod drive;
pub(super) mod gather;
pub(super) mod gitdir;
pub(super) mod laps;
pub(super) mod newindex;
pub mod outcome;
pub(super) mod policy;
pub(super) mod rescue;
pub(super) mod seal;
mod standing;
pub(super) mod trace;
pub(super) mod turn;
pub(super) mod undo;
pub(super) mod unprotected;
pub(super) mod validate;
