//! What git's files of settings say: configuration and attributes, read as data. Nothing that they
//! name is ever run.
//!
//! # Limitations
//! Each file names its own.

pub mod attributes;
pub mod configfile;
pub mod convert;
pub mod gitconfig;
pub mod programkeys;
