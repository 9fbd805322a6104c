//! The git work tree and its repository: opening and judging a workspace, the scan, what a
//! candidate is made of, promotion and the undo.
//!
//! What is read or written beneath the work-tree root goes through [`root::Root`]: one held
//! handle, every step beneath it, no link followed, no mount crossed. Objects are read and written
//! by libgit2; nothing that the repository configures is ever executed.
//!
//! The scan answers "where may the tree differ from the manifest" by stat data alone; bytes decide
//! afterwards.
//!
//! # Limitations
//! SHA-1 repositories with a work tree, without sparse checkout and submodules.

pub mod ahead;
mod aside;
pub mod attributes;
pub mod baseline;
mod beneath;
pub mod branch;
pub mod checkout;
mod clocks;
pub mod configfile;
pub mod convert;
pub mod dir;
pub mod gitconfig;
pub mod glance;
pub mod guarded;
mod hexbytes;
pub mod index;
pub mod index_form;
pub mod index_known;
pub mod index_splice;
pub mod judge;
pub mod listing;
pub mod lockfile;
pub mod locks;
pub mod manifest;
pub mod mark;
pub mod names;
pub mod odb;
pub mod pack;
mod packed;
pub mod patch;
pub mod pin;
pub mod pool;
pub mod programkeys;
pub mod promote;
pub mod putback;
pub mod reflog;
pub mod refs;
pub mod refusal;
pub mod repack;
pub mod restore;
pub mod root;
pub mod row;
pub mod rules;
pub mod scan;
#[cfg(test)]
mod scan_tests;
pub mod scratch;
pub mod smallfile;
pub mod snapshot;
pub mod spill;
pub mod store;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
pub(crate) mod testkit;
pub mod touched;
pub mod tree;
pub mod undo;
pub mod walk;
pub mod watch;
pub mod workspace;
