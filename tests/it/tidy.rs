//! What a reviewer would check by eye: layers, file lengths, who may make which proof.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, lowest first; a folder uses those of lower rank, and itself.
const RANKS: [(&str, u32); 11] = [
    ("tx", 0),
    ("base", 1),
    ("journal", 2),
    ("gate", 2),
    ("git", 2),
    ("process", 2),
    ("hook", 2),
    ("config", 2),
    ("coordinator", 3),
    ("daemon", 4),
    ("cli", 5),
];

/// A gate writes its verdict in the journal's own db transaction, so it sits on the journal.
const ALLOWED: [(&str, &str); 1] = [("gate", "journal")];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).expect("readable").map(|e| e.expect("readable").path()) {
            if entry.is_dir() {
                todo.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&entry).expect("readable");
                all.insert(entry, text);
            }
        }
    }
    all
}

fn is_test_file(path: &Path) -> bool {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let in_folder = path.parent().is_some_and(|dir| {
        dir.iter().any(|part| part == "tests" || part.to_string_lossy().ends_with("_tests"))
    });
    let below_src = path.strip_prefix(root().join("src")).is_ok();
    let named = name == "tests"
        || name.ends_with("_tests")
        || name.starts_with("tests_")
        || name.starts_with("test_")
        || name == "testkit";
    named || (below_src && in_folder)
}

/// The part of a file before its `mod tests`.
fn without_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]").map_or(text, |at| &text[..at])
}

#[test]
fn imports_go_down_only() {
    let src = root().join("src");
    let mut wrong = Vec::new();
    for (path, text) in sources(&src) {
        let relative = path.strip_prefix(&src).expect("below src");
        let Some(folder) = relative.iter().next().and_then(|f| f.to_str()) else { continue };
        let Some((_, rank)) = RANKS.iter().find(|(name, _)| *name == folder) else { continue };
        if is_test_file(&path) {
            continue;
        }
        for (number, line) in without_tests(&text).lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for (other, other_rank) in RANKS {
                let used = line.contains(&format!("crate::{other}::"))
                    || line.contains(&format!("crate::{other};"));
                let fine =
                    other == folder || other_rank < *rank || ALLOWED.contains(&(folder, other));
                if used && !fine {
                    wrong.push(format!("{}:{}: {line}", relative.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "imports that do not go down:\n{}", wrong.join("\n"));
}

#[test]
fn files_stay_readable() {
    let mut long = Vec::new();
    for (path, text) in sources(&root().join("src")) {
        let lines = text.lines().count();
        if lines > 600 && !is_test_file(&path) {
            long.push(format!("{} ({lines})", path.display()));
        }
    }
    assert!(long.is_empty(), "files past 600 lines: {}", long.join(", "));
}

#[test]
fn modules_say_what_they_own() {
    let mut silent = Vec::new();
    for (path, text) in sources(&root().join("src")) {
        if is_test_file(&path) || path.ends_with("main.rs") {
            continue;
        }
        if !text.starts_with("//!") || !text.contains("//! # Limitations") {
            silent.push(path.display().to_string());
        }
    }
    assert!(silent.is_empty(), "no `# Limitations` in: {}", silent.join(", "));
}

#[test]
fn proofs_are_made_in_one_place_each() {
    let rules = [("ProvenDead::attest", "process"), ("Won::by", "gate")];
    let mut wrong = Vec::new();
    let src = root().join("src");
    for (path, text) in sources(&src) {
        if is_test_file(&path) {
            continue;
        }
        let relative = path.strip_prefix(&src).expect("below src");
        for (call, owner) in rules {
            if without_tests(&text).contains(call) && !relative.starts_with(owner) {
                wrong.push(format!("{} calls {call}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_top_level_holds_what_was_agreed() {
    let agreed =
        ["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "src", "hooks", "tests", "docs"];
    let output = std::process::Command::new("git")
        .args(["ls-files"])
        .current_dir(root())
        .output()
        .expect("git runs");
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    let extra: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.split('/').next())
        .filter(|top| !top.starts_with('.') && !agreed.contains(top))
        .collect();
    assert!(extra.is_empty(), "top level holds more: {extra:?}");
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let docs = std::fs::read_dir(root().join("docs")).expect("readable");
    let mut pages: Vec<PathBuf> = docs.map(|e| e.expect("readable").path()).collect();
    pages.retain(|page| page.extension().is_some_and(|e| e == "md"));
    pages.push(root().join("README.md"));
    let (mut seen, mut dead) = (0, Vec::new());
    for page in pages {
        let text = fs::read_to_string(&page).expect("readable");
        // The target of `[text](target)`; an anchor after it is not looked at.
        for after in text.split("](").skip(1) {
            let target = after.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            seen += 1;
            if !page.parent().expect("a folder").join(target).exists() {
                dead.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(seen > 20, "only {seen} links were found: is this test blind?");
    assert!(dead.is_empty(), "links that lead nowhere:\n{}", dead.join("\n"));
}

/// The rows of the crash matrix. Each is a fault; a test for it is named after it.
const ROWS: [(&str, &str); 29] = [
    ("01", "killed before the turn starts"),
    ("02", "the coordinator killed mid-turn"),
    ("02b", "coordinator and supervisor killed mid-turn"),
    ("03", "killed between post-check and gate"),
    ("03b", "killed between gate and branch"),
    ("03c", "won, and promotion is impossible"),
    ("04", "killed after the branch moved"),
    ("05", "killed mid-rollback"),
    ("06", "a dirty base"),
    ("07", "cancelled while committing"),
    ("08", "the restore fails"),
    ("09", "killed at every recorded step"),
    ("10", "another process mid-turn"),
    ("11", "a person edits a file"),
    ("12", "dispatched again after a failed attempt"),
    ("13", "re-delivered while the turn still runs"),
    ("14", "the turn switches branch, rewrites history, moves other refs"),
    ("14b", "the turn commits on its own branch"),
    ("15", "symlinks"),
    ("16", "writes into a mount below the root"),
    ("17", "the disk is full"),
    ("18", "success"),
    ("19", "the turn fails or times out"),
    ("20", "the post-check fails, hangs, is killed, is missing, was edited"),
    ("21", "journal and failure memory after a rollback"),
    ("22", "the ledger is busy, locked, read-only, corrupt, newer"),
    ("23", "two at once"),
    ("23b", "a late terminal of an earlier attempt"),
    ("24", "stale locks"),
];

/// The tests of the crash matrix: every file here that has to do with crashes.
fn matrix_tests() -> Vec<String> {
    let mut names = Vec::new();
    for (_, text) in sources(&root().join("tests/it")) {
        for line in text.lines().filter_map(|line| line.strip_prefix("fn row_")) {
            names.push(line.split('(').next().unwrap_or_default().to_owned());
        }
    }
    names
}

#[test]
fn every_row_of_the_crash_matrix_has_a_test_and_every_test_a_row() {
    let tests = matrix_tests();
    let row_of = |test: &String| test.split('_').next().unwrap_or_default().to_owned();
    let missing: Vec<_> =
        ROWS.iter().filter(|(row, _)| !tests.iter().any(|test| row_of(test) == *row)).collect();
    assert!(missing.is_empty(), "rows without a test: {missing:?}");
    let strange: Vec<_> =
        tests.iter().filter(|t| !ROWS.iter().any(|(row, _)| *row == row_of(t))).collect();
    assert!(strange.is_empty(), "tests of rows that are not in the matrix: {strange:?}");
}

#[test]
fn every_fault_point_is_used_by_a_test_of_the_matrix() {
    let source = fs::read_to_string(root().join("src/base/fault.rs")).expect("readable");
    let points: Vec<&str> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Self::"))
        .filter_map(|line| line.split_once("=> \"")?.1.split_once('"').map(|(name, _)| name))
        .collect();
    assert!(points.len() > 15, "only {} points were found: is this test blind?", points.len());
    let mut text = String::new();
    for (path, file) in sources(&root().join("tests/it")) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("crash") {
            text.push_str(&file);
        }
    }
    let unused: Vec<_> = points
        .iter()
        .filter(|point| {
            !text.contains(&format!("\"{point}\"")) && !text.contains(&format!("\"{point}:"))
        })
        .collect();
    assert!(unused.is_empty(), "fault points that no row names: {unused:?}");
}
