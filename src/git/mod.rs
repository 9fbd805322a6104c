//! (to come)

pub mod dir;
pub mod odb;
pub mod pack;
mod packed;
pub mod store;
pub mod tree;
