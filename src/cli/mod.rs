//! Talks to people: the command line, its texts, its exit codes.
//!
//! # Limitations
//! Standard output is data, standard error is talk.

pub mod args;
pub mod render;
pub mod style;
