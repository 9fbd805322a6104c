//! `worktx reconcile`.
//!
//! # Limitations
//! Not built yet.

use super::args::{Global, ReaderArgs};
use crate::coordinator::error::Failure;

/// Not built yet.
pub(super) fn run(_: &Global, _: ReaderArgs) -> Result<u8, Failure> {
    Err(Failure::Impossible { message: "not built yet".to_owned(), hint: None })
}
