//! Loading of settings: which layers there are, who may set what, and what came from where.
//!
//! Lowest first: defaults, profile, the repository's `.worktx.toml` as of the base, the user's
//! file, environment, flags. [`keys::KEYS`] is the one table of every key; the files, the
//! environment and the table of `docs/configuration.md` are all read or made by it, and a test
//! keeps the page in step.
//!
//! | module | owns |
//! |---|---|
//! | [`keys`] | the table of keys |
//! | [`value`] | durations, sizes and the other kinds of values, in and out |
//! | [`file`](mod@file) | a TOML file as a list of keys with lines |
//! | [`load`](mod@load) | the layers |
//! | [`error`] | what can be wrong |
//!
//! # Limitations
//! The whole is loaded once, before the turn, and recorded; nothing is read again later.

pub mod error;
pub mod file;
pub mod keys;
pub mod load;
pub mod value;

pub use error::ConfigError;
pub use file::UserFile;
pub use keys::{Operator, Values};
pub use load::{Flags, Loaded, Source, Sources, Warning, load};

#[cfg(test)]
mod doc;
