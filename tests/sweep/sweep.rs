//! Goes over all cases, on several benches at once, and counts what came of them.
//!
//! # Limitations
//! A processor core for each bench: they keep no time, but a run that takes too long is ended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::bench::{Bench, Came, Case};
use crate::flows::FLOWS;
use crate::options::{Kind, Options};
use crate::said;

/// How much room the benches may take.
const ROOM: u64 = 512 << 20;

/// A flow under one kind of fault: its points in their order, until there are no more.
struct Row {
    flow: usize,
    kind: Kind,
    next: usize,
    over: bool,
    count: Count,
}

#[derive(Clone, Debug, Default)]
struct Count {
    /// Points met.
    points: usize,
    runs: usize,
    failures: usize,
    /// Runs whose calls were not those of the run that nothing disturbed.
    other_calls: usize,
    example: Option<String>,
    took: Duration,
}

pub fn sweep(options: &Options) -> ExitCode {
    if let Some(why) = missing() {
        println!("SKIPPED: {why}");
        return ExitCode::SUCCESS;
    }
    let started = Instant::now();
    let folder = tempfile::Builder::new()
        .prefix("worktx-sweep-")
        .tempdir_in(place(options.dir.as_deref()))
        .expect("a folder");
    said::keep();
    if options.calls {
        return print_calls(options, folder.path());
    }
    let rows = Mutex::new(rows(options));
    std::thread::scope(|scope| {
        for job in 0..options.jobs {
            let (rows, dir) = (&rows, folder.path().join(job.to_string()));
            scope.spawn(move || {
                let mut bench = Bench::new(&dir, options.keep);
                while let Some((row, at)) = take(rows, options) {
                    work(&mut bench, rows, row, at, options);
                }
            });
        }
    });
    let rows = rows.into_inner().expect("nothing panics with it");
    let failed: usize = rows.iter().map(|row| row.count.failures).sum();
    let runs: usize = rows.iter().map(|row| row.count.runs).sum();
    print_table(&rows);
    if options.keep && failed > 0 {
        println!("kept in {}", folder.keep().display());
    }
    println!("{:.0} s", started.elapsed().as_secs_f64());
    println!("{} passed, {failed} failed", runs - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn rows(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    for flow in &options.flows {
        if let Some(why) = FLOWS[*flow].missing() {
            println!("SKIPPED: {}: {why}", FLOWS[*flow].name);
            continue;
        }
        for (number, kind) in options.kinds.iter().enumerate() {
            // Another point of a sample for each kind of fault and flow.
            let first = 1 + (number * 5 + flow * 7) % options.stride;
            let next = options.at.unwrap_or(first);
            rows.push(Row { flow: *flow, kind: *kind, next, over: false, count: Count::default() });
        }
    }
    rows
}

/// The next point that nobody works at.
fn take(rows: &Mutex<Vec<Row>>, options: &Options) -> Option<(usize, usize)> {
    let mut rows = rows.lock().expect("nothing panics with it");
    let at = rows.iter().position(|row| !row.over)?;
    let row = &mut rows[at];
    let point = row.next;
    row.next += options.stride;
    row.over = options.at.is_some();
    Some((at, point))
}

fn work(bench: &mut Bench, rows: &Mutex<Vec<Row>>, row: usize, at: usize, options: &Options) {
    let (flow, kind) = {
        let rows = rows.lock().expect("nothing panics with it");
        (rows[row].flow, rows[row].kind)
    };
    let seconds: Box<dyn Iterator<Item = Option<usize>>> = match (kind.twice, options.second) {
        (false, _) => Box::new(std::iter::once(None)),
        (true, Some(second)) => Box::new(std::iter::once(Some(second))),
        (true, None) => {
            let first = 1 + at % options.second_stride;
            Box::new((first..).step_by(options.second_stride).map(Some))
        }
    };
    let (mut count, mut over) = (Count::default(), false);
    let started = Instant::now();
    for second in seconds {
        let case = Case { flow, fault: kind.fault, at, second };
        match bench.try_one(&case) {
            Came::PastTheEnd => {
                over = second.is_none() || second == Some(1);
                break;
            }
            Came::Held { as_ever } => {
                count.runs += 1;
                if let Err(example) = as_ever {
                    count.other_calls += 1;
                    count.example.get_or_insert(example);
                }
            }
            Came::Broken { why, calls } => {
                count.runs += 1;
                count.failures += 1;
                tell(&case, kind, &why, &calls);
                if second.is_some_and(|second| second > 500) || why.starts_with("the flow itself") {
                    over = true;
                    break;
                }
            }
        }
    }
    count.points = usize::from(count.runs > 0);
    count.took = started.elapsed();
    let mut rows = rows.lock().expect("nothing panics with it");
    let row = &mut rows[row];
    // A crash that left nothing to do ends nothing: only a flow that is over does.
    row.over |= over && !kind.twice;
    row.count.points += count.points;
    row.count.runs += count.runs;
    row.count.failures += count.failures;
    row.count.other_calls += count.other_calls;
    row.count.took += count.took;
    if row.count.example.is_none() {
        row.count.example = count.example;
    }
    drop(rows);
}

fn tell(case: &Case, kind: Kind, why: &str, calls: &[String]) {
    let name = FLOWS[case.flow].name;
    let second = case.second.map(|m| format!(" --second {m}")).unwrap_or_default();
    let point = case.second.unwrap_or(case.at);
    let call = calls.get(point - 1).map_or("(not met)", String::as_str);
    println!(
        "FAILED {name}, {} at {}{second}: {call}\n  {}\n  again: cargo test --test sweep -- --flow {name} --fault {} --at {}{second} --keep",
        kind.name,
        case.at,
        why.trim().replace('\n', "\n  "),
        kind.name,
        case.at,
    );
}

fn print_table(rows: &[Row]) {
    println!(
        "{:<16} {:<17} {:>6} {:>6} {:>8} {:>6} {:>6}",
        "flow", "fault", "points", "runs", "failures", "other", "s"
    );
    let mut examples: BTreeMap<&str, &str> = BTreeMap::new();
    for row in rows {
        let (name, count) = (FLOWS[row.flow].name, &row.count);
        println!(
            "{name:<16} {:<17} {:>6} {:>6} {:>8} {:>6} {:>6.0}",
            row.kind.name,
            count.points,
            count.runs,
            count.failures,
            count.other_calls,
            count.took.as_secs_f64()
        );
        if let Some(example) = &count.example {
            examples.entry(name).or_insert(example);
        }
    }
    for (name, example) in examples {
        println!("other calls than ever in {name}: {example}");
    }
}

fn print_calls(options: &Options, dir: &Path) -> ExitCode {
    let mut bench = Bench::new(&dir.join("0"), options.keep);
    for flow in &options.flows {
        println!("{}", FLOWS[*flow].name);
        match bench.calls(*flow) {
            Ok(calls) => {
                for (at, call) in calls.iter().enumerate() {
                    println!("{:>5} {call}", at + 1);
                }
            }
            Err(why) => {
                println!("{why}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Why it cannot be swept here.
fn missing() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("the sweep reads the registers of x86-64".to_owned());
    }
    crate::inject::trial().err().map(|error| format!("no tracing behind a filter here: {error}"))
}

/// Memory, where there is enough of it: a file system's own syncs are not what is tried here.
fn place(wanted: Option<&Path>) -> PathBuf {
    if let Some(wanted) = wanted {
        return wanted.to_owned();
    }
    let memory = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(memory).map_or(0, |fs| fs.f_bavail * fs.f_frsize);
    let writable = rustix::fs::access(memory, rustix::fs::Access::WRITE_OK).is_ok();
    if room >= ROOM && writable { memory.to_owned() } else { std::env::temp_dir() }
}
