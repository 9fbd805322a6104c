//! (to come)

pub mod dir;
pub mod locks;
pub mod odb;
pub mod pack;
mod packed;
pub mod refs;
pub mod store;
pub mod tree;
