//! Goes over all cases, on several benches at once, and counts what came of them.
//!
//! # Limitations
//! A processor core for each bench: they keep no time, but a run that takes too long is ended.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::bench::{Bench, Came, Case, shape};
use crate::flows::FLOWS;
use crate::options::{KINDS, Kind, Options};
use crate::said;

/// How much room the benches may take.
const ROOM: u64 = 512 << 20;

/// A flow under one kind of fault: its points in their order, until there are no more.
struct Row {
    flow: usize,
    kind: Kind,
    /// The points to be tried, once they are known: the last one lies past the end.
    points: Option<Vec<usize>>,
    next: usize,
    over: bool,
    /// How many points are worked at.
    at_work: usize,
    /// What the reconciles did that were killed at their points, by its shape.
    recoveries: HashSet<String>,
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
    /// The longest that a point took, and which it was.
    slowest: (Duration, usize),
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
                while let Some((row, at)) = take(&mut bench, rows, options) {
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
        for kind in &options.kinds {
            rows.push(Row {
                flow: *flow,
                kind: *kind,
                points: options.at.map(|at| vec![at]),
                next: 0,
                over: false,
                at_work: 0,
                recoveries: HashSet::new(),
                count: Count::default(),
            });
        }
    }
    rows
}

/// The next point that nobody works at.
fn take(bench: &mut Bench, rows: &Mutex<Vec<Row>>, options: &Options) -> Option<(usize, usize)> {
    let mut rows = rows.lock().expect("nothing panics with it");
    loop {
        // To fill a flow takes as long as some cases: first what is at hand here, then what is
        // nowhere, then a hand for the others.
        let open = |at: usize| !rows[at].over;
        let nowhere = |at: usize| {
            open(at) && !rows.iter().any(|row| row.flow == rows[at].flow && row.points.is_some())
        };
        let at = (0..rows.len())
            .find(|at| open(*at) && bench.has(rows[*at].flow))
            .or_else(|| (0..rows.len()).find(|at| nowhere(*at)))
            .or_else(|| (0..rows.len()).find(|at| open(*at)))?;
        let row = &mut rows[at];
        let points = row.points.get_or_insert_with(|| points(bench, row.flow, row.kind, options));
        match points.get(row.next) {
            Some(point) => {
                row.next += 1;
                row.at_work += 1;
                return Some((at, *point));
            }
            None => row.over = true,
        }
    }
}

/// The points of a flow. One lies past the end: there nothing must happen any more.
fn points(bench: &mut Bench, flow: usize, kind: Kind, options: &Options) -> Vec<usize> {
    // A flow that cannot be had fails at its first point.
    let Ok((calls, before_turn)) = bench.calls(flow) else { return vec![1] };
    // Up to its turn every run is the same.
    let from = if FLOWS[flow].from_turn && !options.every { before_turn } else { 0 };
    let mut points = ends_of_rows(&calls, options);
    points.push(calls.len() + 1);
    points.retain(|at| *at > from);
    // Another part of the sample for each flow and kind.
    let number = KINDS.iter().position(|other| other.name == kind.name).unwrap_or(0);
    let first = (number * 5 + flow * 7) % options.stride.min(points.len());
    points.into_iter().skip(first).step_by(options.stride).collect()
}

/// The numbers of calls, from 1; of a row of writes into one file only those of the first and the
/// last.
fn ends_of_rows(calls: &[String], options: &Options) -> Vec<usize> {
    let writes = |at: usize| calls.get(at).filter(|call| call.contains("write"));
    let within = |at: usize| at > 0 && writes(at).is_some() && writes(at - 1) == writes(at);
    (0..calls.len())
        .filter(|at| options.every || !(within(*at) && within(at + 1)))
        .map(|at| at + 1)
        .collect()
}

/// The points of the reconcile after a crash. A recovery that does what one did before that was
/// killed at its points already has none.
fn seconds(
    bench: &mut Bench,
    rows: &Mutex<Vec<Row>>,
    row: usize,
    at: usize,
    options: &Options,
) -> Option<Vec<Option<usize>>> {
    let flow = rows.lock().expect("nothing panics with it")[row].flow;
    // One that cannot be had fails at its first point.
    let Ok(calls) = bench.recovery(flow, at) else { return Some(vec![Some(1)]) };
    let calls = calls?;
    let shapes: String = calls.iter().map(|call| shape(call) + "\n").collect();
    let new = rows.lock().expect("nothing panics with it")[row].recoveries.insert(shapes);
    if !new && !options.every {
        return Some(Vec::new());
    }
    let points = ends_of_rows(&calls, options);
    if points.is_empty() {
        return Some(Vec::new());
    }
    let first = at % options.second_stride.min(points.len());
    Some(points.into_iter().skip(first).step_by(options.second_stride).map(Some).collect())
}

fn work(bench: &mut Bench, rows: &Mutex<Vec<Row>>, row: usize, at: usize, options: &Options) {
    let (flow, kind) = {
        let rows = rows.lock().expect("nothing panics with it");
        (rows[row].flow, rows[row].kind)
    };
    let seconds = match (kind.twice, options.second) {
        (false, _) => Some(vec![None]),
        (true, Some(second)) => Some(vec![Some(second)]),
        (true, None) => seconds(bench, rows, row, at, options),
    };
    let Some(seconds) = seconds else {
        let row = &mut rows.lock().expect("nothing panics with it")[row];
        row.over = true;
        row.at_work -= 1;
        return;
    };
    let (mut count, mut over) = (Count::default(), false);
    let started = Instant::now();
    for second in seconds {
        let case = Case { flow, fault: kind.fault, at, second };
        match bench.try_one(&case) {
            Came::PastTheEnd => {
                over = true;
                break;
            }
            Came::PastTheSecond => break,
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
                if why.starts_with("the flow itself") {
                    over = true;
                    break;
                }
            }
        }
    }
    count.points = usize::from(count.runs > 0);
    count.took = started.elapsed();
    count.slowest = (count.took, at);
    let mut rows = rows.lock().expect("nothing panics with it");
    let row = &mut rows[row];
    row.over |= over || row.points.as_ref().is_some_and(|points| row.next >= points.len());
    row.at_work -= 1;
    row.count.points += count.points;
    row.count.runs += count.runs;
    row.count.failures += count.failures;
    row.count.other_calls += count.other_calls;
    row.count.took += count.took;
    row.count.slowest = row.count.slowest.max(count.slowest);
    if row.count.example.is_none() {
        row.count.example = count.example;
    }
    if row.over && row.at_work == 0 {
        eprintln!("{}", line(row));
    }
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
        "{:<16} {:<17} {:>6} {:>6} {:>8} {:>6} {:>6}  slowest",
        "flow", "fault", "points", "runs", "failures", "other", "s"
    );
    let mut examples: BTreeMap<&str, &str> = BTreeMap::new();
    for row in rows {
        println!("{}", line(row));
        if let Some(example) = &row.count.example {
            examples.entry(FLOWS[row.flow].name).or_insert(example);
        }
    }
    for (name, example) in examples {
        println!("other calls than ever in {name}: {example}");
    }
}

fn line(row: &Row) -> String {
    let (name, count) = (FLOWS[row.flow].name, &row.count);
    format!(
        "{name:<16} {:<17} {:>6} {:>6} {:>8} {:>6} {:>6.0}  {:.1} s at {}",
        row.kind.name,
        count.points,
        count.runs,
        count.failures,
        count.other_calls,
        count.took.as_secs_f64(),
        count.slowest.0.as_secs_f64(),
        count.slowest.1
    )
}

fn print_calls(options: &Options, dir: &Path) -> ExitCode {
    let mut bench = Bench::new(&dir.join("0"), options.keep);
    for flow in &options.flows {
        println!("{}", FLOWS[*flow].name);
        match bench.calls(*flow) {
            Ok((calls, _)) => {
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
