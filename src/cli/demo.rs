//! `worktx demo`: a repository of its own, and three turns in it, as they really run.
//!
//! # Limitations
//! It needs the `git` binary, to make the repository and to show it; worktx itself does not.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::args::{DemoArgs, Global};
use super::style::Style;
use super::{exit, output};
use crate::coordinator::error::Failure;

/// Not built yet.
pub(super) fn run(_: &Global, _: DemoArgs) -> Result<u8, Failure> {
    Err(Failure::Impossible { message: "not built yet".to_owned(), hint: None })
}
