//! `worktx reconcile`.
//!
//! # Limitations
//! It settles the work trees of this repository that are there; a busy one is left to its owner.

use super::args::{Global, ReaderArgs};
use super::style::Style;
use super::{context, exit, output, render};
use crate::coordinator::error::Failure;
use crate::coordinator::reconcile;

/// Not built yet.
pub(super) fn run(_: &Global, _: ReaderArgs) -> Result<u8, Failure> {
    Err(Failure::Impossible { message: "not built yet".to_owned(), hint: None })
}
