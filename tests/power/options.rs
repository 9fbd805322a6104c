//! The command line of the tool.
//!
//! # Limitations
//! What `cargo test` passes to every test program is taken and means nothing here.

use std::path::PathBuf;

use crate::cut::{At, KINDS, Kind};
use crate::flows::{FLOWS, Flow};
use crate::model::Keep;
use crate::replay::Extent;

/// The flows of a plain `cargo test`, and how many states of each.
const SAMPLE: (usize, usize) = (4, 40);
/// Random states of either kind at each moment of a full run.
const SEEDS: u64 = 1;
/// In a full run a flow is cut at each of these many calls, and at every point.
const STRIDE: usize = 4;
/// How many cuts a plain `cargo test` makes.
const CUTS: usize = 8;

/// Which of the two ways to lose power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A recording, and a model of a file system.
    Replay,
    /// A real file system that is shut down.
    Cut,
}

#[derive(Debug, Default)]
pub struct Options {
    pub full: bool,
    pub list: bool,
    /// The figures of `docs/durability.md` are wanted.
    pub syncs: bool,
    pub keep: bool,
    /// A kept recording, of which one case is tried again.
    pub repeat: Option<PathBuf>,
    pub at: Option<usize>,
    pub state: Option<Keep>,
    /// The one cut that is tried.
    pub cut: Option<At>,
    pub jobs: Option<usize>,
    only: Option<Method>,
    kind: Option<String>,
    every: bool,
    seeds: Option<u64>,
    sample: Option<usize>,
    words: Vec<String>,
}

pub const HELP: &str = "\
cargo test --test power -- [OPTIONS] [FLOW...]

  --full             every moment of every flow; without it a sample
  --only METHOD      replay or cut
  --seeds N          random states of either kind at each moment (1)
  --every            cut at every sync, rename, link and unlink, not at every fourth
  --fs KIND          ext4 or xfs
  --sample N         how many states of each flow, without --full (40)
  --jobs N           how many flows at once (as many as there are processors)
  --list             the flows
  --syncs            how often each flow syncs, and for what

One case again, as a failure names it:
  --repeat FILE --at N --state STATE [--keep]
  --cut AT --fs KIND FLOW [--keep]
";

impl Options {
    /// Reads the command line.
    pub fn parse() -> Result<Self, String> {
        let mut options = Self::default();
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--full" => options.full = true,
                "--list" => options.list = true,
                "--syncs" => options.syncs = true,
                "--keep" => options.keep = true,
                "--every" => options.every = true,
                "--repeat" => options.repeat = Some(value()?.into()),
                "--fs" => options.kind = Some(value()?),
                "--at" => options.at = Some(number(&value()?)?),
                "--jobs" => options.jobs = Some(number(&value()?)?),
                "--seeds" => options.seeds = Some(number(&value()?)? as u64),
                "--sample" => options.sample = Some(number(&value()?)?),
                "--only" => {
                    options.only = match value()?.as_str() {
                        "replay" => Some(Method::Replay),
                        "cut" => Some(Method::Cut),
                        other => return Err(format!("no method {other}")),
                    };
                }
                "--state" => options.state = Some(known(&value()?, Keep::parse)?),
                "--cut" => options.cut = Some(known(&value()?, At::parse)?),
                "--test-threads" | "--format" | "--color" | "--skip" | "-Z" => drop(value()?),
                "--nocapture" | "--no-capture" | "--quiet" | "-q" | "--exact" | "--ignored"
                | "--include-ignored" | "--show-output" => {}
                "--help" | "-h" => return Err(HELP.to_owned()),
                word if word.starts_with('-') => {
                    if !word.contains('=') {
                        return Err(format!("no option {word}\n\n{HELP}"));
                    }
                }
                word => options.words.push(word.to_owned()),
            }
        }
        Ok(options)
    }

    /// Whether a method is wanted.
    pub fn wants(&self, method: Method) -> bool {
        if self.cut.is_some() {
            return method == Method::Cut;
        }
        self.only.is_none_or(|only| only == method)
    }

    /// The flows that are wanted: by their names, or by a part of them.
    pub fn flows(&self) -> Vec<&'static Flow> {
        let is_name = |word: &str| FLOWS.iter().any(|flow| flow.name == word);
        let meant = |flow: &Flow, word: &String| {
            flow.name == word || (!is_name(word) && flow.name.contains(word.as_str()))
        };
        let named =
            |flow: &&Flow| self.words.is_empty() || self.words.iter().any(|word| meant(flow, word));
        let sampled = if self.full || !self.words.is_empty() { FLOWS.len() } else { SAMPLE.0 };
        FLOWS.iter().filter(named).take(sampled).collect()
    }

    /// The file systems that are wanted: one is enough for a sample.
    pub fn kinds(&self) -> Vec<&'static Kind> {
        let named = |kind: &&Kind| self.kind.as_ref().is_none_or(|name| kind.name == name);
        let sampled = if self.full || self.kind.is_some() { KINDS.len() } else { 1 };
        KINDS.iter().filter(named).take(sampled).collect()
    }

    /// How much of a recording is tried.
    pub fn extent(&self) -> Extent {
        if self.full {
            Extent::Full { seeds: self.seeds.unwrap_or(SEEDS) }
        } else {
            Extent::Sample(self.sample.unwrap_or(SAMPLE.1))
        }
    }

    /// The calls, of so many, at which a flow is cut.
    pub fn calls(&self, of: usize) -> Vec<At> {
        let step = match (self.every, self.full) {
            (true, _) => 1,
            (false, true) => STRIDE,
            (false, false) => of.div_ceil(CUTS),
        };
        // One more than there are: the whole flow, and then the power loss.
        (1..=of).step_by(step.max(1)).chain([of + 1]).map(At::Call).collect()
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("no number: {text}"))
}

fn known<T>(word: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, String> {
    parse(word).ok_or_else(|| format!("unknown: {word}\n\n{HELP}"))
}
