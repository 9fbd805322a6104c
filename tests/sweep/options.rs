//! The command line of the sweep.
//!
//! # Limitations
//! Of the options of Rust's own test harness those are understood that runners pass.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::flows::FLOWS;
use crate::inject::Fault;

pub const USAGE: &str = "\
cargo test --test sweep -- [OPTIONS]
  --full          every point, but of a row of writes into one file only the first and the last,
                  and what all runs do before their turn in some flows only; `twice` at every
                  ninth point of each recovery that is unlike the others; without it a sample
  --every         with `--full`: literally all of them
  --stride S      every S-th point
  --flow NAME     this flow only
  --fault NAME    this fault only: all-die, coordinator-dies, enospc, eio, enospc-for-good,
                  eio-for-good, twice
  --at N          this point only
  --second M      with `twice`: this point of the reconcile only
  --second-stride S   with `twice`: every S-th point of the reconcile
  --calls         print the calls of the flow, each with its number
  --keep          keep the folder of a failure
  --jobs J        so many at once (3)
  --dir DIR       where to try (a memory file system, if there is one)";

/// A column of the sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub name: &'static str,
    pub fault: Fault,
    /// The reconcile after it is killed too.
    pub twice: bool,
}

/// All of them.
pub const KINDS: [Kind; 7] = [
    Kind { name: "all-die", fault: Fault::KillAll, twice: false },
    Kind { name: "coordinator-dies", fault: Fault::KillCoordinator, twice: false },
    Kind { name: "enospc", fault: Fault::Once(libc::ENOSPC), twice: false },
    Kind { name: "eio", fault: Fault::Once(libc::EIO), twice: false },
    Kind { name: "enospc-for-good", fault: Fault::ForGood(libc::ENOSPC), twice: false },
    Kind { name: "eio-for-good", fault: Fault::ForGood(libc::EIO), twice: false },
    Kind { name: "twice", fault: Fault::KillAll, twice: true },
];

#[derive(Clone, Debug)]
pub struct Options {
    pub stride: usize,
    pub every: bool,
    pub second_stride: usize,
    pub flows: Vec<usize>,
    pub kinds: Vec<Kind>,
    pub at: Option<usize>,
    pub second: Option<usize>,
    pub calls: bool,
    pub keep: bool,
    pub jobs: usize,
    pub dir: Option<PathBuf>,
}

/// What the sample leaves out between two points.
const SAMPLE: usize = 97;
const SAMPLE_TWICE: usize = 61;
/// What the whole leaves out between two points of a reconcile.
const FULL_TWICE: usize = 9;

impl Options {
    /// `None` where nothing is to be run.
    pub fn of(mut words: impl Iterator<Item = OsString>) -> Result<Option<Self>, String> {
        let mut options = Self {
            stride: SAMPLE,
            every: false,
            second_stride: SAMPLE_TWICE,
            flows: (0..FLOWS.len()).collect(),
            kinds: KINDS.to_vec(),
            at: None,
            second: None,
            calls: false,
            keep: false,
            jobs: 3,
            dir: None,
        };
        let (mut list, mut ignored, mut filters) = (false, false, Vec::new());
        while let Some(word) = words.next() {
            let word =
                word.into_string().map_err(|word| format!("not text: {}", word.display()))?;
            let (word, glued) = match word.split_once('=') {
                Some((word, value)) => (word.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            let mut value = || {
                glued
                    .clone()
                    .or_else(|| words.next().and_then(|value| value.into_string().ok()))
                    .ok_or(format!("{word} needs a value"))
            };
            let number = |text: String| {
                text.parse::<usize>().ok().filter(|n| *n > 0).ok_or(format!("no number: {text}"))
            };
            match word.as_str() {
                "--full" => (options.stride, options.second_stride) = (1, FULL_TWICE),
                "--every" => (options.every, options.second_stride) = (true, 1),
                "--stride" => options.stride = number(value()?)?,
                "--second-stride" => options.second_stride = number(value()?)?,
                "--flow" => {
                    let name = value()?;
                    let at = FLOWS.iter().position(|flow| flow.name == name);
                    options.flows = vec![at.ok_or(format!("there is no flow {name}"))?];
                }
                "--fault" => {
                    let name = value()?;
                    options.kinds.retain(|kind| kind.name == name);
                    if options.kinds.is_empty() {
                        return Err(format!("there is no fault {name}"));
                    }
                }
                "--at" => {
                    options.at = Some(number(value()?)?);
                    (options.stride, options.second_stride) = (1, 1);
                }
                "--second" => options.second = Some(number(value()?)?),
                "--calls" => options.calls = true,
                "--keep" => options.keep = true,
                "--jobs" => options.jobs = number(value()?)?,
                "--dir" => options.dir = Some(PathBuf::from(value()?)),
                "--help" | "-h" => {
                    println!("{USAGE}");
                    return Ok(None);
                }
                "--list" => list = true,
                "--ignored" => ignored = true,
                "--nocapture" | "--no-capture" | "--exact" | "--quiet" | "-q"
                | "--include-ignored" | "--show-output" => {}
                "--format" | "--color" | "--test-threads" | "--skip" | "-Z" => {
                    value()?;
                }
                _ if word.starts_with('-') => return Err(format!("unknown: {word}")),
                _ => filters.push(word),
            }
        }
        if list && !ignored {
            println!("sweep: test");
        }
        // A name that the harness is asked for, of another test binary.
        let wanted =
            filters.is_empty() || filters.iter().any(|name| "sweep".contains(name.as_str()));
        Ok((wanted && !list && !ignored).then_some(options))
    }
}
