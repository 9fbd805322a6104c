//! The vocabulary of worktx, and its rules: pure, without I/O, clock, git or SQL.
//!
//! Someone who reads only this folder understands the product. [`state`] has the states of an
//! attempt and what leads from one to the next; [`recovery`] has the table that decides what a
//! crash left behind; [`verdict`] has the execution row; [`settings`] has what a user may choose.
//!
//! # Limitations
//! What stands in here decides; it never looks. Observations come from the adapters, effects are
//! ordered by the coordinator.

pub mod cause;
pub mod entry;
pub mod id;
pub mod path;
pub mod phase;
pub mod post_check;
pub mod record;
pub mod recovery;
pub mod settings;
pub mod state;
pub mod tag;
pub mod verdict;
pub mod writer;
