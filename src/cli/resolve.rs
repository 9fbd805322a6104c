//! `worktx resolve`.
//!
//! # Limitations
//! `--all` decides about one reason at a time, so that nobody decides about what they did not see.

use super::args::{Global, ResolveArgs};
use super::style::Style;
use super::{context, exit, output, render};
use crate::coordinator::documents::ResolveDocument;
use crate::coordinator::error::Failure;
use crate::coordinator::outcome::SCHEMA;
use crate::coordinator::resolve::{self, Choice};
use crate::coordinator::session::Session;
use crate::journal::Filter;
use crate::process::Signals;
use crate::tx::id::AttemptKey;
use crate::tx::state::{StateTag, TxState};

/// Not built yet.
pub(super) fn run(_: &Global, _: ResolveArgs) -> Result<u8, Failure> {
    Err(Failure::Impossible { message: "not built yet".to_owned(), hint: None })
}
