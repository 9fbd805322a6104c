//! `worktx demo`.
//!
//! # Limitations
//! Not built yet.

use super::args::{DemoArgs, Global};
use crate::coordinator::error::Failure;

/// Not built yet.
pub(super) fn run(_: &Global, _: DemoArgs) -> Result<u8, Failure> {
    Err(Failure::Impossible { message: "not built yet".to_owned(), hint: None })
}
