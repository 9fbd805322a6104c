//! Power loss: what is left of a transaction when everything that no sync has covered may be gone.
//!
//! ```text
//! cargo test --test power                 a sample, under a minute
//! cargo test --test power -- --full       every flow, every moment, by both methods
//! cargo test --test power -- --help       the other options
//! ```
//!
//! Two methods. `replay` records what a flow does to files and asks a model of a file system
//! (`model`) what a power loss at each moment may leave; `cut` shuts a real file system down. The
//! laws that are checked are the same (`laws`). `docs/durability.md` has the last full result.
//!
//! # Limitations
//! Linux; `ptrace` of own children must be allowed. Where something is missing, SKIPPED is printed
//! with the reason.
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
    reason = "a tool that prints, and helpers of tests, called as reads best"
)]

mod cut;
mod flows;
#[path = "../it/lab.rs"]
mod lab;
mod laws;
mod model;
mod options;
mod place;
mod recorder;
mod replay;
mod saved;
mod shutdown;
#[path = "../it/support.rs"]
mod support;
mod syncs;
mod tally;
mod tracer;

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use cut::{At, Kind, Prepared};
use flows::{FLOWS, Flow};
use laws::Judged;
use model::{Keep, Op};
use options::{Method, Options};
use replay::{Case, Extent};
use tally::Tally;

/// In memory: thousands of trees are written and removed.
const MEMORY: &str = "/dev/shm";
/// How many states the tool itself is tried on.
const CONTROL: usize = 20;

/// One flow by one method.
#[derive(Clone, Copy)]
enum Job {
    Control(&'static Flow),
    Replay(&'static Flow),
    Cut(&'static Kind, &'static Flow),
}

fn main() -> ExitCode {
    let writable = rustix::fs::access(MEMORY, rustix::fs::Access::WRITE_OK).is_ok();
    if std::env::var_os("TMPDIR").is_none() && writable {
        let program = std::env::current_exe().expect("it runs");
        let args = std::env::args_os().skip(1);
        let error = Command::new(program).args(args).env("TMPDIR", MEMORY).exec();
        eprintln!("cannot start again: {error}");
        return ExitCode::FAILURE;
    }
    let options = match Options::parse() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    if options.list {
        for flow in FLOWS {
            println!("{}: test", flow.name);
        }
        return ExitCode::SUCCESS;
    }
    if options.syncs {
        return match syncs_of(&options.flows()) {
            Ok(table) => {
                println!("{table}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    if let Some(file) = &options.repeat {
        return repeat(&options, file);
    }
    let jobs = jobs(&options);
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // What a flow has to say is said in one piece.
    let say = Mutex::new(());
    let workers =
        options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    std::thread::scope(|scope| {
        for _ in 0..workers.min(jobs.len()) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let told = match job {
                        Job::Control(flow) => try_control(flow),
                        Job::Replay(flow) => try_replay(flow, &options),
                        Job::Cut(kind, flow) => try_cuts(kind, flow, &options),
                    };
                    let (good, lines) = told
                        .unwrap_or_else(|error| (false, vec![format!("{}: {error}", name(*job))]));
                    failed.fetch_add(usize::from(!good), Ordering::Relaxed);
                    let _one_at_a_time = say.lock();
                    println!("{}", lines.join("\n"));
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!("{} passed, {failed} failed", jobs.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn syncs_of(flows: &[&Flow]) -> io::Result<String> {
    let record = |flow: &&Flow| Ok((flow.name, flow.record()?));
    let recorded = flows.iter().map(record).collect::<io::Result<Vec<_>>>()?;
    Ok(syncs::table(&recorded))
}

fn name(job: Job) -> String {
    match job {
        Job::Control(flow) => format!("control {}", flow.name),
        Job::Replay(flow) => format!("replay {}", flow.name),
        Job::Cut(kind, flow) => format!("cut {} {}", kind.name, flow.name),
    }
}

/// What is wanted and can be done here; of the rest, why not.
fn jobs(options: &Options) -> Vec<Job> {
    if let Some(why) = missing() {
        println!("SKIPPED: {why}");
        return Vec::new();
    }
    let mut jobs = Vec::new();
    if options.wants(Method::Replay) {
        jobs.extend(options.flows().into_iter().map(Job::Replay));
        jobs.extend(options.flows().first().copied().map(Job::Control));
    }
    if options.wants(Method::Cut) {
        for kind in options.kinds() {
            match cut::missing(kind) {
                Some(why) => println!("SKIPPED: cut {}: {why}", kind.name),
                None => jobs.extend(options.flows().into_iter().map(|flow| Job::Cut(kind, flow))),
            }
        }
    }
    jobs
}

/// Why nothing can be tried here.
fn missing() -> Option<String> {
    for program in ["git", "sqlite3"] {
        if !support::has(program) {
            return Some(format!("{program} is not there"));
        }
    }
    struct Nothing;
    impl tracer::Watcher for Nothing {
        fn returned(&mut self, _: &tracer::Call) -> tracer::Then {
            tracer::Then::GoOn
        }
    }
    match tracer::follow(&mut Command::new("true"), &mut Nothing) {
        Ok(tracer::Ended::Code(0)) => None,
        other => Some(format!("a child cannot be traced: {other:?}")),
    }
}

/// The lines that a job has to say, and whether all is well.
type Told = io::Result<(bool, Vec<String>)>;

fn try_replay(flow: &Flow, options: &Options) -> Told {
    let started = Instant::now();
    let mut recorded = flow.record()?;
    let outcome = replay::replay(&recorded, options.extent())?;
    let tally = &outcome.tally;
    let failed = tally.failed();
    let mut lines = vec![format!(
        "replay {}: {} points, {} of {} states checked, {failed} failed, {} s",
        flow.name,
        outcome.points,
        tally.checked,
        outcome.different,
        started.elapsed().as_secs()
    )];
    let file = kept(&format!("power-{}.json", flow.name));
    if failed > 0 {
        saved::write(&file, &recorded)?;
        if options.keep {
            // Its folder stays.
            std::mem::forget(recorded.lab.take());
        }
    }
    lines.extend(tally.tell(|case| {
        format!("cargo test --test power -- --repeat {} {case} --keep", file.display())
    }));
    Ok((failed == 0, lines))
}

/// The tool itself: a program that syncs nothing must be found out.
fn try_control(flow: &Flow) -> Told {
    let mut recorded = flow.record()?;
    recorded.ops.retain(|op| !matches!(op, Op::Sync { .. } | Op::SyncAll));
    let outcome = replay::replay(&recorded, Extent::Sample(CONTROL))?;
    let (checked, failed) = (outcome.tally.checked, outcome.tally.failed());
    let line = format!(
        "control {}: without its syncs {failed} of {checked} states break a law, as they must",
        flow.name
    );
    Ok((failed > 0, vec![line]))
}

fn try_cuts(kind: &'static Kind, flow: &Flow, options: &Options) -> Told {
    let started = Instant::now();
    let prepared = Prepared::new(kind, flow)?;
    let mut tally = Tally::default();
    let of = prepared.calls()?;
    let all = options.cut.clone().map_or_else(
        || {
            let points = cut::points().into_iter().map(At::Point);
            options.calls(of).into_iter().chain(points).collect()
        },
        |at| vec![at],
    );
    for at in &all {
        if let Some(judged) = prepared.cut(at)? {
            tally.add(|| at.name(), judged);
        }
    }
    let failed = tally.failed();
    let mut lines = vec![format!(
        "cut {} {}: {of} calls, {} cuts checked, {failed} failed, {} s",
        kind.name,
        flow.name,
        tally.checked,
        started.elapsed().as_secs()
    )];
    if options.keep && options.cut.is_some() {
        let file = kept(&format!("power-{}-{}.img", kind.name, flow.name));
        prepared.keep(&file)?;
        lines.push(format!("  the image after the check: {}", file.display()));
    }
    lines.extend(tally.tell(|case| {
        let (kind, flow) = (kind.name, flow.name);
        format!("cargo test --test power -- --cut {case} --fs {kind} {flow} --keep")
    }));
    prepared.end();
    Ok((failed == 0, lines))
}

fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// One case of a kept recording.
fn repeat(options: &Options, file: &Path) -> ExitCode {
    let done = || -> io::Result<Judged> {
        let recorded = saved::read(file)?;
        let at = options.at.unwrap_or(recorded.ops.len()).min(recorded.ops.len());
        let case = Case { at, keep: options.state.unwrap_or(Keep::Strict) };
        let root = recorded.place.root.clone();
        println!("the last changes before the power loss:");
        for op in &recorded.ops[at.saturating_sub(10)..at] {
            println!("  {}", saved::words(op));
        }
        let judged = replay::repeat(&recorded, case, || {
            if options.keep {
                let before = root.with_extension("before");
                let _ = std::fs::remove_dir_all(&before);
                let status = Command::new("cp").arg("-a").args([&root, &before]).status();
                println!("what it left: {} (cp: {status:?})", before.display());
            }
        })?;
        if options.keep {
            println!("what came of it: {}", root.display());
        } else {
            std::fs::remove_dir_all(&root)?;
        }
        Ok(judged)
    };
    match done() {
        Ok(judged) => {
            println!("it ended as {}", judged.state);
            for failure in &judged.failures {
                println!("broken: {failure}");
            }
            if judged.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{}: {error}", file.display());
            ExitCode::from(2)
        }
    }
}
