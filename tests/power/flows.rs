//! The transactions that power losses are tried on.
//!
//! # Limitations
//! Small trees and short turns: each moment of each is tried in several states.

use std::fs;
use std::io;

use crate::lab::Lab;
use crate::laws::{self, Answer, Facts, JOB};
use crate::model::{Id, Op};
use crate::place::Place;
use crate::recorder::Recorder;
use crate::tracer::Ended;

/// What a turn does that succeeds: every kind of change.
const WORK: &str = "echo new > new.txt; echo more >> README.md; rm src/deep/two.txt; \
                    mkdir -p made/dir; echo in > made/dir/in; ln -sf src link; chmod 644 script.sh";
const WORK_BYTES: &[&str] = &["new\n", "hello\nmore\n", "in\n"];

/// What a turn does that fails: as above, and what git cannot store.
const WRECK: &str = "echo new > new.txt; echo more >> README.md; rm -rf src empty; \
                     mkdir -p made/dir; echo in > made/dir/in; ln -sf /etc link; chmod 644 script.sh; \
                     mkfifo pipe; echo changed > notes.txt; rm dangling; mkdir dangling; \
                     echo deep > dangling/deep; echo blob > src; chmod 755 secret.txt; exit 3";
const WRECK_BYTES: &[&str] = &["new\n", "hello\nmore\n", "in\n", "changed\n", "deep\n", "blob\n"];

/// Commits of the turn itself, by git's defaults: their objects and refs are not synced by git.
const OWN: &str = "echo a > a; git add a; git commit -qm own; echo new > new.txt";
const OWN_BYTES: &[&str] = &["a\n", "new\n"];

/// Everything that the turn does is committed by the turn itself.
const OWN_ALL: &str = "echo a > a; rm src/deep/two.txt; git add -A a src; git commit -qm own";

/// Writes the bytes that were there into the files that are there.
const TOUCH: &str = "for f in README.md notes.txt secret.txt; do cat $f > ../was; cat ../was > $f; done; \
                     chmod 600 script.sh; chmod 755 script.sh; exit 3";

/// A turn that packs everything, and removes what git thinks is loose now.
const PACKED: &str =
    "echo a > a; git add a; git commit -qm own; git gc -q --prune=now; echo new > new.txt";

/// One pack less than are made one at the end of a run (`src/git/repack.rs`).
const PACKS: usize = 11;

/// A command of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub args: &'static [&'static str],
    /// `WORKTX_FAULT`: it is killed there, and the next command meets what it left.
    pub fault: Option<&'static str>,
    /// How it must end when nothing is cut.
    pub code: i32,
}

/// A transaction.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub name: &'static str,
    pub steps: &'static [Step],
    /// What the turn writes.
    pub bytes: &'static [&'static str],
    /// What there was before.
    pub past: Past,
}

/// What worktx did in a repository before the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// Nothing, ever.
    None,
    /// One run.
    Usual,
    /// So many runs that their packs are made one at the end of the next.
    Long,
}

const fn step(args: &'static [&'static str], code: i32) -> Step {
    Step { args, fault: None, code }
}

const fn killed(args: &'static [&'static str], at: &'static str) -> Step {
    Step { args, fault: Some(at), code: -9 }
}

macro_rules! run {
    ($script:expr) => { run!($script, "--no-post-check") };
    ($script:expr, $($option:literal),+) => {
        &["run", "--json", "--execution-id", JOB, $($option),+, "--", "sh", "-c", $script]
    };
}

const RECONCILE: Step = step(&["reconcile", "--json"], 0);

/// All of them. The first [`SAMPLE`] are what a plain `cargo test` looks at.
pub const FLOWS: &[Flow] = &[
    Flow { name: "commit", steps: &[step(run!(WORK), 0)], bytes: WORK_BYTES, past: Past::Usual },
    Flow {
        name: "roll_back",
        steps: &[step(run!(WRECK), 10)],
        bytes: WRECK_BYTES,
        past: Past::Usual,
    },
    Flow { name: "own_commits", steps: &[step(run!(OWN), 0)], bytes: OWN_BYTES, past: Past::Usual },
    Flow {
        name: "own_commits_rewound",
        steps: &[step(run!(concat_own_fails()), 10)],
        bytes: OWN_BYTES,
        past: Past::Usual,
    },
    Flow {
        name: "post_check",
        steps: &[step(run!(WORK, "--check", "test -e new.txt; echo left > left"), 0)],
        bytes: WORK_BYTES,
        past: Past::Usual,
    },
    Flow {
        name: "post_check_fails",
        steps: &[step(run!(WORK, "--check", "exit 1"), 11)],
        bytes: WORK_BYTES,
        past: Past::Usual,
    },
    Flow {
        name: "own_commits_alone",
        steps: &[step(run!(OWN_ALL), 0)],
        bytes: &["a\n"],
        past: Past::Usual,
    },
    Flow { name: "packed", steps: &[step(run!(PACKED), 0)], bytes: OWN_BYTES, past: Past::Usual },
    Flow { name: "touched", steps: &[step(run!(TOUCH), 10)], bytes: &[], past: Past::Usual },
    Flow { name: "first_run", steps: &[step(run!(WORK), 0)], bytes: WORK_BYTES, past: Past::None },
    Flow { name: "many_packs", steps: &[step(run!(WORK), 0)], bytes: WORK_BYTES, past: Past::Long },
    Flow {
        name: "discard",
        steps: &[
            killed(run!(WRECK), "turn_over"),
            RECONCILE,
            step(&["resolve", JOB, "--discard", "--json"], 0),
        ],
        bytes: WRECK_BYTES,
        past: Past::Usual,
    },
    Flow {
        name: "discard_own_commits",
        steps: &[
            killed(run!(OWN), "turn_over"),
            RECONCILE,
            step(&["resolve", JOB, "--discard", "--json"], 0),
        ],
        bytes: OWN_BYTES,
        past: Past::Usual,
    },
    Flow {
        name: "reconcile_sealed",
        steps: &[killed(run!(WORK), "seal_recorded"), RECONCILE],
        bytes: WORK_BYTES,
        past: Past::Usual,
    },
    Flow {
        name: "reconcile_won",
        steps: &[killed(run!(WORK), "gate_won"), RECONCILE],
        bytes: WORK_BYTES,
        past: Past::Usual,
    },
    Flow {
        name: "reconcile_moved",
        steps: &[killed(run!(OWN), "branch_moved"), RECONCILE],
        bytes: OWN_BYTES,
        past: Past::Usual,
    },
    Flow {
        name: "reconcile_undo",
        steps: &[killed(run!(WRECK), "file_restored:4"), RECONCILE],
        bytes: WRECK_BYTES,
        past: Past::Usual,
    },
    Flow {
        name: "reconcile_rewind",
        steps: &[killed(run!(concat_own_fails()), "discarded_pinned"), RECONCILE],
        bytes: OWN_BYTES,
        past: Past::Usual,
    },
];

const fn concat_own_fails() -> &'static str {
    "echo a > a; git add a; git commit -qm own; echo new > new.txt; exit 3"
}

/// A flow as it ran.
pub struct Recorded {
    /// Holds the folder that the recorded paths name.
    pub lab: Option<Lab>,
    pub place: Place,
    pub facts: Facts,
    pub initial: Vec<Op>,
    pub ops: Vec<Op>,
    /// Files that git programs of the turn made.
    pub made_by_git: Vec<Id>,
}

impl Flow {
    /// A lab for this flow, and what is known of it.
    pub fn set_up(&self) -> (Lab, Place, Facts) {
        let lab = Lab::with(|repo| {
            // Nothing reads git's examples.
            let _ = fs::remove_dir_all(repo.path(".git/hooks"));
        });
        if self.past == Past::Long {
            let packs = || {
                let folder = fs::read_dir(lab.repo.path(".git/objects/pack")).expect("there");
                let names = folder.map(|entry| entry.expect("readable").path());
                names.filter(|path| path.extension().is_some_and(|e| e == "idx")).count()
            };
            // A run makes one or two, by whether the clock has gone on since the last.
            for n in (0..8 * PACKS).take_while(|_| packs() != PACKS) {
                let script = format!("echo {n} > new.txt; exit 1");
                lab.repo.run(&["--no-post-check"], &script).exits(10);
            }
        }
        if self.past == Past::None {
            fs::remove_dir_all(lab.repo.path(".git/worktx")).expect("removed");
            for name in lab.repo.own_refs() {
                lab.repo.git(&["update-ref", "-d", &name]);
            }
        }
        let place = Place { root: lab.repo.outside() };
        let facts = Facts {
            base: lab.base.clone(),
            before: laws::scope(&place.repo()),
            held: laws::files(&place.repo()),
            owed: self.bytes.iter().map(|text| text.as_bytes().to_vec()).collect(),
            answers: Vec::new(),
            repacks: self
                .steps
                .iter()
                .flat_map(|step| step.args)
                .any(|word| word.contains("git gc")),
        };
        (lab, place, facts)
    }

    /// Runs it and records every change.
    pub fn record(&self) -> io::Result<Recorded> {
        let (lab, place, mut facts) = self.set_up();
        let mut recorder = Recorder::new(&place.root)?;
        let scratch = tempfile::tempdir()?;
        let stdout = scratch.path().join("answer");
        for (number, step) in self.steps.iter().enumerate() {
            recorder.step(number);
            let mut command = place.worktx(step.args);
            if let Some(point) = step.fault {
                command.env("WORKTX_FAULT", point);
            }
            command.stderr(fs::File::create(scratch.path().join("stderr"))?);
            let ended = recorder.run(&mut command, &stdout)?;
            let text = fs::read_to_string(&stdout)?;
            if ended != Ended::Code(step.code) {
                let stderr = fs::read_to_string(scratch.path().join("stderr"))?;
                let why = format!("{}: {ended:?}, not {}: {text}{stderr}", self.name, step.code);
                return Err(io::Error::other(why));
            }
            let document = serde_json::from_str(&text).unwrap_or_default();
            facts.answers.push(Answer { code: step.code, document });
        }
        let merged = |op: &Op| matches!(op, Op::Unlink { at } if at.1.ends_with(b".idx"));
        if self.past == Past::Long && !recorder.ops.iter().any(merged) {
            return Err(io::Error::other("no packs were made one: is PACKS right?"));
        }
        let Recorder { initial, ops, made_by_git, .. } = recorder;
        Ok(Recorded { lab: Some(lab), place, facts, initial, ops, made_by_git })
    }
}
