//! (to come)

pub mod dir;
pub mod odb;
