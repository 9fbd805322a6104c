//! The tests on the real binary, real repositories and real processes: one test binary.

#![allow(
    unreachable_pub,
    dead_code,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::manual_assert,
    clippy::items_after_statements,
    clippy::used_underscore_binding,
    clippy::case_sensitive_file_extension_comparisons,
    clippy::needless_pass_by_value,
    clippy::unused_self,
    reason = "helpers of tests, called as reads best"
)]

mod attacks;
mod beside;
mod crash;
mod crash_cancel;
mod crash_check;
mod crash_checkout;
mod crash_disk;
mod crash_ledger;
mod crash_others;
mod crash_start;
mod crash_turn;
mod edges;
mod lab;
mod operator;
mod planted;
mod power_loss;
mod readers;
mod reconcile;
mod resolve;
mod run;
mod serve;
mod serve_guard;
mod serve_kept;
mod serve_many;
mod server;
mod shown;
mod support;
mod tidy;
mod traces;
mod unfit;
mod verdict;
mod watched;
mod words;
