//! `worktx run`.
//!
//! # Limitations
//! Not built yet.

use super::args::{Global, RunArgs};
use crate::coordinator::error::Failure;

/// Not built yet.
pub(super) fn run(_: &Global, _: RunArgs) -> Result<u8, Failure> {
    Err(Failure::Impossible { message: "not built yet".to_owned(), hint: None })
}
