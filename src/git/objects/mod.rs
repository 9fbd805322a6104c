//! Objects: read from the repository's loose files and packs, made into trees and commits, written as
//! one pack a seal.
//!
//! # Limitations
//! Each file names its own.

pub mod ahead;
mod history;
pub mod odb;
pub mod pack;
pub(super) mod packed;
pub mod patch;
pub mod repack;
pub mod store;
pub mod tree;
