//! `worktx run`: from flags to a request, from an outcome to words and an exit code.
//!
//! # Limitations
//! With `--json` the document is the only thing on standard output; talk goes to standard error.

use std::time::Duration;

use super::args::{Global, OnDirtyArg, RunArgs};
use super::style::Style;
use super::{error, output, render};
use crate::config::{Flags, value};
use crate::coordinator::begin::{self, RunRequest};
use crate::coordinator::context::{Context, Invocation};
use crate::coordinator::error::Failure;
use crate::coordinator::outcome::{Outcome, OutcomeWord};
use crate::tx::cause::ErrorCode;
use crate::tx::id::ExecutionId;
use crate::tx::settings::OnDirty;

/// Not built yet.
pub(super) fn run(_: &Global, _: RunArgs) -> Result<u8, Failure> {
    Err(Failure::Impossible { message: "not built yet".to_owned(), hint: None })
}
