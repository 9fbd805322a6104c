//! (to come)

pub mod dir;
pub mod index;
mod index_form;
pub mod locks;
pub mod odb;
pub mod pack;
mod packed;
pub mod promote;
pub mod refs;
pub mod store;
pub mod tree;

#[cfg(test)]
mod store_tests;
