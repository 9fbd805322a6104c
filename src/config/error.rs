//! What can be wrong with settings, each with the place and what would be right.
//!
//! # Limitations
//! The first fault is reported, not all of them.

use std::io;
use std::path::PathBuf;

use super::load::PROFILES;

/// The settings cannot be used: exit 1, before the turn.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file is there and cannot be read.
    #[error("{} cannot be read", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no TOML.
    #[error("{}:{line}: {why}", file.display())]
    Syntax {
        /// Which.
        file: PathBuf,
        /// Where.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// There is no such key.
    #[error("{at}: there is no key {key:?}; did you mean {nearest:?}?")]
    UnknownKey {
        /// File and line.
        at: String,
        /// The key.
        key: String,
        /// The one most like it.
        nearest: String,
    },
    /// A value that the key does not take.
    #[error("{at}: {key}: {why}")]
    Value {
        /// File and line, variable or flag.
        at: String,
        /// The key.
        key: String,
        /// What is wrong, and what is right.
        why: String,
    },
    /// The repository's file sets what only a user may.
    #[error("{at}: {key} cannot be set by the repository: {why}")]
    NotTheRepositorys {
        /// File and line.
        at: String,
        /// The key.
        key: String,
        /// The rule.
        why: String,
    },
    /// The key or value is known and not built yet.
    #[error("{at}: {key} is not supported yet")]
    NotSupported {
        /// File and line, or variable.
        at: String,
        /// The key, with its value where others are supported.
        key: String,
    },
    /// Two keys of one layer that exclude each other.
    #[error("{at}: {first} and {second} exclude each other: set one of them")]
    Conflict {
        /// File and line, variable or flag.
        at: String,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// There is no such profile.
    #[error("{at}: there is no profile {name:?}; there are {}", PROFILES.join(", "))]
    UnknownProfile {
        /// Flag or variable.
        at: String,
        /// The name.
        name: String,
    },
}
