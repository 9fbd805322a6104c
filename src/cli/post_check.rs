//! `worktx post-check`.
//!
//! # Limitations
//! It decides over the tree as it stands, without a turn: nothing is sealed, nothing is put back.

use super::args::{Global, PostCheckArgs};
use super::style::Style;
use super::{exit, output, render};
use crate::config::Flags;
use crate::coordinator::check;
use crate::coordinator::context::{Context, Invocation};
use crate::coordinator::error::Failure;

/// Not built yet.
pub(super) fn run(_: &Global, _: PostCheckArgs) -> Result<u8, Failure> {
    Err(Failure::Impossible { message: "not built yet".to_owned(), hint: None })
}
