//! (to come)

pub mod configfile;
pub mod gitconfig;
pub mod head;
mod hexbytes;
pub mod lockfile;
pub mod reflog;
pub mod smallfile;
#[cfg(test)]
pub(crate) mod testkit;
pub mod workspace;
pub mod dir;
pub mod locks;
pub mod odb;
pub mod pack;
mod packed;
pub mod refs;
pub mod store;
pub mod tree;
