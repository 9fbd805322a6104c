//! The exhaustive crash sweep: a fault at every call by which worktx changes a file.
//!
//! ```text
//! cargo test --test sweep                    a sample
//! cargo test --test sweep -- --full          all of it
//! cargo test --test sweep -- --flow commit --fault enospc --at 41 [--second 7] [--keep]
//! ```
//!
//! `docs/reliability.md` says what is swept, what must hold, and what came of it.
//!
//! # Limitations
//! x86-64, and only where seccomp and ptrace are allowed: else it says SKIPPED.
#![allow(
    unreachable_pub,
    dead_code,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::case_sensitive_file_extension_comparisons,
    clippy::needless_pass_by_value,
    clippy::unused_self,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "helpers of tests, called as reads best; numbers of the kernel's interface"
)]

mod bench;
mod filter;
mod flows;
mod inject;
mod judge;
#[path = "../it/lab.rs"]
mod lab;
mod options;
mod ptrace;
mod said;
#[path = "../it/support.rs"]
mod support;
mod sweep;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1).peekable();
    if words.next_if(|word| word == inject::BECOME).is_some() {
        eprintln!("behind the filter: {}", inject::become_command(words));
        return ExitCode::FAILURE;
    }
    match options::Options::of(words) {
        Ok(Some(options)) => sweep::sweep(&options),
        Ok(None) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}\n{}", options::USAGE);
            ExitCode::FAILURE
        }
    }
}
