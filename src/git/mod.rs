//! (to come)

pub mod configfile;
pub mod smallfile;
#[cfg(test)]
pub(crate) mod testkit;
pub mod workspace;
