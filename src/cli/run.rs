//! `worktx run`.
//!
//! # Limitations
//! Not built yet.

use super::args::{Global, RunArgs};
use crate::coordinator::error::Failure;

/// Not built yet.
#[expect(clippy::needless_pass_by_value, reason = "the form that it will have")]
pub(super) fn run(_: &Global, _: RunArgs) -> Result<u8, Failure> {
    Err(Failure::Impossible { message: "not built yet".to_owned(), hint: None })
}
