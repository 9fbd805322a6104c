//! A look at what a watch names finds what a look at all finds; and whatever a watch may not know
//! makes it give up, or say that all is to be looked at.
//!
//! # Limitations
//! Mounts need root and are left to the tests of the binary.
#![allow(clippy::print_stdout)]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::{Tree, told, wait_for_proof};
use crate::git::files::root::Root;
use crate::git::manifest::Manifest;
use crate::git::manifest::baseline::{Baseline, STALE_WATCHED};
use crate::git::manifest::touched::Touched;
use crate::git::scan::rules::BaseRules;
use crate::git::scan::watch::{Lost, Watch, touch_root};
use crate::git::scan::{Scan, ScanRequest, scan};
use crate::tx::entry::{Change, Entry, Kind, Stat};
use crate::tx::path::RepoPath;

const MANY: u64 = 100_000;

struct Watched {
    tree: Tree,
    watch: Watch,
}

fn begin(tree: &Tree) -> Result<Watch, Lost> {
    Watch::begin(Root::open(tree.root.path()).expect("opened"), &tree.manifest, MANY, 0)
}

impl Watched {
    /// A tree that a watch knows.
    fn new(mut tree: Tree) -> Self {
        tree.keep_modified = true;
        tree.establish().expect("a base");
        wait_for_proof();
        tree.establish().expect("a base");
        let watch = begin(&tree).expect("watched");
        let mut watched = Self { tree, watch };
        assert_eq!(watched.ask().1, None, "a watch that has just begun knows nothing");
        watched.establish();
        watched
    }

    fn ask(&mut self) -> (u64, Option<Touched>) {
        touch_root(&self.tree.root).expect("touched");
        let generation = self.tree.manifest.meta().expect("read").generation;
        self.watch.ask(generation, "view").expect("watched")
    }

    /// As the beginning of an attempt does it.
    fn establish(&mut self) -> Baseline {
        let (token, only) = self.ask();
        self.tree.only = only;
        let baseline = self.tree.establish().expect("a base");
        self.tree.only = None;
        if baseline.can_be_watched {
            let manifest = &self.tree.manifest;
            let told = [baseline.rewritten.clone(), baseline.stale.clone()];
            self.watch.looked(token, manifest, "view", baseline.full, &told).expect("watched");
        }
        baseline
    }

    /// What was read for a look was opened: it is looked at once more, until its time of change is
    /// old enough to tell that it is as before.
    fn settle(&mut self) {
        self.establish();
        wait_for_proof();
        self.establish();
        self.establish();
    }

    fn touched(&mut self) -> Touched {
        self.ask().1.expect("known")
    }

    /// What was touched, as text.
    fn names(&mut self) -> Vec<String> {
        let touched = self.touched();
        let text = |dir: &[u8]| String::from_utf8_lossy(dir).into_owned();
        let whole = touched.wholes().map(|dir| format!("{}/**", text(dir)));
        touched.directories().map(text).chain(whole).collect()
    }

    fn scans(&mut self, base: &(Baseline, BaseRules)) -> (Scan, Scan) {
        let touched = self.ask().1;
        let rules = self.tree.rules();
        let temporary = [b".worktx-tmp-1".to_vec()];
        let request = ScanRequest {
            temporary: &temporary,
            ..ScanRequest::new(&self.tree.root, &base.0.snapshot, &rules, Some(&base.1))
        };
        let full = scan(&request).expect("scanned");
        let narrow = scan(&ScanRequest { only: touched.as_ref(), ..request }).expect("scanned");
        (full, narrow)
    }
}

/// The rules of what stands in the manifest, from the tree, which nothing has changed yet.
pub(super) fn rules_of(tree: &Tree, baseline: &Baseline) -> BaseRules {
    let mut kept = std::collections::HashMap::new();
    for (path, packed) in baseline.snapshot.iter() {
        if path.name() == b".gitignore"
            && let Ok(bytes) = fs::read(tree.root.path().join(path.as_path()))
        {
            kept.insert(packed.raw(), bytes);
        }
    }
    BaseRules::of(Arc::new(baseline.snapshot.clone()), move |id| {
        kept.get(&id).cloned().ok_or(String::new())
    })
}

fn small() -> Tree {
    let tree = Tree::new();
    fill(&tree);
    tree
}

pub(super) fn fill(tree: &Tree) {
    for name in ["a/b/one", "a/b/two", "a/three", "c/four", "five"] {
        tree.write(name, name);
    }
    fs::create_dir(tree.at("empty")).expect("made");
    tree.commit(&["."]);
}

#[test]
fn names_the_directories_in_which_something_happened() {
    let mut watched = Watched::new(small());
    assert!(watched.touched().is_empty());
    let at = |name: &str| watched.tree.root.path().join(name);
    fs::write(at("a/b/one"), "changed").expect("written");
    let (new, mode, gone) = (at("c/new"), at("empty"), at("five"));
    assert_eq!(watched.names(), ["a/b"]);
    fs::write(new, "new").expect("written");
    fs::set_permissions(mode, fs::Permissions::from_mode(0o700)).expect("set");
    assert_eq!(watched.names(), ["", "a/b", "c", "empty"]);
    fs::remove_file(gone).expect("removed");
    watched.settle();
    assert!(watched.touched().is_empty(), "what was looked at is known again");
    fs::write(watched.tree.at("c/new"), "again").expect("written");
    assert_eq!(watched.names(), ["c"], "and what is new is watched");
}

#[test]
fn a_write_through_a_second_name_is_seen() {
    let mut watched = Watched::new(small());
    let other = watched.tree.dir.path().join("other");
    fs::hard_link(watched.tree.at("a/b/one"), &other).expect("linked");
    fs::write(&other, "sly").expect("written");
    fs::remove_file(&other).expect("removed");
    assert_eq!(watched.names(), ["a/b"]);
    // Linked before the watch began, and to a name within the tree.
    fs::hard_link(watched.tree.at("c/four"), &other).expect("linked");
    fs::hard_link(watched.tree.at("c/four"), watched.tree.at("a/four")).expect("linked");
    watched.settle();
    fs::write(&other, "sly").expect("written");
    assert_eq!(watched.names(), ["a", "c"]);
}

#[test]
fn a_mapping_that_was_written_through_is_seen() {
    let mut watched = Watched::new(small());
    let done = std::process::Command::new("python3")
        .args(["-c", "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nf.close()\nm[0:1]=b'X'"])
        .arg(watched.tree.at("a/b/one"))
        .status();
    if !done.is_ok_and(|status| status.success()) {
        println!("SKIPPED: no python3");
        return;
    }
    assert_eq!(watched.names(), ["a/b"]);
}

#[test]
fn a_mapping_whose_handle_is_kept_elsewhere_is_seen() {
    let mut watched = Watched::new(small());
    if super::marked::write_parked(&watched.tree.at("a/b/one")) {
        assert_eq!(watched.names(), ["a/b"]);
    }
    // What is only read is as it was.
    let mut watched = Watched::new(small());
    wait_for_proof();
    watched.establish();
    assert_eq!(fs::read(watched.tree.at("c/four")).expect("read"), b"c/four");
    assert!(watched.touched().is_empty());
    assert_eq!(fs::read(watched.tree.at("c/four")).expect("read"), b"c/four");
    fs::write(watched.tree.at("c/four"), "changed").expect("written");
    assert_eq!(watched.names(), ["c"], "and it is watched again");
}

#[test]
fn directories_that_take_each_others_place_are_looked_at_whole() {
    let mut watched = Watched::new(small());
    let at = |name: &str| watched.tree.root.path().join(name);
    fs::rename(at("a"), at("x")).expect("moved");
    fs::rename(at("c"), at("a")).expect("moved");
    fs::rename(at("x"), at("c")).expect("moved");
    assert_eq!(watched.names(), ["", "a/**", "c/**"]);
    watched.establish();
    watched.establish();
    assert!(watched.touched().is_empty());
    fs::write(watched.tree.at("c/b/one"), "changed").expect("written");
    assert_eq!(watched.names(), ["c/b"]);
    fs::remove_dir_all(watched.tree.at("c/b")).expect("removed");
    fs::create_dir(watched.tree.at("c/b")).expect("made");
    assert_eq!(watched.names(), ["c", "c/b/**"]);
}

#[test]
fn a_look_that_was_not_told_leaves_everything_touched() {
    let mut watched = Watched::new(small());
    fs::write(watched.tree.at("c/four"), "changed").expect("written");
    assert_eq!(watched.names(), ["c"]);
    assert_eq!(watched.names(), ["c"]);
    // What is written between the answer and the end of the look is touched afterwards.
    let (token, only) = watched.ask();
    fs::write(watched.tree.at("a/three"), "changed").expect("written");
    watched.tree.only = only;
    let baseline = watched.tree.establish().expect("a base");
    watched.tree.only = None;
    let manifest = &watched.tree.manifest;
    let told = [baseline.rewritten.clone(), baseline.stale.clone()];
    watched.watch.looked(token, manifest, "view", baseline.full, &told).expect("watched");
    assert!(watched.names().contains(&"a".to_owned()));
}

/// A path that was ignored, and lies where nothing was touched, comes into the manifest by a commit.
#[test]
fn what_only_head_knows_is_watched_from_then_on() {
    let tree = small();
    tree.write(".gitignore", "out/\n");
    tree.write("out/deep/file", "one");
    tree.commit(&[".gitignore"]);
    let mut watched = Watched::new(tree);
    watched.tree.commit(&["out/deep/file"]);
    watched.settle();
    assert!(watched.touched().is_empty());
    fs::write(watched.tree.at("out/deep/file"), "changed").expect("written");
    assert_eq!(watched.names(), ["out/deep"]);
}

#[test]
fn another_manifest_or_another_view_is_not_known() {
    let mut watched = Watched::new(small());
    let generation = watched.tree.manifest.meta().expect("read").generation;
    for (generation, view, known) in
        [(generation, "view", true), (generation + 1, "view", false), (generation, "other", false)]
    {
        touch_root(&watched.tree.root).expect("touched");
        let (_, only) = watched.watch.ask(generation, view).expect("watched");
        assert_eq!(only.is_some(), known, "{generation} {view}");
    }
    // Written anew at the end of an attempt: what is new there is watched, and to be looked at.
    watched.tree.write("new/deep/file", "new");
    watched.tree.establish().expect("a base");
    let manifest = &watched.tree.manifest;
    let rewritten = [b"".to_vec(), b"new".to_vec(), b"new/deep".to_vec()];
    watched.watch.moved_on(generation, manifest, &rewritten).expect("watched");
    assert_eq!(watched.names(), ["", "new", "new/deep"]);
    watched.settle();
    assert!(watched.touched().is_empty());
    fs::write(watched.tree.at("new/deep/file"), "changed").expect("written");
    assert_eq!(watched.names(), ["new/deep"]);
}

/// As long as the manifest has old stat data of a file, the file is looked at again.
#[test]
fn what_is_not_written_down_is_looked_at_again() {
    let mut watched = Watched::new(small());
    watched.settle();
    watched.tree.stale = STALE_WATCHED;
    let (file, other) = (watched.tree.at("c/four"), watched.tree.dir.path().join("other"));
    let again = |from: &Path| fs::copy(from, &other).and_then(|_| fs::rename(&other, from));
    again(&file).expect("the same bytes in another file");
    for _ in 0..3 {
        let baseline = watched.establish();
        assert!(!baseline.written && !baseline.full);
        assert_eq!((baseline.stale, watched.names()), (vec![b"c".to_vec()], vec!["c".to_owned()]));
        wait_for_proof();
    }
    // A watch that begins now knows of no change; the look at all tells.
    watched.watch = begin(&watched.tree).expect("watched");
    let baseline = watched.establish();
    assert!(baseline.full && !baseline.written);
    assert_eq!(watched.names(), ["c"]);
    fs::write(&file, "changed").expect("written");
    assert_eq!(watched.establish().modified.len(), 1);
    watched.tree.stale = 0;
    watched.settle();
    assert!(watched.touched().is_empty());
}

#[test]
fn a_watch_gives_up_by_name() {
    let lost = |done: &mut dyn FnMut(&mut Watched)| {
        let mut watched = Watched::new(small());
        done(&mut watched);
        let _ = touch_root(&watched.tree.root);
        watched.watch.ask(1, "view").err().map(|lost| lost.word())
    };
    let moved = lost(&mut |watched| {
        let root = watched.tree.root.path();
        fs::rename(root, root.with_file_name("elsewhere")).expect("moved");
    });
    assert_eq!(moved, Some("root"));
    let bound: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .expect("a number");
    let overflow = lost(&mut |watched| {
        for number in 0..=bound / 2 {
            let at = watched.tree.at(&format!("c/{number}"));
            fs::write(&at, "").expect("written");
            fs::remove_file(&at).expect("removed");
        }
    });
    assert_eq!(overflow, Some("overflow"));

    let mut watched = Watched::new(small());
    let silent = watched.watch.ask(1, "view");
    assert!(matches!(silent, Err(Lost::Cookie)), "nobody touched the root: {silent:?}");
    let root = Root::open(watched.tree.root.path()).expect("opened");
    let few = Watch::begin(root, &watched.tree.manifest, 7, 0);
    assert!(matches!(few, Err(Lost::Limit { limit: 7, is_own: true })), "{few:?}");
}

#[test]
fn an_ignored_file_of_attributes_cannot_be_watched() {
    let mut tree = small();
    tree.write(".gitignore", ".gitattributes\n");
    tree.write("a/.gitattributes", "* text\n");
    tree.commit(&[".gitignore"]);
    assert!(!tree.establish().expect("a base").can_be_watched);
    tree.commit(&["a/.gitattributes"]);
    assert!(tree.establish().expect("a base").can_be_watched);
}

const NAMES: &[&str] = &["a", "b", "c.o", "d", ".gitignore", ".gitattributes"];
const RULES: &[&str] = &["*.o\n", "b/\n", "/a\n", "!c.o\n", "d\n*.o\n", "*\n", ""];

/// One thing that a turn may do, by numbers.
pub(super) type Step = (u8, Vec<usize>, Vec<usize>, usize);

pub(super) fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let path = || proptest::collection::vec(0..NAMES.len(), 1..4);
    proptest::collection::vec((0u8..14, path(), path(), 0..RULES.len()), 1..most)
}

fn joined(parts: &[usize]) -> String {
    parts.iter().map(|at| NAMES[*at]).collect::<Vec<_>>().join("/")
}

/// Does it, as far as the tree allows.
pub(super) fn step(root: &Path, outside: &Path, (what, one, other, text): &Step) {
    let (one, other) = (root.join(joined(one)), root.join(joined(other)));
    let make_room = |at: &Path| at.parent().map(fs::create_dir_all);
    match what {
        0..=2 => {
            make_room(&one);
            let _ = fs::write(&one, RULES[*text]);
        }
        3 => drop(fs::remove_file(&one)),
        4 => drop(fs::remove_dir_all(&one)),
        5 | 6 => {
            make_room(&other);
            let _ = fs::rename(&one, &other);
        }
        7 => drop(rustix::fs::renameat_with(
            rustix::fs::CWD,
            &one,
            rustix::fs::CWD,
            &other,
            rustix::fs::RenameFlags::EXCHANGE,
        )),
        8 => {
            if fs::hard_link(&one, outside).is_ok() {
                let _ = fs::write(outside, RULES[*text]);
                let _ = fs::remove_file(outside);
            }
            let _ = fs::hard_link(&one, &other);
        }
        9 => drop(symlink(RULES[*text].trim(), &one)),
        10 => {
            let mode = if one.is_dir() { 0o700 } else { 0o755 };
            if !one.is_symlink() {
                let _ = fs::set_permissions(&one, fs::Permissions::from_mode(mode));
            }
        }
        11 => drop(fs::create_dir_all(&one)),
        // The same bytes: in place, and in another file.
        12 => drop(fs::read(&one).and_then(|bytes| fs::write(&one, bytes))),
        _ if one.is_symlink() => {}
        _ => drop(fs::copy(&one, outside).and_then(|_| fs::rename(outside, &one))),
    }
}

/// Without the paths that only lack a proof: a file that was written in the same tick as the look
/// before, or another name of which was moved. A watch has the proof that stat data has not.
pub(super) fn without_doubts(mut scan: Scan) -> Scan {
    let looks = |stat: &Stat| (stat.mode, stat.size, stat.mtime_ns, stat.inode, stat.uid, stat.gid);
    scan.changes.retain(|change| match (&change.before, &change.after) {
        (Some(before), Some(after)) => {
            before.kind != after.kind || looks(&before.stat) != looks(&after.stat)
        }
        _ => true,
    });
    scan
}

/// What stands at a changed path, as a seal keeps it.
pub(super) fn sealed(change: Change) -> (RepoPath, Option<Entry>) {
    let entry = change.after.map(|found| Entry {
        kind: found.kind,
        stat: found.stat,
        stat_is_proof: true,
        raw: crate::tx::id::Oid::ZERO,
        tracked: change.before.and_then(|before| before.tracked),
    });
    (change.path, entry)
}

/// All entries but what times say, which differ from look to look.
fn entries(baseline: &Baseline) -> Vec<(RepoPath, Entry)> {
    let mut all: Vec<_> = baseline
        .snapshot
        .iter()
        .map(|(path, packed)| {
            let mut entry = packed.entry();
            entry.stat_is_proof = false;
            if entry.kind == Kind::Directory {
                let (mode, uid, gid) = (entry.stat.mode, entry.stat.uid, entry.stat.gid);
                entry.stat =
                    Stat { mode, uid, gid, size: 0, mtime_ns: 0, ctime_ns: 0, inode: 0, links: 0 };
            }
            entry.stat.links = 0;
            (path, entry)
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 300, ..ProptestConfig::default() })]

    /// Whatever turns do, one after the other: both looks find the same, against the base and for
    /// the next base.
    #[test]
    fn finds_what_a_full_look_finds(
        first in steps(25),
        tracked in any::<bool>(),
        stale in any::<bool>(),
        turns in proptest::collection::vec((steps(8), steps(4), steps(4)), 1..4),
    ) {
        let tree = Tree::new();
        let outside = tree.dir.path().join("outside");
        for one in &first {
            step(tree.root.path(), &outside, one);
        }
        if tracked {
            tree.git(&["add", "-A"]);
            tree.git(&["commit", "-q", "--allow-empty", "-m", "x"]);
        }
        let mut watched = Watched::new(tree);
        watched.tree.stale = if stale { STALE_WATCHED } else { 0 };
        for (turn, check, between) in &turns {
            let baseline = watched.establish();
            let base_rules = rules_of(&watched.tree, &baseline);
            let mut base = (baseline, base_rules);
            for one in turn {
                step(watched.tree.root.path(), &outside, one);
            }
            let (full, narrow) = watched.scans(&base);
            let (full, narrow) = (without_doubts(full), without_doubts(narrow));
            prop_assert_eq!(told(&narrow), told(&full));
            prop_assert_eq!(&narrow.unreadable, &full.unreadable);
            prop_assert_eq!(&narrow.attributes, &full.attributes);

            // As after the seal: against what was found, with what a post-check leaves.
            prop_assert_eq!(&narrow.ignored_rules, &full.ignored_rules);
            base.0.snapshot.apply(full.changes.into_iter().map(sealed));
            let meta = base.0.snapshot.meta();
            base.0.snapshot = base.0.snapshot.described_by(meta, full.ignored_rules);
            base.1 = rules_of(&watched.tree, &base.0);
            for one in check {
                step(watched.tree.root.path(), &outside, one);
            }
            let (full, narrow) = watched.scans(&base);
            let (full, narrow) = (without_doubts(full), without_doubts(narrow));
            prop_assert_eq!(told(&narrow), told(&full));
            // As an undo and others do between two attempts.
            for one in between {
                step(watched.tree.root.path(), &outside, one);
            }
            watched.ask();
            for one in check.iter().rev().chain(turn) {
                step(watched.tree.root.path(), &outside, one);
            }

            // The same manifest, brought up to date by a look at all.
            let copy = watched.tree.dir.path().join("copy.db");
            fs::copy(watched.tree.dir.path().join("manifest.db"), &copy).expect("copied");
            let narrow = watched.establish();
            let mine = std::mem::replace(
                &mut watched.tree.manifest,
                Manifest::open(&copy).expect("opened"),
            );
            let full = watched.tree.establish().expect("a base");
            watched.tree.manifest = mine;
            prop_assert_eq!(entries(&narrow), entries(&full));
            prop_assert_eq!(narrow.snapshot.ignored_rules(), full.snapshot.ignored_rules());
            prop_assert_eq!(&narrow.modified, &full.modified);
            prop_assert_eq!(&narrow.attributes, &full.attributes);
        }
    }
}
