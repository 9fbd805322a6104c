//! What must hold after a power loss at any moment, once `worktx reconcile` has run. The judges are
//! `git` and `sqlite3`.
//!
//! L1, nothing lost: what was in scope at open was durable, and is never lost. What a turn wrote is
//! owed from the moment that the ledger durably says `sealed` or names a pin of discarded work, or
//! that worktx answered `committed` or `rolled_back`. L2, never blessed: the branch holds what a
//! success names, once, and nothing else of worktx. L3, no limbo: settled, or held with a reason; a
//! second reconcile changes nothing; the next run behaves by the book. And what the ledger or an
//! answer said before the power loss is still so after it.
//!
//! # Limitations
//! As long as nothing is sealed or undone, what the turn's own git commands left half-written is
//! the loss of the platform, and `git fsck` may complain about it. Everything that the base's pin
//! reaches must be whole even then, and nothing may be settled on such a repository. But where the
//! turn repacks the repository (`git gc`) and the disk takes removals before what stands in for
//! the removed, git itself has lost the base: git syncs no folder. No journaling file system does
//! that; such states are counted by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha1::{Digest as _, Sha1};

use crate::place::{Place, Said, run};
use crate::support::listing;

/// The boot id after the power loss.
const OTHER_BOOT: &str = "a-boot-after-the-power-loss";
/// The execution of every flow.
pub const JOB: &str = "job";

/// What is known of a flow, whatever the moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    /// HEAD at open.
    pub base: String,
    /// The tree at open, without what is ignored.
    pub before: BTreeMap<String, String>,
    /// Bytes that were in scope at open.
    pub held: Vec<Vec<u8>>,
    /// Bytes that the turn wrote.
    pub owed: Vec<Vec<u8>>,
    /// What each command answered, in order.
    pub answers: Vec<Answer>,
    /// Whether the turn repacks the repository.
    #[serde(default)]
    pub repacks: bool,
}

/// What a command said in the end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    pub code: i32,
    pub document: Value,
}

/// What is known of one moment.
#[derive(Clone, Debug, Default)]
pub struct Moment<'a> {
    /// The last answer that was given, if no command has begun since.
    pub answered: Option<&'a Answer>,
    /// Locks that a git program left, relative to the place's root: by the book they are nobody's
    /// but an operator's to remove.
    pub locks_of_git: Vec<PathBuf>,
    /// Whether of two changes the later one may be on the disk alone.
    pub out_of_order: bool,
    /// Whether also the next run, and the operator's way out, are tried.
    pub deep: bool,
}

/// What the ledger said right after the power loss.
#[derive(Debug, Default)]
struct Durable {
    state: String,
    discarded: bool,
    sealed: bool,
    status: String,
    candidate: String,
}

/// How the laws held.
#[derive(Debug, Default)]
pub struct Judged {
    /// The state of the attempt in the end; empty where there is none.
    pub state: String,
    /// What was broken.
    pub failures: Vec<String>,
    /// Whether the turn's own unsynced git files were found damaged.
    pub platforms_loss: bool,
    /// Whether a repacking git had lost the base, or the branch.
    pub gits_loss: bool,
    /// Whether an operator took it back.
    pub taken_back: bool,
    /// Whether it is done, and a file of the tree is not what the commit has, and `git status`
    /// does not see it: its bytes were lost and its times were not.
    pub unseen: bool,
}

/// What the ledger says after the reconcile.
#[derive(Debug, Default)]
struct After {
    state: String,
    reason: String,
    base_pin: String,
    /// Execution, candidate and state of each success.
    wins: Vec<[String; 3]>,
    limbo: Vec<String>,
    settled: bool,
    /// All rows, to be compared.
    rows: Vec<String>,
}

/// What a second reconcile must not change.
const ALL_ROWS: &str = "select execution_id, attempt, state, data from attempt order by 1, 2; \
    select execution_id, status, current_attempt, success_attempt, success_candidate, error \
    from execution order by 1";

struct Judge<'a> {
    place: &'a Place,
    facts: &'a Facts,
    judged: Judged,
}

/// Lets worktx reconcile a state that a power loss left, and looks whether the laws hold.
pub fn judge(place: &Place, scratch: &Path, facts: &Facts, moment: &Moment<'_>) -> Judged {
    let mut judge = Judge { place, facts, judged: Judged::default() };
    let durable = judge.look_before(scratch);
    if let Some(durable) = durable {
        judge.all(&durable, moment);
    }
    judge.judged
}

/// `worktx` after the power loss.
fn worktx(place: &Place, args: &[&str]) -> Said {
    run(place.worktx(args).env("WORKTX_FAULT_BOOT", OTHER_BOOT))
}

impl Judge<'_> {
    fn broken(&mut self, what: impl Into<String>) {
        self.judged.failures.push(what.into());
    }

    fn expect(&mut self, is_so: bool, what: impl FnOnce() -> String) {
        if !is_so {
            self.judged.failures.push(what());
        }
    }

    /// What the ledger says, read from a copy: opening it rolls a journal back.
    fn look_before(&mut self, scratch: &Path) -> Option<Durable> {
        let ledger = self.place.ledger();
        if !ledger.exists() {
            return Some(Durable::default());
        }
        let copy = scratch.join("ledger.db");
        for ending in ["", "-journal"] {
            let (from, to) = (with_ending(&ledger, ending), with_ending(&copy, ending));
            let _ = fs::remove_file(&to);
            if from.exists() {
                fs::copy(from, to).expect("copied");
            }
        }
        let said = self.place.sql(
            &copy,
            &format!(
                "pragma quick_check; \
                 select state, json_array_length(data, '$.pins.discarded') > 0, \
                 exists (select 1 from event e where e.execution_id = a.execution_id and e.kind = 'sealed') \
                 from attempt a where execution_id = '{JOB}' order by attempt desc limit 1; \
                 select 'row', status, coalesce(success_candidate, '') from execution \
                 where execution_id = '{JOB}'"
            ),
        );
        let mut durable = Durable::default();
        let mut lines = said.stdout.lines();
        if said.code != 0 || lines.next() != Some("ok") {
            self.broken(format!("the ledger is damaged: {}{}", said.stdout, said.stderr));
            return None;
        }
        for line in lines {
            match line.split('|').collect::<Vec<_>>()[..] {
                ["row", status, candidate] => {
                    status.clone_into(&mut durable.status);
                    candidate.clone_into(&mut durable.candidate);
                }
                [state, discarded, sealed] => {
                    state.clone_into(&mut durable.state);
                    durable.discarded = discarded == "1";
                    durable.sealed = sealed == "1";
                }
                _ => panic!("{line}"),
            }
        }
        Some(durable)
    }

    fn all(&mut self, durable: &Durable, moment: &Moment<'_>) {
        let said = worktx(self.place, &["reconcile", "--json"]);
        if said.code != 0 {
            self.broken(format!("reconcile: exit {}: {}{}", said.code, said.stdout, said.stderr));
            return;
        }
        let after = self.look_after();
        after.state.clone_into(&mut self.judged.state);
        let early = durable.state.is_empty() || durable.state == "open";
        let late =
            !early && (durable.state != "quarantined" || durable.sealed || durable.discarded);
        let fsck = self.fsck();
        if let Err(why) = &fsck {
            if late {
                self.broken(format!("L1: git fsck: {why}"));
            } else {
                self.judged.platforms_loss = true;
                self.base_is_whole(&after);
                let held = after.state == "quarantined";
                self.expect(held, || format!("settled on a damaged repository: {why}"));
            }
        }
        let answer =
            moment.answered.map(|answer| answer.document["outcome"].as_str().unwrap_or_default());
        let owed = durable.sealed
            || durable.discarded
            || matches!(answer, Some("committed" | "rolled_back"));
        self.nothing_lost(owed, fsck.is_ok());
        self.never_blessed(durable, &after, fsck.is_ok());
        self.stays_so(durable, moment, &after);
        self.no_limbo(&after);
        if after.state == "done" {
            self.look_for_unseen();
        }
        let lost = |failure: &String| failure.starts_with("L1:") || failure.starts_with("L2:");
        if self.facts.repacks
            && moment.out_of_order
            && early
            && self.judged.failures.iter().any(lost)
            && !self.git_kept_the_base(&after)
        {
            // Bytes and branch are git's own loss; the other laws hold there too.
            self.judged.gits_loss = true;
            self.judged.failures.retain(|failure| !lost(failure));
            return;
        }
        if moment.deep && self.judged.failures.is_empty() {
            self.what_comes_next(moment, &after, fsck.is_ok());
        }
    }

    fn look_after(&mut self) -> After {
        let text = self.sql(&format!(
            "select 'attempt', state, coalesce(json_extract(outcome, '$.reason'), ''), \
             coalesce(json_extract(data, '$.pins.base.id'), '') from attempt \
             where execution_id = '{JOB}' order by attempt desc limit 1; \
             select 'win', e.execution_id, e.success_candidate, a.state from execution e \
             join attempt a on a.execution_id = e.execution_id and a.attempt = e.success_attempt \
             where e.status = 'success'; \
             select 'limbo', execution_id, attempt, state from attempt where settled_at is null and \
             not (state = 'quarantined' and coalesce(json_extract(outcome, '$.reason'), '') <> ''); \
             select 'unsettled', execution_id from attempt where settled_at is null; \
             {ALL_ROWS}"
        ));
        let mut after = After { settled: true, ..After::default() };
        for line in text.lines() {
            match line.split('|').collect::<Vec<_>>()[..] {
                ["attempt", state, reason, base] => {
                    state.clone_into(&mut after.state);
                    reason.clone_into(&mut after.reason);
                    base.clone_into(&mut after.base_pin);
                }
                ["win", execution, candidate, state] => {
                    after.wins.push([execution, candidate, state].map(str::to_owned));
                }
                ["limbo", ..] => after.limbo.push(line.to_owned()),
                ["unsettled", ..] => after.settled = false,
                _ => after.rows.push(line.to_owned()),
            }
        }
        after
    }

    fn sql(&mut self, query: &str) -> String {
        let ledger = self.place.ledger();
        if !ledger.exists() {
            return String::new();
        }
        let said = self.place.sql(&ledger, query);
        if said.code != 0 {
            self.broken(format!("{query}: {}", said.stderr));
        }
        said.stdout.trim_end().to_owned()
    }

    fn fsck(&self) -> Result<(), String> {
        let said = self.place.git(&["fsck", "--strict", "--no-dangling"]);
        let text = format!("{}{}", said.stdout, said.stderr);
        let words = ["error", "missing", "broken", "corrupt", "bad", "invalid"];
        if said.code != 0 || words.iter().any(|word| text.contains(word)) {
            return Err(text);
        }
        Ok(())
    }

    /// Whether there is a branch, wherever it is, and everything of the base and its pin can be found.
    fn git_kept_the_base(&self, after: &After) -> bool {
        let list = ["rev-list", "--objects", "--no-object-names", &self.facts.base];
        let pin = Some(&*after.base_pin).filter(|pin| !pin.is_empty());
        let list: Vec<&str> = list.into_iter().chain(pin).collect();
        self.place.git(&["rev-parse", "--verify", "-q", "HEAD"]).code == 0
            && self.place.git(&list).code == 0
    }

    /// Everything that the base reaches can be read.
    fn base_is_whole(&mut self, after: &After) {
        let mut list = self.place.command("git");
        list.args(["rev-list", "--objects", "--no-object-names", &self.facts.base]);
        if !after.base_pin.is_empty() {
            list.arg(&after.base_pin);
        }
        let said = run(&mut list);
        if said.code != 0 {
            self.broken(format!("L1: the base cannot be listed: {}", said.stderr));
            return;
        }
        for id in said.stdout.lines() {
            let kind = self.place.git(&["cat-file", "-t", id]).stdout;
            let mut read = self.place.command("git");
            let bytes = read.args(["cat-file", kind.trim(), id]).output().expect("it starts");
            let found = object_id(kind.trim(), &bytes.stdout);
            self.expect(found == id, || format!("L1: object {id} of the base is damaged"));
        }
    }

    fn nothing_lost(&mut self, owed: bool, sound: bool) {
        let mut wanted: Vec<&Vec<u8>> = self.facts.held.iter().collect();
        if owed {
            wanted.extend(&self.facts.owed);
        }
        // Broken refs of the turn's own stop `--all`; the pins are asked for by themselves.
        let from: &[&str] =
            if sound { &["--all"] } else { &["--glob=refs/worktx", &self.facts.base] };
        let said =
            self.place.git(&[&["rev-list", "--objects", "--no-object-names"], from].concat());
        if said.code != 0 {
            self.broken(format!("L1: rev-list {from:?}: {}", said.stderr));
        }
        let reachable: BTreeSet<&str> = said.stdout.lines().collect();
        let on_disk: BTreeSet<Vec<u8>> = files(&self.place.repo())
            .into_iter()
            .chain(files(&self.place.repo().join(".git/worktx/spill")))
            .collect();
        let mut lost = Vec::new();
        for bytes in wanted {
            if !reachable.contains(&*object_id("blob", bytes)) && !on_disk.contains(bytes) {
                lost.push(String::from_utf8_lossy(bytes).into_owned());
            }
        }
        self.expect(lost.is_empty(), || format!("L1: lost: {lost:?}"));
    }

    fn never_blessed(&mut self, durable: &Durable, after: &After, sound: bool) {
        let said = self
            .place
            .git(&["log", "--format=%H %(trailers:key=Worktx-Execution,valueonly,separator=)"]);
        self.expect(said.code == 0 || !sound, || format!("L2: git log: {}", said.stderr));
        let log: Vec<(&str, &str)> =
            said.stdout.lines().filter_map(|line| line.split_once(' ')).collect();
        for [execution, candidate, state] in &after.wins {
            let contained = log.iter().any(|(id, _)| id == candidate);
            let fine = contained || state == "quarantined" || !sound;
            self.expect(fine, || format!("L2: not on the branch: {execution} {candidate} {state}"));
        }
        if durable.status == "success" {
            let stands = after.wins.iter().any(|[execution, candidate, _]| {
                execution == JOB && *candidate == durable.candidate
            });
            self.expect(stands, || "L2: a won verdict is gone".to_owned());
        }
        let mut seen = BTreeSet::new();
        for execution in log.iter().map(|(_, name)| name.trim()).filter(|name| !name.is_empty()) {
            self.expect(seen.insert(execution), || format!("L2: {execution} has two commits"));
            self.expect(after.wins.iter().any(|[winner, ..]| winner == execution), || {
                format!("L2: {execution} is on the branch and not won")
            });
        }
    }

    /// What the ledger or an answer said before is so after.
    fn stays_so(&mut self, durable: &Durable, moment: &Moment<'_>, after: &After) {
        let (state, reason) = (&after.state, &after.reason);
        if ["done", "rolled_back", "released"].contains(&durable.state.as_str()) {
            self.expect(*state == durable.state, || {
                format!("it was {} and is {state}", durable.state)
            });
        }
        if durable.status == "success" && !durable.state.is_empty() {
            let fine = state == "done" || (state == "quarantined" && reason == "promote_blocked");
            self.expect(fine, || format!("it had won and is {state} ({reason})"));
        }
        if state == "rolled_back" {
            self.as_before("it is rolled back");
        }
        let Some(answer) = moment.answered else { return };
        let outcome = answer.document["outcome"].as_str().unwrap_or_default();
        let wanted = match outcome {
            "committed" => "done",
            "rolled_back" => "rolled_back",
            "quarantined" => "quarantined",
            _ => return,
        };
        self.expect(state == wanted, || format!("the answer was {outcome}, the state is {state}"));
        if outcome == "committed" {
            let head = self.place.git(&["rev-parse", "HEAD"]).stdout;
            let commit = answer.document["commit"].as_str().unwrap_or_default();
            self.expect(head.trim() == commit, || format!("committed {commit}, HEAD is {head}"));
        }
    }

    fn as_before(&mut self, when: &str) {
        let (now, before) = (scope(&self.place.repo()), &self.facts.before);
        if now != *before {
            let paths: BTreeSet<&String> = now.keys().chain(before.keys()).collect();
            let differ: Vec<String> = paths
                .into_iter()
                .filter(|path| now.get(*path) != before.get(*path))
                .map(|path| format!("{path} is {:?}, was {:?}", now.get(path), before.get(path)))
                .collect();
            self.broken(format!("{when}, and the tree is not what it was: {differ:?}"));
        }
        let head = self.place.git(&["rev-parse", "HEAD"]);
        let base = self.facts.base.clone();
        self.expect(head.stdout.trim() == base, || {
            format!("{when}, and HEAD is {}{}", head.stdout, head.stderr)
        });
    }

    fn look_for_unseen(&mut self) {
        let list = self.place.git(&["ls-tree", "-r", "HEAD"]).stdout;
        let differs = list.lines().filter_map(|line| line.split_once('\t')).any(|(what, path)| {
            let (id, path) = (what.rsplit(' ').next(), self.place.repo().join(path));
            let bytes = match fs::read_link(&path) {
                Ok(target) => target.into_os_string().into_encoded_bytes(),
                Err(_) => fs::read(&path).unwrap_or_default(),
            };
            id != Some(&*object_id("blob", &bytes))
        });
        self.judged.unseen = differs && self.git_sees_nothing();
    }

    fn git_sees_nothing(&self) -> bool {
        self.place.git(&["status", "--porcelain", "-uno"]).stdout.is_empty()
    }

    fn no_limbo(&mut self, after: &After) {
        self.expect(after.limbo.is_empty(), || format!("L3: in limbo: {:?}", after.limbo));
        let before = self.picture(after.rows.clone());
        let again = worktx(self.place, &["reconcile", "--json"]);
        self.expect(again.code == 0, || format!("L3: reconcile again: {}", again.stderr));
        let rows = self.sql(ALL_ROWS).lines().map(str::to_owned).collect();
        let now = self.picture(rows);
        self.expect(before == now, || {
            let changed: Vec<_> =
                before.iter().zip(&now).filter(|(one, other)| one != other).collect();
            format!("L3: a second reconcile changed something: {changed:?}")
        });
        if after.settled {
            self.nothing_is_left_over();
        }
    }

    fn nothing_is_left_over(&mut self) {
        let tree = listing(&self.place.repo());
        let own: Vec<_> = tree.keys().filter(|path| path.starts_with(".worktx")).collect();
        self.expect(own.is_empty(), || format!("L3: left over in the tree: {own:?}"));
        // A folder that is empty is no harm: `git::locks` says so.
        let locks: Vec<_> = listing(&self.place.repo().join(".git"))
            .into_iter()
            .filter(|(path, what)| {
                path.ends_with(".lock")
                    || (path.starts_with("worktx/prepared/") && !what.starts_with("dir"))
            })
            .collect();
        self.expect(locks.is_empty(), || format!("L3: locks are left over: {locks:?}"));
    }

    /// Everything that a second reconcile must not change: rows, refs, HEAD, index, tree.
    fn picture(&self, mut rows: Vec<String>) -> Vec<String> {
        let git = self.place.repo().join(".git");
        for file in ["HEAD", "packed-refs", "index"] {
            rows.push(format!("{file} {:?}", fs::read(git.join(file)).ok()));
        }
        rows.push(format!("{:?}", listing(&git.join("refs"))));
        rows.push(format!("{:?}", listing(&self.place.repo())));
        rows
    }

    /// The next run behaves by the book, and an operator gets the base back.
    fn what_comes_next(&mut self, moment: &Moment<'_>, after: &After, sound: bool) {
        let mut settled = after.settled;
        for lock in &moment.locks_of_git {
            // What the hint of the refusal says, once the git command is known to be dead.
            let _ = fs::remove_file(self.place.root.join(lock));
        }
        if after.state == "quarantined" && after.reason == "interrupted" {
            let said = worktx(self.place, &["resolve", JOB, "--discard", "--json"]);
            match said.code {
                0 => {
                    settled = true;
                    self.as_before("it is discarded");
                    self.judged.taken_back = true;
                    let fsck = self.fsck();
                    self.expect(fsck.is_ok() || !sound, || format!("after discard: {fsck:?}"));
                    let refs = self.place.git(&["rev-list", "--objects", "--all"]);
                    self.expect(refs.code == 0, || {
                        format!("after discard a ref cannot be read: {}", refs.stderr)
                    });
                }
                20 if !sound => {}
                code => self.broken(format!(
                    "it cannot be discarded: exit {code}: {}{}",
                    said.stdout, said.stderr
                )),
            }
        }
        let options = ["run", "--json", "--execution-id", "next", "--no-post-check"];
        let next = worktx(self.place, &[&options[..], &["--", "true"]].concat());
        let fine = match next.code {
            0 => settled,
            21 if !settled => true,
            // The turn's own unsynced files may be lost from a tree whose commit has them.
            21 => self.judged.unseen || !self.git_sees_nothing(),
            _ => false,
        };
        self.expect(fine, || {
            format!("L3: the next run: exit {}: {}{}", next.code, next.stdout, next.stderr)
        });
    }
}

/// The tree without what is ignored.
pub fn scope(repo: &Path) -> BTreeMap<String, String> {
    let mut all = listing(repo);
    all.retain(|path, _| !path.starts_with("ignored"));
    all
}

/// The bytes of every file below `root` but `.git`, and without what is ignored.
pub fn files(root: &Path) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for path in listing(root).into_keys() {
        let full = root.join(&path);
        if fs::symlink_metadata(&full).is_ok_and(|meta| meta.is_file())
            && !path.starts_with("ignored")
        {
            all.push(fs::read(full).expect("readable"));
        }
    }
    all
}

/// The id that git gives these bytes.
fn object_id(kind: &str, bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("{kind} {}\0", bytes.len()));
    hash.update(bytes);
    let mut text = String::new();
    for byte in hash.finalize() {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text
}

fn with_ending(path: &Path, ending: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
