//! The two kinds of hook: the post-check, which decides over a candidate, and the opt-in
//! `reference-transaction` guard, which keeps others off the attempt's branch.
//!
//! | module | owns |
//! |---|---|
//! | [`capture`] | finding the post-check, keeping its bytes before the turn, comparing after it |
//! | [`launch`] | what the captured copy is started with: words, environment, the file of changes |
//! | [`guard`] | the guard's decision, as a function over what was seen |
//! | [`install`] | the guard's block in a repository's hook file, in and out again |
//!
//! The order is capture, turn, [`capture::recheck`], [`before_run`], [`launch::command`], the run
//! (by `process`), [`after_run`]. The vocabulary and the decision table are pure and live in
//! [`crate::tx::post_check`].
//!
//! # Limitations
//! Nothing here starts a process. What a helper beside the post-check holds is not captured: the
//! contract (`docs/hook-contract.md`) says so.

pub mod capture;
pub mod guard;
pub mod install;
pub mod launch;
mod program;

pub use crate::tx::post_check::{
    Capture, Difference, Interpreter, Judged, Origin, PostCheckChoice, PostCheckDecision,
    PostCheckOutcome, Ran, Ready, Recheck, Step, Unrunnable, after_run, before_run,
};

#[cfg(test)]
mod examples_tests;
