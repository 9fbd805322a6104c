//! The git work tree and its repository: opening and judging a workspace, the scan, what a
//! candidate is made of, promotion and the undo.
//!
//! What is read or written beneath the work-tree root goes through [`files::root::Root`]: one held
//! handle, every step beneath it, no link followed, no mount crossed. Objects are read and written
//! by libgit2; nothing that the repository configures is ever executed.
//!
//! The scan answers "where may the tree differ from the manifest" by stat data alone; bytes decide
//! afterwards.
//!
//! # Limitations
//! SHA-1 repositories with a work tree, without sparse checkout and submodules.

pub mod checkout;
pub mod config;
pub mod files;
pub mod guarded;
pub mod index;
pub mod manifest;
pub mod objects;
pub mod promote;
pub mod refs;
pub mod scan;
#[cfg(test)]
pub(crate) mod testkit;
#[cfg(test)]
mod tests;
pub mod undo;
pub mod workspace;
