//! A recorded flow, cut at each of its moments, in each of the states that a power loss may leave.
//!
//! # Limitations
//! Of the states that a file system may leave, the corners are tried and a few at random.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::flows::Recorded;
use crate::laws::{self, Answer, Judged, Moment};
use crate::model::{Image, Keep, Model, Op};
use crate::tally::Tally;

/// A moment of a recording, and a state that a power loss leaves then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// How many of the recorded changes had returned.
    pub at: usize,
    pub keep: Keep,
}

/// How many cases are tried.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// Every moment, every state, this many random ones of either kind.
    Full { seeds: u64 },
    /// About so many, spread evenly.
    Sample(usize),
}

/// What came of a flow.
#[derive(Default)]
pub struct Outcome {
    pub points: usize,
    /// How many states there are that differ.
    pub different: usize,
    pub tally: Tally,
}

fn states(extent: Extent) -> Vec<Keep> {
    let mut all = vec![Keep::Strict, Keep::All, Keep::Names, Keep::Zeros, Keep::Data];
    let seeds = match extent {
        Extent::Full { seeds } => seeds,
        Extent::Sample(_) => 1,
    };
    all.extend((0..seeds).flat_map(|seed| [Keep::Some(seed), Keep::Until(seed)]));
    all
}

/// The model as it was when the recording began.
fn beginning(recorded: &Recorded) -> Model {
    let mut model = Model::new(0o755);
    recorded.initial.iter().for_each(|op| model.apply(op));
    model.settle();
    model
}

/// The answer that stands at a moment, if no command has begun since.
struct Answers {
    last_piece: Vec<Option<usize>>,
}

impl Answers {
    fn of(ops: &[Op]) -> Self {
        let mut last_piece = Vec::new();
        for (at, op) in ops.iter().enumerate() {
            match op {
                Op::Step(_) => last_piece.push(None),
                Op::Answer => *last_piece.last_mut().expect("a step began") = Some(at),
                _ => {}
            }
        }
        Self { last_piece }
    }

    fn at<'a>(&self, at: usize, step: Option<usize>, all: &'a [Answer]) -> Option<&'a Answer> {
        let step = step?;
        let given = self.last_piece[step]? < at;
        given.then(|| &all[step])
    }
}

/// Calls `visit` for each case whose state was not there before, until it says stop.
fn each_case(
    recorded: &Recorded,
    extent: Extent,
    mut visit: impl FnMut(Case, &Model, Option<&Answer>) -> io::Result<()>,
) -> io::Result<usize> {
    let keeps = states(extent);
    let answers = Answers::of(&recorded.ops);
    let mut model = beginning(recorded);
    let mut seen = HashSet::new();
    let mut step = None;
    for at in 0..=recorded.ops.len() {
        if at > 0 {
            let op = &recorded.ops[at - 1];
            model.apply(op);
            if let Op::Step(number) = op {
                step = Some(*number);
            }
        }
        let answered = answers.at(at, step, &recorded.facts.answers);
        for keep in &keeps {
            if seen.insert((model.digest(*keep), answered.is_some())) {
                visit(Case { at, keep: *keep }, &model, answered)?;
            }
        }
    }
    Ok(recorded.ops.len() + 1)
}

/// Tries the cases of a flow.
pub fn replay(recorded: &Recorded, extent: Extent) -> io::Result<Outcome> {
    let scratch = tempfile::tempdir()?;
    let mut outcome = Outcome::default();
    let chosen = match extent {
        Extent::Full { .. } => None,
        Extent::Sample(count) => {
            let mut all = Vec::new();
            each_case(recorded, extent, |case, _, _| {
                all.push(case);
                Ok(())
            })?;
            let step = all.len().div_ceil(count).max(1);
            // Not the same states at each moment: the stride must not share a factor with them.
            let step = if step % 7 == 0 { step + 1 } else { step };
            Some(all.into_iter().step_by(step).collect::<Vec<_>>())
        }
    };
    outcome.points = each_case(recorded, extent, |case, model, answered| {
        outcome.different += 1;
        if chosen.as_ref().is_some_and(|chosen| !chosen.contains(&case)) {
            return Ok(());
        }
        let image = model.image(case.keep);
        let moment = moment(recorded, &image, case.keep, answered);
        recorded.place.become_image(&image)?;
        let judged = laws::judge(&recorded.place, scratch.path(), &recorded.facts, &moment);
        outcome.tally.add(|| format!("--at {} --state {}", case.at, case.keep.name()), judged);
        Ok(())
    })?;
    Ok(outcome)
}

/// What is known of a moment.
fn moment<'a>(
    recorded: &Recorded,
    image: &Image,
    keep: Keep,
    answered: Option<&'a Answer>,
) -> Moment<'a> {
    let locks = image
        .entries
        .iter()
        .filter(|entry| entry.path.ends_with(b".lock") && recorded.made_by_git.contains(&entry.id));
    let locks_of_git =
        locks.map(|entry| Path::new(OsStr::from_bytes(&entry.path)).to_owned()).collect();
    let deep = matches!(keep, Keep::Strict | Keep::All | Keep::Some(_));
    let out_of_order = matches!(keep, Keep::Some(_));
    Moment { answered, locks_of_git, out_of_order, deep }
}

/// One case again; `look` is called with the state in place, before anything is done to it.
pub fn repeat(recorded: &Recorded, case: Case, look: impl FnOnce()) -> io::Result<Judged> {
    let answers = Answers::of(&recorded.ops);
    let mut model = beginning(recorded);
    let mut step = None;
    for op in &recorded.ops[..case.at] {
        model.apply(op);
        if let Op::Step(number) = op {
            step = Some(*number);
        }
    }
    let scratch = tempfile::tempdir()?;
    let image = model.image(case.keep);
    recorded.place.become_image(&image)?;
    look();
    let answered = answers.at(case.at, step, &recorded.facts.answers);
    let moment = moment(recorded, &image, case.keep, answered);
    Ok(laws::judge(&recorded.place, scratch.path(), &recorded.facts, &moment))
}
