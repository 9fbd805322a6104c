//! A look at what a mark on the file system names finds what a look at all finds; and where a mark
//! may not know, it says so.
//!
//! # Limitations
//! Skipped where no mark can be set. On a file system in memory, since a mark is told what other
//! tests do on the disk.
#![allow(clippy::print_stdout)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::watched::{Step, fill, rules_of, sealed, step, steps, without_doubts};
use super::{Tree, told, wait_for_proof};
use crate::git::manifest::baseline::Baseline;
use crate::git::manifest::touched::Touched;
use crate::git::scan::mark::Mark;
use crate::git::scan::{Scan, ScanRequest, scan};

struct Marked {
    tree: Tree,
    mark: Mark,
    base: Baseline,
}

/// A tree in memory, filled, that a mark has known since it was looked at; or why there is none.
fn marked(fill: impl FnOnce(&Tree)) -> Option<Marked> {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        println!("SKIPPED: no /dev/shm");
        return None;
    }
    marked_in(memory, fill)
}

fn marked_in(folder: &Path, fill: impl FnOnce(&Tree)) -> Option<Marked> {
    let mut tree = Tree::new_in(folder);
    fill(&tree);
    tree.keep_modified = true;
    tree.establish().expect("a base");
    wait_for_proof();
    match Mark::set(&tree.root) {
        Ok(mut mark) => {
            let base = tree.establish().expect("a base");
            mark.looked().expect("marked");
            Some(Marked { tree, mark, base })
        }
        Err(error) => {
            println!("SKIPPED: no mark can be set here: {error}");
            None
        }
    }
}

fn small() -> Option<Marked> {
    marked(fill)
}

impl Marked {
    fn touched(&mut self) -> Option<Touched> {
        self.mark.touched(&self.base.snapshot)
    }

    /// What was touched, as text.
    fn names(&mut self) -> Vec<String> {
        let touched = self.touched().expect("known");
        let text = |dir: &[u8]| String::from_utf8_lossy(dir).into_owned();
        let whole = touched.wholes().map(|dir| format!("{}/**", text(dir)));
        touched.directories().map(text).chain(whole).collect()
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.tree.at(name)
    }
}

#[test]
fn names_the_directories_in_which_something_happened() {
    let Some(mut marked) = small() else { return };
    assert!(marked.names().is_empty(), "{:?}", marked.names());
    fs::write(marked.at("a/b/one"), "changed").expect("written");
    assert_eq!(marked.names(), ["a/b"]);
    fs::write(marked.at("c/new"), "new").expect("written");
    marked.tree.git(&["status"]);
    fs::write(marked.at(".git/mine"), "new").expect("written");
    fs::write(marked.tree.dir.path().join("elsewhere"), "new").expect("written");
    assert_eq!(marked.names(), ["a/b", "c"], "what happens elsewhere is nothing of the tree's");
    fs::remove_file(marked.at("five")).expect("removed");
    fs::create_dir_all(marked.at("new/deep")).expect("made");
    assert_eq!(marked.names(), ["", "a/b", "c", "new", "new/**", "new/deep/**"]);
}

#[test]
fn a_change_of_a_directory_itself_is_one_in_its_parent() {
    use std::os::unix::fs::PermissionsExt as _;
    let Some(mut marked) = small() else { return };
    fs::set_permissions(marked.at("a/b"), fs::Permissions::from_mode(0o700)).expect("set");
    assert_eq!(marked.names(), ["a", "a/b"]);
}

#[test]
fn a_write_through_a_second_name_is_seen() {
    for hidden in ["../other", ".git/other", "c/other"] {
        let Some(mut marked) = small() else { return };
        let hidden = marked.at(hidden);
        fs::hard_link(marked.at("a/b/one"), &hidden).expect("linked");
        fs::write(&hidden, "sly").expect("written");
        fs::remove_file(&hidden).expect("removed");
        assert!(marked.names().contains(&"a/b".to_owned()), "{}", hidden.display());
    }
    // Linked before the mark was set, and by two names within the tree.
    let linked = marked(|tree| {
        fill(tree);
        fs::hard_link(tree.at("c/four"), tree.at("a/four")).expect("linked");
        fs::hard_link(tree.at("c/four"), tree.at("../outside")).expect("linked");
    });
    let Some(mut linked) = linked else { return };
    fs::write(linked.at("../outside"), "sly").expect("written");
    assert_eq!(linked.names(), ["a", "c"]);
}

#[test]
fn a_mapping_that_was_written_through_is_seen() {
    let Some(mut marked) = small() else { return };
    let done = std::process::Command::new("python3")
        .args(["-c", "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nf.close()\nm[0:1]=b'X'"])
        .arg(marked.at("a/b/one"))
        .status();
    if !done.is_ok_and(|status| status.success()) {
        println!("SKIPPED: no python3");
        return;
    }
    assert_eq!(marked.names(), ["a/b"]);
}

/// A handle in a socket that nobody reads outlives the process, and its file is not closed.
const PARKED: &str = include_str!("../../../../tests/it/parked.py");

/// Writes by [`PARKED`]; whether python3 is there.
pub(super) fn write_parked(at: &Path) -> bool {
    let done = std::process::Command::new("python3").args(["-c", PARKED]).arg(at).status();
    let is_done = done.is_ok_and(|status| status.success());
    if !is_done {
        println!("SKIPPED: no python3 with send_fds");
    }
    is_done
}

#[test]
fn a_mapping_whose_handle_is_kept_elsewhere_is_seen() {
    let Some(mut marked) = small() else { return };
    if write_parked(&marked.at("a/b/one")) {
        assert_eq!(marked.names(), ["a/b"]);
    }
    // What is only read is nothing.
    let Some(mut marked) = small() else { return };
    assert_eq!(fs::read(marked.at("c/four")).expect("read"), b"c/four");
    assert!(marked.names().is_empty());
}

/// Whoever moves a directory above the tree and leaves a link in its place.
#[test]
fn a_tree_that_is_reached_by_another_way_is_not_known() {
    let Some(mut marked) = small() else { return };
    let above = marked.tree.dir.path().to_owned();
    let aside = above.with_extension("aside");
    fs::write(marked.at("a/b/one"), "changed").expect("written");
    fs::rename(&above, &aside).expect("moved");
    symlink(&aside, &above).expect("linked");
    assert!(marked.tree.root.verify().is_ok(), "it is the same directory");
    assert!(marked.touched().is_none());
    fs::remove_file(&above).expect("removed");
    fs::rename(&aside, &above).expect("moved");
}

#[test]
fn directories_that_take_each_others_place_are_looked_at_whole() {
    let Some(mut marked) = small() else { return };
    fs::rename(marked.at("a"), marked.at("x")).expect("moved");
    fs::rename(marked.at("c"), marked.at("a")).expect("moved");
    fs::rename(marked.at("x"), marked.at("c")).expect("moved");
    let names = marked.names();
    for whole in ["a/**", "c/**"] {
        assert!(names.contains(&whole.to_owned()), "{names:?}");
    }
    let Some(mut marked) = small() else { return };
    fs::remove_dir_all(marked.at("a/b")).expect("removed");
    fs::create_dir(marked.at("a/b")).expect("made");
    let names = marked.names();
    assert!(names.contains(&"a/b/**".to_owned()), "{names:?}");
}

#[test]
fn a_mark_that_was_told_too_much_knows_nothing() {
    // Not where the other tests would be told of it.
    let on_disk = || marked_in(&std::env::temp_dir(), fill);
    let Some(mut marked) = on_disk() else { return };
    for number in 0..5000 {
        fs::write(marked.at(&format!("c/{number}")), "").expect("written");
    }
    assert!(marked.touched().is_none());
    fs::write(marked.at("a/three"), "changed").expect("written");
    assert!(marked.touched().is_none(), "and never again");

    let Some(mut marked) = on_disk() else { return };
    let bound: usize = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .expect("a number");
    // Names of one directory: nothing that counts as many.
    for number in 0..bound {
        let at = marked.at(&format!("../{number}"));
        fs::create_dir(&at).expect("made");
        fs::remove_dir(&at).expect("removed");
    }
    assert!(marked.touched().is_none());
}

/// Somebody writes for each call that this process makes: as a tracer does that keeps its notes on the
/// same file system.
#[test]
fn who_writes_all_the_time_is_not_waited_for() {
    let Some(mut marked) = small() else { return };
    let noise = marked.at("../noise");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (noise, stop) = (noise.with_extension(number.to_string()), &stop);
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::write(&noise, "again").expect("written");
                }
            });
        }
        fs::write(marked.at("a/b/one"), "changed").expect("written");
        for _ in 0..100 {
            // More than is kept may have come; else it is known.
            if let Some(touched) = marked.touched() {
                assert_eq!(touched.directories().collect::<Vec<_>>(), [b"a/b"]);
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

fn scans(marked: &mut Marked, rules_of_base: &crate::git::scan::rules::BaseRules) -> (Scan, Scan) {
    let touched = marked.touched();
    assert!(touched.is_some(), "so few are known");
    let rules = marked.tree.rules();
    let temporary = [b".worktx-tmp-1".to_vec()];
    let snapshot = &marked.base.snapshot;
    let request = ScanRequest {
        temporary: &temporary,
        ..ScanRequest::new(&marked.tree.root, snapshot, &rules, Some(rules_of_base))
    };
    let full = scan(&request).expect("scanned");
    let narrow = scan(&ScanRequest { only: touched.as_ref(), ..request }).expect("scanned");
    (without_doubts(full), without_doubts(narrow))
}

type Turns = (Vec<Step>, bool, Vec<Step>, Vec<Step>);

fn finds_the_same((first, tracked, turn, check): &Turns) -> Result<(), TestCaseError> {
    let marked = marked(|tree| {
        for one in first {
            step(tree.root.path(), &tree.at("../outside"), one);
        }
        if *tracked {
            tree.git(&["add", "-A"]);
            tree.git(&["commit", "-q", "--allow-empty", "-m", "x"]);
        }
    });
    let Some(mut marked) = marked else { return Ok(()) };
    if !marked.base.can_be_watched {
        return Ok(());
    }
    let outside = marked.at("../outside");
    let base_rules = rules_of(&marked.tree, &marked.base);
    for one in turn {
        step(marked.tree.root.path(), &outside, one);
    }
    let (full, narrow) = scans(&mut marked, &base_rules);
    prop_assert_eq!(told(&narrow), told(&full));
    prop_assert_eq!(&narrow.unreadable, &full.unreadable);
    prop_assert_eq!(&narrow.attributes, &full.attributes);
    prop_assert_eq!(&narrow.ignored_rules, &full.ignored_rules);
    // As after the seal: against what was found, with what a post-check leaves.
    let snapshot = &mut marked.base.snapshot;
    snapshot.apply(full.changes.into_iter().map(sealed));
    let meta = snapshot.meta();
    *snapshot = snapshot.clone().described_by(meta, full.ignored_rules);
    let base_rules = rules_of(&marked.tree, &marked.base);
    for one in check {
        step(marked.tree.root.path(), &outside, one);
    }
    let (full, narrow) = scans(&mut marked, &base_rules);
    prop_assert_eq!(told(&narrow), told(&full));
    Ok(())
}

/// A folder that ignores itself is ignored by one above it from now on: its rules are nobody's.
#[test]
fn rules_of_what_is_ignored_by_now_are_forgotten() {
    let turns: Turns =
        (vec![(0, vec![0, 4], vec![0], 5)], false, vec![(0, vec![4], vec![0], 2)], vec![]);
    finds_the_same(&turns).expect("the same");
}

/// Whatever a turn and a post-check do: both looks find the same.
#[test]
fn finds_what_a_full_look_finds() {
    if marked(|_| {}).is_none() {
        return;
    }
    let config = Config {
        cases: 100,
        max_shrink_iters: 300,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&(steps(25), any::<bool>(), steps(10), steps(6)), |turns| finds_the_same(&turns))
        .expect("the same");
}
