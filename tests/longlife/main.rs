//! A long life: many attempts on one workspace, half of them killed at a random moment.
//!
//! ```text
//! cargo test --test longlife                                          a short one
//! cargo test --release --test longlife -- --attempts 10000            a long one
//!     [--rolled-back] [--seed N] [--minutes M] [--dir DIR] [--worktx FILE] [--keep]
//! ```
//!
//! With `--rolled-back` every attempt is undone, and nobody is killed: what stays of work that came
//! to nothing?
//!
//! Kills are real signals: to the coordinator, to it and its supervisor, or to all of the turn.
//! What is left is settled as a person or the next run would settle it. During the run, and in
//! the end, `git` and `sqlite3` judge: the laws of the crash matrix, and that nothing piles up.
//! Times are printed, not judged.
//!
//! # Limitations
//! When a kill falls is a matter of the machine: a seed gives the same turns and the same delays,
//! not the same crashes.
#![allow(
    unreachable_pub,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool that talks, in several files"
)]

mod judge;
mod life;
mod turns;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use life::{Life, Random};

struct Options {
    attempts: u64,
    seed: u64,
    minutes: Option<u64>,
    dir: PathBuf,
    worktx: PathBuf,
    keep: bool,
    rolled_back: bool,
}

/// How long a plain `cargo test` lets it live.
const SHORT: (u64, Duration) = (60, Duration::from_secs(35));

fn main() {
    let Some(options) = options(std::env::args().skip(1).collect()) else { return };
    let until = match options.minutes {
        Some(minutes) => Some(Instant::now() + Duration::from_secs(minutes * 60)),
        None if options.attempts == SHORT.0 => Some(Instant::now() + SHORT.1),
        None => None,
    };
    println!("longlife: {} attempts, --seed {}", options.attempts, options.seed);
    let mut life = Life::new(
        &options.dir,
        &options.worktx,
        Random(options.seed),
        options.keep,
        options.rolled_back,
    );
    let begun = Instant::now();
    let every = (options.attempts / 50).max(20);
    let mut start = None;
    for n in 1..=options.attempts {
        life.attempt(n);
        if n == 20 {
            start = Some(judge::times(&life));
        }
        if n % every == 0 {
            judge::laws(&life);
            println!("{n:>6} {:>6.0}s  {}", begun.elapsed().as_secs_f64(), judge::sizes(&life));
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            println!("the time is over after {n} attempts");
            break;
        }
    }
    let took = begun.elapsed().as_secs_f64();
    judge::laws(&life);
    judge::nothing_piled_up(&life);
    println!("{} attempts in {took:.0}s; {}", life.count, judge::sizes(&life));
    counted("they ended", &life.ended);
    counted("killed", &life.killed);
    counted("then", &life.settled);
    let end = judge::times(&life);
    for (n, what) in ["reconcile", "list", "run -- true"].iter().enumerate() {
        let first = start.as_ref().map_or(Duration::ZERO, |start| start[n]);
        println!("{what}: {} ms in the beginning, {} ms in the end", ms(first), ms(end[n]));
    }
}

fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

fn counted(what: &str, counts: &BTreeMap<String, u64>) {
    let all: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    println!("{what}: {}", all.join(", "));
}

/// `None` where cargo asks for something else: a list, or other tests by their names.
fn options(args: Vec<String>) -> Option<Options> {
    let shared = PathBuf::from("/dev/shm");
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mut options = Options {
        attempts: SHORT.0,
        seed: clock.map_or(1, |time| u64::from(time.subsec_nanos())),
        minutes: None,
        dir: if shared.is_dir() { shared } else { std::env::temp_dir() },
        worktx: env!("CARGO_BIN_EXE_worktx").into(),
        keep: false,
        rolled_back: false,
    };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|text| text.parse().ok());
        match arg.as_str() {
            "--attempts" => options.attempts = number().expect("--attempts takes a number"),
            "--seed" => options.seed = number().expect("--seed takes a number"),
            "--minutes" => options.minutes = Some(number().expect("--minutes takes a number")),
            "--dir" => options.dir = args.next().expect("--dir takes a folder").into(),
            "--worktx" => options.worktx = args.next().expect("--worktx takes a file").into(),
            "--keep" => options.keep = true,
            "--rolled-back" => options.rolled_back = true,
            "--list" | "--ignored" => return None,
            flag if flag.starts_with('-') => {}
            name if "longlife".contains(name) => {}
            _ => return None,
        }
    }
    Some(options)
}
