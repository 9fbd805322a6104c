//! The exit codes, each with its meaning: `docs/exit-codes.md` has them all, a test keeps it so.
//!
//! # Limitations
//! What a command of a turn returned is in the outcome document, not in the exit code.

/// Done: committed, nothing to commit, replayed, or unprotected and successful.
pub const OK: u8 = 0;
/// An error before anything was touched.
pub const ERROR: u8 = 1;
/// The command line or a configuration makes no sense.
pub const USAGE: u8 = 2;
/// Rolled back: the turn failed, or it failed unprotected, as asked.
pub const TURN_FAILED: u8 = 10;
/// Rolled back: the post-check or a policy said no.
pub const REJECTED: u8 = 11;
/// Rolled back: the turn, or all of it, ran out of its time.
pub const TIMEOUT: u8 = 12;
/// Rolled back or not run: cancelled, or another terminal stands.
pub const VERDICT_LOST: u8 = 13;
/// Rolled back: interrupted by SIGTERM or SIGHUP; the row is open.
pub const INTERRUPTED: u8 = 14;
/// Quarantined: an operator decides.
pub const QUARANTINED: u8 = 20;
/// Refused: the workspace cannot be a base.
pub const REFUSED: u8 = 21;
/// Busy: somebody else is at work.
pub const BUSY: u8 = 22;
/// A bug, or a machine that fails.
pub const INTERNAL: u8 = 70;

/// All of them.
pub const ALL: [u8; 12] = [
    OK,
    ERROR,
    USAGE,
    TURN_FAILED,
    REJECTED,
    TIMEOUT,
    VERDICT_LOST,
    INTERRUPTED,
    QUARANTINED,
    REFUSED,
    BUSY,
    INTERNAL,
];
