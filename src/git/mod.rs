//! (to come)

pub(crate) mod beneath;
pub mod restore;
pub mod spill;
pub mod undo;
