//! (to come)

pub mod configfile;
