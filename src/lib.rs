//! worktx runs a command in a git work tree as a transaction: only a success that was validated
//! and won its execution row changes the workspace, everything else goes back byte for byte.
//!
//! The layers, top down; each uses those below it only (`tests/tidy.rs` keeps it so):
//!
//! ```text
//! cli                                              talks to people
//! daemon                                           talks to sockets
//! coordinator                                      the only place where effects are ordered
//! journal · gate · git · process · hook · config   adapters, one outside thing each
//! base                                             clock, durable file writes, fault points
//! tx                                               pure: ids, states, transitions, recovery table
//! ```
//!
//! # Limitations
//! Linux 5.6 or newer: `openat2`, child subreapers, `/proc`.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "worktx runs on Linux 5.6 or newer only: it needs openat2, child subreapers and /proc."
);

pub mod base;
pub mod cli;
pub mod config;
pub mod coordinator;
pub mod daemon;
pub mod gate;
pub mod git;
pub mod hook;
pub mod journal;
pub mod process;
pub mod tx;
