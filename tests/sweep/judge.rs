//! What must hold after a fault, by `git` and `sqlite3`: the laws of the laboratory, an honest exit
//! code, an end that the flow allows, and a workspace in which the next run works.
//!
//! # Limitations
//! A turn's own bytes are held to be written only once it came to its end.

use std::collections::BTreeMap;
use std::path::Path;

use crate::flows::{Before, End, Flow, JOB, Subject};
use crate::inject::{Fault, Traced};
use crate::lab::Lab;
use crate::support::listing;

/// What is told of the repository as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    tree: BTreeMap<String, String>,
    /// Configuration, hooks, excludes.
    git: BTreeMap<String, String>,
    head: String,
    head_tree: String,
    index: String,
    status: String,
}

impl Sight {
    pub fn of(lab: &Lab) -> Self {
        let mut git = listing(&lab.repo.path(".git"));
        git.retain(|path, _| {
            path == "config" || path.starts_with("hooks/") || path.starts_with("info/")
        });
        let heads = lab.repo.git(&["rev-parse", "HEAD", "HEAD^{tree}"]);
        let (head, head_tree) = heads.split_once('\n').expect("two lines");
        Self {
            tree: lab.repo.listing(),
            git,
            head: head.to_owned(),
            head_tree: head_tree.to_owned(),
            index: lab.repo.git(&["ls-files", "-s", "-v"]),
            status: lab.repo.status(),
        }
    }

    /// The same but for the commit itself, which has the time in it.
    #[track_caller]
    fn landed_like(&self, other: &Self) {
        assert_eq!(self.tree, other.tree, "not the tree of a run that nothing disturbs");
        assert_eq!(
            self.head_tree, other.head_tree,
            "not the commit of a run that nothing disturbs"
        );
        assert_eq!((&self.index, &self.status), (&other.index, &other.status));
        assert_eq!(self.git, other.git);
    }

    #[track_caller]
    fn is(&self, other: &Self, what: &str) {
        assert_eq!(self.tree, other.tree, "{what}: the tree");
        assert_eq!(self.head, other.head, "{what}: HEAD");
        assert_eq!((&self.index, &self.status), (&other.index, &other.status), "{what}: the index");
        assert_eq!(self.git, other.git, "{what}: the git directory");
    }
}

/// What a flow looks like: at its base, before the command, and after it where nothing disturbs.
#[derive(Debug)]
pub struct Known {
    pub base: Sight,
    pub start: Sight,
    pub end: Sight,
}

fn document(traced: &Traced) -> serde_json::Value {
    serde_json::from_str(&traced.stdout).expect("a document")
}

/// A finished case, to be judged.
pub struct Judge<'a> {
    pub flow: &'a Flow,
    pub lab: &'a mut Lab,
    pub known: &'a Known,
    pub fault: Fault,
}

impl Judge<'_> {
    fn killed(&self) -> bool {
        matches!(self.fault, Fault::KillAll | Fault::KillCoordinator)
    }

    fn mark(&self, name: &str) -> bool {
        self.lab.repo.outside().join(name).exists()
    }

    fn of_job(&self, column: &str) -> String {
        if !self.lab.repo.has_ledger() {
            return String::new();
        }
        self.lab.repo.sql(&format!(
            "select {column} from attempt where execution_id = '{JOB}' order by attempt desc limit 1"
        ))
    }

    /// State and reason of the attempt; nothing where there is none.
    fn state(&self) -> (String, String) {
        let both = self.of_job("state, coalesce(json_extract(outcome, '$.reason'), '')");
        let (state, reason) = both.split_once('|').unwrap_or_default();
        (state.to_owned(), reason.to_owned())
    }

    /// Every pin that the ledger names is a ref with that id: what keeps its objects from git's gc.
    fn pins_stand(&self) {
        let pins = self.lab.repo.sql(&format!(
            "select json_extract(data, '$.pins') from attempt where execution_id = '{JOB}'"
        ));
        let refs = self.lab.repo.git(&["for-each-ref", "--format=%(refname) %(objectname)"]);
        for pins in pins.lines() {
            let pins: serde_json::Value = serde_json::from_str(pins).expect("a document");
            let one = [&pins["base"], &pins["candidate"]];
            let many = ["discarded", "rescue"].map(|kind| pins[kind].as_array().expect("a list"));
            for pin in one.into_iter().chain(many.into_iter().flatten()).filter(|p| !p.is_null()) {
                let name = pin["name"].as_str().expect("a name");
                let line = format!("{name} {}", pin["id"].as_str().expect("an id"));
                assert!(
                    refs.lines().any(|l| l == line),
                    "{line} is recorded, and there are\n{refs}"
                );
            }
        }
    }

    /// Everything that can be said before anybody else touches the repository.
    pub fn exit(&self, traced: &Traced) {
        assert!(!traced.hung, "it hung");
        let said = format!("exit {}\n{}\n{}", traced.code, traced.stdout, traced.stderr);
        if self.killed() && traced.code == -9 {
            return;
        }
        assert!(!traced.stderr.contains("panicked"), "a panic: {said}");
        assert!(!traced.stderr.contains("is a bug in worktx"), "a bug: {said}");
        let sight = Sight::of(self.lab);
        match (self.flow.subject, traced.code) {
            (Subject::Run { .. }, 0) => {
                assert_eq!(self.flow.end, End::Done, "{said}");
                sight.landed_like(&self.known.end);
                let document = document(traced);
                assert_eq!(document["outcome"], "committed", "{said}");
                assert_eq!(document["commit"], sight.head.as_str(), "{said}");
            }
            (Subject::Run { .. }, 10..=14) => sight.is(&self.known.base, "rolled back, it says"),
            (Subject::Run { .. }, 1 | 21) => {
                assert!(!self.mark("began"), "the turn ran: {said}");
                // What an attempt before left may be half undone: that one says so itself.
                if matches!(self.flow.before, Before::Nothing | Before::Used) {
                    sight.is(&self.known.base, "nothing was touched, it says");
                }
            }
            (Subject::Run { .. }, 20) => {
                assert_eq!(document(traced)["outcome"], "quarantined", "{said}");
            }
            (Subject::Run { .. }, 70) => {}
            (Subject::Reconcile, 0) => self.no_limbo(&said),
            (Subject::Reconcile, 1 | 70) => {}
            (Subject::Resolve(_), 0) => {
                self.no_limbo(&said);
                self.end(&self.state(), &sight);
            }
            (Subject::Resolve(_), 1 | 20 | 70) => {}
            _ => panic!("an exit that has no meaning: {said}"),
        }
    }

    /// Nothing disturbed it: it is what the flow is about.
    pub fn came_to_its_end(&self, traced: &Traced) {
        let (state, reason) = self.state();
        let reached = match self.flow.end {
            End::Done => state == "done",
            End::RolledBack(why) => (state.as_str(), reason.as_str()) == ("rolled_back", why),
            End::Released => state == "released",
        };
        assert!(reached, "{state} {reason}: {}\n{}", traced.stdout, traced.stderr);
    }

    fn no_limbo(&self, said: &str) {
        let limbo = self.lab.repo.sql(
            "select execution_id, state from attempt where settled_at is null and state <> 'quarantined'",
        );
        assert_eq!(limbo, "", "settled or quarantined, it says: {said}");
    }

    /// What these calls made outside of the place is gone again.
    pub fn gone(calls: &[String]) {
        for path in calls.iter().filter_map(|call| call.split_once("mkdir /")) {
            assert!(!Path::new(&format!("/{}", path.1)).exists(), "/{} is left", path.1);
        }
    }

    /// Reconciles, and judges what has become of it.
    pub fn settle(&mut self) {
        let ended = if self.mark("ended") { self.flow.written() } else { &[] };
        for bytes in self.flow.written_before().iter().chain(ended) {
            self.lab.hold(bytes);
        }
        let ran = self.lab.repo.call(&["reconcile", "--json"]);
        assert_eq!(ran.code, 0, "reconcile: {}{}", ran.stdout, ran.stderr);
        self.laws();
        let (state, reason) = self.state();
        let sight = Sight::of(self.lab);
        let resolves = matches!(self.flow.subject, Subject::Resolve(_));
        match state.as_str() {
            "quarantined" => self.quarantined(&reason, &sight),
            "" => {
                assert!(!self.mark("began"), "a turn ran that nobody knows of");
                sight.is(&self.known.base, "no attempt");
            }
            "rolled_back" if reason == "not_started" => {
                assert!(!self.mark("began"), "never started, it says, and it ran");
                sight.is(&self.known.base, "never started");
            }
            "rolled_back" if reason == "redelivered" => {
                assert!(!self.mark("began"), "the next attempt ran, and nobody knows of it");
                sight.is(&self.known.base, "ready for the next attempt");
            }
            "rolled_back" if !self.killed() && self.flow.end == End::Done && !resolves => {
                // Something failed, and it says so.
                sight.is(&self.known.base, "rolled back");
            }
            _ => self.end(&(state, reason), &sight),
        }
        self.next_run();
    }

    fn laws(&self) {
        if self.lab.repo.has_ledger() {
            self.lab.laws();
            self.pins_stand();
            let settled = self.of_job("settled_at is not null") == "1";
            let folder = self.lab.repo.path(format!(".git/worktx/prepared/{JOB}-1"));
            assert!(!(self.killed() && settled && folder.exists()), "a folder without an attempt");
        } else {
            self.lab.repo.fsck();
            self.lab.nothing_is_left_over();
        }
    }

    /// It came to the end that this flow has.
    fn end(&self, (state, reason): &(String, String), sight: &Sight) {
        match self.flow.end {
            End::Done => {
                assert_eq!((state.as_str(), reason.as_str()), ("done", ""));
                sight.landed_like(&self.known.end);
                let candidate = self.lab.repo.sql(&format!(
                    "select success_candidate from execution where execution_id = '{JOB}'"
                ));
                assert_eq!(sight.head, candidate);
            }
            End::RolledBack(why) => {
                assert_eq!((state.as_str(), reason.as_str()), ("rolled_back", why));
                sight.is(&self.known.base, "rolled back");
            }
            End::Released => {
                assert_eq!(state, "released", "{reason}");
                sight.is(&self.known.start, "kept as it is");
            }
        }
    }

    /// An operator is asked: rightly so, and their decision is carried out.
    fn quarantined(&mut self, reason: &str, sight: &Sight) {
        let was = !matches!(self.flow.before, Before::Nothing | Before::Used);
        assert_ne!(reason, "promote_blocked", "the way is free: it should have completed");
        if self.killed() {
            assert!(
                reason == "interrupted" || (was && reason == "branch_moved"),
                "no fault but a kill, and held as {reason}: {}",
                self.of_job("data")
            );
        }
        if let Subject::Resolve(how) = self.flow.subject {
            if self.killed() {
                sight.is(&self.known.start, "still as it was found");
            }
            let how = if how == "--adopt" && self.undo_begun() { "--discard" } else { how };
            self.lab.repo.call(&["resolve", JOB, how]).exits(0);
            self.laws();
            let sight = Sight::of(self.lab);
            self.end(&self.state(), &sight);
            return;
        }
        self.lab.repo.call(&["resolve", JOB, "--discard"]).exits(0);
        self.laws();
        assert_eq!(self.state().0, "rolled_back");
        Sight::of(self.lab).is(&self.known.base, "discarded");
    }

    fn undo_begun(&self) -> bool {
        self.of_job("data").contains("\"rolling_back\"")
    }

    /// Whatever was before: the next run works.
    fn next_run(&self) {
        let ran = self
            .lab
            .repo
            .run(&["--execution-id", "next", "--no-post-check"], "echo next > next.txt");
        let clean = self.flow.end != End::Released || self.state().0 != "released";
        if !clean && ran.code == 21 {
            // The operator keeps a tree that is no base.
            return;
        }
        assert_eq!(ran.code, 0, "the next run: {}{}", ran.stdout, ran.stderr);
        assert_eq!(self.lab.repo.git(&["show", "HEAD:next.txt"]), "next");
        self.lab.l2_never_blessed();
        self.lab.nothing_is_left_over();
    }
}
