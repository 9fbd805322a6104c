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
