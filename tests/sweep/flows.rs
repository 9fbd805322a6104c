//! What is swept: one command of worktx each, on a repository in a known state, and what it comes
//! to where nothing disturbs it.
//!
//! # Limitations
//! A turn is a small shell script. It leaves two marks beside the repository: that it began, and
//! that it came to its end.

use std::process::Command;

use crate::lab::Lab;

/// The execution of every flow.
pub const JOB: &str = "job";

/// Every kind of change that git stores.
const WORK: &str = "echo new > new.txt; echo more >> README.md; rm src/deep/two.txt; \
                    mkdir -p made/dir; echo in > made/dir/in; ln -sf src link; chmod 644 script.sh; \
                    echo changed > notes.txt";

/// As [`WORK`], and what git cannot store.
const WRECK: &str = "echo new > new.txt; echo more >> README.md; rm -rf src empty; \
                     mkdir -p made/dir; echo in > made/dir/in; ln -sf /etc link; chmod 644 script.sh; \
                     mkfifo pipe; echo changed > notes.txt; rm dangling; mkdir dangling; \
                     echo deep > dangling/deep; echo blob > src; chmod 755 secret.txt";

/// The turn commits, in its own name.
const COMMITS: &str =
    "echo own > own.txt; git add own.txt; git commit -qm own; echo more >> README.md";

/// The turn commits, and changes the git directory.
const MEDDLES: &str = "echo own > own.txt; git add own.txt; git commit -qm own; git rm -q script.sh; \
                       git config alias.evil '!true'; echo '#!/bin/sh' > .git/hooks/pre-commit; \
                       chmod 755 .git/hooks/pre-commit; echo '*.tmp' >> .git/info/exclude; \
                       git tag kept; echo changed > notes.txt";

/// A move of the branch that nobody vouches for.
const MOVES: &str = "echo new > new.txt; \
                     git update-ref refs/heads/main $(git commit-tree -p HEAD -m other 'HEAD^{tree}')";

/// What the same execution does when it comes again.
const SECOND: &str = "echo second > second.txt";

/// The turn kills its coordinator.
const KILLS: &str = "read -r _ _ _ above _ < /proc/$PPID/stat; kill -9 $above; exec sleep 100";

/// What these turns write: it must never be lost once they have come to their end.
const WRITTEN: &[(&str, &[&str])] = &[
    (WORK, &["new\n", "hello\nmore\n", "in\n", "changed\n"]),
    (WRECK, &["new\n", "hello\nmore\n", "in\n", "changed\n", "deep\n", "blob\n"]),
    (COMMITS, &["own\n", "hello\nmore\n"]),
    (MEDDLES, &["own\n", "changed\n"]),
    (MOVES, &["new\n"]),
    (SECOND, &["second\n"]),
];

/// The command that is swept.
#[derive(Clone, Copy, Debug)]
pub enum Subject {
    /// `run`, with these options, of a turn that does this and returns that.
    Run { options: &'static [&'static str], work: &'static str, returns: i32 },
    /// `resolve`, with this word.
    Resolve(&'static str),
    /// `reconcile`.
    Reconcile,
}

/// How the repository comes to be what it is before the command.
#[derive(Clone, Copy, Debug)]
pub enum Before {
    /// No command of worktx has met it.
    Nothing,
    /// An execution is done.
    Used,
    /// A turn did this and killed its coordinator; reconciled.
    Interrupted(&'static str),
    /// A turn did this and returned 0.
    Quarantined(&'static str),
    /// The coordinator of such a turn was killed at a named point.
    Killed { at: &'static str, options: &'static [&'static str], work: &'static str, returns: i32 },
}

/// What the attempt comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It lands.
    Done,
    /// It is undone, for this reason.
    RolledBack(&'static str),
    /// An operator keeps the tree.
    Released,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub name: &'static str,
    pub before: Before,
    pub subject: Subject,
    pub end: End,
    /// What comes before the turn is that of another flow.
    pub from_turn: bool,
}

const CHECK: &[&str] =
    &["--check", "test -e new.txt && echo litter > litter && echo x >> README.md"];
const REJECTS: &[&str] = &["--check", "echo litter > litter; exit 1"];
const NONE: &[&str] = &["--no-post-check"];

const fn run(options: &'static [&'static str], work: &'static str, returns: i32) -> Subject {
    Subject::Run { options, work, returns }
}

/// All of them.
pub const FLOWS: &[Flow] = &[
    Flow {
        name: "commit",
        before: Before::Used,
        subject: run(NONE, WORK, 0),
        end: End::Done,
        from_turn: false,
    },
    Flow {
        name: "commit-first",
        before: Before::Nothing,
        subject: run(NONE, WORK, 0),
        end: End::Done,
        from_turn: false,
    },
    Flow {
        name: "commit-checked",
        before: Before::Used,
        subject: run(CHECK, WORK, 0),
        end: End::Done,
        from_turn: false,
    },
    Flow {
        name: "commit-own",
        before: Before::Used,
        subject: run(NONE, COMMITS, 0),
        end: End::Done,
        from_turn: true,
    },
    Flow {
        name: "fail",
        before: Before::Used,
        subject: run(NONE, WRECK, 3),
        end: End::RolledBack("turn_failed"),
        from_turn: true,
    },
    Flow {
        name: "fail-hard",
        before: Before::Used,
        subject: run(NONE, MEDDLES, 3),
        end: End::RolledBack("turn_failed"),
        from_turn: true,
    },
    Flow {
        name: "reject",
        before: Before::Used,
        subject: run(REJECTS, WORK, 0),
        end: End::RolledBack("post_check_failed"),
        from_turn: true,
    },
    Flow {
        name: "reject-hard",
        before: Before::Used,
        subject: run(REJECTS, MEDDLES, 0),
        end: End::RolledBack("post_check_failed"),
        from_turn: true,
    },
    Flow {
        name: "discard",
        before: Before::Interrupted(WRECK),
        subject: Subject::Resolve("--discard"),
        end: End::RolledBack("discarded"),
        from_turn: false,
    },
    Flow {
        name: "keep",
        before: Before::Interrupted(WRECK),
        subject: Subject::Resolve("--keep"),
        end: End::Released,
        from_turn: false,
    },
    Flow {
        name: "adopt",
        before: Before::Interrupted(WORK),
        subject: Subject::Resolve("--adopt"),
        end: End::Done,
        from_turn: false,
    },
    Flow {
        name: "redeliver",
        before: Before::Interrupted(WORK),
        subject: run(NONE, SECOND, 0),
        end: End::Done,
        from_turn: false,
    },
    Flow {
        name: "discard-moved",
        before: Before::Quarantined(MOVES),
        subject: Subject::Resolve("--discard"),
        end: End::RolledBack("discarded"),
        from_turn: false,
    },
    Flow {
        name: "keep-moved",
        before: Before::Quarantined(MOVES),
        subject: Subject::Resolve("--keep"),
        end: End::Released,
        from_turn: false,
    },
    Flow {
        name: "adopt-moved",
        before: Before::Quarantined(MOVES),
        subject: Subject::Resolve("--adopt"),
        end: End::Done,
        from_turn: false,
    },
    Flow {
        name: "again-sealed",
        before: Before::Killed { at: "seal_recorded", options: CHECK, work: WORK, returns: 0 },
        subject: Subject::Reconcile,
        end: End::Done,
        from_turn: false,
    },
    Flow {
        name: "again-won",
        before: Before::Killed { at: "gate_won", options: NONE, work: WORK, returns: 0 },
        subject: Subject::Reconcile,
        end: End::Done,
        from_turn: false,
    },
    Flow {
        name: "again-undo",
        before: Before::Killed { at: "file_restored:4", options: NONE, work: WRECK, returns: 3 },
        subject: Subject::Reconcile,
        end: End::RolledBack("turn_failed"),
        from_turn: false,
    },
];

fn written(work: &str) -> &'static [&'static str] {
    WRITTEN.iter().find(|(text, _)| *text == work).map_or(&[], |(_, written)| written)
}

impl Flow {
    /// A turn with its marks.
    fn script(work: &str, end: &str) -> String {
        format!("echo > ../began; {work}; echo > ../ended; {end}")
    }

    /// The command.
    pub fn command(&self, lab: &Lab) -> Command {
        match self.subject {
            Subject::Run { options, work, returns } => {
                let options = [&["--execution-id", JOB], options].concat();
                lab.repo.run_command(&options, &Self::script(work, &format!("exit {returns}")))
            }
            Subject::Resolve(how) => lab.repo.worktx(&["resolve", JOB, how, "--json"]),
            Subject::Reconcile => lab.repo.worktx(&["reconcile", "--json"]),
        }
    }

    /// What the turn of the command wrote, once it came to its end.
    pub fn written(&self) -> &'static [&'static str] {
        match self.subject {
            Subject::Run { work, .. } => written(work),
            _ => &[],
        }
    }

    /// What a turn before the command wrote.
    pub fn written_before(&self) -> &'static [&'static str] {
        match self.before {
            Before::Killed { work, .. } | Before::Interrupted(work) | Before::Quarantined(work) => {
                written(work)
            }
            Before::Nothing | Before::Used => &[],
        }
    }

    /// Why this flow cannot be had here.
    pub fn missing(&self) -> Option<&'static str> {
        let needs = matches!(self.before, Before::Killed { .. });
        (needs && !cfg!(debug_assertions)).then_some("a release has no named fault points")
    }

    /// Brings the repository into the state before the command.
    pub fn prepare(&self, lab: &Lab) {
        if matches!(self.before, Before::Nothing) {
            return;
        }
        lab.repo.run(&["--execution-id", "probe", "--no-post-check"], "true").exits(0);
        let options = ["--execution-id", JOB];
        match self.before {
            Before::Nothing | Before::Used => {}
            Before::Interrupted(work) => {
                lab.repo.run(&options, &Self::script(work, KILLS)).exits(-9);
                lab.repo.call(&["reconcile"]).exits(0);
                assert_eq!(lab.state(JOB, 1).1, "interrupted");
            }
            Before::Quarantined(work) => {
                lab.repo.run(&options, &Self::script(work, "exit 0")).exits(20);
            }
            Before::Killed { at, options: more, work, returns } => {
                let script = Self::script(work, &format!("exit {returns}"));
                lab.killed_at(at, &[&options[..], more].concat(), &script);
            }
        }
        for mark in ["began", "ended"] {
            let _ = std::fs::remove_file(lab.repo.outside().join(mark));
        }
    }
}
