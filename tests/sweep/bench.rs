//! A place to try flows in: a folder that is brought back to a flow's start as often as need be.
//!
//! Paths stand in ledgers, so a template is filled where it is tried, and copied from there.
//!
//! # Limitations
//! A copy has other inode numbers and change times than what was copied, as a backup has.

use std::collections::HashMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::time::{ClockId, clock_gettime};

use crate::flows::{FLOWS, Flow, JOB};
use crate::inject::{self, Fault, Traced};
use crate::judge::{Judge, Known, Sight};
use crate::lab::Lab;
use crate::support::{Repo, WORKTX};

/// Older than this a change is told from a look by the clock of files.
const COARSE: i64 = 20_000_000;

/// How often a case is tried that fails by bad luck.
const TRIES: u32 = 3;

/// One case: a fault at a point of a flow, and perhaps a second one in the reconcile after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    pub flow: usize,
    pub fault: Fault,
    pub at: usize,
    /// The reconcile is killed at its own call of this number.
    pub second: Option<usize>,
}

/// What a case came to.
pub enum Came {
    /// The fault happened, and all laws held. Whether the calls up to it were those of a run
    /// without one.
    Held { as_ever: Result<(), String> },
    /// There is no such point: all was done before it.
    PastTheEnd,
    /// There is no such second point.
    PastTheSecond,
    /// A law was broken, or the case could not be tried.
    Broken { why: String, calls: Vec<String> },
}

struct Template {
    lab: Lab,
    copy: PathBuf,
    known: Known,
    calls: Vec<String>,
    before_turn: usize,
}

/// One place. Cases are tried in it one after the other.
pub struct Bench {
    dir: PathBuf,
    templates: HashMap<usize, Template>,
    keep: bool,
}

impl Bench {
    pub fn new(dir: &Path, keep: bool) -> Self {
        fs::create_dir_all(dir).expect("a folder");
        let dir = dir.canonicalize().expect("there");
        Self { dir, templates: HashMap::new(), keep }
    }

    fn place(&self) -> PathBuf {
        self.dir.join("place")
    }

    /// The calls of a run that nothing disturbs, in words, and how many came before the turn.
    pub fn calls(&mut self, flow: usize) -> Result<(Vec<String>, usize), String> {
        self.template(flow).map(|template| (template.calls.clone(), template.before_turn))
    }

    /// The calls of the reconcile after everything died at a point; `None` past the end.
    pub fn recovery(&mut self, flow: usize, at: usize) -> Result<Option<Vec<String>>, String> {
        let place = self.place();
        let template = self.template(flow)?;
        guarded(|| {
            back(&template.copy, &place);
            let command = FLOWS[flow].command(&template.lab);
            if !trace(&template.lab, &command, at, Fault::KillAll).hit {
                return None;
            }
            let command = template.lab.repo.worktx(&["reconcile", "--json"]);
            Some(trace(&template.lab, &command, 0, Fault::KillAll).calls)
        })
    }

    /// Whether the flow is at hand here.
    pub fn has(&self, flow: usize) -> bool {
        self.templates.contains_key(&flow)
    }

    fn template(&mut self, at: usize) -> Result<&mut Template, String> {
        if !self.templates.contains_key(&at) {
            let template = guarded(|| self.fill(&FLOWS[at], at))?;
            self.templates.insert(at, template);
        }
        Ok(self.templates.get_mut(&at).expect("just put there"))
    }

    fn fill(&self, flow: &Flow, at: usize) -> Template {
        let place = self.place();
        let _ = fs::remove_dir_all(&place);
        fs::create_dir_all(&place).expect("a folder");
        let lab = Lab::of(Repo::at(&place), |_| {});
        let base = Sight::of(&lab);
        flow.prepare(&lab);
        let copy = self.dir.join(format!("template-{at}"));
        copy_all(&place, &copy);
        let start = Sight::of(&lab);
        // Commits have the second in them: one that was made in this one would be there already.
        let second = || nanoseconds() / 1_000_000_000;
        let filled = second();
        wait_until(|| second() > filled);
        back(&copy, &place);
        let traced = trace(&lab, &flow.command(&lab), 0, Fault::KillAll);
        let end = Sight::of(&lab);
        assert!(!traced.calls.is_empty(), "nothing was counted");
        let known = Known { base, start, end };
        let mut lab = lab;
        let mut judge = Judge { flow, lab: &mut lab, known: &known, fault: Fault::Once(0) };
        judge.exit(&traced);
        judge.came_to_its_end(&traced);
        judge.settle();
        lab.forget_held();
        Template { lab, copy, known, calls: traced.calls, before_turn: traced.before_turn }
    }

    /// Tries one case. Two things come of being traced, and of what else goes on in a machine: a
    /// coordinator gives up a supervisor that it sees stopped by a tracer, and a process that
    /// nothing explains takes a proof of death away. What fails with such a reason is tried again:
    /// a bug fails each time.
    pub fn try_one(&mut self, case: &Case) -> Came {
        let mut tries = 0;
        loop {
            tries += 1;
            let came = self.try_once(case);
            let again = matches!(came, Came::Broken { .. }) && tries < TRIES && self.unlucky();
            if !again {
                return came;
            }
        }
    }

    fn unlucky(&self) -> bool {
        let ledger = self.place().join("repo/.git/worktx/ledger.db");
        // Asked for a ledger that is not there, sqlite3 would make one.
        if !ledger.exists() {
            return false;
        }
        let query = format!(
            "select count(*) from attempt where execution_id = '{JOB}' and
             json_extract(outcome, '$.reason') in ('interrupted', 'writer_unproven')"
        );
        let asked = Command::new("sqlite3").args([ledger.as_os_str(), query.as_ref()]).output();
        asked.is_ok_and(|said| said.stdout != b"0\n")
    }

    fn try_once(&mut self, case: &Case) -> Came {
        let place = self.place();
        let keep = self.keep;
        let mut calls = Vec::new();
        let template = match self.template(case.flow) {
            Ok(template) => template,
            Err(why) => return Came::Broken { why: format!("the flow itself: {why}"), calls },
        };
        let flow = &FLOWS[case.flow];
        let tried = guarded(|| {
            back(&template.copy, &place);
            let traced = trace(&template.lab, &flow.command(&template.lab), case.at, case.fault);
            calls.clone_from(&traced.calls);
            if !traced.hit {
                return Came::PastTheEnd;
            }
            let until = case.at.min(traced.calls.len());
            let as_ever = alike(&template.calls, &traced.calls[..until]);
            let lab = &mut template.lab;
            let mut judge = Judge { flow, lab, known: &template.known, fault: case.fault };
            judge.exit(&traced);
            if let Some(second) = case.second {
                let command = judge.lab.repo.worktx(&["reconcile", "--json"]);
                let again = trace(judge.lab, &command, second, Fault::KillAll);
                calls.clone_from(&again.calls);
                if !again.hit {
                    return Came::PastTheSecond;
                }
            }
            judge.settle();
            Judge::gone(&traced.calls);
            Came::Held { as_ever }
        });
        template.lab.forget_held();
        match tried {
            Ok(came) => came,
            Err(why) => {
                if keep {
                    let kept = self.dir.join(format!("kept-{}-{}", flow.name, case.at));
                    let _ = fs::remove_dir_all(&kept);
                    copy_all(&place, &kept);
                    return Came::Broken { why: format!("{why}\nkept: {}", kept.display()), calls };
                }
                Came::Broken { why, calls }
            }
        }
    }
}

fn trace(lab: &Lab, command: &Command, at: usize, fault: Fault) -> Traced {
    inject::run(command, Path::new(WORKTX), &lab.repo.outside(), at, fault).expect("it is traced")
}

/// What a panic in here says.
fn guarded<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|_| crate::said::last())
}

/// Brings the place back to what was copied.
fn back(copy: &Path, place: &Path) {
    let _ = fs::remove_dir_all(place);
    copy_all(copy, place);
    // What changed within the clock's coarseness of a look is looked at again later: other calls.
    let copied = nanoseconds();
    wait_until(|| nanoseconds() > copied + COARSE);
}

fn nanoseconds() -> i64 {
    let now = clock_gettime(ClockId::RealtimeCoarse);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Waits for a time of the clock that files are stamped with.
fn wait_until(come: impl Fn() -> bool) {
    while !come() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn copy_all(from: &Path, to: &Path) {
    let done =
        Command::new("cp").arg("-a").arg("--").arg(from).arg(to).status().expect("cp starts");
    assert!(done.success(), "cp -a {} {}", from.display(), to.display());
}

/// Whether the calls are those of the run that nothing disturbed, but for ids and numbers.
fn alike(known: &[String], now: &[String]) -> Result<(), String> {
    for (at, call) in now.iter().enumerate() {
        let before = known.get(at).map_or("nothing", String::as_str);
        if shape(before) != shape(call) {
            return Err(format!("call {}: {call}, not {before}", at + 1));
        }
    }
    Ok(())
}

/// A call without what differs from run to run: ids, pids, times.
pub fn shape(call: &str) -> String {
    let mut out = String::new();
    for word in call.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let (body, end) = match word.char_indices().last() {
            Some((at, c)) if !c.is_ascii_alphanumeric() => word.split_at(at),
            _ => (word, ""),
        };
        let id = body.len() >= 6 && body.chars().all(|c| c.is_ascii_hexdigit());
        let ulid = body.len() == 26 && !body.contains(|c: char| c.is_ascii_lowercase());
        let number = !body.is_empty() && body.chars().all(|c| c.is_ascii_digit());
        out.push_str(if id || number || ulid { "#" } else { body });
        out.push_str(end);
    }
    out
}
