//! (to come)

pub mod configfile;
pub mod dir;
pub mod gitconfig;
pub mod guarded;
mod hexbytes;
pub mod judge;
pub mod lockfile;
pub mod locks;
pub mod odb;
pub mod pack;
mod packed;
pub mod programkeys;
pub mod putback;
pub mod reflog;
pub mod refs;
pub mod refusal;
pub mod smallfile;
pub mod store;
#[cfg(test)]
pub(crate) mod testkit;
pub mod tree;
pub mod workspace;
